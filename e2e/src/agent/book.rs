//! The book is what the stand-in knows and has received: sessions, tasks, the record.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::{Method, Uri};
use chrono::{DateTime, SecondsFormat, Utc};
use khook::incident::outcome::Protocol;
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Behaviour, DIRECT, End, Fault, Message, Request, SessionCall};

/// What the server knows, and the record.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) url: String,
    pub(super) book: Mutex<Book>,
    pub(super) released: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) default: Behaviour,
    pub(super) behaviours: BTreeMap<String, Behaviour>,
    /// By user and id: the same id of another user is another session.
    pub(super) sessions: BTreeMap<(String, String), Session>,
    pub(super) deleted: BTreeSet<(String, String)>,
    pub(super) tasks: Vec<Task>,
    pub(super) down_since: Option<Instant>,
    pub(super) messages: Vec<Message>,
    pub(super) session_calls: Vec<SessionCall>,
    pub(super) requests: Vec<Request>,
    pub(super) in_flight: usize,
    pub(super) peak: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) agent: String,
    pub(super) user: String,
    pub(super) created: DateTime<Utc>,
    pub(super) updated: DateTime<Utc>,
}

/// A run. Nothing drives it: what state it is in follows from the time.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) agent: String,
    pub(super) user: String,
    pub(super) session: String,
    /// In the words of 0.3, as is all that a task shows until it is said in another dialect.
    pub(super) message: Value,
    pub(super) started: DateTime<Utc>,
    pub(super) began: Instant,
    /// When it ends; not known while it is held.
    pub(super) due: Option<Instant>,
    /// The agent answers with messages: nobody finds this task.
    pub(super) hidden: bool,
    pub(super) end: End,
    pub(super) answer: String,
    pub(super) artifact: String,
    pub(super) reply: String,
    pub(super) invocation: String,
    /// Its end fell into a time when nobody could note it.
    pub(super) orphaned: bool,
}

impl Inner {
    pub(super) fn new(url: String) -> Self {
        Self { url, book: Mutex::default(), released: Notify::new() }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, method: &Method, uri: &Uri, rpc: Option<String>) {
        let (method, path) = (method.to_string(), uri.to_string());
        self.book().requests.push(Request { at: Utc::now(), method, path, rpc });
    }

    /// Waits for a run's end.
    pub(super) async fn ended(&self, task: &str) {
        loop {
            let mut released = pin!(self.released.notified());
            // Before the look, so that a release in between is not missed.
            released.as_mut().enable();
            let due = self.book().tasks.iter().find(|known| known.id == task).and_then(|known| known.due);
            match due {
                Some(due) => return tokio::time::sleep_until(due.into()).await,
                None => released.await,
            }
        }
    }

    pub(super) fn lookup_fault(&self, user: &str, session: &str) -> Option<Fault> {
        let mut book = self.book();
        let known = book.sessions.get(&(user.to_owned(), session.to_owned()));
        let agent = known.map(|session| session.agent.clone()).unwrap_or_default();
        book.fault(&agent, |behaviour| &mut behaviour.on_lookup)
    }
}

impl Book {
    pub(super) fn behaviour(&mut self, agent: &str) -> &mut Behaviour {
        self.behaviours.get_mut(agent).unwrap_or(&mut self.default)
    }

    /// The fault that shows this time, if one does.
    pub(super) fn fault(
        &mut self,
        agent: &str,
        on: fn(&mut Behaviour) -> &mut Option<Fault>,
    ) -> Option<Fault> {
        let fault = on(self.behaviour(agent)).as_mut()?;
        if let Some(left) = &mut fault.left {
            *left = left.checked_sub(1)?;
        }
        Some(fault.clone())
    }

    pub(super) fn back(&mut self) {
        if let Some(down) = self.down_since.take() {
            let away = down..=Instant::now();
            let unseen = self.tasks.iter_mut().filter(|task| task.due.is_some_and(|due| away.contains(&due)));
            unseen.for_each(|task| task.orphaned = true);
        }
    }

