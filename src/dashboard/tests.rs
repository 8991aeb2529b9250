//! The server as a whole, over a store of made-up Hooks.

use std::net::Ipv4Addr;

use kube::runtime::{reflector, watcher};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// What must stay text wherever it is shown.
const ATTACK: &str = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\r\n\ndata: x";

struct Stage {
    address: SocketAddr,
    stop: CancellationToken,
    feed: Feed,
    writer: reflector::store::Writer<Hook>,
    dashboard: Dashboard,
}

fn hook(name: &str, entries: Value) -> Hook {
    serde_json::from_value(json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook",
        "metadata": {"name": name, "namespace": "shop", "uid": "u"},
        "spec": {"eventConfigurations": [{"eventType": "oom-kill", "agentId": "kagent/a", "prompt": "Look at {{.ResourceName}}"}]},
        "status": {"agents": "kagent/a", "activeEvents": entries},
    }))
    .unwrap()
}

fn entry(id: &str, phase: &str) -> Value {
    json!({"id": id, "eventType": "oom-kill", "resourceName": format!("web-{id}"), "namespace": "shop",
        "agent": "kagent/a", "status": phase, "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z"})
}

impl Stage {
    async fn start(hooks: Vec<Hook>) -> Self {
        let (store, mut writer) = reflector::store();
        for hook in hooks {
            writer.apply_watcher_event(&watcher::Event::Apply(hook));
        }
        let (feed, stop) = (Feed::new([]), CancellationToken::new());
        let dashboard =
            Dashboard::start(Ipv4Addr::LOCALHOST.into(), 0, store, &feed, stop.clone()).await.unwrap();
        Self { address: dashboard.address, stop, feed, writer, dashboard }
    }

    async fn send(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, head: &str) -> String {
        let mut answer = String::new();
        self.send(head).await.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost:1")).await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    fn apply(&mut self, hook: Hook) {
        self.writer.apply_watcher_event(&watcher::Event::Apply(hook));
        self.feed.changed();
    }
}

/// Reads until this has come; answers all that came.
async fn until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "it ended before {wanted:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..read]);
        }
    };
    let in_time = time::timeout(PATIENCE, reading).await.is_ok();
    assert!(in_time, "no {wanted:?} in {}", String::from_utf8_lossy(&seen));
    String::from_utf8_lossy(&seen).into_owned()
}

#[rstest]
#[case("GET / HTTP/1.1\r\nhost: localhost", "200")]
#[case("GET / HTTP/1.1\r\nhost: 127.0.0.1:8090", "200")]
#[case("GET / HTTP/1.1\r\nhost: [::1]:8090", "200")]
#[case("HEAD / HTTP/1.1\r\nhost: LOCALHOST:8090", "200")]
#[case("GET /page.js HTTP/1.1\r\nhost: localhost", "200")]
#[case("GET /api/v1/hooks HTTP/1.1\r\nhost: localhost", "200")]
#[case("GET /api/v1/openapi.json HTTP/1.1\r\nhost: localhost", "200")]
#[case("GET /nothing HTTP/1.1\r\nhost: localhost", "404")]
#[case("GET /incidents/shop/none/1 HTTP/1.1\r\nhost: localhost", "404")]
#[case("GET /api/v1/incidents?phase=exploded HTTP/1.1\r\nhost: localhost", "400")]
#[case("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0", "405")]
#[case("DELETE /api/v1/hooks HTTP/1.1\r\nhost: localhost", "405")]
#[case("OPTIONS /nothing HTTP/1.1\r\nhost: localhost", "405")]
// Names of others that have been made to lead here.
#[case("GET / HTTP/1.1\r\nhost: evil.example", "403")]
#[case("GET /api/v1/incidents HTTP/1.1\r\nhost: localhost.evil.example:8090", "403")]
#[case("GET / HTTP/1.1\r\nhost: 10.0.0.1", "403")]
#[case("GET / HTTP/1.0", "403")]
#[case("GET http://evil.example/ HTTP/1.1\r\nhost: localhost", "403")]
#[tokio::test]
async fn every_answer_has_its_headers_and_only_what_may_be_read_is(#[case] head: &str, #[case] status: &str) {
    let stage = Stage::start(vec![hook("h", json!([]))]).await;
    let answer = stage.ask(head).await;
    assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(answer.contains(header), "no {header}: {answer}");
    }
    assert!(!answer.contains("access-control-"), "{answer}");
    assert_eq!(status == "405", answer.contains("allow: GET, HEAD"), "{answer}");
}

#[tokio::test]
async fn what_others_say_stays_text_wherever_it_is_shown() {
    let mut evil = entry(ATTACK, "notified");
    for field in
        ["resourceName", "agent", "message", "answer", "lastError", "eventMessage", "eventName", "sessionId"]
    {
        evil[field] = json!(ATTACK);
    }
    evil["sessionUrl"] = json!("javascript:alert(1)");
    let stage = Stage::start(vec![hook("h", json!([evil]))]).await;
    let id = percent_encoding::utf8_percent_encode(ATTACK, percent_encoding::NON_ALPHANUMERIC);
    let detail = stage.get(&format!("/incidents/shop/h/{id}")).await;
    assert!(detail.starts_with("HTTP/1.1 200"), "{detail}");
    assert!(!detail.contains("href=\"javascript"), "{detail}");
    let mut stream = stage.send("GET /stream HTTP/1.1\r\nhost: localhost").await;
    let pieces = until(&mut stream, "\"state\"").await;
    let page = stage.get("/").await;
    assert!(page.contains("&#60;img src=x onerror=alert(1)&#62;"), "{page}");
    for text in [&detail, &page, &pieces] {
        assert!(!text.contains("<script>alert") && !text.contains("<img src=x"), "{text}");
    }
    let mut stream = stage.send("GET /api/v1/stream HTTP/1.1\r\nhost: localhost").await;
    let objects = until(&mut stream, "\"broken\"").await;
    // As JSON it is what it was, and it is no event of its own.
    assert!(objects.contains("<script>") && !objects.contains("\ndata: x"), "{objects}");
}

