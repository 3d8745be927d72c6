//! The split of one request's time.
//!
//! With all instants there, the segments are differences of neighbouring instants, so they telescope: every instant
//! is added once and taken away once. What is missing leaves a rest, which is `unattributed`.

mod body;
mod gave_up;
mod hindrance;
mod marks;
mod waits;
mod way;

use crate::request::{CoverageClass, RequestCoverage, Sides, Vantage};
use meshdiff_model::{
    Attribution, AttributionBuilder, AttributionError, Detail, DurationNs, Evidence, HopSide, JoinOutcome, JoinedHop,
    Link, MonotonicNs, Segment, UnmatchedReason,
};

/// Splits a hop's time, seen from as near to the client application as the evidence reaches.
///
/// # Errors
/// If the evidence contradicts itself so far that the request would end before it begins.
pub fn attribute(hop: &JoinedHop) -> Result<(Attribution, Vantage), AttributionError> {
    let loopback = Link::ClientLoopback;
    let (request, response) = (hop.request_on(loopback), hop.response_on(loopback));
    let (request_in, response_in) = (hop.request_on(Link::Network), hop.response_on(Link::Network));
    if let (Some(start), Some(end)) = (request.send, hop.gave_up) {
        return Ok((gave_up::split(hop, start, end)?, Vantage::App));
    }
    if let (Some(start), Some(end)) = (request.send, response.last_recv) {
        let mut split = Attribution::of(end - start);
        if let (Some(there), Some(back), Some(head)) = (request.ready, response.send, response.ready) {
            let there_and_back = (there - start) + (head - back);
            split = split.add(Segment::ClientLoopback, there_and_back, Evidence::Kernel);
            split = waits::of_link(split, hop, Segment::ClientLoopback, loopback);
            split = client_proxy(split, hop, there, back);
            split = body::until_read(split, hop, head, end);
        }
        return Ok((split.rest_unattributed().build()?, Vantage::App));
    }
    if let (Some(start), Some(end)) = (request.ready, response.last_send) {
        let mut split = Attribution::of(end - start);
        if let Some(back) = response.send {
            split = client_proxy(split, hop, start, back).add(Segment::Transfer, end - back, Evidence::Kernel);
        }
        return Ok((split.rest_unattributed().build()?, Vantage::ClientProxy));
    }
    if hop.client_log.is_none()
        && let (Some(start), Some(end)) = (request_in.ready, response_in.last_send)
    {
        let mut split = Attribution::of(end - start);
        if let Some(back) = response_in.send {
            split = server_proxy(split, hop, start, back).add(Segment::Transfer, end - back, Evidence::Kernel);
        }
        return Ok((split.rest_unattributed().build()?, Vantage::ServerProxy));
    }
    by_logs(hop)
}

/// From the request ready at S2 to the response sent on S2.
fn client_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    there: MonotonicNs,
    back: MonotonicNs,
) -> AttributionBuilder {
    let (request, response) = (hop.request_on(Link::Network), hop.response_on(Link::Network));
    if matches!(hop.server_half, JoinOutcome::Unmatched(UnmatchedReason::LocalReply)) {
        return answered_by_client_proxy(split, hop, there, back);
    }
    let (Some(sent), Some(answered)) = (request.send, response.ready) else {
        if let (Some(sent), Some(end)) = (request.send.or(hop.logged.sent), hop.abandoned[0]) {
            let sent = sent.max(there);
            let (split, first) = until_sent(split, hop, there, sent);
            let split = split.add(Segment::ClientSidecar, back - end, Evidence::Kernel);
            let split = waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, first, None);
            return gave_up::beyond_client_proxy(split, hop, sent, end);
        }
        return match &hop.client_log {
            Some(log) => {
                let split = proxy_by_log(split, hop, log, back - there, Segment::ClientSidecar, |split, inner| {
                    server_by_log(split, hop, inner)
                });
                // Envoy counts from where it had read the request.
                let read = hop.request_on(Link::ClientLoopback).recv;
                let sent = read.zip(marks::first_sent(hop)).map(|(at, mark)| at.offset(mark));
                waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, sent, None)
            }
            None => split,
        };
    };
    let (split, first) = until_sent(split, hop, there, sent);
    let split = split.add(Segment::ClientSidecar, back - answered, Evidence::Kernel);
    let answer = Some((response, back));
    let split = waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, first, answer);
    let round_trip = answered - sent;
    match (request.ready, response.send) {
        (Some(there), Some(back)) => {
            let split = split.add(Segment::Network, round_trip - (back - there), Evidence::Kernel);
            let split = waits::of_link(split, hop, Segment::Network, Link::Network);
            server_proxy(split, hop, there, back)
        }
        _ => server_by_log(split, hop, round_trip),
    }
}

