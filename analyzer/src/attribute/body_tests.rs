//! Body time against a brute-force oracle: bytes move at random from socket to socket, and each stretch of time between two moves is
//! judged from the definitions alone.

use super::*;
use crate::attribute::tests::hop;
use meshdiff_model::{Attribution, DurationNs, Flow, Mark, Progress, SocketCookie};
use proptest::prelude::*;
use std::sync::Arc;

/// Send, ready and read on each of three links, in order of travel.
const STAGES: usize = 9;
const FROM: u64 = 1_000_000;

/// A message that moves: how much of its body had passed each stage, after each event.
#[derive(Clone, Debug)]
struct Moving {
    body: u64,
    /// Instants, and how much passed each stage from then on.
    passed: Vec<(u64, [u64; STAGES])>,
}

/// One move: after some time, a stage lets some share of what it has through.
type Move = (u64, usize, u64);

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let gap = prop_oneof![4 => 0u64..50, 1 => 1_000u64..5_000_000];
    prop::collection::vec((gap, 0..STAGES, 1u64..=100), 0..150)
}

impl Moving {
    /// Plays moves from `start`; what is left then passes in order. A proxy that is `eager` sends on what it read before it reads more.
    fn play(body: u64, start: u64, moves: &[Move], eager: bool) -> Self {
        let mut now = [0; STAGES];
        let mut at = start;
        let mut passed = vec![(0, now)];
        let mut go = |at: u64, stage: usize, percent: u64, now: &mut [u64; STAGES]| {
            let has = if stage == 0 { body } else { now[stage - 1] };
            let blocked = eager && (stage == 2 || stage == 5) && now[stage] > now[stage + 1];
            let percent = if eager && (stage == 3 || stage == 6) { 100 } else { percent };
            let some = ((has - now[stage]) * percent).div_ceil(100);
            if some > 0 && !blocked {
                now[stage] += some;
                passed.push((at, *now));
            }
        };
        for &(gap, stage, percent) in moves {
            at += gap + 1;
            go(at, stage, percent, &mut now);
        }
        while now[STAGES - 1] < body {
            for stage in 0..STAGES {
                at += 7;
                go(at, stage, 100, &mut now);
            }
        }
        Self { body, passed }
    }

    fn at(&self, at: u64) -> [u64; STAGES] {
        self.passed[self.passed.partition_point(|p| p.0 <= at) - 1].1
    }

    fn end(&self) -> u64 {
        self.passed[self.passed.len() - 1].0
    }

    /// The first instant after `at` at which a stage let something through.
    fn next(&self, stage: usize, at: u64) -> Option<u64> {
        let before = self.at(at)[stage];
        self.passed.iter().find(|p| p.0 > at && p.1[stage] > before).map(|p| p.0)
    }

