//! A plan is what is to become of one Hook: the next status, and what to do once it is written.
//!
//! `plan` folds outcomes, then signals, then time into the status, and claims what is due. It is a plain
//! function: the same inputs give the same plan, and the same inputs again change nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::{
    breaker::Allow,
    key::Key,
    lifecycle::{self, Effects, Input, Notice, Scene, Suppressed},
    outcome::{AgentName, Ended, Lookup, Reply},
    policy::Policy,
    rules::{Rule, Rules},
    signal::{self, Nature, Signal, everything_until},
    summary,
};
use crate::{
    hook::{
        ActiveEvent, Claim, DayOfCalls, FarewellState, HookStatus, Instruction, Phase, Reason, StandingState,
    },
    sabotage::{Safeguard, without},
};

/// All a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// UID of the Hook.
    pub hook_uid: &'a str,
    /// Namespace of the Hook.
    pub namespace: &'a str,
    /// `metadata.generation` of the spec the rules were parsed from.
    pub generation: Option<i64>,
    /// The spec, parsed.
    pub rules: &'a Rules,
    /// The newest known status.
    pub status: &'a HookStatus,
    /// What the sources said and no committed write contains yet, in the order of arrival.
    pub signals: &'a [Signal],
    /// What became of calls, likewise.
    pub outcomes: &'a [Outcome],
    /// What people say of incidents, by session. Said as long as it stands on the Hook, done once.
    pub instructions: &'a [(String, Instruction)],
    /// What may be called.
    pub capacity: &'a Capacity,
    /// What this process knows of claims.
    pub claims: Claims<'a>,
    /// Spans and bounds.
    pub policy: &'a Policy,
    /// The time, in whole milliseconds.
    pub now: DateTime<Utc>,
}

/// News of one incident's call, from the agent's side.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Id of the entry.
    pub entry: String,
    /// Session of the episode it belongs to.
    pub session_id: String,
    /// What became of it.
    pub news: News,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The call of a claim ended.
    Called(Claim, Reply),
    /// The call of a claim, which tells that the incident is resolved, ended.
    FarewellCalled(Claim, Reply),
    /// The session was looked up under a claim.
    LookedUp(Claim, Lookup),
    /// A task ended.
    TaskEnded(String, Ended),
}

/// How many calls may begin now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capacity {
    /// False while this process may not claim: not the leader, or about to end.
    pub may_claim: bool,
    /// Free slots over all agents.
    pub slots: usize,
    /// Free slots that several agents share, by [`AgentName::shares`]; what is not here is not limited.
    pub shared: BTreeMap<String, usize>,
    /// Per agent; an agent that is not here has not been asked about and gets no call.
    pub agents: BTreeMap<AgentName, AgentCapacity>,
}

impl Capacity {
    /// Every agent is well, and takes as many calls as come.
    pub fn boundless(rules: &Rules) -> Self {
        let well = AgentCapacity { slots: usize::MAX, allow: Allow::All, closed_at: None };
        Self {
            may_claim: true,
            slots: usize::MAX,
            shared: BTreeMap::new(),
            agents: rules.configurations.iter().map(|rule| (rule.agent.clone(), well.clone())).collect(),
        }
    }
}

/// How many calls to one agent may begin now.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentCapacity {
    /// Free slots of this agent.
    pub slots: usize,
    /// What its breaker allows.
    pub allow: Allow,
    /// When its breaker last closed after having been open.
    pub closed_at: Option<DateTime<Utc>>,
}

/// What this process knows of claims.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// The name of this process, in its own claims.
    pub process: &'a str,
    /// The first sequence not used yet; a plan uses as many as it claims.
    pub next: i64,
    /// Sequences of own claims whose call has begun in this process.
    pub begun: &'a BTreeSet<i64>,
    /// Sequences of own claims whose call or lookup is under way, or whose outcome is not written yet.
    pub busy: &'a BTreeSet<i64>,
    /// For how long a foreign claim has been seen unmoved, on the local monotonic clock.
    pub unmoved: &'a BTreeMap<Claim, Duration>,
}

/// What is to become of a Hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status to write, if it differs.
    pub status: HookStatus,
    /// How soon it must be written.
    pub urgency: Urgency,
    /// The calls it claims: claim and agent of each. Each needs a slot.
    pub claimed: Vec<(Claim, AgentName)>,
    /// The first sequence this plan left unused.
    pub next_sequence: i64,
    /// To be told after the write has committed.
    pub notices: Vec<Notice>,
    /// Occurrences without effect.
    pub suppressed: Vec<Suppressed>,
    /// Indexes of signals that do not fit: they stay in the inbox.
    pub held_back: BTreeSet<usize>,
    /// Indexes of signals of trouble that is too young for an incident: they stay in the inbox, too.
    pub young: BTreeSet<usize>,
    /// When to plan again, if nothing happens before.
    pub next_wake: Option<DateTime<Utc>>,
    /// Whether something waits for a slot or for a breaker.
    pub waits_for_capacity: bool,
}

