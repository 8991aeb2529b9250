//! Agents beside kagent, on a real control plane: where they may be, what they are shown, and what a Hook says of
//! them.
//!
//! Most share one khook with the rights that a cluster would give it: of Secrets it may read those only that a
//! namespace lets it read by their names.

#![allow(missing_docs)]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use e2e::{
    agent::{Behaviour, Fault, Message},
    assets::Tool,
    control_plane::ControlPlane,
    helm::Helm,
    objects,
    stage::Stage,
    wait::eventually,
    world::{PATIENCE, World},
};
use khook::{
    hook::{ActiveEvent, Condition, HookStatus, Phase, Reason},
    incident::outcome::{EndState, Protocol},
};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::OnceCell, task::JoinHandle};

const UI: &str = "https://kagent.example.com/ui";

async fn shared() -> Result<&'static Stage> {
    static ACCOUNT: OnceCell<PathBuf> = OnceCell::const_new();
    let control_plane = ControlPlane::shared().await?;
    let account = async {
        // Without directAgents.secrets: nothing of Secrets.
        let rights = Helm::new(Tool::Helm3).await?.rights("default", &json!({})).await?;
        objects::apply(&control_plane.client().await?, "default", rights).await.context("khook's rights")?;
        control_plane.service_account_kubeconfig("default", "khook").await
    };
    let account = ACCOUNT.get_or_try_init(|| account).await?;
    Stage::shared_with(control_plane, |setup| {
        setup
            .env("KUBECONFIG", account.display())
            .env("LEADER_ELECTION", "false")
            .env("DIRECT_AGENT_HOSTS", "127.0.0.1")
            .env("KAGENT_UI_URL", format!("{UI}/"))
            .env("LOG_LEVEL", "trace")
            // Incidents stay to be looked at.
            .env("RESOLVE_TIMEOUT", "120s")
            .env("REPEAT_INTERVAL", "120s")
    })
    .await
}

/// A namespace, and a plain agent that nobody else asks.
struct Case {
    stage: &'static Stage,
    world: World,
    /// The agent, as the stand-in knows it.
    agent: String,
    url: String,
}

impl Case {
    async fn of(name: &str, behaviour: Behaviour) -> Result<Self> {
        let stage = shared().await?;
        let world = stage.world(name).await?;
        let (agent, url) = (format!("direct/{}", world.namespace), world.agent.direct_url(&world.namespace));
        let case = Self { stage, world, agent, url };
        case.behaves(behaviour);
        Ok(case)
    }

    fn behaves(&self, behaviour: Behaviour) {
        self.stage.agent.set_for(&self.agent, behaviour);
    }

    /// A Hook that asks the agent, with these fields beside its URL.
    async fn hook(&self, name: &str, mut more: Value) -> Result<()> {
        more["url"] = json!(self.url);
        apply(&self.world, name, &[json!({"agent": more})]).await
    }

    async fn secret(&self, name: &str, data: Value) -> Result<()> {
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
        self.world.control_plane.apply_in(&self.world.namespace, &secret.to_string()).await.map(drop)
    }

    /// Lets khook read this one Secret.
    async fn allow(&self, secret: &str) -> Result<()> {
        let yaml = format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: {secret}}}\nrules:\n\
             - {{apiGroups: [''], resources: [secrets], resourceNames: [{secret}], verbs: [get]}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: {secret}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {secret}}}\n\
             subjects: [{{kind: ServiceAccount, name: khook, namespace: default}}]\n"
        );
        self.world.control_plane.apply_in(&self.world.namespace, &yaml).await.map(drop)
    }

    /// What the agent was sent.
    fn messages(&self) -> Vec<Message> {
        self.stage.agent.messages().into_iter().filter(|message| message.agent == self.agent).collect()
    }

    /// Everything that reached it, its card's readers among it.
    fn requests(&self) -> usize {
        let path = format!("/{}", self.agent);
        self.stage.agent.requests().iter().filter(|request| request.path.starts_with(&path)).count()
    }

    /// That none of these words is in the log, in a status or in an Event, not even as a Secret spells it.
    async fn ensure_hidden(&self, words: &[&str]) -> Result<()> {
        let events: kube::Api<k8s_openapi::api::core::v1::Event> =
            kube::Api::namespaced(self.world.client.clone(), &self.world.namespace);
        let places = [
            ("log", self.stage.operator.log()),
            ("metrics", self.stage.operator.metrics().await?),
            ("status", serde_json::to_string(&self.world.hooks().list(&Default::default()).await?.items)?),
            ("Events", serde_json::to_string(&events.list(&Default::default()).await?.items)?),
        ];
        for (what, text) in places {
            ensure!(
                text.contains(&self.world.namespace) || what == "metrics",
                "the {what} tells nothing at all"
            );
            for word in words {
                for spelled in [(*word).to_owned(), base64(word)] {
                    let line = text.lines().find(|line| line.contains(&spelled));
                    ensure!(line.is_none(), "the {what} tells {word}: {line:?}");
                }
            }
        }
        Ok(())
    }
}

