//! The checker holds the record of a run against what khook promises. It knows nothing of khook's inside: only
//! what was stored, what was sent, and what others did.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use khook::{
    hook::{ActiveEvent, EventType, Farewell, FarewellState, HookStatus, Phase, Reason, StandingState},
    incident::{key, outcome::EndState},
};

use super::{
    point::{Class, Deed},
    record::{Asked, Became, Expected, Line, Terms, What, expected, is_in_doubt, trouble},
};

/// The longest time from a claim to its message, as spans are in fault runs: its session and itself.
const IN_FLIGHT: Duration = Duration::from_secs(3);

/// What khook promises. `docs/reliability.md` has each in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// A call starts only after its claim has committed, and is sent at most once.
    S1,
    /// At most one completed call per incident and window.
    S2,
    /// An incident only moves forward.
    S3,
    /// Two replicas never send the same attempt.
    S4,
    /// The list has its bound, and what is held back is counted.
    S5,
    /// What is not wanted, or not any more, is not called.
    S6,
    /// An agent that fails in a row is left alone.
    S7,
    /// Nothing is lost.
    L1,
    /// Everything moves on.
    L2,
    /// At rest nothing is written.
    L3,
    /// After the leader another acts.
    L4,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A promise that was broken, and how.
pub type Violation = (Promise, String);

/// What the checker found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Promises that were broken.
    pub violations: Vec<Violation>,
    /// Runs of agents.
    pub calls: usize,
    /// Runs beyond one per incident and window, by what allowed them.
    pub extra: BTreeMap<&'static str, usize>,
    /// From the last fault until all was at rest.
    pub recovery: Duration,
}

/// One message on its way, with what became of it.
struct Sent<'a> {
    at: Duration,
    answer: Option<&'a Answered>,
    /// Whether the status says that it is sent although the one before may have arrived.
    resent: bool,
}

impl Sent<'_> {
    fn is_refused(&self) -> bool {
        self.answer.is_some_and(Answered::is_refusal)
    }
}

struct Answered {
    at: Duration,
    code: Option<u16>,
    served: bool,
    delivered: bool,
    version: Option<u64>,
    rpc: Option<i64>,
    ran: bool,
    shows: Vec<String>,
}

impl Answered {
    fn is_success(&self) -> bool {
        self.code.is_some_and(|code| code < 300) && self.rpc.is_none()
    }

    /// Refused in so many words, and khook was told: nothing ran.
    fn is_refusal(&self) -> bool {
        let refused = self.code.is_some_and(|code| (400..500).contains(&code))
            || matches!(self.rpc, Some(-32700 | -32602..=-32600 | -32009));
        self.delivered && !self.ran && refused
    }

    /// Refused for the dialect it was written in: the same message comes in the other one.
    fn is_of_dialect(&self) -> bool {
        self.is_refusal() && matches!(self.rpc, Some(-32601 | -32009))
    }
}

struct Asking<'a> {
    number: u64,
    at: Duration,
    replica: usize,
    class: Class,
    session: Option<&'a str>,
    message: Option<&'a str>,
    holder: Option<&'a str>,
}

struct Version<'a> {
    at: Duration,
    version: u64,
    uid: &'a str,
    status: &'a HookStatus,
    foreign: bool,
}

/// All that the record says, read once.
struct Case<'a> {
    terms: Terms,
    lag: Duration,
    requests: Vec<Asking<'a>>,
    answers: BTreeMap<u64, Answered>,
    versions: Vec<Version<'a>>,
    lines: &'a [Line],
    trouble: Vec<Expected>,
    expected: Vec<Expected>,
    verdict: Verdict,
}

/// Checks the record of one run.
pub fn check(lines: &[Line]) -> Verdict {
    let mut case = Case::read(lines);
    case.messages();
    case.history();
    case.unwanted();
    case.breaker();
    case.expectations();
    case.rest();
    case.succession();
    case.recovery();
    case.verdict
}

