//! `khook explain` says why khook did or did not call an agent about a pod.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use serde::Serialize;

use super::{
    Error,
    cluster::{Cluster, Connection, POD, named},
    installation::{self, Held, Installation, Search},
    output::{Output, line, paint, print, style, table, time},
};
use crate::{
    explain::{Explanation, Finding, Held as Rule, Inputs, Stopped, explain},
    source::{Scope, pods},
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod: pod/NAME or NAME
    pod: String,
    #[command(flatten)]
    output: Output,
}

/// All that is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    #[serde(flatten)]
    explanation: Explanation,
    /// How it stands with khook itself.
    operator: String,
    /// What could not be looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<String>,
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let name = named(&args.pod, POD)?;
    let cluster = connection.connect().await?;
    let hooks = cluster.list_hooks(false).await?;
    let pod = pods::fetch(&cluster.client, &cluster.namespace, name).await;
    let pod = pod.map_err(|error| cluster.refused("get", "pods", false, error))?;
    let mut unknown = Vec::new();
    let events = match events(&cluster, name).await {
        Ok(events) => events,
        Err(error) => {
            unknown.push(format!("its Events: {error}"));
            Vec::new()
        }
    };
    // The times in the cluster are the cluster's.
    let now = cluster.clock().await.map_or_else(|_| Utc::now(), |(now, _)| now);
    let search = installation::search(&cluster, None).await?;
    let Operator { sentence, stopped } = operator(&cluster, &search, now).await;
    let policy = search.policy(&mut unknown);
    let explanation = explain(&Inputs {
        namespace: &cluster.namespace,
        name,
        pod: pod.as_ref(),
        events: &events,
        hooks: &hooks,
        policy: &policy,
        stopped: stopped.as_ref(),
        now,
    });
    let told = Told { explanation, operator: sentence, unknown };
    if !args.output.output.print(&told)? {
        print(&text(&told))?;
    }
    match told.explanation.findings.iter().all(|finding| finding.rule == Rule::Unknown) {
        true => Ok(ExitCode::FAILURE),
        false => Ok(ExitCode::SUCCESS),
    }
}

async fn events(cluster: &Cluster, pod: &str) -> Result<Vec<Event>, Error> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let of_pod = ListParams::default().fields(&format!("regarding.kind=Pod,regarding.name={pod}"));
    let list = api.list(&of_pod).await;
    Ok(list.map_err(|error| cluster.refused("list", "events", false, error))?.items)
}

struct Operator {
    sentence: String,
    stopped: Option<Stopped>,
}

/// How it stands with khook, and whether that is why nothing happens.
async fn operator(cluster: &Cluster, search: &Search, now: DateTime<Utc>) -> Operator {
    let namespace = &cluster.namespace;
    let found = match search {
        Search::Found(found) => found,
        // Not everybody installs with the chart: that it is not found says little.
        Search::Missing => {
            let sentence = format!(
                "no Deployment labelled {} was found: whether khook runs is not known",
                installation::LABEL
            );
            return Operator { sentence, stopped: None };
        }
        Search::Forbidden(why) => {
            let sentence = format!("you may not list deployments: whether khook runs is not known ({why})");
            return Operator { sentence, stopped: None };
        }
    };
    let watches = |found: &&Installation| {
        found.settings.scopes().iter().any(|scope| match scope {
            Scope::Everywhere => true,
            Scope::Namespace(watched) => watched == namespace,
        })
    };
    let Some(found) = found.iter().find(watches) else {
        let names: Vec<String> = found.iter().map(Installation::name).collect();
        let why = format!("{} does not watch namespace {namespace}", names.join(", "));
        let fix = format!("add {namespace} to its setting WATCH_NAMESPACES (watchNamespaces of the chart)");
        let stopped = Some(Stopped { rule: Rule::NotWatched, why: why.clone(), fix });
        return Operator { sentence: why, stopped };
    };
    match found.lease(&cluster.client, now).await {
        Held::By(sentence) => Operator { sentence: format!("{}: {sentence}", found.name()), stopped: None },
        Held::NotUsed => {
            Operator { sentence: format!("{} works without a Lease", found.name()), stopped: None }
        }
        Held::Unknown(why) => Operator { sentence: format!("{}: {why}", found.name()), stopped: None },
        Held::Nobody(why) => {
            let why = format!("khook does not work: {why}");
            let fix = "khook doctor says what keeps it from working".to_owned();
            let stopped = Some(Stopped { rule: Rule::NotRunning, why: why.clone(), fix });
            Operator { sentence: format!("{}: {why}", found.name()), stopped }
        }
    }
}

