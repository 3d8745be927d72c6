//! The terminal: the verdict, coverage, and a row per hop. `wide` adds segments, details, findings' evidence and
//! connections.

use crate::safe::{shorten, visible};
use crate::verdict::{self, Trust};
use crate::{RenderError, ReportMeta, breakdown, lines, summary, text};
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use meshdiff_analyzer::{Coverage, Distribution, EndMetrics, HopSummary, Level, LineSummary, Report};
use meshdiff_model::{DurationNs, IoMetrics};
use std::io::Write;

/// How the table shall look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Columns of the terminal; `None` where there is none, so that lines are as long as they must be.
    pub width: Option<u16>,
    /// Use colours and bold type.
    pub colour: bool,
    /// Everything: more quantiles, all segments with their details, connections.
    pub wide: bool,
}

/// Below this width only the columns that matter most are shown.
const NARROW: u16 = 116;
/// Rows of hops without `wide`; the rest is counted.
const MAX_HOPS: usize = 40;
/// Rows of a breakdown without `wide`; the rest is counted.
const MAX_ROWS: usize = 80;
/// Longest subject of a finding, which may be two ends of a line.
const MAX_SUBJECT: usize = 100;
/// Longest name of a workload.
const MAX_NAME: usize = 48;

/// Writes the report for a terminal.
///
/// # Errors
/// If `out` refuses it.
pub fn write(
    report: &Report,
    meta: &ReportMeta,
    options: &TableOptions,
    out: &mut impl Write,
) -> Result<(), RenderError> {
    let style = Style { colour: options.colour };
    let sentence: String = verdict::sentence(report)
        .into_iter()
        .map(|p| if p.strong { p.text.replace(' ', "\u{a0}") } else { p.text })
        .collect();
    for line in wrap(&sentence, options.width) {
        writeln!(out, "{}", style.bold(&line.replace('\u{a0}', " ")))?;
    }
    writeln!(out)?;
    places(report, options, out)?;
    coverage(&report.coverage, options, style, out)?;
    hops(report, options, out)?;
    breakdowns(report, options, out)?;
    findings(report, options, style, out)?;
    if options.wide {
        segments(report, options, out)?;
        connections(report, options, out)?;
    }
    let source = format!(
        "{} to {}, {}, {}.",
        text::instant(report.window.0),
        text::instant(report.window.1),
        report.namespace.as_deref().map_or_else(|| "all namespaces".into(), |n| format!("namespace {}", visible(n))),
        visible(&meta.source)
    );
    for line in wrap(&source, options.width) {
        writeln!(out, "{}", style.dim(&line))?;
    }
    Ok(())
}

/// Escape sequences, only if asked for.
#[derive(Clone, Copy)]
struct Style {
    colour: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
    fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }
    fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }
}

/// Breaks at spaces so that lines fit; a word longer than a line stays whole.
fn wrap(text: &str, width: Option<u16>) -> Vec<String> {
    let width = usize::from(width.unwrap_or(u16::MAX)).max(20);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let len = word.chars().count();
        if used > 0 && used + 1 + len > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += len;
        }
    }
    lines
}

fn table(options: &TableOptions, header: &[&str], right_from: usize) -> Table {
    let mut table = Table::new();
    // Nothing but a rule under the header: rows are short, and a terminal is narrow.
    table.load_preset(presets::NOTHING);
    match options.width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    if options.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(header.iter().enumerate().map(|(i, h)| {
        let cell = Cell::new(h).set_alignment(if i >= right_from { CellAlignment::Right } else { CellAlignment::Left });
        if options.colour { cell.add_attribute(Attribute::Dim) } else { cell }
    }));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        if column.index >= right_from {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn print(table: &Table, out: &mut impl Write) -> Result<(), RenderError> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)?;
    Ok(())
}

fn name(n: &str) -> String {
    shorten(n, MAX_NAME)
}

fn places(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    let Some(v) = &report.verdict else { return Ok(()) };
    let shown = if options.wide { v.places.len() } else { 5 };
    let mut t = table(options, &["where", "what", "mean", "share"], 2);
    let names = summary::Names::of(report);
    for p in v.places.iter().take(shown) {
        t.add_row([
            name(&names.name(&p.workload)),
            text::place(p.kind).to_owned(),
            text::duration(p.mean),
            text::share(p.share),
        ]);
    }
    if v.places.len() > shown {
        t.add_row([format!("{} more with --format json", v.places.len() - shown)]);
    }
    print(&t, out)
}

