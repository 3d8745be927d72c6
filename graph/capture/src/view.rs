//! Typed views of the columns of a batch that was read. A file comes from outside: a column may be missing, have another
//! type, or hold a null or a text that means nothing, and each of these is an error with a name.

use crate::damage::PartError;
use crate::names::Named;
use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, FixedSizeBinaryArray, ListArray, MapArray,
    PrimitiveArray, RecordBatch, StringArray,
};
use arrow::datatypes::{Int16Type, UInt32Type, UInt64Type};
use meshdiff_model::{Http2Data, MonotonicNs, SeqInstant, SeqNo};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One value of one row that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadCell {
    pub(crate) column: &'static str,
}

/// Texts that recur (paths, clusters, methods) are kept once for the whole capture.
#[derive(Default)]
pub(crate) struct Interner(RefCell<HashSet<Arc<str>>>);

impl Interner {
    pub(crate) fn get(&self, text: &str) -> Arc<str> {
        let mut known = self.0.borrow_mut();
        if let Some(found) = known.get(text) {
            return Arc::clone(found);
        }
        let new: Arc<str> = text.into();
        known.insert(Arc::clone(&new));
        new
    }
}

/// The columns of one batch.
pub(crate) struct View<'a>(pub(crate) &'a RecordBatch);

impl<'a> View<'a> {
    pub(crate) fn rows(&self) -> usize {
        self.0.num_rows()
    }
    /// False for a column that captures did not have from the beginning.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.column_by_name(name).is_some()
    }
    fn column<T: Array + 'static>(&self, name: &'static str) -> Result<&'a T, PartError> {
        let column = self.0.column_by_name(name).ok_or(PartError::MissingColumn { column: name })?;
        column
            .as_any()
            .downcast_ref::<T>()
            .ok_or_else(|| PartError::WrongType { column: name, found: column.data_type().to_string() })
    }
    pub(crate) fn number<T: ArrowPrimitiveType>(&self, name: &'static str) -> Result<Numbers<'a, T>, PartError> {
        Ok(Numbers { name, array: self.column(name)? })
    }
    pub(crate) fn flag(&self, name: &'static str) -> Result<Flags<'a>, PartError> {
        Ok(Flags { name, array: self.column(name)? })
    }
    pub(crate) fn text(&self, name: &'static str) -> Result<Texts<'a>, PartError> {
        Ok(Texts { name, array: self.column(name)? })
    }
    pub(crate) fn uuid(&self, name: &'static str) -> Result<Uuids<'a>, PartError> {
        let array: &FixedSizeBinaryArray = self.column(name)?;
        if array.value_length() != 16 {
            return Err(PartError::WrongType { column: name, found: array.data_type().to_string() });
        }
        Ok(Uuids { array })
    }
    pub(crate) fn addr(&self, ip: &'static str, port: &'static str) -> Result<Addrs<'a>, PartError> {
        Ok(Addrs { ip: self.text(ip)?, port: self.number(port)? })
    }
    pub(crate) fn text_list(&self, name: &'static str) -> Result<TextLists<'a>, PartError> {
        let list: &ListArray = self.column(name)?;
        let items = list
            .values()
            .as_string_opt::<i32>()
            .ok_or_else(|| PartError::WrongType { column: name, found: list.data_type().to_string() })?;
        Ok(TextLists { name, list, items })
    }
    pub(crate) fn labels(&self, name: &'static str) -> Result<Labels<'a>, PartError> {
        let map: &MapArray = self.column(name)?;
        let wrong = || PartError::WrongType { column: name, found: map.data_type().to_string() };
        let keys = map.keys().as_string_opt::<i32>().ok_or_else(wrong)?;
        let values = map.values().as_string_opt::<i32>().ok_or_else(wrong)?;
        Ok(Labels { name, map, keys, values })
    }
    fn counts(&self, name: &'static str, key: &str) -> Result<(Counts<'a>, &'a ArrayRef), PartError> {
        let list: &ListArray = self.column(name)?;
        let wrong = || PartError::WrongType { column: name, found: list.data_type().to_string() };
        let items = list.values().as_struct_opt().ok_or_else(wrong)?;
        let keys = items.column_by_name(key).ok_or_else(wrong)?;
        let counts =
            items.column_by_name("count").and_then(|c| c.as_primitive_opt::<UInt64Type>()).ok_or_else(wrong)?;
        Ok((Counts { name, list, counts }, keys))
    }
    pub(crate) fn index_counts(&self, name: &'static str) -> Result<IndexCounts<'a>, PartError> {
        let (counts, keys) = self.counts(name, "index")?;
        let wrong = || PartError::WrongType { column: name, found: keys.data_type().to_string() };
        Ok(IndexCounts { counts, keys: keys.as_primitive_opt::<Int16Type>().ok_or_else(wrong)? })
    }
    pub(crate) fn text_counts(&self, name: &'static str) -> Result<TextCounts<'a>, PartError> {
        let (counts, keys) = self.counts(name, "reason")?;
        let wrong = || PartError::WrongType { column: name, found: keys.data_type().to_string() };
        Ok(TextCounts { counts, keys: keys.as_string_opt::<i32>().ok_or_else(wrong)? })
    }
    pub(crate) fn instants(&self, name: &'static str) -> Result<Instants<'a>, PartError> {
        let list: &ListArray = self.column(name)?;
        let wrong = || PartError::WrongType { column: name, found: list.data_type().to_string() };
        let items = list.values().as_struct_opt().ok_or_else(wrong)?;
        let seq = items.column_by_name("seq").and_then(|c| c.as_primitive_opt::<UInt32Type>()).ok_or_else(wrong)?;
        let at = items.column_by_name("at_ns").and_then(|c| c.as_primitive_opt::<UInt64Type>()).ok_or_else(wrong)?;
        Ok(Instants { name, list, seq, at })
    }
    pub(crate) fn data_runs(&self, name: &'static str) -> Result<DataRuns<'a>, PartError> {
        let first = self.instants(name)?;
        let list: &ListArray = self.column(name)?;
        let wrong = || PartError::WrongType { column: name, found: list.data_type().to_string() };
        let items = list.values().as_struct_opt().ok_or_else(wrong)?;
        let end = items.column_by_name("end_seq").and_then(|c| c.as_primitive_opt::<UInt32Type>());
        let bytes = items.column_by_name("bytes").and_then(|c| c.as_primitive_opt::<UInt64Type>());
        let frames = items.column_by_name("frames").and_then(|c| c.as_primitive_opt::<UInt32Type>());
        let (end, bytes, frames) = (end.ok_or_else(wrong)?, bytes.ok_or_else(wrong)?, frames.ok_or_else(wrong)?);
        Ok(DataRuns { first, end, bytes, frames })
    }
}

pub(crate) struct Numbers<'a, T: ArrowPrimitiveType> {
    name: &'static str,
    array: &'a PrimitiveArray<T>,
}

impl<T: ArrowPrimitiveType> Numbers<'_, T> {
    pub(crate) fn opt(&self, row: usize) -> Option<T::Native> {
        (!self.array.is_null(row)).then(|| self.array.value(row))
    }
    pub(crate) fn get(&self, row: usize) -> Result<T::Native, BadCell> {
        self.opt(row).ok_or(BadCell { column: self.name })
    }
}

pub(crate) struct Flags<'a> {
    name: &'static str,
    array: &'a BooleanArray,
}

impl Flags<'_> {
    pub(crate) fn opt(&self, row: usize) -> Option<bool> {
        (!self.array.is_null(row)).then(|| self.array.value(row))
    }
    pub(crate) fn get(&self, row: usize) -> Result<bool, BadCell> {
        if self.array.is_null(row) { Err(BadCell { column: self.name }) } else { Ok(self.array.value(row)) }
    }
}

pub(crate) struct Texts<'a> {
    name: &'static str,
    array: &'a StringArray,
}

impl<'a> Texts<'a> {
    pub(crate) fn opt(&self, row: usize) -> Option<&'a str> {
        (!self.array.is_null(row)).then(|| self.array.value(row))
    }
    pub(crate) fn get(&self, row: usize) -> Result<&'a str, BadCell> {
        self.opt(row).ok_or(self.bad())
    }
    pub(crate) fn bad(&self) -> BadCell {
        BadCell { column: self.name }
    }
    pub(crate) fn string(&self, row: usize) -> Option<String> {
        self.opt(row).map(str::to_owned)
    }
    pub(crate) fn named<N: Named>(&self, row: usize) -> Result<N, BadCell> {
        N::from_name(self.get(row)?).ok_or(self.bad())
    }
    pub(crate) fn opt_named<N: Named>(&self, row: usize) -> Result<Option<N>, BadCell> {
        self.opt(row).map(|t| N::from_name(t).ok_or(self.bad())).transpose()
    }
    pub(crate) fn opt_ip(&self, row: usize) -> Result<Option<IpAddr>, BadCell> {
        self.opt(row).map(|t| t.parse().map_err(|_| self.bad())).transpose()
    }
}

pub(crate) struct Uuids<'a> {
    array: &'a FixedSizeBinaryArray,
}

