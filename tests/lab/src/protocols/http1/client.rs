//! The asking end of the HTTP/1 cases.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Duplex, Framing, leg, read_body, render, response_head, write_body};
use crate::hop::{NONCE, REQUEST_ID};
use crate::protocols::ask::{ASK, ATTEMPT, Ask, Flow, Id, Pause};
use crate::protocols::tape::Taped;
use crate::topology::LOADGEN;
use crate::truth::{Doing, ExchangeRecord, Nonce, Protocol, Role, Sockets};

/// No exchange of the cases takes longer; beyond it something is broken.
pub const GIVE_UP: Duration = Duration::from_secs(20);

/// One exchange as the client makes it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The method.
    pub method: &'static str,
    /// `1.1` or `1.0`.
    pub version: &'static str,
    /// The request's body.
    pub request: Flow,
    /// Chunked instead of content-length.
    pub chunked: bool,
    /// Wait for `100 Continue` before the body.
    pub expect: bool,
    /// Send only so many bytes of the body, then read the answer and close.
    pub stop_after: Option<u64>,
    /// A wait while reading the response's body.
    pub read_pause: Option<Pause>,
    /// Close after so many bytes of the response's body.
    pub give_up_after: Option<u64>,
    /// Further header fields.
    pub fields: Vec<(&'static str, &'static str)>,
    /// The request's id.
    pub id: Id,
    /// What the server is asked.
    pub ask: Ask,
}

impl Exchange {
    /// A GET of that case.
    pub fn get(case: &str) -> Self {
        Self {
            method: "GET",
            version: "1.1",
            request: Flow::default(),
            chunked: false,
            expect: false,
            stop_after: None,
            read_pause: None,
            give_up_after: None,
            fields: Vec::new(),
            id: Id::Own,
            ask: Ask { case: case.to_owned(), response: Flow::of(1, 64), ..Ask::default() },
        }
    }

    /// A POST of that case with that body.
    pub fn post(case: &str, request: Flow) -> Self {
        Self { method: "POST", request, ..Self::get(case) }
    }
}

/// Who is asked.
#[derive(Clone, Debug)]
pub struct To {
    /// The `Host`.
    pub host: String,
    /// The virtual IP and port.
    pub address: SocketAddr,
}

/// Dials.
///
/// # Errors
/// As `connect` does.
pub fn dial(to: &To) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.address, GIVE_UP)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GIVE_UP))?;
    stream.set_write_timeout(Some(GIVE_UP))?;
    Ok(stream)
}

/// An open connection and its two ends.
#[derive(Debug)]
pub struct Connection<S> {
    /// The bytes.
    pub wire: Taped<S>,
    /// This end.
    pub local: SocketAddr,
    /// The other end as it was dialled.
    pub remote: SocketAddr,
    /// What is spoken, for the log.
    pub protocol: Protocol,
    /// The `Host`.
    pub host: String,
}

impl Connection<TcpStream> {
    /// Dials in plain text.
    ///
    /// # Errors
    /// As `connect` does.
    pub fn open(to: &To) -> io::Result<Self> {
        let stream = dial(to)?;
        let local = stream.local_addr()?;
        let wire = Taped::new(stream);
        Ok(Self { wire, local, remote: to.address, protocol: Protocol::Http1, host: to.host.clone() })
    }
}

/// A request that is out.
#[derive(Debug)]
pub struct Asked {
    what: Exchange,
    /// What is known so far.
    pub record: ExchangeRecord,
    start: u64,
    head_end: u64,
    end: Option<u64>,
}

impl<S: Duplex> Connection<S> {
    /// A record of an exchange that begins now.
    pub fn begin(&self, what: &Exchange) -> ExchangeRecord {
        let nonce = Nonce::new();
        let sockets = Sockets { local: self.local, remote: self.remote };
        let case = &what.ask.case;
        ExchangeRecord {
            request_id: what.id.choose(),
            method: what.method.to_owned(),
            path: what.id.path(case, nonce),
            ..ExchangeRecord::begin(Role::Client, LOADGEN, (case, nonce), self.protocol, sockets)
        }
    }

