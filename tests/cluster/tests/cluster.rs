//! meshdiff and its manifests against a real API server.
//!
//! The agents here have one recorded capture each (the one of tests/fixtures, split in two): what is tested is everything between them and
//! who asks.

use meshdiff_cluster::agent::{Agent, Manner, Setup, tar_of};
use meshdiff_cluster::control_plane::ControlPlane;
use meshdiff_cluster::objects::{AGENT_LABELS, PodSpec};
use meshdiff_cluster::split::{self, Clocks};
use meshdiff_cluster::{privileged, root};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const SYSTEM: &str = "meshdiff-system";
const TOKEN: &str = "a-token-that-is-long-enough-0123456789";
const NODES: [&str; 2] = ["node-a", "node-b"];
const PODS: [&str; 2] = ["meshdiff-agent-aaaaa", "meshdiff-agent-bbbbb"];
const ADDRESSES: [&str; 2] = ["10.99.0.11", "10.99.0.12"];

/// The binary under test, as `cargo build --workspace` or `cargo test --workspace` made it beside this one.
fn meshdiff() -> PathBuf {
    let here = std::env::current_exe().expect("this program");
    let program = here.parent().and_then(Path::parent).expect("target/debug").join("meshdiff");
    assert!(program.exists(), "{} is not there: cargo build --workspace --bins", program.display());
    program
}

fn fixture() -> PathBuf {
    root().join("tests/fixtures/bookinfo-hidden-delay/capture")
}

/// The cluster with everything that deploy/ installs, and one test at a time in it.
fn cluster() -> (&'static ControlPlane, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let plane = ControlPlane::get();
    INSTALLED.get_or_init(|| {
        let base = root().join("deploy/kustomize");
        let arguments = ["apply", "--server-side", "--validate=strict", "-k", base.to_str().expect("UTF-8")];
        plane.kubectl("admin", &arguments, None).well();
        secret(plane, TOKEN);
        plane.add_nodes(&["node-a", "node-b", "node-c"]);
        for (user, roles) in [("user", true), ("stranger", false)] {
            plane.add_user(user, false);
            if roles {
                bind(plane, user);
            }
        }
    });
    (plane, turn)
}

fn secret(plane: &ControlPlane, token: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "meshdiff-token", "namespace": SYSTEM},
        "stringData": {"token": token}});
    plane.apply(&[object]);
}

/// As deploy/README.md says it.
fn bind(plane: &ControlPlane, user: &str) {
    let subject = json!([{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]);
    let binding = |name: &str, namespace: &str, kind: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace}, "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}})
    };
    let name = format!("meshdiff-{user}");
    plane.apply(&[
        binding(&name, SYSTEM, "Role", "meshdiff-user"),
        binding(&name, "default", "ClusterRole", "meshdiff-viewer"),
    ]);
}

/// The captures of two nodes, of which the second has clocks of its own: booted at another time, and five minutes fast.
fn captures(plane: &ControlPlane) -> &'static [Vec<u8>; 2] {
    static TARS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    TARS.get_or_init(|| {
        let clocks = [Clocks::default(), Clocks { monotonic: 77_000_000_000_000, wall: 300_000_000_000 }];
        let halves = split::halves(&fixture());
        std::array::from_fn(|i| {
            let folder = plane.folder().join(format!("capture-{i}"));
            split::write(&fixture(), &halves[i], clocks[i], &folder);
            tar_of(&folder)
        })
    })
}

fn agent(plane: &ControlPlane, i: usize, manner: Manner) -> Agent {
    Agent::start(Setup {
        address: format!("{}:9902", ADDRESSES[i]),
        node: NODES[i].to_owned(),
        token: TOKEN.to_owned(),
        tar: captures(plane)[i].clone(),
        manner,
    })
}

fn agent_pod<'a>(name: &'a str, node: &'a str, address: &'a str) -> PodSpec<'a> {
    PodSpec { namespace: SYSTEM, name, node, address, labels: &AGENT_LABELS, sidecar: false }
}

/// Registers both agents' pods, and those of the applications with the addresses that the capture has for them.
fn register(plane: &ControlPlane) {
    let agents: Vec<PodSpec<'_>> = (0..2).map(|i| agent_pod(PODS[i], NODES[i], ADDRESSES[i])).collect();
    plane.add_pods(&agents);
}

