//! The suite runs scenarios with khook in the cluster, and says of each which calls it caused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use khook::hook::{EventType, Hook};
use kube::api::{DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams};
use kube::core::TypeMeta;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::objects;
use crate::process::say;
use crate::provider::{Call, Cluster, Images, Kind, LEASE};
use crate::scenario::{Reference, Scenario, Step};
use crate::wait::eventually;

/// Only an error waits this long for a step.
const STEP: Duration = Duration::from_secs(120);

/// One works, the other stands by.
const REPLICAS: usize = 2;

/// How long calls may still come after the last scenario: the holds that are not of minutes.
const AFTER: Duration = Duration::from_secs(10);

/// The Hook of each scenario.
const HOOK: &str = "khook";

/// A fifth of the product's holds, so that a run takes minutes and kubelet's seconds still fit in:
/// an image error 6 s, lost readiness 6 s, unschedulable or never ready 24 s. Windows stay as they
/// are, so that a call too many shows; a scenario shortens them in its Hook.
pub const SETTINGS: [(&str, &str); 13] = [
    ("LOG_LEVEL", "debug"),
    ("LOG_FORMAT", "text"),
    ("HOLD_SCALE", "0.2"),
    ("CLEAR_HOLD", "3s"),
    ("RUNNING_HOLD", "12s"),
    ("RETRY_BASE", "200ms"),
    ("RETRY_MAX", "2s"),
    ("LOOKUP_GRACE", "1s"),
    ("FOLLOW_MIN", "200ms"),
    ("FOLLOW_MAX", "1s"),
    ("LEASE_DURATION", "4s"),
    ("LEASE_RENEW", "1s"),
    ("OUTCOME_DELAY", "300ms"),
];

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub provider: Kind,
    /// Images for a cluster that is there.
    pub images: Images,
    /// Only scenarios whose name holds one of these; all where there is none.
    pub only: Vec<String>,
    /// How many at a time.
    pub parallel: usize,
    /// Where to write every version of every pod, and the Events.
    pub record: Option<PathBuf>,
}

/// What came of a scenario.
#[derive(Clone, Debug, Default)]
struct Row {
    name: String,
    expected: BTreeMap<EventType, usize>,
    got: BTreeMap<EventType, usize>,
    /// What else was wrong.
    errors: Vec<String>,
    took: Duration,
}

