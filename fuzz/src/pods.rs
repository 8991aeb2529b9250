//! Pods are what the apiserver's watch says of them, one change after another, with Events in between.
//!
//! The input has one change a line: `{"type": …, "object": …, "after": SECONDS}`, where the type is a watch's
//! ADDED, MODIFIED or DELETED, or INIT, LISTED or DONE of a list, EVENT with an Event as its object, or SWEEP
//! for time alone. Any other JSON, also of several lines, is a pod that was modified.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::api::events::v1::Event;
use khook::{
    hook::{ActiveEvent, EventType, StandingState},
    incident::signal::{Nature, Signal},
    source::{
        diagnosis, events,
        index::{Index, Name, Report, Worth},
        pods::Pod,
    },
};
use kube::runtime::watcher;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::at;

const STALE_AFTER: Duration = Duration::from_secs(900);

/// Whatever pods look like and in whatever order they come and go: the index knows as many as there are,
/// keeps nothing of those that are well, says the same twice, and speaks of each pod by its own name.
pub fn pods(data: &[u8]) {
    let mut world = World {
        index: Index::new(STALE_AFTER),
        pods: BTreeMap::new(),
        list: None,
        owners: BTreeMap::new(),
        now: at(0),
    };
    if let Ok(pod) = serde_json::from_slice::<Pod>(data) {
        world.apply(pod);
    } else {
        for line in data.split(|byte| *byte == b'\n').take(64) {
            world.take(line);
        }
    }
    world.relist();
    world.end();
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    after: u16,
}

struct World {
    index: Index,
    /// What there is, as an apiserver would know it.
    pods: BTreeMap<Name, Pod>,
    /// What the list that is being read has named.
    list: Option<BTreeMap<Name, Pod>>,
    /// Whose each UID is: no two pods ever have the same.
    owners: BTreeMap<String, Name>,
    now: DateTime<Utc>,
}

