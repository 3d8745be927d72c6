use super::super::join;
use crate::samples::{crossed, get, socket, status};
use meshdiff_model::{
    AccessLogType, ClockAnchor, ClockSample, Content, DownstreamDirectRemoteAddr, HopProtocol, HopSide, JoinOutcome,
    JoinedHop, Link, Message, MonotonicNs, NodeId, PeerAddr, Side, Socket, TlsInfo, UnmatchedReason, UpstreamLocalAddr,
    UpstreamRemoteAddr, WallTime,
};
use std::net::SocketAddr;

/// What the sidecars' own TLS adds to a message, and sends before the first.
const MTLS: u32 = 22;
const OWN_HANDSHAKE: u32 = 500;

/// One connection of an application through two sidecars, with the bytes that it sends.
struct World {
    sockets: Vec<Socket>,
    messages: Vec<Message>,
    logs: Vec<HopSide>,
    /// Where each link's two directions go on: there, and back.
    at: [(u32, u32); 3],
    now: u64,
    mtls: bool,
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn log(side: Side, from: &str, to: (&str, &str), start: i64) -> HopSide {
    HopSide {
        side: Some(side),
        downstream_direct_remote_address: Some(DownstreamDirectRemoteAddr(address(from))),
        upstream_local_address: Some(UpstreamLocalAddr(address(to.0))),
        upstream_remote_address: Some(UpstreamRemoteAddr(address(to.1))),
        upstream_cluster: Some("outbound|9443||echo.default.svc.cluster.local".into()),
        ..HopSide::bare(
            NodeId("sidecar~10.0.0.1~a.default~x".into()),
            HopProtocol::Tcp,
            AccessLogType::TcpConnectionEnd,
            WallTime(start),
        )
    }
}

impl World {
    /// With the application's handshake done; `mtls` if the sidecars encrypt once more.
    fn new(mtls: bool) -> Self {
        let life = (1_000, 900_000);
        let ends = [
            (1, "10.0.0.1:4000", "10.1.0.9:9443"),
            (1, "127.0.0.1:15001", "10.0.0.1:4000"),
            (1, "10.0.0.1:5000", "10.0.0.2:9443"),
            (2, "10.0.0.2:15006", "10.0.0.1:5000"),
            (2, "127.0.0.6:6000", "10.0.0.2:9443"),
            (2, "10.0.0.2:9443", "127.0.0.6:6000"),
        ];
        let sockets = ends.iter().zip(1..).map(|(&(netns, local, remote), cookie)| Socket {
            connect_start: (cookie % 2 == 1).then_some(MonotonicNs(1_000)),
            established: Some(MonotonicNs(1_001)),
            closed: Some(MonotonicNs(900_000)),
            tls: Some(TlsInfo { plaintext_seen: cookie == 1 || cookie == 6, ..TlsInfo::default() }),
            ..socket(cookie, netns, local, remote, life)
        });
        let logs = vec![
            log(Side::Client, "10.0.0.1:4000", ("10.0.0.1:5000", "10.0.0.2:9443"), 1_500),
            log(Side::Server, "10.0.0.1:5000", ("127.0.0.6:6000", "10.0.0.2:9443"), 1_600),
        ];
        let at = [(1_000, 2_000), (3_000, 4_000), (u32::MAX - 400, 6_000)];
        let mut world = Self { sockets: sockets.collect(), messages: vec![], logs, at, now: 10_000, mtls };
        if mtls {
            world.one(1, false, OWN_HANDSHAKE, 5_000, Content::TlsHandshake);
            world.one(1, true, OWN_HANDSHAKE, 5_100, Content::TlsHandshake);
        }
        world.say(false, 300, Content::TlsHandshake);
        world.say(true, 700, Content::TlsHandshake);
        world.say(false, 60, Content::TlsHandshake);
        world
    }

    fn one(&mut self, link: usize, back: bool, len: u32, at: u64, content: Content) {
        let cookies = (2 * link as u64 + 1, 2 * link as u64 + 2);
        let place = if back { &mut self.at[link].1 } else { &mut self.at[link].0 };
        let start = *place;
        *place = start.wrapping_add(len);
        let ends = if back { (cookies.1, cookies.0) } else { cookies };
        self.messages.extend(crossed(ends, start, len, at, content));
    }

    /// Something that an application sends, on all three links, 100 ns apart. Only its own socket knows what it is.
    fn say(&mut self, back: bool, len: u32, content: Content) {
        let hidden = if content == Content::TlsHandshake { content.clone() } else { Content::TlsApplicationData };
        for (step, link) in if back { [2, 1, 0] } else { [0, 1, 2] }.into_iter().enumerate() {
            let known = if step == 0 { content.clone() } else { hidden.clone() };
            let wrapped = self.mtls && link == 1;
            let (len, known) = if wrapped { (len + MTLS, Content::TlsApplicationData) } else { (len, known) };
            self.one(link, back, len, self.now + 100 * step as u64, known);
        }
        self.now += 1_000;
    }

