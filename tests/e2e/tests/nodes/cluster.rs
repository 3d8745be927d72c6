//! Two nodes of a cluster: a real API server, and on each node the agent itself, with the rights that `deploy/` gives it.

use meshdiff_cluster::control_plane::{ControlPlane, Running};
use meshdiff_cluster::objects::{AGENT_LABELS, PodSpec};
use meshdiff_cluster::root;
use meshdiff_e2e::{PodLine, TOKEN, binary};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SYSTEM: &str = "meshdiff-system";
/// The account of the DaemonSet's pods, as the API server calls it.
const ACCOUNT: &str = "system:serviceaccount:meshdiff-system:meshdiff-agent";
/// For what a busy machine takes its time with.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node and its agent.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pod: &'static str,
    address: &'static str,
    agent: Running,
    started: u32,
}

/// Both nodes.
pub(crate) struct Cluster {
    pub(crate) plane: &'static ControlPlane,
    pub(crate) nodes: [Node; 2],
    kubeconfig: PathBuf,
}

/// The nodes' names, their agents' pods and addresses.
pub(crate) const NODES: [(&str, &str, &str); 2] =
    [("node-a", "meshdiff-agent-aaaaa", "10.99.0.21"), ("node-b", "meshdiff-agent-bbbbb", "10.99.0.22")];

/// The control plane with what `deploy/` installs, and a user who has the roles of `deploy/README.md`.
pub(crate) fn installed() -> &'static ControlPlane {
    let plane = ControlPlane::get();
    let base = root().join("deploy/kustomize");
    let arguments = ["apply", "--server-side", "--validate=strict", "-k", base.to_str().expect("UTF-8")];
    plane.kubectl("admin", &arguments, None).well();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "meshdiff-token", "namespace": SYSTEM},
        "stringData": {"token": TOKEN}});
    let subject = json!([{"kind": "User", "name": "user", "apiGroup": "rbac.authorization.k8s.io"}]);
    let binding = |namespace: &str, kind: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "meshdiff-user", "namespace": namespace}, "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}})
    };
    plane.apply(&[
        secret,
        binding(SYSTEM, "Role", "meshdiff-user"),
        binding("default", "ClusterRole", "meshdiff-viewer"),
    ]);
    plane.add_user("user", false);
    plane.add_nodes(&NODES.map(|(name, ..)| name));
    let agents = NODES.map(|(node, name, address)| PodSpec {
        namespace: SYSTEM,
        name,
        node,
        address,
        labels: &AGENT_LABELS,
        sidecar: false,
    });
    plane.add_pods(&agents);
    plane
}

/// Tells the API server that a pod of the lab runs on a node.
pub(crate) fn register(plane: &ControlPlane, pods: &[(&PodLine, &str)]) {
    let addresses: Vec<String> = pods.iter().map(|(pod, _)| pod.ip.to_string()).collect();
    let specs: Vec<PodSpec<'_>> = pods
        .iter()
        .zip(&addresses)
        .map(|((pod, node), address)| PodSpec {
            namespace: "default",
            name: &pod.pod,
            node,
            address,
            labels: &[],
            sidecar: pod.meshed,
        })
        .collect();
    plane.add_pods(&specs);
}

impl Cluster {
    /// Starts both agents, and waits until they record.
    pub(crate) fn start(plane: &'static ControlPlane) -> Self {
        plane.add_user(ACCOUNT, false);
        // A colon parts the files that KUBECONFIG names.
        let kubeconfig = plane.folder().join("agent.kubeconfig");
        std::fs::copy(plane.kubeconfig(ACCOUNT), &kubeconfig).expect("copied");
        std::fs::write(plane.folder().join("agents-token"), TOKEN).expect("written");
        let node = |i: usize| {
            let (name, pod, address) = NODES[i];
            let agent = start_agent(plane, &kubeconfig, i, 0);
            Node { name, pod, address, agent, started: 0 }
        };
        let cluster = Self { plane, nodes: [node(0), node(1)], kubeconfig: kubeconfig.clone() };
        cluster.until("both agents record", || cluster.nodes.iter().all(|n| n.said().contains("the agent records")));
        cluster
    }

    /// Kills an agent, as the kernel does that is out of memory, and starts it again at once, as a kubelet does.
    pub(crate) fn kill_and_start_again(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        node.agent.kill();
        node.started += 1;
        node.agent = start_agent(self.plane, &self.kubeconfig, i, node.started);
        self.until("the agent records again", || self.nodes[i].said().contains("the agent records"));
    }

    /// `meshdiff ARGUMENTS` on the user's machine.
    pub(crate) fn ask(&self, arguments: &[&str]) -> meshdiff_cluster::control_plane::Ended {
        self.plane.meshdiff(&binary("meshdiff"), "user", arguments)
    }

    /// What the agents have, as a report, and what was said beside it.
    pub(crate) fn report(&self) -> (Value, String) {
        let ended = self.ask(&["report", "-n", "default", "--format", "json"]);
        let said = ended.stderr.clone();
        (serde_json::from_str(&ended.well()).expect("JSON"), said)
    }

    /// Polls.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            let said = || self.nodes.iter().map(Node::said).collect::<Vec<_>>();
            assert!(Instant::now() < deadline, "never: {what}; the agents say: {:#?}", said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Node {
    /// Where its agent takes log streams.
    pub(crate) fn als(&self) -> SocketAddr {
        format!("{}:9901", self.address).parse().expect("an address")
    }

    /// What its agent logged since its last start.
    pub(crate) fn said(&self) -> String {
        self.agent.log()
    }

    /// The sum of a metric's series, as somebody reads it who may use the proxy; 0 if there is none.
    pub(crate) fn metric(&self, plane: &ControlPlane, name: &str) -> f64 {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{}:9902/proxy/metrics", self.pod);
        let text = plane.kubectl("admin", &["get", "--raw", &path], None).stdout;
        let series = text.lines().filter_map(|l| l.rsplit_once(' '));
        let of_name = series.filter(|(series, _)| series.split('{').next() == Some(name));
        of_name.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    }
}

fn start_agent(plane: &ControlPlane, kubeconfig: &Path, i: usize, start: u32) -> Running {
    let (node, _, address) = NODES[i];
    let folder = plane.folder();
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let access = format!("KUBECONFIG={}", kubeconfig.display());
    let program = binary("meshdiff");
    let arguments = [
        access.as_str(),
        program.to_str().expect("UTF-8"),
        "agent",
        "--listen",
        &format!("{address}:9902"),
        "--als-listen",
        &format!("{address}:9901"),
        "--token-file",
        &path("agents-token"),
        "--window",
        &path(&format!("window-{node}")),
        "--node-name",
        node,
        "--namespace",
        "default",
        "--segment",
        "3s",
        "--log-format",
        "json",
    ];
    plane.start_program(Path::new("/usr/bin/env"), &arguments, &format!("{node}-{start}.log"))
}
