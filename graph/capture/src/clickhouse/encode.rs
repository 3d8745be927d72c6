//! A capture as the store takes it: each table's parts with the key's columns, in Parquet bodies of a bounded size.

use super::error::StoreError;
use super::requests::{self, JoinedRequests, REQUESTS};
use super::schema::KEY;
use super::select::STORED;
use crate::meta::Meta;
use crate::part;
use crate::reader::{Capture, CaptureState};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// A body is closed when it has this many rows, or was made of parts of this many bytes.
const MOST_ROWS: usize = 200_000;
const MOST_BYTES: u64 = 16 << 20;
/// Requests of one body: each is some 2 KB before it is compressed.
const MOST_REQUESTS: usize = 20_000;

/// What is inserted at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Insert {
    /// The name of a table of the capture's, or of the store's own.
    pub(crate) table: String,
    /// Which of the capture's inserts it is: with the capture's name it says what was inserted, so that a server can tell the same again.
    pub(crate) number: u32,
    pub(crate) columns: Vec<String>,
}

impl Insert {
    pub(crate) fn sql(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|c| quoted(c)).collect();
        format!("INSERT INTO {} ({}) FORMAT Parquet", quoted(&self.table), columns.join(", "))
    }
}

/// A name as a statement holds it.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// The row of `captures`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CaptureRow {
    pub(crate) capture_id: String,
    pub(crate) capture_node: String,
    pub(crate) segment: i64,
    pub(crate) end_ns: i64,
    pub(crate) boot_id: String,
    pub(crate) rows: BTreeMap<String, u64>,
    /// `meta.json` as a text: the store has no business with what is in it.
    pub(crate) meta: String,
    pub(crate) warnings: Vec<String>,
    /// The captures with which its requests were joined, itself among them; empty if they were not.
    #[serde(default)]
    pub(crate) joined: Vec<String>,
}

impl CaptureRow {
    fn of(capture: &Capture, node: Option<&str>) -> Result<Self, StoreError> {
        let meta = capture.meta();
        let end = meta.end.or_else(|| meta.clock.samples().last().copied()).unwrap_or(meta.start);
        Ok(Self {
            capture_id: capture_id(meta),
            capture_node: node.unwrap_or(&meta.host.hostname).to_owned(),
            segment: meta.start.wall.0,
            end_ns: end.wall.0.max(meta.start.wall.0),
            boot_id: meta.host.boot_id.clone(),
            rows: BTreeMap::new(),
            meta: serde_json::to_string(meta).map_err(|e| StoreError::encode(super::schema::CAPTURES, e))?,
            warnings: Vec::new(),
            joined: Vec::new(),
        })
    }
}

