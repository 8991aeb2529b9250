//! A run plays one scenario with its faults, waits until all is at rest, and hands over the record.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use khook::{
    client::Clients,
    hook::{EventType, FarewellState, Hook, Phase},
    sabotage::{self, Safeguard},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    point::{Class, Deed, Point},
    proxy::{self, Proxy, Upstream},
    record::{Asked, Became, Expected, Line, Recorder, Terms, What, expected, is_in_doubt},
    scenarios::Scenario,
};
use crate::{
    agent::Agent,
    control_plane::ControlPlane,
    operator::Operator,
    wait::eventually,
    world::{World, crd_yaml},
};

/// What runs share.
pub struct Ground {
    control_plane: &'static ControlPlane,
}

/// How a run is played.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What breaks.
    pub points: Vec<Point>,
    /// The safeguard that khook works without.
    pub without: Option<Safeguard>,
    /// Until when everything has to be at rest, if not [`SETTLE`].
    pub settle: Option<Duration>,
    /// Where to keep khook's logs.
    pub logs: Option<PathBuf>,
}

/// One run, shared by its proxies.
pub struct Run {
    /// What a user and the cluster do.
    pub world: World,
    /// What happened.
    pub record: Recorder,
    pub(super) control_plane: &'static ControlPlane,
    pub(super) state: Mutex<State>,
    operators: Mutex<Vec<Option<Arc<Operator>>>>,
    /// Where each replica finds the agents.
    agents: Mutex<Vec<String>>,
    acts: tokio::sync::Mutex<JoinSet<()>>,
    numbers: AtomicU64,
    blind: bool,
    settle: Duration,
    /// Closed when the run is over: what hangs ends then, and nobody brings killed replicas back.
    over: Semaphore,
}

/// Where a run stands.
#[derive(Default)]
pub(super) struct State {
    counts: BTreeMap<(usize, Class), u32>,
    /// What is to break yet.
    points: Vec<Point>,
    /// Faults of which nothing came: a Hook that is gone already cannot be changed.
    pub(super) idle: usize,
    /// A user takes back what the scenario asked for.
    taken_back: bool,
    /// The namespace was deleted.
    pub(super) terminated: bool,
    /// Replicas that the scenario itself has stopped.
    stopped: BTreeSet<usize>,
}

/// A request on its way.
pub struct Ticket {
    number: u64,
    class: Class,
    /// What is to break.
    pub deed: Option<Deed>,
}

/// What came of a run.
pub struct Played {
    /// The record.
    pub lines: Vec<Line>,
    /// How many requests and lines of each class the first replica had.
    pub counts: BTreeMap<Class, u32>,
    /// Faults that never had their moment, or of which nothing came.
    pub unreached: usize,
}

/// The spans of fault runs: everything within seconds. A scenario may set its own.
const SPANS: &[(&str, &str)] = &[
    ("BIND_ADDRESS", "127.0.0.1"),
    // Nobody asks there.
    ("HEALTH_PORT", "0"),
    ("METRICS_PORT", "0"),
    ("LOG_LEVEL", "debug"),
    ("LOG_FORMAT", "text"),
    ("REPEAT_INTERVAL", "2s"),
    ("RESOLVE_TIMEOUT", "1500ms"),
    ("RETENTION", "60s"),
    ("HOLD_SCALE", "0.01"),
    ("CLEAR_HOLD", "300ms"),
    ("RUNNING_HOLD", "500ms"),
    ("RETRY_BASE", "100ms"),
    ("RETRY_MAX", "500ms"),
    ("ROUND_INTERVAL", "1500ms"),
    ("TAKEOVER_MARGIN", "500ms"),
    ("LOOKUP_GRACE", "300ms"),
    ("BREAKER_THRESHOLD", "2"),
    ("BREAKER_BASE", "400ms"),
    ("BREAKER_MAX", "1s"),
    ("WRITE_INTERVAL", "50ms"),
    ("OUTCOME_DELAY", "100ms"),
    ("QUIET_WRITE_INTERVAL", "500ms"),
    ("FOLLOW_MIN", "100ms"),
    ("FOLLOW_MAX", "400ms"),
    ("TASK_DEADLINE", "3s"),
    ("KAGENT_API_TIMEOUT", "1500ms"),
    ("LEASE_DURATION", "2s"),
    ("LEASE_RENEW", "500ms"),
    ("WATCH_TIMEOUT", "20s"),
    ("DRAIN_TIMEOUT", "3s"),
];

