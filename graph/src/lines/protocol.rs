//! What is spoken on a connection: by what its ends were seen to send, and by what a proxy says where that is encrypted.

use crate::connection::{Connection, Endpoint};
use crate::stream::Spoken;
use meshdiff_model::{HopProtocol, Http2Stream, SocketCookie, TlsInfo};
use std::collections::HashMap;

/// What is spoken on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum LineProtocol {
    /// HTTP whose version nobody said.
    Http,
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 without gRPC.
    Http2,
    /// gRPC.
    Grpc,
    /// HTTP/3.
    Http3,
    /// TLS, and nothing tells what is inside.
    Tls,
    /// Anything else.
    #[default]
    Tcp,
}

impl LineProtocol {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http10 => "http/1.0",
            Self::Http11 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
            Self::Http3 => "http/3",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    /// What an access log says of the stream; `None` for plain TCP, of which the bytes tell more.
    pub(super) const fn of_log(protocol: HopProtocol) -> Option<Self> {
        match protocol {
            HopProtocol::Http => Some(Self::Http),
            HopProtocol::Http10 => Some(Self::Http10),
            HopProtocol::Http11 => Some(Self::Http11),
            HopProtocol::Http2 => Some(Self::Http2),
            HopProtocol::Grpc => Some(Self::Grpc),
            HopProtocol::Http3 => Some(Self::Http3),
            HopProtocol::Tcp => None,
        }
    }
}

/// The sockets on which HTTP/2 frames were followed: gRPC, if a stream's headers say so.
pub(super) type Frames = HashMap<SocketCookie, LineProtocol>;

/// Adds what one row says.
pub(super) fn add_frames(frames: &mut Frames, stream: &Http2Stream) {
    let seen = if stream.fields.grpc == Some(true) { LineProtocol::Grpc } else { LineProtocol::Http2 };
    let known = frames.entry(stream.socket).or_insert(seen);
    *known = seen.max(*known);
}

/// What was seen of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// HTTP, by its bytes or by what was agreed on before them.
    http: Option<LineProtocol>,
    tls: bool,
    any: bool,
    /// True if an end was seen to send from the connection's beginning: what is encrypted would have shown it.
    from_its_start: bool,
}

impl Seen {
    pub(super) fn of(connection: &Connection, endpoints: &[Endpoint], tls: Option<&TlsInfo>, frames: &Frames) -> Self {
        let agreed = tls.and_then(|t| t.alpn.as_deref()).and_then(|alpn| match alpn {
            "h2" => Some(LineProtocol::Http2),
            "http/1.1" => Some(LineProtocol::Http11),
            "http/1.0" => Some(LineProtocol::Http10),
            _ => None,
        });
        let mut seen = Self { tls: tls.is_some(), http: agreed, ..Self::default() };
        for end in [connection.client, connection.server].into_iter().flatten() {
            let e = &endpoints[end];
            seen.http = seen.http.max(frames.get(&e.socket.cookie).copied());
            seen.any |= !e.egress.is_empty() || !e.ingress.is_empty();
            let opened = e.socket.connect_start.is_some() || e.socket.established.is_some();
            seen.from_its_start |= opened && !e.egress.is_empty();
            seen.add(e.egress.spoken);
        }
        seen
    }

    fn add(&mut self, spoken: Spoken) {
        self.tls |= spoken.tls;
        // A connection may begin with HTTP/1 and go on as something else; what says most is the latest version.
        let http1 = (spoken.requests || spoken.responses).then_some(LineProtocol::Http11);
        let http2 = spoken.preface.then_some(LineProtocol::Http2);
        self.http = self.http.max(http1).max(http2);
    }

    /// Protocol and encryption, with what an access log says of the stream. `None` for a protocol: not a byte was seen, and nobody
    /// said anything.
    pub(super) fn decide(self, log: Option<(Option<LineProtocol>, bool)>) -> (Option<LineProtocol>, Option<bool>) {
        let said = log.and_then(|(protocol, _)| protocol);
        let protocol = match (self.http, said) {
            // The log tells versions of HTTP/1 apart, the bytes tell gRPC.
            (Some(LineProtocol::Http11), Some(said @ LineProtocol::Http10)) => Some(said),
            (Some(http), _) => Some(http),
            (None, Some(said)) => Some(said),
            (None, None) if self.tls => Some(LineProtocol::Tls),
            (None, None) => self.any.then_some(LineProtocol::Tcp),
        };
        let tls = match log {
            _ if self.tls => Some(true),
            Some((_, tls)) => Some(tls),
            None => (self.http.is_some() || self.from_its_start).then_some(false),
        };
        (protocol, tls)
    }
}
