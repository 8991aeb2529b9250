//! The server is the stand-in's wire: kagent's REST and A2A in both dialects, and how to answer badly on them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use chrono::{SecondsFormat, Utc};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use khook::incident::outcome::Protocol::{self, V03, V10};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::book::{InFlight, Inner, View, python_name, said, understood};
use super::{DIRECT, Fault, Message, SessionCall, Wire};
use crate::line::{Line, Wired};

const DEFAULT_USER: &str = "admin@kagent.dev";

/// Accepts until it is dropped, which drops all connections too.
pub(super) async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    let router = router(inner);
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: some will come free.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        stream.set_nodelay(true).ok();
        let line = Line::default();
        let service = TowerToHyperService::new(router.clone().layer(Extension(line.clone())));
        let io = TokioIo::new(Wired::new(stream, line));
        connections.spawn(async move {
            // A client that goes away is no error here.
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/api/sessions", post(create_session))
        .route("/api/sessions/{id}", get(read_session).delete(delete_session))
        .route("/api/sessions/{id}/tasks", get(read_session_tasks))
        .route("/api/tasks/{id}", get(read_task))
        .route("/api/a2a/{namespace}/{name}", any(a2a))
        .route("/api/a2a/{namespace}/{name}/", any(a2a))
        .route("/api/a2a/{namespace}/{name}/.well-known/agent-card.json", get(card))
        .route("/direct/{name}", any(a2a))
        .route("/direct/{name}/a2a", any(a2a))
        .route("/direct/{name}/.well-known/agent-card.json", get(card))
        // Not kagent's: what a suite in another place asks.
        .route("/record", get(record))
        .fallback(async || plain(404, "404 page not found"))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(inner)
}

type Params = Query<BTreeMap<String, String>>;

async fn health() -> Response {
    rest(200, &json!({"error": false, "data": {"status": "OK"}, "message": "OK"}))
}

async fn record(State(inner): State<Arc<Inner>>) -> Response {
    let told = |m: &Message| json!({"at": m.at, "id": m.id, "session": m.session, "metadata": m.metadata});
    let messages: Vec<Value> = inner.book().messages.iter().map(told).collect();
    rest(200, &Value::from(messages))
}

async fn version() -> Response {
    rest(200, &json!({"kagent_version": "v0.9.9", "git_commit": "stand-in", "build_date": "adhoc"}))
}

async fn create_session(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    Query(params): Params,
    headers: HeaderMap,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let user = user(&params, &headers);
    inner.note(&method, &uri, None);
    let asked: Value = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(_) if body.is_empty() => return failure(400, "Invalid request body: EOF"),
        Err(_) => return failure(400, "Invalid request body: unexpected EOF"),
    };
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let (mut id, name, agent) = (text("id"), text("name"), ref_of(&text("agent_ref")));
    if !asked["id"].is_string() && !asked["id"].is_null() {
        return failure(
            400,
            "Invalid request body: json: cannot unmarshal number into Go struct field SessionRequest.id of type string",
        );
    }
    let (fault, exists, call) = {
        let mut book = inner.book();
        let call = book.session_calls.len();
        let (id, name, agent, user) = (id.clone(), name.clone(), agent.clone(), user.clone());
        let fault = book.fault(&agent, |behaviour| &mut behaviour.on_session);
        let exists = book.behaviour(&agent).exists;
        let traceparent = text_of(&headers, "traceparent");
        let status = None;
        book.session_calls.push(SessionCall { at: Utc::now(), id, name, agent, user, traceparent, status });
        (fault, exists, call)
    };
    let runs = fault.as_ref().is_none_or(|fault| fault.runs);
    let mut answer = None;
    if runs {
        if id.is_empty() {
            id = Uuid::new_v4().to_string();
        }
        answer = Some(made_session(&inner, &user, &id, &name, &agent, exists));
    }
    let response = match fault {
        Some(fault) => fault.show(&line, None).await,
        None => answer.unwrap_or_else(|| failure(500, "no answer")),
    };
    if !line.is_cut() {
        let status = Some(response.status().as_u16());
        // The record may have been cleared meanwhile.
        if let Some(call) = inner.book().session_calls.get_mut(call) {
            call.status = status;
        }
    }
    response
}

