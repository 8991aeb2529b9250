//! An Event is what a component of the cluster says about an object; here, Warnings about Pods.
//!
//! Events are words and evidence. About a pod nothing else is known of, the Event itself is the occurrence.

use chrono::{DateTime, Utc};
use k8s_openapi::{api::events::v1::Event, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, runtime::watcher};

use super::{PAGE, index::Kill};
use crate::{
    hook::EventType,
    incident::{
        lifecycle::excerpt_of,
        signal::{Cause, Nature, Occurrence, Signal},
    },
};

/// Served by the apiserver, so that nothing else crosses the wire.
pub const SELECTOR: &str = "type=Warning,regarding.kind=Pod";

/// What kubelet says when it ends a container, whyever; a Normal Event.
pub const KILLS: &str = "reason=Killing,regarding.kind=Pod";

/// How the Events of the cluster are watched. `seconds` is the length of one watch.
pub fn watch_config(seconds: u32) -> watcher::Config {
    watcher::Config::default().fields(SELECTOR).page_size(PAGE).timeout(seconds)
}

/// How kubelet's ends of containers are watched.
pub fn kills_config(seconds: u32) -> watcher::Config {
    watcher::Config::default().fields(KILLS).page_size(PAGE).timeout(seconds)
}

/// What an Event says, if it is that a container is ended for a failed liveness or startup probe. It is
/// written before the container ends (k8s.io/kubernetes: pkg/kubelet/kuberuntime).
pub fn kill(event: &Event) -> Option<Kill> {
    let regarding = event.regarding.as_ref()?;
    let note = event.note.as_deref().unwrap_or_default();
    let probe = ["failed liveness probe", "failed startup probe"];
    if event.reason.as_deref() != Some("Killing") || !probe.iter().any(|words| note.contains(words)) {
        return None;
    }
    Some(Kill {
        name: (named(regarding.namespace.as_deref()?, 63)?, named(regarding.name.as_deref()?, 253)?),
        container: regarding.field_path.as_deref().and_then(container)?,
        at: last_seen(event)?,
    })
}

/// The signals in the Events a namespace has now, for a Hook that has just been heard of.
///
/// # Errors
/// What the apiserver answers to the list.
pub async fn recent(client: &Client, namespace: &str, now: DateTime<Utc>) -> kube::Result<Vec<Signal>> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut signals = Vec::new();
    super::list(&api, SELECTOR, |event| signals.extend(signal(&event, now))).await?;
    Ok(signals)
}

/// What an Event says, if it tells of trouble a Hook can listen to.
pub fn signal(event: &Event, now: DateTime<Utc>) -> Option<Signal> {
    let regarding = event.regarding.as_ref()?;
    if event.type_.as_deref() != Some("Warning") || regarding.kind.as_deref() != Some("Pod") {
        return None;
    }
    let reason = event.reason.as_deref().unwrap_or_default();
    let note = event.note.as_deref().unwrap_or_default();
    let (event_type, cause) = classify(reason, note)?;
    let pod = named(regarding.name.as_deref()?, 253)?;
    let namespace = named(regarding.namespace.as_ref().or(event.metadata.namespace.as_ref())?, 63)?;
    let at = last_seen(event).unwrap_or(now);
    let count =
        event.deprecated_count.into_iter().chain(event.series.as_ref().map(|series| series.count)).max();
    Some(Signal {
        event_type,
        cause,
        namespace,
        pod,
        uid: regarding.uid.as_deref().and_then(|uid| named(uid, 128)).unwrap_or_default(),
        container: regarding.field_path.as_deref().and_then(container),
        event_name: excerpt_of(&event.name_any(), 253),
        // A status keeps no more of them either.
        reason: excerpt_of(reason, 128),
        message: excerpt_of(note, 512),
        observed_at: now,
        nature: Nature::Occurrence(Occurrence {
            source: event.uid().unwrap_or_else(|| event.name_any()),
            at,
            count: i64::from(count.unwrap_or(1).max(1)),
        }),
        test: None,
    })
}

