//! The cases: each a few exchanges of one kind, a bounded number of times.

mod http1;
mod http2;
mod long_lived;
mod opaque;
mod scenarios;
mod trouble;
mod trouble_http2;

use std::io;

use super::http1::client::To;
use crate::netns;
use crate::settings::{LabName, Settings, Workload};
use crate::topology::{ECHO, Pod, ServicePort, Topology};
use crate::truth::ExchangeRecord;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// How long the slow ones wait, in milliseconds.
const SLOW_MS: u64 = 60;

/// Where a case's client finds its server.
#[derive(Clone, Debug)]
pub struct Place {
    host: String,
    vip: std::net::IpAddr,
    lab: LabName,
    topology: Topology,
}

impl Place {
    /// The service of the protocol workloads; none if the lab has none.
    pub fn of(settings: &Settings) -> Option<Self> {
        let topology = Topology::of(settings);
        let service = topology.service(ECHO)?;
        Some(Self { host: service.name.to_owned(), vip: service.address()?, lab: settings.name.clone(), topology })
    }

    /// Another service.
    fn service(&self, name: &str, port: ServicePort) -> io::Result<To> {
        let service = self.topology.service(name);
        let address = service.and_then(|service| service.address()).ok_or_else(|| missing("service", name))?;
        Ok(To { host: format!("{name}:{}", port.number), address: (address, port.number).into() })
    }

    /// The pod of an app.
    fn pod(&self, app: &str) -> io::Result<&Pod> {
        self.topology.pods.iter().find(|pod| pod.app == app).ok_or_else(|| missing("pod", app))
    }

    /// Does a round from the pod of an app instead of the load generator's.
    fn from(
        &self,
        app: &str,
        round: impl FnOnce() -> io::Result<Vec<ExchangeRecord>> + Send,
    ) -> io::Result<Vec<ExchangeRecord>> {
        let workload = &self.pod(app)?.workload;
        let made = netns::within(&self.lab.namespace(workload), round).map_err(io::Error::other)??;
        Ok(made.into_iter().map(|record| ExchangeRecord { pod: workload.clone(), ..record }).collect())
    }

    fn to(&self, port: ServicePort) -> To {
        To { host: format!("{}:{}", self.host, port.number), address: (self.vip, port.number).into() }
    }
}

fn missing(what: &str, name: &str) -> io::Error {
    io::Error::other(format!("the lab has no {what} `{name}`"))
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
    let plain = http1::CASES.iter().chain(http2::CASES).chain(opaque::CASES).chain(long_lived::CASES);
    plain.chain(scenarios::CASES).chain(trouble::CASES).chain(trouble_http2::CASES)
}
