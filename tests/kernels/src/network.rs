//! Network namespaces of our own, and a link between two of them that can be made slow and lossy.

use meshdiff_model::NetnsId;
use nix::sched::{CloneFlags, unshare};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

/// Where the modules of the kernel are in the virtual machine's root.
pub const MODULES: &str = "/modules";
/// The modules that a link needs, in the order in which they are loaded.
pub const LINK_MODULES: [&str; 2] = ["veth", "sch_netem"];
/// The programs that it needs, by the path at which they are in the virtual machine.
pub const LINK_PROGRAMS: [&str; 2] = ["/sbin/ip", "/sbin/tc"];

/// This end's address.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The far end's.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Leaves this thread in a new network namespace of which the loopback is up.
///
/// # Panics
/// If that is not allowed.
pub fn enter_new_netns() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: an ifreq of zeros is valid: it holds numbers and pointers that are not followed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        // The type of a C character differs between processors.
        *to = (*from) as _;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the descriptor is open, and the request is an ifreq that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    assert_eq!(result, 0, "lo: {}", std::io::Error::last_os_error());
}

/// The network namespace of this thread.
///
/// # Panics
/// If /proc is not mounted.
#[must_use]
pub fn current_netns() -> NetnsId {
    let inode = std::fs::metadata("/proc/thread-self/ns/net").expect("/proc is mounted").ino();
    NetnsId(u32::try_from(inode).expect("the inode number of a namespace has 32 bits"))
}

/// A cable between this thread's network namespace and another one.
pub struct Link {
    /// This thread's namespace.
    pub near: NetnsId,
    /// The other one. It lives as long as a thread or a socket in it.
    pub far: NetnsId,
}

impl Link {
    /// Loads the kernel's modules, lays the cable from a new namespace of this thread's to one of a new thread's, and leaves `far`
    /// running in that.
    ///
    /// # Panics
    /// If a module or a program that it needs is missing or fails.
    pub fn new(far: impl FnOnce() + Send + 'static) -> Self {
        for module in LINK_MODULES {
            load(&format!("{MODULES}/{module}.ko"));
        }
        enter_new_netns();
        let (born, birth) = channel();
        let (laid, go) = channel();
        std::thread::spawn(move || {
            enter_new_netns();
            born.send((nix::unistd::gettid(), current_netns())).expect("it is waited for");
            go.recv().expect("the cable is laid");
            ip(&format!("addr add {FAR}/24 dev far"));
            ip("link set far up");
            born.send((nix::unistd::gettid(), current_netns())).expect("it is waited for");
            far();
        });
        let (thread, netns) = birth.recv().expect("the far namespace");
        let process = std::process::id();
        ip(&format!("link add near type veth peer name far netns /proc/{process}/task/{thread}/ns/net"));
        ip(&format!("addr add {NEAR}/24 dev near"));
        ip("link set near up");
        laid.send(()).expect("the far thread");
        birth.recv().expect("the far end is up");
        Self { near: current_netns(), far: netns }
    }

    /// Lets what leaves this end pass through netem.
    ///
    /// # Panics
    /// If the kernel or `tc` does not take it.
    pub fn impair(&self, netem: &str) {
        run("/sbin/tc", &format!("qdisc replace dev near root netem {netem}"));
    }

    /// How soon what is lost is sent again at the earliest, on this end's connections: less than the 200 ms that TCP takes
    /// by itself, so that a test with losses does not last.
    ///
    /// # Panics
    /// If the kernel or `ip` does not take it.
    pub fn resend_after(&self, milliseconds: u32) {
        ip(&format!("route change 10.9.0.0/24 dev near src {NEAR} rto_min {milliseconds}ms"));
    }
}

fn ip(arguments: &str) {
    run("/sbin/ip", arguments);
}

fn run(program: &str, arguments: &str) {
    // There is no /dev/null.
    let output = Command::new(program).args(arguments.split(' ')).stdin(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|e| panic!("{program} does not run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {} {}", output.status, said.trim());
}

/// Loads a module of the kernel, if it is not loaded yet.
fn load(path: &str) {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    // SAFETY: the descriptor is open, and the parameters are an empty C string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    let error = std::io::Error::last_os_error();
    assert!(result == 0 || error.raw_os_error() == Some(libc::EEXIST), "{path}: {error}");
}
