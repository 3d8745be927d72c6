//! HTTP/2: the client connection preface, and the streams in what a socket sends (RFC 9113).
//!
//! The probe keeps the headers of frames and what is read of their payload. Where it began at a connection's beginning,
//! positions are certain. Where it began within one, bytes only look like frames: what they tell is held back until so many
//! frames followed one another, across send calls, that they must be some.

use super::hpack::{Decoder, Field};
use crate::event::{Chunk, Frames};
use meshdiff_model::{
    Http2Data, Http2Fields, Http2Gap, Http2Stream, RequestId, SeqInstant, SeqNo, SeqRange, SocketCookie,
};
use std::collections::BTreeMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;

/// Frames, and send calls with frames, that must follow one another before bytes count as frames. A header that fits by chance is
/// one of about a million (its length, type, flags and stream), and the next one is found by its length. And a header block must have
/// decoded among them: what looks like frames may be a payload that holds some.
const PROOF_FRAMES: u32 = 4;
const PROOF_SENDS: u32 = 2;
/// Streams of one socket that are remembered at once.
const MAX_STREAMS: usize = 1024;
/// How many are given up, those that were silent longest first, where there are more.
const GIVE_UP: usize = 128;
/// Longest header block that is decoded.
const MAX_BLOCK: usize = 64 << 10;
/// Finished streams that are held back until it is certain that they are some.
const MAX_HELD: usize = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// True for a prefix that begins with the preface; it is sent whole by every client, in its first flight.
pub(super) fn is_preface(prefix: &[u8]) -> bool {
    prefix.starts_with(PREFACE)
}

/// What the probe kept of one send's frames, owned.
#[derive(Debug)]
pub(crate) struct OwnedFrames {
    pub(crate) start: bool,
    pub(crate) preface: bool,
    pub(crate) cut: bool,
    pub(crate) bytes: Vec<u8>,
}

impl From<Frames<'_>> for OwnedFrames {
    fn from(f: Frames<'_>) -> Self {
        Self { start: f.start, preface: f.preface, cut: f.cut, bytes: f.bytes.to_vec() }
    }
}

impl OwnedFrames {
    fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        Frames { start: self.start, preface: self.preface, cut: self.cut, bytes: &self.bytes }.chunks()
    }
}

/// A part of a socket's bytes whose frames are followed.
#[derive(Debug)]
struct Span {
    first: SeqInstant,
    last: SeqInstant,
    from_the_beginning: bool,
    frames: u32,
    sends: u32,
    /// Of them ended a header block that decodes, and that begins a request or a response.
    heads: u32,
    certain: bool,
    goaway: Option<u32>,
}

/// A frame whose payload is not all there yet.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    range: SeqRange,
    at: SeqInstant,
    payload: Vec<u8>,
    want: usize,
}

/// A header block that goes on in CONTINUATION frames.
#[derive(Debug)]
struct Block {
    stream: u32,
    start: SeqInstant,
    bytes: Vec<u8>,
    /// All of its bytes are in `bytes`.
    whole: bool,
    end_stream: bool,
    /// It announces a push: it tells nothing of a stream, but belongs to the decoder's state.
    pushed: bool,
}

/// Follows the frames that one socket sends.
#[derive(Debug)]
pub(crate) struct Follower {
    socket: SocketCookie,
    span: Option<Span>,
    decoder: Decoder,
    frame: Option<Frame>,
    /// Where and when the header began that is not all there yet.
    partial: Option<SeqInstant>,
    block: Option<Block>,
    open: BTreeMap<u32, Http2Stream>,
    /// Streams were given up, or began before the span: frames of streams that are not known are no error.
    unknown_streams: bool,
    /// The highest stream whose request was seen to begin; `None` if none was, as on the side that accepted.
    newest: Option<u32>,
    held: Vec<Http2Stream>,
    /// Times that bytes on a connection that was HTTP/2 were none.
    pub(crate) garbage: u64,
}

impl Follower {
    pub(crate) fn new(socket: SocketCookie) -> Self {
        Self {
            socket,
            span: None,
            decoder: Decoder::new(false),
            frame: None,
            partial: None,
            block: None,
            open: BTreeMap::new(),
            unknown_streams: true,
            newest: None,
            held: Vec::new(),
            garbage: 0,
        }
    }

    /// True if the socket is known to speak HTTP/2.
    pub(crate) fn is_certain(&self) -> bool {
        self.span.as_ref().is_some_and(|s| s.certain)
    }

