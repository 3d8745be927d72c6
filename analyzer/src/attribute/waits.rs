//! What a proxy's time, and a connection's, is made of, as far as the kernel shows it. The parts of a segment follow one another, so they
//! never overlap.

use super::hindrance::Hindrances;
use super::marks::Words;
use meshdiff_model::{AttributionBuilder, Crossing, Detail, DurationNs, Flow, JoinedHop, Link, MonotonicNs, Segment};

/// How a proxy's time is filled whose filter waits for the body: what follows the body's end is at most this share of the wait. The head
/// could be late for another reason, and the body be read meanwhile; then it goes on when that other thing is done, not when the
/// body is.
const PROMPTLY: i64 = 16;

/// The parts of a proxy's time with a request and its response: from `request` ready to it `sent` on, and from `response`
/// ready to it sent `back`. Without `sent`, the request's side is not the proxy's time.
pub(super) fn of_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    segment: Segment,
    downstream: Link,
    sent: Option<MonotonicNs>,
    response: Option<(&Crossing, MonotonicNs)>,
) -> AttributionBuilder {
    let request = hop.request_on(downstream);
    let mut queued = Some(DurationNs::ZERO);
    let mut split = split;
    let words = Words::of(hop, downstream);
    if let (Some(sent), Some(ready)) = (sent, request.ready) {
        // A connection's set-up is another segment: nothing of the proxy's lies within or after it.
        let setup = hop.connection_setup.filter(|_| downstream == Link::ClientLoopback);
        let end = setup.map_or(sent, |(start, _)| start.min(sent)).max(ready);
        let within = |at: MonotonicNs| at.max(ready).min(end);
        let free = hop.flows.behind[downstream as usize].map_or(ready, within);
        if free > ready {
            split = split.detail(segment, Detail::Hol, free - ready);
        }
        let read = request.recv.map(|read| within(read).max(free));
        queued = read.map(|read| read - free);
        let mut awaited = DurationNs::ZERO;
        if let (Some(read), Some(whole), None) = (read, request.last_recv, setup)
            && request.last_ready.is_some_and(|last| last > ready)
            && whole > read
            && whole <= sent
            && (sent - whole).0.saturating_mul(PROMPTLY) <= (whole - read).0
        {
            awaited = whole - read;
            split = split.detail(segment, Detail::AwaitBody, awaited);
        }
        if let (Some(words), Some(read)) = (words, read) {
            // On which connection it went on, only where it was the first attempt.
            let onward = hop.free_since[downstream as usize + 1].filter(|_| !hop.is_retried());
            split = words.with_request(split, segment, (read, sent), setup, awaited, onward);
        }
    }
    if let Some((response, back)) = response {
        let waited = response.ready.zip(response.recv).map(|(ready, read)| read.min(back).max(ready) - ready);
        queued = queued.zip(waited).map(|(a, b)| a + b);
        if let (Some(words), Some(ready), Some(read)) = (words, response.ready, response.recv) {
            split = words.with_response(split, segment, (read.min(back).max(ready), back));
        }
    }
    match queued {
        Some(queued) => split.detail(segment, Detail::Queue, queued),
        None => split,
    }
}

/// What TCP did to heads on a connection, there and back.
pub(super) fn of_link(split: AttributionBuilder, hop: &JoinedHop, segment: Segment, link: Link) -> AttributionBuilder {
    let ways = [
        (hop.request_on(link), hop.flows.request[link as usize].as_deref()),
        (hop.response_on(link), hop.flows.response[link as usize].as_deref()),
    ];
    let of = |(crossing, flow): (&Crossing, Option<&Flow>)| {
        let (flow, send, ready) = (flow?, crossing.send?, crossing.ready?);
        (send < ready).then(|| Hindrances::of(flow).within(send, ready))
    };
    let sums = ways.into_iter().filter_map(of);
    let [held, lost] = sums.fold([DurationNs::ZERO; 2], |[a, b], [c, d]| [a + c, b + d]);
    let told = [(Detail::TcpHeld, held), (Detail::Retransmit, lost)].into_iter().filter(|(_, t)| *t > DurationNs::ZERO);
    told.fold(split, |split, (detail, time)| split.detail(segment, detail, time))
}
