//! `khook status` lists incidents across Hooks.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    process::ExitCode,
};

use chrono::{DateTime, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use futures::TryStreamExt as _;
use kube::runtime::{
    reflector::{self, Store, store::Writer},
    watcher,
};
use serde::Serialize;

use super::{
    Error,
    cluster::{Cluster, Connection, HOOK, named},
    output::{self, Format, Output, age, count, line, paint, print, style, table},
};
use crate::{
    hook::{EventType, Hook, Instruction, Mode, Phase},
    view,
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only the incidents of this Hook
    #[arg(conflicts_with = "all_namespaces")]
    hook: Option<String>,
    #[command(flatten)]
    wanted: Wanted,
    /// Go on with each incident that changes
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: Output,
}

/// Which incidents are wanted.
#[derive(clap::Args, Debug, Default)]
pub struct Wanted {
    /// Those of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only those in these phases, with commas: pending, firing, notified, resolved
    #[arg(long, value_delimiter = ',', value_parser = phases(), hide_possible_values = true)]
    phase: Vec<Phase>,
    /// Only these kinds of trouble, with commas: pod-restart, pod-pending, oom-kill, probe-failed
    #[arg(long = "type", value_delimiter = ',', value_parser = event_types(), hide_possible_values = true)]
    event_type: Vec<EventType>,
    /// Only those this agent is asked about: NAMESPACE/NAME, NAME or a URL
    #[arg(long)]
    agent: Option<String>,
}

fn phases() -> impl TypedValueParser<Value = Phase> {
    PossibleValuesParser::new(Phase::ALL.map(Phase::as_str))
        .map(|text| one_of(&Phase::ALL, Phase::as_str, &text))
}

fn event_types() -> impl TypedValueParser<Value = EventType> {
    PossibleValuesParser::new(EventType::ALL.map(EventType::as_str))
        .map(|text| one_of(&EventType::ALL, EventType::as_str, &text))
}

// What clap hands on is one of them.
fn one_of<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, text: &str) -> T {
    all.iter().copied().find(|value| name(*value) == text).unwrap_or(all[0])
}

/// One incident, and what its Hook has to say of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The incident.
    #[serde(flatten)]
    pub incident: view::Incident,
    /// Its Hook only observes: nobody is called.
    pub observe: bool,
}

/// All that is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    /// How many Hooks were looked at.
    hooks: usize,
    /// How many incidents there are in each phase.
    phases: BTreeMap<&'static str, usize>,
    /// The incidents: firing, pending, notified, resolved; the newest first.
    incidents: Vec<Row>,
}

/// The Hooks as they are now.
pub struct Board {
    hooks: Store<Hook>,
    writer: Writer<Hook>,
    listing: bool,
}

impl Board {
    /// An empty one, for what a watch says.
    pub fn new() -> Self {
        let (hooks, writer) = reflector::store();
        Self { hooks, writer, listing: true }
    }

    /// These.
    pub fn of(hooks: Vec<Hook>) -> Self {
        let mut board = Self::new();
        let listed = hooks.into_iter().map(watcher::Event::InitApply);
        let events = iter::once(watcher::Event::Init).chain(listed).chain([watcher::Event::InitDone]);
        for event in events {
            board.apply(event);
        }
        board
    }

    /// Takes in what the watch says; true while it is complete.
    pub fn apply(&mut self, event: watcher::Event<Hook>) -> bool {
        self.writer.apply_watcher_event(&event);
        match event {
            watcher::Event::Init => self.listing = true,
            watcher::Event::InitDone => self.listing = false,
            _ => {}
        }
        !self.listing
    }

    /// The incidents that are wanted, in a reader's order.
    pub fn rows(&self, wanted: &Wanted) -> Vec<Row> {
        let hooks = self.hooks.state();
        let rows = hooks.iter().flat_map(|hook| {
            let observe = hook.spec.mode == Some(Mode::Observe);
            view::incidents(hook).map(move |incident| Row { incident, observe })
        });
        let mut rows: Vec<Row> = rows.filter(|row| wanted.has(&row.incident)).collect();
        rows.sort_by_cached_key(|Row { incident, .. }| {
            let newest = std::cmp::Reverse(incident.first_seen);
            let place = (incident.namespace.clone(), incident.hook.clone(), incident.id.clone());
            (rank(incident.phase), newest, place)
        });
        rows
    }

