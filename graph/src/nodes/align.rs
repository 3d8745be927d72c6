//! On which timeline several nodes' instants compare.
//!
//! A connection between two nodes has a socket on each, and both count its bytes with the same numbers. A byte is never ready at its
//! receiver before its sender sent it, so each gives a bound on how far the two clocks are apart, messages there from one side
//! and messages back from the other. It is what NTP does, with the traffic that is there anyway; the fastest messages of a window leave an
//! uncertainty of half a round trip.

use super::NodeRecording;
use super::fit::{Bounds, Line};
use crate::connection::is_redirected;
use meshdiff_model::{Direction, DurationNs, Message, MonotonicNs, SeqInstant, SeqNo, Socket, SocketCookie, WallTime};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

/// Connections of which the bounds say something else by more than this than those of most others are no pairs.
const STRANGE_NS: i64 = 1_000_000_000;

/// How a node's instants are put on the timeline.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Aligned {
    pub(super) to: Move,
    pub(super) ahead: DurationNs,
    pub(super) instants: u64,
    pub(super) contradiction: DurationNs,
    pub(super) reference: bool,
}

/// Instants are moved by this.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Move {
    by: i128,
    at: i128,
    rate: f64,
}

impl Move {
    pub(super) fn apply(&self, at: MonotonicNs) -> MonotonicNs {
        let at = i128::from(at.0);
        let moved = at + self.by + self.drift(at - self.at);
        MonotonicNs(u64::try_from(moved.max(0)).unwrap_or(u64::MAX))
    }

    /// A span of the node's clock.
    pub(super) fn stretch(&self, span: DurationNs) -> DurationNs {
        let drift = self.drift(span.0.into());
        DurationNs(span.0.saturating_add(i64::try_from(drift).unwrap_or_default()))
    }

    fn drift(&self, over: i128) -> i128 {
        if self.rate == 0.0 { 0 } else { (self.rate * over as f64).round() as i128 }
    }
}

/// Finds the timeline. The reference's own instants are moved by a constant.
pub(super) fn align(nodes: &[NodeRecording]) -> Vec<Aligned> {
    // First all by their wall clocks, as they were when their recordings ended.
    let by_wall: Vec<i128> = nodes.iter().map(wall_less_monotonic).collect();
    let links = links(nodes, &by_wall);
    let offsets = relax(nodes.len(), &links);
    let reference = reference(nodes, &offsets);
    (0..nodes.len())
        .map(|i| {
            let known = offsets[i].zip(offsets[reference]).filter(|(a, b)| a.group == b.group);
            let mut to = Move { by: by_wall[i], at: 0, rate: 0.0 };
            let mut ahead = 0;
            if let Some((own, other)) = known {
                ahead = (own.offset - other.when(own.at)).round() as i128;
                // The offset's instant as the node's own clock has it.
                let at = own.at + own.offset.round() as i128 - by_wall[i];
                to = Move { by: by_wall[i] - ahead, at, rate: other.rate - own.rate };
            }
            let own = links.iter().filter(|l| l.a == i || l.b == i);
            let broken = own.clone().map(|l| l.line.slack).fold(0.0, f64::min);
            Aligned {
                to,
                ahead: DurationNs(i64::try_from(ahead).unwrap_or(i64::MAX)),
                instants: if known.is_some() { own.map(|l| l.instants).sum() } else { 0 },
                contradiction: DurationNs((-broken).round() as i64),
                reference: i == reference,
            }
        })
        .collect()
}

fn wall_less_monotonic(node: &NodeRecording) -> i128 {
    let at = node.window.1;
    let wall = node.clock.to_wall(at).unwrap_or(WallTime(0));
    i128::from(wall.0) - i128::from(at.0)
}

/// What two nodes' messages say of their clocks.
struct Link {
    a: usize,
    b: usize,
    line: Line,
    instants: u64,
}

/// A node's wall clock against that of the first node of its group, whose instants `at` is one of.
#[derive(Clone, Copy, Debug)]
struct Offset {
    group: usize,
    offset: f64,
    rate: f64,
    at: i128,
}

impl Offset {
    fn when(&self, at: i128) -> f64 {
        self.offset + self.rate * (at - self.at) as f64
    }
}

/// A direction of a socket that talks to another machine.
#[derive(Default)]
struct Stream<'a> {
    messages: Vec<&'a Message>,
}

type Streams<'a> = HashMap<(SocketCookie, Direction), Stream<'a>>;

