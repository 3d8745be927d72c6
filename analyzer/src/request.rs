//! One request with its split: what `requests` prints, and what everything else aggregates.

use meshdiff_model::{
    Attribution, Crossing, DurationNs, HopProtocol, LocalAddr, MonotonicNs, PeerAddr, RequestId, SocketCookie,
    WallTime, Workload,
};
use std::sync::Arc;

/// From where the total was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vantage {
    /// At the client application's socket, S1: what the application waited.
    App,
    /// At the client sidecar's sockets.
    ClientProxy,
    /// At the server sidecar's sockets.
    ServerProxy,
    /// By an Envoy's own clock: there were no socket events.
    Als,
}

impl Vantage {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::ClientProxy => "client_proxy",
            Self::ServerProxy => "server_proxy",
            Self::Als => "als",
        }
    }
}

/// Which of a hop's two sides something is known of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sides {
    /// Both.
    Both,
    /// The client's only.
    Client,
    /// The server's only.
    Server,
    /// Neither.
    None,
}

impl Sides {
    /// From the two halves.
    #[must_use]
    pub const fn of(client: bool, server: bool) -> Self {
        match (client, server) {
            (true, true) => Self::Both,
            (true, false) => Self::Client,
            (false, true) => Self::Server,
            (false, false) => Self::None,
        }
    }
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Client => "client",
            Self::Server => "server",
            Self::None => "none",
        }
    }
}

/// In which row of the report's coverage a request is counted. Every request is in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CoverageClass {
    /// Every socket that it should have used was seen.
    Full,
    /// Socket instants of the client's half only.
    PartialClient,
    /// Socket instants of the server's half only.
    PartialServer,
    /// Access logs only.
    PartialAls,
    /// A partner was not unique.
    Ambiguous,
    /// Seen by the kernel, but no log entry (or too little of one) to say what it was.
    Unmatched,
}

/// How much of a request was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestCoverage {
    /// Its row.
    pub class: CoverageClass,
    /// The proxies whose log entries are there.
    pub halves: Sides,
    /// The sides on which the kernel's instants are there.
    pub kernel: Sides,
    /// Why it is not full, by the names of `UnmatchedReason` and `AmbiguityReason`.
    pub reason: Option<&'static str>,
}

impl RequestCoverage {
    /// True if every socket that the request should have used was seen.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self.class, CoverageClass::Full)
    }
}

/// A socket of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRef {
    /// Its identity on its node.
    pub cookie: SocketCookie,
    /// Its own address.
    pub local: LocalAddr,
    /// Its peer, as it knows it.
    pub remote: PeerAddr,
}

/// One attempt at a request that was made more than once, or beside another one.
#[derive(Clone, Debug)]
pub struct Try {
    /// The upstream host; `None` if none was chosen, or nobody tells.
    pub address: Option<String>,
    /// What came of it, where the router logs attempts or the server's sidecar was heard.
    pub response_code: Option<u16>,
    /// Envoy's flags for it, sorted.
    pub response_flags: Vec<Arc<str>>,
    /// True if the client's response is this attempt's.
    pub answered: bool,
    /// Its first byte was sent on S3, or S3 began to connect in vain.
    pub began: Option<MonotonicNs>,
    /// The client's sidecar was done with it.
    pub ended: Option<MonotonicNs>,
    /// The split of the server's half, from the request ready at S4 to the response sent there.
    pub server: Option<Attribution>,
    /// Why there is none, by the names of `UnmatchedReason` and `AmbiguityReason`.
    pub reason: Option<&'static str>,
    /// S3 to S6, as far as they were found.
    pub sockets: [Option<SocketRef>; 4],
    /// The request's way over network and server loopback.
    pub request_crossings: [Crossing; 2],
    /// The response's way over network and server loopback.
    pub response_crossings: [Crossing; 2],
}

/// One request that a client sent, with its time split as far as it was measured.
#[derive(Clone, Debug)]
pub struct AttributedRequest {
    /// Unique in its capture, and the same each time that the capture is read.
    pub id: String,
    /// `x-request-id`.
    pub request_id: Option<RequestId>,
    /// Protocol of the client's stream.
    pub protocol: HopProtocol,
    /// Request method.
    pub method: Option<Arc<str>>,
    /// Path without its query string.
    pub path: Option<Arc<str>>,
    /// Status that the client got.
    pub response_code: Option<u16>,
    /// Envoy's response flags, of both sides, sorted.
    pub response_flags: Vec<Arc<str>>,
    /// Attempts upstream, where Envoy says.
    pub attempts: Option<u32>,
    /// Each of them, if there are several and all are known, in order of their beginning.
    pub tries: Vec<Try>,
    /// gRPC's own status, where the frames tell it.
    pub grpc_status: Option<u16>,
    /// The cluster by which the client's sidecar sent it (of the last attempt), where it logged.
    pub upstream_cluster: Option<Arc<str>>,
    /// Who called.
    pub client: Workload,
    /// Who was called.
    pub server: Workload,
    /// When the total began.
    pub start: WallTime,
    /// The same on the client node's monotonic clock; `None` where only a log's wall clock tells.
    pub start_monotonic: Option<MonotonicNs>,
    /// Where the total was measured.
    pub vantage: Vantage,
    /// The split.
    pub attribution: Attribution,
    /// What was seen.
    pub coverage: RequestCoverage,
    /// S1 to S6, as far as they were found.
    pub sockets: [Option<SocketRef>; 6],
    /// The request's way over client loopback, network and server loopback.
    pub request_crossings: [Crossing; 3],
    /// The response's way over client loopback, network and server loopback.
    pub response_crossings: [Crossing; 3],
    /// S3's connect and TLS handshake, if the request waited for it.
    pub connection_setup: Option<(MonotonicNs, MonotonicNs)>,
    /// The client application's own connect before this request (not part of the total).
    pub client_connect: Option<DurationNs>,
    /// Index of the request (in the same list) during which the server application of that request made this one.
    pub parent: Option<usize>,
    /// Indices of the requests that this one's server application made while it served this one, in order of start.
    pub children: Vec<usize>,
}
