//! Where a message's bytes are at an instant.

use super::hindrance::{Cause, Hindrances};
use meshdiff_model::{Crossing, Detail, Evidence, Flow, JoinedHop, Link, MonotonicNs};
use std::borrow::Cow;

/// A message's way from the application that sent it to the one that reads it, link by link.
pub(super) struct Way<'a> {
    links: Vec<Cow<'a, Flow>>,
    hindrances: Vec<Hindrances>,
    /// Bytes of the head on the first and on the last link, where the proxies hand the body behind it through as it is. `None` if it
    /// is encoded anew on the way (chunks, frames), so that positions on different links do not compare.
    heads: Option<[u64; 2]>,
    /// False if the instants of different links cannot be compared.
    one_clock: bool,
    across_nodes: bool,
    /// It is a stream of HTTP/2: whoever reads its connection may still not let it go on (RFC 9113, section 5.2), which no
    /// instant tells.
    has_window: bool,
}

impl<'a> Way<'a> {
    /// The request's way, as far as it went.
    pub(super) fn of_request(hop: &'a JoinedHop) -> Self {
        let links = links(hop).iter().map(|&l| (hop.request_on(l), hop.flows.request[l as usize].as_deref()));
        let logged = [&hop.server_log, &hop.client_log].map(|l| l.as_ref().map(|l| l.request_body_bytes));
        Self::new(links.collect(), logged, hop)
    }

    /// The response's way, from where it came.
    pub(super) fn of_response(hop: &'a JoinedHop) -> Self {
        let links = links(hop).iter().rev().map(|&l| (hop.response_on(l), hop.flows.response[l as usize].as_deref()));
        let logged = [&hop.client_log, &hop.server_log].map(|l| l.as_ref().map(|l| l.response_body_bytes));
        Self::new(links.collect(), logged, hop)
    }

    fn new(links: Vec<(&'a Crossing, Option<&'a Flow>)>, logged: [Option<u64>; 2], hop: &JoinedHop) -> Self {
        let links: Vec<Cow<'a, Flow>> = links
            .into_iter()
            .map(|(crossing, flow)| flow.map_or_else(|| Cow::Owned(Flow::of(crossing)), Cow::Borrowed))
            .collect();
        let hindrances = links.iter().map(|flow| Hindrances::of(flow)).collect();
        let heads = heads(&links, logged);
        Self {
            links,
            hindrances,
            heads,
            one_clock: one_clock(hop),
            across_nodes: hop.is_across_nodes(),
            has_window: hop.http2.is_some(),
        }
    }

    fn first(&self) -> &Flow {
        &self.links[0]
    }

    fn last(&self) -> &Flow {
        &self.links[self.links.len() - 1]
    }

    /// True if bytes are ready at the message's destination and were not read yet.
    pub(super) fn unread(&self, at: MonotonicNs) -> Option<bool> {
        more(self.last().ready.at(at), self.last().read.at(at))
    }

    /// True if all of the message is ready at its destination.
    pub(super) fn complete(&self, at: MonotonicNs) -> Option<bool> {
        let (low, high) = self.last().ready.at(at);
        match self.last().bytes {
            all if low >= all => Some(true),
            all if high < all => Some(false),
            _ => None,
        }
    }

    /// When its sender sent of it next.
    pub(super) fn next_send(&self, at: MonotonicNs) -> Option<MonotonicNs> {
        self.first().sent.next_after(at)
    }

    /// When more of it was ready at its destination next.
    pub(super) fn next_arrival(&self, at: MonotonicNs) -> Option<MonotonicNs> {
        self.last().ready.next_after(at)
    }

    /// True if bytes were sent that are not ready at the destination: on a connection, or held by a proxy between two.
    pub(super) fn in_flight(&self, at: MonotonicNs) -> Option<bool> {
        if !self.one_clock {
            return None;
        }
        // Nothing is told of bytes by an end that was not seen.
        if self.first().bytes == 0 || self.last().bytes == 0 {
            return None;
        }
        // Where it was cut short, there is more to come that never did.
        if self.heads.is_none() && self.complete(at) == Some(true) {
            return Some(false);
        }
        let (sent, arrived) = (self.first().sent.at(at), self.last().ready.at(at));
        let (all_sent, all_arrived) = (self.first().bytes, self.last().bytes);
        if sent.0 >= all_sent && arrived.1 < all_arrived {
            return Some(true);
        }
        match self.heads {
            // Only what lies beyond both heads compares.
            Some([first, last]) => {
                let body = |(low, high): (u64, u64), head: u64| (low.saturating_sub(head), high.saturating_sub(head));
                more(body(sent, first), body(arrived, last))
            }
            None => self.moves_on(at),
        }
    }

    /// How certain it is that what is in flight waits for the way itself. A proxy that keeps bytes of a stream while nothing of it moves
    /// on the connection to its destination may have to: the application there reads, but grants no more.
    pub(super) fn certainty(&self, at: MonotonicNs) -> Evidence {
        let last = self.last();
        let moves = more(last.sent.at(at), last.ready.at(at)) == Some(true);
        if self.has_window && !moves { Evidence::Bound } else { self.of_both_ends() }
    }

    /// How certain is what compares an end with the other, as [`Way::in_flight`] does: on one node both were seen by one clock.
    pub(super) const fn of_both_ends(&self) -> Evidence {
        if self.across_nodes { Evidence::Bound } else { Evidence::Kernel }
    }

