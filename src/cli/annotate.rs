//! An annotation on a Hook is how a command has the running operator do something, and the status is how it hears
//! that it was done.

use std::{future, time::Duration};

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde::Serialize;
use serde_json::json;

use super::{Error, cluster::Cluster};
use crate::{
    hook::{ActiveEvent, Hook, Verb},
    source::annotations::{Said, instruction_key},
};

const FIELD_MANAGER: &str = "khook-cli";

/// Writes an annotation, or with `dry_run` has the apiserver check that it could be.
///
/// # Errors
/// What the apiserver said, and what to do about it.
pub async fn set(
    cluster: &Cluster,
    hook: &Hook,
    key: &str,
    value: &impl Serialize,
    dry_run: bool,
) -> Result<(), Error> {
    // Of this Hook, and no other that has its name by now.
    let metadata = json!({"uid": hook.uid(), "annotations": {key: text(value)?}});
    match patch(cluster, hook, metadata, dry_run).await? {
        true => Ok(()),
        false => Err(Error::new(format!("the Hook {} is another one by now", hook.name_any()))),
    }
}

/// Takes an annotation off again: what it asked for is done, and stands in the status. One that somebody else has
/// written there since is theirs, and stays.
///
/// # Errors
/// What the apiserver said, and what to do about it.
pub async fn remove(cluster: &Cluster, hook: &Hook, key: &str, value: &impl Serialize) -> Result<(), Error> {
    let own = text(value)?;
    loop {
        let newest = cluster.hook(&hook.name_any()).await?;
        if newest.uid() != hook.uid() || newest.annotations().get(key) != Some(&own) {
            return Ok(());
        }
        let version = newest.resource_version();
        let metadata = json!({"resourceVersion": version, "annotations": {key: null}});
        if patch(cluster, hook, metadata, false).await? {
            return Ok(());
        }
        // Somebody wrote in between, perhaps khook its status.
    }
}

fn text(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::because("no JSON"))
}

/// False where the Hook is another version, or another Hook, than the metadata says.
async fn patch(
    cluster: &Cluster,
    hook: &Hook,
    metadata: serde_json::Value,
    dry_run: bool,
) -> Result<bool, Error> {
    let params = PatchParams { dry_run, field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let body = Patch::Merge(json!({"metadata": metadata}));
    match cluster.hooks().patch(&hook.name_any(), &params, &body).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Err(Error::new(format!("the Hook {} is gone", hook.name_any())))
        }
        Err(error) => Err(cluster.refused("patch", "hooks.kagent.dev", false, error)),
    }
}

/// An instruction that was written on a Hook.
pub struct Told {
    /// The key of its annotation.
    pub key: String,
    /// Its value.
    pub said: Said,
    session: String,
}

impl Told {
    /// Writes an instruction about an incident.
    ///
    /// # Errors
    /// What the apiserver said, and what to do about it.
    pub async fn write(
        cluster: &Cluster,
        hook: &Hook,
        entry: &ActiveEvent,
        verb: Verb,
        span: Option<String>,
    ) -> Result<Self, Error> {
        let session = entry.session_id.clone().ok_or_else(|| {
            Error::new(
                "khook has not taken this incident over yet, an earlier version has left it: is khook running?",
            )
        })?;
        let at = now(cluster, entry.instruction.as_ref().map(|known| known.at)).await?;
        let said = Said { at, by: cluster.who().await, span };
        let key = instruction_key(verb, &session);
        set(cluster, hook, &key, &said, false).await?;
        Ok(Self { key, said, session })
    }

    /// The incident once this is done, none where it is not remembered any more; nothing after `limit`.
    ///
    /// # Errors
    /// Where the Hook is gone.
    pub async fn done(
        &self,
        cluster: &Cluster,
        hook: &Hook,
        limit: Duration,
    ) -> Result<Option<Option<ActiveEvent>>, Error> {
        follow(cluster, hook, limit, |hook| {
            let entries = hook.status.iter().flat_map(|status| &status.active_events);
            let Some(entry) =
                entries.into_iter().find(|entry| entry.session_id.as_ref() == Some(&self.session))
            else {
                return Some(None);
            };
            let done = entry.instruction.as_ref().is_some_and(|known| known.at >= self.said.at);
            done.then(|| Some(entry.clone()))
        })
        .await
    }

    /// Takes it off again.
    ///
    /// # Errors
    /// What the apiserver said, and what to do about it.
    pub async fn take_off(&self, cluster: &Cluster, hook: &Hook) -> Result<(), Error> {
        remove(cluster, hook, &self.key, &self.said).await
    }
}

/// Looks at a Hook whenever it changes, until there is something to tell; none after `limit`.
///
/// # Errors
/// Where the Hook is gone.
pub async fn follow<T>(
    cluster: &Cluster,
    hook: &Hook,
    limit: Duration,
    mut look: impl FnMut(&Hook) -> Option<T>,
) -> Result<Option<T>, Error> {
    let gone = || Error::new(format!("the Hook {} is gone", hook.name_any()));
    let mut seen = false;
    let mut changes = cluster.watch_hooks(false).filter(|item| future::ready(item.is_ok()));
    let watch = async {
        while let Some(item) = changes.next().await {
            match item {
                Ok(watcher::Event::Apply(new) | watcher::Event::InitApply(new))
                    if new.uid() == hook.uid() =>
                {
                    seen = true;
                    if let Some(found) = look(&new) {
                        return Ok(found);
                    }
                }
                Ok(watcher::Event::Delete(old)) if old.uid() == hook.uid() => return Err(gone()),
                Ok(watcher::Event::InitDone) if !seen => return Err(gone()),
                Ok(_) | Err(_) => {}
            }
        }
        Err(gone())
    };
    match tokio::time::timeout(limit, watch).await {
        Ok(found) => found.map(Some),
        Err(_) => Ok(None),
    }
}

/// The time by the apiserver's clock, in whole milliseconds and later than `last`: of several instructions the newest
/// counts, whoever's clock is wrong.
///
/// # Errors
/// What the apiserver said.
pub async fn now(cluster: &Cluster, last: Option<DateTime<Utc>>) -> Result<DateTime<Utc>, Error> {
    let (now, _) = cluster.clock().await?;
    Ok(last.map_or(now, |last| now.max(last + Duration::from_millis(1))))
}
