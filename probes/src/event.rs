//! The records of `bpf/socket.bpf.c`, decoded from raw bytes.
//!
//! The layout is the C file's `struct record` and `struct announcement`. Nothing is transmuted: every field is read with
//! a bounds check, so that a record of the wrong length is an error and not a wrong number.

use meshdiff_model::{
    DurationNs, Errno, LocalAddr, MonotonicNs, NetnsId, PeerAddr, SeqNo, SocketCookie, SocketEvent, SocketEventKind,
    TcpState, Tgid,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of `struct record`.
const HEAD: usize = 48;
/// Length of `struct announcement`.
const ANNOUNCEMENT: usize = HEAD + 48;
/// `FLAG_FIN` of the C file.
const FLAG_FIN: u8 = 1;
/// `FLAG_FRAMES` and what goes with it.
const FLAG_FRAMES: u8 = 2;
const FLAG_START: u8 = 4;
const FLAG_PREFACE: u8 = 8;
const FLAG_CUT: u8 = 16;
/// `FLAG_RECEIVED` of the C file.
const FLAG_RECEIVED: u8 = 32;
/// `FLAG_TLS`.
const FLAG_TLS: u8 = 32;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// One record of the ring buffer, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEvent<'a> {
    /// The socket.
    pub socket: SocketCookie,
    /// This record's place among the socket's records; a gap is a lost record. Wraps. Without meaning for
    /// [`RawKind::Announce`], which is not counted.
    pub counter: u32,
    /// When the probe ran.
    pub at: MonotonicNs,
    /// The process in whose context it ran; 0 where that says nothing (ready, state, announcements).
    pub tgid: Tgid,
    /// Smoothed round-trip time; `None` if the kernel has no sample yet.
    pub srtt: Option<DurationNs>,
    /// What the record tells besides.
    pub extra: Extra,
    /// What happened.
    pub kind: RawKind<'a>,
}

/// What a record tells besides what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// How long the last write call took that ended before this record; told once. `None` if there is nothing to tell, or it was not
    /// measured.
    pub write_took: Option<DurationNs>,
    /// Of [`RawKind::Recv`]: how long the call took; `None` if its beginning was not seen.
    pub read_took: Option<DurationNs>,
    /// Of [`RawKind::State`]: the socket's error (`sk_err`), if it had one.
    pub error: Option<Errno>,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind<'a> {
    /// Which socket the cookie is. Comes before the socket's first event, or with a later one if the ring was full; comes again
    /// if the addresses were not known yet.
    Announce(Identity),
    /// Bytes were handed to TCP.
    Send {
        /// Number of the first byte (`write_seq`).
        seq: SeqNo,
        /// Bytes that the call asked to send.
        len: u32,
        /// The first of them, at most 512 (2,048 of a TLS hello); empty where they could not be read.
        prefix: &'a [u8],
    },
    /// Bytes were handed to TCP that the application had encrypted with a libssl whose calls are followed.
    SendPlaintext {
        /// Number of the first byte (`write_seq`).
        seq: SeqNo,
        /// Bytes that the call asked to send, encrypted.
        len: u32,
        /// The first bytes of their plaintext, at most 512; empty where they go on with what an earlier send began.
        prefix: &'a [u8],
    },
    /// Bytes were handed to TCP on a socket whose HTTP/2 frames the probe follows.
    SendFrames {
        /// Number of the first byte (`write_seq`).
        seq: SeqNo,
        /// Bytes that the call asked to send.
        len: u32,
        /// The frames in them.
        frames: Frames<'a>,
    },
    /// Bytes became readable.
    Ready {
        /// Number after the last readable byte (`rcv_nxt`), and after the FIN if `fin`.
        rcv_nxt: SeqNo,
        /// Number of the first byte not yet read (`copied_seq`).
        copied_seq: SeqNo,
        /// The peer's FIN was received: the last number is not a byte's.
        fin: bool,
    },
    /// A read returned.
    Recv {
        /// Number after the last byte read (`copied_seq`), and after the FIN if `fin`.
        copied_seq: SeqNo,
        /// Bytes that the call returned; 0 at the peer's FIN.
        len: u32,
        /// The read took the peer's FIN too: the last number is not a byte's.
        fin: bool,
    },
    /// The socket changed its state.
    State {
        /// State before.
        old: TcpState,
        /// State after.
        new: TcpState,
        /// Number after the last byte sent so far (`write_seq`); the FIN is not counted yet when it is about to be sent.
        write_seq: SeqNo,
    },
    /// A write call ended, and TCP held back bytes that it had been given (Nagle, pacing, a full window).
    Held {
        /// Number of the first byte that has not left (`snd_nxt`).
        next: SeqNo,
        /// Bytes from there on (up to `write_seq`).
        len: u32,
    },
    /// A segment was sent again.
    Retransmit {
        /// Number of its first byte.
        seq: SeqNo,
        /// Its length.
        len: u32,
    },
    /// A reset (RST) was sent or received.
    Reset {
        /// Received, not sent.
        received: bool,
    },
    /// The kernel dropped a packet from or to the socket.
    Drop {
        /// The kernel's number of its reason (`enum skb_drop_reason`).
        reason: u32,
    },
}

