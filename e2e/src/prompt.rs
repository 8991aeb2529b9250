//! A prompt is where a person types khook's commands: the binary under its own name, and a cluster to speak to.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::process::{Scratch, binary};

/// Where commands are typed.
#[derive(Debug)]
pub struct Prompt {
    scratch: Scratch,
    kubeconfig: PathBuf,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed as errors.
    pub stderr: String,
}

impl Prompt {
    /// A prompt in front of this cluster.
    pub fn at(kubeconfig: &Path) -> Result<Self> {
        let scratch = Scratch::new()?;
        for name in ["khook", "kubectl-khook"] {
            std::os::unix::fs::symlink(binary()?, scratch.path().join(name)).context("a name for khook")?;
        }
        Ok(Self { scratch, kubeconfig: kubeconfig.to_owned() })
    }

    /// The folder of the binary, for a PATH.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// A command that is not started yet; it ends with whoever waits for it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.scratch.path().join("khook"));
        command.args(args).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Result<Said> {
        let output =
            self.command(args).output().await.with_context(|| format!("khook {}", args.join(" ")))?;
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The same, where it must succeed: what it printed.
    pub async fn ok(&self, args: &[&str]) -> Result<String> {
        let said = self.run(args).await?;
        ensure!(
            said.code == 0,
            "khook {}: exit code {}: {}{}",
            args.join(" "),
            said.code,
            said.stdout,
            said.stderr
        );
        Ok(said.stdout)
    }
}
