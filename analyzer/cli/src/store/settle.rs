//! The requests of captures, found before these go to the store: what is summed up there.
//!
//! Each request belongs to the capture in which it began. It is joined together with the captures before and after, so that it does not
//! matter where a recording was cut.

use crate::agent;
use crate::analysis::{self, Joined};
use anyhow::Context;
use meshdiff_analyzer::{AttributedRequest, CoverageClass, attribute, parts};
use meshdiff_capture::clickhouse::{HalfRow, JoinedRequests, RequestKind, RequestRow, Split, capture_id};
use meshdiff_capture::{Capture, CaptureData, Meta};
use meshdiff_graph::MeshGraph;
use meshdiff_model::{
    Crossing, Detail, Direction, DurationNs, JoinOutcome, JoinedHop, Link, MonotonicNs, Segment, SegmentMap, SeqNo,
    SocketCookie, UnmatchedReason, WallTime,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Captures that follow each other, of which one's requests are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours<'a> {
    pub(crate) before: Option<&'a Path>,
    pub(crate) of: &'a Path,
    pub(crate) after: Option<&'a Path>,
}

/// Finds the requests that began in a capture.
pub(crate) fn settle(neighbours: Neighbours<'_>) -> anyhow::Result<JoinedRequests> {
    let context = || format!("cannot find the requests of {}", neighbours.of.display());
    let own = Capture::open(neighbours.of).with_context(context)?.meta().clone();
    let mut captures = Vec::new();
    let mut from = WallTime(i64::MIN);
    let mut to = WallTime(i64::MAX);
    for path in [neighbours.before, Some(neighbours.of), neighbours.after].into_iter().flatten() {
        let data = Capture::open(path).and_then(|c| c.read()).with_context(context)?;
        if data.meta.host.boot_id != own.host.boot_id || data.meta.host.hostname != own.host.hostname {
            continue;
        }
        if Some(path) == neighbours.before {
            from = own.start.wall;
        } else if Some(path) == neighbours.after {
            to = data.meta.start.wall;
        }
        captures.push(data);
    }
    let with = captures.iter().map(|c| capture_id(&c.meta)).collect();
    let Some(mut data) = together(captures) else { return Ok(JoinedRequests::default()) };
    let rows = rows(&mut data)?.into_iter().filter(|r| from <= r.start && r.start < to).collect();
    Ok(JoinedRequests { with, rows })
}

/// Captures of one boot, in order, as one.
fn together(captures: Vec<CaptureData>) -> Option<CaptureData> {
    let metas: Vec<Meta> = captures.iter().map(|c| c.meta.clone()).collect();
    let mut all = captures.into_iter();
    let mut whole = all.next()?;
    if metas.len() > 1 {
        whole.meta = agent::merged_metas(&metas)?;
    }
    let mut sockets: BTreeMap<_, _> = std::mem::take(&mut whole.sockets).into_iter().map(|s| (s.cookie, s)).collect();
    let mut proxies: BTreeMap<_, _> =
        std::mem::take(&mut whole.proxies).into_iter().map(|p| (p.node.clone(), p)).collect();
    let mut processes: BTreeMap<_, _> =
        std::mem::take(&mut whole.processes).into_iter().map(|p| (p.tgid, p)).collect();
    for data in all {
        sockets.extend(data.sockets.into_iter().map(|s| (s.cookie, s)));
        proxies.extend(data.proxies.into_iter().map(|p| (p.node.clone(), p)));
        processes.extend(data.processes.into_iter().map(|p| (p.tgid, p)));
        whole.messages.extend(data.messages);
        whole.http2_streams.extend(data.http2_streams);
        whole.access_logs.extend(data.access_logs);
    }
    whole.sockets = sockets.into_values().collect();
    whole.proxies = proxies.into_values().collect();
    whole.processes = processes.into_values().collect();
    whole.metrics.clear();
    // Stable: what was recorded of one socket and direction stays in its order.
    whole.messages.sort_by_key(|m| (m.socket, m.direction));
    whole.http2_streams.sort_by_key(|s| s.socket);
    Some(whole)
}

fn rows(data: &mut CaptureData) -> anyhow::Result<Vec<RequestRow>> {
    let Joined { mut mesh, directory, requests, errors } = analysis::join(data, None);
    let places = places(&mesh, errors.is_empty());
    let lines = lines(&requests)?;
    let mut list: Vec<RequestRow> = requests.iter().zip(lines).map(|(r, line)| row(r, &requests, line)).collect();
    let starts = |at: MonotonicNs| data.meta.clock.to_wall(at).unwrap_or(data.meta.start.wall);
    let mut odd = |kind: RequestKind, start: WallTime, reason: Option<String>, namespace: Option<String>| {
        let id = format!("{}-{}", kind_name(&kind), list.len());
        list.push(RequestRow { id, kind, reason, start, server_namespace: namespace, ..nobodys() });
    };
    // Where in the order of requests it was does not matter for what is counted.
    errors.iter().for_each(|e| odd(RequestKind::Contradiction, data.meta.start.wall, Some(e.to_string()), None));
    for (at, server) in &mesh.unlogged_by_servers {
        odd(RequestKind::Unlogged, starts(*at), None, server.namespace.clone());
    }

    let halves: Vec<usize> = (0..mesh.hops.len()).filter(|&i| is_half(&mesh.hops[i].joined)).collect();
    if halves.is_empty() {
        return Ok(list);
    }
    let numbers = Numbers::of(data, &mesh, &halves);
    let alone: Vec<JoinedHop> = halves.iter().map(|&i| mesh.hops[i].joined.clone()).collect();
    // What came over the connection between the nodes in one piece was ready with its last byte, also where only the other node can
    // tell where it begins. Whether it was one piece the other node says.
    halves.iter().for_each(|&i| take_as_whole(&mut mesh.hops[i].joined));
    let (seen_as_halves, errors) = meshdiff_analyzer::attribute_all(&mesh, &directory, &data.meta.clock);
    let places_as_halves = self::places(&mesh, errors.is_empty());
    for (&i, alone) in halves.iter().zip(&alone) {
        let (Some(place), Some(as_half)) = (places[i], places_as_halves[i]) else { continue };
        let request = &seen_as_halves[as_half];
        let hop = &mesh.hops[i].joined;
        list[place].half = Some(half(hop, alone, request, &mesh, &numbers));
        list[place].calls_whole = calls_whole(request, &seen_as_halves);
    }
    Ok(list)
}

/// Each hop's place among the attributed requests.
fn places(mesh: &MeshGraph, all: bool) -> Vec<Option<usize>> {
    let mut next = 0;
    let mut place = |hop: &JoinedHop| {
        (all || attribute(hop).is_ok()).then(|| {
            next += 1;
            next - 1
        })
    };
    mesh.hops.iter().map(|h| place(&h.joined)).collect()
}

fn lines(requests: &[AttributedRequest]) -> anyhow::Result<Vec<String>> {
    let mut text = Vec::new();
    meshdiff_reports::requests::write_lines(requests, true, &mut text)?;
    Ok(String::from_utf8(text)?.lines().map(str::to_owned).collect())
}

const fn kind_name(kind: &RequestKind) -> &'static str {
    match kind {
        RequestKind::Request(class) => class,
        RequestKind::Contradiction => "contradiction",
        RequestKind::Unlogged => "unlogged",
    }
}

