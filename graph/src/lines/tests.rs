use super::*;
use crate::connection::{endpoints, pair};
use crate::join::HopInput;
use crate::samples::{crossed, get, sent, socket, status};
use crate::{Directory, lines};
use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, Close, Closer, Content, DownstreamDirectRemoteAddr, DropReason,
    DurationNs, Errno, HopProtocol, HopSide, Message, MonotonicNs, NodeId, Process, ProcessRole, Side, Socket,
    SocketMetrics, SocketRole, UpstreamLocalAddr, WallTime, WorkloadSource,
};

const SECOND: u64 = 1_000_000_000;

/// Pods by address: `10.0.0.N` is pod `pod-N` of the namespace `shop`, for N from 2 to 9.
struct Pods;

fn pod(n: u8) -> Workload {
    Workload {
        namespace: Some("shop".into()),
        workload: Some(format!("app-{n}")),
        pod: Some(format!("pod-{n}")),
        address: Some(format!("10.0.0.{n}")),
        source: WorkloadSource::Als,
        ..Workload::unknown()
    }
}

impl Directory for Pods {
    fn by_proxy(&self, node: &NodeId) -> Option<Workload> {
        Some(pod(node.0.parse().ok()?))
    }
    fn by_address(&self, ip: IpAddr) -> Option<Workload> {
        match ip {
            IpAddr::V4(v4) => matches!(v4.octets(), [10, 0, 0, 2..=9]).then(|| pod(v4.octets()[3])),
            IpAddr::V6(v6) => matches!(v6.segments(), [0xfd00, .., 2..=9]).then(|| pod(v6.segments()[7] as u8)),
        }
    }
    fn service_of_cluster(&self, cluster: &str) -> Option<(String, Option<String>)> {
        Some((cluster.split('|').nth(3)?.to_owned(), None))
    }
}

fn process(tgid: u32, netns: u32, comm: &str) -> Process {
    Process {
        tgid: Tgid(tgid),
        netns: NetnsId(netns),
        comm: comm.into(),
        exe: None,
        uid: None,
        cgroup: None,
        role: if comm == "envoy" { ProcessRole::Sidecar } else { ProcessRole::Application },
    }
}

/// Namespaces 2 and 3 with an application (pid 21, 31) and a sidecar (22, 32) each.
fn processes() -> Vec<Process> {
    vec![process(21, 2, "curl"), process(22, 2, "envoy"), process(31, 3, "python3"), process(32, 3, "envoy")]
}

fn owned(cookie: u64, netns: u32, owner: u32, local: &str, remote: &str) -> Socket {
    Socket { owner: Some(Tgid(owner)), ..socket(cookie, netns, local, remote, (0, 90 * SECOND)) }
}

/// The six sockets of a call from pod 2 to pod 3.
fn six() -> (Vec<Socket>, Vec<Message>) {
    let sockets = vec![
        owned(1, 2, 21, "10.0.0.2:40000", "10.96.0.1:9080"),
        owned(2, 2, 22, "127.0.0.1:15001", "10.0.0.2:40000"),
        owned(3, 2, 22, "10.0.0.2:50000", "10.0.0.3:9080"),
        owned(4, 3, 32, "10.0.0.3:15006", "10.0.0.2:50000"),
        owned(5, 3, 32, "127.0.0.6:60000", "10.0.0.3:9080"),
        owned(6, 3, 31, "10.0.0.3:9080", "127.0.0.6:60000"),
    ];
    let messages = [
        crossed((1, 2), 100, 50, 10, get()),
        crossed((2, 1), 800, 50, 90, status(200)),
        crossed((3, 4), 7_000, 90, 20, Content::TlsApplicationData),
        crossed((5, 6), 300, 50, 30, get()),
        crossed((6, 5), 900, 50, 60, status(200)),
    ];
    (sockets, messages.concat())
}

fn log(node: &str, side: Side) -> HopSide {
    HopSide {
        side: Some(side),
        ..HopSide::bare(NodeId(node.into()), HopProtocol::Http11, AccessLogType::DownstreamEnd, WallTime(20))
    }
}

