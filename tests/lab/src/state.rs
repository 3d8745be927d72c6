//! What is kept about a lab between commands: a folder per lab in `/run/meshdiff-lab`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use serde::{Deserialize, Serialize};

use crate::clock::MonotonicNs;
use crate::error::LabError;
use crate::process::Process;
use crate::settings::{LabName, Settings};

const ROOT: &str = "/run/meshdiff-lab";

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Being brought up, or left half-way by a crash.
    Starting,
    /// Ready.
    Up,
}

/// The state of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// What was asked for.
    pub settings: Settings,
    /// How far it has come.
    pub phase: Phase,
    /// Everything that was started.
    pub processes: Vec<Process>,
    /// The congestion control of the pods.
    pub congestion_control: String,
    /// The command that took the nat rules.
    pub nat: String,
    /// What `envoy --version` says.
    pub envoy_version: String,
    /// Where the logs are.
    pub logs: PathBuf,
}

impl State {
    /// Whether everything that was started still runs.
    pub fn is_whole(&self) -> bool {
        self.phase == Phase::Up && self.processes.iter().all(Process::is_alive)
    }
}

/// The folder of one lab.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The folder of the lab of that name, whether it exists or not.
    pub fn of(name: &LabName) -> Self {
        Self(Path::new(ROOT).join(name.as_str()))
    }

    /// The labs of this machine that have a folder, sorted.
    pub fn all() -> Vec<LabName> {
        let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
        let mut names: Vec<LabName> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        names
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the logs are unless `--out` says otherwise.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The files of a pod's sidecar.
    pub fn envoy(&self, workload: &str) -> PathBuf {
        self.0.join("envoy").join(workload)
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Reads the state. A file that is no state (of another version, or cut) counts as none: `down` works by names too.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn load(&self) -> Result<Option<State>, LabError> {
        match std::fs::read(self.file()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LabError::io(format!("the state {} cannot be read", self.file().display()))(error)),
        }
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn store(&self, state: &State) -> Result<(), LabError> {
        let failed = || LabError::io(format!("the state {} cannot be written", self.file().display()));
        let json = serde_json::to_vec_pretty(state).map_err(io::Error::from).map_err(failed())?;
        let new = self.0.join("state.json.new");
        std::fs::write(&new, json).map_err(failed())?;
        std::fs::rename(&new, self.file()).map_err(failed())
    }

    /// Removes the folder, or all of it but the logs.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, keep_logs: bool) -> Result<(), LabError> {
        let failed = || LabError::io(format!("the folder {} cannot be removed", self.0.display()));
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed())?,
        };
        let mut kept = false;
        for entry in entries {
            let path = entry.map_err(failed())?.path();
            if keep_logs && path == self.logs() {
                kept = true;
                continue;
            }
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(failed())?;
        }
        if !kept {
            std::fs::remove_dir(&self.0).map_err(failed())?;
            // The last lab takes the common folder with it; another lab's presence makes this fail, rightly.
            let _ = std::fs::remove_dir(ROOT);
        }
        Ok(())
    }
}

/// A lock that ends with its holder however that dies, and that leaves no file: an abstract unix socket.
#[derive(Debug)]
pub struct Lock {
    _socket: std::os::fd::OwnedFd,
}

impl Lock {
    /// Only one command at a time brings a lab up or down.
    ///
    /// # Errors
    /// When another one does not finish within a minute.
    pub fn lab(name: &LabName) -> Result<Self, LabError> {
        Self::take(&format!("meshdiff-lab/{name}"))?.ok_or_else(|| LabError::Busy(name.clone()))
    }

    /// For the moments that concern the whole machine.
    ///
    /// # Errors
    /// When another process holds it for a minute.
    pub fn machine() -> Result<Self, LabError> {
        Self::take("meshdiff-lab.machine")?.ok_or_else(|| LabError::NotReady {
            what: "the machine-wide lock of the labs".into(),
            seconds: 60,
            why: "another meshdiff-lab holds it".into(),
        })
    }

    fn take(name: &str) -> Result<Option<Self>, LabError> {
        let failed = |errno: nix::Error| LabError::io("the lock cannot be taken")(errno.into());
        let address = UnixAddr::new_abstract(name.as_bytes()).map_err(failed)?;
        let deadline = MonotonicNs::now().plus(Duration::from_secs(60));
        loop {
            let fd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
            match bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
                Ok(()) => return Ok(Some(Self { _socket: fd })),
                Err(nix::Error::EADDRINUSE) if MonotonicNs::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(nix::Error::EADDRINUSE) => return Ok(None),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}