impl<'a> Case<'a> {
    fn read(lines: &'a [Line]) -> Self {
        let mut case = Self {
            terms: Terms::default(),
            lag: Duration::ZERO,
            requests: Vec::new(),
            answers: BTreeMap::new(),
            versions: Vec::new(),
            lines,
            trouble: trouble(lines),
            expected: expected(lines),
            verdict: Verdict::default(),
        };
        let mut foreign = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for line in lines {
            let at = line.time();
            match &line.what {
                What::Begin { terms, .. } => case.terms = terms.clone(),
                What::Request { number, replica, class, session, message, holder } => {
                    case.requests.push(Asking {
                        number: *number,
                        at,
                        replica: *replica,
                        class: *class,
                        session: session.as_deref(),
                        message: message.as_deref(),
                        holder: holder.as_deref(),
                    });
                }
                What::Answer { number, code, served, delivered, version, rpc, ran, shows } => {
                    let (code, served, delivered, version) = (*code, *served, *delivered, *version);
                    let (rpc, ran, shows) = (*rpc, *ran, shows.clone());
                    let answer = Answered { at, code, served, delivered, version, rpc, ran, shows };
                    case.answers.insert(*number, answer);
                }
                What::Wrote { version: Some(version), .. } => {
                    foreign.insert(*version);
                }
                // Told by the answer of the write, and by a watch that may begin anew.
                What::Version { version, uid, deleted: false, status, .. } if seen.insert(*version) => {
                    let (version, foreign) = (*version, false);
                    case.versions.push(Version { at, version, uid, status, foreign });
                }
                What::End { lag, .. } => case.lag = Duration::from_micros(*lag),
                _ => {}
            }
        }
        case.versions.sort_by_key(|version| version.version);
        // The answer of a write may be older than what the watch says of it.
        let committed: BTreeMap<u64, Duration> =
            case.answers.values().filter_map(|answer| Some((answer.version?, answer.at))).collect();
        for version in &mut case.versions {
            version.foreign = foreign.contains(&version.version);
            if let Some(at) = committed.get(&version.version) {
                version.at = version.at.min(*at);
            }
        }
        case
    }

    fn broken(&mut self, promise: Promise, how: String) {
        self.verdict.violations.push((promise, how));
    }

    /// S1, S2, S4: each message under a claim of its own that had committed, and one run each window.
    fn messages(&mut self) {
        let mut violations = Vec::new();
        let mut extra: BTreeMap<&'static str, usize> = BTreeMap::new();
        // Each claim pays for one message, and each attempt has one.
        let mut used: BTreeSet<(&str, &str, i64, bool)> = BTreeSet::new();
        let mut attempts: BTreeMap<(&str, i32, i32), usize> = BTreeMap::new();
        // Where the memory was lost its attempts begin anew.
        let mut losses = self.losses();
        let mut windows: BTreeMap<(&str, &str), Vec<Sent>> = BTreeMap::new();
        for asked in self.requests.iter().filter(|request| request.class == Class::Send) {
            let (Some(session), Some(message)) = (asked.session, asked.message) else {
                violations.push((Promise::S1, "a message without a session or an id".to_owned()));
                continue;
            };
            let answer = self.answers.get(&asked.number);
            let (at, replica) = (asked.at, asked.replica);
            while losses.pop_if(|loss| *loss < at).is_some() {
                attempts.clear();
            }
            let pod = self.terms.replicas.get(replica).map_or("", String::as_str);
            // As khook itself had last stored it when the message came.
            let stored = self.versions.iter().filter(|version| version.at <= at && !version.foreign);
            let entry = stored
                .filter_map(|version| {
                    let mut entries = version.status.active_events.iter();
                    let of_session = entries.find(|entry| entry.session_id.as_deref() == Some(session))?;
                    Some((version, of_session))
                })
                .max_by_key(|(version, _)| version.version);
            let (uid, entry) = (entry.map_or("", |(version, _)| version.uid), entry.map(|(_, entry)| entry));
            let foreign = answer.is_some_and(Answered::is_of_dialect);
            if !foreign {
                let resent = entry.is_some_and(|entry| entry.resent);
                windows.entry((session, message)).or_default().push(Sent { at, answer, resent });
            }
            let claim = entry.filter(|entry| {
                is_called(entry) && key::message_id(session, entry.window) == message
                    || tells(entry) && key::farewell_id(session, entry.window) == message
            });
            let Some((entry, claim)) = claim.and_then(|entry| Some((entry, entry.claim.as_ref()?))) else {
                let how = entry.map(|entry| (entry.status, entry.reason, entry.window, entry.attempts));
                violations.push((
                    Promise::S1,
                    format!(
                        "{pod} sent message {message} at {at:?} without a committed claim; stored: {how:?}"
                    ),
                ));
                continue;
            };
            if claim.process.strip_prefix(pod).is_none_or(|rest| !rest.starts_with('_')) {
                violations.push((
                    Promise::S4,
                    format!("{pod} sent message {message} at {at:?} under the claim of {}", claim.process),
                ));
            }
            // Once in each dialect, where the first is not understood.
            if !used.insert((uid, claim.process.as_str(), claim.sequence, foreign)) {
                violations.push((Promise::S1, format!("{pod} sent message {message} twice under one claim")));
            }
            if foreign {
                continue;
            }
            // An attempt at a farewell is one at another message.
            let attempt = match &entry.farewell {
                Some(farewell) if tells(entry) => (session, -entry.window, farewell.attempts),
                _ => (session, entry.window, entry.attempts),
            };
            if let Some(other) = attempts.insert(attempt, replica)
                && !self.lost_within(at.saturating_sub(IN_FLIGHT), at)
            {
                let promise = if other == replica { Promise::S1 } else { Promise::S4 };
                violations.push((promise, format!("attempt {} of {message} was sent twice", attempt.2)));
            }
        }
        let farewells = self.farewells();
        for ((session, message), sent) in &windows {
            for (index, later) in sent.iter().enumerate().skip(1) {
                let ran_before =
                    sent[..index].iter().any(|sent| sent.answer.is_some_and(|answer| answer.ran));
                let runs_again = ran_before && later.answer.is_some_and(|answer| answer.ran);
                let farewell = farewells.contains(*message);
                match self.excuse(session, message, farewell, &sent[..index], later) {
                    Ok(cause) if runs_again => *extra.entry(cause).or_default() += 1,
                    Ok(_) => {}
                    Err(why) => violations
                        .push((Promise::S2, format!("message {message} sent again at {:?} {why}", later.at))),
                }
            }
        }
        for ((session, message), sent) in &windows {
            let told = sent.iter().any(|sent| {
                sent.answer.is_some_and(|answer| answer.delivered && answer.is_success() && answer.ran)
            });
            let entries = self.versions.iter().flat_map(|version| &version.status.active_events);
            let mut of_window = entries.filter(|entry| {
                entry.session_id.as_deref() == Some(*session)
                    && key::message_id(session, entry.window) == *message
            });
            let claims_so = |entry: &ActiveEvent| {
                entry.reason == Some(Reason::AgentCalled) && entry.outcome != Some(EndState::OutcomeUnknown)
            };
            if self.terms.blind && !told && of_window.any(claims_so) {
                let how =
                    format!("nobody can tell whether message {message} arrived, and the status says so");
                violations.push((Promise::S2, how));
            }
        }
        // One id for each window: another id would be another run.
        let known: BTreeSet<(&str, String)> = self
            .versions
            .iter()
            .flat_map(|version| &version.status.active_events)
            .filter_map(|entry| {
                let session = entry.session_id.as_deref()?;
                Some((session, key::message_id(session, entry.window)))
            })
            .collect();
        for (session, message) in windows.keys() {
            if !farewells.contains(*message) && !known.contains(&(*session, (*message).to_owned())) {
                violations
                    .push((Promise::S2, format!("message {message} has the id of no window of {session}")));
            }
        }
        self.verdict.calls = self.answers.values().filter(|answer| answer.ran).count();
        self.verdict.extra = extra;
        self.verdict.violations.append(&mut violations);
    }

