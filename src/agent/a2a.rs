//! A2A is the protocol in which agents are spoken to; these are its wire types in both its dialects, 0.3 and
//! 1.0, as far as khook writes and reads them.
//!
//! What is written is in the dialect that was asked for. What is read is read in both, and tolerantly: unknown
//! fields are skipped, missing ones and `null` mean empty, a state nobody knows means that the task still runs.
//! What cannot be understood even so is an error for the caller to classify, never a panic.
//!
//! Names and states: A2A specification 0.3.0, sections 6 and 7; 1.0, sections 3, 4 and 9.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};

use crate::incident::outcome::{EndState, Ended, Protocol, Usage};

/// The header that names the dialect; a request without it is in 0.3 (A2A 1.0, section 3.6).
pub const VERSION_HEADER: &str = "A2A-Version";

/// One text for an agent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The conversation it belongs to.
    pub context_id: &'a str,
    /// Its id.
    pub message_id: &'a str,
    /// The text.
    pub text: &'a str,
    /// For programs; a map, or null for none.
    pub metadata: &'a Value,
}

/// The request that sends a message without waiting for the answer.
///
/// The message's id is used as the JSON-RPC id too, so that one id finds the call in every log.
pub fn send_request(protocol: Protocol, message: Outgoing) -> Value {
    let Outgoing { context_id, message_id, text, metadata } = message;
    // Blocking is the default and holds the connection until the run ends; kagent cuts that off after three
    // minutes with an error while the run goes on. Not blocking answers at once with a task to follow.
    let (method, mut message, configuration) = match protocol {
        Protocol::V03 => (
            "message/send",
            // kagent reads a message without kind, but refuses a part without it (-32700).
            json!({"kind": "message", "role": "user", "parts": [{"kind": "text", "text": text}]}),
            json!({"blocking": false}),
        ),
        Protocol::V10 => (
            "SendMessage",
            json!({"role": "ROLE_USER", "parts": [{"text": text}]}),
            json!({"returnImmediately": true}),
        ),
    };
    message["messageId"] = message_id.into();
    message["contextId"] = context_id.into();
    if metadata.as_object().is_some_and(|metadata| !metadata.is_empty()) {
        message["metadata"] = metadata.clone();
    }
    request(message_id, method, json!({"message": message, "configuration": configuration}))
}

/// The request for one task.
pub fn get_request(protocol: Protocol, task_id: &str) -> Value {
    let method = match protocol {
        Protocol::V03 => "tasks/get",
        Protocol::V10 => "GetTask",
    };
    request(task_id, method, json!({"id": task_id}))
}

/// The request for what happens to a task from now on. Only 1.0 is asked for it: the Python SDK of 0.3 stores
/// every piece of an answer once for each who listens (seen in 0.3.26), so that listening would garble it.
pub fn subscribe_request(task_id: &str) -> Value {
    request(task_id, "SubscribeToTask", json!({"id": task_id}))
}

/// The request for the tasks of a conversation, with all that was said in them. Only 1.0 has it.
pub fn list_request(context_id: &str, page: &str) -> Value {
    let mut params = json!({"contextId": context_id, "pageSize": LIST_PAGE});
    if !page.is_empty() {
        params["pageToken"] = page.into();
    }
    request(context_id, "ListTasks", params)
}

/// Tasks on a page: servers refuse more (A2A 1.0, section 3.1.4).
const LIST_PAGE: u32 = 100;

fn request(id: &str, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// The answer to a message: a task to follow, or the agent's words at once.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "SentFields")]
pub enum Sent {
    /// The agent works on it, or has finished already.
    Task(Task),
    /// The agent answered without a task.
    Message(Message),
}

/// One run of an agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Task {
    /// The server's id of the task; empty where it was missing.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// Where the task stands.
    #[serde(deserialize_with = "or_default")]
    pub status: TaskStatus,
    /// What the agent made.
    #[serde(deserialize_with = "or_default")]
    pub artifacts: Vec<Artifact>,
    /// What was said so far, oldest first.
    #[serde(deserialize_with = "or_default")]
    pub history: Vec<Message>,
    metadata: Metadata,
}

impl Task {
    /// How the task ended, with the agent's words; none while it runs.
    ///
    /// A completed task answers in its artifacts; every other end explains itself in the status
    /// message. Agents are not strict about it, so the next best place is read where the right one
    /// is empty: the status message, the agent's last words in the history, the artifacts.
    pub fn ended(&self) -> Option<Ended> {
        let state = self.status.state.end()?;
        let said = || self.status.message.as_ref().and_then(Message::agent_text);
        let last = || self.history.iter().rev().find_map(Message::agent_text);
        let made = || {
            // The parts of an artifact may be the pieces of a stream, cut anywhere.
            let whole = |artifact: &Artifact| texts(&artifact.parts).collect::<String>();
            let texts: Vec<String> =
                self.artifacts.iter().map(whole).filter(|text| !text.trim().is_empty()).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        };
        let answer = match state {
            EndState::Completed => made().or_else(said).or_else(last),
            EndState::InputRequired => self.question(said().or_else(last)),
            _ => said().or_else(last).or_else(made),
        };
        Some(Ended { state, answer: answer.unwrap_or_default(), usage: self.usage() })
    }

    /// What the run has used. kagent and Google's ADK tell it with every answer of a model, which is a message
    /// of the history, and repeat the last one in the task.
    fn usage(&self) -> Option<Usage> {
        let whole = |message: &&Message| !message.is_ours() && !message.metadata.partial;
        let said = sum(self.history.iter().filter(whole).map(|message| &message.metadata));
        let made = || sum(self.artifacts.iter().map(|artifact| &artifact.metadata));
        let last = || self.status.message.as_ref().and_then(|message| message.metadata.usage);
        said.or(self.metadata.usage).or_else(made).or_else(last)
    }

