//! Where the time of a whole tree of requests went: calls within calls resolved along the critical path.

use crate::report::PartKind;
use crate::request::AttributedRequest;
use meshdiff_model::{Detail, DurationNs, MonotonicNs, Segment, Span, Workload};
use std::collections::BTreeMap;

/// Time by kind and workload. The sum is what was rolled up, to the nanosecond.
pub(crate) type Places = BTreeMap<(PartKind, Workload), DurationNs>;

/// A call's part of the critical path: the call, and how much of its time counts.
struct Charge {
    child: usize,
    charged: DurationNs,
    /// How much of that while the server streamed its response.
    streaming: DurationNs,
}

/// Walks back from the end of the last call: at each instant the call that ends last is what the server waited for. A call that
/// overlaps a later one counts up to that one's start. What lies outside the server application's own time (while a
/// body was under way, say) was waited for by nobody.
fn critical_path(requests: &[AttributedRequest], parent: usize) -> Vec<Charge> {
    let mut spans: Vec<(MonotonicNs, MonotonicNs, usize)> = requests[parent]
        .children
        .iter()
        .filter_map(|&c| {
            let start = requests[c].start_monotonic?;
            Some((start, start.offset(requests[c].attribution.total()), c))
        })
        .collect();
    spans.sort_by_key(|&(start, end, c)| (std::cmp::Reverse(end), start, c));
    let own = own_time(&requests[parent]);
    let mut charges = Vec::new();
    let mut until = spans.first().map_or(MonotonicNs(0), |s| s.1);
    for (start, end, child) in spans {
        let end = end.min(until);
        if end > start {
            let within = |s: &Span| (end.min(s.to) - start.max(s.from)).max(DurationNs::ZERO);
            let streaming = |s: &&Span| s.detail == Some(Detail::Streaming);
            let charge = match &own {
                Some(own) => Charge {
                    child,
                    charged: own.iter().map(within).sum(),
                    streaming: own.iter().filter(streaming).map(within).sum(),
                },
                None => Charge { child, charged: end - start, streaming: DurationNs::ZERO },
            };
            if charge.charged > DurationNs::ZERO {
                charges.push(charge);
            }
            until = start;
        }
    }
    charges
}

/// The server application's stretches of time, from when it had read the request's head; `None` where only their sum is known.
fn own_time(request: &AttributedRequest) -> Option<Vec<Span>> {
    let read = request.request_crossings[2].recv.unwrap_or_default();
    let own = request.attribution.spans().iter().filter(|s| s.segment == Segment::ServerApp);
    let own: Vec<Span> = own.map(|s| Span { from: s.from.max(read).min(s.to), ..*s }).collect();
    (!own.is_empty()).then_some(own)
}

/// How much of a request's server application time it spent waiting for calls of its own: in all, and while it streamed its response.
pub(crate) fn charged_calls(requests: &[AttributedRequest], parent: usize) -> (DurationNs, DurationNs) {
    let app = requests[parent].attribution.segments().get(Segment::ServerApp).unwrap_or_default();
    let path = critical_path(requests, parent);
    let calls: DurationNs = path.iter().map(|c| c.charged).sum();
    (calls.min(app), path.iter().map(|c| c.streaming).sum())
}

/// True if a request and all that it caused are full.
pub(crate) fn tree_is_full(requests: &[AttributedRequest], root: usize) -> bool {
    requests[root].coverage.is_full() && requests[root].children.iter().all(|&c| tree_is_full(requests, c))
}

