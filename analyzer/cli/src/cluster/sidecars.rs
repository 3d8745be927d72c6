//! Which pods have a sidecar, and on which nodes.

use super::agents;
use super::connect::Cluster;
use super::error::ClusterError;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use std::collections::BTreeSet;

/// A running pod with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sidecar {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) node: String,
}

/// Those of a namespace, or of all.
pub(super) async fn sidecars(cluster: &Cluster, namespace: Option<&str>) -> Result<BTreeSet<Sidecar>, ClusterError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let pods = cluster.patiently(api.list(&ListParams::default()), "list pods", namespace.unwrap_or("")).await?;
    Ok(pods.items.into_iter().filter_map(sidecar).collect())
}

/// The sidecar is a container `istio-proxy`, or an init container that stays (Kubernetes' own sidecars).
fn sidecar(pod: Pod) -> Option<Sidecar> {
    let running = agents::is_running(&pod);
    let spec = pod.spec?;
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let has = all().any(|c| c.name == "istio-proxy");
    (has && running).then_some(Sidecar {
        namespace: pod.metadata.namespace?,
        pod: pod.metadata.name?,
        node: spec.node_name?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_sidecars_count() {
        let pod = |json| serde_json::from_value::<Pod>(json).expect("a pod");
        let native = pod(
            serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Running"},
            "spec": {"nodeName": "a", "containers": [{"name": "app"}], "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]}}),
        );
        assert_eq!(sidecar(native).map(|s| s.pod), Some("p".to_owned()));
        let plain =
            pod(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Running"},
            "spec": {"nodeName": "a", "containers": [{"name": "app"}]}}));
        assert_eq!(sidecar(plain), None);
    }
}
