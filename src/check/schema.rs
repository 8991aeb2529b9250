//! The schema is what the apiserver takes for a Hook: types, bounds, what is required, and the rules in CEL.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};

use super::{
    Finding, Severity,
    cel::Rule,
    suggestion,
    yaml::{Entry, Node, Place, Value},
};
use crate::hook;

/// What the apiserver takes for a Hook.
pub struct Schema {
    root: JSONSchemaProps,
    rules: BTreeMap<String, Result<Rule, String>>,
}

impl Schema {
    /// That of the Hooks of this khook.
    pub fn of_hooks() -> Self {
        let versions = hook::crd().spec.versions;
        let schema = versions.into_iter().find_map(|version| version.schema?.open_api_v3_schema);
        let root = schema.unwrap_or_default();
        let mut rules = BTreeMap::new();
        compile(&root, &mut rules);
        Self { root, rules }
    }

    /// What the apiserver would refuse in a part of a Hook, `spec` or `status`.
    pub fn judge(&self, part: &Entry) -> Vec<Finding> {
        let mut walk = Walk { rules: &self.rules, findings: Vec::new() };
        if let Some(schema) = self.root.properties.as_ref().and_then(|all| all.get(&part.name)) {
            walk.node(&part.node, schema, &part.name);
        }
        walk.findings
    }
}

fn compile(schema: &JSONSchemaProps, rules: &mut BTreeMap<String, Result<Rule, String>>) {
    for ValidationRule { rule, .. } in schema.x_kubernetes_validations.iter().flatten() {
        rules.entry(rule.clone()).or_insert_with(|| Rule::compile(rule));
    }
    for property in schema.properties.iter().flat_map(|all| all.values()) {
        compile(property, rules);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        compile(items, rules);
    }
}

struct Walk<'a> {
    rules: &'a BTreeMap<String, Result<Rule, String>>,
    findings: Vec<Finding>,
}

