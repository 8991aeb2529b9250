//! `khook retry`, `ack`, `snooze` and `resolve` tell the operator what to do about an incident.

use std::{process::ExitCode, time::Duration};

use super::{
    Error,
    annotate::Told,
    cluster::Connection,
    output::{Output, print},
};
use crate::{
    hook::{ActiveEvent, Hook, Phase, Verb, parse_duration},
    source::annotations::LONGEST_SNOOZE,
    view,
};

/// Which incident is meant.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the Hook
    hook: String,
    /// The incident: its id, its pod, or TYPE/POD; see `khook status`
    incident: String,
    /// How long to wait until the operator has done it; 0s does not wait
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// The same, and for how long.
#[derive(clap::Args, Debug)]
pub struct SnoozeArgs {
    /// For how long: 30m, 2h; at most 168h
    #[arg(value_parser = snooze)]
    span: String,
    #[command(flatten)]
    incident: Args,
}

fn snooze(text: &str) -> Result<String, String> {
    let span = parse_duration(text)?;
    match span.is_zero() || span > LONGEST_SNOOZE {
        true => Err("a span of time from 1ms to 168h".into()),
        false => Ok(text.to_owned()),
    }
}

/// Has nobody asked for a while.
pub async fn silence(args: SnoozeArgs, connection: Connection) -> Result<ExitCode, Error> {
    say(Verb::Snooze, Some(args.span), args.incident, connection).await
}

/// Has the other things done.
pub async fn main(verb: Verb, args: Args, connection: Connection) -> Result<ExitCode, Error> {
    say(verb, None, args, connection).await
}

async fn say(
    verb: Verb,
    span: Option<String>,
    args: Args,
    connection: Connection,
) -> Result<ExitCode, Error> {
    let cluster = connection.connect().await?;
    let hook = cluster.hook(&args.hook).await?;
    let (name, namespace) = (hook.metadata.name.clone().unwrap_or_default(), &cluster.namespace);
    let entry = find(&hook, &args.incident, verb)?;
    let told = Told::write(&cluster, &hook, entry, verb, span).await?;
    if args.timeout.is_zero() {
        return Ok(ExitCode::SUCCESS);
    }
    if entry.status == Phase::Firing && matches!(verb, Verb::Retry | Verb::Resolve) {
        eprintln!("the agent is being called: this is done when the outcome is known");
    }
    let done = told.done(&cluster, &hook, args.timeout).await?;
    let Some(done) = done else {
        let (seconds, key) = (args.timeout.as_secs_f64(), &told.key);
        return Err(Error::new(format!(
            "khook has not done it within {seconds} s. It stands on the Hook as the annotation {key} and is done as soon \
             as khook can: `khook doctor` says whether it runs"
        )));
    };
    told.take_off(&cluster, &hook).await?;
    let Some(entry) = done else {
        return Err(Error::new(
            "the incident has begun anew meanwhile, or was forgotten: see `khook status`",
        ));
    };
    if entry.instruction.as_ref().is_some_and(|known| known.at > told.said.at) {
        eprintln!("somebody else has said something about it since");
    }
    let incident = view::Incident::of(namespace, &name, &entry);
    if !args.output.output.print(&incident)? {
        print(&format!(
            "{} on {}: {} ({})",
            entry.event_type, entry.resource_name, entry.status, entry.message
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The incident of a Hook that a person means by its id or the beginning of it, by its pod, or by TYPE/POD.
fn find<'a>(hook: &'a Hook, wanted: &str, verb: Verb) -> Result<&'a ActiveEvent, Error> {
    let entries: Vec<&ActiveEvent> = hook.status.iter().flat_map(|status| &status.active_events).collect();
    let (event_type, pod) = match wanted.rsplit_once('/') {
        Some((event_type, pod)) => (Some(event_type), pod),
        None => (None, wanted),
    };
    let by_id = |entry: &&ActiveEvent| wanted.len() >= 4 && entry.id.starts_with(wanted);
    let by_pod = |entry: &&ActiveEvent| {
        entry.resource_name == pod && event_type.is_none_or(|wanted| wanted == entry.event_type.as_str())
    };
    let mut found: Vec<&ActiveEvent> =
        entries.iter().copied().filter(|entry| by_id(entry) || by_pod(entry)).collect();
    if let Some(entry) = found.iter().find(|entry| entry.id == wanted) {
        return Ok(entry);
    }
    // What is over is meant only where nothing else can be.
    if found.iter().any(|entry| entry.status != Phase::Resolved) {
        found.retain(|entry| entry.status != Phase::Resolved);
    }
    let list = |entries: &[&ActiveEvent]| {
        let line = |entry: &&ActiveEvent| {
            format!(
                "\n  {}  {} on {}, {}, {}",
                entry.id, entry.event_type, entry.resource_name, entry.agent, entry.status
            )
        };
        entries.iter().map(line).collect::<String>()
    };
    let name = hook.metadata.name.as_deref().unwrap_or_default();
    match found.as_slice() {
        [entry] => Ok(entry),
        [] if entries.is_empty() => Err(Error::new(format!("the Hook {name} has no incidents"))),
        [] => {
            Err(Error::new(format!("the Hook {name} has no incident {wanted:?}; it has:{}", list(&entries))))
        }
        several => Err(Error::new(format!(
            "{} incidents of the Hook {name} are {wanted:?}; {verb} one of them by its id:{}",
            several.len(),
            list(several)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use serde_json::json;

    use super::*;

    fn hook() -> Hook {
        let entry = |id: &str, event_type: &str, pod: &str, status: &str| {
            json!({"id": id, "eventType": event_type, "resourceName": pod, "agent": "kagent/a", "status": status,
                "firstSeen": Utc::now(), "lastSeen": Utc::now()})
        };
        serde_json::from_value(json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "web"},
            "spec": {"eventConfigurations": []},
            "status": {"activeEvents": [
                entry("aaaa000001", "oom-kill", "web-0", "notified"),
                entry("aaaa000002", "pod-restart", "web-0", "resolved"),
                entry("bbbb000003", "oom-kill", "web-1", "pending"),
                entry("cccc000004", "pod-restart", "web-1", "firing"),
                entry("dddd000005", "pod-restart", "web-2", "resolved"),
                entry("eeee000006", "oom-kill", "bbbb", "notified"),
            ]},
        }))
        .expect("a Hook")
    }

    #[test]
    fn an_incident_is_found_by_what_tells_it_apart() {
        let hook = hook();
        let id = |wanted: &str| find(&hook, wanted, Verb::Ack).map(|entry| entry.id.clone());
        for (wanted, expected) in [
            ("aaaa000001", "aaaa000001"),
            ("bbbb0", "bbbb000003"),
            ("web-0", "aaaa000001"),
            ("web-2", "dddd000005"),
            ("oom-kill/web-1", "bbbb000003"),
            ("pod-restart/web-0", "aaaa000002"),
        ] {
            assert_eq!(id(wanted).ok().as_deref(), Some(expected), "{wanted}");
        }
        for (wanted, why) in [
            (
                "web-1",
                "2 incidents of the Hook web are \"web-1\"; ack one of them by its id:\n  bbbb000003  oom-kill on web-1",
            ),
            ("web-9", "the Hook web has no incident \"web-9\"; it has:\n  aaaa000001"),
            ("bbb", "no incident \"bbb\""),
            ("bbbb", "2 incidents of the Hook web are \"bbbb\""),
        ] {
            let error = id(wanted).expect_err("none").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
