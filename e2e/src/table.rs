//! A table is what `kubectl get` prints: the server decides the cells, we align them as kubectl does.

use anyhow::{Context, Result, ensure};
use kube::Client;
use serde::Deserialize;
use serde_json::Value;

/// Asks the server for a resource as a table and renders it. See
/// [`ControlPlane::table`](crate::control_plane::ControlPlane::table).
pub async fn get(client: &Client, resource: &str, namespace: Option<&str>, wide: bool) -> Result<String> {
    let (version, plural) =
        resource.rsplit_once('/').context("a resource is written GROUP/VERSION/PLURAL")?;
    let root = if version.contains('/') { "apis" } else { "api" };
    let path = match namespace {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("/{root}/{version}/{plural}"),
    };
    let request = http::Request::get(path)
        .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .context("a request")?;
    let table: Table = client.request(request).await.with_context(|| format!("the table of {resource}"))?;
    ensure!(!table.column_definitions.is_empty(), "{resource} did not come as a table");
    if table.rows.is_empty() {
        return Ok(match namespace {
            Some(namespace) => format!("No resources found in {namespace} namespace.\n"),
            None => "No resources found\n".to_owned(),
        });
    }
    Ok(table.render(namespace.is_none(), wide))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Debug, Deserialize)]
struct Row {
    cells: Vec<Value>,
    /// The object's metadata, which the server sends along; kubectl takes the namespace from it.
    #[serde(default)]
    object: Value,
}

impl Table {
    fn render(&self, with_namespace: bool, wide: bool) -> String {
        // Columns of a priority above 0 are the wide ones; also ages come rendered from the server.
        let shown = |column: &Column| wide || column.priority == 0;
        let mut lines = Vec::new();
        let header = self.column_definitions.iter().filter(|c| shown(c)).map(|c| c.name.to_uppercase());
        lines.push(with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(header).collect());
        for row in &self.rows {
            let namespace = row.object["metadata"]["namespace"].as_str().unwrap_or_default();
            let cells = row.cells.iter().zip(&self.column_definitions).filter(|(_, c)| shown(c));
            let cells = cells.map(|(value, _)| cell(value));
            lines.push(with_namespace.then(|| namespace.to_owned()).into_iter().chain(cells).collect());
        }
        align(&lines)
    }
}

/// A cell's text: one line, no escape sequences, nothing for null.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = match text.find(['\n', '\r', '\u{c}']) {
        Some(end) => format!("{}...", &text[..end]),
        None => text,
    };
    text.replace('\u{1b}', "^[")
}

/// Go's tabwriter as kubectl sets it up: columns at least 6 wide, 3 spaces apart, the last unpadded.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let longest = lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        (longest.unwrap_or_default() + 3).max(6)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            if column + 1 == line.len() {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:<width$}", width = widths[column]));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        serde_json::from_value(json!({
            "columnDefinitions": [
                {"name": "Name", "priority": 0},
                {"name": "Up", "priority": 0},
                {"name": "Words", "priority": 1},
                {"name": "Age", "priority": 0},
            ],
            "rows": [
                {"cells": ["a", 1, "one\ntwo", "5m"], "object": {"metadata": {"namespace": "x"}}},
                {"cells": ["a-long-name", null, "", "<unknown>"], "object": {"metadata": {"namespace": "y"}}},
            ],
        }))
        .expect("a table")
    }

    #[test]
    fn columns_are_aligned_as_kubectl_does() {
        assert_eq!(
            table().render(false, false),
            "NAME          UP    AGE\na             1     5m\na-long-name         <unknown>\n"
        );
    }

    #[test]
    fn wide_adds_the_columns_of_lower_priority_and_all_namespaces_their_namespace() {
        assert_eq!(
            table().render(true, true),
            "NAMESPACE   NAME          UP    WORDS    AGE\n\
             x           a             1     one...   5m\n\
             y           a-long-name                  <unknown>\n"
        );
    }
}
