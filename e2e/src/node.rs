//! A node is a kubelet with a containerd of its own, on this machine: pods run, crash and are killed.
//!
//! It needs root and Linux, and what `.ci/install-node` installs. Pods use the host's network
//! (`hostNetwork: true`), where all traffic stays on loopback; a pod without it gets no sandbox.
//!
//! containerd, kubelet and every container live in a mount and a process namespace of the node's own,
//! whose first process is our own `e2e init`. When that one is killed, the kernel kills all others and
//! drops all mounts, in no order that could go wrong; and as every process of ours it is killed when
//! whoever started the node ends, be it by SIGKILL. What they would write to fixed places of the host
//! (/var/lib/kubelet, /run/containerd) lands in a layer over them that only they see. What is left, the
//! folder and the control groups of its name, is the janitor's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::Api;
use serde_json::json;

use crate::assets::NodeAssets;
use crate::control_plane::ControlPlane;
use crate::image::{self, Image, program};
use crate::process::{Process, Scratch, Spec, binary, cgroup_roots, free_port, tail};
use crate::wait::eventually;

/// Only an error waits this long; a start takes seconds.
const START: Duration = Duration::from_secs(120);

/// The name of the node in the cluster.
pub const NAME: &str = "node1";

/// Where programs of a node write, whatever they are told.
const COVERED: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// A running node. Dropping it ends its processes and its pods, and so does our own end.
#[derive(Debug)]
pub struct Node {
    kubelet: Mutex<Option<Process>>,
    kubelet_spec: Spec,
    containerd: Process,
    // The namespaces' first process: with it all else has ended.
    init: Process,
    // Last: the folder goes after those who write into it.
    scratch: Scratch,
}

impl Node {
    /// Starts a node and waits until it is ready to take pods. The control plane must have its
    /// controllers.
    pub async fn start(control_plane: &ControlPlane) -> Result<Self> {
        let node = Self::prepare(control_plane).await?;
        node.start_kubelet()?;
        node.wait_ready(control_plane).await?;
        Ok(node)
    }

    /// Starts all of a node but its kubelet: containerd with the images. The cluster does not know of
    /// it until [`start_kubelet`](Self::start_kubelet).
    pub async fn prepare(control_plane: &ControlPlane) -> Result<Self> {
        ensure!(
            cfg!(target_os = "linux") && rustix::process::geteuid().is_root(),
            "a node of our own needs root on Linux: control groups, mounts and namespaces are its matter"
        );
        let programs = ["containerd", "ctr", "runc", "unshare", "nsenter"];
        for name in programs {
            program(name)?;
        }
        let assets =
            tokio::task::spawn_blocking(NodeAssets::find_or_build).await.context("finding the assets")??;
        let scratch = Scratch::new()?;
        let dir = scratch.path();
        if let Some(covered) = COVERED.iter().find(|covered| dir.starts_with(covered)) {
            bail!("temporary files lie below {covered}, which a node covers: set TMPDIR to another folder");
        }
        // Made while the rest starts.
        let archives = tokio::task::spawn_blocking({
            let dir = dir.to_owned();
            move || archives(&dir)
        });
        create_cgroups(&cgroup(dir)?)?;
        let init = start_init(dir).await?;
        let containerd = Spec::new(program("nsenter")?, dir.join("containerd.log"))
            .clean_env()
            .args(entering(&init))
            .arg(program("containerd")?)
            .arg("--config")
            .arg(containerd_config(dir)?);
        let containerd = Process::spawn(&containerd)?;
        let kubelet_spec = Spec::new(program("nsenter")?, dir.join("kubelet.log"))
            .clean_env()
            .args(entering(&init))
            .arg(&assets.kubelet)
            .arg("--config")
            .arg(kubelet_config(dir)?)
            .arg("--kubeconfig")
            .arg(control_plane.kubeconfig())
            .arg("--root-dir")
            .arg(dir.join("kubelet"))
            .arg("--cert-dir")
            .arg(dir.join("kubelet-certs"))
            .args(["--hostname-override", NAME, "--node-ip", "127.0.0.1", "--v", "2"]);
        let mut node = Self { kubelet: Mutex::new(None), kubelet_spec, containerd, init, scratch };
        node.wait_containerd().await?;
        for archive in archives.await.context("making the images")?? {
            node.import(&archive)?;
            fs::remove_file(&archive).context("removing an archive")?;
        }
        Ok(node)
    }

    /// Starts kubelet; the node joins the cluster, or comes back.
    pub fn start_kubelet(&self) -> Result<()> {
        let mut slot = self.lock();
        ensure!(slot.is_none(), "kubelet runs already");
        *slot = Some(Process::spawn(&self.kubelet_spec)?);
        Ok(())
    }

