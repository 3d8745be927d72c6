//! Joins on the node, for `/metrics`: what is written to the window is also joined and attributed some seconds later, and each request
//! fed to histograms once.
//!
//! A request is told by rows that come over several seconds (Envoy holds its log entries back for up to a second), and requests
//! straddle any cut. So rows wait until the request that they belong to was counted: a join looks at those up to its line, which
//! lies [`LAG`] back, and counts the requests that ended between the last join's line and this one's. A request's rows go once it
//! was counted, so that no row is joined more often than it must be; what belongs to no request goes after some seconds.

mod rows;

use super::metrics::RequestMetrics;
use meshdiff_analyzer::AttributedRequest;
use meshdiff_discovery::kube::Informers;
use meshdiff_model::{ClockSample, DurationNs, Http2Stream, LogBatch, Message, Proxy, Socket};
use rows::Rows;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// How often what was copied is handed on. Rarer means that more waits.
const EVERY: Duration = Duration::from_millis(500);
/// How long after a request's end its rows are complete: a message is told after up to a second, and Envoy's entry comes after its flush
/// of 1 s; then [`EVERY`], and a second more.
const LAG: DurationNs = DurationNs::from_millis(2_500);
/// How much time is joined at once, at least. What a join takes of memory grows with it, what all of them take of time hardly shrinks.
const STEP: DurationNs = DurationNs::from_millis(1_000);
/// Batches that may wait for a join.
const WAITING: usize = 8;
/// Rows of a batch after which it is looked whether it is time to hand it on.
const LOOK: usize = 256;

/// Rows of some half a second.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    http2: Vec<Http2Stream>,
    logs: Vec<LogBatch>,
    sockets: Vec<Socket>,
    proxies: Vec<Proxy>,
    /// When it was handed on.
    at: Option<ClockSample>,
}

/// What the joins had to leave out.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    /// Rows that were not joined for `/metrics`, because too many waited. They are in the window all the same.
    pub(crate) shed_rows: AtomicU64,
    /// Requests that contradict themselves.
    pub(crate) contradictions: AtomicU64,
    /// Joins that were made.
    pub(crate) joins: AtomicU64,
    /// The time that they took, in ns.
    pub(crate) join_ns: AtomicU64,
}

/// Copies what is written to the window.
pub(crate) struct Tap {
    batch: Batch,
    since: Instant,
    to: SyncSender<Batch>,
    counters: Arc<LiveCounters>,
}

/// Joins what a [`Tap`] copies.
pub(crate) struct LiveJoin {
    from: Receiver<Batch>,
    rows: Rows,
    metrics: Arc<RequestMetrics>,
    counters: Arc<LiveCounters>,
    informers: Option<Arc<Informers>>,
}

/// A tap, and the join that it feeds. What ended before `began` is not counted.
pub(crate) fn pair(
    metrics: Arc<RequestMetrics>,
    counters: Arc<LiveCounters>,
    informers: Option<Arc<Informers>>,
    began: ClockSample,
) -> (Tap, LiveJoin) {
    let (to, from) = sync_channel(WAITING);
    let tap = Tap { batch: Batch::default(), since: Instant::now(), to, counters: Arc::clone(&counters) };
    (tap, LiveJoin { from, rows: Rows::new(began), metrics, counters, informers })
}

impl Tap {
    pub(crate) fn message(&mut self, message: &Message) {
        self.batch.messages.push(message.clone());
    }
    pub(crate) fn http2(&mut self, stream: &Http2Stream) {
        self.batch.http2.push(stream.clone());
    }
    pub(crate) fn socket(&mut self, socket: &Socket) {
        self.batch.sockets.push(socket.clone());
    }
    pub(crate) fn access_logs(&mut self, batch: &LogBatch) {
        self.batch.logs.push(batch.clone());
    }
    pub(crate) fn proxy(&mut self, proxy: &Proxy) {
        self.batch.proxies.push(proxy.clone());
    }

    /// True from time to time, when it is time to [`hand_on`](Self::hand_on).
    pub(crate) fn is_due(&self) -> bool {
        let Batch { messages, logs, .. } = &self.batch;
        // The clock is not asked for every row.
        (messages.len() + logs.len()).is_multiple_of(LOOK) && self.since.elapsed() >= EVERY
    }

    /// Hands on what was copied since the last time. Never waits: the window is more important.
    pub(crate) fn hand_on(&mut self, at: ClockSample) {
        self.since = Instant::now();
        let (messages, logs) = (self.batch.messages.len(), self.batch.logs.len());
        let next = Batch {
            // As much as this time, most likely.
            messages: Vec::with_capacity(messages),
            logs: Vec::with_capacity(logs),
            ..Batch::default()
        };
        let batch = Batch { at: Some(at), ..std::mem::replace(&mut self.batch, next) };
        if let Err(TrySendError::Full(mut batch)) = self.to.try_send(batch) {
            self.counters.shed_rows.fetch_add(batch.rows(), Relaxed);
            // Who is who must not get lost.
            (self.batch.sockets, self.batch.proxies) = (std::mem::take(&mut batch.sockets), batch.proxies);
        }
    }
}

#[cfg(test)]
impl Tap {
    /// As [`hand_on`](Self::hand_on), but waits for its turn.
    pub(crate) fn hand_on_waiting(&mut self, at: ClockSample) {
        let batch = Batch { at: Some(at), ..std::mem::take(&mut self.batch) };
        self.to.send(batch).expect("the join is there");
    }
}

impl Batch {
    fn rows(&self) -> u64 {
        let logs: usize = self.logs.iter().map(LogBatch::len).sum();
        (self.messages.len() + self.http2.len() + logs) as u64
    }
}

impl LiveJoin {
    /// Joins until the tap is gone.
    pub(crate) fn run(mut self) {
        while let Ok(batch) = self.from.recv() {
            let Some(at) = batch.at else { continue };
            self.rows.take(batch, at);
            let shed = self.rows.bound();
            self.counters.shed_rows.fetch_add(shed, Relaxed);
            let until = at.monotonic.offset(-LAG);
            if until - self.rows.counted_until() < STEP {
                continue;
            }
            let began = Instant::now();
            let observe = |request: &AttributedRequest| self.metrics.observe(request);
            let contradictions = self.rows.join(until, at, self.informers.as_deref(), observe);
            self.counters.contradictions.fetch_add(contradictions, Relaxed);
            self.counters.joins.fetch_add(1, Relaxed);
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counters.join_ns.fetch_add(took, Relaxed);
        }
    }
}

/// How long a join may keep the agent from ending.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
