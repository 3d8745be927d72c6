//! What assembly makes of conversations that are written down by hand.

use super::*;
use crate::event::{Extra, RawKind};
use meshdiff_model::{
    Content, Direction, LocalAddr, NetnsId, PeerAddr, SeqInstant, SeqNo, SeqRange, SocketCookie, TcpState, Tgid,
};

const COOKIE: SocketCookie = SocketCookie(77);

/// Feeds an assembler with the events of one socket.
struct Feed {
    assembler: Assembler,
    sink: Collected,
    counter: u32,
}

impl Feed {
    /// Of a socket whose beginning is seen (accepted at 1 ns).
    fn accepted() -> Self {
        let mut feed = Self::attached();
        feed.event(1, RawKind::State { old: TcpState::SynRecv, new: TcpState::Established, write_seq: SeqNo(0) });
        feed
    }
    /// Of a socket that was there before the probes.
    fn attached() -> Self {
        let (assembler, sink) = (Assembler::new(Limits::default()), Collected::default());
        let mut feed = Self { assembler, sink, counter: 0 };
        let addr = |s: &str| s.parse().expect("an address");
        feed.raw(
            0,
            0,
            RawKind::Announce(crate::Identity {
                netns: NetnsId(5),
                local: LocalAddr(addr("10.0.0.1:80")),
                remote: PeerAddr(addr("10.0.0.2:4000")),
            }),
        );
        feed
    }
    fn raw(&mut self, counter: u32, at: u64, kind: RawKind<'_>) {
        let event = RawEvent {
            socket: COOKIE,
            counter,
            at: MonotonicNs(at),
            tgid: Tgid(9),
            srtt: None,
            extra: Extra::default(),
            kind,
        };
        self.assembler.push(&event, &mut self.sink);
    }
    fn event(&mut self, at: u64, kind: RawKind<'_>) {
        let counter = self.counter;
        self.counter += 1;
        self.raw(counter, at, kind);
    }
    fn send(&mut self, at: u64, seq: u32, len: u32, prefix: &[u8]) {
        self.event(at, RawKind::Send { seq: SeqNo(seq), len, prefix });
    }
    fn ready(&mut self, at: u64, rcv_nxt: u32, copied: u32) {
        self.event(at, RawKind::Ready { rcv_nxt: SeqNo(rcv_nxt), copied_seq: SeqNo(copied), fin: false });
    }
    fn recv(&mut self, at: u64, copied: u32, len: u32) {
        self.event(at, RawKind::Recv { copied_seq: SeqNo(copied), len, fin: false });
    }
    fn lose(&mut self, events: u32) {
        self.counter += events;
    }
    fn tick(&mut self, at: u64) {
        self.assembler.tick(MonotonicNs(at), &mut self.sink);
    }
    fn finish(mut self) -> (Vec<Message>, Vec<Message>, Collected) {
        self.assembler.finish(&mut self.sink);
        let of = |d| self.sink.messages.iter().filter(|m| m.direction == d).cloned().collect();
        (of(Direction::Egress), of(Direction::Ingress), self.sink)
    }
}

fn instants(list: &[SeqInstant]) -> Vec<(u32, u64)> {
    list.iter().map(|i| (i.seq.0, i.at.0)).collect()
}

fn range(m: &Message) -> (u32, u32) {
    (m.seq.start.0, m.seq.end.0)
}

