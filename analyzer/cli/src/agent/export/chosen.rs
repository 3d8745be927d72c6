//! Which pods have to do with a namespace.
//!
//! A request belongs to a namespace if either of its ends does. So of a node are kept the pods of the namespace and those that talked
//! with it. Only a pod of which every log entry names the other end, and always one in another namespace, is left out, and with it all of
//! its sockets; one that nobody knows anything of is kept. Readers choose requests among what is left.

use crate::agent::window::Segment;
use meshdiff_capture::{Keep, Table, proxies_of_part, sockets_of_part};
use meshdiff_discovery::service_of_cluster;
use meshdiff_model::{HopSide, NetnsId, NodeId, PodRecord, Side, SocketCookie, normalise_ip};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

/// The setting of a segment's meta that says with which namespaces each proxy talked.
pub(crate) const REACH: &str = "reach";
/// In place of a namespace that no log entry names.
const UNKNOWN: &str = "?";
/// Namespaces that are remembered of one proxy; beyond that it counts as one that talks with everybody.
const MOST: usize = 64;

/// With which namespaces proxies talked.
#[derive(Debug, Default)]
pub(crate) struct Reach(HashMap<NodeId, BTreeSet<String>>);

impl Reach {
    /// Takes note of a log entry.
    pub(crate) fn note(&mut self, log: &HopSide) {
        let namespace = other_end(log).unwrap_or(UNKNOWN);
        let known = match self.0.get_mut(&log.node) {
            Some(known) => known,
            None => self.0.entry(log.node.clone()).or_default(),
        };
        if !known.contains(namespace) {
            known.insert(if known.len() < MOST { namespace } else { UNKNOWN }.to_owned());
        }
    }

    /// As a setting of the segment's meta.
    pub(crate) fn to_setting(&self) -> Value {
        let sorted: BTreeMap<&str, &BTreeSet<String>> = self.0.iter().map(|(node, set)| (&*node.0, set)).collect();
        Value::Object(sorted.into_iter().map(|(node, set)| (node.to_owned(), json!(set))).collect::<Map<_, _>>())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The namespace of the other end, as far as the entry tells.
fn other_end(log: &HopSide) -> Option<&str> {
    let (peer, cluster) = match log.side {
        Some(Side::Client) => (log.details.upstream_peer.as_deref(), log.upstream_cluster.as_deref()),
        Some(Side::Server) => (log.details.downstream_peer.as_deref(), None),
        None => (None, None),
    };
    let by_peer = || peer?.namespace.as_deref();
    let by_cluster = || service_of_cluster(cluster?)?.service()?.namespace;
    let by_identity = || {
        let tls = log.details.tls.as_ref().filter(|_| log.side == Some(Side::Server))?;
        tls.peer_san.iter().find_map(|san| san.strip_prefix("spiffe://")?.split('/').skip_while(|p| *p != "ns").nth(1))
    };
    by_peer().or_else(by_cluster).or_else(by_identity)
}

/// The rows that are kept.
#[derive(Debug)]
pub(crate) struct Chosen {
    left_out_proxies: HashSet<NodeId>,
    left_out_netns: HashSet<NetnsId>,
    left_out_sockets: HashSet<SocketCookie>,
    left_out_addresses: HashSet<IpAddr>,
}

impl Chosen {
    /// What of these segments has to do with these namespaces; `None` if that is everything.
    pub(crate) fn of(segments: &[Arc<Segment>], namespaces: &[String]) -> io::Result<Option<Self>> {
        if namespaces.is_empty() {
            return Ok(None);
        }
        // A proxy, its own namespace and its addresses.
        let mut proxies: BTreeMap<NodeId, (Option<String>, BTreeSet<IpAddr>)> = BTreeMap::new();
        let mut sockets: Vec<(SocketCookie, NetnsId, IpAddr)> = Vec::new();
        for segment in segments {
            for part in segment.parts()? {
                // A damaged part names nobody, and whoever is not named is kept.
                if part.table == Table::Proxies
                    && let Ok(rows) = proxies_of_part(fs::read(&part.path)?.into())
                {
                    for proxy in rows {
                        let ips = proxy.instance_ips.iter().copied().chain(proxy.address).map(normalise_ip).collect();
                        proxies.insert(proxy.node, (proxy.namespace, ips));
                    }
                } else if part.table == Table::Sockets
                    && let Ok(rows) = sockets_of_part(fs::read(&part.path)?.into())
                {
                    sockets.extend(rows.iter().map(|s| (s.cookie, s.netns, normalise_ip(s.local.ip()))));
                }
            }
        }
        let talks =
            |node: &NodeId| {
                segments.iter().filter_map(|s| s.meta.settings.get(REACH)?.get(&*node.0)?.as_array()).flatten().any(
                    |ns| ns.as_str().is_none_or(|ns| ns == UNKNOWN || namespaces.iter().any(|wanted| wanted == ns)),
                )
            };
        let mut kept_ips = HashSet::new();
        let mut out_ips = HashSet::new();
        let mut left_out_proxies = HashSet::new();
        for (node, (namespace, ips)) in proxies {
            let stays = namespace.is_none_or(|own| namespaces.contains(&own)) || talks(&node);
            if stays {
                kept_ips.extend(ips);
            } else {
                out_ips.extend(ips);
                left_out_proxies.insert(node);
            }
        }
        let with = |ips: &HashSet<IpAddr>| -> HashSet<NetnsId> {
            sockets.iter().filter(|(_, _, ip)| ips.contains(ip)).map(|(_, netns, _)| *netns).collect()
        };
        let (kept, out) = (with(&kept_ips), with(&out_ips));
        let left_out_netns: HashSet<NetnsId> = out.difference(&kept).copied().collect();
        let of_them =
            |(cookie, netns, _): &(SocketCookie, NetnsId, IpAddr)| left_out_netns.contains(netns).then_some(*cookie);
        let left_out_sockets = sockets.iter().filter_map(of_them).collect();
        let everything = left_out_proxies.is_empty();
        let left_out_addresses = out_ips.difference(&kept_ips).copied().collect();
        Ok((!everything).then_some(Self { left_out_proxies, left_out_netns, left_out_sockets, left_out_addresses }))
    }

    /// True if what Kubernetes says of a pod is kept: of one that is left out it would only be somebody's name.
    pub(super) fn pod(&self, pod: &PodRecord) -> bool {
        pod.addresses.iter().any(|ip| !self.left_out_addresses.contains(&normalise_ip(*ip)))
    }
}

impl Keep for Chosen {
    fn socket(&self, socket: SocketCookie) -> bool {
        !self.left_out_sockets.contains(&socket)
    }
    fn proxy(&self, node: &NodeId) -> bool {
        !self.left_out_proxies.contains(node)
    }
    fn netns(&self, netns: NetnsId) -> bool {
        !self.left_out_netns.contains(&netns)
    }
}
