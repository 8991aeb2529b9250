//! A proxy stands between one khook and whom it talks to, the apiserver or its agent: it passes everything on,
//! writes it down, and breaks what is to break.
//!
//! The apiserver's shows khook one namespace as if it were the whole cluster, so that many runs can share a
//! control plane: a list or a watch of all namespaces becomes one of the run's own.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    body::{Body, Bytes},
    http::{HeaderName, Method, Request, Response, StatusCode, request::Parts},
    response::IntoResponse,
};
use futures::{SinkExt, StreamExt, channel::mpsc};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use khook::client::Clients;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    point::{Class, Deed},
    record::What,
    run::{Run, Ticket},
};
use crate::line::{Line, Wired};

/// Where requests go on to.
pub enum Upstream {
    /// The apiserver, in whose namespace of this name khook is to live.
    Apiserver(Box<Clients>, String),
    /// An agent at this URL.
    Agent(reqwest::Client, String),
}

/// A proxy that listens on loopback. Dropping it closes it.
pub struct Proxy {
    url: String,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Starts one for this replica.
    pub async fn start(run: Arc<Run>, replica: usize, upstream: Upstream) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a proxy's port")?;
        let url = format!("http://{}", listener.local_addr().context("a proxy's address")?);
        let stand = Arc::new(Stand { run, replica, upstream });
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let (stand, line) = (stand.clone(), Line::default());
                let wired = TokioIo::new(Wired::new(stream, line.clone()));
                let service = service_fn(move |request| {
                    let (stand, line) = (stand.clone(), line.clone());
                    // In a task of its own: what a client that is killed has begun goes on to its end.
                    tokio::spawn(async move { stand.pass(&line, request).await })
                });
                connections.spawn(async move {
                    // A client that goes away is no error here.
                    hyper::server::conn::http1::Builder::new().serve_connection(wired, service).await.ok();
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { url, server })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl std::ops::Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Stand {
    run: Arc<Run>,
    replica: usize,
    upstream: Upstream,
}

/// What the server answered.
struct Served {
    code: u16,
    headers: Vec<(HeaderName, axum::http::HeaderValue)>,
    body: Bytes,
}

/// How long nothing comes on a frozen watch.
const FREEZE: Duration = Duration::from_secs(3);
/// How long a request takes that is late.
const DELAY: Duration = Duration::from_millis(700);
/// How long one takes during which a user does something: from when khook was told.
const MEANWHILE: Duration = Duration::from_millis(1100);

impl Stand {
    async fn pass(self: Arc<Self>, line: &Line, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(body) = axum::body::to_bytes(Body::new(body), usize::MAX).await else {
            return line.close();
        };
        let class = self.class(&head, &body);
        if class.is_watch() {
            return self.watch(line, class, &head).await;
        }
        let ticket = self.run.arrives(self.replica, class, head.uri.path(), &body);
        match ticket.deed.filter(|deed| deed.comes_first()) {
            Some(Deed::Delay) => tokio::time::sleep(DELAY).await,
            Some(deed @ (Deed::SuspendMeanwhile | Deed::RemoveMeanwhile | Deed::RecreateMeanwhile)) => {
                self.run.act_and_tell(self.replica, deed).await;
                tokio::time::sleep(MEANWHILE).await;
            }
            Some(deed) => return self.refuse(line, &ticket, deed).await,
            None => {}
        }
        let served = match self.forward(&head, body).await {
            Ok(served) => served,
            Err(error) => {
                self.run.answered(&ticket, None, Some(&error), false);
                return line.reset();
            }
        };
        let lost = |delivered| self.run.answered(&ticket, Some((served.code, &served.body)), None, delivered);
        match ticket.deed.filter(|deed| !deed.comes_first()) {
            Some(Deed::LoseAnswer) => {
                lost(false);
                line.reset()
            }
            Some(Deed::HangAfter) => {
                lost(false);
                self.run.hang().await;
                line.close()
            }
            Some(Deed::Truncate) => {
                lost(false);
                let half = served.body.slice(..served.body.len() / 2);
                let pieces = [Ok(half), Err(io::Error::other("cut"))];
                served.response(Body::from_stream(futures::stream::iter(pieces)))
            }
            Some(Deed::Garbage) => {
                lost(false);
                served.response(Body::from(&b"<html>\xff\xfe no such thing as JSON"[..]))
            }
            Some(Deed::Huge) => {
                lost(false);
                let filler = Bytes::from_static(&[b'x'; 65_536]);
                let head = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"1","result":{"kind":"task","id":""#);
                // 40 MB: more than khook reads of anything.
                let chunks = std::iter::once(head).chain(std::iter::repeat_n(filler, 640));
                served.response(Body::from_stream(futures::stream::iter(chunks.map(Ok::<_, io::Error>))))
            }
            Some(Deed::KillAfter) => {
                lost(false);
                self.run.kill(self.replica).await;
                line.close()
            }
            Some(Deed::Die) => {
                lost(false);
                self.run.end(self.replica).await.ok();
                line.close()
            }
            other => {
                // Written down first: whoever acts now sees what khook is about to see.
                lost(true);
                if let Some(deed) = other {
                    self.run.act(self.replica, deed).await;
                }
                let body = Body::from(served.body.clone());
                served.response(body)
            }
        }
    }

    /// The server never sees the request.
    async fn refuse(&self, line: &Line, ticket: &Ticket, deed: Deed) -> Response<Body> {
        let answer = |code: u16, reason: &str| {
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
                "message": "the fault proxy says so", "error": "the fault proxy says so",
            });
            self.run.answered(ticket, Some((code, status.to_string().as_bytes())), Some("refused"), true);
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (code, [("content-type", "application/json"), ("retry-after", "1")], status.to_string())
                .into_response()
        };
        match deed {
            Deed::Conflict => answer(409, "Conflict"),
            Deed::Busy => answer(429, "TooManyRequests"),
            Deed::Fail => answer(500, "InternalError"),
            Deed::Away => answer(503, "ServiceUnavailable"),
            Deed::Hang => {
                self.run.answered(ticket, None, Some("hangs"), false);
                self.run.hang().await;
                line.close()
            }
            Deed::KillBefore => {
                self.run.answered(ticket, None, Some("killed"), false);
                self.run.kill(self.replica).await;
                line.close()
            }
            _ => {
                self.run.answered(ticket, None, Some("dropped"), false);
                line.reset()
            }
        }
    }

    async fn forward(&self, head: &Parts, body: Bytes) -> Result<Served, String> {
        match &self.upstream {
            Upstream::Apiserver(clients, namespace) => {
                let request = self.translated(head, namespace, body)?;
                let answer = clients.request.send(request).await.map_err(|error| error.to_string())?;
                let (answer, body) = answer.into_parts();
                let body = axum::body::to_bytes(Body::new(body), usize::MAX).await;
                let headers = kept(&answer.headers);
                Ok(Served {
                    code: answer.status.as_u16(),
                    headers,
                    body: body.map_err(|error| error.to_string())?,
                })
            }
            Upstream::Agent(client, base) => {
                let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
                let mut request = client.request(head.method.clone(), format!("{base}{path}")).body(body);
                for (name, value) in kept(&head.headers) {
                    request = request.header(name, value);
                }
                let answer = request.send().await.map_err(|error| error.to_string())?;
                let (code, headers) = (answer.status().as_u16(), kept(answer.headers()));
                Ok(Served { code, headers, body: answer.bytes().await.map_err(|error| error.to_string())? })
            }
        }
    }

    /// The same request, of the run's namespace.
    fn translated(
        &self,
        head: &Parts,
        namespace: &str,
        body: Bytes,
    ) -> Result<Request<kube::client::Body>, String> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = ["/apis/kagent.dev/v1alpha2/hooks", "/api/v1/pods", "/apis/events.k8s.io/v1/events"]
            .into_iter()
            .find_map(|all| {
                let rest = path.strip_prefix(all).filter(|rest| rest.is_empty() || rest.starts_with('?'))?;
                let (group, resource) = all.rsplit_once('/')?;
                Some(format!("{group}/namespaces/{namespace}/{resource}{rest}"))
            })
            .unwrap_or_else(|| path.to_owned());
        let mut request = Request::builder().method(head.method.clone()).uri(path);
        for (name, value) in kept(&head.headers) {
            request = request.header(name, value);
        }
        request.body(kube::client::Body::from(body.to_vec())).map_err(|error| error.to_string())
    }

