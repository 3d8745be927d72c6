//! Short-lived agents in a cluster: started, waited for, and removed.

use super::error::RecordError;
use super::interrupts::Interrupts;
use super::manifest::{self, Identity};
use super::options::Options;
use super::say::Say;
use super::state::{State, state};
use crate::cluster::agents::Agent;
use crate::cluster::connect::Cluster;
use crate::cluster::error::{ClusterError, sentence};
use crate::cluster::istio;
use crate::cluster::rights::{Right, may};
use crate::exit::Failure;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ListParams, PostParams};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a node may have no room for its agent: others do not wait for it longer.
const NO_ROOM: Duration = Duration::from_secs(20);
/// How long what an earlier recording left may take to go.
const EARLIER: Duration = Duration::from_secs(30);
/// How many pods are made at once.
const AT_ONCE: usize = 16;

/// What was started, or is about to be.
pub(super) struct Run<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) identity: Identity,
    options: &'a Options,
    nodes: Vec<String>,
    /// True if the namespace is there because of a recording.
    pub(super) namespace_is_ours: bool,
    /// True if there may be something to remove.
    pub(super) begun: bool,
    /// Nodes by their agents' pods.
    pods: BTreeMap<String, String>,
}

impl<'a> Run<'a> {
    /// Nothing is started yet.
    pub(super) fn new(cluster: &'a Cluster, options: &'a Options, nodes: Vec<String>) -> Result<Self, Failure> {
        let identity = Identity::random()?;
        Ok(Self { cluster, identity, options, nodes, namespace_is_ours: false, begun: false, pods: BTreeMap::new() })
    }

