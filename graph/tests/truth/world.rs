//! A mesh that exists only in memory, and of which everything is true: one client pod, two server pods, sidecars with
//! pools between them. It says what probes and access logs would have recorded of it.

use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DurationNs, HopDetails,
    HopProtocol, HopSide, HopTimings, Http2Stream, LocalAddr, Message, MonotonicNs, NetnsId, NodeId, PeerAddr,
    RequestId, SeqNo, Side, Socket, SocketCookie, TcpState, Tgid, UpstreamLocalAddr, UpstreamRemoteAddr, WallTime,
};
use meshdiff_probes::{Assembler, Collected, Extra, Identity, Limits, RawEvent, RawKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

/// What kind of world it is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    /// Connections of the client application.
    pub(crate) clients: usize,
    pub(crate) requests: usize,
    /// Upstream connections that a sidecar may open to each server.
    pub(crate) pool: usize,
    /// Mutual TLS between the sidecars.
    pub(crate) tls: bool,
    /// Events lost, of 10,000.
    pub(crate) loss: u32,
    /// Access log entries lost, of 10,000.
    pub(crate) log_loss: u32,
    /// Source ports that there are: few are used again soon.
    pub(crate) ports: u16,
    /// Requests share few `x-request-id`s.
    pub(crate) shared_ids: bool,
    /// Requests that are retried, of 10,000.
    pub(crate) retries: u32,
    /// Requests with bodies in many parts, with pauses between them, and with readers that take their time; of 10,000.
    pub(crate) bodies: u32,
    /// The recording begins after this share of the requests, in percent, and ends after the other.
    pub(crate) window: (u32, u32),
}

/// When a message truly crossed a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrueCrossing {
    pub(crate) send: u64,
    pub(crate) ready: u64,
    pub(crate) recv: u64,
    pub(crate) last_send: u64,
    pub(crate) last_ready: u64,
    pub(crate) last_recv: u64,
}

/// One passage of a request over the network and the server's loopback.
#[derive(Clone, Debug)]
pub(crate) struct TrueAttempt {
    pub(crate) sockets: [u64; 4],
    pub(crate) request: [TrueCrossing; 2],
    pub(crate) response: [TrueCrossing; 2],
    /// Where request and response lie among the bytes of S5 and S6.
    pub(crate) bytes: [(u64, u64); 2],
    pub(crate) server_log_lost: bool,
    pub(crate) connected: Option<(u64, u64)>,
}

/// What is true of a request.
#[derive(Clone, Debug)]
pub(crate) struct TrueRequest {
    pub(crate) sockets: [u64; 2],
    pub(crate) request: TrueCrossing,
    pub(crate) response: TrueCrossing,
    /// Where request and response lie among the bytes of S1 and S2.
    pub(crate) bytes: [(u64, u64); 2],
    /// None for a local reply.
    pub(crate) attempts: Vec<TrueAttempt>,
    pub(crate) client_log_lost: bool,
}

/// A recording, and the truth about it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sockets: Vec<Socket>,
    pub(crate) messages: Vec<Message>,
    pub(crate) streams: Vec<Http2Stream>,
    pub(crate) logs: Vec<HopSide>,
    pub(crate) clock: ClockAnchor,
    pub(crate) window: (MonotonicNs, MonotonicNs),
    pub(crate) requests: Vec<TrueRequest>,
    /// Sockets of which an event was lost.
    pub(crate) lossy: HashSet<u64>,
    /// What every socket truly did, by its cookie.
    pub(crate) moved: BTreeMap<u64, Moved>,
}

/// How many bytes a socket had sent, could read and had read, from which instant on.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) sent: Vec<(u64, u64)>,
    pub(crate) arrived: Vec<(u64, u64)>,
    pub(crate) read: Vec<(u64, u64)>,
}

const US: u64 = 1_000;
/// Wall clock less monotonic clock.
const WALL: i64 = 1_790_000_000_000_123_456;
const CLIENT_IP: [u8; 4] = [10, 0, 0, 2];

#[derive(Clone, Debug)]
enum Raw {
    Send { len: u32, prefix: Vec<u8> },
    Arrive { len: u32 },
    Read,
    State(TcpState, TcpState),
}

struct Sock {
    netns: u32,
    local: SocketAddr,
    remote: SocketAddr,
    isn: u32,
    peer_isn: u32,
    events: Vec<(u64, Raw)>,
}

