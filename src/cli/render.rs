//! `khook render` prints the message that an agent would get.

use std::{path::PathBuf, process::ExitCode};

use chrono::{DateTime, Utc};
use kube::ResourceExt;

use super::{
    Error,
    cluster::{Cluster, Connection},
    hooks,
    output::{Output, print},
};
use crate::{
    agent::{AgentCall, a2a},
    backtest::Past,
    hook::{EventType, Hook},
    incident::{
        outcome::Protocol,
        policy::Policy,
        prompt,
        rules::{Rule, Rules},
        signal::{Cause, Nature, Occurrence, Signal},
    },
    source::{events, index::Index, pods},
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file with Hooks, - for standard input, or hook/NAME for one of the cluster
    file: PathBuf,
    /// The kind of trouble
    #[arg(long, value_name = "TYPE", value_parser = super::event_type)]
    event: Option<EventType>,
    /// The Hook, where the file has several
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    /// The agent, where several are asked about this kind of trouble
    #[arg(long)]
    agent: Option<String>,
    /// What has happened: pod/NAME or event/NAME of the cluster [default: made up]
    #[arg(long, value_name = "WHAT", value_parser = from)]
    from: Option<From>,
    /// Form of the output
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Debug)]
enum From {
    Pod(String),
    Event(String),
}

