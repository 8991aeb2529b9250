//! The client against servers that behave, with the bodies a real kagent gave, and against servers
//! that do not. Every call is counted at the server: one call, at most one message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rstest::rstest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{method, path},
};

mod direct;

use super::{AgentCall, Agents, Credential, Follow, Inquiry, Kagent, KagentConfig, endpoint::Dialect};
use crate::incident::outcome::{AgentName, EndState, Ended, Lookup, Protocol, Reply, Usage};

macro_rules! seen {
    ($name:literal) => {
        include_str!(concat!("tests/kagent-0.9.9/", $name))
    };
}

macro_rules! seen_010 {
    ($name:literal) => {
        include_str!(concat!("tests/kagent-0.10.0-rc3/", $name))
    };
}

const SESSION: &str = "5a4e2a0e-7d5b-5c0e-9a51-0d6c8b1d2f10";
const A2A: &str = "/api/a2a/kagent/k8s-agent/";
/// What the model of the transcripts says it used.
const USAGE: Option<Usage> = Some(Usage { prompt: 10, answer: 5, total: 15 });
const TASK: &str = "a6df89db-9a62-4edf-8826-2b0d605e335b";

fn agent() -> AgentName {
    "kagent/k8s-agent".parse().unwrap()
}

fn call() -> AgentCall {
    AgentCall {
        agent: agent(),
        direct: None,
        session_id: SESSION.into(),
        session_name: "pod-restart shop/cart-0".into(),
        message_id: "0f2b8a3e-51c7-5d9f-8f34-6a1f7f0c9be2".into(),
        text: "Pod shop/cart-0 restarted.\nWhy?".into(),
        metadata: json!({"khook": {"eventType": "pod-restart", "resource": "shop/cart-0"}}),
        traceparent: None,
    }
}

/// A client of kagent that speaks 0.3 and nothing else, so that every request it makes is one that counts.
#[derive(Debug)]
struct Client(Kagent);

impl Client {
    fn new(config: KagentConfig) -> Self {
        Self(Kagent::new(config).unwrap())
    }

    async fn call(&self, call: &AgentCall, wanted: impl Fn() -> bool) -> Reply {
        self.0.call(call, Dialect::Only(Protocol::V03), wanted).await
    }

    async fn lookup(&self, session_id: &str, message_id: &str) -> Lookup {
        let about = Inquiry { agent: &agent(), direct: None, session_id, protocol: Some(Protocol::V03) };
        self.0.lookup(&about, message_id).await
    }

    async fn follow(&self, agent: &AgentName, task_id: &str) -> Follow {
        self.0.follow(agent, Dialect::Only(Protocol::V03), task_id).await
    }
}

/// All agents, of the kagent at this server.
fn agents(server: &MockServer, protocol: Option<Protocol>) -> Agents {
    let kagent = Kagent::new(KagentConfig::new(server.uri())).unwrap();
    Agents::new(kagent, protocol, direct::client("", Vec::new()))
}

fn kagent(base: &str) -> Client {
    Client::new(KagentConfig::new(base))
}

/// A client that gives up soon, for servers that never answer.
fn impatient(base: &str) -> Client {
    let soon = Duration::from_secs(1);
    Client::new(KagentConfig {
        api_timeout: soon,
        session_timeout: soon,
        lookup_timeout: soon,
        ..KagentConfig::new(base)
    })
}

/// kagent, well and awake, but for its answer to the message.
async fn answering(message: ResponseTemplate) -> MockServer {
    answering_both(ResponseTemplate::new(201).set_body_string(seen!("session-created.json")), message).await
}

async fn answering_both(session: ResponseTemplate, message: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST")).and(path("/api/sessions")).respond_with(session).mount(&server).await;
    Mock::given(method("POST")).and(path(A2A)).respond_with(message).mount(&server).await;
    server
}

fn ok(body: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_string(body)
}

async fn messages(server: &MockServer) -> usize {
    server.received_requests().await.unwrap().iter().filter(|r| r.url.path() == A2A).count()
}

/// The outcome's name, and its error.
fn told(reply: &Reply) -> (&'static str, &str) {
    match reply {
        Reply::Accepted { .. } => ("Accepted", ""),
        Reply::NotRun { error, throttled: false, .. } => ("NotRun", error),
        Reply::NotRun { error, throttled: true, .. } => ("NotRun, throttled", error),
        Reply::Permanent { error } => ("Permanent", error),
        Reply::Unknown { error } => ("Unknown", error),
    }
}

/// A request as a person would write it down.
fn shown(request: &Request) -> String {
    let mut url = request.url.clone();
    url.set_port(None).unwrap();
    let mut out = format!("{} {url}\n", request.method);
    for name in ["content-type", "x-user-id", "authorization", "a2a-version"] {
        if let Some(value) = request.headers.get(name) {
            out += &format!("{name}: {}\n", value.to_str().unwrap());
        }
    }
    if !request.body.is_empty() {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        out += &serde_json::to_string_pretty(&body).unwrap();
    }
    out
}

// What is sent.

