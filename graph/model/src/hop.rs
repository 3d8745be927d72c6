//! What one Envoy says of one request: an access log entry, with Envoy's field names.

use crate::{
    DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopDetails, NodeId, RequestId,
    UpstreamLocalAddr, UpstreamRemoteAddr, WallTime,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// On which side of the hop the reporting proxy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The caller's sidecar (Istio's outbound listener).
    Client,
    /// The callee's sidecar (Istio's inbound listener).
    Server,
}

/// The protocol of the logged stream (`HTTPAccessLogEntry.protocol_version`, or TCP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HopProtocol {
    /// HTTP whose version Envoy did not say.
    #[serde(rename = "http")]
    Http,
    /// HTTP/1.0.
    #[serde(rename = "http/1.0")]
    Http10,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http11,
    /// HTTP/2.
    #[serde(rename = "http/2")]
    Http2,
    /// gRPC, over HTTP/2. No access log says so: the frames do.
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP/3.
    #[serde(rename = "http/3")]
    Http3,
    /// A TCP connection.
    #[serde(rename = "tcp")]
    Tcp,
}

impl HopProtocol {
    /// The name in reports, as it serialises.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http10 => "http/1.0",
            Self::Http11 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
            Self::Http3 => "http/3",
            Self::Tcp => "tcp",
        }
    }
}

/// When Envoy wrote the entry (`AccessLogType`). Only terminal entries count as requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogType {
    /// Not set: Envoy before 1.26, or a logger that does not say. Treated as terminal.
    NotSet,
    /// The downstream stream ended: terminal.
    DownstreamEnd,
    /// The TCP connection ended: terminal.
    TcpConnectionEnd,
    /// An attempt upstream ended (the router's `upstream_log`): one for each attempt, beside the request's own entry.
    UpstreamEnd,
    /// The TCP proxy is connected upstream.
    TcpUpstreamConnected,
    /// How a TCP connection does that is still open.
    TcpPeriodic,
    /// A TCP connection was accepted.
    TcpConnectionStart,
    /// A request's headers have come.
    DownstreamStart,
    /// How a request does that has not ended.
    DownstreamPeriodic,
    /// An attempt has its upstream connection.
    UpstreamPoolReady,
    /// How an attempt does that has not ended.
    UpstreamPeriodic,
    /// A tunnel (CONNECT) was established.
    DownstreamTunnelSuccessfullyEstablished,
    /// A UDP session has its upstream.
    UdpTunnelUpstreamConnected,
    /// How a UDP session does that has not ended.
    UdpPeriodic,
    /// A UDP session ended.
    UdpSessionEnd,
    /// Envoys before 1.26 have no types: not the last entry of its stream (`intermediate_log_entry`).
    Intermediate,
    /// A number that this version of the API does not name.
    Other,
}

impl AccessLogType {
    /// True if the entry stands for a request (or TCP connection) that has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::NotSet | Self::DownstreamEnd | Self::TcpConnectionEnd)
    }

    /// True if the entry tells of something that has ended: a request, a connection, or one attempt at a request.
    #[must_use]
    pub const fn tells_of_an_end(self) -> bool {
        self.is_terminal() || matches!(self, Self::UpstreamEnd)
    }
}

/// Envoy's own timings: spans of its steady clock from the stream's start, in nanoseconds (`AccessLogCommon`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HopTimings {
    /// The request's end was decoded, before any filter ran.
    pub time_to_last_rx_byte: Option<DurationNs>,
    /// The request's headers were encoded upstream (includes filters, pool wait, connect, TLS; excludes the socket write).
    pub time_to_first_upstream_tx_byte: Option<DurationNs>,
    /// The request's end was encoded upstream.
    pub time_to_last_upstream_tx_byte: Option<DurationNs>,
    /// The response's headers were parsed.
    pub time_to_first_upstream_rx_byte: Option<DurationNs>,
    /// The response's end was decoded.
    pub time_to_last_upstream_rx_byte: Option<DurationNs>,
    /// Before the response was encoded downstream.
    pub time_to_first_downstream_tx_byte: Option<DurationNs>,
    /// The response was encoded downstream; absent on reset.
    pub time_to_last_downstream_tx_byte: Option<DurationNs>,
    /// Total duration of the stream or connection (`duration`, Envoy 1.24 and later).
    pub duration: Option<DurationNs>,
}

impl HopTimings {
    /// Every span that it gives, as something makes it.
    #[must_use]
    pub fn map(self, mut with: impl FnMut(DurationNs) -> DurationNs) -> Self {
        Self {
            time_to_last_rx_byte: self.time_to_last_rx_byte.map(&mut with),
            time_to_first_upstream_tx_byte: self.time_to_first_upstream_tx_byte.map(&mut with),
            time_to_last_upstream_tx_byte: self.time_to_last_upstream_tx_byte.map(&mut with),
            time_to_first_upstream_rx_byte: self.time_to_first_upstream_rx_byte.map(&mut with),
            time_to_last_upstream_rx_byte: self.time_to_last_upstream_rx_byte.map(&mut with),
            time_to_first_downstream_tx_byte: self.time_to_first_downstream_tx_byte.map(&mut with),
            time_to_last_downstream_tx_byte: self.time_to_last_downstream_tx_byte.map(&mut with),
            duration: self.duration.map(&mut with),
        }
    }

