//! One Hook through `plan`, situation by situation.

use super::*;
use crate::{
    hook::{EventType, Farewell, Told, Verb},
    incident::{
        fixtures::*,
        lifecycle::NoticeKind,
        outcome::{EndState, Protocol, Usage},
        signal::Occurrence,
    },
};

use Phase::{Firing, Notified, Pending, Resolved};
use Reason::*;

fn restarts() -> Bench {
    Bench::new(rules(vec![rule(EventType::PodRestart, AGENT)]))
}

fn fan_out() -> Bench {
    Bench::new(rules(vec![rule(EventType::PodRestart, AGENT), rule(EventType::PodRestart, OTHER_AGENT)]))
}

/// A bench whose pods have been told of to the agent at `now`.
fn notified(pods: &[&str], now: DateTime<Utc>) -> Bench {
    let mut bench = restarts();
    let signals: Vec<Signal> = pods.iter().map(|pod| restarted(pod, 1, now)).collect();
    bench.turn(&signals, &[], now);
    let outcomes: Vec<Outcome> =
        pods.iter().map(|pod| bench.outcome(pod, reply_accepted(&format!("task-{pod}")))).collect();
    bench.turn(&[], &outcomes, now);
    bench
}

/// Plans at every wake and nothing else until nothing is to come; panics where that takes too long.
fn sleep_until_settled(bench: &mut Bench, mut now: DateTime<Utc>) -> DateTime<Utc> {
    for _ in 0..1000 {
        let plan = bench.turn(&[], &[], now);
        let Some(next) = plan.next_wake else { return now };
        assert!(next > now, "a wake that is not later than {now}: {next}");
        let planned = bench.plan(&[], &[], next);
        assert!(
            planned.urgency > Urgency::None || planned.next_wake != Some(next),
            "woken at {next} for nothing: {:#?}",
            bench.status
        );
        now = next;
    }
    panic!("still not settled: {:#?}", bench.status);
}

/// A bench whose restarts are asked of these agents, directly.
fn direct(urls: &[&str]) -> Bench {
    let agents: Vec<AgentName> = (urls.iter())
        .map(|url| AgentName::Direct { namespace: NAMESPACE.into(), url: (*url).into() })
        .collect();
    let rule_of = |agent: &AgentName| Rule { agent: agent.clone(), ..rule(EventType::PodRestart, AGENT) };
    let mut bench = Bench::new(rules(agents.iter().map(rule_of).collect()));
    let free = bench.of_agent(AGENT).clone();
    bench.capacity.agents = agents.into_iter().map(|agent| (agent, free.clone())).collect();
    bench
}

fn next_signal(pod: &str, at: DateTime<Utc>) -> Signal {
    restarted(pod, 2, at)
}

// ---- who may be called

#[test]
fn agents_that_share_slots_share_them() {
    let mut bench = direct(&["http://a/1", "http://a/2", "http://b/"]);
    bench.capacity.shared = [("http://a".to_owned(), 1), ("http://b".to_owned(), 5)].into();
    let plan = bench.turn(&[restarted("web-0", 1, at(0)), restarted("web-1", 1, at(0))], &[], at(0));
    let of_host =
        |host: &str| plan.claimed.iter().filter(|(_, agent)| agent.to_string().starts_with(host)).count();
    assert_eq!((of_host("http://a"), of_host("http://b")), (1, 2));
    let waiting = bench.status.active_events.iter().filter(|entry| entry.reason == Some(WaitingForSlot));
    assert_eq!(waiting.count(), 3);
    assert!(plan.waits_for_capacity);
}

#[test]
fn what_an_agent_needs_is_waited_for_without_an_attempt() {
    let mut bench = restarts();
    bench.allow(Allow::NotReady);
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert!(plan.claimed.is_empty() && plan.waits_for_capacity);
    let entry = bench.entry();
    assert_eq!((entry.status, entry.reason, entry.attempts), (Pending, Some(AgentNotReady), 0));
    bench.allow(Allow::All);
    assert_eq!(bench.turn(&[], &[], at(1)).claimed.len(), 1);
    assert_eq!(bench.entry().attempts, 1);
}

#[test]
fn a_task_that_cannot_be_followed_is_told_of() {
    for id in ["x".repeat(129), "a\u{1}b".into(), "é".into()] {
        let mut bench = restarts();
        bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
        let outcome = bench.outcome("web-0", reply_accepted(&id));
        bench.turn(&[], &[outcome], at(1));
        let entry = bench.entry();
        assert_eq!((entry.status, entry.outcome), (Notified, Some(EndState::OutcomeUnknown)), "{id}");
        assert!(entry.task_id.is_none() && entry.message.contains("cannot be kept"), "{}", entry.message);
    }
}

#[test]
fn an_answer_is_shown_without_what_does_not_show() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let ended = completed("one\n\u{1b}[31mtwo\u{0}\u{202e}\tthree");
    let reply = Reply::Accepted { task_id: None, ended: Some(ended), protocol: None };
    let outcome = bench.outcome("web-0", reply);
    bench.turn(&[], &[outcome], at(1));
    assert_eq!(bench.entry().answer.as_deref(), Some("one\n[31mtwo\tthree"));
}

#[test]
fn what_answers_cost_adds_up_within_an_episode() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let usage = Usage { prompt: 10, answer: 5, total: 20 };
    let reply = || Reply::Accepted {
        task_id: None,
        ended: Some(Ended { usage: Some(usage), ..completed("so") }),
        protocol: Some(Protocol::V10),
    };
    let outcome = bench.outcome("web-0", reply());
    let plan = bench.turn(&[], &[outcome], at(1));
    assert_eq!(plan.notices.iter().filter_map(|notice| notice.usage).collect::<Vec<_>>(), [usage]);
    bench.turn(&[next_signal("web-0", at(700))], &[], at(700));
    let outcome = bench.outcome("web-0", reply());
    bench.turn(&[], &[outcome], at(701));
    let entry = bench.entry();
    assert_eq!(entry.tokens, Some(Usage { prompt: 20, answer: 10, total: 40 }));
    assert_eq!(entry.protocol, Some(Protocol::V10));
}

// ---- the way through

#[test]
fn one_incident_from_signal_to_oblivion() {
    let mut bench = restarts();
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert_eq!(plan.urgency, Urgency::Claim);
    assert_eq!(plan.claimed, [(claim("p1", 1, at(0)), agent(AGENT))]);
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);
    let kinds: Vec<_> = plan.notices.iter().map(|notice| format!("{:?}", notice.kind)).collect();
    assert_eq!(kinds, ["EventPending", "EventFiring"]);
    assert_eq!(plan.next_wake, None, "only the outcome can change it");

    let outcome = bench.outcome("web-0", reply_accepted("task-1"));
    let plan = bench.turn(&[], &[outcome], at(2));
    assert_eq!((plan.urgency, plan.next_wake), (Urgency::Soon, Some(at_ms(602_001))));
    assert_eq!(bench.entry().task_id.as_deref(), Some("task-1"));

    let ended = News::TaskEnded("task-1".into(), completed("It was the disk."));
    let outcome = outcome_of(bench.entry(), ended);
    bench.turn(&[], &[outcome], at(30));
    assert_eq!(bench.entry().outcome, Some(EndState::Completed));

    let plan = bench.turn(&[], &[], at_ms(602_001));
    assert_eq!(bench.phases(), [("web-0", Resolved, Quiet)]);
    assert_eq!(plan.next_wake, Some(at_ms(602_001 + 3_600_000 + 1)));
    bench.turn(&[], &[], plan.next_wake.expect("a wake"));
    assert_eq!(bench.status.active_events, []);
    assert_eq!(bench.status.last_resource.as_deref(), Some("web-0"), "the columns remember");
}

#[test]
fn every_incident_ends_by_its_wakes_alone() {
    let mut bench = Bench::new(rules_for_all());
    bench.policy.delivery_timeout = minutes(60);
    let unready = readiness("web-1", StandingState::Holds, at(0));
    bench.turn(&[restarted("web-0", 1, at(0)), unready], &[], at(0));
    // web-0's call is lost with another process, web-1's agent is away.
    bench.process = "p2";
    bench.unmoved.insert(bench.of_pod("web-0").claim.clone().expect("a claim"), Duration::ZERO);
    bench.allow(Allow::NoneUntil(at(100_000)));
    let wake = bench.turn(&[], &[], at(1)).next_wake;
    assert_eq!(wake, Some(at(120)), "web-1's hold");
    bench.unmoved.values_mut().for_each(|unmoved| *unmoved = minutes(3));
    sleep_until_settled(&mut bench, at(181));
    assert_eq!(bench.status.active_events, []);
}

#[test]
fn what_every_start_goes_through_leaves_no_trace() {
    let mut bench = Bench::new(rules_for_all());
    bench.policy.unseen_share = Policy::default().unseen_share;
    bench.turn(&[], &[], at(0));
    let holds = readiness("web-0", StandingState::Holds, at(0));
    let plan = bench.turn(std::slice::from_ref(&holds), &[], at(1));
    // It stays in the inbox, and is looked at again after a quarter of its two minutes.
    assert_eq!((plan.status.active_events.len(), plan.urgency), (0, Urgency::None));
    assert_eq!((plan.young, plan.next_wake), (BTreeSet::from([0]), Some(at(30))));

    // It clears: nothing is left of it, and nothing was written.
    let clear = readiness("web-0", StandingState::Clear, at(10));
    let plan = bench.plan(&[holds.clone(), clear], &[], at(10));
    assert_eq!((plan.status.active_events.len(), plan.young.len(), plan.next_wake), (0, 0, None));

    // It lasts: an incident, called at the end of its hold and not later.
    let plan = bench.turn(&[holds], &[], at(30));
    assert_eq!(bench.phases(), [("web-0", Pending, Holding)]);
    assert_eq!((plan.young.len(), plan.next_wake), (0, Some(at(120))));
}

