//! The server answers those who look after khook: /metrics, /healthz and /readyz.
//!
//! /healthz tells whether khook's own loops make progress, /readyz whether its caches are filled.
//! Neither looks at kagent or at leadership: restarting or hiding khook heals neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use parking_lot::Mutex;
use tokio::{net::TcpListener, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::metrics::Metrics;

/// No client holds a connection longer than this.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Where the server listens. Both are the same where one port serves all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of /metrics.
    pub metrics: SocketAddr,
    /// Of /healthz and /readyz.
    pub health: SocketAddr,
}

/// A server that runs until it is told to stop.
pub struct Server {
    /// Where it listens: the port is the bound one, also where any was asked for.
    pub addresses: Addresses,
    tasks: TaskTracker,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}: {source}")]
pub struct Error {
    address: SocketAddr,
    what: &'static str,
    source: io::Error,
}

impl Server {
    /// Listens on both ports, or on the one, until `stop`.
    ///
    /// # Errors
    /// Where a port cannot be had.
    pub async fn start(
        ip: IpAddr,
        (metrics_port, health_port): (u16, u16),
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let tasks = TaskTracker::new();
        let (metrics, health) = (metrics_router(metrics), health_router(health));
        let addresses = if metrics_port == health_port && metrics_port != 0 {
            let (listener, address) = bind(ip, metrics_port, "metrics and health").await?;
            tasks.spawn(serve(listener, metrics.merge(health), tasks.clone(), stop));
            Addresses { metrics: address, health: address }
        } else {
            let (metrics_listener, metrics_address) = bind(ip, metrics_port, "metrics").await?;
            let (health_listener, health_address) = bind(ip, health_port, "health").await?;
            tasks.spawn(serve(metrics_listener, metrics, tasks.clone(), stop.clone()));
            tasks.spawn(serve(health_listener, health, tasks.clone(), stop));
            Addresses { metrics: metrics_address, health: health_address }
        };
        tasks.close();
        tracing::info!(metrics = %addresses.metrics, health = %addresses.health, "listening");
        Ok(Self { addresses, tasks })
    }

    /// Waits until it has stopped and the last answer is given: at most the time one client may take.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}

/// What khook knows about its own well-being.
pub struct Health {
    loops: Mutex<BTreeMap<String, Beat>>,
    caches: Mutex<BTreeMap<String, Cache>>,
}

/// How it stands with a cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Awaited,
    /// It belongs to a namespace that khook may not look into, as when it is gone.
    Refused,
    Filled,
}

/// When a loop was last seen to move, and how long it may be silent.
#[derive(Clone, Copy)]
struct Beat {
    last: Instant,
    max_silence: Duration,
}

impl Health {
    /// Ready only when all of `caches` are filled, or refused while others of their kind are filled. The kind is the
    /// first word of a name: `pods` of `pods of shop`.
    pub fn new(caches: impl IntoIterator<Item = String>) -> Self {
        Self {
            loops: Mutex::default(),
            caches: Mutex::new(caches.into_iter().map(|cache| (cache, Cache::Awaited)).collect()),
        }
    }

    /// From now on the loop must beat within each `max_silence`.
    pub fn expect(&self, name: impl Into<String>, max_silence: Duration) {
        self.loops.lock().insert(name.into(), Beat { last: Instant::now(), max_silence });
    }

    /// The loop makes progress. Nothing is expected of a loop that was never announced.
    pub fn beat(&self, name: &str) {
        if let Some(beat) = self.loops.lock().get_mut(name) {
            beat.last = Instant::now();
        }
    }

    /// The cache is filled.
    pub fn filled(&self, cache: &str) {
        self.caches.lock().insert(cache.to_owned(), Cache::Filled);
    }

    /// The cache is not filled because khook may not look there at all, and is not waited for.
    pub fn refused(&self, cache: &str) {
        if let Some(state @ Cache::Awaited) = self.caches.lock().get_mut(cache) {
            *state = Cache::Refused;
        }
    }

    /// Loops that have been silent for too long at `now`, with the time they have.
    pub fn stalled(&self, now: Instant) -> Vec<(String, Duration)> {
        self.loops
            .lock()
            .iter()
            .map(|(name, beat)| (name.clone(), now.saturating_duration_since(beat.last), beat.max_silence))
            .filter(|(_, silence, max_silence)| silence > max_silence)
            .map(|(name, silence, _)| (name, silence))
            .collect()
    }

    /// Caches that are waited for, and those that are refused. Where no cache of its kind is filled, one that is
    /// refused is waited for as well.
    pub fn unsynced(&self) -> (Vec<String>, Vec<String>) {
        let caches = self.caches.lock();
        let kind = |cache: &str| cache.split(' ').next().unwrap_or_default().to_owned();
        let filled = caches.iter().filter(|(_, state)| **state == Cache::Filled);
        let filled: BTreeSet<String> = filled.map(|(cache, _)| kind(cache)).collect();
        let missing = caches.iter().filter(|(_, state)| **state != Cache::Filled);
        let (refused, awaited): (Vec<_>, Vec<_>) =
            missing.partition(|(cache, state)| **state == Cache::Refused && filled.contains(&kind(cache)));
        let names =
            |caches: Vec<(&String, &Cache)>| caches.into_iter().map(|(cache, _)| cache.clone()).collect();
        (names(awaited), names(refused))
    }
}

fn metrics_router(metrics: Arc<Metrics>) -> Router {
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    Router::new().route("/metrics", get(move || async move { (content_type, metrics.encode()) }))
}

