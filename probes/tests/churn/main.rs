//! Ten thousand connections a second, opened and closed over few ports: nothing leaks, and nothing is taken for something
//! else. Needs root, and a machine that does nothing else meanwhile.
//!
//! `MESHDIFF_CHURN_SECONDS` says for how long (5); `make bench` takes 30.

mod kernel_memory;
mod notes;
mod traffic;

use kernel_memory::KernelMemory;
use meshdiff_model::{Direction, DurationNs, SeqRange};
use meshdiff_probes::{Assembler, Limits, ProbeConfig, ProbeCounters, Probes, RawEvent, monotonic_now, open_sockets};
use notes::{Kind, Notes};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use traffic::{Connection, churn, in_new_netns};

const PER_SECOND: usize = 10_000;
/// How long sockets and memory may take to be gone.
const DEADLINE: Duration = Duration::from_secs(20);

/// False if the privileged tests are to be left out, on purpose.
fn privileged() -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("left out: this test loads probes and needs root, and MESHDIFF_SKIP_PRIVILEGED=1 says to do without");
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads programs into the kernel and needs root; leave it out with MESHDIFF_SKIP_PRIVILEGED=1"
    );
    true
}

fn seconds() -> usize {
    std::env::var("MESHDIFF_CHURN_SECONDS").map_or(5, |text| text.parse().expect("MESHDIFF_CHURN_SECONDS is a number"))
}

/// After this every closed socket must be gone whose closing was told: it lingers for 2 s.
const AFTER_LOSS: Duration = Duration::from_secs(4);

/// What one run left behind.
struct Run {
    truth: Vec<Connection>,
    notes: Notes,
    counters: ProbeCounters,
    gaps: u64,
    late: u64,
    most_open: usize,
    /// Sockets that were held when all had been closed for long.
    held: usize,
    /// Those of them that were held still when the kernel had said which are open.
    held_after: usize,
    /// How many were given up by that.
    vanished: u64,
}

/// Drains while `work` runs, and afterwards until no socket is held any more.
fn recorded(ring_bytes: u32, every: Duration, work: impl FnOnce() -> Vec<Connection> + Send) -> Run {
    in_new_netns(|netns| {
        let config = ProbeConfig { ring_bytes, measure_cost: false, ..ProbeConfig::default() };
        let mut probes = Probes::load(&config).unwrap_or_else(|e| panic!("{e}"));
        probes.filter().watch(netns).unwrap_or_else(|e| panic!("{e}"));
        let (mut assembler, mut notes) = (Assembler::new(Limits::default()), Notes::default());
        let mut most_open = 0;
        let mut drain = |probes: &mut Probes| {
            probes.drain(|event: &RawEvent<'_>| assembler.push(event, &mut notes));
            assembler.tick(monotonic_now(), &mut notes);
            most_open = most_open.max(assembler.open_sockets());
            assembler.open_sockets()
        };
        let over = AtomicBool::new(false);
        let truth = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let truth = work();
                over.store(true, Ordering::Release);
                truth
            });
            while !over.load(Ordering::Acquire) && !traffic.is_finished() {
                drain(&mut probes);
                std::thread::sleep(every);
            }
            traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // Closed sockets linger for reads that are still to come; then none is held but those whose closing was lost.
        let end = Instant::now() + DEADLINE;
        let counters = loop {
            let held = drain(&mut probes);
            let counters = probes.counters().expect("counters");
            if held == 0 || (counters.lost > 0 && Instant::now() + DEADLINE > end + AFTER_LOSS) {
                break counters;
            }
            assert!(Instant::now() < end, "{held} sockets are still held after all were closed");
            std::thread::sleep(Duration::from_millis(20));
        };
        let held = assembler.open_sockets();
        for _ in 0..2 {
            let asked = monotonic_now();
            let open = open_sockets(netns).unwrap_or_else(|e| panic!("{e}"));
            assembler.still_open(&BTreeMap::from([(netns, open)]), asked);
        }
        // All have been silent for longer than closed ones linger, but are looked at from time to time only.
        assembler.tick(monotonic_now().offset(DurationNs::from_millis(10_000)), &mut notes);
        let held_after = assembler.open_sockets();
        assembler.finish(&mut notes);
        let stats = assembler.stats();
        let (gaps, late, vanished) = (stats.lost_events, stats.late_events, stats.vanished_sockets);
        Run { truth, notes, counters, gaps, late, most_open, held, held_after, vanished }
    })
}

