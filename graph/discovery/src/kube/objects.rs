//! What is kept of the API server's objects.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use meshdiff_model::{Locality, Tenure, WallTime, normalise_ip};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The container that Istio adds, as a container or as an init container that stays.
const SIDECAR: &str = "istio-proxy";
/// The label that a Deployment gives the pods of each of its ReplicaSets; the ReplicaSet's name ends with its value.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// When this turned true, the pod had its network (Kubernetes 1.29 and later).
const HAS_NETWORK: &str = "PodReadyToStartContainers";

/// What made an object: its owner with `controller: true`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Controller {
    /// `ReplicaSet`, `Job` and so on.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its identity: a later pod of the same name has another.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node on which it runs.
    pub node: Option<String>,
    /// Its own addresses; none if it uses its node's.
    pub addresses: Vec<IpAddr>,
    /// It uses its node's network.
    pub host_network: bool,
    /// It has an Istio sidecar.
    pub has_sidecar: bool,
    /// What made it.
    pub controller: Option<Controller>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Option<WallTime>,
    /// From when its addresses were its own, and until when; by the clock of its node.
    pub tenure: Tenure,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster addresses; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// The labels of the pods behind it; empty if it selects none.
    pub selector: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its region and zone, by its labels.
    pub locality: Option<Locality>,
}

/// A minute, which is what CronJobs are scheduled by.
const MINUTE_NS: i64 = 60 * 1_000_000_000;
/// How much later than it was scheduled a CronJob's pod is made at most, with its retries; beyond that it counts as a coincidence.
const LATEST_JOB_NS: i64 = 24 * 60 * MINUTE_NS;

impl Pod {
    /// What is kept of a pod; `None` for one without name or identity, which no API server gives.
    pub(crate) fn of(pod: core::Pod, seen: WallTime) -> Option<Self> {
        let core::Pod { metadata, spec, status } = pod;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let host_network = spec.host_network.unwrap_or(false);
        let mut addresses: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .chain(status.pod_ip.clone())
            .filter_map(|ip| address(&ip))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        if host_network {
            addresses.clear();
        }
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let has_sidecar = containers.into_iter().any(|c| c.name == SIDECAR);
        let networked = status.conditions.iter().flatten().find(|c| c.type_ == HAS_NETWORK && c.status == "True");
        let networked = networked.and_then(|c| c.last_transition_time.as_ref()).map(wall);
        let created = metadata.creation_timestamp.as_ref().map(wall);
        let started = status.start_time.as_ref().map(wall).or(created);
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let until = over.then(|| finished(&status).unwrap_or(seen));
        Some(Self {
            uid: metadata.uid.clone()?,
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            node: spec.node_name,
            addresses,
            host_network,
            has_sidecar,
            controller: controller(&metadata),
            labels: metadata.labels.unwrap_or_default(),
            created,
            tenure: Tenure { from: networked.or(started), from_is_exact: networked.is_some(), until },
        })
    }

    /// The Deployment of a ReplicaSet's pod, told from the pod alone: the ReplicaSet is named after it, with the hash of its template.
    pub(crate) fn deployment_by_hash(&self) -> Option<&str> {
        let replica_set = self.controller.as_ref().filter(|c| c.kind == "ReplicaSet")?;
        let hash = self.labels.get(TEMPLATE_HASH).filter(|h| !h.is_empty())?;
        replica_set.name.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())
    }

    /// The CronJob of a Job's pod, told from the pod alone: the Job is named after it, with the minute for which it was scheduled
    /// (`getJobName` in Kubernetes' `pkg/controller/cronjob`). A number that is not the minute at which the pod was made says nothing.
    pub(crate) fn cron_job_by_minute(&self) -> Option<&str> {
        let job = self.controller.as_ref().filter(|c| c.kind == "Job")?;
        let (name, minute) = job.name.rsplit_once('-').filter(|(name, _)| !name.is_empty())?;
        let scheduled = minute.parse::<i64>().ok()?.checked_mul(MINUTE_NS)?;
        let late = self.created?.0.checked_sub(scheduled)?;
        (-MINUTE_NS..=LATEST_JOB_NS).contains(&late).then_some(name)
    }
}

impl Service {
    pub(crate) fn of(service: core::Service) -> Option<Self> {
        let spec = service.spec.unwrap_or_default();
        let mut addresses: Vec<IpAddr> =
            spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| address(ip)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Some(Self {
            namespace: service.metadata.namespace?,
            name: service.metadata.name?,
            addresses,
            selector: spec.selector.unwrap_or_default(),
        })
    }

    /// True if the pod is behind it.
    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        self.namespace == pod.namespace
            && !self.selector.is_empty()
            && self.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
    }
}

impl Node {
    pub(crate) fn of(node: core::Node) -> Option<Self> {
        let locality = node.metadata.labels.as_ref().and_then(Locality::of_labels);
        let list = node.status.and_then(|s| s.addresses).unwrap_or_default();
        Some(Self {
            addresses: list.iter().filter_map(|a| address(&a.address)).collect(),
            name: node.metadata.name?,
            locality,
        })
    }
}

/// What made an object.
pub(crate) fn controller(meta: &ObjectMeta) -> Option<Controller> {
    let of = |o: &OwnerReference| Controller { kind: o.kind.clone(), name: o.name.clone(), uid: o.uid.clone() };
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true)).map(of)
}

/// When the last of a pod's containers ended: told in whole seconds, rounded down, so at the end of that one.
fn finished(status: &core::PodStatus) -> Option<WallTime> {
    let ended = |c: &core::ContainerStatus| Some(wall(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?));
    status.container_statuses.iter().flatten().filter_map(ended).max().map(|at| WallTime(at.0 + 999_999_999))
}

/// `None` in a headless service's place, and for anything else that is no address.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(normalise_ip)
}

fn wall(time: &Time) -> WallTime {
    WallTime(i64::try_from(time.0.as_nanosecond()).unwrap_or(i64::MAX))
}
