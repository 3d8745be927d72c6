//! Requests that leave a zone (or node) against those that stay in it.

use super::BreakdownHop;
use crate::findings::name;
use crate::rank::mann_whitney;
use crate::report::{Finding, Level};
use crate::request::AttributedRequest;
use crate::stats::Sample;
use meshdiff_model::{DurationNs, Fact, Segment};
use std::collections::BTreeMap;

/// Fewer full requests than this on either side are not compared.
const ENOUGH: usize = 30;
/// What is less likely than this to be chance is worth a word, if it is also large enough. Requests that follow each other are not independent, so
/// the number promises more than it holds: it only has to keep out what is plainly noise.
const CHANCE: f64 = 0.001;
/// A difference of less than this share of what such a request takes matters to nobody.
const SHARE: f64 = 0.05;
/// And neither does one of less than this.
const LEAST: DurationNs = DurationNs::from_micros(20);

/// How the network segment of requests that left a place differs from that of those that did not, over full requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossed {
    /// Requests that stayed.
    pub same: u64,
    /// Their median network time.
    pub same_p50: DurationNs,
    /// Requests that left.
    pub crossing: u64,
    /// Their median network time.
    pub crossing_p50: DurationNs,
    /// Median total of those that left.
    pub crossing_total_p50: DurationNs,
    /// How likely such a difference of ranks is by chance (Mann-Whitney, two-sided), if requests were independent.
    pub p: f64,
}

impl Crossed {
    pub(super) fn of(rows: &BTreeMap<(Option<Fact>, Fact), Vec<&AttributedRequest>>) -> Option<Self> {
        let side = |left: bool| {
            let rows = rows.iter().filter(move |((c, s), _)| is_crossing(c.as_ref(), s) == Some(left));
            let full = rows.flat_map(|(_, members)| members).filter(|r| r.coverage.is_full());
            let network = |r: &AttributedRequest| r.attribution.segments().get(Segment::Network).unwrap_or_default().0;
            full.map(|r| (network(r), r.attribution.total().0)).unzip::<i64, i64, Vec<_>, Vec<_>>()
        };
        let ((same, _), (left, totals)) = (side(false), side(true));
        if same.len() < ENOUGH || left.len() < ENOUGH {
            return None;
        }
        let p = mann_whitney(&same, &left)?;
        let median = |times: Vec<i64>| Sample::new(times).map(|s| s.quantile(500));
        Some(Self {
            same: same.len() as u64,
            crossing: left.len() as u64,
            same_p50: median(same)?,
            crossing_p50: median(left)?,
            crossing_total_p50: median(totals)?,
            p,
        })
    }
}

/// Whether a request from one place to another left the first; `None` if either is unknown, or if only one of them says its region and the
/// rest is equal.
pub(super) fn is_crossing(client: Option<&Fact>, server: &Fact) -> Option<bool> {
    let (client, server) = (client?.as_ref().ok()?, server.as_ref().ok()?);
    let ends_with = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|region| region.ends_with('/'));
    if ends_with(client, server) || ends_with(server, client) {
        return None;
    }
    Some(client != server)
}

/// What is worth saying of a hop by zones.
pub(super) fn finding(hop: &BreakdownHop) -> Option<Finding> {
    let c = hop.crossed?;
    let more = c.crossing_p50 - c.same_p50;
    let matters = more >= LEAST && more.0 as f64 >= SHARE * c.crossing_total_p50.0 as f64;
    if c.p >= CHANCE || !matters {
        return None;
    }
    let subject = format!("{} → {}", name(&hop.client), name(&hop.server));
    let ms = |d: DurationNs| d.0 as f64 / 1e6;
    let numbers = [
        ("sameZoneRequests", c.same as f64),
        ("sameZoneNetworkP50Ns", c.same_p50.0 as f64),
        ("crossZoneRequests", c.crossing as f64),
        ("crossZoneNetworkP50Ns", c.crossing_p50.0 as f64),
        ("crossZoneTotalP50Ns", c.crossing_total_p50.0 as f64),
        ("mannWhitneyP", c.p),
    ];
    Some(Finding {
        code: "MD0301",
        level: Level::Info,
        subject,
        text: format!(
            "the network takes {:.2} ms at the median for the {} requests that go to another zone, and {:.2} ms for the {} that stay",
            ms(c.crossing_p50),
            c.crossing,
            ms(c.same_p50),
            c.same
        ),
        evidence: numbers.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        fix: "Keep calls in the caller's zone as long as it has healthy endpoints: a DestinationRule with localityLbSetting and outlierDetection, or \
              trafficDistribution on the Service."
            .to_owned(),
    })
}
