//! A session is kagent's record of one incident's conversation; this is the client that opens it,
//! sends the message into it and reads what became of it.
//!
//! One [`Kagent::call`] sends at most one message, and its [`Reply`] says how sure khook may be
//! about what happened to it. kagent deduplicates nothing: a message sent twice is two runs, so
//! whatever is not surely *not run* is `Unknown`, and [`Kagent::lookup`] decides.

use std::{error::Error as _, fmt, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use reqwest::{
    Client, Method, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::a2a::{self, Response, RpcError, Sent, Task};
use crate::incident::outcome::{AgentName, EndState, Ended, Lookup, Reply};

/// Where kagent is and how to speak to it.
#[derive(Clone, Debug)]
pub struct KagentConfig {
    /// kagent's address, `http` or `https`, with or without a path and a trailing slash. For https
    /// the system's certificate authorities count (or those of `SSL_CERT_FILE`).
    pub base_url: String,
    /// The kagent user that owns khook's sessions; the same in every call, for a session and its
    /// tasks do not exist for another user.
    pub user_id: String,
    /// What khook proves itself with.
    pub credential: Credential,
    /// Time for `message/send`, from the connecting to the last byte of the answer.
    pub api_timeout: Duration,
    /// Time to connect, TLS included. Shorter than the others, so that a server that cannot be
    /// reached is told from one that does not answer.
    pub connect_timeout: Duration,
    /// Time to open a session, all in all.
    pub session_timeout: Duration,
    /// Time for one read of what became of a message, all in all.
    pub lookup_timeout: Duration,
    /// Bytes of an answer to `message/send` that are read at most. Reads of tasks may be
    /// 16 times as long, for a task carries its history with every tool call in it.
    pub max_body: usize,
}

impl KagentConfig {
    /// The defaults: kagent's default user, no credential, 120 s for the message, 10 s to connect,
    /// 30 s for the session and for a lookup, 1 MiB.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            user_id: "admin@kagent.dev".into(),
            credential: Credential::None,
            api_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(30),
            lookup_timeout: Duration::from_secs(30),
            max_body: 1 << 20,
        }
    }
}

