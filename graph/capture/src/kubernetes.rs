//! What the Kubernetes API said of a recording's pods.

use meshdiff_model::{DurationNs, PodRecord, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the Kubernetes API said: of the pods of the recording's node, or of those that its recorder could see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubernetesInfo {
    /// Pods that had addresses of their own during the recording, in order of namespace, name and identity.
    pub pods: Vec<PodRecord>,
    /// What the API server did not let be read, and its reason, by resource.
    pub trouble: BTreeMap<String, String>,
}

impl KubernetesInfo {
    /// Forgets pods that ended before an instant.
    pub fn since(&mut self, start: WallTime) {
        self.pods.retain(|p| p.tenure.until.is_none_or(|until| start <= until));
    }

    /// What was said later, or of another node. Of a pod of which both speak, the later word counts, and the first that told its end.
    pub fn absorb(&mut self, later: &Self) {
        let mut by_uid: BTreeMap<String, PodRecord> =
            std::mem::take(&mut self.pods).into_iter().map(|p| (p.uid.clone(), p)).collect();
        for pod in &later.pods {
            let mut pod = pod.clone();
            if let Some(known) = by_uid.get(&pod.uid) {
                let exact = |p: &PodRecord| p.tenure.from_is_exact;
                if exact(known) && !exact(&pod) {
                    (pod.tenure.from, pod.tenure.from_is_exact) = (known.tenure.from, true);
                }
                pod.tenure.until = known.tenure.until.or(pod.tenure.until);
                pod.locality = pod.locality.or_else(|| known.locality.clone());
            }
            by_uid.insert(pod.uid.clone(), pod);
        }
        self.pods = by_uid.into_values().collect();
        self.pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        self.trouble.extend(later.trouble.iter().map(|(k, v)| (k.clone(), v.clone())));
    }

    /// The same with times by a clock that its node's is so much ahead of.
    #[must_use]
    pub fn by_clock(mut self, ahead: DurationNs) -> Self {
        let moved = |at: WallTime| WallTime(at.0.saturating_sub(ahead.0));
        for pod in &mut self.pods {
            pod.tenure.from = pod.tenure.from.map(moved);
            pod.tenure.until = pod.tenure.until.map(moved);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Meta;
    use meshdiff_model::{Locality, Tenure};

    fn pod(uid: &str, from: i64, until: Option<i64>) -> PodRecord {
        PodRecord {
            uid: uid.into(),
            name: uid.into(),
            tenure: Tenure { from: Some(WallTime(from)), from_is_exact: false, until: until.map(WallTime) },
            ..PodRecord::default()
        }
    }

    fn info(pods: &[PodRecord]) -> KubernetesInfo {
        KubernetesInfo { pods: pods.to_vec(), trouble: BTreeMap::new() }
    }

    #[test]
    fn words_of_several_segments_are_put_together() {
        let mut exact = pod("a", 10, None);
        exact.tenure.from_is_exact = true;
        exact.locality = Locality::of("", "z", "");
        let mut known = info(&[pod("b", 5, Some(20)), exact]);
        known.absorb(&info(&[pod("a", 9, Some(40)), pod("b", 5, Some(30)), pod("c", 1, None)]));
        let told: Vec<_> = known.pods.iter().map(|p| (p.uid.as_str(), p.tenure.from, p.tenure.until)).collect();
        let at = |n| Some(WallTime(n));
        assert_eq!(told, [("a", at(10), at(40)), ("b", at(5), at(20)), ("c", at(1), None)]);
        assert!(known.pods[0].locality.is_some() && known.pods[0].tenure.from_is_exact);
        known.since(WallTime(30));
        assert_eq!(known.pods.len(), 2);
        let moved = known.by_clock(DurationNs(-5));
        assert_eq!((moved.pods[0].tenure.from, moved.pods[0].tenure.until), (at(15), at(45)));
    }

    #[test]
    fn a_meta_without_it_is_one_of_which_the_api_was_not_asked() {
        let mut meta = Meta { kubernetes: Some(info(&[pod("a", 1, None)])), ..Meta::default() };
        let read =
            |meta: &Meta| serde_json::from_str::<Meta>(&serde_json::to_string(meta).expect("JSON")).expect("meta");
        assert_eq!(read(&meta).kubernetes, meta.kubernetes);
        meta.kubernetes = None;
        assert!(!serde_json::to_string(&meta).expect("JSON").contains("kubernetes"));
        assert_eq!(read(&meta).kubernetes, None);
    }
}
