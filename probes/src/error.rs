//! Why the probes could not be used, in words that say what to do.

use aya::maps::MapError;
use meshdiff_model::{Metric, ProbeTier};
use std::io;

/// Why the probes could not be loaded, attached or asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The process may not load BPF programs.
    #[error(
        "loading the kernel probes needs root, or the capabilities CAP_BPF and CAP_PERFMON (missing: {missing}); run as root, \
         grant them to the container, or record without probes (--no-probes)"
    )]
    NotPermitted {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The kernel carries no description of its own types.
    #[error(
        "this kernel has no BTF at /sys/kernel/btf/vmlinux, without which the probes cannot find its fields; use a kernel \
         built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is), or record without probes (--no-probes): {source}"
    )]
    NoBtf {
        /// What reading it said.
        source: aya::BtfError,
    },
    /// The kernel is too old for this tier of probes.
    #[error("this kernel ({kernel}) has no tracepoint {tracepoint}")]
    TracepointMissing {
        /// The tracepoint.
        tracepoint: &'static str,
        /// The kernel's release.
        kernel: String,
    },
    /// The kernel has no such function, or the compiler put it into its callers.
    #[error("this kernel ({kernel}) has no function {function} that a probe can be attached to")]
    FunctionMissing {
        /// The function.
        function: &'static str,
        /// The kernel's release.
        kernel: String,
    },
    /// The kernel does not let programs read its memory, which kprobes have to.
    #[error(
        "this kernel ({kernel}) does not let probes read its memory by the helper that kprobes need{}",
        .lockdown.as_ref().map_or(String::new(), |level| format!(" (kernel lockdown is at {level})"))
    )]
    MemoryForbidden {
        /// The kernel's release.
        kernel: String,
        /// The level of kernel lockdown; `None` if it is not to be seen.
        lockdown: Option<String>,
    },
    /// There are no kprobes for the processor.
    #[error("there are no kprobe probes for processors of the kind {architecture}, only for x86_64 and aarch64")]
    Architecture {
        /// The machine's.
        architecture: &'static str,
    },
    /// No kind of probes works.
    #[error(
        "no kind of kernel probe works on this machine ({}); `meshdiff check` says what to do about it, and --no-probes records \
         without", listed(.refused)
    )]
    NoTier {
        /// What was tried, and why it was refused.
        refused: Vec<(ProbeTier, ProbeError)>,
    },
    /// There are no programs for this tier.
    #[error("there are no probes of the kind {}", .tier.as_str())]
    NoSuchTier {
        /// The tier.
        tier: ProbeTier,
    },
    /// There is no program that measures this in the tier.
    #[error("{} are not measured by {} probes", .metric.as_str(), .tier.as_str())]
    NotInTier {
        /// What is not measured.
        metric: Metric,
        /// The tier.
        tier: ProbeTier,
    },
    /// The kernel names the socket only of packets that it drops on their way out: drops are counted, but not all of them.
    #[error(
        "this kernel ({kernel}) names the socket of dropped packets only where they are sent: drops of received packets are not counted"
    )]
    SentDropsOnly {
        /// The kernel's release.
        kernel: String,
    },
    /// The kernel's verifier or a security module refused a program.
    #[error("the kernel refused the probe {program}: {errno}{}", hint(.errno, .log))]
    ProgramRefused {
        /// The program's name in `bpf/`.
        program: &'static str,
        /// The error of `BPF_PROG_LOAD`.
        errno: io::Error,
        /// The last lines of the verifier's log; empty if it said nothing.
        log: String,
    },
    /// The kernel accepted a program but would not attach it.
    #[error("the kernel would not attach the probe {program} to {target}: {source}")]
    AttachRefused {
        /// The program's name in `bpf/`.
        program: &'static str,
        /// The tracepoint or function.
        target: &'static str,
        /// What the kernel said.
        source: aya::programs::ProgramError,
    },
    /// The kernel would not place a kprobe.
    #[error("the kernel would not place a kprobe on {function}: {reason}")]
    KprobeRefused {
        /// The function.
        function: &'static str,
        /// What the loader said, with its causes.
        reason: String,
    },
    /// A map could not be made.
    #[error(
        "the kernel would not make the map {map}: {errno}; if that is about memory, ask for a smaller ring buffer or raise \
         the memory limit of the process (RLIMIT_MEMLOCK before Linux 5.11, the control group's limit since)"
    )]
    MapRefused {
        /// The map's name in `bpf/`.
        map: String,
        /// The error of `BPF_MAP_CREATE`.
        errno: io::Error,
    },
    /// The ring buffer's size is impossible.
    #[error(
        "a ring buffer of {bytes} bytes cannot be made: the size must be a power of two and at least 4096 (a page)"
    )]
    BadRingSize {
        /// The size that was asked for.
        bytes: u32,
    },
    /// The running kernel's types do not fit the probes, or the object is damaged.
    #[error(
        "the probes do not fit this kernel's types ({kernel}): {reason}; please report this with the kernel's version"
    )]
    DoesNotFit {
        /// The kernel's release.
        kernel: String,
        /// What the loader said.
        reason: String,
    },
    /// A map of the loaded probes could not be read or written.
    #[error("the probes' map {map} could not be used: {source}")]
    Map {
        /// The map's name in `bpf/`.
        map: &'static str,
        /// What went wrong.
        source: MapError,
    },
}

