//! The fields of an entry that become a [`HopSide`](meshdiff_model::HopSide), borrowed from the message's bytes.
//!
//! As protobuf has it: of a field that comes twice the last value stands, a message that comes twice is merged with what came before it,
//! and a member of a `oneof` replaces another member.

use super::details::{Certificate, DOWNSTREAM_PEERS, EncodedPeer, TAGS, UPSTREAM_PEERS};
use super::reader::{Key, Reader, Undecodable};
use super::schema::{self, Schema};
use super::{InvalidField, address};
use envoy_types::pb::google::protobuf::{Duration, Timestamp};
use std::borrow::Cow;
use std::net::{SocketAddr, SocketAddrV4};

/// A message of which some fields are kept.
pub(super) trait Message<'a>: Default {
    /// Takes one field.
    ///
    /// # Errors
    /// If prost would refuse it.
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable>;

    /// Takes all fields of another occurrence.
    ///
    /// # Errors
    /// If prost would refuse one of them.
    #[inline]
    fn merge(&mut self, mut reader: Reader<'a>) -> Result<(), Undecodable> {
        while let Some(key) = reader.key()? {
            self.field(key, &mut reader)?;
        }
        Ok(())
    }
}

/// `HTTPAccessLogEntry`. An absent request or response is an empty one.
#[derive(Debug, Default)]
pub(super) struct Http<'a> {
    pub(super) common: Option<Common<'a>>,
    pub(super) protocol_version: i32,
    pub(super) request: Request<'a>,
    pub(super) response: Response<'a>,
}

impl<'a> Message<'a> for Http<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => merge_optional(&mut self.common, key, reader),
            2 => reader.int32(key).map(|v| self.protocol_version = v),
            3 => self.request.merge(reader.message(key)?),
            4 => self.response.merge(reader.message(key)?),
            _ => reader.skip(key),
        }
    }
}

/// `TCPAccessLogEntry`. Absent connection properties are empty ones.
#[derive(Debug, Default)]
pub(super) struct Tcp<'a> {
    pub(super) common: Option<Common<'a>>,
    pub(super) connection: Connection,
}

impl<'a> Message<'a> for Tcp<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => merge_optional(&mut self.common, key, reader),
            2 => self.connection.merge(reader.message(key)?),
            _ => reader.skip(key),
        }
    }
}

/// `ConnectionProperties`.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl Message<'_> for Connection {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.integer(key).map(|v| self.received_bytes = v),
            2 => reader.integer(key).map(|v| self.sent_bytes = v),
            _ => reader.skip(key),
        }
    }
}

/// `AccessLogCommon`.
#[derive(Debug, Default)]
pub(super) struct Common<'a> {
    pub(super) downstream_remote_address: Option<Address<'a>>,
    pub(super) downstream_local_address: Option<Address<'a>>,
    pub(super) downstream_direct_remote_address: Option<Address<'a>>,
    pub(super) upstream_remote_address: Option<Address<'a>>,
    pub(super) upstream_local_address: Option<Address<'a>>,
    pub(super) tls_properties: Option<Tls<'a>>,
    pub(super) start_time: Option<Timestamp>,
    pub(super) time_to_last_rx_byte: Option<Duration>,
    pub(super) time_to_first_upstream_tx_byte: Option<Duration>,
    pub(super) time_to_last_upstream_tx_byte: Option<Duration>,
    pub(super) time_to_first_upstream_rx_byte: Option<Duration>,
    pub(super) time_to_last_upstream_rx_byte: Option<Duration>,
    pub(super) time_to_first_downstream_tx_byte: Option<Duration>,
    pub(super) time_to_last_downstream_tx_byte: Option<Duration>,
    pub(super) duration: Option<Duration>,
    pub(super) upstream_cluster: &'a str,
    pub(super) route_name: &'a str,
    pub(super) stream_id: &'a str,
    pub(super) upstream_transport_failure_reason: &'a str,
    pub(super) downstream_transport_failure_reason: &'a str,
    pub(super) connection_termination_details: &'a str,
    pub(super) filter_state_objects: FilterState<'a>,
    pub(super) custom_tags: Tags<'a>,
    pub(super) downstream_wire_bytes_sent: u64,
    pub(super) downstream_wire_bytes_received: u64,
    pub(super) upstream_wire_bytes_sent: u64,
    pub(super) upstream_wire_bytes_received: u64,
    pub(super) response_flags: Flags,
    pub(super) upstream_request_attempt_count: u32,
    pub(super) intermediate_log_entry: bool,
    pub(super) access_log_type: i32,
}

