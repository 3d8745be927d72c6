//! The vocabulary that every other package speaks: clocks, addresses, socket and proxy identities, what the kernel saw
//! ([`Message`]), what an Envoy said ([`HopSide`]), and what follows from both ([`Attribution`]).
//!
//! Nothing here does input or output, and nothing here knows a wire format: decoders live in the packages that own
//! the wire, and convert at their door.

mod addr;
mod attribution;
mod clock;
mod coverage;
mod estimate;
mod flow;
mod histogram;
mod hop;
mod hop_details;
mod http2;
mod ids;
mod instants;
mod join;
mod joined;
mod life;
mod log_batch;
mod message;
mod metrics;
mod pod;
mod process;
mod proxy;
mod segment;
mod seq;
mod socket;
mod tls;

pub use addr::{
    DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, LocalAddr, PeerAddr, UpstreamLocalAddr,
    UpstreamRemoteAddr, normalise_ip,
};
pub use attribution::{Attribution, AttributionBuilder, AttributionError, Detail, Evidence, Span};
pub use clock::{ClockAnchor, ClockSample, DurationNs, MonotonicNs, WallTime};
pub use coverage::{ProbeStats, ProbeTier};
pub use estimate::Estimate;
pub use flow::{Flow, Flows, Mark, Progress};
pub use histogram::{Bucket, ExponentialHistogram, HistogramError, Parts as HistogramParts};
pub use hop::{AccessLogType, HopProtocol, HopSide, HopTimings, Side};
pub use hop_details::{HopBytes, HopDetails, HopFailure, HopTags, HopTls, Peer};
pub use http2::{Http2Data, Http2Fields, Http2Gap, Http2Stream};
pub use ids::{NetnsId, NodeId, RequestId, SocketCookie, Tgid};
pub use instants::Instants;
pub use join::{AmbiguityReason, JoinOutcome, UnmatchedReason};
pub use joined::{Attempt, Crossing, JoinedHop, Link, LoggedCrossing};
pub use life::{Close, Closer, Errno, SocketRole};
pub use log_batch::{
    LogBatch, LogBatchBuilder, LogId, LogKind, LogRow, LogSizes, LogStreamId, Place, PlacedAddr, uuid_of, uuid_text,
};
pub use message::{Content, Direction, Message, SeqInstant};
pub use metrics::{DropReason, IoMetrics, Metric, SocketMetrics};
pub use pod::{Fact, Locality, NotKnown, PodFacts, PodRecord, SERVICE_LABELS, Tenure, VERSION_LABELS};
pub use process::{Process, ProcessRole};
pub use proxy::{Proxy, ProxyKind, Workload, WorkloadSource};
pub use segment::{Segment, SegmentMap};
pub use seq::{SeqNo, SeqRange};
pub use socket::{Socket, SocketEvent, SocketEventKind, TcpState};
pub use tls::{TlsInfo, TlsVersion};
