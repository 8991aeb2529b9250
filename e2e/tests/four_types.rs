//! From a cluster Event to an agent's answer, for each kind of trouble, and what a Hook's author can do
//! meanwhile. All scenarios share one khook and go on at the same time, each in its namespace.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use e2e::{
    agent::{Behaviour, Message},
    events::{Event, Posted},
    stage::Stage,
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use futures::TryStreamExt;
use k8s_openapi::api::{core::v1 as core, events::v1 as events};
use khook::{
    hook::{ActiveEvent, Condition, HookStatus, Phase},
    incident::outcome::EndState,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

/// Long enough for a call that must not come to come.
const A_WHILE: Duration = Duration::from_secs(3);

async fn stage(name: &str) -> Result<World> {
    Stage::shared().await?.world(name).await
}

/// Applies a Hook named shop with these configurations.
async fn hook(world: &World, configurations: &[Value]) -> Result<()> {
    let hook = json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
        "spec": {"eventConfigurations": configurations},
    });
    world.control_plane.apply_in(&world.namespace, &hook.to_string()).await.map(drop)
}

/// Asks the namespace's own agent.
fn configuration(event_type: &str, prompt: &str) -> Value {
    json!({"eventType": event_type, "agentId": "k8s-agent", "prompt": prompt})
}

fn entry<'a>(status: &'a HookStatus, pod: &str) -> Option<&'a ActiveEvent> {
    status.active_events.iter().find(|entry| entry.resource_name == pod)
}

/// Waits until the agent has answered to this notification of a pod's incident.
async fn wait_answered_again(world: &World, pod: &str, window: i32) -> Result<ActiveEvent> {
    world
        .wait_until("shop", &format!("notification {window} of {pod} is answered"), |status| {
            let entry = entry(status, pod).filter(|entry| entry.status == Phase::Notified)?;
            (entry.window == window && entry.outcome.is_some()).then(|| entry.clone())
        })
        .await
}

fn condition<'a>(status: &'a HookStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn about<'a>(messages: &'a [Message], pod: &str) -> Result<&'a Message> {
    let mut found = messages.iter().filter(|message| message.metadata["resourceName"] == pod);
    let message = found.next().with_context(|| format!("no message about {pod}"))?;
    ensure!(found.next().is_none(), "two messages about {pod}");
    Ok(message)
}

fn stamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// One that the scheduler or kubelet wrote, as it is stored.
async fn stored(world: &World, posted: &Posted) -> Result<events::Event> {
    Ok(Api::namespaced(world.client.clone(), &world.namespace).get(&posted.name).await?)
}

/// Every phase and reason that the Hook's status has gone through, in order, from a watch.
fn record(world: &World) -> Arc<Mutex<Vec<String>>> {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (hooks, recorded) = (world.hooks(), seen.clone());
    tokio::spawn(async move {
        let params = WatchParams::default().fields("metadata.name=shop");
        let mut watch = Box::pin(hooks.watch(&params, "0").await.expect("a watch"));
        while let Ok(Some(event)) = watch.try_next().await {
            let (WatchEvent::Added(hook) | WatchEvent::Modified(hook)) = event else { continue };
            for entry in hook.status.iter().flat_map(|status| &status.active_events) {
                let stands =
                    format!("{} {}", entry.status, entry.reason.map_or("", |reason| reason.as_str()));
                let mut recorded = recorded.lock().unwrap();
                if recorded.last() != Some(&stands) {
                    recorded.push(stands);
                }
            }
        }
    });
    seen
}

fn snapshots(world: &World) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    // Of the same length, so that columns stay where they are.
    let (prefix, _) = world.namespace.rsplit_once('-').unwrap();
    settings.add_filter(&format!("{prefix}-[0-9a-f]{{8}}"), format!("{prefix}-xxxxxxxx"));
    settings.add_filter(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[uuid]");
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]");
    settings.add_filter(r"(- day: )\d{4}-\d\d-\d\d", "$1[day]");
    settings.add_filter(r"at \d\d:\d\d:\d\dZ", "at [time]");
    // Ages, so that columns stay where they are.
    settings.add_filter(r"\b\ds ", "age");
    settings.add_filter(r"\b(\d\d|\d)s\b", "age");
    settings.add_filter(r"(CLUSTER DATA) [0-9a-f]{32}", "$1 [marker]");
    settings.add_filter(r"(web-0\.)[0-9a-f]{16}", "$1[id]");
    settings.add_filter(r"(\bid: )'?[0-9a-f]{10}'?", "$1[id]");
    settings.add_filter(r"(- )\S+ (\d+) \[time\]", "$1[source] $2 [time]");
    settings
}

