//! Ctrl-C and SIGTERM, which end one thing after the other and nothing in the middle.

use crate::exit::Failure;
use anyhow::Context;
use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for signals. One that comes while nobody waits is not lost.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

/// A signal came before something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interrupted;

impl Interrupts {
    /// From now on signals no longer end the program.
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
        })
    }

    /// The next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Does something, unless a signal comes first, or has come already.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            () = self.next() => Err(Interrupted),
            done = work => Ok(done),
        }
    }

    /// Waits, unless a signal comes first.
    pub(super) async fn wait(&mut self, time: Duration) -> Result<(), Interrupted> {
        self.unless(tokio::time::sleep(time)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal as Kind, raise};

    #[test]
    fn a_signal_is_kept_until_somebody_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut interrupts = Interrupts::new().expect("signals");
            assert_eq!(interrupts.unless(async { 1 }).await, Ok(1));
            raise(Kind::SIGTERM).expect("raised");
            assert_eq!(interrupts.wait(Duration::from_secs(60)).await, Err(Interrupted));
            // It counts once.
            assert_eq!(interrupts.unless(async { 2 }).await, Ok(2));
            raise(Kind::SIGTERM).expect("raised");
            let late = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                3
            };
            assert_eq!(interrupts.unless(late).await, Err(Interrupted));
        });
    }
}
