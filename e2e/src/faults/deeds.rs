//! What a fault does beside the wire: to processes, by users and other writers, to the control plane.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace, rbac::v1::RoleBinding};
use khook::hook::Hook;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{
    point::Deed,
    record::{Became, Line, What},
    run::{Run, lock},
};
use crate::{assets::Tool, helm::Helm, objects};

/// Longer than the Lease, than a claim, and than the time until another takes it over.
const PAUSE: Duration = Duration::from_secs(11);
/// How long a user leaves things as they are not meant to be.
const A_WHILE: Duration = Duration::from_millis(1500);

impl Run {
    /// Does what a fault asks for beside the wire.
    pub(super) async fn act(self: &Arc<Self>, replica: usize, deed: Deed) {
        if let Err(error) = self.try_act(replica, deed).await {
            self.idle(deed, &error);
        }
    }

    /// The same, and waits until the replica has been told of it.
    pub(super) async fn act_and_tell(self: &Arc<Self>, replica: usize, deed: Deed) {
        let before = self.record.read().len();
        self.act(replica, deed).await;
        let told = |line: &Line| matches!(line.what, What::Told { replica: of, .. } if of == replica);
        for _ in 0..400 {
            if self.record.read()[before..].iter().any(told) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing came of it.
    fn idle(&self, deed: Deed, error: &anyhow::Error) {
        self.record.note(What::Idle { deed, why: format!("{error:#}") });
        lock(&self.state).idle += 1;
    }

    /// In the background: undoes what a user did, after its time.
    async fn undo_later(
        self: &Arc<Self>,
        deed: Deed,
        undo: impl FnOnce(Arc<Self>) -> BoxFuture<'static, Result<()>> + Send + 'static,
    ) {
        let run = self.clone();
        self.later(async move {
            tokio::time::sleep(A_WHILE).await;
            if let Err(error) = undo(run.clone()).await {
                run.idle(deed, &error);
            }
        })
        .await;
    }

    async fn try_act(self: &Arc<Self>, replica: usize, deed: Deed) -> Result<()> {
        match deed {
            Deed::Pause => {
                let operator = self.operator(replica)?;
                operator.pause()?;
                stopped(operator.pid().context("it does not run")?).await;
                self.record.note(What::Process { replica, became: Became::Paused });
                let run = self.clone();
                self.later(async move {
                    tokio::time::sleep(PAUSE).await;
                    run.record.note(What::Process { replica, became: Became::Resumed });
                    operator.resume().ok();
                })
                .await;
            }
            Deed::Suspend | Deed::SuspendMeanwhile => {
                let name = self.some_hook().await?.name_any();
                self.patch(deed, &name, json!({"spec": {"suspend": true}})).await?;
                self.undo_later(deed, move |run| {
                    Box::pin(async move { run.patch(deed, &name, json!({"spec": {"suspend": null}})).await })
                })
                .await;
            }
            Deed::Edit => {
                let mut hook = self.some_hook().await?;
                for configuration in &mut hook.spec.event_configurations {
                    configuration.prompt.push_str(" (edited)");
                }
                let edited = json!({"spec": {"eventConfigurations": hook.spec.event_configurations}});
                self.patch(deed, &hook.name_any(), edited).await?;
            }
            Deed::Remove | Deed::RemoveMeanwhile => {
                let hook = self.some_hook().await?;
                let name = hook.name_any();
                let before = json!({"spec": {"eventConfigurations": hook.spec.event_configurations}});
                let other =
                    json!([{"eventType": "probe-failed", "agentId": "kagent/nobody", "prompt": "Look"}]);
                self.patch(deed, &name, json!({"spec": {"eventConfigurations": other}})).await?;
                self.undo_later(deed, move |run| {
                    Box::pin(async move { run.patch(deed, &name, before).await })
                })
                .await;
            }
            Deed::Recreate | Deed::RecreateMeanwhile => {
                let hook = self.some_hook().await?;
                let (name, uid) = (hook.name_any(), hook.uid().unwrap_or_default());
                self.world.hooks().delete(&name, &DeleteParams::default()).await?;
                self.record.note(What::Wrote { deed, uid, version: None, generation: None });
                self.world.hooks().create(&PostParams::default(), &Hook::new(&name, hook.spec)).await?;
            }
            Deed::Terminate => {
                // As a namespace's controller does it, which is not here: first what is in it, then itself.
                for hook in self.world.hooks().list(&Default::default()).await? {
                    let uid = hook.uid().unwrap_or_default();
                    self.record.note(What::Wrote { deed, uid, version: None, generation: None });
                }
                let namespaces: Api<Namespace> = Api::all(self.world.client.clone());
                namespaces.delete(&self.world.namespace, &DeleteParams::default()).await?;
                lock(&self.state).terminated = true;
                self.world.hooks().delete_collection(&DeleteParams::default(), &Default::default()).await?;
                self.pods().delete_collection(&DeleteParams::default(), &Default::default()).await?;
            }
            Deed::Meddle => {
                self.patch_status(deed, json!({"status": {"message": "somebody was here", "active": 77}}))
                    .await?;
            }
            Deed::Wipe => self.patch_status(deed, json!({"status": {"activeEvents": []}})).await?,
            Deed::Revoke => {
                let taken = self.bindings().list(&ListParams::default()).await?.items;
                self.bindings().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
                let give_back = move |run: Arc<Self>| run.give_back(taken).boxed();
                self.undo_later(deed, give_back).await;
            }
            Deed::StealLease => {
                let thief = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "khook"},
                    "spec": {"holderIdentity": "thief", "leaseDurationSeconds": 2},
                });
                let params = PatchParams::apply("thief").force();
                self.leases().patch("khook", &params, &Patch::Apply(&thief)).await?;
            }
            Deed::DeleteLease => {
                self.leases().delete("khook", &DeleteParams::default()).await?;
            }
            Deed::RestartApiserver | Deed::RestartEtcd => {
                let (control_plane, runtime) = (self.control_plane, Handle::current());
                // On a thread of its own: these wait in ways that cannot move between threads.
                let restart = move || match deed {
                    Deed::RestartEtcd => runtime.block_on(control_plane.restart_etcd()),
                    _ => runtime.block_on(control_plane.restart_apiserver()),
                };
                tokio::task::spawn_blocking(restart).await.context("restarting")??;
            }
            Deed::Compact => self.control_plane.compact().await?,
            Deed::Forget => self.world.agent.forget(),
            // On the wire.
            _ => {}
        }
        Ok(())
    }

    async fn some_hook(&self) -> Result<Hook> {
        let hooks = self.world.hooks().list(&Default::default()).await?;
        hooks.items.into_iter().next().context("there is no Hook")
    }

    async fn patch(&self, deed: Deed, name: &str, patch: Value) -> Result<()> {
        let hook = self.world.patch(name, patch).await?;
        self.wrote(deed, &hook);
        Ok(())
    }

    async fn patch_status(&self, deed: Deed, patch: Value) -> Result<()> {
        let name = self.some_hook().await?.name_any();
        let params = PatchParams::default();
        let hook = self.world.hooks().patch_status(&name, &params, &Patch::Merge(patch)).await?;
        self.wrote(deed, &hook);
        Ok(())
    }

    fn wrote(&self, deed: Deed, hook: &Hook) {
        self.record.note(What::Wrote {
            deed,
            uid: hook.uid().unwrap_or_default(),
            version: hook.resource_version().and_then(|version| version.parse().ok()),
            generation: hook.metadata.generation,
        });
    }

    /// Gives khook the rights of the chart in the namespace, with the Secret of its direct agent.
    pub(super) async fn grant_rights(&self) -> Result<()> {
        let namespace = &self.world.namespace;
        let values = json!({
            "watchNamespaces": [namespace],
            "directAgents": {"secrets": [{"namespace": namespace, "names": ["triage"]}]},
        });
        let rights = Helm::new(Tool::Helm3).await?.rights(namespace, &values).await?;
        objects::apply(&self.world.client, namespace, rights).await.context("khook's rights").map(drop)
    }

    async fn give_back(self: Arc<Self>, taken: Vec<RoleBinding>) -> Result<()> {
        for RoleBinding { metadata, role_ref, subjects } in taken {
            let metadata = ObjectMeta { name: metadata.name, ..ObjectMeta::default() };
            let binding = RoleBinding { metadata, role_ref, subjects };
            self.bindings().create(&PostParams::default(), &binding).await.context("khook's rights")?;
        }
        Ok(())
    }

    fn bindings(&self) -> Api<RoleBinding> {
        Api::namespaced(self.world.client.clone(), &self.world.namespace)
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.world.client.clone(), &self.world.namespace)
    }
}

/// Waits until a process that was sent SIGSTOP stands still with all its threads.
async fn stopped(pid: u32) {
    let stands = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok()).all(|stat| {
            // The state stands behind the name, which is in parentheses.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z']))
        })
    };
    for _ in 0..400 {
        if stands() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
