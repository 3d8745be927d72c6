//! A client that closed or reset its connection before it had the whole response: the total ends there.

use super::body;
use meshdiff_model::{
    Attribution, AttributionBuilder, AttributionError, Crossing, Evidence, JoinedHop, Link, MonotonicNs, Segment,
};

/// The request's time up to `end`: whatever it had reached by then has the rest.
pub(super) fn split(hop: &JoinedHop, start: MonotonicNs, end: MonotonicNs) -> Result<Attribution, AttributionError> {
    let mut walk = Walk { split: Attribution::of(end - start), at: start, end, lost: false };
    let (there, back) = (|link| hop.request_on(link), |link| hop.response_on(link));
    let seen = |socket: usize| hop.sockets[socket].is_some();
    walk.to(Segment::ClientLoopback, there(Link::ClientLoopback).ready, seen(1));
    let first = hop.first_attempt();
    if let (Some((from, to)), true) = (hop.connection_setup, first.is_some() || !hop.is_retried()) {
        walk.to(Segment::ClientSidecar, Some(from), true);
        walk.to(Segment::ConnectionSetup, Some(to), true);
    }
    if let (Some(first), true) = (first, hop.is_retried()) {
        walk.to(Segment::ClientSidecar, Some(first), true);
    }
    let before_sending = match (hop.is_retried(), first) {
        (false, _) => Segment::ClientSidecar,
        (true, Some(_)) => Segment::Retry,
        (true, None) => Segment::Unattributed,
    };
    walk.to(before_sending, there(Link::Network).send, seen(2) || answers_itself(hop));
    walk.beyond_client_proxy(hop);
    walk.to(Segment::ClientSidecar, back(Link::ClientLoopback).send, seen(1));
    walk.to(Segment::ClientLoopback, back(Link::ClientLoopback).ready, seen(0));
    if !walk.lost && walk.at < end {
        walk.split = body::until_read(walk.split, hop, walk.at, end);
    }
    walk.split.rest_unattributed().build()
}

/// The client proxy's request from where it was `sent` on S3 until the proxy gave it up: whatever it had reached by then has the rest.
pub(super) fn beyond_client_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    sent: MonotonicNs,
    end: MonotonicNs,
) -> AttributionBuilder {
    let mut walk = Walk { split, at: sent, end, lost: false };
    walk.beyond_client_proxy(hop);
    walk.split
}

/// The server proxy's request from where it was `sent` on S5 until that connection ended without a response.
pub(super) fn beyond_server_proxy(
    split: AttributionBuilder,
    hop: &JoinedHop,
    sent: MonotonicNs,
    end: MonotonicNs,
) -> AttributionBuilder {
    let mut walk = Walk { split, at: sent, end, lost: false };
    walk.beyond_server_proxy(hop);
    walk.split
}

/// True if Envoy's log names no upstream: then the request never left the client's sidecar.
fn answers_itself(hop: &JoinedHop) -> bool {
    hop.client_log.as_ref().is_some_and(|l| l.answered_by_itself())
}

/// Goes from instant to instant until the end, or until one is missing that must have been.
struct Walk {
    split: AttributionBuilder,
    at: MonotonicNs,
    end: MonotonicNs,
    /// The way is not known from here on.
    lost: bool,
}

impl Walk {
    /// From the request's send on S3 to its response's arrival there.
    fn beyond_client_proxy(&mut self, hop: &JoinedHop) {
        let seen = |socket: usize| hop.sockets[socket].is_some();
        self.to(Segment::Network, hop.request_on(Link::Network).ready, seen(3));
        // What waits for a proxy that will answer by itself is not on its way to the application.
        let by_itself = hop.server_log.as_ref().is_some_and(|l| l.answered_by_itself());
        if by_itself {
            self.to(Segment::ServerSidecar, hop.response_on(Link::Network).send, seen(3));
        } else {
            self.to(Segment::ServerSidecar, hop.request_on(Link::ServerLoopback).send, seen(4));
            self.beyond_server_proxy(hop);
            self.to(Segment::ServerSidecar, hop.response_on(Link::Network).send, seen(3));
        }
        self.to(Segment::Network, hop.response_on(Link::Network).ready, seen(2));
    }

    /// From the request's send on S5 to its response's arrival there.
    fn beyond_server_proxy(&mut self, hop: &JoinedHop) {
        let seen = |socket: usize| hop.sockets[socket].is_some();
        let (there, back) = (hop.request_on(Link::ServerLoopback), hop.response_on(Link::ServerLoopback));
        self.to(Segment::ServerLoopback, there.ready, seen(5));
        self.through(back, seen(5), |split, from, to| body::until_answered(split, hop, from, to));
        self.to(Segment::ServerLoopback, back.ready, seen(4));
    }

    /// Adds the time up to an instant to a segment. One that is not there had not come by the end, if its socket was `seen`.
    fn to(&mut self, segment: Segment, instant: Option<MonotonicNs>, seen: bool) {
        if let Some(until) = self.until(instant, seen) {
            let time = until - self.at;
            if time.0 != 0 {
                self.split =
                    std::mem::replace(&mut self.split, Attribution::of(time)).add(segment, time, Evidence::Kernel);
            }
            self.at = until;
        }
    }

    /// Lets body time be split up to the response's first send.
    fn through(
        &mut self,
        response: &Crossing,
        seen: bool,
        body: impl FnOnce(AttributionBuilder, MonotonicNs, MonotonicNs) -> AttributionBuilder,
    ) {
        if let Some(until) = self.until(response.send, seen)
            && until > self.at
        {
            self.split = body(std::mem::replace(&mut self.split, Attribution::of(until - self.at)), self.at, until);
            self.at = until;
        }
    }

    fn until(&mut self, instant: Option<MonotonicNs>, seen: bool) -> Option<MonotonicNs> {
        if self.lost || self.at >= self.end {
            return None;
        }
        self.lost = instant.is_none() && !seen;
        (!self.lost).then(|| instant.map_or(self.end, |at| at.min(self.end)))
    }
}
