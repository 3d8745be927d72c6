//! Reports to render: simulated from a call tree with a fixed seed, so that all numbers agree with each other.

mod lines;
mod places;
mod simulation;

pub(crate) use places::broken_down;
pub(crate) use simulation::simulate;

use meshdiff_analyzer::{Coverage, Finding, Level, Metric, Report};
use meshdiff_model::{DropReason, RequestId, WallTime};
use meshdiff_reports::ReportMeta;
use simulation::{EPOCH, Random};
use std::collections::BTreeMap;

/// A workload of the simulation.
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Its own time in each request, µs.
    pub(crate) own_us: u64,
    /// What its sidecar takes for one way, µs.
    pub(crate) sidecar_us: u64,
    /// Time to it over the network, one way, µs.
    pub(crate) network_us: u64,
    /// Whom it calls, each with this many per cent of its requests.
    pub(crate) calls: Vec<(usize, u64)>,
}

fn service(name: &str, own_us: u64, sidecar_us: u64, calls: &[(usize, u64)]) -> Service {
    Service {
        name: name.into(),
        namespace: "default".into(),
        own_us,
        sidecar_us,
        network_us: 45,
        calls: calls.to_vec(),
    }
}

/// Bookinfo with a load generator; reviews-v2 is slow.
pub(crate) fn bookinfo() -> Vec<Service> {
    vec![
        service("loadgen", 0, 110, &[(1, 100)]),
        service("productpage-v1", 1_450, 230, &[(2, 100), (3, 33), (4, 50), (5, 100)]),
        service("details-v1", 420, 190, &[]),
        service("reviews-v1", 610, 210, &[]),
        service("reviews-v2", 5_100, 210, &[(6, 100)]),
        service("reviews-v3", 780, 540, &[(6, 100)]),
        service("ratings-v1", 260, 180, &[]),
    ]
}

/// Forty workloads in four namespaces.
pub(crate) fn forty() -> Vec<Service> {
    let mut random = Random(7);
    let namespaces = ["shop", "payments", "platform", "search"];
    (0..40usize)
        .map(|i| {
            // A tree that reaches everybody, and some more calls across it.
            let mut calls: Vec<(usize, u64)> =
                (i * 3 + 1..=i * 3 + 3).filter(|to| *to < 40).map(|to| (to, 60 + random.next() % 40)).collect();
            let across = i + 1 + random.next() as usize % 12;
            if i > 0 && i < 13 && across < 40 && i % 2 == 0 && !calls.iter().any(|(to, _)| *to == across) {
                calls.push((across, 50));
            }
            Service {
                name: format!(
                    "{}-{}-v{}",
                    ["cart", "index", "auth", "price", "stock", "ledger", "mail", "geo"][i % 8],
                    i,
                    1 + i % 3
                ),
                namespace: namespaces[i % 4].into(),
                own_us: 80 + random.next() % 1_400,
                sidecar_us: 90 + random.next() % 260,
                network_us: 30 + random.next() % 400,
                calls,
            }
        })
        .collect()
}

/// The metrics as a recording has them that was made before metrics were.
pub(crate) fn without_metrics(report: &mut Report) {
    let why = "The capture was recorded before connection metrics were.";
    report.coverage.missing_metrics =
        [Metric::WriteTime, Metric::Retransmit, Metric::Drop].map(|m| (m, why.to_owned())).into();
    for m in report.lines.iter_mut().flat_map(|l| [&mut l.client, &mut l.server]).filter_map(|e| e.metrics.as_mut()) {
        m.windows.clear();
        (m.total.retransmits, m.total.drops) = (None, None);
        m.total.write.iter_mut().for_each(|io| io.duration = None);
    }
}

/// A finding of each level.
pub(crate) fn findings() -> Vec<Finding> {
    vec![
        Finding {
            code: "MD0101",
            level: Level::Warning,
            subject: "default/reviews-v3".into(),
            text: "The sidecar of reviews-v3 takes 2.5 times as long as the others of its namespace.".into(),
            evidence: [("meanNs".to_owned(), 812_345.0), ("factor".to_owned(), 2.5)].into(),
            fix: "Look at its filters (ext_authz, Wasm, Lua) with `explain`.".into(),
        },
        Finding {
            code: "MD0001",
            level: Level::Info,
            subject: "default".into(),
            text: "TLS between sidecars is resumed on 97% of connections.".into(),
            evidence: BTreeMap::new(),
            fix: "Nothing to do.".into(),
        },
    ]
}

