//! What a recording keeps of what Kubernetes says of its pods.

use super::clock;
use super::store::PodSource;
use meshdiff_capture::KubernetesInfo;
use meshdiff_discovery::kube::{Informers, KubeError, Scope};
use meshdiff_model::WallTime;
use std::sync::Arc;
use std::time::Duration;

/// Informers of a node's pods.
///
/// # Errors
/// If there is no access to an API server at all. To be called in a runtime.
pub(crate) async fn informers(node: &str) -> Result<Arc<Informers>, KubeError> {
    Informers::start(Scope::Node(node.to_owned())).await.map(Arc::new)
}

/// What informers know of pods that had their addresses at some time since an instant.
pub(crate) fn source(informers: Arc<Informers>, since: impl Fn() -> WallTime + Send + 'static) -> PodSource {
    Box::new(move || {
        let mut trouble: std::collections::BTreeMap<String, String> =
            informers.trouble().into_iter().map(|(resource, why)| (resource.to_owned(), why)).collect();
        if !informers.pods_are_known() {
            let waiting = || "the API server has not told of them yet".to_owned();
            trouble.entry("pods".to_owned()).or_insert_with(waiting);
        }
        KubernetesInfo { pods: informers.read(|cluster| cluster.records(since())), trouble }
    })
}

/// So much before now, by the wall clock.
pub(crate) fn ago(span: Duration) -> WallTime {
    let span = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    WallTime(clock::sample().wall.0.saturating_sub(span))
}
