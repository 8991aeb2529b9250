//! Walks every cell of the state machine and prints it as `docs/state-machine.md`.
//!
//! `EXPECTED` names every cell that does something, by hand; whatever is not named must do nothing. The
//! page is printed from what the code did: `UPDATE_DOCS=1 cargo test` rewrites it.

use std::{fmt::Write as _, path::Path};

use super::*;
use crate::incident::{
    fixtures::{claim as claim_of, *},
    signal::Cause,
};

/// One incident in one situation, and the moment the input comes.
#[derive(Clone)]
struct Situation {
    name: &'static str,
    entry: Option<ActiveEvent>,
    now: DateTime<Utc>,
    event_type: EventType,
    /// The newest claim of this window, whether or not it still stands.
    claim: Claim,
}

fn policy() -> Policy {
    Policy::default()
}

const POD: &str = "web-0";

fn step_at(entry: &mut ActiveEvent, input: &Input, now: DateTime<Utc>, suspended: bool) -> Effects {
    let notify_resolved = entry.farewell.is_some();
    step_for(entry, input, now, suspended, notify_resolved)
}

fn step_for(
    entry: &mut ActiveEvent,
    input: &Input,
    now: DateTime<Utc>,
    suspended: bool,
    notify_resolved: bool,
) -> Effects {
    let (policy, rule) = (policy(), Rule { notify_resolved, ..rule(entry.event_type, AGENT) });
    let observes = matches!(input, Input::Observed);
    let scene = Scene { now, policy: &policy, rule: Some(&rule), hook_uid: HOOK_UID, suspended, observes };
    let mut effects = Effects::default();
    step(entry, input, &scene, &mut effects);
    effects
}

fn opened(signal: &Signal, now: DateTime<Utc>) -> Result<Option<ActiveEvent>, Suppressed> {
    let (policy, rule) = (policy(), rule(signal.event_type, AGENT));
    let (suspended, observes) = (false, false);
    let scene = Scene { now, policy: &policy, rule: Some(&rule), hook_uid: HOOK_UID, suspended, observes };
    open(signal, &rule.key_of(NAMESPACE, POD), &scene)
}

