//! One connection of HTTP/2 for many requests at once, on all three ways: between the applications and their sidecars frames are
//! followed, between the sidecars nothing but the logs tells. Whatever is lost, no log entry may be put on another's stream.

use super::check::Nobody;
use meshdiff_graph::{HopInput, MeshGraph};
use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, Content, Crossing, Direction, DownstreamDirectRemoteAddr,
    DownstreamLocalAddr, DurationNs, Flow, HopProtocol, HopSide, HopTimings, Http2Data, Http2Fields, Http2Gap,
    Http2Stream, Instants, JoinOutcome, LocalAddr, Message, MonotonicNs, NetnsId, NodeId, PeerAddr, RequestId,
    SeqInstant, SeqNo, SeqRange, Side, Socket, SocketCookie, UpstreamLocalAddr, UpstreamRemoteAddr, WallTime,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const US: u64 = 1_000;
const WALL: i64 = 1_790_000_000_000_000_000;
const BEGIN: u64 = 1_000_000_000;

#[derive(Clone, Debug)]
struct Config {
    seed: u64,
    requests: usize,
    /// Mean time between requests, in µs: less than a request takes.
    pace: u64,
    /// The server's application knows requests by their id.
    ids: bool,
    shared_ids: bool,
    /// Entries lost, of 100.
    log_loss: u32,
    /// A part of the requests whose frames are lost on S1, in percent of time.
    gap: Option<(u64, u64)>,
    /// All requests look the same.
    alike: bool,
}

/// One direction of one connection: what is sent when, and who reads when.
struct Way {
    isn: u32,
    latency: u64,
    /// The reader looks this often.
    grid: u64,
    /// When, which request, what: 0 is the header block, 1 the rest.
    sends: Vec<(u64, usize, u8, u32)>,
}

impl Way {
    fn ready(&self, sent: u64) -> u64 {
        sent + self.latency
    }
    fn read(&self, sent: u64) -> u64 {
        self.ready(sent).div_ceil(self.grid) * self.grid + 3 * US
    }
    fn crossing(&self, head: u64, last: u64) -> [u64; 6] {
        [head, self.ready(head), self.read(head), last, self.ready(last), self.read(last)]
    }

    /// What the two sockets' probes and assembly tell of it.
    fn told(&mut self, from: u64, to: u64, fields: impl Fn(usize) -> Http2Fields) -> (Vec<Message>, Vec<Http2Stream>) {
        self.sends.sort_by_key(|s| (s.0, s.1, s.2));
        let mut at = self.isn;
        let mut rows: Vec<Option<Http2Stream>> = Vec::new();
        let (mut sends, mut readies, mut recvs): (Instants, Instants, Instants) = Default::default();
        for &(when, n, part, len) in &self.sends {
            let (start, end) = (SeqNo(at), SeqNo(at.wrapping_add(len)));
            at = end.0;
            let instant = |seq, at| SeqInstant { seq, at: MonotonicNs(at) };
            if sends.last().is_none_or(|s| s.at.0 != when) {
                sends.push(instant(start, when));
            }
            for (list, at) in [(&mut readies, self.ready(when)), (&mut recvs, self.read(when))] {
                match list.last_mut() {
                    Some(last) if last.at.0 == at => last.seq = end,
                    _ => list.push(instant(end, at)),
                }
            }
            rows.resize(rows.len().max(n + 1), None);
            let row = rows[n].get_or_insert_with(|| Http2Stream {
                socket: SocketCookie(from),
                stream: n as u32 * 2 + 1,
                first: instant(start, when),
                last: instant(end, when),
                head: Some(SeqRange { start, end }),
                end: None,
                frames: 0,
                data_bytes: 0,
                data: vec![],
                interim: 0,
                reset: None,
                gap: None,
                from_the_beginning: false,
                fields: fields(n),
            });
            row.frames += 1;
            row.last = instant(end, when);
            if part == 1 {
                row.data_bytes += u64::from(len - 9);
                let seq = SeqRange { start, end };
                Http2Data::push(&mut row.data, seq, MonotonicNs(when), u64::from(len - 9));
            }
        }
        for row in rows.iter_mut().flatten() {
            row.end = Some(row.last.seq);
        }
        let seq = SeqRange { start: SeqNo(self.isn), end: SeqNo(at) };
        let message = |socket, direction| Message {
            socket: SocketCookie(socket),
            direction,
            seq,
            sends: Instants::new(),
            readies: Instants::new(),
            recvs: Instants::new(),
            held: Instants::new(),
            retransmits: Instants::new(),
            elided: 0,
            gap_before: false,
            content: Content::Unknown,
            head_end: None,
        };
        let egress = Message { sends, ..message(from, Direction::Egress) };
        let ingress = Message { readies, recvs, ..message(to, Direction::Ingress) };
        (vec![egress, ingress], rows.into_iter().flatten().collect())
    }
}

