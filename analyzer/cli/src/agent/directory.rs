//! Who owns what on this node: what the proxies say of themselves, and what Kubernetes says of those that say nothing.

use crate::analysis::ByProxies;
use meshdiff_discovery::kube::Informers;
use meshdiff_graph::Directory;
use meshdiff_model::{NodeId, Proxy, WallTime, Workload};
use std::net::IpAddr;

/// A [`Directory`] as of an instant.
pub(crate) struct OnNode<'a> {
    proxies: ByProxies,
    informers: Option<&'a Informers>,
    at: WallTime,
}

impl<'a> OnNode<'a> {
    /// The directory at an instant: addresses are given to one pod after the other.
    pub(crate) fn new(proxies: &[Proxy], informers: Option<&'a Informers>, at: WallTime) -> Self {
        Self { proxies: ByProxies::of(proxies), informers, at }
    }
}

impl Directory for OnNode<'_> {
    fn by_proxy(&self, node: &NodeId) -> Option<Workload> {
        self.proxies.by_proxy(node)
    }
    fn by_address(&self, ip: IpAddr) -> Option<Workload> {
        self.by_address_at(ip, self.at)
    }
    fn by_address_at(&self, ip: IpAddr, at: WallTime) -> Option<Workload> {
        self.proxies.by_address_at(ip, at).or_else(|| self.informers?.read(|cluster| cluster.workload_at(ip, at)))
    }
    fn service_of_cluster(&self, cluster: &str) -> Option<(String, Option<String>)> {
        self.proxies.service_of_cluster(cluster)
    }
}
