//! A policy is every span and bound the state machine works with, in one value.
//!
//! The defaults are the product's; tests scale them, users override some per configuration.

use std::time::Duration;

use super::{allowed::Allowed, hosts::Hosts};

/// Spans and bounds of the incident state machine. A per-configuration field of the Hook
/// (`for`, `repeatInterval`, `resolveTimeout`) wins over the value here.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// An occurrence older than this, by the newest stamp of its Event, is stale and raises nothing.
    pub stale_after: Duration,
    /// Length of a notification window: no second call of an incident before it has passed.
    pub repeat_interval: Duration,
    /// Quiet time after which a notified incident resolves.
    pub resolve_timeout: Duration,
    /// How long a resolved incident is remembered; trouble within it is "the fix did not hold".
    pub retention: Duration,
    /// A due incident that could not be delivered for this long is given up, visibly.
    pub delivery_timeout: Duration,
    /// How long the agent's task is followed before its outcome is called unknown.
    pub task_deadline: Duration,
    /// Scales every default hold (`for`): 1.0 in production, less in tests.
    pub hold_scale: f64,
    /// The share of its hold that trouble must last before it becomes an incident at all: what every start
    /// and every rollout goes through for seconds is not worth a write.
    pub unseen_share: f64,
    /// How long a condition must be clear before a pending-type or readiness incident resolves.
    pub clear_hold: Duration,
    /// How long a container must run before a restart or OOM incident resolves.
    pub running_hold: Duration,
    /// First retry delay after a call that surely did not run; doubles per attempt, with jitter.
    pub retry_base: Duration,
    /// How long after an unknown outcome the session is looked up: by then a message that arrived is in it.
    pub lookup_grace: Duration,
    /// Upper bound of a retry delay.
    pub retry_max: Duration,
    /// Failed attempts in a row before an incident waits for the next round.
    pub attempts_per_round: u32,
    /// Wait until the next round of attempts, unless the agent's breaker closes earlier.
    pub round_interval: Duration,
    /// A foreign claim is taken over after its own duration and this margin have passed unmoved.
    pub takeover_margin: Duration,
    /// Longest time one call may take from claim to outcome; written into the claim.
    pub claim_duration: Duration,
    /// At most this many entries in `status.activeEvents`.
    pub max_entries: usize,
    /// At most this many bytes of serialized entries; oldest answers are trimmed first.
    pub max_bytes: usize,
    /// Resolved entries kept for people beyond what correctness needs.
    pub keep_resolved: usize,
    /// Consecutive failures that open an agent's breaker.
    pub breaker_threshold: u32,
    /// First time an open breaker waits before its one probe; doubles up to `breaker_max`.
    pub breaker_base: Duration,
    /// Longest time between two probes.
    pub breaker_max: Duration,
    /// Where agents may be that are asked directly.
    pub direct_agents: Hosts,
    /// Which of kagent's agents Hooks may have asked.
    pub allowed_agents: Allowed,
    /// Whether what agents say is shown in status and Events; it may quote logs.
    pub show_answers: bool,
    /// Where kagent's UI is, without a slash at its end.
    pub ui_url: Option<String>,
}

impl Policy {
    /// For Hooks that are only looked at: every agent is allowed, as nobody is called.
    pub fn permissive() -> Self {
        Self { direct_agents: Hosts::any(), ..Self::default() }
    }
}

impl Default for Policy {
    fn default() -> Self {
        const MINUTE: u64 = 60;
        Self {
            stale_after: Duration::from_secs(15 * MINUTE),
            repeat_interval: Duration::from_secs(10 * MINUTE),
            resolve_timeout: Duration::from_secs(10 * MINUTE),
            retention: Duration::from_secs(60 * MINUTE),
            delivery_timeout: Duration::from_secs(24 * 60 * MINUTE),
            task_deadline: Duration::from_secs(30 * MINUTE),
            hold_scale: 1.0,
            unseen_share: 0.25,
            clear_hold: Duration::from_secs(MINUTE),
            running_hold: Duration::from_secs(10 * MINUTE),
            retry_base: Duration::from_secs(2),
            lookup_grace: Duration::from_secs(5),
            retry_max: Duration::from_secs(60),
            attempts_per_round: 3,
            round_interval: Duration::from_secs(10 * MINUTE),
            takeover_margin: Duration::from_secs(30),
            claim_duration: Duration::from_secs(150),
            max_entries: 100,
            max_bytes: 144 * 1024,
            keep_resolved: 20,
            breaker_threshold: 5,
            breaker_base: Duration::from_secs(15),
            breaker_max: Duration::from_secs(120),
            direct_agents: Hosts::default(),
            allowed_agents: Allowed::default(),
            show_answers: true,
            ui_url: None,
        }
    }
}
