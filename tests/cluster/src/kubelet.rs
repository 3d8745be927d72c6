//! Stands in for the scheduler, the kubelets and the garbage collector, as far as pods of agents need them.
//!
//! It watches the Pods of a namespace, binds each to the node that its affinity names, and starts there what the node has for it: the agent
//! itself, with the pod's own arguments (volumes are folders, probes are left out), or one that serves a recorded capture. It reports
//! addresses, conditions and failures as kubelets do, and ends what is deleted, after the time that the deletion grants. What it does not do
//! is everything else: it isolates nothing, and enforces neither capabilities nor limits nor deadlines.

use crate::agent::{Agent, Manner, Setup};
use crate::control_plane::{ControlPlane, Running};
use crate::network::within;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an agent may take to be ready.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a node does with an agent's pod.
#[derive(Clone, Debug)]
pub enum Node {
    /// Runs the agent at this address, without a port.
    Runs(&'static str),
    /// Runs one that serves this capture, as a tar, at this address.
    Serves(&'static str, Vec<u8>),
    /// As before; and what is deleted stays, as on a node that is away.
    Keeps(&'static str, Vec<u8>),
    /// Cannot pull the image.
    PullsNothing,
}

/// What runs for a pod.
#[derive(Debug)]
enum Process {
    Program(Running),
    // It ends when it is dropped.
    Stub(#[expect(dead_code, reason = "what counts is when it is dropped")] Agent),
}

/// The nodes of a namespace's pods. They end when this is dropped.
#[derive(Debug)]
pub struct Kubelets {
    watch: Arc<Mutex<Child>>,
    working: Option<JoinHandle<()>>,
}

struct Work {
    plane: &'static ControlPlane,
    program: PathBuf,
    namespace: String,
    nodes: BTreeMap<&'static str, Node>,
    running: BTreeMap<String, Process>,
}

impl Kubelets {
    /// Watches a namespace, which need not be there yet. `program` is meshdiff.
    ///
    /// # Panics
    /// If that cannot be done.
    #[must_use]
    pub fn start(
        plane: &'static ControlPlane,
        program: &Path,
        namespace: &str,
        nodes: BTreeMap<&'static str, Node>,
    ) -> Self {
        let arguments = ["-n", namespace, "get", "pods", "--watch", "-o", "json", "--output-watch-events"];
        let mut watch = plane.stream(&arguments);
        let events = watch.stdout.take().expect("a pipe");
        let mut work = Work {
            plane,
            program: program.to_owned(),
            namespace: namespace.to_owned(),
            nodes,
            running: BTreeMap::new(),
        };
        // In the cluster's network, where agents are asked whether they are ready.
        let working = within(move || {
            std::thread::spawn(move || {
                for event in serde_json::Deserializer::from_reader(events).into_iter::<Value>() {
                    // Half an event is the end of the watch.
                    let Ok(event) = event else { break };
                    work.see(&event);
                }
            })
        });
        Self { watch: Arc::new(Mutex::new(watch)), working: Some(working) }
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        if let Ok(mut watch) = self.watch.lock() {
            let _ = watch.kill();
            let _ = watch.wait();
        }
        if let Some(working) = self.working.take()
            && working.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the nodes' thread panicked; what it said is above");
        }
    }
}

impl Work {
    fn see(&mut self, event: &Value) {
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        let ends = event["type"] == "DELETED" || !pod["metadata"]["deletionTimestamp"].is_null();
        let term = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let Some(node) = term["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str() else { return };
        let known = self.nodes.get_key_value(node).map(|(name, node)| (*name, node.clone()));
        let Some((node_name, node)) = known else { return };
        match (ends, self.running.contains_key(&name)) {
            (true, _) if matches!(node, Node::Keeps(..)) => {}
            (true, _) => {
                let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
                if let Some(Process::Program(mut agent)) = self.running.remove(&name) {
                    agent.signal(Signal::SIGTERM);
                    agent.ends_within(Duration::from_secs(grace));
                }
                if event["type"] != "DELETED" {
                    let arguments = [
                        "-n",
                        &self.namespace,
                        "delete",
                        "pod",
                        &name,
                        "--grace-period=0",
                        "--force",
                        "--wait=false",
                        "--ignore-not-found",
                    ];
                    self.plane.kubectl("admin", &arguments, None).well();
                }
            }
            (false, true) => {}
            (false, false) if pod["spec"]["nodeName"].is_null() => {
                self.bind(&name, node_name);
                self.run(&name, node_name, &node, pod);
            }
            (false, false) => {}
        }
    }

    fn bind(&self, pod: &str, node: &str) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/binding", self.namespace);
        self.plane.kubectl("admin", &["create", "--raw", &path, "-f", "-"], Some(&binding.to_string())).well();
    }

    fn run(&mut self, name: &str, node_name: &str, node: &Node, pod: &Value) {
        let status = |status: &Value| self.plane.set_status(&self.namespace, &format!("pod/{name}"), status);
        let image = pod["spec"]["containers"][0]["image"].as_str().expect("an image");
        let container = |state: Value| json!([{"name": "agent", "image": image, "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        let (address, process) = match node {
            Node::PullsNothing => {
                let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": format!("Back-off pulling image \"{image}\"")}});
                status(&json!({"phase": "Pending", "containerStatuses": container(waiting)}));
                return;
            }
            Node::Serves(address, tar) | Node::Keeps(address, tar) => {
                let agent = Agent::start(Setup {
                    address: format!("{address}:9902"),
                    node: node_name.to_owned(),
                    token: self.token(pod),
                    tar: tar.clone(),
                    manner: Manner::Well,
                });
                (*address, Process::Stub(agent))
            }
            Node::Runs(address) => {
                let mut agent = self.agent(name, node_name, address, pod);
                wait_until_ready(address, &mut agent);
                (*address, Process::Program(agent))
            }
        };
        status(&json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}]}));
        self.running.insert(name.to_owned(), process);
    }

    /// The token of the Secret that the pod mounts.
    fn token(&self, pod: &Value) -> String {
        let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
        let secret = volumes.iter().find_map(|v| v["secret"]["secretName"].as_str()).expect("a Secret");
        let arguments =
            ["-n", &self.namespace, "get", "secret", secret, "-o", "go-template={{.data.token|base64decode}}"];
        self.plane.kubectl("admin", &arguments, None).well()
    }

    /// The agent as the pod says it, with what its volumes hold in a folder of its own.
    fn agent(&self, name: &str, node: &str, address: &str, pod: &Value) -> Running {
        let folder = self.plane.folder().join(name);
        std::fs::create_dir_all(folder.join("window")).expect("a folder");
        std::fs::write(folder.join("token"), self.token(pod)).expect("written");
        let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
        let arguments = pod["spec"]["containers"][0]["args"].as_array().expect("arguments");
        let mut all: Vec<String> = arguments.iter().map(|a| a.as_str().expect("text").to_owned()).collect();
        all.extend([
            format!("--listen={address}:9902"),
            format!("--als-listen={address}:9901"),
            format!("--window={}", path("window")),
            format!("--token-file={}", path("token")),
            format!("--node-name={node}"),
        ]);
        if !all.iter().any(|a| a == "--no-probes") {
            all.push("--no-probes".to_owned());
        }
        let arguments: Vec<&str> = all.iter().map(String::as_str).collect();
        self.plane.start_program(&self.program, &arguments, &format!("{name}.log"))
    }
}

