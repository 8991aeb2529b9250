//! An agent is a stand-in for kagent with real A2A behaviour, steered by the test while it runs.
//!
//! What it answers when well was compared with a real kagent v0.9.9 (`tests/stand_in.rs`). Where 0.9
//! and 0.10 differ it is the stricter: a task of another user does not exist. As the real one it does
//! not deduplicate: the same messageId starts another run, and a client that gives up does not stop
//! one. It does not speak `message/stream`, and a session's events are always empty. Whether kagent's
//! agents list their tasks was not recorded: these do not, unless told to.
//!
//! Beside kagent's agents there are plain ones, each at a URL and with a card of its own
//! ([`Agent::direct_url`]): they answer as those on the official SDKs do.
//!
//! How it behaves is a [`Behaviour`], one for all agents or one per agent, changed at any time; how
//! it misbehaves is a [`Fault`] in it. Everything received is recorded.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use chrono::{DateTime, Utc};
use khook::incident::outcome::Protocol;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::book::Inner;
use crate::process::free_port;
use crate::wait::eventually;

mod book;
mod server;

/// In place of a namespace: of the agents beside kagent.
const DIRECT: &str = "direct";

/// A kagent that listens on loopback. Dropping it closes it.
#[derive(Debug)]
pub struct Agent {
    address: SocketAddr,
    inner: Arc<Inner>,
    server: Mutex<Option<JoinHandle<()>>>,
}

/// How an agent behaves. The default answers at once with a short diagnosis.
#[derive(Clone)]
pub struct Behaviour {
    exists: bool,
    delay: Duration,
    held: bool,
    answer: Arc<dyn Fn(&Message) -> String + Send + Sync>,
    end: End,
    blocks: bool,
    message: bool,
    call_limit: Duration,
    speaks: &'static [Protocol],
    endpoint: Option<String>,
    on_card: Option<Fault>,
    on_session: Option<Fault>,
    on_send: Option<Fault>,
    on_get: Option<Fault>,
    on_list: Option<Fault>,
    on_lookup: Option<Fault>,
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// With an answer.
    Completed,
    /// With this error, as when the model answers 500: a failed task, still HTTP 200.
    Failed(String),
    /// With this question.
    InputRequired(String),
    /// Not at all, as after an empty model answer: `working` for ever.
    Never,
}

/// A way to answer badly, for some times or until changed.
#[derive(Clone, Debug)]
pub struct Fault {
    wire: Wire,
    headers: Vec<(String, String)>,
    after: Duration,
    runs: bool,
    left: Option<u32>,
}

#[derive(Clone, Debug)]
enum Wire {
    Status(u16, String),
    NoRoute,
    Rpc(i64, String),
    Reset,
    Close,
    Hang,
    Body(Bytes),
    Huge(u64),
}

/// A `message/send`, or `SendMessage`, as it came in.
#[derive(Clone, Debug)]
pub struct Message {
    /// When its last byte was read.
    pub at: DateTime<Utc>,
    /// The same on the monotonic clock.
    pub instant: Instant,
    /// The agent it was for, `namespace/name`; `direct/name` of a plain one.
    pub agent: String,
    /// The dialect it came in.
    pub protocol: Protocol,
    /// Its contextId.
    pub session: String,
    /// Its messageId.
    pub id: String,
    /// The text of all its parts.
    pub text: String,
    /// Its metadata, or null.
    pub metadata: Value,
    /// The user it came from.
    pub user: String,
    /// Whether it asked to wait for the answer.
    pub blocking: bool,
    /// Its Authorization header.
    pub authorization: Option<String>,
    /// All its headers, by their names in small letters.
    pub headers: BTreeMap<String, String>,
    /// The task it started: `None` when a fault kept the agent from seeing it, or when the agent
    /// answers with messages.
    pub task: Option<String>,
    /// Whether the agent saw it, that is, whether a run was started and paid for.
    pub ran: bool,
}

/// A POST /api/sessions as it came in.
#[derive(Clone, Debug)]
pub struct SessionCall {
    /// When it was read.
    pub at: DateTime<Utc>,
    /// The id it asked for.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its agent_ref.
    pub agent: String,
    /// The user it came from.
    pub user: String,
    /// Its traceparent header.
    pub traceparent: Option<String>,
    /// The HTTP status it got; `None` when it got none.
    pub status: Option<u16>,
}

