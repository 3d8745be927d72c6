//! What can keep the receiver from listening.

use std::io;
use std::net::SocketAddr;

/// `EAFNOSUPPORT`, for which [`io::ErrorKind`] has no stable name; the number is the same on every Linux architecture that Envoy runs on.
const EAFNOSUPPORT: i32 = 97;

/// Why the receiver cannot listen where it was told to.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket listens there.
    #[error(
        "cannot listen for access logs on {0}: another process has port {port} (`ss -ltnp 'sport = :{port}'` shows which); stop it, or choose another port",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// A port that needs a privilege.
    #[error(
        "cannot listen for access logs on {0}: no permission for port {port}; choose a port from 1024 up, or run with CAP_NET_BIND_SERVICE",
        port = .0.port()
    )]
    Denied(SocketAddr),
    /// An address that no interface has.
    #[error(
        "cannot listen for access logs on {0}: this machine has no address {ip}; use one that `ip address` shows, or 0.0.0.0 for all of them",
        ip = .0.ip()
    )]
    NoSuchAddress(SocketAddr),
    /// IPv6 is switched off.
    #[error(
        "cannot listen for access logs on {0}: this kernel does not speak that address family (is IPv6 off?); use an IPv4 address, 0.0.0.0 for all of them"
    )]
    NoSuchFamily(SocketAddr),
    /// Anything else.
    #[error("cannot listen for access logs on {addr}: {source}")]
    Other {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl BindError {
    pub(crate) fn new(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(addr),
            io::ErrorKind::PermissionDenied => Self::Denied(addr),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(addr),
            _ if source.raw_os_error() == Some(EAFNOSUPPORT) => Self::NoSuchFamily(addr),
            _ => Self::Other { addr, source },
        }
    }
}

/// Why the receiver stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket could not be handed to the runtime.
    #[error("the access log receiver cannot start: {0}")]
    Listener(#[source] io::Error),
    /// The gRPC server gave up.
    #[error("the access log receiver failed: {0}")]
    Server(#[source] tonic::transport::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_advice() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 99));
        let text = |e: io::Error| BindError::new(addr, e).to_string();
        assert!(text(io::ErrorKind::PermissionDenied.into()).contains("CAP_NET_BIND_SERVICE"));
        assert!(text(io::Error::from_raw_os_error(EAFNOSUPPORT)).contains("is IPv6 off?"));
        assert!(text(io::ErrorKind::AddrInUse.into()).contains("sport = :99"));
        assert!(text(io::ErrorKind::OutOfMemory.into()).contains("127.0.0.1:99"));
    }
}
