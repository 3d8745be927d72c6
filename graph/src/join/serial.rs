//! Requests that wait for each other on a connection of HTTP/1, where turns do not tell them apart.
//!
//! Two kinds: a client that sends its body only when it was told to go on (`Expect: 100-continue`), whose one exchange is two turns on
//! connections that cannot be read; and a client that does not wait for responses (pipelining), whose several exchanges are one turn. Each
//! is resolved only where the bytes, and not the clocks alone, prove it; else it stays ambiguous.

use super::streams::Role;
use super::{Joiner, TOLERANCE, is_multiplexed};
use crate::exchange::Exchange;
use crate::stream::{Offset, Stream};
use meshdiff_model::{Content, HopSide, JoinOutcome, Link, MonotonicNs, Side};
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU64;

/// An entry of the recording: its place among the logs, and its start by the kernel's clock.
type Log<'a> = (usize, &'a HopSide, Option<MonotonicNs>);

/// Several exchanges in the place of one or more.
struct Parts {
    /// How many exchanges they replace.
    instead_of: usize,
    parts: Vec<Exchange>,
    /// The entry of each, in order.
    logs: Vec<usize>,
}

impl Joiner<'_> {
    /// Cuts anew what the logs and the bytes together show to have been cut wrongly.
    pub(super) fn recut(&mut self, logs: &[Log<'_>]) {
        let parts = self.pipelined(logs);
        let halves = self.told_to_go_on(logs);
        if parts.is_empty() && halves.is_empty() {
            return;
        }
        let mut exchanges = Vec::with_capacity(self.exchanges.len());
        for range in &mut self.of_connection {
            let from = exchanges.len();
            let mut next = range.start;
            while next < range.end {
                if let Some(run) = parts.get(&next) {
                    for (log, part) in run.logs.iter().zip(&run.parts) {
                        self.of_stream.insert((*log, Role::Downstream), JoinOutcome::Matched(exchanges.len()));
                        exchanges.push(part.clone());
                    }
                    next += run.instead_of;
                } else if halves.contains(&next) {
                    let mut whole = self.exchanges[next].clone();
                    let rest = &self.exchanges[next + 1];
                    whole.absorb(rest);
                    // What came back between the two was no part of the response.
                    whole.response = rest.response;
                    exchanges.push(whole);
                    next += 2;
                } else {
                    exchanges.push(self.exchanges[next].clone());
                    next += 1;
                }
            }
            *range = from..exchanges.len();
        }
        self.exchanges = exchanges;
    }

    /// Exchanges between the sidecars whose request goes on in the next one, because in between the client was told to go on: on its own
    /// connection, which can be read, the interim response left after the first turn's answer had arrived and before the second turn began,
    /// and the final one left after the second turn's answer. No clock but the kernel's is asked, and one connection of
    /// HTTP/1 serves nobody else meanwhile.
    fn told_to_go_on(&self, logs: &[Log<'_>]) -> HashSet<usize> {
        let mut found = HashSet::new();
        let interim: HashSet<usize> = (0..self.connections.len()).filter(|&c| self.has_interim(c)).collect();
        if interim.is_empty() {
            return found;
        }
        let mut twice = HashSet::new();
        for &(index, log, start) in logs.iter().filter(|(_, log, _)| log.side == Some(Side::Client)) {
            let Some(at) =
                start.filter(|_| self.downstream_connection(log, start).is_some_and(|c| interim.contains(&c)))
            else {
                continue;
            };
            let downstream = self.downstream(index, log, start);
            let (Some(served), Some(window), Some(c)) = (
                downstream.matched(),
                self.upstream_window(log, at, downstream),
                self.upstream_connection(log, start, downstream),
            ) else {
                continue;
            };
            if self.multiplexed.contains(&c) || self.followed.contains(&c) {
                continue;
            }
            let range = self.of_connection[c].clone();
            let list = &self.exchanges[range.clone()];
            let first = list.partition_point(|e| e.first < window.0.offset(-TOLERANCE));
            let count = list[first..].iter().take_while(|e| e.first <= window.1).count();
            if count == 2
                && self.goes_on(&self.exchanges[served], &list[first], &list[first + 1])
                && !found.insert(range.start + first)
            {
                twice.insert(range.start + first);
            }
        }
        found.retain(|x| !twice.contains(x) && !twice.contains(&(x + 1)));
        let overlapping: Vec<usize> = found.iter().copied().filter(|x| found.contains(&(x + 1))).collect();
        found.retain(|x| !overlapping.iter().any(|o| x == o || *x == o + 1));
        found
    }

    /// True if interim responses were sent on a connection with a client application.
    fn has_interim(&self, connection: usize) -> bool {
        let connection = &self.connections[connection];
        let server = connection.server.filter(|_| connection.link == Some(Link::ClientLoopback));
        server.is_some_and(|s| self.endpoints[s].egress.pieces.iter().any(|p| p.content.is_interim_response()))
    }

    fn goes_on(&self, served: &Exchange, first: &Exchange, second: &Exchange) -> bool {
        let whole = |e: &Exchange| !e.lossy && !e.pipelined && e.stream.is_none();
        if ![served, first, second].into_iter().all(whole) || first.after_handshake {
            return false;
        }
        let connection = &self.connections[served.connection];
        let Some(proxy) = connection.server.map(|s| &self.endpoints[s].egress) else { return false };
        let answered = |e: &Exchange| e.response_crossing(&self.connections[e.connection], &self.endpoints, None);
        let sent = |e: &Exchange| e.request_crossing(&self.connections[e.connection], &self.endpoints).send;
        let (Some(told), Some(go_on), Some(done), Some(last)) =
            (answered(first).ready, sent(second), answered(second).ready, answered(served).send)
        else {
            return false;
        };
        let during = |p: &&crate::stream::Piece| p.first >= served.first && p.first < last;
        let mut interim = proxy.pieces.iter().filter(|p| p.content.is_interim_response()).filter(during);
        let (Some(only), None) = (interim.next(), interim.next()) else { return false };
        told <= only.first && only.last < go_on && done <= last
    }

    /// Runs of exchanges that clients did not wait between, cut by the sizes that their proxy counted.
    fn pipelined(&self, logs: &[Log<'_>]) -> BTreeMap<usize, Parts> {
        let mut runs: BTreeMap<usize, Vec<(MonotonicNs, usize, &HopSide)>> = BTreeMap::new();
        for &(index, log, start) in logs {
            let (Some(start), Some(Side::Client), false) = (start, log.side, is_multiplexed(log.protocol)) else {
                continue;
            };
            let Some(c) = self.downstream_connection(log, Some(start)) else { continue };
            if self.steps.hold(log.start_time) || self.multiplexed.contains(&c) || self.followed.contains(&c) {
                continue;
            }
            let range = self.of_connection[c].clone();
            let begun = self.exchanges[range.clone()]
                .partition_point(|e| self.read_by_server(e).is_some_and(|at| at <= start.offset(TOLERANCE)));
            let Some(mut at) = (range.start + begun).checked_sub(1).filter(|_| begun > 0) else { continue };
            while at > range.start && self.exchanges[at - 1].pipelined {
                at -= 1;
            }
            runs.entry(at).or_default().push((start, index, log));
        }
        let several = runs.into_iter().filter(|(_, logs)| logs.len() > 1);
        several
            .filter_map(|(first, mut logs)| {
                logs.sort_by_key(|l| (l.0, l.1));
                Some((first, self.parts(first, &logs)?))
            })
            .collect()
    }

    /// The exchanges of a run that begins with the one at `first`, one for each entry. Every byte of the run must belong to one of
    /// them, each must have been answered before the next one was begun, and every response must leave after its mark.
    fn parts(&self, first: usize, logs: &[(MonotonicNs, usize, &HopSide)]) -> Option<Parts> {
        let range = self.of_connection[self.exchanges[first].connection].clone();
        let waiting = self.exchanges[first..range.end].iter().take_while(|e| e.pipelined).count();
        let run = self.exchanges.get(first..first + waiting + 1).filter(|_| first + waiting < range.end)?;
        let head = |e: &Exchange| matches!(e.request_content, Content::Http1Request { .. });
        if run.iter().any(|e| e.lossy || e.beginning_unseen || e.stream.is_some() || !head(e)) {
            return None;
        }
        let connection = &self.connections[run[0].connection];
        let client = &self.endpoints[connection.client?];
        let server = &self.endpoints[connection.server?];
        let shift = client.ingress.shift_to(&server.egress);
        let whole = (run[0].request.0, run.last()?.request.1);
        let mut answers = run.iter().filter_map(|e| e.response);
        let answer = answers.next()?;
        if answers.next().is_some() || !client.egress.covers(whole.0, whole.1) {
            return None;
        }
        let begins = beginnings(whole, logs.iter().map(|l| l.2.details.bytes.downstream_wire_bytes_received))?;
        // Every head that was seen must be at one of them, and the first one's end at the next.
        let heads = client.egress.pieces_in(whole.0, whole.1).filter(|p| p.content != Content::Unknown);
        let first_end = client.egress.piece_at(whole.0)?.head_end;
        if heads.into_iter().any(|p| !begins.contains(&p.start)) || first_end.is_some_and(|end| end != begins[1]) {
            return None;
        }
        let mut answered = answer.0;
        let mut parts: Vec<Exchange> = Vec::with_capacity(logs.len());
        for (n, &(start, _, log)) in logs.iter().enumerate() {
            let request = (begins[n], begins.get(n + 1).map_or(whole.1, |&next| next));
            let bytes = log.details.bytes.downstream_wire_bytes_sent?;
            let response = (answered, answered.checked_add_unsigned(bytes.get())?);
            answered = response.1;
            let done = start.offset(log.timings.time_to_last_downstream_tx_byte?);
            let in_order = logs.get(n + 1).is_none_or(|next| done <= next.0.offset(TOLERANCE));
            // Without a body, a request ends where its head does.
            if log.request_body_bytes > 0 || !in_order {
                return None;
            }
            let sent = (response.0 + shift, response.1 + shift);
            let mark = start.offset(log.timings.time_to_first_downstream_tx_byte?).offset(-TOLERANCE);
            let before_next = logs
                .get(n + 1)
                .is_none_or(|next| server.egress.last_send(sent.1).is_some_and(|at| at <= next.0.offset(TOLERANCE)));
            // It begins a send of its own, and with its head came what that send held.
            let own = server.egress.first_send_from(sent.0, sent.0 + 1, mark).is_some();
            if !own || !before_next || !at_once(&client.ingress, response.0, server.egress.send_end(sent.0)? - shift) {
                return None;
            }
            parts.push(self.part(run, n, log, request, response)?);
        }
        let logs = logs.iter().map(|l| l.1).collect();
        (answered == answer.1).then_some(Parts { instead_of: run.len(), parts, logs })
    }

    /// One exchange of a run, of which it has these bytes. `None` if a head that was seen is another one's.
    fn part(
        &self,
        run: &[Exchange],
        n: usize,
        log: &HopSide,
        request: (Offset, Offset),
        response: (Offset, Offset),
    ) -> Option<Exchange> {
        let whole = &run[0];
        let connection = &self.connections[whole.connection];
        let client = &self.endpoints[connection.client?];
        let server = &self.endpoints[connection.server?];
        let shift = client.ingress.shift_to(&server.egress);
        let seen = |stream: &Stream, at: Offset| {
            stream.piece_at(at).filter(|p| p.start == at).map(|p| p.content.clone()).filter(|c| *c != Content::Unknown)
        };
        let method = log.method.clone()?;
        // The path may have been left out of the recording.
        let path = || log.path.clone().unwrap_or_default();
        let logged = || Some(Content::Http1Request { method: method.clone(), path: path() });
        let request_content = seen(&client.egress, request.0).or_else(logged)?;
        if !matches!(&request_content, Content::Http1Request { method: seen, .. } if *seen == method) {
            return None;
        }
        let response_content = seen(&server.egress, response.0 + shift)
            .or_else(|| Some(Content::Http1Response { status: log.response_code? }))?;
        if !matches!(response_content, Content::Http1Response { status } if Some(status) == log.response_code) {
            return None;
        }
        let sent = client.egress.send_of(request.0)?;
        let last = [server.egress.last_send(response.1 + shift), client.ingress.recv(response.1)];
        Some(Exchange {
            request,
            response: Some(response),
            request_content,
            response_content,
            pipelined: false,
            first_on_connection: whole.first_on_connection && n == 0,
            first: sent,
            last: last.into_iter().flatten().max()?,
            ..whole.clone()
        })
    }
}

/// Where each of several requests begins that fill a range, by what the proxy counted for each. Envoy counts for a request what its parser
/// was given from its beginning on: those behind it included where all had arrived, its own bytes only where each came by itself. `None`
/// if it is neither.
fn beginnings(whole: (Offset, Offset), counted: impl Iterator<Item = Option<NonZeroU64>>) -> Option<Vec<Offset>> {
    let counted: Vec<Offset> = counted.map(|n| Offset::try_from(n?.get()).ok()).collect::<Option<_>>()?;
    let length = whole.1 - whole.0;
    if counted.first() == Some(&length) && counted.is_sorted_by(|a, b| a > b) {
        return Some(counted.iter().map(|rest| whole.1 - rest).collect());
    }
    let sum = counted.iter().try_fold(0, |sum: Offset, n| sum.checked_add(*n))?;
    let begin = |at: &mut Offset, n: &Offset| Some(std::mem::replace(at, *at + n));
    (sum == length).then(|| counted.iter().scan(whole.0, begin).collect())
}

/// True if all bytes of a range became readable at once, and were read at once.
fn at_once(stream: &Stream, start: Offset, end: Offset) -> bool {
    let same = |at: fn(&Stream, Offset) -> Option<MonotonicNs>| {
        at(stream, end).is_some() && at(stream, start + 1) == at(stream, end)
    };
    same(Stream::ready) && same(Stream::recv)
}

#[cfg(test)]
mod tests;
