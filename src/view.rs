//! A view is what people and programs are shown of Hooks: the same for the commands, the page and the JSON API.
//!
//! It is made from Hooks alone, is a pure function of them, and leaves out what only khook needs.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::hook::{ActiveEvent, DayOfCalls, EventType, Hook, Instruction, Mode, Phase, Reason, Verb};
use crate::incident::{
    key::Key,
    outcome::{EndState, Usage},
    policy::Policy,
    prompt,
    rules::Rules,
};

/// One incident of one Hook.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Namespace of the Hook.
    pub namespace: String,
    /// Name of the Hook.
    pub hook: String,
    /// Short and stable: the same for every episode of this trouble. Unique within its Hook.
    pub id: String,
    /// The kind of trouble.
    pub event_type: EventType,
    /// Name of the pod.
    pub pod: String,
    /// Containers the trouble was seen on.
    pub containers: Vec<String>,
    /// The agent asked.
    pub agent: String,
    /// Where it stands.
    pub phase: Phase,
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why, in a sentence.
    pub message: String,
    /// When this episode began.
    pub first_seen: DateTime<Utc>,
    /// When the trouble was last seen.
    pub last_seen: DateTime<Utc>,
    /// How often it was seen.
    pub count: i64,
    /// Which notification of this episode this is, from 1.
    pub window: i32,
    /// Calls begun in this window.
    pub attempts: i32,
    /// Since when its call is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<DateTime<Utc>>,
    /// When the next attempt is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When the agent was first asked in this episode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notified_at: Option<DateTime<Utc>>,
    /// When it was last asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_notified_at: Option<DateTime<Utc>>,
    /// When its task ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<DateTime<Utc>>,
    /// When the incident was resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<DateTime<Utc>>,
    /// The agent's session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Where a person reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_url: Option<String>,
    /// The agent's task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// How the task ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<EndState>,
    /// The beginning of what the agent answered. Not to be trusted: it may quote whatever the agent has read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What went wrong with the newest attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Tokens this episode has cost, where the agent tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Usage>,
    /// Name of the Event, or of the pod, that told of it.
    pub event_name: String,
    /// Its reason.
    pub event_reason: String,
    /// Its message.
    pub event_message: String,
    /// What a person last had khook do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<Instruction>,
    /// The agent would have been asked, but the Hook observes.
    pub observed: bool,
    /// Nothing has happened: a person tries the Hook out.
    pub test: bool,
}

/// The incidents of a Hook, in the order of its status: oldest first.
pub fn incidents(hook: &Hook) -> impl Iterator<Item = Incident> {
    let (namespace, name) = names(hook);
    let entries = hook.status.iter().flat_map(|status| &status.active_events);
    entries.map(move |entry| {
        let mut incident = Incident::of(namespace, name, entry);
        if incident.id.is_empty() {
            // Written by a khook before there were ids.
            incident.id = Key::of(entry).entry_id(hook.metadata.uid.as_deref().unwrap_or_default());
        }
        incident
    })
}

fn names(hook: &Hook) -> (&str, &str) {
    let metadata = &hook.metadata;
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// The message that khook would write about an incident now; none where the Hook does not ask about it any more.
pub fn message(hook: &Hook, id: &str) -> Option<String> {
    let (index, _) = incidents(hook).enumerate().find(|(_, incident)| incident.id == id)?;
    let mut entry = hook.status.as_ref()?.active_events.get(index)?.clone();
    // What was asked, and not what is said when it is over.
    entry.resolved_at = None;
    // Whom the operator lets a Hook ask is not known here, and does not change the words.
    let policy = Policy::permissive();
    let rules = Rules::parse(&hook.spec, names(hook).0, &policy);
    Some(prompt::message_of(hook, rules.of(&entry)?, &entry).text)
}

/// One Hook.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Hook")]
pub struct HookView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The kinds of trouble it listens to.
    pub event_types: Vec<EventType>,
    /// The agents it asks.
    pub agents: Vec<String>,
    /// Whether agents are called, or trouble is only recorded.
    pub mode: Mode,
    /// Whether agents may not be called at present.
    pub suspended: bool,
    /// Whether khook can do what it says; absent where khook has not looked at it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// What somebody must change in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
    /// What is going on, in a sentence.
    pub message: String,
    /// Incidents that wait for their call.
    pub pending: usize,
    /// Incidents whose agent is being called.
    pub firing: usize,
    /// Incidents the agent knows of.
    pub notified: usize,
    /// Incidents that are over and still remembered.
    pub resolved: usize,
    /// Incidents held back because the list is full.
    pub overflow: i32,
    /// What it costs: calls of a day each, by UTC, the newest last.
    pub calls_per_day: Vec<DayOfCalls>,
    /// When an agent was last asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_notified: Option<DateTime<Utc>>,
    /// When khook last wrote its status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<DateTime<Utc>>,
}

