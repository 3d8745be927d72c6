//! A minimal HTTP/1.1 over blocking sockets, made so that its time stamps sit tight against the system calls.
//!
//! hyper would do the protocol better, but between its poll of a socket and the caller's clock lie a reactor and a task
//! switch. Here a stamp is one vDSO call away from the `read` or `write` that it belongs to. Bodies have a
//! `content-length` (all of the lab's do, and Envoy's local replies too); their bytes are counted and thrown away.

use std::io::{self, Read};

use crate::clock::MonotonicNs;

/// Heads beyond this are refused (Envoy's own limit is 60 KiB).
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 96;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed between two messages: the regular end of a connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed within a message.
    #[error("the peer closed the connection within a message")]
    Cut,
    /// These bytes are not HTTP/1.1, or a part of it that the lab does not speak.
    #[error("malformed or unsupported HTTP: {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Header fields in their order on the wire; names are compared without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first field of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn from_wire(fields: &[httparse::Header<'_>]) -> Self {
        let owned =
            |field: &httparse::Header<'_>| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned());
        Self(fields.iter().map(owned).collect())
    }

    fn body_length(&self, bodiless: bool) -> Result<usize, ReadError> {
        if bodiless {
            return Ok(0);
        }
        if let Some(coding) = self.get("transfer-encoding") {
            return Err(ReadError::Malformed(format!(
                "transfer-encoding {coding}: the lab speaks content-length only"
            )));
        }
        match self.get("content-length") {
            None => Ok(0),
            Some(text) => text.trim().parse().map_err(|_| ReadError::Malformed(format!("content-length {text}"))),
        }
    }
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The method.
    pub method: String,
    /// The target, query included.
    pub path: String,
    /// The header fields.
    pub headers: Headers,
}

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: Headers,
}

/// A message that was read to its end.
#[derive(Clone, Debug)]
pub struct Received<H> {
    /// Its head.
    pub head: H,
    /// Right after the `read` that brought its first byte.
    pub first_byte: MonotonicNs,
    /// Right after the `read` that completed its head.
    pub head_end: MonotonicNs,
    /// Right after the `read` that brought its last byte.
    pub end: MonotonicNs,
    /// The body's size in bytes.
    pub body_bytes: usize,
}

/// Reads HTTP/1.1 messages, one after the other, from a connection.
#[derive(Debug)]
pub struct MessageReader<S> {
    stream: S,
    buffer: Vec<u8>,
    filled: usize,
}

impl<S: Read> MessageReader<S> {
    /// A reader that starts at a message's first byte.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; 16 << 10], filled: 0 }
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads a request, body included.
    ///
    /// # Errors
    /// [`ReadError::Closed`] is how a connection usually ends; all others are failures.
    pub fn request(&mut self) -> Result<Received<RequestHead>, ReadError> {
        self.message(|bytes| {
            let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut request = httparse::Request::new(&mut fields);
            let httparse::Status::Complete(length) = request.parse(bytes).map_err(malformed)? else { return Ok(None) };
            let headers = Headers::from_wire(request.headers);
            let body = headers.body_length(false)?;
            let head = RequestHead {
                method: request.method.unwrap_or_default().to_owned(),
                path: request.path.unwrap_or_default().to_owned(),
                headers,
            };
            Ok(Some((head, length, body)))
        })
    }

    /// Reads a response, body included; interim responses (1xx) are skipped.
    ///
    /// # Errors
    /// [`ReadError::Closed`] when a kept connection was closed by the peer before it answered.
    pub fn response(&mut self) -> Result<Received<ResponseHead>, ReadError> {
        loop {
            let received = self.message(|bytes| {
                let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
                let mut response = httparse::Response::new(&mut fields);
                let httparse::Status::Complete(length) = response.parse(bytes).map_err(malformed)? else {
                    return Ok(None);
                };
                let headers = Headers::from_wire(response.headers);
                let status = response.code.unwrap_or_default();
                let body = headers.body_length(status < 200 || status == 204 || status == 304)?;
                Ok(Some((ResponseHead { status, headers }, length, body)))
            })?;
            if received.head.status >= 200 {
                return Ok(received);
            }
        }
    }

