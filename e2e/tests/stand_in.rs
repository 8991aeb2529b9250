//! The stand-in agent against the answers of a real kagent and of agents on the official SDKs, and each way in
//! which it can misbehave.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::agent::{Agent, Behaviour, End, Fault, Message};
use e2e::wait::eventually;
use khook::incident::outcome::Protocol;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(10);
const RUN: Duration = Duration::from_millis(400);

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status: u16,
    content_type: Option<String>,
    body: Value,
}

/// Calls the stand-in.
struct Caller {
    agent: Agent,
    http: reqwest::Client,
}

impl Caller {
    async fn new() -> Self {
        Self { agent: Agent::spawn().await.unwrap(), http: e2e::http_client().unwrap() }
    }

    async fn with(behaviour: Behaviour) -> Self {
        let caller = Self::new().await;
        caller.agent.set(behaviour);
        caller
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method.parse().unwrap(), format!("{}{path}", self.agent.url()))
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.request("GET", path)).await
    }

    async fn session(&self, body: Value) -> Answer {
        answer(self.request("POST", "/api/sessions").json(&body)).await
    }

    async fn a2a(&self, body: Value) -> Answer {
        answer(self.request("POST", "/api/a2a/kagent/k8s-agent/").json(&body)).await
    }

    async fn send(&self, message: &str, context: &str, text: &str, blocking: Option<bool>) -> Answer {
        self.a2a(send(message, context, text, blocking)).await
    }

    async fn task(&self, id: &str) -> Answer {
        self.a2a(json!({"jsonrpc": "2.0", "id": "g", "method": "tasks/get", "params": {"id": id}})).await
    }
}

fn send(message: &str, context: &str, text: &str, blocking: Option<bool>) -> Value {
    let mut call = json!({
        "jsonrpc": "2.0", "id": format!("r-{message}"), "method": "message/send",
        "params": {"message": {
            "kind": "message", "messageId": message, "role": "user", "contextId": context,
            "parts": [{"kind": "text", "text": text}],
        }},
    });
    if let Some(blocking) = blocking {
        call["params"]["configuration"] = json!({"blocking": blocking});
    }
    call
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let content_type = response.headers().get("Content-Type").map(|value| value.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| json!(text.trim()));
    Answer { status, content_type, body }
}

/// As the fake model behind the real kagent answered when the transcripts were made.
fn investigated() -> Behaviour {
    Behaviour::default().answers(|message: &Message| {
        format!("Investigated: {}", message.text.lines().next().unwrap_or_default())
    })
}

/// What differs from run to run becomes a word: ids, times, token counts, our version.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let known = |key: &str, value: &Value| match key {
                "promptTokenCount" | "candidatesTokenCount" | "totalTokenCount" => json!("count"),
                "git_commit" => json!("commit"),
                _ => plain(value),
            };
            map.iter().map(|(key, value)| (key.clone(), known(key, value))).collect()
        }
        Value::Array(values) => values.iter().map(plain).collect(),
        Value::String(text) => {
            let bare = text.trim_start_matches("e-").trim_start_matches("adk-");
            let prefix = &text[..text.len() - bare.len()];
            if uuid::Uuid::parse_str(bare).is_ok() {
                json!(format!("{prefix}uuid"))
            } else if chrono::DateTime::parse_from_rfc3339(text).is_ok() {
                json!("time")
            } else if text.starts_with("call_") {
                json!("call")
            } else {
                value.clone()
            }
        }
        other => other.clone(),
    }
}

