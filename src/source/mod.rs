//! A source watches cluster objects and turns them into signals. It never calls an agent and never writes.

pub mod pods;

pub mod diagnosis;

pub mod index;

pub mod events;

pub mod annotations;

pub mod union;

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, future, pin_mut};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::NamespaceResourceScope,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use crate::{
    client,
    metrics::{Metrics, Restart, Watch},
    server::Health,
};

/// Where a watch looks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In all namespaces.
    Everywhere,
    /// In one.
    Namespace(String),
}

/// What can be watched: objects that have a namespace.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static
{
}

/// One watch: what it looks at and where, and whom it reports to.
#[derive(Clone)]
pub struct Lookout {
    /// What it looks at.
    pub watch: Watch,
    /// Where.
    pub scope: Scope,
    /// The way to the apiserver.
    pub client: Client,
    /// Who hears whether the first list has come.
    pub health: Arc<Health>,
    /// Where answers and restarts are counted.
    pub metrics: Arc<Metrics>,
}

impl Scope {
    /// As a metric names it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Everywhere => "all",
            Self::Namespace(namespace) => namespace,
        }
    }

    /// A watch there, as readiness and the log name it: `pods`, or `pods of shop`.
    pub fn of(&self, watch: Watch) -> String {
        match self {
            Self::Everywhere => watch.as_str().to_owned(),
            Self::Namespace(namespace) => format!("{} of {namespace}", watch.as_str()),
        }
    }
}

impl Lookout {
    /// Watches one kind of object for ever.
    ///
    /// The watch never dies: after an error (410, closed, cut, garbage) it resumes with backoff, and the metric
    /// `khook_watch_restarts_total` counts it. A connection that says nothing any more ends by the client's
    /// read timeout.
    pub fn watch<K: Object>(
        &self,
        config: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static {
        let (name, watch, scope) = (self.name(), self.watch, self.scope.clone());
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        watcher(self.api(), config).default_backoff().inspect(move |item| match item {
            Ok(watcher::Event::InitDone) => {
                debug!(watch = name, "listed");
                health.filled(&name);
            }
            Ok(_) => {}
            Err(error) => {
                let reason = restart_reason(error);
                metrics.watch_restart(watch, reason);
                // Who may not even read the Hooks of a namespace, as when it is gone, has nothing to do there.
                if watch == Watch::Hooks && scope != Scope::Everywhere && is_forbidden(error) {
                    Watch::ALL.iter().for_each(|watch| health.refused(&scope.of(*watch)));
                }
                warn!(watch = name, reason = reason.as_str(), %error, "the watch broke off and is resumed");
            }
        })
    }

    /// As [`Self::watch`]; where the server can, it sends what there is as a stream instead of in pages, which
    /// costs it and khook less memory.
    pub fn watch_streamed<K: Object>(
        &self,
        config: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static {
        let paged = self.watch(config.clone());
        let streamed = self.watch(config.streaming_lists());
        streamed.scan((), |(), item| future::ready((!is_refused(&item)).then_some(item))).chain(paged)
    }

    /// Its name for readiness and the log.
    pub fn name(&self) -> String {
        self.scope.of(self.watch)
    }

    // From a quiet cluster a watch brings nothing: that it is answered shows only here.
    fn api<K: Object>(&self) -> Api<K> {
        let (metrics, watch, scope) = (self.metrics.clone(), self.watch, self.scope.clone());
        metrics.watch_contact(watch, &scope);
        let client = client::noting(self.client.clone(), move || metrics.watch_contact(watch, &scope));
        match &self.scope {
            Scope::Everywhere => Api::all(client),
            Scope::Namespace(namespace) => Api::namespaced(client, namespace),
        }
    }
}

/// Objects asked of the apiserver at a time.
pub const PAGE: u32 = 500;

/// Lists what there is, by a field selector if it is not empty, page by page: not all of it is held at once.
///
/// # Errors
/// What the apiserver answers.
pub async fn list<K>(api: &Api<K>, selector: &str, mut each: impl FnMut(K)) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    params.field_selector = Some(selector.to_owned()).filter(|selector| !selector.is_empty());
    loop {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

// What a server says that cannot stream a list: the request is invalid.
fn is_refused<T>(item: &watcher::Result<T>) -> bool {
    matches!(
        item,
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if matches!(status.code, 400 | 422)
    )
}

/// Reads a stream to its end and shows in between that somebody reads it: `beat` is called all the time.
pub async fn drive<T>(stream: impl Stream<Item = T>, beat: impl Fn(), mut each: impl FnMut(T)) {
    pin_mut!(stream);
    let mut time = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            _ = time.tick() => beat(),
            item = stream.next() => match item {
                Some(item) => each(item),
                None => return,
            }
        }
    }
}

/// Time between two beats.
pub const BEAT: Duration = Duration::from_secs(2);

fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 403
    )
}

