//! What the probes cost, as the kernel measures it.
//!
//! While anybody holds `BPF_ENABLE_STATS`, the kernel takes the time around every BPF program on the machine. That itself
//! costs as much as a lean probe, so it is on for one second in five, beginning with the first (and sooner again after a second in
//! which little happened); the totals are scaled up by the share of the events that fell into those seconds. Where too few did, nothing is said: what
//! the probes spend on sockets that are not watched would be charged to a handful of events.

use aya::sys::{Stats, enable_stats};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const ON: Duration = Duration::from_secs(1);
const OFF: Duration = Duration::from_secs(4);
/// Measured seconds with fewer events than this say little, and are followed by another one soon.
const FEW_EVENTS: u64 = 1_000;

pub(crate) struct CostMeter {
    guard: Option<OwnedFd>,
    next: Option<Instant>,
    /// Events counted when the running measurement began.
    began_at: u64,
    /// Events in the measurements that are over.
    sampled: u64,
}

impl CostMeter {
    pub(crate) fn new(enabled: bool) -> Self {
        let guard = if enabled { start() } else { None };
        let next = guard.is_some().then(|| Instant::now() + ON);
        Self { guard, next, began_at: 0, sampled: 0 }
    }

    /// True if it is time to turn the measurement on or off.
    pub(crate) fn is_due(&self) -> bool {
        self.next.is_some_and(|at| Instant::now() >= at)
    }

    /// Turns the measurement on or off.
    pub(crate) fn turn(&mut self, events: u64) {
        if self.guard.is_some() {
            let little = events.saturating_sub(self.began_at) < FEW_EVENTS;
            self.end_measurement(events);
            self.next = Some(Instant::now() + if little { ON } else { OFF });
        } else {
            self.guard = start();
            self.began_at = events;
            self.next = self.guard.is_some().then(|| Instant::now() + ON);
        }
    }

    /// Ends the measurement for good.
    pub(crate) fn stop(&mut self, events: u64) {
        self.end_measurement(events);
        self.next = None;
    }

    fn end_measurement(&mut self, events: u64) {
        if self.guard.take().is_some() {
            self.sampled += events.saturating_sub(self.began_at);
        }
    }

    /// Runs and nanoseconds in all, from those measured and the number of events so far.
    pub(crate) fn scaled(&self, measured: (u64, Duration), events: u64) -> (u64, u64) {
        let running = if self.guard.is_some() { events.saturating_sub(self.began_at) } else { 0 };
        scale(measured, self.sampled + running, events)
    }
}

fn start() -> Option<OwnedFd> {
    enable_stats(Stats::RunTime)
        .inspect_err(|error| tracing::debug!(%error, "the kernel does not measure the probes' run time"))
        .ok()
}

/// `measured` held `sampled` of `events`. Nothing, if that is too few to speak for the others.
fn scale((runs, time): (u64, Duration), sampled: u64, events: u64) -> (u64, u64) {
    if sampled < FEW_EVENTS || sampled < events / 50 {
        return (0, 0);
    }
    let factor = events as f64 / sampled as f64;
    ((runs as f64 * factor).round() as u64, (time.as_nanos() as f64 * factor).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_scaled_to_the_whole() {
        assert_eq!(scale((2_000, Duration::from_nanos(600_000)), 1_000, 10_000), (20_000, 6_000_000));
        // Too little happened while it was measured.
        assert_eq!(scale((3_000, Duration::from_nanos(900)), 0, 500), (0, 0));
        assert_eq!(scale((3_000, Duration::from_nanos(900)), 2_000, 200_000), (0, 0));
        assert_eq!(scale((0, Duration::ZERO), 0, 0), (0, 0));
    }
}
