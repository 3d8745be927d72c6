//! Rows that wait to be joined.

use super::{Batch, LAG};
use crate::agent::directory::OnNode;
use meshdiff_analyzer::{AttributedRequest, attribute_hop};
use meshdiff_discovery::kube::Informers;
use meshdiff_graph::{HopInput, MeshGraph};
use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, Crossing, DownstreamDirectRemoteAddr, DurationNs, HopProtocol, HopSide,
    Http2Stream, JoinedHop, Message, MonotonicNs, NodeId, Proxy, Socket, SocketCookie, UpstreamLocalAddr, WallTime,
};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// How far beyond its line a join looks: what ends shortly before the end of what it sees may seem to be cut off by it.
const BEYOND: DurationNs = DurationNs::from_millis(50);
/// How long a row waits for the request that it may belong to, if requests of its socket are known to end.
const LONGEST: DurationNs = DurationNs::from_millis(60_000);
/// How long a row waits that belongs to none.
const STRAY: DurationNs = DurationNs::from_millis(12_000);
/// How much later than its log says a request may end.
const MARGIN: DurationNs = DurationNs::from_millis(1_000);
/// Rows that may wait. Beyond that the oldest half goes, and is counted.
const MOST_ROWS: usize = 250_000;

/// What waits to be joined.
pub(super) struct Rows {
    /// What the next join looks at again, because the request that it belongs to was not over.
    messages: Vec<Message>,
    http2: Vec<Http2Stream>,
    access_logs: Vec<HopSide>,
    /// What is so late that no join has looked at it, as it came.
    later: VecDeque<Batch>,
    sockets: HashMap<SocketCookie, Socket>,
    proxies: BTreeMap<NodeId, Proxy>,
    clock: Vec<ClockSample>,
    began: MonotonicNs,
    /// Requests that ended before this are counted.
    counted_until: MonotonicNs,
    /// Until when a socket's rows belong to requests that are counted.
    done: HashMap<SocketCookie, MonotonicNs>,
}

/// Tells one log entry from all others.
#[derive(PartialEq, Eq, Hash)]
struct LogKey {
    node: NodeId,
    kind: AccessLogType,
    start: WallTime,
    from: Option<DownstreamDirectRemoteAddr>,
    over: Option<UpstreamLocalAddr>,
    stream: Option<Arc<str>>,
}

impl LogKey {
    fn of(log: &HopSide) -> Self {
        Self {
            node: log.node.clone(),
            kind: log.access_log_type,
            start: log.start_time,
            from: log.downstream_direct_remote_address,
            over: log.upstream_local_address,
            stream: log.stream_id.clone(),
        }
    }
}

impl Rows {
    /// None yet. Of what ended before the agent began, Envoys still send log entries.
    pub(super) fn new(began: ClockSample) -> Self {
        Self {
            messages: Vec::new(),
            http2: Vec::new(),
            access_logs: Vec::new(),
            later: VecDeque::new(),
            sockets: HashMap::new(),
            proxies: BTreeMap::new(),
            clock: vec![began],
            began: began.monotonic,
            counted_until: began.monotonic,
            done: HashMap::new(),
        }
    }

    pub(super) const fn counted_until(&self) -> MonotonicNs {
        self.counted_until
    }

    pub(super) fn take(&mut self, mut batch: Batch, at: ClockSample) {
        self.sockets.extend(batch.sockets.drain(..).map(|s| (s.cookie, s)));
        self.proxies.extend(batch.proxies.drain(..).map(|p| (p.node.clone(), p)));
        self.later.push_back(batch);
        self.clock.push(at);
        let old = at.monotonic.offset(-LONGEST);
        self.clock.retain(|s| s.monotonic >= old);
    }

    /// Keeps memory bounded; how many rows that cost.
    pub(super) fn bound(&mut self) -> u64 {
        let held = self.messages.len() + self.http2.len() + self.access_logs.len();
        let mut waiting = held as u64 + self.later.iter().map(Batch::rows).sum::<u64>();
        let before = waiting;
        if waiting > MOST_ROWS as u64 {
            self.messages.clear();
            self.http2.clear();
            self.access_logs.clear();
            waiting -= held as u64;
            while waiting > MOST_ROWS as u64 / 2
                && let Some(oldest) = self.later.pop_front()
            {
                waiting -= oldest.rows();
            }
        }
        before - waiting
    }