    /// The ids of messages that an incident is resolved.
    fn farewells(&self) -> BTreeSet<String> {
        let entries = self.versions.iter().flat_map(|version| &version.status.active_events);
        let told = entries.filter(|entry| entry.farewell.is_some());
        told.filter_map(|entry| Some(key::farewell_id(entry.session_id.as_deref()?, entry.window))).collect()
    }

    /// When the memory was lost: somebody emptied the list of incidents, and the process that knew better
    /// ended, or was not the only one. The latest first.
    fn losses(&self) -> Vec<Duration> {
        let mut wiped = false;
        let mut lost = |line: &Line| match line.what {
            What::Wrote { deed: Deed::Wipe, .. } => {
                wiped = true;
                self.terms.replicas.len() > 1
            }
            What::Process { became: Became::Started, .. } => wiped,
            _ => false,
        };
        let mut losses: Vec<Duration> = self.lines.iter().filter(|line| lost(line)).map(Line::time).collect();
        losses.reverse();
        losses
    }

    fn lost_within(&self, from: Duration, to: Duration) -> bool {
        self.losses().iter().any(|loss| *loss > from && *loss < to)
    }

    /// Why a message may be sent once more.
    fn excuse(
        &self,
        session: &str,
        message: &str,
        farewell: bool,
        before: &[Sent],
        later: &Sent,
    ) -> Result<&'static str, &'static str> {
        let Some(last) = before.last() else { return Ok("it is the first") };
        if self.lost_within(last.at.saturating_sub(IN_FLIGHT), later.at) {
            return Ok("the status was emptied by another writer");
        }
        let lookups = self.requests.iter().filter(|request| {
            request.class == Class::Lookup
                && request.session == Some(session)
                && request.at > last.at
                && request.at < later.at
        });
        let lookups = lookups
            .filter_map(|request| self.answers.get(&request.number))
            .filter(|answer| answer.served && answer.delivered && answer.at < later.at)
            .filter(|answer| answer.is_success())
            .collect::<Vec<_>>();
        if lookups.iter().any(|answer| answer.shows.iter().any(|id| id == message)) {
            return Err("although the session showed it");
        }
        let doubts = before.iter().filter(|sent| !sent.is_refused()).count();
        match (last.is_refused(), lookups.is_empty(), self.terms.blind) {
            (true, _, _) => Ok("it had been refused"),
            _ if farewell => Err("though it tells of an end and may have been heard"),
            (false, false, _) => Ok("a lookup did not show it"),
            (false, true, false) => Err("without a lookup, though its outcome was not known"),
            (false, true, true) if doubts > 1 => Err("although two may have arrived"),
            (false, true, true) if !later.resent => Err("and the status does not say so"),
            (false, true, true) => Ok("the agent cannot be asked what it was sent"),
        }
    }

