//! Requests that do not go straight, through real Envoys: retried, hedged, given up, refused, and held up in one place. One recording of
//! all of them, judged against truth: whose attempts they were, where the time went, and what the logs alone would have said. One test at
//! a time (`--test-threads=1`); the first one that runs makes the recording.

mod http2;

use meshdiff_e2e::{
    Exchanges, Lab, LabOptions, Recorder, Request, TryLine, judge_exchanges, median, privileged, requests,
};
use meshdiff_lab::bootstrap::{TIMEOUT_MS, TRY_MS};
use meshdiff_lab::truth::{ExchangeRecord, Nonce, Role, Truth};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

const MS: i64 = 1_000_000;
const ROUNDS: &str = "12";
/// In percent: of each case so many must be full at least. The goal is all of them; the floor leaves room for a busy machine.
const FLOOR: usize = 60;

/// What is to come out of a case: attempts, the router's code of each, and a flag of the whole.
struct Row {
    case: &'static str,
    /// The code of each attempt, in order of their beginning; empty for one that is not retried.
    tries: &'static [Option<u16>],
    /// Which of them is answered.
    answered: usize,
    flag: Option<&'static str>,
}

const fn row(case: &'static str, tries: &'static [Option<u16>], answered: usize, flag: Option<&'static str>) -> Row {
    Row { case, tries, answered, flag }
}

impl Row {
    /// True if as many attempts as planned reached the server, and the planned one was answered: on a machine that stands still now and
    /// then, an attempt that was to be quick can time out as well.
    fn went_as_planned(&self, truth: &Truth, nonce: Nonce) -> bool {
        let answered = truth.exchange(nonce, Role::Client).and_then(|r| r.attempt);
        self.tries.is_empty()
            || (truth.attempts(nonce).count() == self.tries.len() && answered == u32::try_from(self.answered + 1).ok())
    }
}

const FAILED: Option<u16> = Some(503);
const FINE: Option<u16> = Some(200);

const CASES: &[Row] = &[
    row("straight", &[], 0, None),
    row("retry-status", &[FAILED, FAILED, FINE], 2, None),
    row("retry-quiet", &[FAILED, FAILED, FINE], 2, None),
    row("retry-reset", &[FAILED, FINE], 1, None),
    row("retry-in-vain", &[FAILED; 4], 3, Some("URX")),
    row("try-timeout", &[None, FINE], 1, None),
    row("hedge-second", &[None, FINE], 1, None),
    row("hedge-first", &[FINE, None], 0, None),
    row("timeout", &[], 0, Some("UT")),
    row("no-host", &[], 0, Some("UH")),
    row("refused", &[], 0, Some("UF")),
    row("server-refuses", &[], 0, Some("FI")),
    row("held-filter", &[], 0, None),
    row("held-connect", &[], 0, None),
    row("holds-pool", &[], 0, None),
    row("held-pool", &[], 0, None),
    row("holds-queue", &[], 0, None),
    row("held-queue", &[], 0, None),
];

struct Run {
    requests: Vec<Request>,
    /// The same recording without what the probes saw.
    by_logs: Vec<Request>,
    truth: Truth,
    exchanges: Exchanges,
}

/// The one recording. `None` without root (on purpose).
fn run() -> Option<&'static Run> {
    static RUN: OnceLock<Option<Run>> = OnceLock::new();
    RUN.get_or_init(|| privileged().then(record)).as_ref()
}

fn record() -> Run {
    // With one worker requests meet where they are to meet.
    let lab = Lab::up("trbl", &LabOptions::of(&["--workloads", "trouble", "--concurrency", "1"]));
    // The exchanges with which the lab was checked leave the sidecars' buffers within a second, to nobody.
    std::thread::sleep(Duration::from_millis(1500));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let namespaces = lab.namespaces();
    let only: Vec<&str> = namespaces.iter().flat_map(|inode| ["--netns", inode.as_str()]).collect();
    let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &only);
    let _ = lab.drive(&["--rounds", ROUNDS, "--case-limit", "6s"]);
    let (capture, said) = recorder.stop();
    println!("recorded: {}", said.trim().replace('\n', " | "));
    let all = requests(&capture);
    without_probes(&capture);
    let by_logs = requests(&capture);
    let truth = lab.down();
    let exchanges = judge_exchanges(&all, &truth);
    Run { requests: all, by_logs, truth, exchanges }
}

/// Takes away what the probes saw.
fn without_probes(capture: &Path) {
    for table in std::fs::read_dir(capture).expect("a capture is a folder").flatten() {
        let kept = ["access_logs", "proxies", "processes"].iter().any(|k| table.file_name() == *k);
        if !kept && table.path().is_dir() {
            std::fs::remove_dir_all(table.path()).expect("the capture is ours");
        }
    }
}

