//! A browser is Debian's Chromium without a screen: what a test sees is what a person would.
//!
//! It is spoken to by the DevTools protocol over a pair of pipes: no port, and no library, for what is said is a
//! handful of messages. Its profile is a temporary folder, and it ends with whoever started it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::assets::{cache, lock, run};
use crate::process::{Process, Scratch, Spec, say, tail};
use crate::wait::eventually;

/// Where Debian's package has it.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Generous, as everywhere: a browser that starts beside a whole suite is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Dropping it kills it.
pub struct Browser {
    process: Process,
    to: pipe::Sender,
    from: BufReader<pipe::Receiver>,
    session: Option<String>,
    last: u64,
    complaints: Vec<String>,
    // Last: the profile goes after the one who writes it.
    scratch: Scratch,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Width of the window, in CSS pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
    /// Whether the person likes it dark.
    pub dark: bool,
}

impl Look {
    /// On a desk, in light.
    pub const DESK: Self = Self { width: 1280, height: 800, dark: false };
}

/// Finds Chromium, or installs it: `KHOOK_CHROMIUM`, or Debian's. Blocks while it installs.
pub fn find_or_install() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os("KHOOK_CHROMIUM") {
        let told = PathBuf::from(told);
        ensure!(told.is_file(), "KHOOK_CHROMIUM is {}, where no program is", told.display());
        return Ok(told);
    }
    let chromium = PathBuf::from(CHROMIUM);
    if chromium.is_file() {
        return Ok(chromium);
    }
    const BY_HAND: &str =
        "install it (on Debian: apt-get install chromium), or set KHOOK_CHROMIUM to a Chromium that is there";
    ensure!(Path::new("/usr/bin/apt-get").is_file(), "there is no {CHROMIUM}, and no apt-get: {BY_HAND}");
    ensure!(
        rustix::process::getuid().is_root(),
        "there is no {CHROMIUM}, and only root can install it: {BY_HAND}"
    );
    let cache = cache()?;
    let _lock = lock(&cache, "chromium")?;
    if chromium.is_file() {
        return Ok(chromium);
    }
    say("installing Debian's chromium");
    let log = cache.join("chromium.log");
    let apt = |args: &[&str]| {
        let options = ["-qq", "--yes", "-o", "DPkg::Lock::Timeout=300"];
        Spec::new("/usr/bin/apt-get", &log).args(options).args(args).env("DEBIAN_FRONTEND", "noninteractive")
    };
    let install = || {
        run(
            &apt(&["--no-install-recommends", "install", "chromium"]),
            "installing chromium",
            "about a minute",
        )
    };
    // The lists as they are; where they are too old, or not there, new ones.
    if install().is_err() {
        run(&apt(&["update"]), "apt-get update", "some seconds")?;
        install().context(BY_HAND)?;
    }
    ensure!(chromium.is_file(), "the package chromium has no {CHROMIUM}: {BY_HAND}");
    Ok(chromium)
}

