//! What a proxy tried besides the attempt whose response its client got: retries, and hedges.
//!
//! The entry of a request names the upstream sockets of one attempt only. Two things tell of the others: the router's own entries
//! (`UpstreamEnd`, one for each attempt, where the mesh is configured to log them), and where it is not, the entries of the servers
//! that were asked, on connections of the client's proxy that no other entry speaks of. Either way an attempt is an exchange on a connection
//! of its own; one that is not found stays unknown, and with it how the request's time went before the last.

use super::halves::conflict;
use super::{Entry, HopInput, Joiner, TOLERANCE};
use crate::mesh::comparable;
use meshdiff_model::{
    AccessLogType, Attempt, DurationNs, HopProtocol, HopSide, JoinOutcome, JoinedHop, Link, MonotonicNs, NetnsId,
    NodeId, Side, UnmatchedReason,
};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Two entries of one Envoy name the same instant if they differ by no more: both starts are cut to whole microseconds, and what is
/// counted from them is counted by another clock.
const SAME: DurationNs = DurationNs::from_micros(5);

/// Which attempts a request was made of, by the router's own entries; places are those among the access logs.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// The one that the request's entry tells of.
    answered: Option<usize>,
    /// The others, in order of their beginning.
    others: Vec<usize>,
    /// True if these are as many as the request's entry counts.
    is_whole: bool,
}

/// Whose attempts are looked for: requests of one proxy on one connection (if that is told) with one id.
type Key<'a> = (&'a NodeId, Option<SocketAddr>, Option<String>);

/// The router's entries, by the place of their request's.
#[derive(Debug, Default)]
pub(super) struct Tied(HashMap<usize, Tries>);

impl Tied {
    /// Ties each of the router's entries to the one request that it can be an attempt of.
    pub(super) fn of(all: &[HopSide], requests: &[(usize, &HopSide, Option<MonotonicNs>)]) -> Self {
        let attempts = || all.iter().enumerate().filter(|(_, l)| is_attempt(l));
        if attempts().next().is_none() {
            return Self::default();
        }
        let id = |log: &HopSide| log.request_id.as_ref().map(comparable);
        let peer = |log: &HopSide| log.downstream_direct_remote_address.map(|a| a.0);
        let mut by_key: HashMap<Key<'_>, Vec<(usize, &HopSide)>> = HashMap::new();
        for &(place, log, _) in requests {
            by_key.entry((&log.node, peer(log), id(log))).or_default().push((place, log));
            // Envoys that say nothing of the downstream connection in these entries.
            if peer(log).is_some() {
                by_key.entry((&log.node, None, id(log))).or_default().push((place, log));
            }
        }
        let mut of: HashMap<usize, Vec<usize>> = HashMap::new();
        for (place, attempt) in attempts() {
            let list = by_key.get(&(&attempt.node, peer(attempt), id(attempt))).map_or(&[][..], Vec::as_slice);
            let mut fitting = list.iter().filter(|(_, request)| is_of(attempt, request));
            if let (Some((request, _)), None) = (fitting.next(), fitting.next()) {
                of.entry(*request).or_default().push(place);
            }
        }
        let tries = |(request, mut places): (usize, Vec<usize>)| {
            places.sort_by_key(|&p| (all[p].start_time, p));
            let mut named = places.iter().copied().filter(|&p| is_named(&all[request], &all[p]));
            let answered = match (named.next(), named.next()) {
                (Some(one), None) => Some(one),
                _ => None,
            };
            let made = all[request].upstream_request_attempt_count.map(|n| n as usize);
            let is_whole = answered.is_some() && made == Some(places.len());
            places.retain(|&p| Some(p) != answered);
            (request, Tries { answered, others: places, is_whole })
        };
        Self(of.into_iter().map(tries).collect())
    }

    /// The router's entry of the attempt that a request's entry tells of.
    fn answered(&self, request: usize) -> Option<usize> {
        self.0.get(&request)?.answered
    }

