use super::*;
use crate::proto::unknown_proxy;
use envoy_types::pb::envoy::config::core::v3::{
    Address, Metadata, Pipe, SocketAddress, address, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties,
    certificate_properties::{SubjectAltName, subject_alt_name::San},
};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
    ResponseFlags, TcpAccessLogEntry, TlsProperties,
};
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, Timestamp, UInt32Value, Value, value::Kind};
use meshdiff_model::{DurationNs, HopDetails, HopSide, HopTimings, NodeId, ProxyKind, Side, TlsVersion, WallTime};
use proptest::prelude::*;
use prost::Message as _;

fn addr(ip: &str, port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn ns(nanos: i32) -> Option<Duration> {
    Some(Duration { seconds: 0, nanos })
}

fn common() -> AccessLogCommon {
    AccessLogCommon {
        downstream_direct_remote_address: addr("10.77.0.2", 43638),
        downstream_remote_address: addr("8.8.8.8", 0),
        downstream_local_address: addr("10.96.0.7", 9080),
        upstream_local_address: addr("::ffff:10.77.0.2", 47670),
        upstream_remote_address: addr("10.77.0.3", 9080),
        start_time: Some(Timestamp { seconds: 1_767_225_600, nanos: 123_456_000 }),
        time_to_last_rx_byte: ns(1),
        time_to_first_upstream_tx_byte: ns(2),
        time_to_last_upstream_tx_byte: ns(3),
        time_to_first_upstream_rx_byte: ns(4),
        time_to_last_upstream_rx_byte: ns(5),
        time_to_first_downstream_tx_byte: ns(6),
        time_to_last_downstream_tx_byte: Some(Duration { seconds: 2, nanos: 7 }),
        duration: Some(Duration { seconds: 2, nanos: 8 }),
        upstream_cluster: "outbound|9080||reviews.default.svc.cluster.local".to_owned(),
        route_name: "default".to_owned(),
        upstream_request_attempt_count: 2,
        stream_id: "0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11".to_owned(),
        access_log_type: WireType::DownstreamEnd as i32,
        response_flags: Some(ResponseFlags {
            upstream_retry_limit_exceeded: true,
            upstream_connection_failure: true,
            ..Default::default()
        }),
        tls_properties: Some(TlsProperties { tls_sni_hostname: "reviews".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn http() -> HttpAccessLogEntry {
    HttpAccessLogEntry {
        common_properties: Some(common()),
        protocol_version: HttpVersion::Http11 as i32,
        request: Some(HttpRequestProperties {
            request_method: RequestMethod::Get as i32,
            authority: "reviews:9080".to_owned(),
            path: "/reviews/0?user=secret#part".to_owned(),
            request_id: "0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11".to_owned(),
            request_body_bytes: 11,
            ..Default::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: 503 }),
            response_body_bytes: 22,
            response_code_details: "upstream_reset".to_owned(),
            ..Default::default()
        }),
    }
}

fn sidecar() -> Proxy {
    let node = NodeId("sidecar~10.77.0.2~a.default~d".into());
    Proxy { node, kind: ProxyKind::Sidecar, address: "10.77.0.2".parse().ok(), ..unknown_proxy(None) }
}

fn decode(entry: &HttpAccessLogEntry) -> (Result<HopSide, InvalidEntry>, Tally) {
    let mut tally = Tally::default();
    let hop = one(&mut EntryDecoder::new(), EntryKind::Http, &entry.encode_to_vec(), &mut tally);
    (hop, tally)
}

/// Decodes one entry alone.
fn one(decoder: &mut EntryDecoder, kind: EntryKind, bytes: &[u8], tally: &mut Tally) -> Result<HopSide, InvalidEntry> {
    let proxy = sidecar();
    decoder.begin(&proxy);
    let terminal = decoder.decode(kind, bytes, &proxy, tally);
    let batch = decoder.take();
    let terminal = terminal?;
    let mut hops: Vec<HopSide> = batch.hops().collect();
    assert_eq!(hops.len(), 1);
    assert_eq!(hops[0].access_log_type.is_terminal(), terminal);
    Ok(hops.remove(0))
}

fn kept(entry: &HttpAccessLogEntry) -> (HopSide, Tally) {
    let (hop, tally) = decode(entry);
    (hop.expect("valid"), tally)
}

fn malformed(tally: &Tally) -> Vec<(&'static str, u64)> {
    let counts = InvalidField::ALL.iter().zip(tally.invalid_fields);
    counts.filter(|&(_, n)| n > 0).map(|(k, n)| (k.as_str(), n)).collect()
}

#[test]
fn every_field_of_an_http_entry() {
    let (hop, tally) = kept(&http());
    assert_eq!(malformed(&tally), []);
    let text = |t: &Option<Arc<str>>| t.as_deref().map(str::to_owned);
    assert_eq!(hop.node.to_string(), "sidecar~10.77.0.2~a.default~d");
    assert_eq!(hop.side, Some(Side::Client));
    assert_eq!(hop.protocol, HopProtocol::Http11);
    assert_eq!(hop.access_log_type, AccessLogType::DownstreamEnd);
    assert_eq!(hop.start_time, WallTime(1_767_225_600_123_456_000));
    let t = hop.timings;
    let spans = [
        t.time_to_last_rx_byte,
        t.time_to_first_upstream_tx_byte,
        t.time_to_last_upstream_tx_byte,
        t.time_to_first_upstream_rx_byte,
        t.time_to_last_upstream_rx_byte,
        t.time_to_first_downstream_tx_byte,
        t.time_to_last_downstream_tx_byte,
        t.duration,
    ];
    assert_eq!(spans.map(|d| d.expect("set").0), [1, 2, 3, 4, 5, 6, 2_000_000_007, 2_000_000_008]);
    assert_eq!(hop.downstream_direct_remote_address.map(|a| a.to_string()).as_deref(), Some("10.77.0.2:43638"));
    assert_eq!(hop.downstream_remote_address.map(|a| a.to_string()).as_deref(), Some("8.8.8.8:0"));
    assert_eq!(hop.downstream_local_address.map(|a| a.to_string()).as_deref(), Some("10.96.0.7:9080"));
    assert_eq!(hop.upstream_local_address.map(|a| a.to_string()).as_deref(), Some("10.77.0.2:47670"), "normalised");
    assert_eq!(hop.upstream_remote_address.map(|a| a.to_string()).as_deref(), Some("10.77.0.3:9080"));
    assert_eq!(text(&hop.upstream_cluster).as_deref(), Some("outbound|9080||reviews.default.svc.cluster.local"));
    assert_eq!(text(&hop.route_name).as_deref(), Some("default"));
    assert_eq!(hop.upstream_request_attempt_count, Some(2));
    assert_eq!(hop.response_flags, ["UF".into(), "URX".into()]);
    assert_eq!(hop.request_id.as_ref().map(|r| &*r.0), hop.stream_id.as_deref());
    assert_eq!(text(&hop.method).as_deref(), Some("GET"));
    assert_eq!(text(&hop.authority).as_deref(), Some("reviews:9080"));
    assert_eq!(text(&hop.path).as_deref(), Some("/reviews/0"), "no query, no fragment");
    assert_eq!(hop.response_code, Some(503));
    assert_eq!(text(&hop.response_code_details).as_deref(), Some("upstream_reset"));
    assert_eq!((hop.request_body_bytes, hop.response_body_bytes), (11, 22));
    assert_eq!(text(&hop.tls_sni_hostname).as_deref(), Some("reviews"));
    assert!(hop.downstream_tls);
}

#[test]
fn a_tcp_entry() {
    let entry = TcpAccessLogEntry {
        common_properties: Some(AccessLogCommon { access_log_type: WireType::TcpConnectionEnd as i32, ..common() }),
        connection_properties: Some(ConnectionProperties { received_bytes: 5, sent_bytes: 6 }),
    };
    let mut tally = Tally::default();
    let hop = one(&mut EntryDecoder::new(), EntryKind::Tcp, &entry.encode_to_vec(), &mut tally);
    let hop = hop.expect("valid");
    assert_eq!(hop.protocol, HopProtocol::Tcp);
    assert_eq!((hop.request_body_bytes, hop.response_body_bytes), (5, 6));
    assert_eq!((hop.method, hop.path, hop.response_code, hop.request_id), (None, None, None, None));
}

#[test]
fn absent_is_not_zero() {
    let mut entry = http();
    entry.common_properties = Some(AccessLogCommon { start_time: common().start_time, ..Default::default() });
    (entry.request, entry.response) = (None, None);
    let (hop, tally) = kept(&entry);
    assert_eq!(malformed(&tally), []);
    assert_eq!(hop.timings, HopTimings::default());
    assert_eq!(hop.access_log_type, AccessLogType::NotSet);
    assert_eq!((hop.side, hop.upstream_cluster, hop.request_id, hop.stream_id), (None, None, None, None));
    assert_eq!((hop.upstream_request_attempt_count, hop.response_code, hop.path), (None, None, None));
    assert!(!hop.downstream_tls);
    // A span of zero is a span.
    let mut entry = http();
    entry.common_properties.as_mut().expect("set").time_to_last_rx_byte = ns(0);
    assert_eq!(kept(&entry).0.timings.time_to_last_rx_byte, Some(DurationNs::ZERO));
}

#[test]
fn entries_that_cannot_be_used() {
    let with = |f: fn(&mut HttpAccessLogEntry)| {
        let mut entry = http();
        f(&mut entry);
        decode(&entry).0.expect_err("invalid")
    };
    assert_eq!(with(|e| e.common_properties = None), InvalidEntry::MissingCommonProperties);
    assert_eq!(with(|e| e.common_properties.as_mut().expect("set").start_time = None), InvalidEntry::MissingStartTime);
    assert_eq!(
        with(|e| e.common_properties.as_mut().expect("set").start_time = Some(Timestamp { seconds: -1, nanos: 0 })),
        InvalidEntry::InvalidStartTime
    );
    // Field 5 of `request`, with a byte that is no UTF-8.
    let mut tally = Tally::default();
    let bytes = [0x1a, 3, 0x2a, 1, 0xff];
    let hop = one(&mut EntryDecoder::new(), EntryKind::Http, &bytes, &mut tally);
    assert_eq!(hop, Err(InvalidEntry::Undecodable));
}

#[test]
fn what_is_wrong_with_an_optional_field_is_counted_and_left_out() {
    let mut entry = http();
    let c = entry.common_properties.as_mut().expect("set");
    c.time_to_last_rx_byte = Some(Duration { seconds: -1, nanos: 0 });
    c.duration = Some(Duration { seconds: i64::MAX, nanos: 0 });
    c.upstream_local_address = Some(Address { address: Some(address::Address::Pipe(Pipe::default())) });
    c.upstream_remote_address = addr("not an address", 1);
    entry.protocol_version = 99;
    entry.request.as_mut().expect("set").request_method = -5;
    entry.response.as_mut().expect("set").response_code = Some(UInt32Value { value: 100_000 });
    let (hop, tally) = kept(&entry);
    assert_eq!(
        malformed(&tally),
        [
            ("negative_duration", 1),
            ("absurd_duration", 1),
            ("invalid_address", 1),
            ("pipe_address", 1),
            ("invalid_response_code", 1),
            ("unknown_number", 2)
        ]
    );
    assert_eq!((hop.timings.time_to_last_rx_byte, hop.timings.duration), (None, None));
    assert_eq!((hop.upstream_local_address, hop.upstream_remote_address), (None, None));
    assert_eq!((hop.method, hop.response_code, hop.protocol), (None, None, HopProtocol::Http));
    // Envoy's 0 for "no response began" is not malformed.
    let mut entry = http();
    entry.response.as_mut().expect("set").response_code = Some(UInt32Value { value: 0 });
    let (hop, tally) = kept(&entry);
    assert_eq!((hop.response_code, malformed(&tally)), (None, vec![]));
}

#[test]
fn hostile_strings_are_cut_on_a_character() {
    let mut entry = http();
    let request = entry.request.as_mut().expect("set");
    request.path = format!("/{}", "é".repeat(1_000_000));
    request.authority = "a".repeat(1_000_000);
    request.request_id = "i".repeat(1_000_000);
    let (hop, tally) = kept(&entry);
    assert_eq!(hop.path.map(|p| p.len()), Some(MAX_PATH - 1));
    assert_eq!(hop.authority.map(|a| a.len()), Some(MAX_TEXT));
    assert_eq!(hop.request_id.map(|r| r.0.len()), Some(MAX_ID));
    assert_eq!(malformed(&tally), [("cut_string", 3)]);
    // What follows the query's mark is never kept, whatever it looks like.
    for (path, want) in [("?/a", None), ("/a#b?c", Some("/a")), ("*", Some("*")), ("http://h/p?q", Some("http://h/p"))]
    {
        let mut entry = http();
        entry.request.as_mut().expect("set").path = path.to_owned();
        assert_eq!(kept(&entry).0.path.as_deref(), want);
    }
}

#[test]
fn entries_that_are_not_terminal_are_kept_apart_by_type() {
    let mut types = std::collections::HashSet::new();
    for number in 0..20 {
        let mut entry = http();
        entry.common_properties.as_mut().expect("set").access_log_type = number;
        let (hop, tally) = decode(&entry);
        let kind = hop.expect("valid").access_log_type;
        let terminal = matches!(number, 0 | 3 | 6);
        assert_eq!(kind.is_terminal(), terminal, "{number}");
        assert_eq!(tally.not_terminal.iter().sum::<u64>(), u64::from(!terminal), "{number}");
        if let Ok(name) = WireType::try_from(number) {
            assert!(types.insert(kind), "{kind:?} stands for one number only");
            assert_ne!(kind, AccessLogType::Other);
            if !terminal {
                let counted =
                    LogType::ALL.iter().find(|k| k.as_str() == name.as_str_name()).expect("named as Envoy does");
                assert_eq!(tally.not_terminal[*counted as usize], 1);
                assert_eq!(counted.model(), kind);
            }
        } else {
            assert_eq!(kind, AccessLogType::Other);
        }
    }
    let mut entry = http();
    #[expect(deprecated, reason = "what Envoys before 1.26 send")]
    let old = AccessLogCommon { access_log_type: 0, intermediate_log_entry: true, ..common() };
    entry.common_properties = Some(old);
    assert_eq!(kept(&entry).0.access_log_type, AccessLogType::Intermediate);
}

/// A certificate with one name.
fn certificate(uri: &str, subject: &str) -> Option<CertificateProperties> {
    Some(CertificateProperties {
        subject_alt_name: vec![SubjectAltName { san: Some(San::Uri(uri.to_owned())) }],
        subject: subject.to_owned(),
        issuer: "not kept".to_owned(),
    })
}

fn peer(workload: &str) -> Any {
    let value = Value { kind: Some(Kind::StringValue(workload.to_owned())) };
    let object = Struct { fields: [("workload".to_owned(), value)].into() };
    Any { type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(), value: object.encode_to_vec() }
}

#[test]
fn every_detail_of_an_entry() {
    let mut entry = http();
    let c = entry.common_properties.as_mut().expect("set");
    (c.downstream_wire_bytes_sent, c.downstream_wire_bytes_received) = (1, 2);
    (c.upstream_wire_bytes_sent, c.upstream_wire_bytes_received) = (3, 4);
    c.upstream_transport_failure_reason = "TLS_error: certificate".to_owned();
    c.connection_termination_details = "rbac_access_denied".to_owned();
    c.tls_properties = Some(TlsProperties {
        tls_version: 4,
        tls_cipher_suite: Some(UInt32Value { value: 0x1302 }),
        tls_sni_hostname: "reviews".to_owned(),
        local_certificate_properties: certificate("spiffe://td/ns/default/sa/reviews", ""),
        peer_certificate_properties: certificate("spiffe://td/ns/default/sa/productpage", "CN=productpage"),
        tls_session_id: "not kept".to_owned(),
        ja3_fingerprint: "not kept".to_owned(),
    });
    c.filter_state_objects.insert("downstream_peer".to_owned(), peer("productpage-v1"));
    c.filter_state_objects.insert("wasm.upstream_peer".to_owned(), peer("older"));
    c.filter_state_objects.insert("upstream_peer_obj".to_owned(), peer("reviews-v1"));
    c.filter_state_objects.insert("something.else".to_owned(), Any { type_url: "x".to_owned(), value: vec![1] });
    for (tag, value) in [
        ("connection_id", "7"),
        ("upstream_connect_ns", "120000"),
        ("upstream_protocol", "HTTP/2"),
        ("mine", "not kept"),
    ] {
        c.custom_tags.insert(tag.to_owned(), value.to_owned());
    }
    let request = entry.request.as_mut().expect("set");
    request.request_headers_bytes = 5;
    (request.upstream_header_bytes_sent, request.downstream_header_bytes_received) = (6, 7);
    let response = entry.response.as_mut().expect("set");
    response.response_headers_bytes = 8;
    (response.upstream_header_bytes_received, response.downstream_header_bytes_sent) = (9, 10);
    let (hop, tally) = kept(&entry);
    assert_eq!(malformed(&tally), []);
    let b = hop.details.bytes;
    let all = [
        b.downstream_wire_bytes_sent,
        b.downstream_wire_bytes_received,
        b.upstream_wire_bytes_sent,
        b.upstream_wire_bytes_received,
        b.request_headers_bytes,
        b.upstream_header_bytes_sent,
        b.downstream_header_bytes_received,
        b.response_headers_bytes,
        b.upstream_header_bytes_received,
        b.downstream_header_bytes_sent,
    ];
    assert_eq!(all.map(|n| n.expect("set").get()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let tls = hop.details.tls.expect("set");
    assert_eq!((tls.version, tls.cipher_suite), (Some(TlsVersion::Tls13), Some(0x1302)));
    assert_eq!(
        (&tls.local_san[..], &tls.local_subject),
        (&["spiffe://td/ns/default/sa/reviews".to_owned()][..], &None)
    );
    assert_eq!(tls.peer_san, ["spiffe://td/ns/default/sa/productpage"]);
    assert_eq!(tls.peer_subject.as_deref(), Some("CN=productpage"));
    let workload = |p: Option<Arc<Peer>>| p.expect("set").workload.clone().expect("set");
    assert_eq!(workload(hop.details.downstream_peer), "productpage-v1");
    assert_eq!(workload(hop.details.upstream_peer), "reviews-v1", "the newest encoding");
    let tags = hop.details.tags.expect("set");
    assert_eq!((tags.connection_id, tags.upstream_connection_id), (Some(7), None));
    assert_eq!((tags.upstream_connect, tags.upstream_protocol), (Some(DurationNs(120_000)), Some(HopProtocol::Http2)));
    let failure = hop.details.failure.expect("set");
    assert_eq!(failure.upstream_transport_failure_reason.as_deref(), Some("TLS_error: certificate"));
    assert_eq!(failure.connection_termination_details.as_deref(), Some("rbac_access_denied"));
    assert_eq!(failure.downstream_transport_failure_reason, None);
    // An entry that says none of it has none of it.
    let mut plain = http();
    plain.common_properties.as_mut().expect("set").tls_properties = None;
    assert_eq!(kept(&plain).0.details, HopDetails::default());
}

#[test]
fn details_of_the_same_connection_are_one_copy() {
    let (mut decoder, mut tally) = (EntryDecoder::new(), Tally::default());
    let mut entry = http();
    let c = entry.common_properties.as_mut().expect("set");
    c.tls_properties = Some(TlsProperties { tls_version: 4, ..Default::default() });
    c.filter_state_objects.insert("downstream_peer".to_owned(), peer("productpage-v1"));
    let bytes = entry.encode_to_vec();
    let mut next = || one(&mut decoder, EntryKind::Http, &bytes, &mut tally).expect("valid").details;
    let (a, b) = (next(), next());
    assert!(Arc::ptr_eq(&a.tls.expect("set"), &b.tls.expect("set")));
    assert!(Arc::ptr_eq(&a.downstream_peer.expect("set"), &b.downstream_peer.expect("set")));
}

#[test]
fn no_header_no_query_and_no_foreign_tag_is_kept() {
    const SECRET: &str = "s3cr3t";
    let text = || SECRET.to_owned();
    let mut entry = http();
    let c = entry.common_properties.as_mut().expect("set");
    c.custom_tags.insert(text(), text());
    c.custom_tags.insert("authorization".to_owned(), text());
    // A tag of ours with a value that is not of its kind could be anything.
    c.custom_tags.insert("connection_id".to_owned(), text());
    c.custom_tags.insert("upstream_protocol".to_owned(), text());
    c.filter_state_objects.insert("other".to_owned(), Any { type_url: text(), value: SECRET.into() });
    let labels = Struct { fields: [("password".to_owned(), Value { kind: Some(Kind::StringValue(text())) })].into() };
    let object = Struct {
        fields: [
            ("labels".to_owned(), Value { kind: Some(Kind::StructValue(labels.clone())) }),
            ("password".to_owned(), Value { kind: Some(Kind::StringValue(text())) }),
        ]
        .into(),
    };
    let any = Any { type_url: "google.protobuf.Struct".to_owned(), value: object.encode_to_vec() };
    c.filter_state_objects.insert("upstream_peer".to_owned(), any);
    c.metadata = Some(Metadata { filter_metadata: [(text(), labels)].into(), ..Default::default() });
    c.tls_properties = Some(TlsProperties { tls_session_id: text(), ja3_fingerprint: text(), ..Default::default() });
    let request = entry.request.as_mut().expect("set");
    request.path = format!("/a?token={SECRET}#{SECRET}");
    request.original_path = format!("/{SECRET}");
    (request.user_agent, request.referer, request.forwarded_for) = (text(), text(), text());
    request.request_headers.insert("authorization".to_owned(), text());
    let response = entry.response.as_mut().expect("set");
    response.response_headers.insert("set-cookie".to_owned(), text());
    response.response_trailers.insert(text(), text());
    let (hop, tally) = kept(&entry);
    let shown = format!("{hop:?}");
    assert!(!shown.contains(SECRET), "{shown}");
    assert_eq!(malformed(&tally), [("invalid_tag", 2)]);
}

#[test]
fn strings_that_repeat_are_kept_once() {
    let (mut decoder, mut tally) = (EntryDecoder::new(), Tally::default());
    let bytes = http().encode_to_vec();
    let mut next = || one(&mut decoder, EntryKind::Http, &bytes, &mut tally).expect("valid");
    let (a, b) = (next(), next());
    for (a, b) in [(a.upstream_cluster, b.upstream_cluster), (a.path, b.path), (a.method, b.method)] {
        assert!(Arc::ptr_eq(&a.expect("set"), &b.expect("set")));
    }
}

proptest! {
    /// A valid entry with some of its bytes changed: kept, refused or not terminal, but never a panic.
    #[test]
    fn damaged_entries_are_survived(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = http().encode_to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut tally = Tally::default();
        let hop = one(&mut EntryDecoder::new(), EntryKind::Http, &bytes, &mut tally);
        if let Ok(hop) = hop {
            prop_assert!(hop.path.is_none_or(|p| p.len() <= MAX_PATH));
            prop_assert!(hop.timings.extent().is_none_or(|d| !d.is_negative()));
        }
    }
}
