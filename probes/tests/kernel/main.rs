//! The probes on the running kernel, against conversations of which everything is known. Needs root.

mod ends;
mod metrics;
mod support;
mod tls;

use meshdiff_model::{Content, Direction, ProbeTier, SeqNo, SocketCookie};
use meshdiff_probes::{ProbeConfig, ProbeError, Probes, TIERS};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use support::{DEADLINE, Recording, connection, cookie, covering, in_new_netns, privileged, send_file};

const REQUEST: &[u8] = b"GET /hello/world?secret=1 HTTP/1.1\r\nhost: a.example\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";

fn config() -> ProbeConfig {
    ProbeConfig { ring_bytes: 4 << 20, ..ProbeConfig::default() }
}

fn say(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("written");
    let mut buffer = vec![0; bytes.len()];
    to.read_exact(&mut buffer).expect("read");
    assert_eq!(buffer, bytes);
}

#[test]
fn a_conversation_is_told_as_it_was() {
    if !privileged("a_conversation_is_told_as_it_was") {
        return;
    }
    const BIG: usize = 3 << 20;
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        for _ in 0..3 {
            say(&mut client, &mut server, REQUEST);
            say(&mut server, &mut client, RESPONSE);
            say(&mut server, &mut client, b"0123456789");
        }
        // A split request.
        say(&mut client, &mut server, b"POST /big HTTP/1.1\r\n");
        say(&mut client, &mut server, b"content-length: 0\r\n\r\n");
        // A big response: its writer waits for its reader.
        std::thread::scope(|scope| {
            scope.spawn(|| server.write_all(&vec![7; BIG]).expect("written"));
            let mut all = vec![0; BIG];
            client.read_exact(&mut all).expect("read");
        });
        client.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(server.read(&mut [0; 8]).expect("read"), 0);
        let (client_address, server_address) =
            (client.local_addr().expect("local"), server.local_addr().expect("local"));
        drop((server, client));
        recording
            .drain_until("the sockets' ends", |r| r.probes.counters().is_ok_and(|c| c.lost == 0) && r.events(s) > 20);
        let (probes, all) = recording.finish();

        let counters = probes.counters().expect("counters");
        assert_eq!((counters.lost, counters.untracked, counters.undecodable), (0, 0, 0), "{counters:?}");
        assert_eq!(counters.emitted, counters.consumed, "{counters:?}");
        assert_eq!((all.stats.lost_events, all.stats.late_events), (0, 0), "{:?}", all.stats);
        assert!(all.messages.iter().all(|m| !m.gap_before));

        for (me, local, remote) in [(c, client_address, server_address), (s, server_address, client_address)] {
            let socket = &all.sockets[&me];
            assert_eq!((socket.netns, socket.local.0, socket.remote.0), (netns, local, remote));
            assert_eq!(socket.owner.map(|t| t.0), Some(std::process::id()));
            assert!(socket.established.is_some() && socket.srtt.is_some(), "{socket:?}");
            assert_eq!(socket.connect_start.is_some(), me == c);
        }
        assert!(all.sockets.keys().eq([c, s].iter()), "others were recorded: {:?}", all.sockets);

        // The same numbers at both ends, the same bytes, and time runs forward.
        let (requests, responses) = (all.of(c, Direction::Egress), all.of(s, Direction::Egress));
        let (arrived, answers) = (all.of(s, Direction::Ingress), all.of(c, Direction::Ingress));
        assert_eq!(
            requests.iter().map(|m| m.seq).collect::<Vec<_>>(),
            arrived.iter().map(|m| m.seq).collect::<Vec<_>>()
        );
        assert_eq!(requests.len(), 4);
        assert_eq!(responses.len(), 4);
        assert_eq!(all.bytes(s, Direction::Egress), (3 * (RESPONSE.len() + 10) + BIG) as u64);
        assert_eq!(all.bytes(c, Direction::Ingress), all.bytes(s, Direction::Egress));
        for (out, inn) in requests.iter().zip(&arrived).chain(responses.iter().zip(&answers).take(3)) {
            assert_eq!(out.seq, inn.seq);
            let (sent, ready, read) =
                (out.sends[0].at, covering(&inn.readies, inn.readies[0].seq), covering(&inn.recvs, inn.seq.end));
            assert!(sent <= ready && ready <= read, "{sent:?} {ready:?} {read:?}");
        }
        let kinds: Vec<_> = requests.iter().map(|m| m.content.clone()).collect();
        let get = Content::Http1Request { method: "GET".into(), path: "/hello/world".into() };
        let post = Content::Http1Request { method: "POST".into(), path: "/big".into() };
        assert_eq!(kinds, [get.clone(), get.clone(), get, post]);
        assert_eq!(requests[0].head_end, Some(requests[0].seq.end));
        assert_eq!(responses[0].content, Content::Http1Response { status: 200 });
        assert_eq!(responses[0].head_end, Some(responses[0].seq.start.advance(RESPONSE.len() as u32)));
        assert_eq!(responses[0].sends.len(), 2);
        // One call is one send, into however many pieces the kernel cut it.
        assert_eq!(responses[3].sends.len(), 1, "{:?}", responses[3].sends);
        assert_eq!(responses[3].seq.len() as usize, BIG);
    });
}

