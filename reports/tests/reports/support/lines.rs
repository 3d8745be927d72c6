//! The connections that a simulated mesh has, with their metrics.

use super::Service;
use super::simulation::{EPOCH, Random};
use meshdiff_analyzer::{
    Closes, Connects, EndMetrics, EndRole, LineEnd, LineMetrics, LineProtocol, LineSummary, MetricsWindow, PeerKnownBy,
    TlsTally,
};
use meshdiff_model::{
    Closer, DropReason, DurationNs, Errno, ExponentialHistogram, IoMetrics, Link, TlsVersion, WallTime,
};
use std::collections::BTreeMap;

/// Both views of the lines that such a mesh has: applications and their sidecars, sidecars among each other, and one service outside.
pub(super) fn lines(services: &[Service], seen: u64) -> Vec<LineSummary> {
    let mut list = Vec::new();
    let app = |i: usize| end(&services[i], i, EndRole::Application, if i == 0 { "loadgen" } else { "python3" });
    let sidecar = |i: usize| end(&services[i], i, EndRole::Sidecar, "envoy");
    for (i, service) in services.iter().enumerate() {
        let line = |client, server, link, tls| line(client, server, link, tls, i as u64, seen);
        if i > 0 {
            list.push(line(sidecar(i), app(i), Link::ServerLoopback, false));
        }
        if !service.calls.is_empty() {
            list.push(line(app(i), sidecar(i), Link::ClientLoopback, false));
        }
        for (to, _) in &service.calls {
            list.push(line(sidecar(i), sidecar(*to), Link::Network, true));
        }
    }
    if let Some(last) = services.len().checked_sub(1) {
        let outside = LineEnd {
            role: EndRole::Outside,
            namespace: None,
            workload: None,
            pod: None,
            process: None,
            pids: vec![],
            address: Some("192.0.2.10:443".into()),
            service: Some("api.example.com".into()),
            metrics: None,
        };
        let mut line = line(sidecar(last), outside, Link::Network, true, 5, seen);
        line.server.metrics = None;
        line.link = None;
        line.protocol = LineProtocol::Tls;
        line.peer_known_by = PeerKnownBy::Unknown;
        line.known_by = [(PeerKnownBy::Unknown, 9)].into();
        line.tls_said.versions = [(TlsVersion::Tls13, 9)].into();
        line.tls_said.server_names = [("api.example.com".into(), 9)].into();
        line.tls_said.alpn_offered = [("h2".into(), 9)].into();
        if let Some(connect) = line.client.metrics.as_mut().and_then(|m| m.total.connect.as_mut()) {
            connect.failures = Some([(Errno(111), 3), (Errno(110), 2)].into());
        }
        list.push(line);
    }
    list
}

fn end(service: &Service, i: usize, role: EndRole, process: &str) -> LineEnd {
    LineEnd {
        role,
        namespace: Some(service.namespace.clone()),
        workload: Some(service.name.clone()),
        pod: Some(format!("{}-7d9f8c6b5-x{i:03}", service.name)),
        process: Some(process.into()),
        pids: vec![4_000 + i as u32],
        address: Some(format!("10.77.0.{}", i + 2)),
        service: None,
        metrics: None,
    }
}

fn line(mut client: LineEnd, mut server: LineEnd, link: Link, tls: bool, salt: u64, seen: u64) -> LineSummary {
    client.metrics = Some(end_metrics(salt + 1, seen));
    server.metrics = Some(end_metrics(salt + 100, seen));
    LineSummary {
        client,
        server,
        protocol: LineProtocol::Http11,
        tls: Some(tls),
        tls_said: TlsTally::default(),
        link: Some(link),
        peer_known_by: PeerKnownBy::Matched,
        known_by: [(PeerKnownBy::Matched, 8), (PeerKnownBy::Inferred, 1)].into(),
        connections: 9,
        destinations: [("10.96.0.1:9080".parse().expect("an address"), 9)].into(),
    }
}

fn histogram(random: &mut Random, n: u64, us: u64) -> ExponentialHistogram {
    (0..n).map(|_| random.around(us)).collect()
}

/// Two windows and their sum.
fn end_metrics(salt: u64, seen: u64) -> EndMetrics {
    let mut random = Random(salt);
    let io = |random: &mut Random, n: u64, wait: bool| IoMetrics {
        calls: n,
        bytes: n * 412,
        duration: Some(histogram(random, n, 14)),
        wait: wait.then(|| histogram(random, n, 9)),
    };
    let mut part = |n: u64, resent: u64| LineMetrics {
        write: Some(io(&mut random, n, false)),
        read: Some(io(&mut random, n, true)),
        rtt: Some(histogram(&mut random, n, 48)),
        connect: Some(Connects {
            count: 4,
            handshake: Some(histogram(&mut random, 4, 120)),
            failures: Some(BTreeMap::new()),
        }),
        close: Some(Closes {
            count: 2,
            by: Some([(Closer::Local, 1), (Closer::Remote, 1)].into()),
            resets: Some(1),
            duration: Some(histogram(&mut random, 2, 300)),
        }),
        retransmits: Some(resent),
        drops: Some([(DropReason("TCP_OLD_DATA".into()), resent)].into()),
        lost_events: 0,
    };
    let n = seen.clamp(4, 400);
    let parts = [part(n / 2, 0), part(n - n / 2, 2)];
    let window = |i: i64| EPOCH + i * 10_000_000_000;
    EndMetrics {
        sockets: 9,
        total: sum(&parts),
        windows: (0..)
            .zip(parts)
            .map(|(i, metrics)| MetricsWindow {
                start: WallTime(window(i)),
                offset: DurationNs(i * 10_000_000_000),
                metrics,
            })
            .collect(),
    }
}

fn sum(parts: &[LineMetrics; 2]) -> LineMetrics {
    fn merged(a: &Option<ExponentialHistogram>, b: &Option<ExponentialHistogram>) -> Option<ExponentialHistogram> {
        let mut sum = a.clone()?;
        sum.merge(b.as_ref()?);
        Some(sum)
    }
    let [a, b] = parts;
    let mut total = a.clone();
    for (io, other) in [(&mut total.write, &b.write), (&mut total.read, &b.read)] {
        if let (Some(io), Some(other)) = (io, other) {
            io.merge(other);
        }
    }
    total.rtt = merged(&a.rtt, &b.rtt);
    if let (Some(c), Some(ca), Some(cb)) = (&mut total.connect, &a.connect, &b.connect) {
        c.count = ca.count + cb.count;
        c.handshake = merged(&ca.handshake, &cb.handshake);
    }
    if let (Some(c), Some(ca), Some(cb)) = (&mut total.close, &a.close, &b.close) {
        c.count = ca.count + cb.count;
        c.by = Some([(Closer::Local, 2), (Closer::Remote, 2)].into());
        c.resets = Some(2);
        c.duration = merged(&ca.duration, &cb.duration);
    }
    total.retransmits = b.retransmits;
    total.drops.clone_from(&b.drops);
    total
}
