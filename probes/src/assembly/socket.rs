//! One socket: its life, and the messages that are open on it.

use super::life::{Change, Life};
use super::open::Open;
use super::reorder::Reorder;
use super::{Limits, Output, Sink};
use crate::event::{Extra, Identity, RawEvent, RawKind};
use crate::existing::OpenSocket;
use crate::metrics::{Counting, Read};
use crate::recognise::{Follower, OwnedFrames};
use crate::recognise::{Recognised, recognise, recognise_hello, recognise_plaintext};
use meshdiff_model::{
    Content, Direction, DurationNs, MonotonicNs, SeqInstant, SeqNo, SeqRange, Socket, SocketCookie, TcpState, Tgid,
    TlsInfo,
};

/// An event that owns what it says.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) counter: u32,
    pub(super) at: MonotonicNs,
    pub(super) tgid: Tgid,
    pub(super) srtt: Option<DurationNs>,
    pub(super) extra: Extra,
    pub(super) kind: EventKind,
}

impl Event {
    /// The event without what it borrows.
    #[inline]
    pub(super) fn from_raw(event: &RawEvent<'_>) -> Self {
        let kind = match event.kind {
            RawKind::Announce(identity) => EventKind::Announce(Box::new(identity)),
            RawKind::Send { seq, len, prefix } => {
                EventKind::Send { seq, len, found: recognise(prefix), hello: recognise_hello(prefix).map(Box::new) }
            }
            RawKind::SendPlaintext { seq, len, prefix } => EventKind::Send {
                seq,
                len,
                found: recognise_plaintext(prefix),
                hello: Some(Box::new(TlsInfo { plaintext_seen: true, ..TlsInfo::default() })),
            },
            RawKind::SendFrames { seq, len, frames } => {
                EventKind::Frames { seq, len, frames: Box::new(OwnedFrames::from(frames)) }
            }
            RawKind::Ready { rcv_nxt, copied_seq, fin } => {
                EventKind::Ready { end: before_fin(rcv_nxt, fin), copied_seq }
            }
            RawKind::Recv { copied_seq, len, fin } => EventKind::Recv { end: before_fin(copied_seq, fin), len },
            RawKind::State { old, new, write_seq } => EventKind::State { old, new, write_seq },
            RawKind::Held { next, len } => EventKind::Held { next, len },
            RawKind::Retransmit { seq, len: _ } => EventKind::Retransmit { seq },
            RawKind::Reset { received } => EventKind::Reset { received },
            RawKind::Drop { reason } => EventKind::Drop { reason },
        };
        Self { counter: event.counter, at: event.at, tgid: event.tgid, srtt: event.srtt, extra: event.extra, kind }
    }
}

/// The end of the data: a FIN takes a number of its own, which is no byte's.
const fn before_fin(seq: SeqNo, fin: bool) -> SeqNo {
    if fin { SeqNo(seq.0.wrapping_sub(1)) } else { seq }
}

/// What happened. Ends are the data's: a FIN's number is taken off.
#[derive(Debug)]
pub(super) enum EventKind {
    /// Which socket it is. It has no place among the others.
    Announce(Box<Identity>),
    Send {
        seq: SeqNo,
        len: u32,
        found: Option<Recognised>,
        hello: Option<Box<TlsInfo>>,
    },
    Frames {
        seq: SeqNo,
        len: u32,
        frames: Box<OwnedFrames>,
    },
    Ready {
        end: SeqNo,
        copied_seq: SeqNo,
    },
    Recv {
        end: SeqNo,
        len: u32,
    },
    State {
        old: TcpState,
        new: TcpState,
        write_seq: SeqNo,
    },
    Held {
        next: SeqNo,
        len: u32,
    },
    Retransmit {
        seq: SeqNo,
    },
    Reset {
        received: bool,
    },
    Drop {
        reason: u32,
    },
}

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

    /// When its state was emitted last.
    reported: Option<MonotonicNs>,
    /// Something changed since.
    changed: bool,
}

/// The direction in which the socket sends.
#[derive(Debug)]
struct Sending {
    open: Option<Open>,
    /// The next send begins a turn.
    turned: bool,
    /// Something was sent.
    begun: bool,
    /// Events may be missing before the next message.
    gap: bool,
}

/// The direction in which it receives.
#[derive(Debug)]
struct Receiving {
    open: Option<Open>,
    /// A message that is over but not read to its end.
    unread: Option<Open>,
    /// The next bytes begin a turn.
    turned: bool,
    /// Events may be missing before the next bytes.
    gap: bool,
    /// Events may be missing before the next read.
    recv_gap: bool,
    /// End of what is known to have arrived.
    end: Option<SeqNo>,
    /// End of what is known to have been read.
    read: Option<SeqNo>,
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

