//! The lifecycle of one incident: what every input does in every phase.
//!
//! | phase | input | next |
//! |---|---|---|
//! | (none) | fresh occurrence, condition that holds | pending |
//! | pending | granted a slot | firing, claimed |
//! | pending | clear or gone while it held back; not delivered in time; configuration removed | resolved |
//! | firing | accepted, or found in its session | notified |
//! | firing | not run, absent from its session, permanent | pending, timed |
//! | firing | unknown, orphaned | firing, looking the session up |
//! | notified | occurrence after the window; owed and still there at its end | pending, next window |
//! | notified | clear for long enough, gone, quiet, configuration removed | resolved |
//! | resolved | occurrence or condition inside the window | notified, reopened and owed |
//! | resolved | later, within retention | pending, same session, next window |
//! | resolved | later still, or never notified | pending, a new episode |
//! | resolved, farewell due | granted a slot | resolved, farewell claimed |
//! | any | a person says retry, ack, snooze or resolve | pending, as it was, as it was, resolved |
//! | pending, due | the Hook observes | notified, nobody called |
//!
//! Whatever is not in the table leaves the phase as it is. `docs/state-machine.md` has every cell; a test
//! prints it from this code.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, TimeDelta, Utc};

use super::{
    key::Key,
    outcome::{AgentName, EndState, Ended, Lookup, Reply, Usage},
    policy::Policy,
    prompt,
    rules::Rule,
    signal::{self, Cause, Nature, Occurrence, Signal},
};
use crate::{
    hook::{
        ActiveEvent, Claim, EventType, Farewell, FarewellState, Instruction, Phase, Reason, Standing,
        StandingState, Told, Verb,
    },
    sabotage::{Safeguard, without},
};

/// All a step may look at besides the incident and the input.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The time of this step.
    pub now: DateTime<Utc>,
    /// Spans and bounds.
    pub policy: &'a Policy,
    /// The Hook's rule for this incident; none once it was removed from the spec.
    pub rule: Option<&'a Rule>,
    /// UID of the Hook: part of every id.
    pub hook_uid: &'a str,
    /// Whether agents may not be called at present.
    pub suspended: bool,
    /// Whether calls are only recorded.
    pub observes: bool,
}

/// Something that can befall an incident.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A source says that something happened.
    Occurred(&'a Signal, &'a Occurrence),
    /// A source says that the trouble holds.
    Holds(&'a Signal, DateTime<Utc>),
    /// A source says that the trouble is not there, since then.
    Clear(DateTime<Utc>),
    /// A source says that the pod is not there, since then.
    Gone(DateTime<Utc>),
    /// The call of this claim ended.
    Called(&'a Claim, &'a Reply),
    /// The call of this claim, which tells that the incident is resolved, ended.
    FarewellCalled(&'a Claim, &'a Reply),
    /// The session was looked up under this claim.
    LookedUp(&'a Claim, &'a Lookup),
    /// The agent's task ended.
    TaskEnded(&'a str, &'a Ended),
    /// Nobody works on the claim any more; this one takes it over.
    Orphaned(Claim),
    /// The spec does not ask that agent about that any more.
    Removed,
    /// There is a slot, and the breaker allows it: call under this claim.
    Granted(Claim),
    /// The agent would be called now, but the Hook observes.
    Observed,
    /// The Hook observes no more.
    Activated,
    /// A person says what to do.
    Instructed(&'a Instruction),
    /// Time has passed.
    Time,
}

/// What a step asks to be told, beside the incident itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Told once each, in this order, after the write that contains them has committed.
    pub notices: Vec<Notice>,
    /// Occurrences without effect, counted by why.
    pub suppressed: Vec<Suppressed>,
}

/// One transition, or the agent's answer: a line in the log and, for most, an Event on the Hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What is told.
    pub kind: NoticeKind,
    /// The incident as it stands after the step.
    pub entry: ActiveEvent,
    /// The sentence.
    pub note: String,
    /// What the agent's answer has cost, where it tells.
    pub usage: Option<Usage>,
}

/// The kinds of notices. The names of those that become Events are the Go khook's where it had them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// The incident waits for its call.
    EventPending,
    /// The agent is being called.
    EventFiring,
    /// The agent has the message.
    AgentCallSuccess,
    /// A call failed; it is tried again.
    AgentCallFailure,
    /// Nobody knows whether a message arrived.
    AgentCallUnknown,
    /// The agent's task ended.
    AgentAnswered,
    /// The trouble came back inside its window.
    EventReopened,
    /// The incident is over.
    EventResolved,
    /// The incident was given up: the agent could not be reached.
    EventNotDelivered,
    /// The agent has been told that the incident is resolved.
    ResolutionTold,
    /// It has not, or nobody knows, and it is not tried again.
    ResolutionNotTold,
    /// The agent would have been called, but the Hook observes.
    AgentCallObserved,
    /// A person said what to do, and it is done.
    IncidentInstructed,
}

/// Why an occurrence had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suppressed {
    /// It was folded in before.
    Duplicate,
    /// It was too old when khook first saw it.
    Stale,
    /// The agent was asked too short a time ago.
    Window,
}

/// The first row of the table: a signal without an incident. None where it opens nothing.
pub fn open(signal: &Signal, key: &Key, scene: &Scene) -> Result<Option<ActiveEvent>, Suppressed> {
    let mut seen = Vec::new();
    let (count, condition) = match &signal.nature {
        Nature::Occurrence(_) if signal.is_stale(scene.policy) => return Err(Suppressed::Stale),
        Nature::Occurrence(occurrence) => (signal::fold(&mut seen, occurrence).unwrap_or(1), None),
        Nature::Condition { state: StandingState::Holds, since } => {
            (1, Some(Standing { state: StandingState::Holds, since: *since }))
        }
        Nature::Condition { .. } | Nature::Unclear => return Ok(None),
    };
    // The ids of an episode come from its beginning, and none may be used twice: an occurrence is folded in
    // once, but a condition is told for as long as it holds, also after its last incident was forgotten.
    let first_seen = match &signal.nature {
        Nature::Occurrence(occurrence) => occurrence.at.min(scene.now),
        Nature::Condition { .. } | Nature::Unclear => scene.now,
    };
    let mut entry = ActiveEvent {
        id: key.entry_id(scene.hook_uid),
        event_type: key.event_type,
        resource_name: key.pod.clone(),
        namespace: key.namespace.clone(),
        containers: signal.container.iter().cloned().collect(),
        uid: signal.uid.clone(),
        agent: key.agent.clone(),
        status: Phase::Pending,
        reason: None,
        message: String::new(),
        first_seen,
        last_seen: first_seen,
        count,
        window: 1,
        attempts: 0,
        claim: None,
        session_id: Some(key.session_id(scene.hook_uid, first_seen)),
        task_id: None,
        notified_at: None,
        last_notified_at: None,
        due_at: None,
        next_attempt_at: None,
        resolved_at: None,
        last_error: None,
        answer: None,
        outcome: None,
        session_url: None,
        protocol: None,
        tokens: None,
        event_name: String::new(),
        event_reason: String::new(),
        event_message: String::new(),
        condition,
        owed: false,
        resent: false,
        seen,
        told: None,
        farewell: None,
        answered_at: None,
        instruction: None,
        observed: false,
        test: key.test.clone(),
    };
    quote(&mut entry, signal);
    hold_back(&mut entry, signal, scene);
    Ok(Some(entry))
}

