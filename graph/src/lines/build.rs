//! Puts connections together into lines.

use super::logs::Logs;
use super::places::{PlaceKey, PodKey, Whereabouts, life};
use super::protocol::{Frames, LineProtocol, Seen, add_frames};
use super::{Line, Outside, Place, PodPlace, Program, ProgramRole, Tie, Topology};
use crate::Directory;
use crate::connection::{Connection, Endpoint, is_redirected};
use crate::join::HopInput;
use meshdiff_model::{ClockAnchor, HopSide, Http2Stream, Link, NetnsId, Process, Tgid, TlsInfo, Workload};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The services that logs name for a peer outside: name and namespace.
type Services = BTreeMap<(IpAddr, Option<u16>), BTreeSet<(String, Option<String>)>>;
/// Two places, and the port that the second one listens on.
type ServiceKey = (PlaceKey, PlaceKey, Option<u16>);
/// Which line a connection is part of.
type LineKey = (PlaceKey, PlaceKey, Option<Link>, LineProtocol, Option<bool>);

/// One connection, on its way to its line.
struct Placed<'a> {
    connection: &'a Connection,
    client: PlaceKey,
    server: PlaceKey,
    protocol: Option<LineProtocol>,
    tls: Option<bool>,
    tls_said: Option<TlsInfo>,
    known_by: super::PeerKnownBy,
    link: Option<Link>,
    /// The port that the accepting end listens on.
    port: Option<u16>,
}

/// What proxies and frames say of connections.
#[derive(Debug, Default)]
pub(crate) struct Said {
    logs: Logs,
    frames: Frames,
}

impl Said {
    /// Nothing yet of these connections.
    pub(crate) fn about(endpoints: &[Endpoint], connections: &[Connection]) -> Self {
        Self { logs: Logs::about(endpoints, connections), frames: Frames::new() }
    }

    /// All that a recording has.
    pub(crate) fn of(input: HopInput<'_>, endpoints: &[Endpoint], connections: &[Connection]) -> Self {
        let mut said = Self::about(endpoints, connections);
        for (place, log) in (0..).zip(input.access_logs) {
            said.add_log(place, log, input.clock);
        }
        input.http2.iter().for_each(|row| said.add_frames(row));
        said
    }

    /// Adds an entry; `place` says where it is among all of the recording.
    pub(crate) fn add_log(&mut self, place: u64, log: &HopSide, clock: &ClockAnchor) {
        self.logs.add(place, log, clock);
    }

    /// Adds what a socket sent of a stream.
    pub(crate) fn add_frames(&mut self, row: &Http2Stream) {
        add_frames(&mut self.frames, row);
    }
}

/// The process topology of a recording. `pods` says whose the recorded namespaces are.
pub(crate) fn build(
    said: &Said,
    endpoints: &[Endpoint],
    connections: &[Connection],
    processes: &[Process],
    pods: &BTreeMap<NetnsId, Workload>,
    directory: &dyn Directory,
) -> Topology {
    let Said { logs, frames } = said;
    let whereabouts = Whereabouts::of(endpoints, connections, processes, logs, directory);
    let placed: Vec<Placed<'_>> =
        connections.iter().filter_map(|c| place(c, endpoints, logs, &whereabouts, frames)).collect();
    let spoken = spoken_on_ports(&placed);
    let mut lines: BTreeMap<LineKey, Line> = BTreeMap::new();
    let mut tgids: HashMap<PlaceKey, BTreeSet<Tgid>> = HashMap::new();
    let mut services = Services::new();
    for p in placed {
        let told = || spoken.get(&p.service()).copied().flatten();
        let (protocol, tls) = match p.protocol {
            // Encrypted, and no log speaks of it: of the line whose other connections logs do speak of.
            Some(LineProtocol::Tls) => told().filter(|t| t.1 == Some(true)).unwrap_or((LineProtocol::Tls, p.tls)),
            Some(protocol) => (protocol, p.tls),
            None => told().unwrap_or((LineProtocol::Tcp, p.tls)),
        };
        let c = p.connection;
        for (end, place) in [(c.client, &p.client), (c.server, &p.server)] {
            let Some(socket) = end.map(|i| &endpoints[i].socket) else { continue };
            let seen = tgids.entry(place.clone()).or_default();
            seen.extend(socket.owner);
        }
        if let (PlaceKey::Outside(ip, port), Some(client)) = (&p.server, c.client) {
            let socket = &endpoints[client].socket;
            let log = logs.connector(socket.local.0, life(socket));
            let service = log.and_then(|l| directory.service_of_cluster(l.upstream_cluster.as_deref()?));
            services.entry((*ip, *port)).or_default().extend(service);
        }
        let line = lines.entry((p.client, p.server, p.link, protocol, tls)).or_default();
        (line.link, line.protocol, line.tls) = (p.link, protocol, tls);
        line.connections += 1;
        *line.known_by.entry(p.known_by).or_default() += 1;
        for (side, end) in [(&mut line.client, c.client), (&mut line.server, c.server)] {
            let Some(e) = end.map(|i| &endpoints[i]) else { continue };
            side.sockets.push(e.socket.cookie);
            for (to, from) in [(&mut side.assembled.0, &e.egress), (&mut side.assembled.1, &e.ingress)] {
                to.calls = to.calls.saturating_add(from.calls);
                to.bytes = to.bytes.saturating_add(from.bytes);
            }
        }
        if let Some(said) = p.tls_said {
            line.tls_said.add(&said);
        }
        if let Some(to) = destination(c, endpoints) {
            *line.destinations.entry(to).or_default() += 1;
        }
    }
    Graph { graph: DiGraph::new(), places: BTreeMap::new(), pods: BTreeMap::new(), recorded: pods, tgids, services }
        .of(lines)
}

