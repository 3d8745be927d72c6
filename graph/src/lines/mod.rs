//! The process topology: pods, the programs that run in them and the peers outside as nodes, and *lines* as edges. A line is
//! all connections from one program to another that speak one protocol, with both sides' sockets.
//!
//! A peer is the real one: behind a REDIRECT rule or Istio's passthrough address it is the program at the other end of the TCP
//! connection, not what the socket's address says. How that was known is part of the line.

mod build;
mod logs;
mod measure;
mod places;
mod protocol;
#[cfg(test)]
mod tests;

pub(crate) use build::{Said, build};
pub use measure::{CloseTally, ConnectTally, Measured, MetricsInput, SideMetrics};
pub use protocol::LineProtocol;

use meshdiff_model::{IoMetrics, Link, NetnsId, SocketCookie, Tgid, TlsInfo, TlsVersion, Workload};
use petgraph::Direction;
use petgraph::graph::{DiGraph, EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Programs, their pods, what is outside, and the lines between them.
#[derive(Debug, Default)]
pub struct Topology {
    /// The graph. Nodes and edges are in an order that depends on nothing but the recording.
    pub graph: DiGraph<Place, Tie>,
}

/// A node of the process topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod, or a network namespace of which no pod is known.
    Pod(PodPlace),
    /// What runs in a pod: all its processes of one name and role.
    Program(Program),
    /// A peer that is in no pod that is known.
    Outside(Outside),
}

/// A pod, or a network namespace of which no pod is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    /// Its network namespace; `None` for a pod that was not recorded and is known from node metadata only.
    pub netns: Option<NetnsId>,
    /// Who it is.
    pub workload: Workload,
}

/// All processes of a pod that have one name and one role. A server that forks a worker for each connection is one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What it is to the mesh.
    pub role: ProgramRole,
    /// The processes' name; `None` where nothing tells which process it is.
    pub name: Option<String>,
    /// The processes seen.
    pub processes: BTreeSet<Tgid>,
}

/// What a program is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProgramRole {
    /// The Envoy of its pod.
    Sidecar,
    /// Anything else.
    Application,
    /// Nothing tells.
    Unknown,
}

impl ProgramRole {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Application => "application",
            Self::Unknown => "unknown",
        }
    }
}

/// A peer in no pod that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Its address, as the recorded socket knows it.
    pub address: IpAddr,
    /// The port that was connected to; `None` for a peer that connected, whose port says nothing.
    pub port: Option<u16>,
    /// Service and namespace of the Envoy cluster that was routed to, where an access log says so.
    pub service: Option<(String, Option<String>)>,
}

/// An edge of the process topology.
#[derive(Clone, Debug)]
pub enum Tie {
    /// A pod holds a program.
    Holds,
    /// The program that connects → the one that accepts.
    Line(Box<Line>),
}

/// All connections from one program to another that speak one protocol and serve one purpose.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// What is spoken.
    pub protocol: LineProtocol,
    /// Whether it is encrypted; `None` where nothing of it was seen.
    pub tls: Option<bool>,
    /// What its ends said of TLS in the clear.
    pub tls_said: TlsTally,
    /// Which part of a request's way it is; `None` for other traffic (which between the same programs is another line).
    pub link: Option<Link>,
    /// Its connections.
    pub connections: u64,
    /// Its connections by how their peer is known.
    pub known_by: BTreeMap<PeerKnownBy, u64>,
    /// Where the connecting end wanted to go (before any REDIRECT), with the connections to each.
    pub destinations: BTreeMap<SocketAddr, u64>,
    /// The connecting end's sockets; empty if none was seen.
    pub client: LineSide,
    /// The accepting end's sockets; empty if none was seen.
    pub server: LineSide,
}

impl Line {
    /// How the peers of most of its connections are known; of equals the weaker.
    #[must_use]
    pub fn peer_known_by(&self) -> PeerKnownBy {
        self.known_by.iter().max_by_key(|(k, n)| (**n, **k)).map_or(PeerKnownBy::Unknown, |(k, _)| *k)
    }
}

/// What connections said of TLS in the clear, with the number of connections that said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsTally {
    /// Versions that servers chose.
    pub versions: BTreeMap<TlsVersion, u64>,
    /// Names that clients asked for. They come from outside.
    pub server_names: BTreeMap<Arc<str>, u64>,
    /// Protocols that servers chose (ALPN); with TLS 1.3 they say so encrypted.
    pub alpn: BTreeMap<Arc<str>, u64>,
    /// Protocols that clients offered (ALPN).
    pub alpn_offered: BTreeMap<Arc<str>, u64>,
}

impl TlsTally {
    fn add(&mut self, info: &TlsInfo) {
        let one = |map: &mut BTreeMap<Arc<str>, u64>, name: &Arc<str>| *map.entry(name.clone()).or_default() += 1;
        if let Some(version) = info.version {
            *self.versions.entry(version).or_default() += 1;
        }
        info.sni.iter().for_each(|n| one(&mut self.server_names, n));
        info.alpn.iter().for_each(|p| one(&mut self.alpn, p));
        info.alpn_offered.iter().for_each(|p| one(&mut self.alpn_offered, p));
    }
}

/// How a connection's peer is known, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerKnownBy {
    /// Both sockets were seen, and their sequence numbers prove that they are the two ends.
    Matched,
    /// From addresses: both sockets' own, those that an access log names, Istio's ports, or node metadata.
    Inferred,
    /// Only the peer's address is known.
    Unknown,
}

impl PeerKnownBy {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Inferred => "inferred",
            Self::Unknown => "unknown",
        }
    }
}

/// One end of a line.
#[derive(Clone, Debug, Default)]
pub struct LineSide {
    /// Its sockets, sorted.
    pub sockets: Vec<SocketCookie>,
    /// Writes and reads as message assembly counted them: calls and bytes, over the whole recording.
    pub assembled: (IoMetrics, IoMetrics),
    /// What was measured on them; empty until [`Topology::measure`].
    pub metrics: SideMetrics,
}

impl LineSide {
    /// True if a socket of this end was seen.
    #[must_use]
    pub fn seen(&self) -> bool {
        !self.sockets.is_empty()
    }
}

impl Topology {
    /// The lines: from where, to where, and what they are; in order.
    pub fn lines(&self) -> impl Iterator<Item = (EdgeIndex, NodeIndex, NodeIndex, &Line)> {
        self.graph.edge_references().filter_map(|e| match e.weight() {
            Tie::Line(line) => Some((e.id(), e.source(), e.target(), &**line)),
            Tie::Holds => None,
        })
    }

    /// The pod that holds a program; `None` for what is outside.
    #[must_use]
    pub fn pod_of(&self, place: NodeIndex) -> Option<&PodPlace> {
        self.graph.neighbors_directed(place, Direction::Incoming).find_map(|n| match &self.graph[n] {
            Place::Pod(pod) => Some(pod),
            Place::Program(_) | Place::Outside(_) => None,
        })
    }
}
