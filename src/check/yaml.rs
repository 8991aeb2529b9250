//! A node is a value of a YAML file, with the place where it stands.
//!
//! Scalars are read as kubectl and the apiserver read them, which is YAML 1.1: `yes` is a boolean. Whatever a file
//! has in it, reading it ends soon and takes little: nesting and what aliases stand for are bounded.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number};

/// Values that a file may have, each counted as often as an alias repeats it.
const MAX_NODES: usize = 100_000;

/// Deepest nesting, aliases resolved. What walks a tree recurses on it.
const MAX_DEPTH: usize = 100;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, as it was written: a name may stand twice.
    Map(Vec<Entry>),
}

/// A name and its value in a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// Where the name stands.
    pub at: Place,
    /// The value.
    pub node: Node,
}

/// A document of a file.
#[derive(Debug)]
pub struct Document {
    /// Which one of its file, from 1.
    pub number: usize,
    /// What it says.
    pub root: Node,
}

/// Why a file cannot be read on.
#[derive(Debug)]
pub struct Broken {
    /// In which document, from 1.
    pub document: usize,
    /// Where.
    pub at: Place,
    /// Why.
    pub why: String,
}

impl Node {
    /// What stands under a name in a map; the last where there are several, nothing where it is null.
    pub fn get(&self, name: &str) -> Option<&Node> {
        let entry = self.entries().iter().rev().find(|entry| entry.name == name)?;
        (!matches!(entry.node.value, Value::Null)).then_some(&entry.node)
    }

    /// The entries of a map; none of anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none of anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same as JSON. In a map null means absent.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(number) => number.clone().into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                let there = entries.iter().filter(|entry| !matches!(entry.node.value, Value::Null));
                let map: Map<_, _> = there.map(|entry| (entry.name.clone(), entry.node.to_json())).collect();
                map.into()
            }
        }
    }
}

/// Reads the documents of a file, and why it cannot be read on where it cannot.
pub fn read(text: &str) -> (Vec<Document>, Option<Broken>) {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match next {
            Ok(next) => next,
            Err(error) => {
                let marker = error.marker();
                let at = Place { line: marker.line(), column: marker.col() + 1 };
                let why = match error.kind() {
                    ErrorKind::RecursionLimitExceeded => too_deep(),
                    _ => format!("this is no YAML: {}", error.info()),
                };
                let document = builder.documents.len() + 1;
                return (builder.documents, Some(Broken { document, at, why }));
            }
        };
        let at = Place { line: span.start.line(), column: span.start.col() + 1 };
        if let Err(why) = builder.take(event, at) {
            let document = builder.documents.len() + 1;
            return (builder.documents, Some(Broken { document, at, why }));
        }
    }
    (builder.documents, None)
}

/// A list or a map that is not at its end yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The name that waits for its value.
    name: Option<(String, Place)>,
    /// How deep what it has in it is nested.
    height: usize,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    open: Vec<Open>,
    root: Option<Node>,
    /// What aliases stand for: the value, how many values that are, and how deep it is nested.
    anchors: HashMap<usize, (Node, usize, usize)>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event, at: Place) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref());
                self.count(1)?;
                self.add(Node { at, value }, anchor, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(Value::List(Vec::new()), at, anchor),
            Event::MappingStart(_, anchor, _) => self.begin(Value::Map(Vec::new()), at, anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { mut node, anchor, height, .. }) = self.open.pop() else { return Ok(()) };
                merge(&mut node)?;
                self.add(node, anchor, height)
            }
            Event::Alias(anchor) => {
                let Some((node, nodes, height)) = self.anchors.get(&anchor) else {
                    return Err("an alias stands inside of what it stands for".into());
                };
                let (node, nodes, height) = (node.clone(), *nodes, *height);
                self.count(nodes)?;
                if self.open.len() + height > MAX_DEPTH {
                    return Err(too_deep());
                }
                self.add(node, 0, height)
            }
            Event::DocumentStart(..) => {
                self.root = None;
                self.anchors.clear();
                Ok(())
            }
            Event::DocumentEnd => {
                let empty = Node { at, value: Value::Null };
                let root = self.root.take().unwrap_or(empty);
                self.documents.push(Document { number: self.documents.len() + 1, root });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, value: Value, at: Place, anchor: usize) -> Result<(), String> {
        self.count(1)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.open.push(Open { node: Node { at, value }, anchor, name: None, height: 0 });
        Ok(())
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(format!("there are more than {MAX_NODES} values in this file, aliases resolved"));
        }
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, height: usize) -> Result<(), String> {
        if anchor > 0 {
            // What an alias may repeat counts when it does; the copy kept for it counts too.
            let nodes = size(&node);
            self.count(nodes)?;
            self.anchors.insert(anchor, (node.clone(), nodes, height));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.height = open.height.max(height + 1);
        match (&mut open.node.value, open.name.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((name, at))) => entries.push(Entry { name, at, node }),
            (_, None) => {
                let name = match &node.value {
                    Value::Text(text) => text.clone(),
                    Value::List(_) | Value::Map(_) => return Err("the name of a field must be a text".into()),
                    _ => node.to_json().to_string(),
                };
                open.name = Some((name, node.at));
            }
            _ => {}
        }
        Ok(())
    }
}

