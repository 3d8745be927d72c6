//! The kernel's side of a recording: probes, message assembly, and which network namespaces are watched.

use super::existing::{self, Existing, Opened};
use super::libraries::{self, Finder, Follower};
use super::options::Options;
use super::store::Item;
use crate::exit::Failure;
use anyhow::Context;
use meshdiff_capture::{EventCounts, TierRefusal, TlsLibrary, Unmeasured, WatchReason, WatchedNetns};
use meshdiff_discovery::{DiscoveryError, NetnsScanner, Selection, Watched, Why};
use meshdiff_model::{Http2Stream, Message, NetnsId, ProbeStats, ProbeTier, Socket, SocketEvent, SocketMetrics};
use meshdiff_probes::{
    Assembler, DropReasons, Limits, NamespaceFilter, ProbeConfig, Probes, RawKind, Sink, monotonic_now,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often namespaces are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often the ring is emptied: at 100,000 events a second this is a twentieth of its default size. Rarer is cheaper,
/// because each time wakes two threads.
const DRAIN: Duration = Duration::from_millis(50);

/// Says of the network namespaces that have a sidecar which ones are watched.
pub(crate) trait Gate: Send + Sync {
    /// True if the namespace with these processes is to be watched. Asked again every second, so that an answer may change.
    fn admits(&self, netns: NetnsId, processes: &[u32]) -> bool;
}

/// Looks for namespaces, and asks the gate about each.
struct Chosen {
    scanner: NetnsScanner,
    gate: Option<Arc<dyn Gate>>,
}

impl Chosen {
    fn scan(&mut self) -> Result<Vec<Watched>, DiscoveryError> {
        let mut watched = self.scanner.scan()?.watched;
        if let Some(gate) = &self.gate {
            watched.retain(|w| gate.admits(w.netns, self.scanner.processes(w.netns)));
        }
        Ok(watched)
    }
}

/// Probes that are attached and watch what was found at the start.
pub(crate) struct KernelSide {
    probes: Probes,
    scanner: Chosen,
    watched: Vec<Watched>,
    libraries: Option<(Finder, Follower)>,
    found: Vec<TlsLibrary>,
    existing: (Existing, Opened),
    raw: bool,
    ring_bytes: u64,
}

/// What the kernel's side did, once it has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelEnd {
    pub(crate) stats: ProbeStats,
    pub(crate) events: EventCounts,
}

/// The threads of the kernel's side.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    drain: JoinHandle<KernelEnd>,
    look: JoinHandle<()>,
}

impl KernelSide {
    /// Loads the probes and watches what is there, as far as the gate (if there is one) lets it.
    pub(crate) fn start(options: &Options, gate: Option<Arc<dyn Gate>>) -> Result<Self, Failure> {
        let mut scanner = Chosen { scanner: NetnsScanner::new(options.selection.clone())?, gate };
        let config = ProbeConfig {
            ring_bytes: options.ring_bytes,
            watch_all: options.selection == Selection::All,
            drain_interval: DRAIN,
            ..ProbeConfig::default()
        };
        let mut probes = Probes::load(&config)?;
        let watched = scanner.scan()?;
        for w in &watched {
            probes.filter().watch(w.netns)?;
        }
        // After they are watched, so that whatever closes from here on is seen to.
        let existing = existing::pair();
        watched.iter().for_each(|w| existing.0.look(w.netns));
        let mut libraries = options.follow_libraries.map(libraries::pair);
        let found = libraries.as_mut().map(|(finder, follower)| {
            finder.look(&watched.iter().map(|w| w.netns).collect());
            follower.follow(&mut probes, Duration::MAX)
        });
        let ring_bytes = u64::from(options.ring_bytes);
        Ok(Self {
            probes,
            scanner,
            watched,
            libraries,
            found: found.unwrap_or_default(),
            existing,
            raw: options.raw,
            ring_bytes,
        })
    }

    pub(crate) fn tier(&self) -> ProbeTier {
        self.probes.tier()
    }

    /// Better kinds of probes that the kernel refused.
    pub(crate) fn refused(&self) -> Vec<TierRefusal> {
        let refused = self.probes.refused().iter();
        refused.map(|(tier, error)| TierRefusal { tier: *tier, reason: error.to_string() }).collect()
    }

