//! Proxies and the workloads they stand for.

use crate::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What kind of proxy reports, by the first part of its node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyKind {
    /// `sidecar~…`.
    Sidecar,
    /// `router~…`: an ingress or egress gateway.
    Router,
    /// `waypoint~…`.
    Waypoint,
    /// An Envoy that is not Istio's.
    Other,
}

/// A proxy, from the Node that it sends to the ALS (Istio's metadata keys).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its node id.
    pub node: NodeId,
    /// What it is.
    pub kind: ProxyKind,
    /// Its pod's address, from the node id.
    pub address: Option<IpAddr>,
    /// All of its pod's addresses (`INSTANCE_IPS`).
    pub instance_ips: Vec<IpAddr>,
    /// Pod name (`NAME`).
    pub pod: Option<String>,
    /// `NAMESPACE`.
    pub namespace: Option<String>,
    /// `WORKLOAD_NAME`.
    pub workload: Option<String>,
    /// `OWNER`, for instance `kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1`.
    pub owner: Option<String>,
    /// Canonical service: the label `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`.
    pub service: Option<String>,
    /// Canonical revision: the label `service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, else
    /// `version`.
    pub version: Option<String>,
    /// `CLUSTER_ID`.
    pub cluster_id: Option<String>,
    /// Kubernetes node (`NODE_NAME`).
    pub node_name: Option<String>,
    /// `region/zone/sub_zone` of the Node's locality, where it says: see [`Locality`](crate::Locality).
    pub locality: Option<String>,
    /// `ISTIO_VERSION`.
    pub istio_version: Option<String>,
    /// Envoy's own version (`user_agent_build_version`), for instance `1.40.0`.
    pub envoy_version: Option<String>,
    /// `INTERCEPTION_MODE`: REDIRECT, TPROXY or NONE.
    pub interception_mode: Option<String>,
    /// `LABELS`.
    pub labels: BTreeMap<String, String>,
}

/// How we know who owns an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadSource {
    /// Node metadata in the ALS stream.
    Als,
    /// The Kubernetes API.
    Kubernetes,
    /// Nothing told: only the address is known.
    Unknown,
}

/// One end of a hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Workload name, from node metadata or Kubernetes, never guessed from a cluster name.
    pub workload: Option<String>,
    /// Service name; may be taken from a cluster name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Pod name.
    pub pod: Option<String>,
    /// IP address, or `IP:port` for a server.
    pub address: Option<String>,
    /// How the workload is known.
    pub source: WorkloadSource,
}

impl Workload {
    /// An end of which nothing is known.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            namespace: None,
            workload: None,
            service: None,
            pod: None,
            address: None,
            source: WorkloadSource::Unknown,
        }
    }
}
