//! From attributed requests to a report's content.

use crate::connections::{self, MissingMetrics};
use crate::findings;
use crate::report::{Coverage, HopSummary, Part, PartKind, Place, Report, Verdict};
use crate::request::{AttributedRequest, CoverageClass};
use crate::rollup;
use crate::stats::Sample;
use crate::tally::HopTally;
use meshdiff_graph::MeshGraph;
use meshdiff_model::{ClockAnchor, DurationNs, ProbeStats, ProbeTier, UnmatchedReason, WallTime, Workload};
use std::collections::BTreeMap;

/// How many entry requests a report shows as waterfalls.
pub(crate) const SLOWEST: usize = 20;
/// Below this many full requests a split near a quantile says nothing.
pub(crate) const NEAR_MINIMUM: usize = 20;

/// What a report needs to know beyond the requests.
#[derive(Clone, Debug, Default)]
pub struct ReportInput {
    /// First and last instant of the recording, or of the part chosen.
    pub window: (WallTime, WallTime),
    /// Keep hops with either end in this namespace; `None` for all.
    pub namespace: Option<String>,
    /// What the kernel accepted.
    pub probe_tier: Option<ProbeTier>,
    /// What the probes did.
    pub probe_stats: ProbeStats,
    /// Sentences on what limits the recording.
    pub notes: Vec<String>,
    /// The connection metrics that the recording lacks, each with the reason.
    pub missing_metrics: MissingMetrics,
    /// How the node's wall clock ran against its monotonic clock.
    pub clock: ClockAnchor,
}

/// Restricts requests to a time and a namespace. Parents and children outside are cut off.
#[must_use]
pub fn select(
    requests: Vec<AttributedRequest>,
    namespace: Option<&str>,
    since: Option<WallTime>,
) -> Vec<AttributedRequest> {
    select_by(requests, |r| {
        since.is_none_or(|s| r.start >= s)
            && namespace.is_none_or(|n| [&r.client, &r.server].iter().any(|w| w.namespace.as_deref() == Some(n)))
    })
}

/// Restricts requests to those that something holds of. Parents and children outside are cut off.
#[must_use]
pub fn select_by(
    requests: Vec<AttributedRequest>,
    keep: impl Fn(&AttributedRequest) -> bool,
) -> Vec<AttributedRequest> {
    let mut place = vec![None; requests.len()];
    let mut kept = 0;
    for (i, r) in requests.iter().enumerate() {
        if keep(r) {
            place[i] = Some(kept);
            kept += 1;
        }
    }
    requests
        .into_iter()
        .enumerate()
        .filter(|(i, _)| place[*i].is_some())
        .map(|(_, mut r)| {
            r.parent = r.parent.and_then(|p| place[p]);
            r.children = r.children.iter().filter_map(|&c| place[c]).collect();
            r
        })
        .collect()
}

/// Builds a report from requests that [`select`] chose.
#[must_use]
pub fn report(requests: &[AttributedRequest], mesh: &MeshGraph, input: ReportInput) -> Report {
    let coverage = coverage_of(requests, mesh, &input);
    let hops = grouped(requests).into_iter().map(|(hop, _)| hop).collect();
    let mut report = Report {
        window: input.window,
        namespace: input.namespace.clone(),
        coverage,
        verdict: verdict(requests),
        hops,
        lines: connections::lines(&mesh.topology, input.namespace.as_deref(), &input.missing_metrics, &input.clock),
        breakdowns: Vec::new(),
        findings: Vec::new(),
        slowest: slowest(requests),
    };
    report.findings = findings::findings(&report);
    report
}

pub(crate) fn coverage_of(requests: &[AttributedRequest], mesh: &MeshGraph, input: &ReportInput) -> Coverage {
    let mut c = Coverage {
        lost_kernel_events: input.probe_stats.lost_events,
        skipped_runs: input.probe_stats.skipped_runs,
        vanished_sockets: input.probe_stats.vanished_sockets,
        probe_tier: input.probe_tier,
        probe_cost_ns_per_event: input.probe_stats.cost_ns_per_event(),
        notes: input.notes.clone(),
        missing_metrics: input.missing_metrics.clone(),
        ..Coverage::default()
    };
    for r in requests {
        count_request(&mut c, r);
    }
    // Of the servers' sidecars: the kernel saw the request on its way from them. That the other half's entry has no partner proves
    // nothing: a server may have no sidecar, or one on another node.
    let of_servers = mesh.unlogged_by_servers.iter().filter(|(at, server)| {
        let asked = input.namespace.is_none() || input.namespace == server.namespace;
        asked && input.clock.to_wall(*at).is_some_and(|at| (input.window.0..=input.window.1).contains(&at))
    });
    c.lost_access_logs_estimate += of_servers.count() as u64;
    c
}

/// Counts a request in its row, and what it tells of losses.
pub(crate) fn count_request(c: &mut Coverage, r: &AttributedRequest) {
    c.requests += 1;
    let row = match r.coverage.class {
        CoverageClass::Full => &mut c.full,
        CoverageClass::PartialClient => &mut c.partial_client,
        CoverageClass::PartialServer => &mut c.partial_server,
        CoverageClass::PartialAls => &mut c.partial_als,
        CoverageClass::Ambiguous => &mut c.ambiguous,
        CoverageClass::Unmatched => c.unmatched.entry(reason(r)).or_default(),
    };
    *row += 1;
    if !matches!(r.coverage.class, CoverageClass::Full | CoverageClass::Unmatched) {
        *c.partial_reasons.entry(reason(r)).or_default() += 1;
    }
    c.client_messages_seen += u64::from(r.request_crossings[0].send.is_some());
    c.negative_segments += r.attribution.negative_segments().count() as u64;
    // Of the client's sidecar: the kernel saw the request on its way to it.
    let unlogged = r.coverage.reason == Some(UnmatchedReason::ClientLogMissing.as_str());
    c.lost_access_logs_estimate += u64::from(unlogged && r.request_crossings[0].send.is_some());
}

