//! A report from parts that were summed up elsewhere: by a store, which has the requests and returns sums and order statistics.
//!
//! What is computed here of sums is what [`report`](crate::report()) computes of requests, by the same functions.

use crate::build::{ReportInput, coverage_of, mean_of, sort_hops, verdict_of};
use crate::connections;
use crate::findings;
use crate::report::{Coverage, HopSummary, PartKind, Report, Verdict};
use crate::request::AttributedRequest;
use crate::rollup;
use crate::stats::Moments;
use meshdiff_graph::MeshGraph;
use meshdiff_model::{DurationNs, Segment, SegmentMap, Workload};
use std::collections::BTreeMap;

/// What was summed up of the requests that are reported.
#[derive(Clone, Debug, Default)]
pub struct Summed {
    /// Counts of requests; what does not come from requests is left as it is by default.
    pub coverage: Coverage,
    /// Where the time of whole requests went.
    pub verdict: Option<Verdict>,
    /// Hops, in any order.
    pub hops: Vec<HopSummary>,
    /// The slowest, as [`Report::slowest`] has them.
    pub slowest: Vec<AttributedRequest>,
}

/// Builds a report of requests that were summed up; `mesh` has the lines.
#[must_use]
pub fn report_of(summed: Summed, mesh: &MeshGraph, input: ReportInput) -> Report {
    let Summed { coverage: counted, verdict, mut hops, slowest } = summed;
    let without = coverage_of(&[], mesh, &input);
    let coverage = Coverage {
        lost_access_logs_estimate: counted.lost_access_logs_estimate + without.lost_access_logs_estimate,
        lost_kernel_events: without.lost_kernel_events,
        skipped_runs: without.skipped_runs,
        vanished_sockets: without.vanished_sockets,
        probe_tier: without.probe_tier,
        probe_cost_ns_per_event: without.probe_cost_ns_per_event,
        notes: without.notes,
        missing_metrics: without.missing_metrics,
        ..counted
    };
    sort_hops(&mut hops);
    let mut report = Report {
        window: input.window,
        namespace: input.namespace.clone(),
        coverage,
        verdict,
        hops,
        breakdowns: Vec::new(),
        lines: connections::lines(&mesh.topology, input.namespace.as_deref(), &input.missing_metrics, &input.clock),
        findings: Vec::new(),
        slowest,
    };
    report.findings = findings::findings(&report);
    report
}

/// The ends of a request as its hop is grouped: without what differs between pods, the server with its service.
#[must_use]
pub fn hop_ends(request: &AttributedRequest) -> (Workload, Workload) {
    let mut server = rollup::short(&request.server);
    server.service.clone_from(&request.server.service);
    (rollup::short(&request.client), server)
}

/// An end of a hop without its service, where its workload is known: as a verdict names it.
#[must_use]
pub fn place_of(end: &Workload) -> Workload {
    rollup::short(end)
}

/// The mean of `n` times, rounded to the nearest nanosecond.
#[must_use]
pub fn mean(sum: i128, n: u64) -> DurationNs {
    mean_of(sum, usize::try_from(n).unwrap_or(usize::MAX))
}

/// Mean and its 95% confidence interval, as [`Sample`](crate::Sample) has them: from how many times there are, their sum and the sum of
/// their squares.
#[must_use]
pub fn mean_ci95(n: u64, sum: i128, squares: i128) -> (DurationNs, DurationNs) {
    Moments { n, sum, squares }.mean_ci95()
}

/// Requests of one hop that caused no others, or of which the others count with all of their time.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// Who called.
    pub client: Workload,
    /// Who was called.
    pub server: Workload,
    /// Whose application waited for them; `None` for entry requests.
    pub waited_by: Option<Workload>,
    /// Sums of their segments.
    pub segments: SegmentMap<i128>,
    /// Sum of their totals.
    pub total: i128,
}

/// The entry requests that a verdict is about.
#[derive(Clone, Debug)]
pub struct Entries {
    /// Who called.
    pub client: Workload,
    /// Who was called.
    pub server: Workload,
    /// How many.
    pub n: u64,
    /// Sum of their totals.
    pub total: i128,
    /// Median of their totals.
    pub p50_total: DurationNs,
}

/// The entries of which a verdict speaks: those that took most time in all.
#[must_use]
pub fn most_time(entries: Vec<Entries>) -> Option<Entries> {
    entries
        .into_iter()
        .max_by(|a, b| a.total.cmp(&b.total).then_with(|| (&a.client, &a.server).cmp(&(&b.client, &b.server))))
}

/// The verdict on entry requests whose calls, and calls' calls, count with all of their time: `stretches` are of all these.
#[must_use]
pub fn verdict(entries: Entries, stretches: &[Stretch]) -> Verdict {
    let mut places: BTreeMap<(PartKind, Workload), i128> = BTreeMap::new();
    for stretch in stretches {
        for (segment, time) in stretch.segments.iter() {
            let whose = if rollup::is_clients(segment) { &stretch.client } else { &stretch.server };
            *places.entry((PartKind::of(segment), whose.clone())).or_default() += time;
        }
        if let Some(waited_by) = &stretch.waited_by {
            *places.entry((PartKind::Application, waited_by.clone())).or_default() -= stretch.total;
        }
    }
    let Entries { client, server, n, total, p50_total } = entries;
    verdict_of((client, server), n, total, p50_total, places)
}

/// All segments with a number each that is 0.
#[must_use]
pub fn no_time() -> SegmentMap<i128> {
    let mut map = SegmentMap::empty();
    Segment::ALL.into_iter().for_each(|s| map.set(s, 0));
    map
}
