//! The requests of a simulated call tree, and the report over them.

use super::Service;
use super::lines::lines;
use meshdiff_analyzer::{
    AttributedRequest, Coverage, CoverageClass, Distribution, HopSummary, NearQuantile, Part, PartKind, Place, Report,
    RequestCoverage, SegmentStats, Sides, SocketRef, Vantage, Verdict,
};
use meshdiff_model::{
    Attribution, Crossing, Detail, DurationNs, Evidence, HopProtocol, LocalAddr, MonotonicNs, PeerAddr, ProbeTier,
    RequestId, Segment, SegmentMap, SocketCookie, WallTime, Workload, WorkloadSource,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Splitmix64: enough randomness for a sample, the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// About `us` µs in ns, rarely several times that.
    pub(super) fn around(&mut self, us: u64) -> u64 {
        let base = us * (600 + self.next() % 800);
        let tail = if self.next().is_multiple_of(50) { us * 1000 * (1 + self.next() % 3) } else { 0 };
        base + tail + self.next() % 97
    }
}

const BOOT: u64 = 86_400_000_000_000;
pub(super) const EPOCH: i64 = 1_780_000_000_000_000_000;

fn workload(s: &Service) -> Workload {
    Workload {
        namespace: Some(s.namespace.clone()),
        workload: Some(s.name.clone()),
        service: None,
        pod: None,
        address: None,
        source: WorkloadSource::Als,
    }
}

fn mono(at: u64) -> Option<MonotonicNs> {
    Some(MonotonicNs(at))
}

struct Simulation<'a> {
    services: &'a [Service],
    random: Random,
    list: Vec<AttributedRequest>,
}

