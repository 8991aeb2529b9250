//! `e2e` runs the parts of the end-to-end tests by hand, and is the program they supervise with.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::agent::{Agent, Behaviour};
use e2e::control_plane::{ControlPlane, Options};
use e2e::process;
use tokio::signal::unix::{SignalKind, signal};

mod bench;
mod demo;

/// khook on real parts.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show khook from a cluster event to an agent's answer
    Demo {
        /// Shorten the windows
        #[arg(long)]
        fast: bool,
    },
    /// Measure khook (the binary of KHOOK_BIN, else this build) against its apiserver
    Bench {
        /// How many incidents
        #[arg(long, default_value_t = 1000)]
        incidents: usize,
        /// How many a second
        #[arg(long, default_value_t = 50)]
        rate: u32,
    },
    /// Run a control plane until Ctrl-C and print its KUBECONFIG
    ControlPlane {
        /// More arguments for kube-apiserver, after --
        #[arg(last = true)]
        apiserver_args: Vec<String>,
    },
    /// Run the stand-in agent until Ctrl-C and print its URL
    Agent {
        /// The port to listen on; 0 takes a free one
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Seconds that an answer takes
        #[arg(long, default_value_t = 2.0)]
        delay: f64,
    },
    /// Run khook itself, with its own arguments
    #[command(disable_help_flag = true)]
    Operator {
        /// khook's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run a command that ends when our stdin closes (the tests' own use)
    #[command(hide = true)]
    Supervise {
        /// Remove this folder when stdin closes, and run nothing
        #[arg(long, conflicts_with = "command")]
        remove: Option<PathBuf>,
        /// The command
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { fast } => until_interrupted(demo::run(fast)),
        Command::Bench { incidents, rate } => until_interrupted(bench::run(incidents, rate)),
        Command::ControlPlane { apiserver_args } => until_interrupted(async {
            let control_plane = ControlPlane::start(Options { apiserver_args }).await?;
            println!("export KUBECONFIG={}", control_plane.kubeconfig().display());
            std::future::pending().await
        }),
        Command::Agent { port, delay } => until_interrupted(async move {
            let delay = Duration::try_from_secs_f64(delay).context("--delay")?;
            let agent = Agent::spawn_on(port).await?;
            agent.set(Behaviour::default().delay(delay));
            println!("{}", agent.url());
            let mut told = 0;
            loop {
                for message in agent.messages().iter().skip(told) {
                    println!("{} {} {}: {}", message.at, message.agent, message.id, message.text);
                    told += 1;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }),
        Command::Operator { args } => Ok(khook::cli::obey(args)),
        Command::Supervise { remove: Some(folder), .. } => {
            process::remove_at_end(&folder).map(|()| ExitCode::SUCCESS)
        }
        Command::Supervise { command, .. } => process::supervise(&command).map(ExitCode::from),
    }
}

/// Runs to the end, or until Ctrl-C or SIGTERM; what the work holds is dropped, and so cleaned up.
fn until_interrupted(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        tokio::select! {
            done = work => done.map(|()| ExitCode::SUCCESS),
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
            _ = terminate.recv() => Ok(ExitCode::from(143)),
        }
    });
    // A build in a blocking thread would hold us up; it ends with us, as all that is supervised.
    runtime.shutdown_background();
    result
}