#[test]
fn a_restart_by_a_probe_is_called_about_though_the_container_runs_again() {
    let mut bench = Bench::new(rules_for_all());
    let mut failing = readiness("web-0", StandingState::Holds, at(0));
    failing.cause = signal::Cause::Liveness;
    bench.turn(&[failing], &[], at(10));
    assert_eq!(bench.phases(), [("web-0", Pending, Holding)]);
    let mut restart = restarted("web-0", 1, at(20));
    restart.event_type = EventType::ProbeFailed;
    let clear = readiness("web-0", StandingState::Clear, at(21));
    let plan = bench.turn(&[restart, clear], &[], at(22));
    assert_eq!((bench.phases(), plan.claimed.len()), (vec![("web-0", Firing, Calling)], 1));
    // It is over when the container has run for ten minutes, not for one.
    let outcome = bench.outcome("web-0", reply_accepted("task-1"));
    let plan = bench.turn(&[], &[outcome], at(23));
    assert_eq!(plan.next_wake, Some(at(621)));
}

#[test]
fn a_crash_loop_lasts_though_its_container_runs_between_two_crashes() {
    let runs = |since| {
        let mut clear = readiness("web-0", StandingState::Clear, since);
        (clear.event_type, clear.cause) = (EventType::PodRestart, signal::Cause::Restart);
        clear
    };
    let held = || {
        let mut rules = rules_for_all();
        rules.configurations.iter_mut().for_each(|rule| rule.hold = Some(Duration::from_secs(300)));
        Bench::new(rules)
    };
    let mut bench = held();
    for (count, crash) in [(1, 0), (2, 12), (3, 90), (4, 250)] {
        bench.turn(&[restarted("web-0", count, at(crash))], &[], at(crash));
        let plan = bench.turn(&[runs(at(crash + 1))], &[], at(crash + 1));
        assert_eq!(bench.phases(), [("web-0", Pending, Holding)]);
        assert_eq!(plan.next_wake, Some(at(300)));
    }
    // It has lasted long enough, but runs just now: is that the end?
    let plan = bench.turn(&[], &[], at(300));
    assert_eq!((bench.phases(), plan.next_wake), (vec![("web-0", Pending, Holding)], Some(at(551))));
    assert_eq!(bench.entry().message, "runs again: over at 03:09:11Z, called if it happens before");
    // No, it is not.
    bench.turn(&[restarted("web-0", 5, at(540))], &[], at(540));
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);

    // One crash alone is over once the container has run for as long.
    let mut bench = held();
    bench.turn(&[restarted("web-0", 1, at(0)), runs(at(1))], &[], at(1));
    bench.turn(&[], &[], at(300));
    assert_eq!(bench.phases(), [("web-0", Pending, Holding)]);
    bench.turn(&[], &[], at(301));
    assert_eq!(bench.phases(), [("web-0", Resolved, RecoveredBeforeCall)]);

    // A Hook that wants no hold any more wants to hear of it.
    let mut bench = held();
    bench.turn(&[restarted("web-0", 1, at(0)), runs(at(1))], &[], at(1));
    bench.rules = rules_for_all();
    bench.turn(&[], &[], at(300));
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);
}

#[test]
fn what_cannot_be_told_any_more_calls_nobody_and_ends_nothing_that_was_called_about() {
    let mut bench = Bench::new(rules_for_all());
    let holds = readiness("web-0", StandingState::Holds, at(0));
    let mut unclear = holds.clone();
    unclear.nature = Nature::Unclear;
    bench.turn(std::slice::from_ref(&holds), &[], at(10));
    bench.turn(std::slice::from_ref(&unclear), &[], at(20));
    assert_eq!(bench.phases(), [("web-0", Resolved, RecoveredBeforeCall)]);

    let mut bench = Bench::new(rules_for_all());
    bench.turn(&[holds], &[], at(120));
    let outcome = bench.outcome("web-0", reply_accepted("task-1"));
    bench.turn(&[], &[outcome], at(121));
    bench.turn(&[unclear], &[], at(122));
    assert_eq!(bench.phases(), [("web-0", Notified, AgentCalled)]);
}

#[test]
fn late_events_of_a_pod_that_is_gone_never_ask_again() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let outcome = bench.outcome("web-0", reply_accepted("task-1"));
    bench.turn(&[], &[outcome], at(1));
    let mut gone = readiness("web-0", StandingState::Gone, at(300));
    gone.event_type = EventType::PodRestart;
    bench.turn(&[gone], &[], at(300));
    assert_eq!(bench.phases(), [("web-0", Resolved, PodGone)]);

    // Past the window, from a source not heard before: as a list of Events after a change of leader.
    let mut late = restarted("web-0", 7, at(290));
    late.observed_at = at(700);
    let plan = bench.turn(std::slice::from_ref(&late), &[], at(700));
    assert_eq!((bench.phases(), plan.claimed.len()), (vec![("web-0", Resolved, PodGone)], 0));

    // A new pod under the name is another matter.
    late.uid = "another".into();
    late.nature = Nature::Occurrence(Occurrence { source: "another".into(), at: at(710), count: 1 });
    bench.turn(&[late], &[], at(710));
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);
}

#[test]
fn the_same_inputs_again_change_nothing() {
    let mut bench = restarts();
    let signals = [restarted("web-0", 1, at(0)), restarted("web-1", 1, at(0))];
    bench.turn(&signals, &[], at(0));
    let plan = bench.plan(&signals, &[], at(0));
    assert_eq!((plan.urgency, plan.claimed.len(), plan.notices.len()), (Urgency::None, 0, 0));
    assert_eq!(plan.suppressed, [Suppressed::Duplicate, Suppressed::Duplicate]);
    assert_eq!(plan.status, bench.status);
}

#[test]
fn last_seen_and_count_alone_are_written_quietly() {
    let mut bench = notified(&["web-0", "web-1"], at(0));
    let plan = bench.turn(&[restarted("web-0", 2, at(60))], &[], at(60));
    assert_eq!((plan.urgency, plan.suppressed), (Urgency::Quiet, vec![Suppressed::Window]));
    assert_eq!(bench.of_pod("web-0").count, 2);
}

// ---- fan-out, duplicates, what nobody listens to

#[test]
fn two_agents_of_one_kind_of_trouble_are_both_asked() {
    let mut bench = fan_out();
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let agents: Vec<String> = plan.claimed.iter().map(|(_, agent)| agent.to_string()).collect();
    assert_eq!(agents, [AGENT, OTHER_AGENT]);
    let [one, other] = &bench.status.active_events[..] else { panic!("two entries") };
    assert_ne!(one.id, other.id);
    assert_ne!(one.session_id, other.session_id);
    assert_ne!(one.claim, other.claim);
}

#[test]
fn what_nobody_listens_to_leaves_no_trace() {
    let mut bench = restarts();
    bench.turn(&[], &[], at(0));
    let plan = bench.turn(&[readiness("web-0", StandingState::Holds, at(0))], &[], at(0));
    assert_eq!((plan.urgency, plan.held_back.len()), (Urgency::None, 0));
}

#[test]
fn outcomes_of_what_is_forgotten_or_of_another_episode_change_nothing() {
    let mut bench = notified(&["web-0"], at(0));
    let stray = Outcome {
        session_id: "another".into(),
        ..outcome_of(bench.entry(), News::TaskEnded("task-web-0".into(), completed("x")))
    };
    assert_eq!(bench.turn(&[], &[stray], at(1)).urgency, Urgency::None);
}

#[test]
fn a_deletion_of_an_earlier_pod_of_that_name_resolves_nothing() {
    let mut bench = notified(&["web-0"], at(0));
    let mut gone = restarted("web-0", 1, at(5));
    gone.nature = Nature::Condition { state: StandingState::Gone, since: at(5) };
    gone.uid = "the-one-before".into();
    bench.turn(&[gone.clone()], &[], at(5));
    assert_eq!(bench.phases(), [("web-0", Notified, AgentCalled)]);
    gone.uid = "uid-of-web-0".into();
    bench.turn(&[gone], &[], at(6));
    assert_eq!(bench.phases(), [("web-0", Resolved, PodGone)]);
}

// ---- what the Go khook left, and what editors made

fn left_by_go(pod: &str, phase: &str, last_seen: &str) -> ActiveEvent {
    let entry = serde_json::json!({
        "eventType": "pod-restart", "resourceName": pod, "status": phase,
        "firstSeen": "2026-01-02T02:50:00Z", "lastSeen": last_seen,
    });
    serde_json::from_value(entry).expect("what Go wrote")
}

#[test]
fn a_status_of_the_go_khook_is_taken_over_and_nobody_is_called_for_it() {
    let mut bench = fan_out();
    bench.status.active_events = vec![
        left_by_go("web-0", "firing", "2026-01-02T02:59:00Z"),
        left_by_go("web-1", "resolved", "2026-01-02T02:58:00Z"),
    ];
    let plan = bench.turn(&[], &[], at(0));
    assert_eq!((plan.urgency, plan.claimed.len()), (Urgency::Soon, 0));
    assert_eq!(
        bench.phases(),
        [
            ("web-0", Notified, AgentCalled),
            ("web-0", Notified, AgentCalled),
            ("web-1", Resolved, Quiet),
            ("web-1", Resolved, Quiet),
        ]
    );
    let entry = &bench.status.active_events[0];
    assert_eq!(entry.last_notified_at, Some(at(-60)));
    assert!(!entry.id.is_empty() && entry.session_id.is_some() && entry.namespace == NAMESPACE);
    assert_eq!(bench.plan(&[], &[], at(0)).urgency, Urgency::None, "taken over once");

    // The occurrence of then, replayed by a list, says nothing new.
    let replay = restarted("web-0", 7, at(-61));
    let plan = bench.turn(&[Signal { observed_at: at(1), ..replay }], &[], at(1));
    assert_eq!((plan.urgency, plan.claimed.len()), (Urgency::None, 0));
    // A new one is news after the window only.
    assert_eq!(bench.turn(&[restarted("web-0", 8, at(100))], &[], at(100)).claimed.len(), 0);
    assert_eq!(bench.turn(&[restarted("web-0", 9, at(540))], &[], at(540)).claimed.len(), 2);
}

