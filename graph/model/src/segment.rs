//! The parts into which a request's time is split.

use crate::DurationNs;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// One part of a request's time. The order is the order of the request's way and of every report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// The client application is slow to send or to read: bytes that S6 still waits for while nothing is in flight, and
    /// bytes ready at S1 and not yet read.
    ClientApp,
    /// S1.send → S2.ready, and S2.send → S1.ready.
    ClientLoopback,
    /// S2.ready → S3.send, and S3.ready → S2.send.
    ClientSidecar,
    /// TCP connect and TLS handshake of S3, for the request that waited for it.
    ConnectionSetup,
    /// S3.send of the first attempt → S3.send of the last.
    Retry,
    /// What passes between the sidecars: S3's round trip less S4's.
    Network,
    /// S4.ready → S5.send, and S5.ready → S4.send.
    ServerSidecar,
    /// S5.send → S6.ready, and S6.send → S5.ready.
    ServerLoopback,
    /// S6.ready → S6.send, and the span of the response's sends at S6.
    ServerApp,
    /// The rest of the time in which a body was under way.
    Transfer,
    /// What could not be measured.
    Unattributed,
}

impl Segment {
    /// How many there are.
    pub const COUNT: usize = 11;
    /// All, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::ClientApp,
        Self::ClientLoopback,
        Self::ClientSidecar,
        Self::ConnectionSetup,
        Self::Retry,
        Self::Network,
        Self::ServerSidecar,
        Self::ServerLoopback,
        Self::ServerApp,
        Self::Transfer,
        Self::Unattributed,
    ];

    /// The name in reports and captures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientApp => "client_app",
            Self::ClientLoopback => "client_loopback",
            Self::ClientSidecar => "client_sidecar",
            Self::ConnectionSetup => "connection_setup",
            Self::Retry => "retry",
            Self::Network => "network",
            Self::ServerSidecar => "server_sidecar",
            Self::ServerLoopback => "server_loopback",
            Self::ServerApp => "server_app",
            Self::Transfer => "transfer",
            Self::Unattributed => "unattributed",
        }
    }
}

/// A value for each segment that has one. Absent is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SegmentMap<T = DurationNs>([Option<T>; Segment::COUNT]);

impl<T: Copy> SegmentMap<T> {
    /// A map with no value.
    #[must_use]
    pub const fn empty() -> Self {
        Self([None; Segment::COUNT])
    }
    /// The value of a segment.
    #[must_use]
    pub const fn get(&self, segment: Segment) -> Option<T> {
        self.0[segment as usize]
    }
    /// Sets the value of a segment.
    pub const fn set(&mut self, segment: Segment, value: T) {
        self.0[segment as usize] = Some(value);
    }
    /// The segments that have a value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Segment, T)> + '_ {
        Segment::ALL.into_iter().filter_map(|s| self.get(s).map(|v| (s, v)))
    }
}

impl SegmentMap<DurationNs> {
    /// Adds to a segment, which then has a value.
    pub fn add(&mut self, segment: Segment, value: DurationNs) {
        let sum = self.get(segment).unwrap_or_default() + value;
        self.set(segment, sum);
    }
    /// The sum over all segments.
    #[must_use]
    pub fn sum(&self) -> DurationNs {
        self.iter().map(|(_, v)| v).sum()
    }
}

impl<T: Copy + Serialize> Serialize for SegmentMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (segment, value) in self.iter() {
            map.serialize_entry(segment.as_str(), &value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_names_are_consistent() {
        for (i, s) in Segment::ALL.into_iter().enumerate() {
            assert_eq!(s as usize, i);
        }
        let mut names: Vec<_> = Segment::ALL.iter().map(|s| s.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Segment::COUNT);
    }
}
