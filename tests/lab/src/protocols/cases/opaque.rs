//! Bytes, and TLS by the application.

use std::io;

use super::{Case, KIB, Place};
use crate::protocols::ask::Flow;
use crate::protocols::http1::Duplex;
use crate::protocols::http1::client::{Connection, Exchange, dial};
use crate::protocols::tape::Taped;
use crate::protocols::{opaque, tls};
use crate::settings::Workload;
use crate::topology::ServicePort;
use crate::truth::{ExchangeRecord, Protocol};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "tcp-echo",
        workload: Workload::Tcp,
        status: None,
        about: "bytes that come back, four messages up to 64 KiB",
        only_if_named: false,
        round: |place, case| {
            Ok(vec![opaque::echo(&place.to(ServicePort::TCP_ECHO), case, &[100, 1_000, 10_000, 65_536])])
        },
    },
    Case {
        name: "tcp-greeting",
        workload: Workload::Tcp,
        status: None,
        about: "a server that speaks first",
        only_if_named: false,
        round: |place, case| Ok(vec![opaque::greeting(&place.to(ServicePort::TCP_GREETING), case)]),
    },
    Case {
        name: "tls-http1",
        workload: Workload::Tls,
        status: Some(200),
        about: "HTTP/1.1 over TLS by the application, with SSL_read and SSL_write",
        only_if_named: false,
        round: |place, case| over_tls(place, case, false),
    },
    Case {
        name: "tls-http1-ex",
        workload: Workload::Tls,
        status: Some(200),
        about: "the same with SSL_read_ex and SSL_write_ex",
        only_if_named: false,
        round: |place, case| over_tls(place, case, true),
    },
];

fn over_tls(place: &Place, case: &str, ex: bool) -> io::Result<Vec<ExchangeRecord>> {
    let to = place.to(ServicePort::TCP_TLS);
    let stream = dial(&to)?;
    let local = stream.local_addr()?;
    let stream = tls::Context::client()?.connect(stream, &place.host, ex)?;
    let wire = Taped::new(stream);
    let mut connection = Connection { wire, local, remote: to.address, protocol: Protocol::Tls, host: to.host };
    let mut all = vec![Exchange::get(case); 4];
    all.push(Exchange::post(case, Flow::of(4, 4 * KIB)));
    let records = all.iter().map(|what| connection.exchange(what).0).collect();
    Duplex::finish(connection.wire.stream());
    Ok(records)
}
