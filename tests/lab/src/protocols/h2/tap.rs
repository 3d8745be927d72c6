//! A socket that looks at the HTTP/2 frames that pass, and knows which call carried which of them.
//!
//! Only frame headers are read (RFC 9113, section 4.1); HPACK is none of its business.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::clock::MonotonicNs;
use crate::truth::{Leg, Mark};

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A stream in one direction.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// What is known of it.
    pub leg: Leg,
    /// Whether the sender reset it.
    pub reset: bool,
    /// HEADERS with END_STREAM whose END_HEADERS has not come yet.
    ending: bool,
}

impl Track {
    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        self.reset || self.leg.last.is_some()
    }
}

/// All frames of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes of the preface that are still to come.
    preface: usize,
    header: [u8; FRAME_HEADER],
    /// How much of `header` is there.
    have: usize,
    /// How much of the payload is still to come.
    left: usize,
    /// The call that carried the frame's first byte.
    begin: Option<Mark>,
    streams: HashMap<u32, Track>,
    last_data: u32,
}

impl Frames {
    /// Of the client's direction, which starts with the preface.
    pub fn after_preface() -> Self {
        Self { preface: PREFACE, ..Self::default() }
    }

    /// A stream's track so far.
    pub fn stream(&self, stream: u32) -> Track {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    /// Takes what one call moved.
    pub fn feed(&mut self, mut bytes: &[u8], mark: Mark) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < FRAME_HEADER {
                if self.have == 0 {
                    self.begin = Some(mark);
                }
                let count = (FRAME_HEADER - self.have).min(bytes.len());
                self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
                self.have += count;
                bytes = &bytes[count..];
                if self.have < FRAME_HEADER {
                    return;
                }
                let [a, b, c, ..] = self.header;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            }
            let count = self.left.min(bytes.len());
            self.left -= count;
            bytes = &bytes[count..];
            if self.left == 0 {
                self.frame(mark);
                self.have = 0;
            }
        }
    }

    /// A frame is complete; `end` is the call that carried its last byte.
    fn frame(&mut self, end: Mark) {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = self.header;
        let length = u64::from(a) << 16 | u64::from(b) << 8 | u64::from(c);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        if stream == 0 {
            return;
        }
        let begin = self.begin;
        let other = self.last_data != stream;
        let track = self.streams.entry(stream).or_default();
        match kind {
            HEADERS => {
                if track.leg.first.is_none() {
                    track.leg.first = begin;
                }
                track.ending = flags & END_STREAM != 0;
                track.headers(flags, end);
            }
            CONTINUATION => {
                track.leg.continuation_frames += 1;
                track.headers(flags, end);
            }
            DATA => {
                track.leg.bytes += length;
                track.leg.interruptions += u32::from(other && track.leg.data_frames > 0);
                track.leg.data_frames += 1;
                self.last_data = stream;
                if flags & END_STREAM != 0 {
                    track.leg.last = Some(end);
                }
            }
            RST_STREAM => track.reset = true,
            _ => {}
        }
    }
}

impl Track {
    fn headers(&mut self, flags: u8, end: Mark) {
        if flags & END_HEADERS != 0 {
            if self.leg.head.is_none() {
                self.leg.head = Some(end);
            }
            if self.ending {
                self.leg.last = Some(end);
            }
        }
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub struct Tracks {
    written: Mutex<Frames>,
    read: Mutex<Frames>,
}

impl Tracks {
    /// Of the client's end.
    pub fn client() -> Self {
        Self { written: Mutex::new(Frames::after_preface()), read: Mutex::default() }
    }

    /// Of the server's end.
    pub fn server() -> Self {
        Self { written: Mutex::default(), read: Mutex::new(Frames::after_preface()) }
    }

    /// A stream as it was written by this end.
    pub fn written(&self, stream: u32) -> Track {
        lock(&self.written).stream(stream)
    }

    /// A stream as it was read by this end.
    pub fn read(&self, stream: u32) -> Track {
        lock(&self.read).stream(stream)
    }
}

fn lock(frames: &Mutex<Frames>) -> MutexGuard<'_, Frames> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket.
#[derive(Debug)]
pub struct Tap {
    stream: TcpStream,
    tracks: Arc<Tracks>,
}

impl Tap {
    /// Looks at a connection from its begin.
    pub fn new(stream: TcpStream, tracks: Arc<Tracks>) -> Self {
        Self { stream, tracks }
    }
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let before = MonotonicNs::now();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let mark = Mark { before, after: MonotonicNs::now() };
        lock(&self.tracks.read).feed(&buffer.filled()[filled..], mark);
        polled
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let before = MonotonicNs::now();
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let mark = Mark { before, after: MonotonicNs::now() };
        if let Poll::Ready(Ok(written)) = &polled {
            lock(&self.tracks.written).feed(&bytes[..*written], mark);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = MonotonicNs::now();
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let mark = Mark { before, after: MonotonicNs::now() };
        if let Poll::Ready(Ok(written)) = &polled {
            let mut left = *written;
            let mut frames = lock(&self.tracks.written);
            for slice in slices {
                let count = left.min(slice.len());
                frames.feed(&slice[..count], mark);
                left -= count;
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.resize(bytes.len() + length, 0);
        bytes
    }

    fn conversation() -> Vec<u8> {
        let mut bytes = vec![0; PREFACE];
        bytes.extend(frame(4, 0, 0, 18));
        bytes.extend(frame(HEADERS, 0, 1, 30));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, 40));
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 3, 5));
        bytes.extend(frame(DATA, 0, 1, 100));
        bytes.extend(frame(DATA, 0, 5, 1));
        bytes.extend(frame(DATA, 0, 1, 0));
        bytes.extend(frame(HEADERS, END_STREAM, 1, 3));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, 3));
        bytes.extend(frame(RST_STREAM, 0, 5, 4));
        bytes
    }

    proptest! {
        /// However the bytes are cut into calls, a mark is the call that carried the byte.
        #[test]
        fn marks_are_those_of_the_bytes(sizes in proptest::collection::vec(1_usize..40, 1..60)) {
            let bytes = conversation();
            let mut frames = Frames::after_preface();
            let mut at = 0;
            for size in sizes.iter().cycle() {
                let end = bytes.len().min(at + size);
                // The mark tells where the call began and ended.
                frames.feed(&bytes[at..end], Mark { before: MonotonicNs(at as u64), after: MonotonicNs(end as u64) });
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            let carries = |mark: Option<Mark>, offset: usize| {
                let mark = mark.unwrap();
                mark.before.0 <= offset as u64 && (offset as u64) < mark.after.0
            };
            let one = frames.stream(1);
            let head = PREFACE + 27;
            prop_assert!(carries(one.leg.first, head));
            prop_assert!(carries(one.leg.head, head + 9 + 30 + 9 + 40 - 1));
            prop_assert!(carries(one.leg.last, bytes.len() - 13 - 1));
            prop_assert_eq!((one.leg.bytes, one.leg.data_frames, one.leg.continuation_frames), (100, 2, 2));
            prop_assert_eq!(one.leg.interruptions, 1);
            let three = frames.stream(3);
            prop_assert_eq!(three.leg.head, three.leg.last);
            prop_assert!(frames.stream(5).reset && frames.stream(5).is_over() && !three.reset);
        }
    }
}
