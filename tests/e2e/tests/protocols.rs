//! Every protocol case against truth: one recording of all of them through real Envoys, judged case by case. One test at
//! a time (`--test-threads=1`); the first one that runs makes the recording.

use meshdiff_e2e::{Case, Exchanges, Lab, LabOptions, Recorder, Request, judge_exchanges, privileged, requests};
use meshdiff_lab::clock::MonotonicNs;
use meshdiff_lab::truth::{Doing, ExchangeRecord, Role, Truth};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;
use std::time::Duration;

/// What meshdiff says it does with a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Every socket of it is seen, and every part of it measured: of 99% at least.
    Full,
    /// It does less, and each line says why: mostly with one of these reasons.
    Partial(&'static [&'static str]),
    /// So many percent at least are full, and the others say why: mostly with one of these reasons.
    AtLeast(usize, &'static [&'static str]),
    /// Bytes: there are connections and no requests.
    Opaque,
    /// No request can be made out; there may be lines that say so.
    Garbage,
}
use Claim::{AtLeast, Full, Garbage, Opaque, Partial};

/// Where a pause of the truth must show.
#[derive(Clone, Copy, Debug)]
struct Pause {
    segment: &'static str,
    role: Role,
    doing: Doing,
    /// Whether it is told apart from the rest of the body's time. If not, that is where it must be.
    told_apart: bool,
}

const fn pause(segment: &'static str, role: Role, doing: Doing) -> Option<Pause> {
    Some(Pause { segment, role, doing, told_apart: true })
}

/// Who reads its connection but grants a stream no more is not told apart from the way: that is `transfer`, as a bound.
const fn in_body_time(segment: &'static str, role: Role, doing: Doing) -> Option<Pause> {
    Some(Pause { segment, role, doing, told_apart: false })
}

/// A case, the protocol that its lines must name, what is claimed, and where its pauses belong.
type Row = (&'static str, &'static str, Claim, Option<Pause>);

/// Streams that share connections, also such as the lab's check left open before the recording. What an access log tells of streams that
/// began at the same instant need not name one of them.
const STREAMS: Claim = AtLeast(95, &["exchange_not_seen", "several_exchanges"]);

const CASES: &[Row] = &[
    ("http1-get", "http/1.1", Full, None),
    ("http1-pipelined", "http/1.1", Full, None),
    ("http1-chunked", "http/1.1", Full, None),
    ("http1-upload", "http/1.1", Full, None),
    ("http1-download", "http/1.1", Full, None),
    ("http1-upload-slow-client", "http/1.1", Full, pause("client_app", Role::Client, Doing::Writing)),
    ("http1-upload-slow-server", "http/1.1", Full, pause("server_app", Role::Server, Doing::Reading)),
    ("http1-download-slow-client", "http/1.1", Full, pause("client_app", Role::Client, Doing::Reading)),
    ("http1-download-slow-server", "http/1.1", Full, pause("server_app", Role::Server, Doing::Writing)),
    ("http1-expect-continue", "http/1.1", Full, None),
    // Whoever closes first may take a socket with it before its last event was seen.
    ("http1-early-413", "http/1.1", Partial(&["socket_not_seen"]), None),
    ("http1-head", "http/1.1", Full, None),
    ("http1-no-content", "http/1.1", Full, None),
    ("http1-client-gives-up", "http/1.1", Partial(&["socket_not_seen", "gave_up"]), None),
    // Refused before the version was taken over: the sidecar's own log calls it 1.1.
    ("http10-refused", "http/1.1", Full, None),
    ("http10-client", "http/1.0", Full, None),
    ("http10-server", "http/1.1", Full, None),
    // Whether both ends closed in peace is not told yet: the upgrade counts as given up.
    ("websocket", "http/1.1", Full, None),
    ("http2-get", "http/2", STREAMS, None),
    ("http2-concurrent", "http/2", STREAMS, pause("server_app", Role::Server, Doing::Thinking)),
    ("http2-interleaved", "http/2", STREAMS, None),
    ("http2-continuation", "http/2", STREAMS, None),
    ("http2-upload-stall", "http/2", STREAMS, in_body_time("server_app", Role::Server, Doing::Reading)),
    ("http2-download-stall", "http/2", STREAMS, in_body_time("client_app", Role::Client, Doing::Reading)),
    // One of two is reset by the client.
    ("http2-reset", "http/2", AtLeast(45, &["gave_up"]), None),
    ("grpc-unary", "grpc", STREAMS, None),
    ("grpc-concurrent", "grpc", STREAMS, pause("server_app", Role::Server, Doing::Thinking)),
    ("grpc-server-stream", "grpc", STREAMS, pause("server_app", Role::Server, Doing::Writing)),
    ("grpc-client-stream", "grpc", STREAMS, pause("client_app", Role::Client, Doing::Writing)),
    ("grpc-bidi", "grpc", STREAMS, pause("server_app", Role::Server, Doing::Thinking)),
    ("grpc-error", "grpc", STREAMS, None),
    ("grpc-many-connections", "grpc", STREAMS, pause("server_app", Role::Server, Doing::Thinking)),
    // The sidecar logs a request of which it could read nothing.
    ("http2-garbage", "http/2", Garbage, None),
    ("tcp-echo", "", Opaque, None),
    ("tcp-greeting", "", Opaque, None),
    ("tls-http1", "http", Full, None),
    ("tls-http1-ex", "http", Full, None),
];

