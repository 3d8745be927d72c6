//! The thread that writes the capture.

use super::clock;
use super::kernel::KernelEnd;
use super::libraries;
use super::tally;
use meshdiff_als::{AlsBatch, AlsHandle};
use meshdiff_capture::{CaptureError, CaptureSink, KubernetesInfo, Meta, TlsLibrary, WatchedNetns};
use meshdiff_discovery::ProcessTable;
use meshdiff_model::{
    ClockAnchor, ClockSample, HopProtocol, Http2Stream, Message, NodeId, Proxy, Socket, SocketEvent, SocketMetrics,
    Tgid,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often what was recorded is made to survive a crash, and how much is remembered meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How often.
    pub(crate) roll: Duration,
    /// Readings of the clocks that are remembered, one for each roll.
    pub(crate) clock_samples: usize,
    /// Processes that have ended are forgotten: for recorders that run for months.
    pub(crate) forget: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { roll: Duration::from_secs(1), clock_samples: usize::MAX, forget: false }
    }
}

/// Namespaces that are remembered: a recorder that runs for months sees more come and go than anyone wants to read of.
const MOST_NAMESPACES: usize = 4096;

/// Something to write.
pub(crate) enum Item {
    Messages(Vec<Message>),
    Streams(Vec<Http2Stream>),
    Sockets(Vec<Socket>),
    Metrics(Vec<SocketMetrics>),
    Events(Vec<SocketEvent>),
    /// Counts against the receiver's bound on bytes until it is dropped, so that a flood waits in no more memory than that.
    AccessLogs(AlsBatch),
    Watched(WatchedNetns),
    Libraries(Vec<TlsLibrary>),
    KernelProgress(KernelEnd),
    /// Time has passed.
    Tick,
    /// What was written is wanted now.
    Roll,
    /// The recording is over: nothing else comes.
    End {
        at: ClockSample,
        als: Box<meshdiff_als::AlsStats>,
        kernel: Option<KernelEnd>,
    },
}

impl Item {
    pub(crate) const fn is_empty(&self) -> bool {
        match self {
            Self::Messages(list) => list.is_empty(),
            Self::Streams(list) => list.is_empty(),
            Self::Sockets(list) => list.is_empty(),
            Self::Metrics(list) => list.is_empty(),
            Self::Events(list) => list.is_empty(),
            Self::Libraries(list) => list.is_empty(),
            _ => false,
        }
    }
}

/// Hands the server's batches to the store, until either of them ends.
pub(crate) async fn forward(mut batches: mpsc::Receiver<AlsBatch>, store: mpsc::Sender<Item>) {
    while let Some(batch) = batches.recv().await {
        if store.send(Item::AccessLogs(batch)).await.is_err() {
            break;
        }
    }
}

/// What progress shows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) namespaces: AtomicU64,
    pub(crate) lost: AtomicU64,
}

pub(crate) struct Store {
    sink: Box<dyn CaptureSink>,
    meta: Meta,
    als: AlsHandle,
    counters: Arc<Counters>,
    clock: Vec<ClockSample>,
    processes: ProcessTable,
    /// Processes that were looked up, so that each is written once (and again when it changes).
    owners: BTreeSet<Tgid>,
    proxies: BTreeMap<NodeId, Arc<Proxy>>,
    kept_tcp: u64,
    kept_http: u64,
    pace: Pace,
    next_roll: Instant,
    pods: Option<PodSource>,
}

/// Says what the Kubernetes API told of the pods of late.
pub(crate) type PodSource = Box<dyn Fn() -> KubernetesInfo + Send>;

impl Store {
    pub(crate) fn new(
        sink: Box<dyn CaptureSink>,
        meta: Meta,
        als: AlsHandle,
        counters: Arc<Counters>,
        pace: Pace,
    ) -> Self {
        Self {
            sink,
            clock: meta.clock.samples().to_vec(),
            meta,
            als,
            counters,
            processes: ProcessTable::new(),
            owners: BTreeSet::new(),
            proxies: BTreeMap::new(),
            kept_tcp: 0,
            kept_http: 0,
            pace,
            next_roll: Instant::now() + pace.roll,
            pods: None,
        }
    }

    /// The same, with what Kubernetes tells of the pods.
    pub(crate) fn with_pods(self, pods: Option<PodSource>) -> Self {
        Self { pods, ..self }
    }