#[test]
fn what_an_editor_did_to_a_status_is_survived() {
    let mut bench = notified(&["web-0", "web-1"], at(0));
    let mut twice = bench.of_pod("web-0").clone();
    twice.status = Pending;
    bench.status.active_events.push(twice);
    bench.status.active_events[0].last_seen = DateTime::<Utc>::MAX_UTC;
    bench.status.active_events[0].first_seen = DateTime::<Utc>::MIN_UTC;
    bench.status.active_events[0].last_notified_at = Some(DateTime::<Utc>::MAX_UTC);
    bench.status.active_events[1].status = Resolved;
    bench.status.active_events[1].session_id = None;
    bench.status.active_events[1].attempts = i32::MAX;
    bench.status.active_events[1].window = i32::MAX;
    bench.status.active_events[1].count = i64::MAX;
    bench.status.active_events[1].seen = vec![format!("x {} 2026-01-01T00:00:00Z", i64::MIN)];
    bench.turn(&[restarted("web-1", i64::MAX, at(700))], &[], at(700));
    assert_eq!(bench.status.active_events.len(), 2, "two entries of one incident would be two calls");
    let end = sleep_until_settled(&mut bench, at(700));
    assert_eq!(bench.of_pod("web-1").status, Firing, "its outcome is awaited, by {end}");
}

#[test]
fn a_copied_entry_hears_only_its_own_outcomes() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let called = bench.outcome("web-0", reply_accepted("task"));
    let copy =
        ActiveEvent { resource_name: "web-1".into(), status: Pending, claim: None, ..bench.entry().clone() };
    bench.status.active_events.insert(0, copy);
    bench.turn(&[], &[called], at(1));
    assert_eq!(bench.phases(), [("web-1", Firing, Calling), ("web-0", Notified, AgentCalled)]);
}

// ---- bounds

#[test]
fn what_does_not_fit_is_counted_and_admitted_in_its_order_when_a_place_frees() {
    let mut bench = restarts();
    bench.policy.max_entries = 2;
    let pods = ["web-0", "web-1", "web-2", "web-3"];
    let mut inbox: Vec<Signal> = pods.iter().map(|pod| restarted(pod, 1, at(0))).collect();
    let plan = bench.turn(&inbox, &[], at(0));
    assert_eq!(plan.held_back, BTreeSet::from([2, 3]));
    assert_eq!(bench.status.overflow, Some(2));
    let overflow = bench.status.conditions.iter().find(|condition| condition.type_ == "Overflow");
    assert_eq!(overflow.map(|condition| condition.status.as_str()), Some("True"));
    inbox.drain(..2);
    assert_eq!(bench.plan(&inbox, &[], at(0)).urgency, Urgency::None, "held back once more: no change");

    let outcomes = [bench.outcome("web-0", reply_accepted("a")), bench.outcome("web-1", reply_accepted("b"))];
    bench.turn(&inbox, &outcomes, at(1));
    let quiet = bench.turn(&inbox, &[], at_ms(601_001));
    assert_eq!(bench.phases().iter().filter(|(_, phase, _)| *phase == Resolved).count(), 2);
    // A place frees as soon as a replay would be stale, not when the hour for people is over.
    assert_eq!(quiet.next_wake, Some(at_ms(900_001)));
    let plan = bench.turn(&inbox, &[], at_ms(900_001));
    assert_eq!((plan.held_back.len(), plan.claimed.len(), bench.status.overflow), (0, 2, None));
    assert_eq!(bench.phases(), [("web-2", Firing, Calling), ("web-3", Firing, Calling)]);
}

#[test]
fn what_came_later_does_not_pass_by_what_waits() {
    let mut bench = restarts();
    bench.policy.max_entries = 1;
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    // By bytes the second would fit, the first does not.
    bench.policy.max_entries = 100;
    bench.policy.max_bytes = bench.status.active_events.iter().map(least_size).sum::<usize>() + 1580;
    let long = "long-".repeat(48);
    let plan = bench.turn(&[restarted(&long, 1, at(1)), restarted("a", 1, at(1))], &[], at(1));
    assert_eq!(plan.held_back, BTreeSet::from([0, 1]));
}

#[test]
fn trouble_that_is_over_before_it_was_admitted_waits_no_longer() {
    let mut bench = Bench::new(rules(vec![rule(EventType::ProbeFailed, AGENT)]));
    bench.policy.max_entries = 1;
    let inbox = [
        readiness("web-0", StandingState::Holds, at(0)),
        readiness("web-1", StandingState::Holds, at(0)),
        readiness("web-1", StandingState::Clear, at(5)),
    ];
    let plan = bench.turn(&inbox, &[], at(5));
    assert_eq!((plan.held_back.len(), bench.status.overflow), (0, None));
}

#[test]
fn a_signal_held_back_for_one_agent_of_two_is_counted_as_a_duplicate_by_neither() {
    let mut bench = fan_out();
    bench.policy.max_entries = 3;
    let inbox = [restarted("web-0", 1, at(0)), restarted("web-1", 1, at(0))];
    let plan = bench.turn(&inbox, &[], at(0));
    assert_eq!((plan.held_back, bench.status.overflow), (BTreeSet::from([1]), Some(1)));
    let plan = bench.turn(&inbox[1..], &[], at(1));
    assert_eq!((plan.urgency, plan.suppressed.len()), (Urgency::None, 0));
}

#[test]
fn an_entry_that_a_waiting_signal_would_open_again_is_not_forgotten() {
    let mut bench = fan_out();
    bench.policy.max_entries = 3;
    bench.policy.keep_resolved = 0;
    let inbox = [restarted("web-0", 1, at(0)), restarted("web-1", 1, at(0))];
    bench.turn(&inbox, &[], at(0));
    let asked = bench.of_pod("web-1").clone();
    let news = News::Called(asked.claim.clone().expect("a claim"), reply_accepted("t"));
    bench.turn(&inbox[1..], &[outcome_of(&asked, news)], at(1));
    // Its place goes to the other agent's entry; it is not opened again by the signal that is still there.
    let plan = bench.turn(&inbox[1..], &[], at(4000));
    let agents: Vec<String> = plan.claimed.iter().map(|(_, agent)| agent.to_string()).collect();
    assert_eq!((agents, plan.held_back.len()), (vec![OTHER_AGENT.to_owned()], 0));
}

/// An entry with every field set, and words that grow in JSON.
fn largest(pod: &str, words: &str) -> ActiveEvent {
    let mut bench = notified(&[pod], at(0));
    let words = words.repeat(80);
    ActiveEvent {
        containers: (0..16).map(|i| format!("{i}-{}", "c".repeat(60))).collect(),
        reason: Some(ConfigurationRemoved),
        message: words.clone(),
        window: i32::MAX,
        attempts: i32::MAX,
        count: i64::MAX,
        claim: Some(Claim { seconds: i64::MAX, ..claim("khook-7d4b9c-x2x9z/8f1e", i64::MAX, at_ms(1)) }),
        notified_at: Some(at_ms(1)),
        last_notified_at: Some(at_ms(1)),
        first_seen: at_ms(1) + chrono::TimeDelta::nanoseconds(1),
        last_seen: at_ms(1) + chrono::TimeDelta::nanoseconds(1),
        due_at: Some(at_ms(1) + chrono::TimeDelta::nanoseconds(1)),
        next_attempt_at: Some(at_ms(1) + chrono::TimeDelta::nanoseconds(1)),
        resolved_at: Some(at_ms(1)),
        last_error: Some(words.clone()),
        answer: Some(words.clone()),
        outcome: Some(EndState::DeadlineExceeded),
        event_name: words.clone(),
        event_reason: words.clone(),
        event_message: words.clone(),
        condition: Some(crate::hook::Standing {
            state: StandingState::Holds,
            since: at_ms(1) + chrono::TimeDelta::nanoseconds(1),
        }),
        owed: true,
        resent: true,
        task_id: Some("t".repeat(128)),
        seen: (0..16).map(|i| everything_until(at_ms(i))).collect(),
        told: Some(Told {
            count: i64::MAX,
            containers: 16,
            uid: "u".repeat(36),
            reason: words.clone(),
            resolved: true,
        }),
        farewell: Some(Farewell { state: FarewellState::Unknown, attempts: i32::MAX }),
        session_url: Some(words.clone()),
        protocol: Some(Protocol::V10),
        tokens: Some(Usage { prompt: i64::MAX, answer: i64::MAX, total: i64::MAX }),
        answered_at: Some(at_ms(1)),
        instruction: Some(Instruction {
            verb: Verb::Resolve,
            by: words,
            at: at_ms(1),
            until: Some(at_ms(1)),
        }),
        test: Some("k3v9x2".into()),
        ..bench.status.active_events.remove(0)
    }
}

fn bytes(entry: &ActiveEvent) -> usize {
    serde_json::to_vec(entry).expect("an entry").len() + 1
}

