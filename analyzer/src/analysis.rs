//! From the graph to attributed requests.

use crate::attribute::{attribute, attribute_server, coverage};
use crate::request::{AttributedRequest, SocketRef, Try};
use crate::rollup;
use meshdiff_graph::{Directory, MeshGraph};
use meshdiff_model::{
    AttributionError, ClockAnchor, Content, Detail, DurationNs, HopProtocol, HopSide, JoinedHop, Link, Segment,
    SocketCookie, WallTime, Workload,
};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};

/// Attributes every hop of a graph, in order of start. Hops whose evidence makes them end before they begin are left out;
/// the second list says so for each.
pub fn attribute_all(
    mesh: &MeshGraph,
    directory: &dyn Directory,
    clock: &ClockAnchor,
) -> (Vec<AttributedRequest>, Vec<AttributionError>) {
    let mut errors = Vec::new();
    let mut requests: Vec<AttributedRequest> = Vec::with_capacity(mesh.hops.len());
    // Where a hop went among the requests: hops that contradict themselves are left out.
    let mut place: Vec<Option<usize>> = vec![None; mesh.hops.len()];
    for (i, place) in place.iter_mut().enumerate() {
        match attribute_hop(mesh, i, directory, clock) {
            Ok(request) => {
                *place = Some(requests.len());
                requests.push(request);
            }
            Err(error) => errors.push(error),
        }
    }
    for (i, hop) in mesh.hops.iter().enumerate() {
        if let (Some(child), Some(parent)) = (place[i], hop.caller.and_then(|c| place[c])) {
            requests[child].parent = Some(parent);
            requests[parent].children.push(child);
        }
    }
    number_equal_ids(&mut requests);
    add_call_details(&mut requests);
    (requests, errors)
}

/// Attributes one hop of a graph by itself: the same split that [`attribute_all`] gives it, without what other requests tell of it (parent,
/// children, and the details that come of them).
///
/// # Errors
/// If the hop's evidence makes it end before it begins.
///
/// # Panics
/// If the graph has no such hop.
pub fn attribute_hop(
    mesh: &MeshGraph,
    index: usize,
    directory: &dyn Directory,
    clock: &ClockAnchor,
) -> Result<AttributedRequest, AttributionError> {
    let hop = &mesh.hops[index].joined;
    let (attribution, vantage) = attribute(hop)?;
    let log = hop.client_log.as_ref().or(hop.server_log.as_ref());
    let loopback = hop.request_on(Link::ClientLoopback);
    let start_monotonic = loopback.send.or(loopback.ready).or(hop.request_on(Link::Network).ready);
    let start =
        start_monotonic.and_then(|m| clock.to_wall(m)).or_else(|| log.map(|l| l.start_time)).unwrap_or(WallTime(0));
    let (mut client, mut server) = mesh.ends(index, directory);
    describe(hop, directory, &mut client, &mut server);
    let frames = hop.http2.as_ref();
    let (seen_method, seen_path) = match &hop.request_content {
        Content::Http1Request { method, path } => (Some(method.clone()), Some(path.clone())),
        _ => (frames.and_then(|f| f.method.clone()), frames.and_then(|f| f.path.clone())),
    };
    let seen_status = match hop.response_content {
        Content::Http1Response { status } => Some(status),
        _ => frames.and_then(|f| f.status),
    };
    let spoken = log.map_or(if frames.is_some() { HopProtocol::Http2 } else { HopProtocol::Http11 }, |l| l.protocol);
    let is_grpc = spoken == HopProtocol::Http2 && frames.and_then(|f| f.grpc) == Some(true);
    let mut response_flags: Vec<_> = [&hop.client_log, &hop.server_log]
        .into_iter()
        .flatten()
        .flat_map(|l| l.response_flags.iter().cloned())
        .collect();
    response_flags.sort();
    response_flags.dedup();
    let sockets = hop.sockets.map(|cookie| socket(mesh, cookie));
    let id = match (hop.sockets.iter().flatten().next(), start_monotonic) {
        (Some(cookie), Some(at)) => format!("{:x}-{:x}", cookie.0, at.0),
        _ => log.map_or_else(|| format!("als-{index:x}"), |log| told_by_log(log)),
    };
    Ok(AttributedRequest {
        id,
        request_id: log.and_then(|l| l.request_id.clone()),
        protocol: if is_grpc { HopProtocol::Grpc } else { spoken },
        method: log.and_then(|l| l.method.clone()).or(seen_method),
        path: log.and_then(|l| l.path.clone()).or(seen_path).filter(|path| !path.is_empty()),
        response_code: seen_status.or_else(|| log.and_then(|l| l.response_code)),
        response_flags,
        attempts: hop.client_log.as_ref().and_then(|l| l.upstream_request_attempt_count),
        tries: tries(mesh, hop),
        grpc_status: frames.and_then(|f| f.grpc_status),
        upstream_cluster: hop.client_log.as_ref().and_then(|l| l.upstream_cluster.clone()),
        client,
        server,
        start,
        start_monotonic,
        vantage,
        attribution,
        coverage: coverage(hop),
        sockets,
        request_crossings: hop.request,
        response_crossings: hop.response,
        connection_setup: hop.connection_setup,
        client_connect: hop.client_connect,
        parent: None,
        children: Vec::new(),
    })
}

