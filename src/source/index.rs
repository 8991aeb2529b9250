//! An index is what khook remembers of the cluster's pods: which there are, and all about those in trouble.
//!
//! It decides what an Event is worth. About a pod that is known Events are words and evidence, the pod
//! is the truth; about one that has gone they are old news; only about a pod nobody knows is the Event
//! itself what has happened.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Duration,
};

use chrono::{DateTime, Utc};
use kube::runtime::watcher;
use parking_lot::{Mutex, MutexGuard};

use super::{
    Scope,
    diagnosis::{self, Case, Evidence, Streak, Words},
    pods::Pod,
};
use crate::{
    hook::{ActiveEvent, EventType, StandingState},
    incident::signal::{Cause, Nature, Signal},
};

/// Namespace and name of a pod.
pub type Name = (String, String);

/// One index for each place that is watched: one that cannot be listed holds up no other.
pub struct Indexes {
    everywhere: Mutex<Index>,
    namespaces: HashMap<String, Mutex<Index>>,
}

impl Indexes {
    /// Of what is watched. Ends of containers older than `stale_after` are nobody's news.
    pub fn new(scopes: &[Scope], stale_after: Duration) -> Self {
        let namespaces = scopes.iter().filter_map(|scope| match scope {
            Scope::Everywhere => None,
            Scope::Namespace(namespace) => Some((namespace.clone(), Mutex::new(Index::new(stale_after)))),
        });
        Self { everywhere: Mutex::new(Index::new(stale_after)), namespaces: namespaces.collect() }
    }

    /// What is remembered of the pods of a namespace.
    pub fn of(&self, namespace: &str) -> MutexGuard<'_, Index> {
        self.namespaces.get(namespace).unwrap_or(&self.everywhere).lock()
    }

    /// What is remembered of what is watched there.
    pub fn at(&self, scope: &Scope) -> MutexGuard<'_, Index> {
        match scope {
            Scope::Everywhere => self.of(""),
            Scope::Namespace(namespace) => self.of(namespace),
        }
    }
}

/// What is remembered of pods.
pub struct Index {
    stale_after: Duration,
    hasher: RandomState,
    /// Every pod there is. Of a healthy one no more is kept than this.
    known: HashMap<u64, Known>,
    /// The list that is being read.
    listing: Option<HashMap<u64, Known>>,
    /// How often a list has been read to its end.
    lists: u64,
    troubled: HashMap<Name, Record>,
    evidence: HashMap<Name, Evidence>,
    /// By UID, pods that were seen to go, and when: their late Events raise nothing.
    gone: HashMap<u64, DateTime<Utc>>,
}

/// What is remembered of every pod.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// All of it is as it is since then.
    Since(DateTime<Utc>),
    /// Somebody has deleted it.
    Leaving,
}

/// What is remembered of a pod in trouble.
struct Record {
    pod: Pod,
    stuck_since: Option<DateTime<Utc>>,
    end_seen_at: DateTime<Utc>,
    /// When it is to be looked at again without news.
    look_again: DateTime<Utc>,
    /// The trouble is over: kept only to be told so.
    well: bool,
}

/// What is to be told, or asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// There is news of this pod: see [`Index::signals`].
    Changed(Name),
    /// This pod is gone, or going.
    Gone {
        /// As it was last seen.
        pod: Box<Pod>,
        /// Since when.
        at: DateTime<Utc>,
        /// Whether it was in trouble.
        troubled: bool,
    },
    /// All pods have been listed: what the statuses say is to be compared with them.
    Listed,
    /// This pod, not kept so far, is to be fetched.
    Fetch(Name),
}

/// What an Event about a pod is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Words: the pod itself tells.
    Words,
    /// Nothing: the pod has been seen to go.
    Nothing,
    /// All there is: nobody knows the pod.
    Everything,
}

/// Of more Events about one pod than these the newest are kept.
const MAX_EVIDENCE: usize = 8;

impl Index {
    /// Knows nothing yet. Ends of containers older than `stale_after` are nobody's news.
    pub fn new(stale_after: Duration) -> Self {
        Self {
            stale_after,
            hasher: RandomState::new(),
            known: HashMap::new(),
            listing: None,
            lists: 0,
            troubled: HashMap::new(),
            evidence: HashMap::new(),
            gone: HashMap::new(),
        }
    }

