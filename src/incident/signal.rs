//! A signal is one thing a source says about one pod: something happened, or something holds.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::policy::Policy;
use crate::{
    hook::{EventType, StandingState},
    sabotage::{Safeguard, without},
};

/// What a source saw, ready to be folded into incidents.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// The kind of trouble.
    pub event_type: EventType,
    /// What is behind it; decides how long it must last before anyone is called.
    pub cause: Cause,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; empty where the source does not know it.
    pub uid: String,
    /// The container in trouble; none where it is the whole pod.
    pub container: Option<String>,
    /// Name of the Event or object that says so.
    pub event_name: String,
    /// Its reason, as the cluster wrote it.
    pub reason: String,
    /// Its words, as the cluster wrote them.
    pub message: String,
    /// When khook first saw it. Staleness is judged by this, once.
    pub observed_at: DateTime<Utc>,
    /// Whether it happened or holds.
    pub nature: Nature,
    /// The test it is made up for; none where it is real.
    pub test: Option<String>,
}

/// Something that happened, or something that is so.
#[derive(Clone, Debug, PartialEq)]
pub enum Nature {
    /// A restart, an OOM kill, an Event: at a moment, with an identity.
    Occurrence(Occurrence),
    /// What was so cannot be told any more: no incident comes of it, and of one that stands nothing is said.
    Unclear,
    /// Pending, unready, in crash loop: since a moment, true or not any more.
    Condition {
        /// Whether it holds.
        state: StandingState,
        /// Since when.
        since: DateTime<Utc>,
    },
}

/// The identity of an occurrence: newer than what was seen of the same source, or nothing new.
#[derive(Clone, Debug, PartialEq)]
pub struct Occurrence {
    /// The object that tells of it: an Event's UID, or a container of a pod.
    pub source: String,
    /// When it happened, by the source's clock.
    pub at: DateTime<Utc>,
    /// The source's own counter: an Event's count, a container's restartCount.
    pub count: i64,
}

impl Signal {
    /// When it happened, or since when it is so.
    pub fn at(&self) -> DateTime<Utc> {
        match &self.nature {
            Nature::Occurrence(occurrence) => occurrence.at,
            Nature::Condition { since, .. } => *since,
            Nature::Unclear => self.observed_at,
        }
    }

    /// Whether it tells of trouble, and not that there is none.
    pub fn is_trouble(&self) -> bool {
        matches!(self.nature, Nature::Occurrence(_) | Nature::Condition { state: StandingState::Holds, .. })
    }

    /// Whether this is an occurrence that was already too old when khook first saw it.
    pub fn is_stale(&self, policy: &Policy) -> bool {
        match &self.nature {
            Nature::Occurrence(_) if without(Safeguard::Staleness) => false,
            Nature::Occurrence(occurrence) => {
                (self.observed_at - occurrence.at).to_std().is_ok_and(|age| age > policy.stale_after)
            }
            Nature::Condition { .. } | Nature::Unclear => false,
        }
    }
}

/// What is behind a kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A container ended and was started again.
    Restart,
    /// A container was killed for its memory.
    OomKill,
    /// The image cannot be pulled, or the container's configuration is wrong.
    ImageOrConfig,
    /// No node takes the pod, or its volumes or sandbox are not ready.
    Scheduling,
    /// A liveness or startup probe fails.
    Liveness,
    /// A readiness probe fails of a pod that was ready.
    Unready,
    /// A readiness probe fails and nothing is known of the pod ever having been ready.
    Readiness,
}

impl Cause {
    /// How long trouble of this cause must last before the agent is called, unless the Hook says.
    pub fn default_hold(self, policy: &Policy) -> Duration {
        let seconds = match self {
            Self::Restart | Self::OomKill => 0,
            Self::ImageOrConfig | Self::Liveness | Self::Unready => 30,
            // Autoscaling and slow starts are not trouble.
            Self::Scheduling | Self::Readiness => 120,
        };
        // Also what is no number is no hold.
        let scale = if policy.hold_scale > 0.0 { policy.hold_scale.min(1000.0) } else { 0.0 };
        Duration::from_secs(seconds).mul_f64(scale)
    }
}

/// What has been seen of one source, as it is kept in the status: `source count time`.
///
/// A relist replays every Event; what is not newer than this changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    source: String,
    count: i64,
    at: DateTime<Utc>,
}

/// Stands for "everything up to this time", whatever its source.
const ANY_SOURCE: &str = "*";

/// More sources than this per incident are folded into one mark.
const MAX_SEEN: usize = 16;

impl Seen {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (source, count, at) = (words.next()?, words.next()?, words.next()?);
        Some(Self { source: source.to_owned(), count: count.parse().ok()?, at: at.parse().ok()? })
    }

    fn to_text(&self) -> String {
        format!(
            "{} {} {}",
            self.source,
            self.count,
            self.at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
        )
    }
}