/// What khook proves itself to kagent with; sent as a bearer token. kagent hands it on to the agent.
#[derive(Clone)]
pub enum Credential {
    /// Nothing: kagent is open by default.
    None,
    /// The token itself.
    Key(String),
    /// A file with the token, read for every call: tokens of service accounts rotate.
    File(PathBuf),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Key(_) => f.write_str("Key(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What becomes of a call that is not wanted any more: nothing was sent, and it is nobody's fault.
pub fn unwanted() -> Reply {
    let error = "this call is not wanted any more, or its time is over".into();
    Reply::NotRun { error, retry_after: None, throttled: true }
}

/// A configuration no client can be made of.
#[derive(Debug, thiserror::Error)]
pub enum KagentError {
    /// The address of kagent.
    #[error("the URL of kagent {0}")]
    BaseUrl(String),
    /// The user.
    #[error("the kagent user id must be not empty and of printable ASCII characters")]
    UserId,
    /// The token.
    #[error("the API key for kagent {0}")]
    Key(&'static str),
    /// A setting that would make every call fail.
    #[error("{0} must be more than 0")]
    Zero(&'static str),
    /// TLS could not be set up.
    #[error("cannot set up the HTTP client: {}; https needs certificate authorities on this system", root_cause(.0))]
    Client(#[from] reqwest::Error),
}

/// One message for one agent.
#[derive(Clone, Debug)]
pub struct AgentCall {
    /// Whom to ask.
    pub agent: AgentName,
    /// The session's id, ours to choose; the same in every repeat and retry.
    pub session_id: String,
    /// The session's name, as kagent's UI shows it.
    pub session_name: String,
    /// The message's id, ours to choose; the same in every retry, another in every repeat.
    pub message_id: String,
    /// What to ask.
    pub text: String,
    /// Goes along with the message for programs that read it; a map, or null for none.
    pub metadata: Value,
    /// The header `traceparent` of both requests: the trace that what the agent's side reports belongs to.
    pub traceparent: Option<String>,
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Follow {
    /// Not over yet.
    Running,
    /// Over, or waiting for a person; [`EndState::Lost`] where nobody knows the task.
    Ended(Ended),
    /// Nobody could say.
    Unavailable {
        /// What failed, in words for `status`.
        error: String,
    },
}

/// The client of one kagent. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Kagent {
    http: Client,
    base: Url,
    user: HeaderValue,
    config: KagentConfig,
}

impl Kagent {
    /// A client of the kagent at `config.base_url`. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// A configuration no call could succeed with: see [`KagentError`].
    pub fn new(config: KagentConfig) -> Result<Self, KagentError> {
        let base = base_url(&config.base_url)?;
        // A header takes any visible text; more than ASCII would come out different at the other
        // end, and the user in the header would not be the one in the query.
        let user = match HeaderValue::from_str(&config.user_id) {
            Ok(user) if user.to_str().is_ok() && !config.user_id.trim().is_empty() => user,
            _ => return Err(KagentError::UserId),
        };
        if let Credential::Key(key) = &config.credential {
            Auth::bearer(key).map_err(KagentError::Key)?;
        }
        for (name, timeout) in [
            ("the API timeout", config.api_timeout),
            ("the connect timeout", config.connect_timeout),
            ("the session timeout", config.session_timeout),
            ("the lookup timeout", config.lookup_timeout),
        ] {
            if timeout.is_zero() {
                return Err(KagentError::Zero(name));
            }
        }
        if config.max_body == 0 {
            return Err(KagentError::Zero("the size of an answer"));
        }
        let http = client(&base, config.connect_timeout)?;
        Ok(Self { http, base, user, config })
    }

    /// Opens the session and sends the message into it, once; does not wait for the run.
    ///
    /// Until the session is open nothing has reached an agent, so every failure up to there is
    /// `NotRun`. After it, `NotRun` needs a proof: no connection (no byte was sent), an HTTP or
    /// JSON-RPC answer that is given before anything runs (3xx, 4xx; -32700, -32600, -32601,
    /// -32602). Everything else is `Unknown`. Of the 4xx that is 408 and the nonstandard ones of
    /// proxies (460, 499): a proxy gave up on a request it may have passed on. `Permanent` are those
    /// that judge the message itself (413, 414, 431), and names and ids that no URL can carry; not
    /// 400 and 404, with which kagent reports its own troubles too, and not 401 and 403, for tokens
    /// rotate. Seen in kagent 0.9.9 and 0.10.0-rc3.
    ///
    /// Whether the call is `wanted` is asked once more between the two: opening a session may take long.
    pub async fn call(&self, call: &AgentCall, wanted: impl Fn() -> bool) -> Reply {
        let urls = self.session_url(&[]).and_then(|sessions| {
            segment("session id", &call.session_id)?;
            segment("message id", &call.message_id)?;
            Ok((sessions, self.agent_url(&call.agent)?))
        });
        let (session_url, agent_url) = match urls {
            Ok(urls) => urls,
            Err(error) => return Reply::Permanent { error },
        };
        let auth = match self.auth().await {
            Ok(auth) => auth,
            Err(error) => return not_run(error),
        };
        if let Err(refused) = self.open_session(&auth, session_url, call).await {
            return refused;
        }
        if !wanted() {
            return unwanted();
        }
        let body = a2a::send_request(&call.session_id, &call.message_id, &call.text, &call.metadata);
        let exchange = Exchange {
            method: Method::POST,
            url: agent_url,
            body: Some(body),
            timeout: self.config.api_timeout,
            traceparent: call.traceparent.clone(),
        };
        match self.exchange(&auth, exchange, self.config.max_body).await {
            Ok(answer) => answer.message(&auth, &call.agent),
            Err(Broken { words, connected: false }) => not_run(words),
            Err(Broken { words, connected: true }) => Reply::Unknown { error: words },
        }
    }

    /// Whether the message is in the session, and how its task stands. Needs no agent.
    ///
    /// `Absent` is the licence to send again, so it is said only when kagent's database was surely
    /// read: kagent 0.9 answers `404 … Session not found …` with its database down as well.
    pub async fn lookup(&self, session_id: &str, message_id: &str) -> Lookup {
        let unavailable = |error| Lookup::Unavailable { error };
        let url = match self.session_url(&[session_id, "tasks"]) {
            Ok(url) => url,
            Err(error) => return unavailable(error),
        };
        let auth = match self.auth().await {
            Ok(auth) => auth,
            Err(error) => return unavailable(error),
        };
        match self.exchange(&auth, self.read(url), self.max_tasks()).await {
            Ok(answer) => answer.tasks(&auth, message_id),
            Err(broken) => unavailable(broken.words),
        }
    }

    /// Where the task stands: by kagent's REST first, which needs no agent; by the agent where REST
    /// does not know the task, for an agent may keep its tasks to itself.
    ///
    /// A task may run for ever (an agent killed in the middle is never marked as failed): the
    /// deadline is the caller's.
    pub async fn follow(&self, agent: &AgentName, task_id: &str) -> Follow {
        let unavailable = |error| Follow::Unavailable { error };
        let urls = self.api_url(&["api", "tasks", task_id]).and_then(|t| Ok((t, self.agent_url(agent)?)));
        let (task_url, agent_url) = match urls {
            Ok(urls) => urls,
            Err(error) => return unavailable(error),
        };
        let auth = match self.auth().await {
            Ok(auth) => auth,
            Err(error) => return unavailable(error),
        };
        match self.exchange(&auth, self.read(task_url), self.max_tasks()).await {
            Err(broken) => return unavailable(broken.words),
            Ok(answer) => {
                if let Some(follow) = answer.task(&auth) {
                    return follow;
                }
            }
        }
        let exchange =
            Exchange { method: Method::POST, body: Some(a2a::get_request(task_id)), ..self.read(agent_url) };
        match self.exchange(&auth, exchange, self.max_tasks()).await {
            Ok(answer) => answer.task_of_agent(&auth),
            Err(broken) => unavailable(broken.words),
        }
    }

    /// Opens the session, or says why nothing was sent.
    async fn open_session(&self, auth: &Auth, url: Url, call: &AgentCall) -> Result<(), Reply> {
        let body = json!({
            "id": call.session_id,
            "name": call.session_name,
            "agent_ref": call.agent.to_string(),
        });
        let exchange = Exchange {
            method: Method::POST,
            url,
            body: Some(body),
            timeout: self.config.session_timeout,
            traceparent: call.traceparent.clone(),
        };
        let answer = self
            .exchange(auth, exchange, self.config.max_body)
            .await
            .map_err(|broken| not_run(broken.words))?;
        answer.session(auth)
    }

    /// Sends one request and reads what comes back.
    ///
    /// # Errors
    ///
    /// No answer: with the knowledge whether a connection was there, and so whether anything may
    /// have been sent. A body that breaks off or is too long is not an error here but part of the
    /// answer, for the status may say enough.
    async fn exchange(&self, auth: &Auth, exchange: Exchange, cap: usize) -> Result<Answer, Broken> {
        let Exchange { method, mut url, body, timeout, traceparent } = exchange;
        let place = format!("{method} {url}");
        // The query wins over the header in kagent; proxies that authenticate know the header only.
        url.query_pairs_mut().append_pair("user_id", &self.config.user_id);
        let mut request =
            self.http.request(method, url).timeout(timeout).header("X-User-Id", self.user.clone());
        if let Some(header) = &auth.header {
            request = request.header(AUTHORIZATION, header.clone());
        }
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let broken = |error: &reqwest::Error| {
            // A builder error comes before the first packet as well.
            let connected = !(error.is_connect() || error.is_builder());
            let words = match (connected, error.is_timeout()) {
                (false, true) => {
                    format!("{place}: cannot connect: no connection within {:?}", self.config.connect_timeout)
                }
                (false, false) => format!("{place}: cannot connect: {}", auth.quote(&root_cause(error))),
                (true, true) => format!("{place}: no answer within {timeout:?}"),
                (true, false) => format!("{place}: no answer: {}", auth.quote(&root_cause(error))),
            };
            Broken { words: auth.hide(&words), connected }
        };
        let mut response = request.send().await.map_err(|error| broken(&error))?;
        let mut answer = Answer {
            place,
            status: response.status(),
            headers: response.headers().clone(),
            body: Vec::new(),
            cut: None,
        };
        let cap = if answer.status.is_success() { cap } else { cap.min(MAX_ERROR_BODY) };
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(answer),
                Ok(Some(chunk)) => answer
                    .body
                    .extend_from_slice(&chunk[..chunk.len().min(cap.saturating_add(1) - answer.body.len())]),
                Err(error) => {
                    let cause = if error.is_timeout() {
                        format!("not over within {timeout:?}")
                    } else {
                        root_cause(&error)
                    };
                    answer.cut = Some(format!("the answer broke off: {cause}"));
                    return Ok(answer);
                }
            }
            if answer.body.len() > cap {
                // Dropping the response closes the connection: what else is under way is not read.
                answer.cut = Some(format!("the answer is longer than {cap} bytes"));
                return Ok(answer);
            }
        }
    }

    /// The credential as of now.
    async fn auth(&self) -> Result<Auth, String> {
        match &self.config.credential {
            Credential::None => Ok(Auth { header: None, secret: None }),
            Credential::Key(key) => Auth::bearer(key).map_err(|e| format!("the API key for kagent {e}")),
            Credential::File(path) => {
                let at = || format!("the file {} with the API key for kagent", path.display());
                let key = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|e| format!("{} cannot be read: {e}", at()))?;
                Auth::bearer(&key).map_err(|e| format!("{} {e}", at()))
            }
        }
    }

    fn read(&self, url: Url) -> Exchange {
        let timeout = self.config.lookup_timeout;
        Exchange { method: Method::GET, url, body: None, timeout, traceparent: None }
    }

    fn max_tasks(&self) -> usize {
        self.config.max_body.saturating_mul(HISTORY)
    }

    fn session_url(&self, rest: &[&str]) -> Result<Url, String> {
        self.api_url(&[&["api", "sessions"], rest].concat())
    }

    fn agent_url(&self, agent: &AgentName) -> Result<Url, String> {
        let mut url = self.api_url(&["api", "a2a", &agent.namespace, &agent.name])?;
        push(&mut url, "");
        Ok(url)
    }

    /// The base with these segments behind it; refuses one that would lead somewhere else.
    fn api_url(&self, segments: &[&str]) -> Result<Url, String> {
        let mut url = self.base.clone();
        for s in segments {
            push(&mut url, segment("name or id", s)?);
        }
        Ok(url)
    }
}

/// How many times `max_body` a read of tasks may have.
const HISTORY: usize = 16;
/// Bytes read of an answer that is an error: enough for any that says something.
const MAX_ERROR_BODY: usize = 16 << 10;
/// Characters of somebody else's text in an error of ours.
const MAX_QUOTE: usize = 300;
/// A server that asks for more patience than this is asked again all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// One request to make.
struct Exchange {
    method: Method,
    url: Url,
    body: Option<Value>,
    traceparent: Option<String>,
    timeout: Duration,
}

/// No answer came.
struct Broken {
    words: String,
    /// Whether there was a connection, and so whether the request may have been received.
    connected: bool,
}

/// What came back.
struct Answer {
    /// Method and URL, for errors.
    place: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Why the body is not whole.
    cut: Option<String>,
}

impl Answer {
    /// Whether the session is open, or why nothing was sent.
    fn session(&self, auth: &Auth) -> Result<(), Reply> {
        match self.status {
            // A login page of a gateway is a 200 as well: only kagent's JSON is a session.
            StatusCode::OK | StatusCode::CREATED => match self.data::<Value>(auth) {
                Ok(_) => Ok(()),
                Err(error) => Err(not_run(error)),
            },
            _ => Err(self.not_run(auth, "")),
        }
    }

    /// What became of a message, by what came back for it; the rules are at [`Kagent::call`].
    fn message(&self, auth: &Auth, agent: &AgentName) -> Reply {
        match self.status.as_u16() {
            200..=299 => self.accepted(auth),
            413 | 414 | 431 => Reply::Permanent {
                error: format!("{}; the message is too large, shorten the prompt", self.words(auth)),
            },
            408 | 460 | 499 => Reply::Unknown { error: self.words(auth) },
            404 => self.not_run(auth, &format!("; is there an Agent {agent}, and is it accepted?")),
            300..=499 => self.not_run(auth, ""),
            _ => Reply::Unknown { error: self.words(auth) },
        }
    }

    /// What a 2xx for a message says.
    fn accepted(&self, auth: &Auth) -> Reply {
        let sent = match self.rpc::<Sent>(auth) {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) if error.is_refusal() => {
                let words = self.rpc_words(auth, &error);
                return Reply::NotRun { error: words, retry_after: self.retry_after(), throttled: false };
            }
            Ok(Err(error)) => return Reply::Unknown { error: self.rpc_words(auth, &error) },
            Err(error) => return Reply::Unknown { error },
        };
        match sent {
            Sent::Task(task) => {
                let ended = task.ended().map(|e| auth.hide_in(e));
                if task.id.is_empty() && ended.is_none() {
                    // Accepted, but not to be followed: the lookup may know the task's id.
                    return Reply::Unknown {
                        error: format!("{} answered with a task without an id", self.place),
                    };
                }
                Reply::Accepted { task_id: Some(task.id).filter(|id| !id.is_empty()), ended }
            }
            Sent::Message(message) => {
                let answer = message.agent_text().unwrap_or_default();
                let ended = auth.hide_in(Ended { state: EndState::Completed, answer });
                Reply::Accepted { task_id: None, ended: Some(ended) }
            }
        }
    }

    /// Whether the message with this id is in the session whose tasks were asked for.
    fn tasks(&self, auth: &Auth, message_id: &str) -> Lookup {
        let unavailable = |error| Lookup::Unavailable { error };
        if self.route_missing() {
            return Lookup::Unsupported { error: self.words(auth) };
        }
        if self.is_no_such_record("session not found") {
            return Lookup::Absent;
        }
        let tasks = match self.data::<Vec<Task>>(auth) {
            Ok(tasks) => tasks.unwrap_or_default(),
            Err(error) => return unavailable(error),
        };
        // A message sent twice by somebody else is two tasks; the one that has ended says more.
        let ours = || tasks.iter().filter(|t| t.has_message(message_id));
        match ours().find(|t| t.ended().is_some()).or_else(|| ours().next()) {
            // A list that leaves the messages out cannot say that ours is not there.
            None if !tasks.iter().all(Task::tells_messages) => {
                unavailable(format!("{} lists a task without its messages", self.place))
            }
            None => Lookup::Absent,
            Some(task) if task.id.is_empty() => {
                unavailable(format!("{} has our message in a task without an id", self.place))
            }
            Some(task) => {
                Lookup::Found { task_id: task.id.clone(), ended: task.ended().map(|e| auth.hide_in(e)) }
            }
        }
    }

    /// Where the task stands that kagent's REST was asked for; none where it does not know the task.
    fn task(&self, auth: &Auth) -> Option<Follow> {
        let unavailable = |error| Some(Follow::Unavailable { error });
        if self.route_missing() || self.is_no_such_record("task not found") {
            return None;
        }
        match self.data::<Task>(auth) {
            Ok(Some(task)) => Some(stands(auth, &task)),
            Ok(None) => unavailable(format!("{} answered without a task", self.place)),
            Err(error) => unavailable(error),
        }
    }

    /// Where the task stands that its agent was asked for.
    fn task_of_agent(&self, auth: &Auth) -> Follow {
        let unavailable = |error| Follow::Unavailable { error };
        match self.rpc::<Task>(auth) {
            Ok(Ok(task)) => stands(auth, &task),
            Ok(Err(error)) if error.code == RpcError::TASK_NOT_FOUND => {
                Follow::Ended(Ended { state: EndState::Lost, answer: String::new() })
            }
            Ok(Err(error)) => unavailable(self.rpc_words(auth, &error)),
            Err(error) => unavailable(error),
        }
    }

    /// `data` of kagent's `{"error": false, "data": …, "message": …}`; none where it is null or,
    /// as Go writes an empty list in some versions, not there.
    ///
    /// # Errors
    ///
    /// Anything but such an answer with a 2xx, in words.
    fn data<T: for<'de> Deserialize<'de>>(&self, auth: &Auth) -> Result<Option<T>, String> {
        #[derive(Deserialize)]
        struct Envelope<T> {
            error: bool,
            data: Option<T>,
        }
        if !self.status.is_success() {
            return Err(self.words(auth));
        }
        let envelope: Envelope<T> = self.json(auth)?;
        if envelope.error {
            return Err(self.words(auth));
        }
        Ok(envelope.data)
    }

    /// The result of a JSON-RPC answer, or its error.
    ///
    /// # Errors
    ///
    /// Anything but a JSON-RPC answer with a 2xx, in words.
    fn rpc<T: for<'de> Deserialize<'de>>(&self, auth: &Auth) -> Result<Result<T, RpcError>, String> {
        if !self.status.is_success() {
            return Err(self.words(auth));
        }
        match self.json::<Response<T>>(auth)? {
            Response { error: Some(error), .. } => Ok(Err(error)),
            Response { result: Some(result), .. } => Ok(Ok(result)),
            _ => Err(format!("{} answered with neither a result nor an error", self.place)),
        }
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, auth: &Auth) -> Result<T, String> {
        if let Some(cut) = &self.cut {
            return Err(format!("{}: {cut}", self.place));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            // serde quotes what it did not expect: the server's text, like the body.
            let error = auth.quote(&e.to_string());
            format!(
                "{} answered {} with what cannot be understood ({error}): {}",
                self.place,
                self.status,
                self.said(auth)
            )
        })
    }

