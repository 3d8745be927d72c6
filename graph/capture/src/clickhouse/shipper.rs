//! Sends captures to the store, again and again until it has taken them.

use super::client::{Client, Query};
use super::encode::{CaptureRow, quoted};
use super::error::StoreError;
use super::requests::JoinedRequests;
use super::schema::{CAPTURE_COLUMNS, CAPTURES};
use super::spool::{Spool, Waiting, prepare};
use super::url::StoreUrl;
use crate::reader::Capture;
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How captures are sent.
#[derive(Clone, Debug)]
pub struct ShipperOptions {
    /// Where to.
    pub store: StoreUrl,
    /// A folder for what the store has not taken yet. What an earlier meshdiff left there is sent, too.
    pub spool: PathBuf,
    /// How many bytes may wait there. Beyond it the oldest captures are dropped and counted.
    pub spool_bytes: u64,
    /// The node's name; the capture's host name if `None`.
    pub node: Option<String>,
    /// How long to wait before the first repetition; it doubles up to `longest_wait`.
    pub first_wait: Duration,
    /// The longest wait between two attempts.
    pub longest_wait: Duration,
}

impl ShipperOptions {
    /// With the limits that suit an agent: 256 MiB, repetitions from one second up to one minute.
    #[must_use]
    pub fn new(store: StoreUrl, spool: PathBuf) -> Self {
        Self {
            store,
            spool,
            spool_bytes: 256 << 20,
            node: None,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// What became of the captures that were handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShipperStats {
    /// Captures that the store has.
    pub stored: u64,
    /// Captures that wait, and their bytes.
    pub waiting: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
    /// Captures that were dropped to keep to the limit.
    pub dropped: u64,
    /// Captures that the store refused because of what is in them.
    pub refused: u64,
    /// Attempts that failed and were repeated.
    pub failures: u64,
    /// Why the last one failed; `None` once one has succeeded.
    pub last_error: Option<String>,
}

struct State {
    spool: Spool,
    stats: ShipperStats,
    /// Set when no more captures come: what waits is still sent, until then.
    until: Option<Instant>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes captures and sends them from a thread of its own. Blocks while it takes one in: not to be called from asynchronous code.
pub struct Shipper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    spool: PathBuf,
    node: Option<String>,
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipper").field("spool", &self.spool).finish_non_exhaustive()
    }
}

impl Shipper {
    /// Starts sending. That the store is away is no error.
    ///
    /// # Errors
    /// If the spool cannot be used.
    pub fn start(options: ShipperOptions) -> Result<Self, StoreError> {
        let spool = Spool::open(&options.spool, options.spool_bytes)?;
        let client = Client::new(options.store.clone())?;
        let state = State { spool, stats: ShipperStats::default(), until: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let waits = ExponentialBuilder::default()
            .with_min_delay(options.first_wait)
            .with_max_delay(options.longest_wait)
            .without_max_times()
            .with_jitter();
        let thread = std::thread::Builder::new()
            .name("store-shipper".to_owned())
            .spawn(move || send_all(&of_thread, &client, waits))
            .map_err(StoreError::spool(&options.spool))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), spool: options.spool, node: options.node })
    }

    /// Takes in a capture that is closed. When this returns it is in the spool, and the folder may go.
    ///
    /// # Errors
    /// If the capture cannot be read, or does not fit.
    pub fn add(&self, capture: &Path) -> Result<(), StoreError> {
        self.add_with(capture, None)
    }

    /// As [`add`](Self::add), with the requests that were found in it: what is summed up in the store.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_with(&self, capture: &Path, requests: Option<&JoinedRequests>) -> Result<(), StoreError> {
        let capture = Capture::open(capture)?;
        let prepared = prepare(&self.spool, &capture, self.node.as_deref(), requests)?;
        let mut state = self.shared.lock();
        let dropped = state.spool.take_in(prepared);
        if let Ok(dropped) = &dropped
            && dropped.captures > 0
        {
            state.stats.dropped += dropped.captures;
            tracing::warn!(
                captures = dropped.captures,
                bytes = dropped.bytes,
                "the store is away for so long that the oldest captures for it were dropped"
            );
        } else if let Err(StoreError::TooLarge { .. }) = &dropped {
            state.stats.dropped += 1;
        }
        self.shared.changed.notify_all();
        dropped.map(drop)
    }

    /// What became of the captures until now.
    #[must_use]
    pub fn stats(&self) -> ShipperStats {
        stats(&self.shared.lock())
    }

    /// Sends what waits, for as long as that may take, and ends. What the store did not take stays in the spool.
    #[must_use]
    pub fn finish(self, within: Duration) -> ShipperStats {
        self.end(within);
        self.stats()
    }

    /// As [`finish`](Self::finish), for who shares it. What is added afterwards waits for the next shipper.
    pub fn end(&self, within: Duration) {
        self.shared.lock().until = Some(Instant::now() + within);
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!(
                "the thread that sends captures to the store panicked: this is a defect in meshdiff, please report it"
            );
        }
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        if self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.end(Duration::ZERO);
        }
    }
}

