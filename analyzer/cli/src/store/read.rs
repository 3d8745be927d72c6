//! A report's data from the store.

use super::store_url;
use crate::agent;
use crate::args::SourceArgs;
use crate::cluster;
use crate::exit::Failure;
use meshdiff_capture::CaptureData;
use meshdiff_capture::clickhouse::{Choice, Store, StoredRecording};
use meshdiff_model::MonotonicNs;
use std::time::Duration;

/// How far a report goes back that is not told otherwise.
pub(super) const SINCE: Duration = Duration::from_secs(15 * 60);

/// What the store had.
pub(crate) struct Stored {
    pub(crate) data: CaptureData,
    /// As sentences call it.
    pub(crate) name: String,
    pub(crate) notes: Vec<String>,
    /// First and last instant of all recordings, where there are several nodes'.
    pub(crate) whole: Option<(MonotonicNs, MonotonicNs)>,
}

/// Reads what a store has of a time.
pub(crate) fn gather(store: &str, args: &SourceArgs) -> Result<Stored, Failure> {
    let url = store_url(store)?;
    let name = url.to_string();
    let choice = Choice { since: args.since.unwrap_or(SINCE), namespace: args.namespace.clone() };
    let found = Store::open(url)?.read(&choice)?;
    put_together(found, name)
}

/// Puts the nodes' recordings together.
pub(super) fn put_together(mut found: Vec<StoredRecording>, name: String) -> Result<Stored, Failure> {
    for recording in &found {
        tracing::info!(
            node = recording.node,
            captures = recording.metas.len(),
            messages = recording.data.messages.len(),
            access_logs = recording.data.access_logs.len(),
            pruned = recording.pruned,
            "read from the store"
        );
    }
    found.iter_mut().for_each(segments_together);
    let several = found.len() > 1;
    let mut notes = Vec::new();
    let Some(first) = found.pop() else {
        return Err(Failure::TooLittleData(format!(
            "{name} holds no capture: let agents send theirs with --store, or store one with `meshdiff store`"
        )));
    };
    if !several {
        notes.extend(first.data.warnings());
        notes.extend(first.notes);
        return Ok(Stored { data: first.data, name, notes, whole: None });
    }
    found.push(first);
    notes.extend(found.iter().flat_map(|r| r.notes.iter().map(|n| format!("{}: {n}", r.node))));
    let merged = cluster::together(found.into_iter().map(|r| (r.node, r.data)).collect())?;
    notes.extend(merged.notes);
    Ok(Stored { data: merged.data, name, notes, whole: Some(merged.whole) })
}

/// Several segments' metas become that of the whole.
fn segments_together(recording: &mut StoredRecording) {
    if recording.metas.len() > 1
        && let Some(meta) = agent::merged_metas(&recording.metas)
    {
        recording.data.meta = meta;
    }
}
