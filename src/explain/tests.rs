use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// 2026-01-01T12:00:00Z and so many seconds.
fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-01-01T12:00:00Z".parse().unwrap();
    start + TimeDelta::seconds(seconds)
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "uid-1", "creationTimestamp": at(-7200)},
        "spec": {"containers": [{"name": "app"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(-7000)}],
            "containerStatuses": [{"name": "app", "ready": true, "started": true, "restartCount": 0,
                                   "state": {"running": {"startedAt": at(-7000)}}}],
        },
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

/// Killed for its memory so many seconds ago, and running again.
fn oom(ago: i64) -> impl FnOnce(&mut Value) {
    move |value| {
        let status = &mut value["status"]["containerStatuses"][0];
        status["restartCount"] = json!(1);
        status["state"] = json!({"running": {"startedAt": at(1 - ago)}});
        status["lastState"] =
            json!({"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": at(-ago)}});
    }
}

/// Taken by no node for so many seconds.
fn unscheduled(ago: i64) -> impl FnOnce(&mut Value) {
    move |value| {
        value["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes", "lastTransitionTime": at(-ago)}]});
    }
}

fn hook(configurations: Value, status: Value) -> Hook {
    serde_json::from_value(json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook",
        "metadata": {"name": "watch", "namespace": "shop", "uid": "hook-1", "generation": 1},
        "spec": {"eventConfigurations": configurations}, "status": status,
    }))
    .unwrap()
}

fn listens(kind: &str) -> Value {
    json!([{"eventType": kind, "agentId": "kagent/a", "prompt": "Look"}])
}

fn entry(status: &str, reason: &str, more: Value) -> Value {
    let mut entry = json!({"id": "0123456789", "eventType": "oom-kill", "resourceName": "web-0", "namespace": "shop",
        "uid": "uid-1", "agent": "kagent/a", "status": status, "reason": reason, "message": "because",
        "firstSeen": at(-60), "lastSeen": at(-60), "count": 1, "window": 1, "attempts": 1,
        "condition": {"state": "Clear", "since": at(-59)}, "lastNotifiedAt": at(-50), "notifiedAt": at(-50)});
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    json!({"activeEvents": [entry]})
}

fn told(pod: Option<&Pod>, events: &[Event], hooks: &[Hook]) -> Explanation {
    told_by(pod, events, hooks, &Policy::default(), None)
}

fn told_by(
    pod: Option<&Pod>,
    events: &[Event],
    hooks: &[Hook],
    policy: &Policy,
    stopped: Option<&Stopped>,
) -> Explanation {
    explain(&Inputs { namespace: "shop", name: "web-0", pod, events, hooks, policy, stopped, now: at(0) })
}

fn rules(explanation: &Explanation) -> Vec<Held> {
    explanation.findings.iter().map(|finding| finding.rule).collect()
}

#[test]
fn a_pod_that_is_well_and_one_that_nobody_knows() {
    let hooks = [hook(listens("oom-kill"), json!({}))];
    assert_eq!(rules(&told(Some(&pod(|_| ())), &[], &hooks)), [Held::NothingWrong]);
    assert_eq!(rules(&told(None, &[], &hooks)), [Held::Unknown]);
}

#[test]
fn trouble_without_a_hook_and_with_one_that_listens_to_something_else() {
    let pod = pod(oom(60));
    assert_eq!(rules(&told(Some(&pod), &[], &[])), [Held::NoHook]);
    let told = told(Some(&pod), &[], &[hook(listens("pod-pending"), json!({}))]);
    assert_eq!(rules(&told), [Held::NotListened]);
    assert_eq!(told.findings[0].event_type, Some(EventType::OomKill));
    assert!(told.findings[0].fix.as_ref().unwrap().contains("eventType: oom-kill"));
}

#[test]
fn an_oom_kill_counts_as_a_restart_where_only_that_is_listened_to() {
    let told = told(Some(&pod(oom(60))), &[], &[hook(listens("pod-restart"), json!({}))]);
    let due = told.findings.iter().find(|finding| finding.rule == Held::Due).unwrap();
    assert_eq!((due.hook.as_deref(), due.event_type), (Some("watch"), Some(EventType::PodRestart)));
    assert_eq!(rules(&told), [Held::Due]);
}

