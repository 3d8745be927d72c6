//! What the store has not taken yet, on disk: one folder for each capture, oldest first, within a limit.

use super::encode::{CaptureRow, Insert, encode};
use super::error::StoreError;
use super::requests::JoinedRequests;
use crate::file::{sync_dir, write_whole};
use crate::reader::Capture;
use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file of a folder that says what is in it; a folder without is being made, or half deleted.
const ROW: &str = "capture.json";
const INSERTS: &str = "inserts.json";
/// What the name of a folder ends with while it is made.
const MAKING: &str = ".making";

/// A capture that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) dir: PathBuf,
    pub(crate) bytes: u64,
}

impl Waiting {
    /// What is to be inserted, in order, each with its body's file.
    pub(crate) fn inserts(&self) -> Result<Vec<(Insert, PathBuf)>, StoreError> {
        let path = self.dir.join(INSERTS);
        let inserts: Vec<Insert> = read_json(&path)?;
        Ok(inserts.into_iter().map(|i| (i.clone(), self.dir.join(body_name(i.number)))).collect())
    }

    /// The row that makes the capture whole.
    pub(crate) fn row(&self) -> Result<CaptureRow, StoreError> {
        read_json(&self.dir.join(ROW))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let json = fs::read(path).map_err(StoreError::spool(path))?;
    serde_json::from_slice(&json).map_err(|e| StoreError::spool(path)(io::Error::new(io::ErrorKind::InvalidData, e)))
}

fn body_name(number: u32) -> String {
    format!("{number:06}.parquet")
}

/// What came of an addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) captures: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct Spool {
    dir: PathBuf,
    limit: u64,
    waiting: VecDeque<Waiting>,
    /// The one at the front is being sent: it is not dropped, because its rows arrive all the same.
    sending: bool,
    _lock: File,
}

impl Spool {
    /// Opens a folder and takes over what waits in it.
    pub(crate) fn open(dir: &Path, limit: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::spool(dir))?;
        let lock = File::open(dir).map_err(StoreError::spool(dir))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(StoreError::spool(dir)(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another meshdiff uses it",
            )));
        }
        let mut waiting = Vec::new();
        for entry in fs::read_dir(dir).map_err(StoreError::spool(dir))? {
            let path = entry.map_err(StoreError::spool(dir))?.path();
            if path.join(ROW).is_file() && path.extension().is_none() {
                let bytes = size_of(&path).map_err(StoreError::spool(&path))?;
                waiting.push(Waiting { dir: path, bytes });
            } else if path.extension().is_some_and(|e| e == &MAKING[1..]) {
                // Half made, or half deleted, when the last meshdiff was killed.
                fs::remove_dir_all(&path).map_err(StoreError::spool(&path))?;
            }
        }
        // Names begin with the time at which the capture began.
        waiting.sort_by(|a, b| a.dir.cmp(&b.dir));
        Ok(Self { dir: dir.to_owned(), limit, waiting: waiting.into(), sending: false, _lock: lock })
    }

    /// Makes room for a capture that was prepared by [`prepare`], and takes it in. The oldest ones go; one that is larger than everything that
    /// may be kept is refused.
    pub(crate) fn take_in(&mut self, prepared: Prepared) -> Result<Dropped, StoreError> {
        let Prepared { making, name, bytes } = prepared;
        if bytes > self.limit {
            drop(fs::remove_dir_all(&making));
            return Err(StoreError::TooLarge { bytes, limit: self.limit });
        }
        let dir = self.dir.join(&name);
        if self.waiting.iter().any(|w| w.dir == dir) {
            // The same recording again: what waits is it.
            fs::remove_dir_all(&making).map_err(StoreError::spool(&making))?;
            return Ok(Dropped::default());
        }
        let mut dropped = Dropped::default();
        let first = usize::from(self.sending);
        while self.bytes() + bytes > self.limit && self.waiting.len() > first {
            if let Some(oldest) = self.waiting.remove(first) {
                dropped.captures += 1;
                dropped.bytes += oldest.bytes;
                remove(&oldest.dir)?;
            }
        }
        fs::rename(&making, &dir).map_err(StoreError::spool(&dir))?;
        sync_dir(&self.dir).map_err(StoreError::spool(&self.dir))?;
        let at = self.waiting.partition_point(|w| w.dir < dir).max(first.min(self.waiting.len()));
        self.waiting.insert(at, Waiting { dir, bytes });
        Ok(dropped)
    }

    /// The oldest, to be sent. Until [`done`](Self::done) or [`put_back`](Self::put_back) it stays where it is.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        let next = self.waiting.front().cloned();
        self.sending = next.is_some();
        next
    }

    /// What was sent goes.
    pub(crate) fn done(&mut self) -> Result<(), StoreError> {
        self.sending = false;
        self.waiting.pop_front().map_or(Ok(()), |sent| remove(&sent.dir))
    }

    /// What could not be sent waits on.
    pub(crate) fn put_back(&mut self) {
        self.sending = false;
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.waiting.iter().map(|w| w.bytes).sum()
    }
}

