//! `events`: the probes' single records, kept by `record --raw`.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, opt_named, opt_u32, text, u32, u64};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{Interner, View};
use arrow::datatypes::{UInt32Type, UInt64Type};
use meshdiff_model::{MonotonicNs, SeqNo, SocketCookie, SocketEvent, SocketEventKind, Tgid};

const SEND: &str = "send";
const READY: &str = "ready";
const RECV: &str = "recv";
const STATE: &str = "state";
const HELD: &str = "held";
const RETRANSMIT: &str = "retransmit";
const RESET_SENT: &str = "reset_sent";
const RESET_RECEIVED: &str = "reset_received";
const DROP: &str = "drop";

impl Row for SocketEvent {
    const TABLE: Table = Table::Events;

    fn columns() -> Vec<Column<Self>> {
        use SocketEventKind::{Drop, Held, Ready, Recv, Reset, Retransmit, Send, State};
        vec![
            u64("cookie", |e: &Self| e.socket.0).doc("The socket (`sockets.cookie`)."),
            u32("counter", |e: &Self| e.counter)
                .delta()
                .doc("The event's place among the socket's events; a gap is a lost event. Wraps."),
            u64("at_ns", |e: &Self| e.at.0).unit("ns, monotonic").delta().doc("When the probe ran."),
            u32("tgid", |e: &Self| e.tgid.0)
                .doc("The process in whose context it ran: the owner for send and recv, anyone for ready and state."),
            text("kind", |e: &Self| match e.kind {
                Send { .. } => SEND,
                Ready { .. } => READY,
                Recv { .. } => RECV,
                State { .. } => STATE,
                Held { .. } => HELD,
                Retransmit { .. } => RETRANSMIT,
                Reset { received: false } => RESET_SENT,
                Reset { received: true } => RESET_RECEIVED,
                Drop { .. } => DROP,
            })
            .doc(
                "`send`, `ready`, `recv`, `state`, `held` (a write ended and TCP held bytes back), `retransmit`, `reset_sent`, \
                 `reset_received` or `drop` (of a packet).",
            ),
            opt_u32("seq", |e: &Self| match e.kind {
                Send { seq, .. } | Retransmit { seq, .. } | Held { next: seq, .. } => Some(seq.0),
                _ => None,
            })
            .delta()
            .doc("send, retransmit: TCP sequence number of the first byte; held: of the first byte that has not left."),
            opt_u32("len", |e: &Self| match e.kind {
                Send { len, .. } | Recv { len, .. } | Held { len, .. } | Retransmit { len, .. } => Some(len),
                _ => None,
            })
            .unit("bytes")
            .doc("send: what the call has to send; recv: what it returned; held, retransmit: how many."),
            opt_u32("rcv_nxt", |e: &Self| if let Ready { rcv_nxt, .. } = e.kind { Some(rcv_nxt.0) } else { None })
                .delta()
                .doc("ready: TCP sequence number after the last readable byte."),
            opt_u32("copied_seq", |e: &Self| match e.kind {
                Ready { copied_seq, .. } | Recv { copied_seq, .. } => Some(copied_seq.0),
                _ => None,
            })
            .delta()
            .doc("ready: number of the first unread byte; recv: number after the last byte read."),
            opt_named("old_state", |e: &Self| if let State { old, .. } = e.kind { Some(old) } else { None })
                .doc("state: the TCP state before."),
            opt_named("new_state", |e: &Self| if let State { new, .. } = e.kind { Some(new) } else { None })
                .doc("state: the TCP state after."),
            opt_u32("reason", |e: &Self| if let Drop { reason } = e.kind { Some(reason) } else { None })
                .doc("drop: the kernel's number of its reason (`enum skb_drop_reason`)."),
        ]
    }

    fn decode(view: &View<'_>, _: &Interner) -> Result<Decoded<Self>, PartError> {
        let cookie = view.number::<UInt64Type>("cookie")?;
        let counter = view.number::<UInt32Type>("counter")?;
        let at = view.number::<UInt64Type>("at_ns")?;
        let tgid = view.number::<UInt32Type>("tgid")?;
        let kind = view.text("kind")?;
        let seq = view.number::<UInt32Type>("seq")?;
        let len = view.number::<UInt32Type>("len")?;
        let rcv_nxt = view.number::<UInt32Type>("rcv_nxt")?;
        let copied_seq = view.number::<UInt32Type>("copied_seq")?;
        let old_state = view.text("old_state")?;
        let new_state = view.text("new_state")?;
        // Captures did not have it from the beginning.
        let reason = view.has("reason").then(|| view.number::<UInt32Type>("reason")).transpose()?;
        Ok(decode_rows(view, |i| {
            let kind = match kind.get(i)? {
                SEND => SocketEventKind::Send { seq: SeqNo(seq.get(i)?), len: len.get(i)? },
                READY => {
                    SocketEventKind::Ready { rcv_nxt: SeqNo(rcv_nxt.get(i)?), copied_seq: SeqNo(copied_seq.get(i)?) }
                }
                RECV => SocketEventKind::Recv { copied_seq: SeqNo(copied_seq.get(i)?), len: len.get(i)? },
                STATE => SocketEventKind::State { old: old_state.named(i)?, new: new_state.named(i)? },
                HELD => SocketEventKind::Held { next: SeqNo(seq.get(i)?), len: len.get(i)? },
                RETRANSMIT => SocketEventKind::Retransmit { seq: SeqNo(seq.get(i)?), len: len.get(i)? },
                RESET_SENT => SocketEventKind::Reset { received: false },
                RESET_RECEIVED => SocketEventKind::Reset { received: true },
                DROP => SocketEventKind::Drop { reason: reason.as_ref().ok_or(kind.bad())?.get(i)? },
                _ => return Err(kind.bad()),
            };
            Ok(Self {
                socket: SocketCookie(cookie.get(i)?),
                counter: counter.get(i)?,
                at: MonotonicNs(at.get(i)?),
                tgid: Tgid(tgid.get(i)?),
                kind,
            })
        }))
    }
}
