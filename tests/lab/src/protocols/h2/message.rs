//! Sending and receiving a stream's body, gRPC's framing included.

use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};

use crate::clock::MonotonicNs;
use crate::protocols::ask::{Flow, Pause, due};
use crate::truth::{Doing, StreamMessage, Wait};

/// gRPC's prefix of a message: not compressed, and its length.
const PREFIX: usize = 5;

/// What sending or receiving left behind.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Waits on purpose.
    pub waits: Vec<Wait>,
    /// Messages.
    pub messages: Vec<StreamMessage>,
    /// How long there was no room to send, in nanoseconds.
    pub stalled_ns: u64,
}

/// Sends one message, as the windows let it.
pub(super) async fn send_message(
    stream: &mut SendStream<Bytes>,
    bytes: usize,
    grpc: bool,
    end: bool,
    notes: &mut Notes,
) -> Result<(), h2::Error> {
    let mut message = BytesMut::with_capacity(PREFIX + bytes);
    if grpc {
        message.put_u8(0);
        message.put_u32(bytes as u32);
    }
    message.resize(message.len() + bytes, b'x');
    let mut message = message.freeze();
    notes.messages.push(StreamMessage { sent: true, bytes: bytes as u64, at: MonotonicNs::now() });
    while !message.is_empty() {
        stream.reserve_capacity(message.len());
        if stream.capacity() == 0 {
            let start = MonotonicNs::now();
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            };
            notes.stalled_ns += MonotonicNs::now().0 - start.0;
        }
        let piece = message.split_to(message.len().min(stream.capacity()));
        if !piece.is_empty() {
            stream.send_data(piece, end && message.is_empty())?;
        }
    }
    Ok(())
}

/// Sends a body; with `end`, its last message ends the stream.
pub(super) async fn send_flow(
    stream: &mut SendStream<Bytes>,
    flow: &Flow,
    grpc: bool,
    end: bool,
    notes: &mut Notes,
) -> Result<(), h2::Error> {
    let mut sent = 0;
    for n in 0..flow.messages {
        if n > 0 && flow.gap_ns > 0 {
            notes.waits.push(Pause { after: sent, ns: flow.gap_ns }.wait_async(Doing::Writing).await);
        }
        send_message(stream, flow.bytes, grpc, end && n + 1 == flow.messages, notes).await?;
        let before = sent;
        sent += flow.bytes as u64;
        if let Some(pause) = flow.due(before, sent) {
            notes.waits.push(pause.wait_async(Doing::Writing).await);
        }
    }
    Ok(())
}

/// Reads a stream's body message by message.
#[derive(Debug)]
pub(super) struct Receiver {
    stream: RecvStream,
    grpc: bool,
    /// Bytes of a gRPC message that is not whole yet.
    rest: BytesMut,
    /// Bytes so far, gRPC's framing included.
    pub(super) bytes: u64,
}

impl Receiver {
    pub(super) fn new(stream: RecvStream, grpc: bool) -> Self {
        Self { stream, grpc, rest: BytesMut::new(), bytes: 0 }
    }

    /// One piece of the body; `false` at its end. The window is opened again only after the pause, if one is due.
    pub(super) async fn receive(&mut self, pause: Option<Pause>, notes: &mut Notes) -> Result<bool, h2::Error> {
        let Some(data) = self.stream.data().await else { return Ok(false) };
        let data = data?;
        let before = self.bytes;
        self.bytes += data.len() as u64;
        if self.grpc {
            self.rest.extend_from_slice(&data);
            while let Some(&[_, a, b, c, d]) = self.rest.first_chunk::<PREFIX>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.rest.len() < PREFIX + length {
                    break;
                }
                let _message = self.rest.split_to(PREFIX + length);
                notes.messages.push(StreamMessage { sent: false, bytes: length as u64, at: MonotonicNs::now() });
            }
        }
        if let Some(pause) = due(pause, before, self.bytes) {
            notes.waits.push(pause.wait_async(Doing::Reading).await);
        }
        self.stream.flow_control().release_capacity(data.len())?;
        Ok(true)
    }

    /// What follows the body.
    pub(super) async fn trailers(&mut self) -> Result<Option<http::HeaderMap>, h2::Error> {
        self.stream.trailers().await
    }
}

/// The status of a gRPC call, from its trailers or its head.
pub(super) fn grpc_status(fields: &http::HeaderMap) -> Option<u16> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Header fields of so many bytes, which no table and no Huffman code makes much smaller.
pub(super) fn large_fields(bytes: usize) -> Vec<(String, String)> {
    const EACH: usize = 1000;
    // Letters of Huffman codes of 8 bits: the block is as large as the text.
    let value = "X&*,;XZ".chars().cycle();
    (0..bytes / EACH).map(|n| (format!("x-lab-large-{n}"), value.clone().skip(n % 7).take(EACH).collect())).collect()
}
