//! A request as `meshdiff requests --instants` prints it, read back: the store keeps this line of each.

use super::settle::CLASSES;
use meshdiff_analyzer::{AttributedRequest, CoverageClass, RequestCoverage, Sides, SocketRef, Try, Vantage};
use meshdiff_model::{
    AmbiguityReason, Attribution, Crossing, Detail, DurationNs, Evidence, HopProtocol, LocalAddr, MonotonicNs,
    PeerAddr, RequestId, Segment, SocketCookie, UnmatchedReason, WallTime, Workload,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

type Times = BTreeMap<Segment, DurationNs>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    id: String,
    request_id: Option<String>,
    protocol: HopProtocol,
    method: Option<Arc<str>>,
    path: Option<Arc<str>>,
    response_code: Option<u16>,
    grpc_status: Option<u16>,
    #[serde(default)]
    response_flags: Vec<Arc<str>>,
    attempts: Option<u32>,
    #[serde(default)]
    tries: Vec<TryLine>,
    client: Workload,
    server: Workload,
    start: String,
    total_ns: DurationNs,
    total_vantage: String,
    segments: Times,
    evidence: BTreeMap<Segment, Evidence>,
    coverage: CoverageLine,
    start_monotonic_ns: Option<MonotonicNs>,
    #[serde(default)]
    sockets: BTreeMap<String, SocketLine>,
    #[serde(default)]
    crossings: Crossings,
    connection_setup: Option<SpanLine>,
    client_connect_ns: Option<DurationNs>,
}

#[derive(Deserialize)]
struct CoverageLine {
    halves: String,
    kernel: String,
}