/// How soon a status must be written: a write costs the apiserver more than khook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing changed.
    None,
    /// Only last seen and count changed.
    Quiet,
    /// Something to read changed.
    Soon,
    /// A call waits for it.
    Claim,
}

/// Makes the plan of one Hook.
pub fn plan(inputs: &Inputs) -> Plan {
    let mut work = Work {
        inputs,
        entries: adopt(inputs),
        effects: Effects::default(),
        held_back: BTreeSet::new(),
        young: BTreeMap::new(),
        overflow: BTreeSet::new(),
        claimed: Vec::new(),
        calls: 0,
        next_sequence: inputs.claims.next,
        waits_for_capacity: false,
    };
    work.leave_observation();
    work.fold_outcomes();
    work.admit_signals();
    work.pass_time();
    // After time: what ended a call just now can be followed by what somebody wants.
    if work.follow_instructions() {
        work.admit_young();
        work.pass_time();
    }
    // Each round admits one at least, and each signal is for one agent or several.
    for _ in 0..work.held_back.len() * inputs.rules.configurations.len() {
        if !work.admit_held_back() {
            break;
        }
        work.pass_time();
    }
    work.take_over();
    work.claim_due();
    work.forget();
    work.finish()
}

/// What the committed status asks this process to do now. Level-triggered: it does not matter which write
/// the status came from, so an acknowledgement that got lost loses nothing.
pub fn activities<'a>(
    status: &'a HookStatus,
    claims: &Claims,
    now: DateTime<Utc>,
) -> impl Iterator<Item = Activity<'a>> {
    status.active_events.iter().filter_map(move |entry| {
        let own = entry.claim.as_ref().filter(|claim| claim.process == claims.process);
        if let Some(claim) = own.filter(|claim| !claims.begun.contains(&claim.sequence))
            && lifecycle::farewell_is(entry, FarewellState::Calling)
        {
            return Some(Activity::Call(entry, claim));
        }
        if let Phase::Firing = entry.status
            && let Some(claim) = own
        {
            if entry.reason == Some(Reason::CheckingSession) {
                let due = entry.next_attempt_at.is_none_or(|at| at <= now);
                return (due && !claims.busy.contains(&claim.sequence))
                    .then_some(Activity::LookUp(entry, claim));
            }
            return (!claims.begun.contains(&claim.sequence)).then_some(Activity::Call(entry, claim));
        }
        let running = entry.task_id.as_deref().filter(|_| entry.outcome.is_none());
        running.map(|task_id| Activity::Follow(entry, task_id))
    })
}

/// Something to do for one entry.
#[derive(Clone, Copy, Debug)]
pub enum Activity<'a> {
    /// Call the agent under this claim: about the incident, or, where that is resolved, to say so.
    Call(&'a ActiveEvent, &'a Claim),
    /// Look the session up under this claim.
    LookUp(&'a ActiveEvent, &'a Claim),
    /// Follow this task to its end.
    Follow(&'a ActiveEvent, &'a str),
}

struct Work<'a> {
    inputs: &'a Inputs<'a>,
    entries: Vec<ActiveEvent>,
    effects: Effects,
    held_back: BTreeSet<usize>,
    /// Indexes of signals of trouble that is too young for an incident, and until when.
    young: BTreeMap<usize, DateTime<Utc>>,
    overflow: BTreeSet<Key>,
    claimed: Vec<(Claim, AgentName)>,
    /// Calls this plan begins, or would begin if the Hook did not observe.
    calls: i64,
    next_sequence: i64,
    waits_for_capacity: bool,
}

