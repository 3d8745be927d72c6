//! What is written is what is read, for every table and any rows.

use meshdiff_capture::{Capture, CaptureSink, CaptureState, CaptureWriter, WriterOptions};
use meshdiff_model::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;

mod common;

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z./|~-]{1,24}", any::<String>()]
}
fn text() -> impl Strategy<Value = Arc<str>> {
    texts().prop_map(Arc::from)
}
fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>()
}
fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    (ip(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}
fn mono() -> impl Strategy<Value = MonotonicNs> {
    any::<u64>().prop_map(MonotonicNs)
}
fn span() -> impl Strategy<Value = DurationNs> {
    any::<i64>().prop_map(DurationNs)
}
fn seq() -> impl Strategy<Value = SeqNo> {
    any::<u32>().prop_map(SeqNo)
}
fn instants() -> impl Strategy<Value = Instants> {
    vec((seq(), mono()).prop_map(|(seq, at)| SeqInstant { seq, at }), 0..4).prop_map(Instants::from)
}

prop_compose! {
    fn tls()(
        offered in option::of(0x0300_u16..0x0305), version in option::of(0x0300_u16..0x0305), sni in option::of(text()),
        alpn_offered in vec(text(), 0..3), alpn in option::of(text()), plaintext_seen in any::<bool>(),
    ) -> TlsInfo {
        let of = |n: Option<u16>| n.and_then(TlsVersion::from_wire);
        TlsInfo { offered: of(offered), version: of(version), sni, alpn_offered, alpn, plaintext_seen }
    }
}

prop_compose! {
    fn life()(
        role in prop::sample::select(vec![None, Some(SocketRole::Connected), Some(SocketRole::Accepted)]),
        handshake in option::of(span()), error in option::of(any::<u16>()), ended in any::<bool>(),
        by in prop::sample::select(vec![Closer::Local, Closer::Remote, Closer::Kernel]), reset in any::<bool>(),
        duration in option::of(span()),
    ) -> (Option<SocketRole>, Option<DurationNs>, Option<Errno>, Option<Close>) {
        (role, handshake, error.map(Errno), ended.then_some(Close { by, reset, duration }))
    }
}

prop_compose! {
    fn sockets()(
        cookie in any::<u64>(), netns in any::<u32>(), local in socket_addr(), remote in socket_addr(),
        owner in option::of(any::<u32>()), times in vec(option::of(mono()), 3), seen in (mono(), mono()),
        srtt in option::of(span()), lost_events in any::<u64>(), tls in option::of(tls()),
        life in life(),
    ) -> Socket {
        Socket {
            cookie: SocketCookie(cookie), netns: NetnsId(netns), local: LocalAddr(local), remote: PeerAddr(remote),
            owner: owner.map(Tgid), connect_start: times[0], established: times[1], closed: times[2],
            first_seen: seen.0, last_seen: seen.1, srtt, lost_events, tls,
            role: life.0, handshake: life.1, connect_error: life.2, close: life.3,
        }
    }
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Unknown),
        (text(), text()).prop_map(|(method, path)| Content::Http1Request { method, path }),
        any::<u16>().prop_map(|status| Content::Http1Response { status }),
        Just(Content::Http2Preface),
        Just(Content::TlsHandshake),
        Just(Content::TlsApplicationData),
    ]
}

prop_compose! {
    fn messages()(
        cookie in 0_u64..3, egress in any::<bool>(), range in (seq(), seq()), sends in instants(), readies in instants(),
        recvs in instants(), held in instants(), retransmits in instants(), elided in any::<u32>(), gap_before in any::<bool>(), content in content(),
        head_end in option::of(seq()),
    ) -> Message {
        Message {
            socket: SocketCookie(cookie), direction: if egress { Direction::Egress } else { Direction::Ingress },
            seq: SeqRange { start: range.0, end: range.1 }, sends, readies, recvs, held, retransmits, elided, gap_before, content, head_end,
        }
    }
}

prop_compose! {
    fn peers()(s in vec(option::of(texts()), 10)) -> Arc<Peer> {
        Arc::new(Peer {
            name: s[0].clone(), namespace: s[1].clone(), workload: s[2].clone(), workload_type: s[3].clone(), service: s[4].clone(),
            revision: s[5].clone(), cluster: s[6].clone(), app: s[7].clone(), version: s[8].clone(), identity: s[9].clone(),
        })
    }
}

