//! An Event is what any component of the cluster, or anybody who may create Events, says about a pod.
//!
//! The input is one Event of events.k8s.io/v1, in JSON, as the apiserver serves it.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use khook::{
    hook::HookStatus,
    incident::{
        plan::{Capacity, Claims, Inputs, plan},
        policy::Policy,
        rules::Rules,
        signal::{Nature, Signal},
    },
    source::{
        events::{kill, signal},
        index::{Index, Worth},
    },
};
use serde_json::json;

use crate::at;

/// An Event becomes at most one signal, bounded in all its parts, which opens at most one small incident; a
/// replay of it changes nothing.
pub fn event(data: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Event>(data) else { return };
    let policy = Policy::default();
    let now = at(0);

    if let Some(kill) = kill(&event) {
        assert!(!kill.container.is_empty());
        let mut index = Index::new(policy.stale_after);
        // Of a pod nobody knows: remembered for a while, told to nobody.
        assert_eq!(index.killed(kill.clone(), now), None);
        assert_eq!(index.killed(kill, now), None);
        assert_eq!(index.sweep(now + policy.stale_after * 2), []);
    }

    let Some(told) = signal(&event, now) else { return };
    assert_eq!(signal(&event, now).as_ref(), Some(&told), "the same every time");
    is_bounded(&told);
    let stale = told.is_stale(&policy);
    assert_eq!(stale, told.at() + Duration::from_secs(900) < now);

    let mut index = Index::new(policy.stale_after);
    assert_eq!(index.worth(&told), Worth::Everything, "nobody knows the pod");
    index.quote(&told, now);
    assert_eq!(index.len(), (0, 0), "words are no pod");
    assert_eq!(index.sweep(now + policy.stale_after * 2), []);

    let (status, suppressed) = planned(&HookStatus::default(), &told, &policy);
    let entries = &status.active_events;
    assert_eq!((entries.len(), suppressed), if stale { (0, 1) } else { (1, 0) });
    for entry in entries {
        let bytes = serde_json::to_vec(entry).expect("an entry in JSON").len();
        assert!(bytes < 4096, "{bytes} bytes of status for one Event");
    }
    let (again, suppressed) = planned(&status, &told, &policy);
    assert_eq!((again, suppressed), (status, 1), "a replay changes nothing");
}

fn is_bounded(signal: &Signal) {
    let Signal { namespace, pod, uid, container, event_name, reason, message, nature, .. } = signal;
    let is_name = |name: &str, longest: usize| {
        (1..=longest).contains(&name.len()) && !name.contains(|c: char| c.is_control() || c.is_whitespace())
    };
    assert!(is_name(pod, 253) && is_name(namespace, 63), "{namespace:?} {pod:?}");
    assert!(container.as_ref().is_none_or(|container| is_name(container, 63)), "{container:?}");
    assert!(uid.is_empty() || is_name(uid, 128), "{uid:?}");
    assert!(reason.len() <= 128 && message.len() <= 1024, "{} {}", reason.len(), message.len());
    assert!(event_name.len() <= 253, "{event_name:?}");
    let Nature::Occurrence(occurrence) = nature else { panic!("an Event happened: {nature:?}") };
    assert!(occurrence.count >= 1);
}

fn planned(status: &HookStatus, signal: &Signal, policy: &Policy) -> (HookStatus, usize) {
    let configurations = ["pod-restart", "pod-pending", "oom-kill", "probe-failed"]
        .map(|kind| json!({"eventType": kind, "agentId": "kagent/k8s-agent", "prompt": "Look"}));
    let spec = serde_json::from_value(json!({"eventConfigurations": configurations})).expect("a spec");
    let rules = Rules::parse(&spec, "shop", policy);
    let nothing = Default::default();
    let unmoved = Default::default();
    let plan = plan(&Inputs {
        hook_uid: "6f1e7a0c-0000-4000-8000-000000000001",
        namespace: "shop",
        generation: Some(1),
        rules: &rules,
        status,
        signals: std::slice::from_ref(signal),
        outcomes: &[],
        instructions: &[],
        capacity: &Capacity::default(),
        claims: Claims { process: "fuzz", next: 1, begun: &nothing, busy: &nothing, unmoved: &unmoved },
        policy,
        now: signal.observed_at,
    });
    (plan.status, plan.suppressed.len())
}
