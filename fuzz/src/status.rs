//! A status is what stands in a Hook in a cluster: khook's own, the Go khook's, or what an editor made of it.
//!
//! The input is a Hook, in JSON. It is taken over and lived with for a while: planned, written, read back, its
//! calls made, while pods have trouble and time passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use khook::{
    hook::{ActiveEvent, Claim, EventType, FarewellState, Hook, HookStatus, Phase, Reason, StandingState},
    incident::{
        breaker::Allow,
        key::Key,
        outcome::{AgentName, EndState, Ended, Lookup, Reply},
        plan::{
            Activity, AgentCapacity, Capacity, Claims, Inputs, News, Outcome, Plan, Urgency, activities, plan,
        },
        policy::Policy,
        rules::{Rules, Severity},
        signal::{Cause, Nature, Occurrence, Signal},
    },
};

use crate::at;

/// Whatever stands in a Hook: it is read, the status that is planned from it is bounded, whole and at rest, and
/// nothing is called that may not be or has been.
pub fn status(data: &[u8]) {
    let Ok(hook) = serde_json::from_slice::<Hook>(data) else { return };
    let status = hook.status.clone().unwrap_or_default();
    assert_eq!(stored(&status), status, "what is read is written as it is");
    for policy in [Policy::default(), narrow()] {
        let rules = Rules::parse(&hook.spec, "shop", &policy);
        are_sound(&rules, &policy, hook.spec.event_configurations.len());
        Life::new(&hook, rules, policy, status.clone()).live();
    }
}

/// Bounds that a small input reaches.
fn narrow() -> Policy {
    Policy {
        max_entries: 3,
        max_bytes: 6 * 1024,
        keep_resolved: 1,
        unseen_share: 0.0,
        direct_agents: "*".parse().expect("a list of hosts"),
        show_answers: false,
        ui_url: Some("https://kagent.example.com".into()),
        ..Policy::default()
    }
}

fn are_sound(rules: &Rules, policy: &Policy, configurations: usize) {
    let errors = rules.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    assert!(rules.configurations.len() + errors >= configurations, "what is left out is told");
    let day = Duration::from_secs(24 * 60 * 60);
    let mut known = BTreeSet::new();
    for rule in &rules.configurations {
        assert!(known.insert((rule.event_type, rule.agent.clone())), "one rule for each kind and agent");
        let whole = match &rule.agent {
            AgentName::Kagent { namespace, name } => !namespace.is_empty() && !name.is_empty(),
            AgentName::Direct { url, .. } => {
                policy.direct_agents.allows(&url.parse().expect("a URL")).is_ok()
            }
        };
        assert!(whole, "{:?}", rule.agent);
        assert!(rule.hold.is_none_or(|hold| hold <= day));
        for span in [rule.repeat_interval, rule.resolve_timeout] {
            assert!(span >= Duration::from_secs(10) && span <= day);
        }
    }
}

/// As an apiserver would give it back.
fn stored(status: &HookStatus) -> HookStatus {
    let text = serde_json::to_vec(status).expect("a status in JSON");
    serde_json::from_slice(&text).expect("a status from its own JSON")
}

/// One Hook in the hands of one process.
struct Life<'a> {
    hook: &'a Hook,
    rules: Rules,
    policy: Policy,
    status: HookStatus,
    next: i64,
    begun: BTreeSet<i64>,
    /// What is known of the message of an entry, its session and its window.
    sent: BTreeMap<Message, Sent>,
    now: DateTime<Utc>,
    turns: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Sent {
    /// Surely not: it may be sent.
    No,
    /// Nobody knows: it must be looked up.
    Perhaps,
    /// Surely: never again.
    Yes,
}

const PROCESS: &str = "khook-0_fuzz";
/// The first claim of this life: of its own in the input it remembers nothing but that they are its own.
const FIRST: i64 = 1_000_000;

