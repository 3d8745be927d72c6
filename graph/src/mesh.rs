//! The graph: pods, processes and sockets as nodes; what owns what, who is connected to whom and who called whom as
//! edges.

use crate::Hop;
use crate::connection::{Connection, Endpoint};
use crate::join::{HopInput, Joined};
use crate::lines::{self, Said, Topology};
use meshdiff_model::{
    ClockAnchor, Crossing, JoinedHop, Link, MonotonicNs, NetnsId, Process, ProcessRole, RequestId, Socket,
    SocketCookie, Tgid, WallTime, Workload, WorkloadSource,
};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Who owns what: the answers of node metadata and of Kubernetes.
pub trait Directory {
    /// The workload whose proxy has this node id.
    fn by_proxy(&self, node: &meshdiff_model::NodeId) -> Option<Workload>;
    /// The workload that owns an address; where it passed from one to the next, only what is true of both.
    fn by_address(&self, ip: IpAddr) -> Option<Workload>;
    /// The workload that owned an address at an instant, by the wall clock of the recording.
    fn by_address_at(&self, ip: IpAddr, _at: WallTime) -> Option<Workload> {
        self.by_address(ip)
    }
    /// Service and namespace that an Envoy cluster's name speaks of (`outbound|9080||reviews.default.svc.cluster.local`).
    fn service_of_cluster(&self, cluster: &str) -> Option<(String, Option<String>)>;
}

/// A node of the graph.
#[derive(Clone, Debug)]
pub enum Node {
    /// A pod, or a network namespace of which no pod is known.
    Pod {
        /// Its network namespace, where sockets of it were seen.
        netns: Option<NetnsId>,
        /// Who it is.
        workload: Workload,
    },
    /// A process.
    Process(Process),
    /// A socket, with what it sent and received.
    Socket {
        /// The socket.
        socket: Box<Socket>,
        /// Bytes sent.
        write_bytes: u64,
        /// Send calls.
        write_calls: u64,
        /// Bytes received.
        read_bytes: u64,
        /// Read calls (as far as assembly kept them).
        read_calls: u64,
        /// True if it sent TLS records.
        tls: bool,
    },
}

/// An edge of the graph.
#[derive(Clone, Debug)]
pub enum Edge {
    /// A pod owns a process, or a process a socket.
    Owns,
    /// The socket that connected → the socket that accepted.
    Connection(ConnectionEdge),
    /// The pod that called → the pod that was called.
    Hop(HopEdge),
}

/// A TCP connection whose two ends were seen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionEdge {
    /// Which part of a request's way it is; `None` for other traffic.
    pub link: Option<Link>,
}

/// All requests from one pod to another.
#[derive(Clone, Debug, Default)]
pub struct HopEdge {
    /// Indices into [`MeshGraph::hops`].
    pub hops: Vec<usize>,
}

/// Everything that a recording tells, joined.
#[derive(Debug)]
pub struct MeshGraph {
    /// Pods, processes, sockets and what ties them.
    pub graph: DiGraph<Node, Edge>,
    /// Every request found, in order of start.
    pub hops: Vec<Hop>,
    /// Requests that the kernel saw client applications send to their sidecar.
    pub client_messages_seen: u64,
    /// Access log entries that stand for TCP connections: they are no requests, and no hop is made of them.
    pub tcp_connections_logged: u64,
    /// Requests that the kernel saw a sidecar hand to its application and get an answer to, and of which no log entry of that sidecar came:
    /// when, and to whom.
    pub unlogged_by_servers: Vec<(MonotonicNs, Workload)>,
    /// The process topology: who is connected to whom, and how.
    pub topology: Topology,
    /// Each socket's node.
    sockets: HashMap<SocketCookie, NodeIndex>,
}

impl MeshGraph {
    /// Joins a recording. Never fails: what cannot be joined carries its reason.
    #[must_use]
    pub fn build(input: HopInput<'_>, processes: &[Process], directory: &dyn Directory) -> Self {
        let mut joined = crate::join::join(input, |_| false);
        let hops = std::mem::take(&mut joined.hops);
        let said = Said::of(input, &joined.endpoints, &joined.connections);
        let callers = callers(&hops, &joined.netns());
        let (mut mesh, pods) = Self::tied(joined, &said, processes, directory, input.clock);
        mesh.hops = hops.into_iter().zip(callers).map(|(joined, caller)| Hop { joined, caller }).collect();
        mesh.add_hop_edges(&pods, directory);
        mesh
    }