    /// What there is, in a sentence.
    pub fn summary(&self, rows: &[Row], wanted: &Wanted) -> String {
        let hooks = count(self.hooks.len(), "Hook");
        let counts = phase_counts(rows);
        let told: Vec<String> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(phase, n)| format!("{n} {phase}")).collect();
        let such = if wanted.all() { "" } else { " of these" };
        match rows.is_empty() {
            true => format!("{hooks}, no incidents{such}"),
            false => format!("{hooks}, {}{such}: {}", count(rows.len(), "incident"), told.join(", ")),
        }
    }
}

/// Who waits for an answer now comes first.
fn rank(phase: Phase) -> usize {
    READING.iter().position(|other| *other == phase).unwrap_or_default()
}

const READING: [Phase; 4] = [Phase::Firing, Phase::Pending, Phase::Notified, Phase::Resolved];

fn phase_counts(rows: &[Row]) -> BTreeMap<&'static str, usize> {
    let mut counts: BTreeMap<_, _> = Phase::ALL.map(|phase| (phase.as_str(), 0)).into_iter().collect();
    for row in rows {
        *counts.entry(row.incident.phase.as_str()).or_default() += 1;
    }
    counts
}

impl Wanted {
    fn all(&self) -> bool {
        self.phase.is_empty() && self.event_type.is_empty() && self.agent.is_none()
    }

    fn has(&self, incident: &view::Incident) -> bool {
        let agent = |wanted: &String| super::is_agent(&incident.agent, wanted);
        (self.phase.is_empty() || self.phase.contains(&incident.phase))
            && (self.event_type.is_empty() || self.event_type.contains(&incident.event_type))
            && self.agent.as_ref().is_none_or(agent)
    }
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let cluster = connection.connect().await?;
    if args.watch {
        return watch(&args, &cluster).await;
    }
    let hooks = match &args.hook {
        Some(name) => vec![cluster.hook(name).await?],
        None => cluster.list_hooks(args.wanted.all_namespaces).await?,
    };
    let board = Board::of(hooks);
    let rows = board.rows(&args.wanted);
    let summary = board.summary(&rows, &args.wanted);
    let listing = Listing { hooks: board.hooks.len(), phases: phase_counts(&rows), incidents: rows };
    if !args.output.output.print(&listing)? {
        if !listing.incidents.is_empty() {
            let wide = args.output.output == Format::Wide;
            print(&render(&listing.incidents, args.wanted.all_namespaces, wide, Utc::now()))?;
        }
        eprintln!("{summary}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(args: &Args, cluster: &Cluster) -> Result<ExitCode, Error> {
    let everywhere = args.wanted.all_namespaces;
    let name = args.hook.as_deref().map(|name| named(name, HOOK)).transpose()?;
    // Says what is wrong, where something is, in the same words as without --watch.
    match name {
        Some(name) => drop(cluster.hook(name).await?),
        None => drop(cluster.list_hooks(everywhere).await?),
    }
    let mut board = Board::new();
    let mut shown: HashMap<(String, String, String), Row> = HashMap::new();
    let mut widths = Vec::new();
    let mut changes = cluster.watch_hooks(everywhere);
    let mut trouble = String::new();
    loop {
        let event = match changes.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(ExitCode::SUCCESS),
            Err(error) => {
                // Said once, not with every attempt.
                if trouble != error.to_string() {
                    trouble = error.to_string();
                    eprintln!("the watch broke off, trying again: {}", line(&trouble, 300));
                }
                continue;
            }
        };
        if !board.apply(event) {
            continue;
        }
        let rows = board.rows(&args.wanted).into_iter();
        let rows: Vec<Row> = rows.filter(|row| name.is_none_or(|name| row.incident.hook == name)).collect();
        let place = |row: &Row| {
            let view::Incident { namespace, hook, id, .. } = &row.incident;
            (namespace.clone(), hook.clone(), id.clone())
        };
        let news: Vec<Row> = rows.iter().filter(|row| shown.get(&place(row)) != Some(row)).cloned().collect();
        shown = rows.into_iter().map(|row| (place(&row), row)).collect();
        tell(&news, args, &mut widths)?;
    }
}

// Rows that come later stand under the columns of the first.
fn tell(news: &[Row], args: &Args, widths: &mut Vec<usize>) -> Result<(), Error> {
    let format = args.output.output;
    match format {
        Format::Json | Format::Yaml => {
            for row in news {
                match format {
                    // A document a line.
                    Format::Json => print(&serde_json::to_string(row).map_err(Error::because("no JSON"))?)?,
                    _ => {
                        print("---")?;
                        format.print(row)?;
                    }
                }
            }
        }
        Format::Table | Format::Wide => {
            let (everywhere, wide) = (args.wanted.all_namespaces, format == Format::Wide);
            let mut lines: Vec<Vec<String>> =
                news.iter().map(|row| cells(row, everywhere, wide, Utc::now())).collect();
            let first = widths.is_empty();
            if first {
                lines.insert(0, head(everywhere, wide).into_iter().map(str::to_owned).collect());
                let columns = lines[0].len();
                *widths = vec![0; columns];
            }
            for line in &lines {
                for (known, cell) in widths.iter_mut().zip(line) {
                    *known = output::width(cell).max(*known);
                }
            }
            for line in lines {
                let padded = line.iter().zip(&*widths).map(|(cell, width)| {
                    format!("{cell}{}", " ".repeat(width.saturating_sub(output::width(cell)) + 3))
                });
                print(padded.collect::<String>().trim_end())?;
            }
        }
    }
    Ok(())
}

/// The table.
pub fn render(rows: &[Row], everywhere: bool, wide: bool, now: DateTime<Utc>) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| cells(row, everywhere, wide, now)).collect();
    table(&head(everywhere, wide), &rows)
}

