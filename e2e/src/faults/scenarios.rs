//! A scenario is what a user, the cluster and the agents do in a run, and what khook must make of it. It says
//! nothing of faults: those come on top, and must change nothing of what is expected.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::Pod;
use khook::{
    hook::{ActiveEvent, EventType, Hook, Phase},
    incident::outcome::Protocol,
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{record::Asked, run::Run};
use crate::agent::{Behaviour, End, Fault};

/// One scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is about, in a line for the documentation.
    pub about: &'static str,
    /// Settings of all replicas.
    pub env: Env,
    /// The replicas, each with settings of its own.
    pub replicas: &'static [Env],
    /// Whether nobody can be asked which messages an agent has had.
    pub blind: bool,
    /// What happens.
    pub play: Play,
}

const ONE: &[Env] = &[&[]];
const TWO: &[Env] = &[&[], &[]];

/// Every scenario.
pub static SCENARIOS: &[Scenario] = &[
    scenario("restart", "one container restarts", &[], ONE, |run| Box::pin(restart(run))),
    scenario(
        "resolved",
        "one container restarts, and the agent is told when that is over",
        &[],
        ONE,
        |run| Box::pin(resolved(run)),
    ),
    scenario("repeat", "it restarts again after its window", &[("RESOLVE_TIMEOUT", "6s")], ONE, |run| {
        Box::pin(repeat(run))
    }),
    scenario(
        "again",
        "it restarts again within its window, and once more after it was resolved",
        &[("REPEAT_INTERVAL", "60s")],
        ONE,
        |run| Box::pin(again(run)),
    ),
    scenario("storm", "eight pods at once, two call slots", &[("CALL_SLOTS_PER_AGENT", "2")], ONE, |run| {
        Box::pin(storm(run))
    }),
    scenario("fan-out", "one kind of trouble, two agents, one of which fails at its task", &[], ONE, |run| {
        Box::pin(fan_out(run))
    }),
    scenario("oom", "a pod is OOM-killed, without any Event, and runs again", &[], ONE, |run| {
        Box::pin(oom(run))
    }),
    scenario(
        "pending",
        "a pod cannot be scheduled for a while, another gets its node in time",
        &[],
        ONE,
        |run| Box::pin(pending(run)),
    ),
    scenario("gone", "a pod that cannot start is deleted before its hold is over", &[], ONE, |run| {
        Box::pin(gone(run))
    }),
    scenario(
        "away",
        "khook is down while a pod is OOM-killed and another restarts; a third was killed long ago",
        &[],
        ONE,
        |run| Box::pin(away(run)),
    ),
    scenario(
        "late",
        "khook is down for longer than trouble is news; then something happens",
        &[("STALE_AFTER", "8s")],
        ONE,
        |run| Box::pin(late(run)),
    ),
    scenario(
        "full",
        "four incidents, room for two",
        &[
            ("MAX_ENTRIES", "2"),
            ("STALE_AFTER", "8s"),
            ("KEEP_RESOLVED", "0"),
            ("RESOLVE_TIMEOUT", "500ms"),
            ("REPEAT_INTERVAL", "500ms"),
        ],
        ONE,
        |run| Box::pin(full(run)),
    ),
    scenario(
        "slow",
        "an agent that takes its time to answer each call, and a task that never ends",
        &[("CALL_SLOTS_PER_AGENT", "2")],
        ONE,
        |run| Box::pin(slow(run)),
    ),
    scenario(
        "flaky",
        "an agent that is away for three seconds, five incidents",
        &[("CALL_SLOTS_PER_AGENT", "2")],
        ONE,
        |run| Box::pin(flaky(run)),
    ),
    scenario("two", "two replicas and a Lease", &[], TWO, |run| Box::pin(several(run))),
    scenario(
        "both",
        "two replicas that both work, without a Lease",
        &[("LEADER_ELECTION", "false")],
        TWO,
        |run| Box::pin(several(run)),
    ),
    scenario(
        "skewed",
        "two replicas that both work, whose clocks are five minutes apart",
        &[("LEADER_ELECTION", "false")],
        &[&[], &[(khook::sabotage::CLOCK, "300")]],
        |run| Box::pin(several(run)),
    ),
    scenario("legacy", "a status that the Go khook left", &[], ONE, |run| Box::pin(legacy(run))),
    Scenario {
        blind: true,
        ..scenario(
            "direct-0.3",
            "an agent beside kagent, which cannot be asked what it was sent; two pods",
            DIRECT,
            ONE,
            |run| Box::pin(direct(run, &[Protocol::V03], None)),
        )
    },
    scenario(
        "direct-1.0",
        "an agent beside kagent, which lists its tasks and wants a token from a Secret; two pods",
        DIRECT,
        ONE,
        |run| Box::pin(direct(run, &[Protocol::V10], Some("triage"))),
    ),
    scenario(
        "kagent-1.0",
        "a kagent that speaks A2A 1.0 only and has no sessions; two pods",
        &[],
        ONE,
        |run| Box::pin(kagent_to_come(run)),
    ),
];

