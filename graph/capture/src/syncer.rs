//! Makes files survive a power failure, in a thread of its own: a disk takes its time for that, and what comes meanwhile must not wait for it.

use crate::file::{Temporary, sync_dir, write_whole};
use crate::table::Table;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Files that may wait. Their contents are in the kernel's hands already; beyond that the writer waits for the disk.
const WAITING: usize = 64;

/// A part that is written and has not got its name yet.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) table: Table,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) file: Temporary,
}

/// What could not be made to survive.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
    /// The part that is not there, with its rows and bytes.
    pub(crate) part: Option<(Table, u64, u64)>,
}

enum Job {
    Part(Part),
    /// A file that says what is there: written after all parts before it, and not at all if one of them failed.
    Meta(PathBuf, Vec<u8>),
    /// Everything before is wanted.
    Settle(SyncSender<()>),
}

/// The thread. What it was given before it is dropped is brought to its end.
#[derive(Debug)]
pub(crate) struct Syncer {
    jobs: Option<SyncSender<Job>>,
    failures: Arc<Mutex<Vec<Failure>>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// # Errors
    /// If there can be no further thread.
    pub(crate) fn start() -> io::Result<Self> {
        Self::with(File::sync_all)
    }

    fn with(sync: impl Fn(&File) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(WAITING);
        let failures = Arc::new(Mutex::new(Vec::new()));
        let work = Work { sync, queue, failures: Arc::clone(&failures) };
        let thread = std::thread::Builder::new().name("sync".to_owned()).spawn(move || work.run())?;
        Ok(Self { jobs: Some(jobs), failures, thread: Some(thread) })
    }

    /// Gives a part its name as soon as it would survive.
    ///
    /// # Errors
    /// If the thread is gone.
    pub(crate) fn part(&self, part: Part) -> io::Result<()> {
        self.send(Job::Part(part))
    }

    /// Writes a file after the parts that were given before, unless one of them failed and nobody has [asked](Self::failures) yet.
    ///
    /// # Errors
    /// If the thread is gone.
    pub(crate) fn meta(&self, path: &Path, contents: Vec<u8>) -> io::Result<()> {
        self.send(Job::Meta(path.to_owned(), contents))
    }

    /// Waits for everything that was given before.
    ///
    /// # Errors
    /// If the thread is gone.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let (done, settled) = sync_channel(1);
        self.send(Job::Settle(done))?;
        settled.recv().map_err(|_| gone())
    }

    /// What has failed since this was last asked.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(gone)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, nobody is left who could be told.
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that syncs files has ended")
}

struct Work<S> {
    sync: S,
    queue: Receiver<Job>,
    failures: Arc<Mutex<Vec<Failure>>>,
}

impl<S: Fn(&File) -> io::Result<()>> Work<S> {
    fn run(self) {
        // Folders whose names have changed: one sync is for all that waited.
        let mut folders = BTreeSet::new();
        while let Ok(job) = self.queue.recv() {
            self.work(job, &mut folders);
            while let Ok(job) = self.queue.try_recv() {
                self.work(job, &mut folders);
            }
            self.sync_folders(&mut folders);
        }
    }

    fn work(&self, job: Job, folders: &mut BTreeSet<PathBuf>) {
        match job {
            Job::Part(Part { table, rows, bytes, file }) => {
                let path = file.path().to_owned();
                match (self.sync)(file.file()).and_then(|()| file.keep()) {
                    Ok(()) => folders.extend(path.parent().map(Path::to_owned)),
                    Err(source) => self.failed(Failure { path, source, part: Some((table, rows, bytes)) }),
                }
            }
            Job::Meta(path, contents) => {
                self.sync_folders(folders);
                if self.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
                    && let Err(source) = write_whole(&path, &contents, true)
                {
                    self.failed(Failure { path, source, part: None });
                }
            }
            Job::Settle(done) => {
                self.sync_folders(folders);
                // Who does not wait any more does not mind.
                let _ = done.send(());
            }
        }
    }

    fn sync_folders(&self, folders: &mut BTreeSet<PathBuf>) {
        for path in std::mem::take(folders) {
            if let Err(source) = sync_dir(&path) {
                self.failed(Failure { path, source, part: None });
            }
        }
    }

    fn failed(&self, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::mpsc::channel;

    fn part(path: &Path) -> Part {
        let file = Temporary::write(path, b"rows").expect("written");
        Part { table: Table::Messages, rows: 7, bytes: 4, file }
    }

    #[test]
    fn nobody_waits_for_the_disk_and_the_meta_waits_for_the_parts() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, two, meta) =
            (dir.path().join("part-00001.parquet"), dir.path().join("part-00002.parquet"), dir.path().join("meta"));
        // A disk that syncs when it is let.
        let (let_sync, wait) = channel::<()>();
        let syncer = Syncer::with(move |_| wait.recv().map_err(|_| gone())).expect("a thread");
        syncer.part(part(&one)).expect("taken");
        syncer.part(part(&two)).expect("taken");
        syncer.meta(&meta, b"both".to_vec()).expect("taken");
        assert!(!one.exists() && !two.exists() && !meta.exists(), "nothing has its name before it would survive");
        let_sync.send(()).expect("waited for");
        let_sync.send(()).expect("waited for");
        syncer.settle().expect("settled");
        assert_eq!(fs::read(&meta).expect("there"), b"both");
        assert_eq!(fs::read(&two).expect("there"), b"rows");
        assert!(one.exists() && syncer.failures().is_empty());
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 3, "nothing is left over");
    }

    #[test]
    fn what_does_not_survive_is_told_and_no_meta_speaks_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, meta) = (dir.path().join("part-00001.parquet"), dir.path().join("meta"));
        let syncer = Syncer::with(|_| Err(io::Error::from_raw_os_error(5))).expect("a thread");
        syncer.part(part(&path)).expect("taken");
        syncer.meta(&meta, b"one".to_vec()).expect("taken");
        syncer.settle().expect("settled");
        assert!(!meta.exists());
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "the room is given back");
        let failures = syncer.failures();
        assert_eq!(failures.iter().map(|f| f.part).collect::<Vec<_>>(), [Some((Table::Messages, 7, 4))]);
        // Now that it is known, the next one can say how it is.
        syncer.meta(&meta, b"none".to_vec()).expect("taken");
        drop(syncer);
        assert_eq!(fs::read(&meta).expect("written before the thread ended"), b"none");
    }
}
