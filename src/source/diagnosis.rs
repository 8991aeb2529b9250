//! A diagnosis is what a pod's own state says about it: what has happened to it, and what is so.
//!
//! Two tables hold the rules. [`ENDINGS`] says what is made of a container that has ended: each end is
//! counted once, as the first row that fits. [`SIGNS`] says what counts as lasting trouble. All else is
//! health. Everything here is a plain function of the pod, of what Events have testified, and of time.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::pods::{Container, ContainerStatus, Pod, Role, Terminated};
use crate::{
    hook::{EventType, StandingState},
    incident::signal::{Cause, Nature, Occurrence, Signal},
};

/// A pod, with what is known of it from elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What Events say about it.
    pub evidence: &'a Evidence,
    /// When it was seen that a container cannot be started or no node takes the pod, if that was seen to begin.
    pub stuck_since: Option<DateTime<Utc>>,
    /// When the newest end of a container was first seen.
    pub end_seen_at: DateTime<Utc>,
    /// The time.
    pub now: DateTime<Utc>,
}

/// What Events testify about one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// When kubelet ended which container because of a failed probe, the newest few.
    pub kills: Vec<(String, DateTime<Utc>)>,
    /// Liveness probes that have failed of late.
    pub liveness: Vec<Streak>,
    /// The newest words for each kind of trouble.
    pub words: Vec<Words>,
}

/// A liveness probe that fails time and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Streak {
    /// The container.
    pub container: Option<String>,
    /// When it failed first.
    pub first: DateTime<Utc>,
    /// When it failed last.
    pub last: DateTime<Utc>,
    /// The time between the last two failures; none after the first.
    pub pace: Option<Duration>,
}

/// What an Event says about trouble.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// The kind of trouble.
    pub event_type: EventType,
    /// Name of the Event.
    pub event_name: String,
    /// Its reason.
    pub reason: String,
    /// Its note.
    pub message: String,
    /// When it was last seen.
    pub at: DateTime<Utc>,
}

/// The word of a failed probe about an end may come this much later than the end itself.
pub const PATIENCE: Duration = Duration::from_secs(2);

impl Streak {
    /// Whether failures go on, as far as anybody can tell by `now`: success is silent.
    pub fn goes_on(&self, now: DateTime<Utc>) -> bool {
        self.pace.is_some() && now <= self.over_at()
    }

    /// When it is over, without another failure: the next one was due half a pace and a second ago.
    pub fn over_at(&self) -> DateTime<Utc> {
        let pace = self.pace.unwrap_or_default();
        self.last + pace + pace / 2 + Duration::from_secs(1)
    }
}

/// An end of a container.
struct End<'a> {
    case: Case<'a>,
    role: Role,
    container: &'a Container,
    status: &'a ContainerStatus,
    ended: &'a Terminated,
    count: i64,
}

/// A row of the table of ends.
struct Ending {
    /// What the row is about; for the tests, and for who reads.
    #[cfg_attr(not(test), allow(dead_code, reason = "names what the closure says"))]
    name: &'static str,
    fits: fn(&End) -> bool,
    verdict: Verdict,
}

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// Trouble, where the Hook listens to it; else the next row that fits.
    Trouble(EventType, Cause),
    /// No trouble.
    Nothing,
    /// Cannot be told yet.
    Later,
}

