//! What agents on real A2A SDKs answer on the wire: the files that khook's client is tested against are
//! theirs, and stay so.
//!
//! With `KHOOK_RECORD=1` the answers are written into `src/agent/tests/a2a-*` instead of being compared.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::process::Scratch;
use e2e::sdk::{Certificate, Options, Sdk, SdkServer};
use e2e::wait::eventually;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const TOKEN: &str = "open-sesame";

/// The two ways A2A is spoken.
#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    Old,
    New,
}

use Dialect::{New, Old};

impl Dialect {
    fn of(sdk: Sdk) -> Self {
        if sdk == Sdk::Python03 { Old } else { New }
    }

    fn method(self, new: &'static str) -> &'static str {
        match (self, new) {
            (New, new) => new,
            (Old, "SendMessage") => "message/send",
            (Old, "SendStreamingMessage") => "message/stream",
            (Old, "GetTask") => "tasks/get",
            (Old, "CancelTask") => "tasks/cancel",
            (Old, "SubscribeToTask") => "tasks/resubscribe",
            (Old, "ListTasks") => "tasks/list",
            (Old, other) => other,
        }
    }

    fn message(self, id: &str, context: &str, text: &str) -> Value {
        match self {
            Old => json!({
                "kind": "message", "messageId": id, "contextId": context, "role": "user",
                "parts": [{"kind": "text", "text": text}],
            }),
            New => json!({
                "messageId": id, "contextId": context, "role": "ROLE_USER", "parts": [{"text": text}],
            }),
        }
    }

    /// A message whose sender does not wait for the end.
    fn at_once(self, message: Value) -> Value {
        match self {
            Old => json!({"message": message, "configuration": {"blocking": false}}),
            New => json!({"message": message, "configuration": {"returnImmediately": true}}),
        }
    }

    /// The task of an answer to a message.
    fn task(self, answer: &Answer) -> Value {
        let result = answer.json()["result"].clone();
        if self == New { result["task"].clone() } else { result }
    }

    fn state(self, state: &str) -> String {
        match self {
            Old => state.to_owned(),
            New => format!("TASK_STATE_{}", state.to_uppercase().replace('-', "_")),
        }
    }
}

#[derive(Clone, Debug)]
struct Answer {
    status: u16,
    kind: String,
    body: String,
    /// Whether the body ended as HTTP bodies do.
    whole: bool,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn code(&self) -> i64 {
        self.json()["error"]["code"].as_i64().unwrap_or_default()
    }
}

/// Calls an agent as a client of its dialect does.
struct Caller {
    server: SdkServer,
    dialect: Dialect,
    endpoint: String,
    http: reqwest::Client,
    headers: BTreeMap<&'static str, String>,
}

impl Caller {
    async fn start(sdk: Sdk) -> Self {
        // Who has no name may list no tasks on Go.
        let options = if sdk == Sdk::Go { Options::default().token(TOKEN) } else { Options::default() };
        let mut caller = Self::with(sdk, options).await;
        if sdk == Sdk::Go {
            caller.headers.insert("authorization", format!("Bearer {TOKEN}"));
        }
        caller
    }

    async fn with(sdk: Sdk, options: Options) -> Self {
        let server = SdkServer::start(sdk, options).await.unwrap();
        let dialect = Dialect::of(sdk);
        let mut headers = BTreeMap::new();
        if dialect == New {
            headers.insert("a2a-version", "1.0".to_owned());
        }
        Self { endpoint: server.endpoint(), server, dialect, http: e2e::http_client().unwrap(), headers }
    }

    fn request(&self, body: String) -> reqwest::RequestBuilder {
        let request = self.http.post(&self.endpoint).header("content-type", "application/json").body(body);
        self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
    }

    async fn post(&self, body: String) -> Answer {
        read(self.request(body).send().await.unwrap()).await
    }

    async fn call(&self, method: &'static str, params: Value) -> Answer {
        self.post(rpc(self.dialect.method(method), &params).to_string()).await
    }

    async fn send(&self, id: &str, text: &str) -> Answer {
        let message = self.dialect.message(id, &format!("context-of-{id}"), text);
        self.call("SendMessage", json!({"message": message})).await
    }