    /// S3 and S5: what was stored, version after version.
    fn history(&mut self) {
        let mut violations = Vec::new();
        // What khook itself last stored of each incident.
        let mut last: BTreeMap<(&str, &str), &ActiveEvent> = BTreeMap::new();
        let mut losses = self.losses();
        let mut listed: BTreeSet<(EventType, &str, &str)> = BTreeSet::new();
        for version in &self.versions {
            let entries = &version.status.active_events;
            if !version.foreign {
                if entries.len() > self.terms.max_entries.max(1) {
                    violations.push((
                        Promise::S5,
                        format!("{} entries in version {}", entries.len(), version.version),
                    ));
                }
                while losses.pop_if(|loss| *loss < version.at).is_some() {
                    last.clear();
                }
                for new in entries {
                    if let Some(old) = last.insert((version.uid, new.id.as_str()), new)
                        && let Err(how) = moves_forward(old, new)
                    {
                        let what = format!("{} on {}", old.event_type, old.resource_name);
                        violations
                            .push((Promise::S3, format!("{what} {how} in version {}", version.version)));
                    }
                }
            }
            let held_back = version.status.overflow.is_some_and(|overflow| overflow > 0);
            if held_back && entries.len() < self.terms.max_entries && !version.foreign {
                let (number, len) = (version.version, entries.len());
                violations.push((Promise::S5, format!("version {number} holds back with {len} entries")));
            }
            listed.extend(entries.iter().map(|e| (e.event_type, e.resource_name.as_str(), e.agent.as_str())));
            let outside = self.trouble.iter().filter(|expected| {
                let key = (expected.event_type, expected.pod.as_str(), expected.agent.as_str());
                expected.at <= version.at && !listed.contains(&key)
            });
            let (outside, overflow) = (outside.count(), version.status.overflow.unwrap_or_default());
            if usize::try_from(overflow).is_ok_and(|overflow| overflow > outside.max(self.replayed(version)))
            {
                violations.push((
                    Promise::S5,
                    format!("version {} counts {overflow} held back, {outside} are", version.version),
                ));
            }
        }
        // Without a fault there is no doubt that it was full.
        let crowded =
            self.expected.iter().filter(|e| e.asked == Asked::Surely).count() > self.terms.max_entries;
        let broke = self.lines.iter().any(|line| matches!(line.what, What::Broke { .. }));
        let counted = self.versions.iter().any(|version| version.status.overflow.is_some_and(|n| n > 0));
        if crowded && !broke && !counted {
            violations.push((Promise::S5, "nothing was counted as held back".to_owned()));
        }
        self.verdict.violations.append(&mut violations);
    }

    // What was let go of may be told again, and held back again.
    fn replayed(&self, version: &Version) -> usize {
        let all = self.trouble.iter().filter(|expected| expected.at <= version.at).count();
        all.saturating_sub(version.status.active_events.len())
    }

