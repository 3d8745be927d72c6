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

/// What the sidecars' logs say of a request on a connection between them that it shared with others, so that nothing else tells: instants
/// of Envoy's, by its wall clock, on the monotonic clock of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedCrossing {
    /// The client's sidecar had encoded the request's head.
    pub sent: Option<MonotonicNs>,
    /// The server's sidecar had read it.
    pub arrived: Option<MonotonicNs>,
    /// The server's sidecar began to encode the response.
    pub answered: Option<MonotonicNs>,
    /// The client's sidecar had parsed its head.
    pub returned: Option<MonotonicNs>,
}

/// An attempt upstream that did not give the client its response: the client's sidecar made another one, before or after it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What is known of it: everything but the client's loopback. The client's log is the router's own entry of the attempt
    /// (`UpstreamEnd`), where the mesh logs those.
    pub hop: JoinedHop,
    /// When its first byte was handed to TCP on its S3 (encoded, if S3 is shared); of one that never got so far, when S3 began to connect.
    pub began: Option<MonotonicNs>,
    /// When the client's sidecar was done with it: the response was ready at S3 (parsed, if S3 is shared), S3's end, or the connect's
    /// failure.
    pub ended: Option<MonotonicNs>,
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
    /// What they say of it.
    pub logged: LoggedCrossing,
    /// S3's connect until its TLS handshake was done, if this request waited for it: start and end.
    pub connection_setup: Option<(MonotonicNs, MonotonicNs)>,
    /// When that connect was done and the TLS handshake could begin.
    pub connected: Option<MonotonicNs>,
    /// When a proxy's upstream connection (S3, S5) ended without a response, upon which the proxy answered by itself: it timed out, or
    /// the other end closed. Nothing of the other end counts after that.
    pub abandoned: [Option<MonotonicNs>; 2],
    /// When the end of each connection that connected had read all of the response to the request before this one; `None` for the
    /// first, and where several requests share a connection at once.
    pub free_since: [Option<MonotonicNs>; 3],
    /// The client's sidecar's other attempts, in order of their beginning.
    pub attempts: Vec<Attempt>,
    /// The router's own entries (`UpstreamEnd`) of the attempt that this hop tells of: of the client's sidecar, and of the server's.
    pub router_logs: [Option<Arc<HopSide>>; 2],
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
    /// A hop of which nothing is known but why.
    #[must_use]
    pub fn empty(client_half: JoinOutcome<()>, server_half: JoinOutcome<()>) -> Self {
        Self {
            client_log: None,
            server_log: None,
            sockets: [None; 6],
            request: [Crossing::default(); 3],
            response: [Crossing::default(); 3],
            flows: Flows::default(),
            gave_up: None,
            http2: None,
            network_by_log: false,
            logged: LoggedCrossing::default(),
            connection_setup: None,
            connected: None,
            abandoned: [None; 2],
            free_since: [None; 3],
            attempts: Vec::new(),
            router_logs: [const { None }; 2],
            request_content: Content::Unknown,
            response_content: Content::Unknown,
            client_connect: None,
            client_half,
            server_half,
        }
    }
    /// The request's crossing of a link.
    #[must_use]
    pub const fn request_on(&self, link: Link) -> &Crossing {
        &self.request[link as usize]
    }
    /// True if the client's sidecar made more attempts than the one that this hop tells of.
    #[must_use]
    pub fn is_retried(&self) -> bool {
        self.client_log.as_ref().and_then(|l| l.upstream_request_attempt_count).is_some_and(|n| n > 1)
    }
    /// When the first attempt began, if it was retried and every attempt's beginning was seen.
    #[must_use]
    pub fn first_attempt(&self) -> Option<MonotonicNs> {
        let made = self.client_log.as_ref()?.upstream_request_attempt_count?;
        if usize::try_from(made).ok()? != self.attempts.len() + 1 {
            return None;
        }
        let others = self.attempts.iter().map(|a| a.began).collect::<Option<Vec<_>>>()?;
        others.into_iter().chain([self.attempt_began()?]).min()
    }
    /// When the attempt that this hop tells of began: its first byte was sent on S3 (encoded, if S3 is shared), or it began to connect in
    /// vain.
    #[must_use]
    pub fn attempt_began(&self) -> Option<MonotonicNs> {
        self.request_on(Link::Network).send.or(self.logged.sent).or_else(|| {
            let never_sent = self.client_log.as_ref().is_some_and(|l| l.answered_by_itself());
            self.connection_setup.filter(|_| never_sent).map(|(start, _)| start)
        })
    }
    /// True if it came through a gateway from a client that was not watched: for the mesh it begins and ends at the gateway's socket.
    #[must_use]
    pub fn begins_at_gateway(&self) -> bool {
        self.client_log.as_ref().is_some_and(|l| l.node.is_gateway()) && self.sockets[0].is_none()
    }
    /// True if its sockets were seen on more than one node: their instants are on one timeline only as well as messages between the nodes
    /// tell, so what compares both ends is a bound.
    #[must_use]
    pub fn is_across_nodes(&self) -> bool {
        let mut nodes = self.sockets.iter().flatten().map(|s| s.node_number());
        nodes.next().is_some_and(|first| nodes.any(|n| n != first))
    }
    /// The response's crossing of a link.
    #[must_use]
    pub const fn response_on(&self, link: Link) -> &Crossing {
        &self.response[link as usize]
    }
}
