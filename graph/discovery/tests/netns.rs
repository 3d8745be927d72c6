//! Real network namespaces with real processes in them.

use meshdiff_discovery::{NetnsRef, NetnsScanner, ProcessTable, Selection, Watched, Why};
use meshdiff_model::{NetnsId, ProcessRole, Tgid};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// True if privileged tests are to be left out; panics if they are not but cannot run.
fn left_out() -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("left out: MESHDIFF_SKIP_PRIVILEGED=1");
        return true;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root; MESHDIFF_SKIP_PRIVILEGED=1 leaves it out"
    );
    false
}

/// A process that is ended, by its own number, when the test is done with it.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    /// Runs a program in a network namespace of its own (which ends with it). It must print a line when it is ready.
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(program).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare (util-linux) starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }
    fn shell(script: &str) -> Self {
        Self::start("sh", &["-c", script])
    }
    fn ready(&mut self) {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
    }
    fn tgid(&self) -> Tgid {
        Tgid(self.child.id())
    }
    fn netns(&self) -> NetnsId {
        NetnsRef::Pid(self.child.id()).resolve().expect("its namespace")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `sh` under another file name, so that the process is called like that.
fn copy_of_shell(dir: &Path, name: &str) -> String {
    let shell = fs::canonicalize("/bin/sh").expect("a shell");
    let path = dir.join(name);
    fs::copy(shell, &path).expect("copied");
    path.to_str().expect("UTF-8").to_owned()
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not seen in 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn why(watched: &[Watched], netns: NetnsId) -> Option<Why> {
    watched.iter().find(|w| w.netns == netns).map(|w| w.why.clone())
}

const LISTEN: &str = "import socket,sys,os
if len(sys.argv)>2: os.setuid(int(sys.argv[2]))
s=socket.socket(); s.bind(('0.0.0.0',int(sys.argv[1]))); s.listen(); print('ready',flush=True); sys.stdin.read()";

#[test]
fn namespaces_of_a_mesh_are_found_and_forgotten() {
    if left_out() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a folder");
    let envoy = copy_of_shell(tmp.path(), "envoy");
    let mut scanner = NetnsScanner::new(Selection::Mesh).expect("a scanner");

    let mut plain = Running::shell("echo ready; read x");
    let mut other_port = Running::start("python3", &["-c", LISTEN, "8080"]);
    let mut inbound = Running::start("python3", &["-c", LISTEN, "15006"]);
    // Becomes Envoy by exec, under the number that it had before, when it is told to.
    let mut sidecar = Running::shell(&format!("echo ready; read x; exec {envoy} -c 'echo ready; read x'"));
    for process in [&mut plain, &mut other_port, &mut inbound, &mut sidecar] {
        process.ready();
    }
    let (plain_ns, other_ns, inbound_ns, sidecar_ns) =
        (plain.netns(), other_port.netns(), inbound.netns(), sidecar.netns());

    let watched = scanner.scan().expect("scanned").watched;
    assert_eq!(why(&watched, inbound_ns), Some(Why::Listener(15006)));
    for netns in [plain_ns, other_ns, sidecar_ns, scanner.host()] {
        assert_eq!(why(&watched, netns), None);
    }
    use std::io::Write;
    sidecar.child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("told");
    sidecar.ready();
    let watched = scanner.scan().expect("scanned").watched;
    assert_eq!(why(&watched, sidecar_ns), Some(Why::Envoy(sidecar.tgid())));

    // A listener that starts late is found although its namespace was looked at in vain before.
    plain.child.stdin.as_mut().expect("piped").write_all(b"bye\n").expect("told");
    drop(sidecar);
    eventually("the sidecar's namespace is forgotten", || {
        why(&scanner.scan().expect("scanned").watched, sidecar_ns).is_none().then_some(())
    });
    assert_eq!(why(&scanner.scan().expect("scanned").watched, inbound_ns), Some(Why::Listener(15006)));

    let mut all = NetnsScanner::new(Selection::All).expect("a scanner");
    let watched = all.scan().expect("scanned").watched;
    assert!(why(&watched, other_ns).is_some() && why(&watched, all.host()).is_some());

    let asked = vec![NetnsRef::Pid(other_port.tgid().0), NetnsRef::Inode(other_ns), NetnsRef::Inode(inbound_ns)];
    let watched = NetnsScanner::new(Selection::Only(asked)).expect("a scanner").scan().expect("scanned").watched;
    assert_eq!(watched.len(), 2);
    assert_eq!(why(&watched, other_ns), Some(Why::Asked(format!("--pid {}", other_port.tgid().0))));
}

#[test]
fn a_namespace_by_name_is_found_until_it_is_gone() {
    if left_out() {
        return;
    }
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let name = Named(format!("mddisc{}", std::process::id()));
    let status = Command::new("ip").args(["netns", "add", &name.0]).status().expect("ip (iproute2) starts");
    assert!(status.success());
    let by_name = NetnsRef::Name(name.0.clone()).resolve().expect("found");
    assert_eq!(NetnsRef::Path(format!("/run/netns/{}", name.0).into()).resolve().expect("found"), by_name);
    // No process is in it.
    assert_eq!(NetnsRef::Inode(by_name).resolve().expect("found"), by_name);
    let watched = NetnsScanner::new(Selection::All).expect("a scanner").scan().expect("scanned").watched;
    assert!(why(&watched, by_name).is_some());
    let gone = NetnsRef::Name(name.0.clone());
    drop(name);
    assert!(gone.resolve().is_err());
}

#[test]
fn processes_are_known_and_their_changes_are_seen() {
    if left_out() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a folder");
    let envoy = copy_of_shell(tmp.path(), "envoy");
    let mut table = ProcessTable::new();

    let mut sidecar = Running::shell(&format!("echo ready; read x; exec {envoy} -c 'echo ready; read x'"));
    sidecar.ready();
    let before = table.lookup(sidecar.tgid()).expect("there").clone();
    assert_eq!((before.role, before.netns, before.uid), (ProcessRole::Application, sidecar.netns(), Some(0)));
    assert!(before.cgroup.is_some() && before.exe.is_some());
    assert_eq!(table.refresh(), []);
    use std::io::Write;
    sidecar.child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("told");
    sidecar.ready();
    let changed = table.refresh();
    assert_eq!(changed.len(), 1);
    assert_eq!(
        (changed[0].tgid, changed[0].role, changed[0].comm.as_str()),
        (sidecar.tgid(), ProcessRole::Sidecar, "envoy")
    );
    assert_eq!(changed[0].exe.as_deref(), Some(envoy.as_str()));

    // User 1337 with the listener is the sidecar whatever its name; without it, it is a helper.
    let mut renamed = Running::start("python3", &["-c", LISTEN, "15001", "1337"]);
    let mut helper = Running::start("python3", &["-c", LISTEN, "15020", "1337"]);
    renamed.ready();
    helper.ready();
    let role = |table: &mut ProcessTable, p: &Running| {
        let process = table.lookup(p.tgid()).expect("there");
        assert_eq!(process.uid, Some(1337));
        process.role
    };
    assert_eq!(role(&mut table, &renamed), ProcessRole::Sidecar);
    assert_eq!(role(&mut table, &helper), ProcessRole::Application);

    // What ended stays known, and a number that never was is counted.
    let tgid = sidecar.tgid();
    drop(sidecar);
    assert_eq!(table.refresh(), []);
    assert_eq!(table.lookup(tgid).map(|p| p.comm.as_str()), Some("envoy"));
    assert!(table.lookup(Tgid(u32::MAX)).is_none());
    assert_eq!(table.missed(), 1);
    assert_eq!(table.iter().count(), 3);
}

#[test]
fn a_scan_is_cheap() {
    if left_out() {
        return;
    }
    // Processes that do nothing, in a namespace that is not the host's, of which every name is read at each scan.
    const IDLE: usize = 500;
    let mut idle = Running::shell(&format!(
        "for i in $(seq {IDLE}); do sleep 30 & pids=\"$pids $!\"; done; echo ready; read x; kill $pids"
    ));
    idle.ready();
    let mut scanner = NetnsScanner::new(Selection::Mesh).expect("a scanner");
    scanner.scan().expect("scanned");
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let start = Instant::now();
            let scan = scanner.scan().expect("scanned");
            assert!(scan.processes > IDLE && scan.denied == 0);
            (start.elapsed(), scan.processes)
        })
        .collect();
    times.sort();
    let (median, processes) = times[times.len() / 2];
    use std::io::Write;
    idle.child.stdin.as_mut().expect("piped").write_all(b"end\n").expect("told");
    idle.child.wait().expect("ended");
    println!("a scan of {processes} processes, {IDLE} of them outside the host's namespace, takes {median:?}");
    // Ten times what it takes on an idle machine: this finds a scan that reads too much, not a busy machine.
    assert!(median < Duration::from_micros(200) * u32::try_from(processes).expect("small"), "{median:?}");
}
