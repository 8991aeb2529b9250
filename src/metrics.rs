//! A metric is a number about khook for the people who operate it.
//!
//! Label values come from closed sets, or name agents and event types: never pods, never error
//! texts. What can be counted is there with zero from the start, so that a rate shows the first one.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use crate::{
    hook::{EventType, Phase, Reason},
    incident::outcome,
    source::Scope,
};

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The value as the label has it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

label! {
    /// Where a signal came from.
    Source {
        /// Kubernetes Events.
        Events = "events",
        /// Pods.
        Pods = "pods",
    }
}

label! {
    /// What a request to kagent was for.
    CallKind {
        /// To open a session and hand the message to the agent.
        Message = "message",
        /// The same, to say that an incident is resolved.
        Farewell = "farewell",
        /// To see whether a message had arrived.
        Lookup = "lookup",
        /// To see how a task goes.
        Follow = "follow",
    }
}

label! {
    /// What became of a request to kagent.
    CallOutcome {
        /// Taken: a session opened, a message accepted, a task read that goes on.
        Accepted = "accepted",
        /// Surely not run: it may be repeated.
        NotRun = "not_run",
        /// Turned away because the agent is busy: it may be repeated later.
        Throttled = "throttled",
        /// Refused, and repeating it cannot help.
        Permanent = "permanent",
        /// It may have run.
        Unknown = "unknown",
        /// A lookup found the message.
        Found = "found",
        /// A lookup surely did not find the message.
        Absent = "absent",
        /// A lookup or a look at a task failed.
        Unavailable = "unavailable",
        /// The server has no such request.
        Unsupported = "unsupported",
        /// The task is over.
        Ended = "ended",
    }
}

label! {
    /// Why a signal led to no call.
    Suppressed {
        /// Seen before.
        Duplicate = "duplicate",
        /// Too old.
        Stale = "stale",
        /// Within the notification window of its incident.
        Window = "window",
        /// No configuration asks for it.
        Unmatched = "unmatched",
    }
}

label! {
    /// What became of a status write.
    WriteResult {
        /// Stored.
        Committed = "committed",
        /// Somebody else wrote first.
        Conflict = "conflict",
        /// Failed, or not known to be stored.
        Error = "error",
        /// There was nothing to write.
        Unchanged = "unchanged",
    }
}

label! {
    /// What a watch looks at.
    Watch {
        /// Hooks.
        Hooks = "hooks",
        /// Kubernetes Events.
        Events = "events",
        /// Pods.
        Pods = "pods",
        /// What kubelet says when it ends a container.
        Kills = "kills",
    }
}

label! {
    /// Why a watch began again.
    Restart {
        /// The server no longer has the versions since the last one seen (410).
        Expired = "expired",
        /// The connection failed, or nothing could be understood on it.
        Failed = "failed",
        /// The server refused (other errors).
        Refused = "refused",
    }
}

label! {
    /// Why a reconcile failed. Each is tried again.
    Failure {
        /// Somebody else wrote the Hook first.
        Conflict = "conflict",
        /// The Hook could not be read back.
        ReadBack = "read_back",
        /// The Hook is not there any more.
        Gone = "gone",
        /// The apiserver refuses the status.
        Refused = "refused",
        /// Whether the status was stored is not known.
        Unknown = "unknown",
        /// A defect in khook.
        Panic = "panic",
    }
}

/// The transitions that are counted from the start, so that the first is seen as an increase.
const TRANSITIONS: [(Phase, Reason); 12] = [
    (Phase::Firing, Reason::Calling),
    (Phase::Notified, Reason::AgentCalled),
    (Phase::Pending, Reason::BackingOff),
    (Phase::Pending, Reason::CircuitOpen),
    (Phase::Pending, Reason::AgentCallFailed),
    (Phase::Pending, Reason::AgentNotReady),
    (Phase::Resolved, Reason::RecoveredBeforeCall),
    (Phase::Resolved, Reason::NotDelivered),
    (Phase::Resolved, Reason::Recovered),
    (Phase::Resolved, Reason::Quiet),
    (Phase::Resolved, Reason::PodGone),
    (Phase::Resolved, Reason::ConfigurationRemoved),
];