impl ProbeError {
    /// True if another kind of probes may work where this one does not.
    pub(crate) const fn is_about_the_tier(&self) -> bool {
        matches!(
            self,
            Self::TracepointMissing { .. }
                | Self::FunctionMissing { .. }
                | Self::ProgramRefused { .. }
                | Self::AttachRefused { .. }
                | Self::KprobeRefused { .. }
                | Self::NoSuchTier { .. }
                | Self::MemoryForbidden { .. }
                | Self::Architecture { .. }
                | Self::DoesNotFit { .. }
        )
    }

    /// True if the kernel's verifier gave a reason.
    pub(crate) const fn has_log(&self) -> bool {
        matches!(self, Self::ProgramRefused { log, .. } if !log.is_empty())
    }

    /// What to do about it, as a sentence without a full stop.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotPermitted { .. } => {
                "run as root, or grant CAP_BPF and CAP_PERFMON (in Kubernetes: securityContext.capabilities.add)"
            }
            Self::NoBtf { .. } => "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
            Self::TracepointMissing { .. } => {
                "upgrade to Linux 6.16 or later; nothing need be done while another kind works"
            }
            Self::FunctionMissing { .. } => {
                "use a kernel that is built with CONFIG_FUNCTION_TRACER=y, or Linux 6.16 or later"
            }
            Self::ProgramRefused { errno, log, .. }
                if log.is_empty() && errno.kind() == io::ErrorKind::PermissionDenied =>
            {
                "allow it in the seccomp profile, the LSM or the hypervisor, or rely on another kind"
            }
            Self::AttachRefused { .. } => {
                "use a kernel that is built with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y (arm64: Linux 6.4 or later)"
            }
            Self::MemoryForbidden { .. } => {
                "boot with lockdown=integrity or without lockdown, or rely on another kind: those do without the helper"
            }
            Self::Architecture { .. } => "rely on another kind",
            Self::KprobeRefused { .. } => {
                "use a kernel that is built with CONFIG_KPROBES=y and CONFIG_BPF_EVENTS=y; nothing need be done while another kind works"
            }
            Self::MapRefused { .. } => "ask for a smaller ring buffer (--ring-size), or raise the memory limit",
            Self::BadRingSize { .. } => "ask for a power of two",
            Self::SentDropsOnly { .. } => "upgrade to Linux 6.11 or later",
            Self::NotInTier { .. } => "use a kernel that allows another kind of probes",
            Self::NoSuchTier { .. } => "choose another kind",
            Self::NoTier { .. } => "do what is said for one of the kinds, or record without probes (--no-probes)",
            Self::ProgramRefused { .. } | Self::DoesNotFit { .. } | Self::Map { .. } => {
                "report it to meshdiff's issue tracker together with the kernel's version"
            }
        }
    }

    /// A refusal that is none of the expected ones, with all its causes.
    pub(crate) fn does_not_fit(error: &dyn std::error::Error) -> Self {
        Self::DoesNotFit { kernel: kernel_release(), reason: with_causes(error) }
    }
}

/// An error and all its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    reason
}

fn listed(refused: &[(ProbeTier, ProbeError)]) -> String {
    let each: Vec<_> = refused.iter().map(|(tier, error)| format!("{}: {error}", tier.as_str())).collect();
    each.join("; ")
}

/// What the log and the error number mean to the one who reads them.
fn hint(errno: &io::Error, log: &str) -> String {
    if !log.is_empty() {
        return format!("; the verifier's last lines were:\n{log}");
    }
    match errno.kind() {
        io::ErrorKind::PermissionDenied => {
            "; it gave no reason: a seccomp profile, an LSM or kernel lockdown forbids it (a privileged container may)"
                .to_owned()
        }
        _ => String::new(),
    }
}

/// The last lines of a verifier log, without its statistics.
pub(crate) fn log_tail(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log
        .lines()
        .map(|l| l.trim_end_matches(['\0', ' ']))
        .filter(|l| !l.is_empty() && !l.starts_with("verification time") && !l.starts_with("stack depth"))
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The kernel's release, as `uname -r` gives it.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let log: String =
            (0..100).map(|i| format!("{i}: (b7) r0 = 0\n")).chain(["stack depth 8\n".to_owned()]).collect();
        let tail = log_tail(&log);
        assert_eq!(tail.lines().count(), 12);
        assert!(tail.ends_with("99: (b7) r0 = 0"), "{tail}");
    }

    #[test]
    fn messages_say_what_to_do() {
        let refused = ProbeError::ProgramRefused {
            program: "on_send",
            errno: io::Error::from_raw_os_error(1),
            log: String::new(),
        };
        assert!(refused.to_string().contains("seccomp"), "{refused}");
        let both = ProbeError::NoTier { refused: vec![(ProbeTier::Fentry, refused)] };
        assert!(
            both.to_string().contains("fentry: the kernel refused") && both.to_string().contains("--no-probes"),
            "{both}"
        );
        let missing = ProbeError::NotPermitted { missing: "CAP_BPF".to_owned() };
        assert!(missing.to_string().contains("CAP_BPF"), "{missing}");
    }
}
