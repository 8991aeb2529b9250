//! An outcome is what became of one agent call, as the state machine needs to know it.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known after a call was made. The four outcomes of the design.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The agent has the message. `ended` is set where it answered at once.
    Accepted {
        /// The task to follow; none where the agent answered with a Message.
        task_id: Option<String>,
        /// The end of the task, where it is known already.
        ended: Option<Ended>,
    },
    /// The message surely did not reach an agent: sending it again is safe.
    NotRun {
        /// What failed, in words for `status`.
        error: String,
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
        /// The agent is well but busy (429): no mark against its breaker.
        throttled: bool,
    },
    /// Sending again cannot help until somebody changes something.
    Permanent {
        /// What failed, in words for `status`.
        error: String,
    },
    /// The message may have reached the agent: never sent again without a lookup.
    Unknown {
        /// What failed, in words for `status`.
        error: String,
    },
}

/// What a lookup of a session for our message found.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The message is there.
    Found {
        /// The task it started.
        task_id: String,
        /// Its end, where it has ended.
        ended: Option<Ended>,
    },
    /// The session was readable, or surely does not exist, and our message is not in it.
    Absent,
    /// The lookup itself failed: this is not absence.
    Unavailable {
        /// What failed, in words for `status`.
        error: String,
    },
    /// The server has no such lookup.
    Unsupported {
        /// What it answered.
        error: String,
    },
}

/// How a task ended, with what the agent said.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The terminal (or interrupted) state.
    pub state: EndState,
    /// The agent's words in full: the answer, or the error of a failed task. May be empty.
    pub answer: String,
}

/// States in which a task needs no more following. `status.activeEvents[].outcome` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EndState {
    /// The agent answered.
    Completed,
    /// The run failed; the answer is its error.
    Failed,
    /// The agent asks a person something: reported, not answered.
    InputRequired,
    /// The agent needs credentials.
    AuthRequired,
    /// Somebody cancelled the run.
    Canceled,
    /// The agent refused the task.
    Rejected,
    /// Not over within the deadline: nobody knows.
    DeadlineExceeded,
    /// The task is not known to the server any more.
    Lost,
    /// The message was sent, whether it ran is not known, and no lookup exists.
    OutcomeUnknown,
}

impl fmt::Display for EndState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// An agent's full name, `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName {
    /// Namespace of the agent.
    pub namespace: String,
    /// Name of the agent.
    pub name: String,
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl AgentName {
    /// Whether `text` is this name, written as `namespace/name`.
    pub fn is(&self, text: &str) -> bool {
        text.strip_prefix(self.namespace.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(&self.name)
    }
}

impl FromStr for AgentName {
    type Err = ();

    /// Parses `namespace/name`; both parts must be there.
    fn from_str(s: &str) -> Result<Self, ()> {
        match s.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(()),
        }
    }
}
