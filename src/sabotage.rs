//! Sabotage is khook with one of its safeguards taken out, or with a wrong clock: what the fault tests must
//! object to, and what they must stand.
//!
//! Only the build of the tests (feature `sabotage`) can be sabotaged, by its environment; in every other
//! build nothing here does anything.

use chrono::TimeDelta;

/// Something that keeps a promise. `docs/reliability.md` tells which check misses which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// A call is begun only after its claim has committed.
    Claim,
    /// A status is written only over the version it was planned from.
    Version,
    /// An attempt that did not run is repeated.
    Retry,
    /// What is too old raises nothing.
    Staleness,
    /// The status is compared with the pods after every list of them.
    Comparison,
    /// An agent that fails in a row is left alone but for one probe at a time.
    Breaker,
    /// After an unknown outcome the session is looked up before anything is sent again.
    Lookup,
    /// Inputs leave the inbox only after the write that contains them.
    Inbox,
    /// An unfinished call of a process that is gone is taken over.
    Takeover,
    /// Whether a call is still wanted is asked again just before it is made.
    Recall,
    /// The list of incidents has a bound.
    Bound,
    /// The ids of a message are the same in every attempt.
    Ids,
    /// A Lease that is not renewed is taken.
    Lease,
    /// Nothing is written where nothing changed.
    Rest,
    /// What may have been heard of an end is not said again.
    Farewell,
}

impl Safeguard {
    /// Every safeguard, in the order of the documentation.
    pub const ALL: [Self; 15] = [
        Self::Claim,
        Self::Version,
        Self::Retry,
        Self::Staleness,
        Self::Comparison,
        Self::Breaker,
        Self::Lookup,
        Self::Inbox,
        Self::Takeover,
        Self::Recall,
        Self::Bound,
        Self::Ids,
        Self::Lease,
        Self::Rest,
        Self::Farewell,
    ];

    /// The name by which the environment takes it out.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Version => "version",
            Self::Retry => "retry",
            Self::Staleness => "staleness",
            Self::Comparison => "comparison",
            Self::Breaker => "breaker",
            Self::Lookup => "lookup",
            Self::Inbox => "inbox",
            Self::Takeover => "takeover",
            Self::Recall => "recall",
            Self::Bound => "bound",
            Self::Ids => "ids",
            Self::Lease => "lease",
            Self::Rest => "rest",
            Self::Farewell => "farewell",
        }
    }
}

/// The variable that takes a safeguard out.
pub const WITHOUT: &str = "KHOOK_SABOTAGE_WITHOUT";

/// The variable that puts the clock forward, or back, by so many seconds.
pub const CLOCK: &str = "KHOOK_SABOTAGE_CLOCK";

/// Whether this process works without that safeguard.
#[cfg(not(feature = "sabotage"))]
pub const fn without(_: Safeguard) -> bool {
    false
}

/// By how much the clock of this process is wrong.
#[cfg(not(feature = "sabotage"))]
pub const fn clock_error() -> TimeDelta {
    TimeDelta::zero()
}

/// Whether this process works without that safeguard.
#[cfg(feature = "sabotage")]
pub fn without(safeguard: Safeguard) -> bool {
    use std::sync::OnceLock;
    static OUT: OnceLock<Option<String>> = OnceLock::new();
    OUT.get_or_init(|| std::env::var(WITHOUT).ok()).as_deref() == Some(safeguard.as_str())
}

/// By how much the clock of this process is wrong.
#[cfg(feature = "sabotage")]
pub fn clock_error() -> TimeDelta {
    use std::sync::OnceLock;
    static ERROR: OnceLock<TimeDelta> = OnceLock::new();
    let read = || std::env::var(CLOCK).ok().and_then(|seconds| seconds.parse().ok());
    *ERROR.get_or_init(|| read().and_then(TimeDelta::try_seconds).unwrap_or_default())
}
