//! Which program a socket belongs to, and which one is at its other end.

use super::logs::{Logs, Told};
use super::{PeerKnownBy, ProgramRole};
use crate::Directory;
use crate::connection::{Connection, Endpoint, OUTBOUND_PORT, is_redirected, passthrough};
use meshdiff_model::{MonotonicNs, NetnsId, Process, ProcessRole, Socket, Tgid, Workload};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

/// A pod's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PodKey {
    /// Recorded.
    Here(NetnsId),
    /// Known from node metadata only.
    Elsewhere(Workload),
}

/// A place's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PlaceKey {
    Program(PodKey, Named),
    Outside(IpAddr, Option<u16>),
}

/// Role and name of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Named {
    pub(super) role: ProgramRole,
    pub(super) name: Option<String>,
}

impl Named {
    const fn nameless(role: ProgramRole) -> Self {
        Self { role, name: None }
    }
}

/// Values by key; where a key has two that differ, neither is told.
struct Unique<K, V>(HashMap<K, Option<V>>);

impl<K: Eq + Hash, V: PartialEq> Unique<K, V> {
    fn new() -> Self {
        Self(HashMap::new())
    }
    fn add(&mut self, key: K, value: V) {
        match self.0.get_mut(&key) {
            None => drop(self.0.insert(key, Some(value))),
            Some(known) if known.as_ref() == Some(&value) => {}
            Some(known) => *known = None,
        }
    }
    fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)?.as_ref()
    }
}

/// Everything that tells who is where.
pub(super) struct Whereabouts<'a> {
    endpoints: &'a [Endpoint],
    logs: &'a Logs,
    directory: &'a dyn Directory,
    processes: HashMap<Tgid, &'a Process>,
    /// Recorded namespaces by the addresses of their sockets.
    netns_at: Unique<IpAddr, NetnsId>,
    /// The program that accepts on a port of a namespace.
    listeners: Unique<(NetnsId, u16), Named>,
    /// The sidecar of a namespace.
    sidecars: Unique<NetnsId, Named>,
}

impl<'a> Whereabouts<'a> {
    pub(super) fn of(
        endpoints: &'a [Endpoint],
        connections: &[Connection],
        processes: &'a [Process],
        logs: &'a Logs,
        directory: &'a dyn Directory,
    ) -> Self {
        let mut all = Self {
            endpoints,
            logs,
            directory,
            processes: processes.iter().map(|p| (p.tgid, p)).collect(),
            netns_at: Unique::new(),
            listeners: Unique::new(),
            sidecars: Unique::new(),
        };
        for process in processes.iter().filter(|p| p.role == ProcessRole::Sidecar) {
            all.sidecars.add(process.netns, named(process));
        }
        for e in endpoints {
            let ip = e.socket.local.ip();
            if !(ip.is_loopback() || passthrough(ip) || ip.is_unspecified()) {
                all.netns_at.add(ip, e.socket.netns);
            }
        }
        for server in connections.iter().filter_map(|c| c.server) {
            let socket = &endpoints[server].socket;
            if let Some(process) = all.process(socket) {
                let program = named(process);
                all.listeners.add((socket.netns, socket.local.port()), program);
            }
        }
        all
    }

