//! From joined hops to results: the attribution of each request's time, statistics over requests, the report's
//! content and findings. Pure: no input, no output, no clock.

mod analysis;
mod attribute;
mod breakdown;
mod build;
mod connection_findings;
mod connections;
mod findings;
pub mod parts;
mod rank;
mod report;
mod request;
mod rollup;
#[cfg(test)]
mod samples;
mod stats;
mod tally;

pub use analysis::{attribute_all, attribute_hop};
pub use attribute::{attribute, coverage};
pub use breakdown::{Breakdown, BreakdownHop, BreakdownRow, Crossed, Dimension, Facts, break_down};
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
pub use tally::Tally;
