//! What a report says, as numbers: renderers turn it into text.

use crate::breakdown::Breakdown;
use crate::connections::{LineSummary, MissingMetrics};
use crate::request::AttributedRequest;
use meshdiff_model::{Detail, DurationNs, HopProtocol, ProbeTier, Segment, SegmentMap, WallTime, Workload};
use std::collections::BTreeMap;

/// The result of a recording.
#[derive(Clone, Debug)]
pub struct Report {
    /// First and last instant that the recording (or the part chosen by `--since`) covers.
    pub window: (WallTime, WallTime),
    /// The namespace that it is restricted to; `None` for all.
    pub namespace: Option<String>,
    /// How much was seen.
    pub coverage: Coverage,
    /// Where the time of whole requests went, calls within calls resolved; `None` if no request is full.
    pub verdict: Option<Verdict>,
    /// One for each client workload, server workload and protocol, slowest mean total first.
    pub hops: Vec<HopSummary>,
    /// The hops told apart by zones and the like, as far as it was asked for.
    pub breakdowns: Vec<Breakdown>,
    /// The lines of the process topology, in order of their ends' names.
    pub lines: Vec<LineSummary>,
    /// What deserves attention, most severe first.
    pub findings: Vec<Finding>,
    /// The slowest requests that are full, slowest first, with all the requests that they caused: each is followed by its
    /// descendants, depth first. `parent` and `children` index into this list.
    pub slowest: Vec<AttributedRequest>,
}

/// How much of the traffic the report speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Requests in all. The rows `full`, `partial_*`, `ambiguous` and `unmatched` sum to it.
    pub requests: u64,
    /// Every socket was seen.
    pub full: u64,
    /// The client's half only.
    pub partial_client: u64,
    /// The server's half only.
    pub partial_server: u64,
    /// Access logs only.
    pub partial_als: u64,
    /// A partner was not unique.
    pub ambiguous: u64,
    /// No partner, by reason.
    pub unmatched: BTreeMap<String, u64>,
    /// Why requests that have a partner are not full, by reason (they are counted in the rows above).
    pub partial_reasons: BTreeMap<String, u64>,
    /// Requests that the kernel saw client applications send.
    pub client_messages_seen: u64,
    /// Segments below zero, over all requests.
    pub negative_segments: u64,
    /// Kernel events that found the ring buffer full.
    pub lost_kernel_events: u64,
    /// Runs of probes that the kernel left out: events may be missing without a gap to be seen by.
    pub skipped_runs: u64,
    /// Sockets whose end was lost.
    pub vanished_sockets: u64,
    /// Access log entries that were lost, as far as it can be estimated.
    pub lost_access_logs_estimate: u64,
    /// What the kernel accepted; `None` where nothing says.
    pub probe_tier: Option<ProbeTier>,
    /// Mean time inside a probe for each event; `None` where it was not counted.
    pub probe_cost_ns_per_event: Option<u64>,
    /// Sentences on what limits this report: damaged parts, a recording that was cut off, no probes.
    pub notes: Vec<String>,
    /// The connection metrics that were not measured, each with the reason.
    pub missing_metrics: MissingMetrics,
}

/// Summary of a distribution of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Arithmetic mean, rounded to the nanosecond.
    pub mean: DurationNs,
    /// Median (lower of the two middle values' ranks: nearest-rank).
    pub p50: DurationNs,
    /// 90th percentile, nearest rank.
    pub p90: DurationNs,
    /// 99th percentile, nearest rank.
    pub p99: DurationNs,
    /// 99.9th percentile, nearest rank.
    pub p999: DurationNs,
}

/// Statistics of one segment over the full requests of a hop.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentStats {
    /// Its distribution. A request without the segment counts as 0 if it is full (the segment did not happen).
    pub distribution: Distribution,
    /// 95% confidence interval of the mean (Student's t).
    pub mean_ci95: (DurationNs, DurationNs),
    /// Sum of this segment over the sum of totals, 0 to 1.
    pub share: f64,
    /// Means of its details, over the same requests.
    pub details: Vec<(Detail, DurationNs)>,
}

/// The mean split of the requests whose total lies near a quantile. Percentiles do not add, these do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearQuantile {
    /// The quantile in per mille: 500, 990.
    pub per_mille: u16,
    /// How many requests.
    pub n: u64,
    /// Mean total of these requests.
    pub total: DurationNs,
    /// Mean of each segment; sums to `total` up to rounding.
    pub segments: SegmentMap,
}

