//! Conversations between two sockets of this process. Every step waits for the one before it, so that there is one order
//! only in which things can happen.

use meshdiff_model::SocketCookie;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

const GET: &[u8] = b"GET /hello/world?secret=1 HTTP/1.1\r\nhost: a.example\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
/// Bytes of one large write: more than a send buffer holds at first.
const LARGE: usize = 1 << 20;
/// Bytes that sendfile sends: many pages, and no whole number of them.
const FILE: usize = 300_001;

/// Two connected sockets, and how closely the order of their events is determined.
pub struct Conversation {
    /// What it is about.
    pub name: &'static str,
    /// The socket that connected.
    pub client: Side,
    /// The socket that was accepted.
    pub server: Side,
    /// Into how many pieces bytes are cut depends on buffers and timing: compare where they begin and end only.
    pub bulk: bool,
}

/// One of the two sockets, as the application knows it.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// What the kernel calls it, where it was asked to by `SO_COOKIE`.
    pub cookie: SocketCookie,
    /// Its own address.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
}

/// Name, address to listen on, whether it is a bulk transfer, and what to do.
type Script = (&'static str, &'static str, bool, fn(&mut Pair));

/// Holds all conversations, one after the other. All sockets are closed when it returns.
pub fn hold_all() -> Vec<Conversation> {
    let scripts: [Script; 8] = [
        ("keep-alive", "127.0.0.1:0", false, keep_alive),
        ("http over IPv6", "[::1]:0", false, one_request),
        ("http over a mapped address", "[::]:0", false, one_request),
        ("pieces", "127.0.0.1:0", false, pieces),
        ("tls records", "127.0.0.1:0", false, tls),
        ("reset", "127.0.0.1:0", false, reset),
        ("a large response", "127.0.0.1:0", true, large),
        ("sendfile", "127.0.0.1:0", true, file),
    ];
    scripts
        .into_iter()
        .map(|(name, address, bulk, script)| {
            let mut pair = Pair::new(address);
            let (client, server) = (side(&pair.client), side(&pair.server));
            script(&mut pair);
            Conversation { name, client, server, bulk }
        })
        .collect()
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let to = if address.starts_with("[::1]") { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
        let client = TcpStream::connect(to).expect("a connection");
        let (server, _) = listener.accept().expect("a connection");
        client.set_nodelay(true).expect("nodelay");
        server.set_nodelay(true).expect("nodelay");
        Self { client, server }
    }

    fn ask(&mut self, bytes: &[u8]) {
        say(&mut self.client, &mut self.server, bytes);
    }

    fn answer(&mut self, bytes: &[u8]) {
        say(&mut self.server, &mut self.client, bytes);
    }

    /// The client ends first, then the server.
    fn end(&mut self) {
        self.client.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(self.server.read(&mut [0; 8]).expect("read"), 0);
        self.server.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(self.client.read(&mut [0; 8]).expect("read"), 0);
    }
}

/// One write, and one read of all of it.
fn say(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("written");
    hear(to, bytes);
}

fn hear(to: &mut TcpStream, bytes: &[u8]) {
    let mut buffer = vec![0; bytes.len()];
    to.read_exact(&mut buffer).expect("read");
    assert_eq!(buffer, bytes);
}

fn one_request(pair: &mut Pair) {
    pair.ask(GET);
    pair.answer(RESPONSE);
    pair.answer(b"0123456789");
    pair.end();
}

fn keep_alive(pair: &mut Pair) {
    for _ in 0..2 {
        pair.ask(GET);
        pair.answer(RESPONSE);
        pair.answer(b"0123456789");
    }
    // A head in two pieces.
    pair.ask(b"POST /big HTTP/1.1\r\n");
    pair.ask(b"content-length: 0\r\n\r\n");
    pair.answer(b"HTTP/1.1 100 Continue\r\n\r\n");
    pair.answer(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    pair.end();
}

/// Vectors, a look without taking, a message that is read in two parts, a write of nothing.
fn pieces(pair: &mut Pair) {
    let vectors = [&GET[..20], &GET[20..40], &GET[40..]].map(IoSlice::new);
    assert_eq!(pair.client.write_vectored(&vectors).expect("written"), GET.len());
    let mut look = [0; 16];
    assert_eq!(recv(pair.server.as_raw_fd(), &mut look, MsgFlags::MSG_PEEK).expect("peeked"), look.len());
    hear(&mut pair.server, &GET[..30]);
    hear(&mut pair.server, &GET[30..]);
    assert_eq!(pair.server.write(&[]).expect("written"), 0);
    pair.answer(RESPONSE);
    pair.end();
}

fn tls(pair: &mut Pair) {
    let record = |kind: u8, length: u8| [&[kind, 3, 3, 0, length][..], &vec![0xa5; usize::from(length)]].concat();
    pair.ask(&record(22, 100));
    pair.answer(&record(22, 200));
    pair.ask(&record(23, 60));
    pair.answer(&record(23, 80));
    pair.end();
}

fn reset(pair: &mut Pair) {
    pair.ask(GET);
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&pair.client, sockopt::Linger, &now).expect("linger");
}

fn large(pair: &mut Pair) {
    pair.ask(GET);
    let Pair { client, server } = pair;
    std::thread::scope(|scope| {
        scope.spawn(|| server.write_all(&vec![7; LARGE]).expect("written"));
        client.read_exact(&mut vec![0; LARGE]).expect("read");
    });
    pair.end();
}

fn file(pair: &mut Pair) {
    pair.ask(GET);
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&vec![b'f'; FILE]).expect("written");
    let Pair { client, server } = pair;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut offset = 0;
            while offset < FILE as i64 {
                // SAFETY: both descriptors are open, and the offset outlives the call.
                let n = unsafe { libc::sendfile(server.as_raw_fd(), file.as_raw_fd(), &raw mut offset, FILE) };
                assert!(n > 0, "sendfile: {}", std::io::Error::last_os_error());
            }
        });
        client.read_exact(&mut vec![0; FILE]).expect("read");
    });
    pair.end();
}

fn side(socket: &TcpStream) -> Side {
    let (local, remote) = (socket.local_addr().expect("an address"), socket.peer_addr().expect("an address"));
    Side { cookie: cookie(socket), local, remote }
}

/// What the kernel calls a socket.
fn cookie(socket: &TcpStream) -> SocketCookie {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the value is as long as `len` says.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    assert_eq!(result, 0, "SO_COOKIE: {}", std::io::Error::last_os_error());
    SocketCookie(cookie)
}
