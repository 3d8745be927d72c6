//! The columns of `access_logs` that came later than the table: what an entry says beyond what joins need.
//!
//! All of them may be null, and a capture from before they were there has none of them.

use crate::column::{Column, opt_i64, opt_json, opt_named, opt_text, opt_u64};
use crate::damage::PartError;
use crate::view::{BadCell, Interner, Numbers, Texts, View};
use arrow::datatypes::{Int64Type, UInt64Type};
use meshdiff_model::{DurationNs, HopBytes, HopDetails, HopFailure, HopSide, HopTags, HopTls, Peer};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;

fn bytes(
    name: &'static str,
    meaning: &'static str,
    get: impl Fn(&HopBytes) -> Option<NonZeroU64> + Send + Sync + 'static,
) -> Column<HopSide> {
    opt_u64(name, move |h: &HopSide| get(&h.details.bytes).map(NonZeroU64::get)).unit("bytes").doc(meaning)
}

fn tag_span(
    name: &'static str,
    meaning: &'static str,
    get: impl Fn(&HopTags) -> Option<DurationNs> + Send + Sync + 'static,
) -> Column<HopSide> {
    opt_i64(name, move |h: &HopSide| h.details.tags.as_deref().and_then(&get).map(|d| d.0))
        .unit("ns")
        .delta()
        .doc(meaning)
}

fn reason(
    name: &'static str,
    meaning: &'static str,
    get: impl Fn(&HopFailure) -> Option<&str> + Send + Sync + 'static,
) -> Column<HopSide> {
    opt_text(name, move |h: &HopSide| h.details.failure.as_deref().and_then(&get)).doc(meaning)
}

pub(super) fn columns() -> Vec<Column<HopSide>> {
    let tags = |h: &HopSide| h.details.tags.as_deref().copied();
    vec![
        bytes("downstream_wire_bytes_sent", "On the wire to the caller; null for none or not counted.", |b| {
            b.downstream_wire_bytes_sent
        }),
        bytes("downstream_wire_bytes_received", "On the wire from the caller.", |b| b.downstream_wire_bytes_received),
        bytes("upstream_wire_bytes_sent", "On the wire to the upstream host.", |b| b.upstream_wire_bytes_sent),
        bytes("upstream_wire_bytes_received", "On the wire from the upstream host.", |b| {
            b.upstream_wire_bytes_received
        }),
        bytes("downstream_header_bytes_sent", "Headers on the wire to the caller.", |b| b.downstream_header_bytes_sent),
        bytes("downstream_header_bytes_received", "Headers on the wire from the caller.", |b| {
            b.downstream_header_bytes_received
        }),
        bytes("upstream_header_bytes_sent", "Headers on the wire to the upstream host.", |b| {
            b.upstream_header_bytes_sent
        }),
        bytes("upstream_header_bytes_received", "Headers on the wire from the upstream host.", |b| {
            b.upstream_header_bytes_received
        }),
        bytes("request_headers_bytes", "The request's headers as Envoy holds them.", |b| b.request_headers_bytes),
        bytes("response_headers_bytes", "The response's headers as Envoy holds them.", |b| b.response_headers_bytes),
        opt_json("tls", |h: &HopSide| h.details.tls.as_ref()).doc(
            "The downstream connection's TLS as a JSON object: version, cipherSuite, peerSubject, peerSan, localSubject, localSan.",
        ),
        opt_json("downstream_peer", |h: &HopSide| h.details.downstream_peer.as_ref()).doc(
            "The caller by Istio's metadata exchange, as a JSON object: name, namespace, workload, workloadType, service, \
             revision, cluster, app, version, identity.",
        ),
        opt_json("upstream_peer", |h: &HopSide| h.details.upstream_peer.as_ref())
            .doc("The called workload, likewise."),
        opt_u64("connection_id", move |h: &HopSide| tags(h)?.connection_id)
            .doc("Envoy's number of the downstream connection (custom tag)."),
        opt_u64("upstream_connection_id", move |h: &HopSide| tags(h)?.upstream_connection_id)
            .doc("Envoy's number of the last attempt's upstream connection (custom tag)."),
        tag_span(
            "upstream_connect_ns",
            "How long the upstream connection took to connect, repeated on all its requests (custom tag).",
            |t| t.upstream_connect,
        ),
        tag_span("upstream_handshake_ns", "How long its TLS handshake took, likewise (custom tag).", |t| {
            t.upstream_handshake
        }),
        tag_span(
            "upstream_connected_after_ns",
            "From the request's first byte until the upstream connection was connected; null if it was before (custom tag).",
            |t| t.upstream_connected_after,
        ),
        tag_span(
            "upstream_ready_after_ns",
            "From the request's first byte until the upstream TLS handshake was over; null if it was before (custom tag).",
            |t| t.upstream_ready_after,
        ),
        opt_named("upstream_protocol", move |h: &HopSide| tags(h)?.upstream_protocol)
            .doc("The protocol towards the upstream host (custom tag)."),
        reason(
            "upstream_transport_failure_reason",
            "Why the connection to the upstream host failed, in Envoy's words.",
            |f| f.upstream_transport_failure_reason.as_deref(),
        ),
        reason("downstream_transport_failure_reason", "The same of the downstream connection.", |f| {
            f.downstream_transport_failure_reason.as_deref()
        }),
        reason("connection_termination_details", "Why Envoy ended the downstream connection.", |f| {
            f.connection_termination_details.as_deref()
        }),
    ]
}