#[test]
fn the_estimate_of_a_size_is_never_too_low_and_not_far_too_high() {
    for words in ["", "plain ", "\"\\", "\u{1}é…\n"] {
        let full = largest("web-0", words);
        assert!(size(&full) >= bytes(&full), "{words:?}: {} < {}", size(&full), bytes(&full));
        let mut least = full.clone();
        [forget_answer, shorten_words, forget_marks, forget_words].iter().for_each(|cut| cut(&mut least));
        assert!(least_size(&full) >= bytes(&least), "{} < {}", least_size(&full), bytes(&least));
    }
    let plain = largest("web-0", "plain ");
    assert!(size(&plain) < bytes(&plain) + 100, "{} for {}", size(&plain), bytes(&plain));
    // As many as there are places: names of a usual length, 147456 bytes for 100.
    let usual = notified(&["checkout-5d8f7c9b6d-x2x9z"], at(0)).entry().clone();
    assert!(size(&usual) >= bytes(&usual) && least_size(&usual) < 1474, "{}", least_size(&usual));
}

#[test]
fn bytes_stay_in_their_bound_whatever_is_added_and_the_oldest_answers_go_first() {
    let mut bench = restarts();
    bench.policy.max_bytes = 40_000;
    let pods: Vec<String> = (0..60).map(|i| format!("web-{i}")).collect();
    let signals: Vec<Signal> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| restarted(pod, 1, at(i64::try_from(i).expect("small"))))
        .collect();
    let plan = bench.turn(&signals, &[], at(60));
    assert!(!plan.held_back.is_empty() && plan.held_back.len() < 50, "{} held back", plan.held_back.len());
    let total = |bench: &Bench| bench.status.active_events.iter().map(bytes).sum::<usize>();
    assert!(total(&bench) <= 40_000);
    for entry in &mut bench.status.active_events {
        *entry = ActiveEvent {
            claim: entry.claim.clone(),
            ..largest(&entry.resource_name.clone(), "\"\\\u{1}é…\n")
        };
        (entry.status, entry.reason, entry.resolved_at) = (Notified, Some(AgentCalled), None);
    }
    bench.turn(&[], &[], at(61));
    assert!(total(&bench) <= 40_000, "{}", total(&bench));

    let mut bench = notified(&["web-0", "web-1", "web-2"], at(0));
    bench.status.active_events[1].last_seen = at(-100);
    bench.status.active_events.iter_mut().for_each(|entry| entry.answer = Some("a".repeat(512)));
    bench.policy.max_bytes = bench.status.active_events.iter().map(size).sum::<usize>() - 1;
    bench.turn(&[], &[], at(1));
    let kept: Vec<bool> = bench.status.active_events.iter().map(|entry| entry.answer.is_some()).collect();
    assert_eq!(kept, [true, false, true]);
}

#[test]
fn marks_that_were_folded_into_one_still_know_every_replay() {
    let mut bench = notified(&["web-0"], at(0));
    // A source whose clock is ahead.
    let mut ahead = restarted("web-0", 1, at(90));
    let Nature::Occurrence(occurrence) = &mut ahead.nature else { unreachable!() };
    occurrence.source = "another-event".into();
    ahead.observed_at = at(1);
    bench.turn(&[ahead.clone()], &[], at(1));
    bench.policy.max_bytes = 1;
    bench.turn(&[], &[], at(2));
    assert_eq!(bench.entry().seen.len(), 1);
    let plan = bench.turn(&[ahead, restarted("web-0", 1, at(0))], &[], at(650));
    assert_eq!(plan.suppressed, [Suppressed::Duplicate, Suppressed::Duplicate]);
}

#[test]
fn resolved_entries_stay_while_they_decide_anything_then_the_newest_for_an_hour() {
    let mut bench = restarts();
    bench.policy.keep_resolved = 2;
    for second in 0..4 {
        let pod = format!("web-{second}");
        bench.turn(&[restarted(&pod, 1, at(second))], &[], at(second));
        let outcome = bench.outcome(&pod, reply_accepted("t"));
        bench.turn(&[], &[outcome], at(second));
    }
    bench.turn(&[], &[], at(700));
    assert_eq!(bench.status.resolved, Some(4), "a replay would open it anew");
    // All were resolved in the same plan: the number decides, not the moment.
    bench.turn(&[], &[], at(904));
    assert_eq!(bench.status.resolved, Some(2));
    bench.turn(&[], &[], at(700 + 3600));
    assert_eq!(bench.status.resolved, Some(2));
    bench.turn(&[], &[], at_ms(4_300_001));
    assert_eq!(bench.status.resolved, Some(0));
}

#[test]
fn a_replay_is_unknown_to_nobody_until_it_is_stale() {
    let mut bench = notified(&["web-0"], at(0));
    bench.policy.keep_resolved = 0;
    for second in (0..1000).step_by(10) {
        let replay = Signal { observed_at: at(second), ..restarted("web-0", 1, at(0)) };
        let plan = bench.turn(&[replay], &[], at(second));
        assert_eq!(plan.claimed, [], "asked again at {second}");
    }
    assert_eq!(bench.status.active_events, []);
}

// ---- claims: order, slots, breakers

#[test]
fn those_due_longest_are_called_first_within_the_slots() {
    let mut bench = restarts();
    bench.capacity.may_claim = false;
    bench.turn(&[restarted("b", 1, at(5)), restarted("a", 1, at(3)), restarted("c", 1, at(4))], &[], at(6));
    bench.capacity.may_claim = true;
    bench.capacity.slots = 2;
    let plan = bench.turn(&[], &[], at(7));
    assert_eq!(
        bench.phases(),
        [("b", Pending, WaitingForSlot), ("a", Firing, Calling), ("c", Firing, Calling)]
    );
    assert!(plan.waits_for_capacity);
    bench.capacity.slots = 64;
    assert!(!bench.turn(&[], &[], at(8)).waits_for_capacity, "it has what it waited for");
}

#[test]
fn one_agents_slots_do_not_hold_up_another() {
    let mut bench = fan_out();
    bench.of_agent(AGENT).slots = 1;
    let signals = [restarted("a", 1, at(0)), restarted("b", 1, at(0)), restarted("c", 1, at(0))];
    let plan = bench.turn(&signals, &[], at(0));
    let of = |name: &str| plan.claimed.iter().filter(|(_, agent)| agent.is(name)).count();
    assert_eq!((of(AGENT), of(OTHER_AGENT)), (1, 3));
}

#[test]
fn an_agent_nobody_knows_the_capacity_of_and_a_process_that_may_not_claim_call_nobody() {
    let mut bench = restarts();
    bench.capacity.agents.clear();
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert!(plan.claimed.is_empty() && plan.waits_for_capacity);
    let mut bench = restarts();
    bench.capacity.may_claim = false;
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert!(plan.claimed.is_empty() && plan.waits_for_capacity);
    assert_eq!(plan.urgency, Urgency::Soon);
}

#[test]
fn a_probe_is_one_call_and_the_rest_wait_without_an_attempt() {
    let mut bench = fan_out();
    bench.allow(Allow::Probe);
    let signals = [restarted("a", 1, at(0)), restarted("b", 1, at(0)), restarted("c", 1, at(0))];
    let plan = bench.turn(&signals, &[], at(0));
    let of = |name: &str| plan.claimed.iter().filter(|(_, agent)| agent.is(name)).count();
    assert_eq!((of(AGENT), of(OTHER_AGENT)), (1, 3));
    let waiting: Vec<_> = bench.status.active_events.iter().filter(|e| e.status == Pending).collect();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|e| e.reason == Some(CircuitOpen) && e.attempts == 0));
}

#[test]
fn an_open_breaker_is_waited_for_and_its_closing_is_believed_before_its_time() {
    let mut bench = restarts();
    bench.allow(Allow::NoneUntil(at(120)));
    let plan = bench.turn(&[restarted("a", 1, at(0)), restarted("b", 1, at(0))], &[], at(0));
    assert_eq!(bench.phases(), [("a", Pending, CircuitOpen), ("b", Pending, CircuitOpen)]);
    assert_eq!((plan.next_wake, plan.waits_for_capacity), (Some(at(120)), true));
    bench.allow(Allow::All);
    let plan = bench.turn(&[], &[], at(30));
    assert_eq!(plan.claimed.len(), 2, "all that waited is released");
    assert!(bench.status.active_events.iter().all(|entry| entry.attempts == 1));
}

/// Fails the call of `web-0` until its round is over. Returns the time.
fn fail_a_round(bench: &mut Bench) -> i64 {
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let mut now = 0;
    for attempt in 1..=3 {
        assert_eq!((bench.entry().status, bench.entry().attempts), (Firing, attempt));
        let outcome = bench.outcome("web-0", reply_not_run());
        let plan = bench.turn(&[], &[outcome], at(now));
        if attempt < 3 {
            assert_eq!(bench.entry().reason, Some(BackingOff));
            now = (plan.next_wake.expect("a wake") - at(0)).num_seconds() + 1;
            bench.turn(&[], &[], at(now));
        }
    }
    assert_eq!(bench.entry().reason, Some(AgentCallFailed));
    now
}

#[test]
fn a_hook_with_nothing_to_call_also_hears_when_a_breaker_it_told_of_closes() {
    let mut bench = restarts();
    bench.allow(Allow::NoneUntil(at(120)));
    let plan = bench.turn(&[], &[], at(0));
    assert!(plan.status.conditions.iter().any(|c| c.type_ == "AgentReachable" && c.status == "False"));
    assert!(plan.waits_for_capacity);
    bench.allow(Allow::All);
    let plan = bench.turn(&[], &[], at(1));
    assert!(plan.status.conditions.iter().all(|c| c.type_ != "AgentReachable" || c.status != "False"));
    assert!(!plan.waits_for_capacity);
}

