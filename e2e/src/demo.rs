//! The demo is khook's whole path, live in a terminal: a real control plane, khook itself, an agent that
//! stands in for kagent's; trouble happens, and a table shows what khook makes of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    agent::{Agent, Behaviour},
    control_plane::{ControlPlane, Options},
    events::Event,
    node::Node,
    objects,
    operator::Operator,
    wait::eventually,
    world::crd_yaml,
};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use khook::hook::{Hook, Phase};
use kube::{Api, Client, api::DeleteParams, runtime::watcher};
use tokio::time::{Instant, timeout_at};

const NAMESPACE: &str = "shop";
const INCIDENTS: usize = 4;
const HOOK: &str = "watch-my-pods";

/// Nothing in the demo takes that long, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the demo; `fast` shortens its windows, `node` has real pods in real trouble.
pub async fn run(fast: bool, node: bool) -> Result<()> {
    let what = if node { "etcd, kube-apiserver and its controllers" } else { "etcd and kube-apiserver" };
    say(&format!("1. A control plane: {what}, built once if they are not cached"));
    let options = Options { controllers: node, ..Options::default() };
    let control_plane = ControlPlane::start(options).await?;
    let client = control_plane.client().await?;
    done(&format!("ready at {}", control_plane.url()));
    // Held to the end: dropping it ends every pod.
    let node = if node {
        let node = Node::start(&control_plane).await?;
        done("and a node: containerd and kubelet");
        Some(node)
    } else {
        None
    };

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/basic/hook.yaml");
    let example = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    say("2. The Hook of examples/basic/hook.yaml, in a namespace of its own");
    control_plane.apply(&crd_yaml()?).await?;
    control_plane.create_namespace(NAMESPACE).await?;
    control_plane.apply_in(NAMESPACE, &example).await?;
    done(&format!("hook.kagent.dev/{HOOK} created in namespace {NAMESPACE}"));

    say("3. An agent (it stands in for kagent's and takes two seconds to answer), and khook");
    let agent = Agent::spawn().await?;
    agent.set(Behaviour::default().delay(Duration::from_secs(2)).answers(|message| diagnosis(&message.text)));
    let operator = operator(&control_plane, &agent, fast).await?;
    done(&format!("khook is ready, its log is {}", operator.log_path().display()));

    say("4. Trouble: a crash loop, an OOM kill, a pod no node takes, a liveness probe that fails");
    if node.is_some() {
        pods(&client).await?;
    } else {
        trouble(&client).await?;
    }
    println!("   What follows is the Hook's status as khook writes it. Ctrl-C ends it all.\n");
    follow(&client, &operator, node.is_some()).await?;

    let messages = agent.messages();
    let oom = messages.iter().find(|message| message.metadata["eventType"] == "oom-kill");
    let first = oom.context("the agent got no message about an OOM kill")?;
    say("5. What the agent was asked, for example");
    println!("{}", indent(&first.text));
    say("   and what it answered");
    println!("{}", indent(&diagnosis(&first.text)));
    say(&format!("6. The same from outside: kubectl get hooks -n {NAMESPACE} -o wide"));
    println!("{}", indent(&control_plane.table("kagent.dev/v1alpha2/hooks", Some(NAMESPACE), true).await?));
    let counts = agent.counts();
    ensure!(counts.len() == INCIDENTS && counts.values().all(|count| *count == 1), "messages: {counts:?}");
    println!("{INCIDENTS} incidents, one message to the agent for each. All is cleaned up now.");
    Ok(())
}

/// What an agent might find; this one makes it up.
fn diagnosis(message: &str) -> String {
    let found = [
        ("oom-kill", "The limit of 256Mi is below what the heap is given (-Xmx512m). Set it to 768Mi."),
        ("pod-pending", "It requests 64Ti of memory, and the largest node has 32Gi. Did you mean 64Mi?"),
        ("probe-failed", "/healthz answers 500 because the database refuses connections since 10:02."),
    ];
    let found = found.iter().find(|(trouble, _)| message.contains(&format!("eventType: {trouble}")));
    found
        .map_or(
            "The config map has no key DATABASE_URL, so the app exits with 1. Add the key.",
            |(_, text)| text,
        )
        .into()
}

async fn operator(control_plane: &ControlPlane, agent: &Agent, fast: bool) -> Result<Operator> {
    // Minutes become seconds: nobody watches a demo for half an hour.
    let (window, holds) = if fast { ("6s", "0.02") } else { ("20s", "0.05") };
    let operator = Operator::new(&control_plane.kubeconfig(), &agent.url())?
        .env("BIND_ADDRESS", "127.0.0.1")
        .env("LEASE_NAMESPACE", NAMESPACE)
        .env("REPEAT_INTERVAL", window)
        .env("RESOLVE_TIMEOUT", window)
        .env("HOLD_SCALE", holds)
        .env("FOLLOW_MIN", "500ms")
        .start()
        .await?;
    operator.wait_ready(PATIENCE).await?;
    Ok(operator)
}