/// All that listens in a run is at this address.
const DIRECT: Env = &[("DIRECT_AGENT_HOSTS", "127.0.0.1")];

type Env = &'static [(&'static str, &'static str)];
type Play = fn(Arc<Run>) -> LocalBoxFuture<'static, Result<()>>;

const fn scenario(
    name: &'static str,
    about: &'static str,
    env: Env,
    replicas: &'static [Env],
    play: Play,
) -> Scenario {
    Scenario { name, about, env, replicas, blind: false, play }
}

/// The scenario of this name.
pub fn named(name: &str) -> Result<&'static Scenario> {
    let names = || SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.with_context(|| format!("there is no scenario \"{name}\"; there are {}", names()))
}

async fn restart(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    run.crash("web-0").await
}

async fn resolved(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.insist(async || run.world.hook_with("shop", &["pod-restart"], "notifyResolved: true").await).await?;
    run.listens().await?;
    run.crash("web-0").await
}

async fn repeat(run: Arc<Run>) -> Result<()> {
    run.expect_of(EventType::PodRestart, "web-0", "kagent/k8s-agent", Asked::Surely, 2);
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    let client = &run.world.client;
    let event = run.insist(async || run.world.crash_event("web-0").post(client).await).await?;
    let asked = |hooks: &[Hook]| entries(hooks).any(|entry| entry.last_notified_at.is_some());
    run.sees("the agent to be asked", asked).await?;
    // Past the window, and well before it resolves.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    run.insist(async || event.clone().repeat(client).await).await
}

async fn again(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    let client = &run.world.client;
    let event = run.insist(async || run.world.crash_event("web-0").post(client).await).await?;
    let asked = |hooks: &[Hook]| entries(hooks).any(|entry| entry.last_notified_at.is_some());
    run.sees("the agent to be asked", asked).await?;
    run.insist(async || event.clone().repeat_as(client, 2, Utc::now(), None).await).await?;
    run.sees("it to be over", |hooks| entries(hooks).any(|entry| entry.status == Phase::Resolved)).await?;
    // It comes back, within its window: reopened, and asked again only if it lasts.
    let at = Utc::now();
    run.insist(async || event.clone().repeat_as(client, 3, at, None).await).await?;
    // kubelet's stamps have whole seconds.
    run.heard(move |hooks| entries(hooks).any(|entry| entry.last_seen.timestamp() >= at.timestamp())).await;
    Ok(())
}

/// Every incident of these Hooks.
fn entries(hooks: &[Hook]) -> impl Iterator<Item = &ActiveEvent> {
    hooks.iter().flat_map(|hook| &hook.status).flat_map(|status| &status.active_events)
}

async fn storm(run: Arc<Run>) -> Result<()> {
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    for index in 0..8 {
        let pod = format!("web-{index}");
        run.expect(EventType::PodRestart, &pod, Asked::Surely);
        run.crash(&pod).await?;
    }
    Ok(())
}

async fn fan_out(run: Arc<Run>) -> Result<()> {
    let yaml = "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {name: shop}\nspec:\n  eventConfigurations:\n  \
         - {eventType: pod-restart, agentId: kagent/k8s-agent, prompt: 'Look'}\n  \
         - {eventType: pod-restart, agentId: kagent/network-agent, prompt: 'Look'}\n";
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.expect_of(EventType::PodRestart, "web-0", "kagent/network-agent", Asked::Surely, 1);
    let world = &run.world;
    let fails = Behaviour::default().ends(End::Failed("the model answered 500".into()));
    world.agent.set_for("kagent/network-agent", fails);
    run.insist(async || world.control_plane.apply_in(&world.namespace, yaml).await).await?;
    run.listens().await?;
    run.crash("web-0").await
}

