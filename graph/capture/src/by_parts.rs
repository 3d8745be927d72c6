//! Reads a capture part by part: what is too large to be in memory as a whole is looked at in order of time, and first in outline.

use crate::damage::{Damage, PartError};
use crate::error::CaptureError;
use crate::part::{self, Outlined};
use crate::reader::{Capture, CaptureData, Reading};
use crate::table::Table;
use crate::tables::Row;
use meshdiff_model::{
    AccessLogType, Content, Direction, DownstreamDirectRemoteAddr, DurationNs, HopProtocol, HopSide, Http2Stream,
    Message, MonotonicNs, NodeId, SeqRange, SocketCookie, WallTime,
};
use std::path::{Path, PathBuf};

/// What a message is, without its instants. Of an HTTP/1 request only that it is one is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageOutline {
    /// The socket on which it was seen.
    pub socket: SocketCookie,
    /// Which way.
    pub direction: Direction,
    /// The bytes.
    pub seq: SeqRange,
    /// What the first bytes are.
    pub content: Content,
}

/// When an access log entry's stream was, and on which connection it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOutline {
    /// The reporting proxy.
    pub node: NodeId,
    /// Envoy's type of entry.
    pub access_log_type: AccessLogType,
    /// Protocol of the stream.
    pub protocol: HopProtocol,
    /// Start of the stream.
    pub start_time: WallTime,
    /// The latest of its timings.
    pub extent: Option<DurationNs>,
    /// The peer of Envoy's downstream connection.
    pub downstream_direct_remote_address: Option<DownstreamDirectRemoteAddr>,
}

/// A capture whose large tables are read part by part. Damaged parts are left out, as [`Capture::read`] does.
pub struct ByParts<'a> {
    reading: Reading<'a>,
    messages: Vec<PathBuf>,
    streams: Vec<PathBuf>,
    logs: Vec<PathBuf>,
}

impl Capture {
    /// Begins to read part by part.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn by_parts(&self) -> Result<ByParts<'_>, CaptureError> {
        let mut reading = self.reading();
        let messages = reading.counted_parts(Table::Messages)?;
        let streams = reading.counted_parts(Table::Http2Streams)?;
        let logs = reading.counted_parts(Table::AccessLogs)?;
        Ok(ByParts { reading, messages, streams, logs })
    }
}

impl ByParts<'_> {
    /// Everything but messages, streams and access logs.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn rest(&mut self) -> Result<CaptureData, CaptureError> {
        self.reading.rest()
    }

    /// How many parts of messages there are.
    #[must_use]
    pub const fn message_parts(&self) -> usize {
        self.messages.len()
    }

    /// How many parts of HTTP/2 streams there are.
    #[must_use]
    pub const fn stream_parts(&self) -> usize {
        self.streams.len()
    }

    /// How many parts of access logs there are.
    #[must_use]
    pub const fn log_parts(&self) -> usize {
        self.logs.len()
    }

    /// What the messages of a part are, in their order, and the first instant in it: `None` if it has none, 0 if nothing tells.
    pub fn outline(&self, part: usize, each: impl FnMut(MessageOutline)) -> Option<MonotonicNs> {
        const INSTANTS: [&str; 3] =
            ["sends.list.element.at_ns", "readies.list.element.at_ns", "recvs.list.element.at_ns"];
        self.outlined(&self.messages[part], &INSTANTS, each).map(|at| MonotonicNs(at.cast_unsigned()))
    }

    /// When the entries of a part were.
    pub fn log_outlines(&self, part: usize, each: impl FnMut(LogOutline)) {
        self.outlined(&self.logs[part], &[], each);
    }

    fn outlined<R: Outlined>(&self, path: &Path, least_of: &[&str], each: impl FnMut(R)) -> Option<i64> {
        let read = || -> Result<_, PartError> {
            let bytes = part::read_file(path)?;
            part::outline::<R>(bytes, &self.reading.strings, least_of)
        };
        // What is damaged is told when it is read as a whole.
        let (rows, least) = read().ok()?;
        rows.into_iter().for_each(each);
        least
    }

    /// The streams of a part, to be read once more: what is damaged is told then.
    #[must_use]
    pub fn peek_streams(&self, part: usize) -> Vec<Http2Stream> {
        self.peek(&self.streams[part])
    }

    /// The access logs of a part, to be read once more.
    #[must_use]
    pub fn peek_logs(&self, part: usize) -> Vec<HopSide> {
        self.peek(&self.logs[part])
    }

    fn peek<R: Row>(&self, path: &Path) -> Vec<R> {
        let read = || part::decode::<R>(part::read_file(path)?, &self.reading.strings);
        read().map(|part| part.rows).unwrap_or_default()
    }

    /// The messages of a part.
    pub fn messages(&mut self, part: usize) -> Vec<Message> {
        self.read(Table::Messages, part)
    }

    /// The HTTP/2 streams of a part.
    pub fn streams(&mut self, part: usize) -> Vec<Http2Stream> {
        self.read(Table::Http2Streams, part)
    }

    /// The access logs of a part.
    pub fn logs(&mut self, part: usize) -> Vec<HopSide> {
        self.read(Table::AccessLogs, part)
    }

    fn read<R: Row>(&mut self, table: Table, part: usize) -> Vec<R> {
        let parts = match table {
            Table::Messages => &self.messages,
            Table::Http2Streams => &self.streams,
            _ => &self.logs,
        };
        let path = parts[part].clone();
        // Without being strict nothing fails.
        self.reading.part(path).unwrap_or_default()
    }

    /// What could not be read until now.
    #[must_use]
    pub const fn damage(&self) -> &Damage {
        &self.reading.damage
    }
}
