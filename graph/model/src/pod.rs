//! Pods as Kubernetes tells of them, and what a breakdown asks of a pod.

use crate::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A pod, from the Kubernetes API, as a capture keeps it: who it was, where it ran, and when its addresses were its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodRecord {
    /// Its identity: a later pod of the same name has another.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The workload that made it (a Deployment rather than its ReplicaSet, a CronJob rather than its Job); itself, if nothing did.
    pub workload: String,
    /// What kind of thing that is: `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `ReplicaSet` …, or `Pod`.
    pub workload_kind: String,
    /// The one service behind which it is, or by its labels its canonical service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its canonical revision, by its labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The Kubernetes node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where it runs, by its labels or its node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// From when its addresses were its own, and until when.
    #[serde(flatten)]
    pub tenure: Tenure,
}

/// For how long something had an address, as far as anybody tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tenure {
    /// From when, wall clock of its node; `None` where nobody tells.
    #[serde(rename = "fromNs", skip_serializing_if = "Option::is_none")]
    pub from: Option<WallTime>,
    /// `from` is the instant at which it had its network, and not an earlier one.
    pub from_is_exact: bool,
    /// Until when; `None` while it has it.
    #[serde(rename = "untilNs", skip_serializing_if = "Option::is_none")]
    pub until: Option<WallTime>,
}

impl Tenure {
    /// True unless it is known that it had the address only before or after an instant.
    #[must_use]
    pub fn covers(&self, at: WallTime) -> bool {
        self.from.is_none_or(|from| from <= at) && self.until.is_none_or(|until| at <= until)
    }

    /// Which of several holders may have had the address at an instant: one, unless it passed from one to the next around that time.
    ///
    /// An end is learned late (a deletion is seen when the API server tells of it). But two pods never have one address at once: if a later
    /// one's network was there, the earlier one's was gone.
    pub fn at<T>(at: WallTime, holders: impl IntoIterator<Item = T>, tenure: impl Fn(&T) -> Self) -> Vec<T> {
        let mut found: Vec<T> = holders.into_iter().filter(|h| tenure(h).covers(at)).collect();
        let exact = |h: &T| Some(tenure(h)).filter(|t| t.from_is_exact).and_then(|t| t.from);
        if let Some(latest) = found.iter().filter_map(exact).max() {
            found.retain(|h| tenure(h).from >= Some(latest));
        }
        found
    }
}

/// Where something runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// `topology.kubernetes.io/region`, or Envoy's `locality.region`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `topology.kubernetes.io/zone`, or Envoy's `locality.zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Envoy's `locality.sub_zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_zone: Option<String>,
}

impl Locality {
    /// From its parts; `None` if all of them are empty.
    #[must_use]
    pub fn of(region: &str, zone: &str, sub_zone: &str) -> Option<Self> {
        let part = |text: &str| Some(text.trim()).filter(|t| !t.is_empty()).map(str::to_owned);
        let found = Self { region: part(region), zone: part(zone), sub_zone: part(sub_zone) };
        (found != Self::default()).then_some(found)
    }

    /// `region/zone/sub_zone`, as Istio writes it; parts may be empty or missing. A single part is a region, and more than three are not read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or_default();
        Self::of(part(), part(), part())
    }

    /// What a pod's labels say: Istio's own (`GetLocalityLabel` in `pilot/pkg/model`, where dots stand for slashes, which labels cannot have),
    /// else those of Kubernetes, which has pods carry them since 1.35.
    #[must_use]
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let istio = ["topology.istio.io/locality", "istio-locality"].into_iter().find_map(|key| labels.get(key));
        if let Some(text) = istio {
            return Self::parse(&if text.contains('/') { text.clone() } else { text.replace('.', "/") });
        }
        let label = |keys: [&str; 2]| keys.into_iter().find_map(|key| labels.get(key)).map_or("", String::as_str);
        Self::of(
            label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]),
            label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
            label(["topology.istio.io/subzone", ""]),
        )
    }

    /// The zone as people know it: with its region before it, where its name does not begin with that already (`eu-1a`, `us/a`).
    #[must_use]
    pub fn zone_name(&self) -> Option<String> {
        let zone = self.zone.as_deref()?;
        Some(match self.region.as_deref() {
            Some(region) if !zone.starts_with(region) => format!("{region}/{zone}"),
            _ => zone.to_owned(),
        })
    }
}

impl fmt::Display for Locality {
    /// `region/zone/sub_zone`, without empty parts at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.region, &self.zone, &self.sub_zone].map(|p| p.as_deref().unwrap_or_default());
        f.write_str(parts.join("/").trim_end_matches('/'))
    }
}

