//! An export is a batch of spans on its way to a collector, by OTLP over HTTP.
//!
//! It happens in the background, out of a bounded queue: a slow collector holds nothing up, and what does not
//! fit, or is not taken, is counted.
//!
//! OpenTelemetry's own exporter was tried first (`opentelemetry-otlp` 0.33 on its SDK). It added 219 KiB to a
//! binary that is to stay below 12 MiB and had 102 KiB left, and of its parts khook can use the least: spans
//! here have ids and times of their own, its batch processor keeps to itself how many spans it dropped, and it
//! passes over wrong settings in silence. So only the messages of the protocol are OpenTelemetry's.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use percent_encoding::percent_decode_str;
use prost::Message as _;
use reqwest::{Certificate, Client, Url};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    config,
    hook::ActiveEvent,
    metrics::Metrics,
    trace::{self, Span},
};

/// One of OpenTelemetry's variables, which is a flag as well.
pub struct Setting {
    /// The flag.
    pub long: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Says what is allowed where a value is not.
    pub parse: fn(&str) -> Result<(), String>,
}

/// What is read of OpenTelemetry's variables.
pub const SETTINGS: [Setting; 16] = [
    Setting {
        long: "otel-exporter-otlp-endpoint",
        help: "Where traces go, by OTLP over HTTP: this address with /v1/traces behind it [default: there are no traces]",
        parse: |text| endpoint(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-traces-endpoint",
        help: "The same as a full address. It wins over the other, and so do all with `traces` in their name",
        parse: |text| endpoint(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-headers",
        help: "Headers for the collector: key=value,key=value, values percent-encoded",
        parse: |text| headers(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-traces-headers",
        help: "The same, for traces",
        parse: |text| headers(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-timeout",
        help: "Milliseconds one request to the collector may take [default: 10000]",
        parse: |text| milliseconds(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-traces-timeout",
        help: "The same, for traces",
        parse: |text| milliseconds(text).map(drop),
    },
    Setting {
        long: "otel-exporter-otlp-protocol",
        help: "http/protobuf is the one khook speaks",
        parse: |_| Ok(()),
    },
    Setting { long: "otel-exporter-otlp-traces-protocol", help: "The same, for traces", parse: |_| Ok(()) },
    Setting {
        long: "otel-exporter-otlp-certificate",
        help: "File (PEM) with the authorities to trust at the collector [default: the system's]",
        parse: |_| Ok(()),
    },
    Setting {
        long: "otel-exporter-otlp-traces-certificate",
        help: "The same, for traces",
        parse: |_| Ok(()),
    },
    Setting { long: "otel-service-name", help: "Who sends the traces [default: khook]", parse: |_| Ok(()) },
    Setting {
        long: "otel-resource-attributes",
        help: "What else they say of who sends them: key=value,key=value, values percent-encoded",
        parse: |text| pairs(text).map(drop),
    },
    Setting {
        long: "otel-traces-exporter",
        help: "otlp, or none for no traces [default: otlp]",
        parse: |text| one_of(&["otlp", "none"], text),
    },
    Setting {
        long: "otel-traces-sampler",
        help: "Which traces are kept: always_on, always_off, traceidratio, or one of these behind parentbased_ [default: parentbased_always_on]",
        parse: |text| {
            let sampler = text.strip_prefix("parentbased_").unwrap_or(text);
            let known = one_of(&["always_on", "always_off", "traceidratio"], sampler);
            known.map_err(|words| format!("{words}, or one of these behind parentbased_"))
        },
    },
    Setting {
        long: "otel-traces-sampler-arg",
        help: "The share of traces that traceidratio keeps, from 0 to 1 [default: 1]",
        parse: |text| share(text).map(drop),
    },
    Setting {
        long: "otel-sdk-disabled",
        help: "Whether there are no traces, whatever else is set [default: false]",
        parse: |text| config::boolean(text).map(drop),
    },
];

impl Config {
    /// Made of [`SETTINGS`], each of which was parsed before; none where there are to be no traces.
    ///
    /// # Errors
    /// The flag whose value is wrong with these others, and what is allowed.
    pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>, (&'static str, String)> {
        let disabled = get("otel-sdk-disabled").is_some_and(|text| config::boolean(text) == Ok(true));
        if disabled || get("otel-traces-exporter") == Some("none") {
            return Ok(None);
        }
        let common = || {
            let mut url = get("otel-exporter-otlp-endpoint").and_then(|text| endpoint(text).ok())?;
            url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
            Some(url)
        };
        let own = get("otel-exporter-otlp-traces-endpoint").and_then(|text| endpoint(text).ok());
        let Some(endpoint) = own.or_else(common) else { return Ok(None) };

        const PROTOCOLS: [&str; 2] = ["otel-exporter-otlp-traces-protocol", "otel-exporter-otlp-protocol"];
        let protocol = PROTOCOLS.into_iter().find_map(|long| Some((long, get(long)?)));
        if let Some((long, _)) = protocol.filter(|(_, protocol)| *protocol != "http/protobuf") {
            let allowed = "http/protobuf, which collectors take on port 4318 (4317 is for gRPC)";
            return Err((long, allowed.into()));
        }
        let resource = get("otel-resource-attributes").and_then(|text| pairs(text).ok()).unwrap_or_default();
        let mut resource: BTreeMap<String, String> = resource.into_iter().collect();
        resource.entry("service.version".into()).or_insert_with(|| env!("CARGO_PKG_VERSION").into());
        resource.entry("service.name".into()).or_insert_with(|| "khook".into());
        if let Some(name) = get("otel-service-name") {
            resource.insert("service.name".into(), name.into());
        }
        let either = |own, common| get(own).or_else(|| get(common));
        let headers = either("otel-exporter-otlp-traces-headers", "otel-exporter-otlp-headers")
            .and_then(|text| headers(text).ok());
        let timeout = either("otel-exporter-otlp-traces-timeout", "otel-exporter-otlp-timeout")
            .and_then(|text| milliseconds(text).ok());
        let ratio = match get("otel-traces-sampler").unwrap_or_default().trim_start_matches("parentbased_") {
            "always_off" => 0.0,
            "traceidratio" => get("otel-traces-sampler-arg").and_then(|text| share(text).ok()).unwrap_or(1.0),
            _ => 1.0,
        };
        Ok(Some(Self {
            endpoint,
            headers: headers.unwrap_or_default(),
            timeout: timeout.unwrap_or(Duration::from_secs(10)),
            certificate: either("otel-exporter-otlp-traces-certificate", "otel-exporter-otlp-certificate")
                .map(PathBuf::from),
            resource,
            ratio,
        }))
    }
}

/// Where spans go, and which.
#[derive(Clone, Debug)]
pub struct Config {
    /// The collector's address for traces, in full.
    pub endpoint: Url,
    /// What goes along with every request; may hold credentials.
    pub headers: HeaderMap,
    /// Time for one request.
    pub timeout: Duration,
    /// A file with the certificates to trust instead of the system's.
    pub certificate: Option<PathBuf>,
    /// Who sends the spans, by OpenTelemetry's names.
    pub resource: BTreeMap<String, String>,
    /// The share of traces that is kept, from 0 to 1.
    pub ratio: f64,
}

/// The place spans are handed to; without a [`Config`] they go nowhere.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Export>>);

struct Export {
    queue: mpsc::Sender<Span>,
    ratio: f64,
    metrics: Arc<Metrics>,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Why spans cannot be exported at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of certificates.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE is {0:?}, but must be a file with certificates in PEM: {1}")]
    Certificate(PathBuf, String),
    /// TLS could not be set up.
    #[error(
        "cannot set up the HTTP client for traces: {0}; https needs certificate authorities on this system"
    )]
    Client(#[from] reqwest::Error),
}

/// Spans that wait: a few megabytes where the collector is away.
const QUEUE: usize = 2048;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for others to go with.
const DELAY: Duration = Duration::from_secs(1);
/// Waits before a batch is sent again; after the last it is given up.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// A collector that asks for more patience than this is asked again all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 << 10;

impl Traces {
    /// Exports in a task of its own.
    ///
    /// # Errors
    /// Certificates that cannot be used.
    pub fn start(config: Config, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let closing = CancellationToken::new();
        let ratio = config.ratio;
        let exporter = Exporter {
            client: client(&config)?,
            config,
            closing: closing.clone(),
            metrics: metrics.clone(),
            failing: false,
        };
        let task = Mutex::new(Some(tokio::spawn(exporter.run(waiting))));
        Ok(Self(Some(Arc::new(Export { queue, ratio, metrics, closing, task }))))
    }

    /// Hands spans over; those of traces that are not kept are not. Makes none where nobody wants them.
    pub fn tell<S: IntoIterator<Item = Span>>(&self, spans: impl FnOnce() -> S) {
        let Some(export) = &self.0 else { return };
        for span in spans() {
            if trace::is_sampled(&span.trace_id, export.ratio) && export.queue.try_send(span).is_err() {
                export.metrics.spans_dropped(1);
            }
        }
    }

    /// The header `traceparent` for the call that the entry's claim is for; none where its trace is not
    /// exported: the agent's side would hang its spans on one that never comes.
    pub fn traceparent(&self, entry: &ActiveEvent) -> Option<String> {
        let export = self.0.as_ref()?;
        let kept = trace::trace_id(entry).is_some_and(|id| trace::is_sampled(id.as_bytes(), export.ratio));
        kept.then(|| trace::traceparent(entry)).flatten()
    }

    /// Sends what waits, once, and ends. What is not taken within `limit` is lost.
    pub async fn flush(&self, limit: Duration) {
        let Some(export) = &self.0 else { return };
        export.closing.cancel();
        let Some(mut task) = export.task.lock().await.take() else { return };
        if time::timeout(limit, &mut task).await.is_err() {
            task.abort();
            warn!("the collector did not take the last spans in time");
        }
    }
}

struct Exporter {
    client: Client,
    config: Config,
    closing: CancellationToken,
    metrics: Arc<Metrics>,
    failing: bool,
}

/// Why a batch was not taken.
struct Refused {
    words: String,
    /// How long to wait before it is sent again; none where that cannot help.
    again: Option<Duration>,
}

impl Exporter {
    async fn run(mut self, mut queue: mpsc::Receiver<Span>) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                taken = queue.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                () = self.closing.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            }
            let full = async {
                while batch.len() < BATCH
                    && let Some(span) = queue.recv().await
                {
                    batch.push(span);
                }
            };
            tokio::select! {
                () = full => {}
                () = time::sleep(DELAY) => {}
                () = self.closing.cancelled() => {}
            }
            self.export(batch).await;
        }
    }

    async fn export(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let body = self.request(spans).encode_to_vec();
        let mut retries = RETRIES.iter();
        let refused = loop {
            let refused = match self.send(body.clone()).await {
                Ok(rejected) => {
                    if self.failing {
                        info!("the collector takes spans again");
                    }
                    self.failing = false;
                    return self.metrics.spans_dropped(rejected);
                }
                Err(refused) => refused,
            };
            let Some((asked, wait)) = refused.again.zip(retries.next()) else { break refused };
            tokio::select! {
                () = time::sleep(asked.max(*wait)) => {}
                () = self.closing.cancelled() => break refused,
            }
        };
        self.metrics.spans_dropped(count);
        let (endpoint, error) = (self.config.endpoint.as_str(), refused.words);
        // Once: it goes on for as long as the collector is away.
        if self.failing {
            debug!(endpoint, error, count, "spans are dropped");
        } else {
            warn!(
                endpoint,
                error,
                count,
                "the collector does not take spans: they are dropped, and counted in khook_spans_dropped_total"
            );
        }
        self.failing = true;
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "khook".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let attributes = self.config.resource.iter();
        let attributes = attributes.map(|(key, value)| trace::attribute(key, trace::text(value))).collect();
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
                schema_url: String::new(),
            }],
        }
    }

    /// Sends one request; answers how many of its spans the collector did not want.
    async fn send(&self, body: Vec<u8>) -> Result<u64, Refused> {
        let request = self.client.post(self.config.endpoint.clone());
        let request = request.headers(self.config.headers.clone());
        let request = request.header(header::CONTENT_TYPE, "application/x-protobuf").body(body);
        let failed = |error: reqwest::Error| Refused {
            words: root_cause(&error.without_url()),
            again: Some(Duration::ZERO),
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            // The codes that OTLP says are worth another attempt. The body may repeat what was sent along.
            let again = matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            let asked = response.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok());
            let asked =
                asked.and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
            return Err(Refused {
                words: format!("it answers {status}"),
                again: again.then_some(asked.min(MAX_RETRY_AFTER)),
            });
        }
        let mut answer = Vec::new();
        // What it took, it took, whatever becomes of the rest of its answer.
        while let Ok(Some(chunk)) = response.chunk().await {
            answer.extend_from_slice(&chunk);
            if answer.len() > MAX_ANSWER {
                return Ok(0);
            }
        }
        let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default();
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans.max(0).unsigned_abs()))
    }
}

