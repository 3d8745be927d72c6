//! What the frames on a connection tell of HTTP/2 streams.

use crate::{DurationNs, MonotonicNs, RequestId, SeqInstant, SeqNo, SeqRange, SocketCookie};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What one socket sent of one HTTP/2 stream (RFC 9113), as the headers of its frames tell. When these bytes were sent, ready and
/// read is in the [`Message`](crate::Message)s of the two sockets, under the same sequence numbers.
///
/// Stream 0 is the connection itself: such a row says from where to where the socket's frames were followed. Of a stream whose
/// frames lie outside of these parts nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2Stream {
    /// The socket that sent it.
    pub socket: SocketCookie,
    /// The stream's number.
    pub stream: u32,
    /// The first byte of its first frame, and when the send call began that first offered it to TCP.
    pub first: SeqInstant,
    /// The number after the last byte of its last frame, and when the send call began that offered the frame's header.
    pub last: SeqInstant,
    /// The header block of the request or of the response (not of an interim one): from the first byte of its first frame to after
    /// the last byte of its last.
    pub head: Option<SeqRange>,
    /// The number after the frame that ended the stream in this direction (END_STREAM).
    pub end: Option<SeqNo>,
    /// Frames.
    pub frames: u32,
    /// Payload of its DATA frames, padding included: of all of them, if the row has a head and an end.
    pub data_bytes: u64,
    /// Where the DATA frames lie among the socket's bytes, in order; empty in captures of before this was kept.
    #[serde(default)]
    pub data: Vec<Http2Data>,
    /// Interim responses before the response.
    pub interim: u32,
    /// Error code of the RST_STREAM that the socket sent; of stream 0, of its GOAWAY.
    pub reset: Option<u32>,
    /// Why the rest of it is not known; `None` if the row is whole. Of stream 0: why it was not followed further.
    pub gap: Option<Http2Gap>,
    /// Of stream 0: that it was followed since the connection began.
    pub from_the_beginning: bool,
    /// What its header blocks say, as far as they could be decoded.
    pub fields: Http2Fields,
}

/// DATA frames of one stream that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2Data {
    /// The first byte of the first one's header, and when the send call began that first offered it to TCP.
    pub first: SeqInstant,
    /// The number after the last byte of the last one. Between, frames of other streams may lie.
    pub end: SeqNo,
    /// Payload, padding included, of all of the row's DATA frames up to and with these.
    pub bytes: u64,
    /// How many: of those between the first and the last nothing else is kept.
    pub frames: u32,
}

impl Http2Data {
    /// So many frames of a stream are always kept one by one.
    pub const NEVER_MERGED: usize = 16;
    /// Frames whose sends began within this of each other are kept as one, after the first ones.
    pub const MERGED_WITHIN: DurationNs = DurationNs::from_micros(100);
    /// So many entries are kept of a stream; what comes after counts with the last.
    pub const MOST: usize = 1024;

    /// Adds the next frame to a stream's list: its bytes, when its send began, and its payload.
    pub fn push(list: &mut Vec<Self>, frame: SeqRange, at: MonotonicNs, payload: u64) {
        let full = list.len() >= Self::MOST;
        let count = list.len();
        let before = match list.last_mut() {
            Some(last) => {
                let close = count >= Self::NEVER_MERGED && at - last.first.at < Self::MERGED_WITHIN;
                // Numbers compare only while they are near each other.
                if (close || full) && last.first.seq.distance(frame.end) > 0 {
                    last.end = frame.end;
                    last.bytes += payload;
                    last.frames = last.frames.saturating_add(1);
                    return;
                }
                last.bytes
            }
            None => 0,
        };
        if !full {
            let first = SeqInstant { seq: frame.start, at };
            list.push(Self { first, end: frame.end, bytes: before + payload, frames: 1 });
        }
    }
}

/// What is kept of header blocks. A field that is `None` was not there, or refers to what was sent before the recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2Fields {
    /// `:method`.
    pub method: Option<Arc<str>>,
    /// `:path` without its query.
    pub path: Option<Arc<str>>,
    /// `:status`.
    pub status: Option<u16>,
    /// Whether `content-type` is one of gRPC's.
    pub grpc: Option<bool>,
    /// `grpc-status`.
    pub grpc_status: Option<u16>,
    /// `x-request-id`.
    pub request_id: Option<RequestId>,
}

/// Why frames were not followed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Http2Gap {
    /// The socket closed, or the recording ended, before the stream did.
    StillOpen,
    /// Events of the socket were lost.
    EventsLost,
    /// The probe could not see all bytes of a send.
    NotSeen,
    /// What followed is no HTTP/2.
    Garbage,
    /// More streams were open at once than are remembered.
    TooMany,
}

impl Http2Gap {
    /// The name in captures and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StillOpen => "still_open",
            Self::EventsLost => "events_lost",
            Self::NotSeen => "not_seen",
            Self::Garbage => "garbage",
            Self::TooMany => "too_many",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_kept_one_by_one_until_there_are_many_at_once() {
        let us = |n: u64| MonotonicNs(n * 1_000);
        let mut list = Vec::new();
        let mut seq = SeqNo(u32::MAX - 50);
        let mut push = |list: &mut Vec<Http2Data>, at| {
            Http2Data::push(list, SeqRange::of(seq, 19), at, 10);
            seq = seq.advance(30);
        };
        (0..Http2Data::NEVER_MERGED as u64).for_each(|n| push(&mut list, us(n)));
        assert!(list.iter().all(|d| d.frames == 1 && d.first.seq.distance(d.end) == 19), "{list:?}");
        // Close to the last one; and a pause behind it, which is kept.
        [us(20), us(30), us(500)].into_iter().for_each(|at| push(&mut list, at));
        let [.., merged, last] = &list[..] else { panic!("{list:?}") };
        assert_eq!((merged.frames, merged.bytes, merged.first.seq.distance(merged.end)), (3, 180, 79));
        assert_eq!((last.frames, last.bytes, last.first.at), (1, 190, us(500)));
        (0..5_000).for_each(|n| push(&mut list, us(1_000 + n * 1_000)));
        assert_eq!((list.len(), list[list.len() - 1].bytes), (Http2Data::MOST, 50_190));
        assert_eq!(list.iter().map(|d| u64::from(d.frames) * 10).sum::<u64>(), 50_190);
    }
}
