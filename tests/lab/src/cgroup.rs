//! A share of one CPU for a sidecar, by the cpu controller of cgroup v1 or v2.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::MonotonicNs;
use crate::error::LabError;
use crate::settings::LabName;

/// The kernel's default period, which Kubernetes keeps.
const PERIOD_US: u32 = 100_000;

/// Where the machine keeps the cpu controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuController {
    /// cgroup v1: `cpu.cfs_quota_us`.
    V1(PathBuf),
    /// cgroup v2: `cpu.max`.
    V2(PathBuf),
}

impl CpuController {
    /// Finds it among the mounts.
    pub fn find() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        Self::among(&mounts, |root| std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default())
    }

    fn among(mounts: &str, controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let mut v2 = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(at), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
            match kind {
                "cgroup" if options.split(',').any(|option| option == "cpu") => return Some(Self::V1(at.into())),
                "cgroup2" if controllers(Path::new(at)).split_whitespace().any(|name| name == "cpu") => {
                    v2 = Some(Self::V2(at.into()));
                }
                _ => {}
            }
        }
        v2
    }

    fn root(&self) -> &Path {
        match self {
            Self::V1(root) | Self::V2(root) => root,
        }
    }

    /// The group of a lab; those of its pods are inside.
    fn lab(&self, lab: &LabName) -> PathBuf {
        self.root().join(format!("meshdiff-lab.{lab}"))
    }

    /// Limits a process and all of its threads.
    ///
    /// # Errors
    /// When the kernel refuses the group or the quota.
    pub fn starve(&self, lab: &LabName, pod: &str, percent: u32, pid: i32) -> Result<PathBuf, LabError> {
        let group = self.lab(lab).join(pod);
        let write = |path: PathBuf, value: String| {
            std::fs::write(&path, value)
                .map_err(LabError::io(format!("the CPU quota {} cannot be set", path.display())))
        };
        std::fs::create_dir_all(&group)
            .map_err(LabError::io(format!("the cgroup {} cannot be made", group.display())))?;
        let quota = PERIOD_US / 100 * percent;
        match self {
            Self::V1(_) => {
                write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                write(group.join("cpu.cfs_quota_us"), quota.to_string())?;
            }
            Self::V2(root) => {
                write(root.join("cgroup.subtree_control"), "+cpu".into())?;
                write(self.lab(lab).join("cgroup.subtree_control"), "+cpu".into())?;
                write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
            }
        }
        write(group.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }

    /// Removes the groups of a lab. Their processes must have ended.
    ///
    /// # Errors
    /// When a group stays busy for 5 s.
    pub fn remove(&self, lab: &LabName) -> Result<(), LabError> {
        let top = self.lab(lab);
        let inner = std::fs::read_dir(&top).into_iter().flatten().flatten();
        let mut groups: Vec<_> = inner.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        groups.push(top);
        let deadline = MonotonicNs::now().plus(Duration::from_secs(5));
        for group in groups {
            while let Err(error) = std::fs::remove_dir(&group) {
                match error.kind() {
                    std::io::ErrorKind::NotFound => break,
                    // The kernel lets go of a dead process's group a moment after its end.
                    _ if MonotonicNs::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                    _ => return Err(LabError::io(format!("the cgroup {} cannot be removed", group.display()))(error)),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_controller_is_found_wherever_it_is() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
        let found = CpuController::among(hybrid, |_| "memory".into());
        assert_eq!(found, Some(CpuController::V1("/sys/fs/cgroup/cpu,cpuacct".into())));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(
            CpuController::among(unified, |_| "cpuset cpu io".into()),
            Some(CpuController::V2("/sys/fs/cgroup".into()))
        );
        assert_eq!(CpuController::among(unified, |_| "io".into()), None);
    }
}
