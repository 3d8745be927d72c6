//! One column of a table: its name, type, unit and meaning, how it is taken from a row, and how Parquet packs it.
//! Schema, documentation and encoder all come from this one list, so they cannot disagree.

use crate::names::Named;
use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeBinaryBuilder, ListBuilder, MapBuilder, MapFieldNames, PrimitiveArray,
    StringArray, StringBuilder, StructArray, UInt32Builder, UInt64Builder,
};
use arrow::array::{ArrowPrimitiveType, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Int16Type, Int64Type, Schema, SchemaRef, UInt16Type, UInt32Type, UInt64Type,
};
use meshdiff_model::{Http2Data, SeqInstant};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// A column as the documentation shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDoc {
    /// Its name.
    pub name: &'static str,
    /// Its type, in Arrow's words; a `?` at the end says that it may be null.
    pub type_name: String,
    /// Its unit, or nothing.
    pub unit: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// How Parquet packs a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Differences of neighbours (`DELTA_BINARY_PACKED`): times and sequence numbers.
    Delta,
    /// A dictionary of the values that occur: texts, addresses, identities.
    Dictionary,
}

type Encode<R> = Box<dyn Fn(&[R]) -> ArrayRef + Send + Sync>;

pub(crate) struct Column<R> {
    pub(crate) name: &'static str,
    data_type: DataType,
    nullable: bool,
    unit: &'static str,
    meaning: &'static str,
    packing: Packing,
    encode: Encode<R>,
}

impl<R> Column<R> {
    fn new(name: &'static str, data_type: DataType, nullable: bool, packing: Packing, encode: Encode<R>) -> Self {
        Self { name, data_type, nullable, unit: "", meaning: "", packing, encode }
    }
    /// Says what it means.
    pub(crate) fn doc(mut self, meaning: &'static str) -> Self {
        self.meaning = meaning;
        self
    }
    /// Says its unit.
    pub(crate) fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
    /// Packs numbers as differences.
    pub(crate) fn delta(mut self) -> Self {
        self.packing = Packing::Delta;
        self
    }
    pub(crate) fn encode(&self, rows: &[R]) -> ArrayRef {
        (self.encode)(rows)
    }
    pub(crate) fn field(&self) -> Field {
        let mut metadata = HashMap::from([("meaning".to_owned(), self.meaning.to_owned())]);
        if !self.unit.is_empty() {
            metadata.insert("unit".to_owned(), self.unit.to_owned());
        }
        Field::new(self.name, self.data_type.clone(), self.nullable).with_metadata(metadata)
    }
    pub(crate) fn describe(&self) -> ColumnDoc {
        let type_name = format!("{}{}", type_name(&self.data_type), if self.nullable { "?" } else { "" });
        ColumnDoc { name: self.name, type_name, unit: self.unit, meaning: self.meaning }
    }
    /// The Parquet leaves that are to be packed as differences.
    pub(crate) fn delta_leaves(&self) -> Vec<Vec<String>> {
        let path = |parts: &[&str]| parts.iter().map(|&p| p.to_owned()).collect();
        match (&self.data_type, self.packing) {
            (_, Packing::Dictionary) => vec![],
            (DataType::List(_), Packing::Delta) => {
                vec![path(&[self.name, "list", "element", "seq"]), path(&[self.name, "list", "element", "at_ns"])]
            }
            (_, Packing::Delta) => vec![path(&[self.name])],
        }
    }
}

/// The Arrow schema of a table's columns.
pub(crate) fn schema_of<R>(columns: &[Column<R>]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(Column::field).collect::<Vec<_>>()))
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let parts: Vec<_> = fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type()))).collect();
            format!("struct<{}>", parts.join(", "))
        }
        DataType::Map(_, _) => "map<utf8, utf8>".to_owned(),
        DataType::FixedSizeBinary(16) => "uuid".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

fn number<R, T: ArrowPrimitiveType>(
    name: &'static str,
    get: impl Fn(&R) -> T::Native + Send + Sync + 'static,
) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(PrimitiveArray::<T>::from_iter_values(rows.iter().map(&get))) as ArrayRef;
    Column::new(name, T::DATA_TYPE, false, Packing::Dictionary, Box::new(encode))
}

fn opt_number<R, T: ArrowPrimitiveType>(
    name: &'static str,
    get: impl Fn(&R) -> Option<T::Native> + Send + Sync + 'static,
) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(rows.iter().map(&get).collect::<PrimitiveArray<T>>()) as ArrayRef;
    Column::new(name, T::DATA_TYPE, true, Packing::Dictionary, Box::new(encode))
}

