//! A message that is still growing.

use meshdiff_model::{Content, Direction, Instants, Message, MonotonicNs, SeqInstant, SeqNo, SeqRange, SocketCookie};
use std::mem::take;

/// A list this long is emitted at the next look at what grew old. Between two looks pass 100 ms, so that thinning bounds it.
const LONG: usize = 256;

/// Instants in order. The first `limit` are all kept; of those that follow, the ones closer together than
/// [`Message::THINNED_BELOW`] are thinned and counted, so that a pause between two of them always shows: a body that flows takes few of
/// them, one that pauses keeps each pause's ends.
#[derive(Debug, Default)]
pub(super) struct Growing {
    list: Instants,
    elided: u32,
}

impl Growing {
    #[inline]
    pub(super) fn push(&mut self, instant: SeqInstant, limit: usize) {
        let limit = limit.max(Message::NEVER_THINNED + 1);
        let full = self.list.len() >= limit;
        match &mut *self.list {
            [.., before, last] if full && instant.at - before.at < Message::THINNED_BELOW => {
                *last = instant;
                self.elided = self.elided.saturating_add(1);
            }
            _ => self.list.push(instant),
        }
    }
    /// True if there are so many that their message should end soon.
    fn is_long(&self) -> bool {
        self.list.len() >= LONG
    }
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
    #[inline]
    pub(super) fn last(&self) -> Option<SeqInstant> {
        self.list.last().copied()
    }
    /// Drops the last ones as long as `pred` holds for them.
    fn drop_last_while(&mut self, pred: impl Fn(SeqInstant) -> bool) {
        while self.list.last().is_some_and(|i| pred(*i)) {
            self.list.pop();
        }
    }
}

/// What kept bytes from being sent or from arriving.
#[derive(Debug, Default)]
struct Hindered {
    held: Growing,
    retransmits: Growing,
}

/// A message that is still growing, in one direction.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) start: SeqNo,
    /// Egress: the end of what the last send asked for. Ingress: the end of what is known to have arrived.
    pub(super) end: SeqNo,
    pub(super) first_at: MonotonicNs,
    /// Egress.
    pub(super) sends: Growing,
    /// Ingress.
    pub(super) readies: Growing,
    /// Ingress.
    pub(super) recvs: Growing,
    /// Egress; most are never hindered.
    hindered: Option<Box<Hindered>>,
    pub(super) gap_before: bool,
    pub(super) content: Content,
    pub(super) head_end: Option<SeqNo>,
}

impl Open {
    #[inline(always)]
    pub(super) fn new(range: SeqRange, at: MonotonicNs, gap_before: bool) -> Self {
        Self {
            start: range.start,
            end: range.end,
            first_at: at,
            sends: Growing::default(),
            readies: Growing::default(),
            recvs: Growing::default(),
            hindered: None,
            gap_before,
            content: Content::Unknown,
            head_end: None,
        }
    }

    /// Egress: cuts the end back to what TCP took, when that turns out to be less than the last send asked for.
    #[inline]
    pub(super) fn truncate(&mut self, end: SeqNo) {
        if end.before(self.end) && !end.before(self.start) && self.sends.last().is_some_and(|s| !end.before(s.seq)) {
            self.end = end;
            // A send of which nothing was taken sent nothing. What it said of its bytes goes with it.
            self.sends.drop_last_while(|s| s.seq == end);
            self.head_end = self.head_end.filter(|h| !end.before(*h));
        }
    }

    /// Egress: TCP held bytes back at this instant.
    pub(super) fn held(&mut self, until: SeqInstant, limit: usize) {
        self.hindered.get_or_insert_default().held.push(until, limit);
    }

    /// Egress: a segment was sent again.
    pub(super) fn retransmit(&mut self, first: SeqInstant, limit: usize) {
        self.hindered.get_or_insert_default().retransmits.push(first, limit);
    }

    /// True if its lists are long: what follows belongs into another message.
    pub(super) fn is_long(&self) -> bool {
        self.sends.is_long() || self.readies.is_long() || self.recvs.is_long()
    }

    /// True if all of it was read.
    #[inline]
    pub(super) fn is_read(&self) -> bool {
        self.recvs.last().is_some_and(|r| !r.seq.before(self.end))
    }

    /// The finished message; `None` if it holds nothing. What it takes is gone from here: it is left where it is, because it is large.
    #[inline]
    pub(super) fn finish(&mut self, socket: SocketCookie, direction: Direction) -> Option<Message> {
        let seq = SeqRange { start: self.start, end: self.end };
        let empty = self.sends.list.is_empty() && self.readies.list.is_empty() && self.recvs.list.is_empty();
        if seq.is_empty() || empty {
            return None;
        }
        let (held, retransmits) = self.hindered.take().map(|h| (h.held.list, h.retransmits.list)).unwrap_or_default();
        Some(Message {
            socket,
            direction,
            seq,
            elided: self.sends.elided.saturating_add(self.readies.elided).saturating_add(self.recvs.elided),
            sends: take(&mut self.sends.list),
            held,
            retransmits,
            readies: take(&mut self.readies.list),
            recvs: take(&mut self.recvs.list),
            gap_before: self.gap_before,
            content: take(&mut self.content),
            head_end: self.head_end,
        })
    }
}
