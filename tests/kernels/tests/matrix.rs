//! The same conversations, told by the probes of this machine and of the kernels in virtual machines.
//!
//! All are compared with `conversation.log`, which `target/debug/probes-conversation >tests/kernels/conversation.log` makes anew
//! (as root, where the tier is tp_btf).

mod support;

use std::process::Command;
use support::{Boot, CONVERSATION, EXPECTED, asked_to_skip, compare, with_less_of_vectors};

#[test]
fn this_machine_tells_it_as_it_was() {
    if asked_to_skip("MESHDIFF_SKIP_PRIVILEGED", "the probes' conversations on this machine") {
        return;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "the probes need root: run this as root, or set MESHDIFF_SKIP_PRIVILEGED=1 to leave it out"
    );
    let output = Command::new(CONVERSATION).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    compare(&String::from_utf8_lossy(&output.stdout), EXPECTED, &format!("this machine ({})", stderr.trim()));
}

#[test]
fn linux_6_1_tells_it_as_it_was() {
    let boot = Boot { tiers: "best,kprobe", churn: "kprobe", waits: "fentry,kprobe", ..Boot::new("6.1") };
    let Some(report) = boot.run() else { return };
    report.best("fentry", &["tp_btf: "], EXPECTED);
    report.kprobe(EXPECTED);
    report.churn("kprobe");
    report.waits("fentry", true);
    report.waits("kprobe", false);
}

#[test]
fn linux_6_12_tells_it_as_it_was_and_how_slow_the_network_is() {
    let boot =
        Boot { tiers: "best,kprobe", churn: "kprobe", waits: "fentry", link: "fentry,kprobe", ..Boot::new("6.12") };
    let Some(report) = boot.run() else { return };
    report.best("fentry", &["tp_btf: "], EXPECTED);
    report.kprobe(EXPECTED);
    report.churn("kprobe");
    report.waits("fentry", true);
    report.link("fentry");
    report.link("kprobe");
}

/// Under lockdown payload is read as text, and of vectors the first element.
#[test]
fn linux_6_1_tells_it_under_lockdown() {
    let boot = Boot { lockdown: "confidentiality", tiers: "best,kprobe", ..Boot::new("6.1") };
    let Some(report) = boot.run() else { return };
    report.best("fentry", &["tp_btf: "], &with_less_of_vectors(false));
    report.forbids_kprobes();
}

/// Under lockdown that can be read only where the verifier knows its type: the same events, with less recognised.
#[test]
fn linux_6_12_tells_it_under_lockdown() {
    let boot = Boot { lockdown: "confidentiality", tiers: "best,kprobe", ..Boot::new("6.12") };
    let Some(report) = boot.run() else { return };
    report.best("fentry", &["tp_btf: "], &with_less_of_vectors(true));
    report.forbids_kprobes();
}

/// Before Linux 6.4 arm64 has no fentry: what is left is kprobes.
#[test]
fn linux_6_1_on_arm64_tells_it_as_it_was() {
    let Some(boot) = Boot::arm64("6.1-arm64") else { return };
    let Some(report) = boot.run() else { return };
    report.best("kprobe", &["tp_btf: ", "fentry: "], EXPECTED);
}

#[test]
fn linux_6_12_on_arm64_tells_it_as_it_was() {
    let Some(boot) = Boot::arm64("6.12-arm64") else { return };
    let Some(report) = (Boot { tiers: "best,kprobe", ..boot }).run() else { return };
    report.best("fentry", &["tp_btf: "], EXPECTED);
    report.kprobe(EXPECTED);
}
