//! An exchange is one HTTP request and what came back for it, whole or not.
//!
//! Nothing is sent twice, no redirect is followed, every answer has a longest length and a latest time. What is
//! said of an answer is for people: short, on one line, and without the credential.

use std::{collections::VecDeque, error::Error as _, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use chrono::{DateTime, Utc};
use futures::{Stream, stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Client, ClientBuilder, Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use serde_json::Value;

use crate::incident::outcome::{Ended, Reply};

/// Bytes read of an answer that is an error: enough for any that says something.
const MAX_ERROR_BODY: usize = 16 << 10;
/// Characters of somebody else's text in an error of ours.
const MAX_QUOTE: usize = 300;
/// A server that asks for more patience than this is asked again all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// A client, and how long it takes to connect at most.
#[derive(Clone, Debug)]
pub(super) struct Http {
    pub(super) client: Client,
    pub(super) connect_timeout: Duration,
}

/// One request to make.
pub(super) struct Exchange<'a> {
    pub(super) http: &'a Http,
    pub(super) auth: &'a Auth,
    pub(super) method: Method,
    pub(super) url: Url,
    /// Method and URL as errors have them.
    pub(super) place: String,
    /// Beside the credential's and the body's.
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Value>,
    pub(super) timeout: Duration,
    /// Bytes of the answer that are read at most.
    pub(super) cap: usize,
}

/// No answer came.
pub(super) struct Broken {
    pub(super) words: String,
    /// Whether there was a connection, and so whether the request may have been received.
    pub(super) connected: bool,
}

/// What came back.
pub(super) struct Answer {
    pub(super) auth: Auth,
    /// Method and URL, for errors.
    pub(super) place: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// Why the body is not whole.
    pub(super) cut: Option<String>,
}

impl Exchange<'_> {
    /// Sends the request and reads what comes back.
    ///
    /// # Errors
    ///
    /// No answer: with the knowledge whether a connection was there, and so whether anything may
    /// have been sent. A body that breaks off or is too long is not an error here but part of the
    /// answer, for the status may say enough.
    pub(super) async fn make(self) -> Result<Answer, Broken> {
        let (timeout, cap) = (self.timeout, self.cap);
        let (mut answer, mut response) = self.begin().await?;
        let cap = if answer.status.is_success() { cap } else { cap.min(MAX_ERROR_BODY) };
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(answer),
                Ok(Some(chunk)) => answer
                    .body
                    .extend_from_slice(&chunk[..chunk.len().min(cap.saturating_add(1) - answer.body.len())]),
                Err(error) => {
                    let cause = if error.is_timeout() {
                        format!("not over within {timeout:?}")
                    } else {
                        root_cause(&error)
                    };
                    answer.cut = Some(format!("the answer broke off: {cause}"));
                    return Ok(answer);
                }
            }
            if answer.body.len() > cap {
                // Dropping the response closes the connection: what else is under way is not read.
                answer.cut = Some(format!("the answer is longer than {cap} bytes"));
                return Ok(answer);
            }
        }
    }

    /// Sends the request and hands the data of each server-sent event over as it comes; ends where the stream
    /// ends, breaks or says more than its `cap` in all. None where the answer is no stream.
    pub(super) async fn events(self) -> Option<impl Stream<Item = String>> {
        let cap = self.cap;
        let (answer, response) = self.begin().await.ok()?;
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !answer.status.is_success() || !kind.starts_with("text/event-stream") {
            return None;
        }
        let state = (response, Events::default(), cap);
        Some(stream::unfold(state, |(mut response, mut events, mut left)| async move {
            loop {
                if let Some(data) = events.next() {
                    return Some((data, (response, events, left)));
                }
                let chunk = response.chunk().await.ok()??;
                left = left.checked_sub(chunk.len())?;
                events.push(&chunk);
            }
        }))
    }

    /// Up to the headers of the answer.
    async fn begin(self) -> Result<(Answer, Response), Broken> {
        let Exchange { http, auth, method, url, place, headers, body, timeout, .. } = self;
        let mut request = http.client.request(method, url).timeout(timeout).headers(headers);
        if let Some((name, value)) = &auth.header {
            request = request.header(name, value.clone());
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        match request.send().await {
            Ok(response) => {
                let answer = Answer {
                    auth: auth.clone(),
                    place,
                    status: response.status(),
                    headers: response.headers().clone(),
                    body: Vec::new(),
                    cut: None,
                };
                Ok((answer, response))
            }
            Err(error) => {
                // A builder error comes before the first packet as well.
                let connected = !(error.is_connect() || error.is_builder());
                let words = match (connected, error.is_timeout()) {
                    (false, true) => {
                        let within = http.connect_timeout;
                        format!("{place}: cannot connect: no connection within {within:?}")
                    }
                    (false, false) => format!("{place}: cannot connect: {}", auth.line(&root_cause(&error))),
                    (true, true) => format!("{place}: no answer within {timeout:?}"),
                    (true, false) => format!("{place}: no answer: {}", auth.line(&root_cause(&error))),
                };
                Err(Broken { words: auth.hide(&words), connected })
            }
        }
    }
}

