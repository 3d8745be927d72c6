//! Puts access log entries on exchanges, and exchanges together into hops.

mod attempts;
mod clock;
mod find;
mod halves;
mod hop;
mod multiplexed;
mod parts;
mod relayed;
mod ripe;
mod serial;
mod streams;
mod turns;
mod unlogged;

use crate::connection::{Connection, Endpoint};
use crate::exchange::Exchange;
use crate::http2::{Sent, is_http2 as is_followed};
use attempts::Tied;
pub(crate) use clock::Steps;
pub(crate) use hop::start_key;
use meshdiff_model::{
    AmbiguityReason, ClockAnchor, DurationNs, HopProtocol, HopSide, Http2Stream, JoinOutcome, JoinedHop, Message,
    MonotonicNs, NetnsId, Side, Socket, SocketCookie, UnmatchedReason,
};
pub(crate) use parts::{InParts, Step};
use relayed::Relayed;
pub use ripe::Patience;
use ripe::Ripe;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use streams::{Claim, Role};
use unlogged::Candidates;
pub(crate) use unlogged::Unlogged;

/// How far an access log's instant may lie from the kernel's. `start_time` has steps of 1 µs, and the wall clock's
/// readings that anchor it are good to a few µs.
const TOLERANCE: DurationNs = DurationNs::from_micros(20);

/// What happens this shortly before the recording's end may be cut off by it.
const AT_THE_END: DurationNs = DurationNs::from_millis(1);

/// What a recording holds, as far as the joins need it.
#[derive(Clone, Copy, Debug)]
pub struct HopInput<'a> {
    /// Sockets, one for each cookie.
    pub sockets: &'a [Socket],
    /// Messages; those of one socket and direction in the order of assembly.
    pub messages: &'a [Message],
    /// What sockets sent of HTTP/2 streams.
    pub http2: &'a [Http2Stream],
    /// Access log entries, in any order.
    pub access_logs: &'a [HopSide],
    /// How the node's wall clock ran against its monotonic clock.
    pub clock: &'a ClockAnchor,
    /// First and last instant of the recording.
    pub window: (MonotonicNs, MonotonicNs),
}

/// Everything found, before it becomes a graph.
pub(crate) struct Joined {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) hops: Vec<JoinedHop>,
    /// HTTP requests that the kernel saw client applications send to their sidecar.
    pub(crate) client_messages: u64,
    /// Entries that stand for TCP connections.
    pub(crate) tcp_entries: u64,
    /// Requests that sidecars passed on to their applications without an entry.
    pub(crate) unlogged: Vec<Unlogged>,
}

impl Joined {
    /// Where each socket is.
    pub(crate) fn netns(&self) -> HashMap<SocketCookie, NetnsId> {
        self.endpoints.iter().map(|e| (e.socket.cookie, e.socket.netns)).collect()
    }
}

/// An access log entry and the exchanges it speaks of.
struct Entry {
    log: Arc<HopSide>,
    /// The start of its stream, by the wall clock.
    start: Option<MonotonicNs>,
    downstream: JoinOutcome<usize>,
    upstream: JoinOutcome<usize>,
    /// The connections themselves, where the addresses tell them, also if no exchange on them could be told.
    downstream_connection: Option<usize>,
    upstream_connection: Option<usize>,
    /// Its place among the access logs, if it is one of them as it is.
    place: Option<usize>,
    /// The entry of the request that it is another attempt of.
    attempt_of: Option<usize>,
    /// The router's own entry of the attempt that this one tells of.
    router_log: Option<Arc<HopSide>>,
}

impl Entry {
    fn is_client(&self) -> bool {
        self.log.side == Some(Side::Client)
    }

    fn extent(&self) -> DurationNs {
        self.log.timings.extent().unwrap_or_default()
    }
}

