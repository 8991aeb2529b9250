//! Pods whose status is written as kubelet writes it, without a kubelet.

use anyhow::{Context, Result};
use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::World;

/// The pods of this namespace.
pub fn pods(world: &World) -> Api<Pod> {
    Api::namespaced(world.client.clone(), &world.namespace)
}

/// Creates a pod and has it in this state; answers its UID.
pub async fn pod(world: &World, name: &str, state: Value) -> Result<String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": "nowhere", "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "app", "image": "none"}]},
    }))?;
    pods(world).create(&PostParams::default(), &pod).await?;
    become_(world, name, state).await
}

/// Has a pod be in this state; answers its UID.
pub async fn become_(world: &World, name: &str, state: Value) -> Result<String> {
    let mut status = json!({"name": "app", "image": "none", "imageID": "", "ready": true, "started": true, "restartCount": 0});
    for (field, value) in state.as_object().into_iter().flatten() {
        status[field] = value.clone();
    }
    let status = json!({"status": {"phase": "Running", "containerStatuses": [status]}});
    let pod = pods(world).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    pod.uid().context("a UID")
}

/// Its container runs since now.
pub fn running() -> Value {
    json!({"state": {"running": {"startedAt": Utc::now()}}})
}

/// Its container has just ended for this reason, and runs again.
pub fn restarted(reason: &str) -> Value {
    let ended = json!({"reason": reason, "exitCode": 137, "finishedAt": Utc::now(), "startedAt": Utc::now()});
    json!({"restartCount": 1, "lastState": {"terminated": ended}, "state": {"running": {"startedAt": Utc::now()}}})
}
