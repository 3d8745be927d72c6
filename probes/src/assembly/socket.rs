//! One socket: its life, and the messages that are open on it.

mod egress;
mod event;
mod ingress;

use super::life::{Change, Life};
use super::open::Open;
use super::reorder::Reorder;
use super::{Limits, Output, Sink};
use crate::event::Identity;
use crate::existing::OpenSocket;
use crate::metrics::{Counting, Read};
use crate::recognise::{Follower, Recognised};
use egress::Sending;
pub(super) use event::{Event, EventKind};
use ingress::Receiving;
use meshdiff_model::{
    Content, Direction, DurationNs, MonotonicNs, SeqInstant, SeqNo, Socket, SocketCookie, TcpState, Tgid, TlsInfo,
};

/// How many times the usual number of instants a message may have where several requests share the socket.
const MULTIPLEXED: usize = 16;

/// What is remembered of a socket.
#[derive(Debug)]
pub(super) struct SocketState {
    cookie: SocketCookie,
    pub(super) order: Reorder,
    identity: Option<Identity>,
    /// When that was said last.
    identified: MonotonicNs,
    owner: Option<Tgid>,
    connect_start: Option<MonotonicNs>,
    established: Option<MonotonicNs>,
    closed: Option<MonotonicNs>,
    /// First and last event; `None` before the first one.
    seen: Option<(MonotonicNs, MonotonicNs)>,
    srtt: Option<DurationNs>,
    lost: u64,
    life: Life,
    counting: Counting,
    /// What its sends said of TLS; `None` until one was a record of it.
    tls: Option<TlsInfo>,
    /// It sent something recognisable that was not TLS before any record of TLS.
    plain: bool,

    egress: Sending,
    ingress: Receiving,
    /// Follows the frames that it sends, if it looks like HTTP/2.
    http2: Option<Box<Follower>>,

    /// The kernel's list of open connections does not have it.
    missing: Option<Missing>,
    /// When its state was emitted last.
    reported: Option<MonotonicNs>,
    /// Something changed since.
    changed: bool,
}

/// A socket was not among those that the kernel listed.
#[derive(Clone, Copy, Debug)]
struct Missing {
    /// When it was asked for the first list without it.
    since: MonotonicNs,
    /// The list after that one was without it too.
    twice: bool,
}

impl SocketState {
    pub(super) const fn new(cookie: SocketCookie) -> Self {
        Self {
            cookie,
            order: Reorder::new(),
            identity: None,
            identified: MonotonicNs(0),
            owner: None,
            connect_start: None,
            established: None,
            closed: None,
            seen: None,
            srtt: None,
            lost: 0,
            life: Life::new(),
            counting: Counting::new(cookie),
            tls: None,
            plain: false,
            // Until the socket's beginning is seen, anything may have come before.
            egress: Sending { open: None, turned: false, begun: false, gap: true },
            ingress: Receiving {
                open: None,
                unread: None,
                turned: false,
                gap: true,
                recv_gap: true,
                end: None,
                read: None,
            },
            http2: None,
            missing: None,
            reported: None,
            changed: false,
        }
    }

    /// True if nothing is known of it.
    pub(super) fn is_new(&self) -> bool {
        self.seen.is_none() && !self.order.is_waiting()
    }

    pub(super) fn identify(&mut self, identity: Identity, at: MonotonicNs) {
        self.changed |= self.identity != Some(identity);
        self.identity = Some(identity);
        self.identified = at;
        self.see(at);
    }

    pub(super) fn found_open(&mut self, open: &OpenSocket, owner: Option<Tgid>, at: MonotonicNs) {
        // What the probes said of it is more than this.
        if self.identity.is_none() {
            self.identify(open.identity, at);
        }
        self.life.role = self.life.role.or(Some(open.role));
        self.owner = self.owner.or(owner);
        self.changed = true;
    }