/// Every situation the table tells apart, each reached through the machine itself.
fn situations() -> Vec<Situation> {
    use EventType::{PodRestart, ProbeFailed};
    let mut all = Vec::new();
    let claimed = claim_of("old", 1, at(0));
    let mut add = |name, entry: Option<&ActiveEvent>, now| {
        let event_type = entry.map_or(PodRestart, |entry| entry.event_type);
        all.push(Situation { name, entry: entry.cloned(), now, event_type, claim: claimed.clone() });
    };

    add("no incident", None, at(0));

    let restart = opened(&restarted(POD, 1, at(0)), at(0)).expect("fresh").expect("opens");
    let unready =
        opened(&readiness(POD, StandingState::Holds, at(-20)), at(0)).expect("fresh").expect("opens");
    add("Holding", Some(&unready), at(0));
    let mut due = unready.clone();
    step_at(&mut due, &Input::Time, at(100), false);
    add("due, it is so", Some(&due), at(100));
    add("due, it happened", Some(&restart), at(0));
    let mut circuit_open = restart.clone();
    wait(&mut circuit_open, Reason::CircuitOpen, Some(at(15)), "the agent fails");
    add("CircuitOpen", Some(&circuit_open), at(0));
    let mut not_ready = restart.clone();
    wait(&mut not_ready, Reason::AgentNotReady, None, "its Secret is missing");
    add("AgentNotReady", Some(&not_ready), at(0));
    let mut suspended = restart.clone();
    step_at(&mut suspended, &Input::Time, at(1), true);
    add("Suspended", Some(&suspended), at(1));
    let (ack, snooze) = (said(Verb::Ack, at(1)), said(Verb::Snooze, at(1)));
    let mut acknowledged = restart.clone();
    step_at(&mut acknowledged, &Input::Instructed(&ack), at(1), false);
    step_at(&mut acknowledged, &Input::Time, at(1), false);
    add("Acknowledged", Some(&acknowledged), at(2));
    let mut snoozed = unready.clone();
    step_at(&mut snoozed, &Input::Instructed(&snooze), at(1), false);
    step_at(&mut snoozed, &Input::Time, at(1), false);
    add("Snoozed", Some(&snoozed), at(2));

    let mut calling = restart.clone();
    step_at(&mut calling, &Input::Granted(claimed.clone()), at(0), false);
    let mut backing_off = calling.clone();
    step_at(&mut backing_off, &Input::Called(&claimed, &reply_not_run()), at(1), false);
    add("BackingOff", Some(&backing_off), at(1));
    let mut failed = calling.clone();
    step_at(&mut failed, &Input::Called(&claimed, &Reply::Permanent { error: "no".into() }), at(1), false);
    add("AgentCallFailed", Some(&failed), at(1));

    add("Calling", Some(&calling), at(1));
    let mut checking = calling.clone();
    step_at(&mut checking, &Input::Called(&claimed, &reply_unknown()), at(1), false);
    add("CheckingSession", Some(&checking), at(1));

    let mut notified = calling.clone();
    step_at(&mut notified, &Input::Called(&claimed, &reply_accepted("task-1")), at(1), false);
    let restarted_again = restarted(POD, 2, at(700));
    let Nature::Occurrence(occurrence) = &restarted_again.nature else { unreachable!() };
    let mut repeat = notified.clone();
    step_at(&mut repeat, &Input::Occurred(&restarted_again, occurrence), at(700), false);
    add("due, a repeat", Some(&repeat), at(700));
    let mut calling_again = repeat.clone();
    step_at(&mut calling_again, &Input::Granted(claim_of("old", 2, at(700))), at(700), false);
    add("Calling, a repeat", Some(&calling_again), at(701));

    add("inside the window", Some(&notified), at(60));
    add("at the window's end", Some(&notified), at(601));
    let mut holding = calling_of(&due, &claimed);
    step_at(&mut holding, &Input::Called(&claimed, &reply_accepted("task-1")), at(101), false);
    add("it still holds", Some(&holding), at(701));
    let mut clear = holding.clone();
    step_at(&mut clear, &Input::Clear(at(300)), at(300), false);
    add("clear, not for long enough", Some(&clear), at(310));

    let mut taken = notified.clone();
    step_at(&mut taken, &Input::Instructed(&said(Verb::Ack, at(2))), at(2), false);
    add("acknowledged, at the window's end", Some(&taken), at(601));
    let mut silent = holding.clone();
    step_at(&mut silent, &Input::Instructed(&said(Verb::Snooze, at(102))), at(102), false);
    add("snoozed, it still holds", Some(&silent), at(701));
    let mut observed = due.clone();
    step_at(&mut observed, &Input::Observed, at(101), false);
    add("observed, it still holds", Some(&observed), at(110));

    let mut gone = notified.clone();
    step_at(&mut gone, &Input::Time, at_ms(601_001), false);
    let mut early = holding.clone();
    step_at(&mut early, &Input::Clear(at(200)), at(200), false);
    step_at(&mut early, &Input::Time, at(260), false);
    let mut reopened = early.clone();
    let again = readiness(POD, StandingState::Holds, at(400));
    step_at(&mut reopened, &Input::Holds(&again, at(400)), at(400), false);
    add("reopened, owed", Some(&reopened), at(410));

    add("inside the window", Some(&early), at(300));
    let mut pod_gone = notified.clone();
    step_at(&mut pod_gone, &Input::Gone(at(30)), at(30), false);
    add("inside the window, pod gone", Some(&pod_gone), at(60));
    add("after the window", Some(&gone), at(800));
    add("after the hour it is remembered", Some(&gone), at(601 + 3601));
    let mut to_tell = holding.clone();
    step_at(&mut to_tell, &Input::Clear(at(200)), at(200), false);
    step_for(&mut to_tell, &Input::Time, at(260), false, true);
    add("to be told", Some(&to_tell), at(300));
    let telling = claim_of("old", 3, at(260));
    let mut being_told = to_tell.clone();
    step_at(&mut being_told, &Input::Granted(telling.clone()), at(260), false);
    add("being told", Some(&being_told), at(300));
    let mut late = to_tell.clone();
    step_at(&mut late, &Input::Granted(claim_of("old", 4, at(790))), at(790), false);
    add("being told, after the window", Some(&late), at(800));
    let mut told = being_told.clone();
    step_at(&mut told, &Input::FarewellCalled(&telling, &reply_accepted("task-3")), at(261), false);
    add("told", Some(&told), at(300));
    let mut recovered = unready.clone();
    step_at(&mut recovered, &Input::Clear(at(10)), at(10), false);
    add("never called", Some(&recovered), at(20));
    let mut dismissed = holding.clone();
    step_at(&mut dismissed, &Input::Instructed(&said(Verb::Resolve, at(120))), at(120), false);
    add("by hand, it still holds", Some(&dismissed), at(130));
    assert!(all.iter().any(|situation| situation.event_type == ProbeFailed));
    all
}

// Two hours of silence, where it is one.
fn said(verb: Verb, at: DateTime<Utc>) -> Instruction {
    let until = (verb == Verb::Snooze).then(|| at + TimeDelta::hours(2));
    Instruction { verb, by: "jane".into(), at, until }
}

fn calling_of(entry: &ActiveEvent, claim: &Claim) -> ActiveEvent {
    let mut entry = entry.clone();
    step_at(&mut entry, &Input::Granted(claim.clone()), at(100), false);
    // So that the claim belongs to this window, whenever the situation began.
    entry.due_at = entry.due_at.map(|due| due.min(claim.at));
    entry
}

