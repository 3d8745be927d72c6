//! What is known of a cluster.

use super::holders::Holders;
use super::objects::{Controller, Node, Pod, Service};
use meshdiff_model::{
    Locality, PodRecord, SERVICE_LABELS, VERSION_LABELS, WallTime, Workload, WorkloadSource, normalise_ip,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pods that have ended are remembered this long: for as long as a window reaches back.
const REMEMBERED_NS: i64 = 2 * 3_600 * 1_000_000_000;
/// And at most this many of them.
const MOST_ENDED: usize = 20_000;

/// Pods, what made them, services and nodes, as of the last word of the API server.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pods: BTreeMap<String, Pod>,
    holders: Holders,
    ended: usize,
    /// What made ReplicaSets and Jobs, by their identity.
    makers: BTreeMap<String, Controller>,
    services: BTreeMap<(String, String), Service>,
    service_at: BTreeMap<IpAddr, (String, String)>,
    nodes: BTreeMap<String, Node>,
}

impl Cluster {
    /// Takes note of a pod.
    pub(crate) fn put_pod(&mut self, pod: Pod) {
        if let Some(old) = self.pods.remove(&pod.uid) {
            self.holders.remove(&old);
            self.ended -= usize::from(old.tenure.until.is_some());
            let mut pod = pod;
            if pod.addresses.is_empty() {
                // A pod that ends loses its addresses before it goes; it had them all the same.
                pod.addresses = old.addresses;
            }
            // The first end that was told is the nearest to the truth.
            pod.tenure.until = old.tenure.until.or(pod.tenure.until);
            if old.tenure.from_is_exact && !pod.tenure.from_is_exact {
                (pod.tenure.from, pod.tenure.from_is_exact) = (old.tenure.from, true);
            }
            return self.insert(pod);
        }
        self.insert(pod);
    }

