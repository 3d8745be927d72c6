//! The cases: each a few exchanges of one kind, a bounded number of times.

mod http1;
mod http2;
mod long_lived;
mod opaque;

use std::io;

use super::http1::client::To;
use crate::settings::Workload;
use crate::topology::{ServicePort, Topology};
use crate::truth::ExchangeRecord;

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
    /// Whether it runs only if it is named.
    pub only_if_named: bool,
    /// Does it once. Connections are made anew for each round.
    pub round: Round,
}

/// All cases, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Case> {
    http1::CASES.iter().chain(http2::CASES).chain(opaque::CASES).chain(long_lived::CASES)
}
