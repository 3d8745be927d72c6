//! Applications that ask each other, through their sidecars.

use crate::wire::{Connection, Crossed, End, Wire, wall};
use meshdiff_capture::CaptureError;
use meshdiff_model::{
    AccessLogType, Content, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs,
    HopProtocol, HopSide, Http2Fields, NetnsId, NodeId, Process, ProcessRole, Proxy, ProxyKind, RequestId, Side, Tgid,
    UpstreamLocalAddr, UpstreamRemoteAddr, WallTime, uuid_text,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

const US: u64 = 1_000;
/// Pods that ask, pods that are asked, and pods that those ask: on the first node, the second, and the first.
const PODS: [u64; 3] = [20, 8, 4];
/// Requests under way at once from each asking pod.
const LANES: u64 = 4;
/// Each lane makes a request about so often, which makes 2,000 a second in all.
const EVERY: u64 = 50_000 * US;

/// A pod, by its tier and number.
type Pod = (usize, u64);

/// The three kinds of connections, and who they are between.
type Between = (u8, Pod, Pod, u64);

pub(crate) struct Mesh {
    wire: Wire,
    random: u64,
    idle: HashMap<Between, Vec<Connection>>,
    ports: HashMap<IpAddr, u16>,
    made: u64,
    wanted: u64,
    last: u64,
    texts: HashMap<String, Arc<str>>,
}

fn ip((tier, number): Pod) -> IpAddr {
    IpAddr::from([10, 77, tier as u8, 2 + number as u8])
}

fn name((tier, number): Pod) -> String {
    format!("{}-{number}", ["shop", "stock", "store"][tier])
}

fn netns((tier, number): Pod) -> u32 {
    4_026_532_000 + tier as u32 * 100 + number as u32
}

fn owner(pod: Pod, sidecar: bool) -> u32 {
    netns(pod) % 10_000 * 10 + u32::from(sidecar)
}

fn node_id(pod: Pod) -> String {
    format!("sidecar~{}~{}.default~default.svc.cluster.local", ip(pod), name(pod))
}

/// Pods of these numbers speak HTTP/2 with their sidecars.
const fn speaks_http2(client: Pod) -> bool {
    client.0 == 0 && client.1 < 2
}

impl Mesh {
    pub(crate) fn new(wire: Wire) -> Self {
        Self {
            wire,
            random: 0,
            idle: HashMap::new(),
            ports: HashMap::new(),
            made: 0,
            wanted: 0,
            last: 0,
            texts: HashMap::new(),
        }
    }

    pub(crate) fn drive(&mut self, requests: u64) -> Result<(), CaptureError> {
        self.wanted = requests;
        for (tier, pods) in PODS.into_iter().enumerate() {
            for pod in (0..pods).map(|number| (tier, number)) {
                self.introduce(pod)?;
            }
        }
        let lanes = PODS[0] * LANES;
        let mut next: BinaryHeap<Reverse<(u64, u64)>> =
            (0..lanes).map(|lane| Reverse((10_000 * US + lane * EVERY / lanes, lane))).collect();
        while let Some(Reverse((at, lane))) = next.pop()
            && self.made < self.wanted
        {
            self.wire.advance(at)?;
            let (client, server) = ((0, lane / LANES), (1, self.below(PODS[1])));
            let id = self.id();
            let end = self.call(client, server, lane, at, &id)?;
            let again = at.max(end) + self.span(EVERY - 5_000 * US);
            next.push(Reverse((again, lane)));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<u64, CaptureError> {
        let mut idle: Vec<_> = self.idle.into_iter().collect();
        idle.sort_by_key(|(between, _)| *between);
        for connection in idle.iter().flat_map(|(_, list)| list) {
            self.wire.close(connection, None)?;
        }
        self.wire.finish(self.last)
    }

    /// One request, with those that it causes. Returns when its client had the response.
    fn call(&mut self, client: Pod, server: Pod, lane: u64, at: u64, id: &Arc<str>) -> Result<u64, CaptureError> {
        self.made += 1;
        let http2 = speaks_http2(client);
        let caller = u64::from(http2);
        let (mut s1, ready) = self.connection((0, client, server, lane << 1 | caller), at)?;
        let path = self.text(format!("/{}/{}", name(server), lane % 7));
        let method = self.text("GET".to_owned());
        let body = 200 + self.below(4_000) as u32;
        let sizes = [310 + (lane % 40) as u32, 180 + body];
        let fields = [
            Http2Fields {
                method: Some(Arc::clone(&method)),
                path: Some(Arc::clone(&path)),
                request_id: Some(RequestId(Arc::clone(id))),
                ..Http2Fields::default()
            },
            Http2Fields { status: Some(200), ..Http2Fields::default() },
        ];
        let contents = [
            Content::Http1Request { method: Arc::clone(&method), path: Arc::clone(&path) },
            Content::Http1Response { status: 200 },
        ];
        let message = |way: usize| if http2 { (sizes[way], None) } else { (sizes[way], Some([sizes[0], 180][way])) };
        let content = |way: usize| if http2 { Content::Unknown } else { contents[way].clone() };
        // A frame's header more than HTTP/2 needs for its payload: the block takes the rest.
        let block = |way: usize| [sizes[0], 180 - 9][way];

        let asked = self.crossed(ready, 0, 9, 18);
        let seq = self.wire.cross(&mut s1, false, message(0), content(0), asked);
        if http2 {
            self.wire.frames(&s1, false, 2 * s1.uses + 1, (seq, block(0), 0), fields[0].clone(), asked);
        }
        let began = asked.read + 4 * US;
        let wanted = began + self.span(60 * US);
        let (mut s3, free) = self.connection((1, client, server, caller), wanted)?;
        let tx = free + US;
        let there = self.crossed(tx, 6, 45, 20);
        self.wire.cross(&mut s3, false, (sizes[0] + 22, None), Content::TlsApplicationData, there);
        let began_there = there.read + 5 * US;
        let wanted = began_there + self.span(50 * US);
        let (mut s5, free) = self.connection((2, server, server, caller), wanted)?;
        let tx_there = free + US;
        let inside = self.crossed(tx_there, 5, 8, 40);
        let seq = self.wire.cross(&mut s5, false, message(0), content(0), inside);
        if http2 {
            self.wire.frames(&s5, false, 2 * s5.uses + 1, (seq, block(0), 0), fields[0].clone(), inside);
        }

        let mut done = inside.read + self.span(900 * US);
        if server.0 == 1 && self.below(3) == 0 && self.made < self.wanted {
            let next = (2, self.below(PODS[2]));
            done = self.call(server, next, 0, done, id)? + self.span(200 * US);
        }

        let answered = self.crossed(done, 0, 8, 16);
        let seq = self.wire.cross(&mut s5, true, message(1), content(1), answered);
        if http2 {
            self.wire.frames(&s5, true, 2 * s5.uses + 1, (seq, block(1), body), fields[1].clone(), answered);
        }
        let rx_there = answered.read + 3 * US;
        let back = self.crossed(rx_there, 30, 45, 15);
        self.wire.cross(&mut s3, true, (sizes[1] + 22, None), Content::TlsApplicationData, back);
        let rx = back.read + 3 * US;
        let given = self.crossed(rx, 25, 9, 14);
        let seq = self.wire.cross(&mut s1, true, message(1), content(1), given);
        if http2 {
            self.wire.frames(&s1, true, 2 * s1.uses + 1, (seq, block(1), body), fields[1].clone(), given);
        }

        let marks = [began, asked.read, tx, rx, given.sent - US];
        let peers = [s1.client(), s1.destination(), s3.client(), s3.destination()];
        let log = self.entry(Side::Client, (client, server), http2, id, &path, marks, peers, body);
        self.wire.log(self.wire.node(client.0 % 2), given.sent, log);
        let marks = [began_there, there.read, tx_there, rx_there, back.sent - US];
        let peers = [s3.client(), s3.destination(), s5.client(), s5.destination()];
        let log = self.entry(Side::Server, (client, server), http2, id, &path, marks, peers, body);
        self.wire.log(self.wire.node(server.0 % 2), back.sent, log);

        for (connection, between, free) in [
            (s1, (0, client, server, lane << 1 | caller), given.read),
            (s3, (1, client, server, caller), rx),
            (s5, (2, server, server, caller), rx_there),
        ] {
            self.release(connection, between, free + 10 * US)?;
        }
        self.last = self.last.max(given.read);
        Ok(given.read)
    }

    #[expect(clippy::too_many_arguments, reason = "an entry is made of all that")]
    fn entry(
        &mut self,
        side: Side,
        (client, server): (Pod, Pod),
        http2: bool,
        id: &Arc<str>,
        path: &Arc<str>,
        [began, read, tx, rx, sent]: [u64; 5],
        [peer, local, own, host]: [SocketAddr; 4],
        body: u32,
    ) -> HopSide {
        let by_client = side == Side::Client;
        let cluster = if by_client {
            format!("outbound|9080||{}.default.svc.cluster.local", name(server))
        } else {
            "inbound|9080||".to_owned()
        };
        let node = self.text(node_id(if by_client { client } else { server }));
        let protocol = if http2 { HopProtocol::Http2 } else { HopProtocol::Http11 };
        let began_wall = wall(began).0;
        let start = WallTime(began_wall - began_wall.rem_euclid(1_000));
        let since = |at: u64| Some(DurationNs((at - began).cast_signed()));
        let mut log = HopSide::bare(NodeId(node), protocol, AccessLogType::DownstreamEnd, start);
        log.side = Some(side);
        log.timings.time_to_last_rx_byte = since(read.max(began));
        log.timings.time_to_first_upstream_tx_byte = since(tx);
        log.timings.time_to_last_upstream_tx_byte = since(tx + US);
        log.timings.time_to_first_upstream_rx_byte = since(rx);
        log.timings.time_to_last_upstream_rx_byte = since(rx + US);
        log.timings.time_to_first_downstream_tx_byte = since(sent);
        log.timings.time_to_last_downstream_tx_byte = since(sent);
        log.timings.duration = since(sent + US);
        log.downstream_direct_remote_address = Some(DownstreamDirectRemoteAddr(peer));
        log.downstream_remote_address = Some(DownstreamRemoteAddr(peer));
        log.downstream_local_address = Some(DownstreamLocalAddr(local));
        log.upstream_local_address = Some(UpstreamLocalAddr(own));
        log.upstream_remote_address = Some(UpstreamRemoteAddr(host));
        log.upstream_cluster = Some(self.text(cluster));
        log.route_name = Some(self.text("default".to_owned()));
        log.upstream_request_attempt_count = Some(1);
        log.request_id = Some(RequestId(Arc::clone(id)));
        log.stream_id = Some(self.id());
        log.method = Some(self.text("GET".to_owned()));
        log.authority = Some(self.text(format!("{}:9080", name(server))));
        log.path = Some(Arc::clone(path));
        log.response_code = Some(200);
        log.response_code_details = Some(self.text("via_upstream".to_owned()));
        log.response_body_bytes = body.into();
        log.downstream_tls = !by_client;
        log
    }

    /// An idle connection, or a new one; and from when on it can be used.
    fn connection(&mut self, between: Between, at: u64) -> Result<(Connection, u64), CaptureError> {
        let idle = self.idle.entry(between).or_default();
        if let Some(place) = idle.iter().rposition(|c| c.free_at <= at) {
            return Ok((idle.swap_remove(place), at));
        }
        let (kind, from, to, variant) = between;
        let app = SocketAddr::new(ip(to), 9080);
        let http2 = variant & 1 == 1;
        let end = |pod: Pod, sidecar, local, remote| End {
            node: pod.0 % 2,
            netns: netns(pod),
            owner: owner(pod, sidecar),
            local,
            remote,
        };
        let loopback = |last: u8| IpAddr::from([127, 0, 0, last]);
        let mut ends = match kind {
            0 => {
                let service = SocketAddr::from(([10, 96, to.0 as u8, 1 + to.1 as u8], 9080));
                let own = SocketAddr::new(ip(from), self.port(ip(from)));
                let accepts = SocketAddr::new(loopback(1), 15_001);
                [end(from, false, own, service), end(from, true, accepts, own)]
            }
            1 => {
                let own = SocketAddr::new(ip(from), self.port(ip(from)));
                let accepts = SocketAddr::new(ip(to), 15_006);
                [end(from, true, own, app), end(to, true, accepts, own)]
            }
            _ => {
                let own = SocketAddr::new(loopback(6), self.port(ip(to)));
                [end(to, true, own, app), end(to, false, app, own)]
            }
        };
        for end in &mut ends {
            end.node = self.wire.node(end.node);
        }
        let opened = at + US;
        let established = opened + 30 * US + self.span(40 * US);
        let mut made = self.wire.open(ends, opened, established);
        let mut usable = established + 5 * US;
        if kind == 1 {
            for (back, len) in [(false, 517), (true, 2_100), (false, 1_900)] {
                let crossed = self.crossed(usable, 200, 45, 20);
                self.wire.cross(&mut made, back, (len, None), Content::TlsHandshake, crossed);
                usable = crossed.read;
            }
        } else if http2 {
            self.wire.follow(&made);
        }
        Ok((made, usable))
    }

    /// Puts a connection back, or closes it.
    fn release(&mut self, mut connection: Connection, between: Between, free: u64) -> Result<(), CaptureError> {
        connection.free_at = free;
        connection.uses += 1;
        if self.below(250) == 0 {
            return self.wire.close(&connection, Some(free + 100 * US));
        }
        self.idle.entry(between).or_default().push(connection);
        Ok(())
    }

    fn introduce(&mut self, pod: Pod) -> Result<(), CaptureError> {
        let proxy = Proxy {
            node: NodeId(node_id(pod).into()),
            kind: ProxyKind::Sidecar,
            address: Some(ip(pod)),
            instance_ips: vec![ip(pod)],
            pod: Some(format!("{}-5d8c7b9f4-x2x4z", name(pod))),
            namespace: Some("default".to_owned()),
            workload: Some(name(pod)),
            owner: None,
            service: Some(name(pod)),
            version: None,
            cluster_id: None,
            node_name: None,
            locality: None,
            istio_version: None,
            envoy_version: None,
            interception_mode: None,
            labels: BTreeMap::new(),
        };
        let process = |sidecar| Process {
            tgid: Tgid(owner(pod, sidecar)),
            netns: NetnsId(netns(pod)),
            comm: if sidecar { "envoy".to_owned() } else { name(pod) },
            exe: None,
            uid: Some(if sidecar { 1337 } else { 1000 }),
            cgroup: None,
            role: if sidecar { ProcessRole::Sidecar } else { ProcessRole::Application },
        };
        self.wire.proxy(self.wire.node(pod.0 % 2), proxy, [process(true), process(false)])
    }

    /// What is sent about `wait` µs after an instant, ready `ready` µs later, and read after `read` more.
    fn crossed(&mut self, from: u64, wait: u64, ready: u64, read: u64) -> Crossed {
        let sent = from + self.span(wait * US);
        let ready = sent + self.span(ready * US);
        Crossed { sent, ready, read: ready + self.span(read * US) }
    }

    fn port(&mut self, of: IpAddr) -> u16 {
        let port = self.ports.entry(of).or_insert(31_999);
        *port = if *port == 60_999 { 32_000 } else { *port + 1 };
        *port
    }

    fn text(&mut self, text: String) -> Arc<str> {
        Arc::clone(self.texts.entry(text.clone()).or_insert_with(|| text.into()))
    }

    fn id(&mut self) -> Arc<str> {
        let (a, b) = (self.next(), self.next());
        uuid_text((u128::from(a) << 64 | u128::from(b)).to_be_bytes()).into()
    }

    /// Splitmix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Nanoseconds around a mean, as waiting times are.
    fn span(&mut self, mean: u64) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (mean as f64 * (0.5 - (1.0 - unit).ln() * 0.5)) as u64
    }
}
