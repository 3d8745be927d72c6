//! Nodes and Pods, as kubelets would have reported them.

use crate::control_plane::ControlPlane;
use serde_json::{Value, json};

/// A pod of a test.
#[derive(Clone, Copy, Debug)]
pub struct PodSpec<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its address.
    pub address: &'a str,
    /// Its labels.
    pub labels: &'a [(&'a str, &'a str)],
    /// Whether it has a sidecar.
    pub sidecar: bool,
}

/// The labels by which agents are found.
pub const AGENT_LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "meshdiff"), ("app.kubernetes.io/component", "agent")];

impl ControlPlane {
    /// Makes namespaces.
    pub fn add_namespaces(&self, names: &[&str]) {
        let one = |name: &&str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.apply(&names.iter().map(one).collect::<Vec<_>>());
    }

    /// Registers nodes.
    pub fn add_nodes(&self, names: &[&str]) {
        let one = |name: &&str| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-of-{name}")}}})
        };
        self.apply(&names.iter().map(one).collect::<Vec<_>>());
    }

    /// Registers pods that run.
    pub fn add_pods(&self, pods: &[PodSpec<'_>]) {
        self.apply(&pods.iter().map(object).collect::<Vec<_>>());
        for pod in pods {
            let status = json!({"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}],
                "conditions": [{"type": "Ready", "status": "True"}]});
            self.set_status(pod.namespace, &format!("pod/{}", pod.name), &status);
        }
    }

    /// Takes a pod away.
    pub fn remove_pod(&self, namespace: &str, name: &str) {
        self.kubectl("admin", &["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force"], None).well();
    }
}

fn object(pod: &PodSpec<'_>) -> Value {
    let labels: serde_json::Map<String, Value> = pod.labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    let mut containers = vec![json!({"name": "app", "image": "example.com/app:1"})];
    if pod.sidecar {
        containers.push(json!({"name": "istio-proxy", "image": "example.com/proxyv2:1"}));
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": labels},
        "spec": {"nodeName": pod.node, "containers": containers}})
}
