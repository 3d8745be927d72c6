//! Bad input: a clear sentence that says what to do, the exit code of the contract, and nothing touched.

use crate::support::{Ended, MESHDIFF, contents, copy_of_fixture, fixture, meshdiff, run};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The arguments of a recording that needs no privileges, on a free port, and would end soon.
const RECORD: [&str; 6] =
    ["record", "--no-probes", "--duration=100ms", "--als-listen=127.0.0.1:0", "--quiet", "--output"];

fn record_into(folder: &Path, output: &str, more: &[&str]) -> Ended {
    meshdiff(folder, &[&RECORD, &[output][..], more].concat())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn wrong_usage_ends_with_2() {
    let tmp = folder();
    let capture = fixture();
    let capture = capture.to_str().expect("UTF-8");
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["unheard-of"], "unheard-of"),
        (&["report", "--capture", capture, "--context=x"], "--context"),
        (&["report", "--capture", capture, "deploy/x"], "KIND/NAME"),
        (&["record"], "--output"),
        (&["record", "--output=x", "--duration=soon"], "30s, 5m or 1h30m"),
        (&["record", "--output=x", "--ring-size=3"], "2 or 4"),
        (&["record", "--output=x", "--als-listen=9901"], "9901"),
        (&["record", "--output=x", "--no-probes", "--raw"], "--raw"),
        (&["record", "--output=x", "--als-tls-cert=a.pem"], "--als-tls-key"),
        (&["record", "--output=x", "--als-tls-key=a.pem"], "--als-tls-cert"),
        (&["record", "--output=x", "--als-tls-client-ca=a.pem"], "--als-tls-cert"),
        (&["report", "--capture", capture, "-n", "a", "-A"], "--all-namespaces"),
        (&["report", "--capture", capture, "--format=pdf"], "markdown"),
        (&["report", "--capture", capture, "--output=report.pdf"], "--format"),
    ];
    for (args, word) in cases {
        meshdiff(tmp.path(), args).says(2, &[word]);
    }
    assert_eq!(contents(tmp.path()), [], "wrong usage left something behind");
}

/// Without a capture it is a cluster that is meant.
#[test]
fn without_a_capture_and_a_kubeconfig_both_ways_are_named() {
    let tmp = folder();
    for args in [&["report"][..], &["requests", "-A"], &["check", "--cluster"], &["report", "--kubeconfig=nowhere"]] {
        let mut command = assert_cmd::Command::new(MESHDIFF);
        command.args(args).current_dir(tmp.path()).env("KUBECONFIG", "nowhere").env_remove("KUBERNETES_SERVICE_HOST");
        let output = command.output().expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{stderr}");
        assert!(stderr.contains("cannot read the kubeconfig") && stderr.contains("--capture DIR"), "{stderr}");
    }
}

