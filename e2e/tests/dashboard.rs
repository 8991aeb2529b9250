//! The page, as a person has it: in a real browser, over a real control plane, with khook and an agent at work.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use e2e::agent::Behaviour;
use e2e::browser::{Browser, Look};
use e2e::process::{Process, Scratch, Spec, free_port};
use e2e::prompt::Prompt;
use e2e::stage::Stage;
use e2e::wait::eventually;
use e2e::world::{PATIENCE, World};
use khook::hook::Phase;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const PHONE: Look = Look { width: 360, height: 740, dark: false };

/// What an agent must not get past the page.
const ATTACK: &str =
    "</script><script>window.ran = true</script><img src=x onerror=\"window.ran = true\"> & so on";

/// `khook dashboard` as somebody runs it, again and again on the same port.
struct Served {
    process: Option<Process>,
    spec: Spec,
    url: String,
    _prompt: Prompt,
    scratch: Scratch,
}

impl Served {
    async fn start(world: &World) -> Result<Self> {
        let (port, scratch) = (free_port()?, Scratch::new()?);
        let prompt = Prompt::at(&world.control_plane.kubeconfig())?;
        let spec = Spec::new(prompt.path().join("khook"), scratch.path().join("dashboard.log"))
            .args(["dashboard", "-n", &world.namespace, "--port", &port.to_string()])
            .env("KUBECONFIG", world.control_plane.kubeconfig());
        let url = format!("http://127.0.0.1:{port}");
        let mut served = Self { process: None, spec, url, _prompt: prompt, scratch };
        served.again().await?;
        Ok(served)
    }

    fn stop(&mut self) {
        self.process = None;
    }

    async fn again(&mut self) -> Result<()> {
        self.process = Some(Process::spawn(&self.spec)?);
        let client = e2e::http_client()?;
        eventually("the page to be served", PATIENCE, async || {
            let answer = client.get(format!("{}/api/v1/hooks", self.url)).send().await?;
            let list: Value = serde_json::from_slice(&answer.bytes().await?)?;
            ensure!(list["state"]["listed"] == true, "{list}");
            Ok(())
        })
        .await
        .with_context(|| e2e::process::tail(&self.scratch.path().join("dashboard.log"), 10))
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("it is served")
    }
}

