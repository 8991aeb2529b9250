use serde_json::{Value, json};

use super::*;
use crate::{hook::Standing, incident::signal::Occurrence};

/// 2026-01-01T12:00:00Z and so many seconds.
fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
    start + chrono::TimeDelta::seconds(seconds)
}

fn name() -> Name {
    ("shop".into(), "web-0".into())
}

fn pod(uid: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": uid,
                     "resourceVersion": "1", "creationTimestamp": at(0)},
        "spec": {"containers": [{"name": "app", "livenessProbe": {}}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(5)}],
            "containerStatuses": [{"name": "app", "ready": true, "started": true, "restartCount": 0,
                                   "state": {"running": {"startedAt": at(5)}}}],
        },
    });
    change(&mut value);
    serde_json::from_value(value).expect("a pod")
}

fn oom(value: &mut Value) {
    let status = &mut value["status"]["containerStatuses"][0];
    status["restartCount"] = json!(1);
    status["state"] = json!({"running": {"startedAt": at(61)}});
    status["lastState"] =
        json!({"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": at(60)}});
}

fn crash(value: &mut Value) {
    oom(value);
    value["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] = json!("Error");
}

fn bad_image(value: &mut Value) {
    let status = &mut value["status"]["containerStatuses"][0];
    status["state"] = json!({"waiting": {"reason": "ErrImagePull"}});
    status["ready"] = json!(false);
}

fn deleted(value: &mut Value) {
    value["metadata"]["deletionTimestamp"] = json!(at(90));
}

fn index() -> Index {
    Index::new(Duration::from_secs(900))
}

fn listed(index: &mut Index, pods: Vec<Pod>, now: i64) -> Vec<Option<Report>> {
    let events = pods.into_iter().map(watcher::Event::InitApply);
    let all = [watcher::Event::Init].into_iter().chain(events).chain([watcher::Event::InitDone]);
    all.map(|event| index.observe(event, at(now))).collect()
}

fn applied(index: &mut Index, pod: Pod, now: i64) -> Option<Report> {
    index.observe(watcher::Event::Apply(pod), at(now))
}

/// What a pod in trouble says to a Hook that listens to all: kinds with o(ccurred), h(olds), c(lear).
fn told(index: &Index, now: i64) -> String {
    let letter = |signal: &Signal| match signal.nature {
        Nature::Occurrence(_) => 'o',
        Nature::Condition { state: StandingState::Holds, .. } => 'h',
        Nature::Condition { state: StandingState::Clear, .. } => 'c',
        Nature::Condition { state: StandingState::Gone, .. } => 'g',
        Nature::Unclear => 'u',
    };
    let signals = index.signals(&name(), |_| true, at(now));
    signals.iter().map(|signal| format!("{}:{} ", signal.event_type, letter(signal))).collect()
}

fn warning(reason: &str, message: &str, uid: &str, seconds: i64) -> Signal {
    let (event_type, cause) = match reason {
        "Unhealthy" => (EventType::ProbeFailed, Cause::Liveness),
        "FailedMount" => (EventType::PodPending, Cause::Scheduling),
        _ => (EventType::PodRestart, Cause::Restart),
    };
    Signal {
        cause,
        uid: uid.into(),
        container: Some("app".into()),
        event_name: "web-0.1".into(),
        reason: reason.into(),
        message: message.into(),
        nature: Nature::Occurrence(Occurrence { source: "event".into(), at: at(seconds), count: 1 }),
        ..diagnosis::standing(&pod(uid, |_| ()), event_type, StandingState::Holds, at(seconds), at(seconds))
    }
}

fn changed() -> Option<Report> {
    Some(Report::Changed(name()))
}

#[test]
fn numbers_that_kubernetes_does_not_know_are_refused_and_its_largest_are_no_panic() {
    let ended = |at: &str, restarts: i64| {
        let mut value = json!({"metadata": {"name": "web-0", "namespace": "shop", "uid": "one"}});
        value["spec"] = json!({"containers": [{"name": "app"}]});
        let state = json!({"terminated": {"reason": "Error", "exitCode": 1, "finishedAt": at}});
        value["status"] =
            json!({"containerStatuses": [{"name": "app", "restartCount": restarts, "state": state}]});
        serde_json::from_value::<Pod>(value)
    };
    assert!(ended("+262142-12-31T23:59:59Z", 0).is_err());
    assert!(ended("2026-01-01T00:00:00Z", i64::MAX).is_err());
    for at in ["9999-12-30T00:00:00Z", "0000-01-01T00:00:00Z"] {
        applied(&mut index(), ended(at, i32::MAX.into()).expect("a pod"), 0);
    }
}

#[test]
fn of_a_healthy_pod_nothing_is_kept_but_that_it_is_there() {
    let mut index = index();
    assert_eq!(listed(&mut index, vec![pod("one", |_| ())], 10), [None, None, Some(Report::Listed)]);
    assert_eq!((index.len(), index.lists()), ((1, 0), 1));
    assert_eq!(applied(&mut index, pod("one", |_| ()), 11), None);
    assert_eq!(index.worth(&warning("BackOff", "", "one", 12)), Worth::Words);
    let mut other = warning("BackOff", "", "other", 12);
    other.pod = "web-1".into();
    assert_eq!(index.worth(&other), Worth::Everything);
}

#[test]
fn trouble_is_told_once_for_each_change_and_its_end_too() {
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    assert_eq!(applied(&mut index, pod("one", oom), 62), changed());
    assert_eq!(told(&index, 62), "oom-kill:o pod-restart:c pod-pending:c oom-kill:c probe-failed:c ");
    // A new version, but nothing in it that matters.
    let mut same = pod("one", oom);
    same.metadata.resource_version = Some("2".into());
    assert_eq!(applied(&mut index, same, 63), None);
    // After a quarter of an hour it is nobody's news any more.
    assert_eq!(index.sweep(at(900)), []);
    assert_eq!(index.sweep(at(963)), [Report::Changed(name())]);
    assert_eq!(index.sweep(at(965)), []);
    assert_eq!(index.len(), (1, 0));
}

#[test]
fn an_end_under_a_probe_waits_for_the_word_of_kubelet() {
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    applied(&mut index, pod("one", crash), 62);
    assert!(!told(&index, 62).contains(":o"));
    let kill = Kill { name: name(), container: "app".into(), at: at(60) };
    assert_eq!(index.killed(kill.clone(), at(62)), changed());
    assert!(told(&index, 62).starts_with("probe-failed:o"));
    assert_eq!(index.killed(kill, at(63)), None, "told again by a list");

    let mut index = self::index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    applied(&mut index, pod("one", crash), 62);
    assert_eq!(index.sweep(at(64)), [Report::Changed(name())], "none came");
    assert!(told(&index, 64).starts_with("pod-restart:o"));
}

#[test]
fn a_container_that_cannot_be_started_is_stuck_since_it_was_seen_to_be() {
    let since = |index: &Index, now| {
        let signals = index.signals(&name(), |kind| kind == EventType::PodPending, at(now));
        (signals[0].at() - at(0)).num_seconds()
    };
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    applied(&mut index, pod("one", bad_image), 70);
    applied(
        &mut index,
        pod("one", |v| {
            bad_image(v);
            v["status"]["phase"] = json!("Pending");
        }),
        75,
    );
    assert_eq!(since(&index, 75), 70);
    // Found so: it may be as old as the pod.
    let mut index = self::index();
    listed(&mut index, vec![pod("one", bad_image)], 70);
    assert_eq!(since(&index, 70), 0);
}

#[test]
fn the_hold_of_a_pod_that_was_gated_begins_when_no_node_takes_it() {
    let since = |index: &Index, now| {
        let signals = index.signals(&name(), |kind| kind == EventType::PodPending, at(now));
        (signals[0].at() - at(0)).num_seconds()
    };
    let unplaced = |reason: &str| {
        let conditions = json!([{"type": "PodScheduled", "status": "False", "reason": reason}]);
        pod("one", |v| v["status"] = json!({"phase": "Pending", "conditions": conditions}))
    };
    let mut index = index();
    listed(&mut index, vec![unplaced("SchedulingGated")], 10);
    applied(&mut index, unplaced("Unschedulable"), 3600);
    assert_eq!(since(&index, 3601), 3600);
}

#[test]
fn a_pod_is_gone_as_soon_as_it_is_deleted_and_once() {
    let mut index = index();
    listed(&mut index, vec![pod("one", oom)], 62);
    let Some(Report::Gone { at: since, troubled, .. }) = applied(&mut index, pod("one", deleted), 80) else {
        panic!("gone")
    };
    assert_eq!((since, troubled), (at(80), true));
    assert_eq!(applied(&mut index, pod("one", deleted), 81), None);
    assert_eq!(index.observe(watcher::Event::Delete(pod("one", deleted)), at(90)), None);
    // Its late Events are nobody's news; a late answer about it changes nothing.
    assert_eq!(index.worth(&warning("Unhealthy", "Readiness probe failed", "one", 91)), Worth::Nothing);
    assert_eq!(applied(&mut index, pod("one", oom), 92), None);
    assert_eq!(index.len(), (0, 0));
    // Another one of its name speaks for itself.
    assert_eq!(applied(&mut index, pod("two", oom), 100), changed());
    index.sweep(at(2000));
    assert_eq!(index.worth(&warning("BackOff", "", "one", 91)), Worth::Words);
}

#[test]
fn liveness_that_fails_twice_in_a_row_is_trouble_until_it_fails_no_more() {
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    let failed = |seconds| warning("Unhealthy", "Liveness probe failed: HTTP 500", "one", seconds);
    assert_eq!(index.quote(&failed(100), at(100)), None, "once is a blip");
    assert_eq!(index.quote(&failed(110), at(110)), Some(Report::Fetch(name())));
    assert_eq!(applied(&mut index, pod("one", |_| ()), 110), changed());
    assert!(told(&index, 110).contains("probe-failed:h"));
    let signals = index.signals(&name(), |kind| kind == EventType::ProbeFailed, at(110));
    assert_eq!((signals[0].at(), signals[0].message.as_str()), (at(100), "Liveness probe failed: HTTP 500"));
    // The next one is half a pace and a second late.
    assert_eq!(index.sweep(at(126)), []);
    assert_eq!(index.sweep(at(127)), [Report::Changed(name())]);
    assert!(told(&index, 127).contains("probe-failed:c"));
    // Far apart, each is the first.
    let mut index = self::index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    index.quote(&failed(100), at(100));
    assert_eq!(index.quote(&failed(400), at(400)), None);
}

#[test]
fn a_list_tells_what_became_of_what_the_status_speaks_of() {
    let mut entry = self::entry();
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 100);
    let compare = |index: &Index, entry: &ActiveEvent| {
        let signals = index.compare("shop", std::slice::from_ref(entry), |_| true, at(100));
        signals.iter().map(|signal| format!("{:?}", signal.nature)).collect::<Vec<_>>()
    };
    let since = at(5);
    let clear = Nature::Condition { state: StandingState::Clear, since };
    assert_eq!(compare(&index, &entry), [format!("{clear:?}")]);
    // Of what only Events have told nobody knows the pod; what a pod has told is over with it.
    entry.resource_name = "web-9".into();
    assert_eq!(compare(&index, &entry), [""; 0]);
    entry.condition = Some(Standing { state: StandingState::Holds, since });
    let gone = Nature::Condition { state: StandingState::Gone, since: at(100) };
    assert_eq!(compare(&index, &entry), [format!("{gone:?}")]);
    // What is in trouble tells itself, to whoever listens there.
    listed(&mut index, vec![pod("one", oom)], 100);
    assert_eq!(index.compare("shop", &[], |kind| kind == EventType::OomKill, at(100)).len(), 2);
    assert!(index.compare("other", &[], |_| true, at(100)).is_empty());
}

#[test]
fn a_pod_that_a_list_does_not_name_any_more_is_forgotten() {
    let mut index = index();
    listed(&mut index, vec![pod("one", oom)], 62);
    assert_eq!(index.len(), (1, 1));
    listed(&mut index, vec![], 70);
    assert_eq!((index.len(), index.lists()), ((0, 0), 2));
}

#[test]
fn evidence_is_forgotten_in_time() {
    let mut index = index();
    listed(&mut index, vec![pod("one", |_| ())], 10);
    index.quote(&warning("FailedMount", "no", "one", 20), at(20));
    index.killed(Kill { name: name(), container: "app".into(), at: at(20) }, at(20));
    assert_eq!(index.evidence.len(), 1);
    index.sweep(at(921));
    assert_eq!(index.evidence.len(), 0);
}

fn entry() -> ActiveEvent {
    serde_json::from_value(json!({
        "id": "1", "eventType": "oom-kill", "resourceName": "web-0", "namespace": "shop", "uid": "one",
        "agent": "kagent/k8s-agent", "status": "notified", "firstSeen": at(60), "lastSeen": at(60),
    }))
    .expect("an entry")
}
