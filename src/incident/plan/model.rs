//! A model is a world around `plan`, small enough to walk every course it can take: two replicas, one Hook in
//! the apiserver, two pods in trouble, one agent, and a few faults at any moment.
//!
//! `simulation` draws long lives of one process at random; here nothing is drawn. What `reconcile.rs` does
//! around `plan` is done by `World`, in the same order and under the same names, without the I/O.
//!
//! What it leaves out, so that it stays small:
//! - Suspension, removed configurations, conditions, full lists, slots, breakers and stale news: the simulation
//!   has these. Tasks: they change no phase.
//! - Moments. Time passes in steps that mean something, see `Span`; requests take less than a minute.
//! - The way to an inbox. Whoever leads hears of trouble when it happens; whoever begins to lead hears of all.
//! - What cannot be told apart. A replica knows one version, the newer of its cache and of its own last answer;
//!   a claim is observed as soon as it is known; a dead process is one that has been replaced and stands by,
//!   and whoever stands by without a call does not look at its cache.
//! - Wakes: a reconcile may come at any moment. That it comes when something is due is for the simulation.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
};

use rstest::rstest;
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::*;
use crate::{
    hook::EventType,
    incident::fixtures::{
        AGENT, Bench, HOOK_UID, NAMESPACE, at, moves_forward, reply_accepted, reply_not_run, reply_unknown,
        restarted, rule, rules,
    },
};

/// How large the world is.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Pods in trouble, each an incident of its own.
    pods: usize,
    /// Whether the last pod restarts once more, after its window; of incidents that end, after their end.
    repeat: bool,
    /// Whether incidents end, by being quiet, and the agent is told so.
    ending: Ending,
    /// Faults of all kinds together.
    faults: usize,
    /// Moves of the lease among them: two leaders are the largest part of this world.
    leases: usize,
}

/// When incidents are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Never.
    Never,
    /// When their window is over: what comes back then is a repeat.
    AfterWindow,
    /// Before: what comes back then is owed a repeat, and may end once more without one.
    InsideWindow,
}

/// Something that `reconcile.rs` must not do. Each breaks a promise; a model that does not find out is blind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Writes whatever version is stored.
    IgnoresVersion,
    /// Begins what the plan says before it is stored.
    CallsBeforeCommit,
    /// Takes an unknown outcome for a failure.
    ResendsUnknown,
    /// Takes a failed lookup for absence.
    TrustsFailedLookup,
    /// Calls under a claim it has taken over instead of looking the session up.
    CallsWhenTakingOver,
    /// Looks up what it has taken over before a message on its way can have arrived.
    LooksUpAtOnce,
    /// Takes a foreign claim over at first sight.
    TakesOverAtOnce,
    /// Sends although it stood still until the claim was over.
    SendsAfterDeadline,
    /// Takes inputs out of the inbox before they are stored.
    ForgetsInputs,
    /// Begins nothing that it did not write a moment ago.
    TrustsAcknowledgements,
    /// Takes an unknown outcome of a farewell for a failure.
    RepeatsFarewells,
    /// Says the farewell of a process that is gone.
    InheritsFarewells,
    /// Takes the outcome of a farewell for that of a call about the incident.
    MixesUpFarewells,
}

/// Something that goes wrong in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fault {
    /// A write is stored, and its acknowledgement is lost.
    LostAck,
    /// A write is not answered, and not stored either.
    LostWrite,
    /// The same, but it is stored a little later.
    LateWrite,
    /// A call surely does not run.
    NotRun,
    /// Whether a call ran is not known.
    Unknown,
    /// A lookup fails.
    NoLookup,
    /// A replica dies.
    Crash,
    /// The lease moves without need; also to a second holder.
    Lease,
    /// A process stands still for longer than its requests may take, or its claims.
    Freeze,
}

/// What must never be broken, as far as a step can break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Promise {
    /// Every attempt of every message is sent at most once, by whichever replica.
    SentOnce,
    /// A call begins only under a claim that has been stored.
    Claimed,
    /// No message arrives twice.
    ReceivedOnce,
    /// An incident only goes forward, but for what the table of the lifecycle names.
    Forward,
    /// Whoever is called notified has been notified, and whoever is called told of the end has been told.
    Truthful,
    /// Nobody is told of the end of what he has not heard of.
    Fitting,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A pod restarts, and whoever leads is told.
    Trouble(usize),
    /// The last pod restarts once more, after its incident has ended.
    Return,
    /// A replica's cache catches up.
    Watch(usize),
    /// A replica plans, writes and begins what is due.
    Reconcile(usize, Write),
    /// The write that nobody answered is stored all the same.
    LateWrite,
    /// A call reaches the agent.
    Arrive(usize),
    /// A call or a lookup is answered.
    Answer(usize),
    /// A call surely fails.
    Refuse(usize),
    /// The answer is lost.
    Lose(usize),
    /// A message whose sender does not wait any more arrives, or never does.
    Land(usize),
    Vanish(usize),
    /// A replica dies, and another process takes its place and stands by.
    Crash(usize),
    /// A replica begins to lead, or ends.
    Gain(usize),
    Resign(usize),
    /// Time passes.
    Pass(Span),
}

/// What becomes of the write of a reconcile, if it makes one. A stale one is a conflict anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Acknowledged,
    /// It is too soon for another write.
    Throttled,
    LostAck,
    Lost,
}

/// A step of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    /// Backoffs and the grace before a lookup are over.
    Minute,
    /// Claims can be taken over that stand now.
    Takeover,
    /// Windows and rounds are over.
    Window,
    /// What has been quiet meanwhile is over.
    Quiet,
}

impl Span {
    fn length(self, khook: &Khook) -> Duration {
        match self {
            Self::Minute => MINUTE,
            Self::Takeover => khook.policy.claim_duration + khook.policy.takeover_margin,
            Self::Window => khook.policy.repeat_interval,
            Self::Quiet => khook.rules.configurations[0].resolve_timeout + MILLISECOND,
        }
    }
}

/// The session and the window of a message; that of a farewell is the same below zero.
type Message = (String, i32);

fn is_farewell((_, window): &Message) -> bool {
    *window < 0
}

/// A status that has been stored, or is to be. What is not in its entries is made from them, for people: it
/// tells no two apart.
#[derive(Debug)]
struct Text {
    status: HookStatus,
    print: u64,
}

