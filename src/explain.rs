//! An explanation says why khook did or did not call an agent about a pod.
//!
//! It is a plain function of what the cluster has: the pod, its Events, the Hooks of its namespace, and time. The
//! rules are the operator's own: [`source`](crate::source) says what the pod tells,
//! [`plan`](crate::incident::plan) what would come of it. Nothing is decided here a second time.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::events::v1::Event;
use kube::{ResourceExt as _, runtime::watcher};
use serde::Serialize;

use crate::{
    hook::{ActiveEvent, EventType, Hook, HookStatus, Mode, Phase, Reason, StandingState, Verb},
    incident::{
        lifecycle::{self, Scene},
        plan::{self, Capacity, Claims, Inputs as PlanInputs, Plan},
        policy::Policy,
        prompt::rfc3339,
        rules::{Rule, Rules, Severity},
        signal::{Nature, Signal},
    },
    source::{
        diagnosis::PATIENCE,
        events,
        index::{Index, Worth, has_happened},
        pods::{ContainerStatus, Pod},
    },
    view::age,
};

/// All an explanation is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub name: &'a str,
    /// The pod; none if it is gone.
    pub pod: Option<&'a Pod>,
    /// The Events about it.
    pub events: &'a [Event],
    /// The Hooks of its namespace.
    pub hooks: &'a [Hook],
    /// The operator's spans and bounds.
    pub policy: &'a Policy,
    /// Why nothing happens in this namespace at all, as far as that can be seen.
    pub stopped: Option<&'a Stopped>,
    /// The time.
    pub now: DateTime<Utc>,
}

/// Why khook does nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopped {
    /// Not running, or not watching there.
    pub rule: Held,
    /// A sentence.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// Why khook did or did not call an agent about a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Whether it is there.
    pub exists: bool,
    /// How it is, a line each.
    pub state: Vec<String>,
    /// What khook hears of it, whoever listens.
    pub signals: Vec<Heard>,
    /// The Hooks of its namespace.
    pub hooks: Vec<Listener>,
    /// What came, or comes, of it; the most telling first.
    pub findings: Vec<Finding>,
}

/// A signal, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// The kind of trouble.
    pub event_type: EventType,
    /// happened, holds, clear, gone or unclear.
    pub nature: &'static str,
    /// When, or since when.
    pub at: DateTime<Utc>,
    /// The container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The cluster's word.
    pub reason: String,
    /// The cluster's sentence.
    pub message: String,
    /// It happened too long ago to be told.
    pub stale: bool,
}

/// A Hook, as far as it matters for the pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// What it listens to, and whom it asks about it.
    pub listens: BTreeMap<EventType, Vec<String>>,
    /// No agent is called at present.
    pub suspended: bool,
    /// It only observes.
    pub observes: bool,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// What came, or comes, of the trouble of a pod, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The rule that decided it.
    pub rule: Held,
    /// The Hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The kind of trouble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<EventType>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The incident.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why, in one word of the status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// A sentence.
    pub why: String,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// What a person can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Held {
    /// The agent is being asked.
    Firing,
    /// The agent was asked.
    Asked,
    /// The Hook only observes: it would have been asked.
    Observed,
    /// An incident waits; its reason says what for.
    Waiting,
    /// Nothing holds it back.
    Due,
    /// khook does not run.
    NotRunning,
    /// khook does not watch that namespace.
    NotWatched,
    /// The agent may not be asked, or the configuration cannot be used.
    Refused,
    /// The Hook's list of incidents is full.
    Overflow,
    /// The trouble has not lasted long enough for an incident.
    TooYoung,
    /// It was over when khook first saw it, or is old news.
    Stale,
    /// No Hook of the namespace listens to that.
    NotListened,
    /// There is no Hook in the namespace.
    NoHook,
    /// A Job tries again by itself.
    JobRetry,
    /// The pod is being deleted.
    BeingDeleted,
    /// The incident is over.
    Resolved,
    /// Nothing is wrong.
    NothingWrong,
    /// Neither pod nor Event nor incident has that name.
    Unknown,
}

