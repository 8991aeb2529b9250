//! An endpoint is where an agent takes A2A's JSON-RPC: the message, and questions about its task, in whichever
//! dialect it speaks.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{
    Method, StatusCode, Url,
    header::{ACCEPT, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Follow,
    a2a::{self, Outgoing, Response, RpcError, Sent, StreamEvent, Task, TaskList},
    exchange::{Answer, Auth, Broken, Exchange, Http, not_run},
    unwanted,
};
use crate::incident::outcome::{EndState, Ended, Lookup, Protocol, Reply};

/// How long requests may take, and how long their answers may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time for a message, from the connecting to the last byte of the answer.
    pub(super) send: Duration,
    /// Time for one read, all in all.
    pub(super) read: Duration,
    /// Bytes of the answer to a message.
    pub(super) answer: usize,
    /// Bytes of the answer to a read: a task carries its history with every tool call in it.
    pub(super) tasks: usize,
}

impl Limits {
    /// Reads of tasks may be 16 times as long as the answer to a message.
    pub(super) fn new(send: Duration, read: Duration, max_body: usize) -> Self {
        Self { send, read, answer: max_body, tasks: max_body.saturating_mul(16) }
    }
}

/// An endpoint, and whom it sees asking.
pub(super) struct Endpoint<'a> {
    pub(super) http: &'a Http,
    pub(super) auth: &'a Auth,
    pub(super) url: Url,
    /// The URL as errors have it.
    pub(super) place: String,
    /// Sent with every request.
    pub(super) headers: HeaderMap,
    pub(super) limits: Limits,
    /// What to look at where nobody is there: the end of a sentence.
    pub(super) hint: String,
}

/// The dialect that is tried first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dialect {
    /// Somebody has said so: no other is tried.
    Only(Protocol),
    /// It was heard to speak it, or says so: another is tried only if it says that it does not any more.
    Known(Protocol),
    /// Every refusal of form may be about the dialect.
    Guess(Protocol),
}

impl Dialect {
    pub(super) fn first(self) -> Protocol {
        match self {
            Self::Only(first) | Self::Known(first) | Self::Guess(first) => first,
        }
    }
}

/// Tasks of one conversation that are looked through at most, in pages.
const MAX_PAGES: usize = 10;

