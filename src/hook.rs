//! A Hook names kinds of trouble in its namespace and, for each, the agent to ask and the prompt.
//!
//! Its `status.activeEvents` is the memory of the operator: the authoritative state machine of every
//! incident. The schema here is the contract with users; `crds/hook.yaml` is printed from it.

#![allow(clippy::duplicated_attributes, reason = "every printer column has a type")]

use std::{fmt, time::Duration};

use chrono::{DateTime, NaiveDate, Utc};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use crate::incident::outcome::{EndState, Protocol, Usage};

// The agent of a configuration as CEL sees it: `name`, `namespace/name` or a URL, however it was written.
macro_rules! agent_of {
    ($c:literal) => {
        concat!(
            "(has(",
            $c,
            ".agentId) ? ",
            $c,
            ".agentId : has(",
            $c,
            ".agent) ? ",
            $c,
            ".agent.url : !has(",
            $c,
            ".agentRef) ? '' : has(",
            $c,
            ".agentRef.__namespace__) && ",
            $c,
            ".agentRef.__namespace__ != '' ? ",
            $c,
            ".agentRef.__namespace__ + '/' + ",
            $c,
            ".agentRef.name : ",
            $c,
            ".agentRef.name)"
        )
    };
}

/// What a user writes. Defaults live in the operator and in these texts, never in the schema, so that
/// GitOps tools see no difference between what is in Git and what is in the cluster.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kagent.dev",
    version = "v1alpha2",
    kind = "Hook",
    plural = "hooks",
    singular = "hook",
    shortname = "hk",
    category = "kagent",
    namespaced,
    status = "HookStatus",
    derive = "PartialEq",
    doc = "Hook asks an AI agent about trouble with the pods of its namespace.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the Hook itself is sound"
    ),
    printcolumn(
        name = "Active",
        type_ = "integer",
        json_path = ".status.active",
        description = "Incidents not resolved"
    ),
    printcolumn(
        name = "Firing",
        type_ = "integer",
        json_path = ".status.firing",
        description = "Incidents whose agent is being called"
    ),
    printcolumn(
        name = "Notified",
        type_ = "integer",
        json_path = ".status.notified",
        description = "Incidents the agent knows of"
    ),
    printcolumn(
        name = "Last-Event",
        type_ = "string",
        json_path = ".status.lastEvent",
        description = "Type of the newest trouble"
    ),
    printcolumn(
        name = "Last-Resource",
        type_ = "string",
        json_path = ".status.lastResource",
        description = "Pod of the newest trouble"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Agents",
        type_ = "string",
        json_path = ".status.agents",
        priority = "1",
        description = "Agents this Hook asks"
    ),
    printcolumn(
        name = "Event-Types",
        type_ = "string",
        json_path = ".status.eventTypes",
        priority = "1",
        description = "Kinds of trouble this Hook listens to"
    ),
    printcolumn(
        name = "Last-Notified",
        type_ = "date",
        json_path = ".status.lastNotified",
        priority = "1",
        description = "When an agent was last asked"
    ),
    printcolumn(
        name = "Resolved",
        type_ = "integer",
        json_path = ".status.resolved",
        priority = "1",
        description = "Incidents resolved and still remembered"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = "1",
        description = "What is going on, in a sentence"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HookSpec {
    /// The kinds of trouble to react to, 1 to 50. The same eventType may stand twice with two agents:
    /// both are asked.
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = Rule::new(UNIQUE_RULE).message("the same eventType and agent stand twice: an agent is asked once for each kind of trouble, remove one of the two"))]
    // One that does not parse (an event type of a newer version, after a rollback) is passed over: a list of
    // Hooks with one odd entry must not make the operator deaf to all of them.
    #[serde(deserialize_with = "lenient_list")]
    pub event_configurations: Vec<EventConfiguration>,

    /// While true, trouble is still recorded and resolved in the status, but no agent is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Active or Observe. With Observe trouble is recorded, and messages are rendered as they would be sent,
    /// but no agent is called. Default Active.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// What comes of the trouble that a Hook listens to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Agents are called.
    Active,
    /// Nobody is called. Also what an unknown word means: it costs nothing.
    #[serde(other)]
    Observe,
}

