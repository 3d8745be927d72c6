//! A client that closed or reset its connection before it had the whole response: the total ends there.

use super::{body, retried};
use meshdiff_model::{
    Attribution, AttributionBuilder, AttributionError, Crossing, Evidence, JoinedHop, Link, MonotonicNs, Segment,
};

/// The request's time up to `end`: whatever it had reached by then has the rest.
pub(super) fn split(hop: &JoinedHop, start: MonotonicNs, end: MonotonicNs) -> Result<Attribution, AttributionError> {
    let mut walk = Walk { split: Attribution::of(end - start), at: start, end, lost: false };
    let (there, back) = (|link| hop.request_on(link), |link| hop.response_on(link));
    let seen = |socket: usize| hop.sockets[socket].is_some();
    walk.to(Segment::ClientLoopback, there(Link::ClientLoopback).ready, seen(1));
    if let (Some((from, to)), false) = (hop.connection_setup, retried(hop)) {
        walk.to(Segment::ClientSidecar, Some(from), true);
        walk.to(Segment::ConnectionSetup, Some(to), true);
    }
    let before_sending = if retried(hop) { Segment::Unattributed } else { Segment::ClientSidecar };
    walk.to(before_sending, there(Link::Network).send, seen(2) || answers_itself(hop));
    walk.to(Segment::Network, there(Link::Network).ready, seen(3));
    walk.to(Segment::ServerSidecar, there(Link::ServerLoopback).send, seen(4));
    walk.to(Segment::ServerLoopback, there(Link::ServerLoopback).ready, seen(5));
    walk.through(back(Link::ServerLoopback), seen(5), |split, from, to| body::until_answered(split, hop, from, to));
    walk.to(Segment::ServerLoopback, back(Link::ServerLoopback).ready, seen(4));
    walk.to(Segment::ServerSidecar, back(Link::Network).send, seen(3));
    walk.to(Segment::Network, back(Link::Network).ready, seen(2));
    walk.to(Segment::ClientSidecar, back(Link::ClientLoopback).send, seen(1));
    walk.to(Segment::ClientLoopback, back(Link::ClientLoopback).ready, seen(0));
    if !walk.lost && walk.at < end {
        walk.split = body::until_read(walk.split, hop, walk.at, end);
    }
    walk.split.rest_unattributed().build()
}

/// True if Envoy's log names no upstream: then the request never left the client's sidecar.
fn answers_itself(hop: &JoinedHop) -> bool {
    hop.client_log.as_ref().is_some_and(|l| l.upstream_local_address.is_none())
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
