//! What khook says before it does it, held against what it then does: the message it renders is the message it
//! sends, and a backtest names the calls it makes.

#![allow(missing_docs)]

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use e2e::{prompt::Prompt, world::World};
use k8s_openapi::api::core::v1::Pod;
use khook::hook::Phase;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// A pod of which a container was killed for its memory a moment ago, and runs again.
async fn killed(world: &World, name: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), &world.namespace);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "nowhere", "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "app", "image": "none"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ended =
        json!({"reason": "OOMKilled", "exitCode": 137, "finishedAt": Utc::now(), "startedAt": Utc::now()});
    let status = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "app", "image": "none", "imageID": "", "ready": true, "started": true, "restartCount": 1,
        "lastState": {"terminated": ended}, "state": {"running": {"startedAt": Utc::now()}},
    }]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_said_before_is_what_is_done() -> Result<()> {
    let world = World::new("rehearsal").await?;
    let prompt = Prompt::at(&world.control_plane.kubeconfig())?;
    world.hook("shop", &["oom-kill", "pod-restart"]).await?;
    killed(&world, "web").await?;
    // The pod itself is not there any more.
    let now = Utc::now();
    let event = world.crash_event("old").count(40).first_seen(now - TimeDelta::minutes(40)).at(now);
    let posted = event.post(&world.client).await?;
    let namespace = world.namespace.as_str();

    let said = prompt.ok(&["render", "hook/shop", "-n", namespace, "--from", "pod/web"]).await?;
    let request =
        prompt.ok(&["render", "hook/shop", "-n", namespace, "--from", "pod/web", "-o", "json"]).await?;
    let request: Value = serde_json::from_str(&request)?;
    let of_event = format!("event/{}", posted.name);
    let old = prompt.ok(&["render", "hook/shop", "-n", namespace, "--from", &of_event]).await?;
    ensure!(old.contains("Look at old: Back-off restarting") && old.contains("count: 40"), "{old}");
    let backtest = prompt.ok(&["backtest", "hook/shop", "-n", namespace, "-o", "json"]).await?;
    let text = prompt.ok(&["backtest", "hook/shop", "-n", namespace]).await?;

    let refused = prompt.run(&["render", "hook/shop", "-n", namespace, "--from", "pod/nobody"]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("there is no pod nobody"), "{refused:?}");
    let refused = prompt.run(&["render", "hook/nobody", "-n", namespace]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("nobody"), "{refused:?}");
    let refused = prompt.run(&["render", "hook/shop", "-n", namespace, "--from", "event/nobody"]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("no Warning nobody"), "{refused:?}");

    let operator = world.operator().await?;
    let entry = world.wait_for("shop", "web", Phase::Notified).await?;
    let messages = world.messages();
    let sent = messages.iter().find(|message| message.text.contains("resourceName: web"));
    let sent = sent.with_context(|| format!("nothing was sent about web: {messages:?}"))?;
    ensure!(said.trim_end() == sent.text.trim_end(), "render says\n{said}\nsent was\n{}", sent.text);
    let message = &request["params"]["message"];
    ensure!(message["parts"][0]["text"] == json!(sent.text), "{request}");
    ensure!(message["contextId"] == json!(entry.session_id), "{request}");
    drop(operator);

    let reports: Value = serde_json::from_str(&backtest)?;
    let calls = reports[0]["calls"].as_array().context("calls")?;
    let of = |pod: &str| calls.iter().filter(|call| call["pod"] == pod).collect::<Vec<_>>();
    ensure!(of("web").len() == 1 && of("web")[0]["eventType"] == "oom-kill", "{backtest}");
    // One in each of four intervals of ten minutes; at their edges one less or more.
    ensure!((3..=5).contains(&of("old").len()), "{backtest}");
    ensure!(of("old").iter().all(|call| call["uncertain"] == json!(true)), "{backtest}");
    for words in ["oom-kill", "old ?", "repeatInterval", "note: "] {
        ensure!(text.contains(words), "no {words:?} in\n{text}");
    }
    Ok(())
}
