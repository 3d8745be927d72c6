//! A report from ClickHouse is the report from the folder: the same numbers of the same data, however it was cut and chosen.

#[path = "../../../../tests/clickhouse/server.rs"]
#[expect(dead_code, reason = "other tests look at what the server saw")]
mod server;

use crate::support::{fixture, meshdiff};
use meshdiff_capture::{Capture, CaptureData, CaptureSink, CaptureWriter, Meta, WriterOptions};
use meshdiff_model::{
    ClockAnchor, ClockSample, DropReason, DurationNs, Message, MonotonicNs, NetnsId, ProbeStats, SocketMetrics,
};
use serde_json::Value;
use server::Server;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The report as JSON, without what says where it is from and when it was made.
fn report(args: &[&str]) -> (Value, String) {
    let ended = meshdiff(Path::new("/"), &[&["report", "--format=json", "-v"], args].concat()).says(0, &[]);
    let mut json: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let meta = json["meta"].as_object_mut().expect("an object");
    meta.remove("generated").expect("when");
    meta.remove("source").expect("where from");
    (json, ended.stderr)
}

fn requests(args: &[&str]) -> String {
    meshdiff(Path::new("/"), &[&["requests", "--instants"], args].concat()).says(0, &[]).stdout
}

/// The recording of the repository, with metrics (it was made before there were any), and each workload in a namespace of its own.
fn synthetic() -> CaptureData {
    let mut data = Capture::open(fixture()).expect("opens").read().expect("read");
    for proxy in &mut data.proxies {
        proxy.namespace = proxy.workload.clone();
    }
    for (i, socket) in data.sockets.iter().enumerate() {
        let span = socket.last_seen.0 - socket.first_seen.0;
        for part in 0..3u64 {
            let at = MonotonicNs(socket.first_seen.0 + span * part / 2);
            let mut row = SocketMetrics::at(socket.cookie, at);
            (row.write.calls, row.write.bytes) = (1 + part, 100 * i as u64);
            row.write.record_duration(DurationNs(1_000 * (1 + i as i64)), None);
            row.read.calls = 2;
            row.read.record_duration(DurationNs(9_000), Some(DurationNs(i as i64 * 10)));
            row.rtt.record(40_000 + i as u64);
            if i % 7 == 0 {
                row.drops.insert(DropReason("TCP_CSUM".into()), part + 1);
            }
            data.metrics.push(row);
        }
    }
    data
}

fn write(dir: PathBuf, meta: Meta, data: &CaptureData) -> PathBuf {
    let options = WriterOptions { sync: false, ..WriterOptions::default() };
    let mut writer = CaptureWriter::create(&dir, &meta, options).expect("created");
    data.sockets.iter().for_each(|r| writer.write_socket(r.clone()).expect("written"));
    data.messages.iter().for_each(|r| writer.write_message(r.clone()).expect("written"));
    data.metrics.iter().for_each(|r| writer.write_metrics(r.clone()).expect("written"));
    data.access_logs.iter().for_each(|r| writer.write_access_log(r.clone()).expect("written"));
    data.proxies.iter().for_each(|r| writer.write_proxy(r.clone()).expect("written"));
    data.processes.iter().for_each(|r| writer.write_process(r.clone()).expect("written"));
    writer.finish(meta).expect("finished");
    dir
}

/// When the last instant of a message was.
fn last(message: &Message) -> MonotonicNs {
    let lists = [&message.sends, &message.readies, &message.recvs];
    lists.into_iter().flat_map(|l| l.iter()).map(|i| i.at).max().unwrap_or_default()
}

/// What an agent would have made of it: captures that follow each other, sockets and proxies told again in each.
fn segments(folder: &Path, data: &CaptureData, count: u64) -> Vec<PathBuf> {
    let (start, end) = (data.meta.start, data.meta.end.expect("it was ended"));
    let wall = |at| data.meta.clock.to_wall(at).expect("a clock");
    let at = |i: u64| match i {
        0 => start,
        i if i == count => end,
        i => {
            let monotonic = MonotonicNs(start.monotonic.0 + (end.monotonic.0 - start.monotonic.0) * i / count);
            ClockSample { monotonic, wall: wall(monotonic) }
        }
    };
    (0..count)
        .map(|i| {
            let (from, to) = (at(i), at(i + 1));
            let within = |t: MonotonicNs| (i == 0 || t >= from.monotonic) && (i + 1 == count || t < to.monotonic);
            let mut part = data.clone();
            part.messages.retain(|m| within(last(m)));
            part.metrics.retain(|m| within(m.window_start));
            part.access_logs.retain(|l| data.meta.clock.to_monotonic(l.start_time).is_none_or(within));
            part.sockets.retain(|s| s.first_seen < to.monotonic || i + 1 == count);
            let mut meta = data.meta.clone();
            (meta.start, meta.end) = (from, Some(to));
            let samples = data.meta.clock.samples().iter().copied().filter(|s| within(s.monotonic));
            meta.clock = ClockAnchor::new(samples.collect());
            if i > 0 {
                // The counters are those of the segment.
                meta.probes.stats = ProbeStats::default();
                meta.events = Default::default();
                meta.als = Default::default();
            }
            write(folder.join(format!("segment-{i}")), meta, &part)
        })
        .collect()
}

