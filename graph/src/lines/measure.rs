//! What was measured on the sockets of a line's end, put together: in all, and in each window.

use super::{LineSide, Tie, Topology};
use meshdiff_model::{
    Close, Closer, DropReason, DurationNs, Errno, ExponentialHistogram, IoMetrics, MonotonicNs, Socket, SocketCookie,
    SocketMetrics, SocketRole,
};
use petgraph::graph::EdgeIndex;
use std::collections::{BTreeMap, HashMap};

/// What was measured on one end of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideMetrics {
    /// Over the recording, or the part of it that was chosen.
    pub total: Measured,
    /// In each window of [`SocketMetrics::WINDOW`] in which something happened, by its beginning.
    pub windows: BTreeMap<MonotonicNs, Measured>,
}

/// What was measured in a stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Writes.
    pub write: IoMetrics,
    /// Reads.
    pub read: IoMetrics,
    /// Smoothed round-trip times, ns.
    pub rtt: ExponentialHistogram,
    /// Connections that began.
    pub connect: ConnectTally,
    /// Connections that ended.
    pub close: CloseTally,
    /// Segments sent again.
    pub retransmits: u64,
    /// Packets dropped, by the kernel's reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// Events that were lost: with any, counts are lower bounds.
    pub lost_events: u64,
}

/// Connections that began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectTally {
    /// Connects tried (the connecting end) or connections accepted (the other one) whose beginning was seen.
    pub count: u64,
    /// How long the handshake took, in ns, from TCP's changes of state; one value for each that came to its end.
    pub handshake: ExponentialHistogram,
    /// Connects that failed, by the kernel's error.
    pub failures: BTreeMap<Errno, u64>,
}

/// Connections that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseTally {
    /// Connections whose end was seen.
    pub count: u64,
    /// Of these, by who was first; fewer than `count` where that was not seen.
    pub by: BTreeMap<Closer, u64>,
    /// Of these, those with a reset.
    pub resets: u64,
    /// From the first FIN to the end, in ns.
    pub duration: ExponentialHistogram,
}

impl Measured {
    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        self.write.merge(&other.write);
        self.read.merge(&other.read);
        self.rtt.merge(&other.rtt);
        self.connect.merge(&other.connect);
        self.close.merge(&other.close);
        self.retransmits = self.retransmits.saturating_add(other.retransmits);
        add_all(&mut self.drops, &other.drops);
        self.lost_events = self.lost_events.saturating_add(other.lost_events);
    }

    fn add(&mut self, row: &SocketMetrics) {
        self.write.merge(&row.write);
        self.read.merge(&row.read);
        self.rtt.merge(&row.rtt);
        self.retransmits = self.retransmits.saturating_add(row.retransmits);
        add_all(&mut self.drops, &row.drops);
        self.lost_events = self.lost_events.saturating_add(row.lost_events);
    }
}

impl ConnectTally {
    fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.handshake.merge(&other.handshake);
        add_all(&mut self.failures, &other.failures);
    }

    /// All connects that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl CloseTally {
    fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.resets = self.resets.saturating_add(other.resets);
        self.duration.merge(&other.duration);
        add_all(&mut self.by, &other.by);
    }
}

fn add_all<K: Ord + Clone>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, n) in from {
        let sum = to.entry(key.clone()).or_default();
        *sum = sum.saturating_add(*n);
    }
}

/// What a recording holds of its sockets' metrics.
#[derive(Clone, Copy, Debug)]
pub struct MetricsInput<'a> {
    /// The sockets.
    pub sockets: &'a [Socket],
    /// Their metrics, in any order; rows of one socket and window add up.
    pub metrics: &'a [SocketMetrics],
    /// Leave out windows that ended before, and what began or ended before.
    pub since: Option<MonotonicNs>,
    /// True if the recording knew no metrics: then what messages and sockets tell stands in for them (calls, bytes, each socket's last
    /// round-trip time), over the whole recording.
    pub from_messages: bool,
}

