//! Requests as Prometheus wants them.

use meshdiff_analyzer::{AttributedRequest, CoverageClass};
use meshdiff_model::{DurationNs, Segment, Workload};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, NativeHistogramConfig};
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashSet;
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
    hops: Mutex<HashSet<Hop>>,
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
        let hop = self.hop(request);
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
        self.requests.get_or_create(&OfCount { hop: hop.clone(), coverage, code }).inc();
        // Which request it was is not certain: neither is whose time it is.
        if matches!(request.coverage.class, CoverageClass::Ambiguous | CoverageClass::Unmatched) {
            return;
        }
        for segment in Segment::ALL.into_iter().filter(|s| *s != Segment::Unattributed) {
            if let Some(time) = request.attribution.segments().get(segment) {
                let labels = OfSegment { hop: hop.clone(), segment: segment.as_str() };
                self.segments.get_or_create(&labels).observe(seconds(time));
            }
        }
        // What a server's node alone sees is not what the client waited: hence the label.
        let vantage = request.vantage.as_str();
        self.totals.get_or_create(&OfTotal { hop, vantage }).observe(seconds(request.attribution.total()));
    }

    fn hop(&self, request: &AttributedRequest) -> Hop {
        let (client, server) = (&request.client, &request.server);
        let hop = Hop {
            client_namespace: name(client, |w| w.namespace.as_deref()),
            client_workload: name(client, |w| w.workload.as_deref()),
            server_namespace: name(server, |w| w.namespace.as_deref()),
            server_workload: name(server, |w| w.workload.as_deref()),
            server_service: name(server, |w| w.service.as_deref()),
        };
        let mut hops = self.hops.lock().unwrap_or_else(PoisonError::into_inner);
        if hops.contains(&hop) {
            return hop;
        }
        if hops.len() >= MOST_HOPS {
            self.beyond.inc();
            let other = || OTHER.to_owned();
            return Hop {
                client_namespace: other(),
                client_workload: other(),
                server_namespace: other(),
                server_workload: other(),
                server_service: other(),
            };
        }
        hops.insert(hop.clone());
        hop
    }
}

/// In seconds, the unit of Prometheus.
pub(crate) fn seconds(time: DurationNs) -> f64 {
    let ns = time.0 as f64;
    ns / 1e9
}

fn name(workload: &Workload, of: impl Fn(&Workload) -> Option<&str>) -> String {
    let Some(name) = of(workload) else { return UNKNOWN.to_owned() };
    name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect()
}
