//! Access log entries into the model's [`HopSide`].

use super::reader::{Reader, Undecodable};
use super::view::{self, Address, Common, Message};
use super::{EntryKind, InvalidEntry, InvalidField, flags, side, time};
use crate::intern::{Interner, cut};
use crate::stats::{Tally, counted};
use envoy_types::pb::envoy::config::core::v3::RequestMethod;
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogType as WireType, http_access_log_entry::HttpVersion};
use envoy_types::pb::google::protobuf::Duration;
use meshdiff_model::{
    AccessLogType, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopProtocol,
    HopSide, HopTimings, Proxy, RequestId, UpstreamLocalAddr, UpstreamRemoteAddr,
};
use std::sync::Arc;

/// Longest path that is kept, in bytes.
pub(super) const MAX_PATH: usize = 1024;
/// Longest other string that is kept, in bytes.
pub(super) const MAX_TEXT: usize = 512;
/// Longest request or stream id that is kept, in bytes: Envoy's own are 36.
pub(super) const MAX_ID: usize = 256;
/// Names, and paths, that are kept once per stream.
pub(super) const INTERNED: usize = 1024;

counted! {
    /// Envoy's `AccessLogType` of an entry that is not terminal.
    pub(crate) enum LogType {
        Intermediate => "Intermediate",
        TcpUpstreamConnected => "TcpUpstreamConnected",
        TcpPeriodic => "TcpPeriodic",
        TcpConnectionStart => "TcpConnectionStart",
        DownstreamStart => "DownstreamStart",
        DownstreamPeriodic => "DownstreamPeriodic",
        UpstreamPoolReady => "UpstreamPoolReady",
        UpstreamPeriodic => "UpstreamPeriodic",
        UpstreamEnd => "UpstreamEnd",
        TunnelEstablished => "DownstreamTunnelSuccessfullyEstablished",
        UdpTunnelUpstreamConnected => "UdpTunnelUpstreamConnected",
        UdpPeriodic => "UdpPeriodic",
        UdpSessionEnd => "UdpSessionEnd",
        Unknown => "Unknown",
    }
}

/// The type of a terminal entry, else what it is counted as.
///
/// Envoys before 1.26 have no types, and say with `intermediate_log_entry` alone that an entry is not the last.
pub(super) fn terminal(access_log_type: i32, intermediate: bool) -> Result<AccessLogType, LogType> {
    Err(match WireType::try_from(access_log_type) {
        Ok(WireType::NotSet) if intermediate => LogType::Intermediate,
        Ok(WireType::NotSet) => return Ok(AccessLogType::NotSet),
        Ok(WireType::DownstreamEnd) => return Ok(AccessLogType::DownstreamEnd),
        Ok(WireType::TcpConnectionEnd) => return Ok(AccessLogType::TcpConnectionEnd),
        Ok(WireType::TcpUpstreamConnected) => LogType::TcpUpstreamConnected,
        Ok(WireType::TcpPeriodic) => LogType::TcpPeriodic,
        Ok(WireType::TcpConnectionStart) => LogType::TcpConnectionStart,
        Ok(WireType::DownstreamStart) => LogType::DownstreamStart,
        Ok(WireType::DownstreamPeriodic) => LogType::DownstreamPeriodic,
        Ok(WireType::UpstreamPoolReady) => LogType::UpstreamPoolReady,
        Ok(WireType::UpstreamPeriodic) => LogType::UpstreamPeriodic,
        Ok(WireType::UpstreamEnd) => LogType::UpstreamEnd,
        Ok(WireType::DownstreamTunnelSuccessfullyEstablished) => LogType::TunnelEstablished,
        Ok(WireType::UdpTunnelUpstreamConnected) => LogType::UdpTunnelUpstreamConnected,
        Ok(WireType::UdpPeriodic) => LogType::UdpPeriodic,
        Ok(WireType::UdpSessionEnd) => LogType::UdpSessionEnd,
        Err(_) => LogType::Unknown,
    })
}

/// Converts the entries of one stream; it keeps one copy of the strings that repeat.
#[derive(Debug)]
pub(crate) struct EntryDecoder {
    names: Interner,
    paths: Interner,
}

impl EntryDecoder {
    pub(crate) fn new() -> Self {
        Self { names: Interner::new(INTERNED), paths: Interner::new(INTERNED) }
    }