/// Applies a Hook that asks about restarts, with these fields in each of its configurations.
async fn apply(world: &World, name: &str, asked: &[Value]) -> Result<()> {
    let configurations: Vec<Value> = (asked.iter())
        .map(|fields| {
            let mut configuration = json!({"eventType": "pod-restart", "prompt": "Look"});
            for (name, value) in fields.as_object().into_iter().flatten() {
                configuration[name] = value.clone();
            }
            configuration
        })
        .collect();
    let hook = json!({"apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": name},
        "spec": {"eventConfigurations": configurations}});
    world.control_plane.apply_in(&world.namespace, &hook.to_string()).await.map(drop)
}

fn condition<'a>(status: &'a HookStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Waits until the Hook is stalled for this reason, in these words.
async fn wait_stalled(world: &World, hook: &str, reason: &str, words: &[&str]) -> Result<HookStatus> {
    let status = world
        .wait_until(hook, &format!("{hook} is stalled by {reason}"), |status| {
            let stalled = condition(status, "Stalled").filter(|stalled| stalled.reason == reason)?;
            (stalled.status == "True").then(|| status.clone())
        })
        .await?;
    let ready = condition(&status, "Ready").context("no condition Ready")?;
    ensure!((ready.status.as_str(), ready.reason.as_str()) == ("False", reason), "{ready:?}");
    for text in [status.message.as_deref().unwrap_or_default(), &ready.message] {
        ensure!(words.iter().all(|word| text.contains(word)), "{text:?} is without {words:?}");
    }
    Ok(status)
}

/// Waits until the Hook is sound, with nothing left of what it stalled by.
async fn wait_sound(world: &World, hook: &str) -> Result<()> {
    world
        .wait_until(hook, &format!("{hook} is sound"), |status| {
            let ready = condition(status, "Ready").is_some_and(|ready| ready.status == "True");
            (ready && condition(status, "Stalled").is_none()).then_some(())
        })
        .await
}

async fn wait_entry(
    world: &World,
    hook: &str,
    what: &str,
    is: impl Fn(&ActiveEvent) -> bool,
) -> Result<ActiveEvent> {
    world.wait_until(hook, what, |status| status.active_events.iter().find(|entry| is(entry)).cloned()).await
}

/// A port that must not be connected to.
struct Forbidden {
    port: u16,
    visits: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Forbidden {
    async fn open() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let visits = Arc::new(AtomicUsize::new(0));
        let counted = visits.clone();
        let server = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { port, visits, server })
    }

    /// That nobody came; and that somebody would have been noticed.
    async fn ensure_unvisited(self) -> Result<()> {
        tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.context("our own visit")?;
        eventually("our own visit to be seen", PATIENCE, async || {
            ensure!(self.visits.load(Ordering::SeqCst) > 0, "not seen yet");
            Ok(())
        })
        .await?;
        let visits = self.visits.load(Ordering::SeqCst);
        self.server.abort();
        ensure!(visits == 1, "somebody else connected, {} times", visits - 1);
        Ok(())
    }
}

fn base64(text: &str) -> String {
    let secret = k8s_openapi::ByteString(text.as_bytes().to_vec());
    let spelled = serde_json::to_value(secret).unwrap_or_default();
    // Without its last letters: they depend on what comes behind.
    let spelled = spelled.as_str().unwrap_or_default().trim_end_matches('=');
    spelled[..spelled.len() - spelled.len() % 4].to_owned()
}

