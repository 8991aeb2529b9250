//! An installation is the khook that works in a cluster, as far as it can be seen from outside: its Deployment,
//! its settings and its Lease.

use std::{collections::BTreeMap, env, ffi::OsString, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, ObjectMeta},
};
use serde::Deserialize;

use super::{Error, cluster::Cluster, output::line};
use crate::{
    config::{self, Settings},
    incident::policy::Policy,
};

/// What khook's objects are labelled with.
pub const LABEL: &str = "app.kubernetes.io/name=khook";

/// A Deployment, the parts that matter here: all of them is much code for little.
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = k8s_openapi::api::apps::v1::Deployment)]
#[serde(default)]
pub struct Deployment {
    /// Its name, namespace and labels.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: Spec,
    /// What is.
    pub status: Status,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// How many pods.
    pub replicas: Option<i32>,
    /// Of which kind.
    pub template: Template,
}

/// What its pods are made by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Template {
    /// The pod.
    pub spec: PodSpec,
}

/// Its pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The account they run as.
    pub service_account_name: Option<String>,
    /// Their containers.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    name: String,
    /// Its image.
    pub image: Option<String>,
    args: Vec<String>,
    env: Vec<Variable>,
    env_from: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Variable {
    name: String,
    value: Option<String>,
    value_from: Option<BTreeMap<String, serde_json::Value>>,
}

/// What is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// How many pods are ready.
    pub ready_replicas: i32,
}

impl Deployment {
    /// The container that khook runs in.
    pub fn container(&self) -> Option<&Container> {
        let containers = &self.spec.template.spec.containers;
        containers.iter().find(|container| container.name == "manager").or(containers.first())
    }
}

/// A khook that was found, or the one this program is beside.
pub struct Installation {
    /// Its Deployment; none where this program runs beside it.
    pub deployment: Option<Deployment>,
    /// Its settings.
    pub settings: Settings,
    /// Settings that could not be read: they come from a Secret or a ConfigMap, and are taken for their defaults.
    pub unread: Vec<String>,
    /// Namespace it runs in, where that is known.
    pub namespace: Option<String>,
}

/// What is to be found of khooks.
pub enum Search {
    /// These, at least one.
    Found(Vec<Installation>),
    /// None.
    Missing,
    /// Nobody may look.
    Forbidden(String),
}

impl Search {
    /// The only one, or the first.
    pub fn first(&self) -> Option<&Installation> {
        match self {
            Self::Found(found) => found.first(),
            Self::Missing | Self::Forbidden(_) => None,
        }
    }

    /// The policy it works by; what of it is assumed is added to `unknown`.
    pub fn policy(&self, unknown: &mut Vec<String>) -> Policy {
        let Some(found) = self.first() else {
            unknown.push("khook's settings: their defaults are assumed".into());
            return Policy::default();
        };
        if !found.unread.is_empty() {
            unknown.push(format!(
                "these settings of khook, taken for their defaults: {}",
                found.unread.join(", ")
            ));
        }
        found.settings.policy()
    }
}

/// Whether this program runs in a pod of khook: then its settings are in its environment.
pub fn is_inside() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some() && env::var_os("KAGENT_BASE_URL").is_some()
}

/// The khooks whose Deployment is labelled as the chart does it: in a namespace if one is named and has one, else
/// anywhere.
///
/// # Errors
/// Where the apiserver cannot be reached.
pub async fn search(cluster: &Cluster, namespace: Option<&str>) -> Result<Search, Error> {
    if let Some(namespace) = namespace
        && let Ok(list) = list(&Api::namespaced(cluster.client.clone(), namespace)).await
        && !list.is_empty()
    {
        return Ok(Search::Found(list));
    }
    match list(&Api::all(cluster.client.clone())).await {
        Ok(list) if list.is_empty() => Ok(Search::Missing),
        Ok(list) => Ok(Search::Found(list)),
        Err(kube::Error::Api(status)) => Ok(Search::Forbidden(line(&status.message, 300))),
        Err(error) => Err(cluster.refused("list", "deployments", true, error)),
    }
}

async fn list(api: &Api<Deployment>) -> kube::Result<Vec<Installation>> {
    let list = api.list(&ListParams::default().labels(LABEL)).await?;
    Ok(list.items.into_iter().map(Installation::of).collect())
}

impl Installation {
    /// The one whose environment this is.
    ///
    /// # Errors
    /// Where the settings are wrong: that khook does not start.
    pub fn beside() -> Result<Self, Error> {
        let settings = Settings::read([], |name| env::var_os(name)).map_err(told)?;
        let namespace = settings.lease_namespace.clone();
        Ok(Self { deployment: None, settings, unread: Vec::new(), namespace })
    }

    fn of(deployment: Deployment) -> Self {
        let settings = deployment.container().map(settings_of);
        let (settings, unread) = settings.unwrap_or_else(|| (defaults(), Vec::new()));
        let namespace = deployment.namespace();
        Self { deployment: Some(deployment), settings, unread, namespace }
    }

    /// `namespace/name`.
    pub fn name(&self) -> String {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        match &self.deployment {
            Some(deployment) => format!("{namespace}/{}", deployment.name_any()),
            None => "this khook".into(),
        }
    }

    /// The service account it runs as: namespace and name.
    pub fn account(&self) -> Option<(String, String)> {
        let deployment = self.deployment.as_ref()?;
        let account = deployment.spec.template.spec.service_account_name.clone();
        Some((deployment.namespace()?, account.unwrap_or_else(|| "default".into())))
    }

