//! A breaker stops calling an agent that fails in a row, and finds out with one call at a time when it is
//! back. Pure: time is an argument. Waiting for it uses up no attempt of any incident.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::policy::Policy;
use crate::sabotage::{Safeguard, without};

/// Whether an agent may be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Breaker {
    state: State,
    closed_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { until: DateTime<Utc>, trips: u32 },
    Probing { trips: u32 },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// What a breaker allows now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Any number of calls.
    All,
    /// One call, to find out.
    Probe,
    /// None until then.
    NoneUntil(DateTime<Utc>),
    /// None until the call that finds out has ended.
    Probing,
    /// None: what the agent needs to be asked is missing. The breaker itself never says so.
    NotReady,
}

impl Breaker {
    /// What is allowed at `now`.
    pub fn allow(&self, now: DateTime<Utc>) -> Allow {
        match self.state {
            _ if without(Safeguard::Breaker) => Allow::All,
            State::Closed { .. } => Allow::All,
            State::Open { until, .. } if now >= until => Allow::Probe,
            State::Open { until, .. } => Allow::NoneUntil(until),
            State::Probing { .. } => Allow::Probing,
        }
    }

    /// A call begins. Returns whether it is the probe.
    pub fn begin(&mut self, now: DateTime<Utc>) -> bool {
        match self.state {
            State::Open { until, trips } if now >= until => {
                self.state = State::Probing { trips };
                true
            }
            _ => false,
        }
    }

    /// A call succeeded: the agent has a message.
    pub fn success(&mut self, now: DateTime<Utc>) {
        if !matches!(self.state, State::Closed { .. }) {
            self.closed_at = Some(now);
        }
        self.state = State::Closed { failures: 0 };
    }

    /// A call failed.
    pub fn failure(&mut self, now: DateTime<Utc>, policy: &Policy) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 >= policy.breaker_threshold => open(now, 0, policy),
            State::Closed { failures } => State::Closed { failures: failures + 1 },
            // A call that began before the breaker opened says nothing new.
            State::Open { until, trips } => State::Open { until, trips },
            State::Probing { trips } => open(now, trips.saturating_add(1), policy),
        };
    }

    /// The probe never ran, or said nothing of the agent's health: the next call is the probe.
    pub fn abandon(&mut self, now: DateTime<Utc>) {
        if let State::Probing { trips } = self.state {
            self.state = State::Open { until: now, trips };
        }
    }

    /// When it last closed after having been open.
    pub fn closed_at(&self) -> Option<DateTime<Utc>> {
        self.closed_at
    }

    /// 0 closed, 1 finding out, 2 open: the value of the metric.
    pub fn level(&self) -> u8 {
        match self.state {
            State::Closed { .. } => 0,
            State::Probing { .. } => 1,
            State::Open { .. } => 2,
        }
    }
}

fn open(now: DateTime<Utc>, trips: u32, policy: &Policy) -> State {
    let wait = policy.breaker_base.saturating_mul(2u32.saturating_pow(trips.min(16))).min(policy.breaker_max);
    State::Open { until: now + wait.max(Duration::from_millis(1)), trips }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("in range")
    }

    fn policy() -> Policy {
        Policy {
            breaker_threshold: 3,
            breaker_base: Duration::from_secs(10),
            breaker_max: Duration::from_secs(30),
            ..Policy::default()
        }
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        (0..3).for_each(|_| breaker.failure(at(0), &policy()));
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let mut breaker = Breaker::default();
        breaker.failure(at(0), &policy());
        breaker.failure(at(0), &policy());
        breaker.success(at(0));
        breaker.failure(at(0), &policy());
        breaker.failure(at(0), &policy());
        assert_eq!(breaker.allow(at(0)), Allow::All);
        assert_eq!(breaker.closed_at(), None, "it never was open");
        breaker.failure(at(0), &policy());
        assert_eq!(breaker.allow(at(9)), Allow::NoneUntil(at(10)));
    }

    #[test]
    fn lets_one_probe_through_and_waits_longer_each_time_it_fails() {
        let mut breaker = opened();
        assert!(!breaker.begin(at(9)));
        assert_eq!(breaker.allow(at(10)), Allow::Probe);
        assert!(breaker.begin(at(10)));
        assert_eq!(breaker.allow(at(11)), Allow::Probing);
        assert!(!breaker.begin(at(11)), "one probe at a time");
        breaker.failure(at(12), &policy());
        assert_eq!(breaker.allow(at(13)), Allow::NoneUntil(at(32)));
        breaker.begin(at(32));
        breaker.failure(at(32), &policy());
        assert_eq!(breaker.allow(at(33)), Allow::NoneUntil(at(62)), "30 s at most");
        breaker.begin(at(62));
        breaker.success(at(63));
        assert_eq!(breaker.allow(at(63)), Allow::All);
        assert_eq!(breaker.closed_at(), Some(at(63)));
    }

    #[test]
    fn a_probe_that_never_ran_gives_its_place_to_the_next() {
        let mut breaker = opened();
        breaker.begin(at(10));
        breaker.abandon(at(11));
        assert_eq!(breaker.allow(at(11)), Allow::Probe);
    }

    #[test]
    fn late_failures_of_older_calls_do_not_prolong_the_wait() {
        let mut breaker = opened();
        breaker.failure(at(5), &policy());
        assert_eq!(breaker.allow(at(10)), Allow::Probe);
    }
}
