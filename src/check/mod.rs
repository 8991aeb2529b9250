//! A check is what can be told of Hooks in a file before a cluster sees them: what the apiserver would refuse, and
//! what khook would say of the rest in their conditions.
//!
//! It is a pure function of the file, and never fails: whatever a file has in it, findings come of it.

mod cel;
mod schema;
mod yaml;

use schemars::JsonSchema;
use serde::Serialize;

use self::{
    schema::{Schema, kind},
    yaml::{Document, Entry, Node, Place, Value},
};
use crate::{
    hook::{EventConfiguration, EventType, Hook, HookSpec},
    incident::{
        policy::Policy,
        prompt::{self, PromptError},
        rules::{self, Rules},
    },
};

/// The group and version of Hooks.
const VERSION: &str = "kagent.dev/v1alpha2";

/// Something in a file that should be mended. The fields and their meaning stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// The file, as it was named; `-` is standard input.
    pub file: String,
    /// The document in the file, from 1; 0 where it is about the file.
    pub document: usize,
    /// The line, from 1; 0 where it is about the file. Of what is missing that of its parent.
    pub line: usize,
    /// The column in characters, from 1; 0 where it is about the file.
    pub column: usize,
    /// The field, such as `spec.eventConfigurations[0].prompt`; empty where there is none.
    pub path: String,
    /// How bad it is.
    pub severity: Severity,
    /// What kind of fault it is, in one word.
    pub reason: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The apiserver refuses the Hook, or part of it does not do what was written.
    Error,
    /// The Hook works.
    Warning,
}

impl Severity {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl Fault {
    /// A file that cannot be read.
    pub fn unreadable(file: String, why: String) -> Self {
        let (path, reason, message) = (String::new(), "Unreadable".to_owned(), why);
        Self { file, document: 0, line: 0, column: 0, path, severity: Severity::Error, reason, message }
    }
}

/// What a check knows beside the files.
pub struct Checker {
    schema: Schema,
    policy: Policy,
    namespace: Option<String>,
}

/// What came of the check of a file.
#[derive(Debug, Default)]
pub struct Checked {
    /// Hooks in it.
    pub hooks: usize,
    /// Other objects in it, which were not looked at.
    pub others: usize,
    /// What should be mended, in the order of the file.
    pub faults: Vec<Fault>,
}

/// A fault, before it is said of which document.
#[derive(Debug)]
struct Finding {
    at: Place,
    path: String,
    severity: Severity,
    reason: &'static str,
    message: String,
}

impl Finding {
    fn error(at: Place, path: &str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { at, path: path.into(), severity: Severity::Error, reason, message: message.into() }
    }
}

/// A Hook in a file.
#[derive(Debug)]
struct Found<'a> {
    /// The document it stands in, from 1.
    document: usize,
    /// It.
    node: &'a Node,
}

impl Found<'_> {
    /// The Hook, as far as it can be read.
    fn hook(&self) -> Option<Hook> {
        serde_json::from_value(self.node.to_json()).ok()
    }
}

impl Checker {
    /// A check with these settings of the operator. Hooks without a namespace are in `namespace`.
    pub fn new(policy: Policy, namespace: Option<String>) -> Self {
        Self { schema: Schema::of_hooks(), policy, namespace }
    }

    /// Checks a file that is called `name`.
    pub fn check(&self, name: &str, bytes: &[u8]) -> Checked {
        let mut checked = Checked::default();
        let fault = |document: usize, finding: Finding| Fault {
            file: name.to_owned(),
            document,
            line: finding.at.line,
            column: finding.at.column,
            path: finding.path,
            severity: finding.severity,
            reason: finding.reason.to_owned(),
            message: finding.message,
        };
        let text = match decode(bytes) {
            Ok(text) => text,
            Err(finding) => {
                checked.faults.push(fault(0, finding));
                return checked;
            }
        };
        let (documents, broken) = yaml::read(text);
        let (found, others, odd) = hooks(&documents);
        checked.others = others;
        checked.hooks = found.len();
        checked.faults.extend(odd.into_iter().map(|(document, finding)| fault(document, finding)));
        for Found { document, node } in found {
            let findings = self.hook(text, node);
            checked.faults.extend(findings.into_iter().map(|finding| fault(document, finding)));
        }
        if let Some(broken) = broken {
            let finding = Finding::error(broken.at, "", "SyntaxError", broken.why);
            checked.faults.push(fault(broken.document, finding));
        }
        checked.faults.sort_by_key(|fault| (fault.document, fault.line, fault.column));
        checked
    }

