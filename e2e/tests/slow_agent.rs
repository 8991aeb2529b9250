//! An agent that takes its time and answers only then: others must not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{
    agent::{Behaviour, Message},
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::hook::{Phase, Reason};

/// Slots per agent: khook's default.
const SLOTS: usize = 16;

const SLOW: &str = "kagent/slow";

fn to_slow(world: &World) -> Vec<Message> {
    world.agent.messages().into_iter().filter(|message| message.agent == SLOW).collect()
}

async fn wait_for_slow(world: &World, count: usize) -> Result<()> {
    eventually(&format!("{count} messages to the slow agent"), PATIENCE, async || {
        let came = to_slow(world).len();
        ensure!(came >= count, "{came} came");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn twenty_calls_of_an_agent_that_blocks_take_two_waves_and_hold_nobody_else_up() -> Result<()> {
    let world = World::alone("waves").await?;
    world.agent.set_for(SLOW, Behaviour::default().held().blocks());
    world.hook_asking("slow", SLOW, &["pod-restart"], "").await?;
    let elsewhere = world.control_plane.fresh_namespace("elsewhere").await?;
    let operator = world.operator().await?;
    for pod in 0..20 {
        world.crash(&format!("web-{pod}")).await?;
    }

    wait_for_slow(&world, SLOTS).await?;
    world
        .wait_until("slow", "four wait for a slot", |status| {
            let waiting = |entry: &&khook::hook::ActiveEvent| {
                entry.status == Phase::Pending && entry.reason == Some(Reason::WaitingForSlot)
            };
            (status.firing == Some(16) && status.active_events.iter().filter(waiting).count() == 4)
                .then_some(())
        })
        .await?;
    // Who waits for a slot sleeps until there is one.
    let before = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
    throughout("the first wave", Duration::from_secs(1), async || {
        ensure!(to_slow(&world).len() == SLOTS, "{} messages", to_slow(&world).len());
        Ok(())
    })
    .await?;
    let reconciles = operator.metric("khook_reconcile_duration_seconds_count", &[]).await? - before;
    ensure!(reconciles < 10.0, "{reconciles} reconciles while nothing happened");
    ensure!(world.agent.peak_in_flight() == SLOTS, "{} at once", world.agent.peak_in_flight());

    // The slow one's slots are taken, and stay so: neither another Hook here nor one elsewhere waits.
    world.hook_asking("quick", "kagent/quick", &["oom-kill"], "").await?;
    let oom = e2e::events::Event::kubelet("OOMKilling", "Memory cgroup out of memory");
    oom.clone().pod(&world.namespace, "db-0").post(&world.client).await?;
    world.wait_for("quick", "db-0", Phase::Notified).await?;
    let hook = "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {name: far}\nspec:\n  eventConfigurations:\n  \
                - {eventType: oom-kill, agentId: kagent/quick, prompt: 'Look'}\n";
    world.control_plane.apply_in(&elsewhere, hook).await?;
    oom.pod(&elsewhere, "db-0").post(&world.client).await?;
    eventually("the call for the other namespace", PATIENCE, async || {
        let quick = world.agent.messages().iter().filter(|message| message.agent == "kagent/quick").count();
        ensure!(quick == 2, "{quick} messages");
        Ok(())
    })
    .await?;
    ensure!(to_slow(&world).len() == SLOTS, "the first wave is not over");

    // What is released first frees slots for all that wait: they are in flight together.
    ensure!(world.agent.release() == SLOTS, "all of the first wave ran");
    wait_for_slow(&world, 20).await?;
    ensure!(world.agent.release() == 4, "the second wave is in flight at once");
    world
        .wait_until("slow", "all are answered", |status| {
            let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some());
            (answered.count() == 20).then_some(())
        })
        .await?;
    world.ensure_each_once(21)?;
    world.ensure_each_ran_once(22)
}

#[tokio::test]
async fn an_agent_that_takes_long_over_each_of_twenty_is_asked_once_each_by_sixteen_at_most() -> Result<()> {
    let delay = Duration::from_millis(1500);
    let world = World::alone("slow").await?;
    world.agent.set(Behaviour::default().delay(delay).blocks());
    world.hook("shop", &["pod-restart"]).await?;
    let operator = world.operator().await?;
    for pod in 0..20 {
        world.crash(&format!("web-{pod}")).await?;
    }
    let messages = world.agent.wait_for_messages(20, PATIENCE).await?;
    ensure!(world.agent.peak_in_flight() <= SLOTS, "{} at once", world.agent.peak_in_flight());
    ensure!(messages[SLOTS].instant >= messages[0].instant + delay, "the 17th came before a slot was free");
    world
        .wait_until("shop", "all are answered", |status| {
            let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some());
            (answered.count() == 20).then_some(())
        })
        .await?;
    // A few for each incident: nobody asks again and again for a slot that is not there.
    let reconciles = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
    ensure!(reconciles < 200.0, "{reconciles} reconciles for 20 incidents");
    world.ensure_each_once(20)
}

#[tokio::test]
async fn who_waits_for_a_slot_sleeps_also_while_its_next_write_is_held_back() -> Result<()> {
    let world = World::alone("asleep").await?;
    world.agent.set(Behaviour::default().held().blocks());
    world.hook("shop", &["pod-restart"]).await?;
    let setup = world.setup()?.env("CALL_SLOTS_PER_AGENT", 2);
    let setup =
        setup.env("WRITE_INTERVAL", "2s").env("OUTCOME_DELAY", "2s").env("QUIET_WRITE_INTERVAL", "2s");
    let operator = world.start(setup).await?;
    // The first is claimed at once, the others with the next write: two of them find no slot then.
    for pod in 0..4 {
        world.crash(&format!("web-{pod}")).await?;
    }
    world.agent.wait_for_messages(2, PATIENCE).await?;
    let reconciles = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
    ensure!(reconciles < 60.0, "{reconciles} reconciles for four incidents");
    world.agent.release();
    world.agent.wait_for_messages(4, PATIENCE).await?;
    world.ensure_each_once(4)
}

#[tokio::test]
async fn a_slot_that_one_hook_gives_back_is_taken_by_another_that_waits() -> Result<()> {
    let world = World::alone("passed-on").await?;
    world.agent.set(Behaviour::default().held().blocks());
    world.hook("shop", &["pod-restart"]).await?;
    world.hook("till", &["oom-kill"]).await?;
    let _operator = world.start(world.setup()?.env("CALL_SLOTS_PER_AGENT", 1)).await?;
    world.crash("web-0").await?;
    world.agent.wait_for_messages(1, PATIENCE).await?;
    let oom = e2e::events::Event::kubelet("OOMKilling", "Memory cgroup out of memory");
    oom.pod(&world.namespace, "db-0").post(&world.client).await?;
    world
        .wait_until("till", "db-0 waits for a slot", |status| {
            let entry = status.active_events.first()?;
            (entry.reason == Some(Reason::WaitingForSlot)).then_some(())
        })
        .await?;
    world.agent.release();
    world.agent.wait_for_messages(2, PATIENCE).await?;
    world.agent.release();
    world.wait_answered("till", "db-0").await?;
    world.ensure_each_once(2)
}
