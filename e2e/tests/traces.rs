//! An incident is one trace: what a collector gets, and what the agent is told of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{Router, body::Bytes, extract::State, routing::post};
use chrono::Utc;
use e2e::{
    agent::{Behaviour, Fault, Message},
    process::free_port,
    wait::eventually,
    world::{PATIENCE, World},
};
use khook::hook::{ActiveEvent, Phase};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message as _;

/// A collector of OpenTelemetry's that keeps what it gets.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    async fn start() -> Result<Self> {
        let got = Arc::new(Mutex::new(Vec::new()));
        let take = async |State(got): State<Arc<Mutex<Vec<_>>>>, body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).expect("OTLP in protobuf");
            got.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(got.clone());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, got })
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = got.iter().flat_map(|request| &request.resource_spans);
        sent.flat_map(|spans| &spans.scope_spans).flat_map(|spans| spans.spans.clone()).collect()
    }

    /// Waits for so many spans whose name begins like this; answers all.
    async fn wait_for(&self, count: usize, name: &str) -> Result<Vec<Span>> {
        eventually(&format!("{count} spans {name}"), PATIENCE, async || {
            let spans = self.spans();
            let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
            let found = names.iter().filter(|found| found.starts_with(name)).count();
            ensure!(found >= count, "there are {names:?}");
            Ok(spans)
        })
        .await
    }
}

/// That the spans are one trace of this incident: one root, no parent missing, no id twice, and every time in
/// order. Answers the root.
fn ensure_one_tree<'a>(spans: &'a [Span], entry: &ActiveEvent) -> Result<&'a Span> {
    let by_id: HashMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    ensure!(by_id.len() == spans.len(), "an id is there twice: {spans:#?}");
    for span in spans {
        ensure!(hex(&span.trace_id) == trace_id(entry), "{} is of another trace", span.name);
        ensure!(span.start_time_unix_nano > 0, "{} has no time", span.name);
        ensure!(span.start_time_unix_nano <= span.end_time_unix_nano, "{} ends before it begins", span.name);
        if !span.parent_span_id.is_empty() {
            let parent = by_id.get(span.parent_span_id.as_slice());
            let parent = parent.with_context(|| format!("the parent of {} is missing", span.name))?;
            let inside = parent.start_time_unix_nano <= span.start_time_unix_nano;
            ensure!(inside, "{} begins before {}", span.name, parent.name);
        }
    }
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id.is_empty()).collect();
    ensure!(roots.len() == 1, "{} roots: {roots:#?}", roots.len());
    Ok(roots[0])
}

