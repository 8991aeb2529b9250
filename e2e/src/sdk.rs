//! An SDK is an A2A library of somebody else, and its server an agent made with it: what khook's client meets
//! outside of kagent, and what nobody here wrote.
//!
//! The libraries come from their package registries, pinned in `sdks/`, once per version into the folder
//! that `assets` caches in. The agents are in `sdks/` too; `[[marks]]` in the prompt say how they answer:
//!
//! | mark | the agent |
//! | --- | --- |
//! | none | works, and answers with a task whose artifact is `Investigated: ` and the prompt's first line |
//! | `[[delay=2]]` | works two seconds first |
//! | `[[message]]` | answers with a message and has no task |
//! | `[[status]]` | puts the answer into the message of the last status |
//! | `[[chunks]]` | sends the artifact in three appended chunks |
//! | `[[fail]]` | raises an exception when it works, as one does whose model is gone |
//! | `[[early]]` | raises an exception before there is a task |
//! | `[[failed]]`, `[[ask]]`, `[[auth]]`, `[[reject]]`, `[[cancel]]` | ends in that state, with words |
//! | `[[usage]]` | reports tokens as Google's ADK does, in the metadata of the task |
//! | `[[usage=artifact]]`, `[[usage=message]]` | reports them there |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::assets::{cache, digest, lock, run};
use crate::process::{Process, Scratch, Spec, free_port, say, tail};
use crate::wait::eventually;

/// Only an error waits this long; a start takes two seconds.
const START: Duration = Duration::from_secs(60);

/// A library to make an agent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sdk {
    /// The official Python SDK 0.3, which speaks A2A 0.3.
    Python03,
    /// The official Python SDK 1.x, which speaks A2A 1.0.
    Python1,
    /// The official Go library, which speaks A2A 1.0.
    Go,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Python03, Self::Python1, Self::Go];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python03 => "python-0.3",
            Self::Python1 => "python-1",
            Self::Go => "go",
        }
    }

    /// Where its agent answers JSON-RPC, below the server's URL. A client learns it from the card.
    pub fn path(self) -> &'static str {
        match self {
            Self::Python03 => "/",
            Self::Python1 => "/a2a/v1",
            Self::Go => "/invoke",
        }
    }

    /// Finds what the agent needs or makes it, with progress on stderr; answers the program that runs the
    /// agent and the first of its arguments. Blocks, for a minute when it makes it.
    pub fn find_or_make(self) -> Result<(PathBuf, Vec<PathBuf>)> {
        match self {
            Self::Python03 => {
                let requirements = include_str!("../sdks/python-0.3.txt");
                Ok((self.venv(requirements, "python-0.3.txt")?, vec![sources().join("agent_03.py")]))
            }
            Self::Python1 => {
                let requirements = include_str!("../sdks/python-1.txt");
                Ok((self.venv(requirements, "python-1.txt")?, vec![sources().join("agent_1.py")]))
            }
            Self::Go => Ok((self.go()?, Vec::new())),
        }
    }

    /// The interpreter of a venv with exactly these requirements.
    fn venv(self, requirements: &str, file: &str) -> Result<PathBuf> {
        // A venv points at the interpreter it was made with, so its place is part of what it is.
        let about = "import sys; print(sys.version, sys.base_prefix); sys.exit(sys.version_info < (3, 11))";
        let python = version("python3", &["-c", about], "Python 3.11 or newer")?;
        let folder = self.folder(&[requirements, &python])?;
        let (venv, whole) = (folder.join("venv"), folder.join("whole"));
        let interpreter = venv.join("bin/python");
        // A venv is bound to its place: in a cache that was moved it is none.
        let is_whole = || fs::read_to_string(&whole).is_ok_and(|place| Path::new(&place) == venv);
        if is_whole() {
            return Ok(interpreter);
        }
        let _lock = lock(&folder, self.name())?;
        if is_whole() {
            return Ok(interpreter);
        }
        let start = Instant::now();
        let expected = "about half a minute";
        say(&format!("installing the A2A SDK {}, this first time only: {expected}", self.name()));
        // Without the mark it is what somebody was killed over.
        if venv.exists() {
            fs::remove_dir_all(&venv).with_context(|| format!("removing {}", venv.display()))?;
        }
        let log = folder.join("build.log");
        fs::remove_file(&log).ok();
        let doing = format!("installing the A2A SDK {}", self.name());
        run(&Spec::new("python3", &log).args(["-m", "venv"]).arg(&venv), &doing, expected)?;
        // All of it is pinned, so nothing is to be added.
        let install = Spec::new(&interpreter, &log)
            .args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-deps"])
            .arg("--requirement")
            .arg(sources().join(file));
        run(&install, &doing, expected)?;
        fs::write(&whole, venv.display().to_string()).context("marking the venv as whole")?;
        say(&format!("the A2A SDK {} is installed ({} s)", self.name(), start.elapsed().as_secs()));
        Ok(interpreter)
    }

    /// The agent on the Go library.
    fn go(self) -> Result<PathBuf> {
        let go = version("go", &["env", "GOVERSION"], "Go 1.24 or newer")?;
        let files = [
            include_str!("../sdks/go/go.mod"),
            include_str!("../sdks/go/go.sum"),
            include_str!("../sdks/go/main.go"),
        ];
        let folder = self.folder(&[files[0], files[1], files[2], &go])?;
        let program = folder.join("agent");
        if program.is_file() {
            return Ok(program);
        }
        let _lock = lock(&folder, self.name())?;
        if program.is_file() {
            return Ok(program);
        }
        let expected = "about half a minute";
        say(&format!("building the agent on the Go A2A library, this first time only: {expected}"));
        let log = folder.join("build.log");
        fs::remove_file(&log).ok();
        // Killed halfway, it leaves this name and not the real one.
        let partial = folder.join("agent.partial");
        let build = Spec::new("go", &log)
            .args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(&partial)
            .arg(".")
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .env("GOFLAGS", "")
            .folder(sources().join("go"));
        run(&build, "building the agent on the Go A2A library", expected)?;
        fs::rename(&partial, &program).context("moving the agent into place")?;
        Ok(program)
    }

    /// The folder in the cache of what is made of this.
    fn folder(self, made_of: &[&str]) -> Result<PathBuf> {
        Ok(cache()?.join(format!("a2a-{}-{}", self.name(), digest(made_of))))
    }
}