#[derive(Clone, Copy, Default)]
struct Way {
    last_arrival: u64,
    last_read: u64,
    bytes: u64,
}

struct Conn {
    /// Index of the client's socket; the server's is the next.
    socks: usize,
    /// There, and back.
    ways: [Way; 2],
    free_at: u64,
    closed_at: u64,
    port: u16,
    to: usize,
    latency: (u64, u64),
}

#[derive(Clone)]
struct Chunk {
    at: u64,
    len: u32,
    prefix: Vec<u8>,
    /// Bytes of the head at its beginning, where it can be read.
    head: u32,
}

#[derive(Clone, Copy)]
struct Seen {
    send: u64,
    head_ready: u64,
    head_recv: u64,
    ready: u64,
    recv: u64,
}

struct Builder {
    config: Config,
    rng: StdRng,
    socks: Vec<Sock>,
    conns: Vec<Conn>,
    /// Upstream pools of the client's sidecar, by server.
    outbound: [Vec<usize>; 2],
    inbound: [Vec<usize>; 2],
    logs: Vec<(u64, HopSide)>,
    requests: Vec<TrueRequest>,
    /// The request that is made now has bodies with pauses; its server's and its client's application read slowly.
    pausing: bool,
    slow: [bool; 2],
}

fn crossing(seen: &[Seen]) -> TrueCrossing {
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    TrueCrossing {
        send: first.send,
        ready: first.head_ready,
        recv: first.head_recv,
        last_send: last.send,
        last_ready: last.ready,
        last_recv: last.recv,
    }
}

/// Bytes after the head.
fn body(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|c| u64::from(c.len)).sum::<u64>() - u64::from(chunks[0].head)
}

fn server_ip(i: usize) -> [u8; 4] {
    [10, 0, 0, 3 + i as u8]
}

fn vip(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1 + i as u8], 9080))
}