impl Simulation<'_> {
    /// One call that starts at `at`; returns its index and when the client has read all of it.
    fn call(&mut self, from: usize, to: usize, at: u64, parent: Option<usize>, id: &str) -> (usize, u64) {
        let index = self.list.len();
        let (c, s) = (&self.services[from], &self.services[to]);
        let (cs, ss, net, own) = (c.sidecar_us, s.sidecar_us, s.network_us, s.own_us);
        let mut t = at;
        let mut after = |r: &mut Random, us: u64| {
            t += r.around(us);
            t
        };
        let r = &mut self.random;
        let mut q = [Crossing::default(); 3];
        let mut p = [Crossing::default(); 3];
        let setup = r.next().is_multiple_of(97);
        let hop = |r: &mut Random, send: u64, after: &mut dyn FnMut(&mut Random, u64) -> u64, us, queue| {
            let ready = after(r, us);
            let recv = after(r, queue);
            Crossing {
                send: mono(send),
                ready: mono(ready),
                recv: mono(recv),
                last_send: mono(send),
                last_ready: mono(ready),
                last_recv: mono(recv),
                bytes: 412,
            }
        };
        q[0] = hop(r, at, &mut after, 10, 18);
        let connect = setup.then(|| (after(r, 20), after(r, 900)));
        let s3 = after(r, cs);
        q[1] = hop(r, s3, &mut after, net, 22);
        let s5 = after(r, ss);
        q[2] = hop(r, s5, &mut after, 8, 45);
        let ready6 = q[2].ready.expect("set above").0;
        t = after(r, own / 2);
        // Placeholder, so that children's indices follow their parent's.
        let mut children = Vec::new();
        let mut in_calls = 0;
        self.list.push(self.template(index, from, to, at, parent, id));
        for (callee, per_cent) in self.services[to].calls.clone() {
            if self.random.next() % 100 < per_cent {
                let (child, end) = self.call(to, callee, t, Some(index), id);
                children.push(child);
                in_calls += end - t;
                t = end + self.random.around(6);
            }
        }
        let r = &mut self.random;
        let mut after = |r: &mut Random, us: u64| {
            t += r.around(us);
            t
        };
        let send6 = after(r, own / 2);
        p[2] = hop(r, send6, &mut after, 8, 16);
        let s4 = after(r, ss / 2);
        p[1] = hop(r, s4, &mut after, net, 15);
        let s2 = after(r, cs / 2);
        p[0] = hop(r, s2, &mut after, 9, 14);
        let (ready1, read) = (p[0].ready.expect("set").0, p[0].recv.expect("set").0);
        let end = after(r, 25);
        p[0].last_recv = mono(end);
        p[0].bytes = 5_183;

        let ns = |ns: u64| DurationNs(i64::try_from(ns).expect("short"));
        let between = |a: Option<MonotonicNs>, b: Option<MonotonicNs>| b.expect("set") - a.expect("set");
        let k = Evidence::Kernel;
        let setup_ns = connect.map_or(0, |(a, b)| b - a);
        let app = ns(send6 - ready6);
        let mut a = Attribution::of(ns(end - at))
            .add(Segment::ClientApp, ns(read - ready1), k)
            .add(Segment::ClientLoopback, between(q[0].send, q[0].ready) + between(p[0].send, p[0].ready), k)
            .add(
                Segment::ClientSidecar,
                between(q[0].ready, q[1].send) + between(p[1].ready, p[0].send) - ns(setup_ns),
                k,
            )
            .detail(
                Segment::ClientSidecar,
                Detail::Queue,
                between(q[0].ready, q[0].recv) + between(p[1].ready, p[1].recv),
            )
            .add(Segment::Network, between(q[1].send, p[1].ready) - between(q[1].ready, p[1].send), k)
            .add(Segment::ServerSidecar, between(q[1].ready, q[2].send) + between(p[2].ready, p[1].send), k)
            .detail(
                Segment::ServerSidecar,
                Detail::Queue,
                between(q[1].ready, q[1].recv) + between(p[2].ready, p[2].recv),
            )
            .add(Segment::ServerLoopback, between(q[2].send, q[2].ready) + between(p[2].send, p[2].ready), k)
            .add(Segment::ServerApp, app, k)
            .detail(Segment::ServerApp, Detail::Queue, between(q[2].ready, q[2].recv))
            .detail(Segment::ServerApp, Detail::DownstreamCalls, ns(in_calls))
            .detail(Segment::ServerApp, Detail::SelfTime, app - ns(in_calls) - between(q[2].ready, q[2].recv))
            .add(Segment::Transfer, ns(end - read), k);
        if setup_ns > 0 {
            a = a.add(Segment::ConnectionSetup, ns(setup_ns), k);
        }
        let request = &mut self.list[index];
        request.attribution = a.build().expect("the simulation telescopes");
        request.request_crossings = q;
        request.response_crossings = p;
        request.connection_setup = connect.map(|(a, b)| (MonotonicNs(a), MonotonicNs(b)));
        request.children = children;
        (index, end)
    }

    fn template(
        &self,
        index: usize,
        from: usize,
        to: usize,
        at: u64,
        parent: Option<usize>,
        id: &str,
    ) -> AttributedRequest {
        let end = |i: usize, port: Option<u16>| {
            let ip = format!("10.77.0.{}", i + 2);
            Workload {
                pod: Some(format!("{}-7d9f8c6b5-x{i:03}", self.services[i].name)),
                address: Some(port.map_or(ip.clone(), |p| format!("{ip}:{p}"))),
                ..workload(&self.services[i])
            }
        };
        let socket = |n: u64, local: String, remote: String| {
            Some(SocketRef {
                cookie: SocketCookie(1_000 + index as u64 * 6 + n),
                local: LocalAddr(local.parse().expect("an address")),
                remote: PeerAddr(remote.parse().expect("an address")),
            })
        };
        let (a, b, p) = (format!("10.77.0.{}", from + 2), format!("10.77.0.{}", to + 2), 40_000 + index % 20_000);
        AttributedRequest {
            id: format!("{at}-{index}"),
            request_id: Some(RequestId(id.into())),
            protocol: HopProtocol::Http11,
            method: Some("GET".into()),
            path: Some(
                format!("/{}/{}", self.services[to].name.split('-').next().unwrap_or_default(), index % 7).into(),
            ),
            response_code: Some(if index % 211 == 210 { 503 } else { 200 }),
            response_flags: vec![],
            attempts: Some(1),
            tries: Vec::new(),
            grpc_status: None,
            upstream_cluster: Some(cluster(&self.services[to].name)),
            client: end(from, None),
            server: end(to, Some(9080)),
            start: WallTime(EPOCH + i64::try_from(at - BOOT).expect("short")),
            start_monotonic: mono(at),
            vantage: Vantage::App,
            attribution: Attribution::of(DurationNs::ZERO).build().expect("nothing"),
            coverage: RequestCoverage {
                class: CoverageClass::Full,
                halves: Sides::Both,
                kernel: Sides::Both,
                reason: None,
            },
            sockets: [
                socket(0, format!("{a}:{p}"), "10.96.4.11:9080".into()),
                socket(1, "127.0.0.1:15001".into(), format!("{a}:{p}")),
                socket(2, format!("{a}:{}", p + 1), format!("{b}:9080")),
                socket(3, format!("{b}:15006"), format!("{a}:{}", p + 1)),
                socket(4, format!("127.0.0.6:{p}"), format!("{b}:9080")),
                socket(5, format!("{b}:9080"), format!("127.0.0.6:{p}")),
            ],
            request_crossings: [Crossing::default(); 3],
            response_crossings: [Crossing::default(); 3],
            connection_setup: None,
            client_connect: None,
            parent,
            children: vec![],
        }
    }
}

