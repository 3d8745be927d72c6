//! Which stream of an HTTP/2 connection an access log entry speaks of. No entry has a stream's number.
//!
//! A proxy creates its streams in the order of their header blocks, so the entries of a connection, in order of time, are a part of
//! its streams in their order. Among all assignments that keep this order and contradict nothing there is an earliest and a
//! latest one (take of any two the smaller stream for each entry: that is one, too). An entry belongs to a stream for certain if both give
//! it the same. What is left is ambiguous, also for entries that would fit "best".

use super::{Joiner, TOLERANCE};
use crate::exchange::Exchange;
use crate::http2::{StreamFacts, is_followed};
use crate::mesh::comparable;
use meshdiff_model::{AmbiguityReason, DurationNs, HopSide, JoinOutcome, MonotonicNs, RequestId, UnmatchedReason};
use std::collections::HashMap;
use std::ops::Range;

/// Which of a proxy's two connections an entry is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// The one on which the request came.
    Downstream,
    /// The one on which it went on.
    Upstream,
}

/// An entry that speaks of a stream of one connection.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    /// Its place among the access logs.
    pub(super) index: usize,
    pub(super) log: &'a HopSide,
    /// When its stream began.
    pub(super) start: MonotonicNs,
}

/// Entries whose order is told by their instants differ by more than this. Downstream that is the start itself, in whole µs, upstream a
/// span counted from it.
const fn resolution(role: Role) -> DurationNs {
    match role {
        Role::Downstream => DurationNs(0),
        Role::Upstream => DurationNs::from_micros(2),
    }
}

