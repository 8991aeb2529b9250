//! `khook run` is the operator itself: it puts the parts together, and takes them down in order.
//!
//! It stops on SIGTERM or SIGINT: leadership goes to the next replica at once, calls in flight get
//! their time to end, then the server closes. A second signal ends it where it is.

use std::{process::ExitCode, sync::Arc, time::Duration};

use kube::Api;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    client::Clients,
    config::Settings,
    lease::{self, Leadership, Terms},
    metrics::{Metrics, Watch},
    operate::{Operation, operate},
    otlp::Traces,
    server::{Health, Server},
    telemetry,
};

/// Caches that must be filled before khook is ready.
const CACHES: [Watch; 4] = [Watch::Hooks, Watch::Pods, Watch::Events, Watch::Kills];

/// Longer than the leadership loop is ever silent: two requests and a pause.
const LEADERSHIP_SILENCE: Duration = Duration::from_secs(60);

/// How long the collector may take for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// What ends the operator with a failure.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Runs the operator until it is told to stop.
pub fn main(settings: Settings) -> ExitCode {
    telemetry::start(&settings.log_level, settings.log_format);
    // On a node of many cores: the work fits a few threads, and each costs memory.
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let result = runtime.map_err(Error::from).and_then(|runtime| {
        let result = runtime.block_on(run(settings));
        // What still blocks, such as a look-up of a name, must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "khook stops");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Error> {
    let written: Vec<_> = settings.effective().map(|(name, value)| format!("{name}={value}")).collect();
    let process = Uuid::new_v4();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %process, settings = written.join(" "), "khook starts");
    if cfg!(feature = "sabotage") {
        tracing::warn!("this build is for tests: its environment can take safeguards out of it");
    }
    let mut signals = Signals::new()?;
    // An error says that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let clients = Clients::infer(settings.watch_timeout).await?;
    let metrics = Arc::new(Metrics::new());
    let traces = match settings.traces()? {
        Some(config) => Traces::start(config, metrics.clone())?,
        None => Traces::default(),
    };
    let scopes = settings.scopes();
    let caches = CACHES.iter().flat_map(|watch| scopes.iter().map(|scope| scope.of(*watch)));
    let health = Arc::new(Health::new(caches));
    let closed = CancellationToken::new();
    let ports = (settings.metrics_port, settings.health_port);
    let server =
        Server::start(settings.bind_address, ports, metrics.clone(), health.clone(), closed.clone()).await?;

    let leadership = stand(&settings, &clients, &health);
    tokio::spawn(count_leadership(leadership.watch(), metrics.clone()));

    let stop = CancellationToken::new();
    let drain_timeout = settings.drain_timeout;
    let leads = leadership.watch();
    let operation = Operation {
        settings,
        clients,
        process,
        metrics,
        traces: traces.clone(),
        health,
        leads,
        stop: stop.clone(),
    };
    let mut work = tokio::spawn(operate(operation));

    let result = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "khook stops: leadership is handed over, calls in flight may end");
            stop.cancel();
            let drained = async {
                let ((), work) = tokio::join!(leadership.release(), time::timeout(drain_timeout, &mut work));
                traces.flush(LAST_SPANS).await;
                match work {
                    Ok(ended) => ended.map_err(Error::from).flatten(),
                    Err(_) => {
                        tracing::warn!("calls, or the writes of their outcomes, were still in flight: the next leader looks them up");
                        Ok(())
                    }
                }
            };
            tokio::select! {
                result = drained => result,
                name = signals.next() => Err(format!("a second signal, {name}: nothing is waited for").into()),
            }
        }
        ended = &mut work => {
            leadership.release().await;
            ended.map_err(Error::from).flatten().and(Err("the operator ended by itself".into()))
        }
    };
    work.abort();
    closed.cancel();
    if time::timeout(Duration::from_secs(1), server.stopped()).await.is_err() {
        tracing::debug!("somebody was still reading from the server");
    }
    result
}

/// Stands for election, or leads without one.
fn stand(settings: &Settings, clients: &Clients, health: &Arc<Health>) -> Leadership {
    if !settings.leader_election {
        return Leadership::always();
    }
    let namespace = settings.lease_namespace.as_deref().unwrap_or(&clients.namespace);
    let terms = Terms {
        name: settings.lease_name.clone(),
        identity: lease::identity(settings.pod_name.as_deref()),
        duration: settings.lease_duration,
        renew: settings.lease_renew,
    };
    const LOOP: &str = "leadership";
    health.expect(LOOP, LEADERSHIP_SILENCE + settings.lease_renew);
    let health = health.clone();
    Leadership::stand(Api::namespaced(clients.request.clone(), namespace), terms, move || health.beat(LOOP))
}

async fn count_leadership(mut leads: watch::Receiver<bool>, metrics: Arc<Metrics>) {
    loop {
        metrics.leader(*leads.borrow_and_update());
        if leads.changed().await.is_err() {
            return;
        }
    }
}

/// The signals that ask khook to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
