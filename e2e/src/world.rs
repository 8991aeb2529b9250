//! A world is one namespace with a Hook in it, khook, and an agent to ask: what every scenario begins with.

use std::{collections::BTreeMap, ops::Deref, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event as KubeEvent;
use khook::hook::{ActiveEvent, Hook, HookStatus, Phase};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};

use crate::{
    agent::{Agent, Message},
    control_plane::{ControlPlane, Options},
    events::Event,
    operator::{Operator, Setup},
    wait::eventually,
};

/// Generous: a machine under load is slow, and no test asserts how long anything took.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace, an agent and a cluster. The operator is started by the scenario.
pub struct World {
    /// The cluster.
    pub control_plane: Cluster,
    /// The way to it.
    pub client: Client,
    /// The stand-in kagent.
    pub agent: Arc<Agent>,
    /// The namespace of this scenario.
    pub namespace: String,
}

/// A control plane that others use too, or one of the scenario's own.
pub enum Cluster {
    /// Ends with the process.
    Shared(&'static ControlPlane),
    /// Ends with the scenario.
    Own(Box<ControlPlane>),
}

impl Deref for Cluster {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        match self {
            Self::Shared(control_plane) => control_plane,
            Self::Own(control_plane) => control_plane,
        }
    }
}

impl World {
    /// In the control plane that the tests of one binary share. khook works for all namespaces: two of these
    /// with an operator each act on each other's Hooks, so such scenarios are [`alone`](Self::alone).
    pub async fn new(name: &str) -> Result<Self> {
        Self::on(ControlPlane::shared().await?, name).await
    }

    /// In a control plane that is there already.
    pub async fn on(control_plane: &'static ControlPlane, name: &str) -> Result<Self> {
        Self::within(Cluster::Shared(control_plane), name).await
    }

    /// In a control plane of the scenario's own.
    pub async fn alone(name: &str) -> Result<Self> {
        Self::alone_with(name, Options::default()).await
    }

    /// In a control plane of the scenario's own, started like this.
    pub async fn alone_with(name: &str, options: Options) -> Result<Self> {
        Self::within(Cluster::Own(Box::new(ControlPlane::start(options).await?)), name).await
    }

    async fn within(control_plane: Cluster, name: &str) -> Result<Self> {
        control_plane.apply(&crd_yaml()?).await.context("the CRD")?;
        let namespace = control_plane.fresh_namespace(name).await?;
        let client = control_plane.client().await?;
        Ok(Self { control_plane, client, agent: Arc::new(Agent::spawn().await?), namespace })
    }

    /// Of parts that are there already.
    pub async fn with(
        control_plane: &'static ControlPlane,
        agent: Arc<Agent>,
        namespace: String,
    ) -> Result<Self> {
        let client = control_plane.client().await?;
        Ok(Self { control_plane: Cluster::Shared(control_plane), client, agent, namespace })
    }

    /// khook with short spans; [`Setup::env`] changes them.
    pub fn setup(&self) -> Result<Setup> {
        let mut setup = Operator::new(&self.control_plane.kubeconfig(), &self.agent.url())?;
        for (name, value) in FAST {
            setup = setup.env(name, value);
        }
        // Two scenarios at a time must not share a Lease.
        Ok(setup.env("LEASE_NAME", &self.namespace).env("LEASE_NAMESPACE", &self.namespace))
    }

    /// khook with short spans, ready.
    pub async fn operator(&self) -> Result<Operator> {
        self.start(self.setup()?).await
    }

    /// Starts khook and waits until it is ready.
    pub async fn start(&self, setup: Setup) -> Result<Operator> {
        let operator = setup.start().await?;
        operator.wait_ready(PATIENCE).await?;
        Ok(operator)
    }

    /// Applies a Hook of this name that asks `kagent/k8s-agent` about these kinds of trouble.
    pub async fn hook(&self, name: &str, types: &[&str]) -> Result<()> {
        self.hook_with(name, types, "").await
    }

    /// As [`hook`](Self::hook), with more lines for each event configuration.
    pub async fn hook_with(&self, name: &str, types: &[&str], more: &str) -> Result<()> {
        self.hook_asking(name, "kagent/k8s-agent", types, more).await
    }

    /// As [`hook_with`](Self::hook_with), asking this agent.
    pub async fn hook_asking(&self, name: &str, agent: &str, types: &[&str], more: &str) -> Result<()> {
        let mut yaml = format!(
            "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {{name: {name}}}\nspec:\n  eventConfigurations:\n"
        );
        for type_ in types {
            yaml.push_str(&format!(
                "  - eventType: {type_}\n    agentId: {agent}\n    prompt: 'Look at {{{{.ResourceName}}}}: {{{{.EventMessage}}}}'\n"
            ));
            for line in more.lines() {
                yaml.push_str(&format!("    {line}\n"));
            }
        }
        self.control_plane.apply_in(&self.namespace, &yaml).await.map(drop)
    }