    pub(super) fn upsert(&mut self, user: &str, id: &str, name: &str, agent: &str) -> Session {
        let now = Utc::now();
        let session = self.sessions.entry((user.to_owned(), id.to_owned())).or_insert_with(|| Session {
            id: id.to_owned(),
            name: String::new(),
            agent: agent.to_owned(),
            user: user.to_owned(),
            created: now,
            updated: now,
        });
        session.updated = now.max(session.created);
        if !name.is_empty() {
            session.name = name.to_owned();
        }
        session.clone()
    }

    /// Starts a run, and makes its session as the agent does when there is none.
    pub(super) fn run(&mut self, message: &Message, raw: &Value) -> Task {
        let behaviour = self.behaviour(&message.agent).clone();
        let id = Uuid::new_v4().to_string();
        let began = Instant::now();
        let mut raw = raw.clone();
        raw["contextId"] = json!(message.session);
        raw["taskId"] = json!(id);
        raw["messageId"] = json!(message.id);
        let end = if raw["parts"].as_array().is_some_and(Vec::is_empty) {
            End::Failed("No parts in the new_message.".to_owned())
        } else {
            behaviour.end
        };
        let task = Task {
            id,
            agent: message.agent.clone(),
            user: message.user.clone(),
            session: message.session.clone(),
            message: raw,
            started: Utc::now(),
            began,
            due: (!behaviour.held).then(|| began + behaviour.delay),
            hidden: behaviour.message,
            end,
            answer: (behaviour.answer)(message),
            artifact: Uuid::new_v4().to_string(),
            reply: Uuid::new_v4().to_string(),
            invocation: format!("e-{}", Uuid::new_v4()),
            orphaned: false,
        };
        self.upsert(&task.user, &task.session, "", &task.agent);
        self.tasks.push(task.clone());
        task
    }

    /// A page of the tasks of a conversation, the newest first.
    pub(super) fn list(&self, user: &str, agent: &str, params: &Value) -> Value {
        let context = params["contextId"].as_str();
        let own: Vec<&Task> = (self.tasks.iter().rev())
            .filter(|task| task.user == user && task.agent == agent && !task.hidden)
            .filter(|task| context.is_none_or(|context| task.session == context))
            .collect();
        let size = params["pageSize"].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(50);
        let from = params["pageToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
        let page = own.iter().skip(from).take(size).map(|task| task.show(View::Listed, Protocol::V10));
        let next = if own.len() > from + size { (from + size).to_string() } else { String::new() };
        json!({"tasks": page.collect::<Vec<_>>(), "totalSize": own.len(), "pageSize": size, "nextPageToken": next})
    }

    pub(super) fn task(&self, user: &str, id: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.id == id && task.user == user && !task.hidden)
    }
}

/// When a task is shown.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum View {
    /// In the answer to a send that does not wait.
    Submitted,
    /// When it is asked for.
    Now,
    /// Among others.
    Listed,
}

impl Task {
    /// The task as its agent shows it.
    pub(super) fn show(&self, view: View, protocol: Protocol) -> Value {
        let plain = self.agent.split('/').next() == Some(DIRECT);
        let mut shown = match (plain, view) {
            (false, View::Submitted) => self.submitted(),
            (false, View::Now | View::Listed) => self.now(false),
            (true, _) => self.plain(view),
        };
        if let (View::Listed, Some(fields)) = (view, shown.as_object_mut()) {
            fields.remove("artifacts");
        }
        said(protocol, shown)
    }

    /// When it ended, if it has and that was noted.
    fn ended(&self) -> Option<Instant> {
        self.due.filter(|due| !self.orphaned && Instant::now() >= *due)
    }

