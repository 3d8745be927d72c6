//! Values on their way into a histogram.
//!
//! A histogram's buckets take some KiB, and with many sockets none of them is in a cache: to look for a bucket at every
//! record costs more than everything else that is done with it. So values wait until they are many, and then one pass over the buckets
//! takes all of them.

use meshdiff_model::{DurationNs, ExponentialHistogram};

/// Values that wait at most: a quarter of a KiB.
const MOST: usize = 64;

/// Values that wait, in ns.
#[derive(Debug, Default)]
pub(super) struct Pending {
    values: Vec<u32>,
}

impl Pending {
    pub(super) const fn new() -> Self {
        Self { values: Vec::new() }
    }

    /// Takes a value for a histogram, the same one each time, which `to` finds when there is something to hand on. A time below zero, which
    /// no clock gives, counts as 0.
    #[inline]
    pub(super) fn record<'a>(&mut self, value: DurationNs, to: impl FnOnce() -> Option<&'a mut ExponentialHistogram>) {
        let value = value.0.max(0).unsigned_abs();
        match u32::try_from(value) {
            Ok(value) if self.values.len() < MOST => self.values.push(value),
            _ => self.pass(value, to()),
        }
    }

    /// It is full, or the value has no place in it.
    #[cold]
    fn pass(&mut self, value: u64, to: Option<&mut ExponentialHistogram>) {
        let Some(to) = to else { return };
        self.flush(to);
        to.record(value);
    }

    /// Hands on what waits.
    pub(super) fn flush(&mut self, to: &mut ExponentialHistogram) {
        to.record_all(&self.values);
        self.values.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let (mut pending, mut histogram) = (Pending::new(), ExponentialHistogram::new());
        let times = (0..1_000).rev().map(|n| DurationNs(n * n * n * n * 1_000 - 5));
        let mut expected = ExponentialHistogram::new();
        for time in times {
            expected.record(u64::try_from(time.0).unwrap_or(0));
            pending.record(time, || Some(&mut histogram));
        }
        assert!(!pending.is_empty() && histogram.count() < 1_000);
        pending.flush(&mut histogram);
        assert_eq!(histogram, expected);
    }
}
