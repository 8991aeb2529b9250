//! What the tests of this module have in common: a clock that stands, rules, signals and claims.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    breaker::Allow,
    outcome::{AgentName, EndState, Ended, Reply},
    plan::{AgentCapacity, Capacity, Claims, Inputs, News, Outcome, Plan, plan},
    policy::Policy,
    rules::{Rule, Rules},
    signal::{Cause, Nature, Occurrence, Signal},
};
use crate::hook::{
    ActiveEvent, Claim, EventType, HookStatus, Instruction, Phase, Reason, StandingState, Verb,
};

pub const HOOK_UID: &str = "6f1e7a0c-0000-4000-8000-000000000001";
pub const NAMESPACE: &str = "shop";
pub const AGENT: &str = "kagent/k8s-agent";
pub const OTHER_AGENT: &str = "kagent/other";

/// 2026-01-02T03:00:00Z and so many seconds.
pub fn at(seconds: i64) -> DateTime<Utc> {
    at_ms(seconds * 1000)
}

pub fn at_ms(milliseconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-01-02T03:00:00Z".parse().expect("a timestamp");
    start + TimeDelta::milliseconds(milliseconds)
}

pub fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

pub fn agent(name: &str) -> AgentName {
    name.parse().expect("namespace/name")
}

pub fn rule(event_type: EventType, agent_name: &str) -> Rule {
    let policy = Policy::default();
    Rule {
        event_type,
        agent: agent(agent_name),
        direct: None,
        prompt: "Look at {{.ResourceName}}".into(),
        hold: None,
        repeat_interval: policy.repeat_interval,
        resolve_timeout: policy.resolve_timeout,
        notify_resolved: false,
    }
}

pub fn rules(configurations: Vec<Rule>) -> Rules {
    Rules { configurations, ..Rules::default() }
}

/// One agent that is asked about everything.
pub fn rules_for_all() -> Rules {
    rules(EventType::ALL.into_iter().map(|event_type| rule(event_type, AGENT)).collect())
}

fn signal(
    event_type: EventType,
    cause: Cause,
    pod: &str,
    observed_at: DateTime<Utc>,
    nature: Nature,
) -> Signal {
    Signal {
        event_type,
        cause,
        namespace: NAMESPACE.into(),
        pod: pod.into(),
        uid: format!("uid-of-{pod}"),
        container: Some("app".into()),
        event_name: format!("{pod}.1873a6b2"),
        reason: "BackOff".into(),
        message: "Back-off restarting failed container app".into(),
        observed_at,
        nature,
        test: None,
    }
}

/// A restart, seen when it happened.
pub fn restarted(pod: &str, count: i64, at: DateTime<Utc>) -> Signal {
    let nature = Nature::Occurrence(Occurrence { source: format!("event-of-{pod}"), at, count });
    signal(EventType::PodRestart, Cause::Restart, pod, at, nature)
}

/// A readiness probe that fails, or does not any more.
pub fn readiness(pod: &str, state: StandingState, since: DateTime<Utc>) -> Signal {
    let nature = Nature::Condition { state, since };
    signal(EventType::ProbeFailed, Cause::Readiness, pod, since, nature)
}

pub fn claim(process: &str, sequence: i64, at: DateTime<Utc>) -> Claim {
    Claim { process: process.into(), sequence, at, seconds: 150 }
}

pub fn reply_accepted(task_id: &str) -> Reply {
    Reply::Accepted { task_id: Some(task_id.into()), ended: None, protocol: None }
}

pub fn reply_not_run() -> Reply {
    Reply::NotRun { error: "connection refused".into(), retry_after: None, throttled: false }
}

pub fn reply_unknown() -> Reply {
    Reply::Unknown { error: "connection reset".into() }
}

pub fn completed(answer: &str) -> Ended {
    Ended { state: EndState::Completed, answer: answer.into(), usage: None }
}

/// A Hook in the hands of one process: plans, and commits what it planned.
pub struct Bench {
    pub rules: Rules,
    pub policy: Policy,
    pub status: HookStatus,
    pub instructions: Vec<(String, Instruction)>,
    pub capacity: Capacity,
    pub process: &'static str,
    pub next: i64,
    pub begun: BTreeSet<i64>,
    pub busy: BTreeSet<i64>,
    pub unmoved: BTreeMap<Claim, Duration>,
}

impl Bench {
    /// Both agents well, 64 slots, 16 each.
    pub fn new(rules: Rules) -> Self {
        let free = AgentCapacity { slots: 16, allow: Allow::All, closed_at: None };
        let agents = [AGENT, OTHER_AGENT].map(|name| (agent(name), free.clone()));
        Self {
            rules,
            // Trouble shows at once, but where a test is about that.
            policy: Policy { unseen_share: 0.0, ..Policy::default() },
            status: HookStatus::default(),
            instructions: Vec::new(),
            capacity: Capacity { may_claim: true, slots: 64, shared: BTreeMap::new(), agents: agents.into() },
            process: "p1",
            next: 1,
            begun: BTreeSet::new(),
            busy: BTreeSet::new(),
            unmoved: BTreeMap::new(),
        }
    }