fn store(server: &Server, database: &str, captures: &[(&Path, &[&str])]) -> String {
    let url = server.database(database);
    meshdiff(Path::new("/"), &["store", "--create", "--store", &url]).says(0, &["The tables are there"]);
    for (capture, more) in captures {
        let args = [&["store", path(capture), "--patience=120s", "--store", &url], *more].concat();
        meshdiff(Path::new("/"), &args).says(0, &["Stored"]);
    }
    url
}

/// One server for all of it: starting the engine takes longer than what is asked of it.
#[test]
fn reports_from_clickhouse() {
    if server::left_out() {
        return;
    }
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let data = synthetic();
    let whole = write(folder.path().join("whole"), data.meta.clone(), &data);
    the_recording_of_the_repository(&server);
    every_namespace_and_time(&server, &whole);
    segments_of_an_agent(&server, folder.path(), &data, &whole);
    two_nodes(&server, folder.path(), &data);
    what_is_wrong_is_said(&server);
}

fn the_recording_of_the_repository(server: &Server) {
    let capture = fixture();
    let url = store(server, "fixture", &[(&capture, &[])]);
    let (embedded, _) = report(&["--capture", path(&capture)]);
    let (stored, log) = report(&["--store", &url]);
    assert_eq!(stored, embedded);
    assert!(!log.contains("s3cret"), "{log}");
    let lines = requests(&["--capture", path(&capture)]);
    assert!(lines.lines().count() > 100);
    assert_eq!(requests(&["--store", &url]), lines);
}

fn every_namespace_and_time(server: &Server, whole: &Path) {
    let url = store(server, "namespaces", &[(whole, &[])]);
    let (all, _) = report(&["--capture", path(whole)]);
    let hops = all["hops"].as_array().expect("hops").iter();
    let namespaces: BTreeSet<&str> =
        hops.flat_map(|h| [&h["client"], &h["server"]]).filter_map(|w| w["namespace"].as_str()).collect();
    assert!(namespaces.len() >= 6, "{namespaces:?}");
    assert!(all["connections"].as_array().is_some_and(|c| !c.is_empty()));
    // Each is asked for once; ends of the call tree, of which most of it is far away, in both ways.
    for &namespace in &namespaces {
        let far = ["ratings-v1", "details-v1", "loadgen"].contains(&namespace);
        let more: &[&str] = if namespace == "ratings-v1" { &["--since=2s"] } else { &[] };
        let more = [&["--namespace", namespace][..], more].concat();
        let (embedded, _) = report(&[&["--capture", path(whole)], &more[..]].concat());
        let (stored, log) = report(&[&["--store", &url], &more[..]].concat());
        assert!(is_summed(&log), "{namespace}: {log}");
        assert_eq!(stored, embedded, "{more:?}");
        if far {
            let (stored, log) = report(&[&["--join-here", "--store", &url], &more[..]].concat());
            assert_eq!(stored, embedded, "{more:?}");
            assert!(fewer(&log), "rows of pods far from {namespace} stay in the store: {log}");
        }
    }
    let lines = requests(&["--capture", path(whole), "--namespace", "ratings-v1"]);
    assert!(lines.lines().count() > 20);
    assert_eq!(requests(&["--store", &url, "--namespace", "ratings-v1"]), lines);
    let (embedded, _) = report(&["--capture", path(whole), "--since=3s"]);
    let (stored, log) = report(&["--store", &url, "--since=3s"]);
    assert!(is_summed(&log), "{log}");
    assert_eq!(stored, embedded);
    let (stored, log) = report(&["--store", &url]);
    assert!(is_summed(&log), "{log}");
    assert_eq!(stored, all);
    // A namespace that nobody has: the same answer, from all of the data.
    let args = ["report", "--namespace", "no'where"];
    let embedded = meshdiff(Path::new("/"), &[&args[..], &["--capture", path(whole)]].concat()).says(4, &["no'where"]);
    let stored = meshdiff(Path::new("/"), &[&args[..], &["--store", &url]].concat()).says(4, &["no'where"]);
    let after = |text: &str| text.split_once("has an end").expect("a sentence").1.to_owned();
    assert_eq!(after(&stored.stderr), after(&embedded.stderr));
}

/// True if the report was summed up in the store, by what `-v` says.
fn is_summed(log: &str) -> bool {
    log.contains("summed up in the store requests=") || log.contains("requests were summed up in the store")
}

/// True if messages were left in the store, by what `-v` says.
fn fewer(log: &str) -> bool {
    let number = |name: &str| {
        let at = log.split_once(&format!("{name}="))?.1;
        at.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
    };
    let all = Capture::open(fixture()).expect("opens").read().expect("read").messages.len();
    log.contains("pruned=true") && number("messages").is_some_and(|n| n < all)
}

