//! The application of the protocol workloads: one listener per port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::http1::server::{Ends, connection};
use super::{h2, opaque, tls};
use crate::app::accept_forever;
use crate::clock::tighten_timers;
use crate::logbook::Logbook;
use crate::topology::{PortProtocol, ServicePort};
use crate::truth::{ExchangeRecord, Protocol, Record};

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// The workload.
    pub workload: String,
    /// Its log.
    pub log: Logbook,
}

impl Shared {
    /// Writes an exchange down.
    pub fn log(&self, record: ExchangeRecord) {
        self.log.append(&Record::Exchange(Box::new(record)));
    }
}

struct TlsServer {
    shared: Arc<Shared>,
    context: tls::Context,
    accepted: AtomicUsize,
}

/// The listeners, bound before root is given away.
#[derive(Debug)]
pub struct Listening {
    sockets: Vec<(ServicePort, TcpListener)>,
    tls: Option<tls::Context>,
}

impl Listening {
    /// Binds the ports, and takes the certificate if one of them needs it.
    ///
    /// # Errors
    /// When a port is taken, or TLS is needed and does not work.
    pub fn bind(ports: &[ServicePort], dual_stack: bool, certificates: &Path) -> io::Result<Self> {
        // Linux gives sockets of IPv6 the connections of both families, unless told otherwise (net.ipv6.bindv6only).
        let any: IpAddr = if dual_stack { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let bind = |port: &ServicePort| Ok((*port, TcpListener::bind((any, port.number))?));
        let sockets = ports.iter().map(bind).collect::<io::Result<_>>()?;
        let tls = ports.contains(&ServicePort::TCP_TLS).then(|| tls::Context::server(certificates)).transpose()?;
        Ok(Self { sockets, tls })
    }

    /// Serves until one of the listeners fails.
    ///
    /// # Errors
    /// The listener's.
    pub fn serve(mut self, shared: &Arc<Shared>) -> io::Result<()> {
        tighten_timers();
        let (failed, failure) = std::sync::mpsc::channel();
        for (port, listener) in self.sockets {
            let shared = Arc::clone(shared);
            let tls = (port == ServicePort::TCP_TLS).then(|| self.tls.take()).flatten();
            let failed = failed.clone();
            std::thread::Builder::new().name(port.name.to_owned()).spawn(move || {
                let ended = serve_port(port, listener, shared, tls);
                // The receiver waits for the first failure only.
                let _ = failed.send(ended);
            })?;
        }
        drop(failed);
        failure.recv().unwrap_or(Ok(()))
    }
}

fn serve_port(
    port: ServicePort,
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<tls::Context>,
) -> io::Result<()> {
    match port {
        ServicePort::HTTP2_NARROW => h2::server::serve(listener, shared, h2::Windows::NARROW),
        port if port.protocol == PortProtocol::Http2 => h2::server::serve(listener, shared, h2::Windows::default()),
        ServicePort::TCP_ECHO => accept_forever(&listener, &shared, opaque::serve_echo),
        ServicePort::TCP_GREETING => accept_forever(&listener, &shared, opaque::serve_greeting),
        ServicePort::TCP_TLS => match tls {
            Some(context) => {
                let server = Arc::new(TlsServer { shared, context, accepted: AtomicUsize::new(0) });
                accept_forever(&listener, &server, serve_tls)
            }
            None => Err(io::Error::other("the port for TLS has no certificate")),
        },
        _ => accept_forever(&listener, &shared, serve_http1),
    }
}

fn serve_http1(shared: &Shared, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let local = stream.local_addr()?;
    connection(shared, stream, Ends { local, peer, protocol: Protocol::Http1 })
}

/// Every second connection uses the `_ex` functions.
fn serve_tls(server: &TlsServer, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let local = stream.local_addr()?;
    let ex = server.accepted.fetch_add(1, Ordering::Relaxed) % 2 == 1;
    let stream = server.context.accept(stream, ex)?;
    connection(&server.shared, stream, Ends { local, peer, protocol: Protocol::Tls })
}
