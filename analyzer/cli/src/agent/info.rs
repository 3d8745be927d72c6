//! What the agent says of itself.

use super::pods::Namespaces;
use super::window::Window;
use crate::record::clock;
use meshdiff_capture::{Meta, SCHEMA_VERSION};
use meshdiff_discovery::kube::{Informers, Status};
use meshdiff_model::ProbeTier;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What does not change while it runs.
pub(crate) struct About {
    pub(crate) node: Option<String>,
    pub(crate) tier: ProbeTier,
    pub(crate) namespaces: Namespaces,
    pub(crate) keep_seconds: u64,
    pub(crate) keep_bytes: u64,
    /// The informers, or why there are none.
    pub(crate) informers: Result<Arc<Informers>, String>,
}

impl About {
    /// `/v1/info`.
    pub(crate) fn describe(&self, window: &Window, ready: bool) -> Value {
        let now = clock::sample();
        let segments = window.since(None, now);
        let rows = |table| -> u64 { segments.iter().filter_map(|s| s.meta.tables.get(&table)).map(|t| t.rows).sum() };
        let (closed, bytes, earlier) = window.size();
        let counted = window.counted();
        let counter = |n: &std::sync::atomic::AtomicU64| n.load(Relaxed);
        let (reachable, reason) = match &self.informers {
            Err(why) => (false, Some(why.clone())),
            Ok(informers) => match informers.status() {
                Status::Synced => (true, None),
                Status::Starting => (false, Some("the first list of pods has not come yet".to_owned())),
                Status::Failing(why) => (false, Some(why)),
            },
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "schemaVersion": SCHEMA_VERSION,
            "node": self.node,
            "tier": self.tier,
            "ready": ready,
            "nowNs": now.wall.0,
            "namespaces": self.namespaces.describe(),
            "kubernetes": { "reachable": reachable, "reason": reason },
            "window": {
                "startNs": segments.first().map(|s| s.start().wall.0),
                "endNs": segments.last().map(|s| s.end.wall.0),
                "segments": closed,
                "segmentsOfEarlierBoot": earlier,
                "bytes": bytes,
                "keepSeconds": self.keep_seconds,
                "keepBytes": self.keep_bytes,
            },
            "counts": {
                "messages": rows(meshdiff_capture::Table::Messages),
                "accessLogs": rows(meshdiff_capture::Table::AccessLogs),
                "kernelEvents": counted.probes.events,
                "kernelEventsLost": counted.probes.lost_events,
                "accessLogsDropped": counted.als.http.dropped + counted.als.tcp.dropped,
                "rowsLost": counter(&window.counters.lost_rows),
                "segmentsRecovered": counter(&window.counters.recovered),
                "diskFullErrors": counter(&window.counters.full_errors),
            },
        })
    }

    /// Says in a capture on which node it was made, and what its agent could not know.
    pub(crate) fn annotate(&self, meta: &mut Meta) {
        meta.settings.insert("node".to_owned(), json!(self.node));
        meta.settings.insert("agentNamespaces".to_owned(), json!(self.namespaces.describe()));
        let node = self.node.as_deref().unwrap_or(&meta.host.hostname);
        meta.warnings.iter_mut().for_each(|w| *w = format!("node {node}: {w}"));
    }
}