fn stats(state: &State) -> ShipperStats {
    let mut stats = state.stats.clone();
    stats.waiting = state.spool.len() as u64;
    stats.waiting_bytes = state.spool.bytes();
    stats
}

fn send_all(shared: &Shared, client: &Client, waits: ExponentialBuilder) {
    let mut pauses = waits.build();
    // What of the capture at the front is there already: an attempt goes on where the last one failed.
    let mut sent: (PathBuf, u32) = Default::default();
    loop {
        let Some(next) = wait_for_next(shared) else { return };
        if sent.0 != next.dir {
            sent = (next.dir.clone(), 0);
        }
        let outcome = send(client, &next, &mut sent.1);
        let mut state = shared.lock();
        match outcome {
            Ok(()) => {
                state.stats.stored += 1;
                state.stats.last_error = None;
                forget(&mut state);
                pauses = waits.build();
            }
            Err(error) if error.is_of_the_data() || matches!(error, StoreError::Spool { .. }) => {
                tracing::error!(%error, capture = %next.dir.display(), "a capture cannot be stored and is given up");
                state.stats.refused += 1;
                state.stats.last_error = Some(error.to_string());
                forget(&mut state);
            }
            Err(error) => {
                if state.stats.last_error.is_none() {
                    tracing::warn!(%error, "the store does not take captures: they wait");
                }
                state.stats.failures += 1;
                state.stats.last_error = Some(error.to_string());
                state.spool.put_back();
                let pause = pauses.next().unwrap_or(Duration::from_secs(60));
                if !wait_for(shared, state, pause) {
                    return;
                }
            }
        }
    }
}

fn forget(state: &mut State) {
    if let Err(error) = state.spool.done() {
        tracing::error!(%error, "what was sent to the store cannot be deleted: it will be sent again, and replace itself");
    }
}

/// The capture to send; waits for one. `None` if nothing is left to do.
fn wait_for_next(shared: &Shared) -> Option<Waiting> {
    let mut state = shared.lock();
    loop {
        if state.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        if let Some(next) = state.spool.next() {
            return Some(next);
        }
        if state.until.is_some() {
            return None;
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Waits; false if the end comes first.
fn wait_for(shared: &Shared, mut state: MutexGuard<'_, State>, pause: Duration) -> bool {
    let over = Instant::now() + pause;
    loop {
        let now = Instant::now();
        if state.until.is_some_and(|until| now >= until) {
            return false;
        }
        let end = state.until.map_or(over, |until| over.min(until));
        if now >= over {
            return true;
        }
        let waited = shared.changed.wait_timeout(state, end.saturating_duration_since(now));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Sends a capture: its rows first, then the row that makes it whole. `done` counts what the store has.
fn send(client: &Client, waiting: &Waiting, done: &mut u32) -> Result<(), StoreError> {
    let row = waiting.row()?;
    for (insert, path) in waiting.inserts()?.into_iter().skip(*done as usize) {
        let body = fs::read(&path).map_err(StoreError::spool(&path))?;
        let token = format!("{}-{}", row.capture_id, insert.number);
        client.insert(&Query::new(insert.sql()).setting("insert_deduplication_token", token), Bytes::from(body))?;
        *done += 1;
    }
    client.insert(&capture_query(&row), capture_body(&row)?)
}

fn capture_query(row: &CaptureRow) -> Query {
    // Named, so that a table of an earlier version is told from data that cannot be understood.
    let columns: Vec<String> = CAPTURE_COLUMNS.iter().map(|(name, _, _)| quoted(name)).collect();
    let sql = format!("INSERT INTO {} ({}) FORMAT JSONEachRow", quoted(CAPTURES), columns.join(", "));
    Query::new(sql).setting("insert_deduplication_token", format!("{}-capture", row.capture_id))
}

fn capture_body(row: &CaptureRow) -> Result<Bytes, StoreError> {
    serde_json::to_vec(row).map(Bytes::from).map_err(|e| StoreError::encode(CAPTURES, e))
}