    /// Whether the server has no such route: what Go's routers say to an unknown path or method.
    /// kagent says 404 of missing sessions too, but in JSON.
    fn route_missing(&self) -> bool {
        match self.status {
            StatusCode::NOT_FOUND => self.body.trim_ascii() == b"404 page not found",
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
            _ => false,
        }
    }

    /// Whether kagent has looked into its database and the record is not there. A 404 with the
    /// right words in front is not enough: 0.9 says `Session not found for given ID: failed to get
    /// session …: failed to connect to …` too. The cause at the end decides: pgx's and GORM's text
    /// for no row.
    fn is_no_such_record(&self, what: &str) -> bool {
        self.status == StatusCode::NOT_FOUND
            && self.kagent_error().is_some_and(|error| {
                let error = error.trim().to_lowercase();
                let no_row =
                    ["no rows in result set", "record not found"].iter().any(|cause| error.ends_with(cause));
                error.starts_with(what) && no_row
            })
    }

    /// The text of kagent's `{"error": "…"}`.
    fn kagent_error(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Failure {
            error: String,
        }
        Some(serde_json::from_slice::<Failure>(&self.body).ok()?.error)
    }

    /// This answer as a proof that nothing ran; the hint ends the sentence.
    fn not_run(&self, auth: &Auth, hint: &str) -> Reply {
        Reply::NotRun {
            error: self.words(auth) + hint,
            retry_after: self.retry_after(),
            throttled: self.status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The server's `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date, an hour at
    /// most. A date is compared with the server's own `Date` where it gives one: its clock may be
    /// another than ours.
    fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            // More digits than u64 has is a number still.
            Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => MAX_RETRY_AFTER,
            Err(_) => {
                let date =
                    |text: &str| DateTime::parse_from_rfc2822(text).ok().map(|at| at.with_timezone(&Utc));
                let now =
                    self.headers.get(DATE).and_then(|d| date(d.to_str().ok()?)).unwrap_or_else(Utc::now);
                (date(text)? - now).to_std().unwrap_or_default()
            }
        };
        Some(wait.min(MAX_RETRY_AFTER))
    }

