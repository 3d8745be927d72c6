//! Keeps a [`Cluster`] up to date.

use super::cluster::Cluster;
use super::objects::{Node, Pod, Service, controller};
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1 as core;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Error as WatchError, Event, watcher};
use kube::{Api, Client, ResourceExt};
use meshdiff_model::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The pods of one node, and that node. What made them is told from the pods alone, so that a thousand agents do not watch everything.
    Node(String),
    /// Pods, what made them, and services of these namespaces, and all nodes.
    Namespaces(Vec<String>),
    /// Pods, what made them, services and nodes of the whole cluster.
    All,
}

/// Why there is no access to the API server.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// Neither a service account nor a kubeconfig.
    #[error("there is no access to the Kubernetes API: {0}")]
    Config(String),
}

/// How the informers are doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The first list of pods has not come yet.
    Starting,
    /// Pods are up to date.
    Synced,
    /// They are not, and why not, in a sentence. What was known before stays known.
    Failing(String),
}

/// Informers that run until this is dropped.
#[derive(Debug)]
pub struct Informers {
    shared: Arc<Shared>,
    /// How many informers each resource has: one for each namespace.
    wanted: BTreeMap<&'static str, usize>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    cluster: RwLock<Cluster>,
    /// What does not work, by resource.
    trouble: Mutex<BTreeMap<&'static str, String>>,
    /// How many of a resource's informers have had a whole list.
    listed: watch::Sender<BTreeMap<&'static str, usize>>,
}

const PODS: &str = "pods";

impl Informers {
    /// Starts informers with the access that this process has: a service account's, or the kubeconfig's. To be called in a runtime.
    ///
    /// # Errors
    /// If there is no access at all. That a server is away or forbids something is no error here but a [`status`](Self::status).
    pub async fn start(scope: Scope) -> Result<Self, KubeError> {
        let client = Client::try_default().await.map_err(|e| KubeError::Config(e.to_string()))?;
        Ok(Self::with_client(&client, scope))
    }

    /// Starts informers with a client. To be called in a runtime.
    #[must_use]
    pub fn with_client(client: &Client, scope: Scope) -> Self {
        let shared = Arc::new(Shared {
            cluster: RwLock::default(),
            trouble: Mutex::default(),
            listed: watch::Sender::new(BTreeMap::new()),
        });
        let mut tasks = JoinSet::new();
        let all = || vec![None];
        let every = Config::default;
        let (namespaces, pods, nodes, rest) = match scope {
            Scope::Node(node) => {
                let field = |name: &str| every().fields(&format!("{name}={node}"));
                (all(), field("spec.nodeName"), field("metadata.name"), false)
            }
            Scope::Namespaces(list) => (list.into_iter().map(Some).collect(), every(), every(), true),
            Scope::All => (all(), every(), every(), true),
        };
        let mut wanted: BTreeMap<&'static str, usize> = BTreeMap::new();
        for namespace in &namespaces {
            let namespace = namespace.as_deref();
            let mine = Mine(namespace.map(str::to_owned));
            let stream = watcher(api::<core::Pod>(client, namespace), pods.clone());
            tasks.spawn(follow(Arc::clone(&shared), PODS, stream, Pods::new(mine.clone())));
            if rest {
                let sets = watcher(api::<PartialObjectMeta<ReplicaSet>>(client, namespace), every());
                tasks.spawn(follow(Arc::clone(&shared), "replicasets", sets, Makers));
                let jobs = watcher(api::<PartialObjectMeta<Job>>(client, namespace), every());
                tasks.spawn(follow(Arc::clone(&shared), "jobs", jobs, Makers));
                let services = watcher(api::<core::Service>(client, namespace), every());
                tasks.spawn(follow(Arc::clone(&shared), "services", services, Services::new(mine)));
            }
        }
        wanted.insert(PODS, namespaces.len());
        if rest {
            wanted.extend(["replicasets", "jobs", "services"].map(|resource| (resource, namespaces.len())));
        }
        wanted.insert("nodes", 1);
        let nodes = watcher(Api::<core::Node>::all(client.clone()), nodes);
        tasks.spawn(follow(Arc::clone(&shared), "nodes", nodes, Nodes::default()));
        Self { shared, wanted, _tasks: tasks }
    }

