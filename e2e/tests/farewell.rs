//! An agent is told that an incident is resolved: where the Hook wants it, in the same session, at most once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, Fault},
    operator::{Operator, Setup},
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::{
    hook::{ActiveEvent, FarewellState, Phase},
    incident::key,
};

/// khook whose calls, and with them its claims, do not last long.
fn as_pod(world: &World) -> Result<Setup> {
    Ok(world.setup()?.env("POD_NAME", "khook-0").env("KAGENT_API_TIMEOUT", "1s"))
}

/// An incident that the agent was asked about, and of whose end it wants to hear.
async fn asked(name: &str) -> Result<(World, Operator)> {
    let world = World::alone(name).await?;
    let operator = world.start(as_pod(&world)?).await?;
    world.hook_with("shop", &["pod-restart"], "notifyResolved: true").await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    Ok((world, operator))
}

async fn farewell(world: &World, state: FarewellState) -> Result<ActiveEvent> {
    let is = |entry: &ActiveEvent| entry.farewell.as_ref().is_some_and(|farewell| farewell.state == state);
    world
        .wait_until("shop", &format!("the farewell to be {state:?}"), |status| {
            status.active_events.iter().find(|entry| is(entry)).cloned()
        })
        .await
}

/// The messages so far: that about the incident, and so many farewells.
fn ensure_farewells(world: &World, entry: &ActiveEvent, expected: usize) -> Result<()> {
    let session = entry.session_id.clone().context("a session")?;
    let messages = world.messages();
    let of = |id: &str| messages.iter().filter(|message| message.id == id).count();
    let (asked, told) = (of(&key::message_id(&session, 1)), of(&key::farewell_id(&session, 1)));
    ensure!((asked, told) == (1, expected) && messages.len() == 1 + expected, "{messages:?}");
    ensure!(messages.iter().all(|message| message.session == session && message.user == messages[0].user));
    Ok(())
}

#[tokio::test]
async fn an_agent_hears_once_that_it_is_over_where_the_hook_wants_it() -> Result<()> {
    let world = World::alone("told").await?;
    let _operator = world.start(as_pod(&world)?).await?;
    world.hook_with("shop", &["pod-restart"], "notifyResolved: true").await?;
    // By default nobody is told.
    world.hook_asking("silent", "kagent/silent", &["pod-restart"], "").await?;
    world.crash("web-0").await?;
    let entry = farewell(&world, FarewellState::Told).await?;
    let silent = world.wait_for("silent", "web-0", Phase::Resolved).await?;
    ensure!(silent.farewell.is_none(), "{silent:?}");

    let messages = world.messages();
    let session = entry.session_id.clone().context("a session")?;
    let told = messages.iter().find(|message| message.id == key::farewell_id(&session, 1));
    let told = told.context("no farewell")?;
    let asked = messages.iter().find(|message| message.id == key::message_id(&session, 1));
    let asked = asked.context("no call")?;
    ensure!((&told.session, &told.user, &told.agent) == (&asked.session, &asked.user, &asked.agent));
    ensure!(told.text.contains("is resolved since") && !told.text.contains("Look at"), "{}", told.text);
    ensure!(told.metadata["resolution"] == "Quiet" && told.metadata["resourceName"] == "web-0");
    // The answer to the question stays; that to the farewell is nobody's.
    ensure!(entry.task_id == asked.task && entry.outcome.is_some(), "{entry:?}");
    throughout("no more messages", Duration::from_secs(2), async || {
        ensure!(world.messages().len() == 3, "{:?}", world.messages());
        Ok(())
    })
    .await?;
    eventually("the Event", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        ensure!(notices.contains_key("ResolutionTold"), "{notices:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_agent_that_is_down_then_hears_of_it_when_it_is_up() -> Result<()> {
    let (world, _operator) = asked("told-later").await?;
    world.agent.set(Behaviour::default().on_session(Fault::status(503).times(2)));
    let entry = farewell(&world, FarewellState::Told).await?;
    ensure!(entry.farewell.as_ref().is_some_and(|farewell| farewell.attempts == 3), "{entry:?}");
    ensure_farewells(&world, &entry, 1)
}

#[tokio::test]
async fn an_agent_that_stays_down_is_given_up_in_sight() -> Result<()> {
    let (world, _operator) = asked("not-told").await?;
    world.agent.set(Behaviour::default().on_session(Fault::status(503)));
    let entry = farewell(&world, FarewellState::Failed).await?;
    ensure!(entry.status == Phase::Resolved, "{entry:?}");
    ensure!(entry.last_error.as_deref().is_some_and(|error| error.contains("503")), "{entry:?}");
    eventually("the Event", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        ensure!(notices.contains_key("ResolutionNotTold"), "{notices:?}");
        Ok(())
    })
    .await?;
    ensure_farewells(&world, &entry, 0)
}

#[tokio::test]
async fn killed_between_the_claim_and_the_farewell_it_is_not_said_at_all() -> Result<()> {
    let (world, operator) = asked("unsaid").await?;
    world.agent.set(Behaviour::default().on_session(Fault::hang()));
    farewell(&world, FarewellState::Calling).await?;
    operator.kill()?;
    world.agent.heal();
    operator.restart()?;
    let entry = farewell(&world, FarewellState::Unknown).await?;
    throughout("nothing is said", Duration::from_secs(2), async || ensure_farewells(&world, &entry, 0)).await
}

#[tokio::test]
async fn killed_between_the_farewell_and_its_answer_it_is_not_said_again() -> Result<()> {
    let (world, operator) = asked("unanswered").await?;
    world.agent.set(Behaviour::default().held().blocks());
    let entry = farewell(&world, FarewellState::Calling).await?;
    world.agent.wait_for_messages(2, PATIENCE).await?;
    operator.kill()?;
    world.agent.heal();
    operator.restart()?;
    farewell(&world, FarewellState::Unknown).await?;
    throughout("nothing is said again", Duration::from_secs(2), async || ensure_farewells(&world, &entry, 1))
        .await
}

#[tokio::test]
async fn a_suspension_while_the_session_is_opened_takes_it_back() -> Result<()> {
    let (world, _operator) = asked("taken-back").await?;
    world
        .agent
        .set(Behaviour::default().on_session(Fault::status(503).after(Duration::from_millis(700)).times(1)));
    farewell(&world, FarewellState::Calling).await?;
    world.patch("shop", serde_json::json!({"spec": {"suspend": true}})).await?;
    let entry = world
        .wait_until("shop", "the farewell to be taken back", |status| {
            status.active_events.iter().find(|entry| entry.farewell.is_none()).cloned()
        })
        .await?;
    throughout("nothing is said", Duration::from_secs(1), async || ensure_farewells(&world, &entry, 0)).await
}