/// One step of one incident. Total: every input is answered in every phase.
pub fn step(entry: &mut ActiveEvent, input: &Input, scene: &Scene, effects: &mut Effects) {
    match input {
        Input::Occurred(signal, occurrence) => occurred(entry, signal, occurrence, scene, effects),
        Input::Holds(signal, since) => holds(entry, signal, *since, scene, effects),
        Input::Clear(since) => clear(entry, StandingState::Clear, *since, scene, effects),
        Input::Gone(since) => clear(entry, StandingState::Gone, *since, scene, effects),
        Input::Called(claim, reply) => called(entry, claim, reply, scene, effects),
        Input::FarewellCalled(claim, reply) => farewell_called(entry, claim, reply, scene, effects),
        Input::LookedUp(claim, lookup) => looked_up(entry, claim, lookup, scene, effects),
        Input::TaskEnded(task_id, ended) => task_ended(entry, task_id, ended, scene, effects),
        Input::Orphaned(claim) => match entry.status {
            Phase::Firing => {
                // The message may have been sent until the claim ended, and needs its time to arrive.
                let sent = entry.claim.as_ref().map_or(scene.now, |old| old.at + old.duration());
                let arrived = sent + scene.policy.lookup_grace;
                entry.claim = Some(claim.clone());
                entry.next_attempt_at = Some(arrived.clamp(scene.now, scene.now + scene.policy.lookup_grace));
                because(
                    entry,
                    Reason::CheckingSession,
                    "whoever called the agent is gone: looking the session up",
                );
            }
            Phase::Pending | Phase::Notified | Phase::Resolved => {}
        },
        Input::Removed => match entry.status {
            Phase::Pending | Phase::Notified => {
                let why = "the Hook does not ask this agent about this any more";
                resolve(entry, Reason::ConfigurationRemoved, why, scene, effects);
            }
            // The outcome is awaited; then this comes again.
            Phase::Firing => {}
            Phase::Resolved => {}
        },
        Input::Granted(claim) => match entry.status {
            // Whoever grants has asked `is_due`; what must never be called is not called even so.
            _ if scene.suspended || scene.rule.is_none() => {}
            Phase::Pending => fire(entry, claim, effects),
            Phase::Resolved => call_farewell(entry, claim),
            Phase::Firing | Phase::Notified => {}
        },
        Input::Observed => match entry.status {
            _ if scene.suspended || scene.rule.is_none() || !scene.observes => {}
            Phase::Pending => observe(entry, scene, effects),
            Phase::Firing | Phase::Notified | Phase::Resolved => {}
        },
        Input::Activated => activate(entry, scene, effects),
        Input::Instructed(instruction) => instructed(entry, instruction, scene, effects),
        Input::Time => time(entry, scene, effects),
    }
}

/// Until when trouble without an incident is too young for one, by `unseen_share`; none where it is old
/// enough.
pub fn young_until(signal: &Signal, scene: &Scene) -> Option<DateTime<Utc>> {
    let Nature::Condition { state: StandingState::Holds, since } = signal.nature else { return None };
    let until = since.min(scene.now) + hold_of(signal, scene).mul_f64(scene.policy.unseen_share);
    (until > scene.now).then_some(until)
}

/// Whether a pending incident may be called now, if there is a slot and the breaker allows it.
/// `closed_at` is when the agent's breaker last closed: it begins the next round at once.
pub fn is_due(entry: &ActiveEvent, closed_at: Option<DateTime<Utc>>, scene: &Scene) -> bool {
    if entry.status != Phase::Pending || scene.suspended || scene.rule.is_none() {
        return false;
    }
    if rests_until(entry, scene).is_some() || is_mute(entry, scene.now) {
        return false;
    }
    let Some(next) = entry.next_attempt_at else { return true };
    if waits_for_agent(entry) {
        // The breaker decides, and it may have closed earlier than it said; or what was missing may be there.
        return true;
    }
    let failed_at = next - TimeDelta::from_std(scene.policy.round_interval).unwrap_or_default();
    next <= scene.now
        || entry.reason == Some(Reason::AgentCallFailed) && closed_at.is_some_and(|closed| closed > failed_at)
}

/// Whether the agent may be told now that the incident is resolved, if there is a slot and the breaker allows it.
pub fn is_farewell_due(entry: &ActiveEvent, scene: &Scene) -> bool {
    farewell_is(entry, FarewellState::Due)
        && wants_farewell(scene)
        && entry.next_attempt_at.is_none_or(|at| at <= scene.now)
}

/// Whether a resolved incident's farewell is in this state.
pub fn farewell_is(entry: &ActiveEvent, state: FarewellState) -> bool {
    entry.status == Phase::Resolved && entry.farewell.as_ref().is_some_and(|farewell| farewell.state == state)
}

/// When time alone changes this incident next; none if only news can.
pub fn wake(entry: &ActiveEvent, scene: &Scene) -> Option<DateTime<Utc>> {
    let given_up = entry.due_at.map(|due| due + scene.policy.delivery_timeout);
    let (one, other) = match entry.status {
        Phase::Pending if scene.suspended || is_mute(entry, scene.now) => {
            let silent = entry.instruction.as_ref().and_then(|instruction| instruction.until);
            (
                silent.filter(|_| !scene.suspended),
                (!still_holds(entry)).then(|| entry.last_seen + scene.policy.stale_after + TICK),
            )
        }
        Phase::Pending => (entry.next_attempt_at, rests_until(entry, scene).or(given_up)),
        Phase::Firing if entry.reason == Some(Reason::CheckingSession) => {
            (entry.next_attempt_at, lookups_end(entry, scene))
        }
        Phase::Firing => (None, None),
        Phase::Notified => {
            let end = match &entry.condition {
                Some(Standing { state: StandingState::Holds, .. }) => None,
                Some(Standing { state: StandingState::Clear, since }) => {
                    Some(*since + clear_hold(entry, scene))
                }
                Some(Standing { state: StandingState::Gone, .. }) => Some(scene.now + TICK),
                None => Some(quiet_end(entry, scene)),
            };
            let may_repeat =
                entry.owed && !is_acknowledged(entry) && (entry.condition.is_none() || still_holds(entry));
            (end, may_repeat.then(|| window_end(entry, scene)))
        }
        Phase::Resolved if farewell_is(entry, FarewellState::Due) => {
            (entry.next_attempt_at, entry.resolved_at.map(|at| at + scene.policy.delivery_timeout))
        }
        Phase::Resolved if farewell_is(entry, FarewellState::Calling) => (farewell_end(entry, scene), None),
        Phase::Resolved => (None, None),
    };
    // What lies behind us has had its effect, or waits for something other than time.
    one.into_iter().chain(other).filter(|at| *at > scene.now).min()
}

// Times are kept in milliseconds: the smallest step after a moment.
const TICK: Duration = Duration::from_millis(1);

// More containers of one pod than these are not listed.
const MAX_CONTAINERS: usize = 16;

/// What is longer is no task id, and has no place in a status.
pub(super) const MAX_TASK_ID: usize = 128;

