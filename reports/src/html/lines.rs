//! One line of the process topology in full: what is known of it, and both sides' metrics with their histograms and windows.

use super::charts::{self, Chart};
use crate::lines;
use crate::safe::shorten;
use crate::text;
use meshdiff_analyzer::{
    Closes, Connects, EndMetrics, EndRole, LineEnd, LineMetrics, LineSummary, MetricsWindow, WINDOW,
};
use meshdiff_model::{Closer, ExponentialHistogram, IoMetrics};
use std::collections::BTreeMap;

/// Destinations named in the panel; all are in the JSON.
const MAX_DESTINATIONS: usize = 6;
/// Windows drawn; of a longer recording the last ones.
const MAX_WINDOWS: usize = 180;

/// A line's panel.
pub(super) struct LineView {
    pub(super) id: String,
    pub(super) client: Name,
    pub(super) server: Name,
    pub(super) protocol: String,
    pub(super) known: &'static str,
    pub(super) known_tip: String,
    pub(super) connections: String,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) sides: [SideView; 2],
}

/// A name, short to read and whole on hover.
pub(super) struct Name {
    pub(super) short: String,
    pub(super) full: String,
}

impl Name {
    pub(super) fn of(text: &str) -> Self {
        Self { short: shorten(text, 44), full: text.to_owned() }
    }
}

/// What one end measured.
pub(super) struct SideView {
    pub(super) title: &'static str,
    pub(super) who: Name,
    /// Why there is nothing, if there is nothing.
    pub(super) empty: Option<&'static str>,
    pub(super) rows: Vec<MetricView>,
    pub(super) remarks: Vec<String>,
    /// True if there is more than one window.
    pub(super) windows: bool,
}

/// A metric.
pub(super) struct MetricView {
    /// For tests and styles: `write`, `read`, `wait`, `rtt`, `connect`, `close`, `retransmit`, `drop`.
    pub(super) key: &'static str,
    pub(super) name: &'static str,
    pub(super) counts: String,
    /// p50, p90, p99.
    pub(super) times: Option<[String; 3]>,
    pub(super) chart: Option<Chart>,
    pub(super) windows: Option<Chart>,
    pub(super) bad: bool,
}

/// The anchor of a line's panel.
pub(super) fn anchor(index: usize) -> String {
    format!("line-{}", index + 1)
}

impl LineView {
    pub(super) fn of(index: usize, l: &LineSummary) -> Self {
        let ways: Vec<String> = l.known_by.iter().map(|(k, n)| format!("{} {}", text::count(*n), k.as_str())).collect();
        Self {
            id: anchor(index),
            client: Name::of(&lines::end(&l.client)),
            server: Name::of(&lines::end(&l.server)),
            protocol: lines::protocol(l),
            known: l.peer_known_by.as_str(),
            known_tip: format!("{}. Connections: {}", text::known_by(l.peer_known_by), ways.join(", ")),
            connections: text::counted(l.connections, "connection", "connections"),
            facts: facts(l),
            sides: [side("Client", &l.client, true), side("Server", &l.server, false)],
        }
    }
}

fn facts(l: &LineSummary) -> Vec<(&'static str, String)> {
    let mut out = vec![("Peer", text::known_by(l.peer_known_by).to_owned())];
    if let Some(tls) = lines::tls_details(l) {
        out.push(("TLS", tls));
    }
    if !l.destinations.is_empty() {
        let mut list: Vec<String> =
            l.destinations.iter().take(MAX_DESTINATIONS).map(|(to, n)| format!("{to} ({})", text::count(*n))).collect();
        if l.destinations.len() > MAX_DESTINATIONS {
            list.push(format!("{} more", l.destinations.len() - MAX_DESTINATIONS));
        }
        out.push(("Bound for", list.join(", ")));
    }
    out
}

fn side(title: &'static str, end: &LineEnd, client: bool) -> SideView {
    let who = Name::of(&lines::end(end));
    match &end.metrics {
        None => SideView {
            title,
            who,
            empty: Some(if end.role == EndRole::Outside {
                "Outside of what was recorded: only the other side’s view exists."
            } else {
                "None of its sockets was seen: only the other side’s view exists."
            }),
            rows: vec![],
            remarks: vec![],
            windows: false,
        },
        Some(m) => {
            let series = Series::of(m);
            SideView {
                title,
                who,
                empty: None,
                rows: rows(&m.total, &series, client),
                remarks: lines::remarks(&m.total),
                windows: series.0.len() > 1,
            }
        }
    }
}

/// The windows in order of time, with those in which nothing happened.
struct Series<'a>(Vec<Option<&'a LineMetrics>>);

impl<'a> Series<'a> {
    fn of(m: &'a EndMetrics) -> Self {
        let place = |w: &MetricsWindow| usize::try_from(w.offset.0 / WINDOW.0).unwrap_or(0);
        let Some(last) = m.windows.iter().map(place).max() else { return Self(vec![]) };
        let first = (last + 1).saturating_sub(MAX_WINDOWS);
        let mut list = vec![None; last + 1 - first];
        for w in &m.windows {
            if let Some(i) = place(w).checked_sub(first) {
                list[i] = Some(&w.metrics);
            }
        }
        Self(list)
    }

