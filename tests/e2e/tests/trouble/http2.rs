//! The same where requests share connections: what the probes see between the sidecars tells no request from another there, so the
//! sidecars' logs say when each attempt began and ended.

use super::{FAILED, FINE, FLOOR, MS, Row, row, run};
use meshdiff_lab::bootstrap::TIMEOUT_MS;

pub(super) const CASES: &[Row] = &[
    row("h2-straight", &[], 0, None),
    row("h2-retry-status", &[FAILED, FAILED, FINE], 2, None),
    row("h2-retry-reset", &[FAILED, FINE], 1, None),
    row("h2-retry-body", &[FAILED, FINE], 1, None),
    row("h2-retry-in-vain", &[FAILED; 4], 3, Some("URX")),
    row("h2-retry-from-http1", &[FAILED, FAILED, FINE], 2, None),
    row("h2-try-timeout", &[None, FINE], 1, None),
    row("h2-hedge-second", &[None, FINE], 1, None),
    row("h2-hedge-first", &[FINE, None], 0, None),
    row("h2-timeout", &[], 0, Some("UT")),
    row("grpc-retry", &[FINE, FINE, FINE], 2, None),
];

/// Those of them in which a request is retried, one at a time.
pub(super) const RETRIED: [&str; 6] =
    ["h2-retry-status", "h2-retry-reset", "h2-retry-body", "h2-retry-in-vain", "h2-retry-from-http1", "grpc-retry"];

/// Requests that nothing tells apart, or whose first attempts nothing tells of: no line for more than one of them, and a reason.
const UNTOLD: [(&str, &[&str]); 3] = [
    ("h2-retry-quiet", &["retried"]),
    ("h2-retry-quiet-crowd", &["retried"]),
    ("h2-retry-same-id", &["retried", "several_logs"]),
];

#[test]
fn what_nothing_tells_is_neither_guessed_nor_counted_twice() {
    let Some(run) = run() else { return };
    for (name, reasons) in UNTOLD {
        let case = run.exchanges.case(name);
        assert_eq!(case.lines, case.sent, "{name}: {:?}", case.reasons);
        let others: Vec<_> = case.reasons.keys().filter(|reason| !reasons.contains(&reason.as_str())).collect();
        assert!(others.is_empty(), "{name}: {others:?}");
    }
    // One attempt in three is the first one.
    assert!(!run.full("h2-retry-quiet-crowd").is_empty());
    assert!(run.full("h2-retry-quiet").is_empty(), "nobody tells of the first attempts");
}

#[test]
fn many_requests_on_one_connection_keep_their_own_attempts() {
    let Some(run) = run() else { return };
    let (case, full) = (run.exchanges.case("h2-retry-crowd"), run.full("h2-retry-crowd"));
    assert!(full.len() * 100 >= case.sent * FLOOR, "{} of {}: {:?}", full.len(), case.sent, case.reasons);
    assert_eq!(case.lines, case.sent, "{:?}", case.reasons);
    let mut halves = 0;
    for (request, nonce) in &full {
        let made = run.truth.attempts(*nonce).count();
        assert_eq!(request.attempts.unwrap_or(1) as usize, made, "{request:#?}");
        assert_eq!(request.tries.len(), if made > 1 { made } else { 0 }, "{request:#?}");
        halves += request.tries.iter().filter(|one| one.server.is_some()).count();
    }
    println!("h2-retry-crowd: {} of {} are full, {halves} server halves of their attempts", full.len(), case.sent);
    assert!(halves >= full.len(), "two thirds of them have two attempts or three");
}

#[test]
fn the_next_attempt_at_another_host_has_its_own_half() {
    let Some(run) = run() else { return };
    let full = run.full("h2-other-host");
    assert!(full.len() * 100 >= run.exchanges.case("h2-other-host").sent * FLOOR);
    for (request, nonce) in full {
        let pods: Vec<&str> = run.truth.attempts(nonce).map(|record| record.pod.as_str()).collect();
        assert!(pods.len() == 2 && pods[0] != pods[1], "the lab asks the other one: {pods:?}");
        assert_eq!(request.tries.len(), 2, "{request:#?}");
        assert_ne!(request.tries[0].address, request.tries[1].address, "{request:#?}");
        assert!(request.tries.iter().all(|one| one.server.is_some()), "{request:#?}");
        assert_eq!(request.server.workload.as_deref(), Some(pods[1]), "who answered");
        assert!(request.segment("retry") > 0, "{request:#?}");
    }
}

#[test]
fn a_host_that_refuses_is_an_attempt_without_a_server() {
    let Some(run) = run() else { return };
    let full = run.full("h2-half-refused");
    assert!(full.len() * 100 >= run.exchanges.case("h2-half-refused").sent * FLOOR);
    let retried: Vec<_> = full.into_iter().filter(|(request, _)| !request.tries.is_empty()).collect();
    assert!(!retried.is_empty(), "every second connection is refused");
    for (request, _) in retried {
        let first = &request.tries[0];
        assert!(first.response_flags.iter().any(|f| f == "UF") && first.server.is_none(), "{request:#?}");
        assert!(request.tries[1].answered && request.segment("retry") > 0, "{request:#?}");
    }
}

#[test]
fn what_is_given_up_is_charged_to_what_it_had_reached() {
    let Some(run) = run() else { return };
    let limit = (TIMEOUT_MS as i64 * MS) as f64;
    let app = run.median("h2-timeout", |r| r.segment("server_app"));
    assert!(app > limit / 2.0 && app < 1.5 * limit, "{app} ns of the application within {TIMEOUT_MS} ms");
    let sidecar = run.median("h2-timeout", |r| r.segment("client_sidecar"));
    assert!(sidecar < limit / 4.0, "{sidecar} ns of waiting are charged to the sidecar that waited");
}
