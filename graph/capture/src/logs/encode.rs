//! The columns of access logs as Parquet.

use super::chunk::{Levels, Values};
use super::set::Map;
use super::{LogTable, pack};
use crate::SCHEMA_VERSION;
use crate::names::Named;
use crate::part::CHECKSUM_KEY;
use crate::table::Table;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use meshdiff_model::{HopTags, LogKind, LogSizes, Place, PlacedAddr};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Encoding, LogicalType, Type as Physical};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesPtr, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor, Type, TypePtr};
use std::net::IpAddr;
use std::sync::Arc;

/// What all parts have in common.
pub(super) struct Format {
    root: TypePtr,
    columns: Vec<ColumnDescPtr>,
    /// Of the first part, which has no rows: it also has what the columns mean.
    first: WriterPropertiesPtr,
    /// Of the others.
    properties: WriterPropertiesPtr,
}

impl Format {
    pub(super) fn new(schema: &SchemaRef) -> Result<Self> {
        let converted = ArrowSchemaConverter::new().convert(schema)?;
        let fields = converted.root_schema().get_fields().iter().map(|field| match field.name() {
            // Arrow has no word for it that reaches Parquet without another feature of its library.
            name @ "request_uuid" => {
                let uuid = Type::primitive_type_builder(name, Physical::FIXED_LEN_BYTE_ARRAY)
                    .with_repetition(field.get_basic_info().repetition())
                    .with_logical_type(Some(LogicalType::Uuid))
                    .with_length(16);
                uuid.build().map(Arc::new)
            }
            _ => Ok(Arc::clone(field)),
        });
        let root = Type::group_type_builder("arrow_schema").with_fields(fields.collect::<Result<_>>()?).build()?;
        let root = Arc::new(root);
        let tag = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: Some(value.to_owned()) };
        let properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_created_by(format!("meshdiff {}", env!("CARGO_PKG_VERSION")))
            .set_offset_index_disabled(true)
            .set_key_value_metadata(Some(vec![
                tag("meshdiff.schema", SCHEMA_VERSION),
                tag("meshdiff.table", Table::AccessLogs.as_str()),
            ]))
            .build();
        let columns = SchemaDescriptor::new(Arc::clone(&root)).columns().to_vec();
        let mut first = properties.clone();
        add_encoded_arrow_schema_to_metadata(schema, &mut first);
        Ok(Self { root, columns, first: Arc::new(first), properties: Arc::new(properties) })
    }
}

impl LogTable {
    /// The rows as a Parquet file, in order of their start.
    pub(crate) fn encode(&mut self) -> Result<Vec<u8>> {
        let rows = self.len();
        self.rows.sort(&mut self.scratch);
        let format = &self.format;
        let properties = if rows == 0 { &format.first } else { &format.properties };
        let mut file = SerializedFileWriter::new(Vec::new(), Arc::clone(&format.root), Arc::clone(properties))?;
        self.pages.get_mut().known.clear();
        self.chunks.begin();
        if rows > 0 {
            let mut group = file.next_row_group()?;
            for column in self.format.columns.clone() {
                let values = self.values(&column)?;
                self.chunks.append(&mut group, column, rows, values)?;
            }
            group.close()?;
        }
        file.flush().map_err(|e| ParquetError::External(Box::new(e)))?;
        let body = file.inner();
        let checksum = format!("{}:{:08x}", body.len(), crc32fast::hash(body));
        file.append_key_value_metadata(KeyValue { key: CHECKSUM_KEY.to_owned(), value: Some(checksum) });
        file.into_inner()
    }

