//! One type for each role that an address plays, so that a swap does not compile. The names are Envoy's.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! addr_role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The address with an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) turned into the IPv4 address that is meant.
            #[must_use]
            pub fn normalised(addr: SocketAddr) -> Self {
                Self(SocketAddr::new(normalise_ip(addr.ip()), addr.port()))
            }
            /// The IP address.
            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }
            /// The TCP port.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

addr_role!(
    /// A socket's own address, as the kernel has it.
    LocalAddr
);
addr_role!(
    /// A socket's peer, as the kernel has it. Behind a REDIRECT rule this is not the address of the socket at the other end.
    PeerAddr
);
addr_role!(
    /// The peer of Envoy's downstream connection, never rewritten by X-Forwarded-For
    /// (`downstream_direct_remote_address`).
    DownstreamDirectRemoteAddr
);
addr_role!(
    /// The peer that Envoy believes the request comes from; X-Forwarded-For may rewrite it
    /// (`downstream_remote_address`). Shown, never joined on.
    DownstreamRemoteAddr
);
addr_role!(
    /// The address that Envoy's downstream connection was accepted on (`downstream_local_address`): with Istio's original
    /// destination filters, the destination before the REDIRECT.
    DownstreamLocalAddr
);
addr_role!(
    /// Envoy's own end of its upstream connection (`upstream_local_address`).
    UpstreamLocalAddr
);
addr_role!(
    /// The peer of Envoy's upstream connection (`upstream_remote_address`).
    UpstreamRemoteAddr
);

/// Turns an IPv4-mapped IPv6 address into the IPv4 address that is meant; others stay.
#[must_use]
pub fn normalise_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_normalised() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().expect("an address");
        assert_eq!(LocalAddr::normalised(mapped).to_string(), "10.0.0.1:80");
        let v6: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
        assert_eq!(LocalAddr::normalised(v6).0, v6);
    }
}