fn topology(sockets: &[Socket], messages: &[Message], access_logs: &[HopSide]) -> Topology {
    let clock = ClockAnchor::new(vec![ClockSample { monotonic: MonotonicNs(0), wall: WallTime(0) }]);
    let window = (MonotonicNs(0), MonotonicNs(100 * SECOND));
    let input = HopInput { sockets, messages, http2: &[], access_logs, clock: &clock, window };
    let endpoints = endpoints(sockets, messages);
    let connections = pair(&endpoints);
    let pods = [2, 3].map(|n| (NetnsId(n), pod(n as u8))).into();
    let said = Said::of(input, &endpoints, &connections);
    lines::build(&said, &endpoints, &connections, &processes(), &pods, &Pods)
}

fn name(t: &Topology, node: NodeIndex) -> String {
    match &t.graph[node] {
        Place::Pod(_) => "a pod".into(),
        Place::Program(program) => {
            let pod = t.pod_of(node).and_then(|p| p.workload.pod.clone()).unwrap_or_else(|| "?".into());
            format!("{pod}/{}:{}", program.role.as_str(), program.name.as_deref().unwrap_or("?"))
        }
        Place::Outside(o) => {
            let service = o.service.as_ref().map_or(String::new(), |(s, _)| format!(" ({s})"));
            format!("{}:{}{service}", o.address, o.port.map_or("-".into(), |p| p.to_string()))
        }
    }
}

/// Each line as text: from, to, protocol, TLS, how the peer is known, connections.
fn texts(t: &Topology) -> Vec<String> {
    t.lines()
        .map(|(_, from, to, l)| {
            let tls = match l.tls {
                Some(true) => " tls",
                Some(false) => "",
                None => " tls?",
            };
            let known = l.peer_known_by().as_str();
            format!("{} -> {} {}{tls} {known} {}", name(t, from), name(t, to), l.protocol.as_str(), l.connections)
        })
        .collect()
}

#[test]
fn six_sockets_are_three_lines_between_the_programs_that_really_talk() {
    let (sockets, messages) = six();
    let inbound = HopSide {
        downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(
            "10.0.0.2:50000".parse().expect("an address"),
        )),
        downstream_tls: true,
        ..log("3", Side::Server)
    };
    let t = topology(&sockets, &messages, &[inbound]);
    assert_eq!(
        texts(&t),
        [
            "pod-2/sidecar:envoy -> pod-3/sidecar:envoy http/1.1 tls matched 1",
            "pod-2/application:curl -> pod-2/sidecar:envoy http/1.1 matched 1",
            "pod-3/sidecar:envoy -> pod-3/application:python3 http/1.1 matched 1",
        ]
    );
    let (_, _, _, loopback) = t.lines().nth(1).expect("a line");
    assert_eq!(loopback.link, Some(Link::ClientLoopback));
    assert_eq!(loopback.destinations, [("10.96.0.1:9080".parse().expect("an address"), 1)].into());
    assert_eq!((&loopback.client.sockets, &loopback.server.sockets), (&vec![SocketCookie(1)], &vec![SocketCookie(2)]));
    // Without the log, nothing tells what the sidecars speak.
    let t = topology(&sockets, &messages, &[]);
    assert_eq!(texts(&t)[0], "pod-2/sidecar:envoy -> pod-3/sidecar:envoy tls tls matched 1");
}

#[test]
fn a_peer_that_was_not_seen_is_inferred_from_logs_ports_and_metadata() {
    let (mut sockets, messages) = six();
    // Only this pod's ends: S1, S3 and S6. Nobody recorded the others.
    sockets.retain(|s| [1, 3, 6].contains(&s.cookie.0));
    // Its own sidecar says that it accepted S1; pod 7's, that it accepted what came from S3.
    sockets[1].remote.0 = "10.0.0.7:9080".parse().expect("an address");
    let downstream = |a: &str| Some(DownstreamDirectRemoteAddr(a.parse().expect("an address")));
    let logs = [
        HopSide { downstream_direct_remote_address: downstream("10.0.0.2:40000"), ..log("2", Side::Client) },
        HopSide { downstream_direct_remote_address: downstream("10.0.0.2:50000"), ..log("7", Side::Server) },
    ];
    let t = topology(&sockets, &messages, &logs);
    assert_eq!(
        texts(&t),
        [
            "pod-2/sidecar:envoy -> pod-7/sidecar:? http/1.1 tls inferred 1",
            "pod-2/application:curl -> pod-2/sidecar:envoy http/1.1 inferred 1",
            "pod-3/sidecar:envoy -> pod-3/application:python3 http/1.1 inferred 1",
        ]
    );
    // Without logs the pod is known by its address, but not which of its processes it is; the service's address is nobody's.
    let t = topology(&sockets, &messages, &[]);
    assert_eq!(
        texts(&t),
        [
            "pod-2/sidecar:envoy -> pod-7/unknown:? tls tls inferred 1",
            "pod-2/application:curl -> 10.96.0.1:9080 http/1.1 unknown 1",
            "pod-3/sidecar:envoy -> pod-3/application:python3 http/1.1 inferred 1",
        ]
    );
}

