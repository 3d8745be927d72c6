//! The rolling window on disk: closed segments, each a capture of its own, and the one that is being written.
//!
//! A segment is written in a folder `open-…` and renamed to `segment-…` when it is closed. What a killed agent leaves open is
//! taken over at the next start with all that it had rolled. Old segments go when they are older than `--keep`, when all of them
//! take more than `--keep-bytes`, and when the disk is full.

mod counters;
mod rolling;
mod segment;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use counters::{Counted, add_table};
pub(crate) use rolling::{Pulse, RollingSink};
pub(crate) use segment::{PartFile, Segment};

use crate::record::clock;
use crate::store::SegmentSender;
use meshdiff_model::ClockSample;
use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The file whose lock says that an agent uses the folder.
const LOCK: &str = "agent.lock";

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Segments that ended longer ago than this are deleted.
    pub(crate) keep: Duration,
    /// The oldest segments are deleted once all of them take more bytes than this.
    pub(crate) keep_bytes: u64,
}

/// The window cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WindowError {
    /// The folder.
    #[error("the agent's window {} cannot be used: {source}. Give a folder on a disk that the agent may write to with --window", path.display())]
    Folder { path: PathBuf, source: io::Error },
    /// Somebody else's.
    #[error("another agent uses the window {} right now: two agents on one node need a folder each (--window)", .0.display())]
    Busy(PathBuf),
}

/// What happened to the window, for `/metrics` and `/v1/info`.
#[derive(Debug, Default)]
pub(crate) struct WindowCounters {
    /// Segments that were closed since the start.
    pub(crate) closed: AtomicU64,
    /// Segments that were deleted because of their age.
    pub(crate) expired: AtomicU64,
    /// Segments that were deleted because all took too many bytes.
    pub(crate) over_bytes: AtomicU64,
    /// Segments that were deleted because the disk was full.
    pub(crate) disk_full: AtomicU64,
    /// Segments of a killed agent that were taken over.
    pub(crate) recovered: AtomicU64,
    /// Folders that could not be read and were deleted.
    pub(crate) unreadable: AtomicU64,
    /// Times that writing failed.
    pub(crate) write_errors: AtomicU64,
    /// Times that writing failed because the disk was full.
    pub(crate) full_errors: AtomicU64,
    /// Rows that could not be written.
    pub(crate) lost_rows: AtomicU64,
}

/// The window.
#[derive(Debug)]
pub(crate) struct Window {
    dir: PathBuf,
    limits: Limits,
    boot_id: String,
    /// Closed segments, oldest first.
    segments: Mutex<VecDeque<Arc<Segment>>>,
    /// What the open segment takes.
    open_bytes: AtomicU64,
    /// What was counted since the agent's start, as of the last roll.
    counted: Mutex<Counted>,
    pub(crate) counters: WindowCounters,
    /// Who sends segments to a store.
    sender: OnceLock<Arc<SegmentSender>>,
    _lock: File,
}

