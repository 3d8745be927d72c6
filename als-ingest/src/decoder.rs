//! From the bytes of one stream to batches of entries.

use crate::proto::{
    EntryDecoder, EntryKind, InvalidEntry, InvalidField, ProstDecoder, entries, proxy_from_identifier, scan,
    unknown_proxy,
};
use crate::queue::Permit;
use crate::stats::{AlsStats, Counters, Tally};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use meshdiff_model::{HopSide, LogBatch, Proxy};
use std::net::IpAddr;
use std::sync::Arc;

/// What one message brought.
#[derive(Clone, Debug, Default)]
pub struct AlsBatch {
    /// The sender, when it is new or has changed. Other streams of the same proxy do not repeat it, so entries of a
    /// node can come shortly before its proxy does.
    pub proxy: Option<Arc<Proxy>>,
    /// Its entries in the order in which Envoy logged them: finished requests and connections, and those that do not stand for one
    /// (attempts, and how those do that are not over), which [`AccessLogType::is_terminal`](meshdiff_model::AccessLogType::is_terminal) tells.
    pub rows: LogBatch,
    /// What the entries take of the receiver's memory, until the batch is dropped.
    #[expect(dead_code, reason = "dropping it gives the room back")]
    pub(crate) room: Option<Arc<Permit>>,
}

impl AlsBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.proxy.is_none() && self.rows.is_empty()
    }

    /// How many of the entries stand for finished requests and connections.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.rows.rows.iter().filter(|row| self.rows.kind(row).access_log_type.is_terminal()).count()
    }

    /// Finished requests and connections.
    #[must_use]
    pub fn entries(&self) -> Vec<HopSide> {
        self.rows.hops().filter(|hop| hop.access_log_type.is_terminal()).collect()
    }

    /// The other entries.
    #[must_use]
    pub fn progress(&self) -> Vec<HopSide> {
        self.rows.hops().filter(|hop| !hop.access_log_type.is_terminal()).collect()
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

/// Decodes the entries of a message that the scanner accepted, each with `decode`, which says whether it is terminal.
pub(crate) fn decode_message(
    message: &[u8],
    from: &Identity,
    tally: &mut Tally,
    mut decode: impl FnMut(EntryKind, &[u8], &mut Tally) -> Result<bool, InvalidEntry>,
) {
    let (mut kept, mut all) = (0, 0);
    for (kind, bytes) in entries(message) {
        match decode(kind, bytes, tally) {
            Ok(terminal) => {
                kept += u64::from(terminal);
                all += 1;
            }
            Err(invalid) => tally.entry(invalid),
        }
    }
    tally.kept += kept;
    if !from.introduced && all > 0 {
        tally.add_field(InvalidField::MissingIdentifier, all);
    }
}

/// Decodes a stream of `StreamAccessLogsMessage`s without a server: recorded bytes, tests, fuzzing. What the server
/// does with the messages of one stream, it does as well.
#[derive(Debug)]
pub struct StreamDecoder {
    stream: Stream,
    decoder: EntryDecoder,
}

impl StreamDecoder {
    /// A decoder for a stream from this address.
    #[must_use]
    pub fn new(peer: Option<IpAddr>) -> Self {
        Self { stream: Stream::new(peer), decoder: EntryDecoder::new() }
    }

    /// Decodes one message. What is malformed is counted in [`stats`](Self::stats) and survived.
    pub fn decode(&mut self, message: &[u8]) -> AlsBatch {
        let Self { stream, decoder } = self;
        stream.message(message, |from, tally| {
            decoder.begin(&from.proxy);
            decode_message(message, from, tally, |kind, bytes, tally| decoder.decode(kind, bytes, &from.proxy, tally));
        });
        let rows = self.decoder.take();
        AlsBatch { proxy: self.stream.announce(!rows.is_empty()), rows, room: None }
    }

    /// What was decoded so far.
    #[must_use]
    pub fn stats(&self) -> AlsStats {
        self.stream.counters.snapshot((0, 0), 0)
    }

    /// How many entries were of a kind that was known by its bytes: for tests, which have to meet such entries too.
    #[doc(hidden)]
    #[must_use]
    pub const fn found(&self) -> u64 {
        self.decoder.found()
    }
}

/// The same by way of prost's messages: the tests' oracle, and to be measured against.
#[doc(hidden)]
#[derive(Debug)]
pub struct OracleDecoder {
    stream: Stream,
    prost: ProstDecoder,
}

impl OracleDecoder {
    /// A decoder for a stream from this address.
    #[must_use]
    pub fn new(peer: Option<IpAddr>) -> Self {
        Self { stream: Stream::new(peer), prost: ProstDecoder::new() }
    }

    /// The proxy if it is new, and all entries.
    pub fn decode(&mut self, message: &[u8]) -> (Option<Arc<Proxy>>, Vec<HopSide>) {
        let Self { stream, prost } = self;
        let mut hops = Vec::new();
        stream.message(message, |from, tally| {
            decode_message(message, from, tally, |kind, bytes, tally| {
                hops.push(prost.decode(kind, bytes, &from.proxy, tally)?);
                Ok(hops.last().is_some_and(|hop| hop.access_log_type.is_terminal()))
            });
        });
        (self.stream.announce(!hops.is_empty()), hops)
    }

    /// The entries of a message that prost has decoded, for what it is worth to be compared with: its sender stays unknown.
    pub fn convert(&mut self, message: StreamAccessLogsMessage) -> Vec<HopSide> {
        self.prost.convert(message, &self.stream.identity.proxy, &mut Tally::default())
    }

    /// What was decoded so far.
    #[must_use]
    pub fn stats(&self) -> AlsStats {
        self.stream.counters.snapshot((0, 0), 0)
    }
}

/// What a stream without a server has beside its decoder.
#[derive(Debug)]
struct Stream {
    identity: Identity,
    announced: Option<Arc<Proxy>>,
    counters: Counters,
}

impl Stream {
    fn new(peer: Option<IpAddr>) -> Self {
        Self { identity: Identity::unknown(peer), announced: None, counters: Counters::default() }
    }

    fn message(&mut self, message: &[u8], decode: impl FnOnce(&Identity, &mut Tally)) {
        let mut tally = Tally::default();
        self.counters.received_messages(1, message.len());
        match scan(message) {
            Ok(found) => {
                self.counters.received_entries(found.http, found.tcp);
                if let Some(identifier) = found.identifier {
                    self.identity.update(identifier, &mut tally);
                }
                decode(&self.identity, &mut tally);
            }
            Err(invalid) => tally.message(invalid),
        }
        self.counters.add(&tally);
    }

    /// The proxy, if it was not said yet and there is a reason to.
    fn announce(&mut self, entries: bool) -> Option<Arc<Proxy>> {
        let new = self.announced.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &self.identity.proxy));
        if !new || !(self.identity.introduced || entries) {
            return None;
        }
        self.announced = Some(Arc::clone(&self.identity.proxy));
        self.announced.clone()
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
                kept += decoder.decode(message).ended() as u64;
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
