//! The CRDs here are those of other projects, as they release them: an example for Argo CD is right when Argo
//! CD's own schema takes it, a ServiceMonitor when the Prometheus operator's does.
//!
//! They come in the zips of the projects' Go modules, pinned by version and sum, and are kept where `assets`
//! caches. Nothing of them is compiled. The versions are the newest that Go 1.26 hands out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::assets::{cache, go, lock};
use crate::markdown::files;
use crate::process::say;

/// A project whose CRDs are used.
struct Module {
    path: &'static str,
    version: &'static str,
    sum: &'static str,
    /// Where in the module they are.
    folder: &'static str,
    /// Which of them: the beginnings of the files' names.
    files: &'static [&'static str],
}

const PROMETHEUS_OPERATOR: Module = Module {
    path: "github.com/prometheus-operator/prometheus-operator",
    version: "v0.85.0",
    sum: "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
    folder: "example/prometheus-operator-crd",
    files: &[
        "monitoring.coreos.com_podmonitors",
        "monitoring.coreos.com_prometheusrules",
        "monitoring.coreos.com_servicemonitors",
    ],
};

const GITOPS: [Module; 4] = [
    Module {
        path: "github.com/argoproj/argo-cd/v3",
        version: "v3.5.7",
        sum: "h1:Xm1BF+I5OgDKUG3SDK49vn2/Y5AMyaNVko+/JT08gj0=",
        folder: "manifests/crds",
        files: &["application-crd", "appproject-crd"],
    },
    Module {
        path: "github.com/fluxcd/source-controller",
        version: "v1.8.5",
        sum: "h1:3zKSTGc2FPoZcQ5BjnyOrwdHDWeYqst3uAoZ+c0DG3c=",
        folder: "config/crd/bases",
        files: &["source."],
    },
    Module {
        path: "github.com/fluxcd/kustomize-controller",
        version: "v1.7.3",
        sum: "h1:SzNnGn/4ObAPEHHleM5U7y/AKxKXph3Vj6ZhteeXw8M=",
        folder: "config/crd/bases",
        files: &["kustomize."],
    },
    Module {
        path: "github.com/fluxcd/helm-controller",
        version: "v1.4.0",
        sum: "h1:rkm8rmB6Na7eNc4pJOnvtXEaJ19iKluRtayHKjBxcUM=",
        folder: "config/crd/bases",
        files: &["helm."],
    },
];

/// The CRDs of Argo CD and Flux, as YAML. Blocks, for a minute when they are not in the cache yet.
pub fn gitops() -> Result<Vec<String>> {
    let crds: Vec<Vec<String>> = GITOPS.iter().map(Module::crds).collect::<Result<_>>()?;
    Ok(crds.concat())
}

/// Those of ServiceMonitor, PodMonitor and PrometheusRule, the same way.
pub fn prometheus_operator() -> Result<Vec<String>> {
    PROMETHEUS_OPERATOR.crds()
}

impl Module {
    fn crds(&self) -> Result<Vec<String>> {
        let folder = self.folder()?;
        let files = files(&folder, "yaml")?;
        ensure!(files.len() >= self.files.len(), "{} has {} CRDs", folder.display(), files.len());
        let read =
            |file: PathBuf| fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()));
        files.into_iter().map(read).collect()
    }

    /// The folder in the cache that has its CRDs.
    fn folder(&self) -> Result<PathBuf> {
        let name = format!("crds-{}-{}", self.path.replace('/', "-"), self.version);
        let folder = cache()?.join(&name);
        if folder.is_dir() {
            return Ok(folder);
        }
        let _lock = lock(&cache()?, &name)?;
        if folder.is_dir() {
            return Ok(folder);
        }
        say(&format!("fetching the CRDs of {} {}, this first time only", self.path, self.version));
        let source = self.download()?.join(self.folder);
        // Killed halfway, it leaves this name and not the real one.
        let partial = folder.with_extension("partial");
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        for entry in fs::read_dir(&source).with_context(|| format!("reading {}", source.display()))? {
            let from = entry?.path();
            let name = from.file_name().context("a file has a name")?;
            if self.files.iter().any(|wanted| name.to_string_lossy().starts_with(wanted)) {
                let yaml = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
                fs::write(partial.join(name), yaml).context("writing a CRD")?;
            }
        }
        fs::rename(&partial, &folder).with_context(|| format!("moving {} into place", folder.display()))?;
        Ok(folder)
    }

    /// Where Go has unpacked the module.
    fn download(&self) -> Result<PathBuf> {
        let module = format!("{}@{}", self.path, self.version);
        // Outside of every module: what this one requires does not matter.
        let told = go(&std::env::temp_dir(), &["mod", "download", "-json", &module], &module)?;
        let told: Value = serde_json::from_str(&told).context("what go mod download said")?;
        let folder = told["Dir"].as_str().context("go mod download named no folder")?;
        let sum = told["Sum"].as_str().unwrap_or_default();
        ensure!(sum == self.sum, "{module} has the sum {sum}, not the pinned {}", self.sum);
        Ok(Path::new(folder).to_owned())
    }
}
