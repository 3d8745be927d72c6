//! What deploy/ installs.

use crate::common::{SYSTEM, cluster, meshdiff};
use meshdiff_cluster::control_plane::ControlPlane;
use meshdiff_cluster::{privileged, root};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Objects by kind and name.
fn objects(yaml: &str, plane: &ControlPlane) -> BTreeMap<String, Value> {
    // kubectl reads YAML, so that nobody here has to: as JSON, without asking the server.
    let arguments = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
    let json = plane.kubectl("admin", &arguments, Some(yaml)).well();
    let mut values =
        serde_json::Deserializer::from_str(&json).into_iter::<Value>().map(|v| v.expect("JSON")).collect::<Vec<_>>();
    if let [list] = &values[..]
        && let Some(items) = list["items"].as_array()
    {
        values = items.clone();
    }
    let key = |v: &Value| format!("{} {}", v["kind"], v["metadata"]["name"]);
    values.into_iter().map(|v| (key(&v), v)).collect()
}

#[test]
fn the_chart_and_the_kustomize_base_render_the_same() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let path = |p: &str| root().join("deploy").join(p).to_str().expect("UTF-8").to_owned();
    let chart = path("helm/meshdiff");
    let template = ["template", "meshdiff", &chart, "--namespace", SYSTEM, "--kube-version", "1.35.0"];
    let same = [&template[..], &["--set", "namespace.create=true", "--set", "token.create=false"]].concat();
    let helm = objects(&plane.tool("helm", &same).well(), plane);
    let kustomize = objects(&plane.tool("kubectl", &["kustomize", &path("kustomize")]).well(), plane);
    assert_eq!(helm.keys().collect::<Vec<_>>(), kustomize.keys().collect::<Vec<_>>());
    for (name, object) in &helm {
        assert_eq!(Some(object), kustomize.get(name), "{name}");
    }
    // What is optional: a monitor of the Prometheus operator, and a token.
    let more =
        [&template[..], &["--set", "serviceMonitor.enabled=true", "--set", "agent.namespaces={shop,bank}"]].concat();
    let text = plane.tool("helm", &more).well();
    let component =
        std::fs::read_to_string(path("kustomize/service-monitor/service-monitor.yaml")).expect("the component");
    assert!(text.contains(component.trim()), "the monitors differ");
    for part in ["--namespace=shop", "--namespace=bank", "kind: Secret"] {
        assert!(text.contains(part), "{part}");
    }
    let lint = plane.tool("helm", &["lint", "--strict", &chart]);
    assert_eq!(lint.code, Some(0), "{}{}", lint.stdout, lint.stderr);
}

#[test]
fn the_manifests_ask_for_no_more_than_they_say() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let get = |what: &str| -> Value {
        let text = plane.kubectl("admin", &["-n", SYSTEM, "get", what, "-o", "json"], None).well();
        serde_json::from_str(&text).expect("JSON")
    };
    let pod = &get("daemonset/meshdiff-agent")["spec"]["template"]["spec"];
    assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&json!(true), &Value::Null));
    let context = &pod["containers"][0]["securityContext"];
    assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&Value::Null, &json!(false)));
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(get("service/grpc-als")["spec"]["internalTrafficPolicy"], "Local");
    // The server does look: what it does not know it refuses.
    let other = plane.kubectl("admin", &["apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-"], Some("{\"apiVersion\": \"apps/v1\", \"kind\": \"DaemonSet\", \"metadata\": {\"name\": \"x\"}, \"spec\": {\"hostPid\": true}}"));
    assert_ne!(other.code, Some(0), "a manifest with a field that does not exist is accepted: {}", other.stdout);
}

/// `meshdiff check` of this machine with these capabilities and no others.
fn check_with(capabilities: &[&str]) -> Value {
    let list: String = capabilities.iter().map(|c| format!(",+{}", c.to_ascii_lowercase())).collect();
    let mut command = std::process::Command::new("setpriv");
    command.args([&format!("--bounding-set=-all{list}"), "--inh-caps=-all", "--no-new-privs"]);
    command.arg(meshdiff()).args(["check", "--json", "--als-listen", "127.0.0.1:0"]);
    let output = command.output().expect("setpriv of util-linux");
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"))
}

/// Whatever this kernel takes probes as, it takes them from a process that has what the manifest adds, and from none that has less.
#[test]
fn the_capabilities_of_the_manifest_are_enough_and_all_needed() {
    if !privileged() {
        return;
    }
    let manifest = std::fs::read_to_string(root().join("deploy/kustomize/daemonset.yaml")).expect("the manifest");
    let added = manifest.split("add: [").nth(1).and_then(|rest| rest.split(']').next()).expect("capabilities");
    let added: Vec<&str> = added.split(", ").collect();
    let all = check_with(&added);
    assert_eq!(all["ready"], true, "{all:#}");
    let denied = |check: &Value| check["checks"].to_string().contains("may not be looked at");
    assert!(!denied(&all), "{all:#}");
    for one in &added {
        let fewer: Vec<&str> = added.iter().copied().filter(|c| c != one).collect();
        let check = check_with(&fewer);
        assert!(check["ready"] != true || missing(&check), "without {one} nothing is missed: {check:#}");
    }
}

/// True if a check says that a capability is missing.
fn missing(check: &Value) -> bool {
    let checks = check["checks"].as_array().expect("checks");
    checks.iter().any(|c| c["name"] == "capabilities" && c["status"] != "ok")
}
