//! What can go wrong, in words for the operator.

use std::io;
use std::path::PathBuf;

/// What was asked for cannot be found, or may not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// `/proc` is not readable at all.
    #[error("cannot read {}: {source}. meshdiff needs the host's /proc (in a container: hostPID) and root", path.display())]
    Proc {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A namespace by name or path that is not there.
    #[error("there is no network namespace {asked:?} ({} cannot be opened: {source}): see `ip netns list` and `lsns -t net`", path.display())]
    NoNetns {
        /// What the operator wrote.
        asked: String,
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is no network namespace.
    #[error("{} is not a network namespace: give a name from `ip netns list`, a path such as /proc/PID/ns/net, or an inode number from `lsns -t net`", .0.display())]
    NotANetns(PathBuf),
    /// An inode number that no process's namespace has.
    #[error("no process and no name in /run/netns has the network namespace {0}: see `lsns -t net`")]
    NoNetnsInode(u32),
    /// A process that is not there.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// A process that may not be looked at.
    #[error("the network namespace of process {0} may not be looked at: run as root")]
    Denied(u32),
}