/// The labels that name a canonical service, in Istio's order of preference.
pub const SERVICE_LABELS: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// The labels that name a canonical revision, in Istio's order of preference.
pub const VERSION_LABELS: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// Why a value is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NotKnown {
    /// Nothing tells which pod it was: it has no sidecar that logged, and the Kubernetes API was not read.
    NoPod,
    /// The pod is known, and neither its sidecar's node metadata nor the Kubernetes API says the value.
    NotSaid,
    /// Several pods had the name or address at that time, and they differ.
    Ambiguous,
    /// No log entry of the client's sidecar tells by which cluster it went.
    NoClientLog,
    /// The client's sidecar sent it by a cluster that stands for no service, such as `PassthroughCluster`.
    NoService,
    /// There is none: the cluster stands for all of the service.
    NoSubset,
}

impl NotKnown {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPod => "no_pod",
            Self::NotSaid => "not_said",
            Self::Ambiguous => "ambiguous",
            Self::NoClientLog => "no_client_log",
            Self::NoService => "no_service",
            Self::NoSubset => "no_subset",
        }
    }
}

/// A value, or why it is not known.
pub type Fact = Result<Arc<str>, NotKnown>;

/// What is known of the pod at an end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its zone, as [`Locality::zone_name`] has it.
    pub zone: Fact,
    /// Its canonical revision.
    pub version: Fact,
    /// The Kubernetes node that it ran on.
    pub node: Fact,
}

impl PodFacts {
    /// Nothing, for one reason.
    #[must_use]
    pub fn unknown(why: NotKnown) -> Self {
        Self { zone: Err(why), version: Err(why), node: Err(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn localities_are_read_as_istio_writes_them() {
        let zone = |text: &str| Locality::parse(text).and_then(|l| l.zone_name());
        assert_eq!(zone("eu/eu-1a/rack-7").as_deref(), Some("eu-1a"));
        assert_eq!(zone("us/a").as_deref(), Some("us/a"));
        assert_eq!(zone("/a").as_deref(), Some("a"));
        // A region alone is no zone, and nothing is nothing.
        assert_eq!((zone("eu"), zone(""), zone("//")), (None, None, None));
        assert_eq!(Locality::parse("eu/eu-1a/rack-7").map(|l| l.to_string()).as_deref(), Some("eu/eu-1a/rack-7"));
        assert_eq!(Locality::parse("/a").map(|l| l.to_string()).as_deref(), Some("/a"));
    }

    #[test]
    fn istios_label_goes_before_kubernetes() {
        let kubernetes = [("topology.kubernetes.io/region", "eu"), ("topology.kubernetes.io/zone", "eu-1b")];
        let zone = |list: &[(&str, &str)]| Locality::of_labels(&labels(list)).and_then(|l| l.zone_name());
        assert_eq!(zone(&kubernetes).as_deref(), Some("eu-1b"));
        let both = [&kubernetes[..], &[("istio-locality", "us.us-2.x")]].concat();
        assert_eq!(zone(&both).as_deref(), Some("us-2"));
        assert_eq!(zone(&[("failure-domain.beta.kubernetes.io/zone", "old")]).as_deref(), Some("old"));
        assert_eq!(zone(&[("app", "reviews")]), None);
    }

    #[test]
    fn a_record_survives_json_and_lacks_what_it_does_not_know() {
        let record = PodRecord {
            uid: "u".into(),
            tenure: Tenure { from: Some(WallTime(7)), from_is_exact: true, until: None },
            ..PodRecord::default()
        };
        let json = serde_json::to_string(&record).expect("JSON");
        assert!(json.contains("\"fromNs\":7") && !json.contains("untilNs") && !json.contains("zone"), "{json}");
        assert_eq!(serde_json::from_str::<PodRecord>(&json).expect("a record"), record);
    }

    #[test]
    fn of_two_holders_the_later_one_counts_from_when_its_network_was_there() {
        let tenure = |from, from_is_exact, until: Option<i64>| Tenure {
            from: Some(WallTime(from)),
            from_is_exact,
            until: until.map(WallTime),
        };
        let at = |second, list: [Tenure; 2]| Tenure::at(WallTime(second), [0, 1], |i| list[*i]);
        let apart = [tenure(10, false, Some(20)), tenure(30, false, None)];
        assert_eq!(at(15, apart), [0]);
        assert_eq!(at(25, apart), Vec::<usize>::new());
        assert_eq!(at(35, apart), [1]);
        let overlap = [tenure(10, false, Some(50)), tenure(30, false, None)];
        assert_eq!(at(40, overlap), [0, 1]);
        let exact = [tenure(10, false, Some(50)), tenure(30, true, None)];
        assert_eq!((at(40, exact), at(29, exact)), (vec![1], vec![0]));
    }

    proptest! {
        #[test]
        fn any_locality_is_survived_and_comes_back(text in "[a-c/.]{0,9}") {
            if let Some(locality) = Locality::parse(&text) {
                let again = Locality::parse(&locality.to_string());
                prop_assert_eq!(again, Some(locality));
            }
        }
    }
}
