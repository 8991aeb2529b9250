//! A backtest is what Hooks would have called, by what a cluster still knows of the past.
//!
//! It is pure: the real sources read the past, the real plan decides, and the clock is made up. What the cluster
//! has forgotten nobody can bring back: an Event keeps its first and its last time and a count, so those in between
//! are taken to be spread evenly; a pod keeps the last end of each container.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::events::v1::Event;
use kube::runtime::watcher;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    hook::{EventType, HookStatus, Phase, StandingState},
    incident::{
        outcome::{EndState, Ended, Reply},
        plan::{self, Capacity, Claims, Inputs, News, Outcome},
        policy::Policy,
        rules::Rules,
        signal::{Nature, Signal},
    },
    source::{
        diagnosis, events,
        index::{Index, Kill},
        pods::Pod,
    },
};

/// What a cluster still knows of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The pods there are.
    pub pods: Vec<Pod>,
    /// Warnings about pods.
    pub events: Vec<Event>,
    /// Containers that were ended for a failed probe.
    pub kills: Vec<Kill>,
}

/// A call that would have been made.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// When.
    pub at: DateTime<Utc>,
    /// The kind of trouble.
    pub event_type: EventType,
    /// The pod.
    pub pod: String,
    /// The agent.
    pub agent: String,
    /// Which notification of its episode it is, from 1.
    pub notification: i32,
    /// It only tells that the incident is resolved.
    pub resolved: bool,
    /// The trouble, in the cluster's words.
    pub why: String,
    /// The pod is gone, and only an Event tells of it: it may have been over sooner.
    pub uncertain: bool,
}

/// Occurrences that one Event stands for, at most.
const MAX_SPREAD: i64 = 60;

/// More steps than this end a simulation: nothing in an hour needs as many.
const MAX_STEPS: usize = 100_000;

/// Something that a source would have said, and when.
#[derive(Clone, Debug)]
struct Heard {
    at: DateTime<Utc>,
    signal: Signal,
}

/// What the sources would have said.
pub struct Story {
    news: Vec<Heard>,
    /// Pods there are not any more.
    gone: BTreeSet<String>,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
}