#[tokio::test]
async fn an_agent_that_the_settings_do_not_allow_is_told_of_and_gets_no_packet() -> Result<()> {
    let world = World::alone("refused").await?;
    let forbidden = Forbidden::open().await?;
    let url = format!("http://127.0.0.1:{}/a2a", forbidden.port);
    let stand_in = world.agent.direct_url("triage");
    let apiserver = world.control_plane.url();
    let metadata = "http://169.254.169.254/latest/meta-data/".to_owned();
    let empty = "DIRECT_AGENT_HOSTS is empty";
    let unlisted = "among the hosts that the operator's settings allow (DIRECT_AGENT_HOSTS)";
    let named = "https://agent.example.com/a2a".to_owned();
    let nobodys = "where no agent may be";
    let cases = [
        ("", vec![(&url, empty), (&stand_in, empty)]),
        ("agents.example.com,127.0.0.1:1", vec![(&url, unlisted), (&stand_in, unlisted), (&named, unlisted)]),
        ("*,127.0.0.1,169.254.0.0/16", vec![(&apiserver, nobodys), (&metadata, nobodys)]),
    ];
    for (hosts, urls) in cases {
        let operator = world
            .start(world.setup()?.env("LEADER_ELECTION", "false").env("DIRECT_AGENT_HOSTS", hosts))
            .await?;
        for (index, (url, why)) in urls.into_iter().enumerate() {
            let hook = format!("refused-{index}");
            // The second is heard of the same trouble: so the first has been as well.
            let kagents = json!({"agentId": format!("kagent/{}", uuid::Uuid::new_v4())});
            apply(&world, &hook, &[json!({"agent": {"url": url}}), kagents]).await?;
            let place = "spec.eventConfigurations[0].agent.url";
            wait_stalled(&world, &hook, "AgentUrlNotAllowed", &[place, why]).await?;
            world.crash("web-0").await?;
            world.wait_answered(&hook, "web-0").await?;
            let status = world.status(&hook).await?;
            let asked: Vec<&str> = status.active_events.iter().map(|entry| entry.agent.as_str()).collect();
            ensure!(asked.iter().all(|agent| agent.starts_with("kagent/")), "{asked:?}");
            let shown =
                world.control_plane.table("kagent.dev/v1alpha2/hooks", Some(&world.namespace), true).await?;
            ensure!(shown.contains(place) && shown.contains(why), "{shown}");
            world.hooks().delete(&hook, &DeleteParams::default()).await?;
        }
        operator.kill()?;
    }
    let reached: Vec<_> =
        world.agent.requests().into_iter().filter(|request| request.path.starts_with("/direct/")).collect();
    ensure!(reached.is_empty(), "{reached:?}");
    forbidden.ensure_unvisited().await
}

#[tokio::test]
async fn a_card_leads_nowhere_that_the_settings_do_not_allow() -> Result<()> {
    let forbidden = Forbidden::open().await?;
    let elsewhere = format!("http://localhost:{}/a2a", forbidden.port);
    let case = Case::of("card", Behaviour::default().card_names(&elsewhere)).await?;
    case.hook("shop", json!({})).await?;
    case.world.crash("web-0").await?;
    let entry = wait_entry(&case.world, "shop", "it waits", |entry| entry.last_error.is_some()).await?;
    let error = entry.last_error.clone().unwrap_or_default();
    let words = [format!("the card of {}: its url {elsewhere}", case.url), "not among the hosts".to_owned()];
    ensure!(words.iter().all(|word| error.contains(word.as_str())), "{error}");
    ensure!(entry.status == Phase::Pending && entry.last_notified_at.is_none(), "{entry:?}");
    ensure!(case.messages().is_empty(), "it was called all the same");
    case.behaves(Behaviour::default());
    case.world.wait_answered("shop", "web-0").await?;
    forbidden.ensure_unvisited().await
}

#[tokio::test]
async fn no_redirect_is_followed_neither_of_a_card_nor_of_a_message() -> Result<()> {
    let forbidden = Forbidden::open().await?;
    // To where it may go, so that only the redirect is in the way.
    let elsewhere = format!("http://127.0.0.1:{}/", forbidden.port);
    let redirect = |status| Fault::status(status).header("Location", &elsewhere);
    let case = Case::of("redirect", Behaviour::default().on_card(redirect(302))).await?;
    case.hook("shop", json!({})).await?;
    case.world.crash("web-0").await?;
    for what in ["GET ", "POST "] {
        let told = |entry: &ActiveEvent| {
            let error = entry.last_error.clone().unwrap_or_default();
            error.starts_with(what) && error.contains("redirects to 127.0.0.1")
        };
        let entry = wait_entry(&case.world, "shop", &format!("{what}is redirected"), told).await?;
        ensure!(entry.last_error.is_some_and(|error| error.contains("follows no redirect")));
        case.behaves(Behaviour::default().on_send(redirect(307)));
    }
    case.behaves(Behaviour::default());
    case.world.wait_answered("shop", "web-0").await?;
    ensure!(case.messages().iter().filter(|message| message.ran).count() == 1, "{:?}", case.messages());
    forbidden.ensure_unvisited().await
}