/// What tokens are for.
const TOKENS: [&str; 3] = ["prompt", "answer", "other"];

/// State of an agent's circuit breaker, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls pass.
    Closed = 0,
    /// One probe passes.
    HalfOpen = 1,
    /// No call passes.
    Open = 2,
}

/// What one Hook adds to the gauges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HookCounts {
    /// Number of incidents by event type and phase.
    pub active: Vec<(EventType, Phase, i64)>,
    /// Incidents that its status has no room for.
    pub overflow: i64,
    /// Since when the call that waits longest has been due.
    pub oldest_due: Option<DateTime<Utc>>,
    /// It has a mistake that only khook can see.
    pub stalled: bool,
}

/// All of khook's metrics, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    api_calls: IntCounterVec,
    api_call_duration: HistogramVec,
    active_events: IntGaugeVec,
    suppressed: IntCounterVec,
    event_to_call: Histogram,
    status_writes: IntCounterVec,
    watch_restarts: IntCounterVec,
    watch_contact: GaugeVec,
    breaker_state: IntGaugeVec,
    leader: IntGauge,
    reconcile_duration: Histogram,
    reconcile_errors: IntCounterVec,
    transitions: IntCounterVec,
    tokens: IntCounterVec,
    overflow: IntGauge,
    oldest_due: IntGauge,
    hook_states: IntGaugeVec,
    inflight: IntGauge,
    notices_dropped: IntCounter,
    spans_dropped: IntCounter,
    cpu: Counter,
    memory: Gauge,
    open_fds: IntGauge,
    /// What each Hook adds to the gauges; none where another process tells of them.
    hooks: Mutex<Option<HashMap<String, HookCounts>>>,
}

