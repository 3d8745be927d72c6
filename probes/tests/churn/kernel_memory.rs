//! The kernel's memory that is charged to this process: with a cgroup of its own, what maps and sockets take can be told.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A memory cgroup that this process is in while it lives.
pub(crate) struct KernelMemory {
    group: PathBuf,
    /// The file that says how much, and in version 2 the line of it.
    usage: (PathBuf, Option<&'static str>),
    /// Where the process came from.
    home: PathBuf,
}

impl KernelMemory {
    /// Moves this process into a group of its own; none where there is no memory controller.
    pub(crate) fn own_group() -> Option<Self> {
        let line = |prefix: &str| {
            let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            own.lines()
                .find_map(|l| Some(l.split_once(':')?.1.strip_prefix(prefix)?.trim_start_matches('/').to_owned()))
        };
        let name = format!("meshdiff-churn.{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, home, file, stat) = if let Some(home) = line("memory:").filter(|_| v1.is_dir()) {
            (v1, home, "memory.kmem.usage_in_bytes", None)
        } else {
            (Path::new("/sys/fs/cgroup"), line(":")?, "memory.stat", Some("kernel "))
        };
        let group = root.join(name);
        std::fs::create_dir(&group).ok()?;
        let made = Self { usage: (group.join(file), stat), group, home: root.join(home) };
        made.read()?;
        std::fs::write(made.group.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        Some(made)
    }

    fn read(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.usage.0).ok()?;
        match self.usage.1 {
            None => text.trim().parse().ok(),
            Some(prefix) => text.lines().find_map(|l| l.strip_prefix(prefix)?.trim().parse().ok()),
        }
    }

    /// Bytes, once they no longer fall: the kernel frees after a grace period of RCU.
    pub(crate) fn settled(&self) -> u64 {
        let mut least = u64::MAX;
        for _ in 0..20 {
            let now = self.read().expect("a cgroup of our own can be read");
            if now >= least {
                break;
            }
            least = now;
            std::thread::sleep(Duration::from_millis(100));
        }
        least
    }

    /// Bytes, as soon as they are at most `most`, or else at the deadline.
    pub(crate) fn falls_below(&self, most: u64, within: Duration) -> u64 {
        let end = Instant::now() + within;
        loop {
            let now = self.read().expect("a cgroup of our own can be read");
            if now <= most || Instant::now() >= end {
                return now;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        // What cannot be undone is an empty group; the test's own result is what counts.
        let _ = std::fs::write(self.home.join("cgroup.procs"), std::process::id().to_string());
        let _ = std::fs::remove_dir(&self.group);
    }
}