    /// The logs of attempts other than those that the requests' entries tell of, which claim exchanges of their own.
    pub(super) fn other_logs<'a>(&self, input: HopInput<'a>) -> Vec<(usize, &'a HopSide, Option<MonotonicNs>)> {
        let mut places: Vec<usize> = self.others().map(|(_, place)| place).collect();
        places.sort_unstable();
        let log = |place: usize| {
            let log = &input.access_logs[place];
            (place, log, input.clock.to_monotonic(log.start_time))
        };
        places.into_iter().map(log).collect()
    }

    /// All others of requests of which all are known, with their request's place; in no order.
    fn others(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let told = self.0.iter().filter(|(_, tries)| tries.is_whole);
        told.flat_map(|(&request, tries)| tries.others.iter().map(move |&place| (request, place)))
    }
}

/// True if the router wrote an entry, of an attempt that is over.
fn is_attempt(log: &HopSide) -> bool {
    log.access_log_type == AccessLogType::UpstreamEnd && log.protocol != HopProtocol::Tcp
}

/// True if an attempt can be one of a request of the same proxy: it began while the request was there, and asked for the same.
fn is_of(attempt: &HopSide, request: &HopSide) -> bool {
    let agree = |a: Option<&str>, b: Option<&str>| a.zip(b).is_none_or(|(a, b)| a == b);
    let from = request.start_time.0.saturating_sub(SAME.0);
    let to = request.start_time.0.saturating_add(request.timings.extent().unwrap_or_default().0).saturating_add(SAME.0);
    (from..=to).contains(&attempt.start_time.0)
        && agree(attempt.upstream_cluster.as_deref(), request.upstream_cluster.as_deref())
        && agree(attempt.method.as_deref(), request.method.as_deref())
        && agree(attempt.path.as_deref(), request.path.as_deref())
}

/// True if a request's entry tells of this attempt of it: the same sockets, and encoded at the same instant. Of one that was never sent
/// the entry tells nothing but the host.
fn is_named(request: &HopSide, attempt: &HopSide) -> bool {
    if request.upstream_local_address != attempt.upstream_local_address
        || request.upstream_remote_address != attempt.upstream_remote_address
    {
        return false;
    }
    let encoded = |log: &HopSide| {
        log.timings.time_to_first_upstream_tx_byte.map(|mark| i128::from(log.start_time.0) + i128::from(mark.0))
    };
    match (encoded(request), encoded(attempt)) {
        (Some(a), Some(b)) => (a - b).abs() <= i128::from(SAME.0),
        // The last one is what is left when all had failed.
        (None, None) => {
            let ended =
                |log: &HopSide| i128::from(log.start_time.0) + i128::from(log.timings.extent().unwrap_or_default().0);
            (ended(request) - ended(attempt)).abs() <= i128::from(DurationNs::from_millis(1).0)
        }
        _ => false,
    }
}

/// An attempt that was found, before it is put into its hop.
struct Found {
    /// The place of its own entry among the entries, if the router wrote one.
    entry: Option<usize>,
    /// The server's entry of it.
    server: JoinOutcome<usize>,
}

/// The other attempts of each request, by its place among the entries.
#[derive(Default)]
pub(super) struct Attempts(HashMap<usize, Vec<Found>>);

impl Attempts {
    /// Each entry that tells of an attempt, with that of its request.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let of = |(&request, list): (&usize, &'_ Vec<Found>)| -> Vec<(usize, usize)> {
            list.iter().flat_map(|f| [f.entry, f.server.matched()]).flatten().map(|e| (e, request)).collect()
        };
        self.0.iter().flat_map(of)
    }
}

