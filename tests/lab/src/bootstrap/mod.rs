//! Envoy's static bootstrap, shaped like the configuration that istiod sends to a sidecar.
//!
//! Names, listeners, clusters and node metadata are Istio's (from `istioctl proxy-config` of 1.27 and
//! `pilot/pkg/networking/core`); what Istio does by its own Envoy extensions (`istio.alpn`, `istio.stats`, metadata
//! exchange) has no counterpart in a plain Envoy and is left out.

mod clusters;
mod listeners;
mod places;
mod trouble;

pub use trouble::{TIMEOUT_MS, TRY_MS};

use std::path::Path;

use serde_json::{Value, json};

use crate::settings::{Settings, Workload};
use crate::topology::{NAMESPACE, Pod, Proxy, TRUST_DOMAIN, Topology};

/// The uid and gid of the sidecar, by which the nat rules know it.
pub const PROXY_UID: u32 = 1337;
/// Envoy's admin interface within the pod.
pub const ADMIN_PORT: u16 = 15000;
/// Where the waiting server listens within the pod.
pub const AUTHZ_PORT: u16 = 9191;
/// The version of Istio whose configuration is emulated.
const ISTIO_VERSION: &str = "1.27.0";

/// The files of a pod's identity.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its certificate.
    pub certificate: &'a Path,
    /// Its private key.
    pub key: &'a Path,
    /// The mesh's root certificate.
    pub root: &'a Path,
}

/// What the parts of the bootstrap are made from.
struct Parts<'a> {
    settings: &'a Settings,
    topology: &'a Topology,
    pod: &'a Pod,
    /// Absent without mTLS.
    identity: Option<Identity<'a>>,
}

impl Parts<'_> {
    /// Whether the sidecars take plain text beside mutual TLS (`PeerAuthentication` with mode PERMISSIVE).
    fn is_permissive(&self) -> bool {
        self.settings.workloads.contains(&Workload::Scenarios)
    }
}

/// The bootstrap of one pod's sidecar.
pub fn bootstrap(settings: &Settings, topology: &Topology, pod: &Pod, identity: Identity<'_>) -> Value {
    let parts = Parts { settings, topology, pod, identity: settings.mtls.then_some(identity) };
    json!({
        "node": node(&parts),
        "admin": { "address": socket_address("127.0.0.1", ADMIN_PORT) },
        "static_resources": { "listeners": listeners::all(&parts), "clusters": clusters::all(&parts) },
    })
}

