//! OTLP's messages, as protobuf's JSON mapping and OTLP's own rules write them: names in camelCase, ids in hexadecimal digits, 64-bit
//! numbers as texts, enumerations as numbers (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>).

use meshdiff_model::Workload;
use serde::Serialize;
use std::collections::BTreeMap;

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    namespace: Option<String>,
    name: Option<String>,
    pod: Option<String>,
}

impl Resource {
    pub(super) fn of(w: &Workload) -> Self {
        let name = w.workload.clone().or_else(|| w.service.clone()).or_else(|| w.address.clone());
        Self { namespace: w.namespace.clone(), name, pod: w.pod.clone() }
    }

    fn attributes(&self) -> Vec<KeyValue> {
        // OpenTelemetry asks for a name, and has this one for who has none.
        let mut list = vec![text("service.name", self.name.as_deref().unwrap_or("unknown_service"))];
        if let Some(namespace) = &self.namespace {
            list.extend([text("service.namespace", namespace), text("k8s.namespace.name", namespace)]);
        }
        list.extend(self.pod.as_ref().map(|pod| text("k8s.pod.name", pod)));
        list
    }
}

/// `ExportTraceServiceRequest`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Traces {
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans {
    resource: Attributes,
    scope_spans: [ScopeSpans; 1],
}

#[derive(Debug, Serialize)]
struct Attributes {
    attributes: Vec<KeyValue>,
}

#[derive(Debug, Serialize)]
struct ScopeSpans {
    scope: Scope,
    spans: Vec<Span>,
}

#[derive(Debug, Serialize)]
struct Scope {
    name: &'static str,
    version: String,
}

/// `Span`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    pub(super) trace_id: String,
    pub(super) span_id: String,
    pub(super) parent_span_id: String,
    pub(super) name: String,
    pub(super) kind: u8,
    pub(super) start_time_unix_nano: String,
    pub(super) end_time_unix_nano: String,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) status: Status,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Status {
    pub(super) code: u8,
}

// `SpanKind` and `StatusCode`.
pub(super) const INTERNAL: u8 = 1;
pub(super) const SERVER: u8 = 2;
pub(super) const CLIENT: u8 = 3;
pub(super) const ERROR: u8 = 2;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct KeyValue {
    key: String,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
enum Value {
    #[serde(rename = "stringValue")]
    Text(String),
    /// The mapping writes 64 bits as text.
    #[serde(rename = "intValue")]
    Number(String),
    #[serde(rename = "boolValue")]
    Flag(bool),
    #[serde(rename = "arrayValue")]
    List { values: Vec<Value> },
}

pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Value::Text(value.into()) }
}

pub(super) fn number(key: impl Into<String>, value: i64) -> KeyValue {
    KeyValue { key: key.into(), value: Value::Number(value.to_string()) }
}

pub(super) fn flag(key: &str, value: bool) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Value::Flag(value) }
}

pub(super) fn texts<'a>(key: &str, values: impl Iterator<Item = &'a str>) -> KeyValue {
    let values = values.map(|v| Value::Text(v.to_owned())).collect();
    KeyValue { key: key.to_owned(), value: Value::List { values } }
}

impl Traces {
    pub(super) fn of(spans: BTreeMap<Resource, Vec<Span>>, version: &str) -> Self {
        let one = |(resource, spans): (Resource, Vec<Span>)| ResourceSpans {
            resource: Attributes { attributes: resource.attributes() },
            scope_spans: [ScopeSpans { scope: Scope { name: "meshdiff", version: version.to_owned() }, spans }],
        };
        Self { resource_spans: spans.into_iter().map(one).collect() }
    }
}