#[test]
fn a_kind_of_probes_that_is_refused_is_passed_over_and_said() {
    if !privileged("a_kind_of_probes_that_is_refused_is_passed_over_and_said") {
        return;
    }
    let mut tiers = vec![ProbeTier::None];
    let alone = Probes::load(&ProbeConfig { tiers: tiers.clone(), ..config() }).map(|_| ());
    assert!(matches!(&alone, Err(ProbeError::NoTier { refused }) if refused.len() == 1), "{alone:?}");
    tiers.extend(TIERS);
    let probes = Probes::load(&ProbeConfig { tiers, ..config() }).unwrap_or_else(|e| panic!("{e}"));
    assert!(TIERS.contains(&probes.tier()));
    let (first, why) = &probes.refused()[0];
    assert_eq!((*first, why.to_string().as_str()), (ProbeTier::None, "there are no probes of the kind none"));
}

#[test]
fn only_watched_namespaces_are_seen_and_the_set_can_change() {
    if !privileged("only_watched_namespaces_are_seen_and_the_set_can_change") {
        return;
    }
    in_new_netns(|watched| {
        let mut recording = Recording::start(&config(), &[watched]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let c = cookie(&client);
        let other = in_new_netns(|other| {
            assert_ne!(other, watched);
            let (mut client, mut server) = connection("127.0.0.1:0");
            say(&mut client, &mut server, REQUEST);
            cookie(&client)
        });
        say(&mut client, &mut server, REQUEST);
        recording.drain_until("the watched request", |r| r.events(c) >= 3);
        assert_eq!(recording.events(other), 0, "an unwatched namespace was recorded");

        let filter = recording.probes.filter();
        assert!(filter.unwatch(watched).expect("unwatched"));
        assert!(!filter.unwatch(watched).expect("unwatched"));
        let before = recording.events(c);
        say(&mut client, &mut server, REQUEST);
        recording.drain();
        assert_eq!(recording.events(c), before, "recorded after it was unwatched");

        assert!(filter.watch(watched).expect("watched"));
        say(&mut client, &mut server, REQUEST);
        recording.drain_until("the request after watching again", |r| r.events(c) > before);
        assert_eq!(filter.watched(), [watched]);
    });
}

#[test]
fn every_lost_record_is_counted() {
    if !privileged("every_lost_record_is_counted") {
        return;
    }
    in_new_netns(|netns| {
        let small = ProbeConfig { ring_bytes: 4096, ..config() };
        let mut recording = Recording::start(&small, &[netns]);
        let mut pairs: Vec<_> = (0..4).map(|_| connection("127.0.0.1:0")).collect();
        recording.drain();
        for _ in 0..100 {
            for (client, server) in &mut pairs {
                say(client, server, REQUEST);
                say(server, client, RESPONSE);
            }
        }
        // The last events of a socket can only be known to be lost by one that comes after them.
        for (client, server) in &mut pairs {
            recording.drain();
            say(client, server, b"x");
            recording.drain();
            say(server, client, b"y");
            recording.drain();
        }
        let cookies: Vec<SocketCookie> = pairs.iter().flat_map(|(c, s)| [cookie(c), cookie(s)]).collect();
        let mut gaps = 0;
        for me in &cookies {
            let seen = &recording.counters[me];
            let attempts = seen.iter().max().expect("seen") + 1;
            gaps += u64::from(attempts) - seen.len() as u64;
        }
        let counters = recording.probes.counters().expect("counters");
        assert!(counters.lost > 500, "the ring was to overflow: {counters:?}");
        assert_eq!(gaps, counters.lost, "{counters:?}");
        assert_eq!(counters.emitted, counters.consumed, "{counters:?}");
        let stats = recording.probes.stats().expect("stats");
        assert_eq!((stats.events, stats.lost_events), (counters.emitted, counters.lost));
        let (_, all) = recording.finish();
        assert_eq!(all.stats.lost_events, counters.lost);
        assert_eq!(all.sockets.values().map(|s| s.lost_events).sum::<u64>(), counters.lost);
        assert_eq!(all.sockets.len(), cookies.len(), "announcements are made up for");
        assert!(cookies.iter().all(|c| all.messages.iter().any(|m| m.socket == *c && m.gap_before)));
    });
}

#[test]
fn partial_writes_of_a_non_blocking_socket_add_up() {
    if !privileged("partial_writes_of_a_non_blocking_socket_add_up") {
        return;
    }
    // More than both buffers hold (tcp_wmem and tcp_rmem are at most 4 and 6 MiB by default).
    const ALL: usize = 24 << 20;
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        client.set_nonblocking(true).expect("non-blocking");
        let bytes = vec![1; ALL];
        let (mut written, mut partial, mut starts) = (0, 0, Vec::new());
        std::thread::scope(|scope| {
            // The reader begins when the writer can write no more, so that there is a partial write.
            let (full, begin) = std::sync::mpsc::channel();
            let reader = &mut server;
            scope.spawn(move || {
                begin.recv_timeout(DEADLINE).expect("the writer is stopped");
                std::io::copy(&mut reader.take(ALL as u64), &mut std::io::sink()).expect("read")
            });
            let end = std::time::Instant::now() + DEADLINE;
            while written < ALL {
                match client.write(&bytes[written..]) {
                    Ok(n) => {
                        starts.push(written as u32);
                        partial += usize::from(written + n < ALL);
                        written += n;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        // The reader may be gone already.
                        let _ = full.send(());
                        std::thread::yield_now();
                    }
                    Err(e) => panic!("{e}"),
                }
                assert!(std::time::Instant::now() < end, "not written within {DEADLINE:?}");
                recording.drain();
            }
        });
        assert!(partial > 0, "no write was partial");
        drop((client, server));
        recording.drain_until("the end", |r| r.events(s) > 2);
        let (_, all) = recording.finish();
        assert_eq!(all.stats.lost_events, 0);
        assert_eq!(all.bytes(c, Direction::Egress), ALL as u64);
        assert_eq!(all.bytes(s, Direction::Ingress), ALL as u64);
        // Every write that took something begins where a send is reported.
        let egress = all.of(c, Direction::Egress);
        let first: SeqNo = egress[0].seq.start;
        let offsets: Vec<u32> = egress.iter().flat_map(|m| &m.sends).map(|i| i.seq.0.wrapping_sub(first.0)).collect();
        if egress.iter().all(|m| m.elided == 0) {
            assert_eq!(offsets, starts);
        }
        assert!(offsets.iter().all(|o| starts.contains(o)), "{offsets:?} of {starts:?}");
    });
}

