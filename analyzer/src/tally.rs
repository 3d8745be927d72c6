//! What a report says of requests, added up tree by tree, so that single requests need not be kept.
//!
//! Order statistics are exact all the same: of every full request the total and the segments stay, as numbers.

use crate::build::{NEAR_MINIMUM, SLOWEST, count_request, mean_of, verdict_of};
use crate::parts::Summed;
use crate::report::{Coverage, HopSummary, NearQuantile, PartKind, SegmentStats, Verdict};
use crate::request::AttributedRequest;
use crate::rollup;
use crate::stats::Sample;
use meshdiff_model::{Detail, DurationNs, HopProtocol, MonotonicNs, Segment, SegmentMap, Workload};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Adds requests up.
#[derive(Debug, Default)]
pub struct Tally {
    coverage: Coverage,
    names: Names,
    hops: HashMap<(u32, u32, &'static str), HopTally>,
    entries: HashMap<(u32, u32), Entries>,
    /// The slowest full entry requests with all that they caused, slowest first.
    slowest: Vec<(Slowness, Vec<AttributedRequest>)>,
}

/// By what the slowest are chosen.
type Slowness = (Reverse<DurationNs>, Option<MonotonicNs>);

impl Tally {
    /// Adds requests, in order of start, each together with all that it caused.
    pub fn add(&mut self, requests: &[AttributedRequest]) {
        for (i, r) in requests.iter().enumerate() {
            count_request(&mut self.coverage, r);
            let client = self.names.short(&r.client);
            let server = self.names.of_hop(&r.server);
            self.hops.entry((client, server, r.protocol.as_str())).or_default().add(r);
            if r.parent.is_none() {
                self.add_entry(requests, i);
            }
        }
    }

    /// What was added up.
    #[must_use]
    pub fn finish(self) -> Summed {
        let Self { coverage, names, hops, entries, slowest } = self;
        let name = |id: u32| names.names[id as usize].clone();
        let mut hops: Vec<HopSummary> =
            hops.into_iter().map(|((client, server, _), tally)| tally.summary(name(client), name(server))).collect();
        hops.sort_by(|a, b| {
            let key = |h: &HopSummary| h.protocol.as_str();
            (&a.client, &a.server, key(a)).cmp(&(&b.client, &b.server, key(b)))
        });
        let mut slowest_requests = Vec::new();
        for (_, tree) in slowest {
            let at = slowest_requests.len();
            slowest_requests.extend(tree.into_iter().map(|mut r| {
                r.parent = r.parent.map(|p| p + at);
                r.children.iter_mut().for_each(|c| *c += at);
                r
            }));
        }
        let verdict = verdict(entries.into_iter().map(|((client, server), e)| ((name(client), name(server)), e)));
        Summed { coverage, verdict, hops, slowest: slowest_requests }
    }