impl<'a> Message<'a> for Common<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            2 => merge_address(&mut self.downstream_remote_address, key, reader),
            3 => merge_address(&mut self.downstream_local_address, key, reader),
            4 => merge_optional(&mut self.tls_properties, key, reader),
            5 => merge_optional(&mut self.start_time, key, reader),
            6 => merge_span(&mut self.time_to_last_rx_byte, key, reader),
            7 => merge_span(&mut self.time_to_first_upstream_tx_byte, key, reader),
            8 => merge_span(&mut self.time_to_last_upstream_tx_byte, key, reader),
            9 => merge_span(&mut self.time_to_first_upstream_rx_byte, key, reader),
            10 => merge_span(&mut self.time_to_last_upstream_rx_byte, key, reader),
            11 => merge_span(&mut self.time_to_first_downstream_tx_byte, key, reader),
            12 => merge_span(&mut self.time_to_last_downstream_tx_byte, key, reader),
            13 => merge_address(&mut self.upstream_remote_address, key, reader),
            14 => merge_address(&mut self.upstream_local_address, key, reader),
            15 => reader.string(key).map(|v| self.upstream_cluster = v),
            16 => self.response_flags.merge(reader.message(key)?),
            18 => reader.string(key).map(|v| self.upstream_transport_failure_reason = v),
            19 => reader.string(key).map(|v| self.route_name = v),
            20 => merge_address(&mut self.downstream_direct_remote_address, key, reader),
            21 => self.filter_state_objects.entry(reader.message(key)?),
            22 => self.custom_tags.entry(reader.message(key)?),
            23 => merge_span(&mut self.duration, key, reader),
            24 => reader.uint32(key).map(|v| self.upstream_request_attempt_count = v),
            25 => reader.string(key).map(|v| self.connection_termination_details = v),
            26 => reader.string(key).map(|v| self.stream_id = v),
            27 => reader.integer(key).map(|v| self.intermediate_log_entry = v != 0),
            28 => reader.string(key).map(|v| self.downstream_transport_failure_reason = v),
            29 => reader.integer(key).map(|v| self.downstream_wire_bytes_sent = v),
            30 => reader.integer(key).map(|v| self.downstream_wire_bytes_received = v),
            31 => reader.integer(key).map(|v| self.upstream_wire_bytes_sent = v),
            32 => reader.integer(key).map(|v| self.upstream_wire_bytes_received = v),
            33 => reader.int32(key).map(|v| self.access_log_type = v),
            _ => schema::COMMON.check(key, reader),
        }
    }
}

/// `Duration`, as prost has it: it needs no allocation either.
impl Message<'_> for Duration {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        seconds_and_nanos(key, reader, &mut self.seconds, &mut self.nanos)
    }
}

/// `Timestamp`, likewise.
impl Message<'_> for Timestamp {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        seconds_and_nanos(key, reader, &mut self.seconds, &mut self.nanos)
    }
}

#[inline(always)]
fn seconds_and_nanos(key: Key, reader: &mut Reader<'_>, seconds: &mut i64, nanos: &mut i32) -> Result<(), Undecodable> {
    match key.number {
        1 => reader.integer(key).map(|v| *seconds = v.cast_signed()),
        2 => reader.int32(key).map(|v| *nanos = v),
        _ => reader.skip(key),
    }
}

/// `TLSProperties`. The certificates stay undecoded: those of the next entry are mostly the same.
#[derive(Debug, Default)]
pub(super) struct Tls<'a> {
    pub(super) tls_version: i32,
    pub(super) tls_cipher_suite: Option<Code>,
    pub(super) tls_sni_hostname: &'a str,
    pub(super) local_certificate: Undecoded<'a>,
    pub(super) peer_certificate: Undecoded<'a>,
}

impl<'a> Message<'a> for Tls<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.int32(key).map(|v| self.tls_version = v),
            2 => merge_optional(&mut self.tls_cipher_suite, key, reader),
            3 => reader.string(key).map(|v| self.tls_sni_hostname = v),
            4 => self.local_certificate.append(reader.message(key)?),
            5 => self.peer_certificate.append(reader.message(key)?),
            _ => schema::TLS.check(key, reader),
        }
    }
}

