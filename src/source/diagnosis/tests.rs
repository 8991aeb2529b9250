use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// 2026-01-01T12:00:00Z and so many seconds.
fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
    start + chrono::TimeDelta::seconds(seconds)
}

fn stamp(seconds: i64) -> Value {
    json!(at(seconds).to_rfc3339())
}

fn ended(reason: &str, exit_code: i64, from: i64, to: i64) -> Value {
    json!({"terminated": {"reason": reason, "exitCode": exit_code,
           "startedAt": stamp(from), "finishedAt": stamp(to)}})
}

fn running(since: i64) -> Value {
    json!({"running": {"startedAt": stamp(since)}})
}

fn waiting(reason: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": format!("words of {reason}")}})
}

/// A pod of one container, created at 0, that runs since 5 and is ready.
fn sound() -> Value {
    json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "uid-1", "creationTimestamp": stamp(0)},
        "spec": {"containers": [{"name": "app"}]},
        "status": {
            "phase": "Running", "startTime": stamp(1),
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(1)},
                {"type": "Ready", "status": "True", "lastTransitionTime": stamp(6)},
            ],
            "containerStatuses": [
                {"name": "app", "ready": true, "started": true, "restartCount": 0, "state": running(5)},
            ],
        },
    })
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = sound();
    change(&mut value);
    serde_json::from_value(value).expect("a pod")
}

/// Started again once, after this end.
fn restarted(value: &mut Value, end: Value) {
    value["status"]["containerStatuses"][0]["restartCount"] = json!(1);
    value["status"]["containerStatuses"][0]["lastState"] = end;
    value["status"]["containerStatuses"][0]["state"] = running(31);
}

fn unready(value: &mut Value, since: i64) {
    value["status"]["containerStatuses"][0]["ready"] = json!(false);
    value["status"]["conditions"][1] = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastTransitionTime": stamp(since)});
}

fn stuck(value: &mut Value, reason: &str) {
    value["status"]["phase"] = json!("Pending");
    value["status"]["containerStatuses"][0] =
        json!({"name": "app", "ready": false, "restartCount": 0, "state": waiting(reason)});
}

fn unplaced(value: &mut Value) {
    value["status"] = json!({"phase": "Pending"});
}

fn of_job(value: &mut Value) {
    value["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "work", "uid": "job", "controller": true}]);
}

fn as_init(value: &mut Value, sidecar: bool) {
    let policy = if sidecar { json!("Always") } else { Value::Null };
    value["spec"]["initContainers"] = json!([{"name": "app", "restartPolicy": policy}]);
    value["spec"]["containers"] = json!([{"name": "main"}]);
    value["status"]["initContainerStatuses"] = value["status"]["containerStatuses"].take();
    value["status"]["containerStatuses"] =
        json!([{"name": "main", "ready": true, "started": true, "restartCount": 0, "state": running(6)}]);
}

fn probed(value: &mut Value, probe: &str) {
    value["spec"]["containers"][0][probe] = json!({"periodSeconds": 10});
}

fn liveness_killed() -> Evidence {
    Evidence { kills: vec![("app".into(), at(29))], ..Evidence::default() }
}

const FRESH: Duration = Duration::from_secs(900);

fn all(_: EventType) -> bool {
    true
}

fn case<'a>(pod: &'a Pod, evidence: &'a Evidence) -> Case<'a> {
    Case { pod, evidence, stuck_since: None, end_seen_at: at(31), now: at(60) }
}

/// What a diagnosis says, a line for each signal but health.
fn said(signals: &[Signal]) -> Vec<String> {
    let line = |signal: &Signal| match &signal.nature {
        Nature::Occurrence(end) => Some(format!("{} happened, {} in all", signal.event_type, end.count)),
        Nature::Condition { state: StandingState::Holds, since } => Some(format!(
            "{} holds ({:?}) since {}",
            signal.event_type,
            signal.cause,
            (*since - at(0)).num_seconds()
        )),
        Nature::Condition { state: StandingState::Gone, .. } => Some(format!("{} gone", signal.event_type)),
        Nature::Condition { state: StandingState::Clear, .. } | Nature::Unclear => None,
    };
    signals.iter().filter_map(line).collect()
}

fn clear(signals: &[Signal]) -> Vec<(EventType, i64)> {
    let of = |signal: &Signal| match &signal.nature {
        Nature::Condition { state: StandingState::Clear, since } => {
            Some((signal.event_type, (*since - at(0)).num_seconds()))
        }
        _ => None,
    };
    signals.iter().filter_map(of).collect()
}

/// The row of the table that decides about the first end of a pod.
fn row(pod: &Pod, evidence: &Evidence, now: DateTime<Utc>) -> &'static str {
    let case = Case { now, ..case(pod, evidence) };
    let fates = fates(case, &all);
    let end = &fates.first().expect("an end").end;
    ENDINGS.iter().find(|row| (row.fits)(end)).map_or("none", |row| row.name)
}

