//! `sockets`: one row for each socket, again whenever what is known of it has changed.

use super::{Decoded, Row, decode_rows};
use crate::column::{
    Column, flag, ip, opt_flag, opt_i64, opt_named, opt_text, opt_u16, opt_u32, opt_u64, texts, u16, u32, u64,
};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{BadCell, Flags, Interner, Numbers, TextLists, Texts, View};
use arrow::datatypes::{Int64Type, UInt16Type, UInt32Type, UInt64Type};
use meshdiff_model::{
    Close, DurationNs, Errno, LocalAddr, MonotonicNs, NetnsId, PeerAddr, Socket, SocketCookie, Tgid, TlsInfo,
    TlsVersion,
};

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
            opt_named("role", |s: &Self| s.role).doc(
                "`connected` or `accepted`: which end of the connection it is; null if it was open before the recording and \
                 nothing tells.",
            ),
            opt_i64("handshake_ns", |s: &Self| s.handshake.map(|d| d.0)).unit("ns").delta().doc(
                "How long the handshake took: connected, from the SYN until established; accepted, from the SYN-ACK until its \
                 acknowledgement.",
            ),
            opt_u16("connect_errno", |s: &Self| s.connect_error.map(|e| e.0))
                .doc("The kernel's number of the error with which a connect failed."),
            opt_named("closed_by", |s: &Self| s.close.map(|c| c.by)).doc(
                "Who ended the connection first: `local`, `remote`, or `kernel` if nobody answered any more; null while nobody \
                 did.",
            ),
            opt_flag("close_reset", |s: &Self| s.close.map(|c| c.reset))
                .doc("A reset was sent or received, apart from any FIN."),
            opt_i64("close_duration_ns", |s: &Self| s.close.and_then(|c| c.duration).map(|d| d.0))
                .unit("ns")
                .delta()
                .doc("From the first FIN until the socket was closed; null without a FIN, or while it is half open."),
            flag("tls", |s: &Self| s.tls.is_some()).doc("It sent TLS records."),
            opt_text("tls_offered", |s: &Self| s.tls.as_ref()?.offered.map(TlsVersion::name))
                .doc("The highest version that it offered as TLS client."),
            opt_text("tls_version", |s: &Self| s.tls.as_ref()?.version.map(TlsVersion::name))
                .doc("The version that it chose as TLS server."),
            opt_text("tls_sni", |s: &Self| s.tls.as_ref()?.sni.as_deref()).doc("The server's name that it asked for."),
            texts("tls_alpn_offered", |s: &Self, each: &mut dyn FnMut(&str)| {
                s.tls.iter().flat_map(|t| &t.alpn_offered).for_each(|p| each(p));
            })
            .doc("Protocols that it offered by ALPN, best first."),
            opt_text("tls_alpn", |s: &Self| s.tls.as_ref()?.alpn.as_deref())
                .doc("The protocol that it chose by ALPN; TLS 1.3 hides it."),
            flag("tls_plaintext_seen", |s: &Self| s.tls.as_ref().is_some_and(|t| t.plaintext_seen))
                .doc("What it sent was recognised before the application encrypted it."),
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
        let (life, tls) = (Life::of(view)?, Tls::of(view)?);
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
                role: life.as_ref().map(|l| l.role.opt_named(i)).transpose()?.flatten(),
                handshake: life.as_ref().and_then(|l| l.handshake.opt(i)).map(DurationNs),
                connect_error: life.as_ref().and_then(|l| l.error.opt(i)).map(Errno),
                close: life.as_ref().map(|l| l.close(i)).transpose()?.flatten(),
                tls: tls.as_ref().map(|tls| tls.get(i)).transpose()?.flatten(),
            })
        }))
    }
}

/// The columns about TLS.
struct Tls<'a> {
    tls: Flags<'a>,
    offered: Texts<'a>,
    version: Texts<'a>,
    sni: Texts<'a>,
    alpn_offered: TextLists<'a>,
    alpn: Texts<'a>,
    plaintext_seen: Flags<'a>,
}

impl<'a> Tls<'a> {
    /// `None` for captures from before they were there.
    fn of(view: &View<'a>) -> Result<Option<Self>, PartError> {
        if !view.has("tls") {
            return Ok(None);
        }
        Ok(Some(Self {
            tls: view.flag("tls")?,
            offered: view.text("tls_offered")?,
            version: view.text("tls_version")?,
            sni: view.text("tls_sni")?,
            alpn_offered: view.text_list("tls_alpn_offered")?,
            alpn: view.text("tls_alpn")?,
            plaintext_seen: view.flag("tls_plaintext_seen")?,
        }))
    }

    fn get(&self, i: usize) -> Result<Option<TlsInfo>, BadCell> {
        if !self.tls.get(i)? {
            return Ok(None);
        }
        Ok(Some(TlsInfo {
            offered: self.offered.opt_named(i)?,
            version: self.version.opt_named(i)?,
            sni: self.sni.opt(i).map(Into::into),
            alpn_offered: self.alpn_offered.get(i, |t| Some(t.into()))?,
            alpn: self.alpn.opt(i).map(Into::into),
            plaintext_seen: self.plaintext_seen.get(i)?,
        }))
    }
}

/// The columns about beginning and end.
struct Life<'a> {
    role: Texts<'a>,
    handshake: Numbers<'a, Int64Type>,
    error: Numbers<'a, UInt16Type>,
    by: Texts<'a>,
    reset: Flags<'a>,
    duration: Numbers<'a, Int64Type>,
}

impl<'a> Life<'a> {
    /// `None` for captures from before they were there.
    fn of(view: &View<'a>) -> Result<Option<Self>, PartError> {
        if !view.has("role") {
            return Ok(None);
        }
        Ok(Some(Self {
            role: view.text("role")?,
            handshake: view.number("handshake_ns")?,
            error: view.number("connect_errno")?,
            by: view.text("closed_by")?,
            reset: view.flag("close_reset")?,
            duration: view.number("close_duration_ns")?,
        }))
    }

    fn close(&self, i: usize) -> Result<Option<Close>, BadCell> {
        let Some(by) = self.by.opt_named(i)? else { return Ok(None) };
        Ok(Some(Close { by, reset: self.reset.get(i)?, duration: self.duration.opt(i).map(DurationNs) }))
    }
}
