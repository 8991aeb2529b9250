//! The assets are the programs of a cluster: etcd and kube-apiserver; where pods are to run also
//! kube-controller-manager, kube-scheduler and kubelet; and the tools with which people and CI work on one.
//!
//! The cluster's are looked for where `KUBEBUILDER_ASSETS` points, in our cache, in the store that
//! `setup-envtest` downloads into, and else built with Go from the modules pinned in `tools/`, once
//! per version. setup-envtest itself is not run: where the internet is closed it does not fail at
//! once but is downloaded and compiled first, and where it is open, one command
//! (`setup-envtest use`) puts its binaries where they are found here. A tool is looked for in our cache only:
//! what a test says about it is about the version that is pinned.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Process, Spec, say, tail};

/// Where etcd and kube-apiserver are.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The program etcd.
    pub etcd: PathBuf,
    /// The program kube-apiserver.
    pub apiserver: PathBuf,
}

impl Assets {
    /// Finds the programs, or builds them with progress on stderr. Blocks, for minutes when it builds.
    pub fn find_or_build() -> Result<Self> {
        if let Some(folder) = told() {
            return Self::within(&folder).with_context(|| {
                format!("KUBEBUILDER_ASSETS is {}, where etcd or kube-apiserver is missing", folder.display())
            });
        }
        let cache = cache()?;
        let cached = Self { etcd: Part::etcd()?.place(&cache), apiserver: Part::apiserver()?.place(&cache) };
        if cached.etcd.is_file() && cached.apiserver.is_file() {
            return Ok(cached);
        }
        if let Some(found) = envtest_store().and_then(|store| newest(&store)) {
            return Ok(found);
        }
        Self::build_or_cached()
    }

    /// Finds or builds the control plane of a node. Its two programs are of the version the node's are
    /// of: kubelet may be no newer than the apiserver it serves.
    pub fn for_node() -> Result<Self> {
        if let Some(found) = told().filter(|folder| NodeAssets::within(folder).is_some()) {
            return Self::within(&found).context("KUBEBUILDER_ASSETS has a kubelet but no apiserver");
        }
        Self::build_or_cached()
    }

    fn build_or_cached() -> Result<Self> {
        let cache = cache()?;
        Ok(Self { etcd: Part::etcd()?.at(&cache)?, apiserver: Part::apiserver()?.at(&cache)? })
    }

    fn within(folder: &Path) -> Option<Self> {
        let found = Self { etcd: folder.join("etcd"), apiserver: folder.join("kube-apiserver") };
        (found.etcd.is_file() && found.apiserver.is_file()).then_some(found)
    }
}

/// The programs that make a node, and pods to run on it.
#[derive(Clone, Debug)]
pub struct NodeAssets {
    /// The program kube-controller-manager.
    pub controller_manager: PathBuf,
    /// The program kube-scheduler.
    pub scheduler: PathBuf,
    /// The program kubelet.
    pub kubelet: PathBuf,
}

impl NodeAssets {
    /// Finds the programs, or builds them with progress on stderr. Blocks, for minutes when it builds.
    pub fn find_or_build() -> Result<Self> {
        if let Some(found) = told().and_then(|folder| Self::within(&folder)) {
            return Ok(found);
        }
        let cache = cache()?;
        let part = |name, expected| Part::kubernetes(name, expected)?.at(&cache);
        Ok(Self {
            // The first of the three pays for what they share.
            controller_manager: part("kube-controller-manager", "about two minutes on two cores")?,
            scheduler: part("kube-scheduler", "less than a minute")?,
            kubelet: part("kubelet", "about a minute")?,
        })
    }

    fn within(folder: &Path) -> Option<Self> {
        let found = Self {
            controller_manager: folder.join("kube-controller-manager"),
            scheduler: folder.join("kube-scheduler"),
            kubelet: folder.join("kubelet"),
        };
        let all = [&found.controller_manager, &found.scheduler, &found.kubelet];
        all.iter().all(|path| path.is_file()).then_some(found)
    }
}