/// Runs the scenarios and prints what came of them; answers whether all was as expected.
pub async fn run(options: Options) -> Result<bool> {
    let wanted = |scenario: &Scenario| {
        options.only.is_empty() || options.only.iter().any(|part| scenario.name.contains(part.as_str()))
    };
    let scenarios: Vec<Scenario> = Scenario::all()?.into_iter().filter(wanted).collect();
    ensure!(!scenarios.is_empty(), "no scenario has such a name");
    let started = Instant::now();
    let cluster = Arc::new(Cluster::start(options.provider, options.images.clone()).await?);
    say(&format!("the cluster is ready ({:.1} s)", started.elapsed().as_secs_f64()));
    let result = tokio::select! {
        result = all(&cluster, scenarios, &options) => result,
        _ = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let cluster = Arc::into_inner(cluster).context("a scenario still holds the cluster")?;
    let ended = cluster.end().await.context("cleaning up");
    let good = result?;
    ended?;
    say(&format!("all is removed; {:.0} s in all", started.elapsed().as_secs_f64()));
    Ok(good)
}

async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn all(cluster: &Arc<Cluster>, scenarios: Vec<Scenario>, options: &Options) -> Result<bool> {
    let namespace = cluster.deploy_khook(&SETTINGS, REPLICAS).await?;
    say("khook is ready");
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        scenarios.into_iter().partition(|scenario| cluster.is_local() || !scenario.head.local);
    for scenario in elsewhere {
        say(&format!("{} is left out: it is for the provider local", scenario.name));
    }
    let record = options.record.as_deref();
    let (alone, mut beside): (Vec<_>, Vec<_>) = here.into_iter().partition(|scenario| scenario.head.alone);
    // The long ones first, so that none is waited for at the end.
    beside.sort_by_key(|scenario| std::cmp::Reverse(scenario.head.steps.len()));
    let beside = stream::iter(beside)
        .map(|scenario| one(cluster, scenario, record))
        .buffer_unordered(options.parallel.max(1));
    let alone = stream::iter(alone).then(|scenario| one(cluster, scenario, record));
    let mut rows = pin!(beside.chain(alone));
    let mut done = Vec::new();
    while let Some(row) = rows.next().await {
        say(&format!("{:32} {} ({:.0} s)", row.name, row.verdict(), row.took.as_secs_f64()));
        done.push(row);
    }
    done.sort_by(|a, b| a.name.cmp(&b.name));
    // The pods are being deleted by now, which is no trouble either: what counts are all calls.
    sleep(AFTER).await;
    let strays = recount(&mut done, cluster).await?;
    let log = cluster.khook_log(&namespace).await?;
    // What the apiserver says where a verb is missing, and not where a namespace is being deleted.
    let refused = |line: &&str| line.contains("forbidden") && line.contains(" cannot ");
    let forbidden: Vec<&str> = log.lines().filter(refused).collect();
    print!("{}", report(&done));
    for call in &strays {
        println!("a call for none of the scenarios: {}", call.metadata);
    }
    for line in &forbidden {
        println!("khook may not do what it needs: {line}");
    }
    if let Some(folder) = &options.record {
        fs::write(folder.join("khook.log"), &log).context("writing khook's log")?;
    }
    Ok(done.iter().all(Row::good) && strays.is_empty() && forbidden.is_empty())
}

/// Counts once more for each scenario; answers the calls that belong to none.
async fn recount(rows: &mut [Row], cluster: &Cluster) -> Result<Vec<Call>> {
    let mut strays = Vec::new();
    let mut by_name: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in cluster.calls().await? {
        let namespace = call.metadata["namespace"].as_str().unwrap_or_default();
        match namespace.strip_suffix(&format!("-{}", cluster.run)) {
            Some(name) if rows.iter().any(|row| row.name == name) => {
                by_name.entry(name.to_owned()).or_default().push(call);
            }
            _ => strays.push(call),
        }
    }
    for row in rows {
        row.got = counted(by_name.get(&row.name).map_or(&[], Vec::as_slice));
    }
    Ok(strays)
}

async fn one(cluster: &Cluster, scenario: Scenario, record: Option<&Path>) -> Row {
    let started = Instant::now();
    let mut row =
        Row { name: scenario.name.clone(), expected: scenario.head.calls.clone(), ..Row::default() };
    if let Err(error) = play(cluster, &scenario, record, &mut row).await {
        row.errors.push(format!("{error:#}"));
    }
    row.took = started.elapsed();
    row
}

async fn play(cluster: &Cluster, scenario: &Scenario, record: Option<&Path>, row: &mut Row) -> Result<()> {
    let namespace = cluster.namespace(&scenario.name).await?;
    let recorder = record.map(|_| Recorder::start(cluster, &namespace));
    hook(cluster, &namespace, scenario).await?;
    cluster.apply(&namespace, scenario.objects.clone()).await?;
    let mut result = Ok(());
    for (index, step) in scenario.head.steps.iter().enumerate() {
        result = take(cluster, &namespace, step).await.with_context(|| format!("step {}", index + 1));
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() && !scenario.harmless() {
        let end = Instant::now() + scenario.head.within;
        while Instant::now() < end && counted(&calls(cluster, &namespace).await?) != scenario.head.calls {
            sleep(Duration::from_millis(250)).await;
        }
    }
    if result.is_ok() {
        sleep(scenario.head.quiet).await;
    }
    let calls = calls(cluster, &namespace).await?;
    row.got = counted(&calls);
    let sessions: BTreeSet<&str> = calls.iter().map(|call| call.session.as_str()).collect();
    if let Some(expected) = scenario.head.sessions.filter(|expected| *expected != sessions.len()) {
        row.errors.push(format!("{} sessions instead of {expected}", sessions.len()));
    }
    let ids: BTreeSet<&str> = calls.iter().map(|call| call.id.as_str()).collect();
    if ids.len() != calls.len() {
        row.errors.push("a message was sent twice".to_owned());
    }
    if let Some((recorder, folder)) = recorder.zip(record) {
        recorder.write(&folder.join(&scenario.name))?;
    }
    cluster.delete_namespace(&namespace).await?;
    result
}

async fn calls(cluster: &Cluster, namespace: &str) -> Result<Vec<Call>> {
    let mut calls = cluster.calls().await?;
    calls.retain(|call| call.metadata["namespace"] == namespace);
    Ok(calls)
}

fn counted(calls: &[Call]) -> BTreeMap<EventType, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        if let Ok(event_type) = serde_json::from_value::<EventType>(call.metadata["eventType"].clone()) {
            *counts.entry(event_type).or_default() += 1;
        }
    }
    counts
}