impl Run {
    /// The lines of a case, with their exchange.
    fn of(&self, case: &str) -> impl Iterator<Item = (&Request, Nonce)> {
        self.exchanges.case(case).pairs.iter().map(|(i, nonce)| (&self.requests[*i], *nonce))
    }

    fn full(&self, case: &str) -> Vec<(&Request, Nonce)> {
        self.of(case).filter(|(r, _)| r.coverage.full).collect()
    }

    fn median(&self, case: &str, what: impl Fn(&Request) -> i64) -> f64 {
        let values: Vec<f64> = self.full(case).iter().map(|(r, _)| what(r) as f64).collect();
        assert!(!values.is_empty(), "{case}: nothing is full: {:?}", self.exchanges.case(case).reasons);
        median(values)
    }
}

#[test]
fn nothing_is_joined_wrongly_and_sums_are_exact() {
    let Some(run) = run() else { return };
    assert!(run.exchanges.unknown.is_empty(), "lines about nothing: {:?}", run.exchanges.unknown);
    let mut checked = 0;
    for (name, case) in &run.exchanges.cases {
        assert!(case.wrong.is_empty(), "{name}: {:#?}", case.wrong);
        assert!(
            case.doubled.is_empty() && case.split == 0,
            "{name}: several lines for one exchange: {:?}",
            case.doubled
        );
        assert_eq!(case.inexact, 0, "{name}: sums are off");
        checked += case.checked;
        for (request, nonce) in run.of(name) {
            checked += attempts_are_right(name, request, nonce, &run.truth);
        }
    }
    assert!(run.by_logs.iter().all(Request::sums), "sums are off without probes");
    println!("{} lines, {checked} sockets and instants held against the truth", run.requests.len());
    assert!(checked > 500, "too little was judged: {checked}");
}

/// Holds each attempt's sockets against those of the attempt of that number that its server wrote down.
fn attempts_are_right(case: &str, request: &Request, nonce: Nonce, truth: &Truth) -> usize {
    let served: BTreeMap<u32, &ExchangeRecord> = truth.attempts(nonce).filter_map(|r| Some((r.attempt?, r))).collect();
    let mut checked = 0;
    for (number, one) in (1..).zip(&request.tries) {
        let Some(s6) = one.sockets.get("s6") else { continue };
        let Some(record) = served.get(&number) else { panic!("{case}: attempt {number} reached nobody: {request:#?}") };
        assert_eq!(
            plain(s6.local, s6.remote),
            plain(record.local, record.remote),
            "{case}: attempt {number}: {request:#?}"
        );
        // On one connection there are many of HTTP/2: only the instant tells them apart.
        let read = one.crossings.request.get("serverLoopback").and_then(|c| c.recv_ns);
        if let (Some(at), Some(first), Some(last)) = (read, record.request.first, record.request.last) {
            let within = first.before.0 <= at && at <= last.after.0;
            assert!(within, "{case}: attempt {number} was read at {at}: {:#?}\n{request:#?}", record.request);
        }
        checked += 1;
    }
    let known = truth.exchange(nonce, Role::Client).and_then(|r| r.attempt);
    if let (Some(answered), Some(place)) = (known, request.tries.iter().position(|t| t.answered)) {
        assert_eq!(answered as usize, place + 1, "{case}: another attempt was answered: {request:#?}");
        checked += 1;
    }
    checked
}

fn plain(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    let one = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    (one(a), one(b))
}

#[test]
fn each_case_is_full_with_its_attempts_and_flags() {
    let Some(run) = run() else { return };
    println!("\n{}", table(run));
    for row in CASES.iter().chain(http2::CASES) {
        let case = run.exchanges.case(row.case);
        let full = run.full(row.case);
        assert!(
            full.len() * 100 >= case.sent * FLOOR,
            "{}: only {} of {} are full: {:?}",
            row.case,
            full.len(),
            case.sent,
            case.reasons
        );
        assert!(!case.reasons.contains_key(""), "{}: partial, and nothing says why", row.case);
        let planned: Vec<_> = full.iter().filter(|(_, nonce)| row.went_as_planned(&run.truth, *nonce)).collect();
        assert!(planned.len() * 100 >= case.sent * FLOOR, "{}: only {} went as planned", row.case, planned.len());
        for (request, _) in planned {
            let what = || format!("{}: {request:#?}", row.case);
            assert_eq!(request.attempts.unwrap_or(1) as usize, row.tries.len().max(1), "{}", what());
            if let Some(flag) = row.flag {
                assert!(request.response_flags.iter().any(|f| f == flag), "{flag} is missing: {}", what());
            }
            let codes: Vec<Option<u16>> = request.tries.iter().map(|t| t.response_code).collect();
            // Whoever's answer was not waited for may have been noted or not.
            let agree = |(code, expected): (&Option<u16>, &Option<u16>)| expected.is_none() || code == expected;
            assert!(codes.len() == row.tries.len() && codes.iter().zip(row.tries).all(agree), "{}", what());
            assert!(request.tries.iter().enumerate().all(|(i, t)| t.answered == (i == row.answered)), "{}", what());
            assert!(!request.segments.contains_key("unattributed"), "{}", what());
        }
    }
    let refused = run.full("half-refused").into_iter().filter(|(r, _)| !r.tries.is_empty()).count();
    println!("half-refused: {} full, {refused} of them retried", run.full("half-refused").len());
    for (request, _) in run.full("half-refused").into_iter().filter(|(r, _)| !r.tries.is_empty()) {
        assert!(request.tries[0].response_flags.iter().any(|f| f == "UF"), "{request:#?}");
        assert!(!request.tries[0].sockets.contains_key("s6") && request.segment("retry") > 0, "{request:#?}");
    }
}

