//! Hops told apart by zone and the like: a bar and a table for each combination of values.

use super::MAX_HOPS;
use super::bars::percent;
use super::hops::{BarView, EndView, SegmentRow, TotalView, mean_bar, rows};
use crate::{breakdown, text};
use meshdiff_analyzer::{Breakdown, BreakdownHop, BreakdownRow, Dimension};

/// All that was broken down by one thing.
pub(super) struct BreakdownView {
    /// `zone` and so on, which is a part of ids and classes.
    pub(super) by: &'static str,
    pub(super) title: &'static str,
    pub(super) unknown: Vec<String>,
    pub(super) hops: Vec<HopView>,
    pub(super) hidden: usize,
}

/// One hop.
pub(super) struct HopView {
    pub(super) client: EndView,
    pub(super) server: EndView,
    pub(super) protocol: &'static str,
    pub(super) crossed: Option<String>,
    pub(super) rows: Vec<RowView>,
}

/// One combination of values.
pub(super) struct RowView {
    pub(super) client: Option<ValueView>,
    pub(super) server: ValueView,
    pub(super) crossing: Option<&'static str>,
    pub(super) requests: String,
    /// Full requests and their share, if that is not all, and why not.
    pub(super) full: Option<(String, String)>,
    pub(super) few: bool,
    pub(super) total: Option<TotalView>,
    pub(super) bar: Option<BarView>,
    pub(super) segments: Vec<SegmentRow>,
}

/// A value, or that it is not known, with the reason on hover.
pub(super) struct ValueView {
    pub(super) text: String,
    pub(super) why: Option<&'static str>,
}

pub(super) fn all(breakdowns: &[Breakdown]) -> Vec<BreakdownView> {
    breakdowns.iter().map(BreakdownView::of).collect()
}

impl BreakdownView {
    fn of(b: &Breakdown) -> Self {
        Self {
            by: b.by.as_str(),
            title: breakdown::title(b.by),
            unknown: breakdown::unknown(b),
            hops: b.hops.iter().take(MAX_HOPS).map(|h| HopView::of(b.by, h)).collect(),
            hidden: b.hops.len().saturating_sub(MAX_HOPS),
        }
    }
}

impl HopView {
    fn of(by: Dimension, h: &BreakdownHop) -> Self {
        let mut rows: Vec<RowView> = h.rows.iter().map(|row| RowView::of(by, row)).collect();
        let slowest = rows.iter().filter_map(|r| r.bar.as_ref()).map(|b| b.ns).max().unwrap_or_default();
        for bar in rows.iter_mut().filter_map(|r| r.bar.as_mut()) {
            // Of one hop's rows the lengths compare: that is what they are told apart for.
            let length = bar.ns.0 as f64 / slowest.0.max(1) as f64;
            bar.scale = percent(length);
            bar.bar.shortened(length);
        }
        Self {
            client: EndView::of(&h.client),
            server: EndView::of(&h.server),
            protocol: h.protocol.as_str(),
            crossed: h.crossed.as_ref().map(|c| breakdown::crossed(by, c)),
            rows,
        }
    }
}

impl RowView {
    fn of(by: Dimension, row: &BreakdownRow) -> Self {
        let value = |fact: &meshdiff_model::Fact| ValueView {
            text: breakdown::value(fact),
            why: fact.as_ref().err().map(|why| breakdown::reason(*why, by)),
        };
        let s = &row.summary;
        let reasons = |(why, n): (&&str, &u64)| format!("{}: {}", text::count(*n), text::reason(why));
        Self {
            client: row.client.as_ref().map(value),
            server: value(&row.server),
            crossing: breakdown::crossing(by, row),
            requests: text::counted(s.requests, "request", "requests"),
            full: (s.n != s.requests).then(|| {
                let share = format!("{} fully seen ({})", text::count(s.n), text::ratio(s.n, s.requests));
                (share, row.reasons.iter().map(reasons).collect::<Vec<_>>().join("; "))
            }),
            few: row.few,
            total: s.total.as_ref().map(TotalView::of),
            bar: mean_bar(s),
            segments: rows(s),
        }
    }
}
