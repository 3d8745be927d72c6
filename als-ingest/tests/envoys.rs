//! What Envoys of several versions sent for the same requests (`fixtures/record.py`).

use meshdiff_als::StreamDecoder;
use meshdiff_model::{AccessLogType, HopProtocol, HopSide, HopTags, Proxy, ProxyKind, Side, TlsVersion};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The messages of one Envoy.
struct Recorded {
    version: &'static str,
    /// Formats as custom tags came after 1.36.
    tags: bool,
    client_http: &'static [u8],
    server_http: &'static [u8],
    client_attempts: &'static [u8],
    server_attempts: &'static [u8],
    client_tcp: &'static [u8],
}

macro_rules! recorded {
    ($version:literal, $tags:literal) => {
        Recorded {
            version: $version,
            tags: $tags,
            client_http: include_bytes!(concat!("fixtures/", $version, "/client-http.bin")),
            server_http: include_bytes!(concat!("fixtures/", $version, "/server-http.bin")),
            client_attempts: include_bytes!(concat!("fixtures/", $version, "/client-attempts.bin")),
            server_attempts: include_bytes!(concat!("fixtures/", $version, "/server-attempts.bin")),
            client_tcp: include_bytes!(concat!("fixtures/", $version, "/client-tcp.bin")),
        }
    };
}

static ENVOYS: [Recorded; 3] = [recorded!("1.36.2", false), recorded!("1.39.3", true), recorded!("1.40.0", true)];

struct Decoded {
    proxy: Arc<Proxy>,
    ended: Vec<HopSide>,
    progress: Vec<HopSide>,
}

fn decode(message: &[u8]) -> Decoded {
    let mut decoder = StreamDecoder::new(None);
    let batch = decoder.decode(message);
    let stats = decoder.stats();
    assert_eq!(stats.entries(), batch.rows.len() as u64);
    let malformed = [stats.malformed_messages, stats.malformed_entries, stats.malformed_fields];
    assert_eq!(malformed, [const { BTreeMap::new() }; 3], "a real Envoy sends nothing that is wrong");
    let (ended, progress) = (batch.entries(), batch.progress());
    Decoded { proxy: batch.proxy.expect("introduced"), ended, progress }
}

fn by_path<'a>(hops: &'a [HopSide], path: &str) -> Vec<&'a HopSide> {
    hops.iter().filter(|h| h.path.as_deref() == Some(path)).collect()
}

fn one<'a>(hops: &'a [HopSide], path: &str) -> &'a HopSide {
    let found = by_path(hops, path);
    let [hop] = found[..] else { panic!("{path}: {} entries", found.len()) };
    hop
}

fn tags(hop: &HopSide) -> HopTags {
    *hop.details.tags.clone().expect("tagged")
}

fn flags(hop: &HopSide) -> Vec<&str> {
    hop.response_flags.iter().map(|f| &**f).collect()
}

#[test]
fn nodes() {
    for envoy in &ENVOYS {
        let client = decode(envoy.client_http).proxy;
        assert_eq!(client.kind, ProxyKind::Sidecar);
        assert_eq!(client.envoy_version.as_deref(), Some(envoy.version));
        assert_eq!(client.workload.as_deref(), Some("productpage-v1"));
        assert_eq!(decode(envoy.server_http).proxy.service.as_deref(), Some("reviews"));
    }
}

#[test]
fn both_halves_of_requests_their_bytes_and_their_peers() {
    for Recorded { version, client_http, server_http, .. } in &ENVOYS {
        let (client, server) = (decode(client_http).ended, decode(server_http).ended);
        assert_eq!((client.len(), server.len()), (8, 4), "{version}");
        for path in ["/reviews/0", "/reviews/1", "/reviews/2", "/reviews/slow"] {
            let (c, s) = (one(&client, path), one(&server, path));
            assert_eq!((c.side, s.side), (Some(Side::Client), Some(Side::Server)));
            assert_eq!(c.request_id, s.request_id);
            assert_eq!(c.upstream_local_address.map(|a| a.0), s.downstream_direct_remote_address.map(|a| a.0));
            // What one side sends the other receives: the same bytes, before encryption.
            let (c, s) = (c.details.bytes, s.details.bytes);
            assert_eq!(c.upstream_wire_bytes_sent, s.downstream_wire_bytes_received, "{version} {path}");
            assert_eq!(c.upstream_wire_bytes_received, s.downstream_wire_bytes_sent, "{version} {path}");
            assert!(s.request_headers_bytes >= c.request_headers_bytes);
        }
        let (c, s) = (one(&client, "/reviews/0"), one(&server, "/reviews/0"));
        assert_eq!(c.request_id.as_ref().map(|r| &*r.0), Some("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11"));
        assert_eq!(c.details.bytes.downstream_header_bytes_received.map(|n| n.get()), Some(110));
        let upstream = c.details.upstream_peer.as_ref().expect("told");
        assert_eq!(
            (upstream.workload.as_deref(), upstream.namespace.as_deref()),
            (Some("reviews-v1"), Some("default"))
        );
        let downstream = s.details.downstream_peer.as_ref().expect("told");
        assert_eq!(
            (downstream.service.as_deref(), downstream.cluster.as_deref()),
            (Some("productpage"), Some("Kubernetes"))
        );
        assert_eq!(c.details.tls, None, "curl spoke plainly");
        let tls = s.details.tls.as_ref().expect("encrypted");
        assert_eq!((tls.version, tls.cipher_suite), (Some(TlsVersion::Tls12), Some(0xc02b)));
        assert_eq!(tls.peer_san, ["spiffe://cluster.local/ns/default/sa/productpage"]);
        assert_eq!(tls.local_san, ["spiffe://cluster.local/ns/default/sa/reviews"]);
        assert_eq!(tls.peer_subject.as_deref(), Some("CN=client,O=meshdiff"));
        assert!(server.iter().all(|h| h.details.tls.as_ref().is_some_and(|t| Arc::ptr_eq(t, tls))), "one copy");
    }
}

