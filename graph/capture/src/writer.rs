//! Writes a capture.

use crate::column::schema_of;
use crate::error::{CaptureError, is_full};
use crate::file::{Temporary, is_temporary, part_name, part_number, sync_dir, write_whole};
use crate::logs::LogTable;
use crate::meta::{Meta, RecordingState, TableStats};
use crate::part::Encoder;
use crate::sink::CaptureSink;
use crate::syncer::{Failure, Part, Syncer};
use crate::table::Table;
use crate::tables::Row;
use crate::{META_FILE, SCHEMA_VERSION};
use meshdiff_model::{
    HopSide, Http2Stream, LogBatch, LogBatchBuilder, Message, Process, Proxy, Socket, SocketEvent, SocketMetrics,
};
use parquet::errors::ParquetError;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// What to do with an output folder that holds something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse it.
    #[default]
    Refuse,
    /// Delete the capture in it. Anything that is not a capture is refused all the same.
    ReplaceCapture,
}

/// How a capture is written.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// What to do with an output folder that holds something.
    pub existing: Existing,
    /// Also record single socket events.
    pub raw: bool,
    /// A table with this many rows in memory is rolled by itself. Bounds the memory of a recorder whose caller is late.
    pub max_rows_in_memory: usize,
    /// Sync every file, so that a capture also survives a power failure and not only the death of the recorder. A thread does it.
    pub sync: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { existing: Existing::Refuse, raw: false, max_rows_in_memory: 50_000, sync: true }
    }
}

/// A capture that is being written. See [`CaptureSink`] for the rules.
///
/// Dropping it without [`finish`](CaptureSink::finish) leaves a capture that readers call interrupted, with
/// everything up to the last roll.
pub struct CaptureWriter {
    folder: Folder,
    sockets: TableWriter<Socket>,
    messages: TableWriter<Message>,
    socket_metrics: TableWriter<SocketMetrics>,
    http2_streams: TableWriter<Http2Stream>,
    access_logs: LogWriter,
    proxies: TableWriter<Proxy>,
    processes: TableWriter<Process>,
    events: Option<TableWriter<SocketEvent>>,
    finished: bool,
    /// The lock on the folder, which says that someone is recording into it.
    _lock: File,
}

/// What all tables' writers share.
struct Folder {
    dir: PathBuf,
    options: WriterOptions,
    stats: BTreeMap<Table, TableStats>,
    /// Who makes files survive, if they are to.
    syncer: Option<Syncer>,
}

impl Folder {
    fn failed(&self, path: &Path, source: io::Error) -> CaptureError {
        let path = path.to_owned();
        if !is_full(&source) {
            return CaptureError::Write { path, source };
        }
        let sum = |count: fn(&TableStats) -> u64| self.stats.values().map(count).sum();
        CaptureError::DiskFull { path, saved_rows: sum(|s| s.rows), dropped_rows: sum(|s| s.dropped_rows), source }
    }
}

impl Folder {
    /// Makes the folder of a table.
    fn add(&mut self, table: Table) -> Result<(), CaptureError> {
        let dir = self.dir.join(table.as_str());
        fs::create_dir_all(&dir).map_err(|e| self.failed(&dir, e))?;
        self.stats.insert(table, TableStats::default());
        Ok(())
    }

    /// Stores a part of so many rows as the next of its table, and counts what became of them.
    fn store(
        &mut self,
        table: Table,
        next_part: &mut u64,
        rows: u64,
        encoded: Result<Vec<u8>, ParquetError>,
    ) -> Result<(), CaptureError> {
        let path = self.dir.join(table.as_str()).join(part_name(*next_part));
        let written = match &encoded {
            Ok(bytes) => self.write(table, rows, &path, bytes),
            Err(_) => Ok(0),
        };
        let stats = self.stats.entry(table).or_default();
        match (encoded, written) {
            (Err(e), _) => {
                stats.dropped_rows += rows;
                Err(CaptureError::Encode { table, reason: e.to_string() })
            }
            (Ok(_), Err(e)) => {
                stats.dropped_rows += rows;
                Err(self.failed(&path, e))
            }
            (Ok(_), Ok(bytes)) => {
                *next_part += 1;
                stats.parts += 1;
                stats.rows += rows;
                stats.bytes += bytes;
                Ok(())
            }
        }
    }
}

