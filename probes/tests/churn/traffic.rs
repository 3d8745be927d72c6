//! Connections over a loopback of our own, each with payload that names it.

use meshdiff_model::{NetnsId, SocketCookie};
use nix::sched::{CloneFlags, unshare};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// So few client ports that each is used again within milliseconds.
const PORTS: &str = "40000 40015";
const LISTENERS: usize = 4;
/// Connections made between two looks at the clock.
const BATCH: usize = 10;

/// A connection that was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketCookie,
    pub(crate) server: SocketCookie,
    client_address: SocketAddr,
    server_address: SocketAddr,
    begun: Instant,
}

impl Connection {
    /// The client's, and the server's.
    pub(crate) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.client_address, self.server_address)
    }
}

/// Runs `body` in a thread with a network namespace of its own, of which only the loopback is up.
pub(crate) fn in_new_netns<T: Send>(body: impl FnOnce(NetnsId) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            loopback_up();
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", PORTS).expect("the range of ports can be set");
            let inode = std::fs::metadata("/proc/thread-self/ns/net").expect("/proc is mounted").ino();
            body(NetnsId(u32::try_from(inode).expect("the inode number of a namespace has 32 bits")))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
fn cookie(socket: &TcpStream) -> SocketCookie {
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the value is as long as `len` says.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    assert_eq!(result, 0, "SO_COOKIE: {}", std::io::Error::last_os_error());
    SocketCookie(cookie)
}

/// Lets closing send a RST: neither end waits, and the port is free at once.
fn abort_on_close(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open, and the value is a linger of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "SO_LINGER: {}", std::io::Error::last_os_error());
}

/// What the client of connection `n` asks.
pub(crate) fn request(n: usize) -> Vec<u8> {
    format!("GET /{n} HTTP/1.1\r\nhost: churn\r\n\r\n").into_bytes()
}

/// What its server answers: the length differs from that of its neighbours.
pub(crate) fn response(n: usize) -> Vec<u8> {
    let body = n % 499;
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}

/// Makes so many connections, at most so many in a second, one after the other in this thread's namespace. The client of three
/// in four aborts; of the others the server closes first, so that its end is in TIME_WAIT when the port comes again.
pub(crate) fn churn(count: usize, per_second: usize) -> (Vec<Connection>, Duration) {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a listener");
    let listeners: Vec<TcpListener> = (0..LISTENERS).map(listen).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("an address")).collect();
    let mut all = Vec::with_capacity(count);
    let start = Instant::now();
    for n in 0..count {
        if n % BATCH == 0 {
            let due = Duration::from_secs_f64(n as f64 / per_second as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let to = addresses[n % LISTENERS];
        let begun = Instant::now();
        let mut client = TcpStream::connect(to).unwrap_or_else(|e| panic!("connection {n}: {e}"));
        let (mut server, peer) = listeners[n % LISTENERS].accept().expect("a connection");
        assert_eq!(client.local_addr().ok(), Some(peer), "one connection at a time");
        all.push(Connection {
            client: cookie(&client),
            server: cookie(&server),
            client_address: peer,
            server_address: to,
            begun,
        });
        say(&mut client, &mut server, &request(n));
        say(&mut server, &mut client, &response(n));
        if n % 4 == 0 {
            drop(server);
            assert_eq!(client.read(&mut [0; 8]).ok(), Some(0), "the server closed");
        } else {
            abort_on_close(&client);
        }
    }
    (all, start.elapsed())
}

fn say(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("written");
    let mut buffer = [0; 1024];
    let buffer = &mut buffer[..bytes.len()];
    to.read_exact(buffer).expect("read");
    assert!(buffer == bytes, "the connection itself is mixed up");
}

/// After how long a pair of addresses is used again, at the median.
pub(crate) fn usual_reuse(all: &[Connection]) -> Duration {
    let mut last: HashMap<(SocketAddr, SocketAddr), Instant> = HashMap::new();
    let again = all.iter().filter_map(|c| Some(c.begun - last.insert(c.addresses(), c.begun)?));
    let mut times: Vec<Duration> = again.collect();
    times.sort_unstable();
    times[times.len() / 2]
}