pub(crate) fn u64<R>(name: &'static str, get: impl Fn(&R) -> u64 + Send + Sync + 'static) -> Column<R> {
    number::<R, UInt64Type>(name, get)
}
pub(crate) fn opt_u64<R>(name: &'static str, get: impl Fn(&R) -> Option<u64> + Send + Sync + 'static) -> Column<R> {
    opt_number::<R, UInt64Type>(name, get)
}
pub(crate) fn i64<R>(name: &'static str, get: impl Fn(&R) -> i64 + Send + Sync + 'static) -> Column<R> {
    number::<R, Int64Type>(name, get)
}
pub(crate) fn opt_i64<R>(name: &'static str, get: impl Fn(&R) -> Option<i64> + Send + Sync + 'static) -> Column<R> {
    opt_number::<R, Int64Type>(name, get)
}
pub(crate) fn u32<R>(name: &'static str, get: impl Fn(&R) -> u32 + Send + Sync + 'static) -> Column<R> {
    number::<R, UInt32Type>(name, get)
}
pub(crate) fn opt_u32<R>(name: &'static str, get: impl Fn(&R) -> Option<u32> + Send + Sync + 'static) -> Column<R> {
    opt_number::<R, UInt32Type>(name, get)
}
pub(crate) fn u16<R>(name: &'static str, get: impl Fn(&R) -> u16 + Send + Sync + 'static) -> Column<R> {
    number::<R, UInt16Type>(name, get)
}
pub(crate) fn opt_u16<R>(name: &'static str, get: impl Fn(&R) -> Option<u16> + Send + Sync + 'static) -> Column<R> {
    opt_number::<R, UInt16Type>(name, get)
}

pub(crate) fn flag<R>(name: &'static str, get: impl Fn(&R) -> bool + Send + Sync + 'static) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(rows.iter().map(|r| Some(get(r))).collect::<BooleanArray>()) as ArrayRef;
    Column::new(name, DataType::Boolean, false, Packing::Dictionary, Box::new(encode))
}

pub(crate) fn opt_flag<R>(name: &'static str, get: impl Fn(&R) -> Option<bool> + Send + Sync + 'static) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(rows.iter().map(&get).collect::<BooleanArray>()) as ArrayRef;
    Column::new(name, DataType::Boolean, true, Packing::Dictionary, Box::new(encode))
}

pub(crate) fn text<R>(name: &'static str, get: impl Fn(&R) -> &str + Send + Sync + 'static) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(StringArray::from_iter_values(rows.iter().map(&get))) as ArrayRef;
    Column::new(name, DataType::Utf8, false, Packing::Dictionary, Box::new(encode))
}
pub(crate) fn opt_text<R>(name: &'static str, get: impl Fn(&R) -> Option<&str> + Send + Sync + 'static) -> Column<R> {
    let encode = move |rows: &[R]| Arc::new(rows.iter().map(&get).collect::<StringArray>()) as ArrayRef;
    Column::new(name, DataType::Utf8, true, Packing::Dictionary, Box::new(encode))
}

/// Values of several parts that recur, as JSON text: a dictionary keeps each of them once.
///
/// Rows share one copy of such a value, so the text of the one before mostly stands for the next as well.
pub(crate) fn opt_json<R, T: Serialize>(
    name: &'static str,
    get: impl Fn(&R) -> Option<&Arc<T>> + Send + Sync + 'static,
) -> Column<R> {
    let encode = move |rows: &[R]| {
        let mut texts = StringBuilder::new();
        let mut last: Option<(*const T, String)> = None;
        for row in rows {
            let Some(value) = get(row) else {
                texts.append_null();
                continue;
            };
            if last.as_ref().is_none_or(|(same, _)| !std::ptr::eq(*same, Arc::as_ptr(value))) {
                let text = serde_json::to_string(&**value).expect("a value without maps or floats has a JSON text");
                last = Some((Arc::as_ptr(value), text));
            }
            texts.append_option(last.as_ref().map(|(_, text)| text));
        }
        Arc::new(texts.finish()) as ArrayRef
    };
    Column::new(name, DataType::Utf8, true, Packing::Dictionary, Box::new(encode))
}