    async fn send_at_once(&self, id: &str, text: &str) -> Answer {
        let message = self.dialect.message(id, &format!("context-of-{id}"), text);
        self.call("SendMessage", self.dialect.at_once(message)).await
    }

    async fn stream(&self, id: &str, text: &str) -> Answer {
        let message = self.dialect.message(id, &format!("context-of-{id}"), text);
        self.call("SendStreamingMessage", json!({"message": message})).await
    }

    /// Calls and listens for two seconds, which is longer than any of these answers takes to come.
    async fn listen(&self, method: &'static str, params: Value) -> Answer {
        let call = rpc(self.dialect.method(method), &params).to_string();
        let request = self.request(call).timeout(Duration::from_secs(2));
        read(request.send().await.unwrap()).await
    }

    async fn get(&self, task: &Value) -> Answer {
        self.call("GetTask", json!({"id": task["id"]})).await
    }

    /// Waits for a task to be in a state.
    async fn get_when(&self, task: &Value, state: &str) -> Result<Answer> {
        eventually(&format!("a task that is {state}"), SOON, async || {
            let answer = self.get(task).await;
            ensure!(answer.json()["result"]["status"]["state"] == *self.dialect.state(state), "{answer:?}");
            Ok(answer)
        })
        .await
    }
}

fn rpc(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": "r-1", "method": method, "params": params})
}

async fn read(mut answer: reqwest::Response) -> Answer {
    let status = answer.status().as_u16();
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let (mut body, mut whole) = (Vec::new(), true);
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => body.extend(chunk),
            Ok(None) => break,
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    Answer { status, kind: kind.unwrap_or_default(), body: String::from_utf8(body).unwrap(), whole }
}

/// The recorded answers of one SDK.
struct Record {
    folder: PathBuf,
    wrong: Vec<String>,
}

impl Record {
    fn of(sdk: Sdk) -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/agent/tests");
        Self { folder: tests.join(format!("a2a-{}", sdk.name())), wrong: Vec::new() }
    }

    /// Compares an answer with the recorded one, but for what is new each time.
    fn check(&mut self, name: &str, answer: &Answer) {
        let file = self.folder.join(name);
        if std::env::var_os("KHOOK_RECORD").is_some() {
            fs::create_dir_all(&self.folder).unwrap();
            fs::write(&file, &answer.body).unwrap();
            return;
        }
        let recorded = fs::read_to_string(&file).unwrap_or_default();
        let (is, was) = (plain(&answer.body), plain(&recorded));
        if is != was {
            self.wrong.push(format!(
                "{name} is not what is recorded:\n{}\nrecorded:\n{}",
                json!(is),
                json!(was)
            ));
        }
    }

    fn finish(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n\n"));
    }
}

/// A body without what is new each time: ids that the server makes, times, ports, tokens of pages.
fn plain(body: &str) -> Vec<Value> {
    let stream = body.lines().any(|line| line.starts_with("data: "));
    let texts: Vec<&str> = if stream {
        body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    } else {
        vec![body]
    };
    let values = texts.into_iter().map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
    values
        .map(|mut value| {
            hide(&mut value);
            value
        })
        .collect()
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &value) {
                    ("timestamp", _) => *value = json!("TIME"),
                    ("nextPageToken", Value::String(token)) if !token.is_empty() => *value = json!("TOKEN"),
                    _ => hide(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(hide),
        Value::String(text) => {
            // A task's id may be in the middle of words.
            let words = text.split(' ').map(|word| match word.split_once("://127.0.0.1:") {
                Some((_, place)) => format!("URL/{}", place.split_once('/').unwrap_or_default().1),
                None if word.len() == 36 && uuid::Uuid::parse_str(word).is_ok() => "ID".to_owned(),
                None => word.to_owned(),
            });
            *text = words.collect::<Vec<_>>().join(" ");
        }
        _ => {}
    }
}

/// Whether Go's exception came before the task that was sent just before it was stored: it runs the agent and
/// takes what the agent sends at the same time, and an exception ends both. The error is then all there is.
fn overtaken(sdk: Sdk, name: &str, body: &str) -> bool {
    let error = plain(body).last().is_some_and(|last| {
        (&last["error"]["code"], &last["error"]["data"]["error"])
            == (&json!(-32603), &json!("the model gave up"))
    });
    (sdk, name) == (Sdk::Go, "raised") && error
}

