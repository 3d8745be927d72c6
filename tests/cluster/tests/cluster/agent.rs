//! The agent itself, in place of those that only have a capture.

use crate::common::{ADDRESSES, NODES, TOKEN, cluster, meshdiff, register};
use meshdiff_cluster::privileged;
use serde_json::Value;

/// The agent itself, without probes and without traffic: what it answers is understood.
#[test]
fn the_agent_itself_answers_through_the_proxy() {
    if !privileged() {
        return;
    }
    let (plane, _turn) = cluster();
    register(plane);
    let program = meshdiff();
    let token = plane.folder().join("agents-token");
    std::fs::write(&token, TOKEN).expect("written");
    let mut agents: Vec<_> = (0..2)
        .map(|i| {
            let window = plane.folder().join(format!("window-{i}"));
            let address = |port: u16| format!("{}:{port}", ADDRESSES[i]);
            let arguments =
                ["agent", "--no-probes", "--no-kube", "--listen", &address(9902), "--als-listen", &address(9901)];
            let files = [
                "--token-file",
                token.to_str().expect("UTF-8"),
                "--window",
                window.to_str().expect("UTF-8"),
                "--node-name",
                NODES[i],
            ];
            plane.start_program(&program, &[&arguments[..], &files].concat(), &format!("agent-{i}.log"))
        })
        .collect();
    let started = std::time::Instant::now();
    let check = || {
        let ended = plane.meshdiff(&program, "user", &["check", "--cluster", "--json", "-n", "default"]);
        serde_json::from_str::<Value>(&ended.stdout)
            .unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr))
    };
    let of_node = |check: &Value, node: &str| -> String {
        let all = check["checks"].as_array().expect("checks").iter();
        all.filter(|c| c["name"] == format!("node {node}")).map(|c| c["text"].to_string()).collect()
    };
    loop {
        let found = check();
        if NODES.iter().all(|n| of_node(&found, n).contains("no kind of probes works there")) {
            break;
        }
        let logs: Vec<String> = agents.iter().map(|a| a.log()).collect();
        assert!(started.elapsed() < std::time::Duration::from_secs(90), "{found:#}\n{logs:#?}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    // There was no request: that is said, and is no error of anybody.
    let report = plane.meshdiff(&program, "user", &["report", "-n", "default", "--since", "1m"]);
    report.says(4, &["what the agents have holds no request", "no access log entry arrived"]);
    let wrong = plane.folder().join("wrong-token");
    std::fs::write(&wrong, "not-the-token-of-the-agents").expect("written");
    let by_file = ["report", "-n", "default", "--token-file", wrong.to_str().expect("UTF-8")];
    plane.meshdiff(&program, "user", &by_file).says(1, &["none of the 2 agents", "does not accept the token"]);
    // One is killed: the other one is asked all the same.
    agents[0].kill();
    let found = check();
    assert!(
        of_node(&found, NODES[0]).contains("cannot be asked")
            && of_node(&found, NODES[1]).contains("no kind of probes"),
        "{found:#}"
    );
}
