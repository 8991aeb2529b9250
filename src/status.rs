//! The status writer: the one place that writes to Hooks. A write is the claim of the calls it contains.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    hook::{Hook, HookStatus},
    sabotage::{Safeguard, without},
};

/// The one field manager of the status.
pub const FIELD_MANAGER: &str = "khook";

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    /// It is stored; this is the Hook as it stands now.
    Committed(Box<Hook>),
    /// Somebody wrote in between, or the Hook is another one by now: read it back.
    Conflict,
    /// The Hook is gone.
    Gone,
    /// The apiserver refused it, and nothing was stored.
    Refused(kube::Error),
    /// The definition of Hooks lacks a field of the status: nothing was stored.
    Outdated(kube::Error),
    /// It may be stored or not: read the Hook back.
    Unknown(kube::Error),
}

/// Writes a status over exactly the version of the Hook it was planned from.
///
/// Server-side apply with the version and the UID in the body: a stale write, and one for a Hook that was
/// deleted and made anew, answers 409. The client given here must not retry by itself: a retry can meet
/// its own commit as a conflict.
pub async fn write(hooks: &Api<Hook>, planned_from: &Hook, status: &HookStatus) -> Written {
    let name = planned_from.name_any();
    let mut body = json!({
        "apiVersion": "kagent.dev/v1alpha2",
        "kind": "Hook",
        "metadata": {
            "name": name,
            "namespace": planned_from.namespace(),
            "uid": planned_from.uid(),
            "resourceVersion": planned_from.resource_version(),
        },
        "status": status,
    });
    if without(Safeguard::Version) {
        body["metadata"] = json!({"name": name, "namespace": planned_from.namespace()});
    }
    // Force settles whose field it is, not whose write is newer: that is the resourceVersion's part.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match hooks.patch_status(&name, &params, &Patch::Apply(&body)).await {
        Ok(hook) => Written::Committed(Box::new(hook)),
        Err(kube::Error::Api(status)) if status.code == 409 => Written::Conflict,
        Err(kube::Error::Api(status)) if status.code == 404 => Written::Gone,
        Err(error @ kube::Error::Api(_)) => match &error {
            // An apply is checked against the definition before anything else, and answered 500.
            kube::Error::Api(status) if status.message.contains("field not declared in schema") => {
                Written::Outdated(error)
            }
            kube::Error::Api(status) if status.code >= 500 || status.code == 429 => Written::Unknown(error),
            _ => Written::Refused(error),
        },
        Err(error) => Written::Unknown(error),
    }
}