    /// One send with frames. `is_first`: the socket sent nothing before.
    pub(crate) fn send(
        &mut self,
        begin: SeqInstant,
        len: u32,
        is_first: bool,
        frames: &OwnedFrames,
        out: &mut Vec<Http2Stream>,
    ) {
        if frames.start {
            self.end_span(Http2Gap::NotSeen, out);
        }
        if self.span.is_none() {
            // Of a connection's first bytes the first frame must be SETTINGS: behind a preface, or without one from a server.
            let settings = || {
                let first = frames.chunks().next();
                first.is_some_and(|c| c.bytes.get(3) == Some(&SETTINGS) && c.bytes.get(5..9) == Some(&[0; 4]))
            };
            let beginning = frames.start && is_first && (frames.preface || settings());
            self.decoder = Decoder::new(beginning);
            self.unknown_streams = !beginning;
            self.span = Some(Span {
                first: begin,
                last: begin,
                from_the_beginning: beginning,
                frames: 0,
                sends: 0,
                heads: 0,
                certain: beginning,
                goaway: None,
            });
        }
        if let Some(span) = &mut self.span {
            span.sends += 1;
        }
        for chunk in frames.chunks() {
            if self.chunk(begin, &chunk).is_err() {
                self.garbage += 1;
                self.end_span(Http2Gap::Garbage, out);
                return;
            }
            self.give_up(out);
            self.release(out);
        }
        let end = begin.seq.advance(len);
        if let Some(span) = &mut self.span
            && !end.before(span.last.seq)
        {
            span.last = SeqInstant { seq: end, at: begin.at };
        }
        if frames.cut {
            self.end_span(Http2Gap::NotSeen, out);
        }
    }

    /// Events of the socket were lost.
    pub(crate) fn gap(&mut self, out: &mut Vec<Http2Stream>) {
        self.end_span(Http2Gap::EventsLost, out);
    }

    /// Nothing more comes.
    pub(crate) fn finish(&mut self, out: &mut Vec<Http2Stream>) {
        self.end_span(Http2Gap::StillOpen, out);
    }

    /// Emits what is followed of the connection so far, and goes on.
    pub(crate) fn report(&mut self, out: &mut Vec<Http2Stream>) {
        if let Some(span) = &mut self.span
            && span.certain
            && span.first.seq != span.last.seq
        {
            out.push(row_of(self.socket, span, None));
            span.first = span.last;
            span.from_the_beginning = false;
            span.frames = 0;
        }
    }

    fn chunk(&mut self, begin: SeqInstant, chunk: &Chunk<'_>) -> Result<(), Garbage> {
        if chunk.is_rest {
            if let Some(frame) = &mut self.frame {
                frame.payload.extend_from_slice(chunk.bytes);
            }
        } else {
            self.finish_frame()?;
            // A header that is cut off by the send's end comes again, whole, with the next one.
            let Some((header, payload)) = chunk.bytes.split_first_chunk::<FRAME_HEADER>() else {
                let start = SeqNo(begin.seq.0.wrapping_add(chunk.offset.cast_unsigned()));
                let known = self.partial.is_some_and(|p| p.seq == start);
                self.partial = if known { self.partial } else { Some(SeqInstant { seq: start, at: begin.at }) };
                return Ok(());
            };
            self.begin_frame(begin, chunk.offset, *header, payload)?;
        }
        if self.frame.as_ref().is_some_and(|f| f.payload.len() >= f.want) {
            self.finish_frame()?;
        }
        Ok(())
    }

    fn begin_frame(
        &mut self,
        begin: SeqInstant,
        offset: i32,
        header: [u8; FRAME_HEADER],
        payload: &[u8],
    ) -> Result<(), Garbage> {
        let [a, b, c, kind, flags, s @ ..] = header;
        let len = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes(s);
        let Some(span) = &mut self.span else { return Ok(()) };
        let start = SeqNo(begin.seq.0.wrapping_add(offset.cast_unsigned()));
        let range = SeqRange::of(start, len + FRAME_HEADER as u32);
        span.frames = span.frames.saturating_add(1);
        span.certain |= span.frames >= PROOF_FRAMES && span.sends >= PROOF_SENDS && span.heads > 0;
        // A header block is not interrupted (section 4.3).
        match &self.block {
            Some(block) if kind != CONTINUATION || stream != block.stream => return Err(Garbage),
            None if kind == CONTINUATION => {
                if span.from_the_beginning || span.frames > 1 {
                    return Err(Garbage);
                }
                self.decoder.forget();
            }
            _ => {}
        }
        let known = self.open.contains_key(&stream);
        if kind == DATA && !known && !self.unknown_streams {
            return Err(Garbage);
        }
        let began = self.partial.take().filter(|p| p.seq == start);
        let at = began.unwrap_or(SeqInstant { seq: start, at: begin.at });
        let kept = match kind {
            HEADERS | PUSH_PROMISE | CONTINUATION => 16_384,
            RST_STREAM | GOAWAY => 64,
            _ => 0,
        };
        let want = kept.min(len as usize);
        self.frame = Some(Frame { kind, flags, stream, range, at, payload: payload.to_vec(), want });
        Ok(())
    }

