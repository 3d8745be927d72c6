//! Which workload an address, a proxy or a namespace belongs to, by what the proxies say of themselves.

use meshdiff_model::{NetnsId, NodeId, Proxy, Socket, Workload, WorkloadSource, normalise_ip};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The workloads that are known.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    by_node: BTreeMap<NodeId, Workload>,
    by_ip: BTreeMap<IpAddr, Workload>,
    /// The addresses that proxies have in their node ids, with the proxies.
    proxies_at: BTreeMap<IpAddr, BTreeSet<NodeId>>,
}

impl Owners {
    /// What proxies say of themselves.
    ///
    /// Where two proxies claim one address (a pod's address was given to the next pod, or a gateway runs in the host's
    /// network), only what both say is kept: a workload is never guessed.
    #[must_use]
    pub fn from_proxies(proxies: &[Proxy]) -> Self {
        let mut owners = Self::default();
        for proxy in proxies {
            let mut addresses: BTreeSet<IpAddr> = proxy.instance_ips.iter().copied().map(normalise_ip).collect();
            addresses.extend(proxy.address.map(normalise_ip));
            let workload = Workload {
                namespace: proxy.namespace.clone(),
                workload: proxy.workload.clone(),
                service: proxy.service.clone(),
                pod: proxy.pod.clone(),
                address: proxy.address.map(|ip| normalise_ip(ip).to_string()),
                source: WorkloadSource::Als,
            };
            for ip in addresses.into_iter().filter(|&ip| identifies_a_pod(ip)) {
                let claim = Workload { address: Some(ip.to_string()), ..workload.clone() };
                owners.by_ip.entry(ip).and_modify(|known| keep_common(known, &claim)).or_insert(claim);
            }
            if let Some(ip) = proxy.address.map(normalise_ip).filter(|&ip| identifies_a_pod(ip)) {
                owners.proxies_at.entry(ip).or_default().insert(proxy.node.clone());
            }
            owners.by_node.insert(proxy.node.clone(), workload);
        }
        owners
    }

    /// The workload at an address. One that nobody claims is [`WorkloadSource::Unknown`] and has only its address.
    #[must_use]
    pub fn workload_of_ip(&self, ip: IpAddr) -> Workload {
        let ip = normalise_ip(ip);
        let unknown = || Workload { address: Some(ip.to_string()), ..Workload::unknown() };
        self.by_ip.get(&ip).cloned().unwrap_or_else(unknown)
    }

    /// The workload that a proxy stands for. One that never said anything of itself is [`WorkloadSource::Unknown`], with the
    /// address that its node id names, if it does.
    #[must_use]
    pub fn workload_of_node(&self, node: &NodeId) -> Workload {
        self.by_node.get(node).cloned().unwrap_or_else(|| Workload {
            address: address_in_node_id(&node.0).map(|ip| ip.to_string()),
            ..Workload::unknown()
        })
    }

    /// The workloads of network namespaces: a namespace is a pod's if the pod's proxy has an address that a socket of
    /// the namespace has as its own. A namespace with sockets at the addresses of several proxies is left out.
    #[must_use]
    pub fn workloads_of_netns(&self, sockets: &[Socket]) -> BTreeMap<NetnsId, Workload> {
        let mut found: BTreeMap<NetnsId, BTreeSet<&NodeId>> = BTreeMap::new();
        for socket in sockets {
            if let Some(nodes) = self.proxies_at.get(&normalise_ip(socket.local.ip())) {
                found.entry(socket.netns).or_default().extend(nodes);
            }
        }
        found
            .into_iter()
            .filter(|(_, nodes)| nodes.len() == 1)
            .filter_map(|(netns, nodes)| Some((netns, self.by_node.get(*nodes.first()?)?.clone())))
            .collect()
    }
}

