//! One request's spans.

use super::ids::{self, SpanId, TraceId};
use super::wire::{self, CLIENT, ERROR, INTERNAL, KeyValue, Resource, SERVER, Span, Status};
use crate::clocks::{Origin, Origins};
use meshdiff_analyzer::AttributedRequest;
use meshdiff_model::{HopProtocol, MonotonicNs, Segment};
use std::net::SocketAddr;

/// A request's spans.
pub(super) struct Made {
    pub(super) spans: Vec<(Resource, Span)>,
    /// Beneath which the requests hang that its server made.
    pub(super) server: SpanId,
}

const THERE: &str = "request";
const BACK: &str = "response";

pub(super) fn of(r: &AttributedRequest, trace: TraceId, parent: Option<SpanId>) -> Made {
    let (client, server) = (Resource::of(&r.client), Resource::of(&r.server));
    let total = r.attribution.total().0.max(0);
    let root = ids::span(trace, r, "total");
    let span = |id: SpanId, parent: Option<SpanId>, name: String, kind: u8, (from, to): (i64, i64)| Span {
        trace_id: trace.hex(),
        span_id: id.hex(),
        parent_span_id: parent.map_or_else(String::new, SpanId::hex),
        name,
        kind,
        start_time_unix_nano: r.start.0.saturating_add(from).max(0).to_string(),
        end_time_unix_nano: r.start.0.saturating_add(to.max(from)).max(0).to_string(),
        attributes: Vec::new(),
        status: Status::default(),
    };
    let origins = Origins::of(r, None, 0);
    let mut whole = span(root, parent, name(r), CLIENT, (0, total));
    whole.attributes = attributes(r, origins);
    if r.response_code.is_none_or(|code| code == 0 || code >= 400) {
        whole.status.code = ERROR;
        let code = r.response_code.filter(|c| *c != 0);
        whole
            .attributes
            .push(wire::text("error.type", code.map_or_else(|| "no_response".to_owned(), |c| c.to_string())));
    }
    let mut spans = vec![(client.clone(), whole)];
    let mut below = root;
    for stretch in stretches(r, origins) {
        let Stretch { segment, way, from, to } = stretch;
        let of_server = matches!(segment, Segment::ServerSidecar | Segment::ServerLoopback | Segment::ServerApp);
        let is_app = segment == Segment::ServerApp;
        let part = if is_app { segment.as_str().to_owned() } else { format!("{} {way}", segment.as_str()) };
        let id = ids::span(trace, r, &part);
        let (name, kind) = if is_app { (name(r), SERVER) } else { (part, INTERNAL) };
        let mut made = span(id, Some(root), name, kind, (from, to));
        made.attributes.push(wire::text("meshdiff.segment", segment.as_str()));
        if is_app {
            made.attributes.extend(of_http(r));
            below = id;
            if r.response_code.is_some_and(|code| code >= 500) {
                made.status.code = ERROR;
            }
        } else {
            made.attributes.push(wire::text("meshdiff.direction", way));
        }
        spans.push((if of_server { server.clone() } else { client.clone() }, made));
    }
    Made { spans, server: below }
}

/// Of few different values, as OpenTelemetry asks: the path is an attribute.
fn name(r: &AttributedRequest) -> String {
    r.method.as_deref().map_or_else(|| r.protocol.as_str().to_owned(), str::to_owned)
}

fn of_http(r: &AttributedRequest) -> Vec<KeyValue> {
    let mut list = Vec::new();
    list.extend(r.method.as_deref().map(|m| wire::text("http.request.method", m)));
    list.extend(r.path.as_deref().map(|p| wire::text("url.path", p)));
    list.extend(r.response_code.filter(|c| *c != 0).map(|c| wire::number("http.response.status_code", i64::from(c))));
    let (protocol, version) = match r.protocol {
        HopProtocol::Http => ("http", None),
        HopProtocol::Http10 => ("http", Some("1.0")),
        HopProtocol::Http11 => ("http", Some("1.1")),
        HopProtocol::Http2 | HopProtocol::Grpc => ("http", Some("2")),
        HopProtocol::Http3 => ("http", Some("3")),
        HopProtocol::Tcp => ("tcp", None),
    };
    list.push(wire::text("network.protocol.name", protocol));
    list.extend(version.map(|v| wire::text("network.protocol.version", v)));
    if r.protocol == HopProtocol::Grpc {
        list.push(wire::text("rpc.system", "grpc"));
    }
    list
}

