//! The slowest requests in time: each request's way over its six sockets, and beneath it the calls that it caused.

use super::MAX_WATERFALLS;
use super::bars::{class, percent};
use super::hops::EndView;
use super::numbers::{SegmentLine, SocketLine, facts, segment_lines, socket_lines};
use crate::clocks::{Origin, Origins};
use crate::safe::{shorten, visible};
use crate::text;
use meshdiff_analyzer::{AttributedRequest, Try};
use meshdiff_model::{Crossing, DurationNs, MonotonicNs, Segment};

/// Requests drawn within one waterfall; the rest is counted.
const MAX_ROWS: usize = 60;
/// Waterfalls that are open at first.
const OPEN: usize = 2;

/// All waterfalls.
pub(super) struct WaterfallsView {
    pub(super) items: Vec<WaterfallView>,
    pub(super) hidden: usize,
}

/// One request and all that it caused.
pub(super) struct WaterfallView {
    pub(super) open: bool,
    pub(super) client: EndView,
    pub(super) server: EndView,
    pub(super) what: Request,
    pub(super) total: String,
    pub(super) start: String,
    pub(super) ticks: Vec<Tick>,
    pub(super) rows: Vec<RowView>,
    pub(super) hidden_rows: usize,
    pub(super) notes: Vec<&'static str>,
}

/// What a request asked for and what it got.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) path_full: String,
    pub(super) status: String,
    pub(super) status_class: &'static str,
    pub(super) id: String,
}

/// A mark of the time axis.
pub(super) struct Tick {
    pub(super) left: String,
    pub(super) label: String,
    pub(super) last: bool,
}

/// One request of a waterfall.
pub(super) struct RowView {
    pub(super) depth: usize,
    pub(super) client: EndView,
    pub(super) server: EndView,
    pub(super) what: Request,
    pub(super) total: String,
    pub(super) left: String,
    pub(super) width: String,
    pub(super) spans: Vec<SpanView>,
    pub(super) alt: String,
    pub(super) segments: Vec<SegmentLine>,
    pub(super) sockets: Vec<SocketLine>,
    pub(super) facts: Vec<String>,
}

/// A coloured stretch of time.
pub(super) struct SpanView {
    pub(super) class: String,
    pub(super) left: String,
    pub(super) width: String,
    pub(super) tip: String,
}

impl WaterfallsView {
    pub(super) fn of(list: &[AttributedRequest]) -> Self {
        let parent = |i: usize| list[i].parent.filter(|p| *p < i);
        let roots: Vec<usize> = (0..list.len()).filter(|i| parent(*i).is_none()).collect();
        let items = roots
            .iter()
            .take(MAX_WATERFALLS)
            .enumerate()
            .map(|(rank, &root)| {
                let end = (root + 1..list.len()).find(|i| parent(*i).is_none()).unwrap_or(list.len());
                WaterfallView::of(list, root, end, rank < OPEN)
            })
            .collect();
        Self { items, hidden: roots.len().saturating_sub(MAX_WATERFALLS) }
    }
}

impl WaterfallView {
    fn of(list: &[AttributedRequest], root: usize, end: usize, open: bool) -> Self {
        let r = &list[root];
        let total = r.attribution.total().0.max(1);
        let mut notes = Vec::new();
        let mut note = |text| {
            if !notes.contains(&text) {
                notes.push(text);
            }
        };
        let mut origins: Vec<Origins> = Vec::new();
        let mut depth: Vec<usize> = Vec::new();
        let mut rows = Vec::new();
        for i in root..end {
            let request = &list[i];
            let parent = request.parent.filter(|p| *p >= root && *p < i).map(|p| p - root);
            depth.push(parent.map_or(0, |p| depth[p] + 1));
            // A child's client runs on its parent's server's node, so it shares that half's clock.
            let inherited = if i == root { None } else { parent.and_then(|p| origins[p].server) };
            let wall = i128::from(request.start.0) - i128::from(r.start.0);
            let o = Origins::of(request, inherited, wall);
            if o.centred {
                note("Client and server ran on different clocks: each server half is centred in its network time.");
            }
            if i != root && inherited.is_none() {
                note("Calls without a measured parent are placed by the wall clock.");
            }
            origins.push(o);
            if rows.len() < MAX_ROWS {
                let calls = calls(list, request, o);
                let row = RowView::of(request, o, wall, total, depth[i - root], calls);
                if row.spans.iter().any(|s| s.class.contains("schematic")) {
                    note("Where socket instants are missing, segments are drawn in order, not in time.");
                }
                rows.push(row);
            }
        }
        Self {
            open,
            client: EndView::of(&r.client),
            server: EndView::of(&r.server),
            what: Request::of(r),
            total: text::duration(r.attribution.total()),
            start: text::rfc3339(r.start),
            ticks: ticks(total),
            hidden_rows: (end - root) - rows.len(),
            rows,
            notes,
        }
    }
}

