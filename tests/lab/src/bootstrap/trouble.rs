//! Ports on which sidecars retry, hedge, give up, wait for connections and delay, by the path of a request. They are configured as Istio
//! would by `VirtualService` and `DestinationRule`, and two filters hold requests up on demand.

use serde_json::{Value, json};

use super::clusters::{fixed, http_options, outbound_name, secure};
use super::{Parts, extension};
use crate::topology::{PortProtocol, Service, ServicePort};

/// How long an attempt may take where attempts are limited, in milliseconds.
pub const TRY_MS: u64 = 120;
/// How long a request may take where requests are limited, in milliseconds.
pub const TIMEOUT_MS: u64 = 100;

/// Nobody listens there.
const CLOSED_PORT: u16 = 1;

/// Keeps a worker busy, as a filter that computes does: whatever else this worker has to do waits.
const LUA: &str = r#"
function envoy_on_request(handle)
  local spin = handle:headers():get("x-lab-spin")
  if spin then
    local till = tonumber(handle:timestamp()) + tonumber(spin)
    while tonumber(handle:timestamp()) < till do end
  end
end
"#;

/// The outbound routes of a port of trouble, in order; `None` for other ports.
pub(super) fn routes(service: &Service, port: ServicePort) -> Option<Value> {
    if !port.is_of_trouble() {
        return None;
    }
    let main = outbound_name(service, port);
    // Cases of HTTP/2 are named so.
    let lead = if port.protocol == PortProtocol::Http2 { "/h2-" } else { "/" };
    let seconds = |ms: u64| format!("{}.{:03}s", ms / 1_000, ms % 1_000);
    let retry = |more: Value| {
        let mut policy = json!({
            "retry_on": "5xx,reset,connect-failure",
            "num_retries": 3,
            "retry_back_off": { "base_interval": "0.005s", "max_interval": "0.010s" },
        });
        merge(&mut policy, more);
        policy
    };
    let per_try = || json!({ "per_try_timeout": seconds(TRY_MS) });
    let route_of = |prefix: &str, cluster: &str, more: Value| {
        let mut to = json!({ "cluster": cluster, "timeout": "0s" });
        merge(&mut to, more);
        json!({ "name": prefix, "match": { "prefix": prefix }, "route": to })
    };
    let route = |prefix: &str, cluster: &str, more: Value| route_of(&format!("{lead}{prefix}"), cluster, more);
    // Statuses of gRPC on which Istio retries by default.
    let calls = retry(json!({ "retry_on": "connect-failure,refused-stream,unavailable,cancelled" }));
    let elsewhere = retry(json!({
        "retry_host_predicate": [extension(
            "envoy.retry_host_predicates.previous_hosts",
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            json!({}),
        )],
        "host_selection_retry_max_attempts": "5",
    }));
    let hedge = json!({
        "retry_policy": retry(json!({ "num_retries": 1, "per_try_timeout": seconds(TRY_MS) })),
        "hedge_policy": { "hedge_on_per_try_timeout": true },
        "timeout": "5s",
    });
    Some(json!([
        route("retry-", &main, json!({ "retry_policy": retry(json!({})) })),
        route("try-timeout", &main, json!({ "retry_policy": retry(per_try()) })),
        route("hedge-", &main, hedge),
        route("timeout", &main, json!({ "timeout": seconds(TIMEOUT_MS) })),
        route("no-host", &special(service, port, "nobody"), json!({})),
        route("refused", &special(service, port, "refused"), json!({})),
        route("half-refused", &special(service, port, "half"), json!({ "retry_policy": retry(json!({})) })),
        route("other-host", &special(service, port, "all"), json!({ "retry_policy": elsewhere })),
        route_of("/lab.Echo/", &main, json!({ "retry_policy": calls })),
        route_of("/", &main, json!({})),
    ]))
}

/// The clusters to which those routes lead besides the service's own.
pub(super) fn clusters(parts: &Parts<'_>, service: &Service) -> Vec<Value> {
    let closed = (parts.settings.subnet.gateway().to_string(), CLOSED_PORT);
    let ports = service.ports.iter().copied().filter(|port| port.is_of_trouble());
    let of = |port: ServicePort| {
        let open = service.endpoints.iter().map(|ip| (ip.to_string(), port.number));
        let half: Vec<_> = [closed.clone()].into_iter().chain(open).collect();
        let pods = parts.topology.pods.iter().filter(|pod| pod.app == service.app);
        let all: Vec<_> = pods.map(|pod| (pod.ip.to_string(), port.number)).collect();
        let plain = || match port.protocol {
            PortProtocol::Http2 => http_options(json!({ "http2_protocol_options": {} })),
            PortProtocol::Http | PortProtocol::Tcp => http_options(json!({ "http_protocol_options": {} })),
        };
        let in_turn = |subset: &str, hosts: &[(String, u16)]| {
            let mut cluster = fixed(&special(service, port, subset), hosts, plain());
            cluster["lb_policy"] = json!("ROUND_ROBIN");
            secure(parts, service, port, &mut cluster);
            cluster
        };
        [
            fixed(&special(service, port, "nobody"), &[], plain()),
            fixed(&special(service, port, "refused"), std::slice::from_ref(&closed), plain()),
            in_turn("half", &half),
            in_turn("all", &all),
        ]
    };
    ports.flat_map(of).collect()
}

/// What is special about the service's own cluster.
pub(super) fn amend_cluster(port: ServicePort, cluster: &mut Value) {
    if port == ServicePort::POOL {
        cluster["circuit_breakers"]["thresholds"][0]["max_connections"] = json!(1);
    }
    if port == ServicePort::FRESH {
        let options =
            &mut cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        options["common_http_protocol_options"] = json!({ "max_requests_per_connection": 1 });
    }
}

/// Where the sidecar of who asks holds requests up: on demand a filter waits, or computes. Its router logs each attempt, but on the
/// port that is quiet about them.
pub(super) fn amend_outbound(port: ServicePort, log: Value, manager: &mut Value) {
    if !port.is_of_trouble() {
        return;
    }
    let filters = &mut manager["typed_config"]["http_filters"];
    merge(
        &mut filters[0]["typed_config"],
        json!({ "delay": { "header_delay": {}, "percentage": { "numerator": 100 } } }),
    );
    if let Some(filters) = filters.as_array_mut() {
        let lua = json!({ "default_source_code": { "inline_string": LUA } });
        filters.insert(1, extension("envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua", lua));
    }
    if port.logs_attempts() {
        amend_router(log, manager);
    }
}

/// The sidecar of who is asked refuses on demand.
pub(super) fn amend_inbound(port: ServicePort, log: Value, manager: &mut Value) {
    if !port.is_of_trouble() {
        return;
    }
    let abort = json!({ "abort": { "header_abort": {}, "percentage": { "numerator": 100 } } });
    merge(&mut manager["typed_config"]["http_filters"][0]["typed_config"], abort);
    if port.logs_attempts() {
        amend_router(log, manager);
    }
}

fn amend_router(log: Value, manager: &mut Value) {
    if let Some(router) = manager["typed_config"]["http_filters"].as_array_mut().and_then(|filters| filters.last_mut())
    {
        router["typed_config"]["upstream_log"] = json!([log]);
    }
}

fn special(service: &Service, port: ServicePort, subset: &str) -> String {
    format!("outbound|{}|{subset}|{}", port.number, service.fqdn())
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