    /// What this answer is, for a person who wonders why there is no run.
    fn words(&self, auth: &Auth) -> String {
        let Self { place, status, .. } = self;
        if status.is_redirection() {
            let host = self.headers.get(LOCATION).and_then(|l| l.to_str().ok()).and_then(|location| {
                let base = Url::parse(place.split_once(' ')?.1).ok()?;
                base.join(location).ok()?.host_str().map(str::to_owned)
            });
            let host = auth.quote(host.as_deref().unwrap_or("nowhere"));
            return format!(
                "{place} redirects to {host} ({status}), and khook follows no redirect: set kagent's URL to where it is"
            );
        }
        let hint = match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; check khook's API key for kagent",
            _ => "",
        };
        format!("{place} answered {status}: {}{hint}", self.said(auth))
    }

    /// What a JSON-RPC error says.
    fn rpc_words(&self, auth: &Auth, error: &RpcError) -> String {
        format!("{} answered with error {}: {}", self.place, error.code, auth.quote(&error.message))
    }

    /// The server's own words.
    fn said(&self, auth: &Auth) -> String {
        match self.kagent_error() {
            Some(error) => auth.quote(&error),
            None if self.body.trim_ascii().is_empty() => "(nothing)".to_owned(),
            None => auth.quote(&String::from_utf8_lossy(&self.body)),
        }
    }
}

