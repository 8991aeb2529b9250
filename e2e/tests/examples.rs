//! What people copy is right: every YAML of `examples/`, of the README, of `docs/` and of the charts' READMEs is
//! what a real apiserver takes, every prompt in it a template without a problem, and every values file one that
//! the chart renders.
//!
//! A block of YAML in a Markdown file is objects, or its info string says what else it is:
//!
//! | info string | what it is, and what is done with it |
//! |---|---|
//! | `yaml` | objects: applied |
//! | `yaml hook` | what stands in a Hook below its metadata: made a Hook, and applied |
//! | `yaml values` | values of the chart khook: rendered with it, to another end than without |
//! | `yaml fragment` | a part of something: read |
//!
//! In `examples/` a file called `values….yaml` is values, and all others are objects.

#![allow(missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use e2e::{
    assets::Tool,
    crds,
    helm::{Helm, chart},
    markdown::{Page, files, root},
    objects,
    process::Scratch,
    world::World,
};
use khook::{
    hook::{EventType, Hook},
    incident::{
        policy::Policy,
        prompt::{EventContext, render},
        rules::Rules,
    },
};
use kube::{
    api::{DynamicObject, Patch, PatchParams},
    core::TypeMeta,
};
use serde_json::{Value, json};

/// A piece of YAML, and what it is.
#[derive(Clone, Debug)]
struct Sample {
    /// Where it stands.
    place: String,
    yaml: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Objects,
    Hook,
    Values,
    Fragment,
}

/// What a block of YAML is, by its info string; none for other code.
fn kind(info: &str) -> Result<Option<Kind>> {
    Ok(Some(match info.split_once(' ').unwrap_or((info, "")) {
        ("yaml", "") => Kind::Objects,
        ("yaml", "hook") => Kind::Hook,
        ("yaml", "values") => Kind::Values,
        ("yaml", "fragment") => Kind::Fragment,
        ("yaml" | "yml", other) => bail!("{other:?} is no kind of YAML here"),
        _ => return Ok(None),
    }))
}

fn samples() -> Result<Vec<Sample>> {
    let root = root();
    let name = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    let mut samples = Vec::new();
    for path in files(&root.join("examples"), "yaml")? {
        let is_values = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("values"));
        let kind = if is_values { Kind::Values } else { Kind::Objects };
        samples.push(Sample { place: name(&path), yaml: fs::read_to_string(&path)?, kind });
    }
    for page in Page::all()? {
        for block in page.blocks {
            let place = format!("{}:{}", page.name.display(), block.line);
            if let Some(kind) = kind(&block.info).with_context(|| place.clone())? {
                samples.push(Sample { place, yaml: block.text, kind });
            }
        }
    }
    Ok(samples)
}

/// The objects as the apiserver is sent them: Hooks are kept, all else is tried.
async fn apply(world: &World, sample: &Sample) -> Result<Vec<Value>> {
    let mut parsed = objects::parse(&sample.yaml)?;
    if sample.kind == Kind::Hook {
        for object in &mut parsed {
            let rest = object.as_object_mut().context("no mapping")?;
            rest.insert("apiVersion".into(), json!("kagent.dev/v1alpha2"));
            rest.insert("kind".into(), json!("Hook"));
            rest.insert("metadata".into(), json!({"name": "sample"}));
        }
    }
    ensure!(!parsed.is_empty(), "there is nothing in it");
    let fresh = world.control_plane.fresh_namespace("sample").await?;
    for object in &parsed {
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            world.control_plane.create_namespace(namespace).await?;
        }
    }
    for value in &parsed {
        let object: DynamicObject = serde_json::from_value(value.clone()).context("it is no object")?;
        let types: TypeMeta = object.types.clone().context("an object without apiVersion and kind")?;
        let name = object.metadata.name.clone().context("an object without a name")?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or(&fresh);
        let api = objects::api(&world.client, &types, namespace).await?;
        let mut params = PatchParams::apply("e2e").force().validation_strict();
        params.dry_run = types.kind != "Hook";
        let sent = api.patch(&name, &params, &Patch::Apply(&object)).await;
        sent.map_err(objects::words).with_context(|| format!("{} {name}", types.kind))?;
    }
    Ok(parsed)
}