impl Folder {
    /// Writes a part, and returns how many bytes it has.
    fn write(&self, table: Table, rows: u64, path: &Path, contents: &[u8]) -> io::Result<u64> {
        let bytes = contents.len() as u64;
        match &self.syncer {
            Some(syncer) => syncer.part(Part { table, rows, bytes, file: Temporary::write(path, contents)? })?,
            None => write_whole(path, contents, false)?,
        }
        Ok(bytes)
    }

    /// Writes a file that says what is there.
    fn write_meta(&self, path: &Path, contents: Vec<u8>) -> Result<(), CaptureError> {
        let written = match &self.syncer {
            Some(syncer) => syncer.meta(path, contents),
            None => write_whole(path, &contents, false),
        };
        written.map_err(|e| self.failed(path, e))
    }

    /// Waits until everything that was written would survive.
    fn settle(&mut self) -> Result<(), CaptureError> {
        let settled = self.syncer.as_ref().map_or(Ok(()), Syncer::settle).map_err(|e| self.failed(&self.dir, e));
        self.take_note().and(settled)
    }

    /// Counts what turned out not to survive; the first error is returned.
    fn take_note(&mut self) -> Result<(), CaptureError> {
        let failures = self.syncer.as_ref().map(Syncer::failures).unwrap_or_default();
        let mut result = Ok(());
        for Failure { path, source, part } in failures {
            if let Some((table, rows, bytes)) = part {
                let stats = self.stats.entry(table).or_default();
                stats.parts -= 1;
                stats.rows -= rows;
                stats.bytes -= bytes;
                stats.dropped_rows += rows;
            }
            result = result.and(Err(self.failed(&path, source)));
        }
        result
    }
}

/// Access logs: of them there are many, so they have a way of their own.
struct LogWriter {
    table: LogTable,
    /// Entries that came one by one.
    single: LogBatchBuilder,
    next_part: u64,
}

impl LogWriter {
    /// As [`TableWriter::create`].
    fn create(folder: &mut Folder) -> Result<Self, CaptureError> {
        folder.add(Table::AccessLogs)?;
        let unusable = |e: ParquetError| CaptureError::Encode { table: Table::AccessLogs, reason: e.to_string() };
        let mut table = LogTable::new(&schema_of(&HopSide::columns())).map_err(unusable)?;
        let mut next_part = 0;
        let empty = table.encode();
        folder.store(Table::AccessLogs, &mut next_part, 0, empty)?;
        Ok(Self { table, single: LogBatchBuilder::default(), next_part })
    }

    fn push_one(&mut self, folder: &mut Folder, entry: &HopSide) -> Result<(), CaptureError> {
        self.single.push(entry);
        let full = self.table.len() + self.single.len() >= folder.options.max_rows_in_memory;
        if full { self.roll(folder) } else { Ok(()) }
    }

    fn push(&mut self, folder: &mut Folder, batch: &LogBatch) -> Result<(), CaptureError> {
        self.add_single();
        self.table.push(batch);
        if self.table.len() >= folder.options.max_rows_in_memory { self.roll(folder) } else { Ok(()) }
    }

    fn add_single(&mut self) {
        if !self.single.is_empty() {
            self.table.push(&self.single.take());
        }
    }

    /// Writes what is in memory, which is free afterwards, whatever comes of it.
    fn roll(&mut self, folder: &mut Folder) -> Result<(), CaptureError> {
        self.add_single();
        if self.table.len() == 0 {
            return Ok(());
        }
        let encoded = self.table.encode();
        let rows = self.table.len() as u64;
        self.table.clear();
        folder.store(Table::AccessLogs, &mut self.next_part, rows, encoded)
    }
}

struct TableWriter<R> {
    rows: Vec<R>,
    encoder: Encoder<R>,
    next_part: u64,
}

impl<R: Row> TableWriter<R> {
    /// Makes the table's folder and an empty first part in it: the schema is there from the start, and a query
    /// over `*.parquet` works on a table that stays empty.
    fn create(folder: &mut Folder) -> Result<Self, CaptureError> {
        folder.add(R::TABLE)?;
        let mut table = Self { rows: Vec::new(), encoder: Encoder::new(), next_part: 0 };
        table.write_part(folder)?;
        Ok(table)
    }

