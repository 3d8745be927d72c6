//! What table, Markdown and HTML say of breakdowns.

use crate::safe::{shorten, visible};
use crate::text;
use meshdiff_analyzer::{Breakdown, BreakdownRow, Crossed, Dimension};
use meshdiff_model::{Fact, NotKnown};

/// Longest value that is shown.
const MAX_VALUE: usize = 40;

/// As a heading: `By zone`.
pub(crate) const fn title(by: Dimension) -> &'static str {
    match by {
        Dimension::Zone => "By zone",
        Dimension::Subset => "By subset",
        Dimension::Version => "By version",
        Dimension::Node => "By node",
    }
}

/// A value; what is not known says so.
pub(crate) fn value(fact: &Fact) -> String {
    match fact {
        Ok(value) => shorten(&visible(value), MAX_VALUE),
        Err(NotKnown::NoSubset) => "no subset".to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

/// Both ends' values: `eu-1a → eu-1b`.
pub(crate) fn values(row: &BreakdownRow) -> String {
    let server = value(&row.server);
    row.client.as_ref().map_or_else(|| server.clone(), |client| format!("{} → {server}", value(client)))
}

/// A word for requests that leave a place.
pub(crate) const fn crossing(by: Dimension, row: &BreakdownRow) -> Option<&'static str> {
    match (row.crossing, by) {
        (Some(true), Dimension::Zone) => Some("other zone"),
        (Some(true), _) => Some("other node"),
        _ => None,
    }
}

/// Why values are unknown, in sentences.
pub(crate) fn unknown(breakdown: &Breakdown) -> Vec<String> {
    let sentence = |(why, n): (&NotKnown, &u64)| {
        let ends = if breakdown.by == Dimension::Subset {
            text::counted(*n, "request", "requests")
        } else {
            text::counted(*n, "end of a request", "ends of requests")
        };
        format!("Unknown for {ends}: {}.", reason(*why, breakdown.by))
    };
    breakdown.unknown.iter().map(sentence).collect()
}

/// Why a value is not known, for people.
pub(crate) const fn reason(why: NotKnown, by: Dimension) -> &'static str {
    match (why, by) {
        (NotKnown::NoPod, _) => {
            "nothing tells which pod it was: no sidecar of its own logged, and the Kubernetes API does not name it"
        }
        (NotKnown::NotSaid, Dimension::Zone) => {
            "neither the sidecar (its locality, its pod's labels) nor the labels of the Kubernetes node say the zone"
        }
        (NotKnown::NotSaid, Dimension::Version) => {
            "the pod has no label service.istio.io/canonical-revision, app.kubernetes.io/version or version"
        }
        (NotKnown::NotSaid, _) => "neither the sidecar's node metadata nor the Kubernetes API says it",
        (NotKnown::Ambiguous, _) => "several pods had its name or address around that time, and they differ",
        (NotKnown::NoClientLog, _) => "no access log entry of the client's sidecar says by which cluster it went",
        (NotKnown::NoService, _) => "it went by a cluster that stands for no service, such as PassthroughCluster",
        (NotKnown::NoSubset, _) => "there is none: the cluster stands for all of the service",
    }
}

/// How requests that left a place compare with those that stayed.
pub(crate) fn crossed(by: Dimension, c: &Crossed) -> String {
    format!(
        "Network at the median: {} for {} that stay in their {}, {} for {} that leave it.",
        text::duration(c.same_p50),
        text::counted(c.same, "request", "requests"),
        by.as_str(),
        text::duration(c.crossing_p50),
        text::counted(c.crossing, "request", "requests"),
    )
}