/// Until a killed process has a successor.
const RESTART: Duration = Duration::from_millis(150);
/// Until when everything has to be at rest: many times what it takes.
pub const SETTLE: Duration = Duration::from_secs(45);
/// Long enough for a watch to begin anew.
const A_LITTLE: Duration = Duration::from_secs(5);
/// For how long nothing may then be written.
const REST: Duration = Duration::from_millis(700);

impl Ground {
    /// On this control plane.
    pub async fn on(control_plane: &'static ControlPlane) -> Result<Self> {
        control_plane.apply(&crd_yaml()?).await.context("the CRD")?;
        Ok(Self { control_plane })
    }

    /// Plays a scenario.
    pub async fn play(&self, scenario: &'static Scenario, options: Options) -> Result<Played> {
        // A control plane that was broken on purpose may still be on its way back.
        let made = async || self.control_plane.fresh_namespace(&scenario.name.replace('.', "-")).await;
        let namespace = eventually("a namespace", SETTLE, made).await?;
        let agent = Arc::new(Agent::spawn().await?);
        let world = World::with(self.control_plane, agent, namespace).await?;
        let run = Arc::new(Run {
            world,
            record: Recorder::default(),
            control_plane: self.control_plane,
            state: Mutex::new(State { points: options.points.clone(), ..State::default() }),
            operators: Mutex::default(),
            agents: Mutex::default(),
            acts: tokio::sync::Mutex::default(),
            numbers: AtomicU64::new(0),
            blind: scenario.blind,
            settle: options.settle.unwrap_or(SETTLE),
            over: Semaphore::new(0),
        });
        run.record.note(What::Begin {
            scenario: scenario.name.to_owned(),
            points: options.points.clone(),
            terms: terms(scenario),
        });
        // From a version before anything happens: none is missed, however late the watch begins.
        let before = run.world.hooks().list(&Default::default()).await?.metadata.resource_version;
        let watch = tokio::spawn(watch_versions(run.clone(), before.unwrap_or_default()));
        let lag = Arc::new(AtomicU64::new(0));
        let measure = tokio::spawn(measure_lag(lag.clone()));
        let result = self.play_out(&run, scenario, &options).await;
        let unsettled = result.err().map(|error| format!("{error:#}"));
        run.record.note(What::End { unsettled, lag: lag.load(Ordering::SeqCst) });
        run.over.close();
        watch.abort();
        measure.abort();
        run.acts.lock().await.shutdown().await;
        if let Some(folder) = &options.logs {
            run.keep_logs(folder)?;
        }
        let stop = run.clone();
        tokio::task::spawn_blocking(move || lock(&stop.operators).clear()).await.context("stopping khook")?;
        run.clean_up().await;
        let state = lock(&run.state);
        let counts = state.counts.iter().filter(|((replica, _), _)| *replica == 0);
        let counts = counts.map(|((_, class), count)| (*class, *count)).collect();
        Ok(Played { lines: run.record.read(), counts, unreached: state.points.len() + state.idle })
    }

