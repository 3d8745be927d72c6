//! Events that own what they say.

use crate::event::{Extra, Identity, RawEvent, RawKind};
use crate::recognise::{OwnedFrames, Recognised, recognise, recognise_hello, recognise_plaintext};
use meshdiff_model::{DurationNs, MonotonicNs, SeqNo, TcpState, Tgid, TlsInfo};

/// An event that owns what it says.
#[derive(Debug)]
pub(in crate::assembly) struct Event {
    pub(in crate::assembly) counter: u32,
    pub(in crate::assembly) at: MonotonicNs,
    pub(in crate::assembly) tgid: Tgid,
    pub(in crate::assembly) srtt: Option<DurationNs>,
    pub(in crate::assembly) extra: Extra,
    pub(in crate::assembly) kind: EventKind,
}

impl Event {
    /// The event without what it borrows.
    #[inline]
    pub(in crate::assembly) fn from_raw(event: &RawEvent<'_>) -> Self {
        let kind = match event.kind {
            RawKind::Announce(identity) => EventKind::Announce(Box::new(identity)),
            RawKind::Send { seq, len, prefix } => {
                EventKind::Send { seq, len, found: recognise(prefix), hello: recognise_hello(prefix).map(Box::new) }
            }
            RawKind::SendPlaintext { seq, len, prefix } => EventKind::Send {
                seq,
                len,
                found: recognise_plaintext(prefix),
                hello: Some(Box::new(TlsInfo { plaintext_seen: true, ..TlsInfo::default() })),
            },
            RawKind::SendFrames { seq, len, frames } => {
                EventKind::Frames { seq, len, frames: Box::new(OwnedFrames::from(frames)) }
            }
            RawKind::Ready { rcv_nxt, copied_seq, fin } => {
                EventKind::Ready { end: before_fin(rcv_nxt, fin), copied_seq }
            }
            RawKind::Recv { copied_seq, len, fin } => EventKind::Recv { end: before_fin(copied_seq, fin), len },
            RawKind::State { old, new, write_seq } => EventKind::State { old, new, write_seq },
            RawKind::Held { next, len } => EventKind::Held { next, len },
            RawKind::Retransmit { seq, len: _ } => EventKind::Retransmit { seq },
            RawKind::Reset { received } => EventKind::Reset { received },
            RawKind::Drop { reason } => EventKind::Drop { reason },
        };
        Self { counter: event.counter, at: event.at, tgid: event.tgid, srtt: event.srtt, extra: event.extra, kind }
    }
}

/// The end of the data: a FIN takes a number of its own, which is no byte's.
const fn before_fin(seq: SeqNo, fin: bool) -> SeqNo {
    if fin { SeqNo(seq.0.wrapping_sub(1)) } else { seq }
}

/// What happened. Ends are the data's: a FIN's number is taken off.
#[derive(Debug)]
pub(in crate::assembly) enum EventKind {
    /// Which socket it is. It has no place among the others.
    Announce(Box<Identity>),
    Send {
        seq: SeqNo,
        len: u32,
        found: Option<Recognised>,
        hello: Option<Box<TlsInfo>>,
    },
    Frames {
        seq: SeqNo,
        len: u32,
        frames: Box<OwnedFrames>,
    },
    Ready {
        end: SeqNo,
        copied_seq: SeqNo,
    },
    Recv {
        end: SeqNo,
        len: u32,
    },
    State {
        old: TcpState,
        new: TcpState,
        write_seq: SeqNo,
    },
    Held {
        next: SeqNo,
        len: u32,
    },
    Retransmit {
        seq: SeqNo,
    },
    Reset {
        received: bool,
    },
    Drop {
        reason: u32,
    },
}
