//! `khook completions` prints what a shell needs to complete the command line.

use std::process::ExitCode;

use clap_complete::Shell;

use super::{Error, output::print};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Does it.
pub fn main(args: &Args) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(false), "khook", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