#[test]
fn a_server_serves_two_requests() {
    let mut f = Feed::accepted();
    for (at, seq) in [(100, 1000), (200, 1050)] {
        f.ready(at, seq + 50, seq);
        f.recv(at + 5, seq + 50, 50);
        let out = 9000 + (seq - 1000) * 4;
        f.send(at + 20, out, 120, b"HTTP/1.1 200 OK\r\ncontent-length: 80\r\n\r\n");
        f.send(at + 25, out + 120, 80, b"body");
    }
    let (egress, ingress, all) = f.finish();
    assert_eq!(ingress.iter().map(range).collect::<Vec<_>>(), [(1000, 1050), (1050, 1100)]);
    assert_eq!(egress.iter().map(range).collect::<Vec<_>>(), [(9000, 9200), (9200, 9400)]);
    assert_eq!(instants(&ingress[1].readies), [(1100, 200)]);
    assert_eq!(instants(&ingress[1].recvs), [(1100, 205)]);
    assert_eq!(instants(&egress[1].sends), [(9200, 220), (9320, 225)]);
    assert_eq!(egress[1].content, Content::Http1Response { status: 200 });
    assert_eq!(egress[1].head_end, Some(SeqNo(9239)));
    assert!(all.messages.iter().all(|m| !m.gap_before && m.elided == 0));
    let socket = all.sockets.last().expect("a socket");
    assert_eq!((socket.owner, socket.netns, socket.lost_events), (Some(Tgid(9)), NetnsId(5), 0));
    assert_eq!((socket.first_seen, socket.last_seen), (MonotonicNs(0), MonotonicNs(225)));
}

#[test]
fn coalesced_reads_belong_to_one_message() {
    let mut f = Feed::accepted();
    f.ready(10, 1100, 1000);
    f.ready(20, 1300, 1000);
    f.recv(30, 1300, 300);
    let (_, ingress, _) = f.finish();
    assert_eq!(ingress.len(), 1);
    assert_eq!(instants(&ingress[0].readies), [(1100, 10), (1300, 20)]);
    assert_eq!(instants(&ingress[0].recvs), [(1300, 30)]);
}

#[test]
fn a_partial_write_ends_where_the_next_begins() {
    let mut f = Feed::accepted();
    f.send(10, 500, 1000, b"");
    f.send(20, 900, 600, b"");
    f.ready(30, 20, 10);
    f.send(40, 1400, 50, b"");
    let (egress, ..) = f.finish();
    assert_eq!(egress.iter().map(range).collect::<Vec<_>>(), [(500, 1400), (1400, 1450)]);
    assert_eq!(instants(&egress[0].sends), [(500, 10), (900, 20)]);
    assert!(!egress[1].gap_before);
}

#[test]
fn bytes_offered_twice_count_from_the_first_offer() {
    let mut f = Feed::accepted();
    f.send(10, 500, 100, b"GET / HTTP/1.1\r\n");
    f.send(20, 500, 300, b"GET / HTTP/1.1\r\n");
    let (egress, ..) = f.finish();
    assert_eq!((egress.len(), range(&egress[0])), (1, (500, 800)));
    assert_eq!(instants(&egress[0].sends), [(500, 10)]);
}

#[test]
fn what_was_never_taken_was_never_sent() {
    let mut f = Feed::accepted();
    f.send(10, 500, 100, b"");
    f.send(20, 600, 4000, b"");
    f.event(30, RawKind::State { old: TcpState::Established, new: TcpState::Close, write_seq: SeqNo(600) });
    let (egress, _, all) = f.finish();
    assert_eq!((egress.len(), range(&egress[0])), (1, (500, 600)));
    assert_eq!(instants(&egress[0].sends), [(500, 10)]);
    assert_eq!(all.sockets.last().expect("a socket").closed, Some(MonotonicNs(30)));
}

#[test]
fn a_fin_is_no_byte() {
    let mut f = Feed::accepted();
    f.event(10, RawKind::Ready { rcv_nxt: SeqNo(1101), copied_seq: SeqNo(1000), fin: true });
    f.event(20, RawKind::Recv { copied_seq: SeqNo(1101), len: 100, fin: true });
    let (_, ingress, _) = f.finish();
    assert_eq!((ingress.len(), range(&ingress[0])), (1, (1000, 1100)));
    assert_eq!(instants(&ingress[0].recvs), [(1100, 20)]);

    let mut f = Feed::accepted();
    f.event(10, RawKind::Ready { rcv_nxt: SeqNo(1), copied_seq: SeqNo(0), fin: true });
    f.event(20, RawKind::Recv { copied_seq: SeqNo(1), len: 0, fin: true });
    let (egress, ingress, _) = f.finish();
    assert_eq!((egress, ingress), (vec![], vec![]));
}