    /// How it stands with its Lease at a time.
    pub async fn lease(&self, client: &Client, now: DateTime<Utc>) -> Held {
        if !self.settings.leader_election {
            return Held::NotUsed;
        }
        let name = &self.settings.lease_name;
        let Some(namespace) = self.settings.lease_namespace.as_ref().or(self.namespace.as_ref()) else {
            return Held::Unknown("the namespace of the Lease is not known".into());
        };
        let place = format!("Lease {namespace}/{name}");
        match Api::<Lease>::namespaced(client.clone(), namespace).get_opt(name).await {
            Ok(Some(lease)) => Held::judge(&place, &lease, now),
            Ok(None) => Held::Nobody(format!("{place} does not exist: khook has never worked there")),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                Held::Unknown(format!("you may not get leases in namespace {namespace}"))
            }
            Err(error) => Held::Unknown(format!("{place} cannot be read: {}", line(&error.to_string(), 200))),
        }
    }
}

/// Who holds the Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    /// Somebody does, and has renewed it of late: who, in a sentence.
    By(String),
    /// Nobody does, or has renewed it for long: a sentence.
    Nobody(String),
    /// khook works without.
    NotUsed,
    /// Nobody may look: a sentence.
    Unknown(String),
}

impl Held {
    fn judge(place: &str, lease: &Lease, now: DateTime<Utc>) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty()) else {
            return Self::Nobody(format!("nobody holds {place}"));
        };
        let holder = line(&holder, 80);
        let renewed =
            spec.renew_time.and_then(|time| DateTime::from_timestamp_millis(time.0.as_millisecond()));
        let Some(renewed) = renewed else {
            return Self::Nobody(format!("{holder} holds {place} and has never renewed it"));
        };
        let term =
            Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(15)).unwrap_or(15));
        let age = (now - renewed).to_std().unwrap_or_default();
        let ago = super::output::age(now - renewed);
        // Clocks differ; a holder that works renews a few times in each term.
        match age > term * 2 + Duration::from_secs(5) {
            true => Self::Nobody(format!("{holder} held {place} and has not renewed it for {ago}")),
            false => Self::By(format!("{holder} holds {place}, renewed {ago} ago")),
        }
    }
}

fn told(error: config::Error) -> Error {
    Error::new(format!("the settings of khook are wrong: {error}"))
}

/// All settings at their defaults.
pub fn defaults() -> Settings {
    // Flags and variables there are none: nothing can be wrong.
    Settings::read([], |_| None).unwrap_or_else(|error| unreachable!("defaults are settings: {error}"))
}

// What stands in the Deployment. What it takes from elsewhere is not looked at: it may be secret.
fn settings_of(container: &Container) -> (Settings, Vec<String>) {
    let mut values = BTreeMap::new();
    let mut unread = Vec::new();
    for Variable { name, value, value_from } in &container.env {
        match (value, value_from) {
            (_, Some(from)) if !from.contains_key("fieldRef") => unread.push(name.clone()),
            (Some(value), _) => drop(values.insert(name.clone(), value.clone())),
            _ => {}
        }
    }
    if !container.env_from.is_empty() {
        unread.push("envFrom".into());
    }
    let mut args: Vec<OsString> = container.args.iter().map(OsString::from).collect();
    args.retain(|arg| arg != "run");
    match Settings::read(args, |name| values.get(name).map(OsString::from)) {
        Ok(settings) => (settings, unread),
        Err(error) => {
            unread.push(format!("all ({})", line(&error.to_string(), 200)));
            (defaults(), unread)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_settings_of_a_deployment_are_read_and_its_secrets_are_not() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "khook", "namespace": "kagent"},
            "spec": {"selector": {}, "template": {"spec": {"serviceAccountName": "khook", "containers": [
                {"name": "sidecar"},
                {"name": "manager", "args": ["run", "--stale-after=1m"], "env": [
                    {"name": "LEASE_NAME", "value": "mine"},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "KAGENT_API_KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ]},
            ]}}},
        }))
        .unwrap();
        let found = Installation::of(deployment);
        assert_eq!(found.settings.lease_name, "mine");
        assert_eq!(found.settings.stale_after, Duration::from_secs(60));
        assert_eq!(found.unread, ["KAGENT_API_KEY"]);
        assert_eq!(found.account(), Some(("kagent".into(), "khook".into())));
    }

    #[test]
    fn a_lease_that_is_not_renewed_is_held_by_nobody() {
        let now: DateTime<Utc> = "2026-01-01T00:01:00Z".parse().unwrap();
        let lease = |renewed: &str, holder: &str| -> Lease {
            let spec = json!({"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15});
            serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let judge = |lease: Lease| Held::judge("Lease a/b", &lease, now);
        assert!(matches!(judge(lease("2026-01-01T00:00:50.000000Z", "x")), Held::By(_)));
        assert!(
            matches!(judge(lease("2026-01-01T00:01:50.000000Z", "x")), Held::By(_)),
            "its clock is ahead"
        );
        assert!(matches!(judge(lease("2026-01-01T00:00:20.000000Z", "x")), Held::Nobody(_)));
        assert!(matches!(judge(lease("2026-01-01T00:00:50.000000Z", "")), Held::Nobody(_)));
    }
}
