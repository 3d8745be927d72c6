//! A line of `meshdiff requests --instants`, as its contract says.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct Request {
    pub id: String,
    pub request_id: Option<String>,
    pub protocol: Option<String>,
    pub path: Option<String>,
    pub response_code: Option<u16>,
    pub client: End,
    pub server: End,
    pub total_ns: i64,
    pub total_vantage: String,
    pub segments: BTreeMap<String, i64>,
    #[serde(default)]
    pub details: BTreeMap<String, BTreeMap<String, i64>>,
    pub coverage: CoverageLine,
    pub start_monotonic_ns: Option<u64>,
    #[serde(default)]
    pub sockets: BTreeMap<String, SocketLine>,
    pub crossings: Crossings,
    pub parent_id: Option<String>,
    #[serde(default)]
    pub attempts: Option<u32>,
    #[serde(default)]
    pub response_flags: Vec<String>,
    #[serde(default)]
    pub tries: Vec<TryLine>,
}

/// One attempt of several.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct TryLine {
    pub address: Option<String>,
    pub response_code: Option<u16>,
    pub response_flags: Vec<String>,
    pub answered: bool,
    pub began_ns: Option<i64>,
    pub ended_ns: Option<i64>,
    pub wait_ns: Option<i64>,
    pub server: Option<ServerHalf>,
    pub reason: Option<String>,
    #[serde(default)]
    pub sockets: BTreeMap<String, SocketLine>,
    #[serde(default)]
    pub crossings: Crossings,
}

/// The server's half of an attempt.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct ServerHalf {
    pub total_ns: i64,
    pub segments: BTreeMap<String, i64>,
}

/// One end.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct End {
    pub namespace: Option<String>,
    pub workload: Option<String>,
    pub pod: Option<String>,
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub source: Option<String>,
}

/// How much was seen.
#[derive(Clone, Debug, Deserialize)]
pub struct CoverageLine {
    pub full: bool,
    pub halves: String,
    pub kernel: String,
    pub reason: Option<String>,
}

/// One socket.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct SocketLine {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub cookie: u64,
}

/// The way there and back, by connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct Crossings {
    #[serde(default)]
    pub request: BTreeMap<String, Crossing>,
    #[serde(default)]
    pub response: BTreeMap<String, Crossing>,
}

/// Instants of one message on one connection, monotonic ns.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract of the command names and explains every field")]
pub struct Crossing {
    pub send_ns: Option<u64>,
    pub ready_ns: Option<u64>,
    pub recv_ns: Option<u64>,
}

impl Request {
    /// A segment's time; 0 where the request is full and the segment did not happen.
    #[must_use]
    pub fn segment(&self, name: &str) -> i64 {
        self.segments.get(name).copied().unwrap_or(0)
    }

    /// A part of a segment's time; 0 if it is not told.
    #[must_use]
    pub fn detail(&self, segment: &str, detail: &str) -> i64 {
        self.details.get(segment).and_then(|of| of.get(detail)).copied().unwrap_or(0)
    }

    /// True if the segments sum to the total.
    #[must_use]
    pub fn sums(&self) -> bool {
        self.segments.values().sum::<i64>() == self.total_ns
    }

    /// `client → server`, by workload.
    #[must_use]
    pub fn hop(&self) -> String {
        let name = |e: &End| e.workload.clone().unwrap_or_else(|| "?".to_owned());
        format!("{} → {}", name(&self.client), name(&self.server))
    }
}
