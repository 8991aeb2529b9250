//! khook turns trouble in a Kubernetes cluster into one well-posed call to an AI agent.

pub mod hook;

pub mod incident;

pub mod agent;

pub mod metrics;
