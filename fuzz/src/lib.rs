//! A target is one kind of bytes that khook reads from others, and what must hold whatever they are.
//!
//! Each is a plain function that panics where something does not hold. libFuzzer calls it (`just fuzz TARGET`),
//! and so does a test, with the files of `corpus/TARGET/` and with mutations of them.

mod answer;
mod event;
mod pods;
mod prompt;
mod status;
mod validate;

pub use answer::answer;
pub use event::event;
pub use pods::pods;
pub use prompt::prompt;
pub use status::status;
pub use validate::validate;

use chrono::{DateTime, TimeDelta, Utc};

/// A target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("answer", answer),
    ("event", event),
    ("pods", pods),
    ("prompt", prompt),
    ("status", status),
    ("validate", validate),
];

/// 2026-01-02T03:00:00Z and so many seconds: the time in every target, for a finding must come again.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_322_800, 0).unwrap_or_default() + TimeDelta::seconds(seconds)
}
