//! `record -n NS`: short-lived agents in a cluster. The nodes are stand-ins ([`meshdiff_cluster::kubelet`]); the API server, its roles and Pod
//! Security are real. Each test has a namespace of its own for the agents.

use crate::common::{both, captures, cluster, fixture, lines, meshdiff, told};
use meshdiff_cluster::control_plane::{ControlPlane, Ended};
use meshdiff_cluster::kubelet::{Kubelets, Node, collect_garbage};
use meshdiff_cluster::objects::PodSpec;
use meshdiff_cluster::{privileged, root};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where the nodes' agents listen.
const ADDRESSES: [&str; 2] = ["10.99.0.21", "10.99.0.22"];
const RECORDING: &str = "Recording the namespace default";

/// Pods with sidecars on these nodes, in the namespace `default`, until this is dropped.
struct Applications<'a>(&'a ControlPlane, Vec<String>);

impl<'a> Applications<'a> {
    fn on(plane: &'a ControlPlane, nodes: &[&str]) -> Self {
        let names: Vec<String> = nodes.iter().map(|n| format!("app-on-{n}")).collect();
        let pods: Vec<PodSpec<'_>> = (names.iter().zip(nodes))
            .map(|(name, node)| PodSpec {
                namespace: "default",
                name,
                node,
                address: "10.99.0.99",
                labels: &[("app", "recorded")],
                sidecar: true,
            })
            .collect();
        plane.add_pods(&pods);
        Self(plane, names)
    }
}

impl Drop for Applications<'_> {
    fn drop(&mut self) {
        self.1.iter().for_each(|name| self.0.remove_pod("default", name));
    }
}

fn namespace(plane: &ControlPlane, name: &str, level: &str) {
    plane.apply(&[json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": level}}})]);
}

/// A user with what deploy/ says that recording takes: the Role in the agents' namespace, and the viewer's in that of the applications.
fn recorder(plane: &ControlPlane, user: &str, namespace: &str) {
    plane.add_user(user, false);
    let role = std::fs::read_to_string(root().join("deploy/record/role.yaml")).expect("the role");
    let role = role.replace("namespace: meshdiff-system", &format!("namespace: {namespace}"));
    let apply = ["apply", "--server-side", "--validate=strict", "-f", "-"];
    plane.kubectl("admin", &apply, Some(&role)).well();
    bind(plane, user, namespace, &["--role", "meshdiff-recorder"]);
    bind(plane, user, "default", &["--clusterrole", "meshdiff-viewer"]);
}

fn bind(plane: &ControlPlane, user: &str, namespace: &str, role: &[&str]) {
    let name = format!("recorder-{user}");
    let binding = ["-n", namespace, "create", "rolebinding", &name, "--user", user];
    plane.kubectl("admin", &[&binding, role].concat(), None).well();
}

fn arguments<'a>(agents: &'a str, output: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let output = output.to_str().expect("UTF-8");
    let all = ["record", "-n", "default", "--agent-namespace", agents, "--output", output];
    [&all, more].concat()
}

fn output(plane: &ControlPlane, name: &str) -> PathBuf {
    plane.folder().join(name)
}

/// What is there of a namespace, by kind, as JSON.
fn get(plane: &ControlPlane, namespace: &str, what: &str) -> Vec<Value> {
    let text = plane.kubectl("admin", &["-n", namespace, "get", what, "-o", "json"], None).well();
    let value: Value = serde_json::from_str(&text).expect("JSON");
    value["items"].as_array().cloned().unwrap_or_else(|| vec![value])
}

/// Everything of recordings that is left in a namespace, by name.
fn left(plane: &ControlPlane, namespace: &str) -> Vec<String> {
    let all = ["-n", namespace, "get", "pods,configmaps,secrets,services", "-o", "name"];
    let of = ["-l", "app.kubernetes.io/managed-by=meshdiff-record"];
    plane.kubectl("admin", &[&all[..], &of].concat(), None).well().lines().map(str::to_owned).collect()
}

fn serving(plane: &ControlPlane, i: usize) -> Node {
    Node::Serves(ADDRESSES[i], captures(plane)[i].clone())
}

/// Two nodes have agents, the third never: what the two had is a recording of both on one timeline, and everybody is told of the third.
#[test]
fn a_recording_without_installed_agents_tells_what_all_nodes_saw() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let program = meshdiff();
    let nodes = [("node-a", serving(plane, 0)), ("node-b", serving(plane, 1)), ("node-c", Node::PullsNothing)];
    let _kubelets = Kubelets::start(plane, &program, "rec-report", nodes.into());
    let _applications = Applications::on(plane, &["node-a", "node-b", "node-c"]);
    let output = output(plane, "recorded");
    let more = ["--duration", "1s", "--image", "registry.example/meshdiff:9"];
    let ended = plane.meshdiff(&program, "admin", &arguments("rec-report", &output, &more));
    let said = ended.stderr.clone();
    ended.well();
    for words in [
        "no agent on the node node-c: the image registry.example/meshdiff:9 cannot be had (ImagePullBackOff",
        "with agents on 2 nodes",
        "The agents are removed.",
        "Next: meshdiff report --capture",
    ] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    // The namespace was made for it, as deploy/ has it, and goes with it.
    let namespace = get(plane, "default", "namespace/rec-report").remove(0);
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    assert!(!namespace["metadata"]["deletionTimestamp"].is_null(), "{namespace}");
    assert!(get(plane, "rec-report", "pods").is_empty());
    // Everybody who reads captures reads it: what is told is what one machine told.
    let here = |arguments: &[&str]| plane.meshdiff(&program, "admin", arguments);
    let path = output.to_str().expect("UTF-8");
    let found = told(&lines(&here(&["requests", "--since", "1h", "--capture", path]).well()));
    let local = fixture();
    let expected = told(&lines(&here(&["requests", "--capture", local.to_str().expect("UTF-8")]).well()));
    assert!(found.len() * 10 > expected.len() * 7, "{} of {}", found.len(), expected.len());
    for (request, told) in &found {
        assert_eq!(Some(told), expected.get(request), "{request}");
    }
    let report = here(&["report", "--format", "json", "--capture", path]).well();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let notes = report["coverage"]["notes"].to_string();
    assert!(notes.contains("no agent on the node node-c") && notes.contains("the wall clock of node-"), "{notes}");
    // The capture of a node is one by itself.
    let node = output.join("node-a");
    here(&["requests", "--capture", node.to_str().expect("UTF-8")]).well();
    let again = here(&arguments("rec-report-2", &output, &["--duration", "1s"]));
    again.says(1, &["exists and is not empty", "--force"]);
}

