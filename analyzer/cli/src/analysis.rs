//! From a capture to attributed requests.

use crate::args::SourceArgs;
use crate::exit::Failure;
use meshdiff_analyzer::{AttributedRequest, Metric, MissingMetrics, attribute_all, select};
use meshdiff_capture::{Capture, CaptureData};
use meshdiff_discovery::{Owners, service_of_cluster};
use meshdiff_graph::lines::MetricsInput;
use meshdiff_graph::{Directory, HopInput, MeshGraph};
use meshdiff_model::{Metric as Unmeasured, MonotonicNs, NodeId, ProbeTier, WallTime, Workload, WorkloadSource};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// A capture, joined, attributed and restricted to what was asked for.
pub(crate) struct Analysis {
    pub(crate) path: PathBuf,
    pub(crate) data: CaptureData,
    pub(crate) mesh: MeshGraph,
    pub(crate) requests: Vec<AttributedRequest>,
    /// What limits the result, in sentences.
    pub(crate) notes: Vec<String>,
    pub(crate) window: (WallTime, WallTime),
    pub(crate) namespace: Option<String>,
    /// The connection metrics that the capture lacks, each with the reason.
    pub(crate) missing_metrics: MissingMetrics,
}

/// Who owns what, by what the proxies said of themselves.
struct ByProxies(Owners);

impl Directory for ByProxies {
    fn by_proxy(&self, node: &NodeId) -> Option<Workload> {
        known(self.0.workload_of_node(node))
    }
    fn by_address(&self, ip: IpAddr) -> Option<Workload> {
        known(self.0.workload_of_ip(ip))
    }
    fn service_of_cluster(&self, cluster: &str) -> Option<(String, Option<String>)> {
        let service = service_of_cluster(cluster)?.service()?;
        Some((service.name.to_owned(), service.namespace.map(str::to_owned)))
    }
}

fn known(workload: Workload) -> Option<Workload> {
    (workload.source != WorkloadSource::Unknown).then_some(workload)
}

/// What a capture must hold to be worth an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A request.
    Requests,
    /// A request, or a connection: of traffic without HTTP a report still has the process topology.
    RequestsOrLines,
}

/// Reads the capture that was asked for and attributes its requests.
///
/// Fails if there is none, if it does not hold what is needed, or no request in the namespace or time that was asked for.
pub(crate) fn analyse(args: &SourceArgs, need: Need) -> Result<Analysis, Failure> {
    let Some(path) = args.capture.clone() else {
        return Err(Failure::Usage(
            "give the capture with --capture DIR (make one with `meshdiff record --output DIR`); reading from the agents of a cluster \
             is not built yet"
                .to_owned(),
        ));
    };
    let mut data = Capture::open(&path)?.read()?;
    let mut notes = data.warnings();
    // Attempts and reports of what was not over are in the capture; hops are made of what ended.
    data.access_logs.retain(|log| log.access_log_type.is_terminal());
    let earlier = leave_out_what_ended_before(&mut data);
    if earlier > 0 {
        tracing::info!(earlier, "log entries of requests that had ended when the recording began are left out");
    }
    let directory = ByProxies(Owners::from_proxies(&data.proxies));
    let end = window_end(&data);
    let input = HopInput {
        sockets: &data.sockets,
        messages: &data.messages,
        http2: &data.http2_streams,
        access_logs: &data.access_logs,
        clock: &data.meta.clock,
        window: (data.meta.start.monotonic, end),
    };
    let mut mesh = MeshGraph::build(input, &data.processes, &directory);
    let (all, errors) = attribute_all(&mesh, &directory, &data.meta.clock);
    if let Some(first) = errors.first() {
        notes.push(format!("{} requests contradict themselves and were left out: {first}", errors.len()));
    }
    match mesh.tcp_connections_logged {
        0 => {}
        n => notes.push(format!(
            "{n} TCP connections that the sidecars logged are in the capture; only HTTP requests are split"
        )),
    }
    let has_lines = |namespace: Option<&str>| {
        let lines = || meshdiff_analyzer::lines(&mesh.topology, namespace, &MissingMetrics::new(), &data.meta.clock);
        need == Need::RequestsOrLines && !lines().is_empty()
    };
    if all.is_empty() {
        let why = empty(&path, &data);
        if !has_lines(None) {
            return Err(Failure::TooLittleData(why));
        }
        notes.push(why);
    }
    let end_wall = data.meta.clock.to_wall(end).unwrap_or(data.meta.start.wall);
    let since =
        args.since.map(|s| WallTime(end_wall.0.saturating_sub(i64::try_from(s.as_nanos()).unwrap_or(i64::MAX))));
    let namespaces = namespaces(&all);
    let total = all.len();
    let requests = select(all, args.namespace.as_deref(), since);
    if requests.is_empty() {
        let text = match &args.namespace {
            Some(ns) if total == 0 => {
                format!("no connection in {} has an end in the namespace {ns:?} either", path.display())
            }
            Some(ns) if !namespaces.contains(ns) => format!(
                "no request in {} has an end in the namespace {ns:?}; its {total} requests are in: {}",
                path.display(),
                list(&namespaces)
            ),
            _ => format!(
                "none of the {total} requests in {} began within the time that --since asks for; it counts back from the capture's end",
                path.display()
            ),
        };
        // Lines stand for a namespace that has no requests at all, not for a time in which it had none.
        let has_requests = match &args.namespace {
            Some(ns) => namespaces.contains(ns),
            None => total > 0,
        };
        if has_requests || !has_lines(args.namespace.as_deref()) {
            return Err(Failure::TooLittleData(text));
        }
        if total > 0 {
            notes.push(text);
        }
    }
    let missing_metrics = measure(&mut mesh, &data, since.and_then(|s| data.meta.clock.to_monotonic(s)));
    let start = since.map_or(data.meta.start.wall, |s| WallTime(s.0.max(data.meta.start.wall.0)));
    let namespace = args.namespace.clone();
    Ok(Analysis { path, mesh, requests, notes, window: (start, end_wall), namespace, missing_metrics, data })
}

