//! Random lives of one Hook in virtual time: sources, an agent, crashes and lost writes around `plan`.
//!
//! After every step the properties are checked; at the end the faults stop, and all must come to rest.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::{
    hook::{EventType, Verb},
    incident::{fixtures::*, key, signal},
};

const PODS: [&str; 3] = ["web-0", "web-1", "web-2"];

/// Something that happens around the Hook. Numbers choose among what there is, modulo its number.
#[derive(Clone, Debug)]
enum Op {
    /// A container restarts.
    Restart(usize),
    /// A probe fails, as an Event says it.
    ProbeEvent(usize),
    /// The pod says that it is unready, ready or gone.
    Condition(usize, StandingState),
    /// A pod of the same name with another UID.
    Replace(usize),
    /// A source tells again what it told.
    Replay(usize),
    /// A source tells of something old for the first time.
    Stale(usize),
    /// A call or a lookup ends.
    End(usize, End),
    /// An outcome comes once more, or late from a process that is gone.
    Again(usize),
    /// A task ends.
    Task(usize),
    Sleep(u64),
    /// Until the wake that was asked for, or just before it.
    Wake(bool),
    /// The next write fails; or it succeeds, and nobody hears of it.
    FailWrite,
    LoseAnswer,
    /// The process dies, and another starts.
    Crash,
    Lead(bool),
    Slots(usize, usize),
    Breaker(usize, Gate),
    Rule(usize),
    /// A rule wants the agent to hear of the end, or does not any more.
    Notify(usize),
    Suspend(bool),
    Observe(bool),
    /// A person says something of an incident; of a snooze, for how many seconds.
    Say(usize, Verb, u64),
    /// A person tries the Hook out, on a pod that may be in trouble of its own.
    Test(usize),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Accepted,
    Answered,
    NotRun,
    Throttled,
    Permanent,
    /// Whether the message arrived all the same.
    Unknown(bool),
    LookupFails,
    NoLookup,
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Open,
    Probing,
    Closed,
}

fn op() -> impl Strategy<Value = Op> {
    let pod = 0..PODS.len();
    let states = [StandingState::Holds, StandingState::Holds, StandingState::Clear, StandingState::Gone];
    let ends = [
        End::Accepted,
        End::Accepted,
        End::Answered,
        End::NotRun,
        End::Throttled,
        End::Permanent,
        End::Unknown(true),
        End::Unknown(false),
        End::LookupFails,
        End::NoLookup,
    ];
    let spans = [1, 1000, 5000, 31_000, 121_000, 300_000, 600_000, 601_000, 960_000, 4_000_000, 90_000_000];
    prop_oneof![
        6 => pod.clone().prop_map(Op::Restart),
        2 => pod.clone().prop_map(Op::ProbeEvent),
        5 => (pod.clone(), prop::sample::select(states.to_vec())).prop_map(|(pod, state)| Op::Condition(pod, state)),
        1 => pod.clone().prop_map(Op::Replace),
        3 => any::<usize>().prop_map(Op::Replay),
        1 => pod.prop_map(Op::Stale),
        12 => (any::<usize>(), prop::sample::select(ends.to_vec())).prop_map(|(which, end)| Op::End(which, end)),
        2 => any::<usize>().prop_map(Op::Again),
        2 => any::<usize>().prop_map(Op::Task),
        6 => prop::sample::select(spans.to_vec()).prop_map(Op::Sleep),
        6 => any::<bool>().prop_map(Op::Wake),
        1 => Just(Op::FailWrite),
        1 => Just(Op::LoseAnswer),
        1 => Just(Op::Crash),
        1 => any::<bool>().prop_map(Op::Lead),
        1 => (0..2usize, 0..3usize).prop_map(|(agent, slots)| Op::Slots(agent, slots)),
        2 => (0..2usize, prop::sample::select(&[Gate::Open, Gate::Probing, Gate::Closed, Gate::Closed][..]))
            .prop_map(|(agent, gate)| Op::Breaker(agent, gate)),
        1 => (0..3usize).prop_map(Op::Rule),
        1 => (0..3usize).prop_map(Op::Notify),
        1 => any::<bool>().prop_map(Op::Suspend),
        1 => prop::sample::select(&[false, false, true][..]).prop_map(Op::Observe),
        2 => (any::<usize>(), prop::sample::select(Verb::ALL.to_vec()), prop::sample::select(spans.to_vec()))
            .prop_map(|(which, verb, span)| Op::Say(which, verb, span)),
        1 => (0..PODS.len()).prop_map(Op::Test),
    ]
}

/// Two agents for restarts and room for all, or one agent and a list that overflows.
#[derive(Clone, Debug)]
struct Setup {
    fan_out: bool,
    max_entries: usize,
    keep_resolved: usize,
    max_bytes: usize,
    /// Whether the agents are told of the end, at first.
    notify: bool,
}

