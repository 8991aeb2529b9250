//! `khook doctor` looks for what keeps khook from working, and says what to do.

mod definition;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use reqwest::Url;
use serde::Serialize;

use super::{
    Error,
    cluster::{Cluster, Connection},
    installation::{self, Held, Installation, Search},
    output::{Format, Output, age, line, paint, print},
};
use crate::{
    config::base_url,
    hook::Hook,
    incident::{
        outcome::AgentName,
        policy::Policy,
        rules::{Rules, Severity},
    },
    source::{Scope, pods::Pod},
};
use way::Way;

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only asks this address of a khook, /readyz or /metrics, whether all is well; may be given several times
    #[arg(long, value_parser = base_url, conflicts_with_all = ["kagent_url", "inside"])]
    endpoint: Vec<Url>,
    /// Where kagent is, as seen from here [default: as khook's settings say]
    #[arg(long, value_parser = base_url)]
    kagent_url: Option<Url>,
    /// This is khook's own pod, and its settings are in this environment [default: found out]
    #[arg(long)]
    inside: bool,
    #[command(flatten)]
    output: Output,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    /// What.
    name: &'static str,
    /// How it is.
    result: Mark,
    /// A sentence.
    message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    /// Well.
    Ok,
    /// Worth knowing.
    Warning,
    /// khook does not work, or not for everybody.
    Failed,
    /// It could not be looked at.
    Unknown,
}

/// All that is printed.
#[derive(Serialize)]
struct Diagnosis {
    /// Nothing has failed.
    ok: bool,
    checks: Vec<Check>,
}

