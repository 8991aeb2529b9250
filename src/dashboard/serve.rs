//! Serving is how the page is handed out: who may ask, what goes with every answer, and how long anybody may take.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, Request},
    http::{HeaderValue, Method, StatusCode, header, request::Parts, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::api::refusal;

/// Connections at a time; one more is closed at once.
const CONNECTIONS: usize = 128;

/// No client holds a connection longer than this, but for a stream.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Longest request, head and all.
const REQUEST_BYTES: usize = 16 * 1024;

/// Nothing from anywhere but khook itself, and no script or style in the text of a page: what an agent or a pod
/// has said stays text even if it were not escaped.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What goes with every answer.
const HEADERS: [(header::HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    // Other pages in the same browser neither embed nor hold what is here.
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The connection that a request came by.
#[derive(Clone, Default)]
pub struct Line {
    streams: Arc<AtomicBool>,
    ended: CancellationToken,
    cut: CancellationToken,
}

/// For the last bytes of a stream.
const LAST_BYTES: Duration = Duration::from_secs(1);

impl Line {
    /// From now on it may last.
    pub fn streams(&self) {
        self.streams.store(true, Ordering::Relaxed);
    }

    /// Waits for the last bytes of a stream to leave, and ends it.
    pub async fn end(&self) {
        let _ = time::timeout(LAST_BYTES, self.ended.cancelled()).await;
        self.cut.cancel();
    }

    async fn over(&self) {
        time::sleep(CONNECTION_TIME).await;
        if self.streams.load(Ordering::Relaxed) {
            self.cut.cancelled().await;
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Line {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The routes behind the guard.
pub fn guarded(router: Router, address: IpAddr) -> Router {
    let loopback = address.is_loopback();
    router.layer(middleware::from_fn(move |request, next| guard(loopback, request, next)))
}

async fn guard(loopback: bool, request: Request, next: Next) -> Response {
    let mut response = if loopback && !is_loopback(&request) {
        // A page of somebody else's, whose name has been made to mean this machine.
        refusal(
            StatusCode::FORBIDDEN,
            "this is served on the loopback, under its names alone: open it as http://127.0.0.1 or http://localhost with its port",
        )
    } else if matches!(*request.method(), Method::GET | Method::HEAD) {
        next.run(request).await
    } else {
        let error =
            refusal(StatusCode::METHOD_NOT_ALLOWED, "there is nothing here but to be read: GET or HEAD");
        ([(header::ALLOW, "GET, HEAD")], error).into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a request names the loopback as the host it means.
fn is_loopback(request: &Request) -> bool {
    let named = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    let named = named.and_then(|host| Authority::try_from(host).ok());
    let authorities = [named.as_ref(), request.uri().authority()];
    let mut authorities = authorities.into_iter().flatten().peekable();
    authorities.peek().is_some()
        && authorities.all(|authority| {
            let host = authority.host();
            let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
        })
}

/// Answers one request on each connection, until `stop`. Without keep-alive one deadline bounds all that a client
/// can do slowly.
pub async fn serve(listener: TcpListener, router: Router, tasks: TaskTracker, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some will be given back.
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!("too many connections to the dashboard");
            continue;
        };
        let (line, router) = (Line::default(), router.clone());
        let of_requests = line.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(of_requests.clone());
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(CONNECTION_TIME)
            .max_buf_size(REQUEST_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tasks.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection failed");
                },
                () = line.over() => tracing::debug!("a client was too slow"),
            }
            line.ended.cancel();
            drop(place);
        });
    }
}

/// Listens there.
///
/// # Errors
/// Where the address cannot be had.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), std::io::Error> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
