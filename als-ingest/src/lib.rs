//! The door for Envoy's access logs: a gRPC Access Log Service (`envoy.service.accesslog.v3`) that takes HTTP and TCP
//! entries from many Envoys at once and hands them on as rows ([`LogBatch`](meshdiff_model::LogBatch)), with the
//! [`Proxy`](meshdiff_model::Proxy) that each stream introduces itself as.
//!
//! The protocol has no acknowledgement and no sequence numbers, and an Envoy whose receiver is slow drops entries
//! without a word. So the receiver never answers on a stream and never ends one while it records, takes bytes off the
//! wire at once and decodes them in a task of its own, bounds what waits in between, and counts everything that does
//! not come out at the other end ([`AlsStats`]).
//!
//! Envoy's wire types stop here: no other package names them.

mod connection;
mod decoder;
mod error;
mod frames;
mod intern;
mod proto;
mod queue;
mod server;
mod service;
mod settings;
mod stats;
mod tls;

#[doc(hidden)]
pub use decoder::OracleDecoder;
pub use decoder::{AlsBatch, StreamDecoder};
pub use error::{BindError, ServeError};
pub use proto::{InvalidEntry, InvalidField, InvalidMessage};
pub use server::{AlsHandle, AlsServer};
pub use settings::AlsSettings;
pub use stats::{AlsStats, ShedReason, StreamFailure};
pub use tls::{AlsTls, TlsError, TlsFiles};