struct Truth {
    /// Request and response on S1/S2 and on S5/S6.
    crossings: [[u64; 6]; 4],
    start: u64,
}

struct World {
    sockets: Vec<Socket>,
    messages: Vec<Message>,
    streams: Vec<Http2Stream>,
    logs: Vec<HopSide>,
    truth: Vec<Truth>,
}

fn socket(cookie: u64, netns: u32, local: &str, remote: &str) -> Socket {
    Socket {
        cookie: SocketCookie(cookie),
        netns: NetnsId(netns),
        local: LocalAddr(local.parse().expect("an address")),
        remote: PeerAddr(remote.parse().expect("an address")),
        owner: None,
        connect_start: (cookie % 2 == 1).then_some(MonotonicNs(BEGIN - 1)),
        established: Some(MonotonicNs(BEGIN - 1)),
        closed: None,
        first_seen: MonotonicNs(BEGIN - 1),
        last_seen: MonotonicNs(u64::MAX / 4),
        srtt: None,
        lost_events: 0,
        role: None,
        handshake: None,
        connect_error: None,
        close: None,
        tls: None,
    }
}

fn world(config: &Config) -> World {
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut way =
        |grid: u64| Way { isn: rng.random(), latency: rng.random_range(5..20) * US, grid: grid * US, sends: vec![] };
    let mut ways = [way(20), way(35), way(15), way(25)];
    let mut rng = StdRng::seed_from_u64(config.seed ^ 1);
    let mut at = BEGIN;
    let (mut client_start, mut client_tx, mut server_start, mut server_tx) = (0, 0, 0, 0);
    let (mut truth, mut logs) = (Vec::new(), Vec::new());
    for n in 0..config.requests {
        // Some leave in one send call.
        if !rng.random_bool(0.3) {
            at += rng.random_range(1..config.pace * 2) * US;
        }
        let body = if config.alike || rng.random_bool(0.5) { 0 } else { rng.random_range(1..9_000) };
        let head = if config.alike { 60 } else { rng.random_range(30..300) };
        let last = if body > 0 { at + rng.random_range(1..90) * US } else { at };
        let send = |way: &mut Way, head_at: u64, last_at: u64, head: u32, body: u32| {
            way.sends.push((head_at, n, 0, head));
            if body > 0 {
                way.sends.push((last_at, n, 1, 9 + body));
            }
            way.crossing(head_at, if body > 0 { last_at } else { head_at })
        };
        let c0 = send(&mut ways[0], at, last, head, body);
        // Streams are made one after the other, as they are read.
        let start = c0[2].max(client_start + rng.random_range(300..9_000));
        client_start = start;
        let tx = (start + rng.random_range(3..40) * US).max(client_tx + 700);
        client_tx = tx;
        let begun = (tx + rng.random_range(90..200) * US).max(server_start + rng.random_range(300..9_000));
        server_start = begun;
        let tx2 = (begun + rng.random_range(3..40) * US).max(server_tx + 700);
        server_tx = tx2;
        let sent = tx2 + rng.random_range(1..15) * US;
        // Header blocks leave in the order in which they were encoded.
        let sent = sent.max(truth.last().map_or(0, |t: &Truth| t.crossings[2][0]));
        let c2 = send(&mut ways[2], sent, sent + rng.random_range(1..50) * US, head + 40, body);
        let answer = c2[5] + rng.random_range(30..2_000) * US;
        let (back_head, back_body) =
            if config.alike { (40, 0) } else { (rng.random_range(20..90), rng.random_range(0..3_000)) };
        let c3 = send(&mut ways[3], answer, answer + rng.random_range(1..400) * US, back_head, back_body);
        let rx2 = c3[2] + rng.random_range(1..5) * US;
        let down2 = rx2 + rng.random_range(1..5) * US;
        let rx = down2 + rng.random_range(80..300) * US;
        let down = rx + rng.random_range(1..5) * US;
        let relayed = down + rng.random_range(1..5) * US;
        let ends = relayed + (c3[3] - c3[0]);
        let c1 = send(&mut ways[1], relayed, ends, back_head, back_body);
        let entry = |side, start: u64, marks: [u64; 3], until: u64| {
            log(config, side, n, start, marks, until, (body, back_body))
        };
        if rng.random_range(0..100) >= config.log_loss {
            logs.push(entry(Side::Client, start, [tx, rx, down], c1[3] - US));
        }
        if rng.random_range(0..100) >= config.log_loss {
            logs.push(entry(Side::Server, begun, [tx2, rx2, down2], down2 + (c3[3] - c3[0])));
        }
        truth.push(Truth { crossings: [c0, c1, c2, c3], start });
    }
    finish(config, ways, truth, logs)
}

