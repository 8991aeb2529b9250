//! A control plane is an etcd and a kube-apiserver of its own on loopback, ready in some 2.5 s.
//!
//! RBAC is on, so is token authentication; there is no controller-manager, no scheduler and no node,
//! unless asked for ([`Options::controllers`], [`Node`](crate::node::Node)). Without them namespaces
//! are never emptied: let each test take a fresh one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::assets::{Assets, NodeAssets};
use crate::objects;
use crate::process::{Process, Scratch, Spec, free_port, tail};
use crate::table;
use crate::wait::eventually;

/// Only an error waits this long; a start takes seconds.
const START: Duration = Duration::from_secs(120);

/// What a control plane can be asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments for kube-apiserver, such as `--min-request-timeout=20`, which ends watches
    /// after 20 to 40 s.
    pub apiserver_args: Vec<String>,
    /// Also runs kube-controller-manager and kube-scheduler, and admits pods only with their service
    /// accounts, as a cluster does: what a node needs.
    pub controllers: bool,
}

/// A running control plane. Dropping it ends its processes and removes its folder, and so does the
/// end of the process that owns it, whatever that end is.
#[derive(Debug)]
pub struct ControlPlane {
    controllers: Vec<Process>,
    apiserver: Mutex<Option<Process>>,
    apiserver_spec: Spec,
    port: u16,
    token: String,
    etcd: Mutex<Process>,
    etcd_spec: Spec,
    etcd_url: String,
    // Last: the folder goes after those who write into it.
    scratch: Scratch,
}

impl ControlPlane {
    /// Starts one, building its programs first where they are not found.
    pub async fn start(options: Options) -> Result<Self> {
        let find = if options.controllers { Assets::for_node } else { Assets::find_or_build };
        let assets = tokio::task::spawn_blocking(find).await.context("finding the assets")??;
        let more = match options.controllers {
            true => Some(
                tokio::task::spawn_blocking(NodeAssets::find_or_build)
                    .await
                    .context("finding the assets")??,
            ),
            false => None,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::start_with(&assets, more.as_ref(), &options).await {
                Ok(control_plane) => return Ok(control_plane),
                // A port was free when we looked, and somebody was quicker.
                Err(error) if tries < 3 && format!("{error:#}").contains("address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The one that the tests of a binary share; started by whoever asks first, ended with the binary.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(Options::default())).await
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// A kubeconfig as a pod of this service account would have: no rights but those bound to
    /// `system:serviceaccount:NAMESPACE:NAME`. The account is created if it is not there.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let account = ServiceAccount {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..ServiceAccount::default()
        };
        match accounts.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other.context("creating the service account")?),
        }
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(24 * 3600), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .context("asking for a token of the service account")?;
        let token = answer.status.context("the token request was not answered")?.token;
        let path = self.dir().join(format!("kubeconfig-{namespace}-{name}"));
        self.write_kubeconfig(&path, name, &token)?;
        Ok(path)
    }

    /// The configuration of a client with all rights.
    pub async fn config(&self) -> Result<Config> {
        config_of(&self.kubeconfig()).await
    }