// kubelet's reasons: k8s.io/kubernetes/pkg/kubelet/events/event.go; the scheduler's and the attach-detach
// controller's by their Events.
fn classify(reason: &str, note: &str) -> Option<(EventType, Cause)> {
    let starts = |prefix: &str| note.starts_with(prefix);
    Some(match reason {
        "BackOff" if starts("Back-off pulling image") => (EventType::PodPending, Cause::ImageOrConfig),
        "BackOff" => (EventType::PodRestart, Cause::Restart),
        "OOMKilling" | "OOMKilled" => (EventType::OomKill, Cause::OomKill),
        "Unhealthy" if starts("Liveness") || starts("Startup") => (EventType::ProbeFailed, Cause::Liveness),
        "Unhealthy" => (EventType::ProbeFailed, Cause::Readiness),
        "FailedScheduling" => (EventType::PodPending, Cause::Scheduling),
        // "Failed" is kubelet's word for an image that cannot be pulled and a container that cannot be made.
        "Failed" | "InspectFailed" | "ErrImageNeverPull" | "InvalidImageName" => {
            (EventType::PodPending, Cause::ImageOrConfig)
        }
        "FailedMount"
        | "FailedAttachVolume"
        | "FailedMapVolume"
        | "FailedCreatePodSandBox"
        | "FailedCreatePodContainer"
        | "FailedPodSandBoxStatus"
        | "NetworkNotReady" => (EventType::PodPending, Cause::Scheduling),
        _ => return None,
    })
}

/// When an Event was last seen: the newest of its four stamps. kubelet moves one of them, the scheduler
/// another (FACTS: legacy and events.k8s.io recorders).
pub fn last_seen(event: &Event) -> Option<DateTime<Utc>> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let legacy = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
    let time = event.event_time.as_ref().map(|time| time.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    series.into_iter().chain(legacy).chain(time).chain(created).max().and_then(to_chrono)
}

// The one seam between the two time libraries. Milliseconds are what the status keeps.
fn to_chrono(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time.as_millisecond())
}

// `spec.containers{web}` names the container.
fn container(field_path: &str) -> Option<String> {
    let (_, rest) = field_path.split_once('{')?;
    named(rest.strip_suffix('}')?, 63)
}

