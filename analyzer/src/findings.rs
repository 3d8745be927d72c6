//! Conclusions from a report's numbers, each with its evidence and what to do about it.

use crate::connection_findings;
use crate::report::{Finding, HopSummary, Level, Report};
use meshdiff_model::{Detail, DurationNs, Segment, Workload};
use std::collections::BTreeMap;

/// A sidecar whose worker leaves bytes waiting this long on average is short of CPU or busy with something else.
const QUEUE_MEAN: DurationNs = DurationNs::from_millis(1);

/// All findings, most severe first.
pub(crate) fn findings(report: &Report) -> Vec<Finding> {
    let mut list = Vec::new();
    list.extend(lost_events(report));
    list.extend(low_coverage(report));
    list.extend(lost_logs(report));
    list.extend(negative_segments(report));
    for hop in &report.hops {
        list.extend(queueing(hop, Segment::ClientSidecar, &hop.client));
        list.extend(queueing(hop, Segment::ServerSidecar, &hop.server));
    }
    list.extend(connection_findings::findings(&report.lines));
    list.sort_by(Finding::order);
    list
}

pub(crate) fn name(w: &Workload) -> String {
    let what = w.workload.as_deref().or(w.service.as_deref()).or(w.address.as_deref()).unwrap_or("unknown");
    w.namespace.as_deref().map_or_else(|| what.to_owned(), |n| format!("{n}/{what}"))
}

fn evidence(list: &[(&str, f64)]) -> BTreeMap<String, f64> {
    list.iter().map(|&(k, v)| (k.to_owned(), v)).collect()
}

fn lost_events(report: &Report) -> Option<Finding> {
    let lost = report.coverage.lost_kernel_events;
    (lost > 0).then(|| Finding {
        code: "MD0001",
        level: Level::Warning,
        subject: "recording".to_owned(),
        text: format!("{lost} kernel events found the ring buffer full; the instants around them are unknown"),
        evidence: evidence(&[("lostKernelEvents", lost as f64)]),
        fix: "Give `record` a larger --ring-size, or watch fewer namespaces with --netns.".to_owned(),
    })
}

fn low_coverage(report: &Report) -> Option<Finding> {
    let c = &report.coverage;
    if c.requests < 20 || c.full * 100 >= c.requests * 90 {
        return None;
    }
    let main = c.partial_reasons.iter().chain(&c.unmatched).max_by_key(|(_, n)| **n);
    Some(Finding {
        code: "MD0002",
        level: Level::Warning,
        subject: "recording".to_owned(),
        text: format!(
            "only {} of {} requests were seen on every socket{}",
            c.full,
            c.requests,
            main.map_or_else(String::new, |(reason, n)| format!("; the most frequent reason is {reason} ({n})"))
        ),
        evidence: evidence(&[("full", c.full as f64), ("requests", c.requests as f64)]),
        fix: "See the reasons in the coverage section: a sidecar that does not log to meshdiff, a namespace that is not watched, or a recording that \
              began or ended in the middle of the traffic."
            .to_owned(),
    })
}

fn lost_logs(report: &Report) -> Option<Finding> {
    let lost = report.coverage.lost_access_logs_estimate;
    (lost > 0 && lost * 100 >= report.coverage.requests).then(|| Finding {
        code: "MD0003",
        level: Level::Warning,
        subject: "access logs".to_owned(),
        text: format!("about {lost} access log entries are missing for requests that the kernel saw"),
        evidence: evidence(&[("lostAccessLogsEstimate", lost as f64)]),
        fix: "Check that every sidecar's Envoy has the ALS endpoint (meshConfig extensionProviders and Telemetry), and that it reaches it: Envoy \
              drops entries silently while its receiver is away."
            .to_owned(),
    })
}

fn negative_segments(report: &Report) -> Option<Finding> {
    let n = report.coverage.negative_segments;
    (n > 0).then(|| Finding {
        code: "MD0004",
        level: Level::Warning,
        subject: "recording".to_owned(),
        text: format!("{n} segments are below zero, which no real time is: a wrong join, or clocks that disagree"),
        evidence: evidence(&[("negativeSegments", n as f64)]),
        fix: "Look at these requests with `meshdiff requests --instants`, and report it as a defect if both ends are on one node.".to_owned(),
    })
}

fn queueing(hop: &HopSummary, segment: Segment, whose: &Workload) -> Option<Finding> {
    let stats = hop.segments.get(&segment)?;
    let queue = stats.details.iter().find(|(d, _)| *d == Detail::Queue)?.1;
    (hop.n >= 20 && queue >= QUEUE_MEAN && queue.0 * 2 >= stats.distribution.mean.0).then(|| Finding {
        code: "MD0101",
        level: Level::Warning,
        subject: name(whose),
        text: format!(
            "bytes wait {:.1} ms on average before the sidecar of {} reads them, more than half of its time: its worker is busy or throttled",
            queue.0 as f64 / 1e6,
            name(whose)
        ),
        evidence: evidence(&[("queueMeanNs", queue.0 as f64), ("segmentMeanNs", stats.distribution.mean.0 as f64)]),
        fix: "Raise the CPU limit of the sidecar (sidecar.istio.io/proxyCPULimit) or its concurrency (proxyConfig.concurrency).".to_owned(),
    })
}
