//! What a sidecar listens to.

use serde_json::{Value, json};

use super::clusters::{AUTHZ, als_host, als_name, inbound_name, outbound_name};
use super::{AUTHZ_PORT, Parts, extension, places, socket_address, tls_context, trouble};
use crate::authz::{INBOUND_PREFIX, OUTBOUND_PREFIX};
use crate::hop::{DELAY, NONCE, REQUEST_ID};
use crate::scenarios::GATEWAY_PORT;
use crate::topology::{ECHO, NAMESPACE, PortProtocol, Proxy, Service, ServicePort, TRUST_DOMAIN};

/// By this mark, which the rules know, the sidecar's connections to its application are told from those to intercept.
const TPROXY_MARK: u32 = 1337;

pub(super) fn all(parts: &Parts<'_>) -> Vec<Value> {
    if parts.pod.proxy == Proxy::Gateway {
        return parts.topology.service(ECHO).map(|service| gateway(parts, service)).into_iter().collect();
    }
    let mut listeners = vec![virtual_outbound(parts)];
    let mut seen = Vec::new();
    for service in &parts.topology.services {
        for &port in &service.ports {
            if port.protocol == PortProtocol::Tcp {
                listeners.extend(outbound_tcp(parts, service, port));
            } else if !seen.contains(&port.number) {
                seen.push(port.number);
                listeners.push(outbound_http(parts, port));
            }
        }
    }
    listeners.push(virtual_inbound(parts));
    listeners
}

/// A TCP port has a listener per service, on its virtual IP: nothing else tells services apart.
fn outbound_tcp(parts: &Parts<'_>, service: &Service, port: ServicePort) -> Option<Value> {
    let vip = service.vip?;
    Some(json!({
        "name": format!("{vip}_{}", port.number),
        "traffic_direction": "OUTBOUND",
        "address": socket_address(&vip.to_string(), port.number),
        "bind_to_port": false,
        "filter_chains": [{ "filters": [tcp_proxy(parts, &outbound_name(service, port))] }],
    }))
}

/// The same port of the other family, for a dual stack pod.
fn also_ipv6(parts: &Parts<'_>, port: u16, mut listener: Value) -> Value {
    if parts.pod.ip6.is_some() {
        listener["additional_addresses"] = json!([{ "address": socket_address("::", port) }]);
    }
    listener
}

/// What a `Gateway` and a `VirtualService` for one host make of an ingress gateway: it listens itself, and leads everything to a service.
fn gateway(parts: &Parts<'_>, service: &Service) -> Value {
    let host = json!({
        "name": format!("shop.example.com:{GATEWAY_PORT}"),
        "domains": ["*"],
        "include_request_attempt_count": true,
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": outbound_name(service, ServicePort::HTTP), "timeout": "0s" } }],
    });
    let manager = http_manager(
        parts,
        "outbound_0.0.0.0_8080",
        json!({ "name": format!("http.{GATEWAY_PORT}"), "validate_clusters": false, "virtual_hosts": [host] }),
        OUTBOUND_PREFIX,
        // Istio's gateways stand at the edge: the address of who calls them is the client's, and what X-Forwarded-For says is not believed.
        json!({ "use_remote_address": true, "forward_client_cert_details": "SANITIZE_SET" }),
    );
    json!({
        "name": format!("0.0.0.0_{GATEWAY_PORT}"),
        "traffic_direction": "OUTBOUND",
        "address": socket_address("0.0.0.0", GATEWAY_PORT),
        "filter_chains": [{ "filters": [manager] }],
    })
}

/// Takes everything that the application sends, and hands it to the listener of its port.
fn virtual_outbound(parts: &Parts<'_>) -> Value {
    let to_strangers = if parts.pod.registry_only { "BlackHoleCluster" } else { "PassthroughCluster" };
    let listener = json!({
        "name": "virtualOutbound",
        "traffic_direction": "OUTBOUND",
        "address": socket_address("0.0.0.0", 15001),
        "use_original_dst": true,
        "access_log": [no_route_log(parts)],
        "filter_chains": [
            {
                "name": "virtualOutbound-trafficloop",
                "filter_chain_match": { "destination_port": 15001 },
                "filters": [tcp_proxy(parts, "BlackHoleCluster")],
            },
            { "name": "virtualOutbound-catchall-tcp", "filters": [tcp_proxy(parts, to_strangers)] },
        ],
    });
    also_ipv6(parts, 15001, listener)
}