    #[inline]
    fn see(&mut self, at: MonotonicNs) {
        self.seen = Some(self.seen.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        self.changed = true;
    }

    #[inline]
    pub(super) fn apply(&mut self, event: Event, out: &mut Output<'_, impl Sink>) {
        self.see(event.at);
        self.srtt = event.srtt.or(self.srtt);
        self.count(&event, out);
        match event.kind {
            EventKind::Send { seq, len, found, hello } => {
                self.owner = Some(event.tgid);
                self.note_tls(found.as_ref(), hello);
                self.send(SeqInstant { seq, at: event.at }, len, found, out);
            }
            EventKind::Frames { seq, len, frames } => {
                self.owner = Some(event.tgid);
                let begin = SeqInstant { seq, at: event.at };
                let is_first = self.established.is_some() && self.lost == 0 && !self.egress.begun;
                let found = frames.preface.then_some(Recognised { content: Content::Http2Preface, head_len: None });
                self.send(begin, len, found, out);
                let cookie = self.cookie;
                let follower = self.http2.get_or_insert_with(|| Box::new(Follower::new(cookie)));
                follower.send(begin, len, is_first, &frames, out.streams);
                out.hand_on_streams();
            }
            EventKind::Ready { end, copied_seq } => self.ready(SeqInstant { seq: end, at: event.at }, copied_seq, out),
            EventKind::Recv { end, len } => {
                self.owner = Some(event.tgid);
                self.recv(SeqInstant { seq: end, at: event.at }, len, out);
            }
            EventKind::State { old, new, write_seq } => {
                if new == TcpState::SynSent {
                    if self.connect_start.is_some() || self.closed.is_some() {
                        self.start_anew(event.at, out);
                    }
                    if event.tgid != Tgid(0) {
                        self.owner = Some(event.tgid);
                    }
                }
                self.life.change(Change { old, new, at: event.at, srtt: event.srtt, error: event.extra.error });
                self.state(new, write_seq, event.at, out);
            }
            EventKind::Held { next, len: _ } => self.held(SeqInstant { seq: next, at: event.at }, out.limits),
            EventKind::Retransmit { seq } => self.retransmit(SeqInstant { seq, at: event.at }, out.limits),
            EventKind::Reset { received } => self.life.reset(received),
            EventKind::Announce(_) | EventKind::Drop { .. } => {}
        }
    }

    /// Counts what happened.
    #[inline]
    fn count(&mut self, event: &Event, out: &mut Output<'_, impl Sink>) {
        let (at, counting) = (event.at, &mut self.counting);
        let emit = &mut |row| out.sink.metrics(row);
        if let Some(took) = event.extra.write_took {
            counting.write_took(took, emit);
        }
        match event.kind {
            EventKind::Send { seq, len, .. } | EventKind::Frames { seq, len, .. } => {
                counting.write(at, seq, len, event.srtt, emit);
            }
            EventKind::Ready { end, copied_seq } => counting.ready(at, end, copied_seq),
            EventKind::Recv { end, len } => counting.read(Read { at, len, took: event.extra.read_took }, end, emit),
            EventKind::State { write_seq, .. } => counting.taken_until(write_seq),
            EventKind::Held { next, len } => counting.had_taken(next.advance(len)),
            EventKind::Retransmit { .. } => counting.retransmit(at, emit),
            EventKind::Drop { reason } => counting.drop(at, out.drop_reasons.name(reason), emit),
            EventKind::Announce(_) | EventKind::Reset { .. } => {}
        }
    }

    /// Emits the window that is over.
    pub(super) fn close_window(&mut self, now: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        self.counting.tick(now, &mut |row| out.sink.metrics(row));
    }

    /// Remembers that the socket speaks TLS. A hello says so anywhere (after a STARTTLS, in a CONNECT's tunnel); any other record only
    /// where nothing was recognised before, because a body can hold such bytes.
    #[inline]
    fn note_tls(&mut self, found: Option<&Recognised>, hello: Option<Box<TlsInfo>>) {
        if let Some(hello) = hello {
            self.tls = Some(self.tls.take().unwrap_or_default().and(&hello));
        } else if self.tls.is_none() && !self.plain {
            match found.map(|f| &f.content) {
                Some(Content::TlsHandshake | Content::TlsApplicationData) => self.tls = Some(TlsInfo::default()),
                Some(_) => self.plain = true,
                None => {}
            }
        }
    }

    /// True if several requests share the socket, so that every instant may be one's.
    #[inline]
    fn is_http2(&self) -> bool {
        self.http2.as_ref().is_some_and(|f| f.is_certain())
    }

    #[inline]
    fn most_instants(&self, limits: &Limits) -> usize {
        if self.is_http2() { limits.instants * MULTIPLEXED } else { limits.instants }
    }

    fn state(&mut self, new: TcpState, write_seq: SeqNo, at: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        match new {
            TcpState::SynSent => {
                self.connect_start = Some(at);
                self.begin();
            }
            TcpState::Established => {
                self.established = Some(at);
                self.begin();
            }
            // The socket sends no more; its FIN is not in `write_seq` yet (tcp_close sets the state before it queues the FIN).
            TcpState::FinWait1 | TcpState::LastAck => self.end_egress(write_seq, out),
            TcpState::Close => {
                self.closed = Some(at);
                self.end_egress(write_seq, out);
            }
            _ => {}
        }
    }

    /// The socket connects again (after a connection was refused, or closed): what was before was another connection's.
    #[cold]
    fn start_anew(&mut self, at: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        self.emit_open(out);
        self.http2 = None;
        self.counting.restart();
        let role = self.life.role;
        self.life = Life::new();
        self.life.role = role;
        (self.established, self.closed) = (None, None);
        (self.tls, self.plain) = (None, false);
        self.egress = Sending { open: None, turned: false, begun: false, gap: true };
        self.ingress =
            Receiving { open: None, unread: None, turned: false, gap: true, recv_gap: true, end: None, read: None };
        // It has another port now, which it may have been told of already: announcements wait for no other event.
        if self.identified <= at {
            self.identity = None;
        }
    }

    /// The socket's beginning: nothing came before.
    fn begin(&mut self) {
        if self.lost == 0 && self.egress.open.is_none() && self.ingress.end.is_none() {
            self.egress.gap = false;
            self.ingress.gap = false;
            self.ingress.recv_gap = false;
            self.egress.turned = true;
        }
    }

    /// Events were lost: nothing is known of what happened meanwhile, in either direction.
    pub(super) fn gap(&mut self, events: u32, out: &mut Output<'_, impl Sink>) {
        self.lost += u64::from(events);
        let last = self.seen.map_or(MonotonicNs(0), |(_, last)| last);
        self.counting.lost(last, events, &mut |row| out.sink.metrics(row));
        self.changed = true;
        if let Some(follower) = &mut self.http2 {
            follower.gap(out.streams);
            out.hand_on_streams();
        }
        self.close_ingress(out);
        self.emit_unread(out);
        // The egress message stays open until the next send, which tells how much of it was taken.
        self.egress.gap = true;
        self.egress.turned = true;
        self.ingress.gap = true;
        self.ingress.recv_gap = true;
    }

    /// Emits messages that grew old.
    pub(super) fn age(&mut self, now: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        let old =
            |open: &Option<Open>| open.as_ref().is_some_and(|o| now - o.first_at >= out.limits.max_age || o.is_long());
        let (egress, unread, ingress) = (old(&self.egress.open), old(&self.ingress.unread), old(&self.ingress.open));
        if egress {
            self.close_egress(out);
        }
        if unread || ingress {
            let aged = self.ingress.unread.take();
            self.emit_aged(aged, now, out);
        }
        if ingress {
            self.emit_unread(out);
            let aged = self.ingress.open.take();
            self.emit_aged(aged, now, out);
        }
    }

    /// True if nothing more is to be expected.
    pub(super) fn is_gone(&self, now: MonotonicNs, limits: &Limits) -> bool {
        (self.closed.is_some() || self.has_vanished())
            && !self.order.is_waiting()
            && self.seen.is_none_or(|(_, last)| now - last >= limits.linger)
    }

    /// True if it was silent since before the kernel was asked for the first list without it, and the next one was without it too.
    fn has_vanished(&self) -> bool {
        self.missing.is_some_and(|missing| missing.twice && self.is_silent_since(missing.since))
    }

    fn is_silent_since(&self, at: MonotonicNs) -> bool {
        self.seen.is_none_or(|(_, last)| last < at)
    }

    /// The kernel listed the open connections, having been asked for it at `asked`. `is_in` says whether this one was among them; `None` if
    /// that is not known.
    pub(super) fn was_listed(
        &mut self,
        asked: MonotonicNs,
        is_in: impl FnOnce(SocketCookie, Option<&Identity>) -> Option<bool>,
    ) {
        if self.closed.is_some() {
            return;
        }
        let Some(is_in) = is_in(self.cookie, self.identity.as_ref()) else { return };
        self.missing = match self.missing {
            _ if is_in || !self.is_silent_since(asked) => None,
            Some(before) if self.is_silent_since(before.since) => Some(Missing { twice: true, ..before }),
            _ => Some(Missing { since: asked, twice: false }),
        };
    }

    /// Emits the state if it is time to.
    pub(super) fn report(&mut self, now: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        if self.changed
            && self.reported.is_none_or(|at| now - at >= out.limits.socket_interval)
            && let Some(socket) = self.snapshot()
        {
            self.reported = Some(now);
            self.changed = false;
            out.sink.socket(socket);
            if let Some(follower) = &mut self.http2 {
                follower.report(out.streams);
                out.hand_on_streams();
            }
        }
    }

    /// Emits everything.
    pub(super) fn finish(&mut self, out: &mut Output<'_, impl Sink>) {
        self.counting.finish(&mut |row| out.sink.metrics(row));
        self.emit_open(out);
        out.stats.vanished_sockets += u64::from(self.closed.is_none() && self.has_vanished());
        match self.snapshot() {
            Some(socket) => out.sink.socket(socket),
            None => out.stats.unidentified_sockets += 1,
        }
    }

    /// Emits the messages and streams that are open.
    fn emit_open(&mut self, out: &mut Output<'_, impl Sink>) {
        if let Some(follower) = &mut self.http2 {
            follower.finish(out.streams);
            out.stats.garbage += follower.garbage;
            out.hand_on_streams();
        }
        self.close_egress(out);
        self.emit_unread(out);
        let open = self.ingress.open.take();
        out.message(open.and_then(|mut o| o.finish(self.cookie, Direction::Ingress)));
    }

    fn snapshot(&self) -> Option<Socket> {
        let (Identity { netns, local, remote }, (first_seen, last_seen)) = (self.identity?, self.seen?);
        Some(Socket {
            cookie: self.cookie,
            netns,
            local,
            remote,
            owner: self.owner,
            connect_start: self.connect_start,
            established: self.established,
            closed: self.closed,
            first_seen,
            last_seen,
            srtt: self.srtt,
            lost_events: self.lost,
            role: self.life.role,
            handshake: self.life.handshake,
            connect_error: self.life.connect_error,
            close: self.life.close,
            tls: self.tls.clone(),
        })
    }
}
