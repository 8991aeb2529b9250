//! A summary is what a person reads of a status: counts, the last trouble, conditions, one sentence.
//!
//! Printer columns can neither count nor join a list, so all of it stands in scalars.

use std::collections::BTreeSet;

use super::{
    breaker::Allow,
    plan::Inputs,
    rules::{Problem, Severity},
};
use crate::hook::{ActiveEvent, Condition, HookStatus, Phase, Reason};

/// Fills in everything of a status but its entries. `overflow` is the number of incidents held back.
pub fn fill(status: &mut HookStatus, inputs: &Inputs, overflow: usize) {
    let old = inputs.status;
    let entries = &status.active_events;
    let count = |phase: Phase| number(entries.iter().filter(|entry| entry.status == phase).count());
    let (pending, firing, notified) = (count(Phase::Pending), count(Phase::Firing), count(Phase::Notified));
    let resolved = count(Phase::Resolved);
    let active = pending + firing + notified;
    let newest = entries.iter().max_by_key(|entry| entry.last_seen);
    let last_event = newest.map(|entry| entry.event_type.to_string()).or_else(|| old.last_event.clone());
    let last_resource = newest.map(|entry| entry.resource_name.clone()).or_else(|| old.last_resource.clone());
    let last_notified =
        entries.iter().filter_map(|entry| entry.last_notified_at).max().max(old.last_notified);
    let configurations = &inputs.rules.configurations;
    let agents: BTreeSet<String> = configurations.iter().map(|rule| rule.agent.to_string()).collect();
    let types: BTreeSet<&str> = configurations.iter().map(|rule| rule.event_type.as_str()).collect();

    let conditions = conditions(entries, inputs, active, overflow);
    status.message = Some(message(entries, inputs, overflow));
    status.conditions = conditions;
    status.active = Some(active);
    status.pending = Some(pending);
    status.firing = Some(firing);
    status.notified = Some(notified);
    status.resolved = Some(resolved);
    status.overflow = (overflow > 0).then(|| number(overflow));
    status.agents = Some(join(agents));
    status.event_types = Some(join(types));
    status.last_event = last_event;
    status.last_resource = last_resource;
    status.last_notified = last_notified;
    status.observed_generation = inputs.generation;
    status.last_updated = if same(old, status) { old.last_updated } else { Some(inputs.now) };
}

const OBSERVES: &str = "watching, and calling nobody: spec.mode is Observe";

/// Whether two statuses say the same, whenever they were written.
pub fn same(a: &HookStatus, b: &HookStatus) -> bool {
    // Entries first: where they differ, nothing is copied.
    a.active_events == b.active_events && comparable(a) == comparable(b)
}

/// A status without what changes with every write.
pub fn comparable(status: &HookStatus) -> HookStatus {
    HookStatus { last_updated: None, ..status.clone() }
}

fn message(entries: &[ActiveEvent], inputs: &Inputs, overflow: usize) -> String {
    if let Some(problem) = errors(inputs).next() {
        return problem.message.clone();
    }
    if inputs.rules.suspended {
        return "suspended: trouble is recorded, nobody is called".into();
    }
    let told = |entry: &ActiveEvent| {
        let more = if overflow > 0 { format!(" ({overflow} more held back)") } else { String::new() };
        format!("{} on {}: {}{more}", entry.event_type, entry.resource_name, entry.message)
    };
    let newest = |wanted: &dyn Fn(&&ActiveEvent) -> bool| {
        entries.iter().filter(wanted).max_by_key(|entry| entry.last_seen).map(told)
    };
    newest(&|entry| is_refused(entry))
        .or_else(|| newest(&|entry| entry.status != Phase::Resolved))
        .or_else(|| newest(&|_| true))
        .unwrap_or_else(|| if inputs.rules.observes { OBSERVES } else { "watching" }.into())
}

