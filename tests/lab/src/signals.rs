//! Ending on a signal, cleanly and without signal handlers.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};

/// SIGTERM, SIGINT and SIGHUP, blocked in this thread and in all that it starts later, to be waited for instead.
#[derive(Debug)]
pub struct Ending(SigSet);

impl Ending {
    /// Blocks the signals. Call it before any thread is started.
    ///
    /// # Errors
    /// When the kernel refuses the mask.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Waits for one of them.
    pub fn wait(&self) -> Signal {
        loop {
            if let Ok(signal) = self.0.wait() {
                return signal;
            }
        }
    }
}

/// Lets a child have no signal blocked: it inherits the mask of the thread that starts it, and would be deaf otherwise.
pub fn hearing(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; sigemptyset and pthread_sigmask are.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) }
}