prop_compose! {
    fn details()(
        b in vec(any::<u64>(), 10), peers in (option::of(peers()), option::of(peers())), ids in (option::of(any::<u64>()), option::of(any::<u64>())),
        t in vec(option::of(span()), 4), protocol in option::of(prop::sample::select(vec![HopProtocol::Http11, HopProtocol::Http2])),
        s in vec(option::of(text()), 3), san in vec(texts(), 0..3), subject in option::of(texts()), suite in option::of(any::<u16>()),
        version in option::of(prop::sample::select(vec![TlsVersion::Tls12, TlsVersion::Tls13])), tls in any::<bool>(),
    ) -> HopDetails {
        let b: Vec<_> = b.into_iter().map(NonZeroU64::new).collect();
        let tags = HopTags {
            connection_id: ids.0, upstream_connection_id: ids.1, upstream_connect: t[0], upstream_handshake: t[1],
            upstream_connected_after: t[2], upstream_ready_after: t[3], upstream_protocol: protocol,
        };
        let failure = HopFailure {
            upstream_transport_failure_reason: s[0].clone(), downstream_transport_failure_reason: s[1].clone(),
            connection_termination_details: s[2].clone(),
        };
        HopDetails {
            bytes: HopBytes {
                downstream_wire_bytes_sent: b[0], downstream_wire_bytes_received: b[1], upstream_wire_bytes_sent: b[2],
                upstream_wire_bytes_received: b[3], downstream_header_bytes_sent: b[4], downstream_header_bytes_received: b[5],
                upstream_header_bytes_sent: b[6], upstream_header_bytes_received: b[7], request_headers_bytes: b[8],
                response_headers_bytes: b[9],
            },
            tls: tls.then(|| Arc::new(HopTls {
                version, cipher_suite: suite, peer_subject: subject.clone(), peer_san: san.clone(), local_subject: subject, local_san: san,
            })),
            downstream_peer: peers.0, upstream_peer: peers.1,
            tags: (tags != HopTags::default()).then(|| Box::new(tags)),
            failure: (failure != HopFailure::default()).then(|| Box::new(failure)),
        }
    }
}

prop_compose! {
    fn access_logs()(
        node in text(), side in prop_oneof![Just(None), Just(Some(Side::Client)), Just(Some(Side::Server))],
        protocol in prop::sample::select(vec![HopProtocol::Http, HopProtocol::Http10, HopProtocol::Http11,
            HopProtocol::Http2, HopProtocol::Http3, HopProtocol::Tcp]),
        access_log_type in prop::sample::select(vec![AccessLogType::NotSet, AccessLogType::DownstreamEnd,
            AccessLogType::TcpConnectionEnd, AccessLogType::UpstreamEnd, AccessLogType::TcpPeriodic, AccessLogType::Other]),
        start in any::<i64>(), t in vec(option::of(span()), 8), a in vec(option::of(socket_addr()), 5),
        s in vec(option::of(text()), 8), attempts in option::of(any::<u32>()), response_flags in vec(text(), 0..3),
        same_ids in any::<bool>(), response_code in option::of(any::<u16>()), bytes in (any::<u64>(), any::<u64>()),
        downstream_tls in any::<bool>(), details in details(),
    ) -> HopSide {
        HopSide {
            node: NodeId(node), side, protocol, access_log_type, start_time: WallTime(start),
            timings: HopTimings {
                time_to_last_rx_byte: t[0], time_to_first_upstream_tx_byte: t[1], time_to_last_upstream_tx_byte: t[2],
                time_to_first_upstream_rx_byte: t[3], time_to_last_upstream_rx_byte: t[4],
                time_to_first_downstream_tx_byte: t[5], time_to_last_downstream_tx_byte: t[6], duration: t[7],
            },
            downstream_direct_remote_address: a[0].map(DownstreamDirectRemoteAddr),
            downstream_remote_address: a[1].map(DownstreamRemoteAddr),
            downstream_local_address: a[2].map(DownstreamLocalAddr),
            upstream_local_address: a[3].map(UpstreamLocalAddr),
            upstream_remote_address: a[4].map(UpstreamRemoteAddr),
            upstream_cluster: s[0].clone(), route_name: s[1].clone(), upstream_request_attempt_count: attempts,
            response_flags, request_id: s[2].clone().map(RequestId),
            stream_id: if same_ids { s[2].clone() } else { s[3].clone() },
            method: s[4].clone(), authority: s[5].clone(), path: s[6].clone(), response_code,
            response_code_details: s[7].clone(), request_body_bytes: bytes.0, response_body_bytes: bytes.1,
            tls_sni_hostname: s[1].clone(), downstream_tls, details,
        }
    }
}

prop_compose! {
    fn proxies()(
        node in text(), kind in prop::sample::select(vec![ProxyKind::Sidecar, ProxyKind::Router, ProxyKind::Waypoint, ProxyKind::Other]),
        address in option::of(ip()), instance_ips in vec(ip(), 0..4), s in vec(option::of(texts()), 12),
        labels in btree_map(texts(), texts(), 0..4),
    ) -> Proxy {
        Proxy {
            node: NodeId(node), kind, address, instance_ips, pod: s[0].clone(), namespace: s[1].clone(),
            workload: s[2].clone(), owner: s[3].clone(), service: s[4].clone(), version: s[5].clone(),
            cluster_id: s[6].clone(), node_name: s[7].clone(), locality: s[8].clone(), istio_version: s[9].clone(),
            envoy_version: s[10].clone(), interception_mode: s[11].clone(), labels,
        }
    }
}

