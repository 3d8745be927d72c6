//! Where pods run, and the subsets of a DestinationRule: what tells a mesh's requests apart beyond their workloads.

use serde_json::{Value, json};

use super::Parts;
use crate::topology::{Pod, Service, ServicePort};

/// The service that has several versions, and so subsets.
const REVIEWS: &str = "reviews";

/// Envoy's locality, as Istio sets it from a pod's labels or its node's. Ratings has none, as in a cluster without zones; reviews-v3 says its own by
/// a label only.
pub(super) fn locality(pod: &Pod) -> Value {
    match zone(pod) {
        Some(zone) if pod.workload != "reviews-v3" => json!({ "region": "eu", "zone": zone }),
        _ => json!({}),
    }
}

/// The label that says a locality in Istio's way, with dots.
pub(super) fn locality_label(pod: &Pod) -> Option<String> {
    (pod.workload == "reviews-v3").then(|| zone(pod)).flatten().map(|zone| format!("eu.{zone}"))
}

fn zone(pod: &Pod) -> Option<&'static str> {
    match (pod.app, pod.version.as_str()) {
        ("ratings", _) => None,
        ("details", _) | (REVIEWS, "v2") => Some("eu-1b"),
        (REVIEWS, "v3") => Some("eu-1c"),
        _ => Some("eu-1a"),
    }
}

/// The subsets of a service: their names, and the addresses of their pods. None unless the lab has them.
pub(super) fn subsets(parts: &Parts<'_>, service: &Service) -> Vec<(String, Vec<std::net::IpAddr>)> {
    if !parts.settings.subsets || service.name != REVIEWS {
        return Vec::new();
    }
    let pods = parts.topology.pods.iter().filter(|pod| pod.app == service.app);
    pods.map(|pod| (pod.version.clone(), vec![pod.ip.into()])).collect()
}

/// The name of a subset's cluster (`BuildSubsetKey` in `pilot/pkg/model`).
pub(super) fn subset_name(service: &Service, port: ServicePort, subset: &str) -> String {
    format!("outbound|{}|{subset}|{}", port.number, service.fqdn())
}

/// What a VirtualService that shares a service's requests out among its subsets makes of its route; the route as it is, if it has none.
pub(super) fn by_subsets(parts: &Parts<'_>, service: &Service, port: ServicePort, mut route: Value) -> Value {
    let subsets = subsets(parts, service);
    if let Some(action) = route["route"].as_object_mut().filter(|_| !subsets.is_empty()) {
        action.remove("cluster");
        let weighted =
            subsets.iter().map(|(subset, _)| json!({ "name": subset_name(service, port, subset), "weight": 1 }));
        action.insert("weighted_clusters".to_owned(), json!({ "clusters": weighted.collect::<Vec<_>>() }));
    }
    route
}
