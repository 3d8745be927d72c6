//! Sockets and messages for tests.

use meshdiff_model::{
    Content, Direction, Instants, LocalAddr, Message, MonotonicNs, NetnsId, PeerAddr, SeqInstant, SeqNo, SeqRange,
    Socket, SocketCookie,
};

/// A socket that was seen from `first` to `last`.
pub(crate) fn socket(cookie: u64, netns: u32, local: &str, remote: &str, (first, last): (u64, u64)) -> Socket {
    Socket {
        cookie: SocketCookie(cookie),
        netns: NetnsId(netns),
        local: LocalAddr(local.parse().expect("an address")),
        remote: PeerAddr(remote.parse().expect("an address")),
        owner: None,
        connect_start: None,
        established: None,
        closed: None,
        first_seen: MonotonicNs(first),
        last_seen: MonotonicNs(last),
        srtt: None,
        lost_events: 0,
        role: None,
        handshake: None,
        connect_error: None,
        close: None,
        tls: None,
    }
}

/// Bytes of which no instant is known.
pub(crate) fn message(cookie: u64, direction: Direction, start: u32, len: u32) -> Message {
    Message {
        socket: SocketCookie(cookie),
        direction,
        seq: SeqRange::of(SeqNo(start), len),
        sends: Instants::new(),
        readies: Instants::new(),
        recvs: Instants::new(),
        held: Instants::new(),
        retransmits: Instants::new(),
        elided: 0,
        gap_before: false,
        content: Content::Unknown,
        head_end: None,
    }
}

/// One send call.
pub(crate) fn sent(cookie: u64, start: u32, len: u32, at: u64, content: Content) -> Message {
    let sends = vec![SeqInstant { seq: SeqNo(start), at: MonotonicNs(at) }].into();
    Message { sends, content, ..message(cookie, Direction::Egress, start, len) }
}

/// Bytes that were ready at `at` and read 5 ns later.
pub(crate) fn received(cookie: u64, start: u32, len: u32, at: u64) -> Message {
    let end = SeqNo(start.wrapping_add(len));
    let instant = |at| Instants::from(vec![SeqInstant { seq: end, at: MonotonicNs(at) }]);
    let (readies, recvs) = (instant(at), instant(at + 5));
    Message { readies, recvs, ..message(cookie, Direction::Ingress, start, len) }
}

/// One send call, and its bytes at the other end 10 ns later.
pub(crate) fn crossed((from, to): (u64, u64), start: u32, len: u32, at: u64, content: Content) -> [Message; 2] {
    [sent(from, start, len, at, content), received(to, start, len, at + 10)]
}

pub(crate) fn get() -> Content {
    Content::Http1Request { method: "GET".into(), path: "/".into() }
}

pub(crate) fn status(status: u16) -> Content {
    Content::Http1Response { status }
}