impl Request {
    fn of(r: &AttributedRequest) -> Self {
        let path_full = r.path.as_deref().map_or_else(String::new, visible);
        Self {
            method: r.method.as_deref().map_or_else(|| r.protocol.as_str().to_owned(), visible),
            path: shorten(&path_full, 64),
            path_full,
            status: match r.response_code {
                Some(0) | None => "no status".into(),
                Some(code) => code.to_string(),
            },
            status_class: match r.response_code {
                Some(100..400) => "ok",
                Some(400..500) => "warn",
                _ => "bad",
            },
            id: r.request_id.as_ref().map_or_else(|| visible(&r.id), |id| visible(&id.0)),
        }
    }
}

/// Marks at round times, about five of them.
fn ticks(total: i64) -> Vec<Tick> {
    // The first of 1, 2, 5, 10, 20, 50 … that leaves no more than seven marks.
    let step = (0..19)
        .flat_map(|power| [1, 2, 5].map(|m| 10i64.pow(power).saturating_mul(m)))
        .find(|step| total / step <= 6)
        .unwrap_or(i64::MAX);
    let share = |ns: i64| ns as f64 / total as f64;
    (0..=total / step)
        .map(|i| i * step)
        .map(|ns| Tick {
            left: percent(share(ns)),
            label: if ns == 0 { "0".into() } else { tick_label(ns) },
            last: share(ns) > 0.94,
        })
        .collect()
}

