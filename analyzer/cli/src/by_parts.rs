//! A report over a large capture, which is never in memory as a whole.
//!
//! The capture is read twice: first in outline, to know which sockets are each other's peers and when what happened, then part by part in
//! order of time. What is told of a part is attributed and added up, and dropped.

use crate::analysis::{ByProxies, measure, notes_of, window_end};
use crate::args::SourceArgs;
use crate::exit::Failure;
use meshdiff_analyzer::parts::report_of;
use meshdiff_analyzer::{Report, ReportInput, Tally, attribute_all, select};
use meshdiff_capture::{ByParts, Capture, CaptureData, Meta, Table};
use meshdiff_discovery::Owners;
use meshdiff_graph::{InParts, Outlines, Patience, Whole};
use meshdiff_model::{
    AttributionError, DownstreamDirectRemoteAddr, DurationNs, HopProtocol, HopSide, Http2Stream, Message, MonotonicNs,
    NodeId, WallTime,
};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Captures with fewer rows of messages and access logs are read as a whole.
const LARGE: u64 = 500_000;
/// Rows of messages and access logs after which what is there is joined.
const STEP: usize = 60_000;
/// Parts that are read before the joins take them.
const AHEAD: usize = 2;
/// Entries of requests that take longer are known from the beginning: they begin long before the part that holds them.
const LONG: DurationNs = DurationNs::from_millis(10_000);

/// A report, with the capture's meta data.
pub(crate) struct Reported {
    pub(crate) report: Report,
    pub(crate) meta: Meta,
}

/// The report over a capture, if it is so large, and such that it can be joined part by part; `None` if it is to be read as a whole, also if
/// there is nothing to report.
pub(crate) fn report(path: &Path, args: &SourceArgs) -> Result<Option<Reported>, Failure> {
    let capture = Capture::open(path)?;
    let rows = |table| capture.meta().tables.get(&table).map_or(0, |t| t.rows);
    // For tests, and for who wants to compare.
    let asked = std::env::var("MESHDIFF_BY_PARTS").ok();
    let large = rows(Table::Messages) + rows(Table::AccessLogs) >= LARGE;
    if asked.as_deref() == Some("never") || (asked.as_deref() != Some("always") && !large) {
        return Ok(None);
    }
    let mut parts = capture.by_parts()?;
    let mut data = parts.rest()?;
    // Of captures of before there were metrics, messages tell some of them.
    if data.metrics.is_empty() {
        return Ok(None);
    }
    let plan = Plan::of(&parts, &data);
    let clock = data.meta.clock.clone();
    let window = (data.meta.start.monotonic, window_end(&data));
    let Plan { outlines, followed, messages, streams, logs, long, multiplexed, directory } = plan;
    let sockets = data.sockets.clone();
    let whole = Whole { sockets, outlines, followed, clock: clock.clone(), window, patience: Patience::default() };
    let Some(mut joins) = InParts::new(whole) else { return Ok(None) };
    for (peer, start) in multiplexed {
        joins.is_multiplexed(peer.0, clock.to_monotonic(start));
    }

    let end_wall = clock.to_wall(window.1).unwrap_or(data.meta.start.wall);
    let since =
        args.since.map(|s| WallTime(end_wall.0.saturating_sub(i64::try_from(s.as_nanos()).unwrap_or(i64::MAX))));
    let mut tally = Tally::default();
    let (mut contradictions, mut first_error, mut any) = (0, None::<AttributionError>, false);
    let mut told = |joins: &mut InParts, until: Option<MonotonicNs>| {
        let (requests, errors) = attribute_all(joins.step(until), &directory, &clock);
        contradictions += errors.len();
        first_error = first_error.take().or(errors.into_iter().next());
        let requests = select(requests, args.namespace.as_deref(), since);
        any |= !requests.is_empty();
        tally.add(&requests);
    };
    let order = Order { messages, streams, logs };
    let kept = Kept::of(&data);
    std::thread::scope(|scope| {
        let (send, parts_read) = sync_channel(AHEAD);
        scope.spawn(|| order.read(&mut parts, kept, send));
        let mut long = long.into_iter().peekable();
        let mut rows = 0;
        for Read { part, then } in Receiver::into_iter(parts_read) {
            rows += part.push(&mut joins);
            if rows >= STEP {
                rows = 0;
                let began = |(_, log): &(u64, HopSide)| clock.to_monotonic(log.start_time).is_none_or(|at| at <= then);
                while let Some((place, log)) = long.next_if(began) {
                    joins.push_log(place, log);
                }
                told(&mut joins, Some(then));
            }
        }
        long.for_each(|(place, log)| joins.push_log(place, log));
    });
    told(&mut joins, None);
    if !any {
        return Ok(None);
    }

    data.damage = parts.damage().clone();
    let mut mesh = joins.finish(&data.processes, &directory);
    let mut notes = data.warnings();
    notes.extend(notes_of(&mesh, contradictions, first_error.as_ref()));
    let missing_metrics = measure(&mut mesh, &data, since.and_then(|s| clock.to_monotonic(s)));
    let start = since.map_or(data.meta.start.wall, |s| WallTime(s.0.max(data.meta.start.wall.0)));
    let input = ReportInput {
        window: (start, end_wall),
        namespace: args.namespace.clone(),
        probe_tier: Some(data.meta.probes.tier),
        probe_stats: data.meta.probes.stats,
        notes,
        missing_metrics,
        clock,
    };
    Ok(Some(Reported { report: report_of(tally.finish(), &mesh, input), meta: data.meta }))
}