#[test]
fn failures_and_their_reasons() {
    for Recorded { client_http, client_attempts, .. } in &ENVOYS {
        let (requests, attempts) = (decode(client_http).ended, decode(client_attempts));
        assert!(attempts.ended.is_empty());
        assert!(attempts.progress.iter().all(|h| h.access_log_type == AccessLogType::UpstreamEnd));
        let reason = |hop: &HopSide| {
            hop.details.failure.as_ref().and_then(|f| f.upstream_transport_failure_reason.clone()).expect("a reason")
        };
        let dead = one(&requests, "/dead");
        assert_eq!((dead.upstream_request_attempt_count, flags(dead)), (Some(2), vec!["UF", "URX"]));
        assert!(reason(dead).contains("Connection refused"));
        let tries = by_path(&attempts.progress, "/dead");
        assert_eq!(tries.len(), 2, "one entry for each attempt");
        assert!(tries.iter().all(|t| flags(t) == ["UF"] && t.request_id == dead.request_id));
        assert!(reason(one(&requests, "/untrusted")).contains("TLSV1_ALERT_UNKNOWN_CA"));
        assert_eq!(one(&attempts.progress, "/reviews/0").request_id, one(&requests, "/reviews/0").request_id);
        for path in ["/direct", "/none"] {
            assert_eq!(by_path(&attempts.progress, path).len(), 0, "never tried");
            assert_eq!(one(&requests, path).details.bytes.upstream_wire_bytes_sent, None);
        }
        let gone = one(&requests, "/reviews/slow");
        assert_eq!(
            (flags(gone), gone.response_code, gone.details.bytes.downstream_wire_bytes_sent),
            (vec!["DC"], None, None)
        );
    }
}

#[test]
fn connections_and_how_they_do() {
    for Recorded { client_tcp, .. } in &ENVOYS {
        let Decoded { ended, progress, .. } = decode(client_tcp);
        let [end] = &ended[..] else { panic!("{} ended", ended.len()) };
        assert_eq!((end.access_log_type, end.protocol), (AccessLogType::TcpConnectionEnd, HopProtocol::Tcp));
        let bytes = (end.details.bytes.downstream_wire_bytes_received, end.details.bytes.downstream_wire_bytes_sent);
        assert_eq!((bytes.0.map(|n| n.get()), bytes.1.map(|n| n.get())), (Some(49), Some(117)));
        let types: Vec<_> = progress.iter().map(|h| h.access_log_type).collect();
        assert_eq!(
            types,
            [AccessLogType::TcpUpstreamConnected, AccessLogType::TcpPeriodic, AccessLogType::TcpPeriodic]
        );
        assert!(progress.iter().all(|h| h.stream_id == end.stream_id), "all of one connection");
    }
}

#[test]
fn tags_where_envoy_has_them() {
    for Recorded { version, tags: tagged, client_http, server_http, server_attempts, .. } in &ENVOYS {
        let (client, server) = (decode(client_http).ended, decode(server_http).ended);
        let attempts = decode(server_attempts).progress;
        assert_eq!(attempts.len(), 4);
        let all: Vec<&HopSide> = client.iter().chain(&server).chain(&attempts).collect();
        if !tagged {
            assert!(all.iter().all(|h| h.details.tags.is_none()), "{version}");
            continue;
        }
        let (first, second) = (tags(one(&client, "/reviews/0")), tags(one(&client, "/reviews/1")));
        assert!(first.connection_id.is_some() && first.connection_id != second.connection_id);
        assert_eq!(first.upstream_connection_id, second.upstream_connection_id, "pooled");
        assert_eq!(first.upstream_protocol, Some(HopProtocol::Http11));
        // Connect and handshake are told of every request; that one waited for them, of the first only.
        assert_eq!(first.upstream_connect, second.upstream_connect);
        assert_eq!(first.upstream_handshake, second.upstream_handshake);
        let (connect, handshake) = (first.upstream_connect.expect("told"), first.upstream_handshake.expect("told"));
        let (connected, ready) =
            (first.upstream_connected_after.expect("told"), first.upstream_ready_after.expect("told"));
        assert!(connect < connected && ready.0 - connected.0 == handshake.0, "{first:?}");
        assert_eq!((second.upstream_connected_after, second.upstream_ready_after), (None, None));
        // Towards the application there is no TLS.
        let first = tags(one(&server, "/reviews/0"));
        assert!(first.upstream_connected_after.is_some() && first.upstream_ready_after.is_none());
        // Envoy's number of no connection is 0.
        assert_eq!(tags(one(&client, "/dead")).upstream_connection_id, None);
    }
}

#[test]
fn cut_anywhere_they_are_survived() {
    for envoy in &ENVOYS {
        for whole in [envoy.client_http, envoy.server_attempts, envoy.client_tcp] {
            let mut decoder = StreamDecoder::new(None);
            for end in 0..whole.len() {
                decoder.decode(&whole[..end]);
            }
            let stats = decoder.stats();
            assert_eq!((stats.messages, stats.entries()), (whole.len() as u64, stats.accounted()));
        }
    }
}
