//! Cuts a connection's two byte streams into exchanges: a request and its response.

use crate::connection::{Connection, Endpoint};
use crate::http2::StreamFacts;
use crate::stream::{Offset, Piece, Stream};
use meshdiff_model::{Content, Crossing, Direction, Flow, MonotonicNs, Progress};

/// A request and its response on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) connection: usize,
    /// The request's bytes, as positions of the vantage end's stream.
    pub(crate) request: (Offset, Offset),
    /// The response's bytes, likewise; `None` if none came.
    pub(crate) response: Option<(Offset, Offset)>,
    pub(crate) request_content: Content,
    pub(crate) response_content: Content,
    /// True if the next request began before this one's response did: which response belongs to which is not told by
    /// turns.
    pub(crate) pipelined: bool,
    /// True if events of the vantage end were lost during it or next to it: a turn may be missing, so that it may be two.
    pub(crate) lossy: bool,
    /// True if it is the first on its connection, of which the beginning was seen.
    pub(crate) first_on_connection: bool,
    /// True if it may be the rest of a request that began before its connection was watched.
    pub(crate) beginning_unseen: bool,
    /// True if nothing encrypted was seen before it on its connection: session tickets may then come with its response.
    pub(crate) after_handshake: bool,
    /// First and last instant of any kind, at the vantage end.
    pub(crate) first: MonotonicNs,
    pub(crate) last: MonotonicNs,
    /// Set if it is a stream of HTTP/2, whose bytes lie between those of others.
    pub(crate) stream: Option<Box<StreamFacts>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Request,
    Response,
}

/// The connection is upgraded to another protocol, WebSocket for instance (RFC 9110, section 7.8).
pub(crate) const SWITCHING_PROTOCOLS: Content = Content::Http1Response { status: 101 };

/// The exchanges of a connection, in order. Opaque protocols yield turns too: the caller decides what they mean.
///
/// `earlier`: there were exchanges before what the streams still hold.
pub(crate) fn cut(index: usize, connection: &Connection, endpoints: &[Endpoint], earlier: bool) -> Vec<Exchange> {
    let view = View::of(connection, endpoints);
    let Some(vantage) = view.vantage() else { return Vec::new() };
    let (requests, responses) = vantage;
    let mut pieces: Vec<(Way, &Piece)> = requests.pieces.iter().map(|p| (Way::Request, p)).collect();
    pieces.extend(responses.pieces.iter().map(|p| (Way::Response, p)));
    pieces.sort_by_key(|(way, p)| (p.first, *way == Way::Response));

    let seen_from_its_start = view.client.is_some_and(|c| c.socket.connect_start.is_some())
        || view.server.is_some_and(|s| s.socket.established.is_some());
    let told = view.client.is_some_and(Endpoint::tells_plaintext);
    let mut list: Vec<Exchange> = Vec::new();
    let mut opening = !earlier;
    let mut saw_handshake = false;
    for (way, piece) in pieces {
        let content = view.content(way, piece);
        if piece.gap_before
            && let Some(open) = list.last_mut()
        {
            open.lossy = true;
        }
        if content == Content::TlsHandshake {
            saw_handshake = true;
            continue;
        }
        // Of an application whose plaintext is told, what is none is its library's own.
        if way == Way::Request && told && content == Content::TlsApplicationData {
            continue;
        }
        match way {
            Way::Request => {
                let begins = match (&content, list.last()) {
                    (_, None) => true,
                    (Content::Http1Request { .. }, _) => true,
                    // A body goes on, also after an early response.
                    (_, Some(open)) if matches!(open.request_content, Content::Http1Request { .. }) => false,
                    (_, Some(open)) => open.response.is_some(),
                };
                // Seen from the accepting end alone, the client's side of a handshake cannot be told from data.
                if begins && view.client.is_none() && saw_handshake && opening {
                    opening = false;
                    list.clear();
                }
                if begins {
                    if let Some(open) = list.last_mut() {
                        open.pipelined |= open.response.is_none();
                    }
                    let is_head = matches!(content, Content::Http1Request { .. });
                    let encrypted = told || content == Content::TlsApplicationData;
                    let is_first = list.is_empty() && !earlier;
                    list.push(Exchange {
                        connection: index,
                        request: (piece.start, piece.end),
                        response: None,
                        request_content: content,
                        response_content: Content::Unknown,
                        pipelined: false,
                        lossy: piece.gap_before,
                        beginning_unseen: is_first && !(seen_from_its_start || saw_handshake || is_head),
                        after_handshake: is_first && encrypted,
                        first_on_connection: is_first && seen_from_its_start,
                        first: piece.first,
                        last: piece.last,
                        stream: None,
                    });
                } else if let Some(open) = list.last_mut() {
                    open.request.1 = open.request.1.max(piece.end);
                    open.last = open.last.max(piece.last);
                }
            }
            Way::Response => {
                // Bytes before any request (a server's greeting, its half of a handshake) belong to no exchange.
                let Some(open) = list.last_mut() else { continue };
                open.last = open.last.max(piece.last);
                open.lossy |= piece.gap_before;
                let (start, content) = match view.final_response(piece) {
                    Beginning::At(start, content) => (start, content),
                    Beginning::Preliminary => continue,
                    Beginning::Lost(start) => {
                        open.lossy |= open.response.is_none();
                        (start, Content::Unknown)
                    }
                };
                if open.response.is_none() && content == SWITCHING_PROTOCOLS {
                    // It has no body: what follows is another protocol's, and no part of any exchange.
                    let end = view.head_until(piece, start).unwrap_or(piece.end);
                    open.response = Some((start, end));
                    open.response_content = content;
                    break;
                }
                // What its sender sent of it counts, not only what was seen to arrive.
                let piece_end = view.sent_until(piece).max(piece.end);
                match &mut open.response {
                    Some((_, end)) => *end = (*end).max(piece_end),
                    None => {
                        open.response = Some((start, piece_end));
                        open.response_content = content;
                    }
                }
            }
        }
    }
    list
}