fn socket(mesh: &MeshGraph, cookie: Option<SocketCookie>) -> Option<SocketRef> {
    let socket = mesh.socket(cookie?)?;
    Some(SocketRef { cookie: socket.cookie, local: socket.local, remote: socket.remote })
}

/// Every attempt at a request, if there were several and all are known.
fn tries(mesh: &MeshGraph, hop: &JoinedHop) -> Vec<Try> {
    if hop.attempts.is_empty() {
        return Vec::new();
    }
    let one = |of: &JoinedHop, router: Option<&HopSide>, answered, began, ended| {
        let [_, _, s3, s4, s5, s6] = of.sockets;
        let [_, request @ ..] = of.request;
        let [_, response @ ..] = of.response;
        let server = of.server_log.as_deref();
        let log = router.or(of.client_log.as_deref());
        let host = log.and_then(|l| l.upstream_remote_address).map(|a| a.to_string());
        let there = s3.and_then(|s3| mesh.socket(s3)).map(|s| s.remote.to_string());
        Try {
            address: host.or(there),
            // Of what its router did not log, the server's sidecar says what it answered.
            response_code: log.or(server).and_then(|l| l.response_code).filter(|code| *code != 0),
            response_flags: log.or(server).map(|l| l.response_flags.clone()).unwrap_or_default(),
            answered,
            began,
            ended,
            server: attribute_server(of),
            reason: of.server_half.reason(),
            sockets: [s3, s4, s5, s6].map(|cookie| socket(mesh, cookie)),
            request_crossings: request,
            response_crossings: response,
        }
    };
    let ended = hop.response_on(Link::Network).ready.or(hop.abandoned[0]);
    let last = one(hop, hop.router_logs[0].as_deref(), true, hop.attempt_began(), ended);
    let mut all: Vec<Try> = hop.attempts.iter().map(|a| one(&a.hop, None, false, a.began, a.ended)).collect();
    let place = all.iter().position(|a| a.began > last.began).unwrap_or(all.len());
    all.insert(place, last);
    all
}

/// The name of a request that only a log entry tells of: from what the entry says, so that it does not change with what else was recorded.
fn told_by_log(log: &HopSide) -> String {
    let mut hash = FnvHasher::default();
    (&log.node, log.side, log.downstream_direct_remote_address, log.upstream_local_address).hash(&mut hash);
    (&log.stream_id, &log.request_id).hash(&mut hash);
    format!("als-{:x}-{:x}", log.start_time.0, hash.finish())
}

/// Makes the names of entries that say the same different.
fn number_equal_ids(requests: &mut [AttributedRequest]) {
    let mut seen: HashMap<String, u32> = HashMap::new();
    for request in requests.iter_mut().filter(|r| r.id.starts_with("als-")) {
        let n = seen.entry(request.id.clone()).or_default();
        *n += 1;
        if *n > 1 {
            request.id = format!("{}-{n}", request.id);
        }
    }
}

/// FNV-1a: the same in every build, which the standard library's hasher does not promise.
struct FnvHasher(u64);

impl Default for FnvHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for FnvHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Adds to both ends what the logs say beyond who they are.
fn describe(hop: &JoinedHop, directory: &dyn Directory, client: &mut Workload, server: &mut Workload) {
    let log = hop.client_log.as_ref().or(hop.server_log.as_ref());
    if let Some(cluster) = hop.client_log.as_ref().and_then(|l| l.upstream_cluster.as_deref())
        && let Some((service, namespace)) = directory.service_of_cluster(cluster)
    {
        server.service = Some(service);
        if server.namespace.is_none() {
            server.namespace = namespace;
        }
    }
    let upstream = [&hop.client_log, &hop.server_log].into_iter().flatten().find_map(|l| l.upstream_remote_address);
    if let Some(address) = upstream {
        server.address = Some(address.to_string());
    }
    client.service = None;
    if client.address.is_none() {
        client.address = log.and_then(|l| l.downstream_direct_remote_address).map(|a| a.ip().to_string());
    }
}

/// Adds what is known only once all requests are: the calls that a server made while it served a request, and what remains
/// as its own time.
fn add_call_details(requests: &mut [AttributedRequest]) {
    for i in 0..requests.len() {
        // Requests are in order of start.
        requests[i].children.sort_unstable();
        let (calls, streaming) = rollup::charged_calls(requests, i);
        let split = &mut requests[i].attribution;
        split.take_from_detail(Segment::ServerApp, Detail::Streaming, streaming);
        if calls > DurationNs::ZERO {
            split.add_details([(Segment::ServerApp, Detail::DownstreamCalls, calls)]);
        }
        let mut extra = Vec::new();
        if let Some(own) = split.rest_of(Segment::ServerApp) {
            extra.push((Segment::ServerApp, Detail::SelfTime, own));
        }
        for sidecar in [Segment::ClientSidecar, Segment::ServerSidecar] {
            if let (Some(_), Some(rest)) = (split.detail(sidecar, Detail::Queue), split.rest_of(sidecar)) {
                extra.push((sidecar, Detail::Other, rest));
            }
        }
        split.add_details(extra);
    }
}
