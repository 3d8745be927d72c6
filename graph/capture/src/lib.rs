//! The capture: a folder of Parquet files and a `meta.json`, written while a recording runs and read by everything
//! that comes after it. `README.md` in this package documents every column.
//!
//! Writing survives what recordings meet: a part is written under a temporary name, synced and renamed, and
//! `meta.json` is replaced in one step, so that whatever kills the recorder leaves everything up to the last
//! [`roll`](CaptureSink::roll) readable. Reading survives what files meet on their way: a part that is cut short or
//! damaged is left out, counted and named in [`Damage`], and never a reason to panic.

mod by_parts;
pub mod clickhouse;
mod column;
mod damage;
mod docs;
mod error;
mod file;
mod filter;
pub mod http;
mod kubernetes;
mod logs;
mod meta;
mod names;
mod part;
mod quiet;
mod reader;
mod sink;
mod syncer;
mod table;
mod tables;
mod view;
mod without_paths;
mod writer;

pub use by_parts::{ByParts, LogOutline, MessageOutline};
pub use column::ColumnDoc;
pub use damage::{Damage, DamagedPart, PartError};
pub use docs::schema_markdown;
pub use error::CaptureError;
pub use filter::{Keep, PartFilter, proxies_of_part, sockets_of_part};
pub use kubernetes::KubernetesInfo;
pub use meta::{
    AlsStats, EntryCounts, EventCounts, HostInfo, Meta, ProbeInfo, RecordingState, TableStats, TierRefusal, TlsLibrary,
    ToolInfo, Unmeasured, WatchReason, WatchedNetns,
};
pub use reader::{Capture, CaptureData, CaptureState, ReadOptions};
pub use sink::CaptureSink;
pub use table::Table;
pub use without_paths::WithoutPaths;
pub use writer::{CaptureWriter, Existing, WriterOptions};

/// The schema that this version writes. Within a version columns and fields may be added, never changed or removed.
pub const SCHEMA_VERSION: &str = "meshdiff.capture/v2";

/// What stands before the number in [`SCHEMA_VERSION`].
pub(crate) const SCHEMA_PREFIX: &str = "meshdiff.capture/v";

/// The number in [`SCHEMA_VERSION`].
pub(crate) const SCHEMA_NUMBER: u32 = 2;

/// The file that makes a folder a capture.
pub(crate) const META_FILE: &str = "meta.json";