/// The two ends of a connection, and which of them is looked from.
struct View<'a> {
    client: Option<&'a Endpoint>,
    server: Option<&'a Endpoint>,
}

impl<'a> View<'a> {
    fn of(connection: &Connection, endpoints: &'a [Endpoint]) -> Self {
        Self { client: connection.client.map(|i| &endpoints[i]), server: connection.server.map(|i| &endpoints[i]) }
    }

    /// The streams of requests and of responses at the end that is looked from: the client's, if it was seen.
    fn vantage(&self) -> Option<(&'a Stream, &'a Stream)> {
        match (self.client, self.server) {
            (Some(c), _) => Some((&c.egress, &c.ingress)),
            (None, Some(s)) => Some((&s.ingress, &s.egress)),
            (None, None) => None,
        }
    }

    /// What a piece's first bytes are: its sender knows.
    fn content(&self, way: Way, piece: &Piece) -> Content {
        match (way, self.client, self.server) {
            (Way::Request, None, _) | (Way::Response, Some(_), None) => Content::Unknown,
            (Way::Request, Some(_), _) | (Way::Response, None, _) => piece.content.clone(),
            (Way::Response, Some(c), Some(s)) => {
                let shift = c.ingress.shift_to(&s.egress);
                s.egress.piece_at(piece.start + shift).map_or(Content::Unknown, |p| p.content.clone())
            }
        }
    }

    /// Where the head of the response ends that begins at `start` in a piece, if its sender's bytes told.
    fn head_until(&self, piece: &Piece, start: Offset) -> Option<Offset> {
        let (shift, head_end) = match (self.client, self.server) {
            (Some(c), Some(s)) => {
                let shift = c.ingress.shift_to(&s.egress);
                (shift, s.egress.piece_at(start + shift)?.head_end)
            }
            _ => (0, piece.head_end),
        };
        head_end.map(|end| end - shift).filter(|end| *end > start)
    }