fn text(told: &Told) -> String {
    let Told { explanation, operator, unknown } = told;
    let Explanation { namespace, pod, exists, state, signals, hooks, findings } = explanation;
    let mut text = format!("pod {namespace}/{pod}");
    if !exists {
        text.push_str(" is not there");
    }
    for state in state {
        text.push_str(&format!("\n  {}", line(state, 200)));
    }
    text.push_str("\n\nWhy\n");
    let lines: Vec<String> = findings.iter().map(finding).collect();
    text.push_str(&lines.join("\n"));
    text.push_str("\n\nWhat khook hears of the pod\n");
    if signals.is_empty() {
        text.push_str("  no trouble");
    } else {
        let rows: Vec<[String; 5]> = signals
            .iter()
            .map(|signal| {
                [
                    format!("  {}", signal.event_type),
                    format!("{}{}", signal.nature, if signal.stale { " (stale)" } else { "" }),
                    time(signal.at),
                    line(signal.container.as_deref().unwrap_or_default(), 63),
                    line(&format!("{} {}", signal.reason, signal.message), 100),
                ]
            })
            .collect();
        text.push_str(&table(&["  TYPE", "IT", "AT", "CONTAINER", "WORDS"], &rows));
    }
    text.push_str(&format!("\n\nHooks of namespace {namespace}\n"));
    if hooks.is_empty() {
        text.push_str("  none");
    }
    for (number, hook) in hooks.iter().enumerate() {
        let listens: Vec<String> = hook
            .listens
            .iter()
            .map(|(kind, agents)| format!("{kind} ({})", line(&agents.join(", "), 200)))
            .collect();
        let listens = if listens.is_empty() { "nothing".to_owned() } else { listens.join(", ") };
        let marks = [(hook.suspended, ", suspended"), (hook.observes, ", observes only")];
        let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        let end = if number == 0 { "" } else { "\n" };
        text.push_str(&format!("{end}  {}{marks}: listens to {listens}", hook.name));
        for problem in &hook.problems {
            text.push_str(&format!("\n    ! {}", line(problem, 300)));
        }
    }
    text.push_str(&format!("\n\nkhook\n  {}", line(operator, 500)));
    for unknown in unknown {
        text.push_str(&format!("\n  not looked at: {}", line(unknown, 300)));
    }
    text
}

fn finding(finding: &Finding) -> String {
    let mut place = Vec::new();
    place.extend(finding.hook.as_ref().map(|hook| format!("hook/{hook}")));
    place.extend(finding.event_type.map(|kind| kind.to_string()));
    place.extend(finding.agent.as_ref().map(|agent| format!("asks {}", line(agent, 200))));
    if let Some(incident) = &finding.incident {
        let phase = finding.phase.map(|phase| paint(phase.as_str(), style(phase))).unwrap_or_default();
        let reason = finding.reason.map(|reason| format!(" {reason}")).unwrap_or_default();
        place.push(format!("incident {} {phase}{reason}", line(incident, 40)));
    }
    let place = if place.is_empty() { String::new() } else { format!("{}\n    ", place.join(", ")) };
    let until = finding.until.map(|until| format!(" (until {})", time(until))).unwrap_or_default();
    let fix = finding.fix.as_ref().map(|fix| format!("\n    → {}", line(fix, 300))).unwrap_or_default();
    format!("  {place}{:?}: {}{until}{fix}", finding.rule, line(&finding.why, 500))
}