    /// S6: what was deleted, removed or suspended is not called any more.
    fn unwanted(&mut self) {
        let mut violations = Vec::new();
        // By what a status says that it was planned from: exact.
        let mut specs: BTreeMap<(&str, i64), (bool, &Vec<String>)> = BTreeMap::new();
        for line in self.lines {
            if let What::Told { uid, generation, suspended, types, .. } = &line.what {
                specs.insert((uid, *generation), (*suspended, types));
            }
        }
        let mut claimed: BTreeSet<(&str, &str, i64)> = BTreeSet::new();
        for version in &self.versions {
            let planned = version.status.observed_generation.unwrap_or_default();
            for entry in version.status.active_events.iter().filter(|e| is_called(e) || tells(e)) {
                let Some(claim) = &entry.claim else { continue };
                let new = claimed.insert((version.uid, claim.process.as_str(), claim.sequence));
                let Some((suspended, types)) = specs.get(&(version.uid, planned)).filter(|_| new) else {
                    continue;
                };
                if *suspended || !types.iter().any(|type_| type_ == entry.event_type.as_str()) {
                    violations.push((
                        Promise::S6,
                        format!(
                            "claimed in version {} under generation {planned}, which does not want it",
                            version.version
                        ),
                    ));
                }
            }
        }
        // By what a replica was told: a message that leaves long after it.
        let slack = Duration::from_millis(300) + self.lag;
        for line in self.lines {
            let What::Told { replica, uid, deleted, suspended, types, .. } = &line.what else { continue };
            let until = self.lines.iter().find_map(|later| match &later.what {
                What::Told { replica: other, uid: same, .. }
                    if later.at > line.at && replica == other && uid == same =>
                {
                    Some(later.time())
                }
                _ => None,
            });
            let unwanted = |entry: &&ActiveEvent| {
                *deleted || *suspended || !types.iter().any(|type_| type_ == entry.event_type.as_str())
            };
            let sessions: BTreeSet<&str> = self
                .versions
                .iter()
                .filter(|version| version.uid == uid)
                .flat_map(|version| &version.status.active_events)
                .filter(unwanted)
                .filter_map(|entry| entry.session_id.as_deref())
                .collect();
            for sent in self.requests.iter().filter(|request| request.class == Class::Send) {
                let late = sent.at > line.time() + slack && until.is_none_or(|until| sent.at < until);
                if sent.replica == *replica && late && sent.session.is_some_and(|id| sessions.contains(id)) {
                    let what = match (deleted, suspended) {
                        (true, _) => "the deletion",
                        (_, true) => "the suspension",
                        _ => "the removal",
                    };
                    violations.push((
                        Promise::S6,
                        format!("a message was sent at {:?}, {what} was told at {:?}", sent.at, line.time()),
                    ));
                }
            }
        }
        // An incident of a pod that is gone, of a kind that is over with its pod.
        let mut last: BTreeMap<(&str, &str), &ActiveEvent> = BTreeMap::new();
        for version in &self.versions {
            for entry in &version.status.active_events {
                let before = last.insert((version.uid, entry.id.as_str()), entry);
                let gone = |entry: &ActiveEvent| {
                    entry.condition.as_ref().is_some_and(|standing| standing.state == StandingState::Gone)
                };
                let over = matches!(entry.event_type, EventType::PodPending | EventType::ProbeFailed);
                if before.is_some_and(|before| before.status == Phase::Pending && gone(before))
                    && entry.status == Phase::Firing
                    && over
                {
                    violations
                        .push((Promise::S6, format!("{} is gone and was called about", entry.resource_name)));
                }
            }
        }
        self.verdict.violations.append(&mut violations);
    }

    /// S7: after so many failures in a row an agent gets one call, and then none for a while.
    fn breaker(&mut self) {
        let mut violations = Vec::new();
        let base = Duration::from_millis(self.terms.breaker_base);
        for replica in 0..self.terms.replicas.len() {
            // Sessions come first in every call: an agent that refuses them is the clearest case.
            let mut failures = 0;
            let mut allowed = self.terms.slots;
            let mut last_probe: Option<Duration> = None;
            let began: Vec<Duration> = self
                .lines
                .iter()
                .filter(|line| matches!(line.what, What::Process { replica: of, became: Became::Started } if of == replica))
                .map(Line::time)
                .collect();
            let sessions = self.requests.iter().filter(|r| r.class == Class::Session && r.replica == replica);
            let mut previous = Duration::ZERO;
            for asked in sessions {
                if began.iter().any(|at| *at > previous && *at <= asked.at) {
                    (failures, allowed, last_probe) = (0, self.terms.slots, None);
                }
                if failures >= self.terms.breaker_threshold {
                    // Those that had begun before the breaker opened may still come.
                    if allowed > 0 {
                        allowed -= 1;
                    } else if last_probe.is_some_and(|probe| asked.at < probe + base) {
                        violations.push((
                            Promise::S7,
                            format!(
                                "called at {:?}, after {failures} failures in a row and a call just before",
                                asked.at
                            ),
                        ));
                    }
                    last_probe = Some(asked.at);
                }
                previous = asked.at;
                match self.answers.get(&asked.number) {
                    // The message that follows may fail, or not: only a refused session counts here.
                    Some(answer) if answer.code == Some(503) && answer.delivered => failures += 1,
                    _ => (failures, allowed, last_probe) = (0, self.terms.slots, None),
                }
            }
        }
        self.verdict.violations.append(&mut violations);
    }

