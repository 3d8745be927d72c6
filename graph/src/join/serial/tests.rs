use crate::join::{HopInput, join};
use crate::samples::{crossed, get, socket, status};
use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, Content, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DurationNs,
    HopDetails, HopProtocol, HopSide, HopTimings, JoinOutcome, JoinedHop, Link, Message, MonotonicNs, NodeId, Side,
    UpstreamLocalAddr, UpstreamRemoteAddr, WallTime,
};
use std::num::NonZeroU64;

const US: u64 = 1_000;
/// Cookies of the ends of each link.
const ENDS: [(u64, u64); 3] = [(1, 2), (3, 4), (5, 6)];

/// A request's way through both sidecars, 100 µs for each link.
#[derive(Default)]
struct World {
    messages: Vec<Message>,
    logs: Vec<HopSide>,
    /// Next byte of each link, there and back.
    at: [(u32, u32); 3],
}

impl World {
    fn cross(&mut self, link: usize, back: bool, len: u32, at_us: u64, content: Content) {
        let place = if back { &mut self.at[link].1 } else { &mut self.at[link].0 };
        let start = *place;
        *place += len;
        let ends = if back { (ENDS[link].1, ENDS[link].0) } else { ENDS[link] };
        let content = if link == 1 { Content::TlsApplicationData } else { content };
        self.messages.extend(crossed(ends, start, len, at_us * US, content));
    }

    /// Sends something over these links, beginning at `at_us`.
    fn say(&mut self, links: &[usize], back: bool, len: u32, at_us: u64, content: &Content) {
        for (step, &link) in (0..).zip(links) {
            self.cross(link, back, len, at_us + 100 * step, content.clone());
        }
    }

    /// What both sidecars log of a request that the client's proxy began to parse at `start_us`, and whose response was ready at the
    /// client's proxy at `answered_us`.
    fn log(&mut self, start_us: u64, answered_us: u64, method: &str, counted: [u64; 2]) {
        let entry = |side, start: u64, answered: u64, [from, local, there]: [&str; 3]| {
            let after = |at: u64| Some(DurationNs::from_micros((at - start).try_into().expect("short")));
            let mut details = HopDetails::default();
            details.bytes.downstream_wire_bytes_received = NonZeroU64::new(counted[0]);
            details.bytes.downstream_wire_bytes_sent = NonZeroU64::new(counted[1]);
            let vip = if side == Side::Client { "10.96.0.1:9080" } else { there };
            HopSide {
                side: Some(side),
                timings: HopTimings {
                    time_to_first_upstream_tx_byte: after(start + 50),
                    time_to_first_upstream_rx_byte: after(answered + 1),
                    time_to_first_downstream_tx_byte: after(answered + 90),
                    time_to_last_downstream_tx_byte: after(answered + 95),
                    ..HopTimings::default()
                },
                downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(from.parse().expect("an address"))),
                downstream_local_address: Some(DownstreamLocalAddr(vip.parse().expect("an address"))),
                upstream_local_address: Some(UpstreamLocalAddr(local.parse().expect("an address"))),
                upstream_remote_address: Some(UpstreamRemoteAddr(there.parse().expect("an address"))),
                method: Some(method.into()),
                path: Some("/".into()),
                response_code: Some(200),
                details,
                ..HopSide::bare(
                    NodeId("node".into()),
                    HopProtocol::Http11,
                    AccessLogType::DownstreamEnd,
                    WallTime((start * US) as i64),
                )
            }
        };
        let client = ["10.0.0.2:40000", "10.0.0.2:50000", "10.0.0.3:9080"];
        let server = ["10.0.0.2:50000", "127.0.0.6:60000", "10.0.0.3:9080"];
        self.logs.push(entry(Side::Client, start_us, answered_us, client));
        self.logs.push(entry(Side::Server, start_us + 101, answered_us - 100, server));
    }

    fn hops(&self) -> Vec<JoinedHop> {
        let sample = |at: u64| ClockSample { monotonic: MonotonicNs(at), wall: WallTime(at as i64) };
        let clock = ClockAnchor::new(vec![sample(0), sample(100_000 * US)]);
        let seen = (0, 90_000 * US);
        let sockets = [
            socket(1, 2, "10.0.0.2:40000", "10.96.0.1:9080", seen),
            socket(2, 2, "127.0.0.1:15001", "10.0.0.2:40000", seen),
            socket(3, 2, "10.0.0.2:50000", "10.0.0.3:9080", seen),
            socket(4, 3, "10.0.0.3:15006", "10.0.0.2:50000", seen),
            socket(5, 3, "127.0.0.6:60000", "10.0.0.3:9080", seen),
            socket(6, 3, "10.0.0.3:9080", "127.0.0.6:60000", seen),
        ];
        let window = (MonotonicNs(0), MonotonicNs(100_000 * US));
        let (messages, access_logs) = (&self.messages[..], &self.logs[..]);
        let input = HopInput { sockets: &sockets, messages, http2: &[], access_logs, clock: &clock, window };
        join(input, |_| false).hops
    }
}