/// The agent itself, as a user who has the roles of deploy/ and no others. Ctrl-C ends the recording, keeps it, and removes everything.
#[test]
fn ctrl_c_ends_a_recording_keeps_it_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let program = meshdiff();
    namespace(plane, "rec-signal", "privileged");
    recorder(plane, "recorder", "rec-signal");
    let nodes = [("node-a", Node::Runs(ADDRESSES[0])), ("node-b", Node::Runs(ADDRESSES[1]))];
    let _kubelets = Kubelets::start(plane, &program, "rec-signal", nodes.into());
    let _applications = Applications::on(plane, &["node-a", "node-b"]);
    let output = output(plane, "interrupted");
    let arguments = arguments("rec-signal", &output, &["--duration", "10m"]);
    let mut recording = plane.start_meshdiff(&program, "recorder", &arguments, "rec-signal.log");
    recording.wait_for(RECORDING);
    // Should this program be killed now, all of it would end by itself, or go with one object.
    let pods = get(plane, "rec-signal", "pods");
    assert_eq!(pods.len(), 2);
    let anchor = get(plane, "rec-signal", "configmaps").into_iter().find(|c| !c["data"]["lastsSeconds"].is_null());
    let anchor = anchor.expect("what everything hangs on");
    for pod in &pods {
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Never");
        assert_eq!(spec["activeDeadlineSeconds"], 120 + 600 + 600);
        assert_eq!(spec["tolerations"][0]["operator"], "Exists");
        assert!(spec["hostPID"] == true && spec["serviceAccountName"].is_null(), "{spec}");
    }
    let secrets = get(plane, "rec-signal", "secrets");
    let service = get(plane, "rec-signal", "service/grpc-als");
    assert!(secrets.len() == 1 && service[0]["spec"]["internalTrafficPolicy"] == "Local");
    for object in pods.iter().chain(&secrets).chain(&service) {
        let owners = &object["metadata"]["ownerReferences"];
        assert_eq!(owners[0]["uid"], anchor["metadata"]["uid"], "{}", object["metadata"]["name"]);
    }
    recording.signal(Signal::SIGINT);
    let ended = recording.ended();
    ended.says(0, &["The agents are removed.", "on 2 nodes", "Next: meshdiff report"]);
    assert!(get(plane, "rec-signal", "pods").is_empty());
    // The cluster's garbage collector does the rest.
    let collected = collect_garbage(plane, "rec-signal");
    assert_eq!(collected.len(), 2, "{collected:?}");
    assert_eq!(left(plane, "rec-signal"), Vec::<String>::new());
    let namespace = get(plane, "default", "namespace/rec-signal").remove(0);
    assert!(namespace["metadata"]["deletionTimestamp"].is_null(), "a namespace that was there is gone");
    // There was no traffic; both nodes' agents said so.
    let report = ["report", "--capture", output.to_str().expect("UTF-8")];
    plane.meshdiff(&program, "admin", &report).says(4, &["holds no request", "no access log entry arrived"]);
    let about: Value =
        serde_json::from_str(&std::fs::read_to_string(output.join("recording.json")).expect("read")).expect("JSON");
    assert_eq!(about["nodes"], json!(["node-a", "node-b"]));
}

