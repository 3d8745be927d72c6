//! What the frames on a connection tell of HTTP/2 streams.

use crate::{RequestId, SeqInstant, SeqNo, SeqRange, SocketCookie};
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
