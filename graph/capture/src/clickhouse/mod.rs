//! Captures in ClickHouse: past what fits one machine's disk and memory.
//!
//! The store has a table for each of the capture's, with the same columns and those that say which capture, part and row it was. Agents
//! send closed captures (their segments) through a spool on disk ([`Shipper`]); what is sent twice replaces itself, because each row has a
//! key of its own. A capture counts once its row in `captures` is there, which is sent last. [`Store`] chooses captures by time and, as far
//! as that cannot change any result, their rows by namespace, in SQL, and reads them as [`CaptureData`](crate::CaptureData).

mod client;
mod encode;
mod error;
mod read;
mod requests;
mod schema;
mod select;
mod shipper;
mod spool;
mod summary;
mod url;

pub use encode::capture_id;
pub use error::StoreError;
pub use read::{Choice, Found, Store, StoredRecording, Why};
pub use requests::{HalfRow, JoinedRequests, RequestKind, RequestRow, Split};
pub use schema::{Deployment, sql as schema_sql};
pub use shipper::{Shipper, ShipperOptions, ShipperStats};
pub use summary::{ClassCount, Cut, Doubts, EntrySums, HopSums, NearSums, Oddity, Series, SlowRow, StretchSums};
pub use url::{BadStoreUrl, StoreUrl};
