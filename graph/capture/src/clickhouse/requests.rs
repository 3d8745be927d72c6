//! Requests, as they were found where they were recorded: one row for each, so that a report of many of them is summed up in SQL.
//!
//! A request between two nodes is recorded by halves. Each node stores its own, with what tells the other node's: the address from which
//! the client's sidecar connected and the TCP sequence number after the request's last byte, which both ends of that connection count
//! alike; where streams share an encrypted connection, the request's id. What a half alone says of the request stands in the same columns as that of a whole one; what it says as a half stands in
//! those that begin with `half`.

use super::schema::StoreColumn;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, Int64Builder, ListBuilder, StringArray, StringBuilder, UInt16Array, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use meshdiff_model::{Detail, DurationNs, Segment, SegmentMap, WallTime};
use std::sync::Arc;

/// The table's name.
pub(crate) const REQUESTS: &str = "requests";

/// The requests of a capture.
#[derive(Clone, Debug, Default)]
pub struct JoinedRequests {
    /// The captures that were joined together to find them: this one, and those that it follows and is followed by.
    pub with: Vec<String>,
    /// Those that began in this capture.
    pub rows: Vec<RequestRow>,
}

/// What a row is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A request, in this row of the report's coverage.
    Request(&'static str),
    /// A request whose evidence contradicts itself.
    Contradiction,
    /// A request that a sidecar passed on and did not log.
    Unlogged,
}

impl RequestKind {
    const CONTRADICTION: &'static str = "contradiction";
    const UNLOGGED: &'static str = "unlogged";

    const fn as_str(&self) -> &'static str {
        match self {
            Self::Request(class) => class,
            Self::Contradiction => Self::CONTRADICTION,
            Self::Unlogged => Self::UNLOGGED,
        }
    }
}

/// Times by segment, and what they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// By segment.
    pub segments: SegmentMap,
    /// Parts of segments.
    pub details: Vec<(Segment, Detail, DurationNs)>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Unique among the requests of one node and boot.
    pub id: String,
    /// The id of the request during which this one was made.
    pub parent: Option<String>,
    /// What the row is of.
    pub kind: RequestKind,
    /// Why it is not full; of a contradiction, what contradicts.
    pub reason: Option<String>,
    /// When it began.
    pub start: WallTime,
    /// The calling workload as JSON, as hops are grouped.
    pub client: String,
    /// The called workload as JSON, likewise, without its service.
    pub server: String,
    /// The called service.
    pub service: Option<String>,
    /// The callers' namespace.
    pub client_namespace: Option<String>,
    /// The called workload's namespace.
    pub server_namespace: Option<String>,
    /// As reports name it.
    pub protocol: String,
    /// Status; 0 if none came.
    pub response_code: u16,
    /// How long it took.
    pub total: DurationNs,
    /// Where the time went.
    pub split: Split,
    /// The kernel saw the client application send it.
    pub client_seen: bool,
    /// The calls that its server made meanwhile count with all of their time.
    pub calls_whole: bool,
    /// The request as `meshdiff requests --instants` prints it.
    pub line: String,
    /// What of it another node may have recorded.
    pub half: Option<HalfRow>,
}

/// What a node knows of a request of which another node may have recorded the other half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfRow {
    /// True for the client's.
    pub client: bool,
    /// The address from which the client's sidecar connected, with its port.
    pub flow: String,
    /// What both halves call the request: that address with the TCP sequence number after the request's last byte; where the connection is
    /// encrypted and carries several requests at once, with the request's id. Empty if neither is known.
    pub key: String,
    /// The connection between the sidecars carries several requests at once: their logs tell what was spent there.
    pub shared: bool,
    /// Path, status and sizes, where only these tell requests of one id apart.
    pub alike: String,
    /// The TCP sequence number after the response's last byte.
    pub answer_end: u32,
    /// From the request sent to the response ready at the client's sidecar, or from the request ready to the response sent at the server's.
    pub inside: DurationNs,
    /// What came over the connection (the request here, or the response) was ready all at once.
    pub came_at_once: bool,
    /// What was sent over it was sent in one call.
    pub sent_at_once: bool,
    /// Nothing about it depends on the other half but the network's time.
    pub plain: bool,
    /// `x-request-id`, without what sampling changes.
    pub request_id: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// Where the time of this half went.
    pub split: Split,
}

