//! The server that sidecars ask before they let a request on (`ext_authz`), and that takes its time to say yes.
//!
//! This is how a delay of known length gets into a sidecar. Envoy's own `fault` filter counts in whole milliseconds and
//! overshoots; this one waits on a high-resolution timer and logs how long it really was. The outbound listener asks
//! under `/out`, the inbound one under `/in`.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use crate::app::accept_forever;
use crate::clock::{MonotonicNs, duration_ns, sleep_until, tighten_timers};
use crate::delay::{Delays, Site};
use crate::hop::{DELAY, NONCE, REQUEST_ID};
use crate::http::{MessageReader, render};
use crate::logbook::Logbook;
use crate::truth::{AuthzRecord, Record, Side};

/// Path prefix of the outbound listener's questions.
pub const OUTBOUND_PREFIX: &str = "/out";
/// Path prefix of the inbound listener's questions.
pub const INBOUND_PREFIX: &str = "/in";

/// The waiting server of one pod.
#[derive(Debug)]
pub struct Authz {
    /// The pod's workload.
    pub workload: String,
    /// Its service.
    pub service: String,
    /// Where waits are written down.
    pub log: Logbook,
}

impl Authz {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// When accepting fails for good.
    pub fn serve(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        tighten_timers();
        accept_forever(listener, self, |authz, stream, peer| authz.connection(stream, peer))
    }

    fn connection(&self, stream: TcpStream, _peer: SocketAddr) -> io::Result<()> {
        let mut reader = MessageReader::new(stream);
        let answer = render("HTTP/1.1 200 OK", &[], 0);
        while let Ok(asked) = reader.request() {
            let headers = &asked.head.headers;
            let side = if asked.head.path.starts_with(OUTBOUND_PREFIX) { Side::Outbound } else { Side::Inbound };
            let site = match side {
                Side::Outbound => Site::SidecarOut,
                Side::Inbound => Site::SidecarIn,
            };
            let delays: Delays = headers.get(DELAY).and_then(|text| text.parse().ok()).unwrap_or_default();
            let wait = delays.at(&self.workload, &self.service, site).unwrap_or_default();
            if !wait.is_zero() {
                sleep_until(asked.end.plus(wait));
            }
            let end = MonotonicNs::now();
            reader.stream().write_all(&answer)?;
            self.log.append(&Record::Authz(AuthzRecord {
                pod: self.workload.clone(),
                side,
                nonce: headers.get(NONCE).and_then(|text| text.parse().ok()),
                request_id: headers.get(REQUEST_ID).map(str::to_owned),
                requested_ns: duration_ns(wait),
                actual_ns: duration_ns(end.since(asked.end)),
                start_ns: asked.end,
                end_ns: end,
            }));
        }
        Ok(())
    }
}
