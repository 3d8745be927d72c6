//! The split of one request's time.
//!
//! With all instants there, the segments are differences of neighbouring instants, so they telescope: every instant
//! is added once and taken away once. What is missing leaves a rest, which is `unattributed`.

mod body;
mod gave_up;
mod hindrance;
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
        let split = split.add(Segment::ClientSidecar, back - there, Evidence::Kernel);
        return waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, Some(back), None);
    }
    let (Some(sent), Some(answered)) = (request.send, response.ready) else {
        return match &hop.client_log {
            Some(log) => {
                let split = proxy_by_log(split, log, back - there, Segment::ClientSidecar, |split, inner| {
                    server_by_log(split, hop, inner)
                });
                // Envoy counts from where it had read the request.
                let read = hop.request_on(Link::ClientLoopback).recv;
                let sent = read.zip(log.timings.time_to_first_upstream_tx_byte).map(|(at, mark)| at.offset(mark));
                waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, sent, None)
            }
            None => split,
        };
    };
    let mut out = sent - there;
    let mut split = split;
    if retried(hop) {
        // The log names the last attempt's socket only: what came before it cannot be told apart.
        split = split.add(Segment::Unattributed, out, Evidence::Bound);
        out = DurationNs::ZERO;
    } else if let Some((start, end)) = hop.connection_setup {
        split = split.add(Segment::ConnectionSetup, end - start, Evidence::Kernel);
        out = out - (end - start);
    }
    split = split.add(Segment::ClientSidecar, out + (back - answered), Evidence::Kernel);
    let by_proxy = (!retried(hop)).then_some(sent);
    let answer = Some((response, back));
    split = waits::of_proxy(split, hop, Segment::ClientSidecar, Link::ClientLoopback, by_proxy, answer);
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

/// From the request ready at S4 to the response sent on S4.
fn server_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    there: MonotonicNs,
    back: MonotonicNs,
) -> AttributionBuilder {
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    let Some(log) = &hop.server_log else { return split };
    if log.upstream_local_address.is_none() && log.upstream_remote_address.is_none() {
        let split = split.add(Segment::ServerSidecar, back - there, Evidence::Kernel);
        return waits::of_proxy(split, hop, Segment::ServerSidecar, Link::Network, Some(back), None);
    }
    let (Some(sent), Some(answered)) = (request.send, response.ready) else {
        return proxy_by_log(split, log, back - there, Segment::ServerSidecar, |split, inner| {
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
    log: &HopSide,
    whole: DurationNs,
    segment: Segment,
    inner: impl FnOnce(AttributionBuilder, DurationNs) -> AttributionBuilder,
) -> AttributionBuilder {
    let marks = (log.timings.time_to_first_upstream_tx_byte, log.timings.time_to_first_upstream_rx_byte);
    let (Some(sent), Some(answered)) = marks else { return split };
    let beyond = answered - sent;
    inner(split.add(segment, whole - beyond, Evidence::Als), beyond)
}

/// Splits what lies between the client sidecar's request and its response by the server's log.
fn server_by_log(split: AttributionBuilder, hop: &JoinedHop, round_trip: DurationNs) -> AttributionBuilder {
    let Some(log) = &hop.server_log else { return split };
    let Some(served) = log.timings.time_to_first_downstream_tx_byte.or_else(|| log.timings.extent()) else {
        return split;
    };
    let split = split.add(Segment::Network, round_trip - served, Evidence::Bound);
    let (request, response) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
    if let (Some(sent), Some(answered)) = (request.send, response.ready) {
        // Beyond the proxy there are instants again: a span of its clock less one of the kernel's, on one machine.
        let split = split.add(Segment::ServerSidecar, served - (answered - sent), Evidence::Als);
        return beyond_server_proxy(split, hop, sent, answered);
    }
    proxy_by_log(split, log, served, Segment::ServerSidecar, |split, inner| {
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
        proxy_by_log(split, log, head, Segment::ServerSidecar, |split, inner| {
            split.add(Segment::ServerApp, inner, Evidence::Bound)
        })
    } else if matches!(hop.server_half, JoinOutcome::Unmatched(UnmatchedReason::LocalReply)) {
        split.add(Segment::ClientSidecar, head, Evidence::Als)
    } else {
        proxy_by_log(split, log, head, Segment::ClientSidecar, |split, inner| server_by_log(split, hop, inner))
    };
    Ok((split.rest_unattributed().build()?, Vantage::Als))
}

fn retried(hop: &JoinedHop) -> bool {
    hop.client_log.as_ref().and_then(|l| l.upstream_request_attempt_count).is_some_and(|n| n > 1)
}

/// How much of a hop was seen, and in which row it counts.
#[must_use]
pub fn coverage(hop: &JoinedHop) -> RequestCoverage {
    let halves = Sides::of(hop.client_log.is_some(), hop.server_log.is_some());
    let seen = |link: Link| hop.request_on(link).send.is_some() && hop.response_on(link).send.is_some();
    let kernel = Sides::of(seen(Link::ClientLoopback), seen(Link::ServerLoopback));
    let local = matches!(hop.server_half, JoinOutcome::Unmatched(UnmatchedReason::LocalReply));
    let client_whole = matches!(hop.client_half, JoinOutcome::Matched(()));
    let server_whole = local || matches!(hop.server_half, JoinOutcome::Matched(()));
    let first_reason = || hop.client_half.reason().or_else(|| if local { None } else { hop.server_half.reason() });
    let ambiguous = [&hop.client_half, &hop.server_half].into_iter().find(|o| matches!(o, JoinOutcome::Ambiguous(_)));
    let (class, reason) = if let Some(doubt) = ambiguous {
        (CoverageClass::Ambiguous, doubt.reason())
    } else if halves == Sides::None {
        (CoverageClass::Unmatched, first_reason())
    } else if client_whole && server_whole && retried(hop) {
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
