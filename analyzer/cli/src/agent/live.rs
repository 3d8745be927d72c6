//! Joins on the node, for `/metrics`: what is written to the window is also joined and attributed some seconds later, and each request
//! fed to histograms once.
//!
//! A request is told by rows that come over several seconds (Envoy holds its log entries back for up to a second), and requests
//! straddle any cut. So rows stay in memory until the request that they belong to was counted: a join looks at those up to its line, which
//! lies [`LAG`] back, and counts the requests that ended between the last join's line and this one's. What belongs to no request
//! goes after [`STRAY`].

use super::directory::OnNode;
use super::metrics::RequestMetrics;
use meshdiff_analyzer::{AttributedRequest, attribute_all};
use meshdiff_capture::Meta;
use meshdiff_discovery::kube::Informers;
use meshdiff_graph::{HopInput, MeshGraph};
use meshdiff_model::{
    ClockAnchor, ClockSample, Crossing, DurationNs, HopProtocol, HopSide, Http2Stream, Message, MonotonicNs, NodeId,
    Proxy, Socket, SocketCookie, WallTime,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// How long after a request's end its rows are complete: Envoy's flush of 1 s, the agent's roll of 2 s, and some more.
const LAG: DurationNs = DurationNs::from_millis(4_000);
/// How much time is joined at once, at least: what a join takes of memory grows with it.
const STEP: DurationNs = DurationNs::from_millis(2_000);
/// How far beyond its line a join looks, for the rest of what ends there.
const BEYOND: DurationNs = DurationNs::from_millis(200);
/// How long a row waits for the request that it may belong to, if requests of its socket are known to end.
const LONGEST: DurationNs = DurationNs::from_millis(60_000);
/// How long a row waits that belongs to none.
const STRAY: DurationNs = DurationNs::from_millis(12_000);
/// How much later than its log says a request may end.
const MARGIN: DurationNs = DurationNs::from_millis(1_000);
/// Messages that may wait. Beyond that the oldest half goes, and is counted.
const MOST_MESSAGES: usize = 200_000;
/// Rolls that may wait for a join.
const WAITING: usize = 2;

/// Rows of one roll.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    http2: Vec<Http2Stream>,
    access_logs: Vec<HopSide>,
    sockets: Vec<Socket>,
    proxies: Vec<Proxy>,
    /// The agent's first reading of the clocks that is remembered, and its last one.
    clock: Option<(ClockSample, ClockSample)>,
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

/// A tap, and the join that it feeds.
pub(crate) fn pair(
    metrics: Arc<RequestMetrics>,
    counters: Arc<LiveCounters>,
    informers: Option<Arc<Informers>>,
) -> (Tap, LiveJoin) {
    let (to, from) = sync_channel(WAITING);
    let tap = Tap { batch: Batch::default(), to, counters: Arc::clone(&counters) };
    (tap, LiveJoin { from, rows: Rows::default(), metrics, counters, informers })
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
    pub(crate) fn access_log(&mut self, entry: HopSide) {
        if entry.access_log_type.tells_of_an_end() {
            self.batch.access_logs.push(entry);
        }
    }
    pub(crate) fn proxy(&mut self, proxy: &Proxy) {
        self.batch.proxies.push(proxy.clone());
    }

    /// Hands on what was copied since the last time. Never waits: the window is more important.
    pub(crate) fn hand_on(&mut self, meta: &Meta) {
        self.batch.clock = ends(meta);
        if let Err(TrySendError::Full(mut batch)) = self.to.try_send(std::mem::take(&mut self.batch)) {
            let rows = batch.messages.len() + batch.http2.len() + batch.access_logs.len();
            self.counters.shed_rows.fetch_add(rows as u64, Relaxed);
            // Who is who must not get lost.
            (self.batch.sockets, self.batch.proxies) = (std::mem::take(&mut batch.sockets), batch.proxies);
        }
    }
}

#[cfg(test)]
impl Tap {
    /// As [`hand_on`](Self::hand_on), but waits for its turn.
    pub(crate) fn hand_on_waiting(&mut self, meta: &Meta) {
        self.batch.clock = ends(meta);
        self.to.send(std::mem::take(&mut self.batch)).expect("the join is there");
    }
}

impl LiveJoin {
    /// Joins until the tap is gone.
    pub(crate) fn run(mut self) {
        while let Ok(batch) = self.from.recv() {
            let Some((began, at)) = batch.clock else { continue };
            self.rows.take(batch, began, at);
            let shed = self.rows.bound();
            self.counters.shed_rows.fetch_add(shed, Relaxed);
            let until = at.monotonic.offset(-LAG);
            if until - self.rows.counted_until < STEP {
                continue;
            }
            let began = std::time::Instant::now();
            let (requests, contradictions) = self.rows.join(until, at, self.informers.as_deref());
            requests.iter().for_each(|r| self.metrics.observe(r));
            self.counters.contradictions.fetch_add(contradictions, Relaxed);
            self.counters.joins.fetch_add(1, Relaxed);
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counters.join_ns.fetch_add(took, Relaxed);
        }
    }
}

/// What waits to be joined.
#[derive(Default)]
struct Rows {
    messages: Vec<Message>,
    http2: Vec<Http2Stream>,
    access_logs: Vec<HopSide>,
    sockets: HashMap<SocketCookie, Socket>,
    proxies: BTreeMap<NodeId, Proxy>,
    clock: Vec<ClockSample>,
    /// Requests that ended before this are counted.
    counted_until: MonotonicNs,
    /// Until when a socket's rows belong to requests that are counted.
    done: HashMap<SocketCookie, MonotonicNs>,
}

impl Rows {
    fn take(&mut self, batch: Batch, began: ClockSample, at: ClockSample) {
        if self.clock.is_empty() {
            // Of what ended before the agent began, Envoys still send log entries.
            self.counted_until = began.monotonic;
        }
        self.messages.extend(batch.messages);
        self.http2.extend(batch.http2);
        self.access_logs.extend(batch.access_logs);
        self.sockets.extend(batch.sockets.into_iter().map(|s| (s.cookie, s)));
        self.proxies.extend(batch.proxies.into_iter().map(|p| (p.node.clone(), p)));
        self.clock.push(at);
        let old = at.monotonic.offset(-LONGEST);
        self.clock.retain(|s| s.monotonic >= old);
    }

    /// Keeps memory bounded; how many rows that cost.
    fn bound(&mut self) -> u64 {
        let before = self.messages.len() + self.access_logs.len() + self.http2.len();
        for_half(&mut self.messages);
        for_half(&mut self.access_logs);
        for_half(&mut self.http2);
        let after = self.messages.len() + self.access_logs.len() + self.http2.len();
        (before - after) as u64
    }

    /// The requests that ended since the last join and before `until`, and how many contradict themselves.
    fn join(
        &mut self,
        until: MonotonicNs,
        at: ClockSample,
        informers: Option<&Informers>,
    ) -> (Vec<AttributedRequest>, u64) {
        // What is later is not whole yet, and would be joined for nothing.
        let bound = until.offset(BEYOND);
        let clock = ClockAnchor::new(self.clock.clone());
        let later = self.take_later(bound, &clock);
        // Stable: rows of one socket and direction stay in order.
        self.messages.sort_by_key(|m| (m.socket, m.direction));
        self.http2.sort_by_key(|s| s.socket);
        let proxies: Vec<Proxy> = self.proxies.values().cloned().collect();
        let directory = OnNode::new(&proxies, informers, at.wall);
        let sockets = self.spoken_of(bound);
        let from = self.messages.iter().filter_map(first_instant).min().unwrap_or(self.counted_until);
        let input = HopInput {
            sockets: &sockets,
            messages: &self.messages,
            http2: &self.http2,
            access_logs: &self.access_logs,
            clock: &clock,
            window: (from, bound),
        };
        let mesh = MeshGraph::build(input, &[], &directory);
        let (all, errors) = attribute_all(&mesh, &directory, &clock);
        drop(mesh);
        let line = self.counted_until;
        let end = |r: &AttributedRequest| {
            let start = r.start_monotonic.or_else(|| clock.to_monotonic(r.start))?;
            Some(start.offset(r.attribution.total()))
        };
        let over: Vec<AttributedRequest> =
            all.into_iter().filter(|r| end(r).is_some_and(|at| at >= line && at < until)).collect();
        self.counted_until = until;
        over.iter().for_each(|r| self.close(r));
        self.forget(until, at, &clock);
        self.messages.extend(later.messages);
        self.http2.extend(later.http2);
        self.access_logs.extend(later.access_logs);
        (over, errors.len() as u64)
    }

    /// Sets aside what began after an instant.
    fn take_later(&mut self, bound: MonotonicNs, clock: &ClockAnchor) -> Batch {
        let log_began = |log: &HopSide| clock.to_monotonic(log.start_time);
        Batch {
            messages: self.messages.extract_if(.., |m| first_instant(m).is_some_and(|at| at > bound)).collect(),
            http2: self.http2.extract_if(.., |s| s.first.at > bound).collect(),
            access_logs: self.access_logs.extract_if(.., |l| log_began(l).is_some_and(|at| at > bound)).collect(),
            ..Batch::default()
        }
    }

    /// The sockets that rows speak of. What is known of an open one is up to 10 s old: it lives on all the same.
    fn spoken_of(&self, until: MonotonicNs) -> Vec<Socket> {
        let mut cookies: Vec<SocketCookie> =
            self.messages.iter().map(|m| m.socket).chain(self.http2.iter().map(|s| s.socket)).collect();
        cookies.sort_unstable();
        cookies.dedup();
        let known = cookies.iter().filter_map(|c| self.sockets.get(c).cloned());
        let alive = known.map(|mut s| {
            if s.closed.is_none() {
                s.last_seen = s.last_seen.max(until);
            }
            s
        });
        alive.collect()
    }

    /// Notes until when the rows of a request's sockets are used up.
    fn close(&mut self, request: &AttributedRequest) {
        if matches!(request.protocol, HopProtocol::Http2 | HopProtocol::Grpc | HopProtocol::Http3) {
            // Others are under way on the same sockets.
            return;
        }
        for (link, response) in request.response_crossings.iter().enumerate() {
            let Some(last) = last_of(response) else { continue };
            for socket in [2 * link, 2 * link + 1].into_iter().filter_map(|s| request.sockets[s]) {
                let done = self.done.entry(socket.cookie).or_insert(last);
                *done = (*done).max(last);
            }
        }
    }

    fn forget(&mut self, until: MonotonicNs, at: ClockSample, clock: &ClockAnchor) {
        let (longest, stray) = (at.monotonic.offset(-LONGEST), until.offset(-(STRAY - LAG)));
        let done = &self.done;
        let keep = |socket: SocketCookie, last: MonotonicNs| match done.get(&socket) {
            Some(used) => last > *used && last >= longest,
            None => last >= stray,
        };
        self.messages.retain(|m| last_instant(m).is_some_and(|last| keep(m.socket, last)));
        self.http2.retain(|s| s.last.at >= stray);
        self.access_logs.retain(|log| {
            let extent = log.timings.extent().unwrap_or_default();
            let end = clock.to_monotonic(WallTime(log.start_time.0.saturating_add(extent.0)));
            // The kernel sees a request end a little later than its log says.
            end.is_some_and(|end| end >= until.offset(-MARGIN))
        });
        self.sockets.retain(|_, s| s.closed.is_none_or(|at| at >= longest));
        self.done.retain(|cookie, used| *used >= stray && self.sockets.contains_key(cookie));
    }
}

/// The first and the last reading of the clocks.
fn ends(meta: &Meta) -> Option<(ClockSample, ClockSample)> {
    let samples = meta.clock.samples();
    Some((*samples.first()?, *samples.last()?))
}

/// Drops the older half of what has grown too long.
fn for_half<T>(rows: &mut Vec<T>) {
    if rows.len() > MOST_MESSAGES {
        rows.drain(..rows.len() - MOST_MESSAGES / 2);
    }
}

fn instants(m: &Message) -> impl Iterator<Item = MonotonicNs> + '_ {
    [&m.sends, &m.readies, &m.recvs].into_iter().flat_map(|list| list.iter()).map(|i| i.at)
}

fn first_instant(m: &Message) -> Option<MonotonicNs> {
    instants(m).min()
}

fn last_instant(m: &Message) -> Option<MonotonicNs> {
    instants(m).max()
}

fn last_of(c: &Crossing) -> Option<MonotonicNs> {
    [c.send, c.ready, c.recv, c.last_send, c.last_ready, c.last_recv].into_iter().flatten().max()
}

/// How long a join may keep the agent from ending.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