#[test]
fn sequence_numbers_wrap() {
    let mut f = Feed::accepted();
    f.ready(10, 20, u32::MAX - 9);
    f.recv(11, 20, 30);
    f.send(12, u32::MAX - 4, 10, b"");
    f.send(13, 5, 10, b"");
    let (egress, ingress, _) = f.finish();
    assert_eq!((range(&ingress[0]), ingress[0].seq.len()), ((u32::MAX - 9, 20), 30));
    assert_eq!((egress.len(), range(&egress[0])), (1, (u32::MAX - 4, 15)));
}

#[test]
fn attaching_in_mid_stream_is_a_gap() {
    let mut f = Feed::attached();
    f.ready(10, 1100, 1000);
    f.recv(11, 1100, 100);
    f.send(12, 1, 10, b"");
    f.ready(13, 1200, 1100);
    let (egress, ingress, _) = f.finish();
    assert!(egress[0].gap_before && ingress[0].gap_before && !ingress[1].gap_before);
}

#[test]
fn a_lost_event_cuts_both_directions() {
    let mut f = Feed::accepted();
    f.ready(10, 1100, 1000);
    f.send(12, 1, 10, b"");
    f.lose(2);
    f.ready(20, 1200, 1100);
    f.tick(21);
    assert_eq!(f.sink.messages, [], "it may only be late");
    f.tick(22);
    f.tick(23);
    f.send(30, 11, 10, b"");
    let (egress, ingress, all) = f.finish();
    assert_eq!(ingress.iter().map(|m| m.gap_before).collect::<Vec<_>>(), [false, true]);
    assert_eq!(egress.iter().map(|m| m.gap_before).collect::<Vec<_>>(), [false, true]);
    assert_eq!(all.sockets.last().expect("a socket").lost_events, 2);
}

#[test]
fn events_out_of_order_are_put_right() {
    let mut f = Feed::accepted();
    let kind = |seq| RawKind::Send { seq: SeqNo(seq), len: 10, prefix: b"" };
    f.raw(2, 20, kind(20));
    f.tick(25);
    f.raw(1, 10, kind(10));
    f.raw(3, 30, kind(30));
    f.raw(1, 10, kind(10));
    f.tick(35);
    assert_eq!(f.assembler.stats().late_events, 1);
    let (egress, _, all) = f.finish();
    assert_eq!(instants(&egress[0].sends), [(10, 10), (20, 20), (30, 30)]);
    assert_eq!(all.sockets.last().expect("a socket").lost_events, 0);
}

#[test]
fn heads_cut_within_a_turn() {
    let mut f = Feed::accepted();
    f.send(10, 0, 30, b"GET /a HTTP/1.1\r\n");
    f.send(11, 30, 30, b"GET /b?c HTTP/1.1\r\n");
    f.send(12, 60, 30, b"HTTP/1.1 200 OK\r\n");
    let (egress, ..) = f.finish();
    assert_eq!(egress.iter().map(range).collect::<Vec<_>>(), [(0, 30), (30, 90)], "a body may look like a response");
    assert_eq!(egress[1].content, Content::Http1Request { method: "GET".into(), path: "/b".into() });

    let mut f = Feed::accepted();
    f.ready(1, 10, 0);
    f.send(10, 0, 30, b"HTTP/1.1 100 Continue\r\n\r\n");
    f.send(11, 30, 30, b"HTTP/1.1 200 OK\r\n\r\n");
    let (egress, ..) = f.finish();
    assert_eq!(egress[1].content, Content::Http1Response { status: 200 });

    let mut f = Feed::accepted();
    f.send(10, 0, 30, &[22, 3, 1, 0, 25]);
    f.send(11, 30, 30, &[20, 3, 3, 0, 1, 1]);
    f.send(12, 60, 30, &[23, 3, 3, 0, 25]);
    f.send(13, 90, 30, &[23, 3, 3, 0, 25]);
    let (egress, ..) = f.finish();
    assert_eq!(egress.iter().map(range).collect::<Vec<_>>(), [(0, 60), (60, 120)]);
    assert_eq!(egress[1].content, Content::TlsApplicationData);
}