    /// A request that no other one caused.
    fn add_entry(&mut self, requests: &[AttributedRequest], root: usize) {
        let r = &requests[root];
        let total = r.attribution.total();
        if r.coverage.is_full() {
            let key: Slowness = (Reverse(total), r.start_monotonic);
            let at = self.slowest.partition_point(|(other, _)| *other <= key);
            if at < SLOWEST {
                let mut tree = Vec::new();
                crate::build::copy_tree(requests, root, None, &mut tree);
                self.slowest.insert(at, (key, tree));
                self.slowest.truncate(SLOWEST);
            }
        }
        if rollup::tree_is_full(requests, root) {
            let ends = (self.names.short(&r.client), self.names.short(&r.server));
            let entries = self.entries.entry(ends).or_default();
            entries.time += i128::from(total.0);
            entries.totals.push(total.0);
            for (place, spent) in rollup::places(requests, root) {
                *entries.places.entry(place).or_default() += i128::from(spent.0);
            }
        }
    }
}

/// Entry requests of two workloads whose whole tree is full.
#[derive(Debug, Default)]
struct Entries {
    time: i128,
    totals: Vec<i64>,
    places: BTreeMap<(PartKind, Workload), i128>,
}

/// The verdict on the entry point whose requests took most time in all.
fn verdict(entries: impl Iterator<Item = ((Workload, Workload), Entries)>) -> Option<Verdict> {
    let entries: BTreeMap<(Workload, Workload), Entries> = entries.collect();
    let (ends, entries) = entries.into_iter().max_by_key(|(_, e)| e.time)?;
    let totals = Sample::new(entries.totals)?;
    Some(verdict_of(ends, totals.len() as u64, entries.time, totals.quantile(500), entries.places))
}

/// Workloads as reports group them, by number.
#[derive(Debug, Default)]
struct Names {
    names: Vec<Workload>,
    numbers: HashMap<Workload, u32>,
    short: HashMap<Workload, u32>,
    of_hop: HashMap<Workload, u32>,
}

impl Names {
    /// Without what differs between its pods.
    fn short(&mut self, workload: &Workload) -> u32 {
        if let Some(known) = self.short.get(workload) {
            return *known;
        }
        let number = self.number(rollup::short(workload));
        self.short.insert(workload.clone(), number);
        number
    }

    /// The same, with its service.
    fn of_hop(&mut self, server: &Workload) -> u32 {
        if let Some(known) = self.of_hop.get(server) {
            return *known;
        }
        let short = Workload { service: server.service.clone(), ..rollup::short(server) };
        let number = self.number(short);
        self.of_hop.insert(server.clone(), number);
        number
    }

