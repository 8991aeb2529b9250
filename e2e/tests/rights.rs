//! The rights that the chart gives khook, on a real control plane: with them everything works, and without any
//! one of them something that is named here does not.

#![allow(missing_docs)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    assets::Tool,
    control_plane::{ControlPlane, Options},
    helm::Helm,
    objects,
    operator::Operator,
    wait::eventually,
    world::{PATIENCE, World},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::time::sleep;

/// How it shows that khook lacks a right.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// The apiserver refuses it this watch.
    Refused(&'static str),
    /// This number is not zero.
    Counts(&'static str, &'static [(&'static str, &'static str)]),
    /// It says so in its log.
    Says(&'static str),
    /// The Hook has a condition for this reason.
    Tells(&'static str),
}

use Sign::{Counts, Refused, Says, Tells};

/// Of each right, what breaks without it.
const RIGHTS: [(&str, &str, Sign); 15] = [
    ("hooks", "list", Refused("hooks")),
    ("hooks", "watch", Refused("hooks")),
    // After a conflict.
    ("hooks", "get", Counts("khook_reconcile_errors_total", &[("reason", "read_back")])),
    ("hooks/status", "patch", Counts("khook_status_writes_total", &[("result", "error")])),
    ("pods", "list", Refused("pods")),
    ("pods", "watch", Refused("pods")),
    // Where an Event is about a pod nobody knows.
    ("pods", "get", Says("a pod cannot be read: going by its Event")),
    ("events", "list", Refused("events")),
    ("events", "watch", Refused("events")),
    ("events", "create", Counts("khook_notices_dropped_total", &[])),
    // Of an Event that happens again.
    ("events", "patch", Counts("khook_notices_dropped_total", &[])),
    ("leases", "create", Says("cannot read or write the lease")),
    ("leases", "get", Says("cannot read or write the lease")),
    ("leases", "update", Says("the lease could not be renewed in time")),
    ("secrets", "get", Tells("SecretForbidden")),
];

impl Sign {
    async fn shows(self, case: &Case) -> Result<()> {
        let operator = &case.operator;
        match self {
            Refused(watch) => {
                let refused = [("watch", watch), ("reason", "refused")];
                let times = operator.metric("khook_watch_restarts_total", &refused).await?;
                ensure!(times > 0.0, "the watch of {watch} was not refused");
            }
            Counts(name, labels) => {
                ensure!(operator.metric(name, labels).await? > 0.0, "{name} {labels:?} is zero");
            }
            Says(words) => ensure!(operator.log().contains(words), "the log is without {words:?}"),
            Tells(reason) => {
                let conditions = case.world.status("direct").await?.conditions;
                ensure!(conditions.iter().any(|condition| condition.reason == reason), "{conditions:?}");
            }
        }
        Ok(())
    }
}

/// khook in a namespace of its own, with the rights of the chart or less.
struct Case {
    world: World,
    operator: Operator,
}

impl Case {
    /// `everywhere`: khook watches all namespaces, with a ClusterRole. `without`: a resource and a verb.
    async fn start(
        helm: &Helm,
        control_plane: &'static ControlPlane,
        everywhere: bool,
        without: Option<(&str, &str)>,
    ) -> Result<Self> {
        let world = World::on(control_plane, "rights").await?;
        let namespace = &world.namespace;
        let granted = granted(helm, namespace, everywhere).await?;
        let granted = granted.into_iter().map(|mut object| {
            if let Some((resource, verb)) = without {
                take_away(&mut object, resource, verb);
            }
            object
        });
        objects::apply(&world.client, namespace, granted.collect()).await.context("the chart's rights")?;
        let account = world.control_plane.service_account_kubeconfig(namespace, namespace).await?;
        let mut setup =
            world.setup()?.env("KUBECONFIG", account.display()).env("DIRECT_AGENT_HOSTS", "127.0.0.1");
        if !everywhere {
            setup = setup.env("WATCH_NAMESPACES", namespace);
        }
        let operator = setup.start().await?;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "triage"}, "stringData": {"token": "abc"}});
        let direct = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "direct"},
            "spec": {"eventConfigurations": [{"eventType": "oom-kill", "prompt": "Look", "agent": {
                "url": world.agent.direct_url("triage"), "auth": {"secretRef": {"name": "triage"}}}}]}});
        for object in [secret, direct] {
            world.control_plane.apply_in(namespace, &object.to_string()).await?;
        }
        world.hook("hook", &["pod-restart"]).await?;
        Ok(Self { world, operator })
    }

    /// Has everything happen that khook must do something about, again and again, until something shows.
    async fn until(&self, what: &str, shows: impl AsyncFn() -> Result<()>) -> Result<()> {
        let trouble = async {
            for round in 0.. {
                // Whoever writes a Hook makes khook's own write come too late, now and then.
                let touched = json!({"metadata": {"annotations": {"round": round.to_string()}}});
                self.world.patch("hook", touched).await?;
                if round % 10 == 0 {
                    self.world.crash(&format!("web-{}", round / 10 % 5)).await?;
                }
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        tokio::select! {
            ended = trouble => ended,
            shown = eventually(what, PATIENCE, &shows) => shown,
        }
    }
}

/// What the chart grants khook in a namespace.
async fn granted(helm: &Helm, namespace: &str, everywhere: bool) -> Result<Vec<Value>> {
    let mut values = json!({
        "fullnameOverride": namespace,
        "controller": {"leaderElection": {"resourceName": namespace}},
        "directAgents": {"hosts": ["127.0.0.1"], "secrets": [{"namespace": namespace, "names": ["triage"]}]},
    });
    if !everywhere {
        values["watchNamespaces"] = json!([namespace]);
    }
    helm.rights(namespace, &values).await
}

fn rules(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    object.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten()
}

fn take_away(object: &mut Value, resource: &str, verb: &str) {
    for rule in rules(object).filter(|rule| rule["resources"] == json!([resource])) {
        if let Some(verbs) = rule["verbs"].as_array_mut() {
            verbs.retain(|other| other != verb);
        }
    }
    // A rule without a verb is none.
    if let Some(rules) = object.get_mut("rules").and_then(Value::as_array_mut) {
        rules.retain(|rule| rule["verbs"] != json!([]));
    }
}

#[tokio::test]
async fn without_any_one_right_of_the_chart_something_breaks() -> Result<()> {
    let helm = Helm::new(Tool::Helm3).await?;
    let mut given = Vec::new();
    for mut object in granted(&helm, "shop", false).await? {
        for rule in rules(&mut object) {
            let (resources, verbs) = (rule["resources"].as_array(), rule["verbs"].as_array());
            for resource in resources.into_iter().flatten() {
                for verb in verbs.into_iter().flatten() {
                    given.push((
                        resource.as_str().unwrap_or_default().to_owned(),
                        verb.as_str().unwrap_or_default().to_owned(),
                    ));
                }
            }
        }
    }
    let mut known: Vec<(String, String)> =
        RIGHTS.iter().map(|(resource, verb, _)| ((*resource).to_owned(), (*verb).to_owned())).collect();
    given.sort();
    known.sort();
    ensure!(given == known, "the chart gives {given:?}, and this test knows {known:?}");

    // Where the server can stream what there is, pods are never listed.
    let options =
        Options { apiserver_args: vec!["--feature-gates=WatchList=false".to_owned()], ..Options::default() };
    let lists: &'static ControlPlane = Box::leak(Box::new(ControlPlane::start(options).await?));
    stream::iter(RIGHTS)
        .map(Ok)
        .try_for_each_concurrent(4, async |(resource, verb, sign)| {
            let case = Case::start(&helm, lists, false, Some((resource, verb))).await?;
            let what = format!("khook without the right to {verb} {resource}: {sign:?}");
            let shown = case.until(&what, async || sign.shows(&case).await).await;
            shown.with_context(|| format!("khook's log:\n{}", case.operator.log_tail(40)))
        })
        .await
}

#[tokio::test]
async fn with_the_rights_of_the_chart_everything_works() -> Result<()> {
    let helm = Helm::new(Tool::Helm3).await?;
    for everywhere in [true, false] {
        // khook for all namespaces hears of everybody's Hooks.
        let control_plane: &'static ControlPlane = match everywhere {
            true => Box::leak(Box::new(ControlPlane::start(Options::default()).await?)),
            false => ControlPlane::shared().await?,
        };
        let case = Case::start(&helm, control_plane, everywhere, None).await?;
        case.operator.wait_ready(PATIENCE).await?;
        case.until("everything is done that needs a right", async || {
            let metric = async |name, label, value| case.operator.metric(name, &[(label, value)]).await;
            ensure!(metric("khook_reconcile_errors_total", "reason", "conflict").await? > 0.0, "no conflict");
            ensure!(metric("khook_status_writes_total", "result", "committed").await? > 0.0, "no write");
            let again = objects_again(&case.world).await?;
            ensure!(again > 0, "no Event has happened again");
            Ok(())
        })
        .await?;
        case.world.wait_answered("hook", "web-0").await?;
        for (resource, verb, sign) in RIGHTS {
            ensure!(sign.shows(&case).await.is_err(), "as if it could not {verb} {resource}");
        }
        let log = case.operator.log();
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("orbidden")).collect();
        ensure!(refused.is_empty(), "{refused:?}");
    }
    Ok(())
}

/// How many Events about the Hook have happened more than once.
async fn objects_again(world: &World) -> Result<usize> {
    use k8s_openapi::api::events::v1::Event;
    let events: kube::Api<Event> = kube::Api::namespaced(world.client.clone(), &world.namespace);
    let of_hook = kube::api::ListParams::default().fields("regarding.kind=Hook,regarding.name=hook");
    Ok(events.list(&of_hook).await?.iter().filter(|event| event.series.is_some()).count())
}
