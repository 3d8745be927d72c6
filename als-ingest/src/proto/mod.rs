//! Envoy's wire types, and their conversion into the model: they go no further than this module.
//!
//! Entries, of which there are many, are read from their bytes ([`reader`], [`view`]) and never become prost's messages;
//! an identifier, which comes once a stream, does. prost remains as the [`oracle`] of the tests.

mod address;
mod details;
mod entry;
mod fast;
mod flags;
mod known;
mod node;
mod oracle;
mod peer;
mod reader;
mod rows;
mod schema;
mod side;
mod skim;
mod time;
mod view;
mod wire;

pub(crate) use entry::{EntryDecoder, LogType};
pub(crate) use node::{proxy_from_identifier, unknown_proxy};
pub(crate) use oracle::ProstDecoder;
pub(crate) use wire::{EntryKind, Scan, entries, scan};

use crate::stats::counted;

counted! {
    /// Why a whole message was skipped.
    #[derive(thiserror::Error)]
    #[error("{}", self.as_str())]
    pub enum InvalidMessage {
        /// Not a protobuf message, or a known field of another type.
        Undecodable => "undecodable",
        /// Larger than the limit.
        TooLarge => "too_large",
        /// Compressed, which was not offered.
        Compressed => "compressed",
        /// Its stream ended in the middle of it.
        CutShort => "cut_short",
        /// Too much of other messages was under way at the same time.
        NoRoom => "no_room",
    }
}

counted! {
    /// Why an entry was skipped.
    #[derive(thiserror::Error)]
    #[error("{}", self.as_str())]
    pub enum InvalidEntry {
        /// Not a protobuf message, a known field of another type, or a string that is no UTF-8.
        Undecodable => "undecodable",
        /// No `common_properties`.
        MissingCommonProperties => "missing_common_properties",
        /// No `start_time`.
        MissingStartTime => "missing_start_time",
        /// A `start_time` outside of what 64 bits of nanoseconds hold, or before 1970.
        InvalidStartTime => "invalid_start_time",
    }
}

counted! {
    /// What was wrong with an entry or a node that was kept all the same, the field left out or cut.
    pub enum InvalidField {
        /// An entry on a stream that did not say who sends it: kept under the node id `unknown~IP`.
        MissingIdentifier => "missing_identifier",
        /// An identifier that could not be decoded, or without a node.
        InvalidIdentifier => "invalid_identifier",
        /// A node without an id: `unknown~IP` stands in.
        MissingNodeId => "missing_node_id",
        /// Node metadata of another type than Istio's, or an address among it that is none.
        InvalidNodeMetadata => "invalid_node_metadata",
        /// More labels or addresses than are kept.
        TooManyNodeValues => "too_many_node_values",
        /// A span below zero.
        NegativeDuration => "negative_duration",
        /// A span of more than a year.
        AbsurdDuration => "absurd_duration",
        /// A span whose nanoseconds are more than a second.
        InvalidDuration => "invalid_duration",
        /// An address that is no IP address and port.
        InvalidAddress => "invalid_address",
        /// An address that is a pipe (a Unix domain socket).
        PipeAddress => "pipe_address",
        /// An address that is internal to Envoy.
        InternalAddress => "internal_address",
        /// A status code that HTTP does not have.
        InvalidResponseCode => "invalid_response_code",
        /// A number that this version of the API does not name (protocol or method).
        UnknownNumber => "unknown_number",
        /// A peer in the filter state that is in none of Istio's encodings.
        InvalidPeer => "invalid_peer",
        /// One of meshdiff's custom tags with a value that is not of its kind.
        InvalidTag => "invalid_tag",
        /// More names in a certificate than are kept.
        TooManyNames => "too_many_names",
        /// A string longer than is kept: cut.
        CutString => "cut_string",
    }
}
