//! Stacked bars: the same colours, the same order, the same words everywhere.

use crate::text;
use meshdiff_analyzer::HopSummary;
use meshdiff_model::{DurationNs, Segment};

/// A block narrower than this share of its bar carries no text.
const LABEL_SHARE: f64 = 0.085;

/// A part of a bar.
pub(super) struct Block {
    /// CSS class: `s-…` for segments, `k-…` for kinds.
    pub(super) class: String,
    /// Per cent of the bar.
    pub(super) width: String,
    /// Text inside, if there is room.
    pub(super) label: Option<String>,
    /// Text on hover.
    pub(super) tip: String,
    /// Its part of the bar, 0 to 1.
    share: f64,
}

/// A bar.
pub(super) struct Bar {
    pub(super) blocks: Vec<Block>,
    /// What it shows, for those who do not see it.
    pub(super) alt: String,
}

/// A part that has not been measured against the whole yet.
pub(super) struct RawPart {
    pub(super) class: String,
    pub(super) name: String,
    pub(super) value: DurationNs,
}

impl Bar {
    /// A bar of the parts. Parts below zero have no width, but are named.
    pub(super) fn of(parts: Vec<RawPart>) -> Self {
        let whole: i64 = parts.iter().map(|p| p.value.0.max(0)).sum();
        // Nanoseconds of one request fit into an f64's 53 bits for 100 days.
        let part_of = |v: DurationNs| if whole == 0 { 0.0 } else { v.0 as f64 / whole as f64 };
        let words = |p: &RawPart| format!("{} {} ({})", p.name, text::duration(p.value), text::share(part_of(p.value)));
        let alt = parts.iter().filter(|p| p.value != DurationNs::ZERO).map(words).collect::<Vec<_>>().join(", ");
        let blocks = parts
            .iter()
            .filter(|p| p.value.0 > 0)
            .map(|p| Block {
                class: p.class.clone(),
                width: percent(part_of(p.value)),
                label: (part_of(p.value) >= LABEL_SHARE).then(|| text::duration(p.value)),
                tip: words(p),
                share: part_of(p.value),
            })
            .collect();
        Self { blocks, alt }
    }

    /// The same for a bar that is only so much of the usual length: what has no room any more is not written.
    pub(super) fn shortened(&mut self, length: f64) {
        for block in self.blocks.iter_mut().filter(|b| b.share * length < LABEL_SHARE) {
            block.label = None;
        }
    }
}

/// A share as CSS takes it, with as many digits as a wide screen can show.
pub(super) fn percent(share: f64) -> String {
    format!("{:.3}%", share * 100.0)
}

/// CSS class of a segment.
pub(super) fn class(segment: Segment) -> String {
    format!("s-{}", segment.as_str())
}

/// A line of the legend.
pub(super) struct LegendEntry {
    pub(super) class: String,
    pub(super) name: &'static str,
    pub(super) definition: &'static str,
}

/// The segments that occur in these hops, in order of a request's way.
pub(super) fn legend(hops: &[HopSummary]) -> Vec<LegendEntry> {
    let occurs = |s: Segment| hops.iter().any(|h| h.segments.contains_key(&s));
    let entry = |s: Segment| LegendEntry { class: class(s), name: text::segment(s), definition: text::definition(s) };
    let mut out: Vec<_> = Segment::ALL.into_iter().filter(|s| occurs(*s)).map(entry).collect();
    if let Some(i) = out.iter().position(|e| e.class == class(Segment::ServerApp)) {
        out.insert(
            i + 1,
            LegendEntry {
                class: "s-server_app calls".into(),
                name: "… waiting for its own calls",
                definition: "The part of the server application's time in which it waited for calls that it made itself.",
            },
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(ns: i64) -> RawPart {
        RawPart { class: "c".into(), name: "part".into(), value: DurationNs(ns) }
    }

    #[test]
    fn parts_below_zero_are_named_but_have_no_width() {
        let bar = Bar::of(vec![part(3_000), part(-500), part(1_000), part(0)]);
        let widths: Vec<_> = bar.blocks.iter().map(|b| b.width.as_str()).collect();
        assert_eq!(widths, ["75.000%", "25.000%"]);
        assert_eq!(bar.alt, "part 3.00 µs (75%), part -500 ns (-12%), part 1.00 µs (25%)");
    }

    #[test]
    fn a_short_bar_says_what_there_is_room_for() {
        let mut bar = Bar::of(vec![part(3_000), part(1_000)]);
        bar.shortened(0.2);
        let labels: Vec<_> = bar.blocks.iter().map(|b| b.label.as_deref()).collect();
        assert_eq!(labels, [Some("3.00 µs"), None]);
    }

    #[test]
    fn an_empty_bar_is_empty() {
        assert!(Bar::of(vec![part(0)]).blocks.is_empty());
    }
}