fn trace_id(entry: &ActiveEvent) -> String {
    entry.session_id.as_deref().unwrap_or_default().replace('-', "")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn calls(spans: &[Span]) -> Vec<&Span> {
    let mut calls: Vec<&Span> = spans.iter().filter(|span| span.name == "call").collect();
    calls.sort_by_key(|call| call.start_time_unix_nano);
    calls
}

fn traceparent(message: &Message) -> Option<String> {
    message.headers.get("traceparent").cloned()
}

fn header(call: &Span) -> Option<String> {
    Some(format!("00-{}-{}-01", hex(&call.trace_id), hex(&call.span_id)))
}

#[tokio::test]
async fn an_incident_and_its_repeat_are_one_trace_that_the_agent_is_told_of() -> Result<()> {
    let world = World::alone("traces").await?;
    let collector = Collector::start().await?;
    let setup = world.setup()?.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
    let setup = setup.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2").env("RESOLVE_TIMEOUT", "60s");
    let operator = world.start(setup).await?;
    // Only the second attempt gets through.
    world.agent.set(Behaviour::default().on_session(Fault::status(503).times(1)));
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    let spans = collector.wait_for(1, "incident").await?;
    let root = ensure_one_tree(&spans, &entry)?;
    ensure!(root.name == "incident pod-restart", "the root is {}", root.name);
    ensure!(said(root, "khook.outcome").as_deref() == Some("Completed"), "{root:#?}");
    ensure!(said(root, "k8s.pod.name").as_deref() == Some("web-0"), "{root:#?}");

    let [failed, call] = calls(&spans)[..] else { anyhow::bail!("two calls: {spans:#?}") };
    let status = failed.status.as_ref().context("a status")?;
    ensure!(status.code() == StatusCode::Error && status.message.contains("503"), "{failed:#?}");
    ensure!(said(failed, "khook.attempt").as_deref() == Some("1"), "{failed:#?}");
    ensure!(call.status.is_none() && said(call, "khook.attempt").as_deref() == Some("2"), "{call:#?}");

    let sessions: Vec<_> = world.agent.sessions().into_iter().map(|session| session.traceparent).collect();
    ensure!(sessions == [header(failed), header(call)], "the sessions' headers are {sessions:?}");
    let messages = world.agent.messages();
    ensure!(messages.len() == 1 && traceparent(&messages[0]) == header(call), "{messages:?}");

    // Another restart after the window: the same trace goes on.
    let window = entry.last_notified_at.context("lastNotifiedAt")? + Duration::from_secs(4);
    eventually("the end of the window", PATIENCE, async || {
        ensure!(Utc::now() > window, "it ends at {window}");
        Ok(())
    })
    .await?;
    world.crash("web-0").await?;
    world.agent.wait_for_messages(2, PATIENCE).await?;
    let spans = collector.wait_for(1, "repeat").await?;
    let root = ensure_one_tree(&spans, &entry)?;
    let repeat = spans.iter().find(|span| span.name.starts_with("repeat")).context("a repeat")?;
    ensure!(repeat.parent_span_id == root.span_id, "{repeat:#?}");
    ensure!(
        traceparent(&world.agent.messages()[1]) == header(calls(&spans)[2]),
        "{:?}",
        world.agent.messages()
    );

    for secret in ["Back-off restarting", "container web exits", "hunter2"] {
        ensure!(!format!("{spans:?}").contains(secret), "{secret} is in the spans");
    }
    ensure!(!operator.log().contains("hunter2"), "a header is in the log");
    ensure!(operator.metric("khook_spans_dropped_total", &[]).await? == 0.0, "spans were dropped");
    Ok(())
}

#[tokio::test]
async fn who_is_started_after_a_crash_goes_on_with_the_trace() -> Result<()> {
    let world = World::alone("trace-crash").await?;
    let collector = Collector::start().await?;
    world.agent.set(Behaviour::default().held().blocks());
    let setup = world.setup()?.env("POD_NAME", "khook-0").env("KAGENT_API_TIMEOUT", "60s");
    let operator = world.start(setup.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let messages = world.agent.wait_for_messages(1, PATIENCE).await?;
    let entry = world.wait_for("shop", "web-0", Phase::Firing).await?;
    collector.wait_for(1, "pending").await?;
    operator.kill()?;
    operator.restart()?;
    operator.wait_ready(PATIENCE).await?;
    world.wait_for("shop", "web-0", Phase::Notified).await?;
    world.agent.release();
    world.wait_answered("shop", "web-0").await?;
    // What was not sent yet is sent on the way out.
    operator.terminate()?;
    ensure!(operator.wait_exit(PATIENCE).await? == 0, "it did not end well:\n{}", operator.log_tail(30));
    let spans = collector.wait_for(1, "incident").await?;
    ensure_one_tree(&spans, &entry)?;
    let [lost] = calls(&spans)[..] else { anyhow::bail!("one call: {spans:#?}") };
    ensure!(said(lost, "khook.outcome").as_deref() == Some("lost"), "{lost:#?}");
    ensure!(traceparent(&messages[0]) == header(lost), "{messages:?}");
    ensure!(spans.iter().any(|span| span.name == "lookup"), "{spans:#?}");
    world.ensure_each_once(1)
}

#[tokio::test]
async fn without_a_collector_khook_works_on_and_counts() -> Result<()> {
    let world = World::alone("no-collector").await?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let operator = world.start(world.setup()?.env("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    eventually("dropped spans", PATIENCE, async || {
        let dropped = operator.metric("khook_spans_dropped_total", &[]).await?;
        ensure!(dropped >= 3.0, "{dropped} are");
        Ok(())
    })
    .await?;
    let log = operator.log();
    let told = log.lines().filter(|line| line.contains("does not take spans")).count();
    ensure!(told == 1, "it is told {told} times:\n{log}");
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    operator.terminate()?;
    ensure!(operator.wait_exit(PATIENCE).await? == 0, "it did not end well:\n{}", operator.log_tail(30));
    world.ensure_each_once(2)
}