#[rstest]
#[case::of_a_main_container("killed for its memory (reason OOMKilled), started again or not", |v: &mut Value| restarted(v, ended("OOMKilled", 137, 5, 30)))]
#[case::that_is_not_restarted("killed for its memory (reason OOMKilled), started again or not", |v: &mut Value| {
    v["status"]["phase"] = json!("Failed");
    v["status"]["containerStatuses"][0]["state"] = ended("OOMKilled", 137, 5, 30);
})]
#[case::of_a_job("killed for its memory (reason OOMKilled), started again or not", |v: &mut Value| { restarted(v, ended("OOMKilled", 137, 5, 30)); of_job(v) })]
#[case::of_an_init_container("killed for its memory (reason OOMKilled), started again or not", |v: &mut Value| { restarted(v, ended("OOMKilled", 137, 5, 30)); as_init(v, false) })]
#[case::of_a_sidecar("killed for its memory (reason OOMKilled), started again or not", |v: &mut Value| { restarted(v, ended("OOMKilled", 137, 5, 30)); as_init(v, true) })]
#[case::a_run_that_just_ended("ended, and not started again (yet)", |v: &mut Value| v["status"]["containerStatuses"][0]["state"] = ended("Error", 1, 5, 30))]
#[case::an_init_container_after_a_reboot("an init container that did its work twice, as after a reboot", |v: &mut Value| { restarted(v, ended("Completed", 0, 5, 30)); as_init(v, false) })]
#[case::a_retry("started again as a Job's own retry", |v: &mut Value| { restarted(v, ended("Error", 1, 5, 30)); of_job(v) })]
#[case::with_an_error("started again, whatever its exit code", |v: &mut Value| restarted(v, ended("Error", 3, 5, 30)))]
#[case::that_ended_well("started again, whatever its exit code", |v: &mut Value| restarted(v, ended("Completed", 0, 5, 30)))]
#[case::a_sidecar_that_ended_well("started again, whatever its exit code", |v: &mut Value| { restarted(v, ended("Completed", 0, 5, 30)); as_init(v, true) })]
#[case::an_init_container_that_fails("started again, whatever its exit code", |v: &mut Value| { restarted(v, ended("Error", 1, 5, 30)); as_init(v, false) })]
fn each_end_is_decided_by_one_row(#[case] expected: &str, #[case] change: fn(&mut Value)) {
    assert_eq!(row(&pod(change), &Evidence::default(), at(60)), expected);
}

#[test]
fn every_row_of_both_tables_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> =
        ENDINGS.iter().map(|row| row.name).chain(SIGNS.iter().map(|sign| sign.name)).collect();
    assert_eq!(names.len(), ENDINGS.len() + SIGNS.len());
}

