//! The cases: each a few exchanges of one kind, a bounded number of times.

use std::io;
use std::sync::Arc;

use super::ask::{Ask, Flow, Pause};
use super::http1::client::{Connection, Exchange as Exchange1, To};
use super::{h2, opaque, tls, websocket};
use crate::settings::Workload;
use crate::topology::{ServicePort, Topology};
use crate::truth::{ExchangeRecord, Protocol};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// How long the slow ones wait, in milliseconds.
const SLOW_MS: u64 = 60;

/// Where a case's client finds its server.
#[derive(Clone, Debug)]
pub struct Place {
    host: String,
    vip: std::net::Ipv4Addr,
}

impl Place {
    /// The service of the protocol workloads; none if the lab has none.
    pub fn of(topology: &Topology) -> Option<Self> {
        let service = topology.service(crate::topology::ECHO)?;
        Some(Self { host: service.name.to_owned(), vip: service.vip })
    }

    fn to(&self, port: ServicePort) -> To {
        To { host: format!("{}:{}", self.host, port.number), address: (self.vip, port.number).into() }
    }
}

/// One round of a case: exchanges that were made.
type Round = fn(&Place, &'static str) -> io::Result<Vec<ExchangeRecord>>;

/// A case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// The workload that the lab must run for it.
    pub workload: Workload,
    /// The status that each exchange must have.
    pub status: Option<u16>,
    /// What it does.
    pub about: &'static str,
    /// Does it once. Connections are made anew for each round.
    pub round: Round,
}