impl Window {
    /// Opens the window in a folder, and takes over what is in it.
    pub(crate) fn open(dir: &Path, limits: Limits, boot_id: String) -> Result<Self, WindowError> {
        let failed = |source| WindowError::Folder { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(WindowError::Busy(dir.to_owned())),
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "the window's file system has no locks"),
        }
        let window = Self {
            dir: dir.to_owned(),
            limits,
            boot_id,
            segments: Mutex::default(),
            open_bytes: AtomicU64::new(0),
            counted: Mutex::default(),
            counters: WindowCounters::default(),
            sender: OnceLock::new(),
            _lock: lock,
        };
        let mut found = window.take_over().map_err(failed)?;
        found.sort_by_key(|s| (s.meta.host.boot_id == window.boot_id, s.start().monotonic));
        *window.lock() = found.into_iter().map(Arc::new).collect();
        window.enforce(clock::sample());
        Ok(window)
    }

    fn take_over(&self) -> io::Result<Vec<Segment>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let closed = match name.strip_prefix(segment::OPEN) {
                // What its agent had not rolled is lost; the rest is read like any other.
                Some(rest) => self.dir.join(format!("{}{rest}", segment::CLOSED)),
                None if name.starts_with(segment::CLOSED) => path.clone(),
                None => continue,
            };
            let taken = if closed == path { Ok(()) } else { fs::rename(&path, &closed) };
            match taken.map_err(anyhow::Error::from).and_then(|()| Ok(Segment::open(closed.clone())?)) {
                Ok(segment) => {
                    if closed != path {
                        self.counters.recovered.fetch_add(1, Relaxed);
                        tracing::warn!(segment = %closed.display(), "an agent before this one was killed: what it had written is kept");
                    }
                    found.push(segment);
                }
                Err(error) => {
                    self.counters.unreadable.fetch_add(1, Relaxed);
                    tracing::warn!(%error, segment = %path.display(), "a segment of the window cannot be read and is deleted");
                    segment::remove(&path);
                    segment::remove(&closed);
                }
            }
        }
        Ok(found)
    }

    /// Where the next segment is written, and where it goes when it is closed.
    fn next(&self, start: ClockSample) -> (PathBuf, PathBuf) {
        // Of two in one nanosecond the second would replace the first; they are seconds apart.
        let name = format!("{:020}", start.wall.0.max(0));
        (self.dir.join(format!("{}{name}", segment::OPEN)), self.dir.join(format!("{}{name}", segment::CLOSED)))
    }

    /// Every closed segment, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.lock().iter().cloned().collect()
    }

    /// Sends every segment that is closed from now on to a store as well.
    pub(crate) fn send_to(&self, sender: Arc<SegmentSender>) {
        // Told once, before anything is recorded.
        drop(self.sender.set(sender));
    }

    /// Adds a segment that was closed.
    fn add(&self, segment: Segment) {
        self.counters.closed.fetch_add(1, Relaxed);
        let segment = Arc::new(segment);
        if let Some(sender) = self.sender.get() {
            sender.offer(&segment);
        }
        self.lock().push_back(segment);
    }

    /// Deletes what is too old or too much.
    fn enforce(&self, now: ClockSample) {
        let keep = i64::try_from(self.limits.keep.as_nanos()).unwrap_or(i64::MAX);
        let open = self.open_bytes.load(Relaxed);
        let mut segments = self.lock();
        let expired = |s: &Segment| {
            // The wall clock can be set; within one boot the monotonic clock tells.
            let age = if s.meta.host.boot_id == self.boot_id {
                (now.monotonic - s.end.monotonic).0
            } else {
                now.wall.0 - s.end.wall.0
            };
            age > keep
        };
        while segments.front().is_some_and(|s| expired(s)) {
            give_up(segments.pop_front(), &self.counters.expired);
        }
        let mut bytes = open + segments.iter().map(|s| s.bytes).sum::<u64>();
        while bytes > self.limits.keep_bytes
            && let Some(oldest) = segments.pop_front()
        {
            bytes -= oldest.bytes;
            give_up(Some(oldest), &self.counters.over_bytes);
        }
    }

    /// Deletes the oldest segment, because the disk is full; false if there is none.
    fn make_room(&self) -> bool {
        let oldest = self.lock().pop_front();
        let found = oldest.is_some();
        give_up(oldest, &self.counters.disk_full);
        found
    }

    /// The closed segments of this boot that reach into the last `since`, oldest first. Those of an earlier boot have other clocks and socket
    /// numbers, and make no capture with these.
    pub(crate) fn since(&self, since: Option<Duration>, now: ClockSample) -> Vec<Arc<Segment>> {
        let since = since.map_or(u64::MAX, |s| u64::try_from(s.as_nanos()).unwrap_or(u64::MAX));
        let from = now.monotonic.0.saturating_sub(since);
        let within = |s: &&Arc<Segment>| s.meta.host.boot_id == self.boot_id && s.end.monotonic.0 >= from;
        self.lock().iter().filter(within).cloned().collect()
    }

    /// Segments, their bytes, and how many of the segments are of an earlier boot.
    pub(crate) fn size(&self) -> (usize, u64, usize) {
        let segments = self.lock();
        let bytes = segments.iter().map(|s| s.bytes).sum::<u64>() + self.open_bytes.load(Relaxed);
        let earlier = segments.iter().filter(|s| s.meta.host.boot_id != self.boot_id).count();
        (segments.len(), bytes, earlier)
    }

    /// What the agent counted since its start, as of the last roll.
    pub(crate) fn counted(&self) -> Counted {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, counted: Counted) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn give_up(segment: Option<Arc<Segment>>, counter: &AtomicU64) {
    if let Some(segment) = segment {
        counter.fetch_add(1, Relaxed);
        segment.give_up();
    }
}
