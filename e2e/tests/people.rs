//! What people have khook do about incidents, and how they try a Hook out: by commands, through a running operator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, Fault},
    operator::Operator,
    prompt::Prompt,
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::hook::{ActiveEvent, Phase, Reason, Verb};
use kube::ResourceExt;
use serde_json::{Value, json};

const A_WHILE: Duration = Duration::from_secs(3);

/// An incident that the agent has answered, and a prompt before its cluster.
async fn answered(name: &str, more: &str) -> Result<(World, Operator, Prompt)> {
    let world = World::alone(name).await?;
    let operator =
        world.start(world.setup()?.env("RESOLVE_TIMEOUT", "10m").env("REPEAT_INTERVAL", "1s")).await?;
    world.hook_with("shop", &["pod-restart"], more).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let prompt = Prompt::at(&world.control_plane.kubeconfig())?;
    Ok((world, operator, prompt))
}

/// `khook` in the namespace of the scenario.
async fn khook(world: &World, prompt: &Prompt, args: &[&str]) -> Result<String> {
    let args: Vec<&str> = ["-n", &world.namespace].into_iter().chain(args.iter().copied()).collect();
    prompt.ok(&args).await
}

/// The same, where it has to fail: what it says.
async fn fails(world: &World, prompt: &Prompt, args: &[&str]) -> Result<String> {
    let args: Vec<&str> = ["-n", &world.namespace].into_iter().chain(args.iter().copied()).collect();
    let said = prompt.run(&args).await?;
    ensure!(said.code == 1, "{said:?}");
    Ok(said.stderr)
}

async fn entry(world: &World) -> Result<ActiveEvent> {
    let status = world.status("shop").await?;
    let [entry] = status.active_events.as_slice() else { anyhow::bail!("{:?}", status.active_events) };
    Ok(entry.clone())
}

async fn ensure_clean(world: &World) -> Result<()> {
    let hook = world.hooks().get("shop").await?;
    ensure!(!hook.annotations().keys().any(|key| key.starts_with("khook.kagent.dev/")), "{hook:?}");
    Ok(())
}

