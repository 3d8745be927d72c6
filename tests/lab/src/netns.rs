//! Network namespaces: entering them, and knowing who is in them.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

use crate::error::LabError;

/// Where iproute2 keeps named namespaces.
const FOLDER: &str = "/run/netns";

/// The file of a named namespace.
pub fn path(namespace: &str) -> PathBuf {
    PathBuf::from(FOLDER).join(namespace)
}

/// The inode number by which the kernel (and eBPF) knows a namespace.
///
/// # Errors
/// When there is no such namespace.
pub fn inode(namespace: &str) -> Result<u64, LabError> {
    let enter = |why| LabError::Namespace { namespace: namespace.to_owned(), why };
    std::fs::metadata(path(namespace)).map(|meta| meta.ino()).map_err(enter)
}

/// The named namespaces that begin with `prefix`, sorted.
pub fn named(prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut names: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Does something in a namespace: on a thread of its own, which is the unit that Linux moves. Threads and processes
/// that `work` starts are in the namespace as well.
///
/// # Errors
/// When the namespace cannot be entered. A panic of `work` goes on in the caller.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    let failed = |why| LabError::Namespace { namespace: namespace.to_owned(), why };
    let file = File::open(path(namespace)).map_err(failed)?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(failed)
    })
}

/// Moves this thread, and with it what it starts from now on, into a namespace. From the main thread of a process without other
/// threads that is the process: others then find it there.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn enter(namespace: &str) -> Result<(), LabError> {
    let failed = |why| LabError::Namespace { namespace: namespace.to_owned(), why };
    let file = File::open(path(namespace)).map_err(failed)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

/// The processes whose main thread is in one of these namespaces.
pub fn processes_in(inodes: &HashSet<u64>) -> Vec<i32> {
    let me = std::process::id() as i32;
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        // A process that is gone, or a zombie, has no namespace.
        let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let inode =
            link.as_ref().and_then(|link| link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    };
    let mut pids: Vec<_> = pids.filter(|pid| *pid != me).filter(inside).collect();
    pids.sort_unstable();
    pids
}

/// Runs a command to its end; its output is part of the error if it fails, and the result if not.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, LabError> {
    use std::io::Write;
    let line = || format!("{program} {}", arguments.join(" "));
    let failed = |why: String| LabError::Command { command: line(), why };
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A command that fails early closes its input; its exit status and stderr tell more than EPIPE does.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// `ip ARGUMENTS`
///
/// # Errors
/// As [`run`].
pub fn ip(arguments: &[&str]) -> Result<String, LabError> {
    run("ip", arguments, None)
}

/// `ip -n NAMESPACE -batch -`: one command per line of `script`.
///
/// # Errors
/// As [`run`].
pub fn ip_batch(namespace: &str, script: &str) -> Result<(), LabError> {
    run("ip", &["-n", namespace, "-batch", "-"], Some(script)).map(drop)
}