fn occurred(
    entry: &mut ActiveEvent,
    signal: &Signal,
    occurrence: &Occurrence,
    scene: &Scene,
    effects: &mut Effects,
) {
    if signal.is_stale(scene.policy) {
        return effects.suppressed.push(Suppressed::Stale);
    }
    let Some(times) = signal::fold(&mut entry.seen, occurrence) else {
        return effects.suppressed.push(Suppressed::Duplicate);
    };
    let at = occurrence.at.min(scene.now);
    if at >= entry.last_seen {
        quote(entry, signal);
    }
    entry.last_seen = entry.last_seen.max(at);
    entry.count = entry.count.saturating_add(times);
    include_container(entry, signal);
    let restarted_by_probe = signal.event_type == EventType::ProbeFailed && signal.cause == Cause::Restart;
    if is_of_another_pod(entry, signal) || restarted_by_probe && still_holds(entry) {
        // What was known of the old pod's state says nothing of the new one. And what the old container's
        // probe had to say is over with it: that the new one runs does not undo the restart.
        entry.condition = None;
    }
    if !signal.uid.is_empty() {
        entry.uid.clone_from(&signal.uid);
    }
    if let Some(Standing { state: StandingState::Clear, since }) = &entry.condition
        && *since < at
    {
        // It was clear before this; the pod will tell when it is so again.
        entry.condition = None;
    }
    match entry.status {
        Phase::Pending => hold_sooner(entry, signal, scene),
        Phase::Firing => effects.suppressed.push(Suppressed::Window),
        Phase::Notified if scene.now >= window_end(entry, scene) => repeat(entry, scene, effects),
        Phase::Notified => {
            // When the silence is over, what goes on is told.
            entry.owed |= silent_until(entry).is_some_and(|until| scene.now < until);
            effects.suppressed.push(Suppressed::Window);
        }
        Phase::Resolved => come_back(entry, signal, scene, effects),
    }
}

fn holds(
    entry: &mut ActiveEvent,
    signal: &Signal,
    since: DateTime<Utc>,
    scene: &Scene,
    effects: &mut Effects,
) {
    include_container(entry, signal);
    let held_before = still_holds(entry) && !is_of_another_pod(entry, signal);
    if !signal.uid.is_empty() {
        entry.uid.clone_from(&signal.uid);
    }
    if !held_before {
        entry.condition = Some(Standing { state: StandingState::Holds, since: since.min(scene.now) });
    }
    match entry.status {
        Phase::Pending => {
            // An Event may have found better words meanwhile.
            if !signal.message.is_empty() {
                quote(entry, signal);
            }
            hold_sooner(entry, signal, scene);
        }
        // A condition that merely still holds keeps the incident from resolving. It is not news: a call
        // costs money.
        Phase::Firing | Phase::Notified => {}
        // A person has said that it is over, and it is as it was then.
        Phase::Resolved if held_before && is_dismissed(entry) => {}
        Phase::Resolved => {
            entry.last_seen = entry.last_seen.max(scene.now);
            quote(entry, signal);
            come_back(entry, signal, scene, effects);
        }
    }
}

fn clear(
    entry: &mut ActiveEvent,
    state: StandingState,
    since: DateTime<Utc>,
    scene: &Scene,
    effects: &mut Effects,
) {
    let held_before = still_holds(entry);
    let since = since.min(scene.now);
    match &mut entry.condition {
        // Clear anew, after trouble that came and went unseen: what counts is since when it is clear now.
        Some(standing) if standing.state == state => standing.since = standing.since.max(since),
        other => *other = Some(Standing { state, since }),
    }
    match entry.status {
        Phase::Pending => {
            // What happened is still told, late; what merely was so, or did not last, is over. While the Hook
            // is suspended only what is still true is kept. A container that runs again may be between two
            // crashes: that is over once it has run for as long as it must crash.
            let rests = state == StandingState::Clear && rests_until(entry, scene).is_some();
            if is_held(entry) && !rests || held_before && !has_happened(entry) {
                let (reason, why) = match state {
                    StandingState::Gone => (Reason::PodGone, "the pod is gone, nobody was called"),
                    StandingState::Clear | StandingState::Holds => {
                        (Reason::RecoveredBeforeCall, "the trouble was over before the agent was called")
                    }
                };
                resolve(entry, reason, why, scene, effects);
            }
        }
        Phase::Firing => {}
        Phase::Notified => time(entry, scene, effects),
        Phase::Resolved => {}
    }
}

fn called(entry: &mut ActiveEvent, claim: &Claim, reply: &Reply, scene: &Scene, effects: &mut Effects) {
    if let Reply::Accepted { task_id, ended, protocol } = reply {
        entry.protocol = protocol.or(entry.protocol);
        return accepted(entry, claim, task_id.as_deref(), ended.as_ref(), scene, effects);
    }
    let calling = entry.status == Phase::Firing && entry.reason != Some(Reason::CheckingSession);
    if !calling || entry.claim.as_ref() != Some(claim) {
        // An old claim's failure: whoever took over finds out by itself. And once the outcome is in doubt only
        // a lookup ends the doubt.
        return;
    }
    match reply {
        Reply::Accepted { .. } => {}
        Reply::NotRun { error, retry_after, .. } => not_run(entry, error, *retry_after, scene, effects),
        Reply::Permanent { error } => round_failed(entry, error, Duration::ZERO, scene, effects),
        Reply::Unknown { error } if without(Safeguard::Lookup) => not_run(entry, error, None, scene, effects),
        Reply::Unknown { error } => {
            entry.next_attempt_at = Some(scene.now + scene.policy.lookup_grace);
            entry.last_error = Some(excerpt(error));
            because(
                entry,
                Reason::CheckingSession,
                "whether the message arrived is not known: looking the session up",
            );
            let note = format!("{}: {}", entry.message, excerpt_of(error, 200));
            effects.tell(NoticeKind::AgentCallUnknown, entry, note);
        }
    }
}

fn looked_up(entry: &mut ActiveEvent, claim: &Claim, lookup: &Lookup, scene: &Scene, effects: &mut Effects) {
    if let Lookup::Found { task_id, ended } = lookup {
        return accepted(entry, claim, Some(task_id), ended.as_ref(), scene, effects);
    }
    let checking = entry.status == Phase::Firing && entry.reason == Some(Reason::CheckingSession);
    if !checking || entry.claim.as_ref() != Some(claim) {
        return;
    }
    match lookup {
        Lookup::Found { .. } => {}
        Lookup::Absent => {
            let error = entry.last_error.clone().unwrap_or_else(|| "whoever called the agent is gone".into());
            not_run(entry, &error, None, scene, effects);
        }
        Lookup::Unavailable { error } => {
            // Waits half as long again each time: by the age of the claim, which no lookup changes.
            let age = (scene.now - claim.at).to_std().unwrap_or_default();
            let wait = (age / 2).clamp(scene.policy.retry_base, scene.policy.retry_max);
            entry.next_attempt_at = Some(scene.now + whole_millis(wait));
            entry.last_error = Some(excerpt(error));
            because(entry, Reason::CheckingSession, "the session cannot be looked up: trying again");
        }
        Lookup::Unsupported { error } if entry.resent => {
            // A second send nobody can tell the outcome of: no third.
            entry.last_error = Some(excerpt(&and_no_lookup(entry, error)));
            outcome_unknown(entry, scene, effects);
        }
        Lookup::Unsupported { error } => {
            entry.resent = true;
            let error = and_no_lookup(entry, error);
            not_run(entry, &error, None, scene, effects);
        }
    }
}