/// What the snapshots say of their making.
pub(crate) fn meta() -> ReportMeta {
    ReportMeta {
        tool_version: "0.1.0".into(),
        generated: WallTime(EPOCH + 60_000_000_000),
        source: "capture demo.meshdiff".into(),
        command: Some("meshdiff report --capture demo.meshdiff --format html".into()),
        kernel: Some("6.18.0".into()),
        envoy_versions: vec!["1.40.0".into()],
        capture_id: Some("c-0001".into()),
    }
}

/// A report with nothing in it.
pub(crate) fn empty() -> Report {
    Report {
        window: (WallTime(EPOCH), WallTime(EPOCH + 10_000_000_000)),
        namespace: None,
        coverage: Coverage::default(),
        verdict: None,
        hops: vec![],
        breakdowns: vec![],
        lines: vec![],
        findings: vec![],
        slowest: vec![],
    }
}

/// Bookinfo where half was lost: no probes on the server's node, lost events, notes.
pub(crate) fn limited() -> Report {
    let mut report = simulate(&bookinfo(), 60);
    report.findings = findings();
    let c = &mut report.coverage;
    c.partial_server = 70;
    c.requests += 70;
    c.ambiguous = 4;
    c.requests += 4;
    c.lost_kernel_events = 1_204;
    c.lost_access_logs_estimate = 17;
    c.negative_segments = 1;
    c.partial_reasons.insert("client_log_missing".into(), 70);
    c.notes.push("The recording was cut off: its last 1.20 s are missing.".into());
    for h in &mut report.hops {
        h.requests += 9;
    }
    report
}

/// Names that try to break out of every format.
pub(crate) const HOSTILE: &str =
    "</script><img src=x onerror=alert(1)>|`*_[a](b)\n\u{1b}[31mred\u{7}\u{202e}gpj.exe'\"&amp; größe 日本 مرحبا";

/// A report in which everything that comes from outside is hostile.
pub(crate) fn hostile() -> Report {
    let mut services = bookinfo();
    for (i, s) in services.iter_mut().enumerate() {
        s.name = format!("{HOSTILE}-{i}-{}", "long".repeat(60));
        s.namespace = HOSTILE.into();
    }
    let mut report = simulate(&services, 8);
    report.namespace = Some(HOSTILE.into());
    report.coverage.notes.push(HOSTILE.into());
    report.coverage.partial_reasons.insert(HOSTILE.into(), 3);
    report.coverage.unmatched.insert(HOSTILE.into(), 3);
    report.findings = vec![Finding {
        code: "MD0101",
        level: Level::Error,
        subject: HOSTILE.into(),
        text: HOSTILE.into(),
        evidence: [(HOSTILE.to_owned(), f64::NAN)].into(),
        fix: HOSTILE.into(),
    }];
    for r in &mut report.slowest {
        r.id = format!("{HOSTILE}{}", r.id);
        r.request_id = Some(RequestId(HOSTILE.into()));
        r.method = Some(HOSTILE.into());
        r.path = Some(format!("/{HOSTILE}").into());
        r.response_flags = vec![HOSTILE.into()];
    }
    for (i, l) in report.lines.iter_mut().enumerate() {
        for e in [&mut l.client, &mut l.server] {
            e.pod = e.pod.as_ref().map(|_| format!("{HOSTILE}{i}"));
            e.process = e.process.as_ref().map(|_| HOSTILE.into());
            e.service = e.service.as_ref().map(|_| HOSTILE.into());
        }
        l.tls_said.server_names = [(HOSTILE.into(), 1)].into();
        l.tls_said.alpn_offered = [(HOSTILE.into(), 1)].into();
        if let Some(m) = &mut l.client.metrics {
            m.total.drops = Some([(DropReason(HOSTILE.into()), 1)].into());
        }
    }
    report.coverage.missing_metrics = [(Metric::Retransmit, HOSTILE.to_owned())].into();
    places::hostile(report)
}
