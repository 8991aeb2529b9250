//! The pool performs calls: so many at once, so many per agent, behind one breaker per agent.
//!
//! A slot is taken before the claim is written and given back as soon as the call has ended, whatever
//! becomes of its outcome. Following a task holds no slot.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    incident::{
        breaker::{Allow, Breaker},
        outcome::{AgentName, DIRECT, Reply},
        plan::{AgentCapacity, Capacity},
        policy::Policy,
    },
    metrics::{BreakerState, Metrics},
};

/// Slots and breakers, shared by all Hooks. `W` names who waits for a slot.
pub struct Pool<W> {
    state: Mutex<State<W>>,
    limits: Limits,
    policy: Policy,
    metrics: Arc<Metrics>,
    wake: Box<dyn Fn(W) + Send + Sync>,
    now: fn() -> DateTime<Utc>,
}

/// How many calls there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Over all agents.
    pub total: usize,
    /// To one agent.
    pub per_agent: usize,
}

impl Limits {
    /// Those asked directly have a half between them, and each of their hosts what one agent has: so no author of
    /// a Hook can take all there are.
    fn of_share(&self, share: &str) -> usize {
        if share == DIRECT { (self.total / 2).max(1) } else { self.per_agent }
    }
}

struct State<W> {
    used: usize,
    /// Slots in use of those that agents share.
    shared: HashMap<String, usize>,
    agents: HashMap<AgentName, Agent>,
    waiting: HashMap<W, Vec<AgentName>>,
}

#[derive(Default)]
struct Agent {
    used: usize,
    breaker: Breaker,
}

impl<W: std::hash::Hash + Eq> Pool<W> {
    /// A pool that wakes those who wait with `wake`, and reads the time from `now`.
    pub fn new(
        limits: Limits,
        policy: Policy,
        metrics: Arc<Metrics>,
        wake: impl Fn(W) + Send + Sync + 'static,
        now: fn() -> DateTime<Utc>,
    ) -> Arc<Self> {
        let state =
            State { used: 0, shared: HashMap::new(), agents: HashMap::new(), waiting: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), limits, policy, metrics, wake: Box::new(wake), now })
    }

    /// What these agents may be asked now.
    pub fn capacity<'a>(&self, agents: impl Iterator<Item = &'a AgentName>, now: DateTime<Utc>) -> Capacity {
        let state = self.state();
        let per_agent = |agent: &AgentName| match state.agents.get(agent) {
            Some(known) => AgentCapacity {
                slots: self.limits.per_agent.saturating_sub(known.used),
                allow: known.breaker.allow(now),
                closed_at: known.breaker.closed_at(),
            },
            None => AgentCapacity { slots: self.limits.per_agent, allow: Allow::All, closed_at: None },
        };
        let agents: BTreeMap<AgentName, AgentCapacity> =
            agents.map(|agent| (agent.clone(), per_agent(agent))).collect();
        let free = |share: String| {
            let used = state.shared.get(&share).copied().unwrap_or_default();
            let free = self.limits.of_share(&share).saturating_sub(used);
            (share, free)
        };
        Capacity {
            may_claim: true,
            slots: self.limits.total.saturating_sub(state.used),
            shared: agents.keys().flat_map(AgentName::shares).map(free).collect(),
            agents,
        }
    }

    /// Takes a slot for each call, in order; none at all unless every one can be had.
    pub fn reserve<'a>(
        self: &Arc<Self>,
        agents: impl Iterator<Item = &'a AgentName>,
        now: DateTime<Utc>,
    ) -> Option<Vec<Slot<W>>> {
        let mut slots = Vec::new();
        for agent in agents {
            // The slots taken so far give themselves back.
            slots.push(self.take(agent, now, false)?);
        }
        Some(slots)
    }

    /// Takes a slot even if there is none: for a claim that is committed already.
    pub fn insist(self: &Arc<Self>, agent: &AgentName, now: DateTime<Utc>) -> Option<Slot<W>> {
        self.take(agent, now, true)
    }

    fn take(self: &Arc<Self>, agent: &AgentName, now: DateTime<Utc>, insist: bool) -> Option<Slot<W>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let shares = agent.shares();
        let is_used_up =
            |share: &String| state.shared.get(share).is_some_and(|used| *used >= self.limits.of_share(share));
        let full = state.used >= self.limits.total || shares.iter().any(is_used_up);
        let known = state.agents.entry(agent.clone()).or_default();
        let allowed = matches!(known.breaker.allow(now), Allow::All | Allow::Probe);
        if !insist && (full || known.used >= self.limits.per_agent || !allowed) {
            return None;
        }
        let probe = known.breaker.begin(now);
        known.used += 1;
        self.show(agent, known);
        state.used += 1;
        for share in shares {
            *state.shared.entry(share).or_default() += 1;
        }
        Some(Slot { pool: self.clone(), agent: agent.clone(), probe, verdict: None })
    }

    /// Wakes `who` when one of these agents may have a slot or a closed breaker for it; once.
    pub fn wait<'a>(&self, who: W, agents: impl Iterator<Item = &'a AgentName>) {
        self.state().waiting.insert(who, agents.cloned().collect());
    }

    fn give_back(&self, slot: &Slot<W>) {
        let now = (self.now)();
        let mut guard = self.state();
        let state = &mut *guard;
        let was_full = state.used >= self.limits.total;
        state.used = state.used.saturating_sub(1);
        let shares = slot.agent.shares();
        for share in &shares {
            if let Some(used) = state.shared.get_mut(share) {
                *used = used.saturating_sub(1);
                if *used == 0 {
                    state.shared.remove(share);
                }
            }
        }
        let gains = |agent: &AgentName| {
            *agent == slot.agent || agent.shares().iter().any(|share| shares.contains(share))
        };
        if let Some(known) = state.agents.get_mut(&slot.agent) {
            known.used = known.used.saturating_sub(1);
            match slot.verdict {
                Some(Verdict::Well) => known.breaker.success(now),
                Some(Verdict::Failing) => known.breaker.failure(now, &self.policy),
                None if slot.probe => known.breaker.abandon(now),
                None => {}
            }
            self.show(&slot.agent, known);
        }
        // Who waits for another agent has nothing to gain, unless there was no slot for anybody.
        let waiting: Vec<W> = (state.waiting)
            .extract_if(|_, agents| was_full || agents.iter().any(gains))
            .map(|(who, _)| who)
            .collect();
        drop(guard);
        waiting.into_iter().for_each(|who| (self.wake)(who));
    }

    fn show(&self, agent: &AgentName, known: &Agent) {
        let state = match known.breaker.level() {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        };
        self.metrics.breaker(&agent.label(), state);
    }

    // Nothing here can leave the state half changed: a poisoned lock is as good as another.
    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock()
    }
}