impl Text {
    fn new(status: HookStatus) -> Self {
        Self { print: print(&serde_json::to_vec(&status.active_events).expect("JSON")), status }
    }

    fn entries(&self) -> &[ActiveEvent] {
        &self.status.active_events
    }

    fn has(&self, claim: &Claim) -> bool {
        self.claims().any(|other| other == claim)
    }

    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.entries().iter().filter_map(|entry| entry.claim.as_ref())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

/// A version of the Hook. Numbers are those of their order among the versions somebody knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Version {
    number: u64,
    text: Arc<Text>,
}

/// A signal in an inbox: how often the pod has restarted, when last, and when that was heard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Told {
    pod: usize,
    count: usize,
    at: DateTime<Utc>,
    heard: DateTime<Utc>,
}

impl Told {
    fn signal(&self) -> Signal {
        Signal { observed_at: self.heard, ..restarted(PODS[self.pod], self.count as i64, self.at) }
    }
}

/// An outcome in an inbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Word {
    entry: String,
    session_id: String,
    claim: Claim,
    farewell: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Accepted,
    NotRun,
    Unknown,
    Found,
    Absent,
    Unavailable,
}

impl Word {
    fn outcome(&self) -> Outcome {
        let claim = self.claim.clone();
        let error = || String::from("it failed");
        let task_id = || String::from("task");
        let news = match self.end {
            End::Accepted if self.farewell => News::FarewellCalled(claim, reply_accepted(&task_id())),
            End::NotRun if self.farewell => News::FarewellCalled(claim, reply_not_run()),
            End::Unknown if self.farewell => News::FarewellCalled(claim, reply_unknown()),
            End::Accepted => News::Called(claim, reply_accepted(&task_id())),
            End::NotRun => News::Called(claim, reply_not_run()),
            End::Unknown => News::Called(claim, reply_unknown()),
            End::Found => News::LookedUp(claim, Lookup::Found { task_id: task_id(), ended: None }),
            End::Absent => News::LookedUp(claim, Lookup::Absent),
            End::Unavailable => News::LookedUp(claim, Lookup::Unavailable { error: error() }),
        };
        Outcome { entry: self.entry.clone(), session_id: self.session_id.clone(), news }
    }
}

/// A call or a lookup under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    replica: usize,
    work: Work,
    entry: String,
    message: Message,
    claim: Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Work {
    Call { arrived: bool },
    LookUp,
}

/// What `reconcile.rs` remembers of the Hook, and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    life: u8,
    leads: bool,
    /// The newer of its cache and its own last answer: the other is never looked at again.
    known: Version,
    read_back: bool,
    unconfirmed: Option<(Arc<Text>, Taken)>,
    inbox: Taken,
    next_sequence: i64,
    begun: BTreeSet<i64>,
    busy: BTreeSet<i64>,
    /// Foreign claims that have stood for long enough.
    stood: BTreeSet<Claim>,
}

/// Inputs: those in the inbox, or those a plan was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Taken {
    signals: Vec<Told>,
    outcomes: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: DateTime<Utc>,
    stored: Version,
    replicas: [Replica; 2],
    flights: Vec<Flight>,
    /// Messages on their way whose sender does not wait any more.
    air: Vec<Message>,
    /// A write nobody answered, and the version it was planned from.
    late: Option<(u64, Arc<Text>)>,
    /// When each pod restarted.
    restarts: [Vec<DateTime<Utc>>; 2],
    /// Claims that have been stored, as long as anybody can see them.
    claims: BTreeSet<Claim>,
    /// Attempts, and the replica that made them.
    sent: BTreeMap<(Message, i32), usize>,
    received: BTreeMap<Message, u8>,
    faults: BTreeMap<Fault, usize>,
    broken: BTreeSet<Promise>,
}

const PODS: [&str; 2] = ["web-0", "web-1"];

/// The pods of the replicas: a process is named after its pod and its start.
const HOMES: [&str; 2] = ["a", "b"];

/// All that a plan is made from, but for what never changes here.
#[derive(Hash)]
struct Question<'a> {
    text: &'a Text,
    taken: &'a Taken,
    leading: bool,
    process: &'a str,
    next: i64,
    begun: &'a BTreeSet<i64>,
    busy: &'a BTreeSet<i64>,
    unmoved: &'a BTreeMap<Claim, Duration>,
    now: DateTime<Utc>,
}

/// What is needed of a plan.
struct Planned {
    text: Arc<Text>,
    urgency: Urgency,
    next_sequence: i64,
}

/// The model: what never changes, and what has been worked out before.
struct Khook {
    bounds: Bounds,
    flaw: Option<Flaw>,
    rules: Rules,
    policy: Policy,
    capacity: Capacity,
    /// `plan` is a function: it is not asked the same twice.
    plans: Mutex<HashMap<u64, Arc<Planned>>>,
    /// Prints of worlds that come to rest as they should.
    restful: Mutex<HashSet<u64>>,
}