impl Placed<'_> {
    fn service(&self) -> ServiceKey {
        (self.client.clone(), self.server.clone(), self.port)
    }
}

fn place<'a>(
    connection: &'a Connection,
    endpoints: &[Endpoint],
    logs: &Logs,
    whereabouts: &Whereabouts<'_>,
    frames: &Frames,
) -> Option<Placed<'a>> {
    let (client, server, known_by) = whereabouts.ends(connection)?;
    let log = logs.spoken(connection.client_address(endpoints), connection.seen(endpoints));
    let tls_said = tls_said(connection, endpoints);
    let (protocol, tls) = Seen::of(connection, endpoints, tls_said.as_ref(), frames).decide(log);
    let to = destination(connection, endpoints);
    let link = connection.link.or_else(|| link(&client, &server, to?.ip()));
    Some(Placed { connection, client, server, protocol, tls, tls_said, known_by, link, port: to.map(|to| to.port()) })
}

/// Which part of a request's way a connection is whose accepting end, which would tell, was not seen.
fn link(client: &PlaceKey, server: &PlaceKey, to: IpAddr) -> Option<Link> {
    let (PlaceKey::Program(from, client), PlaceKey::Program(at, server)) = (client, server) else { return None };
    match (client.role, server.role) {
        _ if to.is_loopback() => None,
        (ProgramRole::Sidecar, ProgramRole::Sidecar) if from != at => Some(Link::Network),
        (ProgramRole::Application, ProgramRole::Sidecar) if from == at => Some(Link::ClientLoopback),
        _ => None,
    }
}

fn tls_said(connection: &Connection, endpoints: &[Endpoint]) -> Option<TlsInfo> {
    let said = |end: Option<usize>| endpoints[end?].socket.tls.as_ref();
    match (said(connection.client), said(connection.server)) {
        (Some(client), Some(server)) => Some(client.and(server)),
        (one, other) => one.or(other).cloned(),
    }
}

/// Where the connecting end wanted to go; `None` where only an end behind a REDIRECT was seen.
fn destination(connection: &Connection, endpoints: &[Endpoint]) -> Option<std::net::SocketAddr> {
    let accepted = || connection.server.map(|s| &endpoints[s].socket).filter(|s| !is_redirected(s));
    connection.client.map(|c| endpoints[c].socket.remote.0).or_else(|| accepted().map(|s| s.local.0))
}

/// What is spoken between two places on one port, where that is one thing: a connection on which nothing was said (it was refused, or
/// idle) is of that line, and one that was only encrypted.
fn spoken_on_ports(placed: &[Placed<'_>]) -> HashMap<ServiceKey, Option<(LineProtocol, Option<bool>)>> {
    let mut spoken = HashMap::new();
    for p in placed {
        let Some(protocol) = p.protocol.filter(|p| *p != LineProtocol::Tls) else { continue };
        let known = spoken.entry(p.service()).or_insert(Some((protocol, p.tls)));
        if *known != Some((protocol, p.tls)) {
            *known = None;
        }
    }
    spoken
}

/// The graph while it is made.
struct Graph<'a> {
    graph: DiGraph<Place, Tie>,
    places: BTreeMap<PlaceKey, NodeIndex>,
    pods: BTreeMap<PodKey, NodeIndex>,
    recorded: &'a BTreeMap<NetnsId, Workload>,
    tgids: HashMap<PlaceKey, BTreeSet<Tgid>>,
    services: Services,
}

impl Graph<'_> {
    fn of(mut self, lines: BTreeMap<LineKey, Line>) -> Topology {
        for ((client, server, _, _, _), mut line) in lines {
            line.client.sockets.sort_unstable();
            line.server.sockets.sort_unstable();
            let (from, to) = (self.node(client), self.node(server));
            self.graph.add_edge(from, to, Tie::Line(Box::new(line)));
        }
        Topology { graph: self.graph }
    }

    fn node(&mut self, key: PlaceKey) -> NodeIndex {
        if let Some(&node) = self.places.get(&key) {
            return node;
        }
        let node = match &key {
            PlaceKey::Program(pod, named) => {
                let pod = self.pod(pod);
                let processes = self.tgids.remove(&key).unwrap_or_default();
                let program = Program { role: named.role, name: named.name.clone(), processes };
                let node = self.graph.add_node(Place::Program(program));
                self.graph.add_edge(pod, node, Tie::Holds);
                node
            }
            &PlaceKey::Outside(address, port) => {
                // Two services behind one address are told by neither.
                let named = self.services.get(&(address, port)).filter(|s| s.len() == 1);
                let service = named.and_then(|s| s.first().cloned());
                self.graph.add_node(Place::Outside(Outside { address, port, service }))
            }
        };
        self.places.insert(key, node);
        node
    }

    fn pod(&mut self, key: &PodKey) -> NodeIndex {
        if let Some(&node) = self.pods.get(key) {
            return node;
        }
        let place = match key {
            PodKey::Here(netns) => PodPlace {
                netns: Some(*netns),
                workload: self.recorded.get(netns).cloned().unwrap_or_else(Workload::unknown),
            },
            PodKey::Elsewhere(workload) => PodPlace { netns: None, workload: workload.clone() },
        };
        let node = self.graph.add_node(Place::Pod(place));
        self.pods.insert(key.clone(), node);
        node
    }
}
