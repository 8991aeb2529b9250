//! The charts: every value does what it says and nothing else is taken; what they make is what a cluster takes;
//! and the Go khook's are upgraded in place.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use e2e::assets::Tool;
use e2e::control_plane::{ControlPlane, Options};
use e2e::crds;
use e2e::helm::{Helm, chart};
use e2e::objects;
use e2e::process::Scratch;
use e2e::world::crd_yaml;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use khook::config::{self, Settings};
use khook::hook::Hook;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::TypeMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

const CHARTS: [&str; 2] = ["khook-crds", "khook"];
const HELMS: [Tool; 2] = [Tool::Helm3, Tool::Helm4];

/// Settings that have a value of their own in the chart, or none: these never are in `settings`.
const OWN: [&str; 28] = [
    "kagent-base-url",
    "kagent-user-id",
    "kagent-api-timeout",
    "attempts-per-round",
    "retry-base",
    "kagent-protocol",
    "kagent-ui-url",
    // A key in values would be in Helm's Secret and in Git.
    "kagent-api-key",
    "kagent-api-key-file",
    "log-level",
    "log-format",
    "leader-election",
    "lease-name",
    "lease-namespace",
    "pod-name",
    "repeat-interval",
    "watch-namespaces",
    "allowed-agents",
    "direct-agent-hosts",
    "show-answers",
    "otel-exporter-otlp-endpoint",
    "otel-exporter-otlp-protocol",
    "otel-traces-sampler",
    "otel-traces-sampler-arg",
    "otel-exporter-otlp-headers",
    "metrics-port",
    "health-port",
    "dashboard-port",
];

/// Whether a setting is none of those in `settings`.
fn is_own(long: &str) -> bool {
    // Other ways to say what is said already.
    OWN.contains(&long) || long.starts_with("otel-exporter-otlp-traces-")
}

/// What is on where a value does nothing by itself.
fn needs(path: &str) -> Value {
    let on = |parent: &str| json!({"metrics": {parent: {"enabled": true}}});
    match path {
        "namespace.name" => json!({"namespace": {"create": true}}),
        "kagent.existingSecret.key" => json!({"kagent": {"existingSecret": {"name": "kagent"}}}),
        "traces.headersSecret.key" => {
            json!({"traces": {"endpoint": "http://c:4318", "headersSecret": {"name": "c"}}})
        }
        "crds.namespace" => json!({"crds": {"createNamespace": true}}),
        _ if path.starts_with("kagent.projectedToken.") => {
            json!({"kagent": {"projectedToken": {"enabled": true}}})
        }
        _ if path.starts_with("traces.") => json!({"traces": {"endpoint": "http://c:4318"}}),
        _ if path.starts_with("metrics.serviceMonitor.") => on("serviceMonitor"),
        _ if path.starts_with("metrics.podMonitor.") => on("podMonitor"),
        _ if path.starts_with("metrics.prometheusRule.") => on("prometheusRule"),
        _ if path.starts_with("metrics.dashboard.") => on("dashboard"),
        "dashboard.port" => json!({"dashboard": {"enabled": true}}),
        "networkPolicy.dashboardFrom" => {
            json!({"networkPolicy": {"enabled": true}, "dashboard": {"enabled": true}})
        }
        _ if path.starts_with("podDisruptionBudget.") => json!({"replicaCount": 2}),
        _ if path.starts_with("networkPolicy.") => json!({"networkPolicy": {"enabled": true}}),
        _ => json!({}),
    }
}

/// Values that may be only one thing.
const FIXED: [&str; 1] = ["traces.protocol"];

/// Maps of the schema that are what Kubernetes takes, or names that people give.
const OPEN: [&str; 23] = [
    "global",
    "affinity",
    "allowedAgents",
    "extraEnv[]",
    "extraVolumeMounts[]",
    "extraVolumes[]",
    "healthCheck.livenessProbe",
    "healthCheck.readinessProbe",
    "networkPolicy.dashboardFrom[]",
    "networkPolicy.extraEgress[]",
    "networkPolicy.ingressFrom[]",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "podSecurityContext",
    "resources",
    "securityContext",
    "serviceAccount.annotations",
    "strategy",
    "tolerations[]",
    "topologySpreadConstraints[]",
    "labels",
    "annotations",
];

/// A value to try where a leaf of this form is.
fn others(leaf: &Value) -> Vec<Value> {
    match leaf {
        Value::Bool(is) => vec![json!(!is)],
        Value::Number(number) => {
            let number = number.as_f64().unwrap();
            let plain =
                |number: f64| if number.fract() == 0.0 { json!(number as i64) } else { json!(number) };
            vec![plain(number + 1.0), plain(number - 1.0)]
        }
        Value::String(_) => {
            let digest = format!("sha256:{}", "0".repeat(64));
            ["other", "7s", "http://other.example:1", "0.3", "Always", "text", "always_off", "50%", &digest]
                .map(Value::from)
                .to_vec()
        }
        Value::Array(_) => vec![
            json!(["other"]),
            json!([7]),
            json!([{"namespace": "other", "names": ["other"]}]),
            json!([{"name": "other"}]),
            json!(["10.0.0.0/8"]),
        ],
        Value::Object(_) => {
            vec![json!({"staleAfter": "7s"}), json!({"other": "other"}), json!({"other": ["other/other"]})]
        }
        Value::Null => Vec::new(),
    }
}

/// The folder of a chart, for a command line.
fn folder(name: &str) -> String {
    chart(name).display().to_string()
}

fn yaml(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| format!("the YAML of {}", path.display()))
}

fn values_of(name: &str) -> Result<Value> {
    yaml(&chart(name).join("values.yaml"))
}

fn schema_of(name: &str) -> Result<Value> {
    yaml(&chart(name).join("values.schema.json"))
}

/// The values that are tried as a whole, by name.
fn matrix() -> Result<BTreeMap<String, Value>> {
    let mut matrix = BTreeMap::from([("default".to_owned(), json!({}))]);
    for file in fs::read_dir(chart("khook").join("ci"))? {
        let path = file?.path();
        let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
        matrix.insert(name, yaml(&path)?);
    }
    ensure!(matrix.len() >= 6, "only {} sets of values", matrix.len());
    Ok(matrix)
}

/// The second laid over the first.
fn merged(mut below: Value, above: &Value) -> Value {
    match (&mut below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                let lower = below.remove(key).unwrap_or(Value::Null);
                below.insert(key.clone(), merged(lower, value));
            }
        }
        _ => return above.clone(),
    }
    below
}

/// `a.b` as a map in a map.
fn at(path: &str, value: &Value) -> Value {
    path.rsplit('.').fold(value.clone(), |inner, key| json!({key: inner}))
}

/// The paths of all values that are no map, or an empty one.
fn leaves(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, found);
            }
        }
        _ => found.push((path.to_owned(), value.clone())),
    }
}

/// The objects of a chart, those of its tests too, and its notes.
async fn rendered(helm: &Helm, name: &str, values: &Value) -> Result<(Vec<Value>, String)> {
    let said = helm.everything(name, &chart(name), "khook", values).await?;
    let (objects, notes) = parts(&said)?;
    Ok((objects, notes))
}

/// What `helm install --dry-run` prints, taken apart.
fn parts(said: &str) -> Result<(Vec<Value>, String)> {
    let (before, notes) = said.split_once("\nNOTES:\n").unwrap_or((said, ""));
    let (_, hooks_and_manifest) = before.split_once("\nHOOKS:").context("no HOOKS in what Helm says")?;
    let (hooks, manifest) = hooks_and_manifest.split_once("\nMANIFEST:\n").context("no MANIFEST")?;
    let mut objects = objects::parse(manifest)?;
    objects.extend(objects::parse(hooks)?);
    Ok((objects, notes.trim().to_owned()))
}

fn of<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// A control plane that knows Hooks and the Prometheus operator's kinds.
async fn cluster() -> Result<&'static ControlPlane> {
    static READY: OnceCell<()> = OnceCell::const_new();
    let cluster = ControlPlane::shared().await?;
    READY
        .get_or_try_init(|| async {
            for crd in tokio::task::spawn_blocking(crds::prometheus_operator).await?? {
                cluster.apply(&crd).await?;
            }
            cluster.apply(&crd_yaml()?).await.map(drop)
        })
        .await?;
    Ok(cluster)
}