fn coverage(c: &Coverage, options: &TableOptions, style: Style, out: &mut impl Write) -> Result<(), RenderError> {
    let (trust, why) = verdict::trust(c);
    let line = format!(
        "Coverage: {} of {} fully seen ({}), {} partial, {} ambiguous, {} unmatched. {} lost, about {} lost. Probes: {}{}.",
        text::count(c.full),
        text::counted(c.requests, "request", "requests"),
        text::ratio(c.full, c.requests),
        text::count(c.partial_client + c.partial_server + c.partial_als),
        text::count(c.ambiguous),
        text::count(c.unmatched.values().sum()),
        text::counted(c.lost_kernel_events, "kernel event", "kernel events"),
        text::counted(c.lost_access_logs_estimate, "log entry", "log entries"),
        c.probe_tier.map_or("unknown", |t| t.as_str()),
        c.probe_cost_ns_per_event.map_or_else(String::new, |n| format!(", {} ns an event", text::count(n))),
    );
    let paint = |text: &str| match trust {
        Trust::Good => text.to_owned(),
        Trust::Limited => style.warn(text),
        Trust::Poor => style.bad(text),
    };
    for l in wrap(&line, options.width) {
        writeln!(out, "{}", paint(&l))?;
    }
    let reasons = c.partial_reasons.iter().chain(&c.unmatched);
    let reasons = reasons.map(|(r, n)| format!("{}: {}.", text::counted(*n, "request", "requests"), text::reason(r)));
    for line in why.into_iter().chain(c.notes.iter().map(|n| visible(n))).chain(reasons) {
        for (i, l) in wrap(&line, options.width.map(|w| w.saturating_sub(2))).iter().enumerate() {
            writeln!(out, "{} {}", if i == 0 { paint("!") } else { " ".into() }, l)?;
        }
    }
    writeln!(out)?;
    Ok(())
}

fn time(d: Option<&Distribution>, f: fn(&Distribution) -> DurationNs) -> String {
    d.map_or_else(|| "–".into(), |d| text::duration(f(d)))
}

fn hops(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    if report.hops.is_empty() {
        writeln!(out, "No hop between two workloads was recorded.\n")?;
        return Ok(());
    }
    let names = summary::Names::of(report);
    let header = columns(options, &["client → server"]);
    let mut t = table(options, &header, if options.wide { 2 } else { 1 });
    let shown = if options.wide { report.hops.len() } else { MAX_HOPS };
    for hop in report.hops.iter().take(shown) {
        let mut row = vec![format!("{} → {}", name(&names.name(&hop.client)), name(&names.name(&hop.server)))];
        row.extend(numbers(options, hop, false));
        t.add_row(row);
    }
    print(&t, out)?;
    if report.hops.len() > shown {
        writeln!(out, "{} more hops with --format json.\n", report.hops.len() - shown)?;
    }
    Ok(())
}

fn is_narrow(options: &TableOptions) -> bool {
    options.width.is_some_and(|w| w < NARROW) && !options.wide
}

/// The headings of [`numbers`] after those of what the row is about.
fn columns<'a>(options: &TableOptions, first: &[&'a str]) -> Vec<&'a str> {
    let mut header = first.to_vec();
    if options.wide {
        header.push("protocol");
    }
    header.push("requests");
    if is_narrow(options) {
        header.extend(["mean", "p50", "p99", "most of it"]);
        return header;
    }
    header.extend(["full", "mean", "p50"]);
    header.extend(if options.wide { &["p90", "p99", "p99.9"][..] } else { &["p99"] });
    header.extend(summary::SHARES);
    header
}

/// What some requests of a hop were like; of few of them it is said that they are.
fn numbers(options: &TableOptions, hop: &HopSummary, few: bool) -> Vec<String> {
    let d = hop.total.as_ref();
    let mut row = Vec::new();
    if options.wide {
        row.push(hop.protocol.as_str().into());
    }
    let narrow = is_narrow(options);
    let marked = |n: String, here: bool| if few && here { format!("{n} (few)") } else { n };
    row.push(marked(text::count(hop.requests), narrow));
    if !narrow {
        row.push(marked(text::count(hop.n), true));
    }
    row.extend([time(d, |d| d.mean), time(d, |d| d.p50)]);
    if options.wide {
        row.push(time(d, |d| d.p90));
    }
    row.push(time(d, |d| d.p99));
    if options.wide {
        row.push(time(d, |d| d.p999));
    }
    let shares = summary::shares(hop);
    if narrow {
        row.push(largest(&shares));
    } else {
        row.extend(shares.map(|s| s.map_or_else(|| "–".into(), text::share)));
    }
    row
}

