//! What a real Envoy 1.40.0 sent (see `fixtures/README.md`), down to the nanosecond.

use meshdiff_als::StreamDecoder;
use meshdiff_model::{AccessLogType, HopProtocol, HopSide, Proxy, ProxyKind, Side, WallTime};
use std::collections::BTreeMap;
use std::sync::Arc;

const CLIENT_HTTP: &[u8] = include_bytes!("fixtures/client-http.bin");
const SERVER_HTTP: &[u8] = include_bytes!("fixtures/server-http.bin");
const CLIENT_TCP: &[u8] = include_bytes!("fixtures/client-tcp.bin");

fn decode(message: &[u8]) -> (Arc<Proxy>, Vec<HopSide>) {
    let mut decoder = StreamDecoder::new(None);
    let batch = decoder.decode(message);
    let stats = decoder.stats();
    assert_eq!(stats.kept, batch.ended() as u64);
    assert_eq!(stats.entries(), stats.kept);
    let malformed = [stats.malformed_messages, stats.malformed_entries, stats.malformed_fields];
    assert_eq!(malformed, [const { BTreeMap::new() }; 3]);
    let entries = batch.entries();
    (batch.proxy.expect("the first message introduces its sender"), entries)
}

/// The spans in the order in which Envoy's documentation lists them.
fn spans(hop: &HopSide) -> [Option<i64>; 8] {
    let t = hop.timings;
    [
        t.time_to_last_rx_byte,
        t.time_to_first_upstream_tx_byte,
        t.time_to_last_upstream_tx_byte,
        t.time_to_first_upstream_rx_byte,
        t.time_to_last_upstream_rx_byte,
        t.time_to_first_downstream_tx_byte,
        t.time_to_last_downstream_tx_byte,
        t.duration,
    ]
    .map(|d| d.map(|d| d.0))
}

fn flags(hop: &HopSide) -> Vec<&str> {
    hop.response_flags.iter().map(|f| &**f).collect()
}

#[test]
fn the_node_of_a_sidecar() {
    let (proxy, _) = decode(CLIENT_HTTP);
    assert_eq!(&*proxy.node.0, "sidecar~127.0.77.2~productpage-v1-abc.default~default.svc.cluster.local");
    assert_eq!(proxy.kind, ProxyKind::Sidecar);
    assert_eq!(proxy.address, "127.0.77.2".parse().ok());
    assert_eq!(proxy.instance_ips, [std::net::IpAddr::from([127, 0, 77, 2])]);
    let text = [
        &proxy.pod,
        &proxy.namespace,
        &proxy.workload,
        &proxy.owner,
        &proxy.service,
        &proxy.version,
        &proxy.cluster_id,
        &proxy.node_name,
        &proxy.locality,
        &proxy.istio_version,
        &proxy.envoy_version,
        &proxy.interception_mode,
    ];
    assert_eq!(
        text.map(|t| t.as_deref().unwrap_or("nothing")),
        [
            "productpage-v1-abc",
            "default",
            "productpage-v1",
            "kubernetes://apis/apps/v1/namespaces/default/deployments/productpage-v1",
            "productpage",
            "v1",
            "Kubernetes",
            "node-1",
            "region-1/zone-a",
            "1.30.0",
            "1.40.0",
            "REDIRECT",
        ]
    );
    assert_eq!(proxy.labels.len(), 4);
}