#[test]
fn old_messages_are_emitted_and_their_reads_follow() {
    const S: u64 = 1_000_000_000;
    let mut f = Feed::accepted();
    f.ready(S, S as u32 + 100, S as u32);
    f.send(S, 1, 10, b"");
    f.tick(3 * S);
    assert_eq!(f.sink.messages.len(), 2);
    f.recv(4 * S, S as u32 + 40, 40);
    f.recv(4 * S + 1, S as u32 + 100, 60);
    f.send(4 * S + 2, 11, 10, b"");
    let (egress, ingress, _) = f.finish();
    assert_eq!((instants(&ingress[0].readies).len(), instants(&ingress[0].recvs).len()), (1, 0));
    assert_eq!(ingress[1].seq, ingress[0].seq);
    assert_eq!(ingress[1].recvs.len(), 2);
    assert!(!ingress[1].gap_before && !egress[1].gap_before);
}

#[test]
fn late_reads_reach_the_message_that_waits_for_them() {
    let mut f = Feed::accepted();
    f.ready(10, 100, 0);
    f.send(11, 1, 10, b"");
    f.ready(12, 250, 0);
    f.recv(13, 250, 250);
    let (_, ingress, _) = f.finish();
    assert_eq!(ingress.iter().map(range).collect::<Vec<_>>(), [(0, 100), (100, 250)]);
    assert_eq!(instants(&ingress[0].recvs), [(100, 13)]);
    assert_eq!(instants(&ingress[1].recvs), [(250, 13)]);
}

#[test]
fn long_lists_keep_their_ends() {
    let mut f = Feed::accepted();
    for i in 0..100 {
        f.send(10 + u64::from(i), i * 10, 10, b"");
    }
    let (egress, ..) = f.finish();
    let sends = instants(&egress[0].sends);
    assert_eq!((sends.len(), sends[0], sends[14], sends[15]), (16, (0, 10), (140, 24), (990, 109)));
    assert_eq!((egress[0].elided, egress[0].seq), (84, SeqRange::of(SeqNo(0), 1000)));
}

#[test]
fn a_pause_in_a_long_list_keeps_both_its_ends() {
    let mut f = Feed::accepted();
    let pause = |i: u64| if i >= 50 { 5_000_000 } else { 0 };
    for i in 0..100u64 {
        f.send(10 + i + pause(i), i as u32 * 10, 10, b"");
    }
    let (egress, ..) = f.finish();
    let sends = instants(&egress[0].sends);
    assert_eq!(&sends[14..], [(140, 24), (490, 59), (500, 5_000_060), (990, 5_000_109)]);
    assert_eq!(egress[0].elided, 82);
}

#[test]
fn closed_sockets_are_read_for_a_while_and_then_forgotten() {
    const S: u64 = 1_000_000_000;
    let mut f = Feed::accepted();
    f.ready(S, 100, 0);
    f.event(S + 1, RawKind::State { old: TcpState::FinWait2, new: TcpState::Close, write_seq: SeqNo(0) });
    f.tick(S + 2);
    f.recv(S + 3, 100, 100);
    f.tick(2 * S);
    assert_eq!(f.assembler.open_sockets(), 1);
    f.tick(4 * S);
    assert_eq!(f.assembler.open_sockets(), 0);
    let socket = f.sink.sockets.last().expect("a socket").clone();
    assert_eq!((socket.closed, socket.last_seen), (Some(MonotonicNs(S + 1)), MonotonicNs(S + 3)));
    let (_, ingress, _) = f.finish();
    assert_eq!((ingress.len(), ingress[0].recvs.len()), (1, 1));
}