/// Every input with the variants that matter, by name.
const INPUTS: &[&str] = &[
    "occurrence",
    "occurrence, of a new pod of that name",
    "occurrence, seen before",
    "occurrence, stale",
    "condition holds",
    "condition clear",
    "pod gone",
    "granted a slot",
    "Accepted",
    "Accepted, with the answer",
    "Accepted, old claim of this window",
    "Accepted, claim of an earlier window",
    "NotRun",
    "NotRun, the third",
    "NotRun, old claim",
    "Permanent",
    "Unknown",
    "Unknown, old claim",
    "lookup: found",
    "lookup: absent",
    "lookup: absent, old claim",
    "lookup: failed",
    "lookup: none exists",
    "lookup: none exists, sent twice",
    "task ended",
    "task ended, not ours",
    "claim orphaned",
    "farewell: Accepted",
    "farewell: Accepted, old claim",
    "farewell: NotRun",
    "farewell: NotRun, the third",
    "farewell: Permanent",
    "farewell: Unknown",
    "configuration removed",
    "a person: retry",
    "a person: ack",
    "a person: snooze",
    "a person: resolve",
    "a person: said before",
    "called, but the Hook observes",
    "the Hook observes no more",
    "time: farewell not wanted any more",
    "time: one second",
    "time: its next wake",
    "time: the window's end",
    "time: 24 h after it was due",
    "time: suspended",
    "time: suspended, 16 min later",
];

/// What a cell did: next phase and reason, what was told, what was counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    next: String,
    told: Vec<String>,
    suppressed: Vec<String>,
}