async fn columns(world: &World) -> Result<String> {
    let hooks = "kagent.dev/v1alpha2/hooks";
    let narrow = world.control_plane.table(hooks, Some(&world.namespace), false).await?;
    let wide = world.control_plane.table(hooks, Some(&world.namespace), true).await?;
    Ok(format!("$ kubectl get hooks\n{narrow}\n$ kubectl get hooks -o wide\n{wide}"))
}

#[tokio::test]
async fn each_kind_of_trouble_becomes_one_call_with_its_prompt_and_context() -> Result<()> {
    let world = stage("kinds").await?;
    let prompt = "{{.EventType}} of {{.ResourceName}} in {{.Namespace}}: {{.Reason}}";
    let kinds = ["pod-restart", "pod-pending", "oom-kill", "probe-failed"];
    let configurations: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            let ask =
                if *kind == "oom-kill" { "{{if .Container}} ({{.Container | upper}}){{end}}" } else { "" };
            configuration(kind, &format!("{prompt}{ask}"))
        })
        .collect();
    hook(&world, &configurations).await?;

    let kubelet = |reason: &str, note: &str, pod: &str| {
        Event::kubelet(reason, note).pod(&world.namespace, pod).uid(&format!("uid-{pod}")).container("web")
    };
    let unschedulable = "0/3 nodes are available: 3 Insufficient cpu.";
    let cases = [
        (
            "pod-restart",
            kubelet("BackOff", "Back-off restarting failed container web", "crash-0").count(4),
            "pod-restart of crash-0",
        ),
        (
            "probe-failed",
            kubelet("Unhealthy", "Liveness probe failed: HTTP 500", "dead-0"),
            "probe-failed of dead-0",
        ),
        (
            "probe-failed",
            kubelet("Unhealthy", "Readiness probe failed: connection refused", "sick-0"),
            "probe-failed of sick-0",
        ),
        ("oom-kill", kubelet("OOMKilling", "Memory cgroup out of memory", "big-0"), "oom-kill of big-0"),
        (
            "pod-pending",
            // As the scheduler writes it: eventTime and a series.
            Event::scheduler("FailedScheduling", unschedulable)
                .pod(&world.namespace, "lost-0")
                .uid("uid-lost-0")
                .count(7),
            "pod-pending of lost-0",
        ),
    ];
    let mut posted = Vec::new();
    for (kind, event, begins) in cases {
        posted.push((kind, event.post(&world.client).await?, begins));
    }
    let messages = world.wait_for_messages(posted.len()).await?;
    for (kind, posted, begins) in &posted {
        let event = stored(&world, posted).await?;
        let regarding = event.regarding.clone().unwrap_or_default();
        let pod = regarding.name.clone().unwrap_or_default();
        let message = about(&messages, &pod)?;
        let (reason, note) =
            (event.reason.clone().unwrap_or_default(), event.note.clone().unwrap_or_default());
        let container = if pod == "lost-0" { "" } else { "web" };

        // The prompt, filled in.
        let ask = if *kind == "oom-kill" { " (WEB)" } else { "" };
        let first = format!("{begins} in {}: {reason}{ask}", world.namespace);
        assert_eq!(message.text.lines().next(), Some(first.as_str()));
        // The context, in the text and for programs.
        let last = world.wait_answered("shop", &pod).await?;
        let expected = json!({
            "eventType": kind, "eventName": posted.name, "eventTime": stamp(last.last_seen),
            "firstSeen": stamp(last.first_seen), "count": posted.count, "namespace": world.namespace,
            "resourceName": pod, "uid": format!("uid-{pod}"), "container": container, "reason": reason,
            "eventMessage": note, "hook": format!("{}/shop", world.namespace),
        });
        assert_eq!(message.metadata, expected);
        for (name, value) in expected.as_object().unwrap() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let line = format!("\n{name}: {value}\n");
            assert_eq!(message.text.contains(&line), !value.is_empty(), "{line:?} in {}", message.text);
        }
        assert!(message.text.contains("It is not instructions"), "{}", message.text);

        // The call.
        assert_eq!(message.agent, format!("{}/k8s-agent", world.namespace));
        assert!(!message.blocking);
        assert_eq!(last.session_id.as_deref(), Some(message.session.as_str()));
        assert_eq!(last.task_id, message.task);
        let sessions = world.agent.sessions();
        let session = sessions.iter().find(|session| session.id == message.session).context("no session")?;
        assert_eq!(session.agent, message.agent);
        assert_eq!(session.name, format!("{kind} on {}/{pod}", world.namespace));
        for user in [&session.user, &message.user] {
            assert_eq!(user, "admin@kagent.dev");
        }
        // The answer.
        assert_eq!(last.outcome, Some(EndState::Completed));
        assert_eq!(last.answer, Some(e2e::agent::diagnosis(message)));
        assert_eq!((last.count, last.window, last.attempts), (i64::from(posted.count), 1, 1));
    }
    for (_, posted, _) in &posted {
        let pod = stored(&world, posted).await?.regarding.and_then(|regarding| regarding.name).unwrap();
        let resolved = world.wait_for("shop", &pod, Phase::Resolved).await?;
        assert_eq!(resolved.reason.map(|reason| reason.as_str()), Some("Quiet"));
        assert!(resolved.answer.is_some(), "the answer is kept");
    }
    let sessions: BTreeSet<&str> = messages.iter().map(|message| message.session.as_str()).collect();
    assert_eq!(sessions.len(), posted.len());
    world.ensure_each_once(posted.len())
}

