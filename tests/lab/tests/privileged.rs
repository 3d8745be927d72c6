//! The lab itself, with real Envoys: needs root and what `tests/lab/setup.sh` installs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use meshdiff_lab::netns;
use meshdiff_lab::truth::{Role, Side, Truth};
use serde_json::Value;

/// Whether to run. Without root it fails, unless it was left out on purpose: a test that passes silently proves nothing.
fn privileged() -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        eprintln!("left out: MESHDIFF_SKIP_PRIVILEGED=1 is set, and this test needs root");
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root; set MESHDIFF_SKIP_PRIVILEGED=1 to leave it out"
    );
    true
}

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshdiff-lab")).args(arguments).output().expect("the lab's binary runs")
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let output = lab(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "meshdiff-lab {arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A lab that goes with its test, however that ends.
struct Lab(String);

impl Lab {
    fn name(purpose: &str) -> Self {
        Self(format!("t{}-{purpose}", std::process::id()))
    }

    fn up(purpose: &str, options: &[&str]) -> Self {
        let lab = Self::name(purpose);
        succeed(&[&["up", "--name", &lab.0], options].concat());
        lab
    }

    fn status(&self) -> Value {
        serde_json::from_str(&succeed(&["status", "--name", &self.0, "--json"])).unwrap()
    }

    fn load(&self, options: &[&str]) -> Value {
        serde_json::from_str(&succeed(&[&["load", "--name", &self.0], options].concat())).unwrap()
    }

    fn stat(&self, pod: &str, filter: &str) -> BTreeMap<String, u64> {
        let text = succeed(&["admin", "--name", &self.0, pod, &format!("/stats?filter={filter}")]);
        let lines = text.lines().filter_map(|line| line.rsplit_once(": "));
        lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    fn truth(&self) -> Truth {
        Truth::read([self.status()["logs"].as_str().unwrap()]).unwrap()
    }

    /// Everything on this machine that bears the lab's name.
    fn traces(&self) -> Vec<String> {
        let mut traces = netns::named(&format!("meshlab.{}.", self.0));
        let name = self.0.parse::<meshdiff_lab::settings::LabName>().unwrap();
        let mut paths =
            vec![PathBuf::from("/run/meshdiff-lab").join(&self.0), Path::new("/sys/class/net").join(name.host_link())];
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"] {
            paths.push(Path::new(root).join(format!("meshdiff-lab.{}", self.0)));
        }
        traces.extend(paths.into_iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
        traces.extend(processes_naming(&format!("/run/meshdiff-lab/{}/", self.0)));
        traces
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        lab(&["down", "--name", &self.0]);
    }
}

fn processes_naming(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(text)).collect()
}

fn pids(status: &Value) -> BTreeSet<u64> {
    let pods = status["pods"].as_array().unwrap().iter().flat_map(|pod| pod["processes"].as_array().unwrap());
    pods.map(|process| process["pid"].as_u64().unwrap()).collect()
}

#[test]
fn every_hop_of_every_request_is_known_and_delays_are_real() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("truth", &["--ext-authz", "--net-delay", "productpage-v1:details-v1=1ms"]);
    let delays = "reviews.app=0,3ms;productpage.sidecar_out=0,2ms;ratings.sidecar_in=0,2ms";
    let report = lab.load(&["--rate", "60", "--duration", "3s", "--delays", delays, "--response-bytes", "2000"]);
    assert_eq!((report["requests"].as_u64(), report["ok"].as_u64()), (Some(180), Some(180)), "{report}");

    let truth = lab.truth();
    assert_eq!(truth.unreadable_lines(), 0);
    let roots: Vec<_> = truth.clients().iter().filter(|sent| sent.pod == "loadgen").collect();
    assert_eq!(roots.len(), 183, "180 of the load and 3 of the bring-up");
    for sent in truth.clients() {
        let served = truth.server_by_nonce(sent.nonce);
        let [served] = served.as_slice() else { panic!("{} was served {} times", sent.nonce, served.len()) };
        assert_eq!((sent.status, sent.error.as_ref()), (Some(200), None));
        assert_eq!(served.peer.ip().to_string(), "127.0.0.6", "the application is asked by its own sidecar");
        assert_eq!((served.root, served.parent), (Some(sent.root), sent.parent));
        assert_eq!(served.request_id, sent.request_id, "the sidecars keep the request id");
        assert!(sent.send_start_ns < served.recv_ns && served.send_ns < sent.recv_end_ns.unwrap());
        assert_eq!(truth.client_at(sent.local, served.recv_ns), Some(sent));
        assert_eq!(truth.server_at(served.local, served.peer, served.recv_ns), Some(*served));
        for side in [Side::Outbound, Side::Inbound] {
            assert!(truth.sidecar_delay_ns(sent.nonce, side).is_some(), "each sidecar asks about each hop");
        }
    }
    let mut waited = 0;
    for wait in truth.authz() {
        assert!(wait.actual_ns >= wait.requested_ns);
        waited += usize::from(wait.requested_ns == 2_000_000);
    }
    assert!(waited > 50, "only {waited} waits of a sidecar were drawn");
    let slow: Vec<_> = truth.servers().iter().filter(|served| served.delay_requested_ns == Some(3_000_000)).collect();
    assert!(slow.len() > 30 && slow.iter().all(|served| served.delay_actual_ns >= Some(3_000_000)));
    let held: Vec<_> = truth.packets().iter().map(|packet| packet.out_ns.since(packet.in_ns)).collect();
    assert!(held.len() > 500 && held.iter().all(|held| *held >= Duration::from_millis(1)), "{} packets", held.len());
    let slowest_free = truth.clients().iter().filter(|sent| sent.host.starts_with("details"));
    assert!(slowest_free.clone().count() > 100);
    for sent in slowest_free {
        let took = sent.recv_end_ns.unwrap().since(sent.send_start_ns);
        assert!(took >= Duration::from_millis(2), "details answered in {took:?} through 1 ms each way");
    }
}