const ENDINGS: [Ending; 7] = [
    Ending {
        name: "killed for its memory (reason OOMKilled), started again or not",
        fits: |end| end.ended.reason.as_deref() == Some("OOMKilled"),
        verdict: Verdict::Trouble(EventType::OomKill, Cause::OomKill),
    },
    Ending {
        name: "ended by a failed liveness or startup probe",
        fits: |end| end.was_killed_by_probe(),
        verdict: Verdict::Trouble(EventType::ProbeFailed, Cause::Restart),
    },
    Ending {
        name: "ended, and not started again (yet)",
        fits: |end| end.status.state.terminated.is_some(),
        verdict: Verdict::Nothing,
    },
    Ending {
        // Its pod got a new sandbox, as after a reboot of the node.
        name: "an init container that did its work twice, as after a reboot",
        fits: |end| end.role == Role::Init && end.ended.exit_code == 0,
        verdict: Verdict::Nothing,
    },
    Ending {
        name: "started again as a Job's own retry",
        fits: |end| end.case.pod.is_of_job(),
        verdict: Verdict::Nothing,
    },
    Ending {
        name: "started again, perhaps for a probe whose word is still on its way",
        fits: |end| end.container.may_be_killed_by_probe() && end.case.now < end.case.end_seen_at + PATIENCE,
        verdict: Verdict::Later,
    },
    Ending {
        name: "started again, whatever its exit code",
        fits: |_| true,
        verdict: Verdict::Trouble(EventType::PodRestart, Cause::Restart),
    },
];

/// A row of the table of lasting trouble.
struct Sign {
    #[cfg_attr(not(test), allow(dead_code, reason = "names what the function says"))]
    name: &'static str,
    event_type: EventType,
    cause: Cause,
    find: fn(&Case, &[Fate]) -> Option<Found>,
}

const SIGNS: [Sign; 10] = [
    Sign {
        name: "is in crash loop, for its memory",
        event_type: EventType::OomKill,
        cause: Cause::OomKill,
        find: |_, fates| crash_loop(fates, EventType::OomKill),
    },
    Sign {
        name: "is in crash loop, for a probe",
        event_type: EventType::ProbeFailed,
        cause: Cause::Restart,
        find: |_, fates| crash_loop(fates, EventType::ProbeFailed),
    },
    Sign {
        name: "is in crash loop",
        event_type: EventType::PodRestart,
        cause: Cause::Restart,
        find: |_, fates| crash_loop(fates, EventType::PodRestart),
    },
    Sign {
        name: "has a container that cannot be started: image, configuration, creation",
        event_type: EventType::PodPending,
        cause: Cause::ImageOrConfig,
        find: |case, _| stuck(case),
    },
    Sign {
        name: "is taken by no node",
        event_type: EventType::PodPending,
        cause: Cause::Scheduling,
        find: |case, _| unscheduled(case),
    },
    Sign {
        name: "has containers that are still being created: mounts, sandbox, a long pull",
        event_type: EventType::PodPending,
        cause: Cause::Scheduling,
        find: |case, _| creating(case),
    },
    Sign {
        name: "has a liveness probe that fails time and again",
        event_type: EventType::ProbeFailed,
        cause: Cause::Liveness,
        find: |case, _| liveness(case),
    },
    Sign {
        name: "was ready, and is not",
        event_type: EventType::ProbeFailed,
        cause: Cause::Unready,
        find: |case, _| unready(case, true),
    },
    Sign {
        name: "has not been ready yet since its start",
        event_type: EventType::ProbeFailed,
        cause: Cause::Readiness,
        find: |case, _| unready(case, false),
    },
    Sign {
        // The kubelet has not taken it, or says nothing.
        name: "has a node that does nothing with it",
        event_type: EventType::PodPending,
        cause: Cause::Scheduling,
        find: |case, _| untouched(case),
    },
];

/// The words kubelet has for a container it cannot start (k8s.io/kubernetes: pkg/kubelet/images/types.go,
/// pkg/kubelet/container/sync_result.go, pkg/kubelet/kuberuntime/kuberuntime_container.go).
const STUCK: [&str; 11] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
    "PreCreateHookError",
    "PreStartHookError",
];

/// The words for one that was started in vain and is tried again.
const CRASH_LOOP: [&str; 3] = ["CrashLoopBackOff", "RunContainerError", "PostStartHookError"];

/// A container's newest end, and what it is.
struct Fate<'a> {
    end: End<'a>,
    verdict: Verdict,
}

/// Lasting trouble.
struct Found {
    since: DateTime<Utc>,
    container: Option<String>,
    reason: String,
    message: String,
}