#[tokio::test]
async fn answers_are_those_of_a_real_kagent() {
    let real: BTreeMap<String, Answer> = serde_json::from_str(include_str!("kagent-v0.9.9.json")).unwrap();
    let caller = Caller::with(investigated()).await;
    let agent = &caller.agent;
    agent.set_for("kagent/nope", Behaviour::default().missing());
    let mut ours = BTreeMap::new();
    let mut seen = |name: &str, answer: Answer| ours.insert(name.to_owned(), answer);

    seen("health", caller.get("/health").await);
    seen("version", caller.get("/version").await);
    seen("unknown path", caller.get("/api/nope").await);

    let session = json!({"id": "s1-a", "name": "hook default/h1", "agent_ref": "kagent/k8s-agent"});
    seen("session created", caller.session(session).await);
    let session = json!({"id": "s1-a", "name": "second name", "agent_ref": "kagent/k8s-agent"});
    assert_eq!(caller.session(session).await.status, 201);
    let other = json!({"id": "s2-a", "agent_ref": "kagent/k8s-agent"});
    let as_hook = || caller.request("POST", "/api/sessions").header("X-User-Id", "hook@kagent.dev");
    seen("session without name", answer(as_hook().json(&other)).await);
    let unknown = json!({"id": "s3-a", "agent_ref": "kagent/nope"});
    seen("session of an unknown agent", caller.session(unknown).await);
    seen("session without agent_ref", caller.session(json!({"id": "s6-a"})).await);
    seen("session with bad JSON", answer(caller.request("POST", "/api/sessions").body("{\"id\":")).await);
    seen("session read", caller.get("/api/sessions/s1-a").await);
    seen("session of another user", caller.get("/api/sessions/s1-a?user_id=nobody@x").await);
    let delete = caller.request("DELETE", "/api/sessions/s2-a").header("X-User-Id", "hook@kagent.dev");
    seen("session deleted", answer(delete).await);
    seen("deleted session created again", answer(as_hook().json(&other)).await);

    agent.set(investigated().held());
    let text = "[[delay=4]] Pod restarted\nmore";
    let submitted = caller.send("m1-a", "c1-a", text, Some(false)).await;
    let task = submitted.body["result"]["id"].as_str().unwrap().to_owned();
    seen("submitted", submitted);
    seen("working", caller.task(&task).await);
    seen("working over REST", caller.get(&format!("/api/tasks/{task}")).await);
    seen("working in its session", caller.get("/api/sessions/c1-a/tasks").await);
    assert_eq!(agent.release(), 1);
    seen("completed", caller.task(&task).await);
    seen("completed over REST", caller.get(&format!("/api/tasks/{task}")).await);
    seen("completed in its session", caller.get("/api/sessions/c1-a/tasks").await);
    agent.set(investigated().delay(RUN));
    seen("completed, blocking", caller.send("m2-a", "c2-a", "[[delay=3]] Blocking one\nmore", None).await);

    let nope = caller.request("POST", "/api/a2a/kagent/nope/").json(&send("mx-a", "x", "hi", None));
    seen("message to an unknown agent", answer(nope).await);
    let a2a = |method| caller.request(method, "/api/a2a/kagent/k8s-agent/");
    seen("message with bad JSON", answer(a2a("POST").body("{\"jsonrpc\":")).await);
    let call =
        |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    seen("unknown method", caller.a2a(call("message/nope", json!({}))).await);
    let message = json!({"messageId": "nk-a", "role": "user", "parts": [{"text": "no kind"}]});
    seen("no kind", caller.a2a(call("message/send", json!({"message": message}))).await);
    let message = json!({"kind": "message", "messageId": "np-a", "role": "user", "parts": []});
    seen("no parts", caller.a2a(call("message/send", json!({"message": message}))).await);
    seen("no jsonrpc", caller.a2a(json!({"id": 1, "method": "tasks/get", "params": {"id": "zz"}})).await);
    let nobody = json!({"id": "00000000-0000-0000-0000-000000000000"});
    let unknown = json!({"jsonrpc": "2.0", "id": 7, "method": "tasks/get", "params": nobody});
    seen("unknown task", caller.a2a(unknown).await);
    seen("GET on the A2A URL", answer(a2a("GET")).await);
    let versioned = |version| a2a("POST").header("A2A-Version", version).json(&send("mv-a", "x", "hi", None));
    let v10 = json!({"jsonrpc": "2.0", "id": "v1", "method": "SendMessage", "params": {
        "message": {"messageId": "v1-a", "role": "ROLE_USER", "contextId": "v1c-a", "parts": [{"text": "v1 wire"}]},
        "configuration": {"returnImmediately": true}}});
    seen("submitted in 1.0", answer(a2a("POST").header("A2A-Version", "1.0").json(&v10)).await);
    seen("0.3 method under 1.0", answer(versioned("1.0")).await);
    seen("unknown version", answer(versioned("9.9")).await);

    agent.set(investigated().ends(End::Failed("Error code: 500 - fake failure".to_owned())));
    seen("failed", caller.send("me1-a", "e1-a", "[[http=500]] fail", None).await);
    agent.set(investigated());
    let owner = a2a("POST").header("X-User-Id", "owner@x").json(&send("mw1-a", "w1-a", "owner text", None));
    assert_eq!(answer(owner).await.body["result"]["metadata"]["kagent_user_id"], "owner@x");
    seen("tasks of another user", caller.get("/api/sessions/w1-a/tasks").await);
    agent.set(investigated().on_send(Fault::agent_down()));
    seen("agent down", caller.send("mx2-a", "x1-a", "agent down", None).await);
    agent.set(investigated().ends(End::InputRequired("Which namespace?".to_owned())));
    seen("input required", caller.send("mq1-a", "q1-a", "[[ask]] where?", None).await);
    agent.set(investigated().ends(End::Never));
    seen("never ends", caller.send("mq4-a", "q3-a", "[[empty]]", None).await);

    for (name, theirs) in &real {
        let ours = ours.get(name).unwrap_or_else(|| panic!("{name} was not tried"));
        assert_eq!(
            (ours.status, &ours.content_type, plain(&ours.body)),
            (theirs.status, &theirs.content_type, plain(&theirs.body)),
            "{name}: ours, then kagent's"
        );
    }
    assert_eq!(ours.len(), real.len(), "all that was tried is compared");
}