/// Any request, in one line.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its head was read.
    pub at: DateTime<Utc>,
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its JSON-RPC method, where it has one.
    pub rpc: Option<String>,
}

impl Agent {
    /// Starts one on a free port.
    pub async fn spawn() -> Result<Self> {
        Self::spawn_on(0).await
    }

    /// Starts one on this port; 0 takes a free one.
    pub async fn spawn_on(port: u16) -> Result<Self> {
        Self::spawn_at(Ipv4Addr::LOCALHOST.into(), port).await
    }

    /// Starts one on this address and port, as where it runs in a pod.
    pub async fn spawn_at(address: IpAddr, port: u16) -> Result<Self> {
        let address = SocketAddr::new(address, if port == 0 { free_port()? } else { port });
        let inner = Arc::new(Inner::new(format!("http://{address}")));
        let agent = Self { address, inner, server: Mutex::new(None) };
        agent.start().await?;
        Ok(agent)
    }

    /// What KAGENT_BASE_URL is to be.
    pub fn url(&self) -> String {
        self.inner.url.clone()
    }

    /// Where the plain agent of this name is. Its behaviour is set for `direct/name`.
    pub fn direct_url(&self, name: &str) -> String {
        format!("{}/{DIRECT}/{name}", self.inner.url)
    }

    /// Goes down: refuses connections and drops those there are. Runs go on, but one that ends while
    /// we are down stays `working` for ever, as with kagent, which then cannot note the end.
    pub async fn stop(&self) {
        let server = self.lock().take();
        if let Some(server) = server {
            server.abort();
            server.await.ok();
            self.inner.book().down_since = Some(Instant::now());
        }
    }

    /// Comes back on the same port, with the same sessions and tasks.
    pub async fn start(&self) -> Result<()> {
        ensure!(self.lock().is_none(), "the agent runs already");
        let listener = eventually("the agent's port", Duration::from_secs(5), async || {
            TcpListener::bind(self.address).await.context("listening")
        })
        .await?;
        self.inner.book().back();
        *self.lock() = Some(tokio::spawn(server::serve(listener, self.inner.clone())));
        Ok(())
    }

    /// Sets how all agents behave that have no behaviour of their own.
    pub fn set(&self, behaviour: Behaviour) {
        self.inner.book().default = behaviour;
    }

    /// Sets how one agent, `namespace/name`, behaves.
    pub fn set_for(&self, agent: &str, behaviour: Behaviour) {
        self.inner.book().behaviours.insert(agent.to_owned(), behaviour);
    }

    /// All agents are well again and answer at once.
    pub fn heal(&self) {
        let mut book = self.inner.book();
        book.default = Behaviour::default();
        book.behaviours.clear();
    }

    /// Ends the runs that are held; answers how many.
    pub fn release(&self) -> usize {
        let now = Instant::now();
        let mut book = self.inner.book();
        let held = book.tasks.iter_mut().filter(|task| task.due.is_none());
        let released = held.map(|task| task.due = Some(now)).count();
        self.inner.released.notify_waiters();
        released
    }

    /// Forgets every task, as a server does that keeps them in memory and was restarted.
    pub fn forget(&self) {
        self.inner.book().tasks.clear();
    }

    /// All messages received, in order.
    pub fn messages(&self) -> Vec<Message> {
        self.inner.book().messages.clone()
    }

    /// The messages that started a run.
    pub fn runs(&self) -> Vec<Message> {
        self.messages().into_iter().filter(|message| message.ran).collect()
    }

    /// Waits until at least this many messages were received; answers all.
    pub async fn wait_for_messages(&self, count: usize, deadline: Duration) -> Result<Vec<Message>> {
        eventually(&format!("{count} messages to the agent"), deadline, async || {
            let messages = self.messages();
            ensure!(messages.len() >= count, "{} came: {:?}", messages.len(), counted(&messages));
            Ok(messages)
        })
        .await
    }

    /// Waits until at least this many runs were started; answers their messages.
    pub async fn wait_for_runs(&self, count: usize, deadline: Duration) -> Result<Vec<Message>> {
        eventually(&format!("{count} runs of the agent"), deadline, async || {
            let runs = self.runs();
            ensure!(runs.len() >= count, "{} ran: {:?}", runs.len(), counted(&runs));
            Ok(runs)
        })
        .await
    }

