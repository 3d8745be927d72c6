//! Reads a capture.

use crate::damage::{Damage, DamagedPart};
use crate::error::CaptureError;
use crate::file::{is_temporary, part_number};
use crate::meta::{Meta, RecordingState};
use crate::part;
use crate::table::Table;
use crate::tables::Row;
use crate::view::Interner;
use meshdiff_model::{HopSide, Http2Stream, Message, Process, Proxy, Socket, SocketEvent, SocketMetrics};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureState {
    /// Properly.
    Complete,
    /// Its recorder died: everything up to its last roll is there.
    Interrupted,
    /// It has not: someone is recording into it right now.
    InProgress,
}

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Fail at the first damaged part instead of leaving it out.
    pub strict: bool,
}

/// A capture that can be read.
#[derive(Clone, Debug)]
pub struct Capture {
    dir: PathBuf,
    meta: Meta,
    state: CaptureState,
}

/// Everything in a capture but single events.
#[derive(Clone, Debug)]
pub struct CaptureData {
    /// `meta.json`.
    pub meta: Meta,
    /// How the recording ended.
    pub state: CaptureState,
    /// Sockets as they were known last, by cookie.
    pub sockets: Vec<Socket>,
    /// By socket and direction, in stream order (the order in which assembly made them).
    pub messages: Vec<Message>,
    /// By socket, in the order in which the streams ended.
    pub http2_streams: Vec<Http2Stream>,
    /// By socket and window, one row for each.
    pub metrics: Vec<SocketMetrics>,
    /// Part by part in order of arrival, and by start in each.
    pub access_logs: Vec<HopSide>,
    /// Proxies as they were known last, by node id.
    pub proxies: Vec<Proxy>,
    /// Processes as they were known last, by process id.
    pub processes: Vec<Process>,
    /// What could not be read.
    pub damage: Damage,
}

impl CaptureData {
    /// What the operator should know of this capture before trusting a report of it: the recorder's own warnings, how it
    /// ended, and what could not be read.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut out = self.meta.warnings.clone();
        match self.state {
            CaptureState::Complete => {}
            CaptureState::Interrupted => {
                out.push("the recording was not ended properly: what its recorder had in memory is missing".to_owned());
            }
            CaptureState::InProgress => {
                out.push("the recording is still running: this is what it has until now".to_owned())
            }
        }
        out.extend(self.damage.warnings());
        out
    }
}

impl Capture {
    /// Opens a capture.
    ///
    /// # Errors
    /// If there is none, if it is not one, or if a later version wrote it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CaptureError> {
        let dir = dir.as_ref();
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(CaptureError::NotAFolder(dir.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(CaptureError::NotFound(dir.to_owned())),
            Err(e) => return Err(CaptureError::Read { path: dir.to_owned(), source: e }),
        }
        let meta = Meta::read(dir)?;
        let state = match meta.state {
            RecordingState::Complete => CaptureState::Complete,
            RecordingState::Recording if is_locked(dir) => CaptureState::InProgress,
            RecordingState::Recording => CaptureState::Interrupted,
        };
        Ok(Self { dir: dir.to_owned(), meta, state })
    }

    /// `meta.json`.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// How the recording ended.
    #[must_use]
    pub const fn state(&self) -> CaptureState {
        self.state
    }

    /// Reads everything but single events, and leaves out what is damaged.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn read(&self) -> Result<CaptureData, CaptureError> {
        self.read_with(ReadOptions::default())
    }

    /// Reads everything but single events.
    ///
    /// # Errors
    /// If a folder cannot be listed; if told to be strict, also if a part is damaged.
    pub fn read_with(&self, options: ReadOptions) -> Result<CaptureData, CaptureError> {
        let mut reading = Reading { options, ..self.reading() };
        let rest = reading.rest()?;
        let mut messages = reading.table::<Message>()?;
        let mut http2_streams = reading.table::<Http2Stream>()?;
        http2_streams.sort_by_key(|s| s.socket);
        let access_logs = reading.table::<HopSide>()?;
        // Stable: what assembly made of one socket and direction stays in its order.
        messages.sort_by_key(|m| (m.socket, m.direction));
        for warning in reading.damage.warnings() {
            tracing::warn!(capture = %self.dir.display(), "{warning}");
        }
        Ok(CaptureData { messages, http2_streams, access_logs, damage: reading.damage, ..rest })
    }

    /// Reads the single socket events of a capture that was recorded with `--raw`, in the order in which they were
    /// recorded; empty for another.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_events(&self) -> Result<(Vec<SocketEvent>, Damage), CaptureError> {
        let mut reading = self.reading();
        let events = reading.table::<SocketEvent>()?;
        Ok((events, reading.damage))
    }

    /// The files of a table in the order in which they were written, and what is known to be missing.
    pub(crate) fn parts_of(&self, table: Table) -> Result<(Vec<PathBuf>, Damage), CaptureError> {
        let mut reading = self.reading();
        let parts = reading.counted_parts(table)?;
        Ok((parts, reading.damage))
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading {
            capture: self,
            options: ReadOptions::default(),
            strings: Interner::default(),
            damage: Damage::default(),
        }
    }
}

