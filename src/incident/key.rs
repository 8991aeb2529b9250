//! A key tells incidents apart: kind of trouble, agent and pod. Every id is derived from it.
//!
//! Ids are UUIDs of version 5, so that every retry and every process after a crash makes the same ones.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::{
    hook::{ActiveEvent, EventType},
    sabotage::{Safeguard, without},
};

/// What makes two signals the same incident. A new pod UID under the same name is the same incident.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The kind of trouble.
    pub event_type: EventType,
    /// The agent asked, namespace/name.
    pub agent: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The test it is made up for: what is made up never meets the real one.
    pub test: Option<String>,
}

// Any fixed UUID would do; this one was drawn for khook.
const IDS: Uuid = Uuid::from_u128(0x6b68_6f6f_6b00_4d3a_9f21_7c0e_5a11_d2c4);

impl Key {
    /// The key of an entry.
    pub fn of(entry: &ActiveEvent) -> Self {
        Self {
            event_type: entry.event_type,
            agent: entry.agent.clone(),
            namespace: entry.namespace.clone(),
            pod: entry.resource_name.clone(),
            test: entry.test.clone(),
        }
    }

    /// Whether this is the key of that entry: `Key::of(entry) == *self` without copying every name.
    pub fn is_of(&self, entry: &ActiveEvent) -> bool {
        self.event_type == entry.event_type
            && self.pod == entry.resource_name
            && self.test == entry.test
            && self.agent == entry.agent
            && self.namespace == entry.namespace
    }

    /// The short id of the entry: 10 hex digits.
    pub fn entry_id(&self, hook_uid: &str) -> String {
        let mut id = self.uuid(hook_uid, "").simple().to_string();
        id.truncate(10);
        id
    }

    /// The kagent session of the episode that began at `first_seen`.
    pub fn session_id(&self, hook_uid: &str, first_seen: DateTime<Utc>) -> String {
        self.uuid(hook_uid, &first_seen.to_rfc3339_opts(SecondsFormat::Millis, true)).to_string()
    }

    // None of the parts can contain a line break, so no two keys give the same text.
    fn uuid(&self, hook_uid: &str, episode: &str) -> Uuid {
        let Self { event_type, agent, namespace, pod, test } = self;
        let test = test.as_ref().map(|name| format!("\ntest/{name}")).unwrap_or_default();
        let text = format!("{hook_uid}\n{event_type}\n{agent}\n{namespace}\n{pod}\n{episode}{test}");
        Uuid::new_v5(&IDS, text.as_bytes())
    }
}

/// The id of the message of one window: the same in every retry, another for every repeat.
pub fn message_id(session_id: &str, window: i32) -> String {
    if without(Safeguard::Ids) {
        return Uuid::new_v4().to_string();
    }
    Uuid::new_v5(&IDS, format!("{session_id}\n{window}").as_bytes()).to_string()
}

/// The id of the message that an incident is resolved: one for each notification, and no window's.
pub fn farewell_id(session_id: &str, window: i32) -> String {
    Uuid::new_v5(&IDS, format!("{session_id}\nresolved/{window}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            event_type: EventType::PodRestart,
            agent: "kagent/k8s-agent".into(),
            namespace: "shop".into(),
            pod: "web-0".into(),
            test: None,
        }
    }

    #[test]
    fn ids_are_the_same_after_every_crash_and_of_every_version() {
        let first_seen = "2026-01-02T03:04:05.678Z".parse().expect("a timestamp");
        let session = key().session_id("hook-uid", first_seen);
        assert_eq!(key().entry_id("hook-uid"), "5c76b87ffc");
        assert_eq!(session, "26674bc6-2b2a-5294-97cb-865b57e3c96e");
        assert_eq!(message_id(&session, 1), "19a96866-4b4b-5aaf-bcbd-15a37feb4b2b");
        assert_eq!(farewell_id(&session, 1), "f77620ca-1180-5802-a096-a0ea5632f41d");
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first_seen = DateTime::UNIX_EPOCH;
        let base = key().session_id("hook-uid", first_seen);
        let others = [
            key().session_id("other-uid", first_seen),
            key().session_id("hook-uid", first_seen + chrono::TimeDelta::milliseconds(1)),
            Key { event_type: EventType::OomKill, ..key() }.session_id("hook-uid", first_seen),
            Key { agent: "kagent/other".into(), ..key() }.session_id("hook-uid", first_seen),
            Key { namespace: "other".into(), ..key() }.session_id("hook-uid", first_seen),
            Key { pod: "web-1".into(), ..key() }.session_id("hook-uid", first_seen),
            Key { test: Some("k3v9".into()), ..key() }.session_id("hook-uid", first_seen),
        ];
        assert!(others.iter().all(|other| *other != base));
        assert_ne!(message_id(&base, 1), message_id(&base, 2));
        assert_ne!(farewell_id(&base, 1), farewell_id(&base, 2));
    }
}