    /// All but the requests.
    pub(crate) fn tied(
        joined: Joined,
        said: &Said,
        processes: &[Process],
        directory: &dyn Directory,
        clock: &ClockAnchor,
    ) -> (Self, HashMap<NetnsId, NodeIndex>) {
        let mut mesh = Self::bare(&joined);
        let Joined { endpoints, connections, unlogged, .. } = joined;
        let pods = mesh.add_sockets(&endpoints, &connections, processes, directory, clock);
        let workloads = mesh.workloads(&pods);
        let server = |netns: &NetnsId| workloads.get(netns).cloned().unwrap_or_else(Workload::unknown);
        mesh.unlogged_by_servers = unlogged.iter().map(|u| (u.at, server(&u.netns))).collect();
        mesh.topology = lines::build(said, &endpoints, &connections, processes, &workloads, directory);
        (mesh, pods)
    }

    /// Only sockets, for requests that are told one after the other.
    pub(crate) fn of_sockets(endpoints: &[Endpoint]) -> Self {
        let mut mesh = Self {
            graph: DiGraph::new(),
            hops: Vec::new(),
            client_messages_seen: 0,
            tcp_connections_logged: 0,
            unlogged_by_servers: Vec::new(),
            topology: Topology::default(),
            sockets: HashMap::new(),
        };
        for e in endpoints {
            let node = mesh.graph.add_node(socket_node(e));
            mesh.sockets.insert(e.socket.cookie, node);
        }
        mesh
    }

    /// Only the requests of a recording, without what ties them: no lines, no callers, no edges between pods. Each request is the same as
    /// [`build`](Self::build) makes it; for who wants nothing but their splits, again and again. `earlier` tells the sockets of which
    /// messages came before that are not in the input any more: what comes first here is not what came first on their connections.
    #[must_use]
    pub fn requests_of(input: HopInput<'_>, earlier: impl Fn(SocketCookie) -> bool) -> Self {
        let joined = crate::join::join(input, earlier);
        let mut mesh = Self::bare(&joined);
        let Joined { endpoints, hops, .. } = joined;
        for e in &endpoints {
            let node = mesh.graph.add_node(socket_node(e));
            mesh.sockets.insert(e.socket.cookie, node);
        }
        mesh.hops = hops.into_iter().map(|joined| Hop { joined, caller: None }).collect();
        mesh
    }

    /// What joins count, before anything is in the graph.
    fn bare(joined: &Joined) -> Self {
        Self {
            graph: DiGraph::new(),
            hops: Vec::new(),
            client_messages_seen: joined.client_messages,
            tcp_connections_logged: joined.tcp_entries,
            unlogged_by_servers: Vec::new(),
            topology: Topology::default(),
            sockets: HashMap::new(),
        }
    }

    /// A socket by its cookie.
    #[must_use]
    pub fn socket(&self, cookie: SocketCookie) -> Option<&Socket> {
        match self.graph.node_weight(*self.sockets.get(&cookie)?)? {
            Node::Socket { socket, .. } => Some(socket),
            Node::Pod { .. } | Node::Process(_) => None,
        }
    }

