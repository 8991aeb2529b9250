//! The CRD as the apiserver takes it: what it is called, what it refuses and in which words, and that
//! it changes nothing people wrote.

#![allow(missing_docs, clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use e2e::{
    control_plane::ControlPlane,
    stage::Stage,
    world::{World, crd_yaml},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use khook::{
    check::{Checker, Fault},
    hook::{Hook, Phase},
    incident::policy::Policy,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, Request},
    client::Body,
};
use serde_json::{Value, json};

/// Applies as `kubectl apply --server-side` does and answers the warnings it would print.
async fn warnings(world: &World, collection: &str, object: &Value) -> Result<Vec<String>> {
    let name = object["metadata"]["name"].as_str().context("a name")?;
    let params = PatchParams::apply("e2e").force();
    let request = Request::new(collection).patch(name, &params, &Patch::Apply(object))?;
    let answer = world.client.send(request.map(Body::from)).await?;
    ensure!(answer.status().is_success(), "{} for {name}", answer.status());
    let warnings = answer.headers().get_all("warning").iter();
    Ok(warnings.map(|warning| String::from_utf8_lossy(warning.as_bytes()).into_owned()).collect())
}

/// Applies a Hook with these configurations; what the server says where it refuses.
async fn apply(world: &World, name: &str, configurations: &[Value]) -> Result<(), String> {
    let hook = hook(name, configurations);
    let yaml = serde_json::to_string(&hook).map_err(|error| error.to_string())?;
    let verdict = match world.control_plane.apply_in(&world.namespace, &yaml).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.root_cause().to_string()),
    };
    // Whatever the apiserver is asked here, `khook validate` says the same.
    let told = refusals(&yaml);
    if verdict.is_ok() != told.is_empty() {
        return Err(format!("the apiserver says {verdict:?}, validate says {told:?}"));
    }
    verdict
}

/// What `khook validate` says the apiserver would refuse: what only khook minds is not among it.
fn refusals(yaml: &str) -> Vec<Fault> {
    let own = ["Prompt", "Agent", "DuplicateConfiguration", "DurationInvalid", "StatusIgnored"];
    let policy = Policy { direct_agents: "*".parse().unwrap(), ..Policy::default() };
    let mut faults = Checker::new(policy, None).check("x", yaml.as_bytes()).faults;
    faults.retain(|fault| !own.iter().any(|own| fault.reason.starts_with(own)));
    faults
}

/// Whether one of these is a field, or has it inside.
fn names(paths: &[&str], field: &str) -> bool {
    paths
        .iter()
        .any(|path| field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Creates as `kubectl apply` does at first, without leaving anything; the fields that the server names where
/// it refuses.
async fn create(world: &World, yaml: &str) -> Result<Option<(Vec<String>, String)>> {
    let path = format!(
        "/apis/kagent.dev/v1alpha2/namespaces/{}/hooks?dryRun=All&fieldValidation=Strict",
        world.namespace
    );
    let request = http::Request::post(path).header("content-type", "application/yaml");
    let answer = world.client.send(request.body(Body::from(yaml.as_bytes().to_vec()))?).await?;
    if answer.status().is_success() {
        return Ok(None);
    }
    let body = answer.into_body().collect_bytes().await?;
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = status["message"].as_str().unwrap_or_default().to_owned();
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    let mut fields: Vec<String> =
        causes.iter().filter_map(|cause| Some(cause["field"].as_str()?.to_owned())).collect();
    // That rules were not looked at is no field's fault.
    fields.retain(|field| field != "<nil>");
    // What is unknown or stands twice is told in words alone.
    for (start, _) in message.match_indices("field \"") {
        fields.extend(message[start + 7..].split('"').next().map(str::to_owned));
    }
    Ok(Some((fields, message)))
}

fn hook(name: &str, configurations: &[Value]) -> Value {
    json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": name},
        "spec": {"eventConfigurations": configurations},
    })
}

/// A good configuration with some fields changed; null takes a field away.
fn configuration(changes: Value) -> Value {
    let mut configuration = json!({"eventType": "pod-restart", "agentId": "k8s-agent", "prompt": "Look."});
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(configuration.as_object_mut().unwrap().remove(field)),
            value => configuration[field] = value.clone(),
        }
    }
    configuration
}

