//! `khook describe` shows all that is known of a Hook and its incidents.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Error,
    cluster::{Cluster, Connection},
    installation,
    output::{Output, age, block, line, paint, print, style, table, time},
    status::instruction,
};
use crate::{
    explain::{Standing, standing},
    hook::{Condition, DayOfCalls, EventType, Hook, Mode},
    incident::{policy::Policy, rules::Rules},
    view,
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The Hook: NAME or hook/NAME
    hook: String,
    #[command(flatten)]
    output: Output,
}

/// All that is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    namespace: String,
    name: String,
    created: Option<DateTime<Utc>>,
    mode: Mode,
    suspended: bool,
    message: Option<String>,
    conditions: Vec<Condition>,
    configurations: Vec<Configuration>,
    problems: Vec<String>,
    calls_per_day: Vec<DayOfCalls>,
    overflow: i32,
    incidents: Vec<Incident>,
    events: Vec<Told>,
    /// What could not be looked at, or is assumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<String>,
}

/// One kind of trouble and one agent, as khook goes by it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    event_type: EventType,
    agent: String,
    /// None: by the cause of the trouble.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    hold: Option<String>,
    repeat_interval: String,
    resolve_timeout: String,
    notify_resolved: bool,
    prompt: String,
}

/// An incident, and what it waits for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Incident {
    #[serde(flatten)]
    incident: view::Incident,
    stands: Standing,
}

/// What an Event about the Hook says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    at: DateTime<Utc>,
    #[serde(rename = "type")]
    type_: String,
    reason: String,
    message: String,
    count: i32,
}

/// More Events than these are not shown.
const EVENTS: usize = 15;

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let cluster = connection.connect().await?;
    let hook = cluster.hook(&args.hook).await?;
    let mut unknown = Vec::new();
    let search = installation::search(&cluster, None).await?;
    let policy = search.policy(&mut unknown);
    let events = match events(&cluster, &hook).await {
        Ok(events) => events,
        Err(error) => {
            unknown.push(format!("Events: {error}"));
            Vec::new()
        }
    };
    let now = cluster.clock().await.map_or_else(|_| Utc::now(), |(now, _)| now);
    let description = describe(&hook, &policy, events, unknown, now);
    if !args.output.output.print(&description)? {
        print(&text(&description, now))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn events(cluster: &Cluster, hook: &Hook) -> Result<Vec<Told>, Error> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let fields = format!("regarding.kind=Hook,regarding.name={}", hook.name_any());
    let list = api.list(&ListParams::default().fields(&fields)).await;
    let list = list.map_err(|error| cluster.refused("list", "events", false, error))?;
    let mut events: Vec<Told> = list.items.iter().filter_map(told).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    events.truncate(EVENTS);
    Ok(events)
}

fn told(event: &Event) -> Option<Told> {
    let at = crate::source::events::last_seen(event)?;
    let series = event.series.as_ref().map(|series| series.count);
    Some(Told {
        at,
        type_: event.type_.clone().unwrap_or_default(),
        reason: event.reason.clone().unwrap_or_default(),
        message: event.note.clone().unwrap_or_default(),
        count: series.or(event.deprecated_count).unwrap_or(1),
    })
}