    fn push(&mut self, folder: &mut Folder, row: R) -> Result<(), CaptureError> {
        self.rows.push(row);
        if self.rows.len() >= folder.options.max_rows_in_memory { self.roll(folder) } else { Ok(()) }
    }

    fn roll(&mut self, folder: &mut Folder) -> Result<(), CaptureError> {
        if self.rows.is_empty() { Ok(()) } else { self.write_part(folder) }
    }

    /// Writes what is in memory. Whatever comes of it, the memory is free afterwards: a recorder whose disk is full must
    /// not grow until it is killed.
    fn write_part(&mut self, folder: &mut Folder) -> Result<(), CaptureError> {
        let mut rows = std::mem::take(&mut self.rows);
        let count = rows.len() as u64;
        R::arrange(&mut rows);
        let encoded = self.encoder.encode(&rows);
        // Keeps the allocation for the next part.
        self.rows = rows;
        self.rows.clear();
        folder.store(R::TABLE, &mut self.next_part, count, encoded)
    }
}

impl CaptureWriter {
    /// Starts a capture in a folder, which is made if it does not exist.
    ///
    /// # Errors
    /// If the folder holds something (unless told to replace a capture), if another recorder writes there, or if it cannot
    /// be written.
    pub fn create(dir: impl AsRef<Path>, meta: &Meta, options: WriterOptions) -> Result<Self, CaptureError> {
        let dir = dir.as_ref();
        match fs::metadata(dir) {
            Ok(found) if !found.is_dir() => return Err(CaptureError::NotAFolder(dir.to_owned())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(dir).map_err(CaptureError::write(dir))?;
            }
            Err(e) => return Err(CaptureError::Write { path: dir.to_owned(), source: e }),
        }
        let lock = File::open(dir).map_err(CaptureError::write(dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CaptureError::OutputBusy(dir.to_owned())),
            // A file system without locks: go on without.
            Err(TryLockError::Error(e)) => tracing::debug!(dir = %dir.display(), error = %e, "cannot lock the capture"),
        }
        make_room(dir, options.existing)?;
        let syncer = if options.sync { Some(Syncer::start().map_err(CaptureError::write(dir))?) } else { None };
        let mut folder = Folder { dir: dir.to_owned(), options, stats: BTreeMap::new(), syncer };
        let mut writer = Self {
            sockets: TableWriter::create(&mut folder)?,
            messages: TableWriter::create(&mut folder)?,
            socket_metrics: TableWriter::create(&mut folder)?,
            http2_streams: TableWriter::create(&mut folder)?,
            access_logs: LogWriter::create(&mut folder)?,
            proxies: TableWriter::create(&mut folder)?,
            processes: TableWriter::create(&mut folder)?,
            events: if options.raw { Some(TableWriter::create(&mut folder)?) } else { None },
            folder,
            finished: false,
            _lock: lock,
        };
        writer.write_meta(meta.clone(), RecordingState::Recording)?;
        writer.folder.settle()?;
        if options.sync {
            sync_dir(dir).map_err(|e| writer.folder.failed(dir, e))?;
        }
        Ok(writer)
    }

    /// Where it is written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.folder.dir
    }

    /// What was written and dropped until now, by table. Rows still in memory are neither.
    #[must_use]
    pub const fn stats(&self) -> &BTreeMap<Table, TableStats> {
        &self.folder.stats
    }

    fn write_meta(&mut self, mut meta: Meta, state: RecordingState) -> Result<Meta, CaptureError> {
        meta.schema_version = SCHEMA_VERSION.to_owned();
        meta.state = state;
        meta.tables.clone_from(&self.folder.stats);
        let path = self.folder.dir.join(META_FILE);
        self.folder.write_meta(&path, meta.to_json())?;
        Ok(meta)
    }

    /// Rolls every table, also after one of them failed; the first error is returned.
    fn roll_tables(&mut self) -> Result<(), CaptureError> {
        let folder = &mut self.folder;
        // Sockets and processes come before the messages that speak of them.
        let results = [
            self.processes.roll(folder),
            self.proxies.roll(folder),
            self.sockets.roll(folder),
            self.messages.roll(folder),
            self.socket_metrics.roll(folder),
            self.http2_streams.roll(folder),
            self.access_logs.roll(folder),
            self.events.as_mut().map_or(Ok(()), |events| events.roll(folder)),
        ];
        results.into_iter().collect()
    }

    fn open(&mut self) -> Result<&mut Folder, CaptureError> {
        if self.finished { Err(CaptureError::Finished(self.folder.dir.clone())) } else { Ok(&mut self.folder) }
    }
}

