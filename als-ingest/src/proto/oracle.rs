//! The same conversion by way of prost's own types: the oracle that tests hold the [views](super::view) against, and the
//! measure of what they save. Nothing else uses it.

use super::details::{self, Certificate, DOWNSTREAM_PEERS, EncodedPeer, TAGS, UPSTREAM_PEERS};
use super::entry::{
    INTERNED, MAX_ID, MAX_PATH, MAX_TEXT, log_type, method, optional, protocol, response_code, shortened,
};
use super::{EntryKind, InvalidEntry, address, flags, side, time};
use crate::intern::Interner;
use crate::stats::Tally;
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties,
    certificate_properties::{SubjectAltName, subject_alt_name::San},
};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::google::protobuf::Duration;
use meshdiff_model::{
    DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopBytes, HopDetails,
    HopFailure, HopProtocol, HopSide, HopTimings, Proxy, RequestId, UpstreamLocalAddr, UpstreamRemoteAddr,
};
use prost::Message;
use std::sync::Arc;

/// Does what the [`EntryDecoder`](super::EntryDecoder) does.
#[derive(Debug)]
pub(crate) struct ProstDecoder {
    names: Interner,
    paths: Interner,
}

impl ProstDecoder {
    pub(crate) fn new() -> Self {
        Self { names: Interner::new(INTERNED), paths: Interner::new(INTERNED) }
    }

    /// Decodes one entry.
    ///
    /// # Errors
    /// If the entry cannot be used.
    pub(crate) fn decode(
        &mut self,
        kind: EntryKind,
        bytes: &[u8],
        proxy: &Proxy,
        tally: &mut Tally,
    ) -> Result<HopSide, InvalidEntry> {
        match kind {
            EntryKind::Http => {
                let entry = HttpAccessLogEntry::decode(bytes).map_err(|_| InvalidEntry::Undecodable)?;
                self.http(entry, proxy, tally)
            }
            EntryKind::Tcp => {
                let entry = TcpAccessLogEntry::decode(bytes).map_err(|_| InvalidEntry::Undecodable)?;
                self.tcp(entry, proxy, tally)
            }
        }
    }

    /// The entries of a message that prost decoded; those that cannot be used are left out.
    pub(crate) fn convert(
        &mut self,
        message: StreamAccessLogsMessage,
        proxy: &Proxy,
        tally: &mut Tally,
    ) -> Vec<HopSide> {
        match message.log_entries {
            Some(LogEntries::HttpLogs(logs)) => {
                logs.log_entry.into_iter().filter_map(|entry| self.http(entry, proxy, tally).ok()).collect()
            }
            Some(LogEntries::TcpLogs(logs)) => {
                logs.log_entry.into_iter().filter_map(|entry| self.tcp(entry, proxy, tally).ok()).collect()
            }
            None => Vec::new(),
        }
    }

    fn http(&mut self, entry: HttpAccessLogEntry, proxy: &Proxy, tally: &mut Tally) -> Result<HopSide, InvalidEntry> {
        let common = entry.common_properties.ok_or(InvalidEntry::MissingCommonProperties)?;
        let protocol = protocol(entry.protocol_version, tally);
        let mut hop = self.common(&common, protocol, proxy, tally)?;
        self.request(entry.request.unwrap_or_default(), &mut hop, tally);
        self.response(entry.response.unwrap_or_default(), &mut hop, tally);
        // For HTTP Envoy's stream id is the request id (`stream_info.getStreamIdProvider()`).
        if hop.request_id.is_none() {
            hop.request_id = hop.stream_id.clone().map(RequestId);
        }
        Ok(hop)
    }

    fn tcp(&mut self, entry: TcpAccessLogEntry, proxy: &Proxy, tally: &mut Tally) -> Result<HopSide, InvalidEntry> {
        let common = entry.common_properties.ok_or(InvalidEntry::MissingCommonProperties)?;
        let mut hop = self.common(&common, HopProtocol::Tcp, proxy, tally)?;
        let connection = entry.connection_properties.unwrap_or_default();
        hop.request_body_bytes = connection.received_bytes;
        hop.response_body_bytes = connection.sent_bytes;
        Ok(hop)
    }

