//! What can be set on the receiver.

/// Limits of the receiver: of all that waits between the wire and the end of a batch's use. The defaults hold what 5,000 streams send in a
/// sixth of a second undecoded, and in two thirds of one decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlsSettings {
    /// Largest gRPC message that is taken, in bytes. Envoy sends about 16 KiB at a time plus its node; a larger message
    /// than this is skipped and counted.
    pub max_message_bytes: usize,
    /// Bytes of messages of which only a part has come, over all streams.
    pub assembly_bytes: usize,
    /// Bytes of undecoded messages and of decoded entries that may wait, over all streams. A batch counts until it is dropped.
    pub queue_bytes: usize,
    /// Entries that may wait, decoded or not, over all streams.
    pub queue_entries: usize,
}

impl Default for AlsSettings {
    fn default() -> Self {
        Self { max_message_bytes: 16 << 20, assembly_bytes: 64 << 20, queue_bytes: 64 << 20, queue_entries: 1 << 19 }
    }
}