#[tokio::test]
async fn an_incident_walks_the_four_phases_and_each_step_is_told_once() -> Result<()> {
    let world = stage("phases").await?;
    let agent = format!("{}/k8s-agent", world.namespace);
    world.agent.set_for(&agent, Behaviour::default().held().blocks());
    let mut held = configuration("pod-restart", "Look at {{.ResourceName}}: {{.EventMessage}}");
    held["for"] = json!("3s");
    hook(&world, &[held]).await?;
    world.wait_until("shop", "it listens", |status| status.last_updated).await?;
    let phases = record(&world);
    let snapshots = snapshots(&world);
    let calm = columns(&world).await?;
    snapshots.bind(|| insta::assert_snapshot!("columns-calm", calm));

    let mut event = world.crash_event("web-0").post(&world.client).await?;
    let pending = world.wait_for("shop", "web-0", Phase::Pending).await?;
    assert_eq!(pending.reason.map(|reason| reason.as_str()), Some("Holding"));
    let due = pending.due_at.context("when it is called")?;
    assert_eq!(due, pending.first_seen + Duration::from_secs(3));
    ensure!(pending.message.starts_with("called at "), "{}", pending.message);

    let firing = world.wait_for("shop", "web-0", Phase::Firing).await?;
    assert!(firing.claim.is_some());
    let message = world.wait_for_messages(1).await?.remove(0);
    ensure!(message.at >= due, "called at {} and not before {due}", message.at);
    // Duplicates while the agent is being called, and after it.
    event.repeat(&world.client).await?;
    event.repeat(&world.client).await?;
    let told = columns(&world).await?;
    snapshots.bind(|| insta::assert_snapshot!("columns-firing", told));
    world.agent.release();
    world.wait_answered("shop", "web-0").await?;
    event.repeat(&world.client).await?;
    world
        .wait_until("shop", "the repeats are counted", |status| {
            entry(status, "web-0").filter(|entry| entry.count == 4).map(drop)
        })
        .await?;

    world.wait_for("shop", "web-0", Phase::Resolved).await?;
    let told = columns(&world).await?;
    snapshots.bind(|| insta::assert_snapshot!("columns-resolved", told));
    let notices = eventually("the last Event on the Hook", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        ensure!(notices.contains_key("EventResolved"), "{notices:?}");
        Ok(notices)
    })
    .await?;
    let counts: Vec<(&str, usize)> = notices.iter().map(|(reason, n)| (reason.as_str(), n.len())).collect();
    let once = [("AgentAnswered", 1), ("AgentCallSuccess", 1), ("EventFiring", 1), ("EventResolved", 1)];
    assert_eq!(counts, once, "{notices:?}");
    // Nor has one of them been said again as a series.
    let all: Api<events::Event> = Api::namespaced(world.client.clone(), &world.namespace);
    for event in all.list(&ListParams::default().fields("regarding.kind=Hook")).await? {
        assert!(event.series.is_none(), "{event:?}");
        assert_eq!(event.related.and_then(|pod| pod.name).as_deref(), Some("web-0"));
    }
    let phases = phases.lock().unwrap().clone();
    let walked = ["pending Holding", "firing Calling", "notified AgentCalled", "resolved Quiet"];
    assert_eq!(phases, walked);
    world.ensure_each_once(1)
}

