//! khook is killed, told to stop, paused and doubled at the worst moments: every message is sent, once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, Fault},
    operator::{Operator, Setup},
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::{
    hook::{Phase, Reason},
    incident::outcome::EndState,
};

/// khook as a container of a pod: started again, it knows that its predecessor is dead.
fn as_pod(world: &World, pod: &str) -> Result<Setup> {
    Ok(apart(world)?.env("POD_NAME", pod))
}

/// khook whose calls, and with them its claims, do not last long.
fn apart(world: &World) -> Result<Setup> {
    Ok(world.setup()?.env("KAGENT_API_TIMEOUT", "1s"))
}

async fn leads(operator: &Operator) -> Result<()> {
    eventually("leadership", PATIENCE, async || {
        let leads = operator.metric("khook_leader", &[]).await?;
        ensure!(leads == 1.0, "khook_leader is {leads}");
        Ok(())
    })
    .await
}

/// Waits until khook has looked at what there is, and has nothing left to do.
async fn rests(operator: &Operator) -> Result<()> {
    let mut before = 0.0;
    eventually("khook to have looked at the Hook", PATIENCE, async || {
        let now = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
        let settled = now > 0.0 && now == std::mem::replace(&mut before, now);
        ensure!(settled, "{now} reconciles");
        Ok(())
    })
    .await
}

