//! Access log entries into the model's [`HopSide`].

use super::details::{self, EncodedPeer};
use super::reader::{Reader, Undecodable};
use super::view::{self, Address, Common, Message, Tls};
use super::{EntryKind, InvalidEntry, InvalidField, flags, side, time};
use crate::intern::{Interner, Memo, cut};
use crate::stats::{Tally, counted};
use envoy_types::pb::envoy::config::core::v3::RequestMethod;
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogType as WireType, http_access_log_entry::HttpVersion};
use envoy_types::pb::google::protobuf::Duration;
use meshdiff_model::{
    AccessLogType, DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopBytes,
    HopDetails, HopFailure, HopProtocol, HopSide, HopTimings, HopTls, Peer, Proxy, RequestId, UpstreamLocalAddr,
    UpstreamRemoteAddr,
};
use std::sync::Arc;

/// Longest path that is kept, in bytes.
pub(super) const MAX_PATH: usize = 1024;
/// Longest other string that is kept, in bytes.
pub(super) const MAX_TEXT: usize = 512;
/// Longest request or stream id that is kept, in bytes: Envoy's own are 36.
pub(super) const MAX_ID: usize = 256;
/// Names, and paths, that are kept once per decoder.
pub(super) const INTERNED: usize = 1024;
/// Places for TLS properties, and for peers, that are not decoded again.
const REMEMBERED: usize = 128;

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

impl LogType {
    /// The model's name of it.
    pub(crate) const fn model(self) -> AccessLogType {
        match self {
            Self::Intermediate => AccessLogType::Intermediate,
            Self::TcpUpstreamConnected => AccessLogType::TcpUpstreamConnected,
            Self::TcpPeriodic => AccessLogType::TcpPeriodic,
            Self::TcpConnectionStart => AccessLogType::TcpConnectionStart,
            Self::DownstreamStart => AccessLogType::DownstreamStart,
            Self::DownstreamPeriodic => AccessLogType::DownstreamPeriodic,
            Self::UpstreamPoolReady => AccessLogType::UpstreamPoolReady,
            Self::UpstreamPeriodic => AccessLogType::UpstreamPeriodic,
            Self::UpstreamEnd => AccessLogType::UpstreamEnd,
            Self::TunnelEstablished => AccessLogType::DownstreamTunnelSuccessfullyEstablished,
            Self::UdpTunnelUpstreamConnected => AccessLogType::UdpTunnelUpstreamConnected,
            Self::UdpPeriodic => AccessLogType::UdpPeriodic,
            Self::UdpSessionEnd => AccessLogType::UdpSessionEnd,
            Self::Unknown => AccessLogType::Other,
        }
    }
}

/// Where entries go: requests and connections that ended, and the rest.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    pub(crate) ended: Vec<HopSide>,
    pub(crate) progress: Vec<HopSide>,
}

impl Decoded {
    pub(crate) fn len(&self) -> usize {
        self.ended.len() + self.progress.len()
    }

    /// The list for entries of this type.
    pub(super) fn list(&mut self, of: AccessLogType) -> &mut Vec<HopSide> {
        if of.is_terminal() { &mut self.ended } else { &mut self.progress }
    }
}

/// The type of an entry; one that is not terminal is counted.
pub(super) fn log_type(access_log_type: i32, intermediate: bool, tally: &mut Tally) -> AccessLogType {
    terminal(access_log_type, intermediate).unwrap_or_else(|other| {
        tally.not_terminal(other);
        other.model()
    })
}

