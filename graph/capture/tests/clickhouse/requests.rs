//! Requests in the store: halves of two nodes joined, and everything summed up there, against what was put in.

use super::{HOUR, options, segment, url};
use meshdiff_capture::Capture;
use meshdiff_capture::clickhouse::{
    Choice, Cut, Doubts, Found, HalfRow, JoinedRequests, RequestKind, RequestRow, Shipper, Split, Store, Why,
    capture_id,
};
use meshdiff_model::{Detail, DurationNs, Segment, SegmentMap, WallTime};
use std::path::Path;

/// When the captures of these tests begin.
const BEGIN: i64 = 1_790_000_000_000_000_000;

fn times(list: &[(Segment, i64)]) -> SegmentMap {
    let mut map = SegmentMap::empty();
    list.iter().for_each(|&(s, t)| map.set(s, DurationNs(t)));
    map
}

fn workload(name: &str) -> String {
    format!(r#"{{"namespace":"{name}-ns","workload":"{name}","pod":null,"address":null,"source":"als"}}"#)
}

/// The `i`th request from one workload to another, told whole by one node.
fn whole(i: i64, client: &str, server: &str) -> RequestRow {
    RequestRow {
        id: format!("{client}-{server}-{i}"),
        parent: None,
        kind: RequestKind::Request("full"),
        reason: None,
        start: WallTime(BEGIN + i * 1_000_000),
        client: workload(client),
        server: workload(server),
        service: Some("it's".into()),
        client_namespace: Some(format!("{client}-ns")),
        server_namespace: Some(format!("{server}-ns")),
        protocol: "http/1.1".into(),
        response_code: if i % 3 == 0 { 503 } else { 200 },
        total: DurationNs(100 + i),
        split: Split {
            segments: times(&[(Segment::ClientSidecar, 40), (Segment::Network, 10 + i), (Segment::ServerApp, 50)]),
            details: vec![
                (Segment::ClientSidecar, Detail::Queue, DurationNs(0)),
                (Segment::ServerApp, Detail::SelfTime, DurationNs(50)),
            ],
        },
        client_seen: true,
        calls_whole: true,
        line: format!("{{\"line\":{i}}}"),
        half: None,
    }
}

/// The same, as the two nodes tell it.
fn halves(i: i64, client: &str, server: &str) -> [RequestRow; 2] {
    let request = whole(i, client, server);
    let half = |client: bool, inside: i64, list: &[(Segment, i64)], detail| HalfRow {
        client,
        flow: "10.0.0.1:4000".into(),
        key: format!("10.0.0.1:4000#{}", 7_000 + i),
        shared: false,
        alike: String::new(),
        answer_end: 9_000,
        inside: DurationNs(inside),
        came_at_once: true,
        sent_at_once: false,
        plain: true,
        request_id: Some(format!("request {i}")),
        method: Some("GET".into()),
        split: Split { segments: times(list), details: vec![detail] },
    };
    let details = &request.split.details;
    let ours = half(true, 60 + i, &[(Segment::ClientSidecar, 40)], details[0]);
    let theirs = half(false, 50, &[(Segment::ServerApp, 50)], details[1]);
    let alone = |kind, reason: &str, id: &str, half: HalfRow| RequestRow {
        id: id.into(),
        kind: RequestKind::Request(kind),
        reason: Some(reason.into()),
        half: Some(half),
        split: Split::default(),
        ..request.clone()
    };
    let unnamed = workload("nobody");
    [
        RequestRow { server: unnamed.clone(), ..alone("partial_client", "server_log_missing", &request.id, ours) },
        RequestRow {
            client: unnamed,
            service: None,
            ..alone("partial_server", "client_log_missing", &format!("s4-{i}"), theirs)
        },
    ]
}

/// Stores a capture of a node with requests, joined with nothing but itself.
fn ship(store: &str, capture: &Path, node: &str, rows: Vec<RequestRow>) {
    let spool = tempfile::tempdir().expect("a folder");
    let mut options = options(store, spool.path());
    options.node = Some(node.to_owned());
    let shipper = Shipper::start(options).expect("starts");
    let with = vec![capture_id(Capture::open(capture).expect("opens").meta())];
    shipper.add_with(capture, Some(&JoinedRequests { with, rows })).expect("taken");
    assert_eq!(shipper.finish(super::PATIENCE).stored, 1);
}

fn found(store: &Store) -> Found {
    store.find(&Choice { since: HOUR, namespace: None }).expect("found")
}

/// What a report has of the requests, as text.
fn sums(store: &Store, found: &Found, cut: &Cut) -> String {
    let entries = store.entries(found, cut).expect("entries");
    let stretches: Vec<_> = entries.iter().map(|e| store.stretches(found, cut, e).expect("stretches")).collect();
    let slowest = store.slowest(found, cut).expect("slowest");
    let slowest: Vec<_> = slowest.iter().map(|s| (&s.line, &s.parent, &s.times, &s.detail_ns)).collect();
    format!(
        "{:?}\n{:?}\n{entries:?}\n{stretches:?}\n{slowest:?}",
        store.counts(found, cut).expect("counts"),
        store.hops(found, cut).expect("hops"),
    )
}

/// Two nodes' halves are summed up as what one node would have told of the same requests.
pub(crate) fn halves_are_joined(server: &super::Server) {
    let dir = tempfile::tempdir().expect("a folder");
    let [one, two] = ["one", "two"].map(|name| {
        let url_of = server.database(name);
        let store = Store::open(url(&url_of)).expect("opens");
        store.create_tables().expect("made");
        (url_of, store)
    });
    // 250 requests, so that there are some near the 99th percentile; one in ten calls another.
    let called = |i: i64| RequestRow {
        parent: Some(format!("a-b-{i}")),
        total: DurationNs(20),
        split: Split { segments: times(&[(Segment::ServerApp, 20)]), details: vec![] },
        ..whole(i, "b", "c")
    };
    let wholes: Vec<RequestRow> = (0..250).map(|i| whole(i, "a", "b")).chain((0..25).map(|i| called(i * 10))).collect();
    let a = segment(dir.path(), 0, 30, 0..1);
    ship(&one.0, &a, "a", wholes);
    let first: Vec<RequestRow> = (0..250).map(|i| halves(i, "a", "b")[0].clone()).collect();
    let second: Vec<RequestRow> = (0..250)
        .map(|i| halves(i, "a", "b")[1].clone())
        .chain((0..25).map(|i| RequestRow { parent: Some(format!("s4-{}", i * 10)), ..called(i * 10) }))
        .collect();
    ship(&two.0, &a, "a", first.clone());
    let b = other_node(&segment(&dir.path().join("b"), 0, 30, 0..1));
    ship(&two.0, &b, "b", second);

    let [one, two] = [one, two].map(|(url, store)| (found(&store), store, url));
    let ns = |name: &str| Cut { namespace: Some(name.into()), ..Cut::default() };
    let late =
        Cut { from: Some(WallTime(BEGIN + 100_000_000)), until: Some(WallTime(BEGIN + 200_000_000)), ..Cut::default() };
    for cut in [Cut::default(), ns("a-ns"), ns("c-ns"), ns("o'ther"), late] {
        assert_eq!(one.1.why_not(&one.0, &cut).expect("asked"), None, "{cut:?}");
        assert_eq!(two.1.why_not(&two.0, &cut).expect("asked"), None, "{cut:?}");
        let told = sums(&one.1, &one.0, &cut);
        assert_eq!(sums(&two.1, &two.0, &cut), told, "{cut:?}");
    }
    let all = Cut::default();
    let counts = one.1.counts(&one.0, &all).expect("counts");
    assert_eq!((counts.len(), counts[0].requests, counts[0].seen), (1, 275, 275));
    let (hops, near) = one.1.hops(&one.0, &all).expect("hops");
    assert_eq!(hops.len(), 2);
    let hop = hops.iter().find(|h| h.client == workload("a")).expect("from a");
    assert_eq!(
        (hop.requests, hop.n, &hop.codes[..], &hop.code_counts[..]),
        (250, 250, &[200, 503][..], &[166, 84][..])
    );
    // 100 … 349: sum, sum of squares, nearest ranks.
    assert_eq!(hop.total, [56_125, 13_902_125, 224, 324, 347, 349].map(|n: i64| n.to_string()));
    assert_eq!(hop.detail_names, ["client_sidecar.queue", "server_app.self"]);
    assert_eq!(hop.detail_sums, [0, 250 * 50], "a part that took no time is there all the same");
    let near = near.iter().find(|n| n.per_mille == 990).expect("near the 99th percentile");
    assert_eq!((near.n, near.total.as_str()), (5, "1735"), "347, and two on each side");
    let entries = one.1.entries(&one.0, &all).expect("entries");
    assert!(entries.iter().all(|e| e.whole));
    let slowest = two.1.slowest(&two.0, &all).expect("slowest");
    assert_eq!(slowest.iter().filter(|s| s.parent.is_empty()).count(), 20);
    assert_eq!(slowest[0].line, "{\"line\":249}");
    assert_eq!(slowest[0].server_line, "{\"line\":249}");

    // Sent again, nothing counts twice.
    ship(&two.2, &a, "a", first.clone());
    assert_eq!(sums(&two.1, &found(&two.1), &all), sums(&one.1, &one.0, &all));
    doubts(server, &a, &b);
}

/// What is not certain is said, and how often.
fn doubts(server: &super::Server, a: &Path, b: &Path) {
    let doubts = |name: &str, change: &dyn Fn(&mut Vec<RequestRow>, &mut Vec<RequestRow>)| {
        let url_of = server.database(name);
        let store = Store::open(url(&url_of)).expect("opens");
        store.create_tables().expect("made");
        let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (0..10).map(|i| <(_, _)>::from(halves(i, "a", "b"))).unzip();
        change(&mut ours, &mut theirs);
        ship(&url_of, a, "a", ours);
        ship(&url_of, b, "b", theirs);
        match store.why_not(&found(&store), &Cut::default()).expect("asked") {
            Some(Why::Doubts(doubts)) => doubts,
            other => panic!("{name}: {other:?}"),
        }
    };
    let half = |row: &mut RequestRow, change: &dyn Fn(&mut HalfRow)| change(row.half.as_mut().expect("half"));
    let pair = Doubts { pairs: 1, ..Doubts::default() };
    assert_eq!(doubts("pieces", &|ours, _| half(&mut ours[3], &|h| h.plain = false)), pair);
    assert_eq!(doubts("ids", &|_, theirs| half(&mut theirs[3], &|h| h.request_id = Some("x".into()))), pair);
    assert_eq!(doubts("answers", &|_, theirs| half(&mut theirs[3], &|h| h.answer_end = 1)), pair);
    assert_eq!(doubts("late", &|ours, _| half(&mut ours[3], &|h| h.came_at_once = false)), pair);
    let several = doubts("several", &|ours, _| {
        let again = ours[3].clone();
        ours.push(RequestRow { id: "another".into(), ..again });
    });
    assert_eq!(several.several, 1);
    let lonely = doubts("lonely", &|ours, theirs| {
        ours.remove(2);
        theirs.remove(5);
    });
    assert_eq!((lonely.lonely, lonely.pairs), (1, 0));
    let nowhere = doubts("nowhere", &|ours, _| half(&mut ours[1], &|h| h.key = String::new()));
    assert_eq!(nowhere.nowhere, 1);
}

/// The capture as another node would have made it.
fn other_node(capture: &Path) -> std::path::PathBuf {
    let file = capture.join("meta.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
    meta["host"]["bootId"] = "another boot".into();
    std::fs::write(&file, serde_json::to_vec(&meta).expect("JSON")).expect("written");
    assert_eq!(Capture::open(capture).expect("opens").meta().host.boot_id, "another boot");
    capture.to_owned()
}
