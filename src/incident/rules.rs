//! Rules are a Hook's spec as the state machine uses it: parsed once, with what is wrong in it told apart.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use reqwest::Url;

use super::{
    key::Key,
    lifecycle::Scene,
    outcome::{AgentName, Credential, DirectAgent, SecretKey},
    policy::Policy,
    prompt,
    signal::Signal,
};
use crate::hook::{
    ActiveEvent, AgentEndpoint, AgentRef, EventConfiguration, EventType, HookSpec, Mode, SecretRef,
    is_for_credentials, parse_duration,
};

/// A spec, parsed. Nothing in a spec makes this fail: what cannot be used is left out or replaced by its
/// default, and told in `problems`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// One per kind of trouble and agent.
    pub configurations: Vec<Rule>,
    /// What the author of the Hook should mend, in the order of the spec.
    pub problems: Vec<Problem>,
    /// Whether agents may not be called at present.
    pub suspended: bool,
    /// Whether calls are only recorded, and none is made.
    pub observes: bool,
}

/// One kind of trouble, the agent to ask, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The kind of trouble.
    pub event_type: EventType,
    /// The agent to ask.
    pub agent: AgentName,
    /// How it is asked, where it is not one of kagent's.
    pub direct: Option<Arc<DirectAgent>>,
    /// The prompt, as written.
    pub prompt: String,
    /// How long trouble must last, where the Hook says so.
    pub hold: Option<Duration>,
    /// At most one call per incident within this time.
    pub repeat_interval: Duration,
    /// Quiet time after which an incident resolves.
    pub resolve_timeout: Duration,
    /// Whether the agent is told when an incident is resolved.
    pub notify_resolved: bool,
}

/// Something in a spec that only the controller can see.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Whether it is the author's error (`Stalled`), or merely worth knowing.
    pub severity: Severity,
    /// One word for the condition.
    pub reason: &'static str,
    /// Where it stands and what to do.
    pub message: String,
}

impl Problem {
    /// The field it is about, with which its message begins.
    pub fn place(&self) -> &str {
        self.message.split([' ', ':']).next().unwrap_or_default()
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Part of the Hook does not do what was written.
    Error,
    /// The Hook works.
    Warning,
}

const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl Rules {
    /// Parses the spec of a Hook in `namespace`.
    pub fn parse(spec: &HookSpec, namespace: &str, policy: &Policy) -> Self {
        let (suspended, observes) = (spec.suspend.unwrap_or(false), spec.mode == Some(Mode::Observe));
        let mut rules = Self { suspended, observes, ..Self::default() };
        for (index, configuration) in spec.event_configurations.iter().enumerate() {
            let place = format!("spec.eventConfigurations[{index}]");
            match rules.parse_one(configuration, &place, namespace, policy) {
                Ok(rule) => rules.configurations.push(rule),
                Err(problem) => rules.problems.push(problem),
            }
        }
        rules
    }

    fn parse_one(
        &mut self,
        configuration: &EventConfiguration,
        place: &str,
        namespace: &str,
        policy: &Policy,
    ) -> Result<Rule, Problem> {
        let (agent, direct) = agent_of(configuration, place, namespace, policy)?;
        let event_type = configuration.event_type;
        if self.configurations.iter().any(|rule| rule.event_type == event_type && rule.agent == agent) {
            return Err(Problem {
                severity: Severity::Error,
                reason: "DuplicateConfiguration",
                message: format!(
                    "{place} asks {agent} about {event_type}, which an earlier one does already: \
                     the first is used, remove one of the two"
                ),
            });
        }
        self.check_prompt(&configuration.prompt, place);
        let mut duration = |field: &str, text: &Option<String>, shortest: Duration, default| {
            let Some(text) = text else { return default };
            match parse_duration(text) {
                // The schema has these bounds too; a Hook stored before they were there is used within them.
                Ok(duration) => Some(duration.clamp(shortest, LONGEST)),
                Err(form) => {
                    self.problems.push(Problem {
                        severity: Severity::Error,
                        reason: "DurationInvalid",
                        message: format!(
                            "{place}.{field} is {text:?}, which is not {form}; the default is used"
                        ),
                    });
                    default
                }
            }
        };
        let hold = duration("for", &configuration.hold, Duration::ZERO, None);
        let (repeat, resolve) = (Some(policy.repeat_interval), Some(policy.resolve_timeout));
        let repeat = duration("repeatInterval", &configuration.repeat_interval, SHORTEST, repeat);
        let resolve = duration("resolveTimeout", &configuration.resolve_timeout, SHORTEST, resolve);
        Ok(Rule {
            event_type,
            agent,
            direct,
            prompt: configuration.prompt.clone(),
            hold,
            repeat_interval: repeat.unwrap_or(policy.repeat_interval),
            resolve_timeout: resolve.unwrap_or(policy.resolve_timeout),
            notify_resolved: configuration.notify_resolved.unwrap_or(false),
        })
    }

    fn check_prompt(&mut self, text: &str, place: &str) {
        let (severity, reason, messages) = match prompt::check(text) {
            Ok(problems) => {
                let messages: Vec<String> = problems.iter().map(ToString::to_string).collect();
                (Severity::Warning, "PromptUnclear", messages)
            }
            Err(error) => (Severity::Error, "PromptInvalid", vec![error.to_string()]),
        };
        for message in messages {
            self.problems.push(Problem { severity, reason, message: format!("{place}.prompt: {message}") });
        }
    }

    /// What a step of an incident under one of these rules, or under none any more, looks at.
    pub fn scene<'a>(
        &self,
        rule: Option<&'a Rule>,
        policy: &'a Policy,
        hook_uid: &'a str,
        now: DateTime<Utc>,
    ) -> Scene<'a> {
        Scene { now, policy, rule, hook_uid, suspended: self.suspended, observes: self.observes }
    }

    /// The rule an entry was made by; none if the spec does not ask that agent about that any more.
    pub fn of(&self, entry: &ActiveEvent) -> Option<&Rule> {
        self.configurations
            .iter()
            .find(|rule| rule.event_type == entry.event_type && rule.agent.is(&entry.agent))
    }

    /// Whether anything here listens to that kind of trouble.
    pub fn listens_to(&self, event_type: EventType) -> bool {
        self.listening_to(event_type).next().is_some()
    }

    /// The rules about that kind of trouble, one for each agent.
    pub fn listening_to(&self, event_type: EventType) -> impl Iterator<Item = &Rule> {
        self.configurations.iter().filter(move |rule| rule.event_type == event_type)
    }
}

