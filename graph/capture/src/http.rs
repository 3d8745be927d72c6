//! A small HTTP client, for what takes a recording away from this machine: requests with a whole body, answers of a bounded size.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The certificates of those who are trusted cannot be read.
    #[error("cannot read certificates from {}: {reason}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No connection can be prepared at all.
    #[error("cannot prepare connections: {0}")]
    Setup(String),
    /// The server cannot be reached, or went away.
    #[error("no answer from {server}: {reason}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("no answer from {server} within {} s", .after.as_secs())]
    TimedOut {
        /// Host and port.
        server: String,
        /// How long it was waited for.
        after: Duration,
    },
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Connects to `http://` and `https://`, and blocks until the answer is there. Not to be used in asynchronous code.
pub struct HttpClient {
    runtime: tokio::runtime::Runtime,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

impl HttpClient {
    /// Trusts the certificates of the system, or those of a PEM file instead.
    ///
    /// # Errors
    /// If the certificates cannot be read. Without a file it is no error that the system has none: then no `https://` server is trusted.
    pub fn new(ca: Option<&Path>) -> Result<Self, HttpError> {
        let setup = |e: &dyn std::fmt::Display| HttpError::Setup(e.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| setup(&e))?;
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| setup(&e))?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        // Nothing runs between two requests that would notice that a server closed an idle connection: none is kept.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(https.wrap_connector(connector));
        Ok(Self { runtime, client })
    }

    /// Posts a body. Fails only if there is no whole answer: whatever the server answered is an [`Answer`].
    ///
    /// # Errors
    /// If the server is not there, takes longer than `timeout`, or answers more than `limit` bytes.
    pub fn post(
        &self,
        uri: Uri,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
        timeout: Duration,
        limit: usize,
    ) -> Result<Answer, HttpError> {
        let server = uri.authority().map_or_else(String::new, |a| {
            // Who asks is nobody's business.
            a.as_str().rsplit('@').next().unwrap_or_default().to_owned()
        });
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        request.headers_mut().extend(headers.into_iter().map(|(name, value)| (Some(name), value)));
        let asked = async {
            let unreachable = |reason: String| HttpError::Unreachable { server: server.clone(), reason };
            let response = self.client.request(request).await.map_err(|e| unreachable(reasons(&e)))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|e| unreachable(format!("the answer broke off: {e}")))?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        let within = async { tokio::time::timeout(timeout, asked).await };
        self.runtime
            .block_on(within)
            .unwrap_or_else(|_| Err(HttpError::TimedOut { server: server.clone(), after: timeout }))
    }
}

/// An error and its causes in one line: hyper's own says no more than "client error".
fn reasons(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, HttpError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let bad = |reason: String| HttpError::Certificates { path: path.to_owned(), reason };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
        let certificate = certificate.map_err(|e| bad(e.to_string()))?;
        roots.add(certificate).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() { Err(bad("it holds none".to_owned())) } else { Ok(roots) }
}