    /// How often each messageId was received.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        counted(&self.messages())
    }

    /// How often each messageId started a run: more than once is what must not happen.
    pub fn run_counts(&self) -> BTreeMap<String, usize> {
        counted(&self.runs())
    }

    /// All session calls received, in order.
    pub fn sessions(&self) -> Vec<SessionCall> {
        self.inner.book().session_calls.clone()
    }

    /// All requests received, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.inner.book().requests.clone()
    }

    /// The most `message/send` requests that were open at the same time.
    pub fn peak_in_flight(&self) -> usize {
        self.inner.book().peak
    }

    /// Forgets what was recorded; sessions and tasks stay.
    pub fn clear_record(&self) {
        let mut book = self.inner.book();
        book.messages.clear();
        book.session_calls.clear();
        book.requests.clear();
        book.peak = book.in_flight;
    }

    fn lock(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(server) = self.lock().take() {
            server.abort();
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            exists: true,
            delay: Duration::ZERO,
            held: false,
            answer: Arc::new(diagnosis),
            end: End::Completed,
            blocks: false,
            message: false,
            call_limit: Duration::from_secs(180),
            speaks: &[Protocol::V03, Protocol::V10],
            endpoint: None,
            on_card: None,
            on_session: None,
            on_send: None,
            on_get: None,
            on_list: Some(Fault::rpc(-32601, "method not found")),
            on_lookup: None,
        }
    }
}

impl Behaviour {
    /// A run takes this long.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// A run goes on until [`Agent::release`]: for tests that must act while it does.
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// What a run answers.
    pub fn answers(mut self, answer: impl Fn(&Message) -> String + Send + Sync + 'static) -> Self {
        self.answer = Arc::new(answer);
        self
    }

    /// How a run ends.
    pub fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// `message/send` waits for the run's end even if asked not to.
    pub fn blocks(mut self) -> Self {
        self.blocks = true;
        self
    }

    /// `message/send` waits for the answer and gives it as a Message; there is no task.
    pub fn replies_with_message(mut self) -> Self {
        self.message = true;
        self
    }

    /// There is no such agent: sessions answer 400, messages 404.
    pub fn missing(mut self) -> Self {
        self.exists = false;
        self
    }

    /// How long `message/send` waits at most before it answers -32603, while the run goes on;
    /// kagent's 3 minutes unless said.
    pub fn call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = limit;
        self
    }

    /// It understands these dialects only.
    pub fn speaks(mut self, dialects: &'static [Protocol]) -> Self {
        self.speaks = dialects;
        self
    }

    /// Its tasks can be listed, in 1.0.
    pub fn lists_tasks(mut self) -> Self {
        self.on_list = None;
        self
    }

    /// kagent has no sessions and no tasks by REST: there are no such routes.
    pub fn without_sessions(self) -> Self {
        self.on_session(Fault::no_route()).on_lookup(Fault::no_route())
    }

    /// Its card says that it takes messages there, and it does so nowhere else; where its card is, unless said.
    /// The stand-in has `a2a` below that place for it.
    pub fn card_names(mut self, url: &str) -> Self {
        self.endpoint = Some(url.to_owned());
        self
    }

    /// The reading of its card goes wrong.
    pub fn on_card(mut self, fault: Fault) -> Self {
        self.on_card = Some(fault);
        self
    }

    /// `ListTasks` goes wrong.
    pub fn on_list(mut self, fault: Fault) -> Self {
        self.on_list = Some(fault);
        self
    }

    /// POST /api/sessions goes wrong. A fault that [`runs`](Fault::runs) has made the session.
    pub fn on_session(mut self, fault: Fault) -> Self {
        self.on_session = Some(fault);
        self
    }

    /// `message/send` goes wrong, after the message was read.
    pub fn on_send(mut self, fault: Fault) -> Self {
        self.on_send = Some(fault);
        self
    }

    /// `tasks/get` goes wrong.
    pub fn on_get(mut self, fault: Fault) -> Self {
        self.on_get = Some(fault);
        self
    }

    /// Kagent's own reading goes wrong: sessions, their tasks, and tasks by REST.
    pub fn on_lookup(mut self, fault: Fault) -> Self {
        self.on_lookup = Some(fault);
        self
    }
}