    fn hook(&self, text: &str, node: &Node) -> Vec<Finding> {
        let mut findings = Vec::new();
        twice(node, "", &mut findings);
        let names = ["apiVersion", "kind", "metadata", "spec", "status"];
        for entry in node.entries() {
            match entry.name.as_str() {
                "spec" if !matches!(entry.node.value, Value::Null) => {
                    findings.extend(self.spec(text, node, entry));
                }
                "status" => findings.extend(self.status(entry)),
                name if names.contains(&name) => {}
                name => {
                    let message = format!("there is no such field{}", suggestion(name, names));
                    findings.push(Finding::error(entry.at, name, "UnknownField", message));
                }
            }
        }
        if node.get("spec").is_none() {
            let message = "is missing, and must be there";
            findings.push(Finding::error(node.at, "spec", "FieldValueRequired", message));
        }
        metadata(node, &mut findings);
        findings
    }

    /// A status in a file is not taken over, but its fields must be known all the same.
    fn status(&self, entry: &Entry) -> Vec<Finding> {
        let mut findings = self.schema.judge(entry);
        findings.retain(|finding| finding.reason == "UnknownField");
        findings.push(Finding {
            severity: Severity::Warning,
            ..Finding::error(
                entry.at,
                "status",
                "StatusIgnored",
                "is khook's to write, and is ignored: leave it out",
            )
        });
        findings
    }

    fn spec(&self, text: &str, hook: &Node, spec: &Entry) -> Vec<Finding> {
        let mut findings = self.schema.judge(spec);
        let Some(list) = spec.node.get("eventConfigurations") else { return findings };
        let nodes = list.items();
        let path = |index: usize| format!("spec.eventConfigurations[{index}]");
        for (index, node) in nodes.iter().enumerate() {
            let path = format!("{}.prompt", path(index));
            // What the apiserver refuses as it is, is no matter of templates.
            if !findings.iter().any(|finding| finding.path == path)
                && let Some(prompt) = node.get("prompt")
            {
                findings.extend(prompt_findings(text, prompt, &path));
            }
        }
        // What only khook can see of the rest, in its own words.
        let sound = |index: usize| {
            let own = path(index);
            let is_below = |finding: &Finding| {
                finding.path.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            !findings.iter().any(|finding| finding.severity == Severity::Error && is_below(finding))
        };
        let readable: Vec<Option<EventConfiguration>> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| serde_json::from_value(node.to_json()).ok().filter(|_| sound(index)))
            .collect();
        let blank = |index| EventConfiguration {
            event_type: EventType::PodRestart,
            agent_ref: None,
            // One that nobody can have.
            agent_id: Some(format!("{index}/")),
            agent: None,
            prompt: String::new(),
            hold: None,
            repeat_interval: None,
            resolve_timeout: None,
            notify_resolved: None,
        };
        let event_configurations = readable
            .iter()
            .enumerate()
            .map(|(index, read)| read.clone().unwrap_or_else(|| blank(index)))
            .collect();
        let own = hook.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Node::text);
        let namespace = own.or(self.namespace.as_deref()).unwrap_or("default");
        let parsed =
            Rules::parse(&HookSpec { event_configurations, ..HookSpec::default() }, namespace, &self.policy);
        let twice = findings.iter().position(|finding| finding.path == "spec.eventConfigurations");
        for problem in parsed.problems {
            let place = problem.place().to_owned();
            let Some((index, node)) = nodes.iter().enumerate().find(|(index, _)| {
                place.strip_prefix(&path(*index)).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }) else {
                continue;
            };
            if readable[index].is_none() || problem.reason.starts_with("Prompt") {
                continue;
            }
            let mut at = node;
            for name in place[path(index).len()..].split('.').filter(|name| !name.is_empty()) {
                at = at.get(name).unwrap_or(at);
            }
            match twice.filter(|_| problem.reason == "DuplicateConfiguration") {
                // The apiserver says it too, and of the whole list.
                Some(twice) => findings[twice].at = at.at,
                None => findings.push(Finding {
                    at: at.at,
                    severity: severity(problem.severity),
                    reason: problem.reason,
                    message: problem.message[place.len()..].trim_start_matches([':', ' ']).to_owned(),
                    path: place,
                }),
            }
        }
        findings
    }
}

fn severity(severity: rules::Severity) -> Severity {
    match severity {
        rules::Severity::Error => Severity::Error,
        rules::Severity::Warning => Severity::Warning,
    }
}

