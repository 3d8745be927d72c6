//! `report --by`: where pods ran, which version they were and by which subset they were asked, as real sidecars say it.
//! One at a time (`--test-threads=1`), as all tests with a lab.

use meshdiff_e2e::{Lab, LabOptions, Recorder, binary, privileged};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn report(capture: &Path, arguments: &[&str]) -> String {
    let output = Command::new(binary("meshdiff"))
        .arg("report")
        .args(arguments)
        .arg("--capture")
        .arg(capture)
        .output()
        .expect("meshdiff runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json_of(capture: &Path, by: &str) -> Value {
    serde_json::from_str(&report(capture, &["--format", "json", "--by", by])).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The rows of one hop by one thing.
fn rows<'a>(report: &'a Value, by: &str, client: &str, server: &str) -> &'a [Value] {
    let breakdown = list(&report["breakdowns"]).iter().find(|b| b["by"] == by).expect("a breakdown");
    let is = |hop: &&Value| {
        let called = &hop["server"];
        hop["client"]["workload"] == client
            && (called["workload"] == server || (called["workload"].is_null() && called["service"] == server))
    };
    let hop =
        list(&breakdown["hops"]).iter().find(is).unwrap_or_else(|| panic!("no {client} → {server} in {breakdown}"));
    list(&hop["rows"])
}

/// The one row of a hop whose pods are always the same.
fn only<'a>(report: &'a Value, by: &str, client: &str, server: &str) -> &'a Value {
    let [row] = rows(report, by, client, server) else { panic!("several: {report}") };
    row
}

#[test]
fn requests_are_told_apart_by_what_the_sidecars_say_of_themselves() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("places", &LabOptions::of(&["--subsets"]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &[]);
    // Envoys that found nobody to log to ask again after a while: only what comes then is counted on.
    let load = lab.load(&["--rate", "60", "--duration", "6s"]);
    assert_eq!(load.ok(), load.requests(), "the mesh itself must work");
    let (capture, said) = recorder.stop();
    let pods = lab.pods();
    drop(lab);

    let told = json_of(&capture, "zone,subset,version,node");
    let by: Vec<&Value> = list(&told["breakdowns"]).iter().map(|b| &b["by"]).collect();
    assert_eq!(by, ["zone", "subset", "version", "node"], "{said}");
    let value = |row: &Value, end: &str| row[end]["value"].as_str().unwrap_or("unknown").to_owned();

    // By Envoy's locality, and by a label where that says nothing.
    for (server, zone, crossing) in [
        ("reviews-v1", "eu-1a", false),
        ("reviews-v2", "eu-1b", true),
        ("reviews-v3", "eu-1c", true),
        ("details-v1", "eu-1b", true),
    ] {
        let row = only(&told, "zone", "productpage-v1", server);
        assert_eq!((value(row, "client"), value(row, "server")), ("eu-1a".to_owned(), zone.to_owned()), "{row}");
        assert_eq!(row["crossing"], crossing, "{row}");
        assert!(row["n"].as_u64() >= Some(20) && row["few"] == false, "{row}");
        assert!(row["total"]["p99Ns"].as_i64() > Some(0) && row["segments"]["network"]["p90Ns"].is_i64(), "{row}");
    }
    let nowhere = only(&told, "zone", "reviews-v2", "ratings-v1");
    assert_eq!(
        (value(nowhere, "client"), &nowhere["server"]),
        ("eu-1b".to_owned(), &json!({"value": null, "reason": "not_said"}))
    );
    assert!(nowhere.get("crossing").is_none(), "{nowhere}");

    // Every request of reviews went by the subset of the version that answered it: three workloads of one service.
    let by_subset = rows(&told, "subset", "productpage-v1", "reviews");
    let by_version = rows(&told, "version", "productpage-v1", "reviews");
    assert_eq!((by_subset.len(), by_version.len()), (3, 3), "{told}");
    for (i, version) in ["v1", "v2", "v3"].into_iter().enumerate() {
        let server = format!("reviews-{version}");
        let is = |hop: &&Value| {
            hop["client"]["workload"] == "productpage-v1" && hop["server"]["workload"] == server.as_str()
        };
        let hop = list(&told["hops"]).iter().find(is).expect("a hop");
        let (subset, of_version) = (&by_subset[i], &by_version[i]);
        assert_eq!((value(subset, "server"), subset.get("client")), (version.to_owned(), None), "{subset}");
        assert_eq!((value(of_version, "client"), value(of_version, "server")), ("v1".to_owned(), version.to_owned()));
        assert!(of_version.get("crossing").is_none(), "versions are no places");
        for row in [subset, of_version] {
            assert_eq!(
                (&row["requests"], &row["total"], &row["segments"]),
                (&hop["requests"], &hop["total"], &hop["segments"])
            );
        }
        let row = only(&told, "node", "productpage-v1", &server);
        assert_eq!((value(row, "server"), &row["crossing"]), ("lab-node".to_owned(), &json!(false)));
    }
    assert_eq!(only(&told, "subset", "productpage-v1", "details-v1")["server"]["reason"], "no_subset");

    // Every row is of its hop.
    let requests = |rows: &[Value]| -> u64 { rows.iter().filter_map(|r| r["requests"].as_u64()).sum() };
    for breakdown in list(&told["breakdowns"]) {
        let all: u64 = list(&breakdown["hops"]).iter().map(|hop| requests(list(&hop["rows"]))).sum();
        assert_eq!(all, requests(list(&told["hops"])), "{}", breakdown["by"]);
    }
    let table = report(&capture, &["--by", "zone", "--by", "subset"]);
    for words in ["By zone", "eu-1a → eu-1b (other zone)", "By subset", "no subset", "Unknown for"] {
        assert!(table.contains(words), "{words}: {table}");
    }

    // What nobody in the pod said Kubernetes did: the agent's captures have it in their meta.
    let ratings = pods.iter().find(|p| p.workload == "ratings-v1").expect("a pod");
    let path = capture.join("meta.json");
    let mut meta: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("a meta")).expect("JSON");
    assert!(meta.get("kubernetes").is_none(), "nobody asked the API");
    meta["kubernetes"] = json!({"pods": [{"uid": "u", "namespace": "default", "name": ratings.pod, "addresses": [ratings.ip],
        "workload": "ratings-v1", "workloadKind": "Deployment", "node": "another-node", "locality": {"region": "eu", "zone": "eu-1d"}}]});
    std::fs::write(&path, meta.to_string()).expect("written");
    let told = json_of(&capture, "all");
    let row = only(&told, "zone", "reviews-v2", "ratings-v1");
    assert_eq!((value(row, "server"), &row["crossing"]), ("eu-1d".to_owned(), &json!(true)), "{row}");
    assert_eq!(value(only(&told, "node", "reviews-v2", "ratings-v1"), "server"), "lab-node", "the sidecar goes first");
}