fn log(config: &Config, side: Side, n: usize, start: u64, marks: [u64; 3], until: u64, body: (u32, u32)) -> HopSide {
    let wall = WALL + start.cast_signed();
    let since = |at: u64| Some(DurationNs((at - start).cast_signed()));
    let address = |text: &str| text.parse().expect("an address");
    let client = side == Side::Client;
    let (down, to, up, on) = if client {
        ("10.0.0.2:40001", "10.96.0.1:9080", "10.0.0.2:40002", "10.0.0.3:9080")
    } else {
        ("10.0.0.2:40002", "10.0.0.3:9080", "127.0.0.6:40003", "10.0.0.3:9080")
    };
    let id = if config.shared_ids { n / 5 } else { n };
    HopSide {
        side: Some(side),
        timings: HopTimings {
            time_to_first_upstream_tx_byte: since(marks[0]),
            time_to_first_upstream_rx_byte: since(marks[1]),
            time_to_first_downstream_tx_byte: since(marks[2]),
            time_to_last_downstream_tx_byte: since(until.max(marks[2])),
            duration: since(until.max(marks[2])),
            ..HopTimings::default()
        },
        downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(address(down))),
        downstream_local_address: Some(DownstreamLocalAddr(address(to))),
        upstream_local_address: Some(UpstreamLocalAddr(address(up))),
        upstream_remote_address: Some(UpstreamRemoteAddr(address(on))),
        upstream_request_attempt_count: Some(1),
        request_id: Some(RequestId(format!("00000000-0000-4000-8000-{id:012}").into())),
        method: Some("POST".into()),
        path: Some(format!("/r{n}").into()),
        response_code: Some(200),
        request_body_bytes: u64::from(body.0),
        response_body_bytes: u64::from(body.1),
        downstream_tls: !client,
        ..HopSide::bare(
            NodeId(if client { "client".into() } else { "server".into() }),
            HopProtocol::Http2,
            AccessLogType::DownstreamEnd,
            WallTime(wall - wall.rem_euclid(1_000)),
        )
    }
}

