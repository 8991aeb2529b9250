//! Objects are what YAML describes: read, applied, looked at and deleted without knowing their kinds.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{self, Scope};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

use crate::wait::eventually;

/// Only an error waits this long.
const SERVED: Duration = Duration::from_secs(120);

/// Reads YAML, one document or several; empty ones are left out.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().context("reading the YAML")?;
    Ok(documents.into_iter().filter(|value| !value.is_null()).collect())
}

/// Applies objects as `kubectl apply --server-side` does. Namespaced ones without a namespace go to
/// `namespace`. Returns when CRDs among them are served. The error's last part is what the server said.
pub async fn apply(client: &Client, namespace: &str, objects: Vec<Value>) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for value in objects {
        let object: DynamicObject = serde_json::from_value(value).context("the YAML is no object")?;
        let types = object.types.clone().context("an object without apiVersion and kind")?;
        let name = object.metadata.name.clone().context("an object without a name")?;
        let what = format!("{} {name}", types.kind);
        let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
        let api = api(client, &types, namespace).await.with_context(|| format!("the kind of {what}"))?;
        // Strict, as kubectl is: an unknown field is an error.
        let params = PatchParams::apply("e2e").force().validation_strict();
        let answer = api.patch(&name, &params, &Patch::Apply(&object)).await;
        applied.push(answer.map_err(words).with_context(|| format!("applying {what}"))?);
        if types.kind == "CustomResourceDefinition" {
            established(&api, &name).await?;
        }
    }
    Ok(applied)
}

/// The way to the objects of a kind. For a kind that has no namespaces the namespace is ignored.
pub async fn api(client: &Client, types: &TypeMeta, namespace: &str) -> Result<Api<DynamicObject>> {
    let kind = GroupVersionKind::try_from(types).context("reading the apiVersion")?;
    let (resource, capabilities) =
        discovery::pinned_kind(client, &kind).await.context("the server does not know the kind")?;
    Ok(match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
    })
}

/// Deletes an object; one that is not there is all right.
pub async fn delete(api: &Api<DynamicObject>, name: &str, params: &DeleteParams) -> Result<()> {
    match api.delete(name, params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).map_err(words).with_context(|| format!("deleting {name}")),
    }
}

/// The server's own words, which are what a test of a refusal is about, without kube's wrapping.
pub fn words(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// Waits until a CRD is established and its kind can be found.
async fn established(crds: &Api<DynamicObject>, name: &str) -> Result<()> {
    eventually(&format!("CRD {name} to be served"), SERVED, async || {
        let crd = crds.get(name).await.context("reading it back")?;
        let conditions = crd.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
        if !is("Established") || !is("NamesAccepted") {
            bail!("conditions {conditions:?}");
        }
        Ok(())
    })
    .await
}