/// Hops told apart by zone and the like, if that was asked for.
fn breakdowns(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    let names = summary::Names::of(report);
    for b in &report.breakdowns {
        writeln!(out, "{}", breakdown::title(b.by))?;
        let header = columns(options, &["client → server", b.by.as_str()]);
        let mut t = table(options, &header, if options.wide { 3 } else { 2 });
        let rows: Vec<_> = b.hops.iter().flat_map(|hop| hop.rows.iter().map(move |row| (hop, row))).collect();
        let shown = if options.wide { rows.len() } else { MAX_ROWS };
        for (hop, row) in rows.iter().take(shown) {
            let crossing = breakdown::crossing(b.by, row).map_or_else(String::new, |word| format!(" ({word})"));
            let mut cells = vec![
                format!("{} → {}", name(&names.name(&hop.client)), name(&names.name(&hop.server))),
                format!("{}{crossing}", breakdown::values(row)),
            ];
            cells.extend(numbers(options, &row.summary, row.few));
            t.add_row(cells);
        }
        print(&t, out)?;
        if rows.len() > shown {
            writeln!(out, "{} more rows with --wide or --format json.\n", rows.len() - shown)?;
        }
        let crossed = b.hops.iter().filter_map(|hop| Some((hop, hop.crossed.as_ref()?)));
        let crossed = crossed.map(|(hop, c)| {
            let ends = format!("{} → {}", name(&names.name(&hop.client)), name(&names.name(&hop.server)));
            format!("{ends}: {}", breakdown::crossed(b.by, c))
        });
        let sentences: Vec<String> = crossed.chain(breakdown::unknown(b)).collect();
        for line in sentences.iter().flat_map(|s| wrap(s, options.width)) {
            writeln!(out, "{line}")?;
        }
        if !sentences.is_empty() {
            writeln!(out)?;
        }
        if options.wide {
            for (hop, row) in rows {
                let ends = format!("{} → {}", name(&names.name(&hop.client)), name(&names.name(&hop.server)));
                segments_of(&format!("{ends}, {}", breakdown::values(row)), &row.summary, options, out)?;
            }
        }
    }
    Ok(())
}

/// The largest of a hop's shares: `sidecar 61%`.
fn largest(shares: &[Option<f64>; 6]) -> String {
    let named = shares.iter().zip(summary::SHARES).filter_map(|(s, n)| s.map(|s| (s, n)));
    named.max_by(|a, b| a.0.total_cmp(&b.0)).map_or_else(|| "–".into(), |(s, n)| format!("{n} {}", text::share(s)))
}