impl HookView {
    /// What is shown of a Hook.
    pub fn of(hook: &Hook) -> Self {
        let (namespace, name) = names(hook);
        let status = hook.status.clone().unwrap_or_default();
        let condition = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
        let count = |phase| status.active_events.iter().filter(|entry| entry.status == phase).count();
        let mut event_types: Vec<_> = hook.spec.event_configurations.iter().map(|c| c.event_type).collect();
        event_types.sort();
        event_types.dedup();
        let agents = status.agents.as_deref().unwrap_or_default().split(',');
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            event_types,
            agents: agents.filter(|agent| !agent.is_empty()).map(str::to_owned).collect(),
            mode: hook.spec.mode.unwrap_or(Mode::Active),
            suspended: hook.spec.suspend.unwrap_or(false),
            ready: condition("Ready").map(|ready| ready.status == "True"),
            stalled: condition("Stalled").filter(|s| s.status == "True").map(|s| s.message.clone()),
            pending: count(Phase::Pending),
            firing: count(Phase::Firing),
            notified: count(Phase::Notified),
            resolved: count(Phase::Resolved),
            overflow: status.overflow.unwrap_or(0),
            message: status.message.clone().unwrap_or_default(),
            calls_per_day: status.calls_per_day.clone(),
            last_notified: status.last_notified,
            last_updated: status.last_updated,
        }
    }

    /// The calls of a day.
    pub fn calls_on(&self, day: chrono::NaiveDate) -> i64 {
        self.calls_per_day.iter().filter(|of| of.day == day).map(|of| of.calls).sum()
    }
}

/// One agent, by what the incidents that are still remembered tell of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Agent")]
pub struct AgentView {
    /// `namespace/name`, or the URL of one that is asked directly.
    pub name: String,
    /// Hooks that ask it.
    pub hooks: usize,
    /// Incidents it is yet to be asked about.
    pub waiting: usize,
    /// Incidents it works on: asked, and no end is known.
    pub working: usize,
    /// Tasks it has completed.
    pub completed: usize,
    /// Tasks that ended in any other way.
    pub failed: usize,
    /// Completed tasks of all that have ended, from 0 to 1; absent where none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// Seconds from the question to the end of the task: half of the tasks took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub median_seconds: Option<i64>,
    /// The longest of these times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_seconds: Option<i64>,
    /// Tokens that the remembered incidents have cost, where the agent tells.
    pub tokens: i64,
}