/// Everything that is recorded of one SDK.
async fn answers_as_recorded(sdk: Sdk) -> Result<()> {
    let agent = Caller::start(sdk).await;
    let mut record = Record::of(sdk);
    let (dialect, url) = (agent.dialect, agent.server.url());

    let card = read(agent.http.get(format!("{url}/.well-known/agent-card.json")).send().await?).await;
    assert_eq!(card.status, 200);
    record.check("agent-card.json", &card);
    let place = match dialect {
        Old => card.json()["url"].clone(),
        New => card.json()["supportedInterfaces"][0]["url"].clone(),
    };
    assert_eq!(place, json!(agent.server.endpoint()));

    for (name, marks) in [
        ("completed", ""),
        ("message", "[[message]]"),
        ("status", "[[status]]"),
        ("chunks", "[[chunks]]"),
        ("usage", "[[usage]]"),
        ("usage-artifact", "[[usage=artifact]]"),
        ("usage-message", "[[status]] [[usage=message]]"),
        ("failed", "[[failed]]"),
        ("input-required", "[[ask]]"),
        ("auth-required", "[[auth]]"),
        ("rejected", "[[reject]]"),
        ("canceled", "[[cancel]]"),
        ("raised", "[[fail]]"),
        ("raised-early", "[[early]]"),
    ] {
        let answer = agent.send(name, &format!("{marks} Pod web-1 crashes.\nIts log is empty.")).await;
        assert_eq!((answer.status, answer.kind.as_str()), (200, "application/json"), "{name}");
        if overtaken(sdk, name, &answer.body) {
            continue;
        }
        record.check(&format!("send-{name}.json"), &answer);
        let task = dialect.task(&answer);
        if task["id"].is_string() && task["status"].is_object() && !name.contains("usage") {
            record.check(&format!("get-{name}.json"), &agent.get(&task).await);
        }
        if name == "input-required" {
            // Python 1.x waits with the listener for an answer; the others know of no run any more.
            let answer = agent.listen("SubscribeToTask", json!({"id": task["id"]})).await;
            assert_eq!(answer.whole, sdk != Sdk::Python1);
            record.check("subscribe-input-required.txt", &answer);
            let mut message = dialect.message("answer", "context-of-input-required", "The one of the shop.");
            message["taskId"] = task["id"].clone();
            let answer = agent.call("SendMessage", json!({"message": message})).await;
            record.check("send-answered.json", &answer);
            // Now it has ended, and takes nothing more.
            let mut message = dialect.message("more", "context-of-input-required", "And then?");
            message["taskId"] = task["id"].clone();
            let answer = agent.call("SendMessage", json!({"message": message})).await;
            assert_eq!(answer.code(), if sdk == Sdk::Python1 { -32004 } else { -32602 });
            record.check("rpc-terminal.json", &answer);
        }
    }

    let answer = agent.send_at_once("submitted", "[[delay=1]] Pod web-1 crashes.").await;
    let task = dialect.task(&answer);
    if task["status"]["state"] == *dialect.state("submitted") {
        record.check("send-submitted.json", &answer);
    } else {
        // Go answers with what the task has become by then.
        assert_eq!((sdk, &task["status"]["state"]), (Sdk::Go, &json!(dialect.state("working"))));
    }
    record.check("get-working.json", &agent.get_when(&task, "working").await?);
    let events = agent.call("SubscribeToTask", json!({"id": task["id"]})).await;
    record.check("subscribe-running.txt", &events);
    record.check("subscribe-finished.txt", &agent.call("SubscribeToTask", json!({"id": task["id"]})).await);
    record.check("subscribe-unknown.txt", &agent.call("SubscribeToTask", json!({"id": "none"})).await);

    // An exception in the background: 0.3 forgets to say so, and the task works forever.
    let answer = agent.send_at_once("raised-later", "[[delay=0.1]] [[fail]] Pod web-1 crashes.").await;
    let task = dialect.task(&answer);
    let end = if dialect == Old { "working" } else { "failed" };
    eventually("the exception", SOON, async || {
        let runs = agent.server.runs().await?;
        let run = runs.iter().find(|run| run["messageId"] == "raised-later").cloned().unwrap_or_default();
        ensure!(run["end"] == "raised", "{run}");
        Ok(())
    })
    .await?;
    record.check("get-raised-later.json", &agent.get_when(&task, end).await?);

    let answer = agent.send_at_once("stopped", "[[delay=9]] Pod web-1 crashes.").await;
    let task = dialect.task(&answer);
    agent.get_when(&task, "working").await?;
    record.check("cancel.json", &agent.call("CancelTask", json!({"id": task["id"]})).await);
    record.check("cancel-again.json", &agent.call("CancelTask", json!({"id": task["id"]})).await);

    for (name, marks) in [
        ("completed", ""),
        ("status", "[[status]]"),
        ("chunks", "[[chunks]]"),
        ("message", "[[message]]"),
        ("failed", "[[failed]]"),
        ("input-required", "[[ask]]"),
        ("raised", "[[fail]]"),
        ("raised-early", "[[early]]"),
    ] {
        let mut answer =
            agent.stream(&format!("stream-{name}"), &format!("{marks} Pod web-1 crashes.")).await;
        assert_eq!(answer.status, 200, "{name}");
        // 0.3 breaks the connection off over an exception; the others say it in an event.
        assert_eq!(answer.whole, !(sdk == Sdk::Python03 && name.starts_with("raised")), "{name}");
        if (sdk, name) == (Sdk::Go, "raised") {
            // Whether what was sent before the exception still comes is chance.
            let last = answer.body.trim_end().rsplit("\n\n").next().unwrap_or_default();
            answer.body = format!("{last}\n\n");
        }
        if overtaken(sdk, name, &answer.body) {
            continue;
        }
        record.check(&format!("stream-{name}.txt"), &answer);
    }

    // Go waits for more from an agent that has ended.
    let message = dialect.message("auth", "auth", "[[auth]] Pod web-1 crashes.");
    let answer = agent.listen("SendStreamingMessage", json!({"message": message})).await;
    assert_eq!(answer.whole, sdk != Sdk::Go);
    record.check("stream-auth-required.txt", &answer);

    for (name, code, method, params) in [
        ("rpc-task-not-found", -32001, "GetTask", json!({"id": "none"})),
        ("rpc-cancel-not-found", -32001, "CancelTask", json!({"id": "none"})),
        ("rpc-method", -32601, "GetWeather", json!({})),
        ("rpc-no-message", -32602, "SendMessage", json!({})),
        ("rpc-invalid-params", -32602, "SendMessage", json!({"message": 7})),
    ] {
        let answer = agent.call(method, params).await;
        assert_eq!((answer.status, answer.code()), (200, code), "{name}: {answer:?}");
        record.check(&format!("{name}.json"), &answer);
    }
    let answer = agent.post("{no".to_owned()).await;
    assert_eq!((answer.status, answer.code()), (200, -32700));
    record.check("rpc-parse.json", &answer);

    // The other dialect's methods are unknown, whatever the version that is claimed.
    let other = if dialect == Old { New } else { Old };
    let params = json!({"message": other.message("other", "other", "Pod web-1 crashes.")});
    let answer = agent.post(rpc(other.method("SendMessage"), &params).to_string()).await;
    assert_eq!((answer.status, answer.code()), (200, -32601));
    record.check("rpc-other-dialect.json", &answer);

    // Only Python 1.x looks at the version, and takes none for 0.3.
    let get = rpc(dialect.method("GetTask"), &json!({"id": "none"})).to_string();
    for (name, version, looks) in [("rpc-version", Some("9.9"), -32009), ("rpc-no-version", None, -32009)] {
        let mut caller = agent.request(get.clone()).build()?;
        caller.headers_mut().remove("a2a-version");
        if let Some(version) = version {
            caller.headers_mut().insert("a2a-version", version.parse()?);
        }
        let answer = read(agent.http.execute(caller).await?).await;
        assert_eq!(answer.code(), if sdk == Sdk::Python1 { looks } else { -32001 }, "{name}");
        record.check(&format!("{name}.json"), &answer);
    }

    // The same message again is a run of its own, and a task of its own in the same context.
    for _ in 0..3 {
        agent.send("again", "Pod web-1 crashes.").await;
    }
    let runs = agent.server.runs().await?;
    assert_eq!(runs.iter().filter(|run| run["messageId"] == "again").count(), 3);
    if dialect == Old {
        record.check(
            "list-tasks.json",
            &agent.call("ListTasks", json!({"contextId": "context-of-again"})).await,
        );
    } else {
        let list = json!({"contextId": "context-of-again", "pageSize": 2});
        let first = agent.call("ListTasks", list.clone()).await;
        record.check("list-tasks.json", &first);
        let mut next = list;
        next["pageToken"] = first.json()["result"]["nextPageToken"].clone();
        record.check("list-tasks-last.json", &agent.call("ListTasks", next).await);
        let mut short = json!({"contextId": "context-of-again", "pageSize": 1, "includeArtifacts": true});
        record.check("list-tasks-artifacts.json", &agent.call("ListTasks", short.clone()).await);
        short["historyLength"] = json!(0);
        record.check("list-tasks-no-history.json", &agent.call("ListTasks", short).await);
        record.check("list-no-tasks.json", &agent.call("ListTasks", json!({"contextId": "none"})).await);
    }

    record.finish();
    Ok(())
}

