//! A direct agent is any A2A agent beside kagent, at the URL that a Hook names.
//!
//! Whoever may write a Hook chooses the URL, so every way out is looked at: the URL, the one that the agent's
//! card gives for it, and each address before a connection is made to it. Redirects are not followed. What the
//! agent is shown comes from a Secret of the Hook's namespace, read anew for every call, and is in no error.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client as KubeClient};
use parking_lot::Mutex;
use reqwest::{
    Certificate, Client, Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, HeaderMap, HeaderName, HeaderValue},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    AgentCall, Follow, MAX_KNOWN,
    a2a::Card,
    endpoint::{Dialect, Endpoint, Limits},
    exchange::{self, Auth, Exchange, Http, not_run},
    remember,
};
use crate::incident::{
    hosts::{Hosts, literal},
    outcome::{Credential, DirectAgent, Ended, Lookup, Protocol, Reply, SecretKey},
    rules::{Problem, Severity},
};

/// How direct agents are spoken to.
#[derive(Clone, Debug)]
pub struct DirectConfig {
    /// Where they may be.
    pub hosts: Hosts,
    /// Time for a message, from the connecting to the last byte of the answer.
    pub api_timeout: Duration,
    /// Time to connect, TLS included.
    pub connect_timeout: Duration,
    /// Time to read the Secrets and the card, and for one read of what became of a message.
    pub lookup_timeout: Duration,
    /// Bytes of an answer; reads of tasks may have 16 times as many.
    pub max_body: usize,
    /// Whether what agents say of a failure is quoted.
    pub quote: bool,
}

/// What reads Secrets.
pub trait Secrets: Send + Sync {
    /// The data of a Secret; none where it does not exist.
    ///
    /// # Errors
    /// What went wrong, in words that name no value.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Data>, SecretError>>;
}

/// The data of a Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Why a Secret could not be read.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretError {
    /// khook has no right to read it.
    Forbidden,
    /// Anything else.
    Other(String),
}

impl Secrets for KubeClient {
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Data>, SecretError>> {
        Box::pin(async move {
            match Api::<Secret>::namespaced(self.clone(), namespace).get_opt(name).await {
                Ok(secret) => Ok(secret.map(|secret| {
                    secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
                })),
                Err(kube::Error::Api(status)) if status.code == 403 => Err(SecretError::Forbidden),
                Err(error) => Err(SecretError::Other(error.to_string())),
            }
        })
    }
}

/// The client of all direct agents.
pub struct Direct {
    config: DirectConfig,
    secrets: Box<dyn Secrets>,
    clients: Mutex<HashMap<Origin, Http>>,
    /// By all that a Hook says of an agent: what one credential may be sent to says nothing of another's.
    known: Mutex<HashMap<DirectAgent, (Known, Instant)>>,
    shown: Mutex<HashMap<DirectAgent, (Arc<Shown>, Instant)>>,
    /// Where the last message went.
    sent: Mutex<HashMap<DirectAgent, Url>>,
    listeners: Semaphore,
}

/// What a client is made for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Origin {
    scheme: String,
    port: u16,
    /// A hash of the certificates it trusts.
    ca: Option<Uuid>,
}

/// What the Secrets of an agent say.
struct Shown {
    auth: Auth,
    /// The certificates it is trusted by, in PEM.
    ca: Option<String>,
}

/// What an agent's card told.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    url: Url,
    protocol: Option<Protocol>,
    streams: bool,
}

/// How long a card is believed.
const CARD_AGE: Duration = Duration::from_secs(10 * 60);
/// Bytes of a card.
const MAX_CARD: usize = 256 << 10;
/// Clients that are kept.
const MAX_CLIENTS: usize = 64;
/// How old a credential may be for a question about a task; a message has one that was just read.
const SHOWN_AGE: Duration = Duration::from_secs(15);
/// Characters of a credential: what is shorter can be guessed, and is in every other text.
const MIN_CREDENTIAL: usize = 8;
/// Tasks that are listened to at a time; the others are asked for.
const LISTENERS: usize = 32;
/// Where a card is, under the agent's address (A2A 0.3, section 5.3; 1.0, section 8.2).
const CARD: &str = ".well-known/agent-card.json";

/// The Secret may be there or not.
const UNAVAILABLE: &str = "SecretUnavailable";

/// An agent, ready to be asked.
struct Ready {
    http: Http,
    shown: Arc<Shown>,
    known: Known,
}