#[rstest]
#[case("livenessProbe", "Error", 137)]
#[case("startupProbe", "Error", 137)]
#[case("livenessProbe", "Completed", 0)]
fn a_probe_that_ended_a_container_is_named_by_its_event_alone(
    #[case] probe: &str,
    #[case] reason: &str,
    #[case] code: i64,
) {
    let pod = pod(|v| {
        restarted(v, ended(reason, code, 5, 30));
        probed(v, probe);
    });
    let none = Evidence::default();
    assert_eq!(row(&pod, &liveness_killed(), at(60)), "ended by a failed liveness or startup probe");
    // Its word may come a moment later.
    assert_eq!(row(&pod, &none, at(32)), "started again, perhaps for a probe whose word is still on its way");
    assert!(outlook(Case { now: at(32), ..case(&pod, &none) }, FRESH).undecided);
    assert_eq!(row(&pod, &none, at(33)), "started again, whatever its exit code");
    // The word of another run, or about another container, is none.
    let other = Evidence { kills: vec![("app".into(), at(32)), ("side".into(), at(29))], ..none.clone() };
    assert_eq!(row(&pod, &other, at(60)), "started again, whatever its exit code");
}

#[test]
fn without_a_hook_for_the_kind_an_end_is_a_restart() {
    let restarts_only = |event_type| event_type == EventType::PodRestart;
    let oom = pod(|v| restarted(v, ended("OOMKilled", 137, 5, 30)));
    let none = Evidence::default();
    assert_eq!(said(&diagnose(case(&oom, &none), restarts_only)), ["pod-restart happened, 1 in all"]);
    let probed = pod(|v| {
        restarted(v, ended("Error", 137, 5, 30));
        probed(v, "livenessProbe");
    });
    let killed = liveness_killed();
    assert_eq!(said(&diagnose(case(&probed, &killed), restarts_only)), ["pod-restart happened, 1 in all"]);
    assert_eq!(said(&diagnose(case(&probed, &killed), all)), ["probe-failed happened, 1 in all"]);
    // What is not started again is no restart, and a Job's retry neither.
    let job = pod(|v| {
        restarted(v, ended("OOMKilled", 137, 5, 30));
        of_job(v);
    });
    assert!(said(&diagnose(case(&job, &none), restarts_only)).is_empty());
}