/// What holds an incident up, or what it stands for.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// A sentence.
    pub why: String,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// What an incident waits for, and until when.
pub fn standing(
    entry: &ActiveEvent,
    rule: Option<&Rule>,
    suspended: bool,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Standing {
    let scene = Scene { now, policy, rule, hook_uid: "", suspended, observes: false };
    let says =
        |why: String, until: Option<DateTime<Utc>>| Standing { why, until: until.filter(|at| *at > now) };
    let told = entry.message.clone();
    let by = || match &entry.instruction {
        Some(told) if !told.by.is_empty() => format!(" by {}", told.by),
        _ => String::new(),
    };
    // What a person wants counts for what was asked about as well, whose reason stays that it was.
    if matches!(entry.status, Phase::Pending | Phase::Notified)
        && entry.reason != Some(Reason::Suspended)
        && let Some(instruction) = &entry.instruction
    {
        match instruction.verb {
            Verb::Snooze if instruction.until.is_some_and(|until| now < until) => {
                return says(format!("snoozed{}: nobody is asked", by()), instruction.until);
            }
            Verb::Ack => {
                return says(format!("acknowledged{}: nobody else is asked about this episode", by()), None);
            }
            Verb::Retry | Verb::Snooze | Verb::Resolve => {}
        }
    }
    match (entry.status, entry.reason) {
        (Phase::Pending, Some(Reason::CircuitOpen | Reason::AgentNotReady | Reason::WaitingForSlot)) => {
            says(told, entry.next_attempt_at)
        }
        (Phase::Pending, _) => says(told, entry.next_attempt_at.or(lifecycle::wake(entry, &scene))),
        (Phase::Firing, Some(Reason::CheckingSession)) => says(told, entry.next_attempt_at),
        (Phase::Firing, _) => {
            let end = entry.claim.as_ref().map(|claim| claim.at + claim.duration());
            says(format!("{told}; its outcome is known at the latest"), end)
        }
        (Phase::Notified, _) => {
            let end = lifecycle::window_end(entry, &scene);
            let then = match entry.owed {
                true => "the trouble came back: the agent is asked again if it still holds",
                false => "not asked again before",
            };
            match end > now {
                true => says(format!("{told}; {then}"), Some(end)),
                false => says(format!("{told}; asked again if it happens again"), None),
            }
        }
        (Phase::Resolved, _) => {
            let until = entry.resolved_at.map(|at| at + policy.retention);
            says(format!("{told}; remembered as the same episode"), until)
        }
    }
}

/// Makes the explanation.
pub fn explain(inputs: &Inputs) -> Explanation {
    let index = Ears::new(inputs);
    let all = index.signals(|_| true, &[]);
    let mut findings = Vec::new();
    let mut hooks = Vec::new();
    for hook in inputs.hooks {
        let rules = Rules::parse(&hook.spec, inputs.namespace, inputs.policy);
        findings.extend(of_hook(inputs, &index, hook, &rules));
        hooks.push(listener(hook, &rules));
    }
    findings.extend(of_nobody(inputs, &index, &all));
    let acts =
        |finding: &Finding| matches!(finding.rule, Held::Due | Held::Waiting | Held::TooYoung | Held::Firing);
    if let Some(stopped) = inputs.stopped
        && (findings.is_empty() || findings.iter().any(acts))
    {
        let Stopped { rule, why, fix } = stopped.clone();
        // What khook would do it does not do.
        findings.retain(|finding| finding.rule != Held::Due);
        findings.push(Finding { fix: Some(fix), ..Finding::new(rule, why) });
    }
    if findings.is_empty() {
        findings.push(nothing(inputs, &all));
    }
    findings.sort_by_key(|finding| finding.rule);
    Explanation {
        namespace: inputs.namespace.to_owned(),
        pod: inputs.name.to_owned(),
        exists: inputs.pod.is_some(),
        state: inputs.pod.map(|pod| state(pod, inputs.now)).unwrap_or_default(),
        signals: all.iter().map(|signal| heard(signal, inputs.policy)).collect(),
        hooks,
        findings,
    }
}

impl Finding {
    fn new(rule: Held, why: impl Into<String>) -> Self {
        Self {
            rule,
            hook: None,
            event_type: None,
            agent: None,
            incident: None,
            phase: None,
            reason: None,
            why: why.into(),
            until: None,
            fix: None,
        }
    }

    fn about(hook: &Hook, event_type: EventType, rule: Held, why: impl Into<String>) -> Self {
        Self { hook: Some(hook.name_any()), event_type: Some(event_type), ..Self::new(rule, why) }
    }
}

/// What the operator's own index makes of the pod and its Events.
struct Ears<'a> {
    inputs: &'a Inputs<'a>,
    index: Index,
    /// What only Events tell.
    told: Vec<Signal>,
    /// Old news about a pod that is gone: what merely was so.
    over: Vec<Signal>,
}