impl Check {
    fn new(name: &'static str, result: Mark, message: impl Into<String>) -> Self {
        Self { name, result, message: line(&message.into(), 600), fix: None }
    }

    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Mark::Ok, message)
    }

    fn failed(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Mark::Failed, message).fix(fix)
    }

    fn warning(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Mark::Warning, message).fix(fix)
    }

    fn unknown(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Mark::Unknown, message)
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(line(&fix.into(), 600)), ..self }
    }

    fn text(&self) -> String {
        use anstyle::AnsiColor::{Cyan, Green, Red, Yellow};
        let (sign, color) = match self.result {
            Mark::Ok => ("✓", Green),
            Mark::Warning => ("!", Yellow),
            Mark::Failed => ("✗", Red),
            Mark::Unknown => ("?", Cyan),
        };
        let fix = self.fix.as_ref().map(|fix| format!("\n  → {fix}")).unwrap_or_default();
        format!("{} {}: {}{fix}", paint(sign, color.on_default()), self.name, self.message)
    }
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let checks = match args.endpoint.is_empty() {
        true => examine(&args, &connection).await?,
        false => endpoints(&args.endpoint).await?,
    };
    let ok = checks.iter().all(|check| check.result != Mark::Failed);
    let diagnosis = Diagnosis { ok, checks };
    if args.output.output == Format::Wide || !args.output.output.print(&diagnosis)? {
        let lines: Vec<String> = diagnosis.checks.iter().map(Check::text).collect();
        print(&lines.join("\n"))?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether these addresses of a khook answer as they should: what `helm test` asks.
async fn endpoints(urls: &[Url]) -> Result<Vec<Check>, Error> {
    let way = Way::direct()?;
    let mut checks = Vec::new();
    for url in urls {
        let fix = "see whether khook's pods are ready, and whether a NetworkPolicy keeps others out";
        checks.push(match way.get(url).await {
            Ok(body) if url.path().ends_with("/metrics") => match version(&body) {
                Some(version) => Check::ok("endpoint", format!("{url} has the metrics of khook {version}")),
                None => Check::failed("endpoint", format!("{url} has no khook_build_info"), "is that khook?"),
            },
            Ok(body) => Check::ok("endpoint", format!("{url} answers {}", line(&body, 100))),
            Err(error) => Check::failed("endpoint", format!("{url}: {error}"), fix),
        });
    }
    Ok(checks)
}

/// The version that metrics tell of.
fn version(metrics: &str) -> Option<String> {
    let info = metrics.lines().find(|line| line.starts_with("khook_build_info"))?;
    let version = info.split_once("version=\"").and_then(|(_, rest)| rest.split_once('"'));
    Some(line(version.map_or("of no version", |(version, _)| version), 40))
}

async fn examine(args: &Args, connection: &Connection) -> Result<Vec<Check>, Error> {
    let cluster = connection.connect().await?;
    let inside = args.inside || installation::is_inside() && connection.kubeconfig.is_none();
    let (now, clock) = match cluster.clock().await {
        Ok((now, took)) => (now, difference(now, took)),
        // Nothing else can be looked at either.
        Err(error) => {
            let fix = "see whether `kubectl version` works with the same kubeconfig and context";
            return Ok(vec![Check::failed("apiserver", error.to_string(), fix)]);
        }
    };
    let mut checks = vec![clock, definition::check(&cluster).await];
    let search = match inside {
        true => Search::Found(vec![Installation::beside()?]),
        false => installation::search(&cluster, connection.namespace.as_deref()).await?,
    };
    let found: &[Installation] = match &search {
        Search::Found(found) => found,
        Search::Missing => {
            let message =
                format!("no Deployment labelled {} was found in any namespace", installation::LABEL);
            let fix = "helm install khook oci://ghcr.io/kagent-dev/khook/helm/khook --namespace kagent";
            checks.push(Check::failed("operator", message, fix));
            &[]
        }
        Search::Forbidden(why) => {
            checks.push(
                Check::unknown("operator", format!("you may not list deployments.apps: {why}"))
                    .fix("name its namespace with -n, or run this in its pod: kubectl exec deploy/khook -- /khook doctor"),
            );
            &[]
        }
    };
    for khook in found {
        checks.extend(operator(khook));
        checks.push(rights(&cluster, khook, inside).await);
        checks.push(lease(&cluster, khook, now).await);
        checks.push(watches(&cluster, khook, inside, now).await);
    }
    let kagent = kagent_way(args, &cluster, found.first(), inside)?;
    checks.push(kagent.check().await);
    checks.extend(hooks(&cluster, found.first(), &kagent, now).await);
    Ok(checks)
}

/// Times in the status are khook's, those of Events and pods the cluster's.
fn difference(now: DateTime<Utc>, took: Duration) -> Check {
    // The header has whole seconds, and was written at some time while we waited.
    let apart =
        (Utc::now() - now).abs() - TimeDelta::from_std(took).unwrap_or_default() - TimeDelta::seconds(1);
    let apart = apart.max(TimeDelta::zero());
    if apart <= TimeDelta::seconds(5) {
        return Check::ok("clock", "the clocks here and at the apiserver agree");
    }
    let message = format!("the clocks here and at the apiserver differ by {}", age(apart));
    Check::warning("clock", message, "set them by NTP: khook judges by both how old trouble is")
}

fn operator(khook: &Installation) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(deployment) = &khook.deployment {
        let (wanted, ready) = (deployment.spec.replicas.unwrap_or(1), deployment.status.ready_replicas);
        let image = deployment.container().and_then(|container| container.image.clone());
        let version = deployment.labels().get("app.kubernetes.io/version").cloned().unwrap_or_default();
        let message =
            format!("{}: {ready} of {wanted} ready, image {}", khook.name(), image.unwrap_or_default());
        let fix = format!(
            "kubectl describe pods -n {} -l {}",
            khook.namespace.as_deref().unwrap_or_default(),
            installation::LABEL
        );
        checks.push(match (wanted, ready) {
            (0, _) => Check::failed("operator", message, "it is scaled to 0: kubectl scale --replicas=1"),
            (_, 0) => Check::failed("operator", message, fix),
            _ if ready < wanted => Check::warning("operator", message, fix),
            _ => Check::ok("operator", message),
        });
        let own = env!("CARGO_PKG_VERSION");
        if !version.is_empty() && version != own {
            let message = format!("it is khook {version}, and this program is khook {own}");
            checks.push(Check::warning(
                "version",
                message,
                "use the program of the same version: what they know of differs",
            ));
        }
    }
    if !khook.unread.is_empty() {
        let message =
            format!("not known from here, and taken for their defaults: {}", khook.unread.join(", "));
        checks.push(Check::unknown("settings", message));
    }
    checks
}

/// What khook needs where it watches: group, resource, verbs. As in the chart.
const RIGHTS: [(&str, &str, &[&str]); 4] = [
    ("kagent.dev", "hooks", &["get", "list", "watch"]),
    ("kagent.dev", "hooks/status", &["patch"]),
    ("", "pods", &["get", "list", "watch"]),
    ("events.k8s.io", "events", &["list", "watch", "create", "patch"]),
];

