//! Whom a sidecar can reach.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{AUTHZ_PORT, Parts, extension, places, socket_address, tls_context, trouble};
use crate::topology::{NAMESPACE, PortProtocol, Proxy, Service, ServicePort, TRUST_DOMAIN};

/// The host name of the access log service, as if it were a Service.
pub(super) fn als_host() -> String {
    format!("meshdiff-als.{NAMESPACE}.svc.{TRUST_DOMAIN}")
}

/// Its cluster, named as Istio names the Service of an extension provider.
pub(super) fn als_name(parts: &Parts<'_>) -> String {
    format!("outbound|{}||{}", parts.settings.als.port(), als_host())
}

/// The waiting server.
pub(super) const AUTHZ: &str = "lab-ext-authz";

pub(super) fn outbound_name(service: &Service, port: ServicePort) -> String {
    format!("outbound|{}||{}", port.number, service.fqdn())
}

pub(super) fn inbound_name(port: ServicePort) -> String {
    format!("inbound|{}||", port.number)
}

pub(super) fn all(parts: &Parts<'_>) -> Vec<Value> {
    let mut clusters = Vec::new();
    for service in &parts.topology.services {
        for port in &service.ports {
            clusters.push(outbound(parts, service, *port));
            let subsets = places::subsets(parts, service);
            clusters.extend(subsets.into_iter().map(|(subset, pods)| of_subset(parts, service, *port, &subset, pods)));
        }
        clusters.extend(trouble::clusters(parts, service));
    }
    let inbound = if parts.pod.proxy == Proxy::Gateway { Vec::new() } else { parts.topology.ports(parts.pod) };
    // By TPROXY the listener's connections keep their clients' addresses, and so do those to the application.
    let bind = (parts.pod.proxy == Proxy::Sidecar).then(|| passthrough_source(parts));
    for port in inbound {
        let mut cluster = original_dst(&inbound_name(port), bind.clone());
        if port.protocol == PortProtocol::Http2 {
            cluster["typed_extension_protocol_options"] = http_options(json!({ "http2_protocol_options": {} }));
        }
        clusters.push(cluster);
    }
    clusters.push(original_dst("InboundPassthroughCluster", bind));
    clusters.push(original_dst("PassthroughCluster", None));
    clusters.push(json!({ "name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "10s" }));
    clusters.push(als(parts));
    if parts.settings.ext_authz {
        clusters.push(fixed(
            AUTHZ,
            &[("127.0.0.1".to_owned(), AUTHZ_PORT)],
            http_options(json!({ "http_protocol_options": {} })),
        ));
    }
    clusters
}

fn outbound(parts: &Parts<'_>, service: &Service, port: ServicePort) -> Value {
    let endpoints: Vec<_> = service.endpoints.iter().map(|ip| (ip.to_string(), port.number)).collect();
    // HTTP/1.1 upstream is what Istio does for a port named `http`, unless H2 upgrades are asked for.
    let options = match port.protocol {
        PortProtocol::Http => http_options(json!({ "http_protocol_options": {} })),
        PortProtocol::Http2 => http_options(json!({ "http2_protocol_options": {} })),
        PortProtocol::Tcp => json!({}),
    };
    let mut cluster = if service.vip.is_some() {
        let mut cluster = fixed(&outbound_name(service, port), &endpoints, options);
        cluster["lb_policy"] = json!("ROUND_ROBIN");
        cluster
    } else {
        // The clients of a headless service choose the pod themselves.
        let mut cluster = original_dst(&outbound_name(service, port), None);
        cluster["typed_extension_protocol_options"] = options;
        cluster
    };
    trouble::amend_cluster(port, &mut cluster);
    secure(parts, service, port, &mut cluster);
    cluster
}

/// The cluster of a DestinationRule's subset.
fn of_subset(parts: &Parts<'_>, service: &Service, port: ServicePort, subset: &str, pods: Vec<IpAddr>) -> Value {
    let name = places::subset_name(service, port, subset);
    let mut cluster = outbound(parts, &Service { endpoints: pods, ..service.clone() }, port);
    cluster["name"] = json!(name);
    cluster["load_assignment"]["cluster_name"] = json!(name);
    if cluster["transport_socket"].is_object() {
        // As its name, in the form that is a valid host name.
        cluster["transport_socket"]["typed_config"]["sni"] = json!(name.replace('|', "_."));
    }
    cluster
}

/// Mutual TLS with the service's pods, where the mesh has it.
pub(super) fn secure(parts: &Parts<'_>, service: &Service, port: ServicePort, cluster: &mut Value) {
    if let Some(identity) = parts.identity.filter(|_| service.meshed) {
        // What Istio's sidecars offer each other when nothing was negotiated downstream.
        let alpn: &[&str] = match port.protocol {
            PortProtocol::Http => &["istio-http/1.1", "istio", "http/1.1"],
            PortProtocol::Http2 => &["istio-h2", "istio", "h2"],
            PortProtocol::Tcp => &["istio-peer-exchange", "istio"],
        };
        let context = tls_context(identity, alpn, json!({ "exact": service.spiffe_id() }));
        cluster["transport_socket"] = extension(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            json!({
                "common_tls_context": context,
                "sni": format!("outbound_.{}_._.{}", port.number, service.fqdn()),
            }),
        );
    }
}

pub(super) fn fixed(name: &str, endpoints: &[(String, u16)], options: Value) -> Value {
    let endpoints: Vec<_> =
        endpoints.iter().map(|(ip, port)| json!({ "endpoint": { "address": socket_address(ip, *port) } })).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": unlimited(),
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
        "typed_extension_protocol_options": options,
    })
}

fn original_dst(name: &str, bind: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": unlimited(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
            }
        },
    });
    if let Some(bind) = bind {
        cluster["upstream_bind_config"] = bind;
    }
    cluster
}

/// The address by which the nat rules tell the sidecar's own connections from those to redirect; for a dual stack pod one of each family.
fn passthrough_source(parts: &Parts<'_>) -> Value {
    let mut bind = json!({ "source_address": { "address": "127.0.0.6", "port_value": 0 } });
    if parts.pod.ip6.is_some() {
        bind["extra_source_addresses"] = json!([{ "address": { "address": "::6", "port_value": 0 } }]);
    }
    bind
}

fn als(parts: &Parts<'_>) -> Value {
    let address = parts.settings.als;
    let mut cluster = fixed(
        &als_name(parts),
        &[(address.ip().to_string(), address.port())],
        http_options(json!({ "http2_protocol_options": {} })),
    );
    // The receiver may come and go while traffic flows: give up early, try again.
    cluster["connect_timeout"] = json!("1s");
    cluster
}

pub(super) fn http_options(explicit: Value) -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": explicit,
        }
    })
}

/// Istio lifts every limit that Envoy has by default.
fn unlimited() -> Value {
    let max = u32::MAX;
    json!({ "thresholds": [{ "max_connections": max, "max_pending_requests": max, "max_requests": max, "max_retries": max, "track_remaining": true }] })
}
