//! Exchanges of HTTP/2: one for each stream whose frames were followed at both ends of a connection.

use crate::connection::{Connection, Endpoint};
use crate::exchange::Exchange;
use crate::http2_places::Places;
use crate::stream::{Offset, Stream};
use meshdiff_model::{
    Content, Crossing, Direction, Http2Fields, Http2Gap, Http2Stream, MonotonicNs, SeqNo, SocketCookie,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// A part of an exchange's bytes that one end sent, as positions of that end's egress stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    start: Offset,
    /// After the header block.
    head_end: Offset,
    /// After its last byte that was seen.
    end: Offset,
    /// That is its end: END_STREAM, or the reset that ended it.
    whole: bool,
    /// Header block and data, as other streams' frames may lie between.
    bytes: u32,
    frames: u32,
}

/// Bytes that may lie between a stream's own frames' headers and payloads and still count as its own: trailers, and the frames with which
/// a connection keeps itself going.
const OTHER_FRAMES: i64 = 256;

/// What is known of an exchange because it is a stream of HTTP/2.
#[derive(Clone, Debug)]
pub(crate) struct StreamFacts {
    pub(crate) number: u32,
    request: Part,
    response: Option<Part>,
    /// Where their bytes lie, if all of them were seen.
    request_places: Option<Places>,
    response_places: Option<Places>,
    /// Payload of DATA frames, if all of them were seen.
    pub(crate) request_data: Option<u64>,
    pub(crate) response_data: Option<u64>,
    /// Of both directions: a response has no method, and a request no status.
    pub(crate) fields: Http2Fields,
    /// When the end that connected reset the stream.
    pub(crate) cancelled: Option<MonotonicNs>,
}

/// What all sockets sent.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    sockets: HashMap<SocketCookie, OfSocket>,
}

#[derive(Debug, Default)]
struct OfSocket {
    streams: BTreeMap<u32, Http2Stream>,
    /// From when until when its frames were followed, in order.
    followed: Vec<Followed>,
}

/// A part of a connection's life in which the frames of one direction were followed.
#[derive(Clone, Copy, Debug)]
struct Followed {
    from: MonotonicNs,
    /// The number of the first byte.
    first: SeqNo,
    to: MonotonicNs,
    from_the_beginning: bool,
}

impl Sent {
    pub(crate) fn of(rows: &[Http2Stream]) -> Self {
        let mut sent = Self::following(rows.iter().filter(|row| row.stream == 0));
        for row in rows.iter().filter(|row| row.stream != 0) {
            sent.add(row);
        }
        sent
    }

    /// Adds a row of a stream.
    pub(crate) fn add(&mut self, row: &Http2Stream) {
        match self.sockets.entry(row.socket).or_default().streams.entry(row.stream) {
            Entry::Occupied(mut known) => merge(known.get_mut(), row),
            Entry::Vacant(new) => _ = new.insert(row.clone()),
        }
    }

    /// Drops what a socket sent of a stream.
    pub(crate) fn forget(&mut self, socket: SocketCookie, stream: u32) {
        if let Some(of) = self.sockets.get_mut(&socket) {
            of.streams.remove(&stream);
        }
    }

    /// From where to where frames were followed: all such rows (of stream 0).
    pub(crate) fn following<'a>(rows: impl Iterator<Item = &'a Http2Stream>) -> Self {
        let mut sockets: HashMap<SocketCookie, OfSocket> = HashMap::new();
        for row in rows {
            sockets.entry(row.socket).or_default().followed.push(Followed {
                from: row.first.at,
                first: row.first.seq,
                // What ended with the recording or the socket had nothing more to say.
                to: if row.gap == Some(Http2Gap::StillOpen) { MonotonicNs(u64::MAX) } else { row.last.at },
                from_the_beginning: row.from_the_beginning,
            });
        }
        for socket in sockets.values_mut() {
            socket.followed.sort_by_key(|f| f.from);
            let mut joined: Vec<Followed> = Vec::new();
            for next in &socket.followed {
                match joined.last_mut() {
                    // A long-lived connection is reported piece by piece.
                    Some(last) if next.from <= last.to && !next.from_the_beginning => last.to = last.to.max(next.to),
                    _ => joined.push(*next),
                }
            }
            socket.followed = joined;
        }
        Self { sockets }
    }

    /// True if nothing that a socket sent in a span of time can have been missed.
    fn followed(&self, end: &Endpoint, from: MonotonicNs, to: MonotonicNs) -> bool {
        let list = self.sockets.get(&end.socket.cookie).map_or(&[][..], |s| &s.followed);
        // Where the first bytes that it was seen to send are followed, it was silent before, for as long as it was watched.
        let silent = |f: &Followed| {
            end.socket.lost_events == 0 && end.egress.first() == Some(f.first) && end.socket.first_seen <= from
        };
        list.iter().any(|f| (f.from <= from || f.from_the_beginning || silent(f)) && to <= f.to)
    }
}