prop_compose! {
    fn processes()(
        tgid in any::<u32>(), netns in any::<u32>(), comm in texts(), exe in option::of(texts()),
        uid in option::of(any::<u32>()), cgroup in option::of(texts()), sidecar in any::<bool>(),
    ) -> Process {
        let role = if sidecar { ProcessRole::Sidecar } else { ProcessRole::Application };
        Process { tgid: Tgid(tgid), netns: NetnsId(netns), comm, exe, uid, cgroup, role }
    }
}

fn state() -> impl Strategy<Value = TcpState> {
    (1_u8..=12).prop_map(|n| TcpState::from_kernel(n).expect("a state"))
}

fn events() -> impl Strategy<Value = SocketEvent> {
    let kind = prop_oneof![
        (seq(), any::<u32>()).prop_map(|(seq, len)| SocketEventKind::Send { seq, len }),
        (seq(), seq()).prop_map(|(rcv_nxt, copied_seq)| SocketEventKind::Ready { rcv_nxt, copied_seq }),
        (seq(), any::<u32>()).prop_map(|(copied_seq, len)| SocketEventKind::Recv { copied_seq, len }),
        (state(), state()).prop_map(|(old, new)| SocketEventKind::State { old, new }),
        (seq(), any::<u32>()).prop_map(|(next, len)| SocketEventKind::Held { next, len }),
        (seq(), any::<u32>()).prop_map(|(seq, len)| SocketEventKind::Retransmit { seq, len }),
        any::<bool>().prop_map(|received| SocketEventKind::Reset { received }),
        any::<u32>().prop_map(|reason| SocketEventKind::Drop { reason }),
    ];
    (any::<u64>(), any::<u32>(), mono(), any::<u32>(), kind).prop_map(|(cookie, counter, at, tgid, kind)| SocketEvent {
        socket: SocketCookie(cookie),
        counter,
        at,
        tgid: Tgid(tgid),
        kind,
    })
}

fn histogram() -> impl Strategy<Value = ExponentialHistogram> {
    vec((0_u32..64, any::<u64>()).prop_map(|(shift, v)| v >> shift), 0..9).prop_map(|v| v.into_iter().collect())
}

prop_compose! {
    fn metrics()(
        cookie in 0_u64..3, window in 0_u64..3, io in vec((any::<u32>(), any::<u32>(), option::of(histogram())), 2),
        wait in option::of(histogram()), rtt in histogram(), retransmits in any::<u32>(),
        drops in btree_map(text().prop_map(DropReason), any::<u32>().prop_map(u64::from), 0..3), lost in any::<u32>(),
    ) -> SocketMetrics {
        let of = |i: usize, wait: Option<ExponentialHistogram>| IoMetrics {
            calls: io[i].0.into(), bytes: io[i].1.into(), duration: io[i].2.clone(), wait,
        };
        SocketMetrics {
            socket: SocketCookie(cookie), window_start: MonotonicNs(window * 10_000_000_000), write: of(0, None),
            read: of(1, wait), rtt, retransmits: retransmits.into(), drops, lost_events: lost.into(),
        }
    }
}

prop_compose! {
    fn http2_streams()(
        socket in any::<u64>(), stream in any::<u32>(), ends in (seq(), mono(), seq(), mono()),
        head in option::of((seq(), seq())), end in option::of(seq()), counts in (any::<u32>(), any::<u64>(), any::<u32>()),
        data in vec((seq(), mono(), seq(), any::<u64>(), any::<u32>()), 0..4), reset in option::of(any::<u32>()),
        gap in option::of(prop::sample::select(vec![Http2Gap::StillOpen, Http2Gap::NotSeen, Http2Gap::TooMany])),
        from_the_beginning in any::<bool>(), texts in (option::of(text()), option::of(text()), option::of(text())),
        numbers in (option::of(any::<u16>()), option::of(any::<bool>()), option::of(any::<u16>())),
    ) -> Http2Stream {
        let run = |(seq, at, end, bytes, frames)| Http2Data { first: SeqInstant { seq, at }, end, bytes, frames };
        Http2Stream {
            socket: SocketCookie(socket), stream,
            first: SeqInstant { seq: ends.0, at: ends.1 }, last: SeqInstant { seq: ends.2, at: ends.3 },
            head: head.map(|(start, end)| SeqRange { start, end }), end,
            frames: counts.0, data_bytes: counts.1, interim: counts.2, data: data.into_iter().map(run).collect(),
            reset, gap, from_the_beginning,
            fields: Http2Fields {
                method: texts.0, path: texts.1, request_id: texts.2.map(RequestId),
                status: numbers.0, grpc: numbers.1, grpc_status: numbers.2,
            },
        }
    }
}

