//! The few cheap looks at `/proc` that a scan makes of every process.
//!
//! The `procfs` crate opens several files and a descriptor for each process; for thousands of processes once a second
//! these two system calls for each are what one can afford. What is read once in a process's life goes through the crate.

use meshdiff_model::NetnsId;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What became of a look at one process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// It was there.
    Seen(T),
    /// It is gone (or has no such thing, like the executable of a kernel thread).
    Gone,
    /// The kernel does not let us.
    Denied,
}

impl<T> Look<T> {
    fn of(result: io::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Seen(value),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Self::Denied,
            // ENOENT and ESRCH: it ended. Anything else tells as little.
            Err(_) => Self::Gone,
        }
    }
    pub(crate) fn seen(self) -> Option<T> {
        match self {
            Self::Seen(value) => Some(value),
            Self::Gone | Self::Denied => None,
        }
    }
}

/// Numbers of all processes, in order.
pub(crate) fn pids(root: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> =
        fs::read_dir(root)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The network namespace of a process.
pub(crate) fn netns(root: &Path, pid: u32) -> Look<NetnsId> {
    let link = fs::read_link(root.join(format!("{pid}/ns/net")));
    Look::of(link.and_then(|link| {
        parse_netns(&link.to_string_lossy()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }))
}

/// A number that two processes share exactly if they are in one network namespace, also for processes whose namespace may not be
/// looked at: the kernel asks for the rights of a tracer for `/proc/PID/ns` (and refuses, to a root without some capability
/// that process 1 has), but not for `/proc/PID/net`, whose files are made anew, with new inode numbers, for every
/// namespace (`proc_net_ns_init` in `fs/proc/proc_net.c`).
pub(crate) fn net_identity(root: &Path, pid: u32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(root.join(format!("{pid}/net/dev"))).ok().map(|found| found.ino())
}

/// `net:[4026531840]`.
fn parse_netns(link: &str) -> Option<NetnsId> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok().map(NetnsId)
}

/// The file that a process executes, without the ` (deleted)` that the kernel appends when an image was replaced.
pub(crate) fn exe(root: &Path, pid: u32) -> Look<PathBuf> {
    let strip = |path: PathBuf| match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(stripped) => PathBuf::from(stripped),
        None => path,
    };
    Look::of(fs::read_link(root.join(format!("{pid}/exe"))).map(strip))
}

/// The name that a process gives itself. It may hold any bytes.
pub(crate) fn comm(root: &Path, pid: u32) -> Look<String> {
    let bytes = fs::read(root.join(format!("{pid}/comm")));
    Look::of(bytes.map(|b| String::from_utf8_lossy(&b).trim_end_matches('\n').to_owned()))
}

/// True for Envoy, by the name of the file that it executes or by the name that it gives itself.
pub(crate) fn is_envoy(exe: Option<&Path>, comm: Option<&str>) -> bool {
    exe.and_then(Path::file_name).is_some_and(|name| name == "envoy") || comm == Some("envoy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_is_known_by_file_or_name() {
        assert!(is_envoy(Some(Path::new("/usr/local/bin/envoy")), None));
        assert!(is_envoy(Some(Path::new("/lib64/ld-linux-x86-64.so.2")), Some("envoy")));
        assert!(!is_envoy(Some(Path::new("/usr/bin/envoy-gateway")), Some("envoy-gateway")));
        assert!(!is_envoy(None, None));
    }

    #[test]
    fn own_process_is_seen_and_a_missing_one_is_gone() {
        let root = Path::new("/proc");
        let me = std::process::id();
        assert!(pids(root).expect("pids").contains(&me));
        assert!(matches!(netns(root, me), Look::Seen(NetnsId(n)) if n > 0));
        assert!(exe(root, me).seen().is_some() && comm(root, me).seen().is_some());
        assert_eq!(netns(root, u32::MAX), Look::Gone);
        assert!(net_identity(root, me).is_some() && net_identity(root, u32::MAX).is_none());
        assert_eq!(parse_netns("net:[x]"), None);
        assert_eq!(parse_netns("mnt:[1]"), None);
    }
}
