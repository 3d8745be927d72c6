//! Informers against a server that answers as the API server does: lists, watches, and what goes wrong with them.

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt;
use meshdiff_discovery::kube::{Informers, Scope, Status};
use meshdiff_model::WallTime;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

const PATIENCE: Duration = Duration::from_secs(60);

/// What the server has, and who listens.
struct Server {
    lists: Mutex<BTreeMap<String, Vec<Value>>>,
    events: broadcast::Sender<(String, Value)>,
    forbidden: Mutex<Vec<&'static str>>,
    asked: Mutex<Vec<String>>,
}

type Parameters = BTreeMap<String, String>;

async fn answer(
    State(server): State<Arc<Server>>,
    Path(path): Path<String>,
    Query(query): Query<Parameters>,
) -> Response {
    let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
    server.asked.lock().expect("alive").push(format!("{path} {query:?}"));
    if server.forbidden.lock().expect("alive").contains(&resource.as_str()) {
        let message =
            format!("{resource} is forbidden: User \"system:serviceaccount:x:y\" cannot list resource \"{resource}\"");
        let status = json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":message,"reason":"Forbidden","details":{},"code":403});
        return (StatusCode::FORBIDDEN, Json(status)).into_response();
    }
    if query.get("watch").is_some_and(|w| w == "true" || w == "1") {
        let events = server.events.subscribe();
        let lines = futures::stream::unfold((events, resource), |(mut events, resource)| async move {
            loop {
                match events.recv().await {
                    Ok((of, event)) if of == resource => {
                        let line = Bytes::from(format!("{event}\n"));
                        return Some((Ok::<_, std::io::Error>(line), (events, resource)));
                    }
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        });
        return Body::from_stream(lines.boxed()).into_response();
    }
    let items = server.lists.lock().expect("alive").get(&resource).cloned().unwrap_or_default();
    let kind = match resource.as_str() {
        "pods" => "PodList",
        "services" => "ServiceList",
        "nodes" => "NodeList",
        _ => "PartialObjectMetadataList",
    };
    Json(json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "100"}, "items": items}))
        .into_response()
}