/// What a pod says to a Hook that `listens` to some kinds of trouble: every end of a container, and for
/// each kind whether it holds, is clear, cannot be told any more, or is over with the pod.
pub fn diagnose(case: Case, listens: impl Fn(EventType) -> bool) -> Vec<Signal> {
    if let Some(at) = case.pod.deleted_at() {
        return gone(case.pod, at, case.now, listens);
    }
    let fates = fates(case, &listens);
    let mut signals: Vec<Signal> = fates.iter().filter_map(|fate| occurrence(case, fate)).collect();
    for event_type in EventType::ALL.into_iter().filter(|event_type| listens(*event_type)) {
        let found = SIGNS
            .iter()
            .filter(|sign| sign.event_type == event_type)
            .find_map(|sign| Some((sign, (sign.find)(&case, &fates)?)));
        signals.extend(match found {
            Some((sign, found)) => Some(holds(case, sign, found)),
            None if is_well(&case, &fates, event_type) => {
                Some(standing(case.pod, event_type, StandingState::Clear, well_since(case.pod), case.now))
            }
            // What was so of a container that has ended is so no more; whether it is well shows when it runs.
            None if matches!(event_type, EventType::PodPending | EventType::ProbeFailed) => {
                let clear =
                    standing(case.pod, event_type, StandingState::Clear, well_since(case.pod), case.now);
                Some(Signal { nature: Nature::Unclear, ..clear })
            }
            None => None,
        });
    }
    signals
}

/// That a pod is gone, or going: whatever it had is over.
pub fn gone(
    pod: &Pod,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    listens: impl Fn(EventType) -> bool,
) -> Vec<Signal> {
    let kinds = EventType::ALL.into_iter().filter(|event_type| listens(*event_type));
    kinds.map(|event_type| standing(pod, event_type, StandingState::Gone, at, now)).collect()
}

/// What is to be expected of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Outlook {
    /// There is something that a Hook may have to hear again: trouble that holds, an end that is not stale, or
    /// one that cannot be told yet.
    pub in_trouble: bool,
    /// Something cannot be told yet.
    pub undecided: bool,
    /// Of each kind of trouble it can be told that it does not hold: a pod of which it cannot has more to say.
    pub settled: bool,
}

/// What is to be expected of a pod. Ends of containers older than `stale_after` are nobody's news.
pub fn outlook(case: Case, stale_after: Duration) -> Outlook {
    let fates = fates(case, &|_| true);
    let fresh = |fate: &Fate| {
        let new = case.now <= fate.end.at() + stale_after;
        new && fate.verdict != Verdict::Nothing
    };
    let there = case.pod.deleted_at().is_none();
    let holds = || SIGNS.iter().any(|sign| (sign.find)(&case, &fates).is_some());
    let well = |event_type| is_well(&case, &fates, event_type);
    Outlook {
        in_trouble: there && (fates.iter().any(fresh) || holds()),
        undecided: there && fates.iter().any(|fate| fate.verdict == Verdict::Later),
        settled: case.pod.has_ended() || EventType::ALL.into_iter().all(well),
    }
}

/// Since when all of a pod is as it is now: the newest start, end or readiness.
pub fn well_since(pod: &Pod) -> DateTime<Utc> {
    let states = pod.containers().map(|(_, _, status)| &status.state);
    let ready = pod.condition("Ready").filter(|ready| ready.status == "True");
    states
        .flat_map(|state| {
            let started = state.running.as_ref().and_then(|running| running.started_at);
            started.into_iter().chain(state.terminated.as_ref().and_then(|ended| ended.finished_at))
        })
        .chain(ready.and_then(|ready| ready.last_transition_time))
        .chain(pod.status.start_time)
        .chain(pod.created_at())
        .max()
        .unwrap_or(DateTime::UNIX_EPOCH)
}