#[test]
fn the_accepting_end_alone_tells_as_much_as_it_can() {
    let sockets = [
        owned(2, 2, 22, "127.0.0.1:15001", "10.0.0.2:40000"),
        owned(4, 3, 32, "10.0.0.3:15006", "10.0.0.7:50000"),
        owned(14, 3, 32, "10.0.0.3:15006", "192.0.2.9:50000"),
        Socket { role: Some(SocketRole::Accepted), ..owned(24, 3, 31, "10.0.0.3:9080", "10.0.0.8:1") },
    ];
    let upstream = HopSide {
        upstream_local_address: Some(UpstreamLocalAddr("10.0.0.7:50000".parse().expect("an address"))),
        ..log("7", Side::Client)
    };
    let t = topology(&sockets, &[], &[upstream]);
    let lines = texts(&t);
    for line in [
        "pod-2/application:? -> pod-2/sidecar:envoy tcp tls? inferred 1",
        "pod-7/sidecar:? -> pod-3/sidecar:envoy tcp tls? inferred 1",
        "192.0.2.9:- -> pod-3/sidecar:envoy tcp tls? unknown 1",
        "pod-8/unknown:? -> pod-3/application:python3 tcp tls? inferred 1",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:#?}");
    }
    assert_eq!(lines.len(), 4);
}

#[test]
fn ipv6_is_the_same() {
    let mut sockets = vec![
        owned(1, 2, 21, "[fd00::2]:40000", "[fd00:96::1]:9080"),
        owned(2, 2, 22, "[::1]:15001", "[fd00::2]:40000"),
        owned(5, 3, 32, "[::6]:60000", "[fd00::3]:9080"),
        owned(6, 3, 31, "[fd00::3]:9080", "[::6]:60000"),
    ];
    let messages = [crossed((1, 2), 100, 50, 10, get()), crossed((5, 6), 300, 50, 30, get())].concat();
    let expected = [
        "pod-2/application:curl -> pod-2/sidecar:envoy http/1.1 matched 1",
        "pod-3/sidecar:envoy -> pod-3/application:python3 http/1.1 matched 1",
    ];
    assert_eq!(texts(&topology(&sockets, &messages, &[])), expected);
    // Only the application's end: the address says that it is the sidecar.
    sockets.remove(2);
    assert!(
        texts(&topology(&sockets, &messages, &[]))
            .contains(&"pod-3/sidecar:envoy -> pod-3/application:python3 tcp tls? inferred 1".to_owned())
    );
}

#[test]
fn who_is_unknown_is_shown_as_unknown() {
    let nobody = Socket { owner: None, ..owned(1, 2, 0, "10.0.0.2:40000", "192.0.2.1:443") };
    let gone = owned(2, 2, 999, "10.0.0.2:40001", "192.0.2.1:443");
    // Istio's own ports are the sidecar's also where nobody was seen to use the socket.
    let listener = Socket { owner: None, ..owned(3, 3, 0, "10.0.0.3:15006", "192.0.2.7:1") };
    let t = topology(&[nobody, gone, listener], &[], &[]);
    let lines = texts(&t);
    assert!(lines.contains(&"pod-2/unknown:? -> 192.0.2.1:443 tcp tls? unknown 2".to_owned()), "{lines:#?}");
    assert!(lines.contains(&"192.0.2.7:- -> pod-3/sidecar:envoy tcp tls? unknown 1".to_owned()), "{lines:#?}");
    let pids = t.graph.node_weights().find_map(|n| match n {
        Place::Program(p) if p.role == ProgramRole::Unknown => Some(p.processes.clone()),
        _ => None,
    });
    assert_eq!(pids, Some([Tgid(999)].into()));
}

