//! What a socket receives.

use super::super::open::Open;
use super::super::{Output, Sink};
use super::SocketState;
use meshdiff_model::{Direction, MonotonicNs, SeqInstant, SeqNo, SeqRange};

/// The direction in which it receives.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) open: Option<Open>,
    /// A message that is over but not read to its end.
    pub(super) unread: Option<Open>,
    /// The next bytes begin a turn.
    pub(super) turned: bool,
    /// Events may be missing before the next bytes.
    pub(super) gap: bool,
    /// Events may be missing before the next read.
    pub(super) recv_gap: bool,
    /// End of what is known to have arrived.
    pub(super) end: Option<SeqNo>,
    /// End of what is known to have been read.
    pub(super) read: Option<SeqNo>,
}

impl SocketState {
    /// Bytes up to `end` have arrived, of which those from `unread` on were not read yet.
    #[inline]
    pub(super) fn arrived(
        &mut self,
        end: SeqNo,
        unread: SeqNo,
        at: MonotonicNs,
        out: &mut Output<'_, impl Sink>,
    ) -> bool {
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
    pub(super) fn ready(&mut self, until: SeqInstant, copied_seq: SeqNo, out: &mut Output<'_, impl Sink>) {
        let limit = self.most_instants(out.limits);
        // No new byte: a FIN, or a call that comes late.
        if self.arrived(until.seq, copied_seq, until.at, out)
            && let Some(open) = &mut self.ingress.open
        {
            open.readies.push(until, limit);
        }
    }

    #[inline]
    pub(super) fn recv(&mut self, until: SeqInstant, len: u32, out: &mut Output<'_, impl Sink>) {
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

    /// Ends the ingress message; it waits if it was not read to its end.
    #[inline]
    pub(super) fn close_ingress(&mut self, out: &mut Output<'_, impl Sink>) {
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
    pub(super) fn emit_unread(&mut self, out: &mut Output<'_, impl Sink>) {
        if let Some(unread) = &mut self.ingress.unread {
            out.message(unread.finish(self.cookie, Direction::Ingress));
            self.ingress.unread = None;
        }
    }

    /// Emits an ingress message that grew old. What was not read of it goes on waiting.
    pub(super) fn emit_aged(&mut self, aged: Option<Open>, now: MonotonicNs, out: &mut Output<'_, impl Sink>) {
        let Some(mut aged) = aged else { return };
        if !aged.is_read() {
            let (start, end) = (aged.recvs.last().map_or(aged.start, |read| read.seq), aged.end);
            let gap_before = aged.gap_before && aged.recvs.last().is_none();
            self.ingress.unread = Some(Open::new(SeqRange { start, end }, now, gap_before));
        }
        out.message(aged.finish(self.cookie, Direction::Ingress));
    }
}
