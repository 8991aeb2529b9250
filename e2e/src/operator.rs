//! An operator is khook under test, as a process of its own: it can be killed, paused and restarted.
//!
//! What runs is `e2e operator`, which is khook's own command line in our binary (so a test needs no
//! second build), or the binary that `KHOOK_BIN` names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Process, Scratch, Spec, binary, free_port, tail};
use crate::wait::eventually;

/// An operator before it runs: its settings.
#[derive(Debug)]
pub struct Setup {
    program: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    health_port: u16,
    metrics_port: u16,
    scratch: Scratch,
}

/// An operator under test. Dropping it kills it, and so does our own end.
#[derive(Debug)]
pub struct Operator {
    process: Mutex<Option<Process>>,
    spec: Spec,
    health_port: u16,
    metrics_port: u16,
    // Last: the log goes after the one who writes it.
    scratch: Scratch,
}

impl Operator {
    /// Settings to talk to this cluster and this kagent, on free ports; add to them, then
    /// [`start`](Setup::start).
    #[expect(clippy::new_ret_no_self, reason = "an operator is made by starting its setup")]
    pub fn new(kubeconfig: &Path, agent_url: &str) -> Result<Setup> {
        let (program, args) = match std::env::var_os("KHOOK_BIN") {
            Some(program) => (PathBuf::from(program), Vec::new()),
            None => (binary()?, vec!["operator".to_owned()]),
        };
        let (health_port, metrics_port) = (free_port()?, free_port()?);
        let env = [
            ("KUBECONFIG", kubeconfig.display().to_string()),
            ("KAGENT_BASE_URL", agent_url.to_owned()),
            ("HEALTH_PORT", health_port.to_string()),
            ("METRICS_PORT", metrics_port.to_string()),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value)).into();
        Ok(Setup { program, args, env, health_port, metrics_port, scratch: Scratch::new()? })
    }

    /// Kills it with SIGKILL, as the node does when it runs out of memory.
    pub fn kill(&self) -> Result<()> {
        self.lock().as_mut().context("the operator was never started")?.kill()
    }

    /// Asks it to end with SIGTERM, as Kubernetes does; see [`wait_exit`](Self::wait_exit).
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops it where it stands with SIGSTOP.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Starts it again with the same settings, ports and log; one that still runs is killed first.
    pub fn restart(&self) -> Result<()> {
        let mut slot = self.lock();
        // The old one has ended before the new one asks for its ports.
        drop(slot.take());
        *slot = Some(Process::spawn(&self.spec)?);
        Ok(())
    }

    /// Waits for it to end by itself, after SIGTERM or a wrong setting; answers its exit code.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<i32> {
        eventually("the operator to end", deadline, async || {
            self.lock().as_mut().and_then(Process::exit_code).context("it runs")
        })
        .await
    }

    /// Waits for /readyz; an operator that has ended is an error at once, with its last words.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        eventually("the operator to be ready", deadline, async || {
            if !self.is_running() {
                return Ok(Err(anyhow::anyhow!(
                    "the operator has ended; its last words:\n{}",
                    self.log_tail(30)
                )));
            }
            self.ready().await?;
            Ok(Ok(()))
        })
        .await?
        .with_context(|| format!("log {}", self.log_path().display()))
    }

    /// One look at /readyz; answers what it says where it is ready.
    pub async fn ready(&self) -> Result<String> {
        get(self.health_port, "/readyz").await
    }

    /// One look at /healthz.
    pub async fn healthy(&self) -> Result<()> {
        get(self.health_port, "/healthz").await.map(drop)
    }

    /// The text of /metrics.
    pub async fn metrics(&self) -> Result<String> {
        get(self.metrics_port, "/metrics").await
    }

    /// The sum of a metric's samples that have all of these labels; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics().await?, name, labels))
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(Process::is_running)
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::pid)
    }

    /// Its resident memory in bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        self.lock().as_ref().context("the operator does not run")?.memory_bytes()
    }

    /// CPU time it has used since its last start.
    pub fn cpu(&self) -> Result<Duration> {
        self.lock().as_ref().context("the operator does not run")?.cpu()
    }

    /// The file of its log, kept over restarts.
    pub fn log_path(&self) -> &Path {
        self.spec.log()
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(self.log_path(), lines)
    }

    /// A folder for files it is to read (a token file); removed with it.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.lock().as_mut().context("the operator was never started")?.signal(signal)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setup {
    /// Sets a variable of its environment, also one of those set already.
    pub fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.env.insert(key.to_owned(), value.to_string());
        self
    }

    /// Adds a command line argument.
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// Runs another program.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        (self.program, self.args) = (program.into(), Vec::new());
        self
    }

    /// The port chosen for /healthz and /readyz.
    pub fn health_port(&self) -> u16 {
        self.health_port
    }

    /// The port chosen for /metrics.
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// A folder for files it is to read (a token file); removed with it.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts it, in an environment of these settings only; does not wait until it is ready.
    pub async fn start(self) -> Result<Operator> {
        let mut spec =
            Spec::new(self.program, self.scratch.path().join("khook.log")).clean_env().args(self.args);
        for (key, value) in &self.env {
            spec = spec.env(key, value);
        }
        let process = Mutex::new(Some(Process::spawn(&spec)?));
        let Self { health_port, metrics_port, scratch, .. } = self;
        Ok(Operator { process, spec, health_port, metrics_port, scratch })
    }
}

async fn get(port: u16, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let answer = crate::http_client()?.get(&url).send().await.with_context(|| format!("GET {path}"))?;
    let status = answer.status();
    let text = answer.text().await.with_context(|| format!("GET {path}"))?;
    ensure!(status.is_success(), "GET {path} answers {status}: {}", text.trim());
    Ok(text)
}

fn sum(metrics: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = metrics.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let (family, set) = sample.split_once('{').unwrap_or((sample, ""));
        let has = |(key, value): &(&str, &str)| {
            let label = format!("{key}=\"{value}\"");
            // The name must begin where a label begins, or `type` would match `event_type`.
            set.match_indices(&label).any(|(at, _)| at == 0 || set[..at].ends_with(','))
        };
        (family == name && labels.iter().all(has)).then(|| value.parse::<f64>().ok())?
    });
    samples.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_whole_labels() {
        let text = "# HELP a_total words\n\
                    a_total{event_type=\"x\",result=\"ok\"} 2\n\
                    a_total{event_type=\"y\",result=\"ok\"} 3\n\
                    a_total_created{result=\"ok\"} 7\n\
                    b 1.5\n";
        assert_eq!(sum(text, "a_total", &[]), 5.0);
        assert_eq!(sum(text, "a_total", &[("event_type", "y"), ("result", "ok")]), 3.0);
        assert_eq!(sum(text, "a_total", &[("type", "y")]), 0.0);
        assert_eq!(sum(text, "b", &[]), 1.5);
    }
}