#[test]
fn a_service_outside_has_its_name_from_the_log() {
    let sockets = [owned(1, 2, 22, "10.0.0.2:50000", "192.0.2.1:443")];
    let routed = HopSide {
        upstream_local_address: Some(UpstreamLocalAddr("10.0.0.2:50000".parse().expect("an address"))),
        upstream_cluster: Some("outbound|443||api.example.com".into()),
        ..log("2", Side::Client)
    };
    let t = topology(&sockets, &[], &[routed]);
    assert_eq!(texts(&t), ["pod-2/sidecar:envoy -> 192.0.2.1:443 (api.example.com) tcp tls? unknown 1"]);
}

#[test]
fn a_refused_connection_is_of_the_line_that_it_would_have_been() {
    let refused = Socket {
        connect_start: Some(MonotonicNs(5)),
        closed: Some(MonotonicNs(9)),
        role: Some(SocketRole::Connected),
        connect_error: Some(Errno(111)),
        ..owned(9, 2, 21, "10.0.0.2:40009", "192.0.2.1:80")
    };
    let open = owned(1, 2, 21, "10.0.0.2:40000", "192.0.2.1:80");
    let other_port = owned(8, 2, 21, "10.0.0.2:40008", "192.0.2.1:81");
    let sockets = [open, refused, other_port];
    let mut t = topology(&sockets, &[sent(1, 1, 9, 3, get())], &[]);
    assert_eq!(
        texts(&t),
        [
            "pod-2/application:curl -> 192.0.2.1:80 http/1.1 unknown 2",
            "pod-2/application:curl -> 192.0.2.1:81 tcp tls? unknown 1"
        ]
    );
    t.measure(MetricsInput { sockets: &sockets, metrics: &[], since: None, from_messages: false });
    let (_, _, _, line) = t.lines().next().expect("a line");
    let total = &line.client.metrics.total;
    assert_eq!((total.connect.count, total.connect.failed()), (1, 1));
    assert_eq!(total.connect.failures, [(Errno(111), 1)].into());
    assert_eq!(total.close.count, 0, "what never was open does not close");
    assert!(!line.server.seen());
}

fn row(cookie: u64, at: u64, bytes: u64) -> SocketMetrics {
    let mut row = SocketMetrics::at(SocketCookie(cookie), MonotonicNs(at));
    row.write.calls = 1;
    row.write.bytes = bytes;
    row.write.record_duration(DurationNs(1_000), None);
    row.rtt.record(50_000);
    row.retransmits = 1;
    row.drops.insert(DropReason("TCP_OLD_DATA".into()), 2);
    row
}

#[test]
fn metrics_are_summed_over_sockets_and_by_window() {
    let close = Close { by: Closer::Remote, reset: true, duration: Some(DurationNs(400)) };
    let sockets = [
        Socket {
            connect_start: Some(MonotonicNs(SECOND)),
            established: Some(MonotonicNs(SECOND + 70)),
            role: Some(SocketRole::Connected),
            handshake: Some(DurationNs(70)),
            ..owned(1, 2, 21, "10.0.0.2:40000", "192.0.2.1:80")
        },
        Socket {
            closed: Some(MonotonicNs(25 * SECOND)),
            close: Some(close),
            ..owned(2, 2, 21, "10.0.0.2:40001", "192.0.2.1:80")
        },
    ];
    let metrics = [row(1, SECOND, 10), row(1, SECOND, 5), row(2, 11 * SECOND, 100), row(77, SECOND, 9_999)];
    let mut t = topology(&sockets, &[], &[]);
    let input = MetricsInput { sockets: &sockets, metrics: &metrics, since: None, from_messages: false };
    t.measure(input);
    t.measure(input);
    let (_, _, _, line) = t.lines().next().expect("a line");
    let side = &line.client.metrics;
    assert_eq!((side.total.write.calls, side.total.write.bytes, side.total.retransmits), (3, 115, 3));
    assert_eq!(side.total.drops.values().sum::<u64>(), 6);
    assert_eq!(side.total.connect.handshake.sum(), 70);
    assert_eq!((side.total.close.count, side.total.close.resets), (1, 1));
    assert_eq!(side.total.close.by, [(Closer::Remote, 1)].into());
    let windows: Vec<_> = side.windows.iter().map(|(at, m)| (at.0 / SECOND, m.write.bytes, m.close.count)).collect();
    assert_eq!(windows, [(0, 15, 0), (10, 100, 0), (20, 0, 1)]);
    // The windows add up to the total.
    let mut sum = Measured::default();
    side.windows.values().for_each(|w| sum.merge(w));
    assert_eq!(sum, side.total);

    t.measure(MetricsInput { since: Some(MonotonicNs(12 * SECOND)), ..input });
    let (_, _, _, line) = t.lines().next().expect("a line");
    let total = &line.client.metrics.total;
    assert_eq!((total.write.bytes, total.connect.count, total.close.count), (100, 0, 1));
}

