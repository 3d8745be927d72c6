//! The lines of the process topology, for a report: who is connected to whom, and what was measured on either side.

use meshdiff_graph::lines::{
    Line, LineProtocol, LineSide, Measured, PeerKnownBy, Place, ProgramRole, TlsTally, Topology,
};
use meshdiff_model::{
    ClockAnchor, Closer, DropReason, DurationNs, Errno, ExponentialHistogram, IoMetrics, Link, SocketMetrics, WallTime,
};
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A line of the process topology: all connections from one program to another that speak one protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct LineSummary {
    /// Who connects.
    pub client: LineEnd,
    /// Who accepts.
    pub server: LineEnd,
    /// What is spoken.
    pub protocol: LineProtocol,
    /// Whether it is encrypted; `None` where nothing tells.
    pub tls: Option<bool>,
    /// What its ends said of TLS in the clear.
    pub tls_said: TlsTally,
    /// Which part of a request's way it is; `None` for other traffic.
    pub link: Option<Link>,
    /// How the peers of most of its connections are known.
    pub peer_known_by: PeerKnownBy,
    /// Its connections by how their peer is known.
    pub known_by: BTreeMap<PeerKnownBy, u64>,
    /// Its connections.
    pub connections: u64,
    /// Where the client wanted to go (before any REDIRECT), with the connections to each.
    pub destinations: BTreeMap<SocketAddr, u64>,
}

/// One end of a line.
#[derive(Clone, Debug, PartialEq)]
pub struct LineEnd {
    /// What it is.
    pub role: EndRole,
    /// Kubernetes namespace, where it is known.
    pub namespace: Option<String>,
    /// Workload, where it is known.
    pub workload: Option<String>,
    /// Pod, where it is known; else for what was recorded `netns` and the namespace's number.
    pub pod: Option<String>,
    /// Name of the process; `None` where nothing tells which it is.
    pub process: Option<String>,
    /// Numbers of the processes.
    pub pids: Vec<u32>,
    /// Address of a pod or peer; with the port for a peer outside that was connected to.
    pub address: Option<String>,
    /// The service that an access log names for a peer outside.
    pub service: Option<String>,
    /// What was measured on this end; `None` if none of its sockets was seen.
    pub metrics: Option<EndMetrics>,
}

/// What an end of a line is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndRole {
    /// The Envoy of its pod.
    Sidecar,
    /// Any other process of a pod.
    Application,
    /// In a pod, but nothing tells which process.
    Unknown,
    /// In no pod that is known.
    Outside,
}

impl EndRole {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Application => "application",
            Self::Unknown => "unknown",
            Self::Outside => "outside",
        }
    }
}

/// What was measured on one end of a line, over the report's time and in each window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndMetrics {
    /// Sockets seen.
    pub sockets: u64,
    /// Over the report's time.
    pub total: LineMetrics,
    /// By window, in order; none where the recording has none. Windows in which nothing happened are absent.
    pub windows: Vec<MetricsWindow>,
}

/// A window.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsWindow {
    /// Its beginning.
    pub start: WallTime,
    /// How long after the beginning of the first window of the recording it begins.
    pub offset: DurationNs,
    /// What happened in it.
    pub metrics: LineMetrics,
}

/// The metrics of one end of a line. What is `None` was not measured; [`MissingMetrics`] says why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineMetrics {
    /// Writes.
    pub write: Option<IoMetrics>,
    /// Reads.
    pub read: Option<IoMetrics>,
    /// Smoothed round-trip times, ns.
    pub rtt: Option<ExponentialHistogram>,
    /// Connections that began.
    pub connect: Option<Connects>,
    /// Connections that ended.
    pub close: Option<Closes>,
    /// Segments sent again.
    pub retransmits: Option<u64>,
    /// Packets dropped, by the kernel's reason.
    pub drops: Option<BTreeMap<DropReason, u64>>,
    /// Events that were lost: with any, the counts are lower bounds.
    pub lost_events: u64,
}

/// Connections that began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connects {
    /// Connects tried, or connections accepted.
    pub count: u64,
    /// How long the handshakes took, ns.
    pub handshake: Option<ExponentialHistogram>,
    /// Connects that failed, by the kernel's error.
    pub failures: Option<BTreeMap<Errno, u64>>,
}

/// Connections that ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Closes {
    /// How many.
    pub count: u64,
    /// By who was first.
    pub by: Option<BTreeMap<Closer, u64>>,
    /// Those with a reset.
    pub resets: Option<u64>,
    /// From the first FIN to the end, ns.
    pub duration: Option<ExponentialHistogram>,
}