/// In percent: below this a claimed case fails, and below the other all of them together. The goal is 99, and what misses it is said;
/// the floors leave room for the moments of a run in which log entries and sockets do not find each other.
const FLOOR: usize = 40;
const FLOOR_OF_ALL: usize = 90;

/// Rounds of each case; the slow ones wait 60 ms in each.
const ROUNDS: &str = "25";

struct Run {
    requests: Vec<Request>,
    truth: Truth,
    exchanges: Exchanges,
}

/// The one recording. `None` without root (on purpose).
fn run() -> Option<&'static Run> {
    static RUN: OnceLock<Option<Run>> = OnceLock::new();
    RUN.get_or_init(|| privileged().then(record)).as_ref()
}

fn record() -> Run {
    let lab = Lab::up("proto", &LabOptions::of(&["--workloads", "bodies,websocket,http2,grpc,tcp,tls"]));
    // The exchanges with which the lab was checked leave the sidecars' buffers within a second, to nobody.
    std::thread::sleep(Duration::from_millis(1500));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let namespaces = lab.namespaces();
    let mut only: Vec<&str> = namespaces.iter().flat_map(|inode| ["--netns", inode.as_str()]).collect();
    // The client loads its libssl with its first exchange over TLS.
    only.extend(["--tls-uprobes", "file"]);
    let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &only);
    let report = lab.drive(&["--rounds", ROUNDS, "--case-limit", "4s"]);
    let cases = report["cases"].as_array().map_or(0, Vec::len);
    assert_eq!(cases, CASES.len(), "the lab has cases that this test does not know, or the other way round");
    let (capture, said) = recorder.stop();
    println!("recorded: {}", said.trim().replace('\n', " | "));
    let requests = requests(&capture);
    let truth = lab.down();
    let exchanges = judge_exchanges(&requests, &truth);
    Run { requests, truth, exchanges }
}

impl Run {
    fn case(&self, name: &str) -> &Case {
        self.exchanges.case(name)
    }

    fn median(
        &self,
        name: &str,
        what: impl Fn(&Request, &ExchangeRecord, Option<&ExchangeRecord>) -> Option<f64>,
    ) -> Option<f64> {
        self.exchanges.median_of(name, &self.requests, &self.truth, what)
    }

    /// How long the client waited by its own clock, less the total, in ns: for exchanges that both ends saw through.
    fn beyond_total(&self, name: &str) -> Vec<f64> {
        let pairs = self.case(name).pairs.iter().map(|(i, nonce)| (&self.requests[*i], *nonce));
        let full = pairs.filter(|(request, _)| request.coverage.full);
        full.filter_map(|(request, nonce)| {
            let waited = self.truth.exchange(nonce, Role::Client)?.waited_ns()?;
            Some(waited as f64 - request.total_ns as f64)
        })
        .collect()
    }
}

/// True if at least 99% are there, or all but one.
fn enough(full: usize, sent: usize) -> bool {
    full * 100 >= sent * 99 || full + 1 >= sent
}

