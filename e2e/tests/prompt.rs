//! What khook says at the prompt about a cluster, on a real control plane: with a real khook, incidents in each
//! phase, and an agent whose answers want to do something to the terminal.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use e2e::{
    agent::Behaviour,
    control_plane::ControlPlane,
    pods::{pod, pods, restarted, running},
    prompt::{Prompt, Said},
    wait::eventually,
    world::{PATIENCE, World},
};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease};
use khook::hook::{Phase, Reason};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// What an agent must not be able to do to who reads its answer.
const ANSWER: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}The limit is\ntoo \u{202e}low.";

/// What khook has kept of it; commands take out what is left, as their own tests show.
const KEPT: &str = "[2J]0;ownedThe limit is\ntoo low.";

#[tokio::test]
async fn each_command_tells_what_is_and_each_error_what_to_do() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let prompt = Prompt::at(&control_plane.kubeconfig())?;
    without_a_definition(&prompt).await?;
    control_plane.apply(&serde_json::to_string(&khook::hook::crd())?).await.context("the CRD")?;

    let namespace = control_plane.fresh_namespace("prompt").await?;
    let agent = e2e::agent::Agent::spawn().await?;
    agent.set(Behaviour::default().answers(|_| ANSWER.to_owned()));
    let world = World::with(control_plane, agent.into(), namespace).await?;
    // What comes to stand stays as it is until the test is over.
    let mut setup = world.setup()?;
    for (name, value) in
        [("HOLD_SCALE", "1"), ("REPEAT_INTERVAL", "1h"), ("RESOLVE_TIMEOUT", "1h"), ("RUNNING_HOLD", "1h")]
    {
        setup = setup.env(name, value);
    }
    let (health, metrics) = (setup.health_port(), setup.metrics_port());
    let operator = world.start(setup).await?;
    play(&world).await?;

    statuses(&prompt, &world).await?;
    describes(&prompt, &world).await?;
    follows(&prompt, &world).await?;
    deployment(&world).await?;
    explains(&prompt, &world).await?;
    examines(&prompt, &world, health, metrics).await?;
    refuses(&prompt, &world).await?;
    draws(&prompt, &world).await?;

    // khook is gone, and its Lease says so.
    operator.kill()?;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let past = json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
    leases.patch(&world.namespace, &PatchParams::default(), &Patch::Merge(past)).await?;
    let doctor = in_(&prompt, &world, &["doctor"]).await?;
    ensure!(doctor.code == 1 && doctor.stdout.contains("has not renewed it for"), "{doctor:?}");
    pod(&world, "late", restarted("OOMKilled")).await?;
    let late = in_(&prompt, &world, &["explain", "pod/late"]).await?;
    ensure!(late.stdout.contains("NotRunning: khook does not work"), "{late:?}");
    Ok(())
}

/// Trouble, until there is an incident in each phase but firing, which does not last.
async fn play(world: &World) -> Result<()> {
    world.hook("shop", &["oom-kill"]).await?;
    world.hook_with("patient", &["pod-restart"], "for: 1h").await?;
    let suspended = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "paused"},
        "spec": {"suspend": true, "eventConfigurations": [
            {"eventType": "pod-restart", "agentId": "other", "prompt": "Look"}]}});
    world.control_plane.apply_in(&world.namespace, &suspended.to_string()).await?;
    for hook in ["shop", "patient", "paused"] {
        world.wait_until(hook, "it listens", |status| status.last_updated).await?;
    }
    pod(world, "gone", restarted("OOMKilled")).await?;
    world.wait_answered("shop", "gone").await?;
    pods(world).delete("gone", &DeleteParams::default()).await?;
    world.wait_for("shop", "gone", Phase::Resolved).await?;
    pod(world, "well", running()).await?;
    pod(world, "big", restarted("OOMKilled")).await?;
    world.wait_answered("shop", "big").await?;
    let mut looping = restarted("Error");
    looping["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    // Stamps have whole seconds: so that it is surely not of the same as the one before.
    looping["lastState"]["terminated"]["finishedAt"] = json!(Utc::now() - Duration::from_secs(30));
    pod(world, "crash", looping).await?;
    for (hook, reason) in [("patient", Reason::Holding), ("paused", Reason::Suspended)] {
        world
            .wait_until(hook, "it waits", |status| {
                status.active_events.iter().find(|entry| entry.reason == Some(reason)).map(drop)
            })
            .await?;
    }
    Ok(())
}