    /// At this instant everything before its number had left, and the rest of what was sent had not.
    fn held(&mut self, until: SeqInstant, limits: &Limits) {
        if let Some(open) = self.egress.open.as_mut().filter(|o| until.seq.before(o.end)) {
            open.held(until, limits.instants);
        }
    }

    fn retransmit(&mut self, first: SeqInstant, limits: &Limits) {
        // A segment of a message that is over belongs to none: it is counted all the same.
        if let Some(open) = self.egress.open.as_mut().filter(|o| !first.seq.before(o.start) && first.seq.before(o.end))
        {
            open.retransmit(first, limits.instants);
        }
    }

    #[inline]
    fn send(&mut self, begin: SeqInstant, len: u32, found: Option<Recognised>, out: &mut Output<'_, impl Sink>) {
        let end = begin.seq.advance(len);
        self.egress.begun = true;
        let limit = self.most_instants(out.limits);
        if let Some(open) = &mut self.egress.open {
            if let Some(last) = open.sends.last()
                && last.seq == begin.seq
            {
                // The same bytes are offered again, TCP took none of them before. They count from the first offer: what they
                // waited for since is TCP's.
                open.end = end;
                self.egress.turned = false;
                return;
            }
            open.truncate(begin.seq);
            // Bytes that no event spoke of (a way to send that the probes do not see) are a gap like any other.
            self.egress.gap |= open.end != begin.seq;
        }
        let cut = self.egress.gap
            || self.egress.turned
            || self.is_new_head(found.as_ref())
            || (self.is_http2() && self.egress.open.as_ref().is_some_and(|o| o.sends.len() >= limit));
        let response_fits = self.egress.turned
            || self
                .egress
                .open
                .as_ref()
                .is_some_and(|o| o.content.is_interim_response() || self.is_before_plaintext(o));
        if cut {
            self.close_egress(out);
        }
        let gap = &mut self.egress.gap;
        let is_new = self.egress.open.is_none();
        // Made where it stays: it is large.
        let open = self
            .egress
            .open
            .get_or_insert_with(|| Open::new(SeqRange { start: begin.seq, end }, begin.at, std::mem::take(gap)));
        if is_new
            && let Some(found) = found
            && (response_fits || !matches!(found.content, Content::Http1Response { .. }))
        {
            open.head_end = found.head_len.map(|len| begin.seq.advance(len));
            open.content = found.content;
        }
        open.end = end;
        open.sends.push(begin, limit);
        self.egress.turned = false;

        // The conversation turns: what came in before is over.
        self.ingress.turned = true;
        if self.ingress.open.as_ref().is_some_and(Open::is_read) {
            self.close_ingress(out);
        }
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

    /// True if what was found begins a message of its own, also within a turn.
    #[inline]
    fn is_new_head(&self, found: Option<&Recognised>) -> bool {
        let (Some(found), Some(open)) = (found, &self.egress.open) else { return false };
        match &found.content {
            Content::Unknown => false,
            Content::Http1Request { .. } | Content::Http2Preface => true,
            // A body can begin like a response; a response that follows an interim one is one.
            Content::Http1Response { .. } => open.content.is_interim_response() || self.is_before_plaintext(open),
            Content::TlsHandshake | Content::TlsApplicationData => open.content != found.content,
        }
    }

    /// True for what libssl sends of its own (its half of a handshake, session tickets) where the application's plaintext is told apart:
    /// what comes next may be a response.
    fn is_before_plaintext(&self, open: &Open) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.plaintext_seen)
            && matches!(open.content, Content::TlsHandshake | Content::TlsApplicationData)
    }

    /// Bytes up to `end` have arrived, of which those from `unread` on were not read yet.
    #[inline]
    fn arrived(&mut self, end: SeqNo, unread: SeqNo, at: MonotonicNs, out: &mut Output<'_, impl Sink>) -> bool {
        let start = self.ingress.end.unwrap_or(unread);
        if !start.before(end) {
            return false;
        }
        let full = |o: &Open| o.readies.len().max(o.recvs.len()) >= self.most_instants(out.limits);
        if self.ingress.turned || self.ingress.gap || (self.is_http2() && self.ingress.open.as_ref().is_some_and(full))
        {
            self.close_ingress(out);
            self.ingress.turned = false;
        }
        let gap = &mut self.ingress.gap;
        let open = self.ingress.open.get_or_insert_with(|| Open::new(SeqRange { start, end }, at, std::mem::take(gap)));
        open.end = end;
        self.ingress.end = Some(end);
        self.egress.turned = true;
        true
    }

    #[inline]
    fn ready(&mut self, until: SeqInstant, copied_seq: SeqNo, out: &mut Output<'_, impl Sink>) {
        let limit = self.most_instants(out.limits);
        // No new byte: a FIN, or a call that comes late.
        if self.arrived(until.seq, copied_seq, until.at, out)
            && let Some(open) = &mut self.ingress.open
        {
            open.readies.push(until, limit);
        }
    }

    #[inline]
    fn recv(&mut self, until: SeqInstant, len: u32, out: &mut Output<'_, impl Sink>) {
        let SeqInstant { seq: end, at } = until;
        let begin = SeqNo(end.0.wrapping_sub(len));
        let limit = self.most_instants(out.limits);
        // Bytes can be read before anybody was told of them (SO_RCVLOWAT, or the telling was lost): they were ready by then.
        let ready_gap = self.ingress.gap;
        if self.arrived(end, begin, at, out)
            && let Some(open) = &mut self.ingress.open
        {
            open.readies.push(until, limit);
            // A lost event may have told of more bytes than these.
            self.ingress.gap = ready_gap;
        }
        let recv_gap = std::mem::replace(&mut self.ingress.recv_gap, false);
        let read_before = self.ingress.read.replace(end).unwrap_or(begin);
        if !read_before.before(end) {
            return;
        }
        let mut kept = false;
        if let Some(unread) = self.ingress.unread.as_mut().filter(|o| o.start.before(end)) {
            let covered = if unread.end.before(end) { unread.end } else { end };
            unread.recvs.push(SeqInstant { seq: covered, at }, limit);
            kept = true;
            if unread.is_read() {
                self.emit_unread(out);
            }
        }
        if let Some(open) = self.ingress.open.as_mut().filter(|o| o.start.before(end)) {
            open.recvs.push(until, limit);
            kept = true;
            if self.ingress.turned && open.is_read() {
                self.close_ingress(out);
            }
        }
        if !kept {
            // Their message was emitted before they were read, and none waits for them any more: they make one of their own.
            let mut piece = Open::new(SeqRange { start: read_before, end }, at, recv_gap);
            piece.recvs.push(until, limit);
            out.message(piece.finish(self.cookie, Direction::Ingress));
        }
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

    fn end_egress(&mut self, write_seq: SeqNo, out: &mut Output<'_, impl Sink>) {
        if let Some(open) = &mut self.egress.open {
            open.truncate(write_seq);
        }
        self.close_egress(out);
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

    #[inline]
    fn close_egress(&mut self, out: &mut Output<'_, impl Sink>) {
        if let Some(open) = &mut self.egress.open {
            out.message(open.finish(self.cookie, Direction::Egress));
            self.egress.open = None;
        }
    }

    /// Ends the ingress message; it waits if it was not read to its end.
    #[inline]
    fn close_ingress(&mut self, out: &mut Output<'_, impl Sink>) {
        if self.ingress.open.is_none() {
            return;
        }
        self.emit_unread(out);
        match &mut self.ingress.open {
            Some(open) if open.is_read() => {
                out.message(open.finish(self.cookie, Direction::Ingress));
                self.ingress.open = None;
            }
            open => self.ingress.unread = open.take(),
        }
    }

    #[inline]
    fn emit_unread(&mut self, out: &mut Output<'_, impl Sink>) {
        if let Some(unread) = &mut self.ingress.unread {
            out.message(unread.finish(self.cookie, Direction::Ingress));
            self.ingress.unread = None;
        }
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

    /// Emits an ingress message that grew old. What was not read of it goes on waiting.
    fn emit_aged(&mut self, aged: Option<Open>, now: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        let Some(mut aged) = aged else { return };
        if !aged.is_read() {
            let (start, end) = (aged.recvs.last().map_or(aged.start, |read| read.seq), aged.end);
            let gap_before = aged.gap_before && aged.recvs.last().is_none();
            self.ingress.unread = Some(Open::new(SeqRange { start, end }, now, gap_before));
        }
        out.message(aged.finish(self.cookie, Direction::Ingress));
    }

    /// True if nothing more is to be expected.
    pub(super) fn is_gone(&self, now: MonotonicNs, limits: &Limits) -> bool {
        self.closed.is_some()
            && !self.order.is_waiting()
            && self.seen.is_some_and(|(_, last)| now - last >= limits.linger)
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