/// A certificate of 127.0.0.1, and the authority that signed it, as files in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Whom a client must trust.
    pub authority: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in a folder. Blocks, for a minute when Python's SDK is not there yet.
    pub fn make(folder: &Path) -> Result<Self> {
        // Python's SDK brings a library that can.
        let (python, _) = Sdk::Python1.find_or_make()?;
        let answer = Command::new(python)
            .arg(sources().join("certificate.py"))
            .arg(folder)
            .output()
            .context("making a certificate")?;
        let words = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.status.success(), "making a certificate: {}", words.trim());
        let file = |name: &str| folder.join(name);
        Ok(Self { authority: file("ca.crt"), certificate: file("tls.crt"), key: file("tls.key") })
    }
}

/// How an agent is to be served.
#[derive(Clone, Debug)]
pub struct Options {
    token: Option<String>,
    header: Option<(String, String)>,
    tls: Option<Certificate>,
    streaming: bool,
    older: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { token: None, header: None, tls: None, streaming: true, older: false }
    }
}

impl Options {
    /// Answers 401 to whoever has not this bearer token. On Go, only who has it may list tasks.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Answers 401 to whoever does not send this header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.header = Some((name.to_owned(), value.to_owned()));
        self
    }

    /// Serves https with this certificate.
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    /// Says in the card that it cannot stream.
    pub fn no_streaming(mut self) -> Self {
        self.streaming = false;
        self
    }

    /// A 1.x agent answers A2A 0.3 too, as its library can, and says so in the card.
    pub fn older_too(mut self) -> Self {
        self.older = true;
        self
    }

    fn args(&self, sdk: Sdk, port: u16) -> Vec<String> {
        let mut args = vec!["--port".to_owned(), port.to_string()];
        if let Some(token) = &self.token {
            args.extend(["--token".to_owned(), token.clone()]);
        }
        if let Some((name, value)) = &self.header {
            args.extend(["--header".to_owned(), format!("{name}={value}")]);
        }
        if let Some(tls) = &self.tls {
            let (certificate, key) = (tls.certificate.display().to_string(), tls.key.display().to_string());
            args.extend(match sdk {
                Sdk::Go => vec!["--cert".to_owned(), certificate, "--key".to_owned(), key],
                Sdk::Python03 | Sdk::Python1 => vec!["--tls".to_owned(), certificate, key],
            });
        }
        args.extend((!self.streaming).then(|| "--no-streaming".to_owned()));
        args.extend(self.older.then(|| "--compat".to_owned()));
        args
    }
}

/// A running agent. Dropping it kills it, and so does our own end.
#[derive(Debug)]
pub struct SdkServer {
    sdk: Sdk,
    url: String,
    spec: Spec,
    process: Mutex<Option<Process>>,
    // Last: the log goes after the one who writes it.
    _scratch: Scratch,
}

