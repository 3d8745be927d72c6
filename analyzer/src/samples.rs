//! Requests for tests.

use crate::request::{AttributedRequest, CoverageClass, RequestCoverage, Sides, Vantage};
use meshdiff_model::{
    Attribution, Crossing, DurationNs, Evidence, HopProtocol, MonotonicNs, Segment, WallTime, Workload,
};

/// A workload of which nothing is known but its name.
pub(crate) fn named(name: &str) -> Workload {
    Workload { workload: Some(name.to_owned()), ..Workload::unknown() }
}

/// A request from one workload to another that begins at `start`: 10 ns of network, the rest the application.
pub(crate) fn request(client: &str, server: &str, start: u64, total: i64) -> AttributedRequest {
    let attribution = Attribution::of(DurationNs(total))
        .add(Segment::Network, DurationNs(10), Evidence::Kernel)
        .add(Segment::ServerApp, DurationNs(total - 10), Evidence::Kernel)
        .build()
        .expect("telescopes");
    AttributedRequest {
        id: format!("{start}"),
        request_id: None,
        protocol: HopProtocol::Http11,
        method: None,
        path: None,
        response_code: Some(200),
        response_flags: vec![],
        attempts: Some(1),
        tries: vec![],
        grpc_status: None,
        upstream_cluster: None,
        client: named(client),
        server: named(server),
        start: WallTime(0),
        start_monotonic: Some(MonotonicNs(start)),
        vantage: Vantage::App,
        attribution,
        coverage: RequestCoverage {
            class: CoverageClass::Full,
            halves: Sides::Both,
            kernel: Sides::Both,
            reason: None,
        },
        sockets: [None; 6],
        request_crossings: [Crossing::default(); 3],
        response_crossings: [Crossing::default(); 3],
        connection_setup: None,
        client_connect: None,
        parent: None,
        children: vec![],
    }
}
