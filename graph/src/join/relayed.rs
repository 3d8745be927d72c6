//! Requests that an application encrypts itself.
//!
//! Both sidecars pass them on as TCP, so there is no log entry of a request, only one of each connection. But where both applications'
//! plaintext was seen, the kernel tells the requests of a connection, and the connections' entries tell which three belong together. The
//! proxies hand the bytes through as they are: a position in the stream that the client application sends is the same in the stream
//! that the server application receives. Between the sidecars it is too, unless they encrypt once more; then what a proxy sends there
//! after it has read a byte, and before the other has passed that byte on, holds it.

use super::{Entry, HopInput, Joiner, TOLERANCE};
use crate::connection::{Connection, Endpoint};
use crate::exchange::Exchange;
use crate::stream::{Offset, Stream};
use meshdiff_model::{Content, HopProtocol, HopSide, HopTimings, JoinOutcome, Link, MonotonicNs, Side};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// A request of which all three connections are known.
pub(super) struct Relayed {
    /// What the entries of the connections say, as if they were of this request.
    pub(super) client: Arc<HopSide>,
    pub(super) server: Arc<HopSide>,
    /// When it could be read by the client's and by the server's sidecar.
    pub(super) read: [Option<MonotonicNs>; 2],
    /// Its connections, in order of [`Link`].
    pub(super) connections: [usize; 3],
    /// Its place among the exchanges of each.
    pub(super) place: usize,
}

/// Finds them, and puts their exchanges in the place of what turns made of those connections.
pub(super) fn find(
    input: HopInput<'_>,
    endpoints: &[Endpoint],
    connections: &[Connection],
    by_client: &HashMap<SocketAddr, Vec<usize>>,
    cuts: &mut [Vec<Exchange>],
) -> Vec<Relayed> {
    let chains = Chains::of(input, endpoints, connections, by_client);
    let mut found = Vec::new();
    for chain in chains.list() {
        let Some(exchanges) = Ends::of(&chain, endpoints, connections).and_then(|ends| ends.exchanges(&chain)) else {
            continue;
        };
        for (place, [first, ..]) in exchanges.iter().enumerate() {
            let ends = |c: usize| connections[c].server.map(|s| &endpoints[s].ingress);
            let read = |link: usize| ends(chain.connections[link])?.ready(exchanges[place][link].request.0 + 1);
            let read = [read(0), read(1)];
            found.push(Relayed {
                client: Arc::new(as_request((chain.client, Side::Client), first, input, read[0])),
                server: Arc::new(as_request((chain.server, Side::Server), first, input, read[1])),
                read,
                connections: chain.connections,
                place,
            });
        }
        for (link, &connection) in chain.connections.iter().enumerate() {
            cuts[connection] = exchanges.iter().map(|e| e[link].clone()).collect();
        }
    }
    found
}

/// The entry of a connection as one of a request on it. The lengths of bodies are those of whole messages, which are the same at
/// both applications.
fn as_request(
    (log, side): (&HopSide, Side),
    exchange: &Exchange,
    input: HopInput<'_>,
    read: Option<MonotonicNs>,
) -> HopSide {
    let length = |(from, to): (Offset, Offset)| u64::try_from(to - from).unwrap_or(0);
    let (method, path) = match &exchange.request_content {
        Content::Http1Request { method, path } => (Some(Arc::clone(method)), Some(Arc::clone(path))),
        _ => (None, None),
    };
    let status = match exchange.response_content {
        Content::Http1Response { status } => Some(status),
        _ => None,
    };
    HopSide {
        side: Some(side),
        protocol: HopProtocol::Http,
        start_time: read.and_then(|at| input.clock.to_wall(at)).unwrap_or(log.start_time),
        timings: HopTimings::default(),
        method,
        path,
        response_code: status,
        request_id: None,
        stream_id: None,
        upstream_request_attempt_count: None,
        request_body_bytes: length(exchange.request),
        response_body_bytes: exchange.response.map_or(0, length),
        ..log.clone()
    }
}

impl Joiner<'_> {
    /// Such a request's two entries.
    pub(super) fn entries_of(&self, request: &Relayed) -> [Entry; 2] {
        let on =
            |link: usize| JoinOutcome::Matched(self.of_connection[request.connections[link]].start + request.place);
        let entry = |log: &Arc<HopSide>, link: usize| Entry {
            log: Arc::clone(log),
            start: request.read[link],
            downstream: on(link),
            upstream: on(link + 1),
            downstream_connection: Some(request.connections[link]),
            upstream_connection: Some(request.connections[link + 1]),
            place: None,
            attempt_of: None,
            router_log: None,
        };
        [entry(&request.client, 0), entry(&request.server, 1)]
    }
}

/// Three connections that carry the same bytes.
struct Chain<'a> {
    connections: [usize; 3],
    client: &'a HopSide,
    server: &'a HopSide,
}