fn nobodys() -> RequestRow {
    RequestRow {
        id: String::new(),
        parent: None,
        kind: RequestKind::Contradiction,
        reason: None,
        start: WallTime(0),
        client: String::new(),
        server: String::new(),
        service: None,
        client_namespace: None,
        server_namespace: None,
        protocol: String::new(),
        response_code: 0,
        total: DurationNs::ZERO,
        split: Split::default(),
        client_seen: false,
        calls_whole: true,
        line: String::new(),
        half: None,
    }
}

fn row(r: &AttributedRequest, all: &[AttributedRequest], line: String) -> RequestRow {
    let (client, server) = parts::hop_ends(r);
    let json = |w| serde_json::to_string(w).unwrap_or_default();
    RequestRow {
        id: r.id.clone(),
        parent: r.parent.map(|p| all[p].id.clone()),
        kind: RequestKind::Request(class_name(r.coverage.class)),
        reason: r.coverage.reason.map(str::to_owned),
        start: r.start,
        client: json(&client),
        server: json(&parts::place_of(&server)),
        service: server.service,
        client_namespace: r.client.namespace.clone(),
        server_namespace: r.server.namespace.clone(),
        protocol: r.protocol.as_str().to_owned(),
        response_code: r.response_code.unwrap_or(0),
        total: r.attribution.total(),
        split: Split { segments: *r.attribution.segments(), details: r.attribution.details().to_vec() },
        client_seen: r.request_crossings[0].send.is_some(),
        calls_whole: calls_whole(r, all),
        line,
        half: None,
    }
}

