//! The result for one request: a total, and its split.

use crate::{DurationNs, MonotonicNs, Segment, SegmentMap};
use serde::{Deserialize, Serialize};

/// Parts of a segment, where they can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// Bytes were ready and waited for the process to read them.
    Queue,
    /// An earlier request on the same connection was not finished yet: head-of-line blocking.
    Hol,
    /// Bytes were ready and the proxy did not read them, because its other side did not take what it had sent on.
    Backpressure,
    /// Sidecar: a filter held the head until it had the whole body.
    AwaitBody,
    /// The sender's TCP held bytes back: Nagle, pacing, or a full window.
    TcpHeld,
    /// Bytes were lost on the way and had to be sent again.
    Retransmit,
    /// Everything that is not split further.
    Other,
    /// Sidecar: its filters. With the request, from its end decoded until the router chose a host (or, where its log of the attempt
    /// is not there, until the request was encoded upstream, less connection set-up); with the response, from its head parsed until it was
    /// encoded.
    Filters,
    /// Sidecar: the router had chosen a host and waited for a connection to it that was free, less connection set-up (a server's sidecar
    /// has none of its own: its connect to the application is here).
    PoolWait,
    /// Sidecar: from Envoy's encode to the kernel's send.
    Flush,
    /// Connection set-up: TCP's handshake.
    Connect,
    /// Connection set-up: the TLS handshake.
    Tls,
    /// Server application: hops that it made while it served this request.
    DownstreamCalls,
    /// Server application: between its first and its last send of the response, while all that it had sent was read.
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
            Self::Hol => "hol",
            Self::Backpressure => "backpressure",
            Self::AwaitBody => "await_body",
            Self::TcpHeld => "tcp_held",
            Self::Retransmit => "retransmit",
            Self::Other => "other",
            Self::Filters => "filters",
            Self::PoolWait => "pool_wait",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Flush => "flush",
            Self::DownstreamCalls => "downstream_calls",
            Self::Streaming => "streaming",
            Self::SelfTime => "self",
        }
    }
}

/// Where a segment's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Socket instants.
    Kernel,
    /// Envoy's own timings.
    Als,
    /// A bound: it holds what could not be told apart.
    Bound,
}

/// A stretch of time that belongs to a segment: body time has many of them, which follow one another without gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it belongs.
    pub segment: Segment,
    /// Which part of the segment it is, where that is told.
    pub detail: Option<Detail>,
    /// Its first instant.
    pub from: MonotonicNs,
    /// The instant after its last one.
    pub to: MonotonicNs,
    /// How that is known.
    pub evidence: Evidence,
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
    spans: Vec<Span>,
}

impl Attribution {
    /// Starts an attribution of a total.
    #[must_use]
    pub const fn of(total: DurationNs) -> AttributionBuilder {
        AttributionBuilder {
            total,
            segments: SegmentMap::empty(),
            evidence: SegmentMap::empty(),
            details: Vec::new(),
            spans: Vec::new(),
        }
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
    /// Body time in order: from the request's head ready at the server application until it began to answer, and from the
    /// response's head ready at the client application to the end. Empty where these instants were not seen.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
    /// A part of a segment; `None` if it was not told.
    #[must_use]
    pub fn detail(&self, segment: Segment, detail: Detail) -> Option<DurationNs> {
        self.details.iter().find(|(s, d, _)| (*s, *d) == (segment, detail)).map(|(_, _, time)| *time)
    }
    /// What no part of a segment holds; `None` if the segment has no value.
    #[must_use]
    pub fn rest_of(&self, segment: Segment) -> Option<DurationNs> {
        let parts: DurationNs = self.details.iter().filter(|(s, ..)| *s == segment).map(|(_, _, time)| *time).sum();
        self.segments.get(segment).map(|whole| whole - parts)
    }
    /// Makes a part of a segment smaller, because some of it turned out to be another one; not below zero.
    pub fn take_from_detail(&mut self, segment: Segment, detail: Detail, time: DurationNs) {
        if let Some((_, _, value)) = self.details.iter_mut().find(|(s, d, _)| (*s, *d) == (segment, detail)) {
            *value = (*value - time).max(DurationNs::ZERO);
        }
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
    spans: Vec<Span>,
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
    /// Adds a stretch of body time to its segment.
    #[must_use]
    pub fn span(mut self, span: Span) -> Self {
        let value = span.to - span.from;
        self.spans.push(span);
        let split = self.add(span.segment, value, span.evidence);
        match span.detail {
            Some(detail) => split.detail(span.segment, detail, value),
            None => split,
        }
    }
    /// The body time so far.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
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
        Ok(Attribution {
            total: self.total,
            segments: self.segments,
            evidence: self.evidence,
            details: self.details,
            spans: self.spans,
        })
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
