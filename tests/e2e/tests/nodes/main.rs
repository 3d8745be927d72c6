//! Two nodes of a cluster with real sidecars on both: each agent sees its own node's pods and no others, and what they saw is put
//! together by who asks through a real API server.
//!
//! The nodes are two halves of one lab: the API server says which pod is where, and each sidecar logs to the agent of its node. One machine
//! has one clock; nodes with clocks of their own are in `tests/cluster`.

mod cluster;
mod local;

use cluster::{Cluster, installed, register};
use local::LocalService;
use meshdiff_e2e::{Lab, LabOptions, PodLine, Request, judge, privileged};
use meshdiff_lab::truth::Truth;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The pods of the first node; all others are on the second.
const FIRST: [&str; 3] = ["loadgen", "productpage-v1", "reviews-v3"];
/// The pod that comes later, on the second node.
const LATER: &str = "ratings-v1";

fn node_of(pod: &PodLine) -> usize {
    usize::from(!FIRST.contains(&pod.workload.as_str()))
}

/// The wall clock's distance from the clock of the kernel's instants, in ns.
fn wall_ahead() -> i128 {
    let ns = |d: Duration| i128::try_from(d.as_nanos()).expect("fits");
    let monotonic = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    ns(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")) - ns(monotonic.into())
}

/// What both agents tell of each request.
fn requests(cluster: &Cluster) -> Vec<Request> {
    let text = cluster.ask(&["requests", "-n", "default", "--instants"]).well();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
}

/// Instants of several nodes are told on one timeline, by the wall clock; it is as good as the time that messages take between them. The
/// middle of a request is a place that such an error does not move it out of.
fn on_this_clock(requests: &[Request], ahead: i128) -> Vec<Request> {
    let middle = |a: u64, b: u64| u64::try_from(i128::from(a.midpoint(b)) - ahead).expect("after boot");
    let mut moved = requests.to_vec();
    for request in &mut moved {
        let way = &mut request.crossings;
        if let Some(sent) = way.request.get_mut("clientLoopback")
            && let (Some(from), Some(to)) = (sent.send_ns, way.response.get("clientLoopback").and_then(|c| c.ready_ns))
        {
            sent.send_ns = Some(middle(from, to));
        }
        let asked = way.request.get("serverLoopback").and_then(|c| c.ready_ns);
        if let Some(answer) = way.response.get_mut("serverLoopback")
            && let (Some(from), Some(to)) = (asked, answer.send_ns)
        {
            answer.send_ns = Some(middle(from, to));
        }
    }
    moved
}

/// Everything that is asserted of what was joined across the nodes.
fn assert_right(what: &str, requests: &[Request], truth: &Truth, ahead: i128) {
    let judgement = judge(&on_this_clock(requests, ahead), truth);
    println!("{what}: {} requests, of {} both ends are known", requests.len(), judgement.judged);
    assert!(judgement.judged > 300, "{what}: too little was judged: {}", judgement.judged);
    assert!(judgement.wrong.is_empty(), "{what}: wrong joins: {:?}", judgement.wrong);
    assert!(judgement.unknown.is_empty(), "{what}: full requests that never were: {:?}", judgement.unknown);
    assert!(judgement.inexact.is_empty(), "{what}: inexact sums: {:?}", judgement.inexact);
    assert!(judgement.wrong_parents.is_empty(), "{what}: wrong callers: {:?}", judgement.wrong_parents);
}

/// When the client's application sent a request, by the wall clock in ns.
fn sent(request: &Request) -> Option<i128> {
    request.crossings.request.get("clientLoopback")?.send_ns.map(i128::from)
}

fn wall_now() -> i128 {
    i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()).expect("fits")
}