fn client(config: &Config) -> Result<Client, Error> {
    let mut builder = Client::builder()
        .user_agent(concat!("khook/", env!("CARGO_PKG_VERSION")))
        .timeout(config.timeout)
        // The headers may hold credentials: they go where they were meant to go, or nowhere.
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only();
    if let Some(file) = &config.certificate {
        let refuse = |why: String| Error::Certificate(file.clone(), why);
        let pem = std::fs::read(file).map_err(|error| refuse(error.to_string()))?;
        let trusted = Certificate::from_pem_bundle(&pem).map_err(|error| refuse(root_cause(&error)))?;
        if trusted.is_empty() {
            return Err(refuse("there is none in it".into()));
        }
        builder = builder.tls_certs_only(trusted);
    } else if config.endpoint.scheme() == "http" {
        // No certificate is ever looked at: khook must not depend on a file that a minimal image does not have.
        builder = builder.tls_certs_only([]);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(builder.build()?)
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// What the variables for headers and resource attributes hold.
fn pairs(list: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let key = key.trim();
        (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
    };
    let written = list.split(',').filter(|part| !part.trim().is_empty());
    written.map(|part| pair(part).ok_or_else(|| PAIRS.to_owned())).collect()
}

fn headers(list: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(list)? {
        let name = HeaderName::try_from(name).map_err(|_| PAIRS)?;
        let mut value = HeaderValue::try_from(value).map_err(|_| PAIRS)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

const PAIRS: &str = "a list such as key=value,key=value, with values percent-encoded";

/// A collector's address. A query may hold a token and would be logged, so there is none.
fn endpoint(text: &str) -> Result<Url, String> {
    // A path counts as it is written.
    let url = config::base_url(text).ok().and_then(|_| Url::parse(text).ok());
    url.ok_or_else(|| {
        "an http or https URL without user, query and fragment, such as http://collector:4318".into()
    })
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|number| (1..=600_000).contains(number));
    number.map(Duration::from_millis).ok_or_else(|| "a whole number from 1 to 600000".into())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a number from 0 to 1".into())
}

fn one_of(words: &[&str], text: &str) -> Result<(), String> {
    if words.contains(&text) { Ok(()) } else { Err(words.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
    use wiremock::{
        Mock, MockServer, ResponseTemplate,
        matchers::{header, method, path},
    };

    use super::*;
    use crate::incident::fixtures;

    fn to(endpoint: &str) -> Config {
        Config {
            endpoint: Url::parse(endpoint).unwrap(),
            headers: headers("x-key=hunter%202").unwrap(),
            timeout: Duration::from_secs(5),
            certificate: None,
            resource: [("service.name".into(), "khook".into())].into(),
            ratio: 1.0,
        }
    }

    fn span(number: u8) -> Span {
        Span { trace_id: vec![number; 16], span_id: vec![number; 8], name: "call".into(), ..Span::default() }
    }

    fn dropped(metrics: &Metrics) -> String {
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix("khook_spans_dropped_total "));
        line.expect("the metric").to_owned()
    }

    /// Exports these spans to a collector that answers like this, and counts what was dropped.
    async fn exported(spans: u8, answers: Vec<ResponseTemplate>) -> (MockServer, String) {
        let collector = MockServer::start().await;
        let last = answers.len() - 1;
        for (index, answer) in answers.into_iter().enumerate() {
            let mock = Mock::given(method("POST")).and(path("/v1/traces")).and(header("x-key", "hunter 2"));
            let mock = mock.and(header("content-type", "application/x-protobuf")).respond_with(answer);
            if index < last {
                mock.up_to_n_times(1).mount(&collector).await
            } else {
                mock.mount(&collector).await
            }
        }
        let metrics = Arc::new(Metrics::new());
        let traces = Traces::start(to(&format!("{}/v1/traces", collector.uri())), metrics.clone()).unwrap();
        traces.tell(|| (1..=spans).map(span));
        // As long as the longest wait of these tests.
        time::sleep(DELAY + Duration::from_millis(1500)).await;
        traces.flush(Duration::from_secs(3)).await;
        let dropped = dropped(&metrics);
        (collector, dropped)
    }

    #[tokio::test]
    async fn spans_go_in_one_request_with_who_sends_them() {
        let (collector, dropped) = exported(3, vec![ResponseTemplate::new(200)]).await;
        let requests = collector.received_requests().await.unwrap();
        let [request] = &requests[..] else { panic!("{} requests", requests.len()) };
        let request = ExportTraceServiceRequest::decode(request.body.as_slice()).unwrap();
        let [sent] = &request.resource_spans[..] else { panic!("{request:?}") };
        let resource = sent.resource.as_ref().unwrap();
        assert_eq!(resource.attributes, [trace::attribute("service.name", trace::text("khook"))]);
        assert_eq!(sent.scope_spans[0].spans, [span(1), span(2), span(3)]);
        assert_eq!(dropped, "0");
    }

    #[tokio::test]
    async fn a_collector_that_is_busy_is_asked_again() {
        let busy = ResponseTemplate::new(503);
        let (collector, dropped) = exported(2, vec![busy, ResponseTemplate::new(200)]).await;
        assert_eq!(collector.received_requests().await.unwrap().len(), 2);
        assert_eq!(dropped, "0");
    }

    #[tokio::test]
    async fn what_is_refused_is_counted_and_not_sent_again() {
        let (collector, dropped) = exported(2, vec![ResponseTemplate::new(401)]).await;
        assert_eq!(collector.received_requests().await.unwrap().len(), 1);
        assert_eq!(dropped, "2");
        let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "odd".into() };
        let answer = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        let (_, dropped) = exported(2, vec![ResponseTemplate::new(200).set_body_bytes(answer)]).await;
        assert_eq!(dropped, "1");
    }

    #[tokio::test]
    async fn a_collector_that_hangs_holds_nothing_up() {
        let collector = MockServer::start().await;
        let hanging = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
        Mock::given(method("POST")).respond_with(hanging).mount(&collector).await;
        let metrics = Arc::new(Metrics::new());
        let traces = Traces::start(to(&collector.uri()), metrics.clone()).unwrap();
        let begun = Instant::now();
        traces.tell(|| (0..QUEUE + 100).map(|_| span(1)));
        assert!(dropped(&metrics).parse::<usize>().unwrap() >= 100);
        traces.flush(Duration::from_millis(200)).await;
        assert!(begun.elapsed() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn what_is_not_kept_is_not_sent_and_has_no_header() {
        let off = Traces::default();
        off.tell(|| -> Vec<Span> { panic!("nobody wants it") });
        let nobody = Config { ratio: 0.0, ..to("http://127.0.0.1:9/v1/traces") };
        let metrics = Arc::new(Metrics::new());
        let nobody = Traces::start(nobody, metrics.clone()).unwrap();
        nobody.tell(|| (0..QUEUE + 100).map(|_| span(255)));
        assert_eq!(dropped(&metrics), "0");
        let mut bench = fixtures::Bench::new(fixtures::rules_for_all());
        bench.turn(&[fixtures::restarted("web-0", 1, fixtures::at(0))], &[], fixtures::at(0));
        assert_eq!(off.traceparent(bench.entry()), None);
        assert_eq!(nobody.traceparent(bench.entry()), None);
        let all = Traces::start(to("http://127.0.0.1:9/v1/traces"), metrics).unwrap();
        assert_eq!(all.traceparent(bench.entry()), trace::traceparent(bench.entry()));
        assert!(all.traceparent(bench.entry()).is_some());
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_refused() {
        let start = |file: &str| {
            let config = Config { certificate: Some(file.into()), ..to("https://collector/v1/traces") };
            Traces::start(config, Arc::new(Metrics::new())).err().expect("a refusal").to_string()
        };
        let missing = start("/no/such/file");
        assert!(missing.contains("OTEL_EXPORTER_OTLP_CERTIFICATE is \"/no/such/file\""), "{missing}");
        let file = std::env::temp_dir().join(format!("khook-otlp-{}", std::process::id()));
        std::fs::write(&file, "not PEM").unwrap();
        let empty = start(file.to_str().unwrap());
        std::fs::remove_file(&file).unwrap();
        assert!(empty.contains("there is none in it"), "{empty}");
    }
}
