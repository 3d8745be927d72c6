//! A hop's requests told apart by where their ends ran, which version they were, and by which subset they were sent.
//!
//! By zone and node the hops are those of the report, from workload to workload: else the rows would compare workloads and not places. By subset
//! and version they are from a workload to a service, whose versions usually are workloads of their own.
//!
//! A value that nothing tells is unknown, with the reason, and has a row of its own: it is never taken from a neighbour.

mod crossing;

pub use crossing::Crossed;

use crate::build::{NEAR_MINIMUM, grouped, slowest_first, summary};
use crate::report::{Finding, HopSummary, Report};
use crate::request::AttributedRequest;
use meshdiff_model::{Fact, HopProtocol, NotKnown, PodFacts, WallTime, Workload};
use std::collections::BTreeMap;

/// By what requests are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The zones of both ends.
    Zone,
    /// The DestinationRule's subset by which the client's sidecar sent it.
    Subset,
    /// The canonical revisions of both ends.
    Version,
    /// The Kubernetes nodes of both ends.
    Node,
}

impl Dimension {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Zone, Self::Subset, Self::Version, Self::Node];

    /// The name on the command line and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::Subset => "subset",
            Self::Version => "version",
            Self::Node => "node",
        }
    }

    /// True if it is a place, which a request can leave.
    const fn is_place(self) -> bool {
        matches!(self, Self::Zone | Self::Node)
    }
}

/// Says what is known of the ends of requests.
pub trait Facts {
    /// Of the pod at an end of a request that began at an instant.
    fn of_pod(&self, end: &Workload, at: WallTime) -> PodFacts;
    /// The subset that the name of an Envoy cluster speaks of.
    fn subset_of_cluster(&self, cluster: &str) -> Fact;
}

/// All hops by one dimension.
#[derive(Clone, Debug)]
pub struct Breakdown {
    /// By what.
    pub by: Dimension,
    /// Slowest mean total first, as the report's hops are.
    pub hops: Vec<BreakdownHop>,
    /// Ends of requests whose value is unknown, by reason.
    pub unknown: BTreeMap<NotKnown, u64>,
}

/// One hop by one dimension.
#[derive(Clone, Debug)]
pub struct BreakdownHop {
    /// Who called (pod and address left out).
    pub client: Workload,
    /// Who was called (pod and address left out); by subset and version a service, without workload where several answered.
    pub server: Workload,
    /// Protocol of the client's stream.
    pub protocol: HopProtocol,
    /// One for each combination of values that occurred, in order of the values, unknown ones last.
    pub rows: Vec<BreakdownRow>,
    /// How requests that left a place differ from those that did not, where there are enough of both.
    pub crossed: Option<Crossed>,
}

/// A hop's requests with one combination of values.
#[derive(Clone, Debug)]
pub struct BreakdownRow {
    /// The client's value; `None` for what only servers have (subsets).
    pub client: Option<Fact>,
    /// The server's value.
    pub server: Fact,
    /// Whether these requests left a zone or node; `None` where that cannot be told, and for what is no place.
    pub crossing: Option<bool>,
    /// The same numbers as of a whole hop.
    pub summary: HopSummary,
    /// Why requests are not full, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Fewer requests are full than quantiles can be told of.
    pub few: bool,
}

/// Breaks requests down, those that [`select`](crate::select) chose. One breakdown for each dimension, each once, in order of [`Dimension`].
#[must_use]
pub fn break_down(requests: &[AttributedRequest], by: &[Dimension], facts: &dyn Facts) -> Vec<Breakdown> {
    let mut by = by.to_vec();
    by.sort_unstable();
    by.dedup();
    if by.is_empty() {
        return Vec::new();
    }
    let hops = grouped(requests);
    let services = if by.iter().all(|by| by.is_place()) { Vec::new() } else { by_service(&hops) };
    by.into_iter().map(|by| by_one(if by.is_place() { &hops } else { &services }, by, facts)).collect()
}

/// Requests of one hop, with what they are like together.
type Hop<'a> = (HopSummary, Vec<&'a AttributedRequest>);

