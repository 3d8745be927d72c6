//! Requests as Prometheus wants them.

use meshdiff_analyzer::{AttributedRequest, CoverageClass};
use meshdiff_model::{DurationNs, Segment};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, NativeHistogramConfig};
use prometheus_client::registry::{Registry, Unit};
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// Pairs of workloads that get a name of their own. Each has some twenty series, most of which are histograms.
const MOST_HOPS: usize = 500;
/// The name of everything beyond that.
const OTHER: &str = "other";
/// The name of a workload that nobody knows.
const UNKNOWN: &str = "unknown";
/// Names are cut to this many characters: they come from outside.
const LONGEST_NAME: usize = 128;
/// Bounds for scrapers that take no native histograms, in seconds: from what a loopback takes to what a user gives up after.
const BOUNDS: [f64; 14] =
    [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 500e-3, 2.5, 10.0];
/// Buckets of the native histograms grow by no more than this factor.
const GROWTH: f64 = 1.1;
/// Buckets that one native histogram may have before its resolution is halved: at the growth above enough for six orders of magnitude.
const MOST_BUCKETS: usize = 160;

/// From whom to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hop {
    client_namespace: String,
    client_workload: String,
    server_namespace: String,
    server_workload: String,
    server_service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSegment {
    #[prometheus(flatten)]
    hop: Hop,
    segment: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTotal {
    #[prometheus(flatten)]
    hop: Hop,
    vantage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCount {
    #[prometheus(flatten)]
    hop: Hop,
    coverage: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug)]
struct Make;

impl MetricConstructor<Histogram> for Make {
    fn new_metric(&self) -> Histogram {
        Histogram::new_classic_and_native(
            BOUNDS,
            NativeHistogramConfig::new(GROWTH).max_buckets(MOST_BUCKETS).zero_threshold(1e-9),
        )
    }
}

/// The histograms of all hops of this node.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    segments: Family<OfSegment, Histogram, Make>,
    totals: Family<OfTotal, Histogram, Make>,
    requests: Family<OfCount, Counter>,
    beyond: Counter,
    hops: Mutex<Hops>,
}

/// The hops that have series of their own, by what names them: finding a series by its labels takes longer than adding to it.
#[derive(Debug, Default)]
struct Hops {
    known: FxHashMap<u64, Vec<Known>>,
    count: usize,
}

/// What names a hop, as it came: namespaces, workloads and the service.
type Names<'a> = [Option<&'a str>; 5];

/// A hop, and its series as far as they were needed.
#[derive(Debug)]
struct Known {
    names: [Option<Box<str>>; 5],
    series: Series,
}