// Why it was in doubt, and why the doubt stays.
fn and_no_lookup(entry: &ActiveEvent, error: &str) -> String {
    match &entry.last_error {
        Some(cause) => format!("{}; {error}", excerpt_of(cause, 200)),
        None => error.to_owned(),
    }
}

fn accepted(
    entry: &mut ActiveEvent,
    claim: &Claim,
    task_id: Option<&str>,
    ended: Option<&Ended>,
    scene: &Scene,
    effects: &mut Effects,
) {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    let told = task_id;
    let task_id = task_id.filter(|id| id.len() <= MAX_TASK_ID && id.bytes().all(is_plain)).map(str::to_owned);
    let current = match entry.status {
        // An old claim of this very window counts too: the message is there, to send it again would be twice.
        Phase::Pending | Phase::Firing => {
            entry.claim.as_ref() == Some(claim) || entry.due_at.is_some_and(|due| due <= claim.at)
        }
        Phase::Notified | Phase::Resolved => false,
    };
    if !current {
        return keep_answer(entry, task_id, ended, scene, effects);
    }
    notify(entry, scene);
    entry.task_id = task_id;
    entry.last_error = None;
    entry.answer = None;
    entry.outcome = None;
    entry.answered_at = None;
    entry.session_url = session_url(entry, scene.policy);
    entry.owed = false;
    remember_told(entry);
    let again =
        if entry.window > 1 { format!(" again (notification {})", entry.window) } else { String::new() };
    because(entry, Reason::AgentCalled, &format!("{} has been asked{again}", entry.agent));
    effects.tell(NoticeKind::AgentCallSuccess, entry, entry.message.clone());
    if let Some(ended) = ended {
        answer(entry, ended, scene, effects);
    } else if entry.task_id.is_none() {
        // Nobody will hear how it ends.
        entry.outcome = Some(EndState::OutcomeUnknown);
        let why = if told.is_some() { "its task's id cannot be kept" } else { "it gave no task to follow" };
        entry.message = format!("{}; how it ends is not heard of: {why}", entry.message);
    }
}

// kagent's UI shows a session of one of its agents there.
fn session_url(entry: &ActiveEvent, policy: &Policy) -> Option<String> {
    let (base, session) = (policy.ui_url.as_ref()?, entry.session_id.as_ref()?);
    let agent: AgentName = entry.agent.parse().ok()?;
    Some(format!("{base}/agents/{agent}/chat/{session}"))
}

// News of a call that decides nothing any more: kept where nothing better is known.
fn keep_answer(
    entry: &mut ActiveEvent,
    task_id: Option<String>,
    ended: Option<&Ended>,
    scene: &Scene,
    effects: &mut Effects,
) {
    let known = entry.outcome.is_some_and(|outcome| outcome != EndState::OutcomeUnknown);
    if known || entry.task_id.is_some() {
        return;
    }
    if task_id.is_some() {
        entry.task_id = task_id;
        entry.answer = None;
        entry.outcome = None;
    }
    if let Some(ended) = ended {
        answer(entry, ended, scene, effects);
    }
}

fn task_ended(entry: &mut ActiveEvent, task_id: &str, ended: &Ended, scene: &Scene, effects: &mut Effects) {
    if entry.task_id.as_deref() != Some(task_id) || entry.outcome.is_some() {
        return;
    }
    answer(entry, ended, scene, effects);
}

fn answer(entry: &mut ActiveEvent, ended: &Ended, scene: &Scene, effects: &mut Effects) {
    let shown = scene.policy.show_answers && !ended.answer.is_empty();
    entry.answer = shown.then(|| excerpt(&prompt::visible(&ended.answer)));
    entry.outcome = Some(ended.state);
    entry.answered_at = Some(scene.now);
    if let Some(usage) = ended.usage {
        *entry.tokens.get_or_insert_default() += usage;
    }
    let said = match &entry.answer {
        Some(answer) => format!(": {answer}"),
        None if scene.policy.show_answers => ": (no words)".to_owned(),
        None => String::new(),
    };
    let note = match ended.state {
        EndState::Completed => format!("{} answered{said}", entry.agent),
        EndState::InputRequired => {
            format!("{} asks, and a person must answer in its session{said}", entry.agent)
        }
        EndState::DeadlineExceeded => {
            format!("{} did not finish in time; its outcome is unknown", entry.agent)
        }
        state => format!("{} ended its task as {state}{said}", entry.agent),
    };
    if entry.status == Phase::Notified {
        entry.message = excerpt_of(&note, 200);
    }
    effects.tell(NoticeKind::AgentAnswered, entry, note);
    if let Some(notice) = effects.notices.last_mut() {
        notice.usage = ended.usage;
    }
}

fn not_run(
    entry: &mut ActiveEvent,
    error: &str,
    retry_after: Option<Duration>,
    scene: &Scene,
    effects: &mut Effects,
) {
    let per_round = attempts_per_round(scene.policy);
    if without(Safeguard::Retry) {
        return resolve(entry, Reason::NotDelivered, error, scene, effects);
    }
    // Whatever a server asks for, an incident is given up at its time.
    let asked = retry_after.unwrap_or_default().min(scene.policy.delivery_timeout);
    if entry.attempts % per_round == 0 {
        return round_failed(entry, error, asked, scene, effects);
    }
    let wait = backoff(&entry.id, entry.attempts, per_round, scene.policy).max(asked);
    entry.status = Phase::Pending;
    entry.claim = None;
    entry.next_attempt_at = Some(scene.now + wait);
    entry.last_error = Some(excerpt(error));
    because(
        entry,
        Reason::BackingOff,
        &format!("attempt {} failed: {}", entry.attempts, excerpt_of(error, 200)),
    );
    effects.tell(NoticeKind::AgentCallFailure, entry, entry.message.clone());
}

fn round_failed(entry: &mut ActiveEvent, error: &str, asked: Duration, scene: &Scene, effects: &mut Effects) {
    entry.status = Phase::Pending;
    entry.claim = None;
    entry.next_attempt_at = Some(scene.now + scene.policy.round_interval.max(asked));
    entry.last_error = Some(excerpt(error));
    let message = format!(
        "{} could not be called in {} attempts: {}",
        entry.agent,
        entry.attempts,
        excerpt_of(error, 200)
    );
    because(entry, Reason::AgentCallFailed, &message);
    effects.tell(NoticeKind::AgentCallFailure, entry, message);
}

// Counts as asked from now on: its window begins.
fn notify(entry: &mut ActiveEvent, scene: &Scene) {
    entry.status = Phase::Notified;
    entry.claim = None;
    entry.next_attempt_at = None;
    entry.notified_at = entry.notified_at.or(Some(scene.now));
    entry.last_notified_at = Some(scene.now);
}

fn outcome_unknown(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    notify(entry, scene);
    entry.task_id = None;
    entry.answer = None;
    entry.answered_at = None;
    entry.outcome = Some(EndState::OutcomeUnknown);
    remember_told(entry);
    let message = format!("{} may have been asked; nobody can tell, and it is not asked again", entry.agent);
    because(entry, Reason::AgentCalled, &message);
    effects.tell(NoticeKind::AgentCallUnknown, entry, message);
}

