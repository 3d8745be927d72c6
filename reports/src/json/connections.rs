//! `connections`: both sides' views of every line of the process topology.

use crate::wire::Rfc3339;
use meshdiff_analyzer::{EndMetrics, LineEnd, LineMetrics, LineSummary, MetricsWindow};
use meshdiff_model::{Closer, ExponentialHistogram, IoMetrics, Link};
use serde::Serialize;
use std::collections::BTreeMap;

/// Destinations listed for a line; an application that connects to thousands of addresses through its sidecar has one line.
const MAX_DESTINATIONS: usize = 50;

/// One side's view of a line. Both views of a line have the same number.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection<'a> {
    line: usize,
    #[serde(flatten)]
    end: End<'a>,
    pids: &'a [u32],
    peer: String,
    peer_end: End<'a>,
    peer_known_by: &'static str,
    peers_known_by: BTreeMap<&'static str, u64>,
    side: &'static str,
    protocol: &'static str,
    tls: Tls<'a>,
    link: Option<&'static str>,
    connections: u64,
    destinations: BTreeMap<String, u64>,
    more_destinations: usize,
    sockets: u64,
    metrics: Metrics<'a>,
    windows: Vec<Window<'a>>,
}

#[derive(Serialize)]
struct End<'a> {
    namespace: Option<&'a str>,
    workload: Option<&'a str>,
    pod: Option<&'a str>,
    process: Option<&'a str>,
    role: &'static str,
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tls<'a> {
    used: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    versions: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    server_names: BTreeMap<&'a str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    alpn: BTreeMap<&'a str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    alpn_offered: BTreeMap<&'a str, u64>,
}

#[derive(Serialize)]
struct Window<'a> {
    start: Rfc3339,
    metrics: Metrics<'a>,
}

/// What DESIGN names. What is absent was not measured.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metrics<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt: Option<Histogram>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<Connect>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<Close>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmit: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop: Option<Drops<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    lost_events: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Io {
    calls: u64,
    bytes: u64,
    /// The whole call.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_time: Option<Histogram>,
    /// The part of it in which a read waited for data.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_time: Option<Histogram>,
}

#[derive(Serialize)]
struct Connect {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake: Option<Histogram>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<BTreeMap<String, u64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Close {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<BTreeMap<&'static str, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<Histogram>,
}

#[derive(Serialize)]
struct Count {
    count: u64,
}

#[derive(Serialize)]
struct Drops<'a> {
    count: u64,
    reasons: BTreeMap<&'a str, u64>,
}

/// A histogram of nanoseconds. Its buckets are `[over, upTo, count]`: how many values were more than `over` and at most `upTo`. Buckets of
/// equal bounds add up, those of other lines, windows and recordings too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Histogram {
    count: u64,
    #[serde(flatten)]
    values: Option<Values>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buckets_ns: Option<Vec<(i64, u64, u64)>>,
}

/// Absent where there is no value.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Values {
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
}

/// Whether histograms have their buckets. A page holds those of the whole time only: those of all windows would be most of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buckets {
    All,
    WithoutWindows,
}

impl Histogram {
    fn of(h: &ExponentialHistogram, buckets: bool) -> Self {
        // Values are whole numbers, so whole bounds say the same. The zeros are over -1.
        let over = |lower: f64, upper: f64| if upper == 0.0 { -1 } else { lower.floor() as i64 };
        Self {
            count: h.count(),
            values: Values::of(h),
            buckets_ns: buckets
                .then(|| h.buckets().map(|b| (over(b.lower, b.upper), b.upper.floor() as u64, b.count)).collect()),
        }
    }
}

impl Values {
    fn of(h: &ExponentialHistogram) -> Option<Self> {
        let whole = |v: Option<f64>| v.map(|v| v.round() as u64);
        Some(Self {
            sum_ns: h.sum(),
            min_ns: h.min()?,
            max_ns: h.max()?,
            mean_ns: whole(h.mean())?,
            p50_ns: whole(h.quantile(0.5))?,
            p90_ns: whole(h.quantile(0.9))?,
            p99_ns: whole(h.quantile(0.99))?,
        })
    }
}

impl Io {
    fn of(io: &IoMetrics, buckets: bool) -> Self {
        Self {
            calls: io.calls,
            bytes: io.bytes,
            execution_time: io.duration.as_ref().map(|h| Histogram::of(h, buckets)),
            wait_time: io.wait.as_ref().map(|h| Histogram::of(h, buckets)),
        }
    }
}

