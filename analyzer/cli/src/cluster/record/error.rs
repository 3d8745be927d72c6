//! Why a recording in a cluster does not come about.

/// It does not come about, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// Rights are missing; nothing was started.
    #[error(
        "you may not start agents in the namespace {namespace}: you need to {}. Who may grant roles there binds you to the Role meshdiff-recorder (deploy/record/role.yaml)",
        .missing.join(", ")
    )]
    MayNot { namespace: String, missing: Vec<String> },
    /// Nowhere to start agents in.
    #[error(
        "there is no namespace {namespace}, and you may not make it ({reason}): have it made as in deploy/kustomize/namespace.yaml, or name another with --agent-namespace"
    )]
    NoNamespace { namespace: String, reason: String },
    /// It goes away right now.
    #[error(
        "the namespace {0} is being removed, and that takes its time: try again in a minute, or name another with --agent-namespace"
    )]
    NamespaceEnds(String),
    /// The namespace does not let such pods in.
    #[error(
        "Pod Security does not let agents into the namespace {namespace} ({reason}). They look at other pods' processes and load probes: `kubectl label namespace {namespace} --overwrite pod-security.kubernetes.io/enforce=privileged` lets them, or record access logs alone with --no-probes"
    )]
    PodSecurity { namespace: String, reason: String },
    /// An admission webhook, a quota.
    #[error("the cluster does not let agents into the namespace {namespace}: {reason}")]
    Refused { namespace: String, reason: String },
    /// Sidecars can log to one recording's agents only.
    #[error(
        "another recording runs in the namespace {namespace} ({name}, of the nodes {nodes}), for {} s more at most: wait for its end, or use another --agent-namespace. If it was killed, this removes it: {remedy}",
        .left
    )]
    Another { namespace: String, name: String, nodes: String, left: i64, remedy: String },
    /// What an earlier recording left is in the way.
    #[error(
        "the Service grpc-als of an earlier recording is still in the namespace {namespace}: `kubectl -n {namespace} delete service grpc-als` removes it"
    )]
    ServiceStays { namespace: String },
    /// Nobody records.
    #[error("no agent records:\n{}", .0.iter().map(|r| format!("  {r}")).collect::<Vec<_>>().join("\n"))]
    NoneReady(Vec<String>),
    /// A signal came first.
    #[error("ended before anything was recorded")]
    EndedEarly,
    /// A second signal came.
    #[error("ended before the agents had answered: what they recorded is lost")]
    EndedInFetching,
    /// Something is still in the cluster.
    #[error("not everything could be removed from the cluster: {}. This removes it: {remedy}", .reasons.join("; "))]
    Left { reasons: Vec<String>, remedy: String },
}