fn finish(config: &Config, mut ways: [Way; 4], truth: Vec<Truth>, logs: Vec<HopSide>) -> World {
    let id = |n: usize| {
        let id = if config.shared_ids { n / 5 } else { n };
        config.ids.then(|| RequestId(format!("00000000-0000-4000-8000-{id:012}").into()))
    };
    let mut sockets = vec![
        socket(1, 1, "10.0.0.2:40001", "10.96.0.1:9080"),
        socket(2, 1, "127.0.0.1:15001", "10.0.0.2:40001"),
        socket(3, 1, "10.0.0.2:40002", "10.0.0.3:9080"),
        socket(4, 2, "10.0.0.3:15006", "10.0.0.2:40002"),
        socket(5, 2, "127.0.0.6:40003", "10.0.0.3:9080"),
        socket(6, 2, "10.0.0.3:9080", "127.0.0.6:40003"),
    ];
    let (mut messages, mut streams) = (Vec::new(), Vec::new());
    for (way, (from, to)) in ways.iter_mut().zip([(1, 2), (2, 1), (5, 6), (6, 5)]) {
        let request = from == 1 || from == 5;
        let (told, mut rows) = way.told(from, to, |n| Http2Fields {
            method: request.then(|| "POST".into()),
            status: (!request).then_some(200),
            request_id: if from == 5 { id(n) } else { None },
            ..Http2Fields::default()
        });
        messages.extend(told);
        let whole = |first: u64, last: u64, from_the_beginning, gap| Http2Stream {
            stream: 0,
            first: SeqInstant { seq: SeqNo(way.isn), at: MonotonicNs(first) },
            last: SeqInstant { seq: SeqNo(way.isn), at: MonotonicNs(last) },
            head: None,
            end: None,
            from_the_beginning,
            gap: Some(gap),
            data: vec![],
            fields: Http2Fields::default(),
            ..rows[0].clone()
        };
        let (first, last) = (way.sends[0].0, way.sends[way.sends.len() - 1].0);
        match config.gap.filter(|_| from == 1) {
            None => streams.push(whole(first, last, true, Http2Gap::StillOpen)),
            Some((a, b)) => {
                let part = |percent: u64| first + (last - first) * percent / 100;
                let (a, b) = (part(a.min(b)), part(a.max(b)));
                streams.push(whole(first, a, true, Http2Gap::EventsLost));
                streams.push(whole(b, last, false, Http2Gap::StillOpen));
                rows.retain(|r| r.first.at.0 <= a || r.first.at.0 > b);
                sockets[0].lost_events = 1;
            }
        }
        streams.extend(rows);
    }
    // What the sidecars say to each other: records, at any time.
    for (from, to, at) in [(3u64, 4u64, BEGIN + 1), (4, 3, BEGIN + 2)] {
        let mut way = Way { isn: 7, latency: 100, grid: US, sends: vec![(at, 0, 0, 500)] };
        let (mut told, _) = way.told(from, to, |_| Http2Fields::default());
        told[0].content = Content::TlsApplicationData;
        messages.extend(told);
    }
    World { sockets, messages, streams, logs, truth }
}

fn number(log: &HopSide) -> usize {
    log.path.as_deref().and_then(|p| p.strip_prefix("/r")?.parse().ok()).expect("a number")
}

fn exact(what: &str, n: usize, seen: &Crossing, truth: [u64; 6]) {
    let seen = [seen.send, seen.ready, seen.recv, seen.last_send, seen.last_ready, seen.last_recv];
    for (i, (seen, truth)) in seen.into_iter().zip(truth).enumerate() {
        assert!(seen.is_none_or(|s| s.0 == truth), "request {n}, {what}: instant {i} is {seen:?}, not {truth}");
    }
}

/// A flow never says what is not so, and where nothing was lost it says all. It knows a stream's bytes from those of others between them.
fn flow_is_true(what: &str, n: usize, flow: Option<&Flow>, truth: [u64; 6]) {
    let Some(flow) = flow else {
        assert_eq!(truth[0], truth[3], "request {n}, {what}: a body that came later has a flow");
        return;
    };
    let head = flow.head.expect("a header block");
    for (stage, progress) in [&flow.sent, &flow.ready, &flow.read].into_iter().enumerate() {
        let (first, last) = (truth[stage], truth[stage + 3]);
        let so_far = |at: u64| {
            if at >= last {
                flow.bytes
            } else if at >= first {
                head
            } else {
                0
            }
        };
        for at in [first - 1, first, last - 1, last].map(|at| (at, so_far(at))) {
            let (low, high) = progress.at(MonotonicNs(at.0));
            assert!(
                low == at.1 && high == at.1,
                "request {n}, {what}: {at:?} but {low} to {high} of {flow:?}, {truth:?}"
            );
        }
    }
}

