//! A record is what passed in one fault run, in order: lines of JSON, one for each thing that happened.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use khook::{
    hook::{EventType, HookStatus},
    incident::outcome::EndState,
};
use serde::{Deserialize, Serialize};

use super::point::{Class, Deed, Point};

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since the run began, on the monotonic clock.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

impl Line {
    /// When it happened, from the beginning of the run.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.at)
    }
}

/// What can happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum What {
    /// The run begins.
    Begin {
        /// Name of the scenario.
        scenario: String,
        /// What is to break.
        points: Vec<Point>,
        /// The spans and bounds that the checks need.
        terms: Terms,
    },
    /// The scenario expects this of its incident, whatever breaks.
    Expect {
        /// The trouble.
        event_type: EventType,
        /// The pod.
        pod: String,
        /// The agent.
        agent: String,
        /// Whether it is to be asked.
        asked: Asked,
        /// How often at most, if nobody can be blamed for more.
        most: usize,
    },
    /// khook started, was killed, was stopped with SIGSTOP, or goes on.
    Process {
        /// Which replica.
        replica: usize,
        /// What became of it.
        became: Became,
    },
    /// A request arrived at a proxy.
    Request {
        /// Its number in this run.
        number: u64,
        /// The replica it came from.
        replica: usize,
        /// What it asks for.
        class: Class,
        /// Of a message, a session and a lookup: the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        /// Of a message: its id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Of a Lease: who is to hold it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<String>,
    },
    /// It was answered.
    Answer {
        /// The number of the request.
        number: u64,
        /// The HTTP status that the server answered, or that the proxy made up; none if there was no answer.
        code: Option<u16>,
        /// Whether the server had the request.
        served: bool,
        /// Whether khook got the answer, whole.
        delivered: bool,
        /// The version of the Hook in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        /// Of a message and of a lookup: the code of the JSON-RPC error it was answered with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rpc: Option<i64>,
        /// Of a message: whether a run began.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ran: bool,
        /// Of a lookup: the messages in the session.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        shows: Vec<String>,
    },
    /// The apiserver had this version of a Hook.
    Version {
        /// Its resourceVersion.
        version: u64,
        /// UID of the Hook.
        uid: String,
        /// Its generation.
        generation: i64,
        /// Whether it was deleted.
        deleted: bool,
        /// Its status.
        status: Box<HookStatus>,
    },
    /// A replica was told by its watch.
    Told {
        /// Which replica.
        replica: usize,
        /// UID of the Hook.
        uid: String,
        /// Its generation.
        generation: i64,
        /// Whether it was deleted.
        deleted: bool,
        /// Whether it is suspended.
        suspended: bool,
        /// The kinds of trouble it asks about.
        types: Vec<String>,
    },
    /// A fault showed.
    Broke {
        /// The fault.
        point: Point,
    },
    /// Nothing came of a fault, or it could not be undone.
    Idle {
        /// The fault.
        deed: Deed,
        /// Why.
        why: String,
    },
    /// Somebody else than khook wrote to a Hook.
    Wrote {
        /// What they did.
        deed: Deed,
        /// UID of the Hook.
        uid: String,
        /// The version they made, where they made one.
        version: Option<u64>,
        /// The generation of it.
        generation: Option<i64>,
    },
    /// All is over: from here on nothing may be written.
    Rest,
    /// The run ends.
    End {
        /// Why it did not come to rest, if it did not.
        unsettled: Option<String>,
        /// The longest time for which this machine let the recorder itself wait, in microseconds.
        lag: u64,
    },
}

/// What a replica became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Became {
    /// It runs.
    Started,
    /// SIGKILL.
    Killed,
    /// SIGSTOP.
    Paused,
    /// SIGCONT.
    Resumed,
}

/// Whether an agent is to be asked about an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// It is.
    Surely,
    /// It is not.
    Never,
}