pub(crate) fn named<R, N: Named>(name: &'static str, get: impl Fn(&R) -> N + Send + Sync + 'static) -> Column<R> {
    let encode =
        move |rows: &[R]| Arc::new(StringArray::from_iter_values(rows.iter().map(|r| get(r).name()))) as ArrayRef;
    Column::new(name, DataType::Utf8, false, Packing::Dictionary, Box::new(encode))
}
pub(crate) fn opt_named<R, N: Named>(
    name: &'static str,
    get: impl Fn(&R) -> Option<N> + Send + Sync + 'static,
) -> Column<R> {
    let encode =
        move |rows: &[R]| Arc::new(rows.iter().map(|r| get(r).map(|n| n.name())).collect::<StringArray>()) as ArrayRef;
    Column::new(name, DataType::Utf8, true, Packing::Dictionary, Box::new(encode))
}

/// A UUID, as its 16 bytes.
pub(crate) fn opt_uuid<R>(
    name: &'static str,
    get: impl Fn(&R) -> Option<[u8; 16]> + Send + Sync + 'static,
) -> Column<R> {
    const BYTES: i32 = 16;
    let encode = move |rows: &[R]| {
        let mut builder = FixedSizeBinaryBuilder::with_capacity(rows.len(), BYTES);
        for row in rows {
            match get(row) {
                Some(uuid) => builder.append_value(uuid).expect("as many bytes as the column's values have"),
                None => builder.append_null(),
            }
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    Column::new(name, DataType::FixedSizeBinary(BYTES), true, Packing::Dictionary, Box::new(encode))
}

/// An IP address as text, which every tool can show and compare; the dictionary makes it as small as a number.
pub(crate) fn ip<R>(name: &'static str, get: impl Fn(&R) -> IpAddr + Send + Sync + 'static) -> Column<R> {
    let encode =
        move |rows: &[R]| Arc::new(rows.iter().map(|r| Some(get(r).to_string())).collect::<StringArray>()) as ArrayRef;
    Column::new(name, DataType::Utf8, false, Packing::Dictionary, Box::new(encode))
}
pub(crate) fn opt_ip<R>(name: &'static str, get: impl Fn(&R) -> Option<IpAddr> + Send + Sync + 'static) -> Column<R> {
    let encode = move |rows: &[R]| {
        Arc::new(rows.iter().map(|r| get(r).map(|ip| ip.to_string())).collect::<StringArray>()) as ArrayRef
    };
    Column::new(name, DataType::Utf8, true, Packing::Dictionary, Box::new(encode))
}

/// The name that Parquet's own specification gives to a list's items, so that paths are the same in every tool.
const ELEMENT: &str = "element";

pub(crate) fn texts<R>(
    name: &'static str,
    each: impl Fn(&R, &mut dyn FnMut(&str)) + Send + Sync + 'static,
) -> Column<R> {
    let item: FieldRef = Arc::new(Field::new(ELEMENT, DataType::Utf8, false));
    let data_type = DataType::List(Arc::clone(&item));
    let encode = move |rows: &[R]| {
        let mut builder = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(&item));
        for row in rows {
            each(row, &mut |text| builder.values().append_value(text));
            builder.append(true);
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    Column::new(name, data_type, false, Packing::Dictionary, Box::new(encode))
}

fn instant_fields() -> Fields {
    Fields::from(vec![
        Field::new("seq", DataType::UInt32, false),
        Field::new("at_ns", DataType::UInt64, false)
            .with_metadata(HashMap::from([("unit".to_owned(), "ns".to_owned())])),
    ])
}

pub(crate) fn instants<R>(
    name: &'static str,
    get: impl for<'a> Fn(&'a R) -> &'a [SeqInstant] + Send + Sync + 'static,
) -> Column<R> {
    let item: FieldRef = Arc::new(Field::new(ELEMENT, DataType::Struct(instant_fields()), false));
    let data_type = DataType::List(Arc::clone(&item));
    let encode = move |rows: &[R]| {
        let (mut seq, mut at) = (UInt32Builder::new(), UInt64Builder::new());
        for instant in rows.iter().flat_map(&get) {
            seq.append_value(instant.seq.0);
            at.append_value(instant.at.0);
        }
        let items = StructArray::new(instant_fields(), vec![Arc::new(seq.finish()), Arc::new(at.finish())], None);
        let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| get(r).len()));
        Arc::new(ListArray::new(Arc::clone(&item), offsets, Arc::new(items), None)) as ArrayRef
    };
    Column::new(name, data_type, false, Packing::Delta, Box::new(encode))
}

fn data_run_fields() -> Fields {
    let ns = HashMap::from([("unit".to_owned(), "ns".to_owned())]);
    Fields::from(vec![
        Field::new("seq", DataType::UInt32, false),
        Field::new("at_ns", DataType::UInt64, false).with_metadata(ns),
        Field::new("end_seq", DataType::UInt32, false),
        Field::new("bytes", DataType::UInt64, false),
        Field::new("frames", DataType::UInt32, false),
    ])
}