/// Folds an occurrence into the marks of an incident. Returns how many times it happened since the source
/// was last heard; `None` if nothing is new.
pub fn fold(marks: &mut Vec<String>, occurrence: &Occurrence) -> Option<i64> {
    let source = short(&occurrence.source);
    let mut seen: Vec<Seen> = marks.iter().filter_map(|text| Seen::parse(text)).collect();
    let everything = seen.iter().find(|mark| mark.source == ANY_SOURCE).map(|mark| mark.at);
    let new = match seen.iter_mut().find(|mark| mark.source == source) {
        Some(mark) => {
            if (occurrence.at, occurrence.count) <= (mark.at, mark.count) {
                return None;
            }
            let times = occurrence.count.saturating_sub(mark.count).max(1);
            (mark.at, mark.count) = (occurrence.at, occurrence.count);
            times
        }
        None => {
            if everything.is_some_and(|at| occurrence.at <= at) {
                return None;
            }
            seen.push(Seen { source, count: occurrence.count, at: occurrence.at });
            occurrence.count.max(1)
        }
    };
    while seen.len() > MAX_SEEN {
        forget_oldest(&mut seen);
    }
    *marks = seen.iter().map(Seen::to_text).collect();
    Some(new)
}

/// The newest moment in the marks of an incident, by whatever clock.
pub fn newest(marks: &[String]) -> Option<DateTime<Utc>> {
    marks.iter().filter_map(|text| Seen::parse(text)).map(|mark| mark.at).max()
}

/// The mark that takes everything up to `at` as seen.
pub fn everything_until(at: DateTime<Utc>) -> String {
    Seen { source: ANY_SOURCE.into(), count: 0, at }.to_text()
}

// Two sources' clocks meet in one mark only here, where there are too many of them to keep apart; what it
// may hide belongs to an incident that is known already.
fn forget_oldest(seen: &mut Vec<Seen>) {
    let oldest =
        seen.iter().enumerate().filter(|(_, mark)| mark.source != ANY_SOURCE).min_by_key(|(_, mark)| mark.at);
    let Some((index, _)) = oldest else { return };
    let gone = seen.remove(index);
    match seen.iter_mut().find(|mark| mark.source == ANY_SOURCE) {
        Some(mark) => mark.at = mark.at.max(gone.at),
        None => seen.push(Seen { source: ANY_SOURCE.into(), count: 0, at: gone.at }),
    }
}

// Half of a hash tells the sources of one incident apart and keeps the status small. Not the beginning of
// the name: container ids all begin alike.
fn short(source: &str) -> String {
    let mut name = Uuid::new_v5(&Uuid::NAMESPACE_OID, source.as_bytes()).simple().to_string();
    name.truncate(13);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("in range")
    }

    fn occurrence(source: &str, count: i64, second: i64) -> Occurrence {
        Occurrence { source: source.into(), count, at: at(second) }
    }

    #[test]
    fn an_occurrence_counts_once_and_its_repeats_by_their_difference() {
        let mut marks = Vec::new();
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 3, 0)), Some(3));
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 3, 0)), None);
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 5, 10)), Some(2));
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 4, 5)), None, "an older state replayed");
        assert_eq!(fold(&mut marks, &occurrence("uid-b", 1, 2)), Some(1), "another source, an older stamp");
    }

    #[test]
    fn sources_with_a_long_common_beginning_are_told_apart() {
        let mut marks = Vec::new();
        assert_eq!(fold(&mut marks, &occurrence("containerd://0123456789abcdef-web", 1, 5)), Some(1));
        assert_eq!(fold(&mut marks, &occurrence("containerd://0123456789abcdef-log", 1, 3)), Some(1));
        assert_eq!(newest(&marks), Some(at(5)));
    }

    #[test]
    fn a_replay_of_forgotten_sources_is_not_new() {
        let mut marks = Vec::new();
        for i in 0..40 {
            assert_eq!(fold(&mut marks, &occurrence(&format!("uid-{i}"), 1, i)), Some(1));
        }
        assert!(marks.len() <= MAX_SEEN);
        for i in 0..40 {
            assert_eq!(fold(&mut marks, &occurrence(&format!("uid-{i}"), 1, i)), None, "uid-{i}");
        }
    }

    #[test]
    fn what_another_program_left_in_the_marks_is_passed_over() {
        let mut marks = vec!["".into(), "x".into(), "a b c".into(), "a 1 yesterday".into()];
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 1, 0)), Some(1));
        assert_eq!(marks.len(), 1);
    }

    #[test]
    fn the_mark_of_an_adopted_status_covers_all_that_came_before() {
        let mut marks = vec![everything_until(at(100))];
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 7, 100)), None);
        assert_eq!(fold(&mut marks, &occurrence("uid-a", 8, 101)), Some(8));
    }
}
