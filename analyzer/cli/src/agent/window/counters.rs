//! What an agent counts from its start, cut to one segment; and segments' counts put together again.

use meshdiff_capture::{AlsStats, EntryCounts, EventCounts, Meta, TableStats};
use meshdiff_model::ProbeStats;
use std::collections::BTreeMap;

/// The counters of a `meta.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    pub(crate) probes: ProbeStats,
    pub(crate) events: EventCounts,
    pub(crate) als: AlsStats,
}

impl Counted {
    /// Those of a meta.
    pub(crate) fn of(meta: &Meta) -> Self {
        Self { probes: meta.probes.stats, events: meta.events, als: meta.als.clone() }
    }

    /// What was counted since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// Puts them into a meta.
    pub(crate) fn put(self, meta: &mut Meta) {
        meta.probes.stats = self.probes;
        meta.events = self.events;
        meta.als = self.als;
    }

    fn combine(&self, b: &Self, of: fn(u64, u64) -> u64) -> Self {
        let a = self;
        let entries = |a: EntryCounts, b: EntryCounts| EntryCounts {
            received: of(a.received, b.received),
            kept: of(a.kept, b.kept),
            dropped: of(a.dropped, b.dropped),
            malformed: of(a.malformed, b.malformed),
        };
        let mut trouble: BTreeMap<String, u64> = BTreeMap::new();
        for kind in a.als.trouble.keys().chain(b.als.trouble.keys()) {
            let count = |map: &BTreeMap<String, u64>| map.get(kind).copied().unwrap_or(0);
            let sum = of(count(&a.als.trouble), count(&b.als.trouble));
            if sum > 0 {
                trouble.insert(kind.clone(), sum);
            }
        }
        Self {
            probes: ProbeStats {
                events: of(a.probes.events, b.probes.events),
                lost_events: of(a.probes.lost_events, b.probes.lost_events),
                skipped_runs: of(a.probes.skipped_runs, b.probes.skipped_runs),
                vanished_sockets: of(a.probes.vanished_sockets, b.probes.vanished_sockets),
                runs: of(a.probes.runs, b.probes.runs),
                run_time_ns: of(a.probes.run_time_ns, b.probes.run_time_ns),
            },
            events: EventCounts {
                sends: of(a.events.sends, b.events.sends),
                readies: of(a.events.readies, b.events.readies),
                recvs: of(a.events.recvs, b.events.recvs),
                states: of(a.events.states, b.events.states),
                others: of(a.events.others, b.events.others),
                malformed: of(a.events.malformed, b.events.malformed),
            },
            als: AlsStats {
                listen: a.als.listen.clone().or_else(|| b.als.listen.clone()),
                streams: of(a.als.streams, b.als.streams),
                malformed_messages: of(a.als.malformed_messages, b.als.malformed_messages),
                http: entries(a.als.http, b.als.http),
                tcp: entries(a.als.tcp, b.als.tcp),
                lost_estimate: a.als.lost_estimate.zip(b.als.lost_estimate).map(|(a, b)| of(a, b)),
                lost_estimate_basis: a.als.lost_estimate_basis.clone(),
                trouble,
            },
        }
    }
}

/// Adds what was written of a table in one segment to that of others.
pub(crate) fn add_table(to: &mut TableStats, more: &TableStats) {
    to.parts += more.parts;
    to.rows += more.rows;
    to.bytes += more.bytes;
    to.dropped_rows += more.dropped_rows;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_apart_adds_up_again() {
        let counted = |n: u64, kinds: &[&str]| {
            let mut c = Counted::default();
            c.probes.events = 10 * n;
            c.events.sends = 3 * n;
            c.als.http.received = n;
            c.als.trouble = kinds.iter().map(|k| ((*k).to_owned(), n)).collect();
            c
        };
        let (first, last) = (counted(5, &["a"]), counted(9, &["a", "b"]));
        let delta = last.since(&first);
        assert_eq!((delta.probes.events, delta.events.sends, delta.als.http.received), (40, 12, 4));
        assert_eq!(delta.als.trouble, BTreeMap::from([("a".to_owned(), 4), ("b".to_owned(), 9)]));
        assert_eq!(first.plus(&delta), last);
        // A recorder that began anew counts from 0: never below.
        assert_eq!(first.since(&last).probes.events, 0);
    }
}