/// A message whose decoding is left for later, if ever. Several occurrences merge as their bytes do one after the other.
#[derive(Debug, Default)]
pub(super) struct Undecoded<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    depth: u32,
}

impl<'a> Undecoded<'a> {
    fn append(&mut self, again: Reader<'a>) -> Result<(), Undecodable> {
        self.depth = again.depth();
        if self.bytes.is_empty() {
            self.bytes = Cow::Borrowed(again.rest());
            return Ok(());
        }
        // A field must not run from one occurrence into the next.
        schema::CERTIFICATE.check_all(again)?;
        schema::CERTIFICATE.check_all(self.reader())?;
        self.bytes.to_mut().extend_from_slice(again.rest());
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader::nested(&self.bytes, self.depth)
    }

    /// Decodes it as `CertificateProperties`.
    ///
    /// # Errors
    /// If prost would refuse it.
    pub(super) fn certificate(&self) -> Result<Certificate<'_>, Undecodable> {
        let mut certificate = Certificate::default();
        let mut reader = self.reader();
        while let Some(key) = reader.key()? {
            match key.number {
                1 => {
                    let mut name = AltName::default();
                    name.merge(reader.message(key)?)?;
                    certificate.names.push(name.0);
                }
                2 => certificate.subject = reader.string(key)?,
                _ => schema::CERTIFICATE.check(key, &mut reader)?,
            }
        }
        Ok(certificate)
    }
}

/// `SubjectAltName`: the oneof's member that came last.
#[derive(Debug, Default)]
struct AltName<'a>(&'a str);

impl<'a> Message<'a> for AltName<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 | 2 => reader.string(key).map(|v| self.0 = v),
            _ => reader.skip(key),
        }
    }
}

/// `filter_state_objects`, of which only the peers are kept.
#[derive(Debug, Default)]
pub(super) struct FilterState<'a> {
    pub(super) downstream: [Option<EncodedPeer<'a>>; 3],
    pub(super) upstream: [Option<EncodedPeer<'a>>; 3],
}

impl<'a> FilterState<'a> {
    fn entry(&mut self, reader: Reader<'a>) -> Result<(), Undecodable> {
        let mut entry = AnyEntry::default();
        entry.merge(reader)?;
        let at = |keys: [&str; 3]| keys.iter().position(|&key| key == entry.key);
        if let Some(at) = at(DOWNSTREAM_PEERS) {
            self.downstream[at] = Some(entry.value);
        } else if let Some(at) = at(UPSTREAM_PEERS) {
            self.upstream[at] = Some(entry.value);
        }
        Ok(())
    }
}

/// An entry of a `map<string, Any>`.
#[derive(Debug, Default)]
struct AnyEntry<'a> {
    key: &'a str,
    value: EncodedPeer<'a>,
}

impl<'a> Message<'a> for AnyEntry<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.key = v),
            2 => self.value.merge(reader.message(key)?),
            _ => reader.skip(key),
        }
    }
}

impl<'a> Message<'a> for EncodedPeer<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.type_url = v),
            2 => reader.bytes(key).map(|v| self.value = v),
            _ => reader.skip(key),
        }
    }
}

/// `custom_tags`, of which only those in [`TAGS`] are kept.
#[derive(Debug, Default)]
pub(super) struct Tags<'a>(pub(super) [Option<&'a str>; TAGS.len()]);

impl<'a> Tags<'a> {
    fn entry(&mut self, reader: Reader<'a>) -> Result<(), Undecodable> {
        let mut entry = TextEntry::default();
        entry.merge(reader)?;
        if let Some(at) = TAGS.iter().position(|&key| key == entry.key) {
            self.0[at] = Some(entry.value);
        }
        Ok(())
    }
}

/// An entry of a `map<string, string>`.
#[derive(Debug, Default)]
struct TextEntry<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Message<'a> for TextEntry<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.key = v),
            2 => reader.string(key).map(|v| self.value = v),
            _ => reader.skip(key),
        }
    }
}

/// `ResponseFlags`: bit *n* is the field with number *n*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u32);

impl Message<'_> for Flags {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        let set = match key.number {
            // `unauthorized_details`, a message: it is set by being there.
            13 => {
                schema::INTEGER.check_all(reader.message(key)?)?;
                true
            }
            1..=28 => reader.integer(key)? != 0,
            _ => return reader.skip(key),
        };
        let bit = 1 << key.number;
        self.0 = if set { self.0 | bit } else { self.0 & !bit };
        Ok(())
    }
}

