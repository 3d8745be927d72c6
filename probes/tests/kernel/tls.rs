//! Applications that do TLS themselves: Python with the distribution's libssl, against what it says that it did.

use crate::support::{Recorded, Recording, in_new_netns, privileged};
use meshdiff_model::{Content, Direction, Message, NetnsId, SocketCookie, TlsVersion};
use meshdiff_probes::{LibraryError, LibraryFinder, Look, ProbeConfig, Reach};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

const SECRET: &[u8] = b"planted-secret-4711";

/// The program beside this file. It waits until it is told to begin.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _certificate: tempfile::TempDir,
}

/// What it did on its connection.
#[derive(Debug, Default)]
struct Truth {
    requests: Vec<(String, String)>,
    statuses: Vec<u16>,
    client: u16,
    server: u16,
    other: u16,
}

impl Program {
    fn start(how: &str, version: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=reviews.example", "-addext", "subjectAltName=DNS:reviews.example", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("openssl runs: tests/setup.sh installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/tls.py");
        let mut child = Command::new("/usr/bin/python3")
            .args([&script, &certificate, &key])
            .args([how, version])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("/usr/bin/python3 runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        Self { child, lines, _certificate: folder }
    }

    fn proceed(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("piped")).expect("it waits");
    }

    /// What it did, once it is done with it.
    fn truth(&mut self) -> Truth {
        let mut truth = Truth::default();
        while truth.client == 0 {
            let line = self.lines.next().expect("it goes on").expect("text");
            let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let number = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
            if let Some(status) = number("status") {
                let text = |name: &str| value[name].as_str().expect("text").to_owned();
                truth.requests.push((text("method"), text("path")));
                truth.statuses.push(status);
            } else {
                let port = |name| number(name).expect("a port");
                (truth.client, truth.server, truth.other) = (port("client"), port("server"), port("other"));
            }
        }
        truth
    }

    fn finish(mut self) {
        self.proceed();
        assert!(self.child.wait().expect("it ends").success());
    }
}

/// Records the program; with the calls of its libssl followed, or not.
fn record(netns: NetnsId, how: &str, version: &str, follow: Option<Reach>) -> (Truth, Recorded, Vec<Vec<u8>>) {
    let config = ProbeConfig { ring_bytes: 4 << 20, ..ProbeConfig::default() };
    let mut recording = Recording::start(&config, &[netns]);
    let mut program = Program::start(how, version);
    if let Some(reach) = follow {
        let mut finder = LibraryFinder::new();
        let libraries = finder.look(|n| n == netns).new;
        assert!(!libraries.is_empty(), "python3 maps no libssl");
        for library in &libraries {
            recording.probes.attach_library(library, reach).unwrap_or_else(|e| panic!("{library:?}: {e}"));
        }
        assert_eq!(finder.look(|n| n == netns), Look::default(), "each file is found once");
    }
    program.proceed();
    let truth = program.truth();
    program.finish();
    recording.drain();
    let plaintext = std::mem::take(&mut recording.plaintext);
    let (probes, recorded) = recording.finish();
    assert_eq!(probes.counters().expect("counters").lost, 0);
    (truth, recorded, plaintext)
}

fn at_port(recorded: &Recorded, local: u16) -> SocketCookie {
    let mut found = recorded.sockets.values().filter(|s| s.local.0.port() == local && s.established.is_some());
    found.next().unwrap_or_else(|| panic!("no socket at port {local}")).cookie
}

/// The socket that a listener at this port accepted: its peer's port tells it from the listener's other ones.
fn accepted(recorded: &Recorded, local: u16, remote: u16) -> SocketCookie {
    let mut all = recorded.sockets.values();
    all.find(|s| s.local.0.port() == local && s.remote.0.port() == remote).expect("the accepted socket").cookie
}

fn requests(messages: &[&Message]) -> Vec<(String, String)> {
    let of = |m: &&Message| match &m.content {
        Content::Http1Request { method, path } => Some((method.to_string(), path.to_string())),
        _ => None,
    };
    messages.iter().filter_map(of).collect()
}

