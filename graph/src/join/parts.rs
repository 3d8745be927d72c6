//! The same joins for a recording that comes in parts, in order of time, so that it never has to be in memory as a whole.
//!
//! What a request needs lies near it: the exchanges that its entries name, those before and after them on their connections, and the
//! entries of others that claim the same. So with each part everything that is there is joined, what is *ripe* is told (nothing that
//! comes later can change it), and what nobody needs any more is dropped. The rest is carried on, however long it takes.

use super::ripe::{Patience, Ripe};
use super::unlogged::Candidates;
use super::{Entry, Found, Ground, HopInput, Joined, Joiner, TOLERANCE};
use crate::exchange::Exchange;
use crate::http2::Sent;
use crate::stream::{Offset, Outline};
use meshdiff_model::{
    ClockAnchor, Content, Direction, HopProtocol, HopSide, Http2Stream, JoinOutcome, JoinedHop, Link, Message,
    MonotonicNs, Socket, SocketCookie,
};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// A recording of which parts are still to come.
pub(crate) struct InParts {
    ground: Ground,
    /// Places of endpoints.
    index: HashMap<SocketCookie, usize>,
    clock: ClockAnchor,
    window: (MonotonicNs, MonotonicNs),
    /// Entries that are needed, in the order of the recording, each with its place there.
    logs: Vec<HopSide>,
    places: Vec<u64>,
    /// Places of those that were told, with whether it was found where their requests went on.
    told: HashMap<u64, bool>,
    /// Exchanges that were counted, by connection and position.
    counted: HashSet<(usize, Offset)>,
    /// Connections of which earlier exchanges were dropped.
    earlier: Vec<bool>,
    client_messages: u64,
    tcp_entries: u64,
    unlogged: Candidates,
    patience: Patience,
}

/// What was told of a part.
pub(crate) struct Step {
    /// In order of start.
    pub(crate) hops: Vec<JoinedHop>,
    /// No later step tells of a request that began before.
    pub(crate) complete_until: MonotonicNs,
}

impl InParts {
    /// Begins with what is known of the whole: all sockets, the rows that say where frames were followed, and the outlines of all messages.
    pub(crate) fn new(
        sockets: Vec<Socket>,
        outlines: &HashMap<(SocketCookie, Direction), Outline>,
        followed: &[Http2Stream],
        clock: ClockAnchor,
        window: (MonotonicNs, MonotonicNs),
        patience: Patience,
    ) -> Self {
        let outline = |socket, direction| outlines.get(&(socket, direction)).copied();
        let (endpoints, index) = crate::connection::silent(sockets, outline);
        let ground = Ground::of(endpoints, Sent::following(followed.iter()), &clock, !outlines.is_empty());
        let earlier = vec![false; ground.connections.len()];
        Self {
            ground,
            index,
            clock,
            window,
            logs: Vec::new(),
            places: Vec::new(),
            told: HashMap::new(),
            counted: HashSet::new(),
            earlier,
            client_messages: 0,
            tcp_entries: 0,
            unlogged: Candidates::default(),
            patience,
        }
    }

    /// That a proxy says of a connection that it carries several requests at once: who connected, and when the request began.
    pub(crate) fn is_multiplexed(&mut self, peer: SocketAddr, start: Option<MonotonicNs>) {
        let Ground { by_client, connections, endpoints, multiplexed, .. } = &mut self.ground;
        for &c in by_client.get(&peer).into_iter().flatten() {
            let (first, last) = connections[c].seen(endpoints);
            if start.is_none_or(|at| first <= at.offset(TOLERANCE) && at <= last.offset(TOLERANCE)) {
                multiplexed.insert(c);
            }
        }
    }

    /// Adds a message; those of one socket and direction in the order of assembly.
    pub(crate) fn push_message(&mut self, message: &Message) {
        if let Some(&i) = self.index.get(&message.socket) {
            self.ground.endpoints[i].push(message);
        }
    }

    pub(crate) fn push_stream(&mut self, row: &Http2Stream) {
        if row.stream != 0 {
            self.ground.sent.add(row);
        }
    }

