//! What `internalTrafficPolicy: Local` does in a cluster: each sidecar's log stream goes to the agent of its own node.

use meshdiff_cluster::network::within;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Who logs to whom. Connections of pods that are on no node are refused, as those of a pod that is not there yet.
#[derive(Clone, Default)]
pub(crate) struct LocalService(Arc<Mutex<HashMap<IpAddr, SocketAddr>>>);

impl LocalService {
    /// Serves at a port of the network in which the sidecars are, until the process ends. Agents are in the cluster's network.
    pub(crate) fn start(port: u16) -> Self {
        let service = Self::default();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port that the sidecars log to");
        let routes = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let agent = stream.peer_addr().ok().and_then(|peer| routes.agent_of(peer.ip()));
                // An agent that is away refuses: the sidecar asks again.
                let Some(onward) = agent.and_then(connect) else { continue };
                pass_on(stream, onward);
            }
        });
        service
    }

    /// From now on a pod is on the node of an agent.
    pub(crate) fn put(&self, pod: IpAddr, agent: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pod, agent);
    }

    fn agent_of(&self, pod: IpAddr) -> Option<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&pod).copied()
    }
}

fn connect(agent: SocketAddr) -> Option<TcpStream> {
    within(move || TcpStream::connect_timeout(&agent, Duration::from_secs(5)).ok())
}

/// Both ways, until either end is gone.
fn pass_on(a: TcpStream, b: TcpStream) {
    let both = || Ok::<_, io::Error>((a.try_clone()?, b.try_clone()?));
    let Ok((a2, b2)) = both() else { return };
    for (mut from, mut to) in [(a, b), (b2, a2)] {
        std::thread::spawn(move || {
            drop(io::copy(&mut from, &mut to));
            drop(from.shutdown(Shutdown::Both));
            drop(to.shutdown(Shutdown::Both));
        });
    }
}