/// Puts the sockets' metrics on the lines of the process topology, and says which ones the capture lacks.
fn measure(mesh: &mut MeshGraph, data: &CaptureData, since: Option<MonotonicNs>) -> MissingMetrics {
    // What was recorded before there were metrics has messages and sockets, which tell some of them.
    let old = data.metrics.is_empty() && !data.messages.is_empty();
    let from_messages = old && since.is_none();
    mesh.topology.measure(MetricsInput { sockets: &data.sockets, metrics: &data.metrics, since, from_messages });
    let mut missing = MissingMetrics::new();
    let mut lack = |metrics: &[Metric], why: &str| {
        for metric in metrics {
            missing.entry(*metric).or_insert_with(|| why.to_owned());
        }
    };
    if data.meta.probes.tier == ProbeTier::None {
        lack(&Metric::ALL, "The capture was recorded without probes.");
    }
    if old && since.is_some() {
        lack(
            &[Metric::Write, Metric::Read, Metric::Rtt],
            "The capture has no windows of which --since could choose some.",
        );
    }
    if old {
        lack(
            &[
                Metric::WriteTime,
                Metric::ReadTime,
                Metric::ConnectFailures,
                Metric::CloseDetails,
                Metric::Resets,
                Metric::Retransmit,
                Metric::Drop,
                Metric::Windows,
            ],
            "Connection metrics are not in this capture: it was recorded before there were any. Calls, bytes, round trips and handshakes are \
             what its messages and sockets tell.",
        );
    }
    for unmeasured in &data.meta.probes.unmeasured {
        let metric = match unmeasured.metric {
            Unmeasured::WriteTime => Metric::WriteTime,
            Unmeasured::ReadTime => Metric::ReadTime,
            Unmeasured::Retransmits => Metric::Retransmit,
            Unmeasured::Resets => Metric::Resets,
            Unmeasured::Drops => Metric::Drop,
        };
        lack(&[metric], &unmeasured.reason);
    }
    missing
}

/// Envoy keeps entries for up to a second before it sends them, so a recording gets some of requests that were over when it
/// began: they are not part of it. Returns how many.
fn leave_out_what_ended_before(data: &mut CaptureData) -> usize {
    let start = data.meta.start.wall;
    let before = data.access_logs.len();
    data.access_logs.retain(|log| {
        let extent = log.timings.extent().unwrap_or_default();
        log.start_time.0.saturating_add(extent.0) >= start.0
    });
    before - data.access_logs.len()
}

/// When the recording ended; for one that was cut off, the last thing that it saw.
fn window_end(data: &CaptureData) -> MonotonicNs {
    if let Some(end) = data.meta.end {
        return end.monotonic;
    }
    let kernel = data.sockets.iter().map(|s| s.last_seen).max();
    let clock = data.meta.clock.samples().last().map(|s| s.monotonic);
    kernel.max(clock).unwrap_or(data.meta.start.monotonic)
}

fn namespaces(requests: &[AttributedRequest]) -> BTreeSet<String> {
    requests.iter().flat_map(|r| [&r.client, &r.server]).filter_map(|w| w.namespace.clone()).collect()
}

fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "none that is known".to_owned();
    }
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

/// Why a capture has no request, as far as it tells.
fn empty(path: &std::path::Path, data: &CaptureData) -> String {
    let mut text = format!("{} holds no request", path.display());
    if data.access_logs.is_empty() {
        text.push_str(
            ": no access log entry arrived. Check that the sidecars' ALS settings (meshConfig.extensionProviders and Telemetry) point to \
             the endpoint that was recorded, and that there was traffic",
        );
    }
    if data.messages.is_empty() && data.meta.probes.tier != ProbeTier::None {
        text.push_str(". The probes saw no message either");
    }
    for warning in data.warnings() {
        text.push_str(". ");
        text.push_str(&warning);
    }
    text
}