#[tokio::test]
async fn a_token_from_a_secret_goes_along_and_the_next_call_has_the_new_one() -> Result<()> {
    const WORDS: [&str; 3] = ["first-0f-triage", "second-0f-triage", "k3y-0f-triage"];
    let gives_away = Behaviour::default().speaks(&[Protocol::V10]).lists_tasks().answers(|message| {
        format!("I was shown {:?} {:?}", message.authorization, message.headers.get("x-api-key"))
    });
    let case = Case::of("token", gives_away).await?;
    let world = &case.world;
    case.secret("triage", json!({"token": WORDS[0], "key": WORDS[2], "other": "not asked for"})).await?;
    case.allow("triage").await?;
    case.hook("shop", json!({"auth": {"secretRef": {"name": "triage"}}})).await?;
    world.crash("web-0").await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    ensure!(entry.answer.as_deref().is_some_and(|answer| answer.contains("Bearer [redacted]")), "{entry:?}");
    ensure!(entry.protocol == Some(Protocol::V10) && entry.session_url.is_none(), "{entry:?}");
    ensure!(entry.agent == case.url, "{entry:?}");

    case.secret("triage", json!({"token": WORDS[1], "key": WORDS[2]})).await?;
    world.crash("web-1").await?;
    world.wait_answered("shop", "web-1").await?;
    let bearers: Vec<_> = case.messages().into_iter().map(|message| message.authorization).collect();
    ensure!(bearers == [WORDS[0], WORDS[1]].map(|token| Some(format!("Bearer {token}"))), "{bearers:?}");
    world.hooks().delete("shop", &DeleteParams::default()).await?;

    let header = json!({"header": "X-API-Key", "secretRef": {"name": "triage", "key": "key"}});
    case.hook("by-header", json!({"auth": header})).await?;
    world.crash("web-2").await?;
    world.wait_answered("by-header", "web-2").await?;
    let last = case.messages().pop().context("no message")?;
    ensure!(last.headers.get("x-api-key").is_some_and(|key| key == WORDS[2]), "{last:?}");
    ensure!(last.authorization.is_none(), "{last:?}");
    ensure!(case.messages().iter().all(|message| message.protocol == Protocol::V10), "its card says 1.0");
    case.ensure_hidden(&WORDS).await
}

/// An agent whose credential is not to be had, until it is mended.
async fn not_ready(
    name: &str,
    reason: &str,
    words: &[&str],
    before: impl AsyncFn(&Case) -> Result<()>,
    mend: impl AsyncFn(&Case) -> Result<()>,
) -> Result<()> {
    let case = Case::of(name, Behaviour::default()).await?;
    before(&case).await?;
    let auth = json!({"auth": {"secretRef": {"name": "triage", "key": "right"}}});
    case.hook("shop", auth).await?;
    let secret = format!("the Secret {}/triage", case.world.namespace);
    let status = wait_stalled(&case.world, "shop", reason, words).await?;
    let message = status.message.clone().unwrap_or_default();
    let named = message.contains(&secret) || message.contains(&secret.replace("the ", "no "));
    ensure!(named && message.contains(&case.url), "{message}");

    case.world.crash("web-0").await?;
    let waits = |entry: &ActiveEvent| entry.reason == Some(Reason::AgentNotReady);
    let entry = wait_entry(&case.world, "shop", "it waits for the agent", waits).await?;
    ensure!(entry.status == Phase::Pending && entry.attempts == 0, "{entry:?}");
    ensure!(case.requests() == 0, "it was asked all the same");

    mend(&case).await?;
    let entry = case.world.wait_answered("shop", "web-0").await?;
    ensure!(entry.status == Phase::Notified && entry.attempts == 1, "{entry:?}");
    wait_sound(&case.world, "shop").await?;
    let messages = case.messages();
    ensure!(messages.len() == 1, "{messages:?}");
    ensure!(messages[0].authorization.as_deref() == Some("Bearer r1ght-0f-triage"), "{messages:?}");
    case.ensure_hidden(&["r1ght-0f-triage", "wr0ng-0f-triage"]).await
}

