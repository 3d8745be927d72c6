//! HTTP/2 and gRPC.

use std::io;
use std::sync::Arc;

use super::{Case, KIB, MIB, Place, SLOW_MS};
use crate::protocols::ask::{Ask, Flow, Pause};
use crate::protocols::h2::Windows;
use crate::protocols::h2::client::{Client, Exchange};
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::ExchangeRecord;

/// SETTINGS, as every client begins, and then: DATA of 16 MiB on stream 1; HEADERS that end in the middle of an integer.
const GARBAGE: [&[u8]; 2] = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\xff\xff\xff\0\0\0\0\0\x01lab lab lab lab",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x05\0\0\0\x01\xff\xff\xff\xff\xff",
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "http2-get",
        workload: Workload::Http2,
        status: Some(200),
        about: "HTTP/2: five GETs, one after the other on one connection",
        only_if_named: false,
        round: |place, case| in_turn(place, ServicePort::HTTP2, Windows::default(), &vec![Exchange::get(case); 5]),
    },
    Case {
        name: "http2-concurrent",
        workload: Workload::Http2,
        status: Some(200),
        about: "sixteen GETs at once on one connection, 0 to 15 ms of work each",
        only_if_named: false,
        round: |place, case| {
            let what = |n: u64| {
                let mut what = Exchange::get(case);
                what.ask.think_ns = n * 7 % 16 * 1_000_000;
                what
            };
            at_once(place, ServicePort::HTTP2, Windows::default(), vec![(0..16).map(what).collect()])
        },
    },
    Case {
        name: "http2-interleaved",
        workload: Workload::Http2,
        status: Some(200),
        about: "eight downloads of 256 KiB and four uploads of 256 KiB at once on one connection",
        only_if_named: false,
        round: |place, case| {
            let mut down = Exchange::get(case);
            down.ask.response = Flow::of(16, 16 * KIB);
            let up = Exchange::post(case, Flow::of(16, 16 * KIB));
            let all = (0..12).map(|n| if n % 3 == 0 { up.clone() } else { down.clone() }).collect();
            at_once(place, ServicePort::HTTP2, Windows::default(), vec![all])
        },
    },
    Case {
        name: "http2-continuation",
        workload: Workload::Http2,
        status: Some(200),
        about: "heads of 24 KB in both directions: HEADERS and CONTINUATION",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange { large_head: 24_000, ..Exchange::get(case) };
            what.ask.large_head = 24_000;
            in_turn(place, ServicePort::HTTP2, Windows::default(), &[what.clone(), what])
        },
    },
    Case {
        name: "http2-upload-stall",
        workload: Workload::Http2,
        status: Some(200),
        about: "2 MiB up into a server window of 16 KiB; the server stops reading for 60 ms at 1 MiB",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange::post(case, Flow::of(128, 16 * KIB));
            what.ask.read_pause = Some(Pause::ms(MIB as u64, SLOW_MS));
            in_turn(place, ServicePort::HTTP2_NARROW, Windows::default(), &[what])
        },
    },
    Case {
        name: "http2-download-stall",
        workload: Workload::Http2,
        status: Some(200),
        about: "256 KiB down into a client window of 16 KiB; the client stops reading for 60 ms at 128 KiB",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange::get(case);
            what.ask.response = Flow::of(16, 16 * KIB);
            what.read_pause = Some(Pause::ms(128 * KIB as u64, SLOW_MS));
            in_turn(place, ServicePort::HTTP2, Windows::NARROW, &[what])
        },
    },
    Case {
        name: "http2-reset",
        workload: Workload::Http2,
        status: Some(200),
        about: "a download that the client resets half-way, and a GET behind it on the same connection",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange { give_up_after: Some(64 * KIB as u64), ..Exchange::get(case) };
            what.ask.response = Flow::of(16, 16 * KIB).gap_ms(2);
            in_turn(place, ServicePort::HTTP2, Windows::default(), &[what, Exchange::get(case)])
        },
    },
    Case {
        name: "grpc-unary",
        workload: Workload::Grpc,
        status: Some(200),
        about: "gRPC: five unary calls, one after the other",
        only_if_named: false,
        round: |place, case| {
            let call = Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
            in_turn(place, ServicePort::GRPC, Windows::default(), &vec![call; 5])
        },
    },
    Case {
        name: "grpc-concurrent",
        workload: Workload::Grpc,
        status: Some(200),
        about: "thirty-two unary calls at once on one connection, 0 to 15 ms of work each",
        only_if_named: false,
        round: |place, case| {
            let call = |n: u64| {
                let mut call = Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
                call.ask.think_ns = n * 7 % 16 * 1_000_000;
                call
            };
            at_once(place, ServicePort::GRPC, Windows::default(), vec![(0..32).map(call).collect()])
        },
    },
    Case {
        name: "grpc-server-stream",
        workload: Workload::Grpc,
        status: Some(200),
        about: "one message up, eight down with 5 ms between",
        only_if_named: false,
        round: |place, case| {
            let call = Exchange::call(case, Flow::of(1, 100), Flow::of(8, 1000).gap_ms(5));
            in_turn(place, ServicePort::GRPC, Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-client-stream",
        workload: Workload::Grpc,
        status: Some(200),
        about: "eight messages up with 5 ms between, one down",
        only_if_named: false,
        round: |place, case| {
            let call = Exchange::call(case, Flow::of(8, 1000).gap_ms(5), Flow::of(1, 100));
            in_turn(place, ServicePort::GRPC, Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-bidi",
        workload: Workload::Grpc,
        status: Some(200),
        about: "eight messages up, each answered by one after 2 ms",
        only_if_named: false,
        round: |place, case| {
            let mut call = Exchange::call(case, Flow::of(8, 1000), Flow::of(8, 1000));
            call.ask = Ask { ping_pong: true, think_ns: 2_000_000, ..call.ask };
            in_turn(place, ServicePort::GRPC, Windows::default(), &[call])
        },
    },
    Case {
        name: "grpc-error",
        workload: Workload::Grpc,
        status: Some(200),
        about: "grpc-status 5 in trailers alone, and 13 behind two messages",
        only_if_named: false,
        round: |place, case| {
            let mut alone = Exchange::call(case, Flow::of(1, 100), Flow::default());
            alone.ask.grpc_status = 5;
            let mut behind = Exchange::call(case, Flow::of(1, 100), Flow::of(2, 1000));
            behind.ask.grpc_status = 13;
            in_turn(place, ServicePort::GRPC, Windows::default(), &[alone, behind])
        },
    },
    Case {
        name: "grpc-many-connections",
        workload: Workload::Grpc,
        status: Some(200),
        about: "eight connections with four unary calls each, all at once: between the sidecars they share connections",
        only_if_named: false,
        round: |place, case| {
            let call = |n: u64| {
                let mut call = Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
                call.ask.think_ns = n * 7 % 16 * 1_000_000;
                call
            };
            let connections = (0..8).map(|c| (0..4).map(|n| call(4 * c + n)).collect()).collect();
            at_once(place, ServicePort::GRPC, Windows::default(), connections)
        },
    },
    Case {
        name: "http2-garbage",
        workload: Workload::Http2,
        status: None,
        about: "a valid preface, and then no HTTP/2: a frame longer than allowed, and a head that is no HPACK",
        only_if_named: false,
        round: |place, case| {
            let to = place.to(ServicePort::HTTP2);
            Ok(GARBAGE.iter().map(|bytes| crate::protocols::opaque::garbage(&to, case, bytes)).collect())
        },
    },
];

/// A runtime of this thread alone: between a call's return and the clock lies no switch to another thread.
pub(super) fn on_this_thread<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

pub(super) fn in_turn(
    place: &Place,
    port: ServicePort,
    windows: Windows,
    all: &[Exchange],
) -> io::Result<Vec<ExchangeRecord>> {
    on_this_thread(async {
        let client = Client::open(&place.to(port), windows).await?;
        let mut records = Vec::new();
        for what in all {
            records.push(client.exchange(what).await);
        }
        Ok(records)
    })
}

/// Each inner list on a connection of its own, everything at once.
pub(super) fn at_once(
    place: &Place,
    port: ServicePort,
    windows: Windows,
    connections: Vec<Vec<Exchange>>,
) -> io::Result<Vec<ExchangeRecord>> {
    on_this_thread(async {
        let mut under_way = Vec::new();
        for exchanges in connections {
            let client = Arc::new(Client::open(&place.to(port), windows).await?);
            under_way.extend(exchanges.into_iter().map(|what| {
                let client = Arc::clone(&client);
                tokio::spawn(async move { client.exchange(&what).await })
            }));
        }
        let mut records = Vec::new();
        for exchange in under_way {
            records.push(exchange.await.map_err(io::Error::other)?);
        }
        Ok(records)
    })
}
