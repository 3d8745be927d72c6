//! Connections whose ends are no ordinary ones: several processes behind a port, a process that dies in the middle, a peer that is
//! gone without a word, IPv6, and a TLS hello that is longer than what is kept of other sends.

use crate::support::{Recording, connection, cookie, covering, in_new_netns, privileged};
use crate::{REQUEST, RESPONSE, config, say};
use meshdiff_model::{Closer, Content, Direction, SocketCookie, Tgid, TlsVersion};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

/// The program's arguments are a port, and what it is to be.
const LISTENER: &str = r#"
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    assert len(connection.recv(64)) > 0
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"#;

/// A process that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}

/// A process in this thread's namespace that accepts connections on a port (0: any), and that port.
fn listener(port: u16) -> (Killed, u16) {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", LISTENER, &port.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("/usr/bin/python3 runs");
    let mut line = String::new();
    let out = child.stdout.take().expect("piped");
    let child = Killed(child);
    BufReader::new(out).read_line(&mut line).expect("it says its port");
    (child, line.trim().parse().expect("a port"))
}

#[test]
fn several_processes_behind_one_port() {
    if !privileged("several_processes_behind_one_port") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (first, port) = listener(0);
        let _others = [first, listener(port).0, listener(port).0];
        let mut truth = BTreeMap::new();
        for _ in 0..32 {
            let mut client = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
            let from = client.local_addr().expect("local").port();
            client.write_all(REQUEST).expect("written");
            let mut said = String::new();
            client.read_to_string(&mut said).expect("read");
            truth.insert(from, Tgid(said.parse().expect("a process")));
        }
        let closed = |r: &Recording| r.closed.len() >= 2 * truth.len();
        recording.drain_until("the ends of all connections", closed);
        let (_, all) = recording.finish();
        let owners: BTreeMap<_, _> = all
            .sockets
            .values()
            .filter(|s| s.local.0.port() == port)
            .filter_map(|s| Some((s.remote.0.port(), s.owner?)))
            .collect();
        assert_eq!(owners, truth);
        let mut processes: Vec<_> = truth.into_values().collect();
        processes.sort_unstable();
        processes.dedup();
        assert!(processes.len() > 1, "all connections came to one process");
    });
}

/// A shell that has `socket` as its output, writes half a request and is killed before it can say more. Its number.
fn dies_within_a_request(socket: TcpStream) -> Tgid {
    let mut child = Command::new("/bin/sh")
        .args(["-c", r#"printf 'POST /half HTTP/1.1\r\nhost: '; kill -9 $$"#])
        .stdout(OwnedFd::from(socket))
        .spawn()
        .expect("a shell runs");
    assert!(!child.wait().expect("it ends").success());
    Tgid(child.id())
}

#[test]
fn a_process_that_dies_within_a_request() {
    if !privileged("a_process_that_dies_within_a_request") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let mut died = Vec::new();
        for unread in [false, true] {
            let (client, mut server) = connection("127.0.0.1:0");
            let (c, s) = (cookie(&client), cookie(&server));
            if unread {
                server.write_all(b"never read").expect("written");
                recording.drain_until("the bytes", |r| r.events(c) > 1);
            }
            let process = dies_within_a_request(client);
            let mut got = Vec::new();
            // Where it left something unread, its kernel resets the connection, and what it had sent may be lost with it.
            let end = server.read_to_end(&mut got);
            assert!(unread || end.is_ok(), "{end:?}");
            drop(server);
            recording.drain_until("both ends", |r| r.closed.contains(&c) && r.closed.contains(&s));
            died.push((c, s, process, unread));
        }
        let (_, all) = recording.finish();
        assert_eq!(all.stats.lost_events, 0);
        for (c, s, process, unread) in died {
            let requests = all.of(c, Direction::Egress);
            let [request] = requests.as_slice() else { panic!("{requests:?}") };
            let half = Content::Http1Request { method: "POST".into(), path: "/half".into() };
            assert_eq!((&request.content, request.head_end), (&half, None), "its head never ended");
            let socket = &all.sockets[&c];
            assert_eq!(socket.owner, Some(process));
            let close = socket.close.expect("it was closed");
            assert_eq!((close.by, close.reset), (Closer::Local, unread));
            assert_eq!(all.sockets[&s].close.expect("it was closed").by, Closer::Remote);
            if !unread {
                assert_eq!(all.bytes(s, Direction::Ingress), u64::from(request.seq.len()));
            }
            assert!(all.of(c, Direction::Ingress).iter().all(|m| m.recvs.is_empty()), "it read nothing");
        }
    });
}