fn head(everywhere: bool, wide: bool) -> Vec<&'static str> {
    let mut head = if everywhere { vec!["NAMESPACE"] } else { Vec::new() };
    head.extend(["HOOK", "INCIDENT", "TYPE", "POD", "PHASE", "REASON", "AGE"]);
    if wide {
        head.extend(["AGENT", "COUNT", "CALLS", "SESSION", "INSTRUCTION", "MESSAGE"]);
    }
    head.push("ANSWER");
    head
}

fn cells(row: &Row, everywhere: bool, wide: bool, now: DateTime<Utc>) -> Vec<String> {
    let Row { incident, observe } = row;
    let mark = |text: &str, marked: bool, mark: &str| {
        if marked { format!("{} ({mark})", line(text, 80)) } else { line(text, 80) }
    };
    let mut cells = if everywhere { vec![line(&incident.namespace, 63)] } else { Vec::new() };
    cells.extend([
        mark(&incident.hook, *observe, "observe"),
        line(&incident.id, 40),
        mark(incident.event_type.as_str(), incident.test, "test"),
        line(&incident.pod, 253),
        paint(incident.phase.as_str(), style(incident.phase)),
        incident.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        age(now - incident.first_seen),
    ]);
    if wide {
        let session = incident.session_url.as_ref().or(incident.session_id.as_ref());
        cells.extend([
            line(&incident.agent, 120),
            incident.count.to_string(),
            incident.attempts.to_string(),
            session.map(|session| line(session, 300)).unwrap_or_default(),
            incident.instruction.as_ref().map(|told| instruction(told, now)).unwrap_or_default(),
            line(&incident.message, 120),
        ]);
    }
    let answer = incident.answer.as_ref().map(|answer| line(answer, if wide { 120 } else { 50 }));
    cells.push(answer.or_else(|| incident.outcome.map(|end| format!("({end})"))).unwrap_or_default());
    cells
}