/// All cases, in the order in which they run.
pub const CASES: &[Case] = &[
    Case {
        name: "http1-get",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HTTP/1.1 keep-alive: five GETs on one connection",
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &vec![Exchange1::get(case); 5]),
    },
    Case {
        name: "http1-pipelined",
        workload: Workload::Bodies,
        status: Some(200),
        about: "five GETs written in one call, 2 ms of work each",
        round: pipelined,
    },
    Case {
        name: "http1-chunked",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a chunked upload (8 x 4 KiB) answered by a chunked download of the same size",
        round: |place, case| {
            let mut what = Exchange1 { chunked: true, ..Exchange1::post(case, Flow::of(8, 4 * KIB)) };
            what.ask = Ask { chunked: true, response: Flow::of(8, 4 * KIB), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-upload",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a body of 1 MiB, both ends as fast as they can",
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &[upload(case)]),
    },
    Case {
        name: "http1-download",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a response of 1 MiB, both ends as fast as they can",
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &[download(case)]),
    },
    Case {
        name: "http1-upload-slow-client",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB up; the client stops writing for 60 ms half-way",
        round: |place, case| {
            let mut what = upload(case);
            what.request.pause = Some(Pause::ms(MIB as u64 / 2, SLOW_MS));
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-upload-slow-server",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB up; the server stops reading for 60 ms half-way",
        round: |place, case| {
            let mut what = upload(case);
            what.ask.read_pause = Some(Pause::ms(MIB as u64 / 2, SLOW_MS));
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-download-slow-client",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB down; the client stops reading for 60 ms half-way",
        round: |place, case| {
            let mut what = download(case);
            what.read_pause = Some(Pause::ms(MIB as u64 / 2, SLOW_MS));
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-download-slow-server",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB down; the server stops writing for 60 ms half-way",
        round: |place, case| {
            let mut what = download(case);
            what.ask.response.pause = Some(Pause::ms(MIB as u64 / 2, SLOW_MS));
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-expect-continue",
        workload: Workload::Bodies,
        status: Some(200),
        about: "Expect: 100-continue, then 64 KiB",
        round: |place, case| {
            let what = Exchange1 { expect: true, ..Exchange1::post(case, Flow::of(1, 64 * KIB)) };
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-early-413",
        workload: Workload::Bodies,
        status: Some(413),
        about: "1 MiB announced; the server answers 413 after 64 KiB, the client stops at 512 KiB",
        round: |place, case| {
            let mut what = Exchange1 { stop_after: Some(512 * KIB as u64), ..upload(case) };
            what.ask = Ask { status: Some(413), early_after: Some(64 * KIB as u64), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-head",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HEAD, whose answer has a length and no body, and a GET behind it on the same connection",
        round: |place, case| {
            let head = Exchange1 { method: "HEAD", ..Exchange1::get(case) };
            one_after_the_other(place, ServicePort::HTTP, &[head, Exchange1::get(case)])
        },
    },
    Case {
        name: "http1-no-content",
        workload: Workload::Bodies,
        status: Some(204),
        about: "204 twice on one connection",
        round: |place, case| {
            let mut what = Exchange1::get(case);
            what.ask.status = Some(204);
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-client-gives-up",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB down, slowly; the client closes after 128 KiB",
        round: |place, case| {
            let mut what = Exchange1 { give_up_after: Some(128 * KIB as u64), ..download(case) };
            what.ask.response = what.ask.response.gap_ms(2);
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http10-refused",
        workload: Workload::Bodies,
        status: Some(426),
        about: "HTTP/1.0, which Istio's sidecar answers itself with 426",
        round: |place, case| {
            one_after_the_other(place, ServicePort::HTTP, &[Exchange1 { version: "1.0", ..Exchange1::get(case) }])
        },
    },
    Case {
        name: "http10-client",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HTTP/1.0 where the mesh allows it",
        round: |place, case| {
            one_after_the_other(place, ServicePort::HTTP10, &[Exchange1 { version: "1.0", ..Exchange1::get(case) }])
        },
    },
    Case {
        name: "http10-server",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a server that answers in HTTP/1.0 and ends its body by closing",
        round: |place, case| {
            let mut what = Exchange1::get(case);
            what.ask = Ask { http10: true, response: Flow::of(4, 4 * KIB), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "websocket",
        workload: Workload::Websocket,
        status: Some(101),
        about: "an upgrade, and eight messages of 1 byte to 100 KB that come back",
        round: |place, case| {
            let mut connection = Connection::open(&place.to(ServicePort::HTTP))?;
            let what = websocket::upgrade(case);
            let mut record = connection.begin(&what);
            let sizes = [1, 10, 125, 126, 1_000, 10_000, 65_536, 100_000];
            let spoken = websocket::converse(&mut connection, &what, &mut record, &sizes);
            record.error = spoken.err().map(|error| error.to_string());
            Ok(vec![record])
        },
    },
    Case {
        name: "http2-get",
        workload: Workload::Http2,
        status: Some(200),
        about: "HTTP/2: five GETs, one after the other on one connection",
        round: |place, case| {
            h2_in_turn(place, ServicePort::HTTP2, h2::Windows::default(), &vec![h2::client::Exchange::get(case); 5])
        },
    },
    Case {
        name: "http2-concurrent",
        workload: Workload::Http2,
        status: Some(200),
        about: "sixteen GETs at once on one connection, 0 to 15 ms of work each",
        round: |place, case| {
            let what = |n: u64| {
                let mut what = h2::client::Exchange::get(case);
                what.ask.think_ns = n * 7 % 16 * 1_000_000;
                what
            };
            h2_at_once(place, ServicePort::HTTP2, h2::Windows::default(), (0..16).map(what).collect())
        },
    },
    Case {
        name: "http2-interleaved",
        workload: Workload::Http2,
        status: Some(200),
        about: "eight downloads of 256 KiB and four uploads of 256 KiB at once on one connection",
        round: |place, case| {
            let mut down = h2::client::Exchange::get(case);
            down.ask.response = Flow::of(16, 16 * KIB);
            let up = h2::client::Exchange::post(case, Flow::of(16, 16 * KIB));
            let all = (0..12).map(|n| if n % 3 == 0 { up.clone() } else { down.clone() }).collect();
            h2_at_once(place, ServicePort::HTTP2, h2::Windows::default(), all)
        },
    },
    Case {
        name: "http2-continuation",
        workload: Workload::Http2,
        status: Some(200),
        about: "heads of 24 KB in both directions: HEADERS and CONTINUATION",
        round: |place, case| {
            let mut what = h2::client::Exchange { large_head: 24_000, ..h2::client::Exchange::get(case) };
            what.ask.large_head = 24_000;
            h2_in_turn(place, ServicePort::HTTP2, h2::Windows::default(), &[what.clone(), what])
        },
    },
    Case {
        name: "http2-upload-stall",
        workload: Workload::Http2,
        status: Some(200),
        about: "2 MiB up into a server window of 16 KiB; the server stops reading for 60 ms at 1 MiB",
        round: |place, case| {
            let mut what = h2::client::Exchange::post(case, Flow::of(128, 16 * KIB));
            what.ask.read_pause = Some(Pause::ms(MIB as u64, SLOW_MS));
            h2_in_turn(place, ServicePort::HTTP2_NARROW, h2::Windows::default(), &[what])
        },
    },
    Case {
        name: "http2-download-stall",
        workload: Workload::Http2,
        status: Some(200),
        about: "256 KiB down into a client window of 16 KiB; the client stops reading for 60 ms at 128 KiB",
        round: |place, case| {
            let mut what = h2::client::Exchange::get(case);
            what.ask.response = Flow::of(16, 16 * KIB);
            what.read_pause = Some(Pause::ms(128 * KIB as u64, SLOW_MS));
            h2_in_turn(place, ServicePort::HTTP2, h2::Windows::NARROW, &[what])
        },
    },
    Case {
        name: "http2-reset",
        workload: Workload::Http2,
        status: Some(200),
        about: "a download that the client resets half-way, and a GET behind it on the same connection",
        round: |place, case| {
            let mut what =
                h2::client::Exchange { give_up_after: Some(64 * KIB as u64), ..h2::client::Exchange::get(case) };
            what.ask.response = Flow::of(16, 16 * KIB).gap_ms(2);
            h2_in_turn(place, ServicePort::HTTP2, h2::Windows::default(), &[what, h2::client::Exchange::get(case)])
        },
    },
    Case {
        name: "grpc-unary",
        workload: Workload::Grpc,
        status: Some(200),
        about: "gRPC: five unary calls, one after the other",
        round: |place, case| {
            let call = h2::client::Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
            h2_in_turn(place, ServicePort::GRPC, h2::Windows::default(), &vec![call; 5])
        },
    },
    Case {
        name: "grpc-concurrent",
        workload: Workload::Grpc,
        status: Some(200),
        about: "thirty-two unary calls at once on one connection, 0 to 15 ms of work each",
        round: |place, case| {
            let call = |n: u64| {
                let mut call = h2::client::Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
                call.ask.think_ns = n * 7 % 16 * 1_000_000;
                call
            };
            h2_at_once(place, ServicePort::GRPC, h2::Windows::default(), (0..32).map(call).collect())
        },
    },
    Case {
        name: "grpc-server-stream",
        workload: Workload::Grpc,
        status: Some(200),
        about: "one message up, eight down with 5 ms between",
        round: |place, case| {
            let call = h2::client::Exchange::call(case, Flow::of(1, 100), Flow::of(8, 1000).gap_ms(5));
            h2_in_turn(place, ServicePort::GRPC, h2::Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-client-stream",
        workload: Workload::Grpc,
        status: Some(200),
        about: "eight messages up with 5 ms between, one down",
        round: |place, case| {
            let call = h2::client::Exchange::call(case, Flow::of(8, 1000).gap_ms(5), Flow::of(1, 100));
            h2_in_turn(place, ServicePort::GRPC, h2::Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-bidi",
        workload: Workload::Grpc,
        status: Some(200),
        about: "eight messages up, each answered by one after 2 ms",
        round: |place, case| {
            let mut call = h2::client::Exchange::call(case, Flow::of(8, 1000), Flow::of(8, 1000));
            call.ask = Ask { ping_pong: true, think_ns: 2_000_000, ..call.ask };
            h2_in_turn(place, ServicePort::GRPC, h2::Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-error",
        workload: Workload::Grpc,
        status: Some(200),
        about: "grpc-status 5 in trailers alone, and 13 behind two messages",
        round: |place, case| {
            let mut alone = h2::client::Exchange::call(case, Flow::of(1, 100), Flow::default());
            alone.ask.grpc_status = 5;
            let mut behind = h2::client::Exchange::call(case, Flow::of(1, 100), Flow::of(2, 1000));
            behind.ask.grpc_status = 13;
            h2_in_turn(place, ServicePort::GRPC, h2::Windows::default(), &[alone, behind])
        },
    },
    Case {
        name: "tcp-echo",
        workload: Workload::Tcp,
        status: None,
        about: "bytes that come back, four messages up to 64 KiB",
        round: |place, case| {
            Ok(vec![opaque::echo(&place.to(ServicePort::TCP_ECHO), case, &[100, 1_000, 10_000, 65_536])])
        },
    },
    Case {
        name: "tcp-greeting",
        workload: Workload::Tcp,
        status: None,
        about: "a server that speaks first",
        round: |place, case| Ok(vec![opaque::greeting(&place.to(ServicePort::TCP_GREETING), case)]),
    },
    Case {
        name: "tls-http1",
        workload: Workload::Tls,
        status: Some(200),
        about: "HTTP/1.1 over TLS by the application, with SSL_read and SSL_write",
        round: |place, case| over_tls(place, case, false),
    },
    Case {
        name: "tls-http1-ex",
        workload: Workload::Tls,
        status: Some(200),
        about: "the same with SSL_read_ex and SSL_write_ex",
        round: |place, case| over_tls(place, case, true),
    },
];

fn upload(case: &str) -> Exchange1 {
    Exchange1::post(case, Flow::of(16, 64 * KIB))
}

fn download(case: &str) -> Exchange1 {
    let mut what = Exchange1::get(case);
    what.ask.response = Flow::of(16, 64 * KIB);
    what
}

fn one_after_the_other(place: &Place, port: ServicePort, all: &[Exchange1]) -> io::Result<Vec<ExchangeRecord>> {
    let mut connection = Connection::open(&place.to(port))?;
    let mut records = Vec::new();
    for what in all {
        let (record, more) = connection.exchange(what);
        records.push(record);
        if !more {
            break;
        }
    }
    Ok(records)
}

fn pipelined(place: &Place, case: &'static str) -> io::Result<Vec<ExchangeRecord>> {
    let mut connection = Connection::open(&place.to(ServicePort::HTTP))?;
    let mut what = Exchange1::get(case);
    what.ask.think_ns = 2_000_000;
    let asked = connection.ask_at_once(&vec![what; 5]);
    Ok(asked.into_iter().map(|one| connection.answer(one).0).collect())
}

fn over_tls(place: &Place, case: &str, ex: bool) -> io::Result<Vec<ExchangeRecord>> {
    let to = place.to(ServicePort::TCP_TLS);
    let stream = super::http1::client::dial(&to)?;
    let local = stream.local_addr()?;
    let stream = tls::Context::client()?.connect(stream, &place.host, ex)?;
    let wire = super::tape::Taped::new(stream);
    let mut connection = Connection { wire, local, remote: to.address, protocol: Protocol::Tls, host: to.host };
    let mut all = vec![Exchange1::get(case); 4];
    all.push(Exchange1::post(case, Flow::of(4, 4 * KIB)));
    let records = all.iter().map(|what| connection.exchange(what).0).collect();
    super::http1::Duplex::finish(connection.wire.stream());
    Ok(records)
}

/// A runtime of this thread alone: between a call's return and the clock lies no switch to another thread.
fn on_this_thread<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn h2_in_turn(
    place: &Place,
    port: ServicePort,
    windows: h2::Windows,
    all: &[h2::client::Exchange],
) -> io::Result<Vec<ExchangeRecord>> {
    on_this_thread(async {
        let client = h2::client::Client::open(&place.to(port), windows).await?;
        let mut records = Vec::new();
        for what in all {
            records.push(client.exchange(what).await);
        }
        Ok(records)
    })
}

fn h2_at_once(
    place: &Place,
    port: ServicePort,
    windows: h2::Windows,
    all: Vec<h2::client::Exchange>,
) -> io::Result<Vec<ExchangeRecord>> {
    on_this_thread(async {
        let client = Arc::new(h2::client::Client::open(&place.to(port), windows).await?);
        let exchanges = all.into_iter().map(|what| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.exchange(&what).await })
        });
        let mut records = Vec::new();
        for exchange in exchanges.collect::<Vec<_>>() {
            records.push(exchange.await.map_err(io::Error::other)?);
        }
        Ok(records)
    })
}
