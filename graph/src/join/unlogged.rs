//! Requests that a server's sidecar handed to its application, and of which no log entry came.

use super::ripe::Ripe;
use super::{AT_THE_END, Entry, Joiner};
use crate::stream::Offset;
use meshdiff_model::{Content, Link, MonotonicNs, NetnsId};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// A request that has no entry of the sidecar that passed it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unlogged {
    /// When the sidecar sent it to its application.
    pub(crate) at: MonotonicNs,
    /// Where.
    pub(crate) netns: NetnsId,
}

/// Exchanges that may be such requests, and entries that may be about one of them.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// By connection and place on it: the connecting end's address, and the request.
    exchanges: Vec<((usize, Offset), SocketAddr, Unlogged)>,
    /// An entry that could not be put on an exchange of its connection stands for one of them all the same.
    doubtful: HashMap<SocketAddr, usize>,
}

impl Candidates {
    /// Adds what was found later.
    pub(super) fn extend(&mut self, more: Self) {
        self.exchanges.extend(more.exchanges);
        for (address, n) in more.doubtful {
            *self.doubtful.entry(address).or_default() += n;
        }
    }

    /// Those for which no entry can stand.
    pub(super) fn settle(mut self) -> Vec<Unlogged> {
        self.exchanges.sort_by_key(|(place, ..)| *place);
        let mut found = Vec::new();
        for (_, address, unlogged) in self.exchanges {
            match self.doubtful.get_mut(&address).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None => found.push(unlogged),
            }
        }
        found
    }
}

impl Joiner<'_> {
    /// Those that the kernel saw whole between a sidecar and its application. What may merely not have been logged yet, or have been
    /// seen in part, is not among them: this is a lower bound of the entries that were lost.
    pub(super) fn unlogged_by_servers(
        &self,
        entries: &[Entry],
        due: &[bool],
        ripe: Option<&Ripe<'_>>,
        all: &mut super::Found,
    ) {
        let claimed: HashSet<usize> = entries.iter().filter_map(|e| e.upstream.matched()).collect();
        for (_, e) in entries.iter().enumerate().filter(|(i, e)| due[*i] && e.upstream.matched().is_none()) {
            if let Some(local) = e.log.upstream_local_address {
                *all.unlogged.doubtful.entry(local.0).or_default() += 1;
            }
        }
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let connection = &self.connections[exchange.connection];
            let request = exchange.stream.is_some() || matches!(exchange.request_content, Content::Http1Request { .. });
            let Some(client) = connection.client.filter(|_| connection.link == Some(Link::ServerLoopback) && request)
            else {
                continue;
            };
            if ripe.is_some_and(|ripe| !self.is_countable(index, claimed.contains(&index), ripe)) {
                continue;
            }
            all.counted.push(index);
            let unfinished = exchange.last.offset(AT_THE_END) >= self.input.window.1 || !exchange.has_response();
            let application = self.endpoints[client].tells_plaintext();
            if claimed.contains(&index) || exchange.lossy || exchange.beginning_unseen || unfinished || application {
                continue;
            }
            let unlogged = Unlogged { at: exchange.first, netns: self.endpoints[client].socket.netns };
            let place = (exchange.connection, exchange.request.0);
            all.unlogged.exchanges.push((place, connection.client_address(&self.endpoints), unlogged));
        }
    }
}
