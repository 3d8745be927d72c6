//! From an [`analyzer::Report`](meshdiff_analyzer::Report) to what people and programs read: HTML, JSON, Markdown, a
//! terminal table, and a line of NDJSON per request. One exporter, one file.
//!
//! The same report and the same [`ReportMeta`] give the same bytes: nothing here reads a clock, the environment or a
//! random number. Names and paths are hostile: every exporter escapes them for its format.

pub mod html;
pub mod json;
pub mod markdown;
pub mod otlp;
pub mod requests;
pub mod table;

mod breakdown;
mod clocks;
mod lines;
mod safe;
mod summary;
mod text;
mod verdict;
mod wire;

use meshdiff_model::WallTime;

/// The report's schema, as JSON and HTML name it.
pub const REPORT_SCHEMA: &str = "meshdiff.report/v1";

/// What a report says of its own making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportMeta {
    /// Version of the tool that renders.
    pub tool_version: String,
    /// When the report was made.
    pub generated: WallTime,
    /// Where the data comes from, for instance `capture DIR`.
    pub source: String,
    /// The command line that made it, if it shall be shown.
    pub command: Option<String>,
    /// Kernel release of the recorded machine.
    pub kernel: Option<String>,
    /// Versions of the Envoys that logged.
    pub envoy_versions: Vec<String>,
    /// Identity of the capture.
    pub capture_id: Option<String>,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The output refused it.
    #[error("cannot write the report: {0}")]
    Write(#[from] std::io::Error),
    /// A template failed: a defect of meshdiff.
    #[error("cannot fill in the HTML report: {0}: this is a defect in meshdiff, please report it")]
    Template(#[from] askama::Error),
    /// A value has no JSON: a defect of meshdiff.
    #[error("cannot turn the report into JSON: {0}: this is a defect in meshdiff, please report it")]
    Json(#[from] serde_json::Error),
}