#[test]
fn a_socket_that_was_never_announced_is_counted() {
    let mut assembler = Assembler::new(Limits::default());
    let mut sink = Collected::default();
    let kind = RawKind::Send { seq: SeqNo(1), len: 1, prefix: b"" };
    let event = RawEvent {
        socket: COOKIE,
        counter: 0,
        at: MonotonicNs(1),
        tgid: Tgid(1),
        srtt: None,
        extra: Extra::default(),
        kind,
    };
    assembler.push(&event, &mut sink);
    assembler.finish(&mut sink);
    assert_eq!((sink.messages.len(), sink.sockets.len(), assembler.stats().unidentified_sockets), (1, 0, 1));
}

#[test]
fn a_socket_keeps_what_it_said_of_tls() {
    // ClientHello with the name "b" alone: record, handshake, version, random, no session, one cipher, no compression.
    let mut hello = b"\x16\x03\x01\x00\x3b\x01\x00\x00\x37\x03\x03".to_vec();
    hello.extend([5; 32]);
    hello.extend(b"\x00\x00\x02\x13\x01\x01\x00\x00\x0c\x00\x00\x00\x08\x00\x06\x00\x00\x03b.c");
    let mut feed = Feed::attached();
    feed.send(10, 0, hello.len() as u32, &hello);
    feed.ready(20, 100, 0);
    feed.send(30, hello.len() as u32, 40, b"\x17\x03\x03\x00\x23rest");
    let (sent, _, sink) = feed.finish();
    assert_eq!(
        sent.iter().map(|m| m.content.clone()).collect::<Vec<_>>(),
        [Content::TlsHandshake, Content::TlsApplicationData]
    );
    let tls = sink.sockets[0].tls.as_ref().expect("TLS");
    assert_eq!((tls.sni.as_deref(), tls.offered), (Some("b.c"), Some(meshdiff_model::TlsVersion::Tls12)));

    // A body that looks like a record makes no connection encrypted.
    let mut feed = Feed::attached();
    feed.send(10, 0, 60, b"POST / HTTP/1.1\r\n\r\n");
    feed.ready(20, 100, 0);
    feed.send(30, 60, 40, b"\x17\x03\x03\x00\x23rest");
    assert_eq!(feed.finish().2.sockets[0].tls, None);
}

/// A socket that was refused, and what it is told of by the end of it.
fn refused() -> Feed {
    let mut f = Feed::attached();
    f.event(10, RawKind::State { old: TcpState::Close, new: TcpState::SynSent, write_seq: SeqNo(0) });
    let (counter, kind) =
        (f.counter, RawKind::State { old: TcpState::SynSent, new: TcpState::Close, write_seq: SeqNo(500) });
    f.counter += 1;
    let extra = Extra { error: Some(meshdiff_model::Errno(111)), ..Extra::default() };
    let event = RawEvent { socket: COOKIE, counter, at: MonotonicNs(20), tgid: Tgid(9), srtt: None, extra, kind };
    f.assembler.push(&event, &mut f.sink);
    f
}

fn connect_again(f: &mut Feed, at: u64, told_early: bool) {
    let addr = |s: &str| s.parse().expect("an address");
    let identity = crate::Identity {
        netns: NetnsId(5),
        local: LocalAddr(addr("10.0.0.1:81")),
        remote: PeerAddr(addr("10.0.0.3:4001")),
    };
    if told_early {
        f.raw(0, at + 5, RawKind::Announce(identity));
    }
    f.event(at, RawKind::State { old: TcpState::Close, new: TcpState::SynSent, write_seq: SeqNo(0) });
    if !told_early {
        f.raw(0, at + 5, RawKind::Announce(identity));
    }
    f.event(at + 6, RawKind::State { old: TcpState::SynSent, new: TcpState::Established, write_seq: SeqNo(70_000) });
    f.send(at + 10, 70_000, 40, b"GET /again HTTP/1.1\r\n\r\n");
    f.ready(at + 20, 3_000_100, 3_000_000);
    f.recv(at + 25, 3_000_100, 100);
}