/// An answer that came over no network, judged as [`Kagent`] judges those that did: for fuzzing.
pub struct MadeUp {
    answer: Answer,
    auth: Auth,
}

impl MadeUp {
    /// An answer to a call that carried this token; none where HTTP has no such status, or no such token.
    pub fn new(status: u16, headers: HeaderMap, body: Vec<u8>, key: &str) -> Option<Self> {
        let place = "POST http://kagent/".to_owned();
        let status = StatusCode::from_u16(status).ok()?;
        Some(Self {
            answer: Answer { place, status, headers, body, cut: None },
            auth: Auth::bearer(key).ok()?,
        })
    }

    /// As the answer to the opening of a session: whether it is open.
    ///
    /// # Errors
    ///
    /// Why nothing was sent.
    pub fn session(&self) -> Result<(), Reply> {
        self.answer.session(&self.auth)
    }

    /// As the answer to `message/send`.
    pub fn message(&self, agent: &AgentName) -> Reply {
        self.answer.message(&self.auth, agent)
    }

    /// As the tasks of a session in which this message is looked for.
    pub fn tasks(&self, message_id: &str) -> Lookup {
        self.answer.tasks(&self.auth, message_id)
    }

    /// As a task from kagent's REST; none where the agent is to be asked.
    pub fn task(&self) -> Option<Follow> {
        self.answer.task(&self.auth)
    }