    /// Where the message of the response direction ends, at its sender, that holds a piece's last byte.
    fn sent_until(&self, piece: &Piece) -> Offset {
        let (Some(c), Some(s)) = (self.client, self.server) else { return piece.end };
        let shift = c.ingress.shift_to(&s.egress);
        s.egress.piece_at(piece.end - 1 + shift).map_or(piece.end, |p| p.end - shift)
    }

    /// What the first bytes of a piece of the response direction are, interim responses (RFC 9110, section 15.2) and handshake
    /// bytes left out.
    fn final_response(&self, piece: &Piece) -> Beginning {
        let (Some(c), Some(s)) = (self.client, self.server) else {
            let content = if self.client.is_none() { piece.content.clone() } else { Content::Unknown };
            return if is_preliminary(&content) { Beginning::Preliminary } else { Beginning::At(piece.start, content) };
        };
        let shift = c.ingress.shift_to(&s.egress);
        let mut at = piece.start + shift;
        for sent in s.egress.pieces_in(at, piece.end + shift) {
            if sent.start > at {
                return Beginning::Lost(at - shift);
            }
            if !is_preliminary(&sent.content) {
                return Beginning::At(at - shift, sent.content.clone());
            }
            at = at.max(sent.end);
        }
        if at < piece.end + shift { Beginning::Lost(at - shift) } else { Beginning::Preliminary }
    }
}

/// How the response direction goes on.
enum Beginning {
    /// With the response, from this position on.
    At(Offset, Content),
    /// With bytes whose sending was not seen, so that they may be anything.
    Lost(Offset),
    /// With nothing that belongs to the response.
    Preliminary,
}

/// True for what comes before a response and is none.
fn is_preliminary(content: &Content) -> bool {
    content.is_interim_response() || *content == Content::TlsHandshake
}

impl Exchange {
    /// The request's crossing of its connection.
    pub(crate) fn request_crossing(&self, connection: &Connection, endpoints: &[Endpoint]) -> Crossing {
        if let Some(stream) = &self.stream {
            return stream.crossing(Direction::Egress, connection, endpoints);
        }
        let from = connection.client.map(|i| &endpoints[i].egress);
        let to = connection.server.map(|i| &endpoints[i].ingress);
        // Positions are those of the vantage: the client's stream, or the server's where the client was not seen.
        crossing(from, to, connection.client.is_some(), self.request)
    }

    /// Bytes of the request's head, where its end was recognised.
    pub(crate) fn request_head(&self, connection: &Connection, endpoints: &[Endpoint]) -> Option<u64> {
        let from = connection.client.map(|i| &endpoints[i].egress).filter(|_| self.stream.is_none())?;
        let piece = from.piece_at(self.request.0).filter(|p| p.start == self.request.0)?;
        u64::try_from(piece.head_end? - self.request.0).ok()
    }

    /// When the request's first `head` bytes were readable and read.
    pub(crate) fn request_arrival(
        &self,
        connection: &Connection,
        endpoints: &[Endpoint],
        head: u64,
    ) -> Option<(MonotonicNs, Option<MonotonicNs>)> {
        let from = connection.client.map(|i| &endpoints[i].egress);
        let to = connection.server.map(|i| &endpoints[i].ingress)?;
        let (_, received) = positions(from, Some(to), connection.client.is_some(), self.request);
        let end = received.0 + i64::try_from(head).ok()?;
        Some((to.ready(end)?, to.recv(end)))
    }

    /// The request's way over its connection in more detail than its crossing has; `None` if it came in one piece.
    /// `seen_until`: nothing that happened before was missed.
    pub(crate) fn request_flow(
        &self,
        connection: &Connection,
        endpoints: &[Endpoint],
        seen_until: Option<MonotonicNs>,
    ) -> Option<Flow> {
        let from = connection.client.map(|i| &endpoints[i].egress);
        let to = connection.server.map(|i| &endpoints[i].ingress);
        let head = match &self.stream {
            Some(stream) => {
                if let Some(places) = stream.places(Direction::Egress) {
                    return places.flow(whole_flow(from, to, true, self.request, seen_until));
                }
                Some(stream.head_if_alone(Direction::Egress)?)
            }
            None => None,
        };
        let flow = flow(from, to, connection.client.is_some(), self.request, seen_until)?;
        Some(Flow { head: head.or(flow.head), ..flow })
    }