/// A signal of a pod itself.
pub fn standing(
    pod: &Pod,
    event_type: EventType,
    state: StandingState,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Signal {
    Signal {
        event_type,
        cause: Cause::Restart,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.uid().to_owned(),
        container: None,
        event_name: String::new(),
        reason: String::new(),
        message: String::new(),
        observed_at: now,
        nature: Nature::Condition { state, since },
        test: None,
    }
}

fn fates<'a>(case: Case<'a>, listens: &dyn Fn(EventType) -> bool) -> Vec<Fate<'a>> {
    let ends = case.pod.containers().filter_map(|(role, container, status)| {
        let (ended, count) = status.newest_end()?;
        Some(End { case, role, container, status, ended, count })
    });
    ends.map(|end| Fate { verdict: verdict(&end, listens), end }).collect()
}

fn verdict(end: &End, listens: &dyn Fn(EventType) -> bool) -> Verdict {
    let heard = |row: &&Ending| match row.verdict {
        Verdict::Trouble(event_type, _) => listens(event_type),
        Verdict::Nothing | Verdict::Later => true,
    };
    ENDINGS.iter().filter(heard).find(|row| (row.fits)(end)).map_or(Verdict::Nothing, |row| row.verdict)
}

impl End<'_> {
    /// When it ended. kubelet leaves that out where it has lost sight of a container; by then at the latest
    /// the next run had begun, or the pod.
    fn at(&self) -> DateTime<Utc> {
        let running = self.status.state.running.as_ref();
        let known = self.ended.finished_at.or(running.and_then(|running| running.started_at));
        known.or(self.case.pod.status.start_time).unwrap_or(self.case.end_seen_at)
    }

    fn was_killed_by_probe(&self) -> bool {
        // Stamps have whole seconds.
        let second = Duration::from_secs(1);
        let from = self.ended.started_at.map(|at| at - second);
        let until = self.ended.finished_at.map(|at| at + second);
        self.case.evidence.kills.iter().any(|(container, at)| {
            *container == self.container.name
                && from.is_none_or(|from| from <= *at)
                && until.is_none_or(|until| *at <= until)
        })
    }
}

fn occurrence(case: Case, fate: &Fate) -> Option<Signal> {
    let Verdict::Trouble(event_type, cause) = fate.verdict else { return None };
    let End { container, ended, count, .. } = &fate.end;
    let name = &container.name;
    let reason = ended.reason.clone().unwrap_or_else(|| "Terminated".into());
    let how = match (event_type, ended.reason.as_deref()) {
        (_, Some("OOMKilled")) => "was killed for using more memory than its limit",
        (EventType::ProbeFailed, _) => "was ended because a probe failed",
        (_, Some("StartError")) => "could not be started",
        _ => "ended",
    };
    let runs = if *count > 1 { format!(", {count} times so far") } else { String::new() };
    let mut message = format!("Container {name} {how} ({reason}, exit code {}){runs}", ended.exit_code);
    if let Some(last) = ended.message.as_deref().map(str::trim).filter(|last| !last.is_empty()) {
        message.push_str(&format!(": {last}"));
    }
    let nature = Nature::Occurrence(Occurrence {
        source: format!("{}/{name}", case.pod.uid()),
        at: fate.end.at(),
        count: *count,
    });
    let mut signal = Signal {
        cause,
        container: Some(name.clone()),
        event_name: case.pod.metadata.name.clone().unwrap_or_default(),
        reason,
        message,
        nature,
        ..standing(case.pod, event_type, StandingState::Holds, case.now, case.now)
    };
    // What the probe said is worth more than how the container ended.
    if event_type == EventType::ProbeFailed {
        quote(&mut signal, case.evidence, ended.started_at.unwrap_or_default());
    }
    Some(signal)
}