#[test]
fn after_a_failed_round_the_next_begins_by_its_time_or_when_the_breaker_closes() {
    let mut bench = restarts();
    let now = fail_a_round(&mut bench);
    let plan = bench.turn(&[], &[], at(now + 1));
    assert_eq!((plan.claimed.len(), plan.next_wake), (0, Some(at(now + 600))));
    assert!(plan.waits_for_capacity, "for the breaker to close");
    bench.of_agent(AGENT).closed_at = Some(at(now - 5));
    assert_eq!(bench.plan(&[], &[], at(now + 2)).claimed.len(), 0, "that was before the round failed");
    assert_eq!(bench.plan(&[], &[], at(now + 600)).claimed.len(), 1);
    bench.of_agent(AGENT).closed_at = Some(at(now + 20));
    assert_eq!(bench.turn(&[], &[], at(now + 20)).claimed.len(), 1);
    assert_eq!(bench.entry().attempts, 4);
}

#[test]
fn a_retry_after_is_honoured_but_not_for_ever() {
    let retry = |seconds| Reply::NotRun {
        error: "429".into(),
        retry_after: Some(Duration::from_secs(seconds)),
        throttled: true,
    };
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let outcome = bench.outcome("web-0", retry(90));
    assert_eq!(bench.turn(&[], &[outcome], at(1)).next_wake, Some(at(91)));
    bench.turn(&[], &[], at(91));
    let outcome = bench.outcome("web-0", retry(u64::MAX));
    bench.turn(&[], &[outcome], at(92));
    sleep_until_settled(&mut bench, at(92));
}

#[test]
fn what_cannot_be_delivered_is_given_up_visibly() {
    let mut bench = restarts();
    bench.allow(Allow::Probing);
    let plan = bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert_eq!(plan.next_wake, Some(at(24 * 3600)));
    let plan = bench.turn(&[], &[], at(24 * 3600));
    assert_eq!(bench.phases(), [("web-0", Resolved, NotDelivered)]);
    assert_eq!(plan.notices[0].kind, lifecycle::NoticeKind::EventNotDelivered);
    // The trouble goes on: a new episode, a new attempt.
    bench.allow(Allow::All);
    let session = bench.entry().session_id.clone();
    assert_eq!(bench.turn(&[next_signal("web-0", at(90_000))], &[], at(90_000)).claimed.len(), 1);
    assert_ne!(bench.entry().session_id, session);
}

// ---- suspension and removal

#[test]
fn a_suspended_hook_records_and_resolves_and_goes_on_with_what_is_still_true() {
    let mut bench = Bench::new(rules_for_all());
    bench.rules.suspended = true;
    let inbox = [
        restarted("old", 1, at(0)),
        restarted("new", 1, at(1700)),
        readiness("unready", StandingState::Holds, at(0)),
        readiness("ready", StandingState::Holds, at(0)),
    ];
    let plan = bench.turn(&inbox[..1], &[], at(0));
    assert_eq!((plan.claimed.len(), plan.next_wake), (0, Some(at_ms(900_001))));
    bench.turn(&inbox[2..], &[], at(1));
    bench.turn(&[readiness("ready", StandingState::Clear, at(100))], &[], at(100));
    bench.turn(&[], &[], at_ms(900_001));
    let plan = bench.turn(&inbox[1..2], &[], at(1700));
    assert_eq!(
        bench.phases(),
        [
            ("old", Resolved, RecoveredBeforeCall),
            ("unready", Pending, Suspended),
            ("ready", Resolved, RecoveredBeforeCall),
            ("new", Pending, Suspended),
        ]
    );
    assert!(plan.next_wake > Some(at(1700)), "what holds through a suspension asks for no wake");
    bench.rules.suspended = false;
    assert_eq!(bench.turn(&[], &[], at(2000)).claimed.len(), 2);
}

#[test]
fn trouble_that_holds_through_a_long_suspension_is_delivered_after_it() {
    let mut bench = Bench::new(rules_for_all());
    bench.rules.suspended = true;
    bench.turn(&[readiness("web-0", StandingState::Holds, at(0))], &[], at(0));
    bench.rules.suspended = false;
    bench.turn(&[], &[], at(26 * 3600));
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);
}

#[test]
fn a_backoff_or_an_open_breaker_survives_a_suspension() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let outcome = bench.outcome("web-0", reply_not_run());
    let plan = bench.turn(&[], &[outcome], at(0));
    bench.rules.suspended = true;
    bench.turn(&[], &[], at_ms(1));
    bench.rules.suspended = false;
    bench.turn(&[], &[], at_ms(2));
    assert_eq!(bench.phases(), [("web-0", Pending, BackingOff)]);
    assert_eq!(bench.entry().next_attempt_at, plan.next_wake);

    let mut bench = restarts();
    bench.allow(Allow::NoneUntil(at(120)));
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    bench.rules.suspended = true;
    bench.turn(&[], &[], at(1));
    bench.rules.suspended = false;
    bench.allow(Allow::All);
    assert_eq!(bench.turn(&[], &[], at(2)).claimed.len(), 1);
}

#[test]
fn a_removed_configuration_ends_its_incidents_and_a_call_under_way_is_awaited() {
    let mut bench = notified(&["notified"], at(0));
    bench.turn(&[restarted("firing", 1, at(1))], &[], at(1));
    bench.allow(Allow::Probing);
    bench.turn(&[restarted("pending", 1, at(2))], &[], at(2));
    bench.rules.configurations.clear();
    let plan = bench.turn(&[], &[], at(3));
    assert_eq!(
        bench.phases(),
        [
            ("notified", Resolved, ConfigurationRemoved),
            ("firing", Firing, Calling),
            ("pending", Resolved, ConfigurationRemoved),
        ]
    );
    assert_eq!(plan.claimed, []);
    for reply in [reply_not_run(), reply_accepted("t")] {
        let outcome = bench.outcome("firing", reply);
        let mut bench = Bench { status: bench.status.clone(), ..restarts() };
        bench.rules.configurations.clear();
        bench.turn(&[], &[outcome], at(4));
        assert_eq!(bench.of_pod("firing").reason, Some(ConfigurationRemoved));
    }
}

// ---- claims of other processes, lost acknowledgements

#[test]
fn a_foreign_claim_is_taken_over_only_after_its_time_and_looked_up_first() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let foreign = bench.entry().claim.clone().expect("a claim");
    bench.process = "p2";
    assert_eq!(bench.turn(&[], &[], at(500)).next_wake, Some(at(680)), "seen for the first time");
    bench.unmoved.insert(foreign.clone(), Duration::from_secs(100));
    assert_eq!(bench.turn(&[], &[], at(600)).next_wake, Some(at(680)));
    bench.unmoved.insert(foreign.clone(), Duration::from_millis(179_999));
    let plan = bench.turn(&[], &[], at_ms(679_999));
    assert_eq!((plan.urgency, plan.next_wake), (Urgency::None, Some(at(680))));

    bench.unmoved.insert(foreign, Duration::from_secs(180));
    bench.capacity.may_claim = false;
    assert_eq!(bench.turn(&[], &[], at(680)).next_wake, None, "a standby neither takes over nor spins");
    bench.capacity.may_claim = true;
    let plan = bench.turn(&[], &[], at(680));
    assert_eq!((plan.urgency, plan.claimed.len(), plan.next_sequence), (Urgency::Claim, 0, 3));
    assert_eq!(bench.phases(), [("web-0", Firing, CheckingSession)]);
    assert_eq!(bench.entry().claim, Some(claim("p2", 2, at(680))));
    assert_eq!(bench.entry().attempts, 1, "no attempt was made");
    let claims = bench.claims();
    let looked_up = activities(&bench.status, &claims, at(680)).next();
    assert!(matches!(looked_up, Some(Activity::LookUp(..))), "the message had its time to arrive");
}

#[test]
fn a_message_sent_just_before_a_crash_has_its_time_to_arrive_before_it_is_looked_up() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let old = bench.entry().claim.clone().expect("a claim");
    bench.process = "p2";
    // An earlier process of the same pod: it is surely dead, but may have sent until a moment ago.
    bench.unmoved.insert(old, Duration::MAX);
    assert_eq!(bench.turn(&[], &[], at(60)).next_wake, Some(at(65)));
    let begun = |now| activities(&bench.status, &bench.claims(), now).count();
    assert_eq!((begun(at_ms(64_999)), begun(at(65))), (0, 1));
}

#[test]
fn a_claim_without_a_process_and_an_own_one_that_is_lost_are_looked_up() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    bench.begun.insert(1);
    bench.busy.insert(1);
    assert_eq!(bench.plan(&[], &[], at(1)).urgency, Urgency::None, "it is under way");
    bench.busy.clear();
    let plan = bench.plan(&[], &[], at(1));
    assert_eq!(plan.status.active_events[0].reason, Some(CheckingSession));
    bench.status.active_events[0].claim = None;
    let plan = bench.plan(&[], &[], at(1));
    assert_eq!(plan.status.active_events[0].reason, Some(CheckingSession));
}

#[test]
fn a_call_is_made_once_whichever_write_its_claim_came_from() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let calls = |bench: &Bench| {
        activities(&bench.status, &bench.claims(), at(0))
            .filter(|activity| matches!(activity, Activity::Call(..)))
            .count()
    };
    assert_eq!(calls(&bench), 1);
    bench.begun.insert(1);
    assert_eq!(calls(&bench), 0);
    bench.begun.clear();
    bench.process = "p2";
    assert_eq!(calls(&bench), 0, "the claim of another");
}

