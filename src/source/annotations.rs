//! An annotation is what a person writes on a Hook for khook to do: about one of its incidents, or to try it out.
//!
//! | key | value |
//! |---|---|
//! | `khook.kagent.dev/retry.SESSION`, `ack.SESSION`, `resolve.SESSION` | `{"at":"2026-01-02T03:04:05Z","by":"jane"}` |
//! | `khook.kagent.dev/snooze.SESSION` | the same with `"for":"2h"` |
//! | `khook.kagent.dev/test.NAME` | the same with `"type":"oom-kill","pod":"web-0"`, and perhaps `"container":"app"` |
//!
//! SESSION is the incident's `sessionId`: what is said of one episode says nothing of the next. Whoever may annotate
//! the Hook may do this, which RBAC grants with `patch` on Hooks. khook only reads: what it has done stands in the
//! status, and doing it once more does nothing.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    hook::{EventType, Hook, Instruction, Verb, parse_duration},
    incident::{
        lifecycle::excerpt_of,
        prompt::{rfc3339, visible},
        rules::{Problem, Severity},
        signal::{Cause, Nature, Occurrence, Signal},
    },
};

/// What all these keys begin with.
pub const PREFIX: &str = "khook.kagent.dev/";

/// The first part of the key of a test.
const TEST: &str = "test";

/// Longest name of a test.
const MAX_NAME: usize = 40;

/// Longest name of a person that is kept, in bytes.
const MAX_BY: usize = 128;

/// How far the clock of whoever writes may be ahead. What is later would be done again and again, or keep everything
/// else from being done; and the apiserver takes no year of five digits.
const MAX_AHEAD: Duration = Duration::from_secs(5 * 60);

/// How long nobody may be asked at most.
pub const LONGEST_SNOOZE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The value of an annotation about an incident.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Said {
    /// When it was written: of several the newest counts.
    pub at: DateTime<Utc>,
    /// Who wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// snooze: for how long from then.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
}

/// The value of an annotation that tries a Hook out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trial {
    /// When it was written.
    pub at: DateTime<Utc>,
    /// Who wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The kind of trouble that is made up.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// The pod it is said to be on.
    pub pod: String,
    /// The container it is said to be on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// What people have written on a Hook.
#[derive(Debug, Default)]
pub struct Annotations {
    /// What to do about incidents, by session.
    pub instructions: Vec<(String, Instruction)>,
    /// Trouble that is made up.
    pub tests: Vec<Signal>,
    /// What cannot be understood.
    pub problems: Vec<Problem>,
}

/// The key of an annotation about the incident of this session.
pub fn instruction_key(verb: Verb, session: &str) -> String {
    format!("{PREFIX}{verb}.{session}")
}

/// The key of an annotation that tries the Hook out under this name.
pub fn test_key(name: &str) -> String {
    format!("{PREFIX}{TEST}.{name}")
}

/// Reads the annotations of a Hook; those of others are passed over.
pub fn read(hook: &Hook, now: DateTime<Utc>) -> Annotations {
    let mut read = Annotations::default();
    for (key, value) in hook.metadata.annotations.iter().flatten() {
        let Some(key) = key.strip_prefix(PREFIX) else { continue };
        let understood = match key.split_once('.') {
            Some((TEST, name)) => test(hook, name, value, now).map(|signal| read.tests.push(signal)),
            Some((word, session)) => instruction(word, value, now)
                .map(|instruction| read.instructions.push((session.to_owned(), instruction))),
            None => Err("its name is VERB.SESSION or test.NAME".into()),
        };
        if let Err(why) = understood {
            let message = format!("the annotation {PREFIX}{} is passed over: {why}", excerpt_of(key, 128));
            read.problems.push(Problem { severity: Severity::Warning, reason: "AnnotationInvalid", message });
        }
    }
    read
}

