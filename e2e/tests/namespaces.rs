//! Which namespaces khook looks after, and whose agents their Hooks may have asked, on a real control plane.

#![allow(missing_docs)]

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use e2e::{
    wait::{eventually, throughout},
    world::{PATIENCE, World},
};
use khook::hook::Phase;
use kube::api::DeleteParams;

/// Every right in one namespace, for khook alone.
fn grant(namespace: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
         metadata: {{name: khook, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
         subjects: [{{kind: ServiceAccount, name: khook, namespace: default}}]\n"
    )
}

#[tokio::test]
async fn only_the_named_namespaces_are_watched_and_one_that_is_refused_holds_up_no_other() -> Result<()> {
    let shop = World::alone("shop").await?;
    let beside = |namespace: String| {
        let (client, agent) = (shop.client.clone(), shop.agent.clone());
        (client, agent, namespace)
    };
    let late = beside(shop.control_plane.fresh_namespace("late").await?);
    let other = beside(shop.control_plane.fresh_namespace("other").await?);
    shop.control_plane.apply(&grant(&shop.namespace)).await?;
    let account = shop.control_plane.service_account_kubeconfig("default", "khook").await?;
    let setup = shop
        .setup()?
        .env("KUBECONFIG", account.display())
        .env("WATCH_NAMESPACES", format!("{}, {}", shop.namespace, late.2));
    let operator = setup.start().await?;
    for namespace in [&shop.namespace, &late.2, &other.2] {
        let hook = "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {name: hook}\nspec:\n  eventConfigurations:\n  \
             - {eventType: pod-restart, agentId: kagent/k8s-agent, prompt: Look}\n";
        shop.control_plane.apply_in(namespace, hook).await?;
    }
    let crash = async |namespace: &str, pod: &str| {
        shop.crash_event(pod).pod(namespace, pod).post(&shop.client).await.map(drop)
    };
    for namespace in [&shop.namespace, &late.2, &other.2] {
        crash(namespace, "web-0").await?;
    }
    // Refused in one of them, it works in the other, and says which is refused.
    shop.wait_answered("hook", "web-0").await?;
    operator.wait_ready(PATIENCE).await?;
    let ready = operator.ready().await?;
    ensure!(!ready.contains(&shop.namespace), "{ready}");
    for watch in ["hooks", "pods", "events", "kills"] {
        ensure!(ready.contains(&format!("{watch} of {}", late.2)), "{ready}");
    }
    let contact = async |namespace: &str| {
        let of = [("watch", "pods"), ("scope", namespace)];
        operator.metric("khook_watch_contact_timestamp_seconds", &of).await
    };
    let (answered_at, refused_at) = (contact(&shop.namespace).await?, contact(&late.2).await?);
    ensure!(answered_at > refused_at, "a watch that is refused counts as answered");

    shop.control_plane.apply(&grant(&late.2)).await?;
    eventually("the second namespace to be watched", PATIENCE, async || {
        ensure!(operator.ready().await?.trim() == "ok", "{}", operator.ready().await?);
        Ok(())
    })
    .await?;
    ensure!(contact(&late.2).await? > refused_at, "an answered watch is not noticed");
    crash(&late.2, "web-1").await?;
    let messages = |namespace: &str| {
        let all = shop.agent.messages();
        all.into_iter().filter(|message| message.metadata["namespace"] == namespace).count()
    };
    eventually("the second namespace's agent is asked", PATIENCE, async || {
        ensure!(messages(&late.2) == 2, "{} messages", messages(&late.2));
        Ok(())
    })
    .await?;
    // What was listed first is still watched, also when a list is made anew.
    crash(&shop.namespace, "web-2").await?;
    shop.wait_answered("hook", "web-2").await?;
    throughout("nothing of a third namespace", Duration::from_secs(1), async || {
        ensure!(messages(&other.2) == 0, "asked about {}", other.2);
        Ok(())
    })
    .await?;
    shop.ensure_each_once(2)
}

#[tokio::test]
async fn an_agent_that_the_namespace_is_not_allowed_is_told_of_and_not_asked() -> Result<()> {
    let world = World::alone("allowed").await?;
    let allowed = format!(r#"{{"{}":["kagent/reader","./*"],"elsewhere":["kagent/*"]}}"#, world.namespace);
    let operator = world.start(world.setup()?.env("ALLOWED_AGENTS", allowed)).await?;
    let hook = "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {name: mixed}\nspec:\n  eventConfigurations:\n  \
         - {eventType: pod-restart, agentRef: {name: admin, namespace: kagent}, prompt: Delete}\n  \
         - {eventType: pod-restart, agentId: kagent/reader, prompt: Look}\n  \
         - {eventType: pod-restart, agentId: own, prompt: Look}\n";
    world.control_plane.apply_in(&world.namespace, hook).await?;
    let own = format!("{}/own", world.namespace);
    let words = format!(
        "spec.eventConfigurations[0] names the agent kagent/admin, which Hooks of namespace {}",
        world.namespace
    );
    world
        .wait_until("mixed", "it is stalled", |status| {
            let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled")?;
            (stalled.reason == "AgentNotAllowed" && stalled.message.contains(&words)).then_some(())
        })
        .await?;
    world.crash("web-0").await?;
    world
        .wait_until("mixed", "both agents have answered", |status| {
            let answered = status.active_events.iter().filter(|entry| entry.outcome.is_some());
            (answered.count() == 2).then_some(())
        })
        .await?;
    let messages = world.messages();
    let agents: BTreeSet<&str> = messages.iter().map(|message| message.agent.as_str()).collect();
    ensure!(agents == [own.as_str(), "kagent/reader"].into(), "{agents:?}");
    drop(operator);

    // A setting that is narrowed takes away what was asked before, and says so; nobody is asked again.
    let operator = world.start(world.setup()?.env("ALLOWED_AGENTS", "{}")).await?;
    world
        .wait_until("mixed", "no incident is open", |status| {
            status.active_events.iter().all(|entry| entry.status == Phase::Resolved).then_some(())
        })
        .await?;
    world.crash("web-1").await?;
    world.hooks().delete("mixed", &DeleteParams::default()).await?;
    drop(operator);
    world.ensure_each_once(2)
}
