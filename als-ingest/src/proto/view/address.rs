//! Addresses, which every entry has five of.

use super::{Message, merge_slowly};
use crate::proto::reader::{Key, Reader, Undecodable};
use crate::proto::schema::{self, Schema};
use crate::proto::{InvalidField, address};
use std::net::{SocketAddr, SocketAddrV4};

/// `core.v3.Address`.
#[derive(Debug, Default)]
pub(in crate::proto) enum Address<'a> {
    /// No member of the oneof, or one that is not known.
    #[default]
    Unset,
    /// An IP address and port, supposedly.
    Socket(Socket<'a>),
    /// An IPv4 address and port, and the text of the address.
    Plain(&'a [u8], SocketAddrV4),
    /// A Unix domain socket.
    Pipe,
    /// Internal to Envoy.
    Internal,
}

impl<'a> Message<'a> for Address<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => {
                let again = reader.message(key)?;
                if let Self::Plain(address, plain) = *self {
                    *self = Self::Socket(Socket { address, port: Port::Value(plain.port().into()) });
                }
                if let Self::Socket(socket) = self {
                    return socket.merge(again);
                }
                let mut socket = Socket::default();
                socket.merge(again)?;
                *self = Self::Socket(socket);
                Ok(())
            }
            2 => self.other(Self::Pipe, &schema::PIPE, key, reader),
            3 => self.other(Self::Internal, &schema::INTERNAL_ADDRESS, key, reader),
            _ => reader.skip(key),
        }
    }
}

impl Address<'_> {
    fn other(&mut self, kind: Self, schema: &Schema, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        *self = kind;
        schema.check_all(reader.message(key)?)
    }

    /// The IP address and port, an IPv4-mapped IPv6 address as the IPv4 address that is meant.
    ///
    /// # Errors
    /// If it is a pipe or internal to Envoy, or not an IP address with a port.
    #[inline]
    pub(in crate::proto) fn socket_addr(&self) -> Result<SocketAddr, InvalidField> {
        match self {
            Self::Plain(_, plain) => Ok(SocketAddr::V4(*plain)),
            Self::Socket(socket) => {
                let ip = address::ip_of_utf8(socket.address).ok_or(InvalidField::InvalidAddress)?;
                let port = match socket.port {
                    Port::Value(port) => u16::try_from(port).map_err(|_| InvalidField::InvalidAddress)?,
                    Port::Named => return Err(InvalidField::InvalidAddress),
                };
                Ok(SocketAddr::new(ip.to_canonical(), port))
            }
            Self::Pipe => Err(InvalidField::PipeAddress),
            Self::Internal => Err(InvalidField::InternalAddress),
            Self::Unset => Err(InvalidField::InvalidAddress),
        }
    }
}

/// `core.v3.SocketAddress`.
#[derive(Debug, Default)]
pub(in crate::proto) struct Socket<'a> {
    /// Is UTF-8.
    address: &'a [u8],
    port: Port,
}

/// The oneof `port_specifier`.
#[derive(Debug)]
enum Port {
    Value(u32),
    Named,
}

impl Default for Port {
    /// proto3 leaves zero out where a oneof is set without presence; X-Forwarded-For gives port 0 as well.
    fn default() -> Self {
        Self::Value(0)
    }
}

impl<'a> Message<'a> for Socket<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            2 => reader.utf8(key).map(|v| self.address = v),
            3 => reader.uint32(key).map(|v| self.port = Port::Value(v)),
            4 => reader.utf8(key).map(|_| self.port = Port::Named),
            _ => schema::SOCKET_ADDRESS.check(key, reader),
        }
    }
}

/// Merges an address. Most have the shape in which Envoy writes an IPv4 address.
#[inline(always)]
pub(super) fn merge_address<'a>(
    to: &mut Option<Address<'a>>,
    key: Key,
    reader: &mut Reader<'a>,
) -> Result<(), Undecodable> {
    let again = reader.message(key)?;
    if to.is_none()
        && let Some(plain) = plain_address(again.rest())
    {
        *to = Some(plain);
        return Ok(());
    }
    merge_slowly(to, again)
}

/// `socket_address { address: "10.0.0.1" port_value: 80 }`, byte for byte; `None` for whatever is not that.
#[inline(always)]
pub(in crate::proto) fn plain_address(bytes: &[u8]) -> Option<Address<'_>> {
    let (ip, port) = address_parts(bytes)?;
    // What is an address is ASCII.
    Some(Address::Plain(ip, SocketAddrV4::new(address::ipv4(ip)?, port)))
}

/// The text and the port of an address in that shape. The text is not looked at.
#[inline(always)]
pub(in crate::proto) fn address_parts(bytes: &[u8]) -> Option<(&[u8], u16)> {
    const SOCKET_ADDRESS: u8 = 1 << 3 | 2;
    const ADDRESS: u8 = 2 << 3 | 2;
    const PORT_VALUE: u8 = 3 << 3;
    let [SOCKET_ADDRESS, len, ADDRESS, ip_len @ ..0x80, ref rest @ ..] = *bytes else { return None };
    let (ip, port) = rest.split_at_checked(usize::from(ip_len))?;
    if usize::from(len) != rest.len() + 2 || len >= 0x80 {
        return None;
    }
    let low = |byte: u8| u16::from(byte & 0x7f);
    let port = match *port {
        [PORT_VALUE, a] if a < 0x80 => low(a),
        [PORT_VALUE, a, b] if a >= 0x80 && b < 0x80 => low(a) | low(b) << 7,
        // The third byte has room for what is left of 16 bits.
        [PORT_VALUE, a, b, c] if a & b >= 0x80 && c < 4 => low(a) | low(b) << 7 | low(c) << 14,
        _ => return None,
    };
    Some((ip, port))
}
