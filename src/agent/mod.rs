//! An agent is somebody khook asks: it has a name, takes one message, and starts a task for it.
//!
//! khook speaks to kagent's agents through kagent: a REST session first, then one A2A message into it, then
//! reads of the task it started. Any other A2A agent is spoken to directly, at the URL that its Hook names.
//! Everything here is about one call at a time; which calls are made and when is decided by `incident`, and
//! how many at once by the pool.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::{
    hook::{ActiveEvent, Hook},
    incident::{
        key,
        outcome::{AgentName, DirectAgent, Ended, Lookup, Protocol, Reply},
        prompt,
        rules::{Problem, Rule},
    },
};

pub mod session;

pub mod direct;

mod endpoint;

pub mod a2a;

mod exchange;

pub mod pool;

use self::{direct::Direct, endpoint::Dialect};
pub use session::{Credential, Kagent, KagentConfig, KagentError};

/// One message for one agent.
#[derive(Clone, Debug)]
pub struct AgentCall {
    /// Whom to ask.
    pub agent: AgentName,
    /// How, where it is not one of kagent's.
    pub direct: Option<Arc<DirectAgent>>,
    /// The session's id, ours to choose; the same in every repeat and retry. The context's id in A2A.
    pub session_id: String,
    /// The session's name, as kagent's UI shows it.
    pub session_name: String,
    /// The message's id, ours to choose; the same in every retry, another in every repeat.
    pub message_id: String,
    /// What to ask.
    pub text: String,
    /// Goes along with the message for programs that read it; a map, or null for none.
    pub metadata: Value,
    /// The header `traceparent` of the session and the message: the trace that what the agent's side reports
    /// belongs to.
    pub traceparent: Option<String>,
}

impl AgentCall {
    /// The call about an entry of a Hook: about the incident, or, where that is resolved, to say so.
    pub fn about(hook: &Hook, rule: &Rule, entry: &ActiveEvent) -> Self {
        let session_id = entry.session_id.clone().unwrap_or_default();
        let resolved = entry.resolved_at.is_some() && entry.reason.is_some();
        let id = if resolved { key::farewell_id } else { key::message_id };
        let message = prompt::message_of(hook, rule, entry);
        Self {
            agent: rule.agent.clone(),
            direct: rule.direct.clone(),
            message_id: id(&session_id, entry.window),
            session_id,
            session_name: format!("{} on {}/{}", entry.event_type, entry.namespace, entry.resource_name),
            text: message.text,
            metadata: message.metadata,
            traceparent: None,
        }
    }

    fn headers(&self) -> HeaderMap {
        let value = self.traceparent.as_ref().and_then(|text| HeaderValue::from_str(text).ok());
        value.into_iter().map(|value| (HeaderName::from_static("traceparent"), value)).collect()
    }

    /// Its message, as A2A has it.
    pub fn outgoing(&self) -> a2a::Outgoing<'_> {
        a2a::Outgoing {
            context_id: &self.session_id,
            message_id: &self.message_id,
            text: &self.text,
            metadata: &self.metadata,
        }
    }
}

/// What a question about a call is about.
#[derive(Clone, Copy, Debug)]
pub struct Inquiry<'a> {
    /// Who was asked.
    pub agent: &'a AgentName,
    /// How, where it is not one of kagent's.
    pub direct: Option<&'a DirectAgent>,
    /// The session.
    pub session_id: &'a str,
    /// The dialect in which it was asked, as far as that is known.
    pub protocol: Option<Protocol>,
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Follow {
    /// Not over yet.
    Running,
    /// Over, or waiting for a person; [`EndState::Lost`](crate::incident::outcome::EndState::Lost) where nobody
    /// knows the task.
    Ended(Ended),
    /// Nobody could say.
    Unavailable {
        /// What failed, in words for `status`.
        error: String,
    },
}

/// Agents of which something is remembered.
const MAX_KNOWN: usize = 1024;

/// What becomes of a call that is not wanted any more: nothing was sent, and it is nobody's fault.
pub fn unwanted() -> Reply {
    let error = "this call is not wanted any more, or its time is over".into();
    Reply::NotRun { error, retry_after: None, throttled: true }
}