/// From the request ready at S2 to it sent on S3, with what the attempts before took; and when the first one was sent, if that is known.
fn until_sent(
    split: AttributionBuilder,
    hop: &JoinedHop,
    there: MonotonicNs,
    sent: MonotonicNs,
) -> (AttributionBuilder, Option<MonotonicNs>) {
    let first = if hop.is_retried() { hop.first_attempt() } else { Some(sent) };
    let Some(first) = first else {
        // The log names the last attempt's socket only: what came before it cannot be told apart.
        return (split.add(Segment::Unattributed, sent - there, Evidence::Bound), None);
    };
    let (split, setup) = connection_setup(split, hop);
    let evidence = if hop.network_by_log { Evidence::Als } else { Evidence::Kernel };
    let split = split.add(Segment::ClientSidecar, (first - there) - setup, evidence);
    // Of hedges the first can be the one that is answered.
    let retry = sent - first;
    (if retry.0 > 0 { split.add(Segment::Retry, retry, evidence) } else { split }, Some(first))
}

/// From the request ready at S2 to the response that the client's proxy made by itself sent there.
fn answered_by_client_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    there: MonotonicNs,
    back: MonotonicNs,
) -> AttributionBuilder {
    let (mut own, mut split) = (back - there, split);
    if hop.is_retried() {
        let (Some(first), Some(last)) = (hop.first_attempt(), hop.attempt_began()) else {
            return split.add(Segment::Unattributed, own, Evidence::Bound);
        };
        if last > first {
            split = split.add(Segment::Retry, last - first, Evidence::Kernel);
            own = own - (last - first);
        }
    }
    let (split, setup) = connection_setup(split, hop);
    let split = split.add(Segment::ClientSidecar, own - setup, Evidence::Kernel);
    let end = hop.first_attempt().filter(|_| hop.is_retried()).unwrap_or(back);
    waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, Some(end), None)
}

/// S3's set-up, if the request waited for it, and how long it took.
fn connection_setup(split: AttributionBuilder, hop: &JoinedHop) -> (AttributionBuilder, DurationNs) {
    let Some((start, end)) = hop.connection_setup else { return (split, DurationNs::ZERO) };
    let split = split.add(Segment::ConnectionSetup, end - start, Evidence::Kernel);
    // A connect in vain was nothing else.
    let connected = hop.connected.unwrap_or(end).min(end).max(start);
    let split = split.detail(Segment::ConnectionSetup, Detail::Connect, connected - start);
    let split = if end > connected && hop.connected.is_some() {
        split.detail(Segment::ConnectionSetup, Detail::Tls, end - connected)
    } else {
        split
    };
    (split, end - start)
}

/// From the request ready at S4 to the response sent on S4.
fn server_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    there: MonotonicNs,
    back: MonotonicNs,
) -> AttributionBuilder {
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    let Some(log) = &hop.server_log else { return split };
    if log.answered_by_itself() {
        let split = split.add(Segment::ServerSidecar, back - there, Evidence::Kernel);
        return waits::of_proxy(split, hop, Segment::ServerSidecar, Link::Network, Some(back), None);
    }
    let (Some(sent), Some(answered)) = (request.send, response.ready) else {
        if let (Some(sent), Some(end)) = (request.send, hop.abandoned[1]) {
            let split = split.add(Segment::ServerSidecar, (sent - there) + (back - end), Evidence::Kernel);
            let split = waits::of_proxy(split, hop, Segment::ServerSidecar, Link::Network, Some(sent), None);
            return gave_up::beyond_server_proxy(split, hop, sent, end);
        }
        return proxy_by_log(split, hop, log, back - there, Segment::ServerSidecar, |split, inner| {
            split.add(Segment::ServerApp, inner, Evidence::Bound)
        });
    };
    let split = split.add(Segment::ServerSidecar, (sent - there) + (back - answered), Evidence::Kernel);
    let answer = Some((response, back));
    let split = waits::of_proxy(split, hop, Segment::ServerSidecar, Link::Network, Some(sent), answer);
    beyond_server_proxy(split, hop, sent, answered)
}

