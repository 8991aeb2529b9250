//! A matrix is every scenario with every fault it can meet, one at a time, and with several at once by seed.
//!
//! It can be stopped and goes on where it was: each result is a line in a file, valid for the build that made
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{IsTerminal, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use khook::sabotage::Safeguard;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    check::{self, Verdict, Violation},
    point::{Class, Deed, Point, pairs, points},
    record::{Line, save},
    run::{Ground, Options, Played},
    scenarios::{SCENARIOS, Scenario},
};
use crate::{
    control_plane::{ControlPlane, Options as ControlPlaneOptions},
    process::{binary, say},
};

/// What to play.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Only these scenarios; all where there are none.
    pub scenarios: Vec<String>,
    /// Only these faults, all in one run; the whole catalog where there are none.
    pub points: Vec<Point>,
    /// Runs with several faults, for each scenario.
    pub seeds: u64,
    /// Every so many single faults only: 1 is all of them.
    pub every: usize,
    /// Runs at a time.
    pub parallel: usize,
    /// No new run begins after this.
    pub budget: Duration,
    /// The folder of results, and of the records of what went wrong.
    pub folder: PathBuf,
    /// The safeguard that khook works without.
    pub without: Option<Safeguard>,
}

/// One run to be made.
#[derive(Clone)]
struct Job {
    scenario: &'static Scenario,
    points: Vec<Point>,
    seed: Option<u64>,
}

/// What came of one run, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    /// The faults.
    pub points: Vec<Point>,
    /// The seed they were chosen by.
    pub seed: Option<u64>,
    /// How many never had their moment, or came to nothing.
    pub unreached: usize,
    /// What was promised and not kept.
    pub violations: Vec<String>,
    /// Runs of agents.
    pub calls: usize,
    /// Runs beyond one per incident and window, by what allowed them.
    pub extra: BTreeMap<String, usize>,
    /// Milliseconds from the last fault until all was at rest.
    pub recovery: u64,
}

/// Plays one run and checks it; keeps the record of one that broke a promise, and khook's logs.
pub async fn play(
    ground: &Ground,
    scenario: &'static Scenario,
    points: Vec<Point>,
    without: Option<Safeguard>,
    keep: Option<&Path>,
) -> Result<(Played, Verdict)> {
    let name: Vec<String> = points.iter().map(Point::to_string).collect();
    let name = format!("{}-{}", scenario.name, name.join("+")).replace([':', '@'], "_");
    let folder = keep.map(|keep| keep.join(name));
    // What is broken on purpose is not waited for as long.
    let settle = without.map(|_| Duration::from_secs(12));
    let played = ground.play(scenario, Options { points, without, settle, logs: folder.clone() }).await?;
    let verdict = check::check(&played.lines);
    if let Some(folder) = folder {
        match verdict.violations.is_empty() {
            true => fs::remove_dir_all(&folder).context("removing logs nobody needs")?,
            false => save(&played.lines, &folder.join("record.jsonl"))?,
        }
    }
    Ok((played, verdict))
}