/// Spans and bounds that the checks need.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The names of the replicas' pods, with which their claims begin.
    pub replicas: Vec<String>,
    /// Whether they stand for election.
    pub elected: bool,
    /// Most entries of a list.
    pub max_entries: usize,
    /// Failures that open a breaker.
    pub breaker_threshold: usize,
    /// Milliseconds it then stays open.
    pub breaker_base: u64,
    /// Most calls to one agent at a time.
    pub slots: usize,
    /// Milliseconds for which leadership lasts.
    pub lease: u64,
    /// Milliseconds between two looks at the Lease.
    pub look: u64,
    /// Milliseconds after which trouble is no news any more.
    pub stale: u64,
    /// Whether nobody can be asked which messages an agent has had.
    #[serde(default)]
    pub blind: bool,
}

/// Something that a scenario expects.
#[derive(Clone, Debug)]
pub struct Expected {
    /// When it was said; the trouble follows at once.
    pub at: Duration,
    /// The trouble.
    pub event_type: EventType,
    /// The pod.
    pub pod: String,
    /// The agent.
    pub agent: String,
    /// Whether it is to be asked.
    pub asked: Asked,
    /// How often at most.
    pub most: usize,
}

/// All trouble that the scenario makes, and what it expects of it.
pub fn trouble(lines: &[Line]) -> Vec<Expected> {
    let expected = |line: &Line| match &line.what {
        What::Expect { event_type, pod, agent, asked, most } => Some(Expected {
            at: line.time(),
            event_type: *event_type,
            pod: pod.clone(),
            agent: agent.clone(),
            asked: *asked,
            most: *most,
        }),
        _ => None,
    };
    lines.iter().filter_map(expected).collect()
}

/// The same but for what no khook could know: it was old news when the last one began, or went on.
pub fn expected(lines: &[Line]) -> Vec<Expected> {
    let mut stale = Duration::MAX;
    let mut begun = Duration::ZERO;
    let mut all = trouble(lines);
    for line in lines {
        match &line.what {
            What::Begin { terms, .. } => stale = Duration::from_millis(terms.stale),
            What::Process { became: Became::Started | Became::Resumed, .. } => begun = line.time(),
            // What a new Hook hears of, it hears of now.
            What::Wrote { deed: Deed::Recreate | Deed::RecreateMeanwhile, .. } => begun = line.time(),
            _ => {}
        }
    }
    all.retain(|expected| expected.asked == Asked::Never || expected.at + stale > begun);
    all
}

/// Whether khook says that nobody can tell whether the agent was asked about this.
pub fn is_in_doubt(lines: &[Line], expected: &Expected) -> bool {
    let entries = lines.iter().filter_map(|line| match &line.what {
        What::Version { status, .. } => Some(&status.active_events),
        _ => None,
    });
    entries.flatten().any(|entry| {
        (entry.event_type, &entry.resource_name, &entry.agent)
            == (expected.event_type, &expected.pod, &expected.agent)
            && entry.outcome == Some(EndState::OutcomeUnknown)
    })
}

/// Writes down what happens.
#[derive(Debug)]
pub struct Recorder {
    begun: Instant,
    lines: Mutex<Vec<Line>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { begun: Instant::now(), lines: Mutex::default() }
    }
}

impl Recorder {
    /// Writes down that this happened, now.
    pub fn note(&self, what: What) {
        let mut lines = self.lines();
        // Under the lock: the order of the lines is the order of their times.
        let at = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        lines.push(Line { at, what });
    }

    /// All that happened so far.
    pub fn read(&self) -> Vec<Line> {
        self.lines().clone()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a record to a file, a line each.
pub fn save(lines: &[Line], file: &Path) -> Result<()> {
    let lines: Vec<String> =
        lines.iter().map(serde_json::to_string).collect::<Result<_, _>>().context("a record in JSON")?;
    std::fs::write(file, lines.join("\n") + "\n").with_context(|| format!("writing {}", file.display()))
}

/// Reads a record from a file.
pub fn load(file: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", file.display(), number + 1))
    };
    text.lines().enumerate().map(line).collect()
}
