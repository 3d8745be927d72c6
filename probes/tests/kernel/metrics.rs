//! What is measured of a socket beyond its instants, against conversations of which everything is known.

use super::support::{Recorded, Recording, connection, cookie, in_new_netns, privileged, send_file};
use super::{REQUEST, RESPONSE, config, say};
use meshdiff_model::{Closer, Content, Direction, DropReason, Errno, Metric, MonotonicNs, SocketCookie, SocketRole};
use meshdiff_probes::{Probes, monotonic_now, open_sockets};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Packets that a firewall drops while this lives.
struct Dropped(Vec<&'static str>);

impl Dropped {
    fn these(rule: &'static str) -> Self {
        let rule: Vec<_> = rule.split(' ').collect();
        iptables("-A", &rule);
        Self(rule)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        iptables("-D", &self.0);
    }
}

fn iptables(what: &str, rule: &[&str]) {
    let output = Command::new("iptables").args(["-w", what]).args(rule).args(["-j", "DROP"]).output();
    let output = output.expect("iptables is installed");
    assert!(output.status.success(), "iptables: {}", String::from_utf8_lossy(&output.stderr));
}

fn measures(probes: &Probes, metric: Metric) -> bool {
    probes.unmeasured().iter().all(|(missing, _)| *missing != metric)
}

/// Fails where the kernel takes the programs for it and they are not among those that are loaded.
fn expect_measured(probes: &Probes, metric: Metric) {
    if let Some((_, error)) = probes.unmeasured().iter().find(|(missing, _)| *missing == metric) {
        panic!("{metric:?} is not measured: {error}");
    }
}

fn closed(recording: &mut Recording, sockets: &[SocketCookie]) {
    recording.drain_until("the sockets' ends", |r| sockets.iter().all(|s| r.closed.contains(s)));
}

#[test]
fn every_metric_but_the_time_of_reads_is_measured_by_tracepoints() {
    if !privileged("every_metric_but_the_time_of_reads_is_measured_by_tracepoints") {
        return;
    }
    let probes = Probes::load(&config()).unwrap_or_else(|e| panic!("{e}"));
    for metric in [Metric::WriteTime, Metric::Retransmits, Metric::Resets, Metric::Drops] {
        expect_measured(&probes, metric);
    }
    println!("not measured: {:?}", probes.unmeasured());
}

#[test]
fn calls_bytes_and_times_add_up() {
    if !privileged("calls_bytes_and_times_add_up") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        let began = monotonic_now();
        for _ in 0..50 {
            say(&mut client, &mut server, REQUEST);
            say(&mut server, &mut client, RESPONSE);
        }
        let took = (monotonic_now() - began).0.unsigned_abs();
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (_, all) = recording.finish();
        for (me, sent, read) in [(c, REQUEST, RESPONSE), (s, RESPONSE, REQUEST)] {
            let row = all.total(me);
            assert_eq!((row.write.calls, row.write.bytes), (50, 50 * sent.len() as u64));
            assert_eq!((row.read.calls, row.read.bytes), (50, 50 * read.len() as u64));
            let times = row.write.duration.expect("writes are timed");
            // The last one of all is told by the close.
            assert_eq!(times.count(), 50, "{:?}", times.to_parts());
            assert!(times.min() > Some(100) && times.sum() < took, "{:?} of {took}", times.to_parts());
            assert_eq!(row.rtt.count(), 50);
            assert_eq!((row.retransmits, row.lost_events), (0, 0));
            assert!(row.drops.is_empty(), "a clean conversation drops nothing: {:?}", row.drops);
            if let Some(times) = row.read.duration {
                assert_eq!(times.count(), row.read.wait.expect("with it").count());
            }
        }
    });
}

