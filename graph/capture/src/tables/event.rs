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

impl Row for SocketEvent {
    const TABLE: Table = Table::Events;

    fn columns() -> Vec<Column<Self>> {
        use SocketEventKind::{Ready, Recv, Send, State};
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
            })
            .doc("`send`, `ready`, `recv` or `state`."),
            opt_u32("seq", |e: &Self| if let Send { seq, .. } = e.kind { Some(seq.0) } else { None })
                .delta()
                .doc("send: TCP sequence number of the first byte."),
            opt_u32("len", |e: &Self| match e.kind {
                Send { len, .. } | Recv { len, .. } => Some(len),
                Ready { .. } | State { .. } => None,
            })
            .unit("bytes")
            .doc("send: what the call has to send; recv: what it returned."),
            opt_u32("rcv_nxt", |e: &Self| if let Ready { rcv_nxt, .. } = e.kind { Some(rcv_nxt.0) } else { None })
                .delta()
                .doc("ready: TCP sequence number after the last readable byte."),
            opt_u32("copied_seq", |e: &Self| match e.kind {
                Ready { copied_seq, .. } | Recv { copied_seq, .. } => Some(copied_seq.0),
                Send { .. } | State { .. } => None,
            })
            .delta()
            .doc("ready: number of the first unread byte; recv: number after the last byte read."),
            opt_named("old_state", |e: &Self| if let State { old, .. } = e.kind { Some(old) } else { None })
                .doc("state: the TCP state before."),
            opt_named("new_state", |e: &Self| if let State { new, .. } = e.kind { Some(new) } else { None })
                .doc("state: the TCP state after."),
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
        Ok(decode_rows(view, |i| {
            let kind = match kind.get(i)? {
                SEND => SocketEventKind::Send { seq: SeqNo(seq.get(i)?), len: len.get(i)? },
                READY => {
                    SocketEventKind::Ready { rcv_nxt: SeqNo(rcv_nxt.get(i)?), copied_seq: SeqNo(copied_seq.get(i)?) }
                }
                RECV => SocketEventKind::Recv { copied_seq: SeqNo(copied_seq.get(i)?), len: len.get(i)? },
                STATE => SocketEventKind::State { old: old_state.named(i)?, new: new_state.named(i)? },
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