impl<'a> Life<'a> {
    fn new(hook: &'a Hook, rules: Rules, policy: Policy, status: HookStatus) -> Self {
        let (begun, sent) = (BTreeSet::new(), BTreeMap::new());
        Self { hook, rules, policy, status, next: FIRST, begun, sent, now: at(0), turns: 0 }
    }

    fn live(mut self) {
        // First as one who may only look.
        self.turn(&[], &[], false);
        for round in 0..8 {
            let signals = self.signal(round);
            let wake = self.turn(signals.as_slice(), &[], true);
            let outcomes = self.act();
            let later = self.turn(&[], &outcomes, true);
            let soon = wake.into_iter().chain(later).filter(|wake| *wake > self.now).min();
            // By what the plan asks for, or by a span in which something or other ends.
            self.now = match (soon, round % 3) {
                (Some(wake), 0 | 1) if wake < self.now + Duration::from_secs(7 * 24 * 60 * 60) => wake,
                _ => self.now + Duration::from_secs(11 * 60),
            };
        }
    }

    /// Plans, checks the plan, and commits it.
    fn turn(&mut self, signals: &[Signal], outcomes: &[Outcome], may_claim: bool) -> Option<DateTime<Utc>> {
        let capacity = self.capacity(may_claim);
        let plan = self.plan(&self.status, signals, outcomes, &capacity);
        assert_eq!(plan, self.plan(&self.status, signals, outcomes, &capacity), "the same every time");
        assert_eq!(stored(&plan.status), plan.status, "what is planned is written as it is");
        assert!(plan.next_wake.is_none_or(|wake| wake > self.now), "a wake that is over");
        self.claims_are_fair(&plan, &capacity);
        self.is_bounded(&plan);
        self.is_whole(&plan.status);
        self.is_at_rest(&plan, signals, &capacity);
        self.next = plan.next_sequence;
        self.status = stored(&plan.status);
        self.turns += 1;
        plan.next_wake
    }

    fn plan(
        &self,
        status: &HookStatus,
        signals: &[Signal],
        outcomes: &[Outcome],
        capacity: &Capacity,
    ) -> Plan {
        // Of other processes' claims every second turn says that they have not moved for ever.
        let claims = status.active_events.iter().filter_map(|entry| entry.claim.clone());
        let foreign = claims.filter(|claim| claim.process != PROCESS);
        let unmoved = if self.turns % 2 == 1 { Duration::MAX } else { Duration::ZERO };
        let unmoved: BTreeMap<Claim, Duration> = foreign.map(|claim| (claim, unmoved)).collect();
        plan(&Inputs {
            hook_uid: self.hook.metadata.uid.as_deref().unwrap_or_default(),
            namespace: "shop",
            generation: self.hook.metadata.generation,
            rules: &self.rules,
            status,
            signals,
            outcomes,
            instructions: &[],
            capacity,
            claims: Claims {
                process: PROCESS,
                next: self.next,
                begun: &self.begun,
                busy: &BTreeSet::new(),
                unmoved: &unmoved,
            },
            policy: &self.policy,
            now: self.now,
        })
    }

    /// Now all may be called, now one, now none.
    fn capacity(&self, may_claim: bool) -> Capacity {
        let allow = match self.turns % 7 {
            3 => Allow::Probe,
            4 => Allow::Probing,
            5 => Allow::NoneUntil(self.now + Duration::from_secs(15)),
            _ => Allow::All,
        };
        let agent = AgentCapacity { slots: 2, allow, closed_at: None };
        let agents = self.rules.configurations.iter().map(|rule| (rule.agent.clone(), agent.clone()));
        Capacity { may_claim, slots: 3, shared: BTreeMap::new(), agents: agents.collect() }
    }

