//! HTTP/1 and WebSocket.

use std::io;

use super::{Case, KIB, MIB, Place, SLOW_MS};
use crate::protocols::ask::{Ask, Flow, Pause};
use crate::protocols::http1::client::{Connection, Exchange};
use crate::protocols::websocket;
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::ExchangeRecord;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "http1-get",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HTTP/1.1 keep-alive: five GETs on one connection",
        only_if_named: false,
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &vec![Exchange::get(case); 5]),
    },
    Case {
        name: "http1-pipelined",
        workload: Workload::Bodies,
        status: Some(200),
        about: "five GETs written in one call, 2 ms of work each",
        only_if_named: false,
        round: pipelined,
    },
    Case {
        name: "http1-chunked",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a chunked upload (8 x 4 KiB) answered by a chunked download of the same size",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange { chunked: true, ..Exchange::post(case, Flow::of(8, 4 * KIB)) };
            what.ask = Ask { chunked: true, response: Flow::of(8, 4 * KIB), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-upload",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a body of 1 MiB, both ends as fast as they can",
        only_if_named: false,
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &[upload(case)]),
    },
    Case {
        name: "http1-download",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a response of 1 MiB, both ends as fast as they can",
        only_if_named: false,
        round: |place, case| one_after_the_other(place, ServicePort::HTTP, &[download(case)]),
    },
    Case {
        name: "http1-upload-slow-client",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB up; the client stops writing for 60 ms half-way",
        only_if_named: false,
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
        only_if_named: false,
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
        only_if_named: false,
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
        only_if_named: false,
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
        only_if_named: false,
        round: |place, case| {
            let what = Exchange { expect: true, ..Exchange::post(case, Flow::of(1, 64 * KIB)) };
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-early-413",
        workload: Workload::Bodies,
        status: Some(413),
        about: "1 MiB announced; the server answers 413 after 64 KiB, the client stops at 512 KiB",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange { stop_after: Some(512 * KIB as u64), ..upload(case) };
            what.ask = Ask { status: Some(413), early_after: Some(64 * KIB as u64), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http1-head",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HEAD, whose answer has a length and no body, and a GET behind it on the same connection",
        only_if_named: false,
        round: |place, case| {
            let head = Exchange { method: "HEAD", ..Exchange::get(case) };
            one_after_the_other(place, ServicePort::HTTP, &[head, Exchange::get(case)])
        },
    },
    Case {
        name: "http1-no-content",
        workload: Workload::Bodies,
        status: Some(204),
        about: "204 twice on one connection",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange::get(case);
            what.ask.status = Some(204);
            one_after_the_other(place, ServicePort::HTTP, &[what.clone(), what])
        },
    },
    Case {
        name: "http1-client-gives-up",
        workload: Workload::Bodies,
        status: Some(200),
        about: "1 MiB down, slowly; the client closes after 128 KiB",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange { give_up_after: Some(128 * KIB as u64), ..download(case) };
            what.ask.response = what.ask.response.gap_ms(2);
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "http10-refused",
        workload: Workload::Bodies,
        status: Some(426),
        about: "HTTP/1.0, which Istio's sidecar answers itself with 426",
        only_if_named: false,
        round: |place, case| {
            one_after_the_other(place, ServicePort::HTTP, &[Exchange { version: "1.0", ..Exchange::get(case) }])
        },
    },
    Case {
        name: "http10-client",
        workload: Workload::Bodies,
        status: Some(200),
        about: "HTTP/1.0 where the mesh allows it",
        only_if_named: false,
        round: |place, case| {
            one_after_the_other(place, ServicePort::HTTP10, &[Exchange { version: "1.0", ..Exchange::get(case) }])
        },
    },
    Case {
        name: "http10-server",
        workload: Workload::Bodies,
        status: Some(200),
        about: "a server that answers in HTTP/1.0 and ends its body by closing",
        only_if_named: false,
        round: |place, case| {
            let mut what = Exchange::get(case);
            what.ask = Ask { http10: true, response: Flow::of(4, 4 * KIB), ..what.ask };
            one_after_the_other(place, ServicePort::HTTP, &[what])
        },
    },
    Case {
        name: "websocket",
        workload: Workload::Websocket,
        status: Some(101),
        about: "an upgrade, and eight messages of 1 byte to 100 KB that come back",
        only_if_named: false,
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
];

fn upload(case: &str) -> Exchange {
    Exchange::post(case, Flow::of(16, 64 * KIB))
}

fn download(case: &str) -> Exchange {
    let mut what = Exchange::get(case);
    what.ask.response = Flow::of(16, 64 * KIB);
    what
}

fn one_after_the_other(place: &Place, port: ServicePort, all: &[Exchange]) -> io::Result<Vec<ExchangeRecord>> {
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
    let mut what = Exchange::get(case);
    what.ask.think_ns = 2_000_000;
    let asked = connection.ask_at_once(&vec![what; 5]);
    Ok(asked.into_iter().map(|one| connection.answer(one).0).collect())
}