/// The right to one call. Given back when dropped.
pub struct Slot<W: std::hash::Hash + Eq> {
    pool: Arc<Pool<W>>,
    agent: AgentName,
    probe: bool,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy)]
enum Verdict {
    Well,
    Failing,
}

impl<W: std::hash::Hash + Eq> Slot<W> {
    /// The call ended like this: tells the breaker.
    pub fn ended(mut self, reply: &Reply) {
        self.verdict = match reply {
            Reply::Accepted { .. } => Some(Verdict::Well),
            // Busy is not ill.
            Reply::NotRun { throttled: true, .. } => None,
            // A message nobody would take says nothing of the agent.
            Reply::Permanent { .. } => None,
            Reply::NotRun { .. } | Reply::Unknown { .. } => Some(Verdict::Failing),
        };
    }
}

impl<W: std::hash::Hash + Eq> Drop for Slot<W> {
    fn drop(&mut self) {
        let pool = self.pool.clone();
        pool.give_back(self);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const NOW: fn() -> DateTime<Utc> = || DateTime::UNIX_EPOCH;

    fn agent(name: &str) -> AgentName {
        AgentName::kagent("kagent", name)
    }

    fn pool(total: usize, per_agent: usize) -> (Arc<Pool<&'static str>>, mpsc::Receiver<&'static str>) {
        let (sender, woken) = mpsc::channel();
        let policy = Policy { breaker_threshold: 2, ..Policy::default() };
        let wake = move |who| sender.send(who).unwrap_or_default();
        (Pool::new(Limits { total, per_agent }, policy, Arc::new(Metrics::new()), wake, NOW), woken)
    }

    fn failed() -> Reply {
        Reply::NotRun { error: "no".into(), retry_after: None, throttled: false }
    }

    #[test]
    fn slots_are_bounded_over_all_and_per_agent_and_come_back() {
        let (pool, _) = pool(3, 2);
        let (a, b) = (agent("a"), agent("b"));
        let two = pool.reserve([&a, &a].into_iter(), NOW()).expect("two of a");
        assert!(pool.reserve([&a].into_iter(), NOW()).is_none());
        assert!(pool.reserve([&b, &b].into_iter(), NOW()).is_none(), "three in all");
        assert_eq!(pool.capacity([&b].into_iter(), NOW()).slots, 1, "a failed reservation takes nothing");
        drop(two);
        assert_eq!(pool.capacity([&a].into_iter(), NOW()).slots, 3);
        assert_eq!(pool.capacity([&a].into_iter(), NOW()).agents[&a].slots, 2);
    }

    #[test]
    fn direct_agents_share_the_slots_of_their_host_and_half_of_all() {
        let direct = |url: &str| AgentName::Direct { namespace: "shop".into(), url: url.into() };
        let (pool, woken) = pool(6, 2);
        let (one, two) = (direct("http://a/1"), direct("http://a/2"));
        let slots = pool.reserve([&one, &two].into_iter(), NOW()).expect("two of a host");
        assert!(
            pool.reserve([&direct("http://a/3")].into_iter(), NOW()).is_none(),
            "the path is anybody's choice"
        );
        let capacity = pool.capacity([&one, &direct("http://b/")].into_iter(), NOW());
        assert_eq!(
            (capacity.shared["http://a"], capacity.shared["http://b"], capacity.shared[DIRECT]),
            (0, 2, 1)
        );
        let third = pool.reserve([&direct("http://b/")].into_iter(), NOW()).expect("a third");
        assert!(pool.reserve([&direct("http://c/")].into_iter(), NOW()).is_none(), "three of six");
        assert!(
            pool.reserve([&agent("a"), &agent("b")].into_iter(), NOW()).is_some(),
            "kagent's have theirs"
        );
        pool.wait("shop/hook", [&direct("http://a/3")].into_iter());
        drop(slots);
        assert_eq!(woken.try_recv(), Ok("shop/hook"));
        drop(third);
        assert!(pool.state().shared.is_empty());
    }

    #[test]
    fn a_slot_given_back_wakes_those_who_wait_once() {
        let (pool, woken) = pool(1, 1);
        let slot = pool.reserve([&agent("a")].into_iter(), NOW()).expect("one");
        pool.wait("shop/hook", [&agent("a")].into_iter());
        drop(slot);
        assert_eq!(woken.try_recv(), Ok("shop/hook"));
        drop(pool.reserve([&agent("a")].into_iter(), NOW()));
        assert!(woken.try_recv().is_err());
    }

    #[test]
    fn who_waits_for_another_agent_is_woken_only_where_no_slot_was_left_for_anybody() {
        let (pool, woken) = pool(2, 1);
        let (a, b) = (agent("a"), agent("b"));
        let [of_a, of_b] = [&a, &b].map(|agent| pool.reserve([agent].into_iter(), NOW()).expect("a slot"));
        pool.wait("shop/c", [&agent("c")].into_iter());
        drop(of_a);
        assert_eq!(woken.try_recv(), Ok("shop/c"), "all were taken");
        pool.wait("shop/c", [&agent("c")].into_iter());
        drop(of_b);
        assert!(woken.try_recv().is_err(), "c had a slot before");
    }

    #[test]
    fn failures_open_the_breaker_of_their_agent_only() {
        let (pool, _) = pool(9, 9);
        let (a, b) = (agent("a"), agent("b"));
        for _ in 0..2 {
            pool.reserve([&a].into_iter(), NOW()).expect("a slot").remove(0).ended(&failed());
        }
        let capacity = pool.capacity([&a, &b].into_iter(), NOW());
        assert!(matches!(capacity.agents[&a].allow, Allow::NoneUntil(_)));
        assert_eq!(capacity.agents[&b].allow, Allow::All);
        assert!(pool.reserve([&a].into_iter(), NOW()).is_none());
        assert!(pool.insist(&a, NOW()).is_some(), "a committed claim goes through");
    }

    #[test]
    fn busy_is_no_mark_against_an_agent() {
        let (pool, _) = pool(9, 9);
        let busy = Reply::NotRun { error: "429".into(), retry_after: None, throttled: true };
        for _ in 0..5 {
            pool.reserve([&agent("a")].into_iter(), NOW()).expect("a slot").remove(0).ended(&busy);
        }
        assert_eq!(pool.capacity([&agent("a")].into_iter(), NOW()).agents[&agent("a")].allow, Allow::All);
    }
}