fn made_session(inner: &Inner, user: &str, id: &str, name: &str, agent: &str, exists: bool) -> Response {
    if agent.is_empty() {
        return failure(400, "agent_ref is required");
    }
    if !exists || !agent.contains('/') {
        let python = python_name(agent);
        return failure(
            400,
            &format!(
                "Agent ref is invalid, please check the agent ref {agent}: failed to get agent {python}: no rows in \
                 result set"
            ),
        );
    }
    let mut book = inner.book();
    if book.deleted.contains(&(user.to_owned(), id.to_owned())) {
        return failure(
            500,
            &format!("Failed to load created session: failed to get session {id}: no rows in result set"),
        );
    }
    let session = book.upsert(user, id, name, agent);
    rest(201, &json!({"error": false, "data": session.show(), "message": "Successfully created session"}))
}

async fn read_session(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    Path(id): Path<String>,
    Query(params): Params,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    inner.note(&Method::GET, &uri, None);
    let user = user(&params, &headers);
    if let Some(fault) = inner.lookup_fault(&user, &id) {
        return fault.show(&line, None).await;
    }
    match inner.book().sessions.get(&(user, id.clone())) {
        Some(session) => rest(
            200,
            &json!({
                "error": false,
                "data": {"session": session.show(), "events": []},
                "message": "Successfully retrieved session",
            }),
        ),
        None => {
            failure(404, &format!("Session not found: failed to get session {id}: no rows in result set"))
        }
    }
}

async fn delete_session(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<String>,
    Query(params): Params,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    inner.note(&Method::DELETE, &uri, None);
    let key = (user(&params, &headers), id);
    let mut book = inner.book();
    book.sessions.remove(&key);
    book.deleted.insert(key);
    rest(200, &json!({"error": false, "data": {}, "message": "Session deleted successfully"}))
}

async fn read_session_tasks(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    Path(id): Path<String>,
    Query(params): Params,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    inner.note(&Method::GET, &uri, None);
    let user = user(&params, &headers);
    if let Some(fault) = inner.lookup_fault(&user, &id) {
        return fault.show(&line, None).await;
    }
    let book = inner.book();
    if !book.sessions.contains_key(&(user.clone(), id.clone())) {
        let words =
            format!("Session not found for given ID: failed to get session {id}: no rows in result set");
        return failure(404, &words);
    }
    let own = book.tasks.iter().filter(|task| task.session == id && task.user == user && !task.hidden);
    let tasks: Vec<Value> = own.map(|task| task.now(true)).collect();
    rest(200, &json!({"error": false, "data": tasks, "message": "Successfully retrieved session tasks"}))
}

async fn read_task(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    Path(id): Path<String>,
    Query(params): Params,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    inner.note(&Method::GET, &uri, None);
    let user = user(&params, &headers);
    let session = inner.book().task(&user, &id).map(|task| task.session.clone()).unwrap_or_default();
    if let Some(fault) = inner.lookup_fault(&user, &session) {
        return fault.show(&line, None).await;
    }
    match inner.book().task(&user, &id) {
        Some(task) => rest(
            200,
            &json!({"error": false, "data": task.now(true), "message": "Successfully retrieved task"}),
        ),
        None => failure(404, &format!("Task not found: failed to get task {id}: no rows in result set")),
    }
}

/// The parts of a path by their names.
type Parts = Path<BTreeMap<String, String>>;

/// The agent a path is about, `namespace/name`.
fn agent_of(Path(parts): &Parts) -> String {
    let part = |name: &str| parts.get(name).map_or(DIRECT, String::as_str);
    format!("{}/{}", part("namespace"), part("name"))
}