impl Khook {
    fn new(bounds: Bounds, flaw: Option<Flaw>) -> Self {
        let mut rule = rule(EventType::PodRestart, AGENT);
        rule.notify_resolved = bounds.ending != Ending::Never;
        if bounds.ending == Ending::InsideWindow {
            rule.resolve_timeout = rule.repeat_interval / 4;
        }
        let Bench { rules, policy, capacity, .. } = Bench::new(rules(vec![rule]));
        // However late a pod is heard of, it is heard.
        let policy = Policy { stale_after: policy.delivery_timeout, ..policy };
        Self { bounds, flaw, rules, policy, capacity, plans: Mutex::default(), restful: Mutex::default() }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn plan(&self, question: &Question) -> Arc<Planned> {
        let print = print(question);
        if let Some(known) = self.plans.lock().expect("not poisoned").get(&print) {
            return known.clone();
        }
        let signals: Vec<Signal> = question.taken.signals.iter().map(Told::signal).collect();
        let outcomes: Vec<Outcome> = question.taken.outcomes.iter().map(Word::outcome).collect();
        let plan = super::plan(&Inputs {
            hook_uid: HOOK_UID,
            namespace: NAMESPACE,
            generation: Some(1),
            rules: &self.rules,
            status: &question.text.status,
            signals: &signals,
            outcomes: &outcomes,
            instructions: &[],
            capacity: &Capacity { may_claim: question.leading, ..self.capacity.clone() },
            claims: Claims {
                process: question.process,
                next: question.next,
                begun: question.begun,
                busy: question.busy,
                unmoved: question.unmoved,
            },
            policy: &self.policy,
            now: question.now,
        });
        assert!(plan.held_back.is_empty() && plan.young.is_empty(), "all inputs are taken in");
        let mut status = plan.status;
        if self.has(Flaw::CallsWhenTakingOver) || self.has(Flaw::LooksUpAtOnce) {
            let reason = self.has(Flaw::CallsWhenTakingOver).then_some(Reason::Calling);
            hurry(&question.text.status, &mut status, reason);
        }
        if self.has(Flaw::InheritsFarewells) {
            inherit(&question.text.status, &mut status);
        }
        let Plan { urgency, next_sequence, .. } = plan;
        let planned = Arc::new(Planned { text: Arc::new(Text::new(status)), urgency, next_sequence });
        self.plans.lock().expect("not poisoned").insert(print, planned.clone());
        planned
    }

    /// What happens without a fault, first things first: the time passes when nothing else is left to do.
    fn fair(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (index, flight) in world.flights.iter().enumerate() {
            actions.push(match flight.work {
                // Whoever stood still until its claim was over does not send.
                Work::Call { arrived: false } if !world.may_arrive(self, flight) => Action::Refuse(index),
                Work::Call { .. } | Work::LookUp => Action::Answer(index),
            });
        }
        actions.extend((0..world.air.len()).map(Action::Land));
        let quiet = (0..self.bounds.pods).filter(|pod| world.restarts[*pod].is_empty());
        actions.extend(quiet.map(Action::Trouble));
        let nobody_leads = world.replicas.iter().all(|replica| !replica.leads);
        for (index, replica) in world.replicas.iter().enumerate() {
            if nobody_leads {
                actions.push(Action::Gain(index));
            }
            if replica.known.number < world.stored.number && !world.is_idle(index) {
                actions.push(Action::Watch(index));
            }
            actions.push(Action::Reconcile(index, Write::Acknowledged));
        }
        let spans = world.spans(self).into_iter().filter(|span| !world.freezes(self, *span));
        actions.extend(spans.map(Action::Pass));
        actions
    }

    /// What else may happen: faults, and what follows from them.
    fn unfair(&self, world: &World) -> Vec<Action> {
        let mut actions: Vec<Action> = (0..world.air.len()).map(Action::Vanish).collect();
        if world.may_return(self) {
            actions.push(Action::Return);
        }
        if world.late.is_some() {
            actions.push(Action::LateWrite);
        }
        for (index, replica) in world.replicas.iter().enumerate() {
            if replica.leads {
                actions.push(Action::Reconcile(index, Write::Throttled));
            }
        }
        if world.faults.values().sum::<usize>() >= self.bounds.faults {
            return actions;
        }
        let spans = world.spans(self);
        for (index, flight) in world.flights.iter().enumerate() {
            actions.push(Action::Lose(index));
            if world.is_open(self, flight) {
                actions.push(Action::Refuse(index));
                // Nobody looks for the message of a call that ends in time.
                if spans.iter().any(|span| world.is_overdue(self, flight, *span)) {
                    actions.push(Action::Arrive(index));
                }
            }
        }
        let somebody_leads = world.replicas.iter().any(|replica| replica.leads);
        for (index, replica) in world.replicas.iter().enumerate() {
            if !world.is_idle(index) {
                actions.push(Action::Reconcile(index, Write::LostAck));
                actions.push(Action::Reconcile(index, Write::Lost));
                actions.push(Action::Crash(index));
            }
            if somebody_leads && world.suffered(Fault::Lease) < self.bounds.leases {
                actions.push(if replica.leads { Action::Resign(index) } else { Action::Gain(index) });
            }
        }
        actions.extend(spans.into_iter().filter(|span| world.freezes(self, *span)).map(Action::Pass));
        actions
    }

    /// Whether all comes to rest as it should, once there are no more faults.
    fn rests(&self, world: &World) -> bool {
        let mut world = world.clone();
        let mut passed = Vec::new();
        for _ in 0..MANY {
            let print = print(&world);
            if self.restful.lock().expect("not poisoned").contains(&print) {
                break;
            }
            passed.push(print);
            let next = self.fair(&world).into_iter().find_map(|action| self.next_state(&world, action));
            match next {
                Some(next) => world = next,
                None if world.is_well(self) => break,
                None => return false,
            }
        }
        let rests = passed.len() < MANY;
        if rests {
            self.restful.lock().expect("not poisoned").extend(passed);
        }
        rests
    }
}

/// More steps than anything needs to come to rest.
const MANY: usize = 500;

fn print(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

// What a process would do that takes a claim over and does not wait, or does not even look.
fn hurry(old: &HookStatus, new: &mut HookStatus, reason: Option<Reason>) {
    for entry in &mut new.active_events {
        let before = old.active_events.iter().find(|before| before.id == entry.id);
        let moved = before.is_some_and(|before| before.claim.is_some() && before.claim != entry.claim);
        if moved && entry.reason == Some(Reason::CheckingSession) {
            entry.reason = reason.or(entry.reason);
            entry.next_attempt_at = None;
        }
    }
}

// What a process would do that takes a farewell over like a call.
fn inherit(old: &HookStatus, new: &mut HookStatus) {
    let calling = |entry: &ActiveEvent| lifecycle::farewell_is(entry, FarewellState::Calling);
    for entry in &mut new.active_events {
        let gone = old.active_events.iter().any(|before| before.id == entry.id && calling(before));
        if let Some(farewell) =
            entry.farewell.as_mut().filter(|it| gone && it.state == FarewellState::Unknown)
        {
            farewell.state = FarewellState::Due;
        }
    }
}

fn message_of(entry: &ActiveEvent) -> Message {
    (entry.session_id.clone().expect("a session"), entry.window)
}

impl World {
    fn new() -> Self {
        let text = Arc::new(Text::new(HookStatus::default()));
        let stored = Version { number: 0, text };
        let replica = |leads| Replica {
            life: 1,
            leads,
            known: stored.clone(),
            read_back: false,
            unconfirmed: None,
            inbox: Taken::default(),
            next_sequence: 1,
            begun: BTreeSet::new(),
            busy: BTreeSet::new(),
            stood: BTreeSet::new(),
        };
        Self {
            now: at(0),
            replicas: [replica(true), replica(false)],
            stored,
            flights: Vec::new(),
            air: Vec::new(),
            late: None,
            restarts: [vec![], vec![]],
            claims: BTreeSet::new(),
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
            faults: BTreeMap::new(),
            broken: BTreeSet::new(),
        }
    }

    // A standby whose calls are over. It could as well be dead.
    fn is_idle(&self, index: usize) -> bool {
        let replica = &self.replicas[index];
        let flying = self.flights.iter().any(|flight| flight.replica == index);
        !replica.leads && !flying && replica.inbox.outcomes.is_empty()
    }

    fn process(&self, replica: usize) -> String {
        format!("{}_{}", HOMES[replica], self.replicas[replica].life)
    }

    /// Performs an action. None where it does not apply.
    fn perform(&mut self, khook: &Khook, action: Action) -> Option<()> {
        match action {
            Action::Trouble(pod) => self.restart(pod),
            Action::Return => self.restart(khook.bounds.pods - 1),
            Action::Watch(replica) => self.replicas[replica].known = self.stored.clone(),
            Action::Reconcile(replica, write) => self.reconcile(khook, replica, write)?,
            Action::LateWrite => {
                let (_, text) = self.late.take()?;
                self.commit(khook, text);
                self.faults.entry(Fault::LostWrite).and_modify(|times| *times -= 1);
                self.faults.retain(|_, times| *times > 0);
                self.suffer(Fault::LateWrite);
            }
            Action::Arrive(index) => {
                self.flights[index].work = Work::Call { arrived: true };
                self.receive(self.flights[index].message.clone());
            }
            Action::Answer(index) => {
                let flight = self.flights.remove(index);
                if flight.work == (Work::Call { arrived: false }) {
                    self.receive(flight.message.clone());
                }
                let end = match flight.work {
                    Work::Call { .. } => End::Accepted,
                    Work::LookUp if self.received.contains_key(&flight.message) => End::Found,
                    Work::LookUp => End::Absent,
                };
                self.post(khook, flight, end);
            }
            Action::Refuse(index) => {
                let flight = self.flights.remove(index);
                if self.may_arrive(khook, &flight) {
                    self.suffer(Fault::NotRun);
                }
                self.post(khook, flight, End::NotRun);
            }
            Action::Lose(index) => self.lose(khook, index),
            Action::Land(index) => {
                let message = self.air.remove(index);
                self.receive(message);
            }
            Action::Vanish(index) => drop(self.air.remove(index)),
            Action::Crash(replica) => self.crash(khook, replica),
            Action::Gain(replica) => {
                if self.replicas.iter().any(|replica| replica.leads) {
                    self.suffer(Fault::Lease);
                }
                self.replicas[replica].leads = true;
                // Who begins to lead lists what there is.
                (0..2).for_each(|pod| self.tell(replica, pod));
            }
            Action::Resign(replica) => {
                self.suffer(Fault::Lease);
                self.replicas[replica].leads = false;
            }
            Action::Pass(span) => self.pass(khook, span),
        }
        Some(())
    }

    fn suffer(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn suffered(&self, fault: Fault) -> usize {
        self.faults.get(&fault).copied().unwrap_or_default()
    }

    // ---- the sources

    fn restart(&mut self, pod: usize) {
        self.restarts[pod].push(self.now);
        for index in 0..2 {
            if self.replicas[index].leads {
                self.tell(index, pod);
            }
        }
    }

    fn tell(&mut self, index: usize, pod: usize) {
        let count = self.restarts[pod].len();
        let Some(at) = self.restarts[pod].last() else { return };
        let told = Told { pod, count, at: *at, heard: self.now };
        let signals = &mut self.replicas[index].inbox.signals;
        signals.retain(|old| old.pod != pod);
        signals.push(told);
    }

    // ---- reconcile.rs

    fn reconcile(&mut self, khook: &Khook, index: usize, write: Write) -> Option<()> {
        let leading = self.replicas[index].leads;
        if !leading && self.replicas[index].inbox.outcomes.is_empty() {
            self.replicas[index].inbox.signals.clear();
            return (write == Write::Acknowledged).then_some(());
        }
        let hook = self.observe(index);
        let process = self.process(index);
        let unmoved = self.foreign_claims(khook, index, &hook.text);
        let replica = &mut self.replicas[index];
        let signals = if leading { replica.inbox.signals.clone() } else { Vec::new() };
        let taken = Taken { signals, outcomes: replica.inbox.outcomes.clone() };
        let planned = khook.plan(&Question {
            text: &hook.text,
            taken: &taken,
            leading,
            process: &process,
            next: replica.next_sequence,
            begun: &replica.begun,
            busy: &replica.busy,
            unmoved: &unmoved,
            now: self.now,
        });
        if planned.urgency == Urgency::None {
            replica.settle(&taken);
            self.begin(khook, index, &hook.text, false);
            return (write == Write::Acknowledged).then_some(());
        }
        if write == Write::Throttled {
            self.begin(khook, index, &hook.text, false);
            return Some(());
        }
        // Also where the write fails: a sequence is used once.
        let before = std::mem::replace(&mut replica.next_sequence, planned.next_sequence);
        if khook.has(Flaw::ForgetsInputs) {
            replica.settle(&taken);
        }
        if khook.has(Flaw::CallsBeforeCommit) {
            self.begin(khook, index, &planned.text, true);
        }
        let replica = &mut self.replicas[index];
        let stale = hook.number != self.stored.number && !khook.has(Flaw::IgnoresVersion);
        match write {
            _ if stale => {
                // Nobody will ever see it. That it is not used again would only make more worlds.
                replica.next_sequence = before;
                replica.read_back = true;
                return (write == Write::Acknowledged).then_some(());
            }
            Write::Lost => {
                replica.read_back = true;
                replica.unconfirmed = Some((planned.text.clone(), taken));
                self.late = Some((hook.number, planned.text.clone()));
                self.suffer(Fault::LostWrite);
            }
            Write::LostAck => {
                replica.read_back = true;
                replica.unconfirmed = Some((planned.text.clone(), taken));
                self.commit(khook, planned.text.clone());
                self.suffer(Fault::LostAck);
            }
            Write::Acknowledged | Write::Throttled => {
                self.commit(khook, planned.text.clone());
                self.committed(index, &planned.text, &taken);
                self.replicas[index].known = self.stored.clone();
                self.begin(khook, index, &planned.text, true);
            }
        }
        Some(())
    }

    /// The newest version of the Hook this replica knows.
    fn observe(&mut self, index: usize) -> Version {
        if std::mem::take(&mut self.replicas[index].read_back) {
            let found = self.stored.clone();
            if let Some((text, taken)) = self.replicas[index].unconfirmed.take()
                && text == found.text
            {
                self.committed(index, &text, &taken);
            }
            self.replicas[index].known = found;
        }
        self.replicas[index].known.clone()
    }

    // A claim is observed as soon as it is known.
    fn foreign_claims(&self, khook: &Khook, index: usize, text: &Text) -> BTreeMap<Claim, Duration> {
        let process = self.process(index);
        let unmoved = |claim: &Claim| {
            let (home, _) = claim.process.split_once('_').expect("a home");
            if home == HOMES[index] || khook.has(Flaw::TakesOverAtOnce) {
                // An earlier process of the same pod is surely dead.
                Duration::MAX
            } else if self.replicas[index].stood.contains(claim) {
                khook.policy.claim_duration + khook.policy.takeover_margin
            } else {
                Duration::ZERO
            }
        };
        let foreign = text.claims().filter(|claim| claim.process != process);
        foreign.map(|claim| (claim.clone(), unmoved(claim))).collect()
    }

    fn committed(&mut self, index: usize, text: &Text, taken: &Taken) {
        let process = self.process(index);
        let replica = &mut self.replicas[index];
        replica.settle(taken);
        let own: BTreeSet<i64> =
            text.claims().filter(|claim| claim.process == process).map(|claim| claim.sequence).collect();
        replica.begun.retain(|sequence| own.contains(sequence));
    }

    /// Begins what the committed status asks of this replica.
    fn begin(&mut self, khook: &Khook, index: usize, text: &Text, written: bool) {
        let process = self.process(index);
        let replica = &self.replicas[index];
        let (leads, begun, busy) = (replica.leads, replica.begun.clone(), replica.busy.clone());
        let nothing = BTreeMap::new();
        let claims = Claims {
            process: &process,
            next: replica.next_sequence,
            begun: &begun,
            busy: &busy,
            unmoved: &nothing,
        };
        for activity in activities(&text.status, &claims, self.now) {
            let (entry, claim, work) = match activity {
                Activity::Call(..) if khook.has(Flaw::TrustsAcknowledgements) && !written => continue,
                Activity::Call(entry, claim) => (entry, claim, Work::Call { arrived: false }),
                Activity::LookUp(entry, claim) => (entry, claim, Work::LookUp),
                // A task changes no phase.
                Activity::Follow(..) => continue,
            };
            let (session, window) = message_of(entry);
            let farewell = entry.status == Phase::Resolved;
            let message = (session, if farewell { -window } else { window });
            let flight =
                Flight { replica: index, work, entry: entry.id.clone(), message, claim: claim.clone() };
            self.replicas[index].busy.insert(claim.sequence);
            if work == Work::LookUp {
                self.flights.push(flight);
                continue;
            }
            self.replicas[index].begun.insert(claim.sequence);
            if !leads {
                self.post(khook, flight, End::NotRun);
                continue;
            }
            let attempt = (flight.message.clone(), entry.attempts);
            if !self.claims.contains(claim) {
                self.broken.insert(Promise::Claimed);
            }
            // Attempts at a farewell begin anew after it was taken back.
            if !farewell && self.sent.insert(attempt, index).is_some() {
                self.broken.insert(Promise::SentOnce);
            }
            self.flights.push(flight);
        }
    }

    // ---- the agent and the way to it

    // A call ends within the time its claim promises.
    fn may_arrive(&self, khook: &Khook, flight: &Flight) -> bool {
        let age = (self.now - flight.claim.at).to_std().unwrap_or_default();
        age < flight.claim.duration() || khook.has(Flaw::SendsAfterDeadline)
    }

    // A call that has not arrived, and still may.
    fn is_open(&self, khook: &Khook, flight: &Flight) -> bool {
        flight.work == (Work::Call { arrived: false }) && self.may_arrive(khook, flight)
    }

    fn receive(&mut self, message: Message) {
        let asked = |(session, _): &Message| self.received.keys().any(|m| m.0 == *session && !is_farewell(m));
        if is_farewell(&message) && !asked(&message) {
            self.broken.insert(Promise::Fitting);
        }
        let received = self.received.entry(message).or_default();
        *received += 1;
        if *received > 1 {
            self.broken.insert(Promise::ReceivedOnce);
        }
    }

    fn lose(&mut self, khook: &Khook, index: usize) {
        let flight = self.flights.remove(index);
        let end = match flight.work {
            Work::LookUp if khook.has(Flaw::TrustsFailedLookup) => End::Absent,
            Work::LookUp => End::Unavailable,
            Work::Call { .. } if khook.has(Flaw::ResendsUnknown) => End::NotRun,
            Work::Call { .. } if khook.has(Flaw::RepeatsFarewells) && is_farewell(&flight.message) => {
                End::NotRun
            }
            Work::Call { .. } => End::Unknown,
        };
        self.suffer(if flight.work == Work::LookUp { Fault::NoLookup } else { Fault::Unknown });
        if self.is_open(khook, &flight) {
            self.air.push(flight.message.clone());
        }
        self.post(khook, flight, end);
    }

    fn post(&mut self, khook: &Khook, flight: Flight, end: End) {
        let farewell = is_farewell(&flight.message) && !khook.has(Flaw::MixesUpFarewells);
        let Flight { replica, entry, message: (session_id, _), claim, .. } = flight;
        self.replicas[replica].inbox.outcomes.push(Word { entry, session_id, claim, farewell, end });
    }

    // ---- the apiserver

    fn commit(&mut self, khook: &Khook, text: Arc<Text>) {
        let old = self.stored.text.clone();
        for before in old.entries() {
            let after = text.entries().iter().find(|after| after.id == before.id);
            if after.is_none_or(|after| moves_forward(before, after, self.now, &khook.policy).is_err()) {
                self.broken.insert(Promise::Forward);
            }
        }
        for entry in text.entries() {
            let message = message_of(entry);
            if entry.status == Phase::Notified && !self.received.contains_key(&message) {
                self.broken.insert(Promise::Truthful);
            }
            let told = lifecycle::farewell_is(entry, FarewellState::Told);
            if told && !self.received.contains_key(&(message.0, -message.1)) {
                self.broken.insert(Promise::Truthful);
            }
            if let Some(claim) = &entry.claim {
                self.claims.insert(claim.clone());
            }
        }
        self.stored = Version { number: self.stored.number + 1, text };
    }

    // ---- processes and time

    fn crash(&mut self, khook: &Khook, index: usize) {
        self.suffer(Fault::Crash);
        let (lost, left) = std::mem::take(&mut self.flights).into_iter().partition(|f| f.replica == index);
        self.flights = left;
        let lost: Vec<Flight> = lost;
        let unsure = lost.into_iter().filter(|flight| self.is_open(khook, flight));
        let unsure: Vec<Message> = unsure.map(|flight| flight.message).collect();
        self.air.extend(unsure);
        let fresh = World::new().replicas[1].clone();
        let Replica { life, known, .. } = self.replicas[index].clone();
        // What is listed at the start may be as old as what was watched.
        self.replicas[index] = Replica { life: life + 1, known, ..fresh };
    }

    // The steps of time that mean something now.
    fn spans(&self, khook: &Khook) -> Vec<Span> {
        let mut spans = Vec::new();
        let quiet = self.restarts.iter().take(khook.bounds.pods).any(Vec::is_empty);
        // A message that was sent arrives within the grace, or never. And all trouble begins at once.
        if !self.air.is_empty() || quiet {
            return spans;
        }
        let minute = self.now + MINUTE;
        let next = self.stored.text.entries().iter().filter_map(|entry| entry.next_attempt_at);
        let next: Vec<DateTime<Utc>> = next.filter(|at| *at > self.now).collect();
        // A call may take its time.
        let slow =
            self.flights.iter().any(|flight| flight.work != Work::LookUp && flight.claim.at == self.now);
        if slow || next.iter().any(|at| *at <= minute) {
            spans.push(Span::Minute);
        }
        if self.takeovers().next().is_some() {
            spans.push(Span::Takeover);
        }
        if next.iter().any(|at| *at > minute) || self.repeats(khook) {
            spans.push(Span::Window);
        }
        let lasts = |entry: &ActiveEvent| {
            let news = entry.last_notified_at.map_or(entry.last_seen, |at| at.max(entry.last_seen));
            entry.status == Phase::Notified && news + Span::Quiet.length(khook) > self.now
        };
        if khook.bounds.ending != Ending::Never && self.stored.text.entries().iter().any(lasts) {
            spans.push(Span::Quiet);
        }
        spans
    }

    // Requests end in time, and a leader minds its claims, but where a process stands still.
    fn freezes(&self, khook: &Khook, span: Span) -> bool {
        self.flights.iter().any(|flight| self.is_overdue(khook, flight, span))
            || span == Span::Takeover && self.takeovers().all(|claim| self.is_held(claim))
    }

    fn is_overdue(&self, khook: &Khook, flight: &Flight, span: Span) -> bool {
        let then = self.now + span.length(khook);
        match flight.work {
            Work::Call { .. } => then >= flight.claim.at + flight.claim.duration(),
            Work::LookUp => true,
        }
    }

    // Foreign claims that stand, that a leader knows of, and that have not stood for long enough yet.
    fn takeovers(&self) -> impl Iterator<Item = &Claim> {
        let leaders = (0..2).filter(|index| self.replicas[*index].leads);
        leaders.flat_map(|index| {
            let process = self.process(index);
            let Replica { known, stood, .. } = &self.replicas[index];
            let foreign = known.text.claims().filter(move |claim| claim.process != process);
            foreign.filter(|claim| !stood.contains(claim) && self.stored.text.has(claim))
        })
    }

    fn is_held(&self, claim: &Claim) -> bool {
        (0..2).any(|index| self.replicas[index].leads && self.process(index) == claim.process)
    }

    fn repeats(&self, khook: &Khook) -> bool {
        let last = khook.bounds.pods - 1;
        khook.bounds.repeat
            && khook.bounds.ending == Ending::Never
            && self.restarts[last].len() == 1
            && self.of_pod(last).is_some_and(|entry| entry.status == Phase::Notified)
    }

    // Whatever has become of the farewell by then.
    fn may_return(&self, khook: &Khook) -> bool {
        let last = khook.bounds.pods - 1;
        khook.bounds.repeat
            && khook.bounds.ending != Ending::Never
            && self.restarts[last].len() == 1
            && self.of_pod(last).is_some_and(|entry| entry.status == Phase::Resolved)
    }

    fn pass(&mut self, khook: &Khook, span: Span) {
        if self.freezes(khook, span) {
            self.suffer(Fault::Freeze);
        }
        let repeats = span == Span::Window && self.repeats(khook);
        self.now += span.length(khook);
        // A request is over by then.
        self.late = None;
        if span == Span::Takeover {
            for index in 0..2 {
                let process = self.process(index);
                let replica = &mut self.replicas[index];
                let foreign = replica.known.text.claims().filter(|claim| claim.process != process);
                replica.stood.extend(foreign.cloned());
            }
        }
        if repeats {
            self.restart(khook.bounds.pods - 1);
        }
    }

    fn of_pod(&self, pod: usize) -> Option<&ActiveEvent> {
        self.stored.text.entries().iter().find(|entry| entry.resource_name == PODS[pod])
    }

    /// The agent has been asked about every restart, and the status says so.
    fn is_well(&self, khook: &Khook) -> bool {
        let ending = khook.bounds.ending;
        (0..khook.bounds.pods).all(|pod| {
            let windows = self.restarts[pod].len();
            self.of_pod(pod).is_some_and(|entry| {
                let (session, window) = message_of(entry);
                let open = [FarewellState::Due, FarewellState::Calling];
                let ended = entry.status == Phase::Resolved
                    && !open.iter().any(|at| lifecycle::farewell_is(entry, *at));
                matches!(entry.status, Phase::Notified | Phase::Resolved)
                    && (ending == Ending::Never || ended && entry.farewell.is_some())
                    // What comes and goes inside its window is not asked about.
                    && (usize::try_from(window) == Ok(windows) || ending == Ending::InsideWindow)
                    && (1..=window).all(|window| self.received.contains_key(&(session.clone(), window)))
            })
        })
    }

    /// The same world, told in one way: the order in which calls began and how many versions there were
    /// before mean nothing.
    fn tidy(&mut self) {
        self.flights.sort();
        self.air.sort();
        let Self { stored, replicas, late, claims, .. } = self;
        *late = late.take().filter(|(from, _)| *from == stored.number);
        for replica in &mut *replicas {
            if replica.read_back {
                // What it knows is never looked at again.
                replica.known = stored.clone();
            }
            let Replica { known, stood, .. } = replica;
            stood.retain(|claim| known.text.has(claim));
        }
        let [a, b] = &mut *replicas;
        claims.retain(|claim| {
            let texts = [&stored.text, &a.known.text, &b.known.text];
            texts.into_iter().chain(late.as_ref().map(|(_, text)| text)).any(|text| text.has(claim))
        });
        // What is stored is the newest; of two who know less one may know more.
        let order = a.known.number.cmp(&b.known.number);
        let newest = stored.number;
        let rank = |number: u64, behind: bool| if number == newest { 2 } else { u64::from(!behind) };
        let (rank_a, rank_b) = (rank(a.known.number, order.is_lt()), rank(b.known.number, order.is_gt()));
        (a.known.number, b.known.number, stored.number) = (rank_a, rank_b, 2);
        late.iter_mut().for_each(|(from, _)| *from = 2);
    }
}

const MINUTE: Duration = Duration::from_secs(60);

impl Replica {
    fn settle(&mut self, taken: &Taken) {
        self.inbox.signals.retain(|told| !taken.signals.contains(told));
        self.inbox.outcomes.retain(|word| !taken.outcomes.contains(word));
        for word in &taken.outcomes {
            self.busy.remove(&word.claim.sequence);
        }
    }
}

impl Model for Khook {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What is broken once says nothing more.
        if world.broken.is_empty() {
            actions.extend(self.fair(world));
            actions.extend(self.unfair(world));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.perform(self, action)?;
        next.tidy();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always: &[(&str, Condition)] = &[
            (SENT_ONCE, |_, world| world.keeps(Promise::SentOnce)),
            (CLAIMED, |_, world| world.keeps(Promise::Claimed)),
            (RECEIVED_ONCE, |_, world| world.keeps(Promise::ReceivedOnce)),
            (FORWARD, |_, world| world.keeps(Promise::Forward)),
            (TRUTHFUL, |_, world| world.keeps(Promise::Truthful)),
            (FITTING, |_, world| world.keeps(Promise::Fitting)),
            (RESTS, |khook, world| !world.broken.is_empty() || khook.rests(world)),
        ];
        let Bounds { repeat, ending, faults, leases, .. } = self.bounds;
        let ends = ending != Ending::Never;
        // What comes back inside its window is not asked about.
        let repeat = repeat && ending != Ending::InsideWindow;
        // A world in which these never come to pass proves nothing, if it is large enough for them.
        let sometimes: &[(bool, &str, Condition)] = &[
            (true, "well without a fault", |khook, world| world.faults.is_empty() && world.is_well(khook)),
            (true, "well after a lost acknowledgement", |khook, world| {
                world.is_well_after(khook, Fault::LostAck)
            }),
            (true, "well after a lost write", |khook, world| world.is_well_after(khook, Fault::LostWrite)),
            (true, "well after a late write", |khook, world| world.is_well_after(khook, Fault::LateWrite)),
            (true, "well after a failed call", |khook, world| world.is_well_after(khook, Fault::NotRun)),
            (true, "well after an unknown outcome", |khook, world| {
                world.is_well_after(khook, Fault::Unknown)
            }),
            (true, "well after a crash", |khook, world| world.is_well_after(khook, Fault::Crash)),
            (true, "well by a second attempt", |khook, world| {
                world.sent.keys().any(|(_, attempt)| *attempt == 2) && world.is_well(khook)
            }),
            (true, "looked up by another replica", |_, world| {
                world.flights.iter().any(|flight| world.looks_up_for_another(flight))
            }),
            (true, "found in its session", |_, world| world.hears(End::Found)),
            (true, "absent from its session", |_, world| world.hears(End::Absent)),
            (faults > 1, "well after a failed lookup", |khook, world| {
                world.is_well_after(khook, Fault::NoLookup)
            }),
            (faults > 1, "well after a standstill", |khook, world| world.is_well_after(khook, Fault::Freeze)),
            (leases > 0, "well with two leaders", |khook, world| world.both_lead() && world.is_well(khook)),
            (ends, "told of the end", |khook, world| {
                world.received.keys().any(is_farewell) && world.is_well(khook)
            }),
            (ends, "well without a word of the end", |khook, world| {
                !world.received.keys().any(is_farewell) && world.is_well(khook)
            }),
            (ends && repeat, "told of the end twice", |_, world| {
                world.received.keys().filter(|message| is_farewell(message)).count() == 2
            }),
            (ends && repeat, "called again while a farewell is on its way", |_, world| {
                world.flights.iter().any(|flight| is_farewell(&flight.message))
                    && world.flights.iter().any(|flight| flight.message.1 == 2)
            }),
            (repeat, "well after asking again", |khook, world| {
                world.sent.keys().any(|((_, window), _)| *window == 2) && world.is_well(khook)
            }),
        ];
        let always = always.iter().map(|(name, condition)| Property::always(name, *condition));
        let sometimes = sometimes.iter().filter(|(possible, ..)| *possible);
        always.chain(sometimes.map(|(_, name, condition)| Property::sometimes(name, *condition))).collect()
    }
}

type Condition = fn(&Khook, &World) -> bool;

impl World {
    fn keeps(&self, promise: Promise) -> bool {
        !self.broken.contains(&promise)
    }

    fn is_well_after(&self, khook: &Khook, fault: Fault) -> bool {
        self.suffered(fault) > 0 && self.is_well(khook)
    }

    fn both_lead(&self) -> bool {
        self.replicas.iter().all(|replica| replica.leads)
    }

    fn looks_up_for_another(&self, flight: &Flight) -> bool {
        let by_another = |((message, _), by): (&(Message, i32), &usize)| {
            *message == flight.message && *by != flight.replica
        };
        flight.work == Work::LookUp && self.sent.iter().any(by_another)
    }

    fn hears(&self, end: End) -> bool {
        self.replicas.iter().any(|replica| replica.inbox.outcomes.iter().any(|word| word.end == end))
    }
}

const SENT_ONCE: &str = "every attempt is sent at most once";
const CLAIMED: &str = "a call begins under a stored claim only";
const RECEIVED_ONCE: &str = "no message arrives twice";
const FORWARD: &str = "an incident goes forward only";
const TRUTHFUL: &str = "whoever is called notified has the message";
const FITTING: &str = "nobody is told of the end of what he has not heard of";
const RESTS: &str = "all comes to rest, and the agent has been asked about everything";

/// Walks every course, and returns how many different states there are.
fn explore(bounds: Bounds) -> usize {
    let checker = Khook::new(bounds, None).checker().threads(2).spawn_bfs().join();
    let states = checker.unique_state_count();
    let plans = checker.model().plans.lock().expect("not poisoned").len();
    let (seen, depth) = (checker.state_count(), checker.max_depth());
    println!("{bounds:?}: {states} states, {seen} steps, {depth} deep, {plans} plans");
    for property in checker.model().properties() {
        let discovery = checker.discovery(property.name);
        if !property.expectation.discovery_is_failure() {
            assert!(discovery.is_some(), "never seen: {}", property.name);
        } else if let Some(path) = discovery {
            let actions: Vec<String> = path.clone().into_actions().iter().map(|a| format!("{a:?}")).collect();
            panic!("not so: {}\n{}\n{:#?}", property.name, actions.join("\n"), path.last_state());
        }
    }
    states
}

#[test]
fn no_course_of_one_incident_breaks_a_promise() {
    assert!(explore(Bounds { pods: 1, repeat: false, ending: Ending::Never, faults: 2, leases: 2 }) > 15_000);
}

#[test]
fn no_course_of_a_repeated_incident_breaks_a_promise() {
    assert!(explore(Bounds { pods: 1, repeat: true, ending: Ending::Never, faults: 1, leases: 1 }) > 1_500);
}

#[test]
fn no_course_of_two_incidents_breaks_a_promise() {
    assert!(explore(Bounds { pods: 2, repeat: false, ending: Ending::Never, faults: 1, leases: 1 }) > 15_000);
}

#[test]
fn no_course_of_an_incident_that_ends_breaks_a_promise() {
    let bounds = Bounds { pods: 1, repeat: false, ending: Ending::AfterWindow, faults: 1, leases: 1 };
    assert!(explore(bounds) > 1_500);
}

#[rstest]
#[case(Ending::AfterWindow, 15_000)]
#[case(Ending::InsideWindow, 3_500)]
fn no_course_of_an_incident_that_comes_back_breaks_a_promise(#[case] ending: Ending, #[case] least: usize) {
    assert!(explore(Bounds { pods: 1, repeat: true, ending, faults: 1, leases: 0 }) > least);
}

// More faults at once; of two incidents with two faults there are too many courses with two leaders.
#[rstest]
#[case(Bounds { pods: 1, repeat: false, ending: Ending::Never, faults: 3, leases: 3 }, 500_000)]
#[case(Bounds { pods: 1, repeat: true, ending: Ending::Never, faults: 2, leases: 2 }, 90_000)]
#[case(Bounds { pods: 1, repeat: true, ending: Ending::AfterWindow, faults: 1, leases: 1 }, 50_000)]
#[case(Bounds { pods: 1, repeat: true, ending: Ending::InsideWindow, faults: 1, leases: 1 }, 9_000)]
#[case(Bounds { pods: 1, repeat: false, ending: Ending::AfterWindow, faults: 2, leases: 2 }, 80_000)]
#[case(Bounds { pods: 2, repeat: true, ending: Ending::Never, faults: 1, leases: 1 }, 90_000)]
#[case(Bounds { pods: 2, repeat: false, ending: Ending::Never, faults: 2, leases: 0 }, 90_000)]
#[ignore = "takes minutes"]
fn no_longer_course_breaks_a_promise(#[case] bounds: Bounds, #[case] least: usize) {
    assert!(explore(bounds) > least);
}

// The flaw, the faults it takes to show, and the promise it breaks.
#[rstest]
#[case(Flaw::IgnoresVersion, 1, FORWARD)]
#[case(Flaw::IgnoresVersion, 1, SENT_ONCE)]
#[case(Flaw::CallsBeforeCommit, 0, CLAIMED)]
#[case(Flaw::ResendsUnknown, 1, RECEIVED_ONCE)]
#[case(Flaw::TrustsFailedLookup, 2, RECEIVED_ONCE)]
#[case(Flaw::CallsWhenTakingOver, 1, SENT_ONCE)]
#[case(Flaw::LooksUpAtOnce, 1, RECEIVED_ONCE)]
#[case(Flaw::TakesOverAtOnce, 1, RECEIVED_ONCE)]
#[case(Flaw::SendsAfterDeadline, 2, RECEIVED_ONCE)]
#[case(Flaw::ForgetsInputs, 1, RESTS)]
#[case(Flaw::TrustsAcknowledgements, 1, RESTS)]
#[case(Flaw::RepeatsFarewells, 1, RECEIVED_ONCE)]
#[case(Flaw::InheritsFarewells, 1, RECEIVED_ONCE)]
#[case(Flaw::MixesUpFarewells, 1, TRUTHFUL)]
fn a_flaw_is_found(#[case] flaw: Flaw, #[case] faults: usize, #[case] broken: &'static str) {
    let farewell = matches!(flaw, Flaw::RepeatsFarewells | Flaw::InheritsFarewells | Flaw::MixesUpFarewells);
    let ending = if farewell { Ending::AfterWindow } else { Ending::Never };
    let bounds = Bounds { pods: 1, repeat: farewell, ending, faults, leases: 1 };
    let found = HasDiscoveries::AnyOf([broken].into());
    let checker = Khook::new(bounds, Some(flaw)).checker().finish_when(found).spawn_bfs().join();
    let path = checker.discovery(broken).unwrap_or_else(|| panic!("{flaw:?} breaks nothing"));
    println!("{flaw:?}, {} states: {:?}", checker.unique_state_count(), path.into_actions());
}
