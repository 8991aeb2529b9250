//! A corpus is a directory of inputs for one target, each by itself worth a look. Every target is run over its
//! corpus, and over mutations of it that are the same every time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fuzz::{TARGETS, Target};
use serde_json::{Map, Value, json};

/// Another one tries others: `FUZZ_SEED=7 cargo test --package fuzz`.
const SEED: u64 = 1;

#[test]
fn answer() {
    holds("answer", 1500);
}

#[test]
fn event() {
    holds("event", 1500);
}

#[test]
fn pods() {
    holds("pods", 1500);
}

#[test]
fn prompt() {
    holds("prompt", 1500);
}

#[test]
fn status() {
    holds("status", 200);
}

#[test]
fn validate() {
    holds("validate", 1500);
}

#[test]
fn every_target_has_a_corpus_and_a_binary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in TARGETS {
        assert!(corpus(name).len() >= 10, "{name}");
        assert!(root.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
    }
    assert_eq!(fs::read_dir(root.join("corpus")).unwrap().count(), TARGETS.len());
}

/// Runs a target over its corpus, and over so many mutations of it.
fn holds(name: &str, mutations: u64) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let corpus = corpus(name);
    for (path, input) in &corpus {
        run(target, input, name, &format!("corpus file {}", path.display()));
    }
    let seed = std::env::var("FUZZ_SEED").ok().map_or(SEED, |seed| seed.parse().unwrap());
    for round in 0..mutations {
        let mut dice = Dice(seed.wrapping_mul(0x1_0000_0000).wrapping_add(round));
        let (path, input) = dice.one_of(&corpus);
        let (_, other) = dice.one_of(&corpus);
        let mutated = mutate(&mut dice, input, other);
        run(target, &mutated, name, &format!("seed {seed}, round {round}, a mutation of {}", path.display()));
    }
}

fn run(target: Target, input: &[u8], name: &str, origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-failed"));
        fs::write(&kept, input).unwrap();
        panic!("{name} does not hold: {origin}; the input is in {}", kept.display());
    }
}

/// All files, in the order of their names.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn mutate(dice: &mut Dice, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..=dice.below(3) {
        input = match dice.below(8) {
            0 => flipped(dice, input),
            1 => {
                input.truncate(dice.below(input.len() + 1));
                input
            }
            2 => {
                let (head, tail) = (dice.below(input.len() + 1), dice.below(other.len() + 1));
                [&input[..head], &other[tail..]].concat()
            }
            _ => with_odd_json(dice, input),
        };
    }
    input
}

fn flipped(dice: &mut Dice, mut input: Vec<u8>) -> Vec<u8> {
    for _ in 0..=dice.below(4) {
        let at = dice.below(input.len().max(1));
        if let Some(byte) = input.get_mut(at) {
            *byte ^= 1 << dice.below(8);
        }
    }
    input
}

/// Where the input, its body or one of its lines is JSON, changes something in it.
fn with_odd_json(dice: &mut Dice, input: Vec<u8>) -> Vec<u8> {
    if let Ok(value) = serde_json::from_slice(&input) {
        return odd(dice, value).into_bytes();
    }
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let json: Vec<usize> =
        (0..lines.len()).filter(|index| serde_json::from_slice::<Map<_, _>>(lines[*index]).is_ok()).collect();
    if json.is_empty() {
        return flipped(dice, input);
    }
    let index = *dice.one_of(&json);
    let changed = odd(dice, serde_json::from_slice(lines[index]).unwrap());
    lines[index] = changed.as_bytes();
    lines.join(&b'\n')
}

/// The value with one of its parts replaced, removed, repeated or put somewhere else.
fn odd(dice: &mut Dice, mut value: Value) -> String {
    let mut pointers = Vec::new();
    list(&value, String::new(), &mut pointers);
    let (at, from) = (dice.one_of(&pointers).clone(), dice.one_of(&pointers).clone());
    let copy = value.pointer(&from).cloned().unwrap_or_default();
    let Some(part) = value.pointer_mut(&at) else { return value.to_string() };
    match (dice.below(6), part) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let name = dice.one_of(&map.keys().cloned().collect::<Vec<_>>()).clone();
            map.remove(&name);
        }
        (1, Value::Object(map)) if !map.is_empty() => {
            // The same key twice, which no `Value` can have.
            let name = dice.one_of(&map.keys().cloned().collect::<Vec<_>>()).clone();
            map.insert("TWICE".into(), copy);
            return value.to_string().replace("\"TWICE\":", &format!("{}:", json!(name)));
        }
        (0 | 1, Value::Array(list)) if !list.is_empty() => {
            let again = dice.one_of(list).clone();
            list.extend(vec![again; 1 + dice.below(4)]);
        }
        (2, part) => *part = copy,
        (_, part) => *part = odd_value(dice),
    }
    value.to_string()
}

fn list(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| list(value, format!("{pointer}/{}", escape(name)), pointers));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| list(value, format!("{pointer}/{i}"), pointers));
        }
        _ => {}
    }
    pointers.push(pointer);
}

fn odd_value(dice: &mut Dice) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(i32::MAX),
        json!(1e300),
        json!(-0.5),
        json!(""),
        json!(" \n\u{0}"),
        json!("\u{202E}é🦀"),
        json!("x".repeat(5000)),
        json!("2026-01-02T02:59:59Z"),
        json!("2026-01-02T03:00:00.001Z"),
        json!("2026-01-02T03:10:00Z"),
        json!("0000-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59.999999999Z"),
        json!("+262142-12-31T23:59:59Z"),
        json!("-262143-01-01T00:00:00Z"),
        json!("2016-12-31T23:59:60Z"),
        json!("web-1"),
        json!("kagent/k8s-agent"),
        json!("pending"),
        json!("firing"),
        json!("notified"),
        json!("resolved"),
        json!("CheckingSession"),
        json!("Suspended"),
        json!("pod-pending"),
        json!("Pending"),
        json!("CrashLoopBackOff"),
        json!("Holds"),
        json!("completed"),
        json!([]),
        json!({}),
        json!([[[[{"a": [{}]}]]]]),
    ];
    dice.one_of(&values).clone()
}

/// Numbers that look as if by chance and are the same every time: splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end.max(1) as u64).unwrap()
    }

    fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