    /// What is not measured because the kernel refused the probes for it.
    pub(crate) fn unmeasured(&self) -> Vec<Unmeasured> {
        let list = self.probes.unmeasured().iter();
        list.map(|(metric, error)| Unmeasured { metric: *metric, reason: error.to_string() }).collect()
    }

    /// The namespaces that are watched from the start.
    pub(crate) fn watched(&self) -> Vec<WatchedNetns> {
        self.watched.iter().map(describe).collect()
    }

    /// Libraries of TLS that were found at the start.
    pub(crate) fn tls_libraries(&self) -> Vec<TlsLibrary> {
        self.found.clone()
    }

    /// Begins to hand on what the probes see.
    pub(crate) fn run(self, to_store: mpsc::Sender<Item>) -> Result<Running, Failure> {
        let Self { probes, scanner, watched, libraries, found: _, existing: (existing, opened), raw, ring_bytes } =
            self;
        let (finder, follower) = libraries.unzip();
        let stop = Arc::new(AtomicBool::new(false));
        let filter = probes.filter();
        let drain = std::thread::Builder::new()
            .name("drain".to_owned())
            .spawn({
                let (stop, to_store) = (Arc::clone(&stop), to_store.clone());
                move || drain(probes, follower.as_ref(), &opened, raw, ring_bytes, &stop, &to_store)
            })
            .context("cannot start a thread")?;
        let look = std::thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || look(scanner, finder, &existing, &watched, &filter, &stop, &to_store)
            })
            .context("cannot start a thread")?;
        Ok(Running { stop, drain, look })
    }
}

impl Running {
    /// Stops the probes; what they saw until now is handed on before this resolves.
    pub(crate) fn stop(self) -> impl Future<Output = Result<KernelEnd, Failure>> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || {
            let end = self.drain.join();
            drop(self.look.join());
            end
        });
        async move {
            let end = joined.await.context("waiting for the probes")?;
            Ok(end.map_err(|_| {
                anyhow::anyhow!("the probes' thread panicked: this is a defect in meshdiff, please report it")
            })?)
        }
    }
}

/// Collects what one drain yields.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    streams: Vec<Http2Stream>,
    sockets: Vec<Socket>,
    metrics: Vec<SocketMetrics>,
    events: Vec<SocketEvent>,
}

impl Sink for Batch {
    fn message(&mut self, message: Message) {
        self.messages.push(message);
    }
    fn socket(&mut self, socket: Socket) {
        self.sockets.push(socket);
    }
    fn metrics(&mut self, row: SocketMetrics) {
        self.metrics.push(row);
    }
    fn http2(&mut self, stream: Http2Stream) {
        self.streams.push(stream);
    }
}

impl Batch {
    /// Hands everything on; waits while the writer is behind, which is where the ring fills.
    fn flush(&mut self, to_store: &mpsc::Sender<Item>) {
        let Self { messages, streams, sockets, metrics, events } = std::mem::take(self);
        let items = [
            Item::Sockets(sockets),
            Item::Messages(messages),
            Item::Streams(streams),
            Item::Metrics(metrics),
            Item::Events(events),
        ];
        for item in items {
            if !item.is_empty() && to_store.blocking_send(item).is_err() {
                // The writer has failed; the recording is about to end.
                return;
            }
        }
    }
}