fn wanted(khook: &Installation) -> Vec<ResourceAttributes> {
    let mut wanted = Vec::new();
    let mut want = |namespace: &str, group: &str, resource: &str, verb: &str, name: Option<&String>| {
        let (resource, sub) = match resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (resource, None),
        };
        wanted.push(ResourceAttributes {
            namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: sub,
            verb: Some(verb.to_owned()),
            name: name.cloned(),
            ..ResourceAttributes::default()
        });
    };
    for scope in khook.settings.scopes() {
        let namespace = match &scope {
            Scope::Everywhere => "",
            Scope::Namespace(namespace) => namespace.as_str(),
        };
        for (group, resource, verbs) in RIGHTS {
            verbs.iter().for_each(|verb| want(namespace, group, resource, verb, None));
        }
    }
    let lease = khook.settings.lease_namespace.as_ref().or(khook.namespace.as_ref());
    if let Some(namespace) = lease.filter(|_| khook.settings.leader_election) {
        want(namespace, "coordination.k8s.io", "leases", "create", None);
        for verb in ["get", "update"] {
            want(namespace, "coordination.k8s.io", "leases", verb, Some(&khook.settings.lease_name));
        }
    }
    wanted
}

/// Whether khook may do what it must.
async fn rights(cluster: &Cluster, khook: &Installation, inside: bool) -> Check {
    let account = khook.account();
    let wanted = wanted(khook);
    let number = wanted.len();
    let answers: Vec<_> = stream::iter(wanted)
        .map(|right| async {
            let allowed = match (inside, &account) {
                (true, _) => allowed_here(cluster, right.clone()).await,
                (false, Some((namespace, name))) => allowed(cluster, namespace, name, right.clone()).await,
                (false, None) => Ok(true),
            };
            (right, allowed)
        })
        .buffered(8)
        .collect()
        .await;
    let who = match (inside, account) {
        (true, _) | (_, None) => "khook".to_owned(),
        (false, Some((namespace, name))) => format!("the service account {namespace}/{name}"),
    };
    let mut missing: Vec<(String, String)> = Vec::new();
    for (right, answer) in answers {
        match answer {
            Ok(true) => {}
            Ok(false) => {
                let (verb, what) = told(&right);
                match missing.iter_mut().find(|(_, other)| *other == what) {
                    Some((verbs, _)) => *verbs = format!("{verbs}, {verb}"),
                    None => missing.push((verb, what)),
                }
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let kind = if inside { "selfsubjectaccessreviews" } else { "subjectaccessreviews" };
                return Check::unknown(
                    "rights",
                    format!(
                        "you may not create {kind}.authorization.k8s.io, so what {who} may do is not known"
                    ),
                )
                .fix("run this in khook's pod: kubectl exec deploy/khook -- /khook doctor");
            }
            Err(error) => return Check::unknown("rights", format!("cannot be asked for: {error}")),
        }
    }
    match missing.is_empty() {
        true => Check::ok("rights", format!("{who} has the {number} rights it needs")),
        false => {
            let missing: Vec<String> =
                missing.into_iter().map(|(verbs, what)| format!("{verbs} {what}")).collect();
            let fix =
                "give it these rights: the chart does with rbac.create, and docs/installing.md has them";
            Check::failed("rights", format!("{who} may not {}", missing.join("; ")), fix)
        }
    }
}

/// The verb of a right, and on what.
fn told(right: &ResourceAttributes) -> (String, String) {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let mut resource = text(&right.resource);
    if let Some(sub) = &right.subresource {
        resource = format!("{resource}/{sub}");
    }
    if let Some(group) = right.group.as_ref().filter(|group| !group.is_empty()) {
        resource = format!("{resource}.{group}");
    }
    let name = right.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let place = match &right.namespace {
        Some(namespace) => format!("in namespace {namespace}"),
        None => "in all namespaces".to_owned(),
    };
    (text(&right.verb), format!("{resource}{name} {place}"))
}

async fn allowed_here(cluster: &Cluster, right: ResourceAttributes) -> kube::Result<bool> {
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(right), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &review).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

async fn allowed(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    right: ResourceAttributes,
) -> kube::Result<bool> {
    let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
    let groups = groups.into_iter().chain([format!("system:serviceaccounts:{namespace}")]);
    let spec = SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{namespace}:{account}")),
        groups: Some(groups.collect()),
        resource_attributes: Some(right),
        ..Default::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let api: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &review).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