/// The names of coverage's rows.
pub(super) const CLASSES: [(CoverageClass, &str); 6] = [
    (CoverageClass::Full, "full"),
    (CoverageClass::PartialClient, "partial_client"),
    (CoverageClass::PartialServer, "partial_server"),
    (CoverageClass::PartialAls, "partial_als"),
    (CoverageClass::Ambiguous, "ambiguous"),
    (CoverageClass::Unmatched, "unmatched"),
];

fn class_name(class: CoverageClass) -> &'static str {
    CLASSES.iter().find(|(c, _)| *c == class).map_or("unmatched", |(_, name)| name)
}

/// True if the calls that the server made meanwhile count with all of their time: one after the other, and none while a body was under
/// way.
fn calls_whole(r: &AttributedRequest, all: &[AttributedRequest]) -> bool {
    let calls: DurationNs = r.children.iter().map(|&c| all[c].attribution.total()).sum();
    r.attribution.detail(Segment::ServerApp, Detail::DownstreamCalls).unwrap_or(DurationNs::ZERO) == calls
}

/// True if only one of the two sidecars' nodes may have recorded it, which is this one.
fn is_half(hop: &JoinedHop) -> bool {
    match (&hop.client_log, &hop.server_log) {
        (Some(_), None) => matches!(
            hop.server_half,
            JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing | UnmatchedReason::StillOpen)
        ),
        (None, Some(_)) => true,
        _ => false,
    }
}

/// The crossing of the network on which something came here, and the one on which something was sent.
const fn crossings(hop: &JoinedHop) -> (&Crossing, &Crossing) {
    let (request, response) = (hop.request_on(Link::Network), hop.response_on(Link::Network));
    if hop.client_log.is_some() { (response, request) } else { (request, response) }
}

fn take_as_whole(hop: &mut JoinedHop) {
    let network = Link::Network as usize;
    let client = hop.client_log.is_some();
    let came = if client { &mut hop.response[network] } else { &mut hop.request[network] };
    if came.ready.is_none() || came.recv.is_none() {
        (came.ready, came.recv) = (came.last_ready, came.last_recv);
    }
    if !client {
        // What is sent after the first byte is the client's to wait for.
        hop.response[network].last_send = hop.response[network].send;
    }
}

fn half(
    hop: &JoinedHop,
    alone: &JoinedHop,
    request: &AttributedRequest,
    mesh: &MeshGraph,
    numbers: &Numbers,
) -> HalfRow {
    let client = hop.client_log.is_some();
    let (came, sent) = crossings(hop);
    let (came_alone, sent_alone) = crossings(alone);
    let log = hop.client_log.as_ref().or(hop.server_log.as_ref());
    let socket = |i: usize| hop.sockets[i].and_then(|c| mesh.socket(c));
    let address = if client {
        let logged = log.and_then(|l| l.upstream_local_address).map(|a| a.0);
        socket(2).map(|s| s.local.0).or(logged)
    } else {
        let logged = log.and_then(|l| l.downstream_direct_remote_address).map(|a| a.0);
        socket(3).map(|s| s.remote.0).or(logged)
    };
    let cookie = hop.sockets[if client { 2 } else { 3 }];
    let came_end = cookie.and_then(|c| numbers.came_until(c, came.last_ready.or(came.ready)?));
    let sent_end = cookie.and_then(|c| numbers.sent_from(c, sent.send?)).map(|n| n.advance(sent.bytes));
    let ends = if client { [sent_end, came_end] } else { [came_end, sent_end] };
    let (mut split, complete) = own_split(request, client, inside(hop));
    let inside = inside(hop).unwrap_or(DurationNs::ZERO);
    if client && split.segments.get(Segment::Unattributed) == Some(DurationNs::ZERO) {
        split.segments = without(&split.segments, Segment::Unattributed);
    }
    let at_once = |c: &Crossing| c.last_ready.is_some() && c.ready == c.last_ready;
    let read_at_once = |c: &Crossing| at_once(c) && c.recv.is_some() && c.recv == c.last_recv;
    let body = log.map_or(1, |l| l.request_body_bytes);
    let bodies = if client {
        at_once(hop.response_on(Link::ClientLoopback))
    } else {
        let arrived = hop.request_on(Link::ServerLoopback);
        read_at_once(arrived) || (body == 0 && (at_once(arrived) || arrived.last_ready.is_none()))
    };
    let in_pieces = hop.flows.request[1].is_some() || hop.flows.response[1].is_some();
    let plain = complete
        && bodies
        && !in_pieces
        && !hop.is_retried()
        && hop.attempts.is_empty()
        && hop.http2.is_none()
        && hop.gave_up.is_none()
        && hop.abandoned == [None; 2]
        && !hop.network_by_log
        && (client || request.server.workload.is_some());
    HalfRow {
        client,
        flow: address.filter(|_| ends[0].is_some()).map(|a| a.to_string()).unwrap_or_default(),
        ends: ends.map(|n| n.unwrap_or_default().0),
        inside,
        came_at_once: came_alone.ready.is_some() && came_alone.recv.is_some(),
        sent_at_once: sent_alone.send.is_some() && sent_alone.send == sent_alone.last_send,
        plain: plain && ends[1].is_some(),
        request_id: log.and_then(|l| l.request_id.as_ref()).map(|id| unsampled(&id.0)),
        method: log.and_then(|l| l.method.as_deref()).map(str::to_owned),
        split,
    }
}

