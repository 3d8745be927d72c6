//! From the bytes of one stream to batches of entries.

use crate::proto::{
    Decoded, EntryDecoder, InvalidField, ProstDecoder, entries, proxy_from_identifier, scan, unknown_proxy,
};
use crate::stats::{AlsStats, Counters, Tally};
use meshdiff_model::{HopSide, Proxy};
use std::net::IpAddr;
use std::sync::Arc;

/// What one message brought.
#[derive(Clone, Debug, Default)]
pub struct AlsBatch {
    /// The sender, when it is new or has changed. Other streams of the same proxy do not repeat it, so entries of a
    /// node can come shortly before its proxy does.
    pub proxy: Option<Arc<Proxy>>,
    /// Finished requests and connections, in the order in which Envoy logged them.
    pub entries: Vec<HopSide>,
    /// Entries that do not stand for a finished request or connection: attempts (`UpstreamEnd`), and how those do that are not over.
    pub progress: Vec<HopSide>,
}

impl AlsBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.proxy.is_none() && self.entries.is_empty() && self.progress.is_empty()
    }
}

/// Who sends a stream, as far as it said so. Cheap to clone: each queued message carries the identity that it came under.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) proxy: Arc<Proxy>,
    /// Nothing that was queued said so yet.
    pub(crate) new: bool,
    introduced: bool,
    peer: Option<IpAddr>,
}

impl Identity {
    pub(crate) fn unknown(peer: Option<IpAddr>) -> Self {
        let peer = peer.map(|ip| ip.to_canonical());
        Self { proxy: Arc::new(unknown_proxy(peer)), new: true, introduced: false, peer }
    }

    /// Takes over what an undecoded `Identifier` says, if it says anything.
    pub(crate) fn update(&mut self, identifier: &[u8], tally: &mut Tally) {
        if let Some(proxy) = proxy_from_identifier(identifier, self.peer, tally)
            && (!self.introduced || *self.proxy != proxy)
        {
            self.proxy = Arc::new(proxy);
            self.introduced = true;
            self.new = true;
        }
    }
}

/// Decodes the entries of one stream's messages.
#[derive(Debug)]
pub(crate) struct MessageDecoder {
    decoder: EntryDecoder,
    oracle: Option<ProstDecoder>,
}

impl MessageDecoder {
    pub(crate) fn new() -> Self {
        Self { decoder: EntryDecoder::new(), oracle: None }
    }

    fn oracle() -> Self {
        Self { decoder: EntryDecoder::new(), oracle: Some(ProstDecoder::new()) }
    }

    /// Decodes the entries of a message that the scanner accepted, and appends them.
    pub(crate) fn decode(
        &mut self,
        message: &[u8],
        count: usize,
        from: &Identity,
        hops: &mut Decoded,
        tally: &mut Tally,
    ) {
        let before = (hops.ended.len(), hops.progress.len());
        // An entry takes at least two bytes, so `count` is bounded by the message; yet a hop is hundreds of times as large.
        hops.ended.reserve(count.min(message.len() / 64 + 1));
        for (kind, bytes) in entries(message) {
            let decoded = match &mut self.oracle {
                None => self.decoder.decode(kind, bytes, &from.proxy, hops, tally),
                Some(prost) => prost.decode(kind, bytes, &from.proxy, hops, tally),
            };
            if let Err(invalid) = decoded {
                tally.entry(invalid);
            }
        }
        let kept = hops.ended.len() - before.0;
        tally.kept += kept as u64;
        if !from.introduced {
            let all = kept + hops.progress.len() - before.1;
            if all > 0 {
                tally.add_field(InvalidField::MissingIdentifier, all as u64);
            }
        }
    }
}

/// Decodes a stream of `StreamAccessLogsMessage`s without a server: recorded bytes, tests, fuzzing. What the server
/// does with the messages of one stream, it does as well.
#[derive(Debug)]
pub struct StreamDecoder {
    identity: Identity,
    announced: Option<Arc<Proxy>>,
    messages: MessageDecoder,
    counters: Counters,
}

impl StreamDecoder {
    /// A decoder for a stream from this address.
    #[must_use]
    pub fn new(peer: Option<IpAddr>) -> Self {
        Self::with(MessageDecoder::new(), peer)
    }

    /// A decoder that builds prost's messages on its way, as the tests' oracle and to be measured against.
    #[doc(hidden)]
    #[must_use]
    pub fn oracle(peer: Option<IpAddr>) -> Self {
        Self::with(MessageDecoder::oracle(), peer)
    }

    fn with(messages: MessageDecoder, peer: Option<IpAddr>) -> Self {
        Self { identity: Identity::unknown(peer), announced: None, messages, counters: Counters::default() }
    }

    /// Decodes one message. What is malformed is counted in [`stats`](Self::stats) and survived.
    pub fn decode(&mut self, message: &[u8]) -> AlsBatch {
        let mut tally = Tally::default();
        let mut batch = AlsBatch::default();
        self.counters.received_message(message.len());
        match scan(message) {
            Ok(found) => {
                self.counters.received_entries(found.http, found.tcp);
                if let Some(identifier) = found.identifier {
                    self.identity.update(identifier, &mut tally);
                }
                let count = found.http + found.tcp;
                let mut hops = Decoded::default();
                self.messages.decode(message, count, &self.identity, &mut hops, &mut tally);
                (batch.entries, batch.progress) = (hops.ended, hops.progress);
                let new = self.announced.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &self.identity.proxy));
                if new && (self.identity.introduced || !batch.is_empty()) {
                    self.announced = Some(Arc::clone(&self.identity.proxy));
                    batch.proxy.clone_from(&self.announced);
                }
            }
            Err(invalid) => tally.message(invalid),
        }
        self.counters.add(&tally);
        batch
    }

    /// What was decoded so far.
    #[must_use]
    pub fn stats(&self) -> AlsStats {
        self.counters.snapshot((0, 0), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_counted(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8)) {
            let mut decoder = StreamDecoder::new(None);
            let mut kept = 0;
            for message in &messages {
                kept += decoder.decode(message).entries.len() as u64;
            }
            let stats = decoder.stats();
            prop_assert_eq!(stats.messages, messages.len() as u64);
            prop_assert_eq!(stats.kept, kept);
            prop_assert_eq!(stats.entries(), stats.accounted());
        }

        /// Bytes that get past the scanner: random entries inside of well-formed lists.
        #[test]
        fn any_entry_is_survived_and_counted(list in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..100)), 0..20)) {
            let mut message = Vec::new();
            for (tcp, entry) in &list {
                let len = u8::try_from(entry.len()).expect("short");
                message.extend([if *tcp { 0x1a } else { 0x12 }, len + 2, 0x0a, len]);
                message.extend(entry);
            }
            let mut decoder = StreamDecoder::new(None);
            decoder.decode(&message);
            let stats = decoder.stats();
            prop_assert_eq!(stats.entries(), list.len() as u64);
            prop_assert_eq!(stats.entries(), stats.accounted());
        }
    }
}