fn instruction(word: &str, value: &str, now: DateTime<Utc>) -> Result<Instruction, String> {
    let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == word);
    let verb = verb.ok_or_else(|| {
        let verbs: Vec<&str> = Verb::ALL.iter().map(|verb| verb.as_str()).collect();
        format!("its name begins with one of {} and {TEST}", verbs.join(", "))
    })?;
    let said: Said = serde_json::from_str(value).map_err(|error| {
        format!(r#"its value is JSON such as {{"at":"2026-01-02T03:04:05Z","by":"jane"}}: {error}"#)
    })?;
    let at = time(said.at, now)?;
    let until = match (verb, &said.span) {
        (Verb::Snooze, Some(span)) => {
            let span = parse_duration(span).map_err(|form| format!("\"for\" is not {form}"))?;
            if span.is_zero() || span > LONGEST_SNOOZE {
                return Err("\"for\" is longer than nothing, and at most 168h".into());
            }
            Some(at + span)
        }
        (Verb::Snooze, None) => return Err(r#"it needs "for", such as "for":"2h""#.into()),
        (Verb::Retry | Verb::Ack | Verb::Resolve, Some(_)) => return Err("only snooze has \"for\"".into()),
        (Verb::Retry | Verb::Ack | Verb::Resolve, None) => None,
    };
    Ok(Instruction { verb, by: name(&said.by), at, until })
}

fn test(hook: &Hook, key: &str, value: &str, now: DateTime<Utc>) -> Result<Signal, String> {
    if key.is_empty() || key.len() > MAX_NAME {
        return Err(format!("the name of a test has 1 to {MAX_NAME} characters"));
    }
    let trial: Trial = serde_json::from_str(value).map_err(|error| {
        format!(
            r#"its value is JSON such as {{"at":"2026-01-02T03:04:05Z","by":"jane","type":"oom-kill","pod":"web-0"}}: {error}"#
        )
    })?;
    let by = match name(&trial.by) {
        by if by.is_empty() => String::new(),
        by => format!(" by {by}"),
    };
    let cause = match trial.event_type {
        EventType::PodRestart => Cause::Restart,
        EventType::PodPending => Cause::Scheduling,
        EventType::OomKill => Cause::OomKill,
        EventType::ProbeFailed => Cause::Liveness,
    };
    let at = time(trial.at, now)?;
    Ok(Signal {
        event_type: trial.event_type,
        cause,
        namespace: hook.metadata.namespace.clone().unwrap_or_default(),
        pod: excerpt_of(&name(&trial.pod), 253),
        uid: String::new(),
        container: trial.container.as_deref().map(name),
        event_name: format!("{TEST}.{key}"),
        reason: "Test".into(),
        message: format!("a test{by}: nothing has happened"),
        observed_at: now,
        nature: Nature::Occurrence(Occurrence { source: format!("{TEST}/{key}"), at, count: 1 }),
        test: Some(key.to_owned()),
    })
}

fn time(at: DateTime<Utc>, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    match (DateTime::UNIX_EPOCH..=now + MAX_AHEAD).contains(&at) {
        true => Ok(at.trunc_subsecs(3)),
        false => Err(format!("\"at\" is when it was written, and now it is {}", rfc3339(now))),
    }
}

// On one line, as long as a status can bear.
fn name(text: &str) -> String {
    excerpt_of(visible(text).replace(['\n', '\t'], " ").trim(), MAX_BY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn annotated(annotations: &[(&str, &str)]) -> Annotations {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let hook: Hook = serde_json::from_value(json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook",
            "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
            "spec": {"eventConfigurations": []},
        }))
        .expect("a Hook");
        read(&hook, "2026-01-02T03:05:00Z".parse().expect("a time"))
    }

    #[test]
    fn what_people_say_of_incidents() {
        let read = annotated(&[
            ("khook.kagent.dev/ack.abc", r#"{"at":"2026-01-02T03:04:05.123456Z","by":"jane\n\u001b[31m"}"#),
            ("khook.kagent.dev/snooze.abc", r#"{"at":"2026-01-02T03:04:05Z","for":"2h"}"#),
            ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
        ]);
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let [(session, ack), (_, snooze)] = read.instructions.as_slice() else { panic!("{read:?}") };
        assert_eq!((session.as_str(), ack.verb, ack.by.as_str()), ("abc", Verb::Ack, "jane [31m"));
        assert_eq!(ack.at, "2026-01-02T03:04:05.123Z".parse::<DateTime<Utc>>().expect("a time"));
        assert_eq!(snooze.until, "2026-01-02T05:04:05Z".parse().ok());
    }

    #[test]
    fn a_test_is_trouble_that_says_so() {
        let read = annotated(&[(
            "khook.kagent.dev/test.k3v9",
            r#"{"at":"2026-01-02T03:04:05Z","by":"jane","type":"oom-kill","pod":"web-0","container":"app"}"#,
        )]);
        let [signal] = read.tests.as_slice() else { panic!("{read:?}") };
        assert_eq!(signal.test.as_deref(), Some("k3v9"));
        assert_eq!((signal.event_type, signal.pod.as_str()), (EventType::OomKill, "web-0"));
        assert_eq!(signal.message, "a test by jane: nothing has happened");
    }

    #[test]
    fn what_cannot_be_understood_says_why_and_costs_nothing_else() {
        let at = r#"{"at":"2026-01-02T03:04:05Z"}"#;
        let odd = [
            ("khook.kagent.dev/ack", at, "VERB.SESSION"),
            ("khook.kagent.dev/fix.abc", at, "begins with one of retry, ack, snooze, resolve and test"),
            ("khook.kagent.dev/ack.abc", "yes", "its value is JSON such as"),
            ("khook.kagent.dev/ack.abc", r#"{"by":"jane"}"#, "missing field `at`"),
            ("khook.kagent.dev/ack.abc", r#"{"at":"2026-01-02T03:04:05Z","for":"2h"}"#, "only snooze has"),
            ("khook.kagent.dev/snooze.abc", at, "it needs \"for\""),
            (
                "khook.kagent.dev/snooze.abc",
                r#"{"at":"2026-01-02T03:04:05Z","for":"soon"}"#,
                "a span of time",
            ),
            ("khook.kagent.dev/snooze.abc", r#"{"at":"2026-01-02T03:04:05Z","for":"0s"}"#, "at most 168h"),
            (
                "khook.kagent.dev/snooze.abc",
                r#"{"at":"+262142-12-31T23:59:59Z","for":"168h"}"#,
                "when it was written",
            ),
            (
                "khook.kagent.dev/ack.abc",
                r#"{"at":"+10000-01-01T00:00:00Z"}"#,
                "now it is 2026-01-02T03:05:00Z",
            ),
            ("khook.kagent.dev/ack.abc", r#"{"at":"2026-01-02T03:10:01Z"}"#, "when it was written"),
            ("khook.kagent.dev/ack.abc", r#"{"at":"-0001-01-01T00:00:00Z"}"#, "when it was written"),
            (
                "khook.kagent.dev/test.a",
                r#"{"at":"2099-01-01T00:00:00Z","type":"oom-kill","pod":"p"}"#,
                "when it was",
            ),
            (
                "khook.kagent.dev/test.",
                r#"{"at":"2026-01-02T03:04:05Z","type":"oom-kill","pod":"p"}"#,
                "1 to 40",
            ),
            (
                "khook.kagent.dev/test.a",
                r#"{"at":"2026-01-02T03:04:05Z","type":"fire","pod":"p"}"#,
                "unknown variant",
            ),
        ];
        for (key, value, why) in odd {
            let read = annotated(&[(key, value), ("khook.kagent.dev/ack.other", at)]);
            assert_eq!(read.instructions.len(), 1, "{key}: {value}");
            assert!(read.tests.is_empty(), "{key}: {value}");
            let [problem] = read.problems.as_slice() else { panic!("{key}: {value}: {read:?}") };
            assert!(problem.message.contains(why) && problem.message.contains(key), "{}", problem.message);
        }
    }
}