#[test]
fn what_happened_long_ago_is_stale_and_says_how_long_ago() {
    let hooks = [hook(listens("oom-kill"), json!({}))];
    let fresh = told(Some(&pod(oom(14 * 60))), &[], &hooks);
    assert_eq!(rules(&fresh), [Held::Due]);
    let stale = told(Some(&pod(oom(16 * 60))), &[], &hooks);
    assert_eq!(rules(&stale), [Held::Stale]);
    assert!(stale.findings[0].why.contains("16m before now"), "{}", stale.findings[0].why);
    assert!(stale.signals.iter().any(|signal| signal.stale));
}

#[test]
fn trouble_that_has_not_lasted_is_too_young_until_its_hold_is_over() {
    let hooks = [hook(listens("pod-pending"), json!({}))];
    let young = told(Some(&pod(unscheduled(10))), &[], &hooks);
    assert_eq!(rules(&young), [Held::TooYoung]);
    assert_eq!(young.findings[0].until, Some(at(110)));
    // Old enough for an incident, which waits.
    let held = told(Some(&pod(unscheduled(40))), &[], &hooks);
    assert_eq!((rules(&held), held.findings[0].until), (vec![Held::Due], Some(at(80))));
    let configurations =
        json!([{"eventType": "pod-pending", "agentId": "kagent/a", "prompt": "Look", "for": "1h"}]);
    let hour = told(Some(&pod(unscheduled(40))), &[], &[hook(configurations, json!({}))]);
    assert_eq!((rules(&hour), hour.findings[0].until), (vec![Held::TooYoung], Some(at(3560))));
    assert!(hour.findings[0].why.contains("the Hook's `for`"));
}