impl<'a> Ears<'a> {
    fn new(inputs: &'a Inputs<'a>) -> Self {
        // What is old is heard too, so that it can be told why it raises nothing.
        let mut index = Index::new(inputs.policy.stale_after.max(LONG_AGO));
        // As if the pod had been seen some time ago: what can be told by now is told.
        let before = inputs.now - PATIENCE - PATIENCE;
        index.observe(watcher::Event::Init, before);
        if let Some(pod) = inputs.pod {
            index.observe(watcher::Event::InitApply(pod.clone()), before);
        }
        index.observe(watcher::Event::InitDone, before);
        let mut signals: Vec<Signal> = Vec::new();
        for event in inputs.events {
            if let Some(kill) = events::kill(event) {
                index.killed(kill, inputs.now);
            }
            signals.extend(events::signal(event, inputs.now));
        }
        signals.retain(|signal| signal.namespace == inputs.namespace && signal.pod == inputs.name);
        signals.sort_by_key(Signal::at);
        let (mut told, mut over) = (Vec::new(), Vec::new());
        for signal in signals {
            match index.worth(&signal) {
                Worth::Words => drop(index.quote(&signal, inputs.now)),
                Worth::Everything if has_happened(&signal) => told.push(signal),
                Worth::Everything => over.push(signal),
                Worth::Nothing => {}
            }
        }
        Self { inputs, index, told, over }
    }

    /// What a Hook that listens to some kinds of trouble, and has these incidents of the pod, hears.
    fn signals(&self, listens: impl Fn(EventType) -> bool + Copy, entries: &[ActiveEvent]) -> Vec<Signal> {
        let Inputs { namespace, now, .. } = *self.inputs;
        let told = self.told.iter().filter(|signal| listens(signal.event_type)).cloned();
        self.index.compare(namespace, entries, listens, now).into_iter().chain(told).collect()
    }
}

