//! A pod as khook sees it: the few fields that tell trouble from health, a hundredth of the whole.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Client, Resource, api::ObjectMeta, runtime::watcher};
use serde::{Deserialize, Deserializer};

/// A pod, the parts that matter here.
#[derive(Resource, Clone, Debug, Default, Deserialize, PartialEq)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod)]
pub struct Pod {
    /// Of it the name, namespace, UID, version, owner and times; the rest is not kept.
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    /// What was asked for.
    #[serde(default)]
    pub spec: Spec,
    /// What is.
    #[serde(default)]
    pub status: Status,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Something else must happen before the pod may be scheduled.
    pub scheduling_gates: Vec<Present>,
    /// The containers.
    pub containers: Vec<Container>,
    /// Containers that run before them, and sidecars.
    pub init_containers: Vec<Container>,
}

/// A container, as it was asked for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
    /// A probe whose failures end the container.
    pub liveness_probe: Option<Present>,
    /// A probe whose failures end the container while it starts.
    pub startup_probe: Option<Present>,
    /// A probe whose failures make the container unready.
    pub readiness_probe: Option<Present>,
}

/// Something that is there, whatever it is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Present {}

/// What is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: Option<String>,
    /// When kubelet took the pod.
    #[serde(deserialize_with = "moment")]
    pub start_time: Option<DateTime<Utc>>,
    /// PodScheduled, Ready and others.
    pub conditions: Vec<Condition>,
    /// How the init containers and sidecars are.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// How the containers are.
    pub container_statuses: Vec<ContainerStatus>,
}

/// A condition of a pod.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    #[serde(deserialize_with = "short")]
    pub message: Option<String>,
    /// Since when.
    #[serde(deserialize_with = "moment")]
    pub last_transition_time: Option<DateTime<Utc>>,
}

/// How a container is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Whether it counts as ready.
    pub ready: bool,
    /// Whether its startup probe has succeeded, or it has none and runs.
    pub started: Option<bool>,
    /// How often it has been started again: as wide as in Kubernetes, so that it can be counted on and added up.
    pub restart_count: i32,
    /// Now.
    pub state: State,
    /// Of the run before.
    pub last_state: State,
}

/// One of three; none of them means waiting.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct State {
    /// Not running yet, or not again.
    pub waiting: Option<Waiting>,
    /// Running.
    pub running: Option<Running>,
    /// Ended.
    pub terminated: Option<Terminated>,
}

/// Why a container does not run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Waiting {
    /// In a word.
    pub reason: Option<String>,
    /// In a sentence.
    #[serde(deserialize_with = "short")]
    pub message: Option<String>,
}

/// That a container runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Running {
    /// Since when.
    #[serde(deserialize_with = "moment")]
    pub started_at: Option<DateTime<Utc>>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i64,
    /// OOMKilled, Error, Completed, StartError and others.
    pub reason: Option<String>,
    /// What it left as its last words.
    #[serde(deserialize_with = "short")]
    pub message: Option<String>,
    /// When that run began.
    #[serde(deserialize_with = "moment")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(deserialize_with = "moment")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// How the pods of the cluster are watched. `seconds` is the length of one watch.
pub fn watch_config(seconds: u32) -> watcher::Config {
    watcher::Config::default().page_size(500).timeout(seconds)
}

/// One pod, from the apiserver itself; none if it is not there.
///
/// # Errors
/// What the apiserver answers.
pub async fn fetch(client: &Client, namespace: &str, name: &str) -> kube::Result<Option<Pod>> {
    Api::namespaced(client.clone(), namespace).get_opt(name).await
}

impl Pod {
    /// Its UID; empty only in what no apiserver has written.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// When it is, or was, to be gone at the latest, if somebody has deleted it.
    pub fn deleted_at(&self) -> Option<DateTime<Utc>> {
        self.metadata.deletion_timestamp.as_ref().and_then(to_chrono)
    }

    /// When it was created.
    pub fn created_at(&self) -> Option<DateTime<Utc>> {
        self.metadata.creation_timestamp.as_ref().and_then(to_chrono)
    }

    /// Whether it belongs to a Job, which has its own way with failures.
    pub fn is_of_job(&self) -> bool {
        let owners = self.metadata.owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.kind == "Job" && owner.controller == Some(true))
    }

    /// Whether nothing of it will run again.
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// A condition that it has.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Every container, as asked for and as it is; init containers and sidecars first.
    pub fn containers(&self) -> impl Iterator<Item = (Role, &Container, &ContainerStatus)> {
        let init = self.status.init_container_statuses.iter().filter_map(|status| {
            let container = self.spec.init_containers.iter().find(|c| c.name == status.name)?;
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            Some((if sidecar { Role::Sidecar } else { Role::Init }, container, status))
        });
        let main = self.status.container_statuses.iter().filter_map(|status| {
            let container = self.spec.containers.iter().find(|c| c.name == status.name)?;
            Some((Role::Main, container, status))
        });
        init.chain(main)
    }
}

/// What a container is for its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the others begin.
    Init,
    /// Runs beside the others, and begins before them.
    Sidecar,
    /// What the pod is for.
    Main,
}

impl ContainerStatus {
    /// How the newest run that has ended did so, and how many have ended up to it.
    pub fn newest_end(&self) -> Option<(&Terminated, i64)> {
        // The count goes up when a container is started again, not when it ends.
        let restarts = i64::from(self.restart_count);
        match (&self.state.terminated, &self.last_state.terminated) {
            (Some(ended), _) => Some((ended, restarts + 1)),
            (None, Some(ended)) if self.state.running.is_some() => Some((ended, restarts)),
            (None, Some(ended)) => Some((ended, restarts + 1)),
            (None, None) => None,
        }
    }

    /// Why it waits, in the cluster's word; empty where it does not, or nobody says.
    pub fn waits_for(&self) -> &str {
        self.state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default()
    }
}

impl Container {
    /// Whether a failed probe may end it.
    pub fn may_be_killed_by_probe(&self) -> bool {
        self.liveness_probe.is_some() || self.startup_probe.is_some()
    }
}

fn to_chrono(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time.0.as_millisecond())
}

// Without labels, annotations and managed fields, which are most of it.
fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Lean {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        #[serde(default)]
        owner_references: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
    }
    let lean = Lean::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: lean.name,
        namespace: lean.namespace,
        uid: lean.uid,
        resource_version: lean.resource_version,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        owner_references: (!lean.owner_references.is_empty()).then_some(lean.owner_references),
        ..ObjectMeta::default()
    })
}

// With a year of four digits, as Kubernetes writes it: to one far out no span of time could be added.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    Ok(Option::<Time>::deserialize(deserializer)?.as_ref().and_then(to_chrono))
}

// A status keeps no more of such a text either.
fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(deserializer)?;
    Ok(text.map(|text| crate::incident::lifecycle::excerpt_of(&text, 512)))
}