impl SdkServer {
    /// Starts an agent on a port of its own, and waits until it answers.
    pub async fn start(sdk: Sdk, options: Options) -> Result<Self> {
        let found = tokio::task::spawn_blocking(move || sdk.find_or_make()).await;
        let (program, first) = found.context("making an SDK ready")??;
        let scratch = Scratch::new()?;
        let port = free_port()?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let spec = Spec::new(program, scratch.path().join("agent.log"))
            .clean_env()
            // Nothing of a run is to be left between the sources.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(first)
            .args(options.args(sdk, port));
        let server = Self {
            sdk,
            url: format!("{scheme}://127.0.0.1:{port}"),
            spec,
            process: Mutex::new(None),
            _scratch: scratch,
        };
        server.restart().await?;
        Ok(server)
    }

    /// Which SDK it is.
    pub fn sdk(&self) -> Sdk {
        self.sdk
    }

    /// Where the agent is: its card is below this.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Where it answers JSON-RPC, as its card says.
    pub fn endpoint(&self) -> String {
        format!("{}{}", self.url, self.sdk.path())
    }

    /// The POSTs that came since its last start, in order: `path`, `headers` (names in lower case), `body`
    /// (null when it is no JSON) and `status`, of the answer.
    pub async fn seen(&self) -> Result<Vec<Value>> {
        self.ask("/seen").await
    }

    /// The runs of the agent since its last start, in order: `messageId`, `contextId`, `taskId` and `end`:
    /// null while it runs, then `done`, `raised` or `cancelled`.
    pub async fn runs(&self) -> Result<Vec<Value>> {
        self.ask("/runs").await
    }

    /// Kills it with SIGKILL. It remembers nothing.
    pub fn stop(&self) {
        drop(self.lock().take());
    }

    /// Starts it again on the same port, and waits until it answers; one that still runs is killed first.
    pub async fn restart(&self) -> Result<()> {
        self.stop();
        let begun = self.log().len();
        *self.lock() = Some(Process::spawn(&self.spec)?);
        eventually("an agent to listen", START, async || {
            let running = self.lock().as_mut().is_some_and(Process::is_running);
            if self.log().get(begun..).is_some_and(|log| log.contains("listening on ")) {
                return Ok(Ok(()));
            }
            if !running {
                let words = tail(self.spec.log(), 30);
                return Ok(Err(anyhow::anyhow!("the agent has ended; its last words:\n{words}")));
            }
            bail!("it does not say so");
        })
        .await?
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.spec.log()).unwrap_or_default()).into_owned()
    }

    async fn ask(&self, path: &str) -> Result<Vec<Value>> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The certificate is the test's own, and these two questions need not check it.
        let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
        let client = client.build().context("building an HTTP client")?;
        let answer = client.get(format!("{}{path}", self.url)).send().await;
        let answer = answer.with_context(|| format!("GET {path}"))?;
        ensure!(answer.status().is_success(), "GET {path} answers {}", answer.status());
        answer.json().await.with_context(|| format!("GET {path}"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdks")
}

/// What a program says of itself, or a sentence on what is missing. A test without its SDK is not skipped:
/// it fails.
fn version(program: &str, args: &[&str], needed: &str) -> Result<String> {
    let answer = Command::new(program).args(args).current_dir(sources()).output().with_context(|| {
        format!("{program} was not found on PATH: agents on real A2A SDKs need {needed} to run")
    })?;
    let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    let words = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "{program} is not {needed}: {said} {}", words.trim());
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_is_made_of_decides_its_place() {
        let place = |made_of: &[&str]| Sdk::Go.folder(made_of).expect("there is a cache");
        assert_eq!(place(&["a", "b"]), place(&["a", "b"]));
        assert_ne!(place(&["a", "b"]), place(&["a", "c"]));
        assert_ne!(place(&["a", "b"]), place(&["ab", ""]));
    }

    #[test]
    fn a_missing_program_is_an_error_that_says_what_is_needed() {
        let missing = version("no-such-python", &[], "Python 3.11 or newer").expect_err("it is not there");
        assert!(format!("{missing:#}").contains("need Python 3.11 or newer"), "{missing:#}");
        let old = version("false", &[], "Python 3.11 or newer").expect_err("it fails");
        assert!(format!("{old:#}").contains("is not Python 3.11 or newer"), "{old:#}");
    }

    #[test]
    fn options_become_the_agents_arguments() {
        let certificate = Certificate { authority: "ca".into(), certificate: "c".into(), key: "k".into() };
        let options = Options::default().token("t").header("X", "v").tls(&certificate).no_streaming();
        let python = options.args(Sdk::Python1, 7).join(" ");
        assert_eq!(python, "--port 7 --token t --header X=v --tls c k --no-streaming");
        let go = options.older_too().args(Sdk::Go, 7).join(" ");
        assert_eq!(go, "--port 7 --token t --header X=v --cert c --key k --no-streaming --compat");
    }
}
