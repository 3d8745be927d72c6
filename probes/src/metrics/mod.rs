//! What a socket did, counted in windows. Pure, like message assembly, which feeds it.
//!
//! A socket has at most one open window, so memory is bounded by open sockets. What becomes known only after its window was closed
//! goes out as another row of that window (see [`SocketMetrics`]).

mod pending;
mod reasons;

#[cfg(test)]
mod tests;

pub use reasons::DropReasons;

use meshdiff_model::{DropReason, DurationNs, ExponentialHistogram, MonotonicNs, SeqNo, SocketCookie, SocketMetrics};
use pending::Pending;

/// How long after its end a window stays open: records reach the ring and the reader with some delay.
const GRACE: DurationNs = DurationNs::from_millis(1_000);

/// A write as it was begun. What TCP took of it is known later, from the next record that speaks of `write_seq`.
#[derive(Clone, Copy, Debug)]
struct Write {
    window: MonotonicNs,
    seq: SeqNo,
    /// Bytes counted for it.
    len: u32,
}

/// A read as it returned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) at: MonotonicNs,
    /// Bytes that it returned.
    pub(crate) len: u32,
    /// How long it took, if that is known.
    pub(crate) took: Option<DurationNs>,
}

/// What goes into the histograms of a window. Every one of them is empty where no window is open.
#[derive(Debug)]
struct Values {
    write: Pending,
    read: Pending,
    wait: Pending,
    rtt: Pending,
}

impl Values {
    const fn new() -> Self {
        Self { write: Pending::new(), read: Pending::new(), wait: Pending::new(), rtt: Pending::new() }
    }

    /// Hands on all of them.
    #[cold]
    fn flush(&mut self, row: &mut SocketMetrics) {
        let histogram = |pending: &mut Pending, to: &mut Option<ExponentialHistogram>| {
            if !pending.is_empty() {
                pending.flush(to.get_or_insert_default());
            }
        };
        histogram(&mut self.write, &mut row.write.duration);
        histogram(&mut self.read, &mut row.read.duration);
        histogram(&mut self.wait, &mut row.read.wait);
        self.rtt.flush(&mut row.rtt);
    }
}

/// The metrics of one socket.
#[derive(Debug)]
pub(crate) struct Counting {
    socket: SocketCookie,
    open: Option<Box<SocketMetrics>>,
    /// Values for the histograms of the open window.
    pending: Values,
    /// The last write.
    write: Option<Write>,
    /// When the bytes came that ended the last time in which there was nothing to read.
    came: Option<MonotonicNs>,
    /// End of what arrived.
    arrived: Option<SeqNo>,
}

impl Counting {
    pub(crate) const fn new(socket: SocketCookie) -> Self {
        Self { socket, open: None, pending: Values::new(), write: None, came: None, arrived: None }
    }

    /// The window of an instant, with what came before it handed on.
    #[inline]
    fn window(&mut self, at: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) -> &mut SocketMetrics {
        // Events of two processors can be a little out of order: what is older than the window counts in it.
        if self.open.as_ref().is_some_and(|open| open.window_end() <= at) {
            self.close(out);
        }
        self.open.get_or_insert_with(|| Box::new(SocketMetrics::at(self.socket, at)))
    }

    fn close(&mut self, out: &mut impl FnMut(SocketMetrics)) {
        let Some(mut row) = self.open.take() else { return };
        self.pending.flush(&mut row);
        if !row.is_empty() {
            out(*row);
        }
    }

    /// A write began: `len` bytes from `seq` on were offered to TCP.
    #[inline]
    pub(crate) fn write(
        &mut self,
        at: MonotonicNs,
        seq: SeqNo,
        len: u32,
        srtt: Option<DurationNs>,
        out: &mut impl FnMut(SocketMetrics),
    ) {
        self.taken_until(seq);
        let row = self.window(at, out);
        row.write.calls += 1;
        row.write.bytes += u64::from(len);
        self.write = Some(Write { window: row.window_start, seq, len });
        if let (Some(srtt), Some(row)) = (srtt, &mut self.open) {
            self.pending.rtt.record(srtt, &mut row.rtt);
        }
    }

