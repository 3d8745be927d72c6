//! Which cluster, and as whom.

use super::error::ClusterError;
use crate::args::ClusterArgs;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::time::Duration;

/// How long the API server may take to answer anything but a capture.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that can be asked.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    /// The context's name, or the server's address.
    pub(super) name: String,
    /// The context's namespace.
    pub(super) namespace: String,
    /// Where the agents are.
    pub(super) agent_namespace: String,
    /// The context that was asked for.
    pub(super) chosen: Option<String>,
}

impl Cluster {
    /// By the kubeconfig, as kubectl does it; in a pod without one, by its service account.
    pub(super) async fn connect(args: &ClusterArgs) -> Result<Self, ClusterError> {
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let file = match &args.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let (mut config, context) = match file {
            Ok(file) => {
                let context = args.context.clone().or_else(|| file.current_context.clone());
                if let Some(wanted) = &args.context
                    && !file.contexts.iter().any(|c| c.name == *wanted)
                {
                    return Err(ClusterError::NoContext { context: wanted.clone() });
                }
                let config = Config::from_custom_kubeconfig(file, &options).await;
                (config.map_err(|e| ClusterError::kubeconfig(&e))?, context)
            }
            Err(error) if args.kubeconfig.is_none() && args.context.is_none() => match Config::incluster() {
                Ok(config) => (config, None),
                Err(_) => return Err(ClusterError::kubeconfig(&error)),
            },
            Err(error) => return Err(ClusterError::kubeconfig(&error)),
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        // A capture may take its time, but not a byte.
        config.read_timeout = Some(2 * PATIENCE);
        config.reset_reader_on_write = true;
        // Each agent is tried again by itself, and named if it does not help.
        config.default_retry = false;
        let name = context.unwrap_or_else(|| config.cluster_url.to_string());
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|e| ClusterError::of(e, &name, "connect", &namespace))?;
        let (agent_namespace, chosen) = (args.agent_namespace.clone(), args.context.clone());
        Ok(Self { client, name, namespace, agent_namespace, chosen })
    }

    /// What an error means.
    pub(super) fn error(&self, error: kube::Error, verb: &'static str, namespace: &str) -> ClusterError {
        ClusterError::of(error, &self.name, verb, namespace)
    }

    /// Waits for an answer of the API server, not forever.
    pub(super) async fn patiently<T>(
        &self,
        answer: impl Future<Output = kube::Result<T>>,
        verb: &'static str,
        namespace: &str,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|e| self.error(e, verb, namespace)),
            Err(_) => Err(ClusterError::Unreachable {
                cluster: self.name.clone(),
                reason: format!("no answer within {} s", PATIENCE.as_secs()),
            }),
        }
    }
}