impl<'a> Metrics<'a> {
    fn of(m: &'a LineMetrics, buckets: bool) -> Self {
        let histogram = |h: &ExponentialHistogram| Histogram::of(h, buckets);
        Self {
            write: m.write.as_ref().map(|io| Io::of(io, buckets)),
            read: m.read.as_ref().map(|io| Io::of(io, buckets)),
            rtt: m.rtt.as_ref().map(histogram),
            connect: m.connect.as_ref().map(|c| Connect {
                count: c.count,
                handshake: c.handshake.as_ref().map(histogram),
                failures: c.failures.as_ref().map(|f| f.iter().map(|(e, n)| (e.to_string(), *n)).collect()),
            }),
            close: m.close.as_ref().map(|c| Close {
                count: c.count,
                first: c.by.as_ref().map(|by| by.iter().map(|(who, n)| (closer(*who), *n)).collect()),
                resets: c.resets,
                duration: c.duration.as_ref().map(histogram),
            }),
            retransmit: m.retransmits.map(|count| Count { count }),
            drop: m.drops.as_ref().map(|drops| Drops {
                count: drops.values().fold(0, |sum, n| sum.saturating_add(*n)),
                reasons: drops.iter().map(|(reason, n)| (&*reason.0, *n)).collect(),
            }),
            lost_events: m.lost_events,
        }
    }
}

const fn closer(who: Closer) -> &'static str {
    match who {
        Closer::Local => "local",
        Closer::Remote => "remote",
        Closer::Kernel => "kernel",
    }
}

impl<'a> End<'a> {
    fn of(e: &'a LineEnd) -> Self {
        Self {
            namespace: e.namespace.as_deref(),
            workload: e.workload.as_deref(),
            pod: e.pod.as_deref(),
            process: e.process.as_deref(),
            role: e.role.as_str(),
            address: e.address.as_deref(),
            service: e.service.as_deref(),
        }
    }
}

/// A peer in one word.
fn peer(e: &LineEnd) -> String {
    let pod = e.pod.as_deref().or(e.workload.as_deref());
    let outside = || e.service.as_deref().or(e.address.as_deref()).unwrap_or("unknown").to_owned();
    pod.map_or_else(outside, |pod| format!("{pod}/{}", e.process.as_deref().unwrap_or(e.role.as_str())))
}

impl<'a> Connection<'a> {
    /// The views of a line by those of its ends that were seen.
    pub(super) fn of(line: usize, l: &'a LineSummary, buckets: Buckets) -> impl Iterator<Item = Self> {
        let views = [("client", &l.client, &l.server), ("server", &l.server, &l.client)];
        views.into_iter().filter_map(move |(side, end, other)| {
            let EndMetrics { sockets, total, windows } = end.metrics.as_ref()?;
            Some(Self {
                line,
                end: End::of(end),
                pids: &end.pids,
                peer: peer(other),
                peer_end: End::of(other),
                peer_known_by: l.peer_known_by.as_str(),
                peers_known_by: l.known_by.iter().map(|(k, n)| (k.as_str(), *n)).collect(),
                side,
                protocol: l.protocol.as_str(),
                tls: Tls {
                    used: l.tls,
                    versions: l.tls_said.versions.iter().map(|(v, n)| (v.name(), *n)).collect(),
                    server_names: l.tls_said.server_names.iter().map(|(v, n)| (&**v, *n)).collect(),
                    alpn: l.tls_said.alpn.iter().map(|(v, n)| (&**v, *n)).collect(),
                    alpn_offered: l.tls_said.alpn_offered.iter().map(|(v, n)| (&**v, *n)).collect(),
                },
                link: l.link.map(|link| match link {
                    Link::ClientLoopback => "clientLoopback",
                    Link::Network => "network",
                    Link::ServerLoopback => "serverLoopback",
                }),
                connections: l.connections,
                destinations: l
                    .destinations
                    .iter()
                    .take(MAX_DESTINATIONS)
                    .map(|(to, n)| (to.to_string(), *n))
                    .collect(),
                more_destinations: l.destinations.len().saturating_sub(MAX_DESTINATIONS),
                sockets: *sockets,
                metrics: Metrics::of(total, true),
                windows: windows.iter().map(|w| Window::of(w, buckets == Buckets::All)).collect(),
            })
        })
    }
}

impl<'a> Window<'a> {
    fn of(w: &'a MetricsWindow, buckets: bool) -> Self {
        Self { start: Rfc3339(w.start), metrics: Metrics::of(&w.metrics, buckets) }
    }
}
