//! A trace is one incident told as spans: from the signal to the agent's answer, and every repeat after it.
//!
//! ```text
//! incident pod-restart              firstSeen to the answer (or what ended it without one)
//! ├─ pending                        firstSeen to the claim
//! ├─ call                           one per attempt; the parent of what the agent's side reports
//! │  ├─ session                     opening the session
//! │  └─ message                     handing over the message
//! ├─ lookup                         only where it is not known whether the message arrived
//! ├─ follow                         acceptance to the end of the agent's task
//! ├─ farewell                       telling the agent that it is resolved, where the Hook wants that
//! └─ repeat pod-restart             the next window: the same again, from when it was due
//! ```
//!
//! An incident outlives processes, so no span object can live with it. Its spans are made after the fact, by
//! plain functions, from the stamps in the status; and their ids are derived, so that whoever continues an
//! incident, after a crash or a take-over, continues its trace: the trace's id is the episode's session id, a
//! span's is a hash of what it is about. A child may be sent long before its parent, which OTLP allows.

#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Status, span::SpanKind, status::StatusCode},
};
use uuid::Uuid;

use crate::{
    hook::{ActiveEvent, Claim, HookStatus, Phase, Reason},
    incident::{
        lifecycle::excerpt_of,
        outcome::{AgentName, EndState, Ended, Lookup, Reply},
    },
};

/// A span as it is sent.
pub use opentelemetry_proto::tonic::trace::v1::Span;

/// What became of a call, with when its parts began.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// The claim it was made under.
    pub claim: &'a Claim,
    /// When the session's request began.
    pub began: DateTime<Utc>,
    /// When the session was open; none where it was not.
    pub opened: Option<DateTime<Utc>>,
    /// What came back.
    pub reply: &'a Reply,
    /// The same in one word.
    pub outcome: &'static str,
}

/// The value of the header `traceparent` for this attempt's requests: what the agent's side reports becomes
/// part of the trace. None where the incident has no id to derive from.
pub fn traceparent(entry: &ActiveEvent) -> Option<String> {
    let trace = trace_id(entry)?;
    let call = Uuid::from_u64_pair(u64::from_be_bytes(span_id(trace, entry, kind_of_call(entry))), 0);
    // Version 00, flags 01: sampled. The flag for random ids (02) would be true, but the Go library that
    // kagent uses has long refused a header with flags it does not know.
    Some(format!("00-{}-{}-01", trace.simple(), &call.simple().to_string()[..16]))
}

/// Whether a trace is among this share of all. By OpenTelemetry's rule of the right-most 56 bits: in an id made
/// of a UUID the bits before them are not random, and a rule that looks there keeps all traces or none.
pub fn is_sampled(trace_id: &[u8], ratio: f64) -> bool {
    const ALL: u64 = 1 << 56;
    let random = trace_id.iter().fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte)) % ALL;
    random >= ((1.0 - ratio) * ALL as f64) as u64
}

/// The spans that end where one status follows another: waits that ended with a claim, windows that ended with
/// an answer or without one, calls whose process is gone. `now` is when it was written.
///
/// Each change of a status is written once, by one process, so each of these spans is made once.
pub fn transitions(hook: &str, before: &HookStatus, after: &HookStatus, now: DateTime<Utc>) -> Vec<Span> {
    let old: HashMap<&str, &ActiveEvent> =
        before.active_events.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let new: HashMap<&str, &ActiveEvent> =
        after.active_events.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let mut spans = Vec::new();
    for entry in &after.active_events {
        let last = old.get(entry.id.as_str()).copied().filter(|last| is_same_window(last, entry));
        spans.extend(last.and_then(|last| lost_call(hook, last, entry, now)));
        spans.extend(pending(hook, last, entry));
    }
    for entry in &before.active_events {
        let next = new.get(entry.id.as_str()).copied();
        let goes_on = next.is_some_and(|next| is_same_window(entry, next) && is_open(next));
        if is_open(entry) && !goes_on {
            spans.extend(window(hook, entry, next, now));
        }
    }
    spans
}

