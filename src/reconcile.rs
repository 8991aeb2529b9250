//! A reconcile observes one Hook, plans, writes the status (this is the claim) and hands the calls over.
//!
//! It awaits the apiserver, never an agent: outcomes come back through the inbox and wake it again. Inputs
//! leave the inbox only after the write that contains them has committed, so nothing is lost with a write
//! that fails. What a committed claim asks for is read from the committed status, so nothing is lost with
//! an acknowledgement either.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures::{FutureExt, channel::mpsc};
use kube::{
    Api, ResourceExt,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    agent::{
        self, AgentCall, Agents, Follow, Inquiry,
        pool::{Pool, Slot},
    },
    client::Clients,
    hook::{ActiveEvent, Claim, EventType, Hook, HookStatus, Mode, Phase},
    incident::{
        breaker::Allow,
        key,
        lifecycle::{self, NoticeKind},
        outcome::{AgentName, DirectAgent, EndState, Ended, Lookup, Reply},
        plan::{self, Activity, Claims, Inputs, News, Outcome, Plan, Urgency},
        policy::Policy,
        prompt,
        rules::{Problem, Rule, Rules},
        signal::{Nature, Signal},
    },
    metrics::{CallKind, CallOutcome, Failure, HookCounts, Metrics, Source, Suppressed, WriteResult},
    notice::Notices,
    otlp::Traces,
    sabotage::{self, Safeguard, without},
    source::{
        annotations::{self, Annotations},
        diagnosis, events,
        index::{Index, Indexes, Report, Worth, has_happened},
        pods,
    },
    status::{self, Written},
    trace::{self, Called},
};

/// All that reconciles share.
pub struct Context {
    /// The cache of Hooks.
    pub hooks: Store<Hook>,
    /// The ways to the apiserver.
    pub clients: Clients,
    /// The way to agents.
    pub agents: Agents,
    /// Slots and breakers.
    pub pool: Arc<Pool<ObjectRef<Hook>>>,
    /// Spans and bounds of the state machine.
    pub policy: Policy,
    /// How often what may be done.
    pub pace: Pace,
    /// The name of this process in its claims.
    pub process: Process,
    /// Whether this process works, or stands by.
    pub leads: watch::Receiver<bool>,
    /// Counts the times this process began to lead.
    pub term: AtomicU64,
    /// Cancelled when stopping begins.
    pub stop: CancellationToken,
    /// Wakes the reconcile of a Hook.
    pub poke: mpsc::UnboundedSender<ObjectRef<Hook>>,
    /// Calls and lookups under way.
    pub tasks: TaskTracker,
    /// Events on Hooks, and the log.
    pub notices: Notices,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub traces: Traces,
    /// What is remembered of pods, by where they are watched.
    pub pods: Indexes,
    /// When this process began to work.
    pub began: Instant,
    /// Pods asked for because an Event came first.
    pub questions: Arc<Semaphore>,
    /// What is remembered of each Hook, by its UID.
    pub rooms: Mutex<HashMap<String, Arc<Room>>>,
}

/// How often what may be done.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two writes of one Hook, where calls wait for the second.
    pub write_interval: Duration,
    /// Between two writes of one Hook, where nothing waits for the second.
    pub outcome_delay: Duration,
    /// Between two writes of one Hook, where only counts changed.
    pub quiet_write_interval: Duration,
    /// Between two looks at a task, at first.
    pub follow_min: Duration,
    /// Between two looks at a task, later.
    pub follow_max: Duration,
    /// Between two attempts at what the apiserver refused.
    pub retry: Duration,
}

/// Who this process is.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its name: another for every start.
    pub name: String,
    /// The pod it runs in, if it was told. A container of a pod starts only after the last one has ended.
    pub pod: Option<String>,
}

impl Process {
    // An earlier process of the same pod is surely dead: its claims need not be waited for.
    fn succeeds(&self, other: &str) -> bool {
        let Some(pod) = &self.pod else { return false };
        other != self.name && other.strip_prefix(pod.as_str()).is_some_and(|rest| rest.starts_with('_'))
    }
}

/// What is remembered of one Hook between its reconciles.
pub struct Room {
    hook: ObjectRef<Hook>,
    /// `namespace/name`, for the log and the metrics.
    name: String,
    inbox: Mutex<Inbox>,
    mind: tokio::sync::Mutex<Mind>,
    following: Mutex<HashSet<String>>,
    needs: Mutex<Needs>,
}

/// What the direct agents of a Hook need, when it was last looked at.
#[derive(Default)]
struct Needs {
    /// The generation it was looked at for, and when.
    looked: Option<(Option<i64>, Instant)>,
    missing: Vec<(AgentName, Problem)>,
}

/// What no committed write contains yet.
#[derive(Default)]
struct Inbox {
    arrivals: u64,
    signals: Vec<(u64, Signal)>,
    outcomes: Vec<(u64, Outcome)>,
}

/// What only reconciles of the Hook use, one at a time.
#[derive(Default)]
struct Mind {
    /// The answer to our last write, or what was read back; only while the cache is behind it.
    newest: Option<Arc<Hook>>,
    /// The last write may be stored or not.
    read_back: bool,
    /// What that write would have brought.
    unconfirmed: Option<Unconfirmed>,
    last_write: Option<Instant>,
    rules: Option<(Option<i64>, Arc<Rules>)>,
    /// Term and generation for which the recent Events were listed.
    heard: Option<(u64, Option<i64>)>,
    /// The same, and the list of pods with which the status was compared.
    compared: Option<(u64, Option<i64>, u64)>,
    /// The Hook as it was after our last write.
    last: Option<Arc<Hook>>,
    next_sequence: i64,
    begun: BTreeSet<i64>,
    busy: BTreeSet<i64>,
    foreign: BTreeMap<Claim, Instant>,
    failures: u32,
    /// After a failure nothing is tried before this, whoever wakes the Hook meanwhile.
    not_before: Option<Instant>,
}

struct Unconfirmed {
    before: Arc<Hook>,
    plan: Plan,
    taken: Taken,
}

/// A plan that is ready to be written.
struct Planned {
    plan: Plan,
    taken: Taken,
    slots: HashMap<i64, Slot<ObjectRef<Hook>>>,
    /// The time until it may be written.
    too_soon: Option<Duration>,
}

/// Which inputs a plan was made from.
#[derive(Default)]
struct Taken {
    signals: BTreeSet<u64>,
    outcomes: BTreeSet<u64>,
}

/// The current time in whole milliseconds, as the status keeps it.
pub fn now() -> DateTime<Utc> {
    let now = Utc::now() + sabotage::clock_error();
    DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
}