#[tokio::test]
async fn both_charts_lint_without_a_warning() -> Result<()> {
    for tool in HELMS {
        let helm = Helm::new(tool).await?;
        for name in CHARTS {
            helm.run(["lint", "--strict", &folder(name)]).await?;
        }
        for (name, values) in matrix()? {
            let file = Scratch::new()?;
            let path = file.path().join("values.yaml");
            fs::write(&path, values.to_string())?;
            let path = path.display().to_string();
            let lint = helm.run(["lint", "--strict", "--values", &path, &folder("khook")]).await;
            lint.with_context(|| format!("with {name}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_packaged_chart_makes_what_its_folder_does() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let archives = Scratch::new()?;
    for name in CHARTS {
        let said = helm.run(["package", &folder(name), "-d", &archives.path().display().to_string()]).await?;
        let archive = said.split_whitespace().last().context("no archive was named")?.to_owned();
        let packaged = helm.template(name, Path::new(&archive), "khook", &json!({}), &[]).await?;
        let plain = helm.template(name, &chart(name), "khook", &json!({}), &[]).await?;
        assert!(packaged == plain, "{packaged}");
        let readme = helm.run(["show", "readme", &archive]).await?;
        assert!(readme.contains("## Values"), "{readme}");
    }
    Ok(())
}

#[tokio::test]
async fn both_helms_make_the_same_and_it_is_what_the_schemas_and_the_apiserver_take() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let [old, new] = [Helm::new(Tool::Helm3).await?, Helm::new(Tool::Helm4).await?];
    let mut made = vec![("khook-crds".to_owned(), rendered(&new, "khook-crds", &json!({})).await?.0)];
    let namespace =
        json!({"crds": {"createNamespace": true}, "labels": {"a": "b"}, "annotations": {"c": "d"}});
    made.push(("khook-crds, full".to_owned(), rendered(&new, "khook-crds", &namespace).await?.0));
    for (name, values) in matrix()? {
        let (objects, _) = rendered(&new, "khook", &values).await?;
        let sorted = |objects: &[Value]| objects.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        let others = old.template("khook", &chart("khook"), "khook", &values, &[]).await?;
        assert_eq!(
            sorted(&objects),
            sorted(&objects::parse(&others)?),
            "the two versions of Helm with {name}"
        );
        ensure!(!of(&objects, "Deployment").is_empty(), "no Deployment with {name}");
        made.push((name, objects));
    }
    let schemas = Schemas::of(&client).await?;
    for (name, objects) in &made {
        schemas.check(objects).with_context(|| format!("with {name}"))?;
        dry_run(cluster, objects).await.with_context(|| format!("with {name}"))?;
    }
    // Both are able to refuse.
    let mut wrong = made.last().context("nothing was made")?.1.clone();
    let deployment =
        wrong.iter_mut().find(|object| object["kind"] == "Deployment").context("no Deployment")?;
    deployment["spec"]["template"]["spec"]["prioritiClassName"] = json!("a");
    let words = schemas.check(&wrong).expect_err("an unknown field").to_string();
    assert!(words.contains("prioritiClassName"), "{words}");
    let words = format!("{:#}", dry_run(cluster, &wrong).await.expect_err("an unknown field"));
    assert!(words.contains("prioritiClassName"), "{words}");
    Ok(())
}

/// Asks the apiserver whether it would take these, strictly.
async fn dry_run(cluster: &ControlPlane, objects: &[Value]) -> Result<()> {
    let client = cluster.client().await?;
    for object in objects {
        let object: DynamicObject = serde_json::from_value(object.clone()).context("no object")?;
        let types = object.types.clone().context("an object without a kind")?;
        let namespace = object.namespace().unwrap_or_default();
        if !namespace.is_empty() {
            cluster.create_namespace(&namespace).await?;
        }
        let api = objects::api(&client, &types, &namespace).await?;
        let params = PatchParams { dry_run: true, ..PatchParams::apply("e2e").force().validation_strict() };
        let answer = api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await;
        answer.map_err(objects::words).with_context(|| format!("{} {}", types.kind, object.name_any()))?;
    }
    Ok(())
}

/// Schemas for kubeconform, of all that an apiserver serves: those it would look for itself are in the internet.
struct Schemas {
    folder: Scratch,
    program: PathBuf,
}

impl Schemas {
    async fn of(client: &Client) -> Result<Self> {
        let text = client.request_text(http::Request::get("/openapi/v2").body(Vec::new())?).await?;
        let mut openapi: Value = serde_json::from_str(&text).context("the apiserver's /openapi/v2")?;
        let folder = Scratch::new()?;
        let mut definitions = openapi["definitions"].take();
        let all = definitions.as_object_mut().context("no definitions")?;
        for (name, definition) in all.iter_mut() {
            strict(definition);
            // Written as text, and taken as a number too.
            if name.ends_with(".api.resource.Quantity") || name.ends_with(".intstr.IntOrString") {
                *definition = json!({"type": ["string", "number"]});
            }
            for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let part = |key: &str| kind[key].as_str().unwrap_or_default().to_lowercase();
                let group = part("group").split('.').next().unwrap_or_default().to_owned();
                let group = if group.is_empty() { group } else { format!("-{group}") };
                let file = format!("{}{group}-{}.json", part("kind"), part("version"));
                let schema = json!({"$ref": format!("definitions.json#/definitions/{name}")});
                fs::write(folder.path().join(file), schema.to_string())?;
            }
        }
        fs::write(folder.path().join("definitions.json"), json!({"definitions": definitions}).to_string())?;
        let program = tokio::task::spawn_blocking(|| Tool::Kubeconform.find_or_build()).await??;
        Ok(Self { folder, program })
    }

    fn check(&self, objects: &[Value]) -> Result<()> {
        let file = self.folder.path().join("objects.yaml");
        let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
        fs::write(&file, documents.join("\n---\n"))?;
        let schemas = self.folder.path().join("{{.ResourceKind}}{{.KindSuffix}}.json");
        let answer = std::process::Command::new(&self.program)
            .args(["-strict", "-summary", "-schema-location"])
            .args([schemas, file])
            .output()
            .context("running kubeconform")?;
        let words = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(answer.status.success(), "{words}{}", String::from_utf8_lossy(&answer.stderr));
        // It says nothing of one without a schema but that it skipped it.
        let all = format!("Valid: {}, Invalid: 0, Errors: 0, Skipped: 0", objects.len());
        ensure!(words.contains(&all), "{words}");
        Ok(())
    }
}

/// An unknown field is an error, as it is for `kubectl apply`.
fn strict(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let is = |key: &str| map.get(key) == Some(&json!(true));
            if is("x-kubernetes-int-or-string") || map.get("format") == Some(&json!("int-or-string")) {
                *schema = json!({"type": ["string", "integer"]});
                return;
            }
            let known = map.get("properties").is_some_and(Value::is_object);
            if known && !is("x-kubernetes-preserve-unknown-fields") {
                map.entry("additionalProperties").or_insert(json!(false));
            }
            map.values_mut().for_each(strict);
        }
        Value::Array(list) => list.iter_mut().for_each(strict),
        _ => {}
    }
}

#[tokio::test]
async fn every_leaf_of_the_values_changes_what_is_made() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    for name in CHARTS {
        let mut found = Vec::new();
        leaves(&values_of(name)?, "", &mut found);
        ensure!(found.len() >= 3, "{} leaves in {name}", found.len());
        for fixed in FIXED.iter().filter(|_| name == "khook") {
            ensure!(found.iter().any(|(path, _)| path == fixed), "{fixed} is no value");
        }
        let idle: Vec<String> = stream::iter(&found)
            .map(|(path, leaf)| does_nothing(&helm, name, path, leaf))
            .buffer_unordered(2)
            .try_filter_map(async |idle| Ok(idle))
            .try_collect()
            .await?;
        ensure!(idle.is_empty(), "values of {name} that change nothing: {idle:#?}");
    }
    Ok(())
}

