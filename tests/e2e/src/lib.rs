//! Drives the real binaries over a real mesh and reads what they say. The tests that use this need root, an Envoy and
//! the built binaries; none of it is mocked.

mod agent;
mod exchange;
mod judge;
mod lab;
mod matrix;
mod recorder;
mod request;

pub use agent::{Agent, Answer, TOKEN};
pub use exchange::{Case, Exchanges, judge_exchanges};
pub use judge::{Judgement, judge};
pub use lab::{Lab, LabOptions, Load, PodLine};
pub use matrix::{Matrix, Row, median};
pub use recorder::{Recorder, requests, window};
pub use request::{Crossing, Crossings, End, Request, ServerHalf, SocketLine, TryLine};

use std::path::PathBuf;

/// The folder in which cargo put the binaries of this build.
///
/// # Panics
/// If this is not running from a build folder.
#[must_use]
pub fn build_folder() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    // target/PROFILE/deps/NAME for tests, target/PROFILE/NAME for binaries.
    let parent = exe.parent().expect("a program lies in a folder");
    if parent.ends_with("deps") {
        parent.parent().expect("deps lies in a folder").to_owned()
    } else {
        parent.to_owned()
    }
}

/// A built binary.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = build_folder().join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p meshdiff -p meshdiff-lab` (make test does)",
        path.display()
    );
    path
}

/// True if the privileged tests may run. They may only be left out on purpose.
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
        "this test makes network namespaces and loads kernel probes: run it as root, or leave it out with MESHDIFF_SKIP_PRIVILEGED=1"
    );
    true
}