/// The spans of one attempt at a call.
pub fn call(hook: &str, entry: &ActiveEvent, called: &Called, now: DateTime<Utc>) -> Vec<Span> {
    let Called { claim, began, opened, reply, outcome } = *called;
    let error = match reply {
        Reply::Accepted { .. } => None,
        Reply::NotRun { error, .. } | Reply::Permanent { error } | Reply::Unknown { error } => {
            Some((outcome, error.as_str()))
        }
    };
    let attempt = ("khook.attempt", int(attempts(entry)));
    let kind = kind_of_call(entry);
    let part = |name, from, to, error| {
        let span = span(hook, entry, name, SpanKind::Internal, (from, to), [attempt.clone()], error)?;
        Some(Span { parent_span_id: span_id(trace_id(entry)?, entry, kind).to_vec(), ..span })
    };
    let session = part("session", began, opened.unwrap_or(now), error.filter(|_| opened.is_none()));
    let message = opened.and_then(|opened| part("message", opened, now, error));
    let about = [attempt.clone(), ("khook.outcome", text(outcome))];
    let whole = span(hook, entry, kind, SpanKind::Client, (claim.at, now), about, error);
    [whole, session, message].into_iter().flatten().collect()
}

/// The span of one look for a message in its session.
pub fn lookup(
    hook: &str,
    entry: &ActiveEvent,
    began: DateTime<Utc>,
    (lookup, outcome): (&Lookup, &'static str),
    now: DateTime<Utc>,
) -> Option<Span> {
    let error = match lookup {
        Lookup::Found { .. } | Lookup::Absent => None,
        Lookup::Unavailable { error } | Lookup::Unsupported { error } => Some((outcome, error.as_str())),
    };
    let about = [("khook.attempt", int(entry.attempts)), ("khook.outcome", text(outcome))];
    let span = span(hook, entry, "lookup", SpanKind::Client, (began, now), about, error)?;
    // One attempt may be looked up many times.
    let id = derived(trace_id(entry)?, &format!("lookup\n{began:?}"));
    Some(Span { span_id: id.to_vec(), ..span })
}

/// The span of an agent's task, from its acceptance to its end.
pub fn follow(
    hook: &str,
    entry: &ActiveEvent,
    accepted: DateTime<Utc>,
    ended: &Ended,
    now: DateTime<Utc>,
) -> Option<Span> {
    let word = ended.state.to_string();
    let failed = is_failure(ended.state);
    let error = failed.then_some((word.as_str(), "the agent's task did not end with an answer"));
    let mut about = vec![("khook.outcome", text(word.as_str()))];
    if let Some(usage) = ended.usage {
        about.push(("gen_ai.usage.input_tokens", Value::IntValue(usage.prompt)));
        about.push(("gen_ai.usage.output_tokens", Value::IntValue(usage.answer)));
    }
    span(hook, entry, "follow", SpanKind::Internal, (accepted, now), about, error)
}

/// What the spans of an attempt, and those of the agent's side, hang on.
const CALL: &str = "call";

/// The same of the message that an incident is resolved.
const FAREWELL: &str = "farewell";

fn kind_of_call(entry: &ActiveEvent) -> &'static str {
    if entry.status == Phase::Resolved { FAREWELL } else { CALL }
}

fn attempts(entry: &ActiveEvent) -> i32 {
    match &entry.farewell {
        Some(farewell) if entry.status == Phase::Resolved => farewell.attempts,
        _ => entry.attempts,
    }
}

/// Bytes of an error.
const MAX_ERROR: usize = 256;

/// Whether the span of the entry's window is still to come.
fn is_open(entry: &ActiveEvent) -> bool {
    match entry.status {
        Phase::Pending | Phase::Firing => true,
        Phase::Notified | Phase::Resolved => {
            // Resolved without a call, it may show what is left of the window before.
            let asked = entry.last_notified_at.is_some_and(|at| entry.due_at.is_none_or(|due| due <= at));
            asked && entry.task_id.is_some() && entry.outcome.is_none()
        }
    }
}