#[test]
fn sidecars_speak_tls_only_and_istios_names() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("mtls", &[]);
    lab.load(&["--connections", "2", "--duration", "500ms"]);
    let handshakes = lab.stat("productpage-v1", "^listener.*ssl.(handshake|versions.TLSv1.3)$");
    assert!(handshakes.len() == 2 && handshakes.values().all(|count| *count > 0), "{handshakes:?}");
    let logged = lab.stat("reviews-v1", "grpc_access_log.logs_written");
    assert!(logged.values().sum::<u64>() > 0, "logged though nobody receives: {logged:?}");

    let status = lab.status();
    let ip = status["pods"][3]["ip"].as_str().unwrap();
    let mut plain = TcpStream::connect((ip, 9080)).expect("the machine reaches the pods' network");
    plain.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    plain.write_all(b"GET /reviews/0 HTTP/1.1\r\nhost: reviews\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // Closed or reset: STRICT answers nothing.
    let _ = plain.read_to_end(&mut answer);
    assert_eq!(String::from_utf8_lossy(&answer), "");

    let config = succeed(&["admin", "--name", &lab.0, "reviews-v1", "/config_dump"]);
    for name in ["outbound|9080||ratings.default.svc.cluster.local", "inbound|9080||", "sidecar~10."] {
        assert!(config.contains(name), "{name}");
    }
    assert_eq!(status["congestionControl"], "cubic");
}