/// The agents that these Hooks ask or that their incidents name, by name.
pub fn agents(hooks: &[HookView], incidents: &[Incident]) -> Vec<AgentView> {
    let mut agents: BTreeMap<&str, (AgentView, Vec<i64>)> = BTreeMap::new();
    for name in hooks.iter().flat_map(|hook| &hook.agents) {
        agents.entry(name).or_default().0.hooks += 1;
    }
    for incident in incidents.iter().filter(|incident| !incident.observed) {
        let (agent, times) = agents.entry(&incident.agent).or_default();
        agent.tokens = agent.tokens.saturating_add(incident.tokens.map_or(0, |tokens| tokens.total));
        match (incident.phase, incident.outcome) {
            (Phase::Pending | Phase::Firing, _) => agent.waiting += 1,
            (_, Some(EndState::Completed)) => agent.completed += 1,
            (_, Some(_)) => agent.failed += 1,
            (Phase::Notified, None) => agent.working += 1,
            (Phase::Resolved, None) => {}
        }
        times.extend(incident.seconds_to_answer());
    }
    let agents = agents.into_iter().filter(|(name, _)| !name.is_empty());
    let agents = agents.map(|(name, (agent, mut times))| {
        times.sort_unstable();
        let ended = agent.completed + agent.failed;
        AgentView {
            name: name.to_owned(),
            success_rate: (ended > 0).then(|| agent.completed as f64 / ended as f64),
            median_seconds: times.get(times.len().saturating_sub(1) / 2).copied(),
            longest_seconds: times.last().copied(),
            ..agent
        }
    });
    agents.collect()
}

/// A span of time as kubectl shows an age: two units at most, `90s`, `5m30s`, `3h`, `2d4h`.
pub fn age(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: char, small: i64, other: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{other}"),
    };
    match (minutes, hours, days) {
        (0..2, _, _) => format!("{seconds}s"),
        (..10, _, _) => two(minutes, 'm', seconds % 60, 's'),
        (..180, _, _) => format!("{minutes}m"),
        (_, ..8, _) => two(hours, 'h', minutes % 60, 'm'),
        (_, ..48, _) => format!("{hours}h"),
        (_, _, ..8) => two(days, 'd', hours % 24, 'h'),
        (_, _, ..730) => format!("{days}d"),
        _ => two(days / 365, 'y', days % 365, 'd'),
    }
}

/// Something that happened to an incident, or is to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// When.
    pub at: DateTime<Utc>,
    /// What, in words.
    pub what: String,
}

impl Incident {
    /// Its name among all incidents.
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.hook, self.id)
    }

    /// From the last question to the end of its task, where both are known.
    pub fn seconds_to_answer(&self) -> Option<i64> {
        let answered = self.answered_at?;
        // Asked again since: what is known of the end is about the question before.
        let asked =
            [self.last_notified_at, self.notified_at].into_iter().flatten().find(|at| *at <= answered)?;
        Some((answered - asked).num_seconds())
    }

    /// What is known of its time, in order.
    pub fn timeline(&self) -> Vec<Moment> {
        let mut moments = Vec::new();
        let mut add = |at: Option<DateTime<Utc>>, what: String| {
            moments.extend(at.map(|at| Moment { at, what }));
        };
        add(Some(self.first_seen), "first seen".into());
        if self.last_seen > self.first_seen {
            add(Some(self.last_seen), format!("last seen, {} times in all", self.count));
        }
        add(self.due_at, if self.window > 1 { "due again".into() } else { "due".into() });
        add(
            self.notified_at,
            if self.observed { "would have been asked".into() } else { "agent asked".into() },
        );
        if self.last_notified_at != self.notified_at {
            add(self.last_notified_at, format!("asked again, notification {}", self.window));
        }
        let outcome =
            self.outcome.map_or_else(|| "answered".into(), |outcome| format!("answered: {outcome}"));
        add(self.answered_at, outcome);
        if let Some(instruction) = &self.instruction {
            let by = match instruction.by.as_str() {
                "" => "somebody",
                by => by,
            };
            let said = match (instruction.verb, instruction.until) {
                (Verb::Snooze, Some(until)) => format!("snooze until {} by {by}", until.format("%F %T UTC")),
                (verb, _) => format!("{verb} by {by}"),
            };
            add(Some(instruction.at), said);
        }
        add(self.resolved_at, "resolved".into());
        if matches!(self.phase, Phase::Pending | Phase::Firing) {
            add(self.next_attempt_at, "next attempt".into());
        }
        // Stable: what is of the same time stays in the order of an episode.
        moments.sort_by_key(|moment| moment.at);
        moments
    }
}