/// The path where a change of this leaf changes nothing.
async fn does_nothing(helm: &Helm, name: &str, path: &str, leaf: &Value) -> Result<Option<String>> {
    let base = needs(path);
    // Nothing is needed by the switch itself.
    let pointer = format!("/{}", path.replace('.', "/"));
    let base = if base.pointer(&pointer).is_some() { json!({}) } else { base };
    let making = |values: Value| async move { helm.everything(name, &chart(name), "khook", &values).await };
    // Its first lines have the time.
    let body = |said: String| said.split_once("\nHOOKS:").map(|(_, rest)| rest.to_owned());
    let before = body(making(base.clone()).await.with_context(|| format!("what {path} needs"))?);
    let mut refusal = None;
    for other in others(leaf).iter().filter(|other| *other != leaf) {
        match making(merged(base.clone(), &at(path, other))).await {
            Ok(said) => return Ok((body(said) == before).then(|| path.to_owned())),
            Err(error) => refusal = Some(error),
        }
    }
    if FIXED.contains(&path) {
        return Ok(None);
    }
    bail!("no other value is taken for {path}: {refusal:?}");
}

/// The maps of a schema: their paths, whether they take any key, and a path of values that leads there.
fn maps(schema: &Value, path: &str, found: &mut Vec<(String, bool)>) {
    if schema["type"] == "object" {
        found.push((path.to_owned(), schema["additionalProperties"] != json!(false)));
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        maps(inner, &path, found);
    }
    if schema["items"].is_object() {
        maps(&schema["items"], &format!("{path}[]"), found);
    }
}