/// What the joins stand on: sockets, the connections that they make, and what is true of the whole recording.
pub(crate) struct Ground {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connections: Vec<Connection>,
    /// Connections by the address of the end that connected.
    by_client: HashMap<SocketAddr, Vec<usize>>,
    /// Sockets of which events were lost.
    lossy: HashSet<SocketCookie>,
    /// Connections that carry several requests at once (HTTP/2 and later), by index.
    multiplexed: HashSet<usize>,
    /// Those of them whose frames were followed.
    followed: HashSet<usize>,
    sent: Sent,
    steps: Steps,
    has_kernel: bool,
    /// Sockets whose connect was in vain.
    failed: Vec<usize>,
    /// Connections of which messages are still to come, by index.
    unfinished: HashSet<usize>,
    /// Since when an application waited for an answer to what no entry tells of, where that is not held any more.
    untold_since: HashMap<NetnsId, MonotonicNs>,
    /// Entries, by their place among the logs, that were told of before: what they were about is not held any more, or not all of it. With
    /// whether it was found where the request went on.
    told: HashMap<usize, bool>,
}

impl Ground {
    fn of(endpoints: Vec<Endpoint>, sent: Sent, clock: &ClockAnchor, has_kernel: bool) -> Self {
        let connections = crate::connection::pair(&endpoints);
        let mut by_client: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
        for (i, connection) in connections.iter().enumerate() {
            for address in connection.client_addresses(&endpoints) {
                by_client.entry(address).or_default().push(i);
            }
        }
        let followed = (0..connections.len()).filter(|&c| is_followed(&connections[c], &endpoints, &sent)).collect();
        let lossy = endpoints.iter().filter(|e| e.socket.lost_events > 0).map(|e| e.socket.cookie).collect();
        let in_vain = |s: &Socket| s.connect_start.is_some() && s.established.is_none();
        let failed = (0..endpoints.len()).filter(|&i| in_vain(&endpoints[i].socket)).collect();
        Self {
            by_client,
            lossy,
            multiplexed: HashSet::new(),
            followed,
            sent,
            steps: Steps::of(clock),
            has_kernel,
            failed,
            unfinished: HashSet::new(),
            untold_since: HashMap::new(),
            told: HashMap::new(),
            endpoints,
            connections,
        }
    }
}

struct Joiner<'a> {
    input: HopInput<'a>,
    ground: Ground,
    exchanges: Vec<Exchange>,
    /// Exchanges of each connection, in order.
    of_connection: Vec<std::ops::Range<usize>>,
    /// What was found for an entry (by its place among the logs) on a connection of which frames were followed, or among requests that
    /// did not wait for each other's response.
    of_stream: HashMap<(usize, Role), JoinOutcome<usize>>,
    /// First exchanges of encrypted connections that nobody says to be whole: the next turn, which may be their rest, is no request
    /// that anybody speaks of.
    parted: HashSet<usize>,
    /// Requests that applications encrypted, whose connections are known.
    relayed: Vec<Relayed>,
}

impl Deref for Joiner<'_> {
    type Target = Ground;
    fn deref(&self) -> &Ground {
        &self.ground
    }
}

/// Joins a recording. `earlier` tells the sockets of which something came before it.
pub(crate) fn join(input: HopInput<'_>, earlier: impl Fn(SocketCookie) -> bool) -> Joined {
    let endpoints = crate::connection::endpoints(input.sockets, input.messages);
    let ground = Ground::of(endpoints, Sent::of(input.http2), input.clock, !input.messages.is_empty());
    let began = |c: &Connection| c.ends().any(|end| earlier(ground.endpoints[end].socket.cookie));
    let began: Vec<bool> = ground.connections.iter().map(began).collect();
    let mut joiner = Joiner::new(input, ground, |c| began[c]);
    let Found { hops, client_messages, unlogged, .. } = joiner.hops(None);
    let tcp = |log: &&HopSide| log.access_log_type.is_terminal() && log.protocol == HopProtocol::Tcp;
    let tcp_entries = input.access_logs.iter().filter(tcp).count() as u64;
    let Ground { endpoints, connections, .. } = joiner.ground;
    Joined { endpoints, connections, hops, client_messages, tcp_entries, unlogged: unlogged.settle() }
}

