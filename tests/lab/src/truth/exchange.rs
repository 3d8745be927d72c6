//! The protocol workloads' lines: an exchange as one of its two ends saw it, with the system calls that carried it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Nonce;
use crate::clock::MonotonicNs;

/// A call that moved bytes: the instants right before and right after it. What a probe sees of the call lies between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Right before. Of a blocking read: before the wait for data.
    pub before: MonotonicNs,
    /// Right after.
    pub after: MonotonicNs,
}

impl Mark {
    /// Whether an instant lies within the call.
    pub fn contains(&self, at: MonotonicNs) -> bool {
        self.before <= at && at <= self.after
    }
}

/// Which end wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Who asked.
    Client,
    /// Who answered.
    Server,
}

/// What the application spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1 in plain text.
    #[serde(rename = "http/1.1")]
    Http1,
    /// HTTP/2 with prior knowledge.
    #[serde(rename = "http/2")]
    Http2,
    /// gRPC over that.
    #[serde(rename = "grpc")]
    Grpc,
    /// Bytes.
    #[serde(rename = "tcp")]
    Tcp,
    /// HTTP/1.1 over TLS by the application itself.
    #[serde(rename = "tls")]
    Tls,
}

/// One direction of an exchange, as one end saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leg {
    /// The call that moved its first byte.
    pub first: Option<Mark>,
    /// The call that moved the last byte of its head.
    pub head: Option<Mark>,
    /// The call that moved its last byte, trailers included; absent if it never came to that.
    pub last: Option<Mark>,
    /// Bytes of its body.
    pub bytes: u64,
    /// HTTP/2 only: its DATA frames.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub data_frames: u32,
    /// HTTP/2 only: its CONTINUATION frames.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub continuation_frames: u32,
    /// HTTP/2 only: how often DATA of another stream came between two DATA frames of this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interruptions: u32,
    /// HTTP/2 senders only: for how many nanoseconds in all the flow-control window was empty.
    #[serde(default, skip_serializing_if = "is_none")]
    pub stalled_ns: Option<u64>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn is_none(stalled: &Option<u64>) -> bool {
    stalled.is_none()
}

/// What an application interrupted to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Doing {
    /// Reading the other's body.
    Reading,
    /// Writing its own.
    Writing,
    /// Between the request and the response.
    Thinking,
}

/// A wait that the application made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// What it interrupted.
    pub doing: Doing,
    /// After so many bytes of the body.
    pub after_bytes: u64,
    /// Begin.
    pub start: MonotonicNs,
    /// End: the *actual* one.
    pub end: MonotonicNs,
}

impl Wait {
    /// How long it really was, in nanoseconds.
    pub fn actual_ns(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
}

/// A message of a stream (gRPC, WebSocket, TCP), as the application saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamMessage {
    /// Whether this end sent it.
    pub sent: bool,
    /// Its bytes.
    pub bytes: u64,
    /// When the application handed it over, or had it.
    pub at: MonotonicNs,
}

/// An exchange as one end saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeRecord {
    /// Which end.
    pub role: Role,
    /// Its workload.
    pub pod: String,
    /// The case that made it.
    pub case: String,
    /// What was spoken.
    pub protocol: Protocol,
    /// The exchange; the same at both ends.
    pub nonce: Nonce,
    /// `x-request-id` as it was sent or received.
    pub request_id: Option<String>,
    /// This end's socket.
    pub local: SocketAddr,
    /// The other end as this one sees it.
    pub remote: SocketAddr,
    /// The HTTP/2 stream on this connection.
    #[serde(default)]
    pub stream: Option<u32>,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// The status that was answered or received; absent if none was.
    pub status: Option<u16>,
    /// gRPC only.
    #[serde(default)]
    pub grpc_status: Option<u16>,
    /// The way there.
    pub request: Leg,
    /// HTTP/1.1 only: the interim response.
    #[serde(default)]
    pub interim: Option<Mark>,
    /// The way back.
    pub response: Leg,
    /// Waits on purpose.
    #[serde(default)]
    pub waits: Vec<Wait>,
    /// The messages of a stream.
    #[serde(default)]
    pub messages: Vec<StreamMessage>,
    /// Whether this end gave up on purpose.
    #[serde(default)]
    pub gave_up: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// Which attempt of the sidecar's the server got, counted from 1; of the client, which of them was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The exchange that this one was made for, where an application calls on while it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Nonce>,
}

/// The two ends of a connection, as one of them knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// This one's.
    pub local: SocketAddr,
    /// The other one's.
    pub remote: SocketAddr,
}

/// A socket of IPv6 shows IPv4 addresses in its own way (`::ffff:10.0.0.1`).
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl ExchangeRecord {
    /// What an end knows before anything was said: who it is, and of which exchange on which connection. Everything else is empty.
    pub fn begin(role: Role, pod: &str, (case, nonce): (&str, Nonce), protocol: Protocol, sockets: Sockets) -> Self {
        Self {
            role,
            pod: pod.to_owned(),
            case: case.to_owned(),
            protocol,
            nonce,
            request_id: None,
            local: plain(sockets.local),
            remote: plain(sockets.remote),
            stream: None,
            method: String::new(),
            path: String::new(),
            status: None,
            grpc_status: None,
            request: Leg::default(),
            interim: None,
            response: Leg::default(),
            waits: Vec::new(),
            messages: Vec::new(),
            gave_up: false,
            error: None,
            attempt: None,
            parent: None,
        }
    }

    /// How long the client waited: from right before the call that sent the first byte to right after the one that
    /// brought the last; absent if it never came to that.
    pub fn waited_ns(&self) -> Option<u64> {
        Some(self.response.last?.after.0.saturating_sub(self.request.first?.before.0))
    }

    /// How long this end really waited on purpose while doing that, in nanoseconds.
    pub fn waits_ns(&self, doing: Doing) -> u64 {
        self.waits.iter().filter(|wait| wait.doing == doing).map(Wait::actual_ns).sum()
    }
}