fn last_by<R: Clone, K: Ord>(rows: &[R], key: impl Fn(&R) -> K) -> Vec<R> {
    rows.iter().map(|r| (key(r), r.clone())).collect::<BTreeMap<_, _>>().into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_written_is_read(
        sockets in vec(sockets(), 0..12), messages in vec(messages(), 0..24), access_logs in vec(access_logs(), 0..12),
        proxies in vec(proxies(), 0..6), processes in vec(processes(), 0..6), events in vec(events(), 0..12),
        metrics in vec(metrics(), 0..9), streams in vec(http2_streams(), 0..12), roll_every in 1_usize..9, in_memory in 1_usize..9,
    ) {
        let tmp = tempfile::tempdir().expect("a folder");
        let dir = tmp.path().join("capture");
        let options = WriterOptions { raw: true, sync: false, max_rows_in_memory: in_memory, ..Default::default() };
        let mut writer = CaptureWriter::create(&dir, &common::meta(), options).expect("created");
        for (i, m) in messages.iter().enumerate() {
            writer.write_message(m.clone()).expect("written");
            if i % roll_every == 0 { writer.roll(&common::meta()).expect("rolled"); }
        }
        for s in &streams { writer.write_http2(s.clone()).expect("written"); }
        for s in &sockets { writer.write_socket(s.clone()).expect("written"); }
        for h in &access_logs { writer.write_access_log(h.clone()).expect("written"); }
        for m in &metrics { writer.write_metrics(m.clone()).expect("written"); }
        for p in &proxies { writer.write_proxy(p.clone()).expect("written"); }
        for p in &processes { writer.write_process(p.clone()).expect("written"); }
        for e in &events { writer.write_event(e.clone()).expect("written"); }
        let stored = writer.finish(common::meta()).expect("finished");
        drop(writer);

        let capture = Capture::open(&dir).expect("opens");
        prop_assert_eq!(capture.state(), CaptureState::Complete);
        let data = capture.read().expect("reads");
        prop_assert!(data.damage.is_empty(), "{:?}", data.damage);
        prop_assert_eq!(&data.meta, &stored);
        prop_assert_eq!(data.sockets, last_by(&sockets, |s| s.cookie));
        let mut expected = messages;
        expected.sort_by_key(|m| (m.socket, m.direction));
        prop_assert_eq!(data.messages, expected);
        // Each part is in the order of the starts.
        let mut logs = access_logs;
        logs.chunks_mut(in_memory).for_each(|part| part.sort_by_key(|log| log.start_time));
        prop_assert_eq!(data.access_logs, logs);
        let mut streams = streams;
        streams.sort_by_key(|s| s.socket);
        prop_assert_eq!(data.http2_streams, streams);
        let mut rows = BTreeMap::new();
        for m in &metrics {
            rows.entry((m.socket, m.window_start)).and_modify(|r: &mut SocketMetrics| r.merge(m)).or_insert_with(|| m.clone());
        }
        prop_assert_eq!(data.metrics, rows.into_values().collect::<Vec<_>>());
        prop_assert_eq!(data.proxies, last_by(&proxies, |p| p.node.clone()));
        prop_assert_eq!(data.processes, last_by(&processes, |p| p.tgid));
        prop_assert_eq!(capture.read_events().expect("reads").0, events);
    }
}

#[test]
fn plausible_rows_are_small() {
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("capture");
    let mut writer = CaptureWriter::create(&dir, &common::meta(), WriterOptions::default()).expect("created");
    // Ten seconds of Bookinfo at 200 requests/s: a roll a second.
    for second in 0..10_u64 {
        for i in 0..9_600 {
            writer.write_message(common::message(second * 9_600 + i)).expect("written");
        }
        for i in 0..1_600 {
            writer.write_access_log(common::access_log(second * 1_600 + i)).expect("written");
        }
        writer.roll(&common::meta()).expect("rolled");
    }
    let meta = writer.finish(common::meta()).expect("finished");
    let per_row = |t| {
        let stats = meta.tables[&t];
        assert!(stats.rows > 0);
        stats.bytes as f64 / stats.rows as f64
    };
    let (message, log) = (per_row(meshdiff_capture::Table::Messages), per_row(meshdiff_capture::Table::AccessLogs));
    println!("bytes per row: message {message:.1}, access log {log:.1}");
    assert!(message < 40.0, "{message}");
    assert!(log < 120.0, "{log}");
    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert_eq!((data.messages.len(), data.access_logs.len()), (96_000, 16_000));
}
