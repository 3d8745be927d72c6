//! Connections that live on while recordings begin and end.

use std::io;
use std::time::Duration;

use super::http2::on_this_thread;
use super::{Case, Place};
use crate::protocols::ask::Flow;
use crate::protocols::h2::Windows;
use crate::protocols::h2::client::{Client, Exchange};
use crate::protocols::http1;
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::ExchangeRecord;

/// Exchanges on each connection, and what lies between two of them.
const EXCHANGES: usize = 250;
const EVERY: Duration = Duration::from_millis(20);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "http1-long-lived",
        workload: Workload::Bodies,
        status: Some(200),
        about: "one connection for five seconds, a GET every 20 ms",
        only_if_named: true,
        round: |place, case| {
            let mut connection = http1::client::Connection::open(&place.to(ServicePort::HTTP))?;
            let what = http1::client::Exchange::get(case);
            let one = |_| {
                std::thread::sleep(EVERY);
                connection.exchange(&what).0
            };
            Ok((0..EXCHANGES).map(one).collect())
        },
    },
    Case {
        name: "http2-long-lived",
        workload: Workload::Http2,
        status: Some(200),
        about: "one connection for five seconds, a GET every 20 ms",
        only_if_named: true,
        round: |place, case| in_turn(place, ServicePort::HTTP2, &Exchange::get(case)),
    },
    Case {
        name: "grpc-long-lived",
        workload: Workload::Grpc,
        status: Some(200),
        about: "one connection for five seconds, a unary call every 20 ms",
        only_if_named: true,
        round: |place, case| {
            let call = Exchange::call(case, Flow::of(1, 100), Flow::of(1, 200));
            in_turn(place, ServicePort::GRPC, &call)
        },
    },
];

fn in_turn(place: &Place, port: ServicePort, what: &Exchange) -> io::Result<Vec<ExchangeRecord>> {
    on_this_thread(async {
        let client = Client::open(&place.to(port), Windows::default()).await?;
        let mut records = Vec::new();
        for _ in 0..EXCHANGES {
            tokio::time::sleep(EVERY).await;
            records.push(client.exchange(what).await);
        }
        Ok(records)
    })
}
