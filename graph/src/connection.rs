//! Pairs sockets into connections: by address, and by the sequence numbers that both ends share.

use crate::stream::{Outline, Stream};
use meshdiff_model::{Direction, Link, Message, MonotonicNs, Socket, SocketCookie, SocketRole};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

mod renamed;

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

impl Endpoint {
    /// Adds the next message of one of its directions.
    pub(crate) fn push(&mut self, message: &Message) {
        match message.direction {
            Direction::Egress => self.egress.push(message),
            Direction::Ingress => self.ingress.push(message),
        }
    }

    /// True if no message of it is still to come.
    pub(crate) const fn is_complete(&self) -> bool {
        self.egress.is_complete() && self.ingress.is_complete()
    }

    /// True if its application encrypts what it sends, and was seen to.
    pub(crate) fn tells_plaintext(&self) -> bool {
        self.socket.tls.as_ref().is_some_and(|tls| tls.plaintext_seen)
    }

    /// True if it sent TLS records.
    pub(crate) const fn speaks_tls(&self) -> bool {
        self.egress.spoken.tls
    }
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
    /// True if sequence numbers that both ends share prove the pair; false if only the addresses fit, or one end was not seen.
    pub(crate) proven: bool,
}

/// Sockets and their messages, by index.
pub(crate) fn endpoints(sockets: &[Socket], messages: &[Message]) -> Vec<Endpoint> {
    let (mut list, index) = silent(sockets.to_vec(), |_, _| None);
    for message in messages {
        if let Some(&i) = index.get(&message.socket) {
            list[i].push(message);
        }
    }
    list
}

/// Sockets whose messages are still to come, with what is known of them, and the place of each.
pub(crate) fn silent(
    sockets: Vec<Socket>,
    outline: impl Fn(SocketCookie, Direction) -> Option<Outline>,
) -> (Vec<Endpoint>, HashMap<SocketCookie, usize>) {
    let of = |socket: Socket| {
        let lossy = socket.lost_events > 0;
        let stream = |direction| Stream::expecting(lossy, outline(socket.cookie, direction).as_ref());
        Endpoint { egress: stream(Direction::Egress), ingress: stream(Direction::Ingress), socket }
    };
    let mut list: Vec<Endpoint> = sockets.into_iter().map(of).collect();
    list.sort_by_key(|e| (e.socket.first_seen, e.socket.cookie));
    let index = list.iter().enumerate().map(|(i, e)| (e.socket.cookie, i)).collect();
    (list, index)
}

/// Finds the two ends of every connection. Every endpoint is in exactly one. Two ends that several others fit are left alone.
pub(crate) fn pair(endpoints: &[Endpoint]) -> Vec<Connection> {
    let index = PeerIndex::of(endpoints);
    let choices: Vec<(Choice, Fit)> = (0..endpoints.len()).map(|i| index.choose(endpoints, i)).collect();
    // A REDIRECT rewrites what one end believes its peer to be, so a pair may be found from one of its ends only; whoever
    // is chosen twice is nobody's. Who has proof goes before who only might be.
    let mut chosen_by: Vec<(Choice, Fit)> = vec![(Choice::None, Fit::No); endpoints.len()];
    for (i, &(choice, fit)) in choices.iter().enumerate() {
        if let Choice::One(j) = choice {
            chosen_by[j] = prefer(chosen_by[j], i, fit);
        }
    }
    let choice: Vec<Choice> = choices.iter().map(|c| c.0).collect();
    let chosen_by: Vec<Choice> = chosen_by.iter().map(|c| c.0).collect();
    let peer: Vec<Option<usize>> = (0..endpoints.len())
        .map(|i| match (choice[i], chosen_by[i]) {
            (Choice::One(j), Choice::None) => {
                (chosen_by[j] == Choice::One(i) && choice[j] == Choice::None).then_some(j)
            }
            (Choice::None, Choice::One(j)) => Some(j),
            (Choice::One(j), Choice::One(back)) => (j == back && chosen_by[j] == Choice::One(i)).then_some(j),
            _ => None,
        })
        .collect();
    let mut peer: Vec<Option<usize>> = (0..peer.len()).map(|i| peer[i].filter(|&j| peer[j] == Some(i))).collect();
    for (client, server) in renamed::pairs(endpoints, &peer) {
        (peer[client], peer[server]) = (Some(server), Some(client));
    }
    let mut connections = Vec::new();
    for (i, e) in endpoints.iter().enumerate() {
        match peer[i] {
            Some(j) if j < i => {}
            Some(j) => connections.push(orient(endpoints, i, j)),
            None => {
                let link = link_of_one(&e.socket);
                let is_server = is_server(e).unwrap_or(e.socket.established.is_some());
                let (client, server) = if is_server { (None, Some(i)) } else { (Some(i), None) };
                connections.push(Connection { client, server, link, proven: false });
            }
        }
    }
    connections
}

