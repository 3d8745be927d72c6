//! Which exchanges an access log entry speaks of.

use super::{Joiner, Role, TOLERANCE, is_multiplexed};
use crate::connection::Connection;
use crate::exchange::Exchange;
use meshdiff_model::{AmbiguityReason, Content, HopSide, JoinOutcome, Link, MonotonicNs, Side, UnmatchedReason};
use std::net::SocketAddr;

type Found = JoinOutcome<usize>;

impl Joiner<'_> {
    /// The connections whose connecting end has an address, and that were seen within a time.
    fn connections_at(&self, address: SocketAddr, from: MonotonicNs, to: MonotonicNs) -> impl Iterator<Item = usize> {
        let list = self.by_client.get(&address).map_or(&[][..], Vec::as_slice);
        list.iter().copied().filter(move |&c| {
            let (first, last) = self.connections[c].seen(&self.endpoints);
            first <= to.offset(TOLERANCE) && (from <= last.offset(TOLERANCE) || self.waits(c))
        })
    }

    /// True if a connection was waiting for a response when the recording ended: silence is no end of it.
    fn waits(&self, connection: usize) -> bool {
        let Connection { client, server, .. } = self.connections[connection];
        let ends = || [client, server].into_iter().flatten().map(|i| &self.endpoints[i].socket);
        let open = ends().all(|s| s.closed.is_none()) && !self.unfinished.contains(&connection);
        open && self.exchanges[self.of_connection[connection].clone()].last().is_some_and(|e| !e.has_response())
    }

    /// Where the connecting end of a connection wanted to go, as it knows it.
    fn destination(&self, connection: &Connection) -> Option<SocketAddr> {
        connection.client.map(|client| self.endpoints[client].socket.remote.0)
    }

    /// The instant of an entry of the recording, if kernel events and clocks allow to look for it.
    fn instant(&self, log: &HopSide, start: Option<MonotonicNs>) -> Result<MonotonicNs, Found> {
        let Some(start) = start.filter(|_| self.has_kernel) else {
            return Err(JoinOutcome::Unmatched(UnmatchedReason::NoProbes));
        };
        if self.steps.hold(log.start_time) {
            return Err(JoinOutcome::Unmatched(UnmatchedReason::Contradiction));
        }
        if start < self.input.window.0 {
            return Err(JoinOutcome::Unmatched(UnmatchedReason::BeforeRecording));
        }
        Ok(start)
    }

    /// The exchange that a proxy served: the one on its downstream connection in which the stream began. `index` is the entry's place
    /// among the logs.
    pub(super) fn downstream(&self, index: usize, log: &HopSide, start: Option<MonotonicNs>) -> Found {
        let Some(_) = log.downstream_direct_remote_address else {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        };
        let start = match self.instant(log, start) {
            Ok(start) => start,
            Err(none) => return none,
        };
        self.downstream_candidates(log, start)
            .into_iter()
            .map(|c| self.served_on(c, index, log, start))
            .fold(JoinOutcome::Unmatched(UnmatchedReason::SocketNotSeen), prefer)
    }

    /// The one connection on which a proxy was asked, if the addresses tell it.
    pub(super) fn downstream_connection(&self, log: &HopSide, start: Option<MonotonicNs>) -> Option<usize> {
        only(self.downstream_candidates(log, start?))
    }

    fn downstream_candidates(&self, log: &HopSide, start: MonotonicNs) -> Vec<usize> {
        let Some(peer) = log.downstream_direct_remote_address else { return Vec::new() };
        // An application and its sidecar may use the same port for different destinations at the same time.
        let meant = |c: &usize| match (log.downstream_local_address, self.destination(&self.connections[*c])) {
            (Some(wanted), Some(destination)) => Some(wanted.0 == destination),
            _ => None,
        };
        let candidates: Vec<usize> = self
            .connections_at(peer.0, start, start)
            .filter(|c| match (log.side, self.connections[*c].link) {
                (_, None) => meant(c) != Some(false),
                (Some(Side::Client), Some(link)) => link == Link::ClientLoopback,
                (Some(Side::Server), Some(link)) => link == Link::Network,
                (None, Some(link)) => link != Link::ServerLoopback,
            })
            .collect();
        let any_meant = candidates.iter().any(|c| meant(c) == Some(true));
        candidates.into_iter().filter(|c| !any_meant || meant(c) == Some(true)).collect()
    }

    /// What is known of an entry on a connection that carries several requests at once; `None` for another connection.
    fn stream_on(&self, connection: usize, index: usize, log: &HopSide, role: Role) -> Option<Found> {
        if self.followed.contains(&connection) {
            let found = self.of_stream.get(&(index, role)).copied();
            return Some(found.unwrap_or(JoinOutcome::Ambiguous(AmbiguityReason::SeveralSockets)));
        }
        let multiplexed =
            self.multiplexed.contains(&connection) || (role == Role::Downstream && is_multiplexed(log.protocol));
        let encrypted = || {
            let ends = [self.connections[connection].client, self.connections[connection].server];
            ends.into_iter().flatten().any(|i| self.endpoints[i].speaks_tls())
        };
        multiplexed.then(|| {
            JoinOutcome::Unmatched(if encrypted() {
                UnmatchedReason::MultiplexedEncrypted
            } else {
                UnmatchedReason::ProtocolNotRead
            })
        })
    }

    /// The exchange of a connection in which a stream was created at `start`: after its request could be read, before its
    /// response was sent.
    fn served_on(&self, connection: usize, index: usize, log: &HopSide, start: MonotonicNs) -> Found {
        if let Some(found) = self.stream_on(connection, index, log, Role::Downstream) {
            return found;
        }
        // Told together with the others that were sent at once.
        if let Some(&found) = self.of_stream.get(&(index, Role::Downstream)) {
            return found;
        }
        let list = &self.exchanges[self.of_connection[connection].clone()];
        // Of one that nothing came after, not even a response, the end was not seen.
        let open = |e: &Exchange| self.waits(connection) && list.last().is_some_and(|last| std::ptr::eq(e, last));
        let ended_before = |e: &Exchange| !open(e) && self.answered_by_server(e).offset(TOLERANCE) < start;
        // The last exchange that the proxy had begun to read when the stream was created.
        let begun = self.read_until(list, start.offset(TOLERANCE));
        let Some(position) = begun.checked_sub(1) else {
            return JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen);
        };
        let exchange = &list[position];
        let before = position.checked_sub(1).map(|p| &list[p]);
        let near_both = before.is_some_and(|b| {
            !ended_before(b) && self.read_by_server(exchange).is_some_and(|at| start < at.offset(TOLERANCE))
        });
        if exchange.lossy {
            JoinOutcome::Unmatched(UnmatchedReason::EventsLost)
        } else if ended_before(exchange) {
            JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen)
        } else if exchange.pipelined || before.is_some_and(|b| b.pipelined) || near_both {
            JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges)
        } else if contradicts(log, exchange) {
            JoinOutcome::Unmatched(UnmatchedReason::Contradiction)
        } else {
            JoinOutcome::Matched(self.of_connection[connection].start + position)
        }
    }

    /// How many of a connection's exchanges the proxy had begun to read at an instant. Nearly always those are the ones that had begun by then,
    /// which takes two looks at a crossing to know, and not one for each halving.
    fn read_until(&self, list: &[Exchange], at: MonotonicNs) -> usize {
        let is_read = |e: &Exchange| self.read_by_server(e).is_some_and(|read| read <= at);
        let begun = list.partition_point(|e| e.first <= at);
        let last_is = begun.checked_sub(1).is_none_or(|last| is_read(&list[last]));
        if last_is && !list.get(begun).is_some_and(is_read) { begun } else { list.partition_point(is_read) }
    }

    /// When the accepting end of an exchange's connection had begun to read it, or the earliest that this can have been.
    pub(super) fn read_by_server(&self, exchange: &Exchange) -> Option<MonotonicNs> {
        let crossing = exchange.request_crossing(&self.connections[exchange.connection], &self.endpoints);
        crossing.ready.or(crossing.send).or(Some(exchange.first))
    }

    /// When the accepting end of an exchange's connection had sent the response, or the latest that this can have been.
    fn answered_by_server(&self, exchange: &Exchange) -> MonotonicNs {
        let crossing = exchange.response_crossing(&self.connections[exchange.connection], &self.endpoints, None);
        crossing.last_send.unwrap_or(exchange.last)
    }

    /// The exchange that a proxy made of a request: on its upstream connection, sent after Envoy encoded the request and
    /// answered before Envoy parsed the response.
    pub(super) fn upstream(&self, index: usize, log: &HopSide, start: Option<MonotonicNs>, downstream: Found) -> Found {
        if log.upstream_local_address.is_none() {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        }
        let start = match self.instant(log, start) {
            Ok(start) => start,
            Err(none) => return none,
        };
        let Some((from, to)) = self.upstream_window(log, start, downstream) else {
            return JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen);
        };
        self.upstream_candidates(log, start, downstream, (from, to))
            .into_iter()
            .map(|c| self.sent_on(c, index, log, from, to))
            .fold(JoinOutcome::Unmatched(UnmatchedReason::SocketNotSeen), prefer)
    }

    /// The one connection on which a request went on, if the addresses tell it.
    pub(super) fn upstream_connection(
        &self,
        log: &HopSide,
        start: Option<MonotonicNs>,
        downstream: Found,
    ) -> Option<usize> {
        let start = start?;
        let window = self.upstream_window(log, start, downstream)?;
        only(self.upstream_candidates(log, start, downstream, window))
    }

    /// From when until when a request can have gone on, by Envoy's marks; without them, the time in which the downstream exchange was
    /// under way bounds it.
    pub(super) fn upstream_window(
        &self,
        log: &HopSide,
        start: MonotonicNs,
        downstream: Found,
    ) -> Option<(MonotonicNs, MonotonicNs)> {
        let served = downstream.matched().map(|i| &self.exchanges[i]);
        let from = match log.timings.time_to_first_upstream_tx_byte {
            Some(mark) => start.offset(mark),
            None => start,
        };
        let to = match (log.timings.time_to_first_upstream_rx_byte, log.timings.extent(), served) {
            (Some(mark), _, _) => start.offset(mark),
            (None, Some(extent), _) => start.offset(extent),
            (None, None, Some(exchange)) => exchange.last,
            (None, None, None) => return None,
        };
        Some((from, to))
    }

    fn upstream_candidates(
        &self,
        log: &HopSide,
        start: MonotonicNs,
        downstream: Found,
        (from, to): (MonotonicNs, MonotonicNs),
    ) -> Vec<usize> {
        let Some(local) = log.upstream_local_address else { return Vec::new() };
        // A proxy's two sockets are in one network namespace: 127.0.0.6 and its ports are in all of them.
        let came_on = match downstream.matched() {
            Some(exchange) => Some(self.exchanges[exchange].connection),
            None => self.downstream_connection(log, Some(start)),
        };
        let netns = came_on.and_then(|c| self.connections[c].server).map(|server| self.endpoints[server].socket.netns);
        self.connections_at(local.0, from, to)
            .filter(|&c| {
                let connection = &self.connections[c];
                let client = connection.client.map(|i| &self.endpoints[i].socket);
                let server = connection.server.map(|i| &self.endpoints[i].socket);
                // Where the proxy is watched, so is its other socket.
                let of_proxy = netns.is_none_or(|netns| client.is_some_and(|s| s.netns == netns));
                let to_there = log.upstream_remote_address.is_none_or(|remote| match (client, server) {
                    (Some(client), _) => client.remote.0 == remote.0,
                    // A REDIRECT keeps the address of the machine, and takes another port.
                    (None, Some(server)) => server.local.ip() == remote.ip(),
                    (None, None) => false,
                });
                of_proxy && to_there && connection.link != Some(Link::ClientLoopback)
            })
            .collect()
    }

    /// The one exchange of a connection that began between the marks. The request leaves after its mark, so only the clocks'
    /// error counts at that end; the response's mark lies at least a round trip after the send, so that end needs no tolerance
    /// (and must not have any: a waiting request can follow on the same connection at once).
    fn sent_on(&self, connection: usize, index: usize, log: &HopSide, from: MonotonicNs, to: MonotonicNs) -> Found {
        if let Some(found) = self.stream_on(connection, index, log, Role::Upstream) {
            return found;
        }
        let list = &self.exchanges[self.of_connection[connection].clone()];
        let first = list.partition_point(|e| e.first < from.offset(-TOLERANCE));
        let mut fitting = list[first..].iter().take_while(|e| e.first <= to);
        let before = first.checked_sub(1).map(|p| &list[p]);
        match (fitting.next(), fitting.next()) {
            (None, _) if before.is_some_and(|b| b.lossy) => JoinOutcome::Unmatched(UnmatchedReason::EventsLost),
            (None, _) => JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen),
            (Some(_), Some(_)) => JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges),
            (Some(e), None) if e.lossy => JoinOutcome::Unmatched(UnmatchedReason::EventsLost),
            (Some(e), None) if e.pipelined || before.is_some_and(|b| b.pipelined) => {
                JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges)
            }
            (Some(e), None) if self.is_opaque(e, log) => JoinOutcome::Unmatched(UnmatchedReason::ProtocolNotRead),
            (Some(_), None) => JoinOutcome::Matched(self.of_connection[connection].start + first),
        }
    }

    /// True if an exchange does not begin with a request's head where one should be seen (with the application nothing is encrypted), or
    /// where several streams at once are to be expected: its turns may be anything.
    fn is_opaque(&self, exchange: &Exchange, log: &HopSide) -> bool {
        let connection = &self.connections[exchange.connection];
        let plain = connection.link == Some(Link::ServerLoopback) && connection.client.is_some();
        let head = matches!(exchange.request_content, Content::Http1Request { .. });
        !head && (plain || is_multiplexed(log.protocol))
    }
}