#[test]
fn a_lookup_is_made_when_it_is_due_and_one_at_a_time_and_a_task_is_followed_to_its_end() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    bench.begun.insert(1);
    let outcome = bench.outcome("web-0", reply_unknown());
    let plan = bench.turn(&[], &[outcome], at(1));
    assert_eq!(plan.next_wake, Some(at(6)));
    let of = |bench: &Bench, now| {
        let claims = bench.claims();
        activities(&bench.status, &claims, now)
            .map(|activity| match activity {
                Activity::Call(..) => "call",
                Activity::LookUp(..) => "look up",
                Activity::Follow(_, task) => match task {
                    "task-1" => "follow",
                    _ => "?",
                },
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&bench, at(5)), [""; 0]);
    assert_eq!(of(&bench, at(6)), ["look up"]);
    bench.busy.insert(1);
    assert_eq!(of(&bench, at(6)), [""; 0]);
    let claim = bench.entry().claim.clone().expect("a claim");
    let found = Lookup::Found { task_id: "task-1".into(), ended: None };
    let outcome = outcome_of(bench.entry(), News::LookedUp(claim, found));
    bench.turn(&[], &[outcome], at(7));
    assert_eq!(bench.phases(), [("web-0", Notified, AgentCalled)]);
    assert_eq!(of(&bench, at(8)), ["follow"]);
    bench.turn(&[], &[], at(2000));
    assert_eq!((bench.entry().status, of(&bench, at(2000))), (Resolved, vec!["follow"]));
    let outcome = outcome_of(bench.entry(), News::TaskEnded("task-1".into(), completed("x")));
    bench.turn(&[], &[outcome], at(2001));
    assert_eq!(of(&bench, at(2001)), [""; 0]);
}

#[test]
fn a_server_without_lookup_is_sent_the_message_at_most_once_more() {
    let mut bench = restarts();
    let mut now = 0;
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let mut sends = 0;
    while bench.entry().status != Notified {
        sends += 1;
        let outcome = bench.outcome("web-0", reply_unknown());
        bench.turn(&[], &[outcome], at(now));
        let claim = bench.entry().claim.clone().expect("a claim");
        let news = News::LookedUp(claim, Lookup::Unsupported { error: "404".into() });
        let outcome = outcome_of(bench.entry(), news);
        bench.turn(&[], &[outcome], at(now + 6));
        now += 100;
        bench.turn(&[], &[], at(now));
    }
    assert_eq!((sends, bench.entry().outcome), (2, Some(EndState::OutcomeUnknown)));
}

#[test]
fn lookups_that_fail_for_a_day_end_and_wait_longer_each_time() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let outcome = bench.outcome("web-0", reply_unknown());
    let mut wake = bench.turn(&[], &[outcome], at(1)).next_wake.expect("a lookup");
    let mut waits = Vec::new();
    while bench.entry().status == Firing {
        let claim = bench.entry().claim.clone().expect("a claim");
        let news = News::LookedUp(claim, Lookup::Unavailable { error: "503".into() });
        let outcome = outcome_of(bench.entry(), news);
        let next = bench.turn(&[], &[outcome], wake).next_wake.expect("a wake");
        assert!(next > wake);
        waits.push((next - wake).num_seconds());
        wake = next;
        assert!(waits.len() < 2000, "still looking after {wake}");
    }
    assert!(waits[0] < 10 && waits.contains(&60), "{waits:?}");
    assert_eq!((bench.entry().status, bench.entry().outcome), (Notified, Some(EndState::OutcomeUnknown)));
}

// ---- repeats

#[test]
fn a_repeat_is_asked_in_the_same_session_with_another_message() {
    let mut bench = notified(&["web-0"], at(0));
    let session = bench.entry().session_id.clone();
    assert_eq!(bench.turn(&[next_signal("web-0", at(600))], &[], at(600)).claimed.len(), 1);
    let entry = bench.entry();
    assert_eq!((entry.window, entry.attempts, &entry.session_id), (2, 1, &session));
    // The end of the first window's task still counts.
    let ended = News::TaskEnded("task-web-0".into(), completed("It was the disk."));
    let outcome = outcome_of(entry, ended);
    bench.turn(&[], &[outcome], at(601));
    assert_eq!((bench.entry().status, bench.entry().outcome), (Firing, Some(EndState::Completed)));
}

#[test]
fn trouble_that_came_back_inside_its_window_is_asked_about_at_its_end_if_it_is_still_there() {
    let mut bench = Bench::new(rules(vec![rule(EventType::ProbeFailed, AGENT)]));
    bench.turn(&[readiness("web-0", StandingState::Holds, at(-200))], &[], at(0));
    let outcome = bench.outcome("web-0", reply_accepted("t"));
    bench.turn(&[], &[outcome], at(0));
    bench.turn(&[readiness("web-0", StandingState::Clear, at(10))], &[], at(10));
    bench.turn(&[], &[], at(70));
    assert_eq!(bench.phases(), [("web-0", Resolved, Recovered)]);
    bench.turn(&[readiness("web-0", StandingState::Holds, at(300))], &[], at(300));
    assert_eq!(bench.phases(), [("web-0", Notified, Reopened)]);

    let mut over = Bench { status: bench.status.clone(), ..Bench::new(bench.rules.clone()) };
    // Clear just before the window's end, and not yet for long enough at it.
    let plan = over.turn(&[readiness("web-0", StandingState::Clear, at(590))], &[], at(590));
    assert_eq!(plan.next_wake, Some(at(650)));
    let plan = over.turn(&[], &[], at(600));
    assert_eq!(
        (plan.claimed.len(), plan.next_wake),
        (0, Some(at(650))),
        "it does not spin at the window's end"
    );
    over.turn(&[], &[], at(650));
    assert_eq!(over.phases(), [("web-0", Resolved, Recovered)]);

    assert_eq!(bench.turn(&[], &[], at(599)).claimed.len(), 0);
    assert_eq!(bench.turn(&[], &[], at(600)).claimed.len(), 1);
    assert_eq!(bench.entry().window, 2);
}

#[test]
fn a_repeat_knows_what_has_changed_since_the_agent_was_asked() {
    use crate::incident::prompt::{Changes, Repeat};
    let mut bench = notified(&["web-0"], at(0));
    assert_eq!(Repeat::of(bench.entry()), None, "it is the first");
    let ended = News::TaskEnded("task-web-0".into(), completed("It was the disk."));
    let outcome = outcome_of(bench.entry(), ended);
    bench.turn(&[next_signal("web-0", at(300))], &[outcome], at(300));
    let again = Signal {
        uid: "another".into(),
        container: Some("sidecar".into()),
        reason: "Killing".into(),
        ..restarted("web-0", 3, at(600))
    };
    bench.turn(&[again], &[], at(600));
    let changes = Changes {
        resolved: false,
        count: 1,
        replaced: true,
        containers: "sidecar".into(),
        reason: "BackOff".into(),
    };
    let task = Some(EndState::Completed);
    let repeat = Repeat { window: 2, since: at(0), task, changes: Some(changes), by_hand: false };
    assert_eq!((Repeat::of(bench.entry()), bench.entry().count), (Some(repeat), 3));

    // Asked again, then resolved, then back: nothing but that is new.
    let outcome = bench.outcome("web-0", reply_accepted("t"));
    bench.turn(&[], &[outcome], at(601));
    bench.turn(&[], &[], at(1300));
    assert_eq!(bench.phases(), [("web-0", Resolved, Quiet)]);
    let back = Signal { uid: "another".into(), reason: "Killing".into(), ..restarted("web-0", 4, at(1400)) };
    bench.turn(&[back], &[], at(1400));
    let changes = Changes { resolved: true, count: 3, ..Changes::default() };
    let repeat = Repeat { window: 3, since: at(601), task: None, changes: Some(changes), by_hand: false };
    assert_eq!(Repeat::of(bench.entry()), Some(repeat));
}

// ---- farewells

/// A bench that wants the agent to hear of the end, with incidents that were told of at 0 and are quiet at 700.
fn to_be_told(pods: &[&str]) -> Bench {
    let mut bench = notified(pods, at(0));
    bench.rules.configurations[0].notify_resolved = true;
    bench
}

fn farewell(bench: &Bench) -> Option<(FarewellState, i32)> {
    bench.entry().farewell.as_ref().map(|farewell| (farewell.state, farewell.attempts))
}

fn calls(bench: &Bench, now: DateTime<Utc>) -> Vec<(Phase, i64)> {
    let claims = bench.claims();
    let calls = activities(&bench.status, &claims, now).filter_map(|activity| match activity {
        Activity::Call(entry, claim) => Some((entry.status, claim.sequence)),
        Activity::LookUp(..) | Activity::Follow(..) => None,
    });
    calls.collect()
}

#[test]
fn an_agent_is_told_of_the_end_once_where_the_hook_wants_it() {
    let mut bench = to_be_told(&["web-0"]);
    let mut silent = Bench { status: bench.status.clone(), ..restarts() };
    assert_eq!(silent.turn(&[], &[], at(700)).claimed, [], "by default nobody is told");
    assert_eq!(farewell(&silent), None);

    let plan = bench.turn(&[], &[], at(700));
    assert_eq!((plan.urgency, plan.claimed.len()), (Urgency::Claim, 1), "the claim comes before the call");
    assert_eq!(bench.phases(), [("web-0", Resolved, Quiet)]);
    assert_eq!(farewell(&bench), Some((FarewellState::Calling, 1)));
    assert_eq!(calls(&bench, at(700)), [(Resolved, 2)]);
    bench.begun.insert(2);
    assert_eq!(calls(&bench, at(700)), []);

    let outcome = bench.outcome("web-0", reply_accepted("task-of-the-farewell"));
    let plan = bench.turn(&[], &[outcome], at(702));
    assert_eq!(plan.notices.iter().map(|n| n.kind).collect::<Vec<_>>(), [NoticeKind::ResolutionTold]);
    assert_eq!(farewell(&bench), Some((FarewellState::Told, 1)));
    let entry = bench.entry();
    assert_eq!(
        (entry.claim.as_ref(), entry.task_id.as_deref()),
        (None, Some("task-web-0")),
        "it is not followed"
    );
    sleep_until_settled(&mut bench, at(703));
    assert_eq!(bench.status.active_events, []);
}

