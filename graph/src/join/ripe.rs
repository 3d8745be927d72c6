//! Which requests are told of a recording of which parts are still to come: those that nothing can change any more.

use super::attempts::Attempts;
use super::{Entry, Joiner, TOLERANCE};
use crate::exchange::Exchange;
use crate::stream::Offset;
use meshdiff_model::{Direction, DurationNs, JoinOutcome, MonotonicNs};
use std::collections::{HashMap, HashSet};

/// How long is waited for what may still come.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// This long after a request's end everything that was sent by then has arrived, unless somebody is slow to read.
    pub settles: DurationNs,
    /// A request of which not everything was read, or of which no entry tells, counts as over after this if nothing follows on its connection.
    pub quiet: DurationNs,
}

impl Default for Patience {
    fn default() -> Self {
        Self { settles: DurationNs::from_millis(250), quiet: DurationNs::from_millis(5_000) }
    }
}

/// What is ripe, and what was told before.
pub(super) struct Ripe<'a> {
    /// All that began before is there; `None` if everything is.
    pub(super) until: Option<MonotonicNs>,
    pub(super) places: &'a [u64],
    pub(super) told: &'a HashMap<u64, bool>,
    pub(super) counted: &'a HashSet<(usize, Offset)>,
    pub(super) patience: Patience,
}

impl Joiner<'_> {
    /// True if nothing comes after an exchange on its connection.
    pub(super) fn is_last(&self, exchange: &Exchange) -> bool {
        let last = self.of_connection[exchange.connection].end - 1;
        std::ptr::eq(exchange, &self.exchanges[last]) && !self.unfinished.contains(&exchange.connection)
    }

    /// Which entries are told now: those that are ripe together with all that belong to the same request, and were not told before.
    pub(super) fn due(
        &self,
        ripe: Option<&Ripe<'_>>,
        entries: &[Entry],
        servers: &[Option<JoinOutcome<usize>>],
        attempts: &Attempts,
    ) -> Vec<bool> {
        let Some(ripe) = ripe else { return vec![true; entries.len()] };
        let mut request_of: Vec<usize> = (0..entries.len()).collect();
        for (client, server) in servers.iter().enumerate() {
            if let Some(JoinOutcome::Matched(server)) = server {
                request_of[*server] = client;
            }
        }
        for (entry, request) in attempts.entries() {
            request_of[entry] = request;
        }
        let is_ripe: Vec<bool> = entries.iter().map(|entry| self.is_ripe(entry, ripe)).collect();
        // What a request was tried again with is told by all else that its proxy did meanwhile.
        let tried_again = |e: &Entry| e.log.upstream_request_attempt_count.is_some_and(|n| n > 1);
        let meanwhile = |e: &Entry, other: &Entry| {
            let end = e.start.map(|start| start.offset(e.extent()).offset(TOLERANCE));
            other.is_client() && other.log.node == e.log.node && other.start <= end
        };
        let mut due = vec![true; entries.len()];
        for (i, entry) in entries.iter().enumerate() {
            let told = entry.place.is_some_and(|p| ripe.told.contains_key(&ripe.places[p]));
            let alone = || !entries.iter().zip(&is_ripe).any(|(other, ripe)| !ripe && meanwhile(entry, other));
            due[request_of[i]] &= !told && is_ripe[i] && (!tried_again(entry) || alone());
        }
        (0..entries.len()).map(|i| due[request_of[i]]).collect()
    }

    fn is_ripe(&self, entry: &Entry, ripe: &Ripe<'_>) -> bool {
        let Patience { settles, quiet } = ripe.patience;
        let (Some(until), Some(start)) = (ripe.until, entry.start) else { return true };
        let end = start.offset(entry.extent());
        let mut exchanges = [entry.downstream, entry.upstream].into_iter().filter_map(JoinOutcome::matched);
        let long_ago = end.offset(quiet) <= until;
        end.offset(settles) <= until
            && exchanges.all(|x| {
                let next =
                    (x + 1 < self.of_connection[self.exchanges[x].connection].end).then(|| &self.exchanges[x + 1]);
                // Whether it is whole is told by who claims the next one.
                let is_whole = match next {
                    Some(next) => next.first.offset(settles) <= until,
                    None => long_ago || !self.unfinished.contains(&self.exchanges[x].connection),
                };
                let parting = self.exchanges[x].after_handshake && !is_whole;
                !parting && self.is_heard(x, until, settles) && (long_ago || self.is_read(x) || self.is_over(x, until))
            })
    }

    /// True if an exchange is not yet counted, and all is there that tells what it is.
    ///
    /// `claimed`: an entry is about it.
    pub(super) fn is_countable(&self, x: usize, claimed: bool, ripe: &Ripe<'_>) -> bool {
        let e = &self.exchanges[x];
        if ripe.counted.contains(&(e.connection, e.request.0)) {
            return false;
        }
        let Patience { settles, quiet } = ripe.patience;
        let Some(until) = ripe.until else { return true };
        if claimed || e.last.offset(settles) > until {
            return claimed && e.last.offset(settles) <= until;
        }
        // What was not seen to be whole may be what a later entry is about.
        let whole = e.has_response() && !e.lossy && !e.pipelined;
        if !(whole && self.is_heard(x, until, settles) || self.is_followed(x, until, settles)) {
            return false;
        }
        e.last.offset(quiet) <= until || self.is_over(x, until)
    }

    /// True if no loss can come out later: it is noticed by what comes after it.
    fn is_heard(&self, x: usize, until: MonotonicNs, settles: DurationNs) -> bool {
        let connection = &self.connections[self.exchanges[x].connection];
        let lossy = connection.ends().any(|end| self.endpoints[end].socket.lost_events > 0);
        !lossy || self.is_followed(x, until, settles)
    }

    /// True if the next exchange of its connection had begun, or the connection had ended.
    fn is_followed(&self, x: usize, until: MonotonicNs, settles: DurationNs) -> bool {
        let connection = self.exchanges[x].connection;
        let range = &self.of_connection[connection];
        if x + 1 < range.end {
            return self.exchanges[x + 1].first.offset(settles) <= until;
        }
        self.end_seen(connection).is_some_and(|end| end.offset(settles) <= until)
    }

    /// True if all that was sent of an exchange was read, so that nothing more comes of one that its sender says to be over.
    fn is_read(&self, x: usize) -> bool {
        let e = &self.exchanges[x];
        let connection = &self.connections[e.connection];
        let request = || e.request_crossing(connection, &self.endpoints).last_recv.is_some();
        let response = || e.response_crossing(connection, &self.endpoints, None).last_recv.is_some();
        e.has_response()
            && !e.pipelined
            && (connection.server.is_none() || request())
            && (connection.client.is_none() || response())
    }

    /// True if nothing more can come of an exchange: its connection is over, or the next one began.
    fn is_over(&self, x: usize, until: MonotonicNs) -> bool {
        let e = &self.exchanges[x];
        if !self.unfinished.contains(&e.connection) {
            return true;
        }
        if let Some(stream) = &e.stream {
            let back = stream.crossing(Direction::Ingress, &self.connections[e.connection], &self.endpoints);
            return stream.cancelled.is_some() || back.last_recv.is_some();
        }
        let next = (x + 1 < self.of_connection[e.connection].end).then(|| &self.exchanges[x + 1]);
        !e.pipelined && e.has_response() && next.is_some_and(|next| next.first <= until)
    }
}
