//! Access logs of a client's sidecar that never arrive: how many there were is told from what the kernel saw.

use meshdiff_e2e::{Exchanges, Lab, LabOptions, Recorder, binary, judge_exchanges, privileged, requests};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The workload whose sidecar is the client's.
const CLIENT: &str = "loadgen";
const CASE: &str = "straight";
const ROUNDS: &str = "12";
/// In percent: of the lost entries so many must be told at least. The goal is all of them; the floor leaves room for a busy machine.
const FLOOR: u64 = 60;

#[test]
fn what_a_clients_sidecar_could_not_log_is_estimated() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("lost", &LabOptions::of(&["--workloads", "trouble", "--concurrency", "1"]));
    // The exchanges with which the lab was checked leave the sidecars' buffers within a second, to nobody.
    std::thread::sleep(Duration::from_millis(1500));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let namespaces = lab.namespaces();
    let only: Vec<&str> = namespaces.iter().flat_map(|inode| ["--netns", inode.as_str()]).collect();
    let record = |name: &str| {
        let recorder = Recorder::start(&folder.path().join(name), lab.als_port, &only);
        lab.drive_into(name, &["--cases", CASE, "--rounds", ROUNDS, "--case-limit", "6s"]);
        let (capture, said) = recorder.stop();
        println!("{name}: {}", said.trim().replace('\n', " | "));
        capture
    };
    let whole = record("whole");
    lab.refuse_logs_of(CLIENT);
    let cut = record("cut");
    let found = [&whole, &cut].map(|capture| requests(capture));
    let truth = lab.down();

    let [of_whole, of_cut] = found.each_ref().map(|found| judge_exchanges(found, &truth));
    // Without the client's entry there can be a line for what its application sent and one for the server's half.
    let exchanges = |of: &Exchanges| {
        let nonces: BTreeSet<_> = of.case(CASE).pairs.iter().map(|(_, nonce)| *nonce).collect();
        nonces.len() as u64
    };
    let (seen, lost) = (exchanges(&of_whole), exchanges(&of_cut));
    assert!(seen > 0 && lost > 0, "nothing was recorded");
    let (before, after) = (estimate(&whole), estimate(&cut));
    println!(
        "{seen} exchanges with all logs: {before} estimated lost; {lost} without the client's: {after} estimated lost"
    );
    // None is invented where all are there, but for what a machine that stands still keeps back until the recording is over.
    assert!(before * 100 <= seen * (100 - FLOOR), "{before} of {seen} are said to be lost, and none is");
    // Each exchange is one entry of the client's sidecar, and all of them were lost.
    assert!(after <= lost, "{after} are said to be lost, and there were {lost}");
    assert!(after * 100 >= lost * FLOOR, "only {after} of {lost} are told");
    // Each of them says which half it has, and why there is no other.
    let halves = found[1].iter().filter(|r| r.coverage.reason.as_deref() == Some("client_log_missing")).count() as u64;
    assert!(halves >= after, "{halves} requests say that the client's log is missing, {after} are counted");
}

/// What the report says.
fn estimate(capture: &Path) -> u64 {
    let report = report(capture);
    report["coverage"]["lostAccessLogsEstimate"]
        .as_u64()
        .unwrap_or_else(|| panic!("no estimate: {}", report["coverage"]))
}

fn report(capture: &Path) -> Value {
    let output = Command::new(binary("meshdiff"))
        .args(["report", "--format", "json", "-A", "--capture"])
        .arg(capture)
        .output()
        .expect("meshdiff runs");
    assert!(output.status.success(), "meshdiff report failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}