impl Endpoint<'_> {
    /// Sends the message, once, and does not wait for the run.
    ///
    /// `NotRun` needs a proof: no connection (no byte was sent), an HTTP or JSON-RPC answer that is given before
    /// anything runs (3xx, 4xx; -32700, -32600, -32601, -32602, -32009). Everything else is `Unknown`. Of the 4xx
    /// that is 408 and the nonstandard ones of proxies (460, 499): a proxy gave up on a request it may have passed
    /// on. `Permanent` are those that judge the message itself (413, 414, 431); not 400 and 404, with which kagent
    /// reports its own troubles too, and not 401 and 403, for tokens rotate. Seen in kagent 0.9.9 and 0.10.0-rc3.
    ///
    /// Where the refusal is about the dialect, which also proves that nothing ran, the other one is tried.
    ///
    /// Whether the message is `wanted` is asked before each of the two: an answer may take long.
    pub(super) async fn send(
        &self,
        dialect: Dialect,
        message: Outgoing<'_>,
        wanted: impl Fn() -> bool,
    ) -> Reply {
        if !wanted() {
            return unwanted();
        }
        let first = self.send_in(dialect.first(), message).await;
        let refused = first.as_ref().is_ok_and(|answer| answer.is_about_the_dialect(dialect));
        let first = self.became(dialect.first(), first);
        if !refused {
            return first;
        }
        if !wanted() {
            return unwanted();
        }
        let other = self.send_in(dialect.first().other(), message).await;
        // The other dialect may be as foreign to it: then the first refusal says more.
        match &other {
            Ok(answer) if answer.is_about_the_dialect(Dialect::Known(dialect.first().other())) => first,
            _ => self.became(dialect.first().other(), other),
        }
    }

    async fn send_in(&self, protocol: Protocol, message: Outgoing<'_>) -> Result<Answer, Broken> {
        let body = a2a::send_request(protocol, message);
        self.ask(protocol, body, self.limits.send, self.limits.answer).make().await
    }

    fn became(&self, protocol: Protocol, answer: Result<Answer, Broken>) -> Reply {
        match answer {
            Ok(answer) => answer.message(&self.hint, protocol),
            Err(Broken { words, connected: false }) => not_run(words),
            Err(Broken { words, connected: true }) => Reply::Unknown { error: words },
        }
    }

    /// Where the task stands.
    pub(super) async fn follow(&self, dialect: Dialect, task_id: &str) -> Follow {
        let get = |protocol| self.read(protocol, a2a::get_request(protocol, task_id)).make();
        let mut answer = get(dialect.first()).await;
        if answer.as_ref().is_ok_and(|answer| answer.is_about_the_dialect(dialect)) {
            answer = get(dialect.first().other()).await;
        }
        match answer {
            Ok(answer) => answer.task_of_agent(),
            Err(broken) => Follow::Unavailable { error: broken.words },
        }
    }

    /// Whether the message is among the tasks of its conversation, and how its task stands.
    pub(super) async fn lookup(&self, context_id: &str, message_id: &str) -> Lookup {
        let mut page = String::new();
        for _ in 0..MAX_PAGES {
            let list = a2a::list_request(context_id, &page);
            let answer = match self.read(Protocol::V10, list).make().await {
                Ok(answer) => answer,
                Err(broken) => return Lookup::Unavailable { error: broken.words },
            };
            match answer.page(message_id) {
                (Lookup::Absent, next) if !next.is_empty() => page = next,
                (lookup, _) => return lookup,
            }
        }
        Lookup::Unavailable {
            error: format!("{}: the conversation has too many tasks to look through", self.place),
        }
    }

    /// Listens to a task until it ends; none where the agent does not tell, or the stream ends before.
    pub(super) async fn listen(&self, task_id: &str, at_most: Duration) -> Option<Ended> {
        let subscribe = a2a::subscribe_request(task_id);
        let mut request = self.ask(Protocol::V10, subscribe, at_most, self.limits.tasks);
        request.headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let mut events = std::pin::pin!(request.events().await?);
        let mut task = Task::default();
        while let Some(data) = events.next().await {
            task.apply(serde_json::from_slice::<Response<StreamEvent>>(data.as_bytes()).ok()?.result?);
            if let Some(ended) = task.ended() {
                return Some(self.auth.hide_in(ended));
            }
        }
        None
    }

    fn read(&self, protocol: Protocol, body: Value) -> Exchange<'_> {
        self.ask(protocol, body, self.limits.read, self.limits.tasks)
    }

    fn ask(&self, protocol: Protocol, body: Value, timeout: Duration, cap: usize) -> Exchange<'_> {
        let mut headers = self.headers.clone();
        if protocol == Protocol::V10 {
            headers.insert(a2a::VERSION_HEADER, HeaderValue::from_static("1.0"));
        }
        Exchange {
            http: self.http,
            auth: self.auth,
            method: Method::POST,
            url: self.url.clone(),
            place: format!("POST {}", self.place),
            headers,
            body: Some(body),
            timeout,
            cap,
        }
    }
}

impl Answer {
    /// What became of a message, by what came back for it; the rules are at [`Endpoint::send`].
    /// `hint` says what to look at where nobody is there.
    pub(super) fn message(&self, hint: &str, protocol: Protocol) -> Reply {
        match self.status.as_u16() {
            200..=299 => self.accepted(protocol),
            413 | 414 | 431 => Reply::Permanent {
                error: format!("{}; the message is too large, shorten the prompt", self.words()),
            },
            408 | 460 | 499 => Reply::Unknown { error: self.words() },
            404 => self.not_run(hint),
            300..=499 => self.not_run(""),
            _ => Reply::Unknown { error: self.words() },
        }
    }