#[test]
fn both_halves_of_a_request() {
    let (client, server) = (decode(CLIENT_HTTP).1, decode(SERVER_HTTP).1);
    let (c, s) = (&client[0], &server[0]);
    assert_eq!((c.side, s.side), (Some(Side::Client), Some(Side::Server)));
    assert_eq!(c.start_time, WallTime(1_795_368_557_973_492_000));
    let all = |of: [i64; 8]| of.map(Some);
    assert_eq!(
        spans(c),
        all([344_654, 4_207_040, 4_207_192, 14_151_733, 14_311_975, 14_284_135, 14_347_924, 14_366_835])
    );
    assert_eq!(spans(s), all([81_510, 387_202, 387_342, 9_007_904, 9_301_392, 9_255_459, 9_343_949, 9_380_174]));
    assert_eq!(c.upstream_local_address.map(|a| a.0), s.downstream_direct_remote_address.map(|a| a.0));
    assert_eq!(s.upstream_local_address.map(|a| a.to_string()).as_deref(), Some("127.0.0.6:49750"));
    assert_eq!(c.upstream_remote_address.map(|a| a.to_string()).as_deref(), Some("127.0.77.3:15006"));
    assert_eq!((c.downstream_tls, s.downstream_tls), (false, true));
    assert_eq!(s.tls_sni_hostname.as_deref(), Some("outbound_.9080_._.reviews.default.svc.cluster.local"));
    for hop in [c, s] {
        assert_eq!(hop.protocol, HopProtocol::Http11);
        assert_eq!(hop.access_log_type, AccessLogType::DownstreamEnd);
        assert_eq!(hop.method.as_deref(), Some("GET"));
        assert_eq!(hop.path.as_deref(), Some("/reviews/0"), "Envoy sent `/reviews/0?user=secret`");
        assert_eq!((hop.response_code, hop.upstream_request_attempt_count), (Some(200), Some(1)));
        assert_eq!((hop.request_body_bytes, hop.response_body_bytes), (0, 6));
        assert_eq!(hop.request_id.as_ref().map(|r| &*r.0), Some("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11"));
        assert_eq!(hop.response_code_details.as_deref(), Some("via_upstream"));
    }
    // The second pair: one connection upstream serves several downstream, and X-Forwarded-For rewrites the peer.
    let (c, s) = (&client[1], &server[1]);
    assert_eq!(c.upstream_local_address, client[0].upstream_local_address);
    assert_ne!(c.downstream_direct_remote_address, client[0].downstream_direct_remote_address);
    assert_eq!(c.downstream_remote_address.map(|a| a.to_string()).as_deref(), Some("8.8.8.8:0"));
    assert_eq!((c.request_body_bytes, c.method.as_deref()), (4, Some("POST")));
    assert_eq!(c.request_id, s.request_id);
}

#[test]
fn what_never_reached_the_server() {
    let (_, hops) = decode(CLIENT_HTTP);
    let by_path = |path: &str| hops.iter().find(|h| h.path.as_deref() == Some(path)).expect("recorded");

    let direct = by_path("/direct");
    assert_eq!((direct.response_code, direct.response_code_details.as_deref()), (Some(418), Some("direct_response")));
    assert_eq!((direct.upstream_cluster.as_deref(), direct.side), (None, Some(Side::Client)), "by its addresses");
    assert_eq!((direct.upstream_local_address, direct.upstream_request_attempt_count), (None, None));

    let refused = by_path("/dead");
    assert_eq!((flags(refused), refused.upstream_request_attempt_count), (vec!["UF", "URX"], Some(2)));
    assert!(refused.upstream_remote_address.is_some() && refused.upstream_local_address.is_none());

    assert_eq!(flags(by_path("/nr")), ["NC"]);
    assert_eq!((flags(by_path("/none")), by_path("/none").response_code), (vec!["NR"], Some(404)));
    assert!(hops.iter().any(|h| h.method.is_none()), "PROPFIND has no number in the API");

    let gone = by_path("/reviews/gone");
    assert_eq!((flags(gone), gone.response_code), (vec!["DC"], None), "Envoy sent 0");
    assert_eq!(gone.timings.time_to_last_downstream_tx_byte, None);
    assert_eq!(gone.timings.extent().map(|d| d.0), Some(3_913_142));
}

#[test]
fn a_tcp_connection() {
    let (_, hops) = decode(CLIENT_TCP);
    let [hop] = hops.as_slice() else { panic!("one entry, not {}", hops.len()) };
    assert_eq!((hop.protocol, hop.side), (HopProtocol::Tcp, Some(Side::Client)));
    assert_eq!(hop.access_log_type, AccessLogType::TcpConnectionEnd);
    assert_eq!(spans(hop), [None, None, None, None, None, None, None, Some(12_332_844)]);
    assert_eq!((hop.request_body_bytes, hop.response_body_bytes), (81, 117));
    assert_eq!((&hop.request_id, &hop.method, hop.response_code), (&None, &None, None));
    assert!(hop.stream_id.is_some());
}

#[test]
fn cut_anywhere_a_message_is_counted_and_survived() {
    for whole in [CLIENT_HTTP, SERVER_HTTP, CLIENT_TCP] {
        let mut decoder = StreamDecoder::new(None);
        for end in 0..whole.len() {
            decoder.decode(&whole[..end]);
        }
        let stats = decoder.stats();
        assert_eq!(stats.messages, whole.len() as u64);
        assert_eq!(stats.entries(), stats.accounted());
        assert!(stats.malformed_messages["undecodable"] > 0);
        assert_eq!(decoder.decode(whole).ended(), decode(whole).1.len(), "the next message is whole");
    }
}
