//! An agent that fails in every known way: what is asked of it runs once, sooner or later, and until then the
//! status says what is wrong.
//!
//! Most scenarios share one khook and one kagent and differ in the agent they ask, as they would in a cluster:
//! what one agent does must not show in what is asked of another.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, End, Fault, Message},
    control_plane::ControlPlane,
    events::Event,
    operator::Setup,
    stage::Stage,
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::{
    hook::{ActiveEvent, Hook, HookStatus, Phase, Reason},
    incident::outcome::EndState,
};
use kube::{Api, Client};

/// What the scenarios share: a khook with short timeouts, that keeps incidents notified.
async fn shared() -> Result<&'static Stage> {
    const SETTINGS: [(&str, &str); 6] = [
        ("RESOLVE_TIMEOUT", "120s"),
        ("REPEAT_INTERVAL", "120s"),
        ("KAGENT_API_TIMEOUT", "1500ms"),
        ("LOOKUP_GRACE", "300ms"),
        ("LEADER_ELECTION", "false"),
        ("TASK_DEADLINE", "3s"),
    ];
    let settings =
        |setup: Setup| SETTINGS.into_iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    Stage::shared_with(ControlPlane::shared().await?, settings).await
}

/// One incident, and an agent that nobody else asks.
struct Case {
    stage: &'static Stage,
    client: Client,
    agent: String,
    namespace: String,
}

impl Case {
    /// An agent that behaves like this, and trouble it is asked about.
    async fn of(name: &str, behaviour: Behaviour) -> Result<Self> {
        let stage = shared().await?;
        let client = stage.control_plane.client().await?;
        let namespace = stage.control_plane.fresh_namespace(name).await?;
        let case = Self { stage, client, agent: format!("kagent/{namespace}"), namespace };
        stage.agent.set_for(&case.agent, behaviour);
        let yaml = format!(
            "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {{name: hook}}\nspec:\n  eventConfigurations:\n  \
             - {{eventType: pod-restart, agentId: {}, prompt: 'Look'}}\n",
            case.agent
        );
        stage.control_plane.apply_in(&case.namespace, &yaml).await?;
        let event = Event::kubelet("BackOff", "Back-off restarting failed container web in pod web-0");
        event.pod(&case.namespace, "web-0").container("web").post(&case.client).await?;
        Ok(case)
    }

    /// The agent is well from now on.
    fn heal(&self) {
        self.stage.agent.set_for(&self.agent, Behaviour::default());
    }

    async fn wait(&self, what: &str, found: impl Fn(&ActiveEvent) -> bool) -> Result<ActiveEvent> {
        let hooks: Api<Hook> = Api::namespaced(self.client.clone(), &self.namespace);
        eventually(what, PATIENCE, async || {
            let status = hooks.get("hook").await?.status.unwrap_or_default();
            let entry = status.active_events.first().context("no incident")?;
            ensure!(found(entry), "{entry:?}");
            Ok(entry.clone())
        })
        .await
    }

    /// Waits until the incident waits, for all to see why.
    async fn waits(&self, reasons: &[Reason], error: &str) -> Result<ActiveEvent> {
        let wanted = |entry: &ActiveEvent| {
            matches!(entry.status, Phase::Pending | Phase::Firing)
                && entry.reason.is_some_and(|reason| reasons.contains(&reason))
                && entry.last_error.as_deref().is_some_and(|text| text.contains(error))
        };
        self.wait(&format!("the incident to wait, saying {error:?}"), wanted).await
    }

    /// Waits until the agent has answered, and holds the entry against what an answered one looks like.
    async fn answered(&self) -> Result<ActiveEvent> {
        let entry = self.wait("the answer", |entry| entry.outcome.is_some()).await?;
        ensure!(entry.status == Phase::Notified && entry.reason == Some(Reason::AgentCalled), "{entry:?}");
        ensure!(entry.last_error.is_none() && entry.claim.is_none(), "{entry:?}");
        Ok(entry)
    }

    /// What was sent to the agent.
    fn messages(&self) -> Vec<Message> {
        self.stage.agent.messages().into_iter().filter(|message| message.agent == self.agent).collect()
    }

    /// What was sent, and how much of it ran: the same message each time, and one run.
    fn ensure_sent(&self, range: impl std::ops::RangeBounds<usize>) -> Result<()> {
        let messages = self.messages();
        ensure!(range.contains(&messages.len()), "{} were sent", messages.len());
        ensure!(
            messages.iter().all(|message| message.id == messages[0].id),
            "different messages: {messages:?}"
        );
        let runs = messages.iter().filter(|message| message.ran).count();
        ensure!(runs == 1, "{runs} runs");
        Ok(())
    }