#[test]
fn every_protocol_passes_the_sidecars_and_both_ends_write_it_down() {
    if !privileged() {
        return;
    }
    const ALL: &str = "bodies,websocket,http2,grpc,tcp,tls";
    for mtls in [&[][..], &["--no-mtls"]] {
        let lab = Lab::up("proto", &[&["--workloads", ALL], mtls].concat());
        let report = succeed(&["drive", "--name", &lab.0, "--rounds", "1"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        let cases = report["cases"].as_array().unwrap();
        assert!(cases.len() > 30, "{report}");
        for case in cases {
            assert_eq!(case["ok"], case["exchanges"], "{case}");
        }
        let truth = lab.truth();
        assert_eq!(truth.unreadable_lines(), 0);
        let clients = || truth.exchanges().iter().filter(|exchange| exchange.role == Role::Client);
        assert!(clients().count() > 150);
        for sent in clients() {
            // What the sidecar refuses itself never arrives.
            if ["http10-refused", "http2-garbage"].contains(&sent.case.as_str()) {
                assert!(truth.exchange(sent.nonce, Role::Server).is_none());
                continue;
            }
            let served = truth.exchange(sent.nonce, Role::Server).unwrap_or_else(|| panic!("nobody served {sent:?}"));
            assert_eq!((&served.case, served.protocol), (&sent.case, sent.protocol));
            assert_eq!(served.remote.ip().to_string(), "127.0.0.6", "the application is asked by its own sidecar");
            let (asked, arrived) = (sent.request.first.unwrap(), served.request.first.unwrap());
            assert!(asked.before < arrived.after, "{sent:?} {served:?}");
            if let (Some(left), Some(came)) = (served.response.last, sent.response.last) {
                assert!(left.before < came.after, "{sent:?} {served:?}");
            }
        }
        let stat = lab.stat("echo-v1", "inbound.8003...upstream_cx_http2_total");
        assert!(stat.values().any(|&n| n > 0), "gRPC reaches the application as HTTP/2: {stat:?}");
        succeed(&["down", "--name", &lab.0]);
        assert_eq!(lab.traces(), Vec::<String>::new());
    }
}

#[test]
fn bringing_up_twice_changes_nothing_and_down_leaves_nothing() {
    if !privileged() {
        return;
    }
    let options = ["--starve", "reviews-v1=50%"];
    let (first, second) = (Lab::up("one", &options), Lab::up("two", &["--no-mtls", "--reviews-versions", "v2"]));
    let before = pids(&first.status());
    succeed(&[&["up", "--name", &first.0], options.as_slice()].concat());
    assert_eq!(pids(&first.status()), before, "the same settings touch nothing");
    for lab in [&first, &second] {
        assert_eq!(lab.load(&["--rate", "50", "--duration", "1s"])["ok"], 50);
    }
    succeed(&["down", "--name", &first.0]);
    assert_eq!(first.traces(), Vec::<String>::new());
    assert_eq!(second.load(&["--rate", "50", "--duration", "1s"])["ok"], 50, "the other lab goes on");

    succeed(&["up", "--name", &second.0]);
    let changed = second.status();
    assert_eq!(
        (changed["mtls"].as_bool(), changed["ready"].as_bool()),
        (Some(true), Some(true)),
        "other settings: made anew"
    );
    succeed(&["down", "--name", &second.0]);
    assert_eq!(second.traces(), Vec::<String>::new());
}

#[test]
fn a_killed_bring_up_and_a_killed_sidecar_are_cleaned_up() {
    if !privileged() {
        return;
    }
    let lab = Lab::name("killed");
    // Killed at the first sign of the namespaces, and when there are already processes.
    for sign in ["details-v1", "ratings-v1"] {
        let mut up = Command::new(env!("CARGO_BIN_EXE_meshdiff-lab"))
            .args(["up", "--name", &lab.0, "--starve", "reviews-v1=50%"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !netns::path(&format!("meshlab.{}.{sign}", lab.0)).exists() {
            assert!(Instant::now() < deadline, "the bring-up made no namespace");
        }
        up.kill().unwrap();
        up.wait().unwrap();
        assert_ne!(lab.traces(), Vec::<String>::new());
        succeed(&["down", "--name", &lab.0]);
        assert_eq!(lab.traces(), Vec::<String>::new(), "after a kill at {sign}");
    }

    succeed(&["up", "--name", &lab.0]);
    let status = lab.status();
    let envoy = status["pods"][1]["processes"].as_array().unwrap().iter().find(|process| process["role"] == "envoy");
    let pid = envoy.unwrap()["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.status()["ready"] == true {
        assert!(Instant::now() < deadline, "a lab without one of its sidecars is not ready");
    }
    succeed(&["up", "--name", &lab.0]);
    assert_eq!(lab.status()["ready"], true, "a broken lab is made anew");
    succeed(&["down", "--name", &lab.0]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[test]
fn a_lab_for_one_command_goes_with_it() {
    if !privileged() {
        return;
    }
    let lab = Lab::name("run");
    let output = crate::lab(&["run", "--name", &lab.0, "--", "sh", "-c", "echo $MESHDIFF_LAB_NAME; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), lab.0);
    assert_eq!(lab.traces(), Vec::<String>::new());

    // Whoever started the tests may ignore Ctrl-C (a shell does so for what it puts into the background), and programs inherit that.
    let mut run = Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_meshdiff-lab")])
        .args(["run", "--name", &lab.0, "--", "sh", "-c", "echo ready; exec sleep 60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    run.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(lab.traces(), Vec::<String>::new());
}