impl Direct {
    /// A client that reads the agents' credentials through `secrets`.
    pub fn new(config: DirectConfig, secrets: impl Secrets + 'static) -> Self {
        Self {
            config,
            secrets: Box::new(secrets),
            clients: Mutex::default(),
            known: Mutex::default(),
            shown: Mutex::default(),
            sent: Mutex::default(),
            listeners: Semaphore::new(LISTENERS),
        }
    }

    /// As [`Agents::call`](super::Agents::call). Up to the message nothing has reached the agent that it would
    /// act on, so every failure before is `NotRun`.
    pub(super) async fn call(
        &self,
        call: &AgentCall,
        agent: &DirectAgent,
        dialect: Dialect,
        wanted: impl Fn() -> bool,
    ) -> Reply {
        self.shown.lock().remove(agent);
        let ready = match self.prepare(agent).await {
            Ok(ready) => ready,
            Err(error) => return not_run(error),
        };
        remember(&self.sent, agent.clone(), ready.known.url.clone(), MAX_KNOWN);
        let dialect = ready.dialect(agent, dialect);
        let mut endpoint = self.endpoint(&ready, agent);
        endpoint.headers.extend(call.headers());
        let reply = endpoint.send(dialect, call.outgoing(), wanted).await;
        if !matches!(reply, Reply::Accepted { .. }) {
            self.forget(agent);
        }
        reply
    }

    /// It may be somewhere else by now, and want to see something else.
    fn forget(&self, agent: &DirectAgent) {
        self.known.lock().remove(agent);
        self.shown.lock().remove(agent);
    }

    /// Whether the message is in the conversation. Only agents of 1.0 can tell.
    pub(super) async fn lookup(
        &self,
        agent: &DirectAgent,
        dialect: Dialect,
        context_id: &str,
        message_id: &str,
    ) -> Lookup {
        let ready = match self.prepare(agent).await {
            Ok(ready) => ready,
            Err(error) => return Lookup::Unavailable { error },
        };
        match ready.dialect(agent, dialect) {
            Dialect::Only(Protocol::V03) | Dialect::Known(Protocol::V03) => Lookup::Unsupported {
                error: format!("{} speaks A2A 0.3, which cannot list tasks", agent.url),
            },
            _ => {
                let lookup = self.endpoint(&ready, agent).lookup(context_id, message_id).await;
                let asked_at = self.sent.lock().get(agent).cloned();
                match lookup {
                    Lookup::Unavailable { .. } => {
                        self.forget(agent);
                        lookup
                    }
                    // What was asked at another endpoint is not absent because this one does not know it.
                    Lookup::Absent if asked_at.is_some_and(|at| at != ready.known.url) => {
                        Lookup::Unsupported {
                            error: format!("{} takes messages somewhere else now", agent.url),
                        }
                    }
                    lookup => lookup,
                }
            }
        }
    }

    /// Where the task stands.
    pub(super) async fn follow(&self, agent: &DirectAgent, dialect: Dialect, task_id: &str) -> Follow {
        let ready = match self.prepare(agent).await {
            Ok(ready) => ready,
            Err(error) => return Follow::Unavailable { error },
        };
        let follow = self.endpoint(&ready, agent).follow(ready.dialect(agent, dialect), task_id).await;
        if matches!(follow, Follow::Unavailable { .. }) {
            self.forget(agent);
        }
        follow
    }

    /// Listens to the task, where the agent's card says that it tells, and in 1.0.
    pub(super) async fn listen(
        &self,
        agent: &DirectAgent,
        dialect: Dialect,
        task_id: &str,
        at_most: Duration,
    ) -> Option<Ended> {
        let _one = self.listeners.try_acquire().ok()?;
        let ready = self.prepare(agent).await.ok()?;
        if !ready.known.streams || ready.dialect(agent, dialect).first() != Protocol::V10 {
            return None;
        }
        self.endpoint(&ready, agent).listen(task_id, at_most).await
    }

    /// What is wrong with the Secrets of an agent; none where that cannot be told: an apiserver in trouble says
    /// nothing of the Hook.
    pub(super) async fn examine(&self, agent: &DirectAgent) -> Option<Vec<Problem>> {
        let problems = self.read(agent).await.err().unwrap_or_default();
        (!problems.iter().any(|problem| problem.reason == UNAVAILABLE)).then_some(problems)
    }

