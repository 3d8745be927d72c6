//! What access logs say of single connections: whose they are, and what is spoken on them.

use super::places::life;
use super::protocol::LineProtocol;
use crate::connection::{Connection, Endpoint};
use meshdiff_model::{ClockAnchor, DurationNs, HopProtocol, HopSide, MonotonicNs, NodeId};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// How far before or after a socket's life a log may put its stream: what the wall clock's anchor is good to.
const TOLERANCE: DurationNs = DurationNs::from_millis(1);

/// From when until when a connection was seen.
type Life = (MonotonicNs, MonotonicNs);

/// What a log says of the connection of one of its streams.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) node: NodeId,
    pub(super) upstream_cluster: Option<Arc<str>>,
    protocol: HopProtocol,
    downstream_tls: bool,
}

/// What all logs say of one connection that was seen.
#[derive(Debug)]
struct Asked {
    life: Life,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    /// None speaks of it.
    None,
    /// What the first one says, whose place among the logs that is; all others are of the same proxy and protocol.
    One(u64, Box<Told>),
    /// Several proxies do.
    Several,
}

/// What access logs say of connections, by the addresses that they name.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// By the peer of Envoy's downstream connection.
    downstream: HashMap<SocketAddr, Vec<Asked>>,
    /// By Envoy's own end of its upstream connection.
    upstream: HashMap<SocketAddr, Vec<Asked>>,
}

impl Logs {
    /// Nothing is said yet of these connections.
    pub(super) fn about(endpoints: &[Endpoint], connections: &[Connection]) -> Self {
        let mut all = Self::default();
        let ask = |map: &mut HashMap<SocketAddr, Vec<Asked>>, address, life| {
            let list = map.entry(address).or_default();
            if list.iter().all(|a| a.life != life) {
                list.push(Asked { life, answer: Answer::None });
            }
        };
        for c in connections {
            ask(&mut all.downstream, c.client_address(endpoints), c.seen(endpoints));
            match (c.client.map(|i| &endpoints[i].socket), c.server.map(|i| &endpoints[i].socket)) {
                (Some(client), _) => {
                    ask(&mut all.downstream, client.local.0, life(client));
                    ask(&mut all.upstream, client.local.0, life(client));
                }
                (None, Some(server)) => ask(&mut all.upstream, server.remote.0, life(server)),
                (None, None) => {}
            }
        }
        all
    }

    /// Adds an entry; `place` says where it is among all of the recording.
    pub(super) fn add(&mut self, place: u64, log: &HopSide, clock: &ClockAnchor) {
        if !log.access_log_type.is_terminal() {
            return;
        }
        let peer = log.downstream_direct_remote_address.and_then(|a| self.downstream.get_mut(&a.0));
        let own = log.upstream_local_address.and_then(|a| self.upstream.get_mut(&a.0));
        if peer.is_none() && own.is_none() {
            return;
        }
        let start = clock.to_monotonic(log.start_time);
        let end = start.map(|start| start.offset(log.timings.extent().unwrap_or_default()));
        for asked in peer.into_iter().chain(own).flatten() {
            let (first, last) = asked.life;
            let after = start.is_some_and(|start| last.offset(TOLERANCE) < start);
            let before = end.is_some_and(|end| end.offset(TOLERANCE) < first);
            if !after && !before {
                asked.answer.add(place, log);
            }
        }
    }

    /// The proxy that accepted a connection from `client`, and what it says of the stream; `None` if no log tells, or several proxies do.
    pub(super) fn acceptor(&self, client: SocketAddr, life: Life) -> Option<&Told> {
        answer(&self.downstream, client, life)
    }

    /// The proxy that connected from `own`; `None` if no log tells, or several proxies do.
    pub(super) fn connector(&self, own: SocketAddr, life: Life) -> Option<&Told> {
        answer(&self.upstream, own, life)
    }

    /// Protocol and encryption of a connection from `client` that a proxy accepted.
    pub(super) fn spoken(&self, client: SocketAddr, life: Life) -> Option<(Option<LineProtocol>, bool)> {
        let told = self.acceptor(client, life)?;
        Some((LineProtocol::of_log(told.protocol), told.downstream_tls))
    }
}

fn answer(map: &HashMap<SocketAddr, Vec<Asked>>, address: SocketAddr, life: Life) -> Option<&Told> {
    let asked = map.get(&address)?.iter().find(|a| a.life == life)?;
    if let Answer::One(_, told) = &asked.answer { Some(told) } else { None }
}

impl Answer {
    fn add(&mut self, place: u64, log: &HopSide) {
        match self {
            Self::One(_, told) if told.node != log.node || told.protocol != log.protocol => *self = Self::Several,
            Self::One(first, _) if *first < place => {}
            Self::None | Self::One(..) => {
                let told = Told {
                    node: log.node.clone(),
                    upstream_cluster: log.upstream_cluster.clone(),
                    protocol: log.protocol,
                    downstream_tls: log.downstream_tls,
                };
                *self = Self::One(place, Box::new(told));
            }
            Self::Several => {}
        }
    }
}
