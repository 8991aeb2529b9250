//! `khook backtest` says what Hooks would have called, by what the cluster still knows.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use kube::ResourceExt;
use serde::Serialize;

use super::{
    Error,
    cluster::Connection,
    hooks,
    output::{Output, count, print, table},
};
use crate::{
    backtest::{Call, Story, Variation},
    hook::{Mode, parse_duration},
    incident::{policy::Policy, prompt, rules::Rules},
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file with Hooks, - for standard input, or hook/NAME for one of the cluster
    file: PathBuf,
    /// How far to look back; clusters keep Events for an hour, unless they are told otherwise
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = parse_duration)]
    since: Duration,
    #[command(flatten)]
    output: Output,
}

/// What one Hook would have called.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    hook: String,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    calls: Vec<Call>,
    /// How many calls other values would have made.
    variations: Vec<Variation>,
    /// What is not certain.
    notes: Vec<String>,
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let found = hooks::read(&args.file, &connection).await?;
    let cluster = connection.connect().await?;
    let policy = Policy::permissive();
    let until = crate::reconcile::now();
    // A span of more than a day is more than any cluster knows.
    let span = args.since.min(Duration::from_secs(7 * 24 * 60 * 60));
    let since = until - TimeDelta::from_std(span).unwrap_or_default();
    let mut reports = Vec::new();
    for hook in found {
        let namespace = hook.namespace().unwrap_or_else(|| cluster.namespace.clone());
        let past = hooks::past(&cluster, &namespace).await?;
        let mut rules = Rules::parse(&hook.spec, &namespace, &policy);
        // What it would do if it were not.
        let idle = rules.suspended || hook.spec.mode == Some(Mode::Observe);
        (rules.suspended, rules.observes) = (false, false);
        let story = Story::of(&past, &namespace, &policy, since, until);
        let calls = story.calls(&rules, &namespace, &policy);
        let variations = story.variations(&rules, &namespace, &policy);
        let mut notes = Vec::new();
        if idle {
            notes.push(
                "the Hook is suspended or only observes: this is what it would call if it did not".into(),
            );
        }
        notes.extend(rules.problems.iter().map(|problem| problem.message.clone()));
        let oldest = past.events.iter().filter_map(|event| event.metadata.creation_timestamp.as_ref()).min();
        notes.push(match oldest {
            Some(oldest) => format!("the oldest Event that the cluster still has is of {}", oldest.0),
            None => "the cluster has no Event about a pod here (any more)".to_owned(),
        });
        notes.push(
            "of a pod the cluster knows its last state and its counts; an Event keeps its first and last time and a \
             count, and is taken to have come evenly in between"
                .to_owned(),
        );
        let uncertain = calls.iter().filter(|call| call.uncertain).count();
        if uncertain > 0 {
            notes.push(format!(
                "{uncertain} of the calls rest on Events of pods that are gone (marked ?): their trouble may have been \
                 over before the call"
            ));
        }
        notes.push("agents are taken to accept every call at once".to_owned());
        let hook = format!("{namespace}/{}", hook.name_any());
        reports.push(Report { hook, since, until, calls, variations, notes });
    }
    if !args.output.output.print(&reports)? {
        let texts: Vec<String> = reports.iter().map(text).collect();
        print(&texts.join("\n\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let minute = |at: &DateTime<Utc>| at.format("%Y-%m-%d %H:%M").to_string();
    let count = count(report.calls.len(), "call");
    let head = format!(
        "Hook {}: {count} from {} to {} UTC",
        report.hook,
        minute(&report.since),
        minute(&report.until)
    );
    let mut parts = vec![head];
    if !report.calls.is_empty() {
        let rows: Vec<[String; 6]> = report
            .calls
            .iter()
            .map(|call| {
                let number =
                    if call.resolved { "resolved".to_owned() } else { call.notification.to_string() };
                [
                    call.at.format("%H:%M:%S").to_string(),
                    call.event_type.to_string(),
                    format!("{}{}", call.pod, if call.uncertain { " ?" } else { "" }),
                    number,
                    call.agent.clone(),
                    prompt::visible(call.why.lines().next().unwrap_or_default()).replace('\t', " "),
                ]
            })
            .collect();
        parts.push(table(&["TIME", "TYPE", "POD", "NOTIFICATION", "AGENT", "WHY"], &rows));
    }
    let rows: Vec<[String; 3]> = report
        .variations
        .iter()
        .map(|row| [row.field.to_owned(), row.value.to_owned(), row.calls.to_string()])
        .collect();
    parts.push(format!(
        "With other values in every configuration:\n{}",
        table(&["FIELD", "VALUE", "CALLS"], &rows)
    ));
    parts.push(report.notes.iter().map(|note| format!("note: {note}")).collect::<Vec<_>>().join("\n"));
    parts.join("\n\n")
}
