//! The whole way, against known truth: real Envoys, real probes, real access logs. One at a time (`--test-threads=1`):
//! two labs at once would disturb each other's times.

use meshdiff_e2e::{
    Judgement, Lab, LabOptions, Load, Matrix, Recorder, Request, Row, judge, median, privileged, requests,
};
use meshdiff_lab::truth::{Nonce, Side, Truth};
use std::collections::BTreeMap;
use std::time::Duration;

/// One recording of one load.
struct Run {
    load: Load,
    requests: Vec<Request>,
    truth: Truth,
    judgement: Judgement,
}

fn run(what: &str, lab: &[&str], load: &[&str]) -> Run {
    let lab = Lab::up(what, &LabOptions::of(lab));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &[]);
    let load = lab.load(load);
    // The last requests are answered; a moment later nothing of them is under way any more.
    std::thread::sleep(Duration::from_millis(200));
    let (capture, said) = recorder.stop();
    println!("{what}: {}", said.trim().replace('\n', " | "));
    let requests = requests(&capture);
    let truth = lab.down();
    let judgement = judge(&requests, &truth);
    Run { load, requests, truth, judgement }
}

/// What no noise can excuse.
fn assert_sound(run: &Run) {
    let j = &run.judgement;
    println!(
        "{} requests, {} full, {} judged, {} wrong joins, {} with unknown truth, {} parents right and {} wrong, {} inexact sums",
        run.requests.len(),
        run.requests.iter().filter(|r| r.coverage.full).count(),
        j.judged,
        j.wrong.len(),
        j.unknown.len(),
        j.right_parents,
        j.wrong_parents.len(),
        j.inexact.len()
    );
    assert!(j.judged > 100, "too little was judged");
    assert!(j.wrong.is_empty(), "wrong joins: {:?}", j.wrong);
    assert!(j.unknown.is_empty(), "full requests that never were: {:?}", j.unknown);
    assert!(j.wrong_parents.is_empty(), "wrong parents: {:?}", j.wrong_parents);
    assert!(j.inexact.is_empty(), "inexact sums: {:?}", j.inexact);
}

/// Of the requests that the kernel saw sent between 2 s after the first and 1 s before the last, the share that is full.
fn full_share(requests: &[Request]) -> (usize, usize) {
    let sent = |r: &Request| r.crossings.request.get("clientLoopback").and_then(|c| c.send_ns);
    let first = requests.iter().filter_map(sent).min().unwrap_or(0);
    let last = requests.iter().filter_map(sent).max().unwrap_or(0);
    let window = first + 2_000_000_000..last.saturating_sub(1_000_000_000);
    let within: Vec<&Request> = requests.iter().filter(|r| sent(r).is_some_and(|at| window.contains(&at))).collect();
    (within.iter().filter(|r| r.coverage.full).count(), within.len())
}

/// Why requests are not full.
fn reasons(requests: &[Request]) -> BTreeMap<String, usize> {
    let mut map = BTreeMap::new();
    for r in requests.iter().filter(|r| !r.coverage.full) {
        *map.entry(r.coverage.reason.clone().unwrap_or_default()).or_default() += 1;
    }
    map
}

