//! The apiserver closes watches, restarts, and falls silent: what happens later, and meanwhile, is still heard of.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::Behaviour,
    control_plane::Options,
    operator::{Operator, Setup},
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::{hook::Phase, incident::outcome::EndState};

/// khook that asks for short watches and tells of each that it opens.
fn short_watches(world: &World, span: &str) -> Result<Setup> {
    let setup =
        world.setup()?.env("WATCH_TIMEOUT", span).env("RESOLVE_TIMEOUT", "10m").env("REPEAT_INTERVAL", "10m");
    Ok(setup.env("LOG_LEVEL", "debug,khook::client=trace"))
}

/// Watches of Events opened so far.
fn opened(operator: &Operator) -> usize {
    let watch = |line: &&str| line.contains("/events?") && line.contains("watch=true");
    operator.log().lines().filter(watch).count()
}

/// Trouble with a new pod every so often, while watches are closed and opened; each is called about, once.
async fn every_trouble_is_heard_of(
    world: &World,
    operator: &Operator,
    pause: Duration,
    until: impl Fn(usize) -> bool,
) -> Result<()> {
    world.hook("shop", &["pod-restart"]).await?;
    let mut pods = 0;
    while !until(opened(operator)) {
        world.crash(&format!("web-{pods}")).await?;
        pods += 1;
        throughout("health", pause, async || operator.healthy().await).await?;
    }
    world.agent.wait_for_messages(pods, PATIENCE).await?;
    world
        .wait_until("shop", "all are answered", |status| {
            let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some());
            (answered.count() == pods).then_some(())
        })
        .await?;
    // A watch that ends as it should is no restart.
    let restarts = operator.metric("khook_watch_restarts_total", &[]).await?;
    ensure!(restarts == 0.0, "{restarts} restarts:\n{}", operator.log_tail(20));
    world.ensure_each_once(pods)
}

#[tokio::test]
async fn watches_that_are_closed_again_and_again_lose_nothing_and_repeat_nothing() -> Result<()> {
    let world = World::alone("closing").await?;
    let operator = world.start(short_watches(&world, "1s")?).await?;
    every_trouble_is_heard_of(&world, &operator, Duration::from_millis(350), |opened| opened > 8).await
}

/// The same as a cluster does it, for as long as it takes.
#[tokio::test]
#[ignore = "takes over two minutes: just soak"]
async fn watches_closed_every_20_to_40_seconds_for_two_minutes_lose_nothing_and_repeat_nothing() -> Result<()>
{
    let apiserver_args = vec!["--min-request-timeout=20".to_owned()];
    let world = World::alone_with("soak", Options { apiserver_args, ..Options::default() }).await?;
    let operator = world.start(short_watches(&world, "30s")?).await?;
    let start = std::time::Instant::now();
    every_trouble_is_heard_of(&world, &operator, Duration::from_secs(3), |opened| {
        start.elapsed() > Duration::from_secs(125) && opened > 3
    })
    .await
}

