//! Traces: what OpenTelemetry's own types make of them.

use crate::support::{HOSTILE, bookinfo, hostile, simulate};
use meshdiff_analyzer::AttributedRequest;
use meshdiff_model::{RequestId, Segment};
use meshdiff_reports::otlp::{Body, bodies};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use std::collections::{BTreeMap, BTreeSet, HashMap};

fn decoded(bodies: &[Body]) -> Vec<ExportTraceServiceRequest> {
    let decode = |body: &Body| serde_json::from_str(&body.json).unwrap_or_else(|e| panic!("{e}: {}", body.json));
    bodies.iter().map(decode).collect()
}

/// Every span, with the name of the service whose it is.
fn spans(requests: &[ExportTraceServiceRequest]) -> Vec<(String, Span)> {
    let mut list = Vec::new();
    for resource in requests.iter().flat_map(|r| &r.resource_spans) {
        let attributes = &resource.resource.as_ref().expect("a resource").attributes;
        let service = string(attributes, "service.name").expect("a name");
        for scope in &resource.scope_spans {
            assert_eq!(scope.scope.as_ref().expect("a scope").name, "meshdiff");
            list.extend(scope.spans.iter().map(|s| (service.clone(), s.clone())));
        }
    }
    list
}

fn value<'a>(list: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let mut found = list.iter().filter(|kv| kv.key == key);
    let value = found.next()?.value.as_ref()?.value.as_ref();
    assert!(found.next().is_none(), "{key} is there twice");
    value
}

fn string(list: &[KeyValue], key: &str) -> Option<String> {
    match value(list, key)? {
        Value::StringValue(text) => Some(text.clone()),
        other => panic!("{key}: {other:?}"),
    }
}

fn int(list: &[KeyValue], key: &str) -> Option<i64> {
    match value(list, key)? {
        Value::IntValue(number) => Some(*number),
        other => panic!("{key}: {other:?}"),
    }
}

fn requests() -> Vec<AttributedRequest> {
    simulate(&bookinfo(), 60).slowest
}

#[test]
fn a_tree_of_requests_is_a_trace() {
    let requests = requests();
    let bodies = bodies(&requests, usize::MAX, "1.2.3").expect("JSON");
    assert_eq!(bodies.iter().map(|b| b.requests).sum::<usize>(), requests.len());
    let decoded = decoded(&bodies);
    let spans = spans(&decoded);
    assert_eq!(bodies.iter().map(|b| b.spans).sum::<usize>(), spans.len());
    let by_id: HashMap<&[u8], &Span> = spans.iter().map(|(_, s)| (&s.span_id[..], s)).collect();
    assert_eq!(by_id.len(), spans.len(), "ids are unique");
    for (_, span) in &spans {
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        if !span.parent_span_id.is_empty() {
            let parent = by_id.get(&span.parent_span_id[..]).expect("the parent is there");
            assert_eq!(parent.trace_id, span.trace_id);
            assert_ne!(span.kind(), SpanKind::Unspecified);
        }
    }
    let clients: BTreeMap<String, &Span> = spans
        .iter()
        .filter(|(_, s)| s.kind() == SpanKind::Client)
        .map(|(_, s)| (string(&s.attributes, "meshdiff.request.id").expect("an id"), s))
        .collect();
    assert_eq!(clients.len(), requests.len());
    for request in &requests {
        let span = clients[&request.id];
        assert_eq!(span.start_time_unix_nano, u64::try_from(request.start.0).expect("after 1970"));
        assert_eq!((span.end_time_unix_nano - span.start_time_unix_nano) as i64, request.attribution.total().0);
        assert_eq!(span.name, "GET");
        assert_eq!(string(&span.attributes, "url.path").as_deref(), request.path.as_deref());
        assert_eq!(int(&span.attributes, "http.response.status_code"), request.response_code.map(i64::from));
        let split: i64 = Segment::ALL
            .iter()
            .filter_map(|s| int(&span.attributes, &format!("meshdiff.segment.{}.ns", s.as_str())))
            .sum();
        assert_eq!(split, request.attribution.total().0, "segments sum to the total");
        match request.parent {
            None => assert!(span.parent_span_id.is_empty()),
            Some(parent) => {
                let above = by_id[&span.parent_span_id[..]];
                assert_eq!(above.kind(), SpanKind::Server, "a call hangs beneath the application that made it");
                let caller = clients[&requests[parent].id];
                assert_eq!(above.parent_span_id, caller.span_id);
            }
        }
    }
}

