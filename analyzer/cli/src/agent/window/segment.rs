//! One segment of the window: a capture of its own, of some seconds.

use meshdiff_capture::{Capture, CaptureError, Meta, Table};
use meshdiff_model::ClockSample;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What the name of a closed segment begins with.
pub(crate) const CLOSED: &str = "segment-";
/// What the name of the segment that is being written begins with.
pub(crate) const OPEN: &str = "open-";

/// A closed segment. Its folder is deleted once it was given up and nobody reads it any more.
#[derive(Debug)]
pub(crate) struct Segment {
    dir: PathBuf,
    /// Its `meta.json`.
    pub(crate) meta: Meta,
    /// When it ended; for one whose agent was killed, the last instant at which it was known to record.
    pub(crate) end: ClockSample,
    /// What it takes on the disk.
    pub(crate) bytes: u64,
    given_up: AtomicBool,
}

/// A file of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartFile {
    pub(crate) table: Table,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

impl Segment {
    /// Reads what a folder says of itself.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, CaptureError> {
        let meta = Capture::open(&dir)?.meta().clone();
        let last = meta.clock.samples().last().copied().unwrap_or(meta.start);
        let end = meta.end.unwrap_or(last);
        let bytes = size_of(&dir).map_err(|source| CaptureError::Read { path: dir.clone(), source })?;
        Ok(Self { dir, meta, end, bytes, given_up: AtomicBool::new(false) })
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// When it began.
    pub(crate) const fn start(&self) -> ClockSample {
        self.meta.start
    }

    /// True if its agent was killed: what it had in memory is missing.
    #[cfg(test)]
    pub(crate) fn is_interrupted(&self) -> bool {
        self.meta.state != meshdiff_capture::RecordingState::Complete
    }

    /// Its files, by table in the order of writing.
    pub(crate) fn parts(&self) -> io::Result<Vec<PartFile>> {
        let mut parts = Vec::new();
        for table in Table::ALL {
            let entries = match fs::read_dir(table.folder(&self.dir)) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let mut of_table = Vec::new();
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "parquet") {
                    of_table.push(PartFile { table, bytes: entry.metadata()?.len(), path });
                }
            }
            // Numbers are padded to five digits, and no segment has more parts than that.
            of_table.sort_by(|a, b| a.path.cmp(&b.path));
            parts.append(&mut of_table);
        }
        Ok(parts)
    }

    /// Lets it go: it is deleted when the last reader is done.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.given_up.load(Relaxed) {
            remove(&self.dir);
        }
    }
}

/// Deletes a segment. `meta.json` goes first: what is half deleted when a kill comes must not look like a segment.
pub(crate) fn remove(dir: &Path) {
    drop(fs::remove_file(dir.join("meta.json")));
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, dir = %dir.display(), "cannot delete a segment of the window");
    }
}

/// The bytes of all files in a folder and the folders in it.
pub(crate) fn size_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { size_of(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