/// A capture's name in stores: the same for the same recording, whoever stores it how often.
#[must_use]
pub fn capture_id(meta: &Meta) -> String {
    let mut hash = Sha256::new();
    for part in [&meta.host.boot_id, &meta.host.hostname] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(meta.start.monotonic.0.to_le_bytes());
    hash.update(meta.start.wall.0.to_le_bytes());
    hash.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Turns a capture into bodies, each handed to `take` as soon as it is made. Single events stay where they are.
///
/// # Errors
/// If the capture is still being recorded, if it cannot be read, or if `take` fails.
pub(crate) fn encode(
    capture: &Capture,
    node: Option<&str>,
    requests: Option<&JoinedRequests>,
    mut take: impl FnMut(Insert, Vec<u8>) -> Result<(), StoreError>,
) -> Result<CaptureRow, StoreError> {
    if capture.state() == CaptureState::InProgress {
        return Err(StoreError::StillRecording(capture.dir().to_owned()));
    }
    let mut row = CaptureRow::of(capture, node)?;
    let mut number = 0;
    for table in STORED {
        let (parts, mut damage) = capture.parts_of(table)?;
        let mut body: Option<Body> = None;
        for (index, path) in parts.into_iter().enumerate() {
            let read = part::read_file(&path).and_then(|b| Ok((part::decode_batches(b.clone())?, b.len() as u64)));
            let (batches, size) = match read {
                Ok(read) => read,
                Err(reason) => {
                    damage.parts.push(crate::damage::DamagedPart { table, path, reason });
                    continue;
                }
            };
            let mut first = 0;
            for batch in batches {
                let batch = keyed(&row, index, first, &batch).map_err(|e| StoreError::encode(table, e))?;
                first += batch.num_rows();
                if body.as_ref().is_some_and(|b| b.is_full() || b.schema != batch.schema())
                    && let Some(full) = body.take()
                {
                    full.close(table.as_str(), &mut number, &mut take)?;
                }
                if batch.num_rows() == 0 {
                    continue;
                }
                *row.rows.entry(table.as_str().to_owned()).or_default() += batch.num_rows() as u64;
                let open = match body.take() {
                    Some(open) => open,
                    None => Body::new(batch.schema()).map_err(|e| StoreError::encode(table, e))?,
                };
                body = Some(open.with(&batch).map_err(|e| StoreError::encode(table, e))?);
            }
            if let Some(body) = &mut body {
                body.bytes += size;
            }
        }
        if let Some(last) = body {
            last.close(table.as_str(), &mut number, &mut take)?;
        }
        row.warnings.extend(damage.warnings());
    }
    if let Some(joined) = requests {
        for (index, rows) in joined.rows.chunks(MOST_REQUESTS).enumerate() {
            let bad = |e: Box<dyn std::error::Error>| StoreError::encode(REQUESTS, e);
            let batch = requests::batch(&row.boot_id, rows).map_err(|e| bad(e.into()))?;
            let batch = keyed(&row, index, 0, &batch).map_err(bad)?;
            let body = Body::new(batch.schema()).and_then(|b| b.with(&batch)).map_err(|e| bad(e.into()))?;
            body.close(REQUESTS, &mut number, &mut take)?;
        }
        row.rows.insert(REQUESTS.to_owned(), joined.rows.len() as u64);
        row.joined.clone_from(&joined.with);
    }
    Ok(row)
}

/// A batch with the key's columns before its own.
fn keyed(
    row: &CaptureRow,
    part: usize,
    first: usize,
    batch: &RecordBatch,
) -> Result<RecordBatch, Box<dyn std::error::Error>> {
    let n = batch.num_rows();
    let rows = u32::try_from(first)?..u32::try_from(first + n)?;
    let key: [ArrayRef; KEY.len()] = [
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&row.capture_id, n))),
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&row.capture_node, n))),
        Arc::new(Int64Array::from_value(row.segment, n)),
        Arc::new(UInt32Array::from_value(u32::try_from(part)?, n)),
        Arc::new(UInt32Array::from_iter_values(rows)),
    ];
    let types = [DataType::Utf8, DataType::Utf8, DataType::Int64, DataType::UInt32, DataType::UInt32];
    let mut fields: Vec<Arc<Field>> =
        KEY.iter().zip(types).map(|((name, _, _), kind)| Arc::new(Field::new(*name, kind, false))).collect();
    fields.extend(batch.schema().fields().iter().cloned());
    let mut columns = key.to_vec();
    columns.extend(batch.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// A body in the making.
struct Body {
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    rows: usize,
    bytes: u64,
}

impl Body {
    fn new(schema: SchemaRef) -> Result<Self, parquet::errors::ParquetError> {
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
        Ok(Self { schema, writer, rows: 0, bytes: 0 })
    }

    fn is_full(&self) -> bool {
        self.rows >= MOST_ROWS || self.bytes >= MOST_BYTES
    }

    fn with(mut self, batch: &RecordBatch) -> Result<Self, parquet::errors::ParquetError> {
        self.writer.write(batch)?;
        self.rows += batch.num_rows();
        Ok(self)
    }

    fn close(
        self,
        table: &str,
        number: &mut u32,
        take: &mut impl FnMut(Insert, Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let columns = self.schema.fields().iter().map(|f| f.name().clone()).collect();
        let bytes = self.writer.into_inner().map_err(|e| StoreError::encode(table, e))?;
        let insert = Insert { table: table.to_owned(), number: *number, columns };
        *number += 1;
        take(insert, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_has_one_name() {
        let mut meta = Meta::default();
        meta.host.boot_id = "b".into();
        let name = capture_id(&meta);
        assert_eq!(name.len(), 32);
        assert_eq!(capture_id(&meta), name);
        meta.warnings.push("said later".into());
        assert_eq!(capture_id(&meta), name);
        meta.start.monotonic.0 += 1;
        assert_ne!(capture_id(&meta), name);
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(quoted("a`b\\"), "`a\\`b\\\\`");
    }
}
