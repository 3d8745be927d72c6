//! A client that closed or reset its connection before it had the whole response: the total ends there.

use super::body;
use meshdiff_model::{
    Attribution, AttributionBuilder, AttributionError, Crossing, Evidence, JoinedHop, Link, MonotonicNs, Segment,
};

/// The request's time up to `end`: whatever it had reached by then has the rest.
pub(super) fn split(hop: &JoinedHop, start: MonotonicNs, end: MonotonicNs) -> Result<Attribution, AttributionError> {
    let mut walk = Walk::new(Attribution::of(end - start), start, end);
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
    let between = Between::of(hop);
    walk.by(between.proxy).to(before_sending, between.sent, between.seen[0] || answers_itself(hop));
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
    let mut walk = Walk::new(split, sent, end);
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
    let mut walk = Walk::new(split, sent, end);
    walk.beyond_server_proxy(hop);
    walk.split
}

/// True if Envoy's log names no upstream: then the request never left the client's sidecar.
fn answers_itself(hop: &JoinedHop) -> bool {
    hop.client_log.as_ref().is_some_and(|l| l.answered_by_itself())
}

/// The way between the sidecars: as the kernel saw it, or, on a connection that is shared, as their logs tell it.
struct Between {
    sent: Option<MonotonicNs>,
    arrived: Option<MonotonicNs>,
    answered: Option<MonotonicNs>,
    returned: Option<MonotonicNs>,
    /// Whether what is missing did not happen: at the client's sidecar, at the server's.
    seen: [bool; 2],
    /// How certain the sidecars' times are that begin or end here.
    proxy: Evidence,
    /// Likewise of the time between them.
    network: Evidence,
}

impl Between {
    fn of(hop: &JoinedHop) -> Self {
        let (there, back) = (hop.request_on(Link::Network), hop.response_on(Link::Network));
        if !hop.network_by_log {
            let seen = [2, 3].map(|socket: usize| hop.sockets[socket].is_some());
            let (proxy, network) = (Evidence::Kernel, Evidence::Kernel);
            let (sent, arrived, answered, returned) = (there.send, there.ready, back.send, back.ready);
            return Self { sent, arrived, answered, returned, seen, proxy, network };
        }
        let logged = &hop.logged;
        // What the server's sidecar handed on it had: its clock's words for that compare with the kernel's instant.
        let sent_on = hop.request_on(Link::ServerLoopback).send;
        let mark = hop.server_log.as_ref().and_then(|log| log.timings.time_to_first_upstream_tx_byte);
        let arrived = sent_on.zip(mark).map(|(sent, mark)| sent.offset(-mark)).or(logged.arrived);
        Self {
            sent: logged.sent,
            arrived: arrived.zip(logged.sent).map(|(arrived, sent)| arrived.max(sent)),
            answered: logged.answered,
            returned: logged.returned,
            seen: [hop.client_log.is_some(), hop.server_log.is_some()],
            proxy: Evidence::Als,
            network: Evidence::Bound,
        }
    }
}

/// Goes from instant to instant until the end, or until one is missing that must have been.
struct Walk {
    split: AttributionBuilder,
    at: MonotonicNs,
    end: MonotonicNs,
    /// The way is not known from here on.
    lost: bool,
    /// How certain the next step is.
    evidence: Evidence,
}

impl Walk {
    const fn new(split: AttributionBuilder, at: MonotonicNs, end: MonotonicNs) -> Self {
        Self { split, at, end, lost: false, evidence: Evidence::Kernel }
    }

    /// The next step is as certain as that.
    const fn by(&mut self, evidence: Evidence) -> &mut Self {
        self.evidence = evidence;
        self
    }

    /// From the request's send on S3 to its response's arrival there.
    fn beyond_client_proxy(&mut self, hop: &JoinedHop) {
        let seen = |socket: usize| hop.sockets[socket].is_some();
        let between = Between::of(hop);
        self.by(between.network).to(Segment::Network, between.arrived, between.seen[1]);
        // What waits for a proxy that will answer by itself is not on its way to the application.
        let by_itself = hop.server_log.as_ref().is_some_and(|l| l.answered_by_itself());
        if by_itself {
            self.by(between.proxy).to(Segment::ServerSidecar, between.answered, between.seen[1]);
        } else {
            let sent = hop.request_on(Link::ServerLoopback).send;
            self.by(between.proxy).to(Segment::ServerSidecar, sent, seen(4));
            self.beyond_server_proxy(hop);
            self.by(between.proxy).to(Segment::ServerSidecar, between.answered, between.seen[1]);
        }
        self.by(between.network).to(Segment::Network, between.returned, between.seen[0]);
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
        let evidence = std::mem::replace(&mut self.evidence, Evidence::Kernel);
        if let Some(until) = self.until(instant, seen) {
            // A sidecar's clock may put its words a little before the kernel's instant that they follow.
            let until = if evidence == Evidence::Kernel { until } else { until.max(self.at) };
            let time = until - self.at;
            if time.0 != 0 {
                self.split = std::mem::replace(&mut self.split, Attribution::of(time)).add(segment, time, evidence);
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