    /// As the answer to `tasks/get`.
    pub fn task_of_agent(&self) -> Follow {
        self.answer.task_of_agent(&self.auth)
    }
}

/// The credential of one call, and the keeper of its secret.
struct Auth {
    header: Option<HeaderValue>,
    secret: Option<String>,
}

impl Auth {
    /// Makes the header of a token; the error continues a sentence about the token.
    fn bearer(key: &str) -> Result<Self, &'static str> {
        let key = key.trim();
        if key.is_empty() {
            return Err("is empty");
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "has characters in it that an HTTP header cannot carry, such as a line break")?;
        header.set_sensitive(true);
        Ok(Self { header: Some(header), secret: Some(key.to_owned()) })
    }

    /// The text without the secret: servers repeat what they were sent, and kagent passes the
    /// token on to the agent.
    fn hide(&self, text: &str) -> String {
        match &self.secret {
            Some(secret) => text.replace(secret.as_str(), "[redacted]"),
            None => text.to_owned(),
        }
    }

    fn hide_in(&self, ended: Ended) -> Ended {
        Ended { answer: self.hide(&ended.answer), ..ended }
    }

    /// Somebody else's text, fit for an error of ours: short, on one line, without the secret. The
    /// secret goes first, so that cutting cannot leave half of it.
    fn quote(&self, text: &str) -> String {
        let hidden = self.hide(text);
        let plain: String = hidden.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match plain.char_indices().nth(MAX_QUOTE) {
            Some((end, _)) => format!("{}…", &plain[..end]),
            None => plain,
        }
    }
}

