//! One hop with everything that was found about it: both proxies' logs, and the kernel's instants on all six sockets.

use crate::{Content, DurationNs, Flows, HopSide, Http2Fields, JoinOutcome, MonotonicNs, SocketCookie};
use std::sync::Arc;

/// The three TCP connections that a request crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// Client application and client sidecar: S1 and S2.
    ClientLoopback = 0,
    /// Client sidecar and server sidecar: S3 and S4.
    Network = 1,
    /// Server sidecar and server application: S5 and S6.
    ServerLoopback = 2,
}

impl Link {
    /// All, in order of a request's way.
    pub const ALL: [Self; 3] = [Self::ClientLoopback, Self::Network, Self::ServerLoopback];
}

/// When one message (request or response) crossed one connection. The first three speak of the message's *head*, the
/// last three of its last byte; all on the monotonic clock of the node where the socket lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossing {
    /// The first byte was handed to TCP by the sender.
    pub send: Option<MonotonicNs>,
    /// The head was readable at the receiver.
    pub ready: Option<MonotonicNs>,
    /// The receiver had read the head.
    pub recv: Option<MonotonicNs>,
    /// The last send call that had bytes of the message.
    pub last_send: Option<MonotonicNs>,
    /// All bytes were readable.
    pub last_ready: Option<MonotonicNs>,
    /// All bytes had been read.
    pub last_recv: Option<MonotonicNs>,
    /// Bytes of the message on this connection (encrypted: with TLS framing).
    pub bytes: u32,
}

/// A request that crossed (or should have crossed) two sidecars, joined as far as the evidence goes.
#[derive(Clone, Debug)]
pub struct JoinedHop {
    /// The client sidecar's log entry.
    pub client_log: Option<Arc<HopSide>>,
    /// The server sidecar's log entry.
    pub server_log: Option<Arc<HopSide>>,
    /// S1 to S6, as far as they were found.
    pub sockets: [Option<SocketCookie>; 6],
    /// The request on its way over each [`Link`].
    pub request: [Crossing; 3],
    /// The response on its way over each [`Link`].
    pub response: [Crossing; 3],
    /// What lies between the crossings' instants, where a message came in pieces.
    pub flows: Flows,
    /// When the client application closed or reset S1 before it had all of the response: it gave up then.
    pub gave_up: Option<MonotonicNs>,
    /// What the frames of HTTP/2 say of it, nearest to the client application.
    pub http2: Option<Http2Fields>,
    /// The connection between the sidecars was seen, and carried other requests too: S3 and S4 are found, but no instant on them. What
    /// lies between them is told by the sidecars' logs.
    pub network_by_log: bool,
    /// S3's connect until its TLS handshake was done, if this request waited for it: start and end.
    pub connection_setup: Option<(MonotonicNs, MonotonicNs)>,
    /// What the client application's first bytes were.
    pub request_content: Content,
    /// What the response's first bytes were, nearest to the client application.
    pub response_content: Content,
    /// What the client application did before the request on the same connection: its own TCP connect, if this is the first
    /// request. Shown beside the total, not in it.
    pub client_connect: Option<DurationNs>,
    /// Whether the client's half is complete (log, S1, S2 and, unless Envoy replied by itself, S3).
    pub client_half: JoinOutcome<()>,
    /// Whether the server's half is complete (log, S4, S5, S6).
    pub server_half: JoinOutcome<()>,
}

impl JoinedHop {
    /// The request's crossing of a link.
    #[must_use]
    pub const fn request_on(&self, link: Link) -> &Crossing {
        &self.request[link as usize]
    }
    /// The response's crossing of a link.
    #[must_use]
    pub const fn response_on(&self, link: Link) -> &Crossing {
        &self.response[link as usize]
    }
}