    /// The flow over a link whose head has `head` bytes, as it is recorded: heads have passed before everything. Of the marks that
    /// `left_out` tells, bounds remain.
    fn flow(&self, link: usize, head: u64, told: bool, left_out: &[bool]) -> Arc<Flow> {
        let mut which = left_out.iter().copied().chain(std::iter::repeat(false));
        let mut progress = |stage: usize| {
            let mut all: Vec<(u64, u64)> = self.passed.iter().map(|p| (p.0, head + p.1[stage])).collect();
            all.dedup_by_key(|(_, bytes)| *bytes);
            let mut kept: Vec<Mark> = Vec::new();
            for (i, &(at, bytes)) in all.iter().enumerate() {
                if i > 0 && i + 1 < all.len() && which.next() == Some(true) {
                    let last = kept.last_mut().expect("the first is kept");
                    last.high = all[i + 1].1;
                } else {
                    kept.push(Mark { at: MonotonicNs(at), low: bytes, high: bytes });
                }
            }
            Progress::new(kept)
        };
        Arc::new(Flow {
            bytes: head + self.body,
            head: told.then_some(head),
            sent: progress(3 * link),
            ready: progress(3 * link + 1),
            read: progress(3 * link + 2),
            ..Flow::default()
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Server,
    Client,
    Way,
}

/// By the definitions: whoever has bytes to read, else the way if bytes are in flight, else who has to go on.
fn oracle_request(request: &Moving, at: u64, to: u64) -> Who {
    let now = request.at(at);
    let (sent, arrived, read) = (now[0], now[7], now[8]);
    if arrived == request.body || arrived > read {
        Who::Server
    } else if sent > arrived {
        Who::Way
    } else if request.next(7, at).is_none_or(|next| next > to) {
        Who::Server
    } else {
        Who::Client
    }
}

fn oracle_response(request: &Moving, response: &Moving, at: u64) -> Who {
    let now = response.at(at);
    let (sent, arrived, read) = (now[0], now[7], now[8]);
    if arrived > read {
        return Who::Client;
    }
    if sent > arrived {
        return Who::Way;
    }
    let waits = match (response.next(0, at), request.next(7, at)) {
        (Some(sends), Some(arrives)) => arrives <= sends,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    let there = request.at(at);
    if !waits || there[7] == request.body || there[7] > there[8] {
        Who::Server
    } else if there[0] > there[7] {
        Who::Way
    } else {
        Who::Client
    }
}

/// The spans follow one another from `from` to `to`, and each is the oracle's at all of its instants, or a bound.
fn judge(split: &Attribution, from: u64, to: u64, events: &[u64], oracle: impl Fn(u64) -> Who, bounds: bool) {
    let spans = split.spans();
    let mut at = from;
    for span in spans {
        assert_eq!(span.from.0, at, "{spans:?}");
        at = span.to.0;
        let who = match span.segment {
            Segment::ServerApp => Who::Server,
            Segment::ClientApp => Who::Client,
            Segment::Transfer => Who::Way,
            other => panic!("{other:?} is no body time"),
        };
        if span.evidence == Evidence::Bound {
            assert!(bounds && who == Who::Way, "{span:?}");
            continue;
        }
        for &event in events.iter().filter(|e| (span.from.0..span.to.0).contains(*e)).chain([&span.from.0]) {
            assert_eq!(oracle(event), who, "at {event} of {span:?}");
        }
    }
    assert_eq!(at, to, "{spans:?}");
    assert_eq!(split.segments().sum(), DurationNs(to.abs_diff(from).cast_signed()));
    let details: i64 = split.details().iter().map(|(.., time)| time.0).sum();
    assert!(details <= split.total().0);
}

fn events(of: &[&Moving]) -> Vec<u64> {
    of.iter().flat_map(|m| m.passed.iter().map(|p| p.0)).collect()
}

const HEADS: [u64; 3] = [100, 160, 230];

/// A hop with these flows. The heads passed before.
fn recorded(request: &Moving, response: &Moving, told: bool, left_out: &[bool]) -> meshdiff_model::JoinedHop {
    let mut hop = hop(&[0; 13]);
    hop.flows.request = std::array::from_fn(|i| Some(request.flow(i, HEADS[i], told, left_out)));
    hop.flows.response = std::array::from_fn(|i| Some(response.flow(2 - i, HEADS[i], told, left_out)));
    for i in 0..3 {
        let reached = |moving: &Moving, stage: usize| {
            moving.passed.iter().find(|p| p.1[stage] == moving.body).map(|p| MonotonicNs(p.0))
        };
        hop.request[i].last_ready = reached(request, 3 * i + 1);
        hop.response[i].last_ready = reached(response, 3 * (2 - i) + 1);
    }
    hop
}

fn split_request(hop: &JoinedHop, to: u64) -> Attribution {
    let total = DurationNs((to - FROM).cast_signed());
    until_answered(Attribution::of(total), hop, MonotonicNs(FROM), MonotonicNs(to)).build().expect("sums up")
}

fn split_response(hop: &JoinedHop, to: u64) -> Attribution {
    let total = DurationNs((to - FROM).cast_signed());
    until_read(Attribution::of(total), hop, MonotonicNs(FROM), MonotonicNs(to)).build().expect("sums up")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_partitioned_by_the_definitions(
        body in 1u64..100_000, moves in moves(), early in prop::option::of(0u64..100), extra in 1u64..5_000_000,
    ) {
        let request = Moving::play(body, FROM, &moves, false);
        let none = Moving { body: 0, passed: vec![(0, [0; STAGES])] };
        let hop = recorded(&request, &none, true, &[]);
        let to = early.map_or(request.end() + extra, |percent| FROM + 1 + (request.end() - FROM) * percent / 100);
        let split = split_request(&hop, to);
        judge(&split, FROM, to, &events(&[&request]), |at| oracle_request(&request, at, to), false);
    }

    #[test]
    fn a_response_is_partitioned_by_the_definitions(
        bodies in (0u64..50_000, 1u64..100_000), there in moves(), back in moves(),
    ) {
        let request = Moving::play(bodies.0, FROM, &there, false);
        let response = Moving::play(bodies.1, FROM, &back, false);
        let to = response.end();
        let hop = recorded(&request, &response, true, &[]);
        let split = split_response(&hop, to);
        let oracle = |at| oracle_response(&request, &response, at);
        judge(&split, FROM, to, &events(&[&request, &response]), oracle, false);
    }

    /// Where the proxies encode a body anew, positions on different links do not compare. A proxy that keeps nothing back is told all
    /// the same.
    #[test]
    fn a_body_that_is_encoded_anew_is_told_by_who_moves(
        bodies in (0u64..50_000, 1u64..100_000), there in moves(), back in moves(),
    ) {
        let request = Moving::play(bodies.0, FROM, &there, true);
        let response = Moving::play(bodies.1, FROM, &back, true);
        let hop = recorded(&request, &response, false, &[]);
        let to = request.end().max(FROM) + 100;
        let split = split_request(&hop, to);
        judge(&split, FROM, to, &events(&[&request]), |at| oracle_request(&request, at, to), false);
        let to = response.end();
        let split = split_response(&hop, to);
        let oracle = |at| oracle_response(&request, &response, at);
        judge(&split, FROM, to, &events(&[&request, &response]), oracle, false);
    }

    /// Between the sidecars streams share a connection, and nothing is known of it. Whom the ends wait for is told all the same, and what a
    /// proxy keeps to itself, maybe for want of a window, is a bound.
    #[test]
    fn a_stream_is_partitioned_without_the_connection_that_it_shares(
        bodies in (0u64..50_000, 1u64..100_000), there in moves(), back in moves(),
    ) {
        let request = Moving::play(bodies.0, FROM, &there, false);
        let response = Moving::play(bodies.1, FROM, &back, false);
        let mut hop = recorded(&request, &response, true, &[]);
        (hop.request[1], hop.response[1]) = Default::default();
        (hop.flows.request[1], hop.flows.response[1], hop.http2) = (None, None, Some(Default::default()));
        let to = request.end().max(FROM) + 100;
        let split = split_request(&hop, to);
        judge(&split, FROM, to, &events(&[&request]), |at| oracle_request(&request, at, to), true);
        let certain = |split: &Attribution| {
            let spans = split.spans().iter().filter(|s| s.segment == Segment::Transfer && s.evidence == Evidence::Kernel);
            spans.map(|s| s.from.0).collect::<Vec<_>>()
        };
        // What is certain to wait for the way is on its last connection.
        for at in certain(&split) {
            prop_assert!(request.at(at)[6] > request.at(at)[7]);
        }
        let to = response.end();
        let split = split_response(&hop, to);
        let oracle = |at| oracle_response(&request, &response, at);
        judge(&split, FROM, to, &events(&[&request, &response]), oracle, true);
    }

    /// With the server on another node the same time goes to the same segments, and what comes from comparing both ends is a bound.
    #[test]
    fn what_compares_two_nodes_is_a_bound(
        bodies in (0u64..50_000, 1u64..100_000), there in moves(), back in moves(),
    ) {
        let request = Moving::play(bodies.0, FROM, &there, false);
        let response = Moving::play(bodies.1, FROM, &back, false);
        let near = recorded(&request, &response, true, &[]);
        let mut apart = near.clone();
        for socket in apart.sockets[3..].iter_mut().flatten() {
            socket.0 += 1 << SocketCookie::NODE_SHIFT;
        }
        prop_assert!(!near.is_across_nodes() && apart.is_across_nodes());
        let to = response.end();
        let (near, apart) = (split_response(&near, to), split_response(&apart, to));
        prop_assert_eq!(near.segments(), apart.segments());
        for span in apart.spans().iter().filter(|s| s.from.0 >= FROM && s.segment == Segment::Transfer) {
            prop_assert_eq!(span.evidence, Evidence::Bound);
        }
    }

    /// Whatever instants were left out: what is told is still true, and the rest is a bound.
    #[test]
    fn what_was_left_out_makes_bounds_and_nothing_wrong(
        bodies in (1u64..50_000, 1u64..100_000), there in moves(), back in moves(),
        left_out in prop::collection::vec(any::<bool>(), 0..600), told: bool,
    ) {
        let request = Moving::play(bodies.0, FROM, &there, !told);
        let response = Moving::play(bodies.1, FROM, &back, !told);
        let hop = recorded(&request, &response, told, &left_out);
        let to = request.end().max(FROM) + 100;
        let split = split_request(&hop, to);
        // What comes next may have been left out: who waits for whom is then told by what is left.
        let possible = |at| oracle_request(&request, at, to);
        judge(&split, FROM, to, &events(&[&request]), possible, true);
        let to = response.end();
        let split = split_response(&hop, to);
        prop_assert_eq!(split.segments().sum(), split.total());
    }
}