#[test]
fn no_exchange_is_joined_wrongly_and_sums_are_exact() {
    let Some(run) = run() else { return };
    assert!(run.exchanges.unknown.is_empty(), "lines about nothing: {:?}", run.exchanges.unknown);
    let mut checked = 0;
    for (name, case) in &run.exchanges.cases {
        let first: Vec<_> = case.wrong.iter().take(5).collect();
        assert!(first.is_empty(), "{name}: {} of {} instants are wrong: {first:#?}", case.wrong.len(), case.checked);
        assert!(case.doubled.is_empty(), "{name}: several lines for one exchange: {:?}", case.doubled);
        if case.split > 0 {
            println!(
                "{name}: {} exchanges are told twice, as the kernel saw them and as the sidecars logged them",
                case.split
            );
        }
        assert_eq!(case.inexact, 0, "{name}: sums are off");
        checked += case.checked;
    }
    let heads = |name| run.case(name).heads;
    let [all, exact] = CASES.iter().fold([0, 0], |[a, b], row| [a + heads(row.0).0, b + heads(row.0).1]);
    println!(
        "{} lines, {checked} sockets and instants held against the truth; {exact} of {all} recvs are in the very call that brought the head",
        run.requests.len()
    );
    assert!(checked > 2_000, "too little was judged: {checked}");
}

#[test]
fn each_case_is_full_or_says_why_and_names_its_protocol() {
    let Some(run) = run() else { return };
    let table = table(run);
    println!("\n{table}");
    let file = meshdiff_e2e::build_folder().join("protocol-matrix.md");
    std::fs::write(&file, &table).expect("the build folder is writable");
    println!("(also in {})", file.display());
    for &(name, protocol, claim, _) in CASES {
        let case = run.case(name);
        if claim == Opaque {
            assert_eq!(case.lines, 0, "{name}: requests in a connection of bytes");
            continue;
        }
        if claim != Garbage && !enough(case.lines, case.sent) {
            println!("{name}: MISSES requests: {} lines for {} exchanges", case.lines, case.sent);
        }
        // Applications' own TLS is followed from the moment at which their library was found.
        let told = claim == Garbage || case.lines * 100 >= case.sent * FLOOR;
        assert!(told, "{name}: {} lines for {} exchanges", case.lines, case.sent);
        // gRPC is known by a header, which a sidecar's log need not carry.
        // What only the kernel saw is called by what its recogniser knows.
        let coarse = match protocol {
            "grpc" => "http/2",
            "http/1.0" => "http/1.1",
            other => other,
        };
        let right = |named: &str| named == protocol || named == coarse;
        assert!(case.protocols.keys().all(|named| right(named)), "{name}: {:?}", case.protocols);
        assert!(!case.reasons.contains_key(""), "{name}: partial, and nothing says why: {:?}", case.reasons);
        match claim {
            Full => {
                if !enough(case.full, case.sent) {
                    println!("{name}: MISSES the goal of 99%: {} of {}, {:?}", case.full, case.sent, case.reasons);
                }
                let floor = case.full * 100 >= case.sent * FLOOR;
                assert!(floor, "{name}: only {} of {} are full: {:?}", case.full, case.sent, case.reasons);
            }
            Partial(known) | AtLeast(_, known) => {
                let least = if let AtLeast(least, _) = claim { least } else { 0 };
                assert!(
                    case.full * 100 >= case.sent * least,
                    "{name}: only {} of {} are full: {:?}",
                    case.full,
                    case.sent,
                    case.reasons
                );
                if enough(case.full, case.sent) {
                    println!("{name}: all full, though that is not claimed");
                }
                if case.reasons.keys().any(|reason| !known.contains(&reason.as_str())) {
                    println!("{name}: partial for other reasons too than {known:?}: {:?}", case.reasons);
                }
            }
            Garbage => {
                assert_eq!(case.full, 0, "{name}: garbage is no request");
                assert!(case.lines + run.exchanges.nameless <= case.sent, "{name}: more requests than were tried");
            }
            Opaque => {}
        }
    }
    let claimed = CASES.iter().filter(|row| row.2 == Full).map(|row| run.case(row.0));
    let (full, sent) = claimed.fold((0, 0), |(full, sent), case| (full + case.full, sent + case.sent));
    println!("of all that is claimed, {full} of {sent} are full ({:.2}%)", 100.0 * full as f64 / sent as f64);
    assert!(full * 100 >= sent * FLOOR_OF_ALL, "only {full} of {sent} are full");
}