    /// What a 2xx for a message says.
    fn accepted(&self, protocol: Protocol) -> Reply {
        let sent = match self.rpc::<Sent>() {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) if error.is_refusal() => {
                let words = self.rpc_words(&error);
                return Reply::NotRun { error: words, retry_after: self.retry_after(), throttled: false };
            }
            Ok(Err(error)) => return Reply::Unknown { error: self.rpc_words(&error) },
            Err(error) => return Reply::Unknown { error },
        };
        match sent {
            Sent::Task(task) => {
                let ended = task.ended().map(|e| self.auth.hide_in(e));
                if task.id.is_empty() && ended.is_none() {
                    // Accepted, but not to be followed: the lookup may know the task's id.
                    return Reply::Unknown {
                        error: format!("{} answered with a task without an id", self.place),
                    };
                }
                // An id that repeats the credential is not kept, and so not followed.
                let task_id = Some(task.id).filter(|id| !id.is_empty() && !self.auth.is_in(id));
                Reply::Accepted { task_id, ended, protocol: Some(protocol) }
            }
            Sent::Message(message) => {
                let ended = Some(self.auth.hide_in(message.ended()));
                Reply::Accepted { task_id: None, ended, protocol: Some(protocol) }
            }
        }
    }

    /// Whether the message is on this page of tasks, and the name of the next page.
    pub(super) fn page(&self, message_id: &str) -> (Lookup, String) {
        let unavailable = |error| (Lookup::Unavailable { error }, String::new());
        if self.is_not_served() {
            return (Lookup::Unsupported { error: self.words() }, String::new());
        }
        let list = match self.rpc::<TaskList>() {
            Ok(Ok(list)) => list,
            Ok(Err(error)) => return unavailable(self.rpc_words(&error)),
            Err(error) => return unavailable(error),
        };
        match list.tasks() {
            Some(tasks) => (self.find(tasks, message_id), list.next_page_token),
            None => unavailable(format!("{} answered without tasks", self.place)),
        }
    }

    /// Whether the message with this id is in one of these tasks.
    pub(super) fn find(&self, tasks: &[Task], message_id: &str) -> Lookup {
        let unavailable = |error| Lookup::Unavailable { error };
        // A message sent twice by somebody else is two tasks; the one that has ended says more.
        let ours = || tasks.iter().filter(|t| t.has_message(message_id));
        match ours().find(|t| t.ended().is_some()).or_else(|| ours().next()) {
            // A list that leaves the messages out cannot say that ours is not there.
            None if !tasks.iter().all(Task::tells_messages) => {
                unavailable(format!("{} lists a task without its messages", self.place))
            }
            None => Lookup::Absent,
            Some(task) if self.auth.is_in(&task.id) => unavailable(format!(
                "{} has our message in a task that is named by our credential",
                self.place
            )),
            Some(task) if task.id.is_empty() => {
                unavailable(format!("{} has our message in a task without an id", self.place))
            }
            Some(task) => {
                Lookup::Found { task_id: task.id.clone(), ended: task.ended().map(|e| self.auth.hide_in(e)) }
            }
        }
    }

    /// Where the task stands that its agent was asked for.
    pub(super) fn task_of_agent(&self) -> Follow {
        let unavailable = |error| Follow::Unavailable { error };
        match self.rpc::<Task>() {
            Ok(Ok(task)) => self.stands(&task),
            Ok(Err(error)) if error.code == RpcError::TASK_NOT_FOUND => {
                Follow::Ended(Ended::silent(EndState::Lost))
            }
            Ok(Err(error)) => unavailable(self.rpc_words(&error)),
            Err(error) => unavailable(error),
        }
    }

    /// What a task that was read tells a follower.
    pub(super) fn stands(&self, task: &Task) -> Follow {
        task.ended().map_or(Follow::Running, |ended| Follow::Ended(self.auth.hide_in(ended)))
    }

    /// Whether a refusal is about the dialect of the request, so that the other one is worth a try. Of an endpoint
    /// that is not known to speak it every refusal of form may be.
    fn is_about_the_dialect(&self, dialect: Dialect) -> bool {
        if matches!(dialect, Dialect::Only(_)) {
            return false;
        }
        let guessed = matches!(dialect, Dialect::Guess(_));
        match self.status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                guessed || String::from_utf8_lossy(&self.body).to_lowercase().contains("version")
            }
            status if status.is_success() => match self.rpc::<Sent>() {
                Ok(Err(error)) => {
                    matches!(error.code, RpcError::METHOD_NOT_FOUND | RpcError::VERSION_NOT_SUPPORTED)
                        || guessed && error.is_refusal()
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the server does not do what was asked for at all.
    fn is_not_served(&self) -> bool {
        let codes = [
            RpcError::METHOD_NOT_FOUND,
            RpcError::VERSION_NOT_SUPPORTED,
            RpcError::UNSUPPORTED_OPERATION,
            RpcError::UNAUTHENTICATED,
        ];
        // A missing route is no such answer: then the endpoint is somewhere else, and may do it there.
        matches!(self.rpc::<TaskList>(), Ok(Err(error)) if codes.contains(&error.code))
    }

    /// The result of a JSON-RPC answer, or its error.
    ///
    /// # Errors
    ///
    /// Anything but a JSON-RPC answer with a 2xx, in words.
    fn rpc<T: for<'de> Deserialize<'de>>(&self) -> Result<Result<T, RpcError>, String> {
        if !self.status.is_success() {
            return Err(self.words());
        }
        match self.json::<Response<T>>()? {
            Response { error: Some(error), .. } => Ok(Err(error)),
            Response { result: Some(result), .. } => Ok(Ok(result)),
            _ => Err(format!("{} answered with neither a result nor an error", self.place)),
        }
    }

    /// What a JSON-RPC error says.
    fn rpc_words(&self, error: &RpcError) -> String {
        format!("{} answered with error {}: {}", self.place, error.code, self.auth.quote(&error.message))
    }
}
