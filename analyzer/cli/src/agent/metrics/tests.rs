//! What Prometheus sees.

use super::*;
use crate::agent::live::{LiveCounters, pair};
use crate::agent::window::tests::fixture;
use meshdiff_analyzer::{AttributedRequest, attribute_all};
use meshdiff_capture::CaptureData;
use meshdiff_graph::{HopInput, MeshGraph};
use meshdiff_model::{ClockSample, MonotonicNs, WallTime};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn whole(data: &CaptureData) -> Vec<AttributedRequest> {
    let directory = crate::analysis::ByProxies::of(&data.proxies);
    let end = data.meta.end.expect("it was ended").monotonic;
    let input = HopInput {
        sockets: &data.sockets,
        messages: &data.messages,
        http2: &data.http2_streams,
        access_logs: &data.access_logs,
        clock: &data.meta.clock,
        window: (data.meta.start.monotonic, end),
    };
    let mesh = MeshGraph::build(input, &[], &directory);
    attribute_all(&mesh, &directory, &data.meta.clock).0
}

fn text(registry: &Registry) -> String {
    let (content_type, body) = render(registry, "text/plain").expect("rendered");
    assert!(content_type.starts_with("application/openmetrics-text"));
    String::from_utf8(body).expect("UTF-8")
}

/// The sum of a metric's values over series that have all of these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &&str| line.starts_with(&format!("{name}{{")) && labels.iter().all(|l| line.contains(l));
    text.lines().filter(of).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What an agent counts that gets a recording as it happened: by turns, what ended in each with its end, log entries a second later.
fn counted_by_turns(data: &CaptureData, turn: u64) -> String {
    let mut registry = Registry::default();
    let metrics = Arc::new(RequestMetrics::new(&mut registry));
    let counters = Arc::new(LiveCounters::default());
    let start = data.meta.start.monotonic;
    let end = data.meta.end.expect("it was ended").monotonic;
    let wall = |at: MonotonicNs| data.meta.clock.to_wall(at).expect("a clock");
    let sample = |at: MonotonicNs| ClockSample { monotonic: at, wall: wall(at) };
    let (mut tap, join) = pair(metrics, Arc::clone(&counters), None, sample(start));
    let joining = std::thread::spawn(move || join.run());
    data.proxies.iter().for_each(|p| tap.proxy(p));
    // Nobody hands on what has not happened yet.
    let mut from = MonotonicNs(0);
    let mut to = start;
    while from.0 < end.0 + 14_000_000_000 {
        let turn_of = from..to;
        data.sockets.iter().filter(|s| turn_of.contains(&s.first_seen)).for_each(|s| {
            // As assembly tells of it first; what became of it is told 10 s later.
            let open = meshdiff_model::Socket { last_seen: s.first_seen, closed: None, close: None, ..s.clone() };
            tap.socket(&open);
        });
        let is_told = |m: &&meshdiff_model::Message| turn_of.contains(&m.last_instant().unwrap_or(start));
        data.messages.iter().filter(is_told).for_each(|m| tap.message(m));
        data.http2_streams.iter().filter(|s| turn_of.contains(&s.last.at)).for_each(|s| tap.http2(s));
        let mut entries = meshdiff_model::LogBatchBuilder::default();
        for log in &data.access_logs {
            let over = log.start_time.0 + log.timings.extent().unwrap_or_default().0 + 1_000_000_000;
            if (wall(turn_of.start)..wall(turn_of.end)).contains(&WallTime(over)) {
                entries.push(log);
            }
        }
        tap.access_logs(&entries.take());
        tap.hand_on_waiting(sample(to));
        (from, to) = (to, MonotonicNs(to.0 + turn));
    }
    drop(tap);
    joining.join().expect("the join lives");
    assert_eq!(counters.shed_rows.load(Relaxed), 0);
    text(&registry)
}

/// What all requests of a recording, joined at once, make of the same metrics.
fn counted_at_once(requests: &[AttributedRequest]) -> String {
    let mut registry = Registry::default();
    let metrics = RequestMetrics::new(&mut registry);
    requests.iter().for_each(|r| metrics.observe(r));
    text(&registry)
}