/// What a recording leaves that was killed keeps others away while its agents may run, and is removed by the next one afterwards.
#[test]
fn what_a_killed_recording_leaves_is_said_and_removed() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let program = meshdiff();
    namespace(plane, "rec-killed", "privileged");
    recorder(plane, "recorder-2", "rec-killed");
    let kubelets = Kubelets::start(plane, &program, "rec-killed", [("node-a", serving(plane, 0))].into());
    let _applications = Applications::on(plane, &["node-a"]);
    let output = output(plane, "killed");
    let begin = |duration: &'static str, log: &str| {
        let arguments = arguments("rec-killed", &output, &["--duration", duration]);
        plane.start_meshdiff(&program, "recorder-2", &arguments, log)
    };
    let mut killed = begin("10m", "rec-killed-1.log");
    killed.wait_for(RECORDING);
    killed.kill();
    assert_eq!(left(plane, "rec-killed").len(), 4, "a pod, and what it needs");
    let refused = begin("1s", "rec-killed-2.log").ended();
    let refused = refused
        .says(1, &["another recording runs in the namespace rec-killed", "of the nodes node-a", "delete configmap"]);
    assert!(!output.exists(), "a recording that did not begin left its folder");
    assert_eq!(left(plane, "rec-killed").len(), 4, "{}", refused.stderr);
    // Its time is over: here because we say so, and nobody ends its agent for it.
    drop(kubelets);
    let anchor = left(plane, "rec-killed").into_iter().find(|n| n.starts_with("configmap/")).expect("the anchor");
    let patch = ["-n", "rec-killed", "patch", &anchor, "--type=merge", "-p", "{\"data\": {\"lastsSeconds\": \"0\"}}"];
    plane.kubectl("admin", &patch, None).well();
    let mut next = begin("10m", "rec-killed-3.log");
    next.wait_for("Removing what an earlier recording left");
    let started = std::time::Instant::now();
    // The Service of the killed one goes first, then there is another.
    while !collect_garbage(plane, "rec-killed").iter().any(|n| n == "service/grpc-als") {
        assert!(started.elapsed() < std::time::Duration::from_secs(60), "{}", next.log());
    }
    // There is no kubelet any more to end its pod.
    let of_killed = format!("app.kubernetes.io/instance={}", anchor.trim_start_matches("configmap/"));
    let remains = ["-n", "rec-killed", "delete", "pods", "-l", &of_killed, "--force", "--grace-period=0"];
    plane.kubectl("admin", &remains, None).well();
    next.signal(Signal::SIGTERM);
    next.ended().says(1, &["ended before anything was recorded"]);
    collect_garbage(plane, "rec-killed");
    assert_eq!(left(plane, "rec-killed"), Vec::<String>::new());
}

/// A node that is away does not end its agent: what stays is said, with what removes it, and the recording is kept.
#[test]
fn what_cannot_be_removed_is_said_with_what_removes_it() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let program = meshdiff();
    namespace(plane, "rec-away", "privileged");
    let nodes = [("node-a", Node::Keeps(ADDRESSES[0], captures(plane)[0].clone()))];
    let _kubelets = Kubelets::start(plane, &program, "rec-away", nodes.into());
    let _applications = Applications::on(plane, &["node-a"]);
    let output = output(plane, "away");
    let arguments = arguments("rec-away", &output, &["--duration", "10m", "--context", "test"]);
    let mut recording = plane.start_meshdiff(&program, "admin", &arguments, "rec-away.log");
    recording.wait_for(RECORDING);
    recording.signal(Signal::SIGTERM);
    let started = std::time::Instant::now();
    while get(plane, "rec-away", "pods").iter().any(|p| p["metadata"]["deletionTimestamp"].is_null()) {
        assert!(started.elapsed() < std::time::Duration::from_secs(60), "{}", recording.log());
    }
    recording.signal(Signal::SIGINT);
    let remedy = "`kubectl --context test -n rec-away delete configmap meshdiff-record-";
    recording.ended().says(1, &["Recorded ", "not everything could be removed", remedy]);
    let requests = ["requests", "--since", "1h", "--capture", output.to_str().expect("UTF-8")];
    assert!(!plane.meshdiff(&program, "admin", &requests).well().is_empty());
    let force = ["-n", "rec-away", "delete", "pods", "--all", "--force", "--grace-period=0"];
    plane.kubectl("admin", &force, None).well();
}