/// A program that works on a cluster from outside, in the one version that is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// Helm 3.
    Helm3,
    /// Helm 4.
    Helm4,
    /// kubeconform: checks manifests against schemas.
    Kubeconform,
    /// kubectl, of the version of the control plane.
    Kubectl,
    /// Prometheus, without its web pages and with no way to find targets but those in its file.
    Prometheus,
    /// promtool: checks and tests Prometheus' rules.
    Promtool,
    /// What Argo CD and Flux think of objects, by their own libraries: `tools/health/main.go`.
    Health,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Helm3,
        Self::Helm4,
        Self::Kubeconform,
        Self::Kubectl,
        Self::Prometheus,
        Self::Promtool,
        Self::Health,
    ];

    /// Finds the program, or builds it with progress on stderr. Blocks, for minutes when it builds.
    pub fn find_or_build(self) -> Result<PathBuf> {
        self.part()?.at(&cache()?)
    }

    fn part(self) -> Result<Part> {
        match self {
            Self::Helm3 => {
                let go_mod = include_str!("../tools/helm3/go.mod");
                let (version, client) =
                    (pinned(go_mod, "helm.sh/helm/v3")?, pinned(go_mod, "k8s.io/client-go")?);
                let minor = client.split('.').nth(1).context("client-go has a minor version")?;
                // Without these it takes every chart to be for a cluster of Kubernetes 1.20.
                let kubernetes = ["pkg/chartutil", "pkg/lint/rules"].map(|package| {
                    let at = format!("-X helm.sh/helm/v3/{package}.k8sVersion");
                    format!("{at}Major=1 {at}Minor={minor}")
                });
                let stamp = "-X helm.sh/helm/v3/internal/version.version";
                Ok(Part {
                    ldflags: format!("-s -w {stamp}={version} {}", kubernetes.join(" ")),
                    ..Part::plain(
                        "helm",
                        "helm3",
                        "helm.sh/helm/v3/cmd/helm",
                        version,
                        "about three minutes on two cores",
                    )
                })
            }
            Self::Helm4 => {
                let version = pinned(include_str!("../tools/helm4/go.mod"), "helm.sh/helm/v4")?;
                let stamp = "-X helm.sh/helm/v4/internal/version.version";
                Ok(Part {
                    ldflags: format!("-s -w {stamp}={version}"),
                    ..Part::plain(
                        "helm",
                        "helm4",
                        "helm.sh/helm/v4/cmd/helm",
                        version,
                        "about three minutes on two cores",
                    )
                })
            }
            Self::Kubeconform => {
                let module = "github.com/yannh/kubeconform";
                let version = pinned(include_str!("../tools/kubeconform/go.mod"), module)?;
                let package = format!("{module}/cmd/kubeconform");
                Ok(Part::plain("kubeconform", "kubeconform", &package, version, "some seconds"))
            }
            Self::Kubectl => Part::kubernetes("kubectl", "less than a minute"),
            Self::Prometheus => Part::prometheus("prometheus", "about four minutes on two cores"),
            Self::Promtool => Part::prometheus("promtool", "less than a minute"),
            Self::Health => {
                let files = [
                    include_str!("../tools/health/go.mod"),
                    include_str!("../tools/health/go.sum"),
                    include_str!("../tools/health/main.go"),
                ];
                Ok(Part::plain("health", "health", ".", &digest(&files), "about a minute and a half"))
            }
        }
    }
}

/// What a command of Go's says, run in a module's folder; or a sentence on what is missing.
pub(crate) fn go(folder: &Path, args: &[&str], wanted: &str) -> Result<String> {
    let missing = || {
        format!(
            "no {wanted} was found, and making it needs Go 1.26 or newer, which is not on PATH. Install it from \
             https://go.dev/dl; the programs of a cluster are also looked for in the folder that \
             KUBEBUILDER_ASSETS names"
        )
    };
    let answer = Command::new("go")
        .args(args)
        .env("GOWORK", "off")
        .env("GOFLAGS", "")
        .current_dir(folder)
        .output()
        .with_context(missing)?;
    if !answer.status.success() {
        // With -json it tells its error on stdout.
        let words = [&answer.stderr, &answer.stdout].map(|words| String::from_utf8_lossy(words));
        bail!("go {} failed in {}: {}", args.join(" "), folder.display(), words.concat().trim());
    }
    Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

fn told() -> Option<PathBuf> {
    std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
}

/// The folder of what is costly to make, outside the checkout: `KHOOK_CACHE`, or khook's part of the
/// user's cache.
pub fn cache() -> Result<PathBuf> {
    let var = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("KHOOK_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|folder| folder.join("khook")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/khook")))
        .context("no place for the cache: set KHOOK_CACHE or HOME")
}