fn outbound_http(parts: &Parts<'_>, port: ServicePort) -> Value {
    let number = port.number;
    let name = format!("0.0.0.0_{number}");
    let here = parts.topology.services.iter().filter(|service| service.ports.contains(&port));
    let mut hosts: Vec<_> = here.map(|service| outbound_host(parts, service, port)).collect();
    let (name_of_rest, rest) = if parts.pod.registry_only {
        ("block_all", json!({ "direct_response": { "status": 502 } }))
    } else {
        ("allow_any", json!({ "route": { "cluster": "PassthroughCluster", "timeout": "0s" } }))
    };
    let mut route = json!({ "name": name_of_rest, "match": { "prefix": "/" } });
    if let (Some(route), Value::Object(rest)) = (route.as_object_mut(), rest) {
        route.extend(rest);
    }
    hosts.push(json!({
        "name": name_of_rest,
        "domains": ["*"],
        "include_request_attempt_count": true,
        "routes": [route],
    }));
    let mut manager = http_manager(
        parts,
        &format!("outbound_{name}"),
        json!({ "name": number.to_string(), "validate_clusters": false, "virtual_hosts": hosts }),
        OUTBOUND_PREFIX,
        if port.http10 { json!({ "http_protocol_options": { "accept_http_10": true } }) } else { json!({}) },
    );
    trouble::amend_outbound(port, http_log(parts), &mut manager);
    let listener = json!({
        "name": name,
        "traffic_direction": "OUTBOUND",
        "address": socket_address("0.0.0.0", number),
        "bind_to_port": false,
        "filter_chains": [{ "filters": [manager] }],
    });
    also_ipv6(parts, number, listener)
}

fn outbound_host(parts: &Parts<'_>, service: &Service, port: ServicePort) -> Value {
    let name = service.name;
    let number = port.number;
    let mut domains = Vec::new();
    let names = [service.fqdn(), name.to_owned(), format!("{name}.{NAMESPACE}.svc"), format!("{name}.{NAMESPACE}")];
    let vip = service.vip.map(|vip| if vip.is_ipv6() { format!("[{vip}]") } else { vip.to_string() });
    for host in names.into_iter().chain(vip) {
        domains.push(format!("{host}:{number}"));
        domains.push(host);
    }
    json!({
        "name": format!("{}:{number}", service.fqdn()),
        "domains": domains,
        "include_request_attempt_count": true,
        "routes": trouble::routes(service, port).unwrap_or_else(|| json!([places::by_subsets(parts, service, port, json!({
            "name": "default",
            "match": { "prefix": "/" },
            "decorator": { "operation": format!("{}:{number}/*", service.fqdn()) },
            "route": {
                "cluster": outbound_name(service, port),
                "timeout": "0s",
                // Istio's default retry policy.
                "retry_policy": {
                    "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
                    "num_retries": 2,
                    "retry_host_predicate": [extension(
                        "envoy.retry_host_predicates.previous_hosts",
                        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                        json!({}),
                    )],
                    "host_selection_retry_max_attempts": "5",
                },
            },
        }))])),
    })
}

/// Takes everything that is sent to the pod.
fn virtual_inbound(parts: &Parts<'_>) -> Value {
    let chain = |name: &str, port: Option<u16>, filter: Value, encrypted: bool| {
        let mut chain = json!({ "name": name, "filter_chain_match": {}, "filters": [filter] });
        if let Some(port) = port {
            chain["filter_chain_match"]["destination_port"] = json!(port);
        }
        if parts.identity.is_some() && !encrypted {
            chain["filter_chain_match"]["transport_protocol"] = json!("raw_buffer");
        }
        if let Some(identity) = parts.identity.filter(|_| encrypted) {
            // STRICT, unless there is another chain for it: plain text matches no chain, so the connection is closed.
            chain["filter_chain_match"]["transport_protocol"] = json!("tls");
            let context =
                tls_context(identity, &["h2", "http/1.1"], json!({ "prefix": format!("spiffe://{TRUST_DOMAIN}/") }));
            chain["transport_socket"] = extension(
                "envoy.transport_sockets.tls",
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                json!({ "common_tls_context": context, "require_client_certificate": true }),
            );
        }
        chain
    };
    let mut listener_filters = vec![extension(
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        json!({}),
    )];
    if parts.pod.proxy == Proxy::Tproxy {
        listener_filters.push(extension(
            "envoy.filters.listener.original_src",
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
            json!({ "mark": TPROXY_MARK }),
        ));
    }
    if parts.identity.is_some() {
        listener_filters.push(extension(
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            json!({}),
        ));
    }
    let mut listener = json!({
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "address": socket_address("0.0.0.0", 15006),
        "access_log": [no_route_log(parts)],
        "listener_filters": listener_filters,
        "listener_filters_timeout": "0s",
        "continue_on_listener_filters_timeout": true,
        "filter_chains": [
            {
                "name": "virtualInbound-blackhole",
                "filter_chain_match": { "destination_port": 15006 },
                "filters": [tcp_proxy(parts, "BlackHoleCluster")],
            },
        ],
    });
    if parts.pod.proxy == Proxy::Tproxy {
        listener["transparent"] = json!(true);
    }
    if let Some(chains) = listener["filter_chains"].as_array_mut() {
        for port in parts.topology.ports(parts.pod) {
            let name = format!("0.0.0.0_{}", port.number);
            let filter = match port.protocol {
                PortProtocol::Tcp => tcp_proxy(parts, &inbound_name(port)),
                PortProtocol::Http | PortProtocol::Http2 => inbound_manager(parts, port),
            };
            if parts.is_permissive() && parts.identity.is_some() {
                chains.push(chain(&name, Some(port.number), filter.clone(), false));
            }
            chains.push(chain(&name, Some(port.number), filter, true));
        }
        chains.push(chain("virtualInbound", None, tcp_proxy(parts, "InboundPassthroughCluster"), true));
    }
    also_ipv6(parts, 15006, listener)
}