fn describe(
    hook: &Hook,
    policy: &Policy,
    events: Vec<Told>,
    unknown: Vec<String>,
    now: DateTime<Utc>,
) -> Description {
    let namespace = hook.namespace().unwrap_or_default();
    let rules = Rules::parse(&hook.spec, &namespace, policy);
    let span = |span: std::time::Duration| humane(span);
    let configurations = rules.configurations.iter().map(|rule| Configuration {
        event_type: rule.event_type,
        agent: rule.agent.to_string(),
        hold: rule.hold.map(span),
        repeat_interval: span(rule.repeat_interval),
        resolve_timeout: span(rule.resolve_timeout),
        notify_resolved: rule.notify_resolved,
        prompt: rule.prompt.clone(),
    });
    let status = hook.status.clone().unwrap_or_default();
    let incidents = status.active_events.iter().map(|entry| Incident {
        incident: view::Incident::of(&namespace, &hook.name_any(), entry),
        stands: standing(entry, rules.of(entry), rules.suspended, policy, now),
    });
    Description {
        name: hook.name_any(),
        created: hook
            .metadata
            .creation_timestamp
            .as_ref()
            .and_then(|at| DateTime::from_timestamp_millis(at.0.as_millisecond())),
        mode: hook.spec.mode.unwrap_or(Mode::Active),
        suspended: rules.suspended,
        configurations: configurations.collect(),
        problems: rules.problems.iter().map(|problem| problem.message.clone()).collect(),
        incidents: incidents.collect(),
        message: status.message.clone(),
        calls_per_day: status.calls_per_day.clone(),
        overflow: status.overflow.unwrap_or_default(),
        conditions: status.conditions,
        events,
        unknown,
        namespace,
    }
}

/// A span as a Hook writes it.
fn humane(span: std::time::Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    if millis > 0 || seconds == 0 {
        return if millis > 0 { format!("{}ms", span.as_millis()) } else { "0s".into() };
    }
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect()
}

fn text(description: &Description, now: DateTime<Utc>) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{:<12} {value}", format!("{name}:")));
        }
    };
    field("Name", description.name.clone());
    field("Namespace", description.namespace.clone());
    field("Age", description.created.map(|at| age(now - at)).unwrap_or_default());
    let mode = if description.mode == Mode::Observe { "Observe: nobody is called" } else { "Active" };
    field(
        "Mode",
        if description.suspended { format!("{mode}, suspended: nobody is called") } else { mode.into() },
    );
    field("Message", line(description.message.as_deref().unwrap_or("khook has not seen this Hook"), 300));
    if description.overflow > 0 {
        field("Held back", format!("{} incidents, the list is full", description.overflow));
    }
    let days: Vec<String> =
        description.calls_per_day.iter().map(|day| format!("{} on {}", day.calls, day.day)).collect();
    field("Calls", if days.is_empty() { "none in 7 days".into() } else { days.join(", ") });
    let mut text = lines.join("\n");
    text.push_str("\n\nConditions\n");
    let conditions: Vec<[String; 5]> = description
        .conditions
        .iter()
        .map(|condition| {
            [
                format!("  {}", line(&condition.type_, 40)),
                line(&condition.status, 10),
                line(&condition.reason, 40),
                age(now - condition.last_transition_time),
                line(&condition.message, 200),
            ]
        })
        .collect();
    text.push_str(&or_none(&["  TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], &conditions));
    text.push_str("\n\nConfigurations\n");
    let configurations: Vec<[String; 6]> = description
        .configurations
        .iter()
        .map(|one| {
            [
                format!("  {}", one.event_type),
                line(&one.agent, 120),
                one.hold.clone().unwrap_or_else(|| "by cause".into()),
                one.repeat_interval.clone(),
                one.resolve_timeout.clone(),
                if one.notify_resolved { "yes".into() } else { "no".into() },
            ]
        })
        .collect();
    let head = ["  TYPE", "AGENT", "FOR", "REPEAT", "RESOLVE", "NOTIFY RESOLVED"];
    text.push_str(&or_none(&head, &configurations));
    for problem in &description.problems {
        text.push_str(&format!("\n  ! {}", line(problem, 300)));
    }
    text.push_str("\n\nIncidents");
    if description.incidents.is_empty() {
        text.push_str("\n  none");
    }
    // The newest first, as everywhere else.
    for incident in description.incidents.iter().rev() {
        text.push_str("\n\n");
        text.push_str(&one(incident, now));
    }
    text.push_str("\n\nEvents, the newest first\n");
    let events: Vec<[String; 5]> = description
        .events
        .iter()
        .map(|event| {
            [
                format!("  {}", age(now - event.at)),
                line(&event.type_, 10),
                line(&event.reason, 40),
                event.count.to_string(),
                line(&event.message, 160),
            ]
        })
        .collect();
    text.push_str(&or_none(&["  AGE", "TYPE", "REASON", "COUNT", "MESSAGE"], &events));
    for unknown in &description.unknown {
        text.push_str(&format!("\n\nNot looked at: {}", line(unknown, 300)));
    }
    text
}

fn or_none<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() { "  none".into() } else { table(head, rows) }
}

fn one(Incident { incident, stands }: &Incident, now: DateTime<Utc>) -> String {
    let mut lines = Vec::new();
    let reason = incident.reason.map(|reason| format!(" {reason}")).unwrap_or_default();
    let test = if incident.test { " (test)" } else { "" };
    lines.push(format!(
        "  {} {}{test} on {}: {}{reason}",
        line(&incident.id, 40),
        incident.event_type,
        line(&incident.pod, 253),
        paint(incident.phase.as_str(), style(incident.phase))
    ));
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("    {:<12} {value}", format!("{name}:")));
        }
    };
    field("Why", line(&stands.why, 500));
    field("Until", stands.until.map(time).unwrap_or_default());
    field("Agent", line(&incident.agent, 300));
    field("Containers", line(&incident.containers.join(", "), 300));
    field("Trouble", line(&format!("{} {}", incident.event_reason, incident.event_message), 400));
    field(
        "Count",
        format!("{}, notification {}, {} calls", incident.count, incident.window, incident.attempts),
    );
    field(
        "Instruction",
        incident.instruction.as_ref().map(|told| instruction(told, now)).unwrap_or_default(),
    );
    let session = incident
        .session_url
        .as_ref()
        .or(incident.session_id.as_ref().filter(|_| incident.notified_at.is_some()));
    field("Session", session.map(|session| line(session, 400)).unwrap_or_default());
    field("Last error", incident.last_error.as_ref().map(|error| line(error, 500)).unwrap_or_default());
    field("Outcome", incident.outcome.map(|end| end.to_string()).unwrap_or_default());
    if let Some(tokens) = incident.tokens {
        field(
            "Tokens",
            format!("{} read, {} written, {} in all", tokens.prompt, tokens.answer, tokens.total),
        );
    }
    lines.push("    Timeline:".into());
    for (at, what) in timeline(incident) {
        lines.push(format!("      {} {what}", time(at)));
    }
    if let Some(answer) = &incident.answer {
        lines.push("    Answer, not to be trusted:".into());
        lines.push(block(answer, "      "));
    }
    lines.join("\n")
}