fn findings(report: &Report, options: &TableOptions, style: Style, out: &mut impl Write) -> Result<(), RenderError> {
    for f in &report.findings {
        let head = format!("{} {}", f.code, f.level.as_str());
        let head = match f.level {
            Level::Error => style.bad(&head),
            Level::Warning => style.warn(&head),
            Level::Info => style.bold(&head),
        };
        writeln!(out, "{head} {}", shorten(&visible(&f.subject), MAX_SUBJECT))?;
        for line in [&f.text, &f.fix] {
            for l in wrap(&visible(line), options.width.map(|w| w.saturating_sub(2))) {
                writeln!(out, "  {l}")?;
            }
        }
        if options.wide && !f.evidence.is_empty() {
            let evidence: Vec<_> =
                f.evidence.iter().map(|(k, v)| format!("{} {}", visible(k), evidence(k, *v))).collect();
            writeln!(out, "  {}", style.dim(&evidence.join(", ")))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A number of a finding: names that end in `Ns` are times.
pub(crate) fn evidence(name: &str, value: f64) -> String {
    if name.ends_with("Ns") && value.is_finite() {
        // Findings carry rounded nanoseconds; an f64 holds those of the next 100 days exactly.
        text::duration(DurationNs(value.round() as i64))
    } else {
        format!("{value}")
    }
}

fn segments(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    let names = summary::Names::of(report);
    for hop in &report.hops {
        let ends = format!("{} → {}", name(&names.name(&hop.client)), name(&names.name(&hop.server)));
        segments_of(&ends, hop, options, out)?;
    }
    Ok(())
}

fn segments_of(title: &str, hop: &HopSummary, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    if hop.segments.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}")?;
    let mut t = table(options, &["segment", "mean", "95% interval", "p50", "p90", "p99", "share"], 1);
    for (segment, s) in &hop.segments {
        let d = Some(&s.distribution);
        t.add_row([
            format!("  {}", segment.as_str()),
            time(d, |d| d.mean),
            format!("{} … {}", text::duration(s.mean_ci95.0), text::duration(s.mean_ci95.1)),
            time(d, |d| d.p50),
            time(d, |d| d.p90),
            time(d, |d| d.p99),
            text::share(s.share),
        ]);
        for (detail, mean) in &s.details {
            t.add_row([format!("    {}", detail.as_str()), text::duration(*mean)]);
        }
    }
    print(&t, out)
}

fn connections(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    if report.lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "Connections")?;
    let header = ["line", "client → server", "protocol", "peer known by", "connections"];
    let mut t = table(options, &header, 4);
    for (i, l) in report.lines.iter().enumerate() {
        t.add_row([
            (i + 1).to_string(),
            format!("{} → {}", name(&lines::end(&l.client)), name(&lines::end(&l.server))),
            lines::protocol(l),
            l.peer_known_by.as_str().into(),
            text::count(l.connections),
        ]);
    }
    print(&t, out)?;
    metrics(report, options, out)?;
    for sentence in lines::missing(&report.coverage) {
        for l in wrap(&sentence, options.width) {
            writeln!(out, "{l}")?;
        }
    }
    let remarks = report.lines.iter().enumerate().flat_map(|(i, l)| {
        sides(l).flat_map(move |(side, m)| {
            lines::remarks(&m.total).into_iter().map(move |r| format!("Line {} {side}: {r}.", i + 1))
        })
    });
    for remark in remarks {
        writeln!(out, "{remark}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn sides(l: &LineSummary) -> impl Iterator<Item = (&'static str, &EndMetrics)> {
    ["client", "server"].into_iter().zip(l.ends()).filter_map(|(side, end)| Some((side, end.metrics.as_ref()?)))
}

/// Times are medians, and the 99th percentile beside them.
fn metrics(report: &Report, options: &TableOptions, out: &mut impl Write) -> Result<(), RenderError> {
    let header = [
        "line",
        "side",
        "writes",
        "sent",
        "write p50",
        "p99",
        "reads",
        "received",
        "read p50",
        "p99",
        "waited p50",
        "rtt p50",
        "p99",
        "connects",
        "failed",
        "handshake p50",
        "closes",
        "resets",
        "resent",
        "dropped",
    ];
    let mut t = table(options, &header, 2);
    for (i, l) in report.lines.iter().enumerate() {
        for (side, m) in sides(l) {
            let m = &m.total;
            let calls = |io: &Option<IoMetrics>| lines::count(io.as_ref().map(|io| io.calls));
            let took = |io: &Option<IoMetrics>, q| lines::quantile(io.as_ref().and_then(|io| io.duration.as_ref()), q);
            let handshake = m.connect.as_ref().and_then(|c| c.handshake.as_ref());
            t.add_row([
                (i + 1).to_string(),
                side.to_owned(),
                calls(&m.write),
                lines::bytes(m.write.as_ref()),
                took(&m.write, 0.5),
                took(&m.write, 0.99),
                calls(&m.read),
                lines::bytes(m.read.as_ref()),
                took(&m.read, 0.5),
                took(&m.read, 0.99),
                lines::quantile(m.read.as_ref().and_then(|io| io.wait.as_ref()), 0.5),
                lines::quantile(m.rtt.as_ref(), 0.5),
                lines::quantile(m.rtt.as_ref(), 0.99),
                lines::count(m.connect.as_ref().map(|c| c.count)),
                lines::count(lines::failed(m)),
                lines::quantile(handshake, 0.5),
                lines::count(m.close.as_ref().map(|c| c.count)),
                lines::count(m.close.as_ref().and_then(|c| c.resets)),
                lines::count(m.retransmits),
                lines::count(lines::dropped(m)),
            ]);
        }
    }
    print(&t, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("aaaa bbbb cccc dddd eeee", Some(20)), ["aaaa bbbb cccc dddd", "eeee"]);
        assert_eq!(wrap("a b", None), ["a b"]);
    }

    #[test]
    fn evidence_has_units() {
        assert_eq!(evidence("p99Ns", 1_500.0), "1.50 µs");
        assert_eq!(evidence("count", 3.0), "3");
    }
}
