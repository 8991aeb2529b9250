//! The chart's alerts and dashboard, held against a real Prometheus that scrapes a real khook in real trouble; and
//! against promtool, which plays hours. Rules and queries are read from the chart's files: what is added there is
//! tried without a change here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use e2e::{
    agent::Behaviour,
    assets::Tool,
    events::Event,
    operator::Operator,
    process::{Process, Scratch, Spec, free_port},
    wait::eventually,
    world::{PATIENCE, World},
};
use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use khook::{
    hook::Phase,
    metrics::{BreakerState, Metrics, Watch},
    source::Scope,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Of any alert and panel: all that is in trouble has shown by then.
const LONG: Duration = Duration::from_secs(180);

fn chart_file(name: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../helm/khook/files").join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

#[derive(Deserialize)]
struct Alert {
    alert: String,
    expr: String,
    r#for: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn alerts(rules: &str) -> Result<Vec<Alert>> {
    let file: RuleFile = serde_yaml::from_str(rules).context("alerts.yaml")?;
    Ok(file.groups.into_iter().flat_map(|group| group.rules).collect())
}

/// The one place where the rules are changed for the test: a minute passes within two seconds, in their ranges, in
/// what they wait `for`, and in the ages (in seconds) that they compare with. What they count stays as it is.
fn hurried(rules: &str) -> Result<String> {
    let mut rules = rules.replace("[1h]", "[60m]").replace("> 1800", "> 60").replace("> 300", "> 10");
    for minutes in 1..=60 {
        let seconds = minutes * 2;
        rules = rules.replace(&format!("[{minutes}m]"), &format!("[{seconds}s]"));
        rules = rules.replace(&format!("for: {minutes}m"), &format!("for: {seconds}s"));
    }
    let slow = ["m]", "h]"].into_iter().find(|range| rules.contains(range));
    ensure!(slow.is_none(), "a range of alerts.yaml is not hurried: {slow:?}");
    Ok(rules)
}

struct Panel {
    title: String,
    expr: String,
    legend: String,
}

/// The queries of the dashboard, as Grafana would ask with all of its variables on All.
fn panels() -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&chart_file("dashboard.json")?).context("dashboard.json")?;
    let mut panels = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr =
                target["expr"].as_str().with_context(|| format!("{title} has a target without expr"))?;
            let expr = expr.replace("$__rate_interval", "5s").replace("$__range", "5m");
            let expr = expr.replace("$namespace", ".*").replace("$job", ".*");
            ensure!(!expr.contains('$'), "{title} has a variable that nobody sets: {expr}");
            let legend = target["legendFormat"].as_str().unwrap_or_default().to_owned();
            panels.push(Panel { title: title.to_owned(), expr, legend });
        }
    }
    ensure!(panels.len() > 20, "{} queries", panels.len());
    Ok(panels)
}

/// A Prometheus of the test's own: on loopback, with its data in a temporary folder.
struct Prometheus {
    url: String,
    _process: Process,
    // Last: the data goes after the one who writes it.
    _scratch: Scratch,
}

impl Prometheus {
    /// Scrapes these ports of this machine, by job, four times a second.
    async fn start(rules: &str, jobs: &[(&str, Vec<u16>)]) -> Result<Self> {
        let program = tokio::task::spawn_blocking(|| Tool::Prometheus.find_or_build()).await??;
        let scratch = Scratch::new()?;
        let dir = scratch.path();
        fs::write(dir.join("alerts.yaml"), rules)?;
        let scrapes = jobs.iter().map(|(job, ports)| {
            let targets: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            json!({"job_name": job, "static_configs": [{"targets": targets}]})
        });
        let config = json!({
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": ["alerts.yaml"],
            "scrape_configs": scrapes.collect::<Vec<_>>(),
        });
        fs::write(dir.join("prometheus.yml"), config.to_string())?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let log = dir.join("prometheus.log");
        let spec = Spec::new(program, &log)
            .clean_env()
            .folder(dir)
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"));
        let prometheus =
            Self { url: format!("http://{address}"), _process: Process::spawn(&spec)?, _scratch: scratch };
        eventually("Prometheus", PATIENCE, async || {
            let answer = e2e::http_client()?.get(format!("{}/-/ready", prometheus.url)).send().await?;
            Ok(answer.error_for_status().map(drop)?)
        })
        .await
        .with_context(|| e2e::process::tail(&log, 20))?;
        Ok(prometheus)
    }

