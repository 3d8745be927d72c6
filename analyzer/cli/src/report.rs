//! `report` and `requests`: from a capture to text.

use crate::analysis::{Need, analyse};
use crate::args::{Format, ReportArgs, RequestsArgs};
use crate::exit::Failure;
use crate::store::{self, SummedReport};
use crate::{by, by_parts};
use anyhow::Context;
use meshdiff_analyzer::{Report, ReportInput};
use meshdiff_capture::Meta;
use meshdiff_model::WallTime;
use meshdiff_reports::table::TableOptions;
use meshdiff_reports::{ReportMeta, html, json, markdown, requests, table};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

/// `meshdiff report`.
pub(crate) fn report(args: &ReportArgs) -> Result<(), Failure> {
    let format = format_of(args)?;
    let (report, meta) = match (summed(args)?, in_parts(args)?) {
        (Some(SummedReport { report, meta, source }), _) => (report, self::meta(&meta, &source)),
        (None, Some(report)) => report,
        (None, None) => joined(args)?,
    };
    write(args, format, &report, &meta)
}

/// A report that the store sums up, if it was asked for one of its own, and for nothing that needs single requests.
fn summed(args: &ReportArgs) -> Result<Option<SummedReport>, Failure> {
    match &args.source.store {
        Some(store) if !args.join_here && args.by.is_empty() && args.otlp.otlp.is_none() => {
            store::summed(store, &args.source)
        }
        _ => Ok(None),
    }
}

/// A report over a large capture, if nothing that was asked for needs single requests.
fn in_parts(args: &ReportArgs) -> Result<Option<(Report, ReportMeta)>, Failure> {
    let Some(path) = args.source.capture.as_ref().filter(|path| path.join("meta.json").is_file()) else {
        return Ok(None);
    };
    if !args.by.is_empty() || args.otlp.otlp.is_some() {
        return Ok(None);
    }
    let reported = by_parts::report(path, &args.source)?;
    Ok(reported.map(|by_parts::Reported { report, meta }| {
        let meta = self::meta(&meta, &format!("capture {}", path.display()));
        (report, meta)
    }))
}

/// A report of requests that are joined here.
fn joined(args: &ReportArgs) -> Result<(Report, ReportMeta), Failure> {
    let analysis = analyse(&args.source, Need::RequestsOrLines)?;
    crate::otlp::export(&args.otlp, &analysis)?;
    let meta = meta(&analysis.data.meta, &analysis.source);
    let input = ReportInput {
        window: analysis.window,
        namespace: analysis.namespace.clone(),
        probe_tier: Some(analysis.data.meta.probes.tier),
        probe_stats: analysis.data.meta.probes.stats,
        notes: [analysis.notes.clone(), by::notes(&analysis, &args.by)].concat(),
        missing_metrics: analysis.missing_metrics.clone(),
        clock: analysis.data.meta.clock.clone(),
    };
    let report = meshdiff_analyzer::report(&analysis.requests, &analysis.mesh, input)
        .with_breakdowns(by::breakdowns(&analysis, &args.by));
    Ok((report, meta))
}

fn write(args: &ReportArgs, format: Format, report: &Report, meta: &ReportMeta) -> Result<(), Failure> {
    let render = |out: &mut dyn Write, terminal: bool| {
        let mut out = BufWriter::new(out);
        match format {
            Format::Table => {
                let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
                let width = terminal.then(terminal_width).flatten();
                table::write(report, meta, &TableOptions { width, colour, wide: args.wide }, &mut out)?;
            }
            Format::Html => html::write(report, meta, &mut out)?,
            Format::Json => json::write(report, meta, &mut out)?,
            Format::Markdown => markdown::write(report, meta, &mut out)?,
        }
        out.flush()?;
        anyhow::Ok(())
    };
    match &args.output {
        None => {
            let stdout = io::stdout();
            let terminal = stdout.is_terminal();
            render(&mut stdout.lock(), terminal)?;
        }
        Some(path) => {
            write_file(path, |file| render(file, false))?;
            eprintln!("Wrote {}.", path.display());
        }
    }
    Ok(())
}

/// `meshdiff requests`.
pub(crate) fn requests(args: &RequestsArgs) -> Result<(), Failure> {
    let analysis = analyse(&args.source, Need::Requests)?;
    for note in &analysis.notes {
        eprintln!("meshdiff: note: {note}");
    }
    let mut out = BufWriter::new(io::stdout().lock());
    requests::write_lines(&analysis.requests, args.instants, &mut out)?;
    out.flush()?;
    Ok(())
}

fn format_of(args: &ReportArgs) -> Result<Format, Failure> {
    if let Some(format) = args.format {
        return Ok(format);
    }
    let Some(path) = &args.output else { return Ok(Format::Table) };
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        Some("md" | "markdown") => Ok(Format::Markdown),
        Some("txt") => Ok(Format::Table),
        _ => Err(Failure::Usage(format!(
            "the ending of {} does not tell the format: give one with --format table|html|json|markdown",
            path.display()
        ))),
    }
}

fn meta(capture: &Meta, source: &str) -> ReportMeta {
    ReportMeta {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        generated: now(),
        source: source.to_owned(),
        command: None,
        kernel: Some(capture.host.kernel_release.clone()).filter(|k| !k.is_empty()),
        envoy_versions: capture.envoy_versions.keys().cloned().collect(),
        capture_id: None,
    }
}

/// The wall clock.
fn now() -> WallTime {
    WallTime(i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX))
}

fn terminal_width() -> Option<u16> {
    terminal_size::terminal_size().map(|(width, _)| width.0)
}

/// Writes a file whole or not at all: what was there before stays until the new one is complete.
fn write_file(path: &Path, write: impl FnOnce(&mut File) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut name = path.file_name().with_context(context)?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary).with_context(context)?;
    let written = write(&mut file).and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if written.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    written.with_context(context)
}