// What the next message compares with.
fn remember_told(entry: &mut ActiveEvent) {
    entry.told = Some(Told {
        count: entry.count,
        containers: i64::try_from(entry.containers.len()).unwrap_or(i64::MAX),
        uid: entry.uid.clone(),
        reason: entry.event_reason.clone(),
        resolved: false,
    });
    // Of this notification nothing has been said yet.
    entry.farewell = None;
}

fn fire(entry: &mut ActiveEvent, claim: &Claim, effects: &mut Effects) {
    entry.status = Phase::Firing;
    entry.attempts = entry.attempts.saturating_add(1);
    entry.claim = Some(claim.clone());
    entry.next_attempt_at = None;
    let attempt = if entry.attempts > 1 { format!(", attempt {}", entry.attempts) } else { String::new() };
    because(entry, Reason::Calling, &format!("calling {}{attempt}", entry.agent));
    let note = format!(
        "{} on {}: {}; {}",
        entry.event_type,
        entry.resource_name,
        excerpt_of(
            if entry.event_message.is_empty() { &entry.event_reason } else { &entry.event_message },
            200
        ),
        entry.message
    );
    effects.tell(NoticeKind::EventFiring, entry, note);
}

fn time(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    match entry.status {
        Phase::Pending if scene.suspended || is_mute(entry, scene.now) => {
            if !still_holds(entry) && scene.now > entry.last_seen + scene.policy.stale_after {
                let why = match scene.suspended {
                    true => "the Hook was suspended while it happened, nobody was called",
                    false => "nobody was to be called about it, and it did not happen again",
                };
                return resolve(entry, Reason::RecoveredBeforeCall, why, scene, effects);
            }
            if entry.reason != Some(silence(entry, scene).0) {
                fall_silent(entry, scene);
            }
        }
        Phase::Pending => {
            let resumed =
                matches!(entry.reason, Some(Reason::Suspended | Reason::Acknowledged | Reason::Snoozed));
            if resumed && entry.attempts == 0 {
                // Nobody tried to deliver it meanwhile.
                entry.due_at = entry.due_at.map(|due| due.max(scene.now));
            }
            if entry.due_at.is_some_and(|due| scene.now >= due + scene.policy.delivery_timeout) {
                let why = format!(
                    "given up: {}",
                    entry
                        .last_error
                        .clone()
                        .unwrap_or_else(|| "the agent could not be called in time".into())
                );
                return resolve(entry, Reason::NotDelivered, &why, scene, effects);
            }
            let over = entry.next_attempt_at.is_none_or(|at| at <= scene.now);
            if let Some(end) = rests_until(entry, scene).filter(|_| over) {
                if end <= scene.now {
                    let why = "it did not happen again before the agent was called";
                    return resolve(entry, Reason::RecoveredBeforeCall, why, scene, effects);
                }
                let why =
                    format!("runs again: over at {}, called if it happens before", end.format("%H:%M:%SZ"));
                because(entry, Reason::Holding, &why);
            } else if over {
                wait_for_slot(entry);
            } else if resumed {
                let reason = if entry.attempts == 0 { Reason::Holding } else { Reason::BackingOff };
                because(entry, reason, "agents may be called again: waiting its time");
            }
        }
        Phase::Firing => {
            let given_up = lookups_end(entry, scene).is_some_and(|end| scene.now >= end);
            if entry.reason == Some(Reason::CheckingSession) && given_up {
                outcome_unknown(entry, scene, effects);
                // Notified now: its trouble may be over for long.
                time(entry, scene, effects);
            }
        }
        Phase::Notified => {
            // At exactly the window's end a repeat wins over a resolve.
            let quiet = scene.now >= quiet_end(entry, scene);
            let (over, reason, why) = match &entry.condition {
                Some(Standing { state: StandingState::Holds, .. }) => (false, Reason::Recovered, ""),
                Some(Standing { state: StandingState::Clear, since }) => {
                    (scene.now >= *since + clear_hold(entry, scene), Reason::Recovered, "the trouble is over")
                }
                Some(Standing { state: StandingState::Gone, .. }) => {
                    (true, Reason::PodGone, "the pod is gone")
                }
                None => (quiet, Reason::Quiet, "no news for long enough"),
            };
            let still_there = match &entry.condition {
                Some(standing) => standing.state == StandingState::Holds,
                None => !quiet,
            };
            if entry.owed && still_there && scene.now >= window_end(entry, scene) {
                repeat(entry, scene, effects);
                // Pending now, which a suspended Hook says in its own words.
                if scene.suspended {
                    time(entry, scene, effects);
                }
            } else if over {
                resolve(entry, reason, why, scene, effects);
            }
        }
        Phase::Resolved => pass_farewell_time(entry, scene, effects),
    }
}

/// A pending incident that could be called but for a slot.
fn wait_for_slot(entry: &mut ActiveEvent) {
    entry.next_attempt_at = None;
    if entry.reason != Some(Reason::WaitingForSlot) && !waits_for_agent(entry) {
        because(entry, Reason::WaitingForSlot, "waiting for a free call slot");
    }
}

fn waits_for_agent(entry: &ActiveEvent) -> bool {
    matches!(entry.reason, Some(Reason::CircuitOpen | Reason::AgentNotReady))
}

/// Says why a due incident is not called now.
pub fn wait(entry: &mut ActiveEvent, reason: Reason, until: Option<DateTime<Utc>>, message: &str) {
    entry.next_attempt_at = until;
    // Why it is resolved is not forgotten over its farewell.
    if entry.status == Phase::Pending && entry.reason != Some(reason) {
        because(entry, reason, message);
    }
}

fn repeat(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    next_window(entry, scene);
    entry.due_at = Some(scene.now);
    because(entry, Reason::WaitingForSlot, "it happened again: the agent is asked again");
    effects.tell(NoticeKind::EventPending, entry, entry.message.clone());
}

fn next_window(entry: &mut ActiveEvent, scene: &Scene) {
    entry.status = Phase::Pending;
    entry.window = entry.window.saturating_add(1);
    entry.attempts = 0;
    entry.claim = None;
    entry.owed = false;
    entry.resent = false;
    entry.resolved_at = None;
    entry.last_error = None;
    entry.next_attempt_at = None;
    entry.due_at = Some(scene.now);
}

// What is no longer true is not told. A call under way cannot be taken back: it counts as made, and what
// becomes of its claim is nobody's concern any more.
fn leave_farewell(entry: &mut ActiveEvent) {
    entry.claim = None;
    entry.next_attempt_at = None;
    entry.last_error = None;
    entry.farewell = entry.farewell.take().filter(|farewell| farewell.state != FarewellState::Due);
    if let Some(farewell) =
        entry.farewell.as_mut().filter(|farewell| farewell.state == FarewellState::Calling)
    {
        farewell.state = FarewellState::Unknown;
    }
}

// It is not over after all; the next message says that it was.
fn leave_resolution(entry: &mut ActiveEvent) {
    leave_farewell(entry);
    if let Some(told) = &mut entry.told {
        told.resolved = true;
    }
}

