//! Message assembly: from a socket's events to [`Message`]s and [`Socket`]s. Pure: no clock, no kernel, no thread.
//!
//! # What is known of a send's end
//!
//! A send says where it begins and how much it *asked* to send; a non-blocking socket may take less. The next send's beginning
//! tells the truth, so an egress message stays open until then (or until the socket stops sending, which carries the
//! truth too, or until it grows old), and ends at the smaller of what was asked and where the next one began. Only a message that grew
//! old before may overstate its end, by bytes that the next message then holds too.
//!
//! # What is known after a loss
//!
//! A lost event may have been of any kind and direction: both directions are cut, and the next message of each says
//! `gap_before`. The first messages of a socket whose beginning was not seen say so too. In a message with `gap_before`, the first
//! ready (and the first recv) is a bound for all bytes before it; from there on, and in every other message, they are exact.
//!
//! # Reads that come late
//!
//! Bytes that are not read when their message is over keep it waiting, one message per socket. If the next one is over too before
//! they are read, or it grows old, the message is emitted without; the instants of those reads are then in a later message of
//! the direction, whose range may begin before its own bytes (at the first byte that was unread).

mod ahead;
mod life;
mod open;
mod reorder;
mod socket;
mod sockets;

#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use crate::event::RawEvent;
use crate::existing::OpenSocket;
use crate::metrics::DropReasons;
use ahead::Ahead;
use meshdiff_model::{DurationNs, Http2Stream, Message, MonotonicNs, NetnsId, Socket, SocketMetrics, TcpState, Tgid};
use reorder::{Next, Put};
use rustc_hash::FxHashSet;
use socket::{Event, EventKind, SocketState};
use sockets::{Slot, Sockets};
use std::collections::BTreeMap;

/// Takes what assembly makes.
pub trait Sink {
    /// A finished message. Messages of one direction of a socket come in order.
    fn message(&mut self, message: Message);
    /// The state of a socket: soon after it was seen first, again from time to time while it changes, and at its end. A later one of the
    /// same cookie supersedes an earlier one.
    fn socket(&mut self, socket: Socket);
    /// What a socket did in one window, once that is over; or more of a window that was told of before.
    fn metrics(&mut self, row: SocketMetrics);
    /// What a socket sent of an HTTP/2 stream, once that is over or cannot be followed further.
    fn http2(&mut self, stream: Http2Stream);
}

/// A [`Sink`] that keeps everything.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Messages, in the order in which they were finished.
    pub messages: Vec<Message>,
    /// Sockets; later ones of a cookie supersede earlier ones.
    pub sockets: Vec<Socket>,
    /// Windows, in the order in which they were closed.
    pub metrics: Vec<SocketMetrics>,
    /// HTTP/2 streams, in the order in which they ended.
    pub streams: Vec<Http2Stream>,
}

impl Sink for Collected {
    fn message(&mut self, message: Message) {
        self.messages.push(message);
    }
    fn socket(&mut self, socket: Socket) {
        self.sockets.push(socket);
    }
    fn metrics(&mut self, row: SocketMetrics) {
        self.metrics.push(row);
    }
    fn http2(&mut self, stream: Http2Stream) {
        self.streams.push(stream);
    }
}

/// Bounds of message assembly.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Instants kept in each list of a message.
    pub instants: usize,
    /// Age at which an open message is emitted as it is; the bytes after it make a new one.
    pub max_age: DurationNs,
    /// Events of one socket that may wait for one that is missing.
    pub held_events: usize,
    /// How long a closed socket is kept for the reads that are still to come (a socket can be read after it is closed to TCP).
    pub linger: DurationNs,
    /// How often an open socket's state is emitted, if it changed.
    pub socket_interval: DurationNs,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            instants: 16,
            max_age: DurationNs::from_millis(1_000),
            held_events: 64,
            linger: DurationNs::from_millis(2_000),
            socket_interval: DurationNs::from_millis(10_000),
        }
    }
}

/// What assembly counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AssemblyStats {
    /// Events that were put in, announcements left out.
    pub events: u64,
    /// Events that never came: gaps in the sockets' counters.
    pub lost_events: u64,
    /// Events that came after they had been given up, or twice. They are not used.
    pub late_events: u64,
    /// Messages that were emitted.
    pub messages: u64,
    /// Sockets that the kernel had no more, and whose end was not seen: it was lost. None of them counts as closed.
    pub vanished_sockets: u64,
    /// Sockets that ended without ever having been announced: their messages have no [`Socket`].
    pub unidentified_sockets: u64,
    /// Streams of HTTP/2 that were emitted, rows of connections among them.
    pub http2_streams: u64,
    /// Times that what followed on an HTTP/2 connection was none.
    pub garbage: u64,
}