    fn message<H>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(H, usize, usize)>, ReadError>,
    ) -> Result<Received<H>, ReadError> {
        let mut first_byte = (self.filled > 0).then(MonotonicNs::now);
        let mut last_read = first_byte;
        let (head, head_length, body_bytes) = loop {
            if self.filled > 0
                && let Some(parsed) = parse(&self.buffer[..self.filled])?
            {
                break parsed;
            }
            if self.filled == self.buffer.len() {
                if self.filled >= MAX_HEAD {
                    return Err(ReadError::Malformed(format!("a head of more than {MAX_HEAD} bytes")));
                }
                self.buffer.resize(self.filled * 2, 0);
            }
            let read = read_some(&mut self.stream, &mut self.buffer[self.filled..])?;
            let now = MonotonicNs::now();
            if read == 0 {
                return Err(if self.filled == 0 { ReadError::Closed } else { ReadError::Cut });
            }
            first_byte.get_or_insert(now);
            last_read = Some(now);
            self.filled += read;
        };
        let head_end = last_read.unwrap_or_else(MonotonicNs::now);
        let buffered = self.filled - head_length;
        let mut missing = body_bytes.saturating_sub(buffered);
        // What is behind this message belongs to the next one.
        self.buffer.copy_within(head_length + body_bytes.min(buffered)..self.filled, 0);
        self.filled = buffered - body_bytes.min(buffered);
        let mut end = head_end;
        while missing > 0 {
            let window = missing.min(self.buffer.len());
            let read = read_some(&mut self.stream, &mut self.buffer[..window])?;
            end = MonotonicNs::now();
            if read == 0 {
                return Err(ReadError::Cut);
            }
            missing -= read;
        }
        Ok(Received { head, first_byte: first_byte.unwrap_or(head_end), head_end, end, body_bytes })
    }
}

fn malformed(error: httparse::Error) -> ReadError {
    ReadError::Malformed(error.to_string())
}

fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A request or response of the lab in one piece, so that it leaves in one `write`.
pub fn render(start_line: &str, headers: &[(&str, &str)], body_bytes: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(512 + body_bytes);
    message.extend_from_slice(start_line.as_bytes());
    message.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        message.extend_from_slice(name.as_bytes());
        message.extend_from_slice(b": ");
        message.extend_from_slice(value.as_bytes());
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(format!("content-length: {body_bytes}\r\n\r\n").as_bytes());
    message.resize(message.len() + body_bytes, b'x');
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives the bytes out in pieces of the given sizes.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let size = self.sizes.next().unwrap_or(1).min(out.len()).min(self.bytes.len());
            out[..size].copy_from_slice(&self.bytes[..size]);
            self.bytes = &self.bytes[size..];
            Ok(size)
        }
    }

    proptest! {
        #[test]
        fn messages_are_found_however_they_are_cut(sizes in proptest::collection::vec(1usize..70_000, 1..8), bodies in proptest::collection::vec(0usize..40_000, 1..5)) {
            let mut wire = Vec::new();
            for (i, body) in bodies.iter().enumerate() {
                wire.extend(render(&format!("POST /{i} HTTP/1.1"), &[("Host", "a"), ("X-Lab-Nonce", &i.to_string())], *body));
            }
            let mut reader = MessageReader::new(Pieces { bytes: &wire, sizes: sizes.into_iter().cycle() });
            for (i, body) in bodies.iter().enumerate() {
                let got = reader.request().unwrap();
                prop_assert_eq!(got.head.path, format!("/{i}"));
                let nonce = i.to_string();
                prop_assert_eq!(got.head.headers.get("x-lab-nonce"), Some(nonce.as_str()));
                prop_assert_eq!(got.body_bytes, *body);
                prop_assert!(got.first_byte <= got.head_end && got.head_end <= got.end);
            }
            prop_assert!(matches!(reader.request(), Err(ReadError::Closed)));
        }
    }

    fn response_of(wire: &str) -> Result<Received<ResponseHead>, ReadError> {
        MessageReader::new(wire.as_bytes()).response()
    }

    #[test]
    fn interim_responses_are_skipped() {
        let got =
            response_of("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n").unwrap();
        assert_eq!(got.head.status, 204);
    }

    #[test]
    fn what_the_lab_does_not_speak_is_an_error_and_not_a_hang() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(matches!(response_of(chunked), Err(ReadError::Malformed(_))));
        assert!(matches!(response_of("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"), Err(ReadError::Cut)));
        assert!(matches!(response_of("SSH-2.0-x\r\n\r\n"), Err(ReadError::Malformed(_))));
        assert!(matches!(response_of("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), Err(ReadError::Malformed(_))));
    }
}
