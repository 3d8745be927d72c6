//! From a capture to attributed requests.

use crate::args::SourceArgs;
use crate::cluster::{self, Filter};
use crate::exit::Failure;
use crate::store;
use meshdiff_analyzer::{AttributedRequest, Metric, MissingMetrics, attribute_all, select, select_by};
use meshdiff_capture::{Capture, CaptureData};
use meshdiff_discovery::{Owners, service_of_cluster};
use meshdiff_graph::lines::MetricsInput;
use meshdiff_graph::{Directory, HopInput, MeshGraph};
use meshdiff_model::{
    AttributionError, Metric as Unmeasured, MonotonicNs, NodeId, PodRecord, ProbeTier, Proxy, WallTime, Workload,
    WorkloadSource,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// A capture, joined, attributed and restricted to what was asked for.
pub(crate) struct Analysis {
    /// Where it comes from, for people.
    pub(crate) source: String,
    pub(crate) data: CaptureData,
    pub(crate) mesh: MeshGraph,
    pub(crate) requests: Vec<AttributedRequest>,
    /// What limits the result, in sentences.
    pub(crate) notes: Vec<String>,
    pub(crate) window: (WallTime, WallTime),
    pub(crate) namespace: Option<String>,
    /// The connection metrics that the capture lacks, each with the reason.
    pub(crate) missing_metrics: MissingMetrics,
    /// Who owned what.
    pub(crate) directory: ByProxies,
}

/// Who owns what, by what the proxies said of themselves and Kubernetes of their pods.
pub(crate) struct ByProxies(Owners);

impl ByProxies {
    /// What these proxies say.
    pub(crate) fn of(proxies: &[Proxy]) -> Self {
        Self(Owners::from_proxies(proxies))
    }

    /// What a capture's proxies say, and what Kubernetes said of its pods.
    pub(crate) fn of_capture(data: &CaptureData) -> Self {
        let pods = data.meta.kubernetes.as_ref().map_or(&[][..], |k| &k.pods);
        // When each logged matters only where an address was more than one's.
        let contested = Owners::contested(&data.proxies, pods);
        let mut logged: BTreeMap<NodeId, (WallTime, WallTime)> = BTreeMap::new();
        for log in data.access_logs.iter().filter(|_| !contested.is_empty()) {
            if contested.contains(&log.node) {
                let at = log.start_time;
                let span = logged.entry(log.node.clone()).or_insert((at, at));
                *span = (span.0.min(at), span.1.max(at));
            }
        }
        Self(Owners::of(&data.proxies, pods, &logged))
    }

    /// What proxies say, and what Kubernetes said of its pods; of those whose addresses others claim, too, when they logged.
    pub(crate) fn logged(
        proxies: &[Proxy],
        pods: &[PodRecord],
        logged: &BTreeMap<NodeId, (WallTime, WallTime)>,
    ) -> Self {
        Self(Owners::of(proxies, pods, logged))
    }

    /// Everything that is known.
    pub(crate) const fn owners(&self) -> &Owners {
        &self.0
    }
}

impl Directory for ByProxies {
    fn by_proxy(&self, node: &NodeId) -> Option<Workload> {
        known(self.0.workload_of_node(node))
    }
    fn by_address(&self, ip: IpAddr) -> Option<Workload> {
        known(self.0.workload_of_ip(ip))
    }
    fn by_address_at(&self, ip: IpAddr, at: WallTime) -> Option<Workload> {
        known(self.0.workload_of_ip_at(ip, at))
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

/// What is analysed.
struct Source {
    data: CaptureData,
    /// As sentences call it.
    name: String,
    /// As a report calls it.
    source: String,
    notes: Vec<String>,
    /// The namespace that was asked for.
    namespace: Option<String>,
    filter: Option<Filter>,
    since: Option<Duration>,
    /// Where more was recorded than is reported: all of it.
    whole: Option<(MonotonicNs, MonotonicNs)>,
}

fn read(args: &SourceArgs) -> Result<Source, Failure> {
    if let Some(store) = &args.store {
        let store::Stored { data, name, notes, whole } = store::gather(store, args)?;
        let (source, namespace) = (format!("store {name}"), args.namespace.clone());
        return Ok(Source { data, name, source, notes, namespace, filter: None, since: args.since, whole });
    }
    let Some(path) = &args.capture else {
        let cluster::Gathered { data, source, notes, namespace, filter, since, whole } = cluster::gather(args)?;
        let name = "what the agents have".to_owned();
        return Ok(Source { data, name, source, notes, namespace, filter, since: Some(since), whole: Some(whole) });
    };
    if let Some(cluster::Recorded { merged, cluster, recorded }) = cluster::recorded(path)? {
        return Ok(Source {
            data: merged.data,
            name: path.display().to_string(),
            source: format!("recording {} of {cluster}", path.display()),
            notes: merged.notes,
            namespace: args.namespace.clone(),
            filter: None,
            since: args.since.or(Some(recorded)),
            whole: Some(merged.whole),
        });
    }
    let data = Capture::open(path)?.read()?;
    let notes = data.warnings();
    Ok(Source {
        data,
        name: path.display().to_string(),
        source: format!("capture {}", path.display()),
        notes,
        namespace: args.namespace.clone(),
        filter: None,
        since: args.since,
        whole: None,
    })
}

/// Reads what was asked for, a capture or what the agents of a cluster have, and attributes its requests.
///
/// Fails if there is none, if it does not hold what is needed, or no request in the namespace or time that was asked for.
pub(crate) fn analyse(args: &SourceArgs, need: Need) -> Result<Analysis, Failure> {
    let Source { mut data, name: path, source, mut notes, namespace: asked, filter, since, whole } = read(args)?;
    let Joined { mut mesh, directory, requests: mut all, errors } = join(&mut data, whole);
    let end = window_end(&data);
    if whole.is_some() {
        // Nodes do not begin and end at one instant: what only some of them saw is joined with, and not reported.
        let wall = |at| data.meta.clock.to_wall(at).unwrap_or(data.meta.start.wall);
        let (from, to) = (wall(data.meta.start.monotonic), wall(end));
        all = select_by(all, |r| from <= r.start && r.start <= to);
    }
    notes.extend(notes_of(&mesh, errors.len(), errors.first()));
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
    let since = since.map(|s| WallTime(end_wall.0.saturating_sub(i64::try_from(s.as_nanos()).unwrap_or(i64::MAX))));
    let namespaces = namespaces(&all);
    let total = all.len();
    let mut requests = select(all, asked.as_deref(), since);
    if let Some(filter) = &filter {
        requests = select_by(requests, |r| filter.holds(&r.client) || filter.holds(&r.server));
        if requests.is_empty() {
            return Err(Failure::TooLittleData(format!("no request in {path} has an end in {}", filter.text())));
        }
    }
    if requests.is_empty() {
        let text = match &asked {
            Some(ns) if total == 0 => {
                format!("no connection in {} has an end in the namespace {ns:?} either", path)
            }
            Some(ns) if !namespaces.contains(ns) => format!(
                "no request in {} has an end in the namespace {ns:?}; its {total} requests are in: {}",
                path,
                list(&namespaces)
            ),
            _ => format!(
                "none of the {total} requests in {} began within the time that --since asks for; it counts back from the capture's end",
                path
            ),
        };
        // Lines stand for a namespace that has no requests at all, not for a time in which it had none.
        let has_requests = match &asked {
            Some(ns) => namespaces.contains(ns),
            None => total > 0,
        };
        if has_requests || !has_lines(asked.as_deref()) {
            return Err(Failure::TooLittleData(text));
        }
        if total > 0 {
            notes.push(text);
        }
    }
    let missing_metrics = measure(&mut mesh, &data, since.and_then(|s| data.meta.clock.to_monotonic(s)));
    let start = since.map_or(data.meta.start.wall, |s| WallTime(s.0.max(data.meta.start.wall.0)));
    Ok(Analysis {
        source,
        mesh,
        requests,
        notes,
        window: (start, end_wall),
        namespace: asked,
        missing_metrics,
        directory,
        data,
    })
}

/// What is said of requests that contradict themselves, of which this is the first, and of connections that are none.
pub(crate) fn notes_of(mesh: &MeshGraph, contradictions: usize, first: Option<impl std::fmt::Display>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(first) = first {
        notes.push(format!("{contradictions} requests contradict themselves and were left out: {first}"));
    }
    match mesh.tcp_connections_logged {
        0 => {}
        n => notes.push(format!(
            "{n} TCP connections that the sidecars logged are in the capture; only HTTP requests are split"
        )),
    }
    notes
}

/// What a capture's rows say together.
pub(crate) struct Joined {
    pub(crate) mesh: MeshGraph,
    pub(crate) directory: ByProxies,
    /// In order of start.
    pub(crate) requests: Vec<AttributedRequest>,
    /// One for each request that contradicts itself.
    pub(crate) errors: Vec<AttributionError>,
}

/// Joins a capture and attributes its requests. `whole`: first and last instant, where they are not the capture's own.
pub(crate) fn join(data: &mut CaptureData, whole: Option<(MonotonicNs, MonotonicNs)>) -> Joined {
    // Reports of what was not over are in the capture; hops are made of what ended.
    data.access_logs.retain(|log| log.access_log_type.tells_of_an_end());
    let earlier = leave_out_what_ended_before(data);
    if earlier > 0 {
        tracing::info!(earlier, "log entries of requests that had ended when the recording began are left out");
    }
    let directory = ByProxies::of_capture(data);
    let input = HopInput {
        sockets: &data.sockets,
        messages: &data.messages,
        http2: &data.http2_streams,
        access_logs: &data.access_logs,
        clock: &data.meta.clock,
        window: whole.unwrap_or((data.meta.start.monotonic, window_end(data))),
    };
    let mesh = MeshGraph::build(input, &data.processes, &directory);
    let (requests, errors) = attribute_all(&mesh, &directory, &data.meta.clock);
    Joined { mesh, directory, requests, errors }
}

/// Puts the sockets' metrics on the lines of the process topology, and says which ones the capture lacks.
pub(crate) fn measure(mesh: &mut MeshGraph, data: &CaptureData, since: Option<MonotonicNs>) -> MissingMetrics {
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
pub(crate) fn window_end(data: &CaptureData) -> MonotonicNs {
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
fn empty(path: &str, data: &CaptureData) -> String {
    let mut text = format!("{} holds no request", path);
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
