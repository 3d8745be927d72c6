//! A bar and a table for each hop.

use super::MAX_HOPS;
use super::bars::{Bar, RawPart, class, percent};
use crate::safe::shorten;
use crate::text;
use meshdiff_analyzer::{Distribution, HopSummary, SegmentStats};
use meshdiff_model::{Detail, DurationNs, Segment, SegmentMap};

/// All hops.
pub(super) struct HopsView {
    pub(super) hops: Vec<HopView>,
    pub(super) hidden: usize,
    /// Whether any hop has the splits near quantiles, so that a switch makes sense.
    pub(super) near: bool,
}

/// One hop.
pub(super) struct HopView {
    pub(super) id: String,
    pub(super) client: EndView,
    pub(super) server: EndView,
    /// What the filter searches.
    pub(super) search: String,
    pub(super) protocol: &'static str,
    pub(super) requests: String,
    /// Full requests and their share, if that is not all.
    pub(super) full: Option<String>,
    pub(super) codes: Vec<CodeView>,
    pub(super) total: Option<TotalView>,
    pub(super) bars: Vec<BarView>,
    pub(super) rows: Vec<SegmentRow>,
}

/// A workload: short to read, whole on hover.
pub(super) struct EndView {
    pub(super) name: String,
    pub(super) full: String,
}

impl EndView {
    pub(super) fn of(w: &meshdiff_model::Workload) -> Self {
        Self { name: shorten(&text::workload(w), 40), full: text::workload_full(w) }
    }
}

/// A status code and how often it came.
pub(super) struct CodeView {
    pub(super) code: String,
    pub(super) count: String,
    pub(super) class: &'static str,
}

/// The distribution of totals.
pub(super) struct TotalView {
    pub(super) p50: String,
    pub(super) p90: String,
    pub(super) p99: String,
    pub(super) p999: String,
}

/// One of a hop's bars.
pub(super) struct BarView {
    /// `mean`, `p50` or `p99`.
    pub(super) view: &'static str,
    pub(super) caption: String,
    pub(super) total: String,
    /// Per cent of the slowest hop's bar in this view.
    pub(super) scale: String,
    pub(super) bar: Bar,
    pub(super) ns: DurationNs,
}

/// A line of the table.
pub(super) struct SegmentRow {
    pub(super) class: Option<String>,
    pub(super) name: &'static str,
    pub(super) mean: String,
    pub(super) ci: Option<String>,
    pub(super) quantiles: Option<[String; 3]>,
    pub(super) share: String,
    pub(super) detail: bool,
}

impl HopsView {
    pub(super) fn of(hops: &[HopSummary]) -> Self {
        let mut views: Vec<_> = hops.iter().take(MAX_HOPS).enumerate().map(|(i, h)| HopView::of(i, h)).collect();
        for view in ["mean", "p50", "p99"] {
            let slowest = views.iter().flat_map(|h| &h.bars).filter(|b| b.view == view).map(|b| b.ns).max();
            for bar in views.iter_mut().flat_map(|h| &mut h.bars).filter(|b| b.view == view) {
                let max = slowest.unwrap_or_default().0.max(1);
                bar.scale = percent(bar.ns.0 as f64 / max as f64);
            }
        }
        Self { near: views.iter().any(|h| h.bars.len() > 1), hidden: hops.len().saturating_sub(MAX_HOPS), hops: views }
    }
}

/// The anchor of the hop at this place.
pub(super) fn anchor(index: usize) -> String {
    format!("hop-{}", index + 1)
}

impl HopView {
    fn of(index: usize, h: &HopSummary) -> Self {
        let (client, server) = (EndView::of(&h.client), EndView::of(&h.server));
        Self {
            id: anchor(index),
            search: format!("{} {} {}", client.full, server.full, h.protocol.as_str()).to_lowercase(),
            client,
            server,
            protocol: h.protocol.as_str(),
            requests: text::counted(h.requests, "request", "requests"),
            full: (h.n != h.requests)
                .then(|| format!("{} fully seen ({})", text::count(h.n), text::ratio(h.n, h.requests))),
            codes: h.response_codes.iter().map(|(code, n)| code_view(*code, *n)).collect(),
            total: h.total.as_ref().map(TotalView::of),
            bars: bars(h),
            rows: rows(h),
        }
    }
}

