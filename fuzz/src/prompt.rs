//! A prompt is what a Hook's author wrote; with it come the texts of an event, which anybody may choose who
//! may start a pod.
//!
//! The input is the prompt and, each after a line `===`, the event's message, reason, pod, container, name
//! of the Event, name of the Hook, count, and UID.

use khook::incident::{
    outcome::EndState,
    prompt::{
        Changes, EventContext, Message, PROMPT_LIMIT, Problem, Repeat, VALUE_LIMIT, check, message, render,
    },
};

use crate::at;

/// A prompt and an event give one message: bounded, the same every time, with nothing in it that the event
/// could have smuggled past its fence.
pub fn prompt(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split("\n===\n");
    let prompt = parts.next().unwrap_or_default();
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let context = EventContext {
        message: next(),
        reason: next(),
        resource_name: next(),
        container: next(),
        event_name: next(),
        hook_name: next(),
        count: next().trim().parse().unwrap_or(1),
        uid: next(),
        test: false,
        hook_namespace: "shop".into(),
        event_type: "pod-restart".into(),
        namespace: "shop".into(),
        event_time: at(0),
        first_seen: at(-60),
    };

    let rendered = render(prompt, &context);
    assert!(rendered.text.len() <= PROMPT_LIMIT);
    assert_eq!(rendered, render(prompt, &context), "the same every time");
    problems_are_told(prompt, &rendered.problems);
    if !prompt.contains("{{") && prompt.len() <= PROMPT_LIMIT {
        assert_eq!(rendered.text, prompt, "what is no template stays as it is");
        assert_eq!(rendered.problems, []);
    }

    let changes = Changes {
        resolved: context.count % 2 == 0,
        count: context.count.saturating_sub(1),
        replaced: context.uid.is_empty(),
        containers: context.container.clone(),
        reason: context.reason.clone(),
    };
    let task = Some(EndState::Completed);
    let repeat = |changes| Repeat { window: 2, since: at(-600), task, changes, by_hand: false };
    for repeat in [None, Some(repeat(None)), Some(repeat(Some(changes)))] {
        let written = message(prompt, &context, repeat.as_ref());
        assert_eq!(written, message(prompt, &context, repeat.as_ref()), "the same every time");
        assert_eq!(written.problems, rendered.problems);
        is_fenced(&written, &rendered.text);
    }

    // A field that no event has stays as it was written.
    let word: String = prompt.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    let unknown = format!("{{{{ .Un{word} }}}} {{{{- .Un{word}}}}}");
    assert_eq!(render(&unknown, &context).text, unknown.replace(" {{-", "{{-"));

    // What stands in an event is never read as a template, least of all a template.
    let context = EventContext { message: prompt.to_owned(), ..context };
    let clean = message("", &context, None).metadata["eventMessage"].as_str().unwrap_or_default().to_owned();
    assert_eq!(render("<{{.Message}}>", &context).text, format!("<{clean}>"));
    assert_eq!(render("<{{.Message}}>{{if", &context).text, format!("<{clean}>{{{{if"));
}

fn problems_are_told(prompt: &str, problems: &[Problem]) {
    assert!(problems.len() <= 22, "{} problems", problems.len());
    for problem in problems {
        let told = problem.to_string();
        assert!(!told.is_empty() && told.len() < 1024, "{told}");
    }
    let broken = problems.iter().any(|problem| matches!(problem, Problem::NotATemplate(_)));
    match check(prompt) {
        Err(error) => {
            assert!(broken && error.to_string().len() < 1024, "{error}");
        }
        Ok(found) => {
            assert!(!broken);
            // What can be said before any event has come does not depend on one.
            let unknown = |problem: &&Problem| matches!(problem, Problem::UnknownField { .. });
            let before: Vec<&Problem> = found.iter().filter(unknown).collect();
            let after: Vec<&Problem> = problems.iter().filter(unknown).collect();
            assert_eq!(before, after);
        }
    }
}

/// The event stands in a block between two lines that nothing else in the message can be, one value a line.
fn is_fenced(written: &Message, rendered: &str) {
    let Message { text, metadata, .. } = written;
    assert!(text.len() <= PROMPT_LIMIT + 14 * VALUE_LIMIT, "{} bytes", text.len());
    assert!(text.starts_with(rendered.trim_end()));

    let marker = text.trim_end().rsplit(' ').next().unwrap_or_default();
    assert_eq!(marker.len(), 32);
    assert_eq!(text.matches(marker).count(), 2, "the marker stands at both ends and nowhere else");
    let (begin, end) = (format!("\nBEGIN CLUSTER DATA {marker}\n"), format!("\nEND CLUSTER DATA {marker}"));
    let (_, block) = text.split_once(&begin).expect("the beginning of the block");
    let (block, after) = block.rsplit_once(&end).expect("its end");
    assert_eq!(after.trim_end(), "", "nothing comes after it");

    let values = metadata.as_object().expect("a map");
    let shown = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = values.values().filter(|value| !shown(value).is_empty()).count();
    assert_eq!(block.lines().count(), known, "{block}");
    for line in block.lines() {
        let (name, value) = line.split_once(": ").expect("a name and its value");
        assert_eq!(values.get(name).map(shown).as_deref(), Some(value), "{name} is the same for programs");
        assert!(value.len() <= VALUE_LIMIT);
        assert!(!value.contains(can_mislead), "{value:?}");
    }
}

/// Characters that end a line, cannot be seen, or turn the direction of what follows.
fn can_mislead(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}
