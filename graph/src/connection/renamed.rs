//! Connections of which one end knows a port that the other end never had.
//!
//! A REDIRECT keeps the port of who connects, unless that would make two connections one: an application may use one port towards two
//! services at once, and behind the REDIRECT both go to the sidecar's port. The kernel then gives the later one another source port
//! (`get_unique_tuple` in `nf_nat_core.c`), also while the earlier one is only remembered (TIME_WAIT). Only the sidecar sees that port,
//! and its log names it. What NAT does not change are the sequence numbers.

use super::{Endpoint, Fit, fit, is_redirected, is_server};
use meshdiff_model::SeqNo;
use std::collections::HashMap;
use std::net::IpAddr;

/// Pairs of ends that have no peer by their addresses: one connected, the other accepted behind a REDIRECT. The first number of a
/// connection is chosen at random from 32 bits, in each direction; ends that several others fit are left alone.
pub(super) fn pairs(endpoints: &[Endpoint], peer: &[Option<usize>]) -> Vec<(usize, usize)> {
    let alone = || endpoints.iter().enumerate().filter(|&(i, _)| peer[i].is_none());
    let mut connected: HashMap<(IpAddr, SeqNo), Vec<usize>> = HashMap::new();
    for (i, e) in alone().filter(|(_, e)| !is_redirected(&e.socket) && is_server(e) != Some(true)) {
        if let Some(first) = e.egress.first() {
            connected.entry((e.socket.local.0.ip(), first)).or_default().push(i);
        }
    }
    let mut chosen: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, accepted) in alone().filter(|(_, e)| is_redirected(&e.socket)) {
        let Some(first) = accepted.ingress.first() else { continue };
        let candidates = connected.get(&(accepted.socket.remote.0.ip(), first)).into_iter().flatten();
        let mut fitting = candidates.filter(|&&j| {
            let client = &endpoints[j];
            let answers = accepted.egress.first().zip(client.ingress.first());
            client.socket.local.0.port() != accepted.socket.remote.0.port()
                && answers.is_none_or(|(sent, received)| sent == received)
                && fit(client, accepted) >= Fit::Likely
        });
        if let (Some(&j), None) = (fitting.next(), fitting.next()) {
            chosen.entry(j).or_default().push(i);
        }
    }
    let mut pairs: Vec<_> = chosen.into_iter().filter_map(|(j, by)| (by.len() == 1).then(|| (j, by[0]))).collect();
    pairs.sort_unstable();
    pairs
}