const LONG_AGO: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// What comes of the pod's trouble under one Hook.
fn of_hook(inputs: &Inputs, ears: &Ears, hook: &Hook, rules: &Rules) -> Vec<Finding> {
    let Inputs { namespace, name, policy, now, .. } = *inputs;
    let unknown = HookStatus::default();
    let status = hook.status.as_ref().unwrap_or(&unknown);
    let entries: Vec<ActiveEvent> =
        status.active_events.iter().filter(|entry| entry.resource_name == name).cloned().collect();
    let listens = |kind: EventType| rules.listens_to(kind) || entries.iter().any(|e| e.event_type == kind);
    let signals = ears.signals(listens, &entries);
    let plan = plan_of(inputs, hook, rules, status, &signals);
    let mut findings = Vec::new();
    for entry in &entries {
        findings.push(of_entry(inputs, hook, rules, entry, &plan));
    }
    for rule in &rules.configurations {
        let key = rule.key_of(namespace, name);
        if entries.iter().any(|entry| key.is_of(entry)) {
            continue;
        }
        let of_rule =
            |(_, signal): &(usize, &Signal)| signal.event_type == rule.event_type && signal.is_trouble();
        let trouble: Vec<(usize, &Signal)> = signals.iter().enumerate().filter(of_rule).collect();
        if trouble.is_empty() {
            continue;
        }
        let scene = rules.scene(Some(rule), policy, "", now);
        let opened = plan.status.active_events.iter().find(|entry| key.is_of(entry));
        let mut finding = if let Some(entry) = opened {
            opens(hook, rules, rule, entry, &scene)
        } else if trouble.iter().any(|(index, _)| plan.held_back.contains(index)) {
            let why = format!(
                "the Hook's list of incidents is full ({} of {}): this one waits for a place, the oldest first",
                status.active_events.len(),
                policy.max_entries
            );
            let fix = "mend what the others have in common, or raise the operator's setting MAX_ENTRIES";
            Finding { fix: Some(fix.into()), ..Finding::about(hook, rule.event_type, Held::Overflow, why) }
        } else if let Some((signal, until)) =
            trouble.iter().find_map(|(_, signal)| Some((*signal, lifecycle::young_until(signal, &scene)?)))
        {
            too_young(hook, rule, signal, until, &scene)
        } else {
            let newest = trouble.iter().map(|(_, signal)| signal.at()).max().unwrap_or(now);
            let why = format!(
                "it happened at {}, {} before now: what is older than {} when khook first hears of it raises nothing",
                rfc3339(newest),
                age(now - newest),
                age(TimeDelta::from_std(policy.stale_after).unwrap_or_default())
            );
            Finding::about(hook, rule.event_type, Held::Stale, why)
        };
        finding.agent = Some(rule.agent.to_string());
        findings.push(finding);
    }
    findings.extend(refused(inputs, ears, hook, rules));
    findings
}

/// What would come of the signals if khook heard them now, with agents that are well.
fn plan_of(inputs: &Inputs, hook: &Hook, rules: &Rules, status: &HookStatus, signals: &[Signal]) -> Plan {
    let capacity = Capacity::boundless(rules);
    let (none, nothing) = (BTreeSet::new(), BTreeMap::new());
    plan::plan(&PlanInputs {
        hook_uid: hook.metadata.uid.as_deref().unwrap_or_default(),
        namespace: inputs.namespace,
        generation: hook.metadata.generation,
        rules,
        status,
        signals,
        outcomes: &[],
        instructions: &[],
        capacity: &capacity,
        claims: Claims { process: "explain", next: 1, begun: &none, busy: &none, unmoved: &nothing },
        policy: inputs.policy,
        now: inputs.now,
    })
}

fn of_entry(inputs: &Inputs, hook: &Hook, rules: &Rules, entry: &ActiveEvent, plan: &Plan) -> Finding {
    let Standing { mut why, until } =
        standing(entry, rules.of(entry), rules.suspended, inputs.policy, inputs.now);
    let rule = match (entry.status, entry.reason) {
        (Phase::Firing, _) => Held::Firing,
        (Phase::Notified, Some(Reason::Observed)) => Held::Observed,
        (Phase::Notified, _) => Held::Asked,
        (Phase::Pending, _) => Held::Waiting,
        (Phase::Resolved, _) => Held::Resolved,
    };
    let next =
        plan.status.active_events.iter().find(|other| other.id == entry.id && other.agent == entry.agent);
    let next = next.map(|next| next.status);
    match (entry.status, next) {
        (Phase::Notified | Phase::Resolved, Some(Phase::Pending | Phase::Firing)) => {
            why.push_str("; the trouble is there again, and the agent is about to be asked about it");
        }
        (Phase::Pending | Phase::Notified, Some(Phase::Resolved)) => {
            why.push_str("; it is over, and about to be resolved");
        }
        _ => {}
    }
    if let Some(error) = entry.last_error.as_ref().filter(|_| entry.status != Phase::Resolved) {
        why.push_str(&format!("; the last attempt: {error}"));
    }
    Finding {
        agent: Some(entry.agent.clone()),
        incident: Some(entry.id.clone()),
        phase: Some(entry.status),
        reason: entry.reason,
        until,
        fix: fix(hook, entry),
        ..Finding::about(hook, entry.event_type, rule, why)
    }
}