fn conditions(entries: &[ActiveEvent], inputs: &Inputs, active: i32, overflow: usize) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let mut add = |type_: &str, status: &str, reason: &str, message: String| {
        let old = inputs.status.conditions.iter().find(|old| old.type_ == type_);
        let unchanged = old.filter(|old| old.status == status).map(|old| old.last_transition_time);
        conditions.push(Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            last_transition_time: unchanged.unwrap_or(inputs.now),
            observed_generation: inputs.generation,
        });
    };

    // The Hook itself: neither an incident nor an agent that is away makes it unready.
    match errors(inputs).next() {
        Some(problem) => {
            let warnings =
                inputs.rules.problems.iter().filter(|problem| problem.severity == Severity::Warning);
            let all: Vec<&str> =
                errors(inputs).chain(warnings).map(|problem| problem.message.as_str()).collect();
            let message = super::lifecycle::excerpt_of(&all.join("; "), 1024);
            add("Ready", "False", problem.reason, message.clone());
            // kstatus: Stalled means that somebody must change the spec; it is there only then.
            add("Stalled", "True", problem.reason, message);
        }
        None if inputs.rules.suspended => add("Ready", "True", "Suspended", "no agent is called".into()),
        None => {
            let (reason, listening) =
                if inputs.rules.observes { ("Observing", OBSERVES) } else { ("Listening", "listening") };
            let mut message = String::from(listening);
            for problem in &inputs.rules.problems {
                message.push_str("; ");
                message.push_str(&problem.message);
            }
            add("Ready", "True", reason, super::lifecycle::excerpt_of(&message, 1024));
        }
    }

    // Who waits for the breaker without having tried knows no error.
    let refused = entries.iter().filter(|entry| is_refused(entry));
    let refused = refused.max_by_key(|entry| (entry.last_error.is_some(), entry.last_seen));
    let open = inputs.rules.configurations.iter().find(|rule| {
        let capacity = inputs.capacity.agents.get(&rule.agent);
        // What is missing is the Hook's matter, and Stalled.
        capacity.is_some_and(|agent| !matches!(agent.allow, Allow::All | Allow::NotReady))
    });
    let known = inputs.status.conditions.iter().find(|old| old.type_ == "AgentReachable");
    let last_call = entries.iter().filter_map(|entry| entry.last_notified_at).max();
    match (refused, open, known) {
        (Some(entry), _, _) => {
            let reason = match entry.reason {
                Some(reason @ (Reason::CircuitOpen | Reason::AgentCallFailed | Reason::CheckingSession)) => {
                    reason
                }
                _ => Reason::BackingOff,
            };
            let error = entry.last_error.as_deref().unwrap_or("fails in a row");
            add("AgentReachable", "False", &reason.to_string(), format!("{}: {error}", entry.agent));
        }
        (None, Some(rule), _) => {
            add("AgentReachable", "False", "CircuitOpen", format!("{}: fails in a row", rule.agent));
        }
        // What was refused is over, and no call since then says that the agent is back.
        (None, None, Some(old))
            if old.status != "True" && last_call.is_none_or(|at| at < old.last_transition_time) =>
        {
            let (reason, message) = match old.status.as_str() {
                "False" => ("NotCalledSince", "the last call failed, and none has been made since"),
                _ => (old.reason.as_str(), old.message.as_str()),
            };
            add("AgentReachable", "Unknown", reason, message.into());
        }
        (None, None, Some(_)) => {
            add("AgentReachable", "True", "Answered", "the last call reached its agent".into());
        }
        (None, None, None) if last_call.is_some() => {
            add("AgentReachable", "True", "Answered", "the last call reached its agent".into());
        }
        (None, None, None) => {
            add("AgentReachable", "Unknown", "NotCalledYet", "no agent has been called yet".into());
        }
    }

    let (status, reason) = if active > 0 { ("True", "Active") } else { ("False", "None") };
    add("IncidentsActive", status, reason, format!("{active} active"));
    if overflow > 0 {
        let message = format!("{overflow} incidents do not fit and wait until others are over");
        add("Overflow", "True", "ListFull", message);
    }
    conditions
}

fn errors<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a Problem> {
    inputs.rules.problems.iter().filter(|problem| problem.severity == Severity::Error)
}

// An attempt failed, or none may be made; a further attempt under way says nothing yet.
fn is_refused(entry: &ActiveEvent) -> bool {
    match entry.status {
        Phase::Pending => entry.last_error.is_some() || entry.reason == Some(Reason::CircuitOpen),
        Phase::Firing => entry.last_error.is_some(),
        Phase::Notified | Phase::Resolved => false,
    }
}

fn join<T: AsRef<str>>(words: BTreeSet<T>) -> String {
    words.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",")
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