    /// Writes until the end comes. Returns the meta as it was stored.
    ///
    /// # Errors
    /// If the capture cannot be written. What was rolled before stays readable.
    pub(crate) fn run(mut self, mut items: mpsc::Receiver<Item>) -> Result<Meta, CaptureError> {
        let written = self.write_all(&mut items);
        if written.is_err() {
            // Nobody can write any more; say so in the meta if that at least can be written, and let the senders go.
            items.close();
            if let Err(error) = &written {
                self.meta.warnings.push(format!("the recording was cut short: {error}"));
            }
            self.meta.end = Some(clock::sample());
            self.bring_up_to_date();
            drop(self.sink.finish(self.meta));
            return Err(written.err().unwrap_or_else(|| unreachable!("checked above")));
        }
        self.bring_up_to_date();
        self.sink.finish(self.meta)
    }

    fn write_all(&mut self, items: &mut mpsc::Receiver<Item>) -> Result<(), CaptureError> {
        while let Some(item) = items.blocking_recv() {
            match item {
                Item::Messages(list) => {
                    self.counters.messages.fetch_add(list.len() as u64, Relaxed);
                    list.into_iter().try_for_each(|m| self.sink.write_message(m))?;
                }
                Item::Streams(list) => list.into_iter().try_for_each(|s| self.sink.write_http2(s))?,
                Item::Sockets(list) => list.into_iter().try_for_each(|s| self.socket(s))?,
                Item::Metrics(list) => list.into_iter().try_for_each(|m| self.sink.write_metrics(m))?,
                Item::Events(list) => list.into_iter().try_for_each(|e| self.sink.write_event(e))?,
                Item::AccessLogs(batch) => self.access_logs(batch)?,
                Item::Watched(netns) => {
                    if self.meta.watched_netns.len() >= MOST_NAMESPACES {
                        self.meta.watched_netns.remove(0);
                    }
                    self.meta.watched_netns.push(netns);
                    self.counters.namespaces.fetch_add(1, Relaxed);
                }
                Item::Libraries(list) => libraries::add(&mut self.meta.probes.tls_libraries, list),
                Item::KernelProgress(progress) => self.kernel(progress),
                Item::Tick => {}
                Item::Roll => self.next_roll = Instant::now(),
                Item::End { at, als, kernel } => {
                    self.meta.end = Some(at);
                    tally::als(&mut self.meta.als, &als, self.kept_http, self.kept_tcp);
                    kernel.into_iter().for_each(|k| self.kernel(k));
                    return Ok(());
                }
            }
            if Instant::now() >= self.next_roll {
                self.next_roll = Instant::now() + self.pace.roll;
                self.roll()?;
            }
        }
        Ok(())
    }

    fn socket(&mut self, socket: Socket) -> Result<(), CaptureError> {
        if let Some(tgid) = socket.owner
            && self.owners.insert(tgid)
            && let Some(process) = self.processes.lookup(tgid)
        {
            self.sink.write_process(process.clone())?;
        }
        self.sink.write_socket(socket)
    }

    fn access_logs(&mut self, batch: AlsBatch) -> Result<(), CaptureError> {
        if let Some(proxy) = batch.proxy {
            self.sink.write_proxy((*proxy).clone())?;
            self.proxies.insert(proxy.node.clone(), proxy);
        }
        let kinds = batch.rows.rows.iter().map(|row| batch.rows.kind(row));
        for kind in kinds.filter(|kind| kind.access_log_type.is_terminal()) {
            self.counters.entries.fetch_add(1, Relaxed);
            if kind.protocol == HopProtocol::Tcp {
                self.kept_tcp += 1;
            } else {
                self.kept_http += 1;
            }
        }
        self.sink.write_access_logs(&batch.rows)
    }

    fn kernel(&mut self, progress: KernelEnd) {
        self.meta.probes.stats = progress.stats;
        self.meta.events = progress.events;
        self.counters.lost.store(progress.stats.lost_events, Relaxed);
    }

    fn roll(&mut self) -> Result<(), CaptureError> {
        for process in self.processes.refresh() {
            self.sink.write_process(process)?;
        }
        if self.pace.forget {
            for ended in self.processes.forget_ended() {
                self.owners.remove(&ended);
            }
        }
        tally::als(&mut self.meta.als, &self.als.stats(), self.kept_http, self.kept_tcp);
        self.bring_up_to_date();
        // Not waited for: what a disk needs for a sync would hold up what comes meanwhile.
        self.sink.roll_soon(&self.meta)
    }

    fn bring_up_to_date(&mut self) {
        self.clock.push(clock::sample());
        if self.clock.len() > self.pace.clock_samples {
            self.clock.remove(0);
        }
        self.meta.clock = ClockAnchor::new(self.clock.clone());
        if let Some(pods) = &self.pods {
            self.meta.kubernetes = Some(pods());
        }
        self.meta.envoy_versions.clear();
        for version in self.proxies.values().filter_map(|p| p.envoy_version.clone()) {
            *self.meta.envoy_versions.entry(version).or_default() += 1;
        }
    }
}
