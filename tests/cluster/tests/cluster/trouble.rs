//! Agents and clusters that do not answer, or answer otherwise than they should.

use crate::common::{PODS, SYSTEM, TOKEN, agent, both, cluster, meshdiff, register, secret};
use meshdiff_cluster::agent::Manner;
use meshdiff_cluster::objects::PodSpec;
use meshdiff_cluster::privileged;
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn whoever_is_not_reached_is_named_and_the_rest_is_reported() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let report = |arguments: &[&str]| {
        plane.meshdiff(&program, "user", &[&["report", "--format=json", "-n", "default"], arguments].concat())
    };
    let notes = |text: &str| -> String {
        let report: Value = serde_json::from_str(text).expect("JSON");
        report["coverage"]["notes"].to_string()
    };
    // One agent only: the other pod is there, and nothing listens.
    let one = agent(plane, 0, Manner::Well);
    let said = notes(&report(&[]).well());
    assert!(said.contains("the agent on node-b was not asked") && said.contains("connection refused"), "{said}");
    // An agent that is not running at all, and an application on a node without any.
    plane.set_status(
        SYSTEM,
        &format!("pod/{}", PODS[1]),
        &json!({"phase": "Pending", "containerStatuses": [{"name": "app", "image": "x",
        "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
    );
    plane.add_pods(&[PodSpec {
        namespace: "default",
        name: "lonely",
        node: "node-c",
        address: "10.99.0.77",
        labels: &[],
        sidecar: true,
    }]);
    let said = notes(&report(&[]).well());
    assert!(said.contains("ImagePullBackOff") && said.contains("no agent runs on the node node-c"), "{said}");
    plane.remove_pod("default", "lonely");
    drop(one);
    // Nobody.
    report(&[]).says(1, &["none of the 2 agents", "node-a", "connection refused"]);
    for pod in PODS {
        plane.remove_pod(SYSTEM, pod);
    }
    report(&[]).says(1, &["no agent runs in the namespace \"meshdiff-system\"", "--agent-namespace"]);
}

#[test]
fn agents_that_misbehave_are_tried_again_or_refused() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let report = || plane.meshdiff(&program, "user", &["report", "--format=json", "-n", "default"]);
    {
        let flaky = agent(plane, 0, Manner::BreaksOff(2));
        let _well = agent(plane, 1, Manner::Well);
        let ended = report();
        assert!(!ended.stdout.contains("was not asked"), "{}", ended.stdout);
        ended.well();
        assert_eq!(flaky.asked().len(), 3, "twice in vain");
    }
    {
        let _later = agent(plane, 0, Manner::Later);
        let _hostile = agent(plane, 1, Manner::Hostile);
        report().says(
            1,
            &["meshdiff.capture/v99", "use the version of meshdiff that runs in the cluster", "no part of a capture"],
        );
        assert!(!Path::new("/tmp/meshdiff-was-here").exists());
    }
    // The Secret was changed, and the agents have another token.
    let _agents = both(plane);
    secret(plane, "another-token-that-is-long-enough");
    report().says(1, &["does not accept the token", "meshdiff-token"]);
    let arguments = ["-n", SYSTEM, "delete", "secret", "meshdiff-token"];
    plane.kubectl("admin", &arguments, None).well();
    report().says(1, &["the agents' token is missing", "--token-file"]);
    let token = plane.folder().join("right-token");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("written");
    let by_file = ["report", "-n", "default", "--token-file", token.to_str().expect("UTF-8")];
    plane.meshdiff(&program, "user", &by_file).well();
    secret(plane, TOKEN);
    report().well();
}

#[test]
fn a_cluster_that_cannot_be_asked_is_a_sentence() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    let _agents = both(plane);
    let program = meshdiff();
    plane.add_user("expired", true);
    plane
        .meshdiff(&program, "expired", &["report", "-n", "default"])
        .says(1, &["does not accept the kubeconfig's credentials", "expired"]);
    let nowhere = ["report", "-n", "default", "--context", "nowhere"];
    plane.meshdiff(&program, "user", &nowhere).says(1, &["no context \"nowhere\"", "get-contexts"]);
    plane
        .meshdiff(&program, "user", &["report", "--kubeconfig", "/nonexistent"])
        .says(1, &["cannot read the kubeconfig", "--kubeconfig"]);
    plane.meshdiff(&program, "user", &["report", "-n", "Not A Name"]).says(2, &["is no name"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default", "node/x"]).says(2, &["deploy/NAME"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default", "deploy/none"]).says(1, &["no deploy/none"]);
    plane.meshdiff(&program, "user", &["report", "-n", "empty"]).says(4, &["no request", "\"empty\""]);
    plane.take_api_server_away();
    let away = plane.meshdiff(&program, "user", &["report", "-n", "default"]);
    plane.bring_api_server_back();
    away.says(1, &["cannot be reached", "refused"]);
    plane.meshdiff(&program, "user", &["report", "-n", "default"]).well();
}
