//! What those see who run khook: settings and their refusal, logs, credentials, health and metrics.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::Behaviour,
    control_plane::{ControlPlane, Options},
    operator::Operator,
    wait::eventually,
    world::{PATIENCE, World},
};
use khook::hook::Phase;
use serde_json::Value;

/// A khook works for all namespaces of its control plane, so each of these has its own.
async fn world(name: &str) -> Result<World> {
    World::on(Box::leak(Box::new(ControlPlane::start(Options::default()).await?)), name).await
}

#[tokio::test]
async fn a_wrong_setting_stops_the_start_in_one_sentence_that_names_it() -> Result<()> {
    let cases = [
        ("STALE_AFTER", "soon", "STALE_AFTER (--stale-after) is \"soon\", but must be a span of time"),
        ("REPEAT_INTERVAL", "-5m", "REPEAT_INTERVAL (--repeat-interval) is \"-5m\", but must be"),
        ("METRICS_PORT", "70000", "METRICS_PORT (--metrics-port) is \"70000\", but must be a whole number"),
        (
            "LEADER_ELECTION",
            "maybe",
            "LEADER_ELECTION (--leader-election) is \"maybe\", but must be true or false",
        ),
        (
            "MAX_ENTRIES",
            "501",
            "MAX_ENTRIES (--max-entries) is \"501\", but must be a whole number from 1 to 500",
        ),
        ("LOG_FORMAT", "xml", "LOG_FORMAT (--log-format) is \"xml\", but must be auto, json or text"),
        ("LOG_LEVEL", "loud=very", "LOG_LEVEL (--log-level) is \"loud=very\", but must be"),
        ("KAGENT_BASE_URL", "kagent:8083/x?y", "KAGENT_BASE_URL (--kagent-base-url) is"),
        ("KAGENT_USER_ID", "a\nb", "KAGENT_USER_ID (--kagent-user-id) is \"a\\nb\", but must be text"),
        (
            "KAGENT_API_KEY",
            "hunter 2",
            "KAGENT_API_KEY (--kagent-api-key) is (hidden), but must be a bearer token",
        ),
        (
            "KAGENT_API_KEY_FILE",
            "/no/such/file",
            "KAGENT_API_KEY_FILE (--kagent-api-key-file) is \"/no/such/file\"",
        ),
        ("LEASE_RENEW", "1h", "LEASE_RENEW is 3600s, but must be shorter than LEASE_DURATION, which is 15s"),
    ];
    for (name, value, sentence) in cases {
        let setup = Operator::new(Path::new("/no/such/kubeconfig"), "http://127.0.0.1:1")?;
        let operator = setup.env(name, value).start().await?;
        assert_eq!(operator.wait_exit(PATIENCE).await?, 2, "{name}");
        let log = operator.log();
        assert!(log.starts_with(&format!("khook does not start: {sentence}")), "{name}: {log}");
        assert_eq!(log.trim_end().lines().count(), 1, "{log}");
        assert!(!log.contains("hunter"), "{log}");
    }
    let operator = Operator::new(Path::new("/no/such/kubeconfig"), "http://127.0.0.1:1")?;
    let operator = operator.arg("--no-such-flag").start().await?;
    assert_eq!(operator.wait_exit(PATIENCE).await?, 2);
    assert!(operator.log().contains("--no-such-flag"), "{}", operator.log());
    Ok(())
}

