//! What is allowed says which of kagent's agents the Hooks of a namespace may have asked.
//!
//! khook asks kagent as one user for all Hooks. Without bounds whoever may write a Hook anywhere could have the
//! most privileged agent of another namespace work for them.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

/// Patterns of agents by patterns of namespaces. The default allows all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowed {
    entries: Option<Vec<Entry>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Of the Hook.
    namespace: Pattern,
    agents: Vec<Agent>,
}

#[derive(Clone, Debug, PartialEq)]
struct Agent {
    /// None is the Hook's own.
    namespace: Option<Pattern>,
    name: Pattern,
}

/// Text in which `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq)]
struct Pattern(String);

/// How it is written.
const FORM: &str = r#"a JSON object of namespaces and their agents, such as {"shop":["kagent/k8s-agent","./*"],"*":["kagent/triage-*"]}"#;

impl FromStr for Allowed {
    type Err = String;

    /// Parses a JSON object; an empty text allows all, an empty object nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let wrong = |why: String| format!("{FORM}: {why}");
        let Pairs(pairs) = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let entries = pairs.into_iter().map(|(namespace, agents)| {
            let agents = agents.iter().map(|agent| Agent::parse(agent)).collect::<Result<_, _>>()?;
            Ok(Entry { namespace: Pattern::of_namespace(&namespace)?, agents })
        });
        Ok(Self { entries: Some(entries.collect::<Result<_, String>>().map_err(wrong)?) })
    }
}

/// The pairs of an object, of which none may stand twice: a map would keep one of them and not say which.
struct Pairs(Vec<(String, Vec<String>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
        while let Some(pair) = map.next_entry::<String, Vec<String>>()? {
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return Err(de::Error::custom(format!("{:?} stands twice", pair.0)));
            }
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

impl Allowed {
    /// Whether Hooks of `namespace` may have the agent `of/name` asked.
    pub fn allows(&self, namespace: &str, of: &str, name: &str) -> bool {
        let Some(entries) = &self.entries else { return true };
        let own = entries.iter().filter(|entry| entry.namespace.matches(namespace));
        own.flat_map(|entry| &entry.agents).any(|agent| {
            let there = agent.namespace.as_ref().map_or(of == namespace, |pattern| pattern.matches(of));
            there && agent.name.matches(name)
        })
    }
}

impl Agent {
    fn parse(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (namespace, name),
            None if text == "*" => ("*", "*"),
            None => return Err(format!("{text:?} is no agent: it must be NAMESPACE/NAME, ./NAME or *")),
        };
        let namespace = (namespace != ".").then(|| Pattern::of_namespace(namespace)).transpose()?;
        Ok(Self { namespace, name: Pattern::of_agent(name)? })
    }
}

impl Pattern {
    fn of_namespace(text: &str) -> Result<Self, String> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'*');
        Self::of(text, "a namespace", known)
    }

    /// As a Hook may name an agent.
    fn of_agent(text: &str) -> Result<Self, String> {
        Self::of(text, "an agent", |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'*'))
    }

    fn of(text: &str, what: &str, known: impl Fn(u8) -> bool) -> Result<Self, String> {
        match !text.is_empty() && text.bytes().all(known) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("{text:?} is no name of {what}, with * for any run of characters")),
        }
    }

    fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // Split gives at least one.
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            // The first place is as good as any: what is left for the others is longest then.
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(setting: &str, namespace: &str, agent: &str) -> bool {
        let (of, name) = agent.split_once('/').unwrap();
        setting.parse::<Allowed>().unwrap().allows(namespace, of, name)
    }

    #[test]
    fn all_or_what_is_named() {
        assert!(allows("", "shop", "kagent/admin"));
        assert!(!allows("{}", "shop", "kagent/admin"));
        let setting = r#"{"shop":["kagent/k8s-agent","./*"],"team-*":["kagent/safe-*"],"*":["kagent/triage"],"ops":["*"]}"#;
        for (namespace, agent, allowed) in [
            ("shop", "kagent/k8s-agent", true),
            ("shop", "kagent/k8s-agent-2", false),
            ("shop", "shop/any", true),
            ("shop", "team-a/any", false),
            ("shop", "kagent/triage", true),
            ("shop-2", "kagent/k8s-agent", false),
            ("team-a", "kagent/safe-reader", true),
            ("team-a", "kagent/unsafe-reader", false),
            ("team-a", "team-a/own", false),
            ("ops", "kagent/admin", true),
            ("ops", "kagent/K8s_Agent.v2", true),
            ("other", "kagent/triage", true),
            ("other", "other/triage", false),
        ] {
            assert_eq!(allows(setting, namespace, agent), allowed, "{namespace} {agent}");
        }
    }

    #[test]
    fn stars_stand_for_any_run() {
        for (pattern, name, matches) in [
            ("a*b", "ab", true),
            ("a*b", "a-b-b", true),
            ("a*b", "aba", false),
            ("a*a", "a", false),
            ("*", "", true),
            ("*b*", "abc", true),
            ("a*b*c", "axbxbxc", true),
            ("a*bc*c", "abc", false),
            ("**", "x", true),
            ("abc", "abcd", false),
        ] {
            assert_eq!(Pattern(pattern.to_owned()).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for (setting, why) in [
            ("shop=kagent/a", "expected value"),
            (r#"{"shop":"kagent/a"}"#, "invalid type"),
            (r#"{"shop":["k8s-agent"]}"#, r#""k8s-agent" is no agent"#),
            (r#"{"Shop":["*"]}"#, r#""Shop" is no name of a namespace"#),
            (r#"{"shop":["kagent/a"],"shop":["*"]}"#, r#""shop" stands twice"#),
            (r#"{"shop":["kagent/a b"]}"#, r#""a b" is no name of an agent"#),
            (r#"{"shop":["/a"]}"#, r#""" is no name"#),
            (r#"{"shop":["https://a/b"]}"#, r#""https:" is no name"#),
        ] {
            let error = setting.parse::<Allowed>().unwrap_err();
            assert!(error.contains(why) && error.contains(FORM), "{error}");
        }
    }
}
