//! What the Go khook left behind: Hooks as people wrote them for it, stored under its own CRD, with the status
//! it wrote. Then our CRD is applied over it, and khook starts.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use e2e::{control_plane::ControlPlane, events::Event, stage::Stage, wait::throughout, world::World};
use khook::hook::{Hook, Phase};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// The schema of the Go khook, v0.0.4, without its texts.
const GO_CRD: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: hooks.kagent.dev}
spec:
  group: kagent.dev
  names: {kind: Hook, listKind: HookList, plural: hooks, singular: hook}
  scope: Namespaced
  versions:
  - name: v1alpha2
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            required: [eventConfigurations]
            properties:
              eventConfigurations:
                type: array
                minItems: 1
                items:
                  type: object
                  required: [agentRef, eventType, prompt]
                  properties:
                    eventType: {type: string, enum: [pod-restart, pod-pending, oom-kill, probe-failed]}
                    agentRef:
                      type: object
                      required: [name]
                      properties:
                        name: {type: string, minLength: 1}
                        namespace: {type: string}
                    prompt: {type: string, minLength: 1}
          status:
            type: object
            properties:
              lastUpdated: {type: string, format: date-time}
              activeEvents:
                type: array
                items:
                  type: object
                  required: [eventType, firstSeen, lastSeen, resourceName, status]
                  properties:
                    eventType: {type: string}
                    firstSeen: {type: string, format: date-time}
                    lastSeen: {type: string, format: date-time}
                    resourceName: {type: string}
                    status: {type: string, enum: [firing, resolved]}
";

/// Agents in its own namespace and in another, names that are no Kubernetes names, a prompt with its tokens.
const WRITTEN_FOR_GO: &str = r"
apiVersion: kagent.dev/v1alpha2
kind: Hook
metadata:
  name: shop
  labels: {environment: development}
spec:
  eventConfigurations:
  - eventType: pod-restart
    agentRef:
      name: k8s-agent
    prompt: |
      Pod {{.ResourceName}} in {{ .Namespace }} restarted at {{.EventTime}}.
      • Find out why: {{.EventMessage}}
  - eventType: oom-kill
    agentRef:
      name: SRE_Agent
      namespace: kagent
    prompt: '{{.EventType}} {{.EventName}} {{.Reason}} {{.Message}} {{.Timestamp}}'
";

fn stamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn configuration(agent: &str, prompt: &str) -> Value {
    json!({"eventType": "pod-restart", "agentRef": {"name": agent}, "prompt": prompt})
}

/// A Hook per namespace that today's rules would refuse, and why they would.
fn refused_today() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("go-twice", vec![configuration("a", "first"), configuration("a", "second")]),
        ("go-long", vec![configuration("a", &"long ".repeat(4_000))]),
        ("go-blank", vec![configuration("a", " \n")]),
        ("go-many", (0..51).map(|i| configuration(&format!("a-{i}"), "one of many")).collect()),
    ]
}

/// When the Go khook wrote its last status: a little before this binary looks at it.
struct Past {
    control_plane: &'static ControlPlane,
    seen: DateTime<Utc>,
}

async fn past() -> Result<&'static Past> {
    static PAST: OnceCell<Past> = OnceCell::const_new();
    PAST.get_or_try_init(|| async {
        let control_plane = ControlPlane::shared().await?;
        control_plane.apply(GO_CRD).await?;
        for (namespace, configurations) in refused_today() {
            control_plane.create_namespace(namespace).await?;
            let hook = json!({
                "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
                "spec": {"eventConfigurations": configurations},
            });
            control_plane.apply_in(namespace, &hook.to_string()).await?;
        }
        for namespace in ["go-plain", "go-status", "go-removed"] {
            control_plane.create_namespace(namespace).await?;
            control_plane.apply_in(namespace, WRITTEN_FOR_GO).await?;
        }
        // The Events of what it had seen are still there.
        let client = control_plane.client().await?;
        for (reason, pod) in [("BackOff", "web-0"), ("OOMKilling", "db-0")] {
            Event::kubelet(reason, "old").pod("go-status", pod).count(3).post(&client).await?;
        }
        let seen = DateTime::from_timestamp(Utc::now().timestamp(), 0).unwrap();
        let entry = |event_type, pod, status, seen: DateTime<Utc>| {
            let first = stamp(seen - TimeDelta::minutes(1));
            json!({"eventType": event_type, "resourceName": pod, "status": status, "firstSeen": first, "lastSeen": stamp(seen)})
        };
        let status = json!({"status": {"lastUpdated": stamp(seen), "activeEvents": [
            entry("pod-restart", "web-0", "firing", seen),
            entry("oom-kill", "db-0", "resolved", seen),
        ]}});
        // A kind of trouble that the Hook has stopped to listen to.
        let leftover = json!({"status": {"activeEvents": [entry("probe-failed", "old-0", "firing", seen)]}});
        for (namespace, status) in [("go-status", status), ("go-removed", leftover)] {
            let hooks: Api<Hook> = Api::namespaced(client.clone(), namespace);
            let params = PatchParams { field_manager: Some("khook".into()), ..PatchParams::default() };
            hooks.patch_status("shop", &params, &Patch::Merge(&status)).await?;
        }
        anyhow::Ok(Past { control_plane, seen })
    })
    .await
}

/// Our CRD and khook, over what the Go khook left in this namespace.
async fn upgraded(namespace: &str) -> Result<(World, &'static Past)> {
    let past = past().await?;
    // Nothing resolves for quiet here: what becomes of an incident is the old status's doing.
    let stage = Stage::shared_with(past.control_plane, |setup| setup.env("RESOLVE_TIMEOUT", "10m")).await?;
    Ok((World::with(past.control_plane, stage.agent.clone(), namespace.to_owned()).await?, past))
}