/// Observes a Hook and does what is due. Never fails: what went wrong is logged, counted and tried again.
pub async fn reconcile(hook: Arc<Hook>, context: Arc<Context>) -> Result<Action, std::convert::Infallible> {
    let begun = Instant::now();
    let name = name(&ObjectRef::from_obj(hook.as_ref()));
    // A panic here would end the controller, and with it every Hook.
    let result = AssertUnwindSafe(context.reconcile(&hook)).catch_unwind().await;
    let (action, failure) = match result {
        Ok(Ok(action)) => (action, None),
        Ok(Err(failure)) => {
            let room = context.room(&hook);
            let mut mind = room.mind.lock().await;
            mind.failures = mind.failures.saturating_add(1);
            let wait = context.pace.retry.saturating_mul(1 << mind.failures.min(6));
            // A conflict says that there is something newer, and is tried again at once.
            mind.not_before = (failure != Failure::Conflict).then(|| Instant::now() + wait);
            (Action::requeue(wait), Some(failure))
        }
        Err(_) => {
            error!(hook = name, "a defect in khook: this Hook is tried again in a minute");
            (Action::requeue(Duration::from_secs(60)), Some(Failure::Panic))
        }
    };
    context.forget_if_gone(&hook);
    context.metrics.reconciled(begun.elapsed(), failure);
    Ok(action)
}