/// From the request sent on S5 to the response ready there.
fn beyond_server_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    sent: MonotonicNs,
    answered: MonotonicNs,
) -> AttributionBuilder {
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    let (Some(arrived), Some(left)) = (request.ready, response.send) else { return split };
    let split = split.add(Segment::ServerLoopback, (arrived - sent) + (answered - left), Evidence::Kernel);
    let split = waits::of_link(split, hop, Segment::ServerLoopback, Link::ServerLoopback);
    server_app(split, hop, arrived, left)
}

/// From the request's head ready at S6 to the response's first byte sent there.
fn server_app(
    split: AttributionBuilder,
    hop: &JoinedHop,
    arrived: MonotonicNs,
    left: MonotonicNs,
) -> AttributionBuilder {
    let split = body::until_answered(split, hop, arrived, left);
    // The head waits for the application; what it does not read later is its own pace.
    let first = split.spans().iter().find(|s| s.from == arrived && s.segment == Segment::ServerApp);
    match (hop.request_on(Link::ServerLoopback).recv, first.map(|s| s.to)) {
        (Some(read), Some(to)) => split.detail(Segment::ServerApp, Detail::Queue, read.min(to).max(arrived) - arrived),
        _ => split,
    }
}

/// Splits a proxy's `whole` by its own log: before it encoded the request upstream and after it parsed the response it is
/// the proxy, between it is whatever `inner` makes of it.
fn proxy_by_log(
    split: AttributionBuilder,
    hop: &JoinedHop,
    log: &HopSide,
    whole: DurationNs,
    segment: Segment,
    inner: impl FnOnce(AttributionBuilder, DurationNs) -> AttributionBuilder,
) -> AttributionBuilder {
    if log.answered_by_itself() {
        return split.add(segment, whole, Evidence::Als);
    }
    let Some(sent) = log.timings.time_to_first_upstream_tx_byte else { return split };
    let retried = segment == Segment::ClientSidecar && hop.is_retried();
    let first = if retried { marks::first_sent(hop) } else { Some(sent) };
    let Some(answered) = log.timings.time_to_first_upstream_rx_byte else {
        // No answer came: what is beyond, and what was done about it, is not told apart.
        return match first {
            Some(first) => split.add(segment, first.min(whole), Evidence::Bound),
            None => split,
        };
    };
    let beyond = answered - sent;
    let split = match first {
        Some(first) => {
            let retry = sent - first;
            let split = split.add(segment, whole - beyond - retry, Evidence::Als);
            if retry.0 > 0 { split.add(Segment::Retry, retry, Evidence::Als) } else { split }
        }
        None => {
            split.add(Segment::Unattributed, sent, Evidence::Bound).add(segment, whole - beyond - sent, Evidence::Als)
        }
    };
    inner(split, beyond)
}

/// Splits what lies between the client sidecar's request and its response by the server's log.
fn server_by_log(split: AttributionBuilder, hop: &JoinedHop, round_trip: DurationNs) -> AttributionBuilder {
    let Some(log) = &hop.server_log else { return split };
    let Some(served) = log.timings.time_to_first_downstream_tx_byte.or_else(|| log.timings.extent()) else {
        return split;
    };
    server_half_by_log(split.add(Segment::Network, round_trip - served, Evidence::Bound), hop, log, served)
}

/// Splits what the server's sidecar's log says that it `served` of a request.
fn server_half_by_log(
    split: AttributionBuilder,
    hop: &JoinedHop,
    log: &HopSide,
    served: DurationNs,
) -> AttributionBuilder {
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    if let (Some(sent), Some(answered)) = (request.send, response.ready) {
        // Beyond the proxy there are instants again: a span of its clock less one of the kernel's, on one machine.
        let split = split.add(Segment::ServerSidecar, served - (answered - sent), Evidence::Als);
        return beyond_server_proxy(split, hop, sent, answered);
    }
    proxy_by_log(split, hop, log, served, Segment::ServerSidecar, |split, inner| {
        split.add(Segment::ServerApp, inner, Evidence::Bound)
    })
}