/// Real ones: each ends, is killed or waits by itself.
async fn pods(client: &Client) -> Result<()> {
    // Made a moment after the namespace, and no pod comes before it.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    eventually("the namespace's service account", PATIENCE, async || {
        Ok(accounts.get("default").await.map(drop)?)
    })
    .await?;
    let pods = objects::parse(include_str!("../manifests/trouble.yaml"))?;
    objects::apply(client, NAMESPACE, pods).await.map(drop)
}

async fn trouble(client: &Client) -> Result<()> {
    let pod = |event: Event, name: &str| event.pod(NAMESPACE, name).uid(&format!("uid-of-{name}"));
    let kubelet = |reason, note, name| pod(Event::kubelet(reason, note), name).container("app");
    let events = [
        kubelet(
            "BackOff",
            "Back-off restarting failed container app in pod checkout-7d9f_shop",
            "checkout-7d9f",
        ),
        kubelet("OOMKilling", "Memory cgroup out of memory: Killed process 4711 (java)", "search-5b8c"),
        pod(
            Event::scheduler("FailedScheduling", "0/3 nodes are available: 3 Insufficient memory."),
            "reports-0",
        ),
        kubelet("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500", "cart-64fd"),
    ];
    for event in events {
        event.post(client).await?;
    }
    Ok(())
}

/// Shows every status khook writes, until all is over. Real pods are deleted once the agent has answered
/// about all of them: nothing else would mend them.
async fn follow(client: &Client, operator: &Operator, mut real: bool) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let hooks: Api<Hook> = Api::namespaced(client.clone(), NAMESPACE);
    let mut changes = pin!(watcher(hooks, watcher::Config::default()));
    let mut screen = Screen::new();
    let mut phases: BTreeMap<String, Vec<Phase>> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let next = timeout_at(deadline, changes.next()).await;
        let Ok(Some(change)) = next else {
            bail!("khook did not get through in time; its last words:\n{}", operator.log_tail(20));
        };
        let (watcher::Event::Apply(hook) | watcher::Event::InitApply(hook)) = change? else { continue };
        let status = hook.status.unwrap_or_default();
        let mut rows = Vec::new();
        for entry in &status.active_events {
            let path = phases.entry(entry.id.clone()).or_default();
            if path.last() != Some(&entry.status) {
                path.push(entry.status);
            }
            let path: Vec<&str> = path.iter().map(|phase| phase.as_str()).collect();
            let note =
                entry.answer.as_ref().map_or_else(|| entry.message.clone(), |answer| format!("“{answer}”"));
            rows.push([entry.resource_name.clone(), entry.event_type.to_string(), path.join(" → "), note]);
        }
        screen.show(&rows)?;
        let answered = status.active_events.iter().filter(|entry| entry.answer.is_some()).count();
        if real && answered == INCIDENTS {
            real = false;
            for entry in &status.active_events {
                pods.delete(&entry.resource_name, &DeleteParams::default()).await?;
            }
        }
        let over =
            |entry: &khook::hook::ActiveEvent| entry.status == Phase::Resolved && entry.answer.is_some();
        if status.active_events.len() == INCIDENTS && status.active_events.iter().all(over) {
            println!();
            return Ok(());
        }
    }
}

/// A table that is drawn over itself on a terminal, and else told line by line as it changes.
struct Screen {
    live: bool,
    columns: usize,
    drawn: usize,
    told: BTreeMap<String, [String; 4]>,
}

const WIDTHS: [usize; 3] = [13, 12, 40];
const NOTE: usize = 100;

impl Screen {
    fn new() -> Self {
        let live = std::io::stdout().is_terminal();
        // A line that wraps would not be drawn over.
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        let columns = if live && columns > 0 { columns } else { usize::MAX };
        Self { live, columns, drawn: 0, told: BTreeMap::new() }
    }

    fn show(&mut self, rows: &[[String; 4]]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.live {
            let mut text = String::new();
            if self.drawn > 0 {
                // Back to the first line of what was drawn last; each line is cleared as it is drawn.
                write!(text, "\x1b[{}A", self.drawn)?;
            }
            let head = ["POD", "TROUBLE", "PHASES", "NOTE"].map(String::from);
            for row in std::iter::once(&head).chain(rows) {
                let line: String = line(row).chars().take(self.columns).collect();
                writeln!(text, "\x1b[2K{line}")?;
            }
            self.drawn = rows.len() + 1;
            write!(out, "{text}")?;
        } else {
            for row in rows {
                if self.told.get(&row[0]) != Some(row) {
                    writeln!(out, "{}", line(row))?;
                    self.told.insert(row[0].clone(), row.clone());
                }
            }
        }
        Ok(out.flush()?)
    }
}

fn line(row: &[String; 4]) -> String {
    let [pod, trouble, phases, note] = row;
    let [a, b, c] = WIDTHS;
    let mut short: String = note.chars().take(NOTE).collect();
    if short.len() < note.len() {
        short.push('…');
    }
    format!("   {pod:a$} {trouble:b$} {phases:c$} {short}")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

fn say(line: &str) {
    println!("\n{line}");
}

fn done(line: &str) {
    println!("   ✓ {line}");
}
