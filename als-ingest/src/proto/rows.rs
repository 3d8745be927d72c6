//! A batch in the making: rows, and what they share.

use super::entry::{MAX_TEXT, shortened};
use super::flags;
use super::view::Flags;
use crate::intern::Places;
use crate::stats::Tally;
use meshdiff_model::{HopTags, HopTls, LogBatch, LogKind, LogRow, LogSizes, Peer, Place, PlacedAddr};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Texts, addresses, kinds and sizes that are found again without being decoded or listed anew.
const TEXTS: usize = 1024;
const IPS: usize = 256;
const KINDS: usize = 256;
const SIZES: usize = 256;

/// Appends rows to a batch.
///
/// What a batch's lists hold is looked for in tables where each value has one place only: a value whose place another one took is listed
/// again, which a batch allows. So nothing that comes from outside can make the tables grow or be searched for long.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) batch: LogBatch,
    /// Which batch it is, of all there were.
    pub(super) number: u64,
    /// Who sends what comes next.
    pub(super) node: Place,
    texts: Places<Arc<str>>,
    ips: Places<IpAddr>,
    kinds: Places<LogKind>,
    sizes: Places<LogSizes>,
    flags: Vec<(Flags, Place)>,
}

impl Rows {
    pub(super) fn new() -> Self {
        Self {
            batch: LogBatch::default(),
            number: 1,
            node: Place::NONE,
            texts: Places::new(TEXTS),
            ips: Places::new(IPS),
            kinds: Places::new(KINDS),
            sizes: Places::new(SIZES),
            flags: Vec::new(),
        }
    }

    /// The batch; the next one begins with as much room.
    pub(super) fn take(&mut self) -> LogBatch {
        let last = &self.batch;
        let next = LogBatch {
            texts: Vec::with_capacity(last.texts.len()),
            ips: Vec::with_capacity(last.ips.len()),
            flags: Vec::new(),
            tls: Vec::with_capacity(last.tls.len()),
            peers: Vec::with_capacity(last.peers.len()),
            tags: Vec::with_capacity(last.tags.len()),
            kinds: Vec::with_capacity(last.kinds.len()),
            sizes: Vec::with_capacity(last.sizes.len()),
            rows: Vec::with_capacity(last.rows.len()),
        };
        self.texts.forget();
        self.ips.forget();
        self.kinds.forget();
        self.sizes.forget();
        self.flags.clear();
        self.number += 1;
        self.node = Place::NONE;
        std::mem::replace(&mut self.batch, next)
    }

    #[inline]
    pub(super) fn push(&mut self, kind: &LogKind, sizes: &LogSizes, row: LogRow) {
        let (kind, sizes) = (self.kind(kind), self.sizes(sizes));
        self.batch.rows.push(LogRow { kind, sizes, ..row });
    }

    /// The index of a kind.
    #[inline]
    pub(super) fn kind(&mut self, kind: &LogKind) -> u32 {
        let hash = mix([
            u64::from(kind.upstream_cluster.number()) << 32 | u64::from(kind.authority.number()),
            u64::from(kind.downstream_local.0.number()) << 32 | u64::from(kind.upstream_remote.0.number()),
            u64::from(kind.tls.number()) << 32 | u64::from(kind.node.number()),
            u64::from(kind.response_code.unwrap_or_default()) << 32 | u64::from(kind.response_code_details.number()),
            u64::from(kind.downstream_local.1) << 32 | u64::from(kind.route_name.number()),
        ]);
        self.kinds.find(hash, kind, &mut self.batch.kinds).number() - 1
    }

    /// The index of sizes.
    #[inline]
    pub(super) fn sizes(&mut self, sizes: &LogSizes) -> u32 {
        let [sent, received, up_sent, up_received, ..] = sizes.counts;
        let hash =
            mix([sizes.request_body, sizes.response_body, sent, received, up_sent ^ up_received.rotate_left(32)]);
        self.sizes.find(hash, sizes, &mut self.batch.sizes).number() - 1
    }

    /// A text that has its length already.
    #[inline]
    pub(super) fn text_at(&mut self, text: &str) -> Place {
        self.texts.find_text(text, &mut self.batch.texts)
    }

    /// A text that is not empty, cut (and counted) where it is too long.
    #[inline]
    pub(super) fn text(&mut self, text: &str, max: usize, tally: &mut Tally) -> Place {
        shortened(text, max, tally).map_or(Place::NONE, |text| self.text_at(text))
    }

    #[inline]
    pub(super) fn name(&mut self, text: &str, tally: &mut Tally) -> Place {
        self.text(text, MAX_TEXT, tally)
    }

    #[inline]
    pub(super) fn addr(&mut self, addr: Option<SocketAddr>) -> PlacedAddr {
        let Some(addr) = addr else { return (Place::NONE, 0) };
        let ip = addr.ip();
        let hash = match ip {
            IpAddr::V4(ip) => mix([u64::from(ip.to_bits())]),
            IpAddr::V6(ip) => mix([ip.to_bits() as u64, (ip.to_bits() >> 64) as u64]),
        };
        (self.ips.find(hash, &ip, &mut self.batch.ips), addr.port())
    }

    pub(super) fn flags(&mut self, flags: Flags) -> Place {
        if flags == Flags::default() {
            return Place::NONE;
        }
        if let Some((_, known)) = self.flags.iter().find(|(known, _)| *known == flags) {
            return *known;
        }
        let names = flags::short_names(flags);
        if names.is_empty() {
            return Place::NONE;
        }
        self.batch.flags.push(names);
        let new = Place::at(self.batch.flags.len() - 1);
        self.flags.push((flags, new));
        new
    }

    pub(super) fn tls(&mut self, tls: Option<Arc<HopTls>>) -> Place {
        shared(tls, &mut self.batch.tls)
    }

    pub(super) fn peer(&mut self, peer: Option<Arc<Peer>>) -> Place {
        shared(peer, &mut self.batch.peers)
    }

    pub(super) fn tags(&mut self, tags: Option<HopTags>) -> Place {
        let Some(tags) = tags else { return Place::NONE };
        self.batch.tags.push(tags);
        Place::at(self.batch.tags.len() - 1)
    }
}

/// Values that are looked at when one is looked for.
const LOOKED_AT: usize = 16;

/// The place of a value of which decoding gives the same copy each time; the last ones listed are looked at.
fn shared<T>(value: Option<Arc<T>>, list: &mut Vec<Arc<T>>) -> Place {
    let Some(value) = value else { return Place::NONE };
    let known = list.iter().enumerate().rev().take(LOOKED_AT).find(|(_, known)| Arc::ptr_eq(known, &value));
    if let Some((at, _)) = known {
        return Place::at(at);
    }
    list.push(value);
    Place::at(list.len() - 1)
}

#[inline]
fn mix<const N: usize>(words: [u64; N]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    words.into_iter().fold(0, |all: u64, word| (all.rotate_left(29) ^ word).wrapping_mul(ODD))
}
