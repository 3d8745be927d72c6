//! Ways through a mesh beyond the plain one. What each is to come out as is in `tests/e2e/tests/scenarios.rs`.

use std::io;
use std::net::SocketAddr;

use rand::Rng;

use super::http2::on_this_thread;
use super::{Case, Place};
use crate::hop::uuid_v4;
use crate::protocols::ask::{Ask, Call, Flow, HandOn, Id};
use crate::protocols::h2::{self, Windows};
use crate::protocols::http1::client::{Connection, Exchange, To};
use crate::scenarios::{BARE, GATEWAY, GATEWAY_PORT, HEADLESS, OUTSIDE, RELAY, REUSED, SIX, STRICT, TPROXY};
use crate::settings::Workload;
use crate::topology::{ECHO, ServicePort};
use crate::truth::ExchangeRecord;

/// What an external client claims to come from: nobody is to believe it.
const FORGED: &str = "10.255.255.1, 203.0.113.7";
/// An address in which nobody is.
const NOWHERE: [u8; 4] = [198, 51, 100, 7];

const fn case(name: &'static str, about: &'static str, round: super::Round) -> Case {
    Case { name, workload: Workload::Scenarios, status: Some(200), about, only_if_named: false, round }
}

const fn if_named(case: Case) -> Case {
    Case { only_if_named: true, ..case }
}

pub(super) const CASES: &[Case] = &[
    case("client-bare", "a client without sidecar asks a pod with one, in plain text", |place, case| {
        let to = at_pod(place, ECHO, &format!("{ECHO}:{}", ServicePort::HTTP.number))?;
        place.from(BARE, || in_turn(&to, &vec![Exchange::get(case); 3]))
    }),
    case("server-bare", "a service whose pod has no sidecar, in plain text", |place, case| {
        in_turn(&place.service(BARE, ServicePort::HTTP)?, &vec![Exchange::get(case); 3])
    }),
    case("server-outside", "an address outside of the mesh: PassthroughCluster", |place, case| {
        let to = by_address(place, OUTSIDE)?;
        in_turn(&to, &vec![Exchange::get(case); 3])
    }),
    Case {
        status: Some(502),
        ..case("server-refused", "the same where only the registry is allowed: 502 by the sidecar", |place, case| {
            let address = SocketAddr::from((NOWHERE, ServicePort::HTTP.number));
            let to = To { host: "nowhere.example.com".to_owned(), address };
            place.from(STRICT, || in_turn(&to, &vec![Exchange::get(case); 3]))
        })
    },
    case("gateway", "from outside through the ingress gateway, with a forged X-Forwarded-For", |place, case| {
        let address = SocketAddr::from((place.pod(GATEWAY)?.ip, GATEWAY_PORT));
        let to = To { host: "shop.example.com".to_owned(), address };
        let what = Exchange { fields: vec![("x-forwarded-for", FORGED)], ..Exchange::get(case) };
        place.from(OUTSIDE, || in_turn(&to, &vec![what; 3]))
    }),
    case("forwarded-for", "within the mesh with a forged X-Forwarded-For", |place, case| {
        let what = Exchange { fields: vec![("x-forwarded-for", FORGED)], ..Exchange::get(case) };
        in_turn(&place.service(ECHO, ServicePort::HTTP)?, &vec![what; 3])
    }),
    case("pod-ip", "a pod by its address alone: PassthroughCluster to a sidecar, in plain text", |place, case| {
        in_turn(&by_address(place, ECHO)?, &vec![Exchange::get(case); 3])
    }),
    case("pod-ip-named", "a pod's address under the service's name", |place, case| {
        let to = at_pod(place, ECHO, &format!("{ECHO}:{}", ServicePort::HTTP.number))?;
        in_turn(&to, &vec![Exchange::get(case); 3])
    }),
    case("headless", "a headless service: the client chooses the pod (ORIGINAL_DST)", |place, case| {
        in_turn(&place.service(HEADLESS, ServicePort::HTTP)?, &vec![Exchange::get(case); 3])
    }),
    case("twice-in-turn", "one service asked twice while a request is served, one after the other", |place, case| {
        relayed(place, case, RELAY, ECHO, &[HandOn::Same; 2], false)
    }),
    case("twice-at-once", "the same at the same time, under one request id", |place, case| {
        relayed(place, case, RELAY, ECHO, &[HandOn::Same; 2], true)
    }),
    case("itself", "a service that asks itself while it serves", |place, case| {
        relayed(place, case, RELAY, RELAY, &[HandOn::Same], false)
    }),
    case("id-changed", "an application that makes a request id of its own for its call", |place, case| {
        relayed(place, case, RELAY, ECHO, &[HandOn::Another], false)
    }),
    case("id-absent", "requests without an id, on both hops: the sidecars make them", |place, case| {
        let mut what = calling(place, case, ECHO, &[HandOn::None], false)?;
        what.id = Id::None;
        in_turn(&place.service(RELAY, ServicePort::HTTP)?, &[what])
    }),
    case("id-equal", "eight requests at once with one id and path, on connections of their own", |place, case| {
        let to = place.service(ECHO, ServicePort::HTTP)?;
        let mut what = Exchange { id: Id::Given(fresh_id()), ..Exchange::get(case) };
        what.ask.think_ns = 3_000_000;
        at_once(&to, &vec![what; 8], 1)
    }),
    case("id-equal-streams", "eight requests at once with one id and path, on one HTTP/2 connection", |place, case| {
        let to = place.service(ECHO, ServicePort::HTTP2)?;
        let mut what = h2::client::Exchange { id: Id::Given(fresh_id()), ..h2::client::Exchange::get(case) };
        what.ask.think_ns = 3_000_000;
        on_this_thread(async {
            let client = h2::client::Client::open(&to, Windows::default()).await?;
            let [a, b, c, d, e, f, g, h] = std::array::from_fn(|_| client.exchange(&what));
            let made = tokio::join!(a, b, c, d, e, f, g, h);
            Ok([made.0, made.1, made.2, made.3, made.4, made.5, made.6, made.7].into())
        })
    }),
    case("pooled", "sixteen clients at once, five requests each: two workers with their own pools", |place, case| {
        let to = place.service(ECHO, ServicePort::HTTP)?;
        let mut what = Exchange::get(case);
        what.ask.think_ns = 1_000_000;
        at_once(&to, &vec![what; 16], 5)
    }),
    case("ipv6", "IPv6 the whole way", |place, case| {
        in_turn(&place.service(SIX, ServicePort::HTTP)?, &vec![Exchange::get(case); 3])
    }),
    case("ipv6-body", "the same with bodies, HTTP/1 and HTTP/2", |place, case| {
        let what = Exchange::post(case, Flow::of(4, 8 << 10));
        let mut made = in_turn(&place.service(SIX, ServicePort::HTTP)?, &[what])?;
        let to = place.service(SIX, ServicePort::HTTP2)?;
        made.extend(on_this_thread(async {
            let client = h2::client::Client::open(&to, Windows::default()).await?;
            Ok(vec![client.exchange(&h2::client::Exchange::get(case)).await])
        })?);
        Ok(made)
    }),
    case("tproxy", "a server whose sidecar intercepts by TPROXY", |place, case| {
        in_turn(&place.service(TPROXY, ServicePort::HTTP)?, &vec![Exchange::get(case); 3])
    }),
    case("tproxy-relay", "the same, asking another service while it serves", |place, case| {
        relayed(place, case, TPROXY, ECHO, &[HandOn::Same], false)
    }),
    case("tproxy-itself", "the same, asking itself", |place, case| {
        relayed(place, case, TPROXY, TPROXY, &[HandOn::Same], false)
    }),
    if_named(case(
        "reused",
        "whichever pod has the address that two workloads have, one after the other",
        |place, case| in_turn(&place.service(REUSED, ServicePort::HTTP)?, &vec![Exchange::get(case); 10]),
    )),
    if_named(case("reused-later", "the same, once the other one has it for good", |place, case| {
        in_turn(&place.service(REUSED, ServicePort::HTTP)?, &vec![Exchange::get(case); 10])
    })),
    if_named(case("spanning", "four requests at once that take their time: 1.5 s and 6 s", |place, case| {
        let lasting = |ms: u64| {
            let mut what = Exchange::get(case);
            what.ask.think_ns = ms * 1_000_000;
            what
        };
        at_once(&place.service(ECHO, ServicePort::HTTP)?, &[1_500, 1_500, 6_000, 6_000].map(lasting), 1)
    })),
];