    /// The way to the agent: what it is shown, by whom it is trusted, and where it takes messages.
    async fn prepare(&self, agent: &DirectAgent) -> Result<Ready, String> {
        let limit = self.config.lookup_timeout;
        let prepared = async {
            self.config.hosts.allows(&agent.url).map_err(|why| format!("{} {why}", agent.url))?;
            let recent = self.shown.lock().get(agent).filter(|(_, at)| at.elapsed() < SHOWN_AGE).cloned();
            let shown = match recent {
                Some((shown, _)) => shown,
                None => {
                    let read = self.read(agent).await;
                    let shown = Arc::new(read.map_err(|problems| {
                        let words: Vec<String> =
                            problems.into_iter().map(|problem| problem.message).collect();
                        words.join("; ")
                    })?);
                    remember(&self.shown, agent.clone(), (shown.clone(), Instant::now()), MAX_KNOWN);
                    shown
                }
            };
            let known = self.discover(agent, &shown).await?;
            let http = self.http(&known.url, shown.ca.as_deref())?;
            Ok(Ready { http, shown, known })
        };
        tokio::time::timeout(limit, prepared).await.unwrap_or_else(|_| {
            Err(format!("{}: its Secrets and its card were not read within {limit:?}", agent.url))
        })
    }

    /// Reads the Secrets of an agent, each once.
    async fn read(&self, agent: &DirectAgent) -> Result<Shown, Vec<Problem>> {
        let mut data: BTreeMap<&str, Result<Data, Problem>> = BTreeMap::new();
        for SecretKey { name, .. } in agent.secrets() {
            if !data.contains_key(name.as_str()) {
                data.insert(name, self.secret(agent, name).await);
            }
        }
        let value = |secret: &SecretKey| match data.get(secret.name.as_str()) {
            Some(Ok(data)) => value_of(agent, secret, data),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(invalid(agent, secret, "was not read")),
        };
        let auth = agent.auth.as_ref().map(|credential| {
            let value = value(&credential.secret)?;
            auth_of(credential, &value).map_err(|why| invalid(agent, &credential.secret, why))
        });
        let ca = agent.ca.as_ref().map(|secret| {
            let pem = value(secret)?;
            match Certificate::from_pem_bundle(pem.as_bytes()) {
                Ok(certificates) if !certificates.is_empty() => Ok(pem),
                _ => Err(invalid(agent, secret, "has no certificate in PEM in it")),
            }
        });
        match (auth.transpose(), ca.transpose()) {
            (Ok(auth), Ok(ca)) => Ok(Shown { auth: auth.unwrap_or_default().mute(!self.config.quote), ca }),
            (auth, ca) => {
                let mut problems: Vec<Problem> = auth.err().into_iter().chain(ca.err()).collect();
                problems.dedup();
                Err(problems)
            }
        }
    }

    async fn secret(&self, agent: &DirectAgent, name: &str) -> Result<Data, Problem> {
        let DirectAgent { namespace, url, .. } = agent;
        let (reason, message) = match self.secrets.read(namespace, name).await {
            Ok(Some(data)) => return Ok(data),
            Ok(None) => (
                "SecretNotFound",
                format!("there is no Secret {namespace}/{name}, which {url} needs: create it"),
            ),
            Err(SecretError::Forbidden) => (
                "SecretForbidden",
                format!(
                    "khook may not read the Secret {namespace}/{name}, which {url} needs: allow it by a Role (get \
                     secrets, resourceNames: [{name}])"
                ),
            ),
            Err(SecretError::Other(error)) => {
                (UNAVAILABLE, format!("the Secret {namespace}/{name} cannot be read: {error}"))
            }
        };
        Err(Problem { severity: Severity::Error, reason, message })
    }

    /// Where the agent takes messages: as its card says, or where it is where there is no card.
    async fn discover(&self, agent: &DirectAgent, shown: &Shown) -> Result<Known, String> {
        if let Some((known, at)) = self.known.lock().get(agent)
            && at.elapsed() < CARD_AGE
        {
            return Ok(known.clone());
        }
        let known = match agent.protocol {
            // Whoever knows the dialect knows the endpoint too.
            Some(_) => Known { url: agent.url.clone(), protocol: agent.protocol, streams: false },
            None => self.read_card(agent, shown).await?,
        };
        remember(&self.known, agent.clone(), (known.clone(), Instant::now()), MAX_KNOWN);
        Ok(known)
    }