    /// Takes in what a stream says of it.
    pub fn apply(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Task(task) => *self = task,
            StreamEvent::Message(message) => {
                // An answer without a task ends what there was of one.
                self.status = TaskStatus { state: TaskState::Completed, message: Some(message) };
            }
            StreamEvent::Status(status) => {
                self.history.extend(self.status.message.take());
                self.status = status;
            }
            StreamEvent::Artifact { artifact, append } => {
                match self.artifacts.iter_mut().find(|known| known.artifact_id == artifact.artifact_id) {
                    Some(known) if append => known.parts.extend(artifact.parts),
                    Some(known) => *known = artifact,
                    None => self.artifacts.push(artifact),
                }
            }
        }
    }

    /// Whether the message with this id was given to this task.
    pub fn has_message(&self, message_id: &str) -> bool {
        self.messages().any(|m| m.message_id == message_id)
    }

    /// Whether the task shows any of the messages it was given, and so could show ours. What the agent itself said
    /// is none of them.
    pub fn tells_messages(&self) -> bool {
        self.messages().any(|m| !m.message_id.is_empty() && m.is_ours())
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        self.history.iter().chain(&self.status.message)
    }

    /// The words of a task that waits for a person. kagent's agents ask by a tool call: the question
    /// is the hint of a data part then, and no text says it.
    fn question(&self, said: Option<String>) -> Option<String> {
        let hints = self.status.message.iter().flat_map(|m| &m.parts).map(|p| p.data.0.as_str());
        let mut lines: Vec<String> = said.into_iter().collect();
        for hint in hints.filter(|h| !h.trim().is_empty()) {
            if !lines.iter().any(|line| line.contains(hint)) {
                lines.push(hint.to_owned());
            }
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// Where a task stands.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// The state.
    #[serde(deserialize_with = "or_default")]
    pub state: TaskState,
    /// The message that goes with the state: the agent's, or in a new task our own.
    pub message: Option<Message>,
}

/// The states of A2A 0.3, section 6.3; 1.0 has the same, written `TASK_STATE_COMPLETED`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum TaskState {
    /// Taken, not begun.
    Submitted,
    /// Running.
    Working,
    /// Waits for a person.
    InputRequired,
    /// Waits for credentials.
    AuthRequired,
    /// Done.
    Completed,
    /// Stopped by somebody.
    Canceled,
    /// Ended in an error.
    Failed,
    /// Refused by the agent.
    Rejected,
    /// A state this version does not know, `unknown` among them.
    Other(String),
}

impl TaskState {
    /// The end this state means; none while the task runs, or in a state nobody knows.
    pub fn end(&self) -> Option<EndState> {
        match self {
            Self::InputRequired => Some(EndState::InputRequired),
            Self::AuthRequired => Some(EndState::AuthRequired),
            Self::Completed => Some(EndState::Completed),
            Self::Canceled => Some(EndState::Canceled),
            Self::Failed => Some(EndState::Failed),
            Self::Rejected => Some(EndState::Rejected),
            Self::Submitted | Self::Working | Self::Other(_) => None,
        }
    }
}

impl Default for TaskState {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl From<String> for TaskState {
    fn from(state: String) -> Self {
        let plain = state.strip_prefix("TASK_STATE_").map(|rest| rest.to_lowercase().replace('_', "-"));
        match plain.as_deref().unwrap_or(&state) {
            "submitted" => Self::Submitted,
            "working" => Self::Working,
            "input-required" => Self::InputRequired,
            "auth-required" => Self::AuthRequired,
            "completed" => Self::Completed,
            "canceled" => Self::Canceled,
            "failed" => Self::Failed,
            "rejected" => Self::Rejected,
            _ => Self::Other(state),
        }
    }
}

/// Something said, by us (role `user`, in 1.0 `ROLE_USER`) or by the agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Message {
    /// The id its author gave it.
    #[serde(deserialize_with = "or_default")]
    pub message_id: String,
    /// `user` or `agent`, in 1.0 `ROLE_USER` or `ROLE_AGENT`.
    #[serde(deserialize_with = "or_default")]
    pub role: String,
    /// What was said.
    #[serde(deserialize_with = "or_default")]
    pub parts: Vec<Part>,
    metadata: Metadata,
}

impl Message {
    /// The text of a message of the agent. None for our own message, which a new task repeats in
    /// its status, and for one without any text.
    pub fn agent_text(&self) -> Option<String> {
        if self.is_ours() {
            return None;
        }
        let texts: Vec<&str> = texts(&self.parts).filter(|text| !text.trim().is_empty()).collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    }

    /// An answer at once: the end of a task that never was.
    pub fn ended(&self) -> Ended {
        let answer = self.agent_text().unwrap_or_default();
        Ended { state: EndState::Completed, answer, usage: self.metadata.usage }
    }

    fn is_ours(&self) -> bool {
        !matches!(self.role.as_str(), "" | "agent" | "ROLE_AGENT" | "ROLE_UNSPECIFIED")
    }
}

/// Something an agent made.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Artifact {
    #[serde(deserialize_with = "or_default")]
    artifact_id: String,
    /// Its content.
    #[serde(deserialize_with = "or_default")]
    pub parts: Vec<Part>,
    metadata: Metadata,
}

