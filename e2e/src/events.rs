//! An event is what Kubernetes says about a pod, posted the way its own components post it.
//!
//! kubelet writes through core/v1: firstTimestamp, lastTimestamp, count, and a repeat is a patch of
//! the last two. The scheduler writes through events.k8s.io/v1: eventTime, and a repeat is a series.
//! Both are read back through events.k8s.io/v1, where kubelet's come with `deprecated…` fields and a
//! null eventTime.

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::{core::v1 as core, events::v1 as events};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Writer {
    Kubelet,
    Scheduler,
}

/// An Event about a pod, before it is posted: a Warning, about `default/pod`, seen once, now.
#[derive(Clone, Debug)]
pub struct Event {
    writer: Writer,
    reason: String,
    note: String,
    kind: &'static str,
    namespace: String,
    pod: String,
    uid: Option<String>,
    field_path: Option<String>,
    count: i32,
    first: Option<DateTime<Utc>>,
    at: Option<DateTime<Utc>>,
}

impl Event {
    /// As kubelet posts it: BackOff, Failed, Unhealthy, FailedMount, OOMKilling…
    pub fn kubelet(reason: &str, note: &str) -> Self {
        Self::new(Writer::Kubelet, reason, note)
    }

    /// As the scheduler posts it: FailedScheduling.
    pub fn scheduler(reason: &str, note: &str) -> Self {
        Self::new(Writer::Scheduler, reason, note)
    }

    fn new(writer: Writer, reason: &str, note: &str) -> Self {
        Self {
            writer,
            reason: reason.to_owned(),
            note: note.to_owned(),
            kind: "Warning",
            namespace: "default".to_owned(),
            pod: "pod".to_owned(),
            uid: None,
            field_path: None,
            count: 1,
            first: None,
            at: None,
        }
    }

    /// The pod it is about; its UID is derived from both unless [`uid`](Self::uid) says another.
    pub fn pod(mut self, namespace: &str, name: &str) -> Self {
        (self.namespace, self.pod) = (namespace.to_owned(), name.to_owned());
        self
    }

    /// The pod's UID: another one under the same name is another pod.
    pub fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// The container it is about, as kubelet writes it: `spec.containers{NAME}`.
    pub fn container(self, name: &str) -> Self {
        self.field_path(&format!("spec.containers{{{name}}}"))
    }

    /// The field it is about, such as `spec.initContainers{setup}`.
    pub fn field_path(mut self, path: &str) -> Self {
        self.field_path = Some(path.to_owned());
        self
    }

    /// How often it has been seen.
    pub fn count(mut self, count: i32) -> Self {
        self.count = count;
        self
    }

    /// When it was seen first; the same as last unless said.
    pub fn first_seen(mut self, first: DateTime<Utc>) -> Self {
        self.first = Some(first);
        self
    }

    /// When it was seen last; now unless said.
    pub fn at(mut self, at: DateTime<Utc>) -> Self {
        self.at = Some(at);
        self
    }

    /// Makes it a Normal event.
    pub fn normal(mut self) -> Self {
        self.kind = "Normal";
        self
    }

    /// Posts it.
    pub async fn post(&self, client: &Client) -> Result<Posted> {
        let at = self.at.unwrap_or_else(Utc::now);
        let first = self.first.unwrap_or(at);
        // As client-go names them: the pod, a dot, something that is never twice the same.
        let unique = Uuid::new_v4().simple().to_string();
        let name = format!("{}.{}", self.pod, &unique[..16]);
        let uid = self.uid.clone().unwrap_or_else(|| {
            Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{}/{}", self.namespace, self.pod).as_bytes())
                .to_string()
        });
        let mut about = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": self.pod, "uid": uid,
        });
        if let Some(path) = &self.field_path {
            about["fieldPath"] = json!(path);
        }
        let metadata = json!({"name": name, "namespace": self.namespace});
        let params = PostParams::default();
        match self.writer {
            Writer::Kubelet => {
                let event = json!({
                    "metadata": metadata,
                    "involvedObject": about,
                    "type": self.kind,
                    "reason": self.reason,
                    "message": self.note,
                    "firstTimestamp": seconds(first),
                    "lastTimestamp": seconds(at),
                    "count": self.count,
                    "source": {"component": "kubelet", "host": "node1"},
                    "reportingComponent": "kubelet",
                    "reportingInstance": "node1",
                });
                let event: core::Event = serde_json::from_value(event).context("a core/v1 Event")?;
                Api::namespaced(client.clone(), &self.namespace).create(&params, &event).await.map(drop)
            }
            Writer::Scheduler => {
                let mut event = json!({
                    "metadata": metadata,
                    "regarding": about,
                    "type": self.kind,
                    "reason": self.reason,
                    "note": self.note,
                    "eventTime": micros(first),
                    "action": "Scheduling",
                    "reportingController": "default-scheduler",
                    "reportingInstance": "default-scheduler-node1",
                });
                if self.count > 1 {
                    event["series"] = series(self.count, at);
                }
                let event: events::Event =
                    serde_json::from_value(event).context("an events.k8s.io/v1 Event")?;
                Api::namespaced(client.clone(), &self.namespace).create(&params, &event).await.map(drop)
            }
        }
        .with_context(|| {
            format!("posting the Event {} about {}/{}", self.reason, self.namespace, self.pod)
        })?;
        Ok(Posted { writer: self.writer, namespace: self.namespace.clone(), name, count: self.count })
    }
}

/// An Event that is in the cluster.
#[derive(Clone, Debug)]
pub struct Posted {
    writer: Writer,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How often it has been seen.
    pub count: i32,
}

impl Posted {
    /// Seen once more, now.
    pub async fn repeat(&mut self, client: &Client) -> Result<()> {
        self.repeat_as(client, self.count + 1, Utc::now(), None).await
    }

    /// Seen again as said. kubelet may put another note; the server refuses that through
    /// events.k8s.io, where the note is immutable.
    pub async fn repeat_as(
        &mut self,
        client: &Client,
        count: i32,
        at: DateTime<Utc>,
        note: Option<&str>,
    ) -> Result<()> {
        let mut patch = match self.writer {
            Writer::Kubelet => json!({"count": count, "lastTimestamp": seconds(at)}),
            Writer::Scheduler => json!({"series": series(count, at)}),
        };
        if let Some(note) = note {
            let field = if self.writer == Writer::Kubelet { "message" } else { "note" };
            patch[field] = json!(note);
        }
        self.patch(client, &patch).await?;
        self.count = count;
        Ok(())
    }

    async fn patch(&self, client: &Client, patch: &Value) -> Result<()> {
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        match self.writer {
            Writer::Kubelet => {
                let api: Api<core::Event> = Api::namespaced(client.clone(), &self.namespace);
                api.patch(&self.name, &params, &patch).await.map(drop)
            }
            Writer::Scheduler => {
                let api: Api<events::Event> = Api::namespaced(client.clone(), &self.namespace);
                api.patch(&self.name, &params, &patch).await.map(drop)
            }
        }
        .with_context(|| format!("repeating the Event {}", self.name))
    }
}

fn series(count: i32, at: DateTime<Utc>) -> Value {
    json!({"count": count, "lastObservedTime": micros(at)})
}

/// metav1.Time has whole seconds.
fn seconds(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// metav1.MicroTime has microseconds.
fn micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}