/// Finds chains by what the entries of connections say.
struct Chains<'a> {
    input: HopInput<'a>,
    endpoints: &'a [Endpoint],
    connections: &'a [Connection],
    by_client: &'a HashMap<SocketAddr, Vec<usize>>,
    /// Entries of connections, by the address that connected.
    logs: HashMap<SocketAddr, Vec<&'a HopSide>>,
}

impl<'a> Chains<'a> {
    fn of(
        input: HopInput<'a>,
        endpoints: &'a [Endpoint],
        connections: &'a [Connection],
        by_client: &'a HashMap<SocketAddr, Vec<usize>>,
    ) -> Self {
        let mut logs: HashMap<SocketAddr, Vec<&HopSide>> = HashMap::new();
        for log in input.access_logs {
            if log.protocol == HopProtocol::Tcp
                && log.access_log_type.is_terminal()
                && let Some(peer) = log.downstream_direct_remote_address
            {
                logs.entry(peer.0).or_default().push(log);
            }
        }
        Self { input, endpoints, connections, by_client, logs }
    }

    fn list(&self) -> Vec<Chain<'a>> {
        let plain = |end: Option<usize>| end.is_some_and(|i| self.endpoints[i].tells_plaintext());
        let firsts = (0..self.connections.len())
            .filter(|&c| self.connections[c].link == Some(Link::ClientLoopback) && plain(self.connections[c].client));
        firsts
            .filter_map(|c| self.chain(c))
            .filter(|chain| plain(self.connections[chain.connections[2]].server))
            .collect()
    }

    fn chain(&self, first: usize) -> Option<Chain<'a>> {
        let client = self.log_of(first, Side::Client)?;
        let second = self.next(first, client)?;
        let server = self.log_of(second, Side::Server)?;
        let third = self.next(second, server)?;
        let links = [first, second, third].map(|c| self.connections[c].link);
        let fits = links[1].is_none_or(|l| l == Link::Network) && links[2].is_none_or(|l| l == Link::ServerLoopback);
        (fits && first != second && second != third).then_some(Chain {
            connections: [first, second, third],
            client,
            server,
        })
    }

    /// The one entry that speaks of a connection.
    fn log_of(&self, connection: usize, side: Side) -> Option<&'a HopSide> {
        let client = self.connections[connection].client_address(self.endpoints);
        let (first, last) = self.connections[connection].seen(self.endpoints);
        let fits = |log: &&&HopSide| {
            let start = self.input.clock.to_monotonic(log.start_time);
            log.side.is_none_or(|s| s == side)
                && start.is_some_and(|at| first <= at.offset(TOLERANCE) && at <= last.offset(TOLERANCE))
        };
        only(self.logs.get(&client)?.iter().filter(fits)).copied()
    }

    /// The one connection on which a proxy passed on what came on another.
    fn next(&self, from: usize, log: &HopSide) -> Option<usize> {
        let proxy = self.connections[from].server.map(|i| self.endpoints[i].socket.netns)?;
        let start = self.input.clock.to_monotonic(log.start_time)?;
        let fits = |c: &&usize| {
            let Some(client) = self.connections[**c].client.map(|i| &self.endpoints[i].socket) else { return false };
            let (first, last) = self.connections[**c].seen(self.endpoints);
            client.netns == proxy
                && start <= last
                && first <= self.connections[from].seen(self.endpoints).1
                && log.upstream_remote_address.is_none_or(|to| to.0 == client.remote.0)
        };
        only(self.by_client.get(&log.upstream_local_address?.0)?.iter().filter(fits)).copied()
    }
}

/// The one of several, if there is but one.
fn only<T>(mut list: impl Iterator<Item = T>) -> Option<T> {
    let first = list.next()?;
    list.next().is_none().then_some(first)
}

/// The six sockets of a chain.
struct Ends<'a> {
    sockets: [&'a Endpoint; 6],
}

/// Where a request and its response are on a connection.
type Ranges = ((Offset, Offset), Option<(Offset, Offset)>);

/// A message's place in the stream of the application that sent it.
struct Told {
    range: (Offset, Offset),
    content: Content,
}

impl<'a> Ends<'a> {
    /// If all were seen from their beginnings, without a loss: positions count from there.
    fn of(chain: &Chain<'_>, endpoints: &'a [Endpoint], connections: &[Connection]) -> Option<Self> {
        let ends = |c: usize| [connections[c].client, connections[c].server].map(|end| Some(&endpoints[end?]));
        let [[a, b], [c, d], [e, f]] = chain.connections.map(ends);
        let sockets = [a?, b?, c?, d?, e?, f?];
        let whole = |e: &&Endpoint| e.socket.established.is_some() && e.socket.lost_events == 0;
        sockets.iter().all(whole).then_some(Self { sockets })
    }