/// What lies beyond the client's sidecar, or within the server's.
fn inside(hop: &JoinedHop) -> Option<DurationNs> {
    let (request, response) = (hop.request_on(Link::Network), hop.response_on(Link::Network));
    if hop.client_log.is_some() { Some(response.ready? - request.send?) } else { Some(response.send? - request.ready?) }
}

/// The split of what is this half's own, and whether that is all of its time.
fn own_split(request: &AttributedRequest, client: bool, inside: Option<DurationNs>) -> (Split, bool) {
    let a = &request.attribution;
    let Some(inside) = inside else { return (Split::default(), false) };
    let mut segments = *a.segments();
    let complete = if client {
        let rest = segments.get(Segment::Unattributed).unwrap_or(DurationNs::ZERO) - inside;
        segments.set(Segment::Unattributed, rest);
        rest == DurationNs::ZERO
    } else {
        // The client waits for the rest of the response, and says for how long.
        segments = without(&segments, Segment::Transfer);
        segments.sum() == inside && segments.get(Segment::Unattributed).is_none()
    };
    (Split { segments, details: a.details().to_vec() }, complete)
}

fn without(map: &SegmentMap, segment: Segment) -> SegmentMap {
    let mut rest = SegmentMap::empty();
    map.iter().filter(|(s, _)| *s != segment).for_each(|(s, t)| rest.set(s, t));
    rest
}

/// A request id without the character that Envoy's sampling rewrites.
fn unsampled(id: &str) -> String {
    match (id.get(..14), id.get(15..)) {
        (Some(before), Some(after)) if id.len() == 36 => format!("{before}-{after}"),
        _ => id.to_owned(),
    }
}

/// The sequence numbers of what was sent and of what came, by when.
struct Numbers {
    sent: HashMap<(SocketCookie, MonotonicNs), SeqNo>,
    came: HashMap<(SocketCookie, MonotonicNs), SeqNo>,
}

impl Numbers {
    /// Those of the halves' sockets between the nodes.
    fn of(data: &CaptureData, mesh: &MeshGraph, halves: &[usize]) -> Self {
        let sockets: std::collections::HashSet<SocketCookie> =
            halves.iter().flat_map(|&i| &mesh.hops[i].joined.sockets[2..4]).flatten().copied().collect();
        let mut numbers = Self { sent: HashMap::new(), came: HashMap::new() };
        for m in data.messages.iter().filter(|m| sockets.contains(&m.socket)) {
            match m.direction {
                Direction::Egress => m.sends.iter().for_each(|s| {
                    numbers.sent.entry((m.socket, s.at)).or_insert(s.seq);
                }),
                // Of several at one instant the last tells how far it had come.
                Direction::Ingress => numbers.came.extend(m.readies.iter().map(|s| ((m.socket, s.at), s.seq))),
            }
        }
        numbers
    }

    fn sent_from(&self, socket: SocketCookie, at: MonotonicNs) -> Option<SeqNo> {
        self.sent.get(&(socket, at)).copied()
    }

    fn came_until(&self, socket: SocketCookie, at: MonotonicNs) -> Option<SeqNo> {
        self.came.get(&(socket, at)).copied()
    }
}
