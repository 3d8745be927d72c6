//! Puts a client's half and a server's half together, and counts what has neither.

use super::hop::forget_ends;
use super::ripe::Ripe;
use super::{AT_THE_END, Entry, Joiner, TOLERANCE};
use crate::exchange::Exchange;
use meshdiff_model::{
    AmbiguityReason, Content, Crossing, DurationNs, HopSide, JoinOutcome, JoinedHop, Link, MonotonicNs, RequestId,
    UnmatchedReason,
};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// Without kernel events the two proxies may be on different machines, whose clocks differ by about this much.
const OTHER_CLOCK: DurationNs = DurationNs::from_millis(1);

/// How many servers' entries are looked at that may be a client's: who has more has nobody's.
const MOST_DOUBTS: usize = 64;

impl Joiner<'_> {
    /// For each client entry its server entry. Entries of servers that fit clients which they cannot be told to belong to are put into
    /// `spoken_for`, one for each such client: its line stands for them.
    pub(super) fn servers(
        &self,
        entries: &[Entry],
        spoken_for: &mut HashSet<usize>,
    ) -> Vec<Option<JoinOutcome<usize>>> {
        let server_of = server_entries(entries);
        let mut servers: Vec<Option<JoinOutcome<usize>>> = entries
            .iter()
            .map(|entry| {
                let found = match entry.upstream.matched().and_then(|e| server_of.get(&e)) {
                    Some(&s) if conflict(&entry.log, &entries[s].log) => {
                        JoinOutcome::Unmatched(UnmatchedReason::Contradiction)
                    }
                    Some(&s) => JoinOutcome::Matched(s),
                    None if entry.log.answered_by_itself() => JoinOutcome::Unmatched(UnmatchedReason::LocalReply),
                    None => return None,
                };
                entry.is_client().then_some(found)
            })
            .collect();
        self.by_logs(entries, &mut servers, spoken_for);
        servers
    }

    /// Fills in the servers' entries that are told by what two logs say alone: the client's upstream address is the server's
    /// downstream peer, and the server's stream lies within the client's upstream time.
    fn by_logs(&self, entries: &[Entry], servers: &mut [Option<JoinOutcome<usize>>], spoken_for: &mut HashSet<usize>) {
        let by_peer = logs_by_downstream_peer(entries);
        let mut claims: HashMap<usize, u32> = HashMap::new();
        for server in servers.iter().flatten().filter_map(|s| s.matched()) {
            claims.insert(server, 1);
        }
        let mut certain: HashSet<usize> = claims.keys().copied().collect();
        certain.extend((0..entries.len()).filter(|&i| self.was_told(&entries[i])));
        let mut guesses = Vec::new();
        let mut doubts: Vec<Doubt> = Vec::new();
        for (i, client) in entries.iter().enumerate().filter(|(_, e)| e.is_client()) {
            if servers[i].is_some() || self.was_told(client) {
                continue;
            }
            let mut fitting = Vec::new();
            let found = self.server_by_logs(client, entries, &by_peer, &certain, &mut fitting);
            if let JoinOutcome::Matched(s) = found {
                *claims.entry(s).or_default() += 1;
                guesses.push(i);
            } else if !fitting.is_empty() {
                doubts.push(Doubt { client: i, fitting });
            }
            servers[i] = Some(found);
        }
        for i in guesses {
            if let Some(s) = servers[i].and_then(JoinOutcome::matched).filter(|s| claims[s] > 1) {
                doubts.push(Doubt { client: i, fitting: vec![s] });
                servers[i] = Some(JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs));
            }
        }
        let mut matched: HashSet<usize> = servers.iter().flatten().filter_map(|s| s.matched()).collect();
        for (client, server) in left_over(&mut doubts, &mut matched) {
            servers[client] = Some(JoinOutcome::Matched(server));
        }
        spoken_for.extend(one_each(&doubts, |server| matched.contains(&server)));
    }

    fn server_by_logs(
        &self,
        client: &Entry,
        entries: &[Entry],
        by_peer: &HashMap<SocketAddr, Vec<usize>>,
        certain: &HashSet<usize>,
        several: &mut Vec<usize>,
    ) -> JoinOutcome<usize> {
        let (Some(local), Some(start)) = (client.log.upstream_local_address, client.start) else {
            return JoinOutcome::Unmatched(UnmatchedReason::AddressMissing);
        };
        let timings = &client.log.timings;
        let slack = if self.has_kernel { TOLERANCE } else { OTHER_CLOCK };
        let from = start.offset(timings.time_to_first_upstream_tx_byte.unwrap_or_default()).offset(-slack);
        let answered = timings.time_to_first_upstream_rx_byte.unwrap_or_else(|| client.extent());
        let to = start.offset(answered).offset(slack);
        let within = |s: &Entry| {
            s.start.is_some_and(|at| {
                let sent = at.offset(s.log.timings.time_to_first_downstream_tx_byte.unwrap_or_default());
                at >= from && sent <= to
            })
        };
        // A server's entry whose exchange is known belongs to whoever made that exchange.
        let elsewhere = |s: &Entry| match (client.upstream, s.downstream) {
            (JoinOutcome::Matched(a), JoinOutcome::Matched(b)) => a != b,
            _ => false,
        };
        let there = |s: &HopSide| match (client.log.upstream_remote_address, s.downstream_local_address) {
            (Some(a), Some(b)) => a.ip() == b.ip(),
            _ => true,
        };
        // Requests at once on one connection can have one id (the application forwards it), and the log of one half can be lost of
        // each: then all else must agree too.
        let shared = client.upstream == JoinOutcome::Unmatched(UnmatchedReason::MultiplexedEncrypted);
        let list = by_peer.get(&local.0).map_or(&[][..], Vec::as_slice);
        let first = list.partition_point(|&i| entries[i].start.is_some_and(|s| s < from));
        let fitting = list[first..]
            .iter()
            .copied()
            .take_while(|&i| entries[i].start.is_none_or(|s| s <= to))
            .filter(|&i| !certain.contains(&i) && within(&entries[i]) && there(&entries[i].log))
            .filter(|&i| !elsewhere(&entries[i]) && !conflict(&client.log, &entries[i].log))
            .filter(|&i| !shared || alike(client, &entries[i].log));
        several.extend(fitting.take(MOST_DOUBTS));
        // The attempts at one request can all fit, where only the proxies' clocks tell when they were: what else the entries say may tell them
        // apart.
        if several.len() > 1 && several.iter().any(|&i| alike(client, &entries[i].log)) {
            several.retain(|&i| alike(client, &entries[i].log));
        }
        match several[..] {
            [] if self.near_the_end(client) => JoinOutcome::Unmatched(UnmatchedReason::StillOpen),
            [] => JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing),
            [only] => JoinOutcome::Matched(only),
            _ => JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs),
        }
    }

    /// Adds a hop for every request that the kernel saw an application send to its sidecar and that no log entry speaks of, and counts
    /// how many requests the kernel saw in all.
    pub(super) fn kernel_only(&self, entries: &[Entry], ripe: Option<&Ripe<'_>>, found: &mut super::Found) {
        let claimed: HashSet<usize> = entries.iter().filter_map(|e| e.downstream.matched()).collect();
        // Entries that could not be put on an exchange of their connection stand for one of them all the same: counting both would
        // count twice.
        let mut doubtful: HashMap<SocketAddr, Vec<MonotonicNs>> = HashMap::new();
        for e in entries.iter().filter(|e| e.downstream.matched().is_none() && e.attempt_of.is_none()) {
            if let (Some(peer), Some(start)) = (e.log.downstream_direct_remote_address, e.start) {
                doubtful.entry(peer.0).or_default().push(start);
            }
        }
        doubtful.values_mut().for_each(|list| list.sort_unstable());
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let connection = &self.connections[exchange.connection];
            let request = exchange.stream.is_some() || matches!(exchange.request_content, Content::Http1Request { .. });
            let Some(client) = connection.client.filter(|_| connection.link == Some(Link::ClientLoopback) && request)
            else {
                continue;
            };
            if ripe.is_some_and(|ripe| !self.is_countable(index, claimed.contains(&index), ripe)) {
                continue;
            }
            found.client_messages += 1;
            found.counted.push(index);
            if claimed.contains(&index) {
                continue;
            }
            if let Some(starts) = doubtful.get(&connection.client_address(&self.endpoints)) {
                let (from, to) = self.span(index, exchange);
                let first = starts.partition_point(|&s| s < from);
                if starts.get(first).is_some_and(|&s| s <= to) {
                    continue;
                }
            }
            let unfinished = exchange.last.offset(AT_THE_END) >= self.input.window.1;
            let reason = match (unfinished || !exchange.has_response(), exchange.lossy) {
                (_, true) => UnmatchedReason::EventsLost,
                (true, false) => UnmatchedReason::StillOpen,
                (false, false) if self.endpoints[client].tells_plaintext() => UnmatchedReason::EncryptedByApplication,
                (false, false) => UnmatchedReason::ClientLogMissing,
            };
            let mut hop = JoinedHop::empty(JoinOutcome::Unmatched(reason), JoinOutcome::Unmatched(reason));
            self.put(&mut hop, Link::ClientLoopback, exchange, None);
            // Without a log only what follows tells that a response was complete.
            let followed = !self.is_last(exchange);
            if unfinished || exchange.lossy || !followed {
                forget_ends(&mut hop);
            }
            if exchange.lossy {
                hop.response[Link::ClientLoopback as usize] = Crossing::default();
            }
            found.hops.push(hop);
        }
    }

    /// When a connection ended, if that was seen. Its addresses may be another one's afterwards.
    pub(super) fn end_seen(&self, connection: usize) -> Option<MonotonicNs> {
        let connection = &self.connections[connection];
        let closed = connection.ends().any(|end| self.endpoints[end].socket.closed.is_some());
        closed.then(|| connection.seen(&self.endpoints).1)
    }

    /// The time in which an exchange's stream can have begun: up to the next exchange, if what was seen of this one is not all.
    fn span(&self, index: usize, exchange: &Exchange) -> (MonotonicNs, MonotonicNs) {
        let whole = exchange.has_response() && !exchange.lossy && !exchange.pipelined;
        let next = (index + 1 < self.of_connection[exchange.connection].end).then(|| self.exchanges[index + 1].first);
        let end = || self.end_seen(exchange.connection).map_or(MonotonicNs(u64::MAX), |end| end.offset(TOLERANCE));
        let to = if whole { exchange.last.offset(TOLERANCE) } else { next.unwrap_or_else(end) };
        (exchange.first.offset(-TOLERANCE), to)
    }
}

