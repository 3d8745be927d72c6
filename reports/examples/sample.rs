//! Writes a sample report: `cargo run -p meshdiff-reports --example sample -- FORMAT SAMPLE FILE`, where FORMAT is html,
//! json, markdown, table, wide or requests, and SAMPLE is bookinfo, zones, forty, two, old, limited, hostile or empty.

#[path = "../tests/reports/support/mod.rs"]
mod support;

use meshdiff_reports::{RenderError, html, json, markdown, requests, table};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [format, sample, path] = &args[..] else {
        eprintln!("usage: sample FORMAT SAMPLE FILE");
        return ExitCode::from(2);
    };
    match run(format, sample, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run(format: &str, sample: &str, path: &str) -> Result<(), RenderError> {
    let report = match sample {
        "zones" => support::broken_down(&support::bookinfo(), 2_000, &meshdiff_analyzer::Dimension::ALL),
        "bookinfo" => {
            let mut report = support::simulate(&support::bookinfo(), 2_000);
            report.findings = support::findings();
            report
        }
        "forty" => support::simulate(&support::forty(), 600),
        "two" => support::simulate(&support::bookinfo()[..2].iter().map(alone).collect::<Vec<_>>(), 400),
        "old" => {
            let mut report = support::simulate(&support::bookinfo(), 400);
            support::without_metrics(&mut report);
            report
        }
        "limited" => support::limited(),
        "hostile" => support::hostile(),
        _ => support::empty(),
    };
    let meta = support::meta();
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    match format {
        "html" => html::write(&report, &meta, &mut out),
        "json" => json::write(&report, &meta, &mut out),
        "markdown" => markdown::write(&report, &meta, &mut out),
        "requests" => requests::write_lines(&report.slowest, true, &mut out),
        "table" => {
            let options = table::TableOptions { width: Some(100), colour: true, wide: false };
            table::write(&report, &meta, &options, &mut out)
        }
        _ => {
            let options = table::TableOptions { width: Some(180), colour: false, wide: true };
            table::write(&report, &meta, &options, &mut out)
        }
    }
}

/// The service without calls to services that are not there.
fn alone(s: &support::Service) -> support::Service {
    support::Service {
        name: s.name.clone(),
        namespace: s.namespace.clone(),
        calls: s.calls.iter().copied().filter(|(to, _)| *to < 2).collect(),
        ..*s
    }
}
