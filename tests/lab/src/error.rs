//! What can go wrong with a lab, in sentences that say what to do.

use std::path::PathBuf;

use crate::certs::CertError;
use crate::settings::{LabName, SettingsError, Subnet};

/// A failure of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces, nat rules and uids need root.
    #[error("the lab makes network namespaces and nat rules and needs root: run it with sudo")]
    NotRoot,
    /// A command of the operating system is missing.
    #[error("`{command}` is not installed: run tests/lab/setup.sh as root, or install the package {package}")]
    MissingTool {
        /// The command.
        command: &'static str,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// There is no Envoy.
    #[error("there is no Envoy at {path}: run tests/lab/setup.sh, or name one with --envoy or MESHDIFF_LAB_ENVOY", path = .0.display())]
    NoEnvoy(PathBuf),
    /// The Envoy does not run.
    #[error("{path} does not run ({why}): run tests/lab/setup.sh, or name another Envoy with --envoy", path = path.display())]
    BrokenEnvoy {
        /// The binary.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// A kernel feature is missing.
    #[error("{feature} is not there, which {needed_by} needs: {fix}")]
    Unsupported {
        /// What is missing.
        feature: String,
        /// The option that needs it.
        needed_by: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// The machine uses these addresses already.
    #[error(
        "the machine already routes {route}, which overlaps the lab's {subnet}: choose other addresses with --subnet"
    )]
    SubnetTaken {
        /// The lab's.
        subnet: Subnet,
        /// The machine's.
        route: String,
    },
    /// Neither flavour of iptables takes the rules.
    #[error("Istio's nat rules cannot be set, neither by {}: the kernel needs iptables nat with REDIRECT and owner match", .0.join(" nor by "))]
    Nat(Vec<String>),
    /// A command failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// With its arguments.
        command: String,
        /// Its stderr.
        why: String,
    },
    /// A namespace cannot be entered.
    #[error("the network namespace {namespace} cannot be entered: {why}; is the lab up? (meshdiff-lab status)")]
    Namespace {
        /// Its name.
        namespace: String,
        /// Why.
        why: std::io::Error,
    },
    /// A file or another resource.
    #[error("{what}: {why}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        why: std::io::Error,
    },
    /// The log folder is in use.
    #[error("{path} holds the logs of another run: name another folder with --out", path = .0.display())]
    LogsTaken(PathBuf),
    /// Something did not come up.
    #[error("{what} was not ready within {seconds} s: {why}")]
    NotReady {
        /// What.
        what: String,
        /// The deadline.
        seconds: u64,
        /// The last state that was seen.
        why: String,
    },
    /// Nobody knows this lab.
    #[error("there is no lab `{name}` ({}): bring it up with `meshdiff-lab up --name {name}`", present(others))]
    NoSuchLab {
        /// What was asked for.
        name: LabName,
        /// What there is.
        others: Vec<LabName>,
    },
    /// Another process works on it.
    #[error("another meshdiff-lab is bringing the lab `{0}` up or down, and did not finish within a minute")]
    Busy(LabName),
    /// The load asks for delays that this mesh cannot make.
    #[error("the delay at {0} needs a mesh with waiting sidecars: bring the lab up with --ext-authz")]
    NeedsExtAuthz(String),
    /// The load names a workload that does not run.
    #[error("there is nothing to delay at {0}: the lab has no such workload or service")]
    UnknownDelayTarget(String),
    /// Some processes survived.
    #[error("these processes of the lab could not be ended: {0:?}")]
    Survivors(Vec<i32>),
    /// A bad setting.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertError),
}

fn present(labs: &[LabName]) -> String {
    match labs {
        [] => "there is none at all".to_owned(),
        labs => format!("there is {}", labs.iter().map(LabName::as_str).collect::<Vec<_>>().join(", ")),
    }
}

impl LabError {
    /// For `map_err` on I/O: what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |why| Self::Io { what, why }
    }
}