    /// The Hooks of this namespace.
    pub fn hooks(&self) -> Api<Hook> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A merge patch of a Hook.
    pub async fn patch(&self, hook: &str, patch: serde_json::Value) -> Result<Hook> {
        Ok(self.hooks().patch(hook, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// The status of a Hook.
    pub async fn status(&self, hook: &str) -> Result<HookStatus> {
        Ok(self.hooks().get(hook).await?.status.unwrap_or_default())
    }

    /// kubelet's Warning that a container is in crash loop, once.
    pub async fn crash(&self, pod: &str) -> Result<()> {
        self.crash_event(pod).post(&self.client).await.map(drop)
    }

    /// That Warning, to be changed and posted.
    pub fn crash_event(&self, pod: &str) -> Event {
        let note = format!("Back-off restarting failed container web in pod {pod}_{}(uid)", self.namespace);
        Event::kubelet("BackOff", &note).pod(&self.namespace, pod).uid(&format!("uid-{pod}")).container("web")
    }

    /// Waits until the incident of a pod is in a phase; answers its entry.
    pub async fn wait_for(&self, hook: &str, pod: &str, phase: Phase) -> Result<ActiveEvent> {
        self.wait_until(hook, &format!("{pod} is {phase}"), |status| {
            status.active_events.iter().find(|e| e.resource_name == pod && e.status == phase).cloned()
        })
        .await
    }

    /// Waits until the agent has answered about a pod; answers its entry.
    pub async fn wait_answered(&self, hook: &str, pod: &str) -> Result<ActiveEvent> {
        self.wait_until(hook, &format!("{pod} is answered"), |status| {
            status.active_events.iter().find(|e| e.resource_name == pod && e.outcome.is_some()).cloned()
        })
        .await
    }

    /// Waits until something is in the status.
    pub async fn wait_until<T>(
        &self,
        hook: &str,
        what: &str,
        found: impl Fn(&HookStatus) -> Option<T>,
    ) -> Result<T> {
        eventually(what, PATIENCE, async || {
            let status = self.status(hook).await?;
            found(&status).with_context(|| format!("the status is {}", told(&status)))
        })
        .await
    }

    /// The Events khook wrote about a Hook, by reason, with their notes.
    pub async fn notices(&self, hook: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let events: Api<KubeEvent> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_hook = ListParams::default().fields(&format!("regarding.kind=Hook,regarding.name={hook}"));
        let mut notices: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in events.list(&of_hook).await? {
            let note = event.note.clone().unwrap_or_default();
            notices.entry(event.reason.clone().unwrap_or_else(|| event.name_any())).or_default().push(note);
        }
        Ok(notices)
    }

    /// Whether the session of an incident was looked up.
    pub fn looked_up(&self, entry: &ActiveEvent) -> bool {
        let session = entry.session_id.as_deref().unwrap_or("none");
        let path = format!("/api/sessions/{session}/tasks");
        self.agent.requests().iter().any(|request| request.path.starts_with(&path))
    }

    /// That no message started two runs, and how many started one.
    pub fn ensure_each_ran_once(&self, expected: usize) -> Result<()> {
        let counts = self.agent.run_counts();
        ensure!(counts.values().all(|count| *count == 1), "a message ran twice: {counts:?}");
        ensure!(counts.len() == expected, "{} runs instead of {expected}: {counts:?}", counts.len());
        Ok(())
    }

    /// The messages about pods of this namespace, in order.
    pub fn messages(&self) -> Vec<Message> {
        let ours = |message: &Message| message.metadata["namespace"] == self.namespace.as_str();
        self.agent.messages().into_iter().filter(ours).collect()
    }

    /// Waits until at least this many messages about pods of this namespace were received; answers them.
    pub async fn wait_for_messages(&self, count: usize) -> Result<Vec<Message>> {
        eventually(&format!("{count} messages about {}", self.namespace), PATIENCE, async || {
            let messages = self.messages();
            ensure!(messages.len() >= count, "{} came", messages.len());
            Ok(messages)
        })
        .await
    }

    /// That no message about this namespace was received twice, and how many were in all.
    pub fn ensure_each_once(&self, expected: usize) -> Result<()> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for message in self.messages() {
            *counts.entry(message.id).or_default() += 1;
        }
        ensure!(counts.values().all(|count| *count == 1), "a message was sent twice: {counts:?}");
        ensure!(counts.len() == expected, "{} messages instead of {expected}: {counts:?}", counts.len());
        Ok(())
    }
}

/// Short spans for tests: a window of 4 s, quiet after 4 s.
pub const FAST: [(&str, &str); 20] = [
    ("BIND_ADDRESS", "127.0.0.1"),
    ("LOG_LEVEL", "debug"),
    ("LOG_FORMAT", "text"),
    ("REPEAT_INTERVAL", "4s"),
    ("RESOLVE_TIMEOUT", "4s"),
    ("RETENTION", "60s"),
    ("HOLD_SCALE", "0.02"),
    ("RETRY_BASE", "200ms"),
    ("RETRY_MAX", "2s"),
    ("ROUND_INTERVAL", "4s"),
    ("TAKEOVER_MARGIN", "1s"),
    ("LOOKUP_GRACE", "1s"),
    ("BREAKER_BASE", "500ms"),
    ("BREAKER_MAX", "2s"),
    ("QUIET_WRITE_INTERVAL", "2s"),
    ("FOLLOW_MIN", "200ms"),
    ("FOLLOW_MAX", "1s"),
    ("LEASE_DURATION", "4s"),
    ("LEASE_RENEW", "1s"),
    ("OUTCOME_DELAY", "300ms"),
];

/// The CRD as it is committed.
pub fn crd_yaml() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/hook.yaml");
    std::fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

fn told(status: &HookStatus) -> String {
    let entries = status.active_events.iter().map(|e| {
        let reason = e.reason.map_or("", |reason| reason.as_str());
        format!(
            "{} {} {} ({}{})",
            e.resource_name,
            e.status,
            reason,
            e.message,
            e.last_error.as_deref().map_or(String::new(), |error| format!("; {error}"))
        )
    });
    let entries: Vec<String> = entries.collect();
    format!("[{}] {}", entries.join(", "), status.message.as_deref().unwrap_or_default())
}