/// Applies a named input. None where there is no such input in that situation (no claim ever, no time).
fn apply(situation: &Situation, input: &str) -> Cell {
    let name = input;
    let Situation { entry, now, claim, event_type, .. } = situation.clone();
    let mut now = now;
    let own = claim;
    let elder = claim_of("elder", 7, at(-5000));
    // Taken after this window became due, by somebody else.
    let rival = claim_of("rival", 7, own.at.max(now));
    let holds = readiness(POD, StandingState::Holds, now);
    let mut fresh = restarted(POD, 99, now);
    fresh.event_type = event_type;
    if event_type == EventType::ProbeFailed {
        fresh.cause = Cause::Readiness;
    }
    let mut signal = fresh.clone();
    let mut suspended = false;

    let Some(mut entry) = entry else {
        let result = match input {
            "occurrence" | "occurrence, of a new pod of that name" => opened(&fresh, now),
            "occurrence, stale" => {
                signal.observed_at = now + policy().stale_after + TICK;
                opened(&signal, signal.observed_at)
            }
            "condition holds" => opened(&holds, now),
            "condition clear" => opened(&readiness(POD, StandingState::Clear, now), now),
            "pod gone" => opened(&readiness(POD, StandingState::Gone, now), now),
            // Only signals come without an incident.
            _ => Ok(None),
        };
        return match result {
            Err(suppressed) => {
                Cell { next: "no incident".into(), told: vec![], suppressed: vec![format!("{suppressed:?}")] }
            }
            Ok(None) => Cell { next: "no incident".into(), told: vec![], suppressed: vec![] },
            // The plan tells of it once it is sure of a place.
            Ok(Some(entry)) => {
                Cell { next: stands(&entry, None), told: vec!["EventPending".into()], suppressed: vec![] }
            }
        };
    };

    let standing = entry.claim.clone().unwrap_or(own);
    match input {
        "occurrence, of a new pod of that name" => signal.uid = "another".into(),
        "occurrence, seen before" => {
            let Nature::Occurrence(occurrence) = &signal.nature else { unreachable!() };
            signal::fold(&mut entry.seen, occurrence);
        }
        "occurrence, stale" => signal.observed_at = now + policy().stale_after + TICK,
        "NotRun, the third" => entry.attempts = 3,
        "lookup: none exists, sent twice" => entry.resent = true,
        "farewell: NotRun, the third" => entry.farewell.iter_mut().for_each(|it| it.attempts = 3),
        "time: one second" => now += Duration::from_secs(1),
        "time: its next wake" => {
            let (policy, rule) = (policy(), rule(entry.event_type, AGENT));
            let observes = false;
            let scene =
                Scene { now, policy: &policy, rule: Some(&rule), hook_uid: HOOK_UID, suspended, observes };
            if let Some(at) = wake(&entry, &scene) {
                assert!(at > now, "{}: a wake in the past", situation.name);
                now = at;
            }
        }
        "time: the window's end" => {
            now = entry.last_notified_at.map_or(now, |at| at + policy().repeat_interval)
        }
        "time: 24 h after it was due" => {
            now = entry.due_at.map_or(now, |due| due + policy().delivery_timeout)
        }
        "time: suspended" => suspended = true,
        "time: suspended, 16 min later" => {
            suspended = true;
            now += minutes(16);
        }
        _ => {}
    }
    let Nature::Occurrence(occurrence) = &signal.nature else { unreachable!() };
    let (ended, other) = (completed("It was the disk."), completed("Another's answer."));
    let with_answer =
        Reply::Accepted { task_id: Some("task-2".into()), ended: Some(ended.clone()), protocol: None };
    let found = Lookup::Found { task_id: "task-2".into(), ended: None };
    let error = || String::from("503");
    let [retry, ack, snooze, resolve] = Verb::ALL.map(|verb| said(verb, now));
    let before_all = said(Verb::Resolve, at(-100));
    if name == "a person: said before" {
        entry.instruction.get_or_insert(said(Verb::Retry, at(-90)));
    }
    let (task_2, not_run, unknown) = (reply_accepted("task-2"), reply_not_run(), reply_unknown());
    let permanent = Reply::Permanent { error: error() };
    let (unavailable, unsupported) =
        (Lookup::Unavailable { error: error() }, Lookup::Unsupported { error: error() });
    let input = match input {
        _ if input.starts_with("occurrence") => Input::Occurred(&signal, occurrence),
        "condition holds" => Input::Holds(&holds, now),
        "condition clear" => Input::Clear(now),
        "pod gone" => Input::Gone(now),
        "granted a slot" => Input::Granted(rival),
        "Accepted" => Input::Called(&standing, &task_2),
        "Accepted, with the answer" => Input::Called(&standing, &with_answer),
        "Accepted, old claim of this window" => Input::Called(&rival, &task_2),
        "Accepted, claim of an earlier window" => Input::Called(&elder, &task_2),
        "NotRun" | "NotRun, the third" => Input::Called(&standing, &not_run),
        "NotRun, old claim" => Input::Called(&rival, &not_run),
        "Permanent" => Input::Called(&standing, &permanent),
        "Unknown" => Input::Called(&standing, &unknown),
        "Unknown, old claim" => Input::Called(&rival, &unknown),
        "lookup: found" => Input::LookedUp(&standing, &found),
        "lookup: absent" => Input::LookedUp(&standing, &Lookup::Absent),
        "lookup: absent, old claim" => Input::LookedUp(&rival, &Lookup::Absent),
        "lookup: failed" => Input::LookedUp(&standing, &unavailable),
        "lookup: none exists" | "lookup: none exists, sent twice" => Input::LookedUp(&standing, &unsupported),
        "task ended" => Input::TaskEnded("task-1", &ended),
        "task ended, not ours" => Input::TaskEnded("task-9", &other),
        "claim orphaned" => Input::Orphaned(rival),
        "farewell: Accepted" => Input::FarewellCalled(&standing, &task_2),
        "farewell: Accepted, old claim" => Input::FarewellCalled(&rival, &task_2),
        "farewell: NotRun" | "farewell: NotRun, the third" => Input::FarewellCalled(&standing, &not_run),
        "farewell: Permanent" => Input::FarewellCalled(&standing, &permanent),
        "farewell: Unknown" => Input::FarewellCalled(&standing, &unknown),
        "configuration removed" => Input::Removed,
        "a person: retry" => Input::Instructed(&retry),
        "a person: ack" => Input::Instructed(&ack),
        "a person: snooze" => Input::Instructed(&snooze),
        "a person: resolve" => Input::Instructed(&resolve),
        "a person: said before" => Input::Instructed(&before_all),
        "called, but the Hook observes" => Input::Observed,
        "the Hook observes no more" => Input::Activated,
        _ if input.starts_with("time") => Input::Time,
        _ => unreachable!("{input}"),
    };
    let before = entry.clone();
    let notify = entry.farewell.is_some() && !name.ends_with("not wanted any more");
    let effects = step_for(&mut entry, &input, now, suspended, notify);
    check_invariants(&before, &entry, &effects);
    let next = if before == entry {
        "—".to_owned()
    } else if (before.status, before.reason) == (entry.status, entry.reason) {
        match &entry.farewell {
            farewell if *farewell == before.farewell => "recorded".to_owned(),
            Some(farewell) => format!("farewell {:?}", farewell.state),
            None => "no farewell".to_owned(),
        }
    } else {
        stands(&entry, Some(&before))
    };
    Cell {
        next,
        told: effects.notices.iter().map(|notice| format!("{:?}", notice.kind)).collect(),
        suppressed: effects.suppressed.iter().map(|why| format!("{why:?}")).collect(),
    }
}

fn stands(entry: &ActiveEvent, before: Option<&ActiveEvent>) -> String {
    let reason = entry.reason.map_or_else(String::new, |reason| reason.to_string());
    let ids = match before {
        Some(before) if before.first_seen != entry.first_seen => ", new episode",
        Some(before) if before.window != entry.window => ", window + 1",
        _ => "",
    };
    format!("{} ({reason}{ids})", entry.status)
}

