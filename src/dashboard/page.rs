//! The page is what a person sees: written here, and kept fresh by pieces of it that a stream brings.
//!
//! askama escapes every text. What is marked as safe in a template was written by another template.

use askama::Template;
use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use chrono::{DateTime, Days, NaiveDate, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{
    Shared, api,
    board::{Board, Changes, Id, Item, Reader},
    feed, serve,
};
use crate::{
    hook::{Mode, Phase, Reason},
    incident::prompt::rfc3339,
    view::{self, AgentView, HookView, Incident, Moment, age},
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// Days whose calls are shown.
const DAYS: u64 = 7;

/// Height of the bars of calls, as they are drawn.
const BAR: i64 = 24;

/// The page itself.
#[derive(Template)]
#[template(path = "dashboard/board.html")]
struct Page<'a> {
    root: &'a str,
    version: &'a str,
    state: String,
    lanes: Vec<Lane>,
    agents: Vec<String>,
    hooks: Vec<String>,
}

/// A phase and its incidents.
struct Lane {
    phase: Phase,
    title: &'static str,
    about: &'static str,
    cards: Vec<String>,
}

/// An incident among others.
#[derive(Template)]
#[template(path = "dashboard/card.html")]
struct Card<'a> {
    incident: &'a Incident,
    key: String,
    order: String,
    href: String,
    tone: &'static str,
    why: String,
    age: String,
}

/// A Hook and what it costs.
#[derive(Template)]
#[template(path = "dashboard/hook.html")]
struct HookTile<'a> {
    hook: &'a HookView,
    tone: &'static str,
    standing: String,
    today: i64,
    week: i64,
    bars: Vec<Bar>,
    /// The bars in words.
    days: String,
}

/// The calls of a day.
struct Bar {
    x: u64,
    y: i64,
    height: i64,
}

/// An agent and how it does.
#[derive(Template)]
#[template(path = "dashboard/agent.html")]
struct AgentTile<'a> {
    agent: &'a AgentView,
    tone: &'static str,
    rate: String,
    median: String,
    longest: String,
}

/// All that is known of an incident.
#[derive(Template)]
#[template(path = "dashboard/incident.html")]
struct Detail<'a> {
    root: &'a str,
    incident: &'a Incident,
    key: String,
    tone: &'static str,
    timeline: Vec<Moment>,
    now: DateTime<Utc>,
    message: Option<String>,
    /// http or https, and nothing else.
    session_url: Option<&'a str>,
}

/// What is not there.
#[derive(Template)]
#[template(path = "dashboard/missing.html")]
struct Missing<'a> {
    root: &'a str,
    what: &'a str,
}

/// Which board the page has.
#[derive(Deserialize)]
struct Known {
    since: Option<String>,
}

/// What the page's stream brings.
#[derive(Serialize)]
struct Pieces<'a> {
    /// Elements, each with its id and place.
    upsert: Vec<String>,
    /// Ids of elements.
    remove: Vec<String>,
    state: &'a feed::State,
}

/// The routes of the page.
pub fn routes() -> Router<Shared> {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", get(page))
        .route("/incidents/{namespace}/{hook}/{id}", get(detail))
        .route("/stream", get(stream))
        .route("/page.css", file("text/css; charset=utf-8", STYLE))
        .route("/page.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/icon.svg", file("image/svg+xml", ICON))
        .fallback(async || missing("", "There is nothing at this address."))
}

async fn page(State(shared): State<Shared>) -> Response {
    let board = shared.hub.board();
    let now = Utc::now();
    let mut incidents: Vec<&Incident> = board.incidents().collect();
    incidents.sort_by_cached_key(|incident| order(incident));
    let lanes = Phase::ALL.map(|phase| Lane {
        phase,
        title: match phase {
            Phase::Pending => "Pending",
            Phase::Firing => "Firing",
            Phase::Notified => "Notified",
            Phase::Resolved => "Resolved",
        },
        about: match phase {
            Phase::Pending => "wait for their call",
            Phase::Firing => "the agent is being called",
            Phase::Notified => "the agent has them",
            Phase::Resolved => "over, kept for a while",
        },
        cards: incidents.iter().filter(|i| i.phase == phase).map(|incident| card(incident, now)).collect(),
    });
    let page = Page {
        root: "",
        version: &board.version,
        state: json(&board.state),
        lanes: lanes.into(),
        agents: board.agents().map(agent_tile).collect(),
        hooks: board.hooks().map(|hook| hook_tile(hook, board.today)).collect(),
    };
    written(StatusCode::OK, &page)
}

async fn detail(
    State(shared): State<Shared>,
    Path((namespace, name, id)): Path<(String, String, String)>,
) -> Response {
    let hook = shared.hub.hook(&namespace, &name);
    let found = hook.as_ref().and_then(|hook| {
        let incident = view::incidents(hook).find(|incident| incident.id == id)?;
        Some((hook, incident))
    });
    let Some((hook, incident)) = found else {
        return missing("../../../", "This incident is not remembered any more.");
    };
    let detail = Detail {
        root: "../../../",
        incident: &incident,
        key: incident.key(),
        tone: tone(&incident),
        timeline: incident.timeline(),
        now: Utc::now(),
        message: view::message(hook, &id),
        session_url: incident.session_url.as_deref().filter(|url| is_web(url)),
    };
    written(StatusCode::OK, &detail)
}

async fn stream(State(shared): State<Shared>, Query(known): Query<Known>, line: serve::Line) -> Response {
    shared.stream(Reader::Page, known.since.as_deref(), line)
}

fn missing(root: &str, what: &str) -> Response {
    written(StatusCode::NOT_FOUND, &Missing { root, what })
}

fn written(status: StatusCode, template: &impl Template) -> Response {
    (status, Html(render(template))).into_response()
}