    /// The exchanges on each connection. `None` if the streams are not what they should be.
    fn exchanges(&self, chain: &Chain<'_>) -> Option<Vec<[Exchange; 3]>> {
        let [s1, .., s6] = self.sockets;
        let is_request = |c: &Content| matches!(c, Content::Http1Request { .. });
        let is_response = |c: &Content| matches!(c, Content::Http1Response { .. });
        let requests = told(&s1.egress, is_request);
        let responses = told(&s6.egress, is_response);
        let responses: Vec<&Told> = responses.iter().filter(|r| !r.content.is_interim_response()).collect();
        if requests.is_empty() || responses.len() > requests.len() || !self.same_bytes(0, 4) {
            return None;
        }
        let mut list = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let response = responses.get(i).copied();
            if let Some(response) = response {
                // An answer comes after its question, and before the next one: else they are no pair, or pipelined.
                let asked = s6.ingress.ready(request.range.0 + 1)?;
                let answered = s6.egress.send_of(response.range.0)?;
                let known = s1.ingress.ready(response.range.0 + 1)?;
                let next = requests.get(i + 1).and_then(|next| s1.egress.send_of(next.range.0));
                if answered < asked || next.is_some_and(|next| next < known) {
                    return None;
                }
            } else if i + 1 < requests.len() {
                return None;
            }
            let ends = (request.range, response.map(|r| r.range));
            let between = self.between(request, response)?;
            let make =
                |link: usize, ranges| self.exchange(chain.connections[link], link, ranges, (request, response), i);
            list.push([make(0, ends)?, make(1, between)?, make(2, ends)?]);
        }
        Some(list)
    }

    /// True if the connection of one socket carries no more bytes than that of another, in either direction.
    fn same_bytes(&self, here: usize, there: usize) -> bool {
        let end = |stream: &Stream| stream.extent().map_or(0, |e| e.1);
        let (a, b) = (&self.sockets[here], &self.sockets[there]);
        end(&b.egress) <= end(&a.egress) && end(&a.ingress) <= end(&b.ingress)
    }

    /// Where a request and its response are between the sidecars, as positions of the client's sidecar.
    fn between(&self, request: &Told, response: Option<&Told>) -> Option<Ranges> {
        let [_, s2, s3, s4, s5, _] = self.sockets;
        if self.same_bytes(0, 2) && self.same_bytes(2, 4) {
            return Some((request.range, response.map(|r| r.range)));
        }
        let from = s2.ingress.recv(request.range.0 + 1)?;
        let until = s5.egress.send_of(request.range.1 - 1)?;
        let asked = sent_between(&s3.egress, from, until)?;
        let answered = match response {
            None => None,
            Some(response) => {
                let from = s5.ingress.recv(response.range.0 + 1)?;
                let until = s2.egress.send_of(response.range.1 - 1)?;
                let (start, end) = sent_between(&s4.egress, from, until)?;
                let shift = s4.egress.shift_to(&s3.ingress);
                Some((start + shift, end + shift))
            }
        };
        Some((asked, answered))
    }

    fn exchange(
        &self,
        connection: usize,
        link: usize,
        (request, response): Ranges,
        told: (&Told, Option<&Told>),
        place: usize,
    ) -> Option<Exchange> {
        let client = self.sockets[2 * link];
        let first = client.egress.send_of(request.0)?;
        let last = response.and_then(|r| client.ingress.recv(r.1)).or_else(|| client.egress.last_send(request.1));
        Some(Exchange {
            connection,
            request,
            response,
            request_content: told.0.content.clone(),
            response_content: told.1.map_or(Content::Unknown, |r| r.content.clone()),
            pipelined: false,
            lossy: false,
            first_on_connection: place == 0 && link == Link::ClientLoopback as usize,
            beginning_unseen: false,
            after_handshake: false,
            first,
            last: last.unwrap_or(first),
            stream: None,
        })
    }
}

/// The messages that an application sent, by its plaintext. What its library sends of its own belongs to none.
fn told(stream: &Stream, begins: impl Fn(&Content) -> bool) -> Vec<Told> {
    let mut list: Vec<Told> = Vec::new();
    let mut open = false;
    for piece in &stream.pieces {
        if begins(&piece.content) {
            list.push(Told { range: (piece.start, piece.end), content: piece.content.clone() });
            open = true;
        } else if piece.content != Content::Unknown {
            open = false;
        } else if let Some(last) = list.last_mut().filter(|_| open) {
            last.range.1 = piece.end;
        }
    }
    list
}

/// The bytes of the sends that began in a time.
fn sent_between(stream: &Stream, from: MonotonicNs, until: MonotonicNs) -> Option<(Offset, Offset)> {
    let (low, high) = stream.extent()?;
    let start = stream.first_send_from(low, high, from)?;
    // To where the first send after that time begins.
    let after = MonotonicNs(until.0.saturating_add(1));
    let end = stream.first_send_from(start, high, after).unwrap_or(high);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests;
