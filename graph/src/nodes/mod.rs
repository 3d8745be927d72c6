//! Recordings of several nodes, put together as if they were one.
//!
//! Every node numbers its sockets, processes and namespaces by itself, and reads a monotonic clock of its own, which no other node's
//! instants compare with. [`merge`] gives everything numbers that are unique among the nodes and puts all instants on one
//! timeline. Where two nodes talk to each other, the bytes tell how: none is ready before it was sent, in either direction
//! ([`align`]), so that whatever happened before something else stays before it, however wrong the nodes' wall clocks are. Where they do not,
//! there is only the wall clock.
//!
//! Times that a report shows are spans between instants of one node. They do not change by being moved together, but for the difference of
//! the two clocks' rates where that had to be taken into account (some millionths at most).

mod align;
mod fit;

use crate::join::Steps;
use align::Aligned;
use meshdiff_model::{
    ClockAnchor, ClockSample, DurationNs, HopSide, Http2Stream, Message, MonotonicNs, NetnsId, Process, Socket,
    SocketCookie, SocketMetrics, Tgid, WallTime,
};
use std::collections::{BTreeMap, BTreeSet};

/// What one node recorded.
#[derive(Clone, Debug, Default)]
pub struct NodeRecording {
    /// The node's name, for people.
    pub name: String,
    /// Its sockets.
    pub sockets: Vec<Socket>,
    /// Their messages.
    pub messages: Vec<Message>,
    /// What they sent of HTTP/2 streams.
    pub http2_streams: Vec<Http2Stream>,
    /// What they did, by windows.
    pub metrics: Vec<SocketMetrics>,
    /// What the node's proxies logged.
    pub access_logs: Vec<HopSide>,
    /// The processes that own sockets.
    pub processes: Vec<Process>,
    /// Namespaces of which more is said elsewhere, in an order of their own: they are renumbered, too.
    pub namespaces: Vec<NetnsId>,
    /// How the node's wall clock ran against its monotonic clock.
    pub clock: ClockAnchor,
    /// First and last instant of its recording.
    pub window: (MonotonicNs, MonotonicNs),
}

/// Recordings of several nodes on one timeline. Its monotonic clock is the wall clock of the reference node, in ns since 1970.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// Everything, numbered anew; name, namespaces and window are those of the whole (its first beginning, its last end).
    pub all: NodeRecording,
    /// What became of each node, in the order in which they came.
    pub nodes: Vec<MergedNode>,
}

/// How a node's recording was put on the common timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedNode {
    /// Its name.
    pub name: String,
    /// Its window on the common timeline.
    pub window: (MonotonicNs, MonotonicNs),
    /// Its namespaces' new numbers, in their order.
    pub namespaces: Vec<NetnsId>,
    /// How far its wall clock is ahead of the reference's, where messages between nodes tell.
    pub ahead: Option<DurationNs>,
    /// How many instants of messages to and from other nodes that rests on.
    pub instants: u64,
    /// By how much messages seem to have arrived before they were sent, at most, with the best timeline that there is. 0 is as it
    /// should be; more says that one of the clocks did not run evenly.
    pub contradiction: DurationNs,
    /// True for the node whose wall clock is the report's.
    pub reference: bool,
}

/// A recording that cannot be put together with others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// More nodes than there are numbers.
    #[error("{0} nodes are more than can be put together: choose fewer with a namespace, a selector or --context")]
    TooManyNodes(usize),
    /// No kernel gives such numbers.
    #[error("the recording of {0} has a socket cookie that no kernel gives: it is damaged")]
    StrangeCookie(String),
}