impl Context {
    /// What is remembered of the pods of a namespace.
    pub fn index(&self, namespace: &str) -> MutexGuard<'_, Index> {
        self.pods.of(namespace)
    }

    /// Takes in what an Event says. `replayed`: it comes from a list, and may be an hour old.
    pub fn hear_event(self: &Arc<Self>, signal: Signal, replayed: bool) {
        // A Hook that is heard of anew, also after this process begins to lead, lists what happened.
        let leading = self.leading(&signal.namespace);
        if leading {
            self.metrics.event(signal.event_type.as_str(), Source::Events);
        }
        if signal.is_stale(&self.policy) {
            return self.metrics.suppressed(Suppressed::Stale, u64::from(leading));
        }
        if self.listeners(&signal.namespace, |hook| listens(hook, signal.event_type)).is_empty() {
            return self.metrics.suppressed(Suppressed::Unmatched, u64::from(leading));
        }
        let worth = self.index(&signal.namespace).worth(&signal);
        match worth {
            // What merely was so of a pod that is gone is over; what happened to it, happened.
            Worth::Everything if leading && (!replayed || has_happened(&signal)) => self.ask(signal),
            Worth::Everything | Worth::Nothing => {}
            Worth::Words => {
                let report = self.index(&signal.namespace).quote(&signal, now());
                self.tell(report);
            }
        }
    }

    /// Hands on what the index of pods reports.
    pub fn tell(self: &Arc<Self>, reports: impl IntoIterator<Item = Report>) {
        reports.into_iter().for_each(|report| self.tell_one(report));
    }

    fn tell_one(self: &Arc<Self>, report: Report) {
        let now = now();
        match report {
            Report::Changed(name) => {
                for hook in self.listeners(&name.0, |_| true) {
                    let signals = self.index(&name.0).signals(&name, |kind| listens(&hook, kind), now);
                    self.hand_over(&hook, signals);
                }
            }
            Report::Gone { pod, at, troubled } => {
                let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
                for hook in self.listeners(namespace.unwrap_or_default(), |_| true) {
                    let entries = hook.status.iter().flat_map(|status| &status.active_events);
                    let known = entries.into_iter().any(|entry| Some(entry.resource_name.as_str()) == name);
                    // The incident of one in trouble may still be on its way into the status.
                    if known || troubled {
                        let signals = diagnosis::gone(&pod, at, now, |kind| listens(&hook, kind));
                        self.hand_over(&hook, signals);
                    }
                }
            }
            Report::Listed => self.wake_all(),
            Report::Fetch(name) => {
                let context = self.clone();
                tokio::spawn(async move {
                    let _permit = context.questions.acquire().await;
                    match pods::fetch(&context.clients.request, &name.0, &name.1).await {
                        Ok(Some(pod)) => {
                            let report = context.index(&name.0).see(pod, self::now());
                            context.tell(report);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            debug!(namespace = name.0, pod = name.1, %error, "a pod cannot be read")
                        }
                    }
                });
            }
        }
    }

    fn hand_over(&self, hook: &Arc<Hook>, signals: Vec<Signal>) {
        if signals.is_empty() || !self.leading(&hook.namespace().unwrap_or_default()) {
            return;
        }
        let room = self.room(hook);
        for signal in signals {
            if signal.is_trouble() {
                self.metrics.event(signal.event_type.as_str(), Source::Pods);
            }
            room.hear(signal);
        }
        self.wake(ObjectRef::from_obj(hook.as_ref()));
    }

    /// An Event about a pod nobody knows: either it came before the pod, which then tells itself, or the pod
    /// is gone, and the Event is all there is.
    fn ask(self: &Arc<Self>, signal: Signal) {
        let context = self.clone();
        // Not among the calls: a process that stops does not wait for it, the next one lists what happened.
        tokio::spawn(async move {
            let _permit = context.questions.acquire().await;
            let mut wait = context.pace.retry;
            for _ in 0..MAX_QUESTIONS {
                match pods::fetch(&context.clients.request, &signal.namespace, &signal.pod).await {
                    Ok(Some(pod)) if signal.uid.is_empty() || pod.uid() == signal.uid => {
                        let reports = {
                            let mut pods = context.index(&signal.namespace);
                            let seen = pods.see(pod, now());
                            [seen, pods.quote(&signal, now())]
                        };
                        return context.tell(reports.into_iter().flatten());
                    }
                    Ok(_) => return context.take_at_its_word(&signal),
                    Err(error) => {
                        debug!(namespace = signal.namespace, pod = signal.pod, %error, "a pod cannot be read");
                        tokio::time::sleep(wait).await;
                        wait *= 2;
                    }
                }
            }
            // Without the pod what merely is so cannot be told from what was; what happened, happened.
            warn!(namespace = signal.namespace, pod = signal.pod, "a pod cannot be read: going by its Event");
            if has_happened(&signal) {
                context.take_at_its_word(&signal);
            }
        });
    }

    fn take_at_its_word(&self, signal: &Signal) {
        let wants = |hook: &Hook| listens(hook, signal.event_type) && !is_told(hook, signal);
        for hook in self.listeners(&signal.namespace, wants) {
            self.room(&hook).hear(signal.clone());
            self.wake(ObjectRef::from_obj(hook.as_ref()));
        }
    }

    fn listeners(&self, namespace: &str, wants: impl Fn(&Hook) -> bool) -> Vec<Arc<Hook>> {
        self.hooks.state_filter(|hook| hook.metadata.namespace.as_deref() == Some(namespace) && wants(hook))
    }

    /// Forgets a Hook that was deleted.
    pub fn forget(&self, hook: &Hook) {
        let name = name(&ObjectRef::from_obj(hook));
        let known = hook.uid().and_then(|uid| self.rooms.lock().remove(&uid));
        if known.is_some() && self.leading(&hook.namespace().unwrap_or_default()) {
            // Its incidents end here, and what hangs on them must not hang in the air.
            self.trace(&name, hook.status.as_ref(), &HookStatus::default());
        }
        self.metrics.forget_hook(&name);
    }

    // A Hook may be deleted while it is reconciled, which then brings back what was forgotten.
    fn forget_if_gone(&self, hook: &Hook) {
        match self.hooks.get(&ObjectRef::from_obj(hook)) {
            None => self.forget(hook),
            Some(present) if present.uid() == hook.uid() => {}
            // Another one has its name, and with it its numbers.
            Some(_) => drop(self.rooms.lock().remove(&hook.uid().unwrap_or_default())),
        }
    }

    /// Forgets every Hook that is not in the cache: it was deleted while nobody watched.
    pub fn forget_missing(&self) {
        let present: HashSet<String> = self.hooks.state().iter().filter_map(|hook| hook.uid()).collect();
        self.rooms.lock().retain(|uid, room| {
            let keep = present.contains(uid);
            if !keep {
                self.metrics.forget_hook(&room.name);
            }
            keep
        });
    }

    /// Begins a term: every Hook is looked at.
    pub fn begin_term(&self) {
        self.term.fetch_add(1, Ordering::SeqCst);
        self.metrics.tells_of_hooks(true);
        self.wake_all();
    }

    /// Ends a term: another process tells of the Hooks now.
    pub fn end_term(&self) {
        self.metrics.tells_of_hooks(false);
    }

    /// Wakes every Hook with outcomes no write contains yet. Returns whether there are any.
    pub fn flush(&self) -> bool {
        let rooms: Vec<Arc<Room>> = self.rooms.lock().values().cloned().collect();
        let mut any = false;
        for room in rooms {
            if !room.inbox.lock().outcomes.is_empty() {
                any = true;
                self.wake(room.hook.clone());
            }
        }
        any
    }

    // Before the pods have been seen nothing is called: what a status says may be long over. Where they
    // cannot be listed at all, which shows in readiness and the log, Events alone have to do.
    fn leading(&self, namespace: &str) -> bool {
        let sighted = || self.index(namespace).lists() > 0 || self.began.elapsed() > SIGHTLESS;
        *self.leads.borrow() && !self.stop.is_cancelled() && sighted()
    }

    fn wake_all(&self) {
        for hook in self.hooks.state() {
            self.wake(ObjectRef::from_obj(hook.as_ref()));
        }
    }

    fn wake(&self, hook: ObjectRef<Hook>) {
        // Nobody listens only while the process ends.
        let _ = self.poke.unbounded_send(hook);
    }

    fn room(&self, hook: &Hook) -> Arc<Room> {
        let uid = hook.uid().unwrap_or_default();
        let make = || {
            let mind = Mind { next_sequence: 1, ..Mind::default() };
            let hook = ObjectRef::from_obj(hook);
            Arc::new(Room {
                name: name(&hook),
                hook,
                inbox: Mutex::default(),
                mind: tokio::sync::Mutex::new(mind),
                following: Mutex::default(),
                needs: Mutex::default(),
            })
        };
        self.rooms.lock().entry(uid).or_insert_with(make).clone()
    }

    fn api(&self, hook: &ObjectRef<Hook>) -> Api<Hook> {
        Api::namespaced(self.clients.request.clone(), hook.namespace.as_deref().unwrap_or_default())
    }

    // Errors are the label of the metric; what went wrong is logged where it is known.
    async fn reconcile(self: &Arc<Self>, cached: &Arc<Hook>) -> Result<Action, Failure> {
        let room = self.room(cached);
        let mut guard = room.mind.lock().await;
        let mind = &mut *guard;
        if let Some(left) = mind.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return Ok(Action::requeue(left + Duration::from_millis(1)));
        }
        let leading = self.leading(&cached.namespace().unwrap_or_default());
        if !leading && room.inbox.lock().outcomes.is_empty() {
            room.inbox.lock().signals.clear();
            // Whoever waits for the pods looks again even if they never come.
            return Ok(if *self.leads.borrow() {
                Action::requeue(SIGHTLESS)
            } else {
                Action::await_change()
            });
        }
        if mind.heard.is_some_and(|(term, _)| term != self.term.load(Ordering::SeqCst)) {
            // Others have written in between.
            mind.last = None;
        }
        let read_back = mind.read_back;
        let Some(mut hook) = self.observe(cached, &room, mind).await? else {
            self.forget(cached);
            return Ok(Action::await_change());
        };
        if hook.metadata.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let rules = mind.rules(&hook, &self.policy);
        let (rules, look_again) =
            if leading { self.with_needs(&hook, rules, &room).await } else { (rules, None) };
        let said = annotations::read(&hook, now());
        let rules = with_problems(rules, &said.problems);
        // A claim whose acknowledgement was lost comes first: it takes up slots that would be claimed again.
        if read_back {
            self.begin(&hook, &rules, &room, mind, HashMap::new(), leading);
        }
        let mut wake: Option<Duration> = look_again;
        if leading {
            if !self.hear_recent(&hook, &rules, &room, mind).await {
                let soon = self.pace.retry.max(Duration::from_secs(1));
                wake = Some(wake.map_or(soon, |wake| wake.min(soon)));
            }
            self.compare(&hook, &rules, &room, mind);
        }

        let Planned { plan, taken, slots, too_soon } = self.plan(&hook, &rules, &said, &room, mind, leading);
        if plan.urgency == Urgency::None && !without(Safeguard::Rest) {
            room.settle(mind, &plan, &taken);
            self.count_suppressed(&plan);
            self.metrics.status_write(WriteResult::Unchanged);
            // A process that finds all in order has these numbers from nowhere else.
            self.metrics.set_hook(&room.name, counts(&plan.status));
            mind.failures = 0;
        } else if let Some(left) = too_soon {
            wake = Some(wake.map_or(left, |wake| wake.min(left)));
        } else {
            if without(Safeguard::Claim) {
                let unwritten = Hook { status: Some(plan.status.clone()), ..hook.as_ref().clone() };
                self.begin(&Arc::new(unwritten), &rules, &room, mind, HashMap::new(), leading);
            }
            if without(Safeguard::Inbox) {
                room.settle(mind, &plan, &taken);
            }
            hook = self.write(&hook, plan.clone(), taken, &room, mind).await?;
        }

        self.begin(&hook, &rules, &room, mind, slots, leading);
        if without(Safeguard::Rest) {
            wake = Some(self.pace.retry);
        }
        let timer = plan.next_wake.map(|at| (at - now()).to_std().unwrap_or_default());
        Ok(match timer.into_iter().chain(wake).min() {
            // A timer that is over already and changed nothing must not spin.
            Some(wait) => Action::requeue(wait.max(Duration::from_millis(20))),
            None => Action::await_change(),
        })
    }

    /// The newest version of the Hook this process knows; none if it is gone.
    async fn observe(
        &self,
        cached: &Arc<Hook>,
        room: &Room,
        mind: &mut Mind,
    ) -> Result<Option<Arc<Hook>>, Failure> {
        if mind.read_back {
            let found = self.api(&room.hook).get_opt(&room.hook.name).await.map_err(|error| {
                warn!(hook = room.name, %error, "the Hook cannot be read back");
                Failure::ReadBack
            })?;
            let Some(found) = found.filter(|found| found.uid() == cached.uid()) else { return Ok(None) };
            mind.read_back = false;
            if let Some(Unconfirmed { before, plan, taken }) = mind.unconfirmed.take()
                && found.status.as_ref().is_some_and(|stored| is_left_of(stored, &plan.status))
            {
                // It had committed: only its acknowledgement was lost.
                self.committed(&before, &plan, &taken, room, mind);
                let mut written = Hook { status: Some(plan.status.clone()), ..found.clone() };
                // Of no version: somebody may have taken incidents out of it meanwhile.
                written.metadata.resource_version = None;
                mind.last = Some(Arc::new(written));
            }
            mind.newest = Some(Arc::new(found));
        }
        // The cache is often behind our own write.
        if mind.newest.as_deref().is_some_and(|own| version(own) <= version(cached)) {
            mind.newest = None;
        }
        let newest = mind.newest.clone().unwrap_or_else(|| cached.clone());
        Ok(Some(mind.put_back(newest, &room.name)))
    }

    /// A Hook, or a spec, that is new to this process hears what happened before. Returns false if that
    /// has to be tried again.
    async fn hear_recent(&self, hook: &Hook, rules: &Rules, room: &Room, mind: &mut Mind) -> bool {
        let term = (self.term.load(Ordering::SeqCst), hook.metadata.generation);
        if mind.heard == Some(term) {
            return true;
        }
        let namespace = hook.namespace().unwrap_or_default();
        match events::recent(&self.clients.request, &namespace, now()).await {
            Ok(signals) => {
                let heard = signals.into_iter().filter(|signal| rules.listens_to(signal.event_type));
                let (stale, fresh): (Vec<Signal>, Vec<Signal>) =
                    heard.partition(|signal| signal.is_stale(&self.policy));
                self.metrics.suppressed(Suppressed::Stale, stale.len() as u64);
                let mut index = self.index(&namespace);
                for signal in fresh {
                    match index.worth(&signal) {
                        // The pods are compared next.
                        Worth::Words => drop(index.quote(&signal, now())),
                        // What was so of a pod that is gone is over; what happened to it, happened.
                        Worth::Everything if has_happened(&signal) && !is_told(hook, &signal) => {
                            room.hear(signal);
                        }
                        Worth::Everything | Worth::Nothing => {}
                    }
                }
                drop(index);
                mind.heard = Some(term);
                true
            }
            Err(error) => {
                warn!(hook = room.name, %error, "the recent Events cannot be listed: trying again");
                false
            }
        }
    }

    /// A Hook that is new to this process, or all of whose pods have been listed anew, hears how its pods are.
    fn compare(&self, hook: &Hook, rules: &Rules, room: &Room, mind: &mut Mind) {
        let namespace = hook.namespace().unwrap_or_default();
        let index = self.index(&namespace);
        let term = (self.term.load(Ordering::SeqCst), hook.metadata.generation, index.lists());
        // Without a list nothing is known to be gone.
        if mind.compared == Some(term) || index.lists() == 0 || without(Safeguard::Comparison) {
            return;
        }
        let open: Vec<ActiveEvent> = (hook.status.iter().flat_map(|status| &status.active_events))
            .filter(|entry| entry.status != Phase::Resolved || lifecycle::is_dismissed(entry))
            .cloned()
            .collect();
        let signals = index.compare(&namespace, &open, |kind| rules.listens_to(kind), now());
        drop(index);
        // All that still holds is among these.
        room.inbox.lock().signals.retain(|(_, old)| matches!(old.nature, Nature::Occurrence(_)));
        signals.into_iter().for_each(|signal| room.hear(signal));
        mind.compared = Some(term);
    }

    /// Plans, and takes the slots the plan needs if it can be written now.
    fn plan(
        self: &Arc<Self>,
        hook: &Hook,
        rules: &Rules,
        said: &Annotations,
        room: &Room,
        mind: &mut Mind,
        leading: bool,
    ) -> Planned {
        let empty = HookStatus::default();
        let status = hook.status.as_ref().unwrap_or(&empty);
        let unmoved = self.foreign_claims(status, mind);
        let (mut signals, outcomes, taken) = room.inputs(leading);
        // These are never taken: they stay on the Hook, and what the status has of them is done.
        let is_new = |signal: &&Signal| {
            let known = |rule: &Rule| status.active_events.iter().any(|entry| rule.key(signal).is_of(entry));
            !signal.is_stale(&self.policy) && !rules.listening_to(signal.event_type).all(known)
        };
        signals.extend(said.tests.iter().filter(|_| leading).filter(is_new).cloned());
        let instructions = if leading { said.instructions.as_slice() } else { &[] };
        let agents: BTreeSet<&AgentName> = rules.configurations.iter().map(|rule| &rule.agent).collect();
        let not_ready: BTreeSet<AgentName> =
            room.needs.lock().missing.iter().map(|(agent, _)| agent.clone()).collect();
        let capacity_at = |now| {
            let mut capacity = self.pool.capacity(agents.iter().copied(), now);
            capacity.may_claim = leading;
            for (agent, capacity) in &mut capacity.agents {
                if not_ready.contains(agent) {
                    capacity.allow = Allow::NotReady;
                }
            }
            capacity
        };
        let uid = hook.uid().unwrap_or_default();
        let namespace = hook.namespace().unwrap_or_default();
        // Another Hook may take a slot between the look and the grasp; then the plan is made anew.
        for attempt in 0.. {
            let now = now();
            let mut capacity = capacity_at(now);
            if attempt >= MAX_PLANS {
                capacity.slots = 0;
            }
            let plan = plan::plan(&Inputs {
                hook_uid: &uid,
                namespace: &namespace,
                generation: hook.metadata.generation,
                rules,
                status,
                signals: &signals,
                outcomes: &outcomes,
                instructions,
                capacity: &capacity,
                claims: Claims {
                    process: &self.process.name,
                    next: mind.next_sequence,
                    begun: &mind.begun,
                    busy: &mind.busy,
                    unmoved: &unmoved,
                },
                policy: &self.policy,
                now,
            });
            let too_soon = self.throttled(mind, plan.urgency).filter(|_| leading);
            if too_soon.is_some() && !plan.claimed.is_empty() {
                // Slots are not taken only to be given back: that would wake those who wait for one,
                // this Hook among them. It is planned anew soon.
                return Planned { plan, taken, slots: HashMap::new(), too_soon };
            }
            if plan.waits_for_capacity && leading {
                // Wait first, then look again: a slot given back in between must not go unnoticed.
                self.pool.wait(room.hook.clone(), agents.iter().copied());
                let again = capacity_at(now);
                if again != capacity && attempt < MAX_PLANS {
                    continue;
                } else if again != capacity {
                    self.wake(room.hook.clone());
                }
            }
            let claims = plan.claimed.iter();
            if let Some(slots) = self.pool.reserve(claims.clone().map(|(_, agent)| agent), now) {
                let slots = claims.map(|(claim, _)| claim.sequence).zip(slots).collect();
                return Planned { plan, taken, slots, too_soon };
            }
        }
        unreachable!("the loop above has no end but its return")
    }

    /// The rules with what is missing for them, and when to look again. Secrets are looked at now and then: that
    /// one is missing shows before an incident needs it.
    async fn with_needs(
        &self,
        hook: &Hook,
        rules: Arc<Rules>,
        room: &Room,
    ) -> (Arc<Rules>, Option<Duration>) {
        let direct: BTreeMap<&AgentName, &Arc<DirectAgent>> = (rules.configurations.iter())
            .filter_map(|rule| Some((&rule.agent, rule.direct.as_ref()?)))
            .filter(|(_, direct)| direct.secrets().next().is_some())
            .collect();
        if direct.is_empty() {
            room.needs.lock().missing.clear();
            return (rules, None);
        }
        let generation = hook.metadata.generation;
        let left = {
            let needs = room.needs.lock();
            let every = if needs.missing.is_empty() { NEEDS_AGE } else { MISSING_AGE };
            let looked = needs.looked.filter(|(of, _)| *of == generation);
            looked.and_then(|(_, at)| every.checked_sub(at.elapsed()))
        };
        if left.is_none() {
            let mut missing = Vec::new();
            for (name, agent) in direct {
                match self.agents.examine(agent).await {
                    Some(problems) => {
                        missing.extend(problems.into_iter().map(|problem| (name.clone(), problem)))
                    }
                    // As it was.
                    None => {
                        missing.extend(room.needs.lock().missing.iter().filter(|(of, _)| of == name).cloned())
                    }
                }
            }
            let mut needs = room.needs.lock();
            needs.looked = Some((generation, Instant::now()));
            needs.missing = missing;
        }
        let missing: Vec<Problem> =
            room.needs.lock().missing.iter().map(|(_, problem)| problem.clone()).collect();
        let again = left.unwrap_or(if missing.is_empty() { NEEDS_AGE } else { MISSING_AGE });
        (with_problems(rules, &missing), Some(again))
    }

    fn foreign_claims(&self, status: &HookStatus, mind: &mut Mind) -> BTreeMap<Claim, Duration> {
        let foreign: BTreeSet<&Claim> = status
            .active_events
            .iter()
            .filter_map(|entry| entry.claim.as_ref())
            .filter(|claim| claim.process != self.process.name)
            .collect();
        let now = Instant::now();
        mind.foreign.retain(|claim, _| foreign.contains(claim));
        for claim in foreign {
            mind.foreign.entry(claim.clone()).or_insert(now);
        }
        let unmoved = |claim: &Claim, since: &Instant| {
            if self.process.succeeds(&claim.process) { Duration::MAX } else { now.duration_since(*since) }
        };
        mind.foreign.iter().map(|(claim, since)| (claim.clone(), unmoved(claim, since))).collect()
    }

    fn throttled(&self, mind: &Mind, urgency: Urgency) -> Option<Duration> {
        let interval = match urgency {
            Urgency::Claim => self.pace.write_interval,
            Urgency::Soon | Urgency::None => self.pace.outcome_delay,
            Urgency::Quiet => self.pace.quiet_write_interval,
        };
        let left = interval.checked_sub(mind.last_write?.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    async fn write(
        &self,
        hook: &Arc<Hook>,
        plan: Plan,
        taken: Taken,
        room: &Room,
        mind: &mut Mind,
    ) -> Result<Arc<Hook>, Failure> {
        // Also where the write fails: a sequence is used once.
        mind.next_sequence = plan.next_sequence;
        let written = status::write(&self.api(&room.hook), hook, &plan.status).await;
        mind.last_write = Some(Instant::now());
        match written {
            Written::Committed(committed) => {
                self.metrics.status_write(WriteResult::Committed);
                self.committed(hook, &plan, &taken, room, mind);
                let hook = Arc::new(*committed);
                mind.newest = Some(hook.clone());
                mind.last = Some(hook.clone());
                mind.failures = 0;
                Ok(hook)
            }
            Written::Conflict => {
                self.metrics.status_write(WriteResult::Conflict);
                debug!(hook = room.name, "somebody wrote in between: reading the Hook back");
                mind.read_back = true;
                self.wake(room.hook.clone());
                Err(Failure::Conflict)
            }
            Written::Gone => {
                self.metrics.status_write(WriteResult::Error);
                mind.read_back = true;
                Err(Failure::Gone)
            }
            Written::Refused(error) => {
                self.metrics.status_write(WriteResult::Error);
                error!(hook = room.name, %error, "the apiserver refuses the status: nothing is called until it takes it");
                mind.read_back = true;
                Err(Failure::Refused)
            }
            Written::Outdated(error) => {
                self.metrics.status_write(WriteResult::Error);
                error!(
                    hook = room.name,
                    %error,
                    "the definition of Hooks in the cluster is older than this khook: upgrade it (crds/hook.yaml, or the \
                     chart khook-crds); nothing is called until then"
                );
                mind.read_back = true;
                Err(Failure::Refused)
            }
            Written::Unknown(error) => {
                self.metrics.status_write(WriteResult::Error);
                warn!(hook = room.name, %error, "whether the status was stored is not known: reading the Hook back");
                mind.read_back = true;
                mind.unconfirmed = Some(Unconfirmed { before: hook.clone(), plan, taken });
                Err(Failure::Unknown)
            }
        }
    }

    fn committed(&self, before: &Hook, plan: &Plan, taken: &Taken, room: &Room, mind: &mut Mind) {
        room.settle(mind, plan, taken);
        self.trace(&room.name, before.status.as_ref(), &plan.status);
        let own = plan.status.active_events.iter().filter_map(|entry| entry.claim.as_ref());
        let own: BTreeSet<i64> =
            own.filter(|claim| claim.process == self.process.name).map(|claim| claim.sequence).collect();
        mind.begun.retain(|sequence| own.contains(sequence));
        self.count_suppressed(plan);
        self.metrics.set_hook(&room.name, counts(&plan.status));
        for notice in &plan.notices {
            let (type_, phase) = (notice.entry.event_type, notice.entry.status);
            let reason = notice.entry.reason.map_or("", |reason| reason.as_str());
            // An answer, a doubt, or what a person says, moves nothing by itself.
            if !matches!(
                notice.kind,
                NoticeKind::AgentAnswered | NoticeKind::AgentCallUnknown | NoticeKind::IncidentInstructed
            ) {
                self.metrics.transition(type_.as_str(), phase.as_str(), reason);
            }
            if let Some(usage) = notice.usage {
                let agent = AgentName::read(&notice.entry.agent, &notice.entry.namespace);
                self.metrics
                    .tokens(&agent.map_or_else(|| notice.entry.agent.clone(), |agent| agent.label()), usage);
            }
            self.notices.tell(&room.hook, &room.name, notice);
            if notice.kind == NoticeKind::AgentCallObserved {
                self.show(before, &notice.entry, room, mind);
            }
        }
    }

    /// Says what an agent would have been sent.
    fn show(&self, hook: &Hook, entry: &ActiveEvent, room: &Room, mind: &mut Mind) {
        let rules = mind.rules(hook, &self.policy);
        let Some(rule) = rules.of(entry) else { return };
        let known = hook.status.iter().flat_map(|status| &status.active_events);
        let earlier = known
            .filter(|known| known.session_id == entry.session_id)
            .find_map(|known| known.last_notified_at);
        let message =
            prompt::message_of(hook, rule, &ActiveEvent { last_notified_at: earlier, ..entry.clone() });
        info!(
            hook = room.name,
            agent = entry.agent,
            resource = entry.resource_name,
            id = entry.id,
            text = message.text,
            "observed: this would have been sent"
        );
    }

    /// Tells the spans that end with the step from one status to the next.
    fn trace(&self, hook: &str, before: Option<&HookStatus>, after: &HookStatus) {
        let none = HookStatus::default();
        self.traces.tell(|| trace::transitions(hook, before.unwrap_or(&none), after, now()));
    }

    fn count_suppressed(&self, plan: &Plan) {
        for suppressed in &plan.suppressed {
            let reason = match suppressed {
                lifecycle::Suppressed::Duplicate => Suppressed::Duplicate,
                lifecycle::Suppressed::Stale => Suppressed::Stale,
                lifecycle::Suppressed::Window => Suppressed::Window,
            };
            self.metrics.suppressed(reason, 1);
        }
    }

    /// Begins what the committed status asks of this process.
    fn begin(
        self: &Arc<Self>,
        hook: &Arc<Hook>,
        rules: &Rules,
        room: &Arc<Room>,
        mind: &mut Mind,
        mut slots: HashMap<i64, Slot<ObjectRef<Hook>>>,
        leading: bool,
    ) {
        let Some(status) = hook.status.as_ref() else { return };
        let (begun, busy) = (mind.begun.clone(), mind.busy.clone());
        let claims = Claims {
            process: &self.process.name,
            next: mind.next_sequence,
            begun: &begun,
            busy: &busy,
            unmoved: &BTreeMap::new(),
        };
        for activity in plan::activities(status, &claims, now()) {
            match activity {
                Activity::Call(entry, claim) => {
                    mind.begun.insert(claim.sequence);
                    mind.busy.insert(claim.sequence);
                    match rules.of(entry).filter(|_| leading && self.wants(hook, entry)) {
                        Some(rule) => {
                            let slot = slots.remove(&claim.sequence);
                            let slot = slot.or_else(|| self.pool.insist(&rule.agent, now()));
                            let mut call = AgentCall::about(hook, rule, entry);
                            call.traceparent = self.traces.traceparent(entry);
                            self.call(room, hook, entry, claim, call, slot);
                        }
                        // Observed between the claim and the call: nothing more is called.
                        None => self.post(room, entry, called(entry, claim.clone(), agent::unwanted())),
                    }
                }
                Activity::LookUp(entry, claim) => {
                    mind.busy.insert(claim.sequence);
                    self.look_up(room, entry, claim, direct_of(rules, entry));
                }
                Activity::Follow(entry, task_id) if leading => {
                    self.follow(room, entry, task_id, direct_of(rules, entry));
                }
                Activity::Follow(..) => {}
            }
        }
    }

    /// Whether the newest Hook that is known still asks for this call: somebody may have deleted, changed or
    /// suspended it while the status was written, or while the session was being opened.
    fn wants(&self, claimed: &Hook, entry: &ActiveEvent) -> bool {
        let cached = self.hooks.get(&ObjectRef::from_obj(claimed));
        let newest = match &cached {
            Some(cached) if cached.uid() != claimed.uid() => return false,
            Some(cached) if version(cached) > version(claimed) => cached,
            Some(_) => claimed,
            None => return false,
        };
        let rules = || Rules::parse(&newest.spec, &newest.namespace().unwrap_or_default(), &self.policy);
        let farewell = entry.status == Phase::Resolved;
        let asks = |rule: &Rule| !farewell || rule.notify_resolved;
        let asked =
            newest.metadata.generation == claimed.metadata.generation || rules().of(entry).is_some_and(asks);
        // It may have come back meanwhile, or have been put off by another process.
        let entries = || newest.status.iter().flat_map(|status| &status.active_events);
        let asked = asked && (!farewell || entries().any(|known| known.claim == entry.claim));
        let calls = newest.spec.suspend != Some(true) && newest.spec.mode != Some(Mode::Observe);
        newest.metadata.deletion_timestamp.is_none() && calls && asked || without(Safeguard::Recall)
    }

    fn call(
        self: &Arc<Self>,
        room: &Arc<Room>,
        hook: &Arc<Hook>,
        entry: &ActiveEvent,
        claim: &Claim,
        call: AgentCall,
        slot: Option<Slot<ObjectRef<Hook>>>,
    ) {
        let due = entry.due_at.filter(|_| entry.status == Phase::Firing);
        if let Some(waited) = due.and_then(|due| (now() - due).to_std().ok()) {
            self.metrics.event_to_call(waited);
        }
        let (context, room, entry, claim) = (self.clone(), room.clone(), entry.clone(), claim.clone());
        let hook = hook.clone();
        self.tasks.spawn(async move {
            let _in_flight = context.metrics.inflight();
            let begun = Instant::now();
            let began = now();
            // A call is asked whether it is still wanted when its session is open, before its message goes.
            let opened: Mutex<Option<DateTime<Utc>>> = Mutex::default();
            // The claim promises an end within its duration. A process that was frozen for so long does not
            // begin: another may have taken over.
            let limit = claim.duration();
            let reply = if (now() - claim.at).to_std().is_ok_and(|age| age >= limit) {
                let error = "this process stood still until its claim was over".into();
                Reply::NotRun { error, retry_after: None, throttled: true }
            } else {
                let in_time = || (now() - claim.at).to_std().map_or(true, |age| age < limit);
                let wanted = || {
                    opened.lock().get_or_insert_with(now);
                    in_time() && context.wants(&hook, &entry)
                };
                let call = tokio::time::timeout(limit, context.agents.call(&call, wanted));
                // A panic must not leave the incident firing for ever.
                match AssertUnwindSafe(call).catch_unwind().await {
                    Ok(Ok(reply)) => reply,
                    Ok(Err(_)) => Reply::Unknown { error: format!("no answer within {} s", limit.as_secs()) },
                    Err(_) => Reply::Unknown { error: "a defect in khook ended the call".into() },
                }
            };
            let outcome = match &reply {
                Reply::Accepted { .. } => CallOutcome::Accepted,
                Reply::NotRun { throttled: true, .. } => CallOutcome::Throttled,
                Reply::NotRun { .. } => CallOutcome::NotRun,
                Reply::Permanent { .. } => CallOutcome::Permanent,
                Reply::Unknown { .. } => CallOutcome::Unknown,
            };
            let kind = if entry.status == Phase::Resolved { CallKind::Farewell } else { CallKind::Message };
            context.metrics.api_call(kind, outcome, begun.elapsed());
            context.traces.tell(|| {
                let (opened, outcome) = (*opened.lock(), outcome.as_str());
                let called = Called { claim: &claim, began, opened, reply: &reply, outcome };
                trace::call(&room.name, &entry, &called, now())
            });
            debug!(hook = room.name, agent = entry.agent, resource = entry.resource_name, ?reply, "called");
            if let Some(slot) = slot {
                slot.ended(&reply);
            }
            if matches!(reply, Reply::NotRun { .. }) {
                // What the agent needs may be what it failed for.
                room.needs.lock().looked = None;
            }
            context.post(&room, &entry, called(&entry, claim, reply));
        });
    }

    fn look_up(
        self: &Arc<Self>,
        room: &Arc<Room>,
        entry: &ActiveEvent,
        claim: &Claim,
        direct: Option<Arc<DirectAgent>>,
    ) {
        let (context, room, entry, claim) = (self.clone(), room.clone(), entry.clone(), claim.clone());
        self.tasks.spawn(async move {
            let (begun, began) = (Instant::now(), now());
            let lookup = match AgentName::read(&entry.agent, &entry.namespace) {
                Some(agent) => {
                    let about = about(&entry, &agent, direct.as_deref());
                    let message = key::message_id(about.session_id, entry.window);
                    let lookup =
                        AssertUnwindSafe(context.agents.lookup(&about, &message)).catch_unwind().await;
                    lookup.unwrap_or_else(|_| Lookup::Unavailable {
                        error: "a defect in khook ended the lookup".into(),
                    })
                }
                None => Lookup::Unavailable { error: format!("{:?} is no agent", entry.agent) },
            };
            let outcome = match &lookup {
                Lookup::Found { .. } => CallOutcome::Found,
                Lookup::Absent => CallOutcome::Absent,
                Lookup::Unavailable { .. } => CallOutcome::Unavailable,
                Lookup::Unsupported { .. } => CallOutcome::Unsupported,
            };
            context.metrics.api_call(CallKind::Lookup, outcome, begun.elapsed());
            let found = (&lookup, outcome.as_str());
            context.traces.tell(|| trace::lookup(&room.name, &entry, began, found, now()));
            debug!(
                hook = room.name,
                agent = entry.agent,
                resource = entry.resource_name,
                ?lookup,
                "looked up"
            );
            context.post(&room, &entry, News::LookedUp(claim, lookup));
        });
    }

    /// Follows a task until it ends, its deadline passes, or this process no longer works.
    fn follow(
        self: &Arc<Self>,
        room: &Arc<Room>,
        entry: &ActiveEvent,
        task_id: &str,
        direct: Option<Arc<DirectAgent>>,
    ) {
        let Some(agent) = AgentName::read(&entry.agent, &entry.namespace) else { return };
        if !room.following.lock().insert(task_id.to_owned()) {
            return;
        }
        let (context, room, entry, task_id) = (self.clone(), room.clone(), entry.clone(), task_id.to_owned());
        // Not among the calls: a process that stops does not wait for it, the next one goes on.
        tokio::spawn(async move {
            let asked = entry.last_notified_at.unwrap_or(entry.last_seen);
            let deadline = asked + context.policy.task_deadline;
            let mut wait = context.pace.follow_min;
            let first = about(&entry, &agent, direct.as_deref());
            let left = (deadline - now()).to_std().unwrap_or_default();
            // A stream tells of the end at once; what it ended with is read all the same, for the beginning of
            // the task may have been missed.
            let mut listening = std::pin::pin!(context.agents.listen(&first, &task_id, left).fuse());
            let mut heard = None;
            let (mut described, mut generation) = (direct.clone(), None);
            let ended = loop {
                let over = tokio::time::sleep(wait);
                tokio::select! {
                    () = over => {}
                    ended = &mut listening => match ended {
                        Some(ended) => heard = Some(ended),
                        None => continue,
                    },
                    () = context.stop.cancelled() => break None,
                }
                if !context.leading(room.hook.namespace.as_deref().unwrap_or_default())
                    || context.is_forgotten(&room)
                {
                    break None;
                }
                // As the Hook says it now: whom it does not name any more is not asked any more.
                if matches!(agent, AgentName::Direct { .. }) {
                    let hook = context.hooks.get(&room.hook);
                    let newest = hook.as_ref().and_then(|hook| hook.metadata.generation);
                    // Parsed once for each spec, not for each look.
                    if newest.is_none() || newest != generation {
                        generation = newest;
                        described = hook.and_then(|hook| context.described(&hook, &entry));
                    }
                    if described.is_none() && direct.is_some() {
                        break None;
                    }
                }
                let begun = Instant::now();
                let about = about(&entry, &agent, described.as_deref());
                let mut seen = context.agents.follow(&about, &task_id).await;
                let outcome = match &seen {
                    Follow::Running => CallOutcome::Accepted,
                    Follow::Ended(_) => CallOutcome::Ended,
                    Follow::Unavailable { .. } => CallOutcome::Unavailable,
                };
                context.metrics.api_call(CallKind::Follow, outcome, begun.elapsed());
                if let Some(heard) = heard.take()
                    && !matches!(&seen, Follow::Ended(ended) if ended.state != EndState::Lost)
                {
                    seen = Follow::Ended(heard);
                }
                if let Follow::Ended(ended) = seen {
                    debug!(
                        hook = room.name,
                        agent = entry.agent,
                        task = task_id,
                        answer = ended.answer,
                        "answered"
                    );
                    break Some(ended);
                }
                if now() >= deadline {
                    break Some(Ended::silent(EndState::DeadlineExceeded));
                }
                wait = (wait + wait / 2).min(context.pace.follow_max);
            };
            match ended {
                // It stays among the followed until the write that contains it has committed.
                Some(ended) => {
                    context.traces.tell(|| trace::follow(&room.name, &entry, asked, &ended, now()));
                    context.post(&room, &entry, News::TaskEnded(task_id.clone(), ended));
                }
                None => {
                    room.following.lock().remove(&task_id);
                }
            }
        });
    }

    /// How the agent of an entry is asked, as this Hook says.
    fn described(&self, hook: &Hook, entry: &ActiveEvent) -> Option<Arc<DirectAgent>> {
        direct_of(&Rules::parse(&hook.spec, &hook.namespace().unwrap_or_default(), &self.policy), entry)
    }

    fn is_forgotten(&self, room: &Arc<Room>) -> bool {
        !self.rooms.lock().values().any(|known| Arc::ptr_eq(known, room))
    }

    fn post(&self, room: &Room, entry: &ActiveEvent, news: News) {
        let session_id = entry.session_id.clone().unwrap_or_default();
        room.tell(Outcome { entry: entry.id.clone(), session_id, news });
        self.wake(room.hook.clone());
    }
}

/// How long calls wait for the first list of pods.
const SIGHTLESS: Duration = Duration::from_secs(30);

/// How often the Secrets of direct agents are looked at, where nothing is missing; each call reads them anew.
const NEEDS_AGE: Duration = Duration::from_secs(120);

/// The same, where something is missing.
const MISSING_AGE: Duration = Duration::from_secs(10);

/// How often a pod is asked for on behalf of an Event.
const MAX_QUESTIONS: u32 = 5;

/// Plans per reconcile, where others keep taking the slots it was made with.
const MAX_PLANS: u32 = 5;

impl Room {
    // Of one source only the newest matters: its count tells how often it happened. Of one pod only how it
    // is now.
    fn hear(&self, signal: Signal) {
        let mut inbox = self.inbox.lock();
        inbox.arrivals += 1;
        let arrival = inbox.arrivals;
        inbox.signals.retain(|(_, old)| {
            let superseded = match (&old.nature, &signal.nature) {
                (Nature::Occurrence(old), Nature::Occurrence(new)) => {
                    old.source == new.source && old.count <= new.count && old.at <= new.at
                }
                (Nature::Condition { .. } | Nature::Unclear, Nature::Condition { .. } | Nature::Unclear) => {
                    old.uid == signal.uid && old.pod == signal.pod && old.namespace == signal.namespace
                }
                _ => false,
            };
            !(superseded && old.event_type == signal.event_type)
        });
        inbox.signals.push((arrival, signal));
    }

    fn tell(&self, outcome: Outcome) {
        let mut inbox = self.inbox.lock();
        inbox.arrivals += 1;
        let arrival = inbox.arrivals;
        inbox.outcomes.push((arrival, outcome));
    }

    // Who only stands by folds in what became of its own calls, nothing else.
    fn inputs(&self, leading: bool) -> (Vec<Signal>, Vec<Outcome>, Taken) {
        let inbox = self.inbox.lock();
        let signals: Vec<&(u64, Signal)> = inbox.signals.iter().filter(|_| leading).collect();
        let taken = Taken {
            signals: signals.iter().map(|(arrival, _)| *arrival).collect(),
            outcomes: inbox.outcomes.iter().map(|(arrival, _)| *arrival).collect(),
        };
        let signals = signals.into_iter().map(|(_, signal)| signal.clone()).collect();
        let outcomes = inbox.outcomes.iter().map(|(_, outcome)| outcome.clone()).collect();
        (signals, outcomes, taken)
    }

    // The status contains these inputs now, or they change nothing.
    fn settle(&self, mind: &mut Mind, plan: &Plan, taken: &Taken) {
        let mut inbox = self.inbox.lock();
        let kept: BTreeSet<u64> = (taken.signals.iter().enumerate())
            .filter(|(index, _)| plan.held_back.contains(index) || plan.young.contains(index))
            .map(|(_, arrival)| *arrival)
            .collect();
        inbox.signals.retain(|(arrival, _)| !taken.signals.contains(arrival) || kept.contains(arrival));
        inbox.outcomes.retain(|(arrival, outcome)| {
            let settled = taken.outcomes.contains(arrival);
            if settled {
                match &outcome.news {
                    News::Called(claim, _) | News::FarewellCalled(claim, _) | News::LookedUp(claim, _) => {
                        mind.busy.remove(&claim.sequence);
                    }
                    News::TaskEnded(task_id, _) => {
                        self.following.lock().remove(task_id);
                    }
                }
            }
            !settled
        });
    }
}

impl Mind {
    /// The same Hook with the incidents that somebody else took out of its status since our last write: to
    /// forget them would be to lose them, or to call about them once more.
    fn put_back(&mut self, hook: Arc<Hook>, name: &str) -> Arc<Hook> {
        let Some(last) = &self.last else { return hook };
        if version(last) == version(&hook) {
            // The cache's own copy, so that there is one.
            self.last = Some(hook.clone());
            return hook;
        }
        let ours = last.status.as_ref();
        let written = |status: Option<&HookStatus>| status.and_then(|status| status.last_updated);
        if last.uid() != hook.uid()
            || written(hook.status.as_ref()).is_some_and(|at| Some(at) != written(ours))
        {
            // Another replica says when it writes, and knows what it does: what this one knew is old.
            self.last = None;
            return hook;
        }
        let present: HashSet<&str> = hook
            .status
            .iter()
            .flat_map(|status| &status.active_events)
            .map(|entry| entry.id.as_str())
            .collect();
        let missing: Vec<ActiveEvent> = ours
            .into_iter()
            .flat_map(|status| &status.active_events)
            .filter(|entry| !present.contains(entry.id.as_str()))
            .cloned()
            .collect();
        if missing.is_empty() {
            return hook;
        }
        warn!(
            hook = name,
            missing = missing.len(),
            "somebody else took incidents out of the status: they are put back"
        );
        let mut hook = hook.as_ref().clone();
        let status = hook.status.get_or_insert_default();
        status.active_events.extend(missing);
        // Never as it will be planned: so it is written, even if nothing else happens.
        status.message = None;
        Arc::new(hook)
    }

    fn rules(&mut self, hook: &Hook, policy: &Policy) -> Arc<Rules> {
        let generation = hook.metadata.generation;
        match &self.rules {
            Some((parsed, rules)) if *parsed == generation => rules.clone(),
            _ => {
                let namespace = hook.namespace().unwrap_or_default();
                let rules = Arc::new(Rules::parse(&hook.spec, &namespace, policy));
                self.rules = Some((generation, rules.clone()));
                rules
            }
        }
    }
}

/// How the agent of an entry is asked, as far as its Hook still says.
fn direct_of(rules: &Rules, entry: &ActiveEvent) -> Option<Arc<DirectAgent>> {
    rules.of(entry)?.direct.clone()
}

fn about<'a>(entry: &'a ActiveEvent, agent: &'a AgentName, direct: Option<&'a DirectAgent>) -> Inquiry<'a> {
    let session_id = entry.session_id.as_deref().unwrap_or_default();
    Inquiry { agent, direct, session_id, protocol: entry.protocol }
}