/// What is known after the capture was read in outline.
struct Plan {
    outlines: Outlines,
    followed: Vec<Http2Stream>,
    /// For each part of each table, from when on things are in it and in those after it.
    messages: Vec<MonotonicNs>,
    streams: Vec<MonotonicNs>,
    logs: Vec<MonotonicNs>,
    /// Entries of requests that took long, with their places.
    long: Vec<(u64, HopSide)>,
    /// Connections that requests shared with others: who connected, and when a request began.
    multiplexed: Vec<(DownstreamDirectRemoteAddr, WallTime)>,
    directory: ByProxies,
}

/// Which entries count.
#[derive(Clone, Copy)]
struct Kept {
    from: WallTime,
}

impl Kept {
    fn of(data: &CaptureData) -> Self {
        Self { from: data.meta.start.wall }
    }

    /// Envoy keeps entries for up to a second before it sends them: of requests that were over when the recording began, too.
    fn ended(self, start: WallTime, extent: Option<DurationNs>) -> bool {
        start.0.saturating_add(extent.unwrap_or_default().0) >= self.from.0
    }

    fn has(self, log: &HopSide) -> bool {
        log.access_log_type.tells_of_an_end() && self.ended(log.start_time, log.timings.extent())
    }
}

impl Plan {
    fn of(parts: &ByParts<'_>, data: &CaptureData) -> Self {
        let clock = &data.meta.clock;
        let mut outlines = Outlines::default();
        let mut messages = Vec::new();
        for part in 0..parts.message_parts() {
            let first = parts.outline(part, |m| outlines.add(m.socket, m.direction, m.seq, &m.content));
            messages.push(first.unwrap_or(MonotonicNs(u64::MAX)));
        }
        let (mut followed, mut streams) = (Vec::new(), Vec::new());
        for part in 0..parts.stream_parts() {
            let (of_connections, of_requests): (Vec<_>, Vec<_>) =
                parts.peek_streams(part).into_iter().partition(|row| row.stream == 0);
            streams.push(of_requests.iter().map(|row| row.first.at).min().unwrap_or(MonotonicNs(u64::MAX)));
            followed.extend(of_connections);
        }
        followed.sort_by_key(|row| row.socket);

        let kept = Kept::of(data);
        let pods = data.meta.kubernetes.as_ref().map_or(&[][..], |k| &k.pods);
        let contested = Owners::contested(&data.proxies, pods);
        let mut logged: BTreeMap<NodeId, (WallTime, WallTime)> = BTreeMap::new();
        let (mut logs, mut long, mut multiplexed) = (Vec::new(), Vec::new(), Vec::new());
        let mut said = HashSet::new();
        for part in 0..parts.log_parts() {
            let (mut first, mut has_long) = (MonotonicNs(u64::MAX), false);
            parts.log_outlines(part, |log| {
                if !log.access_log_type.tells_of_an_end() || !kept.ended(log.start_time, log.extent) {
                    return;
                }
                if contested.contains(&log.node) {
                    let at = log.start_time;
                    let span = logged.entry(log.node.clone()).or_insert((at, at));
                    *span = (span.0.min(at), span.1.max(at));
                }
                if log.extent.is_some_and(|extent| extent > LONG) {
                    has_long = true;
                } else {
                    first = first.min(clock.to_monotonic(log.start_time).unwrap_or_default());
                }
                let shared = matches!(log.protocol, HopProtocol::Http2 | HopProtocol::Http3);
                // One of each connection and second is enough to say it.
                if shared
                    && log.access_log_type.is_terminal()
                    && let Some(peer) = log.downstream_direct_remote_address
                    && said.insert((peer, log.start_time.0 / 1_000_000_000))
                {
                    multiplexed.push((peer, log.start_time));
                }
            });
            if has_long {
                let rows = places(part).zip(parts.peek_logs(part));
                long.extend(rows.filter(|(_, log)| kept.has(log) && is_long(log)));
            }
            logs.push(first);
        }
        for list in [&mut messages, &mut streams, &mut logs] {
            let mut least = MonotonicNs(u64::MAX);
            for at in list.iter_mut().rev() {
                least = least.min(*at);
                *at = least;
            }
        }
        long.sort_by_key(|(_, log)| log.start_time);
        let directory = ByProxies::logged(&data.proxies, pods, &logged);
        Self { outlines, followed, messages, streams, logs, long, multiplexed, directory }
    }
}

