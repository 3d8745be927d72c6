//! What message assembly makes of a socket's events.

use crate::{DurationNs, Instants, MonotonicNs, SeqNo, SeqRange, SocketCookie};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which way bytes went, seen from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Sent by this socket.
    Egress,
    /// Received by this socket.
    Ingress,
}

/// An instant and the sequence number that it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeqInstant {
    /// For a send, the number of its first byte; for ready and recv, the number *after* the last byte covered.
    pub seq: SeqNo,
    /// When.
    pub at: MonotonicNs,
}

/// A run of bytes in one direction of one socket, with the instants of its parts: one half of what happened to it (the
/// other half is on the peer's socket, under the same sequence numbers).
///
/// Assembly cuts a direction into messages where the conversation turns (bytes go the other way), where a recogniser
/// sees a new head or a change between TLS handshake and application data, at lost events, and when a run grows old. Consumers must
/// not read more into a cut: consecutive messages of a direction are one stream, and a request may span several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The socket on which it was seen.
    pub socket: SocketCookie,
    /// Which way.
    pub direction: Direction,
    /// The bytes.
    pub seq: SeqRange,
    /// Egress only: each send call's first byte and instant, in order.
    pub sends: Instants,
    /// Ingress only: by when all bytes before `seq` were readable, in order.
    pub readies: Instants,
    /// Ingress only: by when all bytes before `seq` had been read, in order.
    pub recvs: Instants,
    /// Egress only: instants at which TCP held bytes back after a send call (Nagle, pacing, a full window): everything before `seq` had
    /// left by then, the rest of what had been sent had not.
    #[serde(default)]
    pub held: Instants,
    /// Egress only: each segment that was sent again, by its first byte.
    #[serde(default)]
    pub retransmits: Instants,
    /// How many instants were left out of `sends`, `readies` and `recvs` where these are long. Of each list the first
    /// [`NEVER_THINNED`](Self::NEVER_THINNED) and the last one are always kept, and where two neighbours lie
    /// [`THINNED_BELOW`](Self::THINNED_BELOW) or more apart, nothing was left out between them.
    pub elided: u32,
    /// True if events of this socket were lost between the previous message and this one: instants of bytes at
    /// this message's start (before its first instant) are unknown.
    pub gap_before: bool,
    /// What the first bytes are. Known to the sender only: always [`Content::Unknown`] for ingress.
    pub content: Content,
    /// Number after the last byte of the head (HTTP/1: after the empty line), where the captured prefix held all of it.
    pub head_end: Option<SeqNo>,
}

impl Message {
    /// The first instants of each list, which are all kept.
    pub const NEVER_THINNED: usize = 15;
    /// Of later instants, some are left out where they lie closer together than this. What a body's pauses are made of lies further
    /// apart, and within it the bytes flow.
    pub const THINNED_BELOW: DurationNs = DurationNs::from_micros(100);

    /// The first instant of any kind; `None` for a message without instants (which assembly does not make).
    #[must_use]
    pub fn first_instant(&self) -> Option<MonotonicNs> {
        [self.sends.first(), self.readies.first(), self.recvs.first()].into_iter().flatten().map(|i| i.at).min()
    }
    /// The last instant of any kind.
    #[must_use]
    pub fn last_instant(&self) -> Option<MonotonicNs> {
        [self.sends.last(), self.readies.last(), self.recvs.last()].into_iter().flatten().map(|i| i.at).max()
    }
}

/// What a recogniser made of a message's first bytes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Content {
    /// Not seen, or nothing that a recogniser knows: a continuation, or an opaque protocol.
    #[default]
    Unknown,
    /// An HTTP/1 request's head.
    Http1Request {
        /// The method, as sent.
        method: Arc<str>,
        /// The request target without its query string; cut where the captured prefix ends.
        path: Arc<str>,
    },
    /// An HTTP/1 response's head. Status 100 to 199 is interim (101 excepted) and never marks the response.
    Http1Response {
        /// The status code.
        status: u16,
    },
    /// The HTTP/2 client connection preface (RFC 9113, section 3.4).
    Http2Preface,
    /// A TLS record of type 20, 21 or 22 (change_cipher_spec, alert, handshake): never application data.
    TlsHandshake,
    /// A TLS record of type 23: application data, or with TLS 1.3 anything else that is encrypted.
    TlsApplicationData,
}

impl Content {
    /// True for an HTTP/1 response that another one follows (100 to 199, without 101 Switching Protocols).
    #[must_use]
    pub fn is_interim_response(&self) -> bool {
        matches!(self, Self::Http1Response { status } if (100..200).contains(status) && *status != 101)
    }
}