/// HTTP/2 frames in the bytes of one send: what the probe kept of them, which says nothing yet of whether they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Frames<'a> {
    /// The send is the first that was followed: what the socket sent before was not.
    pub start: bool,
    /// The send begins with the client's preface (RFC 9113, section 3.4), which no chunk holds.
    pub preface: bool,
    /// Frames could not be followed to the send's end, nor are they behind it.
    pub cut: bool,
    /// [`Chunk`]s, as the probe wrote them.
    pub bytes: &'a [u8],
}

/// A run of bytes that the probe kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Of its first byte, from the send's first byte; below 0 if an earlier send held the beginning of the frame's header.
    pub offset: i32,
    /// It is more of the payload of the frame before, which an earlier send began; else it begins with a frame's header.
    pub is_rest: bool,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The chunks, in order. Ends early where they are not what a probe writes.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk<'a>> + use<'a> {
        let mut left = self.bytes;
        std::iter::from_fn(move || {
            let offset = i32::from_ne_bytes(field(left, 0).ok()?);
            let len = usize::from(u16_at(left, 4).ok()?);
            let [kind] = field(left, 6).ok()?;
            let bytes = left.get(8..8 + len)?;
            left = &left[8 + len..];
            Some(Chunk { offset, is_rest: kind == 1, bytes })
        })
    }

    /// Appends a chunk as the probe writes it: for tests that play the probe's part.
    pub fn write_chunk(to: &mut Vec<u8>, chunk: &Chunk<'_>) {
        let len = u16::try_from(chunk.bytes.len()).unwrap_or(u16::MAX);
        to.extend(chunk.offset.to_ne_bytes());
        to.extend(len.to_ne_bytes());
        to.extend([u8::from(chunk.is_rest), 0]);
        to.extend(&chunk.bytes[..usize::from(len)]);
    }
}

/// Who a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its network namespace.
    pub netns: NetnsId,
    /// Its own address.
    pub local: LocalAddr,
    /// Its peer's.
    pub remote: PeerAddr,
}