/// A client that several servers' entries fit, or one that fits others as well.
struct Doubt {
    client: usize,
    fitting: Vec<usize>,
}

/// How often doubts are looked at again after others were settled.
const MOST_ROUNDS: usize = 16;

/// Clients of which one server's entry alone is left once those that belong to somebody are taken away, with that entry; they leave
/// the doubts. (A slow attempt and the quick one that was made beside it both fit the quick one's entry; but only the slow one fits its
/// own.) What is left for two is nobody's.
fn left_over(doubts: &mut Vec<Doubt>, matched: &mut HashSet<usize>) -> Vec<(usize, usize)> {
    let mut settled = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let mut claims: HashMap<usize, Vec<usize>> = HashMap::new();
        // Of who has too many not all are known.
        for doubt in doubts.iter().filter(|d| (2..MOST_DOUBTS).contains(&d.fitting.len())) {
            let mut left = doubt.fitting.iter().filter(|s| !matched.contains(s));
            if let (Some(&only), None) = (left.next(), left.next()) {
                claims.entry(only).or_default().push(doubt.client);
            }
        }
        // Who had but one from the beginning shares it.
        let shared = |server: usize| doubts.iter().any(|d| d.fitting == [server]);
        let mut round: Vec<(usize, usize)> =
            claims.into_iter().filter(|(s, c)| c.len() == 1 && !shared(*s)).map(|(s, c)| (c[0], s)).collect();
        if round.is_empty() {
            break;
        }
        round.sort_unstable();
        matched.extend(round.iter().map(|&(_, server)| server));
        let clients: HashSet<usize> = round.iter().map(|&(client, _)| client).collect();
        doubts.retain(|d| !clients.contains(&d.client));
        settled.extend(round);
    }
    settled
}