fn prompt_findings(file: &str, node: &Node, path: &str) -> Vec<Finding> {
    let Some(text) = node.text() else { return Vec::new() };
    let finding = |place: Option<prompt::Place>, severity, reason, message: String| {
        let at = place.map_or(node.at, |place| {
            yaml::inside(file, node, Place { line: place.line, column: place.column })
        });
        // The place in the file says it better.
        let own = place.filter(|_| at != node.at).map(|place| format!("{place}: "));
        let message = own.and_then(|own| message.strip_prefix(&own).map(str::to_owned)).unwrap_or(message);
        Finding { at, path: path.to_owned(), severity, reason, message }
    };
    match prompt::check(text) {
        Ok(problems) => {
            let unclear = |problem: &prompt::Problem| {
                finding(problem.place(), Severity::Warning, "PromptUnclear", problem.to_string())
            };
            problems.iter().map(unclear).collect()
        }
        Err(error) => {
            let message = PromptError::to_string(&error);
            vec![finding(error.place(), Severity::Error, "PromptInvalid", message)]
        }
    }
}

/// The text of a file, without the mark that some editors put at its beginning.
fn decode(bytes: &[u8]) -> Result<&str, Finding> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let why = "the file is in UTF-16: save it as UTF-8";
        return Err(Finding::error(Place::default(), "", "NotText", why));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{FEFF}').unwrap_or(text)),
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let (head, line) =
                before.rsplit_once('\n').map_or(("", before.as_str()), |(head, line)| (head, line));
            let above = if before.contains('\n') { head.matches('\n').count() + 1 } else { 0 };
            let at = Place { line: above + 1, column: line.chars().count() + 1 };
            Err(Finding::error(at, "", "NotText", "this is not UTF-8 text"))
        }
    }
}

/// The Hooks of a file, how many other objects there are, and what seems meant for a Hook and is none.
fn hooks(documents: &[Document]) -> (Vec<Found<'_>>, usize, Vec<(usize, Finding)>) {
    let (mut found, mut others, mut odd) = (Vec::new(), 0, Vec::new());
    let mut open: Vec<(usize, &Node)> =
        documents.iter().rev().map(|document| (document.number, &document.root)).collect();
    while let Some((document, node)) = open.pop() {
        let text = |name: &str| node.get(name).and_then(Node::text).unwrap_or_default();
        let (version, what) = (text("apiVersion"), text("kind"));
        let group = version.split('/').next().unwrap_or_default();
        let at = |name: &str| node.get(name).map_or(node.at, |node| node.at);
        match (version, what) {
            (VERSION, "Hook") => found.push(Found { document, node }),
            ("v1", "List") | (VERSION, "HookList") => {
                let items = node.get("items").map(Node::items).unwrap_or_default();
                open.extend(items.iter().rev().map(|item| (document, item)));
            }
            _ if matches!(node.value, Value::Null) => {}
            ("", "Hook") => {
                let message = format!("is missing: the apiVersion of a Hook is {VERSION}");
                odd.push((document, Finding::error(node.at, "apiVersion", "NoVersion", message)));
            }
            (_, "Hook") if group == "kagent.dev" => {
                let message = format!("{version:?} is not served: the apiVersion of a Hook is {VERSION}");
                odd.push((document, Finding::error(at("apiVersion"), "apiVersion", "NoVersion", message)));
            }
            (VERSION, "") => {
                let message = match node.get("kind") {
                    Some(node) => format!("must be a string, but is {}", kind(&node.value)),
                    None => "is missing, and must be there".to_owned(),
                };
                odd.push((document, Finding::error(at("kind"), "kind", "NoKind", message)));
            }
            (VERSION, kind) if kind.eq_ignore_ascii_case("hook") || kind.eq_ignore_ascii_case("hooks") => {
                let message = format!("there is no kind {kind:?}: it is written Hook");
                odd.push((document, Finding::error(at("kind"), "kind", "NoKind", message)));
            }
            _ => others += 1,
        }
    }
    (found, others, odd)
}

/// The Hooks of a file, and why it cannot be read where it cannot.
///
/// # Errors
/// The place and the reason.
pub fn hooks_of(name: &str, bytes: &[u8]) -> Result<Vec<Hook>, String> {
    let place =
        |at: Place| if at.line == 0 { name.to_owned() } else { format!("{name}:{}:{}", at.line, at.column) };
    let text = decode(bytes).map_err(|finding| format!("{}: {}", place(finding.at), finding.message))?;
    let (documents, broken) = yaml::read(text);
    if let Some(broken) = broken {
        return Err(format!("{}: {}", place(broken.at), broken.why));
    }
    let (found, _, odd) = hooks(&documents);
    if let Some((_, finding)) = odd.first() {
        return Err(format!("{}: {}: {}", place(finding.at), finding.path, finding.message));
    }
    found
        .iter()
        .map(|found| {
            found.hook().ok_or_else(|| format!("{}: this Hook cannot be read", place(found.node.at)))
        })
        .collect()
}