/// Asserts that two texts have the same series with the same values.
fn assert_equal(by_turns: &str, at_once: &str, what: &str) {
    let series = |text: &str| -> std::collections::BTreeMap<String, f64> {
        let lines = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.rsplit_once(' '));
        lines.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
    };
    let (mut left, right) = (series(by_turns), series(at_once));
    assert!(right.len() > 100, "{what}: {}", right.len());
    let mut wrong = Vec::new();
    for (name, expected) in &right {
        // Sums of seconds are added up in another order.
        match left.remove(name) {
            Some(got) if (got - expected).abs() <= 1e-9 * expected.abs().max(1.0) => {}
            got => wrong.push(format!("{name} is {got:?}, not {expected}")),
        }
    }
    wrong.extend(left.iter().map(|(name, got)| format!("{name} is {got}, and should not be")));
    // What was counted says most of it.
    wrong.sort_by_key(|w| !w.starts_with("meshdiff_requests_total"));
    assert!(wrong.is_empty(), "{what}: {} series differ:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

/// What a node sees of a recording that has only some of the pods, by turns every second one.
fn half_of(data: &CaptureData) -> CaptureData {
    let all: std::collections::BTreeSet<_> = data.sockets.iter().map(|s| s.netns).collect();
    let here: std::collections::BTreeSet<_> = all.into_iter().step_by(2).collect();
    let mut half = data.clone();
    half.sockets.retain(|s| here.contains(&s.netns));
    let cookies: std::collections::HashSet<_> = half.sockets.iter().map(|s| s.cookie).collect();
    let addresses: std::collections::HashSet<_> = half.sockets.iter().map(|s| s.local.ip().to_string()).collect();
    half.messages.retain(|m| cookies.contains(&m.socket));
    half.http2_streams.retain(|s| cookies.contains(&s.socket));
    half.access_logs.retain(|l| l.node.0.split('~').nth(1).is_some_and(|ip| addresses.contains(ip)));
    half
}

#[test]
fn each_request_is_counted_once_however_the_recording_is_cut() {
    let data = fixture();
    let all = whole(&data);
    let full = all.iter().filter(|r| r.coverage.is_full()).count() as f64;
    assert!(full > 400.0, "{full}");
    let at_once = counted_at_once(&all);
    assert_eq!(sum(&at_once, "meshdiff_requests_total", &["coverage=\"full\""]), full);
    for turn in [2_000, 700, 500] {
        assert_equal(&counted_by_turns(&data, turn * 1_000_000), &at_once, &format!("turns of {turn} ms"));
    }
    assert!(
        at_once
            .contains("client_workload=\"productpage-v1\",server_namespace=\"default\",server_workload=\"details-v1\""),
        "{at_once}"
    );
}

#[test]
fn a_node_that_sees_one_end_of_most_requests_counts_them_as_well() {
    let half = half_of(&fixture());
    let all = whole(&half);
    assert!(all.len() > 300 && all.iter().any(|r| !r.coverage.is_full()), "{}", all.len());
    let at_once = counted_at_once(&all);
    let counts = |text: &str, of: &str| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().filter(|l| l.starts_with(of)).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for turn in [2_000, 500] {
        let by_turns = counted_by_turns(&half, turn * 1_000_000);
        let requests = "meshdiff_requests_total{";
        assert_eq!(counts(&by_turns, requests), counts(&at_once, requests), "turns of {turn} ms");
        // Where nobody here decrypts and the other end is elsewhere, what is the second request on a connection is told by what was the
        // first, which is gone by then: such a one may be timed by its log alone.
        let timed = |text: &str| sum(text, "meshdiff_request_duration_seconds_count", &["vantage=\"als\""]);
        let more = timed(&by_turns) - timed(&at_once);
        assert!((0.0..=all.len() as f64 / 50.0).contains(&more), "turns of {turn} ms: {more} of {}", all.len());
    }
}

#[test]
fn there_is_an_end_to_the_series_that_hostile_names_make() {
    let data = fixture();
    let mut request = whole(&data).into_iter().find(|r| r.coverage.is_full()).expect("a full request");
    let mut registry = Registry::default();
    let metrics = RequestMetrics::new(&mut registry);
    for i in 0..600 {
        request.client.workload = Some(format!("w{i}\"}} 1\n# EOF\n{}", "x".repeat(1_000)));
        metrics.observe(&request);
    }
    let text = text(&registry);
    assert_eq!(sum(&text, "meshdiff_requests_total", &[]), 600.0);
    assert_eq!(sum(&text, "meshdiff_requests_total", &["client_workload=\"other\""]), 100.0);
    assert_eq!(text.matches("# EOF").count() - text.matches("1# EOF").count(), 1);
    assert!(text.lines().all(|l| l.len() < 1_000));
    assert!(text.contains("meshdiff_requests_of_other_hops_total 100"));
}

#[test]
fn native_histograms_are_for_who_takes_protobuf() {
    let data = fixture();
    let mut registry = Registry::default();
    let metrics = RequestMetrics::new(&mut registry);
    whole(&data).iter().take(50).for_each(|r| metrics.observe(r));
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5";
    let (content_type, body) = render(&registry, accept).expect("rendered");
    assert!(content_type.starts_with("application/vnd.google.protobuf"));
    let name = b"meshdiff_request_segment_duration_seconds";
    assert!(body.windows(name.len()).any(|w| w == name));
    assert!(text(&registry).contains("meshdiff_request_duration_seconds_bucket{"));
}
