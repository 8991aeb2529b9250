//! khook against agents that nobody here wrote: the official Python A2A SDK, 0.3 and 1.x, and the Go library.
//! First its client alone, case by case; then the whole operator on a real control plane.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    process::Scratch,
    sdk::{Certificate, Options, Sdk, SdkServer},
    wait::eventually,
    world::{PATIENCE, World},
};
use futures::future::BoxFuture;
use khook::{
    agent::{
        AgentCall, Agents, Follow, Inquiry, Kagent, KagentConfig,
        direct::{Data, Direct, DirectConfig, SecretError, Secrets},
    },
    hook::Phase,
    incident::outcome::{
        Credential, DirectAgent, EndState, Ended, Lookup, Protocol, Reply, SecretKey, Usage,
    },
};
use serde_json::Value;
use tokio::sync::OnceCell;
use uuid::Uuid;

const FIRST: &str = "Investigated: Pod web-1 crashes.";

/// One Secret, `agent`, with these keys.
struct OneSecret(BTreeMap<String, Vec<u8>>);

impl Secrets for OneSecret {
    fn read<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Data>, SecretError>> {
        let data = (name == "agent").then(|| self.0.clone());
        Box::pin(std::future::ready(Ok(data)))
    }
}

/// khook's client, and an agent for it.
struct Asker {
    agents: Agents,
    agent: Arc<DirectAgent>,
}

/// One conversation with the agent.
struct Talk<'a> {
    asker: &'a Asker,
    session: String,
    protocol: Option<Protocol>,
}

impl Asker {
    fn of(server: &SdkServer) -> Result<Self> {
        Self::with(server, BTreeMap::new(), None, false)
    }

    fn with(
        server: &SdkServer,
        secret: BTreeMap<String, Vec<u8>>,
        header: Option<&str>,
        private: bool,
    ) -> Result<Self> {
        let key = |key: &str| SecretKey { name: "agent".into(), key: key.into() };
        let agent = DirectAgent {
            namespace: "shop".into(),
            url: server.url().parse()?,
            auth: secret
                .contains_key("token")
                .then(|| Credential { secret: key("token"), header: header.map(str::to_owned) }),
            ca: private.then(|| key("ca.crt")),
            protocol: None,
        };
        let config = DirectConfig {
            hosts: "127.0.0.1".parse().map_err(anyhow::Error::msg)?,
            api_timeout: PATIENCE,
            connect_timeout: PATIENCE,
            lookup_timeout: PATIENCE,
            max_body: 1 << 20,
            quote: true,
        };
        // Nobody is there: these agents are not kagent's.
        let kagent = Kagent::new(KagentConfig::new("http://127.0.0.1:9"))?;
        let agents = Agents::new(kagent, None, Direct::new(config, OneSecret(secret)));
        Ok(Self { agents, agent: Arc::new(agent) })
    }

    fn talk(&self) -> Talk<'_> {
        Talk { asker: self, session: Uuid::new_v4().to_string(), protocol: None }
    }
}

