//! Keep-alive connections whose local port is known, and one request and response over one of them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::MonotonicNs;
use crate::http::{MessageReader, ReadError, Received, ResponseHead};

/// No request of the lab takes longer, whatever delay was put into it; beyond it something is broken.
const GIVE_UP: Duration = Duration::from_secs(70);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A connection, with what is known of it.
#[derive(Debug)]
pub struct Connection {
    reader: MessageReader<TcpStream>,
    /// This end.
    pub local: SocketAddr,
    /// The other end as it was dialled.
    pub remote: SocketAddr,
    used: bool,
}

/// When a connection was made.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    /// Right before `connect`.
    pub start: MonotonicNs,
    /// How long it took.
    pub took: Duration,
}

impl Connection {
    /// Dials.
    ///
    /// # Errors
    /// As `connect` does.
    pub fn open(remote: SocketAddr) -> io::Result<(Self, Connect)> {
        let start = MonotonicNs::now();
        let stream = TcpStream::connect_timeout(&remote, CONNECT_WITHIN)?;
        let took = MonotonicNs::now().since(start);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GIVE_UP))?;
        stream.set_write_timeout(Some(GIVE_UP))?;
        let local = stream.local_addr()?;
        Ok((Self { reader: MessageReader::new(stream), local, remote, used: false }, Connect { start, took }))
    }

    /// Whether it has carried a request before: only then can a close by the peer be a mere race.
    pub fn used(&self) -> bool {
        self.used
    }

    /// Sends `request` and reads the response to its end. The instant is right before the first `write`.
    pub fn exchange(&mut self, request: &[u8]) -> (MonotonicNs, Result<Received<ResponseHead>, ReadError>) {
        let send_start = MonotonicNs::now();
        let sent = self.reader.stream().write_all(request);
        let received = sent.map_err(ReadError::Io).and_then(|()| self.reader.response());
        self.used = true;
        (send_start, received)
    }
}

/// Idle connections per destination. The one that came back last leaves first, so that few are in use.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<HashMap<SocketAddr, Vec<Connection>>>,
}

impl Pool {
    /// A connection that is idle, or a new one.
    ///
    /// # Errors
    /// When dialling fails.
    pub fn take(&self, remote: SocketAddr) -> io::Result<(Connection, Option<Connect>)> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(&remote).and_then(Vec::pop);
        drop(idle);
        match kept {
            Some(connection) => Ok((connection, None)),
            None => Connection::open(remote).map(|(connection, connect)| (connection, Some(connect))),
        }
    }

    /// Keeps a connection whose response was read to its end.
    pub fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(connection.remote).or_default().push(connection);
    }
}
