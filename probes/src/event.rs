//! The records of `bpf/socket.bpf.c`, decoded from raw bytes.
//!
//! The layout is the C file's `struct record` and `struct announcement`. Nothing is transmuted: every field is read with
//! a bounds check, so that a record of the wrong length is an error and not a wrong number.

use meshdiff_model::{
    DurationNs, LocalAddr, MonotonicNs, NetnsId, PeerAddr, SeqNo, SocketCookie, SocketEvent, SocketEventKind, TcpState,
    Tgid,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of `struct record`.
const HEAD: usize = 40;
/// Length of `struct announcement`.
const ANNOUNCEMENT: usize = HEAD + 48;
/// `FLAG_FIN` of the C file.
const FLAG_FIN: u8 = 1;
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
    /// What happened.
    pub kind: RawKind<'a>,
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
        /// The first of them, at most 512; empty where they could not be read.
        prefix: &'a [u8],
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

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, DecodeError> {
    field(bytes, at).map(u64::from_ne_bytes)
}

impl<'a> RawEvent<'a> {
    /// Decodes one record.
    ///
    /// # Errors
    /// If the record is not one that the probes of this build write.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() < HEAD {
            return Err(DecodeError::Short { length: bytes.len() });
        }
        let [kind, flags] = field(bytes, 20)?;
        let fin = flags & FLAG_FIN != 0;
        let seq = SeqNo(u32_at(bytes, 28)?);
        let aux = u32_at(bytes, 32)?;
        // `srtt_us` holds eighths of a microsecond (tcp_rtt_estimator); 125 ns each.
        let srtt = match u32_at(bytes, 36)? {
            0 => None,
            eighths => Some(DurationNs(i64::from(eighths) * 125)),
        };
        let kind = match kind {
            1 => RawKind::Announce(identity(bytes)?),
            2 => {
                let end = HEAD + usize::from(u16_at(bytes, 22)?);
                let prefix = bytes.get(HEAD..end).ok_or(DecodeError::Short { length: bytes.len() })?;
                RawKind::Send { seq, len: aux, prefix }
            }
            3 => RawKind::Ready { rcv_nxt: seq, copied_seq: SeqNo(aux), fin },
            4 => RawKind::Recv { copied_seq: seq, len: aux, fin },
            5 => {
                let state = |n: u32| TcpState::from_kernel((n & 0xff) as u8).ok_or(DecodeError::BadValue(kind));
                RawKind::State { old: state(aux >> 8)?, new: state(aux)?, write_seq: seq }
            }
            other => return Err(DecodeError::UnknownKind(other)),
        };
        Ok(Self {
            socket: SocketCookie(u64_at(bytes, 0)?),
            at: MonotonicNs(u64_at(bytes, 8)?),
            counter: u32_at(bytes, 16)?,
            tgid: Tgid(u32_at(bytes, 24)?),
            srtt,
            kind,
        })
    }

    /// The event without its payload, as captures keep it; `None` for an announcement.
    #[must_use]
    pub fn to_socket_event(&self) -> Option<SocketEvent> {
        let kind = match self.kind {
            RawKind::Announce(_) => return None,
            RawKind::Send { seq, len, .. } => SocketEventKind::Send { seq, len },
            RawKind::Ready { rcv_nxt, copied_seq, .. } => SocketEventKind::Ready { rcv_nxt, copied_seq },
            RawKind::Recv { copied_seq, len, .. } => SocketEventKind::Recv { copied_seq, len },
            RawKind::State { old, new, .. } => SocketEventKind::State { old, new },
        };
        Some(SocketEvent { socket: self.socket, counter: self.counter, at: self.at, tgid: self.tgid, kind })
    }
}

fn identity(bytes: &[u8]) -> Result<Identity, DecodeError> {
    if bytes.len() < ANNOUNCEMENT {
        return Err(DecodeError::Short { length: bytes.len() });
    }
    let family = u16_at(bytes, 44)?;
    let ip = |at: usize| -> Result<IpAddr, DecodeError> {
        match family {
            AF_INET => Ok(IpAddr::V4(Ipv4Addr::from(field::<4>(bytes, at)?))),
            AF_INET6 => Ok(IpAddr::V6(Ipv6Addr::from(field::<16>(bytes, at)?))),
            _ => Err(DecodeError::BadValue(1)),
        }
    };
    Ok(Identity {
        netns: NetnsId(u32_at(bytes, 40)?),
        local: LocalAddr::normalised(SocketAddr::new(ip(56)?, u16_at(bytes, 46)?)),
        remote: PeerAddr::normalised(SocketAddr::new(ip(72)?, u16_at(bytes, 48)?)),
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
        assert_eq!(RawEvent::decode(&bytes[..42]), Err(DecodeError::Short { length: 42 }));
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
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700), kind in 0u8..7) {
            let mut bytes = bytes;
            let _ = RawEvent::decode(&bytes);
            if let Some(k) = bytes.get_mut(20) {
                *k = kind;
                if let Ok(event) = RawEvent::decode(&bytes) {
                    let _ = event.to_socket_event();
                }
            }
        }
    }
}
