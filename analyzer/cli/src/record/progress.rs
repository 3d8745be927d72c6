//! What `record` says on stderr while it runs.

use super::options::Options;
use super::store::Counters;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshdiff_capture::{Meta, Table};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A line that is redrawn on a terminal, and nothing elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    counters: Arc<Counters>,
    begun: Instant,
    duration: Option<Duration>,
    quiet: bool,
}

impl Progress {
    pub(crate) fn new(options: &Options, listen: SocketAddr, namespaces: usize) -> Self {
        let shown = !options.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        let counters = Arc::new(Counters::default());
        counters.namespaces.store(namespaces as u64, Relaxed);
        if !options.quiet {
            let what = match (options.probes, namespaces) {
                (false, _) => "access logs only".to_owned(),
                (true, 0) => "no sidecar found yet, looking again every second".to_owned(),
                (true, n) => format!("watching {n} network namespaces"),
            };
            let until = options.duration.map_or_else(|| "until Ctrl-C".to_owned(), |d| format!("for {}", seconds(d)));
            eprintln!("Recording {until}: {what}; access logs on {listen}.");
        }
        Self { bar, counters, begun: Instant::now(), duration: options.duration, quiet: options.quiet }
    }

    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(crate) fn show(&self) {
        let elapsed = seconds(self.begun.elapsed());
        let of = self.duration.map_or_else(String::new, |d| format!(" of {}", seconds(d)));
        let c = &self.counters;
        let lost = c.lost.load(Relaxed);
        let lost = if lost > 0 { format!(", {lost} events LOST") } else { String::new() };
        self.bar.set_message(format!(
            "{elapsed}{of}: {} messages, {} access log entries, {} namespaces{lost}",
            c.messages.load(Relaxed),
            c.entries.load(Relaxed),
            c.namespaces.load(Relaxed)
        ));
        self.bar.tick();
    }

    pub(crate) fn draining(&self) {
        if !self.quiet {
            self.bar.suspend(|| {
                eprintln!("Waiting 3 s for the access logs that Envoy still holds (Ctrl-C: not any longer).")
            });
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

/// What was recorded, and what to do with it.
pub(crate) fn summary(output: &Path, meta: &Meta) {
    let rows = |table: Table| meta.tables.get(&table).map_or(0, |t| t.rows);
    eprintln!(
        "Recorded {} messages and {} access log entries from {} Envoys; {} kernel events lost.",
        rows(Table::Messages),
        rows(Table::AccessLogs),
        meta.envoy_versions.values().sum::<u64>(),
        meta.probes.stats.lost_events
    );
    let skipped = meta.probes.stats.skipped_runs;
    if skipped > 0 {
        eprintln!(
            "The kernel left out {skipped} runs of probes that were running on the processor already; events may be missing."
        );
    }
    if rows(Table::AccessLogs) == 0 {
        eprintln!(
            "No access log entry arrived: do the sidecars' ALS settings point to {}?",
            meta.als.listen.as_deref().unwrap_or("this endpoint")
        );
    }
    for warning in &meta.warnings {
        eprintln!("Warning: {warning}");
    }
    eprintln!("Next: meshdiff report --capture {}", output.display());
}