    fn add_sockets(
        &mut self,
        endpoints: &[Endpoint],
        connections: &[Connection],
        processes: &[Process],
        directory: &dyn Directory,
        clock: &ClockAnchor,
    ) -> HashMap<NetnsId, NodeIndex> {
        let mut addresses: BTreeMap<NetnsId, IpAddr> = BTreeMap::new();
        let mut last_seen: BTreeMap<NetnsId, MonotonicNs> = BTreeMap::new();
        for e in endpoints {
            let seen = last_seen.entry(e.socket.netns).or_insert(e.socket.last_seen);
            *seen = e.socket.last_seen.max(*seen);
        }
        for e in endpoints.iter().filter(|e| !e.socket.local.ip().is_loopback()) {
            let ip = addresses.entry(e.socket.netns).or_insert(e.socket.local.ip());
            if directory.by_address(*ip).is_none() && directory.by_address(e.socket.local.ip()).is_some() {
                *ip = e.socket.local.ip();
            }
        }
        let mut pods: HashMap<NetnsId, NodeIndex> = HashMap::new();
        for e in endpoints {
            let netns = e.socket.netns;
            pods.entry(netns).or_insert_with(|| {
                let ip = addresses.get(&netns);
                // When it was there: another pod may have had the address before it, or after.
                let at = last_seen.get(&netns).and_then(|at| clock.to_wall(*at));
                let of = |ip: &IpAddr| match at {
                    Some(at) => directory.by_address_at(*ip, at),
                    None => directory.by_address(*ip),
                };
                let workload = ip.and_then(of).unwrap_or_else(|| Workload {
                    address: ip.map(ToString::to_string),
                    source: WorkloadSource::Unknown,
                    ..Workload::unknown()
                });
                self.graph.add_node(Node::Pod { netns: Some(netns), workload })
            });
        }
        let known: HashMap<Tgid, &Process> = processes.iter().map(|p| (p.tgid, p)).collect();
        let mut owners: HashMap<(NetnsId, Option<Tgid>), NodeIndex> = HashMap::new();
        for e in endpoints {
            let (netns, tgid) = (e.socket.netns, e.socket.owner);
            let owner = *owners.entry((netns, tgid)).or_insert_with(|| {
                let process = tgid.and_then(|t| known.get(&t).copied().cloned()).unwrap_or_else(|| Process {
                    tgid: tgid.unwrap_or_default(),
                    netns,
                    comm: "?".to_owned(),
                    exe: None,
                    uid: None,
                    cgroup: None,
                    role: ProcessRole::Application,
                });
                let node = self.graph.add_node(Node::Process(process));
                self.graph.add_edge(pods[&netns], node, Edge::Owns);
                node
            });
            let node = self.graph.add_node(socket_node(e));
            self.graph.add_edge(owner, node, Edge::Owns);
            self.sockets.insert(e.socket.cookie, node);
        }
        for c in connections {
            if let (Some(client), Some(server)) = (c.client, c.server) {
                let node = |i: usize| self.sockets[&endpoints[i].socket.cookie];
                let (from, to) = (node(client), node(server));
                self.graph.add_edge(from, to, Edge::Connection(ConnectionEdge { link: c.link }));
            }
        }
        pods
    }

    fn workloads(&self, pods: &HashMap<NetnsId, NodeIndex>) -> BTreeMap<NetnsId, Workload> {
        let workload = |node: NodeIndex| match &self.graph[node] {
            Node::Pod { workload, .. } => workload.clone(),
            Node::Process(_) | Node::Socket { .. } => Workload::unknown(),
        };
        pods.iter().map(|(netns, node)| (*netns, workload(*node))).collect()
    }

    fn add_hop_edges(&mut self, pods: &HashMap<NetnsId, NodeIndex>, directory: &dyn Directory) {
        let mut by_workload: BTreeMap<Workload, NodeIndex> = BTreeMap::new();
        for &node in pods.values() {
            if let Some(Node::Pod { workload, .. }) = self.graph.node_weight(node) {
                by_workload.insert(workload.clone(), node);
            }
        }
        let mut edges: BTreeMap<(NodeIndex, NodeIndex), Vec<usize>> = BTreeMap::new();
        for i in 0..self.hops.len() {
            let (client, server) = self.ends(i, directory);
            let mut node = |w: Workload| {
                *by_workload
                    .entry(w.clone())
                    .or_insert_with(|| self.graph.add_node(Node::Pod { netns: None, workload: w }))
            };
            let key = (node(client), node(server));
            edges.entry(key).or_default().push(i);
        }
        for ((from, to), hops) in edges {
            self.graph.add_edge(from, to, Edge::Hop(HopEdge { hops }));
        }
    }

