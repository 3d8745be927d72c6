//! Reports through the API server's proxy.

use crate::common::{both, cluster, fixture, lines, meshdiff, told};
use meshdiff_cluster::objects::PodSpec;
use meshdiff_cluster::privileged;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn a_report_through_the_pod_proxy_tells_what_one_machine_told() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let agents = both(plane);
    let program = meshdiff();
    let ended = plane.meshdiff(&program, "user", &["requests", "--namespace", "default"]);
    let notes = ended.stderr.clone();
    let found = told(&lines(&ended.well()));
    let capture = fixture();
    let local = ["requests", "--namespace", "default", "--capture", capture.to_str().expect("UTF-8")];
    let all = lines(&plane.meshdiff(&program, "user", &local).well());
    // An agent's window goes on: its last two seconds are not reported yet.
    let latest = all.iter().map(|r| r["start"].as_str().expect("a start").to_owned()).max().expect("requests");
    assert!(found.len() * 10 > all.len() * 7, "{} of {} until {latest}\n{notes}", found.len(), all.len());
    let expected = told(&all);
    for (request, told) in &found {
        assert_eq!(Some(told), expected.get(request), "{request}");
    }
    let joined = found.values().filter(|r| r[2]["full"] == true).count();
    assert!(joined * 10 > found.len() * 9, "{joined} of {} are full", found.len());
    // The clock of one node is five minutes fast: the report says so, and by how much.
    assert!(notes.contains("300.0") && notes.contains("the wall clock of node-"), "{notes}");
    for agent in &agents {
        let question = [("namespace".to_owned(), "default".to_owned()), ("since".to_owned(), "900s".to_owned())];
        assert_eq!(agent.asked().last().map(Vec::as_slice), Some(&question[..]));
    }
    // As a plugin of kubectl, with a table, all namespaces, and less time.
    let plugin = plane.folder().join("kubectl-meshdiff");
    drop(std::fs::remove_file(&plugin));
    std::os::unix::fs::symlink(&program, &plugin).expect("a link");
    let table = plane.meshdiff(&plugin, "admin", &["report", "-A", "--since", "1h"]).well();
    assert!(table.contains("ratings-v1"), "{table}");
    assert_eq!(agents[0].asked().last(), Some(&vec![("since".to_owned(), "3600s".to_owned())]));
}

#[test]
fn workloads_are_chosen_as_in_kubectl() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let _agents = both(plane);
    let program = meshdiff();
    let all = lines(&plane.meshdiff(&program, "user", &["requests", "-n", "default"]).well());
    let address = |workload: &str| {
        let ends = all.iter().flat_map(|r| [&r["client"], &r["server"]]);
        let found = ends.filter(|e| e["workload"] == workload).find_map(|e| e["address"].as_str());
        found.expect("its address").split(':').next().expect("an address").to_owned()
    };
    let (ratings, reviews) = (address("ratings-v1"), address("reviews-v1"));
    let labels = |app: &'static str| [("app", app)];
    let pod =
        |name, address, labels| PodSpec { namespace: "default", name, node: "node-a", address, labels, sidecar: true };
    plane.add_pods(&[pod("ratings-1", &ratings, &labels("ratings")), pod("reviews-1", &reviews, &labels("reviews"))]);
    let selector = json!({"matchLabels": {"app": "ratings"}});
    plane.apply(&[
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ratings-v1", "namespace": "default"},
            "spec": {"selector": selector, "template": {"metadata": {"labels": {"app": "ratings"}},
            "spec": {"containers": [{"name": "app", "image": "example.com/ratings:1"}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ratings", "namespace": "default"},
            "spec": {"selector": {"app": "ratings"}, "ports": [{"port": 9080}]}}),
    ]);
    let of_ratings: BTreeSet<String> = all
        .iter()
        .filter(|r| [&r["client"], &r["server"]].iter().any(|e| e["workload"] == "ratings-v1"))
        .map(|r| r["id"].to_string())
        .collect();
    assert!(!of_ratings.is_empty() && of_ratings.len() < all.len());
    for chosen in [
        &["deploy/ratings-v1"][..],
        &["svc/ratings"],
        &["pod/ratings-1"],
        &["-l", "app=ratings"],
        &["-l", "app in (ratings)"],
    ] {
        let arguments = [&["requests", "-n", "default"], chosen].concat();
        let found = lines(&plane.meshdiff(&program, "user", &arguments).well());
        let ids: BTreeSet<String> = found.iter().map(|r| r["id"].to_string()).collect();
        assert_eq!(ids, of_ratings, "{chosen:?}");
    }
    let none = ["requests", "-n", "default", "-l", "app=nobody"];
    plane.meshdiff(&program, "user", &none).says(1, &["no pod for -l app=nobody"]);
    let bad = ["requests", "-n", "default", "-l", "=="];
    plane.meshdiff(&program, "user", &bad).says(1, &["refuses to list pods"]);
    for name in ["ratings-1", "reviews-1"] {
        plane.remove_pod("default", name);
    }
}