#[test]
fn a_peer_that_is_gone_without_a_word() {
    if !privileged("a_peer_that_is_gone_without_a_word") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        say(&mut client, &mut server, REQUEST);
        // A socket under repair (see tcp(7)) is closed without a FIN.
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the value is as long as is said.
        let result = unsafe {
            libc::setsockopt(
                client.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_REPAIR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
        drop(client);
        recording.drain_until("the client's end", |r| r.closed.contains(&c));
        assert!(!recording.closed.contains(&s), "nobody has told the server");
        server.write_all(RESPONSE).expect("there is room for it");
        recording.drain_until("the answer to what was sent to nobody", |r| r.closed.contains(&s));
        let (_, all) = recording.finish();
        let close = all.sockets[&s].close.expect("it was closed");
        assert_eq!((close.by, close.reset, close.duration), (Closer::Remote, true, None));
        assert_eq!(all.bytes(s, Direction::Egress), RESPONSE.len() as u64);
        assert_eq!(all.of(c, Direction::Ingress).len(), 0, "nothing came back");
        assert!(all.of(s, Direction::Egress)[0].sends.len() == 1 && all.stats.lost_events == 0);
    });
}

#[test]
fn conversations_over_ipv6_join_by_their_numbers() {
    if !privileged("conversations_over_ipv6_join_by_their_numbers") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("[::1]:0");
        let (c, s) = (cookie(&client), cookie(&server));
        for _ in 0..5 {
            say(&mut client, &mut server, REQUEST);
            say(&mut server, &mut client, RESPONSE);
        }
        drop((client, server));
        recording.drain_until("both ends", |r| r.closed.contains(&c) && r.closed.contains(&s));
        let (_, all) = recording.finish();
        let check = |from: SocketCookie, to: SocketCookie| {
            let (egress, ingress) = (all.of(from, Direction::Egress), all.of(to, Direction::Ingress));
            assert_eq!((egress.len(), ingress.len()), (5, 5));
            for (out, inn) in egress.iter().zip(ingress) {
                assert_eq!(out.seq, inn.seq);
                let (sent, ready) = (out.sends[0].at, covering(&inn.readies, inn.seq.end));
                assert!(sent <= ready && ready <= covering(&inn.recvs, inn.seq.end));
            }
        };
        check(c, s);
        check(s, c);
        assert!(all.sockets[&c].local.0.is_ipv6() && all.sockets[&s].remote.0 == all.sockets[&c].local.0);
    });
}

/// A ClientHello with a key of 1,184 bytes (ML-KEM-768) in front of the server's name and the protocols.
fn long_hello() -> Vec<u8> {
    let v16 = |data: &[u8]| [&(data.len() as u16).to_be_bytes()[..], data].concat();
    let extension = |kind: u16, data: &[u8]| [&kind.to_be_bytes()[..], &v16(data)].concat();
    let key = extension(51, &v16(&[&[0x11, 0xec][..], &v16(&[9; 1216])].concat()));
    let versions = extension(43, &[4, 3, 4, 3, 3]);
    let name = extension(0, &v16(&[&[0][..], &v16(b"reviews.example")].concat()));
    let protocols = extension(16, &v16(b"\x02h2\x08http/1.1"));
    let extensions = v16(&[key, versions, name, protocols].concat());
    let body = [&[3, 3][..], &[7; 32], &[0], &v16(&[0x13, 1]), &[1, 0], &extensions].concat();
    let handshake = [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat();
    [&[22, 3, 1][..], &v16(&handshake)].concat()
}

#[test]
fn a_long_tls_hello_is_read_to_its_end() {
    if !privileged("a_long_tls_hello_is_read_to_its_end") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        say(&mut client, &mut server, &long_hello());
        // What is as long and no hello is kept as far as everything else.
        say(&mut server, &mut client, &[b'x'; 3000]);
        drop((client, server));
        recording.drain_until("both ends", |r| r.closed.contains(&c) && r.closed.contains(&s));
        let kept: Vec<_> = recording.sends.iter().map(|(me, _, prefix)| (*me, prefix.len())).collect();
        assert_eq!(kept, [(c, long_hello().len()), (s, 512)]);
        let (_, all) = recording.finish();
        let tls = all.sockets[&c].tls.as_ref().expect("it speaks TLS");
        assert_eq!((tls.sni.as_deref(), tls.offered), (Some("reviews.example"), Some(TlsVersion::Tls13)));
        assert_eq!(tls.alpn_offered, ["h2".into(), "http/1.1".into()]);
    });
}
