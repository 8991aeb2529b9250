//! A notice is told once for each transition: a line in the log, and for most an Event on the Hook.
//!
//! Events are published in the background, one after another: a slow apiserver holds nothing up, and what
//! does not fit the queue is counted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::ObjectRef,
    },
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    hook::Hook,
    incident::lifecycle::{Notice, NoticeKind, excerpt_of},
    metrics::Metrics,
};

/// Where notices are told.
#[derive(Clone)]
pub struct Notices {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    metrics: Arc<Metrics>,
}

/// Events that wait to be published.
const QUEUE: usize = 1024;

/// The apiserver refuses notes of more than 1,024 bytes.
const NOTE: usize = 1000;

impl Notices {
    /// Publishes in a task of its own, in the name of the process `instance`.
    pub fn start(client: Client, instance: String, metrics: Arc<Metrics>) -> Self {
        let (queue, mut waiting) = mpsc::channel::<(Event, ObjectReference)>(QUEUE);
        let reporter =
            Reporter { controller: "kagent.dev/khook".into(), instance: Some(excerpt_of(&instance, 128)) };
        let recorder = Recorder::new(client, reporter);
        let dropped = metrics.clone();
        tokio::spawn(async move {
            while let Some((event, hook)) = waiting.recv().await {
                if let Err(error) = recorder.publish(&event, &hook).await {
                    dropped.notice_dropped();
                    warn!(reason = event.reason, %error, "an Event on a Hook could not be published");
                }
            }
        });
        Self { queue, metrics }
    }

    /// Tells of one transition of the Hook `name` (`namespace/name`).
    pub fn tell(&self, hook: &ObjectRef<Hook>, name: &str, notice: &Notice) {
        let entry = &notice.entry;
        info!(
            hook = name,
            event_type = entry.event_type.as_str(),
            resource = entry.resource_name,
            agent = entry.agent,
            phase = entry.status.as_str(),
            reason = entry.reason.map_or("", |reason| reason.as_str()),
            id = entry.id,
            window = entry.window,
            attempt = entry.attempts,
            "{}",
            notice.note
        );
        let Some((reason, type_)) = event_of(notice) else { return };
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(excerpt_of(&notice.note, NOTE)),
            // Part of what Events are told apart by, with the pod: two incidents are never folded into one.
            action: format!("{}-{}", entry.event_type, entry.id),
            secondary: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some(entry.namespace.clone()),
                name: Some(entry.resource_name.clone()),
                uid: (!entry.uid.is_empty()).then(|| entry.uid.clone()),
                ..ObjectReference::default()
            }),
        };
        if self.queue.try_send((event, ObjectReference::from(hook.clone()))).is_err() {
            self.metrics.notice_dropped();
        }
    }
}

/// The Event of a notice; none for what only the log tells.
fn event_of(notice: &Notice) -> Option<(&'static str, EventType)> {
    match notice.kind {
        NoticeKind::EventFiring if notice.entry.attempts == 1 => Some(("EventFiring", EventType::Normal)),
        NoticeKind::AgentCallSuccess => Some(("AgentCallSuccess", EventType::Normal)),
        NoticeKind::AgentCallFailure | NoticeKind::AgentCallUnknown => {
            Some(("AgentCallFailure", EventType::Warning))
        }
        NoticeKind::AgentAnswered => Some(("AgentAnswered", EventType::Normal)),
        NoticeKind::EventNotDelivered => Some(("EventNotDelivered", EventType::Warning)),
        NoticeKind::AgentCallObserved => Some(("AgentCallObserved", EventType::Normal)),
        NoticeKind::IncidentInstructed => Some(("IncidentInstructed", EventType::Normal)),
        NoticeKind::ResolutionTold => Some(("ResolutionTold", EventType::Normal)),
        NoticeKind::ResolutionNotTold => Some(("ResolutionNotTold", EventType::Warning)),
        // Who never heard of the trouble need not hear of its end.
        NoticeKind::EventResolved if notice.entry.last_notified_at.is_some() => {
            Some(("EventResolved", EventType::Normal))
        }
        NoticeKind::EventResolved
        | NoticeKind::EventFiring
        | NoticeKind::EventPending
        | NoticeKind::EventReopened => None,
    }
}