async fn lease(cluster: &Cluster, khook: &Installation, now: DateTime<Utc>) -> Check {
    match khook.lease(&cluster.client, now).await {
        Held::By(sentence) => Check::ok("lease", sentence),
        Held::NotUsed => Check::ok("lease", "khook works without one (LEADER_ELECTION is false)"),
        Held::Nobody(why) => Check::failed(
            "lease",
            format!("{why}: no agent is called"),
            "see khook's log: kubectl logs deploy/khook",
        ),
        Held::Unknown(why) => Check::unknown("lease", why),
    }
}

/// Whether khook's watches hear of the cluster.
async fn watches(cluster: &Cluster, khook: &Installation, inside: bool, now: DateTime<Utc>) -> Check {
    let metrics = match inside {
        true => {
            let url = format!("http://127.0.0.1:{}/metrics", khook.settings.metrics_port);
            match (Way::direct(), Url::parse(&url)) {
                (Ok(way), Ok(url)) => way.get(&url).await,
                (Err(error), _) => Err(error.to_string()),
                (_, Err(error)) => Err(error.to_string()),
            }
        }
        false => metrics_of_pod(cluster, khook).await,
    };
    match metrics {
        Ok(metrics) => heard(&metrics, khook.settings.watch_timeout, now),
        Err(error) => Check::unknown("watches", format!("khook's metrics cannot be had: {error}"))
            .fix("run this in khook's pod: kubectl exec deploy/khook -- /khook doctor"),
    }
}

/// The metrics of the pod that leads, through the apiserver.
async fn metrics_of_pod(cluster: &Cluster, khook: &Installation) -> Result<String, String> {
    let namespace = khook.namespace.as_deref().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(installation::LABEL)).await;
    let list = list.map_err(|error| cluster.refused("list", "pods", false, error).to_string())?;
    let running = |pod: &&Pod| pod.status.phase.as_deref() == Some("Running");
    let pods: Vec<String> = list.items.iter().filter(running).map(|pod| pod.name_any()).collect();
    let mut newest = Err(format!("no pod labelled {} runs in namespace {namespace}", installation::LABEL));
    for pod in pods {
        let port = khook.settings.metrics_port;
        newest = way::proxied(cluster, namespace, "pods", &format!("http:{pod}:{port}"), "/metrics").await;
        // Every replica watches, also one that does not lead.
        if newest.is_ok() {
            break;
        }
    }
    newest
}

fn heard(metrics: &str, watch_timeout: Duration, now: DateTime<Utc>) -> Check {
    const NAME: &str = "khook_watch_contact_timestamp_seconds{";
    let mut silent = Vec::new();
    let mut number = 0;
    for sample in metrics.lines().filter_map(|line| line.strip_prefix(NAME)) {
        let Some((labels, value)) = sample.rsplit_once("} ") else { continue };
        number += 1;
        let at = value.trim().parse::<f64>().unwrap_or_default();
        let silence = now.timestamp_millis() as f64 / 1000.0 - at;
        let label = |name: &str| {
            let rest = labels.split_once(&format!("{name}=\""));
            rest.and_then(|(_, rest)| rest.split_once('"')).map_or("?", |(value, _)| value).to_owned()
        };
        if silence > watch_timeout.as_secs_f64() + 60.0 {
            let since = if at > 0.0 { format!("silent for {silence:.0} s") } else { "never answered".into() };
            silent.push(format!("{} of {} ({since})", label("watch"), label("scope")));
        }
    }
    match (number, silent.is_empty()) {
        (0, _) => Check::unknown("watches", "khook's metrics tell of none: is it that old?"),
        (_, true) => Check::ok("watches", format!("the apiserver answers all {number} watches")),
        (_, false) => Check::failed(
            "watches",
            format!("not answered: {}", silent.join(", ")),
            "see `rights` above, and khook's log: kubectl logs deploy/khook",
        ),
    }
}

/// kagent, and the way to it.
struct Kagent {
    url: Url,
    way: Result<Way, Error>,
    /// What is not reached from here may be reached by khook.
    certain: bool,
}

fn kagent_way(
    args: &Args,
    cluster: &Cluster,
    khook: Option<&Installation>,
    inside: bool,
) -> Result<Kagent, Error> {
    let settings = khook.map_or_else(installation::defaults, |khook| khook.settings.clone());
    let url = args.kagent_url.clone().unwrap_or(settings.kagent_base_url);
    if args.kagent_url.is_some() || inside {
        return Ok(Kagent { url, way: Way::direct(), certain: true });
    }
    let proxy = way::Proxy::to(cluster, &url);
    let certain = proxy.is_some();
    Ok(Kagent { way: proxy.map_or_else(Way::direct, |proxy| Ok(Way::Proxy(Box::new(proxy)))), url, certain })
}

