//! Attribution against a world whose truth is known (the one that judges the joins): segments sum to the total for every
//! request, and for whole ones each is the truth's to the nanosecond.

#[expect(dead_code, reason = "what judges joins is not all used here")]
#[path = "../../graph/tests/truth/check.rs"]
mod check;
#[path = "../../graph/tests/truth/world.rs"]
mod world;

use check::{Nobody, join};
use meshdiff_analyzer::{CoverageClass, ReportInput, attribute, attribute_all, coverage, report};
use meshdiff_model::{Attribution, DurationNs, Evidence, Segment};
use proptest::prelude::*;
use std::collections::HashMap;
use world::{Config, Moved, TrueAttempt, TrueCrossing, TrueRequest, World, record};

fn config() -> impl Strategy<Value = Config> {
    let traffic = (any::<u64>(), 1usize..12, 20usize..120, 1usize..6, any::<bool>());
    let trouble = (
        prop_oneof![Just(0u32), 1u32..500],
        prop_oneof![Just(0u32), 1u32..2_000],
        prop_oneof![Just(0u32), Just(1_000u32)],
        prop_oneof![Just(0u32), Just(4_000u32)],
    );
    (traffic, trouble).prop_map(|((seed, clients, requests, pool, tls), (loss, log_loss, retries, bodies))| Config {
        seed,
        clients,
        requests,
        pool,
        tls,
        loss,
        log_loss,
        ports: 200,
        shared_ids: seed % 2 == 0,
        retries,
        bodies,
        window: (0, 100),
    })
}

fn span(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from).cast_signed()
}

/// From one message's head ready to another's first byte sent.
fn between(ready: &TrueCrossing, send: &TrueCrossing) -> i64 {
    span(ready.ready, send.send)
}

/// The attempt whose response the client got.
fn answered(r: &TrueRequest) -> &TrueAttempt {
    r.attempts.last().expect("it was sent on")
}

/// What the segments of a request with both halves truly are; those that only a body tells apart summed up.
fn truth(r: &TrueRequest) -> Vec<(&'static [Segment], i64)> {
    use Segment::{
        ClientApp, ClientLoopback, ClientSidecar, ConnectionSetup, Network, Retry, ServerApp, ServerLoopback,
        ServerSidecar, Transfer,
    };
    let there = |c: &TrueCrossing| span(c.send, c.ready);
    let (first, attempt) = (&r.attempts[0].request[0], answered(r));
    let ([req1, req2], [resp1, resp2]) = (&attempt.request, &attempt.response);
    let (req0, resp0) = (&r.request, &r.response);
    vec![
        (&[ClientLoopback], there(req0) + there(resp0)),
        (&[ClientSidecar, ConnectionSetup], between(req0, first) + between(resp1, resp0)),
        (&[Retry], span(first.send, req1.send)),
        (&[Network], span(req1.send, resp1.ready) - span(req1.ready, resp1.send)),
        (&[ServerSidecar], between(req1, req2) + between(resp2, resp1)),
        (&[ServerLoopback], there(req2) + there(resp2)),
        (&[ServerApp, ClientApp, Transfer], between(req2, resp2) + span(resp0.ready, resp0.last_recv)),
    ]
}

/// Where a message is at an instant: bytes that its application had sent, and that the other one could read and had read, of how many.
/// Here the proxies change no byte.
struct Where {
    sent: u64,
    arrived: u64,
    read: u64,
    all: u64,
}

/// A message's way from one application to the other: their sockets, and where it lies among the bytes of each.
#[derive(Clone, Copy)]
struct Passage<'a> {
    from: (&'a Moved, (u64, u64)),
    to: (&'a Moved, (u64, u64)),
}

impl Passage<'_> {
    fn at(&self, at: u64) -> Where {
        let passed = |list: &[(u64, u64)], (from, to): (u64, u64)| {
            let sum = list.partition_point(|m| m.0 <= at).checked_sub(1).map_or(0, |i| list[i].1);
            sum.clamp(from, to) - from
        };
        Where {
            sent: passed(&self.from.0.sent, self.from.1),
            arrived: passed(&self.to.0.arrived, self.to.1),
            read: passed(&self.to.0.read, self.to.1),
            all: self.to.1.1 - self.to.1.0,
        }
    }

    /// Instants at which it moved.
    fn moves(&self) -> impl Iterator<Item = u64> + '_ {
        [&self.from.0.sent, &self.to.0.arrived, &self.to.0.read].into_iter().flatten().map(|m| m.0)
    }
}