/// As typed in the world's namespace.
async fn in_(prompt: &Prompt, world: &World, args: &[&str]) -> Result<Said> {
    prompt.run(&[args, &["-n", &world.namespace]].concat()).await
}

async fn parsed(prompt: &Prompt, world: &World, args: &[&str]) -> Result<Value> {
    let said = in_(prompt, world, &[args, &["-o", "json"]].concat()).await?;
    serde_json::from_str(&said.stdout).with_context(|| format!("{args:?}: {said:?}"))
}

/// What was said, with what differs from run to run replaced, and columns closed up.
fn shows(name: &str, world: &World, said: &Said) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.add_filter(&world.namespace, "prompt-x");
    settings.add_filter(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[uuid]");
    settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]");
    settings.add_filter(r"\d{4}-\d\d-\d\d", "[day]");
    settings.add_filter(r"at \d\d:\d\d:\d\dZ", "at [time]");
    settings.add_filter(r"\b(\d+m)?\d+s\b", "[age]");
    settings.add_filter(r"127\.0\.0\.1:\d+", "[address]");
    settings.add_filter(r"\b[0-9a-f]{10}\b", "[id]");
    settings.add_filter(r"(\S) {2,}", "$1  ");
    settings.bind(|| insta::assert_snapshot!(name, format!("{}--\n{}", said.stdout, said.stderr)));
}

async fn without_a_definition(prompt: &Prompt) -> Result<()> {
    for args in [&["status"] as &[&str], &["status", "-A"], &["describe", "x"], &["explain", "pod/x"]] {
        let said = prompt.run(args).await?;
        ensure!(said.code == 1 && said.stdout.is_empty(), "{args:?}: {said:?}");
        ensure!(said.stderr.contains("khook crds | kubectl apply"), "{args:?}: {said:?}");
    }
    let doctor = prompt.run(&["doctor"]).await?;
    ensure!(doctor.code == 1, "{doctor:?}");
    ensure!(
        doctor.stdout.contains("✗ definition: the CustomResourceDefinition hooks.kagent.dev is missing"),
        "{doctor:?}"
    );
    Ok(())
}

async fn statuses(prompt: &Prompt, world: &World) -> Result<()> {
    let said = in_(prompt, world, &["status"]).await?;
    ensure!(said.code == 0 && !said.stdout.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
    shows("prompt-status", world, &said);
    shows("prompt-status-wide", world, &prompt.run(&["status", "-A", "-o", "wide"]).await?);

    let all = parsed(prompt, world, &["status"]).await?;
    let phases: Vec<&str> =
        all["incidents"].as_array().unwrap().iter().filter_map(|i| i["phase"].as_str()).collect();
    // An OOM kill is a restart to who listens only to that.
    let order = [vec!["pending"; 4], vec!["notified"], vec!["resolved"; 3]].concat();
    assert_eq!(phases, order, "{all:#}");
    assert_eq!((&all["hooks"], &all["phases"]["pending"]), (&json!(3), &json!(4)));
    assert_eq!(
        (&all["incidents"][0]["observe"], &all["incidents"][4]["answer"]),
        (&json!(false), &json!(KEPT))
    );
    let yaml: Value = serde_yaml_of(&in_(prompt, world, &["status", "-o", "yaml"]).await?.stdout)?;
    assert_eq!(yaml["incidents"].as_array().unwrap().len(), order.len());

    // What is wanted, and how it may be written.
    for (args, pods) in [
        (&["status", "hook/shop"] as &[&str], vec!["big", "gone"]),
        (&["status", "--phase", "notified,firing"], vec!["big"]),
        (&["status", "--type", "pod-restart", "--agent", "other"], vec!["big", "crash", "gone"]),
        (&["status", "shop", "--agent", "kagent/k8s-agent", "--phase=resolved"], vec!["gone"]),
    ] {
        let some = parsed(prompt, world, args).await?;
        let found: Vec<&str> =
            some["incidents"].as_array().unwrap().iter().filter_map(|i| i["pod"].as_str()).collect();
        assert_eq!(found, pods, "{args:?}");
    }
    let none = in_(prompt, world, &["status", "--phase", "firing"]).await?;
    assert_eq!(
        (none.code, none.stdout.as_str(), none.stderr.as_str()),
        (0, "", "3 Hooks, no incidents of these\n")
    );
    let wrong = in_(prompt, world, &["status", "--phase", "done"]).await?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("firing"), "{wrong:?}");
    Ok(())
}

