//! A release is khook as Helm puts it into a cluster, changes it there, and takes it away again, on a node of our
//! own: real pods get into trouble, and no upgrade loses an incident or asks an agent twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use khook::hook::{ActiveEvent, Hook, Phase};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::agent::{Agent, Behaviour};
use crate::assets::Tool;
use crate::helm::{Helm, chart};
use crate::objects;
use crate::process::{Scratch, say};
use crate::provider::{Cluster, Images, Kind};
use crate::suite::SETTINGS;
use crate::wait::{eventually, throughout};

/// Only an error waits this long.
const PATIENCE: Duration = Duration::from_secs(180);

/// Longer than calls in flight get when khook is to end: such a call is cut off by an upgrade.
const SLOW: Duration = Duration::from_secs(20);

/// Beside the suite's: a call that is cut off is taken over within a minute.
const SHORT: [(&str, &str); 3] =
    [("DRAIN_TIMEOUT", "3s"), ("KAGENT_API_TIMEOUT", "25s"), ("TAKEOVER_MARGIN", "1s")];

/// The pods of `trouble.yaml`, what each is called for, who is asked, and how it stands when khook is upgraded:
/// with its task followed, with its call under way, and too young for a call.
const TROUBLE: [(&str, &str, &str, Phase); 3] = [
    ("search-5b8c", "oom-kill", "kagent/slow", Phase::Notified),
    ("checkout-7d9f", "pod-restart", "kagent/blocking", Phase::Firing),
    ("reports-0", "pod-pending", "kagent/k8s-agent", Phase::Pending),
];

