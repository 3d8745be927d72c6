//! `meshdiff.report/v1`, as DESIGN.md has it: camelCase, integer nanoseconds in fields that end in `Ns`. Schema:
//! `schema/report.v1.json`.
//!
//! Fields beyond the contract are additive: `meta`, `verdict` and `verdictText`, `coverage.partialReasons`,
//! `coverage.negativeSegments`, `coverage.notes`, `coverage.metricsMissing`, `hops[].near`, `breakdowns` (only where they were asked for), `slowest`, and of `connections` everything but pod, process,
//! peer, side, protocol and metrics. What was not measured is absent (metrics, with the reason in `coverage.metricsMissing`), or `null` where a
//! recording does not say: `coverage.probeTier`, `coverage.probeCostNsPerEvent`, `hops[].total` (no full request), `verdict`.

mod breakdowns;
mod connections;

use crate::safe::harmless_json;
use crate::wire::{RequestLine, Rfc3339};
use crate::{REPORT_SCHEMA, RenderError, ReportMeta, verdict};
use breakdowns::BreakdownLine;
use connections::{Buckets, Connection};
use meshdiff_analyzer::{Coverage, Distribution, Finding, HopSummary, NearQuantile, Report, SegmentStats, Verdict};
use meshdiff_model::{DurationNs, HopProtocol, ProbeTier, SegmentMap, Workload, WorkloadSource};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// Writes the report as indented JSON.
///
/// # Errors
/// If `out` refuses it.
pub fn write(report: &Report, meta: &ReportMeta, out: &mut impl Write) -> Result<(), RenderError> {
    let json = serde_json::to_string_pretty(&Document::of(report, meta, Buckets::All))?;
    out.write_all(harmless_json(json).as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

/// The same on one line and without the windows' buckets, to be embedded.
pub(crate) fn compact(report: &Report, meta: &ReportMeta) -> Result<String, RenderError> {
    Ok(serde_json::to_string(&Document::of(report, meta, Buckets::WithoutWindows))?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    schema_version: &'static str,
    meta: MetaLine<'a>,
    window: Window,
    namespace: Option<&'a str>,
    coverage: CoverageLine<'a>,
    verdict_text: String,
    verdict: Option<VerdictLine<'a>>,
    hops: Vec<Hop<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    breakdowns: Vec<BreakdownLine<'a>>,
    connections: Vec<Connection<'a>>,
    findings: Vec<FindingLine<'a>>,
    slowest: Vec<RequestLine<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetaLine<'a> {
    tool_version: &'a str,
    generated: Rfc3339,
    source: &'a str,
    command: Option<&'a str>,
    kernel: Option<&'a str>,
    envoy_versions: &'a [String],
    capture_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Window {
    start: Rfc3339,
    end: Rfc3339,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CoverageLine<'a> {
    requests: u64,
    full: u64,
    partial: Partial,
    ambiguous: u64,
    unmatched: &'a BTreeMap<String, u64>,
    partial_reasons: &'a BTreeMap<String, u64>,
    client_messages_seen: u64,
    negative_segments: u64,
    lost_kernel_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    skipped_runs: u64,
    #[serde(skip_serializing_if = "is_zero")]
    vanished_sockets: u64,
    lost_access_logs_estimate: u64,
    probe_tier: Option<ProbeTier>,
    probe_cost_ns_per_event: Option<u64>,
    notes: &'a [String],
    metrics_missing: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Partial {
    client: u64,
    server: u64,
    als: u64,
}

/// An end of a hop over all its pods, so without pod; the address only where nothing else names it.
#[derive(Serialize)]
struct End<'a> {
    namespace: Option<&'a str>,
    workload: Option<&'a str>,
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    source: WorkloadSource,
}

impl<'a> End<'a> {
    fn of(w: &'a Workload) -> Self {
        Self {
            namespace: w.namespace.as_deref(),
            workload: w.workload.as_deref(),
            service: w.service.as_deref(),
            pod: w.pod.as_deref(),
            address: w.address.as_deref(),
            source: w.source,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerdictLine<'a> {
    client: End<'a>,
    server: End<'a>,
    n: u64,
    mean_total_ns: DurationNs,
    p50_total_ns: DurationNs,
    parts: Vec<PartLine>,
    places: Vec<PlaceLine<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PartLine {
    kind: &'static str,
    mean_ns: DurationNs,
    share: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlaceLine<'a> {
    kind: &'static str,
    workload: End<'a>,
    mean_ns: DurationNs,
    share: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dist {
    mean_ns: DurationNs,
    p50_ns: DurationNs,
    p90_ns: DurationNs,
    p99_ns: DurationNs,
    p999_ns: DurationNs,
}

impl From<&Distribution> for Dist {
    fn from(d: &Distribution) -> Self {
        Self { mean_ns: d.mean, p50_ns: d.p50, p90_ns: d.p90, p99_ns: d.p99, p999_ns: d.p999 }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hop<'a> {
    client: End<'a>,
    server: End<'a>,
    protocol: HopProtocol,
    #[serde(flatten)]
    numbers: Numbers<'a>,
}

/// What some requests of a hop were like.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Numbers<'a> {
    requests: u64,
    n: u64,
    response_codes: &'a BTreeMap<u16, u64>,
    total: Option<Dist>,
    #[serde(serialize_with = "segments")]
    segments: &'a BTreeMap<meshdiff_model::Segment, SegmentStats>,
    near: Vec<Near<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Near<'a> {
    quantile: f64,
    n: u64,
    total_ns: DurationNs,
    segments: &'a SegmentMap,
}

/// For counts that are told where there is something to tell.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn segments<S: Serializer>(
    map: &&BTreeMap<meshdiff_model::Segment, SegmentStats>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(segment, s)| (segment.as_str(), SegmentLine::of(s))))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SegmentLine {
    mean_ns: DurationNs,
    mean_ci95_ns: [DurationNs; 2],
    p50_ns: DurationNs,
    p90_ns: DurationNs,
    p99_ns: DurationNs,
    p999_ns: DurationNs,
    share: f64,
    details: Map<String, Value>,
}

impl SegmentLine {
    fn of(s: &SegmentStats) -> Self {
        let d = &s.distribution;
        Self {
            mean_ns: d.mean,
            mean_ci95_ns: [s.mean_ci95.0, s.mean_ci95.1],
            p50_ns: d.p50,
            p90_ns: d.p90,
            p99_ns: d.p99,
            p999_ns: d.p999,
            share: s.share,
            details: s
                .details
                .iter()
                .map(|(detail, mean)| (detail.as_str().to_owned(), json!({ "meanNs": mean })))
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct FindingLine<'a> {
    code: &'a str,
    level: &'static str,
    subject: &'a str,
    text: &'a str,
    evidence: &'a BTreeMap<String, f64>,
    fix: &'a str,
}

impl<'a> Document<'a> {
    fn of(r: &'a Report, meta: &'a ReportMeta, buckets: Buckets) -> Self {
        Self {
            schema_version: REPORT_SCHEMA,
            meta: MetaLine {
                tool_version: &meta.tool_version,
                generated: Rfc3339(meta.generated),
                source: &meta.source,
                command: meta.command.as_deref(),
                kernel: meta.kernel.as_deref(),
                envoy_versions: &meta.envoy_versions,
                capture_id: meta.capture_id.as_deref(),
            },
            window: Window { start: Rfc3339(r.window.0), end: Rfc3339(r.window.1) },
            namespace: r.namespace.as_deref(),
            coverage: CoverageLine::of(&r.coverage),
            verdict_text: verdict::sentence_text(r),
            verdict: r.verdict.as_ref().map(VerdictLine::of),
            hops: r.hops.iter().map(Hop::of).collect(),
            breakdowns: r.breakdowns.iter().map(BreakdownLine::of).collect(),
            connections: r.lines.iter().enumerate().flat_map(|(i, l)| Connection::of(i, l, buckets)).collect(),
            findings: r.findings.iter().map(FindingLine::of).collect(),
            slowest: r.slowest.iter().map(|request| RequestLine::of(request, true, Some(&r.slowest))).collect(),
        }
    }
}

impl<'a> CoverageLine<'a> {
    fn of(c: &'a Coverage) -> Self {
        Self {
            requests: c.requests,
            full: c.full,
            partial: Partial { client: c.partial_client, server: c.partial_server, als: c.partial_als },
            ambiguous: c.ambiguous,
            unmatched: &c.unmatched,
            partial_reasons: &c.partial_reasons,
            client_messages_seen: c.client_messages_seen,
            negative_segments: c.negative_segments,
            lost_kernel_events: c.lost_kernel_events,
            skipped_runs: c.skipped_runs,
            vanished_sockets: c.vanished_sockets,
            lost_access_logs_estimate: c.lost_access_logs_estimate,
            probe_tier: c.probe_tier,
            probe_cost_ns_per_event: c.probe_cost_ns_per_event,
            notes: &c.notes,
            metrics_missing: c.missing_metrics.iter().map(|(metric, why)| (metric.as_str(), why.as_str())).collect(),
        }
    }
}

impl<'a> VerdictLine<'a> {
    fn of(v: &'a Verdict) -> Self {
        Self {
            client: End::of(&v.client),
            server: End::of(&v.server),
            n: v.n,
            mean_total_ns: v.mean_total,
            p50_total_ns: v.p50_total,
            parts: v
                .parts
                .iter()
                .map(|p| PartLine { kind: p.kind.as_str(), mean_ns: p.mean, share: p.share })
                .collect(),
            places: v
                .places
                .iter()
                .map(|p| PlaceLine {
                    kind: p.kind.as_str(),
                    workload: End::of(&p.workload),
                    mean_ns: p.mean,
                    share: p.share,
                })
                .collect(),
        }
    }
}

impl<'a> Hop<'a> {
    fn of(h: &'a HopSummary) -> Self {
        Self { client: End::of(&h.client), server: End::of(&h.server), protocol: h.protocol, numbers: Numbers::of(h) }
    }
}

impl<'a> Numbers<'a> {
    fn of(h: &'a HopSummary) -> Self {
        Self {
            requests: h.requests,
            n: h.n,
            response_codes: &h.response_codes,
            total: h.total.as_ref().map(Dist::from),
            segments: &h.segments,
            near: h
                .near
                .iter()
                .map(|NearQuantile { per_mille, n, total, segments }| Near {
                    quantile: f64::from(*per_mille) / 1000.0,
                    n: *n,
                    total_ns: *total,
                    segments,
                })
                .collect(),
        }
    }
}

impl<'a> FindingLine<'a> {
    fn of(f: &'a Finding) -> Self {
        Self {
            code: f.code,
            level: f.level.as_str(),
            subject: &f.subject,
            text: &f.text,
            evidence: &f.evidence,
            fix: &f.fix,
        }
    }
}