    fn hops(&self) -> Vec<JoinedHop> {
        let sample = |at: u64| ClockSample { monotonic: MonotonicNs(at), wall: WallTime(at as i64) };
        let clock = ClockAnchor::new(vec![sample(0), sample(10_000_000)]);
        let input = super::HopInput {
            sockets: &self.sockets,
            messages: &self.messages,
            http2: &[],
            access_logs: &self.logs,
            clock: &clock,
            window: (MonotonicNs(0), MonotonicNs(10_000_000)),
        };
        join(input, |_| false).hops
    }
}

#[test]
fn requests_are_followed_through_both_sidecars() {
    for mtls in [false, true] {
        let mut world = World::new(mtls);
        // Session tickets, requests and responses, the second with a body that follows, and the library's goodbye.
        world.say(true, 80, Content::TlsApplicationData);
        let first = world.now;
        world.say(false, 200, get());
        world.say(true, 400, status(200));
        let second = world.now;
        world.say(false, 150, get());
        world.say(false, 900, Content::Unknown);
        let answer = world.now;
        world.say(true, 90, status(404));
        world.say(false, 24, Content::TlsApplicationData);
        let hops = world.hops();
        assert_eq!(hops.len(), 2, "mTLS: {mtls}");
        for (hop, (sent, code)) in hops.iter().zip([(first, 200), (second, 404)]) {
            assert_eq!((hop.client_half, hop.server_half), (JoinOutcome::Matched(()), JoinOutcome::Matched(())));
            assert_eq!((hop.request_content.clone(), hop.response_content.clone()), (get(), status(code)));
            assert!(hop.sockets.iter().map(|s| s.map(|s| s.0)).eq((1..=6).map(Some)), "{:?}", hop.sockets);
            for (link, at) in Link::ALL.into_iter().zip([sent, sent + 100, sent + 200]) {
                let crossing = hop.request_on(link);
                assert_eq!(crossing.send, Some(MonotonicNs(at)), "mTLS: {mtls}, {link:?}");
                assert_eq!(crossing.ready, Some(MonotonicNs(at + 10)), "mTLS: {mtls}, {link:?}");
            }
        }
        let (request, response) = (hops[1].request_on(Link::ServerLoopback), hops[1].response_on(Link::ClientLoopback));
        assert_eq!(request.last_send, Some(MonotonicNs(second + 1_000 + 200)), "its body belongs to it");
        assert_eq!((request.bytes, response.bytes), (1_050, 90), "what the library says of its own does not");
        assert_eq!(response.send, Some(MonotonicNs(answer + 200)));
        assert_eq!(hops[1].response_on(Link::Network).send, Some(MonotonicNs(answer + 100)), "mTLS: {mtls}");
        let log = hops[0].client_log.as_ref().expect("the connection's entry");
        assert_eq!(
            (log.response_code, log.method.as_deref(), log.protocol),
            (Some(200), Some("GET"), HopProtocol::Http)
        );
    }
}

/// The one hop of a world in which something is amiss.
fn told_by_its_application_alone(world: &World, why: &str) -> JoinedHop {
    let mut hops = world.hops();
    assert_eq!(hops.len(), 1, "{why}");
    let hop = hops.remove(0);
    let reason = JoinOutcome::Unmatched(UnmatchedReason::EncryptedByApplication);
    assert_eq!((hop.client_half, hop.request_content.clone()), (reason, get()), "{why}");
    assert!(hop.sockets[2..].iter().all(Option::is_none), "{why}");
    hop
}

#[test]
fn what_is_not_certain_is_not_followed() {
    let world = |mtls| {
        let mut world = World::new(mtls);
        world.say(false, 200, get());
        world.say(true, 400, status(200));
        world
    };
    assert_eq!(world(true).hops()[0].client_half, JoinOutcome::Matched(()), "nothing is amiss here");

    let mut unlogged = world(true);
    unlogged.logs.remove(1);
    let hop = told_by_its_application_alone(&unlogged, "the server's sidecar did not log the connection");
    assert_eq!(hop.response_on(Link::ClientLoopback).send, None, "what came back first may be session tickets");

    let mut twice = world(true);
    twice.logs.push(twice.logs[1].clone());
    told_by_its_application_alone(&twice, "two entries speak of one connection");

    let mut hidden = world(true);
    hidden.sockets[5].tls = None;
    told_by_its_application_alone(&hidden, "the server's plaintext was not seen");

    let mut older = world(true);
    older.sockets[3].established = None;
    told_by_its_application_alone(&older, "a connection's beginning was not seen");

    let mut elsewhere = world(true);
    elsewhere.sockets[4].remote = PeerAddr(address("10.0.0.3:9443"));
    told_by_its_application_alone(&elsewhere, "the server's sidecar went elsewhere");

    let mut more = world(false);
    more.one(2, false, 40, more.now, Content::TlsApplicationData);
    told_by_its_application_alone(&more, "the sidecar sent more than it was given");
}