/// Installs both charts, upgrades them in the middle of incidents, removes them, and installs them again.
pub async fn run() -> Result<()> {
    let started = Instant::now();
    let cluster = Cluster::bare(Kind::Local, Images::default()).await?;
    let life = life(&cluster).await;
    if life.is_err() {
        eprintln!("{}", cluster.khook_log(&cluster.khook_namespace()).await.unwrap_or_default());
    }
    let ended = cluster.end().await.context("cleaning up");
    life.and(ended)?;
    say(&format!("all is removed; {:.0} s in all", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Where what is.
struct Release<'a> {
    cluster: &'a Cluster,
    helm: Helm,
    agent: &'a Agent,
    /// khook's.
    namespace: String,
    /// Of the pods in trouble.
    shop: String,
}

async fn life(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.kubeconfig().context("a cluster of our own has a kubeconfig")?;
    let agent = cluster.agent().context("a cluster of our own has an agent of our own")?;
    agent.set_for("kagent/slow", Behaviour::default().delay(SLOW));
    agent.set_for("kagent/blocking", Behaviour::default().delay(SLOW).blocks());
    let release = Release {
        cluster,
        helm: Helm::new(Tool::Helm4).await?.with(&kubeconfig),
        agent,
        namespace: cluster.namespace("khook").await?,
        shop: cluster.namespace("shop").await?,
    };
    say("the cluster is ready");
    release.install(&chart("khook-crds"), json!({})).await?;
    say("both charts are installed");
    release.trouble().await?;
    say(
        "an agent has been asked about a real OOM kill, another is being asked about a crash, a pod waits for a node",
    );

    let changed = changed_crds()?;
    let pods = release.pods().await?;
    release.install(changed.path(), json!({"podAnnotations": {"changed": "yes"}})).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let columns =
        crds.get("hooks.kagent.dev").await?.spec.versions.pop().and_then(|v| v.additional_printer_columns);
    ensure!(
        columns.is_some_and(|columns| columns.iter().any(|column| column.name == "Changed")),
        "the chart's new CRD is not in the cluster"
    );
    ensure!(release.pods().await?.iter().all(|pod| !pods.contains(pod)), "khook's pod is the old one");
    let entries = release.answered().await?;
    release.ensure_each_once()?;
    say("upgraded with a changed CRD and changed values: nothing is lost, nobody was asked twice");

    for name in ["khook", "khook-crds"] {
        release.helm.uninstall(name, &release.namespace, &["--wait"]).await?;
    }
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &release.namespace);
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    ensure!(
        deployments.list(&ListParams::default()).await?.items.is_empty(),
        "khook's Deployment is still there"
    );
    ensure!(roles.get_opt("khook").await?.is_none(), "khook's ClusterRole is still there");
    // The pods go on crashing: only that is newer.
    let known = |entries: Vec<ActiveEvent>| -> Vec<_> {
        entries.into_iter().map(|entry| (entry.id, entry.session_id, entry.answer)).collect()
    };
    ensure!(
        known(release.entries().await.context("the Hook is gone with khook")?) == known(entries),
        "the Hook or what it remembers is gone with khook"
    );
    say("uninstalled: the CRD, the Hook and its incidents are still there");

    // The CRD that was left belongs to nobody: Helm takes it back.
    release.install(&chart("khook-crds"), json!({})).await?;
    throughout("nobody is asked about what is known", Duration::from_secs(10), async || {
        release.ensure_each_once()
    })
    .await?;
    say("installed again: what was known is known, and nobody was asked again");
    Ok(())
}

impl Release<'_> {
    async fn install(&self, crds: &Path, more: Value) -> Result<()> {
        let wait = ["--wait", "--timeout", "3m"];
        self.helm.upgrade("khook-crds", crds, &self.namespace, &json!({}), &wait).await?;
        let mut values = self.cluster.values(&[&SETTINGS[..], &SHORT].concat())?;
        // Two pods cannot have the ports of one host.
        values["strategy"] = json!({"type": "Recreate"});
        for (name, value) in more.as_object().into_iter().flatten() {
            values[name] = value.clone();
        }
        self.helm.upgrade("khook", &chart("khook"), &self.namespace, &values, &wait).await.map(drop)
    }

    /// A Hook, and pods in trouble; returns when each incident stands where it is to be.
    async fn trouble(&self) -> Result<()> {
        let configuration = |(_, event_type, agent, _): &(&str, &str, &str, Phase)| {
            let prompt = "Look at {{.ResourceName}}: {{.EventMessage}}";
            json!({"eventType": event_type, "agentId": agent, "prompt": prompt})
        };
        let configurations: Vec<Value> = TROUBLE.iter().map(configuration).collect();
        let hook = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
            "spec": {"eventConfigurations": configurations}});
        self.cluster.apply(&self.shop, vec![hook]).await?;
        let mut pods = objects::parse(include_str!("../manifests/trouble.yaml"))?;
        pods.retain(|pod| TROUBLE.iter().any(|(name, ..)| pod["metadata"]["name"] == *name));
        self.cluster.apply(&self.shop, pods).await?;
        eventually("every incident to be under way", PATIENCE, async || {
            let entries = self.entries().await?;
            for (pod, _, _, phase) in TROUBLE {
                let entry = entries.iter().find(|entry| entry.resource_name == pod);
                let entry = entry.with_context(|| format!("no incident of {pod}"))?;
                ensure!(entry.status == phase, "{pod} is {}", entry.status);
                ensure!(entry.outcome.is_none(), "{pod} is answered already");
            }
            Ok(())
        })
        .await
    }

    /// The incidents, once every one of them is answered.
    async fn answered(&self) -> Result<Vec<ActiveEvent>> {
        eventually("every incident to be answered", PATIENCE, async || {
            let entries = self.entries().await?;
            ensure!(entries.len() == TROUBLE.len(), "{entries:?}");
            ensure!(entries.iter().all(|entry| entry.outcome.is_some()), "{entries:?}");
            Ok(entries)
        })
        .await
    }

    async fn entries(&self) -> Result<Vec<ActiveEvent>> {
        let hooks: Api<Hook> = Api::namespaced(self.cluster.client.clone(), &self.shop);
        Ok(hooks.get("shop").await?.status.unwrap_or_default().active_events)
    }

    fn ensure_each_once(&self) -> Result<()> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for message in self.agent.messages() {
            let metadata = &message.metadata;
            let what = format!("{} of {}", metadata["eventType"], metadata["resourceName"]);
            *counts.entry(what).or_default() += 1;
        }
        if counts.len() != TROUBLE.len() || counts.values().any(|count| *count != 1) {
            bail!("each of {TROUBLE:?} is to be asked about once, but the agents got {counts:?}");
        }
        Ok(())
    }

    /// The UIDs of khook's pods.
    async fn pods(&self) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        Ok(pods.list(&ListParams::default()).await?.iter().filter_map(|pod| pod.uid()).collect())
    }
}

/// The chart of the CRD as a later version may have it.
fn changed_crds() -> Result<Scratch> {
    let (from, to) = (chart("khook-crds"), Scratch::new()?);
    for folder in ["", "files", "templates"] {
        let (from, to) = (from.join(folder), to.path().join(folder));
        fs::create_dir_all(&to).with_context(|| format!("creating {}", to.display()))?;
        for entry in fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).context("copying the chart")?;
            }
        }
    }
    let file = to.path().join("files/hook.yaml");
    let crd = fs::read_to_string(&file).context("reading the chart's CRD")?;
    let columns = "additionalPrinterColumns:\n";
    ensure!(crd.contains(columns), "the CRD has no columns");
    let more = format!("{columns}    - jsonPath: .spec.suspend\n      name: Changed\n      type: boolean\n");
    fs::write(&file, crd.replacen(columns, &more, 1)).context("changing the CRD")?;
    Ok(to)
}
