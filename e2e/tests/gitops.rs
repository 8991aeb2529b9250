//! Hooks in Git: nothing that khook does shows as a difference, and Argo CD and Flux see how a Hook is, by
//! their own libraries.

#![allow(missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, Fault},
    assets::Tool,
    objects,
    process::Scratch,
    wait::eventually,
    world::{PATIENCE, World},
};
use khook::hook::Phase;
use kube::core::TypeMeta;
use serde::Deserialize;
use serde_json::{Value, json};

/// The Hook of `examples/basic` as it stands in somebody's Git. It has an annotation: kubectl writes of a Hook
/// without one that it has an empty list of them, and takes that back in `diff --server-side`, whatever the kind.
fn in_git(name: &str) -> Result<Value> {
    let mut hook = objects::parse(&example("basic/hook.yaml")?)?.remove(0);
    hook["metadata"] = json!({"name": name, "annotations": {"example.com/team": "shop"}});
    Ok(hook)
}

fn example(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A Hook as the apiserver has it, with all that khook's types do not know.
async fn stored(world: &World, hook: &str) -> Result<Value> {
    let types = TypeMeta { api_version: "kagent.dev/v1alpha2".into(), kind: "Hook".into() };
    let hooks = objects::api(&world.client, &types, &world.namespace).await?;
    Ok(serde_json::to_value(hooks.get(hook).await.with_context(|| format!("Hook {hook}"))?)?)
}

/// Runs kubectl against the world's cluster and namespace.
async fn kubectl(world: &World, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(tokio::task::spawn_blocking(|| Tool::Kubectl.find_or_build()).await??);
    command.args(args).arg("--namespace").arg(&world.namespace);
    command.env("KUBECONFIG", world.control_plane.kubeconfig());
    // Its cache of what the server has, which is per home.
    command.env("HOME", world.control_plane.dir());
    tokio::task::spawn_blocking(move || command.output().context("running kubectl")).await?
}

/// The same, where it must succeed; answers what it prints.
async fn kubectl_ok(world: &World, args: &[&str]) -> Result<String> {
    let output = kubectl(world, args).await?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl {}: {}\n{out}\n{err}", args.join(" "), output.status);
    Ok(out.into_owned())
}

/// How a Hook in Git is applied: each way by another tool's habit.
const WAYS: [(&str, &[&str]); 3] = [
    ("by-kubectl", &["apply"]),
    ("by-kubectl-server", &["apply", "--server-side"]),
    ("by-argocd", &["apply", "--server-side", "--field-manager", "argocd-controller"]),
];

/// The arguments of the way of that Hook, for its file.
fn with<'a>(way: &[&'a str], file: &'a str) -> Vec<&'a str> {
    way.iter().copied().chain(["--filename", file]).collect()
}

/// `kubectl diff` finds nothing, compared as any of the tools does.
async fn ensure_no_difference(world: &World, file: &str) -> Result<()> {
    for way in [&[][..], &["--server-side"], &["--server-side", "--field-manager", "argocd-controller"]] {
        let output = kubectl(world, &with(&[&["diff"][..], way].concat(), file)).await?;
        let words =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(0),
            "kubectl diff {way:?} of {file}: {}\n{words}",
            output.status
        );
    }
    Ok(())
}

/// Waits until a Hook has no incident that would still change by itself soon.
async fn answered(world: &World, hook: &str, pod: &str) -> Result<()> {
    world.wait_answered(hook, pod).await?;
    world.wait_for(hook, pod, Phase::Notified).await.map(drop)
}

