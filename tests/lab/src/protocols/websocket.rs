//! WebSocket (RFC 6455), as much of it as an echo needs.

use std::io::{self, Read, Write};

use super::http1::client::Connection;
use super::http1::{Duplex, Head, PIECE, leg, render, response_head};
use super::tape::Taped;
use crate::clock::MonotonicNs;
use crate::protocols::http1::client::Exchange;
use crate::truth::{ExchangeRecord, StreamMessage};

/// The RFC's own example: with a constant key the answer is constant too.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// A frame on the wire, whole and final.
fn frame(opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mut frame = vec![opcode];
    let flag = if masked { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..=125 => frame.push(flag | short as u8),
        middle @ 126..=0xffff => {
            frame.push(flag | 126);
            frame.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            frame.push(flag | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend_from_slice(payload);
    }
    frame
}

/// Reads a frame: its first byte, and its payload's length. Payloads are thrown away.
fn read_frame<S: Read + Write>(wire: &mut Taped<S>) -> io::Result<Option<(u8, u64)>> {
    if !fill(wire, 2)? {
        return Ok(None);
    }
    let (opcode, second) = (wire.pending()[0], wire.pending()[1]);
    wire.take(2);
    let more = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let masked = if second & 0x80 == 0 { 0 } else { 4 };
    if !fill(wire, more + masked)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let length = match more {
        0 => u64::from(second & 0x7f),
        _ => wire.pending()[..more].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    wire.take(more + masked);
    let mut missing = length;
    while missing > 0 {
        if !fill(wire, 1)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = missing.min(wire.pending().len() as u64);
        wire.take(count as usize);
        missing -= count;
    }
    Ok(Some((opcode, length)))
}

fn fill<S: Read + Write>(wire: &mut Taped<S>, count: usize) -> io::Result<bool> {
    while wire.pending().len() < count {
        if !wire.receive(PIECE)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Answers an upgrade and sends every message back until the client closes.
///
/// # Errors
/// When the connection fails.
pub fn serve<S: Duplex>(wire: &mut Taped<S>, head: &Head, record: &mut ExchangeRecord) -> io::Result<()> {
    record.request = leg(&wire.read, head.start, head.end, Some(head.end), 0);
    record.status = Some(101);
    let start = wire.written.total();
    let fields = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT)];
    wire.send(&render("HTTP/1.1 101 Switching Protocols", &fields))?;
    let end = wire.written.total();
    record.response = leg(&wire.written, start, end, Some(end), 0);
    while let Some((opcode, length)) = read_frame(wire)? {
        record.messages.push(StreamMessage { sent: false, bytes: length, at: MonotonicNs::now() });
        if opcode == CLOSE {
            wire.send(&frame(CLOSE, &[], false))?;
            return Ok(());
        }
        record.messages.push(StreamMessage { sent: true, bytes: length, at: MonotonicNs::now() });
        wire.send(&frame(BINARY, &vec![b'x'; length as usize], false))?;
    }
    Ok(())
}

/// Upgrades a connection and sends messages of these sizes, each when the one before has come back.
///
/// # Errors
/// When the connection fails, or what comes back is not what was sent.
pub fn converse<S: Duplex>(
    connection: &mut Connection<S>,
    what: &Exchange,
    record: &mut ExchangeRecord,
    sizes: &[usize],
) -> io::Result<()> {
    let head = connection.head(what, record);
    let wire = &mut connection.wire;
    let start = wire.written.total();
    wire.send(&head)?;
    let end = wire.written.total();
    record.request = leg(&wire.written, start, end, Some(end), 0);
    let answer = response_head(wire)?;
    record.status = Some(answer.status);
    record.response = leg(&wire.read, answer.start, answer.end, Some(answer.end), 0);
    if answer.status != 101 || answer.headers.get("sec-websocket-accept") != Some(ACCEPT) {
        return Err(io::Error::other(format!("no upgrade: {}", answer.status)));
    }
    for &size in sizes {
        record.messages.push(StreamMessage { sent: true, bytes: size as u64, at: MonotonicNs::now() });
        wire.send(&frame(BINARY, &vec![b'x'; size], true))?;
        let Some((_, length)) = read_frame(wire)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        record.messages.push(StreamMessage { sent: false, bytes: length, at: MonotonicNs::now() });
        if length != size as u64 {
            return Err(io::Error::other(format!("{length} bytes came back for {size}")));
        }
    }
    wire.send(&frame(CLOSE, &[], true))?;
    while read_frame(wire)?.is_some_and(|(opcode, _)| opcode != CLOSE) {}
    Ok(())
}

/// The exchange that upgrades.
pub fn upgrade(case: &str) -> Exchange {
    Exchange {
        fields: vec![
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
        ],
        ..Exchange::get(case)
    }
}