fn try_to_record(plane: &ControlPlane, user: &str, agents: &str, more: &[&str]) -> Ended {
    let output = output(plane, "refused");
    let ended = plane.meshdiff(&meshdiff(), user, &arguments(agents, &output, &[&["--duration", "1s"], more].concat()));
    assert!(!output.exists(), "a recording that did not come about left its folder: {}", ended.stderr);
    ended
}

#[test]
fn a_recording_that_cannot_be_made_is_a_sentence_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let program = meshdiff();
    // Nobody has a sidecar.
    try_to_record(plane, "user", "rec-none", &[]).says(4, &["no running pod of the namespace default has a sidecar"]);
    let _applications = Applications::on(plane, &["node-c"]);
    try_to_record(plane, "user", "rec-none", &["deploy/none"]).says(1, &["no deploy/none"]);
    // Who may not look at pods, and who may look and not start agents.
    try_to_record(plane, "stranger", "rec-none", &[]).says(1, &["may not list pods", "meshdiff-viewer"]);
    let ended = try_to_record(plane, "user", "rec-none", &[]);
    ended.says(
        1,
        &["may not start agents in the namespace rec-none", "create pods", "get pods/proxy", "deploy/record/role.yaml"],
    );
    // Who may start them in a namespace that is not there, and may not make one.
    plane.add_user("recorder-3", false);
    bind(plane, "recorder-3", "default", &["--clusterrole", "meshdiff-viewer"]);
    let role = std::fs::read_to_string(root().join("deploy/record/role.yaml")).expect("the role");
    let everywhere = role.replace("kind: Role\n", "kind: ClusterRole\n").replace("  namespace: meshdiff-system\n", "");
    plane.kubectl("admin", &["apply", "--server-side", "-f", "-"], Some(&everywhere)).well();
    let binding =
        ["create", "clusterrolebinding", "recorder-3", "--user", "recorder-3", "--clusterrole", "meshdiff-recorder"];
    plane.kubectl("admin", &binding, None).well();
    let ended = try_to_record(plane, "recorder-3", "rec-none", &[]);
    ended.says(1, &["there is no namespace rec-none", "deploy/kustomize/namespace.yaml"]);
    // Pod Security lets no agents in; those without probes need nothing.
    namespace(plane, "rec-strict", "restricted");
    let ended = try_to_record(plane, "recorder-3", "rec-strict", &[]);
    ended.says(
        1,
        &["Pod Security does not let agents into the namespace rec-strict", "hostPID", "kubectl label namespace"],
    );
    collect_garbage(plane, "rec-strict");
    assert_eq!(left(plane, "rec-strict"), Vec::<String>::new());
    let _kubelets = Kubelets::start(plane, &program, "rec-strict", [("node-c", Node::PullsNothing)].into());
    let ended = try_to_record(plane, "recorder-3", "rec-strict", &["--no-probes"]);
    ended.says(1, &["no agent records", "on the node node-c: the image ghcr.io/meshdiff/meshdiff:"]);
    assert!(get(plane, "rec-strict", "pods").is_empty());
    collect_garbage(plane, "rec-strict");
    // Whether sidecars log to the agents is looked at before anything is started.
    namespace(plane, "istio-of-record", "restricted");
    plane.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-of-record"},
        "data": {"mesh": "accessLogFile: /dev/stdout\n"}}),
    ]);
    let ended = try_to_record(plane, "admin", "rec-strict", &["--no-probes", "--istio-namespace", "istio-of-record"]);
    ended.says(
        1,
        &[
            "no agent records",
            "Warning: Istio's settings: no extension provider",
            "grpc-als.rec-strict",
            "only connections are known",
        ],
    );
}

#[test]
fn installed_agents_are_used_and_nothing_is_started() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let agents = both(plane);
    let program = meshdiff();
    let _applications = Applications::on(plane, &["node-a", "node-c"]);
    let output = output(plane, "installed");
    let path = output.to_str().expect("UTF-8");
    let arguments = ["record", "-n", "default", "--output", path, "--duration", "10m", "-l", "app=recorded"];
    let mut recording = plane.start_meshdiff(&program, "user", &arguments, "rec-installed.log");
    recording.wait_for("Recording -l app=recorded in the namespace default");
    recording.signal(Signal::SIGINT);
    recording.ended().says(0, &["2 of 2 run. They are used, and nothing is started", "on 2 nodes"]);
    assert!(left(plane, "meshdiff-system").is_empty());
    for agent in &agents {
        let question = agent.asked().pop().expect("it was asked");
        assert_eq!(question[0], ("namespace".to_owned(), "default".to_owned()));
    }
    let report = plane.meshdiff(&program, "user", &["report", "--format", "json", "--capture", path]).well();
    assert!(report.contains("no agent runs on the node node-c"), "{report}");
}