    fn insert(&mut self, pod: Pod) {
        self.ended += usize::from(pod.tenure.until.is_some());
        self.holders.add(&pod);
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Takes note of a pod's end.
    pub(crate) fn end_pod(&mut self, uid: &str, at: WallTime) {
        if let Some(pod) = self.pods.get_mut(uid)
            && pod.tenure.until.is_none()
        {
            pod.tenure.until = Some(at);
            self.ended += 1;
        }
        self.forget(at);
    }

    /// Takes note of all pods that there are: those that are not among them have ended meanwhile.
    pub(crate) fn only_pods(&mut self, there: &BTreeSet<String>, at: WallTime) {
        let gone: Vec<String> = self.pods.keys().filter(|uid| !there.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.end_pod(uid, at));
    }

    fn forget(&mut self, now: WallTime) {
        let mut ended: Vec<(WallTime, String)> = if self.ended == 0 {
            vec![]
        } else {
            self.pods.values().filter_map(|p| Some((p.tenure.until?, p.uid.clone()))).collect()
        };
        ended.sort_unstable();
        let too_many = ended.len().saturating_sub(MOST_ENDED);
        for (i, (until, uid)) in ended.into_iter().enumerate() {
            if (i < too_many || now.0.saturating_sub(until.0) > REMEMBERED_NS)
                && let Some(pod) = self.pods.remove(&uid)
            {
                self.holders.remove(&pod);
                self.ended -= 1;
            }
        }
    }

    pub(crate) fn put_maker(&mut self, uid: String, maker: Option<Controller>) {
        match maker {
            Some(maker) => _ = self.makers.insert(uid, maker),
            None => _ = self.makers.remove(&uid),
        }
    }

    pub(crate) fn put_service(&mut self, service: Service) {
        let key = (service.namespace.clone(), service.name.clone());
        self.remove_service(&key);
        self.service_at.extend(service.addresses.iter().map(|ip| (*ip, key.clone())));
        self.services.insert(key, service);
    }

    pub(crate) fn remove_service(&mut self, key: &(String, String)) {
        if self.services.remove(key).is_some() {
            self.service_at.retain(|_, k| k != key);
        }
    }

    pub(crate) fn put_node(&mut self, node: Node) {
        self.nodes.insert(node.name.clone(), node);
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    pub(crate) fn service_names(&self) -> impl Iterator<Item = &(String, String)> {
        self.services.keys()
    }

    pub(crate) fn node_names(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// All pods, also those that ended a while ago.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node by its name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The service with a cluster address.
    #[must_use]
    pub fn service_at(&self, ip: IpAddr) -> Option<&Service> {
        self.services.get(self.service_at.get(&normalise_ip(ip))?)
    }

    /// The pod that has an address now.
    #[must_use]
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        self.holders.now(normalise_ip(ip), &self.pods)
    }

    /// The workload that had an address at an instant. Where it passed from one pod to the next around that time, only what is true of both.
    #[must_use]
    pub fn workload_at(&self, ip: IpAddr, at: WallTime) -> Option<Workload> {
        let ip = normalise_ip(ip);
        let mut candidates = self.holders.at(ip, at, &self.pods).into_iter().map(|pod| self.workload_of(pod));
        let mut workload = candidates.next()?;
        for other in candidates {
            if (&other.namespace, &other.workload) != (&workload.namespace, &workload.workload) {
                return None;
            }
            workload.pod = None;
            if other.service != workload.service {
                workload.service = None;
            }
        }
        workload.address = Some(ip.to_string());
        Some(workload)
    }

    /// The workload of a pod: the Deployment, StatefulSet, DaemonSet, Job or CronJob that made it; itself, if nothing did.
    #[must_use]
    pub fn workload_of(&self, pod: &Pod) -> Workload {
        let (_, name) = self.maker_of(pod);
        Workload {
            namespace: Some(pod.namespace.clone()),
            workload: Some(name.to_owned()),
            service: self.service_of(pod).map(|s| s.name.clone()),
            pod: Some(pod.name.clone()),
            address: pod.addresses.first().map(ToString::to_string),
            source: WorkloadSource::Kubernetes,
        }
    }

    /// Kind and name of what made a pod, through a ReplicaSet or a Job to what made that.
    fn maker_of<'a>(&'a self, pod: &'a Pod) -> (&'a str, &'a str) {
        match &pod.controller {
            // The mirror of a static pod: its node is no workload.
            Some(c) if c.kind == "Node" => ("Pod", &pod.name),
            Some(c) => match self.makers.get(&c.uid) {
                Some(maker) => (&maker.kind, &maker.name),
                None => {
                    let deployment = pod.deployment_by_hash().map(|name| ("Deployment", name));
                    let cron_job = || pod.cron_job_by_minute().map(|name| ("CronJob", name));
                    deployment.or_else(cron_job).unwrap_or((&c.kind, &c.name))
                }
            },
            None => ("Pod", &pod.name),
        }
    }

    /// The service behind which a pod is. Of several nobody knows which one was meant.
    fn service_of(&self, pod: &Pod) -> Option<&Service> {
        let mut services = self.services.values().filter(|s| s.selects(pod));
        services.next().filter(|_| services.next().is_none())
    }

    /// What a capture keeps of the pods that have addresses of their own and had them at some time since an instant, in order of namespace,
    /// name and identity.
    #[must_use]
    pub fn records(&self, since: WallTime) -> Vec<PodRecord> {
        let then = |pod: &&Pod| !pod.addresses.is_empty() && pod.tenure.until.is_none_or(|until| since <= until);
        let mut records: Vec<PodRecord> = self.pods.values().filter(then).map(|pod| self.record(pod)).collect();
        records.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        records
    }

    fn record(&self, pod: &Pod) -> PodRecord {
        let (kind, name) = self.maker_of(pod);
        let label = |keys: [&str; 3]| keys.into_iter().find_map(|key| pod.labels.get(key).cloned());
        let of_node = || self.node(pod.node.as_deref()?)?.locality.clone();
        PodRecord {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: pod.addresses.clone(),
            workload: name.to_owned(),
            workload_kind: kind.to_owned(),
            service: self.service_of(pod).map(|s| s.name.clone()).or_else(|| label(SERVICE_LABELS)),
            version: label(VERSION_LABELS),
            node: pod.node.clone(),
            locality: Locality::of_labels(&pod.labels).or_else(of_node),
            tenure: pod.tenure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, at, pod};
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn name(cluster: &Cluster, address: &str, second: i64) -> Option<String> {
        cluster.workload_at(ip(address), at(second)).and_then(|w| w.workload)
    }

    #[test]
    fn workloads_are_found_through_what_made_their_makers() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("reviews-v1-6d8c-x2x", "10.0.0.1", Some(("ReplicaSet", "reviews-v1-6d8c")), 100));
        cluster.put_pod(pod("db-0", "10.0.0.2", Some(("StatefulSet", "db")), 100));
        cluster.put_pod(pod("mail-2891-zzz", "10.0.0.3", Some(("Job", "mail-2891")), 100));
        cluster.put_pod(pod("alone", "10.0.0.4", None, 100));
        cluster.put_pod(pod("kube-proxy-node1", "10.0.0.5", Some(("Node", "node1")), 100));
        let names =
            |c: &Cluster| ["1", "2", "3", "4", "5"].map(|n| name(c, &format!("10.0.0.{n}"), 200).expect("known"));
        // Without access to ReplicaSets the hash of the template tells; a Job's maker nothing does.
        assert_eq!(names(&cluster), ["reviews-v1", "db", "mail-2891", "alone", "kube-proxy-node1"]);
        let maker =
            |kind: &str, name: &str| Controller { kind: kind.into(), name: name.into(), uid: format!("uid-{name}") };
        cluster.put_maker("uid-reviews-v1-6d8c".into(), Some(maker("Deployment", "reviews-v1")));
        cluster.put_maker("uid-mail-2891".into(), Some(maker("CronJob", "mail")));
        assert_eq!(names(&cluster), ["reviews-v1", "db", "mail", "alone", "kube-proxy-node1"]);
        let reviews = cluster.workload_at(ip("::ffff:10.0.0.1"), at(200)).expect("known");
        assert_eq!((reviews.namespace.as_deref(), reviews.source), (Some("default"), WorkloadSource::Kubernetes));
    }

