//! Protobuf times into the model's: nothing is rounded.

use super::{InvalidEntry, InvalidField};
use envoy_types::pb::google::protobuf::{Duration, Timestamp};
use meshdiff_model::{DurationNs, WallTime};

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// No request takes longer: beyond this a span is a fault of its sender.
const LONGEST_SECONDS: i64 = 366 * 24 * 3600;
/// The same in nanoseconds.
pub(super) const LONGEST_NS: i64 = LONGEST_SECONDS * NANOS_PER_SECOND;

/// A span in nanoseconds.
///
/// # Errors
/// If it runs backwards, lasts longer than a year, or its nanoseconds are out of range: which of these is told apart.
pub(super) fn duration(wire: Duration) -> Result<DurationNs, InvalidField> {
    let nanos = i64::from(wire.nanos);
    if (0..=LONGEST_SECONDS).contains(&wire.seconds) && (0..NANOS_PER_SECOND).contains(&nanos) {
        Ok(DurationNs(wire.seconds * NANOS_PER_SECOND + nanos))
    } else if wire.seconds < 0 || nanos < 0 {
        Err(InvalidField::NegativeDuration)
    } else if nanos >= NANOS_PER_SECOND {
        Err(InvalidField::InvalidDuration)
    } else {
        Err(InvalidField::AbsurdDuration)
    }
}

/// An instant of the wall clock.
///
/// # Errors
/// If it lies before 1970 or does not fit 64 bits of nanoseconds (year 2262), or its nanoseconds are out of range.
pub(super) fn wall_time(wire: Timestamp) -> Result<WallTime, InvalidEntry> {
    let nanos = i64::from(wire.nanos);
    if wire.seconds < 0 || !(0..NANOS_PER_SECOND).contains(&nanos) {
        return Err(InvalidEntry::InvalidStartTime);
    }
    let whole = wire.seconds.checked_mul(NANOS_PER_SECOND).and_then(|s| s.checked_add(nanos));
    whole.map(WallTime).ok_or(InvalidEntry::InvalidStartTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_their_seconds_and_their_nanoseconds() {
        let d = |seconds, nanos| duration(Duration { seconds, nanos });
        assert_eq!(d(0, 0), Ok(DurationNs(0)));
        assert_eq!(d(3, 7), Ok(DurationNs(3_000_000_007)));
        assert_eq!(d(86_400, 999_999_999), Ok(DurationNs(86_400_999_999_999)));
        // Hours, and the longest there is.
        assert_eq!(d(7 * 3_600, 1), Ok(DurationNs(25_200_000_000_001)));
        assert_eq!(d(LONGEST_SECONDS, 999_999_999), Ok(DurationNs(LONGEST_NS + 999_999_999)));
        for (s, n) in [(-1, 0), (0, -1), (i64::MIN, i32::MIN), (5, -1)] {
            assert_eq!(d(s, n), Err(InvalidField::NegativeDuration), "{s} s {n} ns");
        }
        for (s, n) in [(0, 1_000_000_000), (0, i32::MAX)] {
            assert_eq!(d(s, n), Err(InvalidField::InvalidDuration), "{s} s {n} ns");
        }
        for (s, n) in [(LONGEST_SECONDS + 1, 0), (i64::MAX, 0)] {
            assert_eq!(d(s, n), Err(InvalidField::AbsurdDuration), "{s} s {n} ns");
        }
    }

    #[test]
    fn wall_times_keep_their_microseconds() {
        let t = |seconds, nanos| wall_time(Timestamp { seconds, nanos });
        assert_eq!(t(1_767_225_600, 123_456_000), Ok(WallTime(1_767_225_600_123_456_000)));
        for (s, n) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MAX / NANOS_PER_SECOND, 999_999_999)]
        {
            assert_eq!(t(s, n), Err(InvalidEntry::InvalidStartTime), "{s} s {n} ns");
        }
    }
}