    /// The head on the wire.
    pub fn head(&self, what: &Exchange, record: &ExchangeRecord) -> Vec<u8> {
        let (nonce, ask) = (record.nonce.to_string(), what.ask.header());
        let length = what.request.total().to_string();
        let mut fields =
            vec![("host", self.host.as_str()), ("user-agent", "meshdiff-lab"), (NONCE, &nonce), (ASK, &ask)];
        fields.extend(record.request_id.as_deref().map(|id| (REQUEST_ID, id)));
        fields.extend(what.fields.iter().copied());
        if what.expect {
            fields.push(("expect", "100-continue"));
        }
        match (what.chunked, what.request.messages) {
            (true, _) => fields.push(("transfer-encoding", "chunked")),
            (false, 0) => {}
            (false, _) => fields.push(("content-length", &length)),
        }
        render(&format!("{} {} HTTP/{}", what.method, record.path, what.version), &fields)
    }

    /// Sends requests without a body in one call: pipelined, if there are several.
    pub fn ask_at_once(&mut self, all: &[Exchange]) -> Vec<Asked> {
        let mut bytes = Vec::new();
        let origin = self.wire.written.total();
        let mut asked = Vec::new();
        for what in all {
            let record = self.begin(what);
            let start = origin + bytes.len() as u64;
            bytes.extend_from_slice(&self.head(what, &record));
            let end = origin + bytes.len() as u64;
            asked.push(Asked { what: what.clone(), record, start, head_end: end, end: Some(end) });
        }
        if let Err(error) = self.wire.send(&bytes) {
            asked.iter_mut().for_each(|one| one.record.error = Some(format!("sending failed: {error}")));
        }
        asked
    }

    /// Makes one exchange; says whether the connection can carry another.
    pub fn exchange(&mut self, what: &Exchange) -> (ExchangeRecord, bool) {
        let mut record = self.begin(what);
        let head = self.head(what, &record);
        let start = self.wire.written.total();
        let head_end = start + head.len() as u64;
        let mut end = None;
        if let Err(error) = self.send(what, &head, &mut record, &mut end) {
            // A server that answers early may close before everything is sent; its answer is read all the same.
            record.error = Some(format!("sending failed: {error}"));
        }
        self.answer(Asked { what: what.clone(), record, start, head_end, end })
    }

    fn send(
        &mut self,
        what: &Exchange,
        head: &[u8],
        record: &mut ExchangeRecord,
        end: &mut Option<u64>,
    ) -> io::Result<()> {
        self.wire.send(head)?;
        if what.expect {
            let interim = response_head(&mut self.wire)?;
            if interim.status != 100 {
                return Err(io::Error::other(format!("{} instead of 100 Continue", interim.status)));
            }
            record.interim = self.wire.read.at(interim.end - 1);
        }
        let (bytes, waits) = write_body(&mut self.wire, &what.request, what.chunked, what.stop_after)?;
        record.request.bytes = bytes;
        record.waits.extend(waits);
        if what.stop_after.is_none() {
            *end = Some(self.wire.written.total());
        }
        Ok(())
    }

    /// Reads the response to a request; says whether the connection can carry another.
    pub fn answer(&mut self, asked: Asked) -> (ExchangeRecord, bool) {
        let Asked { what, mut record, start, head_end, end } = asked;
        record.request = leg(&self.wire.written, start, head_end, end, record.request.bytes);
        let kept = match self.read(&what, &mut record) {
            Ok(kept) => kept && end.is_some(),
            Err(error) => {
                record.error.get_or_insert(format!("no answer: {error}"));
                false
            }
        };
        if record.status.is_some() && what.stop_after.is_some() {
            record.error = None;
        }
        (record, kept)
    }

    fn read(&mut self, what: &Exchange, record: &mut ExchangeRecord) -> io::Result<bool> {
        let head = loop {
            let head = response_head(&mut self.wire)?;
            if head.status >= 200 || head.status == 101 {
                break head;
            }
            record.interim = self.wire.read.at(head.end - 1);
        };
        record.status = Some(head.status);
        record.attempt = head.headers.get(ATTEMPT).and_then(|text| text.parse().ok());
        record.response = leg(&self.wire.read, head.start, head.end, None, 0);
        let framing = Framing::of_response(what.method, head.status, &head.headers);
        let body = read_body(&mut self.wire, framing, what.read_pause, what.give_up_after)?;
        record.waits.extend(&body.waits);
        debug_assert!(record.waits.iter().all(|wait| wait.doing != Doing::Thinking));
        let end = body.end.max(head.end);
        record.gave_up = !body.complete;
        record.response = leg(&self.wire.read, head.start, head.end, body.complete.then_some(end), body.bytes);
        let closing = head.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(body.complete && !closing && framing != Framing::UntilClose)
    }
}
