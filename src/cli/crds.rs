//! `khook crds` prints the CustomResourceDefinition of Hooks as YAML, for `kubectl apply -f -`.

use std::process::ExitCode;

/// Prints it to standard output.
pub fn main() -> ExitCode {
    match yaml() {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the CustomResourceDefinition cannot be written as YAML: {error}");
            ExitCode::FAILURE
        }
    }
}

fn yaml() -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(&crate::hook::crd())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{hook::Reason, incident::outcome::EndState};

    #[test]
    fn the_committed_file_is_what_is_printed() {
        let committed = include_str!("../../crds/hook.yaml");
        assert!(committed == yaml().unwrap(), "crds/hook.yaml is not what the code says: run `just crds`");
    }

    #[test]
    fn no_field_has_a_default() {
        let mut lines = Vec::new();
        outline("", &schema(), &mut lines);
        assert!(lines.len() > 50, "the schema was not found");
        assert!(!lines.iter().any(|line| line.contains("default=")), "{lines:#?}");
    }

    #[test]
    fn the_status_refuses_nothing_but_an_unknown_phase() {
        let mut lines = Vec::new();
        outline("status", &schema()["properties"]["status"], &mut lines);
        let bounded: Vec<&String> = lines.iter().filter(|line| line.contains(['=', '{'])).collect();
        let phase = r#"status.activeEvents[].status: string enum=["pending","firing","notified","resolved"]"#;
        assert_eq!(bounded, [phase]);
    }

    #[test]
    fn what_a_hook_may_be() {
        let mut lines = Vec::new();
        outline("spec", &schema()["properties"]["spec"], &mut lines);
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("crd-spec", lines.join("\n")));
    }

    fn schema() -> Value {
        let crd = serde_json::to_value(crate::hook::crd()).unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    #[test]
    fn the_reference_is_what_the_schema_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api-reference.md");
        let page = reference();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == page,
            "docs/api-reference.md is not what the schema says: run with UPDATE_DOCS=1"
        );
    }

    #[test]
    fn every_reason_and_outcome_of_an_incident_is_explained() {
        let explained = |page: &str, schema: schemars::Schema| {
            let schema = schema.to_value();
            let words: Vec<&str> = schema["oneOf"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|variant| variant["const"].as_str())
                .filter(|word| *word != "Other")
                .collect();
            assert!(words.len() > 8, "{schema:#}");
            let missing: Vec<_> = words.iter().filter(|word| !page.contains(&format!("`{word}`"))).collect();
            assert!(missing.is_empty(), "{missing:?} is not explained");
        };
        explained(include_str!("../../docs/troubleshooting.md"), schemars::schema_for!(Reason));
        explained(include_str!("../../docs/kagent-integration.md"), schemars::schema_for!(EndState));
    }

    // docs/api-reference.md.
    fn reference() -> String {
        let crd = serde_json::to_value(crate::hook::crd()).unwrap();
        let (names, version) = (&crd["spec"]["names"], &crd["spec"]["versions"][0]);
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut page = format!(
            "# API reference\n\n\
             `{kind}` in `{group}/{version}`, namespaced; `kubectl get {short}` and `kubectl get {plural}`, and among \
             `kubectl get {category}`. {doc} Printed from the schema by a test; [prompts.md](prompts.md) says what a \
             prompt can say, [trouble.md](trouble.md) what the kinds of trouble are, [agents.md](agents.md) which \
             agents can be asked.\n\n\
             No field has a default in the schema: what is left out stays left out, and Git and the cluster show no \
             difference. What khook does then is said here. A span of time is written as `90s`, `5m` or `1h30m`.\n",
            kind = word(&names["kind"]),
            group = word(&crd["spec"]["group"]),
            version = word(&version["name"]),
            short = word(&names["shortNames"][0]),
            plural = word(&names["plural"]),
            category = word(&names["categories"][0]),
            doc = word(&schema()["description"]),
        );
        for part in ["spec", "status"] {
            objects(part, &schema()["properties"][part], &mut page);
        }
        page.push_str("\n## Columns\n\nOf `kubectl get hooks`; with `-o wide` all of them.\n\n");
        page.push_str("| column | | |\n|---|---|---|\n");
        for column in version["additionalPrinterColumns"].as_array().unwrap() {
            let wide = if column["priority"] == 1 { "wide" } else { "" };
            let what = word(&column["description"]);
            page.push_str(&format!("| {} | {what} | {wide} |\n", word(&column["name"])));
        }
        page
    }

    // A heading and a table for an object, then those of the objects in it.
    fn objects(path: &str, schema: &Value, page: &mut String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        let rules = |schema: &Value| -> Vec<String> {
            let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
            rules.map(|rule| format!("“{}”", text(&rule["message"]))).collect()
        };
        let in_status = path.starts_with("status");
        page.push_str(&format!("\n## {path}\n\n{}\n", text(&schema["description"])));
        for rule in rules(schema) {
            page.push_str(&format!("\nOtherwise it is refused: {rule}\n"));
        }
        page.push_str(match in_status {
            true => "\n| field | type | |\n|---|---|---|\n",
            false => "\n| field | type | required | | bounds, and the words of a refusal |\n|---|---|---|---|---|\n",
        });
        let mut inner = Vec::new();
        for (name, field) in schema["properties"].as_object().unwrap() {
            let (item, path) = match field["items"].is_object() {
                true => (&field["items"], format!("{path}.{name}[]")),
                false => (field, format!("{path}.{name}")),
            };
            let mut type_ = text(item["format"].as_str().map_or(&item["type"], |format| match format {
                "date-time" => &item["format"],
                _ => &item["type"],
            }));
            if item["properties"].is_object() {
                let anchor: String = path.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
                type_ = format!("[object](#{anchor})");
                inner.push((path, item));
            }
            if field["items"].is_object() {
                type_.push_str(", list");
            }
            let what = text(&field["description"]);
            let bounds = bounds(field).into_iter().chain(rules(field)).collect::<Vec<_>>().join("; ");
            page.push_str(&match in_status {
                true if bounds.is_empty() => format!("| `{name}` | {type_} | {what} |\n"),
                true => format!("| `{name}` | {type_} | {what} ({bounds}) |\n"),
                false => {
                    let required = schema["required"].as_array().into_iter().flatten();
                    let required = if required.into_iter().any(|own| own == name) { "yes" } else { "" };
                    format!("| `{name}` | {type_} | {required} | {what} | {bounds} |\n")
                }
            });
        }
        for (path, item) in inner {
            objects(&path, item, page);
        }
    }

    // What a field may be, in words.
    fn bounds(field: &Value) -> Vec<String> {
        let mut bounds = Vec::new();
        if let Some(words) = field["enum"].as_array() {
            let words: Vec<String> =
                words.iter().map(|word| format!("`{}`", word.as_str().unwrap())).collect();
            bounds.push(words.join(", "));
        }
        for (least, most, what) in
            [("minLength", "maxLength", "characters"), ("minItems", "maxItems", "entries")]
        {
            bounds.extend(match (field[least].as_u64(), field[most].as_u64()) {
                (Some(least), Some(most)) => Some(format!("{least} to {most} {what}")),
                (None, Some(most)) => Some(format!("at most {most} {what}")),
                (Some(least), None) => Some(format!("at least {least} {what}")),
                (None, None) => None,
            });
        }
        bounds
    }

    // A schema field by field: type, bounds, and each rule with the words of its refusal.
    fn outline(path: &str, schema: &Value, lines: &mut Vec<String>) {
        let mut line = format!("{path}: {}", schema["type"].as_str().unwrap_or("?"));
        for (key, value) in schema.as_object().unwrap() {
            match key.as_str() {
                "type" | "description" | "format" | "properties" | "items" | "x-kubernetes-validations" => {}
                _ => line.push_str(&format!(" {key}={value}")),
            }
        }
        lines.push(line);
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
            lines.push(format!("  {{ {} }} else {:?}", text("rule"), text("message")));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            outline(&format!("{path}.{name}"), property, lines);
        }
        if schema["items"].is_object() {
            outline(&format!("{path}[]"), &schema["items"], lines);
        }
    }
}