    /// L1, L2: what the scenario expects.
    fn expectations(&mut self) {
        let mut violations = Vec::new();
        for line in self.lines {
            if let What::End { unsettled: Some(why), .. } = &line.what {
                violations.push((Promise::L2, why.clone()));
            }
        }
        let taken_back = self
            .lines
            .iter()
            .any(|line| matches!(&line.what, What::Broke { point } if point.deed.takes_back()));
        // An incident that is not asked about for good is one whose agent never had a message of it.
        let sessions: BTreeMap<&str, (&str, &ActiveEvent)> = self
            .versions
            .iter()
            .flat_map(|version| version.status.active_events.iter().map(|entry| (version.uid, entry)))
            .filter_map(|(uid, entry)| Some((entry.session_id.as_deref()?, (uid, entry))))
            .collect();
        let mut runs: BTreeMap<(&str, EventType, &str, &str), usize> = BTreeMap::new();
        let farewells = self.farewells();
        let is_farewell = |request: &&Asking| request.message.is_some_and(|id| farewells.contains(id));
        let (told, asked): (Vec<_>, Vec<_>) =
            self.requests.iter().filter(|request| request.class == Class::Send).partition(is_farewell);
        // Without a fault whoever wants to hear of the end does.
        let broke = self.lines.iter().any(|line| matches!(line.what, What::Broke { .. }));
        if !broke && told.len() != farewells.len() {
            let how = format!("{} farewells were sent, not {}", told.len(), farewells.len());
            violations.push((Promise::L2, how));
        }
        for request in asked {
            if self.answers.get(&request.number).is_some_and(|answer| answer.ran)
                && let Some((uid, entry)) = request.session.and_then(|session| sessions.get(session))
            {
                let key = (*uid, entry.event_type, entry.resource_name.as_str(), entry.agent.as_str());
                *runs.entry(key).or_default() += 1;
            }
        }
        // Where the memory was lost more can happen.
        let strict = self.losses().is_empty();
        for ((_, type_, pod, agent), count) in &runs {
            let of_it =
                |e: &&Expected| (e.event_type, e.pod.as_str(), e.agent.as_str()) == (*type_, *pod, *agent);
            let most = self.expected.iter().find(of_it).map_or(1, |expected| expected.most);
            let excused: usize = self.verdict.extra.values().sum();
            if strict && *count > most + excused {
                violations
                    .push((Promise::S2, format!("{agent} was asked {count} times about {type_} on {pod}")));
            }
        }
        let asked: BTreeSet<(EventType, &str, &str)> =
            runs.keys().map(|(_, type_, pod, agent)| (*type_, *pod, *agent)).collect();
        for expected in &self.expected {
            let Expected { event_type, pod, agent, asked: how, .. } = expected;
            let excused = taken_back || self.terms.blind && is_in_doubt(self.lines, expected);
            let was = asked.contains(&(*event_type, pod.as_str(), agent.as_str()));
            match how {
                Asked::Surely if !was && !excused => {
                    violations
                        .push((Promise::L1, format!("{agent} was never asked about {event_type} on {pod}")));
                }
                Asked::Never if was => {
                    violations.push((Promise::S6, format!("{agent} was asked about {event_type} on {pod}")));
                }
                _ => {}
            }
        }
        self.verdict.violations.append(&mut violations);
    }

    /// L3: at rest nothing is written.
    fn rest(&mut self) {
        let Some(rest) = self.lines.iter().find(|line| matches!(line.what, What::Rest)).map(Line::time)
        else {
            return;
        };
        // A replica whose watch comes late may try, and is told that there is something newer.
        let writes = self
            .requests
            .iter()
            .filter(|r| r.class == Class::Status && r.at > rest && self.is_done(r.number));
        let writes = writes.count();
        // What another writer left is put right with khook's next look, which may be that late.
        let foreign = |line: &&Line| matches!(line.what, What::Wrote { deed: Deed::Wipe | Deed::Meddle, .. });
        let left = self.lines.iter().rfind(foreign).map(Line::time);
        let put_right = |left: Duration| {
            self.requests
                .iter()
                .any(|r| r.class == Class::Status && r.at > left && r.at < rest && self.is_done(r.number))
        };
        if writes > 0 && left.is_none_or(put_right) {
            self.broken(Promise::L3, format!("{writes} status writes at rest"));
        }
    }

    /// L4: after its holder the Lease is taken.
    fn succession(&mut self) {
        if !self.terms.elected || self.terms.replicas.len() < 2 {
            return;
        }
        let bound = self.slack(Duration::from_millis(self.terms.lease + 2 * self.terms.look));
        let mut violations = Vec::new();
        let takes: Vec<(Duration, &str)> = self
            .requests
            .iter()
            .filter(|request| request.class == Class::Lease)
            .filter(|request| self.is_done(request.number))
            .filter_map(|request| Some((request.at, request.holder?)))
            .collect();
        let end = self.lines.last().map(Line::time).unwrap_or_default();
        for line in self.lines {
            let What::Process { replica, became: became @ (Became::Killed | Became::Paused) } = line.what
            else {
                continue;
            };
            let dead = self.terms.replicas[replica].as_str();
            let held = takes.iter().rfind(|(at, _)| *at <= line.time());
            if held.is_none_or(|(_, holder)| *holder != dead) || end < line.time() + bound {
                continue;
            }
            // Of one that was killed the successor has the same name, and may be first.
            let follows = |holder: &str| became == Became::Killed || holder != dead;
            let next = takes.iter().find(|(at, holder)| *at > line.time() && follows(holder));
            if next.is_none_or(|(at, _)| *at > line.time() + bound) {
                let when = next.map(|(at, _)| *at - line.time());
                violations.push((
                    Promise::L4,
                    format!("the leader ended at {:?}, the next led after {when:?}", line.time()),
                ));
            }
        }
        self.verdict.violations.append(&mut violations);
    }