/// The Hook that listens to every kind of trouble; returns when khook knows of it.
async fn hook(cluster: &Cluster, namespace: &str, scenario: &Scenario) -> Result<()> {
    let configurations = EventType::ALL.map(|event_type| {
        let mut configuration = json!({
            "eventType": event_type,
            "agentId": "kagent/k8s-agent",
            "prompt": "Look at {{.ResourceName}}: {{.EventMessage}}",
        });
        for (field, value) in &scenario.head.hook {
            configuration[field] = value.clone();
        }
        configuration
    });
    let hook = json!({
        "apiVersion": "kagent.dev/v1alpha2",
        "kind": "Hook",
        "metadata": {"name": HOOK},
        "spec": {"eventConfigurations": configurations},
    });
    cluster.apply(namespace, vec![hook]).await?;
    let hooks: Api<Hook> = Api::namespaced(cluster.client.clone(), namespace);
    eventually("khook to know of the Hook", STEP, async || {
        ensure!(hooks.get(HOOK).await?.status.is_some(), "it has no status");
        Ok(())
    })
    .await
}

async fn take(cluster: &Cluster, namespace: &str, step: &Step) -> Result<()> {
    let api = async |object: &Reference| objects::api(&cluster.client, &object.types, namespace).await;
    match step {
        Step::Wait(span) => sleep(*span).await,
        Step::Apply(objects) => cluster.apply(namespace, objects.clone()).await?,
        Step::DeleteLeader => delete_leader(cluster).await?,
        Step::Calls(count) => {
            eventually(&format!("{count} calls"), STEP, async || {
                let calls = calls(cluster, namespace).await?;
                ensure!(calls.len() >= *count, "{} came", calls.len());
                Ok(())
            })
            .await?;
        }
        Step::Until { object, path, is } => {
            let api = api(object).await?;
            eventually(&format!("{path} of {} to be {is}", object.name), STEP, async || {
                let found = api.get_opt(&object.name).await?;
                let found = found.map(serde_json::to_value).transpose()?.unwrap_or_default();
                let value = found.pointer(path).unwrap_or(&Value::Null);
                ensure!(value == is, "it is {value}");
                Ok(())
            })
            .await?;
        }
        Step::Patch { object, with } => {
            let (api, params) = (api(object).await?, PatchParams::default());
            api.patch(&object.name, &params, &Patch::Strategic(with)).await.map_err(objects::words)?;
        }
        Step::Delete { object, grace } => {
            let params = DeleteParams { grace_period_seconds: *grace, ..DeleteParams::default() };
            objects::delete(&api(object).await?, &object.name, &params).await?;
        }
        Step::Evict(label) => {
            let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
            for pod in pods.list(&ListParams::default().labels(label)).await? {
                let evicted = pods.evict(&pod.name_any(), &EvictParams::default()).await;
                evicted.map_err(objects::words)?;
            }
        }
    }
    Ok(())
}

async fn delete_leader(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.khook_namespace();
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &namespace);
    let holder = async || -> Result<String> {
        let spec = leases.get(LEASE).await?.spec.context("a Lease without a spec")?;
        spec.holder_identity.filter(|holder| !holder.is_empty()).context("nobody holds it")
    };
    let leader = holder().await.context("looking who leads")?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    pods.delete(&leader, &DeleteParams::default()).await.context("deleting the leader")?;
    eventually("another leader", STEP, async || {
        let holder = holder().await?;
        ensure!(holder != leader, "{holder} leads");
        Ok(())
    })
    .await
}

impl Row {
    fn good(&self) -> bool {
        self.errors.is_empty() && self.got == self.expected
    }

    fn verdict(&self) -> String {
        match (self.good(), self.errors.first()) {
            (true, _) => "ok".to_owned(),
            (false, Some(error)) => format!("WRONG: {error}"),
            (false, None) => format!("WRONG: {} instead of {}", told(&self.got), told(&self.expected)),
        }
    }
}

fn told(counts: &BTreeMap<EventType, usize>) -> String {
    let told: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(event_type, count)| match count {
            1 => event_type.to_string(),
            count => format!("{event_type} ×{count}"),
        })
        .collect();
    if told.is_empty() { "no call".to_owned() } else { told.join(", ") }
}