/// As a Markdown table.
fn table(run: &Run) -> String {
    let mut text = String::from(
        "| case | exchanges | full | waited less total, median µs | pause, ms | in its segment, ms | why not full |\n|---|--:|--:|--:|--:|--:|---|\n",
    );
    for &(name, _, claim, pause) in CASES {
        let case = run.case(name);
        if claim == Opaque {
            let _ = writeln!(text, "| {name} | {} | bytes | | | | |", case.sent);
            continue;
        }
        let beyond = run.beyond_total(name);
        let beyond =
            if beyond.is_empty() { String::new() } else { format!("{:.1}", meshdiff_e2e::median(beyond) / 1e3) };
        let ms = |ns: Option<f64>| ns.map_or_else(String::new, |ns| format!("{:.1}", ns / 1e6));
        let waited = pause.and_then(|p| run.median(name, |_, sent, served| waited(p, sent, served)));
        let shown = pause.and_then(|p| run.median(name, |request, _, _| Some(request.segment(p.segment) as f64)));
        let segment = pause.map_or("", |p| p.segment);
        let reasons: Vec<_> = case.reasons.iter().map(|(why, n)| format!("{why} {n}")).collect();
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1}% | {beyond} | {} | {} {segment} | {} |",
            case.sent,
            100.0 * case.full_share(),
            ms(waited),
            ms(shown),
            reasons.join(", ")
        );
    }
    text
}

/// How long the exchange really paused there, in ns.
fn waited(pause: Pause, sent: &ExchangeRecord, served: Option<&ExchangeRecord>) -> Option<f64> {
    let end = if pause.role == Role::Client { sent } else { served? };
    Some(end.waits_ns(pause.doing) as f64)
}

#[test]
fn totals_agree_with_the_clients_own_clock() {
    let Some(run) = run() else { return };
    for &(name, _, claim, _) in CASES {
        // A WebSocket goes on after the exchange that made it, and so does its total.
        if !matches!(claim, Full | AtLeast(..)) || name == "websocket" {
            continue;
        }
        let beyond = run.beyond_total(name);
        if beyond.is_empty() {
            panic!("{name}: no total to judge");
        }
        let shortest = beyond.iter().copied().fold(f64::MAX, f64::min);
        let middle = meshdiff_e2e::median(beyond);
        assert!(shortest > -1_000.0, "{name}: a total is {} ns longer than the client waited", -shortest);
        assert!(middle < 200_000.0, "{name}: totals are {middle} ns too short at the median");
    }
}

#[test]
fn pauses_land_where_they_belong() {
    let Some(run) = run() else { return };
    let shares = ["client_app", "server_app", "transfer"];
    for &(name, _, claim, pause) in CASES {
        let Some(pause) = pause else { continue };
        assert!(claim != Full || run.case(name).full > 0, "{name} is not full");
        let lines = run.case(name).full;
        // Of a case that is not claimed, a few full lines prove nothing.
        if claim != Full && lines < 10 {
            continue;
        }
        let median = |segment: &str| {
            run.median(name, |request, _, _| Some(request.segment(segment) as f64)).expect("there are full lines")
        };
        let truly =
            run.median(name, |_, sent, served| waited(pause, sent, served)).expect("the truth knows its pauses");
        let found: BTreeMap<_, _> = shares.iter().map(|&segment| (segment, median(segment))).collect();
        println!("{name}: paused {:.1} ms, found {found:?}", truly / 1e6);
        if !pause.told_apart {
            let body: f64 = found.values().sum();
            assert!(body > 0.75 * truly, "{name}: paused {truly} ns, and the body's time is {found:?}");
            continue;
        }
        let off = (found[pause.segment] - truly).abs();
        assert!(off < 0.25 * truly + 2e6, "{name}: paused {truly} ns in {}: {found:?}", pause.segment);
        for other in shares.iter().filter(|&&s| s != pause.segment) {
            assert!(found[other] < 0.35 * truly + 2e6, "{name}: a part of {truly} ns is in {other}: {found:?}");
        }
    }
    // The same bodies without a pause: no application is blamed for one.
    for name in ["http1-upload", "http1-download"] {
        let median =
            |segment: &str| run.median(name, |request, _, _| Some(request.segment(segment) as f64)).unwrap_or(0.0);
        let [client, server, transfer] = shares.map(median);
        println!("{name}: client_app {client}, server_app {server}, transfer {transfer} ns");
        assert!(client + server < 15e6, "{name}: {client}, {server}, {transfer} ns");
    }
}