/// What was found.
#[derive(Default)]
struct Found {
    hops: Vec<JoinedHop>,
    /// Requests that client applications were seen to send.
    client_messages: u64,
    unlogged: Candidates,
    /// Entries, by their place among the logs, of which all is told, with whether it was found where the request went on.
    told: Vec<(usize, bool)>,
    /// Exchanges that were counted.
    counted: Vec<usize>,
    entries: Vec<Entry>,
}

impl<'a> Joiner<'a> {
    /// `earlier` says of which connections there were exchanges before what is still held of them.
    fn new(input: HopInput<'a>, mut ground: Ground, earlier: impl Fn(usize) -> bool) -> Self {
        let Ground { endpoints, connections, by_client, sent, .. } = &ground;
        let cut = |(i, connection)| {
            let streams = crate::http2::cut(i, connection, endpoints, sent, earlier(i));
            streams.unwrap_or_else(|| crate::exchange::cut(i, connection, endpoints, earlier(i)))
        };
        let mut cuts: Vec<Vec<Exchange>> = connections.iter().enumerate().map(cut).collect();
        let mut multiplexed = multiplexed::find(input, endpoints, connections, by_client);
        multiplexed.extend(&ground.multiplexed);
        turns::mend(input, connections, endpoints, by_client, &multiplexed, &mut cuts);
        let relayed = relayed::find(input, endpoints, connections, by_client, &mut cuts);
        let mut exchanges = Vec::new();
        let mut of_connection = Vec::with_capacity(connections.len());
        for cut in cuts {
            let from = exchanges.len();
            exchanges.extend(cut);
            of_connection.push(from..exchanges.len());
        }
        ground.multiplexed = multiplexed;
        let (of_stream, parted) = (HashMap::new(), HashSet::new());
        Self { input, ground, exchanges, of_connection, of_stream, parted, relayed }
    }
}