/// Asks as the pod's readiness probe does.
fn wait_until_ready(address: &str, agent: &mut Running) {
    let started = Instant::now();
    while !is_ready(address) {
        assert!(!agent.ends_within(Duration::from_millis(50)), "the agent ended: {}", agent.log());
        assert!(started.elapsed() < DEADLINE, "the agent is not ready: {}", agent.log());
    }
}

fn is_ready(address: &str) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((address, 9902))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    answer().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

/// What the garbage collector does: whatever names an owner that is gone is deleted. Returns what it was.
///
/// # Panics
/// If the API server refuses.
pub fn collect_garbage(plane: &ControlPlane, namespace: &str) -> Vec<String> {
    let get = |what: &str| -> Vec<Value> {
        let text = plane.kubectl("admin", &["-n", namespace, "get", what, "-o", "json"], None).well();
        let list: Value = serde_json::from_str(&text).expect("JSON");
        list["items"].as_array().expect("a list").clone()
    };
    let all = get("configmaps,secrets,services,pods");
    let there: Vec<&Value> = all.iter().map(|o| &o["metadata"]["uid"]).collect();
    let orphan = |o: &&Value| {
        let owners = o["metadata"]["ownerReferences"].as_array();
        owners.is_some_and(|owners| owners.iter().all(|owner| !there.contains(&&owner["uid"])))
    };
    let orphans = all.iter().filter(orphan).map(|o| {
        let text = |v: &Value| v.as_str().expect("text").to_owned();
        format!("{}/{}", text(&o["kind"]).to_lowercase(), text(&o["metadata"]["name"]))
    });
    let orphans: Vec<String> = orphans.collect();
    for orphan in &orphans {
        let arguments = ["-n", namespace, "delete", orphan, "--wait=false", "--ignore-not-found"];
        plane.kubectl("admin", &arguments, None).well();
    }
    orphans
}
