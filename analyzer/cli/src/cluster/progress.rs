//! How far the fetching is, on a terminal.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// One line on stderr, gone at the end. Nothing where stderr is no terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    agents: usize,
    answered: AtomicUsize,
    bytes: AtomicU64,
}

impl Progress {
    pub(super) fn new(agents: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        let progress = Self { bar, agents, answered: AtomicUsize::new(0), bytes: AtomicU64::new(0) };
        progress.show();
        progress
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.show();
    }

    pub(super) fn answered(&self, node: &str, well: bool) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        tracing::info!(node, well, "agent answered");
        self.show();
    }

    fn show(&self) {
        let (answered, bytes) = (self.answered.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        self.bar.set_message(format!("{answered} of {} agents answered, {}", self.agents, HumanBytes(bytes)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