/// The byte ranges of a connection as they were told: what the client sent, as it arrived, what the server sent, as that arrived.
type Told = [Option<SeqRange>; 4];

/// What payload tells the probes must be what the connection of that socket carried, and both ends must number the same bytes alike.
/// Returns how many messages were judged. With `all`, everything must be there.
fn assert_unmixed(run: &Run, all: bool) -> usize {
    let by_client: HashMap<_, _> = run.truth.iter().enumerate().map(|(n, c)| (c.client, n)).collect();
    let by_server: HashMap<_, _> = run.truth.iter().enumerate().map(|(n, c)| (c.server, n)).collect();
    assert_eq!((by_client.len(), by_server.len()), (run.truth.len(), run.truth.len()), "cookies are unique");
    let mut told: HashMap<usize, Told> = HashMap::new();
    let mut judged = 0;
    for note in &run.notes.messages {
        let (n, slot) = match (by_client.get(&note.socket), by_server.get(&note.socket), note.direction) {
            (Some(&n), None, Direction::Egress) => (n, 0),
            (None, Some(&n), Direction::Ingress) => (n, 1),
            (None, Some(&n), Direction::Egress) => (n, 2),
            (Some(&n), None, Direction::Ingress) => (n, 3),
            _ => panic!("{note:?} is of nobody's socket"),
        };
        let bytes = if slot < 2 { traffic::request(n).len() } else { traffic::response(n).len() };
        let length = note.seq.len() as usize;
        assert!(length <= bytes, "{note:?} is longer than the {bytes} bytes that connection {n} carried");
        match note.kind {
            Kind::Request(named) => assert_eq!((named, slot), (n, 0), "{note:?} is another connection's request"),
            Kind::Response => assert_eq!(slot, 2, "{note:?} is on a socket that sent none"),
            Kind::Other => {}
        }
        judged += usize::from(note.kind != Kind::Other || slot % 2 == 1);
        // Of what was cut by a loss only a part is there.
        if note.gap_before {
            assert!(!all, "{note:?}: nothing was lost");
            continue;
        }
        if all {
            assert_eq!(length, bytes, "{note:?}: connection {n} carried {bytes} bytes");
            assert_eq!(note.kind == Kind::Other, slot % 2 == 1, "{note:?}: payload is read where it is sent");
        }
        let place = &mut told.entry(n).or_default()[slot];
        assert!(place.replace(note.seq).is_none() || !all, "{note:?}: twice on connection {n}");
    }
    for (n, ends) in &told {
        assert!(!all || ends.iter().all(Option::is_some), "connection {n} was not told whole: {ends:?}");
        for [sent, arrived] in [[ends[0], ends[1]], [ends[2], ends[3]]] {
            let (Some(sent), Some(arrived)) = (sent, arrived) else { continue };
            let within = !arrived.start.before(sent.start) && !sent.end.before(arrived.end);
            assert!(within, "connection {n}: {arrived:?} arrived of {sent:?}");
            assert!(!all || sent == arrived, "connection {n}: both ends number the same bytes alike");
        }
    }
    assert!(!all || told.len() == run.truth.len(), "{} of {} connections", told.len(), run.truth.len());
    for socket in run.notes.sockets.values() {
        let (found, expected) = match (by_client.get(&socket.cookie), by_server.get(&socket.cookie)) {
            (Some(&n), None) => ((socket.local.0, socket.remote.0), run.truth[n].addresses()),
            (None, Some(&n)) => ((socket.remote.0, socket.local.0), run.truth[n].addresses()),
            _ => panic!("a socket of nobody: {socket:?}"),
        };
        assert_eq!(found, expected, "{socket:?} has another socket's addresses");
        assert!(!all || socket.closed.is_some(), "{socket:?} was not seen closing");
    }
    judged
}

