//! One request in numbers: its segments, and the instants on its six sockets.

use super::bars::class;
use super::waterfall::outcome;
use crate::safe::visible;
use crate::text;
use meshdiff_analyzer::{AttributedRequest, Vantage};
use meshdiff_model::{Crossing, DurationNs, Evidence, MonotonicNs};

/// A segment in numbers.
pub(super) struct SegmentLine {
    pub(super) class: String,
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) exact: String,
    pub(super) share: String,
    pub(super) evidence: &'static str,
    pub(super) details: String,
}

/// A socket with its instants, after the start of its own half.
pub(super) struct SocketLine {
    pub(super) name: &'static str,
    pub(super) owner: &'static str,
    pub(super) addresses: String,
    pub(super) request: String,
    pub(super) response: String,
}

/// What else there is to say of a request.
pub(super) fn facts(r: &AttributedRequest) -> Vec<String> {
    let mut out = vec![
        format!("total {}", text::exact(r.attribution.total())),
        match r.vantage {
            Vantage::App => "measured at the client application's socket".to_owned(),
            Vantage::ClientProxy => "measured at the client sidecar's sockets".to_owned(),
            Vantage::ServerProxy => "measured at the server sidecar's sockets".to_owned(),
            Vantage::Als => "measured by Envoy's own clock".to_owned(),
        },
    ];
    if let Some(reason) = r.coverage.reason {
        out.push(format!("not fully seen: {}", text::reason(reason)));
    }
    if let Some(attempts) = r.attempts.filter(|a| *a > 1) {
        out.push(format!("{attempts} attempts"));
    }
    for (i, one) in r.tries.iter().enumerate() {
        let at = one.began.zip(r.start_monotonic).map(|(at, start)| format!(", +{}", text::exact(at - start)));
        let took = one.began.zip(one.ended).map(|(from, to)| format!(", took {}", text::exact(to - from)));
        let answered = if one.answered { ", answered" } else { "" };
        let [at, took] = [at, took].map(Option::unwrap_or_default);
        out.push(format!("attempt {}{}{at}{took}{answered}", i + 1, outcome(one)));
    }
    if !r.response_flags.is_empty() {
        out.push(format!("flags {}", r.response_flags.iter().map(|f| visible(f)).collect::<Vec<_>>().join(", ")));
    }
    if let Some(connect) = r.client_connect {
        out.push(format!("the application connected for {} before (not in the total)", text::duration(connect)));
    }
    out
}

/// A request's segments, to the nanosecond.
pub(super) fn segment_lines(r: &AttributedRequest) -> Vec<SegmentLine> {
    let total = r.attribution.total().0;
    r.attribution
        .segments()
        .iter()
        .map(|(segment, value)| SegmentLine {
            class: class(segment),
            name: text::segment(segment),
            value: text::duration(value),
            exact: text::exact(value),
            share: if total == 0 { "–".into() } else { text::share(value.0 as f64 / total as f64) },
            evidence: text::evidence(r.attribution.evidence().get(segment).unwrap_or(Evidence::Bound)),
            details: r
                .attribution
                .details()
                .iter()
                .filter(|(s, _, v)| *s == segment && *v != DurationNs::ZERO)
                .map(|(_, d, v)| format!("{} {}", text::detail(*d), text::duration(*v)))
                .collect::<Vec<_>>()
                .join(", "),
        })
        .collect()
}

/// The six sockets, each with the instants that happened *on it*, after S1.send on the client's clock and after S4.ready on the
/// server's: durations of one clock each.
pub(super) fn socket_lines(r: &AttributedRequest) -> Vec<SocketLine> {
    let client = r.start_monotonic;
    let server = r.request_crossings[1].ready.or(r.request_crossings[2].send);
    let after = |zero: Option<MonotonicNs>, name: &str, at: Option<MonotonicNs>| {
        Some(format!("{name} +{}", text::exact(at? - zero?)))
    };
    let sends = |zero, c: &Crossing| after(zero, "send", c.send).unwrap_or_else(|| "–".into());
    let receives = |zero, c: &Crossing| {
        let both = [after(zero, "ready", c.ready), after(zero, "recv", c.recv)];
        let text = both.into_iter().flatten().collect::<Vec<_>>().join(" · ");
        if text.is_empty() { "–".into() } else { text }
    };
    let [q1, q2, q3] = &r.request_crossings;
    let [p1, p2, p3] = &r.response_crossings;
    let rows = [
        ("S1", "client application", sends(client, q1), receives(client, p1)),
        ("S2", "client sidecar, downstream", receives(client, q1), sends(client, p1)),
        ("S3", "client sidecar, upstream", sends(client, q2), receives(client, p2)),
        ("S4", "server sidecar, downstream", receives(server, q2), sends(server, p2)),
        ("S5", "server sidecar, upstream", sends(server, q3), receives(server, p3)),
        ("S6", "server application", receives(server, q3), sends(server, p3)),
    ];
    rows.into_iter()
        .zip(&r.sockets)
        .map(|((name, owner, request, response), socket)| SocketLine {
            name,
            owner,
            addresses: socket.as_ref().map_or_else(|| "not found".into(), |s| format!("{} → {}", s.local, s.remote)),
            request,
            response,
        })
        .collect()
}