    fn finish_frame(&mut self) -> Result<(), Garbage> {
        let Some(frame) = self.frame.take() else { return Ok(()) };
        let whole = frame.payload.len() as u32 + FRAME_HEADER as u32 == frame.range.len();
        if frame.stream != 0
            && let Some(row) = self.open.get_mut(&frame.stream)
        {
            row.frames = row.frames.saturating_add(1);
            row.last = SeqInstant { seq: frame.range.end, at: frame.at.at };
        }
        match frame.kind {
            DATA => self.data(&frame),
            HEADERS | PUSH_PROMISE => {
                let pushed = frame.kind == PUSH_PROMISE;
                let fragment = fragment(&frame);
                let block = Block {
                    stream: frame.stream,
                    start: frame.at,
                    whole: whole && fragment.is_some(),
                    bytes: fragment.unwrap_or_default().to_vec(),
                    end_stream: !pushed && frame.flags & END_STREAM != 0,
                    pushed,
                };
                self.go_on(block, &frame)?;
            }
            CONTINUATION => {
                let Some(mut block) = self.block.take() else { return Ok(()) };
                block.whole &= whole && block.bytes.len() + frame.payload.len() <= MAX_BLOCK;
                if block.whole {
                    block.bytes.extend_from_slice(&frame.payload);
                }
                self.go_on(block, &frame)?;
            }
            RST_STREAM => {
                let code = frame.payload.first_chunk().map(|c| u32::from_be_bytes(*c));
                let row = self.row(frame.stream, &frame);
                row.reset = code;
                self.end_stream(frame.stream);
            }
            GOAWAY => {
                let code = frame.payload.get(4..8).and_then(|c| c.first_chunk()).map(|c| u32::from_be_bytes(*c));
                if let Some(span) = &mut self.span {
                    span.goaway = code.or(span.goaway);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, frame: &Frame) {
        if let Some(row) = self.open.get_mut(&frame.stream) {
            let payload = u64::from(frame.range.len()) - FRAME_HEADER as u64;
            row.data_bytes += payload;
            Http2Data::push(&mut row.data, frame.range, frame.at.at, payload);
            if frame.flags & END_STREAM != 0 {
                row.end = Some(frame.range.end);
                self.end_stream(frame.stream);
            }
        }
    }

    /// A header block, which is over with this frame or not.
    fn go_on(&mut self, block: Block, frame: &Frame) -> Result<(), Garbage> {
        if frame.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = Http2Fields::default();
        if !block.whole {
            self.decoder.forget();
        } else if self.decoder.decode(&block.bytes, |field, value| keep(&mut fields, field, value)).is_err() {
            self.decoder.forget();
            // Positions hold all the same where they are certain; where they are not, this speaks against them.
            if !self.is_certain() {
                return Err(Garbage);
            }
        }
        if block.pushed {
            return Ok(());
        }
        let known = self.open.contains_key(&block.stream);
        // Only heads have pseudo-header fields, and only trailers must end the stream (section 8.1).
        let pseudo = fields.method.is_some() || fields.path.is_some() || fields.status.is_some();
        if let Some(span) = self.span.as_mut().filter(|_| pseudo) {
            span.heads = span.heads.saturating_add(1);
        }
        // A client numbers its streams upwards (section 5.1.1): what comes after one that is known to have begun, begins.
        let newer = self.newest.is_some_and(|newest| newest < block.stream);
        let is_head = !self.unknown_streams || known || pseudo || newer || !block.end_stream;
        if fields.method.is_some() {
            self.newest = self.newest.max(Some(block.stream));
        }
        let (start, end) = (block.start, frame.range.end);
        let row = self.row(block.stream, frame);
        if !known {
            row.first = start;
            row.frames = 1;
        }
        row.last = SeqInstant { seq: end, at: frame.at.at };
        let interim = fields.status.is_some_and(|s| (100..200).contains(&s));
        // Trailers end the stream (section 8.1). A block that does not, behind another without data in between, follows an interim
        // response, also where that one's status is not known.
        let again = row.head.is_some() && !block.end_stream && row.data_bytes == 0;
        if interim {
            row.interim += 1;
        } else if row.head.is_none() && !is_head {
            // Trailers of a stream that began earlier, or what cannot be told from them.
            row.fields.grpc_status = fields.grpc_status;
        } else if row.head.is_none() || again {
            row.interim += u32::from(again);
            row.head = Some(SeqRange { start: start.seq, end });
            row.fields = merged(std::mem::take(&mut row.fields), fields);
        } else {
            row.fields.grpc_status = fields.grpc_status.or(row.fields.grpc_status);
        }
        if block.end_stream {
            row.end = Some(end);
            self.end_stream(block.stream);
        }
        Ok(())
    }

    fn row(&mut self, stream: u32, frame: &Frame) -> &mut Http2Stream {
        let socket = self.socket;
        self.open.entry(stream).or_insert_with(|| Http2Stream {
            socket,
            stream,
            first: frame.at,
            last: SeqInstant { seq: frame.range.end, at: frame.at.at },
            head: None,
            end: None,
            frames: 1,
            data_bytes: 0,
            data: Vec::new(),
            interim: 0,
            reset: None,
            gap: None,
            from_the_beginning: false,
            fields: Http2Fields::default(),
        })
    }

    fn end_stream(&mut self, stream: u32) {
        if let Some(row) = self.open.remove(&stream) {
            self.held.push(row);
        }
    }

    /// Emits what was held back once it is certain.
    fn release(&mut self, out: &mut Vec<Http2Stream>) {
        if self.is_certain() {
            out.append(&mut self.held);
        } else if self.held.len() > MAX_HELD {
            self.held.remove(0);
        }
    }

    /// Gives up streams where there are too many.
    fn give_up(&mut self, out: &mut Vec<Http2Stream>) {
        if self.open.len() <= MAX_STREAMS {
            return;
        }
        self.unknown_streams = true;
        let mut silent: Vec<(SeqInstant, u32)> = self.open.values().map(|r| (r.last, r.stream)).collect();
        silent.sort_by_key(|(last, stream)| (last.at, *stream));
        for (_, stream) in silent.into_iter().take(GIVE_UP) {
            if let Some(mut row) = self.open.remove(&stream) {
                row.gap = Some(Http2Gap::TooMany);
                if self.is_certain() {
                    out.push(row);
                }
            }
        }
    }

    /// Emits everything, if it was certain, and follows nothing.
    fn end_span(&mut self, why: Http2Gap, out: &mut Vec<Http2Stream>) {
        self.frame = None;
        self.partial = None;
        self.newest = None;
        self.block = None;
        self.decoder.forget();
        let Some(span) = self.span.take() else { return };
        let (open, held) = (std::mem::take(&mut self.open), std::mem::take(&mut self.held));
        if span.certain {
            out.extend(held);
            out.extend(open.into_values().map(|mut row| {
                row.gap = Some(why);
                row
            }));
            out.push(row_of(self.socket, &span, Some(why)));
        }
    }
}

/// Bytes that no frame has where one must be.
struct Garbage;

/// The row of the connection itself.
fn row_of(socket: SocketCookie, span: &Span, gap: Option<Http2Gap>) -> Http2Stream {
    Http2Stream {
        socket,
        stream: 0,
        first: span.first,
        last: span.last,
        head: None,
        end: None,
        frames: span.frames,
        data_bytes: 0,
        data: Vec::new(),
        interim: 0,
        reset: span.goaway,
        gap,
        from_the_beginning: span.from_the_beginning,
        fields: Http2Fields::default(),
    }
}

/// The part of a header block that a HEADERS or PUSH_PROMISE frame holds; `None` if padding and priority leave no room for any.
fn fragment(frame: &Frame) -> Option<&[u8]> {
    let mut bytes = frame.payload.as_slice();
    let mut padding = 0;
    if frame.flags & PADDED != 0 {
        let (&pad, rest) = bytes.split_first()?;
        (padding, bytes) = (usize::from(pad), rest);
    }
    let before = match frame.kind {
        PUSH_PROMISE => 4,
        _ if frame.flags & PRIORITY != 0 => 5,
        _ => 0,
    };
    bytes.get(before..bytes.len().checked_sub(padding)?)
}

fn keep(to: &mut Http2Fields, field: Field, value: &[u8]) {
    let number = || std::str::from_utf8(value).ok().filter(|v| v.len() <= 5)?.parse().ok();
    match field {
        Field::Method => to.method = Some(super::text(value)),
        Field::Path => {
            to.path = Some(super::text(super::path_of(value, true)));
        }
        Field::Status => to.status = number(),
        Field::ContentType => to.grpc = Some(value.starts_with(b"application/grpc")),
        Field::GrpcStatus => to.grpc_status = number(),
        Field::RequestId => to.request_id = Some(RequestId(super::text(value))),
    }
}

fn merged(before: Http2Fields, after: Http2Fields) -> Http2Fields {
    Http2Fields {
        method: after.method.or(before.method),
        path: after.path.or(before.path),
        status: after.status,
        grpc: after.grpc.or(before.grpc),
        grpc_status: after.grpc_status.or(before.grpc_status),
        request_id: after.request_id.or(before.request_id),
    }
}
