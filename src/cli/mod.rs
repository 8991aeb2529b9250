//! A command is one thing the khook binary does; each has a file.

mod backtest;
mod completions;
mod crds;
mod dashboard;
mod describe;
mod doctor;
mod explain;
mod instruct;
mod man;
mod render;
pub mod run;
mod status;
mod test;
mod top;
mod validate;

mod annotate;
mod cluster;
mod files;
mod hooks;
mod installation;
mod output;

use std::{env, ffi::OsString, fmt, path::Path, process::ExitCode};

use clap::{Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{self, Settings},
    hook::{self, EventType},
};

/// Exit code of a wrong command line or setting, as clap has it.
const USAGE: u8 = 2;

/// What this program is called: by itself, and by kubectl as `kubectl khook`.
pub const NAMES: [&str; 2] = ["khook", PLUGIN];

const PLUGIN: &str = "kubectl-khook";

/// The command line, but for `run`, whose flags are the settings.
#[derive(Parser)]
#[command(name = "khook", about = env!("CARGO_PKG_DESCRIPTION"), version, arg_required_else_help = true, propagate_version = false)]
struct Line {
    #[command(flatten)]
    connection: cluster::Connection,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Checks Hooks in files as the cluster and khook would, without either
    Validate(validate::Args),
    /// Prints the message that an agent would get
    Render(render::Args),
    /// Has the running operator ask an agent about trouble that is made up, and follows it to the answer
    Test(test::Args),
    /// Lists incidents
    Status(status::Args),
    /// Shows incidents as they move
    Top(top::Args),
    /// Shows all that is known of a Hook and its incidents
    Describe(describe::Args),
    /// Says why khook did or did not call an agent about a pod
    Explain(explain::Args),
    /// Has the agent asked now, or once more
    Retry(instruct::Args),
    /// Takes an incident over: nobody else is asked about this episode
    Ack(instruct::Args),
    /// Has nobody asked about an incident for a while
    Snooze(instruct::SnoozeArgs),
    /// Ends an incident
    Resolve(instruct::Args),
    /// Says what Hooks in a file would have called, by what the cluster still knows
    Backtest(backtest::Args),
    /// Looks for what keeps khook from working, and says what to do
    Doctor(doctor::Args),
    /// Serves a page that shows incidents as they move
    Dashboard(dashboard::Args),
    /// Prints the CustomResourceDefinition of Hooks as YAML
    Crds,
    /// Prints what a shell needs to complete this command line
    Completions(completions::Args),
    /// Prints the manual page
    Man,
    /// Prints the version
    Version,
}

/// Does what the command line of this process says.
pub fn main() -> ExitCode {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    let plugin = Path::new(&name).file_stem().is_some_and(|stem| stem == PLUGIN);
    obey(args.collect(), plugin)
}

/// Does what these arguments say. Without a command, or with flags of the settings alone, the operator runs;
/// as a plugin of kubectl it never does by itself.
pub fn obey(mut args: Vec<OsString>, plugin: bool) -> ExitCode {
    let first = args.first().and_then(|arg| arg.to_str()).unwrap_or_default().to_owned();
    if first == "run" {
        return run(args.split_off(1));
    }
    let operates = match first.as_str() {
        "" => true,
        "-h" | "--help" | "-V" | "--version" => false,
        flag => flag.starts_with("--") && Settings::command().get_arguments().any(|arg| is_named(arg, flag)),
    };
    if operates && !plugin {
        return run(args);
    }
    let matches = command(plugin).no_binary_name(true).try_get_matches_from(args);
    match matches.and_then(|matches| Line::from_arg_matches(&matches)) {
        Ok(line) => act(line),
        Err(error) => refuse(&error),
    }
}

fn is_named(arg: &clap::Arg, flag: &str) -> bool {
    let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
    arg.get_long_and_visible_aliases().unwrap_or_default().contains(&name)
        || arg.get_all_aliases().unwrap_or_default().contains(&name)
}