/// Reviews is asked by subset.
fn cluster(workload: &str) -> Arc<str> {
    let (app, version) = workload.rsplit_once('-').unwrap_or((workload, ""));
    let subset = if app == "reviews" { version } else { "" };
    format!("outbound|9080|{subset}|{app}.default.svc.cluster.local").into()
}

fn distribution(mut values: Vec<i64>) -> Distribution {
    values.sort_unstable();
    let rank = |per_mille: usize| DurationNs(values[(values.len() * per_mille).div_ceil(1000).max(1) - 1]);
    let mean = values.iter().sum::<i64>() / values.len() as i64;
    Distribution { mean: DurationNs(mean), p50: rank(500), p90: rank(900), p99: rank(990), p999: rank(999) }
}

fn hop(client: Workload, server: Workload, requests: &[&AttributedRequest]) -> HopSummary {
    let total = distribution(requests.iter().map(|r| r.attribution.total().0).collect());
    let n = requests.len() as i64;
    let mut segments = BTreeMap::new();
    for segment in Segment::ALL {
        let values: Vec<i64> =
            requests.iter().map(|r| r.attribution.segments().get(segment).unwrap_or_default().0).collect();
        if values.iter().all(|v| *v == 0) {
            continue;
        }
        let d = distribution(values.clone());
        let variance = values.iter().map(|v| ((v - d.mean.0) as f64).powi(2)).sum::<f64>() / n as f64;
        let half = DurationNs((1.96 * (variance / n as f64).sqrt()) as i64);
        let mut details: BTreeMap<Detail, i64> = BTreeMap::new();
        for (s, detail, v) in requests.iter().flat_map(|r| r.attribution.details()) {
            if *s == segment {
                *details.entry(*detail).or_default() += v.0;
            }
        }
        segments.insert(
            segment,
            SegmentStats {
                share: d.mean.0 as f64 / total.mean.0 as f64,
                mean_ci95: (d.mean - half, d.mean + half),
                distribution: d,
                details: details.into_iter().map(|(k, v)| (k, DurationNs(v / n))).collect(),
            },
        );
    }
    let mut sorted: Vec<_> = requests.to_vec();
    sorted.sort_by_key(|r| r.attribution.total());
    let near = |per_mille: u16, from: usize, to: usize| {
        let chosen = &sorted[from..to];
        let count = chosen.len() as i64;
        let mut map = SegmentMap::empty();
        for segment in segments.keys() {
            let sum: i64 = chosen.iter().map(|r| r.attribution.segments().get(*segment).unwrap_or_default().0).sum();
            map.set(*segment, DurationNs(sum / count));
        }
        let total = chosen.iter().map(|r| r.attribution.total().0).sum::<i64>() / count;
        NearQuantile { per_mille, n: count as u64, total: DurationNs(total), segments: map }
    };
    let len = sorted.len();
    let mut response_codes = BTreeMap::new();
    for r in requests {
        *response_codes.entry(r.response_code.unwrap_or(0)).or_default() += 1;
    }
    HopSummary {
        client,
        server,
        protocol: HopProtocol::Http11,
        requests: n as u64,
        n: n as u64,
        response_codes,
        total: Some(total),
        near: if len >= 100 {
            vec![near(500, len * 45 / 100, len * 55 / 100), near(990, len * 98 / 100, len)]
        } else {
            vec![]
        },
        segments,
    }
}

