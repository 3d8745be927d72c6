//! `sockets`: one row for each socket, again whenever what is known of it has changed.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, ip, opt_i64, opt_u32, opt_u64, u16, u32, u64};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{Interner, View};
use arrow::datatypes::{Int64Type, UInt32Type, UInt64Type};
use meshdiff_model::{DurationNs, LocalAddr, MonotonicNs, NetnsId, PeerAddr, Socket, SocketCookie, Tgid};

impl Row for Socket {
    const TABLE: Table = Table::Sockets;

    fn columns() -> Vec<Column<Self>> {
        vec![
            u64("cookie", |s: &Self| s.cookie.0).doc("The socket's cookie: unique on the node from boot to shutdown."),
            u32("netns", |s: &Self| s.netns.0).doc("Network namespace, by its inode number."),
            ip("local_ip", |s: &Self| s.local.ip()).doc("Own address."),
            u16("local_port", |s: &Self| s.local.port()).doc("Own port."),
            ip("remote_ip", |s: &Self| s.remote.ip())
                .doc("The peer's address as this socket knows it, before any REDIRECT."),
            u16("remote_port", |s: &Self| s.remote.port()).doc("The peer's port as this socket knows it."),
            opt_u32("owner_tgid", |s: &Self| s.owner.map(|t| t.0))
                .doc("The process that sent or read on it last, in the host's pid namespace; null until one did."),
            opt_u64("connect_start_ns", |s: &Self| s.connect_start.map(|m| m.0))
                .unit("ns, monotonic")
                .delta()
                .doc("When it began to connect; null if it accepted, or was open before the recording."),
            opt_u64("established_ns", |s: &Self| s.established.map(|m| m.0))
                .unit("ns, monotonic")
                .delta()
                .doc("When it was established; null if that was before the recording."),
            opt_u64("closed_ns", |s: &Self| s.closed.map(|m| m.0))
                .unit("ns, monotonic")
                .delta()
                .doc("When it was closed; null if it was still open."),
            u64("first_seen_ns", |s: &Self| s.first_seen.0).unit("ns, monotonic").delta().doc("First event on it."),
            u64("last_seen_ns", |s: &Self| s.last_seen.0).unit("ns, monotonic").delta().doc("Last event on it."),
            opt_i64("srtt_ns", |s: &Self| s.srtt.map(|d| d.0))
                .unit("ns")
                .delta()
                .doc("The kernel's smoothed round-trip time at the last event; null without a sample."),
            u64("lost_events", |s: &Self| s.lost_events)
                .doc("Events of this socket that the ring buffer had no room for."),
        ]
    }

    fn decode(view: &View<'_>, _: &Interner) -> Result<Decoded<Self>, PartError> {
        let cookie = view.number::<UInt64Type>("cookie")?;
        let netns = view.number::<UInt32Type>("netns")?;
        let local = view.addr("local_ip", "local_port")?;
        let remote = view.addr("remote_ip", "remote_port")?;
        let owner = view.number::<UInt32Type>("owner_tgid")?;
        let connect_start = view.number::<UInt64Type>("connect_start_ns")?;
        let established = view.number::<UInt64Type>("established_ns")?;
        let closed = view.number::<UInt64Type>("closed_ns")?;
        let first_seen = view.number::<UInt64Type>("first_seen_ns")?;
        let last_seen = view.number::<UInt64Type>("last_seen_ns")?;
        let srtt = view.number::<Int64Type>("srtt_ns")?;
        let lost_events = view.number::<UInt64Type>("lost_events")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                cookie: SocketCookie(cookie.get(i)?),
                netns: NetnsId(netns.get(i)?),
                local: LocalAddr(local.get(i)?),
                remote: PeerAddr(remote.get(i)?),
                owner: owner.opt(i).map(Tgid),
                connect_start: connect_start.opt(i).map(MonotonicNs),
                established: established.opt(i).map(MonotonicNs),
                closed: closed.opt(i).map(MonotonicNs),
                first_seen: MonotonicNs(first_seen.get(i)?),
                last_seen: MonotonicNs(last_seen.get(i)?),
                srtt: srtt.opt(i).map(DurationNs),
                lost_events: lost_events.get(i)?,
            })
        }))
    }
}