    /// Hands over each request that ended since the last join and before `until`. Returns how many contradict themselves.
    pub(super) fn join(
        &mut self,
        until: MonotonicNs,
        at: ClockSample,
        informers: Option<&Informers>,
        mut observe: impl FnMut(&AttributedRequest),
    ) -> u64 {
        let clock = ClockAnchor::new(self.clock.clone());
        // What is later is not whole yet, and would be joined for nothing.
        let bound = until.offset(BEYOND);
        self.look_at(bound, &clock);
        let proxies: Vec<Proxy> = self.proxies.values().cloned().collect();
        let directory = OnNode::new(&proxies, informers, at.wall);
        let sockets = self.spoken_of(bound);
        let input = HopInput {
            sockets: &sockets,
            messages: &self.messages,
            http2: &self.http2,
            access_logs: &self.access_logs,
            clock: &clock,
            window: (self.began, bound),
        };
        // What was counted is gone: a connection's first request here may not be its first.
        let mesh = MeshGraph::requests_of(input, |socket| self.done.contains_key(&socket));
        let (line, mut used, mut contradictions) = (self.counted_until, HashSet::new(), 0);
        for (i, hop) in mesh.hops.iter().enumerate() {
            let over = match attribute_hop(&mesh, i, &directory, &clock) {
                Ok(request) => {
                    let start = request.start_monotonic.or_else(|| clock.to_monotonic(request.start));
                    let end = start.map(|at| at.offset(request.attribution.total()));
                    let over = end.is_some_and(|at| line <= at && at < until);
                    if over {
                        observe(&request);
                        self.close(&request);
                    }
                    over
                }
                Err(_) => {
                    let over = logs(&hop.joined).all(|log| logged_end(log, &clock).is_none_or(|at| at < until));
                    contradictions += u64::from(over);
                    over
                }
            };
            if over {
                used.extend(logs(&hop.joined).map(LogKey::of));
            }
        }
        self.counted_until = until;
        self.forget(until, at, &clock, &used);
        contradictions
    }

    /// Takes what began until an instant out of what waits.
    fn look_at(&mut self, bound: MonotonicNs, clock: &ClockAnchor) {
        for batch in &mut self.later {
            let early = |at: Option<MonotonicNs>| at.is_none_or(|at| at <= bound);
            self.messages.extend(batch.messages.extract_if(.., |m| early(m.first_instant())));
            self.http2.extend(batch.http2.extract_if(.., |s| s.first.at <= bound));
            for logs in &mut batch.logs {
                let mut rows = std::mem::take(&mut logs.rows);
                for row in rows.extract_if(.., |row| early(clock.to_monotonic(row.start_time))) {
                    if logs.kind(&row).access_log_type.tells_of_an_end() {
                        self.access_logs.push(logs.hop(&row));
                    }
                }
                logs.rows = rows;
            }
            batch.logs.retain(|logs| !logs.is_empty());
        }
        self.later.retain(|batch| batch.rows() > 0);
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

    fn forget(&mut self, until: MonotonicNs, at: ClockSample, clock: &ClockAnchor, used: &HashSet<LogKey>) {
        let (longest, stray) = (at.monotonic.offset(-LONGEST), until.offset(-(STRAY - LAG)));
        let done = &self.done;
        let keep = |socket: SocketCookie, last: MonotonicNs| match done.get(&socket) {
            Some(used) => last > *used && last >= longest,
            None => last >= stray,
        };
        self.messages.retain(|m| m.last_instant().is_some_and(|last| keep(m.socket, last)));
        self.http2.retain(|s| s.last.at >= stray);
        // The kernel sees a request end a little later than its log says.
        let recent = |log: &HopSide| logged_end(log, clock).is_some_and(|end| end >= until.offset(-MARGIN));
        self.access_logs.retain(|log| recent(log) && !used.contains(&LogKey::of(log)));
        self.sockets.retain(|_, s| s.closed.is_none_or(|at| at >= longest));
        self.done.retain(|cookie, _| self.sockets.contains_key(cookie));
    }
}

/// Every log entry that a request was made of.
fn logs(hop: &JoinedHop) -> impl Iterator<Item = &HopSide> {
    own_logs(hop).chain(hop.attempts.iter().flat_map(|a| own_logs(&a.hop)))
}

fn own_logs(hop: &JoinedHop) -> impl Iterator<Item = &HopSide> {
    [&hop.client_log, &hop.server_log].into_iter().chain(&hop.router_logs).filter_map(Option::as_deref)
}

/// When a request was over, by its log.
fn logged_end(log: &HopSide, clock: &ClockAnchor) -> Option<MonotonicNs> {
    let extent = log.timings.extent().unwrap_or_default();
    clock.to_monotonic(WallTime(log.start_time.0.saturating_add(extent.0)))
}

fn last_of(c: &Crossing) -> Option<MonotonicNs> {
    [c.send, c.ready, c.recv, c.last_send, c.last_ready, c.last_recv].into_iter().flatten().max()
}
