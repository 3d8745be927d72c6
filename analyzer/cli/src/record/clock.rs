//! Reads both clocks at once.

use meshdiff_model::{ClockSample, MonotonicNs, WallTime};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The monotonic clock between two readings of the wall clock, the narrowest of a few tries: an interruption between
/// the readings makes them worse, never better.
pub(crate) fn sample() -> ClockSample {
    let tries = (0..5).map(|_| {
        let before = read(ClockId::CLOCK_REALTIME);
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        let after = read(ClockId::CLOCK_REALTIME);
        let wall = before + (after - before) / 2;
        let sample = ClockSample {
            monotonic: MonotonicNs(u64::try_from(monotonic).unwrap_or_default()),
            wall: WallTime(i64::try_from(wall).unwrap_or_default()),
        };
        ((after - before).abs(), sample)
    });
    tries
        .min_by_key(|(width, _)| *width)
        .map_or(ClockSample { monotonic: MonotonicNs::default(), wall: WallTime::default() }, |(_, sample)| sample)
}

fn read(clock: ClockId) -> i128 {
    // Neither clock can fail where Linux runs.
    let nanos = clock_gettime(clock).map_or(Duration::ZERO, Duration::from).as_nanos();
    i128::try_from(nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_advance_together() {
        let a = sample();
        std::thread::sleep(Duration::from_millis(2));
        let b = sample();
        assert!(b.monotonic > a.monotonic && b.wall > a.wall);
        let drift = (b.wall.0 - a.wall.0) - (b.monotonic - a.monotonic).0;
        assert!(drift.abs() < 1_000_000, "{drift}");
    }
}