fn node(parts: &Parts<'_>) -> Value {
    let Parts { settings, pod, .. } = parts;
    let name = pod.full_name(settings.name.as_str());
    let kind = if pod.proxy == Proxy::Gateway { "router" } else { "sidecar" };
    let addresses: Vec<_> = std::iter::once(pod.ip.to_string()).chain(pod.ip6.map(|ip| ip.to_string())).collect();
    let mut node = json!({
        "id": format!("{kind}~{}~{name}.{NAMESPACE}~{NAMESPACE}.svc.{TRUST_DOMAIN}", pod.ip),
        "cluster": format!("{}.{NAMESPACE}", pod.app),
        "locality": places::locality(pod),
        "metadata": {
            "NAME": name,
            "NAMESPACE": NAMESPACE,
            "WORKLOAD_NAME": pod.workload,
            "OWNER": format!("kubernetes://apis/apps/v1/namespaces/{NAMESPACE}/deployments/{}", pod.workload),
            "LABELS": {
                "app": pod.app,
                "version": pod.version,
                "service.istio.io/canonical-name": pod.app,
                "service.istio.io/canonical-revision": pod.version,
                "security.istio.io/tlsMode": "istio",
            },
            "CLUSTER_ID": "Kubernetes",
            "MESH_ID": TRUST_DOMAIN,
            "NODE_NAME": "lab-node",
            "INSTANCE_IPS": addresses.join(","),
            "INTERCEPTION_MODE": if pod.proxy == Proxy::Tproxy { "TPROXY" } else { "REDIRECT" },
            "ISTIO_VERSION": ISTIO_VERSION,
            "APP_CONTAINERS": pod.app,
            "SERVICE_ACCOUNT": format!("bookinfo-{}", pod.app),
            "PROXY_CONFIG": { "concurrency": settings.concurrency },
        }
    });
    if let Some(label) = places::locality_label(pod) {
        node["metadata"]["LABELS"]["topology.istio.io/locality"] = json!(label);
    }
    node
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// An Envoy extension with its configuration.
fn extension(name: &str, config_type: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{config_type}"));
    json!({ "name": name, "typed_config": config })
}

/// TLS for one side. Istio offers and accepts 1.2 and 1.3; a client Envoy would stop at 1.2 if it were not told.
fn tls_context(identity: Identity<'_>, alpn: &[&str], peers: Value) -> Value {
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": alpn,
        "tls_certificates": [{
            "certificate_chain": { "filename": identity.certificate },
            "private_key": { "filename": identity.key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": identity.root },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": peers }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(change: impl FnOnce(&mut Settings), workload: &str) -> Value {
        let mut settings = crate::settings::tests::example();
        change(&mut settings);
        let topology = Topology::of(&settings);
        let pod = topology.pod(workload).unwrap();
        let [certificate, key, root] = ["/c.pem", "/k.pem", "/r.pem"].map(Path::new);
        bootstrap(&settings, &topology, pod, Identity { certificate, key, root })
    }

    fn names(values: &Value) -> Vec<&str> {
        values.as_array().unwrap().iter().map(|value| value["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_sidecar_is_shaped_like_istios() {
        let config = example(|_| {}, "reviews-v2");
        let resources = &config["static_resources"];
        assert_eq!(names(&resources["listeners"]), ["virtualOutbound", "0.0.0.0_9080", "virtualInbound"]);
        let clusters = names(&resources["clusters"]);
        for name in [
            "outbound|9080||reviews.default.svc.cluster.local",
            "inbound|9080||",
            "PassthroughCluster",
            "InboundPassthroughCluster",
            "BlackHoleCluster",
        ] {
            assert!(clusters.contains(&name), "{name} of {clusters:?}");
        }
        let id = config["node"]["id"].as_str().unwrap();
        assert!(
            id.starts_with("sidecar~10.77.0.14~reviews-v2-") && id.ends_with(".default~default.svc.cluster.local"),
            "{id}"
        );
        let metadata = &config["node"]["metadata"];
        assert_eq!(
            (metadata["WORKLOAD_NAME"].as_str(), metadata["NAMESPACE"].as_str()),
            (Some("reviews-v2"), Some("default"))
        );
        let text = config.to_string();
        assert!(!text.contains("ext_authz"), "the baseline mesh asks nobody");
        assert!(
            text.contains("\"authority\":\"meshdiff-als.default.svc.cluster.local\""),
            "a `|` is no valid authority"
        );
        assert!(
            text.contains("x-request-id")
                && text.contains("http_envoy_accesslog")
                && text.contains("tcp_envoy_accesslog")
        );
    }

    #[test]
    fn pods_say_where_they_run() {
        let node = |workload: &str| example(|_| {}, workload)["node"].clone();
        assert_eq!(node("productpage-v1")["locality"], json!({ "region": "eu", "zone": "eu-1a" }));
        assert_eq!(node("reviews-v2")["locality"]["zone"], "eu-1b");
        let by_label = node("reviews-v3");
        assert_eq!(by_label["locality"], json!({}));
        assert_eq!(by_label["metadata"]["LABELS"]["topology.istio.io/locality"], "eu.eu-1c");
        let nowhere = node("ratings-v1");
        assert_eq!(
            (&nowhere["locality"], nowhere["metadata"]["LABELS"].get("topology.istio.io/locality")),
            (&json!({}), None)
        );
    }

    #[test]
    fn requests_are_shared_out_among_subsets() {
        let text = example(|_| {}, "productpage-v1").to_string();
        assert!(!text.contains("weighted_clusters"));
        let config = example(|settings| settings.subsets = true, "productpage-v1");
        let clusters = names(&config["static_resources"]["clusters"]);
        for name in
            ["outbound|9080||reviews.default.svc.cluster.local", "outbound|9080|v2|reviews.default.svc.cluster.local"]
        {
            assert!(clusters.contains(&name), "{name} of {clusters:?}");
        }
        let text = config.to_string();
        assert_eq!(text.matches("weighted_clusters").count(), 1, "of reviews alone");
        assert!(text.contains("outbound_.9080_.v2_.reviews"), "Istio's SNI names the subset");
    }

    #[test]
    fn without_mtls_no_tls_is_left() {
        let text = example(|settings| settings.mtls = false, "ratings-v1").to_string();
        assert!(!text.contains("transport_socket") && !text.contains("/k.pem") && !text.contains("\"tls\""));
        assert!(example(|_| {}, "ratings-v1").to_string().contains("require_client_certificate"));
    }

    #[test]
    fn ext_authz_is_on_both_sides_under_its_own_prefix() {
        let text = example(|settings| settings.ext_authz = true, "ratings-v1").to_string();
        assert!(text.contains("\"path_prefix\":\"/out\"") && text.contains("\"path_prefix\":\"/in\""));
    }

    #[test]
    fn protocols_are_configured_by_the_name_of_the_port() {
        use crate::settings::Workload::{Bodies, Grpc, Tcp};
        let config = example(|settings| settings.workloads = vec![Grpc, Bodies, Tcp], "echo-v1");
        let resources = &config["static_resources"];
        let listeners =
            ["virtualOutbound", "0.0.0.0_8000", "0.0.0.0_8003", "0.0.0.0_8004", "10.96.0.10_9000", "10.96.0.10_9001"];
        assert_eq!(names(&resources["listeners"])[..6], listeners);
        let cluster = |name: &str| {
            let clusters = resources["clusters"].as_array().unwrap();
            clusters.iter().find(|cluster| cluster["name"] == name).unwrap().to_string()
        };
        for name in ["outbound|8003||echo.default.svc.cluster.local", "inbound|8003||"] {
            assert!(cluster(name).contains("\"explicit_http_config\":{\"http2_protocol_options\":{}}"), "{name}");
        }
        assert!(cluster("outbound|8003||echo.default.svc.cluster.local").contains("istio-h2"));
        assert!(!cluster("outbound|8000||echo.default.svc.cluster.local").contains("http2"));
        assert!(!cluster("outbound|9000||echo.default.svc.cluster.local").contains("HttpProtocolOptions"));
        assert_eq!(resources.to_string().matches("accept_http_10").count(), 1);
    }

    #[test]
    fn trouble_stays_on_its_ports() {
        let config = example(|settings| settings.workloads = vec![crate::settings::Workload::Trouble], "loadgen");
        let resources = &config["static_resources"];
        let part = |list: &str, name: &str| {
            let all = resources[list].as_array().unwrap();
            all.iter().find(|one| one["name"] == name).unwrap().to_string()
        };
        let main = part("listeners", "0.0.0.0_8020");
        for word in ["upstream_log", "hedge_on_per_try_timeout", "x-lab-spin", "header_delay"] {
            assert!(main.contains(word), "{word}");
        }
        assert!(!part("listeners", "0.0.0.0_8021").contains("upstream_log"), "the quiet port");
        assert!(part("clusters", "outbound|8022||echo.default.svc.cluster.local").contains("\"max_connections\":1,"));
        assert!(
            part("clusters", "outbound|8023||echo.default.svc.cluster.local").contains("max_requests_per_connection")
        );
        let usual = example(|_| {}, "reviews-v2").to_string();
        assert!(!usual.contains("upstream_log") && !usual.contains("x-lab-spin") && !usual.contains("hedge"));
    }

    #[test]
    fn a_service_has_the_pods_that_run() {
        let config = example(|settings| settings.reviews_versions = vec!["v1".into(), "v3".into()], "loadgen");
        let clusters = config["static_resources"]["clusters"].as_array().unwrap();
        let reviews = clusters.iter().find(|c| c["name"].as_str().unwrap().contains("||reviews")).unwrap();
        let endpoints = reviews["load_assignment"]["endpoints"][0]["lb_endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), 2);
    }
}
