//! Requests that a server's sidecar handed to its application, and of which no log entry came.

use super::{AT_THE_END, Entry, Joiner};
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

impl Joiner<'_> {
    /// Those that the kernel saw whole between a sidecar and its application. What may merely not have been logged yet, or have been
    /// seen in part, is not among them: this is a lower bound of the entries that were lost.
    pub(super) fn unlogged_by_servers(&self, entries: &[Entry]) -> Vec<Unlogged> {
        let claimed: HashSet<usize> = entries.iter().filter_map(|e| e.upstream.matched()).collect();
        // An entry that could not be put on an exchange of its connection stands for one of them all the same.
        let mut doubtful: HashMap<SocketAddr, usize> = HashMap::new();
        for e in entries.iter().filter(|e| e.upstream.matched().is_none()) {
            if let Some(local) = e.log.upstream_local_address {
                *doubtful.entry(local.0).or_default() += 1;
            }
        }
        let mut found = Vec::new();
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let connection = &self.connections[exchange.connection];
            let request = exchange.stream.is_some() || matches!(exchange.request_content, Content::Http1Request { .. });
            let Some(client) = connection.client.filter(|_| connection.link == Some(Link::ServerLoopback) && request)
            else {
                continue;
            };
            let unfinished = exchange.last.offset(AT_THE_END) >= self.input.window.1 || !exchange.has_response();
            let application = self.endpoints[client].tells_plaintext();
            if claimed.contains(&index) || exchange.lossy || exchange.beginning_unseen || unfinished || application {
                continue;
            }
            if let Some(left) = doubtful.get_mut(&connection.client_address(&self.endpoints)).filter(|left| **left > 0)
            {
                *left -= 1;
                continue;
            }
            found.push(Unlogged { at: exchange.first, netns: self.endpoints[client].socket.netns });
        }
        found
    }
}
