//! What a recording could see, and what seeing cost.

use serde::{Deserialize, Serialize};

/// Which kind of probe the kernel accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTier {
    /// BTF raw tracepoints (`tp_btf`).
    TpBtf,
    /// fentry and fexit.
    Fentry,
    /// kprobes.
    Kprobe,
    /// No probes.
    None,
}

impl ProbeTier {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::None => "none",
        }
    }
}

/// What the probes did during a recording, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStats {
    /// Records that reached the ring buffer.
    pub events: u64,
    /// Records that found the ring buffer full.
    pub lost_events: u64,
    /// Runs that the kernel left out, also for sockets that are not watched, because the same probe was running on the processor already
    /// (in a thread that was interrupted or had to make way for another). What they would have told is missing, without a gap in
    /// its socket's counter. 0 where the kernel does not count them (before Linux 5.12).
    #[serde(default)]
    pub skipped_runs: u64,
    /// Sockets that the kernel had no more when it was asked for what is open, and whose end was not seen: it was lost. None of them counts as
    /// closed.
    #[serde(default)]
    pub vanished_sockets: u64,
    /// Times that a probe ran, also for sockets that are not watched.
    pub runs: u64,
    /// Time spent inside the probes, in ns, as the kernel counts it (`run_time_ns`; counting itself adds to it). 0 where the kernel does
    /// not count.
    pub run_time_ns: u64,
}

impl ProbeStats {
    /// Mean time inside a probe per record that reached the ring buffer, in ns; `None` if nothing was counted.
    #[must_use]
    pub const fn cost_ns_per_event(&self) -> Option<u64> {
        if self.run_time_ns == 0 { None } else { self.run_time_ns.checked_div(self.events) }
    }
}
