//! Markdown for tickets and pull requests: the verdict, coverage, hops and findings.

use crate::safe::visible;
use crate::verdict::{self, Trust};
use crate::{RenderError, ReportMeta, breakdown, lines, summary, text};
use meshdiff_analyzer::{Coverage, HopSummary, Level, LineSummary, Report};
use meshdiff_model::DurationNs;
use std::io::Write;

/// Rows of the hops' table; the rest is counted.
const MAX_HOPS: usize = 30;
/// Rows of a breakdown's table; the rest is counted.
const MAX_ROWS: usize = 60;
/// Rows of the connections' table; the rest is counted.
const MAX_LINES: usize = 15;
/// Places in the list under the verdict.
const MAX_PLACES: usize = 5;

/// Writes the report as GitHub-flavoured Markdown.
///
/// # Errors
/// If `out` refuses it.
pub fn write(report: &Report, meta: &ReportMeta, out: &mut impl Write) -> Result<(), RenderError> {
    writeln!(out, "## Where the time went\n")?;
    let sentence: String =
        verdict::sentence(report)
            .into_iter()
            .map(|p| {
                if p.strong {
                    format!("**{}**", escape(p.text.trim_end())) + trailing(&p.text)
                } else {
                    escape(&p.text)
                }
            })
            .collect();
    writeln!(out, "{sentence}\n")?;
    places(report, out)?;
    coverage(&report.coverage, out)?;
    hops(report, out)?;
    breakdowns(report, out)?;
    findings(report, out)?;
    connections(report, out)?;
    writeln!(
        out,
        "<sub>{} to {} · {} · {} · meshdiff {}</sub>",
        text::instant(report.window.0),
        text::instant(report.window.1),
        report.namespace.as_deref().map_or_else(|| "all namespaces".into(), |n| format!("namespace {}", code(n))),
        escape(&visible(&meta.source)),
        escape(&visible(&meta.tool_version)),
    )?;
    Ok(())
}

fn trailing(text: &str) -> &str {
    &text[text.trim_end().len()..]
}

fn places(report: &Report, out: &mut impl Write) -> Result<(), RenderError> {
    let Some(v) = &report.verdict else { return Ok(()) };
    let names = summary::Names::of(report);
    for p in v.places.iter().take(MAX_PLACES) {
        writeln!(
            out,
            "- {} · {}: {} ({})",
            code(&names.name(&p.workload)),
            text::place(p.kind),
            text::duration(p.mean),
            escape(&text::share(p.share))
        )?;
    }
    if v.places.len() > MAX_PLACES {
        writeln!(out, "- and {} smaller ones", v.places.len() - MAX_PLACES)?;
    }
    writeln!(out)?;
    Ok(())
}

fn coverage(c: &Coverage, out: &mut impl Write) -> Result<(), RenderError> {
    let (trust, why) = verdict::trust(c);
    let mark = if trust == Trust::Good { "" } else { "⚠️ " };
    writeln!(
        out,
        "{mark}**Coverage:** {} of {} fully seen ({}); {} partial, {} ambiguous, {} unmatched. {} and about {} lost. Probes: {}.",
        text::count(c.full),
        text::counted(c.requests, "request", "requests"),
        escape(&text::ratio(c.full, c.requests)),
        text::count(c.partial_client + c.partial_server + c.partial_als),
        text::count(c.ambiguous),
        text::count(c.unmatched.values().sum()),
        text::counted(c.lost_kernel_events, "kernel event", "kernel events"),
        text::counted(c.lost_access_logs_estimate, "access log entry", "access log entries"),
        code(c.probe_tier.map_or("unknown", |t| t.as_str())),
    )?;
    for line in why.iter().chain(&c.notes) {
        writeln!(out, "- {}", escape(&visible(line)))?;
    }
    for (reason, n) in c.partial_reasons.iter().chain(&c.unmatched) {
        writeln!(out, "- {}: {}", text::counted(*n, "request", "requests"), escape(&text::reason(reason)))?;
    }
    writeln!(out)?;
    Ok(())
}