impl Rule {
    /// The key of what a signal tells of, under this rule.
    pub fn key(&self, signal: &Signal) -> Key {
        Key { test: signal.test.clone(), ..self.key_of(&signal.namespace, &signal.pod) }
    }

    /// The key of trouble on a pod, under this rule.
    pub fn key_of(&self, namespace: &str, pod: &str) -> Key {
        Key {
            event_type: self.event_type,
            agent: self.agent.to_string(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            test: None,
        }
    }
}

/// Who a configuration asks, and how where it is not one of kagent's.
fn agent_of(
    configuration: &EventConfiguration,
    place: &str,
    namespace: &str,
    policy: &Policy,
) -> Result<(AgentName, Option<Arc<DirectAgent>>), Problem> {
    let error = |reason, message| Problem { severity: Severity::Error, reason, message };
    let (own, name) = match (&configuration.agent_ref, &configuration.agent_id, &configuration.agent) {
        (Some(AgentRef { name, namespace }), None, None) => (namespace.as_deref(), name.as_str()),
        (None, Some(id), None) => match id.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, id.as_str()),
        },
        (None, None, Some(endpoint)) => {
            let url = |why| format!("{place}.agent.url {why}");
            let direct =
                direct_agent(endpoint, namespace).map_err(|why| error("AgentUrlInvalid", url(why)))?;
            let allowed = policy.direct_agents.allows(&direct.url);
            allowed.map_err(|why| error("AgentUrlNotAllowed", url(why)))?;
            return Ok((direct.name(), Some(Arc::new(direct))));
        }
        _ => (None, ""),
    };
    if name.is_empty() {
        let message = format!("{place} names no agent: set exactly one of agentRef, agentId and agent");
        return Err(error("AgentInvalid", message));
    }
    let of = own.filter(|own| !own.is_empty()).unwrap_or(namespace);
    // The schema knows names only; a Hook stored before it might name what a pattern of the operator's allows.
    if name.contains('/') || of.contains('/') {
        let message = format!("{place} names the agent {of}/{name}, but a name has no / in it");
        return Err(error("AgentInvalid", message));
    }
    if !policy.allowed_agents.allows(namespace, of, name) {
        let message = format!(
            "{place} names the agent {of}/{name}, which Hooks of namespace {namespace} may not have asked: \
             the operator's setting ALLOWED_AGENTS says which they may"
        );
        return Err(error("AgentNotAllowed", message));
    }
    Ok((AgentName::kagent(of, name), None))
}