    /// The response's crossing of its connection. Bytes sent before `not_before` do not mark it: on an encrypted connection
    /// they can be session tickets.
    pub(crate) fn response_crossing(
        &self,
        connection: &Connection,
        endpoints: &[Endpoint],
        not_before: Option<MonotonicNs>,
    ) -> Crossing {
        if let Some(stream) = &self.stream {
            return stream.crossing(Direction::Ingress, connection, endpoints);
        }
        let Some((range, told)) = self.response_range(connection, endpoints, not_before) else {
            return Crossing::default();
        };
        let from = connection.server.map(|i| &endpoints[i].egress);
        let to = connection.client.map(|i| &endpoints[i].ingress);
        let whole = crossing(from, to, connection.client.is_none(), range);
        if told { whole } else { Crossing { send: None, ready: None, recv: None, ..whole } }
    }

    /// The response's way over its connection in more detail than its crossing has; `None` if it came in one piece, or if nothing tells
    /// where it began.
    pub(crate) fn response_flow(
        &self,
        connection: &Connection,
        endpoints: &[Endpoint],
        not_before: Option<MonotonicNs>,
        seen_until: Option<MonotonicNs>,
    ) -> Option<Flow> {
        let from = connection.server.map(|i| &endpoints[i].egress);
        let to = connection.client.map(|i| &endpoints[i].ingress);
        // What lies between a stream's frames is other streams'.
        if let Some(places) = self.stream.as_ref().and_then(|s| s.places(Direction::Ingress)) {
            return places.flow(whole_flow(from, to, false, self.response?, seen_until));
        }
        let (head, (range, told)) = match &self.stream {
            Some(stream) => (Some(stream.head_if_alone(Direction::Ingress)?), (self.response?, true)),
            None => (None, self.response_range(connection, endpoints, not_before)?),
        };
        let flow = flow(from, to, connection.client.is_none(), range, seen_until).filter(|_| told)?;
        Some(Flow { head: head.or(flow.head), ..flow })
    }

    /// The response's bytes, as positions of the vantage end's stream, and whether it is told where they begin.
    fn response_range(
        &self,
        connection: &Connection,
        endpoints: &[Endpoint],
        not_before: Option<MonotonicNs>,
    ) -> Option<((Offset, Offset), bool)> {
        let (mut start, end) = self.response?;
        let from = connection.server.map(|i| &endpoints[i].egress);
        let to = connection.client.map(|i| &endpoints[i].ingress);
        // Where tickets may precede the response, only its sender can tell where it begins.
        let mut told = !self.after_handshake || (from.is_some() && not_before.is_some());
        if let (Some(from), Some(not_before)) = (from, not_before) {
            let shift = if connection.client.is_none() { 0 } else { to.map_or(0, |to| to.shift_to(from)) };
            // None at all: what was seen is no answer to this request.
            let later = from.first_send_from(start + shift, end + shift, not_before)?;
            // A send that was lost in between may be the one.
            told &= from.covers(start + shift, later);
            start = later - shift;
        }
        Some(((start, end), told))
    }

    /// Makes the next exchange of the same connection a part of this one.
    pub(crate) fn absorb(&mut self, next: &Self) {
        self.request.1 = self.request.1.max(next.request.1);
        self.response = match (self.response, next.response) {
            (Some((start, end)), Some((_, later))) => Some((start, end.max(later))),
            (one, other) => one.or(other),
        };
        self.pipelined |= next.pipelined;
        self.lossy |= next.lossy;
        self.last = self.last.max(next.last);
    }

    /// True if a response (an interim one aside) was seen.
    pub(crate) fn has_response(&self) -> bool {
        self.response.is_some()
    }
}