/// How many fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    None,
    One(usize),
    Several,
}

impl Choice {
    const fn and(self, another: usize) -> Self {
        match self {
            Self::None => Self::One(another),
            Self::One(_) | Self::Several => Self::Several,
        }
    }
}

/// The best so far, or another that fits better (or as well).
fn prefer(best: (Choice, Fit), other: usize, fit: Fit) -> (Choice, Fit) {
    match fit.cmp(&best.1) {
        _ if fit == Fit::No => best,
        Ordering::Greater => (Choice::One(other), fit),
        Ordering::Equal => (best.0.and(other), fit),
        Ordering::Less => best,
    }
}

/// Endpoints by what their peers know of them.
struct PeerIndex {
    by_flow: HashMap<(SocketAddr, SocketAddr), Vec<usize>>,
    /// Those behind a REDIRECT, whose peers know another address of them.
    redirected: HashMap<SocketAddr, Vec<usize>>,
}

impl PeerIndex {
    fn of(endpoints: &[Endpoint]) -> Self {
        let mut by_flow: HashMap<_, Vec<usize>> = HashMap::new();
        let mut redirected: HashMap<_, Vec<usize>> = HashMap::new();
        for (i, Endpoint { socket, .. }) in endpoints.iter().enumerate() {
            by_flow.entry((socket.local.0, socket.remote.0)).or_default().push(i);
            if is_redirected(socket) {
                redirected.entry(socket.remote.0).or_default().push(i);
            }
        }
        Self { by_flow, redirected }
    }

    /// The endpoints that fit as the peer of endpoint `i`.
    fn choose(&self, endpoints: &[Endpoint], i: usize) -> (Choice, Fit) {
        let me = &endpoints[i];
        let (local, remote) = (me.socket.local.0, me.socket.remote.0);
        let flow = self.by_flow.get(&(remote, local)).into_iter().flatten();
        let behind = self.redirected.get(&local).into_iter().flatten();
        let behind = behind.filter(|&&j| endpoints[j].socket.local.0 != remote);
        // Whose sequence numbers meet is the one; others may only not have been seen to say anything.
        let choice = flow
            .chain(behind)
            .filter(|&&j| j != i)
            .fold((Choice::None, Fit::No), |best, &j| prefer(best, j, fit(me, &endpoints[j])));
        if choice.0 == Choice::Several {
            tracing::debug!(cookie = me.socket.cookie.0, "several sockets fit as the peer");
        }
        choice
    }
}

pub(crate) fn is_redirected(socket: &Socket) -> bool {
    [OUTBOUND_PORT, INBOUND_PORT].contains(&socket.local.port())
}

/// Whether two endpoints, whose addresses fit, are the two ends of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    No,
    /// Nothing speaks against it.
    Possible,
    /// Their sequence numbers meet in one direction; the other was not seen.
    Likely,
    /// Their sequence numbers meet in both directions.
    Proven,
}

fn fit(a: &Endpoint, b: &Endpoint) -> Fit {
    let local_only = |ip: IpAddr| ip.is_loopback();
    let (sa, sb) = (&a.socket, &b.socket);
    if (local_only(sa.local.ip()) || local_only(sa.remote.ip())) && sa.netns != sb.netns {
        return Fit::No;
    }
    let together = sa.first_seen <= last_alive(b) && sb.first_seen <= last_alive(a);
    let numbers = [same_numbers(&a.egress, &b.ingress), same_numbers(&b.egress, &a.ingress)];
    match numbers {
        _ if !together => Fit::No,
        [Some(false), _] | [_, Some(false)] => Fit::No,
        [None, None] => Fit::Possible,
        [Some(true), Some(true)] => Fit::Proven,
        _ => Fit::Likely,
    }
}