impl Browser {
    /// Starts it, with an empty page.
    pub async fn start() -> Result<Self> {
        let chromium = tokio::task::spawn_blocking(find_or_install).await??;
        let scratch = Scratch::new()?;
        let (to, from) = (scratch.path().join("to"), scratch.path().join("from"));
        for pipe in [&to, &from] {
            mkfifoat(CWD, pipe, Mode::RUSR | Mode::WUSR).context("a pipe to the browser")?;
        }
        // Read and write: neither end waits for the other to open its own.
        let mut ends = pipe::OpenOptions::new();
        ends.read_write(true);
        let sender = ends.open_sender(&to).context("the pipe to the browser")?;
        let receiver = ends.open_receiver(&from).context("the pipe from the browser")?;
        let mut args = vec![
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--disable-sync",
            "--hide-scrollbars",
            "--no-first-run",
            "--no-proxy-server",
            // Nothing but the loopback is there for it.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        ];
        if rustix::process::getuid().is_root() {
            // Its sandbox does not work for root; what it shows is khook's.
            args.push("--no-sandbox");
        }
        // The browser reads from file 3 and writes to 4, and a shell is what can put them there.
        let spec = Spec::new("/bin/sh", scratch.path().join("chromium.log"))
            .args(["-c", r#"to=$1 from=$2; shift 2; exec "$@" 3<"$to" 4>"$from""#, "chromium"])
            .args([&to, &from])
            .arg(chromium)
            .args(args)
            .arg(format!("--user-data-dir={}", scratch.path().join("profile").display()));
        let process = Process::spawn(&spec)?;
        let from = BufReader::new(receiver);
        let mut browser =
            Self { process, to: sender, from, session: None, last: 0, complaints: Vec::new(), scratch };
        browser.page().await.with_context(|| {
            format!(
                "the browser does not come up; its last words:\n{}",
                tail(&browser.scratch.path().join("chromium.log"), 10)
            )
        })?;
        Ok(browser)
    }

    /// Opens an empty page and closes the one before.
    async fn page(&mut self) -> Result<()> {
        self.session = None;
        let target =
            self.call("Target.createTarget", json!({"url": "about:blank"})).await?["targetId"].clone();
        let attached =
            self.call("Target.attachToTarget", json!({"targetId": target, "flatten": true})).await?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Performance"] {
            self.call(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(())
    }

    /// Says something to the browser, and waits for its answer.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        let answered = async {
            self.to.write_all(&bytes).await?;
            loop {
                let mut bytes = Vec::new();
                let read = self.from.read_until(0, &mut bytes).await?;
                ensure!(read > 0 && bytes.pop() == Some(0), "the browser has ended");
                let heard: Value = serde_json::from_slice(&bytes)?;
                if heard["id"] == self.last {
                    return Ok(heard);
                }
                self.complaints.extend(complaint(&heard));
            }
        };
        let answer =
            timeout(PATIENCE, answered).await.with_context(|| format!("{method} is not answered"))??;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer["result"].clone())
    }

    /// How the page is looked at from now on.
    pub async fn look(&mut self, look: Look) -> Result<()> {
        let Look { width, height, dark } = look;
        let phone = width < 500;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await.map(drop)
    }

    /// Goes to an address and waits until the page is loaded.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = answer.get("errorText") {
            bail!("{url}: {error}");
        }
        self.wait(
            "the page to be loaded",
            "document.readyState === 'complete' && location.href !== 'about:blank'",
        )
        .await
    }

    /// The value of an expression in the page.
    pub async fn eval(&mut self, expression: &str) -> Result<Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", params).await?;
        if let Some(details) = answer.get("exceptionDetails") {
            bail!("{expression}: {}", details["exception"]["description"].as_str().unwrap_or("it throws"));
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression in the page is true.
    pub async fn wait(&mut self, what: &str, expression: &str) -> Result<()> {
        eventually(what, PATIENCE, async || {
            let value = self.eval(expression).await?;
            ensure!(value == json!(true), "{expression} is {value}");
            Ok(())
        })
        .await
    }

    /// Presses a key, as its name is in `KeyboardEvent.key`: Tab, Enter, Escape.
    pub async fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            _ => bail!("the key {key} is not known here"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// Takes a picture of what is seen, as PNG.
    pub async fn picture(&mut self) -> Result<Vec<u8>> {
        use base64::Engine as _;
        let answer =
            self.call("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false})).await?;
        let data = answer["data"].as_str().context("no picture")?;
        base64::engine::general_purpose::STANDARD.decode(data).context("the picture")
    }

    /// A number of the page, as the browser counts it: JSHeapUsedSize, Nodes.
    pub async fn metric(&mut self, name: &str) -> Result<f64> {
        let answer = self.call("Performance.getMetrics", json!({})).await?;
        let metrics = answer["metrics"].as_array().cloned().unwrap_or_default();
        let found = metrics.iter().find(|metric| metric["name"] == name);
        found.and_then(|metric| metric["value"].as_f64()).with_context(|| format!("no metric {name}"))
    }

    /// What the page has complained about since it was last asked: errors, and what its policy has forbidden.
    pub async fn complaints(&mut self) -> Result<Vec<String>> {
        // Whatever was complained about before this is heard before its answer.
        self.eval("0").await?;
        Ok(std::mem::take(&mut self.complaints))
    }

    /// Memory of the process that shows the page, in bytes.
    pub fn page_bytes(&self) -> Result<u64> {
        let mut most = 0;
        for folder in std::fs::read_dir("/proc")?.flatten() {
            let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
            let stat = read("stat");
            // After the name in parentheses: state, parent, group.
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(2);
            let ours = fields.next() == Some(&self.process.pid().to_string());
            if ours && read("cmdline").contains("--type=renderer") {
                let status = read("status");
                let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let kib = kib
                    .and_then(|rest| rest.split_whitespace().next())
                    .and_then(|kib| kib.parse::<u64>().ok());
                most = most.max(kib.unwrap_or(0) * 1024);
            }
        }
        ensure!(most > 0, "no process of the browser shows a page");
        Ok(most)
    }
}

fn complaint(heard: &Value) -> Option<String> {
    let params = &heard["params"];
    match heard["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Log.entryAdded" => Some(params["entry"]["text"].as_str()?.to_owned()),
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        _ => None,
    }
}
