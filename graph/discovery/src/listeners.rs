//! Who listens in a network namespace, from `/proc/PID/net/tcp` and `tcp6`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    /// The socket's inode number, by which `/proc/PID/fd` names it.
    pub(crate) inode: u64,
}

/// TCP_LISTEN in `include/net/tcp_states.h`, as the file writes it.
const LISTEN: &str = "0A";

/// The listeners on one of `ports` in the network namespace of a process, in the order of the kernel's tables.
///
/// The kernel lists listeners before everything else (`tcp_get_idx` in `net/ipv4/tcp_ipv4.c`), so reading stops at the
/// first other socket: a busy database's ten thousand connections are not walked. The buffer is small for the same reason,
/// because the kernel fills what it is given.
pub(crate) fn listeners(root: &Path, pid: u32, ports: &[u16]) -> Vec<Listener> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let Ok(file) = File::open(root.join(format!("{pid}/net/{table}"))) else { continue };
        let mut lines = BufReader::with_capacity(512, file);
        let mut line = Vec::new();
        let mut header = true;
        loop {
            line.clear();
            match lines.read_until(b'\n', &mut line) {
                Ok(n) if n > 0 => {}
                _ => break,
            }
            if std::mem::take(&mut header) {
                continue;
            }
            match std::str::from_utf8(&line).ok().and_then(parse) {
                Some(listener) if ports.contains(&listener.port) => found.push(listener),
                Some(_) => {}
                None => break,
            }
        }
    }
    found
}

/// A line such as `   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337 0 12345 …`; `None`
/// if it is not a listener's.
fn parse(line: &str) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    if state != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Listener { port, inode })
}

/// True if a process has one of these sockets open.
pub(crate) fn holds(root: &Path, pid: u32, sockets: &[Listener]) -> bool {
    let Ok(entries) = std::fs::read_dir(root.join(format!("{pid}/fd"))) else { return false };
    entries.flatten().any(|entry| {
        let link = std::fs::read_link(entry.path());
        let inode =
            link.ok().and_then(|l| l.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
        inode.is_some_and(|inode| sockets.iter().any(|s| s.inode == inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn lines_are_understood() {
        let line = "   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 12345 1 0000000000000000 100 0 0 10 0";
        assert_eq!(parse(line), Some(Listener { port: 15001, inode: 12345 }));
        let v6 = "   1: 00000000000000000000000000000000:3A9E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0 100 0 0 10 0";
        assert_eq!(parse(v6), Some(Listener { port: 15006, inode: 77 }));
        assert_eq!(parse(&line.replace(" 0A ", " 01 ")), None);
        for cut in 0..line.len() {
            let _ = parse(&line[..cut]);
        }
    }

    #[test]
    fn own_listeners_are_found_among_connections() {
        let v4 = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let v6 = TcpListener::bind("[::1]:0").expect("a listener");
        let ports = [v4.local_addr().expect("bound").port(), v6.local_addr().expect("bound").port()];
        let _streams: Vec<_> =
            (0..50).map(|_| TcpStream::connect(("127.0.0.1", ports[0])).expect("connected")).collect();
        let me = std::process::id();
        let root = Path::new("/proc");
        let found = listeners(root, me, &ports);
        assert_eq!(found.iter().map(|l| l.port).collect::<Vec<_>>(), ports);
        assert!(holds(root, me, &found));
        assert!(!holds(root, me, &[Listener { port: 1, inode: u64::MAX }]));
        drop(v4);
        assert_eq!(listeners(root, me, &ports).len(), 1);
    }
}