/// All requests from one workload to another.
#[derive(Clone, Debug)]
pub struct HopSummary {
    /// Who called (pod and address left out).
    pub client: Workload,
    /// Who was called (pod and address left out).
    pub server: Workload,
    /// Protocol of the client's stream.
    pub protocol: HopProtocol,
    /// Requests in all.
    pub requests: u64,
    /// Full requests: what the statistics are over.
    pub n: u64,
    /// Requests by status code (`"0"` where none came), over all.
    pub response_codes: BTreeMap<u16, u64>,
    /// Distribution of totals over the full requests; `None` if there are none.
    pub total: Option<Distribution>,
    /// Statistics by segment over the full requests; segments that never occurred are absent.
    pub segments: BTreeMap<Segment, SegmentStats>,
    /// The split near the median and the 99th percentile (only with enough requests).
    pub near: Vec<NearQuantile>,
}

/// The kinds into which the one-sentence verdict puts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartKind {
    /// Applications: servers' own time and slow clients.
    Application,
    /// Sidecars, client's and server's, with retries and connection set-up.
    Sidecar,
    /// The loopback between applications and sidecars.
    Loopback,
    /// Between the pods.
    Network,
    /// Bodies under way.
    Transfer,
    /// Not measured.
    Unattributed,
}

impl PartKind {
    /// All, in order.
    pub const ALL: [Self; 6] =
        [Self::Application, Self::Sidecar, Self::Loopback, Self::Network, Self::Transfer, Self::Unattributed];

    /// The kind of a segment.
    #[must_use]
    pub const fn of(segment: Segment) -> Self {
        match segment {
            Segment::ClientApp | Segment::ServerApp => Self::Application,
            Segment::ClientSidecar | Segment::ServerSidecar | Segment::ConnectionSetup | Segment::Retry => {
                Self::Sidecar
            }
            Segment::ClientLoopback | Segment::ServerLoopback => Self::Loopback,
            Segment::Network => Self::Network,
            Segment::Transfer => Self::Transfer,
            Segment::Unattributed => Self::Unattributed,
        }
    }
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Sidecar => "sidecar",
            Self::Loopback => "loopback",
            Self::Network => "network",
            Self::Transfer => "transfer",
            Self::Unattributed => "unattributed",
        }
    }
}

/// Where the time of whole requests went: entry requests (those that no other request caused), with the time of calls
/// within calls given to where it was spent. Calls at the same time are charged along the critical path.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The workload whose requests these are.
    pub client: Workload,
    /// The workload that they enter at.
    pub server: Workload,
    /// How many (full entry requests whose whole tree is full).
    pub n: u64,
    /// Mean total.
    pub mean_total: DurationNs,
    /// Median total.
    pub p50_total: DurationNs,
    /// Mean time by kind; sums to the mean total up to rounding. In order of [`PartKind`].
    pub parts: Vec<Part>,
    /// Mean time by place (a workload's application or sidecar, a pair's network), largest first.
    pub places: Vec<Place>,
}

/// A kind's part of the verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The kind.
    pub kind: PartKind,
    /// Mean time in each entry request.
    pub mean: DurationNs,
    /// Share of the total, 0 to 1.
    pub share: f64,
}

/// A place where time was spent.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The kind.
    pub kind: PartKind,
    /// The workload (application, sidecar, loopback: whose pod it is; network and transfer: the server's).
    pub workload: Workload,
    /// Mean time in each entry request (not in each call of this workload).
    pub mean: DurationNs,
    /// Share of the total, 0 to 1.
    pub share: f64,
}

/// How urgent a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something is slow or doubtful.
    Warning,
    /// Good to know.
    Info,
}

impl Level {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// A conclusion with its evidence and what to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Stable code, `MD` and four digits.
    pub code: &'static str,
    /// How urgent.
    pub level: Level,
    /// Of what it speaks, for instance `default/reviews-v1`.
    pub subject: String,
    /// One sentence.
    pub text: String,
    /// The numbers behind it; names end in `Ns` for nanoseconds.
    pub evidence: BTreeMap<String, f64>,
    /// What to do.
    pub fix: String,
}

impl Finding {
    /// The order of findings: most severe first.
    pub(crate) fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        (a.level, a.code, &a.subject).cmp(&(b.level, b.code, &b.subject))
    }
}
