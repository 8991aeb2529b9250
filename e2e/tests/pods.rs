//! Pods are the truth, on a real apiserver: their status is written as kubelet writes it. What a real
//! kubelet makes of them is for the suite on a node.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use e2e::{
    events::Event,
    pods::{become_, pod, pods, restarted, running},
    stage::Stage,
    wait::throughout,
    world::{PATIENCE, World},
};
use khook::hook::Phase;
use kube::api::DeleteParams;
use serde_json::json;

/// Long enough for a call that must not come to come.
const A_WHILE: Duration = Duration::from_secs(3);

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
