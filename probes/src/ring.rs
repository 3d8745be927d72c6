//! Taking records out of the ring buffer.
//!
//! The kernel writes with `BPF_RB_NO_WAKEUP`, so nobody is woken: whoever drains does so on a timer. A wake-up per record
//! costs ten times the probe.

use crate::error::ProbeError;
use crate::event::RawEvent;
use aya::maps::{Map, MapData, RingBuf};
use std::time::Duration;

/// Header that the kernel puts before each record (`BPF_RINGBUF_HDR_SZ`), in bytes.
const RECORD_HEADER: usize = 8;

/// What one drain found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records taken.
    pub records: u64,
    /// Room they had taken in the ring, in bytes.
    pub bytes: u64,
    /// Records among them that could not be decoded.
    pub undecodable: u64,
}

/// The ring buffer and what was taken from it so far.
pub(crate) struct Ring {
    ring: RingBuf<MapData>,
    size: u64,
    total: Drained,
}

impl Ring {
    pub(crate) fn new(map: Map, size: u32) -> Result<Self, ProbeError> {
        let ring = RingBuf::try_from(map).map_err(|source| ProbeError::Map { map: "ring", source })?;
        Ok(Self { ring, size: u64::from(size), total: Drained::default() })
    }

    /// Takes what is in the ring, but at most twice its size: whoever drains also has a tick to make while the probes keep
    /// writing.
    pub(crate) fn drain(&mut self, mut handler: impl FnMut(&RawEvent<'_>)) -> Drained {
        let mut drained = Drained::default();
        while drained.bytes < 2 * self.size {
            let Some(item) = self.ring.next() else { break };
            drained.records += 1;
            drained.bytes += (item.len() + RECORD_HEADER).next_multiple_of(8) as u64;
            match RawEvent::decode(&item) {
                Ok(event) => handler(&event),
                Err(error) => {
                    drained.undecodable += 1;
                    if self.total.undecodable == 0 && drained.undecodable == 1 {
                        tracing::warn!(%error, "a record of the probes could not be decoded; further ones are counted");
                    }
                }
            }
        }
        self.total.records += drained.records;
        self.total.bytes += drained.bytes;
        self.total.undecodable += drained.undecodable;
        drained
    }

    /// How long to wait before the next drain: the full interval while little came, none when the ring was half full.
    pub(crate) fn pause_after(&self, drained: &Drained, interval: Duration) -> Duration {
        match drained.bytes {
            bytes if bytes >= self.size / 2 => Duration::ZERO,
            bytes if bytes >= self.size / 8 => interval / 4,
            _ => interval,
        }
    }

    pub(crate) const fn consumed(&self) -> u64 {
        self.total.records
    }

    pub(crate) const fn undecodable(&self) -> u64 {
        self.total.undecodable
    }
}