async fn card(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    parts: Parts,
    uri: Uri,
) -> Response {
    inner.note(&Method::GET, &uri, None);
    let agent = agent_of(&parts);
    let (fault, behaviour) = {
        let mut book = inner.book();
        (book.fault(&agent, |behaviour| &mut behaviour.on_card), book.behaviour(&agent).clone())
    };
    if let Some(fault) = fault {
        return fault.show(&line, None).await;
    }
    let path = uri.path().trim_end_matches("/.well-known/agent-card.json");
    let name = parts.get("name").map_or("", String::as_str);
    if parts.contains_key("namespace") {
        let url = format!("{}{path}/", inner.url);
        return json_response(
            200,
            &json!({
                "name": name.replace('-', "_"), "description": "a stand-in", "version": "", "url": url, "skills": [],
                "defaultInputModes": ["text"], "defaultOutputModes": ["text"], "capabilities": {"streaming": false},
                "protocolVersion": "0.3", "preferredTransport": "JSONRPC",
            }),
        );
    }
    let url = behaviour.endpoint.unwrap_or_else(|| format!("{}{path}", inner.url));
    let skill = json!({"id": "investigate", "name": "Investigate", "description": "Finds causes.", "tags": ["kubernetes"]});
    let mut card = json!({
        "name": name, "description": "a stand-in", "version": "1.2.3", "skills": [skill],
        "defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"],
        "capabilities": {"streaming": false},
    });
    if behaviour.speaks.contains(&V03) {
        card["url"] = json!(url);
        card["preferredTransport"] = json!("JSONRPC");
        card["protocolVersion"] = json!("0.3.0");
    }
    if behaviour.speaks.contains(&V10) {
        let at = |protocol: &Protocol| json!({"url": url, "protocolBinding": "JSONRPC", "protocolVersion": protocol});
        card["supportedInterfaces"] = behaviour.speaks.iter().rev().map(at).collect();
    }
    json_response(200, &card)
}

/// What can be asked for by JSON-RPC.
#[derive(Clone, Copy)]
enum Call {
    Send,
    Get,
    List,
    Cancel,
}

/// How each call is named in each dialect.
const METHODS: [(Protocol, &str, Call); 7] = [
    (V03, "message/send", Call::Send),
    (V03, "tasks/get", Call::Get),
    (V03, "tasks/cancel", Call::Cancel),
    (V10, "SendMessage", Call::Send),
    (V10, "GetTask", Call::Get),
    (V10, "ListTasks", Call::List),
    (V10, "CancelTask", Call::Cancel),
];

#[expect(clippy::too_many_arguments, reason = "each is a part of one request")]
async fn a2a(
    State(inner): State<Arc<Inner>>,
    Extension(line): Extension<Line>,
    parts: Parts,
    Query(params): Params,
    headers: HeaderMap,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let parsed: Result<Value, _> = serde_json::from_slice(&body);
    let rpc = parsed.as_ref().ok().and_then(|call| call["method"].as_str()).map(str::to_owned);
    inner.note(&method, &uri, rpc.clone());
    let agent = agent_of(&parts);
    let (exists, speaks, endpoint) = {
        let mut book = inner.book();
        let behaviour = book.behaviour(&agent);
        (behaviour.exists, behaviour.speaks, behaviour.endpoint.clone())
    };
    if endpoint.is_some_and(|url| !url.ends_with(uri.path())) {
        return plain(404, "404 page not found");
    }
    let protocol = match headers.get("A2A-Version").map_or("", |version| version.to_str().unwrap_or("?")) {
        // Whoever knows no other dialect knows no such header.
        _ if speaks == [V03] => V03,
        "" | "0.3" => V03,
        "1.0" => V10,
        version if parts.contains_key("namespace") => {
            return plain(400, &format!("unsupported A2A version \"{version}\""));
        }
        version => return unsupported(&id_of(&parsed), version),
    };
    let call = match parsed {
        _ if method != Method::POST && exists => return rpc_error(&Value::Null, -32600, "invalid request"),
        Err(_) if exists => return rpc_error(&Value::Null, -32700, "parse error: unexpected EOF"),
        Ok(call) => call,
        Err(_) => Value::Null,
    };
    let id = call["id"].clone();
    if exists && call["jsonrpc"] != "2.0" {
        return rpc_error(&id, -32600, "invalid request");
    }
    let user = user(&params, &headers);
    let named = METHODS.iter().find(|(of, name, _)| speaks.contains(of) && Some(*name) == rpc.as_deref());
    match named {
        Some((of, _, Call::Send)) if *of == protocol => {
            send(&inner, &line, &agent, protocol, user, &headers, &call).await
        }
        _ if !exists => plain(404, &format!("Agent {agent} not found")),
        Some((of, ..)) if *of != protocol && !speaks.contains(&protocol) => {
            unsupported(&id, protocol.as_str())
        }
        Some((of, _, Call::Get)) if *of == protocol => {
            let fault = inner.book().fault(&agent, |behaviour| &mut behaviour.on_get);
            if let Some(fault) = fault {
                return fault.show(&line, Some(&id)).await;
            }
            match inner.book().task(&user, call["params"]["id"].as_str().unwrap_or_default()) {
                Some(task) => result(&id, &task.show(View::Now, protocol)),
                None => rpc_error(&id, -32001, "Task not found"),
            }
        }
        Some((of, _, Call::List)) if *of == protocol => {
            let fault = inner.book().fault(&agent, |behaviour| &mut behaviour.on_list);
            match fault {
                Some(fault) => fault.show(&line, Some(&id)).await,
                None => result(&id, &inner.book().list(&user, &agent, &call["params"])),
            }
        }
        Some((of, _, Call::Cancel)) if *of == protocol => rpc_error(&id, -32001, "Task not found"),
        _ => rpc_error(&id, -32601, "method not found"),
    }
}

