//! The tables' columns and how their rows are read back, one module for each.

mod access_log;
mod event;
mod http2_stream;
mod log_details;
mod message;
mod process;
mod proxy;
mod socket;
mod socket_metrics;

use crate::column::{Column, ColumnDoc};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{BadCell, Interner, View};

/// A row of a table.
pub(crate) trait Row: Sized + 'static {
    /// Where it is stored.
    const TABLE: Table;
    /// Its columns.
    fn columns() -> Vec<Column<Self>>;
    /// Brings the rows of a part into the order in which they are stored: neighbours that are alike take little room.
    fn arrange(_: &mut [Self]) {}
    /// Reads the rows of a batch.
    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError>;
}

/// What could be read of a batch.
pub(crate) struct Decoded<R> {
    pub(crate) rows: Vec<R>,
    /// Rows that hold a value which means nothing, and the column of the first of them.
    pub(crate) rejected: u64,
    pub(crate) first_rejected: Option<&'static str>,
}

fn decode_rows<R>(view: &View<'_>, row: impl Fn(usize) -> Result<R, BadCell>) -> Decoded<R> {
    let mut out = Decoded { rows: Vec::with_capacity(view.rows()), rejected: 0, first_rejected: None };
    for i in 0..view.rows() {
        match row(i) {
            Ok(row) => out.rows.push(row),
            Err(bad) => {
                out.rejected += 1;
                out.first_rejected.get_or_insert(bad.column);
            }
        }
    }
    out
}

impl Table {
    /// Its columns, in order.
    #[must_use]
    pub fn columns(self) -> Vec<ColumnDoc> {
        fn docs<R: Row>() -> Vec<ColumnDoc> {
            R::columns().iter().map(Column::describe).collect()
        }
        match self {
            Self::Sockets => docs::<meshdiff_model::Socket>(),
            Self::Messages => docs::<meshdiff_model::Message>(),
            Self::SocketMetrics => docs::<meshdiff_model::SocketMetrics>(),
            Self::Http2Streams => docs::<meshdiff_model::Http2Stream>(),
            Self::AccessLogs => docs::<meshdiff_model::HopSide>(),
            Self::Proxies => docs::<meshdiff_model::Proxy>(),
            Self::Processes => docs::<meshdiff_model::Process>(),
            Self::Events => docs::<meshdiff_model::SocketEvent>(),
        }
    }
}