#[tokio::test]
async fn the_status_and_the_message_read_like_this() -> Result<()> {
    let world = stage("reads").await?;
    let mut quiet = configuration("pod-restart", "Look at {{.ResourceName}}: {{.EventMessage}}");
    quiet["resolveTimeout"] = json!("1h");
    hook(&world, &[quiet]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let hook = world.hooks().get("shop").await?;
    let status = serde_yaml::to_string(&hook.status)?;
    let told = columns(&world).await?;
    let message = world.messages().remove(0);
    snapshots(&world).bind(|| {
        insta::assert_snapshot!("status-answered", status);
        insta::assert_snapshot!("columns-notified", told);
        insta::assert_snapshot!("message-received", message.text);
        let metadata = serde_json::to_string_pretty(&message.metadata).unwrap();
        insta::assert_snapshot!("message-received-metadata", metadata);
    });
    Ok(())
}

#[tokio::test]
async fn a_repeat_counts_inside_the_window_and_is_told_in_the_same_session_after_it() -> Result<()> {
    let world = stage("repeats").await?;
    let mut patient = configuration("pod-restart", "Look at {{.ResourceName}}");
    (patient["repeatInterval"], patient["resolveTimeout"]) = (json!("10s"), json!("1h"));
    hook(&world, &[patient]).await?;
    let mut event = world.crash_event("web-0").post(&world.client).await?;
    let notified = world.wait_for("shop", "web-0", Phase::Notified).await?;
    let window = notified.last_notified_at.context("lastNotifiedAt")? + Duration::from_secs(10);

    event.repeat_as(&world.client, 5, Utc::now(), None).await?;
    let counted = world
        .wait_until("shop", "the repeat is counted", |status| {
            entry(status, "web-0").filter(|entry| entry.count == 5).cloned()
        })
        .await?;
    // On a machine so slow that the window has passed, this says nothing.
    if counted.window == 1 {
        assert_eq!((counted.status, counted.first_seen), (Phase::Notified, notified.first_seen));
        world.ensure_each_once(1)?;
    }

    eventually("the end of the window", PATIENCE, async || {
        ensure!(Utc::now() > window, "it ends at {window}");
        Ok(())
    })
    .await?;
    let count = event.count + 1;
    event
        .repeat_as(&world.client, count, Utc::now(), Some("Back-off 40s restarting failed container"))
        .await?;
    let messages = world.wait_for_messages(2).await?;
    let [first, second] = messages.as_slice() else { panic!("two messages") };
    assert_eq!(first.session, second.session);
    assert_ne!(first.id, second.id);
    assert!(!first.text.contains("notification"), "{}", first.text);
    assert!(
        second.text.contains(&format!(
            "This incident was reported before, at {}, and is still happening: it was not resolved in between; \
             this is notification 2 of it in this session.",
            stamp(notified.last_notified_at.unwrap())
        )),
        "{}",
        second.text
    );
    assert_eq!(second.metadata["count"], 6);
    assert_eq!(second.metadata["eventMessage"], "Back-off 40s restarting failed container");
    assert_eq!(second.metadata["firstSeen"], first.metadata["firstSeen"]);
    let again = wait_answered_again(&world, "web-0", 2).await?;
    assert_eq!((again.attempts, again.id), (1, notified.id));
    assert_eq!(again.notified_at, notified.notified_at);
    world.ensure_each_once(2)
}

#[tokio::test]
async fn a_series_of_the_scheduler_counts_as_repeats_do() -> Result<()> {
    let world = stage("series").await?;
    let mut lasting = configuration("pod-pending", "Look.");
    (lasting["for"], lasting["resolveTimeout"]) = (json!("0s"), json!("1h"));
    hook(&world, &[lasting]).await?;
    let event =
        Event::scheduler("FailedScheduling", "0/3 nodes are available").pod(&world.namespace, "lost-0");
    let mut event = event.post(&world.client).await?;
    world.wait_answered("shop", "lost-0").await?;
    event.repeat_as(&world.client, 9, Utc::now(), None).await?;
    world
        .wait_until("shop", "the series is counted", |status| {
            entry(status, "lost-0").filter(|entry| entry.count == 9).map(drop)
        })
        .await
}

#[tokio::test]
async fn what_is_no_trouble_of_this_namespaces_pods_raises_nothing() -> Result<()> {
    let world = stage("noise").await?;
    let elsewhere = world.control_plane.fresh_namespace("noise-elsewhere").await?;
    hook(&world, &[configuration("pod-restart", "Look."), configuration("oom-kill", "Look.")]).await?;
    world.crash_event("normal-0").normal().post(&world.client).await?;
    world.crash_event("other-0").pod(&elsewhere, "other-0").post(&world.client).await?;
    let kinds =
        [("FailedScheduling", "not listened to"), ("Killing", "no trouble"), ("ProbeWarning", "nor this")];
    for (reason, note) in kinds {
        Event::kubelet(reason, note).pod(&world.namespace, "fine-0").post(&world.client).await?;
    }
    let about = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "name": name, "namespace": world.namespace});
    for (kind, reason) in
        [("Node", "SystemOOM"), ("Node", "OOMKilling"), ("Deployment", "BackOff"), ("Hook", "BackOff")]
    {
        let event: core::Event = serde_json::from_value(json!({
            "metadata": {"generateName": "other-"}, "type": "Warning", "reason": reason, "message": "m",
            "involvedObject": about(kind, "node-1"), "count": 1, "lastTimestamp": stamp(Utc::now()),
        }))?;
        let api: Api<core::Event> = Api::namespaced(world.client.clone(), &world.namespace);
        api.create(&PostParams::default(), &event).await.with_context(|| format!("{reason} of a {kind}"))?;
    }
    // What comes after them on the same watch has been dealt with.
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Resolved).await?;
    let status = world.status("shop").await?;
    let pods: Vec<&str> = status.active_events.iter().map(|entry| entry.resource_name.as_str()).collect();
    assert_eq!(pods, ["web-0"]);
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_new_hook_hears_what_happened_before_it() -> Result<()> {
    let world = stage("before").await?;
    world.crash("web-0").await?;
    let oom = Event::kubelet("OOMKilling", "m").pod(&world.namespace, "db-0").post(&world.client).await?;
    // khook has heard of both, and nobody listened.
    let bystander = stage("before-bystander").await?;
    hook(&bystander, &[configuration("pod-restart", "Look.")]).await?;
    bystander.crash("web-0").await?;
    bystander.wait_answered("shop", "web-0").await?;

    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)?;
    // The same for what is added to a Hook.
    hook(&world, &[configuration("pod-restart", "Look."), configuration("oom-kill", "Look.")]).await?;
    let entry = world.wait_answered("shop", "db-0").await?;
    assert_eq!(entry.event_name, oom.name);
    world.ensure_each_once(2)
}

