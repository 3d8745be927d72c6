//! The table of access logs, which grows by the million: rows go into columns as they come, and from there into Parquet's pages.
//!
//! The other tables are encoded by Arrow, value by value. Here a value that repeats is looked up once for each batch and not once for
//! each row: a row points to the *kind* of its request, and a column that depends on the kind alone is one table lookup per row, or none at
//! all where all kinds agree.

mod chunk;
mod encode;
mod pack;
mod set;

use arrow::datatypes::SchemaRef;
use chunk::Chunks;
use meshdiff_model::{HopTags, LogBatch, LogId, LogKind, LogSizes, LogStreamId, Place};
use parquet::errors::Result;
use set::Set;
use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

/// Rows of a batch whose columns are taken at once: 170 bytes each.
const ROWS_AT_ONCE: usize = 128;

/// Rows of access logs in memory.
pub(crate) struct LogTable {
    texts: Set<Arc<str>>,
    ips: Set<IpAddr>,
    flags: Set<Vec<Arc<str>>>,
    /// With the places of texts for TLS and peers, which are stored as JSON.
    kinds: Set<LogKind>,
    sizes: Set<LogSizes>,
    uuids: Set<[u8; 16]>,
    tags: Vec<HopTags>,
    rows: Rows,
    scratch: Scratch,
    pages: RefCell<encode::Pages>,
    format: encode::Format,
    chunks: Chunks,
}

/// The rows' own values, a column each. A place of 0 is none.
#[derive(Default)]
struct Rows {
    kind: Vec<u32>,
    sizes: Vec<u32>,
    start: Vec<i64>,
    spans: [Vec<i64>; 8],
    present: Vec<u8>,
    direct_ip: Vec<u32>,
    direct_port: Vec<u16>,
    remote_ip: Vec<u32>,
    remote_port: Vec<u16>,
    upstream_local_port: Vec<u16>,
    path: Vec<u32>,
    uuid: Vec<u32>,
    id_text: Vec<u32>,
    stream_same: Vec<u8>,
    stream_text: Vec<u32>,
    tags: Vec<u32>,
}

/// Calls a macro with the names of all columns.
macro_rules! each_column {
    ($self:ident, $do:ident) => {
        $do!($self.kind);
        $do!($self.sizes);
        $do!($self.start);
        $self.spans.iter_mut().for_each(|span| {
            $do!(*span);
        });
        $do!($self.present);
        $do!($self.direct_ip);
        $do!($self.direct_port);
        $do!($self.remote_ip);
        $do!($self.remote_port);
        $do!($self.upstream_local_port);
        $do!($self.path);
        $do!($self.uuid);
        $do!($self.id_text);
        $do!($self.stream_same);
        $do!($self.stream_text);
        $do!($self.tags);
    };
}

impl Rows {
    fn clear(&mut self) {
        macro_rules! clear {
            ($column:expr) => {
                $column.clear()
            };
        }
        each_column!(self, clear);
    }

    /// Puts the rows into the order of their start: what came at the same time stays in the order in which it came.
    fn sort(&mut self, scratch: &mut Scratch) {
        if self.start.is_sorted() {
            return;
        }
        order(&self.start, &mut scratch.order);
        let order = &scratch.order;
        macro_rules! permute {
            ($column:expr) => {
                permuted(&mut $column, order, &mut scratch.columns)
            };
        }
        each_column!(self, permute);
    }
}

/// Memory that is used again for each part: fresh memory costs a page fault every 4 KiB.
#[derive(Default)]
struct Scratch {
    order: Vec<u64>,
    columns: (Vec<u8>, Vec<u16>, Vec<u32>, Vec<i64>),
}

/// The numbers of rows in the order of their start.
fn order(start: &[i64], order: &mut Vec<u64>) {
    /// Bits for the number of a row.
    const ROW: u32 = 24;
    order.clear();
    let (Some(first), Some(last)) = (start.iter().min(), start.iter().max()) else { return };
    let span = last.wrapping_sub(*first).cast_unsigned();
    if span.leading_zeros() >= ROW && start.len() >> ROW == 0 {
        // Numbers are sorted faster than pairs; rows of one part lie minutes apart at most, unless a clock is wrong.
        let key = |(start, row): (&i64, u64)| start.wrapping_sub(*first).cast_unsigned() << ROW | row;
        order.extend(start.iter().zip(0..).map(key));
        order.sort();
        order.iter_mut().for_each(|row| *row &= (1 << ROW) - 1);
    } else {
        order.extend(0..start.len() as u64);
        order.sort_by_key(|row| start[usize::try_from(*row).unwrap_or_default()]);
    }
}

/// A column's values in another order.
fn permuted<T: Value>(column: &mut Vec<T>, order: &[u64], scratch: &mut (Vec<u8>, Vec<u16>, Vec<u32>, Vec<i64>)) {
    let other = T::scratch(scratch);
    other.clear();
    other.extend(order.iter().map(|row| column[usize::try_from(*row).unwrap_or_default()]));
    std::mem::swap(column, other);
}

/// A type of column.
trait Value: Copy {
    /// The scratch memory for its columns.
    fn scratch(all: &mut (Vec<u8>, Vec<u16>, Vec<u32>, Vec<i64>)) -> &mut Vec<Self>
    where
        Self: Sized;
}

macro_rules! value {
    ($type:ty, $n:tt) => {
        impl Value for $type {
            fn scratch(all: &mut (Vec<u8>, Vec<u16>, Vec<u32>, Vec<i64>)) -> &mut Vec<Self> {
                &mut all.$n
            }
        }
    };
}
value!(u8, 0);
value!(u16, 1);
value!(u32, 2);
value!(i64, 3);