#[test]
fn a_socket_that_connects_again_begins_anew() {
    for told_early in [false, true] {
        let mut f = refused();
        connect_again(&mut f, 30, told_early);
        let (egress, ingress, all) = f.finish();
        let socket = all.sockets.last().expect("a socket");
        assert_eq!(socket.local.to_string(), "10.0.0.1:81");
        assert_eq!((socket.connect_error, socket.closed, socket.close), (None, None, None));
        assert_eq!((socket.connect_start, socket.established), (Some(MonotonicNs(30)), Some(MonotonicNs(36))));
        assert_eq!(socket.handshake.map(|d| d.0), Some(6));
        assert_eq!((range(&egress[0]), range(&ingress[0])), ((70_000, 70_040), (3_000_000, 3_000_100)));
        assert!(all.messages.len() == 2 && all.messages.iter().all(|m| !m.gap_before), "{:?}", all.messages);
    }
}

#[test]
fn a_socket_that_connects_again_after_it_was_forgotten_has_lost_nothing() {
    let mut f = refused();
    let later = Limits::default().linger.0.unsigned_abs() * 2;
    f.tick(later);
    assert_eq!(f.sink.sockets.last().and_then(|s| s.connect_error), Some(meshdiff_model::Errno(111)));
    connect_again(&mut f, later + 10, false);
    let (_, _, all) = f.finish();
    let socket = all.sockets.last().expect("a socket");
    assert_eq!((socket.lost_events, socket.connect_error), (0, None));
    assert!(all.messages.len() == 2 && all.messages.iter().all(|m| !m.gap_before), "{:?}", all.messages);
}

#[test]
fn a_socket_that_the_kernel_has_no_more_is_forgotten_but_not_closed() {
    const S: u64 = 1_000_000_000;
    let identity = crate::Identity {
        netns: NetnsId(5),
        local: LocalAddr("10.0.0.1:80".parse().expect("an address")),
        remote: PeerAddr("10.0.0.2:4000".parse().expect("an address")),
    };
    let open = |socket, identity| crate::OpenSocket {
        socket,
        identity,
        state: TcpState::Established,
        role: meshdiff_model::SocketRole::Accepted,
        inode: 1,
    };
    let other = crate::Identity { remote: PeerAddr("10.0.0.2:4001".parse().expect("an address")), ..identity };
    let lists = |netns: u32, list: &[crate::OpenSocket]| BTreeMap::from([(NetnsId(netns), list.to_vec())]);
    let missing = lists(5, &[open(SocketCookie(78), other)]);

    let mut f = Feed::attached();
    f.send(S, 1, 10, b"");
    let mut held_after = |lists: &BTreeMap<_, _>, asked: u64| {
        f.assembler.still_open(lists, MonotonicNs(asked * S));
        f.assembler.tick(MonotonicNs((asked + 3) * S), &mut f.sink);
        f.assembler.open_sockets()
    };
    assert_eq!(held_after(&missing, 30), 1, "one list is not enough");
    assert_eq!(held_after(&lists(5, &[open(COOKIE, identity)]), 60), 1);
    assert_eq!(held_after(&missing, 90), 1, "it was there in between");
    // The probes may have cookies of their own.
    assert_eq!(held_after(&lists(5, &[open(SocketCookie(79), identity)]), 120), 1);
    assert_eq!(held_after(&lists(6, &[]), 150), 1, "of its namespace nothing is said");
    assert_eq!(held_after(&missing, 180), 1);
    f.send(181 * S, 11, 10, b"");
    let mut held_after = |lists: &BTreeMap<_, _>, asked: u64| {
        f.assembler.tick(MonotonicNs(asked * S), &mut f.sink);
        f.assembler.still_open(lists, MonotonicNs(asked * S));
        f.assembler.tick(MonotonicNs((asked + 3) * S), &mut f.sink);
        (f.assembler.open_sockets(), f.assembler.stats().vanished_sockets)
    };
    assert_eq!(held_after(&missing, 210), (1, 0), "it has spoken since the last one");
    assert_eq!(held_after(&missing, 240), (0, 1));
    let last = f.sink.sockets.last().expect("a socket");
    assert_eq!((last.closed, last.close, last.last_seen), (None, None, MonotonicNs(181 * S)));
    assert_eq!(f.sink.messages.len(), 2);
}