#[tokio::test]
async fn a_call_is_a_session_and_one_message() {
    let server = answering(ok(seen!("send-submitted.json"))).await;
    let config = KagentConfig {
        user_id: "khook+test@kagent.dev".into(),
        credential: Credential::Key("t0ken".into()),
        ..KagentConfig::new(server.uri())
    };
    let reply = Client::new(config).call(&call(), || true).await;
    assert_eq!(
        reply,
        Reply::Accepted { task_id: Some(TASK.into()), ended: None, protocol: Some(Protocol::V03) }
    );

    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.len(), 2);
    insta::assert_snapshot!(shown(&requests[0]), @r#"
    POST http://localhost/api/sessions?user_id=khook%2Btest%40kagent.dev
    content-type: application/json
    x-user-id: khook+test@kagent.dev
    authorization: Bearer t0ken
    {
      "agent_ref": "kagent/k8s-agent",
      "id": "5a4e2a0e-7d5b-5c0e-9a51-0d6c8b1d2f10",
      "name": "pod-restart shop/cart-0"
    }
    "#);
    insta::assert_snapshot!(shown(&requests[1]), @r#"
    POST http://localhost/api/a2a/kagent/k8s-agent/?user_id=khook%2Btest%40kagent.dev
    content-type: application/json
    x-user-id: khook+test@kagent.dev
    authorization: Bearer t0ken
    {
      "id": "0f2b8a3e-51c7-5d9f-8f34-6a1f7f0c9be2",
      "jsonrpc": "2.0",
      "method": "message/send",
      "params": {
        "configuration": {
          "blocking": false
        },
        "message": {
          "contextId": "5a4e2a0e-7d5b-5c0e-9a51-0d6c8b1d2f10",
          "kind": "message",
          "messageId": "0f2b8a3e-51c7-5d9f-8f34-6a1f7f0c9be2",
          "metadata": {
            "khook": {
              "eventType": "pod-restart",
              "resource": "shop/cart-0"
            }
          },
          "parts": [
            {
              "kind": "text",
              "text": "Pod shop/cart-0 restarted.\nWhy?"
            }
          ],
          "role": "user"
        }
      }
    }
    "#);
}

#[tokio::test]
async fn reads_name_the_user_twice_and_carry_the_credential() {
    let server = MockServer::start().await;
    let config =
        KagentConfig { credential: Credential::Key("t0ken".into()), ..KagentConfig::new(server.uri()) };
    let kagent = Client::new(config);
    kagent.lookup(SESSION, "m").await;
    kagent.follow(&agent(), TASK).await;
    let requests = server.received_requests().await.unwrap();
    insta::assert_snapshot!(requests.iter().map(shown).collect::<Vec<_>>().join("\n"), @r#"
    GET http://localhost/api/sessions/5a4e2a0e-7d5b-5c0e-9a51-0d6c8b1d2f10/tasks?user_id=admin%40kagent.dev
    x-user-id: admin@kagent.dev
    authorization: Bearer t0ken

    GET http://localhost/api/tasks/a6df89db-9a62-4edf-8826-2b0d605e335b?user_id=admin%40kagent.dev
    x-user-id: admin@kagent.dev
    authorization: Bearer t0ken
    "#);
}

#[rstest]
#[case("", "")]
#[case("/", "")]
#[case("/kagent", "/kagent")]
#[case("/a/kagent/", "/a/kagent")]
#[tokio::test]
async fn the_address_may_have_a_path(#[case] tail: &str, #[case] prefix: &str) {
    let server = MockServer::start().await;
    kagent(&format!("{}{tail}", server.uri())).follow(&agent(), "t").await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests[0].url.path(), format!("{prefix}/api/tasks/t"));
}

#[tokio::test]
async fn ids_are_encoded_and_cannot_lead_elsewhere() {
    let server = MockServer::start().await;
    let kagent = kagent(&server.uri());
    kagent.lookup("a b?c#d%2Fe", "m").await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests[0].url.path(), "/api/sessions/a%20b%3Fc%23d%252Fe/tasks");

    for bad in ["", ".", "..", "../x", "a/b", "a\\b", "a\nb"] {
        let lookup = kagent.lookup(bad, "m").await;
        assert!(
            matches!(&lookup, Lookup::Unavailable { error } if error.contains("URL")),
            "{bad}: {lookup:?}"
        );
        assert!(matches!(kagent.follow(&agent(), bad).await, Follow::Unavailable { .. }), "{bad}");
        let strange = AgentName::kagent("kagent", bad);
        let replies = [
            kagent.call(&AgentCall { agent: strange, ..call() }, || true).await,
            kagent.call(&AgentCall { session_id: bad.into(), ..call() }, || true).await,
            kagent.call(&AgentCall { message_id: bad.into(), ..call() }, || true).await,
        ];
        for reply in &replies {
            assert_eq!(told(reply).0, "Permanent", "{bad}");
        }
    }
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
}

// What the answer to a message means.

#[rstest]
#[case::blocking(seen!("send-completed.json"), EndState::Completed, "Investigated: [[delay=3]] Blocking one", USAGE)]
#[case::failed(seen!("send-failed.json"), EndState::Failed, "Error code: 500 - fake failure", None)]
#[case::asks(
    seen!("send-input-required.json"),
    EndState::InputRequired,
    "Let me ask.\nWhich namespace?",
    Some(Usage { prompt: 1, answer: 1, total: 2 })
)]
#[tokio::test]
async fn a_task_that_has_ended_brings_its_end(
    #[case] body: &str,
    #[case] state: EndState,
    #[case] answer: &str,
    #[case] usage: Option<Usage>,
) {
    let server = answering(ok(body)).await;
    match kagent(&server.uri()).call(&call(), || true).await {
        Reply::Accepted { task_id: Some(_), ended, protocol: Some(Protocol::V03) } => {
            assert_eq!(ended, Some(Ended { state, answer: answer.into(), usage }));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(messages(&server).await, 1);
}

#[tokio::test]
async fn a_message_is_an_answer_without_a_task() {
    let message =
        json!({"kind": "message", "role": "agent", "taskId": "t", "parts": [{"kind": "text", "text": "hi"}]});
    let server = answering(ok(&json!({"jsonrpc": "2.0", "result": message}).to_string())).await;
    let ended = Some(Ended { state: EndState::Completed, answer: "hi".into(), usage: None });
    assert_eq!(
        kagent(&server.uri()).call(&call(), || true).await,
        Reply::Accepted { task_id: None, ended, protocol: Some(Protocol::V03) }
    );
}

#[rstest]
#[case::unknown_agent(404, seen!("rpc-unknown-agent.txt"), "NotRun")]
#[case::unknown_version(400, seen!("rpc-version.txt"), "NotRun")]
#[case::parse_error(200, seen!("rpc-parse.json"), "NotRun")]
#[case::no_method(200, seen!("rpc-method.json"), "NotRun")]
#[case::invalid_params(200, seen!("rpc-invalid-params.json"), "NotRun")]
#[case::invalid_request(200, seen!("rpc-invalid-request.json"), "NotRun")]
#[case::task_not_found(200, seen!("rpc-task-not-found.json"), "Unknown")]
#[case::agent_timeout(200, seen!("rpc-client-timeout.json"), "Unknown")]
#[case::agent_eof(200, seen!("rpc-eof.json"), "Unknown")]
#[case::agent_refused(200, seen!("rpc-refused.json"), "Unknown")]
#[case::no_such_host(200, seen!("rpc-no-such-host.json"), "Unknown")]
#[case::agent_404(200, seen!("rpc-upstream-404.json"), "Unknown")]
#[case::database_down(200, seen!("rpc-database-down.json"), "Unknown")]
#[case::controller_sigterm(200, seen!("rpc-sigterm.json"), "Unknown")]
#[case::unlisted(200, r#"{"error":{"code":-32005,"message":"no text please"}}"#, "Unknown")]
#[case::no_code(200, r#"{"error":{}}"#, "Unknown")]
#[case::html(200, "<html>Please log in</html>", "Unknown")]
#[case::empty(200, "", "Unknown")]
#[case::no_content(204, "", "Unknown")]
#[case::neither(200, r#"{"jsonrpc":"2.0","id":"1"}"#, "Unknown")]
#[case::nulls(200, r#"{"result":null,"error":null}"#, "Unknown")]
#[case::task_without_id(200, r#"{"result":{"kind":"task","status":{"state":"submitted"}}}"#, "Unknown")]
#[case::ended_without_id(200, r#"{"result":{"kind":"task","status":{"state":"completed"}}}"#, "Accepted")]
#[case::strange_state(200, r#"{"result":{"id":"t","status":{"state":"tired"}}}"#, "Accepted")]
#[case::error_wins(
    200,
    r#"{"result":{"id":"t","status":{"state":"working"}},"error":{"code":-32603}}"#,
    "Unknown"
)]
#[case(302, "", "NotRun")]
#[case(304, "", "NotRun")]
#[case(400, "bad", "NotRun")]
#[case(401, "Unauthorized", "NotRun")]
#[case(403, "Forbidden", "NotRun")]
#[case(405, "", "NotRun")]
#[case(422, "", "NotRun")]
#[case(429, "slow down", "NotRun, throttled")]
#[case(408, "", "Unknown")]
#[case(460, "", "Unknown")]
#[case(499, "", "Unknown")]
#[case(413, "", "Permanent")]
#[case(414, "", "Permanent")]
#[case(431, "", "Permanent")]
#[case(500, r#"{"error":"Internal server error"}"#, "Unknown")]
#[case(501, "", "Unknown")]
#[case(502, "Bad Gateway", "Unknown")]
#[case(503, "Service Unavailable", "Unknown")]
#[case(504, "", "Unknown")]
#[tokio::test]
async fn a_message_is_classified_by_its_answer(
    #[case] status: u16,
    #[case] body: &str,
    #[case] want: &str,
    #[values(Protocol::V03, Protocol::V10)] protocol: Protocol,
) {
    let server = answering(ResponseTemplate::new(status).set_body_string(body)).await;
    let Client(kagent) = kagent(&server.uri());
    let reply = kagent.call(&call(), Dialect::Only(protocol), || true).await;
    assert_eq!(told(&reply).0, want, "{reply:?}");
    assert_eq!(messages(&server).await, 1);
}