    /// The longest span that the entry gives: how long the stream lived, as far as Envoy says.
    #[must_use]
    pub fn extent(&self) -> Option<DurationNs> {
        [
            self.duration,
            self.time_to_last_downstream_tx_byte,
            self.time_to_first_downstream_tx_byte,
            self.time_to_last_upstream_rx_byte,
            self.time_to_first_upstream_rx_byte,
            self.time_to_last_upstream_tx_byte,
            self.time_to_first_upstream_tx_byte,
            self.time_to_last_rx_byte,
        ]
        .into_iter()
        .flatten()
        .max()
    }
}

/// One proxy's half of one hop: an access log entry. Field names are Envoy's. No header value but the request id
/// is kept, and no query string; the two certificates' names are the peers' own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HopSide {
    /// Who reports.
    pub node: NodeId,
    /// Client's or server's sidecar: by cluster name (`outbound|…`, `inbound|…`, `PassthroughCluster`,
    /// `InboundPassthroughCluster`), else by whether the downstream peer is the proxy's own pod; `None` where neither tells.
    pub side: Option<Side>,
    /// Protocol of the downstream stream.
    pub protocol: HopProtocol,
    /// When the entry was written.
    pub access_log_type: AccessLogType,
    /// The stream's creation, wall clock of the proxy's node, in whole µs.
    pub start_time: WallTime,
    /// Spans from `start_time`.
    pub timings: HopTimings,
    /// The application's connection to this sidecar, or the peer sidecar's: join key.
    pub downstream_direct_remote_address: Option<DownstreamDirectRemoteAddr>,
    /// May have been rewritten by X-Forwarded-For.
    pub downstream_remote_address: Option<DownstreamRemoteAddr>,
    /// Where the peer wanted to go.
    pub downstream_local_address: Option<DownstreamLocalAddr>,
    /// Envoy's end of the last attempt's upstream connection: join key.
    pub upstream_local_address: Option<UpstreamLocalAddr>,
    /// The last attempt's upstream host.
    pub upstream_remote_address: Option<UpstreamRemoteAddr>,
    /// For instance `outbound|9080||reviews.default.svc.cluster.local`.
    pub upstream_cluster: Option<Arc<str>>,
    /// Envoy's route name.
    pub route_name: Option<Arc<str>>,
    /// Attempts upstream, 1 without a retry; `None` where Envoy does not say.
    pub upstream_request_attempt_count: Option<u32>,
    /// Envoy's short response flags (`UF`, `URX`, `DC` …), sorted.
    pub response_flags: Vec<Arc<str>>,
    /// `x-request-id`.
    pub request_id: Option<RequestId>,
    /// `stream_id` of the entry (equals the request id for HTTP).
    pub stream_id: Option<Arc<str>>,
    /// Request method; `None` for TCP.
    pub method: Option<Arc<str>>,
    /// `:authority`.
    pub authority: Option<Arc<str>>,
    /// Path without its query string.
    pub path: Option<Arc<str>>,
    /// Status code; `None` for TCP or when no response began.
    pub response_code: Option<u16>,
    /// Envoy's reason for the status (`via_upstream`, `route_not_found` …).
    pub response_code_details: Option<Arc<str>>,
    /// Request body, bytes.
    pub request_body_bytes: u64,
    /// Response body, bytes.
    pub response_body_bytes: u64,
    /// SNI of the downstream TLS connection, where there is one.
    pub tls_sni_hostname: Option<Arc<str>>,
    /// True if the downstream connection was TLS.
    pub downstream_tls: bool,
    /// What else it says.
    #[serde(default)]
    pub details: HopDetails,
}

impl HopSide {
    /// An entry that says who wrote it and when, of what kind, and nothing else.
    #[must_use]
    pub fn bare(node: NodeId, protocol: HopProtocol, access_log_type: AccessLogType, start_time: WallTime) -> Self {
        Self {
            node,
            side: None,
            protocol,
            access_log_type,
            start_time,
            timings: HopTimings::default(),
            downstream_direct_remote_address: None,
            downstream_remote_address: None,
            downstream_local_address: None,
            upstream_local_address: None,
            upstream_remote_address: None,
            upstream_cluster: None,
            route_name: None,
            upstream_request_attempt_count: None,
            response_flags: Vec::new(),
            request_id: None,
            stream_id: None,
            method: None,
            authority: None,
            path: None,
            response_code: None,
            response_code_details: None,
            request_body_bytes: 0,
            response_body_bytes: 0,
            tls_sni_hostname: None,
            downstream_tls: false,
            details: HopDetails::default(),
        }
    }

    /// True if Envoy answered by itself: nothing was ever sent to an upstream host. It may have chosen one and have failed to
    /// connect to it.
    #[must_use]
    pub const fn answered_by_itself(&self) -> bool {
        self.upstream_local_address.is_none()
            && (self.upstream_remote_address.is_none() || self.timings.time_to_first_upstream_tx_byte.is_none())
    }

    /// True if Envoy's short flag is among those of the entry.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.response_flags.iter().any(|f| &**f == flag)
    }
}