    /// Kills kubelet; its containers go on, as they do.
    pub fn stop_kubelet(&self) {
        // Dropped and not signalled: the process we know is nsenter, and its group goes as one.
        drop(self.lock().take());
    }

    /// Waits until the cluster counts on this node.
    pub async fn wait_ready(&self, control_plane: &ControlPlane) -> Result<()> {
        let nodes: Api<KubeNode> = Api::all(control_plane.client().await?);
        eventually("the node to be ready", START, async || {
            if self.lock().as_mut().is_some_and(|kubelet| !kubelet.is_running()) {
                return Ok(Err(anyhow::anyhow!("kubelet has ended; its last words:\n{}", self.words())));
            }
            let node = nodes.get(NAME).await?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            let ready = ready.context("no condition Ready")?;
            ensure!(ready.status == "True", "{}", ready.message.as_deref().unwrap_or_default());
            Ok(Ok(()))
        })
        .await?
    }

    /// Makes an archive's image known to the node.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let answer = Command::new(program("ctr")?)
            .arg("--address")
            .arg(self.dir().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive)
            .output()
            .context("running ctr")?;
        let words = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.status.success(), "importing {}: {}", archive.display(), words.trim());
        Ok(())
    }

    /// What a container has written: all its runs that are kept. (`kubectl logs` would ask the node
    /// under an address it does not have.)
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        let prefix = format!("{namespace}_{pod}_");
        let mut runs = Vec::new();
        for entry in fs::read_dir(self.dir().join("pods")).context("reading the folder of logs")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                runs.extend(fs::read_dir(entry.path().join(container)).into_iter().flatten().flatten());
            }
        }
        runs.sort_by_key(|run| run.file_name());
        Ok(runs.iter().filter_map(|run| fs::read_to_string(run.path()).ok()).collect())
    }

    /// The folder with its data and logs (`kubelet.log`, `containerd.log`, `pods/`).
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The ids of our processes that belong to it; the pods' are below them.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for process in [&self.containerd, &self.init] {
            pids.extend([process.pid(), process.supervisor_pid()]);
        }
        if let Some(kubelet) = self.lock().as_ref() {
            pids.extend([kubelet.pid(), kubelet.supervisor_pid()]);
        }
        pids.extend(self.scratch.janitor_pid());
        pids
    }

    async fn wait_containerd(&mut self) -> Result<()> {
        let socket = self.dir().join("containerd.sock");
        let log = self.dir().join("containerd.log");
        eventually("containerd", START, async || {
            if !self.containerd.is_running() {
                return Ok(Err(anyhow::anyhow!("containerd has ended; its last words:\n{}", tail(&log, 12))));
            }
            let answer = Command::new(program("ctr")?)
                .arg("--address")
                .arg(&socket)
                .args(["--connect-timeout", "1s", "version"])
                .output()
                .context("running ctr")?;
            ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr).trim());
            Ok(Ok(()))
        })
        .await?
    }

    fn words(&self) -> String {
        tail(&self.dir().join("kubelet.log"), 12)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `e2e init FOLDER` does, as the first process of a node's namespaces: covers the places that the
/// node's programs write to, says that it is ready, and buries orphans until it is killed.
pub fn init(folder: &Path) -> Result<()> {
    ensure!(std::process::id() == 1, "init is for the first process of a node's namespace");
    cover(folder)?;
    fs::write(folder.join("init"), "").context("saying that init is ready")?;
    loop {
        // No child of our own: those of others come to us when their parents have ended.
        if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(target_os = "linux")]
fn cover(folder: &Path) -> Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags};

    // Ours are ours: what is mounted here must not show on the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("making mounts private")?;
    let layers = folder.join("layers");
    fs::create_dir_all(&layers).context("creating the folder of layers")?;
    rustix::mount::mount("tmpfs", &layers, "tmpfs", MountFlags::empty(), None).context("mounting a tmpfs")?;
    for place in COVERED.map(Path::new).into_iter().filter(|place| place.is_dir()) {
        let layer = layers.join(place.strip_prefix("/").unwrap_or(place));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(&upper).context("creating a layer")?;
        fs::create_dir_all(&work).context("creating a layer")?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", place.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options).context("a path with a NUL")?;
        rustix::mount::mount("overlay", place, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .with_context(|| format!("covering {}", place.display()))?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn cover(_: &Path) -> Result<()> {
    bail!("namespaces are Linux's")
}

async fn start_init(dir: &Path) -> Result<Process> {
    let log = dir.join("init.log");
    let spec = Spec::new(program("unshare")?, &log)
        .clean_env()
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .arg(binary()?)
        .arg("init")
        .arg(dir);
    let mut init = Process::spawn(&spec)?;
    eventually("the node's namespaces", START, async || {
        if !init.is_running() {
            return Ok(Err(anyhow::anyhow!("init has ended: {}", tail(&log, 5))));
        }
        ensure!(dir.join("init").is_file(), "init is not ready: {}", tail(&log, 5));
        Ok(Ok(()))
    })
    .await??;
    Ok(init)
}

/// The arguments with which nsenter goes where init is. Our process is init's parent: it shares the
/// mounts, and holds the process namespace for its children.
fn entering(init: &Process) -> [String; 3] {
    let of = |space: &str| format!("/proc/{}/ns/{space}", init.pid());
    [format!("--mount={}", of("mnt")), format!("--pid={}", of("pid_for_children")), "--".to_owned()]
}

fn archives(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for (name, image) in
        [("pause.tar", Image::pause()?), ("busybox.tar", Image::busybox()?), ("khook.tar", Image::khook()?)]
    {
        let archive = dir.join(name);
        image.write(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}

/// The node's pods are in control groups below one that has its folder's name: whoever finds the
/// folder finds them.
fn cgroup(dir: &Path) -> Result<String> {
    Ok(dir.file_name().context("a folder has a name")?.to_string_lossy().into_owned())
}

fn create_cgroups(name: &str) -> Result<()> {
    let roots = cgroup_roots();
    ensure!(!roots.is_empty(), "no control groups are mounted");
    for root in roots {
        // In the second version a controller works in a group only if the group above hands it down.
        for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
            fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).ok();
        }
        let group = root.join(name);
        fs::create_dir(&group).with_context(|| format!("creating the control group {}", group.display()))?;
    }
    Ok(())
}

fn containerd_config(dir: &Path) -> Result<PathBuf> {
    let plugins = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    let plugins = plugins
        .into_iter()
        .find(|folder| folder.join("loopback").is_file())
        .context("no CNI plugins: run .ci/install-node")?;
    let networks = dir.join("cni");
    fs::create_dir_all(&networks).context("creating the folder of networks")?;
    // A node without a network is never ready. This one gives no pod an address, on purpose.
    let network = json!({"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]});
    fs::write(networks.join("10-none.conflist"), network.to_string()).context("writing the network")?;
    let at = |name: &str| dir.join(name).display().to_string();
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let config = format!(
        "version = 2
root = {root:?}
state = {state:?}
[grpc]
address = {socket:?}
[{cri}]
sandbox_image = {pause:?}
# Else a machine without CAP_SYS_RESOURCE refuses every sandbox.
restrict_oom_score_adj = true
# A profile would be loaded into the host's kernel, and stay.
disable_apparmor = true
[{cri}.cni]
bin_dir = {plugins:?}
conf_dir = {networks:?}
[{cri}.containerd]
snapshotter = {snapshotter:?}
[{cri}.containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
[{cri}.containerd.runtimes.runc.options]
Root = {runc:?}
SystemdCgroup = false
[plugins.\"io.containerd.internal.v1.opt\"]
path = {opt:?}
",
        root = at("containerd"),
        state = at("containerd-state"),
        socket = at("containerd.sock"),
        pause = image::PAUSE,
        snapshotter = snapshotter(dir)?,
        runc = at("runc"),
        opt = at("containerd-opt"),
    );
    let path = dir.join("containerd.toml");
    fs::write(&path, config).context("writing containerd's configuration")?;
    Ok(path)
}

/// An overlay cannot lie on an overlay, as in a container.
fn snapshotter(dir: &Path) -> Result<&'static str> {
    const OVERLAY: u32 = 0x794c_7630;
    let kind = rustix::fs::statfs(dir).context("looking at the file system")?.f_type;
    Ok(if kind as u32 == OVERLAY { "native" } else { "overlayfs" })
}

fn kubelet_config(dir: &Path) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", dir.join("containerd.sock").display()),
        "address": "127.0.0.1",
        "port": free_port()?,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "podLogsDir": dir.join("pods"),
        "volumePluginDir": dir.join("volume-plugins"),
        // Pods take nothing from the machine's names; a machine may have none.
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup(dir)?),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%"},
        // There is no registry to get an image from again.
        "imageGCHighThresholdPercent": 100,
        // A crash loop of five minutes between two crashes is no use to a test.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "maxPods": 250,
        "nodeStatusUpdateFrequency": "5s",
    });
    let path = dir.join("kubelet.json");
    fs::write(&path, format!("{config:#}\n")).context("writing kubelet's configuration")?;
    Ok(path)
}
