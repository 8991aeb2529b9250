//! A command is one thing the khook binary does; each has a file.

mod crds;
pub mod run;

use std::{env, ffi::OsString, process::ExitCode};

use clap::{Command, error::ErrorKind};

use crate::config::{self, Settings};

/// Exit code of a wrong command line or setting, as clap has it.
const USAGE: u8 = 2;

/// Does what the command line of this process says.
pub fn main() -> ExitCode {
    obey(env::args_os().skip(1).collect())
}

/// Does what these arguments say. Without a command, or with flags alone, the operator runs.
pub fn obey(mut args: Vec<OsString>) -> ExitCode {
    let first = args.first().and_then(|arg| arg.to_str()).unwrap_or("run").to_owned();
    match first.as_str() {
        "-h" | "--help" | "help" | "-V" | "--version" | "version" | "crds" => {}
        "run" => {
            args = args.split_off(args.len().min(1));
            return run(args);
        }
        flag if flag.starts_with('-') => return run(args),
        _ => {}
    }
    match command().no_binary_name(true).try_get_matches_from(args) {
        Ok(matches) => match matches.subcommand_name() {
            Some("crds") => crds::main(),
            _ => {
                println!("khook {}", env!("CARGO_PKG_VERSION"));
                ExitCode::SUCCESS
            }
        },
        Err(error) => refuse(&error),
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
fn command() -> Command {
    Command::new("khook")
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .version(env!("CARGO_PKG_VERSION"))
        .arg_required_else_help(true)
        .subcommand_required(true)
        .subcommand(Settings::command().name("run").about("Runs the operator (also without a command)"))
        .subcommand(Command::new("crds").about("Prints the CustomResourceDefinition of Hooks as YAML"))
        .subcommand(Command::new("version").about("Prints the version"))
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
        super::command().debug_assert();
    }
}