/// What a task that was read tells a follower.
fn stands(auth: &Auth, task: &Task) -> Follow {
    task.ended().map_or(Follow::Running, |e| Follow::Ended(auth.hide_in(e)))
}

fn not_run(error: String) -> Reply {
    Reply::NotRun { error, retry_after: None, throttled: false }
}

/// The last cause of an error, the one that says something: "Connection refused (os error 111)".
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = match error.source() {
        Some(source) => source,
        None => return error.to_string(),
    };
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Checks a part of a path. Agents' names and tasks' ids come from elsewhere.
fn segment<'a>(what: &str, s: &'a str) -> Result<&'a str, String> {
    if s.is_empty() || s == "." || s == ".." || s.contains(['/', '\\']) || s.contains(char::is_control) {
        let shown: String = s.chars().take(60).collect();
        return Err(format!(
            "{shown:?} is no {what} that can stand in a URL: it must not be empty, . or .., nor contain a slash"
        ));
    }
    Ok(s)
}

/// Appends a segment, percent-encoded; replaces the empty one a trailing slash is.
fn push(url: &mut Url, segment: &str) {
    if let Ok(mut path) = url.path_segments_mut() {
        // An http URL always has path segments; `base_url` lets no other through.
        path.pop_if_empty().push(segment);
    }
}