#[test]
fn two_nodes_tell_of_requests_between_them() {
    if !privileged() {
        return;
    }
    let (plane, lab) = std::thread::scope(|scope| {
        let plane = scope.spawn(installed);
        let lab = Lab::up("nodes", &LabOptions::default());
        (plane.join().expect("a control plane"), lab)
    });
    let ahead = wall_ahead();
    let pods = lab.pods();
    let (later, first): (Vec<&PodLine>, Vec<&PodLine>) = pods.iter().partition(|p| p.workload == LATER);
    let later = later[0];
    let placed: Vec<(&PodLine, &str)> = first.iter().map(|p| (*p, cluster::NODES[node_of(p)].0)).collect();
    register(plane, &placed);
    let service = LocalService::start(lab.als_port);
    let mut cluster = Cluster::start(plane);
    let put = |pod: &PodLine, cluster: &Cluster| {
        service.put(IpAddr::V4(pod.ip), cluster.nodes[node_of(pod)].als());
    };
    first.iter().for_each(|p| put(p, &cluster));

    // A pod that comes later is traced from when the API tells of it, before its sidecar said a word.
    let watches = |cluster: &Cluster| {
        let inode = format!("\"netns\":{}", later.netns_inode);
        cluster.nodes[1].said().lines().any(|l| l.contains("watching another network namespace") && l.contains(&inode))
    };
    assert!(!watches(&cluster), "it is traced before it is there");
    register(plane, &[(later, cluster.nodes[1].name)]);
    cluster.until("the pod that came later is traced", || watches(&cluster));
    put(later, &cluster);
    assert!(!cluster.nodes[0].said().contains("watching another"), "the other node has nothing to do with it");

    // Envoys that found nobody to log to ask again after a while: until all do, their entries are lost.
    let streams = |cluster: &Cluster| -> Vec<f64> {
        cluster.nodes.iter().map(|n| n.metric(plane, "meshdiff_als_streams_open")).collect()
    };
    let all_log = |cluster: &Cluster, lab: &Lab| {
        let on = |node| pods.iter().filter(|p| p.meshed && node_of(p) == node).count() as f64;
        cluster.until("all sidecars' log streams", || {
            drop(lab.load(&["--rate", "20", "--duration", "1s"]));
            let open = streams(cluster);
            open[0] >= on(0) && open[1] >= on(1)
        });
    };
    all_log(&cluster, &lab);

    // Requests within nodes and between them, all of them whole.
    let began = wall_now();
    let load = lab.load(&["--rate", "40", "--duration", "4s"]);
    assert_eq!(load.ok(), load.requests(), "the mesh itself must work");
    let ended = wall_now();
    let whole = |list: &[Request]| {
        let of_load = |r: &&Request| sent(r).is_some_and(|at| at >= began && at <= ended);
        let list: Vec<&Request> = list.iter().filter(of_load).collect();
        (list.iter().filter(|r| r.coverage.full).count(), list.len())
    };
    let pages = usize::try_from(load.requests()).expect("few");
    // An agent's last seconds are not reported yet, and Envoy's entries come late.
    let mut found = Vec::new();
    cluster.until("the load's requests", || {
        found = requests(&cluster);
        let (full, all) = whole(&found);
        all >= pages * 3 && full * 100 >= all * 98
    });
    let (full, all) = whole(&found);
    let mut between: BTreeMap<String, usize> = BTreeMap::new();
    let node_of_name: BTreeMap<&str, usize> = pods.iter().map(|p| (p.pod.as_str(), node_of(p))).collect();
    for request in found.iter().filter(|r| r.coverage.full) {
        let node = |pod: &Option<String>| pod.as_deref().and_then(|p| node_of_name.get(p).copied());
        if let (Some(a), Some(b)) = (node(&request.client.pod), node(&request.server.pod)) {
            *between.entry(format!("{a} to {b}")).or_default() += 1;
        }
    }
    println!("{full} of {all} requests of the load are full; by node: {between:?}");
    assert!(
        ["0 to 0", "0 to 1", "1 to 1"].iter().all(|way| between.get(*way).is_some_and(|n| *n >= 20)),
        "{between:?}"
    );
    let (report, said) = cluster.report();
    assert!(report["coverage"]["full"].as_u64() >= Some(full as u64), "{}", report["coverage"]);
    assert!(!said.contains("was killed"), "{said}");

    // Killed in the middle of traffic; then the API server is away for a while, which no agent needs to go on. (An agent that begins without
    // it traces every sidecar that it finds, which here would be the other node's as well.)
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| lab.load(&["--rate", "30", "--duration", "8s"]));
        let seen = cluster.nodes[0].metric(plane, "meshdiff_kernel_events_total");
        cluster
            .until("more events", || cluster.nodes[0].metric(plane, "meshdiff_kernel_events_total") > seen + 3_000.0);
        cluster.kill_and_start_again(1);
        plane.take_api_server_away();
        cluster.ask(&["report", "-n", "default"]).says(1, &["API server"]);
        plane.bring_api_server_back();
        drop(loading.join().expect("the load ran"));
    });
    all_log(&cluster, &lab);
    let mark = wall_now();
    drop(lab.load(&["--rate", "30", "--duration", "2s"]));
    let mut after = Vec::new();
    cluster.until("requests after the restart", || {
        after = requests(&cluster);
        let late: Vec<&Request> = after.iter().filter(|r| sent(r).is_some_and(|at| at >= mark)).collect();
        late.len() >= 150 && late.iter().filter(|r| r.coverage.full).count() * 100 >= late.len() * 98
    });
    let (report, said) = cluster.report();
    // One that is killed while it closes a segment leaves none that is cut short; that another agent went on is said all the same.
    let notes = report["coverage"].to_string();
    let agents = || cluster.nodes.iter().map(cluster::Node::said).collect::<Vec<_>>();
    assert!(
        notes.contains("was killed") || notes.contains("an agent ended"),
        "the gap is said: {} {said} {:#?}",
        report["coverage"],
        agents()
    );
    assert!(report["coverage"]["requests"].as_u64() > Some(all as u64), "{}", report["coverage"]);

    let truth = lab.down();
    assert_right("before the kill", &found, &truth, ahead);
    assert_right("after it", &after, &truth, ahead);
}
