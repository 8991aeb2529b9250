//! A2A is the protocol in which agents are spoken to; these are its 0.3 wire types, as far as khook
//! writes and reads them.
//!
//! 0.3 without a version header is the one dialect that kagent 0.6 to 0.10 all understand. What is
//! read is read tolerantly: unknown fields are skipped, missing ones and `null` mean empty, a state
//! nobody knows means that the task still runs. What cannot be understood even so is an error for
//! the caller to classify, never a panic.
//!
//! Field names and states: A2A specification 0.3.0, sections 6 and 7.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::incident::outcome::{EndState, Ended};

/// The request body of `message/send`: one text for the agent, without waiting for its answer.
///
/// `message_id` is used as the JSON-RPC id too, so that one id finds the call in every log.
pub fn send_request(
    context_id: &str,
    message_id: &str,
    text: &str,
    metadata: &serde_json::Value,
) -> serde_json::Value {
    let message = OutMessage {
        // kagent reads a message without kind, but refuses a part without it (-32700).
        kind: "message",
        message_id,
        role: "user",
        context_id,
        parts: [OutPart { kind: "text", text }],
        metadata: metadata.as_object().filter(|m| !m.is_empty()),
    };
    // Blocking is the protocol's default and holds the connection until the run ends; kagent cuts
    // that off after three minutes with an error while the run goes on. Not blocking answers at
    // once with a task to follow.
    request(
        message_id,
        "message/send",
        SendParams { configuration: Configuration { blocking: false }, message },
    )
}

/// The request body of `tasks/get`.
pub fn get_request(task_id: &str) -> serde_json::Value {
    request(task_id, "tasks/get", GetParams { id: task_id })
}

/// The answer to `message/send`: a task to follow, or the agent's words at once.
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
            let texts: Vec<&str> = self.artifacts.iter().flat_map(|a| texts(&a.parts)).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        };
        let answer = match state {
            EndState::Completed => made().or_else(said).or_else(last),
            EndState::InputRequired => self.question(said().or_else(last)),
            _ => said().or_else(last).or_else(made),
        };
        Some(Ended { state, answer: answer.unwrap_or_default() })
    }

    /// Whether the message with this id was given to this task.
    pub fn has_message(&self, message_id: &str) -> bool {
        self.messages().any(|m| m.message_id == message_id)
    }

    /// Whether the task shows any of the messages it was given, and so could show ours.
    pub fn tells_messages(&self) -> bool {
        self.messages().any(|m| !m.message_id.is_empty())
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

/// The states of A2A 0.3, section 6.3.
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
        match state.as_str() {
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

/// Something said, by us (role `user`) or by the agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Message {
    /// The id its author gave it.
    #[serde(deserialize_with = "or_default")]
    pub message_id: String,
    /// `user` or `agent`.
    #[serde(deserialize_with = "or_default")]
    pub role: String,
    /// What was said.
    #[serde(deserialize_with = "or_default")]
    pub parts: Vec<Part>,
}

impl Message {
    /// The text of a message of the agent. None for our own message, which a new task repeats in
    /// its status, and for one without any text.
    pub fn agent_text(&self) -> Option<String> {
        if !(self.role.is_empty() || self.role == "agent") {
            return None;
        }
        let texts: Vec<&str> = texts(&self.parts).collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    }
}

/// Something an agent made.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Artifact {
    /// Its content.
    #[serde(deserialize_with = "or_default")]
    pub parts: Vec<Part>,
}

/// A piece of a message or artifact. Of anything but text only a question's hint is kept: tool
/// calls and files can be large, and nobody here reads them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Part {
    /// `text`, `data` or `file`.
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

    /// Whether the request was refused for its form, before anything could run: JSON-RPC 2.0's
    /// parse error, invalid request, method not found, invalid params. -32603 is not among them:
    /// kagent reports with it that it lost an agent which may be running.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code, -32700 | -32600 | -32601 | -32602)
    }
}

/// Texts that say something, of parts that are text.
fn texts(parts: &[Part]) -> impl Iterator<Item = &str> {
    let spoken = parts.iter().filter(|p| p.kind == "text" || p.kind.is_empty());
    spoken.map(|p| p.text.as_str()).filter(|text| !text.trim().is_empty())
}