impl Answer {
    /// The answer's JSON.
    ///
    /// # Errors
    ///
    /// Where it is not whole, or not what was expected, in words.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T, String> {
        if let Some(cut) = &self.cut {
            return Err(format!("{}: {cut}", self.place));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            // serde quotes what it did not expect: the server's text, like the body.
            let error = self.auth.quote(&e.to_string());
            format!(
                "{} answered {} with what cannot be understood ({error}): {}",
                self.place,
                self.status,
                self.said()
            )
        })
    }

    /// Whether the server has no such route: what Go's routers say to an unknown path or method.
    /// kagent says 404 of missing sessions too, but in JSON.
    pub(super) fn route_missing(&self) -> bool {
        match self.status {
            StatusCode::NOT_FOUND => self.body.trim_ascii() == b"404 page not found",
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
            _ => false,
        }
    }

    /// The text of kagent's `{"error": "…"}`.
    pub(super) fn kagent_error(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Failure {
            error: String,
        }
        Some(serde_json::from_slice::<Failure>(&self.body).ok()?.error)
    }

    /// This answer as a proof that nothing ran; the hint ends the sentence.
    pub(super) fn not_run(&self, hint: &str) -> Reply {
        Reply::NotRun {
            error: self.words() + hint,
            retry_after: self.retry_after(),
            throttled: self.status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The server's `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date, an hour at
    /// most. A date is compared with the server's own `Date` where it gives one: its clock may be
    /// another than ours.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            // More digits than u64 has is a number still.
            Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => MAX_RETRY_AFTER,
            Err(_) => {
                let date =
                    |text: &str| DateTime::parse_from_rfc2822(text).ok().map(|at| at.with_timezone(&Utc));
                let now =
                    self.headers.get(DATE).and_then(|d| date(d.to_str().ok()?)).unwrap_or_else(Utc::now);
                (date(text)? - now).to_std().unwrap_or_default()
            }
        };
        Some(wait.min(MAX_RETRY_AFTER))
    }

    /// What this answer is, for a person who wonders why there is no run.
    pub(super) fn words(&self) -> String {
        let Self { auth, place, status, .. } = self;
        if status.is_redirection() {
            let host = self.headers.get(LOCATION).and_then(|l| l.to_str().ok()).and_then(|location| {
                let base = Url::parse(place.split_once(' ')?.1).ok()?;
                base.join(location).ok()?.host_str().map(str::to_owned)
            });
            let host = auth.line(host.as_deref().unwrap_or("nowhere"));
            return format!(
                "{place} redirects to {host} ({status}), and khook follows no redirect: set the URL to where it is"
            );
        }
        let hint = match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; check the credential that khook shows it",
            _ => "",
        };
        format!("{place} answered {status}: {}{hint}", self.said())
    }

    /// The server's own words.
    pub(super) fn said(&self) -> String {
        match self.kagent_error() {
            Some(error) => self.auth.quote(&error),
            None if self.body.trim_ascii().is_empty() => "(nothing)".to_owned(),
            None => self.auth.quote(&String::from_utf8_lossy(&self.body)),
        }
    }
}

/// The credential of one exchange, and the keeper of its secret.
#[derive(Clone, Default)]
pub(super) struct Auth {
    pub(super) header: Option<(HeaderName, HeaderValue)>,
    /// The secret in the forms in which servers repeat it, the longest first.
    secret: Vec<String>,
    /// Whether what servers say is not quoted.
    mute: bool,
}

