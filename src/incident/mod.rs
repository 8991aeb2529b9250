//! An incident is one stretch of one kind of trouble on one pod, asked of one agent.
//!
//! This module is pure: no I/O, no async, no clock. Time is an argument, effects are returned. Clippy
//! guards it: `clippy.toml` names the clocks.

#![deny(clippy::disallowed_methods)]

pub mod allowed;
pub mod breaker;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod hosts;
pub mod key;
pub mod lifecycle;
pub mod outcome;
pub mod plan;
pub mod policy;
pub mod prompt;
pub mod rules;
pub mod signal;
pub mod summary;
