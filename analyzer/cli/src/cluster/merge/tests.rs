use super::*;
use meshdiff_model::{ClockAnchor, ProbeStats};

const S: u64 = 1_000_000_000;
const WALL: i64 = 1_790_000_000_000_000_000;

/// A capture of nothing, by a clock that was 0 at `WALL`, from one second to another.
fn capture(from: u64, to: u64) -> CaptureData {
    let sample = |at: u64| ClockSample { monotonic: MonotonicNs(at * S), wall: WallTime(WALL + (at * S) as i64) };
    let mut meta = Meta { start: sample(from), end: Some(sample(to)), ..Meta::default() };
    meta.clock = ClockAnchor::new(vec![sample(from), sample(to)]);
    meta.probes.tier = ProbeTier::TpBtf;
    meta.probes.stats = ProbeStats { events: 10, lost_events: 1, ..ProbeStats::default() };
    meta.als.http.received = 5;
    meta.envoy_versions.insert("1.40.0".to_owned(), 2);
    meta.warnings = vec!["something".to_owned()];
    CaptureData {
        meta,
        state: CaptureState::Interrupted,
        sockets: Vec::new(),
        messages: Vec::new(),
        http2_streams: Vec::new(),
        metrics: Vec::new(),
        access_logs: Vec::new(),
        proxies: Vec::new(),
        processes: Vec::new(),
        damage: meshdiff_capture::Damage::default(),
    }
}

fn merged(captures: [CaptureData; 2]) -> Merged {
    let [a, b] = captures;
    together(vec![("node-a".to_owned(), a), ("node-b".to_owned(), b)]).expect("two nodes")
}

fn seconds(merged: &Merged) -> (i64, i64) {
    let meta = &merged.data.meta;
    let of = |at: WallTime| (at.0 - WALL) / S as i64;
    (of(meta.start.wall), of(meta.end.expect("an end").wall))
}

#[test]
fn what_nodes_have_in_common_is_reported_and_what_settles_is_not() {
    let merged = merged([capture(10, 900), capture(12, 901)]);
    assert_eq!(seconds(&merged), (12, 898));
    assert_eq!(merged.whole.1 - merged.whole.0, DurationNs::from_millis(891_000));
    assert!(!merged.notes.iter().any(|n| n.contains("not ended properly")), "{:?}", merged.notes);
    let short = super::together(vec![("a".to_owned(), capture(10, 13))]).expect("one node");
    assert_eq!(seconds(&short), (10, 13));
}

#[test]
fn a_node_that_was_recorded_later_is_named_and_cuts_nothing() {
    let merged = merged([capture(10, 900), capture(500, 900)]);
    assert_eq!(seconds(&merged), (10, 898));
    assert!(
        merged.notes.iter().any(|n| n.contains("the recording of node-b covers only a part")),
        "{:?}",
        merged.notes
    );
}

#[test]
fn what_nodes_count_is_added_and_what_they_warn_of_has_their_names() {
    let merged = merged([capture(10, 900), capture(10, 900)]);
    let meta = &merged.data.meta;
    assert_eq!((meta.probes.stats.events, meta.probes.stats.lost_events, meta.als.http.received), (20, 2, 10));
    assert_eq!((meta.host.hostname.as_str(), meta.envoy_versions["1.40.0"]), ("node-a, node-b", 4));
    assert!(merged.notes.contains(&"node node-a: something".to_owned()), "{:?}", merged.notes);
}

#[test]
fn a_node_without_probes_is_named() {
    let mut without = capture(10, 900);
    without.meta.probes.tier = ProbeTier::None;
    let merged = merged([capture(10, 900), without]);
    assert!(merged.notes.iter().any(|n| n.contains("no probes on node-b")), "{:?}", merged.notes);
    assert_eq!(merged.data.meta.probes.tier, ProbeTier::TpBtf);
}
