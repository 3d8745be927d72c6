//! Puts a socket's events back into the order of their counter.
//!
//! A probe takes its counter first and its place in the ring a moment later, so two processors (or a softirq that interrupts a
//! probe) can reach the ring the other way round. An event ahead of its turn waits; what it waited for in vain is lost.

use super::socket::Event;

/// An event ahead of its turn.
#[derive(Debug)]
struct Held {
    event: Event,
    /// The tick at which it came.
    tick: u64,
}

/// What comes next for a socket.
#[derive(Debug)]
pub(super) enum Next {
    /// The next event, in its turn.
    Event(Event),
    /// So many events did not come.
    Lost(u32),
}

/// The order of one socket's events.
#[derive(Debug)]
pub(super) struct Reorder {
    expected: u32,
    /// In order of counter; almost always empty.
    held: Vec<Held>,
}

/// What became of an event that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// Something is ready to be taken.
    Ready,
    /// It waits for another.
    Waits,
    /// It comes after it was given up, or a second time.
    Late,
}

impl Reorder {
    /// Ticks that an event waits for its predecessors.
    const PATIENCE: u64 = 2;

    pub(super) const fn new() -> Self {
        Self { expected: 0, held: Vec::new() }
    }

    /// The first event has this counter: those before it were told of already.
    pub(super) fn begin_at(&mut self, counter: u32) {
        self.expected = counter;
    }

    pub(super) fn put(&mut self, event: Event, tick: u64) -> Put {
        let ahead = event.counter.wrapping_sub(self.expected).cast_signed();
        if ahead < 0 {
            return Put::Late;
        }
        let at = self.held.partition_point(|h| h.event.counter.wrapping_sub(event.counter).cast_signed() < 0);
        if self.held.get(at).is_some_and(|h| h.event.counter == event.counter) {
            return Put::Late;
        }
        self.held.insert(at, Held { event, tick });
        if ahead == 0 { Put::Ready } else { Put::Waits }
    }

    /// True if `counter` is in its turn and nothing waits, so that it need not be stored.
    #[inline]
    pub(super) fn pass(&mut self, counter: u32) -> bool {
        let passes = self.held.is_empty() && counter == self.expected;
        if passes {
            self.expected = self.expected.wrapping_add(1);
        }
        passes
    }

    /// What can be taken at this tick. More than `limit` waiting events are not waited for.
    pub(super) fn take(&mut self, tick: u64, limit: usize) -> Option<Next> {
        let first = self.held.first()?;
        let missing = first.event.counter.wrapping_sub(self.expected);
        if missing == 0 {
            self.expected = self.expected.wrapping_add(1);
            return Some(Next::Event(self.held.remove(0).event));
        }
        let given_up =
            self.held.len() > limit || self.held.iter().any(|h| h.tick.saturating_add(Self::PATIENCE) <= tick);
        given_up.then(|| {
            self.expected = first.event.counter;
            Next::Lost(missing)
        })
    }

    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }
}