/// A template writes to memory, which does not fail.
fn render(template: &impl Template) -> String {
    template.render().unwrap_or_default()
}

/// The event of a whole board.
pub fn snapshot(board: &Board) -> Bytes {
    event("snapshot", board, board.items.values(), &[])
}

/// The event of changes.
pub fn changes(changes: &Changes) -> Bytes {
    event("changes", &changes.board, &changes.new, &changes.gone)
}

fn event<'a>(name: &str, board: &Board, new: impl IntoIterator<Item = &'a Item>, gone: &[Id]) -> Bytes {
    let now = Utc::now();
    let upsert = new.into_iter().map(|item| match item {
        Item::Incident(incident) => card(incident, now),
        Item::Hook(hook) => hook_tile(hook, board.today),
        Item::Agent(agent) => agent_tile(agent),
    });
    let remove = gone.iter().map(|(kind, key)| format!("{kind}:{key}")).collect();
    let mut text = String::new();
    let pieces = Pieces { upsert: upsert.collect(), remove, state: &board.state };
    api::event(&mut text, name, &board.version, &pieces);
    text.into()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn card(incident: &Incident, now: DateTime<Utc>) -> String {
    let path = [&incident.namespace, &incident.hook, &incident.id];
    let path = path.map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string());
    render(&Card {
        incident,
        key: incident.key(),
        order: order(incident),
        href: format!("incidents/{}", path.join("/")),
        tone: tone(incident),
        // That it is only observed is marked already.
        why: incident
            .reason
            .filter(|reason| *reason != Reason::Observed)
            .map_or_else(String::new, |reason| words(reason.as_str())),
        age: age(now - incident.first_seen),
    })
}

fn hook_tile(hook: &HookView, today: NaiveDate) -> String {
    let days = (0..DAYS).rev().filter_map(|back| today.checked_sub_days(Days::new(back)));
    let calls: Vec<(NaiveDate, i64)> = days.map(|day| (day, hook.calls_on(day).max(0))).collect();
    let most = calls.iter().map(|(_, calls)| *calls).max().unwrap_or(0).max(1);
    let bars = (0..).zip(&calls).map(|(index, (_, calls))| {
        // Also nothing has a bar, so that the days can be counted; what is little is seen to be more than nothing.
        let height = match *calls {
            0 => 1,
            calls => (calls.saturating_mul(BAR) / most).max(4),
        };
        Bar { x: index * 10, y: BAR - height, height }
    });
    let words = calls.iter().map(|(day, calls)| format!("{}: {calls}", day.format("%a %d %b")));
    let (tone, standing) = match hook {
        HookView { stalled: Some(_), .. } => ("bad", "stalled"),
        HookView { ready: Some(false), .. } => ("bad", "not ready"),
        HookView { suspended: true, .. } => ("off", "suspended"),
        HookView { mode: Mode::Observe, .. } => ("off", "observes"),
        HookView { ready: None, .. } => ("off", "not looked at yet"),
        HookView { .. } => ("good", "ready"),
    };
    render(&HookTile {
        hook,
        tone,
        standing: standing.to_owned(),
        today: hook.calls_on(today),
        week: calls.iter().fold(0, |sum, (_, calls)| sum.saturating_add(*calls)),
        bars: bars.collect(),
        days: words.collect::<Vec<_>>().join(", "),
    })
}

fn agent_tile(agent: &AgentView) -> String {
    let span = |seconds: Option<i64>| match seconds.and_then(chrono::TimeDelta::try_seconds) {
        Some(span) => age(span),
        None => "–".into(),
    };
    let (tone, rate) = match agent.success_rate {
        None => ("off", "–".into()),
        // 199 of 200 is not all.
        Some(rate) if rate >= 1.0 => ("good", "100 %".into()),
        Some(rate) => {
            (if rate >= 0.8 { "busy" } else { "bad" }, format!("{:.0} %", (rate * 100.0).min(99.0)))
        }
    };
    render(&AgentTile {
        agent,
        tone,
        rate,
        median: span(agent.median_seconds),
        longest: span(agent.longest_seconds),
    })
}

/// Where an incident stands among others of its phase, as text that sorts: the youngest first.
fn order(incident: &Incident) -> String {
    let age = i64::MAX.saturating_sub(incident.first_seen.timestamp_millis().max(0));
    format!("{age:020} {}", incident.key())
}

/// How an incident does, for its colour.
fn tone(incident: &Incident) -> &'static str {
    use {crate::incident::outcome::EndState as E, Reason as R};
    match (incident.phase, incident.reason, incident.outcome) {
        (
            _,
            Some(R::BackingOff | R::CircuitOpen | R::AgentNotReady | R::AgentCallFailed | R::NotDelivered),
            _,
        ) => "bad",
        (_, _, Some(E::Completed)) => "good",
        (_, _, Some(_)) => "bad",
        (Phase::Firing | Phase::Notified, _, None) if !incident.observed => "busy",
        (_, _, None) => "off",
    }
}

/// `WaitingForSlot` as words.
fn words(name: &str) -> String {
    let mut words = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

/// Whether a link leads to a web page: any other scheme is text.
fn is_web(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

/// A time for programs, and for people without a script.
fn stamp(time: &DateTime<Utc>) -> String {
    rfc3339(*time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_as_words() {
        assert_eq!(words("WaitingForSlot"), "waiting for slot");
        assert_eq!(words(""), "");
    }

    #[test]
    fn only_web_addresses_are_links() {
        assert!(is_web("https://kagent.example.com/s/1") && is_web("HTTP://x/"));
        for url in
            ["javascript:alert(1)", " java\nscript:alert(1)", "data:text/html,x", "//x/y", "", "file:///etc"]
        {
            assert!(!is_web(url), "{url}");
        }
    }
}