fn attributes(r: &AttributedRequest, origins: Origins) -> Vec<KeyValue> {
    let mut list = of_http(r);
    let address = r.server.address.as_deref();
    let parsed = address.and_then(|a| a.parse::<SocketAddr>().ok());
    let known = r.server.service.clone().or_else(|| r.server.workload.clone());
    list.extend(known.or_else(|| parsed.map(|a| a.ip().to_string())).map(|a| wire::text("server.address", a)));
    if let Some(address) = parsed {
        list.push(wire::number("server.port", i64::from(address.port())));
        list.push(wire::text("network.peer.address", address.ip().to_string()));
    }
    list.extend(r.attempts.filter(|n| *n > 1).map(|n| wire::number("http.request.resend_count", i64::from(n) - 1)));
    list.push(wire::text("meshdiff.request.id", r.id.as_str()));
    list.extend(r.request_id.as_ref().map(|id| wire::text("meshdiff.x_request_id", &*id.0)));
    if !r.response_flags.is_empty() {
        list.push(wire::texts("meshdiff.response_flags", r.response_flags.iter().map(|f| &**f)));
    }
    list.push(wire::text("meshdiff.vantage", r.vantage.as_str()));
    list.push(wire::flag("meshdiff.full", r.coverage.is_full()));
    list.extend(r.coverage.reason.map(|why| wire::text("meshdiff.reason", why)));
    if origins.centred {
        // Two clocks: when the server's spans were is not measured, how long they took is.
        list.push(wire::flag("meshdiff.server_centred", true));
    }
    for (segment, time) in r.attribution.segments().iter() {
        list.push(wire::number(format!("meshdiff.segment.{}.ns", segment.as_str()), time.0));
    }
    for (segment, detail, time) in r.attribution.details() {
        list.push(wire::number(format!("meshdiff.segment.{}.{}.ns", segment.as_str(), detail.as_str()), time.0));
    }
    list
}

/// A part of the way, in ns after the request's start.
struct Stretch {
    segment: Segment,
    way: &'static str,
    from: i64,
    to: i64,
}

/// The way from socket to socket, as far as both ends of a part were seen. What was not has no span: its time is the total's alone.
fn stretches(r: &AttributedRequest, o: Origins) -> Vec<Stretch> {
    let [q1, q2, q3] = &r.request_crossings;
    let [p1, p2, p3] = &r.response_crossings;
    let at = |origin: Option<Origin>, at: Option<MonotonicNs>| origin.zip(at).map(|(origin, at)| origin.show(at));
    let (c, s) = (|t| at(o.client, t), |t| at(o.server, t));
    let retry = r.attribution.segments().get(Segment::Retry).unwrap_or_default().0;
    let sent = c(q2.send);
    let first_sent = sent.map(|t| t - retry);
    let setup = r.connection_setup.map(|(from, to)| (c(Some(from)).max(c(q1.ready)), c(Some(to))));
    let (setup_from, setup_to) = setup.unwrap_or_default();
    let parts = [
        (Segment::ClientLoopback, THERE, c(q1.send), c(q1.ready)),
        (Segment::ClientSidecar, THERE, c(q1.ready), first_sent),
        (Segment::ConnectionSetup, THERE, setup_from, setup_to),
        (Segment::Retry, THERE, first_sent.filter(|_| retry > 0), sent),
        (Segment::Network, THERE, sent, s(q2.ready)),
        (Segment::ServerSidecar, THERE, s(q2.ready), s(q3.send)),
        (Segment::ServerLoopback, THERE, s(q3.send), s(q3.ready)),
        (Segment::ServerApp, THERE, s(q3.ready), s(p3.last_send.or(p3.send))),
        (Segment::ServerLoopback, BACK, s(p3.send), s(p3.ready)),
        (Segment::ServerSidecar, BACK, s(p3.ready), s(p2.send)),
        (Segment::Network, BACK, s(p2.send), c(p2.ready)),
        (Segment::ClientSidecar, BACK, c(p2.ready), c(p1.send)),
        (Segment::ClientLoopback, BACK, c(p1.send), c(p1.ready)),
    ];
    let seen = |(segment, way, from, to): (Segment, &'static str, Option<i64>, Option<i64>)| {
        let (from, to) = from.zip(to)?;
        (to >= from).then_some(Stretch { segment, way, from, to })
    };
    parts.into_iter().filter_map(seen).collect()
}
