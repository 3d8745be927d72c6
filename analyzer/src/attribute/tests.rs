use super::*;
use meshdiff_model::{
    AccessLogType, Attempt, Crossing, HopProtocol, HopTimings, NodeId, Side, SocketCookie, UpstreamLocalAddr,
    UpstreamRemoteAddr, WallTime,
};
use proptest::prelude::*;
use std::sync::Arc;

fn log(side: Side, marks: [i64; 4]) -> Arc<HopSide> {
    Arc::new(HopSide {
        side: Some(side),
        timings: HopTimings {
            time_to_first_upstream_tx_byte: Some(DurationNs(marks[0])),
            time_to_first_upstream_rx_byte: Some(DurationNs(marks[1])),
            time_to_first_downstream_tx_byte: Some(DurationNs(marks[2])),
            time_to_last_downstream_tx_byte: Some(DurationNs(marks[3])),
            ..HopTimings::default()
        },
        upstream_local_address: Some(UpstreamLocalAddr("10.0.0.1:4".parse().expect("address"))),
        upstream_remote_address: Some(UpstreamRemoteAddr("10.0.0.2:9080".parse().expect("address"))),
        upstream_request_attempt_count: Some(1),
        response_code: Some(200),
        ..HopSide::bare(
            NodeId("sidecar~10.0.0.1~a.default~x".into()),
            HopProtocol::Http11,
            AccessLogType::DownstreamEnd,
            WallTime(0),
        )
    })
}

/// A hop whose instants are the running sums of `gaps`: six sends and readies there, six back, the last byte read.
pub(super) fn hop(gaps: &[u64; 13]) -> JoinedHop {
    let mut at = 1_000_000;
    let instants: Vec<MonotonicNs> = gaps
        .iter()
        .map(|g| {
            at += g;
            MonotonicNs(at)
        })
        .collect();
    let cross = |send: usize, ready: usize| Crossing {
        send: Some(instants[send]),
        ready: Some(instants[ready]),
        recv: Some(instants[ready]),
        last_send: Some(instants[send]),
        last_ready: Some(instants[ready]),
        last_recv: Some(instants[ready]),
        bytes: 100,
    };
    let mut response = [cross(10, 11), cross(8, 9), cross(6, 7)];
    response[0].last_recv = Some(instants[12]);
    JoinedHop {
        client_log: Some(log(Side::Client, [1, 5, 6, 7])),
        server_log: Some(log(Side::Server, [1, 2, 3, 4])),
        sockets: std::array::from_fn(|i| Some(SocketCookie(i as u64))),
        request: [cross(0, 1), cross(2, 3), cross(4, 5)],
        response,
        ..JoinedHop::empty(JoinOutcome::Matched(()), JoinOutcome::Matched(()))
    }
}

#[test]
fn each_gap_lands_in_its_segment() {
    let gaps = [0, 1, 20, 300, 4_000, 50_000, 600_000, 50_001, 4_001, 301, 21, 2, 7];
    let (a, vantage) = attribute(&hop(&gaps)).expect("telescopes");
    assert_eq!(vantage, Vantage::App);
    let get = |s| a.segments().get(s).map(|d| d.0);
    assert_eq!(get(Segment::ClientLoopback), Some(1 + 2));
    assert_eq!(get(Segment::ClientSidecar), Some(20 + 21));
    assert_eq!(get(Segment::Network), Some(300 + 301));
    assert_eq!(get(Segment::ServerSidecar), Some(4_000 + 4_001));
    assert_eq!(get(Segment::ServerLoopback), Some(50_000 + 50_001));
    assert_eq!(get(Segment::ServerApp), Some(600_000));
    assert_eq!(get(Segment::ClientApp), Some(7));
    assert_eq!(get(Segment::Unattributed), None);
    assert_eq!(a.total().0, gaps.iter().skip(1).sum::<u64>().cast_signed());
}

