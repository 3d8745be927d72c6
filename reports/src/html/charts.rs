//! Small pictures of numbers: a histogram as bars, and a row of windows as a line of bars.

use crate::lines;
use meshdiff_model::ExponentialHistogram;
use std::fmt::Write as _;

/// Bars of a histogram at most; more would be thinner than two pixels.
const BARS: usize = 28;
/// Of both pictures, in units of their viewBox.
const WIDTH: f64 = 140.0;
const HEIGHT: f64 = 30.0;
/// The widest bar: two windows are no wall.
const WIDEST: f64 = 16.0;
/// The lowest bar that is not nothing.
const LEAST: f64 = 1.5;

/// A picture, with its words for those who do not see it.
pub(super) struct Chart {
    pub(super) path: String,
    pub(super) alt: String,
    /// What stands beneath its left and right end.
    pub(super) ends: (String, String),
}

/// A histogram of nanoseconds: bars of equal width on a logarithmic scale, each as high as it has values. `None` for less than two values.
pub(super) fn histogram(what: &str, h: Option<&ExponentialHistogram>) -> Option<Chart> {
    let h = h.filter(|h| h.count() > 1)?;
    let (min, max) = (h.min()? as f64, h.max()? as f64);
    let zeros = h.zero_count();
    let first = h.buckets().find(|b| b.lower > 0.0 || b.upper > 0.0).map_or(0.0, |b| b.lower.max(0.5).ln());
    let last = h.buckets().last().map_or(0.0, |b| b.upper.max(1.0).ln());
    let span = (last - first).max(f64::MIN_POSITIVE);
    // No more bars than the histogram itself has in that range: it has 64 of them for each doubling.
    let wanted = (span / std::f64::consts::LN_2 * 64.0).round().max(1.0);
    let logarithmic = if wanted < BARS as f64 { wanted as usize } else { BARS };
    let offset = usize::from(zeros > 0);
    let mut bars = vec![0u64; logarithmic + offset];
    for b in h.buckets() {
        let place = if b.upper == 0.0 {
            0
        } else {
            let middle = f64::midpoint(b.lower.max(0.5).ln(), b.upper.max(1.0).ln());
            offset + (((middle - first) / span * logarithmic as f64) as usize).min(logarithmic - 1)
        };
        bars[place] = bars[place].saturating_add(b.count);
    }
    let q = |q| lines::quantile(Some(h), q);
    Some(Chart {
        path: columns(&bars.iter().map(|n| *n as f64).collect::<Vec<_>>()),
        alt: format!(
            "{what}: {} values from {} to {}, median {}, 99th percentile {}",
            crate::text::count(h.count()),
            lines::ns(min),
            lines::ns(max),
            q(0.5),
            q(0.99)
        ),
        ends: (lines::ns(min), lines::ns(max)),
    })
}

/// A value for each window; windows without one have no bar. `None` for less than two windows, or where all are 0.
pub(super) fn windows(what: &str, values: &[Option<f64>], shown: impl Fn(f64) -> String) -> Option<Chart> {
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    if values.len() < 2 || most <= 0.0 {
        return None;
    }
    let bars: Vec<f64> = values.iter().map(|v| v.unwrap_or(0.0)).collect();
    let list: Vec<String> = values.iter().take(60).map(|v| v.map_or_else(|| lines::NOTHING.into(), &shown)).collect();
    let rest = if values.len() > 60 { " …" } else { "" };
    Some(Chart {
        path: columns(&bars),
        alt: format!("{what}, by window of 10 s: {}{rest}", list.join(", ")),
        ends: (String::new(), format!("≤ {}", shown(most))),
    })
}

/// Bars of these heights, as one path.
fn columns(values: &[f64]) -> String {
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let step = (WIDTH / values.len().max(1) as f64).min(WIDEST);
    let gap = if step > 3.0 { 1.0 } else { step * 0.2 };
    let mut path = String::new();
    for (i, value) in values.iter().enumerate().filter(|(_, v)| **v > 0.0) {
        let height = (value / most * HEIGHT).max(LEAST);
        let _ = write!(path, "M{:.1} {HEIGHT}v-{height:.1}h{:.1}v{height:.1}z", i as f64 * step, step - gap);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(path: &str) -> usize {
        path.matches('M').count()
    }

    #[test]
    fn bars_are_as_many_as_there_are_places_with_values() {
        let h: ExponentialHistogram = [1_000, 1_000, 1_000_000].into_iter().collect();
        let chart = histogram("write", Some(&h)).expect("a chart");
        assert_eq!(bars(&chart.path), 2);
        assert_eq!(chart.ends, ("1.00 µs".into(), "1.00 ms".into()));
        assert!(chart.alt.starts_with("write: 3 values from 1.00 µs to 1.00 ms, median 1.00 µs"), "{}", chart.alt);
        // The lower bar has a third of the values, the higher one is full.
        assert!(chart.path.contains("v-30.0") && chart.path.contains("v-15.0"), "{}", chart.path);
    }

    #[test]
    fn every_shape_of_histogram_is_drawn() {
        for values in [vec![0, 0], vec![0, 5, u64::MAX], vec![7, 7], vec![1, 2], vec![999, 1_000, 1_001]] {
            let h: ExponentialHistogram = values.iter().copied().collect();
            let chart = histogram("x", Some(&h)).expect("a chart");
            assert!(
                bars(&chart.path) >= 1 && !chart.path.contains("NaN") && !chart.path.contains("inf"),
                "{}",
                chart.path
            );
        }
        assert!(histogram("x", Some(&ExponentialHistogram::new())).is_none());
        assert!(histogram("x", Some(&[5].into_iter().collect())).is_none());
    }

    #[test]
    fn a_row_of_windows_says_what_is_in_each() {
        let chart = windows("bytes", &[Some(1.0), None, Some(4.0)], |v| format!("{v} B")).expect("a chart");
        assert_eq!(bars(&chart.path), 2);
        assert_eq!(chart.alt, "bytes, by window of 10 s: 1 B, –, 4 B");
        assert!(windows("bytes", &[Some(1.0)], |v| v.to_string()).is_none());
        assert!(windows("bytes", &[Some(0.0), Some(0.0)], |v| v.to_string()).is_none());
    }
}