/// A piece of a message or artifact. Of anything but text only a question's hint is kept: tool
/// calls and files can be large, and nobody here reads them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Part {
    /// `text`, `data` or `file`; not in 1.0.
    #[serde(deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    text: String,
    data: Hint,
}

/// The answer to a JSON-RPC request.
#[derive(Debug, Deserialize)]
pub struct Response<T> {
    /// What was asked for.
    pub result: Option<T>,
    /// Why it is not there.
    pub error: Option<RpcError>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RpcError {
    /// The code, see the constants of this type.
    #[serde(deserialize_with = "or_default")]
    pub code: i64,
    /// What happened, in the server's words.
    #[serde(deserialize_with = "or_default")]
    pub message: String,
}

impl RpcError {
    /// The server does not know the task (A2A 0.3, section 8.2).
    pub const TASK_NOT_FOUND: i64 = -32001;
    /// The server does not do that (the same).
    pub const UNSUPPORTED_OPERATION: i64 = -32004;
    /// The server does not speak this dialect (A2A 1.0, section 5.4).
    pub const VERSION_NOT_SUPPORTED: i64 = -32009;
    /// What it was asked for, the server does for others only: a2a-go lists no tasks for whom it has no name.
    pub const UNAUTHENTICATED: i64 = -31401;
    /// The server knows no such method (JSON-RPC 2.0).
    pub const METHOD_NOT_FOUND: i64 = -32601;

    /// Whether the request was refused for its form, before anything could run: JSON-RPC 2.0's
    /// parse error, invalid request, method not found, invalid params; A2A's dialect not supported. -32603 is
    /// not among them: kagent reports with it that it lost an agent which may be running.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code, -32700 | -32600 | Self::METHOD_NOT_FOUND | -32602 | Self::VERSION_NOT_SUPPORTED)
    }
}

/// The texts of parts that are text.
fn texts(parts: &[Part]) -> impl Iterator<Item = &str> {
    let spoken = parts.iter().filter(|p| p.kind == "text" || p.kind.is_empty());
    spoken.map(|p| p.text.as_str()).filter(|text| !text.is_empty())
}

/// All fields of a task and of a message, to tell one from the other; in 1.0 they stand in a wrapper.
#[derive(Deserialize)]
struct SentFields {
    task: Option<Task>,
    message: Option<Message>,
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    id: String,
    status: Option<TaskStatus>,
    #[serde(default, deserialize_with = "or_default")]
    artifacts: Vec<Artifact>,
    #[serde(default, deserialize_with = "or_default")]
    history: Vec<Message>,
    #[serde(default, rename = "messageId", deserialize_with = "or_default")]
    message_id: String,
    #[serde(default, deserialize_with = "or_default")]
    role: String,
    parts: Option<Vec<Part>>,
    #[serde(default)]
    metadata: Metadata,
}

impl TryFrom<SentFields> for Sent {
    type Error = &'static str;

    fn try_from(fields: SentFields) -> Result<Self, Self::Error> {
        let SentFields { id, status, artifacts, history, message_id, role, parts, metadata, .. } = fields;
        match (fields.task, fields.message, fields.kind.as_str()) {
            (Some(task), _, "") => return Ok(Self::Task(task)),
            (None, Some(message), "") => return Ok(Self::Message(message)),
            (_, _, "task") => {}
            (_, _, "") if status.is_some() => {}
            (_, _, kind) if kind == "message" || kind.is_empty() && parts.is_some() => {
                let parts = parts.unwrap_or_default();
                return Ok(Self::Message(Message { message_id, role, parts, metadata }));
            }
            _ => return Err("the result is neither a task nor a message"),
        }
        Ok(Self::Task(Task { id, status: status.unwrap_or_default(), artifacts, history, metadata }))
    }
}

/// A page of the tasks of a conversation.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TaskList {
    tasks: Option<Vec<Task>>,
    total_size: Option<i64>,
    page_size: Option<i64>,
    /// Names the next page; empty on the last one.
    #[serde(deserialize_with = "or_default")]
    pub next_page_token: String,
}

impl TaskList {
    /// The tasks; none where it does not say that there are none. Go writes null for an empty list, and protobuf
    /// may leave it out.
    pub fn tasks(&self) -> Option<&[Task]> {
        let says = self.total_size.is_some() || self.page_size.is_some();
        self.tasks.as_deref().or(says.then_some(&[]))
    }
}

/// One piece of news in a stream.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "StreamFields")]
pub enum StreamEvent {
    /// The task as it is now.
    Task(Task),
    /// An answer without a task.
    Message(Message),
    /// The task's state has changed.
    Status(TaskStatus),
    /// The agent made something.
    Artifact {
        /// What.
        artifact: Artifact,
        /// Whether it continues what it made before.
        append: bool,
    },
}

/// The wrappers of every kind of news.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StreamFields {
    task: Option<Task>,
    message: Option<Message>,
    status_update: Option<StatusUpdate>,
    artifact_update: Option<ArtifactUpdate>,
}

#[derive(Deserialize)]
struct StatusUpdate {
    #[serde(default)]
    status: TaskStatus,
}

#[derive(Deserialize)]
struct ArtifactUpdate {
    #[serde(default)]
    artifact: Artifact,
    #[serde(default, deserialize_with = "or_default")]
    append: bool,
}

impl TryFrom<StreamFields> for StreamEvent {
    type Error = &'static str;