/// What khook itself has to say about a Hook, beyond the apiserver.
fn check(hook: &Value) -> Result<()> {
    let hook: Hook = serde_json::from_value(hook.clone())?;
    let direct_agents = "*".parse().map_err(anyhow::Error::msg)?;
    let rules = Rules::parse(&hook.spec, "shop", &Policy { direct_agents, ..Policy::default() });
    ensure!(rules.problems.is_empty(), "{:?}", rules.problems);
    let count = hook.spec.event_configurations.len();
    ensure!(rules.configurations.len() == count, "{} of {count} rules", rules.configurations.len());
    for rule in &rules.configurations {
        // Whose container restarted or was killed is known; of a pod that does not start it need not be.
        let unnamed = matches!(rule.event_type, EventType::PodPending | EventType::ProbeFailed);
        let other = if unnamed { "" } else { "app" };
        for (reason, container, count) in [("BackOff", "app", 7), ("ErrImagePull", other, 1)] {
            let context = EventContext {
                hook_name: "sample".into(),
                hook_namespace: "shop".into(),
                event_type: rule.event_type.to_string(),
                resource_name: "web-0".into(),
                namespace: "shop".into(),
                event_name: "web-0.1".into(),
                event_time: Utc::now(),
                message: "Back-off restarting failed container".into(),
                reason: reason.into(),
                container: container.into(),
                count,
                first_seen: Utc::now(),
                uid: "1".into(),
                test: false,
            };
            let rendered = render(&rule.prompt, &context);
            ensure!(rendered.problems.is_empty(), "{:?}", rendered.problems);
            ensure!(!rendered.text.contains("{{") && !rendered.text.contains("  of "), "{}", rendered.text);
        }
    }
    Ok(())
}

/// Renders the chart, with these values.
async fn rendered(helm: &Helm, values: Option<&Path>) -> Result<String> {
    let mut args: Vec<PathBuf> = vec!["template".into(), "khook".into(), chart("khook")];
    args.extend(values.into_iter().flat_map(|file| ["--values".into(), file.to_owned()]));
    helm.run(args).await
}

#[tokio::test]
async fn everything_that_people_copy_is_taken() -> Result<()> {
    let world = World::new("examples").await?;
    for crd in tokio::task::spawn_blocking(crds::gitops).await?? {
        world.control_plane.apply(&crd).await?;
    }
    let helm = Helm::new(Tool::Helm4).await?;
    let (folder, plain) = (Scratch::new()?, rendered(&helm, None).await?);
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for sample in samples()? {
        *counts.entry(sample.kind).or_default() += 1;
        let done = match sample.kind {
            Kind::Objects | Kind::Hook => match apply(&world, &sample).await {
                Ok(objects) => objects.iter().filter(|object| object["kind"] == "Hook").try_for_each(check),
                Err(error) => Err(error),
            },
            Kind::Values => {
                let file = folder.path().join("values.yaml");
                fs::write(&file, &sample.yaml)?;
                match rendered(&helm, Some(&file)).await {
                    Ok(made) if made == plain => Err(anyhow::anyhow!("these values do nothing")),
                    made => made.map(drop),
                }
            }
            Kind::Fragment => objects::parse(&sample.yaml).map(drop),
        };
        if let Err(error) = done {
            wrong.push(format!("{}: {error:#}", sample.place));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // So many at least: a search that finds nothing finds no fault.
    for (kind, least) in [(Kind::Objects, 15), (Kind::Hook, 1), (Kind::Values, 3), (Kind::Fragment, 1)] {
        ensure!(counts.get(&kind).is_some_and(|count| *count >= least), "{kind:?}: {counts:?}");
    }
    Ok(())
}

#[test]
fn a_block_of_yaml_is_never_passed_over() -> Result<()> {
    assert_eq!(kind("yaml")?, Some(Kind::Objects));
    assert_eq!(kind("yaml values")?, Some(Kind::Values));
    assert_eq!(kind("text")?, None);
    ensure!(kind("yaml valeus").is_err() && kind("yml").is_err(), "an unknown kind is taken");
    Ok(())
}