    fn common(
        &mut self,
        common: &AccessLogCommon,
        protocol: HopProtocol,
        proxy: &Proxy,
        tally: &mut Tally,
    ) -> Result<HopSide, InvalidEntry> {
        let tls_properties = common.tls_properties.as_ref().and_then(|tls| {
            let suite = tls.tls_cipher_suite.map(|code| code.value);
            let (local, peer) = (&tls.local_certificate_properties, &tls.peer_certificate_properties);
            details::tls(tls.tls_version, suite, &certificate(local), &certificate(peer), tally)
        });
        let start_time = time::wall_time(common.start_time.ok_or(InvalidEntry::MissingStartTime)?)?;
        let access_log_type = log_type(common.access_log_type, intermediate(common), tally);
        let mut addr = |wire: &Option<Address>| optional(wire.as_ref().map(address::socket_addr), tally);
        let direct = addr(&common.downstream_direct_remote_address).map(DownstreamDirectRemoteAddr::normalised);
        let remote = addr(&common.downstream_remote_address).map(DownstreamRemoteAddr::normalised);
        let local = addr(&common.downstream_local_address).map(DownstreamLocalAddr::normalised);
        let upstream_local = addr(&common.upstream_local_address).map(UpstreamLocalAddr::normalised);
        let upstream_remote = addr(&common.upstream_remote_address).map(UpstreamRemoteAddr::normalised);
        let tls = common.tls_properties.as_ref();
        Ok(HopSide {
            node: proxy.node.clone(),
            side: side::side(&common.upstream_cluster, proxy, direct, local),
            protocol,
            access_log_type,
            start_time,
            timings: timings(common, tally),
            downstream_direct_remote_address: direct,
            downstream_remote_address: remote,
            downstream_local_address: local,
            upstream_local_address: upstream_local,
            upstream_remote_address: upstream_remote,
            upstream_cluster: self.name(&common.upstream_cluster, tally),
            route_name: self.name(&common.route_name, tally),
            upstream_request_attempt_count: Some(common.upstream_request_attempt_count).filter(|&n| n > 0),
            response_flags: common
                .response_flags
                .as_ref()
                .map(flags::of_prost)
                .map(flags::short_names)
                .unwrap_or_default(),
            request_id: None,
            stream_id: shortened(&common.stream_id, MAX_ID, tally).map(Into::into),
            method: None,
            authority: None,
            path: None,
            response_code: None,
            response_code_details: None,
            request_body_bytes: 0,
            response_body_bytes: 0,
            tls_sni_hostname: tls.and_then(|t| self.name(&t.tls_sni_hostname, tally)),
            downstream_tls: tls.is_some(),
            details: HopDetails { tls: tls_properties.map(Arc::new), ..self.details(common, tally) },
        })
    }

    fn details(&mut self, common: &AccessLogCommon, tally: &mut Tally) -> HopDetails {
        let mut peer = |keys: [&str; 3]| {
            let encoded = keys.into_iter().filter_map(|key| common.filter_state_objects.get(key));
            let mut encoded = encoded.map(|any| EncodedPeer { type_url: &any.type_url, value: &any.value });
            encoded.find_map(|encoded| details::peer(encoded, tally)).map(Arc::new)
        };
        let (downstream_peer, upstream_peer) = (peer(DOWNSTREAM_PEERS), peer(UPSTREAM_PEERS));
        let tags = TAGS.map(|tag| common.custom_tags.get(tag).map(String::as_str));
        let failure = HopFailure {
            upstream_transport_failure_reason: self.name(&common.upstream_transport_failure_reason, tally),
            downstream_transport_failure_reason: self.name(&common.downstream_transport_failure_reason, tally),
            connection_termination_details: self.name(&common.connection_termination_details, tally),
        };
        HopDetails {
            bytes: HopBytes {
                downstream_wire_bytes_sent: details::bytes(common.downstream_wire_bytes_sent),
                downstream_wire_bytes_received: details::bytes(common.downstream_wire_bytes_received),
                upstream_wire_bytes_sent: details::bytes(common.upstream_wire_bytes_sent),
                upstream_wire_bytes_received: details::bytes(common.upstream_wire_bytes_received),
                ..HopBytes::default()
            },
            tls: None,
            downstream_peer,
            upstream_peer,
            tags: details::tags(tags, tally).map(Box::new),
            failure: (failure != HopFailure::default()).then(|| Box::new(failure)),
        }
    }

    fn request(&mut self, request: HttpRequestProperties, hop: &mut HopSide, tally: &mut Tally) {
        hop.method = method(request.request_method, tally).map(|name| self.names.intern(name));
        hop.authority = self.name(&request.authority, tally);
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        hop.path = shortened(path, MAX_PATH, tally).map(|p| self.paths.intern(p));
        hop.request_id = shortened(&request.request_id, MAX_ID, tally).map(|id| match &hop.stream_id {
            Some(same) if **same == *id => RequestId(Arc::clone(same)),
            _ => RequestId(id.into()),
        });
        hop.request_body_bytes = request.request_body_bytes;
        let bytes = &mut hop.details.bytes;
        bytes.request_headers_bytes = details::bytes(request.request_headers_bytes);
        bytes.upstream_header_bytes_sent = details::bytes(request.upstream_header_bytes_sent);
        bytes.downstream_header_bytes_received = details::bytes(request.downstream_header_bytes_received);
    }

    fn response(&mut self, response: HttpResponseProperties, hop: &mut HopSide, tally: &mut Tally) {
        hop.response_code = response.response_code.and_then(|code| response_code(code.value, tally));
        hop.response_code_details = self.name(&response.response_code_details, tally);
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

fn certificate(wire: &Option<CertificateProperties>) -> Certificate<'_> {
    let Some(wire) = wire else { return Certificate::default() };
    fn name(name: &SubjectAltName) -> &str {
        match &name.san {
            Some(San::Uri(text) | San::Dns(text)) => text,
            None => "",
        }
    }
    Certificate { subject: &wire.subject, names: wire.subject_alt_name.iter().map(name).collect() }
}

#[expect(deprecated, reason = "what Envoys before 1.26 say")]
fn intermediate(common: &AccessLogCommon) -> bool {
    common.intermediate_log_entry
}

fn timings(common: &AccessLogCommon, tally: &mut Tally) -> HopTimings {
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
