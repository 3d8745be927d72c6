//! A small recording that looks like one of the lab: HTTP/1.1 keep-alive through two sidecars.
#![expect(dead_code, reason = "each test crate uses a part of it")]

use meshdiff_capture::Meta;
use meshdiff_model::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn socket(cookie: u64) -> Socket {
    Socket {
        cookie: SocketCookie(cookie),
        netns: NetnsId(4_026_532_000 + u32::try_from(cookie % 6).expect("small")),
        local: LocalAddr(addr(&format!("10.77.0.{}:{}", 2 + cookie % 6, 30_000 + noise(cookie) % 20_000))),
        remote: PeerAddr(addr("10.77.0.3:9080")),
        owner: Some(Tgid(4_000 + u32::try_from(cookie % 12).expect("small"))),
        connect_start: Some(MonotonicNs(1_000_000 + cookie)),
        established: Some(MonotonicNs(1_050_000 + cookie)),
        closed: None,
        first_seen: MonotonicNs(1_000_000 + cookie),
        last_seen: MonotonicNs(9_000_000 + cookie),
        srtt: Some(DurationNs(40_000)),
        lost_events: 0,
        role: None,
        handshake: None,
        connect_error: None,
        close: None,
        tls: None,
    }
}

/// The `i`th message of a recording: request and response by turns, on 64 sockets.
pub(crate) fn message(i: u64) -> Message {
    let at = |n: u64| MonotonicNs(86_400_000_000_000 + i * 83_000 + n * 11_000 + noise(i * 8 + n) % 30_000);
    let cookie = 40_000 + noise(i) % 64;
    let start = SeqNo(u32::try_from(noise(cookie) & 0x7fff_ffff).expect("31 bits"))
        .advance(u32::try_from(i).expect("small") * 90);
    let len = 60 + u32::try_from(noise(i) % 900).expect("small");
    let seq = SeqRange::of(start, len);
    let egress = i.is_multiple_of(2);
    let of = |seq, n| Instants::from(vec![SeqInstant { seq, at: at(n) }]);
    Message {
        socket: SocketCookie(cookie),
        direction: if egress { Direction::Egress } else { Direction::Ingress },
        seq,
        sends: if egress { of(seq.start, 0) } else { Instants::new() },
        readies: if egress { Instants::new() } else { of(seq.end, 1) },
        recvs: if egress { Instants::new() } else { of(seq.end, 2) },
        held: Instants::new(),
        retransmits: Instants::new(),
        elided: 0,
        gap_before: false,
        content: match i % 8 {
            0 => Content::Http1Request { method: "GET".into(), path: format!("/reviews/{}", noise(i) % 50).into() },
            2 => Content::Http1Response { status: 200 },
            4 | 6 => Content::TlsApplicationData,
            _ => Content::Unknown,
        },
        head_end: matches!(i % 8, 0 | 2).then(|| seq.start.advance(58)),
    }
}