    /// Decodes one entry, and appends it if it is terminal. An entry that is not, and whatever is wrong with one that is kept, are
    /// counted in `tally`.
    ///
    /// # Errors
    /// If the entry cannot be used. The caller counts it.
    pub(crate) fn decode(
        &mut self,
        kind: EntryKind,
        bytes: &[u8],
        proxy: &Proxy,
        hops: &mut Vec<HopSide>,
        tally: &mut Tally,
    ) -> Result<(), InvalidEntry> {
        let undecodable = |Undecodable| InvalidEntry::Undecodable;
        match kind {
            EntryKind::Http => {
                let mut entry = view::Http::default();
                entry.merge(Reader::new(bytes)).map_err(undecodable)?;
                let common = entry.common.as_ref().ok_or(InvalidEntry::MissingCommonProperties)?;
                let protocol = protocol(entry.protocol_version, tally);
                let Some(hop) = self.common(common, protocol, proxy, hops, tally)? else { return Ok(()) };
                self.request(&entry.request, hop, tally);
                self.response(&entry.response, hop, tally);
                // For HTTP Envoy's stream id is the request id (`stream_info.getStreamIdProvider()`).
                if hop.request_id.is_none() {
                    hop.request_id = hop.stream_id.clone().map(RequestId);
                }
            }
            EntryKind::Tcp => {
                let mut entry = view::Tcp::default();
                entry.merge(Reader::new(bytes)).map_err(undecodable)?;
                let common = entry.common.as_ref().ok_or(InvalidEntry::MissingCommonProperties)?;
                let Some(hop) = self.common(common, HopProtocol::Tcp, proxy, hops, tally)? else { return Ok(()) };
                hop.request_body_bytes = entry.connection.received_bytes;
                hop.response_body_bytes = entry.connection.sent_bytes;
            }
        }
        Ok(())
    }

    /// Appends a hop with what entries of both kinds have in common. Nothing can go wrong with it any more.
    fn common<'h>(
        &mut self,
        common: &Common<'_>,
        protocol: HopProtocol,
        proxy: &Proxy,
        hops: &'h mut Vec<HopSide>,
        tally: &mut Tally,
    ) -> Result<Option<&'h mut HopSide>, InvalidEntry> {
        let access_log_type = match terminal(common.access_log_type, common.intermediate_log_entry) {
            Ok(terminal) => terminal,
            Err(other) => {
                tally.not_terminal[other as usize] += 1;
                return Ok(None);
            }
        };
        let start_time = time::wall_time(common.start_time.ok_or(InvalidEntry::MissingStartTime)?)?;
        let mut addr = |wire: &Option<Address<'_>>| optional(wire.as_ref().map(Address::socket_addr), tally);
        let direct = addr(&common.downstream_direct_remote_address).map(DownstreamDirectRemoteAddr);
        let remote = addr(&common.downstream_remote_address).map(DownstreamRemoteAddr);
        let local = addr(&common.downstream_local_address).map(DownstreamLocalAddr);
        let upstream_local = addr(&common.upstream_local_address).map(UpstreamLocalAddr);
        let upstream_remote = addr(&common.upstream_remote_address).map(UpstreamRemoteAddr);
        let tls = common.tls_properties.as_ref();
        hops.push(HopSide {
            node: proxy.node.clone(),
            side: side::side(common.upstream_cluster, proxy, direct, local),
            protocol,
            access_log_type,
            start_time,
            timings: timings(common, tally),
            downstream_direct_remote_address: direct,
            downstream_remote_address: remote,
            downstream_local_address: local,
            upstream_local_address: upstream_local,
            upstream_remote_address: upstream_remote,
            upstream_cluster: self.name(common.upstream_cluster, tally),
            route_name: self.name(common.route_name, tally),
            upstream_request_attempt_count: Some(common.upstream_request_attempt_count).filter(|&n| n > 0),
            response_flags: flags::short_names(common.response_flags),
            request_id: None,
            stream_id: shortened(common.stream_id, MAX_ID, tally).map(Into::into),
            method: None,
            authority: None,
            path: None,
            response_code: None,
            response_code_details: None,
            request_body_bytes: 0,
            response_body_bytes: 0,
            tls_sni_hostname: tls.and_then(|t| self.name(t.tls_sni_hostname, tally)),
            downstream_tls: tls.is_some(),
        });
        Ok(hops.last_mut())
    }

    fn request(&mut self, request: &view::Request<'_>, hop: &mut HopSide, tally: &mut Tally) {
        hop.method = method(request.request_method, tally).map(|name| self.names.intern(name));
        hop.authority = self.name(request.authority, tally);
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        hop.path = shortened(path, MAX_PATH, tally).map(|p| self.paths.intern(p));
        hop.request_id = shortened(request.request_id, MAX_ID, tally).map(|id| match &hop.stream_id {
            Some(same) if **same == *id => RequestId(Arc::clone(same)),
            _ => RequestId(id.into()),
        });
        hop.request_body_bytes = request.request_body_bytes;
    }

    fn response(&mut self, response: &view::Response<'_>, hop: &mut HopSide, tally: &mut Tally) {
        hop.response_code = response_code(response.response_code.0, tally);
        hop.response_code_details = self.name(response.response_code_details, tally);
        hop.response_body_bytes = response.response_body_bytes;
    }

    fn name(&mut self, text: &str, tally: &mut Tally) -> Option<Arc<str>> {
        shortened(text, MAX_TEXT, tally).map(|t| self.names.intern(t))
    }
}