fn setup() -> impl Strategy<Value = Setup> {
    let fan_out =
        (0..3usize, 14_000..20_000usize, any::<bool>()).prop_map(|(keep_resolved, max_bytes, notify)| {
            Setup { fan_out: true, max_entries: 100, keep_resolved, max_bytes, notify }
        });
    let narrow = (2..5usize, 0..3usize, 4_000..20_000usize, any::<bool>()).prop_map(
        |(max_entries, keep_resolved, max_bytes, notify)| Setup {
            fan_out: false,
            max_entries,
            keep_resolved,
            max_bytes,
            notify,
        },
    );
    prop_oneof![fan_out, narrow]
}

#[derive(Clone, Debug)]
enum Work {
    Call,
    Farewell,
    LookUp,
}

/// A call or a lookup under way.
#[derive(Clone, Debug)]
struct Flight {
    work: Work,
    entry: String,
    session_id: String,
    window: i32,
    claim: Claim,
}

struct World {
    bench: Bench,
    now: DateTime<Utc>,
    /// What is not in a committed write yet.
    signals: Vec<Signal>,
    outcomes: Vec<Outcome>,
    /// All that ever was told, to be told again.
    told: Vec<Signal>,
    reported: Vec<Outcome>,
    flights: Vec<Flight>,
    conditions: BTreeMap<&'static str, (StandingState, DateTime<Utc>)>,
    uids: BTreeMap<&'static str, u32>,
    restarts: i64,
    tasks: usize,
    first_seen_at: BTreeMap<Claim, DateTime<Utc>>,
    all_rules: Vec<Rule>,
    gates: [(AgentName, Gate); 2],
    /// Messages the agents have, by session and window.
    received: BTreeMap<(String, i32), usize>,
    /// The same for the word that an incident is resolved.
    farewells: BTreeMap<(String, i32), usize>,
    /// Windows whose server could not be asked whether it has the message.
    unsupported: BTreeSet<(String, i32)>,
    calls: BTreeSet<(String, String, i32, i32)>,
    next_wake: Option<DateTime<Utc>>,
    fail_write: bool,
    lose_answer: bool,
    processes: Vec<&'static str>,
    trace: String,
}

const PROCESSES: [&str; 8] = ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"];

impl World {
    fn new(setup: &Setup) -> Self {
        let mut all_rules = vec![rule(EventType::PodRestart, AGENT), rule(EventType::ProbeFailed, AGENT)];
        if setup.fan_out {
            all_rules.push(rule(EventType::PodRestart, OTHER_AGENT));
        }
        all_rules.iter_mut().for_each(|rule| rule.notify_resolved = setup.notify);
        let mut bench = Bench::new(rules(all_rules.clone()));
        bench.policy.unseen_share = Policy::default().unseen_share;
        bench.policy.max_entries = setup.max_entries;
        bench.policy.keep_resolved = setup.keep_resolved;
        bench.policy.max_bytes = setup.max_bytes;
        Self {
            bench,
            now: at(0),
            signals: Vec::new(),
            outcomes: Vec::new(),
            told: Vec::new(),
            reported: Vec::new(),
            flights: Vec::new(),
            conditions: BTreeMap::new(),
            uids: BTreeMap::new(),
            restarts: 0,
            tasks: 0,
            first_seen_at: BTreeMap::new(),
            all_rules,
            gates: [(agent(AGENT), Gate::Closed), (agent(OTHER_AGENT), Gate::Closed)],
            received: BTreeMap::new(),
            farewells: BTreeMap::new(),
            unsupported: BTreeSet::new(),
            calls: BTreeSet::new(),
            next_wake: None,
            fail_write: false,
            lose_answer: false,
            processes: PROCESSES.to_vec(),
            trace: String::new(),
        }
    }

    fn tell(&mut self, mut signal: Signal) {
        signal.uid = format!("{}-{}", signal.pod, self.uids.get(signal.pod.as_str()).copied().unwrap_or(0));
        signal.observed_at = self.now;
        self.told.push(signal.clone());
        self.signals.push(signal);
    }

    fn restart(&mut self, pod: &str, at: DateTime<Utc>) -> Signal {
        self.restarts += 1;
        restarted(pod, self.restarts, at)
    }

