//! Copies parts of a capture and keeps some of their rows, one part in memory at a time.

use crate::damage::PartError;
use crate::part::{Encoder, decode};
use crate::table::Table;
use crate::tables::Row;
use crate::view::Interner;
use bytes::Bytes;
use meshdiff_model::{
    HopSide, Http2Stream, Message, NetnsId, NodeId, Process, Proxy, Socket, SocketCookie, SocketEvent, SocketMetrics,
};

/// Which rows are kept.
pub trait Keep {
    /// True for a socket whose rows are kept: its messages, streams, metrics and events with it.
    fn socket(&self, socket: SocketCookie) -> bool;
    /// True for a proxy whose access log entries are kept.
    fn proxy(&self, node: &NodeId) -> bool;
    /// True for a network namespace whose processes are kept.
    fn netns(&self, netns: NetnsId) -> bool;
}

/// Makes new parts of parts.
#[derive(Default)]
pub struct PartFilter {
    encoders: Encoders,
}

#[derive(Default)]
struct Encoders {
    sockets: Lazy<Socket>,
    messages: Lazy<Message>,
    metrics: Lazy<SocketMetrics>,
    http2: Lazy<Http2Stream>,
    access_logs: Lazy<HopSide>,
    processes: Lazy<Process>,
    events: Lazy<SocketEvent>,
}

struct Lazy<R>(Option<Encoder<R>>);

impl<R> Default for Lazy<R> {
    fn default() -> Self {
        Self(None)
    }
}

impl<R: Row> Lazy<R> {
    /// The part without the rows that are not kept; `None` if none is left.
    fn rewrite(&mut self, part: Bytes, keep: impl Fn(&R) -> bool) -> Result<Option<Bytes>, PartError> {
        let mut rows = decode::<R>(part.clone(), &Interner::default())?.rows;
        let before = rows.len();
        rows.retain(keep);
        if rows.is_empty() {
            return Ok(None);
        }
        if rows.len() == before {
            return Ok(Some(part));
        }
        let encoded = self.0.get_or_insert_with(Encoder::new).encode(&rows);
        encoded.map(|bytes| Some(bytes.into())).map_err(|e| PartError::Corrupt(e.to_string()))
    }
}

impl PartFilter {
    /// A part of a table, given as the bytes of its file, with only the rows that are kept; `None` if none is left. Proxies are all kept:
    /// they say who the others were.
    ///
    /// # Errors
    /// If the part is damaged.
    pub fn apply(&mut self, table: Table, part: Bytes, keep: &dyn Keep) -> Result<Option<Bytes>, PartError> {
        let e = &mut self.encoders;
        match table {
            Table::Sockets => e.sockets.rewrite(part, |r| keep.socket(r.cookie)),
            Table::Messages => e.messages.rewrite(part, |r| keep.socket(r.socket)),
            Table::SocketMetrics => e.metrics.rewrite(part, |r| keep.socket(r.socket)),
            Table::Http2Streams => e.http2.rewrite(part, |r| keep.socket(r.socket)),
            Table::AccessLogs => e.access_logs.rewrite(part, |r| keep.proxy(&r.node)),
            Table::Proxies => Ok(Some(part)),
            Table::Processes => e.processes.rewrite(part, |r| keep.netns(r.netns)),
            Table::Events => e.events.rewrite(part, |r| keep.socket(r.socket)),
        }
    }
}

/// The sockets of a part, given as the bytes of its file.
///
/// # Errors
/// If the part is damaged or is one of another table.
pub fn sockets_of_part(part: Bytes) -> Result<Vec<Socket>, PartError> {
    Ok(decode(part, &Interner::default())?.rows)
}

/// The proxies of a part, given as the bytes of its file.
///
/// # Errors
/// If the part is damaged or is one of another table.
pub fn proxies_of_part(part: Bytes) -> Result<Vec<Proxy>, PartError> {
    Ok(decode(part, &Interner::default())?.rows)
}
