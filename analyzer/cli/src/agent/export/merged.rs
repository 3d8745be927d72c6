//! The `meta.json` of several segments.

use crate::agent::metrics;
use crate::agent::window::{Counted, Segment, add_table};
use meshdiff_capture::{Meta, RecordingState};
use meshdiff_model::{ClockAnchor, ClockSample, DurationNs, MonotonicNs};
use std::sync::Arc;

/// A pause between two segments that is worth a word: closing one and opening the next takes some ms.
const PAUSE: DurationNs = DurationNs::from_millis(1_000);
/// The setting of a segment's meta that says when its agent began (wall clock, ns): one that runs now is another than one before it.
pub(crate) const AGENT_START: &str = "agentStart";
/// Readings of the clocks that a merged capture keeps, at most: they tell how the wall clock was slewed.
const MOST_SAMPLES: usize = 1_000;

/// What is said of the segments together, with a warning for every time that is missing between them. `None` without segments.
pub(crate) fn merged(segments: &[Arc<Segment>]) -> Option<Meta> {
    let pieces: Vec<Piece<'_>> = segments.iter().map(|s| Piece { meta: &s.meta, end: s.end }).collect();
    merged_pieces(&pieces)
}

/// The same of segments that are elsewhere, by their metas, in order.
pub(crate) fn merged_metas(metas: &[Meta]) -> Option<Meta> {
    let end = |m: &Meta| m.end.or_else(|| m.clock.samples().last().copied()).unwrap_or(m.start);
    let pieces: Vec<Piece<'_>> = metas.iter().map(|meta| Piece { meta, end: end(meta) }).collect();
    merged_pieces(&pieces)
}

/// What a segment says of itself.
#[derive(Clone, Copy)]
struct Piece<'a> {
    meta: &'a Meta,
    end: ClockSample,
}

impl Piece<'_> {
    const fn start(&self) -> ClockSample {
        self.meta.start
    }

    /// Which agent wrote it.
    fn agent(&self) -> Option<&serde_json::Value> {
        self.meta.settings.get(AGENT_START)
    }

    fn is_interrupted(&self) -> bool {
        self.meta.state != RecordingState::Complete
    }
}

fn merged_pieces(segments: &[Piece<'_>]) -> Option<Meta> {
    let (first, last) = (segments.first()?, segments.last()?);
    let mut meta = last.meta.clone();
    meta.state = RecordingState::Complete;
    meta.start = first.start();
    meta.end = Some(last.end);
    meta.tables.clear();
    meta.warnings.clear();
    meta.envoy_versions.clear();
    meta.kubernetes = None;
    // What only the agent itself needs.
    meta.settings.remove(super::chosen::REACH);
    meta.settings.remove(AGENT_START);
    let mut counted: Option<Counted> = None;
    let mut samples = Vec::new();
    for segment in segments {
        let of_segment = Counted::of(segment.meta);
        counted = Some(counted.map_or_else(|| of_segment.clone(), |sum| sum.plus(&of_segment)));
        samples.extend(segment.meta.clock.samples().iter().copied());
        for (table, stats) in &segment.meta.tables {
            add_table(meta.tables.entry(*table).or_default(), stats);
        }
        for (version, proxies) in &segment.meta.envoy_versions {
            let most = meta.envoy_versions.entry(version.clone()).or_default();
            *most = (*most).max(*proxies);
        }
        if let Some(told) = &segment.meta.kubernetes {
            meta.kubernetes.get_or_insert_default().absorb(told);
        }
        for netns in &segment.meta.watched_netns {
            if !meta.watched_netns.iter().any(|known| known.netns == netns.netns) {
                meta.watched_netns.push(netns.clone());
            }
        }
        for warning in &segment.meta.warnings {
            if !meta.warnings.contains(warning) {
                meta.warnings.push(warning.clone());
            }
        }
    }
    counted.unwrap_or_default().put(&mut meta);
    meta.clock = ClockAnchor::new(thin(samples));
    meta.warnings.extend(missing(segments));
    Some(meta)
}

/// What is missing between segments, in words.
fn missing(segments: &[Piece<'_>]) -> Vec<String> {
    let mut warnings = Vec::new();
    for pair in segments.windows(2) {
        let [before, after] = pair else { continue };
        let pause = after.start().monotonic - before.end.monotonic;
        if before.is_interrupted() {
            warnings.push(format!(
                "an agent was killed {} before the end: up to 2 s of what it had in memory are missing, and nothing was recorded in the {} \
                 until the next one began",
                seconds(segments.last().map_or(MonotonicNs(0), |s| s.end.monotonic) - before.end.monotonic),
                seconds(pause)
            ));
        } else if before.agent() != after.agent() {
            warnings.push(format!(
                "an agent ended {} before the end, and nothing was recorded in the {} until the next one began",
                seconds(segments.last().map_or(MonotonicNs(0), |s| s.end.monotonic) - before.end.monotonic),
                seconds(pause)
            ));
        } else if pause > PAUSE {
            warnings.push(format!(
                "nothing was recorded for {}, until {} before the end: the agent was not running, or its disk was full",
                seconds(pause),
                seconds(segments.last().map_or(MonotonicNs(0), |s| s.end.monotonic) - after.start().monotonic)
            ));
        }
    }
    warnings
}

fn seconds(span: DurationNs) -> String {
    format!("{:.1} s", metrics::seconds(span))
}

/// Some of the samples, evenly, with the first and the last.
fn thin(samples: Vec<ClockSample>) -> Vec<ClockSample> {
    let step = samples.len().div_ceil(MOST_SAMPLES).max(1);
    let last = samples.last().copied();
    let mut kept: Vec<ClockSample> = samples.into_iter().step_by(step).collect();
    if let Some(last) = last.filter(|l| kept.last() != Some(l)) {
        kept.push(last);
    }
    kept
}