    fn apply(&mut self, op: &Op) {
        let _ = writeln!(self.trace, "{} {op:?}", self.now.format("%H:%M:%S%.3f"));
        match op {
            Op::Restart(pod) => {
                let signal = self.restart(PODS[*pod], self.now);
                self.tell(signal);
            }
            Op::ProbeEvent(pod) => {
                let mut signal = self.restart(PODS[*pod], self.now);
                signal.event_type = EventType::ProbeFailed;
                signal.cause = signal::Cause::Liveness;
                self.tell(signal);
            }
            Op::Condition(pod, state) => {
                self.conditions.insert(PODS[*pod], (*state, self.now));
                self.tell(readiness(PODS[*pod], *state, self.now));
            }
            Op::Replace(pod) => *self.uids.entry(PODS[*pod]).or_default() += 1,
            Op::Replay(which) => {
                if let Some(signal) = pick(&self.told, *which).cloned() {
                    // A list tells what is; an Event of the past is in it, a condition of the past is not.
                    if matches!(signal.nature, Nature::Occurrence(_)) {
                        self.signals.push(Signal { observed_at: self.now, ..signal });
                    } else {
                        self.list_conditions();
                    }
                }
            }
            Op::Stale(pod) => {
                let signal = self.restart(PODS[*pod], self.now - Duration::from_secs(901));
                self.tell(signal);
            }
            Op::End(which, end) => {
                if !self.flights.is_empty() {
                    let flight = self.flights.remove(which % self.flights.len());
                    let outcome = self.end(&flight, *end);
                    self.reported.push(outcome.clone());
                    self.outcomes.push(outcome);
                }
            }
            Op::Again(which) => {
                if let Some(outcome) = pick(&self.reported, *which).cloned() {
                    self.outcomes.push(outcome);
                }
            }
            Op::Task(which) => {
                let entries: Vec<&ActiveEvent> = self.bench.status.active_events.iter().collect();
                if let Some(entry) = pick(&entries, *which)
                    && let Some(task) = &entry.task_id
                {
                    let outcome = outcome_of(entry, News::TaskEnded(task.clone(), completed("done")));
                    self.outcomes.push(outcome);
                }
            }
            Op::Sleep(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            Op::Wake(exactly) => {
                if let Some(wake) = self.next_wake {
                    let early = if *exactly { wake } else { wake - MILLISECOND };
                    self.now = early.max(self.now);
                }
            }
            Op::FailWrite => self.fail_write = true,
            Op::LoseAnswer => self.lose_answer = true,
            Op::Crash => self.crash(),
            Op::Lead(lead) => self.bench.capacity.may_claim = *lead,
            Op::Slots(agent, slots) => {
                let name = [AGENT, OTHER_AGENT][*agent];
                self.bench.of_agent(name).slots = *slots;
                self.bench.capacity.slots = *slots + 1;
            }
            Op::Breaker(agent, gate) => {
                let name = [AGENT, OTHER_AGENT][*agent];
                let now = self.now;
                if matches!((self.gates[*agent].1, gate), (Gate::Open | Gate::Probing, Gate::Closed)) {
                    self.bench.of_agent(name).closed_at = Some(now);
                }
                self.gates[*agent].1 = *gate;
                self.bench.of_agent(name).allow = match gate {
                    Gate::Open => Allow::NoneUntil(now + Duration::from_secs(30)),
                    Gate::Probing => Allow::Probing,
                    Gate::Closed => Allow::All,
                };
            }
            Op::Rule(index) => {
                let wanted = &self.all_rules[index % self.all_rules.len()];
                let configurations = &mut self.bench.rules.configurations;
                let before = configurations.len();
                configurations
                    .retain(|rule| (rule.event_type, &rule.agent) != (wanted.event_type, &wanted.agent));
                if configurations.len() == before {
                    configurations.push(wanted.clone());
                }
            }
            Op::Notify(index) => {
                let configurations = &mut self.bench.rules.configurations;
                if !configurations.is_empty() {
                    let index = index % configurations.len();
                    configurations[index].notify_resolved ^= true;
                }
            }
            Op::Suspend(suspended) => self.bench.rules.suspended = *suspended,
            Op::Observe(observes) => self.bench.rules.observes = *observes,
            Op::Say(which, verb, span) => {
                let entries: Vec<&ActiveEvent> = self.bench.status.active_events.iter().collect();
                if let Some(session) = pick(&entries, *which).and_then(|entry| entry.session_id.clone()) {
                    let until = (*verb == Verb::Snooze).then(|| self.now + Duration::from_millis(*span));
                    let instruction = Instruction { verb: *verb, by: "jane".into(), at: self.now, until };
                    self.bench.instructions.push((session, instruction));
                }
            }
            Op::Test(pod) => {
                let mut signal = self.restart(PODS[*pod], self.now);
                signal.test = Some(format!("t{}", self.restarts));
                self.tell(signal);
            }
        }
        // A breaker's time passes like any other.
        for (name, _) in &self.gates {
            let agent = self.bench.capacity.agents.get_mut(name).expect("an agent of the bench");
            if matches!(agent.allow, Allow::NoneUntil(until) if until <= self.now) {
                agent.allow = Allow::Probe;
            }
        }
    }

    fn list_conditions(&mut self) {
        for (pod, (state, since)) in self.conditions.clone() {
            let signal = readiness(pod, state, since);
            self.tell(signal);
        }
    }

    // What was in memory is gone; calls under way may have arrived. The sources list what there is.
    fn crash(&mut self) {
        if self.processes.len() < 2 {
            return;
        }
        self.processes.remove(0);
        self.bench.process = self.processes[0];
        self.bench.next = 1;
        self.bench.begun.clear();
        self.bench.busy.clear();
        self.first_seen_at.clear();
        self.signals.clear();
        self.outcomes.clear();
        for (index, flight) in std::mem::take(&mut self.flights).into_iter().enumerate() {
            if matches!(flight.work, Work::Call | Work::Farewell) {
                // Its words may still come, from a process that was only slow.
                let end = if index % 2 == 0 { End::Unknown(true) } else { End::Unknown(false) };
                let arrived = index % 2 == 0;
                let mut outcome = self.end(&flight, end);
                if arrived && index % 4 == 0 {
                    let (claim, reply) = (flight.claim.clone(), reply_accepted("late"));
                    outcome.news = match flight.work {
                        Work::Farewell => News::FarewellCalled(claim, reply),
                        Work::Call | Work::LookUp => News::Called(claim, reply),
                    };
                }
                self.reported.push(outcome);
            }
        }
        for signal in self.told.clone() {
            if matches!(signal.nature, Nature::Occurrence(_)) {
                self.signals.push(Signal { observed_at: self.now, ..signal });
            }
        }
        self.list_conditions();
    }

    fn end(&mut self, flight: &Flight, end: End) -> Outcome {
        let window = (flight.session_id.clone(), flight.window);
        self.tasks += 1;
        let task_id = format!("task-{}", self.tasks);
        let error = || String::from("it failed");
        let claim = flight.claim.clone();
        let news = match flight.work {
            Work::Call | Work::Farewell => {
                let arrived = matches!(end, End::Accepted | End::Answered | End::Unknown(true));
                let farewell = matches!(flight.work, Work::Farewell);
                if arrived {
                    let inbox = if farewell { &mut self.farewells } else { &mut self.received };
                    *inbox.entry(window).or_default() += 1;
                }
                let reply = match end {
                    End::Accepted => reply_accepted(&task_id),
                    End::Answered => {
                        Reply::Accepted { task_id: None, ended: Some(completed("so")), protocol: None }
                    }
                    End::NotRun | End::LookupFails | End::NoLookup => reply_not_run(),
                    End::Throttled => Reply::NotRun {
                        error: error(),
                        retry_after: Some(Duration::from_secs(77)),
                        throttled: true,
                    },
                    End::Permanent => Reply::Permanent { error: error() },
                    End::Unknown(_) => reply_unknown(),
                };
                if farewell { News::FarewellCalled(claim, reply) } else { News::Called(claim, reply) }
            }
            Work::LookUp => News::LookedUp(
                claim,
                match end {
                    End::LookupFails => Lookup::Unavailable { error: error() },
                    End::NoLookup => {
                        self.unsupported.insert(window);
                        Lookup::Unsupported { error: error() }
                    }
                    _ if self.received.contains_key(&window) => Lookup::Found { task_id, ended: None },
                    _ => Lookup::Absent,
                },
            ),
        };
        Outcome { entry: flight.entry.clone(), session_id: flight.session_id.clone(), news }
    }

    /// One reconcile: plan, check, write, act.
    fn reconcile(&mut self) -> Plan {
        self.watch_claims();
        let old = self.bench.status.clone();
        let plan = self.bench.plan(&self.signals, &self.outcomes, self.now);
        self.check(&old, &plan);
        self.next_wake = plan.next_wake;
        self.bench.next = plan.next_sequence;
        if std::mem::take(&mut self.fail_write) {
            return plan;
        }
        self.bench.status = plan.status.clone();
        if std::mem::take(&mut self.lose_answer) {
            return plan;
        }
        self.check_again(&plan);
        let kept = plan.held_back.union(&plan.young);
        let held_back: Vec<Signal> = kept.map(|index| self.signals[*index].clone()).collect();
        self.signals = held_back;
        self.outcomes.clear();
        self.act();
        plan
    }

    fn watch_claims(&mut self) {
        let now = self.now;
        let standing: BTreeSet<Claim> =
            self.bench.status.active_events.iter().filter_map(|entry| entry.claim.clone()).collect();
        self.first_seen_at.retain(|claim, _| standing.contains(claim));
        for claim in &standing {
            self.first_seen_at.entry(claim.clone()).or_insert(now);
        }
        self.bench.unmoved = self
            .first_seen_at
            .iter()
            .map(|(claim, at)| (claim.clone(), (now - *at).to_std().unwrap_or_default()))
            .collect();
        // A call is over with its outcome written: what is in the inbox is still under way.
        let own = |claim: &Claim| claim.process == self.bench.process;
        let flying = self.flights.iter().map(|flight| &flight.claim);
        let reported = self.outcomes.iter().filter_map(|outcome| match &outcome.news {
            News::Called(claim, _) | News::FarewellCalled(claim, _) | News::LookedUp(claim, _) => Some(claim),
            News::TaskEnded(..) => None,
        });
        self.bench.busy =
            flying.chain(reported).filter(|claim| own(claim)).map(|claim| claim.sequence).collect();
    }

    fn act(&mut self) {
        self.watch_claims();
        let claims = self.bench.claims();
        let mut begun = Vec::new();
        for activity in activities(&self.bench.status, &claims, self.now) {
            let (work, entry, claim) = match activity {
                Activity::Call(entry, claim) if entry.status == Phase::Resolved => {
                    self.check_farewell(entry);
                    begun.push(claim.sequence);
                    (Work::Farewell, entry, claim)
                }
                Activity::Call(entry, claim) => (Work::Call, entry, claim),
                Activity::LookUp(entry, claim) => (Work::LookUp, entry, claim),
                Activity::Follow(..) => continue,
            };
            let session_id = entry.session_id.clone().expect("a session");
            if matches!(work, Work::Call) {
                let call = (entry.id.clone(), session_id.clone(), entry.window, entry.attempts);
                assert!(self.calls.insert(call.clone()), "called twice: {call:?}\n{}", self.trace);
                begun.push(claim.sequence);
            }
            let (entry, window, claim) = (entry.id.clone(), entry.window, claim.clone());
            self.flights.push(Flight { work, entry, session_id, window, claim });
        }
        self.bench.begun.extend(begun);
    }

    // ---- the properties

    // Said to whom was asked, and not if it may have been said.
    fn check_farewell(&self, entry: &ActiveEvent) {
        let trace = &self.trace;
        let session = entry.session_id.clone().expect("a session");
        assert!(self.received.keys().any(|(asked, _)| *asked == session), "never asked: {entry:#?}\n{trace}");
        assert!(!self.farewells.contains_key(&(session, entry.window)), "said before: {entry:#?}\n{trace}");
    }

    fn check(&self, old: &HookStatus, plan: &Plan) {
        let trace = &self.trace;
        self.check_claims(plan);
        assert!(plan.next_wake.is_none_or(|wake| wake > self.now), "a wake in the past\n{trace}");
        let new = &plan.status.active_events;
        let policy = &self.bench.policy;
        assert!(
            new.len() <= policy.max_entries.max(self.all_rules.len()).max(old.active_events.len()),
            "{} entries\n{trace}",
            new.len()
        );
        let bytes: usize = new.iter().map(|entry| serde_json::to_vec(entry).expect("JSON").len() + 1).sum();
        assert!(
            bytes <= policy.max_bytes || new.len() == 1,
            "{bytes} of {} bytes\n{trace}",
            policy.max_bytes
        );
        for before in &old.active_events {
            match new.iter().find(|entry| entry.id == before.id) {
                Some(after) => self.check_forward(before, after),
                None => assert!(
                    before.status == Phase::Resolved || self.was_resolved(plan, &before.id),
                    "lost {before:#?}\n{trace}"
                ),
            }
        }
        for entry in new {
            let session = Key::of(entry).session_id(HOOK_UID, entry.first_seen);
            assert_eq!(entry.session_id, Some(session), "{trace}");
            let calling =
                entry.status == Phase::Firing || lifecycle::farewell_is(entry, FarewellState::Calling);
            assert_eq!(entry.claim.is_some(), calling, "{trace}");
            let before = old.active_events.iter().find(|before| before.id == entry.id);
            if calling && entry.status == Phase::Resolved && before.is_none_or(|e| e.claim != entry.claim) {
                let wanted = self.bench.rules.of(entry).is_some_and(|rule| rule.notify_resolved);
                assert!(wanted && !self.bench.rules.suspended, "not wanted: {entry:#?}\n{trace}");
            }
            if entry.status == Phase::Firing && before.is_none_or(|e| e.status != Phase::Firing) {
                let quiet = entry.instruction.as_ref().is_some_and(|said| {
                    said.verb == Verb::Ack || said.until.is_some_and(|until| self.now < until)
                });
                assert!(!quiet && !self.bench.rules.observes, "nobody was to be called: {entry:#?}\n{trace}");
            }
            if lifecycle::farewell_is(entry, FarewellState::Told) {
                let session = entry.session_id.as_ref().expect("a session");
                let said = self.farewells.keys().any(|(said, _)| said == session);
                assert!(said, "not told: {entry:#?}\n{trace}");
            }
            let window = (entry.session_id.clone().expect("a session"), entry.window);
            let received = self.received.get(&window).copied().unwrap_or_default();
            // What a person wanted asked again may have been over before it was, and be back.
            let reopened = entry.reason == Some(Reason::Reopened) && entry.due_at > entry.last_notified_at;
            if entry.status == Phase::Notified
                && !entry.observed
                && !reopened
                && entry.outcome != Some(crate::incident::outcome::EndState::OutcomeUnknown)
            {
                assert!(received > 0, "notified of what nobody has: {entry:#?}\n{trace}");
            }
        }
        for (window, received) in &self.received {
            let most = 1 + usize::from(self.unsupported.contains(window));
            assert!(*received <= most, "{received} messages in {window:?}\n{trace}");
        }
        assert!(self.farewells.values().all(|received| *received == 1), "{:?}\n{trace}", self.farewells);
        let open: BTreeSet<Key> =
            plan.held_back.iter().flat_map(|index| self.keys(&self.signals[*index])).collect();
        assert!(plan.status.overflow.unwrap_or(0) <= i32::try_from(open.len()).expect("few"), "{trace}");
        assert_eq!(plan.held_back.is_empty(), plan.status.overflow.is_none(), "{trace}");
        for (index, signal) in self.signals.iter().enumerate() {
            self.check_signal(index, signal, plan);
        }
    }

    fn keys(&self, signal: &Signal) -> Vec<Key> {
        let configurations = self.bench.rules.configurations.iter();
        let listening = configurations.filter(|rule| rule.event_type == signal.event_type);
        listening.map(|rule| rule.key(signal)).collect()
    }

    fn was_resolved(&self, plan: &Plan, id: &str) -> bool {
        plan.notices.iter().any(|notice| notice.entry.id == id && notice.entry.status == Phase::Resolved)
    }

    // Nothing is lost: it is in an entry, or waits, or was over within the same plan.
    fn check_signal(&self, index: usize, signal: &Signal, plan: &Plan) {
        let trace = &self.trace;
        for key in self.keys(signal) {
            let entry = plan.status.active_events.iter().find(|entry| key.is_of(entry));
            let was_resolved = self.was_resolved(plan, &key.entry_id(HOOK_UID));
            match &signal.nature {
                Nature::Occurrence(occurrence) => {
                    // It may have made room by now for another agent's.
                    let before = self.bench.status.active_events.iter().find(|entry| key.is_of(entry));
                    let folded = entry
                        .or(before)
                        .is_some_and(|entry| signal::fold(&mut entry.seen.clone(), occurrence).is_none());
                    assert!(
                        folded
                            || signal.is_stale(&self.bench.policy)
                            || plan.held_back.contains(&index)
                            || was_resolved,
                        "lost {signal:#?}\n{trace}"
                    );
                }
                Nature::Condition { state: StandingState::Holds, .. } => {
                    let over = self.signals[index + 1..].iter().any(|later| {
                        later.pod == signal.pod
                            && matches!(later.nature, Nature::Condition { state, .. } if state != StandingState::Holds)
                    });
                    let known = entry.is_some_and(|entry| {
                        (entry.status != Phase::Resolved || lifecycle::is_dismissed(entry))
                            && matches!(&entry.condition, Some(c) if c.state == StandingState::Holds)
                    });
                    // A newer pod of that name speaks for itself.
                    let other = entry.is_some_and(|entry| entry.uid != signal.uid);
                    assert!(
                        known
                            || over
                            || other
                            || plan.held_back.contains(&index)
                            || plan.young.contains(&index)
                            || was_resolved,
                        "lost {signal:#?}\n{entry:#?}\n{trace}"
                    );
                }
                Nature::Condition { .. } | Nature::Unclear => {}
            }
        }
    }

    fn check_claims(&self, plan: &Plan) {
        let trace = &self.trace;
        let capacity = &self.bench.capacity;
        assert!(plan.claimed.len() <= capacity.slots, "{trace}");
        for (name, agent) in &capacity.agents {
            let claimed = plan.claimed.iter().filter(|(_, claimed)| claimed == name).count();
            let most = match agent.allow {
                Allow::All => agent.slots,
                Allow::Probe => agent.slots.min(1),
                Allow::NoneUntil(_) | Allow::Probing | Allow::NotReady => 0,
            };
            assert!(claimed <= most, "{claimed} claims of {name}\n{trace}");
        }
        if !capacity.may_claim {
            assert_eq!(plan.next_sequence, self.bench.next, "{trace}");
        }
        if self.bench.rules.suspended {
            assert_eq!(plan.claimed, [], "{trace}");
        }
    }

    fn check_forward(&self, before: &ActiveEvent, after: &ActiveEvent) {
        if let Err(how) = moves_forward(before, after, self.now, &self.bench.policy) {
            panic!("{how}:\n{before:#?}\n{after:#?}\n{}", self.trace);
        }
    }

    // The same once more, without news: nothing.
    fn check_again(&self, plan: &Plan) {
        let mut capacity = self.bench.capacity.clone();
        for (_, name) in &plan.claimed {
            capacity.slots -= 1;
            let agent = capacity.agents.get_mut(name).expect("claimed of it");
            agent.slots -= 1;
            if agent.allow == Allow::Probe {
                agent.allow = Allow::Probing;
            }
        }
        let kept = plan.held_back.union(&plan.young);
        let held_back: Vec<Signal> = kept.map(|index| self.signals[*index].clone()).collect();
        let inputs = |now| Inputs {
            hook_uid: HOOK_UID,
            namespace: NAMESPACE,
            generation: Some(1),
            rules: &self.bench.rules,
            status: &self.bench.status,
            signals: &held_back,
            outcomes: &[],
            instructions: &self.bench.instructions,
            capacity: &capacity,
            claims: self.bench.claims(),
            policy: &self.bench.policy,
            now,
        };
        let again = super::plan(&inputs(self.now));
        assert!(
            again.urgency == Urgency::None && again.claimed.is_empty() && again.notices.is_empty(),
            "not settled in one plan: {:?} {}\nafter {}\n{}",
            again.urgency,
            brief(&again.status),
            brief(&self.bench.status),
            self.trace
        );
        assert!(again.status == self.bench.status, "{}", self.trace);
        assert_eq!(again.next_wake, plan.next_wake, "{}", self.trace);

        // Before the next wake nothing would change; at it something does.
        if let Some(wake) = plan.next_wake {
            let mut unmoved = self.bench.unmoved.clone();
            let passed = (wake - self.now).to_std().expect("later");
            unmoved.values_mut().for_each(|span| *span += passed);
            let mut capacity = capacity.clone();
            for agent in capacity.agents.values_mut() {
                if matches!(agent.allow, Allow::NoneUntil(until) if until <= wake) {
                    agent.allow = Allow::Probe;
                }
            }
            let claims = Claims { unmoved: &unmoved, ..self.bench.claims() };
            let then = super::plan(&Inputs { capacity: &capacity, claims, ..inputs(wake) });
            // By then the outcome that is being written now is under way no more.
            let idle = Claims { busy: &BTreeSet::new(), ..claims };
            let look_up = activities(&then.status, &idle, wake).any(|activity| {
                matches!(activity, Activity::LookUp(entry, _) if entry.next_attempt_at == Some(wake))
            });
            assert!(
                then.urgency != Urgency::None || look_up,
                "woken at {wake} for nothing: {}\n{}",
                brief(&then.status),
                self.trace
            );
            let before = (wake - MILLISECOND).max(self.now);
            let mut unmoved = self.bench.unmoved.clone();
            let passed = (before - self.now).to_std().expect("not earlier");
            unmoved.values_mut().for_each(|span| *span += passed);
            let claims = Claims { unmoved: &unmoved, ..self.bench.claims() };
            let still = super::plan(&Inputs {
                capacity: &self.capacity_at(&capacity, before),
                claims,
                ..inputs(before)
            });
            // The crowd of the resolved beyond the newest few goes with whatever is written next.
            let kept = |entry: &ActiveEvent| still.status.active_events.iter().any(|e| e.id == entry.id);
            let mut thinned = self.bench.status.clone();
            thinned.active_events.retain(|entry| entry.status != Phase::Resolved || kept(entry));
            assert!(
                thinned.active_events == still.status.active_events,
                "something was due before {wake}: {}\nto {}\n{}",
                brief(&self.bench.status),
                brief(&still.status),
                self.trace
            );
        }
    }

    // The capacity left now, at a moment at which no breaker has moved yet.
    fn capacity_at(&self, later: &Capacity, _: DateTime<Utc>) -> Capacity {
        let mut capacity = later.clone();
        for (name, agent) in &mut capacity.agents {
            if let Some(now) = self.bench.capacity.agents.get(name)
                && matches!(now.allow, Allow::NoneUntil(_))
            {
                agent.allow = now.allow;
            }
        }
        capacity
    }

    /// The faults stop, the trouble is over: everything comes to rest, by its own wakes alone.
    fn settle(&mut self) {
        self.trace.push_str("-- settle\n");
        self.fail_write = false;
        self.lose_answer = false;
        self.bench.rules.suspended = false;
        self.bench.rules.observes = false;
        self.bench.capacity.may_claim = true;
        for pod in PODS {
            self.conditions.insert(pod, (StandingState::Clear, self.now));
            self.tell(readiness(pod, StandingState::Clear, self.now));
        }
        for _ in 0..500 {
            self.bench.capacity.slots = 4;
            for agent in self.bench.capacity.agents.values_mut() {
                (agent.slots, agent.allow) = (2, Allow::All);
            }
            let _ = writeln!(self.trace, "{} at rest?", self.now);
            self.reconcile();
            for flight in std::mem::take(&mut self.flights) {
                let outcome = self.end(&flight, End::Accepted);
                self.outcomes.push(outcome);
            }
            if self.outcomes.is_empty() {
                match self.next_wake {
                    Some(wake) => self.now = wake,
                    None => break,
                }
            }
        }
        assert!(
            self.bench.status.active_events.is_empty() && self.signals.is_empty() && self.next_wake.is_none(),
            "not at rest: {} {:?}\n{}",
            brief(&self.bench.status),
            self.signals,
            self.trace
        );
    }
}

fn brief(status: &HookStatus) -> String {
    let mut text = String::new();
    for e in &status.active_events {
        let (pod, kind, agent, phase) = (&e.resource_name, e.event_type, &e.agent, e.status);
        let _ = writeln!(
            text,
            "  {pod} {kind} {agent} {phase} {:?} since {} window {} attempt {} next {:?} due {:?} last {} told {:?} \
             condition {:?} resolved {:?} owed {} claim {:?} farewell {:?}",
            e.reason,
            e.first_seen,
            e.window,
            e.attempts,
            e.next_attempt_at,
            e.due_at,
            e.last_seen,
            e.last_notified_at,
            e.condition,
            e.resolved_at,
            e.owed,
            e.claim,
            e.farewell
        );
    }
    for condition in &status.conditions {
        let _ = writeln!(
            text,
            "  {} {} {} {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    let _ = writeln!(text, "  {:?} overflow {:?}", status.message, status.overflow);
    text
}

fn pick<T>(of: &[T], which: usize) -> Option<&T> {
    (!of.is_empty()).then(|| &of[which % of.len()])
}

fn live(setup: &Setup, ops: &[Op]) {
    let mut world = World::new(setup);
    for op in ops {
        world.apply(op);
        world.reconcile();
    }
    world.settle();
}

const NARROW: Setup =
    Setup { fan_out: false, max_entries: 2, keep_resolved: 0, max_bytes: 4000, notify: true };
const WIDE: Setup =
    Setup { fan_out: true, max_entries: 100, keep_resolved: 0, max_bytes: 14_000, notify: true };

// ---- lives that once broke a promise, at their shortest

#[test]
fn a_standby_does_not_wake_for_a_lookup_of_another() {
    live(&WIDE, &[Op::Restart(0), Op::End(0, End::Unknown(true)), Op::Crash]);
}

#[test]
fn a_place_that_frees_within_a_plan_is_taken_within_it() {
    let ops = [Op::ProbeEvent(1), Op::Restart(0), Op::Suspend(true), Op::Restart(1), Op::Sleep(960_000)];
    live(&Setup { keep_resolved: 1, ..NARROW }, &ops);
}

#[test]
fn a_later_signal_of_what_has_just_been_admitted_is_not_lost() {
    let ops = [
        Op::ProbeEvent(1),
        Op::Restart(0),
        Op::Wake(false),
        Op::Suspend(true),
        Op::End(0, End::Accepted),
        Op::ProbeEvent(0),
        Op::Wake(true),
        Op::ProbeEvent(0),
        Op::Wake(true),
    ];
    live(&NARROW, &ops);
}

#[test]
fn what_is_given_up_while_its_session_is_looked_up_resolves_at_once_if_it_is_over() {
    let ops = [
        Op::ProbeEvent(2),
        Op::Sleep(31_000),
        Op::Condition(2, StandingState::Clear),
        Op::Sleep(90_000_000),
        Op::End(0, End::Unknown(true)),
    ];
    live(&WIDE, &ops);
}

#[test]
fn a_claim_taken_over_after_a_day_is_still_looked_up() {
    let ops = [Op::Restart(0), Op::Sleep(86_300_000), Op::Crash, Op::Sleep(150_000), Op::Wake(true)];
    live(&WIDE, &ops);
}

#[test]
fn a_condition_told_again_after_its_incident_was_forgotten_is_a_new_episode() {
    let ops = [
        Op::Condition(1, StandingState::Holds),
        Op::Sleep(121_000),
        Op::Sleep(90_000_000),
        Op::End(0, End::NotRun),
        Op::Replay(0),
    ];
    live(&WIDE, &ops);
}

#[test]
fn an_owed_repeat_of_a_suspended_hook_is_suspended_at_once() {
    let ops = [
        Op::ProbeEvent(0),
        Op::Sleep(31_000),
        Op::End(0, End::Accepted),
        Op::Condition(0, StandingState::Gone),
        Op::Suspend(true),
        Op::Condition(0, StandingState::Holds),
        Op::Sleep(600_000),
    ];
    live(&NARROW, &ops);
}

#[test]
fn a_new_pod_that_is_well_ends_what_waits_for_the_old_one() {
    let ops = [Op::Restart(0), Op::ProbeEvent(1), Op::Condition(0, StandingState::Holds), Op::Replace(0)];
    live(&NARROW, &ops);
}

#[test]
fn what_is_held_back_for_several_agents_is_admitted_for_each_within_a_plan() {
    let tests = [0, 0, 0].map(Op::Test);
    let restarts = [1, 2, 0, 0].map(Op::Restart);
    let ops: Vec<Op> = [Op::ProbeEvent(0)].into_iter().chain(restarts).chain(tests).collect();
    let end = [Op::Sleep(31_000), Op::Sleep(1_200_000), Op::End(0, End::NotRun), Op::Suspend(true)];
    live(&WIDE, &ops.into_iter().chain(end).collect::<Vec<_>>());
}

#[test]
fn the_next_look_at_a_session_is_at_a_whole_millisecond() {
    let ops = [
        Op::Restart(2),
        Op::ProbeEvent(0),
        Op::Restart(0),
        Op::Sleep(31_000),
        Op::End(6_320_783_789_082_160, End::Accepted),
        Op::End(192_450_905_592_728_044, End::Unknown(true)),
        Op::End(3_320_624_263_605, End::LookupFails),
        Op::Sleep(5000),
        Op::Sleep(1),
        Op::End(440_612_747_702_358_493, End::Unknown(true)),
        Op::Wake(false),
        Op::Sleep(1),
        Op::End(8_352_943_470_719_969_568, End::Unknown(true)),
        Op::End(5_206_304_946_391_731_578, End::LookupFails),
    ];
    live(&Setup { notify: false, ..WIDE }, &ops);
}

#[test]
fn an_owed_repeat_does_not_wake_for_what_is_clear() {
    let ops = [
        Op::ProbeEvent(0),
        Op::Sleep(31_000),
        Op::Rule(1),
        Op::End(0, End::Accepted),
        Op::Rule(1),
        Op::ProbeEvent(0),
        Op::Wake(false),
    ];
    live(&NARROW, &ops);
}

proptest! {
    #![proptest_config(ProptestConfig {
        // A few seconds; `PROPTEST_CASES=10000` for a soak.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_life_of_a_hook_breaks_a_promise(setup in setup(), ops in prop::collection::vec(op(), 1..60)) {
        live(&setup, &ops);
    }

    #[test]
    fn message_ids_differ_by_window_and_by_nothing_else(window in 1..100i32) {
        prop_assert_eq!(key::message_id("s", window), key::message_id("s", window));
        prop_assert_ne!(key::message_id("s", window), key::message_id("s", window + 1));
    }
}