/// A plain agent of one dialect, and who talks to it.
struct Plain {
    caller: Caller,
    protocol: Protocol,
}

impl Plain {
    fn behave(&self, behaviour: impl Fn(Behaviour) -> Behaviour) {
        let good = Behaviour::default()
            .speaks(match self.protocol {
                Protocol::V03 => &[Protocol::V03],
                Protocol::V10 => &[Protocol::V10],
            })
            .lists_tasks()
            .answers(|_| "Investigated: Pod web-1 crashes.".to_owned());
        self.caller.agent.set_for("direct/triage", behaviour(good));
    }

    async fn call(&self, method: [&str; 2], params: Value) -> Value {
        self.call_as(Some(self.protocol.as_str()), method, params).await
    }

    async fn call_as(&self, version: Option<&str>, [v03, v10]: [&str; 2], params: Value) -> Value {
        let method = if self.protocol == Protocol::V03 { v03 } else { v10 };
        let call = json!({"jsonrpc": "2.0", "id": "r-1", "method": method, "params": params});
        let mut request = self.caller.request("POST", "/direct/triage").json(&call);
        if let Some(version) = version {
            request = request.header("A2A-Version", version);
        }
        answer(request).await.body
    }

    async fn send(&self, id: &str, waits: bool, text: &str) -> Value {
        let mut message = json!({"messageId": id, "contextId": format!("context-of-{id}")});
        let configuration = match self.protocol {
            Protocol::V03 => {
                message["kind"] = json!("message");
                message["role"] = json!("user");
                message["parts"] = json!([{"kind": "text", "text": text}]);
                json!({"blocking": waits})
            }
            Protocol::V10 => {
                message["role"] = json!("ROLE_USER");
                message["parts"] = json!([{"text": text}]);
                json!({"returnImmediately": !waits})
            }
        };
        let params = json!({"message": message, "configuration": configuration});
        self.call(["message/send", "SendMessage"], params).await
    }

