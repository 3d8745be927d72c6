//! HTTP/1 by hand, with bodies of every kind: what the two ends of the cases share.

mod body;
pub mod client;
pub mod server;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::tape::{Tape, Taped};
use crate::http::Headers;
use crate::truth::Leg;

pub use body::{Body, Framing, read_body, write_body};

/// Heads beyond this are refused.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 96;
/// How much a reader takes at once.
pub const PIECE: usize = 32 << 10;

/// A connection that can say that no more will be sent.
pub trait Duplex: Read + Write {
    /// Says so; the other direction stays open.
    fn finish(&mut self);
}

impl Duplex for TcpStream {
    fn finish(&mut self) {
        // The peer may be gone already: there is nobody to tell.
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// The head of a message, and where on the connection it was.
#[derive(Clone, Debug)]
pub struct Head {
    /// The offset of its first byte.
    pub start: u64,
    /// The offset behind its last byte.
    pub end: u64,
    /// Of a request.
    pub method: String,
    /// Of a request.
    pub path: String,
    /// Of a response; 0 otherwise.
    pub status: u16,
    /// Header fields.
    pub headers: Headers,
}

fn malformed(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed HTTP: {why}"))
}

/// Reads a request's head; none at the connection's end.
///
/// # Errors
/// When the connection fails, ends within the head, or carries no HTTP.
pub fn request_head<S: Read + Write>(connection: &mut Taped<S>) -> io::Result<Option<Head>> {
    head(connection, |bytes, start| {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(length) = request.parse(bytes).map_err(malformed)? else { return Ok(None) };
        Ok(Some(Head {
            start,
            end: start + length as u64,
            method: request.method.unwrap_or_default().to_owned(),
            path: request.path.unwrap_or_default().to_owned(),
            status: 0,
            headers: Headers::from_wire(request.headers),
        }))
    })
}

/// Reads a response's head.
///
/// # Errors
/// When the connection fails or ends before it, or carries no HTTP.
pub fn response_head<S: Read + Write>(connection: &mut Taped<S>) -> io::Result<Head> {
    let found = head(connection, |bytes, start| {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = response.parse(bytes).map_err(malformed)? else { return Ok(None) };
        Ok(Some(Head {
            start,
            end: start + length as u64,
            method: String::new(),
            path: String::new(),
            status: response.code.unwrap_or_default(),
            headers: Headers::from_wire(response.headers),
        }))
    })?;
    found.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed before it answered"))
}

fn head<S: Read + Write>(
    connection: &mut Taped<S>,
    parse: impl Fn(&[u8], u64) -> io::Result<Option<Head>>,
) -> io::Result<Option<Head>> {
    loop {
        let pending = connection.pending();
        if !pending.is_empty()
            && let Some(head) = parse(pending, connection.position())?
        {
            connection.take((head.end - head.start) as usize);
            return Ok(Some(head));
        }
        if pending.len() > MAX_HEAD {
            return Err(malformed(format!("a head of more than {MAX_HEAD} bytes")));
        }
        let partial = !pending.is_empty();
        if !connection.receive(PIECE)? {
            return if partial { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
        }
    }
}

/// What the calls of one direction say about a message between two offsets.
pub fn leg(tape: &Tape, start: u64, head_end: u64, end: Option<u64>, bytes: u64) -> Leg {
    Leg {
        first: tape.at(start),
        head: tape.at(head_end.saturating_sub(1)).filter(|_| head_end > start),
        last: end.and_then(|end| tape.at(end.saturating_sub(1))),
        bytes,
        ..Leg::default()
    }
}

/// A head on the wire.
pub fn render(start_line: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{start_line}\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}
