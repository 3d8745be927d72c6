//! What tests begin with: the cluster with everything that deploy/ installs, and agents in it.

use meshdiff_cluster::agent::{Agent, Manner, Setup, tar_of};
use meshdiff_cluster::control_plane::ControlPlane;
use meshdiff_cluster::objects::{AGENT_LABELS, PodSpec};
use meshdiff_cluster::root;
use meshdiff_cluster::split::{self, Clocks};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub(crate) const SYSTEM: &str = "meshdiff-system";
pub(crate) const TOKEN: &str = "a-token-that-is-long-enough-0123456789";
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
pub(crate) const PODS: [&str; 2] = ["meshdiff-agent-aaaaa", "meshdiff-agent-bbbbb"];
pub(crate) const ADDRESSES: [&str; 2] = ["10.99.0.11", "10.99.0.12"];

/// The binary under test, as `cargo build --workspace` or `cargo test --workspace` made it beside this one.
pub(crate) fn meshdiff() -> PathBuf {
    let here = std::env::current_exe().expect("this program");
    let program = here.parent().and_then(Path::parent).expect("target/debug").join("meshdiff");
    assert!(program.exists(), "{} is not there: cargo build --workspace --bins", program.display());
    program
}

pub(crate) fn fixture() -> PathBuf {
    root().join("tests/fixtures/bookinfo-hidden-delay/capture")
}

/// The cluster with everything that deploy/ installs, and one test at a time in it.
pub(crate) fn cluster() -> (&'static ControlPlane, MutexGuard<'static, ()>) {
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

pub(crate) fn secret(plane: &ControlPlane, token: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "meshdiff-token", "namespace": SYSTEM},
        "stringData": {"token": token}});
    plane.apply(&[object]);
}

/// As deploy/README.md says it.
pub(crate) fn bind(plane: &ControlPlane, user: &str) {
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
pub(crate) fn captures(plane: &ControlPlane) -> &'static [Vec<u8>; 2] {
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

pub(crate) fn agent(plane: &ControlPlane, i: usize, manner: Manner) -> Agent {
    Agent::start(Setup {
        address: format!("{}:9902", ADDRESSES[i]),
        node: NODES[i].to_owned(),
        token: TOKEN.to_owned(),
        tar: captures(plane)[i].clone(),
        manner,
    })
}

pub(crate) fn agent_pod<'a>(name: &'a str, node: &'a str, address: &'a str) -> PodSpec<'a> {
    PodSpec { namespace: SYSTEM, name, node, address, labels: &AGENT_LABELS, sidecar: false }
}

/// Registers both agents' pods, and those of the applications with the addresses that the capture has for them.
pub(crate) fn register(plane: &ControlPlane) {
    let agents: Vec<PodSpec<'_>> = (0..2).map(|i| agent_pod(PODS[i], NODES[i], ADDRESSES[i])).collect();
    plane.add_pods(&agents);
}

pub(crate) fn both(plane: &ControlPlane) -> [Agent; 2] {
    register(plane);
    std::array::from_fn(|i| agent(plane, i, Manner::Well))
}

pub(crate) fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

/// What is told of each request, by what it is.
pub(crate) fn told(list: &[Value]) -> BTreeMap<String, Value> {
    let key = |r: &Value| format!("{} {} {} {}", r["requestId"], r["path"], r["client"]["pod"], r["server"]["pod"]);
    let what = |r: &Value| json!([r["totalNs"], r["segments"], r["coverage"], r["responseCode"], r["protocol"]]);
    let told: BTreeMap<String, Value> = list.iter().map(|r| (key(r), what(r))).collect();
    assert_eq!(told.len(), list.len(), "requests are told apart");
    told
}
