//! The operator at work: sources, reconciles and calls, put together, and taken down in order.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc, future, stream};
use kube::runtime::{
    Predicate as _, WatchStreamExt,
    controller::{self, Controller},
    predicates, reflector, watcher,
};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use uuid::Uuid;

use crate::{
    agent::{
        self, Agents, Kagent, KagentConfig,
        direct::{Direct, DirectConfig},
        pool::{Limits, Pool},
    },
    client::{self, Clients},
    config::{Credential, Settings},
    dashboard::{Dashboard, feed::Feed},
    hook::Hook,
    incident::policy::Policy,
    metrics::{Metrics, Watch},
    notice::Notices,
    otlp::Traces,
    reconcile::{self, Context, Pace, Process},
    server::Health,
    source::{self, BEAT, Lookout, Scope, events, index::Indexes, pods, union::Union},
};

/// What the parts of the operator share.
pub struct Operation {
    /// The settings, checked.
    pub settings: Settings,
    /// The ways to the apiserver.
    pub clients: Clients,
    /// This process and no other, for its claims. (Its name in the Lease outlives a restart.)
    pub process: Uuid,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub traces: Traces,
    /// Where loops and caches report.
    pub health: Arc<Health>,
    /// Whether this process leads. Turns false when stopping begins, and closes.
    pub leads: watch::Receiver<bool>,
    /// Cancelled when stopping begins: take nothing new, let calls in flight end, return.
    pub stop: CancellationToken,
}

/// Hooks reconciled at a time; each at most once.
const CONCURRENCY: u16 = 32;

/// Longer than any loop is ever silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Pods asked for at a time.
const QUESTIONS: usize = 16;

const RECONCILES: &str = "reconciles";