    fn claims_are_fair(&self, plan: &Plan, capacity: &Capacity) {
        let claimed: BTreeSet<&Claim> = plan.claimed.iter().map(|(claim, _)| claim).collect();
        assert_eq!(claimed.len(), plan.claimed.len(), "each claim once");
        assert!(plan.claimed.len() <= capacity.slots);
        if !capacity.may_claim {
            assert_eq!((plan.claimed.len(), plan.next_sequence), (0, self.next));
            assert_ne!(plan.urgency, Urgency::Claim);
        }
        assert!(!self.rules.suspended || plan.claimed.is_empty(), "a suspended Hook calls nobody");
        let mut calls: BTreeMap<&AgentName, usize> = BTreeMap::new();
        for (claim, agent) in &plan.claimed {
            assert!(claim.process == PROCESS && (self.next..plan.next_sequence).contains(&claim.sequence));
            *calls.entry(agent).or_default() += 1;
            let of_it = |entry: &&ActiveEvent| entry.claim.as_ref() == Some(claim);
            let entries: Vec<&ActiveEvent> = plan.status.active_events.iter().filter(of_it).collect();
            let [entry] = entries[..] else { panic!("{} entries of one claim", entries.len()) };
            let farewell = entry.farewell.as_ref().map(|farewell| farewell.state);
            match entry.status {
                Phase::Resolved => assert_eq!(farewell, Some(FarewellState::Calling)),
                status => assert_eq!((status, entry.reason), (Phase::Firing, Some(Reason::Calling))),
            }
            assert!(agent.is(&entry.agent) && self.rules.of(entry).is_some());
        }
        for (agent, calls) in calls {
            let of_agent = &capacity.agents[agent];
            let most = match of_agent.allow {
                Allow::All => of_agent.slots,
                Allow::Probe => 1,
                Allow::NoneUntil(_) | Allow::Probing | Allow::NotReady => 0,
            };
            assert!(calls <= most, "{calls} calls of {agent}, at most {most}");
        }
    }

    fn is_bounded(&self, plan: &Plan) {
        let (before, after) = (&self.status.active_events, &plan.status.active_events);
        // The Go khook knew one incident where there is one for each agent now.
        let adopted: usize = before
            .iter()
            .map(|entry| match entry.id.is_empty() {
                true => self.rules.listening_to(entry.event_type).count(),
                false => 1,
            })
            .sum();
        let most = self.policy.max_entries.max(self.rules.configurations.len()).max(adopted).max(1);
        assert!(after.len() <= most, "{} entries, at most {most}", after.len());
        let bytes = |entries: &[ActiveEvent]| -> usize { entries.iter().map(json_len).sum() };
        // What is in an entry that came with the status cannot always be cut: its names.
        let (bytes_before, bytes_after) = (bytes(before), bytes(after));
        let room = 1024 * after.len();
        let most = self.policy.max_bytes.max(bytes_before * adopted.max(1) + room);
        assert!(after.len() <= 1 || bytes_after <= most, "{bytes_after} bytes, at most {most}");
        if after.iter().all(is_usual) && after.len() <= self.policy.max_bytes / 2048 {
            assert!(bytes_after <= self.policy.max_bytes, "{bytes_after} bytes");
        }
        for text in plan.notices.iter().map(|notice| &notice.note) {
            assert!(!text.is_empty());
        }
    }