#[test]
fn bookinfo_at_200_requests_a_second() {
    if !privileged() {
        return;
    }
    let run = run("base", &[], &["--rate", "200", "--duration", "10s"]);
    assert_eq!(run.load.ok(), run.load.requests(), "the mesh itself must work");
    assert_sound(&run);
    let (full, of) = full_share(&run.requests);
    println!(
        "full in the window: {full} of {of} ({:.3}%); others: {:?}",
        100.0 * full as f64 / of as f64,
        reasons(&run.requests)
    );
    assert!(of > 3_000, "the window holds too few requests: {of}");
    assert!(full * 100 >= of * 99, "only {full} of {of} are full: {:?}", reasons(&run.requests));

    // The total against the clock of the one who waited.
    let mut differences = Vec::new();
    for &(nonce, i) in &run.judgement.nonces {
        let Some(record) = run.truth.client_by_nonce(nonce).filter(|c| c.pod == "loadgen") else { continue };
        let Some(end) = record.recv_end_ns else { continue };
        let waited = end.0 - record.send_start_ns.0;
        differences.push(waited as f64 - run.requests[i].total_ns as f64);
    }
    let middle = median(differences.clone());
    println!(
        "the load generator's time less totalNs: median {:.1} µs over {} requests, largest {:.1} µs",
        middle / 1e3,
        differences.len(),
        differences.iter().copied().fold(f64::MIN, f64::max) / 1e3
    );
    assert!(differences.len() > 1_500, "too few requests of the load generator: {}", differences.len());
    assert!(middle.abs() < 100_000.0, "the totals are off by {middle} ns at the median");
    assert!(differences.iter().all(|d| *d > -1_000.0), "a total is longer than the client waited");
}

#[test]
fn sixty_four_connections_at_once() {
    if !privileged() {
        return;
    }
    let run = run("many", &[], &["--connections", "64", "--duration", "5s"]);
    assert_sound(&run);
    let (full, of) = full_share(&run.requests);
    println!(
        "full in the window: {full} of {of} ({:.3}%); others: {:?}",
        100.0 * full as f64 / of as f64,
        reasons(&run.requests)
    );
    assert!(full * 100 >= of * 95, "only {full} of {of} are full: {:?}", reasons(&run.requests));
}

/// The hop into which the delays of this test are put.
const HOP: &str = "productpage-v1 → details-v1";

/// A place, the segment that it is in, and what really was waited there for a hop.
type Place = (&'static str, &'static str, fn(&Truth, Nonce) -> Option<u64>);

const PLACES: [Place; 3] = [
    ("details.app", "server_app", |t, n| t.app_delay_ns(n)),
    ("productpage.sidecar_out", "client_sidecar", |t, n| t.sidecar_delay_ns(n, Side::Outbound)),
    ("details.sidecar_in", "server_sidecar", |t, n| t.sidecar_delay_ns(n, Side::Inbound)),
];

#[test]
fn each_delay_lands_in_its_own_segment() {
    if !privileged() {
        return;
    }
    let mut matrix = Matrix::default();
    let delays: Vec<String> = PLACES.iter().map(|(place, ..)| format!("{place}=0,500us,5ms")).collect();
    let load = ["--rate", "200", "--duration", "10s", "--delay-mode", "single", "--delays", &delays.join(";")];
    let at_random = run("delay", &["--ext-authz"], &load);
    assert_sound(&at_random);
    matrix.0.extend(rows(&at_random));

    let network = |what: &str, delay: &str| {
        let link = format!("productpage-v1:details-v1={delay}");
        let run = run(what, &["--net-delay", &link], &["--rate", "200", "--duration", "4s"]);
        assert_sound(&run);
        run
    };
    // One way; a request and its response wait twice.
    let without = network("net0", "0us");
    for (what, one_way, asked) in [("net1", "250us", "0.5 ms"), ("net2", "2500us", "5 ms")] {
        let with = network(what, one_way);
        let held = |run: &Run| {
            let data = run.truth.packets().iter().filter(|p| p.payload > 0);
            2.0 * median(data.map(|p| (p.out_ns.0 - p.in_ns.0) as f64).collect())
        };
        let (a, b) = (full_requests(&with), full_requests(&without));
        matrix.0.push(Row {
            segment: "network".to_owned(),
            asked: asked.to_owned(),
            actual: held(&with) - held(&without),
            moved: Row::moves(&a, &b),
            envoy: None,
            n: (a.len(), b.len()),
        });
    }

    println!("\nHow far each segment's median moved, in µs, for {HOP}:\n\n{matrix}");
    let file = meshdiff_e2e::build_folder().join("accuracy-matrix.md");
    std::fs::write(&file, matrix.to_string()).expect("the build folder is writable");
    println!("(also in {})", file.display());
    for row in &matrix.0 {
        let (other, moved) = row.largest_other();
        let goal = if row.actual > 2e6 { 0.05 } else { 0.10 };
        let quiet = f64::max(50_000.0, 0.05 * row.actual);
        println!(
            "{} {}: {:.3} of the actual delay ({}), next {other} by {:.0} µs ({})",
            row.segment,
            row.asked,
            row.ratio(),
            if (row.ratio() - 1.0).abs() <= goal { "within the goal" } else { "MISSES the goal" },
            moved / 1e3,
            if moved.abs() <= quiet { "within the goal" } else { "MISSES the goal" },
        );
    }
    for row in &matrix.0 {
        let (other, moved) = row.largest_other();
        // On a busy machine whoever waited wakes up late, which is time spent there.
        let off = (row.moved[&row.segment] - row.actual).abs();
        assert!(off <= 0.20 * row.actual + 100_000.0, "{} moved {:.3} of the delay: {row:?}", row.segment, row.ratio());
        assert!(moved.abs() < row.moved[&row.segment], "{other} moved more than {}: {row:?}", row.segment);
        // What a sidecar takes beyond its filter's wait it takes by its own clock as well: it wakes up, and runs on cold caches.
        if let Some(envoy) = row.envoy {
            let beyond = (row.moved[&row.segment] - envoy).abs();
            assert!(beyond <= 100_000.0 + 0.10 * envoy, "Envoy's own clock says {envoy}, not what moved: {row:?}");
        }
    }
}