#[tokio::test]
async fn a_secret_shows_nowhere_and_goes_with_the_user_to_kagent() -> Result<()> {
    const SECRET: &str = "s3cr3t-0f-kagent";
    let world = world("secret").await?;
    // An agent that gives away what it was sent, and fails in the same way first.
    world.agent.set(
        Behaviour::default()
            .answers(|message| format!("I was sent {}", message.authorization.clone().unwrap_or_default())),
    );
    let setup = world.setup()?.env("KAGENT_API_KEY", SECRET).env("KAGENT_USER_ID", "sre@example.com");
    let setup = setup.env("LOG_LEVEL", "trace").env("LOG_FORMAT", "json").env("STALE_AFTER", "7m30s");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    assert_eq!(entry.answer.as_deref(), Some("I was sent Bearer [redacted]"));

    let message = world.messages().remove(0);
    assert_eq!(message.authorization.as_deref(), Some(format!("Bearer {SECRET}").as_str()));
    assert_eq!(message.user, "sre@example.com");
    let sessions = world.agent.sessions();
    assert!(sessions.iter().all(|session| session.user == "sre@example.com"), "{sessions:?}");

    let log = operator.log();
    let start = log.lines().find(|line| line.contains("khook starts")).context("the first line")?;
    for setting in
        ["STALE_AFTER=7m30s", "KAGENT_API_KEY=(hidden)", "KAGENT_USER_ID=sre@example.com", "CALL_SLOTS=64"]
    {
        assert!(start.contains(setting), "{setting} in {start}");
    }
    let status = serde_json::to_string(&world.hooks().get("shop").await?)?;
    let notices = format!("{:?}", world.notices("shop").await?);
    for (what, text) in
        [("log", log), ("metrics", operator.metrics().await?), ("status", status), ("Events", notices)]
    {
        assert!(!text.is_empty());
        let found = text.lines().find(|line| line.contains(SECRET));
        assert_eq!(found, None, "the {what} tells the secret");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again_when_it_changes() -> Result<()> {
    let world = world("token").await?;
    let setup = world.setup()?;
    let file = setup.dir().join("token");
    fs::write(&file, "first-token\n")?;
    let operator = world.start(setup.env("KAGENT_API_KEY_FILE", file.display())).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    // As a mounted Secret changes: another file takes its place.
    let next = file.with_extension("next");
    fs::write(&next, "second-token")?;
    fs::rename(&next, &file)?;
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    let tokens: Vec<_> = world.messages().into_iter().map(|message| message.authorization.unwrap()).collect();
    assert_eq!(tokens, ["Bearer first-token", "Bearer second-token"]);
    // Away for a moment, it costs an attempt and no incident.
    fs::remove_file(&file)?;
    world.crash("web-2").await?;
    world
        .wait_until("shop", "it backs off", |status| {
            let entry = status.active_events.iter().find(|entry| entry.resource_name == "web-2")?;
            entry.last_error.as_ref().filter(|error| error.contains("token")).map(drop)
        })
        .await?;
    fs::write(&file, "third-token")?;
    world.wait_answered("shop", "web-2").await?;
    world.ensure_each_once(3)?;
    let log = operator.log();
    assert!(!["first-token", "second-token", "third-token"].iter().any(|token| log.contains(token)), "{log}");
    Ok(())
}

#[tokio::test]
async fn health_metrics_and_log_tell_what_an_operator_needs_and_name_no_pod_in_a_label() -> Result<()> {
    let world = world("numbers").await?;
    let setup = world.setup()?.env("LOG_FORMAT", "json").env("LOG_LEVEL", "info");
    let operator = world.start(setup).await?;
    operator.healthy().await?;
    world.hook("shop", &["pod-restart", "oom-kill"]).await?;
    let mut event = world.crash_event("remarkable-0").post(&world.client).await?;
    world.wait_answered("shop", "remarkable-0").await?;
    event.repeat(&world.client).await?;
    // kagent being away makes khook neither unhealthy nor unready.
    world.agent.stop().await;
    world.crash("remarkable-1").await?;
    world
        .wait_until("shop", "it waits with the reason", |status| {
            let entry = status.active_events.iter().find(|entry| entry.resource_name == "remarkable-1")?;
            (entry.status == Phase::Pending && entry.last_error.is_some()).then_some(())
        })
        .await?;
    operator.healthy().await?;
    operator.ready().await?;
    world.agent.start().await?;
    world.wait_answered("shop", "remarkable-1").await?;
    world.wait_for("shop", "remarkable-0", Phase::Resolved).await?;

    type Sample<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);
    let at_least: [Sample; 12] = [
        ("khook_events_total", &[("event_type", "pod-restart"), ("source", "events")], 3.0),
        ("khook_api_calls_total", &[("kind", "message"), ("outcome", "accepted")], 2.0),
        ("khook_api_calls_total", &[("kind", "message"), ("outcome", "not_run")], 1.0),
        ("khook_api_calls_total", &[("kind", "follow")], 2.0),
        ("khook_api_call_duration_seconds_count", &[("kind", "message")], 3.0),
        ("khook_active_events", &[("event_type", "pod-restart"), ("phase", "resolved")], 1.0),
        ("khook_suppressed_total", &[("reason", "window")], 1.0),
        ("khook_event_to_call_seconds_count", &[], 2.0),
        ("khook_status_writes_total", &[("result", "committed")], 4.0),
        ("khook_incident_transitions_total", &[("to", "notified"), ("reason", "AgentCalled")], 2.0),
        ("khook_leader", &[], 1.0),
        ("khook_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ];
    eventually("the numbers", PATIENCE, async || {
        for (name, labels, least) in at_least {
            let value = operator.metric(name, labels).await?;
            ensure!(value >= least, "{name}{labels:?} is {value}");
        }
        Ok(())
    })
    .await?;
    let metrics = operator.metrics().await?;
    for name in ["khook_breaker_state", "khook_inflight_calls", "khook_overflow", "khook_reconcile_duration"]
    {
        assert!(metrics.contains(name), "{name}");
    }
    for word in ["remarkable", "uid-", "Back-off", world.messages()[0].session.as_str()] {
        let found = metrics.lines().find(|line| line.contains(word));
        assert_eq!(found, None, "a label that grows without bound");
    }

    // One line for each transition, for programs and for people.
    let mut transitions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in operator.log().lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let field = |name: &str| line.get(name).or(line["fields"].get(name)).and_then(Value::as_str);
        if let (Some(pod), Some(phase)) = (field("resource"), field("phase")) {
            assert_eq!(field("hook"), Some(format!("{}/shop", world.namespace).as_str()));
            assert_eq!(field("event_type"), Some("pod-restart"));
            assert!(field("reason").is_some_and(|reason| !reason.is_empty()), "{line}");
            transitions.entry(pod.to_owned()).or_default().push(phase.to_owned());
        }
    }
    // The second notified is the answer.
    let walked = ["pending", "firing", "notified", "notified", "resolved"];
    assert_eq!(transitions["remarkable-0"], walked);
    Ok(())
}

#[tokio::test]
async fn the_second_name_of_the_address_works_and_an_apiserver_that_is_away_is_told() -> Result<()> {
    let world = world("away").await?;
    world.control_plane.stop_apiserver()?;
    let setup = world.setup()?.env("KAGENT_BASE_URL", "").env("KAGENT_API_URL", world.agent.url());
    let operator = setup.start().await?;
    eventually("khook to be well and not ready", PATIENCE, async || {
        operator.healthy().await?;
        ensure!(operator.ready().await.is_err(), "ready without an apiserver");
        Ok(())
    })
    .await?;
    world.control_plane.start_apiserver().await?;
    operator.wait_ready(Duration::from_secs(90)).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)
}