/// Where the rows of a part are among all of the table.
fn places(part: usize) -> impl Iterator<Item = u64> {
    (part as u64) << 32..
}

fn is_long(log: &HopSide) -> bool {
    log.timings.extent().is_some_and(|extent| extent > LONG)
}

/// In which order parts are read.
struct Order {
    messages: Vec<MonotonicNs>,
    streams: Vec<MonotonicNs>,
    logs: Vec<MonotonicNs>,
}

/// A part, and the instant before which everything is there then.
struct Read {
    part: Part,
    then: MonotonicNs,
}

enum Part {
    Messages(Vec<Message>),
    Streams(Vec<Http2Stream>),
    Logs(Vec<(u64, HopSide)>),
}

impl Part {
    /// Hands it to the joins; returns how many rows of messages and access logs it has.
    fn push(self, joins: &mut InParts) -> usize {
        match self {
            Self::Messages(list) => {
                list.iter().for_each(|message| joins.push_message(message));
                list.len()
            }
            Self::Streams(list) => {
                list.iter().for_each(|row| joins.push_stream(row));
                0
            }
            Self::Logs(list) => {
                let rows = list.len();
                list.into_iter().for_each(|(place, log)| joins.push_log(place, log));
                rows
            }
        }
    }
}

impl Order {
    /// Reads all parts, those first in which things begin first. Whoever takes them may go away.
    fn read(&self, parts: &mut ByParts<'_>, kept: Kept, to: SyncSender<Read>) {
        let (mut message, mut stream, mut log) = (0, 0, 0);
        loop {
            let next = |list: &[MonotonicNs], at: usize| list.get(at).copied().unwrap_or(MonotonicNs(u64::MAX));
            let waiting = |list: &[MonotonicNs], at: usize| at < list.len();
            let (m, s, l) = (next(&self.messages, message), next(&self.streams, stream), next(&self.logs, log));
            let part = if waiting(&self.messages, message) && m <= s && m <= l {
                message += 1;
                Part::Messages(parts.messages(message - 1))
            } else if waiting(&self.streams, stream) && s <= l {
                stream += 1;
                Part::Streams(parts.streams(stream - 1))
            } else if waiting(&self.logs, log) {
                log += 1;
                let rows = places(log - 1).zip(parts.logs(log - 1));
                Part::Logs(rows.filter(|(_, row)| kept.has(row) && !is_long(row)).collect())
            } else if waiting(&self.messages, message) {
                message += 1;
                Part::Messages(parts.messages(message - 1))
            } else if waiting(&self.streams, stream) {
                stream += 1;
                Part::Streams(parts.streams(stream - 1))
            } else {
                return;
            };
            let then = next(&self.messages, message).min(next(&self.streams, stream)).min(next(&self.logs, log));
            if to.send(Read { part, then }).is_err() {
                return;
            }
        }
    }
}