#[test]
fn ten_thousand_connections_a_second_leak_nothing_and_are_never_mixed_up() {
    if !privileged() {
        return;
    }
    let (seconds, memory) = (seconds(), KernelMemory::own_group());
    // The first sockets fill the kernel's caches; only what comes on top of that could leak.
    let warm_up = recorded(1 << 24, Duration::from_millis(5), || churn(2_000, PER_SECOND).0);
    assert_unmixed(&warm_up, true);
    let before = memory.as_ref().map(KernelMemory::settled);
    let mut wall = Duration::ZERO;
    let run = recorded(1 << 25, Duration::from_millis(5), || {
        let (truth, took) = churn(PER_SECOND * seconds, PER_SECOND);
        wall = took;
        truth
    });
    let rate = run.truth.len() as f64 / wall.as_secs_f64();
    let reuse = traffic::usual_reuse(&run.truth);
    println!(
        "{} connections in {wall:.1?} ({rate:.0} a second), a port used again after {reuse:.1?} at the median; {:?}, at most {} sockets held at once",
        run.truth.len(),
        run.counters,
        run.most_open
    );
    assert!(rate > 0.5 * PER_SECOND as f64, "this machine makes only {rate:.0} connections a second");
    assert!(reuse < Duration::from_millis(20), "ports are used again after {reuse:?} only");
    let c = &run.counters;
    assert_eq!((c.lost, c.untracked, c.undecodable), (0, 0, 0), "{c:?}");
    assert_eq!(c.emitted, c.consumed, "{c:?}");
    assert_eq!((run.gaps, run.late, run.held), (0, 0, 0));
    let judged = assert_unmixed(&run, true);
    println!("{judged} messages held against what their connections carried");
    assert_eq!(judged, 4 * run.truth.len(), "a request and a response, each at both ends");
    // A closed socket lingers for 2 s.
    assert!(run.most_open <= 2 * 3 * PER_SECOND, "{} sockets were held at once", run.most_open);
    let connections = run.truth.len();
    drop(run);
    if let (Some(memory), Some(before)) = (&memory, before) {
        // One forgotten entry of sk_storage per connection would be at least 64 bytes each.
        let most = before + 32 * connections as u64;
        let after = memory.falls_below(most, DEADLINE);
        println!("kernel memory of this process: {before} bytes before, {after} after");
        assert!(after <= most, "kernel memory grew from {before} to {after} bytes over {connections} connections");
    } else {
        println!("not compared: the kernel's memory, because there is no memory controller of cgroup v1 or v2 here");
    }
}

#[test]
fn a_ring_that_is_far_too_small_loses_counts_and_mixes_up_nothing() {
    if !privileged() {
        return;
    }
    let run = recorded(1 << 19, Duration::from_millis(50), || churn(10_000, PER_SECOND).0);
    let c = &run.counters;
    let judged = assert_unmixed(&run, false);
    println!("{c:?}, {} gaps seen, {judged} messages judged, {} sockets held", run.gaps, run.held);
    assert!(c.lost > 1_000, "the ring was not too small: {c:?}");
    assert!(judged > 100, "too little came through to be judged: {judged}");
    assert_eq!(c.emitted, c.consumed, "{c:?}");
    assert_eq!((c.untracked, c.undecodable, run.late), (0, 0, 0), "{c:?}");
    assert!(run.gaps <= c.lost, "more gaps ({}) than losses: {c:?}", run.gaps);
    // A socket whose closing was lost cannot be told from an open one that is silent, until the kernel is asked which are open. Its
    // losses bound their number.
    assert!(run.held as u64 <= c.lost && run.held < run.truth.len() / 10, "{} sockets are held: {c:?}", run.held);
    assert_eq!((run.held_after, run.vanished), (0, run.held as u64), "no socket is open any more: {c:?}");
}