impl Builder {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.rng.random_range(low..=high)
    }

    fn chance(&mut self, of_10000: u32) -> bool {
        self.rng.random_range(0..10_000) < of_10000
    }

    /// A short delay, now and then a long one.
    fn delay(&mut self, low: u64, high: u64) -> u64 {
        if self.chance(200) { self.between(high, 40 * high) } else { self.between(low, high) }
    }

    /// A source port that none of the connections which `rivals` picks has at `now`.
    fn port(&mut self, now: u64, rivals: impl Fn(&Sock, &Sock) -> bool) -> u16 {
        let taken: Vec<u16> = self
            .conns
            .iter()
            .filter(|c| c.closed_at.saturating_add(300 * US) > now)
            .filter(|c| rivals(&self.socks[c.socks], &self.socks[c.socks + 1]))
            .map(|c| c.port)
            .collect();
        loop {
            let port = 40_000 + self.rng.random_range(0..self.config.ports);
            if !taken.contains(&port) {
                return port;
            }
        }
    }

    /// Opens a connection at `at`; it is established from the returned instant on.
    fn open(
        &mut self,
        at: u64,
        ends: [(u32, SocketAddr, SocketAddr); 2],
        to: usize,
        latency: (u64, u64),
    ) -> (usize, u64) {
        let (there, back) = (self.rng.random(), self.rng.random());
        // Some begin near the wrap.
        let there: u32 = if self.chance(2_000) { u32::MAX - self.rng.random_range(0..3_000) } else { there };
        let socks = self.socks.len();
        let accepted = at + self.between(latency.0, latency.1) * 2;
        let established = accepted - self.between(1, latency.0);
        for ((netns, local, remote), (isn, peer_isn)) in ends.into_iter().zip([(there, back), (back, there)]) {
            self.socks.push(Sock { netns, local, remote, isn, peer_isn, events: Vec::new() });
        }
        self.socks[socks].events.push((at, Raw::State(TcpState::Close, TcpState::SynSent)));
        self.socks[socks].events.push((established, Raw::State(TcpState::SynSent, TcpState::Established)));
        self.socks[socks + 1].events.push((accepted, Raw::State(TcpState::SynRecv, TcpState::Established)));
        let port = ends[0].1.port();
        let ways = [Way::default(); 2];
        self.conns.push(Conn { socks, ways, free_at: 0, closed_at: u64::MAX, port, to, latency });
        (self.conns.len() - 1, accepted.max(established))
    }

    fn close(&mut self, conn: usize, at: u64) {
        let c = &mut self.conns[conn];
        c.closed_at = at + 30 * US;
        let socks = c.socks;
        self.socks[socks].events.push((at, Raw::State(TcpState::Established, TcpState::FinWait1)));
        self.socks[socks + 1].events.push((at + 10 * US, Raw::State(TcpState::Established, TcpState::CloseWait)));
        self.socks[socks + 1].events.push((at + 20 * US, Raw::State(TcpState::LastAck, TcpState::Close)));
        self.socks[socks].events.push((at + 30 * US, Raw::State(TcpState::FinWait2, TcpState::Close)));
    }

    /// Sends chunks over a connection, which the other end reads.
    fn cross(&mut self, conn: usize, back: bool, chunks: &[Chunk]) -> Vec<Seen> {
        let way = usize::from(back);
        let (from, to) = (self.conns[conn].socks + way, self.conns[conn].socks + 1 - way);
        let latency = self.conns[conn].latency;
        let Way { mut last_arrival, mut last_read, mut bytes } = self.conns[conn].ways[way];
        let at_application = self.socks[to].local.port() == 9080 || self.socks[to].remote == vip(self.conns[conn].to);
        let slow = at_application && self.slow[way];
        let mut seen = Vec::new();
        for chunk in chunks {
            bytes += u64::from(chunk.len);
            self.socks[from].events.push((chunk.at, Raw::Send { len: chunk.len, prefix: chunk.prefix.clone() }));
            let parts = if chunk.len > 100 && self.chance(1_500) {
                let first = self.rng.random_range(1..chunk.len);
                vec![first, chunk.len - first]
            } else {
                vec![chunk.len]
            };
            let mut arrived = 0;
            let (mut head, mut whole) = (None, (0, 0));
            for len in parts {
                let ready = (chunk.at + self.between(latency.0, latency.1)).max(last_arrival + 1);
                last_arrival = ready;
                arrived += len;
                self.socks[to].events.push((ready, Raw::Arrive { len }));
                if ready >= last_read {
                    last_read = ready + self.delay(4 * US, 40 * US);
                    if slow {
                        last_read += self.between(500 * US, 8_000 * US);
                    }
                    self.socks[to].events.push((last_read, Raw::Read));
                }
                whole = (ready, last_read);
                if arrived >= chunk.head.max(1) && (chunk.head > 0 || arrived == chunk.len) && head.is_none() {
                    head = Some(whole);
                }
            }
            let head = head.unwrap_or(whole);
            seen.push(Seen { send: chunk.at, head_ready: head.0, head_recv: head.1, ready: whole.0, recv: whole.1 });
        }
        self.conns[conn].ways[way] = Way { last_arrival, last_read, bytes };
        seen
    }

    /// The same chunks as a proxy sends them on, from `not_before`.
    fn forward(&mut self, chunks: &[Chunk], seen: &[Seen], not_before: u64, encrypted: bool) -> Vec<Chunk> {
        let mut at = not_before;
        let mut list = Vec::new();
        for (chunk, seen) in chunks.iter().zip(seen) {
            at = at.max(seen.recv + self.delay(10 * US, 60 * US)) + self.between(1_000, 4_000);
            let mut chunk = chunk.clone();
            chunk.at = at;
            if encrypted {
                chunk.len += 22;
                chunk.prefix = vec![23, 3, 3, 0x10, 0, 1, 2, 3];
                chunk.head = 0;
            }
            list.push(chunk);
        }
        list
    }

    /// How many parts a message has, of which `several` of 10,000 have more than one.
    fn parts(&mut self, several: u32) -> usize {
        match (self.pausing, self.chance(several)) {
            (true, _) => self.rng.random_range(2..40),
            (false, true) => self.rng.random_range(2..5),
            (false, false) => 1,
        }
    }

    /// Where a connection's next byte of a direction lies, twice.
    fn position(&self, conn: usize, way: usize) -> (u64, u64) {
        let bytes = self.conns[conn].ways[way].bytes;
        (bytes, bytes)
    }

    fn request_chunks(&mut self, n: usize, at: u64, parts: usize) -> Vec<Chunk> {
        let method = if parts > 1 { "POST" } else { "GET" };
        let head = format!("{method} /r{n} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();
        self.chunks(head, at, parts)
    }

    fn response_chunks(&mut self, status: u16, at: u64, parts: usize) -> Vec<Chunk> {
        let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-type: text/plain\r\n\r\n").into_bytes();
        self.chunks(head, at, parts)
    }

    fn chunks(&mut self, head: Vec<u8>, mut at: u64, parts: usize) -> Vec<Chunk> {
        let length = head.len() as u32;
        let body = if self.chance(5_000) { self.rng.random_range(1..2_000) } else { 0 };
        let mut list = vec![Chunk { at, len: length + body, prefix: head, head: length }];
        for _ in 1..parts {
            at += self.delay(3 * US, 200 * US);
            if self.pausing && self.chance(2_000) {
                at += self.between(1_000 * US, 20_000 * US);
            }
            // A body that looks like a response's head, and one like nothing.
            let prefix = if self.chance(500) { b"HTTP/1.1 200 OK\r\n\r\n".to_vec() } else { b"body".to_vec() };
            let len = self.rng.random_range(30..9_000);
            list.push(Chunk { at, len, prefix, head: 0 });
        }
        list
    }

    /// A connection of the pool that is idle at `at`, or a new one, or the first that will be: and from when it can be used.
    fn upstream(&mut self, server: usize, at: u64) -> (usize, u64, Option<(u64, u64)>) {
        let idle = self.outbound[server].iter().rev().copied().find(|&c| self.conns[c].free_at <= at);
        if let Some(conn) = idle {
            return (conn, at, None);
        }
        if self.outbound[server].len() >= self.config.pool {
            let pool = &self.outbound[server];
            let first = pool.iter().copied().min_by_key(|&c| self.conns[c].free_at).expect("a pool");
            let at = self.conns[first].free_at + self.between(2 * US, 20 * US);
            return (first, at, None);
        }
        let remote = SocketAddr::from((server_ip(server), 9080));
        let port = self.port(at, |client, _| client.remote == remote && client.netns == 1);
        let local = SocketAddr::from((CLIENT_IP, port));
        let accepts = SocketAddr::from((server_ip(server), 15_006));
        let ends = [(1, local, remote), (2 + server as u32, accepts, local)];
        let (conn, mut usable) = self.open(at, ends, server, (10 * US, 200 * US));
        if self.config.tls {
            let begun = usable + self.between(5 * US, 50 * US);
            usable = self.handshake(conn, begun);
        }
        self.outbound[server].push(conn);
        (conn, usable + self.between(1_000, 3_000), Some((at, usable)))
    }

    /// TLS 1.3 with a client's certificate. Returns when the client sent its last flight, after which it may send data.
    fn handshake(&mut self, conn: usize, at: u64) -> u64 {
        let record = |kind: u8, at, len| Chunk { at, len, prefix: vec![kind, 3, 3, 1, 0, 9, 9], head: 0 };
        let hello = self.cross(conn, false, &[record(22, at, 517)]);
        let at = hello[0].recv + self.between(100 * US, 400 * US);
        let flight = self.cross(conn, true, &[record(22, at, 2_100)]);
        let at = flight[0].recv + self.between(100 * US, 400 * US);
        let finished = self.cross(conn, false, &[record(20, at, 1_900)]);
        let tickets = finished[0].recv + self.between(10 * US, 60 * US);
        let more = self.between(500, 9_000);
        self.cross(conn, true, &[record(23, tickets, 600), record(23, tickets + more, 600)]);
        at
    }

    fn server_upstream(&mut self, server: usize, at: u64) -> (usize, u64) {
        let idle = self.inbound[server].iter().rev().copied().find(|&c| self.conns[c].free_at <= at);
        if let Some(conn) = idle {
            return (conn, at);
        }
        let app = SocketAddr::from((server_ip(server), 9080));
        let netns = 2 + server as u32;
        let port = self.port(at, |client, _| client.netns == netns && client.remote == app);
        let local = SocketAddr::from(([127, 0, 0, 6], port));
        let (conn, usable) = self.open(at, [(netns, local, app), (netns, app, local)], server, (3 * US, 12 * US));
        self.inbound[server].push(conn);
        (conn, usable + self.between(1_000, 5_000))
    }

    fn log(&self, side: Side, server: usize, n: usize, start: u64) -> HopSide {
        let node = match side {
            Side::Client => "sidecar~10.0.0.2~client.default~x".to_owned(),
            Side::Server => format!("sidecar~10.0.0.{}~server.default~x", 3 + server),
        };
        let id = if self.config.shared_ids { n / 7 % 3 } else { n };
        let wall = start.cast_signed() + WALL;
        HopSide {
            node: NodeId(node.into()),
            side: Some(side),
            protocol: HopProtocol::Http11,
            access_log_type: AccessLogType::DownstreamEnd,
            start_time: WallTime(wall - wall.rem_euclid(1_000)),
            timings: HopTimings::default(),
            downstream_direct_remote_address: None,
            downstream_remote_address: None,
            downstream_local_address: None,
            upstream_local_address: None,
            upstream_remote_address: None,
            upstream_cluster: None,
            route_name: None,
            upstream_request_attempt_count: Some(1),
            response_flags: vec![],
            request_id: Some(RequestId(format!("00000000-0000-4000-8000-{id:012}").into())),
            stream_id: None,
            method: None,
            authority: None,
            path: Some(format!("/r{n}").into()),
            response_code: None,
            response_code_details: None,
            request_body_bytes: 0,
            response_body_bytes: 0,
            tls_sni_hostname: None,
            downstream_tls: false,
            details: HopDetails::default(),
        }
    }

    /// One passage over the network to a server and back: what came back to the client's sidecar, and its log's upstream marks.
    fn attempt(
        &mut self,
        n: usize,
        server: usize,
        at: u64,
        request: &[Chunk],
        seen: &[Seen],
        status: u16,
    ) -> (TrueAttempt, Vec<Chunk>, Vec<Seen>, [u64; 2], [SocketAddr; 2]) {
        let (s3, usable, connected) = self.upstream(server, at);
        let tx = usable + self.between(500, 3_000);
        let after = tx + self.between(2 * US, 25 * US);
        let there = self.forward(request, seen, after, self.config.tls);
        let at_s4 = self.cross(s3, false, &there);
        let start = at_s4[0].head_recv + self.between(1_000, 9_000);
        let filters = start + self.delay(15 * US, 200 * US);
        let (s5, usable) = self.server_upstream(server, filters);
        let server_tx = usable + self.between(500, 3_000);
        let not_before = server_tx + self.between(2 * US, 20 * US);
        let inner = self.forward(request, &at_s4, not_before, false);
        let mut bytes = [self.position(s5, 0); 2];
        let at_s6 = self.cross(s5, false, &inner);
        bytes[0].1 = self.position(s5, 0).0;
        bytes[1] = self.position(s5, 1);
        let begun = at_s6[at_s6.len() - 1].recv + self.delay(20 * US, 700 * US);
        let parts = self.parts(3_000);
        let answer = self.response_chunks(status, begun, parts);
        let at_s5 = self.cross(s5, true, &answer);
        bytes[1].1 = self.position(s5, 1).0;
        let server_rx = at_s5[0].head_recv + self.between(1_000, 4_000);
        let back = self.forward(&answer, &at_s5, server_rx + 5 * US, self.config.tls);
        let at_s3 = self.cross(s3, true, &back);
        let rx = at_s3[0].head_recv + self.between(1_000, 4_000);
        let (s5_socks, s3_socks) = (self.conns[s5].socks, self.conns[s3].socks);
        self.conns[s5].free_at = at_s5[at_s5.len() - 1].recv + self.between(3 * US, 20 * US);
        self.conns[s3].free_at = at_s3[at_s3.len() - 1].recv + self.between(8 * US, 20 * US);
        let mut log = self.log(Side::Server, server, n, start);
        let since = |at: u64| Some(DurationNs((at - start).cast_signed()));
        let sent = back[0].at - US;
        let ended = back[back.len() - 1].at;
        log.timings.time_to_last_rx_byte = since(at_s4[at_s4.len() - 1].recv.max(start));
        log.timings.time_to_first_upstream_tx_byte = since(server_tx);
        log.timings.time_to_first_upstream_rx_byte = since(server_rx);
        log.timings.time_to_first_downstream_tx_byte = since(sent.max(server_rx));
        log.timings.time_to_last_downstream_tx_byte = since(ended);
        log.timings.duration = since(ended);
        log.downstream_direct_remote_address = Some(DownstreamDirectRemoteAddr(self.socks[s3_socks].local));
        log.downstream_local_address = Some(DownstreamLocalAddr(self.socks[s3_socks].remote));
        log.upstream_local_address = Some(UpstreamLocalAddr(self.socks[s5_socks].local));
        log.upstream_remote_address = Some(UpstreamRemoteAddr(self.socks[s5_socks].remote));
        log.response_code = Some(status);
        (log.request_body_bytes, log.response_body_bytes) = (body(request), body(&answer));
        let server_log_lost = self.chance(self.config.log_loss);
        if !server_log_lost {
            self.logs.push((ended, log));
        }
        let attempt = TrueAttempt {
            sockets: [s3_socks, s3_socks + 1, s5_socks, s5_socks + 1].map(|s| s as u64 + 1),
            request: [crossing(&at_s4), crossing(&at_s6)],
            response: [crossing(&at_s3), crossing(&at_s5)],
            bytes,
            server_log_lost,
            connected,
        };
        let addresses = [self.socks[s3_socks].local, self.socks[s3_socks].remote];
        for conn in [s3, s5] {
            if self.chance(400) {
                self.outbound[server].retain(|c| *c != conn);
                self.inbound[server].retain(|c| *c != conn);
                let at = self.conns[conn].free_at + 5 * US;
                self.close(conn, at);
            }
        }
        // What the client's sidecar relays is what the application said.
        let mut relayed = answer;
        for (chunk, sent) in relayed.iter_mut().zip(&back) {
            chunk.at = sent.at;
        }
        (attempt, relayed, at_s3, [tx, rx], addresses)
    }

    /// One request over an application's connection. Returns when its response was read.
    fn request(&mut self, s1: usize, at: u64) -> u64 {
        let n = self.requests.len();
        let server = self.conns[s1].to;
        self.pausing = self.config.bodies > 0 && self.chance(self.config.bodies);
        self.slow = [self.pausing && self.chance(5_000), self.pausing && self.chance(5_000)];
        let parts = self.parts(2_500);
        let mut bytes = [self.position(s1, 0); 2];
        let mut chunks = self.request_chunks(n, at, parts);
        let mut seen = self.cross(s1, false, &chunks[..1]);
        let start = seen[0].head_recv + self.between(500, 5_000);
        if parts > 1 && self.chance(3_000) {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
            let len = interim.len() as u32;
            let at = start + self.between(5 * US, 30 * US);
            let told = self.cross(s1, true, &[Chunk { at, len, prefix: interim, head: len }]);
            let shift = (told[0].recv + 10 * US).saturating_sub(chunks[1].at);
            chunks[1..].iter_mut().for_each(|c| c.at += shift);
        }
        seen.extend(self.cross(s1, false, &chunks[1..]));

        let mut log = self.log(Side::Client, server, n, start);
        let s1_socks = self.conns[s1].socks;
        log.downstream_direct_remote_address = Some(DownstreamDirectRemoteAddr(self.socks[s1_socks].local));
        log.downstream_local_address = Some(DownstreamLocalAddr(self.socks[s1_socks].remote));
        let since = |at: u64| Some(DurationNs((at - start).cast_signed()));
        let mut attempts = Vec::new();
        let local = self.chance(700);
        let (back, status) = if local {
            let status = 403;
            let at = seen[seen.len() - 1].recv.max(start) + self.between(25 * US, 100 * US);
            (self.response_chunks(status, at, 1), status)
        } else {
            let mut at = start + self.delay(10 * US, 150 * US);
            if self.chance(self.config.retries) {
                let (failed, _, at_s3, ..) = self.attempt(n, server, at, &chunks, &seen, 503);
                at = at_s3[at_s3.len() - 1].recv + self.between(20 * US, 400 * US);
                attempts.push(failed);
                log.upstream_request_attempt_count = Some(2);
            }
            let status = if self.chance(500) { 404 } else { 200 };
            let (attempt, relayed, at_s3, [tx, rx], [upstream_local, upstream_remote]) =
                self.attempt(n, server, at, &chunks, &seen, status);
            attempts.push(attempt);
            log.timings.time_to_first_upstream_tx_byte = since(tx);
            log.timings.time_to_first_upstream_rx_byte = since(rx);
            log.upstream_local_address = Some(UpstreamLocalAddr(upstream_local));
            log.upstream_remote_address = Some(UpstreamRemoteAddr(upstream_remote));
            (self.forward(&relayed, &at_s3, rx + 3 * US, false), status)
        };
        bytes[0].1 = self.position(s1, 0).0;
        bytes[1] = self.position(s1, 1);
        let answered = self.cross(s1, true, &back);
        bytes[1].1 = self.position(s1, 1).0;
        let ended = back[back.len() - 1].at;
        log.timings.time_to_first_downstream_tx_byte = since(back[0].at - US);
        log.timings.time_to_last_downstream_tx_byte = since(ended);
        log.timings.duration = since(ended);
        log.response_code = Some(status);
        (log.request_body_bytes, log.response_body_bytes) = (body(&chunks), body(&back));
        let client_log_lost = self.chance(self.config.log_loss);
        if !client_log_lost {
            self.logs.push((ended, log));
        }
        self.requests.push(TrueRequest {
            sockets: [s1_socks as u64 + 1, s1_socks as u64 + 2],
            request: crossing(&seen),
            response: crossing(&answered),
            bytes,
            attempts,
            client_log_lost,
        });
        answered[answered.len() - 1].recv
    }

    fn application_connection(&mut self, at: u64) -> (usize, u64) {
        let to = self.rng.random_range(0..2);
        let port = self.port(at, |_, server| server.local.port() == 15_001);
        let local = SocketAddr::from((CLIENT_IP, port));
        let accepts = SocketAddr::from(([127, 0, 0, 1], 15_001));
        self.open(at, [(1, local, vip(to)), (1, accepts, local)], to, (3 * US, 15 * US))
    }
}