    async fn play_out(&self, run: &Arc<Run>, scenario: &Scenario, options: &Options) -> Result<()> {
        run.grant_rights().await?;
        let namespace = &run.world.namespace;
        let account = self.control_plane.service_account_kubeconfig(namespace, "khook").await?;
        let config = crate::control_plane::config_of(&account).await?;
        let mut proxies = Vec::new();
        for (replica, more) in scenario.replicas.iter().enumerate() {
            let clients = Clients::new(config.clone(), Duration::from_secs(60)).context("a client")?;
            let upstream = Upstream::Apiserver(Box::new(clients), namespace.clone());
            let apiserver = Proxy::start(run.clone(), replica, upstream).await?;
            let upstream = Upstream::Agent(crate::http_client()?, run.world.agent.url());
            let agent = Proxy::start(run.clone(), replica, upstream).await?;
            lock(&run.agents).push(agent.url().to_owned());
            let operator = setup(namespace, scenario, options, replica, more, &apiserver, &agent)?;
            lock(&run.operators).push(None);
            let operator = Arc::new(operator.start().await?);
            lock(&run.operators)[replica] = Some(operator.clone());
            run.record.note(What::Process { replica, became: Became::Started });
            proxies.push((apiserver, agent));
            if scenario.replicas.len() > 1 && replica == 0 && terms(scenario).elected {
                // The one that faults befall is the one that leads.
                let leads = || run.record.read().iter().any(|line| takes_lease(line, replica));
                eventually("the first replica to lead", SETTLE, async || {
                    ensure!(leads(), "nobody leads");
                    Ok(())
                })
                .await?;
            }
        }
        match (scenario.play)(run.clone()).await {
            // Nothing can happen in a namespace that is gone.
            Err(_) if lock(&run.state).terminated => {}
            other => other.context("the scenario itself")?,
        }
        // What a user does for a while is over then.
        while run.acts.lock().await.join_next().await.is_some() {}
        run.come_to_rest().await?;
        run.record.note(What::Rest);
        tokio::time::sleep(REST).await;
        // A proxy is dropped only here: until then it belongs to whoever still talks.
        drop(proxies);
        Ok(())
    }
}

fn setup(
    namespace: &str,
    scenario: &Scenario,
    options: &Options,
    replica: usize,
    more: &[(&str, &str)],
    apiserver: &Proxy,
    agent: &Proxy,
) -> Result<crate::operator::Setup> {
    let scratch_kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "run",
        "contexts": [{"name": "run", "context": {"cluster": "run", "user": "run", "namespace": namespace}}],
        "clusters": [{"name": "run", "cluster": {"server": apiserver.url()}}],
        "users": [{"name": "run", "user": {}}],
    });
    let mut setup = Operator::new(std::path::Path::new("unset"), agent.url())?;
    let file = setup.dir().join("kubeconfig");
    std::fs::write(&file, scratch_kubeconfig.to_string()).context("writing a kubeconfig")?;
    setup = setup.env("KUBECONFIG", file.display()).env("LEASE_NAME", "khook");
    setup = setup.env("LEASE_NAMESPACE", namespace).env("POD_NAME", pod_name(replica));
    for (name, value) in SPANS.iter().chain(scenario.env).chain(more) {
        setup = setup.env(name, value);
    }
    if let Some(safeguard) = options.without {
        setup = setup.env(sabotage::WITHOUT, safeguard.as_str());
    }
    Ok(setup)
}

fn pod_name(replica: usize) -> String {
    format!("khook-{replica}")
}

fn terms(scenario: &Scenario) -> Terms {
    let set = |name: &str| scenario.env.iter().chain(SPANS).find(|(key, _)| *key == name).map(|pair| pair.1);
    let number = |name: &str, other| set(name).and_then(|value| value.parse().ok()).unwrap_or(other);
    let span = |name: &str| {
        let span = set(name).and_then(|value| khook::hook::parse_duration(value).ok()).unwrap_or_default();
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    };
    Terms {
        replicas: (0..scenario.replicas.len()).map(pod_name).collect(),
        elected: set("LEADER_ELECTION") != Some("false"),
        max_entries: number("MAX_ENTRIES", 100),
        breaker_threshold: number("BREAKER_THRESHOLD", 5),
        breaker_base: span("BREAKER_BASE"),
        slots: number("CALL_SLOTS_PER_AGENT", 16),
        lease: span("LEASE_DURATION"),
        look: 1000,
        blind: scenario.blind,
        stale: if set("STALE_AFTER").is_some() { span("STALE_AFTER") } else { 900_000 },
    }
}