    fn recovery(&mut self) {
        let broke = self.lines.iter().rfind(|line| matches!(line.what, What::Broke { .. })).map(Line::time);
        let rest = self.lines.iter().find(|line| matches!(line.what, What::Rest)).map(Line::time);
        self.verdict.recovery =
            broke.zip(rest).map(|(broke, rest)| rest.saturating_sub(broke)).unwrap_or_default();
    }

    /// Whether the server did what a request asked for.
    fn is_done(&self, number: u64) -> bool {
        self.answers.get(&number).is_some_and(Answered::is_success)
    }

    /// A span, and as much more as this machine may have held everything up.
    fn slack(&self, span: Duration) -> Duration {
        span + 4 * self.lag + Duration::from_millis(100)
    }
}

/// Whether an incident's call is claimed.
fn is_called(entry: &ActiveEvent) -> bool {
    entry.status == Phase::Firing && entry.reason == Some(Reason::Calling)
}

/// Whether the call that tells of its end is.
fn tells(entry: &ActiveEvent) -> bool {
    let calling = |farewell: &Farewell| farewell.state == FarewellState::Calling;
    entry.status == Phase::Resolved && entry.farewell.as_ref().is_some_and(calling)
}

/// (firstSeen, window, attempts, phase) goes forward, but for what the state machine names.
fn moves_forward(old: &ActiveEvent, new: &ActiveEvent) -> Result<(), String> {
    let place = |entry: &ActiveEvent| (entry.first_seen, entry.window, entry.attempts, entry.status);
    if place(new) >= place(old) {
        // Whoever has been asked in a window is not asked in it again.
        let same = (old.first_seen, old.window) == (new.first_seen, new.window);
        let again = old.status >= Phase::Notified && new.status < Phase::Notified;
        return if same && again {
            Err(format!("went from {:?} to {:?}", place(old), place(new)))
        } else {
            Ok(())
        };
    }
    let same = (old.first_seen, old.window, old.attempts) == (new.first_seen, new.window, new.attempts);
    let named = match (old.status, new.status) {
        (Phase::Resolved, Phase::Notified) => new.reason == Some(Reason::Reopened) && new.owed,
        // An attempt that did not run.
        (Phase::Firing, Phase::Pending) => true,
        _ => false,
    };
    if same && named { Ok(()) } else { Err(format!("went from {:?} to {:?}", place(old), place(new))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SESSION: &str = "26674bc6-2b2a-5294-97cb-865b57e3c96e";

    /// The record of a run of one replica in which these things happened, a millisecond apart.
    fn record(happened: &[serde_json::Value]) -> Vec<Line> {
        let begin = json!({"what": "begin", "scenario": "made-up", "points": [], "terms": {
            "replicas": ["khook-0"], "elected": true, "maxEntries": 100, "breakerThreshold": 2, "breakerBase": 400,
            "slots": 16, "lease": 2000, "look": 1000, "stale": 900_000}});
        let end = json!({"what": "end", "unsettled": null, "lag": 0});
        let all = [begin].into_iter().chain(happened.iter().cloned()).chain([end]);
        all.enumerate()
            .map(|(index, mut line)| {
                line["at"] = json!(1000 * index);
                serde_json::from_value(line).expect("a line")
            })
            .collect()
    }

    fn version(version: u64, phase: &str, attempts: i32) -> serde_json::Value {
        let claim =
            json!({"process": "khook-0_a", "sequence": attempts, "at": "2026-01-02T03:04:05Z", "seconds": 8});
        let firing = phase == "firing";
        json!({"what": "version", "version": version, "uid": "hook", "generation": 1, "deleted": false, "status": {
            "activeEvents": [{
                "id": "one", "eventType": "pod-restart", "resourceName": "web-0", "namespace": "shop",
                "agent": "kagent/k8s-agent", "status": phase, "reason": firing.then_some("Calling"),
                "firstSeen": "2026-01-02T03:04:05Z", "lastSeen": "2026-01-02T03:04:05Z", "window": 1,
                "attempts": attempts, "sessionId": SESSION, "claim": firing.then_some(claim)}]}})
    }

    fn message(number: u64) -> serde_json::Value {
        json!({"what": "request", "number": number, "replica": 0, "class": "send", "session": SESSION,
            "message": key::message_id(SESSION, 1)})
    }

    fn answer(number: u64, code: u16, ran: bool) -> serde_json::Value {
        json!({"what": "answer", "number": number, "code": code, "served": true, "delivered": true, "ran": ran})
    }

    fn broken(happened: &[serde_json::Value]) -> Vec<Promise> {
        check(&record(happened)).violations.into_iter().map(|(promise, _)| promise).collect()
    }

    #[test]
    fn a_call_under_its_claim_keeps_every_promise_and_one_before_it_does_not() {
        let (pending, firing) = (version(1, "pending", 0), version(2, "firing", 1));
        let notified = version(3, "notified", 1);
        let (sent, accepted) = (message(1), answer(1, 200, true));
        assert_eq!(broken(&[pending.clone(), firing.clone(), sent.clone(), accepted.clone(), notified]), []);
        assert_eq!(broken(&[pending, sent, accepted, firing]), [Promise::S1]);
    }

    #[test]
    fn a_message_goes_twice_only_under_a_new_claim_and_never_blindly() {
        let (first, second) = (version(1, "firing", 1), version(2, "firing", 2));
        let refused = [first.clone(), message(1), answer(1, 429, false), second.clone(), message(2)];
        assert_eq!(broken(&refused), []);
        // The claim, and the attempt.
        let twice = [first.clone(), message(1), answer(1, 429, false), message(2)];
        assert_eq!(broken(&twice), [Promise::S1; 2]);
        // Nobody knows what became of the first.
        let blind = [first.clone(), message(1), second.clone(), message(2)];
        assert_eq!(broken(&blind), [Promise::S2]);
        let lookup = |shows: &[String]| {
            let asked =
                json!({"what": "request", "number": 9, "replica": 0, "class": "lookup", "session": SESSION});
            let mut told = answer(9, 200, false);
            told["shows"] = json!(shows);
            [asked, told]
        };
        let looked = |shows: &[String]| {
            let head = [first.clone(), message(1)];
            let tail = [second.clone(), message(2)];
            broken(&[&head[..], &lookup(shows), &tail].concat())
        };
        assert_eq!(looked(&[]), []);
        assert_eq!(looked(&[key::message_id(SESSION, 1)]), [Promise::S2], "the session showed it");
    }

    /// As [`broken`], with an agent that cannot be asked what it was sent.
    fn broken_blind(happened: &[serde_json::Value]) -> Vec<Promise> {
        let mut lines = record(happened);
        let What::Begin { terms, .. } = &mut lines[0].what else { panic!("the beginning") };
        terms.blind = true;
        check(&lines).violations.into_iter().map(|(promise, _)| promise).collect()
    }

    #[test]
    fn where_there_is_no_lookup_a_message_in_doubt_goes_once_more_in_sight_and_never_again() {
        let resent = |mut version: serde_json::Value| {
            version["status"]["activeEvents"][0]["resent"] = json!(true);
            version
        };
        let first = [version(1, "firing", 1), message(1)];
        let second = [resent(version(2, "firing", 2)), message(2)];
        let third = [resent(version(3, "firing", 3)), message(3)];
        assert_eq!(broken_blind(&[&first[..], &second].concat()), []);
        assert_eq!(broken(&[&first[..], &second].concat()), [Promise::S2], "others can be asked");
        let unseen = [version(2, "firing", 2), message(2)];
        assert_eq!(broken_blind(&[&first[..], &unseen].concat()), [Promise::S2]);
        assert_eq!(broken_blind(&[&first[..], &second, &third].concat()), [Promise::S2]);
        // One that was refused is no doubt.
        let refused = [&first[..], &second, &[answer(2, 429, false)], &third].concat();
        assert_eq!(broken_blind(&refused), []);
        // And nobody says that it arrived.
        let mut notified = resent(version(4, "notified", 2));
        notified["status"]["activeEvents"][0]["reason"] = json!("AgentCalled");
        let all = |last: &serde_json::Value| [&first[..], &second, std::slice::from_ref(last)].concat();
        assert_eq!(broken_blind(&all(&notified)), [Promise::S2]);
        notified["status"]["activeEvents"][0]["outcome"] = json!("OutcomeUnknown");
        assert_eq!(broken_blind(&all(&notified)), []);
    }

    #[test]
    fn a_message_that_is_not_understood_goes_in_the_other_dialect_under_the_same_claim() {
        let not_understood = |number| {
            let mut answer = answer(number, 200, false);
            answer["rpc"] = json!(-32601);
            answer
        };
        let firing = version(1, "firing", 1);
        let twice = [firing, message(1), not_understood(1), message(2), answer(2, 200, true)];
        assert_eq!(broken(&twice), []);
        let thrice = [&twice[..], &[message(3), not_understood(3)]].concat();
        assert_eq!(broken(&thrice), [Promise::S1]);
        // An answer that khook never had tells it nothing.
        let mut lost = twice.clone();
        lost[2]["delivered"] = json!(false);
        assert_eq!(broken(&lost), [Promise::S1, Promise::S1, Promise::S2]);
    }

    #[test]
    fn an_incident_that_goes_back_is_seen() {
        let (firing, notified) = (version(1, "firing", 1), version(2, "notified", 1));
        for back in [version(3, "pending", 1), version(3, "firing", 2), version(3, "notified", 0)] {
            assert_eq!(broken(&[firing.clone(), notified.clone(), back]), [Promise::S3]);
        }
        assert_eq!(broken(&[firing, version(2, "pending", 1)]), [], "an attempt that did not run");
    }
}
