//! A connection is a command's way to the cluster that the person at the prompt means.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use clap::Args;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Namespace};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};

use super::Error;
use crate::{client::Clients, hook::Hook};

/// Which cluster, and where in it; named as kubectl names them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// Namespace [default: that of the context]
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Path of the kubeconfig [default: $KUBECONFIG, ~/.kube/config, or the service account]
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
}

/// A cluster, ready to be asked.
#[derive(Clone)]
pub struct Cluster {
    /// For single requests.
    pub client: Client,
    /// For watches.
    pub watch: Client,
    /// The namespace that is meant.
    pub namespace: String,
}

/// What a person is told who asks for Hooks where nobody knows of them.
const NO_CRD: &str = "this cluster does not know Hooks, their CustomResourceDefinition is missing: install it with \
    `khook crds | kubectl apply --server-side -f -`, or with the chart khook-crds";

/// What a Hook may be called before its name.
pub const HOOK: &[&str] = &["hook", "hooks", "hk", "hooks.kagent.dev"];

/// What a pod may be called before its name.
pub const POD: &[&str] = &["pod", "pods", "po"];

/// The name in `NAME` or `KIND/NAME`.
///
/// # Errors
/// Where the kind is another.
pub fn named<'a>(text: &'a str, kinds: &[&str]) -> Result<&'a str, Error> {
    let name = match text.split_once('/') {
        None => text,
        Some((kind, name)) if kinds.contains(&kind.to_ascii_lowercase().as_str()) => name,
        Some((kind, _)) => {
            return Err(Error::new(format!("{kind:?} is not a {0}: write {0}/NAME or NAME", kinds[0])));
        }
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    match !name.is_empty() && name.chars().all(sound) {
        true => Ok(name),
        false => Err(Error::new(format!("{name:?} is no name of a {}", kinds[0]))),
    }
}

fn there_are(mut known: Vec<String>) -> String {
    const MOST: usize = 10;
    let more = known.len().saturating_sub(MOST);
    known.truncate(MOST);
    match (known.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(": there are {}", known.join(", ")),
        (false, more) => format!(": there are {}, and {more} more", known.join(", ")),
    }
}

/// The longest time the apiserver is asked to keep a watch open.
const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

impl Connection {
    /// The clients for it. The apiserver is not contacted.
    ///
    /// # Errors
    /// Where the configuration is missing or cannot be used.
    pub async fn connect(&self) -> Result<Cluster, Error> {
        // An error says that one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let file =
                    Kubeconfig::read_from(path).map_err(Error::because("the kubeconfig cannot be read"))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await,
            None => {
                let config = Config::infer().await;
                return self.with(config.map_err(Error::because(
                    "no cluster is configured, name a kubeconfig with --kubeconfig or KUBECONFIG",
                ))?);
            }
        };
        self.with(config.map_err(Error::because("the kubeconfig cannot be used"))?)
    }

    fn with(&self, config: Config) -> Result<Cluster, Error> {
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let clients = Clients::new(config, WATCH_TIMEOUT).map_err(Error::from)?;
        Ok(Cluster { client: clients.request, watch: clients.watch, namespace })
    }
}

impl Cluster {
    /// The Hooks of this namespace.
    pub fn hooks(&self) -> Api<Hook> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All Hooks of a namespace, or of the cluster.
    ///
    /// # Errors
    /// What the apiserver said, and what to do about it.
    pub async fn list_hooks(&self, everywhere: bool) -> Result<Vec<Hook>, Error> {
        let api = if everywhere { Api::all(self.client.clone()) } else { self.hooks() };
        let list = api.list(&ListParams::default()).await;
        let list = list.map_err(|error| self.refused("list", "hooks.kagent.dev", everywhere, error))?;
        if list.items.is_empty() && !everywhere {
            self.ensure_namespace().await?;
        }
        Ok(list.items)
    }

