//! Values on their way into a histogram.
//!
//! A histogram's buckets lie all over the heap, and with many sockets none of them is in a cache: to look for a bucket at every
//! record costs more than everything else that is done with it. So values wait in one line of the cache, where the socket's state is,
//! until it is full.

use meshdiff_model::{DurationNs, ExponentialHistogram};

/// Values that fit into a line of 64 bytes with their count.
const MOST: usize = 15;

/// Values that wait, in ns.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Pending {
    len: u32,
    values: [u32; MOST],
}

impl Pending {
    pub(super) const fn new() -> Self {
        Self { len: 0, values: [0; MOST] }
    }

    /// Takes a value for a histogram, the same one each time; a time below zero, which no clock gives, counts as 0.
    #[inline]
    pub(super) fn record(&mut self, value: DurationNs, to: &mut ExponentialHistogram) {
        let value = value.0.max(0).unsigned_abs();
        match (self.values.get_mut(self.len as usize), u32::try_from(value)) {
            (Some(place), Ok(value)) => {
                *place = value;
                self.len += 1;
            }
            _ => self.pass(value, to),
        }
    }

    /// There is no room for a value.
    #[cold]
    fn pass(&mut self, value: u64, to: &mut ExponentialHistogram) {
        self.flush(to);
        to.record(value);
    }

    /// Hands on what waits.
    pub(super) fn flush(&mut self, to: &mut ExponentialHistogram) {
        let values = &mut self.values[..self.len as usize];
        // Neighbours are in the same lines of the cache.
        values.sort_unstable();
        to.extend(values.iter().map(|value| u64::from(*value)));
        self.len = 0;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let (mut pending, mut histogram) = (Pending::new(), ExponentialHistogram::new());
        let times = (0..100).rev().map(|n| DurationNs(n * n * n * n * 1_000 - 5));
        let mut expected = ExponentialHistogram::new();
        for time in times {
            expected.record(u64::try_from(time.0).unwrap_or(0));
            pending.record(time, &mut histogram);
        }
        assert!(!pending.is_empty() && histogram.count() < 100);
        pending.flush(&mut histogram);
        assert_eq!(histogram, expected);
    }
}
