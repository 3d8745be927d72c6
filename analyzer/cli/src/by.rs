//! `--by`: what hops are told apart by.

use crate::analysis::{Analysis, ByProxies};
use clap::ValueEnum;
use meshdiff_analyzer::{Breakdown, Dimension, Facts, break_down};
use meshdiff_discovery::service_of_cluster;
use meshdiff_model::{Fact, NotKnown, PodFacts, WallTime, Workload};

/// What hops are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// The zones of client and server
    Zone,
    /// The DestinationRule's subset that the route chose
    Subset,
    /// The canonical revisions of client and server
    Version,
    /// The Kubernetes nodes of client and server
    Node,
    /// All of these
    All,
}

impl Facts for ByProxies {
    fn of_pod(&self, end: &Workload, at: WallTime) -> PodFacts {
        self.owners().facts(end, at)
    }

    fn subset_of_cluster(&self, cluster: &str) -> Fact {
        let name = service_of_cluster(cluster).filter(|name| name.host.is_some()).ok_or(NotKnown::NoService)?;
        name.subset.map(Into::into).ok_or(NotKnown::NoSubset)
    }
}

/// The breakdowns that were asked for.
pub(crate) fn breakdowns(analysis: &Analysis, by: &[By]) -> Vec<Breakdown> {
    let dimensions: Vec<Dimension> = by
        .iter()
        .flat_map(|by| match by {
            By::Zone => vec![Dimension::Zone],
            By::Subset => vec![Dimension::Subset],
            By::Version => vec![Dimension::Version],
            By::Node => vec![Dimension::Node],
            By::All => Dimension::ALL.to_vec(),
        })
        .collect();
    break_down(&analysis.requests, &dimensions, &analysis.directory)
}

/// What the Kubernetes API did not tell, for reports that are about it: the reason why values are unknown.
pub(crate) fn notes(analysis: &Analysis, by: &[By]) -> Vec<String> {
    let trouble = analysis.data.meta.kubernetes.iter().flat_map(|k| &k.trouble);
    let trouble = trouble.filter(|_| !by.is_empty());
    trouble.map(|(resource, why)| format!("of {resource} the Kubernetes API told nothing: {why}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_told_from_the_clusters_name() {
        let facts = ByProxies::of(&[]);
        let subset = |name: &str| facts.subset_of_cluster(name);
        assert_eq!(subset("outbound|9080|v1|reviews.default.svc.cluster.local").as_deref(), Ok("v1"));
        assert_eq!(subset("outbound|9080||reviews.default.svc.cluster.local"), Err(NotKnown::NoSubset));
        assert_eq!(subset("PassthroughCluster"), Err(NotKnown::NoService));
        assert_eq!(subset("inbound|9080||"), Err(NotKnown::NoService));
    }
}