/// A metric that a recording may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Calls and bytes of writes.
    Write,
    /// How long writes took.
    WriteTime,
    /// Calls and bytes of reads.
    Read,
    /// How long reads took, and how long they waited for data.
    ReadTime,
    /// Round-trip times.
    Rtt,
    /// Connections that began.
    Connect,
    /// Why connects failed.
    ConnectFailures,
    /// Connections that ended.
    Close,
    /// Who closed first, and how long it took.
    CloseDetails,
    /// Connections that ended with a reset.
    Resets,
    /// Segments sent again.
    Retransmit,
    /// Packets dropped.
    Drop,
    /// Windows of 10 s.
    Windows,
}

impl Metric {
    /// All, in order.
    pub const ALL: [Self; 13] = [
        Self::Write,
        Self::WriteTime,
        Self::Read,
        Self::ReadTime,
        Self::Rtt,
        Self::Connect,
        Self::ConnectFailures,
        Self::Close,
        Self::CloseDetails,
        Self::Resets,
        Self::Retransmit,
        Self::Drop,
        Self::Windows,
    ];

    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::WriteTime => "write.executionTime",
            Self::Read => "read",
            Self::ReadTime => "read.executionTime",
            Self::Rtt => "rtt",
            Self::Connect => "connect",
            Self::ConnectFailures => "connect.failures",
            Self::Close => "close",
            Self::CloseDetails => "close.details",
            Self::Resets => "close.resets",
            Self::Retransmit => "retransmit",
            Self::Drop => "drop",
            Self::Windows => "windows",
        }
    }
}

/// The metrics that a recording lacks, each with the reason.
pub type MissingMetrics = BTreeMap<Metric, String>;

/// The lines with either end in `namespace` (all, if it is `None`), in order of their ends' names.
#[must_use]
pub fn lines(
    topology: &Topology,
    namespace: Option<&str>,
    missing: &MissingMetrics,
    clock: &ClockAnchor,
) -> Vec<LineSummary> {
    let windows = Windows { missing, clock };
    let mut list: Vec<LineSummary> = topology
        .lines()
        .map(|(_, from, to, line)| summary(topology, from, to, line, &windows))
        .filter(|l| namespace.is_none_or(|n| [&l.client, &l.server].iter().any(|e| e.namespace.as_deref() == Some(n))))
        .collect();
    count_from_the_first(&mut list);
    list.sort_by_cached_key(key);
    list
}

/// Counts windows from the first one that is told of, not from one of lines that are not.
fn count_from_the_first(list: &mut [LineSummary]) {
    let first = list
        .iter()
        .flat_map(|l| [&l.client, &l.server])
        .filter_map(|end| Some(end.metrics.as_ref()?.windows.first()?.offset))
        .min()
        .unwrap_or_default();
    let ends = list.iter_mut().flat_map(|l| [&mut l.client, &mut l.server]);
    for window in ends.filter_map(|end| end.metrics.as_mut()).flat_map(|m| &mut m.windows) {
        window.offset = window.offset - first;
    }
}

/// What orders lines: nothing of it but names, so that two recordings of one mesh are in the same order.
fn key(l: &LineSummary) -> impl Ord + use<> {
    let end = |e: &LineEnd| (e.namespace.clone(), e.pod.clone(), e.role, e.process.clone(), e.address.clone());
    (end(&l.client), end(&l.server), l.link, l.protocol, l.tls)
}

struct Windows<'a> {
    missing: &'a MissingMetrics,
    clock: &'a ClockAnchor,
}

fn summary(t: &Topology, from: NodeIndex, to: NodeIndex, line: &Line, windows: &Windows<'_>) -> LineSummary {
    LineSummary {
        client: end(t, from, &line.client, windows),
        server: end(t, to, &line.server, windows),
        protocol: line.protocol,
        tls: line.tls,
        tls_said: line.tls_said.clone(),
        link: line.link,
        peer_known_by: line.peer_known_by(),
        known_by: line.known_by.clone(),
        connections: line.connections,
        destinations: line.destinations.clone(),
    }
}