impl Joiner<'_> {
    /// For each entry of a connection whose frames were followed, the exchange.
    pub(super) fn assign(
        &self,
        connection: usize,
        role: Role,
        claims: &[Claim<'_>],
    ) -> Vec<(usize, JoinOutcome<usize>)> {
        let range = self.of_connection[connection].clone();
        let streams: Vec<(&Exchange, &StreamFacts)> =
            self.exchanges[range.clone()].iter().filter_map(|e| Some((e, e.stream.as_deref()?))).collect();
        let mut all: Vec<Waiting<'_>> =
            claims.iter().filter_map(|c| Some(Waiting { claim: *c, at: instant(role, c)?, pinned: None })).collect();
        let mut found: Vec<(usize, JoinOutcome<usize>)> = claims
            .iter()
            .filter(|c| instant(role, c).is_none())
            .map(|c| (c.index, JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen)))
            .collect();
        let owners = pin(&mut all, &streams, |w, s| self.fits(connection, role, w, &streams, s));
        let fits = |w: &Waiting<'_>, s: usize| match w.pinned {
            Some(pinned) => pinned == s,
            None => !owners.contains_key(&s) && self.fits(connection, role, w, &streams, s),
        };
        // Where a stream may have been missed, others that fit prove nothing.
        let missed = |w: &Waiting<'_>| {
            let (from, to) = match role {
                Role::Downstream => (w.at.offset(-LONGEST_WAIT), w.at),
                // What is encoded leaves at once, or after it had to wait for room, but before it is answered.
                Role::Upstream => (w.at.offset(-TOLERANCE), answered(&w.claim).unwrap_or(w.at)),
            };
            let ends = (&self.connections[connection], &self.endpoints);
            w.pinned.is_none() && !is_followed(&self.sent, ends.0, ends.1, from, to)
        };
        all.retain(|w| {
            let missed = missed(w);
            if missed {
                found.push((w.claim.index, JoinOutcome::Unmatched(self.why_not_followed(connection))));
            }
            !missed
        });
        // Streams are in order of their beginning. None that began later fits, nor one before which all had ended.
        let mut latest_end = MonotonicNs::default();
        let ends: Vec<MonotonicNs> = streams
            .iter()
            .map(|(e, _)| {
                let end = if e.has_response() { e.last } else { MonotonicNs(u64::MAX) };
                latest_end = latest_end.max(end);
                latest_end
            })
            .collect();
        let near = |w: &Waiting<'_>| {
            if let Some(pinned) = w.pinned {
                return pinned..pinned + 1;
            }
            let marks = &w.claim.log.timings;
            let until = match role {
                Role::Downstream => w.at,
                Role::Upstream => w.claim.start.offset(marks.extent().unwrap_or(DurationNs(i64::MAX / 4))),
            };
            let from = ends.partition_point(|end| end.offset(TOLERANCE) < w.at);
            from..streams.partition_point(|(e, _)| e.first <= until.offset(TOLERANCE)).max(from)
        };
        let first_fit: Vec<usize> = all.iter().map(|w| near(w).find(|&s| fits(w, s)).unwrap_or(usize::MAX)).collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|&i| (all[i].at, first_fit[i], all[i].claim.index));
        let sorted: Vec<Waiting<'_>> = order.into_iter().map(|i| all[i]).collect();
        // Entries of one instant may be in either order: they count only where one stream alone fits.
        let beside = |a: &Waiting<'_>, b: Option<&Waiting<'_>>| {
            b.is_some_and(|b| if b.at < a.at { a.at - b.at } else { b.at - a.at } <= resolution(role))
        };
        let mut all: Vec<Waiting<'_>> = Vec::new();
        for (i, w) in sorted.iter().enumerate() {
            let tied = beside(w, i.checked_sub(1).map(|p| &sorted[p])) || beside(w, sorted.get(i + 1));
            if tied && near(w).filter(|&s| fits(w, s)).nth(1).is_some() {
                found.push((w.claim.index, JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges)));
            } else {
                all.push(*w);
            }
        }
        // Those that are left of one instant are in the order of their streams.
        for run in all.chunk_by_mut(|a, b| beside(a, Some(b))) {
            run.sort_by_key(|w| near(w).find(|&s| fits(w, s)));
        }
        let earliest = earliest(&all, near, fits);
        let latest = latest(&all, near, fits);
        for (i, w) in all.iter().enumerate() {
            let outcome = match (earliest[i], latest[i]) {
                (Some(a), Some(b)) if a == b => JoinOutcome::Matched(range.start + a),
                (None, None) => JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen),
                _ => JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges),
            };
            found.push((w.claim.index, outcome));
        }
        found
    }

    fn why_not_followed(&self, connection: usize) -> UnmatchedReason {
        let ends = [self.connections[connection].client, self.connections[connection].server];
        let lost = ends.into_iter().flatten().any(|i| self.endpoints[i].socket.lost_events > 0);
        if lost { UnmatchedReason::EventsLost } else { UnmatchedReason::ProtocolNotRead }
    }

    /// True if nothing speaks against an entry's being about a stream.
    fn fits(
        &self,
        connection: usize,
        role: Role,
        w: &Waiting<'_>,
        streams: &[(&Exchange, &StreamFacts)],
        stream: usize,
    ) -> bool {
        let (exchange, facts) = streams[stream];
        // Most of what a long-lived stream keeps in reach had ended long before: that is seen at a glance.
        if exchange.has_response() && exchange.last.offset(TOLERANCE) < w.at {
            return false;
        }
        let (log, start) = (w.claim.log, w.claim.start);
        let connection = &self.connections[connection];
        let fields = &facts.fields;
        let differs = |a: Option<&str>, b: Option<&str>| a.zip(b).is_some_and(|(a, b)| a != b);
        if differs(log.method.as_deref(), fields.method.as_deref())
            || log.response_code.zip(fields.status).is_some_and(|(a, b)| a != b)
        {
            return false;
        }
        let back = exchange.response_crossing(connection, &self.endpoints, None);
        let marks = &log.timings;
        // An instant of the log that must not lie after one of the kernel's.
        let by = |mark: Option<MonotonicNs>, at: Option<MonotonicNs>| {
            mark.zip(at).is_none_or(|(mark, at)| mark <= at.offset(TOLERANCE))
        };
        match role {
            Role::Downstream => {
                let sizes = |logged: u64, seen: Option<u64>| seen.is_none_or(|seen| seen == logged);
                let known = facts.known_to_server(connection, &self.endpoints);
                by(known, Some(start))
                    && by(Some(start), back.send)
                    && by(marks.time_to_first_downstream_tx_byte.map(|m| start.offset(m)), back.send)
                    && by(marks.time_to_last_downstream_tx_byte.map(|m| start.offset(m)), back.last_send)
                    && sizes(log.request_body_bytes, facts.request_data)
                    && sizes(log.response_body_bytes, facts.response_data)
            }
            Role::Upstream => {
                let ids = |a: &RequestId, b: &RequestId| RequestId::same_request(a, b);
                let same_id = log.request_id.as_ref().zip(fields.request_id.as_ref()).is_none_or(|(a, b)| ids(a, b));
                let read = back.recv.or(back.ready);
                let parsed = marks.time_to_first_upstream_rx_byte.map(|m| start.offset(m));
                same_id
                    && by(Some(w.at), Some(exchange.first))
                    && by(Some(exchange.first), answered(&w.claim))
                    && by(back.ready.and(read), parsed)
            }
        }
    }
}

