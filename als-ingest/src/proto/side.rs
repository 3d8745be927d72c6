//! On which side of a hop a proxy stood.

use meshdiff_model::{DownstreamDirectRemoteAddr, DownstreamLocalAddr, Proxy, ProxyKind, Side};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Port of Istio's outbound listener (`pilot/pkg/model`, `ProxyListenPort`).
const OUTBOUND_PORT: u16 = 15001;
/// Port of Istio's inbound listener (`ProxyInboundListenPort`).
const INBOUND_PORT: u16 = 15006;

/// From where Istio's inbound listener connects to the application (`InboundPassthroughBindIpv4` and `…Ipv6`).
const INBOUND_SOURCES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))];

/// The side, by the name of the upstream cluster, else by the addresses of the downstream connection; `None` where
/// neither tells.
///
/// A reply that Envoy made itself before it chose a route has no cluster: then the addresses have to tell.
pub(super) fn side(
    cluster: &str,
    proxy: &Proxy,
    peer: Option<DownstreamDirectRemoteAddr>,
    local: Option<DownstreamLocalAddr>,
) -> Option<Side> {
    by_cluster(cluster).or_else(|| match proxy.kind {
        // What calls a gateway is outside of the mesh, and a gateway has no application: it only sends on.
        ProxyKind::Router => Some(Side::Client),
        // A waypoint stands before its services.
        ProxyKind::Waypoint => Some(Side::Server),
        ProxyKind::Sidecar | ProxyKind::Other => by_addresses(proxy, peer?, local),
    })
}

/// The side that the name of a cluster tells.
pub(super) fn by_cluster(cluster: &str) -> Option<Side> {
    // `outbound_.9080_._.host` are the gateways' clusters for SNI routing, `inbound-vip|…` the waypoints'; older Istios
    // have `InboundPassthroughClusterIpv4` and `…Ipv6`.
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| cluster.starts_with(p));
    if starts(&["outbound|", "outbound_."]) || matches!(cluster, "PassthroughCluster" | "BlackHoleCluster") {
        Some(Side::Client)
    } else if starts(&["inbound|", "inbound-vip|", "InboundPassthroughCluster"]) {
        Some(Side::Server)
    } else {
        None
    }
}

fn by_addresses(proxy: &Proxy, peer: DownstreamDirectRemoteAddr, local: Option<DownstreamLocalAddr>) -> Option<Side> {
    let own = |ip: IpAddr| proxy.address == Some(ip) || proxy.instance_ips.contains(&ip);
    let sidecar = proxy.kind == ProxyKind::Sidecar;
    // Nothing that Istio sets up redirects what the inbound listener itself sends: whatever this is, it has no side.
    if INBOUND_SOURCES.contains(&peer.ip()) {
        return None;
    }
    // Where the listener's own address was not replaced by the original destination, its port tells.
    match local.map(DownstreamLocalAddr::port) {
        Some(OUTBOUND_PORT) if sidecar => return Some(Side::Client),
        Some(INBOUND_PORT) if sidecar => return Some(Side::Server),
        _ => {}
    }
    if own(peer.ip()) {
        // A pod that calls its own service comes in from its own address. What an application sends to its pod's
        // address itself never passes the outbound listener, so this is the inbound one.
        let to_itself = local.is_some_and(|l| own(l.ip()));
        return Some(if to_itself { Side::Server } else { Side::Client });
    }
    if !sidecar {
        return None;
    }
    // Only the pod's own application reaches its sidecar over the loopback (an explicit HTTP proxy, or
    // interception switched off).
    Some(if peer.ip().is_loopback() { Side::Client } else { Side::Server })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::unknown_proxy;

    fn proxy(kind: ProxyKind) -> Proxy {
        let own: IpAddr = "10.0.0.2".parse().expect("an address");
        Proxy { kind, address: Some(own), ..unknown_proxy(None) }
    }

    fn of(kind: ProxyKind, cluster: &str, peer: &str, local: &str) -> Option<Side> {
        let addr = |a: &str| (!a.is_empty()).then(|| a.parse().expect("an address"));
        side(cluster, &proxy(kind), addr(peer).map(DownstreamDirectRemoteAddr), addr(local).map(DownstreamLocalAddr))
    }

    #[test]
    fn the_cluster_decides_first() {
        for (cluster, want) in [
            ("outbound|9080||reviews.default.svc.cluster.local", Some(Side::Client)),
            ("outbound_.9080_._.reviews.default.svc.cluster.local", Some(Side::Client)),
            ("PassthroughCluster", Some(Side::Client)),
            ("BlackHoleCluster", Some(Side::Client)),
            ("inbound|9080||", Some(Side::Server)),
            ("inbound-vip|9080|http|reviews.default.svc.cluster.local", Some(Side::Server)),
            ("InboundPassthroughCluster", Some(Side::Server)),
            ("InboundPassthroughClusterIpv4", Some(Side::Server)),
            ("inboundish", None),
            ("", None),
        ] {
            assert_eq!(of(ProxyKind::Other, cluster, "192.0.2.9:1", ""), want, "{cluster}");
        }
        assert_eq!(of(ProxyKind::Router, "inbound|80||", "192.0.2.9:1", ""), Some(Side::Server));
    }

    #[test]
    fn a_local_reply_is_placed_by_its_addresses() {
        use ProxyKind::{Other, Router, Sidecar, Waypoint};
        let vip = "10.96.0.7:9080";
        for (kind, peer, local, want) in [
            (Sidecar, "10.0.0.2:5000", vip, Some(Side::Client)),
            (Sidecar, "10.0.0.3:5000", "10.0.0.2:9080", Some(Side::Server)),
            // The pod calls its own service: the inbound half.
            (Sidecar, "10.0.0.2:5000", "10.0.0.2:9080", Some(Side::Server)),
            (Sidecar, "10.0.0.2:5000", "10.0.0.2:15001", Some(Side::Client)),
            (Sidecar, "127.0.0.1:5000", vip, Some(Side::Client)),
            (Sidecar, "[::1]:5000", "", Some(Side::Client)),
            (Sidecar, "127.0.0.6:5000", "10.0.0.2:9080", None),
            (Sidecar, "[::6]:5000", "", None),
            (Sidecar, "", "", None),
            (Router, "198.51.100.1:5000", "", Some(Side::Client)),
            (Router, "", "", Some(Side::Client)),
            (Waypoint, "10.0.0.9:5000", "", Some(Side::Server)),
            (Other, "10.0.0.9:5000", "10.0.0.2:15006", None),
            (Other, "127.0.0.1:5000", "", None),
            (Other, "10.0.0.2:5000", vip, Some(Side::Client)),
        ] {
            assert_eq!(of(kind, "", peer, local), want, "{kind:?} {peer} {local}");
        }
    }
}
