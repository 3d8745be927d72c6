//! The graph of a recording that is too large to be in memory as a whole: requests are told part by part.

use crate::join::{Patience, start_key};
use crate::lines::Said;
use crate::mesh::callers;
use crate::stream::Outline;
use crate::{Directory, Hop, MeshGraph, join};
use meshdiff_model::{
    ClockAnchor, Content, Direction, HopSide, Http2Stream, JoinedHop, Link, Message, MonotonicNs, NetnsId, Process,
    SeqRange, Socket, SocketCookie,
};
use std::collections::HashMap;
use std::net::SocketAddr;

/// So many requests wait for those that they may belong to. Beyond that they are told as they are: a request that lasts for hours while others
/// go on is then no longer known to have caused those.
const MOST_WAITING: usize = 50_000;

/// What is known of each socket's messages before they are looked at.
#[derive(Debug, Default)]
pub struct Outlines(HashMap<(SocketCookie, Direction), Outline>);

impl Outlines {
    /// Adds a message; those of one socket and direction in the order of assembly. Of an HTTP/1 request only that it is one counts.
    pub fn add(&mut self, socket: SocketCookie, direction: Direction, seq: SeqRange, content: &Content) {
        self.0
            .entry((socket, direction))
            .and_modify(|outline| outline.add(seq, content))
            .or_insert_with(|| Outline::of(seq, content));
    }
}

/// What has to be known of the whole before its parts are looked at.
#[derive(Debug, Default)]
pub struct Whole {
    /// Sockets, one for each cookie.
    pub sockets: Vec<Socket>,
    /// Of all messages.
    pub outlines: Outlines,
    /// The rows of stream 0: from where to where frames were followed.
    pub followed: Vec<Http2Stream>,
    /// How the wall clock ran against the monotonic clock.
    pub clock: ClockAnchor,
    /// First and last instant of the recording.
    pub window: (MonotonicNs, MonotonicNs),
    /// How long is waited for what may still come.
    pub patience: Patience,
}

/// Joins a recording that comes in parts.
///
/// The requests are the same as [`MeshGraph::build`] finds, but for these: what comes later than [`Patience`] waits for it (bytes that are
/// read for the first time seconds after the proxy was done with a request) is not seen; of retried requests whose router logs no attempts
/// fewer attempts may be told; and where more than fifty thousand requests wait for one that may have caused them, they are told without it.
pub struct InParts {
    joins: join::InParts,
    /// The requests that were told last, and all sockets.
    mesh: MeshGraph,
    netns: HashMap<SocketCookie, NetnsId>,
    said: Said,
    clock: ClockAnchor,
    /// Requests of which it is not certain yet that all are known which caused them, and which they caused.
    waiting: Vec<JoinedHop>,
}

impl InParts {
    /// `None` if it has to be joined as a whole: requests that applications encrypt are found by all that their connections carry.
    #[must_use]
    pub fn new(whole: Whole) -> Option<Self> {
        if whole.sockets.iter().any(|s| s.tls.as_ref().is_some_and(|tls| tls.plaintext_seen)) {
            return None;
        }
        let Whole { sockets, outlines, followed, clock, window, patience } = whole;
        let joins = join::InParts::new(sockets, &outlines.0, &followed, clock.clone(), window, patience);
        let ground = joins.ground();
        let mut said = Said::about(&ground.endpoints, &ground.connections);
        followed.iter().for_each(|row| said.add_frames(row));
        let mesh = MeshGraph::of_sockets(&ground.endpoints);
        let netns = ground.endpoints.iter().map(|e| (e.socket.cookie, e.socket.netns)).collect();
        Some(Self { mesh, netns, said, clock, waiting: Vec::new(), joins })
    }

    /// That a proxy says of a connection that it carries several requests at once: who connected, and when the request began. Said of all of
    /// the recording before its parts.
    pub fn is_multiplexed(&mut self, peer: SocketAddr, start: Option<MonotonicNs>) {
        self.joins.is_multiplexed(peer, start);
    }

    /// Adds a message; those of one socket and direction in the order of assembly.
    pub fn push_message(&mut self, message: &Message) {
        self.joins.push_message(message);
    }

    /// Adds what a socket sent of a stream; rows of stream 0 are left out.
    pub fn push_stream(&mut self, row: &Http2Stream) {
        if row.stream != 0 {
            self.said.add_frames(row);
            self.joins.push_stream(row);
        }
    }

    /// Adds an access log entry; `place` says where it is among all of the recording.
    pub fn push_log(&mut self, place: u64, log: HopSide) {
        self.said.add_log(place, &log, &self.clock);
        self.joins.push_log(place, log);
    }

    /// Tells the requests that are whole now, each together with all that it caused and in order of start: a graph that has these alone,
    /// and all sockets. Everything must be there that began before `until`; at the end, everything.
    pub fn step(&mut self, until: Option<MonotonicNs>) -> &MeshGraph {
        let join::Step { hops, complete_until } = self.joins.step(until);
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(hops);
        all.sort_by_cached_key(|hop| start_key(hop, &self.clock));
        let callers = callers(&all, &self.netns);
        let known = until.is_none() || all.len() > MOST_WAITING;
        let mut whole = vec![false; all.len()];
        for (i, hop) in all.iter().enumerate() {
            // Who caused it began before it.
            whole[i] = match callers[i] {
                Some(caller) if caller < i => whole[caller],
                Some(_) => false,
                None => known || is_whole(hop, &self.clock, complete_until),
            };
        }
        for (i, caller) in callers.iter().enumerate() {
            if let Some(caller) = caller.filter(|caller| *caller > i) {
                whole[i] = whole[caller];
            }
        }
        let mut place = vec![None; all.len()];
        self.mesh.hops.clear();
        for (i, (joined, caller)) in all.into_iter().zip(callers).enumerate() {
            if whole[i] {
                place[i] = Some(self.mesh.hops.len());
                self.mesh.hops.push(Hop { joined, caller });
            } else {
                self.waiting.push(joined);
            }
        }
        for hop in &mut self.mesh.hops {
            hop.caller = hop.caller.and_then(|caller| place[caller]);
        }
        &self.mesh
    }

    /// What there is besides the requests: the process topology, and what was counted. Everything must have been told.
    #[must_use]
    pub fn finish(self, processes: &[Process], directory: &dyn Directory) -> MeshGraph {
        MeshGraph::tied(self.joins.finish(), &self.said, processes, directory, &self.clock).0
    }
}

/// True if all is known that caused a request, and all that it caused.
fn is_whole(hop: &JoinedHop, clock: &ClockAnchor, complete_until: MonotonicNs) -> bool {
    let served = hop.response_on(Link::ServerLoopback).last_send;
    start_key(hop, clock).0 < complete_until && served.is_none_or(|at| at < complete_until)
}