    /// How often all pods have been listed. Before the first time nothing can be compared.
    pub fn lists(&self) -> u64 {
        self.lists
    }

    /// How many pods are known, and how many of them are in trouble.
    pub fn len(&self) -> (usize, usize) {
        (self.known.len(), self.troubled.len())
    }

    /// Takes in what the watch says.
    pub fn observe(&mut self, event: watcher::Event<Pod>, now: DateTime<Utc>) -> Option<Report> {
        match event {
            watcher::Event::Init => {
                self.listing = Some(HashMap::new());
                None
            }
            watcher::Event::InitApply(pod) => self.apply(pod, true, now),
            watcher::Event::InitDone => {
                if let Some(listed) = self.listing.take() {
                    self.known = listed;
                }
                let (known, hasher, gone) = (&self.known, &self.hasher, &mut self.gone);
                self.troubled.retain(|name, record| {
                    let there = known.contains_key(&hasher.hash_one(name));
                    if !there {
                        gone.insert(hasher.hash_one(record.pod.uid()), now);
                    }
                    there
                });
                self.lists += 1;
                Some(Report::Listed)
            }
            watcher::Event::Apply(pod) => self.see(pod, now),
            watcher::Event::Delete(pod) => {
                let name = name(&pod);
                self.known.remove(&self.hasher.hash_one(&name));
                self.go(pod, &name, now)
            }
        }
    }

    /// Takes in a pod as it is now, whoever brought it.
    pub fn see(&mut self, pod: Pod, now: DateTime<Utc>) -> Option<Report> {
        self.apply(pod, false, now)
    }

    fn apply(&mut self, pod: Pod, listed: bool, now: DateTime<Utc>) -> Option<Report> {
        let name = name(&pod);
        let key = self.hasher.hash_one(&name);
        let leaving = pod.deleted_at().is_some();
        if !leaving && self.gone.contains_key(&self.hasher.hash_one(pod.uid())) {
            // Asked for before it went, answered after.
            return None;
        }
        let known = if leaving { Known::Leaving } else { Known::Since(diagnosis::well_since(&pod)) };
        self.known.insert(key, known);
        if let Some(listing) = &mut self.listing {
            listing.insert(key, known);
        }
        if leaving {
            return self.go(pod, &name, now);
        }
        let old = self.troubled.remove(&name);
        if let Some(old) = &old
            && old.pod.uid() != pod.uid()
        {
            self.evidence.remove(&name);
        }
        let same = old.as_ref().filter(|old| old.pod.uid() == pod.uid());
        let empty = Evidence::default();
        let is_stuck = |pod: &Pod| {
            let case = Case { pod, evidence: &empty, stuck_since: None, end_seen_at: now, now };
            diagnosis::is_stuck(case)
        };
        let stuck_since = match same {
            Some(old) if is_stuck(&old.pod) => old.stuck_since,
            // Seen to begin: a state says nothing of its age.
            _ => (!listed && is_stuck(&pod)).then_some(now),
        };
        let ends =
            |pod: &Pod| pod.containers().filter_map(|(_, _, s)| s.newest_end().map(|(_, n)| n)).sum::<i64>();
        let end_seen_at = same.filter(|old| ends(&old.pod) == ends(&pod)).map_or(now, |old| old.end_seen_at);
        let news = same.is_none_or(|old| !alike(&old.pod, &pod));
        let was_troubled = old.is_some();
        let record = Record { pod, stuck_since, end_seen_at, look_again: now, well: false };
        if !self.keep(&name, record, now) && !was_troubled {
            self.troubled.remove(&name);
            return None;
        }
        news.then_some(Report::Changed(name))
    }

    // Keeps a record, and says whether there is trouble, or may be.
    fn keep(&mut self, name: &Name, mut record: Record, now: DateTime<Utc>) -> bool {
        let empty = Evidence::default();
        let evidence = self.evidence.get(name).unwrap_or(&empty);
        let case = record.case(evidence, now);
        let outlook = diagnosis::outlook(case, self.stale_after);
        let troubled = outlook.in_trouble || !outlook.settled;
        let undecided = outlook.undecided.then(|| record.end_seen_at + diagnosis::PATIENCE);
        let streaks = evidence.liveness.iter().map(|streak| streak.over_at() + MOMENT);
        // Ends become stale.
        let later = now + self.stale_after;
        record.look_again =
            undecided.into_iter().chain(streaks).filter(|at| *at > now).fold(later, DateTime::min);
        record.well = !troubled;
        self.troubled.insert(name.clone(), record);
        troubled
    }