    /// Looks at what is known.
    pub fn read<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        look(&self.shared.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True once pods were listed, also if the server is away now.
    #[must_use]
    pub fn pods_are_known(&self) -> bool {
        self.is_listed(&self.shared.listed.borrow(), PODS)
    }

    /// How pods are doing; without them nothing else matters.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.trouble().get(PODS) {
            Some(why) => Status::Failing(why.clone()),
            None if self.pods_are_known() => Status::Synced,
            None => Status::Starting,
        }
    }

    /// What is not known because the server does not let it be listed, or is away: resource and reason.
    #[must_use]
    pub fn trouble(&self) -> BTreeMap<&'static str, String> {
        self.shared.trouble().clone()
    }

    /// Waits until everything in scope was listed, as far as the server lets it be, for `most` at most. True if pods were.
    pub async fn wait(&self, most: Duration) -> bool {
        let mut listed = self.shared.listed.subscribe();
        let done = |listed: &BTreeMap<&'static str, usize>| {
            let trouble = self.shared.trouble();
            self.wanted.keys().all(|resource| self.is_listed(listed, resource) || trouble.contains_key(resource))
        };
        let _: Result<_, _> = tokio::time::timeout(most, listed.wait_for(done)).await;
        self.pods_are_known()
    }

    fn is_listed(&self, listed: &BTreeMap<&'static str, usize>, resource: &str) -> bool {
        listed.get(resource) >= self.wanted.get(resource)
    }
}

impl Shared {
    fn trouble(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// What an informer does with what it is told.
trait Apply<K>: Send {
    fn put(&mut self, cluster: &mut Cluster, object: K, now: WallTime);
    fn delete(&mut self, cluster: &mut Cluster, object: K, now: WallTime);
    /// A new list begins.
    fn begin(&mut self) {}
    /// It is whole: what was known and is not in it has gone.
    fn end(&mut self, _: &mut Cluster, _: WallTime) {}
}

async fn follow<K>(
    shared: Arc<Shared>,
    resource: &'static str,
    stream: impl Stream<Item = Result<Event<K>, WatchError>> + Send,
    mut apply: impl Apply<K>,
) {
    // Waits longer and longer while the server is away or says no.
    let mut stream = std::pin::pin!(stream.default_backoff());
    let mut first = true;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let why = describe(resource, &error);
                if shared.trouble().insert(resource, why.clone()).as_ref() != Some(&why) {
                    tracing::warn!(resource, why, "the API server does not tell");
                }
                // Whoever waits for a list need not any longer.
                shared.listed.send_modify(|_| {});
                continue;
            }
        };
        if shared.trouble().remove(resource).is_some() {
            tracing::info!(resource, "the API server tells again");
        }
        let now = now();
        let done = matches!(event, Event::InitDone);
        {
            let mut cluster = shared.cluster.write().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Init => apply.begin(),
                Event::InitApply(object) | Event::Apply(object) => apply.put(&mut cluster, object, now),
                Event::Delete(object) => apply.delete(&mut cluster, object, now),
                Event::InitDone => apply.end(&mut cluster, now),
            }
        }
        if done && std::mem::take(&mut first) {
            shared.listed.send_modify(|listed| *listed.entry(resource).or_default() += 1);
        }
    }
}

/// The namespace that an informer watches; all, if there is none.
#[derive(Clone, Debug)]
struct Mine(Option<String>);

impl Mine {
    fn has(&self, namespace: &str) -> bool {
        self.0.as_deref().is_none_or(|mine| mine == namespace)
    }
}

struct Pods {
    mine: Mine,
    listed: BTreeSet<String>,
}

impl Pods {
    fn new(mine: Mine) -> Self {
        Self { mine, listed: BTreeSet::new() }
    }
}