    /// A client with all rights. Make one per test: a client belongs to the runtime it was made in.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig()).await
    }

    /// Where the apiserver listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The folder with its data, certificates and logs (`etcd.log`, `kube-apiserver.log`).
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The ids of all processes that belong to it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        {
            let etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
            pids.extend([etcd.pid(), etcd.supervisor_pid()]);
        }
        if let Some(apiserver) = self.lock().as_ref() {
            pids.extend([apiserver.pid(), apiserver.supervisor_pid()]);
        }
        pids.extend(self.controllers.iter().flat_map(|process| [process.pid(), process.supervisor_pid()]));
        pids.extend(self.scratch.janitor_pid());
        pids
    }

    /// Creates a namespace; one that is there already is all right.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop).with_context(|| format!("creating namespace {name}")),
        }
    }

    /// Creates a namespace that no other test has, and answers its name: the prefix and a few letters.
    pub async fn fresh_namespace(&self, prefix: &str) -> Result<String> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{prefix}-{}", &random[..8]);
        self.create_namespace(&name).await?;
        Ok(name)
    }

    /// Applies YAML, one object or several, as `kubectl apply --server-side` does. Namespaced objects
    /// without a namespace go to `default`. Returns when CRDs among them are served. The error's last
    /// part is what the server said.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        self.apply_in("default", yaml).await
    }

    /// As [`apply`](Self::apply), with another namespace for objects that name none.
    pub async fn apply_in(&self, namespace: &str, yaml: &str) -> Result<Vec<DynamicObject>> {
        objects::apply(&self.client().await?, namespace, objects::parse(yaml)?).await
    }

    /// What `kubectl get RESOURCE` prints, to the letter, and with `wide` what `-o wide` adds. Without
    /// a namespace it is `kubectl get -A`. The resource is written as in `kagent.dev/v1alpha2/hooks`
    /// or `v1/pods`.
    pub async fn table(&self, resource: &str, namespace: Option<&str>, wide: bool) -> Result<String> {
        table::get(&self.client().await?, resource, namespace, wide).await
    }

    /// Kills kube-apiserver; etcd keeps its data.
    pub fn stop_apiserver(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut apiserver) => apiserver.kill(),
            None => Ok(()),
        }
    }

    /// Starts kube-apiserver again on its port and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        ensure!(self.lock().is_none(), "the apiserver runs already");
        let apiserver = Process::spawn(&self.apiserver_spec)?;
        *self.lock() = Some(apiserver);
        eventually("the apiserver", START, async || {
            if let Some(program) = self.ended() {
                // No use in waiting on: an error inside the value ends the wait.
                return Ok(Err(self.failed(program)));
            }
            Ok(Ok(self.ready().await?))
        })
        .await?
    }

    /// Kills kube-apiserver and starts it again: the same port, the same data.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.stop_apiserver()?;
        self.start_apiserver().await
    }

    /// Kills etcd and starts it again with the same data; waits until the apiserver is ready again.
    pub async fn restart_etcd(&self) -> Result<()> {
        {
            let mut etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
            etcd.kill()?;
            *etcd = Process::spawn(&self.etcd_spec)?;
        }
        eventually("the apiserver with its etcd", START, async || self.ready().await).await
    }

    /// Has etcd forget all old versions now, as it does every five minutes: a watch that wants to go on from
    /// one has to begin anew.
    pub async fn compact(&self) -> Result<()> {
        let etcd = |path: &str, body: serde_json::Value| {
            let url = format!("{}/v3/{path}", self.etcd_url);
            async move {
                let answer = crate::http_client()?.post(url).body(body.to_string()).send().await?;
                Ok::<serde_json::Value, anyhow::Error>(answer.error_for_status()?.json().await?)
            }
        };
        let status = etcd("maintenance/status", json!({})).await.context("etcd's status")?;
        let revision = status["header"]["revision"].clone();
        etcd("kv/compaction", json!({"revision": revision, "physical": true})).await.context("compaction")?;
        Ok(())
    }

    /// Stops kube-apiserver where it stands: connections stay open and silent, as behind a dead router.
    pub fn pause_apiserver(&self) -> Result<()> {
        self.signal_apiserver(Signal::STOP)
    }

    /// Lets a paused kube-apiserver go on.
    pub fn resume_apiserver(&self) -> Result<()> {
        self.signal_apiserver(Signal::CONT)
    }

    /// CPU time kube-apiserver has used since its last start.
    pub fn apiserver_cpu(&self) -> Result<Duration> {
        self.lock().as_ref().context("the apiserver is stopped")?.cpu()
    }

    async fn start_with(assets: &Assets, more: Option<&NodeAssets>, options: &Options) -> Result<Self> {
        let scratch = Scratch::new()?;
        let dir = scratch.path();
        let client_url = format!("http://127.0.0.1:{}", free_port()?);
        let etcd = Spec::new(&assets.etcd, dir.join("etcd.log"))
            .clean_env()
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", free_port()?)])
            // Nothing here has to survive the machine.
            .arg("--unsafe-no-fsync");
        let port = free_port()?;
        let token = uuid::Uuid::new_v4().simple().to_string();
        let tokens = dir.join("tokens.csv");
        fs::write(&tokens, format!("{token},admin,admin,system:masters\n")).context("writing the tokens")?;
        let certificates = dir.join("certs");
        // The key of the serving certificate, which the apiserver makes itself, also signs the service
        // accounts' tokens: one less thing to generate.
        let key = certificates.join("apiserver.key");
        let apiserver_spec = Spec::new(&assets.apiserver, dir.join("kube-apiserver.log"))
            .clean_env()
            .args(["--etcd-servers", &client_url])
            .arg("--cert-dir")
            .arg(&certificates)
            .args(["--secure-port", &port.to_string()])
            .args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-key-file")
            .arg(&key)
            .arg("--service-account-signing-key-file")
            .arg(&key)
            .arg("--token-auth-file")
            .arg(&tokens)
            .args(["--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"])
            .arg("--allow-privileged")
            .args(&options.apiserver_args);
        let apiserver_spec = match options.controllers {
            true => apiserver_spec,
            // Its controller is not here, and without it no pod could be created.
            false => apiserver_spec.args(["--disable-admission-plugins", "ServiceAccount"]),
        };
        let etcd_spec = etcd;
        let etcd = Mutex::new(Process::spawn(&etcd_spec)?);
        let mut control_plane = Self {
            controllers: Vec::new(),
            apiserver: Mutex::new(None),
            apiserver_spec,
            port,
            token,
            etcd,
            etcd_spec,
            etcd_url: client_url,
            scratch,
        };
        control_plane.write_kubeconfig(&control_plane.kubeconfig(), "admin", &control_plane.token)?;
        control_plane.start_apiserver().await?;
        if let Some(more) = more {
            control_plane.start_controllers(more)?;
        }
        Ok(control_plane)
    }

    /// They begin when they can; nothing waits for them but what needs them.
    fn start_controllers(&mut self, assets: &NodeAssets) -> Result<()> {
        let dir = self.dir();
        let spec = |program: &Path, log: &str| {
            Spec::new(program, dir.join(log))
                .clean_env()
                .arg("--kubeconfig")
                .arg(self.kubeconfig())
                // One of each, and nobody to ask them anything.
                .args(["--leader-elect=false", "--secure-port", "0"])
        };
        let manager = spec(&assets.controller_manager, "kube-controller-manager.log")
            .arg("--service-account-private-key-file")
            .arg(dir.join("certs/apiserver.key"))
            .arg("--root-ca-file")
            .arg(dir.join("certs/apiserver.crt"))
            .arg("--controllers=*,-nodeipam,-node-route-controller,-service-lb-controller");
        let scheduler = spec(&assets.scheduler, "kube-scheduler.log");
        let started = vec![Process::spawn(&manager)?, Process::spawn(&scheduler)?];
        self.controllers = started;
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        let request = http::Request::get("/readyz").body(Vec::new()).context("a request")?;
        self.client().await?.request_text(request).await.context("/readyz")?;
        Ok(())
    }

    fn ended(&self) -> Option<&'static str> {
        if !self.etcd.lock().unwrap_or_else(PoisonError::into_inner).is_running() {
            return Some("etcd");
        }
        self.lock().as_mut().is_some_and(|apiserver| !apiserver.is_running()).then_some("kube-apiserver")
    }

    fn failed(&self, program: &str) -> anyhow::Error {
        let log = |name: &str| tail(&self.dir().join(name), 12);
        anyhow::anyhow!(
            "{program} did not start.\nThe end of kube-apiserver.log:\n{}\nThe end of etcd.log:\n{}",
            log("kube-apiserver.log"),
            log("etcd.log")
        )
    }

    fn signal_apiserver(&self, signal: Signal) -> Result<()> {
        self.lock().as_mut().context("the apiserver is stopped")?.signal(signal)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_kubeconfig(&self, path: &Path, user: &str, token: &str) -> Result<()> {
        // The self-signed certificate is its own authority. JSON is YAML enough.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
            "clusters": [{"name": "e2e", "cluster": {
                "server": self.url(),
                "certificate-authority": self.dir().join("certs/apiserver.crt"),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
        });
        fs::write(path, format!("{kubeconfig:#}\n")).context("writing the kubeconfig")
    }
}

/// A client with the rights of this kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    Client::try_from(config_of(kubeconfig).await?).context("making a client")
}

/// The configuration of a client with the rights of this kubeconfig.
pub async fn config_of(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.context("making a client configuration")
}