#[tokio::test]
async fn an_unknown_key_is_refused_at_every_level() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    for name in CHARTS {
        let mut found = Vec::new();
        maps(&schema_of(name)?, "", &mut found);
        ensure!(found.len() >= 4, "{} maps in {name}", found.len());
        for (path, open) in found {
            let known = OPEN.contains(&path.as_str())
                || (path.starts_with("metrics.")
                    && (path.ends_with(".labels") || path.ends_with(".annotations")));
            assert_eq!(open, known, "{name}: whether {path:?} takes any key");
            if open {
                continue;
            }
            let unknown = match path.strip_suffix("[]") {
                None if path.is_empty() => json!({"unknownKey": 1}),
                None => at(&format!("{path}.unknownKey"), &json!(1)),
                Some(list) => {
                    at(list, &json!([{"name": "a", "namespace": "a", "names": ["a"], "unknownKey": 1}]))
                }
            };
            let refused = helm.template(name, &chart(name), "khook", &unknown, &[]).await;
            let words = format!("{:#}", refused.err().with_context(|| format!("{name} takes {unknown}"))?);
            assert!(words.contains("unknownKey"), "{words}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_value_is_refused_and_said_where() -> Result<()> {
    let token = json!({"kagent": {"existingSecret": {"name": "a"}, "projectedToken": {"enabled": true}}});
    let cases = [
        (json!({"kagent": {"apiUrl": "kagent:8083"}}), "apiUrl"),
        (json!({"kagent": {"apiUrl": "http://me:secret@kagent"}}), "apiUrl"),
        (json!({"kagent": {"timeout": "30"}}), "timeout"),
        (json!({"kagent": {"timeout": 30}}), "timeout"),
        (json!({"replicaCount": "two"}), "replicaCount"),
        (json!({"settings": {"staleAfter": "soon"}}), "staleAfter"),
        (json!({"settings": {"maxEntries": 501}}), "maxEntries"),
        (json!({"settings": {"kagentApiKey": "secret"}}), "kagentApiKey"),
        (json!({"settings": {"retryBase": "1s"}}), "retryBase"),
        (json!({"settings": {"staleafter": "1s"}}), "staleafter"),
        (json!({"watchNamespaces": "shop"}), "watchNamespaces"),
        (json!({"watchNamespaces": ["Shop"]}), "watchNamespaces"),
        (json!({"allowedAgents": {"shop": ["k8s-agent"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": "kagent/k8s-agent"}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": ["Kagent/k8s-agent"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": ["kagent/k8s agent"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": ["kagent/a/b"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": ["kagent/"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"shop": ["*a"]}}), "allowedAgents"),
        (json!({"allowedAgents": {"Shop": ["*"]}}), "'Shop' does not match"),
        // As if it were not there would be: every agent.
        (json!({"allowedAgents": {"*": null}}), "allowedAgents"),
        (json!({"extraEnv": [{"name": "METRICS_PORT", "value": "9090"}]}), "set metrics.port instead"),
        (json!({"extraEnv": [{"name": "HEALTH_PORT", "value": "9091"}]}), "set healthCheck.port instead"),
        (json!({"extraEnv": [{"name": "DASHBOARD_PORT", "value": "9092"}]}), "set dashboard.port instead"),
        (json!({"dashboard": {"enabled": true, "port": 8081}}), "dashboard.port is 8081"),
        (
            json!({"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
            "extraEnv has A twice",
        ),
        (json!({"nameOverride": "Khook"}), "nameOverride"),
        (json!({"nameOverride": "a".repeat(59)}), "nameOverride"),
        (json!({"fullnameOverride": "khook-"}), "fullnameOverride"),
        (json!({"fullnameOverride": "1khook"}), "fullnameOverride"),
        (json!({"fullnameOverride": "a".repeat(56)}), "fullnameOverride"),
        (json!({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}), "cidrs"),
        (json!({"directAgents": {"hosts": ["https://agent.example.com"]}}), "directAgents"),
        (json!({"directAgents": {"secrets": [{"namespace": "shop"}]}}), "names"),
        (json!({"traces": {"samplerArg": 2}}), "samplerArg"),
        (json!({"image": {"digest": "latest"}}), "digest"),
        (json!({"metrics": {"port": 8081}}), "metrics.port and healthCheck.port are both 8081"),
        (json!({"metrics": {"enabled": false, "serviceMonitor": {"enabled": true}}}), "metrics.enabled"),
        (token, "kagent.existingSecret.name and kagent.projectedToken.enabled"),
    ];
    for tool in HELMS {
        let helm = Helm::new(tool).await?;
        for (values, place) in &cases {
            let refused = helm.template("khook", &chart("khook"), "khook", values, &[]).await;
            let words = format!("{:#}", refused.err().with_context(|| format!("{values} is taken"))?);
            assert!(words.contains(place), "{values}: {words}");
        }
        let old =
            helm.template("khook", &chart("khook"), "khook", &json!({}), &["--kube-version=1.29.3"]).await;
        let words = format!("{:#}", old.expect_err("Kubernetes 1.29"));
        assert!(words.contains("1.30"), "{words}");
    }
    Ok(())
}

/// The leaves of values, where a map that takes any key is one too, and the maps above them.
fn values_to_unset(values: &Value, schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    for (key, value) in values.as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        found.push((path.clone(), value.clone()));
        let schema = &schema["properties"][key];
        if schema["additionalProperties"] == false {
            values_to_unset(value, schema, &path, found);
        }
    }
}

/// Whether a value without a content is taken for an empty one or refused: a word on what happens instead.
async fn unset(helm: &Helm, path: &str, value: &Value) -> Result<Option<String>> {
    let base = needs(path);
    let make = async |value: Value| {
        let values = merged(base.clone(), &at(path, &value));
        let said = helm.everything("khook", &chart("khook"), "khook", &values).await?;
        // Its first lines have the time.
        anyhow::Ok(said.split_once("\nHOOKS:").map(|(_, rest)| rest.to_owned()))
    };
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let place = match parent {
        "" => "''".to_owned(),
        parent => format!("'/{}'", parent.replace('.', "/")),
    };
    let empty = match value {
        Value::Array(_) => json!([]),
        // Helm lays maps over each other.
        Value::Object(map) => map.keys().map(|key| (key.clone(), Value::Null)).collect::<Map<_, _>>().into(),
        _ => Value::Null,
    };
    Ok(match make(Value::Null).await {
        Err(error) => {
            let words = format!("{error:#}");
            let said = words.contains(&format!("at {place}: missing property '{key}'"));
            (!said).then(|| format!("{path}: {words}"))
        }
        Ok(_) if empty.is_null() => Some(format!("{path}: null is taken")),
        Ok(said) => (said != make(empty).await?).then(|| format!("{path}: null is not what empty is")),
    })
}

#[tokio::test]
async fn a_value_that_is_null_is_as_an_empty_one_or_is_refused_and_said_where() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let mut found = Vec::new();
    values_to_unset(&values_of("khook")?, &schema_of("khook")?, "", &mut found);
    ensure!(found.len() >= 110, "{} values", found.len());
    let wrong: Vec<String> = stream::iter(&found)
        .map(|(path, value)| unset(&helm, path, value))
        .buffer_unordered(2)
        .try_filter_map(async |wrong| Ok(wrong))
        .try_collect()
        .await?;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[tokio::test]
async fn agents_have_the_names_that_hooks_give_them() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let agents = json!({
        "shop": ["kagent/K8s_Agent", "./Reader.v2", "./*", "*"], "team-*": ["safe-*/*_reader"], "*": [],
    });
    let (objects, _) = rendered(&helm, "khook", &json!({"allowedAgents": agents})).await?;
    let said: Value = serde_json::from_str(&environment(&objects)?.0["ALLOWED_AGENTS"])?;
    assert_eq!(said, agents);
    let (objects, _) = rendered(&helm, "khook", &json!({"allowedAgents": {"*": []}})).await?;
    assert_eq!(environment(&objects)?.0["ALLOWED_AGENTS"], r#"{"*":[]}"#, "nobody may is not everybody may");
    Ok(())
}

/// Whether these labels are among those.
fn fits(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().filter(|selector| !selector.is_empty());
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| labels[key] == *value))
}

#[tokio::test]
async fn two_releases_in_one_namespace_are_two() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let make = async |release: &str, values: Value| -> Result<(String, Vec<Value>)> {
        let objects = objects::parse(&helm.template(release, &chart("khook"), "a", &values, &[]).await?)?;
        let lease = environment(&objects)?.0["LEASE_NAME"].clone();
        let role = of(&objects, "Role")[0]["rules"][1].clone();
        assert_eq!((&role["resources"], &role["resourceNames"]), (&json!(["leases"]), &json!([lease])));
        Ok((lease, objects))
    };
    let (default, one) = make("khook", json!({})).await?;
    let (other, two) = make("khook-shop", json!({})).await?;
    assert_eq!((default.as_str(), other.as_str()), ("khook", "khook-shop"));
    let named = json!({"controller": {"leaderElection": {"resourceName": "mine"}}});
    assert_eq!(make("khook", named).await?.0, "mine");
    // What one of them selects is not the other's, and no object is both's.
    let template = |objects: &[Value]| of(objects, "Deployment")[0]["spec"]["template"].clone();
    let selector = &of(&one, "Service")[0]["spec"]["selector"];
    assert!(fits(selector, &template(&one)["metadata"]["labels"]));
    assert!(!fits(selector, &template(&two)["metadata"]["labels"]), "{selector}");
    let id = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    let both: Vec<String> = one.iter().filter(|a| two.iter().any(|b| id(a) == id(b))).map(id).collect();
    assert_eq!(both, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn every_selector_finds_its_pods_and_every_port_is_there() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let all = json!({
        "replicaCount": 2, "metrics": {"serviceMonitor": {"enabled": true}, "podMonitor": {"enabled": true}},
        "networkPolicy": {"enabled": true, "ingressFrom": [{"namespaceSelector": {}}]},
    });
    let moved = json!({"metrics": {"port": 9090}, "healthCheck": {"port": 9091}});
    let labels = json!({"podLabels": {
        "app.kubernetes.io/name": "other", "app.kubernetes.io/instance": "other", "example.com/a": "b",
    }});
    let names = json!({"nameOverride": "other", "fullnameOverride": "another"});
    let mut cases = matrix()?;
    for (name, values) in matrix()? {
        cases.insert(format!("{name}, labels"), merged(values.clone(), &labels));
        cases.insert(format!("{name}, names"), merged(values, &names));
    }
    cases.insert("all".to_owned(), all.clone());
    cases
        .insert("all, ports, labels, names".to_owned(), merged(merged(merged(all, &moved), &labels), &names));
    let mut seen = BTreeMap::<String, usize>::new();
    for (name, values) in &cases {
        let (objects, notes) = rendered(&helm, "khook", values).await?;
        selectors_and_ports(&objects, &mut seen).with_context(|| format!("with {name}"))?;
        let hook: Value = serde_yaml::from_str(hook_of(&notes)?)?;
        let place = &hook["metadata"]["namespace"];
        let watched = values["watchNamespaces"].as_array();
        ensure!(
            watched.map_or(*place == "default", |watched| watched.contains(place)),
            "with {name} the notes have a Hook for {place}"
        );
    }
    let kinds = ["Service", "PodDisruptionBudget", "NetworkPolicy", "spread", "ServiceMonitor", "PodMonitor"];
    for kind in kinds.into_iter().chain(["probe", "test"]) {
        ensure!(seen.get(kind) >= Some(&3), "too few to look at: {kind} of {seen:?}");
    }
    Ok(())
}

/// Looks at what points to khook's pods in a rendering, and counts it.
fn selectors_and_ports(objects: &[Value], seen: &mut BTreeMap<String, usize>) -> Result<()> {
    let [deployment] = of(objects, "Deployment")[..] else { bail!("not one Deployment") };
    let home = &deployment["metadata"]["namespace"];
    let pod = &deployment["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    let ours = &deployment["spec"]["selector"]["matchLabels"];
    ensure!(fits(ours, labels), "the Deployment selects {ours} and not {labels}");
    let container = &pod["spec"]["containers"][0];
    let ports: Vec<&Value> = container["ports"].as_array().context("no ports")?.iter().collect();
    let has = |port: &Value| ports.iter().any(|it| it["name"] == *port || it["containerPort"] == *port);
    let (env, _) = environment(objects)?;
    let dashboard = env.contains_key("DASHBOARD_PORT").then_some(("dashboard", "DASHBOARD_PORT"));
    ensure!(ports.len() == 2 + usize::from(dashboard.is_some()), "{ports:?}");
    for (name, variable) in
        [("metrics", "METRICS_PORT"), ("health", "HEALTH_PORT")].into_iter().chain(dashboard)
    {
        let port = ports.iter().find(|port| port["name"] == name).context("a port without its name")?;
        ensure!(port["containerPort"] == env[variable].parse::<u16>()?, "{variable} is not {port}");
    }
    for probe in ["livenessProbe", "readinessProbe"].map(|probe| &container[probe]) {
        if !probe.is_null() {
            *seen.entry("probe".to_owned()).or_default() += 1;
            ensure!(has(&probe["httpGet"]["port"]), "no port for {probe}");
        }
    }
    for spread in pod["spec"]["topologySpreadConstraints"].as_array().into_iter().flatten() {
        *seen.entry("spread".to_owned()).or_default() += 1;
        ensure!(fits(&spread["labelSelector"]["matchLabels"], labels), "{spread}");
    }
    let tests: Vec<&Value> = of(objects, "Pod");
    let service = of(objects, "Service").first().copied();
    for object in objects {
        let kind = object["kind"].as_str().context("an object without a kind")?;
        let spec = &object["spec"];
        let (selector, target) = match kind {
            "Service" => (&spec["selector"], labels),
            "PodDisruptionBudget" | "PodMonitor" => (&spec["selector"]["matchLabels"], labels),
            "NetworkPolicy" => (&spec["podSelector"]["matchLabels"], labels),
            "ServiceMonitor" => {
                let service = service.context("a ServiceMonitor without a Service")?;
                (&spec["selector"]["matchLabels"], &service["metadata"]["labels"])
            }
            _ => continue,
        };
        *seen.entry(kind.to_owned()).or_default() += 1;
        ensure!(fits(selector, target), "the {kind} selects {selector} and not {target}");
        if kind.ends_with("Monitor") {
            ensure!(spec["namespaceSelector"]["matchNames"] == json!([home]), "the {kind} looks elsewhere");
        } else {
            ensure!(object["metadata"]["namespace"] == *home, "the {kind} is elsewhere");
            ensure!(
                tests.iter().all(|pod| !fits(selector, &pod["metadata"]["labels"])),
                "{kind}: the test's"
            );
        }
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match kind {
            "Service" => {
                for port in list(&spec["ports"]) {
                    ensure!(has(&port["targetPort"]), "no port for the Service's {port}");
                }
            }
            "ServiceMonitor" | "PodMonitor" => {
                let endpoints = if kind == "PodMonitor" { "podMetricsEndpoints" } else { "endpoints" };
                let [endpoint] = &list(&spec[endpoints])[..] else { bail!("not one endpoint: {spec}") };
                ensure!(endpoint["path"] == "/metrics" && endpoint["port"] == "metrics", "{endpoint}");
                if let (Some(service), "ServiceMonitor") = (service, kind) {
                    let port = list(&service["spec"]["ports"]);
                    let port = port.iter().find(|port| port["name"] == endpoint["port"]);
                    ensure!(port.is_some_and(|port| port["targetPort"] == "metrics"), "{endpoint}");
                }
            }
            "NetworkPolicy" => {
                let open: Vec<Value> =
                    list(&spec["ingress"]).iter().flat_map(|rule| list(&rule["ports"])).collect();
                ensure!(open.iter().all(|port| has(&port["port"])), "no port for {open:?}");
                for port in &ports {
                    ensure!(open.iter().any(|open| open["port"] == port["name"]), "{port} is closed");
                }
                for peer in list(&spec["ingress"]).iter().flat_map(|rule| list(&rule["from"])) {
                    let selector = &peer["podSelector"]["matchLabels"];
                    if !selector.is_null() {
                        ensure!(tests.iter().any(|pod| fits(selector, &pod["metadata"]["labels"])), "{peer}");
                    }
                }
            }
            _ => {}
        }
    }
    for test in tests {
        *seen.entry("test".to_owned()).or_default() += 1;
        let service = service.context("a test without a Service")?;
        let host = format!("http://{}.{}.svc:", service["metadata"]["name"], home).replace('"', "");
        let args = test["spec"]["containers"][0]["args"].as_array().context("no arguments")?;
        let asked: Vec<&str> =
            args.iter().filter_map(|arg| arg.as_str()?.strip_prefix("--endpoint=")).collect();
        ensure!(args.len() == 3 && args[0] == "doctor" && asked.len() == 2, "the test asks others: {args:?}");
        ensure!(
            test["spec"]["containers"][0]["image"] == pod["spec"]["containers"][0]["image"],
            "another image"
        );
        for (asked, path) in asked.iter().zip(["/readyz", "/metrics"]) {
            let port =
                asked.strip_prefix(&host).and_then(|rest| rest.strip_suffix(path)).context("no path")?;
            let mut there = service["spec"]["ports"].as_array().into_iter().flatten();
            let port: u16 = port.parse().with_context(|| format!("the port {port}"))?;
            ensure!(there.any(|there| there["port"] == port), "{args:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_longest_names_are_taken_by_the_apiserver() -> Result<()> {
    let cluster = cluster().await?;
    let helm = Helm::new(Tool::Helm4).await?;
    let all = json!({"rbac": {"aggregate": true}, "replicaCount": 2, "networkPolicy": {"enabled": true}});
    let (longest, dashes) = ("a".repeat(53), format!("{}--{}", "b".repeat(7), "c".repeat(49)));
    for (release, names) in [
        (longest.as_str(), json!({})),
        (longest.as_str(), json!({"nameOverride": "b".repeat(58)})),
        // Where it is cut there are two of them.
        (&longest[..45], json!({"nameOverride": dashes})),
        ("khook", json!({"fullnameOverride": "b".repeat(55), "nameOverride": "c".repeat(58)})),
        ("1.khook", json!({"fullnameOverride": "khook"})),
    ] {
        let text =
            helm.template(release, &chart("khook"), "khook", &merged(all.clone(), &names), &[]).await?;
        let objects = objects::parse(&text)?;
        ensure!(!of(&objects, "Pod").is_empty(), "no test");
        dry_run(cluster, &objects).await.with_context(|| format!("release {release} with {names}"))?;
    }
    for release in ["1khook", "a.b"] {
        let refused = helm.template(release, &chart("khook"), "khook", &json!({}), &[]).await;
        let words = format!("{:#}", refused.err().with_context(|| format!("{release} is taken"))?);
        assert!(words.contains("set fullnameOverride"), "{words}");
    }
    Ok(())
}

#[tokio::test]
async fn openshift_chooses_users_and_has_its_own_dns() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let values = json!({"networkPolicy": {"enabled": true, "dnsPorts": [5353]}});
    let make = async |values: &Value| rendered(&helm, "khook", values).await.map(|(objects, _)| objects);
    let (there, default) = (make(&values).await?, make(&json!({"networkPolicy": {"enabled": true}})).await?);
    assert_eq!(of(&there, "Pod")[0]["spec"]["securityContext"]["runAsUser"], Value::Null);
    let ports = |objects: &[Value]| of(objects, "NetworkPolicy")[0]["spec"]["egress"][0]["ports"].clone();
    let both = |port: u16| json!([{"protocol": "UDP", "port": port}, {"protocol": "TCP", "port": port}]);
    assert_eq!((ports(&there), ports(&default)), (both(5353), both(53)));
    // A rule without ports would be about all of them.
    let without = make(&json!({"networkPolicy": {"enabled": true, "dnsPorts": []}})).await?;
    for rule in of(&without, "NetworkPolicy")[0]["spec"]["egress"].as_array().unwrap() {
        let ports = rule["ports"].as_array().filter(|ports| !ports.is_empty());
        assert!(ports.is_some_and(|ports| ports.iter().all(|port| port["port"].is_u64())), "{rule}");
        assert_ne!(rule["ports"], both(53));
    }
    Ok(())
}

/// The environment of khook in a rendering: the plain values, and the names of the others.
fn environment(objects: &[Value]) -> Result<(BTreeMap<String, String>, BTreeSet<String>)> {
    let [deployment] = of(objects, "Deployment")[..] else { bail!("not one Deployment") };
    let env = deployment.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array);
    let (mut plain, mut others) = (BTreeMap::new(), BTreeSet::new());
    for variable in env.context("no environment")? {
        let name = variable["name"].as_str().context("a variable without a name")?.to_owned();
        ensure!(!plain.contains_key(&name) && !others.contains(&name), "{name} is there twice");
        match variable["value"].as_str() {
            Some(value) => drop(plain.insert(name, value.to_owned())),
            None => drop(others.insert(name)),
        }
    }
    Ok((plain, others))
}

fn variable(long: &str) -> String {
    long.replace('-', "_").to_ascii_uppercase()
}

#[tokio::test]
async fn khook_takes_the_environment_it_is_given() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let command = Settings::command();
    let known: BTreeSet<String> =
        command.get_arguments().filter_map(|arg| arg.get_long()).map(variable).collect();
    let own: BTreeSet<String> = OWN.into_iter().map(variable).collect();
    let mut seen = BTreeSet::new();
    for (name, values) in matrix()? {
        let (objects, _) = rendered(&helm, "khook", &values).await?;
        let (plain, others) = environment(&objects)?;
        let settings: Vec<&str> =
            values["settings"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let extra = values["extraEnv"].to_string();
        for name in plain.keys().chain(&others).filter(|name| !extra.contains(name.as_str())) {
            let as_setting = settings.iter().any(|key| variable(&long_of(key)) == *name);
            ensure!(as_setting || own.contains(name), "{name} is missing in OWN");
            ensure!(known.contains(name), "khook has no setting {name}");
            seen.insert(name.clone());
        }
        // It must be there when khook starts, which it is in a pod.
        let read = |name: &str| (name != "KAGENT_API_KEY_FILE").then(|| plain.get(name)).flatten();
        let read = Settings::read([], |name| read(name).map(OsString::from));
        let settings = read.map_err(|error| anyhow::anyhow!("with {name} khook says: {error}"))?;
        if name == "default" {
            // The chart's defaults are khook's own, but for the form of the log and what only a pod knows.
            let (here, bare): (BTreeMap<_, _>, _) =
                (settings.effective().collect(), Settings::read([], |_| None)?);
            let mut bare: BTreeMap<_, _> = bare.effective().collect();
            bare.insert("LOG_FORMAT", "json");
            bare.extend(
                others.iter().map(|name| (name.as_str(), "")).filter(|(name, _)| here.contains_key(name)),
            );
            let same = |name: &str, a: &str, b: &str| match name {
                "REPEAT_INTERVAL" => a == b,
                _ => a.trim_end_matches('/') == b.trim_end_matches('/'),
            };
            for (name, value) in &here {
                let bare = bare.get(name).copied().unwrap_or_default();
                let traces = name.starts_with("OTEL_");
                ensure!(traces || same(name, value, bare), "{name}: the chart has {value}, khook {bare}");
            }
        }
    }
    let unseen: Vec<_> = own.difference(&seen).filter(|name| *name != "KAGENT_API_KEY").collect();
    ensure!(unseen.is_empty(), "in OWN, but no values set them: {unseen:?}");
    Ok(())
}

/// `staleAfter` of `stale-after`.
fn key_of(long: &str) -> String {
    let mut parts = long.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |key, part| key + &part[..1].to_ascii_uppercase() + &part[1..])
}

/// `stale-after` of `staleAfter`.
fn long_of(key: &str) -> String {
    key.chars().fold(String::new(), |mut long, letter| {
        if letter.is_ascii_uppercase() {
            long.push('-');
        }
        long.push(letter.to_ascii_lowercase());
        long
    })
}

/// What khook says a setting must be, where it is not any text.
fn allowed(long: &str) -> Option<String> {
    match Settings::read([OsString::from(format!("--{long}=?!"))], |_| None) {
        Err(config::Error::Value(sentence)) => {
            sentence.split_once("but must be ").map(|(_, words)| words.to_owned())
        }
        _ => None,
    }
}

/// The settings that `settings` takes, in khook's own order, each with its schema.
fn settings() -> Vec<(String, Value)> {
    let command = Settings::command();
    let others = command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| !is_own(long)));
    let setting = |arg: &clap::Arg| {
        let long = arg.get_long().unwrap();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.split(" [env:").next().unwrap_or_default();
        let words = allowed(long).unwrap_or_default();
        let range = words.split(" from ").nth(1).and_then(|rest| rest.split(',').next());
        let mut schema = match words.as_str() {
            "true or false" => json!({"type": "boolean"}),
            words if words.starts_with("a span") || words.starts_with("whole seconds") => {
                json!({"allOf": [{"$ref": "#/definitions/span"}]})
            }
            words if words.starts_with("a whole number") => json!({"type": "integer"}),
            words if words.starts_with("a number") => json!({"type": "number"}),
            _ => json!({"type": "string"}),
        };
        let ends = range.and_then(|range| range.split_once(" to "));
        if let Some((Ok(low), Ok(high))) = ends.map(|(low, high)| (low.parse::<u64>(), high.parse::<u64>())) {
            schema["minimum"] = json!(low);
            schema["maximum"] = json!(high);
        }
        let range = range.map(|range| format!(" ({range})")).unwrap_or_default();
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy());
        let default = default.map(|value| format!(" [default: {value}]")).unwrap_or_default();
        schema["description"] = json!(format!("{help}{range}{default}"));
        (key_of(long), schema)
    };
    others.map(setting).collect()
}

fn update() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// Compares a generated file with what is committed, or writes it.
fn generated(path: &Path, text: &str) -> Result<()> {
    if update() {
        fs::write(path, text)?;
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    let name = path.display();
    ensure!(
        committed == text,
        "{name} is not what it is made of: UPDATE_DOCS=1 cargo test -p e2e --test charts"
    );
    Ok(())
}

#[test]
fn the_settings_in_the_schema_are_those_khook_has() -> Result<()> {
    let path = chart("khook").join("values.schema.json");
    let mut schema = schema_of("khook")?;
    let settings: Map<String, Value> = settings().into_iter().collect();
    ensure!(settings.len() >= 35 && settings.contains_key("staleAfter"), "{} settings", settings.len());
    for key in settings.keys() {
        assert_eq!(key_of(&long_of(key)), *key);
    }
    schema["properties"]["settings"] =
        json!({"type": "object", "additionalProperties": false, "properties": settings});
    generated(&path, &(serde_json::to_string_pretty(&schema)? + "\n"))
}

#[test]
fn the_definition_in_the_chart_is_khooks() -> Result<()> {
    generated(&chart("khook-crds").join("files/hook.yaml"), &crd_yaml()?)
}

#[test]
fn the_charts_are_of_khooks_version() -> Result<()> {
    for name in CHARTS {
        let about = yaml(&chart(name).join("Chart.yaml"))?;
        assert_eq!(about["name"], name);
        assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
    }
    Ok(())
}

/// The comments `# --` of values.yaml, by path, in their order.
fn comments(text: &str) -> Result<Vec<(String, String)>> {
    let mut stack: Vec<(usize, String)> = Vec::new();
    let (mut found, mut words) = (Vec::new(), String::new());
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(first) = line.strip_prefix("# -- ") {
            ensure!(words.is_empty(), "a comment without its value: {words}");
            words = first.to_owned();
        } else if let (Some(more), false) = (line.strip_prefix("# "), words.is_empty()) {
            words = format!("{words} {more}");
        } else if let Some((key, _)) = line.split_once(':').filter(|(key, _)| !key.contains([' ', '-', '#']))
        {
            stack.retain(|(outer, _)| *outer < indent);
            stack.push((indent, key.to_owned()));
            if !words.is_empty() {
                let path: Vec<_> = stack.iter().map(|(_, key)| key.as_str()).collect();
                found.push((path.join("."), std::mem::take(&mut words)));
            }
        }
    }
    Ok(found)
}

#[test]
fn the_readmes_list_the_values() -> Result<()> {
    for name in CHARTS {
        let text = fs::read_to_string(chart(name).join("values.yaml"))?;
        let values = values_of(name)?;
        let comments = comments(&text)?;
        let mut found = Vec::new();
        leaves(&values, "", &mut found);
        for (leaf, _) in found {
            let has = |path: &str| leaf == path || leaf.starts_with(&format!("{path}."));
            ensure!(
                comments.iter().any(|(path, _)| has(path)),
                "{leaf} has no comment in values.yaml of {name}"
            );
        }
        let mut table = String::from("| value | default | |\n|---|---|---|\n");
        for (path, words) in &comments {
            let value = path.split('.').fold(&values, |value, key| &value[key]);
            ensure!(!value.is_null(), "{path} of values.yaml was not understood");
            table += &format!("| `{path}` | `{value}` | {} |\n", words.replace('|', "\\|"));
        }
        if name == "khook" {
            table += "\n## Settings\n\nWhat `settings` takes, beside what has a value of its own above.\n\n";
            table += "| setting | |\n|---|---|\n";
            for (key, schema) in settings() {
                let words = schema["description"].as_str().context("no description")?;
                table += &format!("| `{key}` | {} |\n", words.replace('|', "\\|").replace('*', "\\*"));
            }
        }
        let path = chart(name).join("README.md");
        let readme = fs::read_to_string(&path)?;
        let (head, _) = readme.split_once("## Values\n").context("a README has a heading Values")?;
        generated(&path, &format!("{head}## Values\n\n{table}"))?;
    }
    Ok(())
}

/// The Hook in the notes.
fn hook_of(notes: &str) -> Result<&str> {
    let (_, rest) = notes.split_once("<<'EOF'\n").context("no Hook in the notes")?;
    rest.split_once("\nEOF").map(|(hook, _)| hook).context("a Hook without an end")
}

#[tokio::test]
async fn the_hook_of_the_notes_applies_and_they_name_what_is_there() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let helm = Helm::new(Tool::Helm4).await?;
    for (name, values) in matrix()? {
        let (objects, notes) = rendered(&helm, "khook", &values).await?;
        if let Some(namespace) = values["watchNamespaces"][0].as_str() {
            cluster.create_namespace(namespace).await?;
        }
        let applied = cluster.apply(hook_of(&notes)?).await.with_context(|| format!("with {name}"))?;
        let hook: Api<Hook> = Api::namespaced(client.clone(), &applied[0].namespace().unwrap_or_default());
        let hook = hook.get(&applied[0].name_any()).await?;
        assert!(hook.spec.event_configurations[0].prompt.contains("{{.ResourceName}}"), "{notes}");
        assert!(!notes.contains("<no value>") && !notes.contains("%!"), "{notes}");
        let [deployment] = of(&objects, "Deployment")[..] else { bail!("not one Deployment") };
        let meta = |key: &str| deployment["metadata"][key].as_str().unwrap();
        let log = format!("kubectl logs deployment/{} --namespace {}\n", meta("name"), meta("namespace"));
        assert!((notes.clone() + "\n").contains(&log), "{notes}");
        let services = of(&objects, "Service");
        assert_eq!(notes.contains("port-forward"), !services.is_empty(), "{notes}");
        let gone = notes.contains("cleanupIntervalMinutes does nothing");
        assert_eq!(
            (gone, notes.contains("crds.install does nothing")),
            (name == "go", name == "go"),
            "{notes}"
        );
    }
    // They say which image it is, and whether it runs.
    let digest = format!("sha256:{}", "0".repeat(64));
    let image = json!({"image": {"tag": "v7", "digest": digest}});
    let (_, notes) = rendered(&helm, "khook", &image).await?;
    assert!(notes.starts_with(&format!("khook {digest} runs as Deployment khook")), "{notes}");
    let (_, notes) = rendered(&helm, "khook", &json!({"image": {"tag": "v7"}})).await?;
    assert!(notes.starts_with("khook v7 runs as") && !notes.contains("none runs"), "{notes}");
    let (_, notes) = rendered(&helm, "khook", &json!({"replicaCount": 0})).await?;
    assert!(!notes.contains(" runs as ") && notes.contains("none runs"), "{notes}");
    // With the definition there, nobody is told to install it.
    let there = "--dry-run=server";
    let with = helm.with(&cluster.kubeconfig());
    let said = with.run(["install", "khook", &folder("khook"), there]).await?;
    assert!(!said.contains("helm install khook-crds"), "{said}");
    Ok(())
}

#[tokio::test]
async fn its_pods_are_admitted_where_only_restricted_ones_are() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let namespace = cluster.fresh_namespace("restricted").await?;
    let label = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    cluster.apply(&label.to_string()).await?;
    let types = TypeMeta { api_version: "v1".into(), kind: "Pod".into() };
    let pods = objects::api(&client, &types, &namespace).await?;
    let create = async |metadata: &Value, spec: &Value| {
        let metadata = json!({"name": "a", "labels": metadata["labels"]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let pod: DynamicObject = serde_json::from_value(pod)?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        pods.create(&params, &pod).await.map(drop).map_err(objects::words)
    };
    let helm = Helm::new(Tool::Helm4).await?;
    for (name, mut values) in matrix()? {
        // It is in no cluster of its own.
        values.as_object_mut().unwrap().remove("priorityClassName");
        let (objects, _) = rendered(&helm, "khook", &values).await?;
        for object in &objects {
            let pod = match object["kind"].as_str() {
                Some("Deployment") => &object["spec"]["template"],
                Some("Pod") => object,
                _ => continue,
            };
            let answer = create(&pod["metadata"], &pod["spec"]).await;
            match values["hostNetwork"] == true {
                false => answer.with_context(|| format!("{} with {name}", object["kind"]))?,
                // The one thing that restricted pods may not have.
                true => {
                    let words = answer.expect_err("the node's network").to_string();
                    assert!(words.contains("hostNetwork") && !words.contains("runAsNonRoot"), "{words}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn rights_are_where_they_are_needed_and_nowhere_else() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let matrix = matrix()?;
    let make = async |name: &str| rendered(&helm, "khook", &matrix[name]).await.map(|(objects, _)| objects);
    let places = |objects: &[Value], kind: &str| -> BTreeSet<String> {
        let place = |object: &&Value| {
            let part = |key: &str| object["metadata"][key].as_str().unwrap_or("-");
            format!("{}/{}", part("namespace"), part("name"))
        };
        of(objects, kind).iter().map(place).collect()
    };
    let set = |list: &[&str]| list.iter().map(|&place| place.to_owned()).collect::<BTreeSet<_>>();

    let default = make("default").await?;
    assert_eq!(places(&default, "ClusterRole"), set(&["-/khook"]));
    assert_eq!(places(&default, "Role"), set(&["khook/khook-leader-election"]));

    let namespaced = make("namespaced").await?;
    assert_eq!(places(&namespaced, "ClusterRole"), set(&[]));
    assert_eq!(places(&namespaced, "ClusterRoleBinding"), set(&[]));
    let roles = set(&["shop/khook", "web/khook", "shop/khook-agent-secrets", "khook/khook-leader-election"]);
    assert_eq!(places(&namespaced, "Role"), roles);
    assert_eq!(places(&namespaced, "RoleBinding"), roles);
    let rules = |objects: &[Value], kind: &str| {
        let of_name = of(objects, kind).into_iter().find(|object| object["metadata"]["name"] == "khook");
        of_name.map(|object| object["rules"].clone())
    };
    assert_eq!(rules(&namespaced, "Role"), rules(&default, "ClusterRole"));

    let least = make("least").await?;
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount", "Service"] {
        assert_eq!(places(&least, kind), set(&[]), "{kind}");
    }

    let full = make("full").await?;
    assert_eq!(places(&full, "ClusterRole"), set(&["-/khook", "-/khook-view-hooks", "-/khook-edit-hooks"]));
    for object in [&default, &namespaced, &full].into_iter().flatten() {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{text}");
            let secrets = text.contains("secrets");
            assert!(
                !secrets || (rule["verbs"] == json!(["get"]) && rule["resourceNames"].is_array()),
                "{text}"
            );
        }
        for subject in object["subjects"].as_array().into_iter().flatten() {
            let account = [&default, &namespaced].iter().any(|objects| objects.contains(object));
            let (name, namespace) =
                if account { ("khook", "khook") } else { ("khook-operator", "khook-system") };
            assert_eq!((&subject["name"], &subject["namespace"]), (&json!(name), &json!(namespace)));
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_rest_of_what_is_made_is_as_the_values_say() -> Result<()> {
    let helm = Helm::new(Tool::Helm4).await?;
    let matrix = matrix()?;
    let make = async |name: &str| rendered(&helm, "khook", &matrix[name]).await.map(|(objects, _)| objects);
    let pod = |objects: &[Value]| of(objects, "Deployment")[0]["spec"]["template"]["spec"].clone();

    let mut snapshots = insta::Settings::clone_current();
    snapshots.set_snapshot_path("../../snapshots");
    snapshots.set_prepend_module_to_snapshot(false);
    snapshots.set_omit_expression(true);
    snapshots.add_filter(&format!(r"\b{}\b", env!("CARGO_PKG_VERSION").replace('.', r"\.")), "[version]");
    let text = helm.template("khook", &chart("khook"), "khook", &json!({}), &[]).await?;
    snapshots.bind(|| insta::assert_snapshot!("chart-khook", text));
    let full = make("full").await?;
    let policy = serde_yaml::to_string(&of(&full, "NetworkPolicy")[0]["spec"])?;
    snapshots.bind(|| insta::assert_snapshot!("chart-network-policy", policy));

    // The token is a file, and the folder is mounted: a file mounted by itself does not change with its Secret.
    let spec = pod(&full);
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!((mount["name"].as_str(), &mount["subPath"]), (Some("kagent-token"), &Value::Null));
    let file = environment(&full)?.0["KAGENT_API_KEY_FILE"].clone();
    assert_eq!(file, format!("{}/key", mount["mountPath"].as_str().unwrap()));
    assert_eq!(spec["volumes"][0]["secret"]["secretName"], "kagent");
    let least = make("least").await?;
    let source = &pod(&least)["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!((&source["audience"], &source["path"]), (&json!("kagent"), &json!("token")));
    assert!(environment(&least)?.0["KAGENT_API_KEY_FILE"].ends_with("/token"));
    assert_eq!(pod(&least)["serviceAccountName"], "default");
    let image = pod(&least)["containers"][0]["image"].as_str().unwrap().to_owned();
    assert!(image.starts_with("kagent-dev/khook/khook@sha256:"), "{image}");

    // Several replicas are spread and kept; one is not.
    let replicas = make("replicas").await?;
    assert_eq!(of(&replicas, "PodDisruptionBudget")[0]["spec"]["maxUnavailable"], 1);
    let spread = pod(&replicas)["topologySpreadConstraints"].clone();
    assert_eq!(spread.as_array().map(Vec::len), Some(2));
    let selector = &of(&replicas, "Deployment")[0]["spec"]["selector"];
    assert_eq!(&spread[0]["labelSelector"], selector);
    let default = make("default").await?;
    assert!(of(&default, "PodDisruptionBudget").is_empty());
    assert_eq!(pod(&default)["topologySpreadConstraints"], Value::Null);
    let full_spread = &pod(&full)["topologySpreadConstraints"];
    assert_eq!(&full_spread[0]["labelSelector"], selector, "a constraint without a selector gets khook's");

    // What has its own environment wins; numbers have no exponent; agents are JSON.
    let (env, _) = environment(&full)?;
    assert_eq!((env["LOG_LEVEL"].as_str(), env["MAX_BYTES"].as_str()), ("debug", "1048576"));
    let agents: Value = serde_json::from_str(&env["ALLOWED_AGENTS"])?;
    assert_eq!(agents, matrix["full"]["allowedAgents"]);
    let (env, _) = environment(&make("namespaced").await?)?;
    assert_eq!(env["WATCH_NAMESPACES"], "shop,web");

    // Names a release gives.
    for (release, name) in [("khook", "khook"), ("my-khook", "my-khook"), ("prod", "prod-khook")] {
        let text = helm.template(release, &chart("khook"), "a", &json!({}), &[]).await?;
        let objects = objects::parse(&text)?;
        assert_eq!(of(&objects, "Deployment")[0]["metadata"]["name"], name);
    }
    // As long as Helm takes them.
    let long = "a".repeat(53);
    let objects = objects::parse(&helm.template(&long, &chart("khook"), "a", &json!({}), &[]).await?)?;
    assert_eq!(of(&objects, "Service")[0]["metadata"]["name"], format!("{long}-k-metrics"));
    Ok(())
}

/// The Go khook's releases in a cluster, and a Hook that it wrote into.
async fn go_khook(helm: &Helm, client: &Client, values: &Value) -> Result<Hook> {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/go-charts");
    helm.upgrade("khook-crds", &charts.join("khook-crds"), "kagent", &json!({}), &[]).await?;
    helm.upgrade("khook", &charts.join("khook"), "kagent", values, &[]).await?;
    let hook = json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"eventConfigurations": [
            {"eventType": "oom-kill", "agentRef": {"name": "k8s-agent", "namespace": "kagent"}, "prompt": "Look."},
        ]},
    });
    objects::apply(client, "default", vec![hook]).await?;
    let hooks: Api<DynamicObject> = objects::api(
        client,
        &TypeMeta { api_version: "kagent.dev/v1alpha2".into(), kind: "Hook".into() },
        "default",
    )
    .await?;
    let status = json!({"status": {"lastUpdated": "2026-11-01T00:00:00Z", "activeEvents": [{
        "eventType": "oom-kill", "resourceName": "web-1", "status": "firing",
        "firstSeen": "2026-11-01T00:00:00Z", "lastSeen": "2026-11-01T00:00:00Z",
    }]}});
    hooks.patch_status("shop", &PatchParams::default(), &Patch::Merge(status)).await?;
    Api::<Hook>::namespaced(client.clone(), "default").get("shop").await.context("the Hook")
}

async fn migrate(before: Tool, after: Tool) -> Result<()> {
    let cluster = ControlPlane::start(Options::default()).await?;
    let client = cluster.client().await?;
    let go = matrix()?["go"].clone();
    let helm = Helm::new(before).await?.with(&cluster.kubeconfig());
    let hook = go_khook(&helm, &client, &go).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kagent");
    let old = deployments.get("khook").await?;

    let helm = Helm::new(after).await?.with(&cluster.kubeconfig());
    // Helm put the old definition there and knows nothing of it: somebody has to say that it is Helm's.
    let create = json!({"crds": {"createNamespace": true, "namespace": "hooks"}});
    let refused = helm.upgrade("khook-crds", &chart("khook-crds"), "kagent", &create, &[]).await;
    let words = format!("{:#}", refused.expect_err("a definition that is not Helm's"));
    assert!(words.contains("hooks.kagent.dev") && words.contains("annotation"), "{words}");
    helm.upgrade("khook-crds", &chart("khook-crds"), "kagent", &create, &["--take-ownership"]).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = crds.get("hooks.kagent.dev").await?;
    assert_eq!(crd.spec.names.short_names, Some(vec!["hk".to_owned()]), "the definition is the old one");
    assert_eq!(crd.annotations().get("helm.sh/resource-policy").map(String::as_str), Some("keep"));
    let expected: CustomResourceDefinition = serde_yaml::from_str(&crd_yaml()?)?;
    assert_eq!(crd.spec.versions[0].schema, expected.spec.versions[0].schema);

    // The defaults of the old chart have nothing of the new one's.
    let refused =
        helm.run(["upgrade", "khook", &folder("khook"), "--namespace=kagent", "--reuse-values"]).await;
    let words = format!("{:#}", refused.expect_err("values without those that are new"));
    assert!(words.contains("missing propert") && words.contains("networkPolicy"), "{words}");
    // In place, with the values as they were.
    let said = helm.upgrade("khook", &chart("khook"), "kagent", &go, &[]).await?;
    assert!(said.contains("cleanupIntervalMinutes does nothing"), "{said}");
    let new = deployments.get("khook").await?;
    assert_eq!(new.uid(), old.uid(), "the Deployment was made anew");
    let template = |deployment: &Deployment| deployment.spec.clone().unwrap().template.spec.unwrap();
    let manager = &template(&new).containers[0];
    assert_eq!((&manager.command, &manager.args), (&None, &None), "what the Go khook was started with stays");
    assert_eq!(template(&new).volumes.unwrap_or_default(), Vec::new());
    let env = |name: &str| {
        let all = manager.env.iter().flatten().find(|variable| variable.name == name);
        all.and_then(|variable| variable.value.clone())
    };
    assert_eq!(env("KAGENT_API_TIMEOUT").as_deref(), Some("30s"));
    assert_eq!(env("LOG_LEVEL").as_deref(), Some("info"));
    assert_eq!(env("KAGENT_API_URL"), None, "a variable of the Go khook's stays");
    for (kind, api_version, name) in [
        ("ConfigMap", "v1", "khook-config"),
        ("ClusterRole", "rbac.authorization.k8s.io/v1", "khook-manager-role"),
    ] {
        let types = TypeMeta { api_version: api_version.into(), kind: kind.into() };
        let gone = objects::api(&client, &types, "kagent").await?.get_opt(name).await?;
        assert!(gone.is_none(), "{kind} {name} is still there");
    }

    let hooks: Api<Hook> = Api::namespaced(client.clone(), "default");
    let kept = async |when: &str| -> Result<()> {
        let now = hooks.get("shop").await.with_context(|| format!("the Hook is gone after {when}"))?;
        assert_eq!(now.uid(), hook.uid(), "after {when}");
        let text = |hook: &Hook| serde_json::to_value((&hook.spec, &hook.status));
        assert_eq!(text(&now)?, text(&hook)?, "after {when}");
        let namespace = Api::<Namespace>::all(client.clone()).get("hooks").await?;
        ensure!(namespace.metadata.deletion_timestamp.is_none(), "the namespace goes after {when}");
        Ok(())
    };
    kept("the upgrade").await?;

    // A second time nothing is to be said.
    helm.upgrade("khook-crds", &chart("khook-crds"), "kagent", &json!({"labels": {"a": "b"}}), &[]).await?;
    assert_eq!(crds.get("hooks.kagent.dev").await?.labels().get("a").map(String::as_str), Some("b"));
    helm.uninstall("khook", "kagent", &[]).await?;
    assert!(deployments.get_opt("khook").await?.is_none());
    helm.uninstall("khook-crds", "kagent", &[]).await?;
    kept("uninstalling both").await?;
    // What was left is taken up again by a release of the same name.
    helm.upgrade("khook-crds", &chart("khook-crds"), "kagent", &json!({}), &[]).await?;
    kept("installing again").await
}

#[tokio::test]
async fn the_go_khook_is_upgraded_in_place_by_helm_3() -> Result<()> {
    migrate(Tool::Helm3, Tool::Helm3).await
}

#[tokio::test]
async fn the_go_khook_is_upgraded_in_place_by_helm_4() -> Result<()> {
    migrate(Tool::Helm3, Tool::Helm4).await
}
