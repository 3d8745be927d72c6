//! One part: rows to Parquet and back.

use crate::SCHEMA_VERSION;
use crate::column::{Column, schema_of};
use crate::damage::PartError;
use crate::quiet;
use crate::tables::{Decoded, Row};
use crate::view::{Interner, View};
use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use std::fs;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;

/// The footer's key for the length and CRC-32 of everything before the footer. Parquet's own page checksums are not
/// written by the parquet crate, and without any a flipped bit in a number would be read as another number.
pub(crate) const CHECKSUM_KEY: &str = "meshdiff.body_crc32";
const MAGIC: &[u8] = b"PAR1";
/// Bounds on what a footer may claim, far beyond what the writer makes, so that a damaged or hostile one cannot ask
/// for all memory.
const MAX_FILE_BYTES: u64 = 1 << 30;
const MAX_ROWS: i64 = 1 << 24;
const MAX_UNCOMPRESSED_BYTES: i64 = 4 << 30;
const BATCH_ROWS: usize = 8192;

/// Turns rows of one table into parts.
pub(crate) struct Encoder<R> {
    columns: Vec<Column<R>>,
    schema: SchemaRef,
    properties: WriterProperties,
}

impl<R: Row> Encoder<R> {
    pub(crate) fn new() -> Self {
        let columns = R::columns();
        let schema = schema_of(&columns);
        let tag = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: Some(value.to_owned()) };
        let mut properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_created_by(format!("meshdiff {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            // Parts are small: an index of their pages would be larger than what it saves.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_key_value_metadata(Some(vec![
                tag("meshdiff.schema", SCHEMA_VERSION),
                tag("meshdiff.table", R::TABLE.as_str()),
            ]));
        for leaf in columns.iter().flat_map(Column::delta_leaves) {
            let path = ColumnPath::new(leaf);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        Self { columns, schema, properties: properties.build() }
    }

    /// The rows as a Parquet file.
    pub(crate) fn encode(&self, rows: &[R]) -> Result<Vec<u8>, ParquetError> {
        let arrays = self.columns.iter().map(|c| c.encode(rows)).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), arrays)?;
        // What columns mean is said by the first part, which has no rows: elsewhere it would be larger than what a quiet second brings.
        let options = ArrowWriterOptions::new()
            .with_properties(self.properties.clone())
            .with_skip_arrow_metadata(!rows.is_empty());
        let mut writer = ArrowWriter::try_new_with_options(Vec::new(), self.schema.clone(), options)?;
        writer.write(&batch)?;
        writer.flush()?;
        writer.sync().map_err(|e| ParquetError::External(Box::new(e)))?;
        let body = writer.inner();
        let checksum = format!("{}:{:08x}", body.len(), crc32fast::hash(body));
        writer.append_key_value_metadata(KeyValue { key: CHECKSUM_KEY.to_owned(), value: Some(checksum) });
        writer.into_inner()
    }
}

/// Reads the rows of a part from a file's bytes.
pub(crate) fn decode<R: Row>(bytes: Bytes, strings: &Interner) -> Result<Decoded<R>, PartError> {
    decode_with(bytes, strings, true)
}

fn decode_with<R: Row>(bytes: Bytes, strings: &Interner, verify: bool) -> Result<Decoded<R>, PartError> {
    // Nothing is left in a broken state: the interner only ever grows by whole texts, and everything else is dropped.
    guarded(&bytes, || decode_trusting(bytes.clone(), strings, verify))
}

/// Reads a part as it is, whatever its columns are.
pub(crate) fn decode_batches(bytes: Bytes) -> Result<Vec<RecordBatch>, PartError> {
    guarded(&bytes, || open_trusting(bytes.clone(), true)?.map(|batch| batch.map_err(|e| corrupt(&e))).collect())
}

/// Looks at both ends of a file, and lives through a reader that panics.
fn guarded<T>(bytes: &Bytes, read: impl FnOnce() -> Result<T, PartError>) -> Result<T, PartError> {
    if !bytes.starts_with(MAGIC) {
        return Err(if MAGIC.starts_with(bytes) {
            PartError::Truncated
        } else {
            PartError::Corrupt("it does not begin like one".to_owned())
        });
    }
    if bytes.len() < 12 || !bytes.ends_with(MAGIC) {
        return Err(PartError::Truncated);
    }
    quiet::catch(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(PartError::Corrupt(format!("the Parquet reader failed: {panic}"))))
}

fn corrupt(error: &dyn std::fmt::Display) -> PartError {
    PartError::Corrupt(error.to_string())
}

/// May panic on damaged files, and so may the reader.
fn open_trusting(bytes: Bytes, verify: bool) -> Result<ParquetRecordBatchReader, PartError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|e| corrupt(&e))?;
    if verify {
        verify_checksum(builder.metadata(), &bytes)?;
    }
    check_claims(builder.metadata())?;
    builder.with_batch_size(BATCH_ROWS).build().map_err(|e| corrupt(&e))
}