    /// Adds an entry; `place` says where it is among all of the recording.
    pub(crate) fn push_log(&mut self, place: u64, log: HopSide) {
        if log.protocol == HopProtocol::Tcp {
            self.tcp_entries += u64::from(log.access_log_type.is_terminal());
            return;
        }
        self.logs.push(log);
        self.places.push(place);
    }

    /// Tells what is ripe now that everything is there that began before `until`; at the end everything.
    pub(crate) fn step(&mut self, until: Option<MonotonicNs>) -> Step {
        let (places, logs) = self.in_order();
        let mut ground = std::mem::replace(&mut self.ground, empty(&self.clock));
        let unfinished = |c: &usize| {
            let connection = &ground.connections[*c];
            // Of streams it is not known how many are still to come, only when there can be none.
            let streams = || {
                let end = connection.seen(&ground.endpoints).1.offset(self.patience.settles);
                ground.followed.contains(c) && until.is_some_and(|until| end > until)
            };
            connection.ends().any(|end| !ground.endpoints[end].is_complete()) || streams()
        };
        let unfinished = (0..ground.connections.len()).filter(unfinished).collect();
        ground.unfinished = unfinished;
        let told = places.iter().enumerate().filter_map(|(i, place)| Some((i, *self.told.get(place)?)));
        ground.told = told.collect();
        let input = HopInput {
            sockets: &[],
            messages: &[],
            http2: &[],
            access_logs: &logs,
            clock: &self.clock,
            window: self.window,
        };
        let mut joiner = Joiner::new(input, ground, |c| self.earlier[c]);
        let patience = self.patience;
        let ripe = Ripe { until, places: &places, told: &self.told, counted: &self.counted, patience };
        let found = joiner.hops(Some(&ripe));
        self.client_messages += found.client_messages;
        self.told.extend(found.told.iter().map(|&(i, known)| (places[i], known)));
        let position = |&x: &usize| (joiner.exchanges[x].connection, joiner.exchanges[x].request.0);
        self.counted.extend(found.counted.iter().map(position));

        let Found { hops, unlogged, entries, .. } = found;
        self.unlogged.extend(unlogged);
        let Some(until) = until else {
            self.ground = joiner.ground;
            return Step { hops, complete_until: MonotonicNs(u64::MAX) };
        };
        let waiting: Vec<&Entry> =
            entries.iter().filter(|e| e.place.is_some_and(|p| !self.told.contains_key(&places[p]))).collect();
        let complete_until = self.complete_until(&joiner, &waiting, until);
        let kept = self.kept(&joiner, &waiting, until);
        let is_kept = |x: usize| x >= kept[joiner.exchanges[x].connection];
        let needed = |e: &Entry| [e.downstream, e.upstream].iter().filter_map(|o| o.matched()).any(is_kept);
        // What speaks of the connections of who waits can still be needed.
        let mut named: HashMap<SocketAddr, MonotonicNs> = HashMap::new();
        for e in &waiting {
            for address in addresses(&e.log) {
                let start = e.start.unwrap_or_default().offset(-self.patience.settles);
                let known = named.entry(address).or_insert(start);
                *known = start.min(*known);
            }
        }
        for e in joiner.exchanges.iter().filter(|e| self.is_uncounted(&joiner, e)) {
            let address = joiner.connections[e.connection].client_address(&joiner.endpoints);
            let start = e.first.offset(-self.patience.settles);
            let known = named.entry(address).or_insert(start);
            *known = start.min(*known);
        }
        let mut of_entries: Vec<Option<bool>> = vec![None; logs.len()];
        for e in &entries {
            if let Some(place) = e.place {
                let needed = !self.told.contains_key(&places[place]) || needed(e);
                of_entries[place] = Some(of_entries[place].unwrap_or(false) || needed);
            }
        }
        let keep: Vec<bool> = logs
            .iter()
            .zip(of_entries)
            .map(|(log, needed)| {
                let extent = log.timings.extent().unwrap_or_default();
                let end =
                    self.clock.to_monotonic(log.start_time).map(|at| at.offset(extent).offset(self.patience.settles));
                let after = |at: MonotonicNs| end.is_some_and(|end| end >= at);
                // Of entries of no request (those of attempts, say) only the time tells.
                needed.unwrap_or_else(|| after(complete_until))
                    || addresses(log).any(|address| named.get(&address).is_some_and(|at| after(*at)))
            })
            .collect();
        self.untold(&mut joiner, &entries);
        let Joiner { ground, exchanges, of_connection, .. } = joiner;
        self.forget(ground, &exchanges, of_connection, &kept);
        for ((log, place), keep) in logs.into_iter().zip(places).zip(keep) {
            if keep {
                self.logs.push(log);
                self.places.push(place);
            } else {
                self.told.remove(&place);
            }
        }
        Step { hops, complete_until }
    }