    fn sessions(&self) -> usize {
        self.stage.agent.sessions().iter().filter(|call| call.agent == self.agent).count()
    }

    fn lookups(&self, entry: &ActiveEvent) -> usize {
        let path = format!("/api/sessions/{}/tasks", entry.session_id.as_deref().unwrap_or("none"));
        self.stage.agent.requests().iter().filter(|request| request.path.starts_with(&path)).count()
    }
}

/// Why an incident whose call surely did not run waits.
const REFUSED: &[Reason] = &[Reason::BackingOff, Reason::AgentCallFailed, Reason::CircuitOpen];
/// Why one waits whose call nobody knows the end of.
const DOUBTFUL: &[Reason] =
    &[Reason::CheckingSession, Reason::BackingOff, Reason::AgentCallFailed, Reason::CircuitOpen];

#[tokio::test]
async fn sessions_refused_twice_are_asked_for_again() -> Result<()> {
    let case = Case::of("session-503", Behaviour::default().on_session(Fault::status(503).times(2))).await?;
    let entry = case.answered().await?;
    ensure!(entry.attempts == 3, "{entry:?}");
    ensure!(case.sessions() == 3, "{} sessions", case.sessions());
    ensure!(case.lookups(&entry) == 0, "nothing was sent: there is nothing to look up");
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn sessions_refused_are_waited_for_in_sight() -> Result<()> {
    let case = Case::of("session-down", Behaviour::default().on_session(Fault::status(503))).await?;
    let entry = case.waits(&[Reason::AgentCallFailed], "503").await?;
    ensure!(entry.attempts == 3 && entry.message.contains("503"), "{entry:?}");
    case.heal();
    case.answered().await?;
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn an_error_500_is_looked_into_before_the_message_is_sent_again() -> Result<()> {
    let case = Case::of("send-500", Behaviour::default().on_send(Fault::status(500))).await?;
    case.waits(DOUBTFUL, "500").await?;
    let entry = case.waits(REFUSED, "500").await?;
    ensure!(case.lookups(&entry) >= 1, "it was given up without a look");
    case.heal();
    let entry = case.answered().await?;
    ensure!(case.lookups(&entry) >= case.messages().len() - 1, "a look for each doubtful send");
    case.ensure_sent(2..)
}

#[tokio::test]
async fn an_agent_that_is_down_behind_kagent_is_asked_when_it_is_up() -> Result<()> {
    let case = Case::of("agent-down", Behaviour::default().on_send(Fault::agent_down())).await?;
    case.waits(REFUSED, "EOF").await?;
    case.heal();
    case.answered().await?;
    case.ensure_sent(2..)
}

/// Faults after the message was read and the run begun: it is found, and not sent again.
async fn found_after(name: &str, fault: Fault) -> Result<()> {
    let case = Case::of(name, Behaviour::default().on_send(fault.runs())).await?;
    let entry = case.answered().await.with_context(|| name.to_owned())?;
    ensure!(entry.task_id == case.messages()[0].task, "{entry:?}");
    ensure!(case.lookups(&entry) >= 1, "{name}: nobody looked");
    case.ensure_sent(1..=1).with_context(|| name.to_owned())
}

#[tokio::test]
async fn whatever_breaks_after_the_run_began_the_run_is_found_and_there_is_no_second() -> Result<()> {
    tokio::try_join!(
        found_after("ran-500", Fault::status(500)),
        found_after("ran-503", Fault::status(503)),
        found_after("ran-408", Fault::status(408)),
        found_after("ran-rpc", Fault::agent_down()),
        found_after("ran-reset", Fault::reset()),
        found_after("ran-close", Fault::close()),
        found_after("ran-garbage", Fault::garbage()),
        found_after("ran-empty", Fault::empty()),
        found_after("ran-hang", Fault::hang()),
    )?;
    Ok(())
}

/// Faults after the message was read, without a run: it is surely not there, and sent again.
async fn sent_again_after(name: &str, fault: Fault) -> Result<()> {
    let case = Case::of(name, Behaviour::default().on_send(fault.times(1))).await?;
    let entry = case.answered().await.with_context(|| name.to_owned())?;
    ensure!(case.lookups(&entry) >= 1, "{name}: it was sent again without a look");
    case.ensure_sent(2..=2).with_context(|| name.to_owned())
}

#[tokio::test]
async fn whatever_breaks_before_the_run_began_the_message_is_sent_again_after_a_look() -> Result<()> {
    tokio::try_join!(
        sent_again_after("lost-reset", Fault::reset()),
        sent_again_after("lost-close", Fault::close()),
        sent_again_after("lost-garbage", Fault::garbage()),
        sent_again_after("lost-empty", Fault::empty()),
        sent_again_after("lost-hang", Fault::hang()),
    )?;
    Ok(())
}

#[tokio::test]
async fn a_session_that_hangs_is_given_up_and_asked_for_again() -> Result<()> {
    let case = Case::of("session-hang", Behaviour::default().on_session(Fault::hang())).await?;
    case.waits(REFUSED, "no answer within").await?;
    case.heal();
    case.answered().await?;
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn an_answer_of_100_mb_costs_no_memory_and_its_run_is_found() -> Result<()> {
    let stage = shared().await?;
    let before = stage.operator.memory_bytes()?;
    let peak = AtomicU64::new(0);
    let watched = throughout("a look at the memory", Duration::from_secs(5), async || {
        peak.fetch_max(stage.operator.memory_bytes()?, Ordering::Relaxed);
        Ok(())
    });
    let huge = || Fault::huge(100 << 20);
    tokio::try_join!(watched, found_after("huge", huge()), found_after("huge-too", huge()))?;
    let grown = peak.into_inner().saturating_sub(before) >> 20;
    ensure!(grown < 40, "grown by {grown} MiB");
    Ok(())
}

#[tokio::test]
async fn a_lookup_that_fails_is_no_licence_to_send_again() -> Result<()> {
    let doubtful = Behaviour::default().on_send(Fault::reset().runs()).on_lookup(Fault::status(503));
    let case = Case::of("blind", doubtful).await?;
    let entry = case.waits(&[Reason::CheckingSession], "503").await?;
    ensure!(entry.status == Phase::Firing, "{entry:?}");
    throughout("no second send", Duration::from_secs(3), async || case.ensure_sent(1..=1)).await?;
    ensure!(case.lookups(&entry) > 1, "it looks again");
    case.heal();
    let entry = case.answered().await?;
    ensure!(entry.attempts == 1, "{entry:?}");
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn where_nothing_can_be_looked_up_a_doubtful_message_is_sent_once_more_and_no_more() -> Result<()> {
    let doubtful = Behaviour::default().on_send(Fault::reset()).on_lookup(Fault::status(501));
    let case = Case::of("no-lookup", doubtful).await?;
    let entry = case.wait("to be given up", |entry| entry.status == Phase::Notified).await?;
    ensure!(entry.outcome == Some(EndState::OutcomeUnknown) && entry.resent, "{entry:?}");
    ensure!(entry.last_error.is_some(), "{entry:?}");
    throughout("two sends", Duration::from_secs(3), async || {
        ensure!(case.messages().len() == 2, "{} were sent", case.messages().len());
        Ok(())
    })
    .await
}

/// Holds each attempt against the Retry-After of the one before.
fn ensure_patient(times: &[chrono::DateTime<chrono::Utc>], retry_after: i64) -> Result<()> {
    for pair in times.windows(2) {
        let waited = pair[1] - pair[0];
        ensure!(
            waited >= chrono::TimeDelta::seconds(retry_after),
            "after {waited} instead of {retry_after} s"
        );
    }
    Ok(())
}

#[tokio::test]
async fn retry_after_is_honoured_for_messages() -> Result<()> {
    let busy = Fault::status(429).header("Retry-After", "2").times(2);
    let case = Case::of("busy", Behaviour::default().on_send(busy)).await?;
    let entry = case.waits(&[Reason::BackingOff], "429").await?;
    let next = entry.next_attempt_at.context("a time of the next attempt")?;
    let first = case.messages()[0].at;
    ensure!(next >= first + chrono::TimeDelta::seconds(2), "{entry:?}");
    case.answered().await?;
    let times: Vec<_> = case.messages().iter().map(|message| message.at).collect();
    ensure_patient(&times, 2)?;
    case.ensure_sent(3..=3)
}

#[tokio::test]
async fn retry_after_is_honoured_for_sessions_and_also_beyond_a_round() -> Result<()> {
    // Longer than the wait for the next round.
    let busy = Fault::status(429).header("Retry-After", "6").times(1);
    let behaviour = Behaviour::default().on_session(Fault::status(503).times(2));
    let case = Case::of("busy-session", behaviour).await?;
    eventually("two refusals", PATIENCE, async || {
        ensure!(case.sessions() >= 2, "{} sessions", case.sessions());
        Ok(())
    })
    .await?;
    // The third failure of the round.
    case.stage.agent.set_for(&case.agent, Behaviour::default().on_session(busy));
    let entry = case.waits(REFUSED, "429").await?;
    let said = entry.next_attempt_at.context("a time of the next attempt")?;
    case.answered().await?;
    let calls = case.stage.agent.sessions();
    let times: Vec<_> = calls.iter().filter(|call| call.agent == case.agent).map(|call| call.at).collect();
    ensure!(times.len() == 4, "{times:?}");
    ensure_patient(&times[2..], 6)?;
    ensure!(times[3] >= said, "the status said {said}, it was {}", times[3]);
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn how_a_task_ends_is_in_the_status() -> Result<()> {
    let ends = [
        (
            "failed",
            End::Failed("the model is overloaded".into()),
            EndState::Failed,
            Some("the model is overloaded"),
        ),
        (
            "asks",
            End::InputRequired("may I restart it?".into()),
            EndState::InputRequired,
            Some("may I restart it?"),
        ),
        ("endless", End::Never, EndState::DeadlineExceeded, None),
    ];
    let cases = ends.map(async |(name, end, outcome, words)| {
        let case = Case::of(name, Behaviour::default().ends(end)).await?;
        let entry = case.answered().await.with_context(|| name.to_owned())?;
        ensure!(entry.outcome == Some(outcome), "{entry:?}");
        let said = entry.answer.as_deref();
        ensure!(
            said.is_some_and(|said| words.is_some_and(|words| said.contains(words))) || said == words,
            "{entry:?}"
        );
        case.ensure_sent(1..=1)
    });
    futures::future::try_join_all(cases).await.map(drop)
}

#[tokio::test]
async fn an_agent_that_answers_with_a_message_has_answered_and_is_not_followed() -> Result<()> {
    let case =
        Case::of("message", Behaviour::default().replies_with_message().answers(|_| "all is well".into()))
            .await?;
    let entry = case.answered().await?;
    ensure!(entry.outcome == Some(EndState::Completed), "{entry:?}");
    ensure!(entry.answer.as_deref() == Some("all is well") && entry.task_id.is_none(), "{entry:?}");
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn a_task_that_nobody_knows_any_more_is_lost_and_not_asked_for_again() -> Result<()> {
    // kagent does not serve tasks, and the agent has forgotten this one.
    let forgetful = Behaviour::default()
        .held()
        .on_lookup(Fault::status(501))
        .on_get(Fault::rpc(-32001, "task not found"));
    let case = Case::of("lost", forgetful).await?;
    let entry = case.answered().await?;
    ensure!(entry.outcome == Some(EndState::Lost) && entry.answer.is_none(), "{entry:?}");
    case.ensure_sent(1..=1)
}

#[tokio::test]
async fn a_task_that_cannot_be_looked_at_for_a_while_is_followed_to_its_end() -> Result<()> {
    let silent = Behaviour::default().on_lookup(Fault::status(503).times(2));
    let case = Case::of("silent", silent).await?;
    let entry = case.answered().await?;
    ensure!(entry.outcome == Some(EndState::Completed), "{entry:?}");
    case.ensure_sent(1..=1)
}

fn entries(status: &HookStatus, reason: Reason) -> impl Iterator<Item = &ActiveEvent> {
    status
        .active_events
        .iter()
        .filter(move |entry| entry.status == Phase::Pending && entry.reason == Some(reason))
}

#[tokio::test]
async fn kagent_down_for_a_moment_costs_no_incident_and_is_seen_in_the_status() -> Result<()> {
    let world = World::alone("down").await?;
    let operator = world.operator().await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.agent.stop().await;
    for pod in 0..3 {
        world.crash(&format!("web-{pod}")).await?;
    }
    world
        .wait_until("shop", "all wait, saying why", |status| {
            let told = |entry: &&ActiveEvent| {
                entry.status == Phase::Pending
                    && entry.last_error.as_deref().is_some_and(|error| error.contains("Connection refused"))
            };
            (status.active_events.iter().filter(told).count() == 3).then_some(())
        })
        .await?;
    let reachable = |status: &HookStatus| {
        status
            .conditions
            .iter()
            .find(|c| c.type_ == "AgentReachable")
            .map(|c| (c.status.clone(), c.message.clone()))
    };
    let (answer, why) = reachable(&world.status("shop").await?).context("the condition")?;
    ensure!(answer == "False" && why.contains("Connection refused"), "{answer}: {why}");
    world.agent.start().await?;
    for pod in 0..3 {
        world.wait_answered("shop", &format!("web-{pod}")).await?;
    }
    world
        .wait_until("shop", "the agent to be reachable again", |status| {
            reachable(status).filter(|(answer, _)| answer == "True")
        })
        .await?;
    ensure!(
        operator.healthy().await.is_ok() && operator.ready().await.is_ok(),
        "an agent that is away is no illness"
    );
    world.ensure_each_once(3)
}

#[tokio::test]
async fn an_outage_longer_than_three_rounds_costs_no_incident() -> Result<()> {
    let world = World::alone("outage").await?;
    let setup = world.setup()?.env("ROUND_INTERVAL", "1s").env("BREAKER_MAX", "1s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.agent.stop().await;
    world.crash("web-0").await?;
    let entry = world
        .wait_until("shop", "three rounds to be over", |status| {
            status.active_events.iter().find(|entry| entry.attempts > 9).cloned()
        })
        .await?;
    ensure!(
        entry.last_error.as_deref().is_some_and(|error| error.contains("Connection refused")),
        "{entry:?}"
    );
    let opened =
        operator.metric("khook_incident_transitions_total", &[("reason", "AgentCallFailed")]).await?;
    ensure!(opened >= 3.0, "{opened} rounds failed");
    world.agent.start().await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn when_an_open_breaker_closes_all_that_waited_is_delivered_whatever_its_hook_or_round() -> Result<()> {
    let world = World::alone("breaker").await?;
    // Nobody is called because a round has come: only because the agent is back.
    let setup = world.setup()?.env("ROUND_INTERVAL", "10m").env("DELIVERY_TIMEOUT", "1h");
    let setup = setup.env("REPEAT_INTERVAL", "10m").env("RESOLVE_TIMEOUT", "10m");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.hook("till", &["oom-kill"]).await?;
    world.hook("idle", &["probe-failed"]).await?;
    // A probe that failed before its Hook was heard of says nothing of a pod that is not there.
    world.wait_until("idle", "it is heard of", |status| status.observed_generation).await?;
    let probe = Event::kubelet("Unhealthy", "Liveness probe failed: HTTP 500").pod(&world.namespace, "api-0");
    let mut probe = probe.post(&world.client).await?;
    world.wait_answered("idle", "api-0").await?;
    world.agent.stop().await;
    // This one has used up its round before the breaker opens.
    let oom = Event::kubelet("OOMKilling", "Memory cgroup out of memory").pod(&world.namespace, "db-0");
    oom.post(&world.client).await?;
    world
        .wait_until("till", "its round to be over", |status| {
            entries(status, Reason::AgentCallFailed).next().map(|entry| entry.last_error.clone())
        })
        .await?;
    for pod in 0..6 {
        world.crash(&format!("web-{pod}")).await?;
    }
    let status = world
        .wait_until("shop", "the breaker to be open for some", |status| {
            (status.pending == Some(6) && entries(status, Reason::CircuitOpen).count() > 2)
                .then(|| status.clone())
        })
        .await?;
    let told = status.conditions.iter().find(|c| c.type_ == "AgentReachable").context("the condition")?;
    ensure!(told.status == "False" && told.message.contains("Connection refused"), "{told:?}");
    // A Hook that waits for nothing says so too when it is looked at.
    probe.repeat(&world.client).await?;
    let reachable = |status: &HookStatus, answer: &str| {
        let condition = status.conditions.iter().find(|c| c.type_ == "AgentReachable");
        condition.is_some_and(|condition| condition.status == answer).then_some(())
    };
    world.wait_until("idle", "AgentReachable to be False", |status| reachable(status, "False")).await?;
    ensure!(operator.metric("khook_breaker_state", &[]).await? > 0.0, "the breaker is closed");
    // Waiting costs nothing: a look when the next probe is due, not more.
    let before = operator.metric("khook_reconcile_duration_seconds_count", &[]).await?;
    throughout("the outage", Duration::from_secs(2), async || {
        ensure!(world.agent.messages().len() == 1, "a message came through");
        Ok(())
    })
    .await?;
    let reconciles = operator.metric("khook_reconcile_duration_seconds_count", &[]).await? - before;
    ensure!(reconciles < 60.0, "{reconciles} reconciles in two seconds");

    world.agent.start().await?;
    for pod in 0..6 {
        world.wait_answered("shop", &format!("web-{pod}")).await?;
    }
    world.wait_answered("till", "db-0").await?;
    ensure!(operator.metric("khook_breaker_state", &[]).await? == 0.0, "the breaker is not closed");
    for hook in ["shop", "till"] {
        world.wait_until(hook, "AgentReachable to be True", |status| reachable(status, "True")).await?;
    }
    // This one hears that the outage is over, and has not called since.
    world.wait_until("idle", "AgentReachable to be Unknown", |status| reachable(status, "Unknown")).await?;
    world.ensure_each_once(8)
}
