//! Puts access log entries on exchanges, and exchanges together into hops.

use crate::connection::{Connection, Endpoint};
use crate::exchange::Exchange;
use meshdiff_model::{
    AmbiguityReason, ClockAnchor, Content, Crossing, DurationNs, HopProtocol, HopSide, JoinOutcome, JoinedHop, Link,
    Message, MonotonicNs, Side, Socket, SocketCookie, UnmatchedReason,
};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// How far an access log's instant may lie from the kernel's. `start_time` has steps of 1 µs, and the wall clock's
/// readings that anchor it are good to a few µs; the next exchange of a connection is always further away than this,
/// because at least one wake-up of another process lies between.
const TOLERANCE: DurationNs = DurationNs::from_micros(20);

/// What a recording holds, as far as the joins need it.
#[derive(Clone, Copy, Debug)]
pub struct HopInput<'a> {
    /// Sockets, one for each cookie.
    pub sockets: &'a [Socket],
    /// Messages; those of one socket and direction in the order of assembly.
    pub messages: &'a [Message],
    /// Access log entries, in any order.
    pub access_logs: &'a [HopSide],
    /// How the node's wall clock ran against its monotonic clock.
    pub clock: &'a ClockAnchor,
    /// First and last instant of the recording.
    pub window: (MonotonicNs, MonotonicNs),
}

/// Everything found, before it becomes a graph.
pub(crate) struct Joined {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) hops: Vec<JoinedHop>,
    /// HTTP requests that the kernel saw client applications send to their sidecar.
    pub(crate) client_messages: u64,
}

/// An access log entry and the exchanges it speaks of.
struct Entry {
    log: Arc<HopSide>,
    /// The start of its stream, by the wall clock.
    start: Option<MonotonicNs>,
    downstream: JoinOutcome<usize>,
    upstream: JoinOutcome<usize>,
}

struct Joiner<'a> {
    input: HopInput<'a>,
    endpoints: Vec<Endpoint>,
    connections: Vec<Connection>,
    exchanges: Vec<Exchange>,
    /// Exchanges of each connection, in order.
    of_connection: Vec<std::ops::Range<usize>>,
    /// Connections by the address of the end that connected.
    by_client: HashMap<SocketAddr, Vec<usize>>,
    /// Sockets of which events were lost.
    lossy: HashSet<SocketCookie>,
    /// Connections that carry several requests at once (HTTP/2 and later), by index: turns do not tell their requests apart.
    multiplexed: HashSet<usize>,
    has_kernel: bool,
}

pub(crate) fn join(input: HopInput<'_>) -> Joined {
    let endpoints = crate::connection::endpoints(input.sockets, input.messages);
    let connections = crate::connection::pair(&endpoints);
    let mut exchanges = Vec::new();
    let mut of_connection = Vec::with_capacity(connections.len());
    let mut by_client: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (i, connection) in connections.iter().enumerate() {
        let from = exchanges.len();
        exchanges.extend(crate::exchange::cut(i, connection, &endpoints));
        of_connection.push(from..exchanges.len());
        by_client.entry(connection.client_address(&endpoints)).or_default().push(i);
    }
    let has_kernel = !input.messages.is_empty();
    let lossy = endpoints.iter().filter(|e| e.socket.lost_events > 0).map(|e| e.socket.cookie).collect();
    let multiplexed = multiplexed(&input, &endpoints, &connections, &by_client);
    let joiner =
        Joiner { input, endpoints, connections, exchanges, of_connection, by_client, lossy, multiplexed, has_kernel };
    let (hops, client_messages) = joiner.hops();
    Joined { endpoints: joiner.endpoints, connections: joiner.connections, hops, client_messages }
}