/// What stands twice in a map: a parser keeps one of the two and does not say which.
fn twice(node: &Node, path: &str, findings: &mut Vec<Finding>) {
    for (index, entry) in node.entries().iter().enumerate() {
        let path = if path.is_empty() { entry.name.clone() } else { format!("{path}.{}", entry.name) };
        if node.entries()[..index].iter().any(|earlier| earlier.name == entry.name) {
            let message = "stands twice: leave one of the two out (kubectl keeps the last, and says nothing)";
            findings.push(Finding::error(entry.at, &path, "DuplicateField", message));
        }
        twice(&entry.node, &path, findings);
    }
    for (index, item) in node.items().iter().enumerate() {
        twice(item, &format!("{path}[{index}]"), findings);
    }
}

const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

fn metadata(hook: &Node, findings: &mut Vec<Finding>) {
    let Some(node) = hook.get("metadata") else {
        let message = "is missing: a Hook has a name";
        return findings.push(Finding::error(hook.at, "metadata.name", "FieldValueRequired", message));
    };
    if !matches!(node.value, Value::Map(_)) {
        let message = format!("must be an object, but is {}", kind(&node.value));
        return findings.push(Finding::error(node.at, "metadata", "FieldValueTypeInvalid", message));
    }
    let mut find = |at: Place, path: &str, reason, message: String| {
        findings.push(Finding::error(at, path, reason, message));
    };
    if node.get("name").is_none() && node.get("generateName").is_none() {
        find(node.at, "metadata.name", "FieldValueRequired", "is missing: a Hook has a name".into());
    }
    for entry in node.entries() {
        let path = format!("metadata.{}", entry.name);
        match (entry.name.as_str(), &entry.node.value) {
            (_, Value::Null) => {}
            ("name", Value::Text(name)) if !is_name(name, 253, true) => find(
                entry.node.at,
                &path,
                "FieldValueInvalid",
                "a name has small letters, digits, '-' and '.', begins and ends with a letter or a digit, and has \
                 at most 253 characters"
                    .into(),
            ),
            ("namespace", Value::Text(name)) if !is_name(name, 63, false) => find(
                entry.node.at,
                &path,
                "FieldValueInvalid",
                "a namespace has small letters, digits and '-', begins and ends with a letter or a digit, and has \
                 at most 63 characters"
                    .into(),
            ),
            ("name" | "namespace" | "generateName", Value::Text(_)) => {}
            ("labels" | "annotations", Value::Map(entries)) => {
                for entry in entries {
                    let path = format!("{path}.{}", entry.name);
                    match &entry.node.value {
                        Value::Text(_) | Value::Null => {}
                        other => find(
                            entry.node.at,
                            &path,
                            "FieldValueTypeInvalid",
                            format!("must be a string, but is {}: put it in quotes", kind(other)),
                        ),
                    }
                }
            }
            ("name" | "namespace" | "generateName", value) => {
                let advice = if matches!(value, Value::Bool(_) | Value::Number(_)) { ": put it in quotes" } else { "" };
                let message = format!("must be a string, but is {}{advice}", kind(value));
                find(entry.node.at, &path, "FieldValueTypeInvalid", message);
            }
            ("labels" | "annotations", value) => {
                let message = format!("must be an object, but is {}", kind(value));
                find(entry.node.at, &path, "FieldValueTypeInvalid", message);
            }
            (name, _) if !METADATA.contains(&name) => {
                let near = suggestion(name, METADATA);
                find(entry.at, &path, "UnknownField", format!("there is no such field{near}"));
            }
            _ => {}
        }
    }
}

fn is_name(text: &str, longest: usize, dots: bool) -> bool {
    let is_part = |part: &str| {
        part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    text.len() <= longest && if dots { text.split('.').all(is_part) } else { is_part(text) }
}

/// `: did you mean "x"?` where a known word is near; empty otherwise.
fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let word = word.to_lowercase();
    // What is longer than any name resembles none.
    let near = known.into_iter().filter(|_| word.len() <= 64);
    let near = near.map(|known| (strsim::jaro_winkler(&word, &known.to_lowercase()), known));
    let best = near.filter(|(likeness, _)| *likeness > 0.84).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, known)| format!(": did you mean {known:?}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