fn inbound_manager(parts: &Parts<'_>, port: ServicePort) -> Value {
    let number = port.number;
    let route = json!({
        "name": "default",
        "match": { "prefix": "/" },
        "decorator": { "operation": format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}:{number}/*", parts.pod.app) },
        "route": { "cluster": inbound_name(port), "timeout": "0s" },
    });
    let mut manager = http_manager(
        parts,
        &format!("inbound_0.0.0.0_{number}"),
        json!({
            "name": inbound_name(port),
            "validate_clusters": false,
            "virtual_hosts": [{ "name": format!("inbound|http|{number}"), "domains": ["*"], "routes": [route] }],
        }),
        INBOUND_PREFIX,
        json!({
            "forward_client_cert_details": "APPEND_FORWARD",
            "set_current_client_cert_details": { "subject": true, "dns": true, "uri": true },
        }),
    );
    trouble::amend_inbound(port, http_log(parts), &mut manager);
    manager
}

fn http_manager(parts: &Parts<'_>, stat_prefix: &str, routes: Value, authz_prefix: &str, more: Value) -> Value {
    let mut filters = vec![
        extension("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", json!({})),
        extension("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", json!({})),
    ];
    if parts.settings.ext_authz {
        filters.push(ext_authz(authz_prefix));
    }
    filters.push(extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({})));
    let mut manager = json!({
        "stat_prefix": stat_prefix,
        "codec_type": "AUTO",
        "use_remote_address": false,
        "generate_request_id": true,
        "preserve_external_request_id": true,
        "normalize_path": true,
        "proxy_100_continue": true,
        "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "access_log": [http_log(parts)],
        "route_config": routes,
        "http_filters": filters,
    });
    if let (Some(manager), Value::Object(more)) = (manager.as_object_mut(), more) {
        manager.extend(more);
    }
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    )
}

/// The question to the waiting server. A server that is down lets everything pass: the lab's delays are optional.
fn ext_authz(path_prefix: &str) -> Value {
    let exact = |name: &str| json!({ "exact": name });
    extension(
        "envoy.filters.http.ext_authz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        json!({
            "transport_api_version": "V3",
            "failure_mode_allow": true,
            "allowed_headers": { "patterns": [exact(NONCE), exact(DELAY), exact(REQUEST_ID)] },
            "http_service": {
                "server_uri": { "uri": format!("http://127.0.0.1:{AUTHZ_PORT}"), "cluster": AUTHZ, "timeout": "65s" },
                "path_prefix": path_prefix,
            },
        }),
    )
}

fn tcp_proxy(parts: &Parts<'_>, cluster: &str) -> Value {
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({ "stat_prefix": cluster, "cluster": cluster, "access_log": [tcp_log(parts)] }),
    )
}

fn common_log_config(parts: &Parts<'_>, log_name: &str) -> Value {
    json!({
        "log_name": log_name,
        "transport_api_version": "V3",
        // Without an authority Envoy sends the cluster's name as `:authority`, and its `|` is refused as malformed by
        // receivers that check (hyper's h2 does). Istio names the host as well.
        "grpc_service": { "envoy_grpc": { "cluster_name": als_name(parts), "authority": als_host() } },
        "buffer_flush_interval": "1s",
    })
}

fn http_log(parts: &Parts<'_>) -> Value {
    let headers: Vec<&str> =
        [REQUEST_ID, "traceparent"].into_iter().chain(parts.settings.als_headers.iter().map(String::as_str)).collect();
    extension(
        "envoy.access_loggers.http_grpc",
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        json!({
            "common_config": common_log_config(parts, "http_envoy_accesslog"),
            "additional_request_headers_to_log": headers,
        }),
    )
}

fn tcp_log(parts: &Parts<'_>) -> Value {
    extension(
        "envoy.access_loggers.tcp_grpc",
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
        json!({ "common_config": common_log_config(parts, "tcp_envoy_accesslog") }),
    )
}

/// The listener's own log: connections that no filter chain took, such as plain text under STRICT.
fn no_route_log(parts: &Parts<'_>) -> Value {
    let mut log = tcp_log(parts);
    log["filter"] = json!({ "response_flag_filter": { "flags": ["NR"] } });
    log
}