/// The full requests of the hop, the first two seconds (connections are being made) left out.
fn full_requests(run: &Run) -> Vec<&Request> {
    let begin = run.requests.iter().filter_map(|r| r.start_monotonic_ns).min().unwrap_or(0) + 1_000_000_000;
    let chosen = run.requests.iter().filter(|r| r.coverage.full && r.hop() == HOP);
    chosen.filter(|r| r.start_monotonic_ns.is_some_and(|at| at > begin)).collect()
}

/// The experiments of a run in which at most one place waited for each request.
fn rows(run: &Run) -> Vec<Row> {
    const CLASSES: [(&str, u64, u64); 2] = [("0.5 ms", 400_000, 2_000_000), ("5 ms", 4_500_000, 50_000_000)];
    let of_hop = |i: usize| run.requests[i].coverage.full && run.requests[i].hop() == HOP;
    let waited: Vec<([u64; 3], &Request)> = run
        .judgement
        .nonces
        .iter()
        .filter(|&&(_, i)| of_hop(i))
        .map(|&(nonce, i)| (PLACES.map(|(.., actual)| actual(&run.truth, nonce).unwrap_or(0)), &run.requests[i]))
        .collect();
    // A call to a sidecar's server takes its 10 µs also when it is not to wait.
    let none = |ns: u64| ns < 200_000;
    let without: Vec<&Request> = waited.iter().filter(|(w, _)| w.iter().all(|&ns| none(ns))).map(|(_, r)| *r).collect();
    let mut rows = Vec::new();
    for (place, (_, segment, _)) in PLACES.iter().enumerate() {
        let base = median(waited.iter().filter(|(w, _)| none(w[place])).map(|(w, _)| w[place] as f64).collect());
        for (asked, from, to) in CLASSES {
            let with: Vec<&([u64; 3], &Request)> =
                waited.iter().filter(|(w, _)| (from..to).contains(&w[place])).collect();
            assert!(with.len() > 50, "too few requests waited {asked} in {segment}: {}", with.len());
            let actual = median(with.iter().map(|(w, _)| w[place] as f64).collect()) - base;
            let requests: Vec<&Request> = with.iter().map(|(_, r)| *r).collect();
            rows.push(Row {
                segment: (*segment).to_owned(),
                asked: asked.to_owned(),
                actual,
                moved: Row::moves(&requests, &without),
                envoy: Row::by_envoy(segment, &requests, &without),
                n: (requests.len(), without.len()),
            });
        }
    }
    rows
}
