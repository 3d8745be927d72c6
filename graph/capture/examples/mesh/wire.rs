//! Connections between pods, and what the recorders of their nodes write of them.

use meshdiff_capture::{CaptureError, CaptureSink, CaptureWriter, HostInfo, Meta, ProbeInfo, WriterOptions};
use meshdiff_model::{
    ClockAnchor, ClockSample, Content, Direction, DurationNs, HopSide, Http2Data, Http2Fields, Http2Gap, Http2Stream,
    Instants, LocalAddr, Message, MonotonicNs, NetnsId, PeerAddr, ProbeTier, Process, Proxy, SeqInstant, SeqNo,
    SeqRange, Socket, SocketCookie, SocketMetrics, SocketRole, Tgid, WallTime,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// The wall clock when the recordings begin.
pub(crate) const START: i64 = 1_790_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
/// What the nodes' monotonic clocks show then.
const BOOT: [u64; 2] = [3_600 * SECOND, 91_234 * SECOND + 567_891];

/// One end of a connection: where it is, and its addresses.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) netns: u32,
    pub(crate) owner: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

pub(crate) struct Connection {
    ends: [(End, SocketCookie); 2],
    opened: u64,
    established: u64,
    next: [SeqNo; 2],
    pub(crate) free_at: u64,
    pub(crate) uses: u32,
}

impl Connection {
    /// The address of the end that connected, as the other end knows it.
    pub(crate) const fn client(&self) -> SocketAddr {
        self.ends[1].0.remote
    }

    /// Where it wanted to go.
    pub(crate) const fn destination(&self) -> SocketAddr {
        self.ends[0].0.remote
    }
}

/// When a message crossed a connection.
#[derive(Clone, Copy)]
pub(crate) struct Crossed {
    pub(crate) sent: u64,
    pub(crate) ready: u64,
    pub(crate) read: u64,
}

/// Takes what is recorded, and writes it second by second.
pub(crate) struct Wire {
    nodes: Vec<Node>,
    cookies: u64,
    numbers: u32,
    second: u64,
}

struct Node {
    writer: CaptureWriter,
    boot: u64,
    /// What is not written yet, with the instant from which on it can be.
    messages: Vec<(u64, Message)>,
    streams: Vec<(u64, Http2Stream)>,
    logs: Vec<(u64, HopSide)>,
    metrics: BTreeMap<(MonotonicNs, SocketCookie), SocketMetrics>,
    clock: Vec<ClockSample>,
}

impl Node {
    fn create(folder: &Path, name: &str, boot: u64) -> Result<Self, CaptureError> {
        let options = WriterOptions { sync: false, ..WriterOptions::default() };
        let writer = CaptureWriter::create(folder.join(name), &Meta::default(), options)?;
        Ok(Self {
            writer,
            boot,
            messages: Vec::new(),
            streams: Vec::new(),
            logs: Vec::new(),
            metrics: BTreeMap::new(),
            clock: Vec::new(),
        })
    }

    const fn instant(&self, at: u64) -> MonotonicNs {
        MonotonicNs(self.boot + at)
    }

    /// Writes what had happened by then.
    fn roll(&mut self, until: u64) -> Result<(), CaptureError> {
        let now = self.instant(until);
        self.clock.push(ClockSample { monotonic: now, wall: wall(until) });
        for (_, message) in self.messages.extract_if(.., |(at, _)| *at < until) {
            self.writer.write_message(message)?;
        }
        for (_, stream) in self.streams.extract_if(.., |(at, _)| *at < until) {
            self.writer.write_http2(stream)?;
        }
        for (_, log) in self.logs.extract_if(.., |(at, _)| *at < until) {
            self.writer.write_access_log(log)?;
        }
        // Of windows that are over.
        let current = (SocketMetrics::window_of(now), SocketCookie(0));
        let later = self.metrics.split_off(&current);
        for (_, row) in std::mem::replace(&mut self.metrics, later) {
            self.writer.write_metrics(row)?;
        }
        self.writer.roll(&Meta::default())
    }
}

/// The wall clock of both nodes.
pub(crate) fn wall(at: u64) -> WallTime {
    WallTime(START + at.cast_signed())
}

impl Wire {
    pub(crate) fn create(folder: &Path, nodes: usize) -> Result<Self, CaptureError> {
        let names = ["node-a", "node-b"].into_iter().zip(BOOT).take(nodes);
        let nodes = names.map(|(name, boot)| Node::create(folder, name, boot)).collect::<Result<_, _>>()?;
        Ok(Self { nodes, cookies: 0, numbers: 7, second: 0 })
    }

    /// The node that has what would be on this one if there are as many.
    pub(crate) fn node(&self, wanted: usize) -> usize {
        wanted.min(self.nodes.len() - 1)
    }

    pub(crate) fn open(&mut self, ends: [End; 2], at: u64, established: u64) -> Connection {
        let mut number = || {
            self.numbers = self.numbers.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            SeqNo(self.numbers)
        };
        let next = [number(), number()];
        let ends = ends.map(|end| {
            self.cookies += 1;
            (end, SocketCookie(self.cookies))
        });
        Connection { ends, opened: at, established, next, free_at: established, uses: 0 }
    }

    /// A message of so many bytes; `head` of them are its head where that can be read.
    pub(crate) fn cross(
        &mut self,
        connection: &mut Connection,
        back: bool,
        (len, head): (u32, Option<u32>),
        content: Content,
        when: Crossed,
    ) -> SeqRange {
        let way = usize::from(back);
        let seq = SeqRange::of(connection.next[way], len);
        connection.next[way] = seq.end;
        let message = |socket, direction| Message {
            socket,
            direction,
            seq,
            sends: Instants::new(),
            readies: Instants::new(),
            recvs: Instants::new(),
            held: Instants::new(),
            retransmits: Instants::new(),
            elided: 0,
            gap_before: false,
            content: Content::Unknown,
            head_end: None,
        };
        let (from, sender) = connection.ends[way];
        let node = &mut self.nodes[from.node];
        let mut sent = message(sender, Direction::Egress);
        sent.sends.push(SeqInstant { seq: seq.start, at: node.instant(when.sent) });
        (sent.content, sent.head_end) = (content, head.map(|head| seq.start.advance(head)));
        node.messages.push((when.read, sent));
        let row = node.metrics_of(sender, when.sent);
        (row.write.calls, row.write.bytes) = (row.write.calls + 1, row.write.bytes + u64::from(len));
        row.write.record_duration(DurationNs((when.sent % 9_000 + 3_000).cast_signed()), None);

        let (to, receiver) = connection.ends[1 - way];
        let node = &mut self.nodes[to.node];
        let mut arrived = message(receiver, Direction::Ingress);
        arrived.readies.push(SeqInstant { seq: seq.end, at: node.instant(when.ready) });
        arrived.recvs.push(SeqInstant { seq: seq.end, at: node.instant(when.read) });
        node.messages.push((when.read, arrived));
        let row = node.metrics_of(receiver, when.read);
        (row.read.calls, row.read.bytes) = (row.read.calls + 1, row.read.bytes + u64::from(len));
        row.rtt.record(20_000 + when.read % 50_000);
        seq
    }

    /// That the frames of both ends are followed from their first bytes on.
    pub(crate) fn follow(&mut self, connection: &Connection) {
        for (way, &(end, socket)) in connection.ends.iter().enumerate() {
            let node = &mut self.nodes[end.node];
            let at = SeqInstant { seq: connection.next[way], at: node.instant(connection.established) };
            let row = Http2Stream {
                gap: Some(Http2Gap::StillOpen),
                from_the_beginning: true,
                ..stream(socket, 0, at, at.seq, 0)
            };
            node.streams.push((connection.established, row));
        }
    }

    /// One direction of a stream, in one message: its header block, and `data` bytes of payload in one frame.
    pub(crate) fn frames(
        &mut self,
        connection: &Connection,
        back: bool,
        number: u32,
        (seq, head, data): (SeqRange, u32, u32),
        fields: Http2Fields,
        when: Crossed,
    ) {
        let (end, socket) = connection.ends[usize::from(back)];
        let node = &mut self.nodes[end.node];
        let at = SeqInstant { seq: seq.start, at: node.instant(when.sent) };
        let mut row = Http2Stream {
            head: Some(SeqRange::of(seq.start, head)),
            end: Some(seq.end),
            fields,
            ..stream(socket, number, at, seq.end, 1 + u32::from(data > 0))
        };
        if data > 0 {
            let frame = SeqRange { start: seq.start.advance(head), end: seq.end };
            Http2Data::push(&mut row.data, frame, at.at, data.into());
            row.data_bytes = data.into();
        }
        node.streams.push((when.read, row));
    }

    /// An entry of a proxy on a node, whose stream was over at an instant.
    pub(crate) fn log(&mut self, node: usize, ended: u64, entry: HopSide) {
        // Envoy sends them once a second.
        self.nodes[node].logs.push((ended / SECOND * SECOND + SECOND + 300_000_000, entry));
    }

    /// Closes a connection, or leaves it as it is when the recording ends.
    pub(crate) fn close(&mut self, connection: &Connection, closed: Option<u64>) -> Result<(), CaptureError> {
        for (way, &(end, cookie)) in connection.ends.iter().enumerate() {
            let node = &mut self.nodes[end.node];
            let at = |at: u64| node.instant(at);
            let connected = way == 0;
            let socket = Socket {
                cookie,
                netns: NetnsId(end.netns),
                local: LocalAddr(end.local),
                remote: PeerAddr(end.remote),
                owner: Some(Tgid(end.owner)),
                connect_start: connected.then(|| at(connection.opened)),
                established: Some(at(connection.established)),
                closed: closed.map(at),
                first_seen: at(if connected { connection.opened } else { connection.established }),
                last_seen: at(closed.unwrap_or(connection.free_at)),
                srtt: Some(DurationNs(35_000)),
                lost_events: 0,
                role: Some(if connected { SocketRole::Connected } else { SocketRole::Accepted }),
                handshake: None,
                connect_error: None,
                close: None,
                tls: None,
            };
            node.writer.write_socket(socket)?;
        }
        Ok(())
    }

    pub(crate) fn proxy(&mut self, node: usize, proxy: Proxy, processes: [Process; 2]) -> Result<(), CaptureError> {
        let writer = &mut self.nodes[node].writer;
        writer.write_proxy(proxy)?;
        processes.into_iter().try_for_each(|process| writer.write_process(process))
    }

    /// Nothing happens any more before `now`.
    pub(crate) fn advance(&mut self, now: u64) -> Result<(), CaptureError> {
        while (self.second + 1) * SECOND <= now {
            self.second += 1;
            for node in &mut self.nodes {
                node.roll(self.second * SECOND)?;
            }
        }
        Ok(())
    }

    /// Ends the recordings; returns how many seconds they cover.
    pub(crate) fn finish(mut self, last: u64) -> Result<u64, CaptureError> {
        let end = last + 5 * SECOND;
        self.advance(end)?;
        for mut node in self.nodes {
            node.roll(u64::MAX - node.boot)?;
            node.clock.pop();
            let (monotonic, wall) = (node.instant(end), wall(end));
            let meta = Meta {
                start: ClockSample { monotonic: node.instant(0), wall: WallTime(START) },
                end: Some(ClockSample { monotonic, wall }),
                clock: ClockAnchor::new(node.clock),
                host: HostInfo { hostname: format!("node-{}", node.boot), cpus: 2, ..HostInfo::default() },
                probes: ProbeInfo { tier: ProbeTier::TpBtf, ..ProbeInfo::default() },
                ..Meta::default()
            };
            node.writer.finish(meta)?;
        }
        Ok(end / SECOND)
    }
}

impl Node {
    fn metrics_of(&mut self, socket: SocketCookie, at: u64) -> &mut SocketMetrics {
        let at = self.instant(at);
        let key = (SocketMetrics::window_of(at), socket);
        self.metrics.entry(key).or_insert_with(|| SocketMetrics::at(socket, at))
    }
}

fn stream(socket: SocketCookie, number: u32, first: SeqInstant, end: SeqNo, frames: u32) -> Http2Stream {
    Http2Stream {
        socket,
        stream: number,
        first,
        last: SeqInstant { seq: end, at: first.at },
        head: None,
        end: None,
        frames,
        data_bytes: 0,
        data: Vec::new(),
        interim: 0,
        reset: None,
        gap: None,
        from_the_beginning: false,
        fields: Http2Fields::default(),
    }
}
