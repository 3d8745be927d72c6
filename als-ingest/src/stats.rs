//! What came, what was kept, and what became of the rest.

use crate::proto::{InvalidEntry, InvalidField, InvalidMessage, LogType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Defines an enum of things that are counted, with a stable name for each.
macro_rules! counted {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them.
            $vis const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            $vis const COUNT: usize = Self::ALL.len();
            /// The name in statistics.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}
pub(crate) use counted;

counted! {
    /// Why a well-formed entry was not handed on.
    pub enum ShedReason {
        /// The queue before the decoders was full: the consumer or the processor is too slow.
        QueueFull => "queue_full",
        /// The consumer had gone.
        ConsumerGone => "consumer_gone",
    }
}

counted! {
    /// How a stream ended other than by its sender's will.
    pub enum StreamFailure {
        /// What came was not gRPC: the rest of the stream was swallowed.
        Framing => "framing",
        /// The connection or the stream broke; an Envoy that exits looks like this too.
        Connection => "connection",
    }
}

/// Counts of some messages, gathered without atomics.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kept: u64,
    /// Something beside `kept` is not zero.
    marked: bool,
    pub(crate) not_terminal: [u64; LogType::COUNT],
    pub(crate) shed: [u64; ShedReason::COUNT],
    pub(crate) invalid_messages: [u64; InvalidMessage::COUNT],
    pub(crate) invalid_entries: [u64; InvalidEntry::COUNT],
    pub(crate) invalid_fields: [u64; InvalidField::COUNT],
}

impl Tally {
    pub(crate) fn field(&mut self, kind: InvalidField) {
        self.add_field(kind, 1);
    }
    pub(crate) fn add_field(&mut self, kind: InvalidField, times: u64) {
        self.marked = true;
        self.invalid_fields[kind as usize] += times;
    }
    pub(crate) fn not_terminal(&mut self, kind: LogType) {
        self.marked = true;
        self.not_terminal[kind as usize] += 1;
    }
    pub(crate) fn message(&mut self, kind: InvalidMessage) {
        self.marked = true;
        self.invalid_messages[kind as usize] += 1;
    }
    pub(crate) fn shed(&mut self, why: ShedReason, entries: usize) {
        self.marked = true;
        self.shed[why as usize] += entries as u64;
    }
    /// What was kept, or would have been if it were terminal, was lost instead: nobody takes it any more.
    pub(crate) fn lose(&mut self) {
        self.marked = true;
        let lost = std::mem::take(&mut self.kept) + std::mem::take(&mut self.not_terminal).iter().sum::<u64>();
        self.shed[ShedReason::ConsumerGone as usize] += lost;
    }
    pub(crate) fn entry(&mut self, kind: InvalidEntry) {
        self.marked = true;
        self.invalid_entries[kind as usize] += 1;
    }
    /// How many fields were wrong.
    pub(crate) fn faults(&self) -> u64 {
        if self.marked { self.invalid_fields.iter().sum() } else { 0 }
    }
    /// Adds the wrong fields to those of another, and returns how many they are.
    pub(crate) fn fields(&self, to: &mut Self) -> u64 {
        to.marked |= self.marked;
        to.invalid_fields.iter_mut().zip(self.invalid_fields).for_each(|(to, n)| *to += n);
        self.faults()
    }
}

/// The receiver's counters, shared by all its tasks.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) streams_opened: AtomicU64,
    pub(crate) streams_open: AtomicU64,
    streams_failed: [AtomicU64; StreamFailure::COUNT],
    pub(crate) accept_errors: AtomicU64,
    pub(crate) tls_failed: AtomicU64,
    pub(crate) tls_reloads: AtomicU64,
    pub(crate) tls_reloads_failed: AtomicU64,
    bytes: AtomicU64,
    messages: AtomicU64,
    entries_http: AtomicU64,
    entries_tcp: AtomicU64,
    kept: AtomicU64,
    not_terminal: [AtomicU64; LogType::COUNT],
    shed: [AtomicU64; ShedReason::COUNT],
    invalid_messages: [AtomicU64; InvalidMessage::COUNT],
    invalid_entries: [AtomicU64; InvalidEntry::COUNT],
    invalid_fields: [AtomicU64; InvalidField::COUNT],
}

impl Counters {
    pub(crate) fn add(&self, tally: &Tally) {
        fn all(to: &[AtomicU64], from: &[u64]) {
            for (to, &from) in to.iter().zip(from) {
                if from > 0 {
                    to.fetch_add(from, Relaxed);
                }
            }
        }
        if tally.kept > 0 {
            self.kept.fetch_add(tally.kept, Relaxed);
        }
        if !tally.marked {
            return;
        }
        all(&self.not_terminal, &tally.not_terminal);
        all(&self.shed, &tally.shed);
        all(&self.invalid_messages, &tally.invalid_messages);
        all(&self.invalid_entries, &tally.invalid_entries);
        all(&self.invalid_fields, &tally.invalid_fields);
    }