fn merge(known: &mut Http2Stream, more: &Http2Stream) {
    if more.head.is_some() && known.head.is_none() {
        let before = std::mem::replace(known, more.clone());
        merge(known, &before);
        return;
    }
    known.end = known.end.or(more.end);
    known.reset = known.reset.or(more.reset);
    known.gap = known.gap.and(more.gap);
    known.frames = known.frames.saturating_add(more.frames);
    known.data_bytes += more.data_bytes;
    known.interim += more.interim;
    if known.last.at <= more.last.at {
        known.last = more.last;
    }
}

impl Part {
    fn of(row: &Http2Stream, stream: &Stream) -> Option<Self> {
        let head = row.head?;
        let start = stream.place(head.start, row.first.at);
        let from_start = |seq| start + Offset::from(head.start.distance(seq));
        let end = from_start(row.end.unwrap_or(row.last.seq)).max(start);
        let whole = row.end.is_some() || (row.reset.is_some() && row.gap.is_none());
        let bytes = u64::from(head.len()) + row.data_bytes;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Some(Self { start, head_end: from_start(head.end), end, whole, bytes, frames: row.frames })
    }

    /// When these bytes crossed from their sender to its peer.
    fn crossing(&self, from: &Stream, to: Option<&Stream>) -> Crossing {
        let mut crossing = Crossing {
            send: from.send_of(self.start),
            last_send: from.send_of(self.end - 1).filter(|_| self.whole),
            bytes: self.bytes,
            ..Crossing::default()
        };
        if let Some(to) = to.filter(|t| !t.is_empty()) {
            let shift = from.shift_to(to);
            let (head, end) = (self.head_end + shift, self.end + shift);
            crossing.ready = to.ready(head);
            crossing.recv = to.recv(head);
            crossing.last_ready = to.ready(end).filter(|_| self.whole);
            crossing.last_recv = to.recv(end).filter(|_| self.whole);
        }
        crossing
    }
}

impl StreamFacts {
    /// Where the bytes of a direction lie among those of the connection.
    pub(crate) const fn places(&self, way: Direction) -> Option<&Places> {
        match way {
            Direction::Egress => self.request_places.as_ref(),
            Direction::Ingress => self.response_places.as_ref(),
        }
    }

    /// Bytes of the header block, if the stream had the connection to itself from its first byte of a direction to its last: only then does
    /// what is known of the connection's bytes tell of its own.
    pub(crate) fn head_if_alone(&self, way: Direction) -> Option<u64> {
        let part = if way == Direction::Egress { self.request } else { self.response? };
        let own = i64::from(part.bytes) + 9 * i64::from(part.frames);
        let alone = part.whole && part.end - part.start <= own + OTHER_FRAMES;
        u64::try_from(part.head_end - part.start).ok().filter(|_| alone)
    }

    /// The crossing of the request or of the response.
    pub(crate) fn crossing(&self, way: Direction, connection: &Connection, endpoints: &[Endpoint]) -> Crossing {
        let client = connection.client.map(|i| &endpoints[i]);
        let server = connection.server.map(|i| &endpoints[i]);
        match (way, self.response) {
            (Direction::Egress, _) => {
                client.map_or_else(Crossing::default, |c| self.request.crossing(&c.egress, server.map(|s| &s.ingress)))
            }
            (Direction::Ingress, Some(response)) => {
                server.map_or_else(Crossing::default, |s| response.crossing(&s.egress, client.map(|c| &c.ingress)))
            }
            (Direction::Ingress, None) => Crossing::default(),
        }
    }

