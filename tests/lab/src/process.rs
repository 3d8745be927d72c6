//! Starting the lab's processes so that they outlive the command that started them, and ending them for certain.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock::MonotonicNs;
use crate::error::LabError;
use crate::netns;
use crate::signals::hearing;

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// The sidecar.
    Envoy,
    /// The application.
    App,
    /// The server that sidecars wait for.
    Authz,
    /// A delayed link.
    Link,
}

/// A process of the lab. Its start time tells it from a later process with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// What it is for.
    pub role: Role,
    /// The pod's workload, or the link's two.
    pub pod: String,
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`starttime` of proc_pid_stat(5)).
    pub start_ticks: u64,
}

impl Process {
    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }
}

/// The CPU time that a process has used so far; zero if it is gone.
pub fn cpu_time(pid: i32) -> Duration {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    let ticks = stat.map_or(0, |stat| stat.utime + stat.stime);
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// When a process started; absent if it has ended, a zombie included.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

/// What to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// In which network namespace.
    pub namespace: &'a str,
    /// The binary.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// As whom; as root if absent.
    pub uid: Option<u32>,
    /// In which group, if it is another than the user's own.
    pub gid: Option<u32>,
    /// Where stdout and stderr go.
    pub output: &'a Path,
    /// A file under which the binary is shown to a user that cannot reach it where it is; see [`launch`].
    pub stand_in: &'a Path,
}

/// Starts a process in the background, in a process group of its own so that a Ctrl-C in the terminal is not for it.
///
/// A binary below a folder that the user may not enter (/root, usually) could not be executed. It is then shown to that
/// process alone, by a bind mount in a mount namespace of its own, which ends with the process.
///
/// # Errors
/// When the namespace or the binary refuses.
pub fn launch(launch: &Launch<'_>, role: Role, pod: &str) -> Result<Process, LabError> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(launch.output)
        .map_err(LabError::io(format!("the log {} cannot be opened", launch.output.display())))?;
    let hidden = launch.uid.is_some() && !reachable_by_all(launch.program);
    let start = || -> io::Result<u32> {
        let program = if hidden { show(launch.program, launch.stand_in)? } else { launch.program.to_owned() };
        let mut command = Command::new(program);
        command.args(&launch.arguments).current_dir("/").stdin(Stdio::null()).process_group(0);
        command.stdout(output.try_clone()?).stderr(output);
        if let Some(uid) = launch.uid {
            command.uid(uid).gid(uid);
        }
        if let Some(gid) = launch.gid {
            command.gid(gid);
        }
        Ok(hearing(&mut command).spawn()?.id())
    };
    let pid = netns::within(launch.namespace, start)?
        .map_err(LabError::io(format!("{} cannot be started", launch.program.display())))? as i32;
    let started = start_ticks(pid).ok_or_else(|| LabError::NotReady {
        what: format!("the {role:?} of {pod}"),
        seconds: 0,
        why: format!("it ended at once; its log is {}", launch.output.display()),
    })?;
    Ok(Process { role, pod: pod.to_owned(), pid, start_ticks: started })
}

fn reachable_by_all(program: &Path) -> bool {
    let allows =
        |path: &Path, bits: u32| std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & bits == bits);
    allows(program, 0o005)
        && program.ancestors().skip(1).all(|folder| folder.as_os_str().is_empty() || allows(folder, 0o001))
}

/// Bind-mounts `program` over `stand_in`, visible to this thread and its children only.
fn show(program: &Path, stand_in: &Path) -> io::Result<PathBuf> {
    File::create(stand_in)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave, not private: unmounting a network namespace outside must reach us, or we would keep it alive.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    mount(Some(program), stand_in, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(stand_in.to_owned())
}

/// Ends processes: asks, waits 3 s, kills, waits 3 s.
///
/// # Errors
/// When some survive even that.
pub fn terminate(pids: &BTreeSet<i32>) -> Result<(), LabError> {
    // A number that is used again within these seconds must not be killed for its predecessor.
    let mut left: Vec<(i32, u64)> = pids.iter().filter_map(|pid| Some((*pid, start_ticks(*pid)?))).collect();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for (pid, _) in &left {
            // It may have ended by itself: the wait below finds out.
            let _ = kill(Pid::from_raw(*pid), signal);
        }
        let deadline = MonotonicNs::now().plus(Duration::from_secs(3));
        loop {
            left.retain(|(pid, started)| {
                // Our own children stay zombies until they are waited for; others are not ours to wait for (ECHILD).
                let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
                start_ticks(*pid) == Some(*started)
            });
            if left.is_empty() {
                return Ok(());
            }
            if MonotonicNs::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Err(LabError::Survivors(left.into_iter().map(|(pid, _)| pid).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ignores_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let mut ready = [0; 5];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let process = Process { role: Role::App, pod: "x".into(), pid, start_ticks: start_ticks(pid).unwrap() };
        assert!(process.is_alive());
        terminate(&BTreeSet::from([pid])).unwrap();
        assert!(!process.is_alive());
        // `terminate` has waited for it already.
        assert!(child.wait().is_err());
    }

    #[test]
    fn another_process_with_the_same_number_is_not_ours() {
        let pid = std::process::id() as i32;
        let started = start_ticks(pid).unwrap();
        assert!(!Process { role: Role::App, pod: "x".into(), pid, start_ticks: started + 1 }.is_alive());
    }

    #[test]
    fn a_folder_that_is_closed_to_others_hides_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!reachable_by_all(&program));
        assert!(reachable_by_all(Path::new("/bin/sh")));
    }
}
