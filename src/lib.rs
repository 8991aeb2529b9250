//! khook turns trouble in a Kubernetes cluster into one well-posed call to an AI agent.
//!
//! The path of the data is the order of the modules:
//!
//! a [`source`] turns cluster objects into signals; [`incident`], which is pure, folds signals, outcomes
//! and time into the next status of a [`hook`]; [`reconcile`] observes, plans, writes through [`status`]
//! (this is the claim) and hands the calls over to [`agent`], whose outcomes come back to the plan.

pub mod hook;

pub mod source;

pub mod incident;

pub mod reconcile;

pub mod agent;

pub mod status;

pub mod notice;

pub mod trace;

pub mod operate;

pub mod client;
pub mod lease;
pub mod metrics;
pub mod otlp;
pub mod server;
pub mod telemetry;

pub mod sabotage;

pub mod config;

pub mod view;

pub mod check;
pub mod dashboard;
pub mod explain;

pub mod backtest;

pub mod cli;