    async fn get(&self, path: &str, parameters: &[(&str, String)]) -> Result<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), parameters)?;
        let answer: Value = e2e::http_client()?.get(url).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{parameters:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The series that an expression has had since a time, whatever they were and whenever: their labels.
    async fn since(&self, begin: DateTime<Utc>, expr: &str) -> Result<Vec<BTreeMap<String, String>>> {
        let at = |time: DateTime<Utc>| (time.timestamp_millis() as f64 / 1000.0).to_string();
        let parameters = [
            ("query", expr.to_owned()),
            ("start", at(begin)),
            ("end", at(Utc::now())),
            ("step", "0.5".to_owned()),
        ];
        let data = self.get("query_range", &parameters).await?;
        let series = data["result"].as_array().context("no matrix")?;
        // 0/0 is no answer to anybody's question.
        let is_number = |sample: &Value| sample[1].as_str().is_some_and(|value| value != "NaN");
        let told = series.iter().filter(|one| one["values"].as_array().into_iter().flatten().any(is_number));
        told.map(|one| Ok(serde_json::from_value(one["metric"].clone())?)).collect()
    }

    /// The alerts that have been in a state since a time.
    async fn alerts_since(&self, begin: DateTime<Utc>, state: &str) -> Result<BTreeSet<String>> {
        let series = self.since(begin, &format!("ALERTS{{alertstate=~\"{state}\"}}")).await?;
        Ok(series.into_iter().filter_map(|mut labels| labels.remove("alertname")).collect())
    }

    async fn value(&self, expr: &str) -> Result<f64> {
        let data = self.get("query", &[("query", expr.to_owned())]).await?;
        let value =
            data["result"][0]["value"][1].as_str().with_context(|| format!("{expr} has no sample"))?;
        Ok(value.parse()?)
    }
}

/// Every metric of an expression with the labels that it is selected or summed by, but for those a scrape adds.
fn asked_for(expr: &str) -> (Vec<(&str, Vec<&str>)>, BTreeSet<&str>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let of_scrape = ["cluster", "namespace", "job", "instance"];
    let mut metrics = Vec::new();
    let mut rest = expr;
    while let Some(at) = ["khook_", "process_"].iter().filter_map(|prefix| rest.find(prefix)).min() {
        rest = &rest[at..];
        let (name, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let selected = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let labels = selected.map_or("", |(inner, _)| inner).split(',');
        let labels = labels.map(|label| label.split(['=', '!']).next().unwrap_or_default().trim());
        metrics
            .push((name, labels.filter(|label| !label.is_empty() && !of_scrape.contains(label)).collect()));
        rest = after;
    }
    let by = expr.split(" by (").skip(1).filter_map(|after| after.split(')').next());
    let by = by.flat_map(|labels| labels.split(',')).map(str::trim);
    (metrics, by.filter(|label| *label != "le" && !of_scrape.contains(label)).collect())
}

/// That each metric an expression names is one of khook's, with these labels: a selector that nothing can match
/// is silent, and so is a label that nothing has.
fn ensure_known(expr: &str, metrics: &str) -> Result<()> {
    for (name, labels) in asked_for(expr).0 {
        let families = metrics.lines().filter_map(|line| line.split_once('{').or(line.split_once(' ')));
        let mut samples = families.filter(|(family, _)| *family == name);
        let has_all =
            samples.any(|(_, rest)| labels.iter().all(|label| rest.contains(&format!("{label}=\""))));
        ensure!(has_all, "khook has no {name} with {labels:?}, which is in {expr}");
    }
    Ok(())
}

/// A rule of admission: the apiserver refuses what is written of a resource unless this, in CEL, holds.
fn admission(name: &str, group: &str, resource: &str, unless: &str) -> String {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [group], "apiVersions": ["*"], "resources": [resource],
                "operations": ["CREATE", "UPDATE"],
            }]},
            "validations": [{"expression": unless}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    format!("{policy}\n---\n{binding}")
}