// A name or UID that something in Kubernetes can have. The apiserver does not look at what an Event regards, and
// whoever may create Events writes there what they like: a key with line breaks, a status of a megabyte.
fn named(text: &str, longest: usize) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    ((1..=longest).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-01-01T12:00:00Z".parse().expect("a timestamp")
    }

    fn event(change: impl FnOnce(&mut serde_json::Value)) -> Event {
        let mut value = json!({
            "metadata": {"name": "web-0.17", "namespace": "shop", "uid": "uid-1",
                         "creationTimestamp": "2026-01-01T11:00:00Z"},
            "type": "Warning", "reason": "BackOff",
            "note": "Back-off restarting failed container web in pod web-0_shop(uid)",
            "regarding": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "pod-uid",
                          "fieldPath": "spec.containers{web}"},
            "eventTime": null, "deprecatedCount": 7, "deprecatedFirstTimestamp": "2026-01-01T11:00:00Z",
            "deprecatedLastTimestamp": "2026-01-01T11:59:00Z",
        });
        change(&mut value);
        serde_json::from_value(value).expect("an Event")
    }

    #[test]
    fn a_kubelet_event_becomes_an_occurrence() {
        let signal = signal(&event(|_| ()), now()).expect("trouble");
        assert_eq!((signal.event_type, signal.cause), (EventType::PodRestart, Cause::Restart));
        assert_eq!((signal.namespace.as_str(), signal.pod.as_str()), ("shop", "web-0"));
        assert_eq!(signal.container.as_deref(), Some("web"));
        let Nature::Occurrence(occurrence) = signal.nature else { panic!("an occurrence") };
        assert_eq!((occurrence.source.as_str(), occurrence.count), ("uid-1", 7));
        assert_eq!(occurrence.at.to_rfc3339(), "2026-01-01T11:59:00+00:00");
    }

    #[rstest]
    #[case("BackOff", "Back-off restarting failed container", Some(EventType::PodRestart))]
    #[case("BackOff", "Back-off pulling image \"x\"", Some(EventType::PodPending))]
    #[case("Failed", "Failed to pull image \"x\"", Some(EventType::PodPending))]
    #[case("Failed", "Error: secret \"x\" not found", Some(EventType::PodPending))]
    #[case("FailedScheduling", "0/3 nodes are available", Some(EventType::PodPending))]
    #[case("FailedMount", "MountVolume.SetUp failed", Some(EventType::PodPending))]
    #[case("FailedCreatePodSandBox", "", Some(EventType::PodPending))]
    #[case("Unhealthy", "Liveness probe failed: HTTP 500", Some(EventType::ProbeFailed))]
    #[case("Unhealthy", "Startup probe failed: timeout", Some(EventType::ProbeFailed))]
    #[case("Unhealthy", "Readiness probe errored", Some(EventType::ProbeFailed))]
    #[case("OOMKilling", "Memory cgroup out of memory", Some(EventType::OomKill))]
    #[case("OOMKilled", "", Some(EventType::OomKill))]
    #[case("ProbeWarning", "Liveness probe warning: redirected", None)]
    #[case("Killing", "Stopping container web", None)]
    #[case("Evicted", "The node was low on resource", None)]
    #[case("", "", None)]
    fn reasons_are_told_apart(#[case] reason: &str, #[case] note: &str, #[case] expected: Option<EventType>) {
        let event = event(|value| {
            value["reason"] = json!(reason);
            value["note"] = json!(note);
        });
        assert_eq!(signal(&event, now()).map(|signal| signal.event_type), expected);
    }

    #[rstest]
    #[case("Normal", "Pod")]
    #[case("Warning", "Node")]
    #[case("Warning", "Hook")]
    fn only_warnings_about_pods_count(#[case] type_: &str, #[case] kind: &str) {
        let event = event(|value| {
            value["type"] = json!(type_);
            value["regarding"]["kind"] = json!(kind);
        });
        assert_eq!(signal(&event, now()), None);
    }

    #[test]
    fn the_newest_of_four_stamps_counts() {
        let at = |event: &Event| signal(event, now()).expect("trouble").at().to_rfc3339();
        let scheduler = event(|value| {
            value["eventTime"] = json!("2026-01-01T11:30:00.123456Z");
            value["deprecatedLastTimestamp"] = json!(null);
            value["series"] = json!({"count": 4, "lastObservedTime": "2026-01-01T11:45:00.654321Z"});
        });
        assert_eq!(at(&scheduler), "2026-01-01T11:45:00.654+00:00");
        let no_stamp_but_creation = event(|value| value["deprecatedLastTimestamp"] = json!(null));
        assert_eq!(at(&no_stamp_but_creation), "2026-01-01T11:00:00+00:00");
    }

    #[rstest]
    #[case("name", json!("web-0\nkagent/other"))]
    #[case("name", json!("w".repeat(254)))]
    #[case("namespace", json!(""))]
    #[case("namespace", json!("n".repeat(64)))]
    fn what_no_pod_can_be_called_is_no_trouble_of_a_pod(
        #[case] field: &str,
        #[case] name: serde_json::Value,
    ) {
        assert_eq!(signal(&event(|value| value["regarding"][field] = name), now()), None);
    }

    #[test]
    fn what_an_event_says_is_bounded() {
        let told = signal(
            &event(|value| {
                value["note"] = json!("é".repeat(5000));
                value["regarding"]["uid"] = json!("u".repeat(5000));
                value["regarding"]["fieldPath"] = json!(format!("spec.containers{{{}}}", "c".repeat(5000)));
            }),
            now(),
        )
        .expect("trouble");
        assert_eq!((told.message.len() <= 512, told.uid.as_str(), told.container), (true, "", None));
    }

    #[test]
    fn an_event_with_nothing_in_it_is_no_trouble_and_no_panic() {
        assert_eq!(signal(&Event::default(), now()), None);
        let bare = event(|value| value["regarding"] = json!({"kind": "Pod"}));
        assert_eq!(signal(&bare, now()), None);
    }
}
