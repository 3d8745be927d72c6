//! What a recording says on stderr while it goes on.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Sentences, and a line that changes where stderr is a terminal.
pub(super) struct Say {
    bar: ProgressBar,
    quiet: bool,
}

impl Say {
    pub(super) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self { bar, quiet }
    }

    /// A sentence.
    pub(super) fn line(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{text}"));
        }
    }

    /// A sentence that is said also to who wants to hear nothing.
    pub(super) fn warning(&self, text: &str) {
        self.bar.suspend(|| eprintln!("Warning: {text}"));
    }

    /// The line that changes.
    pub(super) fn status(&self, text: String) {
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// No line any more, until there is another status.
    pub(super) fn clear(&self) {
        self.bar.set_message("");
        self.bar.finish_and_clear();
        self.bar.reset();
    }
}

/// A time, for people.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