// CEL, over at most 50 × 50 pairs; every string in it has a maxLength, so it stays within the cost budget.
// `a` and `ns/a` are the same agent only if ns is the Hook's own namespace, which a rule below the root
// cannot see: the controller tells of those.
const UNIQUE_RULE: &str = concat!(
    "self.all(a, self.exists_one(b, a.eventType == b.eventType && ",
    agent_of!("a"),
    " == ",
    agent_of!("b"),
    "))"
);

const ONE_AGENT_RULE: &str =
    "[has(self.agentRef), has(self.agentId), has(self.agent)].filter(is, is).size() == 1";

/// One kind of trouble, the agent to ask about it and the words to ask with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(ONE_AGENT_RULE).message("name the agent once: set exactly one of agentRef, agentId and agent"))]
pub struct EventConfiguration {
    /// The kind of trouble: pod-restart, pod-pending, oom-kill or probe-failed.
    pub event_type: EventType,

    /// The kagent Agent to ask. Exactly one of agentRef, agentId and agent must be set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_ref: Option<AgentRef>,

    /// The kagent Agent to ask, as "namespace/name", or "name" for one in the Hook's own namespace.
    /// Exactly one of agentRef, agentId and agent must be set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[-A-Za-z0-9_][-A-Za-z0-9_.]*$')")
        .message("write an agent as \"namespace/name\" or \"name\": letters, digits, '-', '_' and '.', at most one '/'"))]
    pub agent_id: Option<String>,

    /// The A2A agent to ask directly, without kagent. The operator's settings must allow its host
    /// (directAgentHosts). Exactly one of agentRef, agentId and agent must be set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentEndpoint>,

    /// What to ask, in Go template syntax: {{.ResourceName}}, {{.Namespace}}, {{.EventType}},
    /// {{.EventName}}, {{.EventTime}}, {{.EventMessage}}, {{.Reason}}, {{.Message}}, {{.Timestamp}},
    /// {{.Container}}, {{.Count}}, {{.HookName}}, {{.FirstSeen}}. The event's context is sent along with it.
    #[schemars(length(min = 1, max = 10000))]
    #[x_kube(validation = Rule::new("self.matches('[^ \\\\t\\\\r\\\\n]')").message("the prompt is blank: say what the agent should do"))]
    pub prompt: String,

    /// How long the trouble must last before the agent is called, 0s to 24h. Default: by the kind of
    /// trouble, from 0s (restart, OOM kill) to 2m (unschedulable, never yet ready).
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(HOLD_RULE).message("for is a span of time such as 0s, 90s, 5m or 1h30m, at most 24h"))]
    pub hold: Option<String>,

    /// At most one call per incident within this time, 10s to 24h. Default 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(INTERVAL_RULE).message("repeatInterval is a span of time such as 90s, 5m or 1h30m, from 10s to 24h"))]
    pub repeat_interval: Option<String>,

    /// An incident without news for this long is resolved, 10s to 24h. Default 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(INTERVAL_RULE).message("resolveTimeout is a span of time such as 90s, 5m or 1h30m, from 10s to 24h"))]
    pub resolve_timeout: Option<String>,

    /// Whether the agent is told, once and in the same session, when an incident it was asked about is
    /// resolved. That is a call like any other, and is paid for like one. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_resolved: Option<bool>,
}

// Spans of time as Kubernetes writes them. One rule for form and bounds, as a pattern cannot be given words.
// What has few digits cannot overflow in CEL, which would answer in words of its own.
macro_rules! is_span {
    () => {
        r"self.matches('^([0-9]{1,5}([.][0-9]{1,5})?(ms|s|m|h))+$') && duration(self) <= duration('24h')"
    };
}
const HOLD_RULE: &str = is_span!();
const INTERVAL_RULE: &str = concat!(is_span!(), " && duration(self) >= duration('10s')");

/// A span of time as Kubernetes (and Go) writes it: `200ms`, `1.5s`, `10m`, `1h30m`.
///
/// # Errors
/// What a span must look like, where `text` does not.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "a span of time such as 200ms, 1.5s, 10m or 1h30m";
    // kube's parser panics on overflow and on a sign inside. Nine digits a number cannot overflow,
    // in hours, in as many terms as fit here.
    let sound = (1..=32).contains(&text.len())
        && text.chars().all(|c| c.is_alphanumeric() || c == '.')
        && text.split(|c: char| !c.is_ascii_digit()).all(|digits| digits.len() <= 9);
    if !sound {
        return Err(FORM.into());
    }
    text.parse::<kube::core::Duration>().map(Duration::from).map_err(|_| FORM.into())
}

