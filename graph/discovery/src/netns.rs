//! A network namespace as an operator names it.

use crate::error::DiscoveryError;
use crate::proc_fs::{self, Look};
use meshdiff_model::NetnsId;
use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// What `--netns` and `--pid` take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsRef {
    /// A name of `ip netns`.
    Name(String),
    /// A file that is a namespace, for instance `/proc/1234/ns/net` or what a container runtime keeps under `/run`.
    Path(PathBuf),
    /// The inode number, as `lsns -t net` and `readlink /proc/PID/ns/net` show it.
    Inode(NetnsId),
    /// The namespace of a process.
    Pid(u32),
}

impl FromStr for NetnsRef {
    type Err = Infallible;

    /// Something with a slash is a path; a number is an inode number unless there is a namespace of that name; everything
    /// else is a name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        if text.contains('/') {
            return Ok(Self::Path(text.into()));
        }
        let text = text.trim();
        match text.strip_prefix("net:[").and_then(|t| t.strip_suffix(']')).unwrap_or(text).parse() {
            Ok(inode) if !Path::new(NAMED).join(text).exists() => Ok(Self::Inode(NetnsId(inode))),
            _ => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "--netns {name}"),
            Self::Path(path) => write!(f, "--netns {}", path.display()),
            Self::Inode(inode) => write!(f, "--netns {}", inode.0),
            Self::Pid(pid) => write!(f, "--pid {pid}"),
        }
    }
}

impl NetnsRef {
    /// Finds it.
    ///
    /// # Errors
    /// If it is not there, may not be looked at, or is not a network namespace.
    pub fn resolve(&self) -> Result<NetnsId, DiscoveryError> {
        let root = Path::new("/proc");
        match self {
            Self::Name(name) => {
                let path = Path::new(NAMED).join(name);
                of_file(&path, name)
            }
            Self::Path(path) => of_file(path, &path.display().to_string()),
            Self::Pid(pid) => match proc_fs::netns(root, *pid) {
                Look::Seen(netns) => Ok(netns),
                Look::Gone => Err(DiscoveryError::NoProcess(*pid)),
                Look::Denied => Err(DiscoveryError::Denied(*pid)),
            },
            Self::Inode(netns) => {
                let pids =
                    proc_fs::pids(root).map_err(|source| DiscoveryError::Proc { path: root.to_owned(), source })?;
                let of_process = pids.into_iter().any(|pid| proc_fs::netns(root, pid) == Look::Seen(*netns));
                let found = of_process || named().into_iter().any(|(_, id)| id == *netns);
                if found { Ok(*netns) } else { Err(DiscoveryError::NoNetnsInode(netns.0)) }
            }
        }
    }
}

/// The namespaces of `ip netns`, by name. Names whose namespace is gone are left out.
pub(crate) fn named() -> Vec<(String, NetnsId)> {
    let Ok(entries) = std::fs::read_dir(NAMED) else { return Vec::new() };
    let mut named: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            of_file(&entry.path(), &name).ok().map(|id| (name, id))
        })
        .collect();
    named.sort();
    named
}

nix::ioctl_none_bad!(
    /// The type of the namespace behind a descriptor, as a `CLONE_NEW…` flag (ioctl_ns(2)).
    ns_get_nstype,
    nix::request_code_none!(0xb7, 0x3)
);

fn of_file(path: &Path, asked: &str) -> Result<NetnsId, DiscoveryError> {
    let missing =
        |source: io::Error| DiscoveryError::NoNetns { asked: asked.to_owned(), path: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(missing)?;
    // Anything else could block when it is opened (a FIFO) or act (a device).
    if !found.is_file() {
        return Err(DiscoveryError::NotANetns(path.to_owned()));
    }
    let file = File::open(path).map_err(missing)?;
    // SAFETY: the descriptor is open for the call, and this ioctl reads and writes no memory of ours: on anything that is not
    // a namespace it fails with ENOTTY.
    let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
    if kind != Ok(nix::libc::CLONE_NEWNET) {
        return Err(DiscoveryError::NotANetns(path.to_owned()));
    }
    let inode = file.metadata().map_err(missing)?.ino();
    u32::try_from(inode).map(NetnsId).map_err(|_| DiscoveryError::NotANetns(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetnsRef {
        let Ok(parsed) = text.parse();
        parsed
    }

    #[test]
    fn arguments_are_told_apart() {
        assert_eq!(parse("4026531840"), NetnsRef::Inode(NetnsId(4_026_531_840)));
        assert_eq!(parse("net:[4026531840]"), NetnsRef::Inode(NetnsId(4_026_531_840)));
        assert_eq!(parse("blue"), NetnsRef::Name("blue".into()));
        assert_eq!(parse("/proc/1/ns/net"), NetnsRef::Path("/proc/1/ns/net".into()));
        assert_eq!(parse("99999999999"), NetnsRef::Name("99999999999".into()));
    }

    #[test]
    fn own_namespace_is_found_in_every_way() {
        let me = std::process::id();
        let id = NetnsRef::Pid(me).resolve().expect("found");
        assert_eq!(NetnsRef::Path("/proc/self/ns/net".into()).resolve().expect("found"), id);
        assert_eq!(NetnsRef::Inode(id).resolve().expect("found"), id);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = |text: &str| parse(text).resolve().expect_err("must be refused").to_string();
        assert!(error("no-such-netns").contains("there is no network namespace \"no-such-netns\""));
        for other in ["/proc/self/ns/mnt", "/proc/self/comm", "/dev/null", "/tmp"] {
            assert!(error(other).contains("is not a network namespace"), "{other}: {}", error(other));
        }
        assert!(error("7").contains("no process"));
        assert!(NetnsRef::Pid(u32::MAX).resolve().expect_err("refused").to_string().contains("there is no process"));
    }
}