impl Run {
    /// The scenario expects this of an incident, asked of `kagent/k8s-agent`.
    pub fn expect(&self, event_type: EventType, pod: &str, asked: Asked) {
        self.expect_of(event_type, pod, "kagent/k8s-agent", asked, 1);
    }

    /// The same, asked of another agent, and so often at most.
    pub fn expect_of(&self, event_type: EventType, pod: &str, agent: &str, asked: Asked, most: usize) {
        let (pod, agent) = (pod.to_owned(), agent.to_owned());
        self.record.note(What::Expect { event_type, pod, agent, asked, most });
    }

    /// Does something until the control plane takes it: it may be away at the moment.
    pub async fn insist<T>(&self, act: impl AsyncFn() -> Result<T>) -> Result<T> {
        eventually("the control plane to take it", self.settle, async || {
            match act().await {
                // It never will, in a namespace that is gone.
                Err(error) if lock(&self.state).terminated => Ok(Err(error)),
                other => Ok(Ok(other?)),
            }
        })
        .await?
    }

    /// A Hook that asks `kagent/k8s-agent` about these kinds of trouble.
    pub async fn hook(&self, name: &str, types: &[&str]) -> Result<()> {
        self.insist(async || self.world.hook(name, types).await).await
    }

    /// Where the first replica finds the plain agent of this name.
    pub fn direct_url(&self, name: &str) -> String {
        let base = lock(&self.agents).first().cloned().unwrap_or_default();
        format!("{base}/direct/{name}")
    }

    /// kubelet's Warning that a container is in crash loop, once.
    pub async fn crash(&self, pod: &str) -> Result<()> {
        self.insist(async || self.world.crash(pod).await).await
    }

    /// Waits until khook has seen its Hook, so that what happens next is news to it.
    pub async fn listens(&self) -> Result<()> {
        self.sees("khook to listen", |hooks| hooks.iter().all(|hook| hook.status.is_some())).await
    }

    /// Waits until something shows in the Hooks, or a user took everything back.
    pub async fn sees(&self, what: &str, shows: impl Fn(&[Hook]) -> bool) -> Result<()> {
        eventually(what, self.settle, async || {
            let hooks = self.world.hooks().list(&Default::default()).await?.items;
            ensure!(self.is_taken_back() || shows(&hooks), "{}", brief(&hooks));
            Ok(())
        })
        .await
    }

    /// Gives khook the time to hear of something that changes little; whoever took it back never hears of it.
    pub async fn heard(&self, shows: impl Fn(&[Hook]) -> bool) {
        let shown = eventually("khook to hear of it", 2 * A_LITTLE, async || {
            ensure!(shows(&self.world.hooks().list(&Default::default()).await?.items), "not yet");
            Ok(())
        });
        // What comes of it is for the checks.
        shown.await.ok();
    }

    /// Kills a replica, for the scenario to [`start`](Self::start) again.
    pub async fn stop(self: &Arc<Self>, replica: usize) -> Result<()> {
        lock(&self.state).stopped.insert(replica);
        self.end(replica).await
    }

    /// Kills a replica.
    pub(super) async fn end(self: &Arc<Self>, replica: usize) -> Result<()> {
        let operator = self.operator(replica)?;
        tokio::task::spawn_blocking(move || operator.kill()).await.context("killing khook")??;
        self.record.note(What::Process { replica, became: Became::Killed });
        Ok(())
    }

    /// Starts a killed replica again.
    pub async fn start(self: &Arc<Self>, replica: usize) -> Result<()> {
        lock(&self.state).stopped.remove(&replica);
        let operator = self.operator(replica)?;
        tokio::task::spawn_blocking(move || operator.restart()).await.context("starting khook")??;
        self.record.note(What::Process { replica, became: Became::Started });
        Ok(())
    }