#[derive(Deserialize)]
struct SocketLine {
    local: SocketAddr,
    remote: SocketAddr,
    cookie: SocketCookie,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpanLine {
    start_ns: MonotonicNs,
    end_ns: MonotonicNs,
}

#[derive(Default, Deserialize)]
struct Crossings {
    request: Links,
    response: Links,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Links {
    client_loopback: CrossingLine,
    network: CrossingLine,
    server_loopback: CrossingLine,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CrossingLine {
    send_ns: Option<MonotonicNs>,
    ready_ns: Option<MonotonicNs>,
    recv_ns: Option<MonotonicNs>,
    last_send_ns: Option<MonotonicNs>,
    last_ready_ns: Option<MonotonicNs>,
    last_recv_ns: Option<MonotonicNs>,
    bytes: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TryLine {
    address: Option<String>,
    response_code: Option<u16>,
    #[serde(default)]
    response_flags: Vec<Arc<str>>,
    answered: bool,
    began_ns: Option<DurationNs>,
    ended_ns: Option<DurationNs>,
    server: Option<ServerLine>,
    reason: Option<String>,
    #[serde(default)]
    sockets: BTreeMap<String, SocketLine>,
    #[serde(default)]
    crossings: Crossings,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerLine {
    total_ns: DurationNs,
    segments: Times,
}

impl From<CrossingLine> for Crossing {
    fn from(c: CrossingLine) -> Self {
        Self {
            send: c.send_ns,
            ready: c.ready_ns,
            recv: c.recv_ns,
            last_send: c.last_send_ns,
            last_ready: c.last_ready_ns,
            last_recv: c.last_recv_ns,
            bytes: c.bytes,
        }
    }
}

/// What the store says of a request beside its line.
pub(super) struct Told<'a> {
    pub(super) class: &'a str,
    pub(super) reason: &'a str,
    /// By segment.
    pub(super) times: Vec<(Segment, DurationNs)>,
    pub(super) details: Vec<(Segment, Detail, DurationNs)>,
}

/// Reads a line; `told` is what counts of it.
pub(super) fn read(line: &str, told: &Told<'_>) -> anyhow::Result<AttributedRequest> {
    let l: Line = serde_json::from_str(line)?;
    let evidence = |segment| l.evidence.get(&segment).copied().unwrap_or(Evidence::Kernel);
    let times = told.times.iter().map(|&(s, t)| (s, t, evidence(s)));
    let socket = |name: &str| socket(&l.sockets, name);
    let links = |l: Links| [l.client_loopback.into(), l.network.into(), l.server_loopback.into()];
    Ok(AttributedRequest {
        attribution: attribution(l.total_ns, times, &told.details)?,
        coverage: RequestCoverage {
            class: CLASSES.iter().find(|(_, name)| *name == told.class).map_or(CoverageClass::Unmatched, |(c, _)| *c),
            halves: sides(&l.coverage.halves),
            kernel: sides(&l.coverage.kernel),
            reason: reason(told.reason),
        },
        sockets: ["s1", "s2", "s3", "s4", "s5", "s6"].map(socket),
        request_crossings: links(l.crossings.request),
        response_crossings: links(l.crossings.response),
        tries: l.tries.into_iter().map(|t| one_try(t, l.start_monotonic_ns)).collect::<anyhow::Result<_>>()?,
        id: l.id,
        request_id: l.request_id.map(|id| RequestId(id.into())),
        protocol: l.protocol,
        method: l.method,
        path: l.path,
        response_code: l.response_code,
        response_flags: l.response_flags,
        attempts: l.attempts,
        grpc_status: l.grpc_status,
        client: l.client,
        server: l.server,
        start: wall(&l.start)?,
        start_monotonic: l.start_monotonic_ns,
        vantage: vantage(&l.total_vantage),
        connection_setup: l.connection_setup.map(|s| (s.start_ns, s.end_ns)),
        client_connect: l.client_connect_ns,
        // Only what tells requests of one hop apart needs it, and then all of them are read.
        upstream_cluster: None,
        parent: None,
        children: Vec::new(),
    })
}

/// Adds to a client's half what the server's node recorded.
pub(super) fn complete(request: &mut AttributedRequest, server_line: &str) -> anyhow::Result<()> {
    let nothing = Told { class: "", reason: "", times: Vec::new(), details: Vec::new() };
    let line: Line = serde_json::from_str(server_line)?;
    let times = line.segments.iter().map(|(s, t)| (*s, *t)).collect();
    let server = read(server_line, &Told { times, ..nothing })?;
    // The server's node has a monotonic clock of its own.
    let less = |r: &AttributedRequest| Some(r.start.0 - i64::try_from(r.start_monotonic?.0).ok()?);
    let shift = less(&server).zip(less(request)).map_or(0, |(theirs, ours)| theirs - ours);
    let moved = |at: Option<MonotonicNs>| at.map(|at| at.offset(DurationNs(shift)));
    let other = |c: Crossing| Crossing {
        send: moved(c.send),
        ready: moved(c.ready),
        recv: moved(c.recv),
        last_send: moved(c.last_send),
        last_ready: moved(c.last_ready),
        last_recv: moved(c.last_recv),
        ..c
    };
    let arrives = |sent: Crossing, came: Crossing| Crossing {
        ready: came.ready.or(came.last_ready),
        recv: came.recv.or(came.last_recv),
        last_ready: came.last_ready,
        last_recv: came.last_recv,
        ..sent
    };
    let (ours, theirs) = (request.request_crossings[1], other(server.request_crossings[1]));
    request.request_crossings[1] = arrives(ours, theirs);
    request.response_crossings[1] = arrives(other(server.response_crossings[1]), request.response_crossings[1]);
    request.request_crossings[2] = other(server.request_crossings[2]);
    request.response_crossings[2] = other(server.response_crossings[2]);
    request.sockets[3..].copy_from_slice(&server.sockets[3..]);
    let address = request.server.address.take();
    let service = request.server.service.take();
    request.server = Workload { service, address: address.or(server.server.address), ..server.server };
    request.response_flags.extend(server.response_flags);
    request.response_flags.sort();
    request.response_flags.dedup();
    request.coverage.halves = Sides::Both;
    request.coverage.kernel = Sides::Both;
    Ok(())
}

fn one_try(t: TryLine, start: Option<MonotonicNs>) -> anyhow::Result<Try> {
    let at = |since: Option<DurationNs>| Some(start?.offset(since?));
    let server =
        t.server.map(|s| attribution(s.total_ns, s.segments.into_iter().map(|(s, t)| (s, t, Evidence::Kernel)), &[]));
    let links = |l: Links| [l.network.into(), l.server_loopback.into()];
    Ok(Try {
        began: at(t.began_ns),
        ended: at(t.ended_ns),
        address: t.address,
        response_code: t.response_code,
        response_flags: t.response_flags,
        answered: t.answered,
        server: server.transpose()?,
        reason: t.reason.as_deref().and_then(reason),
        sockets: ["s3", "s4", "s5", "s6"].map(|name| socket(&t.sockets, name)),
        request_crossings: links(t.crossings.request),
        response_crossings: links(t.crossings.response),
    })
}

fn attribution(
    total: DurationNs,
    times: impl Iterator<Item = (Segment, DurationNs, Evidence)>,
    details: &[(Segment, Detail, DurationNs)],
) -> anyhow::Result<Attribution> {
    let split =
        times.fold(Attribution::of(total), |split, (segment, time, evidence)| split.add(segment, time, evidence));
    Ok(details.iter().fold(split, |split, &(s, d, t)| split.detail(s, d, t)).build()?)
}

fn socket(sockets: &BTreeMap<String, SocketLine>, name: &str) -> Option<SocketRef> {
    let s = sockets.get(name)?;
    Some(SocketRef { cookie: s.cookie, local: LocalAddr(s.local), remote: PeerAddr(s.remote) })
}

fn wall(text: &str) -> anyhow::Result<WallTime> {
    let at: jiff::Timestamp = text.parse()?;
    Ok(WallTime(i64::try_from(at.as_nanosecond())?))
}

fn sides(name: &str) -> Sides {
    let all = [Sides::Both, Sides::Client, Sides::Server];
    all.into_iter().find(|s| s.as_str() == name).unwrap_or(Sides::None)
}

fn vantage(name: &str) -> Vantage {
    let all = [Vantage::App, Vantage::ClientProxy, Vantage::ServerProxy];
    all.into_iter().find(|v| v.as_str() == name).unwrap_or(Vantage::Als)
}

/// The reason of a name, which lives as long as the program.
fn reason(name: &str) -> Option<&'static str> {
    let value = || serde_json::Value::from(name);
    let unmatched = serde_json::from_value::<UnmatchedReason>(value()).map(UnmatchedReason::as_str);
    unmatched.or_else(|_| serde_json::from_value::<AmbiguityReason>(value()).map(AmbiguityReason::as_str)).ok()
}
