//! Envoy's addresses.

use super::InvalidField;
use envoy_types::pb::envoy::config::core::v3::{Address, address, socket_address::PortSpecifier};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The IP address and port of one of Envoy's addresses.
///
/// # Errors
/// If it is a pipe or internal to Envoy, or not an IP address with a port.
pub(super) fn socket_addr(wire: &Address) -> Result<SocketAddr, InvalidField> {
    match &wire.address {
        Some(address::Address::SocketAddress(socket)) => {
            let ip = ip(&socket.address).ok_or(InvalidField::InvalidAddress)?;
            let port = match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => {
                    u16::try_from(port).map_err(|_| InvalidField::InvalidAddress)?
                }
                Some(PortSpecifier::NamedPort(_)) => return Err(InvalidField::InvalidAddress),
                // proto3 leaves zero out where a oneof is set without presence; X-Forwarded-For gives port 0 as well.
                None => 0,
            };
            Ok(SocketAddr::new(ip, port))
        }
        Some(address::Address::Pipe(_)) => Err(InvalidField::PipeAddress),
        Some(address::Address::EnvoyInternalAddress(_)) => Err(InvalidField::InternalAddress),
        None => Err(InvalidField::InvalidAddress),
    }
}

/// An IP address as Envoy writes it: an IPv6 one may end in its scope (`fe80::1%2`).
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

/// The same of text that is there as bytes.
#[inline]
pub(super) fn ip_of_utf8(text: &[u8]) -> Option<IpAddr> {
    ipv4(text).map(IpAddr::V4).or_else(|| ip(std::str::from_utf8(text).ok()?))
}

/// The IPv4 address of a text that is nothing else, which most are: a shorter way than the library's parser.
#[inline]
pub(super) fn ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let (mut octets, mut at) = ([0_u8; 4], 0);
    for (i, octet) in octets.iter_mut().enumerate() {
        if i > 0 {
            if *text.get(at)? != b'.' {
                return None;
            }
            at += 1;
        }
        let first = digit(text, at)?;
        let mut value = u16::from(first);
        at += 1;
        // An octet that begins with 0 ends there: `010` could be meant to be octal.
        for _ in 0..if first == 0 { 0 } else { 2 } {
            let Some(next) = digit(text, at) else { break };
            value = value * 10 + u16::from(next);
            at += 1;
        }
        *octet = u8::try_from(value).ok()?;
    }
    (at == text.len()).then(|| octets.into())
}

#[inline]
fn digit(text: &[u8], at: usize) -> Option<u8> {
    text.get(at).map(|c| c.wrapping_sub(b'0')).filter(|&digit| digit < 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::{EnvoyInternalAddress, Pipe, SocketAddress};
    use proptest::prelude::*;

    fn socket(ip: &str, port: Option<PortSpecifier>) -> Address {
        let socket = SocketAddress { address: ip.to_owned(), port_specifier: port, ..Default::default() };
        Address { address: Some(address::Address::SocketAddress(socket)) }
    }

    #[test]
    fn ip_addresses_and_ports() {
        let port = |p| Some(PortSpecifier::PortValue(p));
        let ok = |ip, p| socket_addr(&socket(ip, p)).map(|a| a.to_string());
        assert_eq!(ok("10.0.0.1", port(80)), Ok("10.0.0.1:80".to_owned()));
        assert_eq!(ok("8.8.8.8", None), Ok("8.8.8.8:0".to_owned()));
        assert_eq!(ok("fe80::1%2", port(1)), Ok("[fe80::1]:1".to_owned()));
        assert_eq!(ok("10.0.0.1", port(65_536)), Err(InvalidField::InvalidAddress));
        assert_eq!(
            ok("10.0.0.1", Some(PortSpecifier::NamedPort("http".to_owned()))),
            Err(InvalidField::InvalidAddress)
        );
        assert_eq!(ok("reviews", port(80)), Err(InvalidField::InvalidAddress));
        assert_eq!(ok("", port(80)), Err(InvalidField::InvalidAddress));
    }

    #[test]
    fn other_kinds_are_told_apart() {
        let of = |a| socket_addr(&Address { address: a });
        assert_eq!(of(None), Err(InvalidField::InvalidAddress));
        assert_eq!(of(Some(address::Address::Pipe(Pipe::default()))), Err(InvalidField::PipeAddress));
        assert_eq!(
            of(Some(address::Address::EnvoyInternalAddress(EnvoyInternalAddress::default()))),
            Err(InvalidField::InternalAddress)
        );
    }

    proptest! {
        #[test]
        fn ipv4_addresses_are_those_of_the_library(text in "[0-9]{0,4}(\\.[0-9]{0,3}){2,4}[.a%:]?", octets in any::<[u8; 4]>()) {
            prop_assert_eq!(ipv4(text.as_bytes()), text.parse().ok());
            prop_assert_eq!(ip_of_utf8(text.as_bytes()), ip(&text));
            let plain = Ipv4Addr::from(octets).to_string();
            prop_assert_eq!(ipv4(plain.as_bytes()), Some(octets.into()));
        }
    }
}