/// Every way to use the page without a mouse needs a name; every text must be readable on what it stands on.
const FAULTS: &str = r##"(() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const name = (e) => (e.getAttribute("aria-label") || (e.labels && [...e.labels].map((l) => l.textContent).join()) || e.textContent || e.alt || "").trim();
  for (const e of all("a, button, input, select, [role=img]")) if (!name(e)) faults.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of all("img")) if (!e.hasAttribute("alt")) faults.push("an image without alt");
  for (const [selector, count] of [["main", 1], ["header", 1], ["nav", 1], ["h1", 1]]) if (all(selector).length !== count) faults.push(`${all(selector).length} ${selector}`);
  if (!document.documentElement.lang || !document.title) faults.push("no language, or no title");
  for (const e of all("nav, section, dialog")) {
    const by = e.getAttribute("aria-labelledby");
    if (!e.getAttribute("aria-label") && !(by && (document.getElementById(by) || e.localName === "dialog" && !e.open))) faults.push(`a part without a name: ${e.outerHTML.slice(0, 80)}`);
  }
  let level = 0;
  for (const e of all("body > header :is(h1,h2,h3,h4), main :is(h1,h2,h3,h4)")) {
    const next = Number(e.localName[1]);
    if (next > level + 1) faults.push(`after h${level} comes ${e.outerHTML.slice(0, 60)}`);
    level = next;
  }
  const ids = all("[id]").map((e) => e.id);
  if (new Set(ids).size !== ids.length) faults.push("an id stands twice");
  const channels = (color) => {
    const parts = color.match(/[\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1 };
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  let looked = 0;
  for (const e of all("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || e.closest(".unseen, noscript, option, script") || !e.checkVisibility()) continue;
    let ground = e;
    while (ground && channels(getComputedStyle(ground).backgroundColor).alpha === 0) ground = ground.parentElement;
    const [a, b] = [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor].map((c) => light(channels(c).rgb)).sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    looked++;
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${e.outerHTML.slice(0, 90)}`);
  }
  if (looked < 30) faults.push(`only ${looked} texts were looked at`);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) faults.push(`${wide} px wider than the window`);
  return faults;
})()"##;

async fn ensure_usable(browser: &mut Browser, how: &str) -> Result<()> {
    let faults = browser.eval(FAULTS).await?;
    ensure!(faults == json!([]), "{how}: {faults:#}");
    Ok(())
}

fn card(pod: &str) -> String {
    format!(
        "[...document.querySelectorAll('.card')].find((card) => card.querySelector('a').textContent === '{pod}')"
    )
}

async fn wait_lane(browser: &mut Browser, pod: &str, phase: Phase) -> Result<()> {
    let there = format!("{}?.parentElement.id === '{phase}'", card(pod));
    browser.wait(&format!("the card of {pod} among the {phase}"), &there).await
}

#[tokio::test]
async fn an_incident_moves_on_the_page_and_what_the_agent_said_stays_text() -> Result<()> {
    let world = Stage::shared().await?.world("page").await?;
    let agent = format!("{}/attacker", world.namespace);
    // The call itself waits, so that the incident stands in each phase until it has been seen there.
    world.agent.set_for(&agent, Behaviour::default().held().blocks().answers(|_| ATTACK.into()));
    world.hook_asking("shop", &agent, &["pod-restart"], "for: 3s").await?;
    let (served, browser) = tokio::join!(Served::start(&world), Browser::start());
    let (mut served, mut browser) = (served?, browser?);
    browser.look(Look::DESK).await?;
    browser.open(&served.url).await?;
    browser.wait("the page to be live", "document.getElementById('state').textContent === 'Live'").await?;

    // It appears and walks, and the page is never loaded again.
    browser.eval("window.marker = 1").await?;
    world.crash("web-0").await?;
    wait_lane(&mut browser, "web-0", Phase::Pending).await?;
    // With the keyboard alone, and the focus goes where the card goes.
    let focused = format!("document.activeElement === {}?.querySelector('a')", card("web-0"));
    for _ in 0..20 {
        if browser.eval(&focused).await? == true {
            break;
        }
        browser.press("Tab").await?;
    }
    browser.wait("Tab to lead to the card", &focused).await?;
    wait_lane(&mut browser, "web-0", Phase::Firing).await?;
    ensure!(browser.eval(&focused).await? == true, "the focus was lost when the card moved");
    browser.press("Enter").await?;
    browser.wait("the dialog", "document.getElementById('dialog').open").await?;
    let answer = "document.querySelector('#detail .answer')?.textContent";
    ensure!(browser.eval(answer).await?.is_null(), "there is no answer yet");
    eventually("the run to be released", PATIENCE, async || {
        ensure!(world.agent.release() > 0, "nothing is held");
        Ok(())
    })
    .await?;
    wait_lane(&mut browser, "web-0", Phase::Notified).await?;
    let answered = format!("({answer} ?? '').startsWith('</script><script>')");
    browser.wait("the answer in the open dialog", &answered).await?;
    let text = browser.eval("document.getElementById('detail').textContent").await?.to_string();
    for part in
        ["first seen", "agent asked", "answered: Completed", "Look at web-0", "BEGIN CLUSTER DATA", "onerror"]
    {
        ensure!(text.contains(part), "no {part:?} in the dialog: {text}");
    }
    ensure_usable(&mut browser, "with the dialog").await?;
    browser.press("Escape").await?;
    browser
        .wait(
            "Escape to close it, and the focus to be back",
            &format!("!document.getElementById('dialog').open && {focused}"),
        )
        .await?;
    ensure!(
        browser
            .eval("window.ran === undefined && document.querySelectorAll('img[src=x]').length === 0")
            .await?
            == true,
        "the answer ran"
    );
    // What is not asked about any more is over.
    world.hook_asking("shop", &agent, &["oom-kill"], "").await?;
    wait_lane(&mut browser, "web-0", Phase::Resolved).await?;
    ensure!(
        browser.eval("document.querySelector('[data-count=resolved]').textContent").await? == "1",
        "the count"
    );
    browser
        .wait("the agent's tile", "document.querySelector('#agent-list .big')?.textContent === '100 %'")
        .await?;
    ensure!(browser.complaints().await? == Vec::<String>::new(), "the page complains");

    for (how, look) in [
        ("in light", Look::DESK),
        ("in dark", Look { dark: true, ..Look::DESK }),
        ("on a phone", PHONE),
        ("on a phone in dark", Look { dark: true, ..PHONE }),
    ] {
        browser.look(look).await?;
        ensure_usable(&mut browser, how).await?;
    }
    let dark = "getComputedStyle(document.body).backgroundColor";
    let night = browser.eval(dark).await?;
    browser.look(Look::DESK).await?;
    ensure!(browser.eval(dark).await? != night, "dark is as light");

    // The server goes, something happens, and another one comes: the page has it all, by itself.
    served.stop();
    browser
        .wait("the page to say so", "document.getElementById('state').textContent.startsWith('Reconnecting')")
        .await?;
    world.agent.set_for(&agent, Behaviour::default());
    world.hook_asking("shop", &agent, &["pod-restart"], "for: 0s").await?;
    world.crash("web-1").await?;
    world.wait_for("shop", "web-1", Phase::Notified).await?;
    served.again().await?;
    wait_lane(&mut browser, "web-1", Phase::Notified).await?;
    browser
        .wait("the page to be live again", "document.getElementById('state').textContent === 'Live'")
        .await?;
    // What is gone goes.
    world.hooks().delete("shop", &Default::default()).await?;
    browser.wait("no card", "document.querySelectorAll('.card, .tile').length === 0").await?;
    ensure!(browser.eval("window.marker").await? == 1, "the page was loaded again");
    Ok(())
}

#[tokio::test]
async fn the_operator_serves_the_same_where_it_is_told_to() -> Result<()> {
    let world = World::alone("own").await?;
    let port = free_port()?;
    let operator = world.start(world.setup()?.env("DASHBOARD_PORT", port)).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_answered("shop", "web-0").await?;
    let client = e2e::http_client()?;
    let incidents = format!("http://127.0.0.1:{port}/api/v1/incidents?namespace={}", world.namespace);
    eventually("the answer in the API", PATIENCE, async || {
        let list: Value = serde_json::from_slice(&client.get(&incidents).send().await?.bytes().await?)?;
        ensure!(list["items"][0]["outcome"] == "Completed" && list["items"][0]["pod"] == "web-0", "{list:#}");
        Ok(())
    })
    .await?;
    // Its own watch is what it says.
    world.control_plane.stop_apiserver()?;
    eventually("that the watch broke off", PATIENCE, async || {
        let list: Value = serde_json::from_slice(&client.get(&incidents).send().await?.bytes().await?)?;
        ensure!(list["state"]["broken"][0]["watch"] == "hooks", "{}", list["state"]);
        ensure!(list["items"][0]["pod"] == "web-0", "what was known is still shown");
        Ok(())
    })
    .await?;
    world.control_plane.start_apiserver().await?;
    eventually("that it works again", PATIENCE, async || {
        let list: Value = serde_json::from_slice(&client.get(&incidents).send().await?.bytes().await?)?;
        ensure!(list["state"]["broken"] == json!([]), "{}", list["state"]);
        Ok(())
    })
    .await?;
    // A stream that is read does not hold it up.
    let stream = client.get(format!("http://127.0.0.1:{port}/api/v1/stream")).send().await?;
    operator.terminate()?;
    ensure!(operator.wait_exit(PATIENCE).await? == 0, "{}", operator.log_tail(10));
    drop(stream);
    Ok(())
}

/// A Hook as khook might have left it.
async fn scene(world: &World, name: &str, spec: Value, status: Value) -> Result<()> {
    let hook = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": name}, "spec": spec});
    world.control_plane.apply_in(&world.namespace, &hook.to_string()).await?;
    world
        .hooks()
        .patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
        .await?;
    Ok(())
}

fn ago(minutes: i64) -> String {
    (Utc::now() - TimeDelta::minutes(minutes)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn entry(
    id: usize,
    kind: &str,
    pod: &str,
    agent: &str,
    (phase, reason): (&str, &str),
    minutes: i64,
    more: Value,
) -> Value {
    let mut entry = json!({
        "id": format!("{id:010x}"), "eventType": kind, "resourceName": pod, "namespace": "shop", "agent": agent,
        "status": phase, "reason": reason, "message": "", "firstSeen": ago(minutes), "lastSeen": ago(minutes / 3),
        "count": 1 + id % 4, "window": 1, "attempts": 1, "containers": ["web"], "dueAt": ago(minutes - 1),
        "eventName": format!("{pod}.17a2"), "eventReason": "BackOff",
        "eventMessage": format!("Back-off restarting failed container web in pod {pod}"),
    });
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

fn answered(minutes: i64, outcome: &str, answer: &str) -> Value {
    json!({"outcome": outcome, "answer": answer, "notifiedAt": ago(minutes), "lastNotifiedAt": ago(minutes),
        "answeredAt": ago(minutes - 2), "tokens": {"prompt": 5200, "answer": 640, "total": 5840},
        "sessionId": "8c1f0d1e-52c4-5d8e-9a1b-0c8b8d3f2a10", "sessionUrl": "https://kagent.example.com/agents/kagent/k8s-agent/chat/8c1f0d1e",
        "message": format!("kagent/k8s-agent answered: {answer}")})
}

fn days(calls: [i64; 7]) -> Value {
    let day = |back: i64| (Utc::now() - TimeDelta::days(back)).date_naive().to_string();
    (0..7).rev().zip(calls).map(|(back, calls)| json!({"day": day(back), "calls": calls})).collect()
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True", "reason": "Listening", "message": "listening", "lastTransitionTime": ago(600)}])
}

fn asks(agent: &str, kinds: &[&str]) -> Value {
    let prompt = "Container {{.Container}} of pod {{.ResourceName}} restarts: {{.EventMessage}}\nRead its last log, and say what is wrong and how to mend it.";
    json!(
        kinds
            .iter()
            .map(|kind| json!({"eventType": kind, "agentId": agent, "prompt": prompt}))
            .collect::<Vec<_>>()
    )
}

/// `just pictures` writes docs/images; as a test of its own it is run with the long ones.
#[tokio::test]
#[ignore = "makes the pictures of the documentation"]
async fn pictures() -> Result<()> {
    let mut world = World::alone("shop").await?;
    // In pictures, a name that people would give.
    world.namespace = "shop".into();
    world.control_plane.create_namespace("shop").await?;
    let k8s = "kagent/k8s-agent";
    let answer = "The container web exits with code 137: its limit of 256Mi is less than the heap that JAVA_OPTS asks for (-Xmx512m).\nRaise resources.limits.memory to 768Mi, or set -Xmx to 192m.\n\n  kubectl -n shop set resources deploy/web --limits=memory=768Mi";
    scene(&world, "watch-my-pods", json!({"eventConfigurations": asks(k8s, &["pod-restart", "oom-kill"])}), json!({
        "agents": k8s, "conditions": ready(), "callsPerDay": days([4, 2, 9, 3, 1, 6, 5]),
        "message": "oom-kill on web-6d5f9c-x2x9p: kagent/k8s-agent answered",
        "activeEvents": [
            entry(1, "oom-kill", "web-6d5f9c-x2x9p", k8s, ("notified", "AgentCalled"), 14, answered(13, "Completed", answer)),
            entry(2, "pod-restart", "cart-7b9d4-hq8vz", k8s, ("firing", "Calling"), 2, json!({"message": "kagent/k8s-agent is being called"})),
            entry(3, "pod-restart", "search-0", k8s, ("resolved", "Recovered"), 55, answered(54, "Completed", "The index was locked by an older process; it is free again.")),
            entry(4, "oom-kill", "report-28891-7n2hx", k8s, ("resolved", "PodGone"), 130, answered(128, "Failed", "the model did not answer")),
            entry(10, "pod-restart", "example", k8s, ("pending", "WaitingForSlot"), 0, json!({"test": "try-1"})),
            entry(5, "pod-restart", "web-6d5f9c-tt4lm", k8s, ("notified", "AgentCalled"), 6, json!({"notifiedAt": ago(5), "lastNotifiedAt": ago(5), "message": "kagent/k8s-agent has it"})),
        ]})).await?;
    scene(&world, "slow-starts", json!({"eventConfigurations": asks("kagent/scheduler-agent", &["pod-pending", "probe-failed"])}), json!({
        "agents": "kagent/scheduler-agent", "conditions": ready(), "callsPerDay": days([0, 1, 0, 2, 3, 0, 1]),
        "message": "pod-pending on batch-9-l4k2d: waits until it has lasted 2m",
        "activeEvents": [
            entry(6, "pod-pending", "batch-9-l4k2d", "kagent/scheduler-agent", ("pending", "Holding"), 1, json!({"message": "waits until it has lasted 2m"})),
            entry(7, "probe-failed", "gateway-5c8f-2xkqp", "kagent/scheduler-agent", ("pending", "BackingOff"), 9, json!({"message": "the last attempt failed", "lastError": "kagent answered 503: no healthy upstream"})),
            entry(8, "probe-failed", "gateway-5c8f-9wz7d", "kagent/scheduler-agent", ("notified", "Acknowledged"), 31, json!({"notifiedAt": ago(30), "lastNotifiedAt": ago(30), "instruction": {"verb": "ack", "by": "dana@example.com", "at": ago(20)}, "message": "dana@example.com works on it"})),
        ]})).await?;
    scene(&world, "try-first", json!({"mode": "Observe", "eventConfigurations": asks("kagent/triage", &["pod-restart"])}), json!({
        "agents": "kagent/triage", "conditions": ready(), "callsPerDay": days([0, 0, 0, 0, 7, 5, 2]), "message": "observes: nobody is called",
        "activeEvents": [
            entry(9, "pod-restart", "mail-0", "kagent/triage", ("notified", "Observed"), 24, json!({"observed": true, "notifiedAt": ago(23), "lastNotifiedAt": ago(23)})),
        ]})).await?;
    scene(&world, "broken", json!({"eventConfigurations": asks("kagent/k8s-agent", &["oom-kill"])}), json!({
        "agents": "", "message": "stalled", "activeEvents": [], "conditions": [
            {"type": "Ready", "status": "False", "reason": "PromptInvalid", "message": "x", "lastTransitionTime": ago(90)},
            {"type": "Stalled", "status": "True", "reason": "PromptInvalid", "message": "spec.eventConfigurations[0].prompt: line 1, column 5: `{{.Pod`: unclosed action", "lastTransitionTime": ago(90)},
        ]})).await?;
    let served = Served::start(&world).await?;
    let mut browser = Browser::start().await?;
    let scratch = Scratch::new()?;
    let folder = match std::env::var_os("UPDATE_DOCS") {
        Some(_) => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/images")),
        None => scratch.path().to_owned(),
    };
    std::fs::create_dir_all(&folder)?;
    let desk = Look { width: 1280, height: 1180, dark: false };
    for (name, look, open) in [
        ("light", desk, false),
        ("dark", Look { dark: true, ..desk }, false),
        ("incident", Look { height: 860, ..desk }, true),
        ("phone", PHONE, false),
    ] {
        browser.look(look).await?;
        browser.open(&served.url).await?;
        browser
            .wait("the page to be live", "document.getElementById('state').textContent === 'Live'")
            .await?;
        if open {
            browser.eval(&format!("{}.querySelector('a').click()", card("web-6d5f9c-x2x9p"))).await?;
            browser.wait("the dialog", "document.getElementById('dialog').open").await?;
        }
        ensure_usable(&mut browser, name).await?;
        let picture = browser.picture().await?;
        ensure!(picture.len() < 200 * 1024, "{name} has {} bytes", picture.len());
        std::fs::write(folder.join(format!("dashboard-{name}.png")), picture)?;
    }
    ensure!(browser.complaints().await? == Vec::<String>::new(), "the page complains");
    Ok(())
}

/// What 500 incidents cost; `--nocapture` shows it. docs/dashboard.md has the numbers.
#[tokio::test]
#[ignore = "measures"]
async fn five_hundred_incidents() -> Result<()> {
    let world = World::alone("many").await?;
    let served = Served::start(&world).await?;
    let mut browser = Browser::start().await?;
    browser.look(Look::DESK).await?;
    let measured = async |browser: &mut Browser, what: &str| -> Result<()> {
        let begin = Instant::now();
        browser.open(&served.url).await?;
        browser
            .wait("the page to be live", "document.getElementById('state').textContent === 'Live'")
            .await?;
        let live = begin.elapsed();
        browser.call("HeapProfiler.collectGarbage", json!({})).await?;
        let cards = browser.eval("document.querySelectorAll('.card').length").await?;
        let paint = browser
            .eval("Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime)")
            .await?;
        let bytes = browser.eval("performance.getEntriesByType('navigation')[0].decodedBodySize").await?;
        let heap = browser.metric("JSHeapUsedSize").await? / 1048576.0;
        let nodes = browser.metric("Nodes").await?;
        let shown = browser.page_bytes()? as f64 / 1048576.0;
        let khook = served.process()?.memory_bytes()? as f64 / 1048576.0;
        println!(
            "{what}: {cards} cards, {bytes} bytes, first paint {paint} ms, live after {live:?}, JS heap {heap:.1} MiB, {nodes} nodes, its process {shown:.0} MiB, khook {khook:.1} MiB"
        );
        Ok(())
    };
    measured(&mut browser, "empty").await?;
    let phases = [
        ("pending", "Holding"),
        ("firing", "Calling"),
        ("notified", "AgentCalled"),
        ("resolved", "Recovered"),
    ];
    for hook in 0..5 {
        let entries: Vec<Value> = (0..100)
            .map(|index| {
                let (phase, reason) = phases[index % 4];
                let more = if index % 4 > 1 {
                    answered(index as i64 + 3, "Completed", &"An answer of some length. ".repeat(19))
                } else {
                    json!({})
                };
                entry(
                    hook * 100 + index,
                    "pod-restart",
                    &format!("web-{hook}-{index}"),
                    "kagent/k8s-agent",
                    (phase, reason),
                    index as i64 + 4,
                    more,
                )
            })
            .collect();
        scene(
            &world,
            &format!("hook-{hook}"),
            json!({"eventConfigurations": asks("kagent/k8s-agent", &["pod-restart"])}),
            json!({"agents": "kagent/k8s-agent", "conditions": ready(), "activeEvents": entries}),
        )
        .await?;
    }
    browser.wait("500 cards", "document.querySelectorAll('.card').length === 500").await?;
    for round in ["first", "second", "third"] {
        measured(&mut browser, round).await?;
    }
    ensure_usable(&mut browser, "with 500").await
}
