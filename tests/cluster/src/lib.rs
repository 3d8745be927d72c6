//! A cluster for tests: a real API server on etcd, in a network namespace of its own, with Nodes and Pods that are registered by hand.
//!
//! There is no kubelet, no scheduler and no controller: a Pod is what a test says it is, or what [`kubelet`] makes of it, which stands in for them. What the API server itself does is real, and that
//! is what meshdiff relies on: authentication, roles, validation of manifests, and the proxy to pods.

pub mod agent;
pub mod control_plane;
pub mod identity;
pub mod kubelet;
pub mod network;
pub mod objects;
pub mod split;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
///
/// # Panics
/// If the tests were moved away from it.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The programs of the cluster, built where they are not there yet.
///
/// # Panics
/// If they cannot be built.
#[must_use]
pub fn programs() -> PathBuf {
    let output = Command::new(root().join("tests/cluster/setup.sh")).output().expect("tests/cluster/setup.sh");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tests/cluster/setup.sh failed:\n{stderr}");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// False, said, if what needs root is to be left out.
///
/// # Panics
/// Without root, unless `MESHDIFF_SKIP_PRIVILEGED=1`.
#[must_use]
pub fn privileged() -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("left out: this test needs root, and MESHDIFF_SKIP_PRIVILEGED=1 says to do without");
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes a network namespace: run it as root, or leave it out with MESHDIFF_SKIP_PRIVILEGED=1"
    );
    true
}