/// Parses the address. Its own text is in no error: it may have a password in it.
fn base_url(text: &str) -> Result<Url, KagentError> {
    let wrong = |why: &str| Err(KagentError::BaseUrl(why.to_owned()));
    let url = match Url::parse(text.trim()) {
        Ok(url) => url,
        Err(error) => {
            return wrong(&format!(
                "cannot be read ({error}): it looks like http://kagent-controller.kagent:8083"
            ));
        }
    };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong(&format!("must begin with http:// or https://, not {}:", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("must not have a user or password in it: give the credential as API key");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("must end with its path, without ? and #");
    }
    Ok(url)
}

fn client(base: &Url, connect_timeout: Duration) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .user_agent(concat!("khook/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        // A redirected POST may be sent twice or to somebody else; it is reported instead.
        .redirect(reqwest::redirect::Policy::none())
        // kagent is in the cluster. A proxy from the environment is meant for the way out, and
        // would stand between khook and what it can tell about a failed connection.
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        // kagent's controller closes its connections when it stops. A request written to one that
        // is closing is of unknown outcome, so old ones are not kept: a session and its message
        // share one, an hour-old one is a risk without a gain.
        .pool_idle_timeout(Duration::from_secs(5))
        // At most one message per call. This switches off reqwest's retries, which are of requests
        // refused by HTTP/2. hyper-util's own, which reqwest cannot switch off, stays: it takes
        // another connection when a pooled one was closed before hyper took the request from its
        // queue, and has the request back only then, with no byte of it written.
        .retry(reqwest::retry::never())
        .http1_only();
    // reqwest takes the process's crypto provider and panics without one. khook has only one, ring;
    // whoever comes first installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if base.scheme() == "https" {
        return builder.build();
    }
    // Without https no certificate is ever looked at. Loading the system's would make khook depend
    // on a file that a minimal image does not have.
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions();
    match tls {
        Ok(tls) => {
            let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
            builder.tls_backend_preconfigured(tls).build()
        }
        // ring supports the default versions; if it ever does not, reqwest's error says so better.
        Err(_) => builder.build(),
    }
}
