//! The bounds on what waits between the wire and whoever takes the entries, and on what is not whole yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a queued message costs beside its bytes: its place in the queue, and its share of a read buffer.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// Room for messages and for what was decoded from them until it is done with, over all streams.
#[derive(Debug)]
pub(crate) struct Budget {
    max_bytes: usize,
    max_entries: usize,
    bytes: AtomicUsize,
    entries: AtomicUsize,
}

/// Room that messages take, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
    entries: usize,
}

impl Budget {
    pub(crate) fn new(max_bytes: usize, max_entries: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, max_entries, bytes: AtomicUsize::new(0), entries: AtomicUsize::new(0) })
    }

    /// Room for a message, if there is any. A message larger than the whole budget is let in while nothing else waits:
    /// it could never be otherwise.
    pub(crate) fn acquire(self: &Arc<Self>, message_bytes: usize, entries: usize) -> Option<Permit> {
        let bytes = message_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let bytes_before = self.bytes.fetch_add(bytes, Relaxed);
        let entries_before = self.entries.fetch_add(entries, Relaxed);
        // Dropped if the room is not there, which gives back what was just taken.
        let permit = Permit { budget: Arc::clone(self), bytes, entries };
        let alone = bytes_before == 0;
        let fits = bytes_before.saturating_add(bytes) <= self.max_bytes
            && entries_before.saturating_add(entries) <= self.max_entries;
        (alone || fits).then_some(permit)
    }

    /// Bytes and entries that wait now.
    pub(crate) fn used(&self) -> (usize, usize) {
        (self.bytes.load(Relaxed), self.entries.load(Relaxed))
    }
}

impl Permit {
    /// Takes over the room of another message.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.entries += std::mem::take(&mut other.entries);
    }

    /// So many bytes are left of the messages, now that they are decoded.
    pub(crate) fn resize(&mut self, bytes: usize) {
        self.budget.bytes.fetch_add(bytes, Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Empty once another took it over.
        if self.bytes > 0 || self.entries > 0 {
            self.budget.bytes.fetch_sub(self.bytes, Relaxed);
            self.budget.entries.fetch_sub(self.entries, Relaxed);
        }
    }
}

/// Room for messages that come in parts, over all streams.
#[derive(Debug)]
pub(crate) struct Assembly {
    max: usize,
    used: AtomicUsize,
}

/// Room that the parts of one message take, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    assembly: Arc<Assembly>,
    bytes: usize,
}

impl Assembly {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, used: AtomicUsize::new(0) })
    }

    /// Bytes of parts that are there now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

impl Held {
    pub(crate) const fn new(assembly: Arc<Assembly>) -> Self {
        Self { assembly, bytes: 0 }
    }

    /// Takes room for more; false if there is none.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let before = self.assembly.used.fetch_add(more, Relaxed);
        self.bytes += more;
        before.saturating_add(more) <= self.assembly.max
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.assembly.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_room_comes_back() {
        let budget = Budget::new(10_000, 10);
        let first = budget.acquire(100, 6).expect("room");
        assert!(budget.acquire(100, 6).is_none(), "too many entries");
        assert!(budget.acquire(10_000, 1).is_none(), "too many bytes");
        let second = budget.acquire(100, 4).expect("room");
        assert_eq!(budget.used(), (2 * (100 + MESSAGE_OVERHEAD_BYTES), 10));
        drop((first, second));
        assert_eq!(budget.used(), (0, 0));
        let mut both = budget.acquire(1_000, 6).expect("room");
        both.add(budget.acquire(1_000, 2).expect("room"));
        assert_eq!(budget.used(), (2 * (1_000 + MESSAGE_OVERHEAD_BYTES), 8));
        both.resize(300);
        assert_eq!(budget.used(), (300, 8));
        drop(both);
        assert_eq!(budget.used(), (0, 0));
        assert!(budget.acquire(1 << 20, 1_000).is_some(), "a giant alone");
        assert_eq!(budget.used(), (0, 0));
    }
}
