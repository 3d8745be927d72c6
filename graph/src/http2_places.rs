//! Where a stream's own bytes lie among those of its connection.
//!
//! A stream counts its bytes by itself: its header block, then the payload of its DATA frames, then one more that stands for its
//! end, which may come long after the last payload (trailers, or an empty frame). What a connection's positions tell about instants, this
//! turns into what they tell about the stream.

use crate::stream::{Offset, Stream};
use meshdiff_model::{Flow, Http2Stream, Mark, Progress, SeqRange};

/// DATA frames that follow one another: positions counted from the stream's first byte, and the payload before and after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    before: u64,
    after: u64,
}

/// The places of all bytes of one direction of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    head: u64,
    /// Where its last frame ends, counted like a run's.
    end: u64,
    data: u64,
    runs: Vec<Run>,
}

/// A frame's header.
const HEADER: u64 = 9;

impl Places {
    /// Of a stream that was seen from its head to its end, with all its DATA frames. `head` starts at `start` in the socket's
    /// positions, and the last frame ends at `end`.
    pub(crate) fn of(row: &Http2Stream, head: SeqRange, start: Offset, end: Offset, stream: &Stream) -> Option<Self> {
        let all = row.data.last().map_or(0, |run| run.bytes);
        if row.end.is_none() || row.gap.is_some() || all != row.data_bytes {
            return None;
        }
        // There is no more payload than there are bytes.
        let end = u64::try_from(end - start).ok().filter(|end| all <= *end)?;
        let (mut runs, mut before, mut at): (Vec<Run>, u64, u64) = (Vec::new(), 0, u64::from(head.len()));
        for run in &row.data {
            let from = u64::try_from(stream.place(run.first.seq, run.first.at) - start).ok()?;
            let to = from + u64::from(SeqRange { start: run.first.seq, end: run.end }.len());
            if from < at || to > end || run.bytes < before {
                return None;
            }
            runs.push(Run { start: from, end: to, before, after: run.bytes });
            (before, at) = (run.bytes, to);
        }
        Some(Self { head: u64::from(head.len()), end, data: all, runs })
    }

    /// All of the stream's bytes, its end counted as one.
    const fn bytes(&self) -> u64 {
        self.head + self.data + 1
    }

    /// At least and at most so many of the stream's bytes lie within the first `at` of the connection's, counted from its first one.
    fn before(&self, at: u64) -> (u64, u64) {
        if at >= self.end {
            return (self.bytes(), self.bytes());
        }
        let run = self.runs.partition_point(|run| run.start < at).checked_sub(1).map(|i| self.runs[i]);
        let (low, high) = run.map_or((0, 0), |run| {
            // Between the first frame's header and the last one's end there may be other headers, and other streams' frames.
            let low = run.after.saturating_sub(run.end.saturating_sub(at)).max(run.before);
            let high = (run.before + (at - run.start).saturating_sub(HEADER)).min(run.after);
            (low, high.max(low))
        });
        let head = at.min(self.head);
        (head + low, head + high)
    }

    fn progress(&self, of: &Progress) -> Progress {
        let mark = |m: &Mark| Mark { at: m.at, low: self.before(m.low).0, high: self.before(m.high).1 };
        Progress::new(of.marks().iter().map(mark))
    }

    /// What the connection's flow from the stream's first byte to its last tells of the stream; `None` if it is a head and nothing else.
    pub(crate) fn flow(&self, connection: Flow) -> Option<Flow> {
        let place = |list: Vec<_>| list.into_iter().map(|(at, when)| (self.before(at).0, when)).collect();
        (self.end > self.head).then(|| Flow {
            bytes: self.bytes(),
            head: Some(self.head),
            sent: self.progress(&connection.sent),
            ready: self.progress(&connection.ready),
            read: self.progress(&connection.read),
            held: place(connection.held),
            retransmits: place(connection.retransmits),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        // A head of 20, a frame of 30, another stream's bytes, three frames of 30 of which one entry is left, and trailers.
        let one = Run { start: 20, end: 59, before: 0, after: 30 };
        let more = Run { start: 100, end: 217, before: 30, after: 120 };
        Places { head: 20, end: 250, data: 120, runs: vec![one, more] }
    }

    #[test]
    fn positions_of_the_connection_are_those_of_the_stream() {
        let at = |n| places().before(n);
        assert_eq!([0, 10, 20, 29, 30, 59].map(at), [0, 10, 20, 20, 21, 50].map(|n| (n, n)));
        assert_eq!([99, 100, 217, 249, 250, u64::MAX].map(at), [50, 50, 140, 140, 141, 141].map(|n| (n, n)));
        // Within an entry that stands for several frames there are bounds, and they hold what is true.
        let (low, high) = at(148);
        assert!(low <= 80 && 80 <= high && high - low <= 27, "{low} {high}");
    }

    #[test]
    fn other_streams_bytes_are_no_progress() {
        let mark = |at, n| Mark { at: meshdiff_model::MonotonicNs(at), low: n, high: n };
        let flow = Flow {
            bytes: 250,
            sent: Progress::new([mark(1, 59), mark(2, 80), mark(3, 217), mark(9, 250)]),
            ready: Progress::unknown(),
            held: vec![(70, meshdiff_model::MonotonicNs(2))],
            ..Flow::default()
        };
        let flow = places().flow(flow).expect("there is a body");
        assert_eq!(flow.sent.marks(), [mark(1, 50), mark(3, 140), mark(9, 141)]);
        assert_eq!(flow.ready.at(meshdiff_model::MonotonicNs(5)), (0, 141));
        assert_eq!((flow.bytes, flow.head, &flow.held[0].0), (141, Some(20), &50));
    }
}
