//! A hop's requests told apart by where their ends ran, which version they were, and by which subset they were sent.
//!
//! A value that nothing tells is unknown, with the reason, and has a row of its own: it is never taken from a neighbour.

mod crossing;

pub use crossing::Crossed;

use crate::build::{NEAR_MINIMUM, grouped, summary};
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
    /// In the order of the report's hops.
    pub hops: Vec<BreakdownHop>,
    /// Ends of requests whose value is unknown, by reason.
    pub unknown: BTreeMap<NotKnown, u64>,
}

/// One hop by one dimension.
#[derive(Clone, Debug)]
pub struct BreakdownHop {
    /// Who called (pod and address left out).
    pub client: Workload,
    /// Who was called (pod and address left out).
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
    let new = |by: Dimension| Breakdown { by, hops: Vec::new(), unknown: BTreeMap::new() };
    let mut breakdowns: Vec<Breakdown> = by.into_iter().map(new).collect();
    for (hop, members) in grouped(requests) {
        let known: Vec<Values> = members.iter().map(|r| Values::of(r, facts)).collect();
        for breakdown in &mut breakdowns {
            let by = breakdown.by;
            let mut rows: BTreeMap<(Option<Fact>, Fact), Vec<&AttributedRequest>> = BTreeMap::new();
            for (request, values) in members.iter().zip(&known) {
                let key = values.by(by);
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
                rows: rows.into_iter().map(|(key, members)| row(&hop, by, key, &members)).collect(),
                crossed,
            });
        }
    }
    breakdowns
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

/// What is known of both ends of one request.
struct Values {
    client: PodFacts,
    server: PodFacts,
    subset: Fact,
}

impl Values {
    fn of(request: &AttributedRequest, facts: &dyn Facts) -> Self {
        Self {
            client: facts.of_pod(&request.client, request.start),
            server: facts.of_pod(&request.server, request.start),
            subset: match &request.upstream_cluster {
                Some(cluster) => facts.subset_of_cluster(cluster),
                None => Err(NotKnown::NoClientLog),
            },
        }
    }

    fn by(&self, by: Dimension) -> (Option<Fact>, Fact) {
        let both = |of: fn(&PodFacts) -> &Fact| (Some(of(&self.client).clone()), of(&self.server).clone());
        match by {
            Dimension::Zone => both(|f| &f.zone),
            Dimension::Version => both(|f| &f.version),
            Dimension::Node => both(|f| &f.node),
            Dimension::Subset => (None, self.subset.clone()),
        }
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