    /// As an agent on the official SDK has it.
    fn plain(&self, view: View) -> Value {
        let mut task = json!({
            "kind": "task", "id": self.id, "contextId": self.session, "history": [self.message],
            "status": {"state": "submitted"},
        });
        if view == View::Submitted {
            return task;
        }
        let ended = self.ended();
        let (state, words) = match &self.end {
            End::Completed if ended.is_some() => {
                let parts = json!([{"kind": "text", "text": self.answer}]);
                task["artifacts"] = json!([{"artifactId": "answer", "name": "answer", "parts": parts}]);
                ("completed", None)
            }
            End::Failed(words) if ended.is_some() => ("failed", Some(words)),
            End::InputRequired(words) if ended.is_some() => ("input-required", Some(words)),
            _ => ("working", None),
        };
        let since = ended.map_or(self.started, |due| self.started + (due - self.began));
        task["status"] = json!({"state": state, "timestamp": micros(since)});
        if let Some(words) = words {
            task["status"]["message"] = json!({
                "kind": "message", "messageId": self.reply, "contextId": self.session, "taskId": self.id,
                "role": "agent", "parts": [{"kind": "text", "text": words}],
            });
        }
        task
    }

    /// The answer to a send that does not wait: our own message is its status.
    fn submitted(&self) -> Value {
        json!({
            "kind": "task",
            "id": self.id,
            "contextId": self.session,
            "history": [self.message],
            "status": {"state": "submitted", "message": self.message, "timestamp": micros(self.started)},
        })
    }

    /// The task as it is now; over REST artifacts have two more fields.
    pub(super) fn now(&self, rest: bool) -> Value {
        // The real one writes the message down twice: as submitted, and as taken up.
        let mut history = vec![self.message.clone(), self.message.clone()];
        let mut metadata = json!({
            "kagent_app_name": python_name(&self.agent),
            "kagent_session_id": self.session,
            "kagent_user_id": self.user,
        });
        let mut task = json!({"kind": "task", "id": self.id, "contextId": self.session});
        let due = self.ended();
        let ended = due.is_some();
        let status = match &self.end {
            End::Completed if ended => {
                self.add_run(&mut metadata);
                self.add_usage(&mut metadata);
                let parts = json!([{"kind": "text", "text": self.answer}]);
                history.push(json!({
                    "kind": "message", "messageId": self.reply, "contextId": self.session, "taskId": self.id,
                    "role": "agent", "parts": parts, "metadata": metadata,
                }));
                let mut artifact = json!({"artifactId": self.artifact, "parts": parts});
                if rest {
                    artifact["name"] = json!("");
                    artifact["description"] = json!("");
                }
                task["artifacts"] = json!([artifact]);
                json!({"state": "completed"})
            }
            End::Failed(error) if ended => {
                let mut message = json!({
                    "kind": "message", "messageId": self.reply, "role": "agent",
                    "parts": [{"kind": "text", "text": error}],
                });
                // A run that never began has no more to say than that.
                if self.message["parts"].as_array().is_some_and(|parts| !parts.is_empty()) {
                    self.add_run(&mut metadata);
                    metadata["kagent_error_code"] = json!("API_ERROR");
                    message["metadata"] = json!({"kagent_error_code": "API_ERROR"});
                    history.push(message.clone());
                }
                json!({"state": "failed", "message": message})
            }
            End::InputRequired(question) if ended => {
                self.add_run(&mut metadata);
                let mine = |metadata: &Value, id: &str, parts: Value| {
                    json!({
                        "kind": "message", "messageId": id, "contextId": self.session, "taskId": self.id,
                        "role": "agent", "parts": parts, "metadata": metadata,
                    })
                };
                let call = json!({
                    "args": {"questions": [{"question": question}]}, "id": "call_1", "name": "ask_user",
                });
                let asking = mine(
                    &metadata,
                    &self.reply,
                    json!([{
                        "kind": "data",
                        "data": {
                            "args": {
                                "originalFunctionCall": call,
                                "toolConfirmation": {"confirmed": false, "hint": question},
                            },
                            "id": format!("adk-{}", self.artifact),
                            "name": "adk_request_confirmation",
                        },
                        "metadata": {"kagent_is_long_running": true, "kagent_type": "function_call"},
                    }]),
                );
                self.add_usage(&mut metadata);
                history.push(mine(
                    &metadata,
                    &self.artifact,
                    json!([
                        {"kind": "text", "text": "Let me ask."},
                        {"kind": "data", "data": call, "metadata": {"kagent_type": "function_call"}},
                    ]),
                ));
                history.push(asking.clone());
                json!({"state": "input-required", "message": asking})
            }
            End::Never if ended => {
                // As seen after an empty model answer: it was paid for.
                metadata["kagent_invocation_id"] = json!(self.invocation);
                self.add_usage(&mut metadata);
                json!({"state": "working"})
            }
            _ => json!({"state": "working"}),
        };
        task["history"] = Value::Array(history);
        task["metadata"] = metadata;
        task["status"] = status;
        let since = due.map_or(self.started, |due| self.started + (due - self.began));
        task["status"]["timestamp"] = json!(micros(since));
        task
    }

