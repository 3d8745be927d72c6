//! Column chunks: a page of values, and where it helps one with their dictionary, compressed.

use super::pack;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::writer::{SerializedPageWriter, SerializedRowGroupWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

/// zstd's level: higher ones take several times as long and save a few percent.
const LEVEL: i32 = 1;

/// The values of a column, encoded.
pub(super) struct Values {
    /// Plain values of the dictionary and how many they are; none without one.
    pub(super) dictionary: Option<(Vec<u8>, u32)>,
    /// Levels and values.
    pub(super) data: Bytes,
    /// Columns of one table that have the same number here have the same levels and values, which are compressed once.
    pub(super) shared: Option<usize>,
    /// How the values are encoded.
    pub(super) encoding: Encoding,
    /// How many levels there are: one for each row and for each further item of a list.
    pub(super) levels: usize,
    /// Whether compressing is worth a try.
    pub(super) compress: bool,
}

/// Which row a level is of, and whether there is a value.
pub(super) enum Levels<'a> {
    /// The same for all.
    All(bool),
    /// For each: 1 where there is a value.
    Each(&'a [u32]),
}

impl Levels<'_> {
    /// Appends them as a data page of the first version has them.
    pub(super) fn append(&self, rows: usize, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend([0; 4]);
        match self {
            Self::All(there) => pack::run(u32::from(*there), rows, 1, out),
            Self::Each(levels) => pack::hybrid(levels, 1, out),
        }
        let len = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// Writes column chunks; keeps the compressor's memory.
pub(super) struct Chunks {
    zstd: zstd::bulk::Compressor<'static>,
    /// Data that several columns have, compressed.
    shared: Vec<Option<Bytes>>,
}

impl Chunks {
    pub(super) fn new() -> Result<Self> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(external)?;
        Ok(Self { zstd, shared: Vec::new() })
    }

    /// Forgets what columns of the last table shared.
    pub(super) fn begin(&mut self) {
        self.shared.clear();
    }

    /// Appends the next column to a row group.
    pub(super) fn append(
        &mut self,
        group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
        column: ColumnDescPtr,
        rows: usize,
        values: Values,
    ) -> Result<()> {
        let Values { dictionary, data, shared, encoding, levels, compress } = values;
        let raw = data.len() + dictionary.as_ref().map_or(0, |(plain, _)| plain.len());
        let compressed =
            if compress { Some(self.compress(dictionary.as_ref().map(|d| &*d.0), &data, shared)?) } else { None };
        // A reader has to undo it: a few percent are not worth that.
        let compressed = compressed.filter(|(d, v)| d.as_ref().map_or(0, Vec::len) + v.len() < raw - raw / 16);
        let codec = match compressed {
            Some(_) => Compression::ZSTD(ZstdLevel::try_new(LEVEL)?),
            None => Compression::UNCOMPRESSED,
        };
        let (plain_len, data_len) = (dictionary.as_ref().map_or(0, |d| d.0.len()), data.len());
        let count = dictionary.as_ref().map_or(0, |d| d.1);
        let (dictionary, data) = compressed.unwrap_or_else(|| (dictionary.map(|d| d.0), data));

        let mut chunk = TrackedWrite::new(Vec::with_capacity(raw / 2 + 128));
        let mut pages = SerializedPageWriter::new(&mut chunk);
        let (mut uncompressed, mut dictionary_at) = (0, None);
        if let Some(plain) = dictionary {
            let page = Page::DictionaryPage {
                buf: plain.into(),
                num_values: count,
                encoding: Encoding::PLAIN,
                is_sorted: false,
            };
            let spec = pages.write_page(CompressedPage::new(page, plain_len))?;
            uncompressed += spec.uncompressed_size;
            dictionary_at = Some(offset(spec.offset)?);
        }
        let page = Page::DataPage {
            buf: data,
            num_values: u32::try_from(levels).map_err(external)?,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let spec = pages.write_page(CompressedPage::new(page, data_len))?;
        uncompressed += spec.uncompressed_size;
        let bytes = chunk.into_inner()?;
        let mut encodings = vec![encoding, Encoding::RLE];
        if dictionary_at.is_some() {
            encodings.push(Encoding::PLAIN);
        }
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(codec)
            .set_encodings(encodings)
            .set_total_compressed_size(offset(bytes.len() as u64)?)
            .set_total_uncompressed_size(offset(uncompressed as u64)?)
            .set_num_values(offset(levels as u64)?)
            .set_data_page_offset(offset(spec.offset)?)
            .set_dictionary_page_offset(dictionary_at)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        group.append_column(&Bytes::from(bytes), close)
    }

    fn compress(
        &mut self,
        dictionary: Option<&[u8]>,
        data: &[u8],
        shared: Option<usize>,
    ) -> Result<(Option<Vec<u8>>, Bytes)> {
        let dictionary = dictionary.map(|plain| self.zstd.compress(plain)).transpose().map_err(external)?;
        if let Some(known) = shared.and_then(|n| self.shared.get(n)?.clone()) {
            return Ok((dictionary, known));
        }
        let data = Bytes::from(self.zstd.compress(data).map_err(external)?);
        if let Some(n) = shared {
            self.shared.resize(self.shared.len().max(n + 1), None);
            self.shared[n] = Some(data.clone());
        }
        Ok((dictionary, data))
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(external)
}