    /// Allows this to the first agent.
    pub fn allow(&mut self, allow: Allow) {
        self.of_agent(AGENT).allow = allow;
    }

    pub fn of_agent(&mut self, name: &str) -> &mut AgentCapacity {
        self.capacity.agents.get_mut(&agent(name)).expect("an agent of the bench")
    }

    pub fn claims(&self) -> Claims<'_> {
        let Self { process, next, begun, busy, unmoved, .. } = self;
        Claims { process, next: *next, begun, busy, unmoved }
    }

    pub fn plan(&self, signals: &[Signal], outcomes: &[Outcome], now: DateTime<Utc>) -> Plan {
        plan(&Inputs {
            hook_uid: HOOK_UID,
            namespace: NAMESPACE,
            generation: Some(1),
            rules: &self.rules,
            status: &self.status,
            signals,
            outcomes,
            instructions: &self.instructions,
            capacity: &self.capacity,
            claims: self.claims(),
            policy: &self.policy,
            now,
        })
    }

    /// Plans and commits.
    pub fn turn(&mut self, signals: &[Signal], outcomes: &[Outcome], now: DateTime<Utc>) -> Plan {
        let plan = self.plan(signals, outcomes, now);
        self.status = plan.status.clone();
        self.next = plan.next_sequence;
        plan
    }

    /// Has a person say this of the incident of a pod.
    pub fn say(&mut self, pod: &str, verb: Verb, now: DateTime<Utc>, until: Option<DateTime<Utc>>) {
        let session = self.of_pod(pod).session_id.clone().expect("a session");
        self.instructions.push((session, Instruction { verb, by: "jane".into(), at: now, until }));
    }

    /// The only entry.
    pub fn entry(&self) -> &ActiveEvent {
        let [entry] = &self.status.active_events[..] else {
            panic!("one entry, but {:#?}", self.status.active_events)
        };
        entry
    }

    /// The entry of a pod, where there is one only.
    pub fn of_pod(&self, pod: &str) -> &ActiveEvent {
        let found: Vec<_> =
            self.status.active_events.iter().filter(|entry| entry.resource_name == pod).collect();
        let [entry] = found[..] else { panic!("one entry of {pod}, but {found:#?}") };
        entry
    }

    /// The outcome of the claim that stands on the entry of a pod.
    pub fn outcome(&self, pod: &str, reply: Reply) -> Outcome {
        let entry = self.of_pod(pod);
        let claim = entry.claim.clone().expect("a claim");
        let news = match entry.status {
            Phase::Resolved => News::FarewellCalled(claim, reply),
            Phase::Pending | Phase::Firing | Phase::Notified => News::Called(claim, reply),
        };
        outcome_of(entry, news)
    }

    /// `(pod, phase, reason)` of every entry.
    pub fn phases(&self) -> Vec<(&str, Phase, Reason)> {
        let entries = self.status.active_events.iter();
        entries.map(|e| (e.resource_name.as_str(), e.status, e.reason.expect("a reason"))).collect()
    }
}

pub fn outcome_of(entry: &ActiveEvent, news: News) -> Outcome {
    Outcome { entry: entry.id.clone(), session_id: entry.session_id.clone().expect("a session"), news }
}

/// Whether an incident goes from one status to the next as the state machine has it: (firstSeen, window, attempts,
/// phase) only forward, but for what the table names, and no repeat before its window is over, unless a person wants
/// it or the one before was only observed.
pub fn moves_forward(
    before: &ActiveEvent,
    after: &ActiveEvent,
    now: DateTime<Utc>,
    policy: &Policy,
) -> Result<(), &'static str> {
    let wanted = after.instruction != before.instruction
        && after.instruction.as_ref().is_some_and(|instruction| instruction.verb == Verb::Retry);
    if after.first_seen == before.first_seen
        && after.window > before.window
        && !wanted
        && !before.observed
        && before.last_notified_at.is_some_and(|at| now < at + policy.repeat_interval)
    {
        return Err("a repeat inside the window");
    }
    let place = |entry: &ActiveEvent| (entry.first_seen, entry.window, entry.attempts, entry.status);
    let same = (before.first_seen, before.window, before.attempts)
        == (after.first_seen, after.window, after.attempts);
    let named = match (before.status, after.status) {
        (Phase::Resolved, Phase::Notified) => after.reason == Some(Reason::Reopened) && after.owed,
        // An attempt that did not run.
        (Phase::Firing, Phase::Pending) => true,
        _ => false,
    };
    if place(after) >= place(before) || same && named { Ok(()) } else { Err("backwards") }
}
