//! Network namespaces and conversations of our own making.

use meshdiff_model::{Direction, Message, MonotonicNs, NetnsId, Socket, SocketCookie, SocketMetrics, TcpState};
use meshdiff_probes::{
    Assembler, AssemblyStats, Collected, DropReasons, Limits, OpenSocket, ProbeConfig, Probes, RawEvent, RawKind,
    monotonic_now,
};
use nix::sched::{CloneFlags, unshare};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// False if the privileged tests are to be left out. Not being root is a failure: a test that passes without having looked is
/// worse than none.
pub(crate) fn privileged(test: &str) -> bool {
    if std::env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("{test}: left out, because MESHDIFF_SKIP_PRIVILEGED=1");
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "{test} loads programs into the kernel and needs root; run it as root, or set MESHDIFF_SKIP_PRIVILEGED=1 to leave it out"
    );
    true
}

/// The network namespace of this thread.
pub(crate) fn current_netns() -> NetnsId {
    let inode = std::fs::metadata("/proc/thread-self/ns/net").expect("/proc is mounted").ino();
    NetnsId(u32::try_from(inode).expect("the inode number of a namespace has 32 bits"))
}

/// What a test waited for did not come, and the kernel says that it left out so many runs of the probes.
struct LeftOut(u64);

/// How often a test is begun again because the kernel left out runs of its probes.
const AGAIN: usize = 3;