impl Kagent {
    async fn get(&self, path: &str) -> Result<String, String> {
        let way = self.way.as_ref().map_err(ToString::to_string)?;
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        way.get(&url).await
    }

    async fn check(&self) -> Check {
        let url = &self.url;
        match self.get("/health").await {
            Ok(_) => {
                let version = self.get("/version").await.unwrap_or_default();
                let version: serde_json::Value = serde_json::from_str(&version).unwrap_or_default();
                let version = version["kagent_version"].as_str().unwrap_or("of an unknown version");
                Check::ok("kagent", format!("{url} answers, kagent {version}"))
            }
            Err(error) if way::is_forbidden(&error) => {
                Check::unknown("kagent", format!("{url} cannot be looked at from here: {error}"))
                    .fix("run this in khook's pod, or give its address as seen from here: --kagent-url")
            }
            Err(error) if self.certain => Check::failed(
                "kagent",
                format!("{url} does not answer: {error}"),
                "see whether kagent's controller runs, and whether KAGENT_BASE_URL (kagent.apiUrl of the chart) is right",
            ),
            Err(error) => Check::unknown("kagent", format!("{url} does not answer from here: {error}"))
                .fix("run this in khook's pod, or give its address as seen from here: --kagent-url"),
        }
    }

    /// Whether kagent serves that agent; none where that cannot be told.
    async fn serves(&self, namespace: &str, name: &str) -> Option<bool> {
        let path = format!("/api/a2a/{namespace}/{name}/.well-known/agent-card.json");
        self.get(&path).await.is_ok().then_some(true)
    }
}

/// The Hooks, and the agents they name.
async fn hooks(
    cluster: &Cluster,
    khook: Option<&Installation>,
    kagent: &Kagent,
    now: DateTime<Utc>,
) -> Vec<Check> {
    let (hooks, place) = match cluster.list_hooks(true).await {
        Ok(hooks) => (hooks, "all namespaces".to_owned()),
        Err(everywhere) => match cluster.list_hooks(false).await {
            Ok(hooks) => {
                (hooks, format!("namespace {} (those of others you may not list)", cluster.namespace))
            }
            Err(_) => return vec![Check::unknown("hooks", everywhere.to_string())],
        },
    };
    let policy = khook.map_or_else(Policy::default, |khook| khook.settings.policy());
    let mut checks = Vec::new();
    let mut agents: BTreeMap<AgentName, BTreeSet<String>> = BTreeMap::new();
    for hook in &hooks {
        let namespace = hook.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}", hook.name_any());
        let rules = Rules::parse(&hook.spec, &namespace, &policy);
        checks.extend(sound(hook, &name, &rules, now));
        for rule in rules.configurations {
            agents.entry(rule.agent).or_default().insert(name.clone());
        }
    }
    if checks.is_empty() {
        let number = hooks.len();
        let are = if number == 1 { "Hook" } else { "Hooks" };
        checks.push(match number {
            0 => Check::warning(
                "hooks",
                format!("there are none in {place}"),
                "nobody is called: apply one, docs/installing.md has a first",
            ),
            _ => Check::ok("hooks", format!("{number} {are} in {place}, none Stalled")),
        });
    }
    checks.extend(agents_exist(cluster, kagent, &agents).await);
    checks
}

fn sound(hook: &Hook, name: &str, rules: &Rules, now: DateTime<Utc>) -> Option<Check> {
    let status = hook.status.as_ref();
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let describe = format!("khook describe {} -n {}", hook.name_any(), hook.namespace().unwrap_or_default());
    if let Some(stalled) = conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True") {
        let message = format!("{name} is Stalled, {}: {}", stalled.reason, stalled.message);
        return Some(Check::failed("hooks", message, format!("mend it; {describe}")));
    }
    if let Some(problem) = rules.problems.iter().find(|problem| problem.severity == Severity::Error) {
        let message = format!("{name} cannot be used as it stands, {}: {}", problem.reason, problem.message);
        return Some(Check::failed("hooks", message, format!("mend it; {describe}")));
    }
    let seen = status.and_then(|status| status.observed_generation);
    let created = hook.metadata.creation_timestamp.as_ref();
    let created = created.and_then(|at| DateTime::from_timestamp_millis(at.0.as_millisecond()));
    let new = created.is_some_and(|at| now - at < TimeDelta::seconds(30));
    (seen != hook.metadata.generation && !new && seen.is_none()).then(|| {
        let fix = "see `operator`, `lease` and `watches`: khook does not work, or not in that namespace";
        Check::failed("hooks", format!("{name}: khook has not seen it"), fix)
    })
}