impl Uuids<'_> {
    pub(crate) fn opt(&self, row: usize) -> Option<[u8; 16]> {
        if self.array.is_null(row) { None } else { self.array.value(row).try_into().ok() }
    }
}

pub(crate) struct Addrs<'a> {
    ip: Texts<'a>,
    port: Numbers<'a, arrow::datatypes::UInt16Type>,
}

impl Addrs<'_> {
    pub(crate) fn opt(&self, row: usize) -> Result<Option<SocketAddr>, BadCell> {
        let Some(ip) = self.ip.opt_ip(row)? else { return Ok(None) };
        Ok(Some(SocketAddr::new(ip, self.port.get(row)?)))
    }
    pub(crate) fn get(&self, row: usize) -> Result<SocketAddr, BadCell> {
        self.opt(row)?.ok_or(self.ip.bad())
    }
}

/// The range of a list's items; `None` where the list itself is null or points outside its items.
fn range(offsets: &[i32], null: bool, row: usize, items: usize) -> Option<std::ops::Range<usize>> {
    if null {
        return None;
    }
    let start = usize::try_from(*offsets.get(row)?).ok()?;
    let end = usize::try_from(*offsets.get(row + 1)?).ok()?;
    (start <= end && end <= items).then_some(start..end)
}

pub(crate) struct TextLists<'a> {
    name: &'static str,
    list: &'a ListArray,
    items: &'a StringArray,
}