fn restart_reason(error: &watcher::Error) -> Restart {
    match error {
        watcher::Error::WatchError(status) if status.code == 410 => Restart::Expired,
        watcher::Error::WatchError(_) => Restart::Refused,
        watcher::Error::InitialListFailed(kube::Error::Api(_))
        | watcher::Error::WatchStartFailed(kube::Error::Api(_)) => Restart::Refused,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => Restart::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use axum::{body::Body, extract::State, http::Request, routing::get};
    use k8s_openapi::api::events::v1::Event;
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::Clients;

    /// What the apiserver answers to one watch after another: pieces of a body, and whether it breaks off.
    type Script = Arc<Mutex<Vec<(Vec<String>, bool)>>>;

    const LIST: &str = r#"{"kind":"EventList","apiVersion":"events.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}"#;

    fn added(name: &str, version: u32) -> String {
        format!(
            r#"{{"type":"ADDED","object":{{"apiVersion":"events.k8s.io/v1","kind":"Event","eventTime":null,"metadata":{{"name":"{name}","namespace":"a","resourceVersion":"{version}"}}}}}}"#
        ) + "\n"
    }

    async fn answer(State(script): State<Script>, request: Request<Body>) -> axum::http::Response<Body> {
        if request.uri().query().unwrap_or_default().contains("sendInitialEvents=true") {
            let refusal = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"sendInitialEvents is forbidden","reason":"Invalid","code":422}"#;
            let mut response = axum::http::Response::new(Body::from(refusal));
            *response.status_mut() = axum::http::StatusCode::UNPROCESSABLE_ENTITY;
            return response;
        }
        if !request.uri().query().unwrap_or_default().contains("watch=") {
            return axum::http::Response::new(Body::from(LIST));
        }
        let next = {
            let mut script = script.lock().unwrap();
            (!script.is_empty()).then(|| script.remove(0))
        };
        let Some((pieces, breaks)) = next else { return std::future::pending().await };
        let ok = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        // Cut only once what came before is on its way.
        let cut = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Err(std::io::Error::other("cut"))
        };
        let cut = futures::stream::once(cut).filter(move |_| std::future::ready(breaks));
        axum::http::Response::new(Body::from_stream(ok.chain(cut)))
    }

    async fn apiserver(script: Vec<(Vec<String>, bool)>) -> Result<Clients, Infallible> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(get(answer)).with_state(Arc::new(Mutex::new(script)));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        Ok(Clients::new(config, Duration::from_secs(5)).unwrap())
    }

    fn lookout(watch: Watch, clients: &Clients, health: &Arc<Health>, metrics: &Arc<Metrics>) -> Lookout {
        let (client, health, metrics) = (clients.watch.clone(), health.clone(), metrics.clone());
        Lookout { watch, scope: Scope::Everywhere, client, health, metrics }
    }

    #[tokio::test]
    async fn a_watch_survives_garbage_an_expired_version_a_cut_and_an_end_and_counts_them() {
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}}"#;
        let script = vec![
            (vec![added("one", 2), "{\"type\": garbage\n".into()], false),
            (vec![format!("{gone}\n")], false),
            (vec![added("two", 3), added("half", 4)[..30].to_owned()], true),
            (vec![], false),
            (vec![added("three", 5)], false),
        ];
        let clients = apiserver(script).await.unwrap();
        let (health, metrics) = (Arc::new(Health::new(["events".to_owned()])), Arc::new(Metrics::new()));
        let stream =
            lookout(Watch::Events, &clients, &health, &metrics).watch::<Event>(watcher::Config::default());
        let names = stream
            .filter_map(|item| {
                let name = match item {
                    Ok(watcher::Event::Apply(event)) => event.metadata.name,
                    _ => None,
                };
                std::future::ready(name)
            })
            .take(3)
            .collect::<Vec<String>>();
        let names = tokio::time::timeout(Duration::from_secs(60), names).await.unwrap();
        assert_eq!(names, ["one", "two", "three"]);
        assert!(health.unsynced().0.is_empty());
        let text = metrics.encode();
        let restarts = |reason: &str| {
            let sample = format!("khook_watch_restarts_total{{reason=\"{reason}\",watch=\"events\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap_or("0");
            line.parse::<u32>().unwrap()
        };
        assert!(restarts("expired") >= 1 && restarts("failed") >= 1, "{text}");
    }

    #[tokio::test]
    async fn a_server_that_cannot_stream_a_list_sends_it_in_pages() {
        let clients = apiserver(vec![(vec![added("one", 2)], false)]).await.unwrap();
        let (health, metrics) = (Arc::new(Health::new(["pods".to_owned()])), Arc::new(Metrics::new()));
        let lookout = lookout(Watch::Pods, &clients, &health, &metrics);
        let stream = lookout.watch_streamed::<Event>(watcher::Config::default());
        let first = stream.filter_map(|item| {
            let applied = matches!(item, Ok(watcher::Event::Apply(_)));
            std::future::ready(applied.then_some(()))
        });
        pin_mut!(first);
        tokio::time::timeout(Duration::from_secs(60), first.next()).await.unwrap().unwrap();
        assert!(health.unsynced().0.is_empty());
    }
}