/// Names a kagent Agent.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentRef {
    /// Name of the Agent.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-A-Za-z0-9_][-A-Za-z0-9_.]*$')")
        .message("the name of an agent has letters, digits, '-', '_' and '.'; its namespace goes into agentRef.namespace"))]
    pub name: String,
    /// Namespace of the Agent. Default: the Hook's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("a namespace has small letters, digits and '-', and begins and ends with a letter or a digit"))]
    pub namespace: Option<String>,
}

/// An A2A agent that is asked directly.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentEndpoint {
    /// Where it is: the address under which its card (/.well-known/agent-card.json) is served, or that of
    /// its JSON-RPC endpoint. http or https, without user, query and fragment.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ ]+(/[^?# ]*)?$')")
        .message("url looks like https://agent.example.com/path: http or https, without user, query and fragment"))]
    pub url: String,

    /// The credential to send, from a Secret. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<AgentAuth>,

    /// The certificate authority to trust for https, in PEM, from a Secret; the system's are not trusted then.
    /// Default: the system's certificate authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<AgentCa>,

    /// The version of A2A it speaks, "0.3" or "1.0". Default: found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

// Headers that say where a request goes, what it is, or who passed it on: not for the author of a Hook to set.
macro_rules! own_headers {
    () => {
        "(?i)^(host|content-.*|transfer-encoding|te|trailer|connection|keep-alive|upgrade|expect|range|accept.*|user-agent|proxy-.*|forwarded|via|x-forwarded-.*|x-real-ip|x-original-.*|x-http-method.*|a2a-.*|traceparent|tracestate|baggage)$"
    };
}

/// Whether a credential may be sent as this header.
pub fn is_for_credentials(header: &str) -> bool {
    let name = header.to_ascii_lowercase();
    let known = own_headers!().trim_start_matches("(?i)^(").trim_end_matches(")$");
    let own = known.split('|').any(|own| match own.strip_suffix(".*") {
        Some(start) => name.starts_with(start),
        None => name == own,
    });
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) && !own
}

/// A credential for an agent.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentAuth {
    /// The Secret with the value; default of its key: token.
    pub secret_ref: SecretRef,
    /// The header that carries the value, as it is. Default: Authorization, with "Bearer " before the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new(concat!("self.matches('^[-A-Za-z0-9_]+$') && !self.matches('", own_headers!(), "')"))
        .message("header must be one for credentials, such as X-API-Key: letters, digits, '-' and '_', and none that HTTP, A2A or proxies use"))]
    pub header: Option<String>,
}

/// A certificate authority for an agent.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentCa {
    /// The Secret with the certificates; default of its key: ca.crt.
    pub secret_ref: SecretRef,
}

/// Names a value in a Secret of the Hook's own namespace.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("the name of a Secret has small letters, digits, '-' and '.'"))]
    pub name: String,
    /// Key in the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-A-Za-z0-9_.]+$')")
        .message("a key in a Secret has letters, digits, '-', '_' and '.'"))]
    pub key: Option<String>,
}

/// A kind of trouble.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum EventType {
    /// A container ended and was started again, or is in crash loop.
    PodRestart,
    /// A pod cannot be scheduled or started.
    PodPending,
    /// A container was killed for using more memory than its limit.
    OomKill,
    /// A liveness, startup or readiness probe fails.
    ProbeFailed,
}

impl EventType {
    /// Every kind of trouble, in the order of the documentation.
    pub const ALL: [EventType; 4] = [Self::PodRestart, Self::PodPending, Self::OomKill, Self::ProbeFailed];