/// What is known to have happened, in order.
fn timeline(incident: &view::Incident) -> Vec<(DateTime<Utc>, String)> {
    let told = incident.instruction.as_ref();
    let moments = [
        (Some(incident.first_seen), "first seen"),
        // One that is over is not due any more.
        (incident.due_at.filter(|at| incident.resolved_at.is_none_or(|end| *at <= end)), "call due"),
        (incident.notified_at, "agent first asked"),
        (incident.last_notified_at.filter(|at| incident.notified_at != Some(*at)), "agent last asked"),
        (incident.answered_at, "agent answered"),
        (Some(incident.last_seen).filter(|at| *at != incident.first_seen), "last seen"),
        (incident.resolved_at, "resolved"),
    ];
    let mut moments: Vec<(DateTime<Utc>, String)> =
        moments.into_iter().filter_map(|(at, what)| Some((at?, what.to_owned()))).collect();
    moments.extend(told.map(|told| {
        let by = if told.by.is_empty() { String::new() } else { format!(" by {}", line(&told.by, 60)) };
        (told.at, format!("{}{by}", told.verb))
    }));
    moments.sort_by_key(|(at, _)| *at);
    moments
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn a_span_is_written_as_a_hook_writes_it() {
        for (millis, text) in [(0, "0s"), (200, "200ms"), (90_000, "1m30s"), (3_600_000, "1h"), (4_000, "4s")]
        {
            assert_eq!(super::humane(Duration::from_millis(millis)), text);
        }
    }
}
