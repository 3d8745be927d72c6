//! Reports from the agents of a cluster, by way of its API server.
//!
//! No port of the cluster has to be reachable but the API server's: its proxy hands requests on to the agents' pods. It checks who asks
//! (`pods/proxy`) and drops `Authorization`, so the agents have a token of their own, from a Secret.

mod agents;
mod check;
mod connect;
mod error;
mod fetch;
mod istio;
mod merge;
mod progress;
mod record;
mod rights;
mod sidecars;
mod target;
mod unpack;

pub(crate) use check::check;
pub(crate) use merge::together;
pub(crate) use record::{Recorded, nodes_of, record, recorded};
pub(crate) use target::{Filter, is_name};

use crate::args::{ClusterArgs, SourceArgs};
use crate::exit::Failure;
use anyhow::Context;
use connect::Cluster;
use meshdiff_capture::CaptureData;
use meshdiff_model::MonotonicNs;
use std::future::Future;
use std::time::Duration;
use target::Scope;

/// How far a report goes back that is not told otherwise.
const SINCE: Duration = Duration::from_secs(15 * 60);

/// What the agents had.
pub(crate) struct Gathered {
    /// As if one recorder had seen it all.
    pub(crate) data: CaptureData,
    /// Where it comes from, for people.
    pub(crate) source: String,
    /// What limits it, in sentences.
    pub(crate) notes: Vec<String>,
    /// The namespace that was asked for; `None` for all.
    pub(crate) namespace: Option<String>,
    /// What of the namespace was asked for.
    pub(crate) filter: Option<Filter>,
    /// How far back.
    pub(crate) since: Duration,
    /// First and last instant of all recordings; the capture's own are what all nodes have in common.
    pub(crate) whole: (MonotonicNs, MonotonicNs),
}

/// Finds the agents of a cluster and fetches what they have of a time.
pub(crate) fn gather(args: &SourceArgs) -> Result<Gathered, Failure> {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster).await?;
        let namespace = namespace(args, &cluster);
        if let Some(strange) = namespace.as_ref().filter(|n| !is_name(n)) {
            return Err(Failure::Usage(format!("{strange:?} is no name of a namespace")));
        }
        let scope = Scope::parse(args.target.as_deref(), args.selector.as_deref())?;
        let filter = match (&scope, &namespace) {
            (None, _) => None,
            (Some(scope), Some(namespace)) => Some(target::resolve(&cluster, namespace, scope).await?),
            (Some(_), None) => {
                return Err(Failure::Usage("choose workloads in one namespace: --namespace and not -A".to_owned()));
            }
        };
        let since = args.since.unwrap_or(SINCE);
        let token = agents::token(&cluster, &args.cluster).await?;
        let found = agents::list(&cluster).await?;
        let folder = tempfile::Builder::new()
            .prefix("meshdiff-")
            .tempdir()
            .context("cannot make a folder for what the agents send")?;
        let question = fetch::Question { namespace: namespace.as_deref(), since };
        let fetched = fetch::all(&cluster, &found, &token, &question, folder.path()).await?;
        let mut notes = fetched.notes;
        if let Some(namespace) = &namespace {
            notes.extend(agents::nodes_without(&cluster, namespace, &found).await);
        }
        let merged = tokio::task::spawn_blocking(move || merge::read(fetched.captures))
            .await
            .context("reading what the agents sent")??;
        notes.extend(merged.notes);
        let source = format!("{} of {} agents in {}", merged.nodes, found.len(), cluster.name);
        Ok(Gathered { data: merged.data, source, notes, namespace, filter, since, whole: merged.whole })
    })
}

fn namespace(args: &SourceArgs, cluster: &Cluster) -> Option<String> {
    (!args.all_namespaces).then(|| args.namespace.clone().unwrap_or_else(|| cluster.namespace.clone()))
}

/// Runs something that speaks with a cluster, until it is done or Ctrl-C.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Failed(anyhow::anyhow!("ended by Ctrl-C before the agents had answered"))),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.context("cannot start a runtime")?)
}

/// True if the cluster was named in any way.
pub(crate) fn is_named(args: &ClusterArgs) -> bool {
    args.context.is_some() || args.kubeconfig.is_some()
}