/// All fields of a task and of a message, to tell one from the other.
#[derive(Deserialize)]
struct SentFields {
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
}

impl TryFrom<SentFields> for Sent {
    type Error = &'static str;

    fn try_from(f: SentFields) -> Result<Self, Self::Error> {
        match (f.kind.as_str(), f.status, f.parts) {
            ("task", status, _) => Ok(Self::task(f.id, status, f.artifacts, f.history)),
            ("message", _, parts) => Ok(Self::Message(Message {
                message_id: f.message_id,
                role: f.role,
                parts: parts.unwrap_or_default(),
            })),
            ("", status @ Some(_), _) => Ok(Self::task(f.id, status, f.artifacts, f.history)),
            ("", None, Some(parts)) => {
                Ok(Self::Message(Message { message_id: f.message_id, role: f.role, parts }))
            }
            _ => Err("the result is neither a task nor a message"),
        }
    }
}

impl Sent {
    fn task(id: String, status: Option<TaskStatus>, artifacts: Vec<Artifact>, history: Vec<Message>) -> Self {
        Self::Task(Task { id, status: status.unwrap_or_default(), artifacts, history })
    }
}

/// The question in a data part of kagent: `args.toolConfirmation.hint`. Any other shape of data is
/// read through and forgotten, so that an agent's data can neither break the parsing nor fill the
/// memory.
#[derive(Clone, Debug, Default, PartialEq)]
struct Hint(String);

impl<'de> Deserialize<'de> for Hint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Hint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Hint, A::Error> {
                let mut found = Hint::default();
                while let Some(key) = map.next_key::<String>()? {
                    if matches!(key.as_str(), "args" | "toolConfirmation" | "hint") {
                        found = map.next_value()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(found)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Hint, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Hint::default())
            }
            fn visit_str<E>(self, text: &str) -> Result<Hint, E> {
                Ok(Hint(text.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Hint, E> {
                Ok(Hint::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Hint, E> {
                Ok(Hint::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Hint, E> {
                Ok(Hint::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Hint, E> {
                Ok(Hint::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Hint, E> {
                Ok(Hint::default())
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// `null` is as good as missing: Go writes it for an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

fn request<P: Serialize>(id: &str, method: &str, params: P) -> serde_json::Value {
    // Of strings and booleans only, so there is nothing to_value could refuse; `null` would be
    // answered with -32600, which is a refusal like any other.
    serde_json::to_value(OutRequest { jsonrpc: "2.0", id, method, params }).unwrap_or_default()
}

#[derive(Serialize)]
struct OutRequest<'a, P> {
    jsonrpc: &'a str,
    id: &'a str,
    method: &'a str,
    params: P,
}

#[derive(Serialize)]
struct SendParams<'a> {
    configuration: Configuration,
    message: OutMessage<'a>,
}

#[derive(Serialize)]
struct Configuration {
    blocking: bool,
}

#[derive(Serialize)]
struct GetParams<'a> {
    id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutMessage<'a> {
    kind: &'a str,
    message_id: &'a str,
    role: &'a str,
    context_id: &'a str,
    parts: [OutPart<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize)]
struct OutPart<'a> {
    kind: &'a str,
    text: &'a str,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

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
        Some(Ended { state, answer: answer.into() })
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
        assert_eq!(task(body).ended(), want);
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
    #[case("TASK_STATE_COMPLETED", None)]
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
                {"parts": [{"text": "two"}, {"kind": "file", "text": "no"}, {"kind": "text", "text": " "}]},
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
    #[case(json!({"task": {"id": "t", "status": {"state": "TASK_STATE_SUBMITTED"}}}))]
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
        let metadata = |m: Value| send_request("c", "m", "t", &m)["params"]["message"]["metadata"].clone();
        assert_eq!(metadata(json!({"hook": "default/h"})), json!({"hook": "default/h"}));
        for nothing in [json!(null), json!({}), json!("x"), json!([1])] {
            assert_eq!(metadata(nothing), Value::Null);
        }
    }
}
