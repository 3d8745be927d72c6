//! From bounds on the difference of two clocks to the line that respects them best.

use meshdiff_model::MonotonicNs;
use std::collections::BTreeMap;

/// The steepest that two clocks drift apart: the kernel slews by at most 500 millionths (`MAXFREQ` in `kernel/time/ntp.c`), each.
const STEEPEST: f64 = 1e-3;

/// Bounds of one stretch of time are put together: none of a clock that drifts by a millionth moves by more than 0.1 µs in it.
const STRETCH_NS: u64 = 100_000_000;

/// What messages between two clocks say of `b − a`, in ns: more than `low`, less than `high`.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    /// By stretch of time: the largest lower and the smallest upper bound, each with its exact instant.
    stretches: BTreeMap<u64, [Option<(u64, i64)>; 2]>,
    /// How many instants were looked at.
    pub(super) instants: u64,
}

/// A difference that changes evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// The instant of `offset`.
    pub(super) at: u64,
    /// ns.
    pub(super) offset: f64,
    /// ns per ns.
    pub(super) rate: f64,
    /// How far the bounds leave the line room on both sides; negative if it breaks some.
    pub(super) slack: f64,
}

impl Bounds {
    pub(super) fn more_than(&mut self, at: MonotonicNs, low: i64) {
        let kept = &mut self.stretches.entry(at.0 / STRETCH_NS).or_default()[0];
        *kept = Some(kept.filter(|k| k.1 >= low).unwrap_or((at.0, low)));
        self.instants += 1;
    }

    pub(super) fn less_than(&mut self, at: MonotonicNs, high: i64) {
        let kept = &mut self.stretches.entry(at.0 / STRETCH_NS).or_default()[1];
        *kept = Some(kept.filter(|k| k.1 <= high).unwrap_or((at.0, high)));
        self.instants += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        let before = self.instants;
        for [low, high] in other.stretches.values() {
            if let Some((at, low)) = low {
                self.more_than(MonotonicNs(*at), *low);
            }
            if let Some((at, high)) = high {
                self.less_than(MonotonicNs(*at), *high);
            }
        }
        self.instants = before + other.instants;
    }

    fn lows(&self) -> impl Iterator<Item = (u64, i64)> {
        self.stretches.values().filter_map(|s| s[0])
    }

    fn highs(&self) -> impl Iterator<Item = (u64, i64)> {
        self.stretches.values().filter_map(|s| s[1])
    }

    /// The largest lower and the smallest upper bound of all; `None` where there is none of a kind.
    pub(super) fn extremes(&self) -> (Option<i64>, Option<i64>) {
        (self.lows().map(|b| b.1).max(), self.highs().map(|b| b.1).min())
    }

    /// How much room there is around a rate, and the offset in its middle.
    fn around(&self, at: u64, rate: f64) -> (f64, f64) {
        let level = |(t, bound): (u64, i64)| bound as f64 - rate * (t as f64 - at as f64);
        let low = self.lows().map(level).fold(f64::NEG_INFINITY, f64::max);
        let high = self.highs().map(level).fold(f64::INFINITY, f64::min);
        match (low.is_finite(), high.is_finite()) {
            (true, true) => ((high - low) / 2.0, low + (high - low) / 2.0),
            // One direction alone: its fastest message took no time.
            (true, false) => (f64::INFINITY, low),
            (false, true) => (f64::INFINITY, high),
            (false, false) => (f64::INFINITY, 0.0),
        }
    }

    /// The best line. Clocks that agree to run evenly keep their rates: only where no constant difference respects all bounds, the rate is
    /// looked for that leaves them most room (the room is a concave function of the rate).
    pub(super) fn fit(&self) -> Option<Line> {
        let first = self.stretches.first_key_value()?.0 * STRETCH_NS;
        let last = self.stretches.last_key_value()?.0 * STRETCH_NS;
        let at = first + (last - first) / 2;
        let line = |rate: f64| {
            let (slack, offset) = self.around(at, rate);
            Line { at, offset, rate, slack }
        };
        let even = line(0.0);
        if even.slack >= 0.0 {
            return Some(even);
        }
        let (mut low, mut high) = (-STEEPEST, STEEPEST);
        for _ in 0..60 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if self.around(at, a).0 < self.around(at, b).0 { low = a } else { high = b }
        }
        let best = line(f64::midpoint(low, high));
        Some(if best.slack > even.slack { best } else { even })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// Clock b runs `ahead` ns before a's, faster by `rate`; messages take from 50 µs on.
    fn bounds(ahead: i64, rate: f64, seconds: u64) -> Bounds {
        let mut bounds = Bounds::default();
        for i in 0..seconds * 20 {
            let t = 1_000 * S + i * S / 20;
            let truth = ahead + (rate * (t - 1_000 * S) as f64) as i64;
            let takes = 50_000 + (i * 7_919 % 4_000_000) as i64;
            if i % 2 == 0 {
                bounds.less_than(MonotonicNs(t), truth + takes);
            } else {
                bounds.more_than(MonotonicNs(t), truth - takes);
            }
        }
        bounds
    }

    #[test]
    fn clocks_that_run_evenly_keep_their_rates() {
        let line = bounds(300 * S as i64, 0.0, 60).fit().expect("a line");
        assert_eq!(line.rate, 0.0);
        assert!((line.offset - 300e9).abs() < 1e6 && line.slack > 0.0, "{line:?}");
    }

    #[test]
    fn clocks_that_drift_apart_are_followed() {
        // 30 millionths over 15 minutes are 27 ms: far more than any message takes.
        let line = bounds(-5_000_000, 30e-6, 900).fit().expect("a line");
        assert!((line.rate - 30e-6).abs() < 2e-6 && line.slack > 0.0, "{line:?}");
    }

    #[test]
    fn one_direction_alone_gives_a_bound() {
        let mut one = Bounds::default();
        one.more_than(MonotonicNs(S), 1_000);
        one.more_than(MonotonicNs(2 * S), 3_000);
        let line = one.fit().expect("a line");
        assert_eq!((line.offset, line.rate), (3_000.0, 0.0));
        assert_eq!(Bounds::default().fit(), None);
    }
}
