//! A sample of the fault matrix, every fault that once broke a promise, and the proof that the checks can
//! object: khook with one safeguard after another taken out.
//!
//! The whole matrix is `just faults`.

#![allow(missing_docs)]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    control_plane::ControlPlane,
    faults::{
        check::Promise,
        matrix::{self, words},
        point::{Class, Point, points},
        run::Ground,
        scenarios::{SCENARIOS, Scenario, named},
    },
    process::say,
};
use futures::{StreamExt, stream};
use khook::sabotage::Safeguard;

/// Runs at a time: they mostly wait.
const PARALLEL: usize = 8;

async fn ground() -> Result<Ground> {
    Ground::on(ControlPlane::shared().await?).await
}

fn parsed(points: &str) -> Result<Vec<Point>> {
    points.split_whitespace().map(|point| point.parse().map_err(anyhow::Error::msg)).collect()
}

/// Plays a run; answers what was broken, if anything was.
async fn broken(ground: &Ground, scenario: &'static Scenario, points: Vec<Point>) -> Result<Option<String>> {
    let told: Vec<String> = points.iter().map(Point::to_string).collect();
    let (_, verdict) = matrix::play(ground, scenario, points, None, None)
        .await
        .with_context(|| format!("{} {}", scenario.name, told.join(" ")))?;
    let words = words(&verdict.violations);
    Ok((!words.is_empty()).then(|| format!("{} {}: {}", scenario.name, told.join(" "), words.join("; "))))
}