/// Plays all that is wanted and prints the table. Answers whether every promise was kept.
pub async fn run(wanted: Wanted) -> Result<bool> {
    let begun = Instant::now();
    let chosen: Vec<&'static Scenario> = match &wanted.scenarios[..] {
        [] => SCENARIOS.iter().collect(),
        names => names.iter().map(|name| super::scenarios::named(name)).collect::<Result<_>>()?,
    };
    fs::create_dir_all(&wanted.folder).context("the folder of results")?;
    let shared = ground().await?;
    let jobs = match wanted.points.is_empty() {
        false => {
            let job = |scenario| Job { scenario, points: wanted.points.clone(), seed: None };
            chosen.iter().map(|scenario| job(*scenario)).collect()
        }
        true => jobs(shared, &chosen, &wanted).await?,
    };
    let mut book = Book::open(&wanted)?;
    let todo: Vec<Job> = jobs.iter().filter(|job| !book.has(job)).cloned().collect();
    say(&format!("{} runs, {} of them done before", jobs.len(), jobs.len() - todo.len()));
    let (rough, gentle): (Vec<Job>, Vec<Job>) =
        todo.into_iter().partition(|job| job.points.iter().any(|point| point.deed.breaks_control_plane()));
    let left = |_: &Job| futures::future::ready(begun.elapsed() < wanted.budget);
    // Those that break the control plane itself have one of their own, and go one after another.
    let own = match rough.is_empty() {
        true => None,
        false => Some(ground().await?),
    };
    let keep = Some(wanted.folder.join("broken"));
    let played = |ground: &'static Ground, job: Job| {
        let (without, keep) = (wanted.without, keep.clone());
        async move {
            let result = play(ground, job.scenario, job.points.clone(), without, keep.as_deref()).await;
            (job, result)
        }
    };
    let played = &played;
    let gentle = stream::iter(gentle)
        .take_while(left)
        .map(|job| played(shared, job))
        .buffer_unordered(wanted.parallel)
        .boxed_local();
    let rough = match own {
        Some(own) => stream::iter(rough).take_while(left).then(move |job| played(own, job)).boxed_local(),
        None => stream::empty().boxed_local(),
    };
    let mut all = stream::select(gentle, rough);
    let mut progress =
        Progress { begun, done: jobs.len() - book.missing(&jobs), first: 0, all: jobs.len(), broken: 0 };
    progress.first = progress.done;
    while let Some((job, result)) = all.next().await {
        let outcome = match result {
            Ok((played, verdict)) => outcome(&job, &played, &verdict),
            // What the harness itself cannot do is no proof of anything.
            Err(error) => {
                say(&format!("{} could not be played: {error:#}", told(&job)));
                continue;
            }
        };
        for violation in &outcome.violations {
            say(&format!("{}: {violation}", told(&job)));
        }
        progress.step(&job, !outcome.violations.is_empty());
        book.keep(outcome)?;
    }
    let table = table(&book.outcomes);
    if wanted.points.is_empty() {
        fs::write(wanted.folder.join("table.md"), &table).context("writing the table")?;
    }
    println!("{table}");
    let missing = book.missing(&jobs);
    if missing > 0 {
        println!("{missing} runs are left; the same command goes on with them.");
    }
    println!("{:.1} minutes, results in {}", begun.elapsed().as_secs_f64() / 60.0, wanted.folder.display());
    Ok(missing == 0 && book.outcomes.iter().all(|outcome| outcome.violations.is_empty()))
}

/// A control plane of its own, which ends with this process.
async fn ground() -> Result<&'static Ground> {
    let control_plane = ControlPlane::start(ControlPlaneOptions::default()).await?;
    Ok(Box::leak(Box::new(Ground::on(Box::leak(Box::new(control_plane))).await?)))
}