    /// One column.
    fn values(&self, column: &ColumnDescPtr) -> Result<Values> {
        let name = column.path().parts().first().map_or("", String::as_str);
        let rows = &self.rows;
        let required = column.max_def_level() == 0;
        Ok(match name {
            "node" => self.text(required, |k| k.node),
            "side" => self.word(required, |k| k.side),
            "protocol" => self.word(required, |k| Some(k.protocol)),
            "access_log_type" => self.word(required, |k| Some(k.access_log_type)),
            "start_time_ns" => delta(required, rows.start.len(), None, &rows.start, true),
            "time_to_last_rx_byte_ns" => self.span(0),
            "time_to_first_upstream_tx_byte_ns" => self.span(1),
            "time_to_last_upstream_tx_byte_ns" => self.span(2),
            "time_to_first_upstream_rx_byte_ns" => self.span(3),
            "time_to_last_upstream_rx_byte_ns" => self.span(4),
            "time_to_first_downstream_tx_byte_ns" => self.span(5),
            "time_to_last_downstream_tx_byte_ns" => self.span(6),
            "duration_ns" => self.span(7),
            "downstream_direct_remote_ip" => self.ip_of_rows(required, &rows.direct_ip),
            "downstream_direct_remote_port" => ports(required, &rows.direct_port, |n| rows.direct_ip[n] > 0),
            "downstream_remote_ip" => self.ip_of_rows(required, &rows.remote_ip),
            "downstream_remote_port" => ports(required, &rows.remote_port, |n| rows.remote_ip[n] > 0),
            "downstream_local_ip" => self.ip(required, |k| k.downstream_local.0),
            "downstream_local_port" => self.port(required, |k| k.downstream_local),
            "upstream_local_ip" => self.ip(required, |k| k.upstream_local_ip),
            "upstream_local_port" => ports(required, &rows.upstream_local_port, |n| {
                self.kinds.list()[rows.kind[n] as usize].upstream_local_ip != Place::NONE
            }),
            "upstream_remote_ip" => self.ip(required, |k| k.upstream_remote.0),
            "upstream_remote_port" => self.port(required, |k| k.upstream_remote),
            "upstream_cluster" => self.text(required, |k| k.upstream_cluster),
            "route_name" => self.text(required, |k| k.route_name),
            "upstream_request_attempt_count" => self.kind_number(required, |k| k.attempts.map(u64::from), 4),
            "response_flags" => self.response_flags(),
            "request_id" => self.text_of_rows(required, &rows.id_text),
            "request_uuid" => self.uuids(required),
            "stream_id" => self.text_of_rows(required, &rows.stream_text),
            "stream_id_is_request_id" => flags(rows.stream_same.iter().map(|same| *same > 0)),
            "method" => self.text(required, |k| k.method),
            "authority" => self.text(required, |k| k.authority),
            "path" => self.text_of_rows(required, &rows.path),
            "response_code" => self.kind_number(required, |k| k.response_code.map(u64::from), 4),
            "response_code_details" => self.text(required, |k| k.response_code_details),
            "request_body_bytes" => self.size(required, |s| Some(s.request_body)),
            "response_body_bytes" => self.size(required, |s| Some(s.response_body)),
            "tls_sni_hostname" => self.text(required, |k| k.tls_sni_hostname),
            "downstream_tls" => flags(rows.kind.iter().map(|kind| self.kinds.list()[*kind as usize].downstream_tls)),
            "downstream_wire_bytes_sent" => self.count(required, 0),
            "downstream_wire_bytes_received" => self.count(required, 1),
            "upstream_wire_bytes_sent" => self.count(required, 2),
            "upstream_wire_bytes_received" => self.count(required, 3),
            "downstream_header_bytes_sent" => self.count(required, 4),
            "downstream_header_bytes_received" => self.count(required, 5),
            "upstream_header_bytes_sent" => self.count(required, 6),
            "upstream_header_bytes_received" => self.count(required, 7),
            "request_headers_bytes" => self.count(required, 8),
            "response_headers_bytes" => self.count(required, 9),
            "tls" => self.text(required, |k| k.tls),
            "downstream_peer" => self.text(required, |k| k.downstream_peer),
            "upstream_peer" => self.text(required, |k| k.upstream_peer),
            "connection_id" => self.tag(required, |t| t.connection_id.map(u64::cast_signed)),
            "upstream_connection_id" => self.tag(required, |t| t.upstream_connection_id.map(u64::cast_signed)),
            "upstream_connect_ns" => self.tag(required, |t| t.upstream_connect.map(|d| d.0)),
            "upstream_handshake_ns" => self.tag(required, |t| t.upstream_handshake.map(|d| d.0)),
            "upstream_connected_after_ns" => self.tag(required, |t| t.upstream_connected_after.map(|d| d.0)),
            "upstream_ready_after_ns" => self.tag(required, |t| t.upstream_ready_after.map(|d| d.0)),
            "upstream_protocol" => self.upstream_protocol(required),
            "upstream_transport_failure_reason" => self.text(required, |k| k.failure[0]),
            "downstream_transport_failure_reason" => self.text(required, |k| k.failure[1]),
            "connection_termination_details" => self.text(required, |k| k.failure[2]),
            other => return Err(ParquetError::General(format!("no rows of access logs have a column {other:?}"))),
        })
    }