    /// One Hook of this namespace; its name may be written as `hook/NAME`.
    ///
    /// # Errors
    /// What the apiserver said, and what to do about it.
    pub async fn hook(&self, name: &str) -> Result<Hook, Error> {
        let name = named(name, HOOK)?;
        match self.hooks().get_opt(name).await {
            Ok(Some(hook)) => Ok(hook),
            // Also what the apiserver answers where there is no such kind.
            Ok(None) => {
                let known = self.list_hooks(false).await;
                let known = match known {
                    Ok(hooks) => hooks.into_iter().filter_map(|hook| hook.metadata.name).collect(),
                    Err(error) if self.lacks_hooks().await => return Err(error),
                    Err(_) => Vec::new(),
                };
                Err(Error::new(format!(
                    "there is no Hook {name} in namespace {}{}",
                    self.namespace,
                    there_are(known)
                )))
            }
            Err(error) => Err(self.refused("get", "hooks.kagent.dev", false, error)),
        }
    }

    /// What is said of the Hooks as it changes, from all there are on.
    pub fn watch_hooks(
        &self,
        everywhere: bool,
    ) -> impl Stream<Item = watcher::Result<watcher::Event<Hook>>> + Send + use<> {
        let api = match everywhere {
            true => Api::all(self.watch.clone()),
            false => Api::namespaced(self.watch.clone(), &self.namespace),
        };
        let config = watcher::Config::default().timeout(u32::try_from(WATCH_TIMEOUT.as_secs()).unwrap_or(60));
        watcher(api, config).default_backoff().boxed()
    }

    /// Whether the apiserver does not know what a Hook is.
    async fn lacks_hooks(&self) -> bool {
        let list = self.hooks().list(&ListParams::default().limit(1)).await;
        matches!(list, Err(kube::Error::Api(status)) if status.code == 404)
    }

    async fn ensure_namespace(&self) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.get_opt(&self.namespace).await {
            // Who may not look is not told.
            Ok(Some(_)) | Err(_) => Ok(()),
            Ok(None) => Err(Error::new(format!(
                "there is no namespace {}: name another with -n, or look into all with -A",
                self.namespace
            ))),
        }
    }

    /// A request that failed, as a sentence with what to do about it.
    pub fn refused(&self, verb: &str, resource: &str, everywhere: bool, error: kube::Error) -> Error {
        let place = match everywhere {
            true => "in all namespaces".to_owned(),
            false => format!("in namespace {}", self.namespace),
        };
        match error {
            kube::Error::Api(status) if status.code == 404 && resource == "hooks.kagent.dev" => {
                Error::new(NO_CRD)
            }
            kube::Error::Api(status) if status.code == 403 => Error::new(format!(
                "you may not {verb} {resource} {place}: whoever administers the cluster can give you that right \
                 ({})",
                status.message
            )),
            kube::Error::Api(status) if status.code == 401 => Error::new(
                "the apiserver does not know you: the credentials of this kubeconfig are not valid",
            ),
            kube::Error::Api(status) => {
                Error::new(format!("cannot {verb} {resource} {place}: {}", status.message))
            }
            error => Error::because("the apiserver cannot be reached")(error),
        }
    }

    /// The apiserver's clock, and how long it took to be told.
    ///
    /// # Errors
    /// What the apiserver said.
    pub async fn clock(&self) -> Result<(DateTime<Utc>, Duration), Error> {
        let request =
            http::Request::get("/version").body(Body::empty()).map_err(Error::because("no request"))?;
        let begun = std::time::Instant::now();
        let answer = self.client.send(request).await;
        let answer = answer.map_err(|error| self.refused("get", "/version", true, error))?;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        let date = date.ok_or_else(|| Error::new("the apiserver does not tell its time"))?;
        Ok((date.with_timezone(&Utc), begun.elapsed()))
    }

    /// Who the apiserver takes this person for; empty where it does not say.
    pub async fn who(&self) -> String {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await;
        let user = review.ok().and_then(|review| review.status).and_then(|status| status.user_info);
        user.and_then(|user| user.username).unwrap_or_default()
    }
}
