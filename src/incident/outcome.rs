//! An outcome is what became of one agent call, as the state machine needs to know it.

use std::{fmt, ops::AddAssign, str::FromStr, time::Duration};

use reqwest::Url;
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
        /// The dialect in which it was understood.
        protocol: Option<Protocol>,
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
    /// What the run has used, where the agent tells.
    pub usage: Option<Usage>,
}

impl Ended {
    /// An end without a word from the agent.
    pub fn silent(state: EndState) -> Self {
        Self { state, answer: String::new(), usage: None }
    }
}

/// Tokens of the models an agent asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Tokens the models read.
    pub prompt: i64,
    /// Tokens the models wrote.
    pub answer: i64,
    /// All tokens; more than the sum of the two where some were used for thinking.
    pub total: i64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.answer = self.answer.saturating_add(other.answer);
        self.total = self.total.saturating_add(other.total);
    }
}

/// A dialect of A2A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// `message/send`, `tasks/get`.
    #[serde(rename = "0.3")]
    V03,
    /// `SendMessage`, `GetTask`.
    #[serde(rename = "1.0")]
    V10,
}

impl Protocol {
    /// The version as agents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V03 => "0.3",
            Self::V10 => "1.0",
        }
    }

    /// The dialect of a version such as `0.3.0` or `1.0`; none for one khook does not speak.
    pub fn of(version: &str) -> Option<Self> {
        let mut numbers = version.trim().split('.');
        match (numbers.next()?, numbers.next().unwrap_or("0")) {
            ("0", "3") => Some(Self::V03),
            // Within 1.x servers take what their minor version does not know.
            ("1", _) => Some(Self::V10),
            _ => None,
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V03 => Self::V10,
            Self::V10 => Self::V03,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AgentName {
    /// An Agent of kagent, written `namespace/name`.
    Kagent {
        /// Namespace of the agent.
        namespace: String,
        /// Name of the agent.
        name: String,
    },
    /// An A2A agent that is asked directly, written as its URL.
    Direct {
        /// Namespace of the Hook that asks: two namespaces may have different credentials for one URL, so what
        /// is known of one of them says nothing of the other.
        namespace: String,
        /// The URL, as [`DirectAgent`] has it.
        url: String,
    },
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kagent { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Direct { url, .. } => f.write_str(url),
        }
    }
}

impl AgentName {
    /// The agent of kagent with this name.
    pub fn kagent(namespace: &str, name: &str) -> Self {
        Self::Kagent { namespace: namespace.into(), name: name.into() }
    }

    /// The agent that is written as `text` in a Hook of `namespace`.
    pub fn read(text: &str, namespace: &str) -> Option<Self> {
        match text.contains("://") {
            true => Some(Self::Direct { namespace: namespace.into(), url: text.into() }),
            false => text.parse().ok(),
        }
    }

    /// Whether `text` is this agent as it is written.
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Kagent { namespace, name } => {
                text.strip_prefix(namespace.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(name)
            }
            Self::Direct { url, .. } => text == url,
        }
    }

    /// The slots it shares with others: those of its host, and those of all that are asked directly. Whoever may
    /// write a Hook chooses a path, and so names as many agents as they like.
    pub fn shares(&self) -> Vec<String> {
        match self {
            Self::Kagent { .. } => Vec::new(),
            Self::Direct { url, .. } => {
                let host = Url::parse(url).map(|url| url.origin().ascii_serialization());
                vec![DIRECT.to_owned(), host.unwrap_or_else(|_| url.clone())]
            }
        }
    }

    /// The value of a metric's label: for a direct agent with the namespace that asks it.
    pub fn label(&self) -> String {
        match self {
            Self::Kagent { .. } => self.to_string(),
            Self::Direct { namespace, url } => format!("{namespace}/{url}"),
        }
    }
}

impl FromStr for AgentName {
    type Err = ();

    /// Parses `namespace/name`; both parts must be there.
    fn from_str(s: &str) -> Result<Self, ()> {
        match s.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::kagent(namespace, name))
            }
            _ => Err(()),
        }
    }
}

/// The name of the slots that all direct agents share.
pub const DIRECT: &str = "direct";

/// An A2A agent beside kagent, as a Hook describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirectAgent {
    /// Namespace of the Hook: where its Secrets are.
    pub namespace: String,
    /// Where it is: `http` or `https`, without user, query and fragment.
    pub url: Url,
    /// The credential it wants.
    pub auth: Option<Credential>,
    /// The certificate authority it is trusted by, instead of the system's.
    pub ca: Option<SecretKey>,
    /// The dialect, where it need not be found out.
    pub protocol: Option<Protocol>,
}

impl DirectAgent {
    /// Who it is.
    pub fn name(&self) -> AgentName {
        AgentName::Direct { namespace: self.namespace.clone(), url: self.url.to_string() }
    }

    /// Every key of a Secret it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKey> {
        self.auth.iter().map(|auth| &auth.secret).chain(&self.ca)
    }
}

/// What a direct agent is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Where the value is.
    pub secret: SecretKey,
    /// The header that carries the value as it is; none for `Authorization: Bearer …`.
    pub header: Option<String>,
}

/// A value in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretKey {
    /// Name of the Secret, in the Hook's namespace.
    pub name: String,
    /// The key in it.
    pub key: String,
}