fn end(t: &Topology, place: NodeIndex, side: &LineSide, windows: &Windows<'_>) -> LineEnd {
    let metrics = side.seen().then(|| windows.metrics(side));
    match &t.graph[place] {
        Place::Outside(o) => {
            let address = o.port.map_or_else(|| o.address.to_string(), |p| SocketAddr::new(o.address, p).to_string());
            let (service, namespace) = o.service.clone().unzip();
            LineEnd {
                role: EndRole::Outside,
                namespace: namespace.flatten(),
                workload: None,
                pod: None,
                process: None,
                pids: vec![],
                address: Some(address),
                service,
                metrics,
            }
        }
        Place::Program(program) => {
            let pod = t.pod_of(place);
            let workload = pod.map(|p| p.workload.clone()).unwrap_or_else(meshdiff_model::Workload::unknown);
            let netns = pod.and_then(|p| p.netns).map(|n| format!("netns {}", n.0));
            LineEnd {
                role: match program.role {
                    ProgramRole::Sidecar => EndRole::Sidecar,
                    ProgramRole::Application => EndRole::Application,
                    ProgramRole::Unknown => EndRole::Unknown,
                },
                pod: workload
                    .pod
                    .or_else(|| workload.address.clone().filter(|_| workload.workload.is_none()))
                    .or(netns),
                namespace: workload.namespace,
                workload: workload.workload,
                process: program.name.clone(),
                pids: program.processes.iter().map(|t| t.0).collect::<BTreeSet<_>>().into_iter().collect(),
                address: workload.address,
                service: None,
                metrics,
            }
        }
        Place::Pod(_) => unreachable!("a line ends at a program or outside"),
    }
}

impl Windows<'_> {
    fn metrics(&self, side: &LineSide) -> EndMetrics {
        let windows = if self.missing.contains_key(&Metric::Windows) {
            vec![]
        } else {
            let window = |(start, measured): (&meshdiff_model::MonotonicNs, &Measured)| MetricsWindow {
                start: self.clock.to_wall(*start).unwrap_or_default(),
                // From the beginning of the clock until all lines are known.
                offset: *start - meshdiff_model::MonotonicNs(0),
                metrics: self.measured(measured),
            };
            side.metrics.windows.iter().map(window).collect()
        };
        EndMetrics { sockets: side.sockets.len() as u64, total: self.measured(&side.metrics.total), windows }
    }

    /// What was measured, without what was not.
    fn measured(&self, m: &Measured) -> LineMetrics {
        let has = |metric: Metric| !self.missing.contains_key(&metric);
        let io = |io: &IoMetrics, counts: Metric, time: Metric| {
            let mut io = io.clone();
            if !has(time) {
                (io.duration, io.wait) = (None, None);
            }
            has(counts).then_some(io)
        };
        LineMetrics {
            write: io(&m.write, Metric::Write, Metric::WriteTime),
            read: io(&m.read, Metric::Read, Metric::ReadTime),
            rtt: has(Metric::Rtt).then(|| m.rtt.clone()),
            connect: has(Metric::Connect).then(|| Connects {
                count: m.connect.count,
                handshake: Some(m.connect.handshake.clone()).filter(|h| !h.is_empty()),
                failures: has(Metric::ConnectFailures).then(|| m.connect.failures.clone()),
            }),
            close: has(Metric::Close).then(|| Closes {
                count: m.close.count,
                by: has(Metric::CloseDetails).then(|| m.close.by.clone()),
                resets: has(Metric::Resets).then_some(m.close.resets),
                duration: Some(m.close.duration.clone()).filter(|h| has(Metric::CloseDetails) && !h.is_empty()),
            }),
            retransmits: has(Metric::Retransmit).then_some(m.retransmits),
            drops: has(Metric::Drop).then(|| m.drops.clone()),
            lost_events: m.lost_events,
        }
    }
}

impl LineSummary {
    /// Its two ends, the connecting one first.
    #[must_use]
    pub const fn ends(&self) -> [&LineEnd; 2] {
        [&self.client, &self.server]
    }

    /// Bytes that crossed it: of either side's counts the larger.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |e: &LineEnd| {
            let total = &e.metrics.as_ref()?.total;
            let bytes = |io: &Option<IoMetrics>| io.as_ref().map_or(0, |io| io.bytes);
            Some(bytes(&total.write).saturating_add(bytes(&total.read)))
        };
        self.ends().into_iter().filter_map(of).max().unwrap_or(0)
    }
}

impl LineSummary {
    /// True if a finding speaks of it.
    #[must_use]
    pub fn in_trouble(&self) -> bool {
        !crate::connection_findings::findings(std::slice::from_ref(self)).is_empty()
    }
}

