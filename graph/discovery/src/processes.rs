//! Which process a number stands for.

use crate::listeners::{holds, listeners};
use crate::proc_fs::{self, Look};
use crate::{SIDECAR_PORTS, SIDECAR_UID};
use meshdiff_model::{Process, ProcessRole, Tgid};
use procfs::process::Process as ProcProcess;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The processes that own sockets, as far as they were asked for.
///
/// A process that ended stays known: its sockets are still in the recording.
pub struct ProcessTable {
    root: PathBuf,
    known: BTreeMap<Tgid, Entry>,
    missed: u64,
    denied: u64,
    denied_reported: bool,
}

struct Entry {
    process: Process,
    /// When the process started, in clock ticks since boot (field 22 of `/proc/PID/stat`): guards against a number that is used again.
    started: u64,
    ended: bool,
}

impl Default for ProcessTable {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self { root: "/proc".into(), known: BTreeMap::new(), missed: 0, denied: 0, denied_reported: false }
    }

    /// The process of a number, read from `/proc` if it is not known; `None` if it was gone before anyone looked, or may not
    /// be looked at. Cheap for a known number: its changes are found by [`refresh`](Self::refresh).
    pub fn lookup(&mut self, tgid: Tgid) -> Option<&Process> {
        if !self.known.contains_key(&tgid) {
            match read(&self.root, tgid) {
                Look::Seen((process, started)) => {
                    self.known.insert(tgid, Entry { process, started, ended: false });
                }
                Look::Gone => self.missed += 1,
                Look::Denied => {
                    self.denied += 1;
                    if !self.denied_reported {
                        self.denied_reported = true;
                        tracing::warn!(
                            pid = tgid.0,
                            "a process may not be looked at: run as root to know who owns sockets"
                        );
                    }
                }
            }
        }
        self.known.get(&tgid).map(|entry| &entry.process)
    }

    /// Looks at the known processes again and returns those that are not what they were: after an exec, a move to another namespace,
    /// a sidecar's first listener, or because the number now stands for another process. Call it about once a second.
    pub fn refresh(&mut self) -> Vec<Process> {
        let mut changed = Vec::new();
        for (&tgid, entry) in &mut self.known {
            if !entry.differs(&self.root, tgid) {
                continue;
            }
            match read(&self.root, tgid) {
                Look::Seen((process, started)) => {
                    if entry.process != process {
                        changed.push(process.clone());
                    }
                    *entry = Entry { process, started, ended: false };
                }
                Look::Gone | Look::Denied => entry.ended = true,
            }
        }
        changed
    }

    /// Forgets the processes that were gone at the last [`refresh`](Self::refresh), and says which ones: a table that is kept for months must
    /// not hold all that ever ran.
    pub fn forget_ended(&mut self) -> Vec<Tgid> {
        let ended: Vec<Tgid> = self.known.iter().filter(|(_, e)| e.ended).map(|(tgid, _)| *tgid).collect();
        for tgid in &ended {
            self.known.remove(tgid);
        }
        ended
    }

    /// All known processes, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Process> + '_ {
        self.known.values().map(|entry| &entry.process)
    }

    /// Lookups of processes that were gone before anyone looked.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// Lookups of processes that may not be looked at.
    #[must_use]
    pub const fn denied(&self) -> u64 {
        self.denied
    }
}

impl Entry {
    /// True if a cheap look says that the process may not be what it was.
    fn differs(&self, root: &Path, tgid: Tgid) -> bool {
        let now = started(root, tgid);
        if now != Some(self.started) {
            // Gone for good is no change; gone and there again is.
            return now.is_some() || !self.ended;
        }
        let process = &self.process;
        let waits_to_listen = process.role == ProcessRole::Application && process.uid == Some(SIDECAR_UID);
        waits_to_listen
            || proc_fs::exe(root, tgid.0).seen().map(|p| p.to_string_lossy().into_owned()) != process.exe
            || proc_fs::comm(root, tgid.0).seen().as_ref() != Some(&process.comm)
            || proc_fs::netns(root, tgid.0).seen() != Some(process.netns)
    }
}

/// Field 22 of `/proc/PID/stat`, found from the last `)`, because the name before it may hold anything.
fn started(root: &Path, tgid: Tgid) -> Option<u64> {
    let stat = std::fs::read(root.join(format!("{}/stat", tgid.0))).ok()?;
    let after_name = stat.iter().rposition(|&b| b == b')')? + 1;
    std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn read(root: &Path, tgid: Tgid) -> Look<(Process, u64)> {
    // Read before and after: what is read in between belongs to one process then, and not to two that had the number in turn.
    let Some(before) = started(root, tgid) else { return Look::Gone };
    let netns = match proc_fs::netns(root, tgid.0) {
        Look::Seen(netns) => netns,
        Look::Gone => return Look::Gone,
        Look::Denied => return Look::Denied,
    };
    let Some(comm) = proc_fs::comm(root, tgid.0).seen() else { return Look::Gone };
    let exe = proc_fs::exe(root, tgid.0).seen();
    let details = ProcProcess::new_with_root(root.join(tgid.0.to_string())).ok();
    let uid = details.as_ref().and_then(|p| p.status().ok()).map(|status| status.euid);
    let cgroup = details.as_ref().and_then(cgroup_of);
    let is_sidecar = proc_fs::is_envoy(exe.as_deref(), Some(&comm))
        || (uid == Some(SIDECAR_UID) && {
            // Under this user also run helpers of the sidecar that are not Envoy (Istio's pilot-agent).
            let listeners = listeners(root, tgid.0, &SIDECAR_PORTS);
            !listeners.is_empty() && holds(root, tgid.0, &listeners)
        });
    if started(root, tgid) != Some(before) {
        return Look::Gone;
    }
    let process = Process {
        tgid,
        netns,
        comm,
        exe: exe.map(|p| p.to_string_lossy().into_owned()),
        uid,
        cgroup,
        role: if is_sidecar { ProcessRole::Sidecar } else { ProcessRole::Application },
    };
    Look::Seen((process, before))
}

/// The unified hierarchy's path. Where that says nothing because version 1 is in use beside it, the first path that does.
fn cgroup_of(process: &ProcProcess) -> Option<String> {
    let groups = process.cgroups().ok()?;
    let unified = groups.0.iter().find(|g| g.hierarchy == 0);
    let telling = groups.0.iter().filter(|g| g.hierarchy != 0).min_by_key(|g| (g.pathname == "/", g.hierarchy));
    match (unified, telling) {
        (Some(unified), Some(telling)) if unified.pathname == "/" => Some(telling.pathname.clone()),
        (unified, telling) => unified.or(telling).map(|g| g.pathname.clone()),
    }
}