impl Incident {
    /// What is shown of an entry of a Hook.
    pub fn of(namespace: &str, hook: &str, entry: &ActiveEvent) -> Self {
        let entry = entry.clone();
        Self {
            namespace: namespace.to_owned(),
            hook: hook.to_owned(),
            id: entry.id,
            event_type: entry.event_type,
            pod: entry.resource_name,
            containers: entry.containers,
            agent: entry.agent,
            phase: entry.status,
            reason: entry.reason,
            message: entry.message,
            first_seen: entry.first_seen,
            last_seen: entry.last_seen,
            count: entry.count,
            window: entry.window,
            attempts: entry.attempts,
            due_at: entry.due_at,
            next_attempt_at: entry.next_attempt_at,
            notified_at: entry.notified_at,
            last_notified_at: entry.last_notified_at,
            answered_at: entry.answered_at,
            resolved_at: entry.resolved_at,
            session_id: entry.session_id,
            session_url: entry.session_url,
            task_id: entry.task_id,
            outcome: entry.outcome,
            answer: entry.answer,
            last_error: entry.last_error,
            tokens: entry.tokens,
            event_name: entry.event_name,
            event_reason: entry.event_reason,
            event_message: entry.event_message,
            instruction: entry.instruction,
            observed: entry.observed,
            test: entry.test.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hook(mode: &str, entries: Value) -> Hook {
        let mut hook = json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook",
            "metadata": {"name": "h", "namespace": "shop", "uid": "u"},
            "spec": {"mode": mode, "eventConfigurations": [
                {"eventType": "oom-kill", "agentId": "kagent/a", "prompt": "Look at {{.ResourceName}}"},
                {"eventType": "oom-kill", "agent": {"url": "https://a.example.com/x"}, "prompt": "Look"},
            ]},
        });
        hook["status"] = json!({
            "activeEvents": entries, "agents": "https://a.example.com/x,kagent/a", "overflow": 3,
            "callsPerDay": [{"day": "2026-01-01", "calls": 4}, {"day": "2026-01-02", "calls": 5}],
            "conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Stalled", "status": "True", "message": "mend it", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ],
        });
        serde_json::from_value(hook).unwrap()
    }

    /// Asked at 00:01, and answered so many seconds later.
    fn entry(pod: &str, phase: &str, outcome: Option<&str>, seconds: i64) -> Value {
        let asked: DateTime<Utc> = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut entry = json!({
            "id": pod, "eventType": "oom-kill", "resourceName": pod, "namespace": "shop", "agent": "kagent/a",
            "status": phase, "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z", "count": 2,
            "notifiedAt": asked, "lastNotifiedAt": asked, "window": 1, "tokens": {"total": 10},
        });
        if let Some(outcome) = outcome {
            entry["outcome"] = json!(outcome);
            entry["answeredAt"] = json!(asked + TimeDelta::seconds(seconds));
        }
        entry
    }

    fn agents_of(hook: &Hook) -> Vec<AgentView> {
        agents(&[HookView::of(hook)], &incidents(hook).collect::<Vec<_>>())
    }

    #[test]
    fn an_agent_is_known_by_its_ends_and_times() {
        let hook = hook(
            "Active",
            json!([
                entry("a", "notified", Some("Completed"), 10),
                entry("b", "resolved", Some("Completed"), 30),
                entry("c", "resolved", Some("Failed"), 20),
                entry("d", "notified", None, 0),
                entry("e", "pending", None, 0),
                entry("f", "resolved", None, 0),
            ]),
        );
        let found = agents_of(&hook);
        assert_eq!(
            found.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(),
            ["https://a.example.com/x", "kagent/a"]
        );
        let expected = AgentView {
            name: "kagent/a".into(),
            hooks: 1,
            waiting: 1,
            working: 1,
            completed: 2,
            failed: 1,
            success_rate: Some(2.0 / 3.0),
            median_seconds: Some(20),
            longest_seconds: Some(30),
            tokens: 60,
        };
        assert_eq!(found[1], expected);
        assert_eq!((found[0].success_rate, found[0].median_seconds), (None, None));
    }

    #[test]
    fn what_is_only_observed_says_nothing_of_an_agent() {
        let mut seen = entry("a", "notified", None, 0);
        seen["observed"] = json!(true);
        let hook = hook("Observe", json!([seen]));
        assert!(incidents(&hook).all(|incident| incident.observed));
        assert_eq!(agents_of(&hook)[1].working, 0);
    }

    #[test]
    fn the_time_to_an_answer_is_from_the_question_it_answers() {
        let mut again = entry("a", "notified", Some("Completed"), 30);
        // Asked again a minute after, and not answered yet.
        again["lastNotifiedAt"] = json!("2026-01-01T00:02:00Z");
        let hook = hook("Active", json!([again]));
        let incident = incidents(&hook).next().unwrap();
        assert_eq!(incident.seconds_to_answer(), Some(30));
        let what: Vec<String> = incident.timeline().into_iter().map(|moment| moment.what).collect();
        assert_eq!(what, ["first seen", "agent asked", "answered: Completed", "asked again, notification 1"]);
    }

    #[test]
    fn the_timeline_names_who_said_what() {
        let mut snoozed = entry("a", "pending", None, 0);
        snoozed["nextAttemptAt"] = json!("2026-01-01T05:00:00Z");
        snoozed["lastSeen"] = json!("2026-01-01T00:04:00Z");
        snoozed["instruction"] = json!({"verb": "snooze", "by": "dana", "at": "2026-01-01T00:03:00Z", "until": "2026-01-01T05:00:00Z"});
        let hook = hook("Active", json!([snoozed]));
        let moments = incidents(&hook).next().unwrap().timeline();
        let what: Vec<&str> = moments.iter().map(|moment| moment.what.as_str()).collect();
        let expected = [
            "first seen",
            "agent asked",
            "snooze until 2026-01-01 05:00:00 UTC by dana",
            "last seen, 2 times in all",
            "next attempt",
        ];
        assert_eq!(what, expected);
    }

    #[test]
    fn a_hook_shows_what_it_costs_and_what_is_wrong_with_it() {
        let view = HookView::of(&hook(
            "Observe",
            json!([entry("a", "firing", None, 0), entry("b", "resolved", None, 0)]),
        ));
        assert_eq!((view.firing, view.resolved, view.pending, view.overflow), (1, 1, 0, 3));
        assert_eq!(
            (view.ready, view.stalled.as_deref(), view.mode),
            (Some(false), Some("mend it"), Mode::Observe)
        );
        assert_eq!(view.event_types, [EventType::OomKill]);
        let day = |text: &str| view.calls_on(text.parse().unwrap());
        assert_eq!((day("2026-01-02"), day("2026-01-03")), (5, 0));
    }

    #[test]
    fn the_message_is_the_one_that_was_asked_also_when_it_is_over() {
        let mut over = entry("web-0", "resolved", Some("Completed"), 1);
        over["resolvedAt"] = json!("2026-01-01T00:09:00Z");
        over["reason"] = json!("Recovered");
        let mut direct = entry("web-1", "notified", None, 0);
        direct["agent"] = json!("https://a.example.com/x");
        let mut other = entry("web-2", "notified", None, 0);
        other["agent"] = json!("kagent/unknown");
        let mut old = entry("web-3", "pending", None, 0);
        old["id"] = json!("");
        let hook = hook("Active", json!([over, direct, other, old]));
        assert!(message(&hook, "web-0").unwrap().starts_with("Look at web-0"));
        assert!(message(&hook, "web-1").unwrap().starts_with("Look\n"));
        assert_eq!(message(&hook, "web-2"), None);
        let id = incidents(&hook).nth(3).unwrap().id;
        assert_eq!(id.len(), 10, "one without an id is given the one it would have");
        assert!(message(&hook, &id).is_some());
    }

    #[test]
    fn an_age_has_two_units_at_most() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3_600, "60m"),
            (3 * 3_600 + 60, "3h1m"),
            (49 * 3_600, "2d1h"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(age(TimeDelta::seconds(seconds)), text);
        }
    }
}