fn from(text: &str) -> Result<From, String> {
    match text.split_once('/') {
        Some(("pod" | "pods", name)) if !name.is_empty() => Ok(From::Pod(name.to_owned())),
        Some(("event" | "events", name)) if !name.is_empty() => Ok(From::Event(name.to_owned())),
        _ => Err("pod/NAME or event/NAME".into()),
    }
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let found = hooks::read(&args.file, &connection).await?;
    let mut hook = choose(found, args.hook.as_deref())?;
    let cluster = match &args.from {
        Some(_) => Some(connection.connect().await?),
        None => None,
    };
    if hook.metadata.namespace.is_none() {
        let of_cluster = cluster.as_ref().map(|cluster| cluster.namespace.clone());
        hook.metadata.namespace =
            Some(of_cluster.or(connection.namespace).unwrap_or_else(|| "default".into()));
    }
    let namespace = hook.namespace().unwrap_or_default();
    let policy = Policy::permissive();
    let rules = Rules::parse(&hook.spec, &namespace, &policy);
    for problem in rules.problems.iter().filter(|problem| !problem.reason.starts_with("Prompt")) {
        eprintln!("warning: {}", problem.message);
    }
    let wanted = |rule: &&Rule| {
        let same = |agent: &str| super::is_agent(&rule.agent.to_string(), agent);
        args.event.is_none_or(|kind| kind == rule.event_type) && args.agent.as_deref().is_none_or(same)
    };
    let candidates: Vec<&Rule> = rules.configurations.iter().filter(wanted).collect();
    let signals = match (&args.from, &cluster) {
        (Some(from), Some(cluster)) => of_cluster(cluster, from, &namespace, &policy).await?,
        _ => candidates.iter().map(|rule| sample(rule.event_type, &namespace)).collect(),
    };
    let fits = |rule: &&&Rule| signals.iter().any(|signal| signal.event_type == rule.event_type);
    let fitting: Vec<&Rule> = candidates.iter().filter(fits).copied().collect();
    let rule = match fitting.as_slice() {
        [rule] => *rule,
        [] => return Err(nothing(&args, &hook, &rules, &signals)),
        several => {
            let ways: Vec<String> = several
                .iter()
                .map(|rule| format!("--event {} --agent {}", rule.event_type, rule.agent))
                .collect();
            let name = hooks::name(&hook);
            return Err(Error::new(format!(
                "Hook {name} would send several messages, choose one of them:\n  {}",
                ways.join("\n  ")
            )));
        }
    };
    let Some(mut signal) = signals.into_iter().find(|signal| signal.event_type == rule.event_type) else {
        return Err(Error::new("there is no such trouble"));
    };
    if signal.is_stale(&policy) {
        let minutes = policy.stale_after.as_secs() / 60;
        eprintln!(
            "note: this happened more than {minutes} minutes ago: khook would call nobody about it any more"
        );
    }
    let at = signal.at();
    signal.observed_at = at;
    let entry = hooks::opened(&hook, rule, &signal, &policy, at);
    let entry = entry.ok_or_else(|| Error::new("this is no trouble that a call would come of"))?;
    for problem in prompt::message_of(&hook, rule, &entry).problems {
        eprintln!("warning: the prompt: {problem}");
    }
    let call = AgentCall::about(&hook, rule, &entry);
    let protocol = rule.direct.as_ref().and_then(|direct| direct.protocol).unwrap_or(Protocol::V03);
    if !args.output.output.print(&a2a::send_request(protocol, call.outgoing()))? {
        print(call.text.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn choose(mut found: Vec<Hook>, name: Option<&str>) -> Result<Hook, Error> {
    let names: Vec<String> = found.iter().map(hooks::name).collect();
    if let Some(name) = name {
        found.retain(|hook| hook.name_any() == name || hooks::name(hook) == name);
    }
    match (found.len(), name) {
        (1, _) => found.pop().ok_or_else(|| Error::new("no Hook")),
        (0, name) => {
            let name = name.unwrap_or_default();
            Err(Error::new(format!("there is no Hook {name}; there are: {}", names.join(", "))))
        }
        _ => {
            Err(Error::new(format!("there are several Hooks, choose one with --hook: {}", names.join(", "))))
        }
    }
}

/// Why no message comes of it.
fn nothing(args: &Args, hook: &Hook, rules: &Rules, signals: &[Signal]) -> Error {
    let name = hooks::name(hook);
    let list = |words: Vec<String>| if words.is_empty() { "nothing".to_owned() } else { words.join(", ") };
    let asked =
        rules.configurations.iter().map(|rule| format!("{} of {}", rule.event_type, rule.agent)).collect();
    let asked = list(asked);
    match &args.from {
        Some(from) => {
            let told = list(signals.iter().map(|signal| signal.event_type.to_string()).collect());
            let what = match from {
                From::Pod(pod) => format!("pod {pod}"),
                From::Event(event) => format!("Event {event}"),
            };
            Error::new(format!("{what} tells of {told}, and Hook {name} asks about {asked}"))
        }
        None => Error::new(format!("Hook {name} does not ask about that; it asks about {asked}")),
    }
}

async fn of_cluster(
    cluster: &Cluster,
    from: &From,
    namespace: &str,
    policy: &Policy,
) -> Result<Vec<Signal>, Error> {
    let now = crate::reconcile::now();
    let past = hooks::past(cluster, namespace).await?;
    match from {
        From::Event(name) => {
            let event = past.events.iter().find(|event| event.name_any() == *name);
            let event = event.ok_or_else(|| {
                Error::new(format!("namespace {namespace} has no Warning {name} about a pod (any more): see kubectl get events"))
            })?;
            Ok(events::signal(event, now).into_iter().collect())
        }
        From::Pod(name) => {
            let pod = pods::fetch(&cluster.client, namespace, name).await;
            let pod = pod.map_err(|error| {
                Error::asked(&format!("the pod {namespace}/{name} cannot be read"), error)
            })?;
            let pod =
                pod.ok_or_else(|| Error::new(format!("there is no pod {name} in namespace {namespace}")))?;
            Ok(of_pod(pod, &past, policy, now))
        }
    }
}

/// What a pod says of itself, as the operator would hear it.
fn of_pod(pod: pods::Pod, past: &Past, policy: &Policy, now: DateTime<Utc>) -> Vec<Signal> {
    let name = (pod.namespace().unwrap_or_default(), pod.name_any());
    let mut index = Index::new(policy.stale_after);
    index.see(pod, now);
    for kill in past.kills.iter().filter(|kill| kill.name == name) {
        index.killed(kill.clone(), now);
    }
    for signal in past.events.iter().filter_map(|event| events::signal(event, now)) {
        if signal.pod == name.1 {
            index.quote(&signal, now);
        }
    }
    let mut signals = index.signals(&name, |_| true, now);
    signals.retain(Signal::is_trouble);
    signals
}

/// Trouble that is made up, the same every time.
fn sample(event_type: EventType, namespace: &str) -> Signal {
    let (cause, reason, message) = match event_type {
        EventType::PodRestart => (
            Cause::Restart,
            "BackOff",
            "Back-off restarting failed container app in pod sample-6d5f7c9b8d-x2x7k",
        ),
        EventType::PodPending => {
            (Cause::Scheduling, "FailedScheduling", "0/3 nodes are available: 3 Insufficient memory.")
        }
        EventType::OomKill => (
            Cause::OomKill,
            "OOMKilled",
            "Container app was killed for using more memory than its limit (exit code 137)",
        ),
        EventType::ProbeFailed => {
            (Cause::Liveness, "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503")
        }
    };
    let at = DateTime::from_timestamp(1_767_323_045, 0).unwrap_or_default();
    Signal {
        event_type,
        cause,
        namespace: namespace.to_owned(),
        pod: "sample-6d5f7c9b8d-x2x7k".into(),
        uid: "00000000-0000-4000-8000-000000000000".into(),
        container: (event_type != EventType::PodPending).then(|| "app".into()),
        event_name: "sample-6d5f7c9b8d-x2x7k.1873a6b2".into(),
        reason: reason.into(),
        message: message.into(),
        observed_at: at,
        nature: Nature::Occurrence(Occurrence { source: "sample".into(), at, count: 3 }),
        test: None,
    }
}
