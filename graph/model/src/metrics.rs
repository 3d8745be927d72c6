//! What a socket did in a stretch of time, as counters and histograms.

use crate::{DurationNs, ExponentialHistogram, MonotonicNs, SocketCookie};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Calls in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IoMetrics {
    /// Calls that moved bytes. A call that the kernel refused, or that found nothing to read, is none.
    pub calls: u64,
    /// Bytes that TCP took (write) or that were handed out (read).
    pub bytes: u64,
    /// How long the calls took, in ns. `None` if no call's time was measured; it may also hold fewer values than there were
    /// calls.
    pub duration: Option<ExponentialHistogram>,
    /// Read only: how much of that the call waited for its first byte to come, in ns; 0 where the byte was there. One value for
    /// each value of `duration`, whose rest is work.
    pub wait: Option<ExponentialHistogram>,
}

/// Why the kernel dropped a packet: its own name for it (`enum skb_drop_reason` without `SKB_DROP_REASON_`), or a number where it
/// has none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DropReason(pub Arc<str>);

/// What a socket did in one window.
///
/// There is a row for each socket and window in which something happened. What is known only after its window was closed (the
/// time of a write after which the socket was silent) comes in another row of the same socket and window: rows of equal keys
/// add up ([`SocketMetrics::merge`]), as do those of different windows and sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketMetrics {
    /// The socket.
    pub socket: SocketCookie,
    /// The window's beginning: a multiple of [`SocketMetrics::WINDOW`] of the node's monotonic clock.
    pub window_start: MonotonicNs,
    /// Writes.
    pub write: IoMetrics,
    /// Reads.
    pub read: IoMetrics,
    /// The kernel's smoothed round-trip time (`srtt_us`) of this socket, in ns, one sample at each write. The kernel's resolution
    /// is 125 ns.
    pub rtt: ExponentialHistogram,
    /// Segments that were sent again, also by timers.
    pub retransmits: u64,
    /// Packets from or to this socket that the kernel dropped, by reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// Events of this socket that were lost in the window: with any, the counts are lower bounds.
    pub lost_events: u64,
}

/// Something that is measured where the kernel allows the programs for it, and is absent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// [`IoMetrics::duration`] of writes, and the bytes that TCP [held back](crate::Message::held).
    WriteTime,
    /// [`IoMetrics::duration`] and [`IoMetrics::wait`] of reads.
    ReadTime,
    /// [`SocketMetrics::retransmits`].
    Retransmits,
    /// Resets that the socket's error does not tell of ([`Close::reset`](crate::Close::reset)).
    Resets,
    /// [`SocketMetrics::drops`].
    Drops,
}

impl Metric {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::WriteTime, Self::ReadTime, Self::Retransmits, Self::Resets, Self::Drops];

    /// Its name, in the plural.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WriteTime => "times of writes",
            Self::ReadTime => "times of reads",
            Self::Retransmits => "retransmits",
            Self::Resets => "resets",
            Self::Drops => "drops",
        }
    }
}

impl IoMetrics {
    /// Adds another's calls.
    pub fn merge(&mut self, other: &Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.bytes = self.bytes.saturating_add(other.bytes);
        merge_optional(&mut self.duration, other.duration.as_ref());
        merge_optional(&mut self.wait, other.wait.as_ref());
    }

    /// Adds the time of a call; `wait` is the part of it in which the call waited for data.
    #[inline]
    pub fn record_duration(&mut self, duration: DurationNs, wait: Option<DurationNs>) {
        let ns = |span: DurationNs| u64::try_from(span.0).unwrap_or(0);
        self.duration.get_or_insert_default().record(ns(duration));
        if let Some(wait) = wait {
            self.wait.get_or_insert_default().record(ns(wait));
        }
    }

    /// True if nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.calls == 0 && self.bytes == 0 && self.duration.is_none() && self.wait.is_none()
    }
}

fn merge_optional(to: &mut Option<ExponentialHistogram>, from: Option<&ExponentialHistogram>) {
    if let Some(from) = from {
        to.get_or_insert_default().merge(from);
    }
}

impl SocketMetrics {
    /// Length of a window.
    pub const WINDOW: DurationNs = DurationNs::from_millis(10_000);

    /// The beginning of the window that an instant is in.
    #[must_use]
    pub const fn window_of(at: MonotonicNs) -> MonotonicNs {
        MonotonicNs(at.0 - at.0 % Self::WINDOW.0.unsigned_abs())
    }

    /// Nothing yet, of the window that holds `at`.
    #[must_use]
    pub fn at(socket: SocketCookie, at: MonotonicNs) -> Self {
        Self {
            socket,
            window_start: Self::window_of(at),
            write: IoMetrics::default(),
            read: IoMetrics::default(),
            rtt: ExponentialHistogram::new(),
            retransmits: 0,
            drops: BTreeMap::new(),
            lost_events: 0,
        }
    }

    /// The end of its window, which is the beginning of the next one.
    #[must_use]
    #[inline]
    pub fn window_end(&self) -> MonotonicNs {
        self.window_start.offset(Self::WINDOW)
    }

    /// Adds another row: of the same socket and window, or of several to make their total. The identity stays; the window's
    /// beginning becomes the earlier one.
    pub fn merge(&mut self, other: &Self) {
        self.window_start = self.window_start.min(other.window_start);
        self.write.merge(&other.write);
        self.read.merge(&other.read);
        self.rtt.merge(&other.rtt);
        self.retransmits = self.retransmits.saturating_add(other.retransmits);
        for (reason, n) in &other.drops {
            let sum = self.drops.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*n);
        }
        self.lost_events = self.lost_events.saturating_add(other.lost_events);
    }

    /// True if nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.write.is_empty()
            && self.read.is_empty()
            && self.rtt.is_empty()
            && self.retransmits == 0
            && self.drops.is_empty()
            && self.lost_events == 0
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_to_the_clock() {
        let at = MonotonicNs(123_456_789_012);
        let row = SocketMetrics::at(SocketCookie(1), at);
        assert_eq!(row.window_start, MonotonicNs(120_000_000_000));
        assert_eq!(row.window_end(), MonotonicNs(130_000_000_000));
        assert_eq!(SocketMetrics::window_of(row.window_end()), row.window_end());
        assert!(row.is_empty());
    }

    #[test]
    fn rows_add_up() {
        let reason = |s: &str| DropReason(s.into());
        let mut a = SocketMetrics::at(SocketCookie(1), MonotonicNs(25_000_000_000));
        a.write.calls = 2;
        a.drops.insert(reason("TCP_CSUM"), 1);
        let mut b = SocketMetrics::at(SocketCookie(1), MonotonicNs(15_000_000_000));
        b.write.record_duration(DurationNs(5_000), None);
        b.read.record_duration(DurationNs(9_000), Some(DurationNs(8_000)));
        b.read.record_duration(DurationNs(-1), Some(DurationNs(-1)));
        b.drops = [(reason("TCP_CSUM"), 2), (reason("NO_SOCKET"), 1)].into();
        b.retransmits = 3;
        a.merge(&b);
        assert_eq!((a.window_start, a.retransmits), (MonotonicNs(10_000_000_000), 3));
        assert_eq!(a.write.duration.as_ref().map(ExponentialHistogram::count), Some(1));
        assert_eq!(a.write.wait, None, "a wait that was not measured is no wait of 0");
        assert_eq!(a.read.wait.as_ref().map(ExponentialHistogram::sum), Some(8_000));
        assert_eq!(a.drops.values().copied().collect::<Vec<_>>(), [1, 3]);
        assert!(!a.is_empty());
    }
}