/// What a person can do about an incident that stands there.
fn fix(hook: &Hook, entry: &ActiveEvent) -> Option<String> {
    let name = hook.name_any();
    let id = &entry.id;
    Some(match entry.reason? {
        Reason::Suspended => "set spec.suspend to false".into(),
        Reason::Acknowledged | Reason::Snoozed => format!("khook retry {name} {id} has the agent asked now"),
        Reason::CircuitOpen | Reason::BackingOff | Reason::AgentCallFailed => {
            format!("see whether {} is well: khook doctor", entry.agent)
        }
        Reason::AgentNotReady => {
            format!("khook describe {name} has the condition Stalled, which says what is missing")
        }
        _ => return None,
    })
}

fn opens(hook: &Hook, rules: &Rules, rule: &Rule, entry: &ActiveEvent, scene: &Scene) -> Finding {
    let observes = hook.spec.mode == Some(Mode::Observe);
    let what = if observes {
        "khook is about to record it, and to call nobody: the Hook observes"
    } else {
        "khook is about to record it"
    };
    if entry.status == Phase::Pending {
        let Standing { why, until } = standing(entry, Some(rule), rules.suspended, scene.policy, scene.now);
        return Finding {
            until,
            ..Finding::about(hook, rule.event_type, Held::Due, format!("{what}: {why}"))
        };
    }
    let then = if observes { "" } else { " and to ask the agent" };
    Finding::about(hook, rule.event_type, Held::Due, format!("nothing holds it back: {what}{then}"))
}

fn too_young(hook: &Hook, rule: &Rule, signal: &Signal, until: DateTime<Utc>, scene: &Scene) -> Finding {
    let hold = rule.hold.unwrap_or_else(|| signal.cause.default_hold(scene.policy));
    let lasted = scene.now - signal.at();
    let whose = if rule.hold.is_some() { "the Hook's `for`" } else { "the default" };
    let why = format!(
        "it has lasted for {}, and must last for {} ({whose}) before the agent is called, at {}; before {} it is not even an incident",
        age(lasted),
        age(TimeDelta::from_std(hold).unwrap_or_default()),
        rfc3339(signal.at() + hold),
        rfc3339(until),
    );
    let fix = "a shorter `for` of this configuration has the agent called sooner".to_owned();
    Finding {
        until: Some(signal.at() + hold),
        fix: Some(fix),
        ..Finding::about(hook, rule.event_type, Held::TooYoung, why)
    }
}

/// Configurations that would listen, but cannot be used.
fn refused(inputs: &Inputs, ears: &Ears, hook: &Hook, rules: &Rules) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, configuration) in hook.spec.event_configurations.iter().enumerate() {
        let kind = configuration.event_type;
        let spec =
            crate::hook::HookSpec { event_configurations: vec![configuration.clone()], ..hook.spec.clone() };
        let alone = Rules::parse(&spec, inputs.namespace, inputs.policy);
        if !alone.configurations.is_empty() {
            continue;
        }
        let trouble = ears.signals(|other| other == kind, &[]).iter().any(Signal::is_trouble);
        if !trouble {
            continue;
        }
        let place = format!("spec.eventConfigurations[{index}]");
        let problem = rules.problems.iter().find(|problem| {
            problem.severity == Severity::Error
                && problem.message.strip_prefix(&place).is_some_and(|rest| rest.starts_with([' ', '.']))
        });
        let why =
            problem.map_or_else(|| format!("{place} cannot be used"), |problem| problem.message.clone());
        findings.push(Finding::about(hook, kind, Held::Refused, why));
    }
    findings
}

