//! Where the agents are, and what opens them.

use super::connect::Cluster;
use super::error::ClusterError;
use super::record::{MANAGED_BY, MANAGER};
use crate::args::ClusterArgs;
use http::HeaderValue;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use std::collections::BTreeMap;

/// The labels of the DaemonSet's pods (deploy/).
const LABELS: &str = "app.kubernetes.io/name=meshdiff,app.kubernetes.io/component=agent";
/// The Secret with the token.
pub(super) const SECRET: &str = "meshdiff-token";
/// Instead of the Secret, for who may not read it.
const TOKEN_VARIABLE: &str = "MESHDIFF_TOKEN";

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) pod: String,
    /// The node that it watches.
    pub(super) node: String,
    /// Why it cannot be asked, if it is not running.
    pub(super) not_running: Option<String>,
}

/// The agents, by node.
pub(super) async fn list(cluster: &Cluster) -> Result<Vec<Agent>, ClusterError> {
    let agents = find(cluster).await?;
    if agents.is_empty() {
        let (namespace, cluster) = (cluster.agent_namespace.clone(), cluster.name.clone());
        return Err(ClusterError::NoAgents { namespace, cluster });
    }
    Ok(agents)
}

/// The agents that are installed, by node; none is no error. Those of a recording are its own.
pub(super) async fn find(cluster: &Cluster) -> Result<Vec<Agent>, ClusterError> {
    let namespace = &cluster.agent_namespace;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{LABELS},{MANAGED_BY}!={MANAGER}"));
    let found = cluster.patiently(pods.list(&params), "list the agents' pods", namespace).await?;
    let mut agents: Vec<Agent> = found.items.iter().filter_map(agent).collect();
    agents.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    Ok(agents)
}

fn agent(pod: &Pod) -> Option<Agent> {
    let name = pod.metadata.name.clone()?;
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Unknown");
    // A pod that waits to be pulled or crashes is Pending or Running; its container says what is wrong.
    let waiting = status
        .and_then(|s| s.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let not_running = match (phase, waiting) {
        ("Running", None) => None,
        (phase, None) => Some(format!("its pod is {phase}")),
        (_, Some(reason)) => Some(format!("its container waits: {reason}")),
    };
    Some(Agent { node: node.unwrap_or_else(|| format!("(pod {name})")), pod: name, not_running })
}

/// The token that opens the agents: from where it was said to be, else from their Secret.
pub(super) async fn token(cluster: &Cluster, args: &ClusterArgs) -> Result<HeaderValue, ClusterError> {
    let text = match (&args.token_file, std::env::var(TOKEN_VARIABLE)) {
        (Some(path), _) => {
            std::fs::read_to_string(path).map_err(|source| ClusterError::TokenFile { path: path.clone(), source })?
        }
        (None, Ok(token)) if !token.is_empty() => token,
        _ => from_secret(cluster, &args.agent_namespace).await?,
    };
    let mut value = HeaderValue::from_str(text.trim()).map_err(|_| ClusterError::StrangeToken)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn from_secret(cluster: &Cluster, namespace: &str) -> Result<String, ClusterError> {
    let missing = || ClusterError::NoToken { name: SECRET, namespace: namespace.to_owned() };
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let secret = cluster.patiently(secrets.get_opt(SECRET), "read the Secret meshdiff-token", namespace).await?;
    let data = secret.and_then(|s| s.data).ok_or_else(missing)?;
    let token = data.get("token").filter(|t| !t.0.is_empty()).ok_or_else(missing)?;
    String::from_utf8(token.0.clone()).map_err(|_| ClusterError::StrangeToken)
}

/// Says on which nodes pods of a namespace run without an agent: nobody saw what they did.
pub(super) async fn nodes_without(cluster: &Cluster, namespace: &str, agents: &[Agent]) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let listed = cluster.patiently(pods.list(&ListParams::default()), "list pods", namespace).await;
    let pods = match listed {
        Ok(pods) => pods.items,
        Err(error) => {
            return vec![format!("whether agents run on all nodes with pods of {namespace} is not known: {error}")];
        }
    };
    let mut without: BTreeMap<String, u32> = BTreeMap::new();
    for node in pods.iter().filter(|p| is_running(p)).filter_map(|p| p.spec.as_ref()?.node_name.clone()) {
        if !agents.iter().any(|a| a.node == node) {
            *without.entry(node).or_default() += 1;
        }
    }
    let say = |(node, pods): (String, u32)| {
        let pods = if pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") };
        format!("no agent runs on the node {node}, which has {pods} of {namespace}: what they measured is missing")
    };
    without.into_iter().map(say).collect()
}

pub(super) fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("a pod")
    }

    #[test]
    fn agents_that_do_not_run_say_why() {
        let running = pod(serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running"}}));
        assert_eq!(agent(&running), Some(Agent { pod: "a".into(), node: "n1".into(), not_running: None }));
        let pulling = pod(serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Pending", "containerStatuses": [{"name": "agent", "image": "x", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}));
        let why = agent(&pulling).expect("an agent").not_running.expect("a reason");
        assert!(why.contains("ImagePullBackOff"), "{why}");
        let unscheduled = pod(
            serde_json::json!({"metadata": {"name": "a"}, "spec": {"containers": []}, "status": {"phase": "Pending"}}),
        );
        assert_eq!(agent(&unscheduled).expect("an agent").not_running.as_deref(), Some("its pod is Pending"));
    }
}
