//! TCP sequence numbers: 32 bits that wrap (RFC 9293, section 3.4).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A TCP sequence number as the kernel counts it (`write_seq`, `rcv_nxt`, `copied_seq`), in host byte order.
///
/// Deliberately not `Ord`: numbers wrap, so only the signed [`distance`](Self::distance) of two is meaningful.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeqNo(pub u32);

impl SeqNo {
    /// Bytes from `self` forward to `to`; negative if `to` lies before `self`. Right while the two are less than
    /// 2 GiB apart.
    #[must_use]
    pub const fn distance(self, to: Self) -> i32 {
        to.0.wrapping_sub(self.0).cast_signed()
    }
    /// The number `len` bytes on.
    #[must_use]
    pub const fn advance(self, len: u32) -> Self {
        Self(self.0.wrapping_add(len))
    }
    /// True if `self` comes before `other`.
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.distance(other) > 0
    }
}

impl fmt::Debug for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The bytes `start..end` of one direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SeqRange {
    /// Number of the first byte.
    pub start: SeqNo,
    /// Number after the last byte.
    pub end: SeqNo,
}

impl SeqRange {
    /// The range of `len` bytes from `start`.
    #[must_use]
    pub const fn of(start: SeqNo, len: u32) -> Self {
        Self { start, end: start.advance(len) }
    }
    /// Bytes in the range.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.0.wrapping_sub(self.start.0)
    }
    /// True if it holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// True if the byte numbered `seq` is in the range.
    #[must_use]
    pub const fn contains(self, seq: SeqNo) -> bool {
        seq.0.wrapping_sub(self.start.0) < self.len()
    }
    /// True if the two ranges share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && (self.contains(other.start) || other.contains(self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps() {
        let a = SeqNo(u32::MAX - 1);
        let b = a.advance(4);
        assert_eq!(b, SeqNo(2));
        assert_eq!(a.distance(b), 4);
        assert_eq!(b.distance(a), -4);
        assert!(a.before(b) && !b.before(a));
        let range = SeqRange::of(a, 4);
        assert!(range.contains(SeqNo(1)) && !range.contains(SeqNo(2)));
        assert!(range.overlaps(SeqRange::of(SeqNo(0), 1)));
        assert!(!range.overlaps(SeqRange::of(SeqNo(2), 8)));
        assert!(!range.overlaps(SeqRange::of(SeqNo(0), 0)));
    }
}
