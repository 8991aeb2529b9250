//! A dashboard is a page that shows incidents as they move, and a read-only API of the same: one server over a store
//! of Hooks. `khook dashboard` serves it from where a person sits, the operator where its settings say so.
//!
//! What it shows was said by pods, agents and whoever may write a Hook: all of it is text, and nothing but text.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use kube::runtime::reflector::Store;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::hook::Hook;

pub mod api;
pub mod board;
pub mod feed;
pub mod page;
pub mod serve;

use board::{Changes, Hub, Reader};
use feed::Feed;
use serve::Line;

/// Streams at a time; more are refused.
const STREAMS: usize = 32;

/// Pieces of a stream on their way to a reader.
const ON_THE_WAY: usize = 4;

/// How long a stream waits.
#[derive(Clone, Copy)]
struct Pace {
    /// How often a reader hears that the stream is alive.
    beat: Duration,
    /// A reader that takes nothing for this long is let go.
    slow: Duration,
}

const PACE: Pace = Pace { beat: Duration::from_secs(15), slow: Duration::from_secs(30) };

/// A server of the page and the API, until it is told to stop.
pub struct Dashboard {
    /// Where it listens: the port is the bound one, also where any was asked for.
    pub address: SocketAddr,
    tasks: TaskTracker,
}

/// Why there is no dashboard.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the dashboard: {source}")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the answers to all requests are made from.
#[derive(Clone)]
pub struct Shared {
    hub: Arc<Hub>,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Dashboard {
    /// Serves the Hooks of this store until `stop`; `feed` tells when they change.
    ///
    /// # Errors
    /// Where the port cannot be had.
    pub async fn start(
        ip: IpAddr,
        port: u16,
        hooks: Store<Hook>,
        feed: &Feed,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let address = SocketAddr::new(ip, port);
        let (listener, address) = serve::bind(address).await.map_err(|source| Error { address, source })?;
        let tasks = TaskTracker::new();
        let hub = Arc::new(Hub::new(hooks, feed));
        let streams = Arc::new(Semaphore::new(STREAMS));
        let shared = Shared { hub: hub.clone(), streams, stop: stop.clone(), tasks: tasks.clone() };
        let router = serve::guarded(page::routes().merge(api::routes()).with_state(shared), ip);
        tasks.spawn(serve::serve(listener, router, tasks.clone(), stop.clone()));
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = hub.publish() => {}
            }
        });
        tasks.close();
        tracing::info!(%address, "the dashboard listens");
        Ok(Self { address, tasks })
    }

    /// Waits until it has stopped and the last answer is given.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}

impl Shared {
    /// A stream for a reader that knows the board of version `known`, or none.
    fn stream(&self, reader: Reader, known: Option<&str>, line: Line) -> Response {
        let Ok(place) = self.streams.clone().try_acquire_owned() else {
            let error = format!("{STREAMS} streams are read already: close one, or try again later");
            return ([(header::RETRY_AFTER, "10")], api::refusal(StatusCode::SERVICE_UNAVAILABLE, &error))
                .into_response();
        };
        let (board, changes) = self.hub.subscribe();
        // The page has just been sent the board itself.
        let first = match known == Some(board.version.as_str()) {
            true => Bytes::from_static(b": nothing has changed\n\n"),
            false => reader.snapshot(&board),
        };
        let (send, receive) = mpsc::channel(ON_THE_WAY);
        line.streams();
        let end = (line, place, self.stop.clone());
        self.tasks.spawn(pump(reader, PACE, first, changes, send, end));
        let body = stream::unfold(receive, |mut receive| async move {
            receive.recv().await.map(|piece: Bytes| (Ok::<_, Infallible>(piece), receive))
        });
        // Proxies that gather an answer before they pass it on would hold it back for ever.
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(body)).into_response()
    }
}

/// Hands a reader what there is to tell, until it leaves, is too slow, or khook stops.
async fn pump(
    reader: Reader,
    pace: Pace,
    first: Bytes,
    mut changes: broadcast::Receiver<Arc<Changes>>,
    send: mpsc::Sender<Bytes>,
    (line, place, stop): (Line, OwnedSemaphorePermit, CancellationToken),
) {
    let mut next = first;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            sent = time::timeout(pace.slow, send.send(next)) => match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        next = tokio::select! {
            () = stop.cancelled() => break,
            () = send.closed() => break,
            () = time::sleep(pace.beat) => Bytes::from_static(b"event: beat\ndata: {}\n\n"),
            told = changes.recv() => match told {
                Ok(told) => reader.changes(&told),
                // It has missed something: with a new stream it begins with the whole again.
                Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => break,
            },
        };
    }
    // What is on its way may still arrive. A reader that takes nothing must not hold the connection, though.
    drop((send, changes));
    line.end().await;
    drop(place);
}

#[cfg(test)]
mod tests;
