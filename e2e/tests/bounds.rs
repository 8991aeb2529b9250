//! Bounds and memory: what needs a khook with settings of its own, or one that is started anew. Every khook
//! works for all namespaces of its control plane, so these scenarios take turns.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use e2e::{
    operator::Operator,
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::hook::Phase;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

/// A world and the turn to use it. Who goes leaves no Hook behind.
struct Turn {
    world: World,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    async fn take(name: &str) -> Result<Self> {
        static TURNS: OnceLock<Mutex<()>> = OnceLock::new();
        let _turn = TURNS.get_or_init(Mutex::default).lock().await;
        let world = World::new(name).await?;
        let all: kube::Api<khook::hook::Hook> = kube::Api::all(world.client.clone());
        for hook in all.list(&Default::default()).await? {
            let namespace = hook.metadata.namespace.unwrap_or_default();
            let api: kube::Api<khook::hook::Hook> = kube::Api::namespaced(world.client.clone(), &namespace);
            api.delete(&hook.metadata.name.unwrap_or_default(), &DeleteParams::default()).await?;
        }
        Ok(Self { world, _turn })
    }
}

async fn metric(
    operator: &Operator,
    what: &str,
    name: &str,
    labels: &[(&str, &str)],
    at_least: f64,
) -> Result<()> {
    eventually(what, PATIENCE, async || {
        let value = operator.metric(name, labels).await?;
        ensure!(value >= at_least, "{name} is {value}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_does_not_fit_is_counted_shown_and_called_once_when_a_place_frees() -> Result<()> {
    let Turn { world, _turn } = Turn::take("overflow").await?;
    let setup = world.setup()?.env("MAX_ENTRIES", 3).env("STALE_AFTER", "2s").env("RETENTION", "1s");
    let setup = setup.env("REPEAT_INTERVAL", "1s").env("RESOLVE_TIMEOUT", "1s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    let pods: BTreeSet<String> = (0..7).map(|i| format!("web-{i}")).collect();
    for pod in &pods {
        world.crash(pod).await?;
    }
    let told = world
        .wait_until("shop", "the overflow is told", |status| {
            let told = status.conditions.iter().find(|condition| condition.type_ == "Overflow")?;
            (status.overflow == Some(4))
                .then(|| (told.clone(), status.active_events.len(), status.message.clone()))
        })
        .await?;
    assert_eq!((told.0.status.as_str(), told.0.reason.as_str()), ("True", "ListFull"));
    assert!(told.0.message.starts_with("4 incidents do not fit"), "{}", told.0.message);
    assert_eq!(told.1, 3);
    assert!(told.2.is_some_and(|message| message.contains("(4 more held back)")));
    assert_eq!(operator.metric("khook_overflow", &[]).await?, 4.0);

    // Each of them is called, though it was fresh only when it happened.
    let called = eventually("all are called", PATIENCE, async || {
        let messages = world.messages();
        ensure!(messages.len() >= pods.len(), "{} are", messages.len());
        ensure!(world.status("shop").await?.active_events.len() <= 3, "more than fit");
        Ok(messages)
    })
    .await?;
    let called: BTreeSet<String> = called
        .iter()
        .filter_map(|message| message.metadata["resourceName"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(called, pods);
    world
        .wait_until("shop", "nothing is held back", |status| {
            let told = status.conditions.iter().any(|condition| condition.type_ == "Overflow");
            (!told && status.overflow.is_none()).then_some(())
        })
        .await?;
    metric(&operator, "no overflow", "khook_incident_transitions_total", &[("to", "resolved")], 7.0).await?;
    assert_eq!(operator.metric("khook_overflow", &[]).await?, 0.0);
    world.ensure_each_once(pods.len())
}

#[tokio::test]
async fn what_is_too_old_raises_nothing_and_is_counted() -> Result<()> {
    let Turn { world, _turn } = Turn::take("stale").await?;
    world.hook("shop", &["pod-restart"]).await?;
    // By the newest of its stamps: one that says it is old but was written now is not.
    let long_ago = Utc::now() - Duration::from_secs(3600);
    let posted = world.crash_event("old-0").at(long_ago).post(&world.client).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let operator = world.start(world.setup()?.env("STALE_AFTER", "2s")).await?;
    metric(&operator, "it is counted", "khook_suppressed_total", &[("reason", "stale")], 1.0).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    assert_eq!(world.status("shop").await?.active_events.len(), 1, "nothing of {}", posted.name);
    world.ensure_each_once(1)
}

#[tokio::test]
async fn what_went_stale_while_the_hook_was_suspended_is_called_no_more() -> Result<()> {
    let Turn { world, _turn } = Turn::take("suspended").await?;
    let _operator = world.start(world.setup()?.env("STALE_AFTER", "2s")).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.patch("shop", json!({"spec": {"suspend": true}})).await?;
    world
        .wait_until("shop", "it is suspended", |status| {
            status.conditions.iter().any(|condition| condition.reason == "Suspended").then_some(())
        })
        .await?;
    world.crash("web-0").await?;
    let resolved = world.wait_for("shop", "web-0", Phase::Resolved).await?;
    assert_eq!(resolved.reason.map(|reason| reason.as_str()), Some("RecoveredBeforeCall"));
    world.patch("shop", json!({"spec": {"suspend": false}})).await?;
    world
        .wait_until("shop", "it is resumed", |status| {
            status.conditions.iter().any(|condition| condition.reason == "Listening").then_some(())
        })
        .await?;
    throughout("silence", Duration::from_secs(2), async || world.ensure_each_once(0)).await?;
    // Who was never asked is not told of the end.
    assert_eq!(world.notices("shop").await?, Default::default());
    Ok(())
}

#[tokio::test]
async fn a_restart_replays_every_event_without_effect_and_shows_the_same_numbers() -> Result<()> {
    let Turn { world, _turn } = Turn::take("replay").await?;
    let setup = world.setup()?.env("RESOLVE_TIMEOUT", "1h").env("REPEAT_INTERVAL", "1s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    let mut events = Vec::new();
    for pod in ["web-0", "web-1"] {
        events.push(world.crash_event(pod).count(3).post(&world.client).await?);
        world.wait_answered("shop", pod).await?;
    }
    let status = world.status("shop").await?;
    let notices = eventually("the Events of both", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        ensure!(notices.get("AgentAnswered").is_some_and(|answered| answered.len() == 2), "{notices:?}");
        Ok(notices)
    })
    .await?;
    let active = [("event_type", "pod-restart"), ("phase", "notified")];
    assert_eq!(operator.metric("khook_active_events", &active).await?, 2.0);

    for round in 1..=2 {
        // As if it were relisted: all that a new process sees first is what was there before.
        operator.restart()?;
        operator.wait_ready(PATIENCE).await?;
        metric(&operator, "the replay", "khook_suppressed_total", &[("reason", "duplicate")], 2.0).await?;
        metric(&operator, "the gauge", "khook_active_events", &active, 2.0).await?;
        // The window of both is over, and it is still the same trouble.
        throughout("silence", Duration::from_secs(2), async || world.ensure_each_once(2)).await?;
        assert_eq!(world.status("shop").await?, status, "restart {round}");
        assert_eq!(world.notices("shop").await?, notices, "restart {round}");
    }
    // New trouble is not taken for a replay.
    events[1].repeat(&world.client).await?;
    world.wait_for_messages(3).await?;
    world.ensure_each_once(3)
}

#[tokio::test]
async fn the_metrics_forget_a_hook_that_is_gone() -> Result<()> {
    let Turn { world, _turn } = Turn::take("forget").await?;
    let operator = world.start(world.setup()?.env("RESOLVE_TIMEOUT", "1h").env("MAX_ENTRIES", 1)).await?;
    for hook in ["shop", "bank"] {
        world.hook(hook, &["pod-restart"]).await?;
    }
    world.crash("web-0").await?;
    for hook in ["shop", "bank"] {
        world.wait_answered(hook, "web-0").await?;
    }
    world.crash("web-1").await?;
    let active = async || operator.metric("khook_active_events", &[("phase", "notified")]).await;
    eventually("both are counted", PATIENCE, async || {
        let (active, overflow) = (active().await?, operator.metric("khook_overflow", &[]).await?);
        ensure!((active, overflow) == (2.0, 2.0), "{active} active, {overflow} too many");
        Ok(())
    })
    .await?;
    world.hooks().delete("shop", &DeleteParams::default()).await?;
    eventually("one is forgotten", PATIENCE, async || {
        let (active, overflow) = (active().await?, operator.metric("khook_overflow", &[]).await?);
        ensure!((active, overflow) == (1.0, 1.0), "{active} active, {overflow} too many");
        Ok(())
    })
    .await?;
    // And one that was deleted while nobody watched.
    operator.kill().context("killing khook")?;
    world.hooks().delete("bank", &DeleteParams::default()).await?;
    operator.restart()?;
    operator.wait_ready(PATIENCE).await?;
    assert_eq!(active().await?, 0.0);
    world.ensure_each_once(2)
}