    fn span(&self, n: usize) -> Values {
        let (spans, present) = (&self.rows.spans[n], &self.rows.present);
        let bit = 1 << n;
        if present.iter().all(|bits| bits & bit != 0) {
            return delta(false, spans.len(), None, spans, false);
        }
        let levels: Vec<u32> = present.iter().map(|bits| u32::from(bits & bit != 0)).collect();
        let there: Vec<i64> =
            spans.iter().zip(present).filter(|(_, bits)| **bits & bit != 0).map(|(v, _)| *v).collect();
        delta(false, spans.len(), Some(&levels), &there, false)
    }

    /// A text that depends on the kind.
    fn text(&self, required: bool, get: impl Fn(&LogKind) -> Place) -> Values {
        let texts = self.texts.list();
        self.of_kind(
            required,
            |k| Some(get(k)).filter(|p| *p != Place::NONE),
            |place, out| {
                plain_text(place.of(texts).map_or("", |t| t), out);
            },
        )
    }

    /// A name out of few.
    fn word<N: Named>(&self, required: bool, get: impl Fn(&LogKind) -> Option<N>) -> Values {
        self.of_kind(required, |k| get(k).map(|n| n.name()), plain_text)
    }

    fn ip(&self, required: bool, get: impl Fn(&LogKind) -> Place) -> Values {
        let ips = self.ips.list();
        self.of_kind(
            required,
            |k| Some(get(k)).filter(|p| *p != Place::NONE),
            |place, out| {
                plain_ip(place.of(ips), out);
            },
        )
    }

    fn port(&self, required: bool, get: impl Fn(&LogKind) -> PlacedAddr) -> Values {
        self.kind_number(
            required,
            |k| Some(get(k)).filter(|(ip, _)| *ip != Place::NONE).map(|(_, port)| port.into()),
            4,
        )
    }

    /// A number that depends on the kind, of so many bytes.
    fn kind_number(&self, required: bool, get: impl Fn(&LogKind) -> Option<u64>, bytes: usize) -> Values {
        self.of_kind(required, get, |number, out| out.extend_from_slice(&number.to_le_bytes()[..bytes]))
    }

    fn of_kind<T: Copy + Eq + std::hash::Hash>(
        &self,
        required: bool,
        get: impl Fn(&LogKind) -> Option<T>,
        plain: impl Fn(T, &mut Vec<u8>),
    ) -> Values {
        let kinds = self.kinds.list();
        self.dictionary_of(required, kinds.iter().map(get), Of::Kinds, plain)
    }

    fn size(&self, required: bool, get: impl Fn(&LogSizes) -> Option<u64>) -> Values {
        let sizes = self.sizes.list();
        let plain = |size: u64, out: &mut Vec<u8>| out.extend_from_slice(&size.to_le_bytes());
        self.dictionary_of(required, sizes.iter().map(get), Of::Sizes, plain)
    }

    fn count(&self, required: bool, n: usize) -> Values {
        self.size(required, |s| Some(s.counts[n]).filter(|count| *count > 0))
    }