/// Waits until all of these alerts have fired since then.
async fn fired(prometheus: &Prometheus, begin: DateTime<Utc>, expected: &[&str]) -> Result<()> {
    eventually(&format!("{expected:?} to fire"), LONG, async || {
        let fired = prometheus.alerts_since(begin, "firing").await?;
        let missing: Vec<&&str> = expected.iter().filter(|alert| !fired.contains(**alert)).collect();
        ensure!(missing.is_empty(), "not yet: {missing:?}");
        Ok(())
    })
    .await
}

/// A replica that stands by because somebody else holds its Lease, and will for an hour.
async fn stranded(world: &World) -> Result<e2e::operator::Setup> {
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let lease = Lease {
        metadata: ObjectMeta { name: Some("taken".to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some("a-pod-that-is-gone".to_owned()),
            lease_duration_seconds: Some(3600),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.context("the Lease")?;
    Ok(world.setup()?.env("LEASE_NAME", "taken"))
}

/// The agent is away for so long that incidents are given up, more of them than there is room for; and khook's
/// Events are refused.
async fn agent_away(world: &World, prometheus: &Prometheus) -> Result<()> {
    let begin = Utc::now();
    let not_khooks = "!has(object.reportingController) || object.reportingController != 'kagent.dev/khook'";
    world.control_plane.apply(&admission("no-events", "events.k8s.io", "events", not_khooks)).await?;
    world.agent.stop().await;
    // In a Hook of its own: the other's list is full of what is over.
    world.hook("till", &["oom-kill"]).await?;
    world.wait_until("till", "it is heard of", |status| status.observed_generation).await?;
    for pod in 0..6 {
        let killed = Event::kubelet("OOMKilling", "Memory cgroup out of memory");
        killed.pod(&world.namespace, &format!("db-{pod}")).post(&world.client).await?;
    }
    let expected = [
        "KhookAgentCallsFailing",
        "KhookBreakerOpen",
        "KhookIncidentStuck",
        "KhookIncidentsGivenUp",
        "KhookOverflow",
        "KhookEventsDropped",
    ];
    fired(prometheus, begin, &expected).await
}

/// Some Hooks whose status the apiserver refuses; and later it is away while their answers come in.
async fn apiserver_away(world: &World, prometheus: &Prometheus) -> Result<()> {
    const HOOKS: usize = 8;
    let begin = Utc::now();
    // Many, for a status that is refused is written anew only every 6 s.
    let names: Vec<String> = (0..HOOKS).map(|hook| format!("hook-{hook}")).collect();
    try_join_all(names.iter().map(|hook| world.hook(hook, &["pod-restart"]))).await?;
    for hook in &names {
        world.wait_until(hook, "it is heard of", |status| status.observed_generation).await?;
    }
    world.control_plane.apply(&admission("no-status", "kagent.dev", "hooks/status", "false")).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.agent.set(Behaviour::default().held());
    world.crash("web-0").await?;
    fired(prometheus, begin, &["KhookStatusWritesFailing"]).await?;

    world.control_plane.apply(&admission("no-status", "kagent.dev", "hooks/status", "true")).await?;
    for hook in &names {
        world.wait_for(hook, "web-0", Phase::Notified).await?;
    }
    world.control_plane.stop_apiserver()?;
    ensure!(world.agent.release() == HOOKS, "not every Hook's task is held");
    fired(prometheus, begin, &["KhookReconcilesFailing", "KhookWatchStale"]).await
}

/// It is restarted time and again.
async fn restarts(operator: &Operator, job: &str, prometheus: &Prometheus) -> Result<()> {
    let begin = Utc::now();
    let started = format!("process_start_time_seconds{{job=\"{job}\"}}");
    let mut last = 0.0;
    // Its first start, and four more.
    for start in 0..5 {
        if start > 0 {
            operator.restart()?;
        }
        last = eventually("the next start to be seen", PATIENCE, async || {
            let seen = prometheus.value(&started).await?;
            ensure!(seen > last, "it is still {seen}");
            Ok(seen)
        })
        .await?;
    }
    fired(prometheus, begin, &["KhookRestarting", "KhookNoLeader"]).await
}

#[tokio::test]
async fn each_alert_fires_in_its_trouble_and_none_before_and_each_panel_has_something_to_show() -> Result<()>
{
    let rules = hurried(&chart_file("alerts.yaml")?)?;
    let alerts = alerts(&rules)?;
    let panels = panels()?;

    let (watched, other) = tokio::try_join!(World::alone("watched"), World::alone("other"))?;
    // A watch is asked for anew after a minute; here that is two seconds.
    let setup = |world: &World| Ok::<_, anyhow::Error>(world.setup()?.env("WATCH_TIMEOUT", "2s"));
    let pair = || {
        let setup = setup(&watched)?.env("MAX_ENTRIES", 3).env("DELIVERY_TIMEOUT", "80s");
        Ok::<_, anyhow::Error>(setup.env("RETENTION", "5s").env("STALE_AFTER", "60s"))
    };
    let (one, two, lone) = (pair()?, pair()?, setup(&other)?.env("LEADER_ELECTION", "false"));
    let standby = stranded(&watched).await?.env("WATCH_TIMEOUT", "2s");
    let ports = [one.metrics_port(), two.metrics_port()];
    let jobs = [
        ("khook", ports.to_vec()),
        ("lone", vec![lone.metrics_port()]),
        ("standby", vec![standby.metrics_port()]),
    ];
    let (one, two, lone) = tokio::try_join!(watched.start(one), watched.start(two), other.start(lone))?;
    eventually("a leader", PATIENCE, async || {
        let leaders = one.metric("khook_leader", &[]).await? + two.metric("khook_leader", &[]).await?;
        ensure!(leaders == 1.0, "{leaders} lead");
        Ok(())
    })
    .await?;

    // All is well: incidents come, are told of, and are over.
    let prometheus = Prometheus::start(&rules, &jobs).await?;
    eventually("all to be scraped", PATIENCE, async || {
        let scraped = prometheus.value("count(khook_build_info)").await?;
        ensure!(scraped == 3.0, "{scraped} are");
        Ok(())
    })
    .await?;
    let begin = Utc::now();
    watched.hook_with("shop", &["pod-restart"], "notifyResolved: true").await?;
    for pod in 0..3 {
        watched.crash(&format!("web-{pod}")).await?;
        watched.wait_answered("shop", &format!("web-{pod}")).await?;
    }
    for pod in ["web-0", "web-1", "web-2"] {
        watched.wait_for("shop", pod, Phase::Resolved).await?;
    }
    eventually("a moment in which no alert is even pending", PATIENCE, async || {
        let recently = Utc::now() - chrono::TimeDelta::seconds(2);
        let alerts = prometheus.alerts_since(recently, "pending|firing").await?;
        ensure!(alerts.is_empty(), "{alerts:?}");
        Ok(())
    })
    .await?;
    let early = prometheus.alerts_since(begin, "firing").await?;
    ensure!(early.is_empty(), "khook is well, and yet: {early:?}");

    // One after another all that can go wrong does.
    let standby = watched.start(standby).await?;
    tokio::try_join!(
        agent_away(&watched, &prometheus),
        apiserver_away(&other, &prometheus),
        restarts(&standby, "standby", &prometheus),
    )?;
    let metrics = [&one, &two, &lone].map(|operator| operator.metrics());
    let metrics = try_join_all(metrics).await?.concat();
    for panel in &panels {
        let Panel { title, expr, legend } = panel;
        let series = prometheus.since(begin, expr).await.with_context(|| title.clone())?;
        ensure!(!series.is_empty(), "the panel {title} has nothing to show for {expr}");
        let of_legend = legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
        for label in asked_for(expr).1.into_iter().chain(of_legend) {
            ensure!(series.iter().any(|labels| labels.contains_key(label)), "{title}: nothing has {label}");
        }
        ensure_known(expr, &metrics)?;
    }
    for operator in [&one, &two, &lone, &standby] {
        operator.kill()?;
    }
    let all: Vec<&str> = alerts.iter().map(|alert| alert.alert.as_str()).collect();
    fired(&prometheus, begin, &all).await?;

    for alert in &alerts {
        ensure_known(&alert.expr, &metrics)?;
        let series = prometheus.since(begin, &format!("ALERTS{{alertname=\"{}\"}}", alert.alert)).await?;
        let words: String = alert.annotations.values().map(String::as_str).collect();
        // A label that is not there reads as nothing.
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let told = words.split("$labels.").skip(1).filter_map(|after| after.split(|c| !is_word(c)).next());
        for label in asked_for(&alert.expr).1.into_iter().chain(told) {
            ensure!(series.iter().all(|labels| labels.contains_key(label)), "{}: no {label}", alert.alert);
        }
    }
    // How Prometheus reads the annotations of those that still fire.
    let shown = prometheus.get("alerts", &[]).await?;
    for alert in shown["alerts"].as_array().context("alerts")? {
        let words = alert["annotations"].to_string();
        let broken =
            ["<error", "<no value>", "%!", "NaN", "Inf"].into_iter().find(|sign| words.contains(sign));
        ensure!(broken.is_none(), "{alert}");
        for (before, _) in words.match_indices('%').map(|(at, _)| words.split_at(at)) {
            let number = before.rsplit([' ', '"']).next().unwrap_or_default();
            ensure!(number.parse::<f64>().is_ok_and(|share| share <= 100.0), "{number} %: {alert}");
        }
    }
    Ok(())
}

/// What promtool says, asked in a folder with these rules and the unit tests: whether all is well, and its words.
fn promtool(rules: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let folder = Scratch::new()?;
    fs::write(folder.path().join("alerts.yaml"), rules)?;
    fs::write(folder.path().join("alerts-test.yaml"), include_str!("../alerts-test.yaml"))?;
    let mut command = Command::new(Tool::Promtool.find_or_build()?);
    let answer = command.args(arguments).current_dir(folder.path()).output().context("promtool")?;
    let words = [answer.stdout, answer.stderr].map(|words| String::from_utf8_lossy(&words).into_owned());
    Ok((answer.status.success(), words.concat()))
}

const PLAY: [&str; 3] = ["test", "rules", "alerts-test.yaml"];

#[test]
fn the_alerts_fire_where_they_must_and_not_where_it_is_close() -> Result<()> {
    let rules = chart_file("alerts.yaml")?;
    let (sound, words) = promtool(&rules, &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"])?;
    ensure!(sound, "{words}");
    let (played, words) = promtool(&rules, &PLAY)?;
    ensure!(played, "{words}");
    let tests: serde_yaml::Value = serde_yaml::from_str(include_str!("../alerts-test.yaml"))?;
    let tests = tests["tests"].as_sequence().context("tests")?;
    let read = tests.iter().filter_map(|test| test["alert_rule_test"].as_sequence()).flatten();
    let read: BTreeSet<&str> = read
        .filter(|test| test["exp_alerts"][0]["exp_annotations"].is_mapping())
        .filter_map(|test| test["alertname"].as_str())
        .collect();
    for Alert { alert, .. } in alerts(&rules)? {
        ensure!(read.contains(alert.as_str()), "{alert} fires in no test that reads what it says");
    }
    Ok(())
}

#[test]
fn an_alert_that_does_not_wait_for_its_time_is_found_out() -> Result<()> {
    let rules = chart_file("alerts.yaml")?;
    for (at, alert) in alerts(&rules)?.iter().enumerate().filter(|(_, alert)| alert.r#for.is_some()) {
        let mut hasty: serde_yaml::Value = serde_yaml::from_str(&rules)?;
        let rule = hasty["groups"][0]["rules"][at].as_mapping_mut().context("one group of rules")?;
        ensure!(rule.remove("for").is_some(), "{} waits for nothing", alert.alert);
        let (played, _) = promtool(&serde_yaml::to_string(&hasty)?, &PLAY)?;
        ensure!(!played, "no test comes close to {}", alert.alert);
    }
    Ok(())
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");

#[test]
fn each_alert_is_in_the_docs_with_what_to_do() -> Result<()> {
    let page = fs::read_to_string(PAGE).context(PAGE)?;
    let documented: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts(&chart_file("alerts.yaml")?)?;
    for Alert { alert, labels, annotations, .. } in &alerts {
        let anchor = alert.to_lowercase();
        let severity = labels.get("severity").with_context(|| format!("{alert} has no severity"))?;
        ensure!(["critical", "warning"].contains(&severity.as_str()), "{alert} is {severity}");
        let row = format!("| [{alert}](#{anchor}) | {severity} |");
        ensure!(
            page.contains(&row) && documented.contains(alert.as_str()),
            "docs/operating.md lacks {alert}"
        );
        let runbook = format!("https://github.com/kagent-dev/khook/blob/main/docs/operating.md#{anchor}");
        ensure!(annotations.get("runbook_url") == Some(&runbook), "{alert} leads to {annotations:?}");
        for words in ["summary", "description"] {
            ensure!(annotations.get(words).is_some_and(|words| words.len() > 10), "{alert} has no {words}");
        }
    }
    ensure!(documented.len() == alerts.len(), "more is documented than there is: {documented:?}");
    Ok(())
}

#[test]
fn the_dashboard_leaves_no_panel_under_another() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&chart_file("dashboard.json")?)?;
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().context("panels")? {
        ensure!(ids.insert(panel["id"].as_u64()), "two panels have the id {}", panel["id"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{panel} has no {key}"));
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        ensure!(x + w <= 24, "{} is too wide", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(taken.insert(cell), "{} lies on another", panel["title"]);
        }
    }
    Ok(())
}

/// Every metric, with all that its labels can be: what has a closed set of labels is there from the start.
fn every_metric() -> String {
    let metrics = Metrics::new();
    Watch::ALL.iter().for_each(|watch| metrics.watch_contact(*watch, &Scope::Everywhere));
    metrics.breaker("namespace/name", BreakerState::Closed);
    metrics.encode()
}

/// The metrics as a table: what /metrics says of itself.
fn table() -> String {
    let text = every_metric();
    let mut table = "| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap_or((line, ""));
        let kind = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for sample in text.lines().filter(|line| line.starts_with(name)) {
            let set = sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
            for (label, value) in
                set.iter().flat_map(|(set, _)| set.split(',')).filter_map(|l| l.split_once('='))
            {
                labels.entry(label).or_default().insert(value.trim_matches('"'));
            }
        }
        let labels = labels.into_iter().filter(|(label, _)| *label != "le").map(|(label, values)| {
            let values: Vec<&str> = values.into_iter().collect();
            match (name, label) {
                ("khook_incident_transitions_total", "reason") => "`reason`: as in the status".to_owned(),
                ("khook_watch_contact_timestamp_seconds", "scope") => {
                    "`scope`: all, or a watched namespace".to_owned()
                }
                (_, "version") => "`version`".to_owned(),
                _ => format!("`{label}`: {}", values.join(", ")),
            }
        });
        let labels: Vec<String> = labels.collect();
        table += &format!("| `{name}` | {} | {} | {help} |\n", kind.unwrap_or_default(), labels.join("; "));
    }
    table
}

#[test]
fn the_metrics_in_the_docs_are_those_of_the_code() -> Result<()> {
    const BEGIN: &str = "<!-- metrics: written by a test -->\n";
    const END: &str = "<!-- end of metrics -->";
    let page = fs::read_to_string(PAGE).context(PAGE)?;
    let (before, rest) = page.split_once(BEGIN).context("docs/operating.md has no place for the metrics")?;
    let (_, after) = rest.split_once(END).context("docs/operating.md has no end of the metrics")?;
    let told = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, &told)?;
    }
    let page = fs::read_to_string(PAGE)?;
    ensure!(page == told, "docs/operating.md does not have the metrics of the code: run with UPDATE_DOCS=1");
    Ok(())
}