fn by_one(hops: &[Hop<'_>], by: Dimension, facts: &dyn Facts) -> Breakdown {
    let mut breakdown = Breakdown { by, hops: Vec::new(), unknown: BTreeMap::new() };
    for (hop, members) in hops {
        let mut rows: BTreeMap<(Option<Fact>, Fact), Vec<&AttributedRequest>> = BTreeMap::new();
        for request in members {
            let key = values(request, by, facts);
            for why in [key.0.as_ref(), Some(&key.1)].into_iter().flatten().filter_map(|fact| fact.as_ref().err()) {
                if *why != NotKnown::NoSubset {
                    *breakdown.unknown.entry(*why).or_default() += 1;
                }
            }
            rows.entry(key).or_default().push(request);
        }
        let crossed = by.is_place().then(|| Crossed::of(&rows)).flatten();
        breakdown.hops.push(BreakdownHop {
            client: hop.client.clone(),
            server: hop.server.clone(),
            protocol: hop.protocol,
            rows: rows.into_iter().map(|(key, members)| row(hop, by, key, &members)).collect(),
            crossed,
        });
    }
    breakdown
}

/// The hops to the workloads of one service as one: its versions are workloads of their own, and are what is to be compared.
fn by_service<'a>(hops: &[Hop<'a>]) -> Vec<Hop<'a>> {
    let mut services: BTreeMap<_, Vec<&Hop<'a>>> = BTreeMap::new();
    for (i, hop) in hops.iter().enumerate() {
        let HopSummary { client, server, protocol, .. } = &hop.0;
        // What no service names stays alone.
        let alone = server.service.is_none().then_some(i);
        services.entry((client, &server.namespace, &server.service, protocol.as_str(), alone)).or_default().push(hop);
    }
    let together = |of: Vec<&Hop<'a>>| match of[..] {
        [only] => only.clone(),
        _ => {
            let members: Vec<&AttributedRequest> = of.iter().flat_map(|(_, members)| members).copied().collect();
            let first = &of[0].0;
            let server = Workload { workload: None, ..first.server.clone() };
            (summary(first.client.clone(), server, &members), members)
        }
    };
    let mut merged: Vec<Hop<'a>> = services.into_values().map(together).collect();
    merged.sort_by(|(a, _), (b, _)| slowest_first(a, b));
    merged
}

fn row(hop: &HopSummary, by: Dimension, key: (Option<Fact>, Fact), members: &[&AttributedRequest]) -> BreakdownRow {
    let summary = summary(hop.client.clone(), hop.server.clone(), members);
    let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
    for request in members.iter().filter(|r| !r.coverage.is_full()) {
        *reasons.entry(request.coverage.reason.unwrap_or("unknown")).or_default() += 1;
    }
    let (client, server) = key;
    BreakdownRow {
        crossing: by.is_place().then(|| crossing::is_crossing(client.as_ref(), &server)).flatten(),
        client,
        server,
        few: summary.n < NEAR_MINIMUM as u64,
        summary,
        reasons,
    }
}

/// The values of the client and of the server of one request.
fn values(request: &AttributedRequest, by: Dimension, facts: &dyn Facts) -> (Option<Fact>, Fact) {
    let of = |end: &Workload| {
        let PodFacts { zone, version, node } = facts.of_pod(end, request.start);
        match by {
            Dimension::Zone => zone,
            Dimension::Node => node,
            Dimension::Version | Dimension::Subset => version,
        }
    };
    let subset = || match &request.upstream_cluster {
        Some(cluster) => facts.subset_of_cluster(cluster),
        None => Err(NotKnown::NoClientLog),
    };
    match by {
        Dimension::Subset => (None, subset()),
        Dimension::Zone | Dimension::Version | Dimension::Node => (Some(of(&request.client)), of(&request.server)),
    }
}

impl Report {
    /// The same with breakdowns, and with what they let conclude.
    #[must_use]
    pub fn with_breakdowns(mut self, breakdowns: Vec<Breakdown>) -> Self {
        let zones = breakdowns.iter().filter(|b| b.by == Dimension::Zone);
        self.findings.extend(zones.flat_map(|b| &b.hops).filter_map(crossing::finding));
        self.findings.sort_by(Finding::order);
        self.breakdowns = breakdowns;
        self
    }
}

#[cfg(test)]
mod tests;
