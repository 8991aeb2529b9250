//! Helm is what khook's charts are installed with: one of the two versions people have, with a home of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::assets::Tool;
use crate::objects;
use crate::process::Scratch;

/// The folder of one of khook's charts.
pub fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm").join(name)
}

/// A Helm, and the cluster it works on.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: Option<PathBuf>,
    home: Scratch,
}

impl Helm {
    /// The Helm of this version, built where it is not found. It knows no cluster: it renders.
    pub async fn new(tool: Tool) -> Result<Self> {
        let program =
            tokio::task::spawn_blocking(move || tool.find_or_build()).await.context("finding Helm")??;
        Ok(Self { program, kubeconfig: None, home: Scratch::new()? })
    }

    /// The same, for a cluster.
    pub fn with(mut self, kubeconfig: &Path) -> Self {
        self.kubeconfig = Some(kubeconfig.to_owned());
        self
    }

    /// Runs it; answers what it says on stdout. The error has its own words.
    pub async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut command = Command::new(&self.program);
        // What a person has set up for theirs must not decide a test.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("HOME", self.home.path());
        // Without one it would look for a cluster where there may be another.
        let nowhere = self.home.path().join("no-kubeconfig");
        command.env("KUBECONFIG", self.kubeconfig.as_ref().unwrap_or(&nowhere));
        command.args(&args).stdin(Stdio::null()).kill_on_drop(true);
        let answer = command.output().await.context("running Helm")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !answer.status.success() {
            let line = args.join(OsStr::new(" "));
            // `helm lint` says on stdout what is wrong.
            let words = [text(&answer.stderr), text(&answer.stdout)].join("\n");
            bail!("helm {} failed: {}", line.display(), words.trim());
        }
        Ok(text(&answer.stdout))
    }

    /// Installs a chart as this release with these values, or upgrades it. More arguments are such as `--wait`.
    /// Answers what Helm says, with the notes.
    pub async fn upgrade(
        &self,
        release: &str,
        chart: &Path,
        namespace: &str,
        values: &Value,
        more: &[&str],
    ) -> Result<String> {
        self.on_chart(
            &["upgrade", "--install", "--create-namespace"],
            release,
            chart,
            namespace,
            values,
            more,
        )
        .await
    }

    /// The manifests of a chart, with those of its tests.
    pub async fn template(
        &self,
        release: &str,
        chart: &Path,
        namespace: &str,
        values: &Value,
        more: &[&str],
    ) -> Result<String> {
        self.on_chart(&["template"], release, chart, namespace, values, more).await
    }

    /// khook's service account in a namespace, and the rights the chart gives it with these values.
    pub async fn rights(&self, namespace: &str, values: &Value) -> Result<Vec<Value>> {
        let only = ["--show-only", "templates/rbac.yaml", "--show-only", "templates/serviceaccount.yaml"];
        objects::parse(&self.template("khook", &chart("khook"), namespace, values, &only).await?)
    }

    /// What an install says it would do: with manifests, tests and notes. Helm 3 wants to reach a cluster for it.
    pub async fn everything(
        &self,
        release: &str,
        chart: &Path,
        namespace: &str,
        values: &Value,
    ) -> Result<String> {
        self.on_chart(&["install", "--dry-run=client"], release, chart, namespace, values, &[]).await
    }

    /// Removes a release.
    pub async fn uninstall(&self, release: &str, namespace: &str, more: &[&str]) -> Result<()> {
        let args = ["uninstall", release, "--namespace", namespace];
        self.run(args.iter().chain(more)).await.map(drop)
    }

    async fn on_chart(
        &self,
        command: &[&str],
        release: &str,
        chart: &Path,
        namespace: &str,
        values: &Value,
        more: &[&str],
    ) -> Result<String> {
        // JSON is YAML.
        let file = self.home.path().join(format!("values-{}.yaml", uuid::Uuid::new_v4().simple()));
        std::fs::write(&file, values.to_string()).context("writing values")?;
        let chart = chart.as_os_str();
        let line = command.iter().map(OsStr::new).chain([OsStr::new(release), chart]);
        let line =
            line.chain(["--namespace", namespace, "--values"].map(OsStr::new)).chain([file.as_os_str()]);
        self.run(line.chain(more.iter().map(OsStr::new))).await
    }
}
