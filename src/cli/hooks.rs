//! The Hooks that a command is about: those of a file, of standard input, or one of the cluster.

use std::path::Path;

use chrono::{DateTime, Utc};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;

use super::{
    Error,
    cluster::{Cluster, Connection},
    files,
};
use crate::{
    backtest::Past,
    check,
    hook::{ActiveEvent, Hook},
    incident::{
        lifecycle,
        policy::Policy,
        rules::{Rule, Rules},
        signal::Signal,
    },
    source::{self, events, pods::Pod},
};

/// Before the name of a Hook of the cluster.
const OF_CLUSTER: &str = "hook/";

/// The Hooks that an argument names: a file, `-`, or `hook/NAME`.
///
/// # Errors
/// Where they cannot be read, or there is none.
pub async fn read(argument: &Path, connection: &Connection) -> Result<Vec<Hook>, Error> {
    let text = argument.display().to_string();
    if let Some(name) = text.strip_prefix(OF_CLUSTER).filter(|_| !argument.exists()) {
        return Ok(vec![connection.connect().await?.hook(name).await?]);
    }
    if argument.is_dir() {
        return Err(Error::new(format!("{text} is a folder: name a file")));
    }
    let bytes = files::read_one(argument)?;
    let hooks = check::hooks_of(&text, &bytes)
        .map_err(|why| Error::new(format!("{why} (`khook validate` tells more)")))?;
    if hooks.is_empty() {
        return Err(Error::new(format!("{text} has no Hook in it")));
    }
    Ok(hooks)
}

/// The incident that would come of a signal under a rule, whether or not its Hook calls anybody at present.
pub fn opened(
    hook: &Hook,
    rule: &Rule,
    signal: &Signal,
    policy: &Policy,
    at: DateTime<Utc>,
) -> Option<ActiveEvent> {
    let uid = hook.uid().unwrap_or_default();
    let rules = Rules::default();
    lifecycle::open(signal, &rule.key(signal), &rules.scene(Some(rule), policy, &uid, at)).ok().flatten()
}

/// What a cluster still knows of a namespace.
///
/// # Errors
/// What the apiserver said.
pub async fn past(cluster: &Cluster, namespace: &str) -> Result<Past, Error> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    let (warnings, kills) =
        futures::try_join!(list(&api, events::SELECTOR, "Events"), list(&api, events::KILLS, "Events"),)?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pods = list(&pods, "", "pods").await?;
    Ok(Past { pods, events: warnings, kills: kills.iter().filter_map(events::kill).collect() })
}

async fn list<K>(api: &Api<K>, selector: &str, what: &str) -> Result<Vec<K>, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let listed = source::list(api, selector, |object| all.push(object)).await;
    listed.map_err(|error| Error::asked(&format!("{what} cannot be listed"), error))?;
    Ok(all)
}

/// A Hook as people write it.
pub fn name(hook: &Hook) -> String {
    match hook.namespace() {
        Some(namespace) => format!("{namespace}/{}", hook.name_any()),
        None => hook.name_any(),
    }
}
