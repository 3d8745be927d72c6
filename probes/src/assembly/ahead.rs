//! Events that were taken but not applied yet.
//!
//! What is remembered of a socket takes about a KiB, and with many sockets none of it is in a cache when an event of it comes: to wait for
//! memory would be most of the work. So some events are taken before the first of them is applied, and what is remembered of
//! their sockets is on its way by then, all of it at once.

use super::socket::Event;
use super::sockets::Slot;

/// Events that wait at most. What they and their sockets take is about as large as a processor's first-level cache.
const MOST: usize = 32;

/// Events in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    events: Vec<(Slot, Event)>,
}

impl Ahead {
    /// Takes one; true if it is time to apply them.
    #[inline]
    pub(super) fn add(&mut self, slot: Slot, event: Event) -> bool {
        self.events.push((slot, event));
        self.events.len() >= MOST
    }

    /// What waits, to be put back empty.
    #[inline]
    pub(super) fn take(&mut self) -> Vec<(Slot, Event)> {
        std::mem::take(&mut self.events)
    }

    /// Keeps the room for those to come.
    #[inline]
    pub(super) fn put_back(&mut self, empty: Vec<(Slot, Event)>) {
        self.events = empty;
    }
}
