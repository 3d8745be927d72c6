//! Which pods were asked for, as one says it to kubectl: `deploy/NAME`, `svc/NAME`, `pod/NAME` or a label selector.

use super::connect::Cluster;
use super::error::ClusterError;
use crate::exit::Failure;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::ListParams;
use kube::core::Selector;
use meshdiff_model::Workload;
use std::collections::BTreeSet;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// `-l`.
    Labels(String),
    /// `deploy/NAME` and the like.
    Named(Kind, String),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Labels(selector) => write!(f, "-l {selector}"),
            Self::Named(kind, name) => write!(f, "{}/{name}", text_of(*kind)),
        }
    }
}

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Service,
    Pod,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "deploy" | "deployment" | "deployments" | "deployment.apps" | "deployments.apps" => Self::Deployment,
            "sts" | "statefulset" | "statefulsets" | "statefulset.apps" | "statefulsets.apps" => Self::StatefulSet,
            "ds" | "daemonset" | "daemonsets" | "daemonset.apps" | "daemonsets.apps" => Self::DaemonSet,
            "svc" | "service" | "services" => Self::Service,
            "po" | "pod" | "pods" => Self::Pod,
            _ => return None,
        })
    }
}

impl Scope {
    /// From the command line.
    pub(super) fn parse(target: Option<&str>, selector: Option<&str>) -> Result<Option<Self>, Failure> {
        if let Some(selector) = selector {
            return Ok(Some(Self::Labels(selector.to_owned())));
        }
        let Some(target) = target else { return Ok(None) };
        let parts = target.split_once('/').and_then(|(kind, name)| Some((Kind::of(kind)?, name)));
        match parts {
            Some((kind, name)) if is_name(name) => Ok(Some(Self::Named(kind, name.to_owned()))),
            _ => Err(Failure::Usage(format!(
                "{target:?} names nothing: say deploy/NAME, sts/NAME, ds/NAME, svc/NAME or pod/NAME, or choose pods with -l"
            ))),
        }
    }
}

/// True if Kubernetes lets something be called that (RFC 1123, with dots).
pub(crate) fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !name.is_empty()
        && name.len() <= 253
        && name.chars().all(good)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
}

/// The ends of hops that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    namespace: String,
    /// The workload as proxies call it, also of pods that are gone by now.
    workload: Option<String>,
    service: Option<String>,
    pods: BTreeSet<String>,
    addresses: BTreeSet<String>,
    /// As it was asked for.
    text: String,
}

impl Filter {
    /// True if this end is among what was asked for.
    pub(crate) fn holds(&self, end: &Workload) -> bool {
        let host = |address: &String| {
            address.parse().map_or_else(|_| address.clone(), |a: std::net::SocketAddr| a.ip().to_string())
        };
        if end.address.as_ref().is_some_and(|a| self.addresses.contains(&host(a))) {
            return true;
        }
        end.namespace.as_deref() == Some(&self.namespace)
            && (end.pod.as_ref().is_some_and(|p| self.pods.contains(p))
                || (self.workload.is_some() && end.workload == self.workload)
                || (self.service.is_some() && end.service == self.service))
    }

    /// True if a pod of the namespace is among what was asked for.
    pub(super) fn has_pod(&self, name: &str) -> bool {
        self.pods.contains(name)
    }

    /// As it was asked for.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Finds the pods that were asked for.
pub(super) async fn resolve(cluster: &Cluster, namespace: &str, scope: &Scope) -> Result<Filter, ClusterError> {
    let mut filter = Filter { namespace: namespace.to_owned(), text: scope.to_string(), ..Filter::default() };
    let selector = match scope {
        Scope::Labels(selector) => selector.clone(),
        Scope::Named(kind, name) => named(cluster, namespace, *kind, name, &mut filter).await?,
    };
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let params = match scope {
        Scope::Named(Kind::Pod, name) => ListParams::default().fields(&format!("metadata.name={name}")),
        _ => ListParams::default().labels(&selector),
    };
    let found = cluster.patiently(pods.list(&params), "list pods", namespace).await?;
    for pod in found.items {
        filter.pods.extend(pod.metadata.name);
        // A pod in the host's network has everybody's address.
        if pod.spec.is_some_and(|s| s.host_network != Some(true)) {
            filter.addresses.extend(pod.status.and_then(|s| s.pod_ip));
        }
    }
    if filter.pods.is_empty() && filter.workload.is_none() && filter.service.is_none() {
        return Err(ClusterError::NotFound {
            what: format!("pod for {}", filter.text),
            namespace: namespace.to_owned(),
        });
    }
    Ok(filter)
}

const fn text_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Deployment => "deploy",
        Kind::StatefulSet => "sts",
        Kind::DaemonSet => "ds",
        Kind::Service => "svc",
        Kind::Pod => "pod",
    }
}