#[test]
fn handshakes_are_timed_also_of_non_blocking_sockets() {
    if !privileged("handshakes_are_timed_also_of_non_blocking_sockets") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        // The first SYN is lost: the handshake takes as long as its retransmission, however short the call was.
        let lost = Dropped::these("INPUT -p tcp --syn");
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        let address = SockaddrIn::from_str(&format!("127.0.0.1:{port}")).expect("an address");
        let called = Instant::now();
        assert_eq!(connect(fd.as_raw_fd(), &address), Err(nix::errno::Errno::EINPROGRESS));
        let call = called.elapsed();
        drop(lost);
        let (server, _) = listener.accept().expect("a connection");
        let client = TcpStream::from(fd);
        let (c, s) = (cookie(&client), cookie(&server));
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (probes, all) = recording.finish();
        let (ours, theirs) = (&all.sockets[&c], &all.sockets[&s]);
        assert_eq!((ours.role, theirs.role), (Some(SocketRole::Connected), Some(SocketRole::Accepted)));
        let handshake = ours.handshake.expect("it is known").0.unsigned_abs();
        assert!(handshake > 500_000_000 && u128::from(handshake) > call.as_nanos(), "{handshake} after {call:?}");
        // The SYN-ACK's round trip.
        let theirs = theirs.handshake.expect("it is known").0;
        assert!((1_000..500_000_000).contains(&theirs), "{theirs}");
        if measures(&probes, Metric::Retransmits) {
            assert!(all.total(c).retransmits >= 1, "the SYN was sent again");
        }
        if measures(&probes, Metric::Drops) {
            let drops = all.total(c).drops;
            assert!(drops.values().sum::<u64>() <= 3, "{drops:?}");
        }
    });
}

#[test]
fn failed_connects_tell_why() {
    if !privileged("failed_connects_tell_why") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let mut tried = Vec::new();
        // Nobody listens; and nobody answers, whose SYNs a firewall drops on their way out.
        let firewall = Dropped::these("OUTPUT -p tcp --dport 4444");
        for (address, errno) in [("127.0.0.1:1", 111), ("127.0.0.1:4444", 110)] {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            setsockopt(&fd, sockopt::TcpUserTimeout, &200).expect("a timeout");
            let me = super::support::cookie_of(&fd);
            let to = SockaddrIn::from_str(address).expect("an address");
            let error = connect(fd.as_raw_fd(), &to).expect_err("nobody answers");
            assert_eq!(error as i32, errno);
            tried.push((me, address, errno as u16));
        }
        drop(firewall);
        // An application that gives up.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let _firewall = Dropped::these("INPUT -p tcp --syn");
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        let impatient = super::support::cookie_of(&fd);
        let to = SockaddrIn::from_str(&listener.local_addr().expect("local").to_string()).expect("an address");
        assert!(connect(fd.as_raw_fd(), &to).is_err());
        drop(fd);
        closed(&mut recording, &[tried[0].0, tried[1].0, impatient]);
        let (probes, all) = recording.finish();
        for (me, address, errno) in &tried {
            let socket = &all.sockets[me];
            assert_eq!(socket.connect_error, Some(Errno(*errno)), "{address}");
            assert_eq!(socket.remote.to_string(), *address);
            assert_ne!(socket.local.port(), 0);
            assert_eq!(socket.owner.map(|t| t.0), Some(std::process::id()));
            assert!(socket.connect_start.is_some() && socket.established.is_none() && socket.closed.is_some());
            assert_eq!((socket.handshake, socket.close), (None, None), "{address}");
        }
        let socket = &all.sockets[&impatient];
        assert_eq!((socket.connect_error, socket.established, socket.close), (None, None, None));
        if measures(&probes, Metric::Drops) {
            let drops = all.total(tried[1].0).drops;
            assert!(drops.get(&DropReason("NETFILTER_DROP".into())) >= Some(&1), "{drops:?}");
        }
    });
}

#[test]
fn a_socket_that_was_refused_can_connect_again() {
    if !privileged("a_socket_that_was_refused_can_connect_again") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let me = super::support::cookie_of(&fd);
        let nobody = SockaddrIn::from_str("127.0.0.1:1").expect("an address");
        assert_eq!(connect(fd.as_raw_fd(), &nobody).expect_err("nobody listens") as i32, 111);
        let to = SockaddrIn::from_str(&listener.local_addr().expect("local").to_string()).expect("an address");
        connect(fd.as_raw_fd(), &to).expect("connected");
        let (mut client, mut server) = (TcpStream::from(fd), listener.accept().expect("accepted").0);
        let request = b"GET /again HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(request).expect("written");
        let mut buffer = vec![0; request.len()];
        server.read_exact(&mut buffer).expect("read");
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("written");
        assert!(client.read(&mut [0; 64]).expect("read") > 0);
        let (local, remote) = (client.local_addr().expect("local"), client.peer_addr().expect("peer"));
        drop((server, client));
        recording.drain_until("both ends", |r| r.closed.contains(&me) && r.closed.len() > 1);
        let (probes, all) = recording.finish();
        let ours = &all.sockets[&me];
        assert_eq!((ours.local.0, ours.remote.0), (local, remote), "{:?}", probes.tier());
        assert_eq!((ours.connect_error, ours.lost_events), (None, 0));
        assert!(ours.established.is_some() && ours.handshake.is_some() && ours.close.is_some(), "{ours:?}");
        let sent = all.of(me, Direction::Egress);
        let again = Content::Http1Request { method: "GET".into(), path: "/again".into() };
        assert!(sent.len() == 1 && sent[0].content == again && !sent[0].gap_before, "{sent:?}");
        assert_eq!(all.of(me, Direction::Ingress).len(), 1);
    });
}

