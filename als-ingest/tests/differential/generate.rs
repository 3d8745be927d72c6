//! Entries with any of their fields set, and values that are now and then out of the ordinary.

use envoy_types::pb::envoy::config::core::v3::{
    Address, EnvoyInternalAddress, Metadata, Pipe, SocketAddress, address::Address as Kind,
    envoy_internal_address::AddressNameSpecifier, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties,
    certificate_properties::{SubjectAltName, subject_alt_name::San},
};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
    ResponseFlags, TcpAccessLogEntry, TlsProperties, response_flags::Unauthorized,
};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{
    Any, BytesValue, Duration, ListValue, StringValue, Struct, Timestamp, UInt32Value, Value,
};
use prost::Message;
use std::collections::HashMap;

/// SplitMix64: the same numbers for the same seed, everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.byte()).collect()
    }

    /// Any number, often one at the edge of a type.
    pub(crate) fn integer(&mut self) -> u64 {
        const EDGES: [u64; 12] = [
            0,
            1,
            127,
            128,
            65_535,
            65_536,
            999_999_999,
            1_000_000_000,
            i32::MAX as u64,
            u32::MAX as u64,
            1 << 32,
            u64::MAX,
        ];
        match self.below(3) {
            0 => EDGES[self.below(EDGES.len())],
            1 => self.next() >> self.below(64),
            _ => self.below(1_000) as u64,
        }
    }

    fn int32(&mut self) -> i32 {
        u32::try_from(self.integer() & u64::from(u32::MAX)).expect("masked").cast_signed()
    }

    fn uint32(&mut self) -> u32 {
        self.int32().cast_unsigned()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (!self.one_in(3)).then(|| make(self))
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 14] = [
            "",
            "",
            "default",
            "outbound|9080||reviews.default.svc.cluster.local",
            "inbound|9080||",
            "PassthroughCluster",
            "InboundPassthroughCluster",
            "/reviews/0?user=secret#part",
            "/a#b?c",
            "0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11",
            "via_upstream",
            "é€😀",
            "\u{0}\n",
            "reviews:9080",
        ];
        match self.below(24) {
            0 => "é".repeat(self.below(1_200)),
            1 => "long".repeat(self.below(400)),
            _ => TEXTS[self.below(TEXTS.len())].to_owned(),
        }
    }

    fn texts(&mut self) -> HashMap<String, String> {
        (0..self.below(3)).map(|_| (self.text(), self.text())).collect()
    }

    fn number(&mut self) -> Option<UInt32Value> {
        self.maybe(|r| UInt32Value { value: r.uint32() })
    }

    fn ip(&mut self) -> String {
        const IPS: [&str; 18] = [
            "10.0.0.2",
            "127.0.0.6",
            "127.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1%eth0",
            "2001:db8::1:2",
            "::ffff:10.0.0.2",
            "::6",
            "",
            "10.0.0",
            "10.0.0.256",
            "010.0.0.1",
            "10.0.0.1.",
            "10.0.0.1%3",
            "%",
            "reviews",
            " 10.0.0.1",
        ];
        if self.one_in(2) {
            format!("{}.{}.{}.{}", self.byte(), self.byte(), self.byte(), self.byte())
        } else {
            IPS[self.below(IPS.len())].to_owned()
        }
    }
}

fn address(r: &mut Random) -> Option<Address> {
    let kind = |r: &mut Random| match r.below(8) {
        0 => Kind::Pipe(Pipe { path: r.text(), mode: r.uint32() }),
        1 => Kind::EnvoyInternalAddress(EnvoyInternalAddress {
            endpoint_id: r.text(),
            address_name_specifier: r.maybe(|r| AddressNameSpecifier::ServerListenerName(r.text())),
        }),
        _ => Kind::SocketAddress(SocketAddress {
            protocol: r.int32(),
            address: r.ip(),
            resolver_name: r.text(),
            ipv4_compat: r.one_in(2),
            network_namespace_filepath: r.text(),
            port_specifier: r.maybe(|r| match r.below(6) {
                0 => PortSpecifier::NamedPort(r.text()),
                1 => PortSpecifier::PortValue(r.uint32()),
                _ => PortSpecifier::PortValue(u32::from(r.byte()) * 200),
            }),
        }),
    };
    r.maybe(|r| Address { address: if r.one_in(16) { None } else { Some(kind(r)) } })
}

fn span(r: &mut Random) -> Option<Duration> {
    r.maybe(|r| match r.below(8) {
        0 => Duration { seconds: r.integer().cast_signed(), nanos: r.int32() },
        _ => Duration { seconds: r.below(100) as i64, nanos: i32::from(r.byte()) * 1_000_003 },
    })
}

fn any(r: &mut Random) -> Any {
    Any { type_url: r.text(), value: r.bytes(20) }
}

