//! What a stored request costs on disk: the tables of a capture by size, or of a synthetic capture of so many requests.
//!
//! ```text
//! cargo run -p meshdiff-capture --example disk -- REQUESTS | CAPTURE
//! ```
//!
//! The synthetic requests are told by both sidecars, 2,000 a second: each has an id of its own, spans of random length around those of a mesh that is
//! not loaded, one of 20 clients with pools of connections, and one of 12 routes. Of a recorded capture, requests are the client's entries.

use meshdiff_capture::{Capture, CaptureSink, CaptureWriter, Meta, Table, WriterOptions};
use meshdiff_model::{
    AccessLogType, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopBytes,
    HopDetails, HopProtocol, HopSide, HopTimings, NodeId, RequestId, Side, UpstreamLocalAddr, UpstreamRemoteAddr,
    WallTime, uuid_text,
};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

const PER_SECOND: u64 = 2_000;
const START: i64 = 1_790_000_000_000_000_000;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "100000".to_owned());
    let done = match argument.parse() {
        Ok(requests) => synthetic(requests),
        Err(_) => recorded(Path::new(&argument)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn recorded(dir: &Path) -> Result<(), meshdiff_capture::CaptureError> {
    let capture = Capture::open(dir)?;
    let logs = capture.read()?.access_logs;
    let ended = logs.iter().filter(|log| log.access_log_type.is_terminal());
    show(capture.meta(), ended.filter(|log| log.side == Some(Side::Client)).count() as u64);
    Ok(())
}

fn synthetic(requests: u64) -> Result<(), meshdiff_capture::CaptureError> {
    let folder = std::env::temp_dir().join(format!("meshdiff-disk-{}", std::process::id()));
    let mut writer =
        CaptureWriter::create(&folder, &Meta::default(), WriterOptions { sync: false, ..WriterOptions::default() })?;
    let mut world = World::default();
    for n in 0..requests {
        for side in [Side::Client, Side::Server] {
            writer.write_access_log(world.entry(n, side))?;
        }
        if n % PER_SECOND == PER_SECOND - 1 {
            writer.roll(&Meta::default())?;
        }
    }
    let meta = writer.finish(Meta::default());
    drop(std::fs::remove_dir_all(&folder));
    show(&meta?, requests);
    Ok(())
}

fn show(meta: &Meta, requests: u64) {
    let all: u64 = meta.tables.values().map(|t| t.bytes).sum();
    for (table, stats) in meta.tables.iter().filter(|(_, stats)| stats.rows > 0) {
        println!(
            "{table}: {} rows in {} parts, {} bytes: {:.1} a row, {:.1} a request",
            stats.rows,
            stats.parts,
            stats.bytes,
            stats.bytes as f64 / stats.rows as f64,
            stats.bytes as f64 / requests as f64,
        );
    }
    let logs = meta.tables.get(&Table::AccessLogs).map_or(0, |t| t.bytes);
    println!(
        "{requests} requests: {:.1} bytes each for both entries, {:.1} for all tables",
        logs as f64 / requests as f64,
        all as f64 / requests as f64
    );
}

/// Random numbers that are the same in each run (splitmix64).
#[derive(Default)]
struct World {
    state: u64,
    common: (u64, [i64; 8]),
}

impl World {
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Nanoseconds around a mean, as waiting times are.
    fn span(&mut self, mean: f64) -> i64 {
        let unit = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        (mean * (0.5 - (1.0 - unit).ln() * 0.5)) as i64
    }

    fn entry(&mut self, n: u64, side: Side) -> HopSide {
        if side == Side::Client {
            let client = [40e3, 90e3, 8e3, 0.0, 25e3, 40e3, 20e3, 6e3].map(|mean| self.span(mean));
            self.common = (self.random(), client);
        }
        let (shape, client) = self.common;
        let (pod, route, connection) = (shape % 20, shape / 20 % 12, shape / 240 % 16);
        let server = [30e3, 70e3, 8e3, 2_500e3, 25e3, 35e3, 20e3, 6e3].map(|mean| self.span(mean));
        let inner: i64 = server.iter().sum();
        // The client's sidecar waits for all that the server's does, and for the network.
        let mut steps = if side == Side::Client { client } else { server };
        if side == Side::Client {
            steps[3] = 2_900_000 + self.span(150e3);
        }
        let mut at = 0;
        let spans = steps.map(|step| {
            at += step;
            Some(DurationNs(at))
        });
        let since = (n as i64) * (1_000_000_000 / PER_SECOND as i64)
            + if side == Side::Server { 300_000 + inner % 90_000 } else { 0 };
        let ip = |last: u64| std::net::IpAddr::from([10, 77, 0, u8::try_from(last).unwrap_or(u8::MAX)]);
        let (caller, callee) = (ip(pod + 2), ip(100 + route));
        let port = |base: u64| u16::try_from(base).unwrap_or(u16::MAX);
        let pooled = SocketAddr::new(caller, port(40_000 + connection * 31 + route));
        let id: Arc<str> = uuid_text({
            let (a, b) = ((n + 1).wrapping_mul(0xd134_2543_de82_ef95), (n + 1).wrapping_mul(0xa076_1d64_78bd_642f));
            (u128::from(a ^ a >> 29) << 64 | u128::from(b ^ b >> 31)).to_be_bytes()
        })
        .into();
        let count = |n: u64| NonZeroU64::new(n);
        let body = 200 + route * 37 + shape % 7 * 11;
        let client_side = side == Side::Client;
        let cluster = if client_side {
            format!("outbound|9080||service-{route}.default.svc.cluster.local")
        } else {
            "inbound|9080||".to_owned()
        };
        let (direct, local, upstream_local, upstream) = if client_side {
            (
                SocketAddr::new(caller, port(50_000 + connection)),
                SocketAddr::new(ip(200), 9080),
                pooled,
                SocketAddr::new(callee, 9080),
            )
        } else {
            let own = SocketAddr::new(std::net::IpAddr::from([127, 0, 0, 6]), port(45_000 + connection * 7 + pod));
            (pooled, SocketAddr::new(callee, 9080), own, SocketAddr::new(callee, 9080))
        };
        let node = if client_side {
            format!("sidecar~{caller}~client-{pod}.default~default.svc.cluster.local")
        } else {
            format!("sidecar~{callee}~service-{route}.default~default.svc.cluster.local")
        };
        HopSide {
            node: NodeId(node.into()),
            side: Some(side),
            protocol: HopProtocol::Http11,
            access_log_type: AccessLogType::DownstreamEnd,
            start_time: WallTime((START + since) / 1_000 * 1_000),
            timings: HopTimings {
                time_to_last_rx_byte: spans[0],
                time_to_first_upstream_tx_byte: spans[1],
                time_to_last_upstream_tx_byte: spans[2],
                time_to_first_upstream_rx_byte: spans[3],
                time_to_last_upstream_rx_byte: spans[4],
                time_to_first_downstream_tx_byte: spans[5],
                time_to_last_downstream_tx_byte: spans[6],
                duration: spans[7],
            },
            downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(direct)),
            downstream_remote_address: Some(DownstreamRemoteAddr(direct)),
            downstream_local_address: Some(DownstreamLocalAddr(local)),
            upstream_local_address: Some(UpstreamLocalAddr(upstream_local)),
            upstream_remote_address: Some(UpstreamRemoteAddr(upstream)),
            upstream_cluster: Some(cluster.into()),
            route_name: Some("default".into()),
            upstream_request_attempt_count: Some(1),
            response_flags: Vec::new(),
            request_id: Some(RequestId(Arc::clone(&id))),
            stream_id: Some(id),
            method: Some("GET".into()),
            authority: Some(format!("service-{route}:9080").into()),
            path: Some(format!("/api/{route}/{}", shape % 50).into()),
            response_code: Some(200),
            response_code_details: Some("via_upstream".into()),
            request_body_bytes: 0,
            response_body_bytes: body,
            tls_sni_hostname: None,
            downstream_tls: !client_side,
            details: HopDetails {
                bytes: HopBytes {
                    downstream_wire_bytes_sent: count(body + 180),
                    downstream_wire_bytes_received: count(310 + route),
                    upstream_wire_bytes_sent: count(330 + route),
                    upstream_wire_bytes_received: count(body + 160),
                    downstream_header_bytes_sent: count(180),
                    downstream_header_bytes_received: count(310 + route),
                    upstream_header_bytes_sent: count(330 + route),
                    upstream_header_bytes_received: count(160),
                    request_headers_bytes: count(300 + route),
                    response_headers_bytes: count(150),
                },
                ..HopDetails::default()
            },
        }
    }
}