#[tokio::test]
async fn a_hook_written_for_the_go_khook_applies_and_works_unchanged() -> Result<()> {
    let (world, _) = upgraded("go-plain").await?;
    // Also anew, over our CRD.
    world.control_plane.apply_in(&world.namespace, WRITTEN_FOR_GO).await?;
    let elsewhere = world.control_plane.fresh_namespace("go-anew").await?;
    world.control_plane.apply_in(&elsewhere, WRITTEN_FOR_GO).await?;

    world.crash("web-0").await?;
    Event::kubelet("OOMKilling", "Memory cgroup out of memory")
        .pod(&world.namespace, "db-0")
        .post(&world.client)
        .await?;
    world.wait_answered("shop", "web-0").await?;
    world.wait_answered("shop", "db-0").await?;
    let mut messages = world.messages();
    messages.sort_by(|a, b| a.agent.cmp(&b.agent));
    let agents: Vec<&str> = messages.iter().map(|message| message.agent.as_str()).collect();
    assert_eq!(agents, ["go-plain/k8s-agent", "kagent/SRE_Agent"]);
    let [restart, oom] = messages.as_slice() else { panic!("two messages") };
    assert!(restart.text.starts_with("Pod web-0 in go-plain restarted at 2"), "{}", restart.text);
    assert!(restart.text.contains("• Find out why: Back-off restarting failed container web"));
    assert!(oom.text.starts_with("oom-kill db-0."), "{}", oom.text);
    assert!(oom.text.lines().next().unwrap().contains(" OOMKilling Memory cgroup out of memory 2"));
    world.ensure_each_once(2)?;
    let status = world.status("shop").await?;
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").context("Ready")?;
    assert_eq!(ready.status, "True", "{ready:?}");
    Ok(())
}

#[tokio::test]
async fn entries_of_a_kind_the_hook_does_not_listen_to_any_more_go_away() -> Result<()> {
    let (world, _) = upgraded("go-removed").await?;
    world
        .wait_until("shop", "only what khook wrote is there", |status| {
            let ours = status.active_events.iter().all(|entry| !entry.id.is_empty());
            (ours && status.last_updated.is_some()).then_some(())
        })
        .await
}

#[tokio::test]
async fn a_status_left_behind_is_taken_as_notified_and_only_a_new_occurrence_is_called() -> Result<()> {
    let (world, past) = upgraded("go-status").await?;
    let adopted = |pod: &'static str| {
        let world = &world;
        async move {
            world
                .wait_until("shop", &format!("{pod} is adopted"), |status| {
                    let found = status.active_events.iter().find(|entry| entry.resource_name == pod);
                    found.filter(|entry| !entry.id.is_empty()).cloned()
                })
                .await
        }
    };
    let web = adopted("web-0").await?;
    assert_eq!((web.status, web.agent.as_str()), (Phase::Notified, "go-status/k8s-agent"));
    assert_eq!((web.notified_at, web.last_notified_at), (Some(past.seen), Some(past.seen)));
    assert_eq!((web.first_seen, web.last_seen), (past.seen - TimeDelta::minutes(1), past.seen));
    assert_eq!((web.namespace.as_str(), web.window), ("go-status", 1));
    let db = adopted("db-0").await?;
    assert_eq!((db.status, db.agent.as_str()), (Phase::Resolved, "kagent/SRE_Agent"));
    assert_eq!((db.resolved_at, db.last_notified_at), (Some(past.seen), Some(past.seen)));
    assert_eq!(db.reason.map(|reason| reason.as_str()), Some("Quiet"));

    // The window of the old call passes with the old Events in the cluster: nobody is called.
    throughout("silence", Duration::from_secs(5), async || world.ensure_each_once(0)).await?;
    assert_eq!(adopted("web-0").await?.status, Phase::Notified);

    world.crash("web-0").await?;
    Event::kubelet("OOMKilling", "new").pod("go-status", "db-0").post(&world.client).await?;
    for pod in ["web-0", "db-0"] {
        let answered = world.wait_answered("shop", pod).await?;
        assert_eq!((answered.status, answered.window), (Phase::Notified, 2), "{pod}");
    }
    let messages = world.wait_for_messages(2).await?;
    assert!(messages.iter().all(|message| message.text.contains("this is notification 2 of it")));
    world.ensure_each_once(2)
}

#[tokio::test]
async fn a_stored_hook_that_would_be_refused_today_gets_its_status_and_its_calls() -> Result<()> {
    for (namespace, configurations) in refused_today() {
        let (world, _) = upgraded(namespace).await?;
        let hook = json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
            "spec": {"eventConfigurations": configurations},
        });
        // A GitOps tool applies it again and again: it is refused only where somebody changes it.
        world.control_plane.apply_in(namespace, &hook.to_string()).await?;
        world.control_plane.apply_in("default", &hook.to_string()).await.expect_err("a new one is refused");

        world.crash("web-0").await?;
        world.wait_answered("shop", "web-0").await.context(namespace)?;
        let expected = if namespace == "go-many" { 51 } else { 1 };
        let messages = world.wait_for_messages(expected).await?;
        let text = &messages[0].text;
        match namespace {
            "go-twice" => assert!(text.starts_with("first\n"), "{text}"),
            "go-long" => assert!(text.starts_with(&"long ".repeat(3_999)), "{text}"),
            "go-blank" => assert!(text.contains("resourceName: web-0"), "{text}"),
            _ => assert!(text.starts_with("one of many\n"), "{text}"),
        }
        world.ensure_each_once(expected)?;
    }
    let (world, _) = upgraded("go-twice").await?;
    let status = world.status("shop").await?;
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled");
    assert_eq!(stalled.context("Stalled")?.reason, "DuplicateConfiguration");
    Ok(())
}
