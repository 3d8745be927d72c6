//! Kinds of entries that were decoded before, by the bytes that they were decoded from.

use super::entry::LogType;
use super::skim::{KindBytes, Numbers, PARTS};
use meshdiff_model::{LogKind, Place};

/// Places for kinds, a power of two: an agent's node has up to 250 pods with a dozen kinds each.
const KINDS: usize = 4096;

/// Longest bytes that are remembered. TLS with its certificates, names and peers are a few hundred.
const MAX_BYTES: usize = 2 << 10;

/// A kind of entry in a batch.
#[derive(Clone, Debug)]
pub(super) struct KnownKind {
    /// The batch that its places are of.
    pub(super) batch: u64,
    /// The kind as it was of the last node that an entry of it came from, and its index in the batch.
    pub(super) kind: LogKind,
    pub(super) index: u32,
    /// No cluster says on which side the proxy stood: the entry's addresses have to.
    pub(super) side_by_addresses: bool,
    /// What an entry is counted as that is not terminal.
    pub(super) log_type: Option<LogType>,
}

/// Bytes and the kind that they say.
#[derive(Debug)]
struct Known {
    numbers: Numbers,
    lens: [u16; PARTS],
    bytes: Box<[u8]>,
    kind: KnownKind,
}

/// Kinds by their bytes.
///
/// Each has one place only: kinds that share it replace each other and are decoded again, so nothing can make the table grow or be
/// searched for long.
#[derive(Debug)]
pub(super) struct KnownKinds {
    places: Box<[Option<Box<Known>>]>,
    /// How often a kind was found.
    pub(super) found: u64,
}

impl KnownKinds {
    pub(super) fn new() -> Self {
        Self { places: std::iter::repeat_with(|| None).take(KINDS).collect(), found: 0 }
    }

    const fn place(hash: u64) -> usize {
        (hash >> (u64::BITS - KINDS.ilog2())) as usize
    }

    /// The kind of these bytes, if it has its places in this batch.
    #[inline(always)]
    pub(super) fn find(&mut self, bytes: &KindBytes<'_>, batch: u64) -> Option<&mut KnownKind> {
        let known = self.places[Self::place(bytes.hash)].as_mut()?;
        if known.kind.batch != batch || !known.is(bytes) {
            return None;
        }
        self.found += 1;
        Some(&mut known.kind)
    }

    /// Remembers a kind, in place of another if need be.
    pub(super) fn learn(&mut self, bytes: &KindBytes<'_>, kind: KnownKind) {
        let place = &mut self.places[Self::place(bytes.hash)];
        match place {
            // The same in another batch.
            Some(known) if known.is(bytes) => known.kind = kind,
            _ if bytes.parts().iter().map(|part| part.len()).sum::<usize>() > MAX_BYTES => {}
            _ => {
                let all = bytes.parts().concat().into_boxed_slice();
                *place = Some(Box::new(Known { numbers: bytes.numbers, lens: bytes.lens, bytes: all, kind }));
            }
        }
    }
}

impl Known {
    /// Whether these are its bytes.
    #[inline(always)]
    fn is(&self, bytes: &KindBytes<'_>) -> bool {
        // Of the same lengths, so no part can end elsewhere.
        self.numbers == bytes.numbers
            && self.lens == bytes.lens
            && bytes.parts().iter().try_fold(&*self.bytes, |rest, part| rest.strip_prefix(*part)).is_some()
    }
}

impl KnownKind {
    /// The index of the kind of an entry that came from this node, if it is that of the last one.
    #[inline(always)]
    pub(super) fn index_of(&self, node: Place) -> Option<u32> {
        (self.kind.node == node).then_some(self.index)
    }
}