#[tokio::test]
async fn a_hook_in_git_shows_no_difference_after_khook_has_run_however_it_is_applied() -> Result<()> {
    let world = World::alone("git").await?;
    // Long enough that the incident stands while everything is compared.
    let operator =
        world.start(world.setup()?.env("RESOLVE_TIMEOUT", "10m").env("REPEAT_INTERVAL", "10m")).await?;
    let scratch = Scratch::new()?;
    let mut files = BTreeMap::new();
    for (hook, way) in WAYS {
        let path = scratch.path().join(format!("{hook}.json"));
        fs::write(&path, in_git(hook)?.to_string())?;
        let file = path.display().to_string();
        kubectl_ok(&world, &with(way, &file)).await?;
        files.insert(hook, file);
    }
    world.crash("web-0").await?;
    for (hook, way) in WAYS {
        let file = &files[hook];
        answered(&world, hook, "web-0").await.with_context(|| format!("{hook} was not applied"))?;
        ensure_no_difference(&world, file).await?;
        // What was written, and not a field more.
        let before = stored(&world, hook).await?;
        ensure!(before["spec"] == in_git(hook)?["spec"], "{hook}: {:#}", before["spec"]);
        ensure!(before["metadata"]["generation"] == 1, "{hook}: {:#}", before["metadata"]);

        operator.pause()?;
        let before = stored(&world, hook).await?;
        kubectl_ok(&world, &with(way, file)).await?;
        let after = stored(&world, hook).await?;
        operator.resume()?;
        ensure!(before == after, "{hook}, applied again, changed from\n{before:#}\nto\n{after:#}");
    }
    // A difference would be seen.
    let (file, mut changed) = (&files["by-argocd"], in_git("by-argocd")?);
    changed["spec"]["suspend"] = json!(false);
    fs::write(file, changed.to_string())?;
    ensure!(ensure_no_difference(&world, file).await.is_err(), "a change in Git is no difference");
    Ok(())
}