/// How many there are, and how many are full.
fn judge(world: &World, config: &Config) -> (usize, usize) {
    let last = world.truth.iter().map(|t| t.crossings[1][5]).max().unwrap_or(BEGIN);
    let clock = ClockAnchor::new(
        [0, BEGIN, last + 1_000_000_000]
            .map(|m| ClockSample { monotonic: MonotonicNs(m), wall: WallTime(WALL + m.cast_signed()) })
            .to_vec(),
    );
    let mesh = MeshGraph::build(
        HopInput {
            sockets: &world.sockets,
            messages: &world.messages,
            http2: &world.streams,
            access_logs: &world.logs,
            clock: &clock,
            window: (MonotonicNs(0), MonotonicNs(last + 50_000_000)),
        },
        &[],
        &Nobody,
    );
    let mut seen = vec![0; world.truth.len()];
    let mut full = 0;
    for hop in mesh.hops.iter().map(|h| &h.joined) {
        let logs: Vec<usize> = [&hop.client_log, &hop.server_log].into_iter().flatten().map(|l| number(l)).collect();
        assert!(logs.windows(2).all(|w| w[0] == w[1]), "two requests in one hop: {logs:?}");
        let Some(&n) = logs.first() else { continue };
        let truth = &world.truth[n].crossings;
        exact("request on S1/S2", n, &hop.request[0], truth[0]);
        exact("response on S1/S2", n, &hop.response[0], truth[1]);
        exact("request on S5/S6", n, &hop.request[2], truth[2]);
        exact("response on S5/S6", n, &hop.response[2], truth[3]);
        for (what, seen, flow, truth) in [
            ("request on S1/S2", &hop.request[0], &hop.flows.request[0], truth[0]),
            ("response on S1/S2", &hop.response[0], &hop.flows.response[0], truth[1]),
            ("request on S5/S6", &hop.request[2], &hop.flows.request[2], truth[2]),
            ("response on S5/S6", &hop.response[2], &hop.flows.response[2], truth[3]),
        ] {
            // Whose logs are lost, of them not all is found.
            if config.gap.is_none() && seen.last_recv.is_some() {
                flow_is_true(what, n, flow.as_deref(), truth);
            }
        }
        assert_eq!(hop.request[1], Crossing::default(), "nothing tells streams apart there");
        seen[n] += usize::from(hop.client_log.is_some());
        let halves = [hop.client_half, hop.server_half] == [JoinOutcome::Matched(()); 2];
        if !halves && std::env::var_os("TRUTH_VERBOSE").is_some() {
            println!("request {n}: {:?} {:?} {:#?} {truth:?}", hop.client_half, hop.server_half, hop.client_log);
        }
        full += usize::from(halves && hop.network_by_log && hop.response[0].last_recv.is_some());
    }
    assert!(config.log_loss > 0 || seen.iter().all(|&n| n == 1), "each request is one hop: {seen:?}");
    (world.truth.len(), full)
}

fn config() -> impl Strategy<Value = Config> {
    let trouble = (
        prop_oneof![2 => Just(0u32), 1 => 1u32..40],
        prop_oneof![2 => Just(None), 1 => (0u64..100, 0u64..100).prop_map(Some)],
    );
    (any::<u64>(), 1usize..120, 1u64..300, any::<[bool; 3]>(), trouble).prop_map(
        |(seed, requests, pace, [ids, shared_ids, alike], (log_loss, gap))| Config {
            seed,
            requests,
            pace,
            ids,
            shared_ids,
            log_loss,
            gap,
            alike,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn never_another_stream_and_without_trouble_all_are_told(config in config()) {
        let world = world(&config);
        let (all, full) = judge(&world, &config);
        // Entries of one µs have no order, and equal ids at once on the way between the sidecars fit each other.
        let mut starts: Vec<u64> = world.truth.iter().map(|t| t.start / US).collect();
        starts.dedup();
        let untied = starts.len() == all;
        if config.log_loss == 0 && config.gap.is_none() && !config.shared_ids && config.ids && untied {
            prop_assert_eq!(full, all);
        }
    }
}

/// Requests at once with one id that look alike: nobody can tell whose server's half is whose, but each is one request all the same.
#[test]
fn what_cannot_be_told_apart_is_counted_once() {
    let (pace, log_loss, gap) = (1, 0, None);
    let config = Config { seed: 1, requests: 5, pace, ids: true, shared_ids: true, log_loss, gap, alike: true };
    let mut world = world(&config);
    world.logs.iter_mut().for_each(|log| log.path = Some("/r0".into()));
    let clock = ClockAnchor::new(vec![ClockSample { monotonic: MonotonicNs(0), wall: WallTime(WALL) }]);
    let window = (MonotonicNs(0), MonotonicNs(u64::MAX));
    let access_logs = &world.logs;
    let input = HopInput { sockets: &[], messages: &[], http2: &[], access_logs, clock: &clock, window };
    let mesh = MeshGraph::build(input, &[], &Nobody);
    let ambiguous = |hop: &&meshdiff_graph::Hop| matches!(hop.joined.server_half, JoinOutcome::Ambiguous(_));
    assert!(mesh.hops.iter().any(|hop| ambiguous(&hop)), "they are told apart: {:?}", mesh.hops);
    assert!(mesh.hops.iter().all(|hop| hop.joined.client_log.is_some()), "a server's half stands for itself");
    assert_eq!(mesh.hops.len(), 5);
}