#[tokio::test]
async fn python_03_answers_as_recorded() -> Result<()> {
    answers_as_recorded(Sdk::Python03).await
}

#[tokio::test]
async fn python_1_answers_as_recorded() -> Result<()> {
    answers_as_recorded(Sdk::Python1).await
}

#[tokio::test]
async fn go_answers_as_recorded() -> Result<()> {
    answers_as_recorded(Sdk::Go).await
}

/// Clients that go away, and a server that restarts.
async fn goes_on_and_forgets(sdk: Sdk) -> Result<()> {
    let agent = Caller::start(sdk).await;
    let dialect = agent.dialect;

    for method in ["SendMessage", "SendStreamingMessage"] {
        let message = dialect.message(method, method, "[[delay=1]] Pod web-1 crashes.");
        let call = rpc(dialect.method(method), &json!({"message": message})).to_string();
        let request = agent.request(call).timeout(Duration::from_millis(300));
        let gone = match request.send().await {
            Ok(answer) => !read(answer).await.whole,
            Err(error) => error.is_timeout(),
        };
        assert!(gone, "the client of {method} has not gone away");
        let run = eventually("the end of a run that nobody waits for", SOON, async || {
            let runs = agent.server.runs().await?;
            let run = runs.into_iter().find(|run| run["messageId"] == method).unwrap_or_default();
            ensure!(!run["end"].is_null(), "{run}");
            Ok(run)
        })
        .await?;
        assert_eq!(run["end"], "done", "{method}");
        let task = json!({"id": run["taskId"]});
        let answer = agent.get_when(&task, "completed").await?.json();
        assert_eq!(answer["result"]["artifacts"][0]["artifactId"], "answer", "{method}: {answer}");
    }

    let answer = agent.send_at_once("lost", "[[delay=9]] Pod web-1 crashes.").await;
    let task = dialect.task(&answer);
    let url = agent.server.url();
    agent.server.stop();
    agent.get_fails(&task).await;
    agent.server.restart().await?;
    assert_eq!(agent.server.url(), url);
    let answer = agent.get(&task).await;
    assert_eq!((answer.status, answer.code()), (200, -32001));
    let seen = agent.server.seen().await?;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0]["body"]["method"], dialect.method("GetTask"));
    assert_eq!(seen[0]["status"], 200);
    assert!(agent.server.runs().await?.is_empty());
    Ok(())
}