    /// The answer where the agent gives a Message and keeps no task.
    pub(super) fn as_message(&self) -> Value {
        json!({
            "kind": "message", "messageId": self.reply, "contextId": self.session, "role": "agent",
            "parts": [{"kind": "text", "text": self.answer}],
        })
    }

    pub(super) fn add_run(&self, metadata: &mut Value) {
        metadata["kagent_adk_partial"] = Value::Null;
        metadata["kagent_author"] =
            json!(self.agent.rsplit('/').next().unwrap_or_default().replace('-', "_"));
        metadata["kagent_invocation_id"] = json!(self.invocation);
    }

    /// What the call cost: some four letters make a token.
    pub(super) fn add_usage(&self, metadata: &mut Value) {
        let prompt = self.message["parts"].to_string().len() / 4;
        let answer = self.answer.len() / 4;
        metadata["kagent_usage_metadata"] = json!({
            "promptTokenCount": prompt, "candidatesTokenCount": answer, "totalTokenCount": prompt + answer,
        });
    }
}

impl Session {
    pub(super) fn show(&self) -> Value {
        let mut shown = json!({
            "id": self.id, "user_id": self.user, "created_at": micros(self.created),
            "updated_at": micros(self.updated), "agent_id": python_name(&self.agent),
        });
        if !self.name.is_empty() {
            shown["name"] = json!(self.name);
        }
        shown
    }
}

/// What is written in the words of 0.3, in this dialect.
pub(super) fn said(protocol: Protocol, value: Value) -> Value {
    match (protocol, value) {
        (Protocol::V03, value) => value,
        (Protocol::V10, Value::Array(values)) => {
            values.into_iter().map(|value| said(protocol, value)).collect()
        }
        (Protocol::V10, Value::Object(fields)) => {
            let fields = fields.into_iter().filter(|(name, _)| name != "kind");
            let field = |(name, value): (String, Value)| {
                let value = match (name.as_str(), value) {
                    // Not A2A's, and so not translated.
                    ("data" | "metadata", value) => value,
                    ("state", Value::String(state)) => {
                        json!(format!("TASK_STATE_{}", state.to_uppercase().replace('-', "_")))
                    }
                    ("role", Value::String(role)) => json!(format!("ROLE_{}", role.to_uppercase())),
                    (_, value) => said(protocol, value),
                };
                (name, value)
            };
            fields.map(field).collect()
        }
        (Protocol::V10, value) => value,
    }
}

/// A message in this dialect, in the words of 0.3.
pub(super) fn understood(protocol: Protocol, message: &Value) -> Value {
    let mut message = message.clone();
    if protocol == Protocol::V10 && message.is_object() {
        message["kind"] = json!("message");
        message["role"] = json!("user");
        for part in message["parts"].as_array_mut().into_iter().flatten() {
            let kind = ["text", "data"].into_iter().find(|kind| part.get(kind).is_some());
            if part.is_object() {
                part["kind"] = json!(kind.unwrap_or("file"));
            }
        }
    }
    message
}

/// Counts a `message/send` as open until it is answered or its client has gone.
pub(super) struct InFlight(Arc<Inner>);

impl InFlight {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        let mut book = inner.book();
        book.in_flight += 1;
        book.peak = book.peak.max(book.in_flight);
        Self(inner.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.book().in_flight -= 1;
    }
}

/// kagent's name of an agent inside Python.
pub(super) fn python_name(agent: &str) -> String {
    agent.replace('/', "__NS__").replace('-', "_")
}

pub(super) fn micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}