    /// When the accepting end can first have known of the stream: it had read the first byte of its header block.
    pub(crate) fn known_to_server(&self, connection: &Connection, endpoints: &[Endpoint]) -> Option<MonotonicNs> {
        let client = &endpoints[connection.client?].egress;
        let server = connection.server.map(|i| &endpoints[i].ingress);
        let read = server.and_then(|s| s.recv(self.request.start + 1 + client.shift_to(s)));
        read.or_else(|| client.send_of(self.request.start))
    }
}

/// The exchanges of a connection whose frames were followed, in the order in which their requests were sent; `None` if it is
/// none.
///
/// `earlier`: there were exchanges before what is still held.
pub(crate) fn cut(
    index: usize,
    connection: &Connection,
    endpoints: &[Endpoint],
    sent: &Sent,
    earlier: bool,
) -> Option<Vec<Exchange>> {
    let client = &endpoints[connection.client?];
    let requests = sent.sockets.get(&client.socket.cookie).filter(|s| !s.followed.is_empty())?;
    let server = connection.server.map(|i| &endpoints[i]);
    let responses = server.and_then(|s| sent.sockets.get(&s.socket.cookie));
    let mut list: Vec<Exchange> = Vec::new();
    for row in requests.streams.values() {
        let Some(request) = Part::of(row, &client.egress) else { continue };
        let answer = responses.and_then(|r| r.streams.get(&row.stream));
        let response = answer.zip(server).and_then(|(answer, server)| Part::of(answer, &server.egress));
        let status = answer.filter(|a| a.head.is_some()).map(|a| a.fields.clone()).unwrap_or_default();
        let fields = Http2Fields {
            method: row.fields.method.clone(),
            path: row.fields.path.clone(),
            status: status.status,
            grpc: row.fields.grpc.or(status.grpc),
            grpc_status: status.grpc_status,
            request_id: row.fields.request_id.clone(),
        };
        let broken = |row: &Http2Stream| row.gap.is_some_and(|g| g != Http2Gap::StillOpen);
        let places =
            |row: &Http2Stream, part: Part, stream: &Stream| Places::of(row, row.head?, part.start, part.end, stream);
        let answered = answer.zip(server).zip(response);
        let facts = StreamFacts {
            number: row.stream,
            request,
            response,
            request_places: places(row, request, &client.egress),
            response_places: answered.and_then(|((row, server), part)| places(row, part, &server.egress)),
            request_data: row.end.map(|_| row.data_bytes),
            response_data: answer.filter(|a| a.end.is_some()).map(|a| a.data_bytes),
            fields,
            cancelled: row.reset.map(|_| row.last.at),
        };
        let crossing = |way| facts.crossing(way, connection, endpoints);
        let (there, back) = (crossing(Direction::Egress), crossing(Direction::Ingress));
        let ends = [there.last_send, there.send, back.last_recv, back.last_send, back.send];
        let shift = server.map_or(0, |s| s.egress.shift_to(&client.ingress));
        list.push(Exchange {
            connection: index,
            request: (request.start, request.end),
            response: response.map(|r| (r.start + shift, r.end + shift)),
            request_content: Content::Unknown,
            response_content: Content::Unknown,
            pipelined: false,
            lossy: broken(row) || answer.is_some_and(broken),
            first_on_connection: false,
            beginning_unseen: false,
            after_handshake: false,
            first: row.first.at,
            last: ends.into_iter().flatten().max().unwrap_or(row.last.at),
            stream: Some(Box::new(facts)),
        });
    }
    list.sort_by_key(|e| e.stream.as_ref().map(|s| s.request.start));
    let began = client.socket.connect_start.is_some();
    if let Some(first) = list.first_mut().filter(|_| !earlier) {
        first.first_on_connection = began && sent.followed(client, first.first, first.first);
    }
    Some(list)
}

/// True if the frames that the connecting end sent were followed, somewhere in the connection's life.
pub(crate) fn is_http2(connection: &Connection, endpoints: &[Endpoint], sent: &Sent) -> bool {
    let client = connection.client.and_then(|i| sent.sockets.get(&endpoints[i].socket.cookie));
    client.is_some_and(|s| !s.followed.is_empty())
}

/// True if no request that was sent in a span of time can have been missed.
pub(crate) fn is_followed(
    sent: &Sent,
    connection: &Connection,
    endpoints: &[Endpoint],
    from: MonotonicNs,
    to: MonotonicNs,
) -> bool {
    connection.client.is_some_and(|i| sent.followed(&endpoints[i], from, to))
}