pub(crate) fn data_runs<R>(
    name: &'static str,
    get: impl for<'a> Fn(&'a R) -> &'a [Http2Data] + Send + Sync + 'static,
) -> Column<R> {
    let item: FieldRef = Arc::new(Field::new(ELEMENT, DataType::Struct(data_run_fields()), false));
    let data_type = DataType::List(Arc::clone(&item));
    let encode = move |rows: &[R]| {
        let (mut seq, mut at, mut end) = (UInt32Builder::new(), UInt64Builder::new(), UInt32Builder::new());
        let (mut bytes, mut frames) = (UInt64Builder::new(), UInt32Builder::new());
        for run in rows.iter().flat_map(&get) {
            seq.append_value(run.first.seq.0);
            at.append_value(run.first.at.0);
            end.append_value(run.end.0);
            bytes.append_value(run.bytes);
            frames.append_value(run.frames);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(seq.finish()),
            Arc::new(at.finish()),
            Arc::new(end.finish()),
            Arc::new(bytes.finish()),
            Arc::new(frames.finish()),
        ];
        let items = StructArray::new(data_run_fields(), columns, None);
        let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| get(r).len()));
        Arc::new(ListArray::new(Arc::clone(&item), offsets, Arc::new(items), None)) as ArrayRef
    };
    Column::new(name, data_type, false, Packing::Delta, Box::new(encode))
}

pub(crate) fn labels<R>(
    name: &'static str,
    get: impl Fn(&R) -> &BTreeMap<String, String> + Send + Sync + 'static,
) -> Column<R> {
    let entries =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, false)]);
    let data_type = DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries), false)), false);
    let encode = move |rows: &[R]| {
        let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
        let mut builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
            .with_values_field(Field::new("value", DataType::Utf8, false));
        for row in rows {
            for (key, value) in get(row) {
                builder.keys().append_value(key);
                builder.values().append_value(value);
            }
            builder.append(true).expect("a map's builder has as many keys as values, because both are appended above");
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    Column::new(name, data_type, false, Packing::Dictionary, Box::new(encode))
}

fn count_fields(key: &'static str, key_type: DataType) -> Fields {
    Fields::from(vec![Field::new(key, key_type, false), Field::new("count", DataType::UInt64, false)])
}

/// How often each of some things: `keys` makes the column of what they are.
fn counts<R, K: 'static>(
    name: &'static str,
    fields: Fields,
    get: impl for<'a> Fn(&'a R) -> Vec<(K, u64)> + Send + Sync + 'static,
    keys: impl Fn(Vec<K>) -> ArrayRef + Send + Sync + 'static,
) -> Column<R> {
    let item: FieldRef = Arc::new(Field::new(ELEMENT, DataType::Struct(fields.clone()), false));
    let data_type = DataType::List(Arc::clone(&item));
    let encode = move |rows: &[R]| {
        let lists: Vec<_> = rows.iter().map(&get).collect();
        let offsets = OffsetBuffer::from_lengths(lists.iter().map(Vec::len));
        let (each, counts): (Vec<K>, Vec<u64>) = lists.into_iter().flatten().unzip();
        let counts = Arc::new(PrimitiveArray::<UInt64Type>::from(counts)) as ArrayRef;
        let items = StructArray::new(fields.clone(), vec![keys(each), counts], None);
        Arc::new(ListArray::new(Arc::clone(&item), offsets, Arc::new(items), None)) as ArrayRef
    };
    Column::new(name, data_type, false, Packing::Dictionary, Box::new(encode))
}

/// A histogram's buckets.
pub(crate) fn counts_by_index<R>(
    name: &'static str,
    get: impl Fn(&R) -> Vec<(i16, u64)> + Send + Sync + 'static,
) -> Column<R> {
    let keys = |keys: Vec<i16>| Arc::new(PrimitiveArray::<Int16Type>::from(keys)) as ArrayRef;
    counts(name, count_fields("index", DataType::Int16), get, keys)
}

pub(crate) fn counts_by_text<R>(
    name: &'static str,
    get: impl Fn(&R) -> Vec<(&str, u64)> + Send + Sync + 'static,
) -> Column<R> {
    let owned = move |row: &R| get(row).into_iter().map(|(text, n)| (text.to_owned(), n)).collect();
    let keys = |keys: Vec<String>| Arc::new(StringArray::from(keys)) as ArrayRef;
    counts(name, count_fields("reason", DataType::Utf8), owned, keys)
}