#[tokio::test]
async fn a_status_in_git_disturbs_nothing() -> Result<()> {
    let world = World::alone("status-in-git").await?;
    let operator =
        world.start(world.setup()?.env("RESOLVE_TIMEOUT", "10m").env("REPEAT_INTERVAL", "10m")).await?;
    let scratch = Scratch::new()?;
    // As somebody exported it from another cluster, with an incident that never was here.
    let status = json!({
        "message": "from Git", "observedGeneration": 7, "active": 1,
        "conditions": [{"type": "Stalled", "status": "True", "reason": "Odd", "message": "from Git",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "activeEvents": [{"eventType": "pod-restart", "resourceName": "web-0", "status": "notified",
            "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z"}],
    });
    for (hook, way) in WAYS {
        let mut git = in_git(hook)?;
        git["status"] = status.clone();
        let path = scratch.path().join(format!("{hook}.json"));
        fs::write(&path, git.to_string())?;
        let file = path.display().to_string();
        kubectl_ok(&world, &with(way, &file)).await?;
        let pod = format!("pod-{hook}");
        world.crash(&pod).await?;
        answered(&world, hook, &pod).await?;
        ensure_no_difference(&world, &file).await?;
        operator.pause()?;
        let before = stored(&world, hook).await?;
        kubectl_ok(&world, &with(way, &file)).await?;
        let after = stored(&world, hook).await?;
        operator.resume()?;
        ensure!(
            before["status"] == after["status"],
            "{hook}: {:#} became {:#}",
            before["status"],
            after["status"]
        );
        ensure!(
            !after.to_string().contains(r#""message":"from Git""#) || way.len() == 1,
            "{hook}: {after:#}"
        );
        let after = world.status(hook).await?;
        ensure!(after.active_events.iter().all(|entry| entry.resource_name != "web-0"), "{hook}: {after:?}");
        world.crash(&format!("{pod}-next")).await?;
        answered(&world, hook, &format!("{pod}-next")).await?;
    }
    Ok(())
}

/// What the tools think of a Hook.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Health {
    argo: String,
    argo_message: String,
    kstatus: String,
    flux: String,
}

/// What Argo CD's script, kstatus and Flux's expressions say of these Hooks.
async fn health(hooks: &BTreeMap<&str, Value>) -> Result<BTreeMap<String, Health>> {
    let flux = objects::parse(&example("gitops/flux/cluster.yaml")?)?;
    let expressions = flux.iter().find_map(|object| object["spec"]["healthCheckExprs"].get(0));
    let expressions = expressions.context("no healthCheckExprs")?;
    ensure!(expressions["kind"] == "Hook", "{expressions}");
    let input =
        json!({"lua": example("gitops/argocd/health.lua")?, "expressions": expressions, "objects": hooks});
    let program = tokio::task::spawn_blocking(|| Tool::Health.find_or_build()).await??;
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // It reads all before it writes.
    child.stdin.take().context("a pipe")?.write_all(input.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn argo_cd_and_flux_see_how_a_hook_is() -> Result<()> {
    let world = World::alone("health").await?;
    let mut seen = BTreeMap::new();
    world.hook("shop", &["pod-restart"]).await?;
    seen.insert("not seen yet", stored(&world, "shop").await?);

    let operator = world.operator().await?;
    world.wait_until("shop", "it is seen", |status| status.observed_generation).await?;
    seen.insert("listening", stored(&world, "shop").await?);

    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    seen.insert("with an incident", stored(&world, "shop").await?);

    world.agent.set(Behaviour::default().on_session(Fault::status(503)));
    world.crash("web-1").await?;
    let is = |hook: &Value, type_: &str, status: &str| {
        let conditions = hook["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == type_ && c["status"] == status))
    };
    let away = eventually("the agent to be seen away", PATIENCE, async || {
        let hook = stored(&world, "shop").await?;
        ensure!(is(&hook, "AgentReachable", "False"), "{:#}", hook["status"]);
        Ok(hook)
    });
    seen.insert("whose agent is away", away.await?);
    world.agent.heal();

    world.hook("broken", &["oom-kill"]).await?;
    let prompt = |text: &str| json!({"spec": {"eventConfigurations": [{"eventType": "oom-kill", "agentId": "a", "prompt": text}]}});
    world.patch("broken", prompt("Look at {{.ResourceName")).await?;
    let stalled = eventually("the Hook to be stalled", PATIENCE, async || {
        let hook = stored(&world, "broken").await?;
        ensure!(is(&hook, "Stalled", "True"), "{:#}", hook["status"]);
        Ok(hook)
    });
    seen.insert("stalled", stalled.await?);

    operator.pause()?;
    world.patch("broken", prompt("Look at {{.ResourceName}}")).await?;
    seen.insert("mended, and not seen again yet", stored(&world, "broken").await?);
    operator.resume()?;
    let generation = world.hooks().get("broken").await?.metadata.generation;
    world
        .wait_until("broken", "it is seen again", |status| {
            (status.observed_generation == generation).then_some(())
        })
        .await?;
    seen.insert("mended", stored(&world, "broken").await?);

    let suspended = world.patch("broken", json!({"spec": {"suspend": true}})).await?.metadata.generation;
    world
        .wait_until("broken", "it is suspended", |status| {
            (status.observed_generation == suspended).then_some(())
        })
        .await?;
    seen.insert("suspended", stored(&world, "broken").await?);

    let expected = [
        // kstatus takes what has no status for ready: the expressions are there for that.
        ("not seen yet", "Progressing", "Current", "Unknown", "has not looked"),
        ("listening", "Healthy", "Current", "Current", "watching"),
        ("with an incident", "Healthy", "Current", "Current", "pod-restart on web-0"),
        ("whose agent is away", "Healthy", "Current", "Current", "agent not reached: kagent/k8s-agent: "),
        ("stalled", "Degraded", "Failed", "Failed", "PromptInvalid: spec.eventConfigurations[0].prompt"),
        ("mended, and not seen again yet", "Progressing", "InProgress", "InProgress", "has not looked"),
        ("mended", "Healthy", "Current", "Current", "watching"),
        ("suspended", "Suspended", "Current", "Current", "no agent is called"),
    ];
    let told = health(&seen).await?;
    ensure!(told.len() == expected.len(), "{told:?}");
    for (name, argo, kstatus, flux, message) in expected {
        let health = &told[name];
        ensure!(
            (&*health.argo, &*health.kstatus, &*health.flux) == (argo, kstatus, flux),
            "{name}: {health:?}"
        );
        ensure!(health.argo_message.contains(message), "{name}: {health:?}");
    }
    Ok(())
}

#[test]
fn the_script_in_the_config_map_is_the_one_that_is_tested() -> Result<()> {
    let config = objects::parse(&example("gitops/argocd/argocd-cm.yaml")?)?.remove(0);
    let script = config["data"]["resource.customizations.health.kagent.dev_Hook"].as_str();
    ensure!(script == Some(example("gitops/argocd/health.lua")?.as_str()), "{script:?}");
    Ok(())
}
