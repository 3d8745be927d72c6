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

/// Calls and bytes of the open window.
#[derive(Debug, Default)]
struct Sums {
    writes: u64,
    written: u64,
    reads: u64,
    read: u64,
}

/// The metrics of one socket.
#[derive(Debug)]
pub(crate) struct Counting {
    socket: SocketCookie,
    /// The window that is open. What nearly every record adds to is not in it but in `end` and `sums`, until it is closed.
    open: Option<Box<SocketMetrics>>,
    /// Its end; 0 if none is open.
    end: MonotonicNs,
    sums: Sums,
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
        let sums = Sums { writes: 0, written: 0, reads: 0, read: 0 };
        Self {
            socket,
            open: None,
            end: MonotonicNs(0),
            sums,
            pending: Values::new(),
            write: None,
            came: None,
            arrived: None,
        }
    }

    /// Opens the window of an instant, with what came before it handed on.
    #[inline]
    fn open_window(&mut self, at: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) {
        // Events of two processors can be a little out of order: what is older than the window counts in it.
        if self.end <= at {
            self.begin_window(at, out);
        }
    }

    #[cold]
    fn begin_window(&mut self, at: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) {
        self.close(out);
        let row = SocketMetrics::at(self.socket, at);
        self.end = row.window_end();
        self.open = Some(Box::new(row));
    }

    /// The window of an instant, for what is rare.
    fn window(&mut self, at: MonotonicNs, out: &mut impl FnMut(SocketMetrics)) -> &mut SocketMetrics {
        self.open_window(at, out);
        self.open.get_or_insert_with(|| Box::new(SocketMetrics::at(self.socket, at)))
    }

    /// The beginning of the open window; of none where none is open.
    #[inline]
    fn begin(&self) -> MonotonicNs {
        MonotonicNs(self.end.0.saturating_sub(SocketMetrics::WINDOW.0.unsigned_abs()))
    }

    fn close(&mut self, out: &mut impl FnMut(SocketMetrics)) {
        let Some(mut row) = self.open.take() else { return };
        self.end = MonotonicNs(0);
        let sums = std::mem::take(&mut self.sums);
        (row.write.calls, row.write.bytes) = (sums.writes, sums.written);
        (row.read.calls, row.read.bytes) = (sums.reads, sums.read);
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
        self.open_window(at, out);
        self.sums.writes += 1;
        self.sums.written += u64::from(len);
        self.write = Some(Write { window: self.begin(), seq, len });
        if let Some(srtt) = srtt {
            self.pending.rtt.record(srtt, || self.open.as_mut().map(|row| &mut row.rtt));
        }
    }

    /// TCP has taken all bytes before `seq` and none behind it: the last write may have offered more. (In a window that is closed
    /// already it is left at that.)
    #[inline]
    pub(crate) fn taken_until(&mut self, seq: SeqNo) {
        let window = self.begin();
        let Some(write) = &mut self.write else { return };
        let taken = write.seq.distance(seq);
        let Ok(taken) = u32::try_from(taken) else { return };
        let Some(too_many) = write.len.checked_sub(taken).filter(|n| *n > 0) else { return };
        if self.open.is_none() || window != write.window {
            return;
        }
        self.sums.written = self.sums.written.saturating_sub(u64::from(too_many));
        write.len = taken;
        if taken == 0 {
            self.sums.writes = self.sums.writes.saturating_sub(1);
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
        if self.open.is_some() && self.begin() == write.window {
            let row = self.open.as_mut();
            self.pending.write.record(took, || row.map(|row| row.write.duration.get_or_insert_default()));
        } else {
            let mut late = SocketMetrics::at(self.socket, write.window);
            late.write.record_duration(took, None);
            out(late);
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
        self.open_window(read.at, out);
        self.sums.reads += 1;
        self.sums.read += u64::from(read.len);
        if let Some((took, wait)) = read.took.zip(wait) {
            let row = &mut self.open;
            self.pending.read.record(took, || row.as_mut().map(|row| row.read.duration.get_or_insert_default()));
            self.pending.wait.record(wait, || row.as_mut().map(|row| row.read.wait.get_or_insert_default()));
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
        if self.end.offset(GRACE) <= now {
            self.close(out);
        }
    }

    /// Closes the window.
    pub(crate) fn finish(&mut self, out: &mut impl FnMut(SocketMetrics)) {
        self.close(out);
    }
}