    fn try_from(fields: StreamFields) -> Result<Self, Self::Error> {
        let StreamFields { task, message, status_update, artifact_update } = fields;
        let task = task.map(Self::Task).or(message.map(Self::Message));
        let update = status_update.map(|StatusUpdate { status }| Self::Status(status));
        let made =
            artifact_update.map(|ArtifactUpdate { artifact, append }| Self::Artifact { artifact, append });
        task.or(update).or(made).ok_or("the result is no news of a task")
    }
}

/// An agent's description of itself, as far as it tells how to speak to it (A2A 0.3, section 5; 1.0, section 8).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Card {
    #[serde(deserialize_with = "or_default")]
    url: String,
    #[serde(deserialize_with = "or_default")]
    protocol_version: String,
    #[serde(deserialize_with = "or_default")]
    preferred_transport: String,
    #[serde(deserialize_with = "or_default")]
    additional_interfaces: Vec<Interface>,
    #[serde(deserialize_with = "or_default")]
    supported_interfaces: Vec<Interface>,
    #[serde(deserialize_with = "or_default")]
    capabilities: Capabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Interface {
    #[serde(deserialize_with = "or_default")]
    url: String,
    #[serde(deserialize_with = "or_default")]
    transport: String,
    #[serde(deserialize_with = "or_default")]
    protocol_binding: String,
    #[serde(deserialize_with = "or_default")]
    protocol_version: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    streaming: bool,
}

impl Card {
    /// Where the agent takes JSON-RPC, and in which dialects, the best first; with what it prefers in front. A
    /// dialect that is not told has to be found out.
    pub fn endpoints(&self) -> Vec<(&str, Option<Protocol>)> {
        let is_rpc = |name: &str| name.is_empty() || name.eq_ignore_ascii_case("JSONRPC");
        let new = self.supported_interfaces.iter().filter(|one| is_rpc(&one.protocol_binding));
        let new = new.filter_map(|one| match Protocol::of(&one.protocol_version) {
            None if !one.protocol_version.is_empty() => None,
            protocol => Some((one.url.as_str(), protocol)),
        });
        let old = is_rpc(&self.preferred_transport).then_some(self.url.as_str());
        let more = self.additional_interfaces.iter().filter(|one| is_rpc(&one.transport));
        let old = old.into_iter().chain(more.map(|one| one.url.as_str()));
        let version = Protocol::of(&self.protocol_version);
        let mut all: Vec<_> = new.chain(old.map(|url| (url, version))).collect();
        all.retain(|(url, _)| !url.is_empty());
        all
    }

    /// Whether it looks like a card at all: any JSON object parses as one.
    pub fn is_one(&self) -> bool {
        !(self.url.is_empty() && self.supported_interfaces.is_empty() && self.protocol_version.is_empty())
    }

    /// Whether it can be heard of a task while it runs.
    pub fn streams(&self) -> bool {
        self.capabilities.streaming
    }
}

/// What is in metadata that khook reads: the use of tokens, and whether a message is only a part of one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Metadata {
    usage: Option<Usage>,
    partial: bool,
}

fn sum<'a>(all: impl Iterator<Item = &'a Metadata>) -> Option<Usage> {
    all.filter_map(|metadata| metadata.usage).reduce(|mut sum, usage| {
        sum += usage;
        sum
    })
}