/// Trouble that nobody listens to.
fn of_nobody(inputs: &Inputs, ears: &Ears, all: &[Signal]) -> Vec<Finding> {
    let listened: BTreeSet<EventType> = inputs
        .hooks
        .iter()
        .flat_map(|hook| &hook.spec.event_configurations)
        .map(|configuration| configuration.event_type)
        .collect();
    let heard: Vec<Signal> =
        ears.signals(|kind| listened.contains(&kind), &[]).into_iter().filter(Signal::is_trouble).collect();
    let stale = |signal: &&Signal| signal.is_stale(inputs.policy);
    let mut findings = Vec::new();
    let kinds: BTreeSet<EventType> =
        all.iter().filter(|signal| signal.is_trouble()).map(|signal| signal.event_type).collect();
    for kind in &kinds {
        let mut of_kind: Vec<&Signal> =
            all.iter().filter(|s| s.event_type == *kind && s.is_trouble()).collect();
        // An end that is of no kind anybody listens to may still count as another.
        of_kind.retain(|signal| !heard.iter().any(|other| other.container == signal.container));
        if listened.contains(kind) || of_kind.is_empty() {
            continue;
        }
        let old = of_kind.iter().all(&stale);
        let mut finding = if inputs.hooks.is_empty() {
            let why =
                format!("there is no Hook in namespace {}: nobody listens to its pods", inputs.namespace);
            Finding::new(Held::NoHook, why)
        } else if old {
            Finding::new(Held::Stale, "it happened long ago, and no Hook of this namespace listens to it")
        } else {
            Finding::new(Held::NotListened, format!("no Hook of this namespace listens to {kind}"))
        };
        finding.event_type = Some(*kind);
        finding.fix = Some(format!(
            "a Hook in namespace {} with eventType: {kind} has an agent asked",
            inputs.namespace
        ));
        findings.push(finding);
    }
    if let Some(pod) = inputs.pod {
        if let Some(at) = pod.deleted_at() {
            let why = format!(
                "somebody has deleted the pod, it is to be gone by {}: what happens on its way raises nothing",
                rfc3339(at)
            );
            findings.push(Finding::new(Held::BeingDeleted, why));
        } else if pod.is_of_job()
            && kinds.is_empty()
            && pod
                .containers()
                .any(|(_, _, status)| status.newest_end().is_some_and(|(end, _)| end.exit_code != 0))
        {
            let why = "it is a Job's: a container that failed and is started again is the Job's own retry, which raises nothing";
            findings.push(Finding::new(Held::JobRetry, why));
        }
    } else if !ears.over.is_empty() && findings.is_empty() {
        let newest = ears.over.iter().map(Signal::at).max().unwrap_or(inputs.now);
        let why = format!(
            "the pod is gone; its Events tell of trouble until {}, which merely was so and is over with the pod",
            rfc3339(newest)
        );
        findings.push(Finding::new(Held::NothingWrong, why));
    }
    findings
}

/// Where nothing else is to be said.
fn nothing(inputs: &Inputs, all: &[Signal]) -> Finding {
    if inputs.pod.is_none() && inputs.events.is_empty() {
        let why = format!(
            "there is no pod {} in namespace {}, and neither an Event nor an incident knows of one",
            inputs.name, inputs.namespace
        );
        return Finding::new(Held::Unknown, why);
    }
    if inputs.pod.is_none() {
        return Finding::new(Held::NothingWrong, "the pod is gone, and no Event tells of trouble it had");
    }
    if inputs.hooks.is_empty() {
        let why =
            format!("nothing is wrong with it; besides, there is no Hook in namespace {}", inputs.namespace);
        return Finding::new(Held::NothingWrong, why);
    }
    let unclear = all.iter().any(|signal| matches!(signal.nature, Nature::Unclear));
    let why = match unclear {
        true => "nothing can be told of it: its containers have ended, and none has been started again",
        false => "nothing is wrong with it: no container has ended badly, none waits in vain, no probe fails",
    };
    Finding::new(Held::NothingWrong, why)
}