impl Caller {
    async fn get_fails(&self, task: &Value) {
        let call = rpc(self.dialect.method("GetTask"), &json!({"id": task["id"]})).to_string();
        assert!(self.request(call).send().await.is_err());
    }
}

#[tokio::test]
async fn python_03_goes_on_without_a_client_and_forgets_when_it_restarts() -> Result<()> {
    goes_on_and_forgets(Sdk::Python03).await
}

#[tokio::test]
async fn python_1_goes_on_without_a_client_and_forgets_when_it_restarts() -> Result<()> {
    goes_on_and_forgets(Sdk::Python1).await
}

#[tokio::test]
async fn go_goes_on_without_a_client_and_forgets_when_it_restarts() -> Result<()> {
    goes_on_and_forgets(Sdk::Go).await
}

/// Credentials, https, the older dialect beside the newer, and no streaming.
async fn is_served_otherwise(sdk: Sdk) -> Result<()> {
    let scratch = Scratch::new()?;
    let folder = scratch.path().to_owned();
    let certificate = tokio::task::spawn_blocking(move || Certificate::make(&folder)).await??;
    let mut options = Options::default().token(TOKEN).header("X-API-Key", "k-1").tls(&certificate);
    options = options.no_streaming();
    if sdk != Sdk::Python03 {
        options = options.older_too();
    }
    let mut agent = Caller::with(sdk, options).await;
    let url = agent.server.url();
    assert!(url.starts_with("https://"));

    let call = rpc(agent.dialect.method("GetTask"), &json!({"id": "none"})).to_string();
    assert!(agent.request(call).send().await.is_err(), "a client that does not trust the authority");
    let root = reqwest::Certificate::from_pem(&fs::read(&certificate.authority)?)?;
    agent.http = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build()?;

    // Anybody may read the card, which says what is needed.
    let card = read(agent.http.get(format!("{url}/.well-known/agent-card.json")).send().await?).await;
    let mut record = Record::of(sdk);
    assert_eq!(card.status, 200);
    record.check("agent-card-guarded.json", &card);

    let refused = agent.send("nobody", "Pod web-1 crashes.").await;
    assert_eq!(refused.status, 401);
    record.check("unauthenticated.json", &refused);
    agent.headers.insert("authorization", format!("Bearer {TOKEN}"));
    assert_eq!(agent.send("half", "Pod web-1 crashes.").await.status, 401);
    agent.headers.insert("x-api-key", "k-1".to_owned());
    let answer = agent.send("whole", "Pod web-1 crashes.").await;
    assert_eq!(agent.dialect.task(&answer)["status"]["state"], *agent.dialect.state("completed"));
    let seen = agent.server.seen().await?;
    let statuses: Vec<_> = seen.iter().map(|post| post["status"].clone()).collect();
    assert_eq!(statuses, [401, 401, 200]);
    assert_eq!(seen[2]["headers"]["x-api-key"], "k-1");
    assert_eq!(seen[2]["body"]["params"]["message"]["messageId"], "whole");
    assert_eq!(agent.server.runs().await?.len(), 1);

    record.check("stream-unsupported.txt", &agent.stream("stream", "Pod web-1 crashes.").await);

    if sdk != Sdk::Python03 {
        agent.dialect = Old;
        agent.headers.remove("a2a-version");
        let older = card.json()["supportedInterfaces"][1].clone();
        assert_eq!(older["protocolVersion"], "0.3");
        agent.endpoint = older["url"].as_str().unwrap_or_default().to_owned();
        let answer = agent.send("older", "Pod web-1 crashes.").await;
        record.check("older-send-completed.json", &answer);
        record.check("older-get-completed.json", &agent.get(&agent.dialect.task(&answer)).await);
        record.check("older-task-not-found.json", &agent.get(&json!({"id": "none"})).await);
    }
    record.finish();
    Ok(())
}

#[tokio::test]
async fn python_03_is_served_otherwise() -> Result<()> {
    is_served_otherwise(Sdk::Python03).await
}

#[tokio::test]
async fn python_1_is_served_otherwise() -> Result<()> {
    is_served_otherwise(Sdk::Python1).await
}

#[tokio::test]
async fn go_is_served_otherwise() -> Result<()> {
    is_served_otherwise(Sdk::Go).await
}

/// Go's library keeps the tasks of clients without a name, but lists them to nobody.
#[tokio::test]
async fn go_lists_no_tasks_to_the_nameless() -> Result<()> {
    let agent = Caller::with(Sdk::Go, Options::default()).await;
    agent.send("nameless", "Pod web-1 crashes.").await;
    let answer = agent.call("ListTasks", json!({"contextId": "context-of-nameless"})).await;
    assert_eq!((answer.status, answer.code()), (200, -31401));
    let mut record = Record::of(Sdk::Go);
    record.check("list-tasks-nameless.json", &answer);
    record.finish();
    Ok(())
}