/// Time by kind and workload of a request, with the calls that its server made in place of the time it waited for them.
pub(crate) fn places(requests: &[AttributedRequest], root: usize) -> Places {
    let request = &requests[root];
    let (client, server) = (short(&request.client), short(&request.server));
    let mut places = Places::new();
    for (segment, time) in request.attribution.segments().iter() {
        let whose = if is_clients(segment) { &client } else { &server };
        *places.entry((PartKind::of(segment), whose.clone())).or_default() += time;
    }
    let calls = critical_path(requests, root);
    let waited: DurationNs = calls.iter().map(|c| c.charged).sum();
    let own = places.entry((PartKind::Application, server)).or_default();
    // More than the application's own time can only come from instants that contradict each other: then the calls are
    // not resolved, rather than made to fit.
    if waited > *own {
        return places;
    }
    *own = *own - waited;
    for charge in calls {
        for (place, time) in scaled(self::places(requests, charge.child), charge.charged) {
            *places.entry(place).or_default() += time;
        }
    }
    places
}

/// True for time that was spent in the client's pod.
pub(crate) const fn is_clients(segment: Segment) -> bool {
    matches!(
        segment,
        Segment::ClientApp
            | Segment::ClientLoopback
            | Segment::ClientSidecar
            | Segment::ConnectionSetup
            | Segment::Retry
    )
}

/// The same places in proportion, with another sum. Exact where the sum is already that; else each is rounded down and the
/// largest takes what rounding left.
fn scaled(places: Places, sum: DurationNs) -> Places {
    let whole: DurationNs = places.values().copied().sum();
    if whole == sum || whole.0 <= 0 {
        return places;
    }
    let mut result: Places = places
        .into_iter()
        .map(|(k, v)| {
            let part = i128::from(v.0) * i128::from(sum.0) / i128::from(whole.0);
            (k, DurationNs(i64::try_from(part).unwrap_or_default()))
        })
        .collect();
    let left = sum - result.values().copied().sum();
    if let Some(largest) = result.values_mut().max() {
        *largest += left;
    }
    result
}

/// A workload without what differs between its pods.
pub(crate) fn short(workload: &Workload) -> Workload {
    let named = workload.workload.is_some();
    Workload {
        pod: None,
        address: if named { None } else { workload.address.as_ref().map(|a| host(a).to_owned()) },
        service: if named { None } else { workload.service.clone() },
        ..workload.clone()
    }
}

/// The address without a port.
fn host(address: &str) -> &str {
    match address.parse::<std::net::SocketAddr>() {
        Ok(_) => address.rsplit_once(':').map_or(address, |(host, _)| host),
        Err(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{named, request};

    fn app(places: &Places, name: &str) -> i64 {
        places.get(&(PartKind::Application, named(name))).map_or(0, |d| d.0)
    }

    #[test]
    fn calls_one_after_the_other_are_charged_whole() {
        let mut list = vec![request("a", "b", 0, 1_000), request("b", "c", 100, 300), request("b", "d", 500, 400)];
        list[0].children = vec![1, 2];
        let places = places(&list, 0);
        assert_eq!(app(&places, "c"), 290);
        assert_eq!(app(&places, "d"), 390);
        assert_eq!(app(&places, "b"), 990 - 700);
        assert_eq!(places.values().map(|d| d.0).sum::<i64>(), 1_000);
        assert_eq!(charged_calls(&list, 0).0, DurationNs(700));
    }

    #[test]
    fn calls_at_the_same_time_are_charged_along_the_critical_path() {
        let mut list = vec![request("a", "b", 0, 1_000), request("b", "c", 100, 300), request("b", "d", 200, 500)];
        list[0].children = vec![1, 2];
        let places = places(&list, 0);
        // d is waited for from 200 to 700; c only from 100 to 200, a third of its time.
        assert_eq!(app(&places, "d"), 490);
        assert!((95..=97).contains(&app(&places, "c")), "{places:?}");
        assert_eq!(places.values().map(|d| d.0).sum::<i64>(), 1_000);
        assert_eq!(charged_calls(&list, 0).0, DurationNs(600));
    }

    #[test]
    fn calls_that_do_not_fit_are_not_made_to() {
        let mut list = vec![request("a", "b", 0, 100), request("b", "c", 10, 300)];
        list[0].children = vec![1];
        assert_eq!(app(&places(&list, 0), "b"), 90);
    }
}