#[test]
fn the_way_is_told_by_direction_and_whose_it_was() {
    let requests: Vec<AttributedRequest> = requests().into_iter().filter(|r| r.parent.is_none()).take(1).collect();
    let bodies = bodies(&requests, 1, "1").expect("JSON");
    let spans = spans(&decoded(&bodies));
    let found: BTreeSet<(String, String, String)> = spans
        .iter()
        .filter(|(_, s)| s.kind() == SpanKind::Internal)
        .map(|(service, s)| {
            let of = |key| string(&s.attributes, key).expect(key);
            (of("meshdiff.segment"), of("meshdiff.direction"), service.clone())
        })
        .collect();
    let (client, server) = ("loadgen", "productpage-v1");
    for way in ["request", "response"] {
        for (segment, whose) in [
            ("client_loopback", client),
            ("client_sidecar", client),
            ("network", client),
            ("server_sidecar", server),
            ("server_loopback", server),
        ] {
            assert!(found.contains(&(segment.into(), way.into(), whose.into())), "{segment} {way}: {found:?}");
        }
    }
    let application = spans.iter().find(|(_, s)| s.kind() == SpanKind::Server).expect("the server");
    assert_eq!(application.0, server);
}

#[test]
fn exporting_again_gives_the_same() {
    let requests = requests();
    assert_eq!(bodies(&requests, 7, "1").expect("JSON"), bodies(&requests, 7, "1").expect("JSON"));
    let roots = requests.iter().filter(|r| r.parent.is_none()).count();
    let traces = |sample| {
        let spans = spans(&decoded(&bodies(&requests, sample, "1").expect("JSON")));
        spans.into_iter().map(|(_, s)| s.trace_id).collect::<BTreeSet<_>>()
    };
    assert_eq!(traces(7).len(), 7.min(roots));
    assert_eq!(traces(1_000_000).len(), roots);
    assert!(traces(7).is_subset(&traces(1_000_000)));
    assert!(bodies(&requests, 0, "1").expect("JSON").is_empty());
    assert!(bodies(&[], 5, "1").expect("JSON").is_empty());
}

#[test]
fn a_uuid_names_the_trace_and_errors_are_said() {
    let mut request = requests().into_iter().find(|r| r.parent.is_none()).expect("a root");
    request.children.clear();
    request.request_id = Some(RequestId("8c5b7d1e-35f6-9e2a-9f6a-0123456789ab".into()));
    request.response_code = Some(503);
    request.attempts = Some(3);
    let spans = spans(&decoded(&bodies(&[request], 1, "1").expect("JSON")));
    let (_, root) = spans.iter().find(|(_, s)| s.kind() == SpanKind::Client).expect("a root");
    assert_eq!(root.trace_id, 0x8c5b_7d1e_35f6_4e2a_9f6a_0123_4567_89ab_u128.to_be_bytes());
    assert_eq!(root.status.as_ref().expect("a status").code(), StatusCode::Error);
    assert_eq!(string(&root.attributes, "error.type").as_deref(), Some("503"));
    assert_eq!(int(&root.attributes, "http.request.resend_count"), Some(2));
}

#[test]
fn hostile_texts_stay_texts() {
    let requests = hostile().slowest;
    let spans = spans(&decoded(&bodies(&requests, 100, "1").expect("JSON")));
    assert!(spans.iter().any(|(service, _)| service.contains(HOSTILE)));
    assert!(spans.iter().any(|(_, s)| s.name == HOSTILE));
}