    /// TCP has taken all bytes before `seq` and none behind it: the last write may have offered more. (In a window that is closed
    /// already it is left at that.)
    #[inline]
    pub(crate) fn taken_until(&mut self, seq: SeqNo) {
        let Some(write) = &mut self.write else { return };
        let taken = write.seq.distance(seq);
        let Ok(taken) = u32::try_from(taken) else { return };
        let Some(too_many) = write.len.checked_sub(taken).filter(|n| *n > 0) else { return };
        let Some(row) = self.open.as_mut().filter(|row| row.window_start == write.window) else { return };
        row.write.bytes = row.write.bytes.saturating_sub(u64::from(too_many));
        write.len = taken;
        if taken == 0 {
            row.write.calls = row.write.calls.saturating_sub(1);
            self.write = None;
        }
    }

    /// As [`Self::taken_until`], seen at the end of a call, when another thread may have begun its own: that none of the last write was taken
    /// proves nothing then.
    #[inline]
    pub(crate) fn had_taken(&mut self, seq: SeqNo) {
        if self.write.as_ref().is_some_and(|write| write.seq.before(seq)) {
            self.taken_until(seq);
        }
    }

    /// How long the last write took; told by a record that came later.
    #[inline]
    pub(crate) fn write_took(&mut self, took: DurationNs, out: &mut impl FnMut(SocketMetrics)) {
        // Without its beginning it is no write that was counted.
        let Some(write) = self.write else { return };
        match &mut self.open {
            Some(row) if row.window_start == write.window => {
                self.pending.write.record(took, row.write.duration.get_or_insert_default());
            }
            _ => {
                let mut late = SocketMetrics::at(self.socket, write.window);
                late.write.record_duration(took, None);
                out(late);
            }
        }
    }

    /// Bytes before `end` can be read, of which those from `unread` on were not yet.
    #[inline]
    pub(crate) fn ready(&mut self, at: MonotonicNs, end: SeqNo, unread: SeqNo) {
        let nothing_was_there = self.arrived.is_none_or(|arrived| !unread.before(arrived));
        if nothing_was_there && unread.before(end) {
            self.came = Some(at);
        }
        if self.arrived.is_none_or(|arrived| arrived.before(end)) {
            self.arrived = Some(end);
        }
    }

    /// A read returned bytes up to `end`.
    #[inline]
    pub(crate) fn read(&mut self, read: Read, end: SeqNo, out: &mut impl FnMut(SocketMetrics)) {
        if self.arrived.is_none_or(|arrived| arrived.before(end)) {
            self.arrived = Some(end);
        }
        if read.len == 0 {
            return;
        }
        // What came before the call began was not waited for.
        let wait = read.took.zip(self.came).map(|(took, came)| {
            let began = DurationNs(took.0) - (read.at - came);
            DurationNs(began.0.clamp(0, took.0.max(0)))
        });
        let row = self.window(read.at, out);
        row.read.calls += 1;
        row.read.bytes += u64::from(read.len);
        if let (Some((took, wait)), Some(row)) = (read.took.zip(wait), &mut self.open) {
            self.pending.read.record(took, row.read.duration.get_or_insert_default());
            self.pending.wait.record(wait, row.read.wait.get_or_insert_default());
        }
    }

    /// A segment was sent again.
    pub(crate) fn retransmit(&mut self, at: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) {
        self.window(at, out).retransmits += 1;
    }

    /// A packet was dropped.
    pub(crate) fn drop(&mut self, at: MonotonicNs, reason: DropReason, out: &mut impl FnMut(SocketMetrics)) {
        *self.window(at, out).drops.entry(reason).or_default() += 1;
    }

    /// Events were lost; `at` is when the last one before them was seen.
    pub(crate) fn lost(&mut self, at: MonotonicNs, events: u32, out: &mut impl FnMut(SocketMetrics)) {
        self.window(at, out).lost_events += u64::from(events);
        // What was read and written meanwhile is not known.
        (self.write, self.came, self.arrived) = (None, None, None);
    }

    /// The socket connects anew: numbers begin somewhere else.
    pub(crate) fn restart(&mut self) {
        (self.write, self.came, self.arrived) = (None, None, None);
    }

    /// Closes the window if it is over.
    pub(crate) fn tick(&mut self, now: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) {
        if self.open.as_ref().is_some_and(|row| row.window_end().offset(GRACE) <= now) {
            self.close(out);
        }
    }

    /// Closes the window.
    pub(crate) fn finish(&mut self, out: &mut impl FnMut(SocketMetrics)) {
        self.close(out);
    }
}