fn is_same_window(one: &ActiveEvent, other: &ActiveEvent) -> bool {
    one.session_id == other.session_id && one.window == other.window
}

/// The span of a whole window: the first is the root of the trace, a repeat is its child.
fn window(hook: &str, entry: &ActiveEvent, next: Option<&ActiveEvent>, now: DateTime<Utc>) -> Option<Span> {
    let next = next.filter(|next| next.session_id == entry.session_id);
    let unasked = matches!(entry.status, Phase::Pending | Phase::Firing);
    let (outcome, failure) = match next {
        // The Hook is gone, or its status has no room for it.
        None => ("Forgotten".into(), unasked.then_some("nobody was called")),
        Some(next) if next.window != entry.window => ("AskedAgain".into(), None),
        Some(next) => match (next.status, next.outcome, next.reason) {
            (Phase::Resolved, _, Some(reason)) if unasked => {
                let failed = reason == Reason::NotDelivered;
                (reason.to_string(), failed.then_some("the agent could not be called"))
            }
            (_, Some(state), _) => (
                state.to_string(),
                is_failure(state).then_some("the agent's task did not end with an answer"),
            ),
            // It took the message and gave nothing to follow.
            _ => ("Accepted".into(), None),
        },
    };
    let about = [("khook.attempts", int(entry.attempts)), ("khook.outcome", text(outcome.as_str()))];
    let error = failure.map(|words| (outcome.as_str(), words));
    let span = span(hook, entry, "", SpanKind::Internal, (began(entry), now), about, error)?;
    let trace = trace_id(entry)?;
    let kind = if entry.window > 1 { "repeat" } else { "incident" };
    Some(Span {
        name: format!("{kind} {}", entry.event_type),
        span_id: window_id(trace, entry.window).to_vec(),
        parent_span_id: if entry.window > 1 { window_id(trace, 1).to_vec() } else { Vec::new() },
        ..span
    })
}

/// The wait that ended with the first claim of a window.
fn pending(hook: &str, last: Option<&ActiveEvent>, entry: &ActiveEvent) -> Option<Span> {
    let claim = entry.claim.as_ref().filter(|_| entry.status == Phase::Firing && entry.attempts == 1)?;
    if last.is_some_and(|last| last.attempts > 0) {
        return None;
    }
    let waited = last.and_then(|last| last.reason).map(|reason| ("khook.reason", text(reason.as_str())));
    span(hook, entry, "pending", SpanKind::Internal, (began(entry), claim.at), waited, None)
}

/// A call that was taken over: nobody else tells of it any more, and the agent may hang its spans on it.
fn lost_call(hook: &str, last: &ActiveEvent, entry: &ActiveEvent, now: DateTime<Utc>) -> Option<Span> {
    let calling = last.status == Phase::Firing && last.reason != Some(Reason::CheckingSession);
    let claim = last.claim.as_ref().filter(|_| calling && entry.status == Phase::Firing)?;
    if entry.claim.as_ref() == Some(claim) || entry.reason != Some(Reason::CheckingSession) {
        // A doubt of the caller's own comes with the claim unchanged.
        return None;
    }
    let about = [("khook.attempt", int(last.attempts)), ("khook.outcome", text("lost"))];
    let error = Some(("lost", "the process that called is gone"));
    span(hook, last, CALL, SpanKind::Client, (claim.at, now), about, error)
}