fn serde_yaml_of(text: &str) -> Result<Value> {
    e2e::objects::parse(text)?.pop().context("no document")
}

/// --watch goes on with what changes.
async fn follows(prompt: &Prompt, world: &World) -> Result<()> {
    let mut command = prompt.command(&["status", "shop", "--watch", "-n", &world.namespace]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || -> Result<String> {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("no more lines")??;
        line.context("the watch has ended")
    };
    ensure!(next().await?.starts_with("HOOK "));
    let (first, second) = (next().await?, next().await?);
    ensure!(first.contains("big") && second.contains("gone"), "{first}\n{second}");
    pod(world, "new", restarted("OOMKilled")).await?;
    let mut line = next().await?;
    while !line.contains("The limit is too low.") {
        ensure!(line.contains(" new "), "only what changes is told: {line}");
        line = next().await?;
    }
    child.kill().await?;
    Ok(())
}

async fn describes(prompt: &Prompt, world: &World) -> Result<()> {
    let said = in_(prompt, world, &["describe", "hook/patient"]).await?;
    ensure!(said.code == 0 && !said.stdout.contains('\u{1b}'), "{said:?}");
    shows("prompt-describe", world, &said);
    let shop = in_(prompt, world, &["describe", "shop"]).await?;
    ensure!(shop.stdout.contains("ownedThe limit is\n      too low."), "{shop:?}");
    ensure!(shop.stdout.contains("AgentCallSuccess"), "no Events: {shop:?}");
    let json = parsed(prompt, world, &["describe", "patient"]).await?;
    assert_eq!(json["configurations"][0]["for"], "1h");
    let newest = json["incidents"].as_array().and_then(|all| all.last()).context("no incident")?;
    assert_eq!((&newest["pod"], &newest["reason"]), (&json!("crash"), &json!("Holding")));
    ensure!(newest["stands"]["until"].is_string(), "{json:#}");
    ensure!(!json["conditions"].as_array().unwrap().is_empty() && json["events"].is_array(), "{json:#}");
    Ok(())
}

/// A Deployment as the chart has it, of which there is no pod: the test's khook is a process.
async fn deployment(world: &World) -> Result<()> {
    let namespace = &world.namespace;
    let labels = json!({"app.kubernetes.io/name": "khook"});
    let env = json!([
        {"name": "LEASE_NAME", "value": namespace}, {"name": "LEASE_NAMESPACE", "value": namespace},
        {"name": "REPEAT_INTERVAL", "value": "1h"}, {"name": "KAGENT_BASE_URL", "value": world.agent.url()},
        {"name": "KAGENT_API_KEY", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}},
    ]);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "khook", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "serviceAccountName": "khook", "containers": [{"name": "manager", "image": "khook:test", "env": env}]}}}});
    world.control_plane.apply_in(namespace, &deployment.to_string()).await?;
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), namespace);
    let ready = json!({"status": {"replicas": 1, "readyReplicas": 1}});
    api.patch_status("khook", &PatchParams::default(), &Patch::Merge(ready)).await?;
    Ok(())
}