#[test]
fn who_closes_how_is_told() {
    if !privileged("who_closes_how_is_told") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        // A FIN, half a connection that stays open for a while, and the other FIN.
        let (client, server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        client.shutdown(Shutdown::Write).expect("shut down");
        std::thread::sleep(Duration::from_millis(30));
        drop(server);
        drop(client);
        // A reset: bytes were not read.
        let (mut client, server) = connection("127.0.0.1:0");
        let (rc, rs) = (cookie(&client), cookie(&server));
        client.write_all(b"never read").expect("written");
        recording.drain_until("the bytes", |r| r.events(rs) > 1);
        drop(server);
        recording.drain_until("the reset", |r| r.closed.contains(&rc));
        drop(client);
        closed(&mut recording, &[c, s, rc, rs]);
        let (_, all) = recording.finish();
        let close = |me: SocketCookie| all.sockets[&me].close.expect("it was closed");
        assert_eq!((close(c).by, close(c).reset), (Closer::Local, false));
        assert_eq!((close(s).by, close(s).reset), (Closer::Remote, false));
        for me in [c, s] {
            assert!(close(me).duration.expect("both FINs were seen").0 >= 29_000_000, "{:?}", close(me));
        }
        assert_eq!((close(rs).by, close(rs).reset, close(rs).duration), (Closer::Local, true, None));
        assert_eq!((close(rc).by, close(rc).reset, close(rc).duration), (Closer::Remote, true, None));
    });
}

#[test]
fn what_is_sent_again_is_counted_and_told_by_its_number() {
    if !privileged("what_is_sent_again_is_counted_and_told_by_its_number") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        expect_measured(&recording.probes, Metric::Retransmits);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        say(&mut client, &mut server, REQUEST);
        say(&mut server, &mut client, RESPONSE);
        let lost = Dropped::these("INPUT -p tcp --tcp-flags PSH PSH");
        client.write_all(REQUEST).expect("written");
        recording.drain_until("a retransmission", |r| r.retransmits.contains(&c));
        drop(lost);
        server.read_exact(&mut vec![0; REQUEST.len()]).expect("read");
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (_, all) = recording.finish();
        assert!(all.total(c).retransmits >= 1);
        assert_eq!(all.total(s).retransmits, 0, "they are the sender's");
        let messages = all.of(c, Direction::Egress);
        let told = &messages[1].retransmits;
        assert!(!told.is_empty() && told.iter().all(|i| i.seq == messages[1].seq.start), "{messages:?}");
        assert!(messages[0].retransmits.is_empty());
        assert!(told[0].at > messages[1].sends[0].at);
    });
}

#[test]
fn what_tcp_holds_back_is_told() {
    if !privileged("what_tcp_holds_back_is_told") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        expect_measured(&recording.probes, Metric::WriteTime);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        // Nagle: a second small write waits for the acknowledgement of the first, which the peer delays.
        client.set_nodelay(false).expect("nagle");
        say(&mut client, &mut server, b"warm");
        say(&mut server, &mut client, b"up");
        let lost = Dropped::these("INPUT -p tcp --tcp-flags PSH PSH");
        client.write_all(b"first").expect("written");
        client.write_all(b"second").expect("written");
        drop(lost);
        server.read_exact(&mut [0; 11]).expect("read");
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (_, all) = recording.finish();
        let message = all.of(c, Direction::Egress)[1];
        let second = message.seq.start.advance(5);
        assert!(message.held.iter().any(|h| h.seq == second), "{message:?}");
    });
}

