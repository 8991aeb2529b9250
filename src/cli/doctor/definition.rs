//! The definition of Hooks in the cluster, compared with the one this program knows.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use serde_json::Value;

use super::{Check, Cluster};
use crate::hook::crd;

const NAME: &str = "hooks.kagent.dev";
const APPLY: &str =
    "khook crds | kubectl apply --server-side --force-conflicts -f -, or upgrade the chart khook-crds";

/// Looks at it.
pub async fn check(cluster: &Cluster) -> Check {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    match api.get_opt(NAME).await {
        Ok(Some(theirs)) => judge(&theirs),
        Ok(None) => {
            Check::failed("definition", format!("the CustomResourceDefinition {NAME} is missing"), APPLY)
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            // Whether there is one can be told even so.
            match cluster.list_hooks(true).await {
                Ok(_) => Check::unknown(
                    "definition",
                    "Hooks are known; you may not get customresourcedefinitions, so whether the definition is of this version is not",
                ),
                Err(error) => Check::unknown("definition", error.to_string()),
            }
        }
        Err(error) => Check::unknown("definition", format!("{NAME} cannot be read: {error}")),
    }
}

fn judge(theirs: &CustomResourceDefinition) -> Check {
    let conditions =
        theirs.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let established = conditions.iter().find(|condition| condition.type_ == "Established");
    if established.is_none_or(|condition| condition.status != "True") {
        let why = established.and_then(|condition| condition.message.clone()).unwrap_or_default();
        return Check::failed(
            "definition",
            format!("{NAME} is not served yet {why}"),
            "see `kubectl describe crd hooks.kagent.dev`",
        );
    }
    let (ours, theirs) = (schema(&crd()), schema(theirs));
    let (mut missing, mut other) = (Vec::new(), Vec::new());
    compare("", &ours, &theirs, &mut missing, &mut other);
    let some = |paths: &[String]| {
        let more = if paths.len() > 3 { format!(" and {} more", paths.len() - 3) } else { String::new() };
        format!("{}{more}", paths[..paths.len().min(3)].join(", "))
    };
    if !missing.is_empty() {
        let message = format!(
            "{NAME} is older than this khook, or another's: it lacks {}, which the apiserver would drop",
            some(&missing)
        );
        return Check::failed("definition", message, APPLY);
    }
    match other.is_empty() {
        true => Check::ok("definition", format!("{NAME} is that of khook {}", env!("CARGO_PKG_VERSION"))),
        false => Check::warning(
            "definition",
            format!("{NAME} is not that of khook {}: {}", env!("CARGO_PKG_VERSION"), some(&other)),
            APPLY,
        ),
    }
}

/// The schema of the version khook uses.
fn schema(crd: &CustomResourceDefinition) -> Value {
    let version = crd.spec.versions.iter().find(|version| version.name == "v1alpha2");
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.clone());
    serde_json::to_value(schema).unwrap_or_default()
}

/// Fields that are missing there, and what else differs; words do not count.
fn compare(path: &str, ours: &Value, theirs: &Value, missing: &mut Vec<String>, other: &mut Vec<String>) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object()) else {
        if ours != theirs {
            other.push(path.trim_start_matches('.').to_owned());
        }
        return;
    };
    let mut keys: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (our, their) = (ours.get(key), theirs.get(key));
        match (key.as_str(), our, their) {
            ("description", _, _) => {}
            ("properties", our, their) => {
                let none = Value::Object(Default::default());
                fields(path, our.unwrap_or(&none), their.unwrap_or(&none), missing, other);
            }
            ("items", Some(our), Some(their)) => compare(&format!("{path}[]"), our, their, missing, other),
            (_, our, their) if our == their => {}
            (key, _, _) => other.push(format!("{} of {}", key, path.trim_start_matches('.'))),
        }
    }
}

fn fields(path: &str, ours: &Value, theirs: &Value, missing: &mut Vec<String>, other: &mut Vec<String>) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object()) else { return };
    for (name, our) in ours {
        let place = format!("{path}.{name}");
        match theirs.get(name) {
            Some(their) => compare(&place, our, their, missing, other),
            None => missing.push(place.trim_start_matches('.').to_owned()),
        }
    }
    for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
        other.push(format!("it also has {}", format!("{path}.{name}").trim_start_matches('.')));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(change: impl FnOnce(&mut Value)) -> (Vec<String>, Vec<String>) {
        let ours = schema(&crd());
        let mut theirs = ours.clone();
        change(&mut theirs);
        let (mut missing, mut other) = (Vec::new(), Vec::new());
        compare("", &ours, &theirs, &mut missing, &mut other);
        (missing, other)
    }

    #[test]
    fn a_field_that_is_missing_a_rule_that_differs_and_a_field_too_many_are_told_apart() {
        assert_eq!(differences(|_| ()), (vec![], vec![]));
        let (missing, other) = differences(|theirs| {
            let status = &mut theirs["properties"]["status"]["properties"];
            status["activeEvents"]["items"]["properties"].as_object_mut().unwrap().remove("answeredAt");
            status["extra"] = serde_json::json!({"type": "string"});
            theirs["properties"]["spec"]["description"] = "other words".into();
            theirs["properties"]["spec"]["properties"]["eventConfigurations"]["maxItems"] = 7.into();
        });
        assert_eq!(missing, ["status.activeEvents[].answeredAt"]);
        assert_eq!(other, ["maxItems of spec.eventConfigurations", "it also has status.extra"]);
    }
}