fn reason(r: &AttributedRequest) -> String {
    r.coverage.reason.unwrap_or("unknown").to_owned()
}

/// All hops, slowest mean total first, each with its requests.
pub(crate) fn grouped(requests: &[AttributedRequest]) -> Vec<(HopSummary, Vec<&AttributedRequest>)> {
    let mut groups: BTreeMap<(Workload, Workload, &'static str), Vec<&AttributedRequest>> = BTreeMap::new();
    for r in requests {
        let mut server = rollup::short(&r.server);
        server.service.clone_from(&r.server.service);
        groups.entry((rollup::short(&r.client), server, r.protocol.as_str())).or_default().push(r);
    }
    let mut hops: Vec<_> =
        groups.into_iter().map(|((client, server, _), members)| (summary(client, server, &members), members)).collect();
    hops.sort_by(|(a, _), (b, _)| slowest_first(a, b));
    hops
}

/// The order of hops.
pub(crate) fn slowest_first(a: &HopSummary, b: &HopSummary) -> std::cmp::Ordering {
    let mean = |h: &HopSummary| h.total.map(|t| t.mean);
    mean(b).cmp(&mean(a)).then_with(|| (&a.client, &a.server).cmp(&(&b.client, &b.server)))
}

/// In the order of a report: slowest mean total first.
pub(crate) fn sort_hops(hops: &mut [HopSummary]) {
    hops.sort_by(slowest_first);
}

/// What some requests of one hop were like.
pub(crate) fn summary(client: Workload, server: Workload, members: &[&AttributedRequest]) -> HopSummary {
    let mut tally = HopTally::default();
    members.iter().for_each(|r| tally.add(r));
    tally.summary(client, server)
}

pub(crate) fn mean_of(sum: i128, n: usize) -> DurationNs {
    let n = n.max(1) as i128;
    DurationNs(i64::try_from((2 * sum + n).div_euclid(2 * n)).unwrap_or(i64::MAX))
}

/// The verdict on the entry point whose requests took most time in all.
fn verdict(requests: &[AttributedRequest]) -> Option<Verdict> {
    let mut entries: BTreeMap<(Workload, Workload), Vec<usize>> = BTreeMap::new();
    for (i, r) in requests.iter().enumerate() {
        if r.parent.is_none() && rollup::tree_is_full(requests, i) {
            entries.entry((rollup::short(&r.client), rollup::short(&r.server))).or_default().push(i);
        }
    }
    let time = |roots: &[usize]| roots.iter().map(|&i| i128::from(requests[i].attribution.total().0)).sum::<i128>();
    let ((client, server), roots) = entries.into_iter().max_by_key(|(_, roots)| time(roots))?;
    let totals = Sample::new(roots.iter().map(|&i| requests[i].attribution.total().0).collect())?;
    let mut places: BTreeMap<(PartKind, Workload), i128> = BTreeMap::new();
    for &root in &roots {
        for (place, spent) in rollup::places(requests, root) {
            *places.entry(place).or_default() += i128::from(spent.0);
        }
    }
    let of = (client, server);
    Some(verdict_of(of, roots.len() as u64, time(&roots), totals.quantile(500), places))
}

/// What places' sums say of `n` entry requests, which took `total` in all.
pub(crate) fn verdict_of(
    (client, server): (Workload, Workload),
    n: u64,
    total: i128,
    p50_total: DurationNs,
    places: BTreeMap<(PartKind, Workload), i128>,
) -> Verdict {
    let count = usize::try_from(n).unwrap_or(usize::MAX);
    let all = total.max(1) as f64;
    let parts = PartKind::ALL
        .into_iter()
        .filter_map(|kind| {
            let sum: i128 = places.iter().filter(|((k, _), _)| *k == kind).map(|(_, t)| *t).sum();
            (sum != 0).then(|| Part { kind, mean: mean_of(sum, count), share: sum as f64 / all })
        })
        .collect();
    let mut places: Vec<Place> = places
        .into_iter()
        .filter(|(_, sum)| *sum != 0)
        .map(|((kind, workload), sum)| Place { kind, workload, mean: mean_of(sum, count), share: sum as f64 / all })
        .collect();
    places.sort_by(|a, b| b.mean.cmp(&a.mean).then_with(|| (a.kind, &a.workload).cmp(&(b.kind, &b.workload))));
    Verdict { client, server, n, mean_total: mean_of(total, count), p50_total, parts, places }
}

/// The slowest full entry requests, each followed by what it caused.
fn slowest(requests: &[AttributedRequest]) -> Vec<AttributedRequest> {
    let mut roots: Vec<usize> =
        (0..requests.len()).filter(|&i| requests[i].parent.is_none() && requests[i].coverage.is_full()).collect();
    roots.sort_by(|&a, &b| {
        let key = |i: usize| (std::cmp::Reverse(requests[i].attribution.total()), requests[i].start_monotonic);
        key(a).cmp(&key(b))
    });
    let mut list = Vec::new();
    for root in roots.into_iter().take(SLOWEST) {
        copy_tree(requests, root, None, &mut list);
    }
    list
}

pub(crate) fn copy_tree(
    requests: &[AttributedRequest],
    i: usize,
    parent: Option<usize>,
    to: &mut Vec<AttributedRequest>,
) -> usize {
    let at = to.len();
    to.push(AttributedRequest { parent, children: Vec::new(), ..requests[i].clone() });
    for &child in &requests[i].children {
        let copied = copy_tree(requests, child, Some(at), to);
        to[at].children.push(copied);
    }
    at
}