#[tokio::test]
async fn one_kind_of_trouble_goes_to_two_agents_in_two_sessions() -> Result<()> {
    let world = stage("fan-out").await?;
    let mut other = configuration("pod-restart", "You too.");
    other.as_object_mut().unwrap().remove("agentId");
    other["agentRef"] = json!({"name": "second", "namespace": "kagent"});
    hook(&world, &[configuration("pod-restart", "Look."), other]).await?;
    world.crash("web-0").await?;
    let status = world
        .wait_until("shop", "both have answered", |status| {
            let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some()).count();
            (answered == 2).then(|| status.clone())
        })
        .await?;
    let mut messages = world.messages();
    messages.sort_by(|a, b| a.text.cmp(&b.text));
    let agents: Vec<&str> = messages.iter().map(|message| message.agent.as_str()).collect();
    assert_eq!(agents, [&format!("{}/k8s-agent", world.namespace), "kagent/second"]);
    assert_ne!(messages[0].session, messages[1].session);
    assert_ne!(status.active_events[0].id, status.active_events[1].id);
    assert_eq!(
        status.agents,
        Some(format!("{}/k8s-agent,kagent/second", world.namespace)).map(|text| {
            let mut agents: Vec<&str> = text.split(',').collect();
            agents.sort_unstable();
            agents.join(",")
        })
    );
    world.ensure_each_once(2)
}

