//! Which libssl files the processes of watched network namespaces map.

use meshdiff_model::NetnsId;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file that a process maps as its libssl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// As the process knows it, which may be another container's path; `(deleted)` behind it if an update has replaced the file.
    pub name: String,
    /// Where this process can open it as long as that one runs.
    pub path: PathBuf,
    /// The process that maps it.
    pub pid: u32,
    pub(super) id: FileId,
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Files that were not found in their process before, by process.
    pub new: Vec<Library>,
    /// Processes of which files were found before, and that have ended or execute something else now.
    pub ended: Vec<u32>,
}

/// Device and inode, as `/proc/PID/maps` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId(String, u64);

/// Looks for libraries, again and again.
///
/// A process may load its libssl late. So each is looked at when it is new (or executes another file), when it has grown as long as it
/// has none, and else after 1, 2, 4 … looks, at last every [`LONGEST_WAIT`]th: reading the maps of a large process takes up to a
/// millisecond.
#[derive(Debug)]
pub struct LibraryFinder {
    root: PathBuf,
    processes: BTreeMap<u32, Known>,
}

#[derive(Debug, Default)]
struct Known {
    exe: Option<PathBuf>,
    found: HashSet<FileId>,
    /// Pages of its address space, as `statm` has them.
    size: String,
    wait: u32,
    next_wait: u32,
}

const LONGEST_WAIT: u32 = 32;

impl Default for LibraryFinder {
    fn default() -> Self {
        Self::new()
    }
}

impl LibraryFinder {
    /// One that has found nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { root: PathBuf::from("/proc"), processes: BTreeMap::new() }
    }

    /// Looks once; to be called about once a second.
    ///
    /// Processes that may not be looked at are passed over: what they send stays ciphertext.
    pub fn look(&mut self, watched: impl Fn(NetnsId) -> bool) -> Look {
        let mut look = Look::default();
        let Ok(entries) = fs::read_dir(&self.root) else { return look };
        let mut pids: Vec<u32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        pids.retain(|pid| netns(&self.root, *pid).is_some_and(&watched));
        self.processes.retain(|pid, known| {
            let there = pids.binary_search(pid).is_ok();
            if !there && !known.found.is_empty() {
                look.ended.push(*pid);
            }
            there
        });
        for pid in pids {
            let known = self.processes.entry(pid).or_default();
            let had = !known.found.is_empty();
            let of = |name: &str| self.root.join(format!("{pid}/{name}"));
            let statm = fs::read_to_string(of("statm")).unwrap_or_default();
            let size = statm.split(' ').next().unwrap_or_default();
            let due = known.is_due(fs::read_link(of("exe")).ok(), size);
            if had && known.found.is_empty() {
                look.ended.push(pid);
            }
            if !due {
                continue;
            }
            let Ok(maps) = fs::read_to_string(self.root.join(format!("{pid}/maps"))) else { continue };
            for mapped in maps.lines().filter_map(parse) {
                if known.found.insert(mapped.id.clone()) {
                    look.new.push(mapped.open_through(&self.root, pid));
                }
            }
        }
        look
    }
}

impl Known {
    fn is_due(&mut self, exe: Option<PathBuf>, size: &str) -> bool {
        if self.exe != exe {
            *self = Self { exe, ..Self::default() };
        }
        if self.found.is_empty() && self.size != size {
            self.size = size.to_owned();
            return true;
        }
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        self.wait = self.next_wait;
        self.next_wait = (2 * self.next_wait + 1).min(LONGEST_WAIT);
        true
    }
}

fn netns(root: &Path, pid: u32) -> Option<NetnsId> {
    let link = fs::read_link(root.join(format!("{pid}/ns/net"))).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok().map(NetnsId)
}

/// A line of `maps` that maps the code of a libssl.
#[derive(Debug, PartialEq, Eq)]
struct Mapped<'a> {
    range: &'a str,
    path: &'a str,
    id: FileId,
}

/// `7f0a…-7f0b… r-xp 0001e000 fe:00 1234   /usr/lib/libssl.so.3`, proc_pid_maps(5).
fn parse(line: &str) -> Option<Mapped<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (permissions, rest) = rest.split_once(' ')?;
    let (_, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, path) = rest.split_once(' ')?;
    let path = path.trim_start();
    if !permissions.contains('x') || !is_libssl(path) {
        return None;
    }
    Some(Mapped { range, path, id: FileId(device.to_owned(), inode.parse().ok()?) })
}

/// `libssl.so`, `libssl.so.3`, `libssl-1.1.so`, also with a hash in it as Python's wheels have. That NSS has a `libssl3.so` is found out by
/// its functions.
fn is_libssl(path: &str) -> bool {
    let name = path.strip_suffix(" (deleted)").unwrap_or(path).rsplit('/').next().unwrap_or_default();
    name.starts_with("libssl") && (name.ends_with(".so") || name.contains(".so."))
}

impl Mapped<'_> {
    /// The kernel's own link to the mapped file reaches deleted ones and those of any container, but asks for more rights than the
    /// path below the process's root does.
    fn open_through(self, root: &Path, pid: u32) -> Library {
        let link = root.join(format!("{pid}/map_files/{}", self.range.trim_start_matches('0')));
        let below_root = || root.join(format!("{pid}/root{}", self.path));
        let path = if fs::metadata(&link).is_ok() { link } else { below_root() };
        Library { name: self.path.to_owned(), path, pid, id: self.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_a_libssl_counts() {
        let line = "7f12-7f34 r-xp 0001e000 fe:00 1234567                    /usr/lib/x86_64-linux-gnu/libssl.so.3";
        let found = parse(line).expect("a libssl");
        assert_eq!((found.range, found.path), ("7f12-7f34", "/usr/lib/x86_64-linux-gnu/libssl.so.3"));
        assert_eq!(found.id, FileId("fe:00".to_owned(), 1_234_567));
        assert_eq!(parse(&line.replace("r-xp", "r--p")), None);
        assert_eq!(parse("7f12-7f34 rw-p 00000000 00:00 0"), None);
        assert_eq!(parse("7ffc-7ffd r-xp 00000000 00:00 0                          [vdso]"), None);
        for name in ["/a b/libssl.so.1.1 (deleted)", "/x/libssl-9f8a.so.1.1", "/x/libssl.so"] {
            assert!(is_libssl(name), "{name}");
        }
        for name in ["/x/libcrypto.so.3", "/x/mylibssl.so", "/x/libssl.py", "/libssl.so/other"] {
            assert!(!is_libssl(name), "{name}");
        }
    }

    #[test]
    fn a_process_is_looked_at_ever_more_rarely_and_anew_after_exec() {
        let mut known = Known::default();
        let exe = |name: &str| Some(PathBuf::from(name));
        let due: Vec<u32> = (0..40).filter(|_| known.is_due(exe("/a"), "")).collect();
        assert_eq!(due, [0, 1, 3, 7, 15, 31]);
        assert!(known.is_due(exe("/a"), "9") && !known.is_due(exe("/a"), "9"), "it may have loaded one");
        known.found.insert(FileId(String::new(), 1));
        assert!(!known.is_due(exe("/a"), "10"), "it has one");
        assert!(known.is_due(exe("/b"), "10") && known.found.is_empty());
    }
}