impl LogTable {
    /// An empty table with these columns.
    pub(crate) fn new(schema: &SchemaRef) -> Result<Self> {
        Ok(Self {
            texts: Set::default(),
            ips: Set::default(),
            flags: Set::default(),
            kinds: Set::default(),
            sizes: Set::default(),
            uuids: Set::default(),
            tags: Vec::new(),
            rows: Rows::default(),
            scratch: Scratch::default(),
            pages: RefCell::default(),
            format: encode::Format::new(schema)?,
            chunks: Chunks::new()?,
        })
    }

    /// How many rows there are.
    pub(crate) const fn len(&self) -> usize {
        self.rows.kind.len()
    }

    /// Adds entries.
    pub(crate) fn push(&mut self, batch: &LogBatch) {
        let texts: Vec<u32> = batch.texts.iter().map(|text| self.texts.place(text)).collect();
        let ips: Vec<u32> = batch.ips.iter().map(|ip| self.ips.place(ip)).collect();
        let flags: Vec<u32> = batch.flags.iter().map(|list| self.flags.place(list)).collect();
        let tls: Vec<u32> = batch.tls.iter().map(|tls| self.json(&**tls)).collect();
        let peers: Vec<u32> = batch.peers.iter().map(|peer| self.json(&**peer)).collect();
        let of = |list: &[u32], place: Place| place.of(list).copied().unwrap_or_default();
        let moved = |list: &[u32], place: Place| match of(list, place) {
            0 => Place::NONE,
            n => Place::at(n as usize - 1),
        };
        let kinds: Vec<u32> = batch
            .kinds
            .iter()
            .map(|kind| {
                let text = |place| moved(&texts, place);
                self.kinds.place(&LogKind {
                    node: text(kind.node),
                    downstream_local: (moved(&ips, kind.downstream_local.0), kind.downstream_local.1),
                    upstream_local_ip: moved(&ips, kind.upstream_local_ip),
                    upstream_remote: (moved(&ips, kind.upstream_remote.0), kind.upstream_remote.1),
                    upstream_cluster: text(kind.upstream_cluster),
                    route_name: text(kind.route_name),
                    flags: moved(&flags, kind.flags),
                    method: text(kind.method),
                    authority: text(kind.authority),
                    response_code_details: text(kind.response_code_details),
                    tls_sni_hostname: text(kind.tls_sni_hostname),
                    tls: moved(&tls, kind.tls),
                    downstream_peer: moved(&peers, kind.downstream_peer),
                    upstream_peer: moved(&peers, kind.upstream_peer),
                    failure: kind.failure.map(text),
                    ..*kind
                })
            })
            .collect();
        let sizes: Vec<u32> = batch.sizes.iter().map(|sizes| self.sizes.place(sizes)).collect();
        let first_tags = u32::try_from(self.tags.len()).unwrap_or(u32::MAX);
        self.tags.extend_from_slice(&batch.tags);

        // Some at a time, so that they are still in the processor's nearest cache when their last column is taken.
        for some in batch.rows.chunks(ROWS_AT_ONCE) {
            let rows = &mut self.rows;
            rows.kind.extend(some.iter().map(|row| kinds[row.kind as usize] - 1));
            rows.sizes.extend(some.iter().map(|row| sizes[row.sizes as usize] - 1));
            rows.start.extend(some.iter().map(|row| row.start_time.0));
            for (n, spans) in rows.spans.iter_mut().enumerate() {
                spans.extend(some.iter().map(|row| row.spans[n]));
            }
            rows.present.extend(some.iter().map(|row| row.present));
            rows.direct_ip.extend(some.iter().map(|row| of(&ips, row.downstream_direct_remote.0)));
            rows.direct_port.extend(some.iter().map(|row| row.downstream_direct_remote.1));
            rows.remote_ip.extend(some.iter().map(|row| of(&ips, row.downstream_remote.0)));
            rows.remote_port.extend(some.iter().map(|row| row.downstream_remote.1));
            rows.upstream_local_port.extend(some.iter().map(|row| row.upstream_local_port));
            rows.path.extend(some.iter().map(|row| of(&texts, row.path)));
            let uuids = &mut self.uuids;
            rows.uuid.extend(some.iter().map(|row| match &row.request_id {
                LogId::Uuid(uuid) => uuids.place(uuid),
                _ => 0,
            }));
            rows.id_text.extend(some.iter().map(|row| match row.request_id {
                LogId::Text(place) => of(&texts, place),
                _ => 0,
            }));
            rows.stream_same.extend(some.iter().map(|row| u8::from(row.stream_id == LogStreamId::Same)));
            rows.stream_text.extend(some.iter().map(|row| match row.stream_id {
                LogStreamId::Text(place) => of(&texts, place),
                _ => 0,
            }));
            rows.tags.extend(some.iter().map(|row| match row.tags.number() {
                0 => 0,
                n => first_tags.saturating_add(n),
            }));
        }
    }

    /// The place of a value's JSON among the texts.
    fn json(&mut self, value: &impl serde::Serialize) -> u32 {
        let text = serde_json::to_string(value).expect("a value without maps or floats has a JSON text");
        self.texts.place(&text.into())
    }

    /// Forgets all rows, and what they shared.
    pub(crate) fn clear(&mut self) {
        self.texts.clear();
        self.ips.clear();
        self.flags.clear();
        self.kinds.clear();
        self.sizes.clear();
        self.uuids.clear();
        self.tags.clear();
        self.rows.clear();
    }
}

#[cfg(test)]
mod tests;