/// One program, and how it is built.
struct Part {
    name: &'static str,
    /// The folder of its go.mod in `tools/`.
    module: &'static str,
    package: String,
    version: String,
    tags: &'static str,
    ldflags: String,
    expected: &'static str,
}

impl Part {
    fn etcd() -> Result<Self> {
        let version = pinned(include_str!("../tools/etcd/go.mod"), "go.etcd.io/etcd/server/v3")?;
        Ok(Self::plain("etcd", "etcd", "go.etcd.io/etcd/server/v3", version, "about a minute"))
    }

    /// What is built as it is.
    fn plain(
        name: &'static str,
        module: &'static str,
        package: &str,
        version: &str,
        expected: &'static str,
    ) -> Self {
        Self {
            name,
            module,
            package: package.to_owned(),
            version: version.to_owned(),
            tags: "",
            ldflags: "-s -w".to_owned(),
            expected,
        }
    }

    fn prometheus(name: &'static str, expected: &'static str) -> Result<Self> {
        let module = "github.com/prometheus/prometheus";
        let version = pinned(include_str!("../tools/prometheus/go.mod"), module)?;
        let stamp = "-X github.com/prometheus/common/version.Version";
        Ok(Self {
            // The clients of every cloud are most of what there is to compile.
            tags: "remove_all_sd",
            ldflags: format!("-s -w {stamp}={}", version.trim_start_matches('v')),
            ..Self::plain(name, "prometheus", &format!("{module}/cmd/{name}"), version, expected)
        })
    }

    fn apiserver() -> Result<Self> {
        Self::kubernetes("kube-apiserver", "about six minutes on two cores")
    }

    fn kubernetes(name: &'static str, expected: &'static str) -> Result<Self> {
        let version = pinned(include_str!("../tools/kubernetes/go.mod"), "k8s.io/kubernetes")?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        // Without these the server calls itself v0.0.0 and clients that look at its version go astray.
        let stamp = "-X k8s.io/component-base/version.git";
        Ok(Self {
            ldflags: format!("-s -w {stamp}Version={version} {stamp}Major={major} {stamp}Minor={minor}"),
            ..Self::plain(name, "kubernetes", &format!("k8s.io/kubernetes/cmd/{name}"), version, expected)
        })
    }

    fn place(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}-{}", self.module, self.version)).join(self.name)
    }

    /// Where the program is, once it is there.
    fn at(&self, cache: &Path) -> Result<PathBuf> {
        let place = self.place(cache);
        if !place.is_file() {
            self.build(&place)?;
        }
        Ok(place)
    }

    /// Builds the program to its place, unless it is there. Two processes do not build it twice.
    fn build(&self, place: &Path) -> Result<()> {
        let folder = place.parent().context("a place has a folder")?;
        let _lock = lock(folder, self.name)?;
        if place.is_file() {
            return Ok(());
        }
        let go = go(&self.source(), &["env", "GOVERSION"], self.name)?;
        say(&format!(
            "building {} {} with {go}, this first time only: {}",
            self.name, self.version, self.expected
        ));
        // Killed halfway, it leaves this name and not the real one.
        let partial = folder.join(format!("{}.partial", self.name));
        let log = folder.join(format!("{}.build.log", self.name));
        fs::remove_file(&log).ok();
        let build = Spec::new("go", &log)
            .args([
                "build",
                "-mod=readonly",
                "-trimpath",
                "-tags",
                self.tags,
                "-ldflags",
                &self.ldflags,
                "-o",
            ])
            .arg(&partial)
            .arg(&self.package)
            .env("CGO_ENABLED", "0")
            // A workspace or flags of the person's must not change what is built.
            .env("GOWORK", "off")
            .env("GOFLAGS", "")
            .folder(self.source());
        let start = Instant::now();
        run(&build, &format!("building {} {}", self.name, self.version), self.expected)?;
        fs::rename(&partial, place).with_context(|| format!("moving {} into place", self.name))?;
        say(&format!("{} is built ({} s), at {}", self.name, start.elapsed().as_secs(), place.display()));
        Ok(())
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(self.module)
    }
}

/// Takes the lock of what is made in this folder once: two processes do not make it twice. It is given back
/// when the file is dropped.
pub(crate) fn lock(folder: &Path, name: &str) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = File::create(folder.join(format!("{name}.lock"))).context("creating a lock file")?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        say(&format!("{name} is being built by another process; waiting for it"));
        lock.lock().context("waiting for the other process's build")?;
    }
    Ok(lock)
}