    // ---- what proxies tell and ask

    /// For so long nobody may think that all is at rest.
    pub(super) async fn later_by(&self, span: Duration) {
        self.later(tokio::time::sleep(span)).await;
    }

    /// Hangs until the run is over.
    pub(super) async fn hang(&self) {
        // An error says that it was closed, which is what is awaited.
        let _ = self.over.acquire().await;
    }

    /// A request arrived.
    pub(super) fn arrives(&self, replica: usize, class: Class, path: &str, body: &[u8]) -> Ticket {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        self.record.note(proxy::quote(number, replica, class, path, body));
        Ticket { number, class, deed: self.breaks(replica, class) }
    }

    /// It was answered, or not.
    pub(super) fn answered(
        &self,
        ticket: &Ticket,
        answer: Option<(u16, &[u8])>,
        refused: Option<&str>,
        delivered: bool,
    ) {
        let wanted = matches!(ticket.class, Class::Status | Class::Send | Class::Lookup);
        let body: Value = answer
            .filter(|_| wanted)
            .and_then(|(_, body)| serde_json::from_slice(body).ok())
            .unwrap_or_default();
        let version = body["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok());
        if let (Class::Status, Some(version)) = (ticket.class, version) {
            // The watch may have to begin anew, and miss it.
            self.record.note(What::Version {
                version,
                uid: body["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                generation: body["metadata"]["generation"].as_i64().unwrap_or_default(),
                deleted: false,
                status: serde_json::from_value(body["status"].clone()).unwrap_or_default(),
            });
        }
        let mut shows = Vec::new();
        if ticket.class == Class::Lookup {
            message_ids(&body, &mut shows);
        }
        self.record.note(What::Answer {
            number: ticket.number,
            code: answer.map(|(code, _)| code),
            served: refused.is_none(),
            delivered,
            version: version.filter(|_| ticket.class == Class::Status),
            rpc: body["error"]["code"].as_i64(),
            ran: ticket.class == Class::Send && body["result"].is_object(),
            shows,
        });
    }

    /// A watch is about to tell a line.
    pub(super) fn tells(&self, replica: usize, class: Class, line: &[u8]) -> Option<Deed> {
        // A bookmark tells nothing.
        if line.starts_with(b"{\"type\":\"BOOKMARK\"") { None } else { self.breaks(replica, class) }
    }

    /// A watch has told a line.
    pub(super) fn told(&self, replica: usize, class: Class, line: &[u8]) {
        if class != Class::WatchHooks {
            return;
        }
        let event: Value = serde_json::from_slice(line).unwrap_or_default();
        let hook = &event["object"];
        if let Some(uid) = hook["metadata"]["uid"].as_str() {
            self.record.note(What::Told {
                replica,
                uid: uid.to_owned(),
                generation: hook["metadata"]["generation"].as_i64().unwrap_or_default(),
                deleted: event["type"] == "DELETED",
                suspended: hook["spec"]["suspend"] == true,
                types: (hook["spec"]["eventConfigurations"].as_array().into_iter().flatten())
                    .filter_map(|of| of["eventType"].as_str().map(str::to_owned))
                    .collect(),
            });
        }
    }

    /// Kills a replica; a successor starts a little later.
    pub(super) async fn kill(self: &Arc<Self>, replica: usize) {
        if self.end(replica).await.is_err() {
            return;
        }
        let run = self.clone();
        self.later(async move {
            tokio::time::sleep(RESTART).await;
            let stopped = lock(&run.state).stopped.contains(&replica);
            if !stopped && !run.over.is_closed() {
                run.start(replica).await.ok();
            }
        })
        .await;
    }

    fn breaks(&self, replica: usize, class: Class) -> Option<Deed> {
        let mut state = lock(&self.state);
        let count = state.counts.entry((replica, class)).or_default();
        *count += 1;
        let nth = *count;
        let place = |point: &Point| (point.replica, point.class, point.nth) == (replica, class, nth);
        let index = state.points.iter().position(place)?;
        let point = state.points.remove(index);
        if point.deed.takes_back() {
            state.taken_back = true;
        }
        drop(state);
        self.record.note(What::Broke { point });
        Some(point.deed)
    }

    fn is_taken_back(&self) -> bool {
        lock(&self.state).taken_back
    }

    pub(super) fn operator(&self, replica: usize) -> Result<Arc<Operator>> {
        lock(&self.operators).get(replica).cloned().flatten().context("no such replica")
    }

    pub(super) async fn later(&self, act: impl Future<Output = ()> + Send + 'static) {
        self.acts.lock().await.spawn(act);
    }

    /// The pods of the run.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.world.client.clone(), &self.world.namespace)
    }

    /// Waits until every incident is resolved, everyone expected was asked, and khook knows the newest spec.
    async fn come_to_rest(&self) -> Result<()> {
        let mut since: Option<(Instant, Vec<Option<String>>)> = None;
        eventually("everything to come to rest", self.settle, async || {
            {
                let mut acts = self.acts.lock().await;
                while acts.try_join_next().is_some() {}
                ensure!(acts.is_empty(), "what a user does for a while is not over");
            }
            let hooks = self.world.hooks().list(&Default::default()).await?.items;
            let (terminated, taken_back) = {
                let state = lock(&self.state);
                (state.terminated, state.taken_back)
            };
            ensure!(terminated || !hooks.is_empty(), "there is no Hook");
            for hook in &hooks {
                let status = hook.status.clone().unwrap_or_default();
                ensure!(status.observed_generation == hook.metadata.generation, "the spec is not seen yet");
                let open = status.active_events.iter().any(|entry| {
                    let followed = entry.task_id.is_some() && entry.outcome.is_none();
                    let tells = entry.farewell.as_ref().is_some_and(|farewell| {
                        matches!(farewell.state, FarewellState::Due | FarewellState::Calling)
                    });
                    entry.status != Phase::Resolved || followed || tells
                });
                ensure!(!open && status.overflow.is_none(), "{}", brief(&hooks));
            }
            // Read anew: a process that begins later may be excused of more.
            let lines = self.record.read();
            for expected in expected(&lines) {
                let Expected { event_type, pod, agent, asked, .. } = &expected;
                let doubt = || self.blind && is_in_doubt(&lines, &expected);
                let excused = taken_back || terminated || *asked == Asked::Never || doubt();
                let was =
                    excused || hooks.iter().any(|hook| self.was_asked(hook, &lines, *event_type, pod, agent));
                ensure!(was, "{agent} was not asked about {event_type} on {pod}: {}", brief(&hooks));
            }
            // Nothing moves any more: not merely between two things.
            let versions = hooks.iter().map(ResourceExt::resource_version).collect();
            if since.as_ref().is_none_or(|(_, before)| *before != versions) {
                since = Some((Instant::now(), versions));
            }
            ensure!(
                since.as_ref().is_some_and(|(at, _)| at.elapsed() > Duration::from_millis(800)),
                "it moves"
            );
            Ok(())
        })
        .await
    }

    // By the Hook as it is now: one that was made anew begins anew, but with what is over by then.
    fn was_asked(&self, hook: &Hook, lines: &[Line], event_type: EventType, pod: &str, agent: &str) -> bool {
        let of_hook = hook.uid().unwrap_or_default();
        let sessions: BTreeSet<&str> = lines
            .iter()
            .filter_map(|line| match &line.what {
                What::Version { uid, status, .. }
                    if *uid == of_hook || event_type == EventType::PodPending =>
                {
                    Some(status)
                }
                _ => None,
            })
            .flat_map(|status| &status.active_events)
            .filter_map(|entry| entry.session_id.as_deref())
            .collect();
        self.world.agent.runs().iter().any(|run| {
            // A plain agent has its URL for a name.
            agent.ends_with(&run.agent)
                && sessions.contains(run.session.as_str())
                && run.metadata["resourceName"] == pod
                && run.metadata["eventType"] == event_type.as_str()
        })
    }

    fn keep_logs(&self, folder: &std::path::Path) -> Result<()> {
        std::fs::create_dir_all(folder).context("a folder for logs")?;
        for (replica, operator) in lock(&self.operators).iter().enumerate() {
            if let Some(operator) = operator {
                std::fs::copy(operator.log_path(), folder.join(format!("khook-{replica}.log")))
                    .context("keeping a log")?;
            }
        }
        Ok(())
    }

    /// What is not needed any more would make every list of the shared control plane longer.
    async fn clean_up(&self) {
        let (params, all) = (DeleteParams::default().grace_period(0), Default::default());
        let events: Api<k8s_openapi::api::core::v1::Event> =
            Api::namespaced(self.world.client.clone(), &self.world.namespace);
        self.world.hooks().delete_collection(&params, &all).await.ok();
        self.pods().delete_collection(&params, &all).await.ok();
        events.delete_collection(&params, &all).await.ok();
        let namespaces: Api<Namespace> = Api::all(self.world.client.clone());
        namespaces.delete(&self.world.namespace, &params).await.ok();
    }
}

/// Writes down every version of every Hook of the run, as the apiserver itself tells it.
async fn watch_versions(run: Arc<Run>, mut version: String) {
    let hooks = run.world.hooks();
    loop {
        let Ok(stream) = hooks.watch(&WatchParams::default(), &version).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        futures::pin_mut!(stream);
        while let Some(Ok(event)) = stream.next().await {
            let (hook, deleted) = match event {
                WatchEvent::Added(hook) | WatchEvent::Modified(hook) => (hook, false),
                WatchEvent::Deleted(hook) => (hook, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(_) => {
                    "0".clone_into(&mut version);
                    break;
                }
            };
            version = hook.resource_version().unwrap_or_default();
            run.record.note(What::Version {
                version: version.parse().unwrap_or_default(),
                uid: hook.uid().unwrap_or_default(),
                generation: hook.metadata.generation.unwrap_or_default(),
                deleted,
                status: Box::new(hook.status.unwrap_or_default()),
            });
        }
    }
}

fn takes_lease(line: &Line, of: usize) -> bool {
    matches!(&line.what, What::Request { replica, holder: Some(_), .. } if *replica == of)
}

/// How long this machine lets us wait beyond what we asked for.
async fn measure_lag(longest: Arc<AtomicU64>) {
    const NAP: Duration = Duration::from_millis(20);
    loop {
        let begun = Instant::now();
        tokio::time::sleep(NAP).await;
        let late = u64::try_from(begun.elapsed().saturating_sub(NAP).as_micros()).unwrap_or(u64::MAX);
        longest.fetch_max(late, Ordering::SeqCst);
    }
}

fn message_ids(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(id) = fields.get("messageId").and_then(Value::as_str) {
                found.push(id.to_owned());
            }
            fields.values().for_each(|value| message_ids(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| message_ids(value, found)),
        _ => {}
    }
    found.sort();
    found.dedup();
}

/// The Hooks in a line.
pub fn brief(hooks: &[Hook]) -> String {
    let of = |hook: &Hook| {
        let status = hook.status.clone().unwrap_or_default();
        let entries = status.active_events.iter().map(|entry| {
            let reason = entry.reason.map_or("", |reason| reason.as_str());
            format!("{} {} {} {reason}", entry.event_type, entry.resource_name, entry.status)
        });
        let entries: Vec<String> = entries.collect();
        format!("[{}] overflow {:?}", entries.join(", "), status.overflow)
    };
    hooks.iter().map(of).collect::<Vec<_>>().join("; ")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