fn both(plane: &ControlPlane) -> [Agent; 2] {
    register(plane);
    std::array::from_fn(|i| agent(plane, i, Manner::Well))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

/// What is told of each request, by what it is.
fn told(list: &[Value]) -> BTreeMap<String, Value> {
    let key = |r: &Value| format!("{} {} {} {}", r["requestId"], r["path"], r["client"]["pod"], r["server"]["pod"]);
    let what = |r: &Value| json!([r["totalNs"], r["segments"], r["coverage"], r["responseCode"], r["protocol"]]);
    let told: BTreeMap<String, Value> = list.iter().map(|r| (key(r), what(r))).collect();
    assert_eq!(told.len(), list.len(), "requests are told apart");
    told
}

#[test]
fn a_report_through_the_pod_proxy_tells_what_one_machine_told() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let agents = both(plane);
    let program = meshdiff();
    let ended = plane.meshdiff(&program, "user", &["requests", "--namespace", "default"]);
    let notes = ended.stderr.clone();
    let found = told(&lines(&ended.well()));
    let capture = fixture();
    let local = ["requests", "--namespace", "default", "--capture", capture.to_str().expect("UTF-8")];
    let all = lines(&plane.meshdiff(&program, "user", &local).well());
    // An agent's window goes on: its last two seconds are not reported yet.
    let latest = all.iter().map(|r| r["start"].as_str().expect("a start").to_owned()).max().expect("requests");
    assert!(found.len() * 10 > all.len() * 7, "{} of {} until {latest}\n{notes}", found.len(), all.len());
    let expected = told(&all);
    for (request, told) in &found {
        assert_eq!(Some(told), expected.get(request), "{request}");
    }
    let joined = found.values().filter(|r| r[2]["full"] == true).count();
    assert!(joined * 10 > found.len() * 9, "{joined} of {} are full", found.len());
    // The clock of one node is five minutes fast: the report says so, and by how much.
    assert!(notes.contains("300.0") && notes.contains("the wall clock of node-"), "{notes}");
    for agent in &agents {
        let question = [("namespace".to_owned(), "default".to_owned()), ("since".to_owned(), "900s".to_owned())];
        assert_eq!(agent.asked().last().map(Vec::as_slice), Some(&question[..]));
    }
    // As a plugin of kubectl, with a table, all namespaces, and less time.
    let plugin = plane.folder().join("kubectl-meshdiff");
    drop(std::fs::remove_file(&plugin));
    std::os::unix::fs::symlink(&program, &plugin).expect("a link");
    let table = plane.meshdiff(&plugin, "admin", &["report", "-A", "--since", "1h"]).well();
    assert!(table.contains("ratings-v1"), "{table}");
    assert_eq!(agents[0].asked().last(), Some(&vec![("since".to_owned(), "3600s".to_owned())]));
}

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
        (&agent, "default", "list", "nodes", false),
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

