//! Why the probes could not be used, in words that say what to do.

use aya::maps::MapError;
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
    #[error(
        "this kernel ({kernel}) has no tracepoint {tracepoint}: these probes need Linux 6.16 or later; record without \
         probes (--no-probes) on older ones"
    )]
    TracepointMissing {
        /// The tracepoint.
        tracepoint: &'static str,
        /// The kernel's release.
        kernel: String,
    },
    /// The kernel's verifier or a security module refused a program.
    #[error("the kernel refused the probe {program}: {errno}{}", hint(.errno, .log))]
    ProgramRefused {
        /// The program's name in `bpf/socket.bpf.c`.
        program: &'static str,
        /// The error of `BPF_PROG_LOAD`.
        errno: io::Error,
        /// The last lines of the verifier's log; empty if it said nothing.
        log: String,
    },
    /// The kernel accepted a program but would not attach it.
    #[error("the kernel would not attach the probe {program} to its tracepoint: {source}")]
    AttachRefused {
        /// The program's name in `bpf/socket.bpf.c`.
        program: &'static str,
        /// What the kernel said.
        source: aya::programs::ProgramError,
    },
    /// A map could not be made.
    #[error(
        "the kernel would not make the map {map}: {errno}; if that is about memory, ask for a smaller ring buffer or raise \
         the memory limit of the process (RLIMIT_MEMLOCK before Linux 5.11, the control group's limit since)"
    )]
    MapRefused {
        /// The map's name in `bpf/socket.bpf.c`.
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
        /// The map's name in `bpf/socket.bpf.c`.
        map: &'static str,
        /// What went wrong.
        source: MapError,
    },
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
        let missing = ProbeError::NotPermitted { missing: "CAP_BPF".to_owned() };
        assert!(missing.to_string().contains("CAP_BPF"), "{missing}");
    }
}
