//! The requests of captures, found before these go to the store: what is summed up there.
//!
//! Each request belongs to the capture in which it began. It is joined together with the captures before and after, so that it does not
//! matter where a recording was cut.

use super::accepted::Accepted;
use crate::agent;
use crate::analysis::{self, Joined};
use anyhow::Context;
use meshdiff_analyzer::{AttributedRequest, CoverageClass, attribute, parts};
use meshdiff_capture::clickhouse::{HalfRow, JoinedRequests, RequestKind, RequestRow, Split, capture_id};
use meshdiff_capture::{Capture, CaptureData, Meta};
use meshdiff_graph::MeshGraph;
use meshdiff_model::{
    Crossing, Detail, Direction, DurationNs, HopProtocol, JoinOutcome, JoinedHop, Link, MonotonicNs, Segment,
    SegmentMap, SeqNo, SocketCookie, UnmatchedReason, WallTime,
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
    let mut processes: BTreeMap<_, _> = std::mem::take(&mut whole.processes).into_iter().map(|p| (p.tgid, p)).collect();
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
    let names = unique_names(&requests);
    let mut list: Vec<RequestRow> =
        requests.iter().zip(lines).enumerate().map(|(i, (r, line))| row(r, i, &requests, &names, line)).collect();
    let wall = |at: MonotonicNs| data.meta.clock.to_wall(at).unwrap_or(data.meta.start.wall);
    let mut odd = |kind: RequestKind, start: WallTime, reason: Option<String>, namespace: Option<String>| {
        let id = format!("odd-{}", list.len());
        list.push(RequestRow { id, kind, reason, start, server_namespace: namespace, ..nobodys() });
    };
    if !errors.is_empty() {
        for hop in mesh.hops.iter().map(|h| &h.joined) {
            if let Err(error) = attribute(hop) {
                odd(RequestKind::Contradiction, start_of(hop, wall), Some(error.to_string()), None);
            }
        }
    }
    for (at, server) in &mesh.unlogged_by_servers {
        odd(RequestKind::Unlogged, wall(*at), None, server.namespace.clone());
    }

    let halves: Vec<usize> = (0..mesh.hops.len()).filter(|&i| is_half(&mesh.hops[i].joined)).collect();
    if halves.is_empty() {
        return Ok(list);
    }
    let accepted = Accepted::of(data, halves.iter().map(|&i| &mesh.hops[i].joined));
    for &i in &halves {
        let hop = &mut mesh.hops[i].joined;
        if !is_shared(hop) {
            accepted.propose(hop);
        }
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
        let half =
            if is_shared(alone) { shared_half(hop, request) } else { half(hop, alone, request, &mesh, &numbers) };
        list[place].half = Some(half);
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

/// Each request's name. Streams that begin in one call on one socket share the id that reports show.
fn unique_names(requests: &[AttributedRequest]) -> Vec<String> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let name = |r: &AttributedRequest, times: &mut usize| {
        *times += 1;
        if *times > 1 { format!("{}~{times}", r.id) } else { r.id.clone() }
    };
    requests.iter().map(|r| name(r, seen.entry(&r.id).or_default())).collect()
}

/// When something that is no request of a report began, as far as that is known.
fn start_of(hop: &JoinedHop, wall: impl Fn(MonotonicNs) -> WallTime) -> WallTime {
    let log = hop.client_log.as_ref().or(hop.server_log.as_ref()).map(|l| l.start_time);
    let kernel = hop.request.iter().filter_map(|c| c.send.or(c.ready)).min();
    kernel.map(wall).or(log).unwrap_or(WallTime(0))
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

fn row(r: &AttributedRequest, place: usize, all: &[AttributedRequest], names: &[String], line: String) -> RequestRow {
    let (client, server) = parts::hop_ends(r);
    let json = |w| serde_json::to_string(w).unwrap_or_default();
    RequestRow {
        id: names[place].clone(),
        parent: r.parent.map(|p| names[p].clone()),
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

/// True if the connection between the sidecars is encrypted and carries several requests at once, as far as one end of it tells.
fn is_shared(hop: &JoinedHop) -> bool {
    // At the accepting end the sidecar's log says what the client's end, where all is encrypted, cannot know.
    let (own, reason) = if hop.client_log.is_some() {
        (&hop.client_half, UnmatchedReason::ProtocolNotRead)
    } else {
        (&hop.server_half, UnmatchedReason::MultiplexedEncrypted)
    };
    own.reason() == Some(reason.as_str()) && hop.sockets[2..4] == [None; 2]
}

/// What the logs of both sidecars say of a request on a shared connection goes together so: the server's, as long as it says it served,
/// lies somewhere within the client's. Where, does not matter to any of its parts.
fn serve_by_log(hop: &mut JoinedHop) {
    let Some(log) = &hop.server_log else { return };
    let served = log.timings.time_to_first_downstream_tx_byte.or_else(|| log.timings.extent());
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    let sent = request.send.zip(response.ready).map_or(MonotonicNs(0), |(sent, _)| sent);
    let back = served.map(|served| sent.offset(served));
    let network = Link::Network as usize;
    hop.request[network].ready = Some(sent);
    (hop.response[network].send, hop.response[network].last_send) = (back, back);
}

fn take_as_whole(hop: &mut JoinedHop) {
    let network = Link::Network as usize;
    let client = hop.client_log.is_some();
    if is_shared(hop) {
        if !client {
            serve_by_log(hop);
        }
        return;
    }
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
    let (split, complete) = own_split(request, client, inside(hop));
    let inside = inside(hop).unwrap_or(DurationNs::ZERO);
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
        && speaks_for_itself(hop)
        && hop.gave_up.is_none()
        && hop.abandoned == [None; 2]
        && !hop.network_by_log
        && (client || request.server.workload.is_some());
    HalfRow {
        client,
        flow: address.map(|a| a.to_string()).unwrap_or_default(),
        key: address.zip(ends[0]).map(|(a, end)| format!("{a}#{}", end.0)).unwrap_or_default(),
        shared: false,
        alike: String::new(),
        answer_end: ends[1].unwrap_or_default().0,
        inside,
        came_at_once: came_alone.ready.is_some() && came_alone.recv.is_some(),
        sent_at_once: sent_alone.send.is_some() && sent_alone.send == sent_alone.last_send,
        plain: plain && ends[1].is_some(),
        request_id: log.and_then(|l| l.request_id.as_ref()).map(|id| unsampled(&id.0)),
        method: log.and_then(|l| l.method.as_deref()).map(str::to_owned),
        split,
    }
}

/// Half of a request on a connection that others share: the sidecars' logs tell how long it took beyond the client's, and how long the
/// server's served.
fn shared_half(hop: &JoinedHop, request: &AttributedRequest) -> HalfRow {
    let client = hop.client_log.is_some();
    let log = hop.client_log.as_ref().or(hop.server_log.as_ref());
    let beyond = request.attribution.segments().get(Segment::Unattributed);
    let inside = if client { beyond } else { inside(hop) };
    let (mut split, complete) = own_split(request, client, inside);
    if !client {
        // Of what its sidecar did meanwhile, a log that is not put on the kernel's clock says no more than how long it took.
        split.details.retain(|(segment, ..)| *segment != Segment::ServerSidecar);
    }
    let address = log.and_then(|l| {
        let downstream = l.downstream_direct_remote_address.map(|a| a.0);
        if client { l.upstream_local_address.map(|a| a.0) } else { downstream }
    });
    let id = log.and_then(|l| l.request_id.as_ref()).map(|id| unsampled(&id.0));
    let loopback = if client { Link::ClientLoopback } else { Link::ServerLoopback };
    let came = if client { hop.response_on(loopback) } else { hop.request_on(loopback) };
    let bodyless = !client && log.is_some_and(|l| l.request_body_bytes == 0) && came.last_ready.is_none();
    let plain = complete
        && (bodyless || (came.last_ready.is_some() && came.ready == came.last_ready))
        && speaks_for_itself(hop)
        && !hop.is_retried()
        && hop.attempts.is_empty()
        && hop.gave_up.is_none()
        && (client || request.server.workload.is_some());
    HalfRow {
        client,
        flow: address.map(|a| a.to_string()).unwrap_or_default(),
        key: address.zip(id.as_ref()).map(|(a, id)| format!("{a}#id#{id}")).unwrap_or_default(),
        shared: true,
        alike: log.map_or_else(String::new, |l| {
            format!("{:?} {:?} {} {}", l.path, l.response_code, l.request_body_bytes, l.response_body_bytes)
        }),
        answer_end: 0,
        inside: inside.unwrap_or(DurationNs::ZERO),
        came_at_once: false,
        sent_at_once: false,
        plain,
        request_id: id,
        method: log.and_then(|l| l.method.as_deref()).map(str::to_owned),
        split,
    }
}

/// False where frames that only the other node saw may say what protocol it is.
fn speaks_for_itself(hop: &JoinedHop) -> bool {
    let http2 = |protocol| matches!(protocol, HopProtocol::Http2 | HopProtocol::Grpc | HopProtocol::Http3);
    hop.http2.is_some() || hop.client_log.as_ref().is_none_or(|l| !http2(l.protocol))
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
        segments = without(&segments, Segment::Unattributed);
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
