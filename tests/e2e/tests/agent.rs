//! The agent on a node with real sidecars: serves what it saw, keeps its window over a kill, ends cleanly, and outlives a full disk.
//! One at a time (`--test-threads=1`), as all tests with a lab.

use meshdiff_e2e::{Agent, Lab, LabOptions, Request, binary, judge, privileged, requests};
use meshdiff_lab::truth::Truth;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, agent: &Agent, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}; the agent says: {}", agent.said());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The clock of the kernel's instants, in ns.
fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("fits")
}

fn report(capture: &Path) -> Value {
    let output = Command::new(binary("meshdiff"))
        .args(["report", "--format", "json", "--capture"])
        .arg(capture)
        .output()
        .expect("meshdiff runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Everything that is asserted of the capture that an agent served.
fn assert_right(capture: &Path, truth: &Truth) {
    let requests = requests(capture);
    let judgement = judge(&requests, truth);
    assert!(judgement.judged > 100, "too little was judged: {}", judgement.judged);
    assert!(judgement.wrong.is_empty(), "wrong joins: {:?}", judgement.wrong);
    assert!(judgement.unknown.is_empty(), "full requests that never were: {:?}", judgement.unknown);
    assert!(judgement.inexact.is_empty(), "inexact sums: {:?}", judgement.inexact);
}

#[test]
fn a_window_that_outlives_its_agent() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("agent", &LabOptions::default());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let arguments = ["--segment", "3s", "--keep", "10m", "--namespace", "default"];
    let agent = Agent::start(folder.path(), lab.als_port, &arguments);

    // Who does not know the token gets nothing, in a sentence.
    for (token, path) in [(None, "/v1/capture"), (Some("wrong"), "/v1/info"), (Some(""), "/v1/capture?since=1m")] {
        let answer = agent.get_with(path, token);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.json()["error"].as_str().expect("a sentence").contains("X-Meshdiff-Token"), "{}", answer.text());
    }
    assert_eq!(agent.get("/v1/capture?since=soon").status, 400);
    assert_eq!(agent.get("/v2/nothing").status, 404);
    assert_eq!(agent.get_with("/healthz", None).status, 200);

    // Envoys that found nobody to log to ask again after a while: until all do, their entries are lost.
    let mut warm = 0;
    until("all sidecars' log streams", &agent, || {
        warm += lab.load(&["--rate", "20", "--duration", "1s"]).requests();
        agent.metric("meshdiff_als_streams_open") >= 7.0
    });

    // A load across several segments.
    let began = monotonic();
    let load = lab.load(&["--rate", "40", "--duration", "5s"]);
    assert_eq!(load.ok(), load.requests(), "the mesh itself must work");
    let pages = load.requests();
    until("the metrics of all pages", &agent, || {
        let text = agent.get_with("/metrics", None).text();
        let start = "meshdiff_requests_total{client_namespace=\"default\",client_workload=\"loadgen\"";
        let of_pages = text.lines().filter(|l| l.starts_with(start));
        let counted: f64 = of_pages.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert!(counted <= (warm + pages) as f64, "pages that were counted twice: {counted} of {warm} and {pages}");
        counted >= pages as f64
    });
    assert!(agent.metric("meshdiff_request_segment_duration_seconds_count") > 1_000.0);
    let info = agent.get("/v1/info").json();
    assert_eq!((info["node"].as_str(), info["ready"].as_bool()), (Some("lab-node"), Some(true)), "{info}");
    assert!(info["kubernetes"]["reason"].as_str().expect("a sentence").contains("--no-kube"), "{info}");
    assert!(info["window"]["segments"].as_u64().expect("a number") >= 2, "{info}");
    assert!(info["nowNs"].as_i64() >= info["window"]["endNs"].as_i64(), "{info}");

    // Fetched over HTTP it is as good a capture as one that was recorded.
    let first = folder.path().join("first");
    agent.fetch("?since=10m&namespace=default", &first);
    let whole = report(&first);
    let all = whole["coverage"]["requests"].as_u64().expect("a number");
    let sent = |r: &Request| r.crossings.request.get("clientLoopback").and_then(|c| c.send_ns);
    let requests = requests(&first);
    let of_load: Vec<_> = requests.iter().filter(|r| sent(r).is_some_and(|at| at >= began)).collect();
    let full = of_load.iter().filter(|r| r.coverage.full).count();
    println!("fetched: {all} requests; of the load {full} of {} full", of_load.len());
    assert!(of_load.len() as u64 >= pages * 3 && full * 100 >= of_load.len() * 98, "{}", whole["coverage"]);

    // Killed under load: the window is there for the next agent.
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| lab.load(&["--rate", "40", "--duration", "6s"]));
        let seen = agent.metric("meshdiff_kernel_events_total");
        until("more events", &agent, || agent.metric("meshdiff_kernel_events_total") > seen + 5_000.0);
        agent.kill();
        let next = Agent::start(folder.path(), lab.als_port, &arguments);
        drop(loading.join().expect("the load ran"));
        // What Envoy holds back comes within a second or so.
        std::thread::sleep(Duration::from_millis(1_500));
        let second = folder.path().join("second");
        next.fetch("", &second);
        let after = report(&second);
        let more = after["coverage"]["requests"].as_u64().expect("a number");
        println!("after the kill: {more} requests");
        assert!(more > all, "the window of before must be there: {more} of {all}");
        let warnings = after.to_string();
        assert!(warnings.contains("was killed"), "the gap is said: {warnings}");
        assert!(next.get("/v1/info").json()["counts"]["segmentsRecovered"].as_u64() >= Some(1));

        // And ended as a node ends it: nothing is open any more.
        next.end();
    });
    let left = std::fs::read_dir(folder.path().join("window")).expect("the window");
    let names: Vec<String> = left.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().filter(|n| n.starts_with("segment-")).count() >= 4, "{names:?}");
    assert!(!names.iter().any(|n| n.starts_with("open-")), "{names:?}");
    let said = std::fs::read_to_string(folder.path().join("agent.log")).expect("logs");
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
    assert!(said.contains("the window is closed"), "{said}");

    // Everything that was served was right.
    let truth = lab.down();
    assert_right(&folder.path().join("first"), &truth);
    assert_right(&folder.path().join("second"), &truth);
}