/// The split by access logs alone.
fn by_logs(hop: &JoinedHop) -> Result<(Attribution, Vantage), AttributionError> {
    let none = || Attribution::of(DurationNs::ZERO).build().map(|a| (a, Vantage::Als));
    let Some(log) = hop.client_log.as_ref().or(hop.server_log.as_ref()) else { return none() };
    let Some(total) = log.timings.time_to_last_downstream_tx_byte.or_else(|| log.timings.extent()) else {
        return none();
    };
    let head = log.timings.time_to_first_downstream_tx_byte.unwrap_or(total);
    let mut split = Attribution::of(total);
    if total > head {
        split = split.add(Segment::Transfer, total - head, Evidence::Als);
    }
    split = if hop.client_log.is_none() {
        proxy_by_log(split, hop, log, head, Segment::ServerSidecar, |split, inner| {
            split.add(Segment::ServerApp, inner, Evidence::Bound)
        })
    } else if matches!(hop.server_half, JoinOutcome::Unmatched(UnmatchedReason::LocalReply)) {
        split.add(Segment::ClientSidecar, head, Evidence::Als)
    } else {
        proxy_by_log(split, hop, log, head, Segment::ClientSidecar, |split, inner| server_by_log(split, hop, inner))
    };
    Ok((split.rest_unattributed().build()?, Vantage::Als))
}

/// True if nothing is missing of what was tried before the attempt that was answered: all of it was seen, or, where the connections
/// between the sidecars are shared, logged.
fn retries_known(hop: &JoinedHop) -> bool {
    !hop.is_retried() || hop.first_attempt().is_some() || (hop.network_by_log && marks::first_sent(hop).is_some())
}

/// The split of the server's half of an attempt alone, from the request ready at S4 to the response sent there; `None` if it was not
/// seen. On a shared connection it is what the server's log tells of it.
#[must_use]
pub(crate) fn attribute_server(hop: &JoinedHop) -> Option<Attribution> {
    if let (true, Some(log)) = (hop.network_by_log, &hop.server_log) {
        let served = log.timings.time_to_first_downstream_tx_byte?;
        return server_half_by_log(Attribution::of(served), hop, log, served).rest_unattributed().build().ok();
    }
    let (there, back) = (hop.request_on(Link::Network).ready?, hop.response_on(Link::Network).send?);
    server_proxy(Attribution::of(back - there), hop, there, back).rest_unattributed().build().ok()
}

/// How much of a hop was seen, and in which row it counts.
#[must_use]
pub fn coverage(hop: &JoinedHop) -> RequestCoverage {
    let halves = Sides::of(hop.client_log.is_some(), hop.server_log.is_some());
    let seen = |link: Link| hop.request_on(link).send.is_some() && hop.response_on(link).send.is_some();
    let (came, left) = (hop.request_on(Link::ClientLoopback).ready, hop.response_on(Link::ClientLoopback).send);
    let at_gateway = hop.begins_at_gateway() && came.is_some() && left.is_some();
    let kernel = Sides::of(seen(Link::ClientLoopback) || at_gateway, seen(Link::ServerLoopback));
    let local = matches!(hop.server_half, JoinOutcome::Unmatched(UnmatchedReason::LocalReply));
    let client_whole = matches!(hop.client_half, JoinOutcome::Matched(()));
    let server_whole = local || matches!(hop.server_half, JoinOutcome::Matched(()));
    let first_reason = || hop.client_half.reason().or_else(|| if local { None } else { hop.server_half.reason() });
    let ambiguous = [&hop.client_half, &hop.server_half].into_iter().find(|o| matches!(o, JoinOutcome::Ambiguous(_)));
    let (class, reason) = if let Some(doubt) = ambiguous {
        (CoverageClass::Ambiguous, doubt.reason())
    } else if halves == Sides::None {
        (CoverageClass::Unmatched, first_reason())
    } else if client_whole && server_whole && !retries_known(hop) {
        (CoverageClass::PartialClient, Some(UnmatchedReason::Retried.as_str()))
    } else if client_whole && server_whole {
        // All sockets were seen; what is between S3 and S4 the logs tell.
        let shared = hop.network_by_log.then_some(UnmatchedReason::MultiplexedEncrypted.as_str());
        (CoverageClass::Full, shared)
    } else if client_whole {
        (CoverageClass::PartialClient, hop.server_half.reason())
    } else if server_whole && !local {
        (CoverageClass::PartialServer, hop.client_half.reason())
    } else {
        // Neither half is whole: what there is of them decides.
        let class = match kernel {
            Sides::Both | Sides::Client => CoverageClass::PartialClient,
            Sides::Server => CoverageClass::PartialServer,
            Sides::None => CoverageClass::PartialAls,
        };
        (class, first_reason())
    };
    RequestCoverage { class, halves, kernel, reason }
}

#[cfg(test)]
mod details_tests;
#[cfg(test)]
mod tests;
