//! A capture that is joined part by part gives the same report as one that is in memory as a whole.

use crate::support::{MESHDIFF, fixture};
use serde_json::Value;
use std::time::Duration;

/// The report, with `MESHDIFF_BY_PARTS` as it is given, without when it was made.
fn report(by_parts: &str, args: &[&str]) -> Value {
    let output = assert_cmd::Command::new(MESHDIFF)
        .env("MESHDIFF_BY_PARTS", by_parts)
        .args(["report", "--format=json", "--capture"])
        .arg(fixture())
        .args(args)
        .timeout(Duration::from_secs(60))
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let made = report["meta"].as_object_mut().expect("an object").remove("generated");
    assert!(made.is_some(), "{report}");
    report
}

#[test]
fn by_parts_and_as_a_whole_it_is_the_same() {
    for args in [&[][..], &["-n", "default"], &["--since", "4s"]] {
        let (whole, parts) = (report("never", args), report("always", args));
        assert!(whole["coverage"]["full"].as_u64().is_some_and(|full| full > 100), "{args:?}");
        assert_eq!(whole, parts, "{args:?}");
    }
}