impl Story {
    /// What khook would have heard in a namespace between two times, the second of which is now.
    pub fn of(
        past: &Past,
        namespace: &str,
        policy: &Policy,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Self {
        let span = (until - from).to_std().unwrap_or_default();
        // What is stale now was not when it happened.
        let mut index = Index::new(policy.stale_after.max(span));
        index.observe(watcher::Event::Init, until);
        for pod in &past.pods {
            index.observe(watcher::Event::InitApply(pod.clone()), until);
        }
        index.observe(watcher::Event::InitDone, until);
        for kill in &past.kills {
            index.killed(kill.clone(), until);
        }
        let told: Vec<(&Event, Signal)> =
            past.events.iter().filter_map(|event| Some((event, events::signal(event, until)?))).collect();
        for (_, signal) in &told {
            index.quote(signal, until);
        }
        let mut news = Vec::new();
        // What each pod says of itself now: of what kind its trouble is, it knows best.
        let mut known: BTreeMap<&str, BTreeSet<EventType>> = BTreeMap::new();
        let mut pods: BTreeMap<&str, &Pod> = BTreeMap::new();
        for pod in &past.pods {
            let Some(name) = pod.metadata.name.as_deref() else { continue };
            pods.insert(name, pod);
            let place = (namespace.to_owned(), name.to_owned());
            let kinds = known.entry(name).or_default();
            for signal in index.signals(&place, |_| true, until) {
                let at = signal.at().clamp(from, until);
                if !matches!(signal.nature, Nature::Occurrence(_) if signal.at() < from) {
                    if signal.is_trouble() {
                        kinds.insert(signal.event_type);
                    }
                    news.push(Heard { at, signal });
                }
            }
        }
        let mut gone = BTreeSet::new();
        for (event, signal) in told {
            let pod =
                pods.get(signal.pod.as_str()).filter(|pod| signal.uid.is_empty() || pod.uid() == signal.uid);
            match pod {
                // Of a pod in trouble its Events count as far as they are about that trouble.
                Some(_)
                    if known
                        .get(signal.pod.as_str())
                        .is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&signal.event_type)) =>
                {
                    continue;
                }
                Some(pod) if known.get(signal.pod.as_str()).is_none_or(BTreeSet::is_empty) => {
                    let since = diagnosis::well_since(pod);
                    if since > from && since <= until {
                        let well =
                            diagnosis::standing(pod, signal.event_type, StandingState::Clear, since, since);
                        news.push(Heard { at: since, signal: well });
                    }
                }
                Some(_) => {}
                None => drop(gone.insert(signal.pod.clone())),
            }
            news.extend(spread(event, signal).filter(|news| news.at >= from && news.at <= until));
        }
        for news in &mut news {
            // Heard when it happened.
            news.signal.observed_at = news.at;
        }
        news.sort_by_key(|news| news.at);
        Self { news, gone, from, until }
    }

    /// How much the sources would have said.
    pub fn len(&self) -> usize {
        self.news.len()
    }

    /// Whether they would have said nothing.
    pub fn is_empty(&self) -> bool {
        self.news.is_empty()
    }

    /// The calls that rules would have made, with agents that take every call at once.
    pub fn calls(&self, rules: &Rules, namespace: &str, policy: &Policy) -> Vec<Call> {
        let capacity = Capacity::boundless(rules);
        let (begun, busy, unmoved) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let (mut status, mut next) = (HookStatus::default(), 1);
        let (mut inbox, mut outcomes): (Vec<Signal>, Vec<Outcome>) = Default::default();
        let mut waiting = self.news.iter().peekable();
        let mut calls = Vec::new();
        let mut now = self.from;
        for _ in 0..MAX_STEPS {
            while let Some(news) = waiting.next_if(|news| news.at <= now) {
                inbox.push(news.signal.clone());
            }
            let plan = plan::plan(&Inputs {
                hook_uid: "backtest",
                namespace,
                generation: None,
                rules,
                status: &status,
                signals: &inbox,
                outcomes: &outcomes,
                instructions: &[],
                capacity: &capacity,
                claims: Claims { process: "backtest", next, begun: &begun, busy: &busy, unmoved: &unmoved },
                policy,
                now,
            });
            inbox = plan.held_back.union(&plan.young).map(|index| inbox[*index].clone()).collect();
            (status, next, outcomes) = (plan.status, plan.next_sequence, Vec::new());
            for (claim, agent) in plan.claimed {
                let Some(entry) =
                    status.active_events.iter().find(|entry| entry.claim.as_ref() == Some(&claim))
                else {
                    continue;
                };
                let resolved = entry.status == Phase::Resolved;
                calls.push(Call {
                    at: now,
                    event_type: entry.event_type,
                    pod: entry.resource_name.clone(),
                    agent: agent.to_string(),
                    notification: entry.window,
                    resolved,
                    why: format!("{}: {}", entry.event_reason, entry.event_message),
                    uncertain: self.gone.contains(&entry.resource_name),
                });
                let ended = Some(Ended::silent(EndState::Completed));
                let reply = Reply::Accepted { task_id: None, ended, protocol: None };
                let news =
                    if resolved { News::FarewellCalled(claim, reply) } else { News::Called(claim, reply) };
                let session_id = entry.session_id.clone().unwrap_or_default();
                outcomes.push(Outcome { entry: entry.id.clone(), session_id, news });
            }
            let wake = plan.next_wake.into_iter().chain(waiting.peek().map(|news| news.at)).min();
            let wake = if outcomes.is_empty() { wake } else { Some(now + TimeDelta::milliseconds(1)) };
            match wake.filter(|at| *at <= self.until) {
                Some(at) => now = at.max(now + TimeDelta::milliseconds(1)),
                None => break,
            }
        }
        calls
    }

    /// How many calls another hold, or another interval, of every configuration would have made.
    pub fn variations(&self, rules: &Rules, namespace: &str, policy: &Policy) -> Vec<Variation> {
        let count = |change: &dyn Fn(&mut crate::incident::rules::Rule)| {
            let mut rules = rules.clone();
            rules.configurations.iter_mut().for_each(change);
            self.calls(&rules, namespace, policy).len()
        };
        let holds = HOLDS.map(|(text, seconds)| Variation {
            field: "for",
            value: text,
            calls: count(&|rule| rule.hold = Some(Duration::from_secs(seconds))),
        });
        let intervals = INTERVALS.map(|(text, seconds)| Variation {
            field: "repeatInterval",
            value: text,
            calls: count(&|rule| rule.repeat_interval = Duration::from_secs(seconds)),
        });
        holds.into_iter().chain(intervals).collect()
    }
}

/// How many calls a Hook would have made with another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Variation {
    /// `for` or `repeatInterval`.
    pub field: &'static str,
    /// Its value in every configuration.
    pub value: &'static str,
    /// The calls.
    pub calls: usize,
}

const HOLDS: [(&str, u64); 5] = [("0s", 0), ("30s", 30), ("2m", 120), ("5m", 300), ("15m", 900)];

const INTERVALS: [(&str, u64); 5] = [("5m", 300), ("10m", 600), ("30m", 1800), ("1h", 3600), ("4h", 14_400)];