// What became of the call that this entry was claimed for.
fn called(entry: &ActiveEvent, claim: Claim, reply: Reply) -> News {
    match entry.status {
        Phase::Resolved => News::FarewellCalled(claim, reply),
        Phase::Pending | Phase::Firing | Phase::Notified => News::Called(claim, reply),
    }
}

/// The same rules with what else is to be told of the Hook.
fn with_problems(rules: Arc<Rules>, problems: &[Problem]) -> Arc<Rules> {
    if problems.is_empty() {
        return rules;
    }
    let mut rules = rules.as_ref().clone();
    rules.problems.extend_from_slice(problems);
    Arc::new(rules)
}

/// Whether a status is what was written, or what another writer has left of it.
fn is_left_of(stored: &HookStatus, written: &HookStatus) -> bool {
    stored == written
        || stored.last_updated.is_some()
            && stored.last_updated == written.last_updated
            && stored.active_events.iter().all(|entry| written.active_events.contains(entry))
}

/// A Hook as people write it: `namespace/name`.
fn name(hook: &ObjectRef<Hook>) -> String {
    format!("{}/{}", hook.namespace.as_deref().unwrap_or_default(), hook.name)
}

/// Whether the restart of a pod that is gone is one that the Hook knows by its better name.
fn is_told(hook: &Hook, signal: &Signal) -> bool {
    let entries = hook.status.iter().flat_map(|status| &status.active_events);
    let mut same = entries.filter(|entry| entry.resource_name == signal.pod && entry.uid == signal.uid);
    let better = |type_| matches!(type_, EventType::OomKill | EventType::ProbeFailed);
    signal.event_type == EventType::PodRestart
        && !signal.uid.is_empty()
        && same.any(|entry| better(entry.event_type))
}

fn listens(hook: &Hook, event_type: EventType) -> bool {
    hook.spec.event_configurations.iter().any(|configuration| configuration.event_type == event_type)
}

fn counts(status: &HookStatus) -> HookCounts {
    let mut counts: BTreeMap<(EventType, Phase), i64> = BTreeMap::new();
    for entry in &status.active_events {
        *counts.entry((entry.event_type, entry.status)).or_default() += 1;
    }
    let due = status
        .active_events
        .iter()
        .filter(|entry| matches!(entry.status, Phase::Pending | Phase::Firing) && !lifecycle::is_held(entry));
    HookCounts {
        active: counts.into_iter().map(|((event_type, phase), count)| (event_type, phase, count)).collect(),
        overflow: i64::from(status.overflow.unwrap_or_default()),
        oldest_due: due.filter_map(|entry| entry.due_at).min(),
        stalled: status.conditions.iter().any(|condition| condition.type_ == "Stalled"),
    }
}

// Versions of one object can be compared as numbers: Kubernetes 1.35 promises it, etcd has always made it so.
fn version(hook: &Hook) -> Option<u128> {
    hook.metadata.resource_version.as_deref().and_then(|version| version.parse().ok())
}
