//! Access log entries into the rows of a [`LogBatch`].

use super::details::{self, EncodedPeer};
use super::known::KnownKinds;
use super::reader::{Reader, Undecodable};
use super::rows::Rows;
use super::skim::Skim;
use super::view::{self, Address, Common, Message, Tls};
use super::{EntryKind, InvalidEntry, InvalidField, side, time};
use crate::intern::{Memo, cut};
use crate::stats::{Tally, counted};
use envoy_types::pb::envoy::config::core::v3::RequestMethod;
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogType as WireType, http_access_log_entry::HttpVersion};
use meshdiff_model::{
    AccessLogType, DownstreamDirectRemoteAddr, DownstreamLocalAddr, HopProtocol, HopTls, LogBatch, LogId, LogKind,
    LogRow, LogSizes, LogStreamId, Peer, Place, Proxy, uuid_of,
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

/// Turns entries into the rows of a batch.
#[derive(Debug)]
pub(crate) struct EntryDecoder {
    pub(super) rows: Rows,
    pub(super) kinds: KnownKinds,
    tls: Memo<Option<Arc<HopTls>>>,
    peers: Memo<Option<Arc<Peer>>>,
    key: Vec<u8>,
}

impl EntryDecoder {
    pub(crate) fn new() -> Self {
        Self {
            rows: Rows::new(),
            kinds: KnownKinds::new(),
            tls: Memo::new(REMEMBERED),
            peers: Memo::new(REMEMBERED),
            key: Vec::new(),
        }
    }

    /// How often an entry was of a kind that was known.
    pub(crate) const fn found(&self) -> u64 {
        self.kinds.found
    }

    /// How many rows there are.
    pub(crate) const fn len(&self) -> usize {
        self.rows.batch.len()
    }

    /// The rows that were decoded since they were last taken.
    pub(crate) fn take(&mut self) -> LogBatch {
        self.rows.take()
    }

    /// Begins with the entries of a proxy's message.
    pub(crate) fn begin(&mut self, proxy: &Proxy) {
        self.rows.node = self.rows.text_at(&proxy.node.0);
    }

    /// Decodes one entry of the proxy that was [begun](Self::begin) with, and appends it; returns whether it is terminal. One that is
    /// not, and whatever is wrong with one that is kept, are counted in `tally`.
    ///
    /// # Errors
    /// If the entry cannot be used. The caller counts it.
    pub(crate) fn decode(
        &mut self,
        kind: EntryKind,
        bytes: &[u8],
        proxy: &Proxy,
        tally: &mut Tally,
    ) -> Result<bool, InvalidEntry> {
        let mut skim = Skim::default();
        if skim.read(kind, bytes).is_err() {
            return self.whole(kind, bytes, proxy, tally);
        }
        if let Some(terminal) = self.known(&skim, proxy, tally) {
            return Ok(terminal);
        }
        let faults = tally.faults();
        let terminal = self.whole(kind, bytes, proxy, tally)?;
        if tally.faults() == faults {
            self.learn(&skim);
        }
        Ok(terminal)
    }

    /// The same with all fields looked at.
    fn whole(&mut self, kind: EntryKind, bytes: &[u8], proxy: &Proxy, tally: &mut Tally) -> Result<bool, InvalidEntry> {
        let undecodable = |Undecodable| InvalidEntry::Undecodable;
        match kind {
            EntryKind::Http => {
                let mut entry = view::Http::default();
                entry.merge(Reader::new(bytes)).map_err(undecodable)?;
                let common = entry.common.as_ref().ok_or(InvalidEntry::MissingCommonProperties)?;
                let tls = self.tls(common.tls_properties.as_ref(), tally).map_err(undecodable)?;
                let protocol = protocol(entry.protocol_version, tally);
                let (mut kind, mut sizes, mut row) = self.common(common, protocol, tls, proxy, tally)?;
                let request = &entry.request;
                if let Some(name) = method(request.request_method, tally) {
                    kind.method = self.rows.text_at(name);
                }
                kind.authority = self.rows.name(request.authority, tally);
                row.path = self.rows.text(without_query(request.path), MAX_PATH, tally);
                (row.request_id, row.stream_id) = self.ids(request.request_id, common.stream_id, tally);
                let response = &entry.response;
                kind.response_code = response_code(response.response_code.0, tally);
                kind.response_code_details = self.rows.name(response.response_code_details, tally);
                sizes.request_body = request.request_body_bytes;
                sizes.response_body = response.response_body_bytes;
                sizes.counts[4] = response.downstream_header_bytes_sent;
                sizes.counts[5] = request.downstream_header_bytes_received;
                sizes.counts[6] = request.upstream_header_bytes_sent;
                sizes.counts[7] = response.upstream_header_bytes_received;
                sizes.counts[8] = request.request_headers_bytes;
                sizes.counts[9] = response.response_headers_bytes;
                self.rows.push(&kind, &sizes, row);
                Ok(kind.access_log_type.is_terminal())
            }
            EntryKind::Tcp => {
                let mut entry = view::Tcp::default();
                entry.merge(Reader::new(bytes)).map_err(undecodable)?;
                let common = entry.common.as_ref().ok_or(InvalidEntry::MissingCommonProperties)?;
                let tls = self.tls(common.tls_properties.as_ref(), tally).map_err(undecodable)?;
                let (kind, mut sizes, mut row) = self.common(common, HopProtocol::Tcp, tls, proxy, tally)?;
                row.stream_id = self.stream_id(common.stream_id, tally);
                sizes.request_body = entry.connection.received_bytes;
                sizes.response_body = entry.connection.sent_bytes;
                self.rows.push(&kind, &sizes, row);
                Ok(kind.access_log_type.is_terminal())
            }
        }
    }

    /// The ids of an HTTP entry.
    pub(super) fn ids(&mut self, request: &str, stream: &str, tally: &mut Tally) -> (LogId, LogStreamId) {
        // For HTTP Envoy's stream id is the request id (`stream_info.getStreamIdProvider()`).
        let stream = shortened(stream, MAX_ID, tally);
        let id = shortened(request, MAX_ID, tally).or(stream);
        let request_id = id.map_or(LogId::None, |id| match uuid_of(id.as_bytes()) {
            Some(uuid) => LogId::Uuid(uuid),
            None => LogId::Text(self.rows.text_at(id)),
        });
        let stream_id = match stream {
            None => LogStreamId::None,
            same if same == id => LogStreamId::Same,
            Some(other) => LogStreamId::Text(self.rows.text_at(other)),
        };
        (request_id, stream_id)
    }

    /// The id of a TCP entry.
    pub(super) fn stream_id(&mut self, stream: &str, tally: &mut Tally) -> LogStreamId {
        let id = shortened(stream, MAX_ID, tally);
        id.map_or(LogStreamId::None, |id| LogStreamId::Text(self.rows.text_at(id)))
    }

    /// What entries of both kinds have in common. Nothing can go wrong with it any more.
    #[inline]
    fn common(
        &mut self,
        common: &Common<'_>,
        protocol: HopProtocol,
        tls: Option<Arc<HopTls>>,
        proxy: &Proxy,
        tally: &mut Tally,
    ) -> Result<(LogKind, LogSizes, LogRow), InvalidEntry> {
        let start_time = time::wall_time(common.start_time.ok_or(InvalidEntry::MissingStartTime)?)?;
        let access_log_type = log_type(common.access_log_type, common.intermediate_log_entry, tally);
        let mut addr = |wire: &Option<Address<'_>>| optional(wire.as_ref().map(Address::socket_addr), tally);
        let direct = addr(&common.downstream_direct_remote_address);
        let remote = addr(&common.downstream_remote_address);
        let local = addr(&common.downstream_local_address);
        let upstream_local = addr(&common.upstream_local_address);
        let upstream_remote = addr(&common.upstream_remote_address);
        let (upstream_local_ip, upstream_local_port) = self.rows.addr(upstream_local);
        let downstream_peer = self.peer(common.filter_state_objects.downstream, tally);
        let upstream_peer = self.peer(common.filter_state_objects.upstream, tally);
        let tags = details::tags(common.custom_tags.0, tally);
        let (spans, present) = spans(common, tally);
        let rows = &mut self.rows;
        let kind = LogKind {
            node: rows.node,
            side: side::side(
                common.upstream_cluster,
                proxy,
                direct.map(DownstreamDirectRemoteAddr),
                local.map(DownstreamLocalAddr),
            ),
            protocol,
            access_log_type,
            downstream_local: rows.addr(local),
            upstream_local_ip,
            upstream_remote: rows.addr(upstream_remote),
            upstream_cluster: rows.name(common.upstream_cluster, tally),
            route_name: rows.name(common.route_name, tally),
            attempts: Some(common.upstream_request_attempt_count).filter(|&n| n > 0),
            flags: rows.flags(common.response_flags),
            method: Place::NONE,
            authority: Place::NONE,
            response_code: None,
            response_code_details: Place::NONE,
            tls_sni_hostname: match &common.tls_properties {
                Some(tls) => rows.name(tls.tls_sni_hostname, tally),
                None => Place::NONE,
            },
            downstream_tls: common.tls_properties.is_some(),
            tls: rows.tls(tls),
            downstream_peer: rows.peer(downstream_peer),
            upstream_peer: rows.peer(upstream_peer),
            failure: [
                common.upstream_transport_failure_reason,
                common.downstream_transport_failure_reason,
                common.connection_termination_details,
            ]
            .map(|reason| rows.name(reason, tally)),
        };
        let sizes = LogSizes {
            request_body: 0,
            response_body: 0,
            counts: [
                common.downstream_wire_bytes_sent,
                common.downstream_wire_bytes_received,
                common.upstream_wire_bytes_sent,
                common.upstream_wire_bytes_received,
                0,
                0,
                0,
                0,
                0,
                0,
            ],
        };
        let row = LogRow {
            kind: 0,
            sizes: 0,
            start_time,
            spans,
            present,
            downstream_direct_remote: rows.addr(direct),
            downstream_remote: rows.addr(remote),
            upstream_local_port,
            path: Place::NONE,
            request_id: LogId::None,
            stream_id: LogStreamId::None,
            tags: rows.tags(tags),
        };
        Ok((kind, sizes, row))
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
}

/// The spans in the order of [`HopTimings`](meshdiff_model::HopTimings), and which of them are there.
#[inline]
fn spans(common: &Common<'_>, tally: &mut Tally) -> ([i64; 8], u8) {
    let wire = [
        common.time_to_last_rx_byte,
        common.time_to_first_upstream_tx_byte,
        common.time_to_last_upstream_tx_byte,
        common.time_to_first_upstream_rx_byte,
        common.time_to_last_upstream_rx_byte,
        common.time_to_first_downstream_tx_byte,
        common.time_to_last_downstream_tx_byte,
        common.duration,
    ];
    let (mut spans, mut present) = ([0; 8], 0);
    for (n, wire) in wire.into_iter().enumerate() {
        if let Some(span) = optional(wire.map(time::duration), tally) {
            spans[n] = span.0;
            present |= 1 << n;
        }
    }
    (spans, present)
}

/// A path up to its query or fragment.
#[inline]
pub(super) fn without_query(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.map_or(path, |end| &path[..end])
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