impl TextLists<'_> {
    pub(crate) fn get<T>(&self, row: usize, make: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, BadCell> {
        let bad = BadCell { column: self.name };
        let range = range(self.list.value_offsets(), self.list.is_null(row), row, self.items.len()).ok_or(bad)?;
        range.map(|i| if self.items.is_null(i) { Err(bad) } else { make(self.items.value(i)).ok_or(bad) }).collect()
    }
}

pub(crate) struct Labels<'a> {
    name: &'static str,
    map: &'a MapArray,
    keys: &'a StringArray,
    values: &'a StringArray,
}

impl Labels<'_> {
    pub(crate) fn get(&self, row: usize) -> Result<BTreeMap<String, String>, BadCell> {
        let bad = BadCell { column: self.name };
        let items = self.keys.len().min(self.values.len());
        let range = range(self.map.value_offsets(), self.map.is_null(row), row, items).ok_or(bad)?;
        let entry = |i: usize| {
            let null = self.keys.is_null(i) || self.values.is_null(i);
            if null { Err(bad) } else { Ok((self.keys.value(i).to_owned(), self.values.value(i).to_owned())) }
        };
        range.map(entry).collect()
    }
}

pub(crate) struct Instants<'a> {
    name: &'static str,
    list: &'a ListArray,
    seq: &'a PrimitiveArray<UInt32Type>,
    at: &'a PrimitiveArray<UInt64Type>,
}

impl Instants<'_> {
    pub(crate) fn get(&self, row: usize) -> Result<meshdiff_model::Instants, BadCell> {
        let bad = BadCell { column: self.name };
        let items = self.seq.len().min(self.at.len());
        let range = range(self.list.value_offsets(), self.list.is_null(row), row, items).ok_or(bad)?;
        if range.clone().any(|i| self.seq.is_null(i) || self.at.is_null(i)) {
            return Err(bad);
        }
        Ok(range.map(|i| SeqInstant { seq: SeqNo(self.seq.value(i)), at: MonotonicNs(self.at.value(i)) }).collect())
    }
}

/// A list of where a stream's DATA frames are.
pub(crate) struct DataRuns<'a> {
    first: Instants<'a>,
    end: &'a PrimitiveArray<UInt32Type>,
    bytes: &'a PrimitiveArray<UInt64Type>,
    frames: &'a PrimitiveArray<UInt32Type>,
}

impl DataRuns<'_> {
    pub(crate) fn get(&self, row: usize) -> Result<Vec<Http2Data>, BadCell> {
        let first = self.first.get(row)?;
        let bad = BadCell { column: self.first.name };
        let list = self.first.list;
        let items = self.end.len().min(self.bytes.len()).min(self.frames.len());
        let range = range(list.value_offsets(), list.is_null(row), row, items).ok_or(bad)?;
        let run = |(i, &first): (usize, &SeqInstant)| {
            let null = self.end.is_null(i) || self.bytes.is_null(i) || self.frames.is_null(i);
            let (end, bytes, frames) = (SeqNo(self.end.value(i)), self.bytes.value(i), self.frames.value(i));
            if null { Err(bad) } else { Ok(Http2Data { first, end, bytes, frames }) }
        };
        range.zip(&first).map(run).collect()
    }
}

/// A list of how often each of some things.
struct Counts<'a> {
    name: &'static str,
    list: &'a ListArray,
    counts: &'a PrimitiveArray<UInt64Type>,
}

impl Counts<'_> {
    fn get<K>(&self, row: usize, keys: &impl Array, key: impl Fn(usize) -> K) -> Result<Vec<(K, u64)>, BadCell> {
        let bad = BadCell { column: self.name };
        let items = keys.len().min(self.counts.len());
        let range = range(self.list.value_offsets(), self.list.is_null(row), row, items).ok_or(bad)?;
        let entry = |i: usize| {
            let null = keys.is_null(i) || self.counts.is_null(i);
            if null { Err(bad) } else { Ok((key(i), self.counts.value(i))) }
        };
        range.map(entry).collect()
    }
}

pub(crate) struct IndexCounts<'a> {
    counts: Counts<'a>,
    keys: &'a PrimitiveArray<Int16Type>,
}

impl IndexCounts<'_> {
    pub(crate) fn get(&self, row: usize) -> Result<Vec<(i16, u64)>, BadCell> {
        self.counts.get(row, self.keys, |i| self.keys.value(i))
    }
}

pub(crate) struct TextCounts<'a> {
    counts: Counts<'a>,
    keys: &'a StringArray,
}

impl<'a> TextCounts<'a> {
    pub(crate) fn get(&self, row: usize) -> Result<Vec<(&'a str, u64)>, BadCell> {
        self.counts.get(row, self.keys, |i| self.keys.value(i))
    }
}