    fn text_of_rows(&self, required: bool, places: &[u32]) -> Values {
        let texts = self.texts.list();
        dictionary(required, places, texts.len(), |n, out| plain_text(&texts[n], out))
    }

    fn ip_of_rows(&self, required: bool, places: &[u32]) -> Values {
        let ips = self.ips.list();
        dictionary(required, places, ips.len(), |n, out| plain_ip(Some(&ips[n]), out))
    }

    fn uuids(&self, required: bool) -> Values {
        let uuids = self.uuids.list();
        let rows = &self.rows.uuid;
        let there = rows.iter().filter(|n| **n > 0).count();
        let bits = u32::try_from(uuids.len()).map_or(u32::BITS, pack::width) as usize;
        // Where each id comes once, pointing to it costs more than it saves.
        if there > 0 && (there - uuids.len()) * 16 < there * bits / 8 {
            let mut data = Vec::with_capacity(there * 16 + rows.len() / 8 + 64);
            let levels: Vec<u32> = rows.iter().map(|n| u32::from(*n > 0)).collect();
            Levels::Each(&levels).append(rows.len(), &mut data);
            rows.iter().filter(|n| **n > 0).for_each(|n| data.extend_from_slice(&uuids[*n as usize - 1]));
            return Values {
                dictionary: None,
                data: data.into(),
                shared: None,
                encoding: Encoding::PLAIN,
                levels: rows.len(),
                compress: false,
            };
        }
        let values = dictionary(required, rows, uuids.len(), |n, out| out.extend_from_slice(&uuids[n]));
        // Random numbers: only what points to them could be made smaller.
        Values { compress: false, ..values }
    }

    fn tag(&self, required: bool, get: impl Fn(&HopTags) -> Option<i64>) -> Values {
        let rows = self.rows.tags.len();
        if self.tags.is_empty() {
            return absent(rows);
        }
        let each = || self.rows.tags.iter().map(|n| self.tags.get((*n as usize).wrapping_sub(1)).and_then(&get));
        let levels: Vec<u32> = each().map(|value| u32::from(value.is_some())).collect();
        let values: Vec<i64> = each().flatten().collect();
        delta(required, rows, Some(&levels), &values, true)
    }

    fn upstream_protocol(&self, required: bool) -> Values {
        if self.tags.is_empty() {
            return absent(self.rows.tags.len());
        }
        // Number 0 is for rows without tags.
        let names = std::iter::once(None).chain(self.tags.iter().map(|t| t.upstream_protocol.map(|p| p.name())));
        self.dictionary_of(required, names, Of::Tags, plain_text)
    }

