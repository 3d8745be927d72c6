//! Bytes over TCP: an echo, and a server that speaks first.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::http1::client::{To, dial};
use super::http1::{Duplex, PIECE, leg};
use super::server::Shared;
use super::tape::Taped;
use crate::clock::MonotonicNs;
use crate::topology::LOADGEN;
use crate::truth::{ExchangeRecord, Nonce, Protocol, Role, Sockets, StreamMessage};

const GREETING: &[u8] = b"220 lab\r\n";
const FAREWELL: &[u8] = b"221 bye\r\n";

fn record(role: Role, pod: &str, of: (&str, Nonce), local: SocketAddr, remote: SocketAddr) -> ExchangeRecord {
    ExchangeRecord::begin(role, pod, of, Protocol::Tcp, Sockets { local, remote })
}

/// Both directions as a whole, the request being what the client sent.
fn legs<S: Read + Write>(wire: &Taped<S>, record: &mut ExchangeRecord) {
    let whole = |tape: &super::tape::Tape| leg(tape, 0, 0, Some(tape.total()), tape.total());
    let (sent, received) = (whole(&wire.written), whole(&wire.read));
    (record.request, record.response) = match record.role {
        Role::Client => (sent, received),
        Role::Server => (received, sent),
    };
}

/// The line with which a client says who it is.
fn line<S: Read + Write>(wire: &mut Taped<S>, take: bool) -> io::Result<(String, Nonce)> {
    loop {
        if let Some(end) = wire.pending().iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&wire.pending()[..end]).into_owned();
            let mut words = line.split(' ').skip(1);
            let (Some(case), Some(Ok(nonce))) = (words.next(), words.next().map(str::parse)) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{line}` is no line of the lab")));
            };
            if take {
                wire.take(end + 1);
            }
            return Ok((case.to_owned(), nonce));
        }
        if !wire.receive(PIECE)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends everything back.
///
/// # Errors
/// When the connection fails, or does not begin with the lab's line.
pub fn serve_echo(shared: &Shared, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let local = stream.local_addr()?;
    let mut wire = Taped::new(stream);
    let (case, nonce) = line(&mut wire, false)?;
    let mut record = record(Role::Server, &shared.workload, (&case, nonce), local, peer);
    let mut echo = || -> io::Result<()> {
        loop {
            let bytes = wire.pending().to_vec();
            record.messages.push(StreamMessage { sent: true, bytes: bytes.len() as u64, at: MonotonicNs::now() });
            wire.send(&bytes)?;
            wire.take(bytes.len());
            if !wire.receive(PIECE)? {
                return Ok(());
            }
        }
    };
    record.error = echo().err().map(|error| error.to_string());
    legs(&wire, &mut record);
    shared.log(record);
    Ok(())
}

/// Speaks first, hears one line, says goodbye.
///
/// # Errors
/// When the connection fails, or the client says something else than the lab's line.
pub fn serve_greeting(shared: &Shared, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let local = stream.local_addr()?;
    let mut wire = Taped::new(stream);
    wire.send(GREETING)?;
    let (case, nonce) = line(&mut wire, true)?;
    let mut record = record(Role::Server, &shared.workload, (&case, nonce), local, peer);
    record.error = wire.send(FAREWELL).err().map(|error| error.to_string());
    wire.stream().finish();
    // The client closes when it has heard everything.
    while wire.receive(PIECE).unwrap_or(false) {}
    legs(&wire, &mut record);
    shared.log(record);
    Ok(())
}

/// One connection with messages of these sizes, each sent when the one before has come back.
pub fn echo(to: &To, case: &str, sizes: &[usize]) -> ExchangeRecord {
    converse(to, case, |wire, record| {
        for &size in sizes {
            record.messages.push(StreamMessage { sent: true, bytes: size as u64, at: MonotonicNs::now() });
            let mut payload = vec![b'x'; size];
            if wire.written.total() == 0 {
                payload = introduction(record, size);
            }
            wire.send(&payload)?;
            while wire.pending().len() < payload.len() {
                if !wire.receive(PIECE)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            if wire.pending() != payload {
                return Err(io::Error::other("what came back is not what was sent"));
            }
            wire.take(payload.len());
            record.messages.push(StreamMessage { sent: false, bytes: payload.len() as u64, at: MonotonicNs::now() });
        }
        Ok(())
    })
}

/// One connection on which the server speaks first.
pub fn greeting(to: &To, case: &str) -> ExchangeRecord {
    converse(to, case, |wire, record| {
        while wire.pending().len() < GREETING.len() {
            if !wire.receive(PIECE)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if wire.pending() != GREETING {
            return Err(io::Error::other("another greeting than the lab's"));
        }
        wire.take(GREETING.len());
        wire.send(&introduction(record, 0))?;
        while wire.receive(PIECE)? {}
        if wire.pending() != FAREWELL { Err(io::Error::other("another farewell than the lab's")) } else { Ok(()) }
    })
}

/// Sends bytes that are no protocol, hears what the sidecar has to say, and closes (Envoy itself would wait a second).
pub fn garbage(to: &To, case: &str, bytes: &[u8]) -> ExchangeRecord {
    let mut record = converse(to, case, |wire, _| {
        wire.send(bytes)?;
        wire.stream().set_read_timeout(Some(Duration::from_millis(50)))?;
        while wire.receive(PIECE).unwrap_or(false) {}
        Ok(())
    });
    record.protocol = Protocol::Http2;
    record
}

fn introduction(record: &ExchangeRecord, size: usize) -> Vec<u8> {
    let mut line = format!("LAB {} {}\n", record.case, record.nonce).into_bytes();
    line.resize(line.len().max(size), b'x');
    line
}

fn converse(
    to: &To,
    case: &str,
    speak: impl FnOnce(&mut Taped<TcpStream>, &mut ExchangeRecord) -> io::Result<()>,
) -> ExchangeRecord {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut record = record(Role::Client, LOADGEN, (case, Nonce::new()), nowhere, to.address);
    let whole = || -> io::Result<()> {
        let stream = dial(to)?;
        record.local = stream.local_addr()?;
        let mut wire = Taped::new(stream);
        let spoken = speak(&mut wire, &mut record);
        legs(&wire, &mut record);
        spoken
    };
    record.error = whole().err().map(|error| error.to_string());
    record
}
