//! Pods are the truth, on a real apiserver: their status is written as kubelet writes it. What a real
//! kubelet makes of them is for the suite on a node.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use e2e::{
    events::Event,
    stage::Stage,
    wait::throughout,
    world::{PATIENCE, World},
};
use k8s_openapi::api::core::v1::Pod;
use khook::hook::Phase;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Long enough for a call that must not come to come.
const A_WHILE: Duration = Duration::from_secs(3);

fn pods(world: &World) -> Api<Pod> {
    Api::namespaced(world.client.clone(), &world.namespace)
}

/// Creates a pod and has it in this state; answers its UID.
async fn pod(world: &World, name: &str, state: Value) -> Result<String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": "nowhere", "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "app", "image": "none"}]},
    }))?;
    pods(world).create(&PostParams::default(), &pod).await?;
    become_(world, name, state).await
}

async fn become_(world: &World, name: &str, state: Value) -> Result<String> {
    let mut status = json!({"name": "app", "image": "none", "imageID": "", "ready": true, "started": true, "restartCount": 0});
    for (field, value) in state.as_object().unwrap() {
        status[field] = value.clone();
    }
    let status = json!({"status": {"phase": "Running", "containerStatuses": [status]}});
    let pod = pods(world).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(pod.uid().unwrap())
}

fn running() -> Value {
    json!({"state": {"running": {"startedAt": Utc::now()}}})
}

fn restarted(reason: &str) -> Value {
    let ended = json!({"reason": reason, "exitCode": 137, "finishedAt": Utc::now(), "startedAt": Utc::now()});
    json!({"restartCount": 1, "lastState": {"terminated": ended}, "state": {"running": {"startedAt": Utc::now()}}})
}

#[tokio::test]
async fn a_first_restart_counts_without_any_event_and_an_oom_kill_as_what_it_is() -> Result<()> {
    let world = Stage::shared().await?.world("no-events").await?;
    world.hook("shop", &["pod-restart", "oom-kill"]).await?;
    world.wait_until("shop", "it listens", |status| status.last_updated).await?;
    pod(&world, "well", running()).await?;
    pod(&world, "crash", running()).await?;
    become_(&world, "crash", restarted("Error")).await?;
    pod(&world, "big", restarted("OOMKilled")).await?;
    let messages = world.wait_for_messages(2).await?;
    let mut kinds: Vec<String> = messages
        .iter()
        .map(|message| format!("{} {}", message.metadata["resourceName"], message.metadata["eventType"]))
        .collect();
    kinds.sort();
    assert_eq!(kinds, [r#""big" "oom-kill""#, r#""crash" "pod-restart""#]);
    assert!(messages.iter().any(|message| message.text.contains("more memory than its limit")));
    world.ensure_each_once(2)
}

#[tokio::test]
async fn an_event_about_a_pod_that_is_well_opens_nothing() -> Result<()> {
    let world = Stage::shared().await?.world("words").await?;
    world.hook("shop", &["pod-restart", "probe-failed", "pod-pending"]).await?;
    world.wait_until("shop", "it listens", |status| status.last_updated).await?;
    let uid = pod(&world, "web", running()).await?;
    for (reason, note) in [
        ("BackOff", "Back-off restarting failed container app"),
        ("Unhealthy", "Readiness probe failed: HTTP 500"),
        ("FailedMount", "timed out"),
    ] {
        Event::kubelet(reason, note).pod(&world.namespace, "web").uid(&uid).post(&world.client).await?;
    }
    throughout("no incident", A_WHILE, async || {
        anyhow::ensure!(world.status("shop").await?.active_events.is_empty());
        Ok(())
    })
    .await?;
    world.ensure_each_once(0)
}

#[tokio::test]
async fn a_new_hook_hears_of_the_trouble_that_is_there() -> Result<()> {
    let world = Stage::shared().await?.world("new-hook").await?;
    pod(&world, "big", restarted("OOMKilled")).await?;
    // Older than anybody's news.
    let long_ago = Utc::now() - Duration::from_secs(3600);
    let old = json!({"restartCount": 1, "state": {"running": {"startedAt": long_ago}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": long_ago}}});
    pod(&world, "old", old).await?;
    world.hook("shop", &["oom-kill"]).await?;
    world.wait_answered("shop", "big").await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn what_happened_while_khook_was_away_is_found_and_what_is_over_resolves() -> Result<()> {
    let world = World::alone("away").await?;
    let setup = |world: &World| -> Result<_> {
        Ok(world.setup()?.env("POD_NAME", "khook-0").env("RESOLVE_TIMEOUT", "1h").env("RUNNING_HOLD", "3s"))
    };
    let operator = world.start(setup(&world)?).await?;
    world.hook("shop", &["pod-restart", "oom-kill"]).await?;
    let looping = || {
        let mut state = restarted("Error");
        state["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        state
    };
    for name in ["mended", "deleted", "lasting"] {
        pod(&world, name, looping()).await?;
        world.wait_answered("shop", name).await?;
    }
    let quiet = pod(&world, "quiet", running()).await?;
    operator.kill()?;
    become_(&world, "mended", running()).await?;
    pods(&world).delete("deleted", &DeleteParams::default()).await?;
    assert_eq!(become_(&world, "quiet", restarted("OOMKilled")).await?, quiet);
    operator.restart()?;
    operator.wait_ready(PATIENCE).await?;

    world.wait_answered("shop", "quiet").await?;
    for (name, reason) in [("mended", "Recovered"), ("deleted", "PodGone")] {
        let entry = world.wait_for("shop", name, Phase::Resolved).await?;
        assert_eq!(entry.reason.map(|reason| reason.as_str()), Some(reason), "{name}");
    }
    world.wait_for("shop", "lasting", Phase::Notified).await?;
    world.ensure_each_once(4)
}
