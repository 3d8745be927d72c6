//! Which workload an address, a proxy or a namespace belongs to, by what the proxies say of themselves and by what Kubernetes said of pods.
//!
//! An address is given to one pod after the other. Kubernetes tells when; of proxies alone, when each of them logged does. A lookup that names
//! an instant gets who had the address then, one without only what is true of everybody who had it.

use meshdiff_model::{
    Fact, Locality, NetnsId, NodeId, NotKnown, PodFacts, PodRecord, Proxy, Socket, Tenure, WallTime, Workload,
    WorkloadSource, normalise_ip,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The workloads that are known.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    by_node: BTreeMap<NodeId, Workload>,
    pods: Vec<Pod>,
    /// Who had an address, as places in `pods`.
    by_ip: BTreeMap<IpAddr, Vec<usize>>,
    /// Who had a name, by namespace and pod.
    by_name: HashMap<String, HashMap<String, Vec<usize>>>,
    /// The addresses that proxies have in their node ids, with the proxies.
    proxies_at: BTreeMap<IpAddr, BTreeSet<NodeId>>,
}

/// A pod that says who it is, or of which Kubernetes said it.
#[derive(Clone, Debug)]
struct Pod {
    workload: Workload,
    addresses: BTreeSet<IpAddr>,
    tenure: Tenure,
    /// Who says since when and until when.
    told_by: ToldBy,
    zone: Option<Arc<str>>,
    version: Option<Arc<str>>,
    node: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldBy {
    /// Nobody.
    Nobody,
    /// When its proxy logged: it had its address for longer than that.
    Logs,
    /// The Kubernetes API.
    Kubernetes,
}

impl Owners {
    /// What proxies say of themselves.
    ///
    /// Where two proxies claim one address (a pod's address was given to the next pod, or a gateway runs in the host's
    /// network), only what both say is kept: a workload is never guessed.
    #[must_use]
    pub fn from_proxies(proxies: &[Proxy]) -> Self {
        Self::of(proxies, &[], &BTreeMap::new())
    }

    /// The proxies that claim an address which somebody else claims, too: of these it matters when they logged.
    #[must_use]
    pub fn contested(proxies: &[Proxy], records: &[PodRecord]) -> HashSet<NodeId> {
        let mut names: HashMap<IpAddr, BTreeSet<(&str, &str)>> = HashMap::new();
        for record in records {
            for ip in &record.addresses {
                names.entry(normalise_ip(*ip)).or_default().insert((&record.namespace, &record.name));
            }
        }
        let mut nodes: HashMap<IpAddr, BTreeSet<&NodeId>> = HashMap::new();
        for proxy in proxies {
            let name = (proxy.namespace.as_deref().unwrap_or_default(), proxy.pod.as_deref().unwrap_or_default());
            for ip in proxy.instance_ips.iter().copied().chain(proxy.address).map(normalise_ip) {
                nodes.entry(ip).or_default().insert(&proxy.node);
                names.entry(ip).or_default().insert(name);
            }
        }
        let several =
            |ip: &IpAddr, nodes: &BTreeSet<&NodeId>| nodes.len() > 1 || names.get(ip).is_some_and(|n| n.len() > 1);
        nodes
            .iter()
            .filter(|(ip, nodes)| several(ip, nodes))
            .flat_map(|(_, nodes)| nodes)
            .map(|n| (*n).clone())
            .collect()
    }

