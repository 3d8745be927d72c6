use super::*;

fn serving(spans: &[(u64, u64)]) -> Serving {
    let spans = spans.iter().enumerate().map(|(i, &(from, to))| (MonotonicNs(from), MonotonicNs(to), i)).collect();
    let mut serving = Serving { spans, latest: Vec::new() };
    serving.sort();
    serving
}

fn around(serving: &Serving, start: u64, end: u64) -> Option<usize> {
    serving.only_around(MonotonicNs(start), MonotonicNs(end), usize::MAX)
}

#[test]
fn the_one_request_that_was_served_is_the_caller() {
    let serving = serving(&[(0, 100), (200, 300), (400, 500)]);
    assert_eq!(around(&serving, 210, 290), Some(1));
    assert_eq!(around(&serving, 200, 300), Some(1));
    assert_eq!(around(&serving, 150, 190), None);
    assert_eq!(around(&serving, 290, 310), None, "it ends after what it would be part of");
    assert_eq!(serving.only_around(MonotonicNs(210), MonotonicNs(290), 1), None, "nothing is its own caller");
}

#[test]
fn two_at_once_under_one_id_are_nobody() {
    let serving = serving(&[(0, 1_000), (200, 300)]);
    assert_eq!(around(&serving, 210, 290), None);
    assert_eq!(around(&serving, 350, 400), Some(0));
}

#[test]
fn an_id_that_names_everything_takes_no_quadratic_time() {
    let mut spans = vec![(0, u64::MAX)];
    spans.extend((1..10_000).map(|i| (i * 10, i * 10 + 5)));
    let serving = serving(&spans);
    assert_eq!(around(&serving, 99_990, 99_999), None, "too many to look at: unknown, not a guess");
}

#[test]
fn the_trace_decision_does_not_part_requests() {
    let id = |s: &str| comparable(&RequestId(s.into()));
    assert_eq!(id("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11"), id("0bf0d0b1-9e2a-9a3e-8a60-0d6f7e5f7e11"));
    assert_ne!(id("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11"), id("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e12"));
    assert_eq!(id("ééééééééééééééééé"), "ééééééééééééééééé");
}
