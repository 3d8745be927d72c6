//! Connections that are open already when their namespace is watched.

use meshdiff_model::{NetnsId, Tgid};
use meshdiff_probes::{Assembler, OpenSocket, monotonic_now, open_sockets};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Lists them, in whatever thread watches namespaces.
pub(crate) struct Existing(Sender<Vec<(OpenSocket, Option<Tgid>)>>);

/// Hands them to message assembly, in the thread that drains.
pub(crate) struct Opened(Receiver<Vec<(OpenSocket, Option<Tgid>)>>);

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
        let _ = self.0.send(with_owner);
    }
}

impl Opened {
    pub(crate) fn hand_on(&self, assembler: &mut Assembler) {
        for (open, owner) in self.0.try_iter().flatten() {
            assembler.found_open(&open, owner, monotonic_now());
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
