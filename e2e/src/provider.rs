//! A provider is where the suite finds a cluster: one of our own with a node on this machine, one that
//! kind makes, or one that is there already.
//!
//! Everything the suite creates carries the label `khook.test/e2e` with the run as its value, and goes
//! with it. A run that was killed on a cluster that is there can be cleaned up after with
//! `kubectl delete namespace,clusterrole,clusterrolebinding --selector khook.test/e2e`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use khook::hook::Hook;
use kube::api::{DeleteParams, ListParams, LogParams, ObjectMeta, PostParams};
use kube::core::TypeMeta;
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::assets::Tool;
use crate::control_plane::{ControlPlane, Options, client_of};
use crate::helm::{Helm, chart};
use crate::image::{self, Image};
use crate::node::Node;
use crate::objects;
use crate::process::{Scratch, free_port, say};
use crate::wait::eventually;
use crate::world::crd_yaml;

/// The label of all that the suite creates; its value is the run.
pub const LABEL: &str = "khook.test/e2e";

/// Only an error waits this long.
const PATIENCE: Duration = Duration::from_secs(180);

/// The Lease of the replicas of khook that the suite runs.
pub const LEASE: &str = "khook";

/// The port that kagent's controller listens on, and the stand-in where it runs in the cluster.
const AGENT_PORT: u16 = 8083;

/// Which provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A control plane and a node of our own on this machine (root on Linux)
    Local,
    /// A cluster made by kind, and removed afterwards (needs Docker)
    Kind,
    /// The cluster of KUBECONFIG
    Existing,
}

/// What a cluster that is not ours alone must be told.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// The image of khook, where the cluster can pull it: the one `e2e image` writes.
    pub khook: Option<String>,
    /// A busybox.
    pub busybox: Option<String>,
}

/// A cluster to run scenarios in, with the CRD, and an agent that counts.
pub struct Cluster {
    /// The way to it, with all rights.
    pub client: Client,
    /// The letters that tell this run's things from others'.
    pub run: String,
    ground: Ground,
    images: BTreeMap<&'static str, String>,
    agent: Option<Agent>,
    made_crd: bool,
}

enum Ground {
    // The node first: it is taken down before what it talks to.
    Local { node: Box<Node>, control_plane: Box<ControlPlane> },
    Kind { _cluster: KindCluster },
    Existing,
}

/// A message the agent got.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Call {
    /// When.
    pub at: DateTime<Utc>,
    /// The messageId.
    pub id: String,
    /// The session it went into.
    pub session: String,
    /// What khook says about it.
    pub metadata: Value,
}