    async fn read_card(&self, agent: &DirectAgent, Shown { auth, ca }: &Shown) -> Result<Known, String> {
        let http = self.http(&agent.url, ca.as_deref())?;
        for (url, is_own) in card_urls(&agent.url) {
            let exchange = Exchange {
                http: &http,
                auth,
                method: Method::GET,
                place: format!("GET {url}"),
                url,
                headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]),
                body: None,
                timeout: self.config.lookup_timeout,
                cap: MAX_CARD,
            };
            let answer = exchange.make().await.map_err(|broken| broken.words)?;
            // Not had for now, or not by us, is not that there is none: the endpoint may be another than the URL.
            let refused = matches!(answer.status.as_u16(), 300..=399 | 401 | 403) && is_own;
            let refused = refused || matches!(answer.status.as_u16(), 408 | 429 | 500 | 502..=599);
            let words = match &answer.cut {
                Some(cut) => Some(format!("{}: {cut}", answer.place)),
                None => refused.then(|| answer.words()),
            };
            if let Some(words) = words {
                return Err(format!("{words}; to do without a card set agent.protocol"));
            }
            let card = answer.json::<Card>().ok().filter(|card| answer.status.is_success() && card.is_one());
            let Some(card) = card else { continue };
            // A card is somebody else's text, and may repeat what it was asked with.
            let told = self.told(agent, &card, is_own).map_err(|error| auth.line(&error))?;
            if let Some(known) = told {
                return Ok(known);
            }
        }
        Ok(Known { url: agent.url.clone(), protocol: None, streams: false })
    }

    /// What a card tells; none where it is another agent's.
    fn told(&self, agent: &DirectAgent, card: &Card, is_own: bool) -> Result<Option<Known>, String> {
        let mut endpoints = card.endpoints();
        if !is_own {
            // At the root of a host with several agents.
            endpoints.retain(|(url, _)| {
                let path = Url::parse(url).map(|url| url.path().trim_matches('/').to_owned());
                path.is_ok_and(|path| path == agent.url.path().trim_matches('/'))
            });
        }
        let best = endpoints.iter().find(|(_, protocol)| protocol.is_some()).or(endpoints.first());
        let Some((url, protocol)) = best else {
            return match is_own {
                false => Ok(None),
                true => Err(format!(
                    "the card of {} names no endpoint for JSON-RPC in A2A 0.3 or 1.0: khook speaks no other",
                    agent.url
                )),
            };
        };
        let url = self.place(agent, url).map_err(|why| format!("the card of {}: {why}", agent.url))?;
        Ok(Some(Known { url, protocol: *protocol, streams: card.streams() }))
    }

    /// The URL of a card, as far as it can be meant and may be called.
    fn place(&self, agent: &DirectAgent, text: &str) -> Result<Url, String> {
        let own = &agent.url;
        let url = own.join(text).map_err(|error| format!("its url cannot be read: {error}"))?;
        let (Some(host), Some(own_host)) = (url.host_str(), own.host_str()) else {
            return Err("its url has no host".into());
        };
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err("its url must begin with http:// or https:// and be without a user".into());
        }
        // Many an agent calls itself localhost or 0.0.0.0, and one behind a proxy that ends TLS calls itself http.
        let nowhere = |host: &str| {
            let address = literal(host);
            host == "localhost"
                || address.is_some_and(|address| address.is_loopback() || address.is_unspecified())
        };
        let meant = nowhere(host) && !nowhere(own_host)
            || host == own_host && own.scheme() == "https" && url.scheme() == "http";
        if meant {
            let mut here = own.clone();
            here.set_path(url.path());
            here.set_query(url.query());
            return Ok(here);
        }
        self.config.hosts.allows(&url).map_err(|why| format!("its url {url} {why}"))?;
        if url.origin() != own.origin() && agent.auth.is_some() {
            let (there, here) = (url.origin().ascii_serialization(), own.origin().ascii_serialization());
            return Err(format!(
                "its url is at {there}, and the credential is for {here} only: write the card's url into the Hook"
            ));
        }
        Ok(url)
    }

    fn endpoint<'a>(&self, ready: &'a Ready, agent: &DirectAgent) -> Endpoint<'a> {
        Endpoint {
            http: &ready.http,
            auth: &ready.shown.auth,
            url: ready.known.url.clone(),
            place: ready.shown.auth.hide(ready.known.url.as_str()),
            headers: HeaderMap::new(),
            limits: Limits::new(self.config.api_timeout, self.config.lookup_timeout, self.config.max_body),
            hint: format!("; is {} the address of an A2A agent, or of its JSON-RPC endpoint?", agent.url),
        }
    }

    /// A client for this URL and whoever else is at its port.
    fn http(&self, url: &Url, ca: Option<&str>) -> Result<Http, String> {
        let port = url.port_or_known_default().unwrap_or_default();
        let origin = Origin {
            scheme: url.scheme().to_owned(),
            port,
            ca: ca.map(|pem| Uuid::new_v5(&Uuid::nil(), pem.as_bytes())),
        };
        if let Some(http) = self.clients.lock().get(&origin) {
            return Ok(http.clone());
        }
        let guard = Guard { hosts: self.config.hosts.clone(), port };
        let builder = exchange::client(self.config.connect_timeout).dns_resolver(Arc::new(guard));
        let client = match ca {
            Some(pem) => Certificate::from_pem_bundle(pem.as_bytes())
                .and_then(|certificates| builder.tls_certs_only(certificates).build()),
            None => exchange::finish(builder, url.scheme()),
        };
        let client: Client = client
            .map_err(|error| format!("cannot set up TLS for {url}: {}", exchange::root_cause(&error)))?;
        let http = Http { client, connect_timeout: self.config.connect_timeout };
        remember(&self.clients, origin, http.clone(), MAX_CLIENTS);
        Ok(http)
    }
}