#[test]
fn a_farewell_that_surely_failed_is_said_again_three_times_in_all() {
    let mut bench = to_be_told(&["web-0"]);
    let mut now = at(700);
    for attempt in 1..=3 {
        assert_eq!(bench.turn(&[], &[], now).claimed.len(), 1, "attempt {attempt}");
        assert_eq!(farewell(&bench), Some((FarewellState::Calling, attempt)));
        let outcome = bench.outcome("web-0", reply_not_run());
        let plan = bench.turn(&[], &[outcome], now);
        assert_eq!(bench.turn(&[], &[], now).claimed, [], "it waits first");
        now = bench.entry().next_attempt_at.unwrap_or(now);
        let told: Vec<_> = plan.notices.iter().map(|notice| notice.kind).collect();
        assert_eq!(told, if attempt == 3 { vec![NoticeKind::ResolutionNotTold] } else { vec![] });
    }
    assert_eq!(farewell(&bench), Some((FarewellState::Failed, 3)));
    assert_eq!(bench.entry().last_error.as_deref(), Some("connection refused"));
    assert_eq!(bench.turn(&[], &[], at(3000)).claimed, []);
}

#[test]
fn a_farewell_whose_outcome_nobody_knows_is_never_said_again() {
    let mut bench = to_be_told(&["web-0"]);
    bench.turn(&[], &[], at(700));
    let mut dead = Bench { status: bench.status.clone(), process: "p2", ..Bench::new(bench.rules.clone()) };
    let outcome = bench.outcome("web-0", reply_unknown());
    bench.turn(&[], &[outcome], at(701));
    assert_eq!(farewell(&bench), Some((FarewellState::Unknown, 1)));

    // Of a process that is gone, however long ago.
    let claim = dead.entry().claim.clone().expect("a claim");
    dead.unmoved.insert(claim.clone(), Duration::MAX);
    let plan = dead.turn(&[], &[], at(701));
    assert_eq!((plan.urgency, calls(&dead, at(701))), (Urgency::None, vec![]));
    assert_eq!(plan.next_wake, Some(claim.at + claim.duration() + dead.policy.takeover_margin));
    dead.turn(&[], &[], plan.next_wake.expect("a wake"));
    assert_eq!(farewell(&dead), Some((FarewellState::Unknown, 1)));
    for bench in [&mut bench, &mut dead] {
        // Late words of that claim decide nothing more.
        let outcome = outcome_of(bench.entry(), News::FarewellCalled(claim.clone(), reply_not_run()));
        assert_eq!(bench.turn(&[], &[outcome], at(2000)).claimed, []);
        assert_eq!(farewell(bench), Some((FarewellState::Unknown, 1)));
    }
}

#[test]
fn trouble_that_comes_back_takes_a_farewell_back_that_is_only_due() {
    let mut bench = to_be_told(&["web-0"]);
    bench.allow(Allow::NoneUntil(at(9000)));
    bench.turn(&[], &[], at(700));
    assert_eq!(
        (farewell(&bench), bench.entry().next_attempt_at),
        (Some((FarewellState::Due, 0)), Some(at(9000)))
    );
    bench.allow(Allow::All);
    let plan = bench.turn(&[next_signal("web-0", at(710))], &[], at(710));
    assert_eq!((bench.phases(), farewell(&bench)), (vec![("web-0", Firing, Calling)], None));
    assert_eq!(plan.claimed.len(), 1, "one call, about the trouble");
}

#[test]
fn what_becomes_of_a_farewell_is_never_taken_for_the_answer_to_a_repeat() {
    let mut bench = to_be_told(&["web-0"]);
    bench.turn(&[], &[], at(700));
    let outcome = bench.outcome("web-0", reply_accepted("task-of-the-farewell"));
    // Heard by another process just before that claim was made, which it did not know of.
    let back = Signal { observed_at: at(699), ..next_signal("web-0", at(699)) };
    bench.capacity.may_claim = false;
    bench.turn(&[back], &[], at(701));
    assert_eq!(bench.phases(), [("web-0", Pending, WaitingForSlot)]);
    assert!(bench.entry().due_at < Some(at(700)) && bench.entry().claim.is_none());
    let plan = bench.turn(&[], std::slice::from_ref(&outcome), at(702));
    assert_eq!((bench.phases(), plan.urgency), (vec![("web-0", Pending, WaitingForSlot)], Urgency::None));
    bench.capacity.may_claim = true;
    bench.turn(&[], &[], at(703));
    bench.turn(&[], &[outcome], at(704));
    assert_eq!(bench.phases(), [("web-0", Firing, Calling)]);
}

#[test]
fn of_one_notification_the_end_is_told_once_however_often_it_ends() {
    let mut bench = to_be_told(&["web-0"]);
    bench.rules.configurations[0].repeat_interval = minutes(60);
    bench.turn(&[], &[], at(700));
    let outcome = bench.outcome("web-0", reply_accepted("t"));
    bench.turn(&[], &[outcome], at(701));
    bench.turn(&[next_signal("web-0", at(800))], &[], at(800));
    assert_eq!(bench.phases(), [("web-0", Notified, Reopened)]);
    assert_eq!(bench.turn(&[], &[], at(1500)).claimed, []);
    assert_eq!(bench.phases(), [("web-0", Resolved, Quiet)]);
    // Asked again, and then told of that end.
    bench.turn(&[restarted("web-0", 3, at(3700))], &[], at(3700));
    let outcome = bench.outcome("web-0", reply_accepted("t"));
    bench.turn(&[], &[outcome], at(3701));
    assert_eq!((bench.entry().window, farewell(&bench)), (2, None));
    assert_eq!(bench.turn(&[], &[], at(4400)).claimed.len(), 1);
}

#[test]
fn farewells_come_after_calls_for_help_and_wait_for_slots_and_breakers() {
    let mut bench = to_be_told(&["web-0", "web-1"]);
    bench.of_agent(AGENT).slots = 2;
    let plan = bench.turn(&[restarted("web-2", 1, at(700))], &[], at(700));
    assert_eq!((plan.claimed.len(), plan.waits_for_capacity), (2, true));
    let phases: Vec<Phase> = calls(&bench, at(700)).into_iter().map(|(phase, _)| phase).collect();
    assert_eq!(phases, [Resolved, Firing], "one farewell had to wait");

    let mut bench = to_be_told(&["web-0"]);
    bench.allow(Allow::NoneUntil(at(730)));
    let plan = bench.turn(&[], &[], at(700));
    assert_eq!((plan.claimed.len(), plan.next_wake, plan.waits_for_capacity), (0, Some(at(730)), true));
    assert_eq!(bench.phases(), [("web-0", Resolved, Quiet)], "why it is resolved stays");
    bench.allow(Allow::Probe);
    assert_eq!(bench.turn(&[], &[], at(730)).claimed.len(), 1);
}

#[test]
fn nobody_is_told_who_does_not_want_to_be_any_more_or_may_not_have_been_asked() {
    let due = || {
        let mut bench = to_be_told(&["web-0"]);
        bench.capacity.may_claim = false;
        bench.turn(&[], &[], at(700));
        assert_eq!(farewell(&bench), Some((FarewellState::Due, 0)));
        bench.capacity.may_claim = true;
        bench
    };
    let changes: [fn(&mut Bench); 3] = [
        |bench| bench.rules.suspended = true,
        |bench| bench.rules.configurations.clear(),
        |bench| bench.rules.configurations[0].notify_resolved = false,
    ];
    for change in changes {
        let mut bench = due();
        change(&mut bench);
        assert_eq!((bench.turn(&[], &[], at(701)).claimed.len(), farewell(&bench)), (0, None));
        // Nor is it told of what ends meanwhile.
        let mut bench = to_be_told(&["web-0"]);
        change(&mut bench);
        bench.turn(&[], &[], at(700));
        assert_eq!((bench.entry().status, farewell(&bench)), (Resolved, None));
    }
    let mut doubtful = to_be_told(&["web-0"]);
    doubtful.status.active_events[0].outcome = Some(EndState::OutcomeUnknown);
    doubtful.turn(&[], &[], at(700));
    assert_eq!((doubtful.entry().status, farewell(&doubtful)), (Resolved, None));
    let mut of_go = to_be_told(&["web-0"]);
    of_go.status.active_events = vec![left_by_go("web-0", "firing", "2026-01-02T03:00:00Z")];
    of_go.turn(&[], &[], at(700));
    assert_eq!((of_go.entry().status, farewell(&of_go)), (Resolved, None));
}

