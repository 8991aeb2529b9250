//! A stage is one control plane, one khook and one kagent that the tests of a binary share, each test in a
//! namespace of its own. For scenarios that change no setting: they mostly wait, and so can do it together.
//!
//! Every khook of a control plane works for all its namespaces. Two of them there would call each other's
//! agents: a test that starts its own takes a control plane of its own.

use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result};
use tokio::{runtime::Runtime, sync::OnceCell};

use crate::{
    agent::Agent,
    control_plane::ControlPlane,
    operator::{Operator, Setup},
    world::{World, crd_yaml},
};

/// The parts that all share.
pub struct Stage {
    /// The cluster.
    pub control_plane: &'static ControlPlane,
    /// The stand-in kagent.
    pub agent: Arc<Agent>,
    /// khook, ready.
    pub operator: Operator,
}

impl Stage {
    /// The stage of this binary; built by whoever comes first.
    pub async fn shared() -> Result<&'static Self> {
        Self::shared_with(ControlPlane::shared().await?, |setup| setup).await
    }

    /// The same on a control plane that has been prepared, with other settings. Who comes second gets what
    /// the first asked for.
    pub async fn shared_with(
        control_plane: &'static ControlPlane,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Result<&'static Self> {
        static SHARED: OnceCell<Stage> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::build(control_plane, change)).await
    }

    /// A namespace on this stage.
    pub async fn world(&self, name: &str) -> Result<World> {
        let namespace = self.control_plane.fresh_namespace(name).await?;
        World::with(self.control_plane, self.agent.clone(), namespace).await
    }

    async fn build(
        control_plane: &'static ControlPlane,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Result<Self> {
        control_plane.apply(&crd_yaml()?).await.context("the CRD")?;
        let agent = Arc::new(lasting_agent().await?);
        let world = World::with(control_plane, agent.clone(), "default".into()).await?;
        let operator = world.start(change(world.setup()?)).await?;
        Ok(Self { control_plane, agent, operator })
    }
}

/// An agent that outlives the test it was started in: each test has a runtime, and what it spawned ends with
/// it.
async fn lasting_agent() -> Result<Agent> {
    static RUNTIME: LazyLock<std::io::Result<Runtime>> =
        LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build());
    let runtime = RUNTIME.as_ref().context("a runtime for the agent")?;
    tokio::task::spawn_blocking(|| runtime.block_on(Agent::spawn())).await.context("starting the agent")?
}
