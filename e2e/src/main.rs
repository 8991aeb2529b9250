//! `e2e` runs the parts of the end-to-end tests by hand, and is the program they supervise with.

use std::ffi::OsString;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::agent::{Agent, Behaviour};
use e2e::control_plane::{ControlPlane, Options};
use e2e::faults::{self, matrix::Wanted, point::Point};
use e2e::node::{self, Node};
use e2e::process;
use e2e::provider::{Images, Kind, write_image};
use e2e::{release, suite};
use khook::sabotage::Safeguard;
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
        /// With a node: real pods are really killed (root on Linux, after .ci/install-node)
        #[arg(long)]
        node: bool,
    },
    /// Measure khook (the binary of KHOOK_BIN, else this build) against its apiserver
    Bench {
        /// How many incidents
        #[arg(long, default_value_t = 1000)]
        incidents: usize,
        /// How many a second
        #[arg(long, default_value_t = 50)]
        rate: u32,
        /// How many healthy pods there are beside
        #[arg(long, default_value_t = 0)]
        pods: usize,
    },
    /// Run every scenario with khook in a real cluster, and print what it called the agent for
    Suite {
        /// Where
        #[arg(long, value_enum, default_value = "local")]
        provider: Kind,
        /// khook's image, for a cluster that is there
        #[arg(long)]
        image: Option<String>,
        /// A busybox, for a cluster that cannot pull busybox:1.37
        #[arg(long)]
        busybox: Option<String>,
        /// How many scenarios at a time
        #[arg(long, default_value_t = 12)]
        parallel: usize,
        /// Write every version of every pod, and the Events, to this folder
        #[arg(long)]
        record: Option<PathBuf>,
        /// Only scenarios whose name holds one of these
        only: Vec<String>,
    },
    /// Install khook with Helm on a node of its own, upgrade it in the middle of incidents, remove it
    Release,
    /// Break everything around khook, one thing at a time and several at once, and check what it promises
    Faults {
        /// Faults to combine in one run, as in status:3:lose-answer; the whole catalog where none is given
        #[arg(long)]
        point: Vec<Point>,
        /// Runs with several faults, for each scenario
        #[arg(long, default_value_t = 20)]
        seeds: u64,
        /// Only every so many of the single faults
        #[arg(long, default_value_t = 1)]
        every: usize,
        /// Runs at a time
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
        parallel: u16,
        /// Minutes after which no new run begins
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// The folder of results: the same folder goes on where it was
        #[arg(long, default_value = "target/faults")]
        folder: PathBuf,
        /// Take this safeguard out of khook (needs the feature sabotage)
        #[arg(long)]
        without: Option<String>,
        /// Only check this record of a run
        #[arg(long, conflicts_with_all = ["point", "without"])]
        check: Option<PathBuf>,
        /// Only these scenarios
        scenarios: Vec<String>,
    },
    /// Write khook's image to a file that `docker load` and `kind load image-archive` read
    Image {
        /// The file
        file: PathBuf,
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
        /// The address to listen on
        #[arg(long, default_value = "127.0.0.1")]
        address: IpAddr,
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
    /// Run a control plane and a node until Ctrl-C and print its KUBECONFIG (root on Linux)
    Node,
    /// Be the first process of a node's namespaces (the tests' own use)
    #[command(hide = true)]
    Init {
        /// The node's folder
        folder: PathBuf,
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
    // Under khook's own names it is khook: its commands are tried without a second build.
    if std::env::args_os()
        .next()
        .is_some_and(|name| khook::cli::NAMES.iter().any(|own| Path::new(&name).ends_with(own)))
    {
        return khook::cli::main();
    }
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
        Command::Demo { fast, node } => until_interrupted(demo::run(fast, node)),
        Command::Bench { incidents, rate, pods } => until_interrupted(bench::run(incidents, rate, pods)),
        Command::ControlPlane { apiserver_args } => until_interrupted(async {
            let control_plane = ControlPlane::start(Options { apiserver_args, ..Options::default() }).await?;
            println!("export KUBECONFIG={}", control_plane.kubeconfig().display());
            std::future::pending().await
        }),
        Command::Suite { provider, image, busybox, parallel, record, only } => {
            let images = Images { khook: image, busybox };
            let options = suite::Options { provider, images, only, parallel, record };
            // It listens for signals itself: a cluster that is not ours is cleaned up before the end.
            let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
            let good = runtime.block_on(suite::run(options))?;
            Ok(code(good))
        }
        Command::Release => until_interrupted(release::run()),
        Command::Faults { check: Some(file), .. } => {
            Ok(code(faults::matrix::check_file(&faults::record::load(&file)?)))
        }
        Command::Faults {
            point,
            seeds,
            every,
            parallel,
            minutes,
            folder,
            without,
            scenarios,
            check: None,
        } => {
            let safeguard = |name: String| {
                let found = Safeguard::ALL.into_iter().find(|safeguard| safeguard.as_str() == name);
                let all = Safeguard::ALL.map(Safeguard::as_str).join(", ");
                found.with_context(|| format!("there is no safeguard \"{name}\"; there are {all}"))
            };
            let without = without.map(safeguard).transpose()?;
            anyhow::ensure!(
                cfg!(feature = "sabotage"),
                "fault runs need a build for them: cargo run --package e2e --features sabotage --bin e2e -- faults"
            );
            let budget = Duration::from_secs(60 * minutes);
            let parallel = usize::from(parallel);
            let wanted = Wanted { scenarios, points: point, seeds, every, parallel, budget, folder, without };
            let mut good = false;
            let ended = until_interrupted(async {
                good = faults::matrix::run(wanted).await?;
                Ok(())
            })?;
            if ended != ExitCode::SUCCESS {
                eprintln!("e2e: stopped; the same command goes on where it was");
                return Ok(ended);
            }
            Ok(code(good))
        }
        Command::Image { file } => write_image(&file).map(|()| ExitCode::SUCCESS),
        Command::Agent { port, address, delay } => until_interrupted(async move {
            let delay = Duration::try_from_secs_f64(delay).context("--delay")?;
            let agent = Agent::spawn_at(address, port).await?;
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
        Command::Node => until_interrupted(async {
            let started = Instant::now();
            let options = Options { controllers: true, ..Options::default() };
            let control_plane = ControlPlane::start(options).await?;
            let node = Node::start(&control_plane).await?;
            process::say(&format!(
                "ready after {:.1} s, logs in {}",
                started.elapsed().as_secs_f64(),
                node.dir().display()
            ));
            println!("export KUBECONFIG={}", control_plane.kubeconfig().display());
            std::future::pending().await
        }),
        Command::Init { folder } => node::init(&folder).map(|()| ExitCode::SUCCESS),
        Command::Operator { args } => Ok(khook::cli::obey(args, false)),
        Command::Supervise { remove: Some(folder), .. } => {
            process::remove_at_end(&folder).map(|()| ExitCode::SUCCESS)
        }
        Command::Supervise { command, .. } => process::supervise(&command).map(ExitCode::from),
    }
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