impl Cluster {
    /// Finds or makes a cluster, with the CRD of Hooks.
    pub async fn start(kind: Kind, images: Images) -> Result<Self> {
        let mut cluster = Self::bare(kind, images).await?;
        match cluster.furnish().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.end().await.ok();
                Err(error)
            }
        }
    }

    /// Finds or makes a cluster, without the CRD of Hooks where it has none.
    pub async fn bare(kind: Kind, images: Images) -> Result<Self> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let run = random[..8].to_owned();
        let mut names = BTreeMap::new();
        let (client, ground) = match kind {
            Kind::Local => {
                let options = Options { controllers: true, ..Options::default() };
                let control_plane = ControlPlane::start(options).await?;
                let node = Node::start(&control_plane).await?;
                let client = control_plane.client().await?;
                (client, Ground::Local { node: Box::new(node), control_plane: Box::new(control_plane) })
            }
            Kind::Kind => {
                let cluster = KindCluster::create(&format!("khook-e2e-{run}"))?;
                names.insert(image::BUSYBOX, images.busybox.unwrap_or_else(|| "busybox:1.37".to_owned()));
                (client_of(&cluster.kubeconfig()).await?, Ground::Kind { _cluster: cluster })
            }
            Kind::Existing => {
                names.insert(image::BUSYBOX, images.busybox.unwrap_or_else(|| "busybox:1.37".to_owned()));
                let khook = images.khook.context(
                    "a cluster that is there needs --image: write khook's image with `e2e image FILE`, load \
                     it with Docker, and push it to where the cluster can pull it",
                )?;
                names.insert(image::KHOOK, khook);
                let client = Client::try_default().await.context("making a client of KUBECONFIG")?;
                (client, Ground::Existing)
            }
        };
        let agent = match kind {
            Kind::Local => Some(Agent::spawn().await?),
            Kind::Kind | Kind::Existing => None,
        };
        Ok(Self { client, run, ground, images: names, agent, made_crd: false })
    }

    /// The stand-in agent, where it is ours to change.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// The way to the cluster for programs, where it is ours alone.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        match &self.ground {
            Ground::Local { control_plane, .. } => Some(control_plane.kubeconfig()),
            Ground::Kind { .. } | Ground::Existing => None,
        }
    }

    /// Whether the node is ours, to be changed as a scenario likes.
    pub fn is_local(&self) -> bool {
        matches!(self.ground, Ground::Local { .. })
    }

    /// Creates a labelled namespace and waits until pods can be created in it.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        let name = format!("{name}-{}", self.run);
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some([(LABEL.to_owned(), self.run.clone())].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let made = namespaces.create(&PostParams::default(), &namespace).await;
        made.with_context(|| format!("creating namespace {name}"))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
        eventually("the default service account", PATIENCE, async || {
            accounts.get("default").await.context("asking for it")
        })
        .await?;
        Ok(name)
    }

    /// Applies objects as they must be in this cluster: its images, and the node's network where it
    /// has no other.
    pub async fn apply(&self, namespace: &str, mut list: Vec<Value>) -> Result<()> {
        for object in &mut list {
            object["metadata"]["labels"][LABEL] = json!(self.run);
            if let Some(spec) = pod_specs(object) {
                self.shape(spec);
            }
        }
        objects::apply(&self.client, namespace, list).await.map(drop)
    }

    /// Runs khook in a namespace of its own, as the chart makes it, with these settings; answers the namespace.
    /// Ready are its pods when this returns.
    pub async fn deploy_khook(&self, settings: &[(&str, &str)], replicas: usize) -> Result<String> {
        let namespace = self.namespace("khook").await?;
        if self.agent.is_none() {
            self.apply(&namespace, objects::parse(include_str!("../manifests/agent.yaml"))?).await?;
            self.available(&namespace, "agent").await?;
        }
        let helm = Helm::new(Tool::Helm3).await?;
        // On one host two replicas cannot have the same ports: there each is a Deployment of its own.
        let (deployments, each) = if self.is_local() { (replicas, 1) } else { (1, replicas) };
        let names: Vec<String> =
            (1..=deployments).map(|number| format!("khook-{}-{number}", self.run)).collect();
        for name in &names {
            let mut values = self.values(settings)?;
            values["replicaCount"] = json!(each);
            // One leads, whatever release it is of.
            values["controller"] = json!({"leaderElection": {"resourceName": LEASE}});
            let khook = helm.template(name, &chart("khook"), &namespace, &values, &["--skip-tests"]).await?;
            self.apply(&namespace, objects::parse(&khook)?).await?;
        }
        for name in &names {
            self.available(&namespace, name).await?;
        }
        Ok(namespace)
    }

    /// The chart's values for khook in this cluster, with these settings.
    pub fn values(&self, settings: &[(&str, &str)]) -> Result<Value> {
        let (repository, tag) = image::KHOOK.split_once(':').context("an image has a tag")?;
        let url = match &self.agent {
            Some(agent) => agent.url(),
            None => format!("http://agent:{AGENT_PORT}"),
        };
        let variable = |(name, value): (&str, &str)| json!({"name": name, "value": value});
        let mut env: Vec<Value> = settings.iter().copied().map(variable).collect();
        let mut values = json!({
            "image": {"registry": "", "repository": repository, "tag": tag},
            "kagent": {"apiUrl": url},
        });
        if let Ground::Local { control_plane, .. } = &self.ground {
            // The pod has no address: it is on the node's network, and that is loopback.
            let port = control_plane.url().rsplit(':').next().unwrap_or_default().to_owned();
            for (name, value) in [
                ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
                ("KUBERNETES_SERVICE_PORT", &port),
                ("BIND_ADDRESS", "127.0.0.1"),
            ] {
                env.push(variable((name, value)));
            }
            values["hostNetwork"] = json!(true);
            values["metrics"] = json!({"port": free_port()?});
            values["healthCheck"] = json!({
                "port": free_port()?,
                "livenessProbe": {"httpGet": {"host": "127.0.0.1"}},
                "readinessProbe": {"httpGet": {"host": "127.0.0.1"}, "periodSeconds": 1},
            });
        }
        values["extraEnv"] = json!(env);
        Ok(values)
    }

    /// The namespace that khook runs in.
    pub fn khook_namespace(&self) -> String {
        format!("khook-{}", self.run)
    }

    /// The messages the agent got so far, in order.
    pub async fn calls(&self) -> Result<Vec<Call>> {
        let Some(agent) = &self.agent else {
            let namespace = self.khook_namespace();
            let path =
                format!("/api/v1/namespaces/{namespace}/services/http:agent:{AGENT_PORT}/proxy/record");
            let request = http::Request::get(path).body(Vec::new()).context("a request")?;
            return self.client.request(request).await.context("asking the agent what it got");
        };
        let call =
            |m: crate::agent::Message| Call { at: m.at, id: m.id, session: m.session, metadata: m.metadata };
        Ok(agent.messages().into_iter().map(call).collect())
    }

    /// What khook's pods have logged.
    pub async fn khook_log(&self, namespace: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut text = String::new();
        for pod in pods.list(&ListParams::default().labels("app.kubernetes.io/name=khook")).await? {
            let name = pod.name_any();
            text.push_str(&match &self.ground {
                Ground::Local { node, .. } => node.logs(namespace, &name, "manager")?,
                Ground::Kind { .. } | Ground::Existing => pods.logs(&name, &LogParams::default()).await?,
            });
        }
        Ok(text)
    }

    /// Begins to delete a namespace.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(name, &DeleteParams::default()).await.context("deleting a namespace")?;
        Ok(())
    }

    /// Removes all of this run, and waits until it is gone.
    pub async fn end(self) -> Result<()> {
        if self.is_local() || matches!(self.ground, Ground::Kind { .. }) {
            // All of it goes with the cluster.
            return Ok(());
        }
        let ours = ListParams::default().labels(&format!("{LABEL}={}", self.run));
        let cluster_wide =
            ["ClusterRole", "ClusterRoleBinding"].map(|kind| ("rbac.authorization.k8s.io/v1", kind));
        for (api_version, kind) in cluster_wide.into_iter().chain([("v1", "Namespace")]) {
            let types = TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() };
            let api = objects::api(&self.client, &types, "").await?;
            for object in api.list(&ours).await? {
                objects::delete(&api, &object.name_any(), &DeleteParams::default()).await?;
            }
        }
        if self.made_crd {
            let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
            crds.delete("hooks.kagent.dev", &DeleteParams::default()).await.context("deleting the CRD")?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        eventually("the namespaces of this run to be gone", PATIENCE, async || {
            let left = namespaces.list(&ours).await?;
            ensure!(left.items.is_empty(), "{} are left", left.items.len());
            Ok(())
        })
        .await
    }

    /// The CRD, without which nothing is: ours, or the one that is there.
    async fn furnish(&mut self) -> Result<()> {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        if crds.get_opt("hooks.kagent.dev").await.context("looking for the CRD")?.is_some() {
            let hooks = Api::<Hook>::all(self.client.clone()).list(&ListParams::default()).await?;
            // khook listens to every Hook of a cluster: it would take these too, and ask a stand-in.
            if let Some(hook) = hooks.items.first() {
                let namespace = hook.namespace().unwrap_or_default();
                bail!("this cluster has Hooks ({namespace}/{}): use one without", hook.name_any());
            }
            say("the cluster has the CRD of Hooks; it is used as it is");
            return Ok(());
        }
        self.made_crd = true;
        objects::apply(&self.client, "", objects::parse(&crd_yaml()?)?).await.context("the CRD")?;
        Ok(())
    }

    async fn available(&self, namespace: &str, name: &str) -> Result<()> {
        let types = TypeMeta { api_version: "apps/v1".to_owned(), kind: "Deployment".to_owned() };
        let api = objects::api(&self.client, &types, namespace).await?;
        let result = eventually(&format!("{name} to be available"), PATIENCE, async || {
            let deployment = api.get(name).await?;
            let status = &deployment.data["status"];
            let wanted = &deployment.data["spec"]["replicas"];
            ensure!(status["availableReplicas"] == *wanted, "{status}");
            Ok(())
        })
        .await;
        match result {
            Err(error) => {
                let log = self.khook_log(namespace).await.unwrap_or_default();
                Err(error.context(format!("khook's log:\n{log}")))
            }
            Ok(()) => Ok(()),
        }
    }

    fn shape(&self, spec: &mut Value) {
        // A scenario may say itself that it has no network of the host.
        if self.is_local() && spec.get("hostNetwork").is_none() {
            spec["hostNetwork"] = json!(true);
        }
        for list in ["initContainers", "containers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let ours = container["image"].as_str().and_then(|image| self.images.get(image)).cloned();
                if let Some(ours) = ours {
                    container["image"] = json!(ours);
                }
            }
        }
    }
}