fn listener(hook: &Hook, rules: &Rules) -> Listener {
    let mut listens: BTreeMap<EventType, Vec<String>> = BTreeMap::new();
    for rule in &rules.configurations {
        listens.entry(rule.event_type).or_default().push(rule.agent.to_string());
    }
    let stalled = hook.status.iter().flat_map(|status| &status.conditions);
    let stalled = stalled.filter(|condition| condition.type_ == "Stalled" && condition.status == "True");
    let errors = rules.problems.iter().filter(|problem| problem.severity == Severity::Error);
    let mut problems: Vec<String> = errors.map(|problem| problem.message.clone()).collect();
    if problems.is_empty() {
        // The operator may know more: Secrets, its own bounds.
        problems.extend(stalled.map(|condition| condition.message.clone()));
    }
    Listener {
        name: hook.name_any(),
        listens,
        suspended: rules.suspended,
        observes: hook.spec.mode == Some(Mode::Observe),
        problems,
    }
}

fn heard(signal: &Signal, policy: &Policy) -> Heard {
    Heard {
        event_type: signal.event_type,
        nature: match &signal.nature {
            Nature::Occurrence(_) => "happened",
            Nature::Unclear => "unclear",
            Nature::Condition { state: StandingState::Holds, .. } => "holds",
            Nature::Condition { state: StandingState::Clear, .. } => "clear",
            Nature::Condition { state: StandingState::Gone, .. } => "gone",
        },
        at: signal.at(),
        container: signal.container.clone(),
        reason: signal.reason.clone(),
        message: signal.message.clone(),
        stale: signal.is_stale(policy),
    }
}

/// How a pod is, a line for it and for each container.
fn state(pod: &Pod, now: DateTime<Utc>) -> Vec<String> {
    let ready = match pod.condition("Ready") {
        Some(ready) if ready.status == "True" => ", ready",
        Some(_) => ", not ready",
        None => "",
    };
    let mut lines = vec![format!("{}{ready}", pod.status.phase.as_deref().unwrap_or("of no phase yet"))];
    if let Some(at) = pod.deleted_at() {
        lines.push(format!("being deleted, gone by {}", rfc3339(at)));
    }
    if let Some(condition) = pod.condition("PodScheduled").filter(|condition| condition.status == "False") {
        lines.push(format!(
            "not scheduled: {} {}",
            condition.reason.as_deref().unwrap_or_default(),
            condition.message.as_deref().unwrap_or_default()
        ));
    }
    lines.extend(pod.containers().map(|(_, _, status)| container(status, now)));
    lines
}

fn container(status: &ContainerStatus, now: DateTime<Utc>) -> String {
    let mut line = format!("container {}: ", status.name);
    let state = &status.state;
    line.push_str(&match (&state.running, &state.terminated, status.waits_for()) {
        (Some(running), _, _) => {
            let since = running.started_at.map(|at| format!(" for {}", age(now - at))).unwrap_or_default();
            format!("runs{since}, {}", if status.ready { "ready" } else { "not ready" })
        }
        (_, Some(ended), _) => {
            format!(
                "ended, {} (exit code {})",
                ended.reason.as_deref().unwrap_or("for no reason given"),
                ended.exit_code
            )
        }
        (_, _, "") => "waits".into(),
        (_, _, reason) => format!("waits, {reason}"),
    });
    if status.restart_count > 0 {
        line.push_str(&format!(", restarted {} times", status.restart_count));
    }
    if let Some(last) = &status.last_state.terminated {
        let ago = last.finished_at.map(|at| format!(" {} ago", age(now - at))).unwrap_or_default();
        let why = last.reason.as_deref().unwrap_or("for no reason given");
        line.push_str(&format!(", last ended {why} (exit code {}){ago}", last.exit_code));
    }
    line
}

#[cfg(test)]
mod tests;