/// As a Markdown table.
fn table(run: &Run) -> String {
    let mut text =
        String::from("| case | exchanges | full | total, ms | retry, ms | why not full |\n|---|--:|--:|--:|--:|---|\n");
    for (name, case) in &run.exchanges.cases {
        let full = run.full(name);
        let ms = |what: &dyn Fn(&Request) -> i64| {
            if full.is_empty() {
                return String::new();
            }
            format!("{:.2}", median(full.iter().map(|(r, _)| what(r) as f64).collect()) / 1e6)
        };
        let (total, retry) = (ms(&|r| r.total_ns), ms(&|r| r.segment("retry")));
        let _ = writeln!(text, "| {name} | {} | {} | {total} | {retry} | {:?} |", case.sent, full.len(), case.reasons);
    }
    text
}

#[test]
fn the_time_of_attempts_is_in_retry() {
    let Some(run) = run() else { return };
    let http1 = ["retry-status", "retry-quiet", "retry-reset", "retry-in-vain", "try-timeout", "hedge-second"];
    for case in http1.into_iter().chain(http2::RETRIED).chain(["h2-try-timeout", "h2-hedge-second"]) {
        let mut off = Vec::new();
        for (request, nonce) in run.full(case) {
            // From the first attempt's arrival at the application to the answered one's: both were sent on a little before.
            let all: Vec<&ExchangeRecord> = run.truth.attempts(nonce).collect();
            let at = |r: &ExchangeRecord| r.request.head.map(|mark| mark.after.0);
            let answered = request.tries.iter().position(|t| t.answered).expect("one is answered");
            let (Some(first), Some(last)) = (at(all[0]), all.get(answered).and_then(|r| at(r))) else {
                panic!("{case}: the application did not get it: {all:#?}");
            };
            let truly = last as i64 - first as i64;
            off.push((request.segment("retry") - truly).abs() as f64);
            let tries: &[TryLine] = &request.tries;
            assert!(tries.windows(2).all(|pair| pair[0].began_ns < pair[1].began_ns), "{case}: {tries:#?}");
        }
        let waited = run.median(case, |r| r.tries[1].wait_ns.unwrap_or(i64::MAX));
        let before = run.median(case, |r| r.segment("retry"));
        let off = median(off);
        assert!(off < 10e6 + before / 4.0, "{case}: {before} ns of retry is off by {off}");
        println!(
            "{case}: retry {:.2} ms, of which waiting before the second attempt {:.2} ms",
            before / 1e6,
            waited / 1e6
        );
    }
    for [first, limited] in [["hedge-first", "try-timeout"], ["h2-hedge-first", "h2-try-timeout"]] {
        assert_eq!(run.median(first, |r| r.segment("retry")), 0.0, "the first attempt was answered");
        let limited = run.median(limited, |r| r.segment("retry"));
        // Envoy's timers count in whole milliseconds.
        assert!(limited >= ((TRY_MS - 1) as i64 * MS) as f64, "an attempt ends after {TRY_MS} ms: {limited}");
    }
}

#[test]
fn what_a_sidecar_answers_itself_has_no_application() {
    let Some(run) = run() else { return };
    for case in ["no-host", "refused", "server-refuses"] {
        for (request, _) in run.full(case) {
            assert!(!request.segments.contains_key("server_app"), "{case}: {request:#?}");
        }
    }
    assert!(run.median("refused", |r| r.segment("connection_setup")) > 0.0, "the connect in vain is not told");
    assert!(run.median("server-refuses", |r| r.segment("server_sidecar")) > 0.0);
    // The server's half outlasts the request: it counts up to where it was given up.
    let app = run.median("timeout", |r| r.segment("server_app"));
    let limit = (TIMEOUT_MS as i64 * MS) as f64;
    assert!(app > limit / 2.0 && app < 1.5 * limit, "{app} ns of the application within {TIMEOUT_MS} ms");
}

