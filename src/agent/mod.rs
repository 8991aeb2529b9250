//! An agent is somebody khook asks: it has a name, takes one message, and starts a task for it.
//!
//! khook speaks to agents through kagent: a REST session first, then one A2A message into it, then
//! reads of the task it started. Everything here is about one call at a time; which calls are made
//! and when is decided by `incident`, and how many at once by the pool.

pub mod a2a;
pub mod pool;
pub mod session;

pub use session::{AgentCall, Credential, Follow, Kagent, KagentConfig, KagentError, unwanted};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