/// Puts recordings together. One recording alone keeps its numbers and instants but for the timeline's beginning.
///
/// # Errors
/// If there are more nodes than can be numbered, or if a socket's cookie is none.
pub fn merge(nodes: Vec<NodeRecording>) -> Result<Merged, MergeError> {
    if nodes.len() >= 1 << (u64::BITS - SocketCookie::NODE_SHIFT) {
        return Err(MergeError::TooManyNodes(nodes.len()));
    }
    let strange = |n: &&NodeRecording| n.sockets.iter().any(|s| s.cookie.node_number() != 0);
    if let Some(node) = nodes.iter().find(strange) {
        return Err(MergeError::StrangeCookie(node.name.clone()));
    }
    let aligned = align::align(&nodes);
    let mut merged = Merged::default();
    let mut numbers = Numbers::default();
    let mut stepped: Vec<(WallTime, WallTime)> = Vec::new();
    for (index, (node, aligned)) in nodes.into_iter().zip(aligned).enumerate() {
        let to = Timeline { aligned, clock: &node.clock };
        stepped.extend(Steps::of(&node.clock).spans().map(|(a, b)| (to.wall(a), to.wall(b))));
        let window = (to.instant(node.window.0), to.instant(node.window.1));
        let base = (index as u64) << SocketCookie::NODE_SHIFT;
        let mut own = OfNode { numbers: &mut numbers, netns: BTreeMap::new(), tgid: BTreeMap::new() };
        let namespaces: Vec<NetnsId> = node.namespaces.iter().map(|n| own.netns(*n)).collect();
        merged.all.sockets.extend(node.sockets.into_iter().map(|s| socket(s, base, &to, &mut own)));
        merged.all.messages.extend(node.messages.into_iter().map(|m| message(m, base, &to)));
        merged.all.http2_streams.extend(node.http2_streams.into_iter().map(|s| stream(s, base, &to)));
        merged.all.metrics.extend(node.metrics.into_iter().map(|m| metrics(m, base, &to)));
        merged.all.processes.extend(node.processes.into_iter().map(|p| Process {
            tgid: own.tgid(p.tgid),
            netns: own.netns(p.netns),
            ..p
        }));
        let logs = node.access_logs.into_iter();
        merged.all.access_logs.extend(logs.map(|l| HopSide {
            start_time: to.wall(l.start_time),
            timings: l.timings.map(|span| to.span(span)),
            ..l
        }));
        merged.all.namespaces.extend(&namespaces);
        merged.nodes.push(MergedNode {
            name: node.name,
            window,
            namespaces,
            ahead: (aligned.instants > 0 || aligned.reference).then_some(aligned.ahead),
            instants: aligned.instants,
            contradiction: aligned.contradiction,
            reference: aligned.reference,
        });
    }
    let first = merged.nodes.iter().map(|n| n.window.0).min().unwrap_or_default();
    let last = merged.nodes.iter().map(|n| n.window.1).max().unwrap_or_default();
    merged.all.window = (first, last);
    merged.all.clock = clock(first, last, stepped);
    Ok(merged)
}

/// How a node's instants become the timeline's.
struct Timeline<'a> {
    aligned: Aligned,
    clock: &'a ClockAnchor,
}

impl Timeline<'_> {
    fn instant(&self, at: MonotonicNs) -> MonotonicNs {
        self.aligned.to.apply(at)
    }

    fn span(&self, span: DurationNs) -> DurationNs {
        self.aligned.to.stretch(span)
    }

    fn maybe(&self, at: Option<MonotonicNs>) -> Option<MonotonicNs> {
        at.map(|at| self.instant(at))
    }

    /// What a proxy read off the node's wall clock.
    fn wall(&self, at: WallTime) -> WallTime {
        let known = self.clock.to_monotonic(at);
        known.map_or(at, |at| WallTime(i64::try_from(self.instant(at).0).unwrap_or(i64::MAX)))
    }

    fn all(&self, list: &mut [meshdiff_model::SeqInstant]) {
        list.iter_mut().for_each(|i| i.at = self.instant(i.at));
    }
}

