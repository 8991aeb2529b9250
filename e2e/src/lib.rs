//! khook on real parts: a control plane, a stand-in kagent and the operator as a process.
//!
//! A scenario reads like this, and leaves nothing running however it ends:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use e2e::{agent::{Agent, Behaviour}, control_plane::ControlPlane, events::Event, operator::Operator};
//! # async fn scenario() -> anyhow::Result<()> {
//! let cluster = ControlPlane::shared().await?;
//! let agent = Agent::spawn().await?;
//! agent.set(Behaviour::default().delay(Duration::from_secs(5)).blocks());
//! let operator = Operator::new(&cluster.kubeconfig(), &agent.url())?.start().await?;
//! operator.wait_ready(Duration::from_secs(30)).await?;
//! let namespace = cluster.fresh_namespace("restart").await?;
//! let client = cluster.client().await?;
//! Event::kubelet("BackOff", "Back-off restarting failed container")
//!     .pod(&namespace, "web-1")
//!     .container("app")
//!     .post(&client)
//!     .await?;
//! agent.wait_for_messages(1, Duration::from_secs(30)).await?;
//! # Ok(())
//! # }
//! ```

pub mod agent;
pub mod assets;
pub mod browser;
pub mod control_plane;
pub mod crds;
pub mod events;
pub mod faults;
pub mod helm;
pub mod image;
pub mod line;
pub mod markdown;
pub mod node;
pub mod objects;
pub mod operator;
pub mod pods;
pub mod process;
pub mod prompt;
pub mod provider;
pub mod release;
pub mod scenario;
pub mod sdk;
pub mod stage;
pub mod suite;
pub mod table;
pub mod wait;
pub mod world;

/// An HTTP client that follows no redirects and uses the one crypto provider of this workspace.
pub fn http_client() -> anyhow::Result<reqwest::Client> {
    // reqwest is built without a provider of its own and panics when none is installed; a second
    // install is refused, which is all right.
    let _ = rustls::crypto::ring::default_provider().install_default();
    use anyhow::Context as _;
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("building an HTTP client")
}
