//! From joined hops to results: the attribution of each request's time, statistics over requests, the report's
//! content and findings. Pure: no input, no output, no clock.

mod attribute;
mod report;
mod request;

pub use attribute::{attribute, coverage};
pub use report::{
    ConnectionSummary, Coverage, Distribution, Finding, HopSummary, Level, NearQuantile, Part, PartKind, Place, Report,
    SegmentStats, Verdict,
};
pub use request::{AttributedRequest, CoverageClass, RequestCoverage, Sides, SocketRef, Vantage};
