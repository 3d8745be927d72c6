//! HTTP/2 with prior knowledge, and gRPC over it, by the `h2` crate.

pub mod client;
mod message;
pub mod server;
pub mod tap;

/// How much an end lets the other send ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Bytes per stream; the protocol's 65,535 if absent.
    pub stream: Option<u32>,
    /// Bytes per connection; likewise.
    pub connection: Option<u32>,
}

impl Windows {
    /// So little that a body of any size stalls.
    pub const NARROW: Self = Self { stream: Some(16 << 10), connection: None };
}
