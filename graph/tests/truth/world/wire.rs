//! Connections: who has which, and what crosses them when.

use super::{Builder, CLIENT_IP, US, server_ip, vip};
use meshdiff_model::TcpState;
use rand::Rng;
use std::net::SocketAddr;

#[derive(Clone, Debug)]
pub(super) enum Raw {
    Send { len: u32, prefix: Vec<u8> },
    Arrive { len: u32 },
    Read,
    State(TcpState, TcpState),
}

pub(super) struct Sock {
    pub(super) netns: u32,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) isn: u32,
    pub(super) peer_isn: u32,
    pub(super) events: Vec<(u64, Raw)>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Way {
    pub(super) last_arrival: u64,
    pub(super) last_read: u64,
    pub(super) bytes: u64,
}

pub(super) struct Conn {
    /// Index of the client's socket; the server's is the next.
    pub(super) socks: usize,
    /// There, and back.
    pub(super) ways: [Way; 2],
    pub(super) free_at: u64,
    pub(super) closed_at: u64,
    pub(super) port: u16,
    pub(super) to: usize,
    pub(super) latency: (u64, u64),
}

#[derive(Clone)]
pub(super) struct Chunk {
    pub(super) at: u64,
    pub(super) len: u32,
    pub(super) prefix: Vec<u8>,
    /// Bytes of the head at its beginning, where it can be read.
    pub(super) head: u32,
}

#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) send: u64,
    pub(super) head_ready: u64,
    pub(super) head_recv: u64,
    pub(super) ready: u64,
    pub(super) recv: u64,
}

impl Builder {
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.rng.random_range(low..=high)
    }

    pub(super) fn chance(&mut self, of_10000: u32) -> bool {
        self.rng.random_range(0..10_000) < of_10000
    }

    /// A short delay, now and then a long one.
    pub(super) fn delay(&mut self, low: u64, high: u64) -> u64 {
        if self.chance(200) { self.between(high, 40 * high) } else { self.between(low, high) }
    }

    /// A source port that none of the connections which `rivals` picks has at `now`.
    pub(super) fn port(&mut self, now: u64, rivals: impl Fn(&Sock, &Sock) -> bool) -> u16 {
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
    pub(super) fn open(
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

    pub(super) fn close(&mut self, conn: usize, at: u64) {
        let c = &mut self.conns[conn];
        c.closed_at = at + 30 * US;
        let socks = c.socks;
        self.socks[socks].events.push((at, Raw::State(TcpState::Established, TcpState::FinWait1)));
        self.socks[socks + 1].events.push((at + 10 * US, Raw::State(TcpState::Established, TcpState::CloseWait)));
        self.socks[socks + 1].events.push((at + 20 * US, Raw::State(TcpState::LastAck, TcpState::Close)));
        self.socks[socks].events.push((at + 30 * US, Raw::State(TcpState::FinWait2, TcpState::Close)));
    }

    /// Sends chunks over a connection, which the other end reads.
    pub(super) fn cross(&mut self, conn: usize, back: bool, chunks: &[Chunk]) -> Vec<Seen> {
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
    pub(super) fn forward(&mut self, chunks: &[Chunk], seen: &[Seen], not_before: u64, encrypted: bool) -> Vec<Chunk> {
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

    /// Where a connection's next byte of a direction lies, twice.
    pub(super) fn position(&self, conn: usize, way: usize) -> (u64, u64) {
        let bytes = self.conns[conn].ways[way].bytes;
        (bytes, bytes)
    }

    /// A connection of the pool that is idle at `at`, or a new one, or the first that will be: and from when it can be used.
    pub(super) fn upstream(&mut self, server: usize, at: u64) -> (usize, u64, Option<(u64, u64)>) {
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
    pub(super) fn handshake(&mut self, conn: usize, at: u64) -> u64 {
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

    pub(super) fn server_upstream(&mut self, server: usize, at: u64) -> (usize, u64) {
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
}