fn hops(report: &Report, out: &mut impl Write) -> Result<(), RenderError> {
    if report.hops.is_empty() {
        writeln!(out, "No hop between two workloads was recorded.\n")?;
        return Ok(());
    }
    writeln!(
        out,
        "| client → server | requests | mean | p50 | p99 | app | its calls | sidecars | loopback | network | other |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    let names = summary::Names::of(report);
    for hop in report.hops.iter().take(MAX_HOPS) {
        let ends = format!("{} → {}", code(&names.name(&hop.client)), code(&names.name(&hop.server)));
        writeln!(out, "| {ends} | {} |", numbers(hop, false))?;
    }
    if report.hops.len() > MAX_HOPS {
        writeln!(out, "\n{} more hops in the JSON report.", report.hops.len() - MAX_HOPS)?;
    }
    writeln!(out)?;
    Ok(())
}

/// Requests, mean, median, 99th percentile and shares, as cells; of few requests it is said that they are.
fn numbers(hop: &HopSummary, few: bool) -> String {
    let total = |f: fn(&meshdiff_analyzer::Distribution) -> DurationNs| {
        hop.total.as_ref().map_or_else(|| "–".to_owned(), |d| text::duration(f(d)))
    };
    let shares = summary::shares(hop).map(|s| s.map_or_else(|| "–".into(), |s| escape(&text::share(s))));
    format!(
        "{}{} | {} | {} | {} | {}",
        text::count(hop.requests),
        if few { " (few)" } else { "" },
        total(|d| d.mean),
        total(|d| d.p50),
        total(|d| d.p99),
        shares.join(" | "),
    )
}

/// Hops told apart by zone and the like, if that was asked for.
fn breakdowns(report: &Report, out: &mut impl Write) -> Result<(), RenderError> {
    let names = summary::Names::of(report);
    for b in &report.breakdowns {
        writeln!(out, "### {}\n", breakdown::title(b.by))?;
        writeln!(
            out,
            "| client → server | {} | requests | full | mean | p50 | p99 | app | its calls | sidecars | loopback | network | other |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            b.by.as_str()
        )?;
        let rows: Vec<_> = b.hops.iter().flat_map(|hop| hop.rows.iter().map(move |row| (hop, row))).collect();
        for (hop, row) in rows.iter().take(MAX_ROWS) {
            let ends = format!("{} → {}", code(&names.name(&hop.client)), code(&names.name(&hop.server)));
            let crossing = breakdown::crossing(b.by, row).map_or_else(String::new, |word| format!(" **{word}**"));
            let numbers = numbers(&row.summary, row.few);
            let (requests, rest) = numbers.split_once(" | ").unwrap_or((&numbers, ""));
            let full = escape(&text::ratio(row.summary.n, row.summary.requests));
            writeln!(out, "| {ends} | {}{crossing} | {requests} | {full} | {rest} |", escape(&breakdown::values(row)))?;
        }
        if rows.len() > MAX_ROWS {
            writeln!(out, "\n{} more rows in the JSON report.", rows.len() - MAX_ROWS)?;
        }
        writeln!(out)?;
        for hop in &b.hops {
            if let Some(c) = &hop.crossed {
                let ends = format!("{} → {}", code(&names.name(&hop.client)), code(&names.name(&hop.server)));
                writeln!(out, "- {ends}: {}", escape(&breakdown::crossed(b.by, c)))?;
            }
        }
        let unknown = breakdown::unknown(b);
        for sentence in &unknown {
            writeln!(out, "- {}", escape(sentence))?;
        }
        if !unknown.is_empty() || b.hops.iter().any(|h| h.crossed.is_some()) {
            writeln!(out)?;
        }
    }
    Ok(())
}

fn findings(report: &Report, out: &mut impl Write) -> Result<(), RenderError> {
    if report.findings.is_empty() {
        return Ok(());
    }
    writeln!(out, "### Findings\n")?;
    for f in &report.findings {
        let mark = match f.level {
            Level::Error => "🔴",
            Level::Warning => "🟠",
            Level::Info => "🔵",
        };
        writeln!(
            out,
            "- {mark} **{}** {} {}: {} *{}*",
            f.code,
            f.level.as_str(),
            code(&f.subject),
            escape(&visible(&f.text)),
            escape(&visible(&f.fix)),
        )?;
    }
    writeln!(out)?;
    Ok(())
}

/// The lines with the most traffic, in short.
fn connections(report: &Report, out: &mut impl Write) -> Result<(), RenderError> {
    if report.lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "### Connections\n")?;
    writeln!(
        out,
        "| client → server | protocol | connections | sent | received | RTT p50 | failed | resets | resent | dropped |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    let mut order: Vec<&LineSummary> = report.lines.iter().collect();
    order.sort_by_key(|l| std::cmp::Reverse(l.bytes()));
    for l in order.iter().take(MAX_LINES) {
        // Of what both ends count, the client's view where there is one.
        let Some(m) = l.client.metrics.as_ref().or(l.server.metrics.as_ref()).map(|m| &m.total) else { continue };
        writeln!(
            out,
            "| {} → {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            code(&lines::end(&l.client)),
            code(&lines::end(&l.server)),
            lines::protocol(l),
            text::count(l.connections),
            lines::bytes(m.write.as_ref()),
            lines::bytes(m.read.as_ref()),
            lines::quantile(m.rtt.as_ref(), 0.5),
            lines::count(lines::failed(m)),
            lines::count(m.close.as_ref().and_then(|c| c.resets)),
            lines::count(m.retransmits),
            lines::count(lines::dropped(m)),
        )?;
    }
    if report.lines.len() > MAX_LINES {
        writeln!(out, "\n{} more lines in the JSON report.", report.lines.len() - MAX_LINES)?;
    }
    writeln!(out)?;
    for sentence in lines::missing(&report.coverage) {
        writeln!(out, "{}\n", escape(&sentence))?;
    }
    Ok(())
}

/// Text that no Markdown renderer takes for markup. An entity never opens or closes a structure (CommonMark 0.31,
/// section 2.5); `@` gets a zero-width space, because mentions are found after rendering.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '@' => out.push_str("@&#8203;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '&' | '~' | '!' | '$' | '^' => {
                out.push_str(&format!("&#{};", u32::from(c)));
            }
            ':' if chars.peek() == Some(&'/') => out.push_str("&#58;"),
            c => out.push(c),
        }
    }
    out
}

/// A name in a fixed-width face. Plain names get backticks, others an element whose content is escaped.
fn code(name: &str) -> String {
    let name = visible(name);
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._/: ".contains(c)) {
        format!("`{name}`")
    } else {
        format!("<code>{}</code>", escape(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_stay_names() {
        assert_eq!(code("default/reviews-v1"), "`default/reviews-v1`");
        assert_eq!(code("a`|<b>"), "<code>a&#96;&#124;&#60;b&#62;</code>");
        assert_eq!(escape("see https://x @all"), "see https&#58;//x @&#8203;all");
    }

    proptest! {
        #[test]
        fn no_structure_survives(s in any::<String>()) {
            let escaped = escape(&visible(&s));
            prop_assert!(!escaped.contains(['|', '<', '>', '`', '\n', '*', '[']), "{}", escaped);
            prop_assert!(!code(&s).trim_matches('`').replace("<code>", "").replace("</code>", "").contains(['|', '<', '\n', '`']));
        }
    }
}