fn unsupported(id: &Value, version: &str) -> Response {
    rpc_error(id, -32009, &format!("A2A version '{version}' is not supported by this handler."))
}

async fn send(
    inner: &Arc<Inner>,
    line: &Line,
    agent: &str,
    protocol: Protocol,
    user: String,
    headers: &HeaderMap,
    call: &Value,
) -> Response {
    let id = &call["id"];
    let raw = &understood(protocol, &call["params"]["message"]);
    let configuration = &call["params"]["configuration"];
    let parts = raw["parts"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
    let mut message = Message {
        at: Utc::now(),
        instant: Instant::now(),
        agent: agent.to_owned(),
        protocol,
        session: text(&raw["contextId"]),
        id: text(&raw["messageId"]),
        text: texts.join("\n"),
        metadata: raw["metadata"].clone(),
        user,
        // The default is to wait.
        blocking: match protocol {
            V03 => configuration["blocking"] != false,
            V10 => configuration["returnImmediately"] != true,
        },
        authorization: text_of(headers, "Authorization"),
        headers: (headers.iter())
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        task: None,
        ran: false,
    };
    if message.session.is_empty() {
        message.session = Uuid::new_v4().to_string();
    }
    let bad_part = parts.iter().find(|part| !matches!(part["kind"].as_str(), Some("text" | "data" | "file")));
    let _open = InFlight::new(inner);
    let (fault, behaviour, task) = {
        let mut book = inner.book();
        let behaviour = book.behaviour(agent).clone();
        let fault = behaviour.exists.then(|| book.fault(agent, |behaviour| &mut behaviour.on_send)).flatten();
        message.ran = behaviour.exists
            && bad_part.is_none()
            && fault.as_ref().is_none_or(|fault| fault.runs)
            && raw.is_object();
        let task = message.ran.then(|| book.run(&message, raw));
        message.task = task.as_ref().map(|task| task.id.clone()).filter(|_| !behaviour.message);
        book.messages.push(message.clone());
        (fault, behaviour, task)
    };
    if let Some(fault) = fault {
        return fault.show(line, Some(id)).await;
    }
    if !behaviour.exists {
        return plain(404, &format!("Agent {agent} not found"));
    }
    if let Some(part) = bad_part {
        let kind = part["kind"].as_str().unwrap_or_default();
        return rpc_error(id, -32700, &format!("parse error: unknown part kind {kind}"));
    }
    let Some(task) = task else {
        return rpc_error(id, -32602, "invalid params");
    };
    let waits = message.blocking || behaviour.blocks || behaviour.message;
    // In 1.0 it stands under its name.
    let sent = |name: &str, value: Value| match protocol {
        V03 => value,
        V10 => json!({name: value}),
    };
    if !waits {
        return result(id, &sent("task", task.show(View::Submitted, protocol)));
    }
    if tokio::time::timeout(behaviour.call_limit, inner.ended(&task.id)).await.is_err() {
        let words = "failed to send HTTP request: Post \"http://k8s-agent.kagent:8080\": context deadline exceeded \
                     (Client.Timeout exceeded while awaiting headers)";
        return rpc_error(id, -32603, words);
    }
    // As it is now: it may have been held when we copied it.
    let task = inner.book().tasks.iter().find(|known| known.id == task.id).cloned().unwrap_or(task);
    match behaviour.message {
        true => result(id, &sent("message", said(protocol, task.as_message()))),
        false => result(id, &sent("task", task.show(View::Now, protocol))),
    }
}

impl Fault {
    async fn show(self, line: &Line, rpc_id: Option<&Value>) -> Response {
        tokio::time::sleep(self.after).await;
        let mut response = match self.wire {
            Wire::Status(status, body) => text_response(status, "application/json", body),
            Wire::NoRoute => plain(404, "404 page not found"),
            Wire::Rpc(code, words) => rpc_error(rpc_id.unwrap_or(&Value::Null), code, &words),
            Wire::Reset => line.reset(),
            Wire::Close => line.close(),
            Wire::Hang => std::future::pending().await,
            Wire::Body(body) => text_response(200, "application/json", body),
            Wire::Huge(bytes) => {
                let head = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"1","result":{"kind":"task","id":""#);
                let filler = Bytes::from_static(&[b'x'; 65_536]);
                let chunks = (0..bytes.div_ceil(filler.len() as u64)).map(move |_| filler.clone());
                let chunks = std::iter::once(head).chain(chunks).map(Ok::<_, Infallible>);
                let body = Body::from_stream(futures::stream::iter(chunks));
                text_response(200, "application/json", body)
            }
        };
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<axum::http::HeaderName>(), value.parse()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The query wins over the header.
fn user(params: &BTreeMap<String, String>, headers: &HeaderMap) -> String {
    let query = params.get("user_id").cloned().filter(|user| !user.is_empty());
    let header = || headers.get("X-User-Id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    query.or_else(header).unwrap_or_else(|| DEFAULT_USER.to_owned())
}

/// An agent_ref, also when it comes in the Python form.
fn ref_of(agent: &str) -> String {
    if agent.contains("__NS__") { agent.replace("__NS__", "/").replace('_', "-") } else { agent.to_owned() }
}

fn id_of(call: &Result<Value, serde_json::Error>) -> Value {
    call.as_ref().map(|call| call["id"].clone()).unwrap_or_default()
}

fn result(id: &Value, result: &Value) -> Response {
    json_response(200, &json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn rpc_error(id: &Value, code: i64, message: &str) -> Response {
    let reason = match code {
        -32700 => "PARSE_ERROR",
        -32600 => "INVALID_REQUEST",
        -32601 => "METHOD_NOT_FOUND",
        -32602 => "INVALID_PARAMS",
        -32001 => "TASK_NOT_FOUND",
        -32004 => "UNSUPPORTED_OPERATION",
        -32009 => "VERSION_NOT_SUPPORTED",
        _ => "INTERNAL_ERROR",
    };
    let data = json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "domain": "a2a-protocol.org",
        "metadata": {"timestamp": Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)},
        "reason": reason,
    }]);
    let error = json!({"code": code, "message": message, "data": data});
    json_response(200, &json!({"jsonrpc": "2.0", "id": id, "error": error}))
}

fn failure(status: u16, error: &str) -> Response {
    json_response(status, &json!({"error": error}))
}

/// A REST answer, without the newline that Go's JSON encoder puts after errors and A2A answers.
fn rest(status: u16, body: &Value) -> Response {
    text_response(status, "application/json", body.to_string())
}

fn json_response(status: u16, body: &Value) -> Response {
    text_response(status, "application/json", format!("{body}\n"))
}

fn plain(status: u16, text: &str) -> Response {
    let mut response = text_response(status, "text/plain; charset=utf-8", format!("{text}\n"));
    response.headers_mut().insert("X-Content-Type-Options", axum::http::HeaderValue::from_static("nosniff"));
    response
}

fn text_response(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [("Content-Type", content_type)], body.into()).into_response()
}