/// `HTTPRequestProperties`.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) request_method: i32,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) request_id: &'a str,
    pub(super) request_headers_bytes: u64,
    pub(super) request_body_bytes: u64,
    pub(super) upstream_header_bytes_sent: u64,
    pub(super) downstream_header_bytes_received: u64,
}

impl<'a> Message<'a> for Request<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.int32(key).map(|v| self.request_method = v),
            3 => reader.string(key).map(|v| self.authority = v),
            5 => reader.string(key).map(|v| self.path = v),
            9 => reader.string(key).map(|v| self.request_id = v),
            11 => reader.integer(key).map(|v| self.request_headers_bytes = v),
            12 => reader.integer(key).map(|v| self.request_body_bytes = v),
            14 => reader.integer(key).map(|v| self.upstream_header_bytes_sent = v),
            15 => reader.integer(key).map(|v| self.downstream_header_bytes_received = v),
            _ => schema::REQUEST.check(key, reader),
        }
    }
}

/// `HTTPResponseProperties`.
#[derive(Debug, Default)]
pub(super) struct Response<'a> {
    /// An absent code is 0, which Envoy says itself where no response began.
    pub(super) response_code: Code,
    pub(super) response_code_details: &'a str,
    pub(super) response_headers_bytes: u64,
    pub(super) response_body_bytes: u64,
    pub(super) upstream_header_bytes_received: u64,
    pub(super) downstream_header_bytes_sent: u64,
}

impl<'a> Message<'a> for Response<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => self.response_code.merge(reader.message(key)?),
            2 => reader.integer(key).map(|v| self.response_headers_bytes = v),
            3 => reader.integer(key).map(|v| self.response_body_bytes = v),
            6 => reader.string(key).map(|v| self.response_code_details = v),
            7 => reader.integer(key).map(|v| self.upstream_header_bytes_received = v),
            8 => reader.integer(key).map(|v| self.downstream_header_bytes_sent = v),
            _ => schema::RESPONSE.check(key, reader),
        }
    }
}

/// `UInt32Value`.
#[derive(Debug, Default)]
pub(super) struct Code(pub(super) u32);

impl Message<'_> for Code {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.uint32(key).map(|v| self.0 = v),
            _ => reader.skip(key),
        }
    }
}

/// `core.v3.Address`.
#[derive(Debug, Default)]
pub(super) enum Address<'a> {
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
    pub(super) fn socket_addr(&self) -> Result<SocketAddr, InvalidField> {
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
pub(super) struct Socket<'a> {
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

/// Merges a span. Most are below a second: nanoseconds and nothing else.
#[inline(always)]
fn merge_span(to: &mut Option<Duration>, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
    const NANOS: u8 = 2 << 3;
    let again = reader.message(key)?;
    if to.is_none() {
        let low = |byte: u8, at: u32| i32::from(byte & 0x7f) << (7 * at);
        let nanos = match *again.rest() {
            [NANOS, a, b, c, d] if a & b & c >= 0x80 && d < 0x80 => low(a, 0) | low(b, 1) | low(c, 2) | low(d, 3),
            [NANOS, a, b, c] if a & b >= 0x80 && c < 0x80 => low(a, 0) | low(b, 1) | low(c, 2),
            _ => return merge_slowly(to, again),
        };
        *to = Some(Duration { seconds: 0, nanos });
        return Ok(());
    }
    merge_slowly(to, again)
}

/// Merges an address. Most have the shape in which Envoy writes an IPv4 address.
#[inline(always)]
fn merge_address<'a>(to: &mut Option<Address<'a>>, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
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
fn plain_address(bytes: &[u8]) -> Option<Address<'_>> {
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
    // What is an address is ASCII.
    Some(Address::Plain(ip, SocketAddrV4::new(address::ipv4(ip)?, port)))
}

#[inline(never)]
fn merge_slowly<'a, M: Message<'a>>(to: &mut Option<M>, again: Reader<'a>) -> Result<(), Undecodable> {
    to.get_or_insert_default().merge(again)
}

/// Merges a message whose absence means something.
#[inline]
fn merge_optional<'a, M: Message<'a>>(
    to: &mut Option<M>,
    key: Key,
    reader: &mut Reader<'a>,
) -> Result<(), Undecodable> {
    let again = reader.message(key)?;
    to.get_or_insert_default().merge(again)
}
