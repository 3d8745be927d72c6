//! Writes the window: one segment after the other, whatever the disk says.

use super::counters::Counted;
use super::segment::{self, Segment};
use super::{Window, WindowCounters};
use crate::agent::export::{REACH, Reach};
use crate::agent::live::Tap;
use crate::agent::pods::KnownProxies;
use crate::record::clock;
use meshdiff_capture::{CaptureError, CaptureSink, CaptureWriter, Meta, WriterOptions};
use meshdiff_model::{
    ClockAnchor, ClockSample, DurationNs, HopSide, Http2Stream, LogBatch, LogBatchBuilder, Message, MonotonicNs,
    NodeId, Process, Proxy, Socket, SocketCookie, SocketEvent, SocketMetrics, Tgid,
};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A closed socket is named in later segments for this long: its last messages may still come.
const LINGER: DurationNs = DurationNs::from_millis(10_000);
/// How often a trouble of one kind is logged.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Segments that are deleted to get room for one write, at most.
const MOST_GIVEN_UP: usize = 4;

/// Asks for the open segment to be closed, and tells when one was.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    wanted: Arc<AtomicBool>,
    closed: watch::Sender<u64>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { wanted: Arc::default(), closed: watch::Sender::new(0) }
    }

    /// Asks for the open segment to be closed with the next roll. What is returned changes when it was.
    pub(crate) fn ask(&self) -> watch::Receiver<u64> {
        let receiver = self.closed.subscribe();
        self.wanted.store(true, Relaxed);
        receiver
    }
}

/// Takes a recording and makes segments of it. Never fails: what could not be written is counted, and said in the logs.
pub(crate) struct RollingSink {
    window: Arc<Window>,
    length: Duration,
    keep: Duration,
    pulse: Pulse,
    open: Option<Open>,
    /// What every segment is told again, so that each is a whole capture.
    carried: Carried,
    /// The counters when the open segment began.
    before: Counted,
    meta: Meta,
    tap: Option<Tap>,
    reach: Reach,
    known: Arc<KnownProxies>,
    said: Option<Instant>,
}

/// The segment that is being written.
struct Open {
    writer: CaptureWriter,
    dir: PathBuf,
    closed_dir: PathBuf,
    start: ClockSample,
    began: Instant,
    lost_rows: u64,
}

#[derive(Default)]
struct Carried {
    /// Looked at for each message; the kernel numbers them, so that nobody can choose numbers that collide.
    sockets: FxHashMap<SocketCookie, Socket>,
    processes: BTreeMap<Tgid, Process>,
    proxies: BTreeMap<NodeId, (Proxy, Instant)>,
}

impl RollingSink {
    /// A sink that writes segments of `length`. `meta` is what the agent knows at its start.
    pub(crate) fn new(
        window: Arc<Window>,
        length: Duration,
        meta: &Meta,
        pulse: Pulse,
        tap: Option<Tap>,
        known: Arc<KnownProxies>,
    ) -> Self {
        let keep = window.limits.keep;
        let mut sink = Self {
            window,
            length,
            keep,
            pulse,
            open: None,
            carried: Carried::default(),
            before: Counted::of(meta),
            meta: meta.clone(),
            tap,
            reach: Reach::default(),
            known,
            said: None,
        };
        sink.open_next();
        sink
    }

    fn counters(&self) -> &WindowCounters {
        &self.window.counters
    }

    /// Begins the next segment; without room for it, older ones go. If that does not help either, the next roll tries again.
    fn open_next(&mut self) {
        for _ in 0..=MOST_GIVEN_UP {
            match self.try_open() {
                Ok(open) => {
                    self.open = Some(open);
                    return;
                }
                Err(error) => {
                    let full = error.is_disk_full();
                    self.trouble(&error);
                    if !full || !self.window.make_room() {
                        return;
                    }
                }
            }
        }
    }

    fn try_open(&mut self) -> Result<Open, CaptureError> {
        let start = clock::sample();
        let (dir, closed_dir) = self.window.next(start);
        let mut meta = self.meta.clone();
        meta.start = start;
        meta.end = None;
        meta.clock = ClockAnchor::new(vec![start]);
        // Not synced: what is rolled survives the agent's death all the same, and after the machine's its clocks begin anew.
        let options = WriterOptions { sync: false, ..WriterOptions::default() };
        let made = CaptureWriter::create(&dir, &meta, options).and_then(|mut writer| {
            self.carried.write(&mut writer, start.monotonic, self.keep)?;
            Ok(writer)
        });
        let began = Instant::now();
        match made {
            Ok(writer) => Ok(Open { writer, dir, closed_dir, start, began, lost_rows: 0 }),
            Err(error) => {
                segment::remove(&dir);
                Err(error)
            }
        }
    }