    /// A list in each row.
    fn response_flags(&self) -> Values {
        let (kinds, rows) = (self.kinds.list(), &self.rows.kind);
        let mut data = Vec::new();
        if kinds.iter().all(|kind| kind.flags == Place::NONE) {
            // Repetition levels, then definition levels: a list without items each.
            Levels::All(false).append(rows.len(), &mut data);
            Levels::All(false).append(rows.len(), &mut data);
            return Values {
                dictionary: None,
                data: data.into(),
                shared: None,
                encoding: Encoding::PLAIN,
                levels: rows.len(),
                compress: false,
            };
        }
        let (mut known, mut plain) = (Map::default(), Vec::new());
        let (mut repeated, mut defined, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for kind in rows {
            let list = kinds[*kind as usize].flags.of(self.flags.list());
            let Some(list) = list.filter(|list| !list.is_empty()) else {
                repeated.push(0);
                defined.push(0);
                continue;
            };
            for (n, flag) in list.iter().enumerate() {
                repeated.push(u32::from(n > 0));
                defined.push(1);
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                indices.push(*known.entry(&**flag).or_insert_with(|| {
                    plain_text(flag, &mut plain);
                    next
                }));
            }
        }
        Levels::Each(&repeated).append(0, &mut data);
        Levels::Each(&defined).append(0, &mut data);
        let count = u32::try_from(known.len()).unwrap_or(u32::MAX);
        append_indices(&indices, count, &mut data);
        let levels = repeated.len();
        Values {
            dictionary: Some((plain, count)),
            data: data.into(),
            shared: None,
            encoding: Encoding::RLE_DICTIONARY,
            levels,
            compress: true,
        }
    }

    /// The column of what rows point to: `values[of[row]]`.
    fn dictionary_of<T: Copy + Eq + std::hash::Hash>(
        &self,
        required: bool,
        values: impl Iterator<Item = Option<T>>,
        of: Of,
        plain: impl Fn(T, &mut Vec<u8>),
    ) -> Values {
        let rows = match of {
            Of::Kinds => &self.rows.kind,
            Of::Sizes => &self.rows.sizes,
            Of::Tags => &self.rows.tags,
        };
        let mut known: Map<T, u32> = Map::default();
        let mut distinct = Vec::new();
        let numbers: Vec<u32> = values
            .map(|value| {
                let Some(value) = value else { return 0 };
                *known.entry(value).or_insert_with(|| {
                    distinct.push(value);
                    u32::try_from(distinct.len()).unwrap_or(u32::MAX)
                })
            })
            .collect();
        // All alike: no row need be looked at.
        if let [first, rest @ ..] = &numbers[..]
            && rest.iter().all(|n| n == first)
        {
            return match distinct.first() {
                Some(value) => {
                    let mut bytes = Vec::new();
                    plain(*value, &mut bytes);
                    constant(required, rows.len(), bytes)
                }
                None => absent(rows.len()),
            };
        }
        let mut bytes = Vec::new();
        distinct.iter().for_each(|value| plain(*value, &mut bytes));
        let count = u32::try_from(distinct.len()).unwrap_or(u32::MAX);
        let (shared, data) = self.pages.borrow_mut().page(of, required, numbers, rows);
        Values {
            dictionary: Some((bytes, count)),
            data,
            shared: Some(shared),
            encoding: Encoding::RLE_DICTIONARY,
            levels: rows.len(),
            compress: true,
        }
    }
}

/// What a column depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Kinds,
    Sizes,
    Tags,
}

/// Data pages of columns that depend on the same of their rows. Where two of them tell the same rows apart (the cluster and the
/// authority, mostly), only their dictionaries differ.
#[derive(Default)]
pub(super) struct Pages {
    known: Vec<Page>,
    indices: Vec<u32>,
}

struct Page {
    of: Of,
    required: bool,
    /// For each value that a row can point to its number in the dictionary, from 1; 0 is none.
    numbers: Vec<u32>,
    data: Bytes,
}

impl Pages {
    /// A page and its number.
    fn page(&mut self, of: Of, required: bool, numbers: Vec<u32>, rows: &[u32]) -> (usize, Bytes) {
        let same = |page: &Page| page.of == of && page.required == required && page.numbers == numbers;
        if let Some(known) = self.known.iter().position(same) {
            return (known, self.known[known].data.clone());
        }
        let mut data = Vec::with_capacity(rows.len() * 2 + 64);
        let indices = &mut self.indices;
        indices.clear();
        if numbers.contains(&0) {
            indices.extend(rows.iter().map(|n| u32::from(numbers[*n as usize] > 0)));
            Levels::Each(indices).append(rows.len(), &mut data);
            indices.clear();
            indices.extend(rows.iter().filter_map(|n| numbers[*n as usize].checked_sub(1)));
        } else {
            if !required {
                Levels::All(true).append(rows.len(), &mut data);
            }
            indices.extend(rows.iter().map(|n| numbers[*n as usize] - 1));
        }
        let count = numbers.iter().max().copied().unwrap_or_default();
        append_indices(indices, count, &mut data);
        let data = Bytes::from(data);
        self.known.push(Page { of, required, numbers, data: data.clone() });
        (self.known.len() - 1, data)
    }
}

fn plain_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn plain_ip(ip: Option<&IpAddr>, out: &mut Vec<u8>) {
    plain_text(&ip.map(IpAddr::to_string).unwrap_or_default(), out);
}