/// A span under the entry's window, with what all spans say. Never the prompt, never an answer.
fn span(
    hook: &str,
    entry: &ActiveEvent,
    name: &str,
    kind: SpanKind,
    (start, end): (DateTime<Utc>, DateTime<Utc>),
    about: impl IntoIterator<Item = (&'static str, Value)>,
    error: Option<(&str, &str)>,
) -> Option<Span> {
    let trace = trace_id(entry)?;
    let agent = match AgentName::read(&entry.agent, &entry.namespace) {
        Some(AgentName::Kagent { name, .. }) => name,
        _ => entry.agent.clone(),
    };
    let mut attributes = vec![
        attribute("k8s.namespace.name", text(entry.namespace.as_str())),
        attribute("k8s.pod.name", text(entry.resource_name.as_str())),
        // The agent's side names the conversation the same way. What else gen_ai has is the agent's to tell.
        attribute("gen_ai.agent.name", text(agent)),
        attribute("gen_ai.conversation.id", text(trace.to_string())),
        attribute("khook.hook", text(hook)),
        attribute("khook.event_type", text(entry.event_type.as_str())),
        attribute("khook.agent", text(entry.agent.as_str())),
        attribute("khook.window", int(entry.window)),
    ];
    if !entry.uid.is_empty() {
        attributes.push(attribute("k8s.pod.uid", text(entry.uid.as_str())));
    }
    attributes.extend(about.into_iter().map(|(key, value)| attribute(key, value)));
    let status = error.map(|(kind, words)| {
        attributes.push(attribute("error.type", text(kind)));
        Status { code: StatusCode::Error.into(), message: excerpt_of(words, MAX_ERROR) }
    });
    Some(Span {
        trace_id: trace.as_bytes().to_vec(),
        span_id: span_id(trace, entry, name).to_vec(),
        parent_span_id: window_id(trace, entry.window).to_vec(),
        name: name.to_owned(),
        kind: kind.into(),
        // Stamps of two processes: one may be ahead of the other.
        start_time_unix_nano: nanos(start.min(end)),
        end_time_unix_nano: nanos(end),
        attributes,
        status,
        ..Span::default()
    })
}

/// When the entry's window began.
fn began(entry: &ActiveEvent) -> DateTime<Utc> {
    entry.due_at.filter(|_| entry.window > 1).unwrap_or(entry.first_seen)
}

fn is_failure(state: EndState) -> bool {
    match state {
        EndState::Completed | EndState::InputRequired | EndState::AuthRequired => false,
        EndState::Failed
        | EndState::Canceled
        | EndState::Rejected
        | EndState::DeadlineExceeded
        | EndState::Lost
        | EndState::OutcomeUnknown => true,
    }
}

/// The id of the trace an entry belongs to. A status that an earlier khook left behind may have none.
pub fn trace_id(entry: &ActiveEvent) -> Option<Uuid> {
    entry.session_id.as_deref().and_then(|id| Uuid::try_parse(id).ok()).filter(|id| !id.is_nil())
}

fn window_id(trace: Uuid, window: i32) -> [u8; 8] {
    derived(trace, &format!("window\n{window}"))
}

fn span_id(trace: Uuid, entry: &ActiveEvent, name: &str) -> [u8; 8] {
    // The parts of a farewell are others than those of the call before it.
    let of = if entry.status == Phase::Resolved { FAREWELL } else { "" };
    derived(trace, &format!("{of}{name}\n{}\n{}", entry.window, attempts(entry)))
}

// Never zero, which is no id: the version stands in it.
fn derived(trace: Uuid, what: &str) -> [u8; 8] {
    Uuid::new_v5(&trace, what.as_bytes()).as_u64_pair().0.to_be_bytes()
}

fn nanos(at: DateTime<Utc>) -> u64 {
    at.timestamp_nanos_opt().and_then(|nanos| nanos.try_into().ok()).unwrap_or_default()
}

/// An attribute of a span or of the process.
pub fn attribute(key: impl Into<String>, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A value of an attribute.
pub fn text(text: impl Into<String>) -> Value {
    Value::StringValue(text.into())
}

fn int(number: i32) -> Value {
    Value::IntValue(number.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        hook::{EventType, StandingState},
        incident::{
            fixtures::{
                AGENT, Bench, at, claim, completed, outcome_of, readiness, reply_accepted, reply_not_run,
                reply_unknown, restarted, rule, rules, rules_for_all,
            },
            outcome::Ended,
            plan::{News, Outcome},
            signal::Signal,
        },
    };

    const HOOK: &str = "shop/hook";

    /// A bench, and the spans that its Hook's incidents have made.
    struct Told {
        bench: Bench,
        spans: Vec<Span>,
    }

    impl Told {
        fn new() -> Self {
            Self { bench: Bench::new(rules_for_all()), spans: Vec::new() }
        }

        fn turn(&mut self, signals: &[Signal], outcomes: &[Outcome], seconds: i64) -> &mut Self {
            let before = self.bench.status.clone();
            self.bench.turn(signals, outcomes, at(seconds));
            self.spans.extend(transitions(HOOK, &before, &self.bench.status, at(seconds)));
            self
        }

        /// The call that is claimed ends, three seconds after its session was open.
        fn called(&mut self, reply: Reply, outcome: &'static str, seconds: i64) -> &mut Self {
            let entry = self.bench.entry().clone();
            let claim = entry.claim.clone().expect("a claim");
            let (began, opened) = (claim.at, Some(at(seconds - 3).max(claim.at)));
            let called = Called { claim: &claim, began, opened, reply: &reply, outcome };
            self.spans.extend(call(HOOK, &entry, &called, at(seconds)));
            self.turn(&[], &[outcome_of(&entry, News::Called(claim, reply))], seconds)
        }

        fn looked_up(&mut self, found: Lookup, outcome: &'static str, seconds: i64) -> &mut Self {
            let entry = self.bench.entry().clone();
            let claim = entry.claim.clone().expect("a claim");
            self.spans.extend(lookup(HOOK, &entry, at(seconds - 1), (&found, outcome), at(seconds)));
            self.turn(&[], &[outcome_of(&entry, News::LookedUp(claim, found))], seconds)
        }

        fn ended(&mut self, state: EndState, seconds: i64) -> &mut Self {
            let entry = self.bench.entry().clone();
            let accepted = entry.last_notified_at.expect("a call");
            let task = entry.task_id.clone().expect("a task");
            self.spans.extend(follow(HOOK, &entry, accepted, &Ended::silent(state), at(seconds)));
            let ended = Ended { state, ..completed("hunter2 is the answer") };
            self.turn(&[], &[outcome_of(&entry, News::TaskEnded(task, ended))], seconds)
        }

        /// The tree, a line each with the times in seconds. Every span has its own id, its parent is there or
        /// is none, and no span begins before its parent or ends before it begins.
        fn tree(&self) -> String {
            let by_id: BTreeMap<&[u8], &Span> =
                self.spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
            assert_eq!(by_id.len(), self.spans.len(), "two spans of one id: {:#?}", self.names());
            let mut children: BTreeMap<&[u8], Vec<&Span>> = BTreeMap::new();
            for span in &self.spans {
                assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
                assert_eq!(span.trace_id, self.spans[0].trace_id);
                if !span.parent_span_id.is_empty() {
                    let parent = by_id.get(span.parent_span_id.as_slice());
                    let parent = parent.unwrap_or_else(|| panic!("{} has no parent", span.name));
                    assert!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{}", span.name);
                }
                children.entry(&span.parent_span_id).or_default().push(span);
            }
            let mut lines = String::new();
            write(&mut children, &[], 0, &mut lines);
            lines
        }

        fn names(&self) -> Vec<&str> {
            self.spans.iter().map(|span| span.name.as_str()).collect()
        }

        fn named(&self, name: &str) -> &Span {
            self.spans.iter().find(|span| span.name == name).expect(name)
        }
    }

    fn write(children: &mut BTreeMap<&[u8], Vec<&Span>>, parent: &[u8], depth: usize, lines: &mut String) {
        let mut spans = children.remove(parent).unwrap_or_default();
        spans.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        for span in spans {
            let seconds = |nanos| (i128::from(nanos) - i128::from(super::nanos(at(0)))) / 1_000_000_000;
            let (from, to) = (seconds(span.start_time_unix_nano), seconds(span.end_time_unix_nano));
            let outcome = said(span, "khook.outcome").map(|outcome| format!(" {outcome}"));
            let error = said(span, "error.type").map(|_| "!").unwrap_or_default();
            let (margin, outcome) = ("  ".repeat(depth), outcome.unwrap_or_default());
            lines.push_str(&format!("{margin}{} {from}..{to}{outcome}{error}\n", span.name));
            write(children, &span.span_id, depth + 1, lines);
        }
    }

    fn said(span: &Span, key: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn an_incident_is_one_tree_from_signal_to_answer() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 5);
        told.called(reply_accepted("task-1"), "accepted", 10);
        assert!(!told.names().iter().any(|name| name.starts_with("incident")), "it goes on");
        told.ended(EndState::Completed, 40).turn(&[], &[], 2000);
        let tree = "\
incident pod-restart 0..40 Completed
  pending 0..5
  call 5..10 accepted
    session 5..7
    message 7..10
  follow 10..40 Completed
";
        assert_eq!(told.tree(), tree);
        let root = told.named("incident pod-restart");
        let session = told.bench.entry().session_id.clone().expect("a session");
        assert_eq!(root.trace_id, Uuid::parse_str(&session).expect("a UUID").as_bytes());
        for (key, value) in [
            ("k8s.namespace.name", "shop"),
            ("k8s.pod.name", "web-0"),
            ("k8s.pod.uid", "uid-of-web-0"),
            ("khook.hook", HOOK),
            ("khook.agent", AGENT),
            ("khook.event_type", "pod-restart"),
            ("gen_ai.agent.name", "k8s-agent"),
            ("gen_ai.conversation.id", session.as_str()),
        ] {
            assert!(told.spans.iter().all(|span| said(span, key).as_deref() == Some(value)), "{key}");
        }
        let all = format!("{:?}", told.spans);
        assert!(!all.contains("hunter2") && !all.contains("Back-off"), "{all}");
    }

    #[test]
    fn every_attempt_is_a_call_and_failures_are_errors() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0).called(reply_not_run(), "not_run", 1);
        told.turn(&[], &[], 10).called(reply_unknown(), "unknown", 20);
        told.looked_up(Lookup::Unavailable { error: "503".into() }, "unavailable", 25);
        told.looked_up(Lookup::Found { task_id: "task-1".into(), ended: None }, "found", 30);
        told.ended(EndState::Failed, 60);
        let tree = "\
incident pod-restart 0..60 Failed!
  pending 0..0
  call 0..1 not_run!
    session 0..0
    message 0..1!
  call 10..20 unknown!
    session 10..17
    message 17..20!
  lookup 24..25 unavailable!
  lookup 29..30 found
  follow 30..60 Failed!
";
        assert_eq!(told.tree(), tree);
        let status = told.named("call").status.as_ref().expect("a status");
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "connection refused"));
    }

    #[test]
    fn a_repeat_is_a_branch_of_the_same_trace() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0).called(reply_accepted("task-1"), "accepted", 5);
        told.ended(EndState::Completed, 30);
        told.turn(&[restarted("web-0", 2, at(700))], &[], 700);
        told.called(reply_accepted("task-2"), "accepted", 705).ended(EndState::InputRequired, 730);
        let tree = "\
incident pod-restart 0..30 Completed
  pending 0..0
  call 0..5 accepted
    session 0..2
    message 2..5
  follow 5..30 Completed
  repeat pod-restart 700..730 InputRequired
    pending 700..700
    call 700..705 accepted
      session 700..702
      message 702..705
    follow 705..730 InputRequired