/// Why a record could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before its fields do.
    #[error(
        "a record of {length} bytes is too short for its kind: the probes and this program are of different builds"
    )]
    Short {
        /// Its length.
        length: usize,
    },
    /// Its kind is not one of ours.
    #[error("unknown record kind {0}: the probes and this program are of different builds")]
    UnknownKind(u8),
    /// It is about a TCP state or an address family that no kernel has.
    #[error("a record of kind {0} holds a value that no kernel writes")]
    BadValue(u8),
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DecodeError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(DecodeError::Short { length: bytes.len() })
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, DecodeError> {
    field(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, DecodeError> {
    field(bytes, at).map(u32::from_ne_bytes)
}

/// Of the head, which is there as a whole.
#[inline(always)]
const fn word(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[inline(always)]
const fn long(head: &[u8; HEAD], at: usize) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (at, at + 4) } else { (at + 4, at) };
    word(head, low) as u64 | (word(head, high) as u64) << 32
}

impl<'a> RawEvent<'a> {
    /// Decodes one record.
    ///
    /// # Errors
    /// If the record is not one that the probes of this build write.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        // All offsets into it are constant, so that they are checked once.
        let head: &[u8; HEAD] = bytes.first_chunk().ok_or(DecodeError::Short { length: bytes.len() })?;
        let [kind, flags] = [head[20], head[21]];
        let fin = flags & FLAG_FIN != 0;
        let seq = SeqNo(word(head, 28));
        let aux = word(head, 32);
        // `srtt_us` holds eighths of a microsecond (tcp_rtt_estimator); 125 ns each.
        let srtt = match word(head, 36) {
            0 => None,
            eighths => Some(DurationNs(i64::from(eighths) * 125)),
        };
        let extra = Extra {
            write_took: span(word(head, 40)),
            read_took: span(word(head, 44)),
            // Errors are below 4,096 (MAX_ERRNO).
            error: (kind == 5).then_some((aux >> 16) as u16).filter(|errno| *errno != 0).map(Errno),
        };
        let kind = match kind {
            1 => RawKind::Announce(identity(bytes)?),
            2 => {
                let end = HEAD + usize::from(u16::from_ne_bytes([head[22], head[23]]));
                let prefix = bytes.get(HEAD..end).ok_or(DecodeError::Short { length: bytes.len() })?;
                if flags & FLAG_TLS != 0 {
                    RawKind::SendPlaintext { seq, len: aux, prefix }
                } else if flags & FLAG_FRAMES == 0 {
                    RawKind::Send { seq, len: aux, prefix }
                } else {
                    let has = |flag| flags & flag != 0;
                    let (start, preface, cut) = (has(FLAG_START), has(FLAG_PREFACE), has(FLAG_CUT));
                    RawKind::SendFrames { seq, len: aux, frames: Frames { start, preface, cut, bytes: prefix } }
                }
            }
            3 => RawKind::Ready { rcv_nxt: seq, copied_seq: SeqNo(aux), fin },
            4 => RawKind::Recv { copied_seq: seq, len: aux, fin },
            5 => {
                let state = |n: u32| TcpState::from_kernel((n & 0xff) as u8).ok_or(DecodeError::BadValue(kind));
                RawKind::State { old: state(aux >> 8)?, new: state(aux)?, write_seq: seq }
            }
            6 => RawKind::Held { next: seq, len: aux },
            7 => RawKind::Retransmit { seq, len: aux },
            8 => RawKind::Reset { received: flags & FLAG_RECEIVED != 0 },
            9 => RawKind::Drop { reason: aux },
            other => return Err(DecodeError::UnknownKind(other)),
        };
        Ok(Self {
            socket: SocketCookie(long(head, 0)),
            at: MonotonicNs(long(head, 8)),
            counter: word(head, 16),
            tgid: Tgid(word(head, 24)),
            srtt,
            extra,
            kind,
        })
    }

    /// The event without its payload, as captures keep it; `None` for an announcement.
    #[must_use]
    pub fn to_socket_event(&self) -> Option<SocketEvent> {
        let kind = match self.kind {
            RawKind::Announce(_) => return None,
            RawKind::Send { seq, len, .. }
            | RawKind::SendPlaintext { seq, len, .. }
            | RawKind::SendFrames { seq, len, .. } => SocketEventKind::Send { seq, len },
            RawKind::Ready { rcv_nxt, copied_seq, .. } => SocketEventKind::Ready { rcv_nxt, copied_seq },
            RawKind::Recv { copied_seq, len, .. } => SocketEventKind::Recv { copied_seq, len },
            RawKind::State { old, new, .. } => SocketEventKind::State { old, new },
            RawKind::Held { next, len } => SocketEventKind::Held { next, len },
            RawKind::Retransmit { seq, len } => SocketEventKind::Retransmit { seq, len },
            RawKind::Reset { received } => SocketEventKind::Reset { received },
            RawKind::Drop { reason } => SocketEventKind::Drop { reason },
        };
        Some(SocketEvent { socket: self.socket, counter: self.counter, at: self.at, tgid: self.tgid, kind })
    }
}

/// A time as the C file's `span` writes it.
#[inline]
fn span(coded: u32) -> Option<DurationNs> {
    const LONG: u32 = 1 << 31;
    match coded {
        0 => None,
        ns if ns < LONG => Some(DurationNs(i64::from(ns))),
        long => Some(DurationNs(i64::from(long & !LONG) << 10)),
    }
}