impl Ready {
    /// The dialect to try first: as the Hook says, as the agent was last heard to speak, as its card says.
    fn dialect(&self, agent: &DirectAgent, heard: Dialect) -> Dialect {
        match (agent.protocol, self.known.protocol, heard) {
            (Some(only), _, _) => Dialect::Only(only),
            (None, _, Dialect::Known(spoken)) => Dialect::Known(spoken),
            (None, Some(told), _) => Dialect::Known(told),
            (None, None, guess) => guess,
        }
    }
}

/// Where the agent's card may be, and whether one that is there is surely its own.
fn card_urls(agent: &Url) -> Vec<(Url, bool)> {
    let mut own = agent.clone();
    if own.path().ends_with(".json") {
        return vec![(own, true)];
    }
    own.set_path(&format!("{}/{CARD}", agent.path().trim_end_matches('/')));
    let mut root = agent.clone();
    root.set_path(&format!("/{CARD}"));
    if root == own { vec![(own, true)] } else { vec![(own, true), (root, false)] }
}

/// The value of a key, as text.
fn value_of(agent: &DirectAgent, secret: &SecretKey, data: &Data) -> Result<String, Problem> {
    let SecretKey { name, key } = secret;
    let Some(value) = data.get(key) else {
        let message =
            format!("the Secret {}/{name} has no key {key:?}, which {} needs", agent.namespace, agent.url);
        return Err(Problem { severity: Severity::Error, reason: "SecretKeyNotFound", message });
    };
    match std::str::from_utf8(value) {
        Ok(value) if !value.trim().is_empty() => Ok(value.to_owned()),
        Ok(_) => Err(invalid(agent, secret, "is empty")),
        Err(_) => Err(invalid(agent, secret, "is no text")),
    }
}

/// The header that a credential is sent as.
fn auth_of(credential: &Credential, value: &str) -> Result<Auth, &'static str> {
    if value.trim().len() < MIN_CREDENTIAL {
        return Err("is shorter than 8 characters, which is no credential");
    }
    match &credential.header {
        None => Auth::bearer(value),
        Some(header) => match HeaderName::from_bytes(header.as_bytes()) {
            Ok(header) => Auth::header(header, "", value),
            Err(_) => Err("cannot be sent: auth.header is no name of a header"),
        },
    }
}

fn invalid(agent: &DirectAgent, secret: &SecretKey, why: &str) -> Problem {
    let SecretKey { name, key } = secret;
    let message =
        format!("the key {key:?} of the Secret {}/{name}, which {} needs, {why}", agent.namespace, agent.url);
    Problem { severity: Severity::Error, reason: "SecretInvalid", message }
}

/// Looks at every address before a connection is made to it: between two look-ups a name may come to mean another.
struct Guard {
    hosts: Hosts,
    port: u16,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (hosts, port) = (self.hosts.clone(), self.port);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), port)).await?.collect();
            for address in &addresses {
                // One bad address is one too many: which of them is taken is not ours to say.
                hosts.allows_address(address.ip(), port).map_err(|why| format!("{} {why}", name.as_str()))?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