/// The columns of a batch.
pub(super) struct Details<'a> {
    bytes: [Numbers<'a, UInt64Type>; 10],
    tls: Json<'a, HopTls>,
    downstream_peer: Json<'a, Peer>,
    upstream_peer: Json<'a, Peer>,
    ids: [Numbers<'a, UInt64Type>; 2],
    spans: [Numbers<'a, Int64Type>; 4],
    upstream_protocol: Texts<'a>,
    reasons: [Texts<'a>; 3],
}

impl<'a> Details<'a> {
    /// `None` for captures from before they were there.
    pub(super) fn of(view: &View<'a>) -> Result<Option<Self>, PartError> {
        if !view.has("downstream_wire_bytes_sent") {
            return Ok(None);
        }
        let number = |name| view.number::<UInt64Type>(name);
        let span = |name| view.number::<Int64Type>(name);
        Ok(Some(Self {
            bytes: [
                number("downstream_wire_bytes_sent")?,
                number("downstream_wire_bytes_received")?,
                number("upstream_wire_bytes_sent")?,
                number("upstream_wire_bytes_received")?,
                number("downstream_header_bytes_sent")?,
                number("downstream_header_bytes_received")?,
                number("upstream_header_bytes_sent")?,
                number("upstream_header_bytes_received")?,
                number("request_headers_bytes")?,
                number("response_headers_bytes")?,
            ],
            tls: Json::of(view.text("tls")?),
            downstream_peer: Json::of(view.text("downstream_peer")?),
            upstream_peer: Json::of(view.text("upstream_peer")?),
            ids: [number("connection_id")?, number("upstream_connection_id")?],
            spans: [
                span("upstream_connect_ns")?,
                span("upstream_handshake_ns")?,
                span("upstream_connected_after_ns")?,
                span("upstream_ready_after_ns")?,
            ],
            upstream_protocol: view.text("upstream_protocol")?,
            reasons: [
                view.text("upstream_transport_failure_reason")?,
                view.text("downstream_transport_failure_reason")?,
                view.text("connection_termination_details")?,
            ],
        }))
    }

    pub(super) fn get(&self, i: usize, strings: &Interner) -> Result<HopDetails, BadCell> {
        let bytes = self.bytes.each_ref().map(|column| column.opt(i).and_then(NonZeroU64::new));
        let spans = self.spans.each_ref().map(|column| column.opt(i).map(DurationNs));
        let tags = HopTags {
            connection_id: self.ids[0].opt(i),
            upstream_connection_id: self.ids[1].opt(i),
            upstream_connect: spans[0],
            upstream_handshake: spans[1],
            upstream_connected_after: spans[2],
            upstream_ready_after: spans[3],
            upstream_protocol: self.upstream_protocol.opt_named(i)?,
        };
        let reasons = self.reasons.each_ref().map(|column| column.opt(i).map(|text| strings.get(text)));
        let failed = reasons.iter().any(Option::is_some);
        let [upstream_transport_failure_reason, downstream_transport_failure_reason, connection_termination_details] =
            reasons;
        Ok(HopDetails {
            bytes: HopBytes {
                downstream_wire_bytes_sent: bytes[0],
                downstream_wire_bytes_received: bytes[1],
                upstream_wire_bytes_sent: bytes[2],
                upstream_wire_bytes_received: bytes[3],
                downstream_header_bytes_sent: bytes[4],
                downstream_header_bytes_received: bytes[5],
                upstream_header_bytes_sent: bytes[6],
                upstream_header_bytes_received: bytes[7],
                request_headers_bytes: bytes[8],
                response_headers_bytes: bytes[9],
            },
            tls: self.tls.opt(i)?,
            downstream_peer: self.downstream_peer.opt(i)?,
            upstream_peer: self.upstream_peer.opt(i)?,
            tags: (tags != HopTags::default()).then(|| Box::new(tags)),
            failure: failed.then(|| {
                Box::new(HopFailure {
                    upstream_transport_failure_reason,
                    downstream_transport_failure_reason,
                    connection_termination_details,
                })
            }),
        })
    }
}

/// A column of JSON objects, of which there are few different ones.
struct Json<'a, T> {
    texts: Texts<'a>,
    known: RefCell<HashMap<&'a str, Arc<T>>>,
}

impl<'a, T: DeserializeOwned> Json<'a, T> {
    fn of(texts: Texts<'a>) -> Self {
        Self { texts, known: RefCell::new(HashMap::new()) }
    }

    fn opt(&self, i: usize) -> Result<Option<Arc<T>>, BadCell> {
        let Some(text) = self.texts.opt(i) else { return Ok(None) };
        let mut known = self.known.borrow_mut();
        if let Some(same) = known.get(text) {
            return Ok(Some(Arc::clone(same)));
        }
        let value = Arc::new(serde_json::from_str(text).map_err(|_| self.texts.bad())?);
        known.insert(text, Arc::clone(&value));
        Ok(Some(value))
    }
}