/// What somebody had khook do, who and when.
pub fn instruction(told: &Instruction, now: DateTime<Utc>) -> String {
    let by = if told.by.is_empty() { "somebody".into() } else { line(&told.by, 60) };
    let until = told.until.map(|until| format!(" until {}", output::time(until))).unwrap_or_default();
    format!("{} by {by}, {} ago{until}", told.verb, age(now - told.at))
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::{Value, json};

    use super::*;

    fn hook(name: &str, mode: Value, entries: Value) -> Hook {
        serde_json::from_value(json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"eventConfigurations": [], "mode": mode}, "status": {"activeEvents": entries},
        }))
        .unwrap()
    }

    fn entry(id: &str, phase: &str, minute: u32, more: Value) -> Value {
        let seen = format!("2026-01-01T00:{minute:02}:00Z");
        let mut entry = json!({"id": id, "eventType": "oom-kill", "resourceName": "web", "agent": "kagent/a",
            "status": phase, "firstSeen": seen, "lastSeen": seen});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    }

    fn now() -> DateTime<Utc> {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn who_waits_comes_first_and_the_newest_of_them() {
        let entries = json!([
            entry("a", "resolved", 9, json!({})),
            entry("b", "pending", 1, json!({})),
            entry("c", "notified", 3, json!({})),
            entry("d", "pending", 2, json!({})),
            entry("e", "firing", 0, json!({"agent": "kagent/b", "eventType": "pod-pending"})),
        ]);
        let board = Board::of(vec![hook("shop", Value::Null, entries)]);
        let ids = |wanted: Wanted| {
            board.rows(&wanted).into_iter().map(|row| row.incident.id).collect::<Vec<_>>().concat()
        };
        assert_eq!(ids(Wanted::default()), "edbca");
        assert_eq!(ids(Wanted { phase: vec![Phase::Pending], ..Wanted::default() }), "db");
        assert_eq!(ids(Wanted { event_type: vec![EventType::PodPending], ..Wanted::default() }), "e");
        for agent in ["b", "kagent/b"] {
            assert_eq!(ids(Wanted { agent: Some(agent.into()), ..Wanted::default() }), "e", "{agent}");
        }
        assert_eq!(ids(Wanted { agent: Some("gent/b".into()), ..Wanted::default() }), "");
        let rows = board.rows(&Wanted::default());
        let told = "1 Hook, 5 incidents: 1 firing, 1 notified, 2 pending, 1 resolved";
        assert_eq!(board.summary(&rows, &Wanted::default()), told);
        assert_eq!(Board::new().summary(&[], &Wanted::default()), "0 Hooks, no incidents");
    }

    #[test]
    fn what_is_no_real_call_is_marked_and_what_others_write_does_nothing() {
        let entries = json!([entry(
            "a",
            "notified",
            50,
            json!({
                "test": "t1", "answer": "\u{1b}[2Jall\nis\u{202e} well", "message": "\u{9b}31mred", "count": 3, "attempts": 2,
                "instruction": {"verb": "snooze", "by": "a\u{7}da\tb", "at": "2026-01-01T00:58:00Z",
                                "until": "2026-01-01T02:00:00Z"},
            })
        )]);
        let rows = Board::of(vec![hook("shop", json!("Observe"), entries)]).rows(&Wanted::default());
        let plain = |text: String| anstream::adapter::strip_str(&text).to_string();
        let wide = render(&rows, true, true, now());
        assert_eq!(plain(wide.clone()).lines().count(), 2);
        for words in [
            "shop (observe)",
            "oom-kill (test)",
            "10m",
            "snooze by ada b, 2m ago until 2026-01-01T02:00:00Z",
            "[2Jall is well",
            "31mred",
        ] {
            assert!(wide.contains(words), "{words}: {wide}");
        }
        let harmless = |c: char| !c.is_control() || c == '\n' || c == '\u{1b}';
        assert!(wide.chars().all(harmless) && !wide.contains("\u{1b}[2J"), "{wide:?}");
        assert!(plain(render(&rows, false, false, now())).starts_with("HOOK "));
    }

    #[test]
    fn a_board_knows_what_the_watch_says() {
        let mut board = Board::of(vec![hook("gone", Value::Null, json!([]))]);
        assert!(!board.apply(watcher::Event::Init));
        assert!(!board.apply(watcher::Event::InitApply(hook("a", Value::Null, json!([])))));
        assert_eq!(board.hooks.len(), 1, "what was known stands until the list is complete");
        assert!(board.apply(watcher::Event::InitDone));
        assert!(board.apply(watcher::Event::Apply(hook("b", Value::Null, json!([])))));
        assert!(board.apply(watcher::Event::Delete(hook("a", Value::Null, json!([])))));
        assert_eq!(board.hooks.state().iter().map(|hook| hook.name_any()).collect::<Vec<_>>(), ["b"]);
    }
}
