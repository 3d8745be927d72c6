//! Bodies: by length, in chunks, or up to the connection's end.

use std::io::{self, Read, Write};

use super::{PIECE, malformed};
use crate::clock::{MonotonicNs, sleep_until};
use crate::http::Headers;
use crate::protocols::ask::{Flow, Pause, due};
use crate::protocols::tape::Taped;
use crate::truth::{Doing, Wait};

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the empty chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

impl Framing {
    /// Of a request.
    pub fn of_request(headers: &Headers) -> Self {
        Self::stated(headers).unwrap_or(Self::None)
    }

    /// Of a response to that method.
    pub fn of_response(method: &str, status: u16, headers: &Headers) -> Self {
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Self::None;
        }
        Self::stated(headers).unwrap_or(Self::UntilClose)
    }

    fn stated(headers: &Headers) -> Option<Self> {
        if headers.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Some(Self::Chunked);
        }
        headers.get("content-length").and_then(|text| text.trim().parse().ok()).map(Self::Length)
    }
}

/// A body that was read.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// Its bytes, without framing.
    pub bytes: u64,
    /// The offset behind its last byte (and framing).
    pub end: u64,
    /// Whether it was read to its end.
    pub complete: bool,
    /// Waits on purpose.
    pub waits: Vec<Wait>,
}

/// Reads a body, waiting once on the way if asked to, or only its first `stop_after` bytes.
///
/// # Errors
/// When the connection fails or ends too early, or the framing is malformed.
pub fn read_body<S: Read + Write>(
    connection: &mut Taped<S>,
    framing: Framing,
    pause: Option<Pause>,
    stop_after: Option<u64>,
) -> io::Result<Body> {
    let mut body = Body { end: connection.position(), ..Body::default() };
    let stop = |body: &Body| stop_after.is_some_and(|stop| body.bytes >= stop);
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            while body.bytes < length && !stop(&body) {
                if !some(connection, length - body.bytes, pause, &mut body)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            body.complete = body.bytes >= length;
        }
        Framing::UntilClose => while !stop(&body) && some(connection, u64::MAX, pause, &mut body)? {},
        Framing::Chunked => loop {
            let size = chunk_size(connection)?;
            let until = body.bytes + size;
            while body.bytes < until && !stop(&body) {
                if !some(connection, until - body.bytes, pause, &mut body)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            if stop(&body) {
                break;
            }
            line_end(connection)?;
            body.end = connection.position();
            if size == 0 {
                break;
            }
        },
    }
    body.complete = body.complete || !stop(&body) || framing == Framing::None;
    Ok(body)
}

/// Takes what is there, or else reads once; `false` at the connection's end.
fn some<S: Read + Write>(
    connection: &mut Taped<S>,
    most: u64,
    pause: Option<Pause>,
    body: &mut Body,
) -> io::Result<bool> {
    if connection.pending().is_empty() && !connection.receive(PIECE)? {
        return Ok(false);
    }
    let count = (connection.pending().len() as u64).min(most);
    connection.take(count as usize);
    let before = body.bytes;
    body.bytes += count;
    body.end = connection.position();
    if let Some(pause) = due(pause, before, body.bytes) {
        body.waits.push(pause.wait(Doing::Reading));
    }
    Ok(true)
}

fn chunk_size<S: Read + Write>(connection: &mut Taped<S>) -> io::Result<u64> {
    loop {
        match httparse::parse_chunk_size(connection.pending()).map_err(|_| malformed("the size of a chunk"))? {
            httparse::Status::Complete((length, size)) => {
                connection.take(length);
                return Ok(size);
            }
            httparse::Status::Partial if connection.receive(PIECE)? => {}
            httparse::Status::Partial => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn line_end<S: Read + Write>(connection: &mut Taped<S>) -> io::Result<()> {
    while connection.pending().len() < 2 {
        if !connection.receive(PIECE)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if !connection.pending().starts_with(b"\r\n") {
        return Err(malformed("a chunk does not end where it said (the lab sends no trailers)"));
    }
    connection.take(2);
    Ok(())
}

/// Writes a body message by message, or only its first `stop_after` bytes; returns what was written and the waits.
///
/// # Errors
/// When the connection fails.
pub fn write_body<S: Read + Write>(
    connection: &mut Taped<S>,
    flow: &Flow,
    chunked: bool,
    stop_after: Option<u64>,
) -> io::Result<(u64, Vec<Wait>)> {
    let mut written = 0;
    let mut waits = Vec::new();
    let payload = vec![b'x'; flow.bytes];
    for n in 0..flow.messages {
        if n > 0 && flow.gap_ns > 0 {
            let start = MonotonicNs::now();
            sleep_until(MonotonicNs(start.0 + flow.gap_ns));
            waits.push(Wait { doing: Doing::Writing, after_bytes: written, start, end: MonotonicNs::now() });
        }
        if chunked {
            let mut chunk = format!("{:x}\r\n", flow.bytes).into_bytes();
            chunk.extend_from_slice(&payload);
            chunk.extend_from_slice(b"\r\n");
            connection.send(&chunk)?;
        } else {
            connection.send(&payload)?;
        }
        let before = written;
        written += flow.bytes as u64;
        if stop_after.is_some_and(|stop| written >= stop) {
            return Ok((written, waits));
        }
        waits.extend(flow.due(before, written).map(|pause| pause.wait(Doing::Writing)));
    }
    if chunked {
        connection.send(b"0\r\n\r\n")?;
    }
    Ok((written, waits))
}