    async fn get(&self, sent: &Value) -> Value {
        let task = sent["result"].get("task").unwrap_or(&sent["result"]);
        self.call(["tasks/get", "GetTask"], json!({"id": task["id"]})).await
    }

    /// Holds an answer against the recorded one of an agent on the official SDK.
    fn compare(&self, file: &str, ours: &Value) {
        let name = match self.protocol {
            Protocol::V03 => "a2a-python-0.3",
            Protocol::V10 => "a2a-python-1",
        };
        let path = format!("{}/../src/agent/tests/{name}/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let theirs: Value = serde_json::from_str(&text).unwrap();
        if let Some(code) = theirs["error"]["code"].as_i64() {
            assert_eq!(ours["error"]["code"], code, "{file}: {ours}");
        } else {
            assert_eq!(bare(&plain(ours)), bare(&plain(&theirs)), "{file}: ours, then {name}'s");
        }
    }
}

/// Without what is empty, which some SDKs leave out, and with a word for what each names as it likes.
fn bare(value: &Value) -> Value {
    let is_empty = |value: &Value| *value == json!("") || *value == json!([]) || value.is_null();
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let value = match (name.as_str(), value) {
                    ("url" | "name" | "description" | "nextPageToken", value) if !is_empty(value) => {
                        json!("some")
                    }
                    // Not of streams, but how there are none.
                    ("streaming", _) => json!("some"),
                    ("messageId", id) if *id == json!("answer-to-message") => json!("uuid"),
                    (_, value) => bare(value),
                };
                (name.clone(), value)
            };
            fields.iter().filter(|(_, value)| !is_empty(value)).map(field).collect()
        }
        Value::Array(values) => values.iter().map(bare).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn a_plain_agent_answers_as_those_on_the_official_sdk_do() {
    for protocol in [Protocol::V03, Protocol::V10] {
        let agent = Plain { caller: Caller::new().await, protocol };
        let text = "Pod web-1 crashes.\nIts log is empty.";

        agent.behave(Behaviour::held);
        agent.compare(
            "agent-card",
            &agent.caller.get("/direct/triage/.well-known/agent-card.json").await.body,
        );
        let sent = agent.send("submitted", false, "[[delay=1]] Pod web-1 crashes.").await;
        agent.compare("send-submitted", &sent);
        agent.compare("get-working", &agent.get(&sent).await);
        agent.behave(|good| good);
        let sent = agent.send("completed", true, &format!(" {text}")).await;
        agent.compare("send-completed", &sent);
        agent.compare("get-completed", &agent.get(&sent).await);
        agent.behave(|good| good.ends(End::Failed("The cluster could not be reached.".to_owned())));
        agent.compare(
            "get-failed",
            &agent.get(&agent.send("failed", true, &format!("[[failed]] {text}")).await).await,
        );
        agent.behave(|good| good.ends(End::InputRequired("Which namespace do you mean?".to_owned())));
        let sent = agent.send("input-required", true, &format!("[[ask]] {text}")).await;
        agent.compare("get-input-required", &agent.get(&sent).await);
        agent.behave(Behaviour::replies_with_message);
        agent.compare("send-message", &agent.send("message", true, text).await);

        agent.behave(|good| good);
        let list = async |params: Value| agent.call(["ListTasks"; 2], params).await;
        for _ in 0..3 {
            agent.send("again", true, "Pod web-1 crashes.").await;
        }
        let first = list(json!({"contextId": "context-of-again", "pageSize": 2})).await;
        agent.compare("list-tasks", &first);
        if protocol == Protocol::V10 {
            let token = &first["result"]["nextPageToken"];
            let last =
                list(json!({"contextId": "context-of-again", "pageSize": 2, "pageToken": token})).await;
            agent.compare("list-tasks-last", &last);
            agent.compare("list-no-tasks", &list(json!({"contextId": "none"})).await);
        }

        let none = || json!({"id": "none"});
        let get = ["tasks/get", "GetTask"];
        agent.compare("rpc-method", &agent.call(["GetWeather"; 2], json!({})).await);
        agent.compare("rpc-task-not-found", &agent.call(get, none()).await);
        agent.compare("rpc-version", &agent.call_as(Some("9.9"), get, none()).await);
        agent.compare("rpc-no-version", &agent.call_as(None, get, none()).await);
        let other = ["SendMessage", "message/send"];
        agent.compare("rpc-other-dialect", &agent.call(other, json!({})).await);
        agent.compare("rpc-other-dialect", &agent.call_as(None, other, json!({})).await);

        let messages = agent.caller.agent.messages();
        assert!(messages.iter().all(|message| message.protocol == protocol && message.ran));
        assert!(messages.iter().all(|message| message.agent == "direct/triage"));
        assert_eq!((messages.len(), messages[0].session.as_str()), (8, "context-of-submitted"));
    }
}

