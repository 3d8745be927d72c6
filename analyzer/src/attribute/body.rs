//! Body time, split: from the request's head ready at the server application until it answers, and from the response's head ready at
//! the client application until it has read the last byte.
//!
//! At every instant one of three is what the request waits for:
//!
//! - the **server application**: it has bytes that it did not read, or the whole request; or, once it began to answer, the client has
//!   read all that was sent and the server goes on without any more of the request;
//! - the **client application**: the response has arrived and is not read; or the server waits for the rest of the request,
//!   of which nothing is in flight;
//! - the **transfer**: bytes are in flight, on a connection or within a proxy.
//!
//! Whoever has bytes to read is waited for, whatever else is in flight: a reader that is slow stops the whole way. Where
//! instants are missing that would tell, the time is the transfer's, and the segment says that it is a bound.

use super::way::Way;
use meshdiff_model::{AttributionBuilder, Detail, Evidence, JoinedHop, MonotonicNs, Segment, Span};

/// Whom an instant belongs to, and whether that is certain.
type Verdict = (Segment, Option<Detail>, Evidence);

const SERVER: Verdict = (Segment::ServerApp, None, Evidence::Kernel);
const STREAMING: Verdict = (Segment::ServerApp, Some(Detail::Streaming), Evidence::Kernel);
const CLIENT: Verdict = (Segment::ClientApp, None, Evidence::Kernel);
const UNTOLD: Verdict = (Segment::Transfer, None, Evidence::Bound);

/// What follows from comparing both ends of a way.
const fn compared((segment, detail, _): Verdict, way: &Way<'_>) -> Verdict {
    (segment, detail, way.of_both_ends())
}

/// From the request's head ready at S6 to the response's first byte sent there.
pub(super) fn until_answered(
    split: AttributionBuilder,
    hop: &JoinedHop,
    from: MonotonicNs,
    to: MonotonicNs,
) -> AttributionBuilder {
    let arrived = hop.request[2].last_ready;
    // Where the end of a request without a body is in doubt, there is nothing to wait for all the same.
    let bodyless = || [&hop.client_log, &hop.server_log].into_iter().flatten().any(|l| l.request_body_bytes == 0);
    if arrived.is_some_and(|all| all <= from) || (arrived.is_none() && bodyless()) || to <= from {
        return close(split, (from, SERVER), to);
    }
    let request = Way::of_request(hop);
    let verdict = |at: MonotonicNs| {
        if request.complete(at) == Some(true) || request.unread(at) == Some(true) {
            return SERVER;
        }
        match (request.unread(at), request.in_flight(at)) {
            (Some(false), Some(true)) => (Segment::Transfer, request.hindrance(at), request.certainty(at)),
            // Who answers without more of the request did not wait for it.
            (Some(false), Some(false)) if request.next_arrival(at).is_none_or(|next| next > to) => {
                compared(SERVER, &request)
            }
            (Some(false), Some(false)) => compared(CLIENT, &request),
            _ => UNTOLD,
        }
    };
    partition(split, from, to, request.changes(), verdict)
}

/// From the response's head ready at S1 to its last byte read there.
pub(super) fn until_read(
    split: AttributionBuilder,
    hop: &JoinedHop,
    from: MonotonicNs,
    to: MonotonicNs,
) -> AttributionBuilder {
    if hop.response[0].last_ready.is_some_and(|all| all <= from) || to <= from {
        return close(split, (from, CLIENT), to);
    }
    let (request, response) = (Way::of_request(hop), Way::of_response(hop));
    let local = hop.response[2].send.is_none();
    let verdict = |at: MonotonicNs| match (response.unread(at), response.in_flight(at)) {
        (Some(true), _) => CLIENT,
        (Some(false), Some(true)) => (Segment::Transfer, response.hindrance(at), response.certainty(at)),
        // What a proxy answers by itself, or what it does before a server that was not seen, is no application's time.
        (Some(false), Some(false)) if local => (Segment::Transfer, None, response.of_both_ends()),
        (Some(false), Some(false)) => next_of_response(&request, &response, at),
        _ => UNTOLD,
    };
    partition(split, from, to, request.changes().chain(response.changes()), verdict)
}

/// The client has read all that the server sent, and there is more to come.
fn next_of_response(request: &Way<'_>, response: &Way<'_>, at: MonotonicNs) -> Verdict {
    let goes_on = match (response.next_send(at), request.next_arrival(at)) {
        (Some(sends), Some(arrives)) => sends < arrives,
        (_, None) => true,
        (None, Some(_)) => false,
    };
    if goes_on || request.complete(at) == Some(true) || request.unread(at) == Some(true) {
        return compared(STREAMING, response);
    }
    match (request.unread(at), request.in_flight(at)) {
        (Some(false), Some(true)) => (Segment::Transfer, request.hindrance(at), request.certainty(at)),
        (Some(false), Some(false)) => compared(CLIENT, request),
        _ => UNTOLD,
    }
}

/// Cuts a stretch of time where a verdict can change, and puts together what has the same.
fn partition(
    mut split: AttributionBuilder,
    from: MonotonicNs,
    to: MonotonicNs,
    changes: impl Iterator<Item = MonotonicNs>,
    verdict: impl Fn(MonotonicNs) -> Verdict,
) -> AttributionBuilder {
    let mut cuts: Vec<MonotonicNs> = changes.filter(|at| from < *at && *at < to).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut begun = (from, verdict(from));
    for at in cuts {
        let next = verdict(at);
        if next != begun.1 {
            split = close(split, begun, at);
            begun = (at, next);
        }
    }
    close(split, begun, to)
}

fn close(
    split: AttributionBuilder,
    (from, (segment, detail, evidence)): (MonotonicNs, Verdict),
    to: MonotonicNs,
) -> AttributionBuilder {
    split.span(Span { segment, detail, from, to, evidence })
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
