//! An answer is what a kagent, or whatever stands in its place, says to one of khook's requests.
//!
//! The input is its status, its headers, an empty line and its body, as in HTTP. Without such a head all of
//! it is the body of a 200. It is judged as the answer to each request khook makes.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use khook::{
    agent::{
        Follow,
        a2a::{Card, Response, StreamEvent, Task},
        session::MadeUp,
    },
    hook::{ActiveEvent, Claim, HookSpec, Phase, Reason},
    incident::{
        lifecycle::{self, Effects, Input, Scene},
        outcome::{EndState, Ended, Lookup, Reply},
        policy::Policy,
        rules::Rules,
    },
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::at;

/// The message that is looked for.
const MESSAGE: &str = "m1-a";
/// What nobody may read anywhere.
const KEY: &str = "s3cr3t-t0k3n";

/// An answer never proves more than it says: accepted or found is only what a sound answer tells of, absent
/// only what surely is not there, and the words for people are short, on one line, and without the token.
pub fn answer(data: &[u8]) {
    let (status, headers, body) = parse(data);
    let Some(answer) = MadeUp::new(status, headers, body.to_vec(), KEY) else { return };
    // What is skipped may be anything that looks like JSON; a `Value` cannot be, and is null then.
    let sound = (200..300).contains(&status) && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let value: Value = serde_json::from_slice(body).unwrap_or_default();

    match answer.session() {
        Ok(()) => assert!(sound && matches!(status, 200 | 201) && value["error"] != true),
        Err(reply) => {
            assert!(matches!(reply, Reply::NotRun { .. }), "nothing was sent: {reply:?}");
            is_fair(&reply, status);
        }
    }

    let reply = answer.message();
    assert_eq!(reply, answer.message());
    is_fair(&reply, status);
    if let Reply::Accepted { task_id, ended, protocol: None } = &reply {
        // serde reads a struct from a list too: its first item is the result then.
        let result = value.get("result").or(value.get(0));
        assert!(sound && (value.is_null() || result.is_some_and(|result| !result.is_null())));
        assert!(value.get("error").is_none_or(Value::is_null), "an error was taken for a success");
        assert!(task_id.is_some() || ended.is_some(), "nothing to follow, and no end");
        assert!(task_id.as_ref().is_none_or(|id| !id.is_empty()));
    }
    if (300..500).contains(&status) && !matches!(status, 408 | 413 | 414 | 431 | 460 | 499) {
        assert!(matches!(reply, Reply::NotRun { .. }));
    }
    if !(200..500).contains(&status) {
        assert!(matches!(reply, Reply::Unknown { .. }), "{reply:?}");
    }

    let lookup = answer.tasks(MESSAGE);
    assert_eq!(lookup, answer.tasks(MESSAGE));
    match &lookup {
        Lookup::Found { task_id, ended } => {
            assert!(sound && !task_id.is_empty());
            assert!(value.is_null() || has_message(&value), "found what is not there");
            ended.iter().for_each(is_without_key);
        }
        // The licence to send again.
        Lookup::Absent => {
            let lacks = value.is_null() || value["error"] == false && !has_message(&value);
            assert!(sound && lacks || status == 404);
        }
        Lookup::Unavailable { error } | Lookup::Unsupported { error } => is_for_people(error),
    }

    match answer.page(MESSAGE) {
        Lookup::Found { task_id, ended } => {
            assert!(sound && !task_id.is_empty());
            ended.iter().for_each(is_without_key);
        }
        Lookup::Absent => assert!(sound && value.get("error").is_none_or(Value::is_null), "no list"),
        Lookup::Unavailable { error } | Lookup::Unsupported { error } => is_for_people(&error),
    }

    // A card leads nowhere by itself, and a stream ends with what it told.
    if let Ok(card) = serde_json::from_slice::<Card>(body) {
        assert!(card.endpoints().iter().all(|(url, _)| !url.is_empty()));
    }
    let mut task = Task::default();
    for line in body.split(|byte| *byte == b'\n') {
        if let Ok(Response { result: Some(event), .. }) =
            serde_json::from_slice::<Response<StreamEvent>>(line)
        {
            task.apply(event);
        }
    }
    task.ended();

    for follow in [answer.task(), Some(answer.task_of_agent())].into_iter().flatten() {
        match &follow {
            Follow::Running => assert!(sound),
            Follow::Ended(ended) => {
                assert!(sound);
                is_without_key(ended);
            }
            Follow::Unavailable { error } => is_for_people(error),
        }
    }

    folds(&reply, &lookup);
}

