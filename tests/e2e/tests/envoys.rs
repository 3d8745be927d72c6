//! The whole way with older Envoys: a short recording of each, judged against truth. What each of them writes into
//! its logs is `als-ingest/tests/envoys.rs`; the newest one is in all other tests.

use meshdiff_e2e::{Lab, LabOptions, Recorder, judge_exchanges, privileged, requests};
use std::path::PathBuf;
use std::time::Duration;

/// As `tests/lab/setup.sh` installs them.
const VERSIONS: [&str; 2] = ["1.36.2", "1.39.3"];

/// Bodies, streams, calls, attempts, new connections.
const CASES: [&str; 8] = [
    "http1-get",
    "http1-upload",
    "http2-concurrent",
    "grpc-unary",
    "held-connect",
    "retry-status",
    "h2-retry-status",
    "h2-retry-crowd",
];

/// In percent: of each case so many must be full at least. The goal is all of them; the floor leaves room for a busy machine.
const FLOOR: usize = 60;

fn envoy(version: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join(".cache/envoy").join(version).join("envoy");
    assert!(path.is_file(), "there is no {}: run tests/lab/setup.sh {version}", path.display());
    path.to_string_lossy().into_owned()
}

#[test]
fn older_envoys_are_understood_the_whole_way() {
    if !privileged() {
        return;
    }
    for version in VERSIONS {
        let words = ["--workloads", "bodies,http2,grpc,trouble", "--concurrency", "1", "--envoy", &envoy(version)];
        let lab = Lab::up("old", &LabOptions::of(&words));
        // The exchanges with which the lab was checked leave the sidecars' buffers within a second, to nobody.
        std::thread::sleep(Duration::from_millis(1500));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let namespaces = lab.namespaces();
        let only: Vec<&str> = namespaces.iter().flat_map(|inode| ["--netns", inode.as_str()]).collect();
        let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &only);
        let _ = lab.drive(&["--cases", &CASES.join(","), "--rounds", "10", "--case-limit", "4s"]);
        let (capture, said) = recorder.stop();
        println!("{version}: {}", said.trim().replace('\n', " | "));
        let all = requests(&capture);
        let exchanges = judge_exchanges(&all, &lab.down());
        assert!(exchanges.unknown.is_empty(), "{version}: lines about nothing: {:?}", exchanges.unknown);
        for name in CASES {
            let case = exchanges.case(name);
            println!("{version} {name}: {} of {} full {:?}", case.full, case.sent, case.reasons);
            assert!(case.wrong.is_empty(), "{version} {name}: {:#?}", case.wrong);
            assert!(case.doubled.is_empty() && case.split == 0, "{version} {name}: {:?}", case.doubled);
            assert_eq!(case.inexact, 0, "{version} {name}: sums are off");
            assert!(case.checked > 0 && case.full * 100 >= case.sent * FLOOR, "{version} {name}: {:?}", case.reasons);
        }
        let of = |case: &str| exchanges.case(case).pairs.iter().map(|(i, _)| &all[*i]);
        for request in of("retry-status").chain(of("h2-retry-status")).filter(|r| r.coverage.full) {
            assert!(request.tries.len() == 3 && request.segment("retry") > 0, "{version}: {request:#?}");
            assert!(request.tries.iter().all(|one| one.server.is_some()), "{version}: {request:#?}");
        }
    }
}