    /// Ends it: what is left of the joins but the requests, which were told.
    pub(crate) fn finish(self) -> Joined {
        let Ground { endpoints, connections, .. } = self.ground;
        Joined {
            endpoints,
            connections,
            hops: Vec::new(),
            client_messages: self.client_messages,
            tcp_entries: self.tcp_entries,
            unlogged: self.unlogged.settle(),
        }
    }

    /// The sockets, with what was counted of them until now.
    pub(crate) fn ground(&self) -> &Ground {
        &self.ground
    }

    fn in_order(&mut self) -> (Vec<u64>, Vec<HopSide>) {
        let (places, logs) = (std::mem::take(&mut self.places), std::mem::take(&mut self.logs));
        if places.is_sorted() {
            return (places, logs);
        }
        let mut both: Vec<(u64, HopSide)> = places.into_iter().zip(logs).collect();
        both.sort_by_key(|(place, _)| *place);
        both.into_iter().unzip()
    }

    /// No request that is still to be told began before.
    fn complete_until(&self, joiner: &Joiner<'_>, waiting: &[&Entry], until: MonotonicNs) -> MonotonicNs {
        let began = |e: &&Entry| {
            let first = |o: JoinOutcome<usize>| o.matched().map(|x| joiner.exchanges[x].first);
            [e.start, first(e.downstream), first(e.upstream)].into_iter().flatten().min()
        };
        let entries = waiting.iter().filter_map(began).map(|at| at.offset(-self.patience.settles));
        let uncounted = joiner.exchanges.iter().filter(|e| self.is_uncounted(joiner, e)).map(|e| e.first);
        entries.chain(uncounted).chain([until.offset(-self.patience.settles)]).min().unwrap_or_default()
    }

    /// True if an exchange is one that is counted, and was not until now.
    fn is_uncounted(&self, joiner: &Joiner<'_>, exchange: &Exchange) -> bool {
        let connection = &joiner.connections[exchange.connection];
        let request = exchange.stream.is_some() || matches!(exchange.request_content, Content::Http1Request { .. });
        connection.client.is_some()
            && request
            && matches!(connection.link, Some(Link::ClientLoopback | Link::ServerLoopback))
            && !self.counted.contains(&(exchange.connection, exchange.request.0))
    }

    /// Remembers since when applications wait for answers to what no entry tells of.
    fn untold(&self, joiner: &mut Joiner<'_>, entries: &[Entry]) {
        let told: HashSet<usize> = entries.iter().filter_map(|e| e.downstream.matched()).collect();
        let mut since = std::mem::take(&mut joiner.ground.untold_since);
        for (x, exchange) in joiner.exchanges.iter().enumerate() {
            let place = (exchange.connection, exchange.request.0);
            if told.contains(&x) || !self.counted.contains(&place) {
                continue;
            }
            let connection = &joiner.connections[exchange.connection];
            let open = joiner.is_last(exchange) || !exchange.has_response();
            if let (Some(Link::ClientLoopback), Some(server), true) = (connection.link, connection.server, open) {
                let known = since.entry(joiner.endpoints[server].socket.netns).or_insert(exchange.first);
                *known = exchange.first.min(*known);
            }
        }
        joiner.ground.untold_since = since;
    }