/// Makes a world and records it.
pub(crate) fn record(config: &Config) -> World {
    let rng = StdRng::seed_from_u64(config.seed);
    let mut b = Builder {
        config: config.clone(),
        rng,
        socks: Vec::new(),
        conns: Vec::new(),
        outbound: [Vec::new(), Vec::new()],
        inbound: [Vec::new(), Vec::new()],
        logs: Vec::new(),
        requests: Vec::new(),
        pausing: false,
        slow: [false; 2],
    };
    let mut clients: Vec<(u64, Option<usize>)> =
        (0..config.clients).map(|i| (1_000_000_000 + i as u64, None)).collect();
    for _ in 0..config.requests {
        let next = (0..clients.len()).min_by_key(|&i| clients[i].0).expect("a client");
        let (at, conn) = clients[next];
        let (conn, at) = conn.map_or_else(
            || {
                let (conn, at) = b.application_connection(at);
                (conn, at + 5 * US)
            },
            |c| (c, at),
        );
        let end = b.request(conn, at);
        clients[next] = if b.chance(1_500) {
            b.close(conn, end + 5 * US);
            (end + b.delay(50 * US, 500 * US), None)
        } else {
            // Closed loops that turn at once, and ones that think.
            let think = if b.chance(5_000) { b.between(6 * US, 20 * US) } else { b.delay(20 * US, 2_000 * US) };
            (end + think, Some(conn))
        };
    }
    finish(b)
}

