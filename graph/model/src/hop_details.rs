//! What an access log entry says of a hop beyond what joins and sums need. Everything here can be absent, and mostly is.

use crate::{DurationNs, HopProtocol, TlsVersion};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::Arc;

/// What a [`HopSide`](crate::HopSide) has beside its own fields. `Default` is an entry that says none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopDetails {
    /// Bytes on the wire and in headers.
    pub bytes: HopBytes,
    /// The downstream connection's TLS. One copy for all entries of one connection's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<HopTls>>,
    /// Who called, as Istio's metadata exchange told this proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_peer: Option<Arc<Peer>>,
    /// Who was called, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_peer: Option<Arc<Peer>>,
    /// What meshdiff's own custom tags say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Box<HopTags>>,
    /// Why a connection failed or was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<HopFailure>>,
}

/// Byte counts with Envoy's names. `None` stands for none as well as for not counted: the protocol has one encoding for both.
///
/// Wire bytes are those of the request on its connection, with framing and headers, and without TLS (`BytesMeter`). For a TCP proxy they are
/// the connection's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopBytes {
    /// To the caller.
    pub downstream_wire_bytes_sent: Option<NonZeroU64>,
    /// From the caller.
    pub downstream_wire_bytes_received: Option<NonZeroU64>,
    /// To the upstream host.
    pub upstream_wire_bytes_sent: Option<NonZeroU64>,
    /// From the upstream host.
    pub upstream_wire_bytes_received: Option<NonZeroU64>,
    /// Header bytes to the caller, as they were on the wire (compressed, for HTTP/2).
    pub downstream_header_bytes_sent: Option<NonZeroU64>,
    /// Header bytes from the caller, likewise.
    pub downstream_header_bytes_received: Option<NonZeroU64>,
    /// Header bytes to the upstream host, likewise.
    pub upstream_header_bytes_sent: Option<NonZeroU64>,
    /// Header bytes from the upstream host, likewise.
    pub upstream_header_bytes_received: Option<NonZeroU64>,
    /// The request's headers, names and values, as Envoy holds them.
    pub request_headers_bytes: Option<NonZeroU64>,
    /// The response's headers, likewise.
    pub response_headers_bytes: Option<NonZeroU64>,
}

/// The downstream connection's TLS (`TLSProperties`). The SNI is [`HopSide::tls_sni_hostname`](crate::HopSide::tls_sni_hostname);
/// Envoy's entries do not say which protocol ALPN chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopTls {
    /// The version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersion>,
    /// IANA's number of the cipher suite, for instance 0x1301.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher_suite: Option<u16>,
    /// Subject of the peer's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_subject: Option<String>,
    /// Alternative names of the peer's certificate, URIs (in Istio its SPIFFE identity) and DNS names, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peer_san: Vec<String>,
    /// Subject of the proxy's own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_subject: Option<String>,
    /// Alternative names of the proxy's own certificate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local_san: Vec<String>,
}

/// The workload at the other end of a connection, from Istio's metadata exchange or from endpoint metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// What kind of workload: `deployment`, `job`, `cronjob` or `pod`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_type: Option<String>,
    /// Canonical service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Canonical revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Kubernetes cluster (`CLUSTER_ID`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The label `app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The label `version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its identity (SPIFFE), where the exchange gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// What the custom tags say that meshdiff asks Envoy for (`als-ingest/README.md` has their names and formats). Used where they are,
/// and never needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopTags {
    /// Envoy's number of the downstream connection, unique in one Envoy process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<u64>,
    /// Envoy's number of the last attempt's upstream connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_connection_id: Option<u64>,
    /// How long that connection took to connect. **Repeats on every request of a reused connection**: charge it only if
    /// [`upstream_connected_after`](Self::upstream_connected_after) is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_connect: Option<DurationNs>,
    /// How long its TLS handshake took, likewise repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_handshake: Option<DurationNs>,
    /// From the request's first byte until the upstream connection was connected: there only for a request that came before it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_connected_after: Option<DurationNs>,
    /// From the request's first byte until the upstream TLS handshake was over: there only for a request that came before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ready_after: Option<DurationNs>,
    /// The protocol towards the upstream host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_protocol: Option<HopProtocol>,
}

/// Why a connection failed or was ended, in Envoy's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopFailure {
    /// For instance that the upstream host's certificate was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_transport_failure_reason: Option<Arc<str>>,
    /// The same of the downstream connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_transport_failure_reason: Option<Arc<str>>,
    /// Why Envoy ended the downstream connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_termination_details: Option<Arc<str>>,
}