impl Joiner<'_> {
    /// Puts the attempts of the clients' requests behind the entries, as entries of their own, and tells each entry of the router's.
    pub(super) fn add_attempts(&self, tied: &Tied, entries: &mut Vec<Entry>) {
        if tied.0.is_empty() {
            return;
        }
        let by_place: HashMap<usize, usize> =
            entries.iter().enumerate().filter_map(|(i, e)| Some((e.place?, i))).collect();
        for entry in entries.iter_mut() {
            let answered = entry.place.and_then(|place| tied.answered(place));
            entry.router_log = answered.map(|place| Arc::new(self.input.access_logs[place].clone()));
        }
        let mut others: Vec<(usize, usize)> =
            tied.others().filter_map(|(request, place)| Some((*by_place.get(&request)?, place))).collect();
        others.sort_by_key(|&(request, place)| (request, self.input.access_logs[place].start_time, place));
        for (request, place) in others {
            if !entries[request].is_client() {
                continue;
            }
            let log = &self.input.access_logs[place];
            let start = self.input.clock.to_monotonic(log.start_time);
            let downstream = entries[request].downstream;
            let upstream = self.upstream(place, log, start, downstream);
            let upstream_connection = self.upstream_connection(log, start, downstream);
            entries.push(Entry {
                log: Arc::new(HopSide { side: Some(Side::Client), ..log.clone() }),
                start,
                // It came on no connection: its request did.
                downstream: JoinOutcome::Unmatched(UnmatchedReason::Retried),
                upstream,
                downstream_connection: None,
                upstream_connection,
                place: Some(place),
                attempt_of: Some(request),
                router_log: None,
            });
        }
    }

    /// Finds the other attempts of each request, and marks the servers' entries of them: they are no requests of their own.
    pub(super) fn attempts(
        &self,
        entries: &[Entry],
        servers: &[Option<JoinOutcome<usize>>],
        spoken_for: &HashSet<usize>,
        used: &mut [bool],
    ) -> Attempts {
        let mut found = Attempts::default();
        for (i, attempt) in entries.iter().enumerate() {
            let Some(request) = attempt.attempt_of else { continue };
            let server = servers[i].unwrap_or(JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing));
            if let JoinOutcome::Matched(server) = server {
                used[server] = true;
            }
            used[i] = true;
            found.0.entry(request).or_default().push(Found { entry: Some(i), server });
        }
        self.attempts_by_servers(entries, spoken_for, used, &mut found);
        found
    }

    /// Attempts of which nobody but the asked server's proxy wrote: on a connection of the client's proxy, within the request's time,
    /// with its id. How many there must be the client's entry tells; and all else that this proxy was asked at that time must be
    /// known, so that nothing but an attempt is left.
    fn attempts_by_servers(
        &self,
        entries: &[Entry],
        spoken_for: &HashSet<usize>,
        used: &mut [bool],
        found: &mut Attempts,
    ) {
        let mut left: HashMap<usize, usize> = HashMap::new();
        let mut retried: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, e) in entries.iter().enumerate().filter(|(_, e)| e.is_client() && e.attempt_of.is_none()) {
            let made = e.log.upstream_request_attempt_count.unwrap_or(1) as usize;
            let unknown = made.saturating_sub(1 + found.0.get(&i).map_or(0, Vec::len));
            if let (true, Some(id)) = (unknown > 0, &e.log.request_id) {
                left.insert(i, unknown);
                retried.entry(comparable(id)).or_default().push(i);
            }
        }
        if retried.is_empty() {
            return;
        }
        let others = Others::of(self, entries);
        let mut budget = left.clone();
        let mut candidates: HashMap<usize, Vec<usize>> = HashMap::new();
        for (i, server) in entries.iter().enumerate().filter(|(_, e)| !e.is_client()) {
            let (false, Some(start), Some(id)) = (used[i], server.start, &server.log.request_id) else { continue };
            let fits = |client: &usize| {
                let client = &entries[*client];
                let during = client.start.is_some_and(|from| {
                    from <= start.offset(TOLERANCE) && start <= from.offset(client.extent()).offset(TOLERANCE)
                });
                during && !conflict(&client.log, &server.log)
            };
            let list = retried.get(&comparable(id)).map_or(&[][..], Vec::as_slice);
            let fitting: Vec<usize> = list.iter().copied().filter(fits).collect();
            // It is no request of its own, also where it cannot be told whose attempt it is: one of who is over first, so that the others
            // can have made what comes later. Some client whose own answer is in doubt may stand for it already.
            let able =
                fitting.iter().filter(|&c| !spoken_for.contains(&i) && budget.get(c).is_some_and(|left| *left > 0));
            let over = |c: &&usize| entries[**c].start.map(|start| start.offset(entries[**c].extent()));
            if let Some(client) = able.min_by_key(over) {
                budget.entry(*client).and_modify(|left| *left -= 1);
                used[i] = true;
            }
            if let ([client], Some(exchange)) = (&fitting[..], server.downstream.matched())
                && others.leave_alone(self, entries, *client, exchange)
            {
                candidates.entry(*client).or_default().push(i);
            }
        }
        for (client, mut servers) in candidates {
            if servers.len() == left[&client] {
                servers.sort_by_key(|&s| (entries[s].start, s));
                let attempts = servers.into_iter().map(|s| Found { entry: None, server: JoinOutcome::Matched(s) });
                found.0.entry(client).or_default().extend(attempts);
            }
        }
    }

    /// Where a proxy's sockets are, by the one on which it was asked.
    fn netns_of(&self, entry: &Entry) -> Option<NetnsId> {
        let connection = match entry.downstream.matched() {
            Some(exchange) => self.exchanges[exchange].connection,
            None => entry.downstream_connection?,
        };
        Some(self.endpoints[self.connections[connection].server?].socket.netns)
    }

    /// Where the socket is that sent an exchange's request.
    fn sender(&self, exchange: usize) -> Option<NetnsId> {
        Some(self.endpoints[self.connections[self.exchanges[exchange].connection].client?].socket.netns)
    }

    /// Completes a request's hop with its other attempts, and with the connect in vain of one that was never sent.
    pub(super) fn complete(&self, hop: &mut JoinedHop, index: usize, entries: &[Entry], attempts: &Attempts) {
        let client = &entries[index];
        if client.log.answered_by_itself() {
            hop.connection_setup = self.failed_connect(client, &client.log, client.start);
        }
        let others = attempts.0.get(&index).map_or(&[][..], Vec::as_slice);
        hop.attempts = others.iter().map(|found| self.attempt(found, client, entries)).collect();
        // One whose beginning is not known goes where its entry says.
        hop.attempts.sort_by_key(|a| a.began.or_else(|| self.logged(&a.hop)));
        // The set-up that a request waited for before anything was sent is that of its first attempt; later ones are within `retry`.
        if let (Some(first), true) = (hop.first_attempt(), hop.attempt_began().is_some())
            && hop.attempt_began() != Some(first)
        {
            let of_first = others.iter().find_map(|found| {
                let exchange = self.exchange_of(found, entries)?;
                let exchange = &self.exchanges[exchange];
                let sent = exchange.request_crossing(&self.connections[exchange.connection], &self.endpoints).send?;
                (sent == first).then(|| self.setup_of(exchange, Some(client)))
            });
            // What failed after the last attempt had begun stays.
            if !client.log.answered_by_itself() {
                let setup = of_first.flatten();
                (hop.connection_setup, hop.connected) = (setup.map(|s| s.0), setup.and_then(|s| s.1));
            }
        }
    }

    fn logged(&self, hop: &JoinedHop) -> Option<MonotonicNs> {
        let log = hop.client_log.as_ref().or(hop.server_log.as_ref())?;
        self.input.clock.to_monotonic(log.start_time)
    }

    fn exchange_of(&self, found: &Found, entries: &[Entry]) -> Option<usize> {
        let by_server = || entries[found.server.matched()?].downstream.matched();
        found.entry.and_then(|e| entries[e].upstream.matched()).or_else(by_server)
    }

    fn attempt(&self, found: &Found, client: &Entry, entries: &[Entry]) -> Attempt {
        let own = found.entry.map(|i| &entries[i]);
        let server = match (found.server, own) {
            (JoinOutcome::Matched(server), _) => JoinOutcome::Matched(&entries[server]),
            (_, Some(own)) if own.log.answered_by_itself() => JoinOutcome::Unmatched(UnmatchedReason::LocalReply),
            (JoinOutcome::Ambiguous(reason), _) => JoinOutcome::Ambiguous(reason),
            (JoinOutcome::Unmatched(reason), _) => JoinOutcome::Unmatched(reason),
        };
        let mut hop = self.hop(own, server);
        let failed = own
            .filter(|own| own.log.answered_by_itself())
            .and_then(|own| self.failed_connect(client, &own.log, own.start));
        hop.connection_setup = failed;
        let began = hop.request_on(Link::Network).send.or(hop.logged.sent).or(failed.map(|f| f.0));
        let end = || self.end_of(&self.exchanges[self.exchange_of(found, entries)?]);
        let back = hop.response_on(Link::Network).ready.or(hop.logged.returned);
        let ended = back.or(failed.map(|f| f.1)).or_else(end).or(hop.abandoned[0]);
        Attempt { hop, began, ended }
    }

    /// The connect in vain that a proxy made for a request or an attempt: the only one to that host in its time.
    fn failed_connect(
        &self,
        client: &Entry,
        log: &HopSide,
        start: Option<MonotonicNs>,
    ) -> Option<(MonotonicNs, MonotonicNs)> {
        let (netns, start, host) = (self.netns_of(client)?, start?, log.upstream_remote_address?.0);
        let until = start.offset(log.timings.extent()?).offset(TOLERANCE);
        let mut fitting = self.failed.iter().map(|&i| &self.endpoints[i].socket).filter(|s| {
            let within = s.connect_start.is_some_and(|at| start.offset(-TOLERANCE) <= at && at <= until);
            s.netns == netns && s.remote.0 == host && within
        });
        match (fitting.next(), fitting.next()) {
            (Some(socket), None) => socket.connect_start.zip(socket.closed),
            _ => None,
        }
    }
}