async fn oom(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::OomKill, "big", Asked::Surely);
    run.expect(EventType::PodRestart, "big", Asked::Never);
    run.hook("shop", &["pod-restart", "oom-kill"]).await?;
    run.listens().await?;
    create(&run, "big", running(0)).await?;
    become_(&run, "big", killed(TimeDelta::zero())).await
}

async fn pending(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodPending, "stuck", Asked::Surely);
    run.hook("shop", &["pod-pending"]).await?;
    run.listens().await?;
    // Its hold is 1.2 s here.
    create(&run, "stuck", unschedulable()).await?;
    let asked = |hooks: &[Hook]| entries(hooks).any(|entry| entry.last_notified_at.is_some());
    run.sees("the agent to be asked", asked).await?;
    become_(&run, "stuck", running(0)).await
}

async fn gone(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodPending, "stuck", Asked::Never);
    run.insist(async || run.world.hook_with("shop", &["pod-pending"], "for: 20s").await).await?;
    run.listens().await?;
    // Long enough ago that it has an entry soon.
    create(&run, "stuck", unschedulable()).await?;
    // If somebody writes over it at once it does not show, and is there all the same.
    run.heard(|hooks| entries(hooks).next().is_some()).await;
    run.insist(async || match run.pods().delete("stuck", &DeleteParams::default().grace_period(0)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).context("deleting a pod"),
    })
    .await
}

async fn away(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::OomKill, "big", Asked::Surely);
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.expect(EventType::OomKill, "old", Asked::Never);
    run.hook("shop", &["pod-restart", "oom-kill"]).await?;
    run.listens().await?;
    create(&run, "big", running(0)).await?;
    run.stop(0).await.ok();
    become_(&run, "big", killed(TimeDelta::zero())).await?;
    run.crash("web-0").await?;
    create(&run, "old", killed(TimeDelta::minutes(16))).await?;
    run.start(0).await
}

async fn late(run: Arc<Run>) -> Result<()> {
    run.expect(EventType::PodRestart, "old", Asked::Never);
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    run.stop(0).await.ok();
    run.crash("old").await?;
    // kubelet's stamps have whole seconds.
    tokio::time::sleep(Duration::from_millis(9500)).await;
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    run.crash("web-0").await?;
    run.start(0).await
}

async fn full(run: Arc<Run>) -> Result<()> {
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    for index in 0..4 {
        let pod = format!("web-{index}");
        run.expect(EventType::PodRestart, &pod, Asked::Surely);
        run.crash(&pod).await?;
    }
    Ok(())
}

async fn slow(run: Arc<Run>) -> Result<()> {
    let agent = &run.world.agent;
    agent.set(Behaviour::default().delay(Duration::from_millis(500)).blocks());
    agent.set_for("kagent/endless", Behaviour::default().ends(End::Never));
    run.hook("shop", &["pod-restart"]).await?;
    run.insist(async || run.world.hook_asking("endless", "kagent/endless", &["oom-kill"], "").await).await?;
    run.listens().await?;
    for index in 0..3 {
        let pod = format!("web-{index}");
        run.expect(EventType::PodRestart, &pod, Asked::Surely);
        run.crash(&pod).await?;
    }
    run.expect_of(EventType::OomKill, "big", "kagent/endless", Asked::Surely, 1);
    create(&run, "big", killed(TimeDelta::zero())).await
}

async fn flaky(run: Arc<Run>) -> Result<()> {
    let agent = run.world.agent.clone();
    agent.set(Behaviour::default().on_session(Fault::status(503)));
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    for index in 0..5 {
        let pod = format!("web-{index}");
        run.expect(EventType::PodRestart, &pod, Asked::Surely);
        run.crash(&pod).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    agent.set(Behaviour::default());
    Ok(())
}

async fn several(run: Arc<Run>) -> Result<()> {
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    for index in 0..4 {
        let pod = format!("web-{index}");
        run.expect(EventType::PodRestart, &pod, Asked::Surely);
        run.crash(&pod).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(())
}

async fn legacy(run: Arc<Run>) -> Result<()> {
    // It was asked by the other program, and is not asked again; the new one is.
    run.expect(EventType::PodRestart, "old-0", Asked::Never);
    run.expect(EventType::PodRestart, "web-0", Asked::Surely);
    // Suspended until it has the status of the Go khook, which nobody must see half made.
    let world = &run.world;
    let spec = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
        "spec": {"suspend": true, "eventConfigurations": [
            {"eventType": "pod-restart", "agentId": "kagent/k8s-agent", "prompt": "Look"}]}});
    run.insist(async || world.control_plane.apply_in(&world.namespace, &spec.to_string()).await).await?;
    run.listens().await?;
    let seen = Utc::now();
    let status = json!({"status": {"lastUpdated": seen, "activeEvents": [{
        "eventType": "pod-restart", "resourceName": "old-0", "status": "firing",
        "firstSeen": seen, "lastSeen": seen}]}});
    let params = PatchParams::default();
    let left = Patch::Merge(status);
    run.insist(async || Ok(world.hooks().patch_status("shop", &params, &left).await?)).await?;
    run.insist(async || world.patch("shop", json!({"spec": {"suspend": null}})).await).await?;
    run.sees("it goes on", |hooks| {
        hooks.iter().all(|hook| {
            hook.spec.suspend.is_none()
                && hook.status.as_ref().and_then(|status| status.observed_generation)
                    == hook.metadata.generation
        })
    })
    .await?;
    run.crash("web-0").await
}