/// The pod specs in an object.
fn pod_specs(object: &mut Value) -> Option<&mut Value> {
    match object["kind"].as_str() {
        Some("Pod") => object.get_mut("spec"),
        Some("Deployment" | "StatefulSet" | "Job" | "DaemonSet") => object.pointer_mut("/spec/template/spec"),
        _ => None,
    }
}

/// A cluster of kind's. Dropping it deletes it.
struct KindCluster {
    name: String,
    scratch: Scratch,
}

impl KindCluster {
    fn create(name: &str) -> Result<Self> {
        let cluster = Self { name: name.to_owned(), scratch: Scratch::new()? };
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/kind.yaml");
        say("kind creates a cluster");
        cluster.kind(&["create", "cluster", "--config", config, "--wait", "3m"])?;
        let archive = cluster.scratch.path().join("khook.tar");
        Image::khook()?.write(&archive)?;
        cluster.kind(&["load", "image-archive", &archive.display().to_string()])?;
        Ok(cluster)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.scratch.path().join("kubeconfig")
    }

    fn kind(&self, args: &[&str]) -> Result<()> {
        let answer = Command::new("kind")
            .args(args)
            .args(["--name", &self.name])
            // Flags of the command, so that the person's own kubeconfig is not touched.
            .env("KUBECONFIG", self.kubeconfig())
            .output()
            .context("running kind: is it installed?")?;
        let words = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.status.success(), "kind {}: {}", args.join(" "), words.trim());
        Ok(())
    }
}

impl Drop for KindCluster {
    fn drop(&mut self) {
        if let Err(error) = self.kind(&["delete", "cluster"]) {
            say(&format!("{error:#}"));
        }
    }
}

/// Writes khook's image to a file, for a cluster that is there.
pub fn write_image(file: &Path) -> Result<()> {
    Image::khook()?.write(file)
}