fn holds(case: Case, sign: &Sign, found: Found) -> Signal {
    let mut signal = Signal {
        cause: sign.cause,
        container: found.container,
        event_name: case.pod.metadata.name.clone().unwrap_or_default(),
        reason: found.reason,
        message: found.message,
        ..standing(case.pod, sign.event_type, StandingState::Holds, found.since, case.now)
    };
    if matches!(sign.cause, Cause::Scheduling | Cause::Readiness | Cause::Unready | Cause::Liveness) {
        quote(&mut signal, case.evidence, found.since);
    }
    signal
}

// An Event says in words what a pod's state only hints at; an older one spoke of something else.
fn quote(signal: &mut Signal, evidence: &Evidence, since: DateTime<Utc>) {
    let of_this =
        |words: &&Words| words.event_type == signal.event_type && words.at + Duration::from_secs(1) >= since;
    if let Some(words) = evidence.words.iter().find(of_this) {
        signal.event_name.clone_from(&words.event_name);
        signal.reason.clone_from(&words.reason);
        signal.message.clone_from(&words.message);
    }
}

// Where nothing is known to be wrong: whether that can be taken for well.
fn is_well(case: &Case, fates: &[Fate], event_type: EventType) -> bool {
    let pod = case.pod;
    if pod.has_ended() {
        // Of what ended it there is no recovery; it falls quiet.
        return !fates
            .iter()
            .any(|fate| matches!(fate.verdict, Verdict::Trouble(trouble, _) if trouble == event_type));
    }
    let is_running = |status: &ContainerStatus| status.state.running.is_some();
    // Beside those that run, one that has done its work.
    let sound = |(role, _, status): (Role, &Container, &ContainerStatus)| {
        let done = status.state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0);
        role == Role::Init || is_running(status) || done
    };
    match event_type {
        // A gate may keep it from being scheduled, and an init container take its time.
        EventType::PodPending => {
            pod.status.phase.as_deref() != Some("Pending")
                || pod.containers().any(|(_, _, status)| status.state.running.is_some())
        }
        EventType::PodRestart | EventType::OomKill | EventType::ProbeFailed => {
            pod.status.container_statuses.iter().any(is_running) && pod.containers().all(sound)
        }
    }
}

fn crash_loop(fates: &[Fate], event_type: EventType) -> Option<Found> {
    let fate = fates.iter().find(|fate| {
        matches!(fate.verdict, Verdict::Trouble(trouble, _) if trouble == event_type)
            && CRASH_LOOP.contains(&fate.end.status.waits_for())
    })?;
    let status = fate.end.status;
    let waiting = status.state.waiting.as_ref();
    Some(Found {
        since: fate.end.at(),
        container: Some(status.name.clone()),
        reason: status.waits_for().to_owned(),
        message: waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default(),
    })
}

fn stuck(case: &Case) -> Option<Found> {
    let (_, _, status) = case.pod.containers().find(|(_, _, status)| STUCK.contains(&status.waits_for()))?;
    let waiting = status.state.waiting.as_ref();
    Some(Found {
        // kubelet does not say since when.
        since: case.stuck_since.into_iter().chain([placed_at(case.pod)]).max().unwrap_or_default(),
        container: Some(status.name.clone()),
        reason: status.waits_for().to_owned(),
        message: waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default(),
    })
}

/// Whether a container cannot be started, or no node takes the pod: states that do not say since when.
pub fn is_stuck(case: Case) -> bool {
    stuck(&case).is_some() || unscheduled(&case).is_some()
}

fn unscheduled(case: &Case) -> Option<Found> {
    let pod = case.pod;
    let gated = |reason: Option<&str>| reason == Some("SchedulingGated");
    if pod.status.phase.as_deref() != Some("Pending") {
        return None;
    }
    match pod.condition("PodScheduled") {
        Some(scheduled) if scheduled.status == "False" && !gated(scheduled.reason.as_deref()) => {
            Some(Found {
                // The stamp does not move when a gate goes and no node is found.
                since: (scheduled.last_transition_time.into_iter().chain(case.stuck_since).max())
                    .unwrap_or(case.end_seen_at),
                container: None,
                reason: scheduled.reason.clone().unwrap_or_default(),
                message: scheduled.message.clone().unwrap_or_default(),
            })
        }
        // No scheduler has looked at it.
        None if pod.spec.scheduling_gates.is_empty() && pod.status.start_time.is_none() => Some(Found {
            since: pod.created_at().unwrap_or(case.now),
            container: None,
            reason: "NotScheduled".into(),
            message: "No scheduler has looked at the pod".into(),
        }),
        _ => None,
    }
}