/// What holds in every cell, whatever the input.
fn check_invariants(before: &ActiveEvent, after: &ActiveEvent, effects: &Effects) {
    let calling = after.status == Phase::Firing || farewell_is(after, FarewellState::Calling);
    assert_eq!(after.claim.is_some(), calling, "a claim stands while somebody is called, only");
    let open = |state| matches!(state, FarewellState::Due | FarewellState::Calling);
    let open = after.farewell.as_ref().is_some_and(|farewell| open(farewell.state));
    assert!(!open || after.status == Phase::Resolved, "only what is over is told to be so");
    assert_eq!(after.resolved_at.is_some(), after.status == Phase::Resolved);
    assert!(after.session_id.is_some() && after.window >= 1);
    assert!(!after.message.is_empty() && after.reason.is_some(), "a person is told why");
    assert!(after.first_seen >= before.first_seen);
    if after.first_seen == before.first_seen {
        assert_eq!(after.session_id, before.session_id, "one session for an episode");
        assert!((after.window, after.attempts) >= (before.window, before.attempts));
        assert!(after.count >= before.count && after.last_seen >= before.last_seen);
    } else {
        assert_ne!(after.session_id, before.session_id);
        assert_eq!(before.status, Phase::Resolved, "only what is over begins anew");
    }
    if before.status != after.status {
        assert!(!effects.notices.is_empty(), "every transition is told");
    }
    assert!(effects.notices.iter().all(|notice| !notice.note.is_empty()));
}