fn drain(
    mut probes: Probes,
    follower: Option<&Follower>,
    opened: &Opened,
    raw: bool,
    ring_bytes: u64,
    stop: &AtomicBool,
    to_store: &mpsc::Sender<Item>,
) -> KernelEnd {
    let mut assembler = Assembler::new(Limits::default()).with_drop_reasons(DropReasons::of_this_kernel());
    let mut batch = Batch::default();
    let mut counts = EventCounts::default();
    let mut next_stats = Instant::now() + LOOK;
    let mut detached = false;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if stopping && !detached {
            probes.detach();
            detached = true;
        }
        if let Some(follower) = follower.filter(|_| !stopping) {
            let new = Item::Libraries(follower.follow(&mut probes, libraries::TURN));
            if !new.is_empty() {
                drop(to_store.blocking_send(new));
            }
        }
        let drained = probes.drain(|event| {
            match event.kind {
                RawKind::Announce(_) => {}
                RawKind::Send { .. } | RawKind::SendFrames { .. } | RawKind::SendPlaintext { .. } => counts.sends += 1,
                RawKind::Ready { .. } => counts.readies += 1,
                RawKind::Recv { .. } => counts.recvs += 1,
                RawKind::State { .. } => counts.states += 1,
                RawKind::Held { .. } | RawKind::Retransmit { .. } | RawKind::Reset { .. } | RawKind::Drop { .. } => {
                    counts.others += 1;
                }
            }
            if raw && let Some(event) = event.to_socket_event() {
                batch.events.push(event);
            }
            assembler.push(event, &mut batch);
        });
        counts.malformed += drained.undecodable;
        opened.hand_on(&mut assembler);
        assembler.tick(monotonic_now(), &mut batch);
        batch.flush(to_store);
        if stopping && drained.records == 0 {
            break;
        }
        if Instant::now() >= next_stats {
            next_stats += LOOK;
            let end = KernelEnd { stats: counted(&probes, &assembler), events: counts };
            drop(to_store.blocking_send(Item::KernelProgress(end)));
        }
        // A ring that was half full is emptied again at once.
        if drained.bytes < ring_bytes / 2 {
            std::thread::sleep(if stopping { Duration::from_millis(1) } else { DRAIN });
        }
    }
    assembler.finish(&mut batch);
    batch.flush(to_store);
    KernelEnd { stats: counted(&probes, &assembler), events: counts }
}

/// What the probes and the assembly counted.
fn counted(probes: &Probes, assembler: &Assembler) -> ProbeStats {
    ProbeStats { vanished_sockets: assembler.stats().vanished_sockets, ..probes.stats().unwrap_or_default() }
}

fn look(
    mut scanner: Chosen,
    mut finder: Option<Finder>,
    existing: &Existing,
    watched: &[Watched],
    filter: &NamespaceFilter,
    stop: &AtomicBool,
    to_store: &mpsc::Sender<Item>,
) {
    let mut known: BTreeSet<_> = watched.iter().map(|w| w.netns).collect();
    let mut left = BTreeSet::new();
    let (mut next, mut next_list) = (Instant::now() + LOOK, Instant::now() + existing::EVERY);
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() < next {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        next += LOOK;
        let found = match scanner.scan() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot look for network namespaces");
                continue;
            }
        };
        for w in &found {
            if known.contains(&w.netns) {
                continue;
            }
            match filter.watch(w.netns) {
                Ok(_) => {
                    known.insert(w.netns);
                    existing.look(w.netns);
                    tracing::info!(netns = w.netns.0, "watching another network namespace");
                    drop(to_store.blocking_send(Item::Watched(describe(w))));
                }
                Err(error) => tracing::warn!(%error, netns = w.netns.0, "cannot watch a network namespace"),
            }
        }
        // The kernel gives a namespace's number away again once it is gone.
        let present: BTreeSet<_> = found.iter().map(|w| w.netns).collect();
        for gone in known.difference(&present).copied().collect::<Vec<_>>() {
            known.remove(&gone);
            left.insert(gone);
            if let Err(error) = filter.unwatch(gone) {
                tracing::warn!(%error, netns = gone.0, "cannot stop watching a network namespace");
            }
        }
        if let Some(finder) = &mut finder {
            finder.look(&known);
        }
        if Instant::now() >= next_list {
            next_list = Instant::now() + existing::EVERY;
            existing.look_again(&known, &left);
        }
    }
}

fn describe(w: &Watched) -> WatchedNetns {
    let (reason, detail) = match &w.why {
        Why::Envoy(tgid) => (WatchReason::Envoy, format!("Envoy runs in it as process {}", tgid.0)),
        Why::Listener(port) => (WatchReason::Listener, format!("something listens on port {port} in it")),
        Why::Asked(words) => (WatchReason::Asked, words.clone()),
        Why::All => (WatchReason::All, String::new()),
    };
    WatchedNetns { netns: w.netns, reason, detail }
}
