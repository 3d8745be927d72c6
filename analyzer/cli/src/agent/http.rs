//! The agent's HTTP server.

use super::export::{Chosen, ToChannel, merged, write_tar};
use super::info::About;
use super::metrics;
use super::token::Token;
use super::window::{Pulse, Segment, Window};
use crate::args::duration;
use crate::record::clock;
use crate::record::store::Item;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use meshdiff_capture::{Meta, SCHEMA_VERSION};
use prometheus_client::registry::Registry;
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The header with the token: the API server's proxy drops `Authorization`.
const TOKEN: &str = "x-meshdiff-token";
/// The header with the version of the capture's schema.
const SCHEMA: &str = "x-meshdiff-schema";
/// Captures that are served at once.
const AT_ONCE: usize = 4;
/// How long a caller waits for what is in memory to be written.
const PATIENCE: Duration = Duration::from_secs(10);
/// Chunks of 64 KiB that wait for a slow caller.
const WAITING: usize = 8;
/// Namespaces that one request may name.
const MOST_NAMESPACES: usize = 256;

/// What callers did.
#[derive(Debug, Default)]
pub(crate) struct HttpCounters {
    /// Captures that were served whole.
    pub(crate) captures: AtomicU64,
    /// Captures that were cut off.
    pub(crate) failed: AtomicU64,
    /// Requests without the right token.
    pub(crate) denied: AtomicU64,
}

/// What the server serves from.
pub(crate) struct App {
    pub(crate) token: Token,
    pub(crate) window: Arc<Window>,
    pub(crate) pulse: Pulse,
    pub(crate) to_store: mpsc::Sender<Item>,
    pub(crate) about: About,
    pub(crate) registry: Registry,
    pub(crate) counters: Arc<HttpCounters>,
    /// Probes are attached, the access log endpoint listens, and the window is written.
    pub(crate) ready: Arc<AtomicBool>,
    permits: Arc<Semaphore>,
}

impl App {
    #[expect(clippy::too_many_arguments, reason = "each is another part of the agent")]
    pub(crate) fn new(
        token: Token,
        window: Arc<Window>,
        pulse: Pulse,
        to_store: mpsc::Sender<Item>,
        about: About,
        registry: Registry,
        counters: Arc<HttpCounters>,
        ready: Arc<AtomicBool>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self { token, window, pulse, to_store, about, registry, counters, ready, permits }
    }
}

/// An answer other than the one that was asked for: a sentence.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.1 }).to_string();
        (self.0, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let private = Router::new()
        .route("/v1/capture", get(capture))
        .route("/v1/info", get(info))
        .route("/v1/{*other}", get(nowhere))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard));
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .merge(private)
        .fallback(nowhere)
        .method_not_allowed_fallback(|| async {
            Refusal(StatusCode::METHOD_NOT_ALLOWED, "the agent is only read from: GET is the only method".to_owned())
        })
        .with_state(app)
}

async fn nowhere() -> Refusal {
    Refusal(
        StatusCode::NOT_FOUND,
        "there is nothing at this path: the agent serves /v1/capture, /v1/info, /metrics, /healthz and /readyz"
            .to_owned(),
    )
}

async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(TOKEN).map(HeaderValue::as_bytes);
    let refusal = match given {
        Some(given) if app.token.is(given) => return next.run(request).await,
        Some(_) => {
            "the token in X-Meshdiff-Token is not the agent's: it is in the key `token` of the Secret `meshdiff-token` in the agent's namespace"
        }
        None => {
            "a token is needed in X-Meshdiff-Token: it is in the key `token` of the Secret `meshdiff-token` in the agent's namespace"
        }
    };
    app.counters.denied.fetch_add(1, Relaxed);
    Refusal(StatusCode::UNAUTHORIZED, refusal.to_owned()).into_response()
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.ready.load(Relaxed) {
        return "ready\n".into_response();
    }
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "the agent is starting or ending: it records nothing right now".to_owned())
        .into_response()
}

async fn serve_metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match metrics::render(&app.registry, accept) {
        Ok((content_type, body)) => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        Err(error) => Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}"))
            .into_response(),
    }
}

