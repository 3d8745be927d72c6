//! What a lab is, for people and for tools.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::LabError;
use crate::lifecycle;
use crate::netns;
use crate::process::{Process, Role};
use crate::settings::{LabName, Settings};
use crate::state::{Phase, StateDir};
use crate::topology::{LOADGEN, Pod, Proxy, Topology};

/// A lab as `status --json` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What was asked for.
    #[serde(flatten)]
    pub settings: Settings,
    /// How far it has come.
    pub phase: Phase,
    /// Whether every process runs.
    pub ready: bool,
    /// The machine's address on the pods' network.
    pub host_address: std::net::Ipv4Addr,
    /// The machine's link into it.
    pub host_link: String,
    /// What the pods' TCP uses.
    pub congestion_control: String,
    /// The command that took the nat rules.
    pub nat: String,
    /// Envoy's version.
    pub envoy_version: String,
    /// Where the logs are.
    pub logs: PathBuf,
    /// Where everything else is.
    pub state_directory: PathBuf,
    /// The pods.
    pub pods: Vec<PodStatus>,
    /// Processes of delayed links.
    pub links: Vec<ProcessStatus>,
}

/// A pod as `status --json` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its workload.
    pub workload: String,
    /// Its full name, as in the sidecar's node id.
    pub pod: String,
    /// Its service.
    pub app: &'static str,
    /// Its address.
    pub ip: std::net::Ipv4Addr,
    /// Its other address, if it is dual stack.
    pub ip6: Option<std::net::Ipv6Addr>,
    /// Whether there is a proxy in it.
    pub meshed: bool,
    /// Its service's virtual IP.
    pub vip: Option<std::net::IpAddr>,
    /// Its network namespace.
    pub netns: String,
    /// The namespace's file.
    pub netns_path: PathBuf,
    /// The namespace's inode number.
    pub netns_inode: Option<u64>,
    /// Its processes.
    pub processes: Vec<ProcessStatus>,
    /// Envoy's log.
    pub envoy_log: PathBuf,
    /// The application's requests.
    pub app_log: PathBuf,
    /// The sidecar's waits.
    pub authz_log: Option<PathBuf>,
}

/// A process as `status --json` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// What it is for.
    pub role: Role,
    /// The pod's workload, or the link's two.
    pub name: String,
    /// Its number.
    pub pid: i32,
    /// Whether it runs.
    pub alive: bool,
}

impl ProcessStatus {
    fn of(process: &Process) -> Self {
        Self { role: process.role, name: process.pod.clone(), pid: process.pid, alive: process.is_alive() }
    }
}

/// What a lab is, and whether it is whole.
///
/// # Errors
/// When there is no such lab.
pub fn status(name: &LabName) -> Result<Status, LabError> {
    let state = lifecycle::state(name)?;
    let settings = &state.settings;
    let topology = Topology::of(settings);
    let pod = |pod: &Pod| {
        let netns = name.namespace(&pod.workload);
        let log = |suffix: &str| state.logs.join(format!("{}.{suffix}", pod.workload));
        PodStatus {
            workload: pod.workload.clone(),
            pod: pod.full_name(name.as_str()),
            app: pod.app,
            ip: pod.ip,
            ip6: pod.ip6,
            meshed: pod.proxy != Proxy::None,
            vip: topology.service(pod.app).and_then(|service| service.vip),
            netns_path: netns::path(&netns),
            netns_inode: netns::inode(&netns).ok(),
            netns,
            processes: state.processes.iter().filter(|p| p.pod == pod.workload).map(ProcessStatus::of).collect(),
            envoy_log: log("envoy.log"),
            app_log: if pod.app == LOADGEN { state.logs.join("loadgen.ndjson") } else { log("app.ndjson") },
            authz_log: settings.ext_authz.then(|| log("authz.ndjson")),
        }
    };
    Ok(Status {
        phase: state.phase,
        ready: state.is_whole(),
        host_address: settings.subnet.gateway(),
        host_link: name.host_link(),
        congestion_control: state.congestion_control.clone(),
        nat: state.nat.clone(),
        envoy_version: state.envoy_version.clone(),
        logs: state.logs.clone(),
        state_directory: StateDir::of(name).path().to_owned(),
        pods: topology.pods.iter().map(pod).collect(),
        links: state.processes.iter().filter(|p| p.role == Role::Link).map(ProcessStatus::of).collect(),
        settings: state.settings,
    })
}
