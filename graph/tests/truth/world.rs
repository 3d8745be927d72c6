//! A mesh that exists only in memory, and of which everything is true: one client pod, two server pods, sidecars with
//! pools between them. It says what probes and access logs would have recorded of it.

#[path = "world/recording.rs"]
mod recording;
#[path = "world/wire.rs"]
mod wire;

use meshdiff_model::{
    AccessLogType, ClockAnchor, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DurationNs, HopProtocol, HopSide,
    HopTimings, Http2Stream, Message, MonotonicNs, NodeId, RequestId, Side, Socket, UpstreamLocalAddr,
    UpstreamRemoteAddr, WallTime,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use recording::finish;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use wire::{Chunk, Conn, Seen, Sock};

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

impl Config {
    /// True if the client's sidecar logs every attempt (the router's `upstream_log`): in every second world.
    pub(crate) const fn logs_attempts(&self) -> bool {
        (self.seed >> 8).is_multiple_of(2)
    }
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
    /// The client's sidecar logs every attempt, and none of these entries was lost.
    pub(crate) attempts_logged: bool,
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
    /// How many parts a message has, of which `several` of 10,000 have more than one.
    fn parts(&mut self, several: u32) -> usize {
        match (self.pausing, self.chance(several)) {
            (true, _) => self.rng.random_range(2..40),
            (false, true) => self.rng.random_range(2..5),
            (false, false) => 1,
        }
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

    /// What the router says of an attempt that was made at `at` and ended at `ended`; `None` if it says nothing.
    fn router_log(
        &mut self,
        request: &HopSide,
        (at, ended): (u64, u64),
        [tx, rx]: [u64; 2],
        [local, remote]: [SocketAddr; 2],
        status: u16,
    ) {
        if !self.config.logs_attempts() {
            return;
        }
        let wall = at.cast_signed() + WALL;
        let since = |instant: u64| Some(DurationNs((instant - at).cast_signed()));
        let log = HopSide {
            access_log_type: AccessLogType::UpstreamEnd,
            start_time: WallTime(wall - wall.rem_euclid(1_000)),
            timings: HopTimings {
                time_to_first_upstream_tx_byte: since(tx),
                time_to_first_upstream_rx_byte: since(rx),
                duration: since(ended),
                ..HopTimings::default()
            },
            upstream_local_address: Some(UpstreamLocalAddr(local)),
            upstream_remote_address: Some(UpstreamRemoteAddr(remote)),
            upstream_request_attempt_count: None,
            response_code: Some(status),
            ..request.clone()
        };
        if !self.chance(self.config.log_loss) {
            self.logs.push((ended, log));
        }
    }

    fn log(&self, side: Side, server: usize, n: usize, start: u64) -> HopSide {
        let node = match side {
            Side::Client => "sidecar~10.0.0.2~client.default~x".to_owned(),
            Side::Server => format!("sidecar~10.0.0.{}~server.default~x", 3 + server),
        };
        let id = if self.config.shared_ids { n / 7 % 3 } else { n };
        let wall = start.cast_signed() + WALL;
        HopSide {
            side: Some(side),
            upstream_request_attempt_count: Some(1),
            request_id: Some(RequestId(format!("00000000-0000-4000-8000-{id:012}").into())),
            path: Some(format!("/r{n}").into()),
            ..HopSide::bare(
                NodeId(node.into()),
                HopProtocol::Http11,
                AccessLogType::DownstreamEnd,
                WallTime(wall - wall.rem_euclid(1_000)),
            )
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
                let (failed, _, at_s3, marks, ends) = self.attempt(n, server, at, &chunks, &seen, 503);
                self.router_log(&log, (at, at_s3[at_s3.len() - 1].recv), marks, ends, 503);
                at = at_s3[at_s3.len() - 1].recv + self.between(20 * US, 400 * US);
                attempts.push(failed);
                log.upstream_request_attempt_count = Some(2);
            }
            let status = if self.chance(500) { 404 } else { 200 };
            let (attempt, relayed, at_s3, [tx, rx], [upstream_local, upstream_remote]) =
                self.attempt(n, server, at, &chunks, &seen, status);
            attempts.push(attempt);
            self.router_log(
                &log,
                (at, at_s3[at_s3.len() - 1].recv),
                [tx, rx],
                [upstream_local, upstream_remote],
                status,
            );
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
