//! The monotonic clock, and waits that are as accurate as the machine allows.
//!
//! Every instant in the lab's logs is CLOCK_MONOTONIC, which all network namespaces share and which is also what
//! `bpf_ktime_get_ns` reads: instants of applications and of probes can be compared directly.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use serde::{Deserialize, Serialize};

/// An instant of CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonotonicNs(pub u64);

impl MonotonicNs {
    /// The instant of the call (a vDSO read, some 20 ns).
    pub fn now() -> Self {
        // clock_gettime fails only for an unknown clock or a bad pointer, and nix gives it neither.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on Linux");
        Self(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
    }

    /// This instant moved into the future.
    pub fn plus(self, wait: Duration) -> Self {
        Self(self.0 + duration_ns(wait))
    }

    /// The time from `earlier` to this instant; zero if `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A duration in whole nanoseconds (the lab's durations are far below the 584 years that fit).
pub fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Takes the kernel's 50 µs of timer slack away from the calling thread, and from threads that it starts later.
pub fn tighten_timers() {
    // Failing costs accuracy only, and what is logged is the actual duration anyway.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Blocks the calling thread until `deadline`; returns at once if that has passed.
///
/// tokio's timer counts in whole milliseconds, so the lab never uses it for a delay.
pub fn sleep_until(deadline: MonotonicNs) {
    let at = TimeSpec::new((deadline.0 / 1_000_000_000) as _, (deadline.0 % 1_000_000_000) as _);
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at) == Err(Errno::EINTR) {}
}

/// Burns CPU until `deadline`.
pub fn spin_until(deadline: MonotonicNs) {
    while MonotonicNs::now() < deadline {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_never_ends_early() {
        tighten_timers();
        for wait in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(3)] {
            let start = MonotonicNs::now();
            sleep_until(start.plus(wait));
            assert!(MonotonicNs::now().since(start) >= wait);
            let start = MonotonicNs::now();
            spin_until(start.plus(wait));
            assert!(MonotonicNs::now().since(start) >= wait);
        }
    }

    #[test]
    fn the_difference_of_two_instants_is_never_negative() {
        assert_eq!(MonotonicNs(3).since(MonotonicNs(5)), Duration::ZERO);
        assert_eq!(MonotonicNs(5).since(MonotonicNs(3)), Duration::from_nanos(2));
    }
}