/// A peer in one of Istio's encodings, or something that is none.
fn peer(r: &mut Random) -> Any {
    const KEYS: [&str; 9] =
        ["name", "namespace", "workload", "NAME", "WORKLOAD_NAME", "OWNER", "cluster", "LABELS", "identity"];
    let kind = |name: &str| format!("type.googleapis.com/google.protobuf.{name}");
    match r.below(5) {
        0 => any(r),
        1 => Any { type_url: kind("BytesValue"), value: BytesValue { value: r.bytes(40) }.encode_to_vec() },
        2 => {
            let value = format!("{};{};{};{};{}", r.text(), r.text(), r.text(), r.text(), r.text());
            Any { type_url: kind("StringValue"), value: StringValue { value }.encode_to_vec() }
        }
        _ => {
            let fields = (0..r.below(4)).map(|_| (KEYS[r.below(KEYS.len())].to_owned(), value(r, 2)));
            Any { type_url: kind("Struct"), value: Struct { fields: fields.collect() }.encode_to_vec() }
        }
    }
}

/// What filters left, peers among it.
fn filter_state(r: &mut Random) -> HashMap<String, Any> {
    const KEYS: [&str; 7] = [
        "upstream_peer",
        "downstream_peer",
        "upstream_peer_obj",
        "downstream_peer_obj",
        "wasm.upstream_peer",
        "wasm.downstream_peer",
        "wasm.upstream_peer_id",
    ];
    let key = |r: &mut Random| if r.one_in(6) { r.text() } else { KEYS[r.below(KEYS.len())].to_owned() };
    (0..r.below(5)).map(|_| (key(r), peer(r))).collect()
}

fn tags(r: &mut Random) -> HashMap<String, String> {
    const KEYS: [&str; 8] = [
        "connection_id",
        "upstream_connection_id",
        "upstream_connect_ns",
        "upstream_handshake_ns",
        "upstream_connected_after_ns",
        "upstream_ready_after_ns",
        "upstream_protocol",
        "mine",
    ];
    const VALUES: [&str; 7] = ["-", "", "HTTP/2", "HTTP/1.1", "+1", "18446744073709551616", "31622400000000001"];
    let tag = |r: &mut Random| {
        let value = match r.below(4) {
            0 => VALUES[r.below(VALUES.len())].to_owned(),
            1 => r.text(),
            _ => r.integer().to_string(),
        };
        (KEYS[r.below(KEYS.len())].to_owned(), value)
    };
    (0..r.below(6)).map(|_| tag(r)).collect()
}

fn structure(r: &mut Random, depth: u32) -> Struct {
    Struct { fields: (0..r.below(3)).map(|_| (r.text(), value(r, depth))).collect() }
}

fn value(r: &mut Random, depth: u32) -> Value {
    let kind = match r.below(if depth == 0 { 5 } else { 7 }) {
        0 => return Value { kind: None },
        1 => ValueKind::NullValue(r.int32()),
        2 => ValueKind::NumberValue(f64::from(r.uint32()) / 3.0),
        3 => ValueKind::StringValue(r.text()),
        4 => ValueKind::BoolValue(r.one_in(2)),
        5 => ValueKind::StructValue(structure(r, depth - 1)),
        _ => ValueKind::ListValue(ListValue { values: (0..r.below(3)).map(|_| value(r, depth - 1)).collect() }),
    };
    Value { kind: Some(kind) }
}

fn metadata(r: &mut Random) -> Metadata {
    Metadata {
        filter_metadata: (0..r.below(3)).map(|_| (r.text(), structure(r, 3))).collect(),
        typed_filter_metadata: (0..r.below(2)).map(|_| (r.text(), any(r))).collect(),
    }
}

fn certificate(r: &mut Random) -> CertificateProperties {
    let name = |r: &mut Random| SubjectAltName {
        san: r.maybe(|r| if r.one_in(2) { San::Uri(r.text()) } else { San::Dns(r.text()) }),
    };
    CertificateProperties {
        subject_alt_name: (0..if r.one_in(9) { 12 } else { r.below(3) }).map(|_| name(r)).collect(),
        subject: r.text(),
        issuer: r.text(),
    }
}

fn tls(r: &mut Random) -> TlsProperties {
    TlsProperties {
        tls_version: if r.one_in(4) { r.int32() } else { i32::from(r.byte() % 6) },
        tls_cipher_suite: r.number(),
        tls_sni_hostname: r.text(),
        local_certificate_properties: r.maybe(certificate),
        peer_certificate_properties: r.maybe(certificate),
        tls_session_id: r.text(),
        ja3_fingerprint: r.text(),
    }
}