    /// Each incident stands once, and in times that spans can be added to.
    fn is_whole(&self, status: &HookStatus) {
        let entries = &status.active_events;
        let keys: BTreeSet<Key> = entries.iter().map(Key::of).collect();
        assert_eq!(keys.len(), entries.len(), "two entries of one incident");
        let ids: BTreeSet<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids.len(), entries.len(), "two entries of one id");
        assert!(entries.iter().all(|entry| entry.session_id.is_some()));
        let range = DateTime::UNIX_EPOCH..=self.now + Duration::from_secs(2 * 366 * 24 * 60 * 60);
        for entry in entries {
            assert!(entry.status != Phase::Resolved || entry.resolved_at.is_some());
            assert!(entry.status != Phase::Pending || entry.due_at.is_some());
            let times = [Some(entry.first_seen), Some(entry.last_seen), entry.due_at, entry.next_attempt_at];
            let more = [entry.resolved_at, entry.notified_at, entry.last_notified_at];
            assert!(times.iter().chain(&more).flatten().all(|at| range.contains(at)), "{entry:?}");
        }
        let count = |phase| entries.iter().filter(|entry| entry.status == phase).count();
        let told = [status.pending, status.firing, status.notified, status.resolved];
        let phases = [Phase::Pending, Phase::Firing, Phase::Notified, Phase::Resolved];
        for (told, phase) in told.into_iter().zip(phases) {
            assert_eq!(told.map(usize::try_from), Some(Ok(count(phase))), "{phase}");
        }
    }

    /// The plan of a planned status, at the same time, without news: the same again.
    fn is_at_rest(&self, plan: &Plan, signals: &[Signal], capacity: &Capacity) {
        // Slots are gone by then.
        let capacity = Capacity { may_claim: false, ..capacity.clone() };
        if plan.held_back.is_empty() {
            let again = self.plan(&plan.status, &[], &[], &capacity);
            assert_eq!(again.status, plan.status, "a plan is not at rest");
            assert_eq!((again.urgency, again.notices.len()), (Urgency::None, 0));
        }
        let occurred = |signal: &Signal| matches!(signal.nature, Nature::Occurrence(_));
        if plan.held_back.is_empty() && signals.iter().all(occurred) {
            let again = self.plan(&plan.status, signals, &[], &capacity);
            assert_eq!(again.status, plan.status, "a replay changes something");
        }
    }

    /// What the committed status asks for is done; what comes of it goes through everything that can.
    fn act(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let nothing = BTreeMap::new();
        let busy = BTreeSet::new();
        let claims =
            Claims { process: PROCESS, next: self.next, begun: &self.begun, busy: &busy, unmoved: &nothing };
        let (mut begun, mut sent) = (self.begun.clone(), self.sent.clone());
        for (index, activity) in activities(&self.status, &claims, self.now).enumerate() {
            let turn = self.turns + index;
            let (entry, news) = match activity {
                Activity::Call(entry, claim) => {
                    // Only an editor can make two entries of a claim that was there before.
                    let first = begun.insert(claim.sequence);
                    assert!(first || claim.sequence < FIRST, "one call for one claim");
                    let message = message_of(entry);
                    let before = sent.get(&message).copied().unwrap_or(Sent::No);
                    // No incident has as many windows, but by hand; there the count ends.
                    assert!(
                        before == Sent::No || entry.window == i32::MAX,
                        "called again: {message:?} of {entry:?}"
                    );
                    let reply = reply(turn);
                    sent.insert(
                        message,
                        match reply {
                            Reply::Accepted { .. } => Sent::Yes,
                            Reply::NotRun { .. } | Reply::Permanent { .. } => Sent::No,
                            Reply::Unknown { .. } => Sent::Perhaps,
                        },
                    );
                    let claim = claim.clone();
                    match entry.status {
                        Phase::Resolved => (entry, News::FarewellCalled(claim, reply)),
                        _ => (entry, News::Called(claim, reply)),
                    }
                }
                Activity::LookUp(entry, claim) => {
                    let message = message_of(entry);
                    let known = sent.get(&message).copied();
                    let lookup = lookup(turn, known);
                    match lookup {
                        Lookup::Found { .. } => _ = sent.insert(message, Sent::Yes),
                        // Without a lookup one more is sent.
                        Lookup::Absent | Lookup::Unsupported { .. } => _ = sent.insert(message, Sent::No),
                        Lookup::Unavailable { .. } => {}
                    }
                    (entry, News::LookedUp(claim.clone(), lookup))
                }
                Activity::Follow(entry, task_id) => {
                    let ended =
                        Ended { state: EndState::Completed, answer: "Done. ".repeat(200), usage: None };
                    (entry, News::TaskEnded(task_id.to_owned(), ended))
                }
            };
            let session_id = entry.session_id.clone().unwrap_or_default();
            outcomes.push(Outcome { entry: entry.id.clone(), session_id, news });
        }
        (self.begun, self.sent) = (begun, sent);
        outcomes
    }

    /// What the pod of one of the entries says, or another pod, each round something else.
    fn signal(&self, round: usize) -> Option<Signal> {
        let listened: Vec<EventType> =
            EventType::ALL.into_iter().filter(|kind| self.rules.listens_to(*kind)).collect();
        let entries = &self.status.active_events;
        let entry = entries.get(round % entries.len().max(1)).filter(|_| round % 4 != 3);
        let event_type = entry.map_or_else(
            || listened.get(round % listened.len().max(1)).copied().unwrap_or(EventType::OomKill),
            |entry| entry.event_type,
        );
        let since = self.now - Duration::from_secs(5);
        let condition = |state| Nature::Condition { state, since };
        let happened = |age: u64, source: &str| {
            let at = self.now - Duration::from_secs(age);
            Nature::Occurrence(Occurrence {
                source: source.into(),
                at,
                count: i64::try_from(round).unwrap_or(0) + 1,
            })
        };
        let nature = match round {
            0 => return None,
            1 => happened(5, "one"),
            2 => condition(StandingState::Holds),
            3 => happened(5, "other"),
            4 => condition(StandingState::Clear),
            5 => happened(1000, "stale"),
            6 => condition(StandingState::Gone),
            _ => Nature::Unclear,
        };
        Some(Signal {
            event_type,
            cause: Cause::Readiness,
            namespace: entry.map_or("shop", |entry| &entry.namespace).to_owned(),
            pod: entry.map_or("other-0", |entry| &entry.resource_name).to_owned(),
            uid: entry.map_or("uid-of-other-0", |entry| &entry.uid).to_owned(),
            container: Some("app".into()),
            event_name: "web-0.1873a6b2".into(),
            reason: "BackOff".into(),
            message: "Back-off restarting failed container app".repeat(round),
            observed_at: self.now,
            nature,
            test: None,
        })
    }
}