#[tokio::test]
async fn incidents_are_found_by_namespace_hook_and_phase() {
    let hooks = vec![
        hook("a", json!([entry("1", "pending"), entry("2", "resolved")])),
        hook("b", json!([entry("1", "pending")])),
    ];
    let stage = Stage::start(hooks).await;
    let count = async |query: &str| {
        let list = stage.json(&format!("/api/v1/incidents{query}")).await;
        list["items"].as_array().unwrap().len()
    };
    assert_eq!(count("").await, 3);
    assert_eq!(count("?phase=pending").await, 2);
    assert_eq!(count("?hook=a&phase=pending&namespace=shop").await, 1);
    assert_eq!(count("?namespace=other").await, 0);
    let schema = &api::openapi()["components"]["schemas"]["Incident"]["properties"];
    for (key, _) in stage.json("/api/v1/incidents").await["items"][0].as_object().unwrap() {
        assert!(schema.get(key).is_some(), "{key} is not described");
    }
}

#[tokio::test]
async fn a_stream_begins_with_all_and_goes_on_with_what_changes() {
    let mut stage =
        Stage::start(vec![hook("h", json!([entry("1", "pending"), entry("2", "pending")]))]).await;
    let mut api = stage.send("GET /api/v1/stream HTTP/1.1\r\nhost: localhost").await;
    let first = until(&mut api, "event: snapshot").await;
    let mut page = stage.send("GET /stream HTTP/1.1\r\nhost: localhost").await;
    until(&mut page, "event: snapshot").await;
    stage.apply(hook("h", json!([entry("1", "firing")])));
    let told = first + &until(&mut api, "event: state").await;
    assert!(
        told.contains("event: remove") && told.contains(r#"{"kind":"incident","key":"shop/h/2"}"#),
        "{told}"
    );
    assert!(told.contains(r#""phase":"firing""#), "{told}");
    let pieces = until(&mut page, "event: changes").await;
    assert!(
        pieces.contains(r#""remove":["incident:shop/h/2"]"#)
            || until(&mut page, "incident:shop/h/2").await.contains("remove"),
        "{pieces}"
    );
}

#[tokio::test]
async fn who_has_the_board_is_not_sent_it_again() {
    let mut stage = Stage::start(vec![hook("h", json!([entry("1", "pending")]))]).await;
    let version = async |stage: &Stage| {
        let page = stage.get("/").await;
        page.split("data-version=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let known = version(&stage).await;
    let head = format!("GET /stream?since={known} HTTP/1.1\r\nhost: localhost");
    let mut stream = stage.send(&head).await;
    let first = until(&mut stream, ": nothing has changed").await;
    assert!(!first.contains("snapshot"), "{first}");
    drop(stream);
    // Nobody reads now; what changes meanwhile is not missed.
    stage.apply(hook("h", json!([entry("1", "firing")])));
    let begin = time::Instant::now();
    while version(&stage).await == known {
        assert!(begin.elapsed() < PATIENCE, "the board stays as it is");
        time::sleep(Duration::from_millis(20)).await;
    }
    let mut stream = stage.send(&head).await;
    until(&mut stream, "event: snapshot").await;
}

#[tokio::test]
async fn there_are_so_many_streams_and_no_more_until_one_ends() {
    let stage = Stage::start(vec![]).await;
    let head = "GET /stream HTTP/1.1\r\nhost: localhost";
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = stage.send(head).await;
        until(&mut stream, "event: snapshot").await;
        open.push(stream);
    }
    let refused = stage.ask(head).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 10"), "{refused}");
    open.pop();
    let begin = time::Instant::now();
    loop {
        let mut stream = stage.send(head).await;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        if status.ends_with(b"200") {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "a place is not given back");
        time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_let_go() {
    let (_news, changes) = broadcast::channel(1);
    let (send, mut receive) = mpsc::channel(1);
    let (line, places) = (Line::default(), Arc::new(Semaphore::new(1)));
    let place = places.clone().try_acquire_owned().unwrap();
    let pace = Pace { beat: Duration::from_millis(10), slow: Duration::from_millis(50) };
    let end = (line, place, CancellationToken::new());
    let pump = tokio::spawn(pump(Reader::Api, pace, Bytes::from_static(b"1"), changes, send, end));
    // Nobody takes anything: one piece is on its way, and the next waits until it is too late.
    time::timeout(PATIENCE, pump).await.unwrap().unwrap();
    assert_eq!(places.available_permits(), 1, "its place is free");
    assert_eq!(receive.recv().await, Some(Bytes::from_static(b"1")));
    assert_eq!(receive.recv().await, None);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_though_somebody_reads() {
    let stage = Stage::start(vec![]).await;
    let mut stream = stage.send("GET /stream HTTP/1.1\r\nhost: localhost").await;
    until(&mut stream, "event: snapshot").await;
    stage.stop.cancel();
    time::timeout(PATIENCE, stage.dashboard.stopped()).await.unwrap();
    assert!(TcpStream::connect(stage.address).await.is_err());
}