    /// The agent's meta, cut to the open segment.
    fn cut(&self, open: &Open, end: Option<ClockSample>) -> Meta {
        let mut meta = self.meta.clone();
        meta.start = open.start;
        meta.end = end;
        let samples = meta.clock.samples();
        let within = samples.iter().copied().filter(|s| s.monotonic >= open.start.monotonic);
        meta.clock = ClockAnchor::new([open.start].into_iter().chain(within).chain(end).collect());
        Counted::of(&self.meta).since(&self.before).put(&mut meta);
        meta.settings.insert(REACH.to_owned(), self.reach.to_setting());
        if let Some(kubernetes) = &mut meta.kubernetes {
            kubernetes.since(open.start.wall);
        }
        meta
    }

    fn close(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        let end = clock::sample();
        let meta = self.cut(&open, Some(end));
        self.before = Counted::of(&self.meta);
        self.reach.clear();
        let told = self.carried.tell(&mut open.writer, open.start.monotonic);
        let finished = told.and(open.writer.finish(meta).map(drop));
        self.note_lost(&mut open);
        drop(open.writer);
        if let Err(error) = finished {
            // What was rolled before is there, and its meta is that of the last roll.
            self.trouble(&error);
        }
        let closed = std::fs::rename(&open.dir, &open.closed_dir)
            .map_err(|source| CaptureError::Write { path: open.closed_dir.clone(), source })
            .and_then(|()| Segment::open(open.closed_dir));
        match closed {
            Ok(segment) => self.window.add(segment),
            Err(error) => {
                self.trouble(&error);
                segment::remove(&open.dir);
            }
        }
        self.window.open_bytes.store(0, Relaxed);
        self.window.enforce(end);
        self.pulse.wanted.store(false, Relaxed);
        self.pulse.closed.send_modify(|n| *n += 1);
    }

    /// Passes rows on. Those that find no segment, because the disk was full, are counted.
    fn write(&mut self, rows: u64, write: impl FnOnce(&mut CaptureWriter) -> Result<(), CaptureError>) {
        let Some(open) = &mut self.open else {
            self.counters().lost_rows.fetch_add(rows, Relaxed);
            return;
        };
        if let Err(error) = write(&mut open.writer) {
            self.after_failure(&error);
        }
    }

    /// Takes note of what access log entries say beyond themselves.
    fn note(&mut self, batch: &LogBatch) {
        // With whom a proxy talks is told by what entries of one kind have in common.
        let mut seen = vec![false; batch.kinds.len()];
        for row in &batch.rows {
            if std::mem::replace(&mut seen[row.kind as usize], true) {
                continue;
            }
            let entry = batch.hop(row);
            self.reach.note(&entry);
            if let Some((_, last)) = self.carried.proxies.get_mut(&entry.node) {
                *last = Instant::now();
            }
        }
        if let Some(tap) = &mut self.tap {
            tap.access_logs(batch);
        }
        self.hand_on_if_due();
    }

    /// Hands on what the joins get, more often than segments are rolled: less waits then.
    fn hand_on_if_due(&mut self) {
        if let Some(tap) = self.tap.as_mut().filter(|tap| tap.is_due()) {
            tap.hand_on(clock::sample());
        }
    }

    fn after_failure(&mut self, error: &CaptureError) {
        if let Some(mut open) = self.open.take() {
            self.note_lost(&mut open);
            self.open = Some(open);
        }
        self.trouble(error);
        if error.is_disk_full() {
            self.window.make_room();
        }
    }

    fn note_lost(&self, open: &mut Open) {
        let lost: u64 = open.writer.stats().values().map(|t| t.dropped_rows).sum();
        self.counters().lost_rows.fetch_add(lost - open.lost_rows, Relaxed);
        open.lost_rows = lost;
    }

    fn trouble(&mut self, error: &CaptureError) {
        self.counters().write_errors.fetch_add(1, Relaxed);
        if error.is_disk_full() {
            self.counters().full_errors.fetch_add(1, Relaxed);
        }
        if self.said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            let lost = self.counters().lost_rows.load(Relaxed);
            tracing::error!(%error, lost_rows = lost, "the window cannot be written; the oldest segments make room, what did not fit is lost");
        }
    }
}

impl Carried {
    /// What assembly tells of an open socket is up to 10 s old; a message of it says that it lived on.
    fn saw(&mut self, message: &Message) {
        if let Some(socket) = self.sockets.get_mut(&message.socket) {
            let instants = [&message.sends, &message.readies, &message.recvs].into_iter().flat_map(|list| list.iter());
            socket.last_seen = instants.map(|i| i.at).fold(socket.last_seen, MonotonicNs::max);
        }
    }