/// For each client that several servers' entries fit one of these, as far as there are enough: Kuhn's algorithm for bipartite matching
/// (Naval Research Logistics Quarterly 2, 1955).
fn one_each(doubts: &[Doubt], claimed: impl Fn(usize) -> bool) -> HashSet<usize> {
    fn find(
        doubts: &[Doubt],
        client: usize,
        of: &mut HashMap<usize, usize>,
        tried: &mut HashSet<usize>,
        claimed: &impl Fn(usize) -> bool,
    ) -> bool {
        for &server in &doubts[client].fitting {
            if claimed(server) || !tried.insert(server) {
                continue;
            }
            let free = match of.get(&server) {
                Some(&other) => find(doubts, other, of, tried, claimed),
                None => true,
            };
            if free {
                of.insert(server, client);
                return true;
            }
        }
        false
    }
    let mut of = HashMap::new();
    for client in 0..doubts.len() {
        find(doubts, client, &mut of, &mut HashSet::new(), &claimed);
    }
    of.into_keys().collect()
}

/// The server-side entry of each exchange, as the server's proxy served it.
fn server_entries(entries: &[Entry]) -> HashMap<usize, usize> {
    let server = entries.iter().enumerate().filter(|(_, e)| !e.is_client());
    server.filter_map(|(i, e)| e.downstream.matched().map(|exchange| (exchange, i))).collect()
}