/// Where a socket's metrics go.
#[derive(Clone, Copy)]
struct At {
    edge: EdgeIndex,
    client: bool,
}

impl Topology {
    /// Puts the metrics of a recording's sockets on the lines; what was there before is replaced.
    pub fn measure(&mut self, input: MetricsInput<'_>) {
        let mut at: HashMap<SocketCookie, At> = HashMap::new();
        for edge in self.graph.edge_indices() {
            let Tie::Line(line) = &mut self.graph[edge] else { continue };
            for (side, client) in [(&mut line.client, true), (&mut line.server, false)] {
                side.metrics = SideMetrics::default();
                at.extend(side.sockets.iter().map(|&cookie| (cookie, At { edge, client })));
            }
        }
        let chosen = |t: MonotonicNs| input.since.is_none_or(|since| t >= since);
        for row in input.metrics.iter().filter(|row| chosen(row.window_end())) {
            if let Some(side) = at.get(&row.socket).and_then(|at| self.side(*at)) {
                side.metrics.total.add(row);
                side.metrics.windows.entry(row.window_start).or_default().add(row);
            }
        }
        if input.from_messages {
            self.stand_in();
        }
        for socket in input.sockets {
            let Some(side) = at.get(&socket.cookie).and_then(|at| self.side(*at)) else { continue };
            let metrics = &mut side.metrics;
            if input.from_messages {
                metrics.total.rtt.extend(socket.srtt.map(ns));
            }
            if let Some((when, connect)) = connect_of(socket).filter(|(when, _)| chosen(*when)) {
                metrics.total.connect.merge(&connect);
                metrics.windows.entry(SocketMetrics::window_of(when)).or_default().connect.merge(&connect);
            }
            if let Some((when, close)) = close_of(socket).filter(|(when, _)| chosen(*when)) {
                metrics.total.close.merge(&close);
                metrics.windows.entry(SocketMetrics::window_of(when)).or_default().close.merge(&close);
            }
        }
    }

    fn stand_in(&mut self) {
        for tie in self.graph.edge_weights_mut() {
            let Tie::Line(line) = tie else { continue };
            for side in [&mut line.client, &mut line.server] {
                let total = &mut side.metrics.total;
                (total.write, total.read) = side.assembled.clone();
            }
        }
    }

    fn side(&mut self, at: At) -> Option<&mut LineSide> {
        match self.graph.edge_weight_mut(at.edge)? {
            Tie::Line(line) => Some(if at.client { &mut line.client } else { &mut line.server }),
            Tie::Holds => None,
        }
    }
}

fn ns(span: DurationNs) -> u64 {
    u64::try_from(span.0).unwrap_or(0)
}

/// A connection's beginning, if it was seen: when, and what.
fn connect_of(socket: &Socket) -> Option<(MonotonicNs, ConnectTally)> {
    let when = match socket.role {
        Some(SocketRole::Accepted) => socket.established?,
        Some(SocketRole::Connected) | None => socket.connect_start.or(socket.established)?,
    };
    let mut tally = ConnectTally { count: 1, ..ConnectTally::default() };
    let told = || Some(socket.established? - socket.connect_start?);
    tally.handshake.extend(socket.handshake.or_else(told).map(ns));
    tally.failures.extend(socket.connect_error.map(|e| (e, 1)));
    Some((when, tally))
}

/// A connection's end, if it was seen: when, and what. A connect that failed is no end of a connection.
fn close_of(socket: &Socket) -> Option<(MonotonicNs, CloseTally)> {
    let when = socket.closed.filter(|_| socket.connect_error.is_none())?;
    let mut tally = CloseTally { count: 1, ..CloseTally::default() };
    if let Some(Close { by, reset, duration }) = socket.close {
        tally.by.insert(by, 1);
        tally.resets = u64::from(reset);
        tally.duration.extend(duration.map(ns));
    }
    Some((when, tally))
}