// In which dialect it is sent.

/// kagent 0.9 with the 1.0 header: the request as it was recorded, and what came back for it.
#[tokio::test]
async fn a_message_in_1_0_names_its_version() {
    let server = answering(ok(seen!("v1-send-submitted.json"))).await;
    let Client(kagent) = kagent(&server.uri());
    let reply = kagent.call(&call(), Dialect::Only(Protocol::V10), || true).await;
    let task_id = Some("b39d11c5-448c-49e4-ba8e-00ef689297b4".into());
    assert_eq!(reply, Reply::Accepted { task_id, ended: None, protocol: Some(Protocol::V10) });
    let requests = server.received_requests().await.unwrap();
    insta::assert_snapshot!(shown(&requests[1]), @r#"
    POST http://localhost/api/a2a/kagent/k8s-agent/?user_id=admin%40kagent.dev
    content-type: application/json
    x-user-id: admin@kagent.dev
    a2a-version: 1.0
    {
      "id": "0f2b8a3e-51c7-5d9f-8f34-6a1f7f0c9be2",
      "jsonrpc": "2.0",
      "method": "SendMessage",
      "params": {
        "configuration": {
          "returnImmediately": true
        },
        "message": {
          "contextId": "5a4e2a0e-7d5b-5c0e-9a51-0d6c8b1d2f10",
          "messageId": "0f2b8a3e-51c7-5d9f-8f34-6a1f7f0c9be2",
          "metadata": {
            "khook": {
              "eventType": "pod-restart",
              "resource": "shop/cart-0"
            }
          },
          "parts": [
            {
              "text": "Pod shop/cart-0 restarted.\nWhy?"
            }
          ],
          "role": "ROLE_USER"
        }
      }
    }
    "#);
}

/// Answers the message in one dialect and refuses it in the other.
async fn speaking(only: Protocol, refusal: ResponseTemplate) -> MockServer {
    let accepted = match only {
        Protocol::V03 => seen!("send-submitted.json"),
        Protocol::V10 => seen!("v1-send-submitted.json"),
    };
    let server = MockServer::start().await;
    let session = ResponseTemplate::new(201).set_body_string(seen!("session-created.json"));
    Mock::given(method("POST")).and(path("/api/sessions")).respond_with(session).mount(&server).await;
    let in_dialect = move |request: &Request| {
        let version = request.headers.get("a2a-version").map(|version| version.to_str().unwrap().to_owned());
        let body: Value = request.body_json().unwrap();
        match only {
            Protocol::V03 => version.is_none() && body["method"] == "message/send",
            Protocol::V10 => version.as_deref() == Some("1.0") && body["method"] == "SendMessage",
        }
    };
    Mock::given(path(A2A)).and(in_dialect).respond_with(ok(accepted)).mount(&server).await;
    Mock::given(path(A2A)).respond_with(refusal).mount(&server).await;
    server
}

#[rstest]
#[case::no_method(ok(seen!("rpc-method.json")))]
#[case::no_version(ok(r#"{"error":{"code":-32009,"message":"Version not supported"}}"#))]
#[case::kagent(ResponseTemplate::new(400).set_body_string(seen!("rpc-version.txt")))]
#[case::bad_form(ok(seen!("rpc-invalid-params.json")))]
#[case::unprocessable(ResponseTemplate::new(422))]
#[tokio::test]
async fn a_refusal_of_the_dialect_is_tried_in_the_other_and_remembered(
    #[case] refusal: ResponseTemplate,
    #[values(Protocol::V03, Protocol::V10)] only: Protocol,
) {
    let server = speaking(only, refusal).await;
    let agents = agents(&server, None);
    for round in 0..2 {
        match agents.call(&call(), || true).await {
            Reply::Accepted { protocol, .. } => assert_eq!(protocol, Some(only)),
            other => panic!("{other:?}"),
        }
        let tries = if only == Protocol::V10 { 2 } else { 1 };
        assert_eq!(messages(&server).await, tries + round, "once it is known, no other is tried");
    }
}

#[tokio::test]
async fn a_known_dialect_is_left_only_by_a_refusal_that_is_about_it() {
    let server = speaking(Protocol::V10, ok(seen!("rpc-method.json"))).await;
    let Client(kagent) = kagent(&server.uri());
    let reply = kagent.call(&call(), Dialect::Known(Protocol::V03), || true).await;
    assert_eq!(told(&reply).0, "Accepted", "it was upgraded");
    let server = speaking(Protocol::V10, ok(seen!("rpc-invalid-params.json"))).await;
    let Client(kagent) = self::kagent(&server.uri());
    let reply = kagent.call(&call(), Dialect::Known(Protocol::V03), || true).await;
    assert_eq!((told(&reply).0, messages(&server).await), ("NotRun", 1));
}

#[tokio::test]
async fn a_dialect_that_was_set_is_the_only_one() {
    let server = speaking(Protocol::V10, ok(seen!("rpc-method.json"))).await;
    let reply = agents(&server, Some(Protocol::V03)).call(&call(), || true).await;
    assert_eq!((told(&reply).0, messages(&server).await), ("NotRun", 1));
}

#[tokio::test]
async fn where_both_dialects_are_refused_the_first_refusal_is_told() {
    let server = answering(ok(seen!("rpc-method.json"))).await;
    let reply = agents(&server, None).call(&call(), || true).await;
    assert_eq!((told(&reply).0, messages(&server).await), ("NotRun", 2));
}

#[tokio::test]
async fn what_may_have_run_is_not_tried_in_another_dialect() {
    for body in [seen!("rpc-eof.json"), "", seen!("rpc-task-not-found.json")] {
        let server = answering(ok(body)).await;
        let reply = agents(&server, None).call(&call(), || true).await;
        assert_eq!((told(&reply).0, messages(&server).await), ("Unknown", 1), "{body}");
    }
}

#[tokio::test]
async fn a_task_is_asked_for_in_the_dialect_of_its_agent() {
    let server = MockServer::start().await;
    let rest = ResponseTemplate::new(404).set_body_string(seen!("not-found.txt"));
    Mock::given(method("GET")).respond_with(rest).mount(&server).await;
    let asked =
        |name: &'static str| move |request: &Request| request.body_json::<Value>().unwrap()["method"] == name;
    let working = r#"{"result":{"id":"t","status":{"state":"TASK_STATE_WORKING"}}}"#;
    Mock::given(path(A2A)).and(asked("GetTask")).respond_with(ok(working)).mount(&server).await;
    Mock::given(path(A2A)).respond_with(ok(seen!("rpc-method.json"))).mount(&server).await;
    let agent = agent();
    for protocol in [None, Some(Protocol::V03), Some(Protocol::V10)] {
        let about = Inquiry { agent: &agent, direct: None, session_id: SESSION, protocol };
        assert_eq!(agents(&server, None).follow(&about, "t").await, Follow::Running, "{protocol:?}");
    }
}

#[rstest]
#[case::unknown_agent(400, seen!("session-unknown-agent.json"), "NotRun")]
#[case::database_down(400, seen!("session-database-down.json"), "NotRun")]
#[case::bad_json(400, seen!("session-bad-json.json"), "NotRun")]
#[case::deleted(500, seen!("session-deleted.json"), "NotRun")]
#[case::html(200, "<html>Please log in</html>", "NotRun")]
#[case::garbage(201, "\u{0}\u{1}", "NotRun")]
#[case::error_in_201(201, r#"{"error":"no"}"#, "NotRun")]
#[case::error_flag(201, r#"{"error":true,"message":"no"}"#, "NotRun")]
#[case(202, r#"{"error":false,"data":{}}"#, "NotRun")]
#[case(307, "", "NotRun")]
#[case(401, "Unauthorized", "NotRun")]
#[case(413, "", "NotRun")]
#[case(429, "", "NotRun, throttled")]
#[case(503, "", "NotRun")]
#[tokio::test]
async fn without_a_session_no_message_is_sent(#[case] status: u16, #[case] body: &str, #[case] want: &str) {
    let session = ResponseTemplate::new(status).set_body_string(body);
    let server = answering_both(session, ok(seen!("send-submitted.json"))).await;
    let reply = kagent(&server.uri()).call(&call(), || true).await;
    assert_eq!(told(&reply).0, want, "{reply:?}");
    assert_eq!(messages(&server).await, 0);
}

#[tokio::test]
async fn a_kagent_without_sessions_is_sent_the_message_alone() {
    let session = ResponseTemplate::new(404).set_body_string(seen!("not-found.txt"));
    let server = answering_both(session, ok(seen!("send-submitted.json"))).await;
    assert_eq!(told(&kagent(&server.uri()).call(&call(), || true).await).0, "Accepted");
    assert_eq!(messages(&server).await, 1);
}

#[tokio::test]
async fn a_session_that_was_there_already_is_as_good() {
    let server = answering_both(ok(seen!("session-created.json")), ok(seen!("send-submitted.json"))).await;
    assert_eq!(told(&kagent(&server.uri()).call(&call(), || true).await).0, "Accepted");
}

#[rstest]
#[case("0", None, Some(0))]
#[case("7", None, Some(7))]
#[case(" 120 ", None, Some(120))]
#[case("86400", None, Some(3600))]
#[case("99999999999999999999999", None, Some(3600))]
#[case("Sun, 22 Nov 2026 13:05:00 GMT", Some("Sun, 22 Nov 2026 13:00:00 GMT"), Some(300))]
#[case("Sun, 22 Nov 2026 12:59:00 GMT", Some("Sun, 22 Nov 2026 13:00:00 GMT"), Some(0))]
#[case("Fri, 22 Nov 2126 13:00:00 GMT", Some("nonsense"), Some(3600))]
#[case("Mon, 22 Nov 1999 13:00:00 GMT", None, Some(0))]
#[case("-5", None, None)]
#[case("1.5", None, None)]
#[case("soon", None, None)]
#[case("", None, None)]
#[tokio::test]
async fn retry_after_is_seconds_or_a_date_and_at_most_an_hour(
    #[case] header: &str,
    #[case] date: Option<&str>,
    #[case] want: Option<u64>,
) {
    let mut busy = ResponseTemplate::new(429).insert_header("retry-after", header);
    if let Some(date) = date {
        busy = busy.insert_header("date", date);
    }
    let want = want.map(Duration::from_secs);
    for server in [answering(busy.clone()).await, answering_both(busy.clone(), ok("")).await] {
        match kagent(&server.uri()).call(&call(), || true).await {
            Reply::NotRun { retry_after, throttled: true, .. } => assert_eq!(retry_after, want),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_that_is_unavailable_for_a_while_says_how_long() {
    let away = ResponseTemplate::new(503).insert_header("retry-after", "9");
    let server = answering_both(away, ok("")).await;
    match kagent(&server.uri()).call(&call(), || true).await {
        Reply::NotRun { retry_after, throttled: false, .. } => {
            assert_eq!(retry_after, Some(Duration::from_secs(9)))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn redirects_are_reported_and_not_followed() {
    let elsewhere = MockServer::start().await;
    let location = format!("http://user:pass@{}/login?next=x", elsewhere.address());
    let away = ResponseTemplate::new(307).insert_header("location", location);
    let server = answering(away.clone()).await;
    let reply = kagent(&server.uri()).call(&call(), || true).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains("redirects to 127.0.0.1 (307") && !error.contains("pass"), "{error}");
    assert_eq!(messages(&server).await, 1);

    Mock::given(method("GET")).respond_with(away).mount(&server).await;
    let kagent = kagent(&server.uri());
    assert!(matches!(kagent.lookup(SESSION, "m").await, Lookup::Unavailable { .. }));
    assert!(matches!(kagent.follow(&agent(), TASK).await, Follow::Unavailable { .. }));
    assert_eq!(elsewhere.received_requests().await.unwrap().len(), 0);
}

#[tokio::test]
async fn errors_say_what_where_and_what_to_do() {
    let bodies = [
        (404, seen!("rpc-unknown-agent.txt")),
        (401, "Unauthorized"),
        (413, "request body too large"),
        (502, ""),
        (200, seen!("rpc-eof.json")),
        (200, "<html>\n<b>log in</b>\n</html>"),
    ];
    let mut said = String::new();
    for (status, body) in bodies {
        let server = answering(ResponseTemplate::new(status).set_body_string(body)).await;
        let reply = kagent(&server.uri()).call(&call(), || true).await;
        let (kind, error) = told(&reply);
        said += &format!("{kind}: {}\n", error.replace(&server.uri(), "http://kagent:8083"));
    }
    let session = ResponseTemplate::new(400).set_body_string(seen!("session-database-down.json"));
    let server = answering_both(session, ok("")).await;
    let reply = kagent(&server.uri()).call(&call(), || true).await;
    let (kind, error) = told(&reply);
    said += &format!("{kind}: {}\n", error.replace(&server.uri(), "http://kagent:8083"));
    insta::assert_snapshot!(said, @r#"
    NotRun: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered 404 Not Found: Agent kagent/nope not found; is there an Agent kagent/k8s-agent, and is it accepted?
    NotRun: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered 401 Unauthorized: Unauthorized; check the credential that khook shows it
    Permanent: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered 413 Payload Too Large: request body too large; the message is too large, shorten the prompt
    Unknown: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered 502 Bad Gateway: (nothing)
    Unknown: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered with error -32603: failed to send HTTP request: Post "http://k8s-agent.kagent:8080": EOF
    Unknown: POST http://kagent:8083/api/a2a/kagent/k8s-agent/ answered 200 OK with what cannot be understood (expected value at line 1 column 1): <html> <b>log in</b> </html>
    NotRun: POST http://kagent:8083/api/sessions answered 400 Bad Request: Agent ref is invalid, please check the agent ref kagent/k8s-agent: failed to get agent kagent__NS__k8s_agent: failed to connect to `user=postgres database=kagent`: 127.0.0.1:5434 (127.0.0.1): dial error: dial tcp 127.0.0.1:5434: connect: connection refused
    "#);
}

// The credential.

#[tokio::test]
async fn nothing_that_is_said_has_the_credential_in_it() {
    let key = "s3cret-t0ken";
    let text = format!("{}\u{7}\n you sent Bearer {key}, {key}", "x".repeat(295 - 20));
    let config = |server: &MockServer| KagentConfig {
        credential: Credential::Key(format!(" {key}\n")),
        ..KagentConfig::new(server.uri())
    };
    for (status, body) in [
        (401, text.clone()),
        (502, json!({"error": text}).to_string()),
        (200, text.clone()),
        (200, json!({"error": {"code": -32603, "message": text}}).to_string()),
        (200, json!({"result": {"kind": key}}).to_string()),
    ] {
        let server = answering(ResponseTemplate::new(status).set_body_string(body.clone())).await;
        Mock::given(method("GET"))
            .respond_with(ResponseTemplate::new(status).set_body_string(body))
            .mount(&server)
            .await;
        let kagent = Client::new(config(&server));
        let reply = kagent.call(&call(), || true).await;
        let lookup = kagent.lookup(SESSION, "m").await;
        let follow = kagent.follow(&agent(), TASK).await;
        let all = format!("{reply:?} {lookup:?} {follow:?} {kagent:?}");
        assert!(!all.contains("s3cret"), "{all}");
        assert!(!all.contains("Bearer s"), "{all}");
        assert!(!told(&reply).1.contains(char::is_control), "{reply:?}");
        assert!(told(&reply).1.chars().count() < 600, "{reply:?}");
        assert_eq!(
            server.received_requests().await.unwrap()[0].headers["authorization"].to_str().unwrap(),
            format!("Bearer {key}")
        );
    }

    let answer = json!({"result": {"id": "t", "status": {"state": "failed", "message":
        {"role": "agent", "parts": [{"kind": "text", "text": format!("401 for {key}")}]}}}});
    let server = answering(ok(&answer.to_string())).await;
    match Client::new(config(&server)).call(&call(), || true).await {
        Reply::Accepted { ended: Some(ended), .. } => assert_eq!(ended.answer, "401 for [redacted]"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_file_is_read_for_every_call() {
    let file = std::env::temp_dir().join(format!("khook-token-{}", uuid::Uuid::new_v4()));
    let server = answering(ok(seen!("send-submitted.json"))).await;
    let config =
        KagentConfig { credential: Credential::File(file.clone()), ..KagentConfig::new(server.uri()) };
    let kagent = Client::new(config);

    let reply = kagent.call(&call(), || true).await;
    assert!(matches!(told(&reply), ("NotRun", error) if error.contains("cannot be read")), "{reply:?}");
    assert!(matches!(kagent.lookup(SESSION, "m").await, Lookup::Unavailable { .. }));
    assert!(matches!(kagent.follow(&agent(), TASK).await, Follow::Unavailable { .. }));
    for bad in ["", "\n", "two\nlines", "tab\u{0}"] {
        std::fs::write(&file, bad).unwrap();
        let reply = kagent.call(&call(), || true).await;
        assert_eq!(told(&reply).0, "NotRun", "{bad:?}");
        assert!(!told(&reply).1.contains("lines"), "{reply:?}");
    }
    assert_eq!(server.received_requests().await.unwrap().len(), 0);

    for token in ["one", "two"] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        assert_eq!(told(&kagent.call(&call(), || true).await).0, "Accepted");
        for request in server.received_requests().await.unwrap() {
            assert_eq!(request.headers["authorization"].to_str().unwrap(), format!("Bearer {token}"));
        }
        server.reset().await;
        let session = ResponseTemplate::new(201).set_body_string(seen!("session-created.json"));
        Mock::given(path("/api/sessions")).respond_with(session).mount(&server).await;
        Mock::given(path(A2A)).respond_with(ok(seen!("send-submitted.json"))).mount(&server).await;
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let refused = |config| Kagent::new(config).unwrap_err().to_string();
    let at = |base: &str| KagentConfig::new(base);
    let url = "http://kagent:8083";
    let zero = Duration::ZERO;
    let said = [
        refused(at("")),
        refused(at("kagent-controller")),
        refused(at("kagent:8083")),
        refused(at("ftp://kagent")),
        refused(at("http://admin:hunter2@kagent")),
        refused(at("http://kagent/?x=1")),
        refused(KagentConfig { user_id: " ".into(), ..at(url) }),
        refused(KagentConfig { user_id: "a\nb".into(), ..at(url) }),
        refused(KagentConfig { user_id: "jürgen".into(), ..at(url) }),
        refused(KagentConfig { credential: Credential::Key("\n".into()), ..at(url) }),
        refused(KagentConfig { credential: Credential::Key("hunter2\nx".into()), ..at(url) }),
        refused(KagentConfig { api_timeout: zero, ..at(url) }),
        refused(KagentConfig { max_body: 0, ..at(url) }),
    ]
    .join("\n");
    assert!(!said.contains("hunter2"));
    insta::assert_snapshot!(said, @r#"
    the URL of kagent cannot be read (relative URL without a base): it looks like http://kagent-controller.kagent:8083
    the URL of kagent cannot be read (relative URL without a base): it looks like http://kagent-controller.kagent:8083
    the URL of kagent must begin with http:// or https://, not kagent:
    the URL of kagent must begin with http:// or https://, not ftp:
    the URL of kagent must not have a user or password in it: give the credential as API key
    the URL of kagent must end with its path, without ? and #
    the kagent user id must be not empty and of printable ASCII characters
    the kagent user id must be not empty and of printable ASCII characters
    the kagent user id must be not empty and of printable ASCII characters
    the API key for kagent is empty
    the API key for kagent has characters in it that an HTTP header cannot carry, such as a line break
    the API timeout must be more than 0
    the size of an answer must be more than 0
    "#);
}

// Connections that fail, and servers that misbehave.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Misdeed {
    /// Close, without a byte of an answer.
    Close,
    /// Reset, after reading the request.
    Reset,
    /// Say nothing.
    Hang,
    /// Announce more than is sent, then close.
    EofMidBody,
    /// Announce nothing, reset in the middle of a chunk.
    ResetMidBody,
    /// Send the head, and then a byte now and then.
    Drip,
    /// 100 MB, in chunks.
    Huge,
    /// 100 MB, announced.
    HugeAnnounced,
    /// Something that is not HTTP.
    Garbage,
    /// A refusal whose body never ends.
    EndlessRefusal,
}

/// A server on a socket that answers every request by a function of its path; counts messages, and
/// the bytes of bodies it could get rid of.
#[derive(Clone, Default)]
struct Wild {
    base: String,
    messages: Arc<AtomicUsize>,
    written: Arc<AtomicUsize>,
}

impl Wild {
    /// Well-behaved for sessions, misbehaving for all else.
    async fn after_the_session(misdeed: Misdeed) -> Self {
        Self::start(move |path| (!path.starts_with("/api/sessions?")).then_some(misdeed)).await
    }

    async fn always(misdeed: Misdeed) -> Self {
        Self::start(move |_| Some(misdeed)).await
    }

    async fn start(of: impl Fn(&str) -> Option<Misdeed> + Copy + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wild = Self { base: format!("http://{}", listener.local_addr().unwrap()), ..Self::default() };
        let shared = wild.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let wild = shared.clone();
                tokio::spawn(async move { wild.serve(stream, of).await });
            }
        });
        wild
    }

    async fn serve(self, mut stream: TcpStream, of: impl Fn(&str) -> Option<Misdeed>) {
        while let Some(path) = read_request(&mut stream).await {
            if path.starts_with(A2A) {
                self.messages.fetch_add(1, Ordering::SeqCst);
            }
            match of(&path) {
                None => {
                    let body = seen!("session-created.json");
                    let head = format!("HTTP/1.1 201 Created\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).await.unwrap();
                }
                Some(misdeed) => {
                    // The client hangs up on most of these: that is no trouble of the server.
                    let _ = self.misbehave(&mut stream, misdeed).await;
                    return;
                }
            }
        }
    }

    async fn misbehave(&self, stream: &mut TcpStream, misdeed: Misdeed) -> std::io::Result<()> {
        match misdeed {
            Misdeed::Close => {}
            Misdeed::Reset => stream.set_zero_linger()?,
            Misdeed::Hang => forever(stream).await,
            Misdeed::EofMidBody => {
                let body = seen!("send-submitted.json");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body[..body.len() / 2]).as_bytes()).await?;
            }
            Misdeed::ResetMidBody => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"re\r\n")
                    .await?;
                stream.flush().await?;
                stream.set_zero_linger()?;
            }
            Misdeed::Drip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await?;
                loop {
                    stream.write_all(b" ").await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Misdeed::Huge | Misdeed::HugeAnnounced => {
                let announced = misdeed == Misdeed::HugeAnnounced;
                let how = if announced { "Content-Length: 104857600" } else { "Transfer-Encoding: chunked" };
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{how}\r\n\r\n").as_bytes()).await?;
                let piece = vec![b' '; 1 << 16];
                for _ in 0..1600 {
                    if !announced {
                        stream.write_all(b"10000\r\n").await?;
                    }
                    stream.write_all(&piece).await?;
                    if !announced {
                        stream.write_all(b"\r\n").await?;
                    }
                    self.written.fetch_add(piece.len(), Ordering::SeqCst);
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            Misdeed::Garbage => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\x00\xff\r\n\r\n").await?,
            Misdeed::EndlessRefusal => {
                stream
                    .write_all(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n")
                    .await?;
                forever(stream).await;
            }
        }
        Ok(())
    }

    fn sent(&self) -> usize {
        self.messages.load(Ordering::SeqCst)
    }
}

/// Until the client hangs up.
async fn forever(stream: &mut TcpStream) {
    while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
}

/// Reads one request to its end and gives its path and query; none at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |l| l.trim().parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(head.split(' ').nth(1)?.to_owned())
}

#[rstest]
#[case(Misdeed::Close)]
#[case(Misdeed::Reset)]
#[case(Misdeed::Hang)]
#[case(Misdeed::EofMidBody)]
#[case(Misdeed::ResetMidBody)]
#[case(Misdeed::Drip)]
#[case(Misdeed::Huge)]
#[case(Misdeed::HugeAnnounced)]
#[case(Misdeed::Garbage)]
#[tokio::test]
async fn once_sent_a_message_without_an_answer_is_of_unknown_outcome(#[case] misdeed: Misdeed) {
    let wild = Wild::after_the_session(misdeed).await;
    let reply = impatient(&wild.base).call(&call(), || true).await;
    assert_eq!(told(&reply).0, "Unknown", "{reply:?}");
    assert_eq!(wild.sent(), 1);
    // What the sockets' buffers take is all that such a server gets rid of.
    let written = wild.written.load(Ordering::SeqCst);
    assert!(written < 50 << 20, "{written}");
}

#[rstest]
#[case(Misdeed::Close)]
#[case(Misdeed::Reset)]
#[case(Misdeed::Hang)]
#[case(Misdeed::EofMidBody)]
#[case(Misdeed::ResetMidBody)]
#[case(Misdeed::Drip)]
#[case(Misdeed::Huge)]
#[case(Misdeed::HugeAnnounced)]
#[case(Misdeed::Garbage)]
#[case(Misdeed::EndlessRefusal)]
#[tokio::test]
async fn while_the_session_is_opened_nothing_has_run(#[case] misdeed: Misdeed) {
    let wild = Wild::always(misdeed).await;
    let kagent = impatient(&wild.base);
    let reply = kagent.call(&call(), || true).await;
    assert_eq!(told(&reply).0, "NotRun", "{reply:?}");
    assert_eq!(wild.sent(), 0);

    let lookup = kagent.lookup(SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unavailable { .. }), "{lookup:?}");
    let follow = kagent.follow(&agent(), TASK).await;
    assert!(matches!(follow, Follow::Unavailable { .. }), "{follow:?}");
}

#[tokio::test]
async fn a_refusal_counts_even_if_its_words_do_not_end() {
    let wild = Wild::after_the_session(Misdeed::EndlessRefusal).await;
    let reply = impatient(&wild.base).call(&call(), || true).await;
    assert_eq!(told(&reply).0, "NotRun", "{reply:?}");
    assert_eq!(wild.sent(), 1);
}

#[tokio::test]
async fn a_connection_closed_between_session_and_message_sends_one_message() {
    // Answers one request per connection and closes it without a word, as a server does whose idle
    // time is over: the pooled connection is dead or dying when the message wants it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let messages = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(path) = read_request(&mut stream).await else { continue };
            let (status, body) = if path.starts_with(A2A) {
                messages.fetch_add(1, Ordering::SeqCst);
                (200, seen!("send-submitted.json"))
            } else {
                (201, seen!("session-created.json"))
            };
            let head = format!("HTTP/1.1 {status} OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).await.unwrap();
        }
    });
    let kagent = kagent(&base);
    for round in 1..=30 {
        let before = count.load(Ordering::SeqCst);
        let reply = kagent.call(&call(), || true).await;
        let sent = count.load(Ordering::SeqCst) - before;
        // Either hyper has seen the end in time and connects anew, or the message went into a dead
        // connection: then nobody can say, and nothing is sent again.
        match told(&reply).0 {
            "Accepted" => assert_eq!(sent, 1, "round {round}"),
            "Unknown" => assert_eq!(sent, 0, "round {round}"),
            other => panic!("round {round}: {other}"),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_connected_to_has_run_nothing() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let speaks_no_tls = Wild::always(Misdeed::Garbage).await.base.replace("http:", "https:");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = MockServer::start().await;
    for (base, why) in [
        (format!("http://{closed}"), "Connection refused"),
        ("http://kagent.invalid:8083".to_owned(), "cannot connect"),
        (speaks_no_tls, "cannot connect"),
        (plain.uri().replace("http:", "https:"), "cannot connect"),
        (format!("https://{}", silent.local_addr().unwrap()), "no connection within 500ms"),
    ] {
        let config = KagentConfig { connect_timeout: Duration::from_millis(500), ..KagentConfig::new(&base) };
        let kagent = Client::new(config);
        let reply = kagent.call(&call(), || true).await;
        let (kind, error) = told(&reply);
        assert_eq!(kind, "NotRun", "{base}: {error}");
        // A resolver may be slow to say that there is no such name.
        assert!(error.contains(why) || base.contains("invalid"), "{base}: {error}");
        assert!(matches!(kagent.lookup(SESSION, "m").await, Lookup::Unavailable { .. }), "{base}");
        assert!(matches!(kagent.follow(&agent(), TASK).await, Follow::Unavailable { .. }), "{base}");
    }
}

#[tokio::test]
async fn a_server_gone_between_session_and_message_has_not_run_it() {
    // Takes one connection, closes it with `Connection: close`, and listens no more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        drop(listener);
        let body = seen!("session-created.json");
        let head =
            format!("HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).await.unwrap();
    });
    let reply = kagent(&base).call(&call(), || true).await;
    assert!(matches!(told(&reply), ("NotRun", error) if error.contains(A2A)), "{reply:?}");
}

// Lookup.

async fn reading(at: &str, answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("GET")).and(path(at)).respond_with(answer).mount(&server).await;
    server
}

async fn lookup(status: u16, body: &str, message_id: &str) -> Lookup {
    let at = format!("/api/sessions/{SESSION}/tasks");
    let server = reading(&at, ResponseTemplate::new(status).set_body_string(body)).await;
    kagent(&server.uri()).lookup(SESSION, message_id).await
}

#[tokio::test]
async fn a_message_is_found_with_the_end_of_its_task() {
    let found = |task_id: &str, ended: Option<(EndState, &str)>| Lookup::Found {
        task_id: task_id.into(),
        ended: ended.map(|(state, answer)| Ended { state, answer: answer.into(), usage: None }),
    };
    let found_with = |task_id: &str, state, answer: &str, usage| Lookup::Found {
        task_id: task_id.into(),
        ended: Some(Ended { state, answer: answer.into(), usage }),
    };
    assert_eq!(lookup(200, seen!("tasks-working.json"), "m1-a").await, found(TASK, None));
    assert_eq!(
        lookup(200, seen!("tasks-completed.json"), "m1-a").await,
        found_with(TASK, EndState::Completed, "Investigated: [[delay=4]] Pod restarted", USAGE)
    );
    assert_eq!(
        lookup(200, seen!("tasks-failed.json"), "me1-a").await,
        found(
            "ad2f6359-8a27-4717-bf1e-447bca1b758f",
            Some((EndState::Failed, "Error code: 500 - fake failure"))
        )
    );
    let in_status = json!({"error": false, "data": [
        {"id": "a", "history": [{"messageId": "x", "role": "user"}], "status": {"state": "completed"}},
        {"id": "b", "status": {"state": "submitted", "message": {"messageId": "m", "role": "user"}}},
    ]});
    assert_eq!(lookup(200, &in_status.to_string(), "m").await, found("b", None));
    let twice = json!({"error": false, "data": [
        {"id": "a", "history": [{"messageId": "m"}], "status": {"state": "working"}},
        {"id": "b", "history": [{"messageId": "m"}], "status": {"state": "canceled"}},
    ]});
    assert_eq!(lookup(200, &twice.to_string(), "m").await, found("b", Some((EndState::Canceled, ""))));
}

#[rstest]
#[case::another_message(200, seen!("tasks-completed.json"), "Absent")]
#[case::empty(200, r#"{"error":false,"data":[],"message":"Successfully retrieved session tasks"}"#, "Absent")]
#[case::null(
    200,
    r#"{"error":false,"data":null,"message":"Successfully retrieved session tasks"}"#,
    "Absent"
)]
#[case::omitted(200, r#"{"error":false,"message":"Successfully retrieved session tasks"}"#, "Absent")]
#[case::no_session(404, seen!("tasks-no-session.json"), "Absent")]
#[case::no_session_010(404, seen_010!("tasks-no-session.json"), "Absent")]
#[case::database_down(404, seen!("tasks-database-down.json"), "Unavailable")]
#[case::database_down_010(500, seen_010!("tasks-database-down.json"), "Unavailable")]
#[case::no_cause(404, r#"{"error":"Session not found"}"#, "Unavailable")]
#[case::another_404(404, r#"{"error":"Agent not found: no rows in result set"}"#, "Unavailable")]
#[case::ingress(404, "<html>404 Not Found</html>", "Unavailable")]
#[case(401, "Unauthorized", "Unavailable")]
#[case(403, "", "Unavailable")]
#[case(429, "", "Unavailable")]
#[case(500, "", "Unavailable")]
#[case(503, "", "Unavailable")]
#[case(204, "", "Unavailable")]
#[case::html(200, "<html></html>", "Unavailable")]
#[case::bare(200, "{}", "Unavailable")]
#[case::bare_list(200, "[]", "Unavailable")]
#[case::error_flag(200, r#"{"error":true,"data":[]}"#, "Unavailable")]
#[case::error_text(200, r#"{"error":"no","data":[]}"#, "Unavailable")]
#[case::not_tasks(200, r#"{"error":false,"data":[1,2]}"#, "Unavailable")]
#[case::not_a_list(200, r#"{"error":false,"data":{"tasks":[]}}"#, "Unavailable")]
#[case::no_history(200, r#"{"error":false,"data":[{"id":"t","status":{"state":"working"}}]}"#, "Unavailable")]
#[case::no_task_id(200, r#"{"error":false,"data":[{"history":[{"messageId":"m"}]}]}"#, "Unavailable")]
#[tokio::test]
async fn a_lookup_says_absent_only_if_it_has_looked(
    #[case] status: u16,
    #[case] body: &str,
    #[case] want: &str,
) {
    let lookup = lookup(status, body, "m").await;
    let got = match &lookup {
        Lookup::Found { .. } => "Found",
        Lookup::Absent => "Absent",
        Lookup::Unavailable { .. } => "Unavailable",
        Lookup::Unsupported { .. } => "Unsupported",
    };
    assert_eq!(got, want, "{lookup:?}");
}

/// kagent without sessions, and its agent's answer to the question for the tasks of the conversation.
async fn lookup_by_agent(sessions: u16, body: &str, answer: &str) -> Lookup {
    let at = format!("/api/sessions/{SESSION}/tasks");
    let server = reading(&at, ResponseTemplate::new(sessions).set_body_string(body)).await;
    Mock::given(method("POST")).and(path(A2A)).respond_with(ok(answer)).mount(&server).await;
    let lookup = kagent(&server.uri()).lookup(SESSION, "m").await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests[1].headers["a2a-version"], "1.0");
    let asked: Value = requests[1].body_json().unwrap();
    assert_eq!((&asked["method"], &asked["params"]["contextId"]), (&"ListTasks".into(), &SESSION.into()));
    lookup
}

#[rstest]
#[case(404, seen!("not-found.txt"))]
#[case(405, "")]
#[case(501, "")]
#[tokio::test]
async fn without_sessions_the_agent_is_asked_for_its_tasks(#[case] status: u16, #[case] body: &str) {
    let found = r#"{"result":{"tasks":[{"id":"t","history":[{"messageId":"m"}]}]}}"#;
    let found = lookup_by_agent(status, body, found).await;
    assert_eq!(found, Lookup::Found { task_id: "t".into(), ended: None });
    assert_eq!(lookup_by_agent(status, body, r#"{"result":{"tasks":[]}}"#).await, Lookup::Absent);
    for answer in [seen!("rpc-method.json"), r#"{"error":{"code":-32004}}"#, r#"{"error":{"code":-32009}}"#] {
        let lookup = lookup_by_agent(status, body, answer).await;
        assert!(matches!(lookup, Lookup::Unsupported { .. }), "{lookup:?}");
    }
    let no_messages = r#"{"result":{"tasks":[{"id":"t","status":{"state":"TASK_STATE_WORKING"}}]}}"#;
    for answer in [seen!("rpc-eof.json"), r#"{"result":{}}"#, "", no_messages] {
        let lookup = lookup_by_agent(status, body, answer).await;
        assert!(matches!(lookup, Lookup::Unavailable { .. }), "{answer}: {lookup:?}");
    }
}

#[tokio::test]
async fn a_long_history_is_read_a_longer_one_is_not_absence() {
    let tasks = |filler: usize| {
        let call = json!({"messageId": "x", "role": "agent", "parts": [{"kind": "data", "data": "x".repeat(filler)}]});
        json!({"error": false, "data": [{"id": "t", "history": [call, {"messageId": "m"}]}]}).to_string()
    };
    assert!(matches!(lookup(200, &tasks(5 << 20), "m").await, Lookup::Found { .. }));
    let too_long = lookup(200, &tasks(17 << 20), "m").await;
    assert!(
        matches!(&too_long, Lookup::Unavailable { error } if error.contains("longer than")),
        "{too_long:?}"
    );
}

// Follow.

async fn follow(rest: ResponseTemplate, agents: Option<ResponseTemplate>) -> (Follow, usize) {
    let server = reading(&format!("/api/tasks/{TASK}"), rest).await;
    if let Some(agents) = agents {
        Mock::given(method("POST")).and(path(A2A)).respond_with(agents).mount(&server).await;
    }
    let follow = kagent(&server.uri()).follow(&agent(), TASK).await;
    (follow, messages(&server).await)
}

#[tokio::test]
async fn a_task_is_followed_without_its_agent() {
    let ended = Ended {
        state: EndState::Completed,
        answer: "Investigated: [[delay=4]] Pod restarted".into(),
        usage: USAGE,
    };
    assert_eq!(follow(ok(seen!("task-working.json")), None).await, (Follow::Running, 0));
    assert_eq!(follow(ok(seen!("task-completed.json")), None).await, (Follow::Ended(ended), 0));
}

#[tokio::test]
async fn the_agent_is_asked_where_kagent_does_not_know_the_task() {
    let completed = Ended {
        state: EndState::Completed,
        answer: "Investigated: [[delay=4]] Pod restarted".into(),
        usage: USAGE,
    };
    let lost = Ended { state: EndState::Lost, answer: String::new(), usage: None };
    for (status, body) in [
        (404, seen!("not-found.txt")),
        (405, ""),
        (404, seen_010!("task-not-found.json")),
        (404, r#"{"error":"Task not found: failed to get task x: no rows in result set"}"#),
    ] {
        let rest = ResponseTemplate::new(status).set_body_string(body);
        let asked = |answer: &str| follow(rest.clone(), Some(ok(answer)));
        assert_eq!(asked(seen!("get-completed.json")).await, (Follow::Ended(completed.clone()), 1));
        assert_eq!(asked(seen!("rpc-task-not-found.json")).await, (Follow::Ended(lost.clone()), 1));
        assert_eq!(asked(seen!("send-submitted.json")).await, (Follow::Running, 1));
        for trouble in [seen!("rpc-eof.json"), seen!("rpc-method.json"), "<html></html>", ""] {
            let (follow, _) = asked(trouble).await;
            assert!(matches!(follow, Follow::Unavailable { .. }), "{trouble}: {follow:?}");
        }
        let gone = ResponseTemplate::new(404).set_body_string(seen!("rpc-unknown-agent.txt"));
        assert!(matches!(follow(rest.clone(), Some(gone)).await, (Follow::Unavailable { .. }, 1)));
    }
}

#[rstest]
#[case::database_down(
    404,
    r#"{"error":"Task not found: failed to get task x: failed to connect to `user=postgres`"}"#
)]
#[case(401, "Unauthorized")]
#[case(500, r#"{"error":"Internal server error"}"#)]
#[case(503, "")]
#[case::html(200, "<html></html>")]
#[case::no_task(200, r#"{"error":false,"data":null}"#)]
#[case::error(200, r#"{"error":true,"data":{}}"#)]
#[tokio::test]
async fn what_kagent_cannot_say_now_is_not_an_end(#[case] status: u16, #[case] body: &str) {
    let rest = ResponseTemplate::new(status).set_body_string(body);
    let (follow, asked) = follow(rest, Some(ok(seen!("get-completed.json")))).await;
    assert!(matches!(follow, Follow::Unavailable { .. }), "{follow:?}");
    assert_eq!(asked, 0);
}