/// A request as usual, and one whose client waits to be told to go on: by the application, or by its own sidecar at `told_us`.
fn told_to_go_on(told_us: u64) -> World {
    let post = Content::Http1Request { method: "POST".into(), path: "/".into() };
    let mut world = World::default();
    world.say(&[0, 1, 2], false, 90, 1_000, &get());
    world.say(&[2, 1, 0], true, 200, 1_500, &status(200));
    world.log(1_000, 1_600, "GET", [90, 200]);
    world.say(&[0, 1, 2], false, 100, 3_000, &post);
    world.say(&[2, 1], true, 25, 3_500, &status(100));
    world.say(&[0], true, 25, told_us, &status(100));
    world.say(&[0, 1, 2], false, 5_000, 4_000, &Content::Unknown);
    world.say(&[2, 1, 0], true, 80, 4_500, &status(200));
    world.log(3_000, 4_600, "POST", [5_100, 105]);
    // Something comes after it: only then is it known where it ended.
    world.say(&[0, 1, 2], false, 90, 6_000, &get());
    world.say(&[2, 1, 0], true, 200, 6_500, &status(200));
    world.log(6_000, 6_600, "GET", [90, 200]);
    world
}

#[test]
fn a_request_that_was_told_to_go_on_is_one_between_the_sidecars_too() {
    let hops = told_to_go_on(3_700).hops();
    assert_eq!(hops.len(), 3);
    for hop in &hops {
        assert_eq!((hop.client_half, hop.server_half), (JoinOutcome::Matched(()), JoinOutcome::Matched(())));
    }
    let (there, back) = (hops[1].request_on(Link::Network), hops[1].response_on(Link::Network));
    assert_eq!((there.bytes, there.send), (5_100, Some(MonotonicNs(3_100 * US))));
    assert_eq!(there.last_send, Some(MonotonicNs(4_100 * US)));
    assert_eq!((back.bytes, back.send), (80, Some(MonotonicNs(4_600 * US))), "the interim response does not mark it");
}

#[test]
fn turns_that_the_interim_response_does_not_part_stay_ambiguous() {
    // Before anything came back to the sidecar, and after the second turn had begun.
    for told_us in [3_050, 4_150] {
        let hops = told_to_go_on(told_us).hops();
        assert!(matches!(hops[1].client_half, JoinOutcome::Ambiguous(_)), "{told_us}: {:?}", hops[1].client_half);
    }
}

/// Three requests in one send, answered one after the other.
fn pipelined(counted: [u64; 3]) -> World {
    let mut world = World::default();
    world.cross(0, false, 300, 1_000, get());
    for (n, counted) in (0..).zip(counted) {
        let at = 1_000 + 1_000 * n;
        world.say(&[1, 2], false, 120, at + 100, &get());
        world.say(&[2, 1], true, 200, at + 500, &status(200));
        let content = if n == 0 { status(200) } else { Content::Unknown };
        world.cross(0, true, 210, at + 700, content);
        world.log(at, at + 600, "GET", [counted, 210]);
    }
    world
}

#[test]
fn requests_of_one_send_are_told_apart_by_what_their_proxy_counted() {
    // As Envoy counts (what lies behind a request is counted with it), and each by itself.
    for counted in [[300, 200, 90], [100, 110, 90]] {
        let mut world = pipelined(counted);
        world.say(&[0, 1, 2], false, 90, 6_000, &get());
        world.say(&[2, 1, 0], true, 200, 6_500, &status(200));
        world.log(6_000, 6_600, "GET", [90, 200]);
        let hops = world.hops();
        assert_eq!(hops.len(), 4);
        let bytes: Vec<_> = hops.iter().map(|h| h.request_on(Link::ClientLoopback).bytes).collect();
        assert_eq!(bytes, [100, 110, 90, 90]);
        for (n, hop) in (0..).zip(&hops[..3]) {
            assert_eq!((hop.client_half, hop.server_half), (JoinOutcome::Matched(()), JoinOutcome::Matched(())), "{n}");
            let (there, back) = (hop.request_on(Link::ClientLoopback), hop.response_on(Link::ClientLoopback));
            assert_eq!((there.send, there.ready), (Some(MonotonicNs(1_000 * US)), Some(MonotonicNs(1_000 * US + 10))));
            let answered = MonotonicNs((1_700 + 1_000 * n) * US);
            assert_eq!((back.send, back.last_send, back.bytes), (Some(answered), Some(answered), 210));
            assert_eq!(hop.request_on(Link::Network).send, Some(MonotonicNs((1_100 + 1_000 * n) * US)));
            let before = (n > 0).then(|| MonotonicNs((700 + 1_000 * n) * US));
            assert_eq!(hop.flows.behind[0], before, "it waits behind the one before it");
        }
    }
}

#[test]
fn requests_of_one_send_of_which_not_all_is_known_stay_ambiguous() {
    let none = |world: &World, why: &str| {
        for hop in world.hops().iter().filter(|h| h.client_log.is_some()) {
            assert!(matches!(hop.client_half, JoinOutcome::Ambiguous(_)), "{why}: {:?}", hop.client_half);
        }
    };
    // Entries of which one was lost.
    for lost in [0, 4] {
        let mut world = pipelined([300, 200, 90]);
        world.logs.remove(lost);
        none(&world, "lost");
    }
    none(&pipelined([310, 200, 90]), "not as many bytes as were sent");
    let mut world = pipelined([300, 200, 90]);
    world.logs[4].details.bytes.downstream_wire_bytes_sent = NonZeroU64::new(211);
    none(&world, "not as many bytes as came back");
    let mut world = pipelined([300, 200, 90]);
    world.messages[0].head_end = Some(meshdiff_model::SeqNo(105));
    none(&world, "a head that ends elsewhere");
}