impl Apply<core::Pod> for Pods {
    fn put(&mut self, cluster: &mut Cluster, object: core::Pod, now: WallTime) {
        if let Some(pod) = Pod::of(object, now) {
            self.listed.insert(pod.uid.clone());
            cluster.put_pod(pod);
        }
    }
    fn delete(&mut self, cluster: &mut Cluster, object: core::Pod, now: WallTime) {
        if let Some(uid) = object.uid() {
            self.listed.remove(&uid);
            cluster.end_pod(&uid, now);
        }
    }
    fn begin(&mut self) {
        self.listed.clear();
    }
    fn end(&mut self, cluster: &mut Cluster, now: WallTime) {
        let others = cluster.pods().filter(|p| !self.mine.has(&p.namespace)).map(|p| p.uid.clone());
        let there: BTreeSet<String> = others.chain(self.listed.iter().cloned()).collect();
        cluster.only_pods(&there, now);
    }
}

struct Makers;

impl<K: Send> Apply<PartialObjectMeta<K>> for Makers {
    fn put(&mut self, cluster: &mut Cluster, object: PartialObjectMeta<K>, _: WallTime) {
        if let Some(uid) = &object.metadata.uid {
            cluster.put_maker(uid.clone(), controller(&object.metadata));
        }
    }
    /// A pod that has ended is still asked for: what made it stays known for as long as the informers run, and takes some hundred bytes.
    fn delete(&mut self, _: &mut Cluster, _: PartialObjectMeta<K>, _: WallTime) {}
}

struct Services {
    mine: Mine,
    listed: BTreeSet<(String, String)>,
}

impl Services {
    fn new(mine: Mine) -> Self {
        Self { mine, listed: BTreeSet::new() }
    }
}

impl Apply<core::Service> for Services {
    fn put(&mut self, cluster: &mut Cluster, object: core::Service, _: WallTime) {
        if let Some(service) = Service::of(object) {
            self.listed.insert((service.namespace.clone(), service.name.clone()));
            cluster.put_service(service);
        }
    }
    fn delete(&mut self, cluster: &mut Cluster, object: core::Service, _: WallTime) {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        self.listed.remove(&key);
        cluster.remove_service(&key);
    }
    fn begin(&mut self) {
        self.listed.clear();
    }
    fn end(&mut self, cluster: &mut Cluster, _: WallTime) {
        let gone = |key: &&(String, String)| self.mine.has(&key.0) && !self.listed.contains(*key);
        let gone: Vec<_> = cluster.service_names().filter(gone).cloned().collect();
        gone.iter().for_each(|key| cluster.remove_service(key));
    }
}

#[derive(Default)]
struct Nodes {
    listed: BTreeSet<String>,
}

impl Apply<core::Node> for Nodes {
    fn put(&mut self, cluster: &mut Cluster, object: core::Node, _: WallTime) {
        if let Some(node) = Node::of(object) {
            self.listed.insert(node.name.clone());
            cluster.put_node(node);
        }
    }
    fn delete(&mut self, cluster: &mut Cluster, object: core::Node, _: WallTime) {
        self.listed.remove(&object.name_any());
        cluster.remove_node(&object.name_any());
    }
    fn begin(&mut self) {
        self.listed.clear();
    }
    fn end(&mut self, cluster: &mut Cluster, _: WallTime) {
        let gone: Vec<String> = cluster.node_names().filter(|n| !self.listed.contains(*n)).cloned().collect();
        gone.iter().for_each(|name| cluster.remove_node(name));
    }
}

/// What went wrong, and what to do about it.
fn describe(resource: &str, error: &WatchError) -> String {
    let status = match error {
        WatchError::InitialListFailed(e) | WatchError::WatchStartFailed(e) | WatchError::WatchFailed(e) => match e {
            kube::Error::Api(status) => Some(status),
            _ => None,
        },
        WatchError::WatchError(status) => Some(status),
        WatchError::NoResourceVersion => None,
    };
    match status.map(|s| s.code) {
        Some(403) => format!(
            "the API server forbids to list or watch {resource}: grant both verbs to this account (deploy/ has the role). It says: {}",
            status.map(|s| s.message.as_str()).unwrap_or_default()
        ),
        Some(401) => {
            "the API server does not accept this account's credentials: they have expired, or are of another cluster"
                .to_owned()
        }
        _ => format!("the API server cannot be asked for {resource}: {}", causes(error)),
    }
}

/// An error with its causes, because the HTTP client says only at the end of them what happened.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