impl Talk<'_> {
    async fn say(&mut self, message_id: &str, text: &str) -> Reply {
        let call = AgentCall {
            agent: self.asker.agent.name(),
            direct: Some(self.asker.agent.clone()),
            session_id: self.session.clone(),
            session_name: "pod-restart on shop/web-1".into(),
            message_id: message_id.into(),
            text: text.into(),
            metadata: serde_json::json!({"eventType": "pod-restart"}),
            traceparent: None,
        };
        let reply = self.asker.agents.call(&call, || true).await;
        if let Reply::Accepted { protocol, .. } = &reply {
            self.protocol = *protocol;
        }
        reply
    }

    async fn follow(&self, task_id: &str) -> Follow {
        let name = self.asker.agent.name();
        self.asker.agents.follow(&self.about(&name), task_id).await
    }

    async fn listen(&self, task_id: &str) -> Option<Ended> {
        let name = self.asker.agent.name();
        self.asker.agents.listen(&self.about(&name), task_id, PATIENCE).await
    }

    async fn lookup(&self, message_id: &str) -> Lookup {
        let name = self.asker.agent.name();
        self.asker.agents.lookup(&self.about(&name), message_id).await
    }

    fn about<'a>(&'a self, agent: &'a khook::incident::outcome::AgentName) -> Inquiry<'a> {
        let direct = Some(self.asker.agent.as_ref());
        Inquiry { agent, direct, session_id: &self.session, protocol: self.protocol }
    }

    /// Says it and follows it to the end.
    async fn end_of(&mut self, text: &str) -> Result<Ended> {
        match self.say("m", text).await {
            Reply::Accepted { ended: Some(ended), .. } => Ok(ended),
            Reply::Accepted { task_id: Some(task_id), .. } => self.end(&task_id).await,
            other => bail!("{text}: {other:?}"),
        }
    }

    async fn end(&self, task_id: &str) -> Result<Ended> {
        eventually("the task to end", PATIENCE, async || match self.follow(task_id).await {
            Follow::Ended(ended) => Ok(ended),
            other => bail!("{other:?}"),
        })
        .await
    }
}

fn dialect(sdk: Sdk) -> Protocol {
    match sdk {
        Sdk::Python03 => Protocol::V03,
        Sdk::Python1 | Sdk::Go => Protocol::V10,
    }
}

/// The agents that the tests of this binary share: as they come, streaming on.
async fn server(sdk: Sdk) -> Result<&'static SdkServer> {
    static SERVERS: [OnceCell<SdkServer>; 3] = [const { OnceCell::const_new() }; 3];
    let place = Sdk::ALL.iter().position(|one| *one == sdk).context("an SDK")?;
    SERVERS[place].get_or_try_init(|| SdkServer::start(sdk, Options::default())).await
}

async fn every_end(sdk: Sdk) -> Result<()> {
    let asker = Asker::of(server(sdk).await?)?;
    let usage = Some(Usage { prompt: 1200, answer: 34, total: 1234 });
    let cases = [
        ("", EndState::Completed, FIRST, None),
        ("[[delay=0.3]]", EndState::Completed, FIRST, None),
        ("[[message]]", EndState::Completed, FIRST, None),
        ("[[status]]", EndState::Completed, FIRST, None),
        ("[[chunks]]", EndState::Completed, FIRST, None),
        ("[[usage]]", EndState::Completed, FIRST, usage),
        ("[[usage=artifact]]", EndState::Completed, FIRST, usage),
        ("[[message]] [[usage=message]]", EndState::Completed, FIRST, usage),
        ("[[failed]]", EndState::Failed, "The cluster could not be reached.", None),
        ("[[ask]]", EndState::InputRequired, "Which namespace do you mean?", None),
        ("[[auth]]", EndState::AuthRequired, "Sign in to the cluster first.", None),
        ("[[reject]]", EndState::Rejected, "This is no question about a cluster.", None),
        ("[[cancel]]", EndState::Canceled, "Stopped by its owner.", None),
    ];
    for (marks, state, answer, usage) in cases {
        let mut talk = asker.talk();
        let ended = talk.end_of(&format!("{marks} Pod web-1 crashes.\nIts log is empty.")).await?;
        ensure!(ended == Ended { state, answer: answer.into(), usage }, "{marks}: {ended:?}");
        ensure!(talk.protocol == Some(dialect(sdk)), "{marks}: {:?}", talk.protocol);
    }
    Ok(())
}

#[tokio::test]
async fn every_end_of_an_agent_on_python_0_3_is_told() -> Result<()> {
    every_end(Sdk::Python03).await
}

#[tokio::test]
async fn every_end_of_an_agent_on_python_1_is_told() -> Result<()> {
    every_end(Sdk::Python1).await
}

#[tokio::test]
async fn every_end_of_an_agent_on_go_is_told() -> Result<()> {
    every_end(Sdk::Go).await
}