fn object(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

async fn start() -> (Arc<Server>, kube::Client) {
    let server = Arc::new(Server {
        lists: Mutex::default(),
        events: broadcast::channel(64).0,
        forbidden: Mutex::default(),
        asked: Mutex::default(),
    });
    let router = Router::new().route("/{*path}", get(answer)).with_state(Arc::clone(&server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = kube::Config::new(url.parse().expect("a URL"));
    (server, kube::Client::try_from(config).expect("a client"))
}

impl Server {
    fn list(&self, resource: &str, items: Vec<Value>) {
        self.lists.lock().expect("alive").insert(resource.to_owned(), items);
    }
    fn tell(&self, resource: &str, kind: &str, object: Value) {
        self.events.send((resource.to_owned(), json!({"type": kind, "object": object}))).expect("somebody watches");
    }
    fn watchers(&self) -> usize {
        self.events.receiver_count()
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    WallTime(i64::try_from(since.as_nanos()).expect("before 2262"))
}

fn workload(informers: &Informers, ip: &str) -> Option<String> {
    let ip: IpAddr = ip.parse().expect("an address");
    informers.read(|c| c.workload_at(ip, now())?.workload)
}

#[tokio::test]
async fn a_node_s_agent_follows_its_pods_and_asks_for_nothing_else() {
    let (server, client) = start().await;
    server.list("pods", vec![object("pod-sidecar")]);
    server.list("nodes", vec![object("node")]);
    let informers = Informers::with_client(&client, Scope::Node("worker-1".into()));
    assert!(informers.wait(PATIENCE).await, "{:?}", informers.trouble());
    let record = informers.read(|c| c.records(WallTime(0))).pop().expect("the pod");
    assert_eq!(record.locality.and_then(|l| l.zone).as_deref(), Some("zone-b"), "its node's");
    assert_eq!(workload(&informers, "10.244.1.7").as_deref(), Some("reviews-v1"), "by the hash of its template");
    until("watched", || server.watchers() == 2).await;
    server.tell("pods", "ADDED", object("pod-native-sidecar"));
    until("the second pod", || workload(&informers, "10.244.1.8").is_some()).await;
    server.tell("pods", "DELETED", object("pod-sidecar"));
    until("the first pod's end", || workload(&informers, "10.244.1.7").is_none()).await;
    assert_eq!(informers.status(), Status::Synced);
    let asked = server.asked.lock().expect("alive").clone();
    let own = |a: &String| {
        (a.contains("/pods ") && a.contains("spec.nodeName=worker-1"))
            || (a.contains("/nodes ") && a.contains("metadata.name=worker-1"))
    };
    assert!(asked.iter().all(own), "{asked:?}");
}

#[tokio::test]
async fn workloads_services_and_nodes_of_the_whole_cluster() {
    let (server, client) = start().await;
    server.list("pods", vec![object("pod-sidecar"), object("pod-host-network")]);
    let set = json!({"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"reviews-v1-598b896c9d","namespace":"default","uid":"7e0b8f7a-1111-4c0e-8f57-bf2f9d2d0001","resourceVersion":"7","ownerReferences":[{"apiVersion":"argoproj.io/v1","kind":"Rollout","name":"reviews-canary","uid":"r-1","controller":true}]}});
    server.list("replicasets", vec![set]);
    server.list("services", vec![object("service")]);
    server.list("nodes", vec![object("node")]);
    let informers = Informers::with_client(&client, Scope::All);
    assert!(informers.wait(PATIENCE).await, "{:?}", informers.trouble());
    assert!(informers.trouble().is_empty());
    let found = informers.read(|c| c.workload_at("10.244.1.7".parse().expect("an address"), now())).expect("known");
    assert_eq!((found.workload.as_deref(), found.service.as_deref()), (Some("reviews-canary"), Some("reviews")));
    assert_eq!(
        informers.read(|c| c.node("worker-1").and_then(|n| n.locality.clone()?.region)).as_deref(),
        Some("region-1")
    );
    let records = informers.read(|c| c.records(WallTime(0)));
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((records[0].workload.as_str(), records[0].workload_kind.as_str()), ("reviews-canary", "Rollout"));
    assert_eq!(records[0].locality.as_ref().and_then(|l| l.zone.as_deref()), Some("zone-b"));
    until("watched", || server.watchers() == 5).await;
    server.tell("services", "DELETED", object("service"));
    until("the service's end", || {
        informers.read(|c| c.service_at("10.96.44.3".parse().expect("an address")).is_none())
    })
    .await;
}

#[tokio::test]
async fn what_is_forbidden_is_said_and_the_rest_goes_on() {
    let (server, client) = start().await;
    server.list("pods", vec![object("pod-sidecar")]);
    server.forbidden.lock().expect("alive").push("replicasets");
    let informers = Informers::with_client(&client, Scope::Namespaces(vec!["default".into()]));
    assert!(informers.wait(PATIENCE).await);
    let trouble = informers.trouble();
    assert!(trouble["replicasets"].contains("forbids") && trouble["replicasets"].contains("deploy/"), "{trouble:?}");
    assert_eq!(informers.status(), Status::Synced);
    assert_eq!(workload(&informers, "10.244.1.7").as_deref(), Some("reviews-v1"));
}

#[tokio::test]
async fn a_server_that_says_no_is_asked_again() {
    let (server, client) = start().await;
    server.forbidden.lock().expect("alive").push("pods");
    server.list("pods", vec![object("pod-sidecar")]);
    let informers = Informers::with_client(&client, Scope::Node("worker-1".into()));
    assert!(!informers.wait(PATIENCE).await);
    assert!(matches!(informers.status(), Status::Failing(why) if why.contains("forbids")));
    server.forbidden.lock().expect("alive").clear();
    until("the pods", || informers.pods_are_known()).await;
    assert_eq!(informers.status(), Status::Synced);
}
