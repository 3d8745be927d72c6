//! Which network namespaces to watch.

use crate::SIDECAR_PORTS;
use crate::error::DiscoveryError;
use crate::listeners::listeners;
use crate::netns::{NetnsRef, named};
use crate::proc_fs::{self, Look};
use meshdiff_model::{NetnsId, Tgid};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What the operator wants to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// Every namespace but the host's that has an Envoy or a listener on one of [`SIDECAR_PORTS`].
    #[default]
    Mesh,
    /// These.
    Only(Vec<NetnsRef>),
    /// All, the host's among them.
    All,
}

/// Why a namespace is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// An Envoy runs in it.
    Envoy(Tgid),
    /// Something listens on this port in it.
    Listener(u16),
    /// The operator asked for it, in these words.
    Asked(String),
    /// The operator asked for all.
    All,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envoy(tgid) => write!(f, "Envoy runs in it as process {}", tgid.0),
            Self::Listener(port) => write!(f, "port {port} is listened on in it"),
            Self::Asked(words) => f.write_str(words),
            Self::All => f.write_str("--all-netns"),
        }
    }
}

/// A namespace to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which.
    pub netns: NetnsId,
    /// Why.
    pub why: Why,
}

/// What one scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The namespaces to watch now, by number.
    pub watched: Vec<Watched>,
    /// Processes that were looked at.
    pub processes: usize,
    /// Processes whose namespace may not be looked at: what they are in is not watched because of them.
    pub denied: usize,
}

/// Looks for the namespaces to watch, again and again.
pub struct NetnsScanner {
    root: PathBuf,
    selection: Selection,
    host: NetnsId,
    /// What was asked for, found once at the start: names may be gone while their namespaces live on.
    asked: Vec<Watched>,
    known: BTreeMap<NetnsId, Known>,
    /// Processes that may not be looked at but are in the host's namespace, which is nobody's loss. A number that is used
    /// again could make the count of the others wrong by one, and nothing else.
    denied_in_host: BTreeSet<u32>,
    denied_reported: bool,
}

/// What is known of a namespace. Forgotten when its last process is gone, because the kernel gives the number away again.
#[derive(Default)]
struct Known {
    why: Option<Why>,
    pids: Vec<u32>,
    /// What its processes executed when their names were read last.
    executed: BTreeMap<u32, Option<PathBuf>>,
    /// Scans until its listeners are looked at again, and how long the next wait is.
    wait: u32,
    next_wait: u32,
}

/// Scans between two looks at the listeners of a namespace that long had none of interest and whose processes stay the same.
/// Asking for them can walk the kernel's whole table of connections; looking for Envoy itself costs little and is done every time.
const LONGEST_WAIT: u32 = 10;

impl NetnsScanner {
    /// A scanner of this machine.
    ///
    /// # Errors
    /// If `/proc` cannot be read, or what was asked for is not there.
    pub fn new(selection: Selection) -> Result<Self, DiscoveryError> {
        let root = PathBuf::from("/proc");
        let host = host_netns(&root)?;
        let mut asked = Vec::new();
        if let Selection::Only(refs) = &selection {
            for netns_ref in refs {
                asked.push(Watched { netns: netns_ref.resolve()?, why: Why::Asked(netns_ref.to_string()) });
            }
            asked.sort_by_key(|w| w.netns);
            asked.dedup_by_key(|w| w.netns);
        }
        Ok(Self {
            root,
            selection,
            host,
            asked,
            known: BTreeMap::new(),
            denied_in_host: BTreeSet::new(),
            denied_reported: false,
        })
    }

    /// The host's network namespace: that of process 1.
    #[must_use]
    pub const fn host(&self) -> NetnsId {
        self.host
    }

    /// The processes that the last scan found in a namespace, by number; none where it did not have to look for them.
    #[must_use]
    pub fn processes(&self, netns: NetnsId) -> &[u32] {
        self.known.get(&netns).map_or(&[], |known| &known.pids)
    }

    fn in_host(&self, pid: u32) -> bool {
        let identity = proc_fs::net_identity(&self.root, pid);
        identity.is_some() && identity == proc_fs::net_identity(&self.root, 1)
    }