/// Numbers that are taken.
#[derive(Default)]
struct Numbers {
    netns: BTreeSet<u32>,
    tgid: BTreeSet<u32>,
}

/// One node's numbers, and what they became.
struct OfNode<'a> {
    numbers: &'a mut Numbers,
    netns: BTreeMap<u32, u32>,
    tgid: BTreeMap<u32, u32>,
}

impl OfNode<'_> {
    fn netns(&mut self, netns: NetnsId) -> NetnsId {
        NetnsId(renumber(&mut self.numbers.netns, &mut self.netns, netns.0))
    }

    fn tgid(&mut self, tgid: Tgid) -> Tgid {
        Tgid(renumber(&mut self.numbers.tgid, &mut self.tgid, tgid.0))
    }
}

/// The number itself where no other node had it first, else one that nobody has.
fn renumber(taken: &mut BTreeSet<u32>, own: &mut BTreeMap<u32, u32>, number: u32) -> u32 {
    *own.entry(number).or_insert_with(|| {
        let mut free = number;
        // Namespaces and processes have numbers far from 0 and from the type's end: there is room.
        while !taken.insert(free) {
            free = taken.last().map_or(0, |last| last.wrapping_add(1));
        }
        free
    })
}

fn socket(s: Socket, base: u64, to: &Timeline<'_>, own: &mut OfNode<'_>) -> Socket {
    Socket {
        cookie: SocketCookie(base | s.cookie.0),
        netns: own.netns(s.netns),
        owner: s.owner.map(|tgid| own.tgid(tgid)),
        connect_start: to.maybe(s.connect_start),
        established: to.maybe(s.established),
        closed: to.maybe(s.closed),
        first_seen: to.instant(s.first_seen),
        last_seen: to.instant(s.last_seen),
        ..s
    }
}

fn message(mut m: Message, base: u64, to: &Timeline<'_>) -> Message {
    m.socket.0 |= base;
    for list in [&mut m.sends, &mut m.readies, &mut m.recvs, &mut m.held, &mut m.retransmits] {
        to.all(list);
    }
    m
}

fn stream(mut s: Http2Stream, base: u64, to: &Timeline<'_>) -> Http2Stream {
    s.socket.0 |= base;
    s.first.at = to.instant(s.first.at);
    s.last.at = to.instant(s.last.at);
    s.data.iter_mut().for_each(|d| d.first.at = to.instant(d.first.at));
    s
}

/// Windows of different nodes begin at different instants: on the common timeline each is taken for the one that it overlaps most.
fn metrics(mut m: SocketMetrics, base: u64, to: &Timeline<'_>) -> SocketMetrics {
    m.socket.0 |= base;
    let half = DurationNs(SocketMetrics::WINDOW.0 / 2);
    m.window_start = SocketMetrics::window_of(to.instant(m.window_start).offset(half));
    m
}

/// The timeline's clock: instants are the reference's wall clock already. Around the instants at which a node's wall clock was set
/// it has a jump there and back, so that nothing is told by what proxies logged then.
fn clock(first: MonotonicNs, last: MonotonicNs, mut stepped: Vec<(WallTime, WallTime)>) -> ClockAnchor {
    const JUMP_NS: i64 = 100_000;
    let wall = |at: MonotonicNs| i64::try_from(at.0).unwrap_or(i64::MAX);
    let sample = |wall: i64, jump: i64| ClockSample {
        monotonic: MonotonicNs(u64::try_from(wall).unwrap_or_default()),
        wall: WallTime(wall.saturating_add(jump)),
    };
    let mut samples = vec![sample(wall(first), 0), sample(wall(last), 0)];
    stepped.sort_unstable();
    for (from, to) in stepped {
        let middle = from.0 / 2 + to.0 / 2;
        samples.extend([sample(from.0, 0), sample(middle, JUMP_NS), sample(to.0, 0)]);
    }
    ClockAnchor::new(samples)
}

#[cfg(test)]
mod tests;