#[test]
fn sendfile_is_seen_without_its_payload() {
    if !privileged("sendfile_is_seen_without_its_payload") {
        return;
    }
    const ALL: u64 = 300_000;
    in_new_netns(|netns| {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![b'G'; ALL as usize]).expect("written");
        std::io::Seek::rewind(&mut file).expect("rewound");
        let mut recording = Recording::start(&config(), &[netns]);
        let (client, mut server) = connection("127.0.0.1:0");
        let c = cookie(&client);
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut (&mut server).take(ALL), &mut std::io::sink()).expect("read"));
            send_file(&file, &client, ALL as usize);
        });
        drop((client, server));
        recording.drain_until("the sends", |r| r.events(c) > 2);
        assert!(recording.sends.iter().all(|(_, _, prefix)| prefix.is_empty()), "a payload was read");
        let (_, all) = recording.finish();
        assert_eq!(all.bytes(c, Direction::Egress), ALL);
        assert!(all.of(c, Direction::Egress).iter().all(|m| m.content == Content::Unknown));
    });
}

#[test]
fn vectored_sends_peeks_and_tls_records() {
    if !privileged("vectored_sends_peeks_and_tls_records") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        let (c, s) = (cookie(&client), cookie(&server));
        let slices = [std::io::IoSlice::new(REQUEST), std::io::IoSlice::new(b"body")];
        assert_eq!(client.write_vectored(&slices).expect("written"), REQUEST.len() + 4);
        let mut peeked = [0; 16];
        assert_eq!(server.peek(&mut peeked).expect("peeked"), 16);
        let mut all = vec![0; REQUEST.len() + 4];
        server.read_exact(&mut all).expect("read");
        let record = [&[23, 3, 3, 2, 0][..], &[9; 512]].concat();
        for _ in 0..2 {
            say(&mut server, &mut client, &record);
            say(&mut client, &mut server, b"x");
        }
        recording.drain_until("the conversation", |r| r.events(s) >= 8);
        let prefixes: Vec<usize> =
            recording.sends.iter().filter(|(me, ..)| *me == s).map(|(_, _, prefix)| prefix.len()).collect();
        assert_eq!(prefixes, [512, 32], "of an encrypted stream only the record's head is of use");
        let (_, all) = recording.finish();
        assert!(matches!(all.of(c, Direction::Egress)[0].content, Content::Http1Request { .. }));
        assert_eq!(all.of(c, Direction::Egress)[0].seq.len() as usize, REQUEST.len() + 4);
        assert_eq!(all.of(s, Direction::Ingress)[0].recvs.len(), 1, "a peek is no read");
        assert!(all.of(s, Direction::Egress).iter().all(|m| m.content == Content::TlsApplicationData));
    });
}

