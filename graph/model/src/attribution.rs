//! The result for one request: a total, and its split.

use crate::{DurationNs, Segment, SegmentMap};
use serde::Serialize;

/// Parts of a segment, where they can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// Bytes were ready and waited for the process to read them.
    Queue,
    /// Everything that the log does not split further.
    Other,
    /// Sidecar: from the request's end decoded to the request encoded upstream, less connection set-up.
    Filters,
    /// Sidecar: from Envoy's encode to the kernel's send.
    Flush,
    /// Server application: hops that it made while it served this request.
    DownstreamCalls,
    /// Server application: from its first to its last send of the response.
    Streaming,
    /// Server application: what is left.
    #[serde(rename = "self")]
    SelfTime,
}

impl Detail {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Other => "other",
            Self::Filters => "filters",
            Self::Flush => "flush",
            Self::DownstreamCalls => "downstream_calls",
            Self::Streaming => "streaming",
            Self::SelfTime => "self",
        }
    }
}

/// Where a segment's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Socket instants.
    Kernel,
    /// Envoy's own timings.
    Als,
    /// A bound: it holds what could not be told apart.
    Bound,
}

/// Why an [`Attribution`] could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributionError {
    /// The segments do not add up: a defect of meshdiff, never of the input.
    #[error("segments sum to {sum:?}, but the total is {total:?}: this is a defect in meshdiff, please report it")]
    DoesNotTelescope {
        /// The total.
        total: DurationNs,
        /// What the segments sum to.
        sum: DurationNs,
    },
    /// The total itself runs backwards, which no request can.
    #[error("the request ends {0:?} before it begins")]
    NegativeTotal(DurationNs),
}

/// The split of one request's time. Cannot exist unless its segments sum to its total, to the nanosecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    total: DurationNs,
    segments: SegmentMap,
    evidence: SegmentMap<Evidence>,
    details: Vec<(Segment, Detail, DurationNs)>,
}

impl Attribution {
    /// Starts an attribution of a total.
    #[must_use]
    pub const fn of(total: DurationNs) -> AttributionBuilder {
        AttributionBuilder { total, segments: SegmentMap::empty(), evidence: SegmentMap::empty(), details: Vec::new() }
    }
    /// The whole.
    #[must_use]
    pub const fn total(&self) -> DurationNs {
        self.total
    }
    /// The parts; they sum to the whole.
    #[must_use]
    pub const fn segments(&self) -> &SegmentMap {
        &self.segments
    }
    /// Where each part comes from.
    #[must_use]
    pub const fn evidence(&self) -> &SegmentMap<Evidence> {
        &self.evidence
    }
    /// Parts of parts, in order of segment. They lie within their segment but need not fill it.
    #[must_use]
    pub fn details(&self) -> &[(Segment, Detail, DurationNs)] {
        &self.details
    }
    /// Adds parts of parts that are known only once other requests are.
    pub fn add_details(&mut self, details: impl IntoIterator<Item = (Segment, Detail, DurationNs)>) {
        self.details.extend(details);
        self.details.sort_by_key(|&(s, d, _)| (s, d));
    }
    /// Segments below zero, which point to a wrong join or to clocks that disagree.
    pub fn negative_segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.segments.iter().filter(|(_, v)| v.is_negative()).map(|(s, _)| s)
    }
}

/// Collects the parts of an [`Attribution`].
#[derive(Clone, Debug)]
pub struct AttributionBuilder {
    total: DurationNs,
    segments: SegmentMap,
    evidence: SegmentMap<Evidence>,
    details: Vec<(Segment, Detail, DurationNs)>,
}

impl AttributionBuilder {
    /// Adds time to a segment. The weakest evidence of several additions is kept.
    #[must_use]
    pub fn add(mut self, segment: Segment, value: DurationNs, evidence: Evidence) -> Self {
        self.segments.add(segment, value);
        let weakest = self.evidence.get(segment).map_or(evidence, |e| e.max(evidence));
        self.evidence.set(segment, weakest);
        self
    }
    /// Adds time to a part of a segment.
    #[must_use]
    pub fn detail(mut self, segment: Segment, detail: Detail, value: DurationNs) -> Self {
        match self.details.iter_mut().find(|(s, d, _)| (*s, *d) == (segment, detail)) {
            Some((_, _, sum)) => *sum += value,
            None => self.details.push((segment, detail, value)),
        }
        self
    }
    /// What no segment holds yet.
    #[must_use]
    pub fn rest(&self) -> DurationNs {
        self.total - self.segments.sum()
    }
    /// Puts what no segment holds into `unattributed`, if there is any.
    #[must_use]
    pub fn rest_unattributed(self) -> Self {
        let rest = self.rest();
        if rest == DurationNs::ZERO { self } else { self.add(Segment::Unattributed, rest, Evidence::Bound) }
    }
    /// The attribution.
    ///
    /// # Errors
    /// If the segments do not sum to the total, or the total is negative.
    pub fn build(mut self) -> Result<Attribution, AttributionError> {
        let sum = self.segments.sum();
        if sum != self.total {
            return Err(AttributionError::DoesNotTelescope { total: self.total, sum });
        }
        if self.total.is_negative() {
            return Err(AttributionError::NegativeTotal(self.total));
        }
        self.details.sort_by_key(|&(s, d, _)| (s, d));
        Ok(Attribution { total: self.total, segments: self.segments, evidence: self.evidence, details: self.details })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cannot_exist_unless_it_telescopes() {
        let part = Attribution::of(DurationNs(10)).add(Segment::Network, DurationNs(4), Evidence::Kernel);
        assert_eq!(
            part.clone().build(),
            Err(AttributionError::DoesNotTelescope { total: DurationNs(10), sum: DurationNs(4) })
        );
        let whole = part.rest_unattributed().build().expect("telescopes");
        assert_eq!(whole.segments().get(Segment::Unattributed), Some(DurationNs(6)));
        assert_eq!(whole.segments().get(Segment::Retry), None);
        assert!(Attribution::of(DurationNs(-1)).rest_unattributed().build().is_err());
    }

    #[test]
    fn the_weakest_evidence_is_kept() {
        let a = Attribution::of(DurationNs(2))
            .add(Segment::Network, DurationNs(1), Evidence::Bound)
            .add(Segment::Network, DurationNs(1), Evidence::Kernel)
            .build()
            .expect("telescopes");
        assert_eq!(a.evidence().get(Segment::Network), Some(Evidence::Bound));
    }
}