    /// What proxies say of themselves and Kubernetes said of pods. `logged` has when each proxy's first and last logged request began.
    #[must_use]
    pub fn of(proxies: &[Proxy], records: &[PodRecord], logged: &BTreeMap<NodeId, (WallTime, WallTime)>) -> Self {
        let mut owners = Self::default();
        for record in records {
            owners.pods.push(Pod::of_record(record));
        }
        for proxy in proxies {
            let address = proxy.address.map(normalise_ip);
            let mut addresses: BTreeSet<IpAddr> = proxy.instance_ips.iter().copied().map(normalise_ip).collect();
            addresses.extend(address);
            addresses.retain(|ip| identifies_a_pod(*ip));
            let workload = Workload {
                namespace: proxy.namespace.clone(),
                workload: proxy.workload.clone(),
                service: proxy.service.clone(),
                pod: proxy.pod.clone(),
                address: address.map(|ip| ip.to_string()),
                source: WorkloadSource::Als,
            };
            if let Some(ip) = address.filter(|&ip| identifies_a_pod(ip)) {
                owners.proxies_at.entry(ip).or_default().insert(proxy.node.clone());
            }
            owners.add_proxy(proxy, &workload, addresses, logged.get(&proxy.node).copied());
            owners.by_node.insert(proxy.node.clone(), workload);
        }
        for (i, pod) in owners.pods.iter().enumerate() {
            for ip in pod.addresses.iter().filter(|ip| identifies_a_pod(**ip)) {
                owners.by_ip.entry(*ip).or_default().push(i);
            }
            if let (Some(namespace), Some(name)) = (&pod.workload.namespace, &pod.workload.pod) {
                let of_namespace = owners.by_name.entry(namespace.clone()).or_default();
                of_namespace.entry(name.clone()).or_default().push(i);
            }
        }
        owners
    }

    fn add_proxy(
        &mut self,
        proxy: &Proxy,
        workload: &Workload,
        addresses: BTreeSet<IpAddr>,
        logged: Option<(WallTime, WallTime)>,
    ) {
        let text = |text: &Option<String>| text.as_deref().map(Arc::from);
        let zone = locality_of(proxy).and_then(|l| l.zone_name()).map(Arc::from);
        let (version, node) = (text(&proxy.version), text(&proxy.node_name));
        let mut of_kubernetes = self.pods.iter_mut().filter(|pod| {
            pod.told_by == ToldBy::Kubernetes
                && (&pod.workload.namespace, &pod.workload.pod) == (&workload.namespace, &workload.pod)
                && !pod.addresses.is_disjoint(&addresses)
        });
        // What a sidecar says of itself goes before what Kubernetes says of its pod: it is what Envoy balances load by.
        if let Some(pod) = of_kubernetes.next().filter(|_| of_kubernetes.next().is_none()) {
            pod.addresses.extend(addresses);
            pod.workload = Workload {
                workload: workload.workload.clone().or_else(|| pod.workload.workload.take()),
                service: workload.service.clone().or_else(|| pod.workload.service.take()),
                ..workload.clone()
            };
            pod.zone = zone.or_else(|| pod.zone.take());
            pod.version = version.or_else(|| pod.version.take());
            pod.node = node.or_else(|| pod.node.take());
            return;
        }
        let tenure = |(from, until)| Tenure { from: Some(from), from_is_exact: false, until: Some(until) };
        self.pods.push(Pod {
            workload: workload.clone(),
            addresses,
            tenure: logged.map(tenure).unwrap_or_default(),
            told_by: if logged.is_some() { ToldBy::Logs } else { ToldBy::Nobody },
            zone,
            version,
            node,
        });
    }

    /// The workload at an address. One that nobody claims is [`WorkloadSource::Unknown`] and has only its address.
    #[must_use]
    pub fn workload_of_ip(&self, ip: IpAddr) -> Workload {
        self.claimed(ip, self.claims(ip))
    }

    /// The same at an instant.
    #[must_use]
    pub fn workload_of_ip_at(&self, ip: IpAddr, at: WallTime) -> Workload {
        self.claimed(ip, self.then(self.claims(ip), at))
    }

    fn claims(&self, ip: IpAddr) -> Vec<&Pod> {
        self.by_ip.get(&normalise_ip(ip)).into_iter().flatten().filter_map(|i| self.pods.get(*i)).collect()
    }