    pub(crate) fn received_messages(&self, messages: u64, bytes: usize) {
        self.messages.fetch_add(messages, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn received_entries(&self, http: usize, tcp: usize) {
        for (count, entries) in [(&self.entries_http, http), (&self.entries_tcp, tcp)] {
            if entries > 0 {
                count.fetch_add(entries as u64, Relaxed);
            }
        }
    }

    pub(crate) fn failed(&self, how: StreamFailure) {
        self.streams_failed[how as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self, (queued_bytes, queued_entries): (usize, usize), assembling: usize) -> AlsStats {
        fn named<K: Copy>(
            kinds: &[K],
            counts: &[AtomicU64],
            name: impl Fn(K) -> &'static str,
        ) -> BTreeMap<String, u64> {
            let counts = counts.iter().map(|c| c.load(Relaxed));
            kinds.iter().zip(counts).filter(|&(_, n)| n > 0).map(|(&k, n)| (name(k).to_owned(), n)).collect()
        }
        AlsStats {
            streams_opened: self.streams_opened.load(Relaxed),
            streams_open: self.streams_open.load(Relaxed),
            streams_failed: named(StreamFailure::ALL, &self.streams_failed, StreamFailure::as_str),
            accept_errors: self.accept_errors.load(Relaxed),
            tls_failed: self.tls_failed.load(Relaxed),
            tls_reloads: self.tls_reloads.load(Relaxed),
            tls_reloads_failed: self.tls_reloads_failed.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            messages: self.messages.load(Relaxed),
            entries_http: self.entries_http.load(Relaxed),
            entries_tcp: self.entries_tcp.load(Relaxed),
            kept: self.kept.load(Relaxed),
            not_terminal: named(LogType::ALL, &self.not_terminal, LogType::as_str),
            shed: named(ShedReason::ALL, &self.shed, ShedReason::as_str),
            malformed_messages: named(InvalidMessage::ALL, &self.invalid_messages, InvalidMessage::as_str),
            malformed_entries: named(InvalidEntry::ALL, &self.invalid_entries, InvalidEntry::as_str),
            malformed_fields: named(InvalidField::ALL, &self.invalid_fields, InvalidField::as_str),
            queued_bytes: queued_bytes as u64,
            queued_entries: queued_entries as u64,
            assembling_bytes: assembling as u64,
        }
    }
}

/// A snapshot of what the receiver counted since it started. Maps leave out what never happened.
///
/// Every entry that was received is in exactly one place: `entries_http + entries_tcp` is the sum of `kept`, `not_terminal`, `shed`,
/// `malformed_entries` and (while the receiver runs) the entries on their way through the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AlsStats {
    /// Streams that were opened.
    pub streams_opened: u64,
    /// Streams that are open now.
    pub streams_open: u64,
    /// Streams that broke, by [`StreamFailure`].
    pub streams_failed: BTreeMap<String, u64>,
    /// Connections that could not be accepted (no file descriptor left, for instance).
    pub accept_errors: u64,
    /// Connections whose TLS handshake failed: a client that speaks none, does not trust our certificate, or has none that we trust.
    pub tls_failed: u64,
    /// Times that the certificates were read anew because their files had changed.
    pub tls_reloads: u64,
    /// Times that changed certificate files could not be used: what there was before stays.
    pub tls_reloads_failed: u64,
    /// Bytes of messages, without gRPC and HTTP/2 framing.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
    /// HTTP entries in well-formed messages.
    pub entries_http: u64,
    /// TCP entries in well-formed messages.
    pub entries_tcp: u64,
    /// Entries handed on.
    pub kept: u64,
    /// Well-formed entries that do not stand for a finished request or connection, by Envoy's `AccessLogType`.
    pub not_terminal: BTreeMap<String, u64>,
    /// Entries that were dropped here, by [`ShedReason`].
    pub shed: BTreeMap<String, u64>,
    /// Messages skipped whole, by [`InvalidMessage`]: how many entries they held is not known.
    pub malformed_messages: BTreeMap<String, u64>,
    /// Entries skipped, by [`InvalidEntry`].
    pub malformed_entries: BTreeMap<String, u64>,
    /// Things that were wrong with entries or nodes that were kept without them, by [`InvalidField`].
    pub malformed_fields: BTreeMap<String, u64>,
    /// Bytes that wait now, to be decoded or in batches that were not dropped yet.
    pub queued_bytes: u64,
    /// Entries that wait now, likewise.
    pub queued_entries: u64,
    /// Bytes of messages of which only a part has come by now.
    pub assembling_bytes: u64,
}

impl AlsStats {
    /// Entries received in well-formed messages.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries_http + self.entries_tcp
    }

    /// Entries of which it is known what became of them: equals [`entries`](Self::entries) once the receiver has
    /// stopped.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        let sum = |m: &BTreeMap<String, u64>| m.values().sum::<u64>();
        self.kept + sum(&self.not_terminal) + sum(&self.shed) + sum(&self.malformed_entries)
    }
}