    fn number(&mut self, short: Workload) -> u32 {
        let names = &mut self.names;
        *self.numbers.entry(short).or_insert_with_key(|short| {
            names.push(short.clone());
            u32::try_from(names.len() - 1).expect("fewer workloads than there are numbers")
        })
    }
}

/// What requests of one hop were like.
#[derive(Debug, Default)]
pub(crate) struct HopTally {
    protocol: Option<HopProtocol>,
    requests: u64,
    response_codes: BTreeMap<u16, u64>,
    /// Of the full ones, in the order in which they came.
    totals: Vec<i64>,
    ids: Vec<Id>,
    /// Bit by bit which segments each has.
    present: Vec<u16>,
    segments: BTreeMap<Segment, Times>,
    details: BTreeMap<(Segment, Detail), i128>,
}

/// A request's name: mostly two numbers in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
enum Id {
    Numbers(u64, u64),
    Text(Box<str>),
}

impl Id {
    fn of(text: &str) -> Self {
        let numbers = text
            .split_once('-')
            .and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)));
        match numbers {
            Some((a, b)) if Self::Numbers(a, b).text() == text => Self::Numbers(a, b),
            _ => Self::Text(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Numbers(a, b) => format!("{a:x}-{b:x}"),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// Times, mostly below four seconds.
#[derive(Debug, Default)]
struct Times {
    short: Vec<u32>,
    long: HashMap<usize, i64>,
}

impl Times {
    const LONG: u32 = u32::MAX;

    /// Adds a time as the one at `place`; what was left out before is 0.
    fn put(&mut self, place: usize, time: i64) {
        self.short.resize(place, 0);
        match u32::try_from(time).ok().filter(|t| *t != Self::LONG) {
            Some(short) => self.short.push(short),
            None => {
                self.short.push(Self::LONG);
                self.long.insert(place, time);
            }
        }
    }

    fn get(&self, place: usize) -> i64 {
        match self.short.get(place) {
            Some(&Self::LONG) => self.long[&place],
            Some(&short) => i64::from(short),
            None => 0,
        }
    }
}

impl HopTally {
    /// Adds a request.
    pub(crate) fn add(&mut self, r: &AttributedRequest) {
        self.protocol.get_or_insert(r.protocol);
        self.requests += 1;
        *self.response_codes.entry(r.response_code.unwrap_or(0)).or_default() += 1;
        if !r.coverage.is_full() {
            return;
        }
        let place = self.totals.len();
        self.totals.push(r.attribution.total().0);
        self.ids.push(Id::of(&r.id));
        let mut present = 0;
        for (segment, time) in r.attribution.segments().iter() {
            present |= 1 << segment as u16;
            self.segments.entry(segment).or_default().put(place, time.0);
        }
        self.present.push(present);
        for (segment, detail, time) in r.attribution.details() {
            *self.details.entry((*segment, *detail)).or_default() += i128::from(time.0);
        }
    }

    pub(crate) fn summary(self, client: Workload, server: Workload) -> HopSummary {
        HopSummary {
            client,
            server,
            protocol: self.protocol.unwrap_or(HopProtocol::Http),
            requests: self.requests,
            n: self.totals.len() as u64,
            total: Sample::new(self.totals.clone()).map(|s| s.distribution()),
            segments: self.segments(),
            near: self.near(),
            response_codes: self.response_codes,
        }
    }

    fn segments(&self) -> BTreeMap<Segment, SegmentStats> {
        let all: i128 = self.totals.iter().map(|t| i128::from(*t)).sum();
        let of = |(&segment, times): (&Segment, &Times)| {
            // A full request without the segment did not spend any time there.
            let times: Vec<i64> = (0..self.totals.len()).map(|i| times.get(i)).collect();
            let sum: i128 = times.iter().map(|&t| i128::from(t)).sum();
            let sample = Sample::new(times)?;
            let details = self.details.iter().filter(|((s, _), _)| *s == segment);
            let stats = SegmentStats {
                distribution: sample.distribution(),
                mean_ci95: sample.mean_ci95(),
                share: if all == 0 { 0.0 } else { sum as f64 / all as f64 },
                details: details.map(|((_, d), sum)| (*d, mean_of(*sum, self.totals.len()))).collect(),
            };
            Some((segment, stats))
        };
        self.segments.iter().filter_map(of).collect()
    }

    /// The mean splits of the requests whose totals' ranks lie within 5% of the sample (at most 1% above the 99th percentile) around
    /// quantiles.
    fn near(&self) -> Vec<NearQuantile> {
        let n = self.totals.len();
        if n < NEAR_MINIMUM {
            return Vec::new();
        }
        let mut sorted: Vec<usize> = (0..n).collect();
        sorted.sort_unstable_by(|&a, &b| {
            let ids = || self.ids[a].text().cmp(&self.ids[b].text());
            self.totals[a].cmp(&self.totals[b]).then_with(ids).then(a.cmp(&b))
        });
        let enough = |per_mille: &u16| *per_mille <= 900 || n >= 10 * NEAR_MINIMUM;
        [500, 990].into_iter().filter(enough).map(|per_mille| self.near_one(&sorted, per_mille)).collect()
    }

    fn near_one(&self, sorted: &[usize], per_mille: u16) -> NearQuantile {
        let n = sorted.len();
        let rank = (n * usize::from(per_mille)).div_ceil(1000).clamp(1, n) - 1;
        let half = if per_mille > 900 { n / 100 } else { n / 20 }.max(1);
        let chosen = &sorted[rank.saturating_sub(half)..(rank + half + 1).min(n)];
        let mut segments = SegmentMap::empty();
        for (segment, times) in &self.segments {
            if chosen.iter().any(|&i| self.present[i] & 1 << *segment as u16 != 0) {
                let sum = chosen.iter().map(|&i| i128::from(times.get(i))).sum();
                segments.set(*segment, mean_of(sum, chosen.len()));
            }
        }
        let total = chosen.iter().map(|&i| i128::from(self.totals[i])).sum();
        NearQuantile { per_mille, n: chosen.len() as u64, total: mean_of(total, chosen.len()), segments }
    }
}

#[cfg(test)]
mod tests;