async fn quiet(world: &World, messages: usize) -> Result<()> {
    throughout("no call", A_WHILE, async || {
        ensure!(world.messages().len() == messages, "{:?}", world.messages());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_acknowledged_is_not_asked_again_until_somebody_wants_it() -> Result<()> {
    let (world, _operator, prompt) = answered("people-ack", "").await?;
    let said = khook(&world, &prompt, &["ack", "shop", "web-0"]).await?;
    ensure!(said.starts_with("pod-restart on web-0: notified"), "{said}");
    let taken = entry(&world).await?;
    let instruction = taken.instruction.clone().context("no instruction")?;
    ensure!(instruction.verb == Verb::Ack && !instruction.by.is_empty(), "{instruction:?}");
    ensure_clean(&world).await?;

    // The window is a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.crash("web-0").await?;
    quiet(&world, 1).await?;
    ensure!(entry(&world).await?.count > taken.count, "the trouble is recorded all the same");

    let said = khook(&world, &prompt, &["retry", "shop", &taken.id[..6], "-o", "json"]).await?;
    let incident: Value = serde_json::from_str(&said)?;
    ensure!(incident["instruction"]["verb"] == "retry" && incident["window"] == 2, "{incident}");
    let messages = world.wait_for_messages(2).await?;
    ensure!(messages[0].session == messages[1].session && messages[0].id != messages[1].id, "{messages:?}");
    ensure!(messages[1].text.contains("a person wants it looked at again"), "{}", messages[1].text);
    ensure_clean(&world).await?;
    eventually("the Events", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        let told = notices.get("IncidentInstructed").cloned().unwrap_or_default();
        ensure!(told.iter().any(|note| note.contains(&format!("by {}", instruction.by))), "{notices:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_snooze_ends_by_itself_and_what_went_on_is_told() -> Result<()> {
    let (world, _operator, prompt) = answered("people-snooze", "").await?;
    let said = khook(&world, &prompt, &["snooze", "5s", "shop", "pod-restart/web-0"]).await?;
    ensure!(said.contains("web-0"), "{said}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.crash("web-0").await?;
    let snoozed = entry(&world).await?;
    let until = snoozed.instruction.clone().and_then(|told| told.until).context("no end of the snooze")?;
    let messages = world.wait_for_messages(2).await?;
    ensure!(messages[1].at >= until, "{} before {until}", messages[1].at);
    ensure!(messages[1].text.contains("is still happening"), "{}", messages[1].text);
    world.ensure_each_once(2)
}

#[tokio::test]
async fn an_incident_is_over_when_a_person_says_so() -> Result<()> {
    let (world, operator, prompt) = answered("people-resolve", "notifyResolved: true").await?;
    let said = khook(&world, &prompt, &["resolve", "shop", "web-0"]).await?;
    ensure!(said.starts_with("pod-restart on web-0: resolved (resolved by "), "{said}");
    ensure!(entry(&world).await?.reason == Some(Reason::ResolvedByHand));
    // Who was asked hears of it.
    let messages = world.wait_for_messages(2).await?;
    ensure!(messages[1].text.contains("a person has said that it is over"), "{}", messages[1].text);

    let error = fails(&world, &prompt, &["ack", "shop", "web-9"]).await?;
    ensure!(error.contains("has no incident \"web-9\"; it has:"), "{error}");
    let error = fails(&world, &prompt, &["ack", "shap", "web-0"]).await?;
    ensure!(error.contains("there is no Hook shap") && error.contains("shop"), "{error}");

    // Without an operator it stands on the Hook, is told so, and is done by the next one.
    operator.kill()?;
    let error = fails(&world, &prompt, &["retry", "shop", "web-0", "--timeout", "1s"]).await?;
    ensure!(error.contains("stands on the Hook as the annotation khook.kagent.dev/retry."), "{error}");
    operator.restart()?;
    world.wait_for_messages(3).await?;
    // It stands there still, and is not done twice.
    quiet(&world, 3).await
}

#[tokio::test]
async fn what_is_called_meanwhile_is_not_taken_back() -> Result<()> {
    let (world, _operator, prompt) = answered("people-firing", "").await?;
    world.agent.set(Behaviour::default().delay(Duration::from_secs(4)));
    khook(&world, &prompt, &["retry", "shop", "web-0"]).await?;
    world.wait_for("shop", "web-0", Phase::Firing).await?;
    let said = khook(&world, &prompt, &["resolve", "shop", "web-0"]).await?;
    ensure!(said.contains(": resolved (resolved by "), "{said}");
    // The outcome was waited for.
    world.ensure_each_once(2)?;
    ensure!(entry(&world).await?.last_notified_at > entry(&world).await?.notified_at);
    Ok(())
}

#[tokio::test]
async fn a_hook_is_tried_out_through_the_running_operator() -> Result<()> {
    let (world, _operator, prompt) = answered("people-test", "").await?;
    let real = entry(&world).await?;

    let said = khook(&world, &prompt, &["test", "shop", "--pod", "web-0", "--dry-run"]).await?;
    ensure!(said.contains("To kagent/k8s-agent:") && said.contains("Look at web-0: a test by "), "{said}");
    quiet(&world, 1).await?;

    world.agent.set(Behaviour::default().answers(|_| "I would look\nat the log \u{1b}[31m".into()));
    let said = khook(&world, &prompt, &["test", "shop", "--type", "pod-restart", "--pod", "web-0"]).await?;
    ensure!(said == "kagent/k8s-agent: Completed\n  I would look\n  at the log [31m\n", "{said:?}");
    let messages = world.wait_for_messages(2).await?;
    ensure!(messages[1].session != messages[0].session, "{messages:?}");
    ensure!(messages[1].text.contains("This is a test of the Hook"), "{}", messages[1].text);
    ensure!(messages[1].metadata["test"] == true && messages[0].metadata.get("test").is_none());

    // The real incident of that pod knows nothing of it, and the test is over.
    let status = world.status("shop").await?;
    let (tests, others): (Vec<_>, Vec<_>) =
        status.active_events.iter().partition(|entry| entry.test.is_some());
    ensure!(others.len() == 1 && others[0].session_id == real.session_id, "{others:?}");
    ensure!(tests.len() == 1 && tests[0].status == Phase::Resolved, "{tests:?}");
    ensure_clean(&world).await?;

    let error = fails(&world, &prompt, &["test", "shop", "--type", "oom-kill"]).await?;
    ensure!(error.contains("does not listen to oom-kill: choose among pod-restart"), "{error}");
    world.agent.set(Behaviour::default().on_session(Fault::status(503)));
    let said = prompt.run(&["-n", &world.namespace, "test", "shop", "--timeout", "2s"]).await?;
    ensure!(said.code == 1 && said.stderr.contains("503"), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_hook_that_observes_records_and_renders_and_calls_nobody() -> Result<()> {
    let (world, operator, prompt) = answered("people-observe", "").await?;
    world.patch("shop", json!({"spec": {"mode": "Observe"}})).await?;
    let before = world.status("shop").await?.calls_per_day;
    ensure!(before.iter().map(|day| day.calls).sum::<i64>() == 1, "{before:?}");
    world.crash("web-1").await?;
    let seen = world.wait_for("shop", "web-1", Phase::Notified).await?;
    ensure!(seen.observed && seen.reason == Some(Reason::Observed) && seen.task_id.is_none(), "{seen:?}");
    quiet(&world, 1).await?;
    let log = operator.log();
    ensure!(log.contains("this would have been sent") && log.contains("Look at web-1: "), "{log}");
    let status = world.status("shop").await?;
    ensure!(status.calls_per_day.iter().map(|day| day.calls).sum::<i64>() == 2, "{status:?}");
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    ensure!(ready.is_some_and(|ready| ready.reason == "Observing" && ready.status == "True"), "{status:?}");
    let said = khook(&world, &prompt, &["test", "shop"]).await?;
    ensure!(said.contains("would have been asked"), "{said}");

    // What was only observed was never asked.
    world.patch("shop", json!({"spec": {"mode": "Active"}})).await?;
    world.wait_for("shop", "web-1", Phase::Resolved).await?;
    quiet(&world, 1).await?;
    world.crash("web-1").await?;
    let messages = world.wait_for_messages(2).await?;
    ensure!(!messages[1].text.contains("reported before"), "{}", messages[1].text);
    world.ensure_each_once(2)
}