#[test]
fn whoever_is_not_reached_is_named_and_the_rest_is_reported() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let report = |arguments: &[&str]| {
        plane.meshdiff(&program, "user", &[&["report", "--format=json", "-n", "default"], arguments].concat())
    };
    let notes = |text: &str| -> String {
        let report: Value = serde_json::from_str(text).expect("JSON");
        report["coverage"]["notes"].to_string()
    };
    // One agent only: the other pod is there, and nothing listens.
    let one = agent(plane, 0, Manner::Well);
    let said = notes(&report(&[]).well());
    assert!(said.contains("the agent on node-b was not asked") && said.contains("connection refused"), "{said}");
    // An agent that is not running at all, and an application on a node without any.
    plane.set_status(
        SYSTEM,
        &format!("pod/{}", PODS[1]),
        &json!({"phase": "Pending", "containerStatuses": [{"name": "app", "image": "x",
        "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
    );
    plane.add_pods(&[PodSpec {
        namespace: "default",
        name: "lonely",
        node: "node-c",
        address: "10.99.0.77",
        labels: &[],
        sidecar: true,
    }]);
    let said = notes(&report(&[]).well());
    assert!(said.contains("ImagePullBackOff") && said.contains("no agent runs on the node node-c"), "{said}");
    plane.remove_pod("default", "lonely");
    drop(one);
    // Nobody.
    report(&[]).says(1, &["none of the 2 agents", "node-a", "connection refused"]);
    for pod in PODS {
        plane.remove_pod(SYSTEM, pod);
    }
    report(&[]).says(1, &["no agent runs in the namespace \"meshdiff-system\"", "--agent-namespace"]);
}

#[test]
fn agents_that_misbehave_are_tried_again_or_refused() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let report = || plane.meshdiff(&program, "user", &["report", "--format=json", "-n", "default"]);
    {
        let flaky = agent(plane, 0, Manner::BreaksOff(2));
        let _well = agent(plane, 1, Manner::Well);
        let ended = report();
        assert!(!ended.stdout.contains("was not asked"), "{}", ended.stdout);
        ended.well();
        assert_eq!(flaky.asked().len(), 3, "twice in vain");
    }
    {
        let _later = agent(plane, 0, Manner::Later);
        let _hostile = agent(plane, 1, Manner::Hostile);
        report().says(
            1,
            &["meshdiff.capture/v99", "use the version of meshdiff that runs in the cluster", "no part of a capture"],
        );
        assert!(!Path::new("/tmp/meshdiff-was-here").exists());
    }
    // The Secret was changed, and the agents have another token.
    let _agents = both(plane);
    secret(plane, "another-token-that-is-long-enough");
    report().says(1, &["does not accept the token", "meshdiff-token"]);
    let arguments = ["-n", SYSTEM, "delete", "secret", "meshdiff-token"];
    plane.kubectl("admin", &arguments, None).well();
    report().says(1, &["the agents' token is missing", "--token-file"]);
    let token = plane.folder().join("right-token");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("written");
    let by_file = ["report", "-n", "default", "--token-file", token.to_str().expect("UTF-8")];
    plane.meshdiff(&program, "user", &by_file).well();
    secret(plane, TOKEN);
    report().well();
}

#[test]
fn a_cluster_that_cannot_be_asked_is_a_sentence() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let _agents = both(plane);
    let program = meshdiff();
    plane.add_user("expired", true);
    plane
        .meshdiff(&program, "expired", &["report", "-n", "default"])
        .says(1, &["does not accept the kubeconfig's credentials", "expired"]);
    let nowhere = ["report", "-n", "default", "--context", "nowhere"];
    plane.meshdiff(&program, "user", &nowhere).says(1, &["no context \"nowhere\"", "get-contexts"]);
    plane
        .meshdiff(&program, "user", &["report", "--kubeconfig", "/nonexistent"])
        .says(1, &["cannot read the kubeconfig", "--kubeconfig"]);
    plane.meshdiff(&program, "user", &["report", "-n", "Not A Name"]).says(2, &["is no name"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default", "node/x"]).says(2, &["deploy/NAME"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default", "deploy/none"]).says(1, &["no deploy/none"]);
    plane.meshdiff(&program, "user", &["report", "-n", "empty"]).says(4, &["no request", "\"empty\""]);
    plane.take_api_server_away();
    let away = plane.meshdiff(&program, "user", &["report", "-n", "default"]);
    plane.bring_api_server_back();
    away.says(1, &["cannot be reached", "refused"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default"]).well();
}

#[test]
fn workloads_are_chosen_as_in_kubectl() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let _agents = both(plane);
    let program = meshdiff();
    let all = lines(&plane.meshdiff(&program, "user", &["requests", "-n", "default"]).well());
    let address = |workload: &str| {
        let ends = all.iter().flat_map(|r| [&r["client"], &r["server"]]);
        let found = ends.filter(|e| e["workload"] == workload).find_map(|e| e["address"].as_str());
        found.expect("its address").split(':').next().expect("an address").to_owned()
    };
    let (ratings, reviews) = (address("ratings-v1"), address("reviews-v1"));
    let labels = |app: &'static str| [("app", app)];
    let pod =
        |name, address, labels| PodSpec { namespace: "default", name, node: "node-a", address, labels, sidecar: true };
    plane.add_pods(&[pod("ratings-1", &ratings, &labels("ratings")), pod("reviews-1", &reviews, &labels("reviews"))]);
    let selector = json!({"matchLabels": {"app": "ratings"}});
    plane.apply(&[
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ratings-v1", "namespace": "default"},
            "spec": {"selector": selector, "template": {"metadata": {"labels": {"app": "ratings"}},
            "spec": {"containers": [{"name": "app", "image": "example.com/ratings:1"}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ratings", "namespace": "default"},
            "spec": {"selector": {"app": "ratings"}, "ports": [{"port": 9080}]}}),
    ]);
    let of_ratings: BTreeSet<String> = all
        .iter()
        .filter(|r| [&r["client"], &r["server"]].iter().any(|e| e["workload"] == "ratings-v1"))
        .map(|r| r["id"].to_string())
        .collect();
    assert!(!of_ratings.is_empty() && of_ratings.len() < all.len());
    for chosen in [
        &["deploy/ratings-v1"][..],
        &["svc/ratings"],
        &["pod/ratings-1"],
        &["-l", "app=ratings"],
        &["-l", "app in (ratings)"],
    ] {
        let arguments = [&["requests", "-n", "default"], chosen].concat();
        let found = lines(&plane.meshdiff(&program, "user", &arguments).well());
        let ids: BTreeSet<String> = found.iter().map(|r| r["id"].to_string()).collect();
        assert_eq!(ids, of_ratings, "{chosen:?}");
    }
    let none = ["requests", "-n", "default", "-l", "app=nobody"];
    plane.meshdiff(&program, "user", &none).says(1, &["no pod for -l app=nobody"]);
    let bad = ["requests", "-n", "default", "-l", "=="];
    plane.meshdiff(&program, "user", &bad).says(1, &["refuses to list pods"]);
    for name in ["ratings-1", "reviews-1"] {
        plane.remove_pod("default", name);
    }
}

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

/// The agent itself, without probes and without traffic: what it answers is understood.
#[test]
fn the_agent_itself_answers_through_the_proxy() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let token = plane.folder().join("agents-token");
    std::fs::write(&token, TOKEN).expect("written");
    let mut agents: Vec<_> = (0..2)
        .map(|i| {
            let window = plane.folder().join(format!("window-{i}"));
            let address = |port: u16| format!("{}:{port}", ADDRESSES[i]);
            let arguments =
                ["agent", "--no-probes", "--no-kube", "--listen", &address(9902), "--als-listen", &address(9901)];
            let files = [
                "--token-file",
                token.to_str().expect("UTF-8"),
                "--window",
                window.to_str().expect("UTF-8"),
                "--node-name",
                NODES[i],
            ];
            plane.start_program(&program, &[&arguments[..], &files].concat(), &format!("agent-{i}.log"))
        })
        .collect();
    let started = std::time::Instant::now();
    let check = || {
        let ended = plane.meshdiff(&program, "user", &["check", "--cluster", "--json", "-n", "default"]);
        serde_json::from_str::<Value>(&ended.stdout)
            .unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr))
    };
    let of_node = |check: &Value, node: &str| -> String {
        let all = check["checks"].as_array().expect("checks").iter();
        all.filter(|c| c["name"] == format!("node {node}")).map(|c| c["text"].to_string()).collect()
    };
    loop {
        let found = check();
        if NODES.iter().all(|n| of_node(&found, n).contains("no kind of probes works there")) {
            break;
        }
        let logs: Vec<String> = agents.iter().map(|a| a.log()).collect();
        assert!(started.elapsed() < std::time::Duration::from_secs(90), "{found:#}\n{logs:#?}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    // There was no request: that is said, and is no error of anybody.
    let report = plane.meshdiff(&program, "user", &["report", "-n", "default", "--since", "1m"]);
    report.says(4, &["what the agents have holds no request", "no access log entry arrived"]);
    let wrong = plane.folder().join("wrong-token");
    std::fs::write(&wrong, "not-the-token-of-the-agents").expect("written");
    let by_file = ["report", "-n", "default", "--token-file", wrong.to_str().expect("UTF-8")];
    plane.meshdiff(&program, "user", &by_file).says(1, &["none of the 2 agents", "does not accept the token"]);
    // One is killed: the other one is asked all the same.
    agents[0].kill();
    let found = check();
    assert!(
        of_node(&found, NODES[0]).contains("cannot be asked")
            && of_node(&found, NODES[1]).contains("no kind of probes"),
        "{found:#}"
    );
}