async fn explains(prompt: &Prompt, world: &World) -> Result<()> {
    shows("prompt-explain", world, &in_(prompt, world, &["explain", "pod/crash"]).await?);
    let rules = async |pod: &str| -> Result<(i32, Vec<String>)> {
        let said = in_(prompt, world, &["explain", pod, "-o", "json"]).await?;
        let json: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        ensure!(json["operator"].as_str().is_some_and(|told| told.contains("holds Lease")), "{json:#}");
        let findings = json["findings"].as_array().cloned().unwrap_or_default();
        Ok((said.code, findings.iter().map(|f| f["rule"].as_str().unwrap_or_default().to_owned()).collect()))
    };
    assert_eq!(rules("big").await?, (0, ["Asked", "Waiting", "Waiting"].map(str::to_owned).into()));
    assert_eq!(rules("pods/crash").await?, (0, vec!["Waiting".into(), "Waiting".into()]));
    assert_eq!(rules("gone").await?, (0, vec!["Resolved".into(); 3]));
    assert_eq!(rules("well").await?, (0, vec!["NothingWrong".into()]));
    assert_eq!(rules("nobody").await?, (1, vec!["Unknown".into()]));
    // No Hook here listens to that, and the pod is real.
    let pending = json!({"state": {"waiting": {"reason": "ErrImagePull"}}, "ready": false});
    pod(world, "stuck", pending).await?;
    ensure!(rules("stuck").await?.1.contains(&"NotListened".to_owned()));
    let old = Utc::now() - Duration::from_secs(3600);
    let old = json!({"restartCount": 1, "state": {"running": {"startedAt": old}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": old}}});
    pod(world, "old", old).await?;
    ensure!(rules("old").await?.1.contains(&"Stale".to_owned()));
    let kind = in_(prompt, world, &["explain", "deploy/web"]).await?;
    ensure!(kind.code == 1 && kind.stderr.contains("write pod/NAME or NAME"), "{kind:?}");
    Ok(())
}

async fn examines(prompt: &Prompt, world: &World, health: u16, metrics: u16) -> Result<()> {
    // From outside: the Deployment's account has no rights yet, no pod of it runs.
    let outside = in_(prompt, world, &["doctor"]).await?;
    ensure!(outside.code == 1, "{outside:?}");
    shows("prompt-doctor", world, &outside);
    let json = parsed(prompt, world, &["doctor"]).await?;
    let result = |json: &Value, name: &str| {
        let checks = json["checks"].as_array().cloned().unwrap_or_default();
        checks.iter().find(|check| check["name"] == name).map(|check| check["result"].clone())
    };
    assert_eq!((&json["ok"], result(&json, "rights")), (&json!(false), Some(json!("failed"))));

    // From inside, with rights: all is well, or not to be known.
    let mut command = prompt.command(&["doctor", "--inside", "-o", "json", "-n", &world.namespace]);
    command.env("METRICS_PORT", metrics.to_string()).env("KAGENT_BASE_URL", world.agent.url());
    command.env("LEASE_NAME", &world.namespace).env("LEASE_NAMESPACE", &world.namespace);
    let inside = command.output().await?;
    let json: Value = serde_json::from_slice(&inside.stdout).with_context(|| format!("{inside:?}"))?;
    ensure!(inside.status.success() && json["ok"] == true, "{json:#}");
    for name in ["clock", "definition", "rights", "lease", "watches", "kagent", "hooks", "agents"] {
        assert_eq!(result(&json, name), Some(json!("ok")), "{name}: {json:#}");
    }

    // What `helm test` asks.
    let url = |port: u16, path: &str| format!("http://127.0.0.1:{port}{path}");
    let (ready, numbers) = (url(health, "/readyz"), url(metrics, "/metrics"));
    let tested = prompt.run(&["doctor", "--endpoint", &ready, "--endpoint", &numbers]).await?;
    ensure!(tested.code == 0 && tested.stdout.matches('✓').count() == 2, "{tested:?}");
    let missing = prompt.run(&["doctor", "--endpoint", &url(health, "/metrics")]).await?;
    ensure!(missing.code == 1 && missing.stdout.contains("HTTP 404"), "{missing:?}");

    // A Hook that somebody must mend, and a definition of another khook.
    let broken = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "broken"},
        "spec": {"eventConfigurations": [{"eventType": "oom-kill", "agentId": "a", "prompt": "Look at {{.Pod"}]}});
    world.control_plane.apply_in(&world.namespace, &broken.to_string()).await?;
    world.wait_until("broken", "it is seen", |status| status.last_updated).await?;
    let mut crd = khook::hook::crd();
    let schema = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
    let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
    spec.properties.as_mut().unwrap().remove("suspend");
    world.control_plane.apply(&serde_json::to_string(&crd)?).await?;
    // With another definition the apiserver serves no Hooks for a moment.
    eventually("both are told of", PATIENCE, async || {
        let said = in_(prompt, world, &["doctor"]).await?;
        let stalled = format!("✗ hooks: {}/broken is Stalled, PromptInvalid", world.namespace);
        ensure!(said.stdout.contains(&stalled), "{said:?}");
        ensure!(
            said.stdout.contains("✗ definition: ") && said.stdout.contains("lacks spec.suspend"),
            "{said:?}"
        );
        Ok(())
    })
    .await?;
    world.control_plane.apply(&serde_json::to_string(&khook::hook::crd())?).await?;
    eventually("all is as it was", PATIENCE, async || {
        match world.hooks().delete("broken", &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
        let said = in_(prompt, world, &["doctor"]).await?;
        ensure!(said.stdout.contains("✓ definition") && said.stdout.contains("✓ hooks: 3 Hooks"), "{said:?}");
        Ok(())
    })
    .await
}

async fn refuses(prompt: &Prompt, world: &World) -> Result<()> {
    let unknown = in_(prompt, world, &["describe", "nope"]).await?;
    ensure!(
        unknown.code == 1 && unknown.stderr.contains("there is no Hook nope in namespace"),
        "{unknown:?}"
    );
    ensure!(unknown.stderr.contains("there are patient, paused, shop"), "{unknown:?}");
    let nowhere = prompt.run(&["status", "-n", "nowhere"]).await?;
    ensure!(nowhere.code == 1 && nowhere.stderr.contains("there is no namespace nowhere"), "{nowhere:?}");
    let context = prompt.run(&["status", "--context", "nope"]).await?;
    ensure!(context.code == 1 && context.stderr.contains("nope"), "{context:?}");

    let stranger = world.control_plane.service_account_kubeconfig(&world.namespace, "stranger").await?;
    let stranger = Prompt::at(&stranger)?;
    for args in [&["status"] as &[&str], &["describe", "shop"], &["explain", "pod/big"]] {
        let said = in_(&stranger, world, args).await?;
        ensure!(said.code == 1 && said.stdout.is_empty(), "{args:?}: {said:?}");
        ensure!(said.stderr.contains("hooks.kagent.dev in namespace"), "{args:?}: {said:?}");
        ensure!(said.stderr.contains("you may not"), "{args:?}: {said:?}");
    }
    // Whoever may do little learns what could not be looked at.
    let doctor = in_(&stranger, world, &["doctor"]).await?;
    ensure!(doctor.stdout.contains("you may not list deployments.apps"), "{doctor:?}");

    let away = world.control_plane.dir().join("away");
    std::fs::write(
        &away,
        std::fs::read_to_string(world.control_plane.kubeconfig())?
            .replace(&world.control_plane.url(), "https://127.0.0.1:1"),
    )?;
    let away = Prompt::at(Path::new(&away))?;
    for args in [&["status"] as &[&str], &["explain", "pod/big"]] {
        let said = away.run(args).await?;
        ensure!(said.code == 1 && said.stderr.contains("the apiserver cannot be reached"), "{said:?}");
    }
    let doctor = away.run(&["doctor"]).await?;
    ensure!(doctor.code == 1 && doctor.stdout.starts_with("✗ apiserver: "), "{doctor:?}");
    Ok(())
}

/// Runs a command on a terminal of 24 lines, sends a signal once it has drawn, and prints all that came, then how
/// it ended.
const TERMINAL: &str = r#"
import fcntl, os, pty, signal, struct, sys, termios, time
how, wanted, argv = sys.argv[1], sys.argv[2].encode(), sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(argv[0], argv)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
seen, sent = b"", False
while True:
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    if not piece:
        break
    seen += piece
    if wanted in seen and not sent:
        sent = True
        os.write(terminal, b"\x03") if how == "key" else os.kill(pid, signal.SIGTERM)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.stdout.buffer.write(seen + b"\nended %d\n" % status)
"#;

async fn draws(prompt: &Prompt, world: &World) -> Result<()> {
    let piped = in_(prompt, world, &["top"]).await?;
    ensure!(piped.code == 1 && piped.stderr.contains("khook status --watch"), "{piped:?}");
    for (how, code) in [("key", 0), ("term", 143)] {
        let khook = prompt.path().join("khook");
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL, how, "big"]).arg(khook).args(["top", "-n", &world.namespace]);
        command.env("KUBECONFIG", world.control_plane.kubeconfig()).env("TERM", "xterm").kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("it does not end")??;
        let seen = String::from_utf8_lossy(&output.stdout).into_owned();
        let (drawn, end) = seen.rsplit_once("\nended ").context(seen.clone())?;
        assert_eq!(end.trim(), code.to_string(), "{seen:?}");
        ensure!(drawn.contains("\u{1b}[?1049h\u{1b}[?25l"), "no screen of its own: {seen:?}");
        // What it took it gives back, last of all.
        ensure!(drawn.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "the terminal is not restored: {seen:?}");
        ensure!(drawn.contains("3 Hooks, ") && drawn.contains("PHASE"), "{seen:?}");
        ensure!(!drawn.contains("\u{1b}[2J"), "the agent has cleared the screen: {seen:?}");
    }
    Ok(())
}