/// Connections between applications and sidecars, and between sidecars, outlive recordings: what HTTP/2 needs to know of a
/// connection's begin was never seen.
#[test]
fn connections_that_are_older_than_the_recording() {
    if !privileged() {
        return;
    }
    const CASES: [(&str, Claim); 3] =
        [("http1-long-lived", Full), ("http2-long-lived", Full), ("grpc-long-lived", Full)];
    let lab = Lab::up("old", &LabOptions::of(&["--workloads", "bodies,http2,grpc"]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let namespaces = lab.namespaces();
    let only: Vec<&str> = namespaces.iter().flat_map(|inode| ["--netns", inode.as_str()]).collect();
    let (capture, window) = std::thread::scope(|scope| {
        let lab = &lab;
        let drives =
            CASES.map(|(case, _)| scope.spawn(move || lab.drive_into(case, &["--cases", case, "--rounds", "1"])));
        let deadline = MonotonicNs::now().plus(Duration::from_secs(10));
        while !CASES.iter().all(|(case, _)| lab.has_arrived(case)) {
            assert!(MonotonicNs::now() < deadline, "the connections are not made");
            std::thread::sleep(Duration::from_millis(50));
        }
        let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &only);
        // The first of each connection may have begun before.
        let from = MonotonicNs::now().plus(Duration::from_millis(300));
        for drive in drives {
            let _report = drive.join().expect("the cases run");
        }
        (recorder.stop().0, from)
    });
    let requests = requests(&capture);
    let truth = lab.down();
    let exchanges = judge_exchanges(&requests, &truth);
    for (name, claim) in CASES {
        let case = exchanges.case(name);
        let begun = |nonce| truth.exchange(nonce, Role::Client).and_then(|e| e.request.first).map(|call| call.before);
        let within: Vec<_> = case.pairs.iter().filter(|(_, nonce)| begun(*nonce) > Some(window)).collect();
        let full = within.iter().filter(|(i, _)| requests[*i].coverage.full).count();
        println!("{name}: {full} of {} are full; others: {:?}", within.len(), case.reasons);
        assert!(case.wrong.is_empty(), "{name}: {:?}", case.wrong);
        assert!(case.doubled.is_empty() && case.inexact == 0, "{name}: {:?}", case.doubled);
        assert!(within.len() > 50, "{name}: too little lies within the recording: {}", within.len());
        assert!(case.reasons.keys().all(|reason| !reason.is_empty()), "{name}: {:?}", case.reasons);
        assert!(claim != Full || enough(full, within.len()), "{name}: {full} of {}: {:?}", within.len(), case.reasons);
    }
}

/// The truth about the truth: a case that does not do what it says proves nothing.
#[test]
fn the_workloads_are_what_they_say() {
    let Some(run) = run() else { return };
    let ends = |case: &'static str, role: Role| {
        run.truth.exchanges().iter().filter(move |exchange| exchange.case == case && exchange.role == role)
    };
    for role in [Role::Client, Role::Server] {
        for exchange in ends("http2-continuation", role) {
            let frames = (exchange.request.continuation_frames, exchange.response.continuation_frames);
            assert!(frames.0 > 0 && frames.1 > 0, "{exchange:?}");
        }
        let interrupted: u32 = ends("http2-interleaved", role).map(|e| e.response.interruptions).sum();
        assert!(interrupted > 100, "DATA frames of streams do not alternate: {interrupted}");
        let mut streams: BTreeMap<_, u32> = BTreeMap::new();
        ends("grpc-concurrent", role).for_each(|e| *streams.entry(e.local).or_default() += 1);
        assert!(streams.values().all(|&n| n >= 32), "calls at once share a connection: {streams:?}");
        assert!(ends("grpc-bidi", role).all(|e| e.messages.len() == 16));
    }
    assert!(ends("grpc-error", Role::Client).all(|e| matches!(e.grpc_status, Some(5 | 13))));
    assert!(ends("http1-expect-continue", Role::Client).all(|e| e.interim.is_some()));
    assert!(ends("http1-early-413", Role::Client).all(|e| e.request.last.is_none() && e.response.last.is_some()));
    for exchange in ends("http1-pipelined", Role::Client) {
        let (first, last) = (exchange.request.first, exchange.request.last);
        assert!(first.is_some() && first == last, "one call carries the request");
    }
    let stalled = ends("http2-upload-stall", Role::Server).all(|e| e.waits_ns(Doing::Reading) >= 60_000_000);
    assert!(stalled, "the server stops reading");
}
