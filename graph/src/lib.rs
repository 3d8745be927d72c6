//! The petgraph model of what was recorded, and the joins that build it.
//!
//! Sockets become connections by flow and TCP sequence number, connections are cut into exchanges, access log entries are put
//! on exchanges by the addresses that Envoy names and by time, and what relays through the same proxies becomes a
//! [`JoinedHop`]. A partner that is not unique is never chosen.

mod connection;
mod exchange;
mod http2;
mod http2_places;
mod in_parts;
mod join;
pub mod lines;
mod mesh;
pub mod nodes;
#[cfg(test)]
mod samples;
mod stream;

pub use in_parts::{InParts, Outlines, Whole};
pub use join::{HopInput, Patience};
pub use mesh::{ConnectionEdge, Directory, Edge, HopEdge, MeshGraph, Node};

use meshdiff_model::JoinedHop;

/// A hop and how it is tied to other hops.
#[derive(Clone, Debug)]
pub struct Hop {
    /// What was found.
    pub joined: JoinedHop,
    /// Index of the hop during which the application that served it made this one; `None` for an entry request, or where
    /// that cannot be told for certain.
    pub caller: Option<usize>,
}