#[tokio::test]
async fn what_an_agent_does_not_do_it_refuses() {
    let caller = Caller::new().await;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"contextId": "c1"}});
    let listed = async || {
        let request = caller.request("POST", "/api/a2a/kagent/k8s-agent/").header("A2A-Version", "1.0");
        answer(request.json(&list)).await.body
    };
    assert_eq!(listed().await["error"]["code"], -32601);
    caller.agent.set(Behaviour::default().on_list(Fault::rpc(-32004, "no")));
    assert_eq!(listed().await["error"]["code"], -32004);
    caller.agent.set(Behaviour::default().speaks(&[Protocol::V10]).lists_tasks().without_sessions());
    assert_eq!(listed().await["result"]["totalSize"], 0);
    assert_eq!(caller.send("m1", "c1", "hi", None).await.body["error"]["code"], -32601);
    let session = caller.session(json!({"id": "s1", "agent_ref": "kagent/k8s-agent"})).await;
    for gone in [session, caller.get("/api/sessions/s1/tasks").await, caller.get("/api/tasks/t1").await] {
        assert_eq!((gone.status, gone.body), (404, json!("404 page not found")));
    }
    assert!(caller.agent.messages().is_empty(), "what is refused for its dialect is no message");

    let url = "http://agent.example.com/";
    caller.agent.set(Behaviour::default().card_names(url));
    let card = "/direct/triage/.well-known/agent-card.json";
    let told = caller.get(card).await.body;
    let versions: Vec<_> =
        (0..2).map(|n| told["supportedInterfaces"][n]["protocolVersion"].clone()).collect();
    assert_eq!((&told["url"], versions), (&json!(url), vec![json!("1.0"), json!("0.3")]));
    let elsewhere = caller.request("POST", "/direct/triage").json(&send("m1", "c1", "hi", None));
    assert_eq!(answer(elsewhere).await.status, 404);
    caller.agent.set(Behaviour::default().card_names("http://agent.example.com/direct/triage/a2a"));
    let there = caller.request("POST", "/direct/triage/a2a").json(&send("m1", "c1", "hi", None));
    assert_eq!(answer(there).await.body["result"]["kind"], "task");
    caller.agent.set(Behaviour::default().on_card(Fault::status(503)));
    assert_eq!(caller.get(card).await.status, 503);
}