#[tokio::test]
async fn after_an_apiserver_restart_trouble_is_still_called_about_once() -> Result<()> {
    let world = World::alone("restart").await?;
    let operator = world.start(short_watches(&world, "30s")?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    for round in 1..=2 {
        world.control_plane.restart_apiserver().await?;
        // Right after it is back: khook may not have its watches yet.
        world.crash(&format!("web-{round}")).await?;
        world.wait_answered("shop", &format!("web-{round}")).await?;
    }
    let restarts = operator.metric("khook_watch_restarts_total", &[("watch", "events")]).await?;
    ensure!(restarts >= 2.0, "{restarts} restarts");
    ensure!(operator.is_running(), "its last words:\n{}", operator.log_tail(20));
    world.ensure_each_once(3)
}

#[tokio::test]
async fn an_apiserver_that_falls_silent_is_noticed_and_heard_again() -> Result<()> {
    let world = World::alone("silence").await?;
    let operator = world.start(short_watches(&world, "2s")?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let restarts = async || operator.metric("khook_watch_restarts_total", &[("watch", "events")]).await;
    let before = restarts().await?;
    world.control_plane.pause_apiserver()?;
    eventually("the silence to be noticed", PATIENCE, async || {
        // What khook cannot help does not make it unwell.
        operator.healthy().await?;
        ensure!(restarts().await? > before, "no watch began again");
        Ok(())
    })
    .await?;
    world.control_plane.resume_apiserver()?;
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    world.ensure_each_once(2)
}

#[tokio::test]
async fn an_outcome_that_cannot_be_written_waits_for_the_apiserver() -> Result<()> {
    let world = World::alone("outcome").await?;
    world.agent.set(Behaviour::default().held().blocks());
    let operator = world.operator().await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.agent.wait_for_messages(1, PATIENCE).await?;
    world.control_plane.stop_apiserver()?;
    world.agent.release();
    let failures = async || operator.metric("khook_status_writes_total", &[("result", "error")]).await;
    eventually("a write to fail", PATIENCE, async || {
        ensure!(failures().await? >= 1.0, "none has");
        Ok(())
    })
    .await?;
    // An apiserver that is away is not besieged.
    let before = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
    throughout("patience", Duration::from_secs(2), async || operator.healthy().await).await?;
    let reconciles = operator.metric("khook_reconcile_duration_seconds_count", &[]).await? - before;
    ensure!(reconciles < 20.0, "{reconciles} reconciles in two seconds");

    world.control_plane.start_apiserver().await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    ensure!(entry.outcome == Some(EndState::Completed), "{entry:?}");
    ensure!(!world.looked_up(&entry), "whoever made the call knows what became of it");
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_claim_whose_acknowledgement_never_came_is_called_once() -> Result<()> {
    let world = World::alone("unheard").await?;
    let operator = world.operator().await?;
    world.hook_with("shop", &["pod-restart"], "for: 2s").await?;
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Pending).await?;
    // The claim is written into the silence, and may be stored when it ends, or not.
    world.control_plane.pause_apiserver()?;
    eventually("the claim's write to be given up", PATIENCE, async || {
        let unknown = operator.log().contains("whether the status was stored is not known");
        unknown.then_some(()).context("it waits")
    })
    .await?;
    ensure!(world.agent.messages().is_empty(), "called without knowing that the claim is stored");
    world.control_plane.resume_apiserver()?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_status_that_may_not_be_written_calls_nobody_and_is_not_tried_without_pause() -> Result<()> {
    let world = World::alone("refused").await?;
    let role = |rules: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: khook}}\nrules:\n\
             - {{apiGroups: ['*'], resources: ['*'], verbs: [get, list, watch]}}\n\
             - {{apiGroups: [coordination.k8s.io, events.k8s.io], resources: ['*'], verbs: [create, update, patch]}}\n\
             {rules}\
             ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: khook}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: khook}}\n\
             subjects: [{{kind: ServiceAccount, name: khook, namespace: default}}]\n"
        )
    };
    let kubeconfig = world.control_plane.service_account_kubeconfig("default", "khook").await?;
    world.control_plane.apply(&role("")).await?;
    // More incidents than slots: some wait for what the refused write gives back.
    let setup = world.setup()?.env("KUBECONFIG", kubeconfig.display()).env("CALL_SLOTS_PER_AGENT", 1);
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    for pod in 0..3 {
        world.crash(&format!("web-{pod}")).await?;
    }
    let refused = async || operator.metric("khook_status_writes_total", &[("result", "error")]).await;
    eventually("a write to be refused", PATIENCE, async || {
        ensure!(refused().await? > 0.0, "none was");
        Ok(())
    })
    .await?;
    let before = refused().await?;
    throughout("nobody is called", Duration::from_secs(3), async || {
        ensure!(world.agent.requests().is_empty(), "{:?}", world.agent.requests());
        Ok(())
    })
    .await?;
    let writes = refused().await? - before;
    // Each pause is twice the one before.
    ensure!(writes < 8.0, "{writes} writes in three seconds");

    let write = "- {apiGroups: [kagent.dev], resources: [hooks/status], verbs: [patch]}\n";
    world.control_plane.apply(&role(write)).await?;
    for pod in 0..3 {
        world.wait_answered("shop", &format!("web-{pod}")).await?;
    }
    world.ensure_each_once(3)
}