/// Runs a step of a build to its end, with progress on stderr.
pub(crate) fn run(step: &Spec, doing: &str, expected: &str) -> Result<()> {
    let start = Instant::now();
    let mut process = Process::spawn(step)?;
    let mut told = 0;
    let code = loop {
        if let Some(code) = process.exit_code() {
            break code;
        }
        std::thread::sleep(Duration::from_millis(200));
        let elapsed = start.elapsed().as_secs();
        if elapsed / 15 > told {
            told = elapsed / 15;
            say(&format!("{doing}: {elapsed} s so far ({expected})"));
        }
    };
    let log = step.log();
    if code != 0 {
        bail!("{doing} failed (it ended with {code}); the end of {}:\n{}", log.display(), tail(log, 15));
    }
    Ok(())
}

/// A short name for what is made of these texts.
pub(crate) fn digest(made_of: &[&str]) -> String {
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    for part in made_of {
        // Where one part ends and the next begins is part of it.
        sum.update(&part.len().to_le_bytes());
        sum.update(part.as_bytes());
    }
    sum.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The version that a go.mod requires of a module: the one place where it is written.
fn pinned(go_mod: &'static str, module: &str) -> Result<&'static str> {
    go_mod
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("require ").strip_prefix(module))
        .find_map(|rest| rest.strip_prefix(' ')?.split_whitespace().next())
        .with_context(|| format!("{module} is not in the go.mod"))
}

fn envtest_store() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let data = if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library/Application Support/io.kubebuilder.envtest"))
    } else {
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        data.or(home.map(|home| home.join(".local/share"))).map(|data| data.join("kubebuilder-envtest"))
    };
    data.map(|data| data.join("k8s"))
}

/// The newest version in setup-envtest's store; its folders are called like 1.36.0-linux-amd64.
fn newest(store: &Path) -> Option<Assets> {
    let version = |path: &Path| -> Vec<u32> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let version = name.split('-').next().unwrap_or_default();
        version.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    let mut folders: Vec<PathBuf> = fs::read_dir(store).ok()?.flatten().map(|entry| entry.path()).collect();
    folders.sort_by_key(|folder| version(folder));
    folders.iter().rev().find_map(|folder| Assets::within(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_pinned_modules() {
        let etcd = Part::etcd().expect("etcd is pinned");
        let apiserver = Part::apiserver().expect("kubernetes is pinned");
        assert!(etcd.version.starts_with("v3."), "{}", etcd.version);
        let minor = apiserver.version.split('.').nth(1).expect("a minor version");
        assert!(apiserver.ldflags.contains(&format!("gitMinor={minor}")), "{}", apiserver.ldflags);
        let place = apiserver.place(Path::new("cache"));
        assert_eq!(
            place,
            Path::new("cache").join(format!("kubernetes-{}", apiserver.version)).join("kube-apiserver")
        );
    }

    #[test]
    fn every_tool_has_a_place_of_its_own_by_its_version() {
        let places: std::collections::BTreeSet<_> =
            Tool::ALL.iter().map(|tool| tool.part().expect("it is pinned").place(Path::new(""))).collect();
        assert_eq!(places.len(), Tool::ALL.len(), "{places:?}");
        let helm3 = Tool::Helm3.part().expect("it is pinned");
        assert!(!helm3.ldflags.contains("Minor=20") && helm3.ldflags.contains("Minor="), "{}", helm3.ldflags);
    }

    #[test]
    fn the_newest_of_the_envtest_store_is_taken() {
        let store = std::env::temp_dir().join(format!("khook-store-{}", uuid::Uuid::new_v4().simple()));
        for version in ["1.9.1-linux-amd64", "1.31.0-linux-amd64", "1.40.0-linux-amd64"] {
            fs::create_dir_all(store.join(version)).expect("a folder");
        }
        for file in ["etcd", "kube-apiserver"] {
            for version in ["1.9.1-linux-amd64", "1.31.0-linux-amd64"] {
                fs::write(store.join(version).join(file), "").expect("a file");
            }
        }
        let found = newest(&store).expect("one is whole");
        fs::remove_dir_all(&store).expect("cleaning up");
        assert!(found.etcd.to_string_lossy().contains("1.31.0"), "{found:?}");
    }
}