    fn process(&self, socket: &Socket) -> Option<&'a Process> {
        self.processes.get(&socket.owner?).copied()
    }

    /// The program that a socket belongs to.
    pub(super) fn owner(&self, socket: &Socket) -> PlaceKey {
        let program = match self.process(socket) {
            Some(process) => named(process),
            // Istio's ports and its passthrough address are the sidecar's, whoever was seen to use the socket.
            None if is_redirected(socket) || passthrough(socket.local.ip()) => self.sidecar(socket.netns),
            None => Named::nameless(ProgramRole::Unknown),
        };
        PlaceKey::Program(PodKey::Here(socket.netns), program)
    }

    fn sidecar(&self, netns: NetnsId) -> Named {
        self.sidecars.get(&netns).cloned().unwrap_or(Named::nameless(ProgramRole::Sidecar))
    }

    fn listener(&self, netns: NetnsId, port: u16, otherwise: ProgramRole) -> Named {
        self.listeners.get(&(netns, port)).cloned().unwrap_or(Named::nameless(otherwise))
    }

    /// The two ends of a connection, the connecting one first, and how the peers are known.
    pub(super) fn ends(&self, connection: &Connection) -> Option<(PlaceKey, PlaceKey, PeerKnownBy)> {
        let socket = |i: usize| &self.endpoints[i].socket;
        Some(match (connection.client, connection.server) {
            (Some(c), Some(s)) => {
                let known_by = if connection.proven { PeerKnownBy::Matched } else { PeerKnownBy::Inferred };
                (self.owner(socket(c)), self.owner(socket(s)), known_by)
            }
            (Some(c), None) => {
                let (peer, known_by) = self.acceptor(socket(c));
                (self.owner(socket(c)), peer, known_by)
            }
            (None, Some(s)) => {
                let (peer, known_by) = self.connector(socket(s));
                (peer, self.owner(socket(s)), known_by)
            }
            (None, None) => return None,
        })
    }

    /// Who accepted the connection of a socket whose other end was not seen.
    fn acceptor(&self, socket: &Socket) -> (PlaceKey, PeerKnownBy) {
        let here = |program| (PlaceKey::Program(PodKey::Here(socket.netns), program), PeerKnownBy::Inferred);
        let remote = socket.remote.0;
        if remote.ip().is_loopback() || passthrough(socket.local.ip()) {
            return here(self.listener(socket.netns, remote.port(), ProgramRole::Unknown));
        }
        // The proxy that says that it accepted from this very address: the pod's own one (a REDIRECT), or the peer's.
        if let Some(log) = self.logs.acceptor(socket.local.0, life(socket))
            && let Some(pod) = self.pod_of(log)
        {
            return (self.sidecar_at(pod), PeerKnownBy::Inferred);
        }
        self.at(remote.ip()).map_or(
            (PlaceKey::Outside(remote.ip(), Some(remote.port())), PeerKnownBy::Unknown),
            |pod| {
                let program = match &pod {
                    // Where a sidecar is, what comes from outside of the pod is redirected to it.
                    PodKey::Here(netns) if *netns != socket.netns && self.sidecars.get(netns).is_some() => {
                        self.sidecar(*netns)
                    }
                    PodKey::Here(netns) => self.listener(*netns, remote.port(), ProgramRole::Unknown),
                    PodKey::Elsewhere(_) => Named::nameless(ProgramRole::Unknown),
                };
                (PlaceKey::Program(pod, program), PeerKnownBy::Inferred)
            },
        )
    }

    /// Who made the connection that a socket accepted, where the other end was not seen.
    fn connector(&self, socket: &Socket) -> (PlaceKey, PeerKnownBy) {
        let here = |program| (PlaceKey::Program(PodKey::Here(socket.netns), program), PeerKnownBy::Inferred);
        let remote = socket.remote.0;
        if passthrough(remote.ip()) {
            return here(self.sidecar(socket.netns));
        }
        if let Some(log) = self.logs.connector(remote, life(socket))
            && let Some(pod) = self.pod_of(log)
        {
            return (self.sidecar_at(pod), PeerKnownBy::Inferred);
        }
        if socket.local.port() == OUTBOUND_PORT {
            // What the outbound listener takes in was redirected in the pod itself: it comes from its applications.
            return here(Named::nameless(ProgramRole::Application));
        }
        if remote.ip().is_loopback() || self.netns_at.get(&remote.ip()) == Some(&socket.netns) {
            return here(Named::nameless(ProgramRole::Unknown));
        }
        match self.at(remote.ip()) {
            Some(pod) => (PlaceKey::Program(pod, Named::nameless(ProgramRole::Unknown)), PeerKnownBy::Inferred),
            None => (PlaceKey::Outside(remote.ip(), None), PeerKnownBy::Unknown),
        }
    }

    /// The pod at an address: a recorded one, or one that node metadata names.
    fn at(&self, ip: IpAddr) -> Option<PodKey> {
        if let Some(netns) = self.netns_at.get(&ip) {
            return Some(PodKey::Here(*netns));
        }
        self.directory.by_address(ip).map(elsewhere)
    }

    /// The pod of the proxy that wrote a log.
    fn pod_of(&self, log: &Told) -> Option<PodKey> {
        let workload = self.directory.by_proxy(&log.node)?;
        let address = workload.address.as_ref().and_then(|a| a.parse().ok());
        let recorded = address.and_then(|ip: IpAddr| self.netns_at.get(&ip));
        Some(recorded.map_or_else(|| elsewhere(workload), |netns| PodKey::Here(*netns)))
    }

    fn sidecar_at(&self, pod: PodKey) -> PlaceKey {
        let program = match &pod {
            PodKey::Here(netns) => self.sidecar(*netns),
            PodKey::Elsewhere(_) => Named::nameless(ProgramRole::Sidecar),
        };
        PlaceKey::Program(pod, program)
    }
}

/// The same pod may be known by several addresses.
fn elsewhere(workload: Workload) -> PodKey {
    let address = if workload.pod.is_some() { None } else { workload.address };
    PodKey::Elsewhere(Workload { address, service: None, ..workload })
}

fn named(process: &Process) -> Named {
    let role = match process.role {
        ProcessRole::Sidecar => ProgramRole::Sidecar,
        ProcessRole::Application => ProgramRole::Application,
    };
    Named { role, name: Some(process.comm.clone()) }
}

/// From when until when a socket was seen.
pub(super) fn life(socket: &Socket) -> (MonotonicNs, MonotonicNs) {
    (socket.first_seen, socket.last_seen)
}
