//! The answering end of the HTTP/1 cases.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Duplex, Framing, Head, PIECE, leg, read_body, render, request_head, write_body};
use crate::clock::{MonotonicNs, sleep_until};
use crate::hop::{NONCE, REQUEST_ID};
use crate::protocols::ask::{ASK, ATTEMPT, ATTEMPT_COUNT, Ask, Failing};
use crate::protocols::calls;
use crate::protocols::server::Shared;
use crate::protocols::tape::Taped;
use crate::protocols::websocket;
use crate::truth::{Doing, ExchangeRecord, Protocol, Role, Sockets, Wait};

/// How long a connection that was answered early may go on sending.
const LINGER: Duration = Duration::from_secs(1);

/// The two ends of a connection, and what is spoken on it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The server's.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// For the log.
    pub protocol: Protocol,
}

/// Serves a connection to its end.
///
/// # Errors
/// When it fails.
pub fn connection<S: Duplex>(shared: &Shared, stream: S, ends: Ends) -> io::Result<()> {
    let mut wire = Taped::new(stream);
    while let Some(head) = request_head(&mut wire)? {
        let ask = Ask::from_header(head.headers.get(ASK));
        let mut record = record(shared, ends, &head, &ask);
        let more = if head.headers.get("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket")) {
            websocket::serve(&mut wire, &head, &mut record).map(|()| false)
        } else {
            calls::make(shared, &ask, &record);
            serve(&mut wire, &head, &ask, &mut record)
        };
        if let Err(error) = &more {
            record.error = Some(error.to_string());
        }
        if head.path != "/healthz" {
            shared.log(record);
        }
        if !more? {
            wire.stream().finish();
            drain(&mut wire);
            return Ok(());
        }
    }
    Ok(())
}

/// Closing with bytes unread would make the kernel send a RST, which may overtake the answer.
fn drain<S: Duplex>(wire: &mut Taped<S>) {
    let deadline = MonotonicNs::now().plus(LINGER);
    while MonotonicNs::now() < deadline && wire.receive(PIECE).unwrap_or(false) {
        wire.take(usize::MAX);
    }
}

fn record(shared: &Shared, ends: Ends, head: &Head, ask: &Ask) -> ExchangeRecord {
    let nonce = head.headers.get(NONCE).and_then(|text| text.parse().ok()).unwrap_or_default();
    let sockets = Sockets { local: ends.local, remote: ends.peer };
    ExchangeRecord {
        request_id: head.headers.get(REQUEST_ID).map(str::to_owned),
        method: head.method.clone(),
        path: head.path.clone(),
        attempt: head.headers.get(ATTEMPT_COUNT).and_then(|text| text.parse().ok()),
        ..ExchangeRecord::begin(Role::Server, &shared.workload, (&ask.case, nonce), ends.protocol, sockets)
    }
}

/// Answers one request; says whether the connection goes on.
fn serve<S: Duplex>(wire: &mut Taped<S>, head: &Head, ask: &Ask, record: &mut ExchangeRecord) -> io::Result<bool> {
    record.request = leg(&wire.read, head.start, head.end, None, 0);
    if head.headers.get("expect").is_some() && ask.early_after.is_none() {
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        record.interim = wire.written.at(wire.written.total() - 1);
    }
    let framing = Framing::of_request(&head.headers);
    let body = read_body(wire, framing, ask.read_pause, ask.early_after)?;
    record.waits.extend(&body.waits);
    let end = body.complete.then_some(body.end.max(head.end));
    record.request = leg(&wire.read, head.start, head.end, end, body.bytes);
    let fails = ask.failing(record.attempt);
    if fails == Some(Failing::Close) {
        return Ok(false);
    }
    let think_ns = if let Some(Failing::Slow { ns }) = fails { ns } else { ask.think_ns };
    if think_ns > 0 {
        let start = MonotonicNs::now();
        sleep_until(MonotonicNs(start.0 + think_ns));
        record.waits.push(Wait { doing: Doing::Thinking, after_bytes: body.bytes, start, end: MonotonicNs::now() });
    }

    let status = if fails == Some(Failing::Status) { 503 } else { ask.status.unwrap_or(200) };
    let bodiless = head.method == "HEAD" || status == 204 || status == 304;
    let length = ask.response.total().to_string();
    let attempt = record.attempt.map(|n| n.to_string());
    let mut fields = vec![("content-type", "application/octet-stream")];
    fields.extend(attempt.as_deref().map(|n| (ATTEMPT, n)));
    match (ask.http10, ask.chunked, status) {
        (true, _, _) | (_, _, 204 | 304) => {}
        (false, true, _) => fields.push(("transfer-encoding", "chunked")),
        (false, false, _) => fields.push(("content-length", &length)),
    }
    let last = ask.http10 || !body.complete;
    if last {
        fields.push(("connection", "close"));
    }
    let version = if ask.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let start = wire.written.total();
    record.status = Some(status);
    wire.send(&render(&format!("{version} {status} Lab"), &fields))?;
    let head_end = wire.written.total();
    record.response = leg(&wire.written, start, head_end, None, 0);
    let (bytes, waits) = match bodiless {
        true => (0, Vec::new()),
        false => write_body(wire, &ask.response, ask.chunked && !ask.http10, None)?,
    };
    record.waits.extend(waits);
    record.response = leg(&wire.written, start, head_end, Some(wire.written.total()), bytes);
    Ok(!last)
}