pub(crate) fn access_log(i: u64) -> HopSide {
    let span = |base: u64, n: u64| Some(DurationNs(i64::try_from(base + noise(i * 16 + n) % 200_000).expect("small")));
    let id: std::sync::Arc<str> = format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        noise(i) >> 32,
        noise(i) & 0xffff,
        noise(i * 3) & 0xfff,
        noise(i * 5) & 0xfff,
        noise(i * 7) & 0xffff_ffff_ffff
    )
    .into();
    let client = i.is_multiple_of(2);
    HopSide {
        node: NodeId(
            format!("sidecar~10.77.0.{}~reviews-v{}-abc.default~default.svc.cluster.local", 2 + i % 6, i % 3).into(),
        ),
        side: Some(if client { Side::Client } else { Side::Server }),
        protocol: HopProtocol::Http11,
        access_log_type: AccessLogType::DownstreamEnd,
        start_time: WallTime(
            1_770_000_000_000_000_000 + i64::try_from(i * 600_000 + noise(i) % 400 * 1_000).expect("small"),
        ),
        timings: HopTimings {
            time_to_last_rx_byte: span(20_000, 0),
            time_to_first_upstream_tx_byte: span(120_000, 1),
            time_to_last_upstream_tx_byte: span(130_000, 2),
            time_to_first_upstream_rx_byte: span(900_000, 3),
            time_to_last_upstream_rx_byte: span(950_000, 4),
            time_to_first_downstream_tx_byte: span(960_000, 5),
            time_to_last_downstream_tx_byte: span(1_000_000, 6),
            duration: span(1_050_000, 7),
        },
        downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(addr(&format!(
            "10.77.0.2:{}",
            30_000 + noise(i) % 64
        )))),
        downstream_remote_address: Some(DownstreamRemoteAddr(addr(&format!("10.77.0.2:{}", 30_000 + noise(i) % 64)))),
        downstream_local_address: Some(DownstreamLocalAddr(addr("10.77.1.9:9080"))),
        upstream_local_address: Some(UpstreamLocalAddr(addr(&format!("10.77.0.2:{}", 40_000 + noise(i + 9) % 64)))),
        upstream_remote_address: Some(UpstreamRemoteAddr(addr("10.77.0.3:9080"))),
        upstream_cluster: Some(
            if client { "outbound|9080||reviews.default.svc.cluster.local" } else { "inbound|9080||" }.into(),
        ),
        route_name: Some("default".into()),
        upstream_request_attempt_count: Some(1),
        response_flags: vec![],
        request_id: Some(RequestId(id.clone())),
        stream_id: Some(id),
        method: Some("GET".into()),
        authority: Some("reviews:9080".into()),
        path: Some(format!("/reviews/{}", noise(i) % 50).into()),
        response_code: Some(200),
        response_code_details: Some("via_upstream".into()),
        request_body_bytes: 0,
        response_body_bytes: 400 + noise(i) % 100,
        tls_sni_hostname: (!client).then(|| "outbound_.9080_._.reviews.default.svc.cluster.local".into()),
        downstream_tls: !client,
        details: HopDetails::default(),
    }
}

pub(crate) fn proxy(i: u64) -> Proxy {
    Proxy {
        node: NodeId(
            format!("sidecar~10.77.0.{}~reviews-v{}-abc.default~default.svc.cluster.local", 2 + i % 6, i % 3).into(),
        ),
        kind: ProxyKind::Sidecar,
        address: Some(addr(&format!("10.77.0.{}:0", 2 + i % 6)).ip()),
        instance_ips: vec![addr(&format!("10.77.0.{}:0", 2 + i % 6)).ip(), addr("[2001:db8::7]:0").ip()],
        pod: Some("reviews-v1-abc".into()),
        namespace: Some("default".into()),
        workload: Some("reviews-v1".into()),
        owner: None,
        service: Some("reviews".into()),
        version: Some("v1".into()),
        cluster_id: None,
        node_name: None,
        locality: None,
        istio_version: Some("1.27.0".into()),
        envoy_version: Some("1.40.0".into()),
        interception_mode: Some("REDIRECT".into()),
        labels: BTreeMap::from([("app".to_owned(), "reviews".to_owned()), ("version".to_owned(), "v1".to_owned())]),
    }
}

pub(crate) fn process(i: u32) -> Process {
    Process {
        tgid: Tgid(4_000 + i),
        netns: NetnsId(4_026_532_000 + i % 6),
        comm: if i.is_multiple_of(2) { "envoy".into() } else { "bookinfo".into() },
        exe: Some("/usr/local/bin/envoy".into()),
        uid: Some(1337),
        cgroup: Some("/kubepods/besteffort/pod1".into()),
        role: if i.is_multiple_of(2) { ProcessRole::Sidecar } else { ProcessRole::Application },
    }
}

pub(crate) fn meta() -> Meta {
    let mut meta = Meta::default();
    meta.tool.name = "meshdiff".into();
    meta.tool.version = "0.1.0".into();
    meta.host.kernel_release = "6.18.0".into();
    meta.settings.insert("duration".into(), "10s".into());
    meta
}