/// A cell that does something: situations and inputs (`*`, or several between `;`), next, told, suppressed.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// Every cell that does something, by phase. All else must leave the incident as it is and tell nothing.
/// Of two rows that fit, the first counts.
const EXPECTED: &[(&str, &[Row])] = &[
    (
        "none",
        &[
            (
                "*",
                "occurrence; occurrence, of a new pod of that name",
                "pending (WaitingForSlot)",
                "EventPending",
                "",
            ),
            ("*", "occurrence, stale", "no incident", "", "Stale"),
            ("*", "condition holds", "pending (Holding)", "EventPending", ""),
            ("*", "*", "no incident", "", ""),
        ],
    ),
    (
        "pending",
        &[
            ("*", "occurrence; occurrence, of a new pod of that name", "recorded", "", ""),
            ("*", "occurrence, seen before", "—", "", "Duplicate"),
            ("*", "occurrence, stale", "—", "", "Stale"),
            (
                "due, it is so; due, it happened; due, a repeat",
                "a person: retry",
                "recorded",
                "IncidentInstructed",
                "",
            ),
            ("*", "a person: retry", "pending (WaitingForSlot)", "IncidentInstructed", ""),
            ("Acknowledged", "a person: ack", "recorded", "IncidentInstructed", ""),
            ("*", "a person: ack", "pending (Acknowledged)", "IncidentInstructed", ""),
            ("Snoozed", "a person: snooze", "recorded", "IncidentInstructed", ""),
            ("*", "a person: snooze", "pending (Snoozed)", "IncidentInstructed", ""),
            ("*", "a person: resolve", "resolved (ResolvedByHand)", "EventResolved,IncidentInstructed", ""),
            ("*", "called, but the Hook observes", "notified (Observed)", "AgentCallObserved", ""),
            (
                "Acknowledged",
                "time: its next wake; time: 24 h after it was due",
                "resolved (RecoveredBeforeCall)",
                "EventResolved",
                "",
            ),
            (
                "Snoozed",
                "time: its next wake; time: 24 h after it was due",
                "pending (WaitingForSlot)",
                "",
                "",
            ),
            ("Holding; due, it is so; Snoozed", "condition holds", "—", "", ""),
            ("*", "condition holds", "recorded", "", ""),
            (
                "Holding; due, it is so; Suspended; Acknowledged; Snoozed",
                "condition clear",
                "resolved (RecoveredBeforeCall)",
                "EventResolved",
                "",
            ),
            (
                "Holding; due, it is so; Suspended; Acknowledged; Snoozed",
                "pod gone",
                "resolved (PodGone)",
                "EventResolved",
                "",
            ),
            ("*", "condition clear; pod gone", "recorded", "", ""),
            ("*", "granted a slot", "firing (Calling)", "EventFiring", ""),
            // A claim older than the moment this window became due belongs to another.
            ("Holding; due, it is so; Snoozed", "Accepted; lookup: found", "recorded", "", ""),
            ("Holding; due, it is so; Snoozed", "Accepted, with the answer", "recorded", "AgentAnswered", ""),
            ("Holding; Snoozed", "Accepted, old claim of this window", "recorded", "", ""),
            (
                "due, a repeat",
                "Accepted, old claim of this window",
                "notified (AgentCalled)",
                "AgentCallSuccess",
                "",
            ),
            (
                "due, a repeat",
                "Accepted; Accepted, with the answer; lookup: found; Accepted, claim of an earlier window",
                "—",
                "",
                "",
            ),
            (
                "*",
                "Accepted; lookup: found; Accepted, old claim of this window",
                "notified (AgentCalled)",
                "AgentCallSuccess",
                "",
            ),
            (
                "*",
                "Accepted, with the answer",
                "notified (AgentCalled)",
                "AgentCallSuccess,AgentAnswered",
                "",
            ),
            ("*", "Accepted, claim of an earlier window", "recorded", "", ""),
            ("due, a repeat", "task ended", "recorded", "AgentAnswered", ""),
            ("*", "configuration removed", "resolved (ConfigurationRemoved)", "EventResolved", ""),
            (
                "Suspended",
                "time: farewell not wanted any more; time: one second; time: its next wake; time: the window's end; time: 24 h after it was due",
                "pending (WaitingForSlot)",
                "",
                "",
            ),
            (
                "Holding; BackingOff; AgentCallFailed",
                "time: its next wake",
                "pending (WaitingForSlot)",
                "",
                "",
            ),
            // The breaker's time has come: it is due, the reason stays until the breaker says more.
            ("CircuitOpen", "time: its next wake", "recorded", "", ""),
            ("AgentNotReady", "time: its next wake", "resolved (NotDelivered)", "EventNotDelivered", ""),
            (
                "due, it is so; due, it happened; due, a repeat",
                "time: its next wake",
                "resolved (NotDelivered)",
                "EventNotDelivered",
                "",
            ),
            ("*", "time: 24 h after it was due", "resolved (NotDelivered)", "EventNotDelivered", ""),
            (
                "Holding; due, it is so; Snoozed",
                "time: suspended, 16 min later",
                "pending (Suspended)",
                "",
                "",
            ),
            ("*", "time: suspended, 16 min later", "resolved (RecoveredBeforeCall)", "EventResolved", ""),
            ("Suspended", "time: suspended", "—", "", ""),
            ("*", "time: suspended", "pending (Suspended)", "", ""),
        ],
    ),
    (
        "firing",
        &[
            ("*", "occurrence; occurrence, of a new pod of that name", "recorded", "", "Window"),
            ("*", "occurrence, seen before", "—", "", "Duplicate"),
            ("*", "occurrence, stale", "—", "", "Stale"),
            ("*", "condition holds; condition clear; pod gone", "recorded", "", ""),
            // What would end or repeat a call waits for its outcome.
            ("*", "a person: ack; a person: snooze", "recorded", "IncidentInstructed", ""),
            // The task of the window before is known already.
            ("Calling, a repeat", "Accepted, claim of an earlier window", "—", "", ""),
            (
                "*",
                "Accepted; Accepted, old claim of this window; lookup: found",
                "notified (AgentCalled)",
                "AgentCallSuccess",
                "",
            ),
            (
                "*",
                "Accepted, with the answer",
                "notified (AgentCalled)",
                "AgentCallSuccess,AgentAnswered",
                "",
            ),
            ("*", "Accepted, claim of an earlier window", "recorded", "", ""),
            ("Calling; Calling, a repeat", "NotRun", "pending (BackingOff)", "AgentCallFailure", ""),
            (
                "Calling; Calling, a repeat",
                "NotRun, the third; Permanent",
                "pending (AgentCallFailed)",
                "AgentCallFailure",
                "",
            ),
            ("Calling; Calling, a repeat", "Unknown", "firing (CheckingSession)", "AgentCallUnknown", ""),
            ("Calling; Calling, a repeat", "claim orphaned", "firing (CheckingSession)", "", ""),
            ("Calling, a repeat", "task ended", "recorded", "AgentAnswered", ""),
            (
                "CheckingSession",
                "lookup: absent; lookup: none exists",
                "pending (BackingOff)",
                "AgentCallFailure",
                "",
            ),
            ("CheckingSession", "lookup: failed; claim orphaned", "recorded", "", ""),
            (
                "CheckingSession",
                "lookup: none exists, sent twice; time: 24 h after it was due",
                "notified (AgentCalled)",
                "AgentCallUnknown",
                "",
            ),
        ],
    ),
    (
        "notified",
        &[
            ("*", "occurrence, seen before", "—", "", "Duplicate"),
            ("*", "occurrence, stale", "—", "", "Stale"),
            (
                "at the window's end; it still holds",
                "occurrence; occurrence, of a new pod of that name",
                "pending (WaitingForSlot, window + 1)",
                "EventPending",
                "",
            ),
            ("*", "occurrence; occurrence, of a new pod of that name", "recorded", "", "Window"),
            (
                "*",
                "a person: retry",
                "pending (WaitingForSlot, window + 1)",
                "EventPending,IncidentInstructed",
                "",
            ),
            ("*", "a person: ack; a person: snooze", "recorded", "IncidentInstructed", ""),
            ("*", "a person: resolve", "resolved (ResolvedByHand)", "EventResolved,IncidentInstructed", ""),
            (
                "observed, it still holds",
                "the Hook observes no more",
                "pending (WaitingForSlot, window + 1)",
                "EventPending",
                "",
            ),
            // Some earlier call, of before it observed.
            (
                "observed, it still holds",
                "Accepted; Accepted, old claim of this window; Accepted, claim of an earlier window; lookup: found",
                "recorded",
                "",
                "",
            ),
            ("observed, it still holds", "Accepted, with the answer", "recorded", "AgentAnswered", ""),
            ("observed, it still holds", "task ended", "—", "", ""),
            (
                "it still holds; reopened, owed; snoozed, it still holds; observed, it still holds",
                "condition holds",
                "—",
                "",
                "",
            ),
            ("*", "condition holds", "recorded", "", ""),
            ("*", "condition clear", "recorded", "", ""),
            ("*", "pod gone", "resolved (PodGone)", "EventResolved", ""),
            ("*", "task ended", "recorded", "AgentAnswered", ""),
            ("*", "configuration removed", "resolved (ConfigurationRemoved)", "EventResolved", ""),
            (
                "inside the window",
                "time: its next wake; time: 24 h after it was due; time: suspended, 16 min later",
                "resolved (Quiet)",
                "EventResolved",
                "",
            ),
            (
                "at the window's end; acknowledged, at the window's end",
                "time: one second; time: its next wake; time: 24 h after it was due; time: suspended, 16 min later",
                "resolved (Quiet)",
                "EventResolved",
                "",
            ),
            (
                "clear, not for long enough",
                "time: its next wake; time: the window's end; time: 24 h after it was due; time: suspended, 16 min later",
                "resolved (Recovered)",
                "EventResolved",
                "",
            ),
            (
                "reopened, owed",
                "time: suspended, 16 min later",
                "pending (Suspended, window + 1)",
                "EventPending",
                "",
            ),
            (
                "reopened, owed",
                "time: its next wake; time: the window's end; time: 24 h after it was due",
                "pending (WaitingForSlot, window + 1)",
                "EventPending",
                "",
            ),
        ],
    ),
    (
        "resolved",
        &[
            ("*", "occurrence, seen before", "—", "", "Duplicate"),
            ("*", "occurrence, stale", "—", "", "Stale"),
            (
                "*",
                "a person: retry",
                "pending (WaitingForSlot, window + 1)",
                "EventPending,IncidentInstructed",
                "",
            ),
            ("*", "a person: ack; a person: snooze; a person: resolve", "recorded", "IncidentInstructed", ""),
            // It is as it was when a person ended it.
            ("by hand, it still holds", "condition holds", "—", "", ""),
            (
                "inside the window; by hand, it still holds",
                "occurrence; occurrence, of a new pod of that name; condition holds",
                "notified (Reopened)",
                "EventReopened",
                "",
            ),
            ("inside the window, pod gone", "occurrence", "recorded", "", "Window"),
            (
                "inside the window, pod gone",
                "occurrence, of a new pod of that name; condition holds",
                "notified (Reopened)",
                "EventReopened",
                "",
            ),
            (
                "after the window",
                "occurrence; occurrence, of a new pod of that name",
                "pending (WaitingForSlot, window + 1)",
                "EventPending",
                "",
            ),
            ("after the window", "condition holds", "pending (Holding, window + 1)", "EventPending", ""),
            (
                "after the hour it is remembered",
                "occurrence; occurrence, of a new pod of that name",
                "pending (WaitingForSlot, new episode)",
                "EventPending",
                "",
            ),
            (
                "after the hour it is remembered",
                "condition holds",
                "pending (Holding, new episode)",
                "EventPending",
                "",
            ),
            // The trouble of this one is a failing readiness probe, which must last.
            (
                "never called",
                "occurrence; occurrence, of a new pod of that name; condition holds",
                "pending (Holding, new episode)",
                "EventPending",
                "",
            ),
            ("*", "condition clear; pod gone", "recorded", "", ""),
            (
                "to be told; being told; told",
                "occurrence; occurrence, of a new pod of that name; condition holds",
                "notified (Reopened)",
                "EventReopened",
                "",
            ),
            (
                "being told, after the window",
                "occurrence; occurrence, of a new pod of that name; condition holds",
                "pending (Holding, window + 1)",
                "EventPending",
                "",
            ),
            ("to be told", "granted a slot", "farewell Calling", "", ""),
            (
                "to be told",
                "time: farewell not wanted any more; time: suspended; time: suspended, 16 min later",
                "no farewell",
                "",
                "",
            ),
            ("to be told", "time: its next wake", "farewell Failed", "ResolutionNotTold", ""),
            (
                "being told; being told, after the window",
                "farewell: Accepted",
                "farewell Told",
                "ResolutionTold",
                "",
            ),
            ("being told; being told, after the window", "farewell: NotRun", "farewell Due", "", ""),
            (
                "being told; being told, after the window",
                "farewell: NotRun, the third; farewell: Permanent",
                "farewell Failed",
                "ResolutionNotTold",
                "",
            ),
            (
                "being told; being told, after the window",
                "farewell: Unknown; time: its next wake; time: 24 h after it was due; time: suspended, 16 min later",
                "farewell Unknown",
                "ResolutionNotTold",
                "",
            ),
            ("being told", "time: the window's end", "farewell Unknown", "ResolutionNotTold", ""),
            (
                "never called",
                "Accepted; Accepted, old claim of this window; Accepted, claim of an earlier window; lookup: found",
                "recorded",
                "",
                "",
            ),
            ("never called", "Accepted, with the answer", "recorded", "AgentAnswered", ""),
            ("never called", "task ended", "—", "", ""),
            ("*", "task ended", "recorded", "AgentAnswered", ""),
        ],
    ),
];