    /// The namespace of the agents.
    pub(super) fn place(&self) -> &'a str {
        &self.cluster.agent_namespace
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), self.place())
    }

    /// Starts an agent on each node. A signal ends it between two questions to the API server, so that it is known what was made.
    pub(super) async fn start(&mut self, interrupts: &mut Interrupts, say: &Say) -> Result<(), Failure> {
        let early = |_| RecordError::EndedEarly;
        interrupts.unless(self.may()).await.map_err(early)??;
        self.make_namespace(interrupts).await?;
        let anchor = manifest::anchor(&self.identity, self.options, &self.nodes);
        self.begun = true;
        let anchor = self.make(anchor, "create configmaps").await.map_err(|error| match error {
            ClusterError::Gone { reason, .. } => {
                Failure::from(RecordError::NoNamespace { namespace: self.place().to_owned(), reason })
            }
            other => other.into(),
        })?;
        let owner = manifest::owner(&anchor);
        interrupts.unless(self.alone(&anchor, say)).await.map_err(early)??;
        self.make_service(&owner, interrupts).await?;
        self.make(manifest::secret(&self.identity, &owner), "create secrets").await?;
        interrupts.unless(async {}).await.map_err(early)?;
        self.make_pods(&owner, say).await
    }

    /// Whether everything is allowed that it takes, before anything is made.
    async fn may(&self) -> Result<(), Failure> {
        let namespace = self.place();
        let of = |verb, resource, subresource, name| Right {
            verb,
            resource,
            subresource,
            name,
            namespace: Some(namespace),
            purpose: "",
        };
        let needed = [
            of("create", "configmaps", None, None),
            of("list", "configmaps", None, None),
            of("delete", "configmaps", None, None),
            of("create", "secrets", None, None),
            of("get", "services", None, Some(istio::SERVICE)),
            of("create", "services", None, None),
            of("create", "pods", None, None),
            of("list", "pods", None, None),
            of("delete", "pods", None, None),
            of("get", "pods", Some("proxy"), None),
        ];
        let answers = futures::future::try_join_all(needed.iter().map(|right| may(self.cluster, right))).await?;
        let missing: Vec<String> =
            needed.iter().zip(answers).filter(|(_, allowed)| !allowed).map(|(right, _)| right.what()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(RecordError::MayNot { namespace: namespace.to_owned(), missing }.into())
    }

    async fn make_namespace(&mut self, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let name = self.place();
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        let started = Instant::now();
        let found = loop {
            match self.cluster.patiently(api.get_opt(name), "get namespaces", "").await {
                Ok(Some(found)) if found.metadata.deletion_timestamp.is_some() => {
                    if started.elapsed() > EARLIER {
                        return Err(RecordError::NamespaceEnds(name.to_owned()).into());
                    }
                }
                Ok(found) => break found,
                // Most who may start pods may not look at namespaces: it is there, or that is said when something is put into it.
                Err(ClusterError::Forbidden { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            interrupts.wait(LOOK).await.map_err(|_| RecordError::EndedEarly)?;
        };
        if let Some(found) = found {
            let managed = found.metadata.labels.unwrap_or_default();
            self.namespace_is_ours = managed.get(manifest::MANAGED_BY).is_some_and(|m| m == manifest::MANAGER);
            return Ok(());
        }
        let (params, namespace) = (PostParams::default(), manifest::namespace(name));
        let made = api.create(&params, &namespace);
        match self.cluster.patiently(made, "create namespaces", "").await {
            Ok(_) => {
                (self.namespace_is_ours, self.begun) = (true, true);
                Ok(())
            }
            Err(ClusterError::Forbidden { reason, .. }) => {
                Err(RecordError::NoNamespace { namespace: name.to_owned(), reason }.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sidecars log to the agents of one recording: an earlier one that goes on has them, one that should have ended is removed.
    async fn alone(&self, ours: &ConfigMap, say: &Say) -> Result<(), Failure> {
        let api: Api<ConfigMap> = self.api();
        let params = ListParams::default().labels(&format!("{}={}", manifest::MANAGED_BY, manifest::MANAGER));
        let all = self.cluster.patiently(api.list(&params), "list configmaps", self.place()).await?;
        // In the order in which the API server made them; its times have whole seconds only.
        let key = |map: &ConfigMap| {
            let version = map.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
            (version, map.metadata.creation_timestamp.clone(), map.metadata.name.clone())
        };
        let others = all.items.iter().filter(|map| key(map) < key(ours));
        for other in others {
            let data = |name: &str| other.data.as_ref().and_then(|d| d.get(name)).map_or("", String::as_str);
            let name = other.metadata.name.as_deref().unwrap_or_default();
            let at = |map: &ConfigMap| map.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
            let left = data(manifest::LASTS).parse::<i64>().unwrap_or(0) - (at(ours) - at(other));
            if left > 0 {
                let nodes = sentence(data("nodes"));
                let remedy = self.remedy_for(name);
                let (namespace, name) = (self.place().to_owned(), sentence(name));
                return Err(RecordError::Another { namespace, name, nodes, left, remedy }.into());
            }
            say.line(&format!("Removing what an earlier recording left ({}).", sentence(name)));
            self.remove_anchor(name).await?;
        }
        Ok(())
    }

    async fn make_service(&self, owner: &OwnerReference, interrupts: &mut Interrupts) -> Result<(), Failure> {
        let api: Api<Service> = self.api();
        let started = Instant::now();
        loop {
            let found = api.get_opt(istio::SERVICE);
            let Some(found) = self.cluster.patiently(found, "get services", self.place()).await? else {
                self.make(manifest::service(&self.identity, owner), "create services").await?;
                return Ok(());
            };
            // One that is there for good is used; one of an earlier recording goes with it, and must not go in the middle of this one.
            let managed = found.metadata.labels.unwrap_or_default();
            if managed.get(manifest::MANAGED_BY).is_none_or(|m| m != manifest::MANAGER) {
                return Ok(());
            }
            for earlier in found.metadata.owner_references.unwrap_or_default() {
                self.remove_anchor(&earlier.name).await?;
            }
            if started.elapsed() > EARLIER {
                return Err(RecordError::ServiceStays { namespace: self.place().to_owned() }.into());
            }
            interrupts.wait(LOOK).await.map_err(|_| RecordError::EndedEarly)?;
        }
    }

    async fn make_pods(&mut self, owner: &OwnerReference, say: &Say) -> Result<(), Failure> {
        say.status(format!("starting agents on {} nodes", self.nodes.len()));
        let pods: Vec<(Pod, String)> = (self.nodes.iter().enumerate())
            .map(|(i, node)| (manifest::pod(&self.identity, owner, self.options, i, node), node.clone()))
            .collect();
        self.pods = pods.iter().map(|(p, n)| (p.metadata.name.clone().unwrap_or_default(), n.clone())).collect();
        let this = &*self;
        let making = pods.into_iter().map(|(pod, _)| this.make(pod, "create pods"));
        let made: Vec<Result<Pod, ClusterError>> =
            futures::stream::iter(making).buffer_unordered(AT_ONCE).collect().await;
        for result in made {
            let Err(error) = result else { continue };
            let namespace = self.place().to_owned();
            return Err(match error {
                ClusterError::Forbidden { reason, .. } if reason.contains("violates PodSecurity") => {
                    RecordError::PodSecurity { namespace, reason }.into()
                }
                // That it may be done was asked before: somebody else says no.
                ClusterError::Forbidden { reason, .. } | ClusterError::Refused { reason, .. } => {
                    RecordError::Refused { namespace, reason }.into()
                }
                other => other.into(),
            });
        }
        Ok(())
    }

    async fn make<K>(&self, object: K, verb: &'static str) -> Result<K, ClusterError>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = self.api();
        self.cluster.patiently(api.create(&PostParams::default(), &object), verb, self.place()).await
    }

    /// The pods that are there of this recording.
    pub(super) async fn list(&self) -> Result<Vec<Pod>, ClusterError> {
        let api: Api<Pod> = self.api();
        let params = ListParams::default().labels(&format!("{}={}", manifest::INSTANCE, self.identity.name));
        Ok(self.cluster.patiently(api.list(&params), "list pods", self.place()).await?.items)
    }

    /// The state of each node's agent. Of one whose pod is gone that is said.
    async fn states(&self) -> Result<BTreeMap<&str, (Agent, State)>, ClusterError> {
        let there = self.list().await?;
        let states = self.pods.iter().map(|(pod, node)| {
            let found = there.iter().find(|p| p.metadata.name.as_ref() == Some(pod));
            let state = found.map_or_else(|| State::Failed("its pod is gone".to_owned()), state);
            let agent = Agent { pod: pod.clone(), node: node.clone(), not_running: None };
            (node.as_str(), (agent, state))
        });
        Ok(states.collect())
    }

    /// Waits until all agents record, or will not. Says who will not, and why.
    pub(super) async fn ready(
        &self,
        interrupts: &mut Interrupts,
        say: &Say,
    ) -> Result<(Vec<Agent>, Vec<String>), Failure> {
        let started = Instant::now();
        loop {
            let (mut ready, mut failed, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
            let late = started.elapsed() > self.options.start_within;
            match interrupts.unless(self.states()).await.map_err(|_| RecordError::EndedEarly)? {
                // An API server that is away for a moment may come back.
                Err(error) if late => return Err(error.into()),
                Err(error) => say.status(error.to_string()),
                Ok(states) => {
                    for (node, (agent, state)) in states {
                        let mut fail = |why: String| failed.push(format!("no agent on the node {node}: {why}"));
                        match state {
                            State::Ready => ready.push(agent),
                            State::Failed(why) => fail(why),
                            State::NoRoom(why) if started.elapsed() > NO_ROOM => fail(why),
                            State::Starting(why) | State::NoRoom(why) if late => {
                                let within = self.options.start_within.as_secs();
                                fail(format!("not ready within {within} s, {why} (--start-within gives it longer)"));
                            }
                            State::Starting(why) | State::NoRoom(why) => waiting.push(format!("{node}: {why}")),
                        }
                    }
                    if waiting.is_empty() {
                        return if ready.is_empty() {
                            Err(RecordError::NoneReady(failed).into())
                        } else {
                            Ok((ready, failed))
                        };
                    }
                    let first = waiting.first().map_or("", String::as_str);
                    let (n, of) = (ready.len(), self.nodes.len());
                    say.status(format!("{n} of {of} agents are ready; waiting for {first}"));
                }
            }
            interrupts.wait(LOOK).await.map_err(|_| RecordError::EndedEarly)?;
        }
    }

    /// Notes which agents have ended that should not have. Says those of which that is new.
    pub(super) async fn lost(&self, agents: &mut [Agent]) -> Vec<String> {
        // Who cannot be asked now may be asked later.
        let Ok(states) = self.states().await else { return Vec::new() };
        let mut news = Vec::new();
        for agent in agents.iter_mut().filter(|a| a.not_running.is_none()) {
            if let Some((_, State::Failed(why))) = states.get(agent.node.as_str()) {
                news.push(format!("the agent on the node {} no longer records: {why}", agent.node));
                agent.not_running = Some(why.clone());
            }
        }
        news
    }
}
