//! An agent that has one capture and nothing else: what is tested with it is who asks.

use crate::network::within;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// What it does when it is asked for a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// It answers.
    #[default]
    Well,
    /// It breaks the connection in the middle, this many times, then answers.
    BreaksOff(u32),
    /// It writes captures of a later schema.
    Later,
    /// It sends what is no part of a capture.
    Hostile,
}

/// What an agent has.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its address, with the port.
    pub address: String,
    /// Its node.
    pub node: String,
    /// What opens it.
    pub token: String,
    /// Its capture, as a tar.
    pub tar: Vec<u8>,
    /// How it behaves.
    pub manner: Manner,
}

/// The parameters of one request for a capture, by name.
pub type Question = Vec<(String, String)>;

/// A running agent. It ends when it is dropped.
#[derive(Debug)]
pub struct Agent {
    asked: Arc<Mutex<Vec<Question>>>,
    end: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    setup: Arc<Setup>,
    asked: Arc<Mutex<Vec<Question>>>,
}

impl Agent {
    /// Starts it in the cluster's network.
    ///
    /// # Panics
    /// If its address is not free.
    #[must_use]
    pub fn start(setup: Setup) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared { setup: Arc::new(setup), asked: asked.clone() };
        let (end, ended) = oneshot::channel();
        let serving = within(move || {
            let listener = std::net::TcpListener::bind(&shared.setup.address).expect("its address");
            listener.set_nonblocking(true).expect("a socket");
            std::thread::spawn(move || serve(listener, shared, ended))
        });
        Self { asked, end: Some(end), serving: Some(serving) }
    }

    /// The questions for a capture until now, as they were put.
    ///
    /// # Panics
    /// If the agent has.
    #[must_use]
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        // Its address is free when it is gone.
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

fn serve(listener: std::net::TcpListener, shared: Shared, ended: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let routes = Router::new().route("/v1/capture", get(capture)).route("/v1/info", get(info)).with_state(shared);
        tokio::select! {
            result = axum::serve(listener, routes) => result.expect("serving"),
            _ = ended => {}
        }
    });
}

fn refused(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    let right = headers.get("x-meshdiff-token").is_some_and(|t| t.as_bytes() == shared.setup.token.as_bytes());
    let answer =
        || (StatusCode::UNAUTHORIZED, axum::Json(json!({"error": "the token is not the agent's"}))).into_response();
    (!right).then(answer)
}

async fn info(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&shared, &headers) {
        return refused;
    }
    let schema = if shared.setup.manner == Manner::Later { LATER } else { meshdiff_capture::SCHEMA_VERSION };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let info: Value = json!({"version": env!("CARGO_PKG_VERSION"), "schemaVersion": schema, "node": shared.setup.node,
        "tier": "tp_btf", "nowNs": u64::try_from(now).expect("before 2554")});
    axum::Json(info).into_response()
}

const LATER: &str = "meshdiff.capture/v99";

async fn capture(
    State(shared): State<Shared>,
    Query(question): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refused(&shared, &headers) {
        return refused;
    }
    let times = {
        let mut asked = shared.asked.lock().expect("no panic");
        asked.push(question);
        u32::try_from(asked.len()).expect("few")
    };
    let with = |schema: &str, body: Body| {
        let headers = [("content-type", "application/x-tar"), ("x-meshdiff-schema", schema)];
        (headers, body).into_response()
    };
    let all = shared.setup.tar.clone();
    match shared.setup.manner {
        Manner::BreaksOff(most) if times <= most => with(meshdiff_capture::SCHEMA_VERSION, broken(all)),
        Manner::Well | Manner::BreaksOff(_) => with(meshdiff_capture::SCHEMA_VERSION, Body::from(all)),
        Manner::Later => with(LATER, Body::from(all)),
        Manner::Hostile => with(meshdiff_capture::SCHEMA_VERSION, Body::from(hostile())),
    }
}

/// Half of it, then an error, which ends the connection without the end of the body.
fn broken(all: Vec<u8>) -> Body {
    let half = all[..all.len() / 2].to_vec();
    let parts = [Ok(half), Err(std::io::Error::other("broken off"))];
    Body::from_stream(futures::stream::iter(parts))
}

/// A tar that wants to write elsewhere.
fn hostile() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let name = b"../../../../../../tmp/meshdiff-was-here";
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, &b"x"[..]).expect("a tar in memory");
    builder.into_inner().expect("a tar in memory")
}

/// A folder as a tar.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn tar_of(folder: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", folder).expect("a folder");
    builder.into_inner().expect("a tar in memory")
}