async fn direct(run: Arc<Run>, speaks: &'static [Protocol], secret: Option<&str>) -> Result<()> {
    let url = run.direct_url("triage");
    let world = &run.world;
    let endpoint = format!("{url}/a2a");
    world.agent.set(Behaviour::default().speaks(speaks).lists_tasks().card_names(&endpoint));
    let mut agent = json!({"url": url});
    if let Some(name) = secret {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {"token": "of-triage"}});
        run.insist(async || world.control_plane.apply_in(&world.namespace, &secret.to_string()).await)
            .await?;
        agent["auth"] = json!({"secretRef": {"name": name}});
    }
    let hook = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
        "spec": {"eventConfigurations": [{"eventType": "pod-restart", "agent": agent, "prompt": "Look"}]}});
    run.insist(async || world.control_plane.apply_in(&world.namespace, &hook.to_string()).await).await?;
    run.listens().await?;
    for pod in ["web-0", "web-1"] {
        run.expect_of(EventType::PodRestart, pod, &url, Asked::Surely, 1);
        run.crash(pod).await?;
    }
    Ok(())
}

async fn kagent_to_come(run: Arc<Run>) -> Result<()> {
    let kagent = Behaviour::default().speaks(&[Protocol::V10]).lists_tasks().without_sessions();
    run.world.agent.set(kagent);
    run.hook("shop", &["pod-restart"]).await?;
    run.listens().await?;
    for pod in ["web-0", "web-1"] {
        run.expect(EventType::PodRestart, pod, Asked::Surely);
        run.crash(pod).await?;
    }
    Ok(())
}

// ---- pods, as kubelet writes them

async fn create(run: &Run, name: &str, status: Value) -> Result<()> {
    let scheduled = status.get("containerStatuses").is_some();
    let mut spec =
        json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "app", "image": "none"}]});
    if scheduled {
        spec["nodeName"] = json!("nowhere");
    }
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
    run.insist(async || match run.pods().create(&PostParams::default(), &pod).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop).context("creating a pod"),
    })
    .await?;
    become_(run, name, status).await
}

async fn become_(run: &Run, name: &str, status: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": status}));
    let patched = async || Ok(run.pods().patch_status(name, &PatchParams::default(), &patch).await?);
    run.insist(patched).await.map(drop).context("a pod's status")
}

fn container(state: Value) -> Value {
    let mut status = json!({"name": "app", "image": "none", "imageID": "", "ready": true, "started": true,
        "containerID": "containerd://first", "restartCount": 0});
    for (field, value) in state.as_object().into_iter().flatten() {
        status[field] = value.clone();
    }
    let now = Utc::now();
    json!({"phase": "Running", "containerStatuses": [status], "conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
        {"type": "Ready", "status": "True", "lastTransitionTime": now}]})
}

fn running(restarts: u32) -> Value {
    container(json!({"restartCount": restarts, "state": {"running": {"startedAt": Utc::now()}}}))
}

fn killed(ago: TimeDelta) -> Value {
    let at = Utc::now() - ago;
    let ended = json!({"reason": "OOMKilled", "exitCode": 137, "finishedAt": at, "startedAt": at,
        "containerID": "containerd://first"});
    container(json!({"restartCount": 1, "containerID": "containerd://second",
        "lastState": {"terminated": ended}, "state": {"running": {"startedAt": at}}}))
}

fn unschedulable() -> Value {
    json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes",
        "lastTransitionTime": Utc::now() - TimeDelta::seconds(6)}]})
}