fn parse(data: &[u8]) -> (u16, HeaderMap, &[u8]) {
    let head = data.windows(2).position(|pair| pair == b"\n\n");
    let parsed = head.and_then(|end| {
        let mut lines = std::str::from_utf8(&data[..end]).ok()?.lines();
        let status = lines.next()?.trim().parse().ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value.trim())) {
                headers.append(name, value);
            }
        }
        Some((status, headers, &data[end + 2..]))
    });
    parsed.unwrap_or((200, HeaderMap::new(), data))
}

/// Whether a list of tasks shows the message, read a second time and in another way.
fn has_message(answer: &Value) -> bool {
    let ours = |message: &Value| message["messageId"] == MESSAGE;
    answer["data"].as_array().into_iter().flatten().any(|task| {
        ours(&task["status"]["message"]) || task["history"].as_array().into_iter().flatten().any(ours)
    })
}

fn is_fair(reply: &Reply, status: u16) {
    match reply {
        Reply::Accepted { ended, .. } => ended.iter().for_each(is_without_key),
        Reply::NotRun { error, retry_after, throttled } => {
            is_for_people(error);
            assert!(retry_after.is_none_or(|wait| wait <= Duration::from_secs(3600)));
            assert_eq!(*throttled, status == 429);
        }
        Reply::Permanent { error } | Reply::Unknown { error } => is_for_people(error),
    }
}

fn is_without_key(ended: &Ended) {
    assert!(!ended.answer.contains(KEY));
    assert!(!matches!(ended.state, EndState::DeadlineExceeded | EndState::OutcomeUnknown));
}

fn is_for_people(error: &str) {
    assert!(!error.is_empty() && error.len() < 4096, "{} bytes", error.len());
    assert!(!error.contains(char::is_control), "{error:?}");
    assert!(!error.contains(KEY), "{error}");
}

/// What becomes of an incident by it: the texts that a status keeps are short, and a task's id is plain.
fn folds(reply: &Reply, lookup: &Lookup) {
    let policy = Policy::default();
    let spec: HookSpec = from(json!({"eventConfigurations": [
        {"eventType": "pod-restart", "agentId": "kagent/k8s-agent", "prompt": "Look"},
    ]}));
    let rules = Rules::parse(&spec, "shop", &policy);
    let claim = Claim { process: "khook-0".into(), sequence: 1, at: at(0), seconds: 150 };
    let entry: ActiveEvent = from(json!({
        "id": "5c76b87ffc", "eventType": "pod-restart", "resourceName": "web-0", "namespace": "shop",
        "agent": "kagent/k8s-agent", "status": "firing", "reason": "Calling", "message": "calling",
        "firstSeen": at(0), "lastSeen": at(0), "count": 1, "window": 1, "attempts": 1, "claim": claim,
        "sessionId": "26674bc6-2b2a-5294-97cb-865b57e3c96e", "dueAt": at(0),
    }));
    let scene = Scene {
        now: at(1),
        policy: &policy,
        rule: rules.of(&entry),
        hook_uid: "uid",
        suspended: false,
        observes: false,
    };
    let step = |entry: &ActiveEvent, input: Input| {
        let (mut entry, mut effects) = (entry.clone(), Effects::default());
        lifecycle::step(&mut entry, &input, &scene, &mut effects);
        is_short(&entry);
        entry
    };

    let called = step(&entry, Input::Called(&claim, reply));
    let checking = ActiveEvent { reason: Some(Reason::CheckingSession), ..entry.clone() };
    let looked_up = step(&checking, Input::LookedUp(&claim, lookup));
    let expected = BTreeMap::from([
        (
            "called",
            match reply {
                Reply::Accepted { .. } => Phase::Notified,
                Reply::NotRun { .. } | Reply::Permanent { .. } => Phase::Pending,
                Reply::Unknown { .. } => Phase::Firing,
            },
        ),
        (
            "looked up",
            match lookup {
                Lookup::Found { .. } => Phase::Notified,
                Lookup::Absent | Lookup::Unsupported { .. } => Phase::Pending,
                Lookup::Unavailable { .. } => Phase::Firing,
            },
        ),
    ]);
    assert_eq!(BTreeMap::from([("called", called.status), ("looked up", looked_up.status)]), expected);
}

fn is_short(entry: &ActiveEvent) {
    let short = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= 512);
    assert!(short(&entry.answer) && short(&entry.last_error) && entry.message.len() <= 512);
    let plain = |id: &String| {
        (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
    };
    assert!(entry.task_id.as_ref().is_none_or(plain), "{:?}", entry.task_id);
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("what is written here is sound")
}