#[tokio::test]
async fn the_same_message_twice_runs_twice_and_is_recorded() {
    let caller = Caller::new().await;
    for path in ["/api/a2a/kagent/k8s-agent?user_id=me@x", "/api/a2a/kagent/k8s-agent/?user_id=me@x"] {
        let mut call = send("m1", "c1", "words", Some(false));
        call["params"]["message"]["metadata"] = json!({"hook": "default/h1"});
        let request = caller.request("POST", path).header("Authorization", "Bearer t").json(&call);
        assert_eq!(answer(request).await.body["result"]["status"]["state"], "submitted");
    }
    let messages = caller.agent.wait_for_messages(2, SOON).await.unwrap();
    let first = &messages[0];
    assert_eq!(
        (first.agent.as_str(), first.session.as_str(), first.id.as_str()),
        ("kagent/k8s-agent", "c1", "m1")
    );
    assert_eq!((first.text.as_str(), first.user.as_str()), ("words", "me@x"));
    assert_eq!(first.authorization.as_deref(), Some("Bearer t"));
    assert_eq!(first.metadata, json!({"hook": "default/h1"}));
    assert!(!first.blocking && first.ran && first.task.is_some() && first.task != messages[1].task);
    assert_eq!(caller.agent.run_counts(), [("m1".to_owned(), 2)].into());
    let tasks = caller.get("/api/sessions/c1/tasks?user_id=me@x").await;
    assert_eq!(tasks.body["data"].as_array().unwrap().len(), 2);
    // Another user sees neither, by any door.
    let task = first.task.clone().unwrap();
    assert_eq!(caller.get("/api/sessions/c1/tasks").await.status, 404);
    assert_eq!(caller.get(&format!("/api/tasks/{task}")).await.status, 404);
    assert_eq!(caller.task(&task).await.body["error"]["code"], -32001);
    let rpc: Vec<_> = caller.agent.requests().into_iter().filter_map(|request| request.rpc).collect();
    assert_eq!(rpc, ["message/send", "message/send", "tasks/get"]);
    caller.agent.clear_record();
    assert!(caller.agent.messages().is_empty() && caller.agent.requests().is_empty());
}

#[tokio::test]
async fn the_default_answer_is_made_from_the_context() {
    let caller = Caller::new().await;
    let mut call = send("m1", "c1", "what is it?", None);
    call["params"]["message"]["metadata"] = json!({"khook": {
        "eventName": "oom-kill", "resourceName": "web-1", "namespace": "shop", "container": "app",
    }});
    let answer = caller.a2a(call).await;
    let text = &answer.body["result"]["artifacts"][0]["parts"][0]["text"];
    assert_eq!(
        text,
        "web-1 in shop: container app was killed at its memory limit. Raise the limit or look for a leak."
    );
    let text = "Look:\n  resourceName: web-2\n  reason: FailedScheduling";
    let answer = caller.send("m2", "c1", text, None).await;
    let text = answer.body["result"]["artifacts"][0]["parts"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("web-2: no node has room"), "{text}");
}

#[tokio::test]
async fn it_blocks_though_asked_not_to_and_counts_who_waits() {
    let caller = Caller::with(Behaviour::default().held().blocks()).await;
    let sends = (0..3).map(|n| {
        let (message, caller) = (format!("m{n}"), &caller);
        async move { caller.send(&message, &message, "hi", Some(false)).await }
    });
    let release = async {
        caller.agent.wait_for_runs(3, SOON).await.unwrap();
        assert_eq!(caller.agent.peak_in_flight(), 3);
        assert_eq!(caller.agent.release(), 3);
    };
    let (answers, ()) = futures::future::join(futures::future::join_all(sends), release).await;
    for answer in answers {
        assert_eq!(answer.body["result"]["status"]["state"], "completed");
    }
}

#[tokio::test]
async fn an_answer_takes_its_time() {
    let caller = Caller::with(Behaviour::default().delay(RUN)).await;
    let start = Instant::now();
    assert_eq!(caller.send("m1", "c1", "hi", None).await.body["result"]["status"]["state"], "completed");
    assert!(start.elapsed() >= RUN);
}

#[tokio::test]
async fn a_call_limit_ends_the_call_and_not_the_run() {
    let caller = Caller::with(Behaviour::default().held().call_limit(Duration::from_millis(50))).await;
    let answer = caller.send("m1", "c1", "hi", None).await;
    assert_eq!(answer.body["error"]["code"], -32603);
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("Client.Timeout exceeded"));
    let state =
        async || caller.get("/api/sessions/c1/tasks").await.body["data"][0]["status"]["state"].clone();
    assert_eq!(state().await, "working");
    caller.agent.release();
    assert_eq!(state().await, "completed");
}