/// Works until `operation.stop`, then lets the calls in flight end and writes what became of them.
///
/// # Errors
/// What makes working impossible from the start.
pub async fn operate(operation: Operation) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Operation { settings, clients, process, metrics, traces, health, leads, stop } = operation;
    let (hooks, writer) = reflector::store::<Hook>();
    let feed = Arc::new(Feed::new(settings.scopes().iter().map(|scope| scope.of(Watch::Hooks))));
    if settings.dashboard_port != 0 {
        let (ip, port) = (settings.bind_address, settings.dashboard_port);
        // It ends with `stop`; what is being read then is not waited for.
        Dashboard::start(ip, port, hooks.clone(), &feed, stop.clone()).await?;
    }
    let (poke, pokes) = mpsc::unbounded();
    let mut policy = settings.policy();
    if !policy.direct_agents.is_empty() {
        // Without these addresses a Hook could have the apiserver asked.
        let addresses = clients.addresses().await;
        let (apiserver, own) =
            addresses.map_err(|error| format!("the apiserver's address cannot be found out: {error}"))?;
        policy.direct_agents = policy.direct_agents.never(apiserver, own);
    }
    let wake = poke.clone();
    let pool = Pool::new(
        Limits { total: settings.call_slots, per_agent: settings.call_slots_per_agent },
        policy.clone(),
        metrics.clone(),
        // Nobody listens only while the process ends.
        move |hook| wake.unbounded_send(hook).unwrap_or_default(),
        reconcile::now,
    );
    let process = Process {
        name: settings
            .pod_name
            .as_ref()
            .map_or_else(|| process.to_string(), |pod| format!("{pod}_{process}")),
        pod: settings.pod_name.clone(),
    };
    let agents = Agents::new(
        Kagent::new(kagent_config(&settings))?,
        settings.kagent_protocol.0,
        Direct::new(direct_config(&settings, &policy), clients.request.clone()),
    );
    let context = Arc::new(Context {
        hooks: hooks.clone(),
        agents,
        pool,
        pace: pace(&settings),
        notices: Notices::start(clients.request.clone(), process.name.clone(), metrics.clone()),
        process,
        leads,
        term: AtomicU64::new(0),
        stop: stop.clone(),
        poke,
        tasks: TaskTracker::new(),
        metrics: metrics.clone(),
        traces,
        pods: Indexes::new(&settings.scopes(), policy.stale_after),
        began: Instant::now(),
        questions: Arc::new(Semaphore::new(QUESTIONS)),
        policy,
        rooms: Default::default(),
        clients: clients.clone(),
    });

    // Whole seconds, checked with the settings to be less than 300.
    let seconds = u32::try_from(settings.watch_timeout.as_secs()).unwrap_or(60);
    let lookouts = |watch: Watch| {
        let (client, health, metrics) = (clients.watch.clone(), health.clone(), metrics.clone());
        let lookout = Lookout { watch, scope: Scope::Everywhere, client, health, metrics };
        settings.scopes().into_iter().map(move |scope| Lookout { scope, ..lookout.clone() })
    };
    let (memory, synced) = (context.clone(), health.clone());
    let hook_watches = lookouts(Watch::Hooks).enumerate().map(|(number, mut lookout)| {
        let config = watcher::Config::default().timeout(seconds);
        let (name, answered) = (lookout.name(), feed.clone());
        lookout.client = client::noting(lookout.client, move || answered.answered(&name));
        let (name, note) = (lookout.name(), feed.clone());
        let watch = lookout.watch::<Hook>(config).inspect(move |item| note.note(&name, item));
        watch.map(move |item| (number, item)).boxed()
    });
    let hook_watches: Vec<_> = hook_watches.collect();
    let mut union = Union::new(hook_watches.len());
    let hook_watch = stream::select_all(hook_watches)
        .flat_map(move |(number, item)| {
            stream::iter(match item {
                Ok(event) => union.step(number, event).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        })
        .reflect(writer)
        .inspect(move |_| feed.changed())
        .inspect(move |item| match item {
            Ok(watcher::Event::Delete(hook)) => memory.forget(hook),
            Ok(watcher::Event::InitDone) => {
                memory.forget_missing();
                // Nothing is reconciled before the first list, and a restart would not bring it sooner.
                synced.expect(RECONCILES, SILENCE);
            }
            Ok(_) | Err(_) => {}
        })
        .applied_objects()
        // Our own status writes come back through the watch: not a reason to look again.
        .predicate_filter(predicates::generation.combine(predicates::annotations), Default::default())
        // The watch tells of its errors and waits by itself. The Controller would hold up every Hook for as long:
        // what came of a call could not be written while only the watch is in trouble.
        .filter(|item| future::ready(item.is_ok()));

    let (drained, end) = oneshot::channel::<()>();
    let beating = health.clone();
    let beats = stream::unfold(tokio::time::interval(BEAT), move |mut time| {
        let beating = beating.clone();
        async move {
            time.tick().await;
            beating.beat(RECONCILES);
            Some((None, time))
        }
    });
    let triggers = stream::select(pokes.map(Some), beats).filter_map(future::ready);
    let controller = Controller::for_stream(hook_watch, hooks)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .reconcile_on(triggers)
        .graceful_shutdown_on(async { end.await.unwrap_or_default() })
        .run(reconcile::reconcile, |_, error, _| match *error {}, context.clone())
        .for_each(|result| async {
            if let Err(error) = result {
                // A Hook deleted meanwhile is no error.
                debug!(%error, "no reconcile");
            }
        });

    let mut controller = tokio::spawn(controller);
    let sources = [Watch::Pods, Watch::Events, Watch::Kills].into_iter().flat_map(lookouts).map(|lookout| {
        health.expect(lookout.name(), SILENCE);
        watch_source(context.clone(), lookout, seconds)
    });
    let sources = tokio::spawn(future::join_all(sources.collect::<Vec<_>>()));
    let terms = tokio::spawn(terms(context.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut controller => {
            sources.abort();
            terms.abort();
            return Err(format!("reconciling ended by itself: {ended:?}").into());
        }
    }

    sources.abort();
    terms.abort();
    context.tasks.close();
    context.tasks.wait().await;
    while context.flush() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(drained);
    // A controller that never got its first list does not end by itself.
    if tokio::time::timeout(Duration::from_secs(1), &mut controller).await.is_err() {
        controller.abort();
    }
    Ok(())
}

/// Pods, the Warnings about them, or what kubelet says of probes.
async fn watch_source(context: Arc<Context>, lookout: Lookout, seconds: u32) {
    let name = lookout.name();
    let beat = || lookout.health.beat(&name);
    match lookout.watch {
        // They have a stream of their own.
        Watch::Hooks => {}
        Watch::Pods => {
            let index = || context.pods.at(&lookout.scope);
            let sweep = || {
                beat();
                let reports = index().sweep(reconcile::now());
                context.tell(reports);
            };
            let pods = lookout.watch_streamed(pods::watch_config(seconds));
            let each = |item| {
                let Ok(event) = item else { return };
                let report = index().observe(event, reconcile::now());
                context.tell(report);
            };
            source::drive(pods, sweep, each).await;
        }
        Watch::Events => {
            let warnings = lookout.watch(events::watch_config(seconds));
            let each = |item| {
                let (event, replayed) = match item {
                    Ok(watcher::Event::Apply(event)) => (event, false),
                    Ok(watcher::Event::InitApply(event)) => (event, true),
                    Ok(_) | Err(_) => return,
                };
                if let Some(signal) = events::signal(&event, reconcile::now()) {
                    context.hear_event(signal, replayed);
                }
            };
            source::drive(warnings, beat, each).await;
        }
        Watch::Kills => {
            let kills = lookout.watch(events::kills_config(seconds));
            let each = |item| {
                if let Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) = item
                    && let Some(kill) = events::kill(&event)
                {
                    let report = context.index(&kill.name.0).killed(kill, reconcile::now());
                    context.tell(report);
                }
            };
            source::drive(kills, beat, each).await;
        }
    }
}

/// Looks at every Hook whenever this process begins to lead.
async fn terms(context: Arc<Context>) {
    let mut leads = context.leads.clone();
    loop {
        if *leads.borrow_and_update() {
            context.begin_term();
        } else {
            context.end_term();
        }
        if leads.changed().await.is_err() {
            return;
        }
    }
}

fn kagent_config(settings: &Settings) -> KagentConfig {
    KagentConfig {
        user_id: settings.kagent_user_id.clone(),
        quote: settings.show_answers,
        credential: match settings.credential() {
            Credential::None => agent::Credential::None,
            Credential::Key(key) => agent::Credential::Key(key.expose().to_owned()),
            Credential::File(path) => agent::Credential::File(path),
        },
        api_timeout: settings.kagent_api_timeout,
        session_timeout: settings.session_timeout(),
        lookup_timeout: settings.session_timeout(),
        connect_timeout: settings.session_timeout().min(Duration::from_secs(10)),
        ..KagentConfig::new(settings.kagent_base_url.as_str())
    }
}

fn direct_config(settings: &Settings, policy: &Policy) -> DirectConfig {
    let kagent = kagent_config(settings);
    DirectConfig {
        hosts: policy.direct_agents.clone(),
        api_timeout: kagent.api_timeout,
        connect_timeout: kagent.connect_timeout,
        lookup_timeout: kagent.lookup_timeout,
        max_body: kagent.max_body,
        quote: kagent.quote,
    }
}

fn pace(settings: &Settings) -> Pace {
    Pace {
        write_interval: settings.write_interval,
        outcome_delay: settings.outcome_delay,
        quiet_write_interval: settings.quiet_write_interval,
        follow_min: settings.follow_min,
        follow_max: settings.follow_max,
        retry: Duration::from_millis(100),
    }
}
