//! Where the wall clock was set.

use meshdiff_model::{ClockAnchor, WallTime};

/// Two readings of both clocks disagree by less than this if nobody set the wall clock between them: the kernel slews both
/// alike (they share the timekeeper's frequency), only a step moves one against the other.
const NOISE_NS: i128 = 20_000;

/// The spans of wall-clock time in which the wall clock was set. What an access log says of an instant in them cannot be told: the
/// step lies anywhere between two readings.
pub(crate) struct Steps(Vec<(i64, i64)>);

impl Steps {
    pub(crate) fn of(clock: &ClockAnchor) -> Self {
        let offset = |at: usize| {
            let sample = clock.samples()[at];
            i128::from(sample.wall.0) - i128::from(sample.monotonic.0)
        };
        let stepped = (1..clock.samples().len()).filter(|&i| (offset(i) - offset(i - 1)).abs() > NOISE_NS);
        let span = |i: usize| {
            let (a, b) = (clock.samples()[i - 1], clock.samples()[i]);
            // The clock ran with its old offset until the step, and with its new one from then on.
            let real = (b.monotonic - a.monotonic).0.max(0);
            let ends = [a.wall.0, a.wall.0.saturating_add(real), b.wall.0, b.wall.0.saturating_sub(real)];
            (ends.into_iter().min().unwrap_or(i64::MIN), ends.into_iter().max().unwrap_or(i64::MAX))
        };
        Self(stepped.map(span).collect())
    }

    /// The spans, from and until when.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (WallTime, WallTime)> {
        self.0.iter().map(|&(from, to)| (WallTime(from), WallTime(to)))
    }

    /// True if the wall clock was set around this instant.
    pub(super) fn hold(&self, at: WallTime) -> bool {
        self.0.iter().any(|&(from, to)| from <= at.0 && at.0 <= to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_model::{ClockSample, MonotonicNs};

    fn sample(monotonic: u64, wall: i64) -> ClockSample {
        ClockSample { monotonic: MonotonicNs(monotonic), wall: WallTime(wall) }
    }

    #[test]
    fn only_the_readings_around_a_step_hold_it() {
        let s = 1_000_000_000;
        let clock = ClockAnchor::new(vec![
            sample(0, 100 * s),
            sample(1_000_000_000, 101 * s + 9_000),
            sample(2_000_000_000, 102 * s - 40_000_000),
            sample(3_000_000_000, 103 * s - 40_000_000),
        ]);
        let steps = Steps::of(&clock);
        assert!(!steps.hold(WallTime(100 * s + s / 2)));
        assert!(steps.hold(WallTime(101 * s + s / 2)));
        assert!(steps.hold(WallTime(102 * s - 1_000)), "by the old offset");
        assert!(steps.hold(WallTime(101 * s - 39_000_000)), "by the new offset");
        assert!(!steps.hold(WallTime(102 * s + s / 2)));
    }

    #[test]
    fn readings_that_only_wander_hold_none() {
        let clock = ClockAnchor::new(vec![sample(0, 0), sample(1_000, 15_000), sample(2_000, 3_000)]);
        assert!(!Steps::of(&clock).hold(WallTime(1_000)));
        assert!(!Steps::of(&ClockAnchor::default()).hold(WallTime(0)));
    }
}
