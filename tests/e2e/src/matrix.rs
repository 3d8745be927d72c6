//! Where a delay was put, and how far each segment's median moved.

use std::collections::BTreeMap;
use std::fmt;

/// Segments in the matrix, in order.
const SEGMENTS: [&str; 7] =
    ["client_app", "client_loopback", "client_sidecar", "network", "server_sidecar", "server_loopback", "server_app"];

/// One experiment.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where the delay was put, by the segment that must move.
    pub segment: String,
    /// The delay that was asked for, for people.
    pub asked: String,
    /// Median of the actual delay, less that of the requests without, in ns.
    pub actual: f64,
    /// How far each segment's median moved, in ns.
    pub moved: BTreeMap<String, f64>,
    /// How far the time moved that the sidecar's Envoy measured itself, from the head read to the head encoded onwards, in ns; of a delay
    /// in a sidecar only.
    pub envoy: Option<f64>,
    /// Requests with the delay, and without.
    pub n: (usize, usize),
}

/// All experiments.
#[derive(Clone, Debug, Default)]
pub struct Matrix(pub Vec<Row>);

impl Row {
    /// The shift of the segment that must move, as a share of the actual delay.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.moved.get(&self.segment).copied().unwrap_or(0.0) / self.actual
    }

    /// The other segment that moved most, and by how much.
    #[must_use]
    pub fn largest_other(&self) -> (&str, f64) {
        let others = self.moved.iter().filter(|(s, _)| **s != self.segment);
        others.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).map_or(("none", 0.0), |(s, m)| (s, *m))
    }

    /// How far what a sidecar's Envoy said of its filters moved between two groups of requests; none of what is no sidecar.
    #[must_use]
    pub fn by_envoy(segment: &str, with: &[&crate::Request], without: &[&crate::Request]) -> Option<f64> {
        let median_of =
            |list: &[&crate::Request]| median(list.iter().map(|r| r.detail(segment, "filters") as f64).collect());
        segment.ends_with("_sidecar").then(|| median_of(with) - median_of(without))
    }

    /// How far a segment moved between two groups of requests, given as `(segment → times)`.
    #[must_use]
    pub fn moves(with: &[&crate::Request], without: &[&crate::Request]) -> BTreeMap<String, f64> {
        let median_of = |list: &[&crate::Request], s: &str| median(list.iter().map(|r| r.segment(s) as f64).collect());
        SEGMENTS.iter().map(|&s| (s.to_owned(), median_of(with, s) - median_of(without, s))).collect()
    }
}

/// The median (mean of the two middle values).
///
/// # Panics
/// If there is no value.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { f64::midpoint(values[n / 2 - 1], values[n / 2]) }
}

impl fmt::Display for Matrix {
    /// As a Markdown table; times in µs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| delay in | asked | actual, µs |")?;
        SEGMENTS.iter().try_for_each(|s| write!(f, " {s} |"))?;
        writeln!(f, " moved / actual | Envoy's clock | n |")?;
        write!(f, "|---|---|--:|")?;
        SEGMENTS.iter().try_for_each(|_| write!(f, "--:|"))?;
        writeln!(f, "--:|--:|--:|")?;
        for row in &self.0 {
            write!(f, "| {} | {} | {:.0} |", row.segment, row.asked, row.actual / 1e3)?;
            for s in SEGMENTS {
                let moved = row.moved.get(s).copied().unwrap_or(0.0) / 1e3;
                if s == row.segment { write!(f, " **{moved:+.0}** |")? } else { write!(f, " {moved:+.0} |")? }
            }
            let envoy = row.envoy.map_or_else(String::new, |ns| format!("{:+.0}", ns / 1e3));
            writeln!(f, " {:.3} | {envoy} | {} / {} |", row.ratio(), row.n.0, row.n.1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
