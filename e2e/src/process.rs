//! A process is a program that cannot outlive whoever started it.
//!
//! Each one runs under a supervisor: our own `e2e supervise`, whose stdin is a pipe from the parent.
//! When that pipe closes, because a [`Process`] was dropped or because the parent died, be it by
//! SIGKILL, the supervisor kills its child by id and ends. So statics that are never dropped, panics
//! and killed test runs leave nothing behind. The supervisor's first line of output is the child's
//! id, so a test can signal exactly the program and not its supervisor.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::wait::eventually;

/// Set to keep temporary folders, with the logs in them, for a look after a run.
const KEEP: &str = "KHOOK_E2E_KEEP";

/// A program to run, before it runs.
#[derive(Clone, Debug)]
pub struct Spec {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clean_env: bool,
    folder: Option<PathBuf>,
    log: PathBuf,
}

impl Spec {
    /// The program, and the file that its stdout and stderr are appended to.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            clean_env: false,
            folder: None,
            log: log.into(),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Passes on nothing of our own environment but PATH, HOME and RUST_BACKTRACE: what a person has
    /// exported must not decide a test.
    pub fn clean_env(mut self) -> Self {
        self.clean_env = true;
        self
    }

    /// Runs it in this folder.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// The file its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// A running program. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    supervisor: Child,
    /// Closing this is what tells the supervisor to kill.
    leash: Option<ChildStdin>,
}

impl Process {
    /// Starts the program under a supervisor; returns when it runs, or says why it does not.
    pub fn spawn(spec: &Spec) -> Result<Self> {
        let name =
            spec.program.file_name().unwrap_or(spec.program.as_os_str()).to_string_lossy().into_owned();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&spec.log)
            .with_context(|| format!("opening the log {}", spec.log.display()))?;
        let mut command = Command::new(binary()?);
        command.args(["supervise", "--"]).arg(&spec.program).args(&spec.args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // Away from the terminal's group: Ctrl-C is for us, who then clean up in the right order.
        command.process_group(0);
        if spec.clean_env {
            command.env_clear();
            for key in ["PATH", "HOME", "RUST_BACKTRACE"] {
                command.envs(std::env::var_os(key).map(|value| (key, value)));
            }
        }
        command.envs(spec.env.iter().map(|(key, value)| (key, value)));
        if let Some(folder) = &spec.folder {
            command.current_dir(folder);
        }
        let mut supervisor = command.spawn().with_context(|| format!("starting the supervisor of {name}"))?;
        let leash = supervisor.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = supervisor.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).with_context(|| format!("starting {name}"))?;
        }
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            drop(leash);
            supervisor.wait().ok();
            bail!("{name} did not start: {}", line.trim());
        };
        Ok(Self { name, pid, supervisor, leash })
    }

    /// The program's own id, not its supervisor's.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The supervisor's id.
    pub fn supervisor_pid(&self) -> u32 {
        self.supervisor.id()
    }

    /// How it ended, if it has: the exit code, or 128 + the signal's number as shells write it.
    pub fn exit_code(&mut self) -> Option<i32> {
        // The supervisor ends with its child and answers with the child's code.
        self.supervisor.try_wait().ok().flatten().map(code)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.exit_code().is_none()
    }

    /// Sends a signal to the program, by id.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Once it has ended its id may belong to another.
        ensure!(self.is_running(), "{} has ended already", self.name);
        rustix::process::kill_process(self.pid, signal)
            .with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// SIGKILL, and waits for its end. Also right for one that has ended or is paused.
    pub fn kill(&mut self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::KILL)?;
        }
        self.end();
        Ok(())
    }

    /// Waits for it to end by itself; answers its exit code.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<i32> {
        let what = format!("the end of {}", self.name);
        eventually(&what, deadline, async || self.exit_code().context("it runs")).await
    }

    /// Resident memory in bytes, from /proc.
    pub fn memory_bytes(&self) -> Result<u64> {
        let status = self.proc("status")?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .context("no VmRSS in /proc")?;
        Ok(kib * 1024)
    }

    /// CPU time used so far, user and system, from /proc.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // The second field is the name in parentheses and may hold spaces; fields 14 and 15 are wanted.
        let (_, rest) = stat.rsplit_once(')').context("no name in /proc stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let ticks =
            field(11).zip(field(12)).map(|(user, system)| user + system).context("no times in /proc stat")?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    fn proc(&self, file: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid()))
            .with_context(|| format!("reading /proc of {}", self.name))
    }

    fn end(&mut self) {
        drop(self.leash.take());
        self.supervisor.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A temporary folder that is removed when dropped, and also when its owner dies without dropping it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    janitor: Option<Child>,
}