fn links(nodes: &[NodeRecording], by_wall: &[i128]) -> Vec<Link> {
    let outside = |s: &&Socket| !s.local.ip().is_loopback() && !s.remote.ip().is_loopback();
    let mut by_peer: HashMap<SocketAddr, Vec<(usize, &Socket)>> = HashMap::new();
    for (n, node) in nodes.iter().enumerate() {
        for socket in node.sockets.iter().filter(outside) {
            by_peer.entry(socket.remote.0).or_default().push((n, socket));
        }
    }
    let mut pairs: Vec<[(usize, &Socket); 2]> = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        for socket in node.sockets.iter().filter(outside) {
            for &(m, peer) in by_peer.get(&socket.local.0).into_iter().flatten() {
                let there =
                    peer.local.0 == socket.remote.0 || (is_redirected(peer) && peer.local.ip() == socket.remote.ip());
                // Two plain ends find each other twice.
                let twice = m < n && peer.local.0 == socket.remote.0;
                if m != n && there && !twice {
                    pairs.push([(n, socket), (m, peer)]);
                }
            }
        }
    }
    let streams = streams(nodes, &pairs);
    let mut found: BTreeMap<(usize, usize), Vec<Bounds>> = BTreeMap::new();
    for [x, y] in pairs {
        let (a, b) = if x.0 < y.0 { (x, y) } else { (y, x) };
        let bounds = bounds_of(a, b, &streams, by_wall);
        // Numbers that meet by chance do so in one direction.
        if bounds.instants > 0 && bounds.extremes().0.zip(bounds.extremes().1).is_none_or(|(l, h)| l <= h + STRANGE_NS)
        {
            found.entry((a.0, b.0)).or_default().push(bounds);
        }
    }
    found.into_iter().filter_map(|((a, b), list)| link(a, b, list)).collect()
}

/// Puts the connections of two nodes together, but for those that contradict most others.
fn link(a: usize, b: usize, list: Vec<Bounds>) -> Option<Link> {
    let centre = |bounds: &Bounds| match bounds.extremes() {
        (Some(low), Some(high)) => Some(low / 2 + high / 2),
        (one, other) => one.or(other),
    };
    let mut centres: Vec<i64> = list.iter().filter_map(centre).collect();
    centres.sort_unstable();
    let middle = *centres.get(centres.len() / 2)?;
    let mut bounds = Bounds::default();
    for one in list.iter().filter(|l| centre(l).is_some_and(|c| c.abs_diff(middle) <= STRANGE_NS.unsigned_abs())) {
        bounds.add(one);
    }
    let line = bounds.fit()?;
    Some(Link { a, b, line, instants: bounds.instants })
}

fn streams<'a>(nodes: &'a [NodeRecording], pairs: &[[(usize, &Socket); 2]]) -> Vec<Streams<'a>> {
    let mut streams: Vec<Streams<'a>> = nodes.iter().map(|_| Streams::new()).collect();
    for (node, socket) in pairs.iter().flatten() {
        for direction in [Direction::Egress, Direction::Ingress] {
            streams[*node].entry((socket.cookie, direction)).or_default();
        }
    }
    for (node, streams) in nodes.iter().zip(&mut streams) {
        for message in &node.messages {
            if let Some(stream) = streams.get_mut(&(message.socket, message.direction)) {
                stream.messages.push(message);
            }
        }
    }
    streams
}

