//! Pairs sockets into connections: by address, and by the sequence numbers that both ends share.

use crate::stream::Stream;
use meshdiff_model::{Content, Direction, Link, Message, MonotonicNs, Socket, SocketCookie};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Istio's ports for intercepted traffic: outbound and inbound (`istio.io`, "Ports used by Istio").
pub(crate) const OUTBOUND_PORT: u16 = 15001;
pub(crate) const INBOUND_PORT: u16 = 15006;

/// A socket with both directions of its bytes.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) socket: Socket,
    pub(crate) egress: Stream,
    pub(crate) ingress: Stream,
}

/// Two sockets that talk to each other, or one whose peer was not seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    /// The end that connected.
    pub(crate) client: Option<usize>,
    /// The end that accepted.
    pub(crate) server: Option<usize>,
    /// Which part of a request's way it is, where the addresses tell.
    pub(crate) link: Option<Link>,
}

/// Sockets and their messages, by index.
pub(crate) fn endpoints(sockets: &[Socket], messages: &[Message]) -> Vec<Endpoint> {
    let mut list: Vec<Endpoint> = sockets
        .iter()
        .map(|s| {
            let lossy = s.lost_events > 0;
            Endpoint { socket: s.clone(), egress: Stream::new(lossy), ingress: Stream::new(lossy) }
        })
        .collect();
    list.sort_by_key(|e| (e.socket.first_seen, e.socket.cookie));
    let index: HashMap<SocketCookie, usize> = list.iter().enumerate().map(|(i, e)| (e.socket.cookie, i)).collect();
    for message in messages {
        if let Some(&i) = index.get(&message.socket) {
            match message.direction {
                Direction::Egress => list[i].egress.push(message),
                Direction::Ingress => list[i].ingress.push(message),
            }
        }
    }
    list
}

/// Finds the two ends of every connection. Every endpoint is in exactly one.
pub(crate) fn pair(endpoints: &[Endpoint]) -> Vec<Connection> {
    let mut by_remote: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (i, e) in endpoints.iter().enumerate() {
        by_remote.entry(e.socket.remote.0).or_default().push(i);
    }
    let mut peer: Vec<Option<usize>> = vec![None; endpoints.len()];
    for i in 0..endpoints.len() {
        if peer[i].is_none()
            && let Some(j) = only_peer(endpoints, &by_remote, i)
            && peer[j].is_none()
        {
            peer[i] = Some(j);
            peer[j] = Some(i);
        }
    }
    let mut connections = Vec::new();
    for (i, e) in endpoints.iter().enumerate() {
        match peer[i] {
            Some(j) if j < i => {}
            Some(j) => connections.push(orient(endpoints, i, j)),
            None => {
                let link = link_of_one(&e.socket);
                let is_server = is_server(e) == Some(true);
                let (client, server) = if is_server { (None, Some(i)) } else { (Some(i), None) };
                connections.push(Connection { client, server, link });
            }
        }
    }
    connections
}

/// The one endpoint that fits as the peer of endpoint `i`; `None` if there is none or several. A REDIRECT rewrites what one
/// end believes its peer to be, so a pair may be found from one of its ends only.
fn only_peer(endpoints: &[Endpoint], by_remote: &HashMap<SocketAddr, Vec<usize>>, i: usize) -> Option<usize> {
    let me = &endpoints[i];
    let mut found = None;
    for &j in by_remote.get(&me.socket.local.0)? {
        if j != i && fits(me, &endpoints[j]) {
            if found.is_some() {
                tracing::debug!(cookie = me.socket.cookie.0, "several sockets fit as the peer");
                return None;
            }
            found = Some(j);
        }
    }
    found
}