    /// The name as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodRestart => "pod-restart",
            Self::PodPending => "pod-pending",
            Self::OomKill => "oom-kill",
            Self::ProbeFailed => "probe-failed",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What khook knows about the trouble this Hook listens to. Written by khook alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HookStatus {
    /// Every incident, oldest first: one per kind of trouble, agent and pod.
    // Written also when empty: a field that is not applied stays as whoever wrote it before left it.
    #[serde(default, deserialize_with = "lenient_list")]
    pub active_events: Vec<ActiveEvent>,

    /// Incidents not resolved.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub active: Option<i32>,
    /// Incidents that wait for their call.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub pending: Option<i32>,
    /// Incidents whose agent is being called.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub firing: Option<i32>,
    /// Incidents the agent knows of.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub notified: Option<i32>,
    /// Incidents resolved and still remembered.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub resolved: Option<i32>,
    /// Incidents held back because the list is full; they are admitted oldest first.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub overflow: Option<i32>,

    /// Agents this Hook asks, joined for the printer column.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub agents: Option<String>,
    /// Kinds of trouble this Hook listens to, joined for the printer column.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub event_types: Option<String>,
    /// Kind of the newest trouble.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub last_event: Option<String>,
    /// Pod of the newest trouble.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub last_resource: Option<String>,
    /// When an agent was last asked.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub last_notified: Option<DateTime<Utc>>,
    /// What is going on, in a sentence.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What this Hook has cost: a day each, by UTC, the newest last, at most 7.
    #[serde(default, deserialize_with = "lenient_list", skip_serializing_if = "Vec::is_empty")]
    pub calls_per_day: Vec<DayOfCalls>,

    /// Ready, Stalled, AgentReachable, IncidentsActive; after the kstatus conventions.
    #[serde(default, deserialize_with = "lenient_list", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status was made from.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When this status was last written.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<DateTime<Utc>>,
}

/// The calls of one day.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DayOfCalls {
    /// The day, by UTC: 2026-01-31.
    pub day: NaiveDate,
    /// Calls begun; with Observe, those that would have been.
    pub calls: i64,
}

/// One incident: one stretch of one kind of trouble on one pod, asked of one agent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ActiveEvent {
    /// Short and stable: the same for every episode of this trouble.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The kind of trouble.
    pub event_type: EventType,
    /// Name of the pod.
    pub resource_name: String,
    /// Namespace of the pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Containers the trouble was seen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// UID of the pod the trouble was last seen on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The agent asked: namespace/name, or the URL of one that is asked directly.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,

    /// Where the incident stands: pending, firing, notified or resolved.
    pub status: Phase,
    /// Why it stands there: one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why it stands there: a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,

    /// When this episode began.
    pub first_seen: DateTime<Utc>,
    /// When the trouble was last seen.
    pub last_seen: DateTime<Utc>,
    /// How often it was seen in this episode.
    #[serde(default)]
    pub count: i64,
    /// Which notification of this episode this is, from 1.
    #[serde(default)]
    pub window: i32,
    /// Calls begun in this window.
    #[serde(default)]
    pub attempts: i32,
    /// Who calls the agent now.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,

    /// The kagent session of this episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The agent's task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// When the agent was first asked in this episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notified_at: Option<DateTime<Utc>>,
    /// When the agent was last asked in this episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_notified_at: Option<DateTime<Utc>>,
    /// Since when the call of this window is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<DateTime<Utc>>,
    /// When the next attempt, or the next look at the session, is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When the agent's task ended.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<DateTime<Utc>>,
    /// When the incident was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<DateTime<Utc>>,
    /// What went wrong with the newest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The first 512 bytes of what the agent answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// How the agent's task ended.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub outcome: Option<EndState>,
    /// Where a person reads the session; only with the operator's setting kagentUiUrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_url: Option<String>,
    /// The version of A2A the agent was asked in.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Tokens that this episode has cost so far, where the agent tells.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Usage>,

    /// Name of the Event, or of the pod, that told of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event_name: String,
    /// Reason of that Event.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event_reason: String,
    /// Message of that Event, shortened.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event_message: String,

    /// What the pod itself last said: whether the trouble holds.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub condition: Option<Standing>,
    /// The trouble came back after it was resolved, inside its window: if it still holds at the window's
    /// end, the agent is asked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owed: bool,
    /// The message was sent a second time although nobody could tell whether the first had arrived.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resent: bool,
    /// Occurrences already folded in, newest per source: a relist replays them without effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<String>,
    /// How the incident was when the agent was last asked: the next message says what has changed since.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
    /// Whether the agent has heard that the incident is resolved, where the Hook wants it to.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub farewell: Option<Farewell>,

    /// What a person last had khook do about this episode.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub instruction: Option<Instruction>,
    /// The agent would have been asked, but the Hook observes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed: bool,
    /// Nothing has happened: a person tries the Hook out, in the test of this name.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
}