/// May panic on damaged files.
fn decode_trusting<R: Row>(bytes: Bytes, strings: &Interner, verify: bool) -> Result<Decoded<R>, PartError> {
    let reader = open_trusting(bytes, verify)?;
    // A file without rows yields no batch, but must have the columns all the same.
    let mut all = R::decode(&View(&RecordBatch::new_empty(reader.schema())), strings)?;
    for batch in reader {
        let batch = batch.map_err(|e| corrupt(&e))?;
        let more = R::decode(&View(&batch), strings)?;
        all.rows.extend(more.rows);
        all.rejected += more.rejected;
        all.first_rejected = all.first_rejected.or(more.first_rejected);
    }
    Ok(all)
}

/// A row of which only some columns are read.
pub(crate) trait Outlined: Sized {
    /// These.
    const COLUMNS: &[&str];
    /// Reads the rows of a batch.
    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError>;
}

/// Reads some columns of a part, and of other columns (by their paths) the least value in any of them, as the file's own statistics have
/// it: `None` if there is no value, 0 if nothing tells.
pub(crate) fn outline<R: Outlined>(
    bytes: Bytes,
    strings: &Interner,
    least_of: &[&str],
) -> Result<(Vec<R>, Option<i64>), PartError> {
    guarded(&bytes, || outline_trusting(bytes.clone(), strings, least_of))
}

/// May panic on damaged files.
fn outline_trusting<R: Outlined>(
    bytes: Bytes,
    strings: &Interner,
    least_of: &[&str],
) -> Result<(Vec<R>, Option<i64>), PartError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|e| corrupt(&e))?;
    verify_checksum(builder.metadata(), &bytes)?;
    check_claims(builder.metadata())?;
    let least = least(builder.metadata(), least_of);
    let columns = ProjectionMask::columns(builder.parquet_schema(), R::COLUMNS.iter().copied());
    let reader = builder.with_projection(columns).with_batch_size(BATCH_ROWS).build().map_err(|e| corrupt(&e))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|e| corrupt(&e))?;
        rows.extend(R::decode(&View(&batch), strings)?.rows);
    }
    Ok((rows, least))
}

fn least(metadata: &ParquetMetaData, columns: &[&str]) -> Option<i64> {
    let mut least: Option<i64> = None;
    for group in metadata.row_groups() {
        for column in group.columns().iter().filter(|c| columns.contains(&c.column_path().string().as_str())) {
            match column.statistics() {
                Some(Statistics::Int64(values)) => {
                    least = [least, values.min_opt().copied()].into_iter().flatten().min();
                }
                _ if column.num_values() > 0 => return Some(0),
                _ => {}
            }
        }
    }
    least
}

/// A part's bytes.
pub(crate) fn read_file(path: &Path) -> Result<Bytes, PartError> {
    let io = |e: io::Error| PartError::Io(e.to_string());
    let found = fs::metadata(path).map_err(io)?;
    if !found.is_file() {
        return Err(PartError::Io("it is not a file".to_owned()));
    }
    if found.len() > MAX_FILE_BYTES {
        return Err(PartError::TooLarge(format!("{} bytes", found.len())));
    }
    fs::read(path).map(Bytes::from).map_err(io)
}

/// A file without a checksum was rewritten by another tool, which is allowed.
fn verify_checksum(metadata: &ParquetMetaData, bytes: &[u8]) -> Result<(), PartError> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let Some(pair) = pairs.into_iter().flatten().find(|pair| pair.key == CHECKSUM_KEY) else { return Ok(()) };
    let expected = pair
        .value
        .as_deref()
        .and_then(|v| v.split_once(':'))
        .and_then(|(len, crc)| Some((len.parse::<usize>().ok()?, u32::from_str_radix(crc, 16).ok()?)));
    let (len, crc) = expected.ok_or(PartError::Checksum)?;
    let body = bytes.get(..len).ok_or(PartError::Checksum)?;
    if crc32fast::hash(body) == crc { Ok(()) } else { Err(PartError::Checksum) }
}

