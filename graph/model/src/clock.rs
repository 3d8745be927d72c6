//! Two clocks that must not be mixed: a node's monotonic clock, in which the kernel and we measure, and the wall
//! clock, in which Envoy says when a request began.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Neg, Sub};

/// An instant of one node's `CLOCK_MONOTONIC`, in nanoseconds since boot (what `bpf_ktime_get_ns` returns).
///
/// Instants of different nodes must never be subtracted; durations may be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonotonicNs(pub u64);

/// A signed span in nanoseconds. Negative spans are kept as they are: they are evidence of a wrong join or of clocks
/// that disagree, and are counted, never clamped.
///
/// Arithmetic saturates: only a damaged or hostile capture holds spans of centuries, and an attribution refuses what then
/// no longer adds up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationNs(pub i64);

/// An instant of the wall clock, in nanoseconds since the Unix epoch. Envoy's `start_time` has steps of 1 µs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub i64);

impl MonotonicNs {
    /// The later of the two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
    /// This instant moved by a span; saturates at the ends of the range.
    #[must_use]
    pub fn offset(self, by: DurationNs) -> Self {
        Self(self.0.saturating_add_signed(by.0))
    }
}

impl Sub for MonotonicNs {
    type Output = DurationNs;
    fn sub(self, earlier: Self) -> DurationNs {
        DurationNs(self.0.wrapping_sub(earlier.0).cast_signed())
    }
}

impl DurationNs {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// `us` microseconds.
    #[must_use]
    pub const fn from_micros(us: i64) -> Self {
        Self(us * 1_000)
    }
    /// `ms` milliseconds.
    #[must_use]
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms * 1_000_000)
    }
    /// True if the span runs backwards.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }
}

impl Add for DurationNs {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for DurationNs {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for DurationNs {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for DurationNs {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl std::iter::Sum for DurationNs {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |sum, d| sum + d)
    }
}

impl fmt::Debug for MonotonicNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mono {}ns", self.0)
    }
}

impl fmt::Debug for DurationNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ns", self.0)
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wall {}ns", self.0)
    }
}

/// One simultaneous reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClockSample {
    /// The monotonic clock, read between two readings of the wall clock (their mean is `wall`).
    pub monotonic: MonotonicNs,
    /// The wall clock at that instant.
    pub wall: WallTime,
}

/// How a node's wall clock ran against its monotonic clock during a recording.
///
/// The wall clock is slewed and stepped by time synchronisation, so one offset is not enough for a long recording:
/// between two samples the offset is interpolated, beyond the ends the nearest sample's is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockAnchor {
    samples: Vec<ClockSample>,
}

impl ClockAnchor {
    /// An anchor from samples in any order.
    #[must_use]
    pub fn new(mut samples: Vec<ClockSample>) -> Self {
        samples.sort_by_key(|s| s.monotonic);
        Self { samples }
    }

    /// The samples, in order of monotonic time.
    #[must_use]
    pub fn samples(&self) -> &[ClockSample] {
        &self.samples
    }

    fn wall_minus_mono(sample: ClockSample) -> i128 {
        i128::from(sample.wall.0) - i128::from(sample.monotonic.0)
    }

    /// Interpolates the offset wall − monotonic at the position that `key` finds among the samples.
    fn offset_at(&self, at: i128, key: impl Fn(&ClockSample) -> i128) -> Option<i128> {
        let after = self.samples.partition_point(|s| key(s) <= at);
        let first = self.samples.first()?;
        let last = self.samples.last()?;
        if after == 0 {
            return Some(Self::wall_minus_mono(*first));
        }
        if after == self.samples.len() {
            return Some(Self::wall_minus_mono(*last));
        }
        let (a, b) = (&self.samples[after - 1], &self.samples[after]);
        let (oa, ob) = (Self::wall_minus_mono(*a), Self::wall_minus_mono(*b));
        let span = key(b) - key(a);
        if span <= 0 {
            return Some(oa);
        }
        Some(oa + (ob - oa) * (at - key(a)) / span)
    }

    /// The monotonic instant of a wall-clock instant; `None` without any sample or before boot.
    #[must_use]
    pub fn to_monotonic(&self, wall: WallTime) -> Option<MonotonicNs> {
        let at = i128::from(wall.0);
        let offset = self.offset_at(at, |s| i128::from(s.wall.0))?;
        u64::try_from(at - offset).ok().map(MonotonicNs)
    }

    /// The wall-clock instant of a monotonic instant; `None` without any sample.
    #[must_use]
    pub fn to_wall(&self, mono: MonotonicNs) -> Option<WallTime> {
        let at = i128::from(mono.0);
        let offset = self.offset_at(at, |s| i128::from(s.monotonic.0))?;
        i64::try_from(at + offset).ok().map(WallTime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(monotonic: u64, wall: i64) -> ClockSample {
        ClockSample { monotonic: MonotonicNs(monotonic), wall: WallTime(wall) }
    }

    #[test]
    fn interpolates_between_samples_and_holds_beyond_them() {
        let anchor = ClockAnchor::new(vec![sample(2_000, 1_002_100), sample(1_000, 1_001_000)]);
        assert_eq!(anchor.to_wall(MonotonicNs(1_000)), Some(WallTime(1_001_000)));
        assert_eq!(anchor.to_wall(MonotonicNs(1_500)), Some(WallTime(1_001_550)));
        assert_eq!(anchor.to_wall(MonotonicNs(500)), Some(WallTime(1_000_500)));
        assert_eq!(anchor.to_wall(MonotonicNs(3_000)), Some(WallTime(1_003_100)));
        assert_eq!(anchor.to_monotonic(WallTime(1_001_000)), Some(MonotonicNs(1_000)));
        assert_eq!(anchor.to_monotonic(WallTime(1_003_100)), Some(MonotonicNs(3_000)));
        assert_eq!(ClockAnchor::default().to_wall(MonotonicNs(1)), None);
    }

    #[test]
    fn a_span_that_runs_backwards_stays_negative() {
        assert_eq!(MonotonicNs(5) - MonotonicNs(9), DurationNs(-4));
    }
}