/// What a person has khook do about an incident, by an annotation of its Hook.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Instruction {
    /// What to do.
    pub verb: Verb,
    /// Who says so, as far as that is known. Not proven: who may annotate the Hook may write any name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// When it was said.
    pub at: DateTime<Utc>,
    /// snooze: until when nobody is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// What a person can have khook do about an incident.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Ask the agent now, or once more.
    Retry,
    /// Somebody works on it: ask nobody any more about this episode.
    Ack,
    /// Ask nobody until a time.
    Snooze,
    /// It is over.
    Resolve,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 4] = [Self::Retry, Self::Ack, Self::Snooze, Self::Resolve];

    /// The word as it stands in annotations and in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Ack => "ack",
            Self::Snooze => "snooze",
            Self::Resolve => "resolve",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is remembered of a notification.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// How often the trouble had been seen.
    pub count: i64,
    /// How many of the containers were known: later ones stand behind them.
    pub containers: i64,
    /// UID of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Reason of the Event.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// It has been resolved after that, and came back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resolved: bool,
}

/// The message that an incident is resolved: at most one for each notification.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Farewell {
    /// How far it is.
    pub state: FarewellState,
    /// Calls begun.
    #[serde(default)]
    pub attempts: i32,
}

/// How far a farewell is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarewellState {
    /// To be said.
    Due,
    /// The call is claimed.
    Calling,
    /// The agent has it.
    Told,
    /// It was surely not said, and is not tried again.
    Failed,
    /// Whether it was said is not known, and it is not tried again.
    #[serde(other)]
    Unknown,
}

/// Where an incident stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for its call; `reason` says why.
    Pending,
    /// The call is claimed: it is being made, or its outcome is being found out.
    Firing,
    /// The agent has it.
    Notified,
    /// Over; kept for a while.
    Resolved,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Phase; 4] = [Self::Pending, Self::Firing, Self::Notified, Self::Resolved];

    /// The name as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Notified => "notified",
            Self::Resolved => "resolved",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an incident stands where it stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// pending: the trouble must last before the agent is called.
    Holding,
    /// pending: every call slot is taken.
    WaitingForSlot,
    /// pending: the last attempt failed, the next one is timed.
    BackingOff,
    /// pending: the agent has failed in a row; one probe at a time tells when it is back.
    CircuitOpen,
    /// pending: what the agent needs to be asked is missing; the condition Stalled says what.
    AgentNotReady,
    /// pending: a whole round of attempts failed.
    AgentCallFailed,
    /// pending: the Hook is suspended.
    Suspended,
    /// pending: somebody works on it, nobody else is asked.
    Acknowledged,
    /// pending: nobody is asked before the time that somebody has set.
    Snoozed,
    /// firing: the call is being made.
    Calling,
    /// firing: nobody knows whether the message arrived; the session is being looked up.
    CheckingSession,
    /// notified: the agent has the message.
    AgentCalled,
    /// notified: the agent would have been asked; the Hook only observes.
    Observed,
    /// notified: the trouble came back after it was resolved.
    Reopened,
    /// resolved: the trouble was over before the agent was called.
    RecoveredBeforeCall,
    /// resolved: the agent could not be reached in time.
    NotDelivered,
    /// resolved: the trouble has been clear for long enough.
    Recovered,
    /// resolved: no news for long enough.
    Quiet,
    /// resolved: the pod is gone.
    PodGone,
    /// resolved: the Hook does not ask this agent about this trouble any more.
    ConfigurationRemoved,
    /// resolved: somebody said so.
    ResolvedByHand,
    /// A word of a newer or older version.
    #[serde(other)]
    Other,
}

