//! docs/troubleshooting.md says what shows when something is wrong. Here something is wrong, and that shows.

#![allow(missing_docs)]

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{
    assets::Tool,
    helm::Helm,
    markdown::root,
    objects,
    operator::{Operator, Setup},
    wait::{eventually, throughout},
    world::{PATIENCE, World, crd_yaml},
};
use kube::{api::DeleteParams, core::TypeMeta};
use serde_json::{Value, json};

fn page() -> Result<String> {
    fs::read_to_string(root().join("docs/troubleshooting.md")).context("reading docs/troubleshooting.md")
}

/// The words stand in the page, and come to be in what is seen.
async fn shows(words: &str, seen: impl AsyncFn() -> Result<String>) -> Result<()> {
    ensure!(page()?.contains(words), "docs/troubleshooting.md does not say {words:?}");
    eventually(words, PATIENCE, async || {
        let seen = seen().await?;
        ensure!(seen.contains(words), "{seen}");
        Ok(())
    })
    .await
}

/// What /readyz says.
async fn readiness(operator: &Operator) -> Result<String> {
    Ok(operator.ready().await.err().map_or_else(|| "ok".to_owned(), |error| error.to_string()))
}

/// khook with the rights of the chart but for the rules about one resource.
async fn without(world: &World, resource: &str) -> Result<Setup> {
    let mut rights = Helm::new(Tool::Helm3).await?.rights(&world.namespace, &json!({})).await?;
    for object in &mut rights {
        if let Some(rules) = object.get_mut("rules").and_then(Value::as_array_mut) {
            rules.retain(|rule| rule["resources"] != json!([resource]));
        }
    }
    objects::apply(&world.client, &world.namespace, rights).await?;
    let kubeconfig = world.control_plane.service_account_kubeconfig(&world.namespace, "khook").await?;
    Ok(world.setup()?.env("KUBECONFIG", kubeconfig.display()).env("LEASE_NAME", "khook"))
}

#[tokio::test]
async fn a_missing_definition_shows_in_the_readiness() -> Result<()> {
    let world = World::alone("no-crd").await?;
    let types =
        TypeMeta { api_version: "apiextensions.k8s.io/v1".into(), kind: "CustomResourceDefinition".into() };
    let crds = objects::api(&world.client, &types, "").await?;
    objects::delete(&crds, "hooks.kagent.dev", &DeleteParams::default()).await?;
    // It goes when the last of its objects has gone, and until then Hooks can be listed.
    eventually("the definition to be gone", PATIENCE, async || {
        ensure!(crds.get_opt("hooks.kagent.dev").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    let operator = world.setup()?.start().await?;
    shows("not synced: hooks", async || readiness(&operator).await).await?;
    // It heals by itself.
    world.control_plane.apply(&crd_yaml()?).await?;
    operator.wait_ready(PATIENCE).await
}

#[tokio::test]
async fn a_definition_that_is_too_old_shows_in_the_log_and_loses_nothing() -> Result<()> {
    let world = World::alone("old-crd").await?;
    // As that of a version without some fields of the status.
    let mut old = objects::parse(&crd_yaml()?)?.remove(0);
    let status = old.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties");
    let status = status.and_then(Value::as_object_mut).context("the schema of the status")?;
    ensure!(status.remove("agents").is_some() && status.remove("eventTypes").is_some());
    world.control_plane.apply(&old.to_string()).await?;
    let operator = world.operator().await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    shows("the definition of Hooks in the cluster is older than this khook", async || Ok(operator.log()))
        .await?;
    ensure!(operator.metric("khook_status_writes_total", &[("result", "error")]).await? > 0.0);
    ensure!(world.messages().is_empty(), "called without a claim");
    world.control_plane.apply(&crd_yaml()?).await?;
    world.wait_answered("shop", "web-0").await?;
    world.ensure_each_once(1)
}

#[tokio::test]
async fn a_missing_right_shows_where_the_page_says() -> Result<()> {
    let world = World::alone("pods").await?;
    let operator = without(&world, "pods").await?.start().await?;
    shows("not synced: pods", async || readiness(&operator).await).await?;
    shows("the watch broke off and is resumed", async || Ok(operator.log())).await?;
    let refused = [("watch", "pods"), ("reason", "refused")];
    ensure!(operator.metric("khook_watch_restarts_total", &refused).await? > 0.0);

    let world = World::alone("leases").await?;
    let operator = without(&world, "leases").await?.start().await?;
    shows("cannot read or write the lease", async || Ok(operator.log())).await?;
    ensure!(operator.metrics().await?.contains("khook_leader 0"));

    let world = World::alone("status").await?;
    let operator = without(&world, "hooks/status").await?.start().await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    shows("the apiserver refuses the status", async || Ok(operator.log())).await?;
    shows("forbidden", async || Ok(operator.log())).await?;
    throughout("nobody is called", std::time::Duration::from_secs(1), async || {
        ensure!(world.messages().is_empty(), "called without a claim");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_command_about_a_hook_prints_something() -> Result<()> {
    let world = World::alone("commands").await?;
    let _operator = world.operator().await?;
    // A Hook with a mistake in it and an incident.
    world.hook("shop", &["pod-restart"]).await?;
    let broken = json!([{"eventType": "pod-restart", "agentId": "kagent/a", "prompt": "{{.ResourceName"}]);
    world.patch("shop", json!({"spec": {"eventConfigurations": broken}})).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let kubectl = tokio::task::spawn_blocking(|| Tool::Kubectl.find_or_build()).await??;
    let mut run = 0;
    for name in ["docs/troubleshooting.md", "docs/kagent-integration.md"] {
        let text = fs::read_to_string(root().join(name)).with_context(|| format!("reading {name}"))?;
        for line in text.lines() {
            let Some(arguments) = line.strip_prefix("    kubectl ") else { continue };
            if !arguments.starts_with("get hook") && !arguments.starts_with("describe hook") {
                continue;
            }
            let arguments = arguments.replace("NAMESPACE", &world.namespace).replace("NAME", "shop");
            let arguments =
                arguments.replace("watch-my-pods -n shop", &format!("shop -n {}", world.namespace));
            let mut shell = Command::new("sh");
            // A person's shell takes the quotes apart.
            shell.arg("-c").arg(format!("{} {arguments}", kubectl.display()));
            shell.env("KUBECONFIG", world.control_plane.kubeconfig()).env("HOME", world.control_plane.dir());
            let output = tokio::task::spawn_blocking(move || shell.output()).await??;
            let words = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() && !output.stdout.is_empty(), "{line}: {words}");
            run += 1;
        }
    }
    ensure!(run >= 7, "{run} commands");
    Ok(())
}