fn phase_of(situation: &Situation) -> &'static str {
    situation.entry.as_ref().map_or("none", |entry| entry.status.as_str())
}

fn is_listed(names: &str, name: &str) -> bool {
    names == "*" || names.split("; ").any(|listed| listed == name)
}

fn expected(phase: &str, situation: &str, input: &str) -> Cell {
    let rows = EXPECTED.iter().find(|(listed, _)| *listed == phase).map_or(&[][..], |(_, rows)| rows);
    let words = |text: &str| text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let row = rows.iter().find(|row| is_listed(row.0, situation) && is_listed(row.1, input));
    let (_, _, next, told, suppressed) = row.copied().unwrap_or(("", "", "—", "", ""));
    Cell { next: next.into(), told: words(told), suppressed: words(suppressed) }
}

#[test]
fn every_cell_of_the_table_does_what_it_says() {
    let mut wrong = String::new();
    for situation in situations() {
        for input in INPUTS {
            let (want, got) =
                (expected(phase_of(&situation), situation.name, input), apply(&situation, input));
            if want != got {
                let _ = writeln!(
                    wrong,
                    "{} [{}] × {input}:\n  expected {want:?}\n  got      {got:?}",
                    phase_of(&situation),
                    situation.name
                );
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn every_name_in_the_expected_table_exists() {
    for (phase, rows) in EXPECTED {
        let situations: Vec<&str> =
            situations().iter().filter(|s| phase_of(s) == *phase).map(|s| s.name).collect();
        for (names, inputs, ..) in *rows {
            let known = |name: &&str| situations.contains(name) || *name == "*";
            let strangers: Vec<&str> = names.split("; ").filter(|name| !known(name)).collect();
            assert!(strangers.is_empty(), "{phase}: {strangers:?} is not in {situations:?}");
            let strangers: Vec<&str> =
                inputs.split("; ").filter(|name| *name != "*" && !INPUTS.contains(name)).collect();
            assert!(strangers.is_empty(), "{phase}: no such input {strangers:?}");
        }
    }
}

fn does_nothing(cell: &Cell) -> bool {
    (cell.next == "—" || cell.next == "no incident") && cell.suppressed.is_empty() && cell.told.is_empty()
}

/// The page for people, printed from what the code does.
fn page() -> String {
    let mut page = String::from(include_str!("state-machine.head.md"));
    for phase in ["none", "pending", "firing", "notified", "resolved"] {
        let situations: Vec<Situation> =
            situations().into_iter().filter(|situation| phase_of(situation) == phase).collect();
        let names: Vec<&str> = situations.iter().map(|situation| situation.name).collect();
        let _ = match phase {
            "none" => writeln!(page, "\n## (none)\n\n| input | next | told |\n|---|---|---|"),
            _ => writeln!(
                page,
                "\n## {phase}\n\nSituations: {}.\n\n| input | situation | next | told |\n|---|---|---|---|",
                names.join("; ")
            ),
        };
        // Inputs that do the same in the same situations share a row.
        let mut rows: Vec<(Cell, Vec<&str>, Vec<&str>)> = Vec::new();
        let mut silent: Vec<&str> = Vec::new();
        for input in INPUTS {
            let mut groups: Vec<(Cell, Vec<&str>)> = Vec::new();
            for situation in &situations {
                let cell = apply(situation, input);
                match groups.iter_mut().find(|(known, _)| *known == cell) {
                    Some((_, names)) => names.push(situation.name),
                    None => groups.push((cell, vec![situation.name])),
                }
            }
            groups.retain(|(cell, _)| !does_nothing(cell));
            if groups.is_empty() {
                silent.push(input);
            }
            for (cell, names) in groups {
                match rows.iter_mut().find(|row| row.0 == cell && row.1 == names) {
                    Some(row) => row.2.push(input),
                    None => rows.push((cell, names, vec![input])),
                }
            }
        }
        for (cell, names, inputs) in rows {
            let others: Vec<&str> =
                situations.iter().map(|s| s.name).filter(|name| !names.contains(name)).collect();
            let place = match others.len() {
                0 => "any".to_owned(),
                1 | 2 if names.len() > 2 => format!("any but {}", others.join("; ")),
                _ => names.join("; "),
            };
            let counted = cell.suppressed.iter().map(|why| format!("*counted: {why}*"));
            let told: Vec<String> = cell.told.iter().cloned().chain(counted).collect();
            let place = if phase == "none" { String::new() } else { format!(" {place} |") };
            let _ = writeln!(page, "| {} |{place} {} | {} |", inputs.join("; "), cell.next, told.join(", "));
        }
        let silent = match phase {
            "none" => "Whatever else comes without an incident opens none.".to_owned(),
            _ => format!("Nothing changes by: {}.", silent.join("; ")),
        };
        let _ = writeln!(page, "\n{silent}");
    }
    page.push_str(include_str!("state-machine.tail.md"));
    page
}

#[test]
fn the_page_in_the_docs_is_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/state-machine.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("docs/ is there");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "docs/state-machine.md is not what the code does: run with UPDATE_DOCS=1");
}