impl Fault {
    /// This HTTP status, with kagent's JSON error body.
    pub fn status(status: u16) -> Self {
        Self::new(Wire::Status(
            status,
            format!("{}\n", json!({"error": format!("stand-in answers {status}")})),
        ))
    }

    /// What Go's router answers where it has no such route.
    pub fn no_route() -> Self {
        Self::new(Wire::NoRoute)
    }

    /// This JSON-RPC error, with HTTP 200.
    pub fn rpc(code: i64, message: &str) -> Self {
        Self::new(Wire::Rpc(code, message.to_owned()))
    }

    /// What kagent answers for an agent that is down: HTTP 200, -32603, the cause in the text.
    pub fn agent_down() -> Self {
        Self::rpc(-32603, "failed to send HTTP request: Post \"http://k8s-agent.kagent:8080\": EOF")
    }

    /// The connection is reset (RST) without an answer.
    pub fn reset() -> Self {
        Self::new(Wire::Reset)
    }

    /// The connection is closed without an answer, as by a killed controller.
    pub fn close() -> Self {
        Self::new(Wire::Close)
    }

    /// No answer, for as long as the client waits.
    pub fn hang() -> Self {
        Self::new(Wire::Hang)
    }

    /// HTTP 200 and a body that is no JSON and no UTF-8.
    pub fn garbage() -> Self {
        Self::body(b"<html>\xff\xfe\x00 no such thing as JSON".to_vec())
    }

    /// HTTP 200 and an empty body.
    pub fn empty() -> Self {
        Self::body(Vec::new())
    }

    /// HTTP 200 and this body.
    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self::new(Wire::Body(Bytes::from(body.into())))
    }

    /// HTTP 200 and a body of this many bytes that begins like an answer, streamed.
    pub fn huge(bytes: u64) -> Self {
        Self::new(Wire::Huge(bytes))
    }

    /// Adds a header, such as Retry-After.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The fault shows only after this long.
    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    /// The answer goes wrong, but what was asked for is done: the run starts, the session is made.
    pub fn runs(mut self) -> Self {
        self.runs = true;
        self
    }

    /// Only the next so many times; without this, until changed.
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    fn new(wire: Wire) -> Self {
        Self { wire, headers: Vec::new(), after: Duration::ZERO, runs: false, left: None }
    }
}

/// A plausible short diagnosis, made from the context in the message's metadata or text.
pub fn diagnosis(message: &Message) -> String {
    let fact = |key: &str| {
        let found = find(&message.metadata, key).or_else(|| {
            let line = message.text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        });
        found.filter(|value| !value.is_empty())
    };
    let pod = fact("resourceName").unwrap_or_else(|| "the pod".to_owned());
    let place = fact("namespace").map(|namespace| format!(" in {namespace}")).unwrap_or_default();
    let container =
        fact("container").map(|name| format!("container {name}")).unwrap_or("the container".to_owned());
    let cause = match fact("eventName").or_else(|| fact("reason")).unwrap_or_default().as_str() {
        "oom-kill" | "OOMKilled" | "OOMKilling" => {
            format!("{container} was killed at its memory limit. Raise the limit or look for a leak.")
        }
        "pod-pending" | "FailedScheduling" => {
            "no node has room for its requests. Lower the requests or add a node.".to_owned()
        }
        "probe-failed" | "Unhealthy" => {
            format!("{container} does not answer its probe in time. Check its port and its start-up time.")
        }
        "pod-restart" | "BackOff" => {
            format!("{container} exits soon after its start. Its last log lines name a missing setting.")
        }
        _ => format!("{container} is in trouble. Its events and last log lines tell more."),
    };
    let cause = cause.as_str();
    format!("{pod}{place}: {cause}")
}

impl std::fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Behaviour")
            .field("delay", &self.delay)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

fn counted(messages: &[Message]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in messages {
        *counts.entry(message.id.clone()).or_default() += 1;
    }
    counts
}

/// The first string or number under this key, however deep.
fn find(value: &Value, key: &str) -> Option<String> {
    match value {
        Value::Object(map) => match map.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => map.values().find_map(|value| find(value, key)),
        },
        Value::Array(values) => values.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}