impl Metrics {
    /// Registers every metric, with zeros where the label values are known.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(name, help).buckets(buckets.to_vec())
        };
        const CALL: &[f64] =
            &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
        const REACTION: &[f64] = &[
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0,
        ];
        const RECONCILE: &[f64] =
            &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

        let metrics = Self {
            events: counters(
                "khook_events_total",
                "Signals of trouble that a Hook may care about.",
                &["event_type", "source"],
            ),
            api_calls: counters(
                "khook_api_calls_total",
                "Requests to kagent, by what they were for and what became of them.",
                &["kind", "outcome"],
            ),
            api_call_duration: register(
                &registry,
                HistogramVec::new(
                    histogram("khook_api_call_duration_seconds", "Time requests to kagent took.", CALL),
                    &["kind"],
                ),
            ),
            active_events: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("khook_active_events", "Incidents in the status of all Hooks, by phase."),
                    &["event_type", "phase"],
                ),
            ),
            suppressed: counters(
                "khook_suppressed_total",
                "Signals that led to no call of their own, by reason.",
                &["reason"],
            ),
            event_to_call: register(
                &registry,
                Histogram::with_opts(histogram(
                    "khook_event_to_call_seconds",
                    "Time from seeing a signal, or from the end of its hold, to sending the message.",
                    REACTION,
                )),
            ),
            status_writes: counters(
                "khook_status_writes_total",
                "Writes of Hook status by result; unchanged ones were left out.",
                &["result"],
            ),
            watch_restarts: counters(
                "khook_watch_restarts_total",
                "Watches that had to begin again, by what they look at and why.",
                &["watch", "reason"],
            ),
            watch_contact: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "khook_watch_contact_timestamp_seconds",
                        "When the apiserver last answered a watch well, in seconds since the epoch; each asks anew \
                         at least every WATCH_TIMEOUT. The scope is all, or a namespace of WATCH_NAMESPACES.",
                    ),
                    &["scope", "watch"],
                ),
            ),
            breaker_state: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "khook_breaker_state",
                        "Circuit breaker of an agent: 0 closed, 1 half-open (one probe), 2 open.",
                    ),
                    &["agent"],
                ),
            ),
            leader: gauge("khook_leader", "Whether this process leads: 1 or 0."),
            reconcile_duration: register(
                &registry,
                Histogram::with_opts(histogram(
                    "khook_reconcile_duration_seconds",
                    "Time one reconcile of a Hook took, with its status write.",
                    RECONCILE,
                )),
            ),
            reconcile_errors: counters(
                "khook_reconcile_errors_total",
                "Reconciles of a Hook that failed, by kind of error.",
                &["reason"],
            ),
            transitions: counters(
                "khook_incident_transitions_total",
                "Phases that incidents went into, with the reason.",
                &["event_type", "to", "reason"],
            ),
            tokens: counters(
                "khook_agent_tokens_total",
                "Tokens that agents say their runs have used, by what for; reported by some agents only.",
                &["agent", "kind"],
            ),
            overflow: gauge("khook_overflow", "Incidents that have no room in their Hook's status."),
            oldest_due: gauge(
                "khook_oldest_due_timestamp_seconds",
                "Since when the call that waits longest has been due, in seconds since the epoch; 0 where none waits.",
            ),
            hook_states: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "khook_hooks",
                        "Hooks: ready, or stalled by a mistake in them that only khook can see.",
                    ),
                    &["state"],
                ),
            ),
            inflight: gauge("khook_inflight_calls", "Calls to agents in flight."),
            notices_dropped: register(
                &registry,
                IntCounter::new(
                    "khook_notices_dropped_total",
                    "Kubernetes Events about Hooks that could not be published.",
                ),
            ),
            spans_dropped: register(
                &registry,
                IntCounter::new(
                    "khook_spans_dropped_total",
                    "Spans of traces that did not reach the collector, or that it refused.",
                ),
            ),
            cpu: register(
                &registry,
                Counter::new("process_cpu_seconds_total", "User and system CPU time spent, in seconds."),
            ),
            memory: register(
                &registry,
                Gauge::new("process_resident_memory_bytes", "Resident memory size, in bytes."),
            ),
            open_fds: register(&registry, IntGauge::new("process_open_fds", "Open file descriptors.")),
            hooks: Mutex::default(),
            registry,
        };

        let build = register(
            &metrics.registry,
            IntGaugeVec::new(Opts::new("khook_build_info", "The build that runs; always 1."), &["version"]),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let start = register(
            &metrics.registry,
            Gauge::new("process_start_time_seconds", "Start of the process, in seconds since the epoch."),
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        start.set(now.as_secs_f64());
        for kind in CallKind::ALL {
            metrics.api_call_duration.with_label_values(&[kind.as_str()]);
            for outcome in CallOutcome::ALL {
                metrics.api_calls.with_label_values(&[kind.as_str(), outcome.as_str()]);
            }
        }
        for event_type in EventType::ALL {
            for source in Source::ALL {
                metrics.events.with_label_values(&[event_type.as_str(), source.as_str()]);
            }
            for (phase, reason) in TRANSITIONS {
                let labels = [event_type.as_str(), phase.as_str(), reason.as_str()];
                metrics.transitions.with_label_values(&labels);
            }
        }
        for watch in Watch::ALL {
            for reason in Restart::ALL {
                metrics.watch_restarts.with_label_values(&[watch.as_str(), reason.as_str()]);
            }
        }
        for failure in Failure::ALL {
            metrics.reconcile_errors.with_label_values(&[failure.as_str()]);
        }
        for reason in Suppressed::ALL {
            metrics.suppressed.with_label_values(&[reason.as_str()]);
        }
        for result in WriteResult::ALL {
            metrics.status_writes.with_label_values(&[result.as_str()]);
        }
        metrics
    }

    /// A source saw a signal of `event_type`.
    pub fn event(&self, event_type: &'static str, source: Source) {
        self.events.with_label_values(&[event_type, source.as_str()]).inc();
    }

    /// A signal led to no call of its own.
    pub fn suppressed(&self, reason: Suppressed, count: u64) {
        self.suppressed.with_label_values(&[reason.as_str()]).inc_by(count);
    }

    /// A request to kagent ended after `took`.
    pub fn api_call(&self, kind: CallKind, outcome: CallOutcome, took: Duration) {
        self.api_calls.with_label_values(&[kind.as_str(), outcome.as_str()]).inc();
        self.api_call_duration.with_label_values(&[kind.as_str()]).observe(took.as_secs_f64());
    }

    /// A message was sent this long after its signal was seen, or after its hold was over.
    pub fn event_to_call(&self, took: Duration) {
        self.event_to_call.observe(took.as_secs_f64());
    }

    /// A call to an agent began; it is in flight until the guard is dropped.
    pub fn inflight(&self) -> InFlight {
        self.inflight.inc();
        InFlight(self.inflight.clone())
    }

    /// A status write ended.
    pub fn status_write(&self, result: WriteResult) {
        self.status_writes.with_label_values(&[result.as_str()]).inc();
    }

    /// A watch had to begin again.
    pub fn watch_restart(&self, watch: Watch, reason: Restart) {
        self.watch_restarts.with_label_values(&[watch.as_str(), reason.as_str()]).inc();
    }

    /// The apiserver has answered a watch well, or is about to be asked for the first time.
    pub fn watch_contact(&self, watch: Watch, scope: &Scope) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.watch_contact.with_label_values(&[scope.as_str(), watch.as_str()]).set(now.as_secs_f64());
    }

    /// The breaker of `agent` (`namespace/name`) is in `state`.
    pub fn breaker(&self, agent: &str, state: BreakerState) {
        // It is about to be called: its first tokens are to be seen as an increase.
        for kind in TOKENS {
            self.tokens.with_label_values(&[agent, kind]);
        }
        self.breaker_state.with_label_values(&[agent]).set(state as i64);
    }

    /// This process leads, or does not.
    pub fn leader(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// A reconcile ended after `took`.
    pub fn reconciled(&self, took: Duration, failure: Option<Failure>) {
        self.reconcile_duration.observe(took.as_secs_f64());
        if let Some(failure) = failure {
            self.reconcile_errors.with_label_values(&[failure.as_str()]).inc();
        }
    }

    /// An incident of `event_type` went into the phase `to`; `reason` may be empty.
    pub fn transition(&self, event_type: &'static str, to: &'static str, reason: &'static str) {
        self.transitions.with_label_values(&[event_type, to, reason]).inc();
    }

    /// A run of `agent` has used these tokens.
    pub fn tokens(&self, agent: &str, usage: outcome::Usage) {
        let other = usage.total.saturating_sub(usage.prompt.saturating_add(usage.answer));
        for (kind, count) in TOKENS.into_iter().zip([usage.prompt, usage.answer, other]) {
            self.tokens.with_label_values(&[agent, kind]).inc_by(u64::try_from(count).unwrap_or_default());
        }
    }

    /// A Kubernetes Event about a Hook could not be published.
    pub fn notice_dropped(&self) {
        self.notices_dropped.inc();
    }

    /// Spans of traces did not reach the collector.
    pub fn spans_dropped(&self, count: u64) {
        self.spans_dropped.inc_by(count);
    }

    /// This process begins to tell of the Hooks, or ends: another one does.
    pub fn tells_of_hooks(&self, tells: bool) {
        *self.hooks.lock() = tells.then(HashMap::new);
    }

    /// Replaces what `hook` (`namespace/name`) adds to the gauges, if this process tells of the Hooks.
    pub fn set_hook(&self, hook: &str, counts: HookCounts) {
        if let Some(hooks) = self.hooks.lock().as_mut() {
            hooks.insert(hook.to_owned(), counts);
        }
    }

    /// Takes away what `hook`, which is gone, added to the gauges.
    pub fn forget_hook(&self, hook: &str) {
        if let Some(hooks) = self.hooks.lock().as_mut() {
            hooks.remove(hook);
        }
    }

    fn add_up(&self, hooks: &HashMap<String, HookCounts>) {
        self.active_events.reset();
        for event_type in EventType::ALL {
            for phase in Phase::ALL {
                self.active_events.with_label_values(&[event_type.as_str(), phase.as_str()]);
            }
        }
        for (event_type, phase, count) in hooks.values().flat_map(|counts| &counts.active) {
            self.active_events.with_label_values(&[event_type.as_str(), phase.as_str()]).add(*count);
        }
        self.overflow.set(hooks.values().map(|counts| counts.overflow).sum());
        let oldest = hooks.values().filter_map(|counts| counts.oldest_due).min();
        self.oldest_due.set(oldest.map(|due| due.timestamp()).unwrap_or_default());
        let stalled = hooks.values().filter(|counts| counts.stalled).count();
        for (state, count) in [("ready", hooks.len() - stalled), ("stalled", stalled)] {
            self.hook_states.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self) -> String {
        // Two scrapes at a time must not both add up, nor both add the difference in CPU time.
        let hooks = self.hooks.lock();
        self.add_up(hooks.as_ref().unwrap_or(&HashMap::new()));
        self.look_at_process();
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# the metrics could not be encoded: {error}\n"))
    }

    /// Reads the process's own numbers. Where there is no /proc they stay zero.
    fn look_at_process(&self) {
        let usage = Usage::read().unwrap_or_default();
        self.memory.set(usage.resident_bytes);
        self.open_fds.set(usage.open_fds);
        self.cpu.inc_by((usage.cpu_seconds - self.cpu.get()).max(0.0));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts a call as in flight while it lives.
#[must_use]
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What the kernel says about this process.
#[derive(Default)]
struct Usage {
    resident_bytes: f64,
    cpu_seconds: f64,
    open_fds: i64,
}

impl Usage {
    fn read() -> Option<Self> {
        /// Linux counts in 1/100 s for all who read /proc, whatever its own tick is.
        const TICKS_PER_SECOND: f64 = 100.0;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is a name that may hold anything, also blanks and brackets. After its
        // last bracket, user and system time are the twelfth and thirteenth.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(Self {
            resident_bytes: kib.trim().parse::<f64>().ok()? * 1024.0,
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            open_fds: i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?,
        })
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constants, and a test makes them all");
    registry.register(Box::new(metric.clone())).expect("names are constants, and a test registers them all");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(phase: Phase, count: i64, overflow: i64) -> HookCounts {
        HookCounts {
            active: vec![(EventType::OomKill, phase, count)],
            overflow,
            stalled: overflow > 0,
            ..due(30)
        }
    }

    fn due(seconds: i64) -> HookCounts {
        HookCounts { oldest_due: DateTime::from_timestamp(seconds, 0), ..HookCounts::default() }
    }

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let text = metrics.encode();
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    fn touched() -> Metrics {
        let metrics = Metrics::new();
        metrics.event("oom-kill", Source::Events);
        metrics.suppressed(Suppressed::Stale, 2);
        metrics.api_call(CallKind::Message, CallOutcome::Accepted, Duration::from_millis(3));
        metrics.event_to_call(Duration::from_millis(20));
        metrics.status_write(WriteResult::Conflict);
        metrics.watch_restart(Watch::Events, Restart::Expired);
        metrics.breaker("kagent/k8s-agent", BreakerState::Open);
        metrics.leader(true);
        metrics.reconciled(Duration::from_millis(1), Some(Failure::Unknown));
        metrics.transition("oom-kill", "notified", "");
        metrics.notice_dropped();
        metrics.spans_dropped(3);
        metrics.tells_of_hooks(true);
        metrics.set_hook("ns/a", counts(Phase::Firing, 2, 1));
        metrics
    }

    #[test]
    fn the_call_that_waits_longest_counts() {
        let metrics = Metrics::new();
        metrics.tells_of_hooks(true);
        let oldest = "khook_oldest_due_timestamp_seconds";
        metrics.set_hook("ns/a", due(30));
        metrics.set_hook("ns/b", due(20));
        assert_eq!(value(&metrics, oldest), 20.0);
        metrics.set_hook("ns/b", HookCounts::default());
        assert_eq!(value(&metrics, oldest), 30.0);
        metrics.forget_hook("ns/a");
        assert_eq!(value(&metrics, oldest), 0.0);
    }

    #[test]
    fn every_metric_is_encoded_with_its_help() {
        let text = touched().encode();
        for line in [
            "khook_events_total{event_type=\"oom-kill\",source=\"events\"} 1",
            "khook_api_calls_total{kind=\"message\",outcome=\"accepted\"} 1",
            "khook_api_call_duration_seconds_count{kind=\"message\"} 1",
            "khook_active_events{event_type=\"oom-kill\",phase=\"firing\"} 2",
            "khook_suppressed_total{reason=\"stale\"} 2",
            "khook_suppressed_total{reason=\"window\"} 0",
            "khook_event_to_call_seconds_count 1",
            "khook_status_writes_total{result=\"conflict\"} 1",
            "khook_watch_restarts_total{reason=\"expired\",watch=\"events\"} 1",
            "khook_breaker_state{agent=\"kagent/k8s-agent\"} 2",
            "khook_leader 1",
            "khook_reconcile_duration_seconds_count 1",
            "khook_reconcile_errors_total{reason=\"unknown\"} 1",
            "khook_incident_transitions_total{event_type=\"oom-kill\",reason=\"\",to=\"notified\"} 1",
            "khook_overflow 1",
            "khook_oldest_due_timestamp_seconds 30",
            "khook_inflight_calls 0",
            "khook_notices_dropped_total 1",
            "khook_spans_dropped_total 3",
            concat!("khook_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.len() > 15), "{name} says {help:?}");
        }
    }

    #[test]
    fn a_hooks_counts_are_replaced_not_added() {
        let metrics = touched();
        metrics.set_hook("ns/b", counts(Phase::Firing, 5, 0));
        metrics.set_hook("ns/a", counts(Phase::Notified, 2, 0));
        let active = |phase: &str| {
            value(&metrics, &format!("khook_active_events{{event_type=\"oom-kill\",phase=\"{phase}\"}}"))
        };
        assert_eq!((active("firing"), active("notified"), active("pending")), (5.0, 2.0, 0.0));
        assert_eq!(value(&metrics, "khook_overflow"), 0.0);
        metrics.forget_hook("ns/b");
        assert_eq!(active("firing"), 0.0);
    }

    #[test]
    fn only_who_leads_tells_of_hooks() {
        let metrics = touched();
        let stalled = "khook_hooks{state=\"stalled\"}";
        assert_eq!((value(&metrics, "khook_overflow"), value(&metrics, stalled)), (1.0, 1.0));
        metrics.tells_of_hooks(false);
        // What came of a call that was in flight is still folded in.
        metrics.set_hook("ns/a", counts(Phase::Notified, 2, 1));
        assert_eq!((value(&metrics, "khook_overflow"), value(&metrics, stalled)), (0.0, 0.0));
    }

    #[test]
    fn a_call_is_in_flight_until_its_guard_is_dropped() {
        let metrics = Metrics::new();
        let (one, two) = (metrics.inflight(), metrics.inflight());
        assert_eq!(metrics.inflight.get(), 2);
        drop((one, two));
        assert_eq!(metrics.inflight.get(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_knows_its_own_size() {
        let usage = Usage::read().unwrap();
        assert!(usage.resident_bytes > 100_000.0 && usage.open_fds > 2);
    }
}