/// Loopback, unspecified and multicast addresses are everyone's, or no one's.
fn identifies_a_pod(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn keep_common(known: &mut Workload, claim: &Workload) {
    fn keep(known: &mut Option<String>, claim: &Option<String>) {
        if known != claim {
            *known = None;
        }
    }
    // A workload or service of one name in two namespaces is not the same.
    let same_namespace = known.namespace == claim.namespace;
    keep(&mut known.namespace, &claim.namespace);
    keep(&mut known.pod, &claim.pod);
    if same_namespace {
        keep(&mut known.workload, &claim.workload);
        keep(&mut known.service, &claim.service);
    } else {
        (known.workload, known.service, known.pod) = (None, None, None);
    }
    if (&known.namespace, &known.workload, &known.service, &known.pod) == (&None, &None, &None, &None) {
        known.source = WorkloadSource::Unknown;
    }
}

/// The second part of `sidecar~10.77.0.2~productpage-v1-abc.default~default.svc.cluster.local`.
fn address_in_node_id(id: &str) -> Option<IpAddr> {
    id.split('~').nth(1)?.parse().ok().map(normalise_ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_model::{LocalAddr, MonotonicNs, PeerAddr, ProxyKind, SocketCookie};
    use proptest::prelude::*;

    fn proxy(ip: &str, namespace: &str, workload: &str, pod: &str) -> Proxy {
        Proxy {
            node: NodeId(format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local").into()),
            kind: ProxyKind::Sidecar,
            address: ip.parse().ok(),
            instance_ips: ip.parse().into_iter().collect(),
            pod: Some(pod.into()),
            namespace: Some(namespace.into()),
            workload: Some(workload.into()),
            owner: None,
            service: Some("reviews".into()),
            version: None,
            cluster_id: None,
            node_name: None,
            locality: None,
            istio_version: None,
            envoy_version: None,
            interception_mode: None,
            labels: BTreeMap::new(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn socket(netns: u32, local: &str) -> Socket {
        Socket {
            cookie: SocketCookie(1),
            netns: NetnsId(netns),
            local: LocalAddr(local.parse().expect("an address")),
            remote: PeerAddr("10.0.0.9:80".parse().expect("an address")),
            owner: None,
            connect_start: None,
            established: None,
            closed: None,
            first_seen: MonotonicNs(0),
            last_seen: MonotonicNs(0),
            srtt: None,
            lost_events: 0,
            role: None,
            handshake: None,
            connect_error: None,
            close: None,
            tls: None,
        }
    }

    #[test]
    fn addresses_and_nodes_lead_to_workloads() {
        let mut one = proxy("10.77.0.3", "default", "reviews-v1", "reviews-v1-abc");
        one.instance_ips.extend([ip("2001:db8::3"), ip("127.0.0.1")]);
        let owners = Owners::from_proxies(std::slice::from_ref(&one));
        for address in ["10.77.0.3", "::ffff:10.77.0.3", "2001:db8::3"] {
            let workload = owners.workload_of_ip(ip(address));
            assert_eq!(workload.workload.as_deref(), Some("reviews-v1"), "{address}");
            assert_eq!(workload.source, WorkloadSource::Als);
        }
        assert_eq!(owners.workload_of_ip(ip("::ffff:10.77.0.3")).address.as_deref(), Some("10.77.0.3"));
        assert_eq!(owners.workload_of_node(&one.node).pod.as_deref(), Some("reviews-v1-abc"));
        let loopback = owners.workload_of_ip(ip("127.0.0.1"));
        assert_eq!((loopback.source, loopback.address.as_deref()), (WorkloadSource::Unknown, Some("127.0.0.1")));
        let stranger = owners.workload_of_node(&NodeId("sidecar~10.1.2.3~x.y~z".into()));
        assert_eq!((stranger.source, stranger.address.as_deref()), (WorkloadSource::Unknown, Some("10.1.2.3")));
    }

    #[test]
    fn of_two_claims_only_what_both_say_is_kept() {
        let same = Owners::from_proxies(&[
            proxy("10.0.0.1", "default", "reviews-v1", "a"),
            proxy("10.0.0.1", "default", "reviews-v1", "b"),
        ])
        .workload_of_ip(ip("10.0.0.1"));
        assert_eq!((same.workload.as_deref(), same.pod), (Some("reviews-v1"), None));
        let other = Owners::from_proxies(&[
            proxy("10.0.0.1", "default", "reviews-v1", "a"),
            proxy("10.0.0.1", "prod", "reviews-v1", "a"),
        ])
        .workload_of_ip(ip("10.0.0.1"));
        assert_eq!((other.workload, other.namespace, other.source), (None, None, WorkloadSource::Unknown));
        assert_eq!(other.address.as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn a_namespace_is_the_pods_whose_address_it_has() {
        let owners =
            Owners::from_proxies(&[proxy("10.0.0.1", "default", "one", "a"), proxy("10.0.0.2", "default", "two", "b")]);
        let sockets = [
            socket(7, "127.0.0.1:15001"),
            socket(7, "10.0.0.1:40000"),
            socket(8, "127.0.0.6:1"),
            socket(9, "10.0.0.1:15006"),
            socket(9, "10.0.0.2:15006"),
            socket(6, "[::ffff:10.0.0.2]:15006"),
        ];
        let found = owners.workloads_of_netns(&sockets);
        let names: Vec<_> = found.iter().map(|(id, w)| (id.0, w.workload.as_deref().expect("named"))).collect();
        assert_eq!(names, [(6, "two"), (7, "one")]);
    }

    proptest! {
        #[test]
        fn any_node_id_is_survived(id in any::<String>()) {
            let owners = Owners::from_proxies(&[]);
            prop_assert_eq!(owners.workload_of_node(&NodeId(id.as_str().into())).source, WorkloadSource::Unknown);
        }
    }
}