/// A capture that is ready to be taken in.
#[derive(Debug)]
pub(crate) struct Prepared {
    making: PathBuf,
    name: String,
    bytes: u64,
}

/// Encodes a capture into a folder of the spool's, under a name that does not count yet.
pub(crate) fn prepare(
    spool: &Path,
    capture: &Capture,
    node: Option<&str>,
    requests: Option<&JoinedRequests>,
) -> Result<Prepared, StoreError> {
    let start = capture.meta().start.wall.0.max(0);
    let name = format!("{start:020}-{}", super::encode::capture_id(capture.meta()));
    let making = spool.join(format!("{name}{MAKING}"));
    drop(fs::remove_dir_all(&making));
    fs::create_dir_all(&making).map_err(StoreError::spool(&making))?;
    let made = fill(&making, capture, node, requests);
    match made {
        Ok(bytes) => Ok(Prepared { making, name, bytes }),
        Err(error) => {
            drop(fs::remove_dir_all(&making));
            Err(error)
        }
    }
}

fn fill(
    making: &Path,
    capture: &Capture,
    node: Option<&str>,
    requests: Option<&JoinedRequests>,
) -> Result<u64, StoreError> {
    let mut inserts = Vec::new();
    let mut bytes = 0;
    let mut write = |name: &str, contents: &[u8]| {
        let path = making.join(name);
        bytes += contents.len() as u64;
        write_whole(&path, contents, true).map_err(StoreError::spool(&path))
    };
    let row = encode(capture, node, requests, |insert, body| {
        write(&body_name(insert.number), &body)?;
        inserts.push(insert);
        Ok(())
    })?;
    let bad = |e: serde_json::Error| StoreError::encode(super::schema::CAPTURES, e);
    write(INSERTS, &serde_json::to_vec(&inserts).map_err(bad)?)?;
    write(ROW, &serde_json::to_vec(&row).map_err(bad)?)?;
    Ok(bytes)
}

/// Deletes a capture of the spool. It is renamed first: what is half deleted must not look whole.
fn remove(dir: &Path) -> Result<(), StoreError> {
    let mut name = dir.as_os_str().to_owned();
    name.push(MAKING);
    let gone = PathBuf::from(name);
    fs::rename(dir, &gone).map_err(StoreError::spool(dir))?;
    fs::remove_dir_all(&gone).map_err(StoreError::spool(&gone))
}

fn size_of(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.map(|entry| entry?.metadata().map(|m| m.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(spool: &Path, name: &str, bytes: u64) -> Prepared {
        let making = spool.join(format!("{name}{MAKING}"));
        fs::create_dir_all(&making).expect("a folder");
        fs::write(making.join(ROW), vec![b' '; usize::try_from(bytes).expect("small")]).expect("a file");
        Prepared { making, name: name.to_owned(), bytes }
    }

    fn names(spool: &Spool) -> Vec<String> {
        let name = |w: &Waiting| w.dir.file_name().expect("a name").to_string_lossy().into_owned();
        spool.waiting.iter().map(name).collect()
    }

    #[test]
    fn the_oldest_go_but_not_the_one_that_is_being_sent() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path(), 30).expect("opens");
        for name in ["1-a", "2-b", "3-c"] {
            assert_eq!(spool.take_in(prepared(dir.path(), name, 10)).expect("taken"), Dropped::default());
        }
        assert_eq!(spool.next().expect("one").bytes, 10);
        let dropped = spool.take_in(prepared(dir.path(), "4-d", 10)).expect("taken");
        assert_eq!(dropped, Dropped { captures: 1, bytes: 10 });
        assert_eq!(names(&spool), ["1-a", "3-c", "4-d"]);
        spool.put_back();
        spool.take_in(prepared(dir.path(), "5-e", 20)).expect("taken");
        assert_eq!(names(&spool), ["4-d", "5-e"]);
        assert!(matches!(spool.take_in(prepared(dir.path(), "6-f", 31)), Err(StoreError::TooLarge { .. })));
        assert!(matches!(Spool::open(dir.path(), 30), Err(StoreError::Spool { .. })), "one at a time");
        drop(spool);

        // The next one takes over what waits, and clears away what was half made.
        fs::create_dir(dir.path().join(format!("7-g{MAKING}"))).expect("a folder");
        let mut spool = Spool::open(dir.path(), 30).expect("opens");
        assert_eq!((names(&spool), spool.bytes()), (vec!["4-d".to_owned(), "5-e".to_owned()], 30));
        assert!(!dir.path().join(format!("7-g{MAKING}")).exists());
        spool.next();
        spool.done().expect("deleted");
        assert_eq!((names(&spool), spool.len()), (vec!["5-e".to_owned()], 1));
    }
}