const RIGHT: &str = "r1ght-0f-triage";

#[tokio::test]
async fn an_incident_waits_for_a_secret_that_is_not_there_and_goes_when_it_is() -> Result<()> {
    not_ready(
        "missing",
        "SecretNotFound",
        &["there is no Secret", "create it"],
        async |case| case.allow("triage").await,
        async |case| case.secret("triage", json!({"right": RIGHT})).await,
    )
    .await
}

#[tokio::test]
async fn an_incident_waits_for_a_key_that_is_not_in_the_secret_and_goes_when_it_is() -> Result<()> {
    not_ready(
        "wrong-key",
        "SecretKeyNotFound",
        &["has no key \"right\""],
        async |case| {
            case.allow("triage").await?;
            case.secret("triage", json!({"wrong": "wr0ng-0f-triage"})).await
        },
        async |case| case.secret("triage", json!({"right": RIGHT})).await,
    )
    .await
}

#[tokio::test]
async fn an_incident_waits_for_the_right_to_read_the_secret_and_goes_when_it_is_given() -> Result<()> {
    not_ready(
        "forbidden",
        "SecretForbidden",
        &["khook may not read", "allow it by a Role", "resourceNames: [triage]"],
        async |case| {
            // The right to another one is none to this.
            case.allow("other").await?;
            case.secret("triage", json!({"right": RIGHT})).await
        },
        async |case| case.allow("triage").await,
    )
    .await
}

#[tokio::test]
async fn the_status_links_to_the_session_and_tells_dialect_and_tokens() -> Result<()> {
    let stage = shared().await?;
    let world = stage.world("told").await?;
    let agent = format!("kagent/{}", world.namespace);
    world.hook_asking("shop", &agent, &["pod-restart"], "").await?;
    world.crash("web-0").await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    let session = entry.session_id.clone().context("no session")?;
    let url = format!("{UI}/agents/{agent}/chat/{session}");
    ensure!(entry.session_url.as_ref() == Some(&url), "{:?} is not {url}", entry.session_url);
    ensure!(entry.protocol == Some(Protocol::V03), "{entry:?}");
    let tokens = entry.tokens.context("no tokens")?;
    ensure!(tokens.prompt > 0 && tokens.answer > 0, "{tokens:?}");
    ensure!(tokens.total == tokens.prompt + tokens.answer, "{tokens:?}");
    for (kind, count) in [("prompt", tokens.prompt), ("answer", tokens.answer)] {
        let labels = [("agent", agent.as_str()), ("kind", kind)];
        let counted = stage.operator.metric("khook_agent_tokens_total", &labels).await?;
        ensure!(counted == count as f64, "{kind}: {counted} are counted, {count} told");
    }
    Ok(())
}

#[tokio::test]
async fn where_answers_are_not_shown_no_word_of_them_is_anywhere() -> Result<()> {
    const WORDS: &str = "the database password is s3cr3t-0f-db";
    let world = World::alone("hidden").await?;
    world.agent.set(Behaviour::default().answers(|_| WORDS.to_owned()));
    let setup = world.setup()?.env("SHOW_ANSWERS", "false").env("LOG_LEVEL", "info");
    let operator = world.start(setup).await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    let entry = world.wait_answered("shop", "web-0").await?;
    ensure!(entry.outcome == Some(EndState::Completed) && entry.answer.is_none(), "{entry:?}");
    let notices = eventually("the Event of the answer", PATIENCE, async || {
        let notices = world.notices("shop").await?;
        ensure!(notices.contains_key("AgentAnswered"), "{notices:?}");
        Ok(format!("{notices:?}"))
    })
    .await?;
    let status = serde_json::to_string(&world.hooks().get("shop").await?)?;
    let log = operator.log();
    ensure!(log.contains("answered"), "the log tells that there is an answer: {log}");
    for (what, text) in [("status", status), ("Events", notices), ("log", log)] {
        ensure!(
            !text.contains("s3cr3t") && !text.contains("password"),
            "the {what} tells the answer: {text}"
        );
    }
    Ok(())
}
