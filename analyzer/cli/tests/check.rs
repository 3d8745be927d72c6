//! `meshdiff check` as a script meets it.

use assert_cmd::Command;
use serde_json::Value;
use std::net::TcpListener;

fn check(listen: &str) -> (Value, i32, String) {
    let output = Command::cargo_bin("meshdiff")
        .expect("the binary is built")
        .args(["check", "--json", "--als-listen", listen])
        .output()
        .expect("it runs");
    let value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    (value, output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_exit_code_says_what_the_answer_says() {
    let (answer, code, stderr) = check("127.0.0.1:0");
    assert_eq!(answer["schemaVersion"], "meshdiff.check/v1");
    assert_eq!(answer["ready"] == true, code == 0, "{answer:#}");
    assert!(code == 0 || code == 1, "{code}: {stderr}");
    for tier in answer["tiers"].as_array().expect("tiers") {
        // A refusal has a reason and a remedy; what works has neither.
        assert_eq!(tier["works"] == true, tier["reason"].is_null() && tier["fix"].is_null(), "{tier}");
    }
    assert_eq!(
        answer["tier"].is_null(),
        answer["tiers"].as_array().expect("tiers").iter().all(|t| t["works"] == false)
    );
}

#[test]
fn a_port_that_is_taken_makes_it_a_no() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let (answer, code, stderr) = check(&taken.local_addr().expect("an address").to_string());
    assert_eq!((code, &answer["ready"]), (1, &Value::Bool(false)), "{answer:#}");
    assert_eq!(stderr, "", "the answer is on stdout, and said once");
    let checks = answer["checks"].as_array().expect("checks");
    let port = checks.iter().find(|c| c["name"] == "access log endpoint").expect("it is among them");
    assert!(port["status"] == "no" && port["fix"].as_str().is_some_and(|f| f.contains("--als-listen")), "{port}");
}
