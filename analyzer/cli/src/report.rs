//! `report` and `requests`: from a capture to text.

use crate::analysis::{Analysis, Need, analyse};
use crate::args::{Format, ReportArgs, RequestsArgs};
use crate::exit::Failure;
use anyhow::Context;
use meshdiff_analyzer::ReportInput;
use meshdiff_model::WallTime;
use meshdiff_reports::table::TableOptions;
use meshdiff_reports::{ReportMeta, html, json, markdown, requests, table};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

/// `meshdiff report`.
pub(crate) fn report(args: &ReportArgs) -> Result<(), Failure> {
    let format = format_of(args)?;
    let analysis = analyse(&args.source, Need::RequestsOrLines)?;
    crate::otlp::export(&args.otlp, &analysis)?;
    let meta = meta(&analysis);
    let input = ReportInput {
        window: analysis.window,
        namespace: analysis.namespace.clone(),
        probe_tier: Some(analysis.data.meta.probes.tier),
        probe_stats: analysis.data.meta.probes.stats,
        notes: analysis.notes.clone(),
        missing_metrics: analysis.missing_metrics.clone(),
        clock: analysis.data.meta.clock.clone(),
    };
    let report = meshdiff_analyzer::report(&analysis.requests, &analysis.mesh, input);
    let render = |out: &mut dyn Write, terminal: bool| {
        let mut out = BufWriter::new(out);
        match format {
            Format::Table => {
                let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
                let width = terminal.then(terminal_width).flatten();
                table::write(&report, &meta, &TableOptions { width, colour, wide: args.wide }, &mut out)?;
            }
            Format::Html => html::write(&report, &meta, &mut out)?,
            Format::Json => json::write(&report, &meta, &mut out)?,
            Format::Markdown => markdown::write(&report, &meta, &mut out)?,
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

fn meta(analysis: &Analysis) -> ReportMeta {
    let capture = &analysis.data.meta;
    ReportMeta {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        generated: now(),
        source: analysis.source.clone(),
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