/// The pod of an app by its address, under a host's name.
fn at_pod(place: &Place, app: &str, host: &str) -> io::Result<To> {
    let address = SocketAddr::from((place.pod(app)?.ip, ServicePort::HTTP.number));
    Ok(To { host: host.to_owned(), address })
}

/// The pod of an app by its address, and no name.
fn by_address(place: &Place, app: &str) -> io::Result<To> {
    let to = at_pod(place, app, "")?;
    Ok(To { host: to.address.to_string(), ..to })
}

fn fresh_id() -> String {
    uuid_v4(rand::rng().random())
}

fn in_turn(to: &To, all: &[Exchange]) -> io::Result<Vec<ExchangeRecord>> {
    let mut connection = Connection::open(to)?;
    Ok(all.iter().map(|what| connection.exchange(what).0).collect())
}

/// Each on a connection of its own, so many times.
fn at_once(to: &To, all: &[Exchange], times: usize) -> io::Result<Vec<ExchangeRecord>> {
    std::thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|what| scope.spawn(|| in_turn(to, &vec![what.clone(); times]))).collect();
        let mut made = Vec::new();
        for one in started {
            made.extend(one.join().map_err(|_| io::Error::other("a client panicked"))??);
        }
        Ok(made)
    })
}

/// A request to one service that asks another one while it serves.
fn calling(place: &Place, case: &str, callee: &str, ids: &[HandOn], together: bool) -> io::Result<Exchange> {
    let To { host, address } = place.service(callee, ServicePort::HTTP)?;
    let ask = Ask { case: case.to_owned(), response: Flow::of(1, 64), think_ns: 1_000_000, ..Ask::default() };
    let call = |id: &HandOn| Call { host: host.clone(), address, id: *id, ask: ask.clone() };
    let mut what = Exchange::get(case);
    (what.ask.calls, what.ask.together) = (ids.iter().map(call).collect(), together);
    Ok(what)
}

fn relayed(
    place: &Place,
    case: &str,
    through: &str,
    callee: &str,
    ids: &[HandOn],
    together: bool,
) -> io::Result<Vec<ExchangeRecord>> {
    let what = calling(place, case, callee, ids, together)?;
    in_turn(&place.service(through, ServicePort::HTTP)?, &vec![what; 2])
}