/// The label selector of something that has one.
async fn named(
    cluster: &Cluster,
    namespace: &str,
    kind: Kind,
    name: &str,
    filter: &mut Filter,
) -> Result<String, ClusterError> {
    let client = cluster.client.clone();
    let missing =
        || ClusterError::NotFound { what: format!("{}/{name}", text_of(kind)), namespace: namespace.to_owned() };
    let selector: Option<LabelSelector> = match kind {
        Kind::Pod => return Ok(String::new()),
        Kind::Service => {
            filter.service = Some(name.to_owned());
            let api: Api<Service> = Api::namespaced(client, namespace);
            let found = cluster.patiently(api.get_opt(name), "get services", namespace).await?.ok_or_else(missing)?;
            let labels = found.spec.and_then(|s| s.selector).unwrap_or_default();
            Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() })
        }
        Kind::Deployment => {
            filter.workload = Some(name.to_owned());
            let api: Api<Deployment> = Api::namespaced(client, namespace);
            let found =
                cluster.patiently(api.get_opt(name), "get deployments", namespace).await?.ok_or_else(missing)?;
            found.spec.map(|s| s.selector)
        }
        Kind::StatefulSet => {
            filter.workload = Some(name.to_owned());
            let api: Api<StatefulSet> = Api::namespaced(client, namespace);
            let found =
                cluster.patiently(api.get_opt(name), "get statefulsets", namespace).await?.ok_or_else(missing)?;
            found.spec.map(|s| s.selector)
        }
        Kind::DaemonSet => {
            filter.workload = Some(name.to_owned());
            let api: Api<DaemonSet> = Api::namespaced(client, namespace);
            let found = cluster.patiently(api.get_opt(name), "get daemonsets", namespace).await?.ok_or_else(missing)?;
            found.spec.map(|s| s.selector)
        }
    };
    let text = selector.and_then(|s| Selector::try_from(s).ok()).map(|s| s.to_string()).unwrap_or_default();
    // No selector at all would choose everything.
    if text.is_empty() { Err(missing()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_model::WorkloadSource;

    #[test]
    fn targets_are_named_as_in_kubectl() {
        let of = |text: &str| Scope::parse(Some(text), None).ok().flatten();
        assert_eq!(of("deploy/reviews-v1"), Some(Scope::Named(Kind::Deployment, "reviews-v1".to_owned())));
        assert_eq!(of("svc/reviews"), Some(Scope::Named(Kind::Service, "reviews".to_owned())));
        for bad in ["reviews", "deploy/", "deploy/a/b", "node/x", "pod/UPPER", "pod/a b", "/x", "pod/-x"] {
            assert!(of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn ends_are_found_by_pod_workload_service_or_address() {
        let end = |ns: &str, workload: &str, pod: &str, address: &str| Workload {
            namespace: Some(ns.to_owned()),
            workload: Some(workload.to_owned()),
            service: None,
            pod: Some(pod.to_owned()),
            address: Some(address.to_owned()),
            source: WorkloadSource::Als,
        };
        let filter = Filter {
            namespace: "default".to_owned(),
            workload: Some("reviews-v1".to_owned()),
            pods: ["reviews-v1-abc".to_owned()].into(),
            addresses: ["10.0.0.3".to_owned()].into(),
            ..Filter::default()
        };
        assert!(filter.holds(&end("default", "reviews-v1", "a pod of yesterday", "10.0.0.9")));
        assert!(filter.holds(&end("default", "other", "reviews-v1-abc", "10.0.0.9")));
        assert!(filter.holds(&end("x", "other", "other", "10.0.0.3:9080")));
        assert!(!filter.holds(&end("other", "reviews-v1", "reviews-v1-abc", "10.0.0.9")));
        assert!(!filter.holds(&Workload::unknown()));
    }
}
