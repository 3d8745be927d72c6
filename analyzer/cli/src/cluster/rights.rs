//! What who asks may do, as the API server's authorizer answers.

use super::connect::Cluster;
use super::error::ClusterError;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

/// A right of the core API group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right<'a> {
    pub(super) verb: &'static str,
    pub(super) resource: &'static str,
    pub(super) subresource: Option<&'static str>,
    /// Of one object only.
    pub(super) name: Option<&'static str>,
    /// `None` for all namespaces.
    pub(super) namespace: Option<&'a str>,
    /// What it is for, in words.
    pub(super) purpose: &'static str,
}

impl Right<'_> {
    /// In words: `get pods/proxy in the namespace x`.
    pub(super) fn what(&self) -> String {
        let resource = match (self.subresource, self.name) {
            (Some(sub), _) => format!("{}/{sub}", self.resource),
            (None, Some(name)) => format!("{}/{name}", self.resource),
            (None, None) => self.resource.to_owned(),
        };
        let place = self.namespace.map_or_else(|| "all namespaces".to_owned(), |n| format!("the namespace {n}"));
        format!("{} {resource} in {place}", self.verb)
    }
}

/// Whether they have it.
pub(super) async fn may(cluster: &Cluster, right: &Right<'_>) -> Result<bool, ClusterError> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(right.verb.to_owned()),
                group: Some(String::new()),
                resource: Some(right.resource.to_owned()),
                subresource: right.subresource.map(str::to_owned),
                name: right.name.map(str::to_owned),
                namespace: right.namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let answer = cluster.patiently(api.create(&PostParams::default(), &review), "ask what you may do", "").await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}