impl Walk<'_> {
    fn find(&mut self, at: Place, path: &str, reason: &'static str, message: String) {
        self.findings.push(Finding { at, path: path.to_owned(), severity: Severity::Error, reason, message });
    }

    fn node(&mut self, node: &Node, schema: &JSONSchemaProps, path: &str) {
        let before = self.findings.len();
        let wanted = schema.type_.as_deref().unwrap_or_default();
        if !is_a(&node.value, wanted) {
            let is = kind(&node.value);
            let advice = match (wanted, &node.value) {
                ("string", Value::Bool(_) | Value::Number(_)) => ": put it in quotes",
                _ => "",
            };
            return self.find(
                node.at,
                path,
                "FieldValueTypeInvalid",
                format!("must be {}, but is {is}{advice}", article(wanted)),
            );
        }
        match &node.value {
            Value::Map(entries) => self.map(node, entries, schema, path),
            Value::List(items) => {
                self.bounds(node, path, items.len(), "items", schema.min_items, schema.max_items);
                // What is far too much is not looked at one by one.
                let most = schema.max_items.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
                if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
                    for (index, item) in items.iter().take(most).enumerate() {
                        self.node(item, schema, &format!("{path}[{index}]"));
                    }
                }
            }
            Value::Text(text) => {
                let length = text.chars().count();
                self.bounds(node, path, length, "characters", schema.min_length, schema.max_length);
                let allowed: Vec<&str> =
                    schema.enum_.iter().flatten().filter_map(|value| value.0.as_str()).collect();
                if !allowed.is_empty() && !allowed.contains(&text.as_str()) {
                    let all = allowed.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
                    let near = suggestion(text, allowed.iter().copied());
                    let message = format!("{text:?} is not one of {all}{near}");
                    self.find(node.at, path, "FieldValueNotSupported", message);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        // The apiserver evaluates no rule of what is not whole.
        if self.findings[before..].iter().any(|finding| BLOCKING.contains(&finding.reason)) {
            return;
        }
        for ValidationRule { rule, message, .. } in schema.x_kubernetes_validations.iter().flatten() {
            let holds = match self.rules.get(rule) {
                Some(Ok(rule)) => rule.holds(node),
                Some(Err(why)) => Err(why.clone()),
                None => continue,
            };
            let told = message.clone().unwrap_or_else(|| format!("breaks the rule {rule}"));
            match holds {
                Ok(true) => {}
                Ok(false) => self.find(node.at, path, "FieldValueInvalid", told),
                Err(why) => self.find(node.at, path, "FieldValueInvalid", format!("{told} ({why})")),
            }
        }
    }

    fn map(&mut self, node: &Node, entries: &[Entry], schema: &JSONSchemaProps, path: &str) {
        let Some(properties) = &schema.properties else { return };
        for entry in entries {
            let path = format!("{path}.{}", entry.name);
            match properties.get(&entry.name) {
                None => {
                    let near = suggestion(&entry.name, properties.keys().map(String::as_str));
                    self.find(entry.at, &path, "UnknownField", format!("there is no such field{near}"));
                }
                // Null in a map is what is not there.
                Some(_) if matches!(entry.node.value, Value::Null) => {}
                Some(schema) => self.node(&entry.node, schema, &path),
            }
        }
        for name in schema.required.iter().flatten() {
            if node.get(name).is_none() {
                let message = "is missing, and must be there".to_owned();
                self.find(node.at, &format!("{path}.{name}"), "FieldValueRequired", message);
            }
        }
    }

    fn bounds(&mut self, node: &Node, path: &str, is: usize, of: &str, min: Option<i64>, max: Option<i64>) {
        let is_count = i64::try_from(is).unwrap_or(i64::MAX);
        let unit = |count: i64| if count == 1 { of.trim_end_matches('s') } else { of };
        if let Some(max) = max.filter(|max| is_count > *max) {
            let reason = if of == "items" { "FieldValueTooMany" } else { "FieldValueTooLong" };
            self.find(node.at, path, reason, format!("has {is} {of}, and may have at most {max}"));
        }
        if let Some(min) = min.filter(|min| is_count < *min) {
            let message = format!("has {is} {of}, and must have at least {min} {}", unit(min));
            self.find(node.at, path, "FieldValueInvalid", message);
        }
    }
}

const BLOCKING: [&str; 5] = [
    "FieldValueTypeInvalid",
    "FieldValueRequired",
    "FieldValueNotSupported",
    "FieldValueTooLong",
    "FieldValueTooMany",
];

fn is_a(value: &Value, wanted: &str) -> bool {
    match value {
        Value::Map(_) => wanted == "object",
        Value::List(_) => wanted == "array",
        Value::Text(_) => wanted == "string",
        Value::Bool(_) => wanted == "boolean",
        Value::Number(number) => wanted == "number" || wanted == "integer" && number.is_i64(),
        Value::Null => false,
    }
}

/// What a value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::Text(_) => "a string",
        Value::List(_) => "a list",
        Value::Map(_) => "an object",
    }
}

fn article(wanted: &str) -> &'static str {
    match wanted {
        "object" => "an object",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "a boolean",
        "integer" => "a whole number",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_compiles_and_no_keyword_is_passed_over() {
        let schema = Schema::of_hooks();
        assert!(schema.rules.len() >= 10);
        for (rule, compiled) in &schema.rules {
            assert!(compiled.is_ok(), "{rule}: {compiled:?}");
        }
        let known = [
            "description",
            "enum",
            "items",
            "maxItems",
            "maxLength",
            "minItems",
            "minLength",
            "properties",
            "required",
            "type",
            "x-kubernetes-validations",
        ];
        let root = serde_json::to_value(&schema.root).expect("JSON");
        keywords(&root["properties"]["spec"], &known);
    }

    fn keywords(schema: &serde_json::Value, known: &[&str]) {
        for (keyword, value) in schema.as_object().expect("an object") {
            assert!(known.contains(&keyword.as_str()), "{keyword} is judged nowhere");
            match keyword.as_str() {
                "properties" => {
                    value.as_object().into_iter().flatten().for_each(|(_, it)| keywords(it, known))
                }
                "items" => keywords(value, known),
                "x-kubernetes-validations" => {
                    for rule in value.as_array().into_iter().flatten() {
                        assert!(
                            rule.as_object().expect("a rule").keys().all(|k| k == "rule" || k == "message")
                        );
                    }
                }
                _ => {}
            }
        }
    }
}