fn timings(common: &Common<'_>, tally: &mut Tally) -> HopTimings {
    let mut span = |wire: Option<Duration>| -> Option<DurationNs> { optional(wire.map(time::duration), tally) };
    HopTimings {
        time_to_last_rx_byte: span(common.time_to_last_rx_byte),
        time_to_first_upstream_tx_byte: span(common.time_to_first_upstream_tx_byte),
        time_to_last_upstream_tx_byte: span(common.time_to_last_upstream_tx_byte),
        time_to_first_upstream_rx_byte: span(common.time_to_first_upstream_rx_byte),
        time_to_last_upstream_rx_byte: span(common.time_to_last_upstream_rx_byte),
        time_to_first_downstream_tx_byte: span(common.time_to_first_downstream_tx_byte),
        time_to_last_downstream_tx_byte: span(common.time_to_last_downstream_tx_byte),
        duration: span(common.duration),
    }
}

/// The status code; `None` for Envoy's 0, which says that no response began.
pub(super) fn response_code(code: u32, tally: &mut Tally) -> Option<u16> {
    match code {
        0 => None,
        100..=999 => u16::try_from(code).ok(),
        _ => {
            tally.field(InvalidField::InvalidResponseCode);
            None
        }
    }
}

/// The name of a method; `None` for Envoy's way to say "a method that the API has no number for".
pub(super) fn method(number: i32, tally: &mut Tally) -> Option<&'static str> {
    match RequestMethod::try_from(number) {
        Ok(RequestMethod::MethodUnspecified) => None,
        Ok(known) => Some(known.as_str_name()),
        Err(_) => {
            tally.field(InvalidField::UnknownNumber);
            None
        }
    }
}

/// The protocol of an HTTP entry.
pub(super) fn protocol(version: i32, tally: &mut Tally) -> HopProtocol {
    match HttpVersion::try_from(version) {
        Ok(HttpVersion::ProtocolUnspecified) => HopProtocol::Http,
        Ok(HttpVersion::Http10) => HopProtocol::Http10,
        Ok(HttpVersion::Http11) => HopProtocol::Http11,
        Ok(HttpVersion::Http2) => HopProtocol::Http2,
        Ok(HttpVersion::Http3) => HopProtocol::Http3,
        Err(_) => {
            tally.field(InvalidField::UnknownNumber);
            HopProtocol::Http
        }
    }
}

/// An optional field: what is wrong with it is counted, and the entry does without.
pub(super) fn optional<T>(field: Option<Result<T, InvalidField>>, tally: &mut Tally) -> Option<T> {
    match field? {
        Ok(value) => Some(value),
        Err(kind) => {
            tally.field(kind);
            None
        }
    }
}

/// A string that is not empty, cut (and counted) where it is too long.
pub(super) fn shortened<'a>(text: &'a str, max: usize, tally: &mut Tally) -> Option<&'a str> {
    let short = cut(text, max);
    if short.len() < text.len() {
        tally.field(InvalidField::CutString);
    }
    (!short.is_empty()).then_some(short)
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