fn finish(mut b: Builder) -> World {
    let mut starts: Vec<u64> = b.requests.iter().map(|r| r.request.send).collect();
    starts.sort_unstable();
    let at = |percent: u32| starts[(starts.len() - 1) * percent as usize / 100];
    let from = if b.config.window.0 == 0 { 0 } else { at(b.config.window.0) };
    let latest = b.socks.iter().flat_map(|s| s.events.iter().map(|e| e.0)).max().unwrap_or(0);
    let to = if b.config.window.1 >= 100 { latest + 5_000_000 } else { at(b.config.window.1) };
    let mut lossy = HashSet::new();
    let mut moved: BTreeMap<u64, Moved> = BTreeMap::new();
    let mut delivered: Vec<Delivered> = Vec::new();
    let loss = b.config.loss;
    let mut rng = StdRng::seed_from_u64(b.config.seed ^ 0x5eed);
    for (i, sock) in b.socks.iter_mut().enumerate() {
        sock.events.sort_by_key(|e| e.0);
        let (mut written, mut arrived, mut read) = (sock.isn, sock.peer_isn, sock.peer_isn);
        let mut counter = 0;
        let mut told = false;
        let mut all = Moved::default();
        let mut sums = [0u64; 3];
        for (at, raw) in &sock.events {
            match raw {
                Raw::Send { len, .. } => {
                    sums[0] += u64::from(*len);
                    all.sent.push((*at, sums[0]));
                }
                Raw::Arrive { len } => {
                    sums[1] += u64::from(*len);
                    all.arrived.push((*at, sums[1]));
                }
                Raw::Read => {
                    sums[2] = sums[1];
                    all.read.push((*at, sums[2]));
                }
                Raw::State(..) => {}
            }
        }
        moved.insert(i as u64 + 1, all);
        for (at, raw) in &sock.events {
            let kind = match raw {
                Raw::Send { len, prefix } => {
                    let seq = SeqNo(written);
                    written = written.wrapping_add(*len);
                    Owned::Send { seq, len: *len, prefix: prefix.clone() }
                }
                Raw::Arrive { len } => {
                    arrived = arrived.wrapping_add(*len);
                    Owned::Ready { rcv_nxt: SeqNo(arrived), copied_seq: SeqNo(read) }
                }
                Raw::Read => {
                    let len = arrived.wrapping_sub(read);
                    read = arrived;
                    if len == 0 {
                        continue;
                    }
                    Owned::Recv { copied_seq: SeqNo(read), len }
                }
                Raw::State(old, new) => Owned::State { old: *old, new: *new, write_seq: SeqNo(written) },
            };
            if *at < from || *at > to {
                continue;
            }
            let cookie = SocketCookie(i as u64 + 1);
            let identity =
                Identity { netns: NetnsId(sock.netns), local: LocalAddr(sock.local), remote: PeerAddr(sock.remote) };
            let lost = rng.random_range(0..10_000) < loss;
            if lost {
                lossy.insert(cookie.0);
            } else {
                let announce = (!told).then_some(identity);
                told = true;
                delivered.push((*at, cookie, counter, Tgid(i as u32 % 7 + 1), kind, announce));
            }
            counter += 1;
        }
    }
    delivered.sort_by_key(|e| (e.0, e.1, e.2));
    let (sockets, messages, streams) = assemble(&delivered, to);
    let mut samples = Vec::new();
    for second in 0..=(to / 1_000_000_000 + 1) {
        let monotonic = second * 1_000_000_000;
        let noise = rng.random_range(-1_500..1_500);
        samples.push(ClockSample {
            monotonic: MonotonicNs(monotonic),
            wall: WallTime(monotonic.cast_signed() + WALL + noise),
        });
    }
    // Envoy flushes once a second: what ended less than that before the beginning still comes.
    let logs = b.logs.into_iter().filter(|(ended, _)| *ended + 1_000_000_000 > from).map(|(_, log)| log).collect();
    World {
        sockets,
        messages,
        streams,
        logs,
        clock: ClockAnchor::new(samples),
        window: (MonotonicNs(from), MonotonicNs(to)),
        requests: b.requests,
        lossy,
        moved,
    }
}