#[derive(Debug)]
struct Series {
    hop: Hop,
    segments: [Option<Histogram>; Segment::ALL.len()],
    totals: Vec<(&'static str, Histogram)>,
    requests: Vec<(&'static str, &'static str, Counter)>,
}

impl Series {
    fn of(hop: Hop) -> Self {
        Self { hop, segments: [const { None }; Segment::ALL.len()], totals: Vec::new(), requests: Vec::new() }
    }
}

impl RequestMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            segments: Family::new_with_constructor(Make),
            totals: Family::new_with_constructor(Make),
            requests: Family::default(),
            beyond: Counter::default(),
            hops: Mutex::default(),
        };
        registry.register_with_unit(
            "meshdiff_request_segment_duration",
            "Time of a request in one segment of its way, as measured on this node; what was not measured is absent",
            Unit::Seconds,
            metrics.segments.clone(),
        );
        registry.register_with_unit(
            "meshdiff_request_duration",
            "Whole time of a request, by where it was measured. A request between two nodes is in both: sum over one vantage only",
            Unit::Seconds,
            metrics.totals.clone(),
        );
        registry.register(
            "meshdiff_requests",
            "Requests that this node saw end, by how much of them was seen here",
            metrics.requests.clone(),
        );
        registry.register(
            "meshdiff_requests_of_other_hops",
            "Requests counted under the name \"other\", because there are more hops than series are made for",
            metrics.beyond.clone(),
        );
        metrics
    }

    /// Counts a request.
    pub(crate) fn observe(&self, request: &AttributedRequest) {
        let coverage = match request.coverage.class {
            CoverageClass::Full => "full",
            CoverageClass::PartialClient => "client",
            CoverageClass::PartialServer => "server",
            CoverageClass::PartialAls => "als",
            CoverageClass::Ambiguous => "ambiguous",
            CoverageClass::Unmatched => "unmatched",
        };
        let code = match request.response_code {
            Some(100..=199) => "1xx",
            Some(200..=299) => "2xx",
            Some(300..=399) => "3xx",
            Some(400..=499) => "4xx",
            Some(500..=599) => "5xx",
            _ => "none",
        };
        self.with_series(request, |series| self.add(series, request, coverage, code));
    }

    fn add(&self, series: &mut Series, request: &AttributedRequest, coverage: &'static str, code: &'static str) {
        let Series { hop, segments, totals, requests } = series;
        let count = match requests.iter().position(|(c, k, _)| (*c, *k) == (coverage, code)) {
            Some(at) => &requests[at].2,
            None => {
                let labels = OfCount { hop: hop.clone(), coverage, code };
                requests.push((coverage, code, self.requests.get_or_create_owned(&labels)));
                &requests[requests.len() - 1].2
            }
        };
        count.inc();
        // Which request it was is not certain: neither is whose time it is.
        if matches!(request.coverage.class, CoverageClass::Ambiguous | CoverageClass::Unmatched) {
            return;
        }
        for (at, segment) in Segment::ALL.into_iter().enumerate().filter(|(_, s)| *s != Segment::Unattributed) {
            if let Some(time) = request.attribution.segments().get(segment) {
                let histogram = segments[at].get_or_insert_with(|| {
                    self.segments.get_or_create_owned(&OfSegment { hop: hop.clone(), segment: segment.as_str() })
                });
                histogram.observe(seconds(time));
            }
        }
        // What a server's node alone sees is not what the client waited: hence the label.
        let vantage = request.vantage.as_str();
        let total = match totals.iter().position(|(v, _)| *v == vantage) {
            Some(at) => &totals[at].1,
            None => {
                let labels = OfTotal { hop: hop.clone(), vantage };
                totals.push((vantage, self.totals.get_or_create_owned(&labels)));
                &totals[totals.len() - 1].1
            }
        };
        total.observe(seconds(request.attribution.total()));
    }

    /// Does something with the series of a request's hop.
    fn with_series(&self, request: &AttributedRequest, work: impl FnOnce(&mut Series)) {
        let (client, server) = (&request.client, &request.server);
        let names: Names<'_> = [
            client.namespace.as_deref(),
            client.workload.as_deref(),
            server.namespace.as_deref(),
            server.workload.as_deref(),
            server.service.as_deref(),
        ];
        let mut hasher = FxHasher::default();
        names.hash(&mut hasher);
        let mut hops = self.hops.lock().unwrap_or_else(PoisonError::into_inner);
        let Hops { known, count } = &mut *hops;
        let alike = known.entry(hasher.finish()).or_default();
        let is = |known: &Known| known.names.iter().map(Option::as_deref).eq(names);
        let at = match alike.iter().position(is) {
            Some(at) => at,
            None if *count < MOST_HOPS => {
                *count += 1;
                let [client_namespace, client_workload, server_namespace, server_workload, server_service] =
                    names.map(name);
                let hop = Hop { client_namespace, client_workload, server_namespace, server_workload, server_service };
                alike.push(Known { names: names.map(|n| n.map(Box::from)), series: Series::of(hop) });
                alike.len() - 1
            }
            None => {
                if alike.is_empty() {
                    known.remove(&hasher.finish());
                }
                self.beyond.inc();
                let other = || OTHER.to_owned();
                let hop = Hop {
                    client_namespace: other(),
                    client_workload: other(),
                    server_namespace: other(),
                    server_workload: other(),
                    server_service: other(),
                };
                return work(&mut Series::of(hop));
            }
        };
        work(&mut alike[at].series);
    }
}

/// In seconds, the unit of Prometheus.
pub(crate) fn seconds(time: DurationNs) -> f64 {
    let ns = time.0 as f64;
    ns / 1e9
}

fn name(name: Option<&str>) -> String {
    let Some(name) = name else { return UNKNOWN.to_owned() };
    name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect()
}