#[tokio::test]
async fn a_message_result_leaves_no_task() {
    let caller =
        Caller::with(Behaviour::default().answers(|_| "well".to_owned()).replies_with_message()).await;
    let answer = caller.send("m1", "c1", "hi", Some(false)).await;
    let result = &answer.body["result"];
    assert_eq!((&result["kind"], &result["role"]), (&json!("message"), &json!("agent")));
    assert_eq!(result["parts"][0]["text"], "well");
    assert_eq!(caller.get("/api/sessions/c1/tasks").await.body["data"], json!([]));
    assert!(caller.agent.messages()[0].ran && caller.agent.messages()[0].task.is_none());
}

#[tokio::test]
async fn faults_show_as_often_as_said_and_only_for_the_agent_they_are_for() {
    let caller = Caller::new().await;
    let fault = Fault::status(503).header("Retry-After", "3").times(2);
    caller.agent.set_for("kagent/sick", Behaviour::default().on_session(fault));
    let body = |agent: &str| json!({"id": "s1", "agent_ref": format!("kagent/{agent}")});
    let mut statuses = Vec::new();
    for agent in ["sick", "well", "sick", "sick"] {
        let response = caller.request("POST", "/api/sessions").json(&body(agent)).send().await.unwrap();
        let after = response.headers().get("Retry-After").map(|value| value.to_str().unwrap().to_owned());
        statuses.push((response.status().as_u16(), after));
    }
    let sick = (503, Some("3".to_owned()));
    assert_eq!(statuses, [sick.clone(), (201, None), sick, (201, None)]);
    let recorded: Vec<_> =
        caller.agent.sessions().into_iter().map(|call| (call.agent, call.status)).collect();
    let of = |agent: &str, status| (format!("kagent/{agent}"), Some(status));
    assert_eq!(recorded, [of("sick", 503), of("well", 201), of("sick", 503), of("sick", 201)]);

    caller.agent.set(Behaviour::default().on_send(Fault::status(500)).on_get(Fault::rpc(-32603, "no")));
    assert_eq!(caller.send("m1", "c1", "hi", None).await.status, 500);
    assert_eq!(caller.task("x").await.body["error"]["code"], -32603);
    caller.agent.set(Behaviour::default().on_lookup(Fault::status(502)));
    assert_eq!(caller.get("/api/sessions/s1").await.status, 502);
    caller.agent.heal();
    assert_eq!(caller.send("m1", "c1", "hi", None).await.status, 200);
    assert_eq!(caller.agent.counts(), [("m1".to_owned(), 2)].into());
    assert_eq!(caller.agent.run_counts(), [("m1".to_owned(), 1)].into());
}

/// The raw end of a connection after a message was sent on it.
async fn raw_end(agent: &Agent) -> std::io::Result<usize> {
    let mut stream = tokio::net::TcpStream::connect(agent.url().trim_start_matches("http://")).await?;
    let body = send("m1", "c1", "hi", Some(false)).to_string();
    let head = "POST /api/a2a/kagent/k8s-agent/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await
}

#[tokio::test]
async fn a_reset_and_an_empty_reply_come_after_the_message_was_read() {
    let caller = Caller::new().await;
    for (fault, ran) in [(Fault::reset(), false), (Fault::reset().runs(), true)] {
        caller.agent.clear_record();
        caller.agent.set(Behaviour::default().on_send(fault));
        let error = raw_end(&caller.agent).await.expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let runs: Vec<_> = caller.agent.messages().into_iter().map(|message| message.ran).collect();
        assert_eq!(runs, [ran]);
    }
    // The run that was started is found by whoever looks.
    let tasks = caller.get("/api/sessions/c1/tasks").await;
    assert_eq!(tasks.body["data"][0]["history"][0]["messageId"], "m1");

    caller.agent.set(Behaviour::default().on_send(Fault::close()));
    assert_eq!(raw_end(&caller.agent).await.expect("closed in order"), 0);
    caller.agent.set(Behaviour::default().on_session(Fault::reset()));
    let lost =
        caller.request("POST", "/api/sessions").json(&json!({"id": "s", "agent_ref": "a/b"})).send().await;
    assert!(lost.is_err());
    assert_eq!(caller.agent.sessions()[0].status, None);
    assert_eq!(caller.get("/api/sessions/s").await.status, 404);
}