#[test]
fn setup_comes_out_of_the_client_sidecar() {
    let mut hop = hop(&[0, 10, 100, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]);
    hop.connection_setup = Some((MonotonicNs(1_000_020), MonotonicNs(1_000_090)));
    let (a, _) = attribute(&hop).expect("telescopes");
    assert_eq!(a.segments().get(Segment::ConnectionSetup), Some(DurationNs(70)));
    assert_eq!(a.segments().get(Segment::ClientSidecar), Some(DurationNs(30 + 10)));
}

#[test]
fn a_missing_server_half_is_not_spread_over_the_others() {
    let mut hop = hop(&[0, 10, 10, 10, 10, 10, 500, 10, 10, 10, 10, 10, 10]);
    hop.server_log = None;
    hop.request[2] = Crossing::default();
    hop.response[2] = Crossing::default();
    hop.server_half = JoinOutcome::Unmatched(UnmatchedReason::ServerLogMissing);
    let (a, _) = attribute(&hop).expect("telescopes");
    assert_eq!(a.segments().get(Segment::ServerApp), None);
    assert_eq!(a.segments().get(Segment::ServerSidecar), None);
    assert_eq!(a.segments().get(Segment::Unattributed), Some(DurationNs(10 + 10 + 500 + 10 + 10)));
    assert_eq!(coverage(&hop).class, CoverageClass::PartialClient);
}

#[test]
fn a_retry_is_not_charged_to_the_sidecar() {
    let mut hop = hop(&[0, 10, 5_000, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]);
    let mut entry = (**hop.client_log.as_ref().expect("log")).clone();
    entry.upstream_request_attempt_count = Some(2);
    hop.client_log = Some(Arc::new(entry));
    let (a, _) = attribute(&hop).expect("telescopes");
    assert_eq!(a.segments().get(Segment::ClientSidecar), Some(DurationNs(10)));
    assert_eq!(a.segments().get(Segment::Unattributed), Some(DurationNs(5_000)));
    assert!(!coverage(&hop).is_full());

    // With its first attempt known, sent 40 ns after the request was ready, all is.
    let mut other = JoinedHop::empty(JoinOutcome::Matched(()), JoinOutcome::Unmatched(UnmatchedReason::LocalReply));
    let began = Some(MonotonicNs(1_000_050));
    other.request[1].send = began;
    hop.attempts = vec![Attempt { hop: other, began, ended: None }];
    let (a, _) = attribute(&hop).expect("telescopes");
    assert_eq!(a.segments().get(Segment::ClientSidecar), Some(DurationNs(40 + 10)));
    assert_eq!(a.segments().get(Segment::Retry), Some(DurationNs(5_000 - 40)));
    assert_eq!(a.segments().get(Segment::Unattributed), None);
    assert!(coverage(&hop).is_full());
}

#[test]
fn what_was_given_up_counts_until_then() {
    let mut hop = hop(&[0, 10, 100, 10, 10, 10, 700, 10, 10, 10, 10, 10, 10]);
    let sent = hop.request[1].send.expect("set");
    // The server still worked when the client's proxy ended S3, 300 ns after it had sent the request, and answered 504 at 800.
    hop.response[1] = Crossing::default();
    hop.response[2] = Crossing::default();
    hop.abandoned[0] = Some(sent.offset(DurationNs(300)));
    let back = hop.response[0].send.expect("set");
    let (a, vantage) = attribute(&hop).expect("telescopes");
    assert_eq!(vantage, Vantage::App);
    let get = |s| a.segments().get(s).map(|d| d.0);
    assert_eq!(get(Segment::Network), Some(10));
    assert_eq!(get(Segment::ServerSidecar), Some(10));
    assert_eq!(get(Segment::ServerLoopback), Some(10));
    assert_eq!(get(Segment::ServerApp), Some(300 - 30));
    assert_eq!(get(Segment::ClientSidecar), Some(100 + (back - sent).0 - 300));
    assert_eq!(get(Segment::Unattributed), None);
}