    /// Passes on a watch, line by line.
    async fn watch(self: Arc<Self>, line: &Line, class: Class, head: &Parts) -> Response<Body> {
        let Upstream::Apiserver(clients, namespace) = &self.upstream else { return line.close() };
        let request = match self.translated(head, namespace, Bytes::new()) {
            Ok(request) => request,
            Err(_) => return line.close(),
        };
        let Ok(answer) = clients.watch.send(request).await else { return line.reset() };
        let (answer, body) = answer.into_parts();
        let served =
            Served { code: answer.status.as_u16(), headers: kept(&answer.headers), body: Bytes::new() };
        let (mut out, body_out) = mpsc::channel::<io::Result<Bytes>>(16);
        let stand = self.clone();
        tokio::spawn(async move {
            let mut body = Body::new(body).into_data_stream();
            let mut buffer = Vec::new();
            let mut passed: Vec<Bytes> = Vec::new();
            // Set once a line was swallowed: when the watch has to begin anew.
            let mut doomed = None;
            loop {
                let chunk = tokio::select! {
                    chunk = body.next() => chunk,
                    () = until(doomed) => return drop(out.send(Ok(expired())).await),
                };
                match chunk {
                    Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
                    Some(Err(error)) => return drop(out.send(Err(io::Error::other(error))).await),
                    None => return,
                }
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let told = Bytes::from(buffer.drain(..=end).collect::<Vec<u8>>());
                    match stand.run.tells(stand.replica, class, &told) {
                        Some(Deed::Cut) => return drop(out.send(Err(io::Error::other("cut"))).await),
                        Some(Deed::Expire) => return drop(out.send(Ok(expired())).await),
                        Some(Deed::Swallow) => {
                            doomed = Some(tokio::time::Instant::now() + Duration::from_millis(400));
                            continue;
                        }
                        Some(Deed::Replay) => {
                            for again in &passed {
                                drop(out.send(Ok(again.clone())).await);
                            }
                        }
                        Some(Deed::Freeze) => {
                            stand.run.later_by(FREEZE).await;
                            tokio::time::sleep(FREEZE).await;
                        }
                        Some(Deed::Scramble) => {
                            drop(out.send(Ok(Bytes::from_static(b"{\"type\": \xff garbage\n"))).await);
                        }
                        _ => {}
                    }
                    stand.run.told(stand.replica, class, &told);
                    passed.push(told.clone());
                    if out.send(Ok(told)).await.is_err() {
                        return;
                    }
                }
            }
        });
        served.response(Body::from_stream(body_out))
    }

    fn class(&self, head: &Parts, body: &[u8]) -> Class {
        let path = head.uri.path();
        let query = head.uri.query().unwrap_or_default();
        let watch = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
        if let Upstream::Agent(..) = self.upstream {
            let rpc = || serde_json::from_slice::<Value>(body).unwrap_or_default()["method"].clone();
            return match path {
                "/api/sessions" => Class::Session,
                _ if path.starts_with("/api/sessions/") => Class::Lookup,
                _ if path.starts_with("/api/tasks/") => Class::Follow,
                _ if path.ends_with("/agent-card.json") => Class::Card,
                _ => match rpc().as_str() {
                    Some("message/send" | "SendMessage") => Class::Send,
                    Some("tasks/get" | "GetTask") => Class::Follow,
                    Some("ListTasks") => Class::Lookup,
                    _ => Class::Other,
                },
            };
        }
        let own = path.contains("/namespaces/");
        match path {
            _ if path.ends_with("/status") => Class::Status,
            _ if path.contains("/leases") => Class::Lease,
            _ if path.ends_with("/events") || path.contains("/events/") => match head.method {
                Method::GET if own => Class::Recent,
                Method::GET if watch && query.contains("Killing") => Class::WatchKills,
                Method::GET if watch => Class::WatchEvents,
                Method::GET => Class::ListEvents,
                _ => Class::Notice,
            },
            _ if path.ends_with("/hooks") && watch => Class::WatchHooks,
            _ if path.ends_with("/hooks") => Class::ListHooks,
            _ if path.contains("/hooks/") => Class::ReadHook,
            _ if path.ends_with("/pods") && watch => Class::WatchPods,
            _ if path.ends_with("/pods") => Class::ListPods,
            _ if path.contains("/pods/") => Class::ReadPod,
            _ if path.contains("/secrets/") => Class::Secret,
            _ => Class::Other,
        }
    }
}

