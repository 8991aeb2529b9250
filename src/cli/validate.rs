//! `khook validate` says what is wrong with Hooks in files, without a cluster.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{
    Error,
    cluster::Connection,
    files,
    output::{Output, count, print},
};
use crate::{
    check::{Checker, Fault, Severity},
    config,
    incident::{allowed::Allowed, hosts::Hosts, policy::Policy},
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files, folders (with all .yaml, .yml and .json below them), or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The operator's setting of that name: with it, agents that it does not allow are errors
    #[arg(long, value_name = "JSON", value_parser = config::allowed_agents)]
    allowed_agents: Option<Allowed>,
    /// The operator's setting of that name: with it, agents at other hosts are errors
    #[arg(long, value_name = "HOSTS", value_parser = config::hosts)]
    direct_agent_hosts: Option<Hosts>,
    #[command(flatten)]
    output: Output,
}

/// What programs are told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Files that were read.
    files: usize,
    /// Hooks in them.
    hooks: usize,
    /// Other objects in them, which were not looked at.
    others: usize,
    /// Faults that are errors.
    errors: usize,
    /// Those that are not.
    warnings: usize,
    faults: Vec<Fault>,
}

/// Does it.
pub fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let policy = Policy {
        // Without the settings every agent may be allowed.
        direct_agents: args.direct_agent_hosts.unwrap_or_else(Hosts::any),
        allowed_agents: args.allowed_agents.unwrap_or_default(),
        ..Policy::default()
    };
    let checker = Checker::new(policy, connection.namespace);
    let mut report = Report { files: 0, hooks: 0, others: 0, errors: 0, warnings: 0, faults: Vec::new() };
    for input in files::read(&args.files) {
        report.files += 1;
        match input.bytes {
            Ok(bytes) if bytes.trim_ascii().is_empty() => {
                report.faults.push(Fault::unreadable(input.name, "is empty".into()));
            }
            Ok(bytes) => {
                let checked = checker.check(&input.name, &bytes);
                report.hooks += checked.hooks;
                report.others += checked.others;
                report.faults.extend(checked.faults);
            }
            Err(why) => report.faults.push(Fault::unreadable(input.name, why)),
        }
    }
    report.errors = report.faults.iter().filter(|fault| fault.severity == Severity::Error).count();
    report.warnings = report.faults.len() - report.errors;
    if !args.output.output.print(&report)? {
        if !report.faults.is_empty() {
            print(&report.faults.iter().map(line).collect::<Vec<_>>().join("\n"))?;
        }
        eprintln!("{}", summary(&report));
    }
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A fault as compilers say it.
fn line(fault: &Fault) -> String {
    let Fault { file, line, column, path, severity, message, .. } = fault;
    let place = if *line == 0 { String::new() } else { format!("{line}:{column}:") };
    let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
    format!("{file}:{place} {}: {path}{message}", severity.as_str())
}

fn summary(report: &Report) -> String {
    let Report { files, hooks, others, errors, warnings, .. } = report;
    let mut text = format!("{} in {}: ", count(*hooks, "Hook"), count(*files, "file"));
    text += &match (errors, warnings) {
        (0, 0) => "no fault".into(),
        (_, 0) => count(*errors, "error"),
        (0, _) => count(*warnings, "warning"),
        _ => format!("{}, {}", count(*errors, "error"), count(*warnings, "warning")),
    };
    if *others > 0 {
        text += &format!(" ({} of other kinds passed over)", count(*others, "object"));
    }
    text
}