    /// True if bytes are under way somewhere, told without comparing positions of different links: sent and not ready, ready and not
    /// read by a proxy, or read by a proxy that has not sent anything since (or will, before it reads more).
    fn moves_on(&self, at: MonotonicNs) -> Option<bool> {
        let mut known = true;
        for (i, link) in self.links.iter().enumerate() {
            let mut steps = vec![more(link.sent.at(at), link.ready.at(at))];
            if let Some(next) = self.links.get(i + 1) {
                steps.push(more(link.ready.at(at), link.read.at(at)));
                steps.push(holds(link, next, at));
            }
            if steps.contains(&Some(true)) {
                return Some(true);
            }
            known &= !steps.contains(&None);
        }
        known.then_some(false)
    }

    /// What keeps bytes from moving on, in order of what explains most.
    pub(super) fn hindrance(&self, at: MonotonicNs) -> Option<Detail> {
        if !self.one_clock {
            return None;
        }
        let causes = || self.hindrances.iter().filter_map(|h| h.at(at));
        if causes().any(|c| c == Cause::Lost) {
            return Some(Detail::Retransmit);
        }
        if causes().any(|c| c == Cause::Held) {
            return Some(Detail::TcpHeld);
        }
        let yes = |a, b| more(a, b) == Some(true);
        let mut waits = None;
        for pair in self.links.windows(2) {
            let (here, next) = (&pair[0], &pair[1]);
            if !yes(here.ready.at(at), here.read.at(at)) {
                continue;
            }
            let (sent, ready, read) = (next.sent.at(at), next.ready.at(at), next.read.at(at));
            if yes(sent, ready) || yes(ready, read) {
                return Some(Detail::Backpressure);
            }
            waits = Some(Detail::Queue);
        }
        waits
    }

    /// Instants at which any of the answers can change.
    pub(super) fn changes(&self) -> impl Iterator<Item = MonotonicNs> + '_ {
        let marks = self.links.iter().flat_map(|l| [&l.sent, &l.ready, &l.read]).flat_map(|p| p.marks());
        marks.map(|m| m.at).chain(self.hindrances.iter().flat_map(Hindrances::changes))
    }
}

/// True if `a` is more than `b`, of both of which only bounds are known.
const fn more(a: (u64, u64), b: (u64, u64)) -> Option<bool> {
    if a.0 > b.1 {
        Some(true)
    } else if a.1 <= b.0 {
        Some(false)
    } else {
        None
    }
}

/// True if a proxy, which reads from one link and sends on the next, has bytes that it did not send on. Nobody sees its buffers: what it
/// read last it still has if it sent nothing since, and what it sends without having read before it had.
fn holds(from: &Flow, to: &Flow, at: MonotonicNs) -> Option<bool> {
    let told = |(low, high): (u64, u64)| low == high;
    if !told(from.read.at(at)) || !told(to.sent.at(at)) {
        return None;
    }
    let read_last = from.read.last_until(at) > to.sent.last_until(at);
    let sends_next = match (to.sent.next_after(at), from.read.next_after(at)) {
        (Some(sends), Some(reads)) => sends < reads,
        (Some(_), None) => true,
        (None, _) => false,
    };
    Some(read_last || sends_next)
}

/// The heads on the first and on the last link, if what follows them is the same: a body of the same size on both; of the
/// size that the proxies' logs give it, where one head is not known; or one that was cut short, but was on its last link as long as the
/// log of the proxy there says, so that it is not in chunks.
fn heads(links: &[Cow<'_, Flow>], logged: [Option<u64>; 2]) -> Option<[u64; 2]> {
    let (first, last) = (&links[0], &links[links.len() - 1]);
    let body = |flow: &Flow, head: u64| flow.bytes.saturating_sub(head);
    let agree = |body: u64| logged.iter().flatten().all(|l| *l == body) && logged.iter().any(Option::is_some);
    match (first.head, last.head) {
        (Some(a), Some(b)) => {
            let (sent, arrived) = (body(first, a), body(last, b));
            (sent == arrived || (arrived < sent && logged[0] == Some(arrived))).then_some([a, b])
        }
        (Some(a), None) if agree(body(first, a)) => Some([a, last.bytes.checked_sub(body(first, a))?]),
        (None, Some(b)) if agree(body(last, b)) => Some([first.bytes.checked_sub(body(last, b))?, b]),
        _ => None,
    }
}

/// The links that the message used: Envoy may have answered by itself.
fn links(hop: &JoinedHop) -> &'static [Link] {
    if hop.client_log.as_ref().is_some_and(|l| l.answered_by_itself()) {
        &Link::ALL[..1]
    } else if hop.server_log.as_ref().is_some_and(|l| l.answered_by_itself()) {
        &Link::ALL[..2]
    } else {
        &Link::ALL
    }
}

/// False if a message arrived before it was sent: then the two nodes read different clocks.
fn one_clock(hop: &JoinedHop) -> bool {
    let forward = |send, ready| !matches!((send, ready), (Some(send), Some(ready)) if ready < send);
    let crosses = |c: &Crossing| forward(c.send, c.ready);
    let [near, network, far] = Link::ALL;
    // Where streams share the connection between the sidecars there are no instants on it; those around it are in this order, too.
    crosses(hop.request_on(network))
        && crosses(hop.response_on(network))
        && forward(hop.request_on(near).send, hop.request_on(far).ready)
        && forward(hop.response_on(far).send, hop.response_on(near).ready)
}