// An Event of many occurrences as one Event for each, as khook would have heard them.
fn spread(event: &Event, last: Signal) -> impl Iterator<Item = Heard> {
    let Nature::Occurrence(occurrence) = last.nature.clone() else { return Vec::new().into_iter() };
    let first = event.deprecated_first_timestamp.as_ref().map(|time| time.0);
    let first = first.or_else(|| event.event_time.as_ref().map(|time| time.0));
    let first = first.and_then(|time| DateTime::from_timestamp_millis(time.as_millisecond()));
    let first = first.filter(|first| *first < occurrence.at).unwrap_or(occurrence.at);
    let steps = if first == occurrence.at { 1 } else { occurrence.count.clamp(2, MAX_SPREAD) };
    let lasted = (occurrence.at - first).num_milliseconds();
    let news: Vec<Heard> = (0..steps)
        .map(|step| {
            let share =
                |whole: i64| if steps == 1 { whole } else { (whole / (steps - 1)).saturating_mul(step) };
            let is_last = step == steps - 1;
            let at = if is_last { occurrence.at } else { first + TimeDelta::milliseconds(share(lasted)) };
            let count = if is_last { occurrence.count } else { share(occurrence.count).max(step + 1) };
            let mut signal = last.clone();
            let mut occurrence = occurrence.clone();
            (occurrence.at, occurrence.count) = (at, count.min(occurrence.count));
            signal.nature = Nature::Occurrence(occurrence);
            Heard { at, signal }
        })
        .collect();
    news.into_iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::incident::fixtures::{NAMESPACE, at, minutes, rules_for_all};

    fn event(reason: &str, note: &str, first: i64, last: i64, count: i64) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "web.1", "namespace": NAMESPACE, "uid": "e1"},
            "type": "Warning", "reason": reason, "note": note, "eventTime": null,
            "regarding": {"kind": "Pod", "namespace": NAMESPACE, "name": "web", "uid": "pod-1"},
            "deprecatedCount": count, "deprecatedFirstTimestamp": at(first), "deprecatedLastTimestamp": at(last),
        }))
        .expect("an Event")
    }

    fn pod(state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": NAMESPACE, "uid": "pod-1", "creationTimestamp": at(0)},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running", "startTime": at(0), "containerStatuses": [state]},
        }))
        .expect("a pod")
    }

    fn story(past: &Past) -> Story {
        Story::of(past, NAMESPACE, &Policy::default(), at(0), at(3600))
    }

    fn moments(calls: &[Call]) -> Vec<(i64, EventType, i32)> {
        calls
            .iter()
            .map(|call| ((call.at - at(0)).num_seconds(), call.event_type, call.notification))
            .collect()
    }

    #[test]
    fn an_event_that_goes_on_is_a_call_in_every_interval() {
        let events = vec![event("BackOff", "Back-off restarting failed container", 60, 1860, 100)];
        let calls =
            story(&Past { events, ..Past::default() }).calls(&rules_for_all(), NAMESPACE, &Policy::default());
        let restart = EventType::PodRestart;
        let found = moments(&calls);
        assert_eq!(
            found.iter().map(|(_, kind, n)| (*kind, *n)).collect::<Vec<_>>(),
            [(restart, 1), (restart, 2), (restart, 3)]
        );
        assert_eq!(found[0].0, 60);
        assert!(calls.iter().all(|call| call.uncertain), "nobody knows the pod any more");
    }

    #[test]
    fn a_pod_knows_better_than_its_events_what_happened() {
        let past = Past {
            pods: vec![pod(json!({"name": "app", "ready": false, "restartCount": 1,
                "state": {"running": {"startedAt": at(305)}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": at(10),
                    "finishedAt": at(300), "containerID": "c1"}}}))],
            events: vec![event("BackOff", "Back-off restarting failed container", 301, 301, 1)],
            ..Past::default()
        };
        let calls = story(&past).calls(&rules_for_all(), NAMESPACE, &Policy::default());
        assert_eq!(moments(&calls), [(300, EventType::OomKill, 1)]);
        assert!(!calls[0].uncertain);
    }

    #[test]
    fn nothing_known_is_nothing_called() {
        let story = story(&Past::default());
        assert!(story.is_empty());
        assert_eq!(story.calls(&rules_for_all(), NAMESPACE, &Policy::default()), []);
    }

    #[test]
    fn longer_spans_save_calls() {
        let events = vec![event("BackOff", "Back-off restarting failed container", 60, 3000, 200)];
        let story = story(&Past { events, ..Past::default() });
        let found = story.variations(&rules_for_all(), NAMESPACE, &Policy::default());
        let of = |field: &str, value: &str| {
            found.iter().find(|row| row.field == field && row.value == value).expect("a row").calls
        };
        assert!(of("repeatInterval", "5m") > of("repeatInterval", "10m"));
        assert!(of("repeatInterval", "10m") > of("repeatInterval", "1h"));
        assert_eq!(of("repeatInterval", "1h"), 1);
        assert!(of("for", "15m") < of("for", "0s"));
        assert!(minutes(10) == Policy::default().repeat_interval);
    }
}