#[test]
fn certificates_that_cannot_be_used_end_with_1() {
    let tmp = folder();
    std::fs::write(tmp.path().join("empty.pem"), "").expect("written");
    std::fs::write(tmp.path().join("cut.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").expect("written");
    for (cert, word) in
        [("nowhere.pem", "cannot read nowhere.pem"), ("empty.pem", "no certificate"), ("cut.pem", "cut.pem")]
    {
        let (cert, key) = (format!("--als-tls-cert={cert}"), "--als-tls-key=empty.pem");
        record_into(tmp.path(), "capture", &[&cert, key]).says(1, &["the access log endpoint's TLS", word]);
        assert!(!tmp.path().join("capture").exists(), "nothing was recorded, so nothing is left behind");
    }
}

#[test]
fn what_is_no_capture_ends_with_1() {
    let tmp = folder();
    let report = |name: &str| meshdiff(tmp.path(), &["report", "--capture", name]);
    report("nowhere").says(1, &["no capture at nowhere", "meshdiff record"]);

    std::fs::create_dir(tmp.path().join("foreign")).expect("a folder");
    std::fs::write(tmp.path().join("foreign/notes.txt"), "mine").expect("written");
    report("foreign").says(1, &["foreign is not a capture", "meta.json"]);
    report("foreign/notes.txt").says(1, &["is not a folder"]);

    let cut = copy_of_fixture(tmp.path(), "cut").join("meta.json");
    let meta = std::fs::read_to_string(&cut).expect("a meta");
    std::fs::write(&cut, &meta[..meta.len() / 2]).expect("cut");
    report("cut").says(1, &["cut/meta.json does not describe a capture", "damaged"]);
    std::fs::write(&cut, meta.replace("capture/v1", "capture/v9")).expect("changed");
    report("cut").says(1, &["meshdiff.capture/v9", "upgrade"]);
    meshdiff(tmp.path(), &["requests", "--capture", "cut"]).says(1, &["meshdiff.capture/v9"]);
}

#[test]
fn an_output_folder_that_is_not_ours_is_never_touched() {
    let tmp = folder();
    let foreign = tmp.path().join("foreign");
    std::fs::create_dir(&foreign).expect("a folder");
    std::fs::write(foreign.join("notes.txt"), "mine").expect("written");
    std::fs::write(tmp.path().join("file"), "mine").expect("written");
    copy_of_fixture(tmp.path(), "capture");
    let before = contents(tmp.path());

    record_into(tmp.path(), "foreign", &[]).says(1, &["not empty"]);
    record_into(tmp.path(), "foreign", &["--force"]).says(1, &["not a capture", "notes.txt"]);
    record_into(tmp.path(), "file", &[]).says(1, &["not a folder"]);
    record_into(tmp.path(), "file", &["--force"]).says(1, &["not a folder"]);
    record_into(tmp.path(), "capture", &[]).says(1, &["not empty", "--force"]);
    assert!(contents(tmp.path()) == before, "something was touched");

    record_into(tmp.path(), "capture", &["--force"]).says(0, &[]);
    meshdiff(tmp.path(), &["report", "--capture", "capture"]).says(4, &["capture holds no request"]);
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left_behind() {
    let tmp = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let port = address.rsplit(':').next().expect("a port");
    let args = ["record", "--no-probes", "--duration=100ms", "--output=capture", "--als-listen", &address];
    meshdiff(tmp.path(), &args).says(1, &[&format!("another process has port {port}"), "ss -ltnp", "choose another"]);
    assert_eq!(contents(tmp.path()), []);
}

#[test]
fn an_empty_capture_never_looks_fine() {
    let tmp = folder();
    record_into(tmp.path(), "capture", &[]).says(0, &[]);
    for format in ["table", "html", "json", "markdown"] {
        meshdiff(tmp.path(), &["report", "--capture=capture", "--format", format])
            .says(4, &["capture holds no request", "no access log entry arrived", "extensionProviders"]);
    }
    meshdiff(tmp.path(), &["requests", "--capture=capture"]).says(4, &["holds no request"]);
    let ended = meshdiff(tmp.path(), &["report", "--capture=capture", "--output=report.html"]).says(4, &[]);
    assert!(!ended.stderr.contains("The probes saw"), "there were no probes: {}", ended.stderr);
    assert!(!tmp.path().join("report.html").exists());
}

#[test]
fn what_the_capture_does_not_hold_ends_with_4() {
    let tmp = folder();
    let capture = fixture();
    let capture = capture.to_str().expect("UTF-8");
    for command in ["report", "requests"] {
        meshdiff(tmp.path(), &[command, "--capture", capture, "-n", "defualt"])
            .says(4, &["the namespace \"defualt\"", "are in: \"default\""]);
        meshdiff(tmp.path(), &[command, "--capture", capture, "--since=1ns"]).says(4, &["--since"]);
    }
    meshdiff(tmp.path(), &["report", "--capture", capture, "-n", "default"]).says(0, &[]);
}

#[test]
fn a_truncated_part_is_left_out_and_named() {
    let tmp = folder();
    let whole = meshdiff(tmp.path(), &["requests", "--capture", fixture().to_str().expect("UTF-8")]).says(0, &[]);
    for table in ["access_logs", "messages", "sockets", "processes", "proxies"] {
        let capture = copy_of_fixture(tmp.path(), table);
        let folder = capture.join(table);
        // Of the parts that hold rows, the largest.
        let parts = std::fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path());
        let part = parts.max_by_key(|p| (p.metadata().expect("a file").len(), p.clone())).expect("parts");
        let name = format!("{table}/{}", part.file_name().expect("a name").to_str().expect("UTF-8"));
        let file = std::fs::OpenOptions::new().write(true).open(&part).expect("opened");
        file.set_len(file.metadata().expect("a file").len() / 2).expect("cut");

        let report = meshdiff(tmp.path(), &["report", "--capture", table]).says(0, &[&name, "cut short"]);
        assert!(report.stdout.contains(&name) && report.stdout.contains("left out"), "{}", report.stdout);
        let html = meshdiff(tmp.path(), &["report", "--capture", table, "--format=html"]).says(0, &[]);
        assert!(html.stdout.contains(&name), "the page does not name {name}");
        let requests = meshdiff(tmp.path(), &["requests", "--capture", table]).says(0, &[&name]);
        if table == "access_logs" || table == "messages" {
            assert_ne!(requests.stdout, whole.stdout, "half of {name} is gone, and nothing changed");
        }
    }
}

#[test]
fn a_missing_part_is_noticed() {
    let tmp = folder();
    let capture = copy_of_fixture(tmp.path(), "capture");
    std::fs::remove_file(capture.join("messages/part-00002.parquet")).expect("removed");
    let report = meshdiff(tmp.path(), &["report", "--capture=capture"]).says(0, &[]);
    assert!(report.stdout.contains("of messages that meta.json counts"), "{}", report.stdout);
}

#[test]
fn a_report_that_cannot_be_written_says_where() {
    let tmp = folder();
    let capture = fixture();
    let args = ["report", "--capture", capture.to_str().expect("UTF-8"), "--output=no/such/folder/report.html"];
    meshdiff(tmp.path(), &args).says(1, &["cannot write no/such/folder/report.html"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [["requests", "--instants"], ["report", "--format=html"]] {
        let mut child = Command::new(MESHDIFF)
            .args(args)
            .arg("--capture")
            .arg(fixture())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("meshdiff starts");
        let mut line = String::new();
        let mut reader = BufReader::with_capacity(64, child.stdout.take().expect("piped"));
        reader.read_line(&mut line).expect("a line");
        // More is to come than fits a pipe.
        drop(reader);
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
        assert_eq!((child.wait().expect("ended").code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn an_unknown_process_or_namespace_is_named() {
    if left_out() {
        return;
    }
    let tmp = folder();
    let record = ["record", "--duration=100ms", "--als-listen=127.0.0.1:0", "--output=capture"];
    meshdiff(tmp.path(), &[&record[..], &["--pid=4194305"]].concat()).says(1, &["no process 4194305"]);
    meshdiff(tmp.path(), &[&record[..], &["--netns=nowhere"]].concat()).says(1, &["\"nowhere\"", "ip netns list"]);
    assert_eq!(contents(tmp.path()), []);
}

#[test]
fn without_privileges_the_way_out_is_named() {
    if left_out() {
        return;
    }
    let tmp = folder();
    // The build's folder may be closed to other users: a copy in a place that they can reach.
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("permissions");
    let copy = tmp.path().join("meshdiff");
    std::fs::copy(MESHDIFF, &copy).expect("copied");
    open(&copy);
    open(tmp.path());
    let copy = copy.to_str().expect("UTF-8");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let no_capability = ["--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-bpf,-perfmon,-sys_admin"];
    let record = ["record", "--duration=100ms", "--als-listen=127.0.0.1:0", "--quiet", "--output=capture"];
    for who in [&nobody[..], &no_capability] {
        run("setpriv", &[who, &[copy], &record].concat(), tmp.path())
            .says(1, &["root", "CAP_BPF and CAP_PERFMON", "--no-probes"]);
    }
    assert!(!tmp.path().join("capture").exists());
    run("setpriv", &[&nobody[..], &[copy], &record, &["--no-probes"]].concat(), tmp.path()).says(0, &[]);
}

#[test]
fn a_kernel_without_btf_is_named() {
    if left_out() {
        return;
    }
    let tmp = folder();
    // A mount namespace in which the kernel seems to have none.
    let hidden = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec '{MESHDIFF}' record --duration=100ms --als-listen=127.0.0.1:0 --output=capture"
    );
    run("unshare", &["--mount", "sh", "-c", &hidden], tmp.path())
        .says(1, &["no BTF at /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF", "--no-probes"]);
    assert_eq!(contents(tmp.path()), []);
}

/// True if privileged tests are to be left out; fails if they are not but cannot run.
fn left_out() -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("left out: MESHDIFF_SKIP_PRIVILEGED=1");
        return true;
    }
    assert!(nix::unistd::geteuid().is_root(), "this test needs root; MESHDIFF_SKIP_PRIVILEGED=1 leaves it out");
    false
}