#[tokio::test]
async fn a_hang_lasts_as_long_as_the_client_waits() {
    let caller = Caller::with(Behaviour::default().on_send(Fault::hang().runs())).await;
    let hanging = caller.send("m1", "c1", "hi", Some(false));
    let silence = async {
        caller.agent.wait_for_runs(1, SOON).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    tokio::select! {
        answer = hanging => panic!("it answered: {answer:?}"),
        () = silence => {}
    }
}

#[tokio::test]
async fn bodies_can_be_garbage_empty_or_without_end() {
    let caller = Caller::new().await;
    let post = || {
        caller.request("POST", "/api/a2a/kagent/k8s-agent/").json(&send("m1", "c1", "hi", Some(false))).send()
    };
    caller.agent.set(Behaviour::default().on_send(Fault::garbage()));
    let body = post().await.unwrap().bytes().await.unwrap();
    assert!(serde_json::from_slice::<Value>(&body).is_err() && std::str::from_utf8(&body).is_err());
    caller.agent.set(Behaviour::default().on_send(Fault::empty()));
    assert!(post().await.unwrap().bytes().await.unwrap().is_empty());

    caller.agent.set(Behaviour::default().on_send(Fault::huge(100 << 20)));
    let mut response = post().await.unwrap();
    let mut read = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        read += chunk.len();
    }
    assert!(read >= 100 << 20, "{read}");
    assert!(caller.agent.runs().is_empty());
}

#[tokio::test]
async fn it_goes_down_and_comes_back_on_its_port() {
    let caller = Caller::with(Behaviour::default().held()).await;
    let start = async |id: &str| {
        caller.send(id, "c1", "hi", Some(false)).await.body["result"]["id"].as_str().unwrap().to_owned()
    };
    let lost = start("m1").await;
    caller.agent.stop().await;
    let error = caller.request("GET", "/health").send().await.expect_err("down");
    assert!(error.is_connect(), "{error:?}");
    assert_eq!(caller.agent.release(), 1);
    caller.agent.start().await.unwrap();
    assert_eq!(caller.get("/health").await.status, 200);
    // Nobody noted the end of a run that ended meanwhile; a later one ends as it should.
    assert_eq!(caller.task(&lost).await.body["result"]["status"]["state"], "working");
    let later = start("m2").await;
    caller.agent.release();
    assert_eq!(caller.task(&later).await.body["result"]["status"]["state"], "completed");
    assert!(caller.agent.start().await.is_err(), "it runs already");
}

#[tokio::test]
async fn it_runs_as_a_program() -> Result<()> {
    let port = e2e::process::free_port()?;
    let scratch = e2e::process::Scratch::new()?;
    let spec = e2e::process::Spec::new(env!("CARGO_BIN_EXE_e2e"), scratch.path().join("log"));
    let _agent = e2e::process::Process::spawn(&spec.args(["agent", "--port", &port.to_string()]))?;
    let http = e2e::http_client()?;
    eventually("its health", SOON, async || {
        let answer = http.get(format!("http://127.0.0.1:{port}/health")).send().await?;
        anyhow::ensure!(answer.status() == 200);
        Ok(())
    })
    .await?;
    let log = std::fs::read_to_string(scratch.path().join("log"))?;
    assert_eq!(log, format!("http://127.0.0.1:{port}\n"));
    Ok(())
}