/// A round time without the zeros that a measured one carries.
fn tick_label(ns: i64) -> String {
    let text = text::duration(DurationNs(ns));
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// A stretch before it is scaled to the track.
struct Span {
    class: String,
    name: String,
    from: i64,
    to: i64,
}

impl RowView {
    fn of(r: &AttributedRequest, o: Origins, wall: i128, root_total: i64, depth: usize, calls: Vec<Span>) -> Self {
        let total = r.attribution.total().0;
        let start = match (o.client, r.start_monotonic) {
            (Some(origin), Some(at)) => origin.show(at),
            _ => i64::try_from(wall).unwrap_or(0),
        };
        let mut spans = timed(r, o, start).unwrap_or_else(|| in_order(r, start));
        spans.extend(calls);
        let scale = |ns: i64| (ns as f64 / root_total as f64).clamp(-0.02, 1.02);
        let views = spans
            .into_iter()
            .filter(|s| s.to > s.from)
            .map(|s| SpanView {
                class: s.class,
                left: percent(scale(s.from)),
                width: percent(scale(s.to) - scale(s.from)),
                tip: format!(
                    "{}: {} (from +{} to +{})",
                    s.name,
                    text::duration(DurationNs(s.to - s.from)),
                    text::duration(DurationNs(s.from)),
                    text::duration(DurationNs(s.to)),
                ),
            })
            .collect();
        let segments = segment_lines(r);
        let alt = segments.iter().map(|s| format!("{} {}", s.name, s.value)).collect::<Vec<_>>().join(", ");
        Self {
            depth,
            client: EndView::of(&r.client),
            server: EndView::of(&r.server),
            what: Request::of(r),
            total: text::duration(r.attribution.total()),
            left: percent(scale(start)),
            width: percent(scale(start + total) - scale(start)),
            spans: views,
            alt,
            segments,
            sockets: socket_lines(r),
            facts: facts(r),
        }
    }
}

/// Spans by instants; `None` if those on the client's loopback are missing, without which nothing can be placed.
fn timed(r: &AttributedRequest, o: Origins, start: i64) -> Option<Vec<Span>> {
    let [q1, q2, q3] = &r.request_crossings;
    let [p1, p2, p3] = &r.response_crossings;
    let client = o.client?;
    let c = |at: Option<MonotonicNs>| at.map(|at| client.show(at));
    let s = |at: Option<MonotonicNs>| o.server.and_then(|server| at.map(|at| server.show(at)));
    let (s2, s1) = (c(q1.ready)?, c(p1.ready)?);
    let end = start + r.attribution.total().0;
    let mut out = vec![Span { class: class(Segment::Unattributed), name: "not placed".into(), from: start, to: end }];
    let mut add = |segment: Segment, way: &str, from: Option<i64>, to: Option<i64>| {
        if let (Some(from), Some(to)) = (from, to) {
            let name = format!("{}{way}", text::segment(segment));
            out.push(Span { class: class(segment), name, from, to });
        }
    };
    const THERE: &str = ", request";
    const BACK: &str = ", response";
    let retry = r.attribution.segments().get(Segment::Retry).unwrap_or_default().0;
    // What was never sent ends with its last attempt's beginning.
    let sent = c(q2.send.or_else(|| r.tries.iter().find(|t| t.answered)?.began));
    add(Segment::ClientLoopback, THERE, Some(start), Some(s2));
    add(Segment::ClientSidecar, THERE, Some(s2), sent.map(|t| t - retry));
    add(Segment::Retry, "", sent.map(|t| t - retry), sent);
    if let Some((from, to)) = r.connection_setup {
        add(Segment::ConnectionSetup, "", Some(client.show(from).max(s2)), Some(client.show(to)));
    }
    add(Segment::Network, THERE, sent, s(q2.ready));
    add(Segment::ServerSidecar, THERE, s(q2.ready), s(q3.send));
    add(Segment::ServerLoopback, THERE, s(q3.send), s(q3.ready));
    let told = !r.attribution.spans().is_empty();
    if !told {
        add(Segment::ServerApp, "", s(q3.ready), s(p3.send));
    }
    // While the request's body is under way, the application cannot be blamed for all of the time.
    let body_end = s(q3.last_ready).zip(s(p3.send)).map(|(a, b)| a.min(b));
    if !told && r.attribution.segments().get(Segment::Transfer).is_some() {
        add(Segment::Transfer, ", request body", s(q3.ready), body_end);
    }
    add(Segment::ServerLoopback, BACK, s(p3.send), s(p3.ready));
    add(Segment::ServerSidecar, BACK, s(p3.ready), s(p2.send));
    add(Segment::Network, BACK, s(p2.send), c(p2.ready));
    add(Segment::ClientSidecar, BACK, c(p2.ready), c(p1.send));
    add(Segment::ClientLoopback, BACK, c(p1.send), Some(s1));
    if told {
        body(r, &mut out, o);
    } else {
        tail(r, &mut out, s1, end, o);
    }
    attempts(r, &mut out, client);
    queues(r, &mut out, o);
    Some(out)
}

/// Body time as it was measured: until the server application answered by its clock, and from the response's head on by the client's.
fn body(r: &AttributedRequest, out: &mut Vec<Span>, o: Origins) {
    let served = r.request_crossings[2].ready.zip(r.response_crossings[2].send);
    for span in r.attribution.spans() {
        let of_server = served.is_some_and(|(from, to)| from <= span.from && span.to <= to);
        let Some(origin) = (if of_server { o.server } else { o.client }) else { continue };
        let detail = span.detail.map_or_else(String::new, |d| format!(", {}", text::detail(d)));
        out.push(Span {
            class: class(span.segment),
            name: format!("{}{detail}", text::segment(span.segment)),
            from: origin.show(span.from),
            to: origin.show(span.to),
        });
    }
}

/// Attempts before the one that was answered; between them, striped, the sidecar waited before it tried again.
fn attempts(r: &AttributedRequest, out: &mut Vec<Span>, client: Origin) {
    let Some(until) = r.tries.iter().find(|t| t.answered).and_then(|t| t.began) else { return };
    let before: Vec<_> = r.tries.iter().filter(|t| t.began.is_some_and(|at| at < until)).collect();
    for (i, one) in before.iter().enumerate() {
        let Some(began) = one.began else { continue };
        let ended = one.ended.map_or(until, |at| at.min(until));
        let name = format!("Attempt {} of {}{}", i + 1, r.tries.len(), outcome(one));
        out.push(Span { class: class(Segment::Retry), name, from: client.show(began), to: client.show(ended) });
        let next = before.get(i + 1).and_then(|t| t.began).unwrap_or(until);
        if next > ended {
            let name = "Waiting before the next attempt".to_owned();
            let class = format!("{} calls", class(Segment::Retry));
            out.push(Span { class, name, from: client.show(ended), to: client.show(next) });
        }
    }
}

/// What came of an attempt, in words.
pub(super) fn outcome(one: &Try) -> String {
    let host = one.address.as_deref().map_or_else(String::new, |a| format!(" to {}", visible(a)));
    let code = one.response_code.map_or_else(|| "no answer".to_owned(), |code| code.to_string());
    let flags: Vec<String> = one.response_flags.iter().map(|f| visible(f)).collect();
    let flags = if flags.is_empty() { String::new() } else { format!(" ({})", flags.join(", ")) };
    format!("{host}: {code}{flags}")
}

/// From the response's head at the client until its last byte was read: the server still sending, bytes under way, the
/// client not reading. How long each took is measured, their order within is not.
fn tail(r: &AttributedRequest, out: &mut Vec<Span>, from: i64, end: i64, o: Origins) {
    let segments = r.attribution.segments();
    let head = o
        .server
        .and_then(|s| Some(s.show(r.response_crossings[2].send?) - s.show(r.request_crossings[2].ready?)))
        .unwrap_or(0);
    let app = segments.get(Segment::ServerApp).unwrap_or_default().0;
    let value = |s: Segment| segments.get(s).unwrap_or_default().0;
    let mut at = from;
    for (segment, ns, name) in [
        (Segment::ServerApp, app - head, "Server application, streaming the response"),
        (Segment::Transfer, value(Segment::Transfer), "Transfer, response body"),
        (Segment::ClientApp, value(Segment::ClientApp), "Client application, bytes ready and not yet read"),
    ] {
        let to = (at + ns.max(0)).min(end);
        if to > at {
            out.push(Span { class: class(segment), name: name.into(), from: at, to });
            at = to;
        }
    }
}

/// Where bytes were ready and nobody read them yet: hatched over the sidecar's or application's span.
fn queues(r: &AttributedRequest, out: &mut Vec<Span>, o: Origins) {
    let [q1, q2, q3] = &r.request_crossings;
    let [_, p2, p3] = &r.response_crossings;
    let mut add = |origin: Option<Origin>, c: &Crossing, whose: &str| {
        if let (Some(origin), Some(ready), Some(recv)) = (origin, c.ready, c.recv) {
            let name = format!("Queue: bytes ready, not yet read by the {whose}");
            out.push(Span { class: "queue".into(), name, from: origin.show(ready), to: origin.show(recv) });
        }
    };
    add(o.client, q1, "client sidecar");
    add(o.server, q2, "server sidecar");
    add(o.server, q3, "server application");
    add(o.server, p3, "server sidecar");
    add(o.client, p2, "client sidecar");
}

/// While the application waited for a call of its own, it did not work: striped, as in the bars.
fn calls(list: &[AttributedRequest], r: &AttributedRequest, o: Origins) -> Vec<Span> {
    let one = |child: &AttributedRequest| {
        let from = o.server?.show(child.start_monotonic?);
        Some(Span {
            class: format!("{} calls", class(Segment::ServerApp)),
            name: format!("Server application, waiting for {}", shorten(&text::workload(&child.server), 60)),
            from,
            to: from + child.attribution.total().0,
        })
    };
    r.children.iter().filter_map(|i| list.get(*i)).filter_map(one).collect()
}

/// Segments one after the other, where instants are missing.
fn in_order(r: &AttributedRequest, start: i64) -> Vec<Span> {
    let mut at = start;
    r.attribution
        .segments()
        .iter()
        .map(|(segment, value)| {
            let from = at;
            at += value.0.max(0);
            let class = format!("{} schematic", class(segment));
            Span { class, name: text::segment(segment).into(), from, to: at }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for total in [1, 7, 999, 12_345_678, 61_000_000, 5_000_000_000_000] {
            let ticks = ticks(total);
            assert!((1..=8).contains(&ticks.len()), "{total}: {}", ticks.len());
        }
        let labels: Vec<_> = ticks(12_345_678).into_iter().map(|t| t.label).collect();
        assert_eq!(labels, ["0", "2 ms", "4 ms", "6 ms", "8 ms", "10 ms", "12 ms"]);
    }
}