impl World {
    fn take(&mut self, line: &[u8]) {
        if let Ok(pod) = serde_json::from_slice::<Pod>(line) {
            return self.apply(pod);
        }
        let Ok(Line { r#type, object, after }) = serde_json::from_slice(line) else { return };
        self.now += Duration::from_secs(after.into());
        match r#type.as_str() {
            "INIT" => {
                self.list = Some(BTreeMap::new());
                self.index.observe(watcher::Event::Init, self.now);
            }
            "DONE" => {
                let report = self.index.observe(watcher::Event::InitDone, self.now);
                assert_eq!(report, Some(Report::Listed));
                if let Some(list) = self.list.take() {
                    self.pods = list;
                }
            }
            "EVENT" => self.hear(&object),
            "SWEEP" => {
                let reports = self.index.sweep(self.now);
                assert!(reports.len() <= self.pods.len());
            }
            word => {
                let Ok(pod) = serde_json::from_value::<Pod>(object) else { return };
                match word {
                    "LISTED" => self.listed(pod),
                    "DELETED" => self.delete(pod),
                    _ => self.apply(pod),
                }
            }
        }
        self.is_sound();
    }

    fn hear(&mut self, object: &Value) {
        let Ok(event) = Event::deserialize(object) else { return };
        let (known, _) = self.index.len();
        if let Some(kill) = events::kill(&event) {
            self.index.killed(kill, self.now);
        }
        if let Some(signal) = events::signal(&event, self.now) {
            match self.index.worth(&signal) {
                Worth::Words => {
                    if let Some(Report::Fetch(name)) = self.index.quote(&signal, self.now) {
                        let pod = self.pods.get(&name).cloned();
                        pod.and_then(|pod| self.index.see(pod, self.now));
                    }
                }
                Worth::Nothing => assert!(!signal.uid.is_empty()),
                Worth::Everything => {
                    assert!(!self.pods.contains_key(&(signal.namespace.clone(), signal.pod.clone())));
                }
            }
        }
        assert_eq!(self.index.len().0, known, "an Event is no pod");
    }

    fn apply(&mut self, pod: Pod) {
        let Some(pod) = self.note(pod) else { return };
        self.index.observe(watcher::Event::Apply(pod.clone()), self.now);
        let known = self.index.len();
        // What the watch says twice is no news, and not kept twice.
        for _ in 0..2 {
            let again = self.index.observe(watcher::Event::Apply(pod.clone()), self.now);
            assert_eq!(again, None);
        }
        assert_eq!(self.index.len(), known);
        self.is_sound();
    }

    fn listed(&mut self, pod: Pod) {
        if let Some(pod) = self.note(pod) {
            self.index.observe(watcher::Event::InitApply(pod), self.now);
        }
    }

    fn delete(&mut self, pod: Pod) {
        if self.list.is_some() {
            // No list that is being read has an end of a pod in it.
            return;
        }
        let Some(pod) = self.with_uid(pod) else { return };
        let name = name(&pod);
        self.pods.remove(&name);
        let report = self.index.observe(watcher::Event::Delete(pod.clone()), self.now);
        if let Some(Report::Gone { at, .. }) = &report {
            assert!(*at <= self.now, "gone in the future");
        }
        assert_eq!(self.index.observe(watcher::Event::Delete(pod), self.now), None, "gone once");
        assert_eq!(self.told(&name), []);
    }

    /// Remembers what is now under a pod's name. Of one that has gone no word is heard any more.
    fn note(&mut self, pod: Pod) -> Option<Pod> {
        let pod = self.with_uid(pod)?;
        let any = diagnosis::standing(&pod, EventType::PodRestart, StandingState::Holds, self.now, self.now);
        if pod.deleted_at().is_none() && self.index.worth(&any) == Worth::Nothing {
            assert_eq!(self.index.see(pod, self.now), None);
            return None;
        }
        self.pods.insert(name(&pod), pod.clone());
        if let Some(list) = &mut self.list {
            list.insert(name(&pod), pod.clone());
        }
        Some(pod)
    }

    /// No apiserver leaves a pod without a UID, or gives the UID of one to another.
    fn with_uid(&mut self, mut pod: Pod) -> Option<Pod> {
        let name = name(&pod);
        if pod.uid().is_empty() {
            pod.metadata.uid = Some(format!("uid of {name:?}"));
        }
        let owner = self.owners.entry(pod.uid().to_owned()).or_insert_with(|| name.clone());
        (*owner == name).then_some(pod)
    }

    /// The whole list again changes nothing that is told.
    fn relist(&mut self) {
        self.list = None;
        let before = self.all_told();
        self.index.observe(watcher::Event::Init, self.now);
        for pod in self.pods.values() {
            self.index.observe(watcher::Event::InitApply(pod.clone()), self.now);
        }
        let lists = self.index.lists();
        assert_eq!(self.index.observe(watcher::Event::InitDone, self.now), Some(Report::Listed));
        assert_eq!(self.index.lists(), lists + 1);
        assert_eq!(self.all_told(), before);
        self.is_sound();
    }

    /// In the end all pods go, and nothing is left of any.
    fn end(&mut self) {
        let pods: Vec<Pod> = std::mem::take(&mut self.pods).into_values().collect();
        for pod in &pods {
            self.delete(pod.clone());
            for signal in self.index.compare(&name(pod).0, &[entry(pod)], |_| true, self.now) {
                if signal.pod == name(pod).1 {
                    assert!(matches!(signal.nature, Nature::Condition { state: StandingState::Gone, .. }));
                }
            }
        }
        assert_eq!(self.index.len(), (0, 0));
        self.now += STALE_AFTER + Duration::from_secs(1);
        assert_eq!(self.index.sweep(self.now), []);
    }

    fn told(&self, name: &Name) -> Vec<Signal> {
        self.index.signals(name, |_| true, self.now)
    }

    fn all_told(&self) -> BTreeMap<Name, Vec<Signal>> {
        self.pods.keys().map(|name| (name.clone(), self.told(name))).collect()
    }

    fn is_sound(&self) {
        let (known, troubled) = self.index.len();
        assert!(troubled <= known, "{troubled} in trouble of {known}");
        // A list that is being read may still lack some.
        assert!(known <= self.pods.len(), "{known} known of {}", self.pods.len());
        for (name, pod) in &self.pods {
            let signals = self.told(name);
            assert_eq!(signals, self.told(name), "the same every time");
            signals.iter().for_each(|signal| self.speaks_of(signal, name, pod));
            for kind in EventType::ALL {
                // A kind that is not listened to may make an end one of another kind: only its own are compared.
                let only = self.index.signals(name, |other| other == kind, self.now);
                assert!(only.iter().all(|signal| signal.event_type == kind));
                let states = signals.iter().filter(|signal| {
                    signal.event_type == kind && !matches!(signal.nature, Nature::Occurrence(_))
                });
                assert!(states.count() <= 1, "{kind} is told twice");
            }
            let entries = [entry(pod)];
            let compared = self.index.compare(&name.0, &entries, |_| true, self.now);
            assert!(compared.len() >= signals.len());
        }
    }

    fn speaks_of(&self, signal: &Signal, name: &Name, pod: &Pod) {
        assert_eq!((&signal.namespace, &signal.pod), (&name.0, &name.1));
        assert_eq!(signal.uid, pod.uid());
        assert_eq!(signal.observed_at, self.now);
        if let Nature::Occurrence(occurrence) = &signal.nature {
            assert!(occurrence.source.starts_with(pod.uid()));
            assert!(signal.container.is_some());
        }
    }
}

fn name(pod: &Pod) -> Name {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// An incident of that pod, as a status may have one.
fn entry(pod: &Pod) -> ActiveEvent {
    let (namespace, pod_name) = name(pod);
    let entry = json!({
        "id": "0", "eventType": "pod-pending", "resourceName": pod_name, "namespace": namespace, "uid": pod.uid(),
        "status": "notified", "firstSeen": at(0), "lastSeen": at(0),
        "condition": {"state": "Holds", "since": at(0)},
    });
    serde_json::from_value(entry).expect("an entry")
}