impl Joiner<'_> {
    fn hops(&self) -> (Vec<JoinedHop>, u64) {
        let mut entries = self.entries();
        self.reject_double_claims(&mut entries);
        let server_of = self.server_entries(&entries);
        let by_upstream_address = logs_by_downstream_peer(&entries);

        let mut hops = Vec::new();
        let mut used = vec![false; entries.len()];
        for (i, entry) in entries.iter().enumerate().filter(|(_, e)| e.log.side == Some(Side::Client)) {
            used[i] = true;
            let server = match entry.upstream {
                JoinOutcome::Matched(exchange) => match server_of.get(&exchange) {
                    Some(&s) => JoinOutcome::Matched(s),
                    None => self.without_server_log(entry),
                },
                _ if local_reply(&entry.log) => JoinOutcome::Unmatched(UnmatchedReason::LocalReply),
                _ => self.server_by_logs(entry, &entries, &by_upstream_address),
            };
            if let JoinOutcome::Matched(s) = server {
                used[s] = true;
            }
            hops.push(self.hop(Some(entry), server.map(|s| &entries[s])));
        }
        for (_, entry) in entries.iter().enumerate().filter(|(i, _)| !used[*i]) {
            hops.push(self.hop(None, JoinOutcome::Matched(entry)));
        }
        let client_messages = self.kernel_only(&entries, &mut hops);
        hops.sort_by_key(|hop| self.start_key(hop));
        (hops, client_messages)
    }

    fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self
            .input
            .access_logs
            .iter()
            .filter(|log| log.access_log_type.is_terminal() && log.protocol != HopProtocol::Tcp)
            .map(|log| {
                let start = self.input.clock.to_monotonic(log.start_time);
                let downstream = self.downstream(log, start);
                let upstream = self.upstream(log, start, downstream);
                Entry { log: Arc::new(log.clone()), start, downstream, upstream }
            })
            .collect();
        entries.sort_by(|a, b| {
            (a.log.start_time, &a.log.node, &a.log.stream_id).cmp(&(b.log.start_time, &b.log.node, &b.log.stream_id))
        });
        entries
    }

    /// The connections whose connecting end has an address, and that were seen within a time.
    fn connections_at(&self, address: SocketAddr, from: MonotonicNs, to: MonotonicNs) -> impl Iterator<Item = usize> {
        let list = self.by_client.get(&address).map_or(&[][..], Vec::as_slice);
        list.iter().copied().filter(move |&c| {
            let (first, last) = self.connections[c].seen(&self.endpoints);
            first <= to.offset(TOLERANCE) && from <= last.offset(TOLERANCE)
        })
    }

    /// The exchange that a proxy served: the one on its downstream connection in which the stream began.
    fn downstream(&self, log: &HopSide, start: Option<MonotonicNs>) -> JoinOutcome<usize> {
        let Some(peer) = log.downstream_direct_remote_address else {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        };
        let Some(start) = start.filter(|_| self.has_kernel) else {
            return JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
        };
        if start < self.input.window.0 {
            return JoinOutcome::Unmatched(UnmatchedReason::BeforeRecording);
        }
        let mut found = JoinOutcome::Unmatched(UnmatchedReason::SocketNotSeen);
        for c in self.connections_at(peer.0, start, start) {
            let list = &self.exchanges[self.of_connection[c].clone()];
            // The last exchange that the proxy had begun to read when the stream was created.
            let Some(position) = list
                .partition_point(|e| self.read_by_server(e).is_some_and(|at| at <= start.offset(TOLERANCE)))
                .checked_sub(1)
            else {
                found = prefer(found, JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen));
                continue;
            };
            let exchange = &list[position];
            let index = self.of_connection[c].start + position;
            let outcome = if self.multiplexed.contains(&c) {
                JoinOutcome::Unmatched(UnmatchedReason::ProtocolNotRead)
            } else if start > exchange.last.offset(TOLERANCE) {
                JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen)
            } else if exchange.lossy {
                JoinOutcome::Unmatched(UnmatchedReason::EventsLost)
            } else if exchange.pipelined || position > 0 && list[position - 1].pipelined {
                JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges)
            } else if contradicts(log, exchange) {
                JoinOutcome::Unmatched(UnmatchedReason::Contradiction)
            } else {
                JoinOutcome::Matched(index)
            };
            found = prefer(found, outcome);
        }
        found
    }

    /// When the accepting end of an exchange's connection had begun to read it, or the earliest that this can have been.
    fn read_by_server(&self, exchange: &Exchange) -> Option<MonotonicNs> {
        let crossing = exchange.request_crossing(&self.connections[exchange.connection], &self.endpoints);
        crossing.ready.or(crossing.send).or(Some(exchange.first))
    }

    /// The exchange that a proxy made of a request: on its upstream connection, sent after Envoy encoded the request and
    /// answered before Envoy parsed the response.
    fn upstream(
        &self,
        log: &HopSide,
        start: Option<MonotonicNs>,
        downstream: JoinOutcome<usize>,
    ) -> JoinOutcome<usize> {
        let Some(local) = log.upstream_local_address else {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        };
        let Some(start) = start.filter(|_| self.has_kernel) else {
            return JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
        };
        // Without Envoy's marks, the time in which the downstream exchange was under way bounds it.
        let served = downstream.matched().map(|i| &self.exchanges[i]);
        let from = match log.timings.time_to_first_upstream_tx_byte {
            Some(mark) => start.offset(mark),
            None => start,
        };
        let to = match (log.timings.time_to_first_upstream_rx_byte, log.timings.extent(), served) {
            (Some(mark), _, _) => start.offset(mark),
            (None, Some(extent), _) => start.offset(extent),
            (None, None, Some(exchange)) => exchange.last,
            (None, None, None) => return JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen),
        };
        // The request leaves after its mark, so only the clocks' error counts at that end; the response's mark lies at least a
        // round trip after the send, so that end needs no tolerance (and must not have any: a waiting request can
        // follow on the same connection at once).
        let early = from.offset(-TOLERANCE);
        let late = to;
        let mut found = JoinOutcome::Unmatched(UnmatchedReason::SocketNotSeen);
        for c in self.connections_at(local.0, from, to) {
            let remote_differs = log.upstream_remote_address.is_some_and(|remote| {
                let client = self.connections[c].client.map(|i| self.endpoints[i].socket.remote.0);
                client.is_some_and(|seen| seen != remote.0)
            });
            if remote_differs {
                continue;
            }
            let list = &self.exchanges[self.of_connection[c].clone()];
            let first = list.partition_point(|e| e.first < early);
            let mut fitting = list[first..].iter().take_while(|e| e.first <= late);
            let outcome = match (fitting.next(), fitting.next()) {
                _ if self.multiplexed.contains(&c) => JoinOutcome::Unmatched(UnmatchedReason::ProtocolNotRead),
                (None, _) => JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen),
                (Some(_), Some(_)) => JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges),
                (Some(e), None) if e.lossy => JoinOutcome::Unmatched(UnmatchedReason::EventsLost),
                (Some(e), None) if e.pipelined => JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges),
                (Some(_), None) => JoinOutcome::Matched(self.of_connection[c].start + first),
            };
            found = prefer(found, outcome);
        }
        found
    }

    /// An exchange that several entries claim belongs to none of them.
    fn reject_double_claims(&self, entries: &mut [Entry]) {
        let mut down: HashMap<usize, u32> = HashMap::new();
        let mut up: HashMap<usize, u32> = HashMap::new();
        for entry in entries.iter() {
            if let JoinOutcome::Matched(e) = entry.downstream {
                *down.entry(e).or_default() += 1;
            }
            if let JoinOutcome::Matched(e) = entry.upstream {
                *up.entry(e).or_default() += 1;
            }
        }
        let several = |claims: &HashMap<usize, u32>, e| claims.get(&e).is_some_and(|n| *n > 1);
        for entry in entries {
            if let JoinOutcome::Matched(e) = entry.downstream
                && several(&down, e)
            {
                entry.downstream = JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs);
            }
            if let JoinOutcome::Matched(e) = entry.upstream
                && several(&up, e)
            {
                entry.upstream = JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs);
            }
        }
    }

    /// The server-side entry of each exchange, as the server's proxy served it.
    fn server_entries(&self, entries: &[Entry]) -> HashMap<usize, usize> {
        let server = entries.iter().enumerate().filter(|(_, e)| e.log.side != Some(Side::Client));
        server.filter_map(|(i, e)| e.downstream.matched().map(|exchange| (exchange, i))).collect()
    }

    fn without_server_log<T>(&self, entry: &Entry) -> JoinOutcome<T> {
        if self.near_the_end(entry) {
            return JoinOutcome::Unmatched(UnmatchedReason::StillOpen);
        }
        JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing)
    }

    /// True if the entry's stream ended after the recording's end.
    fn near_the_end(&self, entry: &Entry) -> bool {
        let extent = entry.log.timings.extent().unwrap_or_default();
        entry.start.is_some_and(|s| s.offset(extent) > self.input.window.1)
    }

    /// The server's entry by what the two logs say alone: the client's upstream address is the server's downstream peer, and the
    /// server's stream lies within the client's upstream time.
    fn server_by_logs(
        &self,
        client: &Entry,
        entries: &[Entry],
        by_peer: &HashMap<SocketAddr, Vec<usize>>,
    ) -> JoinOutcome<usize> {
        let (Some(local), Some(start)) = (client.log.upstream_local_address, client.start) else {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        };
        let slack = DurationNs::from_millis(1);
        let from = start.offset(client.log.timings.time_to_first_upstream_tx_byte.unwrap_or_default() - slack);
        let to = start.offset(client.log.timings.extent().unwrap_or_default() + slack);
        let same_request = |s: &Entry| match (&client.log.request_id, &s.log.request_id) {
            (Some(a), Some(b)) => a.same_request(b),
            _ => true,
        };
        let mut fitting = by_peer
            .get(&local.0)
            .into_iter()
            .flatten()
            .copied()
            .filter(|&i| entries[i].start.is_some_and(|s| s >= from && s <= to) && same_request(&entries[i]));
        match (fitting.next(), fitting.next()) {
            (None, _) => self.without_server_log(client),
            (Some(only), None) => JoinOutcome::Matched(only),
            (Some(_), Some(_)) => JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs),
        }
    }

    /// Adds a hop for every request that the kernel saw an application send to its sidecar and that no log entry speaks of. Returns how many
    /// requests the kernel saw in all.
    fn kernel_only(&self, entries: &[Entry], hops: &mut Vec<JoinedHop>) -> u64 {
        let claimed: HashSet<usize> = entries.iter().filter_map(|e| e.downstream.matched()).collect();
        let doubtful: HashSet<SocketAddr> = entries
            .iter()
            .filter(|e| matches!(e.downstream, JoinOutcome::Ambiguous(_)))
            .filter_map(|e| e.log.downstream_direct_remote_address.map(|a| a.0))
            .collect();
        let mut seen = 0;
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let connection = &self.connections[exchange.connection];
            let request = matches!(exchange.request_content, Content::Http1Request { .. });
            if connection.link != Some(Link::ClientLoopback) || connection.client.is_none() || !request {
                continue;
            }
            seen += 1;
            // An entry that could not choose among a connection's exchanges stands for them: counting both would count twice.
            if claimed.contains(&index) || doubtful.contains(&connection.client_address(&self.endpoints)) {
                continue;
            }
            let reason = if exchange.last.offset(DurationNs::from_millis(1)) >= self.input.window.1
                || !exchange.has_response()
            {
                UnmatchedReason::StillOpen
            } else {
                UnmatchedReason::ClientLogMissing
            };
            let mut hop = self.empty_hop(JoinOutcome::Unmatched(reason), JoinOutcome::Unmatched(reason));
            self.put(&mut hop, Link::ClientLoopback, exchange, None);
            hops.push(hop);
        }
        seen
    }

    fn empty_hop(&self, client_half: JoinOutcome<()>, server_half: JoinOutcome<()>) -> JoinedHop {
        JoinedHop {
            client_log: None,
            server_log: None,
            sockets: [None; 6],
            request: [Crossing::default(); 3],
            response: [Crossing::default(); 3],
            connection_setup: None,
            request_content: Content::Unknown,
            response_content: Content::Unknown,
            client_connect: None,
            client_half,
            server_half,
        }
    }

    /// Fills in one connection of a hop.
    fn put(&self, hop: &mut JoinedHop, link: Link, exchange: &Exchange, response_not_before: Option<MonotonicNs>) {
        let connection = &self.connections[exchange.connection];
        let at = link as usize;
        hop.sockets[2 * at] = connection.client.map(|i| self.endpoints[i].socket.cookie);
        hop.sockets[2 * at + 1] = connection.server.map(|i| self.endpoints[i].socket.cookie);
        hop.request[at] = exchange.request_crossing(connection, &self.endpoints);
        hop.response[at] = exchange.response_crossing(connection, &self.endpoints, response_not_before);
        if link == Link::ClientLoopback {
            hop.request_content = exchange.request_content.clone();
            hop.response_content = exchange.response_content.clone();
            let client = connection.client.map(|i| &self.endpoints[i].socket);
            if exchange.first_on_connection
                && let Some((start, end)) = client.and_then(|s| s.connect_start.zip(s.established))
            {
                hop.client_connect = Some(end - start);
            }
        }
    }

    fn hop(&self, client: Option<&Entry>, server: JoinOutcome<&Entry>) -> JoinedHop {
        let mut hop = self.empty_hop(
            JoinOutcome::Unmatched(UnmatchedReason::ClientLogMissing),
            match &server {
                JoinOutcome::Matched(_) => JoinOutcome::Matched(()),
                JoinOutcome::Ambiguous(r) => JoinOutcome::Ambiguous(*r),
                JoinOutcome::Unmatched(r) => JoinOutcome::Unmatched(*r),
            },
        );
        let server = server.matched();
        // Inside out: what marks a response on an outer connection must come after it was ready on the inner one.
        let mut inner: Option<MonotonicNs> = None;
        if let Some(server) = server {
            hop.server_log = Some(server.log.clone());
            if let JoinOutcome::Matched(e) = server.upstream {
                self.put(&mut hop, Link::ServerLoopback, &self.exchanges[e], None);
                inner = hop.response[Link::ServerLoopback as usize].ready;
            }
        }
        let network = server.and_then(|s| s.downstream.matched()).or_else(|| client.and_then(|c| c.upstream.matched()));
        if let Some(e) = network {
            self.put(&mut hop, Link::Network, &self.exchanges[e], inner);
            hop.connection_setup = self.setup_of(&self.exchanges[e], client);
        }
        if let Some(client) = client {
            hop.client_log = Some(client.log.clone());
            if let JoinOutcome::Matched(e) = client.downstream {
                self.put(&mut hop, Link::ClientLoopback, &self.exchanges[e], None);
            }
        }
        self.judge(&mut hop, client, server);
        hop
    }

    /// S3's connect and handshake, if this exchange is the first on it and the connect began after the proxy had the request.
    fn setup_of(&self, exchange: &Exchange, client: Option<&Entry>) -> Option<(MonotonicNs, MonotonicNs)> {
        let connection = &self.connections[exchange.connection];
        let end = &self.endpoints[connection.client?];
        let start = end.socket.connect_start?;
        let served = client?.downstream.matched()?;
        let had = self.read_by_server(&self.exchanges[served])?;
        let sent = exchange.request_crossing(connection, &self.endpoints).send?;
        if !exchange.first_on_connection || start < had || start > sent {
            return None;
        }
        let handshake = end.egress.pieces.iter().filter(|p| p.content == Content::TlsHandshake && p.last <= sent);
        let done = handshake.map(|p| p.last).max().or(end.socket.established)?;
        Some((start, done.min(sent)))
    }

    /// Sets both halves' outcomes from what is there.
    fn judge(&self, hop: &mut JoinedHop, client: Option<&Entry>, server: Option<&Entry>) {
        let whole = |c: &Crossing| c.send.is_some() && c.ready.is_some();
        if let Some(client) = client {
            let local = local_reply(&client.log);
            let loopback = client.downstream.map(|_| ());
            hop.client_half = match (loopback, &client.upstream) {
                (JoinOutcome::Matched(()), _) if local => JoinOutcome::Matched(()),
                (JoinOutcome::Matched(()), up) => up.map(|_| ()),
                (other, _) => other,
            };
            let links: &[Link] = if local { &[Link::ClientLoopback] } else { &[Link::ClientLoopback, Link::Network] };
            let seen = links.iter().all(|&l| whole(hop.request_on(l)) && whole(hop.response_on(l)))
                && hop.response_on(Link::ClientLoopback).last_recv.is_some();
            if matches!(hop.client_half, JoinOutcome::Matched(())) && !seen {
                hop.client_half = JoinOutcome::Unmatched(self.why_unseen(hop, client));
            }
        }
        if let Some(server) = server {
            hop.server_half = match (server.downstream.map(|_| ()), server.upstream.map(|_| ())) {
                (JoinOutcome::Matched(()), _) if local_reply(&server.log) => JoinOutcome::Matched(()),
                (JoinOutcome::Matched(()), up) => up,
                (other, _) => other,
            };
            let links = if local_reply(&server.log) { &[][..] } else { &[Link::ServerLoopback][..] };
            let seen = links.iter().all(|&l| whole(hop.request_on(l)) && whole(hop.response_on(l)));
            if matches!(hop.server_half, JoinOutcome::Matched(())) && !seen {
                hop.server_half = JoinOutcome::Unmatched(self.why_unseen(hop, server));
            }
        }
    }

    /// Order of start: by the earliest instant known.
    fn start_key(&self, hop: &JoinedHop) -> (MonotonicNs, Option<SocketCookie>) {
        let kernel = hop.request.iter().filter_map(|c| c.send.or(c.ready)).min();
        let log = || {
            let log = hop.client_log.as_ref().or(hop.server_log.as_ref())?;
            self.input.clock.to_monotonic(log.start_time)
        };
        (kernel.or_else(log).unwrap_or_default(), hop.sockets.iter().flatten().next().copied())
    }

    /// Why a socket's instants are missing although its exchange was found.
    fn why_unseen(&self, hop: &JoinedHop, entry: &Entry) -> UnmatchedReason {
        let lost = hop.sockets.iter().flatten().any(|cookie| self.lossy.contains(cookie));
        if lost {
            UnmatchedReason::EventsLost
        } else if self.near_the_end(entry) {
            UnmatchedReason::StillOpen
        } else {
            UnmatchedReason::SocketNotSeen
        }
    }
}