fn come_back(entry: &mut ActiveEvent, signal: &Signal, scene: &Scene, effects: &mut Effects) {
    if matches!(entry.condition, Some(Standing { state: StandingState::Gone, .. })) {
        // Late news of a pod that is gone, perhaps of another source than before: nothing can still hold.
        return effects.suppressed.push(Suppressed::Window);
    }
    leave_resolution(entry);
    let remembered = entry.resolved_at.is_none_or(|at| scene.now <= at + scene.policy.retention);
    match entry.last_notified_at {
        Some(_) if scene.now < window_end(entry, scene) => {
            entry.status = Phase::Notified;
            entry.owed = true;
            entry.resolved_at = None;
            let why = match is_acknowledged(entry) {
                true => "it came back, and somebody works on it: nobody is asked",
                false => "it came back: asked again if it lasts until the window ends",
            };
            because(entry, Reason::Reopened, why);
            effects.tell(NoticeKind::EventReopened, entry, entry.message.clone());
        }
        Some(_) if remembered => {
            next_window(entry, scene);
            hold_back(entry, signal, scene);
            if entry.reason == Some(Reason::WaitingForSlot) {
                because(entry, Reason::WaitingForSlot, "the fix did not hold: the agent is asked again");
            }
            effects.tell(NoticeKind::EventPending, entry, entry.message.clone());
        }
        _ => {
            let key = Key::of(entry);
            let seen = entry.seen.clone();
            // An episode's ids come from its beginning: it must be later than the last one's.
            let after = entry.first_seen + TICK;
            if let Ok(Some(mut fresh)) = open(signal, &key, scene) {
                fresh.seen = seen;
                fresh.first_seen = fresh.first_seen.max(after);
                fresh.last_seen = fresh.last_seen.max(fresh.first_seen);
                fresh.session_id = Some(key.session_id(scene.hook_uid, fresh.first_seen));
                if is_mute(entry, scene.now) && (remembered || !is_acknowledged(entry)) {
                    // The silence is about the trouble, not about one stretch of it.
                    fresh.instruction = entry.instruction.take();
                }
                *entry = fresh;
                effects.tell(NoticeKind::EventPending, entry, entry.message.clone());
            }
        }
    }
}

fn resolve(entry: &mut ActiveEvent, reason: Reason, why: &str, scene: &Scene, effects: &mut Effects) {
    entry.status = Phase::Resolved;
    entry.claim = None;
    entry.owed = false;
    entry.next_attempt_at = None;
    entry.resolved_at = Some(scene.now);
    because(entry, reason, why);
    let over = matches!(
        reason,
        Reason::Recovered
            | Reason::RecoveredBeforeCall
            | Reason::Quiet
            | Reason::PodGone
            | Reason::ResolvedByHand
    );
    // Once for each notification that surely arrived. Nobody knows what the Go khook has asked in which session.
    let asked =
        entry.last_notified_at.is_some() && (entry.attempts > 0 || entry.window > 1) && !entry.observed;
    let knows = asked && entry.outcome != Some(EndState::OutcomeUnknown);
    // What was made up is over by itself.
    if over && knows && entry.test.is_none() && entry.farewell.is_none() && wants_farewell(scene) {
        entry.farewell = Some(Farewell { state: FarewellState::Due, attempts: 0 });
    }
    let kind = if reason == Reason::NotDelivered {
        NoticeKind::EventNotDelivered
    } else {
        NoticeKind::EventResolved
    };
    effects.tell(kind, entry, format!("{} on {}: {why}", entry.event_type, entry.resource_name));
}

fn wants_farewell(scene: &Scene) -> bool {
    !scene.suspended && !scene.observes && scene.rule.is_some_and(|rule| rule.notify_resolved)
}

fn call_farewell(entry: &mut ActiveEvent, claim: &Claim) {
    if let Some(farewell) = entry.farewell.as_mut().filter(|farewell| farewell.state == FarewellState::Due) {
        farewell.state = FarewellState::Calling;
        farewell.attempts = farewell.attempts.saturating_add(1);
        entry.claim = Some(claim.clone());
        entry.next_attempt_at = None;
    }
}

fn farewell_called(
    entry: &mut ActiveEvent,
    claim: &Claim,
    reply: &Reply,
    scene: &Scene,
    effects: &mut Effects,
) {
    if !farewell_is(entry, FarewellState::Calling) || entry.claim.as_ref() != Some(claim) {
        return;
    }
    let per_round = attempts_per_round(scene.policy);
    let attempts = entry.farewell.as_ref().map_or(per_round, |farewell| farewell.attempts);
    match reply {
        Reply::Accepted { .. } => end_farewell(entry, FarewellState::Told, None, effects),
        Reply::NotRun { error, retry_after, .. } if attempts < per_round => {
            farewell_later(entry, attempts, error, *retry_after, scene);
        }
        Reply::NotRun { error, .. } | Reply::Permanent { error } => {
            end_farewell(entry, FarewellState::Failed, Some(error), effects);
        }
        Reply::Unknown { error } if without(Safeguard::Farewell) => {
            farewell_later(entry, attempts, error, None, scene);
        }
        // It may have been said: never again, and a lookup would cost more than it is worth.
        Reply::Unknown { error } => end_farewell(entry, FarewellState::Unknown, Some(error), effects),
    }
}

fn farewell_later(
    entry: &mut ActiveEvent,
    attempts: i32,
    error: &str,
    retry_after: Option<Duration>,
    scene: &Scene,
) {
    let asked = retry_after.unwrap_or_default().min(scene.policy.delivery_timeout);
    let wait = backoff(&entry.id, attempts, attempts_per_round(scene.policy), scene.policy).max(asked);
    entry.farewell = Some(Farewell { state: FarewellState::Due, attempts });
    entry.claim = None;
    entry.next_attempt_at = Some(scene.now + wait);
    entry.last_error = Some(excerpt(error));
}

fn pass_farewell_time(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    if farewell_is(entry, FarewellState::Due) {
        let given_up = entry.resolved_at.is_none_or(|at| scene.now >= at + scene.policy.delivery_timeout);
        if !wants_farewell(scene) {
            leave_farewell(entry);
        } else if given_up {
            let error =
                entry.last_error.clone().unwrap_or_else(|| "the agent could not be called in time".into());
            end_farewell(entry, FarewellState::Failed, Some(&error), effects);
        } else if entry.next_attempt_at.is_some_and(|at| at <= scene.now) {
            entry.next_attempt_at = None;
        }
    } else if farewell_is(entry, FarewellState::Calling)
        && farewell_end(entry, scene).is_none_or(|end| scene.now >= end)
    {
        // Whoever claimed it is gone. Nobody takes it over: so no clock and no lookup has to be trusted.
        let error = "whoever called the agent is gone";
        end_farewell(entry, FarewellState::Unknown, Some(error), effects);
    }
}

// When the outcome of a farewell has not been heard of for too long.
fn farewell_end(entry: &ActiveEvent, scene: &Scene) -> Option<DateTime<Utc>> {
    entry.claim.as_ref().map(|claim| claim.at + claim.duration() + scene.policy.takeover_margin)
}

/// Tells of a farewell that is not said because the entry has to go.
pub fn forego_farewell(entry: &ActiveEvent, effects: &mut Effects) {
    if farewell_is(entry, FarewellState::Due) {
        let error = "its place was needed for newer trouble";
        end_farewell(&mut entry.clone(), FarewellState::Failed, Some(error), effects);
    }
}

