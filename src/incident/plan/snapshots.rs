//! What people see in `kubectl get hook -o yaml`, in every phase.

use super::*;
use crate::{hook::EventType, incident::fixtures::*};

fn show(name: &str, bench: &Bench) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_yaml_snapshot!(format!("status-{name}"), bench.status));
}

fn restarts() -> Bench {
    let mut bench = Bench::new(rules(vec![rule(EventType::PodRestart, AGENT)]));
    bench.turn(&[], &[], at(-60));
    bench
}

fn firing() -> Bench {
    let mut bench = restarts();
    bench.turn(&[restarted("web-0", 3, at(0))], &[], at(1));
    bench
}

fn notified() -> Bench {
    let mut bench = firing();
    let outcome = bench.outcome("web-0", reply_accepted("0c4f8a52-3a51-4f0e-9d0b-6f2f1d7f6a11"));
    bench.turn(&[], &[outcome], at(3));
    bench
}

fn answered() -> Bench {
    let mut bench = notified();
    let task = bench.entry().task_id.clone().expect("a task");
    let ended = completed("The container is killed by its liveness probe:\n1. raise initialDelaySeconds");
    let outcome = outcome_of(bench.entry(), News::TaskEnded(task, ended));
    bench.turn(&[], &[outcome], at(42));
    bench
}

#[test]
fn nothing_is_wrong() {
    show("watching", &restarts());
}

#[test]
fn pending_for_each_reason() {
    let mut bench = Bench::new(rules(vec![rule(EventType::ProbeFailed, AGENT)]));
    bench.turn(&[readiness("web-0", StandingState::Holds, at(0))], &[], at(1));
    show("pending-holding", &bench);

    let mut bench = firing();
    let outcome = bench.outcome("web-0", reply_not_run());
    bench.turn(&[], &[outcome], at(3));
    show("pending-backing-off", &bench);

    let mut bench = restarts();
    bench.allow(Allow::NoneUntil(at(15)));
    bench.turn(&[restarted("web-0", 3, at(0))], &[], at(1));
    show("pending-circuit-open", &bench);
}

#[test]
fn firing_and_in_doubt() {
    let mut bench = firing();
    show("firing", &bench);
    let outcome = bench.outcome("web-0", reply_unknown());
    bench.turn(&[], &[outcome], at(31));
    show("firing-checking-session", &bench);
}

#[test]
fn notified_then_answered_then_resolved() {
    show("notified", &notified());
    let mut bench = answered();
    show("notified-answered", &bench);
    bench.turn(&[], &[], at_ms(603_001));
    show("resolved", &bench);
}

#[test]
fn the_list_is_full() {
    let mut bench = restarts();
    bench.policy.max_entries = 1;
    bench.turn(&[restarted("web-0", 1, at(0)), restarted("web-1", 1, at(0))], &[], at(1));
    show("overflow", &bench);
}