/// The connections that carry several requests at once: those that say so themselves, and those of which a proxy does (on an encrypted
/// connection nothing else tells).
fn multiplexed(
    input: &HopInput<'_>,
    endpoints: &[Endpoint],
    connections: &[Connection],
    by_client: &HashMap<SocketAddr, Vec<usize>>,
) -> HashSet<usize> {
    let preface = |i: usize| endpoints[i].egress.pieces.iter().any(|p| p.content == Content::Http2Preface);
    let mut found: HashSet<usize> =
        (0..connections.len()).filter(|&c| connections[c].client.is_some_and(preface)).collect();
    for log in input.access_logs.iter().filter(|l| matches!(l.protocol, HopProtocol::Http2 | HopProtocol::Http3)) {
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

/// The better of two outcomes for the same thing: a match beats none, two matches are ambiguous.
fn prefer(a: JoinOutcome<usize>, b: JoinOutcome<usize>) -> JoinOutcome<usize> {
    match (a, b) {
        (JoinOutcome::Matched(_), JoinOutcome::Matched(_)) => JoinOutcome::Ambiguous(AmbiguityReason::SeveralSockets),
        (a @ (JoinOutcome::Ambiguous(_) | JoinOutcome::Matched(_)), JoinOutcome::Unmatched(_)) => a,
        (a @ JoinOutcome::Ambiguous(_), _) => a,
        (_, b) => b,
    }
}

/// True if Envoy answered the request itself: no upstream host was involved.
fn local_reply(log: &HopSide) -> bool {
    log.upstream_local_address.is_none() && log.upstream_remote_address.is_none()
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

fn logs_by_downstream_peer(entries: &[Entry]) -> HashMap<SocketAddr, Vec<usize>> {
    let mut map: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (i, entry) in entries.iter().enumerate().filter(|(_, e)| e.log.side != Some(Side::Client)) {
        if let Some(peer) = entry.log.downstream_direct_remote_address {
            map.entry(peer.0).or_default().push(i);
        }
    }
    map
}