fn fits(a: &Endpoint, b: &Endpoint) -> bool {
    let local_only = |ip: IpAddr| ip.is_loopback();
    let (sa, sb) = (&a.socket, &b.socket);
    if (local_only(sa.local.ip()) || local_only(sa.remote.ip())) && sa.netns != sb.netns {
        return false;
    }
    let same_flow = sb.local.0 == sa.remote.0;
    let redirected = |s: &Socket| [OUTBOUND_PORT, INBOUND_PORT].contains(&s.local.port());
    if !same_flow && !redirected(sa) && !redirected(sb) {
        return false;
    }
    let together = sa.first_seen <= sb.last_seen && sb.first_seen <= sa.last_seen;
    together && same_numbers(&a.egress, &b.ingress) && same_numbers(&b.egress, &a.ingress)
}

/// True if the two streams can be two ends of one direction: their ranges of sequence numbers meet, or one of them was
/// not seen at all.
fn same_numbers(egress: &Stream, ingress: &Stream) -> bool {
    let (Some((from, to)), Some((low, high))) = (egress.extent(), ingress.extent()) else { return true };
    let shift = egress.shift_to(ingress);
    from + shift <= high && low <= to + shift
}

/// Whether the endpoint accepted its connection; `None` if nothing tells.
fn is_server(e: &Endpoint) -> Option<bool> {
    if e.socket.connect_start.is_some() {
        return Some(false);
    }
    if [OUTBOUND_PORT, INBOUND_PORT].contains(&e.socket.local.port()) {
        return Some(true);
    }
    let requests =
        |s: &Stream| s.pieces.iter().any(|p| matches!(p.content, Content::Http1Request { .. } | Content::Http2Preface));
    let responses = |s: &Stream| s.pieces.iter().any(|p| matches!(p.content, Content::Http1Response { .. }));
    if requests(&e.egress) {
        return Some(false);
    }
    if responses(&e.egress) || e.socket.established.is_some() {
        return Some(true);
    }
    None
}

fn orient(endpoints: &[Endpoint], i: usize, j: usize) -> Connection {
    let i_is_server = match (is_server(&endpoints[i]), is_server(&endpoints[j])) {
        (Some(server), _) => server,
        (None, Some(other)) => !other,
        // Neither was seen connecting: clients use ephemeral ports, which are the higher ones.
        (None, None) => endpoints[i].socket.local.port() < endpoints[j].socket.local.port(),
    };
    let (client, server) = if i_is_server { (j, i) } else { (i, j) };
    let link = link_of_one(&endpoints[server].socket).or_else(|| link_of_one(&endpoints[client].socket));
    Connection { client: Some(client), server: Some(server), link }
}

/// Which part of a request's way a socket belongs to, by Istio's own addresses.
fn link_of_one(socket: &Socket) -> Option<Link> {
    // Istio's inbound clusters bind 127.0.0.6 (::6 for IPv6), so that the return path is not intercepted.
    let passthrough = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets() == [127, 0, 0, 6],
        IpAddr::V6(v6) => v6.segments() == [0, 0, 0, 0, 0, 0, 0, 6],
    };
    if passthrough(socket.local.ip()) || passthrough(socket.remote.ip()) {
        return Some(Link::ServerLoopback);
    }
    match socket.local.port() {
        OUTBOUND_PORT => Some(Link::ClientLoopback),
        INBOUND_PORT => Some(Link::Network),
        _ => None,
    }
}

impl Connection {
    /// First and last instant at which either end was seen.
    pub(crate) fn seen(&self, endpoints: &[Endpoint]) -> (MonotonicNs, MonotonicNs) {
        let ends = || [self.client, self.server].into_iter().flatten().map(|i| &endpoints[i].socket);
        let first = ends().map(|s| s.first_seen).min().unwrap_or_default();
        let last = ends().map(|s| s.last_seen).max().unwrap_or_default();
        (first, last)
    }

    /// The address of the end that connected, as the end that accepted knows it.
    pub(crate) fn client_address(&self, endpoints: &[Endpoint]) -> SocketAddr {
        match (self.client, self.server) {
            (Some(c), _) => endpoints[c].socket.local.0,
            (None, Some(s)) => endpoints[s].socket.remote.0,
            (None, None) => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }
}