impl Auth {
    /// Makes the header of a bearer token; the error continues a sentence about the token.
    pub(super) fn bearer(key: &str) -> Result<Self, &'static str> {
        Self::header(AUTHORIZATION, "Bearer ", key)
    }

    /// Makes a header of a value; the error continues a sentence about the value.
    pub(super) fn header(name: HeaderName, before: &str, key: &str) -> Result<Self, &'static str> {
        let key = key.trim();
        if key.is_empty() {
            return Err("is empty");
        }
        let mut header = HeaderValue::from_str(&format!("{before}{key}"))
            .map_err(|_| "has characters in it that an HTTP header cannot carry, such as a line break")?;
        header.set_sensitive(true);
        Ok(Self { header: Some((name, header)), secret: forms(key), mute: false })
    }

    /// The same, without a word of the server's in what is said of its answers.
    pub(super) fn mute(self, mute: bool) -> Self {
        Self { mute, ..self }
    }

    /// Whether the text has the secret in it.
    pub(super) fn is_in(&self, text: &str) -> bool {
        self.secret.iter().any(|form| text.contains(form.as_str()))
    }

    /// The text without the secret: servers repeat what they were sent, and kagent passes the
    /// token on to the agent.
    pub(super) fn hide(&self, text: &str) -> String {
        self.secret.iter().fold(text.to_owned(), |text, form| text.replace(form.as_str(), "[redacted]"))
    }

    pub(super) fn hide_in(&self, ended: Ended) -> Ended {
        Ended { answer: self.hide(&ended.answer), ..ended }
    }

    /// Somebody else's text, fit for an error of ours; or nothing of it, where it is not to be quoted.
    pub(super) fn quote(&self, text: &str) -> String {
        if self.mute { "(its words are not shown)".to_owned() } else { self.line(text) }
    }

    /// A text that is short, on one line, and without the secret. The secret goes first, so that cutting cannot
    /// leave half of it.
    pub(super) fn line(&self, text: &str) -> String {
        let hidden = self.hide(text);
        let plain: String = hidden.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match plain.char_indices().nth(MAX_QUOTE) {
            Some((end, _)) => format!("{}…", &plain[..end]),
            None => plain,
        }
    }
}

/// A secret as it is, as JSON has it (Go's also escapes `<`, `>` and `&`), as a URL has it, and in base64. Whoever
/// has the secret can write it in more ways than these.
fn forms(secret: &str) -> Vec<String> {
    let json = serde_json::to_string(secret).unwrap_or_default();
    let json = json.trim_matches('"').to_owned();
    let go = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let url = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let base64 = STANDARD_NO_PAD.encode(secret);
    let mut forms = vec![secret.to_owned(), json, go, url, base64];
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.dedup();
    forms
}

/// Nothing was sent, because of this.
pub(super) fn not_run(error: String) -> Reply {
    Reply::NotRun { error, retry_after: None, throttled: false }
}

/// The last cause of an error, the one that says something: "Connection refused (os error 111)".
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = match error.source() {
        Some(source) => source,
        None => return error.to_string(),
    };
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The server-sent events of a stream, put together from its pieces (HTML Living Standard, section 9.2.6).
#[derive(Default)]
struct Events {
    line: Vec<u8>,
    data: Vec<String>,
    whole: VecDeque<String>,
}

impl Events {
    fn push(&mut self, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.read(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
            }
        }
    }

    fn read(&mut self, line: &str) {
        if let Some(data) = line.strip_prefix("data:") {
            self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
        } else if line.is_empty() && !self.data.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.data).join("\n"));
        }
    }

    /// The data of the next whole event.
    fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

/// A client that does with a request what an [`Exchange`] promises. TLS is not set up yet.
pub(super) fn client(connect_timeout: Duration) -> ClientBuilder {
    // reqwest takes the process's crypto provider and panics without one. khook has only one, ring;
    // whoever comes first installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("khook/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        // A redirected POST may be sent twice or to somebody else; it is reported instead.
        .redirect(reqwest::redirect::Policy::none())
        // A proxy from the environment would stand between khook and what it can tell about a failed connection,
        // and resolve names in its stead.
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        // kagent's controller closes its connections when it stops. A request written to one that
        // is closing is of unknown outcome, so old ones are not kept: a session and its message
        // share one, an hour-old one is a risk without a gain.
        .pool_idle_timeout(Duration::from_secs(5))
        // At most one message per call. This switches off reqwest's retries, which are of requests
        // refused by HTTP/2. hyper-util's own, which reqwest cannot switch off, stays: it takes
        // another connection when a pooled one was closed before hyper took the request from its
        // queue, and has the request back only then, with no byte of it written.
        .retry(reqwest::retry::never())
        .http1_only()
}

/// The client for `scheme`, with the system's certificate authorities where it needs any.
///
/// # Errors
///
/// TLS could not be set up.
pub(super) fn finish(builder: ClientBuilder, scheme: &str) -> Result<Client, reqwest::Error> {
    if scheme == "https" {
        return builder.build();
    }
    // Without https no certificate is ever looked at. Loading the system's would make khook depend
    // on a file that a minimal image does not have.
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions();
    match tls {
        Ok(tls) => {
            let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
            builder.tls_backend_preconfigured(tls).build()
        }
        // ring supports the default versions; if it ever does not, reqwest's error says so better.
        Err(_) => builder.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::Events;

    #[test]
    fn events_are_put_together_from_pieces_cut_anywhere() {
        const STREAM: &[u8] =
            b": hello\r\nid: 1\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata:two\n\nevent: x\n\ndata: cut";
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let mut got = Vec::new();
            for chunk in STREAM.chunks(size) {
                events.push(chunk);
                got.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(got, ["{\"a\":\n1}", "two"], "in pieces of {size}");
        }
    }
}