    /// Looks once. Call it about once a second.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn scan(&mut self) -> Result<Scan, DiscoveryError> {
        if matches!(self.selection, Selection::Only(_)) {
            return Ok(Scan { watched: self.asked.clone(), ..Scan::default() });
        }
        let pids =
            proc_fs::pids(&self.root).map_err(|source| DiscoveryError::Proc { path: self.root.clone(), source })?;
        let mut scan = Scan { processes: pids.len(), ..Scan::default() };
        let mut present: BTreeMap<NetnsId, Vec<u32>> = BTreeMap::new();
        for pid in pids {
            match proc_fs::netns(&self.root, pid) {
                Look::Seen(netns) => present.entry(netns).or_default().push(pid),
                // What is surely in the host's namespace is not missed.
                Look::Denied if self.denied_in_host.contains(&pid) => {}
                Look::Denied if self.in_host(pid) => {
                    self.denied_in_host.insert(pid);
                }
                Look::Denied => scan.denied += 1,
                Look::Gone => {}
            }
        }
        if scan.denied > 0 && !self.denied_reported {
            self.denied_reported = true;
            tracing::warn!(
                processes = scan.denied,
                "the network namespaces of some processes may not be looked at, so pods may be missed: run as root"
            );
        }
        if self.selection == Selection::All {
            let ids = present.into_keys().chain([self.host]).chain(named().into_iter().map(|(_, id)| id));
            let ids: BTreeSet<_> = ids.collect();
            scan.watched = ids.into_iter().map(|netns| Watched { netns, why: Why::All }).collect();
            return Ok(scan);
        }
        present.remove(&self.host);
        self.known.retain(|netns, _| present.contains_key(netns));
        for (netns, pids) in present {
            let known = self.known.entry(netns).or_default();
            known.look(&self.root, pids);
            if let Some(why) = &known.why {
                scan.watched.push(Watched { netns, why: why.clone() });
            }
        }
        Ok(scan)
    }
}

/// The network namespace of process 1. Where that may not be looked at, that of any process which is in the same.
fn host_netns(root: &Path) -> Result<NetnsId, DiscoveryError> {
    let failed = |kind: io::ErrorKind| DiscoveryError::Proc { path: root.join("1/ns/net"), source: kind.into() };
    match proc_fs::netns(root, 1) {
        Look::Seen(host) => Ok(host),
        Look::Gone => Err(failed(io::ErrorKind::NotFound)),
        Look::Denied => {
            let identity = proc_fs::net_identity(root, 1).ok_or_else(|| failed(io::ErrorKind::PermissionDenied))?;
            let pids = proc_fs::pids(root).map_err(|source| DiscoveryError::Proc { path: root.to_owned(), source })?;
            std::iter::once(std::process::id())
                .chain(pids)
                .filter(|&pid| proc_fs::net_identity(root, pid) == Some(identity))
                .find_map(|pid| proc_fs::netns(root, pid).seen())
                .ok_or_else(|| failed(io::ErrorKind::PermissionDenied))
        }
    }
}

impl Known {
    fn look(&mut self, root: &Path, pids: Vec<u32>) {
        if self.pids != pids {
            self.pids = pids;
            (self.wait, self.next_wait) = (0, 0);
        }
        // Once a mesh's, always: a sidecar that restarts must not leave a gap in the recording.
        if self.why.is_some() {
            return;
        }
        let envoy = self.envoy(root);
        if let Some(pid) = envoy {
            self.why = Some(Why::Envoy(Tgid(pid)));
        } else if self.wait > 0 {
            self.wait -= 1;
        } else {
            // Any process sees its namespace's listeners; another one is asked if the first is gone by now.
            let found =
                self.pids.iter().take(3).find_map(|&pid| listeners(root, pid, &SIDECAR_PORTS).into_iter().next());
            self.why = found.map(|listener| Why::Listener(listener.port));
            self.wait = self.next_wait;
            self.next_wait = (self.next_wait + 1).min(LONGEST_WAIT);
        }
    }

    /// An Envoy among the processes. The executable is looked at each time, because a process becomes Envoy by exec, under the number
    /// that it had before; the name that it gives itself costs three times as much, and is read when the executable is another.
    fn envoy(&mut self, root: &Path) -> Option<u32> {
        let (pids, executed) = (&self.pids, &mut self.executed);
        executed.retain(|pid, _| pids.binary_search(pid).is_ok());
        pids.iter().copied().find(|&pid| {
            let exe = proc_fs::exe(root, pid).seen();
            if executed.get(&pid) == Some(&exe) {
                return false;
            }
            let is_envoy = proc_fs::is_envoy(exe.as_deref(), proc_fs::comm(root, pid).seen().as_deref());
            executed.insert(pid, exe);
            is_envoy
        })
    }
}