#[test]
fn each_hindrance_moves_its_own_detail_and_no_other() {
    let Some(run) = run() else { return };
    let parts = [
        ("client_sidecar", "queue"),
        ("client_sidecar", "filters"),
        ("client_sidecar", "pool_wait"),
        ("client_sidecar", "flush"),
        ("client_sidecar", "other"),
        ("connection_setup", "connect"),
        ("connection_setup", "tls"),
        ("server_sidecar", "queue"),
        ("server_sidecar", "filters"),
        ("server_sidecar", "pool_wait"),
    ];
    let moved = |case: &str, (segment, detail): (&str, &str)| {
        run.median(case, |r| r.detail(segment, detail)) - run.median("straight", |r| r.detail(segment, detail))
    };
    let mut text = String::from("details moved, µs:\n");
    for case in ["held-filter", "held-pool", "held-queue", "held-connect"] {
        let _ = write!(text, "  {case}:");
        for part in parts {
            let _ = write!(text, " {}.{} {:+.0}", part.0, part.1, moved(case, part) / 1e3);
        }
        text.push('\n');
    }
    println!("{text}");
    let own = [
        ("held-filter", ("client_sidecar", "filters")),
        ("held-pool", ("client_sidecar", "pool_wait")),
        ("held-queue", ("client_sidecar", "queue")),
    ];
    for (case, part) in own {
        assert!(moved(case, part) > 40e6, "{case} does not show in {part:?}\n{text}");
        for other in parts.into_iter().filter(|p| *p != part) {
            assert!(moved(case, other).abs() < 20e6, "{case} shows in {other:?}\n{text}");
        }
    }
    for part in [("connection_setup", "connect"), ("connection_setup", "tls")] {
        assert!(moved("held-connect", part) > 0.0, "new connections do not show in {part:?}\n{text}");
        assert_eq!(run.median("straight", |r| r.detail(part.0, part.1)), 0.0, "nobody waited for a connection\n{text}");
    }
    for other in parts.into_iter().filter(|p| p.0 != "connection_setup") {
        assert!(moved("held-connect", other).abs() < 20e6, "new connections show in {other:?}\n{text}");
    }
    // Details lie within their segment.
    for (i, request) in run.requests.iter().enumerate() {
        for (segment, details) in &request.details {
            let sum: i64 = details.values().sum();
            assert!(sum <= request.segment(segment) && details.values().all(|ns| *ns >= 0), "{i}: {request:#?}");
        }
    }
}

#[test]
fn without_probes_the_logs_give_bounds() {
    let Some(run) = run() else { return };
    let key = |r: &Request| (r.request_id.clone(), r.path.clone());
    let by_logs: BTreeMap<_, &Request> = run.by_logs.iter().map(|r| (key(r), r)).collect();
    let mut compared = 0;
    // What Envoy's marks and the kernel's instants may disagree by: parsing, and the steps of Envoy's clock.
    let slack = 100_000;
    let http1 = ["straight", "held-filter", "held-pool", "held-queue", "holds-pool", "retry-status"];
    for case in http1.into_iter().chain(["h2-straight", "h2-retry-status"]) {
        for (seen, _) in run.full(case) {
            let Some(told) = by_logs.get(&key(seen)) else { panic!("{case}: gone without probes: {seen:#?}") };
            let what = || format!("{case}: {:?} against {:?}", told.segments, seen.segments);
            assert_eq!((told.total_vantage.as_str(), told.coverage.full), ("als", false));
            assert_eq!(told.coverage.reason.as_deref(), Some("no_probes"));
            assert!(told.total_ns <= seen.total_ns, "{}", what());
            let sidecar = seen.segment("client_sidecar") + seen.segment("connection_setup");
            assert!(told.segment("client_sidecar") <= sidecar + slack, "{}", what());
            assert!(told.segment("server_sidecar") <= seen.segment("server_sidecar") + slack, "{}", what());
            let beyond = ["network", "server_app"].map(|s| (s, told.segments.get(s), seen.segments.get(s)));
            for (segment, told, seen) in beyond {
                if let (Some(told), Some(seen)) = (told, seen) {
                    assert!(told + slack >= *seen, "{segment}: {}", what());
                }
            }
            for kernel_only in ["client_loopback", "server_loopback"] {
                assert!(!told.segments.contains_key(kernel_only), "no log sees it: {}", what());
            }
            compared += 1;
        }
    }
    println!("{compared} requests: what the probes measured lies within what the logs alone tell");
    assert!(compared > 20);
}
