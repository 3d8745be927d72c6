//! What the agent's captures keep of what the API server says of its node's pods.

use crate::common::{ADDRESSES, NODES, TOKEN, cluster, meshdiff};
use meshdiff_capture::{KubernetesInfo, Meta};
use meshdiff_cluster::control_plane::ControlPlane;
use meshdiff_cluster::network::within;
use meshdiff_cluster::privileged;
use meshdiff_model::PodRecord;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);
/// The address that one pod after the other gets.
const ADDRESS: &str = "10.98.7.1";

/// A pod as a ReplicaSet makes it.
fn add_pod(plane: &ControlPlane, workload: &str, version: &str) {
    let set = format!("{workload}-6d8c5b7f4");
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": format!("uid-{set}"), "controller": true}]);
    let labels = json!({"app": "owned", "version": version, "pod-template-hash": "6d8c5b7f4"});
    let name = format!("{set}-x2x2x");
    plane.apply(&[json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels, "ownerReferences": owner},
        "spec": {"nodeName": NODES[0], "containers": [{"name": "app", "image": "example.com/app:1"}]}})]);
    let status = json!({"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]});
    plane.set_status("default", &format!("pod/{name}"), &status);
}

/// The meta of what the agent serves; `None` while it does not.
fn meta(address: String) -> Option<Meta> {
    let answer = within(move || {
        let mut stream = TcpStream::connect((address.as_str(), 9902)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        write!(stream, "GET /v1/capture HTTP/1.0\r\nHost: agent\r\nX-Meshdiff-Token: {TOKEN}\r\n\r\n").ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok()?;
        Some(all)
    })?;
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let mut tar = tar::Archive::new(answer.get(body..)?);
    let is_meta = |e: &tar::Entry<'_, _>| e.path().is_ok_and(|p| p.ends_with("meta.json"));
    let entry = tar.entries().ok()?.flatten().find(is_meta)?;
    serde_json::from_reader(entry).ok()
}

#[test]
fn an_agents_captures_know_the_pods_of_its_node() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    plane.add_user("as-an-agent", false);
    plane.apply(&[json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "as-an-agent"},
        "subjects": [{"kind": "User", "name": "as-an-agent", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "meshdiff-agent"}})]);
    add_pod(plane, "first", "v1");
    let folder = plane.folder();
    std::fs::write(folder.join("owners-token"), TOKEN).expect("written");
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let address = |port: u16| format!("{}:{port}", ADDRESSES[0]);
    let listen = ["--listen", &address(9902), "--als-listen", &address(9901), "--node-name", NODES[0]];
    let files = ["--token-file", &path("owners-token"), "--window", &path("owners-window")];
    let arguments = [&["agent", "--no-probes"][..], &listen, &files].concat();
    let agent = plane.start_meshdiff(&meshdiff(), "as-an-agent", &arguments, "owners.log");

    let until = |what: &str, is: &dyn Fn(&[PodRecord]) -> bool| -> KubernetesInfo {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = meta(ADDRESSES[0].to_owned()).and_then(|m| m.kubernetes);
            let of_address = |p: &&PodRecord| p.addresses.iter().any(|ip| ip.to_string() == ADDRESS);
            let pods: Vec<PodRecord> = told.iter().flat_map(|k| &k.pods).filter(of_address).cloned().collect();
            if is(&pods) {
                return KubernetesInfo { pods, ..told.unwrap_or_default() };
            }
            assert!(Instant::now() < deadline, "never: {what}: {told:?}; {}", agent.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    // Nodes are told of by an informer of their own, which may be later.
    let told = until("the first pod", &|pods| matches!(pods, [p] if p.locality.is_some()));
    assert!(told.trouble.is_empty(), "what the role grants suffices: {:?}", told.trouble);
    let first = &told.pods[0];
    assert_eq!((first.workload.as_str(), first.workload_kind.as_str()), ("first", "Deployment"));
    assert_eq!((first.version.as_deref(), first.service.as_deref()), (Some("v1"), Some("owned")));
    assert_eq!(first.node.as_deref(), Some(NODES[0]));
    assert_eq!(first.locality.as_ref().and_then(|l| l.zone_name()).as_deref(), Some("zone-of-node-a"));
    assert!(first.tenure.from.is_some() && first.tenure.until.is_none(), "{:?}", first.tenure);

    // The next pod gets its address: both are told of, each with its time.
    plane.remove_pod("default", "first-6d8c5b7f4-x2x2x");
    until("the first pod's end", &|pods| matches!(pods, [p] if p.tenure.until.is_some()));
    add_pod(plane, "second", "v2");
    let told = until("the second pod", &|pods| pods.len() == 2);
    let [first, second] = &told.pods[..] else { panic!("{told:?}") };
    assert_eq!((first.workload.as_str(), second.workload.as_str()), ("first", "second"));
    assert!(first.tenure.until.is_some() && second.tenure.until.is_none(), "{told:?}");
    plane.remove_pod("default", "second-6d8c5b7f4-x2x2x");
}
