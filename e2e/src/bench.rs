//! A bench is one run that measures khook against the apiserver it writes to: two things in one run, so
//! that a slow machine is slow for both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use e2e::{
    agent::{Agent, Behaviour},
    control_plane::{ControlPlane, Options},
    events::Event,
    operator::Operator,
    wait::eventually,
    world::crd_yaml,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use khook::hook::{Hook, HookStatus};
use kube::{Api, Client, ResourceExt, api::Patch};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

const HOOKS: usize = 20;

/// Posts `incidents` Events at `rate` a second over 20 Hooks, beside so many healthy pods, and prints what came
/// of it.
pub async fn run(incidents: usize, rate: u32, pods: usize) -> Result<()> {
    ensure!(incidents > 0 && rate > 0, "at least one incident, at one a second");
    let control_plane = ControlPlane::start(Options::default()).await?;
    let client = control_plane.client().await?;
    control_plane.apply(&crd_yaml()?).await?;
    for hook in 0..HOOKS {
        control_plane.create_namespace(&format!("bench-{hook}")).await?;
        control_plane.apply_in(&format!("bench-{hook}"), HOOK).await?;
    }
    let agent = Agent::spawn().await?;
    agent.set(Behaviour::default().replies_with_message());
    healthy_pods(&client, pods).await?;
    let begun = Instant::now();
    let operator = Operator::new(&control_plane.kubeconfig(), &agent.url())?
        .env("BIND_ADDRESS", "127.0.0.1")
        .env("LOG_FORMAT", "json")
        .start()
        .await?;
    operator.wait_ready(Duration::from_secs(60)).await?;
    let ready = begun.elapsed();
    // Every Hook has had its first status by then, and nothing is going on.
    eventually("every Hook to have a status", Duration::from_secs(60), async || {
        let hooks = Api::<Hook>::all(client.clone()).list(&Default::default()).await?;
        ensure!(hooks.iter().all(|hook| hook.status.is_some()), "not yet");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (memory, cpu) = (operator.memory_bytes()?, operator.cpu()?);
    let committed = [("result", "committed")];
    let writes = operator.metric("khook_status_writes_total", &committed).await?;
    let apiserver = control_plane.apiserver_cpu()?;

    let alone = status_writes(&control_plane, &client).await?;
    let accepted = post(&client, incidents, rate).await?;
    let messages = agent.wait_for_messages(incidents, Duration::from_secs(120)).await?;
    let mut latencies = Vec::with_capacity(incidents);
    for message in &messages {
        let pod = message.metadata["resourceName"].as_str().context("a message without a pod")?;
        let index: usize = pod.trim_start_matches("pod-").parse()?;
        latencies.push(message.instant.saturating_duration_since(accepted[index]));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = operator.metric("khook_status_writes_total", &committed).await? - writes;
    let conflicts = operator.metric("khook_status_writes_total", &[("result", "conflict")]).await?;
    let cpu = operator.cpu()?.saturating_sub(cpu);
    let apiserver = control_plane.apiserver_cpu()?.saturating_sub(apiserver);
    let twice = agent.counts().values().filter(|count| **count > 1).count();
    let each = |cpu: Duration| cpu.as_secs_f64() * 1000.0 / incidents as f64;

    println!("{incidents} incidents at {rate}/s over {HOOKS} Hooks, an agent that answers at once");
    println!("ready after {:.2} s, with {pods} pods in the cluster", ready.as_secs_f64());
    println!("one status write alone           {}", percentiles(alone));
    println!("event accepted → agent called    {}", percentiles(latencies));
    println!(
        "messages {} (sent twice: {twice}), writes {writes:.0} ({:.2} an incident), conflicts {conflicts:.0}",
        messages.len(),
        writes / incidents as f64
    );
    println!("khook's CPU {:.2} ms an incident, the apiserver's {:.1} ms", each(cpu), each(apiserver));
    println!("memory {:.1} MiB at rest, {:.1} MiB after", mib(memory), mib(operator.memory_bytes()?));
    Ok(())
}

const HOOK: &str = "apiVersion: kagent.dev/v1alpha2
kind: Hook
metadata: {name: bench}
spec:
  eventConfigurations:
  - {eventType: pod-restart, agentId: kagent/k8s-agent, prompt: 'Look at {{.ResourceName}}: {{.EventMessage}}'}
";

/// Pods that run and are ready, as far as the apiserver knows: objects without a node.
async fn healthy_pods(client: &Client, count: usize) -> Result<()> {
    if count > 0 {
        println!("writing {count} pods");
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), "bench-0");
    let mut writes = stream::iter(0..count).map(|index| {
        let (api, now) = (api.clone(), Utc::now());
        async move {
            let name = format!("healthy-{index}");
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "healthy", "pod-template-hash": "7d9f"},
                             "annotations": {"kubectl.kubernetes.io/restartedAt": now}},
                "spec": {"nodeName": "nowhere", "containers": [{
                    "name": "app", "image": "registry.example/healthy:1",
                    "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d"}],
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                }]},
            }))?;
            api.create(&Default::default(), &pod).await?;
            let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
                .map(|type_| json!({"type": type_, "status": "True", "lastTransitionTime": now}));
            let status = json!({"status": {
                "phase": "Running", "startTime": now,
                "conditions": conditions,
                "containerStatuses": [{"name": "app", "image": "registry.example/healthy:1", "imageID": "sha256:0",
                    "ready": true, "started": true, "restartCount": 0, "state": {"running": {"startedAt": now}}}],
            }});
            api.patch_status(&name, &Default::default(), &Patch::Merge(status)).await?;
            anyhow::Ok(())
        }
    })
    .buffer_unordered(16);
    while let Some(written) = writes.next().await {
        written.context("writing a pod")?;
    }
    Ok(())
}