    fn chart(
        &self,
        what: &str,
        value: impl Fn(&LineMetrics) -> Option<f64>,
        shown: impl Fn(f64) -> String,
    ) -> Option<Chart> {
        let values: Vec<Option<f64>> = self.0.iter().map(|m| m.and_then(&value)).collect();
        charts::windows(what, &values, shown)
    }

    fn counts(&self, what: &str, value: impl Fn(&LineMetrics) -> Option<u64>) -> Option<Chart> {
        // Counts of a window are exact in an f64.
        self.chart(what, |m| value(m).map(|n| n as f64), |v| text::count(v as u64))
    }
}

fn times(h: Option<&ExponentialHistogram>) -> Option<[String; 3]> {
    let h = h.filter(|h| !h.is_empty())?;
    Some([0.5, 0.9, 0.99].map(|q| lines::quantile(Some(h), q)))
}

fn rows(m: &LineMetrics, series: &Series<'_>, client: bool) -> Vec<MetricView> {
    let mut out = Vec::new();
    if let Some(io) = &m.write {
        out.push(io_row("write", "Write", io, series, |m| m.write.as_ref()));
    }
    if let Some(io) = &m.read {
        out.push(io_row("read", "Read", io, series, |m| m.read.as_ref()));
        if let Some(wait) = &io.wait {
            out.push(MetricView {
                key: "wait",
                name: "… waited",
                counts: format!("{} in all", lines::ns(wait.sum() as f64)),
                times: times(Some(wait)),
                chart: charts::histogram("Time that reads waited for data", Some(wait)),
                windows: None,
                bad: false,
            });
        }
    }
    if let Some(rtt) = &m.rtt {
        out.push(MetricView {
            key: "rtt",
            name: "Round trip",
            counts: text::counted(rtt.count(), "sample", "samples"),
            times: times(Some(rtt)),
            chart: charts::histogram("Smoothed round-trip time", Some(rtt)),
            windows: series.chart("Median round-trip time", |m| m.rtt.as_ref()?.quantile(0.5), lines::ns),
            bad: false,
        });
    }
    out.extend(m.connect.as_ref().map(|c| connect_row(m, c, series, client)));
    out.extend(m.close.as_ref().map(|c| close_row(c, series)));
    if let Some(n) = m.retransmits {
        out.push(count_row("retransmit", "Resent", text::counted(n, "segment", "segments"), n > 0));
        out.last_mut().into_iter().for_each(|r| r.windows = series.counts("Segments sent again", |m| m.retransmits));
    }
    if let Some(n) = lines::dropped(m) {
        out.push(count_row("drop", "Dropped", text::counted(n, "packet", "packets"), n > 0));
        out.last_mut().into_iter().for_each(|r| r.windows = series.counts("Packets dropped", lines::dropped));
    }
    out
}

fn count_row(key: &'static str, name: &'static str, counts: String, bad: bool) -> MetricView {
    MetricView { key, name, counts, times: None, chart: None, windows: None, bad }
}

fn io_row(
    key: &'static str,
    name: &'static str,
    io: &IoMetrics,
    series: &Series<'_>,
    of: impl Fn(&LineMetrics) -> Option<&IoMetrics>,
) -> MetricView {
    MetricView {
        key,
        name,
        counts: format!("{} · {}", text::counted(io.calls, "call", "calls"), text::bytes(io.bytes)),
        times: times(io.duration.as_ref()),
        chart: charts::histogram(&format!("{name}: time of a call"), io.duration.as_ref()),
        windows: series.chart(
            &format!("{name}: bytes"),
            |m| of(m).map(|io| io.bytes as f64),
            |v| text::bytes(v as u64),
        ),
        bad: false,
    }
}

fn connect_row(m: &LineMetrics, c: &Connects, series: &Series<'_>, client: bool) -> MetricView {
    let failed = lines::failed(m).unwrap_or(0);
    let mut counts = text::count(c.count);
    if failed > 0 {
        counts.push_str(&format!(", {} failed", text::count(failed)));
    }
    MetricView {
        key: "connect",
        name: if client { "Connect" } else { "Accept" },
        counts,
        times: times(c.handshake.as_ref()),
        chart: charts::histogram("Time of a handshake", c.handshake.as_ref()),
        windows: series.counts("Connections begun", |m| m.connect.as_ref().map(|c| c.count)),
        bad: failed > 0,
    }
}

fn close_row(c: &Closes, series: &Series<'_>) -> MetricView {
    let mut parts = vec![text::count(c.count)];
    let none = BTreeMap::new();
    let by = c.by.as_ref().unwrap_or(&none);
    for (who, words) in [
        (Closer::Local, "here first"),
        (Closer::Remote, "by the peer first"),
        (Closer::Kernel, "given up by the kernel"),
    ] {
        if let Some(n) = by.get(&who).filter(|n| **n > 0) {
            parts.push(format!("{} {words}", text::count(*n)));
        }
    }
    let resets = c.resets.unwrap_or(0);
    if resets > 0 {
        parts.push(format!("{} reset", text::count(resets)));
    }
    MetricView {
        key: "close",
        name: "Close",
        counts: parts.join(" · "),
        times: times(c.duration.as_ref()),
        chart: charts::histogram("Time from the first FIN to the end", c.duration.as_ref()),
        windows: series.counts("Connections ended", |m| m.close.as_ref().map(|c| c.count)),
        bad: resets > 0,
    }
}