async fn info(State(app): State<Arc<App>>) -> Response {
    let body = app.about.describe(&app.window, app.ready.load(Relaxed)).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What `/v1/capture` was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    namespaces: Vec<String>,
    since: Option<Duration>,
}

impl Asked {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "namespace" if value.is_empty() => return Err("namespace is empty".to_owned()),
                "namespace" if asked.namespaces.len() >= MOST_NAMESPACES => {
                    return Err(format!("more than {MOST_NAMESPACES} namespaces: leave them out for all"));
                }
                "namespace" => asked.namespaces.push(value),
                "since" if asked.since.is_some() => return Err("since is given twice".to_owned()),
                "since" => asked.since = Some(duration(&value).map_err(|why| format!("since: {why}"))?),
                other => return Err(format!("unknown parameter {other:?}: there are namespace and since")),
            }
        }
        Ok(asked)
    }
}

async fn capture(
    State(app): State<Arc<App>>,
    query: Result<Query<Vec<(String, String)>>, axum::extract::rejection::QueryRejection>,
) -> Response {
    match serve_capture(app, query.map(|Query(pairs)| pairs).map_err(|e| e.body_text())).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn serve_capture(app: Arc<App>, query: Result<Vec<(String, String)>, String>) -> Result<Response, Refusal> {
    let asked = query.and_then(Asked::of).map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
    let busy = |_| {
        let why = format!("{AT_ONCE} captures are being fetched from this agent already: try again in a moment");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    let permit = Arc::clone(&app.permits).try_acquire_owned().map_err(busy)?;
    // What is in memory is written and closed first, so that the capture reaches until now.
    let mut closed = app.pulse.ask();
    let _: Result<_, _> = app.to_store.send(Item::Roll).await;
    if !matches!(tokio::time::timeout(PATIENCE, closed.changed()).await, Ok(Ok(()))) {
        tracing::warn!("the open segment was not closed in time: a capture is served without it");
    }
    let segments = app.window.since(asked.since, clock::sample());
    let Some(mut meta) = merged(&segments) else {
        let why = "the window is empty: the agent has only just started, or cannot write to its disk (see /v1/info)";
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
    };
    app.about.annotate(&mut meta);
    let (to, from) = mpsc::channel(WAITING);
    let counters = Arc::clone(&app.counters);
    tokio::task::spawn_blocking(move || stream(&segments, meta, &asked.namespaces, &to, &counters, permit));
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(from)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(SCHEMA, HeaderValue::from_static(SCHEMA_VERSION));
    Ok(response)
}

fn stream(
    segments: &[Arc<Segment>],
    meta: Meta,
    namespaces: &[String],
    to: &mpsc::Sender<Result<bytes::Bytes, io::Error>>,
    counters: &HttpCounters,
    permit: OwnedSemaphorePermit,
) {
    let written = Chosen::of(segments, namespaces)
        .and_then(|chosen| write_tar(segments, meta, chosen.as_ref(), ToChannel::new(to.clone())));
    match written {
        Ok(()) => _ = counters.captures.fetch_add(1, Relaxed),
        Err(error) => {
            counters.failed.fetch_add(1, Relaxed);
            tracing::warn!(%error, "a capture was cut off");
            // The connection breaks, so that nobody takes it for whole.
            let _: Result<_, _> = to.blocking_send(Err(error));
        }
    }
    drop(permit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn what_is_asked_for_is_understood_or_refused_in_a_sentence() {
        let asked = Asked::of(pairs(&[("namespace", "a"), ("since", "15m"), ("namespace", "b")])).expect("understood");
        assert_eq!(asked, Asked { namespaces: vec!["a".into(), "b".into()], since: Some(Duration::from_secs(900)) });
        assert_eq!(Asked::of(vec![]), Ok(Asked::default()));
        for (bad, word) in [
            (("since", "soon"), "since"),
            (("since", "-5s"), "since"),
            (("namespace", ""), "empty"),
            (("limit", "1"), "limit"),
        ] {
            assert!(Asked::of(pairs(&[bad])).unwrap_err().contains(word), "{bad:?}");
        }
        assert!(Asked::of(pairs(&[("since", "1m"), ("since", "2m")])).is_err());
        assert!(Asked::of(vec![("namespace".to_owned(), "x".to_owned()); MOST_NAMESPACES + 1]).is_err());
    }
}