/// Length of a window.
pub const WINDOW: DurationNs = SocketMetrics::WINDOW;

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_graph::lines::{Outside, PodPlace, Program, SideMetrics, Tie};
    use meshdiff_model::{ClockSample, MonotonicNs, NetnsId, SocketCookie, Workload};

    /// A program in a pod of a namespace.
    fn program(t: &mut Topology, namespace: &str) -> NodeIndex {
        let workload = Workload {
            namespace: Some(namespace.into()),
            workload: Some("app".into()),
            pod: Some(format!("app-of-{namespace}")),
            ..Workload::unknown()
        };
        let pod = t.graph.add_node(Place::Pod(PodPlace { netns: Some(NetnsId(1)), workload }));
        let program = Program { role: ProgramRole::Application, name: Some("java".into()), processes: BTreeSet::new() };
        let program = t.graph.add_node(Place::Program(program));
        t.graph.add_edge(pod, program, Tie::Holds);
        program
    }

    /// Lines shop → bank, shop → outside, bank → outside; each client wrote 7 bytes in the window from 10 s on and 5 in the one after
    /// the next.
    fn topology() -> Topology {
        let mut t = Topology::default();
        let (shop, bank) = (program(&mut t, "shop"), program(&mut t, "bank"));
        let address = "192.0.2.1".parse().expect("an address");
        let outside = t.graph.add_node(Place::Outside(Outside { address, port: Some(443), service: None }));
        for (from, to) in [(bank, outside), (shop, outside), (shop, bank)] {
            let of = |bytes| {
                let write = IoMetrics { calls: 1, bytes, ..IoMetrics::default() };
                Measured { write, retransmits: 1, ..Measured::default() }
            };
            let mut metrics = SideMetrics { total: of(7), windows: BTreeMap::new() };
            metrics.total.merge(&of(5));
            metrics.windows.insert(MonotonicNs(10_000_000_000), of(7));
            metrics.windows.insert(MonotonicNs(30_000_000_000), of(5));
            let client = LineSide { sockets: vec![SocketCookie(1)], metrics, ..LineSide::default() };
            let line = Line { client, connections: 1, ..Line::default() };
            t.graph.add_edge(from, to, Tie::Line(Box::new(line)));
        }
        t
    }

    fn clock() -> ClockAnchor {
        ClockAnchor::new(vec![ClockSample { monotonic: MonotonicNs(0), wall: WallTime(1_000) }])
    }

    fn ends(list: &[LineSummary]) -> Vec<[Option<&str>; 2]> {
        list.iter().map(|l| l.ends().map(|e| e.pod.as_deref())).collect()
    }

    #[test]
    fn a_namespace_keeps_lines_with_either_end_in_it() {
        let (t, missing) = (topology(), MissingMetrics::new());
        let of = |namespace| lines(&t, namespace, &missing, &clock());
        let (shop, bank) = (Some("app-of-shop"), Some("app-of-bank"));
        assert_eq!(ends(&of(None)), [[bank, None], [shop, None], [shop, bank]]);
        assert_eq!(ends(&of(Some("bank"))), [[bank, None], [shop, bank]]);
        assert_eq!(ends(&of(Some("nobody"))), [] as [[Option<&str>; 2]; 0]);
    }

    #[test]
    fn windows_are_at_their_time_and_add_up() {
        let list = lines(&topology(), Some("bank"), &MissingMetrics::new(), &clock());
        let metrics = list[0].client.metrics.as_ref().expect("the client was seen");
        let windows: Vec<_> = metrics.windows.iter().map(|w| (w.start.0, w.offset.0 / WINDOW.0)).collect();
        assert_eq!(windows, [(10_000_001_000, 0), (30_000_001_000, 2)]);
        let bytes = |m: &LineMetrics| m.write.as_ref().map_or(0, |io| io.bytes);
        assert_eq!(metrics.windows.iter().map(|w| bytes(&w.metrics)).sum::<u64>(), bytes(&metrics.total));
        assert!(list[0].server.metrics.is_none(), "nobody saw the other end");
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let missing = [Metric::Retransmit, Metric::Windows, Metric::Write].map(|m| (m, "why".to_owned())).into();
        let list = lines(&topology(), None, &missing, &clock());
        let metrics = list[0].client.metrics.as_ref().expect("the client was seen");
        assert!(metrics.windows.is_empty());
        assert_eq!((&metrics.total.retransmits, &metrics.total.write), (&None, &None));
        assert!(metrics.total.read.is_some() && metrics.total.drops.is_some());
    }
}