/// What one connection says of `b`'s clock less `a`'s.
fn bounds_of(a: (usize, &Socket), b: (usize, &Socket), streams: &[Streams<'_>], by_wall: &[i128]) -> Bounds {
    let mut bounds = Bounds::default();
    let of = |(node, socket): (usize, &Socket), direction| streams[node].get(&(socket.cookie, direction));
    let wall = |node: usize, at: MonotonicNs| i128::from(at.0) + by_wall[node];
    let less = |x: i128, y: i128| i64::try_from(x - y).unwrap_or(if x > y { i64::MAX } else { i64::MIN });
    if let (Some(sent), Some(arrived)) = (of(a, Direction::Egress), of(b, Direction::Ingress)) {
        // On one clock it would have arrived after it was sent: b − a is less than what it seems to have taken.
        crossings(sent, arrived, |send, ready| {
            let at = MonotonicNs(u64::try_from(wall(a.0, send)).unwrap_or_default());
            bounds.less_than(at, less(wall(b.0, ready), wall(a.0, send)));
        });
    }
    if let (Some(sent), Some(arrived)) = (of(b, Direction::Egress), of(a, Direction::Ingress)) {
        crossings(sent, arrived, |send, ready| {
            let at = MonotonicNs(u64::try_from(wall(a.0, ready)).unwrap_or_default());
            bounds.more_than(at, less(wall(b.0, send), wall(a.0, ready)));
        });
    }
    bounds
}

/// Calls `with` for each send and the first instant at which its first byte was known to be ready.
fn crossings(sent: &Stream<'_>, arrived: &Stream<'_>, mut with: impl FnMut(MonotonicNs, MonotonicNs)) {
    // A receiver's bytes begin where its first message does: what was sent before is not among them.
    let Some(begin) = arrived.messages.first().map(|m| m.seq.start) else { return };
    // Where one is missing, the next one is later: a weaker bound, and a true one.
    let mut ready: VecDeque<SeqInstant> = arrived.messages.iter().flat_map(|m| m.readies.iter().copied()).collect();
    let Some(end) = arrived.messages.last().map(|m| m.seq.end) else { return };
    let within = |seq: SeqNo| begin.distance(seq) >= 0 && seq.distance(end) > 0;
    for send in sent.messages.iter().flat_map(|m| &m.sends).filter(|s| within(s.seq)) {
        // Ready says which byte is the first that is not: the byte was ready by the first one beyond it.
        while ready.front().is_some_and(|r| send.seq.distance(r.seq) <= 0) {
            ready.pop_front();
        }
        if let Some(ready) = ready.front() {
            with(send.at, ready.at);
        }
    }
}

/// Each node's clock against its group's first: along the links with most evidence, then moved to where all links of a node agree.
fn relax(count: usize, links: &[Link]) -> Vec<Option<Offset>> {
    let mut order: Vec<&Link> = links.iter().collect();
    order.sort_by_key(|l| (std::cmp::Reverse(l.instants), l.a, l.b));
    let mut offsets: Vec<Option<Offset>> = vec![None; count];
    for group in 0..count {
        if offsets[group].is_some() || !links.iter().any(|l| l.a == group || l.b == group) {
            continue;
        }
        offsets[group] = Some(Offset { group, offset: 0.0, rate: 0.0, at: 0 });
        while let Some((node, offset)) = order.iter().find_map(|l| reach(l, &offsets)) {
            offsets[node] = Some(offset);
        }
    }
    for _ in 0..50 {
        for node in 0..count {
            settle(node, links, &mut offsets);
        }
    }
    offsets
}

/// What a link from a node that is known says of one that is not. A link's line is of instants of its first node.
fn reach(link: &Link, offsets: &[Option<Offset>]) -> Option<(usize, Offset)> {
    let (line, at) = (link.line, i128::from(link.line.at));
    let (from, to, sign, at) = match (offsets[link.a], offsets[link.b]) {
        (Some(a), None) => (a, link.b, 1.0, at - a.offset.round() as i128),
        (None, Some(b)) => (b, link.a, -1.0, at - (b.offset - line.offset).round() as i128),
        _ => return None,
    };
    let offset = from.when(at) + sign * line.offset;
    Some((to, Offset { group: from.group, offset, rate: from.rate + sign * line.rate, at }))
}

/// Moves a node's clock to the middle of what its links allow, where they allow anything together.
fn settle(node: usize, links: &[Link], offsets: &mut [Option<Offset>]) {
    let Some(own) = offsets[node].filter(|o| o.group != node) else { return };
    let (mut low, mut high, mut count) = (f64::NEG_INFINITY, f64::INFINITY, 0);
    for link in links.iter().filter(|l| l.a == node || l.b == node) {
        let (other, sign) = if link.b == node { (link.a, 1.0) } else { (link.b, -1.0) };
        let (Some(other), Some(first)) = (offsets[other], offsets[link.a]) else { continue };
        let room = if link.line.slack.is_finite() { link.line.slack.max(0.0) } else { 0.0 };
        let from = own.at + first.offset.round() as i128 - i128::from(link.line.at);
        let middle = other.when(own.at) + sign * (link.line.offset + link.line.rate * from as f64);
        (low, high, count) = (low.max(middle - room), high.min(middle + room), count + 1);
    }
    if count > 1 {
        offsets[node] = Some(Offset { offset: f64::midpoint(low, high), ..own });
    }
}

/// The node whose wall clock the others' differ from least: with three and more, one that is wrong is not chosen.
fn reference(nodes: &[NodeRecording], offsets: &[Option<Offset>]) -> usize {
    let apart = |i: usize| {
        let of = |j: usize| offsets[i].zip(offsets[j]).filter(|(a, b)| a.group == b.group);
        let sum: f64 = (0..nodes.len()).filter_map(of).map(|(a, b)| (a.offset - b.offset).abs()).sum();
        let known = (0..nodes.len()).filter(|&j| of(j).is_some()).count();
        (std::cmp::Reverse(known), sum)
    };
    let before = |a: &usize, b: &usize| {
        let (x, y) = (apart(*a), apart(*b));
        x.0.cmp(&y.0).then(x.1.total_cmp(&y.1)).then_with(|| nodes[*a].name.cmp(&nodes[*b].name))
    };
    (0..nodes.len()).min_by(before).unwrap_or_default()
}
