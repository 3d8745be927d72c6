//! Connections that are open: already when their namespace is watched, and still, from time to time.

use meshdiff_model::{MonotonicNs, NetnsId, Tgid};
use meshdiff_probes::{Assembler, OpenSocket, monotonic_now, open_sockets};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How often the kernel is asked which connections are open still.
pub(crate) const EVERY: Duration = Duration::from_secs(30);

/// What the kernel listed.
enum Listed {
    /// Of a namespace that is watched from now on, with the processes that hold them.
    Before(Vec<(OpenSocket, Option<Tgid>)>),
    /// Of all that are watched, and when it was asked.
    Still(BTreeMap<NetnsId, Vec<OpenSocket>>, MonotonicNs),
}

/// Lists them, in whatever thread watches namespaces.
pub(crate) struct Existing(Sender<Listed>);

/// Hands them to message assembly, in the thread that drains.
pub(crate) struct Opened(Receiver<Listed>);

pub(crate) fn pair() -> (Existing, Opened) {
    let (to, from) = channel();
    (Existing(to), Opened(from))
}

impl Existing {
    /// Lists the connections of a namespace that is watched from now on.
    pub(crate) fn look(&self, netns: NetnsId) {
        let open = match open_sockets(netns) {
            Ok(open) if open.is_empty() => return,
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, netns = netns.0, "connections that are silent and open already are not known");
                return;
            }
        };
        let owners = owners(Path::new("/proc"), netns);
        let with_owner = open.into_iter().map(|o| (o, owners.get(&o.inode).copied())).collect();
        // Nobody takes it once the recording has ended.
        let _ = self.0.send(Listed::Before(with_owner));
    }

    /// Lists the connections of all namespaces that are watched, so that those are forgotten whose end was lost.
    /// Of those that are watched no longer (`left`) nothing more will be told.
    pub(crate) fn look_again(&self, watched: &BTreeSet<NetnsId>, left: &BTreeSet<NetnsId>) {
        let asked = monotonic_now();
        // A namespace that cannot be asked is left out, and nothing of it is forgotten.
        let list = |netns| open_sockets(netns).inspect_err(|error| tracing::debug!(%error, "not listed")).ok();
        let open = watched.iter().filter_map(|netns| Some((*netns, list(*netns)?)));
        let lists = left.difference(watched).map(|netns| (*netns, Vec::new())).chain(open).collect();
        let _ = self.0.send(Listed::Still(lists, asked));
    }
}

impl Opened {
    pub(crate) fn hand_on(&self, assembler: &mut Assembler) {
        for listed in self.0.try_iter() {
            match listed {
                Listed::Before(list) => {
                    for (open, owner) in list {
                        assembler.found_open(&open, owner, monotonic_now());
                    }
                }
                Listed::Still(lists, asked) => assembler.still_open(&lists, asked),
            }
        }
    }
}

/// Which process of a namespace holds the socket with an inode number; of several the one with the lowest number.
fn owners(proc: &Path, netns: NetnsId) -> HashMap<u32, Tgid> {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let ns = proc.join(format!("{pid}/ns/net"));
            fs::metadata(ns).is_ok_and(|m| m.ino() == u64::from(netns.0))
        })
        .collect();
    pids.sort_unstable();
    let mut owners = HashMap::new();
    for pid in pids {
        for entry in fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(Tgid(pid));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_holder_of_a_socket_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("a link");
        let inode = link.to_str().and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let own = fs::metadata("/proc/self/ns/net").expect("a namespace").ino();
        let owners = owners(Path::new("/proc"), NetnsId(u32::try_from(own).expect("32 bits")));
        assert_eq!(owners.get(&inode.expect("a socket")), Some(&Tgid(std::process::id())));
    }
}
