//! Requests that were cut in two.
//!
//! On an encrypted connection an exchange is a turn: bytes there, bytes back. Session tickets, which a server sends when
//! the handshake is done, can come back between two parts of the first request, and then look like its response. Both proxies'
//! logs tell: no other request can begin on an HTTP/1 connection before the response to this one has.

use super::{HopInput, TOLERANCE, is_multiplexed};
use crate::connection::{Connection, Endpoint};
use crate::exchange::Exchange;
use meshdiff_model::{HopSide, MonotonicNs, Side};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// Joins what tickets parted. `cuts` holds each connection's exchanges.
pub(super) fn mend(
    input: HopInput<'_>,
    connections: &[Connection],
    endpoints: &[Endpoint],
    by_client: &HashMap<SocketAddr, Vec<usize>>,
    multiplexed: &HashSet<usize>,
    cuts: &mut [Vec<Exchange>],
) {
    // How many exchanges the one log of each side says to be one.
    let mut plans: HashMap<usize, [Option<Plan>; 2]> = HashMap::new();
    for log in input.access_logs.iter().filter(|l| l.access_log_type.is_terminal() && !is_multiplexed(l.protocol)) {
        let Some(window) = Window::of(log, input) else { continue };
        for &c in by_client.get(&window.client).into_iter().flatten() {
            let (list, to) = (&cuts[c], window.to);
            let parted = list.len() > 1 && list[0].after_handshake && list[1].first <= to;
            if !parted || multiplexed.contains(&c) || !is_meant(log, &connections[c], endpoints) {
                continue;
            }
            let readable = list[1].request_crossing(&connections[c], endpoints).ready;
            let is_first = match window.from {
                From::Sent(from) => list[0].first >= from,
                From::Created(start) => readable.is_some_and(|at| start.offset(TOLERANCE) < at),
            };
            if !is_first {
                continue;
            }
            let count = list.partition_point(|e| e.first <= to);
            let plan = &mut plans.entry(c).or_default()[usize::from(log.side == Some(Side::Client))];
            *plan = Some(if plan.is_none() { Plan::Join(count) } else { Plan::Contradictory });
        }
    }
    for (c, plans) in plans {
        let counts: Option<Vec<usize>> = plans.into_iter().flatten().map(Plan::count).collect();
        if let Some(count) = counts.and_then(|c| c.into_iter().max()) {
            let parts: Vec<Exchange> = cuts[c].drain(1..count).collect();
            parts.iter().for_each(|part| cuts[c][0].absorb(part));
        }
    }
}

enum Plan {
    Join(usize),
    /// Several logs speak of this time: turns are not what they seem.
    Contradictory,
}

impl Plan {
    const fn count(self) -> Option<usize> {
        match self {
            Self::Join(count) => Some(count),
            Self::Contradictory => None,
        }
    }
}

/// The time in which every turn on a connection between the sidecars belongs to the request that a log speaks of.
struct Window {
    /// The connection's client.
    client: SocketAddr,
    from: From,
    to: MonotonicNs,
}

enum From {
    /// The client's proxy sent the request after this.
    Sent(MonotonicNs),
    /// The server's proxy had read the request's beginning by then: it is the first of its connection if the second turn could not
    /// be read yet.
    Created(MonotonicNs),
}

impl Window {
    fn of(log: &HopSide, input: HopInput<'_>) -> Option<Self> {
        let start = input.clock.to_monotonic(log.start_time)?;
        let timings = &log.timings;
        if log.side == Some(Side::Client) {
            let sent = start.offset(timings.time_to_first_upstream_tx_byte?).offset(-TOLERANCE);
            let to = start.offset(timings.time_to_first_upstream_rx_byte?);
            return Some(Self { client: log.upstream_local_address?.0, from: From::Sent(sent), to });
        }
        let to = start.offset(timings.time_to_first_downstream_tx_byte?);
        Some(Self { client: log.downstream_direct_remote_address?.0, from: From::Created(start), to })
    }
}

fn is_meant(log: &HopSide, connection: &Connection, endpoints: &[Endpoint]) -> bool {
    let Some(client) = connection.client.map(|c| &endpoints[c].socket) else { return false };
    let there = if log.side == Some(Side::Client) {
        log.upstream_remote_address.map(|a| a.0)
    } else {
        log.downstream_local_address.map(|a| a.0)
    };
    there.is_none_or(|there| there == client.remote.0)
}