fn verdict(services: &[Service], list: &[AttributedRequest], roots: &[usize]) -> Verdict {
    let n = roots.len() as i64;
    let mut parts: BTreeMap<PartKind, i64> = BTreeMap::new();
    let mut places: BTreeMap<(PartKind, String, String), i64> = BTreeMap::new();
    for r in list {
        let calls = |d: &[(Segment, Detail, DurationNs)]| -> i64 {
            d.iter().filter(|(_, d, _)| *d == Detail::DownstreamCalls).map(|(_, _, v)| v.0).sum()
        };
        for (segment, value) in r.attribution.segments().iter() {
            let own = if segment == Segment::ServerApp { value.0 - calls(r.attribution.details()) } else { value.0 };
            let kind = PartKind::of(segment);
            *parts.entry(kind).or_default() += own;
            let whose = match segment {
                Segment::ClientApp | Segment::ClientLoopback | Segment::ClientSidecar | Segment::ConnectionSetup => {
                    &r.client
                }
                _ => &r.server,
            };
            let name = (kind, whose.namespace.clone().unwrap_or_default(), whose.workload.clone().unwrap_or_default());
            *places.entry(name).or_default() += own;
        }
    }
    let totals: Vec<i64> = roots.iter().map(|r| list[*r].attribution.total().0).collect();
    let total = distribution(totals);
    let share = |v: i64| v as f64 / n as f64 / total.mean.0 as f64;
    let mut places: Vec<Place> = places
        .into_iter()
        .map(|((kind, namespace, name), v)| Place {
            kind,
            workload: Workload {
                namespace: Some(namespace),
                workload: Some(name),
                source: WorkloadSource::Als,
                ..Workload::unknown()
            },
            mean: DurationNs(v / n),
            share: share(v),
        })
        .collect();
    places.sort_by_key(|p| std::cmp::Reverse(p.mean));
    Verdict {
        client: workload(&services[0]),
        server: workload(&services[services[0].calls[0].0]),
        n: n as u64,
        mean_total: total.mean,
        p50_total: total.p50,
        parts: PartKind::ALL
            .into_iter()
            .map(|kind| {
                let v = parts.get(&kind).copied().unwrap_or_default();
                Part { kind, mean: DurationNs(v / n), share: share(v) }
            })
            .collect(),
        places,
    }
}

/// A report over `entries` entry requests.
pub(crate) fn simulate(services: &[Service], entries: usize) -> Report {
    simulated(services, entries).0
}

/// The same, with the requests that it is of.
pub(crate) fn simulated(services: &[Service], entries: usize) -> (Report, Vec<AttributedRequest>) {
    let mut sim = Simulation { services, random: Random(42), list: vec![] };
    let mut roots = vec![];
    for i in 0..entries {
        let id = format!("{:08x}-9e2a-4a3e-8a60-0d6f7e5f{:04x}", sim.random.next() as u32, i);
        let targets = services[0].calls.clone();
        let to = targets[i % targets.len()].0;
        let (root, _) = sim.call(0, to, BOOT + i as u64 * 5_000_000, None, &id);
        roots.push(root);
    }
    let list = sim.list;
    let mut by_hop: BTreeMap<(String, String), Vec<&AttributedRequest>> = BTreeMap::new();
    for r in &list {
        let key = (r.client.workload.clone().unwrap_or_default(), r.server.workload.clone().unwrap_or_default());
        by_hop.entry(key).or_default().push(r);
    }
    let bare = |w: &Workload| Workload { pod: None, address: None, ..w.clone() };
    let mut hops: Vec<HopSummary> =
        by_hop.values().map(|requests| hop(bare(&requests[0].client), bare(&requests[0].server), requests)).collect();
    hops.sort_by_key(|h| std::cmp::Reverse(h.total.map(|t| t.mean)));
    let mut slow = roots.clone();
    slow.sort_by_key(|r| std::cmp::Reverse(list[*r].attribution.total()));
    let mut slowest = vec![];
    for root in slow.into_iter().take(8) {
        let end = roots.iter().copied().find(|r| *r > root).unwrap_or(list.len());
        let base = slowest.len();
        for r in &list[root..end] {
            let mut r = r.clone();
            r.parent = r.parent.map(|p| p - root + base);
            r.children.iter_mut().for_each(|c| *c = *c - root + base);
            slowest.push(r);
        }
    }
    let seen = list.len() as u64;
    let verdict = verdict(services, &list, &roots);
    let report = Report {
        window: (WallTime(EPOCH), WallTime(EPOCH + 10_000_000_000)),
        namespace: None,
        coverage: Coverage {
            requests: seen + 6,
            full: seen,
            partial_client: 2,
            partial_als: 1,
            unmatched: [("still_open".to_owned(), 3)].into(),
            partial_reasons: [("before_recording".to_owned(), 2), ("socket_not_seen".to_owned(), 1)].into(),
            client_messages_seen: seen + 5,
            probe_tier: Some(ProbeTier::TpBtf),
            probe_cost_ns_per_event: Some(212),
            ..Coverage::default()
        },
        verdict: Some(verdict),
        lines: lines(services, seen),
        hops,
        breakdowns: vec![],
        findings: vec![],
        slowest,
    };
    (report, list)
}