fn code_view(code: u16, n: u64) -> CodeView {
    CodeView {
        code: if code == 0 { "no status".into() } else { code.to_string() },
        count: text::count(n),
        class: match code {
            0 | 500.. => "bad",
            400..500 => "warn",
            _ => "ok",
        },
    }
}

impl TotalView {
    pub(super) fn of(d: &Distribution) -> Self {
        let [p50, p90, p99, p999] = [d.p50, d.p90, d.p99, d.p999].map(text::duration);
        Self { p50, p90, p99, p999 }
    }
}

/// The mean split.
pub(super) fn mean_bar(h: &HopSummary) -> Option<BarView> {
    let total = h.total.as_ref()?;
    Some(BarView {
        view: "mean",
        caption: "mean".into(),
        total: text::duration(total.mean),
        scale: String::new(),
        bar: Bar::of(mean_parts(&h.segments)),
        ns: total.mean,
    })
}

fn bars(h: &HopSummary) -> Vec<BarView> {
    let mut out: Vec<BarView> = mean_bar(h).into_iter().collect();
    for near in &h.near {
        let (view, name) = match near.per_mille {
            500 => ("p50", "near p50"),
            990 => ("p99", "near p99"),
            _ => continue,
        };
        out.push(BarView {
            view,
            caption: format!("{name}, {}", text::counted(near.n, "request", "requests")),
            total: text::duration(near.total),
            scale: String::new(),
            bar: Bar::of(parts(&near.segments)),
            ns: near.total,
        });
    }
    out
}

fn parts(segments: &SegmentMap) -> Vec<RawPart> {
    segments.iter().map(|(s, value)| RawPart { class: class(s), name: text::segment(s).into(), value }).collect()
}

/// The mean split, with the server application's own calls set apart: waiting for others is not its own work.
fn mean_parts(segments: &std::collections::BTreeMap<Segment, SegmentStats>) -> Vec<RawPart> {
    let mut out = Vec::with_capacity(segments.len() + 1);
    for (segment, stats) in segments {
        let mut value = stats.distribution.mean;
        let calls = stats.details.iter().find(|(d, _)| *d == Detail::DownstreamCalls).map(|(_, v)| *v);
        let calls = calls.filter(|c| c.0 > 0 && *c <= value);
        if let Some(calls) = calls {
            value = value - calls;
        }
        out.push(RawPart { class: class(*segment), name: text::segment(*segment).into(), value });
        if let Some(calls) = calls {
            out.push(RawPart {
                class: format!("{} calls", class(*segment)),
                name: format!("{}, waiting for its own calls", text::segment(*segment)),
                value: calls,
            });
        }
    }
    out
}

pub(super) fn rows(h: &HopSummary) -> Vec<SegmentRow> {
    let mut out = Vec::new();
    for (segment, s) in &h.segments {
        let d = &s.distribution;
        let half = DurationNs((s.mean_ci95.1.0 - s.mean_ci95.0.0).max(0) / 2);
        out.push(SegmentRow {
            class: Some(class(*segment)),
            name: text::segment(*segment),
            mean: text::duration(d.mean),
            ci: Some(text::duration(half)),
            quantiles: Some([d.p50, d.p90, d.p99].map(text::duration)),
            share: text::share(s.share),
            detail: false,
        });
        for (detail, mean) in &s.details {
            let whole = h.total.as_ref().map_or(0, |t| t.mean.0);
            out.push(SegmentRow {
                class: None,
                name: text::detail(*detail),
                mean: text::duration(*mean),
                ci: None,
                quantiles: None,
                share: if whole == 0 { "–".into() } else { text::share(mean.0 as f64 / whole as f64) },
                detail: true,
            });
        }
    }
    out
}