#[test]
fn an_old_recording_tells_what_its_messages_do() {
    let (mut sockets, messages) = six();
    sockets[0].srtt = Some(DurationNs(90_000));
    let mut t = topology(&sockets, &messages, &[]);
    t.measure(MetricsInput { sockets: &sockets, metrics: &[], since: None, from_messages: true });
    let (_, _, _, line) = t.lines().nth(1).expect("the client's loopback");
    let total = &line.client.metrics.total;
    assert_eq!((total.write.bytes, total.write.calls, total.read.bytes), (50, 1, 50));
    assert_eq!(total.rtt.sum(), 90_000);
    assert!(total.write.duration.is_none(), "how long calls took is not known");
}

#[test]
fn what_tls_said_is_tallied() {
    let (mut sockets, messages) = six();
    let said = |sni: Option<&str>, version| Some(TlsInfo { sni: sni.map(Into::into), version, ..TlsInfo::default() });
    sockets[2].tls = said(Some("outbound_.9080_._.reviews"), None);
    sockets[3].tls = said(None, Some(TlsVersion::Tls13));
    let t = topology(&sockets, &messages, &[]);
    let (_, _, _, line) = t.lines().next().expect("a line");
    assert_eq!(line.tls_said.versions, [(TlsVersion::Tls13, 1)].into());
    assert_eq!(line.tls_said.server_names, [("outbound_.9080_._.reviews".into(), 1)].into());
}

#[test]
fn grpc_is_told_by_its_headers() {
    let (sockets, messages) = six();
    let mut frames = Vec::new();
    for (socket, stream, grpc) in [(5, 0, None), (5, 1, Some(true)), (6, 1, None), (1, 1, Some(false))] {
        let at = meshdiff_model::SeqInstant { seq: meshdiff_model::SeqNo(1), at: MonotonicNs(1) };
        frames.push(meshdiff_model::Http2Stream {
            socket: SocketCookie(socket),
            stream,
            first: at,
            last: at,
            head: None,
            end: None,
            frames: 1,
            data_bytes: 0,
            data: vec![],
            interim: 0,
            reset: None,
            gap: None,
            from_the_beginning: true,
            fields: meshdiff_model::Http2Fields { grpc, ..Default::default() },
        });
    }
    let clock = ClockAnchor::new(vec![ClockSample { monotonic: MonotonicNs(0), wall: WallTime(0) }]);
    let window = (MonotonicNs(0), MonotonicNs(SECOND));
    let input =
        HopInput { sockets: &sockets, messages: &messages, http2: &frames, access_logs: &[], clock: &clock, window };
    let endpoints = endpoints(&sockets, &messages);
    let connections = pair(&endpoints);
    let said = Said::of(input, &endpoints, &connections);
    let t = lines::build(&said, &endpoints, &connections, &processes(), &BTreeMap::new(), &Pods);
    let spoken: Vec<_> = t.lines().map(|(_, _, _, l)| l.protocol).collect();
    assert_eq!(spoken, [LineProtocol::Tls, LineProtocol::Http2, LineProtocol::Grpc]);
}

#[test]
fn an_encrypted_connection_without_a_request_is_of_its_line() {
    let (mut sockets, mut messages) = six();
    sockets.push(owned(13, 2, 22, "10.0.0.2:50009", "10.0.0.3:9080"));
    sockets.push(owned(14, 3, 32, "10.0.0.3:15006", "10.0.0.2:50009"));
    messages.extend(crossed((13, 14), 50_000, 90, 20, Content::TlsHandshake));
    let inbound = HopSide {
        downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(
            "10.0.0.2:50000".parse().expect("an address"),
        )),
        downstream_tls: true,
        ..log("3", Side::Server)
    };
    let t = topology(&sockets, &messages, &[inbound]);
    assert_eq!(texts(&t)[0], "pod-2/sidecar:envoy -> pod-3/sidecar:envoy http/1.1 tls matched 2");
    assert_eq!(texts(&t).len(), 3);
    assert_eq!(
        texts(&topology(&sockets, &messages, &[]))[0],
        "pod-2/sidecar:envoy -> pod-3/sidecar:envoy tls tls matched 2"
    );
}