pub(crate) struct Reading<'a> {
    capture: &'a Capture,
    options: ReadOptions,
    pub(crate) strings: Interner,
    pub(crate) damage: Damage,
}

impl Reading<'_> {
    fn table<R: Row>(&mut self) -> Result<Vec<R>, CaptureError> {
        let parts = self.counted_parts(R::TABLE)?;
        let mut rows = Vec::new();
        for path in parts {
            rows.extend(self.part::<R>(path)?);
        }
        Ok(rows)
    }

    /// The rows of a part; none of a damaged one, which is noted.
    pub(crate) fn part<R: Row>(&mut self, path: PathBuf) -> Result<Vec<R>, CaptureError> {
        match part::read_file(&path).and_then(|bytes| part::decode::<R>(bytes, &self.strings)) {
            Ok(part) => {
                if let Some(column) = part.first_rejected {
                    self.damage.rejected_rows.entry(R::TABLE).or_insert((0, column)).0 += part.rejected;
                }
                Ok(part.rows)
            }
            Err(reason) => {
                let damaged = DamagedPart { table: R::TABLE, path, reason };
                if self.options.strict {
                    return Err(CaptureError::Damaged(damaged));
                }
                self.damage.parts.push(damaged);
                Ok(Vec::new())
            }
        }
    }

    /// Everything but what grows with every request.
    pub(crate) fn rest(&mut self) -> Result<CaptureData, CaptureError> {
        let sockets = self.table::<Socket>()?;
        let metrics = merged(self.table::<SocketMetrics>()?);
        let proxies = self.table::<Proxy>()?;
        let processes = self.table::<Process>()?;
        Ok(CaptureData {
            meta: self.capture.meta.clone(),
            state: self.capture.state,
            sockets: last_of_each(sockets, |s| s.cookie),
            messages: Vec::new(),
            http2_streams: Vec::new(),
            metrics,
            access_logs: Vec::new(),
            proxies: last_of_each(proxies, |p| p.node.clone()),
            processes: last_of_each(processes, |p| p.tgid),
            damage: Damage::default(),
        })
    }

    /// The parts of a table; those that `meta.json` counts and that are not there are noted.
    pub(crate) fn counted_parts(&mut self, table: Table) -> Result<Vec<PathBuf>, CaptureError> {
        let parts = self.parts(&table.folder(&self.capture.dir))?;
        let counted = self.capture.meta.tables.get(&table).map_or(0, |t| t.parts);
        let missing = counted.saturating_sub(parts.len() as u64);
        if missing > 0 {
            self.damage.missing_parts.insert(table, missing);
        }
        Ok(parts)
    }

    /// The parts of a table in the order in which they were written. Also takes Parquet files of other names, after those
    /// of ours: a user may have merged parts.
    fn parts(&mut self, dir: &Path) -> Result<Vec<PathBuf>, CaptureError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CaptureError::Read { path: dir.to_owned(), source: e }),
        };
        let mut parts = Vec::new();
        for entry in entries {
            let path = entry.map_err(CaptureError::read(dir))?.path();
            if is_temporary(&path) {
                // While a recorder runs this is its part in the making.
                self.damage.leftover_temporary_files += u64::from(self.capture.state != CaptureState::InProgress);
            } else if path.extension().is_some_and(|e| e == "parquet") {
                parts.push(path);
            }
        }
        parts.sort_by_cached_key(|path| (part_number(path).unwrap_or(u64::MAX), path.clone()));
        Ok(parts)
    }
}

/// The last row of each key, by key.
pub(crate) fn last_of_each<R, K: Ord>(rows: Vec<R>, key: impl Fn(&R) -> K) -> Vec<R> {
    let last: BTreeMap<K, R> = rows.into_iter().map(|row| (key(&row), row)).collect();
    last.into_values().collect()
}

/// One row for each socket and window, in their order.
pub(crate) fn merged(rows: Vec<SocketMetrics>) -> Vec<SocketMetrics> {
    let mut by_key: BTreeMap<_, SocketMetrics> = BTreeMap::new();
    for row in rows {
        match by_key.entry((row.socket, row.window_start)) {
            Entry::Vacant(new) => _ = new.insert(row),
            Entry::Occupied(mut known) => known.get_mut().merge(&row),
        }
    }
    by_key.into_values().collect()
}

/// True if a recorder holds the folder. Asks for a shared lock, so that readers do not take each other for a recorder.
fn is_locked(dir: &Path) -> bool {
    let Ok(folder) = File::open(dir) else { return false };
    matches!(folder.try_lock_shared(), Err(TryLockError::WouldBlock))
}

impl Table {
    /// The folder of this table in a capture.
    #[must_use]
    pub fn folder(self, capture: &Path) -> PathBuf {
        capture.join(self.as_str())
    }
}