fn statuses(messages: &[&Message]) -> Vec<u16> {
    let of = |m: &&Message| match m.content {
        Content::Http1Response { status } => Some(status),
        _ => None,
    };
    messages.iter().filter_map(of).collect()
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

#[test]
fn requests_are_told_before_they_are_encrypted() {
    if !privileged("requests_are_told_before_they_are_encrypted") {
        return;
    }
    for (name, version, reach) in
        [("TLSv1_3", TlsVersion::Tls13, Reach::Process), ("TLSv1_2", TlsVersion::Tls12, Reach::File)]
    {
        in_new_netns(|netns| {
            let (truth, all, plaintext) = record(netns, "blocking", name, Some(reach));
            let (client, server) = (at_port(&all, truth.client), accepted(&all, truth.server, truth.client));
            let (sent, answered) = (all.of(client, Direction::Egress), all.of(server, Direction::Egress));
            assert_eq!(requests(&sent), truth.requests, "{name}");
            assert_eq!(statuses(&answered), truth.statuses, "{name}");

            // The instants and numbers are the socket's: what was sent arrives at the peer under the same ones, later.
            for (out, peer) in [(&sent, server), (&answered, client)] {
                let arrived = all.of(peer, Direction::Ingress);
                for message in out {
                    assert_eq!(message.head_end, None, "no position of the plaintext is one of the stream");
                    let begin = message.seq.start;
                    let there = arrived
                        .iter()
                        .find(|m| !begin.before(m.seq.start) && begin.before(m.seq.end))
                        .unwrap_or_else(|| panic!("{name}: {message:?} did not arrive"));
                    let ready = there.readies.iter().find(|r| begin.before(r.seq)).expect("ready");
                    assert!(message.sends[0].at <= ready.at, "{name}");
                }
            }
            for (me, offered, chosen) in [(client, Some(version), None), (server, None, Some(version))] {
                let tls = all.sockets[&me].tls.as_ref().expect("TLS");
                assert!(tls.plaintext_seen);
                assert_eq!((tls.offered, tls.version), (offered, chosen), "{name}");
            }
            let tls = all.sockets[&client].tls.as_ref().expect("TLS");
            assert_eq!(tls.sni.as_deref(), Some("reviews.example"));
            assert_eq!(tls.alpn_offered, ["http/1.1".into()]);
            let chosen = all.sockets[&server].tls.as_ref().and_then(|t| t.alpn.as_deref());
            assert_eq!(chosen, (version == TlsVersion::Tls12).then_some("http/1.1"));

            // What the same thread sends elsewhere while it is in SSL_write is not what it writes there.
            let other = at_port(&all, truth.other);
            assert!(!all.of(other, Direction::Egress).is_empty());
            assert!(all.of(other, Direction::Egress).iter().all(|m| requests(&[m]).is_empty()));
            assert!(!all.sockets[&other].tls.as_ref().expect("it looked like TLS").plaintext_seen);

            // The prefixes hold secrets, of course; nothing that assembly makes of them does.
            assert!(plaintext.iter().any(|p| holds(p, SECRET)), "the test's secret was not sent");
            let kept = format!("{:?} {:?}", all.messages, all.sockets);
            assert!(!holds(kept.as_bytes(), SECRET), "{kept}");
        });
    }
}

#[test]
fn without_sight_of_the_plaintext_nothing_is_guessed() {
    if !privileged("without_sight_of_the_plaintext_nothing_is_guessed") {
        return;
    }
    // The library's calls do not send (memory), or are not followed.
    for (how, follow) in [("memory", Some(Reach::Process)), ("blocking", None)] {
        in_new_netns(|netns| {
            let (truth, all, _) = record(netns, how, "TLSv1_3", follow);
            let client = at_port(&all, truth.client);
            let sent = all.of(client, Direction::Egress);
            assert_eq!(requests(&sent), []);
            let kinds = |m: &&&Message| !matches!(m.content, Content::TlsHandshake | Content::TlsApplicationData);
            assert_eq!(sent.iter().filter(kinds).count(), 0, "{sent:?}");
            let tls = all.sockets[&client].tls.as_ref().expect("it is said that it is TLS");
            assert_eq!((tls.plaintext_seen, tls.sni.as_deref()), (false, Some("reviews.example")));
            if how == "memory" {
                let server = accepted(&all, truth.server, truth.client);
                assert_eq!(statuses(&all.of(server, Direction::Egress)), truth.statuses, "its other end is told");
            }
        });
    }
}

#[test]
fn a_library_that_is_none_is_said_to_be_none() {
    if !privileged("a_library_that_is_none_is_said_to_be_none") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("libssl-copy.so.3");
    std::fs::copy("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", &copy)
        .or_else(|_| std::fs::copy("/lib/aarch64-linux-gnu/libcrypto.so.3", &copy))
        .expect("a library to copy");
    in_new_netns(|netns| {
        let mut recording = Recording::start(&ProbeConfig::default(), &[netns]);
        recording.probes.check_library_probes().unwrap_or_else(|e| panic!("{e}"));
        let mut child = Command::new("/usr/bin/python3")
            .args([
                "-c",
                "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()",
            ])
            .arg(&copy)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("/usr/bin/python3 runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        // An update replaces the file while it is mapped.
        std::fs::remove_file(&copy).expect("removed");
        let mut finder = LibraryFinder::new();
        let found: Vec<_> =
            finder.look(|n| n == netns).new.into_iter().filter(|l| l.name.contains("libssl-copy")).collect();
        assert!(found.len() == 1 && found[0].name.ends_with("(deleted)"), "{found:?}");
        let error = recording.probes.attach_library(&found[0], Reach::Process);
        assert!(matches!(error, Err(LibraryError::NotOpenSsl { .. })), "{error:?}");
        drop(child.stdin.take());
        assert!(child.wait().expect("it ends").success());
        let error = recording.probes.attach_library(&found[0], Reach::Process);
        assert!(matches!(error, Err(LibraryError::Gone { .. })), "{error:?}");
        assert_eq!(finder.look(|n| n == netns), Look { new: vec![], ended: vec![found[0].pid] });
    });
}