    /// Who called and who was called in a hop. Only what a log, an address owner or Envoy's cluster name says.
    #[must_use]
    pub fn ends(&self, hop: usize, directory: &dyn Directory) -> (Workload, Workload) {
        let joined = &self.hops[hop].joined;
        let ip_of = |s: usize| joined.sockets[s].and_then(|c| self.socket(c)).map(|s| s.local.ip());
        let unknown_at =
            |address: Option<IpAddr>| Workload { address: address.map(|a| a.to_string()), ..Workload::unknown() };
        let at = joined.client_log.as_ref().or(joined.server_log.as_ref()).map(|l| l.start_time);
        let by_address = |ip: IpAddr| match at {
            Some(at) => directory.by_address_at(ip, at),
            None => directory.by_address(ip),
        };
        let client_ip = ip_of(0)
            .or_else(|| joined.client_log.as_ref()?.downstream_direct_remote_address.map(|a| a.ip()))
            .or_else(|| joined.server_log.as_ref()?.downstream_direct_remote_address.map(|a| a.ip()));
        let client = joined
            .client_log
            .as_ref()
            .and_then(|l| directory.by_proxy(&l.node))
            .or_else(|| client_ip.and_then(by_address))
            .unwrap_or_else(|| unknown_at(client_ip));
        let server_ip = joined
            .client_log
            .as_ref()
            .and_then(|l| l.upstream_remote_address.map(|a| a.ip()))
            .or_else(|| joined.server_log.as_ref()?.upstream_remote_address.map(|a| a.ip()));
        let server = joined
            .server_log
            .as_ref()
            .and_then(|l| directory.by_proxy(&l.node))
            .or_else(|| server_ip.and_then(by_address))
            .unwrap_or_else(|| unknown_at(server_ip));
        (client, server)
    }
}

/// A socket with what it sent and received.
fn socket_node(e: &Endpoint) -> Node {
    Node::Socket {
        socket: Box::new(e.socket.clone()),
        write_bytes: e.egress.bytes,
        write_calls: e.egress.calls,
        read_bytes: e.ingress.bytes,
        read_calls: e.ingress.calls,
        tls: e.egress.spoken.tls,
    }
}

/// For each hop the hop that caused it: the one request that the calling pod was serving at that time under the same
/// `x-request-id`. Where there are several, or the application does not forward the id, nobody can tell.
///
/// `netns` says where each socket is.
pub(crate) fn callers(hops: &[JoinedHop], netns: &HashMap<SocketCookie, NetnsId>) -> Vec<Option<usize>> {
    let key = |cookie: Option<SocketCookie>, hop: &JoinedHop| {
        let id = hop.client_log.as_ref().or(hop.server_log.as_ref())?.request_id.as_ref()?;
        Some((*netns.get(&cookie?)?, comparable(id)))
    };
    let span = |request: &Crossing, response: &Crossing| Some((request.ready?, response.last_send?));
    let mut serving: HashMap<(NetnsId, String), Serving> = HashMap::new();
    for (i, hop) in hops.iter().enumerate() {
        let served = span(hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
        if let (Some(key), Some((from, to))) = (key(hop.sockets[5], hop), served) {
            serving.entry(key).or_default().spans.push((from, to, i));
        }
    }
    serving.values_mut().for_each(Serving::sort);
    hops.iter()
        .enumerate()
        .map(|(i, hop)| {
            let start = hop.request_on(Link::ClientLoopback).send?;
            let end = hop.response_on(Link::ClientLoopback).ready?;
            serving.get(&key(hop.sockets[0], hop)?)?.only_around(start, end, i)
        })
        .collect()
}

/// What a pod served under one request id.
#[derive(Default)]
struct Serving {
    /// From when until when, and which hop; in order of start.
    spans: Vec<(MonotonicNs, MonotonicNs, usize)>,
    /// The latest end of this span and all before it.
    latest: Vec<MonotonicNs>,
}

impl Serving {
    /// How many spans are looked at before it counts as unknown which one it is: only ids that name no single trace (a constant one)
    /// have more, and without a bound they would take quadratic time.
    const MOST: usize = 256;

    fn sort(&mut self) {
        self.spans.sort_unstable();
        let mut latest = MonotonicNs::default();
        self.latest = self
            .spans
            .iter()
            .map(|s| {
                latest = latest.max(s.1);
                latest
            })
            .collect();
    }

    /// The one span (other than `not`) around `start..end`; `None` if there is none, or several.
    fn only_around(&self, start: MonotonicNs, end: MonotonicNs, not: usize) -> Option<usize> {
        let begun = self.spans.partition_point(|s| s.0 <= start);
        let mut only = None;
        for (looked, at) in (0..begun).rev().enumerate() {
            if self.latest[at] < end {
                break;
            }
            let (_, to, hop) = self.spans[at];
            if looked == Self::MOST || (hop != not && end <= to && only.replace(hop).is_some()) {
                return None;
            }
        }
        only
    }
}

/// A request id without the character that Envoy's sampling rewrites.
pub(crate) fn comparable(id: &RequestId) -> String {
    let text = &*id.0;
    if text.len() == 36 && text.is_char_boundary(14) && text.is_char_boundary(15) {
        format!("{}-{}", &text[..14], &text[15..])
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests;
