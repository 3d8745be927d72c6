//! The NDJSON log that each process of the lab writes: buffered, written out every 200 ms and at the end.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// How long a line may stay in memory.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// An append-only log of JSON lines, shared between threads.
#[derive(Clone, Debug)]
pub struct Logbook {
    path: Arc<PathBuf>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    writer: BufWriter<File>,
    failed: bool,
}

impl Logbook {
    /// Opens the log for appending (or makes it), and starts the thread that writes it out.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let inner = Arc::new(Mutex::new(Inner { writer: BufWriter::with_capacity(1 << 18, file), failed: false }));
        let weak = Arc::downgrade(&inner);
        let path = Arc::new(path.to_owned());
        let named = Arc::clone(&path);
        std::thread::Builder::new().name("logbook".into()).stack_size(64 << 10).spawn(move || {
            while let Some(inner) = weak.upgrade() {
                let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
                let written = inner.writer.flush();
                inner.note(&named, written);
                drop(inner);
                std::thread::sleep(FLUSH_EVERY);
            }
        })?;
        Ok(Self { path, inner })
    }

    /// Adds one line. A disk that refuses it is reported once on stderr; the request goes on.
    pub fn append(&self, record: &impl Serialize) {
        // Serialised outside of the lock, so that request threads do not wait for each other's formatting.
        let line = serde_json::to_vec(record).map_err(io::Error::from);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            inner.writer.write_all(&line)
        });
        inner.note(&self.path, written);
    }

    /// Writes out what is in memory.
    pub fn flush(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let written = inner.writer.flush();
        inner.note(&self.path, written);
    }

    /// Writes everything out and ends the process, holding the lock so that no half line can follow.
    pub fn flush_and_exit(&self, code: i32) -> ! {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let written = inner.writer.flush();
        inner.note(&self.path, written);
        std::process::exit(code)
    }
}

impl Inner {
    fn note(&mut self, path: &Path, written: io::Result<()>) {
        if let Err(error) = written
            && !self.failed
        {
            self.failed = true;
            eprintln!("the log {} cannot be written, lines of it are missing: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_many_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ndjson");
        let log = Logbook::open(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let log = log.clone();
                scope.spawn(move || (0..500).for_each(|i| log.append(&[thread, i])));
            }
        });
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2000);
        assert!(text.lines().all(|line| serde_json::from_str::<[i32; 2]>(line).is_ok()));
    }
}
