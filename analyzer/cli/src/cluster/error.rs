//! What can go wrong with a cluster, in words that say what to do.

use kube::config::KubeconfigError;
use std::path::PathBuf;

/// A cluster that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// No kubeconfig, or not a usable one.
    #[error(
        "cannot read the kubeconfig: {0}. Name another with --kubeconfig or KUBECONFIG, or read a capture with --capture DIR"
    )]
    Kubeconfig(String),
    /// The context is not in it.
    #[error("the kubeconfig has no context {context:?}: `kubectl config get-contexts` lists those that there are")]
    NoContext {
        /// As it was asked for.
        context: String,
    },
    /// The API server did not answer.
    #[error(
        "the API server of {cluster} cannot be reached: {reason}. Check the network (VPN?) and `kubectl --context … get --raw /version`"
    )]
    Unreachable {
        /// The cluster's name.
        cluster: String,
        /// Why.
        reason: String,
    },
    /// It answered, and does not know us.
    #[error(
        "the API server of {cluster} does not accept the kubeconfig's credentials ({reason}): they have expired or were withdrawn. Log in again, as for kubectl"
    )]
    Unauthorized {
        /// The cluster's name.
        cluster: String,
        /// Its words.
        reason: String,
    },
    /// The program that gives credentials failed.
    #[error("the kubeconfig's credentials cannot be had: {0}. Log in again, as for kubectl")]
    Credentials(String),
    /// It knows us, and says no.
    #[error(
        "may not {verb}: {reason}. Who may grant roles in {namespace} binds you to those of deploy/README.md: meshdiff-user where the agents are, meshdiff-viewer where applications are"
    )]
    Forbidden {
        /// What was to be done.
        verb: &'static str,
        /// The API server's words.
        reason: String,
        /// Where the role would be needed.
        namespace: String,
    },
    /// Nobody to ask.
    #[error(
        "no agent runs in the namespace {namespace:?} of {cluster}: install meshdiff there (deploy/README.md), name another with --agent-namespace, record without installing it with `meshdiff record -n NAMESPACE --duration 60s`, or on a node with `meshdiff record`"
    )]
    NoAgents {
        /// Where agents were looked for.
        namespace: String,
        /// The cluster's name.
        cluster: String,
    },
    /// None of them answered.
    #[error("none of the {count} agents could be asked:\n{reasons}")]
    AllAgentsFailed {
        /// How many there are.
        count: usize,
        /// A line for each.
        reasons: String,
    },
    /// The agents' token is not there.
    #[error(
        "the agents' token is missing: there is no Secret {name:?} with a key \"token\" in the namespace {namespace:?}. Install meshdiff (deploy/README.md), or give the token with --token-file or MESHDIFF_TOKEN"
    )]
    NoToken {
        /// The Secret.
        name: &'static str,
        /// Where it should be.
        namespace: String,
    },
    /// The agents' token cannot be read.
    #[error("cannot read the agents' token from {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token cannot be sent.
    #[error("the agents' token is not one: it holds characters that no header may have")]
    StrangeToken,
    /// What was asked for is not there.
    #[error("there is no {what} in the namespace {namespace:?}")]
    NotFound {
        /// Kind and name.
        what: String,
        /// Where it should be.
        namespace: String,
    },
    /// It is not there, or no longer.
    #[error("cannot {verb}: {reason}")]
    Gone {
        /// What was to be done.
        verb: &'static str,
        /// The API server's words.
        reason: String,
    },
    /// A selector that the API server does not understand, and everything else.
    #[error("the API server of {cluster} refuses to {verb}: {reason}")]
    Refused {
        /// The cluster's name.
        cluster: String,
        /// What was to be done.
        verb: &'static str,
        /// Its words.
        reason: String,
    },
}

impl ClusterError {
    /// What an error of the API client means to who asked.
    pub(super) fn of(error: kube::Error, cluster: &str, verb: &'static str, namespace: &str) -> Self {
        let cluster = cluster.to_owned();
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::Unauthorized { cluster, reason: sentence(&status.message) },
                403 => Self::Forbidden { verb, reason: sentence(&status.message), namespace: place(namespace) },
                404 => Self::Gone { verb, reason: sentence(&status.message) },
                _ => Self::Refused { cluster, verb, reason: sentence(&status.message) },
            },
            kube::Error::Auth(error) => Self::Credentials(root(&error)),
            kube::Error::InferKubeconfig(error) => Self::kubeconfig(&error),
            other => Self::Unreachable { cluster, reason: root(&other) },
        }
    }

    pub(super) fn kubeconfig(error: &KubeconfigError) -> Self {
        Self::Kubeconfig(sentence(&error.to_string()))
    }
}

/// Where a right is needed.
fn place(namespace: &str) -> String {
    if namespace.is_empty() { "the cluster".to_owned() } else { format!("the namespace {namespace}") }
}

/// What is at the bottom of an error: the layers above only repeat it.
pub(super) fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(next) = deepest.source() {
        deepest = next;
    }
    let text = deepest.to_string();
    sentence(if text.is_empty() { "it says nothing more" } else { &text })
}

/// Text from outside as part of a sentence of ours: one line, no control characters, not endless.
pub(super) fn sentence(text: &str) -> String {
    const MOST: usize = 400;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    clean.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "").with_code(code).boxed())
    }

    #[test]
    fn answers_become_sentences() {
        let of = |error| ClusterError::of(error, "kind-x", "list pods", "default").to_string();
        let expired = of(api(401, "Unauthorized"));
        assert!(expired.contains("kind-x") && expired.contains("expired"), "{expired}");
        let forbidden = of(api(403, "pods is forbidden: User \"u\" cannot list resource \"pods\"."));
        assert!(
            forbidden.contains("may not list pods: pods is forbidden") && forbidden.contains("meshdiff-user"),
            "{forbidden}"
        );
        let other = of(api(400, "unable to parse\n\u{1b}[31mselector"));
        assert!(other.contains("refuses to list pods") && !other.contains('\u{1b}'), "{other}");
        let gone = of(kube::Error::ReadEvents(std::io::Error::other("connection refused")));
        assert!(gone.contains("cannot be reached: connection refused"), "{gone}");
    }
}
