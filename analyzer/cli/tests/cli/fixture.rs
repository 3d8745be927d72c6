//! The capture in tests/fixtures, from end to end: what must hold of any recording of that scenario.

use crate::support::{fixture, meshdiff};
use serde_json::Value;
use std::path::Path;

fn output(args: &[&str]) -> String {
    let capture = fixture();
    let args = [args, &["--capture", capture.to_str().expect("UTF-8")]].concat();
    meshdiff(Path::new("/"), &args).says(0, &[]).stdout
}

fn report(args: &[&str]) -> Value {
    serde_json::from_str(&output(&[&["report", "--format=json"], args].concat())).expect("JSON")
}

fn requests() -> Vec<Value> {
    output(&["requests"]).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// What the load generator saw from outside.
fn load() -> Value {
    let text = std::fs::read(fixture().join("../load.json")).expect("tests/fixtures/bookinfo-hidden-delay/load.json");
    serde_json::from_slice(&text).expect("JSON")
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

#[test]
fn every_request_is_there_and_counted_once() {
    let (report, requests, load) = (report(&[]), requests(), load());
    let coverage = &report["coverage"];
    let sent = requests.iter().filter(|r| r["client"]["workload"] == "loadgen").count();
    assert_eq!(i64::try_from(sent).expect("small"), number(&load["requests"]));
    assert_eq!(number(&coverage["requests"]), i64::try_from(requests.len()).expect("small"));

    let of = |value: &Value| value.as_object().expect("an object").values().map(number).sum::<i64>();
    let rows = number(&coverage["full"])
        + of(&coverage["partial"])
        + number(&coverage["ambiguous"])
        + of(&coverage["unmatched"]);
    assert_eq!(rows, number(&coverage["requests"]));
    let full = requests.iter().filter(|r| r["coverage"]["full"] == true).count();
    assert_eq!(number(&coverage["full"]), i64::try_from(full).expect("small"));
    assert!(full * 100 >= requests.len() * 99, "{full} of {} are full", requests.len());
    assert_eq!(number(&coverage["lostKernelEvents"]), 0);
    assert_eq!(number(&coverage["negativeSegments"]), 0);

    let hops = report["hops"].as_array().expect("hops");
    assert_eq!(hops.iter().map(|h| number(&h["requests"])).sum::<i64>(), number(&coverage["requests"]));
    assert_eq!(hops.iter().map(|h| number(&h["n"])).sum::<i64>(), number(&coverage["full"]));
    let seven =
        ["loadgen", "productpage-v1", "productpage-v1", "productpage-v1", "productpage-v1", "reviews-v2", "reviews-v3"];
    let mut clients: Vec<_> = hops.iter().map(|h| h["client"]["workload"].as_str().expect("a name")).collect();
    clients.sort_unstable();
    assert_eq!(clients, seven);
}

#[test]
fn segments_sum_to_the_total_to_the_nanosecond() {
    for request in requests() {
        let segments = request["segments"].as_object().expect("segments");
        assert_eq!(segments.values().map(number).sum::<i64>(), number(&request["totalNs"]), "{request}");
    }
}

#[test]
fn the_hidden_delay_is_where_it_was_put() {
    let report = report(&[]);
    let place = &report["verdict"]["places"][0];
    assert_eq!((&place["kind"], &place["workload"]["workload"]), (&"sidecar".into(), &"ratings-v1".into()));
    let text = report["verdictText"].as_str().expect("a sentence");
    assert!(text.contains("in the sidecars (mostly ratings-v1: "), "{text}");

    // 12 ms in the server's sidecar of every request to ratings, and of no other: a sleep is never too short.
    for request in requests().iter().filter(|r| r["coverage"]["full"] == true) {
        let sidecar = number(&request["segments"]["server_sidecar"]);
        assert_eq!(sidecar >= 12_000_000, request["server"]["workload"] == "ratings-v1", "{request}");
    }
}

#[test]
fn totals_agree_with_the_load_generator() {
    let report = report(&[]);
    let hops = report["hops"].as_array().expect("hops");
    let entry = hops.iter().find(|h| h["client"]["workload"] == "loadgen").expect("the load generator's hop");
    // It measures from user space, and rounds in its histogram; see the end-to-end tests for single requests.
    for quantile in ["meanNs", "p50Ns"] {
        let (ours, theirs) = (number(&entry["total"][quantile]), number(&load()["latency"][quantile]));
        assert!((ours - theirs).abs() < 250_000, "{quantile}: {ours} and {theirs}");
    }
}

#[test]
fn every_format_comes_out_and_twice_the_same() {
    let table = output(&["report"]);
    assert!(table.contains("requests fully seen") && table.contains("reviews-v2 → ratings-v1"), "{table}");
    assert!(!table.contains('\u{1b}'), "colours although stdout is no terminal");
    assert_eq!(table, output(&["report"]));
    assert!(output(&["report", "--format=markdown"]).contains("ratings-v1"));
    assert_eq!(output(&["requests"]), output(&["requests"]));

    let tmp = tempfile::tempdir().expect("a temporary folder");
    let page = tmp.path().join("report.html");
    assert_eq!(output(&["report", "--output", page.to_str().expect("UTF-8")]), "");
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.starts_with("<!doctype html>") || page.starts_with("<!DOCTYPE html>"));
    assert!(!page.contains("src=\"http"), "the page is not self-contained");
    assert_eq!(std::fs::read_dir(tmp.path()).expect("a folder").count(), 1, "a temporary file stayed");
}

#[test]
fn namespaces_and_time_restrict_the_report() {
    let all = number(&report(&[])["coverage"]["requests"]);
    assert_eq!(number(&report(&["-n", "default"])["coverage"]["requests"]), all);
    assert_eq!(number(&report(&["-A"])["coverage"]["requests"]), all);
    let late = number(&report(&["--since", "3s"])["coverage"]["requests"]);
    assert!(0 < late && late < all, "{late} of {all}");
}

#[test]
fn the_lines_of_an_old_capture_say_what_they_lack() {
    let all = report(&[]);
    let connections = all["connections"].as_array().expect("a list");
    assert!(connections.len() > 30, "both sides of every line: {}", connections.len());
    let missing = all["coverage"]["metricsMissing"].as_object().expect("a map");
    for metric in ["write.executionTime", "read.executionTime", "retransmit", "drop", "close.resets", "windows"] {
        assert!(missing[metric].as_str().is_some_and(|why| why.contains("not in this capture")), "{metric}");
    }
    for c in connections {
        let metrics = &c["metrics"];
        assert!(metrics.get("retransmit").is_none() && metrics.get("drop").is_none(), "not measured is absent: {c}");
        assert!(metrics["write"].get("executionTime").is_none() && c["windows"].as_array().is_some_and(Vec::is_empty));
        assert!(number(&metrics["write"]["bytes"]) > 0, "what its messages tell is there: {c}");
    }
    // REDIRECTed connections lead to the program at their other end, and both views of a line agree.
    let of = |workload: &str, role: &str, side: &str, peer: &str, link: &str| {
        let found = connections.iter().filter(|c| {
            c["workload"] == workload
                && c["role"] == role
                && c["side"] == side
                && c["peerEnd"]["workload"] == peer
                && c["link"] == link
        });
        let found: Vec<&Value> = found.collect();
        assert_eq!(found.len(), 1, "{workload} {role} {side} {peer}: {found:#?}");
        found[0]
    };
    let client = of("productpage-v1", "sidecar", "client", "details-v1", "network");
    let server = of("details-v1", "sidecar", "server", "productpage-v1", "network");
    assert_eq!((&client["line"], &client["peerKnownBy"]), (&server["line"], &Value::from("matched")));
    assert_eq!((&client["protocol"], &client["tls"]["used"]), (&Value::from("http/1.1"), &Value::from(true)));
    assert_eq!(client["metrics"]["write"]["bytes"], server["metrics"]["read"]["bytes"]);
    let application = of("details-v1", "application", "server", "details-v1", "serverLoopback");
    assert_eq!(application["peerEnd"]["role"], "sidecar");
    // Nobody of another namespace has a line here.
    assert_eq!(report(&["--namespace", "default"])["connections"], all["connections"]);
    let wide = output(&["report", "--wide", "--format", "table"]);
    assert!(wide.contains("waited p50") && wide.contains("recorded before there were any"), "{wide}");
}