async fn ensure_none_broken(
    ground: &Ground,
    runs: impl IntoIterator<Item = (&'static Scenario, Vec<Point>)>,
) -> Result<usize> {
    let results = stream::iter(runs)
        .map(|(scenario, points)| broken(ground, scenario, points))
        .buffer_unordered(PARALLEL)
        .collect::<Vec<_>>()
        .await;
    let count = results.len();
    let broken: Vec<String> = results.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
    ensure!(broken.is_empty(), "{} of {count} runs broke a promise:\n{}", broken.len(), broken.join("\n"));
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_faults_breaks_no_promise() -> Result<()> {
    let ground = ground().await?;
    // What every scenario has at least; a place that one does not reach changes nothing.
    let places = BTreeMap::from([
        (Class::Status, 4),
        (Class::Lease, 2),
        (Class::Recent, 1),
        (Class::WatchHooks, 2),
        (Class::WatchEvents, 1),
        (Class::WatchPods, 2),
        (Class::Session, 1),
        (Class::Send, 1),
        (Class::Follow, 1),
    ]);
    let mut runs = Vec::new();
    for (index, scenario) in SCENARIOS.iter().enumerate() {
        let points = points(&places, scenario.replicas.len());
        let gentle = points.into_iter().filter(|point| !point.deed.breaks_control_plane());
        // Each scenario meets others: together they meet nearly all.
        let of_it = gentle.skip(index).step_by(3 * SCENARIOS.len());
        runs.extend(of_it.map(|point| (scenario, vec![point])));
        runs.push((scenario, Vec::new()));
    }
    let count = ensure_none_broken(&ground, runs).await?;
    say(&format!("{count} fault runs, no promise broken"));
    Ok(())
}

/// Faults, alone or together, that once broke a promise.
const ONCE_BROKEN: &[(&str, &str)] = &[
    // Incidents that another writer took out of the status were lost, or called about again.
    ("storm", "status:3:wipe"),
    ("restart", "send:1:wipe"),
    // More calls were in flight to an agent than it has slots.
    ("flaky", "status:3:garbage"),
    // Outcomes waited for the watch of Hooks to be well again.
    ("legacy", "watch-hooks:2:swallow send:1:wipe"),
    // A message left although the Hook had been deleted, or suspended, while its session was opened.
    ("restart", "session:1:recreate-meanwhile"),
    ("restart", "session:1:suspend-meanwhile"),
    ("restart", "session:1:remove-meanwhile"),
    // While an agent's card could not be read, its URL was taken for its endpoint: there was no list of tasks, and
    // the message was sent again blindly, though the agent has one.
    ("direct-1.0", "send:1:lose-answer card:3:fail"),
    ("direct-1.0", "send:1:lose-answer card:3:busy"),
    // What was there instead of a card was believed for ten minutes.
    ("direct-1.0", "send:1:kill-after card:3:garbage"),
    // What had been refused for its dialect was sent in the other, though it had been taken back meanwhile.
    ("kagent-1.0", "session:1:remove send:1:delay"),
];

/// What agents without kagent's sessions are most likely to be asked twice by, or never.
const WITHOUT_SESSIONS: &[(&str, &str)] = &[
    ("direct-0.3", "send:1:lose-answer send:2:lose-answer send:3:lose-answer send:4:lose-answer"),
    ("direct-0.3", "send:1:kill-after send:2:drop"),
    ("direct-1.0", "send:1:lose-answer lookup:1:garbage"),
    ("direct-1.0", "card:1:suspend-meanwhile send:2:hang-after"),
    ("direct-1.0", "secret:3:kill-before"),
    ("kagent-1.0", "send:1:lose-answer lookup:2:fail"),
    ("kagent-1.0", "send:2:kill-after send:3:lose-answer"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_a_promise_or_is_likely_to_keeps_it() -> Result<()> {
    let ground = ground().await?;
    let mut runs = Vec::new();
    for (scenario, points) in ONCE_BROKEN.iter().chain(WITHOUT_SESSIONS) {
        runs.push((named(scenario)?, parsed(points)?));
    }
    ensure_none_broken(&ground, runs).await.map(drop)
}

/// A safeguard, where its lack shows, and which promises it breaks there.
struct Sabotage {
    out: Safeguard,
    scenario: &'static str,
    points: &'static str,
    breaks: &'static [Promise],
    /// For the documentation: what khook then does.
    then: &'static str,
}

const fn sabotage(
    out: Safeguard,
    scenario: &'static str,
    points: &'static str,
    breaks: &'static [Promise],
    then: &'static str,
) -> Sabotage {
    Sabotage { out, scenario, points, breaks, then }
}

use Promise::{L1, L2, L3, L4, S1, S2, S3, S4, S5, S6, S7};

const SABOTAGE: &[Sabotage] = &[
    sabotage(Safeguard::Claim, "restart", "status:2:delay", &[S1], "calls before the claim has committed"),
    sabotage(Safeguard::Version, "both", "", &[S1, S3, S4], "writes over whatever is stored"),
    sabotage(
        Safeguard::Retry,
        "restart",
        "session:1:away",
        &[L1],
        "gives an incident up at its first failure",
    ),
    sabotage(Safeguard::Staleness, "late", "", &[S6], "takes old stories for news"),
    sabotage(Safeguard::Comparison, "away", "", &[L1], "does not compare the status with a new list of pods"),
    sabotage(Safeguard::Breaker, "flaky", "", &[S7], "goes on calling an agent that is away"),
    sabotage(Safeguard::Lookup, "restart", "send:1:lose-answer", &[S2], "sends again without a lookup"),
    sabotage(Safeguard::Inbox, "restart", "status:2:fail", &[L1], "forgets inputs before they are written"),
    sabotage(
        Safeguard::Takeover,
        "restart",
        "send:1:kill-after",
        &[L2],
        "leaves a dead process's call alone",
    ),
    sabotage(
        Safeguard::Recall,
        "restart",
        "session:1:suspend-meanwhile",
        &[S6],
        "does not ask again before a message leaves",
    ),
    sabotage(Safeguard::Bound, "full", "", &[S5], "lets the list grow"),
    sabotage(Safeguard::Ids, "restart", "send:1:busy", &[S2], "draws a new message id for each attempt"),
    sabotage(Safeguard::Lease, "two", "status:3:pause", &[L4], "never takes a Lease that is not renewed"),
    sabotage(Safeguard::Rest, "restart", "", &[L3], "writes though nothing changed"),
    sabotage(
        Safeguard::Farewell,
        "resolved",
        "send:2:lose-answer",
        &[S2],
        "says once more that it is over, though it may have been heard",
    ),
];

#[test]
fn the_documentation_has_every_safeguard() {
    let mut table = String::from("| without | khook | played | broken |\n|---|---|---|---|\n");
    for Sabotage { out, scenario, points, breaks, then } in SABOTAGE {
        let breaks: Vec<String> = breaks.iter().map(Promise::to_string).collect();
        let played = [*scenario, *points].join(" ");
        table += &format!("| {} | {then} | `{}` | {} |\n", out.as_str(), played.trim(), breaks.join(", "));
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reliability.md");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    assert!(text.contains(&table), "docs/reliability.md must have this table:\n{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checks_object_to_every_safeguard_taken_out() -> Result<()> {
    ensure!(
        Safeguard::ALL.iter().all(|safeguard| SABOTAGE.iter().any(|tried| tried.out == *safeguard)),
        "a safeguard is not tried"
    );
    let ground = ground().await?;
    let caught = stream::iter(SABOTAGE)
        .map(|Sabotage { out, scenario, points, breaks, .. }| {
            let ground = &ground;
            async move {
                let points = parsed(points)?;
                let (_, verdict) = matrix::play(ground, named(scenario)?, points, Some(*out), None).await?;
                let objects = verdict.violations.iter().any(|(promise, _)| breaks.contains(promise));
                let words = words(&verdict.violations);
                ensure!(objects, "nothing objects to khook without {}: {words:?}", out.as_str());
                Ok(())
            }
        })
        .buffer_unordered(PARALLEL)
        .collect::<Vec<Result<()>>>();
    let caught = tokio::time::timeout(Duration::from_secs(300), caught).await.context("it takes too long")?;
    let missed: Vec<String> =
        caught.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}