fn health_router(health: Arc<Health>) -> Router {
    let live = health.clone();
    Router::new()
        .route("/healthz", get(move || async move { healthz(&live, Instant::now()) }))
        .route("/readyz", get(move || async move { readyz(&health) }))
}

fn healthz(health: &Health, now: Instant) -> (StatusCode, String) {
    let stalled = health.stalled(now);
    if stalled.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    let mut text = String::new();
    for (name, silence) in stalled {
        // Writing to a String does not fail.
        let _ = writeln!(text, "the {name} loop has made no progress for {}s", silence.as_secs());
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn readyz(health: &Health) -> (StatusCode, String) {
    let (awaited, refused) = health.unsynced();
    let refused = match refused.is_empty() {
        true => String::new(),
        false => format!("refused: {}\n", refused.join(", ")),
    };
    match awaited.is_empty() {
        true => (StatusCode::OK, format!("ok\n{refused}")),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not synced: {}\n{refused}", awaited.join(", "))),
    }
}

async fn bind(ip: IpAddr, port: u16, what: &'static str) -> Result<(TcpListener, SocketAddr), Error> {
    let address = SocketAddr::new(ip, port);
    let refuse = |source| Error { address, what, source };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

/// Answers one request on each connection. Without keep-alive one deadline bounds all a client can
/// do slowly: its request, reading the answer, and doing nothing.
async fn serve(listener: TcpListener, router: Router, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: some will be given back.
                    tracing::warn!(%error, "cannot accept a connection");
                    time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
        };
        let connection = http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tasks.spawn(async move {
            match time::timeout(CONNECTION_TIME, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection failed"),
                Err(_) => tracing::debug!("a client was too slow"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn start(ports: (u16, u16), health: &Arc<Health>) -> (Server, CancellationToken) {
        let stop = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let ip = Ipv4Addr::LOCALHOST.into();
        (Server::start(ip, ports, metrics, health.clone(), stop.clone()).await.unwrap(), stop)
    }

    #[test]
    fn a_silent_loop_is_named() {
        let health = Health::new([]);
        let begin = Instant::now();
        health.expect("hooks", Duration::from_secs(60));
        health.expect("events", Duration::from_secs(600));
        health.beat("never announced");
        assert_eq!(healthz(&health, begin + Duration::from_secs(59)).0, StatusCode::OK);
        let (status, text) = healthz(&health, begin + Duration::from_secs(90));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            text.starts_with("the hooks loop has made no progress for ") && text.lines().count() == 1,
            "{text}"
        );
    }

    #[test]
    fn what_is_not_synced_is_named() {
        let health = Health::new(["hooks", "events"].map(str::to_owned));
        assert_eq!(readyz(&health).1, "not synced: events, hooks\n");
        health.filled("hooks");
        assert_eq!(readyz(&health), (StatusCode::SERVICE_UNAVAILABLE, "not synced: events\n".into()));
        health.filled("events");
        assert_eq!(readyz(&health).0, StatusCode::OK);
    }

    #[test]
    fn a_namespace_that_is_refused_is_not_waited_for_unless_there_is_no_other() {
        let health = Health::new(["hooks of a", "pods of a", "hooks of b", "pods of b"].map(str::to_owned));
        let ready = || readyz(&health);
        for refused in ["hooks of a", "pods of a", "hooks of b", "pods of b"] {
            health.refused(refused);
        }
        assert_eq!(ready().0, StatusCode::SERVICE_UNAVAILABLE, "nothing is known at all");
        health.filled("pods of a");
        assert_eq!(ready().0, StatusCode::SERVICE_UNAVAILABLE, "no Hook is known");
        health.filled("hooks of a");
        assert_eq!(ready(), (StatusCode::OK, "ok\nrefused: hooks of b, pods of b\n".into()));
        // What is known stays known.
        health.refused("hooks of a");
        health.filled("hooks of b");
        assert_eq!(ready(), (StatusCode::OK, "ok\nrefused: pods of b\n".into()));
    }

    #[tokio::test]
    async fn each_port_serves_its_own() {
        let health = Arc::new(Health::new(["hooks"].map(str::to_owned)));
        let (server, stop) = start((0, 0), &health).await;
        let Addresses { metrics, health: probes } = server.addresses;
        assert_ne!(metrics, probes);
        let answer = fetch(metrics, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("khook_leader 0"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(fetch(metrics, "/healthz").await.starts_with("HTTP/1.1 404"));
        assert!(fetch(probes, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(probes, "/readyz").await.starts_with("HTTP/1.1 503"));
        health.filled("hooks");
        assert!(fetch(probes, "/readyz").await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        server.stopped().await;
        assert!(tokio::net::TcpStream::connect(probes).await.is_err());
    }

    #[tokio::test]
    async fn one_port_serves_all() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let (server, stop) = start((free, free), &Arc::new(Health::new([]))).await;
        assert!(fetch(server.addresses.health, "/metrics").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(server.addresses.metrics, "/readyz").await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        server.stopped().await;
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let health = Arc::new(Health::new([]));
        let ip = Ipv4Addr::LOCALHOST.into();
        let refused = Server::start(ip, (0, port), Arc::default(), health, CancellationToken::new()).await;
        let sentence = refused.err().unwrap().to_string();
        assert!(
            sentence.starts_with(&format!("cannot listen on 127.0.0.1:{port} for health: ")),
            "{sentence}"
        );
    }
}