/// All agents there are.
pub struct Agents {
    kagent: Kagent,
    direct: Direct,
    /// The dialect of kagent, where the settings say it.
    kagent_protocol: Option<Protocol>,
    spoken: Mutex<HashMap<AgentName, Protocol>>,
}

impl Agents {
    /// The agents of a kagent, which speaks `kagent_protocol` or what is found out, and those beside it.
    pub fn new(kagent: Kagent, kagent_protocol: Option<Protocol>, direct: Direct) -> Self {
        Self { kagent, direct, kagent_protocol, spoken: Mutex::default() }
    }

    /// Sends the message, once; does not wait for the run. What each reply means is at [`Reply`].
    ///
    /// Whether the call is `wanted` is asked once more before the message leaves.
    pub async fn call(&self, call: &AgentCall, wanted: impl Fn() -> bool) -> Reply {
        let reply = match &call.direct {
            None => self.kagent.call(call, self.dialect(&call.agent, None), wanted).await,
            Some(direct) => self.direct.call(call, direct, self.dialect(&call.agent, None), wanted).await,
        };
        if let Reply::Accepted { protocol: Some(protocol), .. } = &reply {
            remember(&self.spoken, call.agent.clone(), *protocol, MAX_KNOWN);
        }
        reply
    }

    /// Whether the message has arrived, and how its task stands.
    pub async fn lookup(&self, about: &Inquiry<'_>, message_id: &str) -> Lookup {
        match (about.agent, about.direct) {
            (AgentName::Kagent { .. }, _) => self.kagent.lookup(about, message_id).await,
            (AgentName::Direct { .. }, Some(direct)) => {
                let dialect = self.dialect(about.agent, about.protocol);
                self.direct.lookup(direct, dialect, about.session_id, message_id).await
            }
            // Nobody can ask any more.
            (AgentName::Direct { .. }, None) => Lookup::Unsupported { error: not_described(about.agent) },
        }
    }

    /// Where the task stands. It may run for ever: the deadline is the caller's.
    pub async fn follow(&self, about: &Inquiry<'_>, task_id: &str) -> Follow {
        let dialect = self.dialect(about.agent, about.protocol);
        match (about.agent, about.direct) {
            (AgentName::Kagent { .. }, _) => self.kagent.follow(about.agent, dialect, task_id).await,
            (AgentName::Direct { .. }, Some(direct)) => self.direct.follow(direct, dialect, task_id).await,
            (AgentName::Direct { .. }, None) => Follow::Unavailable { error: not_described(about.agent) },
        }
    }

    /// Listens to the task for at most this long; returns its end if the agent tells it.
    pub async fn listen(&self, about: &Inquiry<'_>, task_id: &str, at_most: Duration) -> Option<Ended> {
        let dialect = self.dialect(about.agent, about.protocol);
        self.direct.listen(about.direct?, dialect, task_id, at_most).await
    }

    /// What keeps a direct agent from being asked, as far as can be told without asking it: its Secrets. None where
    /// it cannot be told.
    pub async fn examine(&self, direct: &DirectAgent) -> Option<Vec<Problem>> {
        self.direct.examine(direct).await
    }

    fn dialect(&self, agent: &AgentName, told: Option<Protocol>) -> Dialect {
        let only = self.kagent_protocol.filter(|_| matches!(agent, AgentName::Kagent { .. }));
        let known = || self.spoken.lock().get(agent).copied();
        match only.map(Dialect::Only).or_else(|| known().map(Dialect::Known)) {
            Some(dialect) => dialect,
            // 0.3 without a version header is what kagent 0.6 to 0.10 all understand.
            None => Dialect::Guess(told.unwrap_or(Protocol::V03)),
        }
    }
}

/// Keeps a value, and for it gives up another where there are too many: Hooks come and go, and what is forgotten is
/// found out again.
fn remember<K: Clone + Eq + Hash, V>(map: &Mutex<HashMap<K, V>>, key: K, value: V, most: usize) {
    let mut map = map.lock();
    if map.len() >= most
        && !map.contains_key(&key)
        && let Some(other) = map.keys().next().cloned()
    {
        map.remove(&other);
    }
    map.insert(key, value);
}

fn not_described(agent: &AgentName) -> String {
    format!("the Hook does not say any more how {agent} is asked")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