fn check_claims(metadata: &ParquetMetaData) -> Result<(), PartError> {
    let rows = metadata.file_metadata().num_rows();
    if !(0..=MAX_ROWS).contains(&rows) {
        return Err(PartError::TooLarge(format!("{rows} rows")));
    }
    let mut uncompressed = 0_i64;
    for group in metadata.row_groups() {
        if !(0..=MAX_ROWS).contains(&group.num_rows()) {
            return Err(PartError::TooLarge(format!("{} rows", group.num_rows())));
        }
        for column in group.columns() {
            let size = column.uncompressed_size();
            uncompressed = uncompressed.saturating_add(size.max(0));
            if size < 0 || uncompressed > MAX_UNCOMPRESSED_BYTES {
                return Err(PartError::TooLarge(format!("{size} bytes in a column")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use meshdiff_model::{
        Content, Direction, Instants, Message, MonotonicNs, NetnsId, Process, ProcessRole, SeqInstant, SeqNo, SeqRange,
        SocketCookie, Tgid,
    };
    use proptest::prelude::*;

    fn messages(n: u32) -> Vec<Message> {
        let instant = |i: u32| SeqInstant { seq: SeqNo(i), at: MonotonicNs(1_000_000 + u64::from(i) * 17) };
        (0..n)
            .map(|i| Message {
                socket: SocketCookie(u64::from(i % 7)),
                direction: if i % 2 == 0 { Direction::Egress } else { Direction::Ingress },
                seq: SeqRange::of(SeqNo(i * 100), 100),
                sends: if i % 2 == 0 { vec![instant(i)] } else { vec![] }.into(),
                readies: if i % 2 == 0 { vec![] } else { vec![instant(i), instant(i + 1)] }.into(),
                recvs: if i % 2 == 0 { vec![] } else { vec![instant(i + 2)] }.into(),
                held: Instants::new(),
                retransmits: Instants::new(),
                elided: 0,
                gap_before: i % 5 == 0,
                content: match i % 4 {
                    0 => Content::Http1Request { method: "GET".into(), path: format!("/p/{i}").into() },
                    2 => Content::Http1Response { status: 200 },
                    _ => Content::Unknown,
                },
                head_end: (i % 4 == 0).then_some(SeqNo(i * 100 + 80)),
            })
            .collect()
    }

    fn read(bytes: &[u8], verify: bool) -> Result<Vec<Message>, PartError> {
        decode_with::<Message>(Bytes::copy_from_slice(bytes), &Interner::default(), verify).map(|d| d.rows)
    }

    #[test]
    fn every_length_but_the_whole_is_called_cut_short_or_corrupt() {
        let whole = Encoder::new().encode(&messages(20)).expect("encodes");
        assert_eq!(read(&whole, true), Ok(messages(20)));
        for len in 0..whole.len() {
            let result = read(&whole[..len], true);
            assert!(matches!(result, Err(PartError::Truncated | PartError::Corrupt(_))), "{len}: {result:?}");
        }
        assert_eq!(read(&whole[..whole.len() - 1], true), Err(PartError::Truncated));
    }

    #[test]
    fn a_flipped_bit_in_the_data_is_found() {
        let rows = messages(200);
        let whole = Encoder::new().encode(&rows).expect("encodes");
        let footer = u32::from_le_bytes(whole[whole.len() - 8..whole.len() - 4].try_into().expect("4 bytes"));
        let body = whole.len() - 8 - usize::try_from(footer).expect("fits");
        for position in (4..body).step_by(7) {
            let mut bytes = whole.clone();
            bytes[position] ^= 1 << (position % 8);
            assert_eq!(read(&bytes, true), Err(PartError::Checksum), "at {position}");
        }
    }

    #[test]
    fn a_part_of_another_table_is_refused_by_column() {
        let process = Process {
            tgid: Tgid(1),
            netns: NetnsId(2),
            comm: "envoy".into(),
            exe: None,
            uid: Some(1337),
            cgroup: None,
            role: ProcessRole::Sidecar,
        };
        let bytes = Encoder::<Process>::new().encode(&[process]).expect("encodes");
        assert_eq!(read(&bytes, true), Err(PartError::MissingColumn { column: "cookie" }));
        assert_eq!(<Process as Row>::TABLE, Table::Processes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Also with the checksum left aside, so that the decoder itself meets the damage.
        #[test]
        fn damage_never_panics(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            near_the_end in any::<bool>(),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            static WHOLE: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| Encoder::new().encode(&messages(50)).expect("encodes"));
            let mut bytes = WHOLE.clone();
            let from = if near_the_end { bytes.len() - 2_000 } else { 0 };
            for (index, value) in flips {
                let at = from + index.index(bytes.len() - from);
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                // Keeps the footer, so that its offsets point beside the data.
                let at = cut.index(bytes.len() / 2);
                bytes.drain(4..at.max(4));
            }
            let _ = read(&bytes, false);
            let _ = read(&bytes, true);
        }

        #[test]
        fn noise_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
            if framed {
                bytes.splice(0..0, *b"PAR1");
                let len = u32::try_from(bytes.len() / 2).expect("small").to_le_bytes();
                bytes.extend(len);
                bytes.extend(*b"PAR1");
            }
            prop_assert!(read(&bytes, true).is_err());
        }
    }
}