/// The table's columns after the key, in order.
pub(crate) fn columns() -> Vec<StoreColumn> {
    let column = |name: &str, kind: &str, doc: &str| StoreColumn::new(name, kind, doc);
    let low = "LowCardinality(String)";
    let mut list = vec![
        column("boot_id", low, "The node's boot: ids are unique within one."),
        column("id", "String", "The request, as `meshdiff requests` names it."),
        column("parent", "String", "The request during which this one was made; empty if none, or nobody can tell."),
        column(
            "class",
            low,
            "Its row of the report's coverage; `contradiction` and `unlogged` are counted and are no requests of a report.",
        ),
        column("reason", "String", "Why it is not full; empty if it is."),
        column("start_ns", "Int64", "When it began, in ns since 1970."),
        column("client", low, "The calling workload, JSON."),
        column("server", low, "The called workload, JSON."),
        column("service", low, "The called service; empty if unknown."),
        column("client_namespace", low, "Empty if unknown."),
        column("server_namespace", low, "Empty if unknown."),
        column("protocol", low, "As reports name it."),
        column("response_code", "UInt16", "0 if no response came."),
        column("total_ns", "Int64", "How long it took."),
    ];
    for segment in Segment::ALL {
        let doc = format!("Time in {segment}; NULL if there was none.", segment = segment.as_str());
        list.push(column(&segment_column(segment), "Nullable(Int64)", &doc));
    }
    list.extend([
        column("detail_names", "Array(LowCardinality(String))", "Parts of segments, as `segment.part`."),
        column("detail_ns", "Array(Int64)", "Their times."),
        column("client_seen", "Bool", "The kernel saw the client application send it."),
        column("calls_whole", "Bool", "The calls that its server made meanwhile count with all of their time."),
        column("half", low, "`client` or `server` if another node may have recorded the other half; else empty."),
        column("half_flow", "String", "The address from which the client's sidecar connected; empty if unknown."),
        column(
            "half_key",
            "String",
            "What both halves call the request: that address with the TCP sequence number after the request's last byte, or with its id.",
        ),
        column("half_shared", "Bool", "The connection is encrypted and carries several requests at once."),
        column("half_alike", "String", "Path, status and sizes of a request on such a connection."),
        column("half_answer_end", "UInt32", "TCP sequence number after the response's last byte."),
        column(
            "half_inside_ns",
            "Int64",
            "At the client's sidecar from the request sent to the response ready; at the server's from the request ready to the response sent.",
        ),
        column("half_came_at_once", "Bool", "What came over the connection was ready all at once."),
        column("half_sent_at_once", "Bool", "What was sent over it was sent in one call."),
        column("half_plain", "Bool", "Nothing depends on the other half but the network's time."),
        column("half_request_id", "String", "`x-request-id` without what sampling changes."),
        column("half_method", low, "Request method."),
        column(
            "half_segments",
            "Array(Nullable(Int64))",
            "Times of this half by segment, in the order of the columns above.",
        ),
        column("half_detail_names", "Array(LowCardinality(String))", "Parts of these."),
        column("half_detail_ns", "Array(Int64)", "Their times."),
        column("line", "String", "The request as `meshdiff requests --instants` prints it.").with_codec("ZSTD(3)"),
    ]);
    list
}

/// The column of a segment's time.
pub(crate) fn segment_column(segment: Segment) -> String {
    format!("{}_ns", segment.as_str())
}