/// The one of several, if there is but one.
fn only(list: Vec<usize>) -> Option<usize> {
    if let [one] = list[..] { Some(one) } else { None }
}

/// The better of two outcomes for the same thing: a match beats none, two matches are ambiguous.
fn prefer(a: Found, b: Found) -> Found {
    match (a, b) {
        (JoinOutcome::Matched(_), JoinOutcome::Matched(_)) => JoinOutcome::Ambiguous(AmbiguityReason::SeveralSockets),
        (a @ JoinOutcome::Ambiguous(_), _) => a,
        (_, b @ JoinOutcome::Ambiguous(_)) => b,
        (a @ JoinOutcome::Matched(_), JoinOutcome::Unmatched(_)) => a,
        // What was nearly found says more than what was not there at all.
        (JoinOutcome::Unmatched(_), b @ JoinOutcome::Matched(_)) => b,
        (a @ JoinOutcome::Unmatched(UnmatchedReason::EventsLost), JoinOutcome::Unmatched(_)) => a,
        (JoinOutcome::Unmatched(_), b) => b,
    }
}

/// True if what the log says and what the kernel saw cannot be the same request.
fn contradicts(log: &HopSide, exchange: &Exchange) -> bool {
    let method = match (&log.method, &exchange.request_content) {
        (Some(logged), Content::Http1Request { method, .. }) => logged != method,
        _ => false,
    };
    let status = match (log.response_code, &exchange.response_content) {
        (Some(logged), Content::Http1Response { status }) => logged != *status,
        _ => false,
    };
    method || status
}