/// Makes messages of events.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    drop_reasons: DropReasons,
    sockets: Sockets,
    /// What was taken but not applied.
    ahead: Ahead,
    /// Sockets with waiting events.
    waiting: Vec<Slot>,
    tick: u64,
    next_scan: MonotonicNs,
    stats: AssemblyStats,
    /// To be handed on.
    streams: Vec<Http2Stream>,
}

/// How often all sockets are looked at for what grew old.
const SCAN_INTERVAL: DurationNs = DurationNs::from_millis(100);

impl Assembler {
    /// An assembler that has seen nothing. It must see every record since the probes were loaded: what came before counts as lost.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            drop_reasons: DropReasons::default(),
            sockets: Sockets::default(),
            ahead: Ahead::default(),
            waiting: Vec::new(),
            tick: 0,
            next_scan: MonotonicNs(0),
            stats: AssemblyStats::default(),
            streams: Vec::new(),
        }
    }

    /// Names the reasons of drops; without, they are numbers.
    #[must_use]
    pub fn with_drop_reasons(self, drop_reasons: DropReasons) -> Self {
        Self { drop_reasons, ..self }
    }

    /// Takes one record. What becomes of it reaches `sink` with a later one, or with [`Self::tick`].
    #[inline]
    pub fn push(&mut self, event: &RawEvent<'_>, sink: &mut impl Sink) {
        let slot = self.sockets.slot_of(event.socket);
        self.sockets.prefetch(slot);
        if self.ahead.add(slot, Event::from_raw(event)) {
            self.catch_up(sink);
        }
    }

    /// Applies what was taken.
    fn catch_up(&mut self, sink: &mut impl Sink) {
        let mut events = self.ahead.take();
        let (sockets, waiting, tick, mut out) = self.parts(sink);
        for (slot, event) in events.drain(..) {
            let Some(socket) = sockets.get(slot) else { continue };
            if let EventKind::Announce(identity) = event.kind {
                socket.identify(*identity, event.at);
                continue;
            }
            // It may have been connected before, and be forgotten since: nothing is lost.
            if socket.is_new() && matches!(event.kind, EventKind::State { new: TcpState::SynSent, .. }) {
                socket.order.begin_at(event.counter);
            }
            out.stats.events += 1;
            if socket.order.pass(event.counter) {
                socket.apply(event, &mut out);
                continue;
            }
            let was_waiting = socket.order.is_waiting();
            match socket.order.put(event, tick) {
                Put::Late => out.stats.late_events += 1,
                Put::Ready | Put::Waits => {
                    socket.catch_up(tick, &mut out);
                    if !was_waiting && socket.order.is_waiting() {
                        waiting.push(slot);
                    }
                }
            }
        }
        self.ahead.put_back(events);
    }

    /// Takes a connection that was open before the probes were, as [`open_sockets`](crate::open_sockets) lists it; to be called soon
    /// after its namespace was watched. `owner` is the process that holds it.
    pub fn found_open(&mut self, open: &OpenSocket, owner: Option<Tgid>, at: MonotonicNs) {
        let slot = self.sockets.slot_of(open.socket);
        if let Some(socket) = self.sockets.get(slot) {
            socket.found_open(open, owner, at);
        }
    }

    /// Takes the lists of all connections that are open in the namespaces watched, as [`open_sockets`](crate::open_sockets) gives them; `asked`
    /// is an instant just before the first. Where closings are lost, this bounds what is remembered by what is open: a socket that two
    /// lists in turn miss, and that was silent since before the first of them, is over. (One list is not enough: the kernel does not
    /// hold still while it makes one.) To be called every half a minute or so. Sockets of other namespaces are left alone; one that was
    /// never announced may be of any.
    pub fn still_open(&mut self, lists: &BTreeMap<NetnsId, Vec<OpenSocket>>, asked: MonotonicNs) {
        let all = || lists.iter().flat_map(|(netns, list)| list.iter().map(|o| (*netns, o)));
        let cookies: FxHashSet<_> = all().map(|(_, o)| o.socket).collect();
        // Where the probes make cookies of their own, the lists' are others.
        let addresses: FxHashSet<_> = all().map(|(n, o)| (n, o.identity.local, o.identity.remote)).collect();
        self.sockets.each(|socket| {
            socket.was_listed(asked, |cookie, identity| match identity {
                Some(i) if !lists.contains_key(&i.netns) => None,
                Some(i) => Some(cookies.contains(&cookie) || addresses.contains(&(i.netns, i.local, i.remote))),
                None => Some(cookies.contains(&cookie)),
            });
        });
    }

    /// Gives up on events that did not come, and emits what grew old. To be called after every drain of the ring.
    pub fn tick(&mut self, now: MonotonicNs, sink: &mut impl Sink) {
        self.catch_up(sink);
        self.tick += 1;
        let is_due = self.next_scan <= now;
        if is_due {
            self.next_scan = now.offset(SCAN_INTERVAL);
        }
        let (sockets, waiting, tick, mut out) = self.parts(sink);
        waiting.retain(|slot| {
            let Some(socket) = sockets.get(*slot) else { return false };
            socket.catch_up(tick, &mut out);
            socket.order.is_waiting()
        });
        if is_due {
            sockets.retain(|socket| {
                socket.age(now, &mut out);
                socket.close_window(now, &mut out);
                let gone = socket.is_gone(now, out.limits);
                if gone {
                    socket.finish(&mut out);
                } else {
                    socket.report(now, &mut out);
                }
                !gone
            });
        }
    }

    /// Emits everything that is open, in order of cookie. The assembler is empty afterwards.
    pub fn finish(&mut self, sink: &mut impl Sink) {
        self.catch_up(sink);
        let (sockets, waiting, _, mut out) = self.parts(sink);
        for mut socket in sockets.take() {
            socket.catch_up(u64::MAX, &mut out);
            socket.finish(&mut out);
        }
        waiting.clear();
    }

    /// The sockets, those that wait, the tick, and where results go.
    fn parts<'a, S: Sink>(&'a mut self, sink: &'a mut S) -> (&'a mut Sockets, &'a mut Vec<Slot>, u64, Output<'a, S>) {
        let Self { limits, drop_reasons, stats, streams, .. } = self;
        (&mut self.sockets, &mut self.waiting, self.tick, Output { sink, drop_reasons, limits, stats, streams })
    }

    /// Sockets that are remembered.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.sockets.len()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn stats(&self) -> AssemblyStats {
        self.stats
    }
}