/// Rows as columns, in the order of [`columns`].
pub(crate) fn batch(boot_id: &str, rows: &[RequestRow]) -> Result<RecordBatch, ArrowError> {
    let text =
        |of: &dyn Fn(&RequestRow) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(of))) };
    let flag = |of: &dyn Fn(&RequestRow) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(of(r)))))
    };
    let half = |r: &RequestRow, of: &dyn Fn(&HalfRow) -> bool| r.half.as_ref().is_some_and(of);
    let number =
        |of: &dyn Fn(&RequestRow) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) };
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(boot_id, rows.len()))),
        text(&|r| &r.id),
        text(&|r| opt(&r.parent)),
        text(&|r| r.kind.as_str()),
        text(&|r| opt(&r.reason)),
        number(&|r| r.start.0),
        text(&|r| &r.client),
        text(&|r| &r.server),
        text(&|r| opt(&r.service)),
        text(&|r| opt(&r.client_namespace)),
        text(&|r| opt(&r.server_namespace)),
        text(&|r| &r.protocol),
        Arc::new(UInt16Array::from_iter_values(rows.iter().map(|r| r.response_code))),
        number(&|r| r.total.0),
    ];
    for segment in Segment::ALL {
        arrays.push(Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.split.segments.get(segment).map(|t| t.0)))));
    }
    let none = Split::default();
    let of_half = |r: &RequestRow| r.half.as_ref().map_or_else(|| none.clone(), |h| h.split.clone());
    arrays.extend(details(rows.iter().map(|r| r.split.clone())));
    arrays.extend([flag(&|r| r.client_seen), flag(&|r| r.calls_whole)]);
    arrays.push(text(&|r| match &r.half {
        Some(half) if half.client => "client",
        Some(_) => "server",
        None => "",
    }));
    arrays.push(text(&|r| r.half.as_ref().map_or("", |h| &h.flow)));
    arrays.push(text(&|r| r.half.as_ref().map_or("", |h| &h.key)));
    arrays.push(flag(&|r| half(r, &|h| h.shared)));
    arrays.push(text(&|r| r.half.as_ref().map_or("", |h| &h.alike)));
    let answer_end = |r: &RequestRow| r.half.as_ref().map_or(0, |h| h.answer_end);
    arrays.push(Arc::new(UInt32Array::from_iter_values(rows.iter().map(answer_end))));
    arrays.push(number(&|r| r.half.as_ref().map_or(0, |h| h.inside.0)));
    arrays.extend([
        flag(&|r| half(r, &|h| h.came_at_once)),
        flag(&|r| half(r, &|h| h.sent_at_once)),
        flag(&|r| half(r, &|h| h.plain)),
        text(&|r| r.half.as_ref().map_or("", |h| opt(&h.request_id))),
        text(&|r| r.half.as_ref().map_or("", |h| opt(&h.method))),
    ]);
    let mut segments = ListBuilder::new(Int64Builder::new());
    for row in rows {
        if let Some(half) = &row.half {
            Segment::ALL
                .into_iter()
                .for_each(|s| segments.values().append_option(half.split.segments.get(s).map(|t| t.0)));
        }
        segments.append(true);
    }
    arrays.push(Arc::new(segments.finish()));
    arrays.extend(details(rows.iter().map(of_half)));
    arrays.push(text(&|r| &r.line));
    let nullable = |kind: &DataType| matches!(kind, DataType::Int64);
    let fields: Vec<Field> = columns()
        .iter()
        .zip(&arrays)
        .map(|(column, array)| Field::new(&column.name, array.data_type().clone(), nullable(array.data_type())))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn opt(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("")
}

/// Details as two lists of one length: names and times.
fn details(splits: impl Iterator<Item = Split>) -> [ArrayRef; 2] {
    let mut names = ListBuilder::new(StringBuilder::new());
    let mut times = ListBuilder::new(Int64Builder::new());
    for split in splits {
        for (segment, detail, time) in split.details {
            names.values().append_value(format!("{}.{}", segment.as_str(), detail.as_str()));
            times.values().append_value(time.0);
        }
        names.append(true);
        times.append(true);
    }
    [Arc::new(names.finish()), Arc::new(times.finish())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(half: Option<HalfRow>) -> RequestRow {
        let mut split = Split::default();
        split.segments.set(Segment::Network, DurationNs(-3));
        split.details.push((Segment::ServerApp, Detail::Queue, DurationNs(2)));
        RequestRow {
            id: "1-2".into(),
            parent: None,
            kind: RequestKind::Request("full"),
            reason: None,
            start: WallTime(5),
            client: "{}".into(),
            server: "{}".into(),
            service: None,
            client_namespace: None,
            server_namespace: None,
            protocol: "http/1.1".into(),
            response_code: 200,
            total: DurationNs(7),
            split,
            client_seen: true,
            calls_whole: true,
            line: String::new(),
            half,
        }
    }

    #[test]
    fn every_column_has_its_values() {
        let half = HalfRow {
            client: true,
            flow: "10.0.0.1:2".into(),
            key: "10.0.0.1:2#1".into(),
            shared: false,
            alike: String::new(),
            answer_end: 2,
            inside: DurationNs(3),
            came_at_once: true,
            sent_at_once: false,
            plain: true,
            request_id: None,
            method: Some("GET".into()),
            split: Split::default(),
        };
        let batch = batch("boot", &[row(None), row(Some(half))]).expect("made");
        assert_eq!(batch.num_rows(), 2);
        assert_eq!(batch.num_columns(), columns().len());
        assert_eq!(super::batch("boot", &[]).expect("made").num_columns(), columns().len());
    }
}