/// When bytes crossed from a sender's stream to a receiver's. `range` are positions of the sender's stream if `sender_positions`, else of
/// the receiver's.
fn crossing(from: Option<&Stream>, to: Option<&Stream>, sender_positions: bool, range: (Offset, Offset)) -> Crossing {
    let mut result =
        Crossing { bytes: u32::try_from((range.1 - range.0).max(0)).unwrap_or(u32::MAX), ..Crossing::default() };
    let (sent, received) = positions(from, to, sender_positions, range);
    // The head's end: as the recogniser saw it, else the end of the first send call. Only the sender can tell.
    let mut head_end = None;
    if let Some(from) = from.filter(|f| !f.is_empty()) {
        result.send = from.send_of(sent.0);
        result.last_send = from.last_send(sent.1);
        let read = from.piece_at(sent.0).filter(|p| p.start == sent.0).and_then(|p| p.head_end);
        if let Some(end) = read.or_else(|| from.send_end(sent.0)) {
            head_end = Some(end.min(sent.1) - sent.0 + received.0);
        }
    }
    if let Some(to) = to.filter(|t| !t.is_empty()) {
        result.last_ready = to.ready(received.1);
        result.last_recv = to.recv(received.1);
        let (first, last) = (received.0 + 1, received.1);
        // What was ready (or read) all at once was so with its head, wherever that ends.
        let at_once =
            |at: fn(&Stream, Offset) -> Option<MonotonicNs>| at(to, first).filter(|_| at(to, first) == at(to, last));
        result.ready = head_end.map_or_else(|| at_once(Stream::ready), |end| to.ready(end));
        result.recv = head_end.map_or_else(|| at_once(Stream::recv), |end| to.recv(end));
    }
    result
}

/// A range as positions of the sender's stream, and of the receiver's.
fn positions(
    from: Option<&Stream>,
    to: Option<&Stream>,
    sender_positions: bool,
    range: (Offset, Offset),
) -> ((Offset, Offset), (Offset, Offset)) {
    let shift = match (from, to) {
        (Some(f), Some(t)) => f.shift_to(t),
        _ => 0,
    };
    if sender_positions {
        (range, (range.0 + shift, range.1 + shift))
    } else {
        ((range.0 - shift, range.1 - shift), range)
    }
}

/// How bytes crossed from a sender's stream to a receiver's, if they did so in pieces. What one end was not seen to do is not known.
fn flow(
    from: Option<&Stream>,
    to: Option<&Stream>,
    sender_positions: bool,
    range: (Offset, Offset),
    seen_until: Option<MonotonicNs>,
) -> Option<Flow> {
    let flow = whole_flow(from, to, sender_positions, range, seen_until);
    let in_pieces = [&flow.sent, &flow.ready, &flow.read].iter().any(|p| p.marks().len() > 1);
    (in_pieces || !flow.held.is_empty() || !flow.retransmits.is_empty()).then_some(flow)
}

/// The same, also of what crossed in one piece.
fn whole_flow(
    from: Option<&Stream>,
    to: Option<&Stream>,
    sender_positions: bool,
    range: (Offset, Offset),
    seen_until: Option<MonotonicNs>,
) -> Flow {
    let (sent, received) = positions(from, to, sender_positions, range);
    let (from, to) = (from.filter(|f| !f.is_empty()), to.filter(|t| !t.is_empty()));
    let [held, retransmits] = from.map(|f| f.hindrances(sent.0, sent.1)).unwrap_or_default();
    let head = from.and_then(|f| f.piece_at(sent.0).filter(|p| p.start == sent.0)?.head_end);
    Flow {
        bytes: u64::try_from(range.1 - range.0).unwrap_or(0),
        head: head.and_then(|end| u64::try_from(end.min(sent.1) - sent.0).ok()),
        sent: from.map_or_else(Progress::unknown, |f| f.sent_progress(sent.0, sent.1)),
        ready: to.map_or_else(Progress::unknown, |t| t.ready_progress(received.0, received.1, seen_until)),
        read: to.map_or_else(Progress::unknown, |t| t.recv_progress(received.0, received.1, seen_until)),
        held,
        retransmits,
    }
}

#[cfg(test)]
mod tests;