/// The table of all scenarios, and precision and recall of each kind of trouble.
fn report(rows: &[Row]) -> String {
    let mut lines = vec![["scenario", "expected", "got", "ok"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let ok = if row.good() { "ok".to_owned() } else { "WRONG".to_owned() };
        [row.name.clone(), told(&row.expected), told(&row.got), ok]
    }));
    let mut text = String::from("\n");
    text.push_str(&table(&lines));
    for row in rows.iter().filter(|row| !row.errors.is_empty()) {
        for error in &row.errors {
            let _ = writeln!(text, "{}: {error}", row.name);
        }
    }
    let mut lines =
        vec![["trouble", "expected", "called", "right", "precision", "recall"].map(str::to_owned)];
    for event_type in EventType::ALL {
        let count =
            |counts: &BTreeMap<EventType, usize>| counts.get(&event_type).copied().unwrap_or_default();
        let expected: usize = rows.iter().map(|row| count(&row.expected)).sum();
        let called: usize = rows.iter().map(|row| count(&row.got)).sum();
        let right: usize = rows.iter().map(|row| count(&row.got).min(count(&row.expected))).sum();
        lines.push([
            event_type.to_string(),
            expected.to_string(),
            called.to_string(),
            right.to_string(),
            percent(right, called),
            percent(right, expected),
        ]);
    }
    text.push('\n');
    text.push_str(&table(&lines));
    let good = rows.iter().filter(|row| row.good()).count();
    let _ = writeln!(text, "\n{good} of {} scenarios as expected", rows.len());
    text
}

fn percent(part: usize, of: usize) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.0} %", 100.0 * part as f64 / of as f64) }
}

fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// A recorder keeps every version of every pod of a namespace, and its Events.
struct Recorder {
    seen: Arc<Mutex<Vec<Value>>>,
    watches: Vec<JoinHandle<()>>,
}

impl Recorder {
    fn start(cluster: &Cluster, namespace: &str) -> Self {
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kinds = [("v1", "Pod"), ("events.k8s.io/v1", "Event")];
        let watch = |(api_version, kind): (&str, &str)| {
            let types = TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() };
            let (client, namespace, seen) = (cluster.client.clone(), namespace.to_owned(), seen.clone());
            tokio::spawn(async move {
                let Ok(api) = objects::api(&client, &types, &namespace).await else { return };
                let mut changes = pin!(watcher(api, watcher::Config::default()));
                while let Some(change) = changes.next().await {
                    let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = change else {
                        continue;
                    };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(trimmed(object, &types));
                }
            })
        };
        Self { watches: kinds.map(watch).into(), seen }
    }

    fn write(self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).context("creating a folder for what was recorded")?;
        for (index, object) in self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let path = folder.join(format!("{index:03}-{kind}-{name}.json"));
            fs::write(path, format!("{object:#}\n")).context("writing what was recorded")?;
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.watches.iter().for_each(JoinHandle::abort);
    }
}

fn trimmed(mut object: DynamicObject, types: &TypeMeta) -> Value {
    object.metadata.managed_fields = None;
    object.types = Some(types.clone());
    serde_json::to_value(object).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_wrong_and_how_often_khook_is_right() {
        let row = |name: &str, expected: &[(EventType, usize)], got: &[(EventType, usize)]| Row {
            name: name.to_owned(),
            expected: expected.iter().copied().collect(),
            got: got.iter().copied().collect(),
            ..Row::default()
        };
        let text = report(&[
            row("crash", &[(EventType::PodRestart, 1)], &[(EventType::PodRestart, 1)]),
            row("oom", &[(EventType::OomKill, 1)], &[(EventType::PodRestart, 2)]),
            row("rollout", &[], &[]),
        ]);
        insta::assert_snapshot!(text, @r"

        scenario  expected     got             ok
        crash     pod-restart  pod-restart     ok
        oom       oom-kill     pod-restart ×2  WRONG
        rollout   no call      no call         ok

        trouble       expected  called  right  precision  recall
        pod-restart   1         3       1      33 %       100 %
        pod-pending   0         0       0      -          -
        oom-kill      1         0       0      -          0 %
        probe-failed  0         0       0      -          -

        2 of 3 scenarios as expected
        ");
    }
}
