//! Processes that own sockets.

use crate::{NetnsId, Tgid};
use serde::{Deserialize, Serialize};

/// A process as /proc showed it during the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number in the host's pid namespace.
    pub tgid: Tgid,
    /// Its network namespace.
    pub netns: NetnsId,
    /// `/proc/PID/comm`: at most 15 bytes, chosen by the process itself.
    pub comm: String,
    /// The file that it executes, where it could be read.
    pub exe: Option<String>,
    /// Its effective user id (Istio's sidecar runs as 1337).
    pub uid: Option<u32>,
    /// Its control group (the unified hierarchy's path, or the first one of version 1), which names pod and container in Kubernetes.
    pub cgroup: Option<String>,
    /// What it is to the mesh.
    pub role: ProcessRole,
}

/// What a process is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessRole {
    /// An Envoy that is the sidecar (or gateway) of its pod.
    Sidecar,
    /// Anything else.
    Application,
}