/// All else that proxies were asked and asked themselves.
struct Others {
    /// Exchanges that proxies made of a request which an entry tells.
    made: HashSet<usize>,
    /// When an application asked a proxy something of which no entry tells, by the proxy's network namespace.
    untold: HashMap<NetnsId, Vec<(MonotonicNs, MonotonicNs)>>,
    /// Requests of which it is not known what the proxy made of them, likewise.
    unknown: HashMap<NetnsId, Vec<(usize, MonotonicNs, MonotonicNs)>>,
}

impl Others {
    fn of(joiner: &Joiner<'_>, entries: &[Entry]) -> Self {
        let made = entries.iter().filter_map(|e| e.upstream.matched()).collect();
        let told: HashSet<usize> = entries.iter().filter_map(|e| e.downstream.matched()).collect();
        let mut untold: HashMap<NetnsId, Vec<(MonotonicNs, MonotonicNs)>> = HashMap::new();
        for (_, exchange) in joiner.exchanges.iter().enumerate().filter(|(x, _)| !told.contains(x)) {
            let connection = &joiner.connections[exchange.connection];
            if let (Some(Link::ClientLoopback), Some(server)) = (connection.link, connection.server) {
                let to = if joiner.is_last(exchange) || !exchange.has_response() {
                    MonotonicNs(u64::MAX)
                } else {
                    exchange.last
                };
                untold.entry(joiner.endpoints[server].socket.netns).or_default().push((exchange.first, to));
            }
        }
        for (netns, since) in &joiner.untold_since {
            untold.entry(*netns).or_default().push((*since, MonotonicNs(u64::MAX)));
        }
        let mut unknown: HashMap<NetnsId, Vec<(usize, MonotonicNs, MonotonicNs)>> = HashMap::new();
        for (i, e) in entries.iter().enumerate().filter(|(_, e)| e.is_client() && e.attempt_of.is_none()) {
            let was_known = e.place.is_some_and(|place| joiner.told.get(&place) == Some(&true));
            if was_known || e.upstream.matched().is_some() || e.log.answered_by_itself() {
                continue;
            }
            if let (Some(netns), Some(start)) = (joiner.netns_of(e), e.start) {
                let to = start.offset(e.extent()).offset(TOLERANCE);
                unknown.entry(netns).or_default().push((i, start.offset(-TOLERANCE), to));
            }
        }
        Self { made, untold, unknown }
    }

    /// True if nothing but an attempt of this client's request can have made an exchange.
    fn leave_alone(&self, joiner: &Joiner<'_>, entries: &[Entry], client: usize, exchange: usize) -> bool {
        let at = joiner.exchanges[exchange].first;
        let Some(netns) = joiner.netns_of(&entries[client]).filter(|n| joiner.sender(exchange) == Some(*n)) else {
            return false;
        };
        let untold = self.untold.get(&netns).is_some_and(|all| all.iter().any(|(from, to)| *from <= at && at <= *to));
        let unknown = self
            .unknown
            .get(&netns)
            .is_some_and(|all| all.iter().any(|&(i, from, to)| i != client && from <= at && at <= to));
        // What was lost may have been a request that nobody tells of.
        joiner.lossy.is_empty() && !self.made.contains(&exchange) && !untold && !unknown
    }
}