#[test]
fn a_farewell_keeps_its_entry_for_a_day_but_not_from_newer_trouble() {
    let mut bench = to_be_told(&["web-0"]);
    bench.policy.max_entries = 1;
    bench.of_agent(AGENT).slots = 0;
    bench.turn(&[], &[], at(700));
    let plan = bench.turn(&[], &[], at(80_000));
    assert_eq!((farewell(&bench), plan.next_wake), (Some((FarewellState::Due, 0)), Some(at(700 + 86_400))));

    let mut full = Bench { status: bench.status.clone(), policy: bench.policy.clone(), ..to_be_told(&[]) };
    full.of_agent(AGENT).slots = 0;
    let plan = full.turn(&[restarted("web-1", 1, at(80_001))], &[], at(80_001));
    assert_eq!(full.phases(), [("web-1", Pending, WaitingForSlot)]);
    assert_eq!(plan.notices[0].kind, NoticeKind::ResolutionNotTold);

    let plan = bench.turn(&[], &[], at(700 + 86_400));
    assert_eq!(plan.notices[0].kind, NoticeKind::ResolutionNotTold);
    sleep_until_settled(&mut bench, at(700 + 86_400));
    assert_eq!(bench.status.active_events, []);
}

#[test]
fn a_restart_ends_a_clear_that_is_older() {
    let mut bench = notified(&["web-0"], at(0));
    let mut running = restarted("web-0", 1, at(5));
    running.nature = Nature::Condition { state: StandingState::Clear, since: at(5) };
    bench.turn(&[running], &[], at(5));
    bench.turn(&[next_signal("web-0", at(590))], &[], at(590));
    bench.turn(&[], &[], at(606));
    assert_eq!(bench.phases(), [("web-0", Notified, AgentCalled)], "it had not run for 10 minutes");
}

#[test]
fn a_restart_that_waits_is_told_although_the_container_runs_again() {
    let mut bench = restarts();
    bench.allow(Allow::Probing);
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    for second in [5, 6, 7] {
        let mut running = restarted("web-0", 1, at(second));
        running.nature = Nature::Condition { state: StandingState::Clear, since: at(second) };
        bench.turn(&[running], &[], at(second));
    }
    bench.allow(Allow::All);
    assert_eq!(bench.turn(&[], &[], at(300)).claimed.len(), 1);
}

// ---- conditions of the Hook

#[test]
fn the_agent_counts_as_reachable_only_after_a_call_that_reached_it() {
    let reachable = |bench: &Bench| {
        let conditions = &bench.status.conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == "AgentReachable");
        let condition = condition.expect("always there");
        format!("{} {}", condition.status, condition.reason)
    };
    let mut bench = restarts();
    bench.turn(&[], &[], at(0));
    assert_eq!(reachable(&bench), "Unknown NotCalledYet");
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    assert_eq!(reachable(&bench), "Unknown NotCalledYet");
    let outcome = bench.outcome("web-0", reply_not_run());
    let plan = bench.turn(&[], &[outcome], at(1));
    assert_eq!(reachable(&bench), "False BackingOff");
    bench.turn(&[], &[], plan.next_wake.expect("the next attempt"));
    assert_eq!((bench.entry().status, reachable(&bench).as_str()), (Firing, "False BackingOff"));
    let mut given_up = Bench { status: bench.status.clone(), ..restarts() };
    given_up.rules.configurations.clear();
    let outcome = given_up.outcome("web-0", reply_not_run());
    given_up.turn(&[], &[outcome], at(60));
    assert_eq!(reachable(&given_up), "Unknown NotCalledSince");
    let outcome = bench.outcome("web-0", reply_accepted("t"));
    bench.turn(&[], &[outcome], at(60));
    assert_eq!(reachable(&bench), "True Answered");
}

// ---- what people say

#[test]
fn what_a_person_has_ended_stays_ended_for_as_long_as_it_is_as_it_was() {
    let mut bench = Bench::new(rules(vec![rule(EventType::ProbeFailed, AGENT)]));
    let holds = readiness("web-0", StandingState::Holds, at(0));
    bench.turn(std::slice::from_ref(&holds), &[], at(1));
    bench.say("web-0", Verb::Resolve, at(2), None);
    let plan = bench.turn(&[], &[], at(2));
    assert_eq!(bench.phases(), [("web-0", Resolved, ResolvedByHand)]);
    // Nothing but news of the pod changes that, however long it takes.
    assert_eq!(plan.next_wake, None);
    for hours in [1, 24, 48] {
        bench.turn(std::slice::from_ref(&holds), &[], at(hours * 3600));
        assert_eq!(bench.phases(), [("web-0", Resolved, ResolvedByHand)], "after {hours} h");
    }
    let clear = readiness("web-0", StandingState::Clear, at(200_000));
    bench.turn(&[clear], &[], at(200_000));
    let again = readiness("web-0", StandingState::Holds, at(200_010));
    bench.turn(&[again], &[], at(200_010));
    assert_eq!(bench.phases(), [("web-0", Pending, Holding)]);
}

#[test]
fn a_snooze_is_about_the_trouble_and_not_about_one_stretch_of_it() {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    let outcome = bench.outcome("web-0", reply_not_run());
    bench.turn(&[], &[outcome], at(1));
    bench.say("web-0", Verb::Snooze, at(2), Some(at(4 * 3600)));
    bench.turn(&[], &[], at(2));
    assert_eq!(bench.phases(), [("web-0", Pending, Snoozed)]);
    // Over unseen, and forgotten but for the snooze.
    bench.turn(&[], &[], at(1000));
    assert_eq!(bench.phases(), [("web-0", Resolved, RecoveredBeforeCall)]);
    let session = bench.entry().session_id.clone();
    bench.turn(&[restarted("web-0", 2, at(3 * 3600))], &[], at(3 * 3600));
    assert_eq!(bench.phases(), [("web-0", Pending, Snoozed)]);
    assert_ne!(bench.entry().session_id, session, "a new episode");
    bench.turn(&[restarted("web-0", 3, at(4 * 3600 - 1))], &[], at(4 * 3600 - 1));
    let plan = bench.turn(&[], &[], at(4 * 3600));
    assert_eq!(plan.claimed.len(), 1);
}

#[test]
fn a_retry_does_not_pass_by_a_breaker() {
    let mut bench = restarts();
    bench.allow(Allow::NoneUntil(at(60)));
    bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
    bench.say("web-0", Verb::Retry, at(1), None);
    let plan = bench.turn(&[], &[], at(1));
    assert!(plan.claimed.is_empty() && plan.waits_for_capacity);
    assert_eq!(bench.phases(), [("web-0", Pending, CircuitOpen)]);
}

#[test]
fn of_what_people_say_the_newest_counts_and_is_done_once() {
    let mut bench = notified(&["web-0"], at(0));
    bench.say("web-0", Verb::Ack, at(3), None);
    bench.say("web-0", Verb::Retry, at(2), None);
    for _ in 0..2 {
        let plan = bench.turn(&[], &[], at(4));
        assert!(plan.claimed.is_empty());
    }
    assert_eq!(bench.entry().instruction.as_ref().map(|told| told.verb), Some(Verb::Ack));
    bench.say("web-0", Verb::Retry, at(5), None);
    bench.turn(&[], &[], at(5));
    assert_eq!(bench.turn(&[], &[], at_ms(5001)).claimed.len(), 1);
    let outcome = bench.outcome("web-0", reply_accepted("task-2"));
    bench.turn(&[], &[outcome], at(6));
    assert_eq!((bench.entry().status, bench.entry().window), (Notified, 2));
    assert!(bench.turn(&[], &[], at(7)).claimed.is_empty(), "what stands on the Hook is done");
}

#[test]
fn calls_are_counted_by_the_day_for_a_week() {
    let mut bench = restarts();
    const DAY: i64 = 24 * 3600;
    for day in 0..9 {
        bench.turn(&[restarted(&format!("web-{day}"), 1, at(day * DAY))], &[], at(day * DAY));
    }
    let days: Vec<(String, i64)> =
        bench.status.calls_per_day.iter().map(|day| (day.day.to_string(), day.calls)).collect();
    assert_eq!(days.len(), 7);
    assert_eq!((days[0].0.as_str(), days[6].0.as_str()), ("2026-01-04", "2026-01-10"));
    assert!(days.iter().all(|(_, calls)| *calls >= 1), "{days:?}");
    assert_eq!(bench.turn(&[], &[], at(8 * DAY + 1)).status.calls_per_day, bench.status.calls_per_day);
}

#[test]
fn what_is_acknowledged_before_anybody_was_called_stays_so_for_as_long_as_it_is_remembered() {
    for (later, expected) in [(1800, Acknowledged), (2 * 3600, Holding)] {
        let mut bench = Bench::new(rules(vec![rule(EventType::ProbeFailed, AGENT)]));
        bench.turn(&[readiness("web-0", StandingState::Holds, at(0))], &[], at(1));
        bench.say("web-0", Verb::Ack, at(2), None);
        bench.turn(&[], &[], at(2));
        bench.turn(&[readiness("web-0", StandingState::Clear, at(10))], &[], at(10));
        assert_eq!(bench.phases(), [("web-0", Resolved, RecoveredBeforeCall)]);
        bench.turn(&[readiness("web-0", StandingState::Holds, at(later))], &[], at(later));
        assert_eq!(bench.phases(), [("web-0", Pending, expected)], "after {later} s");
    }
}

#[test]
fn absurd_times_of_an_instruction_stop_nothing() {
    let mut bench = notified(&["web-0"], at(0));
    bench.status.active_events[0].instruction = Some(Instruction {
        verb: Verb::Snooze,
        by: String::new(),
        at: DateTime::<Utc>::MAX_UTC,
        until: Some(DateTime::<Utc>::MAX_UTC),
    });
    bench.turn(&[], &[], at(3));
    let told = bench.entry().instruction.clone().expect("an instruction");
    assert_eq!((told.at, told.until), (at(3), Some(at(3))));
    bench.turn(&[], &[], at(700));
    bench.turn(&[], &[], at(10_000));
}
