//! From joined hops to results: the attribution of each request's time, statistics over requests, the report's
//! content and findings. Pure: no input, no output, no clock.

mod analysis;
mod attribute;
mod build;
mod connection_findings;
mod connections;
mod findings;
mod report;
mod request;
mod rollup;
mod stats;

pub use analysis::attribute_all;
pub use attribute::{attribute, coverage};
pub use build::{ReportInput, report, select, select_by};
pub use connections::{
    Closes, Connects, EndMetrics, EndRole, LineEnd, LineMetrics, LineSummary, Metric, MetricsWindow, MissingMetrics,
    WINDOW, lines,
};
pub use meshdiff_graph::lines::{LineProtocol, PeerKnownBy, TlsTally};
pub use report::{
    Coverage, Distribution, Finding, HopSummary, Level, NearQuantile, Part, PartKind, Place, Report, SegmentStats,
    Verdict,
};
pub use request::{AttributedRequest, CoverageClass, RequestCoverage, Sides, SocketRef, Try, Vantage};
pub use stats::Sample;