macro_rules! write_row {
    ($method:ident, $row:ty, $table:ident) => {
        fn $method(&mut self, row: $row) -> Result<(), CaptureError> {
            self.open()?;
            self.$table.push(&mut self.folder, row)
        }
    };
}

impl CaptureSink for CaptureWriter {
    write_row!(write_message, Message, messages);
    write_row!(write_metrics, SocketMetrics, socket_metrics);
    write_row!(write_http2, Http2Stream, http2_streams);
    write_row!(write_socket, Socket, sockets);
    write_row!(write_proxy, Proxy, proxies);
    write_row!(write_process, Process, processes);

    fn write_access_log(&mut self, entry: HopSide) -> Result<(), CaptureError> {
        self.open()?;
        self.access_logs.push_one(&mut self.folder, &entry)
    }

    fn write_access_logs(&mut self, batch: &LogBatch) -> Result<(), CaptureError> {
        self.open()?;
        self.access_logs.push(&mut self.folder, batch)
    }

    /// Does nothing unless the capture was created with [`WriterOptions::raw`].
    fn write_event(&mut self, event: SocketEvent) -> Result<(), CaptureError> {
        self.open()?;
        self.events.as_mut().map_or(Ok(()), |events| events.push(&mut self.folder, event))
    }

    fn roll(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        let rolled = self.roll_soon(meta);
        rolled.and(self.folder.settle())
    }

    fn roll_soon(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        // What did not survive the last time must not be said to be there.
        let before = self.open()?.take_note();
        let tables = self.roll_tables();
        let meta = self.write_meta(meta.clone(), RecordingState::Recording);
        tables.and(meta.map(drop)).and(before)
    }

    /// The capture is marked complete also if rows were dropped: `tables` and `warnings` of its meta say so.
    fn finish(&mut self, mut meta: Meta) -> Result<Meta, CaptureError> {
        self.open()?;
        let tables = self.roll_tables();
        // Its meta says what there is: that must be certain by then.
        let settled = self.folder.settle();
        for (table, stats) in self.folder.stats.iter().filter(|(_, s)| s.dropped_rows > 0) {
            meta.warnings.push(format!("{} rows of {table} could not be written and are lost", stats.dropped_rows));
        }
        let meta = self.write_meta(meta, RecordingState::Complete);
        let meta = meta.and_then(|meta| self.folder.settle().map(|()| meta));
        self.finished = meta.is_ok();
        tables.and(settled)?;
        meta
    }
}

/// Refuses a folder that holds something, or deletes the capture in it.
fn make_room(dir: &Path, existing: Existing) -> Result<(), CaptureError> {
    let entries = list(dir)?;
    if entries.is_empty() {
        return Ok(());
    }
    if existing == Existing::Refuse {
        return Err(CaptureError::OutputExists(dir.to_owned()));
    }
    // Everything is looked at before anything is deleted.
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for entry in entries {
        let name = entry.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name == META_FILE || name == format!("{META_FILE}.tmp") {
            files.push(entry);
        } else if Table::ALL.iter().any(|t| t.as_str() == name) && entry.is_dir() {
            for part in list(&entry)? {
                let ours = part_number(&part).is_some()
                    || (is_temporary(&part) && part_number(&part.with_extension("")).is_some());
                if !ours {
                    let found = part.strip_prefix(dir).unwrap_or(&part).display().to_string();
                    return Err(CaptureError::OutputForeign { path: dir.to_owned(), found });
                }
                files.push(part);
            }
            folders.push(entry);
        } else {
            return Err(CaptureError::OutputForeign { path: dir.to_owned(), found: name });
        }
    }
    // meta.json first: what is half deleted must not look like a capture.
    files.sort_by_key(|f| f.parent() != Some(dir));
    for file in files {
        fs::remove_file(&file).map_err(CaptureError::write(&file))?;
    }
    for folder in folders {
        fs::remove_dir(&folder).map_err(CaptureError::write(&folder))?;
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let entries = fs::read_dir(dir).map_err(CaptureError::read(dir))?;
    let mut paths: Vec<_> =
        entries.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>().map_err(CaptureError::read(dir))?;
    paths.sort();
    Ok(paths)
}
