//! What a socket sends.

use super::super::open::Open;
use super::super::{Limits, Output, Sink};
use super::SocketState;
use crate::recognise::Recognised;
use meshdiff_model::{Content, Direction, SeqInstant, SeqNo, SeqRange};

/// The direction in which the socket sends.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) open: Option<Open>,
    /// The next send begins a turn.
    pub(super) turned: bool,
    /// Something was sent.
    pub(super) begun: bool,
    /// Events may be missing before the next message.
    pub(super) gap: bool,
}

impl SocketState {
    /// At this instant everything before its number had left, and the rest of what was sent had not.
    pub(super) fn held(&mut self, until: SeqInstant, limits: &Limits) {
        if let Some(open) = self.egress.open.as_mut().filter(|o| until.seq.before(o.end)) {
            open.held(until, limits.instants);
        }
    }

    pub(super) fn retransmit(&mut self, first: SeqInstant, limits: &Limits) {
        // A segment of a message that is over belongs to none: it is counted all the same.
        if let Some(open) = self.egress.open.as_mut().filter(|o| !first.seq.before(o.start) && first.seq.before(o.end))
        {
            open.retransmit(first, limits.instants);
        }
    }

    #[inline]
    pub(super) fn send(
        &mut self,
        begin: SeqInstant,
        len: u32,
        found: Option<Recognised>,
        out: &mut Output<'_, impl Sink>,
    ) {
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

    /// True if what was found begins a message of its own, also within a turn.
    #[inline]
    pub(super) fn is_new_head(&self, found: Option<&Recognised>) -> bool {
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
    pub(super) fn is_before_plaintext(&self, open: &Open) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.plaintext_seen)
            && matches!(open.content, Content::TlsHandshake | Content::TlsApplicationData)
    }

    pub(super) fn end_egress(&mut self, write_seq: SeqNo, out: &mut Output<'_, impl Sink>) {
        if let Some(open) = &mut self.egress.open {
            open.truncate(write_seq);
        }
        self.close_egress(out);
    }

    #[inline]
    pub(super) fn close_egress(&mut self, out: &mut Output<'_, impl Sink>) {
        if let Some(open) = &mut self.egress.open {
            out.message(open.finish(self.cookie, Direction::Egress));
            self.egress.open = None;
        }
    }
}