";
        assert_eq!(told.tree(), tree);
    }

    #[test]
    fn a_task_that_outlasts_its_window_leaves_no_hole() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0).called(reply_accepted("task-1"), "accepted", 5);
        told.turn(&[restarted("web-0", 2, at(700))], &[], 700);
        // The old task ends while the second call is made.
        told.called(reply_accepted("task-2"), "accepted", 705).ended(EndState::Completed, 730);
        let root = told.named("incident pod-restart");
        assert_eq!(said(root, "khook.outcome").as_deref(), Some("AskedAgain"));
        assert!(told.tree().contains("  repeat pod-restart 700..730 Completed\n"));
    }

    #[test]
    fn what_ends_without_a_call_is_told_as_well() {
        let mut told = Told::new();
        told.bench.rules = rules(vec![rule(EventType::ProbeFailed, AGENT)]);
        told.turn(&[readiness("web-0", StandingState::Holds, at(0))], &[], 0);
        told.turn(&[readiness("web-0", StandingState::Clear, at(9))], &[], 9).turn(&[], &[], 4000);
        assert_eq!(told.tree(), "incident probe-failed 0..9 RecoveredBeforeCall\n");

        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0).called(reply_not_run(), "not_run", 1);
        let day = 24 * 60 * 60;
        told.bench.capacity.may_claim = false;
        told.turn(&[], &[], day + 60).turn(&[], &[], day + 120);
        assert!(told.tree().starts_with("incident pod-restart 0..86460 NotDelivered!\n"), "{}", told.tree());
    }

    #[test]
    fn what_is_forgotten_leaves_no_hole() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0).called(reply_accepted("task-1"), "accepted", 5);
        told.spans.extend(transitions(HOOK, &told.bench.status, &HookStatus::default(), at(50)));
        assert!(told.tree().starts_with("incident pod-restart 0..50 Forgotten\n"), "{}", told.tree());
    }

    #[test]
    fn who_takes_over_tells_of_the_call_that_is_lost() {
        let mut told = Told::new();
        told.turn(&[restarted("web-0", 1, at(0))], &[], 0);
        let sent = traceparent(told.bench.entry()).expect("a header");
        told.bench.process = "p2";
        let orphan = told.bench.entry().claim.clone().expect("a claim");
        told.bench.unmoved.insert(orphan, std::time::Duration::MAX);
        told.turn(&[], &[], 200);
        assert_eq!(traceparent(told.bench.entry()).as_ref(), Some(&sent), "another process, the same ids");
        told.looked_up(Lookup::Found { task_id: "task-1".into(), ended: None }, "found", 210);
        told.ended(EndState::Completed, 220);
        let tree = "\
incident pod-restart 0..220 Completed
  pending 0..0
  call 0..200 lost!
  lookup 209..210 found
  follow 210..220 Completed
";
        assert_eq!(told.tree(), tree);
        let hex: String = told.named("call").span_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sent.split('-').nth(2), Some(hex.as_str()));
    }

    #[test]
    fn a_header_is_of_its_attempt_and_of_every_version() {
        let mut bench = Bench::new(rules_for_all());
        bench.turn(&[restarted("web-0", 1, at(0))], &[], at(0));
        let mut entry = bench.entry().clone();
        entry.session_id = Some("26674bc6-2b2a-5294-97cb-865b57e3c96e".into());
        let first = traceparent(&entry);
        assert_eq!(first.as_deref(), Some("00-26674bc62b2a529497cb865b57e3c96e-74482a23a9765912-01"));
        entry.attempts = 2;
        assert_ne!(traceparent(&entry), first);
        entry.claim = Some(claim("other", 7, at(9)));
        entry.attempts = 1;
        assert_eq!(traceparent(&entry), first);
        for none in [None, Some("session-of-an-earlier-khook".into()), Some(Uuid::nil().to_string())] {
            entry.session_id = none;
            assert_eq!(traceparent(&entry), None);
            assert_eq!(follow(HOOK, &entry, at(0), &Ended::silent(EndState::Completed), at(1)), None);
        }
    }

    #[test]
    fn a_share_of_traces_is_that_share() {
        let ids: Vec<Uuid> = (0..4000u32).map(|n| Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes())).collect();
        let kept = |ratio| ids.iter().filter(|id| is_sampled(id.as_bytes(), ratio)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, 4000));
        assert!((850..1150).contains(&kept(0.25)), "{}", kept(0.25));
        assert!((1850..2150).contains(&kept(0.5)), "{}", kept(0.5));
    }
}
