//! `khook test` has the running operator ask an agent about trouble that is made up, and follows it to the answer.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use uuid::Uuid;

use super::{
    Error, annotate,
    cluster::{Cluster, Connection, POD, named},
    hooks,
    output::{Output, block, line, print},
};
use crate::{
    hook::{ActiveEvent, EventType, Hook, Phase, Reason, Verb, parse_duration},
    incident::{outcome::EndState, policy::Policy, prompt, rules::Rules},
    source::annotations::{self, Trial, test_key},
    view,
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the Hook
    hook: String,
    /// The kind of trouble [default: the one the Hook listens to, where it is one]
    #[arg(long = "type", value_name = "TYPE", value_parser = super::event_type)]
    event_type: Option<EventType>,
    /// The pod that is said to be in trouble; it need not exist
    #[arg(long, value_name = "NAME", default_value = "khook-test")]
    pod: String,
    /// The container that is said to be in trouble
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Print the message, and call nobody
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the answer
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let cluster = connection.connect().await?;
    let hook = cluster.hook(&args.hook).await?;
    let event_type = choose(&hook, args.event_type)?;
    let mut name = Uuid::new_v4().simple().to_string();
    name.truncate(10);
    let trial = Trial {
        at: annotate::now(&cluster, None).await?,
        by: cluster.who().await,
        event_type,
        pod: named(&args.pod, POD)?.to_owned(),
        container: args.container.clone(),
    };
    let key = test_key(&name);
    if args.dry_run {
        annotate::set(&cluster, &hook, &key, &trial, true).await?;
        return show(hook, &key, &trial);
    }
    annotate::set(&cluster, &hook, &key, &trial, false).await?;
    let followed = follow(&cluster, &hook, &name, &args).await;
    // Whatever came of it: left there, the Hook would be tried again once its test is forgotten, if it is not too old.
    annotate::remove(&cluster, &hook, &key, &trial).await?;
    let entries = followed?;
    dismiss(&cluster, &hook, &entries).await?;
    let views: Vec<view::Incident> =
        entries.iter().map(|entry| view::Incident::of(&cluster.namespace, &args.hook, entry)).collect();
    if !args.output.output.print(&views)? {
        for entry in &entries {
            print(&said(entry))?;
        }
    }
    let well = entries.iter().all(|entry| entry.outcome == Some(EndState::Completed) || entry.observed);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(hook: &Hook, wanted: Option<EventType>) -> Result<EventType, Error> {
    let mut listens: Vec<EventType> =
        hook.spec.event_configurations.iter().map(|configuration| configuration.event_type).collect();
    listens.sort_unstable();
    listens.dedup();
    let names = listens.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    match (wanted, listens.as_slice()) {
        (Some(wanted), listens) if listens.contains(&wanted) => Ok(wanted),
        (Some(wanted), _) => {
            Err(Error::new(format!("the Hook does not listen to {wanted}: choose among {names} with --type")))
        }
        (None, [only]) => Ok(*only),
        (None, _) => Err(Error::new(format!(
            "the Hook listens to several kinds of trouble: choose among {names} with --type"
        ))),
    }
}

/// Prints the messages that would be sent.
fn show(mut hook: Hook, key: &str, trial: &Trial) -> Result<ExitCode, Error> {
    let value = serde_json::to_string(trial).map_err(Error::because("no JSON"))?;
    hook.metadata.annotations = Some(BTreeMap::from([(key.to_owned(), value)]));
    let namespace = hook.metadata.namespace.clone().unwrap_or_default();
    let policy = Policy::permissive();
    let rules = Rules::parse(&hook.spec, &namespace, &policy);
    for signal in annotations::read(&hook, trial.at).tests {
        for rule in rules.listening_to(signal.event_type) {
            let Some(entry) = hooks::opened(&hook, rule, &signal, &policy, trial.at) else { continue };
            let message = prompt::message_of(&hook, rule, &entry);
            for problem in &message.problems {
                eprintln!("warning: the prompt: {problem}");
            }
            print(&format!("To {}:\n\n{}\n", rule.agent, message.text.trim_end()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells on stderr how the test goes, until all its incidents have come to an end.
async fn follow(cluster: &Cluster, hook: &Hook, name: &str, args: &Args) -> Result<Vec<ActiveEvent>, Error> {
    let of_test = |hook: &Hook| -> Vec<ActiveEvent> {
        let entries = hook.status.iter().flat_map(|status| &status.active_events);
        entries.filter(|entry| entry.test.as_deref() == Some(name)).cloned().collect()
    };
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut last = Vec::new();
    let ended = annotate::follow(cluster, hook, args.timeout, |hook| {
        let entries = of_test(hook);
        for entry in &entries {
            let now = format!("{} ({})", entry.status, line(&entry.message, 200));
            if told.insert(entry.id.clone(), now.clone()).as_ref() != Some(&now) {
                eprintln!("{}: {now}", entry.agent);
            }
        }
        last.clone_from(&entries);
        (!entries.is_empty() && entries.iter().all(is_over)).then_some(entries)
    })
    .await?;
    match ended {
        Some(entries) => Ok(entries),
        None if last.is_empty() => Err(Error::new(format!(
            "khook has not taken the test up within {} s: `khook doctor` says whether it runs",
            args.timeout.as_secs_f64()
        ))),
        None => Ok(last),
    }
}

/// Whether there is nothing more to wait for.
fn is_over(entry: &ActiveEvent) -> bool {
    let waits = matches!(entry.reason, Some(Reason::Suspended | Reason::AgentNotReady));
    entry.outcome.is_some() || entry.status == Phase::Resolved || entry.observed || waits
}

fn said(entry: &ActiveEvent) -> String {
    let agent = &entry.agent;
    match (&entry.outcome, &entry.answer) {
        (Some(outcome), Some(answer)) => format!("{agent}: {outcome}\n{}", block(answer, "  ")),
        (Some(outcome), None) => format!("{agent}: {outcome}"),
        (None, _) => format!("{agent}: {} ({})", entry.status, line(&entry.message, 200)),
    }
}

/// A test is nobody's incident: what has come to an end is not left for people to look at.
async fn dismiss(cluster: &Cluster, hook: &Hook, entries: &[ActiveEvent]) -> Result<(), Error> {
    for entry in entries.iter().filter(|entry| entry.status != Phase::Resolved) {
        let told = annotate::Told::write(cluster, hook, entry, Verb::Resolve, None).await?;
        told.done(cluster, hook, Duration::from_secs(15)).await?;
        told.take_off(cluster, hook).await?;
    }
    Ok(())
}