fn end_farewell(entry: &mut ActiveEvent, state: FarewellState, error: Option<&str>, effects: &mut Effects) {
    if let Some(farewell) = &mut entry.farewell {
        farewell.state = state;
    }
    entry.claim = None;
    entry.next_attempt_at = None;
    entry.last_error = error.map(excerpt);
    let (agent, type_, pod) = (&entry.agent, entry.event_type, &entry.resource_name);
    let error = excerpt_of(error.unwrap_or_default(), 200);
    let (kind, note) = match state {
        FarewellState::Told => {
            (NoticeKind::ResolutionTold, format!("{agent} has been told that {type_} on {pod} is resolved"))
        }
        FarewellState::Unknown => (
            NoticeKind::ResolutionNotTold,
            format!("whether {agent} knows that {type_} on {pod} is resolved is not known: {error}"),
        ),
        FarewellState::Due | FarewellState::Calling | FarewellState::Failed => (
            NoticeKind::ResolutionNotTold,
            format!("{agent} could not be told that {type_} on {pod} is resolved: {error}"),
        ),
    };
    effects.tell(kind, entry, note);
}

// What a person says is done once: it is known by its time, and of several the newest counts.
fn instructed(entry: &mut ActiveEvent, instruction: &Instruction, scene: &Scene, effects: &mut Effects) {
    if entry.instruction.as_ref().is_some_and(|known| known.at >= instruction.at) {
        return;
    }
    if entry.status == Phase::Firing && matches!(instruction.verb, Verb::Retry | Verb::Resolve) {
        // The outcome is awaited; then this comes again.
        return;
    }
    entry.instruction = Some(instruction.clone());
    let (type_, pod, by) = (entry.event_type, entry.resource_name.clone(), by(entry));
    let done = match instruction.verb {
        Verb::Retry => {
            let before = entry.status;
            match before {
                Phase::Pending => {
                    // No later than it was: whatever was claimed since then still counts.
                    entry.due_at = entry.due_at.map(|due| due.min(scene.now));
                    entry.next_attempt_at = None;
                }
                Phase::Resolved => {
                    leave_resolution(entry);
                    next_window_by_hand(entry, scene);
                }
                Phase::Firing | Phase::Notified => next_window_by_hand(entry, scene),
            }
            because(entry, Reason::WaitingForSlot, &format!("to be asked now, as said{by}"));
            if before != Phase::Pending {
                effects.tell(NoticeKind::EventPending, entry, entry.message.clone());
            }
            match (scene.suspended, scene.observes) {
                (true, _) => "the agent is to be asked when the Hook is active again",
                (false, true) => "to be noted as asked now: the Hook observes",
                (false, false) => "the agent is to be asked now",
            }
        }
        Verb::Ack => "acknowledged: nobody is asked any more in this episode",
        Verb::Snooze => "snoozed",
        Verb::Resolve if entry.status == Phase::Resolved => "it was resolved already",
        Verb::Resolve => {
            resolve(entry, Reason::ResolvedByHand, &format!("resolved{by}"), scene, effects);
            "resolved"
        }
    };
    if entry.status == Phase::Pending && is_mute(entry, scene.now) {
        fall_silent(entry, scene);
    }
    let until = instruction.until.map(|until| format!(" until {}", minute(until))).unwrap_or_default();
    effects.tell(NoticeKind::IncidentInstructed, entry, format!("{type_} on {pod}: {done}{until}{by}"));
}

// Not at the moment of the last call: whatever was claimed by then belongs to the window before.
fn next_window_by_hand(entry: &mut ActiveEvent, scene: &Scene) {
    next_window(entry, scene);
    let due = Some(scene.now + TICK);
    (entry.due_at, entry.next_attempt_at) = (due, due);
}

fn observe(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    notify(entry, scene);
    entry.observed = true;
    entry.last_error = None;
    entry.owed = false;
    let again = if entry.window > 1 { format!(" again ({} times)", entry.window) } else { String::new() };
    because(
        entry,
        Reason::Observed,
        &format!("{} would have been asked{again}: the Hook observes", entry.agent),
    );
    let note = format!("{} on {}: {}", entry.event_type, entry.resource_name, entry.message);
    effects.tell(NoticeKind::AgentCallObserved, entry, note);
}

// What was only observed has never been asked.
fn activate(entry: &mut ActiveEvent, scene: &Scene, effects: &mut Effects) {
    if !entry.observed {
        return;
    }
    entry.observed = false;
    if entry.told.is_none() {
        (entry.notified_at, entry.last_notified_at) = (None, None);
    }
    match entry.status {
        Phase::Notified if still_holds(entry) => {
            next_window(entry, scene);
            because(entry, Reason::WaitingForSlot, "the Hook calls again: waiting for a free call slot");
            effects.tell(NoticeKind::EventPending, entry, entry.message.clone());
        }
        Phase::Notified => {
            resolve(
                entry,
                Reason::RecoveredBeforeCall,
                "it was only observed, and does not last",
                scene,
                effects,
            );
        }
        Phase::Pending | Phase::Firing | Phase::Resolved => {}
    }
}

/// Begins the wait before a call: the trouble must last for its hold.
fn hold_back(entry: &mut ActiveEvent, signal: &Signal, scene: &Scene) {
    let hold = hold_of(signal, scene);
    let due = signal.at().min(scene.now) + hold;
    if due > scene.now {
        entry.due_at = Some(due);
        entry.next_attempt_at = Some(due);
        let unless = if is_restart(entry) { "if it goes on" } else { "unless it clears" };
        because(entry, Reason::Holding, &format!("called at {} {unless}", due.format("%H:%M:%SZ")));
    } else {
        entry.due_at = Some(if hold.is_zero() { signal.observed_at.min(scene.now) } else { scene.now });
        entry.next_attempt_at = None;
        because(entry, Reason::WaitingForSlot, "waiting for a free call slot");
    }
}

/// A signal with a shorter hold ends the wait of one with a longer.
fn hold_sooner(entry: &mut ActiveEvent, signal: &Signal, scene: &Scene) {
    if !is_held(entry) || entry.attempts > 0 {
        return;
    }
    let due = signal.at().min(scene.now) + hold_of(signal, scene);
    if entry.due_at.is_some_and(|earlier| due < earlier) {
        hold_back(entry, signal, scene);
    }
}

/// Whether a pending incident waits until its trouble has lasted, or its Hook goes on.
pub fn is_held(entry: &ActiveEvent) -> bool {
    matches!(entry.reason, Some(Reason::Holding | Reason::Suspended | Reason::Acknowledged | Reason::Snoozed))
}

/// Until when the container of a held incident must run for the trouble to be over, where it runs and may crash
/// once more: a crash loop is held for as long as it goes on, and while it does, its container runs now and then.
/// Where the Hook wants no hold any more, nothing rests.
fn rests_until(entry: &ActiveEvent, scene: &Scene) -> Option<DateTime<Utc>> {
    let hold = scene.rule?.hold?;
    let standing = entry.condition.as_ref()?;
    let rests = entry.status == Phase::Pending
        && entry.reason == Some(Reason::Holding)
        && standing.state == StandingState::Clear
        && is_restart(entry);
    rests.then_some(standing.since + hold)
}

fn hold_of(signal: &Signal, scene: &Scene) -> Duration {
    if signal.test.is_some() {
        // Nothing can last that is made up.
        return Duration::ZERO;
    }
    scene.rule.and_then(|rule| rule.hold).unwrap_or_else(|| signal.cause.default_hold(scene.policy))
}