/// The servers' entries by their peer, in order of start.
fn logs_by_downstream_peer(entries: &[Entry]) -> HashMap<SocketAddr, Vec<usize>> {
    let mut map: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (i, entry) in entries.iter().enumerate().filter(|(_, e)| !e.is_client()) {
        if let Some(peer) = entry.log.downstream_direct_remote_address {
            map.entry(peer.0).or_default().push(i);
        }
    }
    for list in map.values_mut() {
        list.sort_by_key(|&i| entries[i].start);
    }
    map
}

/// True if two proxies' entries say the same of a request, as far as both see it.
fn alike(client: &Entry, server: &HopSide) -> bool {
    let log = &client.log;
    // The router counts what it received from upstream, and what it sent there.
    let (there, back) = match client.attempt_of {
        Some(_) => (log.response_body_bytes, log.request_body_bytes),
        None => (log.request_body_bytes, log.response_body_bytes),
    };
    let timings = &log.timings;
    // A proxy that got no answer says what it made of that, and one that tries again stops reading. What it sent may not have arrived.
    let answered = timings.time_to_first_upstream_rx_byte.is_some();
    let whole = timings.time_to_last_upstream_rx_byte.is_some();
    log.path == server.path
        && (!answered || log.response_code == server.response_code)
        && (if whole { there == server.request_body_bytes } else { there >= server.request_body_bytes })
        && (if whole { back == server.response_body_bytes } else { !answered || back <= server.response_body_bytes })
}

/// True if the two proxies' entries cannot be about the same request.
pub(super) fn conflict(client: &HopSide, server: &HopSide) -> bool {
    let ids = match (&client.request_id, &server.request_id) {
        (Some(a), Some(b)) => !RequestId::same_request(a, b),
        _ => false,
    };
    let methods = match (&client.method, &server.method) {
        (Some(a), Some(b)) => a != b,
        _ => false,
    };
    ids || methods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts_of(lists: &[&[usize]]) -> Vec<Doubt> {
        lists.iter().enumerate().map(|(client, list)| Doubt { client, fitting: list.to_vec() }).collect()
    }

    #[test]
    fn who_has_one_entry_left_has_that() {
        let all = |doubts: &[&[usize]], matched: &[usize]| {
            let mut doubts = doubts_of(doubts);
            let settled = left_over(&mut doubts, &mut matched.iter().copied().collect());
            (settled, doubts.len())
        };
        assert_eq!(all(&[&[1, 2]], &[2]), (vec![(0, 1)], 0));
        assert_eq!(all(&[&[1, 2], &[1, 3]], &[2]), (vec![(0, 1), (1, 3)], 0), "one thing leads to another");
        assert_eq!(all(&[&[1, 2], &[1, 3]], &[2, 3]), (vec![], 2), "both have only the same left");
        assert_eq!(all(&[&[1, 2], &[1], &[1]], &[2]), (vec![], 3), "it was others' before");
        assert_eq!(all(&[&[1, 2]], &[1, 2]), (vec![], 1), "nothing is left");
    }

    #[test]
    fn each_doubtful_client_speaks_for_one_entry_while_there_are_any() {
        let all = |doubts: &[&[usize]], claimed: usize| {
            let doubts = doubts_of(doubts);
            let mut found: Vec<usize> = one_each(&doubts, |s| s == claimed).into_iter().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(all(&[&[1, 2], &[1, 2]], 9), [1, 2]);
        assert_eq!(all(&[&[1, 2], &[1, 3], &[1]], 9), [1, 2, 3], "who has a choice makes room");
        assert_eq!(all(&[&[1, 2], &[1, 2]], 1), [2], "what belongs to somebody is nobody else's");
        assert_eq!(all(&[&[4], &[4]], 9), [4]);
    }
}
