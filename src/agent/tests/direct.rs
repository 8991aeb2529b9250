//! Direct agents: which URLs are asked, what they are shown, and how they are found.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;

use super::*;
use crate::{
    agent::{
        direct::{Data, Direct, DirectConfig, SecretError, Secrets},
        unwanted,
    },
    incident::outcome::{Credential as Shown, DirectAgent, SecretKey},
};

const NAMESPACE: &str = "shop";

/// Secrets as a test has them, by name.
type Store = Arc<Mutex<BTreeMap<String, Result<Data, SecretError>>>>;

struct Stored(Store);

impl Secrets for Stored {
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Data>, SecretError>> {
        assert_eq!(namespace, NAMESPACE, "of the Hook's namespace and no other");
        let found = self.0.lock().unwrap().get(name).cloned();
        Box::pin(std::future::ready(found.transpose()))
    }
}

fn store(values: Vec<(&str, &str, &str)>) -> Store {
    let mut all = BTreeMap::new();
    for (name, key, value) in values {
        let data = BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]);
        all.insert(name.to_owned(), Ok(data));
    }
    Arc::new(Mutex::new(all))
}

/// A client that may ask these hosts, and finds these Secrets: name, key, value.
pub(super) fn client(hosts: &str, secrets: Vec<(&str, &str, &str)>) -> Direct {
    client_of(hosts, store(secrets))
}

fn client_of(hosts: &str, secrets: Store) -> Direct {
    Direct::new(config(hosts), Stored(secrets))
}

fn config(hosts: &str) -> DirectConfig {
    DirectConfig {
        hosts: hosts.parse().unwrap(),
        api_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(2),
        lookup_timeout: Duration::from_secs(5),
        max_body: 1 << 20,
        quote: true,
    }
}

fn at(url: &str) -> DirectAgent {
    DirectAgent {
        namespace: NAMESPACE.into(),
        url: url.parse().unwrap(),
        auth: None,
        ca: None,
        protocol: None,
    }
}

fn shown(header: Option<&str>) -> Option<Shown> {
    let secret = SecretKey { name: "triage".into(), key: "token".into() };
    Some(Shown { secret, header: header.map(str::to_owned) })
}

async fn ask(client: &Direct, agent: &DirectAgent) -> Reply {
    let call = AgentCall { agent: agent.name(), direct: Some(Arc::new(agent.clone())), ..call() };
    client.call(&call, agent, Dialect::Guess(Protocol::V03), || true).await
}