    /// Those that were there at an instant, as far as can be told.
    fn then<'a>(&self, claims: Vec<&'a Pod>, at: WallTime) -> Vec<&'a Pod> {
        // Who is the only one that ever said to have it had it also a little before and after it is known to.
        if let [only] = claims[..]
            && only.workload.source == WorkloadSource::Als
        {
            return claims;
        }
        // Of proxies that logged nothing nobody knows whether they were there at all while others were.
        let told: Vec<&Pod> = claims.iter().copied().filter(|p| p.told_by != ToldBy::Nobody).collect();
        if told.is_empty() {
            return claims;
        }
        let held = Tenure::at(at, told.iter().copied(), |p| p.tenure);
        if !held.is_empty() {
            return held;
        }
        // Between what two of them logged it may have been either's, and before and after it the first one's and the last one's.
        let logs: Vec<&Pod> = told.into_iter().filter(|p| p.told_by == ToldBy::Logs).collect();
        let before = logs.iter().filter(|p| p.tenure.until < Some(at)).max_by_key(|p| p.tenure.until);
        let after = logs.iter().filter(|p| p.tenure.from > Some(at)).min_by_key(|p| p.tenure.from);
        [before, after].into_iter().flatten().copied().collect()
    }

    /// What is true of all that claim an address.
    fn claimed(&self, ip: IpAddr, claims: Vec<&Pod>) -> Workload {
        let ip = normalise_ip(ip);
        let at = |pod: &Pod| Workload { address: Some(ip.to_string()), ..pod.workload.clone() };
        let mut claims = claims.into_iter().map(at);
        let Some(mut known) = claims.next() else {
            return Workload { address: Some(ip.to_string()), ..Workload::unknown() };
        };
        claims.for_each(|claim| keep_common(&mut known, &claim));
        known
    }

    /// What is known of the pod at an end of a request that began at an instant.
    #[must_use]
    pub fn facts(&self, end: &Workload, at: WallTime) -> PodFacts {
        let (Some(namespace), Some(pod)) = (&end.namespace, &end.pod) else {
            return PodFacts::unknown(NotKnown::NoPod);
        };
        let named = self.by_name.get(namespace).and_then(|pods| pods.get(pod));
        let mut pods: Vec<&Pod> = named.into_iter().flatten().filter_map(|i| self.pods.get(*i)).collect();
        if pods.len() > 1
            && let Some(ip) = end.address.as_deref().and_then(host)
        {
            pods.retain(|p| p.addresses.contains(&ip));
        }
        if pods.len() > 1 {
            pods = self.then(pods, at);
        }
        if pods.is_empty() {
            return PodFacts::unknown(NotKnown::NoPod);
        }
        let common = |of: fn(&Pod) -> &Option<Arc<str>>| -> Fact {
            let mut values = pods.iter().map(|p| of(p));
            let first = values.next().cloned().flatten();
            if values.any(|other| *other != first) { Err(NotKnown::Ambiguous) } else { first.ok_or(NotKnown::NotSaid) }
        };
        PodFacts { zone: common(|p| &p.zone), version: common(|p| &p.version), node: common(|p| &p.node) }
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

impl Pod {
    fn of_record(record: &PodRecord) -> Self {
        let addresses: BTreeSet<IpAddr> = record.addresses.iter().copied().map(normalise_ip).collect();
        let some = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
        Self {
            workload: Workload {
                namespace: some(&record.namespace),
                workload: some(&record.workload),
                service: record.service.clone(),
                pod: some(&record.name),
                address: record.addresses.first().map(|ip| normalise_ip(*ip).to_string()),
                source: WorkloadSource::Kubernetes,
            },
            addresses,
            tenure: record.tenure,
            told_by: ToldBy::Kubernetes,
            zone: record.locality.as_ref().and_then(Locality::zone_name).map(Arc::from),
            version: record.version.as_deref().map(Arc::from),
            node: record.node.as_deref().map(Arc::from),
        }
    }
}

/// Where a proxy runs: by what Envoy was told, else by its pod's labels.
fn locality_of(proxy: &Proxy) -> Option<Locality> {
    let told = proxy.locality.as_deref().and_then(Locality::parse);
    told.filter(|l| l.zone.is_some()).or_else(|| Locality::of_labels(&proxy.labels))
}

/// The address in `IP` or `IP:port`.
fn host(address: &str) -> Option<IpAddr> {
    let with_port = || address.parse::<std::net::SocketAddr>().ok().map(|a| a.ip());
    address.parse().ok().or_else(with_port).map(normalise_ip)
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

    fn record(ip: &str, workload: &str, pod: &str, from: i64, until: Option<i64>) -> PodRecord {
        PodRecord {
            uid: format!("uid-{pod}"),
            namespace: "default".into(),
            name: pod.into(),
            addresses: vec![self::ip(ip)],
            workload: workload.into(),
            workload_kind: "Deployment".into(),
            node: Some("node-7".into()),
            locality: Locality::of("eu", "eu-1a", ""),
            tenure: Tenure { from: Some(WallTime(from)), from_is_exact: false, until: until.map(WallTime) },
            ..PodRecord::default()
        }
    }

    fn at(owners: &Owners, address: &str, at: i64) -> Option<String> {
        owners.workload_of_ip_at(ip(address), WallTime(at)).workload
    }

    #[test]
    fn an_address_that_two_pods_had_is_named_for_each_time() {
        let records =
            [record("10.0.0.1", "old", "old-1", 100, Some(200)), record("10.0.0.1", "new", "new-1", 300, None)];
        let owners = Owners::of(&[], &records, &BTreeMap::new());
        assert_eq!(at(&owners, "10.0.0.1", 150).as_deref(), Some("old"));
        assert_eq!(at(&owners, "10.0.0.1", 301).as_deref(), Some("new"));
        assert_eq!((at(&owners, "10.0.0.1", 99), at(&owners, "10.0.0.1", 250)), (None, None), "nobody had it");
        assert_eq!(owners.workload_of_ip(ip("10.0.0.1")).workload, None, "without a time it may be either's");
        let known = owners.workload_of_ip_at(ip("10.0.0.1"), WallTime(150));
        assert_eq!((known.source, known.pod.as_deref()), (WorkloadSource::Kubernetes, Some("old-1")));
    }

    #[test]
    fn where_only_proxies_tell_when_they_logged_does() {
        let proxies = [proxy("10.0.0.1", "default", "old", "old-1"), proxy("10.0.0.1", "default", "new", "new-1")];
        let contested = Owners::contested(&proxies, &[record("10.0.0.9", "x", "x-1", 0, None)]);
        assert!(contested.len() == 2 && Owners::contested(&proxies[..1], &[]).is_empty());
        assert_eq!(Owners::contested(&proxies[..1], &[record("10.0.0.1", "x", "x-1", 0, None)]).len(), 1);
        let logged = |list: &[(usize, i64, i64)]| -> BTreeMap<NodeId, (WallTime, WallTime)> {
            list.iter().map(|(i, a, b)| (proxies[*i].node.clone(), (WallTime(*a), WallTime(*b)))).collect()
        };
        let owners = Owners::of(&proxies, &[], &logged(&[(0, 100, 200), (1, 300, 400)]));
        let names = [50, 150, 200, 350, 500].map(|t| at(&owners, "10.0.0.1", t));
        assert_eq!(
            names.each_ref().map(Option::as_deref),
            [Some("old"), Some("old"), Some("old"), Some("new"), Some("new")]
        );
        let between = owners.workload_of_ip_at(ip("10.0.0.1"), WallTime(250));
        assert_eq!(
            (between.workload, between.namespace.as_deref()),
            (None, Some("default")),
            "either's, so what both say"
        );
        // Both at once: a gateway in its node's network, say.
        let owners = Owners::of(&proxies, &[], &logged(&[(0, 100, 350), (1, 300, 400)]));
        assert_eq!((at(&owners, "10.0.0.1", 320), at(&owners, "10.0.0.1", 200).as_deref()), (None, Some("old")));
        // One that logged nothing is not known to have been there.
        let owners = Owners::of(&proxies, &[], &logged(&[(1, 300, 400)]));
        assert_eq!(at(&owners, "10.0.0.1", 200).as_deref(), Some("new"));
        let owners = Owners::of(&proxies, &[], &BTreeMap::new());
        assert_eq!(at(&owners, "10.0.0.1", 200), None);
    }

    #[test]
    fn a_sidecar_and_its_pod_are_one_and_the_sidecar_goes_first() {
        let mut own = proxy("10.0.0.1", "default", "reviews-v1", "reviews-v1-abc");
        own.version = Some("v1".into());
        own.labels.insert("istio-locality".into(), "us.us-9".into());
        let mut of_api = record("10.0.0.1", "reviews", "reviews-v1-abc", 100, Some(200));
        of_api.version = Some("v9".into());
        let later = record("10.0.0.1", "batch", "batch-1", 300, None);
        let owners = Owners::of(std::slice::from_ref(&own), &[of_api, later], &BTreeMap::new());
        assert_eq!(at(&owners, "10.0.0.1", 150).as_deref(), Some("reviews-v1"), "with the API's times");
        assert_eq!(at(&owners, "10.0.0.1", 350).as_deref(), Some("batch"));
        let end = owners.workload_of_node(&own.node);
        let facts = owners.facts(&end, WallTime(150));
        assert_eq!((facts.zone.as_deref(), facts.version.as_deref()), (Ok("us-9"), Ok("v1")));
        assert_eq!(facts.node.as_deref(), Ok("node-7"), "which only the API says");
    }

    #[test]
    fn what_is_not_known_of_a_pod_says_why() {
        let proxies = [proxy("10.0.0.1", "default", "db", "db-0")];
        let moved = [record("10.0.0.2", "db", "db-9", 0, Some(100)), record("10.0.0.3", "db", "db-9", 200, None)];
        let mut moved = moved.to_vec();
        moved[1].locality = Locality::of("eu", "eu-1b", "");
        let owners = Owners::of(&proxies, &moved, &BTreeMap::new());
        let pod = |name: &str, address: Option<&str>| Workload {
            namespace: Some("default".into()),
            pod: Some(name.into()),
            address: address.map(str::to_owned),
            ..Workload::unknown()
        };
        let zone = |end: &Workload, at: i64| owners.facts(end, WallTime(at)).zone;
        assert_eq!(zone(&pod("db-0", None), 50), Err(NotKnown::NotSaid));
        assert_eq!(zone(&pod("stranger", None), 50), Err(NotKnown::NoPod));
        assert_eq!(zone(&Workload::unknown(), 50), Err(NotKnown::NoPod));
        // A StatefulSet's pod keeps its name where it goes: told by its address, or by the time.
        assert_eq!(zone(&pod("db-9", Some("10.0.0.3:5432")), 250).as_deref(), Ok("eu-1b"));
        assert_eq!(zone(&pod("db-9", None), 50).as_deref(), Ok("eu-1a"));
        let both = [record("10.0.0.2", "db", "db-9", 0, None), moved[1].clone()];
        let facts = Owners::of(&[], &both, &BTreeMap::new()).facts(&pod("db-9", None), WallTime(300));
        assert_eq!((facts.zone, facts.node.as_deref()), (Err(NotKnown::Ambiguous), Ok("node-7")));
    }

    proptest! {
        #[test]
        fn any_node_id_is_survived(id in any::<String>()) {
            let owners = Owners::from_proxies(&[]);
            prop_assert_eq!(owners.workload_of_node(&NodeId(id.as_str().into())).source, WorkloadSource::Unknown);
        }
    }
}