type Message = (String, String, i32);

/// The message that a call of this entry sends: one for each session and window.
fn message_of(entry: &ActiveEvent) -> Message {
    // A farewell is another message than the one about the incident.
    let window = if entry.status == Phase::Resolved { !entry.window } else { entry.window };
    (entry.id.clone(), entry.session_id.clone().unwrap_or_default(), window)
}

fn reply(turn: usize) -> Reply {
    let error = "connection refused".to_owned();
    match turn % 5 {
        0 => Reply::NotRun { error, retry_after: Some(Duration::from_secs(3600)), throttled: false },
        1 => Reply::Unknown { error },
        2 => Reply::Accepted {
            task_id: Some("a6df89db-9a62-4edf-8826-2b0d605e335b".into()),
            ended: None,
            protocol: None,
        },
        3 => Reply::Permanent { error },
        _ => {
            let ended = Ended { state: EndState::Failed, answer: "no \"model\"\n".repeat(100), usage: None };
            Reply::Accepted { task_id: None, ended: Some(ended), protocol: None }
        }
    }
}

/// What a lookup can say, knowing what was sent.
fn lookup(turn: usize, sent: Option<Sent>) -> Lookup {
    let error = "no such route".to_owned();
    match (turn % 4, sent) {
        (0, _) => Lookup::Unavailable { error },
        (_, Some(Sent::Yes)) | (1, _) => {
            Lookup::Found { task_id: "a6df89db-9a62-4edf-8826-2b0d605e335b".into(), ended: None }
        }
        (2, _) => Lookup::Unsupported { error },
        _ => Lookup::Absent,
    }
}

/// Names and ids no longer than Kubernetes has them.
fn is_usual(entry: &ActiveEvent) -> bool {
    let names = [&entry.id, &entry.namespace, &entry.resource_name, &entry.agent, &entry.uid];
    let lists = entry.containers.iter().chain(&entry.seen).chain(&entry.session_id).chain(&entry.task_id);
    let process = entry.claim.iter().map(|claim| &claim.process);
    names.into_iter().chain(lists).chain(process).all(|name| name.len() <= 64)
}

fn json_len(entry: &ActiveEvent) -> usize {
    serde_json::to_vec(entry).expect("an entry in JSON").len()
}
