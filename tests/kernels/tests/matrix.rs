//! The same conversations, told by the probes of this machine and of the kernels in virtual machines.
//!
//! All are compared with `conversation.log`, which `target/debug/probes-conversation >tests/kernels/conversation.log` makes anew
//! (as root, where the tier is tp_btf).

use meshdiff_kernels::{initramfs, kernels, vm};
use std::path::Path;
use std::process::Command;

const CONVERSATION: &str = env!("CARGO_BIN_EXE_probes-conversation");
const EXPECTED: &str = include_str!("../conversation.log");

fn asked_to_skip(variable: &str, test: &str) -> bool {
    let skip = std::env::var_os(variable).is_some_and(|v| v == "1");
    if skip {
        println!("left out: {test}, because {variable}=1");
    }
    skip
}

#[track_caller]
fn compare(told: &str, expected: &str, who: &str) {
    assert!(told == expected, "{who} tells the conversations differently:\n{}", differences(told, expected).join("\n"));
}

/// The conversations that differ.
fn differences(told: &str, expected: &str) -> Vec<String> {
    let parts = |text: &str| text.split("== ").skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (told, expected) = (parts(told), parts(expected));
    if told.len() != expected.len() {
        return vec![format!("{} conversations instead of {}", told.len(), expected.len())];
    }
    let differing = told.iter().zip(&expected).filter(|(t, e)| t != e);
    differing.map(|(t, e)| format!("---- told:\n{t}---- expected:\n{e}")).collect()
}

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

fn boots(series: &str, parameters: &str) -> Option<vm::Report> {
    if asked_to_skip("MESHDIFF_SKIP_QEMU", &format!("Linux {series} in a virtual machine")) {
        return None;
    }
    let kernel = kernels::image(series).unwrap_or_else(|e| panic!("{e}"));
    let archive = initramfs::with_init(Path::new(CONVERSATION)).expect("an initramfs");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), archive).expect("written");
    let report = vm::boot(&kernel, file.path(), parameters).unwrap_or_else(|e| panic!("{e}"));
    println!("Linux {}: tier {:?} after {:.1} s", report.kernel, report.tier, report.took.as_secs_f32());
    Some(report)
}

fn tells_it(series: &str, parameters: &str, expected: &str, level: &str) {
    let Some(report) = boots(series, parameters) else { return };
    assert!(report.kernel.starts_with(&format!("{series}.")), "{report:?}");
    assert!(report.lockdown.contains(&format!("[{level}]")), "{}", report.lockdown);
    assert_eq!(report.tier, "fentry", "{report:?}");
    assert!(report.refused.len() == 1 && report.refused[0].starts_with("tp_btf: "), "{report:?}");
    compare(&report.log, expected, &format!("Linux {} ({parameters})", report.kernel));
}

#[test]
fn linux_6_1_tells_it_as_it_was() {
    tells_it("6.1", "", EXPECTED, "none");
}

#[test]
fn linux_6_12_tells_it_as_it_was() {
    tells_it("6.12", "", EXPECTED, "none");
}

/// Under lockdown vectors can be read only where the verifier knows their type: the same events, with less recognised.
fn without(content: &str, conversation: &str) -> String {
    let heading = format!("{conversation}\n");
    let parts = EXPECTED.split_inclusive("== ");
    parts.map(|part| if part.starts_with(&heading) { part.replace(content, "-") } else { part.to_owned() }).collect()
}

#[test]
fn linux_6_1_tells_it_under_lockdown() {
    tells_it("6.1", "lockdown=confidentiality", EXPECTED, "confidentiality");
}

#[test]
fn linux_6_12_tells_it_under_lockdown() {
    let expected = without("GET /hello/world", "pieces");
    tells_it("6.12", "lockdown=confidentiality", &expected, "confidentiality");
}