#[tokio::test]
async fn the_crd_and_every_field_of_a_hook_are_taken_without_a_warning() -> Result<()> {
    let world = World::new("warnings").await?;
    let crd: Value = serde_yaml::from_str(&crd_yaml()?)?;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(warnings(&world, crds, &crd).await?, Vec::<String>::new());

    let everything = hook(
        "everything",
        &[
            configuration(json!({"for": "0s", "repeatInterval": "1h30m", "resolveTimeout": "24h"})),
            configuration(json!({"agentId": null, "agentRef": {"name": "b", "namespace": "kagent"}})),
            configuration(json!({"agentId": null, "agent": {
                "url": "https://agent.example.com/a2a", "protocol": "1.0",
                "auth": {"secretRef": {"name": "triage", "key": "key"}, "header": "X-API-Key"},
                "ca": {"secretRef": {"name": "triage", "key": "ca.crt"}},
            }})),
        ],
    );
    let hooks = format!("/apis/kagent.dev/v1alpha2/namespaces/{}/hooks", world.namespace);
    assert_eq!(warnings(&world, &hooks, &everything).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_hook_is_called_as_the_documentation_says() -> Result<()> {
    let world = World::new("names").await?;
    let crds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let crd = crds.get("hooks.kagent.dev").await?;
    let names = &crd.spec.names;
    assert_eq!((names.kind.as_str(), names.plural.as_str()), ("Hook", "hooks"));
    assert_eq!(names.singular.as_deref(), Some("hook"));
    assert_eq!(names.short_names, Some(vec!["hk".to_owned()]));
    assert_eq!(names.categories, Some(vec!["kagent".to_owned()]));
    assert_eq!(crd.spec.scope, "Namespaced");
    let [version] = crd.spec.versions.as_slice() else { panic!("one version") };
    assert_eq!((version.name.as_str(), version.served, version.storage), ("v1alpha2", true, true));
    assert!(version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()), "a status subresource");
    Ok(())
}

#[tokio::test]
async fn a_write_to_the_hook_leaves_its_status_alone_and_the_other_way_round() -> Result<()> {
    let world = World::new("subresource").await?;
    apply(&world, "shop", &[configuration(json!({}))]).await.map_err(anyhow::Error::msg)?;
    world.patch("shop", json!({"status": {"message": "mine"}})).await?;
    assert_ne!(world.status("shop").await?.message.as_deref(), Some("mine"));
    let patch = Patch::Merge(json!({"status": {"message": "ours"}, "spec": {"suspend": true}}));
    let hook = world.hooks().patch_status("shop", &PatchParams::default(), &patch).await?;
    assert_eq!(hook.status.and_then(|status| status.message).as_deref(), Some("ours"));
    assert_eq!(hook.spec.suspend, None);
    Ok(())
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_apply_in_words_a_person_understands() -> Result<()> {
    let world = World::new("refused").await?;
    let one = |changes| vec![configuration(changes)];
    let twice = |a, b| vec![configuration(a), configuration(b)];
    let by_ref = |name: &str, namespace: &str| json!({"agentId": null, "agentRef": {"name": name, "namespace": namespace}});
    const AGENTS: &str = "name the agent once: set exactly one of agentRef, agentId and agent";
    const ID: &str = "write an agent as \"namespace/name\" or \"name\"";
    const NAME: &str = "the name of an agent has letters, digits, '-', '_' and '.'";
    const NAMESPACE: &str = "a namespace has small letters, digits and '-'";
    const TWICE: &str = "the same eventType and agent stand twice";
    const FOR: &str = "for is a span of time such as 0s, 90s, 5m or 1h30m, at most 24h";
    const REPEAT: &str = "repeatInterval is a span of time such as 90s, 5m or 1h30m, from 10s to 24h";
    const RESOLVE: &str = "resolveTimeout is a span of time such as 90s, 5m or 1h30m, from 10s to 24h";
    const URL: &str =
        "url looks like https://agent.example.com/path: http or https, without user, query and fragment";
    let direct = |url: &str| json!({"agentId": null, "agent": {"url": url}});
    let with = |fields: Value| {
        let mut changes = direct("https://a.example.com/");
        for (field, value) in fields.as_object().unwrap() {
            changes["agent"][field] = value.clone();
        }
        changes
    };
    const FIRST: &str = "spec.eventConfigurations[0]";
    let mut cases: Vec<(Vec<Value>, Vec<&str>)> = vec![
        (one(json!({"agentId": null})), vec![FIRST, AGENTS]),
        (one(json!({"agentRef": {"name": "b"}})), vec![FIRST, AGENTS]),
        (one(json!({"agent": {"url": "https://a.example.com/"}})), vec![FIRST, AGENTS]),
        (
            one(
                json!({"agentId": null, "agentRef": {"name": "b"}, "agent": {"url": "https://a.example.com/"}}),
            ),
            vec![FIRST, AGENTS],
        ),
        (
            one(json!({"agentRef": {"name": "b"}, "agent": {"url": "https://a.example.com/"}})),
            vec![FIRST, AGENTS],
        ),
        (one(json!({"eventType": null})), vec![FIRST, "eventType: Required value"]),
        (
            one(json!({"eventType": "pod-crash"})),
            vec![
                "eventConfigurations[0].eventType: Unsupported value: \"pod-crash\"",
                "\"pod-restart\", \"pod-pending\", \"oom-kill\", \"probe-failed\"",
            ],
        ),
        (one(json!({"prompt": null})), vec![FIRST, "prompt: Required value"]),
        (one(json!({"prompt": ""})), vec!["eventConfigurations[0].prompt", "at least 1 chars long"]),
        (one(json!({"prompt": " \t\r\n "})), vec!["the prompt is blank: say what the agent should do"]),
        (
            one(json!({"prompt": "x".repeat(10_001)})),
            vec!["eventConfigurations[0].prompt: Too long", "10000"],
        ),
        (vec![], vec!["eventConfigurations", "at least 1 items"]),
        (
            (0..51).map(|i| configuration(json!({"agentId": format!("agent-{i}")}))).collect(),
            vec!["eventConfigurations: Too many: 51", "50 items"],
        ),
        (
            twice(json!({}), json!({"prompt": "Other."})),
            vec!["spec.eventConfigurations", TWICE, "remove one"],
        ),
        (twice(by_ref("a", "kagent"), by_ref("a", "kagent")), vec![TWICE]),
        (twice(by_ref("a", ""), json!({"agentId": null, "agentRef": {"name": "a"}})), vec![TWICE]),
        // However it was written.
        (twice(by_ref("a", "kagent"), json!({"agentId": "kagent/a"})), vec![TWICE]),
        (twice(json!({"agentId": null, "agentRef": {"name": "a"}}), json!({"agentId": "a"})), vec![TWICE]),
        (twice(direct("https://a.example.com/"), direct("https://a.example.com/")), vec![TWICE]),
        // However its credential is written.
        (
            twice(direct("https://a.example.com/"), with(json!({"auth": {"secretRef": {"name": "a"}}}))),
            vec![TWICE],
        ),
        (one(json!({"agentId": null, "agent": {}})), vec!["agent.url: Required"]),
        (one(direct("")), vec!["agent.url", "at least 1 chars long"]),
        (one(direct(&format!("https://a.example.com/{}", "x".repeat(512)))), vec!["agent.url: Too long"]),
        (
            one(with(json!({"protocol": "2.0"}))),
            vec!["agent.protocol: Unsupported value", "\"0.3\", \"1.0\""],
        ),
        (one(with(json!({"auth": {}}))), vec!["agent.auth.secretRef: Required"]),
        (
            one(with(json!({"auth": {"secretRef": {"key": "a"}}}))),
            vec!["agent.auth.secretRef.name: Required"],
        ),
        (
            one(with(json!({"auth": {"secretRef": {"name": "A/b"}}}))),
            vec!["agent.auth.secretRef.name", "the name of a Secret has small letters, digits, '-' and '.'"],
        ),
        (
            one(with(json!({"ca": {"secretRef": {"name": "a", "key": "b/c"}}}))),
            vec!["agent.ca.secretRef.key", "a key in a Secret has letters, digits, '-', '_' and '.'"],
        ),
        (
            one(with(json!({"auth": {"secretRef": {"name": "a"}, "header": "Transfer-Encoding"}}))),
            vec!["agent.auth.header", "none that HTTP, A2A or proxies use"],
        ),
        (
            one(with(json!({"auth": {"secretRef": {"name": "a"}, "header": "X Key"}}))),
            vec!["agent.auth.header", "header must be one for credentials"],
        ),
        (one(by_ref("", "kagent")), vec!["agentRef.name", "at least 1 chars long"]),
        (one(by_ref("a b", "kagent")), vec!["agentRef.name", NAME]),
        (one(by_ref("kagent/a", "")), vec!["agentRef.name", NAME, "agentRef.namespace"]),
        (one(by_ref("..", "kagent")), vec!["agentRef.name", NAME]),
        (one(by_ref("a", "Kagent")), vec!["agentRef.namespace", NAMESPACE]),
        (one(json!({"agentId": null, "agentRef": {"namespace": "kagent"}})), vec!["agentRef.name: Required"]),
        (one(json!({"agentId": ""})), vec!["agentId", "at least 1 chars long"]),
        (one(json!({"agentId": "x".repeat(318)})), vec!["agentId: Too long"]),
    ];
    for id in ["a/b/c", "/a", "a/", "/", "a b", "Kagent/a", "ns/..", "../a", "a\n", "a%2fb", "a?b", "-ns/a"] {
        cases.push((one(json!({"agentId": id})), vec!["eventConfigurations[0].agentId", ID]));
    }
    let bad_urls = [
        "agent.example.com",
        "ftp://a.example.com/",
        "https://",
        "https:///a2a",
        "https://user:password@a.example.com/",
        "https://a.example.com?x",
        "https://a.example.com/a2a?x=y",
        "https://a.example.com/#card",
        "https://a example.com/",
        "https://a.example.com/a b",
        " https://a.example.com/",
    ];
    for url in bad_urls {
        cases.push((one(direct(url)), vec!["eventConfigurations[0].agent.url", URL]));
    }
    let bad =
        ["", "5", "s", "1d", "-5m", "+5m", "5 m", "5M", "1h 30m", "25h", "1441m", "100000s", "1e3s", ".5s"];
    for text in bad {
        cases.push((one(json!({"for": text})), vec!["eventConfigurations[0].for", FOR]));
        cases.push((one(json!({"repeatInterval": text})), vec!["repeatInterval", REPEAT]));
        cases.push((one(json!({"resolveTimeout": text})), vec!["resolveTimeout", RESOLVE]));
    }
    // What CEL's own parser would call an overflow, or not take at all.
    for text in ["99999h99999h99999h99999h", "999999999999999999999999999999h", "5µs", "5m\n"] {
        cases.push((one(json!({"for": text})), vec!["eventConfigurations[0].for", FOR]));
    }
    for text in ["0s", "9s", "500ms", "9999ms"] {
        cases.push((one(json!({"repeatInterval": text})), vec!["repeatInterval", REPEAT]));
        cases.push((one(json!({"resolveTimeout": text})), vec!["resolveTimeout", RESOLVE]));
    }
    cases.push((one(json!({"for": "1m".repeat(17)})), vec!["for: Too long"]));

    for (configurations, words) in cases {
        let shown: String = json!(configurations).to_string().chars().take(300).collect();
        let refusal = apply(&world, "shop", &configurations).await.err();
        let refusal = refusal.with_context(|| format!("taken: {shown}"))?;
        for word in words {
            assert!(refusal.contains(word), "{shown}\nis refused without {word:?}:\n{refusal}");
        }
        for raw in ["no such key", "type conversion", "evaluation", "should match"] {
            assert!(!refusal.contains(raw), "{shown}\nis refused in CEL's words:\n{refusal}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_can_work_applies() -> Result<()> {
    let world = World::new("taken").await?;
    let mut cases = vec![
        // A fan-out: one kind of trouble, two agents.
        vec![configuration(json!({})), configuration(json!({"agentId": "kagent/k8s-agent"}))],
        // Perhaps one agent written in two ways: that depends on the Hook's namespace.
        vec![
            configuration(json!({})),
            configuration(json!({"agentId": format!("{}/k8s-agent", world.namespace)})),
        ],
        vec![configuration(json!({"agentId": null, "agentRef": {"name": "a", "namespace": ""}}))],
        vec![configuration(json!({"prompt": "x"}))],
    ];
    for url in ["http://127.0.0.1:8080", "https://a.example.com/a2a/v1", "http://[::1]:8080/", "http://a/b@c"]
    {
        cases.push(vec![
            configuration(json!({"agentId": null, "agent": {"url": url}})),
            // The same agent about other trouble, and another one about this.
            configuration(json!({"agentId": null, "agent": {"url": url}, "eventType": "oom-kill"})),
            configuration(json!({"agentId": null, "agent": {"url": "https://b.example.com/"}})),
        ]);
    }
    for name in ["A", "K8s_Agent", "a.b", "_a", "a_", "-a", "9", "kagent/K8s_Agent", "n-1/a"] {
        cases.push(vec![configuration(json!({"agentId": name}))]);
    }
    for text in ["0s", "500ms", "1.5s", "90s", "5m", "1h30m", "24h", "1440m", "86400s", "0h0m0s"] {
        cases.push(vec![configuration(json!({"for": text}))]);
    }
    for text in ["10s", "10000ms", "1h30m", "24h", "23h59m60s"] {
        cases.push(vec![configuration(json!({"repeatInterval": text, "resolveTimeout": text}))]);
    }
    for configurations in cases {
        let applied = apply(&world, "shop", &configurations).await;
        applied.map_err(anyhow::Error::msg).with_context(|| json!(configurations).to_string())?;
    }
    Ok(())
}

#[tokio::test]
async fn validate_and_the_apiserver_say_the_same_of_every_way_to_write_a_hook() -> Result<()> {
    const GOOD: &str = "\
apiVersion: kagent.dev/v1alpha2
kind: Hook
metadata:
  name: shop
  labels: {team: shop}
spec:
  suspend: false
  eventConfigurations:
  - eventType: pod-restart
    agentId: k8s-agent
    prompt: Look.
    for: 5m
  - eventType: oom-kill
    agent: {url: 'https://a.example.com/', auth: {secretRef: {name: a}}}
    prompt: |
      Look
      again.
";
    let world = World::new("verdicts").await?;
    ensure!(create(&world, GOOD).await?.is_none(), "{:?}", create(&world, GOOD).await?);
    let (mut taken, mut refused, mut wrong) = (0, 0, Vec::new());
    let each = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replacen(from, to, 1)
    };
    let changes = [
        // Unknown fields, at every depth.
        ("spec:", "specs: {}\nspec:"),
        ("  suspend", "  suspended: true\n  suspend"),
        ("    for:", "    fro: 5m\n    for:"),
        ("{name: a}", "{name: a, keys: b}"),
        ("  labels", "  label: {}\n  labels"),
        ("spec:", "status: {message: mine}\nspec:"),
        ("spec:", "status: {massage: mine}\nspec:"),
        ("spec:", "status: {active: many}\nspec:"),
        // Twice.
        ("  suspend", "  suspend: true\n  suspend"),
        ("    for:", "    for: 6m\n    for:"),
        // Types.
        ("suspend: false", "suspend: 'false'"),
        ("suspend: false", "suspend: yes"),
        ("suspend: false", "suspend: On"),
        ("suspend: false", "suspend: 1"),
        ("suspend: false", "suspend: y"),
        ("for: 5m", "for: 5"),
        ("for: 5m", "for: 1_0"),
        ("for: 5m", "for: 0x10"),
        ("for: 5m", "for: 1e3"),
        ("for: 5m", "for: [5m]"),
        ("k8s-agent", "yes"),
        ("k8s-agent", "n"),
        ("k8s-agent", "Null"),
        ("k8s-agent", "2026-01-02"),
        ("k8s-agent", "007"),
        ("k8s-agent", "08"),
        ("k8s-agent", "0o7"),
        ("k8s-agent", "0b1"),
        ("k8s-agent", ".5"),
        ("k8s-agent", "'007'"),
        ("k8s-agent", "!!str 7"),
        ("k8s-agent", "1.2.3"),
        ("k8s-agent", "12:30"),
        ("k8s-agent", ".inf"),
        ("prompt: Look.", "prompt: {a: b}"),
        ("prompt: Look.", "prompt: on"),
        ("spec:", "spec: []\nrest:"),
        ("{team: shop}", "{team: 5}"),
        ("{team: shop}", "{team: ~}"),
        ("{team: shop}", "shop"),
        // Nothing.
        ("for: 5m", "for:"),
        ("prompt: Look.", "prompt:"),
        ("suspend: false", "suspend: ~"),
        ("agentId: k8s-agent", "agentId:"),
        ("  - eventType: oom-kill", "  -\n  - eventType: oom-kill"),
        ("spec:", "spec:\nrest:"),
        ("  name: shop\n", ""),
        // Names.
        ("name: shop", "name: Shop"),
        ("name: shop", "name: a..b"),
        ("name: shop", "name: a.b-c"),
        ("name: shop", "name: 5"),
        ("name: shop", "generateName: shop-"),
        // Aliases and merges.
        ("agentId: k8s-agent", "agentId: &a k8s-agent"),
        ("prompt: Look.", "prompt: &p Look.\n    <<: {repeatInterval: 5m}"),
    ];
    for (from, to) in changes {
        let yaml = each(from, to);
        let told = refusals(&yaml);
        let paths: Vec<&str> = told.iter().map(|fault| fault.path.as_str()).collect();
        match create(&world, &yaml).await? {
            None if told.is_empty() => taken += 1,
            Some((fields, _)) if !told.is_empty() && fields.iter().all(|field| names(&paths, field)) => {
                refused += 1;
            }
            verdict => wrong.push(format!("{to:?}: the apiserver says {verdict:?}, validate {told:?}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(taken > 10 && refused > 20, "{taken} taken, {refused} refused");
    Ok(())
}

#[tokio::test]
async fn the_largest_hook_there_may_be_stays_within_the_cost_budget() -> Result<()> {
    let world = World::new("cost").await?;
    // As costly as can be: all of one type, names that differ only at their end, blank but for the last letter.
    let prompt = format!("{}x", " ".repeat(9_999));
    let spans = json!({"for": "11111.00000s11111.00000s1.00000s", "repeatInterval": "11111.00000s11111.00000s1.00000s"});
    let configurations: Vec<Value> = (0..50)
        .map(|i| {
            let name = format!("{}{i:02}", "a".repeat(251));
            let mut configuration = configuration(spans.clone());
            configuration["prompt"] = json!(prompt);
            if i % 2 == 0 {
                configuration["agentId"] = json!(format!("{}/{name}", "n".repeat(63)));
            } else {
                configuration.as_object_mut().unwrap().remove("agentId");
                configuration["agentRef"] = json!({"name": name, "namespace": "n".repeat(63)});
            }
            configuration
        })
        .collect();
    apply(&world, "shop", &configurations).await.map_err(anyhow::Error::msg)?;
    // And a status write, which looks at the spec again.
    let patch = Patch::Merge(json!({"status": {"message": "ours"}}));
    world.hooks().patch_status("shop", &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
async fn a_gitops_tool_sees_no_difference_after_khook_has_worked() -> Result<()> {
    let stage = Stage::shared().await?;
    let world = stage.world("gitops").await?;
    let manifest = hook("shop", &[configuration(json!({}))]);
    let applied = world.control_plane.apply_in(&world.namespace, &manifest.to_string()).await?;
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Resolved).await?;

    let params = PatchParams::apply("e2e").dry_run();
    let again: Hook = world.hooks().patch("shop", &params, &Patch::Apply(&manifest)).await?;
    assert_eq!(serde_json::to_value(&again.spec)?, manifest["spec"]);
    let metadata = |hook: &Value| {
        let mut metadata = hook["metadata"].clone();
        // These two change with every write to the status.
        for field in ["resourceVersion", "managedFields"] {
            metadata.as_object_mut().unwrap().remove(field);
        }
        metadata
    };
    assert_eq!(metadata(&serde_json::to_value(&again)?), metadata(&serde_json::to_value(&applied[0])?));
    // The dry run would store nothing new.
    let stored = world.hooks().get("shop").await?;
    assert_eq!(again.resource_version(), stored.resource_version());
    assert_eq!(again.status, stored.status);
    Ok(())
}

#[tokio::test]
async fn kubectl_finds_hooks_by_their_short_name_and_category() -> Result<()> {
    let world = World::on(ControlPlane::shared().await?, "discovery").await?;
    let resources = world.client.list_api_group_resources("kagent.dev/v1alpha2").await?.resources;
    let hooks = resources.iter().find(|resource| resource.name == "hooks").context("hooks")?;
    assert_eq!(hooks.short_names, Some(vec!["hk".to_owned()]));
    assert_eq!(hooks.categories, Some(vec!["kagent".to_owned()]));
    assert!(resources.iter().any(|resource| resource.name == "hooks/status"));
    Ok(())
}
