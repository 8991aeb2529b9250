//! A scenario is one kind of trouble, or of harmless life, as data: what is applied, what is then done
//! to it, and exactly which calls to the agent that must cause. The files are in `scenarios/`; the
//! first document of each is the scenario itself, the others are objects of Kubernetes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use khook::hook::{EventType, parse_duration};
use kube::core::TypeMeta;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::objects;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The name of its file.
    pub name: String,
    /// What it is.
    pub head: Head,
    /// What is applied.
    pub objects: Vec<Value>,
}

/// What a scenario says about itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// One sentence.
    pub about: String,
    /// The calls it must cause, no more and no fewer; none for what is harmless.
    #[serde(default)]
    pub calls: BTreeMap<EventType, usize>,
    /// Into how many sessions, where that matters.
    pub sessions: Option<usize>,
    /// More fields for each configuration of its Hook.
    #[serde(default)]
    pub hook: serde_json::Map<String, Value>,
    /// What is done once its objects are there, one after another.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// How long after the last step its calls may take to come.
    #[serde(default = "within", deserialize_with = "span")]
    pub within: Duration,
    /// How long after that nothing more may come.
    #[serde(default = "quiet", deserialize_with = "span")]
    pub quiet: Duration,
    /// Only where the node is ours: it changes the node, or depends on how it is set up.
    #[serde(default)]
    pub local: bool,
    /// Not beside others: it would disturb them.
    #[serde(default)]
    pub alone: bool,
}

/// Something done to a scenario's objects.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Step {
    /// Waits until an object has a value at a place.
    Until {
        /// The object.
        object: Reference,
        /// The place, as a JSON pointer.
        path: String,
        /// The value; null for an object that is gone.
        is: Value,
    },
    /// Waits until this many calls have come.
    Calls(usize),
    /// Lets time pass.
    Wait(#[serde(deserialize_with = "span")] Duration),
    /// Applies more objects.
    Apply(Vec<Value>),
    /// Deletes the replica of khook that leads, and waits until another does.
    DeleteLeader,
    /// Applies a strategic merge patch.
    Patch {
        /// The object.
        object: Reference,
        /// The patch.
        with: Value,
    },
    /// Deletes an object.
    Delete {
        /// The object.
        object: Reference,
        /// The grace period in seconds, where it is not the object's own.
        grace: Option<u32>,
    },
    /// Evicts all pods with this label, as a drain does.
    Evict(String),
}

/// An object by kind and name, as `pod/web`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Reference {
    /// Its apiVersion and kind.
    pub types: TypeMeta,
    /// Its name.
    pub name: String,
}

impl Scenario {
    /// Reads all scenarios, in the order of their names.
    pub fn all() -> Result<Vec<Self>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut scenarios = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("reading {folder}"))? {
            let path = entry.context("reading the folder of scenarios")?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                scenarios.push(Self::read(&path).with_context(|| format!("reading {}", path.display()))?);
            }
        }
        scenarios.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scenarios)
    }

    fn read(path: &Path) -> Result<Self> {
        let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
        let mut documents = objects::parse(&fs::read_to_string(path)?)?;
        ensure!(!documents.is_empty(), "nothing is in it");
        let head = serde_json::from_value(documents.remove(0)).context("its first document")?;
        Ok(Self { name, head, objects: documents })
    }

    /// Whether it must cause no call.
    pub fn harmless(&self) -> bool {
        self.head.calls.values().sum::<usize>() == 0
    }
}

impl TryFrom<String> for Reference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').ok_or("an object is written KIND/NAME")?;
        let (api_version, kind) = match kind {
            "pod" => ("v1", "Pod"),
            "node" => ("v1", "Node"),
            "configmap" => ("v1", "ConfigMap"),
            "deployment" => ("apps/v1", "Deployment"),
            "statefulset" => ("apps/v1", "StatefulSet"),
            "job" => ("batch/v1", "Job"),
            "hook" => ("kagent.dev/v1alpha2", "Hook"),
            other => return Err(format!("no scenario has used a {other} so far: add it to the list")),
        };
        let types = TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() };
        Ok(Self { types, name: name.to_owned() })
    }
}

fn within() -> Duration {
    Duration::from_secs(75)
}

fn quiet() -> Duration {
    Duration::from_secs(10)
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(|form| serde::de::Error::custom(format!("{text:?} is not {form}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_can_be_read_and_covers_every_kind_of_trouble() -> Result<()> {
        let all = Scenario::all()?;
        for scenario in &all {
            assert!(!scenario.objects.is_empty(), "{} applies nothing", scenario.name);
        }
        for event_type in EventType::ALL {
            assert!(all.iter().any(|scenario| scenario.head.calls.contains_key(&event_type)), "{event_type}");
        }
        assert!(all.iter().any(Scenario::harmless));
        Ok(())
    }
}