#[rstest]
#[case::gated(&[], |v: &mut Value| {
    unplaced(v);
    v["spec"]["schedulingGates"] = json!([{"name": "later"}]);
    v["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]);
})]
#[case::unschedulable(&["pod-pending holds (Scheduling) since 2"], |v: &mut Value| {
    unplaced(v);
    v["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "lastTransitionTime": stamp(2)}]);
})]
#[case::no_scheduler(&["pod-pending holds (Scheduling) since 0"], unplaced)]
#[case::on_a_node_that_does_nothing(&["pod-pending holds (Scheduling) since 1"], |v: &mut Value| {
    let conditions = v["status"]["conditions"].take();
    unplaced(v);
    v["status"]["conditions"] = json!([conditions[0]]);
})]
#[case::creating(&["pod-pending holds (Scheduling) since 1"], |v: &mut Value| stuck(v, "ContainerCreating"))]
#[case::image(&["pod-pending holds (ImageOrConfig) since 1"], |v: &mut Value| stuck(v, "ErrImagePull"))]
#[case::image_again(&["pod-pending holds (ImageOrConfig) since 1"], |v: &mut Value| stuck(v, "ImagePullBackOff"))]
#[case::configuration(&["pod-pending holds (ImageOrConfig) since 1"], |v: &mut Value| stuck(v, "CreateContainerConfigError"))]
#[case::creation(&["pod-pending holds (ImageOrConfig) since 1"], |v: &mut Value| stuck(v, "CreateContainerError"))]
#[case::an_image_lost_after_a_restart(
    &["pod-restart happened, 2 in all", "pod-pending holds (ImageOrConfig) since 1"],
    |v: &mut Value| {
        restarted(v, ended("Error", 1, 5, 30));
        v["status"]["containerStatuses"][0]["state"] = waiting("ImagePullBackOff");
    }
)]
#[case::init_takes_its_time(&[], |v: &mut Value| {
    v["status"]["phase"] = json!("Pending");
    as_init(v, false);
    v["status"]["containerStatuses"][0] = json!({"name": "main", "restartCount": 0, "state": waiting("PodInitializing")});
})]
#[case::crash_loop(
    &["pod-restart happened, 2 in all", "pod-restart holds (Restart) since 30"],
    |v: &mut Value| {
        restarted(v, ended("Error", 1, 5, 30));
        v["status"]["containerStatuses"][0]["state"] = waiting("CrashLoopBackOff");
    }
)]
#[case::never_started(
    &["pod-restart happened, 1 in all", "pod-restart holds (Restart) since 30"],
    |v: &mut Value| v["status"]["containerStatuses"][0] = json!({
        "name": "app", "restartCount": 0, "state": waiting("RunContainerError"),
        "lastState": {"terminated": {"reason": "StartError", "exitCode": 128,
            "startedAt": "1970-01-01T00:00:00Z", "finishedAt": stamp(30)}},
    })
)]
#[case::oom_loop(
    &["oom-kill happened, 2 in all", "oom-kill holds (OomKill) since 30"],
    |v: &mut Value| {
        restarted(v, ended("OOMKilled", 137, 5, 30));
        v["status"]["containerStatuses"][0]["state"] = waiting("CrashLoopBackOff");
    }
)]
#[case::a_job_in_its_loop(&[], |v: &mut Value| {
    restarted(v, ended("Error", 1, 5, 30));
    of_job(v);
    v["status"]["containerStatuses"][0]["state"] = waiting("CrashLoopBackOff");
})]
#[case::readiness_lost(&["probe-failed holds (Unready) since 20"], |v: &mut Value| { probed(v, "readinessProbe"); unready(v, 20) })]
#[case::never_ready(&["probe-failed holds (Readiness) since 5"], |v: &mut Value| { probed(v, "readinessProbe"); unready(v, 1) })]
#[case::still_starting(&["probe-failed holds (Readiness) since 5"], |v: &mut Value| {
    probed(v, "startupProbe");
    unready(v, 1);
    v["status"]["containerStatuses"][0]["started"] = json!(false);
})]
#[case::a_gate_of_others(&[], |v: &mut Value| {
    probed(v, "readinessProbe");
    v["status"]["conditions"][1] = json!({"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"});
})]
#[case::a_node_that_is_lost(&[], |v: &mut Value| {
    probed(v, "readinessProbe");
    v["status"]["conditions"][1] = json!({"type": "Ready", "status": "False", "lastTransitionTime": stamp(20)});
})]
#[case::completed(&[], |v: &mut Value| {
    v["status"]["phase"] = json!("Succeeded");
    v["status"]["containerStatuses"][0]["state"] = ended("Completed", 0, 5, 30);
})]
#[case::well(&[], |_: &mut Value| ())]
#[case::being_deleted(
    &["pod-restart gone", "pod-pending gone", "oom-kill gone", "probe-failed gone"],
    |v: &mut Value| {
        restarted(v, ended("OOMKilled", 137, 5, 30));
        v["metadata"]["deletionTimestamp"] = stamp(50);
    }
)]
fn a_pod_says(#[case] expected: &[&str], #[case] change: fn(&mut Value)) {
    let pod = pod(change);
    let none = Evidence::default();
    let signals = diagnose(case(&pod, &none), all);
    assert_eq!(said(&signals), expected);
    let worth_keeping = expected.iter().any(|line| !line.ends_with("gone"));
    assert_eq!(outlook(case(&pod, &none), FRESH).in_trouble, worth_keeping);
}