fn identity(bytes: &[u8]) -> Result<Identity, DecodeError> {
    if bytes.len() < ANNOUNCEMENT {
        return Err(DecodeError::Short { length: bytes.len() });
    }
    let family = u16_at(bytes, HEAD + 4)?;
    let ip = |at: usize| -> Result<IpAddr, DecodeError> {
        match family {
            AF_INET => Ok(IpAddr::V4(Ipv4Addr::from(field::<4>(bytes, at)?))),
            AF_INET6 => Ok(IpAddr::V6(Ipv6Addr::from(field::<16>(bytes, at)?))),
            _ => Err(DecodeError::BadValue(1)),
        }
    };
    Ok(Identity {
        netns: NetnsId(u32_at(bytes, HEAD)?),
        local: LocalAddr::normalised(SocketAddr::new(ip(HEAD + 16)?, u16_at(bytes, HEAD + 6)?)),
        remote: PeerAddr::normalised(SocketAddr::new(ip(HEAD + 32)?, u16_at(bytes, HEAD + 8)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, flags: u8, prefix_len: u16, seq: u32, aux: u32) -> Vec<u8> {
        let mut r = Vec::new();
        r.extend(7u64.to_ne_bytes());
        r.extend(1_000u64.to_ne_bytes());
        r.extend(3u32.to_ne_bytes());
        r.extend([kind, flags]);
        r.extend(prefix_len.to_ne_bytes());
        r.extend(42u32.to_ne_bytes());
        r.extend(seq.to_ne_bytes());
        r.extend(aux.to_ne_bytes());
        r.extend((8u32 * 5).to_ne_bytes());
        r.extend([0; 8]);
        r
    }

    #[test]
    fn a_send_holds_its_prefix_and_no_more() {
        let mut bytes = record(2, 0, 3, 9, 100);
        bytes.extend(b"GET stale bytes of the ring");
        let event = RawEvent::decode(&bytes).expect("decodes");
        assert_eq!(event.kind, RawKind::Send { seq: SeqNo(9), len: 100, prefix: b"GET" });
        assert_eq!((event.socket, event.counter, event.tgid), (SocketCookie(7), 3, Tgid(42)));
        assert_eq!(event.srtt, Some(DurationNs::from_micros(5)));
        assert_eq!(RawEvent::decode(&bytes[..50]), Err(DecodeError::Short { length: 50 }));
    }

    #[test]
    fn the_fin_flag_and_states_are_read() {
        let ready = record(3, FLAG_FIN, 0, 9, 4);
        let kind = RawEvent::decode(&ready).expect("decodes").kind;
        assert_eq!(kind, RawKind::Ready { rcv_nxt: SeqNo(9), copied_seq: SeqNo(4), fin: true });
        let state = record(5, 0, 0, 9, 2 << 8 | 1);
        let kind = RawEvent::decode(&state).expect("decodes").kind;
        let expected = RawKind::State { old: TcpState::SynSent, new: TcpState::Established, write_seq: SeqNo(9) };
        assert_eq!(kind, expected);
        assert_eq!(RawEvent::decode(&record(5, 0, 0, 9, 99)), Err(DecodeError::BadValue(5)));
        assert_eq!(RawEvent::decode(&record(77, 0, 0, 9, 99)), Err(DecodeError::UnknownKind(77)));
    }

    #[test]
    fn times_and_errors_are_read() {
        let mut state = record(5, 0, 0, 9, 111 << 16 | 2 << 8 | 7);
        state[40..44].copy_from_slice(&5_000u32.to_ne_bytes());
        state[44..48].copy_from_slice(&(1u32 << 31 | 4_000_000).to_ne_bytes());
        let event = RawEvent::decode(&state).expect("decodes");
        assert!(matches!(event.kind, RawKind::State { old: TcpState::SynSent, new: TcpState::Close, .. }));
        let extra = Extra {
            write_took: Some(DurationNs(5_000)),
            read_took: Some(DurationNs(4_096_000_000)),
            error: Some(Errno(111)),
        };
        assert_eq!(event.extra, extra);
        let reset = record(8, FLAG_RECEIVED, 0, 9, 0);
        let reset = RawEvent::decode(&reset).expect("decodes");
        assert_eq!((reset.kind, reset.extra), (RawKind::Reset { received: true }, Extra::default()));
        let held = record(6, 0, 0, 9, 100);
        let held = RawEvent::decode(&held).expect("decodes").kind;
        assert_eq!(held, RawKind::Held { next: SeqNo(9), len: 100 });
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let mut bytes = record(1, 0, 0, 0, 1);
        bytes.extend(4_026_531_840u32.to_ne_bytes());
        for n in [AF_INET6, 8080, 1234, 0, 0, 0] {
            bytes.extend(n.to_ne_bytes());
        }
        bytes.extend(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        let RawKind::Announce(id) = RawEvent::decode(&bytes).expect("decodes").kind else { panic!("not announced") };
        assert_eq!(id.netns, NetnsId(4_026_531_840));
        assert_eq!(id.local.to_string(), "10.0.0.1:8080");
        assert_eq!(id.remote.to_string(), "[::1]:1234");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700), kind in 0u8..11) {
            let mut bytes = bytes;
            let _ = RawEvent::decode(&bytes);
            if let Some(k) = bytes.get_mut(20) {
                *k = kind;
                if let Ok(event) = RawEvent::decode(&bytes) {
                    let _ = event.to_socket_event();
                    if let RawKind::SendFrames { frames, .. } = event.kind {
                        assert!(frames.chunks().map(|c| c.bytes.len() + 8).sum::<usize>() <= frames.bytes.len());
                    }
                }
            }
        }
    }
}