/// Where a socket's results go.
struct Output<'a, S> {
    sink: &'a mut S,
    drop_reasons: &'a DropReasons,
    limits: &'a Limits,
    stats: &'a mut AssemblyStats,
    streams: &'a mut Vec<Http2Stream>,
}

impl<S: Sink> Output<'_, S> {
    fn hand_on_streams(&mut self) {
        self.stats.http2_streams += self.streams.len() as u64;
        self.streams.drain(..).for_each(|stream| self.sink.http2(stream));
    }
    #[inline]
    fn message(&mut self, message: Option<Message>) {
        if let Some(message) = message {
            self.stats.messages += 1;
            self.sink.message(message);
        }
    }
}

impl SocketState {
    /// Applies what is in its turn, or was waited for in vain.
    fn catch_up(&mut self, tick: u64, out: &mut Output<'_, impl Sink>) {
        while let Some(next) = self.order.take(tick, out.limits.held_events) {
            match next {
                Next::Event(event) => self.apply(event, out),
                Next::Lost(events) => {
                    out.stats.lost_events += u64::from(events);
                    self.gap(events, out);
                }
            }
        }
    }
}
#[cfg(test)]
mod size_probe {
    #[test]
    fn sizes() {
        use super::*;
        eprintln!(
            "SocketState {} Open {} Message {} Event {} Counting {} Reorder {} Life {} RawEvent {} SocketMetrics {} TlsInfo {} EventKind {}",
            size_of::<super::socket::SocketState>(),
            size_of::<super::open::Open>(),
            size_of::<Message>(),
            size_of::<Event>(),
            size_of::<crate::metrics::Counting>(),
            size_of::<super::reorder::Reorder>(),
            size_of::<super::life::Life>(),
            size_of::<RawEvent<'_>>(),
            size_of::<SocketMetrics>(),
            size_of::<meshdiff_model::TlsInfo>(),
            size_of::<super::socket::EventKind>()
        );
    }
}