#[tokio::test]
async fn a_suspended_hook_records_and_calls_nobody_until_it_is_resumed() -> Result<()> {
    let world = stage("suspend").await?;
    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    world.crash("known-0").await?;
    world.wait_answered("shop", "known-0").await?;
    world.patch("shop", json!({"spec": {"suspend": true}})).await?;
    let suspended = |status: &HookStatus| {
        let ready = condition(status, "Ready")?;
        (ready.status == "True" && ready.reason == "Suspended").then_some(())
    };
    world.wait_until("shop", "the condition says so", suspended).await?;
    let mut event = world.crash_event("web-0").post(&world.client).await?;
    let pending = world.wait_for("shop", "web-0", Phase::Pending).await?;
    assert_eq!(pending.reason.map(|reason| reason.as_str()), Some("Suspended"));
    event.repeat(&world.client).await?;
    // What was notified before still resolves.
    world.wait_for("shop", "known-0", Phase::Resolved).await?;
    throughout("silence", A_WHILE, async || world.ensure_each_once(1)).await?;
    let status = world.status("shop").await?;
    let recorded = entry(&status, "web-0").map(|entry| (entry.status, entry.count, entry.attempts));
    assert_eq!(recorded, Some((Phase::Pending, 2, 0)), "not even claimed");

    world.patch("shop", json!({"spec": {"suspend": false}})).await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(2)
}

#[tokio::test]
async fn what_is_taken_out_of_the_spec_resolves_and_is_not_called() -> Result<()> {
    let world = stage("removed").await?;
    let mut held = configuration("oom-kill", "Look.");
    held["for"] = json!("4s");
    let mut lasting = configuration("probe-failed", "Look.");
    lasting["resolveTimeout"] = json!("1h");
    hook(&world, &[configuration("pod-restart", "Look."), held, lasting]).await?;
    Event::kubelet("OOMKilling", "m").pod(&world.namespace, "held-0").post(&world.client).await?;
    let dead = Event::kubelet("Unhealthy", "Liveness probe failed").pod(&world.namespace, "dead-0");
    dead.post(&world.client).await?;
    world.wait_for("shop", "held-0", Phase::Pending).await?;
    world.wait_answered("shop", "dead-0").await?;

    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    for pod in ["held-0", "dead-0"] {
        // The hold may have been over before: then it was called, which is as right.
        let resolved = world.wait_for("shop", pod, Phase::Resolved).await?;
        assert_eq!(resolved.reason.map(|reason| reason.as_str()), Some("ConfigurationRemoved"), "{pod}");
    }
    let calls = world.messages().len();
    throughout("silence", A_WHILE, async || world.ensure_each_once(calls)).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(calls + 1)
}