fn act(line: Line) -> ExitCode {
    let Line { connection, command } = line;
    let result = match command {
        Verb::Crds => return crds::main(),
        Verb::Version => {
            output::print(&format!("khook {}", env!("CARGO_PKG_VERSION"))).map(|()| ExitCode::SUCCESS)
        }
        Verb::Validate(args) => validate::main(args, connection),
        Verb::Completions(args) => completions::main(&args),
        Verb::Man => man::main(),
        Verb::Render(args) => wait(render::main(args, connection)),
        Verb::Test(args) => wait(test::main(args, connection)),
        Verb::Status(args) => wait(status::main(args, connection)),
        Verb::Top(args) => wait(top::main(args, connection)),
        Verb::Describe(args) => wait(describe::main(args, connection)),
        Verb::Explain(args) => wait(explain::main(args, connection)),
        Verb::Retry(args) => wait(instruct::main(hook::Verb::Retry, args, connection)),
        Verb::Ack(args) => wait(instruct::main(hook::Verb::Ack, args, connection)),
        Verb::Snooze(args) => wait(instruct::silence(args, connection)),
        Verb::Resolve(args) => wait(instruct::main(hook::Verb::Resolve, args, connection)),
        Verb::Backtest(args) => wait(backtest::main(args, connection)),
        Verb::Doctor(args) => wait(doctor::main(args, connection)),
        Verb::Dashboard(args) => wait(dashboard::main(args, connection)),
    };
    match result {
        Ok(code) => code,
        Err(Error(None)) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, and nothing else: what to do stands in the sentence.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A kind of trouble on a command line.
fn event_type(text: &str) -> Result<EventType, String> {
    let all = EventType::ALL.map(EventType::as_str).join(", ");
    EventType::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| format!("one of {all}"))
}

/// Whether an agent is the one a person means: by its whole name, or without its namespace.
fn is_agent(name: &str, wanted: &str) -> bool {
    name == wanted || !wanted.contains('/') && name.ends_with(&format!("/{wanted}"))
}

/// Waits for a command; one thread is enough for what a person asks.
fn wait(command: impl Future<Output = Result<ExitCode, Error>>) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::because("no runtime"))?.block_on(command)
}

/// Why a command cannot do what it was told: a sentence for the person at the prompt. None: nobody reads on.
#[derive(Debug)]
pub struct Error(Option<String>);

impl Error {
    /// In these words.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(Some(sentence.into()))
    }

    /// Whoever reads the output has read enough.
    fn closed() -> Self {
        Self(None)
    }

    /// These words, and the chain of causes after them.
    fn because<E: std::error::Error>(what: &str) -> impl FnOnce(E) -> Self {
        let what = what.to_owned();
        move |error| {
            let mut sentence = format!("{what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !sentence.contains(&cause_text) {
                    sentence.push_str(": ");
                    sentence.push_str(&cause_text);
                }
                source = cause.source();
            }
            Self(Some(sentence))
        }
    }

    /// What the apiserver answered, or that it did not.
    fn asked(what: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::new(format!("{what}: {}", status.message)),
            error => Self::because(what)(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or_default())
    }
}

impl From<crate::client::Error> for Error {
    fn from(error: crate::client::Error) -> Self {
        Self::because("no connection to the cluster")(error)
    }
}

fn run(flags: Vec<OsString>) -> ExitCode {
    match Settings::read(flags, |name| env::var_os(name)) {
        Ok(settings) => run::main(settings),
        Err(config::Error::Usage(error)) => refuse(&error),
        Err(config::Error::Value(sentence)) => {
            eprintln!("khook does not start: {sentence}");
            ExitCode::from(USAGE)
        }
    }
}

/// The command line as help shows it.
fn command(plugin: bool) -> Command {
    let name = if plugin { "kubectl khook" } else { "khook" };
    let run = Settings::command().name("run").about("Runs the operator (also without a command)");
    Line::command().name(name).bin_name(name).subcommand(run)
}

/// Says what clap has to say; that may be help.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody listens on a closed stream.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(USAGE),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::command(false).debug_assert();
    }
}
