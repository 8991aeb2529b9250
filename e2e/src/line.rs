//! A line is the connection a request came on, for a server that can cut it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const RESET: u8 = 2;

/// How a handler cuts the connection its request came on.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<AtomicU8>);

impl Line {
    /// Closes it without another byte; the answer is for hyper, and is never written.
    pub fn close(&self) -> Response {
        self.cut(CLOSED)
    }

    /// The same, with an RST.
    pub fn reset(&self) -> Response {
        self.cut(RESET)
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire) != OPEN
    }

    fn cut(&self, how: u8) -> Response {
        self.0.store(how, Ordering::Release);
        // hyper will try to write this, and that write fails.
        StatusCode::OK.into_response()
    }
}

/// The connection itself: no byte is written once its line was cut.
pub struct Wired {
    stream: TcpStream,
    line: Line,
}

impl Wired {
    /// A connection with its line.
    pub fn new(stream: TcpStream, line: Line) -> Self {
        Self { stream, line }
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        if self.line.0.load(Ordering::Acquire) == RESET {
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for Wired {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wired {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.line.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.is_cut() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