/// Every stretch of body time belongs to whom the bytes that truly moved say; without losses only long messages leave any untold.
fn body_time_is_the_truth(world: &World, request: &TrueRequest, split: &Attribution, lossless: bool) {
    let attempt = answered(request);
    let (s1, s6) = (&world.moved[&request.sockets[0]], &world.moved[&attempt.sockets[3]]);
    let there = Passage { from: (s1, request.bytes[0]), to: (s6, attempt.bytes[0]) };
    let back = Passage { from: (s6, attempt.bytes[1]), to: (s1, request.bytes[1]) };
    // The server answers when it has read the whole request, so that each of the two has its time.
    let of_request = |at| match there.at(at) {
        w if w.arrived == w.all || w.arrived > w.read => Segment::ServerApp,
        w if w.sent > w.arrived => Segment::Transfer,
        _ => Segment::ClientApp,
    };
    let of_response = |at| match back.at(at) {
        w if w.arrived > w.read => Segment::ClientApp,
        w if w.sent > w.arrived => Segment::Transfer,
        _ => Segment::ServerApp,
    };
    let answered = attempt.response[1].send;
    let long = |p: &Passage<'_>| {
        let within =
            |list: &[(u64, u64)], (from, to): (u64, u64)| list.iter().filter(|m| from < m.1 && m.1 <= to).count();
        within(&p.from.0.sent, p.from.1) > 6
    };
    for span in split.spans() {
        let in_request = span.from.0 < answered;
        if span.evidence == Evidence::Bound {
            assert_eq!(span.segment, Segment::Transfer);
            assert!(!lossless || long(&there) || long(&back), "{span:?} of {:?}", split.spans());
            continue;
        }
        let moves = there.moves().chain(back.moves()).filter(|at| span.from.0 < *at && *at < span.to.0);
        for at in moves.chain([span.from.0]).filter(|_| span.from != span.to) {
            let truth = if in_request { of_request(at) } else { of_response(at) };
            assert_eq!(span.segment, truth, "at {at}: {span:?} of {:?}\n{request:?}", split.spans());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn segments_are_the_truth_and_sum_to_the_total(config in config()) {
        let world = record(&config);
        let mesh = join(&world);
        let firsts = world.requests.iter().map(|r| ((r.sockets[0], r.request.send), r));
        let by_first_send: HashMap<(u64, u64), &TrueRequest> = firsts.collect();
        for hop in &mesh.hops {
            let joined = &hop.joined;
            let (split, _) = attribute(joined).expect("telescopes");
            prop_assert_eq!(split.segments().sum(), split.total());
            prop_assert_eq!(split.negative_segments().count(), 0, "{:?}\n{:?}", split, joined);
            if coverage(joined).class != CoverageClass::Full {
                continue;
            }
            let key = (joined.sockets[0].map(|s| s.0), joined.request[0].send.map(|s| s.0));
            let (Some(socket), Some(send)) = key else { panic!("full without S1: {joined:?}") };
            let request = by_first_send[&(socket, send)];
            prop_assert_eq!(split.total().0, span(request.request.send, request.response.last_recv));
            if !request.attempts.is_empty() {
                for (segments, expected) in truth(request) {
                    let sum: DurationNs = segments.iter().filter_map(|&s| split.segments().get(s)).sum();
                    prop_assert_eq!(sum.0, expected, "{:?}\n{:?}\n{:?}", segments, split, request);
                }
                prop_assert_eq!(split.segments().get(Segment::Unattributed), None);
                body_time_is_the_truth(&world, request, &split, config.loss == 0);
            }
        }
        let (requests, errors) = attribute_all(&mesh, &Nobody, &world.clock);
        prop_assert!(errors.is_empty());
        let report = report(&requests, &mesh, ReportInput::default());
        let c = &report.coverage;
        let unmatched: u64 = c.unmatched.values().sum();
        prop_assert_eq!(
            c.full + c.partial_client + c.partial_server + c.partial_als + c.ambiguous + unmatched,
            c.requests
        );
        let reasons: u64 = c.partial_reasons.values().sum();
        prop_assert_eq!(reasons, c.requests - c.full - unmatched);
        prop_assert_eq!(report.hops.iter().map(|h| h.requests).sum::<u64>(), c.requests);
    }
}
