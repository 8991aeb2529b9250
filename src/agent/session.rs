//! A session is kagent's record of one incident's conversation; this is the client that opens it,
//! sends the message into it and reads what became of it.
//!
//! One [`Kagent::call`] sends at most one message, and its [`Reply`] says how sure khook may be
//! about what happened to it. kagent deduplicates nothing: a message sent twice is two runs, so
//! whatever is not surely *not run* is `Unknown`, and [`Kagent::lookup`] decides.

use std::{fmt, path::PathBuf, time::Duration};

use reqwest::{
    Method, StatusCode, Url,
    header::{HeaderMap, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    AgentCall, Follow, Inquiry,
    a2a::Task,
    endpoint::{Dialect, Endpoint, Limits},
    exchange::{self, Answer, Auth, Exchange, Http, not_run, root_cause},
};
use crate::incident::outcome::{AgentName, Lookup, Protocol, Reply};

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
    /// Whether what kagent and its agents say of a failure is quoted.
    pub quote: bool,
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
            quote: true,
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

/// The client of one kagent. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Kagent {
    http: Http,
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
        let client = exchange::finish(exchange::client(config.connect_timeout), base.scheme())?;
        let http = Http { client, connect_timeout: config.connect_timeout };
        Ok(Self { http, base, user, config })
    }

    /// Opens the session and sends the message into it, once; does not wait for the run. A kagent without
    /// sessions (404 page not found) is sent the message alone: the agent makes one of its context.
    ///
    /// Until the session is open nothing has reached an agent, so every failure up to there is
    /// `NotRun`. After it, [`Endpoint::send`] says what is what. Names and ids that no URL can carry are
    /// `Permanent`.
    ///
    /// Whether the call is `wanted` is asked once more between the two: opening a session may take long.
    pub(super) async fn call(&self, call: &AgentCall, dialect: Dialect, wanted: impl Fn() -> bool) -> Reply {
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
        let mut endpoint = self.endpoint(&auth, agent_url, &call.agent);
        endpoint.headers.extend(call.headers());
        endpoint.send(dialect, call.outgoing(), wanted).await
    }

    /// Whether the message is in the session, and how its task stands. Needs no agent, where kagent has sessions;
    /// else the agent is asked for the tasks of the conversation.
    ///
    /// `Absent` is the licence to send again, so it is said only when kagent's database was surely
    /// read: kagent 0.9 answers `404 … Session not found …` with its database down as well.
    pub(super) async fn lookup(&self, about: &Inquiry<'_>, message_id: &str) -> Lookup {
        let unavailable = |error| Lookup::Unavailable { error };
        let urls = self.session_url(&[about.session_id, "tasks"]);
        let (url, agent_url) = match urls.and_then(|url| Ok((url, self.agent_url(about.agent)?))) {
            Ok(urls) => urls,
            Err(error) => return unavailable(error),
        };
        let auth = match self.auth().await {
            Ok(auth) => auth,
            Err(error) => return unavailable(error),
        };
        let lookup = match self.read(&auth, url).make().await {
            Ok(answer) => answer.tasks(message_id),
            Err(broken) => return unavailable(broken.words),
        };
        match lookup {
            Lookup::Unsupported { error } => {
                match self.endpoint(&auth, agent_url, about.agent).lookup(about.session_id, message_id).await
                {
                    // Why there is none at all.
                    Lookup::Unsupported { .. } => Lookup::Unsupported { error },
                    lookup => lookup,
                }
            }
            lookup => lookup,
        }
    }

    /// Where the task stands: by kagent's REST first, which needs no agent; by the agent where REST
    /// does not know the task, for an agent may keep its tasks to itself.
    ///
    /// A task may run for ever (an agent killed in the middle is never marked as failed): the
    /// deadline is the caller's.
    pub(super) async fn follow(&self, agent: &AgentName, dialect: Dialect, task_id: &str) -> Follow {
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
        match self.read(&auth, task_url).make().await {
            Err(broken) => return unavailable(broken.words),
            Ok(answer) => {
                if let Some(follow) = answer.task() {
                    return follow;
                }
            }
        }
        self.endpoint(&auth, agent_url, agent).follow(dialect, task_id).await
    }

    /// Opens the session, or says why nothing was sent.
    async fn open_session(&self, auth: &Auth, url: Url, call: &AgentCall) -> Result<(), Reply> {
        let body = json!({
            "id": call.session_id,
            "name": call.session_name,
            "agent_ref": call.agent.to_string(),
        });
        let (timeout, cap) = (self.config.session_timeout, self.config.max_body);
        let mut exchange =
            Exchange { body: Some(body), timeout, cap, ..self.exchange(auth, Method::POST, url) };
        exchange.headers.extend(call.headers());
        let answer = exchange.make().await.map_err(|broken| not_run(broken.words))?;
        if answer.route_missing() {
            return Ok(());
        }
        answer.session()
    }

    fn read<'a>(&'a self, auth: &'a Auth, url: Url) -> Exchange<'a> {
        self.exchange(auth, Method::GET, url)
    }

    fn exchange<'a>(&'a self, auth: &'a Auth, method: Method, url: Url) -> Exchange<'a> {
        Exchange {
            http: &self.http,
            auth,
            place: format!("{method} {url}"),
            method,
            url: self.with_user(url),
            headers: self.headers(),
            body: None,
            timeout: self.config.lookup_timeout,
            cap: self.limits().tasks,
        }
    }

    fn endpoint<'a>(&'a self, auth: &'a Auth, url: Url, agent: &AgentName) -> Endpoint<'a> {
        Endpoint {
            http: &self.http,
            auth,
            place: url.to_string(),
            url: self.with_user(url),
            headers: self.headers(),
            limits: self.limits(),
            hint: format!("; is there an Agent {agent}, and is it accepted?"),
        }
    }

    fn limits(&self) -> Limits {
        Limits::new(self.config.api_timeout, self.config.lookup_timeout, self.config.max_body)
    }

    // The query wins over the header in kagent; proxies that authenticate know the header only.
    fn with_user(&self, mut url: Url) -> Url {
        url.query_pairs_mut().append_pair("user_id", &self.config.user_id);
        url
    }

    fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([(USER, self.user.clone())])
    }

    /// The credential as of now.
    async fn auth(&self) -> Result<Auth, String> {
        let auth = match &self.config.credential {
            Credential::None => Ok(Auth::default()),
            Credential::Key(key) => Auth::bearer(key).map_err(|e| format!("the API key for kagent {e}")),
            Credential::File(path) => {
                let at = || format!("the file {} with the API key for kagent", path.display());
                let key = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|e| format!("{} cannot be read: {e}", at()))?;
                Auth::bearer(&key).map_err(|e| format!("{} {e}", at()))
            }
        };
        auth.map(|auth| auth.mute(!self.config.quote))
    }

    fn session_url(&self, rest: &[&str]) -> Result<Url, String> {
        self.api_url(&[&["api", "sessions"], rest].concat())
    }

    fn agent_url(&self, agent: &AgentName) -> Result<Url, String> {
        let AgentName::Kagent { namespace, name } = agent else {
            return Err(format!("{agent} is no agent of kagent"));
        };
        let mut url = self.api_url(&["api", "a2a", namespace, name])?;
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

/// The user, where a proxy in front of kagent authenticates.
const USER: reqwest::header::HeaderName = reqwest::header::HeaderName::from_static("x-user-id");

impl Answer {
    /// Whether the session is open, or why nothing was sent.
    fn session(&self) -> Result<(), Reply> {
        match self.status {
            // A login page of a gateway is a 200 as well: only kagent's JSON is a session.
            StatusCode::OK | StatusCode::CREATED => match self.data::<Value>() {
                Ok(_) => Ok(()),
                Err(error) => Err(not_run(error)),
            },
            _ => Err(self.not_run("")),
        }
    }

    /// Whether the message with this id is in the session whose tasks were asked for.
    fn tasks(&self, message_id: &str) -> Lookup {
        let unavailable = |error| Lookup::Unavailable { error };
        if self.route_missing() {
            return Lookup::Unsupported { error: self.words() };
        }
        if self.is_no_such_record("session not found") {
            return Lookup::Absent;
        }
        let tasks = match self.data::<Vec<Task>>() {
            Ok(tasks) => tasks.unwrap_or_default(),
            Err(error) => return unavailable(error),
        };
        self.find(&tasks, message_id)
    }

    /// Where the task stands that kagent's REST was asked for; none where it does not know the task.
    fn task(&self) -> Option<Follow> {
        let unavailable = |error| Some(Follow::Unavailable { error });
        if self.route_missing() || self.is_no_such_record("task not found") {
            return None;
        }
        match self.data::<Task>() {
            Ok(Some(task)) => Some(self.stands(&task)),
            Ok(None) => unavailable(format!("{} answered without a task", self.place)),
            Err(error) => unavailable(error),
        }
    }

    /// `data` of kagent's `{"error": false, "data": …, "message": …}`; none where it is null or,
    /// as Go writes an empty list in some versions, not there.
    ///
    /// # Errors
    ///
    /// Anything but such an answer with a 2xx, in words.
    fn data<T: for<'de> Deserialize<'de>>(&self) -> Result<Option<T>, String> {
        #[derive(Deserialize)]
        struct Envelope<T> {
            error: bool,
            data: Option<T>,
        }
        if !self.status.is_success() {
            return Err(self.words());
        }
        let envelope: Envelope<T> = self.json()?;
        if envelope.error {
            return Err(self.words());
        }
        Ok(envelope.data)
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
}

/// An answer that came over no network, judged as [`Kagent`] judges those that did: for fuzzing.
pub struct MadeUp(Answer);

impl MadeUp {
    /// An answer to a call that carried this token; none where HTTP has no such status, or no such token.
    pub fn new(status: u16, headers: HeaderMap, body: Vec<u8>, key: &str) -> Option<Self> {
        let place = "POST http://kagent/".to_owned();
        let status = StatusCode::from_u16(status).ok()?;
        Some(Self(Answer { auth: Auth::bearer(key).ok()?, place, status, headers, body, cut: None }))
    }

    /// As the answer to the opening of a session: whether it is open.
    ///
    /// # Errors
    ///
    /// Why nothing was sent.
    pub fn session(&self) -> Result<(), Reply> {
        self.0.session()
    }

    /// As the answer to a message.
    pub fn message(&self) -> Reply {
        self.0.message("; is there an Agent kagent/k8s-agent, and is it accepted?", Protocol::V03)
    }

    /// As the tasks of a session in which this message is looked for.
    pub fn tasks(&self, message_id: &str) -> Lookup {
        self.0.tasks(message_id)
    }

    /// As a page of the tasks of a conversation.
    pub fn page(&self, message_id: &str) -> Lookup {
        self.0.page(message_id).0
    }

    /// As a task from kagent's REST; none where the agent is to be asked.
    pub fn task(&self) -> Option<Follow> {
        self.0.task()
    }

    /// As the answer to `tasks/get`.
    pub fn task_of_agent(&self) -> Follow {
        self.0.task_of_agent()
    }
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
