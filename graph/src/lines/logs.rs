//! What access logs say of single connections: whose they are, and what is spoken on them.

use super::protocol::LineProtocol;
use meshdiff_model::{ClockAnchor, DurationNs, HopSide, MonotonicNs};
use std::collections::HashMap;
use std::net::SocketAddr;

/// How far before or after a socket's life a log may put its stream: what the wall clock's anchor is good to.
const TOLERANCE: DurationNs = DurationNs::from_millis(1);

/// One stream, as a log tells it.
struct Stream<'a> {
    log: &'a HopSide,
    start: Option<MonotonicNs>,
}

/// Access logs by the addresses that they name.
#[derive(Default)]
pub(super) struct Logs<'a> {
    /// By the peer of Envoy's downstream connection.
    downstream: HashMap<SocketAddr, Vec<Stream<'a>>>,
    /// By Envoy's own end of its upstream connection.
    upstream: HashMap<SocketAddr, Vec<Stream<'a>>>,
}

impl<'a> Logs<'a> {
    pub(super) fn of(logs: &'a [HopSide], clock: &ClockAnchor) -> Self {
        let mut all = Self::default();
        for log in logs.iter().filter(|l| l.access_log_type.is_terminal()) {
            let start = clock.to_monotonic(log.start_time);
            if let Some(peer) = log.downstream_direct_remote_address {
                all.downstream.entry(peer.0).or_default().push(Stream { log, start });
            }
            if let Some(own) = log.upstream_local_address {
                all.upstream.entry(own.0).or_default().push(Stream { log, start });
            }
        }
        all
    }

    /// The proxy that accepted a connection from `client`, and what it says of the stream; `None` if no log tells, or several proxies do.
    pub(super) fn acceptor(&self, client: SocketAddr, life: (MonotonicNs, MonotonicNs)) -> Option<&'a HopSide> {
        only(self.downstream.get(&client)?, life)
    }

    /// The proxy that connected from `own`; `None` if no log tells, or several proxies do.
    pub(super) fn connector(&self, own: SocketAddr, life: (MonotonicNs, MonotonicNs)) -> Option<&'a HopSide> {
        only(self.upstream.get(&own)?, life)
    }

    /// Protocol and encryption of a connection from `client` that a proxy accepted.
    pub(super) fn spoken(
        &self,
        client: SocketAddr,
        life: (MonotonicNs, MonotonicNs),
    ) -> Option<(Option<LineProtocol>, bool)> {
        let log = self.acceptor(client, life)?;
        Some((LineProtocol::of_log(log.protocol), log.downstream_tls))
    }
}

/// The first of the streams that lie in the life of a connection, if all of them are one proxy's.
fn only<'a>(streams: &[Stream<'a>], (first, last): (MonotonicNs, MonotonicNs)) -> Option<&'a HopSide> {
    let mut within = streams.iter().filter(|s| {
        let Some(start) = s.start else { return true };
        let end = start.offset(s.log.timings.extent().unwrap_or_default());
        start <= last.offset(TOLERANCE) && first <= end.offset(TOLERANCE)
    });
    let one = within.next()?.log;
    within.all(|s| s.log.node == one.node && s.log.protocol == one.protocol).then_some(one)
}