impl Scratch {
    /// Creates one. With `KHOOK_E2E_KEEP` set it stays, and its place is told.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("khook-e2e-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        if std::env::var_os(KEEP).is_some() {
            say(&format!("keeping {}", path.display()));
            return Ok(Self { path, janitor: None });
        }
        let janitor = Command::new(binary()?)
            .args(["supervise", "--remove"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the janitor of a temporary folder")?;
        Ok(Self { path, janitor: Some(janitor) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of the process that removes the folder.
    pub fn janitor_pid(&self) -> Option<u32> {
        self.janitor.as_ref().map(Child::id)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(janitor) = &mut self.janitor {
            drop(janitor.stdin.take());
            janitor.wait().ok();
        }
    }
}

/// What `e2e supervise -- COMMAND…` does: runs the command and kills it when stdin closes. Its output
/// goes to our stderr; our stdout says its id and nothing else. Answers the exit code.
pub fn supervise(command: &[OsString]) -> Result<u8> {
    let (program, args) = command.split_first().context("supervise what?")?;
    let output = io::stderr().as_fd().try_clone_to_owned().context("sharing stderr")?;
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(output)
        // A group of its own, so that what it starts (a compiler under `go build`) ends with it.
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("{}: {error}", program.display());
            return Ok(127);
        }
    };
    let pid = Pid::from_child(&child);
    println!("{}", child.id());
    io::stdout().flush().ok();

    enum News {
        ParentGone,
        ChildEnded,
    }
    let (tell, news) = mpsc::channel();
    let parent = tell.clone();
    std::thread::spawn(move || {
        io::stdin().read_to_end(&mut Vec::new()).ok();
        parent.send(News::ParentGone).ok();
    });
    std::thread::spawn(move || {
        // NOWAIT leaves the child a zombie, so its id cannot be another's when we kill it below.
        rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).ok();
        tell.send(News::ChildEnded).ok();
    });
    if let Ok(News::ParentGone) = news.recv() {
        rustix::process::kill_process_group(pid, Signal::KILL).ok();
    }
    let status = child.wait().context("waiting for the child")?;
    Ok(u8::try_from(code(status)).unwrap_or(1))
}

/// What `e2e supervise --remove FOLDER` does: waits for stdin to close and removes the folder, and
/// the control groups of its name, which a node leaves.
pub fn remove_at_end(folder: &Path) -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).ok();
    ensure!(folder.starts_with(std::env::temp_dir()), "{} is not a temporary folder", folder.display());
    let name = folder.file_name().context("a folder has a name")?;
    // When the parent was killed, its processes are ending at the same time and may still write.
    let mut result = Ok(());
    for _ in 0..200 {
        result = cgroup_roots().iter().try_for_each(|root| remove_cgroup(&root.join(name)));
        result = result.and_then(|()| gone(fs::remove_dir_all(folder)));
        if result.is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    result.with_context(|| format!("removing {}", folder.display()))
}

/// Where control groups are mounted: once in version 2, once for each controller in version 1.
pub fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| matches!(fields[..], [_, _, "cgroup" | "cgroup2", ..]))
        .map(|f| f[1].into())
        .collect()
}

/// A control group is a folder whose files are none, and goes only when it is empty.
fn remove_cgroup(group: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    gone(fs::remove_dir(group))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Our own binary `e2e`, which supervises: `KHOOK_E2E_BIN`; what cargo tells an integration test;
/// ourselves; or next to the folder a test binary lies in (target/debug/deps/x → target/debug/e2e).
pub fn binary() -> Result<PathBuf> {
    let told =
        ["KHOOK_E2E_BIN", "CARGO_BIN_EXE_e2e"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let me = std::env::current_exe().context("finding our own binary")?;
    let near = me.ancestors().skip(1).take(2).map(|folder| folder.join("e2e"));
    let mine = (me.file_name() == Some(OsStr::new("e2e"))).then(|| me.clone());
    told.chain(mine).chain(near).find(|path| path.is_file()).with_context(|| {
        format!("no binary `e2e` near {}: run `cargo build -p e2e`, or set KHOOK_E2E_BIN", me.display())
    })
}

/// A free loopback port, below the range that outgoing connections take theirs from: a port that is
/// free for a moment (a server restarts) is not taken by somebody's client.
pub fn free_port() -> Result<u16> {
    for _ in 0..1000 {
        let (_, low, _, _) = uuid::Uuid::new_v4().as_fields();
        let port = 20_000 + low % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 20000 and 32000")
}

/// The last lines of a log, for an error.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A line of progress on stderr, past the test runner's capture: a build takes minutes and must show.
pub fn say(line: &str) {
    writeln!(io::stderr(), "e2e: {line}").ok();
}

fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}