    fn go(&mut self, pod: Pod, name: &Name, now: DateTime<Utc>) -> Option<Report> {
        let troubled = self.troubled.remove(name).is_some();
        self.evidence.remove(name);
        let first = self.gone.insert(self.hasher.hash_one(pod.uid()), now).is_none();
        let at = pod.deleted_at().unwrap_or(now).min(now);
        first.then(|| Report::Gone { pod: Box::new(pod), at, troubled })
    }

    /// What an Event about a pod is worth.
    pub fn worth(&self, signal: &Signal) -> Worth {
        let name = (signal.namespace.clone(), signal.pod.clone());
        if !signal.uid.is_empty() && self.gone.contains_key(&self.hasher.hash_one(&signal.uid)) {
            Worth::Nothing
        } else if self.known.contains_key(&self.hasher.hash_one(&name)) {
            Worth::Words
        } else {
            Worth::Everything
        }
    }

    /// Takes in what a Warning says about a pod that is known.
    pub fn quote(&mut self, signal: &Signal, now: DateTime<Utc>) -> Option<Report> {
        let name = (signal.namespace.clone(), signal.pod.clone());
        let at = signal.at();
        let record = self.troubled.get(&name);
        if now > at + self.stale_after || record.is_some_and(|record| record.pod.uid() != signal.uid) {
            return None;
        }
        let kept = record.is_some();
        let evidence = self.evidence.entry(name.clone()).or_default();
        let news = Words {
            event_type: signal.event_type,
            event_name: signal.event_name.clone(),
            reason: signal.reason.clone(),
            message: signal.message.clone(),
            at,
        };
        let mut changed = false;
        match evidence.words.iter_mut().find(|words| words.event_type == signal.event_type) {
            Some(words) if words.at > at => {}
            Some(words) => {
                changed = words.message != news.message || words.event_name != news.event_name;
                *words = news;
            }
            None => {
                changed = true;
                evidence.words.push(news);
            }
        }
        let mut fetch = false;
        if signal.cause == Cause::Liveness && signal.message.starts_with("Liveness probe failed") {
            let repeated = again(&mut evidence.liveness, signal.container.clone(), at);
            (changed, fetch) = (changed || repeated, repeated && !kept);
        }
        if fetch {
            return Some(Report::Fetch(name));
        }
        let record = self.troubled.remove(&name)?;
        let troubled = self.keep(&name, record, now);
        (troubled && changed).then_some(Report::Changed(name))
    }

    /// Takes in that kubelet has ended a container for a failed probe.
    pub fn killed(&mut self, kill: Kill, now: DateTime<Utc>) -> Option<Report> {
        if now > kill.at + self.stale_after {
            return None;
        }
        let evidence = self.evidence.entry(kill.name.clone()).or_default();
        let kill_of = (kill.container, kill.at);
        if evidence.kills.contains(&kill_of) {
            return None;
        }
        evidence.kills.push(kill_of);
        if evidence.kills.len() > MAX_EVIDENCE {
            evidence.kills.remove(0);
        }
        let record = self.troubled.remove(&kill.name)?;
        self.keep(&kill.name, record, now);
        Some(Report::Changed(kill.name))
    }

    /// What time alone brings: what could not be told yet, a probe that fails no more, what is over.
    pub fn sweep(&mut self, now: DateTime<Utc>) -> Vec<Report> {
        // Those have been told.
        self.troubled.retain(|_, record| !record.well);
        let due = self.troubled.iter().filter(|(_, record)| record.look_again <= now);
        let names: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        let mut reports = Vec::new();
        for name in names {
            let Some(record) = self.troubled.remove(&name) else { continue };
            self.keep(&name, record, now);
            reports.push(Report::Changed(name));
        }
        let old = now - self.stale_after;
        self.gone.retain(|_, at| *at > old);
        let troubled = &self.troubled;
        self.evidence.retain(|name, evidence| {
            evidence.kills.retain(|(_, at)| *at > old);
            evidence.liveness.retain(|streak| streak.last > old);
            evidence.words.retain(|words| words.at > old || troubled.contains_key(name));
            !(evidence.kills.is_empty() && evidence.liveness.is_empty() && evidence.words.is_empty())
        });
        reports
    }