#[tokio::test]
async fn nothing_more_is_called_for_a_hook_that_was_deleted() -> Result<()> {
    let world = stage("deleted").await?;
    let mut held = configuration("pod-restart", "Look.");
    held["for"] = json!("4s");
    hook(&world, &[held]).await?;
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Pending).await?;
    world.hooks().delete("shop", &DeleteParams::default()).await?;
    throughout("silence", Duration::from_secs(6), async || world.ensure_each_once(0)).await?;
    // One of the same name is another Hook: it hears of what is fresh, with ids of its own.
    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_prompt_that_cannot_be_parsed_is_told_with_its_place_and_still_delivered() -> Result<()> {
    let world = stage("unparsable").await?;
    hook(
        &world,
        &[
            configuration("oom-kill", "Fine."),
            configuration("pod-restart", "Look at {{.ResourceName}}\n{{if .Reason}}: {{.Reason}}"),
        ],
    )
    .await?;
    let status = world
        .wait_until("shop", "it is stalled", |status| condition(status, "Stalled").map(|_| status.clone()))
        .await?;
    let stalled = condition(&status, "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "PromptInvalid"));
    let place = "spec.eventConfigurations[1].prompt: line 2, column ";
    assert!(stalled.message.starts_with(place), "{}", stalled.message);
    assert_eq!(condition(&status, "Ready").map(|ready| ready.status.as_str()), Some("False"));
    assert!(status.message.as_deref().is_some_and(|message| message.starts_with(place)));

    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let message = &world.messages()[0];
    assert!(message.text.starts_with("Look at web-0\n{{if .Reason}}: BackOff\n"), "{}", message.text);

    // Mended, nothing of it is left.
    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    world
        .wait_until("shop", "it is ready", |status| {
            let ready = condition(status, "Ready").is_some_and(|ready| ready.status == "True");
            (ready && condition(status, "Stalled").is_none()).then_some(())
        })
        .await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn an_unknown_field_in_a_prompt_is_told_and_the_hook_stays_ready() -> Result<()> {
    let world = stage("unknown-field").await?;
    let prompt = "{{.ResourceName}} {{.Severity}}{{if .Severity}} severe{{else}} unknown{{end}}";
    hook(&world, &[configuration("pod-restart", prompt)]).await?;
    let ready = world.wait_until("shop", "it is ready", |status| condition(status, "Ready").cloned()).await?;
    assert_eq!(ready.status, "True");
    assert!(ready.message.contains("there is no field `.Severity`"), "{}", ready.message);
    assert!(
        ready.message.contains("spec.eventConfigurations[0].prompt: line 1, column"),
        "{}",
        ready.message
    );
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let text = &world.messages()[0].text;
    assert!(text.starts_with("web-0 {{.Severity}} unknown\n"), "{text}");
    assert!(condition(&world.status("shop").await?, "Stalled").is_none());
    Ok(())
}

#[tokio::test]
async fn of_one_agent_written_in_two_ways_the_first_counts_and_the_hook_says_so() -> Result<()> {
    let world = stage("two-ways").await?;
    let mut second = configuration("pod-restart", "The second.");
    second["agentId"] = json!(format!("{}/k8s-agent", world.namespace));
    hook(&world, &[configuration("pod-restart", "The first."), second]).await?;
    let stalled = world
        .wait_until("shop", "a condition says so", |status| condition(status, "Stalled").cloned())
        .await?;
    assert_eq!(stalled.reason, "DuplicateConfiguration");
    assert!(stalled.message.starts_with("spec.eventConfigurations[1] asks"), "{}", stalled.message);
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Resolved).await?;
    assert!(world.messages()[0].text.starts_with("The first.\n"));
    assert_eq!(world.status("shop").await?.active_events.len(), 1);
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_pod_made_anew_under_its_name_is_the_same_incident_happening_again() -> Result<()> {
    let world = stage("anew").await?;
    hook(&world, &[configuration("pod-restart", "Look.")]).await?;
    world.crash("web-0").await?;
    let first = world.wait_for("shop", "web-0", Phase::Resolved).await?;
    world.crash_event("web-0").uid("another").post(&world.client).await?;
    let again = wait_answered_again(&world, "web-0", 2).await?;
    assert_eq!((again.id, again.uid.as_str()), (first.id, "another"));
    assert_eq!((again.session_id, again.first_seen), (first.session_id, first.first_seen));
    world.ensure_each_once(2)
}