// The schema has these rules too; a Hook stored before they were there is told of them here.
fn direct_agent(endpoint: &AgentEndpoint, namespace: &str) -> Result<DirectAgent, String> {
    let url = Url::parse(&endpoint.url).map_err(|error| format!("cannot be read: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("must begin with http:// or https:// and name a host".into());
    }
    let bare = url.query().is_none() && url.fragment().is_none();
    if !bare || !url.username().is_empty() || url.password().is_some() {
        // Its text is in no error: it may have a password in it.
        return Err("must be without user, query and fragment: give the credential as auth.secretRef".into());
    }
    if let Some(header) = endpoint.auth.as_ref().and_then(|auth| auth.header.as_ref())
        && !is_for_credentials(header)
    {
        return Err(format!("cannot be asked: auth.header is {header:?}, which is none for credentials"));
    }
    let secret = |secret: &SecretRef, key: &str| SecretKey {
        name: secret.name.clone(),
        key: secret.key.clone().unwrap_or_else(|| key.to_owned()),
    };
    Ok(DirectAgent {
        namespace: namespace.to_owned(),
        url,
        auth: endpoint.auth.as_ref().map(|auth| Credential {
            secret: secret(&auth.secret_ref, "token"),
            header: auth.header.clone(),
        }),
        ca: endpoint.ca.as_ref().map(|ca| secret(&ca.secret_ref, "ca.crt")),
        protocol: endpoint.protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(event_type: EventType, agent: &str) -> EventConfiguration {
        EventConfiguration {
            event_type,
            agent_ref: None,
            agent_id: Some(agent.into()),
            agent: None,
            prompt: "Look at {{.ResourceName}}".into(),
            hold: None,
            repeat_interval: None,
            resolve_timeout: None,
            notify_resolved: None,
        }
    }

    fn parse(configurations: Vec<EventConfiguration>) -> Rules {
        let spec = HookSpec { event_configurations: configurations, suspend: None, mode: None };
        Rules::parse(&spec, "shop", &Policy::default())
    }

    #[test]
    fn an_agent_is_named_in_three_ways() {
        let by_ref = |namespace: Option<&str>| EventConfiguration {
            agent_ref: Some(AgentRef { name: "a".into(), namespace: namespace.map(Into::into) }),
            agent_id: None,
            ..configuration(EventType::PodRestart, "")
        };
        let agent = |configuration| parse(vec![configuration]).configurations[0].agent.to_string();
        assert_eq!(agent(configuration(EventType::PodRestart, "a")), "shop/a");
        assert_eq!(agent(configuration(EventType::PodRestart, "kagent/a")), "kagent/a");
        assert_eq!(agent(by_ref(None)), "shop/a");
        assert_eq!(agent(by_ref(Some("kagent"))), "kagent/a");
        assert_eq!(agent(by_ref(Some(""))), "shop/a");
    }

    #[test]
    fn the_first_of_two_ways_to_write_one_agent_wins_and_the_second_is_told_of() {
        let mut second = configuration(EventType::PodRestart, "shop/a");
        second.prompt = "other".into();
        let rules = parse(vec![
            configuration(EventType::PodRestart, "a"),
            second,
            configuration(EventType::PodRestart, "b"),
            configuration(EventType::OomKill, "a"),
        ]);
        let agents: Vec<_> =
            rules.configurations.iter().map(|r| (r.event_type, r.agent.to_string())).collect();
        assert_eq!(
            agents,
            [
                (EventType::PodRestart, "shop/a".to_owned()),
                (EventType::PodRestart, "shop/b".to_owned()),
                (EventType::OomKill, "shop/a".to_owned())
            ]
        );
        assert_eq!(rules.problems.len(), 1);
        assert_eq!(rules.problems[0].reason, "DuplicateConfiguration");
        assert!(
            rules.problems[0]
                .message
                .starts_with("spec.eventConfigurations[1] asks shop/a about pod-restart")
        );
    }

    #[test]
    fn durations_are_read_and_a_bad_one_becomes_its_default_and_a_problem() {
        let rules = parse(vec![EventConfiguration {
            hold: Some("1m30s".into()),
            repeat_interval: Some("-5m".into()),
            resolve_timeout: Some("soon".into()),
            ..configuration(EventType::PodRestart, "a")
        }]);
        let rule = &rules.configurations[0];
        assert_eq!(rule.hold, Some(Duration::from_secs(90)));
        assert_eq!(rule.repeat_interval, Policy::default().repeat_interval);
        assert_eq!(rule.resolve_timeout, Policy::default().resolve_timeout);
        let reasons: Vec<_> = rules.problems.iter().map(|p| p.reason).collect();
        assert_eq!(reasons, ["DurationInvalid", "DurationInvalid"]);
    }

    #[test]
    fn durations_of_a_hook_that_todays_schema_would_refuse_stay_in_bounds() {
        let rules = parse(vec![EventConfiguration {
            hold: Some("999h".into()),
            repeat_interval: Some("1ms".into()),
            resolve_timeout: Some("0s".into()),
            ..configuration(EventType::PodRestart, "a")
        }]);
        let rule = &rules.configurations[0];
        assert_eq!((rule.repeat_interval, rule.resolve_timeout), (SHORTEST, SHORTEST));
        assert_eq!(rule.hold, Some(LONGEST));
    }

    #[test]
    fn an_unparsable_prompt_is_an_error_with_its_place_and_the_rule_stays() {
        let mut configuration = configuration(EventType::PodRestart, "a");
        configuration.prompt = "Look at {{.ResourceName".into();
        let rules = parse(vec![configuration]);
        assert_eq!(rules.configurations.len(), 1, "the incident is still delivered");
        assert_eq!(rules.problems[0].severity, Severity::Error);
        assert!(rules.problems[0].message.starts_with("spec.eventConfigurations[0].prompt: "));
    }

    #[test]
    fn a_configuration_without_an_agent_is_left_out_and_told_of() {
        let mut configuration = configuration(EventType::PodRestart, "a");
        configuration.agent_id = None;
        let rules = parse(vec![configuration]);
        assert!(rules.configurations.is_empty());
        assert_eq!(rules.problems[0].reason, "AgentInvalid");
    }
}