    /// What a pod in trouble says to a Hook that listens to some kinds of it.
    pub fn signals(
        &self,
        name: &Name,
        listens: impl Fn(EventType) -> bool,
        now: DateTime<Utc>,
    ) -> Vec<Signal> {
        let Some(record) = self.troubled.get(name) else { return Vec::new() };
        let empty = Evidence::default();
        let evidence = self.evidence.get(name).unwrap_or(&empty);
        diagnosis::diagnose(record.case(evidence, now), listens)
    }

    /// What a Hook must hear that has heard nothing for a while: the trouble there is in its namespace, and
    /// what has become of the pods its status speaks of.
    pub fn compare(
        &self,
        namespace: &str,
        entries: &[ActiveEvent],
        listens: impl Fn(EventType) -> bool + Copy,
        now: DateTime<Utc>,
    ) -> Vec<Signal> {
        let here = self.troubled.keys().filter(|(place, _)| place == namespace);
        let mut signals: Vec<Signal> = here.flat_map(|name| self.signals(name, listens, now)).collect();
        for entry in entries {
            let name = (entry.namespace.clone(), entry.resource_name.clone());
            if self.troubled.contains_key(&name) {
                continue;
            }
            let (state, since) = match self.known.get(&self.hasher.hash_one(&name)) {
                Some(Known::Since(since)) => (StandingState::Clear, *since),
                Some(Known::Leaving) => (StandingState::Gone, now),
                // Of what only an Event has told nobody knows the pod, nor has to.
                None if entry.condition.is_none() => continue,
                None => (StandingState::Gone, now),
            };
            let pod = Pod {
                metadata: kube::api::ObjectMeta {
                    name: Some(name.1),
                    namespace: Some(name.0),
                    uid: Some(entry.uid.clone()),
                    ..Default::default()
                },
                ..Pod::default()
            };
            signals.push(diagnosis::standing(&pod, entry.event_type, state, since, now));
        }
        signals
    }
}

/// That kubelet has ended a container for a failed probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Kill {
    /// The pod.
    pub name: Name,
    /// The container.
    pub container: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// Looks come after what they look for.
const MOMENT: Duration = Duration::from_millis(1);

impl Record {
    fn case<'a>(&'a self, evidence: &'a Evidence, now: DateTime<Utc>) -> Case<'a> {
        Case { pod: &self.pod, evidence, stuck_since: self.stuck_since, end_seen_at: self.end_seen_at, now }
    }
}

fn name(pod: &Pod) -> Name {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

// Versions differ with every write, also of what does not matter here.
fn alike(one: &Pod, other: &Pod) -> bool {
    one.spec == other.spec && one.status == other.status
}

// Counts a failure of a liveness probe; answers whether it was one of several, one after another.
fn again(streaks: &mut Vec<Streak>, container: Option<String>, at: DateTime<Utc>) -> bool {
    let Some(streak) = streaks.iter_mut().find(|streak| streak.container == container) else {
        streaks.push(Streak { container, first: at, last: at, pace: None });
        if streaks.len() > MAX_EVIDENCE {
            streaks.remove(0);
        }
        return false;
    };
    let Ok(pace) = (at - streak.last).to_std() else { return false };
    if pace.is_zero() {
        return false;
    }
    // No probe is so slow by default; the second of two failures sets the pace.
    let goes_on = match streak.pace {
        None => pace <= SLOWEST,
        Some(_) => at <= streak.over_at(),
    };
    if goes_on {
        (streak.last, streak.pace) = (at, Some(pace));
    } else {
        *streak = Streak { container, first: at, last: at, pace: None };
    }
    goes_on
}

/// Two failures further apart than this are two blips.
const SLOWEST: Duration = Duration::from_secs(60);

/// Whether a signal tells of something that has happened, whatever has become of the pod since.
pub fn has_happened(signal: &Signal) -> bool {
    matches!(signal.nature, Nature::Occurrence(_))
        && matches!(signal.event_type, EventType::PodRestart | EventType::OomKill)
}

#[cfg(test)]
mod tests;