#[test]
fn of_what_has_ended_nothing_is_said_any_more() {
    let unclear = |change: &dyn Fn(&mut Value)| {
        let (pod, none) = (pod(change), Evidence::default());
        let signals = diagnose(case(&pod, &none), all);
        let unclear = signals.into_iter().filter(|signal| signal.nature == Nature::Unclear);
        unclear.map(|signal| signal.event_type).collect::<Vec<_>>()
    };
    // It was not ready yet, and crashed: the probe of what is dead fails no more.
    let crashed = |v: &mut Value| {
        restarted(v, ended("Error", 1, 5, 30));
        probed(v, "readinessProbe");
        unready(v, 1);
        v["status"]["containerStatuses"][0]["state"] = waiting("CrashLoopBackOff");
    };
    assert_eq!(unclear(&crashed), [EventType::ProbeFailed]);
    // An init container failed: nothing is being created meanwhile.
    let init = |v: &mut Value| {
        v["status"]["phase"] = json!("Pending");
        v["status"]["containerStatuses"][0]["state"] = ended("Error", 3, 5, 30);
        as_init(v, false);
        v["status"]["containerStatuses"][0] = json!({"name": "main", "state": waiting("PodInitializing")});
    };
    assert!(unclear(&init).contains(&EventType::PodPending));
}

#[test]
fn a_sidecar_that_does_not_start_is_its_probes_matter_alone() {
    let pod = pod(|v| {
        v["status"]["phase"] = json!("Pending");
        as_init(v, true);
        v["spec"]["initContainers"][0]["startupProbe"] = json!({});
        v["status"]["initContainerStatuses"][0]["ready"] = json!(false);
        v["status"]["initContainerStatuses"][0]["started"] = json!(false);
        v["status"]["containerStatuses"][0] = json!({"name": "main", "state": waiting("PodInitializing")});
    });
    let none = Evidence::default();
    let said = said(&diagnose(case(&pod, &none), all));
    assert_eq!(said, ["probe-failed holds (Readiness) since 5"]);
}

#[test]
fn a_neighbour_that_has_done_its_work_does_not_keep_a_pod_from_being_well() {
    let none = Evidence::default();
    let pod = pod(|v| {
        v["spec"]["containers"] = json!([{"name": "app"}, {"name": "once"}]);
        let done = json!({"name": "once", "restartCount": 0, "state": ended("Completed", 0, 5, 30)});
        v["status"]["containerStatuses"].as_array_mut().expect("a list").push(done);
    });
    assert_eq!(clear(&diagnose(case(&pod, &none), all)).len(), 4);
}

#[test]
fn an_end_without_a_stamp_is_as_old_as_the_run_after_it() {
    let pod = pod(|v| {
        restarted(v, json!({"terminated": {"reason": "ContainerStatusUnknown", "exitCode": 137}}));
    });
    let none = Evidence::default();
    let late = Case { now: at(10_000), end_seen_at: at(10_000), ..case(&pod, &none) };
    let signals = diagnose(late, all);
    assert_eq!(signals[0].at(), at(31));
    assert!(!outlook(late, FRESH).in_trouble);
}

#[test]
fn liveness_counts_from_its_second_failure_and_until_one_is_missed() {
    let pod = pod(|v| probed(v, "livenessProbe"));
    let streak = |pace| Streak { container: Some("app".into()), first: at(40), last: at(50), pace };
    let evidence = |pace| Evidence { liveness: vec![streak(pace)], ..Evidence::default() };
    let ten = evidence(Some(Duration::from_secs(10)));
    assert_eq!(said(&diagnose(case(&pod, &ten), all)), ["probe-failed holds (Liveness) since 40"]);
    assert!(said(&diagnose(case(&pod, &evidence(None)), all)).is_empty());
    let later = Case { now: at(67), ..case(&pod, &ten) };
    assert!(said(&diagnose(later, all)).is_empty());
}