impl Pick for Metadata {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        // `kagent_usage_metadata`, `adk_usage_metadata`, and what others call it.
        let key = plain(key);
        if key.ends_with("usagemetadata") || matches!(key.as_str(), "usage" | "tokenusage") {
            let Picked(Counts { usage, found }) = map.next_value()?;
            if found {
                self.usage = Some(usage);
            }
        } else if key.ends_with("adkpartial") {
            let Picked(Truth(partial)) = map.next_value()?;
            self.partial = partial;
        } else {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// Counts of tokens by the names that Google, OpenAI and Anthropic give them.
#[derive(Default)]
struct Counts {
    usage: Usage,
    found: bool,
}

impl Pick for Counts {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let Picked(Number(count)) = map.next_value()?;
        let Usage { prompt, answer, total } = &mut self.usage;
        let (prompt_or_answer, count) = match plain(key).as_str() {
            "prompttokencount" | "prompttokens" | "inputtokencount" | "inputtokens" => (prompt, count),
            "candidatestokencount" | "completiontokens" | "outputtokencount" | "outputtokens" => {
                (answer, count)
            }
            "totaltokencount" | "totaltokens" => (total, count),
            _ => return Ok(()),
        };
        // Nobody has used less than nothing, and no run so much that a counter overflows.
        *prompt_or_answer = count.clamp(0, MAX_TOKENS);
        self.found = true;
        self.usage.total = self.usage.total.max(self.usage.prompt.saturating_add(self.usage.answer));
        Ok(())
    }
}

/// Tokens that one count may say.
const MAX_TOKENS: i64 = 1_000_000_000;

/// A name as all who write it differently agree on it.
fn plain(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The question in a data part of kagent: `args.toolConfirmation.hint`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Hint(String);

impl Pick for Hint {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if matches!(key, "args" | "toolConfirmation" | "hint") {
            let Picked(hint) = map.next_value()?;
            *self = hint;
        } else {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        text.clone_into(&mut self.0);
    }
}

#[derive(Default)]
struct Number(i64);

impl Pick for Number {
    fn number(&mut self, number: i64) {
        self.0 = number;
    }
}

#[derive(Default)]
struct Truth(bool);

impl Pick for Truth {
    fn truth(&mut self, truth: bool) {
        self.0 = truth;
    }
}

/// A value that picks what it needs out of JSON of any shape and reads past the rest, so that an agent's data
/// can neither break the parsing nor fill the memory.
trait Pick: Default {
    fn entry<'de, A: MapAccess<'de>>(&mut self, _key: &str, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>().map(drop)
    }
    fn text(&mut self, _text: &str) {}
    fn number(&mut self, _number: i64) {}
    fn truth(&mut self, _truth: bool) {}
}

struct Picked<T>(T);

impl<'de, T: Pick> Deserialize<'de> for Picked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything<T>(PhantomData<T>);
        fn with<T: Pick, E>(pick: impl FnOnce(&mut T)) -> Result<T, E> {
            let mut value = T::default();
            pick(&mut value);
            Ok(value)
        }
        impl<'de, T: Pick> Visitor<'de> for Anything<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
                let mut value = T::default();
                while let Some(key) = map.next_key::<String>()? {
                    value.entry(&key, &mut map)?;
                }
                Ok(value)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(T::default())
            }
            fn visit_str<E>(self, text: &str) -> Result<T, E> {
                with(|value: &mut T| value.text(text))
            }
            fn visit_unit<E>(self) -> Result<T, E> {
                Ok(T::default())
            }
            fn visit_bool<E>(self, truth: bool) -> Result<T, E> {
                with(|value: &mut T| value.truth(truth))
            }
            fn visit_i64<E>(self, number: i64) -> Result<T, E> {
                with(|value: &mut T| value.number(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<T, E> {
                with(|value: &mut T| value.number(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E>(self, number: f64) -> Result<T, E> {
                // protobuf's JSON has every number of a Struct as a float.
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "it saturates, and counts have no fraction"
                )]
                with(|value: &mut T| value.number(number as i64))
            }
        }
        deserializer.deserialize_any(Anything(PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Hint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Picked::deserialize(deserializer).map(|Picked(hint)| hint)
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Picked::deserialize(deserializer).map(|Picked(metadata)| metadata)
    }
}

/// `null` is as good as missing: Go writes it for an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn sent_with(metadata: &Value) -> Value {
        let message = Outgoing { context_id: "c", message_id: "m", text: "t", metadata };
        send_request(Protocol::V03, message)
    }

    fn sent(body: &str) -> Sent {
        let response: Response<Sent> = serde_json::from_str(body).unwrap();
        assert_eq!(response.error, None);
        response.result.unwrap()
    }

    fn task(body: &str) -> Task {
        match sent(body) {
            Sent::Task(task) => task,
            Sent::Message(message) => panic!("a message: {message:?}"),
        }
    }

    fn task_of(value: Value) -> Task {
        serde_json::from_value(value).unwrap()
    }

    fn ended(state: EndState, answer: &str) -> Option<Ended> {
        Some(Ended { state, answer: answer.into(), usage: None })
    }

    #[test]
    fn a_new_task_repeats_our_message_and_has_no_answer() {
        let task = task(include_str!("tests/kagent-0.9.9/send-submitted.json"));
        assert_eq!(task.id, "a6df89db-9a62-4edf-8826-2b0d605e335b");
        assert_eq!(task.status.state, TaskState::Submitted);
        assert!(task.has_message("m1-a") && !task.has_message("m1"));
        assert_eq!(task.status.message.as_ref().unwrap().agent_text(), None);
        assert_eq!(task.ended(), None);
    }

    #[rstest]
    #[case::completed(
        include_str!("tests/kagent-0.9.9/send-completed.json"),
        ended(EndState::Completed, "Investigated: [[delay=3]] Blocking one")
    )]
    #[case::completed_later(
        include_str!("tests/kagent-0.9.9/get-completed.json"),
        ended(EndState::Completed, "Investigated: [[delay=4]] Pod restarted")
    )]
    #[case::failed(
        include_str!("tests/kagent-0.9.9/send-failed.json"),
        ended(EndState::Failed, "Error code: 500 - fake failure")
    )]
    #[case::failed_without_parts(
        include_str!("tests/kagent-0.9.9/send-no-parts.json"),
        ended(EndState::Failed, "No parts in the new_message.")
    )]
    #[case::asks_a_person(
        include_str!("tests/kagent-0.9.9/send-input-required.json"),
        ended(EndState::InputRequired, "Let me ask.\nWhich namespace?")
    )]
    #[case::an_empty_model_answer_never_ends(include_str!("tests/kagent-0.9.9/send-empty.json"), None)]
    fn ends_as_kagent_tells_them(#[case] body: &str, #[case] want: Option<Ended>) {
        let got = task(body).ended().map(|ended| Ended { usage: None, ..ended });
        assert_eq!(got, want);
    }

    const FIRST: &str = "Investigated: Pod web-1 crashes.";

    /// A body as the SDKs gave it: case, and what it says of the end.
    #[rstest]
    #[case::completed("completed", EndState::Completed, FIRST)]
    #[case::status("status", EndState::Completed, FIRST)]
    #[case::chunks("chunks", EndState::Completed, FIRST)]
    #[case::failed("failed", EndState::Failed, "The cluster could not be reached.")]
    #[case::asks("input-required", EndState::InputRequired, "Which namespace do you mean?")]
    #[case::wants_credentials("auth-required", EndState::AuthRequired, "Sign in to the cluster first.")]
    #[case::rejects("rejected", EndState::Rejected, "This is no question about a cluster.")]
    #[case::canceled("canceled", EndState::Canceled, "Stopped by its owner.")]
    fn ends_as_the_sdks_tell_them(
        #[values("a2a-python-0.3", "a2a-python-1", "a2a-go")] sdk: &str,
        #[values("send", "get")] how: &str,
        #[case] case: &str,
        #[case] state: EndState,
        #[case] answer: &str,
    ) {
        let body = recorded(sdk, &format!("{how}-{case}.json"));
        assert_eq!(task(&body).ended(), ended(state, answer));
    }

    #[rstest]
    fn other_answers_of_the_sdks(#[values("a2a-python-0.3", "a2a-python-1", "a2a-go")] sdk: &str) {
        let read = |name: &str| recorded(sdk, &format!("{name}.json"));
        let submitted = task(&read("send-submitted"));
        assert!(!submitted.id.is_empty() && submitted.has_message("submitted"));
        assert_eq!(submitted.ended(), None);
        assert_eq!(task(&read("get-working")).ended(), None);
        let Sent::Message(message) = sent(&read("send-message")) else { panic!("a task") };
        assert_eq!(message.ended(), ended(EndState::Completed, FIRST).unwrap());
        let usage = Some(Usage { prompt: 1200, answer: 34, total: 1234 });
        for place in ["send-usage", "send-usage-artifact", "send-usage-message"] {
            let used = match sent(&read(place)) {
                Sent::Task(task) => task.ended().unwrap().usage,
                Sent::Message(message) => message.ended().usage,
            };
            assert_eq!(used, usage, "{sdk} {place}");
        }
        for (name, code, refusal) in [
            ("rpc-task-not-found", RpcError::TASK_NOT_FOUND, false),
            ("rpc-other-dialect", RpcError::METHOD_NOT_FOUND, true),
            ("rpc-method", RpcError::METHOD_NOT_FOUND, true),
            ("rpc-parse", -32700, true),
            ("rpc-invalid-params", -32602, true),
            ("send-raised-early", -32603, false),
        ] {
            let error = serde_json::from_str::<Response<Sent>>(&read(name)).unwrap().error.unwrap();
            assert_eq!((error.code, error.is_refusal()), (code, refusal), "{sdk} {name}");
        }
    }

    #[test]
    fn lists_of_tasks_tell_what_was_said_in_them() {
        let list = |body: &str| serde_json::from_str::<Response<TaskList>>(body).unwrap().result.unwrap();
        for sdk in ["a2a-python-1", "a2a-go"] {
            let first = list(&recorded(sdk, "list-tasks.json"));
            assert!(!first.next_page_token.is_empty());
            assert!(first.tasks().unwrap().iter().all(|task| task.has_message("again")));
            let last = list(&recorded(sdk, "list-tasks-last.json"));
            assert_eq!((last.next_page_token.as_str(), last.tasks().unwrap().len()), ("", 1));
            assert_eq!(list(&recorded(sdk, "list-no-tasks.json")).tasks(), Some(&[][..]), "{sdk}");
            let silent = list(&recorded(sdk, "list-tasks-no-history.json"));
            assert!(!silent.tasks().unwrap().iter().any(Task::tells_messages));
        }
        assert_eq!(list(r#"{"result":{}}"#).tasks(), None, "nobody says that there are none");
        assert_eq!(list(r#"{"result":{"totalSize":0}}"#).tasks(), Some(&[][..]));
    }

    /// What a follower makes of a recorded stream.
    fn heard(stream: &str) -> Task {
        let mut task = Task::default();
        for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if let Some(event) = serde_json::from_str::<Response<StreamEvent>>(data).unwrap().result {
                task.apply(event);
            }
        }
        task
    }

    #[rstest]
    #[case("stream-completed.txt", EndState::Completed, FIRST)]
    #[case("stream-chunks.txt", EndState::Completed, FIRST)]
    #[case("stream-status.txt", EndState::Completed, FIRST)]
    #[case("stream-message.txt", EndState::Completed, FIRST)]
    #[case("subscribe-running.txt", EndState::Completed, FIRST)]
    #[case("stream-failed.txt", EndState::Failed, "The cluster could not be reached.")]
    #[case("stream-input-required.txt", EndState::InputRequired, "Which namespace do you mean?")]
    fn streams_of_the_sdks_tell_the_end(
        #[values("a2a-python-1", "a2a-go")] sdk: &str,
        #[case] name: &str,
        #[case] state: EndState,
        #[case] answer: &str,
    ) {
        assert_eq!(heard(&recorded(sdk, name)).ended(), ended(state, answer));
    }

    #[test]
    fn a_stream_that_tells_nothing_has_no_end() {
        for name in ["subscribe-unknown.txt", "subscribe-finished.txt"] {
            assert_eq!(heard(&recorded("a2a-go", name)).ended(), None, "{name}");
        }
    }

    #[rstest]
    #[case::python_0_3("a2a-python-0.3", &[("/", Some(Protocol::V03))])]
    #[case::python_1("a2a-python-1", &[("/a2a/v1", Some(Protocol::V10))])]
    #[case::go("a2a-go", &[("/invoke", Some(Protocol::V10))])]
    fn cards_tell_where_and_in_which_dialect(#[case] sdk: &str, #[case] want: &[(&str, Option<Protocol>)]) {
        let card: Card = serde_json::from_str(&recorded(sdk, "agent-card.json")).unwrap();
        let path = |url: &str| url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap();
        let endpoints: Vec<_> =
            card.endpoints().iter().map(|(url, protocol)| (path(url), *protocol)).collect();
        let want: Vec<_> = want.iter().map(|(path, protocol)| ((*path).to_owned(), *protocol)).collect();
        assert_eq!(endpoints, want);
        assert!(card.is_one() && card.streams());
    }

    #[test]
    fn of_a_card_with_several_interfaces_those_for_json_rpc_count_and_the_newest_dialect_first() {
        let card: Card = serde_json::from_value(json!({
            "url": "http://a/old", "protocolVersion": "0.3.0", "preferredTransport": "JSONRPC",
            "additionalInterfaces": [{"url": "http://a/grpc", "transport": "GRPC"}, {"url": "http://a/more", "transport": "JSONRPC"}],
            "supportedInterfaces": [
                {"url": "http://a/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
                {"url": "http://a/two", "protocolBinding": "JSONRPC", "protocolVersion": "2.0"},
                {"url": "http://a/new", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            ],
        }))
        .unwrap();
        let (new, old) = (Some(Protocol::V10), Some(Protocol::V03));
        let endpoints = card.endpoints();
        assert_eq!(endpoints, [("http://a/new", new), ("http://a/old", old), ("http://a/more", old)]);
        assert!(!serde_json::from_str::<Card>("{}").unwrap().is_one());
    }

    fn recorded(sdk: &str, name: &str) -> String {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/agent/tests").join(sdk);
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    #[rstest]
    #[case(json!({"kagent_usage_metadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 20}}), Some((10, 5, 20)))]
    #[case(json!({"usage": {"input_tokens": 10, "output_tokens": 5}}), Some((10, 5, 15)))]
    #[case(json!({"token_usage": {"prompt_tokens": 10.0, "completion_tokens": 5.0, "total_tokens": 15.0}}), Some((10, 5, 15)))]
    #[case(json!({"usage": {"input_tokens": -3, "output_tokens": "many", "x": null}}), Some((0, 0, 0)))]
    #[case(json!({"usage": {"input_tokens": 1e300}}), Some((1_000_000_000, 0, 1_000_000_000)))]
    #[case(json!({"usage": {"seconds": 4}}), None)]
    #[case(json!({"usage": [1]}), None)]
    #[case(json!([]), None)]
    #[case(json!(null), None)]
    fn tokens_are_read_by_whatever_name(#[case] metadata: Value, #[case] want: Option<(i64, i64, i64)>) {
        let task = task_of(json!({"status": {"state": "completed"}, "metadata": metadata}));
        let want = want.map(|(prompt, answer, total)| Usage { prompt, answer, total });
        assert_eq!(task.ended().unwrap().usage, want);
    }

    #[test]
    fn every_answer_of_a_model_is_counted_once() {
        let said = |role: &str, total: i64, partial: Value| json!({"role": role, "metadata": {"kagent_usage_metadata": {"promptTokenCount": total}, "kagent_adk_partial": partial}});
        let task = task_of(json!({
            "status": {"state": "completed"},
            "history": [said("user", 1, json!(null)), said("agent", 10, json!(null)), said("agent", 100, json!(true)), said("agent", 1000, json!(false))],
            // Repeats the last.
            "metadata": {"kagent_usage_metadata": {"promptTokenCount": 1000}},
        }));
        assert_eq!(task.ended().unwrap().usage.unwrap().prompt, 1010);
    }

    #[test]
    fn what_is_sent_in_1_0() {
        let metadata = json!({"hook": "default/h"});
        let message = Outgoing { context_id: "c", message_id: "m", text: "why?", metadata: &metadata };
        assert_eq!(
            send_request(Protocol::V10, message),
            json!({"jsonrpc": "2.0", "id": "m", "method": "SendMessage", "params": {
                "configuration": {"returnImmediately": true},
                "message": {
                    "messageId": "m", "role": "ROLE_USER", "contextId": "c", "parts": [{"text": "why?"}],
                    "metadata": {"hook": "default/h"},
                },
            }})
        );
        assert_eq!(get_request(Protocol::V10, "t")["method"], "GetTask");
        assert_eq!(subscribe_request("t")["method"], "SubscribeToTask");
        assert_eq!(list_request("c", "next")["params"]["pageToken"], "next");
    }

    #[test]
    fn an_answer_of_many_lines_is_kept_in_full() {
        let answer = task(include_str!("tests/kagent-0.9.9/send-multi.json")).ended().unwrap().answer;
        assert!(answer.starts_with("Investigated:\n\n# Findings\n- item 0 é✓\n"), "{answer}");
        assert!(answer.ends_with("- item 19 é✓"), "{answer}");
    }

    #[rstest]
    #[case("submitted", None)]
    #[case("working", None)]
    #[case("input-required", Some(EndState::InputRequired))]
    #[case("auth-required", Some(EndState::AuthRequired))]
    #[case("completed", Some(EndState::Completed))]
    #[case("canceled", Some(EndState::Canceled))]
    #[case("failed", Some(EndState::Failed))]
    #[case("rejected", Some(EndState::Rejected))]
    #[case("unknown", None)]
    #[case("", None)]
    #[case("TASK_STATE_COMPLETED", Some(EndState::Completed))]
    #[case("TASK_STATE_INPUT_REQUIRED", Some(EndState::InputRequired))]
    #[case("TASK_STATE_AUTH_REQUIRED", Some(EndState::AuthRequired))]
    #[case("TASK_STATE_WORKING", None)]
    #[case("TASK_STATE_UNSPECIFIED", None)]
    #[case("tired", None)]
    fn every_state_has_its_end(#[case] state: &str, #[case] end: Option<EndState>) {
        let task = task_of(json!({"id": "t", "status": {"state": state}}));
        assert_eq!(task.ended().map(|e| e.state), end);
    }

    #[test]
    fn artifacts_go_before_status_and_status_before_history() {
        let text = |t: &str| json!([{"kind": "text", "text": t}]);
        let mut value = json!({
            "id": "t",
            "status": {"state": "completed", "message": {"role": "agent", "parts": text("status")}},
            "artifacts": [
                {"parts": [{"kind": "text", "text": "one"}, {"kind": "data", "data": {"text": "no"}}]},
                {"parts": [{"text": "tw"}, {"kind": "file", "text": "no"}, {"kind": "text", "text": "o"}]},
                {"parts": [{"text": " "}, {"text": ""}]},
            ],
            "history": [
                {"role": "agent", "parts": text("first")},
                {"role": "agent", "parts": text("last")},
                {"role": "agent", "parts": []},
                {"role": "user", "parts": text("ours")},
            ],
        });
        assert_eq!(task_of(value.clone()).ended(), ended(EndState::Completed, "one\ntwo"));
        value["artifacts"] = Value::Null;
        assert_eq!(task_of(value.clone()).ended(), ended(EndState::Completed, "status"));
        value["status"]["message"]["role"] = "user".into();
        assert_eq!(task_of(value.clone()).ended(), ended(EndState::Completed, "last"));
        value["history"] = Value::Null;
        assert_eq!(task_of(value).ended(), ended(EndState::Completed, ""));
    }

    #[test]
    fn a_failure_is_explained_by_its_status_not_by_what_was_made_before() {
        let value = json!({
            "id": "t",
            "status": {"state": "failed", "message": {"role": "agent", "parts": [{"kind": "text", "text": "quota"}]}},
            "artifacts": [{"parts": [{"kind": "text", "text": "half an answer"}]}],
        });
        assert_eq!(task_of(value).ended(), ended(EndState::Failed, "quota"));
    }

    #[rstest]
    #[case::bare(json!({"kind": "task", "id": "t"}))]
    #[case::nulls(json!({"kind": null, "id": "t", "status": {"state": null, "message": null}, "history": null}))]
    #[case::more(json!({"id": "t", "status": {"state": "working", "x": 1}, "contextId": 5, "metadata": [], "y": {}}))]
    fn missing_null_and_unknown_fields_are_no_trouble(#[case] result: Value) {
        let task = task(&json!({"jsonrpc": "2.0", "result": result}).to_string());
        assert_eq!((task.id.as_str(), task.ended()), ("t", None));
    }

    #[rstest]
    #[case(json!({"kind": "message", "role": "agent", "parts": [{"kind": "text", "text": "hi"}]}), Some("hi"))]
    #[case(json!({"parts": [{"text": "hi"}, {"text": "you"}]}), Some("hi\nyou"))]
    #[case(json!({"kind": "message", "role": "agent"}), None)]
    #[case(json!({"kind": "message", "role": "user", "parts": [{"kind": "text", "text": "echo"}]}), None)]
    fn a_message_is_an_answer_at_once(#[case] result: Value, #[case] want: Option<&str>) {
        match sent(&json!({"result": result}).to_string()) {
            Sent::Message(message) => assert_eq!(message.agent_text().as_deref(), want),
            Sent::Task(task) => panic!("a task: {task:?}"),
        }
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"kind": "status-update", "status": {"state": "working"}}))]
    #[case(json!({"task": {"id": 5, "status": {"state": "TASK_STATE_SUBMITTED"}}}))]
    #[case(json!("accepted"))]
    #[case(json!({"kind": "task", "id": 7}))]
    fn anything_else_is_an_error(#[case] result: Value) {
        let body = json!({"result": result}).to_string();
        assert!(serde_json::from_str::<Response<Sent>>(&body).is_err());
    }

    #[rstest]
    #[case(json!({"args": {"toolConfirmation": {"confirmed": false, "hint": "Which?"}}}), "Which?")]
    #[case(json!({"args": {"hint": 5}, "x": [1, {"y": null}]}), "")]
    #[case(json!([1, "a", {"hint": "x"}]), "")]
    #[case(json!(null), "")]
    #[case(json!(-1.5), "")]
    fn data_of_any_shape_is_read(#[case] data: Value, #[case] hint: &str) {
        let part: Part = serde_json::from_str(&json!({"kind": "data", "data": data}).to_string()).unwrap();
        assert_eq!(part.data.0, hint);
    }

    #[rstest]
    #[case(include_str!("tests/kagent-0.9.9/rpc-parse.json"), -32700, true)]
    #[case(include_str!("tests/kagent-0.9.9/rpc-method.json"), -32601, true)]
    #[case(include_str!("tests/kagent-0.9.9/rpc-invalid-params.json"), -32602, true)]
    #[case(include_str!("tests/kagent-0.9.9/rpc-invalid-request.json"), -32600, true)]
    #[case(include_str!("tests/kagent-0.9.9/rpc-task-not-found.json"), RpcError::TASK_NOT_FOUND, false)]
    #[case(include_str!("tests/kagent-0.9.9/rpc-eof.json"), -32603, false)]
    fn errors_of_form_are_told_from_errors_of_the_run(
        #[case] body: &str,
        #[case] code: i64,
        #[case] refusal: bool,
    ) {
        let error = serde_json::from_str::<Response<Sent>>(body).unwrap().error.unwrap();
        assert_eq!((error.code, error.is_refusal()), (code, refusal));
        assert!(!error.message.is_empty());
    }

    #[test]
    fn metadata_goes_along_only_as_a_map() {
        let metadata = |m: Value| sent_with(&m)["params"]["message"]["metadata"].clone();
        assert_eq!(metadata(json!({"hook": "default/h"})), json!({"hook": "default/h"}));
        for nothing in [json!(null), json!({}), json!("x"), json!([1])] {
            assert_eq!(metadata(nothing), Value::Null);
        }
    }
}
