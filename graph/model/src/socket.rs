//! What the kernel says of a socket.

use crate::{
    Close, DurationNs, Errno, LocalAddr, MonotonicNs, NetnsId, PeerAddr, SeqNo, SocketCookie, SocketRole, Tgid, TlsInfo,
};
use serde::{Deserialize, Serialize};

/// A TCP socket that the probes saw, over its whole life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// Its identity on the node.
    pub cookie: SocketCookie,
    /// The network namespace it lives in.
    pub netns: NetnsId,
    /// Its own address.
    pub local: LocalAddr,
    /// Its peer's address as this socket knows it (before any REDIRECT).
    pub remote: PeerAddr,
    /// The process that sent or read on it last; `None` until one did. Never taken from a softirq's context.
    pub owner: Option<Tgid>,
    /// When it left CLOSE for SYN_SENT; `None` if it accepted, or was open before the probes were.
    pub connect_start: Option<MonotonicNs>,
    /// When it became ESTABLISHED; `None` if that was before the probes were.
    pub established: Option<MonotonicNs>,
    /// When it became CLOSE; `None` if it was still open at the end.
    pub closed: Option<MonotonicNs>,
    /// First event seen on it.
    pub first_seen: MonotonicNs,
    /// Last event seen on it.
    pub last_seen: MonotonicNs,
    /// Smoothed round-trip time at the last event (`srtt_us >> 3`, in ns); `None` if the kernel had no sample.
    pub srtt: Option<DurationNs>,
    /// Events of this socket that the ring buffer had no room for (gaps in its counter).
    pub lost_events: u64,
    /// Which end of the connection it is; `None` if it was open before the probes were and nothing tells.
    #[serde(default)]
    pub role: Option<SocketRole>,
    /// How long the handshake took. Of a socket that connected, from the SYN until it was established; of one that was accepted,
    /// from the SYN-ACK until its acknowledgement, which the kernel tells in whole microseconds (and does not tell where the SYN-ACK was
    /// sent again, or with SYN cookies).
    #[serde(default)]
    pub handshake: Option<DurationNs>,
    /// Why a connect failed. `None` also if the application gave up first: then the socket has a `connect_start` and is closed, but was
    /// never established.
    #[serde(default)]
    pub connect_error: Option<Errno>,
    /// How it ended; `None` while neither end has begun to close.
    #[serde(default)]
    pub close: Option<Close>,
    /// What this end said of TLS in the clear; `None` if no TLS record was recognised in what it sent.
    #[serde(default)]
    pub tls: Option<TlsInfo>,
}

/// States of a TCP socket (`enum` in `include/net/tcp_states.h`; the numbers are kernel ABI by way of
/// `inet_sock_set_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum TcpState {
    /// Open in both directions.
    Established = 1,
    /// Connecting.
    SynSent = 2,
    /// Accepting.
    SynRecv = 3,
    /// Sent a FIN.
    FinWait1 = 4,
    /// Its FIN was acknowledged.
    FinWait2 = 5,
    /// Waiting for stray segments to die.
    TimeWait = 6,
    /// Closed (or not yet open).
    Close = 7,
    /// The peer sent a FIN.
    CloseWait = 8,
    /// Sent its FIN after the peer's.
    LastAck = 9,
    /// Listening.
    Listen = 10,
    /// Both sent a FIN at once.
    Closing = 11,
    /// A request socket turned into a full one.
    NewSynRecv = 12,
}

impl TcpState {
    /// The state of the kernel's number; `None` for a number that no kernel uses.
    #[must_use]
    pub const fn from_kernel(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            _ => return None,
        })
    }
}

/// One probe's record of one call on a socket. Kept only by `record --raw`; message assembly consumes it otherwise.
/// Payload is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketEvent {
    /// The socket.
    pub socket: SocketCookie,
    /// This event's place among the socket's events; a gap is a lost event. Wraps.
    pub counter: u32,
    /// When the probe ran.
    pub at: MonotonicNs,
    /// The process in whose context it ran: the owner for send and recv; 0 for ready and state, which run in anybody's.
    pub tgid: Tgid,
    /// What happened.
    pub kind: SocketEventKind,
}

/// What happened on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketEventKind {
    /// Bytes were handed to TCP (`tcp_sendmsg_locked`): `len` is what the call asked to send, so the next send's `seq`
    /// says how much of it was taken.
    Send {
        /// Number of the first byte (`write_seq`).
        seq: SeqNo,
        /// Bytes that the call has to send.
        len: u32,
    },
    /// Bytes became readable (`sk_data_ready`).
    Ready {
        /// Number after the last readable byte (`rcv_nxt`).
        rcv_nxt: SeqNo,
        /// Number of the first byte not yet read (`copied_seq`).
        copied_seq: SeqNo,
    },
    /// A read returned (`sock_recv_length`), MSG_PEEK and failures left out.
    Recv {
        /// Number after the last byte read (`copied_seq`).
        copied_seq: SeqNo,
        /// Bytes that the call returned; 0 at the peer's FIN.
        len: u32,
    },
    /// The socket changed its state (`inet_sock_set_state`).
    State {
        /// State before.
        old: TcpState,
        /// State after.
        new: TcpState,
    },
    /// A write ended (`sock_send_length`), and TCP held bytes back.
    Held {
        /// Number of the first byte that has not left (`snd_nxt`).
        next: SeqNo,
        /// Bytes from there on.
        len: u32,
    },
    /// A segment was sent again (`tcp_retransmit_skb`).
    Retransmit {
        /// Number of its first byte.
        seq: SeqNo,
        /// Its length.
        len: u32,
    },
    /// A reset was sent or received (`tcp_send_reset`, `tcp_receive_reset`).
    Reset {
        /// Received, not sent.
        received: bool,
    },
    /// The kernel dropped a packet from or to the socket (`kfree_skb`).
    Drop {
        /// The kernel's number of its reason.
        reason: u32,
    },
}