/// When the window of the newest notification ends: no second call before it.
pub fn window_end(entry: &ActiveEvent, scene: &Scene) -> DateTime<Utc> {
    let interval = scene.rule.map_or(scene.policy.repeat_interval, |rule| rule.repeat_interval);
    let end = entry.last_notified_at.unwrap_or(entry.last_seen) + interval;
    mute_until(entry).map_or(end, |until| end.max(until))
}

/// Until when a person wants nobody asked; for ever where somebody works on it.
fn mute_until(entry: &ActiveEvent) -> Option<DateTime<Utc>> {
    let instruction = entry.instruction.as_ref()?;
    match instruction.verb {
        Verb::Ack => Some(DateTime::<Utc>::MAX_UTC),
        Verb::Snooze => instruction.until,
        Verb::Retry | Verb::Resolve => None,
    }
}

fn is_mute(entry: &ActiveEvent, now: DateTime<Utc>) -> bool {
    mute_until(entry).is_some_and(|until| now < until)
}

fn is_acknowledged(entry: &ActiveEvent) -> bool {
    entry.instruction.as_ref().is_some_and(|instruction| instruction.verb == Verb::Ack)
}

/// Whether a person has ended the incident while its trouble still held, and it still does.
pub fn is_dismissed(entry: &ActiveEvent) -> bool {
    entry.status == Phase::Resolved && entry.reason == Some(Reason::ResolvedByHand) && still_holds(entry)
}

/// Until when an entry must be remembered for the silence that a person asked for.
pub fn silent_until(entry: &ActiveEvent) -> Option<DateTime<Utc>> {
    mute_until(entry).filter(|_| !is_acknowledged(entry))
}

fn fall_silent(entry: &mut ActiveEvent, scene: &Scene) {
    if waits_for_agent(entry) {
        // It was due but for the breaker, or for what the agent needs.
        entry.next_attempt_at = None;
    }
    let (reason, why) = silence(entry, scene);
    because(entry, reason, &why);
}

// Why nobody is called about a pending incident.
fn silence(entry: &ActiveEvent, scene: &Scene) -> (Reason, String) {
    if scene.suspended {
        return (Reason::Suspended, "the Hook is suspended: nobody is called".into());
    }
    match entry.instruction.as_ref().and_then(|instruction| instruction.until) {
        Some(until) => {
            (Reason::Snoozed, format!("snoozed{}: nobody is called before {}", by(entry), minute(until)))
        }
        None => (Reason::Acknowledged, format!("acknowledged{}: nobody is called", by(entry))),
    }
}

fn by(entry: &ActiveEvent) -> String {
    let who = entry.instruction.as_ref().map(|instruction| instruction.by.as_str()).unwrap_or_default();
    if who.is_empty() { String::new() } else { format!(" by {who}") }
}

fn minute(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%MZ").to_string()
}

// Whoever has just taken over gets the time for a lookup, however old the incident is.
fn lookups_end(entry: &ActiveEvent, scene: &Scene) -> Option<DateTime<Utc>> {
    let given_up = entry.due_at? + scene.policy.delivery_timeout;
    let claimed = entry.claim.as_ref().map(|claim| claim.at + scene.policy.round_interval);
    Some(claimed.map_or(given_up, |end| given_up.max(end)))
}

// Quiet is more than the timeout, and never before a window of the same length has ended.
fn quiet_end(entry: &ActiveEvent, scene: &Scene) -> DateTime<Utc> {
    let timeout = scene.rule.map_or(scene.policy.resolve_timeout, |rule| rule.resolve_timeout);
    let news = entry.last_notified_at.map_or(entry.last_seen, |at| at.max(entry.last_seen));
    news + timeout + TICK
}

fn clear_hold(entry: &ActiveEvent, scene: &Scene) -> Duration {
    match entry.event_type {
        EventType::PodRestart | EventType::OomKill => scene.policy.running_hold,
        EventType::ProbeFailed if is_restart(entry) => scene.policy.running_hold,
        EventType::PodPending | EventType::ProbeFailed => scene.policy.clear_hold,
    }
}

// A container has ended, of itself or by a probe, and was not merely in a bad state.
fn is_restart(entry: &ActiveEvent) -> bool {
    entry.event_type != EventType::PodPending && !entry.seen.is_empty()
}

fn attempts_per_round(policy: &Policy) -> i32 {
    i32::try_from(policy.attempts_per_round.max(1)).unwrap_or(i32::MAX)
}

// Seeded by the incident and the attempt: the same plan twice gives the same times.
fn backoff(id: &str, attempts: i32, per_round: i32, policy: &Policy) -> Duration {
    let attempt = usize::try_from(attempts.saturating_sub(1).rem_euclid(per_round)).unwrap_or_default();
    let seed = id.bytes().fold(u64::from(attempts.unsigned_abs()), |seed, byte| {
        seed.wrapping_mul(0x100_0000_01b3).wrapping_add(u64::from(byte))
    });
    let wait = ExponentialBuilder::new()
        .with_min_delay(policy.retry_base)
        .with_max_delay(policy.retry_max)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build()
        .nth(attempt)
        .unwrap_or(policy.retry_max);
    whole_millis(wait)
}

// As all times here.
fn whole_millis(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

fn still_holds(entry: &ActiveEvent) -> bool {
    matches!(entry.condition, Some(Standing { state: StandingState::Holds, .. }))
}

// A restart or an OOM kill has happened, however the pod is now; of the other kinds an occurrence is only
// evidence, and the pod is the truth.
fn has_happened(entry: &ActiveEvent) -> bool {
    match entry.event_type {
        EventType::PodRestart | EventType::OomKill => !entry.seen.is_empty(),
        EventType::PodPending | EventType::ProbeFailed => false,
    }
}

// Another pod under the same name. Not every source knows the UID.
fn is_of_another_pod(entry: &ActiveEvent, signal: &Signal) -> bool {
    !signal.uid.is_empty() && !entry.uid.is_empty() && signal.uid != entry.uid
}

fn because(entry: &mut ActiveEvent, reason: Reason, message: &str) {
    entry.reason = Some(reason);
    entry.message = message.to_owned();
}

fn quote(entry: &mut ActiveEvent, signal: &Signal) {
    entry.event_name = excerpt_of(&signal.event_name, 253);
    entry.event_reason = excerpt_of(&signal.reason, 128);
    entry.event_message = excerpt_of(&signal.message, 512);
}

fn include_container(entry: &mut ActiveEvent, signal: &Signal) {
    if let Some(container) = &signal.container
        && entry.containers.len() < MAX_CONTAINERS
        && !entry.containers.contains(container)
    {
        entry.containers.push(container.clone());
    }
}

/// The part of an answer that is kept in status: 512 bytes.
fn excerpt(answer: &str) -> String {
    excerpt_of(answer, 512)
}

/// At most `bytes` bytes of a text, cut between characters, with a mark where something is missing.
pub fn excerpt_of(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub("…".len()));
    format!("{}…", &text[..end])
}

impl Effects {
    fn tell(&mut self, kind: NoticeKind, entry: &ActiveEvent, note: String) {
        self.notices.push(Notice { kind, entry: entry.clone(), note, usage: None });
    }
}

#[cfg(test)]
mod tests;
