//! How far a message had come on each of its connections, as a function of time.

use crate::{Crossing, MonotonicNs};
use std::sync::Arc;

/// From an instant until the next mark, this many of a message's bytes had been sent (or were ready, or had been read): at least
/// `low` and at most `high`. The two differ only where instants are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub at: MonotonicNs,
    /// At least so many bytes, counted from the message's first one.
    pub low: u64,
    /// At most so many.
    pub high: u64,
}

/// One of a message's three instants on a connection (send, ready or recv) as a function of its bytes, in order of time. Before the
/// first mark it is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress(Vec<Mark>);

impl Progress {
    /// Of these marks, in order of time. Several at one instant count as the last of them; what runs backwards is taken for
    /// not known.
    #[must_use]
    pub fn new(marks: impl IntoIterator<Item = Mark>) -> Self {
        let mut list: Vec<Mark> = Vec::new();
        for mark in marks {
            match list.last_mut() {
                Some(last) if mark.at <= last.at => {
                    *last = Mark { at: last.at, low: last.low.max(mark.low), high: last.high.max(mark.high) };
                }
                Some(last) if (last.low, last.high) == (mark.low, mark.high) => {}
                _ => list.push(mark),
            }
        }
        Self(list)
    }

    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self(vec![Mark { at: MonotonicNs(0), low: 0, high: u64::MAX }])
    }

    /// From the instants of a message's beginning and of its end: between them nothing is known, and nothing at all if the end is not.
    #[must_use]
    pub fn between(first: Option<MonotonicNs>, last: Option<MonotonicNs>, bytes: u64) -> Self {
        let Some(last) = last else { return Self::unknown() };
        let first = first.map_or(MonotonicNs(0), |first| first.min(last));
        Self::new([Mark { at: first, low: 0, high: bytes }, Mark { at: last, low: bytes, high: bytes }])
    }

    /// The marks, in order.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.0
    }

    /// At least and at most so many bytes at an instant.
    #[must_use]
    pub fn at(&self, at: MonotonicNs) -> (u64, u64) {
        match self.0.partition_point(|m| m.at <= at).checked_sub(1) {
            Some(i) => (self.0[i].low, self.0[i].high),
            None => (0, 0),
        }
    }

    /// The last mark at or before an instant.
    #[must_use]
    pub fn last_until(&self, at: MonotonicNs) -> Option<MonotonicNs> {
        self.0.partition_point(|m| m.at <= at).checked_sub(1).map(|i| self.0[i].at)
    }

    /// The first mark after an instant.
    #[must_use]
    pub fn next_after(&self, at: MonotonicNs) -> Option<MonotonicNs> {
        self.0.get(self.0.partition_point(|m| m.at <= at)).map(|m| m.at)
    }
}

/// A message's way over one connection, byte by byte. Its counting is the connection's own: a proxy's two connections agree only in what
/// the proxy hands through unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// All bytes of the message on this connection.
    pub bytes: u64,
    /// Those of its head, where its end was recognised.
    pub head: Option<u64>,
    /// Bytes handed to TCP.
    pub sent: Progress,
    /// Bytes readable at the other end.
    pub ready: Progress,
    /// Bytes that the other end had read.
    pub read: Progress,
    /// Instants at which the sender's TCP held back the bytes from there on (Nagle, pacing, a full window).
    pub held: Vec<(u64, MonotonicNs)>,
    /// Segments that were sent again, by their first byte.
    pub retransmits: Vec<(u64, MonotonicNs)>,
}

impl Flow {
    /// What a crossing's first and last instants tell.
    #[must_use]
    pub fn of(crossing: &Crossing) -> Self {
        let bytes = u64::from(crossing.bytes);
        Self {
            bytes,
            head: None,
            sent: Progress::between(crossing.send, crossing.last_send, bytes),
            ready: Progress::between(crossing.ready, crossing.last_ready, bytes),
            read: Progress::between(crossing.recv, crossing.last_recv, bytes),
            held: Vec::new(),
            retransmits: Vec::new(),
        }
    }
}

/// The flows of a request and its response, by [`Link`](crate::Link). Only what came in pieces has one: of the rest the
/// [`Crossing`] tells all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// The request's.
    pub request: [Option<Arc<Flow>>; 3],
    /// The response's.
    pub response: [Option<Arc<Flow>>; 3],
    /// When the receiving end of a link had sent its last byte of the response to an earlier request of the same connection, if that was
    /// after this request was ready there: until then it waited behind that one.
    pub behind: [Option<MonotonicNs>; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at: u64, low: u64, high: u64) -> Mark {
        Mark { at: MonotonicNs(at), low, high }
    }

    #[test]
    fn progress_holds_from_mark_to_mark() {
        let p = Progress::new([mark(10, 5, 5), mark(20, 5, 9), mark(30, 9, 9)]);
        assert_eq!(
            [9, 10, 19, 20, 29, 30].map(|t| p.at(MonotonicNs(t))),
            [(0, 0), (5, 5), (5, 5), (5, 9), (5, 9), (9, 9)]
        );
        assert_eq!((p.next_after(MonotonicNs(9)), p.next_after(MonotonicNs(30))), (Some(MonotonicNs(10)), None));
        assert_eq!((p.last_until(MonotonicNs(9)), p.last_until(MonotonicNs(25))), (None, Some(MonotonicNs(20))));
    }

    #[test]
    fn what_is_missing_is_not_known() {
        let p = Progress::between(Some(MonotonicNs(5)), Some(MonotonicNs(9)), 100);
        assert_eq!([4, 5, 9].map(|t| p.at(MonotonicNs(t))), [(0, 0), (0, 100), (100, 100)]);
        assert_eq!(Progress::between(Some(MonotonicNs(5)), None, 100).at(MonotonicNs(7)), (0, u64::MAX));
        assert_eq!(Progress::between(None, Some(MonotonicNs(9)), 3).at(MonotonicNs(2)), (0, 3));
    }
}
