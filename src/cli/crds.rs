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
