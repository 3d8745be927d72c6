//! What an agent records gets into its store, also what was recorded while the store was away, and by the next agent what a killed one left.

#[path = "../../../tests/clickhouse/server.rs"]
#[expect(dead_code, reason = "other tests look at what the server saw")]
mod server;

use serde_json::Value;
use server::Server;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// For what a busy machine takes its time with.
const PATIENCE: Duration = Duration::from_secs(120);

/// The way to the store, which can be closed.
struct Way {
    port: u16,
    open: Arc<AtomicBool>,
}

impl Way {
    fn to(store: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let open = Arc::new(AtomicBool::new(false));
        let is_open = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten().filter(|_| is_open.load(Relaxed)) {
                let far = TcpStream::connect(("127.0.0.1", store)).expect("the store is there");
                let ends = || {
                    Ok::<_, io::Error>([(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)])
                };
                for (mut from, mut to) in ends().expect("sockets") {
                    std::thread::spawn(move || {
                        drop(io::copy(&mut from, &mut to));
                        drop(to.shutdown(Shutdown::Both));
                    });
                }
            }
        });
        Self { port, open }
    }
}

/// An agent without probes, which needs no privileges.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    fn start(folder: &Path, store: &str, name: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        let path = |name: &str| folder.join(name).into_os_string();
        let child = Command::new(env!("CARGO_BIN_EXE_meshdiff"))
            .args([
                "agent",
                "--no-probes",
                "--no-kube",
                "--listen=127.0.0.1:0",
                "--als-listen=127.0.0.1:0",
                "--log-format=json",
            ])
            .args(["--node-name=node-a", "--segment=2s", "--keep=87600h", "--store", store])
            .args(["--window".into(), path("window"), "--token-file".into(), path("token")])
            .stderr(File::create(&log).expect("a log"))
            .stdout(Stdio::null())
            .spawn()
            .expect("meshdiff starts");
        Self { child, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it listens, once it says so.
    fn address(&self) -> Option<String> {
        let said = self.said();
        let line = said.lines().find(|l| l.contains("the agent records"))?;
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        Some(line["listen"].as_str().expect("an address").to_owned())
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(self.address()?).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    #[track_caller]
    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "never: {what}; the agent says: {}", self.said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its end");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn report(arguments: &[&str]) -> Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_meshdiff")).args(["report", "--format=json"]).args(arguments).output();
    let output = output.expect("meshdiff starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn segments_get_into_the_store_also_when_it_was_away() {
    if server::left_out() {
        return;
    }
    let server = Server::start();
    let direct = server.database("agent");
    let created = Command::new(env!("CARGO_BIN_EXE_meshdiff")).args(["store", "--create", "--store", &direct]).output();
    assert!(created.expect("meshdiff starts").status.success());
    let (before, database) = direct.rsplit_once('/').expect("a path");
    let (before, port) = before.rsplit_once(':').expect("a port");
    let way = Way::to(port.parse().expect("a port"));
    let url = format!("{before}:{}/{database}", way.port);

    // What an agent before this one recorded: the repository's capture.
    let folder = tempfile::tempdir().expect("a folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bookinfo-hidden-delay/capture");
    copy(&fixture, &folder.path().join("window/segment-00000000000000000001"));
    fs::write(folder.path().join("token"), "a-token-that-only-tests-know\n").expect("written");
    let embedded = report(&["--capture", fixture.to_str().expect("UTF-8")]);

    // Nothing gets through, and nothing is lost: the spool has it, its own segments as well.
    let agent = Agent::start(folder.path(), &url, "first");
    agent.until("segments that wait", || {
        let [waiting, failures] =
            ["meshdiff_store_segments_waiting", "meshdiff_store_failures_total"].map(|m| agent.metric(m));
        waiting >= Some(2.0) && failures >= Some(1.0)
    });
    assert_eq!(agent.metric("meshdiff_store_segments_total"), Some(0.0));
    let rows = || server.ask("SELECT count() FROM agent.messages FORMAT TabSeparated").trim().to_owned();
    assert_eq!(rows(), "0");
    agent.kill();

    // The next one finds it there, and the store is back.
    way.open.store(true, Relaxed);
    let agent = Agent::start(folder.path(), &url, "second");
    agent.until("everything is stored", || {
        let [stored, waiting] =
            ["meshdiff_store_segments_total", "meshdiff_store_segments_waiting"].map(|m| agent.metric(m));
        stored >= Some(3.0) && waiting <= Some(1.0)
    });
    assert_eq!(agent.metric("meshdiff_store_segments_dropped_total"), Some(0.0), "{}", agent.said());
    assert!(!agent.said().contains("s3cret"), "{}", agent.said());
    let text = fs::read_to_string(fixture.join("meta.json")).expect("a meta");
    let meta: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(rows(), meta["tables"]["messages"]["rows"].to_string(), "each row once");
    let stored = report(&["--store", &direct, "--since=87600h"]);
    for what in ["requests", "full", "unmatched", "ambiguous"] {
        assert_eq!(stored["coverage"][what], embedded["coverage"][what], "{what}");
    }
    assert_eq!(stored["hops"].as_array().map(Vec::len), embedded["hops"].as_array().map(Vec::len));

    // It goes away in the middle, and comes back.
    let count = agent.metric("meshdiff_store_segments_total");
    way.open.store(false, Relaxed);
    let failures = agent.metric("meshdiff_store_failures_total");
    agent.until("it fails", || agent.metric("meshdiff_store_failures_total") > failures);
    way.open.store(true, Relaxed);
    agent.until("segments are stored again", || agent.metric("meshdiff_store_segments_total") > count);
    agent.kill();
}
