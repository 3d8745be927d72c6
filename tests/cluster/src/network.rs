//! The cluster's network: a namespace that lives as long as this process, with the addresses of pods on its loopback device.

use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use std::sync::{Mutex, OnceLock, mpsc};

/// Where the API server is. Pods have other addresses of this network; the API server's proxy refuses loopback addresses.
pub const API_SERVER: &str = "10.99.0.1";

type Job = Box<dyn FnOnce() + Send>;

/// Does something in the cluster's network: on the one thread that is there. Threads and processes that `work` starts are there as well;
/// processes end with this one.
///
/// # Panics
/// If the namespace cannot be made (root is needed), or with `work`.
pub fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, todo) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("network".to_owned()).spawn(move || live(&todo)).expect("a thread");
        Mutex::new(jobs)
    });
    let (done, result) = mpsc::channel();
    let job: Job = Box::new(move || {
        // A panic of the work is the caller's, not the network's end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        drop(done.send(outcome));
    });
    jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(job).expect("the network's thread");
    match result.recv().expect("the network's thread") {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn live(todo: &mpsc::Receiver<Job>) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own: root is needed");
    // Whole networks: each pod may have an address of its own.
    for arguments in ["link set lo up", "address add 10.99.0.0/24 dev lo"] {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip of iproute2");
        assert!(status.success(), "ip {arguments}");
    }
    while let Ok(job) = todo.recv() {
        job();
    }
}