/// The type of a terminal entry, else what it is counted as.
///
/// Envoys before 1.26 have no types, and say with `intermediate_log_entry` alone that an entry is not the last.
fn terminal(access_log_type: i32, intermediate: bool) -> Result<AccessLogType, LogType> {
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

/// Converts entries; it keeps one copy of the strings, peers and certificates that repeat.
#[derive(Debug)]
pub(crate) struct EntryDecoder {
    names: Interner,
    paths: Interner,
    tls: Memo<Option<Arc<HopTls>>>,
    peers: Memo<Option<Arc<Peer>>>,
    key: Vec<u8>,
}

impl EntryDecoder {
    pub(crate) fn new() -> Self {
        Self {
            names: Interner::new(INTERNED),
            paths: Interner::new(INTERNED),
            tls: Memo::new(REMEMBERED),
            peers: Memo::new(REMEMBERED),
            key: Vec::new(),
        }
    }

    /// Decodes one entry, and appends it. One that is not terminal, and whatever is wrong with one that is kept, are
    /// counted in `tally`.
    ///
    /// # Errors
    /// If the entry cannot be used. The caller counts it.
    pub(crate) fn decode(
        &mut self,
        kind: EntryKind,
        bytes: &[u8],
        proxy: &Proxy,
        hops: &mut Decoded,
        tally: &mut Tally,
    ) -> Result<(), InvalidEntry> {
        let undecodable = |Undecodable| InvalidEntry::Undecodable;
        match kind {
            EntryKind::Http => {
                let mut entry = view::Http::default();
                entry.merge(Reader::new(bytes)).map_err(undecodable)?;
                let common = entry.common.as_ref().ok_or(InvalidEntry::MissingCommonProperties)?;
                let tls = self.tls(common.tls_properties.as_ref(), tally).map_err(undecodable)?;
                let protocol = protocol(entry.protocol_version, tally);
                let hop = self.common(common, protocol, tls, proxy, hops, tally)?;
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
                let tls = self.tls(common.tls_properties.as_ref(), tally).map_err(undecodable)?;
                let hop = self.common(common, HopProtocol::Tcp, tls, proxy, hops, tally)?;
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
        tls: Option<Arc<HopTls>>,
        proxy: &Proxy,
        hops: &'h mut Decoded,
        tally: &mut Tally,
    ) -> Result<&'h mut HopSide, InvalidEntry> {
        let start_time = time::wall_time(common.start_time.ok_or(InvalidEntry::MissingStartTime)?)?;
        let access_log_type = log_type(common.access_log_type, common.intermediate_log_entry, tally);
        let mut addr = |wire: &Option<Address<'_>>| optional(wire.as_ref().map(Address::socket_addr), tally);
        let direct = addr(&common.downstream_direct_remote_address).map(DownstreamDirectRemoteAddr);
        let remote = addr(&common.downstream_remote_address).map(DownstreamRemoteAddr);
        let local = addr(&common.downstream_local_address).map(DownstreamLocalAddr);
        let upstream_local = addr(&common.upstream_local_address).map(UpstreamLocalAddr);
        let upstream_remote = addr(&common.upstream_remote_address).map(UpstreamRemoteAddr);
        let list = hops.list(access_log_type);
        list.push(HopSide {
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
            tls_sni_hostname: common.tls_properties.as_ref().and_then(|t| self.name(t.tls_sni_hostname, tally)),
            downstream_tls: common.tls_properties.is_some(),
            details: HopDetails {
                bytes: HopBytes {
                    downstream_wire_bytes_sent: details::bytes(common.downstream_wire_bytes_sent),
                    downstream_wire_bytes_received: details::bytes(common.downstream_wire_bytes_received),
                    upstream_wire_bytes_sent: details::bytes(common.upstream_wire_bytes_sent),
                    upstream_wire_bytes_received: details::bytes(common.upstream_wire_bytes_received),
                    ..HopBytes::default()
                },
                tls,
                downstream_peer: self.peer(common.filter_state_objects.downstream, tally),
                upstream_peer: self.peer(common.filter_state_objects.upstream, tally),
                tags: details::tags(common.custom_tags.0, tally),
                failure: self.failure(
                    [
                        common.upstream_transport_failure_reason,
                        common.downstream_transport_failure_reason,
                        common.connection_termination_details,
                    ],
                    tally,
                ),
            },
        });
        // Just pushed.
        list.last_mut().ok_or(InvalidEntry::Undecodable)
    }

    /// TLS without the SNI. What was wrong with it is counted each time, so only what has no fault is remembered.
    fn tls(&mut self, wire: Option<&Tls<'_>>, tally: &mut Tally) -> Result<Option<Arc<HopTls>>, Undecodable> {
        let Some(wire) = wire else { return Ok(None) };
        let cipher = wire.tls_cipher_suite.as_ref().map(|code| code.0);
        let (local, peer) = (&wire.local_certificate, &wire.peer_certificate);
        self.key.clear();
        self.key.extend(wire.tls_version.to_le_bytes());
        self.key.extend(cipher.map_or([0xff; 8], |suite| u64::from(suite).to_le_bytes()));
        self.key.extend(local.bytes.len().to_le_bytes());
        self.key.extend_from_slice(&local.bytes);
        self.key.extend_from_slice(&peer.bytes);
        if let Some(known) = self.tls.get(&self.key) {
            return Ok(known);
        }
        let mut faults = Tally::default();
        let new = details::tls(wire.tls_version, cipher, &local.certificate()?, &peer.certificate()?, &mut faults);
        let new = new.map(Arc::new);
        if faults.fields(tally) == 0 {
            self.tls.put(&self.key, &new);
        }
        Ok(new)
    }

    /// The first of these that says who it is.
    fn peer(&mut self, encoded: [Option<EncodedPeer<'_>>; 3], tally: &mut Tally) -> Option<Arc<Peer>> {
        encoded.into_iter().flatten().find_map(|encoded| {
            self.key.clear();
            self.key.extend_from_slice(encoded.type_url.as_bytes());
            self.key.push(0);
            self.key.extend_from_slice(encoded.value);
            if let Some(known) = self.peers.get(&self.key) {
                return known;
            }
            let mut faults = Tally::default();
            let new = details::peer(encoded, &mut faults).map(Arc::new);
            if faults.fields(tally) == 0 {
                self.peers.put(&self.key, &new);
            }
            new
        })
    }

    fn failure(&mut self, reasons: [&str; 3], tally: &mut Tally) -> Option<Box<HopFailure>> {
        if reasons == [""; 3] {
            return None;
        }
        let [upstream_transport_failure_reason, downstream_transport_failure_reason, connection_termination_details] =
            reasons.map(|reason| self.name(reason, tally));
        Some(Box::new(HopFailure {
            upstream_transport_failure_reason,
            downstream_transport_failure_reason,
            connection_termination_details,
        }))
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
        let bytes = &mut hop.details.bytes;
        bytes.request_headers_bytes = details::bytes(request.request_headers_bytes);
        bytes.upstream_header_bytes_sent = details::bytes(request.upstream_header_bytes_sent);
        bytes.downstream_header_bytes_received = details::bytes(request.downstream_header_bytes_received);
    }

    fn response(&mut self, response: &view::Response<'_>, hop: &mut HopSide, tally: &mut Tally) {
        hop.response_code = response_code(response.response_code.0, tally);
        hop.response_code_details = self.name(response.response_code_details, tally);
        hop.response_body_bytes = response.response_body_bytes;
        let bytes = &mut hop.details.bytes;
        bytes.response_headers_bytes = details::bytes(response.response_headers_bytes);
        bytes.upstream_header_bytes_received = details::bytes(response.upstream_header_bytes_received);
        bytes.downstream_header_bytes_sent = details::bytes(response.downstream_header_bytes_sent);
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