/// What khook pays for each claim: a status write with a few entries, as a client sees it.
async fn status_writes(control_plane: &ControlPlane, client: &Client) -> Result<Vec<Duration>> {
    control_plane.create_namespace("bench-alone").await?;
    let suspended = format!("{HOOK}  suspend: true\n");
    control_plane.apply_in("bench-alone", &suspended).await?;
    let hooks: Api<Hook> = Api::namespaced(client.clone(), "bench-alone");
    let mut taken = Vec::new();
    let mut hook = hooks.get("bench").await?;
    while taken.len() < 100 {
        let status = HookStatus { message: Some(format!("write {}", taken.len())), ..HookStatus::default() };
        let begun = Instant::now();
        match khook::status::write(&hooks, &hook, &status).await {
            khook::status::Written::Committed(written) => {
                taken.push(begun.elapsed());
                hook = *written;
            }
            // khook wrote its first status in between.
            _ => hook = hooks.get(&hook.name_any()).await?,
        }
    }
    Ok(taken)
}

async fn post(client: &Client, incidents: usize, rate: u32) -> Result<Vec<Instant>> {
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut posts = Vec::with_capacity(incidents);
    for index in 0..incidents {
        tick.tick().await;
        let client = client.clone();
        posts.push(tokio::spawn(async move {
            let namespace = format!("bench-{}", index % HOOKS);
            Event::kubelet("BackOff", "Back-off restarting failed container app in pod")
                .pod(&namespace, &format!("pod-{index}"))
                .uid(&format!("uid-{index}"))
                .container("app")
                .at(Utc::now())
                .post(&client)
                .await?;
            anyhow::Ok(Instant::now())
        }));
    }
    let mut accepted = Vec::with_capacity(incidents);
    for post in posts {
        accepted.push(post.await??);
    }
    Ok(accepted)
}

fn percentiles(mut samples: Vec<Duration>) -> String {
    samples.sort_unstable();
    let at = |percent: usize| {
        let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
        samples.get(index).map_or(0.0, |sample| sample.as_secs_f64() * 1000.0)
    };
    format!("p50 {:6.1} ms   p99 {:6.1} ms   max {:6.1} ms", at(50), at(99), at(100))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
