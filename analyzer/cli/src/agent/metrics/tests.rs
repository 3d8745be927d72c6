//! What Prometheus sees.

use super::*;
use crate::agent::live::{LiveCounters, pair};
use crate::agent::window::tests::fixture;
use meshdiff_analyzer::{AttributedRequest, attribute_all};
use meshdiff_capture::{CaptureData, Meta};
use meshdiff_graph::{HopInput, MeshGraph};
use meshdiff_model::{ClockAnchor, ClockSample, MonotonicNs, WallTime};
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

#[test]
fn each_request_is_counted_once_however_the_recording_is_cut() {
    let data = fixture();
    let all = whole(&data);
    let full = all.iter().filter(|r| r.coverage.is_full()).count();
    let mut registry = Registry::default();
    let metrics = Arc::new(RequestMetrics::new(&mut registry));
    let counters = Arc::new(LiveCounters::default());
    let (mut tap, join) = pair(metrics, Arc::clone(&counters), None);
    let joining = std::thread::spawn(move || join.run());

    // As an agent gets them: what happened in a turn of 2 s with its end, log entries a second late.
    let start = data.meta.start.monotonic;
    let end = data.meta.end.expect("it was ended").monotonic;
    let wall = |at: MonotonicNs| data.meta.clock.to_wall(at).expect("a clock");
    let mut from = MonotonicNs(start.0 - 2_000_000_000);
    data.proxies.iter().for_each(|p| tap.proxy(p));
    let last = |m: &meshdiff_model::Message| {
        [&m.sends, &m.readies, &m.recvs].into_iter().flat_map(|l| l.iter()).map(|i| i.at).max().unwrap_or(start)
    };
    while from.0 < end.0 + 14_000_000_000 {
        let to = MonotonicNs(from.0 + 2_000_000_000);
        let turn = from..to;
        data.sockets.iter().filter(|s| turn.contains(&s.first_seen)).for_each(|s| {
            // As assembly tells of it first; what became of it is told 10 s later.
            let open = meshdiff_model::Socket { last_seen: s.first_seen, closed: None, close: None, ..s.clone() };
            tap.socket(&open);
        });
        data.messages.iter().filter(|m| turn.contains(&last(m))).for_each(|m| tap.message(m));
        let sent = |l: &&meshdiff_model::HopSide| {
            let over = l.start_time.0 + l.timings.extent().unwrap_or_default().0 + 1_000_000_000;
            (wall(turn.start)..wall(turn.end)).contains(&WallTime(over))
        };
        data.access_logs.iter().filter(sent).for_each(|l| tap.access_log(l.clone()));
        let at = ClockSample { monotonic: to, wall: wall(to) };
        let meta = Meta { clock: ClockAnchor::new(vec![at]), ..Meta::default() };
        tap.hand_on_waiting(&meta);
        from = to;
    }
    drop(tap);
    joining.join().expect("the join lives");
    assert_eq!(counters.shed_rows.load(Relaxed), 0);

    let text = text(&registry);
    let counted = sum(&text, "meshdiff_requests_total", &[]);
    let counted_full = sum(&text, "meshdiff_requests_total", &["coverage=\"full\""]);
    let (expected, expected_full) = (all.len() as f64, full as f64);
    assert!(expected_full > 400.0, "{expected_full}");
    // The first join's line lies at the end of its first turn, before the recording: nothing is left out.
    assert_eq!(counted_full, expected_full, "full requests, of {expected} in all ({counted} counted)");
    assert_eq!(counted, expected);
    let segments = sum(&text, "meshdiff_request_segment_duration_seconds_count", &["segment=\"server_sidecar\""]);
    let measured = all.iter().filter(|r| {
        r.attribution.segments().get(meshdiff_model::Segment::ServerSidecar).is_some()
            && !matches!(
                r.coverage.class,
                meshdiff_analyzer::CoverageClass::Ambiguous | meshdiff_analyzer::CoverageClass::Unmatched
            )
    });
    let measured = measured.count() as f64;
    assert_eq!(segments, measured);
    assert!(
        text.contains("client_workload=\"productpage-v1\",server_namespace=\"default\",server_workload=\"details-v1\""),
        "{text}"
    );
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
