//! What can go wrong with a capture as a whole, in words for the operator.

use crate::damage::DamagedPart;
use crate::table::Table;
use crate::{META_FILE, SCHEMA_VERSION};
use std::io;
use std::path::{Path, PathBuf};

/// A capture that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is nothing of that name.
    #[error("there is no capture at {}: check the path, or make one with `meshdiff record --output {}`", .0.display(), .0.display())]
    NotFound(PathBuf),
    /// A file where a folder should be.
    #[error("{} is not a folder: a capture is a folder that holds {META_FILE} and folders of Parquet files", .0.display())]
    NotAFolder(PathBuf),
    /// A folder that is no capture.
    #[error("{} is not a capture: it has no {META_FILE}. A capture is the folder that `meshdiff record --output DIR` writes, with {META_FILE}, sockets/, messages/ and access_logs/ in it", .0.display())]
    NoMeta(PathBuf),
    /// `meta.json` is not ours, or is damaged.
    #[error("{} does not describe a capture ({reason}): it was written by another program, or is damaged", path.display())]
    BadMeta {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a later version.
    #[error("{} has the schema version {found:?}, and this meshdiff reads up to {SCHEMA_VERSION:?}: read it with the meshdiff that wrote it, or upgrade this one", path.display())]
    NewerSchema {
        /// The capture.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The output folder holds something.
    #[error("the output folder {} exists and is not empty: choose another --output, move it away, or replace the capture in it with --force", .0.display())]
    OutputExists(PathBuf),
    /// The output folder holds something that is no capture, which is never deleted.
    #[error("the output folder {} exists and holds something that is not a capture ({found:?}): it is not touched, choose another --output", path.display())]
    OutputForeign {
        /// The folder.
        path: PathBuf,
        /// One name in it.
        found: String,
    },
    /// Another recorder writes there.
    #[error("another meshdiff is recording into {} right now: stop it, or choose another --output", .0.display())]
    OutputBusy(PathBuf),
    /// No room.
    #[error("the disk is full ({source}, ENOSPC or a quota) while writing {}: {saved_rows} rows were saved before and stay readable, {dropped_rows} rows did not fit and are counted as dropped. Free some space, or record to another disk with --output", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
        /// Rows of all tables in complete parts.
        saved_rows: u64,
        /// Rows of all tables that were given up.
        dropped_rows: u64,
        /// The kernel's word for it.
        source: io::Error,
    },
    /// Cannot write, for another reason.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cannot read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Rows could not be turned into Parquet: a defect of meshdiff.
    #[error("cannot encode rows of {table}: {reason}; this is a defect in meshdiff, please report it")]
    Encode {
        /// The table.
        table: Table,
        /// What the encoder said.
        reason: String,
    },
    /// A part is damaged, and the reader was told to be strict.
    #[error("{0}")]
    Damaged(DamagedPart),
    /// A row or roll after the end.
    #[error("the capture {} is finished: nothing can be added to it", .0.display())]
    Finished(PathBuf),
}

impl CaptureError {
    pub(crate) fn write(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Write { path, source }
    }
    pub(crate) fn read(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Read { path, source }
    }
    /// True if what could not be written did not fit on the disk.
    #[must_use]
    pub const fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

/// True if the error says that there is no room: a full disk, a quota, or a limit on the size of files.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
