//! Connections that are open already: a socket that says nothing reaches no probe, but it is a line of the topology all the
//! same.
//!
//! They are asked of the kernel with netlink's `SOCK_DIAG_BY_FAMILY` (sock_diag(7)), from inside their namespace. The cookie that it
//! gives is the probes' (`sock_gen_cookie`).

use crate::event::Identity;
use meshdiff_model::{LocalAddr, NetnsId, PeerAddr, SocketCookie, SocketRole, TcpState};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A connection that was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// The socket.
    pub socket: SocketCookie,
    /// Who it is.
    pub identity: Identity,
    /// Its state.
    pub state: TcpState,
    /// Accepted if something listens on its port in its namespace, else connected.
    pub role: SocketRole,
    /// The inode number of its descriptor, as `/proc/PID/fd` shows it; 0 once no process holds it.
    pub inode: u32,
}

/// Why open connections could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum ExistingError {
    /// No process and no name leads into the namespace.
    #[error("nothing leads into the network namespace {}: it has no process and no name under /run/netns", .0.0)]
    NoWay(NetnsId),
    /// The namespace may not be entered.
    #[error(
        "cannot enter the network namespace {}, to list its open connections: {source} (CAP_SYS_ADMIN is needed for it)", .netns.0
    )]
    Enter {
        /// Which.
        netns: NetnsId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not list them.
    #[error("the kernel does not list open connections: {0} (the modules inet_diag and tcp_diag are needed for it)")]
    Refused(#[from] io::Error),
}

/// The TCP sockets of a namespace that are part of a connection, in order of their cookie.
///
/// # Errors
/// If the namespace cannot be entered, or the kernel does not tell.
pub fn open_sockets(netns: NetnsId) -> Result<Vec<OpenSocket>, ExistingError> {
    let namespace = find(netns).ok_or(ExistingError::NoWay(netns))?;
    // A thread of its own: whoever enters a namespace does not come back.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| ExistingError::Enter { netns, source: errno.into() })?;
            list(netns).map_err(ExistingError::from)
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A way into a namespace.
fn find(netns: NetnsId) -> Option<File> {
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|m| m.ino() == u64::from(netns.0));
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let processes = entries("/proc")
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
        .map(|p| p.join("ns/net"));
    // A thread can be in another namespace than its process.
    let own = std::iter::once(PathBuf::from("/proc/thread-self/ns/net"));
    own.chain(processes).chain(entries("/run/netns")).filter(|p| is_it(p)).find_map(|p| File::open(p).ok())
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const HEADER: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// All states but CLOSE, TIME_WAIT and those of requests, which are no sockets of a process.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | LISTEN | 1 << 11;
const LISTEN: u32 = 1 << 10;

/// Lists the sockets of this thread's namespace.
fn list(netns: NetnsId) -> io::Result<Vec<OpenSocket>> {
    let kind = SockType::Raw;
    let socket = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut found = Found::default();
    for family in [AF_INET, AF_INET6] {
        ask(&socket, family)?;
        while !read(&socket, netns, &mut found)? {}
    }
    Ok(found.finish())
}

fn ask(socket: &OwnedFd, family: u8) -> io::Result<()> {
    // struct nlmsghdr and struct inet_diag_req_v2, whose socket id is all zeros: any.
    let mut request = Vec::with_capacity(HEADER + 56);
    request.extend((HEADER as u32 + 56).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, IPPROTO_TCP, 0, 0]);
    request.extend(STATES.to_ne_bytes());
    request.resize(HEADER + 56, 0);
    let sent = send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    if sent == request.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Takes one datagram. True if it was the last.
fn read(socket: &OwnedFd, netns: NetnsId, found: &mut Found) -> io::Result<bool> {
    let mut buffer = vec![0_u8; 64 << 10];
    let got = loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => break got,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    found.take(&buffer[..got], netns)
}

/// What was listed so far.
#[derive(Debug, Default)]
struct Found {
    sockets: Vec<OpenSocket>,
    /// Ports that are listened on.
    listening: BTreeSet<u16>,
}

impl Found {
    /// Takes a datagram's messages. True if they end the list.
    fn take(&mut self, mut bytes: &[u8], netns: NetnsId) -> io::Result<bool> {
        while bytes.len() >= HEADER {
            let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            let len = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
            let message = bytes.get(HEADER..len).ok_or(io::ErrorKind::InvalidData)?;
            match number(4) {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    let errno = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if errno == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-errno)) };
                }
                SOCK_DIAG_BY_FAMILY => self.socket(message, netns),
                _ => {}
            }
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }

    fn socket(&mut self, message: &[u8], netns: NetnsId) {
        let Some(message) = message.first_chunk::<MESSAGE>() else { return };
        let four = |at: usize| [message[at], message[at + 1], message[at + 2], message[at + 3]];
        let port = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let ip = |at: usize| match message[0] {
            AF_INET => Some(IpAddr::V4(Ipv4Addr::from(four(at)))),
            AF_INET6 => message[at..].first_chunk::<16>().map(|ip| IpAddr::V6(Ipv6Addr::from(*ip))),
            _ => None,
        };
        let (Some(state), Some(local), Some(remote)) = (TcpState::from_kernel(message[1]), ip(8), ip(24)) else {
            return;
        };
        if state == TcpState::Listen {
            self.listening.insert(port(4));
            return;
        }
        let (low, high) = (u32::from_ne_bytes(four(44)), u32::from_ne_bytes(four(48)));
        self.sockets.push(OpenSocket {
            socket: SocketCookie(u64::from(high) << 32 | u64::from(low)),
            identity: Identity {
                netns,
                local: LocalAddr::normalised(SocketAddr::new(local, port(4))),
                remote: PeerAddr::normalised(SocketAddr::new(remote, port(6))),
            },
            state,
            role: SocketRole::Connected,
            inode: u32::from_ne_bytes(four(68)),
        });
    }

    fn finish(mut self) -> Vec<OpenSocket> {
        for socket in &mut self.sockets {
            if self.listening.contains(&socket.identity.local.port()) {
                socket.role = SocketRole::Accepted;
            }
        }
        self.sockets.sort_by_key(|s| s.socket);
        self.sockets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datagram(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(HEADER + body.len()).expect("small").to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend(body);
        out
    }

    fn message(family: u8, state: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut m = vec![family, state, 0, 0];
        ports.iter().for_each(|p| m.extend(p.to_be_bytes()));
        m.extend([10, 0, 0, 1]);
        m.resize(24, 0);
        m.extend([10, 0, 0, 2]);
        m.resize(40, 0);
        m.extend(0_u32.to_ne_bytes());
        m.extend(7_u32.to_ne_bytes());
        m.extend(1_u32.to_ne_bytes());
        m.resize(68, 0);
        m.extend(4242_u32.to_ne_bytes());
        m
    }

    #[test]
    fn a_list_is_read() {
        let mut found = Found::default();
        let list = [
            datagram(SOCK_DIAG_BY_FAMILY, &message(2, 1, [8080, 40_000])),
            datagram(SOCK_DIAG_BY_FAMILY, &message(2, 10, [8080, 0])),
            datagram(SOCK_DIAG_BY_FAMILY, &message(2, 8, [40_001, 9080])),
        ];
        assert!(!found.take(&list.concat(), NetnsId(5)).expect("reads"));
        assert!(found.take(&datagram(NLMSG_DONE, &[0; 4]), NetnsId(5)).expect("reads"));
        let sockets = found.finish();
        assert_eq!(sockets.len(), 2);
        assert_eq!((sockets[0].socket, sockets[0].inode), (SocketCookie(1 << 32 | 7), 4242));
        assert_eq!(sockets[0].identity.local.to_string(), "10.0.0.1:8080");
        assert_eq!(sockets[0].identity.remote.to_string(), "10.0.0.2:40000");
        assert_eq!((sockets[0].role, sockets[1].role), (SocketRole::Accepted, SocketRole::Connected));
        assert_eq!(sockets[1].state, TcpState::CloseWait);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let error = Found::default().take(&datagram(NLMSG_ERROR, &(-2_i32).to_ne_bytes()), NetnsId(5));
        assert_eq!(error.expect_err("refused").kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), len in 0_u32..400, kind in 0_u16..22) {
            let _ = Found::default().take(&bytes, NetnsId(5));
            if bytes.len() >= 6 {
                bytes[..4].copy_from_slice(&len.to_ne_bytes());
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = Found::default().take(&bytes, NetnsId(5));
        }
    }
}
