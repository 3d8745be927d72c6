//! The same troubles where requests share connections: HTTP/2 and gRPC, plain between applications and sidecars, encrypted between the
//! sidecars, attempts of many requests on one connection. What becomes of each is in `tests/e2e/tests/trouble/`.

use std::io;

use super::http2::{at_once, in_turn};
use super::trouble::{each, failing as failing_http1, refused};
use super::{Case, KIB, Place};
use crate::bootstrap::TRY_MS;
use crate::protocols::ask::{Ask, Fail, Failing, Flow, Id};
use crate::protocols::h2::Windows;
use crate::protocols::h2::client::Exchange;
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::ExchangeRecord;

const MS: u64 = 1_000_000;
/// How many requests are under way at once where they are.
const CROWD: u32 = 12;

const fn case(name: &'static str, about: &'static str, round: super::Round) -> Case {
    Case { name, workload: Workload::Trouble, status: Some(200), about, only_if_named: false, round }
}

pub(super) const CASES: &[Case] = &[
    case("h2-straight", "HTTP/2, nothing is wrong", |place, case| one_by_one(place, &vec![Exchange::get(case); 2])),
    case("h2-retry-status", "the first two attempts are answered with 503", |place, case| {
        one_by_one(place, &[failing(case, 2, Failing::Status)])
    }),
    case("h2-retry-quiet", "the same where routers do not log attempts", |place, case| {
        in_turn(place, ServicePort::HTTP2_QUIET, Windows::default(), &[failing(case, 2, Failing::Status)])
    }),
    case("h2-retry-reset", "the first attempt's stream is reset instead of an answer", |place, case| {
        one_by_one(place, &[failing(case, 1, Failing::Close)])
    }),
    case("h2-retry-body", "a request with a body, whose first attempt is answered with 503", |place, case| {
        let what = Exchange { request: Flow::of(4, 4 * KIB), ..failing(case, 1, Failing::Status) };
        one_by_one(place, &[what])
    }),
    refused(
        503,
        case("h2-retry-in-vain", "all four attempts are answered with 503", |place, case| {
            one_by_one(place, &[failing(case, 4, Failing::Status)])
        }),
    ),
    case(
        "h2-retry-crowd",
        "twelve at once on one connection, of which each third needs 1, 2 and 3 attempts",
        |place, case| crowd(place, ServicePort::HTTP2_TROUBLE, case, |_| Id::Own),
    ),
    case("h2-retry-quiet-crowd", "the same where routers do not log attempts", |place, case| {
        crowd(place, ServicePort::HTTP2_QUIET, case, |_| Id::Own)
    }),
    case("h2-retry-same-id", "the same with one x-request-id and path for all", |place, case| {
        let id = Id::Own.choose().unwrap_or_default();
        crowd(place, ServicePort::HTTP2_TROUBLE, case, |_| Id::Given(id.clone()))
    }),
    case("h2-retry-from-http1", "the client speaks HTTP/1.1, the sidecars HTTP/2", |place, case| {
        each(place, ServicePort::HTTP2_TROUBLE, &[failing_http1(case, 2, Failing::Status)])
    }),
    case("h2-other-host", "an attempt that failed is followed by one at the other of two hosts", |place, case| {
        one_by_one(place, &[failing(case, 1, Failing::Status)])
    }),
    case("h2-half-refused", "one of two hosts refuses connections", |place, case| {
        one_by_one(place, &vec![Exchange::get(case); 2])
    }),
    case("h2-try-timeout", "the first attempt takes longer than an attempt may", |place, case| {
        one_by_one(place, &[slow(case, 1, 2 * TRY_MS)])
    }),
    case(
        "h2-hedge-second",
        "the first attempt is slow, a second one is made beside it and is answered",
        |place, case| one_by_one(place, &[slow(case, 1, 3 * TRY_MS)]),
    ),
    case("h2-hedge-first", "the first attempt is slow, and yet is answered before the second one", |place, case| {
        let mut what = slow(case, 1, TRY_MS + 30);
        what.ask.think_ns = 3 * TRY_MS * MS;
        one_by_one(place, &[what])
    }),
    refused(
        504,
        case("h2-timeout", "the server takes longer than the request may", |place, case| {
            one_by_one(place, &[slow(case, 1, 300)])
        }),
    ),
    case("grpc-retry", "two calls are answered with UNAVAILABLE, the third with OK", |place, case| {
        let call = Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
        let ask = Ask { fail: Some(Fail { first: 2, how: Failing::Status }), ..call.ask };
        one_by_one(place, &[Exchange { ask, ..call }])
    }),
];

fn failing(case: &str, first: u32, how: Failing) -> Exchange {
    let get = Exchange::get(case);
    Exchange { ask: Ask { fail: Some(Fail { first, how }), ..get.ask }, ..get }
}

/// The first attempts take so long; the others take what the request's `think_ns` says.
fn slow(case: &str, first: u32, ms: u64) -> Exchange {
    failing(case, first, Failing::Slow { ns: ms * MS })
}

fn one_by_one(place: &Place, all: &[Exchange]) -> io::Result<Vec<ExchangeRecord>> {
    in_turn(place, ServicePort::HTTP2_TROUBLE, Windows::default(), all)
}

fn crowd(place: &Place, port: ServicePort, case: &str, id: impl Fn(u32) -> Id) -> io::Result<Vec<ExchangeRecord>> {
    let one = |n: u32| {
        let mut what = failing(case, n % 3, Failing::Status);
        what.ask.think_ns = u64::from(n % 4) * 2 * MS;
        Exchange { id: id(n), ..what }
    };
    at_once(place, port, Windows::default(), vec![(0..CROWD).map(one).collect()])
}