#[test]
fn addresses_are_right_for_every_family() {
    if !privileged("addresses_are_right_for_every_family") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let mut expected = Vec::new();
        let mut open = Vec::new();
        // The listener on [::] accepts IPv4 as mapped addresses.
        for address in ["127.0.0.1:0", "[::]:0", "[::1]:0"] {
            let (mut client, mut server) = connection(address);
            say(&mut client, &mut server, b"hello");
            let local = client.local_addr().expect("local");
            expected.push((cookie(&server), local));
            open.push((client, server));
        }
        let last = expected[2].0;
        recording.drain_until("the last one", |r| r.events(last) > 0);
        let (_, all) = recording.finish();
        for (server, client_address) in expected {
            let socket = &all.sockets[&server];
            assert_eq!(socket.remote.0, client_address);
            assert_eq!(socket.local.ip(), client_address.ip(), "both ends are on the loopback");
        }
    });
}

#[test]
fn sockets_that_were_open_before_are_seen_from_then_on() {
    if !privileged("sockets_that_were_open_before_are_seen_from_then_on") {
        return;
    }
    in_new_netns(|netns| {
        let (mut client, mut server) = connection("127.0.0.1:0");
        say(&mut client, &mut server, REQUEST);
        let mut recording = Recording::start(&config(), &[netns]);
        let (c, s) = (cookie(&client), cookie(&server));
        say(&mut server, &mut client, RESPONSE);
        say(&mut client, &mut server, REQUEST);
        recording.drain_until("the second request", |r| r.events(s) >= 3 && r.events(c) >= 3);
        let (_, all) = recording.finish();
        let socket = &all.sockets[&s];
        assert_eq!((socket.established, socket.closed), (None, None));
        assert!(all.of(c, Direction::Ingress)[0].gap_before, "what came before is not known");
        let request = all.of(c, Direction::Egress)[0];
        assert_eq!((request.seq, request.sends.len()), (all.of(s, Direction::Ingress)[0].seq, 1));
    });
}

#[test]
fn the_kernel_measures_what_the_probes_cost() {
    if !privileged("the_kernel_measures_what_the_probes_cost") {
        return;
    }
    in_new_netns(|netns| {
        let mut recording = Recording::start(&config(), &[netns]);
        let (mut client, mut server) = connection("127.0.0.1:0");
        for _ in 0..200 {
            say(&mut client, &mut server, REQUEST);
            say(&mut server, &mut client, RESPONSE);
        }
        recording.drain();
        recording.probes.detach();
        let stats = recording.probes.stats().expect("stats");
        assert!(stats.runs >= 1200 && stats.run_time_ns > 0, "{stats:?}");
        let before = recording.probes.counters().expect("counters").emitted;
        say(&mut client, &mut server, REQUEST);
        assert_eq!(recording.probes.counters().expect("counters").emitted, before, "recorded after it was detached");
    });
}

#[test]
fn without_capabilities_the_error_names_them() {
    // A thread's capabilities are its own: the others keep theirs.
    let error = std::thread::spawn(|| {
        #[repr(C)]
        struct Header {
            version: u32,
            pid: i32,
        }
        let header = Header { version: 0x2008_0522, pid: 0 };
        let none = [[0u32; 3]; 2];
        // SAFETY: the header and the two data words of version 3 outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
        assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
        Probes::load(&ProbeConfig::default()).err().expect("refused")
    });
    let error = error.join().expect("the thread ran");
    assert!(matches!(&error, ProbeError::NotPermitted { missing } if missing == "CAP_BPF, CAP_PERFMON"), "{error}");
}