/// khook, as a pod, whose call about web-0 the agent has and does not answer until it is let go.
async fn waiting_for_an_answer(name: &str) -> Result<(World, Operator)> {
    let world = World::alone(name).await?;
    world.agent.set(Behaviour::default().held().blocks());
    let setup = as_pod(&world, "khook-0")?.env("KAGENT_API_TIMEOUT", "60s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.agent.wait_for_messages(1, PATIENCE).await?;
    Ok((world, operator))
}

#[tokio::test]
async fn killed_three_times_at_rest_nothing_is_called_again() -> Result<()> {
    let world = World::alone("at-rest").await?;
    let operator = world.start(as_pod(&world, "khook-0")?.env("RESOLVE_TIMEOUT", "15s")).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let before = world.wait_answered("shop", "web-0").await?;
    for _ in 0..3 {
        operator.kill()?;
        operator.restart()?;
        operator.wait_ready(PATIENCE).await?;
        leads(&operator).await?;
        rests(&operator).await?;
        // The Event is still there, and was listed anew; it is known.
        let after = world.wait_for("shop", "web-0", Phase::Notified).await?;
        ensure!(after == before, "{after:?} is not {before:?}");
    }
    world.wait_for("shop", "web-0", Phase::Resolved).await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn killed_between_claim_and_send_the_next_one_sends() -> Result<()> {
    let world = World::alone("unsent").await?;
    world.agent.set(Behaviour::default().on_session(Fault::hang()));
    // Longer than it takes to kill it.
    let setup = as_pod(&world, "khook-0")?.env("KAGENT_API_TIMEOUT", "60s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let entry = world.wait_for("shop", "web-0", Phase::Firing).await?;
    eventually("the session to be asked for", PATIENCE, async || {
        ensure!(world.agent.sessions().len() == 1, "{:?}", world.agent.sessions());
        Ok(())
    })
    .await?;
    operator.kill()?;
    ensure!(world.agent.messages().is_empty(), "nothing was sent yet");

    world.agent.heal();
    operator.restart()?;
    let after = world.wait_answered("shop", "web-0").await?;
    ensure!(after.session_id == entry.session_id, "another session");
    ensure!(
        world.looked_up(&entry),
        "it was sent without a look whether it had been: {:?}",
        world.agent.requests()
    );
    world.ensure_each_once(1)
}

#[tokio::test]
async fn killed_between_send_and_answer_the_next_one_finds_it() -> Result<()> {
    let (world, operator) = waiting_for_an_answer("unanswered").await?;
    operator.kill()?;
    let entry = world.wait_for("shop", "web-0", Phase::Firing).await?;

    operator.restart()?;
    let found = world.wait_for("shop", "web-0", Phase::Notified).await?;
    ensure!(world.looked_up(&entry), "{:?}", world.agent.requests());
    ensure!(found.task_id == world.agent.messages()[0].task, "{found:?}");
    world.agent.release();
    let answered = world.wait_answered("shop", "web-0").await?;
    ensure!(answered.outcome == Some(EndState::Completed), "{answered:?}");
    world.ensure_each_once(1)
}

#[tokio::test]
async fn killed_between_answer_and_the_write_of_it_the_next_one_finds_it() -> Result<()> {
    let (world, operator) = waiting_for_an_answer("unwritten").await?;
    world.control_plane.stop_apiserver()?;
    world.agent.release();
    eventually("the answer to come and its write to fail", PATIENCE, async || {
        let accepted = [("kind", "message"), ("outcome", "accepted")];
        let answers = operator.metric("khook_api_calls_total", &accepted).await?;
        let failures = operator.metric("khook_status_writes_total", &[("result", "error")]).await?;
        ensure!(answers == 1.0 && failures >= 1.0, "{answers} answers, {failures} failed writes");
        Ok(())
    })
    .await?;
    operator.kill()?;
    world.control_plane.start_apiserver().await?;
    let entry = world.wait_for("shop", "web-0", Phase::Firing).await?;

    operator.restart()?;
    let answered = world.wait_answered("shop", "web-0").await?;
    ensure!(answered.outcome == Some(EndState::Completed), "{answered:?}");
    ensure!(world.looked_up(&entry), "{:?}", world.agent.requests());
    world.ensure_each_once(1)
}

#[tokio::test]
async fn told_to_stop_it_lets_the_call_in_flight_end_and_writes_what_became_of_it() -> Result<()> {
    let world = World::alone("stopped").await?;
    world.agent.set(Behaviour::default().held().blocks());
    let setup = as_pod(&world, "khook-0")?.env("KAGENT_API_TIMEOUT", "60s").env("DRAIN_TIMEOUT", "60s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.agent.wait_for_messages(1, PATIENCE).await?;
    operator.terminate()?;
    world.crash("web-1").await?;
    throughout("the wait for the call", Duration::from_millis(500), async || {
        ensure!(operator.is_running(), "it did not wait; its last words:\n{}", operator.log_tail(20));
        ensure!(world.agent.messages().len() == 1, "a call was begun while stopping");
        Ok(())
    })
    .await?;
    world.agent.release();
    let code = operator.wait_exit(PATIENCE).await?;
    ensure!(code == 0, "exit code {code}; last words:\n{}", operator.log_tail(20));
    let status = world.status("shop").await?;
    let entry = status.active_events.iter().find(|entry| entry.resource_name == "web-0").context("web-0")?;
    ensure!(entry.status == Phase::Notified && entry.outcome == Some(EndState::Completed), "{entry:?}");

    world.agent.heal();
    operator.restart()?;
    world.wait_answered("shop", "web-1").await?;
    ensure!(!world.looked_up(entry), "there was nothing to look up");
    world.ensure_each_once(2)
}

#[tokio::test]
async fn an_answer_that_comes_while_khook_is_away_is_read_when_it_is_back() -> Result<()> {
    let world = World::alone("followed").await?;
    world.agent.set(Behaviour::default().held().answers(|_| "raise the limit".to_owned()));
    let operator = world.start(as_pod(&world, "khook-0")?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let asked = world.wait_for("shop", "web-0", Phase::Notified).await?;
    ensure!(asked.task_id.is_some() && asked.outcome.is_none(), "{asked:?}");
    operator.kill()?;
    world.agent.release();
    operator.restart()?;
    let answered = world.wait_answered("shop", "web-0").await?;
    ensure!(answered.outcome == Some(EndState::Completed), "{answered:?}");
    ensure!(answered.answer.as_deref() == Some("raise the limit"), "{answered:?}");
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_killed_leader_is_followed_and_its_open_call_is_found() -> Result<()> {
    let world = World::alone("killed-leader").await?;
    let first = world.start(apart(&world)?).await?;
    leads(&first).await?;
    let second = world.start(apart(&world)?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    ensure!(second.metric("khook_leader", &[]).await? == 0.0, "both lead");

    world.agent.set(Behaviour::default().held().blocks());
    world.crash("web-1").await?;
    world.agent.wait_for_messages(2, PATIENCE).await?;
    first.kill()?;
    let claimed = world.wait_for("shop", "web-1", Phase::Firing).await?;
    world.crash("web-2").await?;
    leads(&second).await?;
    // What is not claimed needs no waiting; a claim stands until nobody can be working on it.
    world.agent.wait_for_messages(3, PATIENCE).await?;
    world.wait_for("shop", "web-1", Phase::Notified).await?;
    ensure!(world.looked_up(&claimed), "{:?}", world.agent.requests());
    world.agent.release();
    for pod in ["web-1", "web-2"] {
        world.wait_answered("shop", pod).await?;
    }
    world.ensure_each_once(3)
}

#[tokio::test]
async fn told_to_stop_a_leader_hands_over_at_once() -> Result<()> {
    let world = World::alone("handover").await?;
    // What is not handed over is not had by anyone while this test waits.
    let setup = || Ok::<_, anyhow::Error>(apart(&world)?.env("LEASE_DURATION", "600s"));
    let first = world.start(setup()?).await?;
    leads(&first).await?;
    let second = world.start(setup()?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    first.terminate()?;
    let code = first.wait_exit(PATIENCE).await?;
    ensure!(code == 0, "exit code {code}; last words:\n{}", first.log_tail(20));
    leads(&second).await?;
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    world.ensure_each_once(2)
}

#[tokio::test]
async fn a_paused_leader_that_comes_back_calls_nobody_a_second_time() -> Result<()> {
    let world = World::alone("paused-leader").await?;
    let first = world.start(apart(&world)?).await?;
    leads(&first).await?;
    let second = world.start(apart(&world)?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    first.pause()?;
    leads(&second).await?;
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    // It finds the Event waiting on its watch, and may still believe that it leads.
    first.resume()?;
    eventually("the first to see that it does not lead", PATIENCE, async || {
        ensure!(first.metric("khook_leader", &[]).await? == 0.0, "it leads");
        Ok(())
    })
    .await?;
    world.crash("web-2").await?;
    world.wait_answered("shop", "web-2").await?;
    world.ensure_each_once(3)
}

#[tokio::test]
async fn two_that_both_work_send_every_message_once() -> Result<()> {
    const PODS: usize = 12;
    let world = World::alone("both").await?;
    let setup =
        || Ok::<_, anyhow::Error>(apart(&world)?.env("LEADER_ELECTION", false).env("RESOLVE_TIMEOUT", "60s"));
    let first = world.start(setup()?).await?;
    let second = world.start(setup()?).await?;
    for hook in ["shop", "shop-too"] {
        world.hook_asking(hook, &format!("kagent/{hook}"), &["pod-restart"], "").await?;
    }
    for pod in 0..PODS {
        world.crash(&format!("web-{pod}")).await?;
    }
    for hook in ["shop", "shop-too"] {
        world
            .wait_until(hook, "all are answered", |status| {
                let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some());
                (answered.count() == PODS).then_some(())
            })
            .await?;
    }
    rests(&first).await?;
    rests(&second).await?;
    world.ensure_each_once(2 * PODS)?;
    // Who claims also tells: no transition is told twice either.
    let told = world.notices("shop").await?;
    ensure!(told.get("AgentCallSuccess").map(Vec::len) == Some(PODS), "{told:?}");

    // One of them is killed with a call open; the other finds it although nobody hands it over.
    world.agent.set(Behaviour::default().held().blocks());
    world.crash("db-0").await?;
    world.agent.wait_for_messages(2 * PODS + 2, PATIENCE).await?;
    first.kill()?;
    world.agent.release();
    for hook in ["shop", "shop-too"] {
        let entry = world.wait_answered(hook, "db-0").await?;
        ensure!(entry.reason == Some(Reason::AgentCalled), "{entry:?}");
    }
    world.ensure_each_once(2 * PODS + 2)
}

#[tokio::test]
async fn a_claim_is_left_to_its_owner_for_as_long_as_it_may_be_at_work() -> Result<()> {
    let world = World::alone("at-work").await?;
    // Sessions take their time: between a claim and its message there is room for another to interfere.
    let session = Fault::body(r#"{"error":false,"data":{},"message":"made"}"#).runs();
    world.agent.set(Behaviour::default().on_session(session.after(Duration::from_secs(4))));
    let setup = || {
        let setup = apart(&world)?.env("LEADER_ELECTION", false).env("KAGENT_API_TIMEOUT", "10s");
        Ok::<_, anyhow::Error>(setup.env("LOOKUP_GRACE", "200ms").env("RESOLVE_TIMEOUT", "60s"))
    };
    let first = world.start(setup()?).await?;
    let second = world.start(setup()?).await?;
    world.hook("shop", &["pod-restart"]).await?;
    for pod in 0..3 {
        world.crash(&format!("web-{pod}")).await?;
    }
    for pod in 0..3 {
        let entry = world.wait_answered("shop", &format!("web-{pod}")).await?;
        ensure!(entry.attempts == 1 && !world.looked_up(&entry), "{entry:?}");
    }
    rests(&first).await?;
    rests(&second).await?;
    world.ensure_each_once(3)
}