/// Every run: each scenario without a fault shows what it can meet; then each fault, and some at once.
async fn jobs(ground: &Ground, chosen: &[&'static Scenario], wanted: &Wanted) -> Result<Vec<Job>> {
    let file = wanted.folder.join(format!("counts-{}.json", fingerprint(wanted)?));
    // What a scenario can meet must be the same when a matrix is taken up again.
    let mut known: BTreeMap<String, BTreeMap<Class, u32>> = match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    };
    let unknown: Vec<&'static Scenario> =
        chosen.iter().copied().filter(|scenario| !known.contains_key(scenario.name)).collect();
    let keep = wanted.folder.join("broken");
    let mut first = stream::iter(unknown)
        .map(|scenario| {
            let keep = keep.clone();
            async move { (scenario, play(ground, scenario, Vec::new(), None, Some(&keep)).await) }
        })
        .buffer_unordered(wanted.parallel)
        .boxed_local();
    while let Some((scenario, result)) = first.next().await {
        let (played, verdict) = result.with_context(|| scenario.name.to_owned())?;
        let words = words(&verdict.violations).join("; ");
        ensure!(
            verdict.violations.is_empty(),
            "{} breaks a promise without any fault: {words}",
            scenario.name
        );
        known.insert(scenario.name.to_owned(), played.counts);
    }
    drop(first);
    fs::write(&file, serde_json::to_vec(&known)?).context("writing what scenarios meet")?;
    let mut jobs = Vec::new();
    for scenario in chosen {
        let mut points = points(&known[scenario.name], scenario.replicas.len());
        if scenario.replicas.iter().any(|env| env.iter().any(|(name, _)| *name == khook::sabotage::CLOCK)) {
            // What one with a clock ahead leaves behind is over by as much later for the other.
            points.retain(|point| point.deed != Deed::Die);
        }
        let single = points.iter().step_by(wanted.every.max(1));
        jobs.push(Job { scenario, points: Vec::new(), seed: None });
        jobs.extend(single.map(|point| Job { scenario, points: vec![*point], seed: None }));
        let pairs = pairs(&known[scenario.name]).into_iter().step_by(wanted.every.max(1));
        jobs.extend(pairs.map(|points| Job { scenario, points, seed: None }));
        jobs.extend((0..wanted.seeds).map(|seed| Job {
            scenario,
            points: drawn(scenario.name, seed, &points, scenario.replicas.len()),
            seed: Some(seed),
        }));
    }
    Ok(jobs)
}

/// Two or three faults that the seed chooses, on any replica.
fn drawn(scenario: &str, seed: u64, points: &[Point], replicas: usize) -> Vec<Point> {
    // Any hash will do, as long as it is the same tomorrow.
    let draw = |what: &str, of: usize| {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{scenario} {seed} {what}").as_bytes());
        usize::try_from(hash.as_u64_pair().0 % of.max(1) as u64).unwrap_or_default()
    };
    let points: Vec<&Point> = points.iter().filter(|point| !point.deed.breaks_control_plane()).collect();
    let mut places = BTreeSet::new();
    let mut drawn = Vec::new();
    for index in 0..2 + draw("how many", 2) {
        let Some(point) = points.get(draw(&format!("point {index}"), points.len())) else { continue };
        let point = Point { replica: draw(&format!("replica {index}"), replicas), ..**point };
        // One thing at a place; and one at most that takes the scenario's wish back, or a replica for good.
        let final_ = |point: &Point| point.deed.takes_back() || point.deed == Deed::Die;
        if !(final_(&point) && drawn.iter().any(final_))
            && places.insert((point.replica, point.class, point.nth))
        {
            drawn.push(point);
        }
    }
    drawn
}