#[test]
fn on_a_shared_connection_the_logs_tell_what_was_given_up() {
    let mut hop = hop(&[0, 10, 100, 10, 10, 10, 700, 10, 10, 10, 10, 10, 10]);
    let sent = hop.request[1].send.expect("set");
    hop.logged.sent = Some(sent);
    hop.network_by_log = true;
    (hop.request[1], hop.response[1]) = (Crossing::default(), Crossing::default());
    hop.response[2] = Crossing::default();
    let there = hop.request[0].ready.expect("set");
    let arrived = hop.request[2].ready.expect("set");
    // Its proxy gives it up as it answers 504, or the application does before.
    let back = hop.response[0].send.expect("set");
    let early = arrived.offset(DurationNs(200));
    for (abandoned, gave_up) in [(Some(back), None), (None, Some(early))] {
        (hop.abandoned[0], hop.gave_up) = (abandoned, gave_up);
        let (a, _) = attribute(&hop).expect("telescopes");
        let get = |s| a.segments().get(s);
        let end = gave_up.unwrap_or(back);
        assert_eq!(get(Segment::ClientSidecar), Some(sent - there), "{a:?}");
        // The server's proxy says that it had it 1 ns before it sent it on.
        assert_eq!(get(Segment::ServerSidecar), Some(DurationNs(1)));
        assert_eq!(get(Segment::Network), Some(DurationNs(20 - 1)));
        assert_eq!(get(Segment::ServerApp), Some(end - arrived));
        assert_eq!(get(Segment::Unattributed), None);
        assert_eq!(a.evidence().get(Segment::Network), Some(Evidence::Bound));
        assert_eq!(a.evidence().get(Segment::ServerSidecar), Some(Evidence::Als));
    }
}

#[test]
fn logs_alone_give_bounds() {
    let mut hop = hop(&[0; 13]);
    hop.request = [Crossing::default(); 3];
    hop.response = [Crossing::default(); 3];
    hop.client_log = Some(log(Side::Client, [100, 1_000, 1_050, 1_060]));
    hop.server_log = Some(log(Side::Server, [80, 580, 600, 610]));
    hop.client_half = JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
    hop.server_half = JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
    let (a, vantage) = attribute(&hop).expect("telescopes");
    assert_eq!(vantage, Vantage::Als);
    let get = |s| a.segments().get(s).map(|d| d.0);
    assert_eq!(get(Segment::ClientSidecar), Some(150));
    assert_eq!(get(Segment::ServerSidecar), Some(100));
    assert_eq!(get(Segment::ServerApp), Some(500));
    assert_eq!(get(Segment::Network), Some(900 - 600));
    assert_eq!(get(Segment::Transfer), Some(10));
    assert_eq!(a.evidence().get(Segment::ServerApp), Some(Evidence::Bound));
    assert_eq!(coverage(&hop).class, CoverageClass::PartialAls);
}

proptest! {
    /// Whatever is missing, the parts sum to the total: `build` would refuse otherwise, and here it never does.
    #[test]
    fn always_telescopes(
        gaps in prop::array::uniform13(0u64..10_000_000),
        missing in prop::collection::vec((0usize..6, 0usize..6), 0..12),
        body in prop::option::of((0u64..5_000_000, 0u64..5_000_000, 0u64..5_000_000)),
        logs in (any::<bool>(), any::<bool>()),
    ) {
        let mut hop = hop(&gaps);
        if let Some((server_last, ready_last, recv_last)) = body {
            let end = hop.response[0].last_recv.expect("set");
            hop.response[2].last_send = hop.response[2].send.map(|s| s.offset(DurationNs(server_last.cast_signed())));
            hop.response[0].last_ready = hop.response[0].ready.map(|s| s.offset(DurationNs(ready_last.cast_signed())));
            hop.response[0].last_recv = Some(end.offset(DurationNs(recv_last.cast_signed())));
            hop.request[2].last_ready = hop.request[2].ready.map(|s| s.offset(DurationNs(server_last.cast_signed())));
        }
        for (crossing, field) in missing {
            let side = if crossing < 3 { &mut hop.request[crossing] } else { &mut hop.response[crossing - 3] };
            match field {
                0 => side.send = None,
                1 => side.ready = None,
                2 => side.recv = None,
                3 => side.last_send = None,
                4 => side.last_ready = None,
                _ => side.last_recv = None,
            }
        }
        if logs.0 { hop.client_log = None; }
        if logs.1 { hop.server_log = None; }
        let (a, _) = attribute(&hop).expect("telescopes");
        prop_assert_eq!(a.segments().sum(), a.total());
    }
}