    /// Tells of the open sockets that were in use since an instant until when they were.
    fn tell(&self, writer: &mut CaptureWriter, since: MonotonicNs) -> Result<(), CaptureError> {
        let mut used: Vec<&Socket> =
            self.sockets.values().filter(|s| s.closed.is_none() && s.last_seen >= since).collect();
        used.sort_unstable_by_key(|s| s.cookie);
        used.into_iter().try_for_each(|s| writer.write_socket(s.clone()))
    }

    /// Tells a new segment who is there already.
    fn write(&mut self, writer: &mut CaptureWriter, now: MonotonicNs, keep: Duration) -> Result<(), CaptureError> {
        self.proxies.retain(|_, (_, last)| last.elapsed() < keep);
        self.sockets.retain(|_, s| s.closed.is_none_or(|at| now - at < LINGER));
        self.proxies.values().try_for_each(|(p, _)| writer.write_proxy(p.clone()))?;
        let mut sockets: Vec<&Socket> = self.sockets.values().collect();
        sockets.sort_unstable_by_key(|s| s.cookie);
        let owners: std::collections::HashSet<Tgid> = sockets.iter().filter_map(|s| s.owner).collect();
        self.processes.retain(|tgid, _| owners.contains(tgid));
        self.processes.values().try_for_each(|p| writer.write_process(p.clone()))?;
        sockets.into_iter().try_for_each(|s| writer.write_socket(s.clone()))
    }
}

impl CaptureSink for RollingSink {
    fn write_message(&mut self, message: Message) -> Result<(), CaptureError> {
        self.carried.saw(&message);
        if let Some(tap) = &mut self.tap {
            tap.message(&message);
        }
        self.hand_on_if_due();
        self.write(1, |w| w.write_message(message));
        Ok(())
    }
    fn write_http2(&mut self, stream: Http2Stream) -> Result<(), CaptureError> {
        if let Some(tap) = &mut self.tap {
            tap.http2(&stream);
        }
        self.write(1, |w| w.write_http2(stream));
        Ok(())
    }
    fn write_socket(&mut self, socket: Socket) -> Result<(), CaptureError> {
        if let Some(tap) = &mut self.tap {
            tap.socket(&socket);
        }
        self.carried.sockets.insert(socket.cookie, socket.clone());
        self.write(1, |w| w.write_socket(socket));
        Ok(())
    }
    fn write_metrics(&mut self, row: SocketMetrics) -> Result<(), CaptureError> {
        self.write(1, |w| w.write_metrics(row));
        Ok(())
    }
    fn write_access_log(&mut self, entry: HopSide) -> Result<(), CaptureError> {
        let mut one = LogBatchBuilder::default();
        one.push(&entry);
        self.write_access_logs(&one.take())
    }
    fn write_access_logs(&mut self, batch: &LogBatch) -> Result<(), CaptureError> {
        self.note(batch);
        self.write(batch.rows.len() as u64, |w| w.write_access_logs(batch));
        Ok(())
    }
    fn write_proxy(&mut self, proxy: Proxy) -> Result<(), CaptureError> {
        if let Some(tap) = &mut self.tap {
            tap.proxy(&proxy);
        }
        self.known.add(&proxy);
        self.carried.proxies.insert(proxy.node.clone(), (proxy.clone(), Instant::now()));
        self.write(1, |w| w.write_proxy(proxy));
        Ok(())
    }
    fn write_process(&mut self, process: Process) -> Result<(), CaptureError> {
        self.carried.processes.insert(process.tgid, process.clone());
        self.write(1, |w| w.write_process(process));
        Ok(())
    }
    fn write_event(&mut self, _: SocketEvent) -> Result<(), CaptureError> {
        Ok(())
    }

    fn roll(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        self.meta = meta.clone();
        self.window.count(Counted::of(meta));
        if let Some(tap) = &mut self.tap {
            tap.hand_on(clock::sample());
        }
        if let Some(mut open) = self.open.take() {
            let cut = self.cut(&open, None);
            let rolled = open.writer.roll(&cut);
            let bytes: u64 = open.writer.stats().values().map(|t| t.bytes).sum();
            self.window.open_bytes.store(bytes, Relaxed);
            self.note_lost(&mut open);
            let over = open.began.elapsed() >= self.length || bytes > self.window.limits.keep_bytes / 4;
            let wanted = self.pulse.wanted.load(Relaxed);
            self.open = Some(open);
            if let Err(error) = rolled {
                self.after_failure(&error);
            }
            if over || wanted {
                self.close();
            } else {
                self.window.enforce(clock::sample());
            }
        }
        if self.open.is_none() {
            self.open_next();
        }
        Ok(())
    }

    fn finish(&mut self, meta: Meta) -> Result<Meta, CaptureError> {
        self.meta = meta;
        self.window.count(Counted::of(&self.meta));
        self.close();
        Ok(self.meta.clone())
    }
}