fn outcome(job: &Job, played: &Played, verdict: &Verdict) -> Outcome {
    Outcome {
        scenario: job.scenario.name.to_owned(),
        points: job.points.clone(),
        seed: job.seed,
        unreached: played.unreached,
        violations: words(&verdict.violations),
        calls: verdict.calls,
        extra: verdict.extra.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect(),
        recovery: u64::try_from(verdict.recovery.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Violations in words.
pub fn words(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(|(promise, how)| format!("{promise}: {how}")).collect()
}

fn told(job: &Job) -> String {
    let points: Vec<String> = job.points.iter().map(Point::to_string).collect();
    let seed = job.seed.map_or(String::new(), |seed| format!(" (seed {seed})"));
    format!("{} {}{seed}", job.scenario.name, points.join(" "))
}

/// The results so far.
struct Book {
    file: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Book {
    fn open(wanted: &Wanted) -> Result<Self> {
        // Runs that were chosen by hand are no part of the matrix.
        let kind = if wanted.points.is_empty() { "results" } else { "chosen" };
        let file = wanted.folder.join(format!("{kind}-{}.jsonl", fingerprint(wanted)?));
        let text = fs::read_to_string(&file).unwrap_or_default();
        // A line that was cut off when it was stopped is one run to be made again.
        let outcomes = text.lines().filter(|_| wanted.points.is_empty());
        let outcomes = outcomes.filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { file, outcomes })
    }

    fn has(&self, job: &Job) -> bool {
        self.outcomes
            .iter()
            .any(|outcome| (outcome.scenario.as_str(), &outcome.points) == (job.scenario.name, &job.points))
    }

    fn missing(&self, jobs: &[Job]) -> usize {
        jobs.iter().filter(|job| !self.has(job)).count()
    }

    fn keep(&mut self, outcome: Outcome) -> Result<()> {
        let mut file =
            fs::File::options().create(true).append(true).open(&self.file).context("the results")?;
        writeln!(file, "{}", serde_json::to_string(&outcome)?).context("a result")?;
        self.outcomes.push(outcome);
        Ok(())
    }
}

/// What makes results comparable: the same program.
fn fingerprint(wanted: &Wanted) -> Result<String> {
    let program = fs::read(binary()?).context("our own program")?;
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, &program);
    let without = wanted.without.map(|safeguard| format!("-{}", safeguard.as_str()));
    Ok(format!("{:.8}{}", id.simple().to_string(), without.unwrap_or_default()))
}

struct Progress {
    begun: Instant,
    done: usize,
    first: usize,
    all: usize,
    broken: usize,
}

impl Progress {
    fn step(&mut self, job: &Job, broken: bool) {
        self.done += 1;
        self.broken += usize::from(broken);
        let each = self.begun.elapsed().as_secs_f64() / (self.done - self.first).max(1) as f64;
        let left = each * (self.all - self.done) as f64 / 60.0;
        let line =
            format!("[{}/{}] {} broken, {left:.0} min left; {}", self.done, self.all, self.broken, told(job));
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K{line}");
        } else if self.done.is_multiple_of(50) || self.done == self.all {
            say(&line);
        }
    }
}

/// The table of `docs/reliability.md`.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| scenario | runs | faults that showed | violations | calls | extra calls | slowest recovery |\n|---|---|---|---|---|---|---|\n",
    );
    let mut row = |name: &str, of: &[&Outcome]| {
        let sum = |count: fn(&Outcome) -> usize| of.iter().map(|outcome| count(outcome)).sum::<usize>();
        let mut extra: BTreeMap<&str, usize> = BTreeMap::new();
        for (cause, count) in of.iter().flat_map(|outcome| &outcome.extra) {
            *extra.entry(cause).or_default() += count;
        }
        let extra: Vec<String> = extra.iter().map(|(cause, count)| format!("{count}: {cause}")).collect();
        let slowest = of.iter().max_by_key(|outcome| outcome.recovery);
        let slowest = slowest.map_or(String::new(), |outcome| {
            let points: Vec<String> = outcome.points.iter().map(Point::to_string).collect();
            format!("{:.1} s ({})", outcome.recovery as f64 / 1000.0, points.join(" + "))
        });
        writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {slowest} |",
            of.len(),
            sum(|outcome| outcome.points.len().saturating_sub(outcome.unreached)),
            sum(|outcome| outcome.violations.len()),
            sum(|outcome| outcome.calls),
            if extra.is_empty() { "0".to_owned() } else { extra.join("; ") },
        )
        .unwrap_or_default();
    };
    for scenario in SCENARIOS {
        let of: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.scenario == scenario.name).collect();
        if !of.is_empty() {
            row(scenario.name, &of);
        }
    }
    row("all", &outcomes.iter().collect::<Vec<_>>());
    text
}

/// The record of a run, checked again.
pub fn check_file(lines: &[Line]) -> bool {
    let verdict = check::check(lines);
    for line in words(&verdict.violations) {
        println!("{line}");
    }
    println!(
        "{} calls, extra {:?}, at rest {:?} after the last fault",
        verdict.calls, verdict.extra, verdict.recovery
    );
    verdict.violations.is_empty()
}