/// Until when a socket is known to have lived. One that was found open, and on which nothing ever happened, lives to the recording's end.
fn last_alive(e: &Endpoint) -> MonotonicNs {
    let silent = e.egress.extent().is_none() && e.ingress.extent().is_none();
    if silent && e.socket.closed.is_none() { MonotonicNs(u64::MAX) } else { e.socket.last_seen }
}

/// True if the two streams can be two ends of one direction: their ranges of sequence numbers meet. `None` if one of them was not
/// seen at all.
fn same_numbers(egress: &Stream, ingress: &Stream) -> Option<bool> {
    let ((from, to), (low, high)) = egress.extent().zip(ingress.extent())?;
    let shift = egress.shift_to(ingress);
    Some(from + shift <= high && low <= to + shift)
}

/// Whether the endpoint accepted its connection; `None` if nothing tells.
fn is_server(e: &Endpoint) -> Option<bool> {
    if let Some(role) = e.socket.role {
        return Some(role == SocketRole::Accepted);
    }
    if e.socket.connect_start.is_some() || passthrough(e.socket.local.ip()) {
        return Some(false);
    }
    if is_redirected(&e.socket) || passthrough(e.socket.remote.ip()) {
        return Some(true);
    }
    let said = e.egress.spoken;
    if said.requests || said.preface {
        return Some(false);
    }
    said.responses.then_some(true)
}

fn orient(endpoints: &[Endpoint], i: usize, j: usize) -> Connection {
    let i_is_server = match (is_server(&endpoints[i]), is_server(&endpoints[j])) {
        (Some(server), _) => server,
        (None, Some(other)) => !other,
        (None, None) => match (endpoints[i].socket.established, endpoints[j].socket.established) {
            // The handshake's last segment makes the accepting end the later one.
            (Some(a), Some(b)) if a != b => a > b,
            // Who was connecting when the probes came has no connect's start either. Clients use ephemeral ports, which are the
            // higher ones.
            _ => endpoints[i].socket.local.port() < endpoints[j].socket.local.port(),
        },
    };
    let (client, server) = if i_is_server { (j, i) } else { (i, j) };
    let link = link_of_one(&endpoints[server].socket).or_else(|| link_of_one(&endpoints[client].socket));
    let proven = fit(&endpoints[i], &endpoints[j]) >= Fit::Likely;
    Connection { client: Some(client), server: Some(server), link, proven }
}

/// True for the address that Istio's inbound clusters bind, so that the return path is not intercepted (`::6` for IPv6).
pub(crate) fn passthrough(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets() == [127, 0, 0, 6],
        IpAddr::V6(v6) => v6.segments() == [0, 0, 0, 0, 0, 0, 0, 6],
    }
}

/// Which part of a request's way a socket belongs to, by Istio's own addresses.
fn link_of_one(socket: &Socket) -> Option<Link> {
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
    /// The ends that were seen.
    pub(crate) fn ends(&self) -> impl Iterator<Item = usize> + use<> {
        [self.client, self.server].into_iter().flatten()
    }

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
            (Some(_), Some(s)) if is_redirected(&endpoints[s].socket) => endpoints[s].socket.remote.0,
            (Some(c), _) => endpoints[c].socket.local.0,
            (None, Some(s)) => endpoints[s].socket.remote.0,
            (None, None) => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }

    /// Every address that a log may have for the end that connected. A REDIRECT may have given it another port than it knows itself: of an
    /// application only its sidecar speaks, of a sidecar it does so itself, too.
    pub(crate) fn client_addresses(&self, endpoints: &[Endpoint]) -> impl Iterator<Item = SocketAddr> {
        let known = self.client_address(endpoints);
        let own = self.client.map(|c| endpoints[c].socket.local.0);
        let own = own.filter(|own| *own != known && self.link != Some(Link::ClientLoopback));
        std::iter::once(known).chain(own)
    }
}

#[cfg(test)]
mod tests;