/// A small disk, unmounted whatever happens.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.expect("mount runs").success(), "a tmpfs can be mounted");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_costs_the_oldest_minutes_and_nothing_else() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("full", &LabOptions::default());
    let disk = SmallDisk::new(2 << 20);
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(disk.0.path(), folder.path().join("window")).expect("a link");
    let agent = Agent::start(folder.path(), lab.als_port, &["--segment", "2s", "--keep", "10m"]);
    // Somebody else's file takes nearly everything.
    std::fs::write(disk.0.path().join("ballast"), vec![1_u8; 1 << 20]).expect("a file");
    let until_full = Instant::now() + PATIENCE;
    while agent.metric("meshdiff_window_disk_full_errors_total") < 1.0 {
        assert!(Instant::now() < until_full, "the disk never was full: {}", agent.said());
        drop(lab.load(&["--rate", "100", "--duration", "3s"]));
    }
    assert!(agent.metric("meshdiff_window_segments_disk_full_total") >= 1.0, "{}", agent.said());
    assert_eq!(agent.get_with("/readyz", None).status, 200);
    assert!(agent.said().contains("the oldest segments make room"), "{}", agent.said());
    // It goes on, and serves what is there.
    std::fs::remove_file(disk.0.path().join("ballast")).expect("removed");
    let load = lab.load(&["--rate", "20", "--duration", "2s"]);
    std::thread::sleep(Duration::from_millis(1_500));
    agent.fetch("?since=10m", &folder.path().join("capture"));
    let coverage = &report(&folder.path().join("capture"))["coverage"];
    assert!(coverage["requests"].as_u64() >= Some(load.requests()), "{coverage}");
    agent.end();
}
