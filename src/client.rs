//! A client is khook's way to the apiserver. There are two, one for each kind of request.
//!
//! Both are put together as kube's own client is, with three differences: `TCP_NODELAY` is set
//! (without it a small write waits for the acknowledgement of the one before), a connection on which
//! nothing comes is given up, and nothing is sent twice unless sending it twice is harmless.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header::USER_AGENT};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connect, HttpConnector},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _, retry::RetryPolicy},
    config::InferConfigError,
};
use tokio::net::{UdpSocket, lookup_host};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, service_fn, timeout::TimeoutLayer};

/// How long parts of a request may take.
#[derive(Clone, Copy)]
struct Timeouts {
    /// To establish a connection, TLS included.
    connect: Duration,
    /// Until the headers of a stream's answer.
    first_answer: Duration,
    /// Without a byte, once a request is sent: the end of a watch that nobody closes.
    silence: Duration,
    /// For the whole of a single request and its answer.
    request: Duration,
}

/// The two clients, with the namespace they were configured for.
#[derive(Clone)]
pub struct Clients {
    /// For lists and watches. Retries a request that was turned away (429, 503, 504); gives up a
    /// connection on which nothing comes for somewhat longer than a watch may last.
    pub watch: Client,
    /// For single requests: status, Leases, Events, gets. Never sends twice by itself: a resent
    /// write can meet its own commit as a conflict. Each request ends within 10 s; it cannot watch,
    /// because it reads the whole answer first.
    pub request: Client,
    /// The namespace khook runs in, or the one of the kubeconfig's context, or `default`.
    pub namespace: String,
    /// Host and port of the apiserver.
    server: (String, u16),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a service account.
    #[error("khook does not know which cluster to work in: {0}")]
    Config(#[from] InferConfigError),
    /// The configuration cannot be used.
    #[error("the configuration for the apiserver cannot be used: {0}")]
    Client(#[from] kube::Error),
}

impl Clients {
    /// Clients for the cluster of `$KUBECONFIG` or `~/.kube/config`, else the one khook runs in.
    /// `watch_timeout` is the longest time the apiserver is asked to keep a watch open.
    ///
    /// # Errors
    /// Where there is no usable configuration. The apiserver is not contacted.
    pub async fn infer(watch_timeout: Duration) -> Result<Self, Error> {
        Self::new(Config::infer().await?, watch_timeout)
    }

    /// Clients for a given configuration.
    ///
    /// # Errors
    /// Where the configuration cannot be used.
    pub fn new(config: Config, watch_timeout: Duration) -> Result<Self, Error> {
        let timeouts = Timeouts {
            connect: Duration::from_secs(10),
            first_answer: Duration::from_secs(30),
            silence: watch_timeout + Duration::from_secs(15),
            request: Duration::from_secs(10),
        };
        Self::with(config, timeouts)
    }

    /// The addresses of the apiserver, and those from which this host speaks to it.
    ///
    /// # Errors
    /// Where the apiserver's name cannot be resolved.
    pub async fn addresses(&self) -> Result<(Vec<SocketAddr>, Vec<IpAddr>), std::io::Error> {
        let (host, port) = &self.server;
        let servers: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await?.collect();
        let mut own = Vec::new();
        for server in &servers {
            let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
            // Connected, a UDP socket has the address that the route gives it; nothing is sent.
            if let Ok(socket) = UdpSocket::bind(any).await
                && socket.connect(server).await.is_ok()
                && let Ok(address) = socket.local_addr()
            {
                own.push(address.ip());
            }
        }
        Ok((servers, own))
    }

    fn with(mut config: Config, timeouts: Timeouts) -> Result<Self, Error> {
        if config.proxy_url.take().is_some() {
            tracing::warn!("khook talks to the apiserver directly, not through the configured proxy");
        }
        let user_agent = concat!("khook/", env!("CARGO_PKG_VERSION"));
        config.headers.push((USER_AGENT, HeaderValue::from_static(user_agent)));
        config.connect_timeout = Some(timeouts.connect);
        config.read_timeout = Some(timeouts.silence);
        // Else the time a connection was idle in the pool counts as silence.
        config.reset_reader_on_write = true;
        Ok(Self {
            watch: watch_client(&config, timeouts)?,
            request: request_client(&config, timeouts)?,
            server: (
                config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
                config.cluster_url.port_u16().unwrap_or(443),
            ),
            namespace: config.default_namespace,
        })
    }
}

/// The same client, which says so whenever a request is answered with success.
pub fn noting(client: Client, note: impl Fn() + Clone + Send + 'static) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |request| {
        let (client, note) = (client.clone(), note.clone());
        async move {
            let answer = client.send(request).await?;
            if answer.status().is_success() {
                note();
            }
            Ok::<_, kube::Error>(answer)
        }
    });
    Client::new(service, namespace)
}

fn watch_client(config: &Config, timeouts: Timeouts) -> Result<Client, kube::Error> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        // Few and short: the watcher has a backoff of its own. And not the server's Retry-After,
        // which has no bound.
        .layer(RetryLayer::new(RetryPolicy::default()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(said)
        .layer(TimeoutLayer::new(timeouts.first_answer))
        .map_err(BoxError::from)
        .service(connections(config)?);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn request_client(config: &Config, timeouts: Timeouts) -> Result<Client, kube::Error> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(said)
        .layer(TimeoutLayer::new(timeouts.request))
        .and_then(whole)
        .map_err(BoxError::from)
        .service(connections(config)?);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// A pool of connections. Each client has its own, so that their timeouts can differ.
fn connections(
    config: &Config,
) -> Result<legacy::Client<impl Connect + Clone + Send + Sync + 'static, Body>, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    Ok(legacy::Client::builder(TokioExecutor::new()).build(connector))
}

/// Reads an answer to its end, so that the timeout around it covers all of it.
async fn whole(answer: Response<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let (head, body) = answer.into_parts();
    Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
}

fn said(request: Request<Body>) -> Request<Body> {
    tracing::trace!(method = %request.method(), uri = %request.uri(), "request to the apiserver");
    request
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use wiremock::{Mock, MockServer, ResponseTemplate, matchers};

    use super::*;

    fn clients(url: &str) -> Clients {
        // A second start in one process finds the provider installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            first_answer: Duration::from_secs(5),
            silence: Duration::from_millis(300),
            request: Duration::from_millis(300),
        };
        Clients::with(Config::new(url.parse().unwrap()), timeouts).unwrap()
    }

    #[tokio::test]
    async fn only_the_watch_client_repeats_a_request() {
        let server = MockServer::start().await;
        let busy = Mock::given(matchers::method("GET"))
            .and(matchers::header("user-agent", concat!("khook/", env!("CARGO_PKG_VERSION"))))
            .respond_with(ResponseTemplate::new(503));
        busy.mount(&server).await;
        let clients = clients(&server.uri());
        let started = Instant::now();
        assert!(Api::<ConfigMap>::namespaced(clients.request, "a").get("b").await.is_err());
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_eq!(server.received_requests().await.unwrap().len(), 1);
        let watch = Api::<ConfigMap>::namespaced(clients.watch, "a");
        let _ = tokio::time::timeout(Duration::from_secs(2), watch.get("b")).await;
        assert!(server.received_requests().await.unwrap().len() > 2);
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
                held.push(stream);
            }
        });
        let clients = clients(&url);
        for client in [clients.request, clients.watch] {
            let started = Instant::now();
            assert!(Api::<ConfigMap>::namespaced(client, "a").get("b").await.is_err());
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
    }
}