impl Reason {
    /// The word as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holding => "Holding",
            Self::WaitingForSlot => "WaitingForSlot",
            Self::BackingOff => "BackingOff",
            Self::CircuitOpen => "CircuitOpen",
            Self::AgentNotReady => "AgentNotReady",
            Self::AgentCallFailed => "AgentCallFailed",
            Self::Suspended => "Suspended",
            Self::Acknowledged => "Acknowledged",
            Self::Snoozed => "Snoozed",
            Self::Calling => "Calling",
            Self::CheckingSession => "CheckingSession",
            Self::AgentCalled => "AgentCalled",
            Self::Observed => "Observed",
            Self::Reopened => "Reopened",
            Self::RecoveredBeforeCall => "RecoveredBeforeCall",
            Self::NotDelivered => "NotDelivered",
            Self::Recovered => "Recovered",
            Self::Quiet => "Quiet",
            Self::PodGone => "PodGone",
            Self::ConfigurationRemoved => "ConfigurationRemoved",
            Self::ResolvedByHand => "ResolvedByHand",
            Self::Other => "Other",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who calls the agent: written before the call, so that nobody else does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The process, another for every start.
    pub process: String,
    /// Which of its claims this is.
    pub sequence: i64,
    /// When it was claimed, by that process's clock.
    pub at: DateTime<Utc>,
    /// Seconds within which the call has ended; the claim can be taken over some time after.
    pub seconds: i64,
}

impl Claim {
    /// The longest time between the claim and its outcome.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.clamp(0, 24 * 60 * 60).unsigned_abs())
    }
}

/// What the pod itself says about the trouble.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Whether the trouble holds.
    pub state: StandingState,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Whether a condition holds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandingState {
    /// The trouble is there.
    Holds,
    /// The trouble is not there.
    Clear,
    /// The pod is not there.
    Gone,
}

/// A condition of the Hook, as Kubernetes writes them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Ready, Stalled, AgentReachable or IncidentsActive.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in one word.
    #[serde(default)]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default)]
    pub message: String,
    /// When the status last changed.
    pub last_transition_time: DateTime<Utc>,
    /// The generation of the spec this was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The CustomResourceDefinition: the derived one without what must not be in it.
///
/// The status schema validates nothing but the phase: a status that an earlier version left behind must
/// never make a claim fail. No `default:` stands anywhere, for the sake of GitOps tools.
///
/// It needs Kubernetes 1.30. A write to the status checks the schema of the status alone, on every version,
/// but evaluates the CEL rules of the spec too; from 1.30 on (CRDValidationRatcheting) only where the spec
/// has changed. Before, a Hook that was stored under the Go khook's CRD and breaks one of these rules could
/// have no status, and so no call.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = Hook::crd();
    let names = &mut crd.spec.names;
    names.list_kind = Some("HookList".into());
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        let Some(properties) = root.properties.as_mut() else { continue };
        for (name, property) in properties.iter_mut() {
            tidy(property, name == "status");
        }
    }
    crd
}

type Schema = k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
type Items = k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray;

fn tidy(schema: &mut Schema, in_status: bool) {
    schema.default = None;
    schema.nullable = None;
    if in_status {
        schema.required = None;
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        if in_status && name != "status" {
            // Words of other versions are data, not errors.
            property.enum_ = None;
        }
        tidy(property, in_status);
    }
    if let Some(Items::Schema(items)) = schema.items.as_mut() {
        tidy(items, in_status);
    }
}

/// A field of the status that does not parse counts as absent: one odd field must not make the operator
/// deaf to every Hook in the list.
fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// As [`lenient`], entry by entry.
fn lenient_list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let serde_json::Value::Array(values) = serde_json::Value::deserialize(deserializer)? else {
        return Ok(Vec::new());
    };
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hook_with_odd_parts_is_read_without_them() {
        let hook: Hook = serde_json::from_value(json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "odd"},
            "spec": {"eventConfigurations": [
                {"eventType": "pod-on-fire", "agentId": "a", "prompt": "Look"},
                {"eventType": "oom-kill", "agentId": "a", "prompt": "Look"},
            ]},
            "status": {"lastUpdated": 7, "message": "kept", "activeEvents": [
                {"eventType": "pod-restart", "status": "exploded"}, "what", null,
            ]},
        }))
        .expect("a Hook");
        let types: Vec<EventType> = hook.spec.event_configurations.iter().map(|c| c.event_type).collect();
        assert_eq!(types, [EventType::OomKill]);
        let status = hook.status.expect("a status");
        assert_eq!((status.message.as_deref(), status.last_updated), (Some("kept"), None));
        assert!(status.active_events.is_empty());
    }
}