/// Runs `body` in a thread with a network namespace of its own, of which only the loopback is up. The namespace goes with
/// the last socket and the thread.
///
/// On a busy machine the kernel leaves out runs of a probe that is running on the same processor already (a thread was put aside in the
/// middle of it), and counts them. A test that waits in vain while it says so proves nothing, and is begun again.
pub(crate) fn in_new_netns<T: Send>(mut body: impl FnMut(NetnsId) -> T + Send) -> T {
    let mut once = || {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
                loopback_up();
                body(current_netns())
            });
            thread.join()
        })
    };
    for _ in 0..AGAIN {
        match once() {
            Ok(result) => return result,
            Err(panic) => match panic.downcast::<LeftOut>() {
                Ok(runs) => eprintln!("the kernel left out {} runs of the probes: once more", runs.0),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
    panic!("the kernel left out runs of the probes {AGAIN} times in turn");
}

fn loopback_up() {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: an ifreq of zeros is valid: it holds numbers and pointers that are not followed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the descriptor is open, and the request is an ifreq that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(result, 0, "lo: {}", std::io::Error::last_os_error());
}

/// What the kernel calls a socket.
pub(crate) fn cookie(socket: &TcpStream) -> SocketCookie {
    cookie_of(socket)
}

/// What the kernel calls the socket of a descriptor.
pub(crate) fn cookie_of(socket: &impl AsRawFd) -> SocketCookie {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the value is as long as `len` says.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    assert_eq!(result, 0, "SO_COOKIE: {}", std::io::Error::last_os_error());
    SocketCookie(cookie)
}

/// A connection over the loopback of this thread's namespace: client and server.
pub(crate) fn connection(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let to = if address.starts_with("[::1]") { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
    let client = TcpStream::connect(to).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    client.set_nodelay(true).expect("nodelay");
    server.set_nodelay(true).expect("nodelay");
    (client, server)
}

/// The probes, and everything that they said.
pub(crate) struct Recording {
    pub(crate) probes: Probes,
    assembler: Assembler,
    sink: Collected,
    /// Events per socket, without announcements: counter and place in the ring.
    pub(crate) counters: BTreeMap<SocketCookie, Vec<u32>>,
    pub(crate) sends: Vec<(SocketCookie, u32, Vec<u8>)>,
    /// Sockets that were closed, and those of which something was sent again.
    pub(crate) closed: BTreeSet<SocketCookie>,
    pub(crate) retransmits: BTreeSet<SocketCookie>,
    /// What applications handed to their TLS libraries, as far as it was captured.
    pub(crate) plaintext: Vec<Vec<u8>>,
}

/// What was recorded.
pub(crate) struct Recorded {
    pub(crate) messages: Vec<Message>,
    pub(crate) sockets: BTreeMap<SocketCookie, Socket>,
    pub(crate) metrics: Vec<SocketMetrics>,
    pub(crate) stats: AssemblyStats,
}

impl Recording {
    pub(crate) fn start(config: &ProbeConfig, watched: &[NetnsId]) -> Self {
        let probes = Probes::load(config).unwrap_or_else(|e| panic!("{e}"));
        for netns in watched {
            probes.filter().watch(*netns).unwrap_or_else(|e| panic!("{e}"));
        }
        let (assembler, sink) = (Assembler::new(Limits::default()), Collected::default());
        Self {
            probes,
            assembler: assembler.with_drop_reasons(DropReasons::of_this_kernel()),
            sink,
            counters: BTreeMap::new(),
            sends: Vec::new(),
            closed: BTreeSet::new(),
            retransmits: BTreeSet::new(),
            plaintext: Vec::new(),
        }
    }

    pub(crate) fn drain(&mut self) {
        let Self { probes, assembler, sink, counters, sends, closed, retransmits, plaintext } = self;
        probes.drain(|event: &RawEvent<'_>| {
            if !matches!(event.kind, RawKind::Announce(_)) {
                counters.entry(event.socket).or_default().push(event.counter);
            }
            if let RawKind::Send { len, prefix, .. } = event.kind {
                sends.push((event.socket, len, prefix.to_vec()));
            }
            if let RawKind::SendPlaintext { prefix, .. } = event.kind {
                plaintext.push(prefix.to_vec());
            }
            match event.kind {
                RawKind::State { new: TcpState::Close, .. } => _ = closed.insert(event.socket),
                RawKind::Retransmit { .. } => _ = retransmits.insert(event.socket),
                _ => {}
            }
            assembler.push(event, sink);
        });
        assembler.tick(monotonic_now(), sink);
    }

    /// Drains until `done`, or fails.
    pub(crate) fn drain_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        loop {
            self.drain();
            if done(self) {
                return;
            }
            if Instant::now() >= end {
                match self.probes.counters().expect("counters").skipped {
                    0 => panic!("did not see {what} within {DEADLINE:?}; saw {:?}", self.counters),
                    runs => std::panic::panic_any(LeftOut(runs)),
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn found_open(&mut self, open: &[OpenSocket]) {
        open.iter().for_each(|o| self.assembler.found_open(o, None, monotonic_now()));
    }

    pub(crate) fn events(&self, socket: SocketCookie) -> usize {
        self.counters.get(&socket).map_or(0, Vec::len)
    }

    pub(crate) fn finish(mut self) -> (Probes, Recorded) {
        self.drain();
        self.assembler.finish(&mut self.sink);
        let stats = self.assembler.stats();
        let sockets = self.sink.sockets.into_iter().map(|s| (s.cookie, s)).collect();
        (self.probes, Recorded { messages: self.sink.messages, sockets, metrics: self.sink.metrics, stats })
    }
}

impl Recorded {
    pub(crate) fn of(&self, socket: SocketCookie, direction: Direction) -> Vec<&Message> {
        self.messages.iter().filter(|m| m.socket == socket && m.direction == direction).collect()
    }

    /// Bytes in all messages of a direction.
    pub(crate) fn bytes(&self, socket: SocketCookie, direction: Direction) -> u64 {
        self.of(socket, direction).iter().map(|m| u64::from(m.seq.len())).sum()
    }
}

/// First instant of a list that covers the number before `end`.
pub(crate) fn covering(list: &[meshdiff_model::SeqInstant], end: meshdiff_model::SeqNo) -> MonotonicNs {
    list.iter().find(|i| !i.seq.before(end)).unwrap_or_else(|| panic!("nothing covers {end:?} in {list:?}")).at
}

/// sendfile(2): pages of the file reach TCP without having been in this process.
pub(crate) fn send_file(file: &std::fs::File, to: &TcpStream, bytes: usize) {
    let mut sent = 0;
    while sent < bytes {
        // SAFETY: both descriptors are open; without an offset the file's own position is used.
        let n = unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), bytes - sent) };
        assert!(n > 0, "sendfile: {}", std::io::Error::last_os_error());
        sent += n.cast_unsigned();
    }
}