#[tokio::test]
async fn an_agent_that_breaks_down_at_work_fails_or_never_ends() -> Result<()> {
    for sdk in Sdk::ALL {
        let asker = Asker::of(server(sdk).await?)?;
        let mut talk = asker.talk();
        let reply = talk.say("m", "[[delay=0.2]] [[fail]] Pod web-1 crashes.").await;
        let Reply::Accepted { task_id: Some(task_id), ended: None, .. } = reply else {
            bail!("{sdk:?}: {reply:?}")
        };
        let runs = || async { server(sdk).await?.runs().await };
        let raised = |runs: &[Value]| {
            runs.iter().any(|run| run["contextId"] == talk.session.as_str() && run["end"] == "raised")
        };
        eventually("the agent to break down", PATIENCE, async || {
            ensure!(raised(&runs().await?), "it runs");
            Ok(())
        })
        .await?;
        match sdk {
            // It says so to nobody: this is what a deadline is for.
            Sdk::Python03 => ensure!(talk.follow(&task_id).await == Follow::Running),
            Sdk::Python1 | Sdk::Go => {
                let ended = talk.end(&task_id).await?;
                ensure!(ended.state == EndState::Failed, "{sdk:?}: {ended:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_break_down_before_there_is_a_task_is_of_unknown_outcome() -> Result<()> {
    for sdk in Sdk::ALL {
        let asker = Asker::of(server(sdk).await?)?;
        let mut talk = asker.talk();
        let reply = talk.say("m", "[[early]] Pod web-1 crashes.").await;
        ensure!(matches!(reply, Reply::Unknown { .. }), "{sdk:?}: {reply:?}");
        let lookup = talk.lookup("m").await;
        match sdk {
            // It has noted a task that failed, all the same.
            Sdk::Python1 => {
                let failed = |ended: &Ended| ended.state == EndState::Failed;
                ensure!(
                    matches!(&lookup, Lookup::Found { ended: Some(ended), .. } if failed(ended)),
                    "{lookup:?}"
                );
            }
            // Go lists nothing for whom it has no name, 0.3 nothing for anybody.
            Sdk::Python03 | Sdk::Go => ensure!(matches!(lookup, Lookup::Unsupported { .. }), "{lookup:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_end_is_heard_in_a_stream_where_the_card_says_so() -> Result<()> {
    for sdk in Sdk::ALL {
        let silent = SdkServer::start(sdk, Options::default().no_streaming()).await?;
        for (server, streams) in [(server(sdk).await?, sdk != Sdk::Python03), (&silent, false)] {
            let asker = Asker::of(server)?;
            let mut talk = asker.talk();
            let reply = talk.say("m", "[[delay=1]] [[chunks]] Pod web-1 crashes.").await;
            let Reply::Accepted { task_id: Some(task_id), .. } = reply else { bail!("{sdk:?}: {reply:?}") };
            let heard = talk.listen(&task_id).await;
            let want = Ended { state: EndState::Completed, answer: FIRST.into(), usage: None };
            ensure!(heard == streams.then(|| want.clone()), "{sdk:?}, streams: {streams}: {heard:?}");
            let ended = talk.end(&task_id).await?;
            ensure!(ended == want, "{sdk:?}, streams: {streams}: {ended:?}");
            // What is over, or was never there, tells nothing.
            ensure!(talk.listen("no-such-task").await.is_none());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_task_of_an_agent_that_was_restarted_is_lost_and_its_message_absent() -> Result<()> {
    for sdk in Sdk::ALL {
        let server = SdkServer::start(sdk, Options::default().token("t0ken-of-an-agent")).await?;
        let secret = BTreeMap::from([("token".to_owned(), b"t0ken-of-an-agent".to_vec())]);
        let asker = Asker::with(&server, secret, None, false)?;
        let mut talk = asker.talk();
        let reply = talk.say("m", "[[delay=60]] Pod web-1 crashes.").await;
        let Reply::Accepted { task_id: Some(task_id), .. } = reply else { bail!("{sdk:?}: {reply:?}") };
        let found = Lookup::Found { task_id: task_id.clone(), ended: None };
        match sdk {
            Sdk::Python03 => {
                let lookup = talk.lookup("m").await;
                ensure!(matches!(lookup, Lookup::Unsupported { .. }), "{lookup:?}");
            }
            Sdk::Python1 | Sdk::Go => {
                ensure!(talk.lookup("m").await == found, "{sdk:?}");
                ensure!(talk.lookup("n").await == Lookup::Absent, "{sdk:?}");
            }
        }
        server.stop();
        ensure!(matches!(talk.follow(&task_id).await, Follow::Unavailable { .. }));
        ensure!(matches!(talk.say("n", "Down?").await, Reply::NotRun { .. }));
        server.restart().await?;
        ensure!(talk.follow(&task_id).await == Follow::Ended(Ended::silent(EndState::Lost)), "{sdk:?}");
        if sdk != Sdk::Python03 {
            ensure!(talk.lookup("m").await == Lookup::Absent, "{sdk:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn credentials_and_a_private_authority_open_the_door() -> Result<()> {
    let scratch = Scratch::new()?;
    let folder = scratch.path().to_owned();
    let certificate = tokio::task::spawn_blocking(move || Certificate::make(&folder)).await??;
    let authority = std::fs::read(&certificate.authority)?;
    for sdk in Sdk::ALL {
        let options = Options::default().header("X-API-Key", "k3y-of-an-agent").tls(&certificate);
        let server = SdkServer::start(sdk, options).await?;
        let secret = |key: &str| {
            BTreeMap::from([
                ("token".to_owned(), key.as_bytes().to_vec()),
                ("ca.crt".to_owned(), authority.clone()),
            ])
        };
        let asker = Asker::with(&server, secret("k3y-of-an-agent"), Some("X-API-Key"), true)?;
        let ended = asker.talk().end_of("Pod web-1 crashes.").await?;
        ensure!(ended.answer == FIRST, "{sdk:?}: {ended:?}");
        let (runs, seen) = (server.runs().await?.len(), server.seen().await?.len());

        let wrong = Asker::with(&server, secret("k3y-of-another"), Some("X-API-Key"), true)?;
        let reply = wrong.talk().say("m", "Pod web-1 crashes.").await;
        ensure!(matches!(&reply, Reply::NotRun { error, .. } if error.contains("401")), "{sdk:?}: {reply:?}");
        ensure!(server.seen().await?.len() > seen && server.runs().await?.len() == runs);

        let strange = Asker::with(&server, secret("k3y-of-an-agent"), Some("X-API-Key"), false)?;
        let reply = strange.talk().say("m", "Pod web-1 crashes.").await;
        ensure!(matches!(&reply, Reply::NotRun { .. }), "an authority nobody knows: {reply:?}");
        ensure!(server.runs().await?.len() == runs);
    }
    Ok(())
}

#[tokio::test]
async fn what_an_agent_sees_is_the_conversation_and_the_message_and_nothing_of_kagent() -> Result<()> {
    for sdk in Sdk::ALL {
        let server = server(sdk).await?;
        let asker = Asker::of(server)?;
        let mut talk = asker.talk();
        let message = Uuid::new_v4().to_string();
        talk.say(&message, "Pod web-1 crashes.").await;
        let ours = |post: &&Value| post["body"]["params"]["message"]["messageId"] == message.as_str();
        let seen = server.seen().await?;
        let post = seen.iter().find(ours).context("our message")?;
        ensure!(post["body"]["params"]["message"]["contextId"] == talk.session.as_str());
        ensure!(post["headers"].get("x-user-id").is_none() && post["headers"].get("authorization").is_none());
        let version = post["headers"].get("a2a-version").and_then(Value::as_str);
        ensure!(version == (dialect(sdk) == Protocol::V10).then_some("1.0"), "{sdk:?}: {version:?}");
    }
    Ok(())
}

/// A library of 1.x that answers 0.3 too is asked in 1.0.
#[tokio::test]
async fn the_newer_dialect_of_two_is_taken() -> Result<()> {
    for sdk in [Sdk::Python1, Sdk::Go] {
        let server = SdkServer::start(sdk, Options::default().older_too()).await?;
        let asker = Asker::of(&server)?;
        let mut talk = asker.talk();
        ensure!(talk.end_of("Pod web-1 crashes.").await?.answer == FIRST);
        ensure!(talk.protocol == Some(Protocol::V10), "{sdk:?}");
    }
    Ok(())
}

/// The whole operator: a Hook for each SDK in one namespace, one pod in trouble.
#[tokio::test]
async fn an_incident_is_taken_to_each_of_them_and_its_answer_is_in_the_status() -> Result<()> {
    let world = World::alone("sdks").await?;
    for sdk in Sdk::ALL {
        let mut yaml =
            format!("apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {{name: {}}}\n", name(sdk));
        yaml.push_str("spec:\n  eventConfigurations:\n  - eventType: pod-restart\n");
        yaml.push_str("    prompt: '[[delay=0.5]] [[usage]] Pod {{.ResourceName}} crashes.'\n");
        yaml.push_str(&format!("    agent: {{url: '{}'}}\n", server(sdk).await?.url()));
        world.control_plane.apply_in(&world.namespace, &yaml).await?;
    }
    let setup = world.setup()?.env("DIRECT_AGENT_HOSTS", "127.0.0.1");
    let operator = world.start(setup).await?;
    world.crash("web-1").await?;
    for sdk in Sdk::ALL {
        let hook = name(sdk);
        let entry = world.wait_answered(&hook, "web-1").await?;
        ensure!(entry.status == Phase::Notified || entry.status == Phase::Resolved);
        ensure!(entry.outcome == Some(EndState::Completed), "{entry:?}");
        ensure!(entry.answer.as_deref() == Some(FIRST), "{entry:?}");
        ensure!(entry.protocol == Some(dialect(sdk)), "{entry:?}");
        ensure!(entry.tokens == Some(Usage { prompt: 1200, answer: 34, total: 1234 }), "{entry:?}");
        let server = server(sdk).await?;
        ensure!(entry.agent == format!("{}/", server.url()), "{entry:?}");
        let runs = server.runs().await?;
        let ours: Vec<_> =
            runs.iter().filter(|run| run["contextId"].as_str() == entry.session_id.as_deref()).collect();
        ensure!(ours.len() == 1, "{} runs", ours.len());
        let status = world.status(&hook).await?;
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").context("Ready")?;
        ensure!(ready.status == "True", "{ready:?}");
        let label = format!("{}/{}", world.namespace, entry.agent);
        let tokens =
            operator.metric("khook_agent_tokens_total", &[("agent", &label), ("kind", "prompt")]).await?;
        ensure!(tokens == 1200.0, "{tokens}");
    }
    ensure!(world.agent.requests().is_empty(), "kagent was not asked");
    Ok(())
}

/// An agent that forgets its tasks in the middle: the incident says so, and nobody is asked twice.
#[tokio::test]
async fn an_agent_that_is_restarted_in_the_middle_loses_the_task_and_is_not_asked_again() -> Result<()> {
    let world = World::alone("sdk-restart").await?;
    let server = SdkServer::start(Sdk::Python1, Options::default()).await?;
    let yaml = format!(
        "apiVersion: kagent.dev/v1alpha2\nkind: Hook\nmetadata: {{name: shop}}\nspec:\n  eventConfigurations:\n  \
         - eventType: pod-restart\n    prompt: '[[delay=60]] Look'\n    agent: {{url: '{}'}}\n",
        server.url()
    );
    world.control_plane.apply_in(&world.namespace, &yaml).await?;
    let _operator = world.start(world.setup()?.env("DIRECT_AGENT_HOSTS", "127.0.0.1")).await?;
    world.crash("web-1").await?;
    world.wait_for("shop", "web-1", Phase::Notified).await?;
    server.restart().await?;
    let entry = world.wait_answered("shop", "web-1").await?;
    ensure!(entry.outcome == Some(EndState::Lost), "{entry:?}");
    ensure!(server.runs().await?.is_empty(), "asked again");
    Ok(())
}

fn name(sdk: Sdk) -> String {
    sdk.name().replace('.', "-")
}