proptest! {
    /// From nanoseconds to hours: what the two proxies' marks say is where it belongs, to the nanosecond.
    #[test]
    fn logs_alone_are_exact_at_any_length(
        parts in prop::array::uniform7(prop_oneof![0i64..2_000, 0i64..2_000_000_000, 0i64..36_000_000_000_000]),
    ) {
        let [out, network, inbound, app, outbound, back, rest] = parts;
        let served = inbound + app + outbound;
        let answered = out + network + served;
        let mut hop = hop(&[0; 13]);
        hop.request = [Crossing::default(); 3];
        hop.response = [Crossing::default(); 3];
        hop.client_log = Some(log(Side::Client, [out, answered, answered + back, answered + back + rest]));
        hop.server_log = Some(log(Side::Server, [inbound, inbound + app, served, served]));
        hop.client_half = JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
        hop.server_half = JoinOutcome::Unmatched(UnmatchedReason::NoProbes);
        let (a, vantage) = attribute(&hop).expect("telescopes");
        prop_assert_eq!(vantage, Vantage::Als);
        prop_assert_eq!(a.total().0, answered + back + rest);
        let get = |s| a.segments().get(s).map_or(0, |d| d.0);
        prop_assert_eq!(get(Segment::ClientSidecar), out + back);
        prop_assert_eq!(get(Segment::Network), network);
        prop_assert_eq!(get(Segment::ServerSidecar), inbound + outbound);
        prop_assert_eq!(get(Segment::ServerApp), app);
        prop_assert_eq!(get(Segment::Transfer), rest);
        prop_assert_eq!(get(Segment::Unattributed), 0);
        let evidence = |s| a.evidence().get(s);
        prop_assert_eq!(evidence(Segment::ClientSidecar), Some(Evidence::Als));
        prop_assert_eq!((evidence(Segment::Network), evidence(Segment::ServerApp)), (Some(Evidence::Bound), Some(Evidence::Bound)));
    }
}

proptest! {
    /// A damaged or hostile capture may hold any number: it is attributed or refused, and never a panic.
    #[test]
    fn no_number_panics(
        instants in prop::array::uniform32(prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), Just(1 << 63)]),
        marks in prop::array::uniform4(prop_oneof![any::<i64>(), Just(i64::MAX), Just(i64::MIN)]),
        logs in (any::<bool>(), any::<bool>()),
        attempts in 0u32..3,
    ) {
        let mut hop = hop(&[0; 13]);
        let mut next = instants.iter().cycle();
        for crossing in hop.request.iter_mut().chain(&mut hop.response) {
            for field in [
                &mut crossing.send, &mut crossing.ready, &mut crossing.recv,
                &mut crossing.last_send, &mut crossing.last_ready, &mut crossing.last_recv,
            ] {
                *field = next.next().filter(|at| **at % 5 != 1).map(|at| MonotonicNs(*at));
            }
        }
        let entry = |side| {
            let mut entry = (*log(side, marks)).clone();
            entry.upstream_request_attempt_count = Some(attempts);
            Arc::new(entry)
        };
        hop.client_log = logs.0.then(|| entry(Side::Client));
        hop.server_log = logs.1.then(|| entry(Side::Server));
        hop.connection_setup = Some((MonotonicNs(instants[0]), MonotonicNs(instants[1])));
        if let Ok((split, _)) = attribute(&hop) {
            prop_assert_eq!(split.segments().sum(), split.total());
        }
        prop_assert_eq!(coverage(&hop).halves, Sides::of(logs.0, logs.1));
    }
}
