//! What the table and Markdown share: a hop in a few numbers, and names as short as they may be.

use crate::text;
use meshdiff_analyzer::{HopSummary, PartKind, Report};
use meshdiff_model::{Detail, Segment, Workload};

/// Headings of [`shares`].
pub(crate) const SHARES: [&str; 6] = ["app", "calls", "sidecar", "loopback", "network", "other"];

/// Shares of a hop's total: the applications themselves, the server application waiting for its own calls, sidecars,
/// loopback, network, and the rest. `None` where no request of the hop is full.
pub(crate) fn shares(hop: &HopSummary) -> [Option<f64>; 6] {
    let Some(total) = hop.total.as_ref().filter(|t| t.mean.0 > 0) else { return [None; 6] };
    let of = |kinds: &[PartKind]| {
        // Not `sum()`: that of nothing is -0.0.
        let stats = hop.segments.iter().filter(|(s, _)| kinds.contains(&PartKind::of(**s)));
        stats.fold(0.0, |sum, (_, st)| sum + st.share)
    };
    let calls = hop.segments.get(&Segment::ServerApp).and_then(|s| {
        s.details.iter().find(|(d, _)| *d == Detail::DownstreamCalls).map(|(_, v)| v.0 as f64 / total.mean.0 as f64)
    });
    let calls = calls.unwrap_or(0.0);
    [
        of(&[PartKind::Application]) - calls,
        calls,
        of(&[PartKind::Sidecar]),
        of(&[PartKind::Loopback]),
        of(&[PartKind::Network]),
        of(&[PartKind::Transfer, PartKind::Unattributed]),
    ]
    .map(Some)
}

/// Names workloads without their namespace where all of a report are of one.
pub(crate) struct Names {
    qualified: bool,
}

impl Names {
    pub(crate) fn of(report: &Report) -> Self {
        let mut ends = report.hops.iter().flat_map(|h| [&h.client.namespace, &h.server.namespace]);
        let first = ends.next();
        Self { qualified: ends.any(|n| Some(n) != first) }
    }
    pub(crate) fn name(&self, w: &Workload) -> String {
        if self.qualified { text::workload_full(w) } else { text::workload(w) }
    }
}
