//! Who may do what.

use crate::common::{SYSTEM, TOKEN, both, cluster, meshdiff, register};
use meshdiff_cluster::control_plane::ControlPlane;
use meshdiff_cluster::privileged;
use serde_json::json;

/// `kubectl auth can-i`, as the API server's authorizer answers for somebody. `pods/exec` is a subresource, `secrets/NAME` a name.
fn can(plane: &ControlPlane, who: &str, namespace: &str, verb: &str, resource: &str) -> bool {
    let (resource, sub) = match resource.split_once('/') {
        Some((resource @ "pods", sub)) => (resource, format!("--subresource={sub}")),
        _ => (resource, "--subresource=".to_owned()),
    };
    let arguments = ["auth", "can-i", verb, resource, &sub, "--namespace", namespace, "--as", who];
    match plane.kubectl("admin", &arguments, None).stdout.trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn roles_grant_what_is_needed_and_nothing_else() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let _agents = both(plane);
    let agent = format!("system:serviceaccount:{SYSTEM}:meshdiff-agent");
    for (who, namespace, verb, resource, allowed) in [
        (agent.as_str(), "default", "list", "pods", true),
        (&agent, "default", "watch", "pods", true),
        (&agent, "default", "get", "secrets", false),
        (&agent, SYSTEM, "get", "secrets/meshdiff-token", false),
        (&agent, "default", "create", "pods", false),
        (&agent, "default", "get", "pods/exec", false),
        (&agent, SYSTEM, "get", "pods/proxy", false),
        (&agent, "default", "list", "nodes", true),
        (&agent, "default", "watch", "nodes", true),
        (&agent, "default", "update", "nodes", false),
        ("user", SYSTEM, "list", "pods", true),
        ("user", SYSTEM, "get", "pods/proxy", true),
        ("user", SYSTEM, "create", "pods/proxy", false),
        ("user", SYSTEM, "get", "secrets/meshdiff-token", true),
        ("user", SYSTEM, "get", "secrets/another", false),
        ("user", SYSTEM, "list", "secrets", false),
        ("user", "default", "list", "pods", true),
        ("user", "default", "get", "pods/proxy", false),
        ("user", "default", "get", "secrets/meshdiff-token", false),
        ("user", "kube-system", "list", "pods", false),
        ("stranger", SYSTEM, "list", "pods", false),
        ("stranger", SYSTEM, "get", "pods/proxy", false),
    ] {
        assert_eq!(can(plane, who, namespace, verb, resource), allowed, "{who} may {verb} {resource} in {namespace}");
    }
    // Not only what the authorizer says: who has the roles has a report, who has not is told what is missing.
    let program = meshdiff();
    plane.meshdiff(&program, "user", &["report", "-n", "default"]).well();
    let stranger = plane.meshdiff(&program, "stranger", &["report", "-n", "default"]);
    stranger.says(1, &["may not", "forbidden", "meshdiff-user"]);
    let token = plane.folder().join("token");
    std::fs::write(&token, TOKEN).expect("written");
    let token = token.to_str().expect("UTF-8");
    let stranger = plane.meshdiff(&program, "stranger", &["report", "-n", "default", "--token-file", token]);
    stranger.says(1, &["may not list the agents' pods", "forbidden", "meshdiff-user"]);
}

/// A user who may find agents and has their token, and may not ask them.
#[test]
fn the_proxy_is_a_right_of_its_own() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let agents = both(plane);
    plane.add_user("finder", false);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "finder", "namespace": SYSTEM},
        "rules": [{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "finder", "namespace": SYSTEM},
        "subjects": [{"kind": "User", "name": "finder", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "finder"}});
    plane.apply(&[role, binding]);
    let ended = plane.meshdiff(&meshdiff(), "finder", &["report", "-n", "default"]);
    ended.says(1, &["none of the 2 agents", "pods/proxy", "meshdiff-user"]);
    assert!(agents.iter().all(|a| a.asked().is_empty()), "it was asked all the same");
}
