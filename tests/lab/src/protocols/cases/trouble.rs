//! Requests that do not go straight: retried, hedged, given up by a sidecar, refused, and held up in one place. What becomes of each is in
//! `tests/e2e/tests/trouble/`.

use std::io;
use std::time::Duration;

use super::{Case, Place};
use crate::bootstrap::TRY_MS;
use crate::clock::{MonotonicNs, sleep_until};
use crate::protocols::ask::{Ask, Fail, Failing, Flow};
use crate::protocols::http1::client::{Connection, Exchange};
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::ExchangeRecord;

const MS: u64 = 1_000_000;
/// How long those that wait for something wait, in milliseconds.
const HELD_MS: &str = "80";
const HELD_NS: u64 = 80 * MS;

const fn case(name: &'static str, about: &'static str, round: super::Round) -> Case {
    Case { name, workload: Workload::Trouble, status: Some(200), about, only_if_named: false, round }
}

pub(super) const fn refused(status: u16, case: Case) -> Case {
    Case { status: Some(status), ..case }
}

pub(super) const CASES: &[Case] = &[
    case("straight", "nothing is wrong", |place, case| each(place, ServicePort::TROUBLE, &[get(case), get(case)])),
    case("retry-status", "the first two attempts are answered with 503", |place, case| {
        each(place, ServicePort::TROUBLE, &[failing(case, 2, Failing::Status)])
    }),
    case("retry-quiet", "the same where routers do not log attempts", |place, case| {
        each(place, ServicePort::QUIET, &[failing(case, 2, Failing::Status)])
    }),
    case("retry-reset", "the first attempt's connection is closed instead of an answer", |place, case| {
        each(place, ServicePort::TROUBLE, &[failing(case, 1, Failing::Close)])
    }),
    refused(
        503,
        case("retry-in-vain", "all four attempts are answered with 503", |place, case| {
            each(place, ServicePort::TROUBLE, &[failing(case, 4, Failing::Status)])
        }),
    ),
    case("try-timeout", "the first attempt takes longer than an attempt may", |place, case| {
        each(place, ServicePort::TROUBLE, &[slow(case, 1, 2 * TRY_MS)])
    }),
    case("hedge-second", "the first attempt is slow, a second one is made beside it and is answered", |place, case| {
        each(place, ServicePort::TROUBLE, &[slow(case, 1, 3 * TRY_MS)])
    }),
    case("hedge-first", "the first attempt is slow, and yet is answered before the second one", |place, case| {
        let mut what = slow(case, 1, TRY_MS + 30);
        what.ask.think_ns = 3 * TRY_MS * MS;
        each(place, ServicePort::TROUBLE, &[what])
    }),
    refused(
        504,
        case("timeout", "the server takes longer than the request may", |place, case| {
            each(place, ServicePort::TROUBLE, &[slow(case, 1, 300)])
        }),
    ),
    refused(
        503,
        case("no-host", "there is no host to ask", |place, case| each(place, ServicePort::TROUBLE, &[get(case)])),
    ),
    refused(
        503,
        case("refused", "the host refuses the connection", |place, case| {
            each(place, ServicePort::TROUBLE, &[get(case)])
        }),
    ),
    case("half-refused", "one of two hosts refuses connections", |place, case| {
        each(place, ServicePort::TROUBLE, &[get(case), get(case)])
    }),
    refused(
        418,
        case("server-refuses", "the server's sidecar answers by itself", |place, case| {
            let what = Exchange { fields: vec![("x-envoy-fault-abort-request", "418")], ..get(case) };
            each(place, ServicePort::TROUBLE, &[what])
        }),
    ),
    case("held-filter", "a filter of the client's sidecar waits", |place, case| {
        let what = Exchange { fields: vec![("x-envoy-fault-delay-request", HELD_MS)], ..get(case) };
        each(place, ServicePort::TROUBLE, &[what])
    }),
    case("held-connect", "each request has a new connection between the sidecars", |place, case| {
        each(place, ServicePort::FRESH, &[get(case), get(case)])
    }),
    case("held-pool", "there is one connection between the sidecars, and another request is on it", |place, case| {
        let mut first = get("holds-pool");
        first.ask.think_ns = HELD_NS;
        behind(place, ServicePort::POOL, first, get(case))
    }),
    case("held-queue", "the sidecar's only worker is busy", |place, case| {
        let first = Exchange { fields: vec![("x-lab-spin", HELD_MS)], ..get("holds-queue") };
        behind(place, ServicePort::TROUBLE, first, get(case))
    }),
];

fn get(case: &str) -> Exchange {
    Exchange::get(case)
}

pub(super) fn failing(case: &str, first: u32, how: Failing) -> Exchange {
    let ask = Ask { fail: Some(Fail { first, how }), ..get(case).ask };
    Exchange { ask: Ask { response: Flow::of(1, 64), ..ask }, ..get(case) }
}

/// The first attempts take so long; the others take what the request's `think_ns` says.
fn slow(case: &str, first: u32, ms: u64) -> Exchange {
    failing(case, first, Failing::Slow { ns: ms * MS })
}

pub(super) fn each(place: &Place, port: ServicePort, all: &[Exchange]) -> io::Result<Vec<ExchangeRecord>> {
    let mut records = Vec::new();
    for what in all {
        records.push(Connection::open(&place.to(port))?.exchange(what).0);
    }
    Ok(records)
}

/// A request, and another one while it is under way.
fn behind(place: &Place, port: ServicePort, first: Exchange, second: Exchange) -> io::Result<Vec<ExchangeRecord>> {
    // Both connections are there before: only the requests meet.
    let (mut one, mut other) = (Connection::open(&place.to(port))?, Connection::open(&place.to(port))?);
    let start = MonotonicNs::now();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || one.exchange(&first).0);
        sleep_until(start.plus(Duration::from_millis(8)));
        let second = other.exchange(&second).0;
        let first = first.join().map_err(|_| io::Error::other("the first request's thread failed"))?;
        Ok(vec![first, second])
    })
}