fn creating(case: &Case) -> Option<Found> {
    let pod = case.pod;
    // A sidecar that has not started yet holds the others up: that is its probe's matter.
    let running = pod.containers().any(|(role, _, status)| {
        status.state.running.is_some() && (role != Role::Sidecar || status.started != Some(true))
    });
    if pod.status.phase.as_deref() != Some("Pending") || running {
        return None;
    }
    // Behind the first that is not there yet the others wait for their turn.
    let (_, _, status) = pod.containers().find(|(role, _, status)| {
        let done = status.state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0);
        !(*role == Role::Init && done) && status.state.running.is_none()
    })?;
    if !matches!(status.waits_for(), "ContainerCreating" | "PodInitializing" | "")
        || status.newest_end().is_some()
    {
        return None;
    }
    Some(Found {
        since: placed_at(pod),
        container: Some(status.name.clone()),
        reason: status.waits_for().to_owned(),
        message: format!("Container {} is still being created", status.name),
    })
}

fn untouched(case: &Case) -> Option<Found> {
    let pod = case.pod;
    let scheduled = pod.condition("PodScheduled").filter(|scheduled| scheduled.status == "True")?;
    let untouched = pod.status.container_statuses.is_empty() && pod.status.init_container_statuses.is_empty();
    (untouched && pod.status.phase.as_deref() == Some("Pending")).then(|| Found {
        since: scheduled.last_transition_time.or(pod.created_at()).unwrap_or(case.now),
        container: None,
        reason: "NotStarted".into(),
        message: "The pod has a node, and nothing of it has been started".into(),
    })
}

fn liveness(case: &Case) -> Option<Found> {
    let streak = case.evidence.liveness.iter().find(|streak| streak.goes_on(case.now))?;
    Some(Found {
        since: streak.first,
        container: streak.container.clone(),
        reason: "Unhealthy".into(),
        message: "Liveness probe failed".into(),
    })
}

// A container that runs and is not ready has a probe that fails: without one it were ready. A gate of
// somebody else's keeps the pod from being ready, not its containers.
fn unready(case: &Case, was_ready: bool) -> Option<Found> {
    let ready = case.pod.condition("Ready");
    let lost_at = ready.filter(|ready| ready.status == "False").and_then(|ready| ready.last_transition_time);
    case.pod.containers().find_map(|(role, container, status)| {
        let started_at = status.state.running.as_ref()?.started_at?;
        let probed = container.readiness_probe.is_some()
            || container.startup_probe.is_some() && status.started != Some(true);
        if role == Role::Init || status.ready || !probed {
            return None;
        }
        // Readiness that was lost after the start was there after the start.
        let lost_at = lost_at.filter(|at| *at > started_at);
        (lost_at.is_some() == was_ready).then(|| Found {
            since: lost_at.unwrap_or(started_at),
            container: Some(status.name.clone()),
            reason: ready.and_then(|ready| ready.reason.clone()).unwrap_or_else(|| "NotReady".into()),
            message: format!(
                "Container {} runs and is not ready{}",
                status.name,
                if was_ready { " any more" } else { " yet" }
            ),
        })
    })
}

/// Since when a pod has its node.
fn placed_at(pod: &Pod) -> DateTime<Utc> {
    let scheduled = pod.condition("PodScheduled").and_then(|scheduled| scheduled.last_transition_time);
    scheduled.into_iter().chain(pod.status.start_time).chain(pod.created_at()).max().unwrap_or_default()
}

#[cfg(test)]
mod tests;