/// An entry that waits for its stream.
#[derive(Clone, Copy)]
struct Waiting<'a> {
    claim: Claim<'a>,
    /// The instant that gives the order.
    at: MonotonicNs,
    /// The one stream that has its request id.
    pinned: Option<usize>,
}

/// How long bytes may have waited for their reader: an entry whose stream began less than this after frames began to be followed may
/// be about one whose frames came before.
const LONGEST_WAIT: DurationNs = DurationNs::from_millis(10);

/// When a request had been answered that went on, at the latest.
fn answered(claim: &Claim<'_>) -> Option<MonotonicNs> {
    let marks = &claim.log.timings;
    marks.time_to_first_upstream_rx_byte.or_else(|| marks.extent()).map(|m| claim.start.offset(m))
}

fn instant(role: Role, claim: &Claim<'_>) -> Option<MonotonicNs> {
    match role {
        Role::Downstream => Some(claim.start),
        Role::Upstream => claim.log.timings.time_to_first_upstream_tx_byte.map(|m| claim.start.offset(m)),
    }
}

/// Puts entries on the stream that has the same request id, where one entry and one stream have it and they fit. Returns who is pinned
/// to which stream.
fn pin(
    all: &mut [Waiting<'_>],
    streams: &[(&Exchange, &StreamFacts)],
    fits: impl Fn(&Waiting<'_>, usize) -> bool,
) -> HashMap<usize, usize> {
    let mut by_id: HashMap<String, (Vec<usize>, Vec<usize>)> = HashMap::new();
    for (s, (_, facts)) in streams.iter().enumerate() {
        if let Some(id) = &facts.fields.request_id {
            by_id.entry(comparable(id)).or_default().1.push(s);
        }
    }
    for (i, w) in all.iter().enumerate() {
        if let Some(id) = &w.claim.log.request_id
            && let Some((entries, _)) = by_id.get_mut(&comparable(id))
        {
            entries.push(i);
        }
    }
    let mut owners = HashMap::new();
    for (entries, of) in by_id.into_values() {
        if let ([i], [s]) = (&entries[..], &of[..])
            && fits(&all[*i], *s)
        {
            all[*i].pinned = Some(*s);
            owners.insert(*s, *i);
        }
    }
    owners
}

/// Gives each entry in turn the first stream that fits and comes after the last one given.
fn earliest(
    entries: &[Waiting<'_>],
    near: impl Fn(&Waiting<'_>) -> Range<usize>,
    fits: impl Fn(&Waiting<'_>, usize) -> bool,
) -> Vec<Option<usize>> {
    let mut from = 0;
    let one = |w: &Waiting<'_>| {
        let range = near(w);
        let found = (range.start.max(from)..range.end).find(|&s| fits(w, s));
        from = found.map_or(from, |s| s + 1);
        found
    };
    entries.iter().map(one).collect()
}

/// Gives each entry in turn, from the last one on, the last stream that fits and comes before the last one given.
fn latest(
    entries: &[Waiting<'_>],
    near: impl Fn(&Waiting<'_>) -> Range<usize>,
    fits: impl Fn(&Waiting<'_>, usize) -> bool,
) -> Vec<Option<usize>> {
    let mut until = usize::MAX;
    let one = |w: &Waiting<'_>| {
        let range = near(w);
        let found = (range.start..range.end.min(until)).rev().find(|&s| fits(w, s));
        until = found.unwrap_or(until);
        found
    };
    let mut found: Vec<Option<usize>> = entries.iter().rev().map(one).collect();
    found.reverse();
    found
}
