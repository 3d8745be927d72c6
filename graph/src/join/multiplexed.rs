//! Connections on which turns do not tell requests apart.

use super::{HopInput, TOLERANCE, is_multiplexed};
use crate::connection::{Connection, Endpoint};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// The connections that carry several requests at once: those that say so themselves, and those of which a proxy does (on an encrypted
/// connection nothing else tells).
pub(super) fn find(
    input: HopInput<'_>,
    endpoints: &[Endpoint],
    connections: &[Connection],
    by_client: &HashMap<SocketAddr, Vec<usize>>,
) -> HashSet<usize> {
    let preface = |i: usize| endpoints[i].egress.spoken.preface;
    let mut found: HashSet<usize> =
        (0..connections.len()).filter(|&c| connections[c].client.is_some_and(preface)).collect();
    for log in input.access_logs.iter().filter(|l| l.access_log_type.is_terminal() && is_multiplexed(l.protocol)) {
        let Some(peer) = log.downstream_direct_remote_address else { continue };
        let at = input.clock.to_monotonic(log.start_time);
        for &c in by_client.get(&peer.0).into_iter().flatten() {
            let (first, last) = connections[c].seen(endpoints);
            if at.is_none_or(|at| first <= at.offset(TOLERANCE) && at <= last.offset(TOLERANCE)) {
                found.insert(c);
            }
        }
    }
    found
}