fn segments_of_an_agent(server: &Server, folder: &Path, data: &CaptureData, whole: &Path) {
    let segments = segments(&folder.join("segments"), data, 3);
    let url = store(
        server,
        "segments",
        &[(&segments[2], &[]), (&segments[0], &[]), (&segments[1], &[]), (&segments[0], &[])],
    );
    for more in [&["--namespace", "ratings-v1"][..], &["--since=4s"]] {
        let (embedded, _) = report(&[&["--capture", path(whole)], more].concat());
        let (stored, log) = report(&[&["--store", &url], more].concat());
        // Stored one by one, none was joined with what came before and after it.
        assert!(log.contains("captures=3") && !is_summed(&log), "{log}");
        assert_eq!(stored, embedded, "{more:?}");
    }
    let url = server.database("joined");
    meshdiff(Path::new("/"), &["store", "--create", "--store", &url]).says(0, &[]);
    // Given together, and the last one once more.
    let all: Vec<&str> = segments.iter().map(|s| path(s)).collect();
    for _ in 0..2 {
        let args = [&["store", "--patience=120s", "--store", &url][..], &all].concat();
        meshdiff(Path::new("/"), &args).says(0, &["Stored"]);
    }
    for more in [&[][..], &["--namespace", "ratings-v1"], &["--since=4s"]] {
        let (embedded, _) = report(&[&["--capture", path(whole)], more].concat());
        let (stored, log) = report(&[&["--store", &url], more].concat());
        assert!(is_summed(&log), "{log}");
        assert_eq!(stored, embedded, "{more:?}");
    }
}

/// Two captures that overlap are of two nodes, or one of them is left out.
fn two_nodes(server: &Server, folder: &Path, data: &CaptureData) {
    let namespaces: Vec<NetnsId> = data.sockets.iter().map(|s| s.netns).collect::<BTreeSet<_>>().into_iter().collect();
    let (one, _) = namespaces.split_at(namespaces.len() / 2);
    let addresses = |on: bool| -> BTreeSet<_> {
        let here = data.sockets.iter().filter(|s| one.contains(&s.netns) == on).map(|s| s.local.0.ip());
        here.filter(|ip| !ip.is_loopback()).collect()
    };
    let half = |name: &str, on: bool| {
        let mut part = data.clone();
        let here = addresses(on);
        part.sockets.retain(|s| one.contains(&s.netns) == on);
        let cookies: BTreeSet<_> = part.sockets.iter().map(|s| s.cookie).collect();
        part.messages.retain(|m| cookies.contains(&m.socket));
        part.metrics.retain(|m| cookies.contains(&m.socket));
        part.proxies.retain(|p| p.address.is_some_and(|a| here.contains(&a)));
        let proxies: BTreeSet<_> = part.proxies.iter().map(|p| p.node.clone()).collect();
        part.access_logs.retain(|l| proxies.contains(&l.node));
        let mut meta = data.meta.clone();
        meta.host.hostname = name.to_owned();
        meta.host.boot_id = format!("boot of {name}");
        write(folder.join(name), meta, &part)
    };
    let (a, b) = (half("node-a", true), half("node-b", false));
    let url = store(server, "nodes", &[(&b, &[]), (&a, &["--node", "node-a"])]);
    // What is made of several nodes' recordings is the business of the tests of a cluster.
    let (joined, log) = report(&["--join-here", "--store", &url]);
    assert!(log.contains("node=\"node-a\"") && log.contains("node=\"node-b\""), "{log}");
    assert!(joined["coverage"]["requests"].as_u64().is_some_and(|n| n > 100), "{}", joined["coverage"]);
    // Of this recording some pairs are not certain, and that is said; where all are, waterfalls have instants of two clocks.
    let (stored, log) = report(&["--store", &url]);
    if is_summed(&log) {
        for part in ["coverage", "verdict", "hops", "window"] {
            assert_eq!(stored[part], joined[part], "{part}");
        }
    } else {
        assert!(log.contains("it would not be certain"), "{log}");
        assert_eq!(stored, joined);
    }
}

fn what_is_wrong_is_said(server: &Server) {
    let url = server.database("empty");
    let report = |url: &str| meshdiff(Path::new("/"), &["report", "--store", url]);
    report(&url).says(1, &["meshdiff store --create"]);
    meshdiff(Path::new("/"), &["store", "--create", "--store", &url]).says(0, &[]);
    report(&url).says(4, &["holds no capture"]);
    let wrong = report(&url.replace("s3cret", "wr0ng")).says(1, &["Authentication failed", "Check user and password"]);
    assert!(!wrong.stderr.contains("wr0ng"), "{}", wrong.stderr);
    let typo = report("clickhose://re:hunter2@host/db").says(2, &["clickhouse://USER:PASSWORD@HOST"]);
    assert!(!typo.stderr.contains("hunter2"), "{}", typo.stderr);
    let capture = fixture();
    let unreachable = "clickhouse://u:hunter2@127.0.0.1:1/db";
    let args = ["store", path(&capture), "--patience=1s", "--store", unreachable];
    let away = meshdiff(Path::new("/"), &args).says(1, &["is not in the store", "no answer from 127.0.0.1:1"]);
    assert!(!away.stderr.contains("hunter2"), "{}", away.stderr);
    meshdiff(Path::new("/"), &["store", "--store", &url]).says(2, &["nothing to do"]);
}