impl Joiner<'_> {
    /// Everything, or what is ripe and was not told before.
    fn hops(&mut self, ripe: Option<&Ripe<'_>>) -> Found {
        let mut entries = self.entries();
        reject_double_claims(&mut entries);
        self.reject_rests(&mut entries);
        self.parted = self.parted(&entries);
        let mut spoken_for = HashSet::new();
        let servers = self.servers(&entries, &mut spoken_for);

        let mut found = Found::default();
        let mut used: Vec<bool> = entries.iter().map(|e| self.was_told(e)).collect();
        let requests = || entries.iter().enumerate().filter(|(_, e)| e.is_client() && e.attempt_of.is_none());
        for (i, _) in requests() {
            used[i] = true;
            if let Some(JoinOutcome::Matched(s)) = servers[i] {
                used[s] = true;
            }
        }
        let attempts = self.attempts(&entries, &servers, &spoken_for, &mut used);
        let due = self.due(ripe, &entries, &servers, &attempts);
        for (i, entry) in requests().filter(|(i, _)| due[*i]) {
            let server = servers[i].unwrap_or(JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing));
            let mut hop = self.hop(Some(entry), server.map(|s| &entries[s]));
            self.complete(&mut hop, i, &entries, &attempts);
            found.hops.push(hop);
        }
        let alone = |i: &usize| due[*i] && !used[*i] && !spoken_for.contains(i);
        for i in (0..entries.len()).filter(alone) {
            found.hops.push(self.hop(None, JoinOutcome::Matched(&entries[i])));
        }
        self.kernel_only(&entries, ripe, &mut found);
        self.unlogged_by_servers(&entries, &due, ripe, &mut found);
        found.hops.sort_by_cached_key(|hop| self.start_key(hop));
        let told = entries.iter().zip(&due).filter(|(_, due)| **due);
        found.told = told.filter_map(|(e, _)| Some((e.place?, e.upstream.matched().is_some()))).collect();
        found.entries = entries;
        found
    }

    fn entries(&mut self) -> Vec<Entry> {
        let logs: Vec<(usize, &HopSide, Option<MonotonicNs>)> = self
            .input
            .access_logs
            .iter()
            .enumerate()
            .filter(|(_, log)| log.access_log_type.is_terminal() && log.protocol != HopProtocol::Tcp)
            .map(|(i, log)| (i, log, self.input.clock.to_monotonic(log.start_time)))
            .filter(|(_, log, start)| self.is_of_the_recording(log, *start))
            .collect();
        self.recut(&logs);
        let tied = Tied::of(self.input.access_logs, &logs);
        // Streams of one connection are told apart by looking at all entries of it at once: first those on which requests came,
        // then, as these say where the proxy is, those on which they went on.
        self.assign_streams(&logs, Role::Downstream, |joiner, log, start, _| joiner.downstream_connection(log, start));
        let made: Vec<_> = logs.iter().copied().chain(tied.other_logs(self.input)).collect();
        self.assign_streams(&made, Role::Upstream, |joiner, log, start, i| {
            // Most went on elsewhere, which is cheaper to tell than where.
            joiner.may_be_followed(log.upstream_local_address?.0).then_some(())?;
            joiner.upstream_connection(log, start, joiner.downstream(i, log, start))
        });
        let mut entries: Vec<Entry> = logs
            .into_iter()
            .map(|(i, log, start)| {
                let downstream = self.downstream(i, log, start);
                let upstream = self.upstream(i, log, start, downstream);
                Entry {
                    log: Arc::new(log.clone()),
                    start,
                    downstream,
                    upstream,
                    downstream_connection: self.downstream_connection(log, start),
                    upstream_connection: self.upstream_connection(log, start, downstream),
                    place: Some(i),
                    attempt_of: None,
                    router_log: None,
                }
            })
            .collect();
        entries.extend(self.relayed.iter().flat_map(|r| self.entries_of(r)));
        entries.sort_by(|a, b| {
            let key = |e: &Entry| (e.log.start_time, e.log.downstream_direct_remote_address, e.log.side);
            key(a).cmp(&key(b)).then_with(|| (&a.log.node, &a.log.stream_id).cmp(&(&b.log.node, &b.log.stream_id)))
        });
        self.add_attempts(&tied, &mut entries);
        entries
    }

    /// False if frames were followed on no connection of an address.
    fn may_be_followed(&self, address: SocketAddr) -> bool {
        self.by_client.get(&address).is_some_and(|list| list.iter().any(|c| self.followed.contains(c)))
    }

    /// Puts the entries of each connection whose frames were followed on its streams.
    fn assign_streams(
        &mut self,
        logs: &[(usize, &HopSide, Option<MonotonicNs>)],
        role: Role,
        connection: impl Fn(&Self, &HopSide, Option<MonotonicNs>, usize) -> Option<usize>,
    ) {
        if self.followed.is_empty() {
            return;
        }
        let mut claims: BTreeMap<usize, Vec<Claim<'_>>> = BTreeMap::new();
        for &(index, log, start) in logs {
            if let (Some(c), Some(start)) = (connection(self, log, start, index), start)
                && self.followed.contains(&c)
                && !self.steps.hold(log.start_time)
            {
                claims.entry(c).or_default().push(Claim { index, log, start });
            }
        }
        for (c, claims) in claims {
            let found = self.assign(c, role, &claims);
            self.of_stream.extend(found.into_iter().map(|(index, outcome)| ((index, role), outcome)));
        }
    }

    /// The second turn of an encrypted connection is a request of its own only if somebody says that it or the first one was: else it may
    /// be the first request's body, which session tickets parted from its head. Likewise what came first on a connection that was open
    /// before the recording may be the rest of something, unless the client's proxy says that it began afterwards.
    fn reject_rests(&self, entries: &mut [Entry]) {
        let served: HashSet<usize> = entries.iter().filter_map(|e| e.downstream.matched()).collect();
        let sent: HashSet<usize> = entries.iter().filter_map(|e| e.upstream.matched()).collect();
        let doubtful = |outcome: JoinOutcome<usize>| {
            outcome.matched().is_some_and(|x| {
                let first = self.of_connection[self.exchanges[x].connection].start;
                x == first + 1
                    && self.exchanges[first].after_handshake
                    && !sent.contains(&x)
                    && !served.contains(&first)
                    && !sent.contains(&first)
            })
        };
        let rest = |outcome: JoinOutcome<usize>| {
            outcome.matched().is_some_and(|x| self.exchanges[x].beginning_unseen && !sent.contains(&x))
        };
        for entry in entries.iter_mut() {
            if rest(entry.downstream) {
                entry.downstream = JoinOutcome::Unmatched(UnmatchedReason::BeforeRecording);
            } else if doubtful(entry.downstream) {
                entry.downstream = JoinOutcome::Ambiguous(AmbiguityReason::SeveralExchanges);
            }
        }
    }

    fn parted(&self, entries: &[Entry]) -> HashSet<usize> {
        let claimed: HashSet<usize> =
            entries.iter().flat_map(|e| [e.downstream.matched(), e.upstream.matched()]).flatten().collect();
        let firsts = self.of_connection.iter().filter(|range| range.len() > 1).map(|range| range.start);
        firsts.filter(|&x| self.exchanges[x].after_handshake && !claimed.contains(&(x + 1))).collect()
    }

    /// True if an entry was told of before.
    fn was_told(&self, entry: &Entry) -> bool {
        entry.place.is_some_and(|place| self.told.contains_key(&place))
    }

    /// False for what is known to have ended before the recording began (Envoy holds its entries for up to a second), and for
    /// what began after its end (while the entries of what came before were waited for).
    fn is_of_the_recording(&self, log: &HopSide, start: Option<MonotonicNs>) -> bool {
        let (first, last) = self.input.window;
        let Some(start) = start else { return true };
        let ended = log.timings.extent().is_some_and(|e| start.offset(e).offset(TOLERANCE) < first);
        !ended && start <= last
    }

    /// True if the entry's stream ended after the recording did, or so shortly before that its last bytes may not have left yet.
    fn near_the_end(&self, entry: &Entry) -> bool {
        self.has_kernel
            && entry.start.is_some_and(|s| s.offset(entry.extent()).offset(AT_THE_END) > self.input.window.1)
    }
}

/// An exchange that several entries claim belongs to none of them.
fn reject_double_claims(entries: &mut [Entry]) {
    let mut down: HashMap<usize, u32> = HashMap::new();
    let mut up: HashMap<usize, u32> = HashMap::new();
    for entry in entries.iter() {
        if let JoinOutcome::Matched(e) = entry.downstream {
            *down.entry(e).or_default() += 1;
        }
        if let JoinOutcome::Matched(e) = entry.upstream {
            *up.entry(e).or_default() += 1;
        }
    }
    let several = |claims: &HashMap<usize, u32>, e| claims.get(&e).is_some_and(|n| *n > 1);
    for entry in entries {
        if let JoinOutcome::Matched(e) = entry.downstream
            && several(&down, e)
        {
            entry.downstream = JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs);
        }
        if let JoinOutcome::Matched(e) = entry.upstream
            && several(&up, e)
        {
            entry.upstream = JoinOutcome::Ambiguous(AmbiguityReason::SeveralLogs);
        }
    }
}

/// True if a connection of this protocol carries several streams at once, so that turns do not tell them apart.
fn is_multiplexed(protocol: HopProtocol) -> bool {
    matches!(protocol, HopProtocol::Http2 | HopProtocol::Http3)
}