fn too_deep() -> String {
    format!("this is nested more than {MAX_DEPTH} deep")
}

fn size(node: &Node) -> usize {
    let inner: usize = match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
        _ => 0,
    };
    inner + 1
}

/// Puts what `<<` brings into its map: what is written there itself wins.
fn merge(node: &mut Node) -> Result<(), String> {
    let Value::Map(entries) = &mut node.value else { return Ok(()) };
    if !entries.iter().any(|entry| entry.name == "<<") {
        return Ok(());
    }
    let (merges, mut own): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(entries).into_iter().partition(|entry| entry.name == "<<");
    for entry in merges {
        let sources = match entry.node.value {
            Value::List(items) => items,
            _ => vec![entry.node],
        };
        for source in sources {
            let Value::Map(brought) = source.value else {
                return Err("what << brings must be a map, or a list of maps".into());
            };
            let known: Vec<String> = own.iter().map(|entry| entry.name.clone()).collect();
            own.extend(brought.into_iter().filter(|entry| !known.contains(&entry.name)));
        }
    }
    *entries = own;
    Ok(())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let told = tag.and_then(Tag::core_suffix);
    match told {
        Some("str") => Value::Text(text.to_owned()),
        None if style != ScalarStyle::Plain => Value::Text(text.to_owned()),
        _ => plain(text),
    }
}

// As YAML 1.1, which kubectl and the apiserver follow.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::Text(text.to_owned());
    }
    let digits = text.replace('_', "");
    let (sign, unsigned) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let radix = |prefix: &str, radix| {
        let rest = unsigned.strip_prefix(prefix)?;
        // A second sign is none.
        rest.starts_with(|c: char| c.is_ascii_alphanumeric())
            .then(|| i64::from_str_radix(&format!("{sign}{rest}"), radix).ok())?
    };
    let whole = radix("0x", 16)
        .or_else(|| radix("0X", 16))
        .or_else(|| radix("0b", 2))
        .or_else(|| radix("0o", 8))
        .or_else(|| radix("0", 8))
        .or_else(|| {
            let plain = unsigned.starts_with(|c: char| c.is_ascii_digit());
            plain.then(|| format!("{sign}{unsigned}").parse().ok())?
        });
    if let Some(whole) = whole.filter(|_| unsigned == "0" || !unsigned.is_empty()) {
        return Value::Number(whole.into());
    }
    let decimal = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.chars().any(|c| c.is_ascii_digit())
        && unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let number = decimal.then(|| format!("{sign}{unsigned}").parse::<f64>().ok()).flatten();
    match number.and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::Text(text.to_owned()),
    }
}

