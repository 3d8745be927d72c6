//! The fields of an entry that become a [`HopSide`](meshdiff_model::HopSide), borrowed from the message's bytes.
//!
//! As protobuf has it: of a field that comes twice the last value stands, a message that comes twice is merged with what came before it,
//! and a member of a `oneof` replaces another member.

mod address;
mod parts;

pub(super) use address::{Address, address_parts, plain_address};
pub(super) use parts::{Tags, Tls, is_peer_entry};

use super::reader::{Key, Reader, Undecodable};
use super::schema;
use address::merge_address;
use envoy_types::pb::google::protobuf::{Duration, Timestamp};
use parts::FilterState;

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

/// A message whose absence means something and that nearly always is there: an `Option` of one as large as this would be moved into place.
#[derive(Debug, Default)]
pub(super) struct Known<M> {
    message: M,
    there: bool,
}

impl<M> Known<M> {
    /// The message, if there is one.
    pub(super) fn as_ref(&self) -> Option<&M> {
        self.there.then_some(&self.message)
    }

    #[inline(always)]
    fn merge<'a>(&mut self, again: Reader<'a>) -> Result<(), Undecodable>
    where
        M: Message<'a>,
    {
        self.there = true;
        self.message.merge(again)
    }
}

/// `HTTPAccessLogEntry`. An absent request or response is an empty one.
#[derive(Debug, Default)]
pub(super) struct Http<'a> {
    pub(super) common: Known<Common<'a>>,
    pub(super) protocol_version: i32,
    pub(super) request: Request<'a>,
    pub(super) response: Response<'a>,
}

impl<'a> Message<'a> for Http<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => self.common.merge(reader.message(key)?),
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
    pub(super) common: Known<Common<'a>>,
    pub(super) connection: Connection,
}

impl<'a> Message<'a> for Tcp<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => self.common.merge(reader.message(key)?),
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

/// Merges a span. Most are below a second: nanoseconds and nothing else.
#[inline(always)]
fn merge_span(to: &mut Option<Duration>, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
    let again = reader.message(key)?;
    if to.is_none()
        && let Some(nanos) = span_nanos(again.rest())
    {
        *to = Some(Duration { seconds: 0, nanos });
        return Ok(());
    }
    merge_slowly(to, again)
}

/// The nanoseconds of a span that has nothing else, as most do; `None` for others. They are less than a second.
#[inline(always)]
pub(super) fn span_nanos(span: &[u8]) -> Option<i32> {
    const NANOS: u8 = 2 << 3;
    let low = |byte: u8, at: u32| i32::from(byte & 0x7f) << (7 * at);
    match *span {
        [NANOS, a, b, c, d] if a & b & c >= 0x80 && d < 0x80 => Some(low(a, 0) | low(b, 1) | low(c, 2) | low(d, 3)),
        [NANOS, a, b, c] if a & b >= 0x80 && c < 0x80 => Some(low(a, 0) | low(b, 1) | low(c, 2)),
        _ => None,
    }
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