/// An agent with this card under `/.well-known`, if any, that takes messages at `path`.
async fn agent_with(card: Option<Value>, endpoint: &str) -> MockServer {
    let server = MockServer::start().await;
    if let Some(card) = card {
        let card = card.to_string().replace("SELF", &server.uri());
        Mock::given(method("GET"))
            .and(path("/.well-known/agent-card.json"))
            .respond_with(ok(&card))
            .mount(&server)
            .await;
    }
    let accepted = ok(r#"{"result":{"task":{"id":"t","status":{"state":"TASK_STATE_SUBMITTED"}}}}"#);
    Mock::given(method("POST")).and(path(endpoint)).respond_with(accepted).mount(&server).await;
    server
}

fn card(url: &str) -> Value {
    json!({"name": "x", "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]})
}

async fn posts(server: &MockServer) -> Vec<Request> {
    let all = server.received_requests().await.unwrap();
    all.into_iter().filter(|request| request.method.as_str() == "POST").collect()
}

const LOOPBACK: &str = "127.0.0.1";

#[tokio::test]
async fn an_agent_is_asked_where_its_card_says_and_how() {
    let server = agent_with(Some(card("SELF/a2a/v1")), "/a2a/v1").await;
    let client = client(LOOPBACK, vec![]);
    let agent = at(&server.uri());
    for _ in 0..2 {
        assert_eq!(
            ask(&client, &agent).await,
            Reply::Accepted { task_id: Some("t".into()), ended: None, protocol: Some(Protocol::V10) }
        );
    }
    let posts = posts(&server).await;
    assert!(posts.iter().all(|post| post.url.path() == "/a2a/v1" && post.headers["a2a-version"] == "1.0"));
    assert_eq!(server.received_requests().await.unwrap().len(), 3, "the card is read once");
    assert!(
        posts.iter().all(|post| !post.headers.contains_key("x-user-id") && post.url.query().is_none()),
        "kagent's matters"
    );
}

#[tokio::test]
async fn without_a_card_the_url_is_the_endpoint_and_the_dialect_is_found_out() {
    let server = MockServer::start().await;
    let refused = ok(r#"{"error":{"code":-32601,"message":"Method not found"}}"#);
    let new = |request: &Request| request.headers.contains_key("a2a-version");
    let accepted = ok(r#"{"result":{"task":{"id":"t"}}}"#);
    Mock::given(method("POST")).and(path("/rpc")).and(new).respond_with(accepted).mount(&server).await;
    Mock::given(method("POST")).and(path("/rpc")).respond_with(refused).mount(&server).await;
    let reply = ask(&client(LOOPBACK, vec![]), &at(&format!("{}/rpc", server.uri()))).await;
    assert_eq!(told(&reply).0, "Accepted", "{reply:?}");
    assert_eq!(posts(&server).await.len(), 2);
}

#[tokio::test]
async fn what_is_not_wanted_any_more_is_not_tried_in_the_other_dialect() {
    let server = MockServer::start().await;
    let refused = ok(r#"{"error":{"code":-32601,"message":"Method not found"}}"#);
    Mock::given(method("POST")).respond_with(refused).mount(&server).await;
    let agent = at(&format!("{}/rpc", server.uri()));
    let call = AgentCall { agent: agent.name(), direct: Some(Arc::new(agent.clone())), ..call() };
    let asked = AtomicUsize::new(0);
    let once = || asked.fetch_add(1, Ordering::SeqCst) == 0;
    let reply = client(LOOPBACK, vec![]).call(&call, &agent, Dialect::Guess(Protocol::V03), once).await;
    assert_eq!(reply, unwanted());
    assert_eq!(posts(&server).await.len(), 1);
}

#[rstest]
#[tokio::test]
async fn a_card_that_cannot_be_had_for_now_is_not_taken_for_none(#[values(408, 429, 500, 503)] status: u16) {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(status)).mount(&server).await;
    let client = client(LOOPBACK, vec![]);
    let reply = ask(&client, &at(&server.uri())).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains(&status.to_string()) && error.contains("agent.protocol"), "{error}");
    let lookup = client.lookup(&at(&server.uri()), Dialect::Guess(Protocol::V03), SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unavailable { .. }), "{lookup:?}");
    assert!(posts(&server).await.is_empty(), "who knows what is there");
}

#[tokio::test]
async fn where_nobody_is_found_the_card_is_read_anew() {
    let server = MockServer::start().await;
    let once = |body: &str| Mock::given(method("GET")).respond_with(ok(body)).up_to_n_times(1);
    let list = r#"{"result":{"tasks":[{"id":"t","history":[{"messageId":"m","role":"ROLE_USER"}]}]}}"#;
    Mock::given(method("POST")).and(path("/a2a/v1")).respond_with(ok(list)).mount(&server).await;
    let (client, agent) = (client(LOOPBACK, vec![]), at(&server.uri()));
    let guess = Dialect::Guess(Protocol::V03);
    let card = card("SELF/a2a/v1").to_string().replace("SELF", &server.uri());
    // A page of a proxy that is on its way up is no card, and as good as none.
    once("<html>").mount(&server).await;
    let lookup = client.lookup(&agent, guess, SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unavailable { .. }), "{lookup:?}");
    once("<html>").mount(&server).await;
    let follow = client.follow(&agent, guess, "t").await;
    assert!(matches!(follow, Follow::Unavailable { .. }), "{follow:?}");
    once(&card).mount(&server).await;
    let found = Lookup::Found { task_id: "t".into(), ended: None };
    assert_eq!(client.lookup(&agent, guess, SESSION, "m").await, found);
}

#[tokio::test]
async fn where_the_dialect_is_given_no_card_is_read() {
    let server = agent_with(Some(card("SELF/elsewhere")), "/rpc").await;
    let agent = DirectAgent { protocol: Some(Protocol::V10), ..at(&format!("{}/rpc", server.uri())) };
    assert_eq!(told(&ask(&client(LOOPBACK, vec![]), &agent).await).0, "Accepted");
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_card_at_the_root_counts_only_if_it_is_this_agents() {
    let server = agent_with(Some(card("SELF/agents/one")), "/agents/one").await;
    let client = client(LOOPBACK, vec![]);
    let one = ask(&client, &at(&format!("{}/agents/one/", server.uri()))).await;
    assert!(matches!(one, Reply::Accepted { protocol: Some(Protocol::V10), .. }), "{one:?}");
    let two = ask(&client, &at(&format!("{}/agents/two", server.uri()))).await;
    assert_eq!(told(&two).0, "NotRun");
    assert_eq!(posts(&server).await.last().unwrap().url.path(), "/agents/two");
}

#[rstest]
#[case::localhost("http://localhost:1/a2a/v1")]
#[case::everywhere("http://0.0.0.0:10000/a2a/v1")]
#[tokio::test]
async fn an_agent_that_calls_itself_localhost_is_asked_where_it_was_found(#[case] url: &str) {
    // Found under a name, which a real one has: the guard lets this one be on khook's own host.
    let server = agent_with(Some(card(url)), "/a2a/v1").await;
    let port = server.address().port();
    let client = client(&format!("agent.localhost,{LOOPBACK}:{port},[::1]:{port}"), vec![]);
    let found = format!("http://agent.localhost:{port}");
    if tokio::net::lookup_host(("agent.localhost", port)).await.is_err() {
        // Not every system resolves names below localhost (RFC 6761); then the URL alone is looked at.
        return assert_eq!(told(&ask(&client, &at(&found)).await).0, "NotRun");
    }
    assert_eq!(told(&ask(&client, &at(&found)).await).0, "Accepted");
}

// What must not be called.

#[rstest]
#[case::nothing_is_allowed("", "DIRECT_AGENT_HOSTS is empty")]
#[case::another_host("agent.example.com", "own host")]
#[case::another_port("127.0.0.1:1", "own host")]
#[tokio::test]
async fn an_agent_that_is_not_allowed_gets_no_packet(#[case] hosts: &str, #[case] why: &str) {
    let server = agent_with(None, "/").await;
    let reply = ask(&client(hosts, vec![]), &at(&server.uri())).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains(why), "{error}");
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_name_that_leads_to_khooks_own_host_is_found_out_before_the_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = connections.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let reply = ask(&client("localhost", vec![]), &at(&format!("http://localhost:{port}"))).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains("khook's own host"), "{error}");
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[rstest]
#[case::another_host("http://evil.example.com/", None, "not among the hosts")]
#[case::metadata("http://169.254.169.254/latest", None, "no agent may be")]
#[case::with_user("http://a:b@127.0.0.1/", None, "without a user")]
#[case::no_http("ftp://127.0.0.1/", None, "must begin with")]
#[case::another_host_with_a_credential("http://other.example.com/", Some("*"), "the credential is for")]
#[case::another_port_with_a_credential("http://127.0.0.1:1/", None, "the credential is for")]
#[tokio::test]
async fn a_card_cannot_lead_where_no_agent_may_be(
    #[case] url: &str,
    #[case] hosts: Option<&str>,
    #[case] why: &str,
) {
    let server = agent_with(Some(card(url)), "/").await;
    let hosts = format!("{LOOPBACK},{}", hosts.unwrap_or_default());
    let agent = DirectAgent { auth: shown(None), ..at(&server.uri()) };
    let reply = ask(&client(&hosts, vec![("triage", "token", "s3cr3t-0ne")]), &agent).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains(why), "{error}");
    assert!(posts(&server).await.is_empty());
}

#[tokio::test]
async fn one_agent_with_two_credentials_is_two() {
    // Without a credential its card may lead to another listed host; with one it may not.
    let elsewhere = agent_with(None, "/stolen").await;
    let server = agent_with(Some(card(&format!("{}/stolen", elsewhere.uri()))), "/").await;
    let client = client(LOOPBACK, vec![("triage", "token", "s3cr3t-0ne")]);
    let open = at(&server.uri());
    assert_eq!(told(&ask(&client, &open).await).0, "Accepted");
    let guarded = DirectAgent { auth: shown(None), ..open.clone() };
    assert_eq!(told(&ask(&client, &guarded).await).0, "NotRun");
    assert_eq!(posts(&elsewhere).await.len(), 1);
    // And what is said of the dialect counts at once.
    let plain = DirectAgent { protocol: Some(Protocol::V10), ..open };
    ask(&client, &plain).await;
    assert_eq!(posts(&server).await.len(), 1, "its URL is the endpoint");
}

#[rstest]
#[case(302, "redirects")]
#[case(401, "check the credential")]
#[case(403, "check the credential")]
#[tokio::test]
async fn a_card_that_is_refused_is_told_and_no_message_is_sent(#[case] status: u16, #[case] why: &str) {
    let server = MockServer::start().await;
    let refused = ResponseTemplate::new(status).insert_header("location", "http://127.0.0.2/");
    Mock::given(method("GET")).respond_with(refused).mount(&server).await;
    let reply = ask(&client(LOOPBACK, vec![]), &at(&server.uri())).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains(why) && error.contains("set agent.protocol"), "{error}");
    assert!(posts(&server).await.is_empty());
}

#[tokio::test]
async fn a_card_without_an_end_is_told_as_such() {
    let server = MockServer::start().await;
    let huge = ResponseTemplate::new(200).set_body_string(" ".repeat(300 << 10));
    Mock::given(method("GET")).respond_with(huge).mount(&server).await;
    let reply = ask(&client(LOOPBACK, vec![]), &at(&server.uri())).await;
    assert!(told(&reply).1.contains("longer than 262144 bytes"), "{reply:?}");
}

#[test]
fn only_a_header_for_credentials_may_carry_one() {
    for header in ["X-API-Key", "Authorization", "Api-Token", "Cookie"] {
        assert!(crate::hook::is_for_credentials(header), "{header}");
    }
    for header in [
        "Host",
        "CONTENT-LENGTH",
        "transfer-encoding",
        "A2A-Version",
        "X-Forwarded-For",
        "traceparent",
        "",
        "a b",
    ] {
        assert!(!crate::hook::is_for_credentials(header), "{header}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = agent_with(None, "/").await;
    let server = MockServer::start().await;
    let moved = ResponseTemplate::new(307).insert_header("location", elsewhere.uri());
    Mock::given(method("POST")).respond_with(moved.clone()).mount(&server).await;
    let reply = ask(&client(LOOPBACK, vec![]), &at(&server.uri())).await;
    assert_eq!(told(&reply).0, "NotRun", "{reply:?}");
    Mock::given(method("GET")).respond_with(moved).mount(&server).await;
    ask(&client(LOOPBACK, vec![]), &at(&server.uri())).await;
    assert!(elsewhere.received_requests().await.unwrap().is_empty());
}

// What it is shown.

#[rstest]
#[case(None, "authorization", "Bearer s3cr3t-0ne")]
#[case(Some("X-API-Key"), "x-api-key", "s3cr3t-0ne")]
#[tokio::test]
async fn the_credential_is_read_for_every_call(
    #[case] header: Option<&str>,
    #[case] name: &str,
    #[case] first: &str,
) {
    let server = agent_with(None, "/").await;
    let secrets = store(vec![("triage", "token", "s3cr3t-0ne\n")]);
    let client = client_of(LOOPBACK, secrets.clone());
    let agent = DirectAgent { auth: shown(header), protocol: Some(Protocol::V10), ..at(&server.uri()) };
    assert_eq!(told(&ask(&client, &agent).await).0, "Accepted");
    *secrets.lock().unwrap() = store(vec![("triage", "token", "n3w-s3cr3t")]).lock().unwrap().clone();
    assert_eq!(told(&ask(&client, &agent).await).0, "Accepted");
    let values: Vec<_> =
        posts(&server).await.iter().map(|post| post.headers[name].to_str().unwrap().to_owned()).collect();
    assert_eq!(values, [first.to_owned(), first.replace("s3cr3t-0ne", "n3w-s3cr3t")]);
}

#[rstest]
#[case::missing(vec![], "SecretNotFound", "there is no Secret shop/triage")]
#[case::wrong_key(vec![("triage", "tokne", "x")], "SecretKeyNotFound", "has no key \"token\"")]
#[case::empty(vec![("triage", "token", " \n")], "SecretInvalid", "is empty")]
#[case::guessable(vec![("triage", "token", "1234567")], "SecretInvalid", "shorter than 8")]
#[case::two_lines(vec![("triage", "token", "abcdef\nghijkl")], "SecretInvalid", "line break")]
#[tokio::test]
async fn a_credential_that_is_missing_or_wrong_is_told_and_nothing_is_sent(
    #[case] secrets: Vec<(&str, &str, &str)>,
    #[case] reason: &str,
    #[case] why: &str,
) {
    let server = agent_with(None, "/").await;
    let client = client(LOOPBACK, secrets);
    let agent = DirectAgent { auth: shown(None), ..at(&server.uri()) };
    let [problem] = &client.examine(&agent).await.unwrap()[..] else { panic!("one problem") };
    assert_eq!(problem.reason, reason);
    assert!(problem.message.contains(why), "{}", problem.message);
    let reply = ask(&client, &agent).await;
    assert_eq!(told(&reply), ("NotRun", problem.message.as_str()));
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_secret_that_may_not_be_read_says_which_right_is_missing() {
    let secrets = store(vec![]);
    secrets.lock().unwrap().insert("triage".into(), Err(SecretError::Forbidden));
    let agent = DirectAgent { auth: shown(None), ..at("http://127.0.0.1:1/") };
    let [problem] = &client_of(LOOPBACK, secrets).examine(&agent).await.unwrap()[..] else {
        panic!("one problem")
    };
    assert_eq!(problem.reason, "SecretForbidden");
    assert!(problem.message.contains("resourceNames: [triage]"), "{}", problem.message);
}

#[tokio::test]
async fn an_apiserver_in_trouble_says_nothing_of_a_secret() {
    let secrets = store(vec![]);
    secrets.lock().unwrap().insert("triage".into(), Err(SecretError::Other("etcd is away".into())));
    let agent = DirectAgent { auth: shown(None), ..at("http://127.0.0.1:1/") };
    let client = client_of(LOOPBACK, secrets);
    assert_eq!(client.examine(&agent).await, None);
    let reply = ask(&client, &agent).await;
    assert!(matches!(&reply, Reply::NotRun { error, .. } if error.contains("etcd is away")), "{reply:?}");
}

#[tokio::test]
async fn a_certificate_authority_must_be_one() {
    let agent = DirectAgent {
        ca: Some(SecretKey { name: "triage".into(), key: "token".into() }),
        ..at("https://127.0.0.1:1/")
    };
    for wrong in ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"] {
        let client = client(LOOPBACK, vec![("triage", "token", wrong)]);
        assert_eq!(told(&ask(&client, &agent).await).0, "NotRun", "{wrong}");
    }
}

#[tokio::test]
async fn nothing_that_is_said_has_the_secret_in_it() {
    let server = MockServer::start().await;
    let echo = |request: &Request| {
        let shown = request.headers.get("x-api-key").map(|value| value.to_str().unwrap().to_owned());
        ResponseTemplate::new(401).set_body_string(format!("who is {}?", shown.unwrap_or_default()))
    };
    Mock::given(method("POST")).respond_with(echo).mount(&server).await;
    let agent = DirectAgent { auth: shown(Some("X-API-Key")), ..at(&server.uri()) };
    let reply = ask(&client(LOOPBACK, vec![("triage", "token", "s3cr3t-0ne")]), &agent).await;
    let (kind, error) = told(&reply);
    assert_eq!(kind, "NotRun");
    assert!(error.contains("who is [redacted]?"), "{error}");
}

#[tokio::test]
async fn a_secret_is_known_again_in_other_clothes() {
    const SECRET: &str = "s3cr3t&\"<x>/y";
    for echoed in [
        SECRET.to_owned(),
        serde_json::to_string(SECRET).unwrap(),
        r#"{"error":"bad token s3cr3t\u0026\"\u003cx\u003e/y"}"#.to_owned(),
        r#"{"message":"bad token s3cr3t\u0026\"\u003cx\u003e/y"}"#.to_owned(),
        "czNjcjN0JiI8eD4veQ==".to_owned(),
        "/login?token=s3cr3t%26%22%3Cx%3E%2Fy".to_owned(),
    ] {
        let server = MockServer::start().await;
        let refused = ResponseTemplate::new(401).set_body_string(echoed.clone());
        Mock::given(method("POST")).respond_with(refused).mount(&server).await;
        let agent = DirectAgent { auth: shown(None), ..at(&server.uri()) };
        let reply = ask(&client(LOOPBACK, vec![("triage", "token", SECRET)]), &agent).await;
        let (kind, error) = told(&reply);
        assert_eq!(kind, "NotRun");
        assert!(error.contains("[redacted]") && !error.contains("s3cr3t"), "{echoed}: {error}");
        assert!(!error.contains("czNjcjN0"), "{error}");
    }
}

#[tokio::test]
async fn a_task_that_is_named_by_the_secret_is_not_kept() {
    let server = MockServer::start().await;
    let named =
        ok(r#"{"result":{"task":{"id":"id-s3cr3t-0ne","history":[{"messageId":"m","role":"ROLE_USER"}]}}}"#);
    Mock::given(method("POST")).respond_with(named).mount(&server).await;
    let agent = DirectAgent { auth: shown(None), protocol: Some(Protocol::V10), ..at(&server.uri()) };
    let client = client(LOOPBACK, vec![("triage", "token", "s3cr3t-0ne")]);
    let reply = ask(&client, &agent).await;
    assert!(!format!("{reply:?}").contains("s3cr3t"), "{reply:?}");
    let listed = MockServer::start().await;
    let list = ok(
        r#"{"result":{"tasks":[{"id":"id-s3cr3t-0ne","history":[{"messageId":"m","role":"ROLE_USER"}]}]}}"#,
    );
    Mock::given(method("POST")).respond_with(list).mount(&listed).await;
    let agent = DirectAgent { url: listed.uri().parse().unwrap(), ..agent };
    let lookup = client.lookup(&agent, Dialect::Only(Protocol::V10), SESSION, "m").await;
    assert!(matches!(&lookup, Lookup::Unavailable { error } if !error.contains("s3cr3t")), "{lookup:?}");
}

#[tokio::test]
async fn where_answers_are_not_shown_no_failure_quotes_the_agent() {
    for body in ["<html>LOGLINE hunter2</html>", r#"{"error":{"code":-32603,"message":"LOGLINE hunter2"}}"#] {
        for status in [200, 401, 503] {
            let server = MockServer::start().await;
            let answer = ResponseTemplate::new(status).set_body_string(body);
            Mock::given(method("POST")).respond_with(answer).mount(&server).await;
            let config = DirectConfig { quote: false, ..config(LOOPBACK) };
            let client = Direct::new(config, Stored(store(vec![])));
            let reply = ask(&client, &at(&server.uri())).await;
            assert!(!told(&reply).1.contains("LOGLINE"), "{reply:?}");
            assert!(told(&reply).1.contains("not shown"), "{reply:?}");
        }
    }
}

// What became of it.

#[tokio::test]
async fn a_list_that_shows_only_what_the_agent_said_is_not_absence() {
    let server = MockServer::start().await;
    let said = r#"{"messageId":"a","role":"ROLE_AGENT","parts":[{"text":"done"}]}"#;
    for task in [
        format!(r#"{{"id":"t","status":{{"state":"TASK_STATE_COMPLETED","message":{said}}}}}"#),
        format!(r#"{{"id":"t","history":[{said}]}}"#),
    ] {
        server.reset().await;
        let list = format!(r#"{{"result":{{"tasks":[{task}],"nextPageToken":""}}}}"#);
        Mock::given(method("POST")).respond_with(ok(&list)).mount(&server).await;
        let agent = DirectAgent { protocol: Some(Protocol::V10), ..at(&server.uri()) };
        let client = client(LOOPBACK, vec![]);
        let lookup = client.lookup(&agent, Dialect::Only(Protocol::V10), SESSION, "m").await;
        assert!(matches!(lookup, Lookup::Unavailable { .. }), "{task}: {lookup:?}");
    }
}

#[tokio::test]
async fn what_was_asked_at_another_endpoint_is_not_absent_at_this_one() {
    let server = agent_with(Some(card("SELF/one")), "/one").await;
    let broken = ResponseTemplate::new(500);
    Mock::given(method("POST")).and(path("/one")).respond_with(broken).with_priority(1).mount(&server).await;
    let client = client(LOOPBACK, vec![]);
    let agent = at(&server.uri());
    assert_eq!(told(&ask(&client, &agent).await).0, "Unknown");
    server.reset().await;
    let moved = card(&format!("{}/two", server.uri())).to_string();
    Mock::given(method("GET")).respond_with(ok(&moved)).mount(&server).await;
    let none = ok(r#"{"result":{"tasks":[],"totalSize":0}}"#);
    Mock::given(method("POST")).respond_with(none).mount(&server).await;
    let lookup = client.lookup(&agent, Dialect::Guess(Protocol::V03), SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unsupported { .. }), "{lookup:?}");
}

#[tokio::test]
async fn an_agent_of_0_3_has_no_lookup_and_is_not_even_asked() {
    let server = agent_with(None, "/").await;
    let agent = DirectAgent { protocol: Some(Protocol::V03), ..at(&server.uri()) };
    let client = client(LOOPBACK, vec![]);
    let lookup = client.lookup(&agent, Dialect::Guess(Protocol::V03), SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unsupported { .. }), "{lookup:?}");
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_message_is_looked_for_on_every_page() {
    let server = MockServer::start().await;
    let pages = |request: &Request| {
        let body: Value = request.body_json().unwrap();
        match body["params"]["pageToken"].as_str() {
            None => ok(
                r#"{"result":{"tasks":[{"id":"a","history":[{"messageId":"x","role":"ROLE_USER"}]}],"nextPageToken":"two"}}"#,
            ),
            Some(_) => ok(
                r#"{"result":{"tasks":[{"id":"b","history":[{"messageId":"m","role":"ROLE_USER"}]}],"nextPageToken":""}}"#,
            ),
        }
    };
    Mock::given(method("POST")).respond_with(pages).mount(&server).await;
    let agent = DirectAgent { protocol: Some(Protocol::V10), ..at(&server.uri()) };
    let client = client(LOOPBACK, vec![]);
    let dialect = Dialect::Only(Protocol::V10);
    let found = Lookup::Found { task_id: "b".into(), ended: None };
    assert_eq!(client.lookup(&agent, dialect, SESSION, "m").await, found);
    assert_eq!(client.lookup(&agent, dialect, SESSION, "n").await, Lookup::Absent);
}

#[rstest]
#[case(404, "404 page not found")]
#[case(405, "")]
#[case(501, "")]
#[tokio::test]
async fn where_no_endpoint_is_nobody_has_said_that_there_is_no_list(#[case] status: u16, #[case] body: &str) {
    let server = MockServer::start().await;
    let gone = ResponseTemplate::new(status).set_body_string(body);
    Mock::given(method("POST")).respond_with(gone).mount(&server).await;
    let lookup = client(LOOPBACK, vec![])
        .lookup(&at(&server.uri()), Dialect::Guess(Protocol::V03), SESSION, "m")
        .await;
    assert!(matches!(lookup, Lookup::Unavailable { .. }), "{lookup:?}");
}

#[tokio::test]
async fn a_list_without_an_end_is_not_absence() {
    let server = MockServer::start().await;
    let more = ok(r#"{"result":{"tasks":[],"nextPageToken":"more"}}"#);
    Mock::given(method("POST")).respond_with(more).mount(&server).await;
    let agent = DirectAgent { protocol: Some(Protocol::V10), ..at(&server.uri()) };
    let client = client(LOOPBACK, vec![]);
    let lookup = client.lookup(&agent, Dialect::Only(Protocol::V10), SESSION, "m").await;
    assert!(matches!(lookup, Lookup::Unavailable { .. }), "{lookup:?}");
}