impl<'a> Work<'a> {
    fn scene(&self, entry: &ActiveEvent) -> Scene<'a> {
        self.scene_of(self.inputs.rules.of(entry))
    }

    fn scene_of(&self, rule: Option<&'a Rule>) -> Scene<'a> {
        self.inputs.scene(rule)
    }

    fn step(&mut self, index: usize, input: &Input) {
        let scene = self.scene(&self.entries[index]);
        lifecycle::step(&mut self.entries[index], input, &scene, &mut self.effects);
    }

    // What a Hook has only observed was never asked.
    fn leave_observation(&mut self) {
        for index in 0..self.entries.len() {
            if self.entries[index].observed && !self.inputs.rules.observes {
                self.step(index, &Input::Activated);
            }
        }
    }

    // Returns whether any was new.
    fn follow_instructions(&mut self) -> bool {
        let mut any = false;
        for (session, instruction) in self.inputs.instructions {
            let of_session = |entry: &ActiveEvent| entry.session_id.as_ref() == Some(session);
            let Some(index) = self.entries.iter().position(of_session) else { continue };
            let known = self.entries[index].instruction.clone();
            self.step(index, &Input::Instructed(instruction));
            any |= self.entries[index].instruction != known;
        }
        any
    }

    fn fold_outcomes(&mut self) {
        for outcome in self.inputs.outcomes {
            let found = self.entries.iter().position(|entry| {
                entry.id == outcome.entry && entry.session_id.as_deref() == Some(&outcome.session_id)
            });
            // An entry that was forgotten, or a newer episode: nothing to keep it on.
            let Some(index) = found else { continue };
            match &outcome.news {
                News::Called(claim, reply) => self.step(index, &Input::Called(claim, reply)),
                News::FarewellCalled(claim, reply) => self.step(index, &Input::FarewellCalled(claim, reply)),
                News::LookedUp(claim, lookup) => self.step(index, &Input::LookedUp(claim, lookup)),
                News::TaskEnded(task_id, ended) => self.step(index, &Input::TaskEnded(task_id, ended)),
            }
        }
    }

    fn admit_signals(&mut self) {
        let inputs = self.inputs;
        for (index, signal) in inputs.signals.iter().enumerate() {
            let counted = self.effects.suppressed.len();
            self.offer(index);
            if let Nature::Unclear
            | Nature::Condition { state: StandingState::Clear | StandingState::Gone, .. } = signal.nature
            {
                self.let_go(signal);
            }
            if self.held_back.contains(&index) {
                // It comes again, and is counted then.
                self.effects.suppressed.truncate(counted);
            }
        }
        self.admit_young();
    }

    // Another signal may have brought the incident.
    fn admit_young(&mut self) {
        for index in std::mem::take(&mut self.young).into_keys() {
            self.offer(index);
        }
    }

    // Has every agent that is asked about it take in a signal, as far as it is old enough and fits.
    fn offer(&mut self, index: usize) {
        let inputs = self.inputs;
        let signal = &inputs.signals[index];
        for rule in inputs.rules.listening_to(signal.event_type) {
            let key = rule.key(signal);
            if !self.is_young(index, rule, &key) && !self.admit(signal, rule) {
                self.held_back.insert(index);
                self.overflow.insert(key);
            }
        }
    }

    // Whether a signal waits because its trouble is too young. What has an incident never is.
    fn is_young(&mut self, index: usize, rule: &'a Rule, key: &Key) -> bool {
        let signal = &self.inputs.signals[index];
        let Some(until) = lifecycle::young_until(signal, &self.scene_of(Some(rule))) else { return false };
        let stands = |entry: &ActiveEvent| entry.status != Phase::Resolved || lifecycle::is_dismissed(entry);
        if self.entries.iter().any(|entry| key.is_of(entry) && stands(entry)) {
            return false;
        }
        self.young.entry(index).and_modify(|at| *at = until.min(*at)).or_insert(until);
        true
    }

    // What ended just now may leave a place. Returns whether one was taken.
    fn admit_held_back(&mut self) -> bool {
        let inputs = self.inputs;
        let waiting = std::mem::take(&mut self.held_back);
        self.overflow.clear();
        let mut admitted = BTreeSet::new();
        for index in waiting {
            let signal = &inputs.signals[index];
            for rule in inputs.rules.listening_to(signal.event_type) {
                let key = rule.key(signal);
                // What had an entry before has had this signal.
                let known = self.entries.iter().any(|entry| key.is_of(entry));
                if known && !admitted.contains(&key) {
                    continue;
                }
                if self.is_young(index, rule, &key) {
                    continue;
                }
                if self.admit(signal, rule) {
                    admitted.insert(key);
                } else {
                    self.held_back.insert(index);
                    self.overflow.insert(key);
                }
            }
        }
        self.admit_young();
        !admitted.is_empty()
    }

    // Trouble that is over before its incident was admitted waits no longer.
    fn let_go(&mut self, signal: &Signal) {
        let Inputs { signals, rules, .. } = *self.inputs;
        let same = |other: &Signal| {
            other.event_type == signal.event_type
                && other.test == signal.test
                && other.namespace == signal.namespace
                && other.pod == signal.pod
        };
        // A deletion speaks of one pod; a pod that is well speaks for its name.
        let gone = matches!(signal.nature, Nature::Condition { state: StandingState::Gone, .. });
        let over = |other: &Signal| {
            same(other)
                && matches!(other.nature, Nature::Condition { .. })
                && (!gone || is_of_same_pod(&other.uid, &signal.uid))
        };
        self.held_back.retain(|index| !over(&signals[*index]));
        self.young.retain(|index, _| !over(&signals[*index]));
        if !self.held_back.iter().any(|index| same(&signals[*index])) {
            for rule in rules.listening_to(signal.event_type) {
                self.overflow.remove(&rule.key(signal));
            }
        }
    }

    // Returns false where a new entry does not fit.
    fn admit(&mut self, signal: &Signal, rule: &'a Rule) -> bool {
        let key = rule.key(signal);
        if let Some(index) = self.entries.iter().position(|entry| key.is_of(entry)) {
            match &signal.nature {
                Nature::Occurrence(occurrence) => self.step(index, &Input::Occurred(signal, occurrence)),
                Nature::Condition { state: StandingState::Holds, since } => {
                    self.step(index, &Input::Holds(signal, *since));
                }
                Nature::Condition { state: StandingState::Clear, since } => {
                    self.step(index, &Input::Clear(*since))
                }
                // Only what waits for its hold to pass, and has never happened, needs it to go on.
                Nature::Unclear => {
                    let entry = &self.entries[index];
                    let waits = entry.status == Phase::Pending && lifecycle::is_held(entry);
                    if waits && entry.seen.is_empty() {
                        self.step(index, &Input::Clear(signal.observed_at));
                    }
                }
                Nature::Condition { state: StandingState::Gone, since } => {
                    // Not the pod in trouble but the one before it under this name.
                    if is_of_same_pod(&self.entries[index].uid, &signal.uid) {
                        self.step(index, &Input::Gone(*since));
                    }
                }
            }
            return true;
        }
        match lifecycle::open(signal, &key, &self.scene_of(Some(rule))) {
            Err(suppressed) => self.effects.suppressed.push(suppressed),
            Ok(None) => {}
            Ok(Some(entry)) => {
                // In the order of arrival: what came later does not pass by what waits.
                if !self.overflow.is_empty() {
                    return false;
                }
                while !self.fits(&entry) {
                    if !self.make_room() {
                        return false;
                    }
                }
                self.effects.notices.push(Notice {
                    kind: lifecycle::NoticeKind::EventPending,
                    note: format!("{} on {} seen", entry.event_type, entry.resource_name),
                    entry: entry.clone(),
                    usage: None,
                });
                self.entries.push(entry);
            }
        }
        true
    }

    fn pass_time(&mut self) {
        for index in 0..self.entries.len() {
            let removed = self.inputs.rules.of(&self.entries[index]).is_none();
            if removed {
                self.step(index, &Input::Removed);
            }
            self.step(index, &Input::Time);
            if removed {
                // Time may have ended a call that was still awaited.
                self.step(index, &Input::Removed);
            }
        }
    }

    fn take_over(&mut self) {
        if !self.inputs.capacity.may_claim || without(Safeguard::Takeover) {
            return;
        }
        let margin = self.inputs.policy.takeover_margin;
        let claims = self.inputs.claims;
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.status != Phase::Firing {
                continue;
            }
            let orphaned = match &entry.claim {
                None => true,
                Some(claim) if claim.process == claims.process => {
                    // Begun, not under way and without an outcome: somebody turned the status back.
                    entry.reason != Some(Reason::CheckingSession)
                        && claims.begun.contains(&claim.sequence)
                        && !claims.busy.contains(&claim.sequence)
                }
                Some(claim) => {
                    claims.unmoved.get(claim).is_some_and(|unmoved| *unmoved >= claim.duration() + margin)
                }
            };
            if orphaned {
                let claim = self.new_claim();
                self.step(index, &Input::Orphaned(claim));
            }
        }
    }

    fn claim_due(&mut self) {
        let inputs = self.inputs;
        let mut left = inputs.capacity.clone();
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        // Who asks for help goes before what is only good to know.
        order.sort_by_key(|index| {
            let entry = &self.entries[*index];
            let resolved = entry.status == Phase::Resolved;
            (resolved, if resolved { entry.resolved_at } else { entry.due_at })
        });
        for index in order {
            let scene = self.scene(&self.entries[index]);
            let Some(rule) = scene.rule else { continue };
            let agent = left.agents.get_mut(&rule.agent);
            let closed_at = agent.as_ref().and_then(|agent| agent.closed_at);
            let entry = &mut self.entries[index];
            if !lifecycle::is_due(entry, closed_at, &scene) && !lifecycle::is_farewell_due(entry, &scene) {
                // The breaker's closing begins its next round.
                self.waits_for_capacity |=
                    entry.status == Phase::Pending && entry.reason == Some(Reason::AgentCallFailed);
                continue;
            }
            let Some(agent) = agent.filter(|_| left.may_claim) else {
                self.waits_for_capacity = true;
                continue;
            };
            if inputs.rules.observes {
                self.calls += 1;
                self.step(index, &Input::Observed);
                // Notified now: its trouble may be over for long.
                self.step(index, &Input::Time);
                continue;
            }
            let shares = rule.agent.shares();
            match agent.allow {
                Allow::NoneUntil(until) => {
                    let message = format!("{} fails: one call at a time tells when it is back", rule.agent);
                    lifecycle::wait(entry, Reason::CircuitOpen, Some(until), &message);
                    self.waits_for_capacity = true;
                    continue;
                }
                Allow::Probing => {
                    let message = format!("{} fails: one call at a time tells when it is back", rule.agent);
                    lifecycle::wait(entry, Reason::CircuitOpen, None, &message);
                    self.waits_for_capacity = true;
                    continue;
                }
                Allow::NotReady => {
                    let message = format!("what {} needs is missing: see the condition Stalled", rule.agent);
                    lifecycle::wait(entry, Reason::AgentNotReady, None, &message);
                    self.waits_for_capacity = true;
                    continue;
                }
                Allow::All | Allow::Probe
                    if agent.slots == 0
                        || left.slots == 0
                        || shares.iter().any(|share| left.shared.get(share) == Some(&0)) =>
                {
                    lifecycle::wait(entry, Reason::WaitingForSlot, None, "waiting for a free call slot");
                    self.waits_for_capacity = true;
                    continue;
                }
                Allow::All => {}
                Allow::Probe => agent.allow = Allow::Probing,
            }
            agent.slots -= 1;
            left.slots -= 1;
            for share in &shares {
                left.shared.entry(share.clone()).and_modify(|free| *free = free.saturating_sub(1));
            }
            let claim = self.new_claim();
            self.claimed.push((claim.clone(), rule.agent.clone()));
            self.calls += 1;
            self.step(index, &Input::Granted(claim));
        }
    }

    fn new_claim(&mut self) -> Claim {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Claim {
            process: self.inputs.claims.process.to_owned(),
            sequence,
            at: self.inputs.now,
            seconds: i64::try_from(self.inputs.policy.claim_duration.as_secs()).unwrap_or(i64::MAX).max(1),
        }
    }

    // Lets the oldest resolved entry go that nothing can need any more.
    fn make_room(&mut self) -> bool {
        let Inputs { policy, now, signals, .. } = *self.inputs;
        let candidate = (0..self.entries.len())
            .filter(|index| {
                let entry = &self.entries[*index];
                entry.status == Phase::Resolved
                    && !lifecycle::farewell_is(entry, FarewellState::Calling)
                    && !self.inputs.keeps(entry)
                    && now > needed_until(entry, self.scene(entry).rule, policy)
            })
            .min_by_key(|index| {
                // One that a signal in the inbox speaks of goes last: the signal would open it again.
                let entry = &self.entries[*index];
                (signals.iter().any(|signal| speaks_of(signal, entry)), entry.resolved_at)
            });
        // New trouble is worth more than the word that an old one is over.
        let Some(entry) = candidate.map(|index| self.entries.remove(index)) else { return false };
        lifecycle::forego_farewell(&entry, &mut self.effects);
        true
    }

    fn forget(&mut self) {
        let Inputs { policy, now, signals, .. } = *self.inputs;
        // An hour is kept for people, the newest few only; whatever may still be needed is kept anyway.
        let mut resolved: Vec<usize> =
            (0..self.entries.len()).filter(|index| self.entries[*index].status == Phase::Resolved).collect();
        resolved.sort_by_key(|index| std::cmp::Reverse(self.entries[*index].resolved_at));
        let over: BTreeSet<usize> = resolved
            .into_iter()
            .enumerate()
            .filter(|(rank, index)| {
                let entry = &self.entries[*index];
                let needed = now <= needed_until(entry, self.scene(entry).rule, policy)
                    || is_farewell_open(entry)
                    || self.inputs.keeps(entry)
                    || self.held_back.iter().any(|index| speaks_of(&signals[*index], entry));
                let old = entry.resolved_at.is_some_and(|at| now > at + policy.retention);
                !needed && (old || *rank >= policy.keep_resolved)
            })
            .map(|(_, index)| index)
            .collect();
        let mut index = 0;
        self.entries.retain(|_| {
            index += 1;
            !over.contains(&(index - 1))
        });
        self.trim();
    }

    // What has been admitted can grow: each is counted as what it can always be cut down to.
    fn fits(&self, entry: &ActiveEvent) -> bool {
        let policy = self.inputs.policy;
        if self.entries.is_empty() || without(Safeguard::Bound) {
            return true;
        }
        // Fewer places than agents of one kind of trouble would never let all of them hear of it.
        self.entries.len() < policy.max_entries.max(self.inputs.rules.configurations.len())
            && self.entries.iter().chain([entry]).map(least_size).sum::<usize>() <= policy.max_bytes
    }

    // Keeps the list within its bytes: the oldest answers go first, then the longest words.
    fn trim(&mut self) {
        let mut size: usize = self.entries.iter().map(size).sum();
        let mut oldest: Vec<usize> = (0..self.entries.len()).collect();
        oldest.sort_by_key(|index| self.entries[*index].last_seen);
        for cut in [forget_answer, shorten_words, forget_marks, forget_words] {
            for index in &oldest {
                if size <= self.inputs.policy.max_bytes {
                    return;
                }
                let entry = &mut self.entries[*index];
                size -= self::size(entry);
                cut(entry);
                size += self::size(entry);
            }
        }
    }

    fn finish(self) -> Plan {
        let Inputs { rules, policy, now, .. } = *self.inputs;
        let mut status = HookStatus { active_events: self.entries, ..HookStatus::default() };
        status.calls_per_day = days_of_calls(&self.inputs.status.calls_per_day, self.calls, now);
        summary::fill(&mut status, self.inputs, self.overflow.len());
        let urgency = urgency(self.inputs.status, &status, self.next_sequence != self.inputs.claims.next);
        // What waits for a place as well does not wait for time.
        let young = self.young.iter().filter(|(index, _)| {
            let signal = &self.inputs.signals[**index];
            let mut keys = rules.listening_to(signal.event_type).map(|rule| rule.key(signal));
            keys.any(|key| !self.overflow.contains(&key))
        });
        let young = young.map(|(_, until)| *until);
        let next_wake = status.active_events.iter().filter_map(|entry| {
            let rule = rules.of(entry);
            let scene = self.inputs.scene(rule);
            match entry.status {
                Phase::Resolved => {
                    let needed = needed_until(entry, rule, policy) + MILLISECOND;
                    let forgotten =
                        entry.resolved_at.map(|at| needed.max(at + policy.retention + MILLISECOND));
                    // Its place is wanted as soon as it can go.
                    let calling = lifecycle::farewell_is(entry, FarewellState::Calling);
                    let stays = self.inputs.keeps(entry);
                    let place = (!self.held_back.is_empty() && !calling && !stays).then_some(needed);
                    let forgotten = forgotten.filter(|_| !is_farewell_open(entry) && !stays);
                    let farewell = lifecycle::wake(entry, &scene);
                    place.into_iter().chain(forgotten).chain(farewell).filter(|at| *at > now).min()
                }
                Phase::Firing if self.inputs.is_foreign(entry) => {
                    // The next lookup is for the process that holds the claim.
                    let theirs = ActiveEvent { next_attempt_at: None, ..entry.clone() };
                    lifecycle::wake(&theirs, &scene).into_iter().chain(self.inputs.takeover_at(entry)).min()
                }
                Phase::Firing => lifecycle::wake(entry, &scene),
                Phase::Pending | Phase::Notified => lifecycle::wake(entry, &scene),
            }
        });
        let next_wake = next_wake.chain(young).min().map(|at| at.max(now + MILLISECOND));
        Plan {
            urgency,
            claimed: self.claimed,
            next_sequence: self.next_sequence,
            notices: self.effects.notices,
            suppressed: self.effects.suppressed,
            held_back: self.held_back,
            young: self.young.into_keys().collect(),
            next_wake,
            // The status says that an agent cannot be reached: it must hear when that is over.
            waits_for_capacity: self.waits_for_capacity
                || self.inputs.capacity.agents.values().any(|agent| agent.allow != Allow::All),
            status,
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

impl<'a> Inputs<'a> {
    fn scene(&self, rule: Option<&'a Rule>) -> Scene<'a> {
        self.rules.scene(rule, self.policy, self.hook_uid, self.now)
    }

    // Forgotten, the same trouble would be a new incident; where nobody listens to it any more, it would not.
    fn keeps(&self, entry: &ActiveEvent) -> bool {
        lifecycle::is_dismissed(entry) && self.rules.of(entry).is_some()
    }

    fn is_foreign(&self, entry: &ActiveEvent) -> bool {
        entry.claim.as_ref().is_some_and(|claim| claim.process != self.claims.process)
    }

    // When a foreign claim can be taken over, if it does not move.
    fn takeover_at(&self, entry: &ActiveEvent) -> Option<DateTime<Utc>> {
        let claim = entry.claim.as_ref().filter(|_| self.capacity.may_claim)?;
        let unmoved = self.claims.unmoved.get(claim).copied().unwrap_or_default();
        let left = (claim.duration() + self.policy.takeover_margin).saturating_sub(unmoved);
        Some(self.now + left)
    }
}

// Until when a resolved entry decides what an occurrence means: a replay, or inside its window.
fn needed_until(entry: &ActiveEvent, rule: Option<&Rule>, policy: &Policy) -> DateTime<Utc> {
    let repeat = rule.map_or(policy.repeat_interval, |rule| rule.repeat_interval);
    // A source whose clock is ahead replays what is fresh for longer, up to a point.
    let ahead = signal::newest(&entry.seen).unwrap_or(entry.last_seen);
    let last = ahead.clamp(entry.last_seen, entry.last_seen + policy.stale_after);
    let fresh = (last + policy.stale_after).max(lifecycle::silent_until(entry).unwrap_or(last));
    entry.last_notified_at.map_or(fresh, |at| fresh.max(at + repeat))
}

fn is_farewell_open(entry: &ActiveEvent) -> bool {
    [FarewellState::Due, FarewellState::Calling].iter().any(|state| lifecycle::farewell_is(entry, *state))
}

// As far as anybody knows: not every source tells the UID.
fn is_of_same_pod(one: &str, other: &str) -> bool {
    one.is_empty() || other.is_empty() || one == other
}

fn speaks_of(signal: &Signal, entry: &ActiveEvent) -> bool {
    signal.event_type == entry.event_type
        && signal.test == entry.test
        && signal.pod == entry.resource_name
        && signal.namespace == entry.namespace
}

fn forget_answer(entry: &mut ActiveEvent) {
    entry.answer = None;
    entry.session_url = None;
}

fn shorten_words(entry: &mut ActiveEvent) {
    for text in [&mut entry.event_message, &mut entry.message].into_iter().chain(&mut entry.last_error) {
        *text = lifecycle::excerpt_of(text, SHORT);
    }
}

// What one mark covers is at most too much, never too little: an occurrence already folded in stays so.
fn forget_marks(entry: &mut ActiveEvent) {
    if entry.seen.len() > 1 {
        let until = signal::newest(&entry.seen).unwrap_or(entry.last_seen).max(entry.last_seen);
        entry.seen = vec![everything_until(until)];
    }
}

// The last resort: what decides stays, all that is for people goes.
fn forget_words(entry: &mut ActiveEvent) {
    for text in [&mut entry.event_message, &mut entry.message, &mut entry.event_name, &mut entry.event_reason]
    {
        text.clear();
    }
    // That an attempt failed stays known.
    entry.last_error.iter_mut().for_each(String::clear);
    entry.containers.truncate(1);
    entry.told = None;
    entry.protocol = None;
    entry.answered_at = None;
    entry.tokens = None;
    entry.instruction.iter_mut().for_each(|instruction| instruction.by.clear());
}

const SHORT: usize = 120;

// An upper estimate of an entry's bytes in JSON; a test holds it against the real thing.
fn size(entry: &ActiveEvent) -> usize {
    let texts = [&entry.message, &entry.event_message, &entry.event_name, &entry.event_reason];
    let options = [&entry.answer, &entry.last_error];
    let lists = entry.seen.iter().skip(1).chain(entry.containers.iter().skip(1));
    FIXED_SIZE
        + variable_size(entry)
        + texts.into_iter().map(|text| json_len(text)).sum::<usize>()
        + options.into_iter().flatten().map(|text| json_len(text)).sum::<usize>()
        + lists.map(|text| json_len(text) + 3).sum::<usize>()
        + entry.told.as_ref().map_or(0, |told| TOLD_SIZE + json_len(&told.uid) + json_len(&told.reason))
        + entry.session_url.as_ref().map_or(0, |url| SESSION_URL_SIZE + json_len(url))
        + entry.protocol.map_or(0, |_| PROTOCOL_SIZE)
        + entry.answered_at.map_or(0, |_| ANSWERED_SIZE)
        + entry.tokens.map_or(0, |_| TOKENS_SIZE)
        + entry.instruction.as_ref().map_or(0, |instruction| json_len(&instruction.by))
}

// The size that an entry can always be cut down to, whatever befalls it.
fn least_size(entry: &ActiveEvent) -> usize {
    FIXED_SIZE + variable_size(entry)
}

// What never goes. Room is kept for what may come later.
fn variable_size(entry: &ActiveEvent) -> usize {
    let texts = [&entry.id, &entry.namespace, &entry.resource_name, &entry.agent];
    let process = entry.claim.as_ref().map(|claim| &claim.process);
    let later = [
        (Some(&entry.uid), UUID_LEN),
        (entry.task_id.as_ref(), lifecycle::MAX_TASK_ID),
        (entry.containers.first(), 63),
        (entry.seen.first(), 50),
    ];
    texts.into_iter().chain(&entry.session_id).chain(process).map(|text| json_len(text)).sum::<usize>()
        + INSTRUCTION_SIZE
        + entry.test.as_ref().map_or(0, |name| TEST_SIZE + json_len(name))
        + later.iter().map(|(text, room)| text.map_or(0, |text| json_len(text)).max(*room)).sum::<usize>()
}

const UUID_LEN: usize = 36;

// Names of all fields, and all that has a length of its own: times, numbers, words of khook. What is only observed has
// no claim, which is longer.
const FIXED_SIZE: usize = 930;

// The same of what a person has said or may say, which stays: forgotten, it would be done again. And of a test's name.
const INSTRUCTION_SIZE: usize = 130;
const TEST_SIZE: usize = 10;

// The same of what is remembered of a notification.
const TOLD_SIZE: usize = 95;

// The same of a link, of the dialect, of the time of an answer, and of what an episode has cost.
const SESSION_URL_SIZE: usize = 16;
const PROTOCOL_SIZE: usize = 18;
const ANSWERED_SIZE: usize = 42;
const TOKENS_SIZE: usize = 104;

// Bytes of a text in JSON, without its quotes.
fn json_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

/// Days that are kept.
const DAYS: usize = 7;

fn days_of_calls(old: &[DayOfCalls], calls: i64, now: DateTime<Utc>) -> Vec<DayOfCalls> {
    let mut days = old.to_vec();
    if calls > 0 {
        let day = now.date_naive();
        match days.iter_mut().find(|known| known.day == day) {
            Some(known) => known.calls = known.calls.saturating_add(calls),
            None => days.push(DayOfCalls { day, calls }),
        }
        days.sort_by_key(|day| day.day);
        days.drain(..days.len().saturating_sub(DAYS));
    }
    days
}

fn urgency(old: &HookStatus, new: &HookStatus, claims: bool) -> Urgency {
    if claims {
        return Urgency::Claim;
    }
    if summary::same(old, new) {
        return Urgency::None;
    }
    // The usual case first, without a copy of either.
    let moved = |(a, b): (&ActiveEvent, &ActiveEvent)| a.status != b.status || a.message != b.message;
    if old.active_events.len() != new.active_events.len()
        || old.active_events.iter().zip(&new.active_events).any(moved)
    {
        return Urgency::Soon;
    }
    let quiet = |status: &HookStatus| {
        let mut status = summary::comparable(status);
        // Which trouble is the newest follows from it.
        (status.message, status.last_event, status.last_resource) = (None, None, None);
        for entry in &mut status.active_events {
            entry.last_seen = entry.first_seen;
            entry.count = 0;
            entry.seen.clear();
            entry.event_name.clear();
            entry.event_reason.clear();
            entry.event_message.clear();
        }
        status
    };
    if quiet(old) == quiet(new) { Urgency::Quiet } else { Urgency::Soon }
}

/// Takes over what is in the status: also what the Go khook left there, which has no ids and no agent, and
/// what somebody's editor made of it.
fn adopt(inputs: &Inputs) -> Vec<ActiveEvent> {
    let mut entries: Vec<ActiveEvent> = Vec::with_capacity(inputs.status.active_events.len());
    let mut known: BTreeSet<Key> = BTreeSet::new();
    for entry in &inputs.status.active_events {
        let mut entry = entry.clone();
        if entry.namespace.is_empty() {
            inputs.namespace.clone_into(&mut entry.namespace);
        }
        bring_into_range(&mut entry, inputs.now);
        if entry.id.is_empty() {
            let rules = inputs.rules.configurations.iter();
            for rule in rules.filter(|rule| rule.event_type == entry.event_type) {
                let key = rule.key_of(&entry.namespace, &entry.resource_name);
                if known.insert(key.clone()) {
                    entries.push(adopt_from_go(&entry, key, inputs.hook_uid));
                }
            }
            continue;
        }
        let key = Key::of(&entry);
        // As it is already, unless somebody has copied an entry: two of one id would hear each other's outcomes.
        entry.id = key.entry_id(inputs.hook_uid);
        if entry.session_id.is_none() {
            entry.session_id = Some(key.session_id(inputs.hook_uid, entry.first_seen));
        }
        // Two entries of one incident would be two calls.
        if known.insert(key) {
            entries.push(entry);
        }
    }
    entries
}

// Go's `firing` meant that the agent had been called. It is not called again.
fn adopt_from_go(entry: &ActiveEvent, key: Key, hook_uid: &str) -> ActiveEvent {
    let resolved = entry.status == Phase::Resolved;
    ActiveEvent {
        id: key.entry_id(hook_uid),
        session_id: Some(key.session_id(hook_uid, entry.first_seen)),
        agent: key.agent,
        status: if resolved { Phase::Resolved } else { Phase::Notified },
        reason: Some(if resolved { Reason::Quiet } else { Reason::AgentCalled }),
        message: "asked by an earlier version of khook".into(),
        window: 1,
        count: entry.count.max(1),
        notified_at: Some(entry.last_seen),
        last_notified_at: Some(entry.last_seen),
        resolved_at: resolved.then_some(entry.last_seen),
        seen: vec![everything_until(entry.last_seen)],
        ..entry.clone()
    }
}

// Another writer's times may be such that no span can be added to them, or that nothing would ever move on.
fn bring_into_range(entry: &mut ActiveEvent, now: DateTime<Utc>) {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
    let range = DateTime::UNIX_EPOCH..=now + YEAR;
    let mend = |at: &mut DateTime<Utc>| {
        if !range.contains(at) {
            *at = now;
        }
    };
    [&mut entry.first_seen, &mut entry.last_seen].into_iter().for_each(mend);
    let others = [
        &mut entry.notified_at,
        &mut entry.last_notified_at,
        &mut entry.due_at,
        &mut entry.next_attempt_at,
        &mut entry.resolved_at,
    ];
    others.into_iter().flatten().for_each(mend);
    entry.claim.iter_mut().map(|claim| &mut claim.at).for_each(mend);
    entry.condition.iter_mut().map(|condition| &mut condition.since).for_each(mend);
    let said = entry.instruction.iter_mut();
    said.flat_map(|said| [Some(&mut said.at), said.until.as_mut()]).flatten().for_each(mend);
    if matches!(entry.status, Phase::Pending | Phase::Firing) {
        entry.due_at = entry.due_at.or(Some(entry.first_seen));
    }
    if entry.status == Phase::Resolved && entry.resolved_at.is_none() {
        entry.resolved_at = Some(entry.last_seen);
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod tests;
