//! `report --by`, on a capture that was made before sidecars were asked where they run.

use crate::support::{fixture, meshdiff};
use serde_json::Value;
use std::path::Path;

fn report(args: &[&str]) -> String {
    let capture = fixture();
    let args = [&["report"], args, &["--capture", capture.to_str().expect("UTF-8")]].concat();
    meshdiff(Path::new("/"), &args).says(0, &[]).stdout
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

#[test]
fn what_an_old_capture_does_not_say_is_unknown_with_the_reason() {
    let told: Value = serde_json::from_str(&report(&["--format=json", "--by=all"])).expect("JSON");
    let [zone, subset, version, node] = list(&told["breakdowns"]) else { panic!("four breakdowns: {told}") };
    for hop in list(&zone["hops"]) {
        let [row] = list(&hop["rows"]) else { panic!("one row: {hop}") };
        for end in ["client", "server"] {
            assert_eq!((&row[end]["value"], row[end]["reason"].as_str()), (&Value::Null, Some("not_said")), "{row}");
        }
        assert!(row.get("crossing").is_none() && hop.get("crossed").is_none(), "nobody knows: {row}");
    }
    let requests = told["coverage"]["requests"].as_u64().expect("a number");
    assert_eq!(zone["unknown"], serde_json::json!({"not_said": 2 * requests}), "both ends of each");
    for hop in list(&subset["hops"]) {
        assert_eq!(hop["rows"][0]["server"]["reason"], "no_subset");
    }
    // Labels and the node's name were there already.
    let to_reviews = list(&version["hops"]).iter().find(|h| h["server"]["service"] == "reviews").expect("reviews");
    let versions: Vec<_> = list(&to_reviews["rows"]).iter().map(|r| r["server"]["value"].as_str()).collect();
    assert_eq!(versions, [Some("v1"), Some("v2"), Some("v3")]);
    assert_eq!(to_reviews["server"]["workload"], Value::Null, "three workloads of one service");
    for hop in list(&node["hops"]) {
        assert_eq!(
            (&hop["rows"][0]["server"]["value"], &hop["rows"][0]["crossing"]),
            (&"lab-node".into(), &false.into())
        );
    }
    // For people, in words.
    let table = report(&["--by", "zone,version"]);
    for words in
        ["By zone", "unknown → unknown", "By version", "v1 → v3", "nor the labels of the Kubernetes node say the zone"]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(!table.contains("By subset") && !report(&[]).contains("By zone"), "only what was asked for");
}

#[test]
fn what_cannot_tell_requests_apart_is_a_wrong_use() {
    let capture = fixture();
    let args = ["report", "--by", "planet", "--capture", capture.to_str().expect("UTF-8")];
    meshdiff(Path::new("/"), &args).says(2, &["planet", "zone", "subset", "version", "node"]);
}