/// Whether the agents that Hooks name are there.
async fn agents_exist(
    cluster: &Cluster,
    kagent: &Kagent,
    agents: &BTreeMap<AgentName, BTreeSet<String>>,
) -> Vec<Check> {
    let kind = GroupVersionKind::gvk("kagent.dev", "v1alpha2", "Agent");
    let resource = ApiResource::from_gvk(&kind);
    let (mut there, mut direct, mut unknown) = (0, 0, BTreeSet::new());
    let mut checks = Vec::new();
    let mut why = String::new();
    for (agent, hooks) in agents {
        let AgentName::Kagent { namespace, name } = agent else {
            direct += 1;
            continue;
        };
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
        let exists = match api.get(name).await {
            Ok(_) => Some(true),
            // Named: the kind is known, and this one is not.
            Err(kube::Error::Api(status)) if status.code == 404 && status.details.is_some() => Some(false),
            Err(kube::Error::Api(status)) => {
                why = match status.code {
                    403 => "you may not get agents.kagent.dev".to_owned(),
                    404 => "the cluster has no agents.kagent.dev".to_owned(),
                    _ => status.message.clone(),
                };
                kagent.serves(namespace, name).await
            }
            Err(error) => {
                why = error.to_string();
                None
            }
        };
        let hooks: Vec<&str> = hooks.iter().map(String::as_str).collect();
        match exists {
            Some(true) => there += 1,
            Some(false) => checks.push(Check::failed(
                "agents",
                format!("there is no agent {agent}, which {} names", hooks.join(", ")),
                format!("create it, or name another: kubectl get agents.kagent.dev -n {namespace}"),
            )),
            None => drop(unknown.insert(agent.to_string())),
        }
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        let message = format!(
            "whether these exist is not known: {} ({why}, and kagent does not tell)",
            names.join(", ")
        );
        checks.push(Check::unknown("agents", message));
    }
    if there > 0 {
        checks.push(Check::ok("agents", format!("{there} named in Hooks, and there")));
    }
    if direct > 0 {
        checks.push(Check::unknown(
            "agents",
            format!("{direct} asked directly, by URL: those are not looked at"),
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_are_those_of_the_chart() {
        let helpers = include_str!("../../helm/khook/templates/_helpers.tpl");
        let (_, rules) = helpers.split_once("{{- define \"khook.rules\" -}}").unwrap();
        let (rules, _) = rules.split_once("{{- end }}").unwrap();
        let rules: serde_json::Value = serde_yaml::from_str(rules).unwrap();
        let ours: Vec<serde_json::Value> = RIGHTS
            .iter()
            .map(|(group, resource, verbs)| {
                serde_json::json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
            })
            .collect();
        assert_eq!(rules["rules"], serde_json::Value::from(ours));
    }

    #[test]
    fn a_watch_that_is_silent_is_told_of() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let sample = |watch: &str, at: f64| {
            format!("khook_watch_contact_timestamp_seconds{{scope=\"all\",watch=\"{watch}\"}} {at}\n")
        };
        let check = |text: &str| heard(text, Duration::from_secs(60), now);
        assert_eq!(check(&sample("pods", 1_699_999_950.0)).result, Mark::Ok);
        let silent = check(&(sample("pods", 1_699_999_950.0) + &sample("hooks", 1_699_999_000.5)));
        assert_eq!(
            (silent.result, silent.message.as_str()),
            (Mark::Failed, "not answered: hooks of all (silent for 1000 s)")
        );
        assert!(check(&sample("events", 0.0)).message.contains("never answered"));
        assert_eq!(check("").result, Mark::Unknown);
    }

    #[test]
    fn clocks_may_differ_by_a_little() {
        assert_eq!(difference(Utc::now() - TimeDelta::seconds(3), Duration::ZERO).result, Mark::Ok);
        assert_eq!(difference(Utc::now() - TimeDelta::seconds(90), Duration::ZERO).result, Mark::Warning);
        assert_eq!(difference(Utc::now() + TimeDelta::seconds(90), Duration::ZERO).result, Mark::Warning);
    }
}