#[test]
fn one_socket_of_many_threads_and_processes() {
    if !privileged("one_socket_of_many_threads_and_processes") {
        return;
    }
    const THREADS: usize = 8;
    const EACH: usize = 200;
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        let copy = client.try_clone().expect("a duplicate");
        std::thread::scope(|scope| {
            for n in 0..THREADS {
                // By turns through the descriptor and its duplicate.
                let mut to = if n % 2 == 0 { &client } else { &copy };
                scope.spawn(move || (0..EACH).for_each(|_| to.write_all(&[b'x'; 100]).expect("written")));
            }
            let mut all = vec![0; THREADS * EACH * 100];
            server.read_exact(&mut all).expect("read");
        });
        // A child that inherited the socket.
        let status = Command::new("sh")
            .args(["-c", "printf fromachild"])
            .stdout(client.try_clone().map(std::os::fd::OwnedFd::from).expect("a duplicate"))
            .status();
        assert!(status.expect("sh runs").success());
        server.read_exact(&mut [0; 10]).expect("read");
        recording.drain();
        drop((client, copy, server));
        closed(&mut recording, &[c, s]);
        let (probes, all) = recording.finish();
        let row = all.total(c);
        let (calls, bytes) = ((THREADS * EACH + 1) as u64, (THREADS * EACH * 100 + 10) as u64);
        // A thread that loses its processor in the middle of a probe takes the others' writes there out of sight.
        let skipped = probes.counters().expect("counters").skipped;
        let missing = calls - row.write.calls;
        assert!(missing <= skipped, "{missing} of {calls} writes are missing, of which the kernel left out {skipped}");
        assert!(bytes - row.write.bytes <= missing * 100, "{row:?}");
        let timed = row.write.duration.expect("writes are timed").count();
        assert!(timed <= row.write.calls && timed > 0, "{timed} of {}", row.write.calls);
        assert_ne!(all.sockets[&c].owner.map(|t| t.0), Some(std::process::id()), "the child wrote last");
        assert!(missing > 0 || all.bytes(c, Direction::Egress) == row.write.bytes);
    });
}

#[test]
fn sendfile_counts_as_writes() {
    if !privileged("sendfile_counts_as_writes") {
        return;
    }
    const ALL: usize = 300_000;
    in_new_netns(|netns| {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![b'G'; ALL]).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let mut recording = Recording::start(&config(), &[netns]);
        let (client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut (&mut server).take(ALL as u64), &mut std::io::sink()).expect("read"));
            send_file(&file, &client, ALL);
        });
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (_, all) = recording.finish();
        assert_eq!(all.total(c).write.bytes, ALL as u64);
        assert_eq!(all.total(s).read.bytes, ALL as u64);
        assert!(all.total(c).write.calls > 0);
    });
}

#[test]
fn a_port_that_several_listeners_share() {
    if !privileged("a_port_that_several_listeners_share") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let listen = |port: u16| {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            setsockopt(&fd, sockopt::ReusePort, &true).expect("shared");
            let to = SockaddrIn::from_str(&format!("127.0.0.1:{port}")).expect("an address");
            nix::sys::socket::bind(fd.as_raw_fd(), &to).expect("bound");
            nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(64).expect("a number")).expect("listens");
            TcpListener::from(fd)
        };
        let first = listen(0);
        let port = first.local_addr().expect("an address").port();
        let listeners = [first, listen(port), listen(port)];
        listeners.iter().for_each(|l| l.set_nonblocking(true).expect("non-blocking"));
        let mut clients: Vec<_> =
            (0..24).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("a connection")).collect();
        let mut accepted = Vec::new();
        let mut busy = 0;
        for listener in &listeners {
            let before = accepted.len();
            while let Ok((socket, _)) = listener.accept() {
                accepted.push(socket);
            }
            busy += usize::from(accepted.len() > before);
        }
        assert!(accepted.len() == clients.len() && busy > 1, "{} by {busy} listeners", accepted.len());
        let mut cookies = Vec::new();
        for client in &mut clients {
            client.write_all(&[b'x'; 64]).expect("written");
            cookies.push(cookie(client));
        }
        for server in &mut accepted {
            server.set_nonblocking(false).expect("blocking");
            server.read_exact(&mut [0; 64]).expect("read");
            cookies.push(cookie(server));
        }
        drop((clients, accepted));
        closed(&mut recording, &cookies);
        let (_, all) = recording.finish();
        for (i, me) in cookies.iter().enumerate() {
            let (row, role) = (all.total(*me), all.sockets[me].role);
            if i < 24 {
                assert_eq!((row.write.calls, row.write.bytes, role), (1, 64, Some(SocketRole::Connected)));
            } else {
                assert_eq!((row.read.calls, row.read.bytes, role), (1, 64, Some(SocketRole::Accepted)));
            }
        }
    });
}

