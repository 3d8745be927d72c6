//! `check --cluster`.

use crate::common::{both, cluster, meshdiff};
use meshdiff_cluster::objects::PodSpec;
use meshdiff_cluster::privileged;
use serde_json::{Value, json};

#[test]
fn a_check_says_what_is_missing_with_its_remedy() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let _agents = both(plane);
    let program = meshdiff();
    plane.add_namespaces(&["istio-system"]);
    let check = |user: &str| -> (i32, Vec<Value>) {
        let ended = plane.meshdiff(&program, user, &["check", "--cluster", "--json", "-n", "default"]);
        let value: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr));
        (ended.code.expect("a code"), value["checks"].as_array().expect("checks").clone())
    };
    let has = |checks: &[Value], status: &str, text: &str| {
        let found =
            checks.iter().any(|c| c["status"] == status && c["text"].as_str().is_some_and(|t| t.contains(text)));
        assert!(found, "{status} {text:?} is not among {checks:#?}");
    };
    // Nobody has a sidecar yet, and Istio is not there.
    let (code, checks) = check("admin");
    assert_eq!(code, 1);
    has(&checks, "no", "no running pod has one");
    has(&checks, "ok", "you may get pods/proxy");
    has(&checks, "ok", "tp_btf probes");
    has(&checks, "ok", "to the agent of the same node");
    has(&checks, "note", "there is no ConfigMap istio");
    // Istio without our provider, then with it, off and on; a sidecar on a node without an agent.
    let mesh = |yaml: &str| {
        plane.apply(&[
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": yaml}}),
        ]);
    };
    mesh("accessLogFile: /dev/stdout\n");
    let pod = |name, node, address| PodSpec { namespace: "default", name, node, address, labels: &[], sidecar: true };
    plane.add_pods(&[pod("on-a", "node-a", "10.99.0.71"), pod("on-c", "node-c", "10.99.0.72")]);
    let (code, checks) = check("admin");
    assert_eq!(code, 1);
    has(&checks, "no", "no extension provider of kind envoyHttpAls");
    has(&checks, "no", "node-c (1)");
    has(&checks, "no", "from 2 of 2 sidecars: default/on-a, default/on-c");
    plane.remove_pod("default", "on-c");
    let provider = "extensionProviders:\n- name: meshdiff-http\n  envoyHttpAls: {service: grpc-als.meshdiff-system.svc.cluster.local, port: 9901}\n";
    mesh(provider);
    let (_, checks) = check("admin");
    has(&checks, "note", "the provider is defined");
    mesh(&format!("{provider}defaultProviders:\n  accessLogging: [meshdiff-http]\n"));
    let (_, checks) = check("admin");
    has(&checks, "ok", "the provider is in defaultProviders.accessLogging");
    has(&checks, "ok", "one on each of the 1 nodes");
    // Who has no rights is told which.
    let (code, checks) = check("stranger");
    assert_eq!(code, 1);
    has(&checks, "no", "you may not get pods/proxy in the namespace meshdiff-system");
    plane.remove_pod("default", "on-a");
}