fn flags(r: &mut Random) -> ResponseFlags {
    let mut set = || r.one_in(4);
    let mut flags = ResponseFlags {
        failed_local_healthcheck: set(),
        no_healthy_upstream: set(),
        upstream_request_timeout: set(),
        local_reset: set(),
        upstream_remote_reset: set(),
        upstream_connection_failure: set(),
        upstream_connection_termination: set(),
        upstream_overflow: set(),
        no_route_found: set(),
        delay_injected: set(),
        fault_injected: set(),
        rate_limited: set(),
        unauthorized_details: None,
        rate_limit_service_error: set(),
        downstream_connection_termination: set(),
        upstream_retry_limit_exceeded: set(),
        stream_idle_timeout: set(),
        invalid_envoy_request_headers: set(),
        downstream_protocol_error: set(),
        upstream_max_stream_duration_reached: set(),
        response_from_cache_filter: set(),
        no_filter_config_found: set(),
        duration_timeout: set(),
        upstream_protocol_error: set(),
        no_cluster_found: set(),
        overload_manager: set(),
        dns_resolution_failure: set(),
        downstream_remote_reset: set(),
    };
    flags.unauthorized_details = r.maybe(|r| Unauthorized { reason: r.int32() });
    flags
}

#[expect(deprecated, reason = "what Envoys before 1.26 send")]
fn common(r: &mut Random) -> AccessLogCommon {
    AccessLogCommon {
        sample_rate: f64::from(r.byte()),
        downstream_remote_address: address(r),
        downstream_local_address: address(r),
        tls_properties: r.maybe(tls),
        start_time: match r.below(12) {
            0 => None,
            1 => Some(Timestamp { seconds: r.integer().cast_signed(), nanos: r.int32() }),
            _ => Some(Timestamp { seconds: 1_767_225_600, nanos: i32::from(r.byte()) * 1_000 }),
        },
        time_to_last_rx_byte: span(r),
        time_to_first_upstream_tx_byte: span(r),
        time_to_last_upstream_tx_byte: span(r),
        time_to_first_upstream_rx_byte: span(r),
        time_to_last_upstream_rx_byte: span(r),
        time_to_first_downstream_tx_byte: span(r),
        time_to_last_downstream_tx_byte: span(r),
        upstream_remote_address: address(r),
        upstream_local_address: address(r),
        upstream_cluster: r.text(),
        response_flags: r.maybe(flags),
        metadata: r.maybe(metadata),
        upstream_transport_failure_reason: r.text(),
        route_name: r.text(),
        downstream_direct_remote_address: address(r),
        filter_state_objects: filter_state(r),
        custom_tags: tags(r),
        duration: span(r),
        upstream_request_attempt_count: r.uint32(),
        connection_termination_details: r.text(),
        stream_id: r.text(),
        intermediate_log_entry: r.one_in(8),
        downstream_transport_failure_reason: r.text(),
        downstream_wire_bytes_sent: r.integer(),
        downstream_wire_bytes_received: r.integer(),
        upstream_wire_bytes_sent: r.integer(),
        upstream_wire_bytes_received: r.integer(),
        access_log_type: match r.below(8) {
            0 => r.int32(),
            1 => i32::from(r.byte() % 18),
            2 => 0,
            3 => 3,
            _ => 6,
        },
    }
}

/// An HTTP entry's bytes.
pub(crate) fn http_entry(r: &mut Random) -> Vec<u8> {
    let request = |r: &mut Random| HttpRequestProperties {
        request_method: if r.one_in(4) { r.int32() } else { i32::from(r.byte() % 12) },
        scheme: r.text(),
        authority: r.text(),
        port: r.number(),
        path: r.text(),
        user_agent: r.text(),
        referer: r.text(),
        forwarded_for: r.text(),
        request_id: r.text(),
        original_path: r.text(),
        request_headers_bytes: r.integer(),
        request_body_bytes: r.integer(),
        request_headers: r.texts(),
        upstream_header_bytes_sent: r.integer(),
        downstream_header_bytes_received: r.integer(),
    };
    let response = |r: &mut Random| HttpResponseProperties {
        response_code: r.number(),
        response_headers_bytes: r.integer(),
        response_body_bytes: r.integer(),
        response_headers: r.texts(),
        response_trailers: r.texts(),
        response_code_details: r.text(),
        upstream_header_bytes_received: r.integer(),
        downstream_header_bytes_sent: r.integer(),
    };
    let entry = HttpAccessLogEntry {
        common_properties: if r.one_in(16) { None } else { Some(common(r)) },
        protocol_version: if r.one_in(4) { r.int32() } else { i32::from(r.byte() % 6) },
        request: r.maybe(request),
        response: r.maybe(response),
    };
    entry.encode_to_vec()
}

/// A TCP entry's bytes.
pub(crate) fn tcp_entry(r: &mut Random) -> Vec<u8> {
    let entry = TcpAccessLogEntry {
        common_properties: if r.one_in(16) { None } else { Some(common(r)) },
        connection_properties: r
            .maybe(|r| ConnectionProperties { received_bytes: r.integer(), sent_bytes: r.integer() }),
    };
    entry.encode_to_vec()
}
