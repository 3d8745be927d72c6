//! However a recording ends, what it leaves is a capture.

use crate::support::{MESHDIFF, eventually, meshdiff};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A recording without probes, which ends with the test at the latest.
struct Recording(Child);

impl Recording {
    /// Begins one into `folder`/capture, and waits until it is at work.
    fn begin(folder: &Path) -> Self {
        let child = Command::new(MESHDIFF)
            .args(["record", "--no-probes", "--als-listen=127.0.0.1:0", "--output=capture", "--quiet"])
            .current_dir(folder)
            .stderr(Stdio::null())
            .spawn()
            .expect("meshdiff starts");
        let recording = Self(child);
        // The clock's second sample comes with the first roll, about a second after the start.
        eventually("the first roll", || {
            meta(folder).is_some_and(|m| m["clock"].as_array().is_some_and(|samples| samples.len() > 1))
        });
        recording
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("it runs");
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("its end", || {
            status = self.0.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("ended")
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn meta(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join("capture/meta.json")).ok()?).ok()
}

#[test]
fn ctrl_c_ends_a_recording_cleanly() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let tmp = tempfile::tempdir().expect("a temporary folder");
        let mut recording = Recording::begin(tmp.path());
        recording.signal(signal);
        assert_eq!(recording.ended().code(), Some(0));
        let meta = meta(tmp.path()).expect("a meta");
        assert_eq!(meta["state"], "complete");
        assert!(meta["end"]["monotonic"].as_u64() > meta["start"]["monotonic"].as_u64());
        let report = meshdiff(tmp.path(), &["report", "--capture=capture"]).says(4, &["holds no request"]);
        assert!(!report.stderr.contains("not ended properly"), "{}", report.stderr);
    }
}

#[test]
fn a_second_ctrl_c_waits_no_longer() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let mut recording = Recording::begin(tmp.path());
    let start = Instant::now();
    recording.signal(Signal::SIGINT);
    // Until the first has been taken, a second one of the same kind would be lost.
    while recording.0.try_wait().expect("it can be waited for").is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(300));
        if recording.0.try_wait().expect("it can be waited for").is_none() {
            recording.signal(Signal::SIGINT);
        }
    }
    assert_eq!(recording.ended().code(), Some(0));
    assert!(start.elapsed() < Duration::from_millis(2_800), "it waited for the access logs: {:?}", start.elapsed());
    assert_eq!(meta(tmp.path()).expect("a meta")["state"], "complete");
}

#[test]
fn a_killed_recording_stays_readable() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let mut recording = Recording::begin(tmp.path());
    recording.signal(Signal::SIGKILL);
    assert_eq!(recording.ended().signal(), Some(9));
    assert_eq!(meta(tmp.path()).expect("a meta")["state"], "recording");
    // It holds no traffic, so there is nothing to report; but it opens, and it is known how it ended.
    meshdiff(tmp.path(), &["report", "--capture=capture"]).says(4, &["holds no request", "not ended properly"]);
}