/// A column without a value.
fn absent(rows: usize) -> Values {
    let mut data = Vec::new();
    Levels::All(false).append(rows, &mut data);
    Values {
        dictionary: None,
        data: data.into(),
        shared: None,
        encoding: Encoding::PLAIN,
        levels: rows,
        compress: false,
    }
}

/// Numbers as differences, those of `levels` that are there.
fn delta(required: bool, rows: usize, levels: Option<&[u32]>, values: &[i64], compress: bool) -> Values {
    if values.is_empty() && !required {
        return absent(rows);
    }
    let mut data = Vec::with_capacity(values.len() * 3 + 64);
    if !required {
        levels.map_or(Levels::All(true), Levels::Each).append(rows, &mut data);
    }
    pack::delta(values, &mut data);
    Values {
        dictionary: None,
        data: data.into(),
        shared: None,
        encoding: Encoding::DELTA_BINARY_PACKED,
        levels: rows,
        compress,
    }
}

fn flags(values: impl ExactSizeIterator<Item = bool>) -> Values {
    let rows = values.len();
    let mut data = vec![0; rows.div_ceil(8)];
    values.enumerate().filter(|(_, set)| *set).for_each(|(n, _)| data[n / 8] |= 1 << (n % 8));
    Values {
        dictionary: None,
        data: data.into(),
        shared: None,
        encoding: Encoding::PLAIN,
        levels: rows,
        compress: true,
    }
}

fn ports(required: bool, ports: &[u16], there: impl Fn(usize) -> bool) -> Values {
    let numbers: Vec<u32> = (0..ports.len()).map(|n| if there(n) { u32::from(ports[n]) + 1 } else { 0 }).collect();
    dictionary(required, &numbers, 1 << 16, |port, out| {
        out.extend_from_slice(&u32::try_from(port).unwrap_or_default().to_le_bytes());
    })
}

/// The same value in each row.
fn constant(required: bool, rows: usize, plain: Vec<u8>) -> Values {
    let mut data = Vec::new();
    if !required {
        Levels::All(true).append(rows, &mut data);
    }
    data.push(0);
    pack::run(0, rows, 0, &mut data);
    Values {
        dictionary: Some((plain, 1)),
        data: data.into(),
        shared: None,
        encoding: Encoding::RLE_DICTIONARY,
        levels: rows,
        compress: false,
    }
}

/// Values by their number from 1 (0: none) among so many that could be; those that occur become the dictionary.
fn dictionary(required: bool, places: &[u32], possible: usize, plain: impl Fn(usize, &mut Vec<u8>)) -> Values {
    let rows = places.len();
    let (mut index, mut count, mut bytes) = (vec![0_u32; possible + 1], 0, Vec::new());
    let mut indices = Vec::with_capacity(rows);
    for place in places {
        if *place > 0 {
            let known = &mut index[*place as usize];
            if *known == 0 {
                plain(*place as usize - 1, &mut bytes);
                count += 1;
                *known = count;
            }
            indices.push(*known - 1);
        }
    }
    if indices.is_empty() && !required {
        return absent(rows);
    }
    let mut data = Vec::with_capacity(rows * 2 + 64);
    if !required {
        if indices.len() == rows {
            Levels::All(true).append(rows, &mut data);
        } else {
            let levels: Vec<u32> = places.iter().map(|place| u32::from(*place > 0)).collect();
            Levels::Each(&levels).append(rows, &mut data);
        }
    }
    append_indices(&indices, count, &mut data);
    Values {
        dictionary: Some((bytes, count)),
        data: data.into(),
        shared: None,
        encoding: Encoding::RLE_DICTIONARY,
        levels: rows,
        compress: true,
    }
}

fn append_indices(indices: &[u32], count: u32, data: &mut Vec<u8>) {
    let width = pack::width(count.saturating_sub(1));
    data.push(width.to_le_bytes()[0]);
    pack::hybrid(indices, width, data);
}