    #[test]
    fn a_cron_job_is_told_by_the_minute_in_its_jobs_name() {
        let mut cluster = Cluster::default();
        // Minute 29,916,666 began in second 1,794,999,960.
        cluster.put_pod(pod("mail-29916666-zzz", "10.0.0.1", Some(("Job", "mail-29916666")), 1_794_999_990));
        // A date, a number of somebody's own, and one of another time are parts of a name.
        cluster.put_pod(pod("import-20261123-zzz", "10.0.0.2", Some(("Job", "import-20261123")), 1_794_999_990));
        cluster.put_pod(pod("mail-29916667-zzz", "10.0.0.3", Some(("Job", "mail-29916667")), 1_700_000_000));
        let names = ["1", "2", "3"].map(|n| name(&cluster, &format!("10.0.0.{n}"), 1_795_000_000).expect("known"));
        assert_eq!(names, ["mail", "import-20261123", "mail-29916667"]);
    }

    #[test]
    fn records_are_of_the_pods_of_a_time() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("b", "10.0.0.1", None, 100));
        cluster.put_pod(pod("a", "10.0.0.2", None, 100));
        let mut host = pod("host", "10.0.0.3", None, 100);
        host.addresses.clear();
        cluster.put_pod(host);
        cluster.end_pod("uid-b", at(200));
        let names = |since: i64| cluster.records(at(since)).into_iter().map(|r| r.name).collect::<Vec<_>>();
        assert_eq!((names(150), names(201)), (vec!["a".to_owned(), "b".to_owned()], vec!["a".to_owned()]));
        assert_eq!(cluster.records(at(0))[0].workload_kind, "Pod");
    }

    #[test]
    fn an_address_belongs_to_one_pod_after_the_other() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("old", "10.0.0.1", None, 100));
        assert_eq!(name(&cluster, "10.0.0.1", 99), None);
        assert_eq!(name(&cluster, "10.0.0.1", 150).as_deref(), Some("old"));
        cluster.end_pod("uid-old", at(200));
        cluster.put_pod(pod("new", "10.0.0.1", None, 300));
        assert_eq!(name(&cluster, "10.0.0.1", 199).as_deref(), Some("old"));
        assert_eq!(name(&cluster, "10.0.0.1", 250), None);
        assert_eq!(name(&cluster, "10.0.0.1", 301).as_deref(), Some("new"));
        assert_eq!(cluster.pod_at(ip("10.0.0.1")).map(|p| p.name.as_str()), Some("new"));
    }

    #[test]
    fn an_end_that_was_learned_late_does_not_take_the_next_ones_address() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("old", "10.0.0.1", None, 100));
        let mut new = pod("new", "10.0.0.1", None, 150);
        cluster.put_pod(new.clone());
        cluster.end_pod("uid-old", at(500));
        // Both seem to have it, and nobody knows since when the later one really does.
        assert_eq!(name(&cluster, "10.0.0.1", 200), None);
        new.tenure.from_is_exact = true;
        cluster.put_pod(new);
        assert_eq!(name(&cluster, "10.0.0.1", 200).as_deref(), Some("new"));
        assert_eq!(name(&cluster, "10.0.0.1", 149).as_deref(), Some("old"));
    }

    #[test]
    fn two_pods_of_one_workload_leave_it_known() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("web-77-a", "10.0.0.1", Some(("ReplicaSet", "web-77")), 100));
        cluster.put_pod(pod("web-77-b", "10.0.0.1", Some(("ReplicaSet", "web-77")), 110));
        let found = cluster.workload_at(ip("10.0.0.1"), at(120)).expect("known");
        assert_eq!((found.workload.as_deref(), found.pod), (Some("web"), None));
    }

    #[test]
    fn pods_that_are_gone_from_a_new_list_have_ended() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("a", "10.0.0.1", None, 100));
        cluster.put_pod(pod("b", "10.0.0.2", None, 100));
        cluster.only_pods(&BTreeSet::from(["uid-b".to_owned()]), at(400));
        assert_eq!(name(&cluster, "10.0.0.1", 401), None);
        assert_eq!(name(&cluster, "10.0.0.1", 399).as_deref(), Some("a"));
        assert_eq!(name(&cluster, "10.0.0.2", 401).as_deref(), Some("b"));
        // Two hours later nobody asks for it any more.
        cluster.end_pod("uid-b", at(400 + 7_300));
        assert_eq!(cluster.pods().count(), 1);
    }

    #[test]
    fn a_pod_that_ends_keeps_the_address_that_it_had() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("a", "10.0.0.1", None, 100));
        let mut over = pod("a", "10.0.0.1", None, 100);
        over.addresses.clear();
        over.tenure.until = Some(at(200));
        cluster.put_pod(over);
        assert_eq!(name(&cluster, "10.0.0.1", 150).as_deref(), Some("a"));
        assert_eq!(name(&cluster, "10.0.0.1", 201), None);
    }

    #[test]
    fn objects_are_understood_as_the_api_server_gives_them() {
        let mut cluster = Cluster::default();
        let reviews = Pod::of(samples::object("pod-sidecar"), at(0)).expect("a pod");
        assert!(reviews.has_sidecar && reviews.tenure.from_is_exact && !reviews.host_network);
        assert_eq!(reviews.addresses, [ip("10.244.1.7"), ip("fd00:10:244:1::7")]);
        assert_eq!(reviews.node.as_deref(), Some("worker-1"));
        let native = Pod::of(samples::object("pod-native-sidecar"), at(0)).expect("a pod");
        assert!(native.has_sidecar);
        let system = Pod::of(samples::object("pod-host-network"), at(0)).expect("a pod");
        assert!(system.host_network && !system.has_sidecar && system.addresses.is_empty());
        let over = Pod::of(samples::object("pod-job-over"), at(0)).expect("a pod");
        assert_eq!(over.tenure.until.map(|u| u.0 / 1_000_000_000), Some(1_795_000_120));
        cluster.put_service(Service::of(samples::object("service")).expect("a service"));
        cluster.put_node(Node::of(samples::object("node")).expect("a node"));
        let workload = cluster.workload_of(&reviews);
        assert_eq!((workload.workload.as_deref(), workload.service.as_deref()), (Some("reviews-v1"), Some("reviews")));
        assert_eq!(cluster.service_at(ip("10.96.44.3")).map(|s| s.name.as_str()), Some("reviews"));
        let record = cluster.record(&reviews);
        assert_eq!((record.workload.as_str(), record.workload_kind.as_str()), ("reviews-v1", "Deployment"));
        assert_eq!(record.locality.and_then(|l| l.zone).as_deref(), Some("zone-b"), "by its node's labels");
        assert_eq!((record.node.as_deref(), record.service.as_deref()), (Some("worker-1"), Some("reviews")));
        cluster.remove_service(&("default".into(), "reviews".into()));
        assert_eq!(cluster.service_at(ip("10.96.44.3")), None);
    }
}