/// Instant, socket, counter, process, what happened, and who the socket is where that is announced.
type Delivered = (u64, SocketCookie, u32, Tgid, Owned, Option<Identity>);

/// A probe's record that owns its bytes.
enum Owned {
    Send { seq: SeqNo, len: u32, prefix: Vec<u8> },
    Ready { rcv_nxt: SeqNo, copied_seq: SeqNo },
    Recv { copied_seq: SeqNo, len: u32 },
    State { old: TcpState, new: TcpState, write_seq: SeqNo },
}

fn assemble(events: &[Delivered], end: u64) -> (Vec<Socket>, Vec<Message>, Vec<Http2Stream>) {
    let mut assembler = Assembler::new(Limits::default());
    let mut sink = Collected::default();
    let mut tick = 0;
    for (at, socket, counter, tgid, owned, announce) in events {
        while tick + 20_000_000 < *at {
            tick = if tick == 0 { *at } else { tick + 20_000_000 };
            assembler.tick(MonotonicNs(tick), &mut sink);
        }
        let event = |kind| RawEvent {
            socket: *socket,
            counter: *counter,
            at: MonotonicNs(*at),
            tgid: *tgid,
            srtt: None,
            extra: Extra::default(),
            kind,
        };
        if let Some(identity) = announce {
            assembler.push(&event(RawKind::Announce(*identity)), &mut sink);
        }
        let kind = match owned {
            Owned::Send { seq, len, prefix } => {
                RawKind::Send { seq: *seq, len: *len, prefix: &prefix[..prefix.len().min(512)] }
            }
            Owned::Ready { rcv_nxt, copied_seq } => {
                RawKind::Ready { rcv_nxt: *rcv_nxt, copied_seq: *copied_seq, fin: false }
            }
            Owned::Recv { copied_seq, len } => RawKind::Recv { copied_seq: *copied_seq, len: *len, fin: false },
            Owned::State { old, new, write_seq } => RawKind::State { old: *old, new: *new, write_seq: *write_seq },
        };
        assembler.push(&event(kind), &mut sink);
    }
    assembler.tick(MonotonicNs(end), &mut sink);
    assembler.finish(&mut sink);
    let mut sockets: BTreeMap<SocketCookie, Socket> = BTreeMap::new();
    for socket in sink.sockets {
        sockets.insert(socket.cookie, socket);
    }
    (sockets.into_values().collect(), sink.messages, sink.streams)
}