/// Where in a file a place of a text is that begins at `node`; where that cannot be told, the beginning.
pub fn inside(file: &str, node: &Node, place: Place) -> Place {
    let lines = node.text().map(str::lines).filter(|_| place.line > 0);
    let Some(line) = lines.and_then(|mut lines| lines.nth(place.line - 1)) else { return node.at };
    let source = |number: usize| file.lines().nth(number.saturating_sub(1)).unwrap_or_default();
    // The lines of a block begin at its place, and are indented alike.
    let number = node.at.line + place.line - 1;
    if let Some(indent) = source(number).strip_suffix(line).filter(|indent| indent.trim().is_empty()) {
        return Place { line: number, column: indent.chars().count() + place.column };
    }
    let head: String = source(node.at.line).chars().skip(node.at.column.saturating_sub(1)).collect();
    let quote = usize::from(head.starts_with(['"', '\'']));
    let written: String = head.chars().skip(quote).collect();
    if place.line == 1 && written.starts_with(line) {
        return Place { line: node.at.line, column: node.at.column + quote + place.column - 1 };
    }
    node.at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> serde_json::Value {
        let (documents, broken) = read(text);
        assert!(broken.is_none(), "{broken:?}");
        documents[0].root.to_json()
    }

    fn why(text: &str) -> String {
        read(text).1.expect("broken").why
    }

    #[test]
    fn scalars_are_what_kubectl_takes_them_for() {
        for (text, expected) in [
            ("yes", "true"),
            ("off", "false"),
            ("'yes'", "\"yes\""),
            ("!!str 5", "\"5\""),
            ("5", "5"),
            ("-5", "-5"),
            ("0x10", "16"),
            ("010", "8"),
            ("08", "8"),
            ("1_000", "1000"),
            ("1.5", "1.5"),
            ("1e3", "1000.0"),
            ("5m", "\"5m\""),
            ("-", "\"-\""),
            (".", "\".\""),
            ("1.2.3", "\"1.2.3\""),
            ("2026-01-02", "\"2026-01-02\""),
            ("a: ~", "{}"),
            ("[a, null]", "[\"a\",null]"),
        ] {
            let text = if text == "-" { "'-'" } else { text };
            assert_eq!(json(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn aliases_and_merges_stand_for_what_they_name() {
        let text = "a: &a {p: 1, q: 2}\nb: *a\nc: {<<: *a, q: 3}\n";
        assert_eq!(json(text)["b"].to_string(), r#"{"p":1,"q":2}"#);
        assert_eq!(json(text)["c"].to_string(), r#"{"p":1,"q":3}"#);
    }

    #[test]
    fn hostile_files_are_refused_before_they_cost_anything() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(why(&bomb).contains("values"), "{}", why(&bomb));
        assert!(why(&"[".repeat(100_000)).contains("deep"));
        let mut deep = String::new();
        for i in 0..40 {
            let inner = if i == 0 { "x".into() } else { format!("*a{}", i - 1) };
            deep.push_str(&format!("a{i}: &a{i} [[[[[{inner}]]]]]\n"));
        }
        assert!(why(&deep).contains("deep"));
        assert!(why("a: &a [*a]").contains("alias"), "{}", why("a: &a [*a]"));
        assert!(why("? [a]\n: b").contains("name"));
    }

    #[test]
    fn what_stands_before_a_break_is_read() {
        let (documents, broken) = read("a: 1\n---\nb: [\n---\nc: 1\n");
        let broken = broken.expect("broken");
        assert_eq!((documents.len(), broken.document), (1, 2));
    }

    #[test]
    fn a_place_in_a_text_is_found_in_its_file() {
        let file = "a:\n  - |\n    one\n     two\n  - 'three'\n  - four\n  - >\n    five\n";
        let (documents, _) = read(file);
        let list = documents[0].root.get("a").expect("a list").items();
        let place = |line, column| Place { line, column };
        assert_eq!(inside(file, &list[0], place(1, 2)), place(3, 6));
        assert_eq!(inside(file, &list[0], place(2, 3)), place(4, 7));
        assert_eq!(inside(file, &list[1], place(1, 1)), place(5, 6));
        assert_eq!(inside(file, &list[2], place(1, 4)), place(6, 8));
        assert_eq!(inside(file, &list[3], place(1, 4)), place(8, 8), "of one line");
    }
}
