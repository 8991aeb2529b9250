//! A way is how an address of the cluster is reached from here: directly, or through the apiserver.

use std::{error::Error as _, time::Duration};

use http_body_util::BodyExt as _;
use kube::client::Body;
use reqwest::Url;

use super::{Cluster, Error, line};

/// How an address is reached.
pub enum Way {
    /// From here.
    Direct(reqwest::Client),
    /// Through the apiserver's proxy.
    Proxy(Box<Proxy>),
}

/// A Service, by way of the apiserver.
pub struct Proxy {
    cluster: Cluster,
    namespace: String,
    service: String,
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Of an answer no more is read.
const MOST: usize = 8 * 1024 * 1024;

impl Way {
    /// From here, as khook goes: no proxy, no redirect.
    pub fn direct() -> Result<Self, Error> {
        // An error says that one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("khook/", env!("CARGO_PKG_VERSION")))
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .build();
        client.map(Self::Direct).map_err(Error::because("no client for HTTP"))
    }

    /// The body of a successful answer, or what was wrong.
    pub async fn get(&self, url: &Url) -> Result<String, String> {
        match self {
            Self::Direct(client) => {
                let mut answer = client.get(url.clone()).send().await.map_err(|error| root(&error))?;
                let status = answer.status();
                let mut body = Vec::new();
                while let Some(piece) = answer.chunk().await.map_err(|error| root(&error))? {
                    body.extend_from_slice(&piece);
                    if body.len() > MOST {
                        return Err("the answer is too long".into());
                    }
                }
                let body = String::from_utf8_lossy(&body).into_owned();
                match status.is_success() {
                    true => Ok(body),
                    false => Err(format!("HTTP {status}: {}", line(&body, 200))),
                }
            }
            Self::Proxy(proxy) => {
                let Proxy { cluster, namespace, service } = proxy.as_ref();
                proxied(cluster, namespace, "services", service, url.path()).await
            }
        }
    }
}

impl Proxy {
    /// To a URL such as `http://NAME.NAMESPACE.svc.cluster.local:8083`; none where it is no Service's.
    pub fn to(cluster: &Cluster, url: &Url) -> Option<Self> {
        let (namespace, service) = service(url)?;
        Some(Self { cluster: cluster.clone(), namespace, service })
    }
}

/// Namespace, and the Service as the apiserver's proxy names it.
fn service(url: &Url) -> Option<(String, String)> {
    let mut parts = url.host_str()?.split('.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let port = url.port_or_known_default()?;
    (parts.next()? == "svc").then(|| (namespace.to_owned(), format!("{}:{name}:{port}", url.scheme())))
}

/// What a pod or a Service answers through the apiserver.
pub async fn proxied(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
    path: &str,
) -> Result<String, String> {
    let uri = format!("/api/v1/namespaces/{namespace}/{kind}/{name}/proxy{path}");
    let request = http::Request::get(uri).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(PATIENCE, cluster.client.send(request)).await;
    let answer = answer.map_err(|_| "no answer in 10 s".to_owned())?.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), MOST).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status == 403 {
        return Err(format!("{FORBIDDEN} {kind}/proxy in namespace {namespace}"));
    }
    let told = serde_json::from_str::<serde_json::Value>(&body).ok();
    let told = told.as_ref().and_then(|told| told["message"].as_str()).unwrap_or(&body);
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("HTTP {status}: {}", line(told, 200))),
    }
}

const FORBIDDEN: &str = "you may not get";

/// Whether an address was not looked at for want of a right.
pub fn is_forbidden(error: &str) -> bool {
    error.starts_with(FORBIDDEN)
}

fn root(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    line(&text, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_from_its_host() {
        let of = |url: &str| service(&Url::parse(url).unwrap());
        let kagent = Some(("kagent".to_owned(), "http:kagent-controller:8083".to_owned()));
        assert_eq!(of("http://kagent-controller.kagent.svc.cluster.local:8083"), kagent);
        assert_eq!(of("http://kagent-controller.kagent.svc:8083/"), kagent);
        assert_eq!(of("https://a.b.svc"), Some(("b".into(), "https:a:443".into())));
        assert_eq!(of("https://kagent.example.com"), None);
        assert_eq!(of("http://127.0.0.1:8083"), None);
    }
}