#[test]
fn connections_that_were_open_before_are_found() {
    if !privileged("connections_that_were_open_before_are_found") {
        return;
    }
    in_new_netns(|netns| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let (server, _) = listener.accept().expect("a connection");
        let (six, _six_server) = connection("[::1]:0");
        let (c, s) = (cookie(&client), cookie(&server));
        let mut recording = Recording::start(&config(), &[netns]);
        let open = open_sockets(netns).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(open.len(), 4, "{open:?}");
        let of = |me| open.iter().find(|o| o.socket == me).expect("found");
        assert_eq!((of(c).role, of(s).role), (SocketRole::Connected, SocketRole::Accepted));
        assert_eq!(of(c).identity.local.0, client.local_addr().expect("local"));
        assert_eq!(of(cookie(&six)).identity.remote.0, six.peer_addr().expect("remote"));
        recording.found_open(&open);
        // One of them breaks off without ever having said a word.
        drop(server);
        closed(&mut recording, &[s]);
        let (_, all) = recording.finish();
        assert_eq!(all.sockets.len(), 4, "silent ones are known, too");
        let (ours, theirs) = (&all.sockets[&c], &all.sockets[&s]);
        assert_eq!((ours.role, ours.established, ours.closed), (Some(SocketRole::Connected), None, None));
        assert_eq!((theirs.role, theirs.netns), (Some(SocketRole::Accepted), netns));
        assert_eq!(theirs.close.map(|close| close.by), Some(Closer::Local));
        assert_eq!(ours.close.map(|close| close.by), Some(Closer::Remote), "half closed");
        let elsewhere = in_new_netns(|other| open_sockets(other).unwrap_or_else(|e| panic!("{e}")));
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    });
}

/// Sends and reads by way of a ring that the kernel works through.
#[test]
fn io_uring_is_seen_like_system_calls() {
    if !privileged("io_uring_is_seen_like_system_calls") {
        return;
    }
    let mut ring = match io_uring::IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => {
            println!("io_uring_is_seen_like_system_calls: not tried, this kernel has no io_uring for us: {error}");
            return;
        }
    };
    let mut run = |entry: io_uring::squeue::Entry| -> i32 {
        // SAFETY: the buffer of each entry outlives the call below, which waits until the kernel is done with it.
        unsafe { ring.submission().push(&entry).expect("there is room") };
        ring.submit_and_wait(1).expect("submitted");
        ring.completion().next().expect("one is complete").result()
    };
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (client, server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        let descriptor = |socket: &TcpStream| io_uring::types::Fd(socket.as_raw_fd());
        for _ in 0..10 {
            let mut buffer = [0; 512];
            let send = io_uring::opcode::Send::new(descriptor(&client), REQUEST.as_ptr(), REQUEST.len() as u32);
            assert_eq!(run(send.build()), REQUEST.len() as i32);
            let recv = io_uring::opcode::Recv::new(descriptor(&server), buffer.as_mut_ptr(), buffer.len() as u32);
            assert_eq!(run(recv.build()), REQUEST.len() as i32);
            assert_eq!(&buffer[..REQUEST.len()], REQUEST);
        }
        // A read that waits: the kernel finishes it when the bytes come, which a worker of the ring may do.
        let mut buffer = [0; 512];
        let writer = client.try_clone().expect("a duplicate");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                (&writer).write_all(REQUEST).expect("written");
            });
            let recv = io_uring::opcode::Recv::new(descriptor(&server), buffer.as_mut_ptr(), buffer.len() as u32);
            assert_eq!(run(recv.build()), REQUEST.len() as i32);
        });
        drop((client, server));
        closed(&mut recording, &[c, s]);
        let (_, all) = recording.finish();
        let (sent, read) = (all.total(c).write, all.total(s).read);
        assert_eq!((sent.calls, sent.bytes), (11, 11 * REQUEST.len() as u64));
        assert_eq!((read.calls, read.bytes), (11, 11 * REQUEST.len() as u64));
        assert_eq!(sent.duration.expect("writes are timed").count(), 11);
        assert_eq!(all.sockets[&c].owner.map(|t| t.0), Some(std::process::id()));
        assert!(matches!(all.of(c, Direction::Egress)[0].content, meshdiff_model::Content::Http1Request { .. }));
    });
}

impl Recorded {
    /// All windows of a socket.
    fn total(&self, me: SocketCookie) -> meshdiff_model::SocketMetrics {
        let mut total = meshdiff_model::SocketMetrics::at(me, MonotonicNs(u64::MAX));
        self.metrics.iter().filter(|row| row.socket == me).for_each(|row| total.merge(row));
        total
    }
}