#[test]
fn a_pod_that_is_deleted_and_a_job_that_tries_again() {
    let hooks = [hook(json!([listens("oom-kill")[0], listens("pod-restart")[0]]), json!({}))];
    let leaving = pod(|value| {
        oom(60)(value);
        value["metadata"]["deletionTimestamp"] = json!(at(20));
    });
    assert_eq!(rules(&told(Some(&leaving), &[], &hooks)), [Held::BeingDeleted]);
    let job = pod(|value| {
        oom(60)(value);
        value["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] = json!("Error");
        value["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]);
    });
    assert_eq!(rules(&told(Some(&job), &[], &hooks)), [Held::JobRetry]);
}

#[rstest]
#[case("firing", "Calling", Held::Firing)]
#[case("notified", "AgentCalled", Held::Asked)]
#[case("notified", "Observed", Held::Observed)]
#[case("pending", "CircuitOpen", Held::Waiting)]
#[case("pending", "AgentNotReady", Held::Waiting)]
#[case("resolved", "Recovered", Held::Resolved)]
fn an_incident_speaks_for_itself(#[case] phase: &str, #[case] reason: &str, #[case] rule: Held) {
    let status = entry(phase, reason, json!({"resolvedAt": at(-5), "seen": ["* 0 2026-01-01T12:00:00Z"]}));
    let told = told(Some(&pod(oom(60))), &[], &[hook(listens("oom-kill"), status)]);
    assert_eq!(rules(&told), [rule]);
    let finding = &told.findings[0];
    assert_eq!(finding.incident.as_deref(), Some("0123456789"));
    assert_eq!(finding.reason.unwrap().as_str(), reason);
}

#[test]
fn an_incident_that_stands_says_until_when_and_by_whom() {
    let standing_of = |phase: &str, reason: &str, more: Value| {
        let told = told(Some(&pod(oom(60))), &[], &[hook(listens("oom-kill"), entry(phase, reason, more))]);
        (told.findings[0].why.clone(), told.findings[0].until)
    };
    let (why, until) = standing_of("notified", "AgentCalled", json!({"seen": ["* 0 2026-01-01T12:00:00Z"]}));
    assert_eq!((why.as_str(), until), ("because; not asked again before", Some(at(550))));
    let snooze = json!({"instruction": {"verb": "snooze", "by": "ada", "at": at(-30), "until": at(900)}});
    for (phase, reason) in [("notified", "AgentCalled"), ("pending", "Snoozed")] {
        let (why, until) = standing_of(phase, reason, snooze.clone());
        assert_eq!((why.as_str(), until), ("snoozed by ada: nobody is asked", Some(at(900))));
    }
    let ack = json!({"instruction": {"verb": "ack", "by": "ada", "at": at(-30)}});
    let (why, until) = standing_of("notified", "AgentCalled", ack);
    assert_eq!((why.as_str(), until), ("acknowledged by ada: nobody else is asked about this episode", None));
    let (why, until) =
        standing_of("pending", "BackingOff", json!({"nextAttemptAt": at(7), "lastError": "no route"}));
    assert_eq!((why.as_str(), until), ("because; the last attempt: no route", Some(at(7))));
}

#[test]
fn a_configuration_that_cannot_be_used_is_named() {
    let policy =
        Policy { allowed_agents: r#"{"shop":["kagent/other"]}"#.parse().unwrap(), ..Policy::default() };
    let hooks = [hook(listens("oom-kill"), json!({}))];
    let told = told_by(Some(&pod(oom(60))), &[], &hooks, &policy, None);
    assert_eq!(rules(&told), [Held::Refused]);
    assert!(told.findings[0].why.contains("ALLOWED_AGENTS"), "{}", told.findings[0].why);
    assert_eq!(told.hooks[0].problems.len(), 1);
}

#[test]
fn where_the_list_is_full_the_new_one_waits() {
    let mut status = entry("pending", "Holding", json!({"resourceName": "web-1", "nextAttemptAt": at(60)}));
    status["activeEvents"][0]["condition"]["state"] = json!("Holds");
    let policy = Policy { max_entries: 1, ..Policy::default() };
    let told = told_by(Some(&pod(oom(60))), &[], &[hook(listens("oom-kill"), status)], &policy, None);
    assert_eq!(rules(&told), [Held::Overflow]);
}

#[test]
fn a_khook_that_does_not_run_is_why_nothing_comes_of_what_is_due() {
    let stopped = Stopped { rule: Held::NotRunning, why: "khook does not work".into(), fix: "doctor".into() };
    let hooks = [hook(listens("oom-kill"), json!({}))];
    let told = told_by(Some(&pod(oom(60))), &[], &hooks, &Policy::default(), Some(&stopped));
    assert_eq!(rules(&told), [Held::NotRunning]);
    // It is not why a pod that is well raises nothing, nor why one was asked about.
    let asked = [hook(listens("oom-kill"), entry("notified", "AgentCalled", json!({})))];
    let told = told_by(Some(&pod(oom(60))), &[], &asked, &Policy::default(), Some(&stopped));
    assert_eq!(rules(&told), [Held::Asked]);
}

#[test]
fn a_pod_that_is_gone_is_known_by_its_events() {
    let event = |reason: &str, note: &str| -> Event {
        serde_json::from_value(json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "type": "Warning", "reason": reason, "note": note,
            "metadata": {"name": "web-0.1", "namespace": "shop", "uid": "event-1", "creationTimestamp": at(-30)},
            "eventTime": null, "regarding": {"kind": "Pod", "name": "web-0", "namespace": "shop", "uid": "uid-1",
                                             "fieldPath": "spec.containers{app}"},
        }))
        .unwrap()
    };
    let hooks = [hook(json!([listens("pod-restart")[0], listens("probe-failed")[0]]), json!({}))];
    let crash = told(None, &[event("BackOff", "Back-off restarting failed container app")], &hooks);
    assert_eq!((rules(&crash), crash.exists), (vec![Held::Due], false));
    let probe = told(None, &[event("Unhealthy", "Readiness probe failed: HTTP 500")], &hooks);
    assert_eq!(rules(&probe), [Held::NothingWrong]);
    assert!(probe.findings[0].why.contains("the pod is gone"));
}

#[test]
fn a_hook_that_observes_or_is_suspended_says_so() {
    let mut one = hook(listens("oom-kill"), json!({}));
    one.spec.mode = Some(Mode::Observe);
    let told_of = |hook: Hook| told(Some(&pod(oom(60))), &[], &[hook]);
    let observes = told_of(one.clone());
    assert!(observes.hooks[0].observes && observes.findings[0].why.contains("the Hook observes"));
    one.spec.mode = None;
    one.spec.suspend = Some(true);
    let suspended = told_of(one);
    assert!(suspended.hooks[0].suspended && suspended.findings[0].why.contains("suspended"));
}
