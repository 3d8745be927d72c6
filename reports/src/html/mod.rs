//! One self-contained HTML file: no request leaves it, and everything essential is there without its script.
//!
//! What can be computed is computed here, so that templates only place text; askama escapes every value. The page
//! forbids all network by its content security policy, and allows one script by its hash.

mod bars;
mod breakdowns;
mod charts;
mod hops;
mod layout;
mod lines;
mod numbers;
mod overview;
mod processes;
mod topology;
mod waterfall;

use crate::{REPORT_SCHEMA, RenderError, ReportMeta, json, safe, text};
use askama::Template;
use base64::Engine;
use meshdiff_analyzer::Report;
use meshdiff_model::Segment;
use sha2::{Digest, Sha256};
use std::io::Write;

/// Hops drawn; the rest is counted and in the JSON.
pub(crate) const MAX_HOPS: usize = 200;
/// Waterfalls drawn; the rest is counted and in the JSON.
pub(crate) const MAX_WATERFALLS: usize = 20;
/// Lines of the connections' table; the rest is counted and in the JSON.
pub(crate) const MAX_CONNECTIONS: usize = 300;

const STYLE: &str = include_str!("../../templates/report.css");
const SCRIPT: &str = include_str!("../../templates/report.js");

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: String,
    style: &'static str,
    script: &'static str,
    script_hash: String,
    data: String,
    window: (String, String),
    window_length: String,
    namespace: Option<String>,
    verdict: overview::VerdictView,
    coverage: overview::CoverageView,
    topology: Option<topology::TopologyView>,
    hops: hops::HopsView,
    breakdowns: Vec<breakdowns::BreakdownView>,
    waterfalls: waterfall::WaterfallsView,
    findings: Vec<overview::FindingView>,
    processes: Option<processes::ProcessesView>,
    lines: Vec<lines::LineView>,
    connections: overview::ConnectionsView,
    legend: Vec<bars::LegendEntry>,
    definitions: Vec<(&'static str, &'static str, &'static str)>,
    facts: Vec<(&'static str, String)>,
    meta: &'a ReportMeta,
}

/// Writes the report as one HTML page.
///
/// # Errors
/// If `out` refuses it.
pub fn write(report: &Report, meta: &ReportMeta, out: &mut impl Write) -> Result<(), RenderError> {
    let (from, to) = report.window;
    let drawn = processes::drawn(&report.lines);
    let page = Page {
        title: title(report),
        style: STYLE,
        script: SCRIPT,
        script_hash: base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT)),
        data: safe::json_in_html(&json::compact(report, meta)?),
        window: (text::instant(from), text::instant(to)),
        window_length: text::duration(meshdiff_model::DurationNs(to.0.saturating_sub(from.0))),
        namespace: report.namespace.as_deref().map(safe::visible),
        verdict: overview::VerdictView::of(report),
        coverage: overview::CoverageView::of(&report.coverage),
        topology: topology::TopologyView::of(&report.hops),
        hops: hops::HopsView::of(&report.hops),
        breakdowns: breakdowns::all(&report.breakdowns),
        waterfalls: waterfall::WaterfallsView::of(&report.slowest),
        findings: report.findings.iter().map(overview::FindingView::of).collect(),
        processes: processes::ProcessesView::of(&report.lines),
        lines: drawn.iter().map(|&i| lines::LineView::of(i, &report.lines[i])).collect(),
        connections: overview::ConnectionsView::of(report, &drawn),
        legend: bars::legend(&report.hops),
        definitions: Segment::ALL.map(|s| (s.as_str(), text::segment(s), text::definition(s))).to_vec(),
        facts: facts(report, meta),
        meta,
    };
    out.write_all(page.render()?.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

fn title(report: &Report) -> String {
    match &report.verdict {
        Some(v) => format!(
            "{} from {} to {} · meshdiff",
            text::duration(v.mean_total),
            text::workload(&v.client),
            text::workload(&v.server)
        ),
        None => "Too little data · meshdiff".into(),
    }
}

fn facts(report: &Report, meta: &ReportMeta) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Tool", format!("meshdiff {}", safe::visible(&meta.tool_version))),
        ("Schema", REPORT_SCHEMA.to_owned()),
        ("Source", safe::visible(&meta.source)),
        ("Window", format!("{} to {}", text::rfc3339(report.window.0), text::rfc3339(report.window.1))),
        ("Made", text::rfc3339(meta.generated)),
    ];
    let mut add = |name, value: Option<&str>| {
        if let Some(value) = value {
            facts.push((name, safe::visible(value)));
        }
    };
    add("Command", meta.command.as_deref());
    add("Capture", meta.capture_id.as_deref());
    add("Kernel", meta.kernel.as_deref());
    let envoys = meta.envoy_versions.join(", ");
    add("Envoy", (!envoys.is_empty()).then_some(envoys.as_str()));
    facts
}