impl Served {
    fn response(&self, body: Body) -> Response<Body> {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut response = (code, body).into_response();
        response.headers_mut().clear();
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

/// What an apiserver says to a watch that has fallen behind.
fn expired() -> Bytes {
    Bytes::from_static(
        b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\
          \"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n",
    )
}

// Headers that speak of one connection or of one encoding of a body end at the proxy; khook's own rights are
// those of the proxy's client.
fn kept(headers: &axum::http::HeaderMap) -> Vec<(HeaderName, axum::http::HeaderValue)> {
    let ends = |name: &str| {
        matches!(name, "host" | "connection" | "content-length" | "transfer-encoding" | "accept-encoding")
    };
    headers.iter().filter(|(name, _)| !ends(name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A request, as the record has it.
pub(super) fn quote(number: u64, replica: usize, class: Class, path: &str, body: &[u8]) -> What {
    let value: Value = match class {
        Class::Send | Class::Session | Class::Lookup | Class::Lease => {
            serde_json::from_slice(body).unwrap_or_default()
        }
        _ => Value::Null,
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let message = &value["params"]["message"];
    What::Request {
        number,
        replica,
        class,
        session: match class {
            Class::Session => text(&value["id"]),
            Class::Lookup => match path.strip_prefix("/api/sessions/") {
                Some(rest) => rest.split('/').next().map(str::to_owned),
                None => text(&value["params"]["contextId"]),
            },
            _ => text(&message["contextId"]),
        },
        message: text(&message["messageId"]),
        holder: text(&value["spec"]["holderIdentity"]),
    }
}