#[test]
fn health_is_told_with_the_pods_own_stamp() {
    let none = Evidence::default();
    let pod = pod(|v| restarted(v, ended("Error", 1, 5, 30)));
    let signals = diagnose(case(&pod, &none), all);
    let kinds = [EventType::PodRestart, EventType::PodPending, EventType::OomKill, EventType::ProbeFailed];
    assert_eq!(clear(&signals), kinds.map(|kind| (kind, 31)));
}

#[test]
fn what_was_killed_and_is_not_started_again_does_not_recover() {
    let none = Evidence::default();
    let pod = pod(|v| {
        v["status"]["phase"] = json!("Failed");
        v["status"]["containerStatuses"][0]["state"] = ended("OOMKilled", 137, 5, 30);
    });
    let clear: Vec<EventType> =
        clear(&diagnose(case(&pod, &none), all)).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(clear, [EventType::PodRestart, EventType::PodPending, EventType::ProbeFailed]);
}

#[test]
fn words_of_an_event_tell_what_a_state_only_hints_at() {
    let pod = pod(|v| stuck(v, "ContainerCreating"));
    let words = Words {
        event_type: EventType::PodPending,
        event_name: "web-0.1".into(),
        reason: "FailedMount".into(),
        message: "secret \"keys\" not found".into(),
        at: at(10),
    };
    let evidence = Evidence { words: vec![words], ..Evidence::default() };
    let signals = diagnose(case(&pod, &evidence), all);
    assert_eq!(
        (signals[0].reason.as_str(), signals[0].message.as_str()),
        ("FailedMount", "secret \"keys\" not found")
    );
}

#[test]
fn a_pod_with_nothing_in_it_says_nothing_wrong_and_does_not_panic() {
    let pod: Pod = serde_json::from_value(json!({"metadata": {}})).expect("a pod");
    let none = Evidence::default();
    assert!(said(&diagnose(case(&pod, &none), all)).is_empty());
}

#[test]
fn the_same_end_has_the_same_identity_through_all_states_of_the_next_start() {
    let none = Evidence::default();
    let identity = |change: &dyn Fn(&mut Value)| {
        let pod = pod(change);
        let signals = diagnose(case(&pod, &none), all);
        signals.iter().find_map(|signal| match &signal.nature {
            Nature::Occurrence(end) => Some(end.clone()),
            Nature::Condition { .. } | Nature::Unclear => None,
        })
    };
    let end = || ended("OOMKilled", 137, 5, 30);
    let just_ended = identity(&|v| v["status"]["containerStatuses"][0]["state"] = end());
    let backing_off = identity(&|v| {
        v["status"]["containerStatuses"][0]["state"] = waiting("CrashLoopBackOff");
        v["status"]["containerStatuses"][0]["lastState"] = end();
    });
    let running_again = identity(&|v| restarted(v, end()));
    assert!(just_ended.is_some());
    assert_eq!(just_ended, backing_off);
    assert_eq!(just_ended, running_again);
}

fn page() -> String {
    let policy = crate::incident::policy::Policy::default();
    let mut ends = String::from("| a container was | is |\n|---|---|\n");
    for row in &ENDINGS {
        let verdict = match row.verdict {
            Verdict::Trouble(event_type, _) => format!("`{event_type}`"),
            Verdict::Nothing => "no trouble".into(),
            Verdict::Later => "judged in a moment".into(),
        };
        ends.push_str(&format!("| {} | {verdict} |\n", row.name));
    }
    let mut signs = String::from("| a pod | is | hold |\n|---|---|---|\n");
    for sign in &SIGNS {
        let hold = sign.cause.default_hold(&policy).as_secs();
        signs.push_str(&format!("| {} | `{}` | {hold} s |\n", sign.name, sign.event_type));
    }
    include_str!("trouble.md").replace("{ends}", ends.trim_end()).replace("{signs}", signs.trim_end())
}

#[test]
fn the_page_in_the_docs_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/trouble.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page()).expect("writing the page");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page(), "docs/trouble.md is not what the tables say: run with UPDATE_DOCS=1");
}