    /// For each connection the first exchange that is needed further on.
    fn kept(&self, joiner: &Joiner<'_>, waiting: &[&Entry], until: MonotonicNs) -> Vec<usize> {
        let mut since: HashMap<usize, MonotonicNs> = HashMap::new();
        for e in waiting {
            let named = addresses(&e.log).filter_map(|a| joiner.by_client.get(&a)).flatten();
            for &c in named {
                let start = e.start.unwrap_or_default().offset(-self.patience.settles);
                let known = since.entry(c).or_insert(start);
                *known = start.min(*known);
            }
        }
        let waited_for: HashSet<usize> =
            waiting.iter().flat_map(|e| [e.downstream.matched(), e.upstream.matched()]).flatten().collect();
        let recently = until.offset(-self.patience.settles).offset(-self.patience.settles);
        let first_kept = |(c, range): (usize, &std::ops::Range<usize>)| {
            let since = since.get(&c).map_or(recently, |at| recently.min(*at));
            let needed = |x: &usize| {
                let e = &joiner.exchanges[*x];
                e.last >= since || waited_for.contains(x) || self.is_uncounted(joiner, e)
            };
            let unfinished = joiner.unfinished.contains(&c);
            let mut first = range.clone().find(needed);
            if first.is_none() && unfinished {
                first = range.clone().next_back();
            }
            let Some(mut first) = first else { return range.end };
            // What is on a connection depends on what was before.
            while first > range.start {
                first -= 1;
                if !joiner.exchanges[first].pipelined {
                    break;
                }
            }
            first
        };
        joiner.of_connection.iter().enumerate().map(first_kept).collect()
    }

    /// Drops exchanges before those that are kept, and what they were made of.
    fn forget(
        &mut self,
        mut ground: Ground,
        exchanges: &[Exchange],
        of_connection: Vec<std::ops::Range<usize>>,
        kept: &[usize],
    ) {
        let mut dropped_any: HashSet<usize> = HashSet::new();
        for (c, range) in of_connection.into_iter().enumerate() {
            let (dropped, rest) = exchanges[range.clone()].split_at(kept[c] - range.start);
            if dropped.is_empty() {
                continue;
            }
            self.earlier[c] = true;
            dropped_any.insert(c);
            let connection = ground.connections[c];
            for stream in dropped.iter().filter_map(|e| e.stream.as_ref()) {
                for end in connection.ends() {
                    let socket = ground.endpoints[end].socket.cookie;
                    ground.sent.forget(socket, stream.number);
                }
            }
            if rest.is_empty() && !ground.unfinished.contains(&c) {
                for end in connection.ends() {
                    ground.endpoints[end].egress.forget_all();
                    ground.endpoints[end].ingress.forget_all();
                }
                continue;
            }
            // Positions are those of the client's end, or of the server's where the client was not seen.
            let request = rest.iter().map(|e| e.request.0).min();
            let answered = dropped.iter().filter_map(|e| e.response).map(|r| r.1).max();
            let answers = rest.iter().filter_map(|e| e.response).map(|r| r.0).min();
            let response = answered.map(|at| answers.map_or(at, |next| at.min(next)));
            let (client, server) = (connection.client, connection.server);
            let ends = client.zip(server).map(|(c, s)| (&ground.endpoints[c], &ground.endpoints[s]));
            let there = ends.map_or(0, |(c, s)| c.egress.shift_to(&s.ingress));
            let back = ends.map_or(0, |(c, s)| c.ingress.shift_to(&s.egress));
            if let Some(client) = client {
                let e = &mut ground.endpoints[client];
                request.into_iter().for_each(|at| e.egress.forget(at));
                response.into_iter().for_each(|at| e.ingress.forget(at));
            }
            if let Some(server) = server {
                let e = &mut ground.endpoints[server];
                request.into_iter().for_each(|at| e.ingress.forget(at + there));
                response.into_iter().for_each(|at| e.egress.forget(at + back));
            }
        }
        self.counted.retain(|(c, at)| {
            let first = || exchanges.get(kept[*c]).filter(|e| e.connection == *c).map(|e| e.request.0);
            !dropped_any.contains(c) || first().is_some_and(|first| *at >= first)
        });
        self.ground = ground;
    }
}

/// The addresses of the ends that connected, of the connections that an entry speaks of.
fn addresses(log: &HopSide) -> impl Iterator<Item = SocketAddr> + use<> {
    [log.downstream_direct_remote_address.map(|a| a.0), log.upstream_local_address.map(|a| a.0)].into_iter().flatten()
}

/// In the place of what is borrowed.
fn empty(clock: &ClockAnchor) -> Ground {
    Ground::of(Vec::new(), Sent::default(), &ClockAnchor::new(clock.samples().iter().take(1).copied().collect()), false)
}
