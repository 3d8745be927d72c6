//! What really happened, read from the lab's logs: the ground that tests stand on.
//!
//! ```no_run
//! use meshdiff_lab::truth::Truth;
//! let truth = Truth::read(["/run/meshdiff-lab/lab/logs"])?;
//! for request in truth.clients() {
//!     let served = truth.server_by_nonce(request.nonce);
//!     println!("{} took {:?}, served {} times", request.path, request.recv_end_ns, served.len());
//! }
//! # Ok::<(), meshdiff_lab::truth::TruthError>(())
//! ```

mod exchange;
mod records;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use exchange::{Doing, ExchangeRecord, Leg, Mark, Protocol, Role, Sockets, StreamMessage, Wait};
pub use records::{AuthzRecord, ClientRecord, InvalidNonce, Nonce, PacketRecord, Record, ServerRecord, Side};

use crate::clock::MonotonicNs;

/// Why the logs cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    /// A folder or file is not readable.
    #[error("the lab's logs at {path} cannot be read: {why}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// There is no log at all.
    #[error("there is no *.ndjson log at {0:?}: is this the lab's log folder, and was there any load?")]
    Empty(Vec<PathBuf>),
}

/// Everything that the lab wrote down, with the indexes that judging needs.
#[derive(Debug, Default)]
pub struct Truth {
    clients: Vec<ClientRecord>,
    servers: Vec<ServerRecord>,
    authz: Vec<AuthzRecord>,
    packets: Vec<PacketRecord>,
    exchanges: Vec<ExchangeRecord>,
    exchange_by_nonce: HashMap<(Nonce, Role), usize>,
    unreadable: usize,
    client_by_nonce: HashMap<Nonce, usize>,
    servers_by_nonce: HashMap<Nonce, Vec<usize>>,
    /// Per socket of a client, in order of sending.
    client_by_socket: HashMap<SocketAddr, Vec<usize>>,
    /// Per (server's end, peer's end), in order of answering.
    server_by_socket: HashMap<(SocketAddr, SocketAddr), Vec<usize>>,
    authz_by_nonce: HashMap<(Nonce, Side), Vec<usize>>,
}

impl Truth {
    /// Reads logs: each path is a log file, or a folder whose `*.ndjson` files are read.
    ///
    /// Lines that are no record are counted, not fatal: a killed process leaves half a line.
    ///
    /// # Errors
    /// When a path cannot be read, or there is no log at all.
    pub fn read<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, TruthError> {
        let mut files = Vec::new();
        let mut asked = Vec::new();
        for path in paths {
            let path = path.as_ref();
            asked.push(path.to_owned());
            if path.is_dir() {
                let at = |why| TruthError::Io { path: path.to_owned(), why };
                for entry in std::fs::read_dir(path).map_err(at)? {
                    let file = entry.map_err(at)?.path();
                    if file.extension().is_some_and(|extension| extension == "ndjson") {
                        files.push(file);
                    }
                }
            } else {
                files.push(path.to_owned());
            }
        }
        files.sort();
        files.dedup();
        if files.is_empty() {
            return Err(TruthError::Empty(asked));
        }
        let mut records = Vec::new();
        let mut unreadable = 0;
        for file in files {
            let text = std::fs::read(&file).map_err(|why| TruthError::Io { path: file.clone(), why })?;
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<Record>(line) {
                    Ok(record) => records.push(record),
                    Err(_) => unreadable += 1,
                }
            }
        }
        Ok(Self { unreadable, ..Self::from_records(records) })
    }

    /// Builds the indexes over records that are already there.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Self {
        let mut truth = Self::default();
        for record in records {
            match record {
                Record::Client(record) => truth.clients.push(record),
                Record::Server(record) => truth.servers.push(record),
                Record::Authz(record) => truth.authz.push(record),
                Record::Packet(record) => truth.packets.push(record),
                Record::Exchange(record) => truth.exchanges.push(*record),
            }
        }
        truth.clients.sort_by_key(|record| (record.send_start_ns, record.nonce));
        truth.servers.sort_by_key(|record| (record.sent_ns, record.nonce));
        truth.authz.sort_by_key(|record| (record.start_ns, record.nonce));
        truth.packets.sort_by_key(|record| (record.in_ns, record.seq));
        truth.exchanges.sort_by_key(|record| (record.request.first.map(|mark| mark.after), record.nonce));
        for (i, record) in truth.exchanges.iter().enumerate() {
            truth.exchange_by_nonce.insert((record.nonce, record.role), i);
        }
        for (i, record) in truth.clients.iter().enumerate() {
            truth.client_by_nonce.insert(record.nonce, i);
            truth.client_by_socket.entry(record.local).or_default().push(i);
        }
        for (i, record) in truth.servers.iter().enumerate() {
            if let Some(nonce) = record.nonce {
                truth.servers_by_nonce.entry(nonce).or_default().push(i);
            }
            truth.server_by_socket.entry((record.local, record.peer)).or_default().push(i);
        }
        for (i, record) in truth.authz.iter().enumerate() {
            if let Some(nonce) = record.nonce {
                truth.authz_by_nonce.entry((nonce, record.side)).or_default().push(i);
            }
        }
        truth
    }

    /// All requests that were sent, in order of sending; failed ones too.
    pub fn clients(&self) -> &[ClientRecord] {
        &self.clients
    }

    /// All requests that were served, in order of answering.
    pub fn servers(&self) -> &[ServerRecord] {
        &self.servers
    }

    /// All waits of sidecars, in order of start.
    pub fn authz(&self) -> &[AuthzRecord] {
        &self.authz
    }

    /// All packets that delayed links held, in order of arrival.
    pub fn packets(&self) -> &[PacketRecord] {
        &self.packets
    }

    /// Both ends of all exchanges of the protocol workloads, in order of their first byte.
    pub fn exchanges(&self) -> &[ExchangeRecord] {
        &self.exchanges
    }

    /// One end of an exchange of the protocol workloads.
    pub fn exchange(&self, nonce: Nonce, role: Role) -> Option<&ExchangeRecord> {
        self.exchange_by_nonce.get(&(nonce, role)).map(|i| &self.exchanges[*i])
    }

    /// All attempts at an exchange that reached the server, in order of their first byte.
    pub fn attempts(&self, nonce: Nonce) -> impl Iterator<Item = &ExchangeRecord> {
        self.exchanges.iter().filter(move |record| record.nonce == nonce && record.role == Role::Server)
    }

    /// The attempt at an exchange that was answered to its client, as far as its client knows; else the last one.
    pub fn answered(&self, nonce: Nonce) -> Option<&ExchangeRecord> {
        let known = self.exchange(nonce, Role::Client).and_then(|record| record.attempt);
        let named = known.and_then(|n| self.attempts(nonce).find(|record| record.attempt == Some(n)));
        named.or_else(|| self.exchange(nonce, Role::Server))
    }

    /// Lines that are no record.
    pub fn unreadable_lines(&self) -> usize {
        self.unreadable
    }

    /// The hop as its sender saw it.
    pub fn client_by_nonce(&self, nonce: Nonce) -> Option<&ClientRecord> {
        self.client_by_nonce.get(&nonce).map(|i| &self.clients[*i])
    }

    /// The hop as its server saw it: once, or once per attempt if the sidecar retried, or never.
    pub fn server_by_nonce(&self, nonce: Nonce) -> Vec<&ServerRecord> {
        self.servers_by_nonce.get(&nonce).into_iter().flatten().map(|i| &self.servers[*i]).collect()
    }

    /// The request that a client's socket (`local`, the application's end of S1) was carrying at `at`.
    ///
    /// Every instant between `sendStartNs` and `recvEndNs` names it; between two requests there is none. A request that
    /// got no response occupies its socket from then on.
    pub fn client_at(&self, local: SocketAddr, at: MonotonicNs) -> Option<&ClientRecord> {
        let on_socket = self.client_by_socket.get(&local)?;
        let started = on_socket.partition_point(|i| self.clients[*i].send_start_ns <= at);
        let record = &self.clients[on_socket[started.checked_sub(1)?]];
        record.recv_end_ns.is_none_or(|end| at <= end).then_some(record)
    }

    /// The request that a server's socket (S6: `local` is the application's end, `peer` the sidecar's) was carrying at
    /// `at`: the first that was answered at or after it. HTTP/1.1 answers in order, so the arrival of a request's
    /// bytes, their reading and the response's sending all lie between the answer before and its own.
    pub fn server_at(&self, local: SocketAddr, peer: SocketAddr, at: MonotonicNs) -> Option<&ServerRecord> {
        let on_socket = self.server_by_socket.get(&(local, peer))?;
        let answered = on_socket.partition_point(|i| self.servers[*i].sent_ns < at);
        on_socket.get(answered).map(|i| &self.servers[*i])
    }

    /// How long a sidecar really waited for this hop, in nanoseconds, summed over its calls; absent if it never did.
    pub fn sidecar_delay_ns(&self, nonce: Nonce, side: Side) -> Option<u64> {
        let waits = self.authz_by_nonce.get(&(nonce, side))?;
        Some(waits.iter().map(|i| self.authz[*i].actual_ns).sum())
    }

    /// How long the serving application really waited for this hop, in nanoseconds; absent if nothing was asked.
    pub fn app_delay_ns(&self, nonce: Nonce) -> Option<u64> {
        self.server_by_nonce(nonce).iter().filter_map(|record| record.delay_actual_ns).reduce(|a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn client(nonce: u64, local: &str, send: u64, end: Option<u64>) -> Record {
        Record::Client(ClientRecord {
            pod: "productpage-v1".into(),
            nonce: Nonce(nonce),
            parent: None,
            root: Nonce(1),
            request_id: None,
            host: "reviews".into(),
            local: local.parse().unwrap(),
            remote: "10.96.0.3:9080".parse().unwrap(),
            method: "GET".into(),
            path: "/".into(),
            status: end.map(|_| 200),
            intended_ns: None,
            send_start_ns: MonotonicNs(send),
            first_byte_ns: end.map(MonotonicNs),
            recv_end_ns: end.map(MonotonicNs),
            connect_start_ns: None,
            connect_ns: None,
            request_bytes: 0,
            response_bytes: 0,
            delays: None,
            error: None,
        })
    }

    fn server(nonce: u64, recv: u64, send: u64) -> Record {
        Record::Server(ServerRecord {
            pod: "reviews-v1".into(),
            nonce: Some(Nonce(nonce)),
            parent: None,
            root: None,
            request_id: None,
            peer: "127.0.0.6:4000".parse().unwrap(),
            local: "10.77.0.3:9080".parse().unwrap(),
            method: "GET".into(),
            path: "/".into(),
            status: 200,
            recv_ns: MonotonicNs(recv),
            body_end_ns: MonotonicNs(recv),
            handler_start_ns: MonotonicNs(recv),
            delay_requested_ns: Some(5),
            delay_actual_ns: Some(7),
            send_ns: MonotonicNs(send),
            sent_ns: MonotonicNs(send + 5),
            request_bytes: 0,
            response_bytes: 0,
        })
    }

    #[test]
    fn a_socket_and_an_instant_name_one_request() {
        let a = "10.77.0.2:1000";
        let truth =
            Truth::from_records([client(1, a, 100, Some(200)), client(2, a, 300, Some(400)), client(3, a, 500, None)]);
        let at = |t| truth.client_at(a.parse().unwrap(), MonotonicNs(t)).map(|r| r.nonce.0);
        let expected =
            [(99, None), (100, Some(1)), (200, Some(1)), (250, None), (300, Some(2)), (450, None), (9_999, Some(3))];
        for (t, nonce) in expected {
            assert_eq!(at(t), nonce, "at {t}");
        }
        assert!(truth.client_at("10.77.0.2:1001".parse().unwrap(), MonotonicNs(150)).is_none());
    }

    #[test]
    fn a_served_request_owns_the_time_since_the_answer_before() {
        let truth = Truth::from_records([server(2, 300, 400), server(1, 100, 200)]);
        let (local, peer) = ("10.77.0.3:9080".parse().unwrap(), "127.0.0.6:4000".parse().unwrap());
        let at = |t| truth.server_at(local, peer, MonotonicNs(t)).and_then(|r| r.nonce).map(|n| n.0);
        for (t, nonce) in [(50, Some(1)), (205, Some(1)), (206, Some(2)), (405, Some(2)), (406, None)] {
            assert_eq!(at(t), nonce, "at {t}");
        }
        assert_eq!(truth.app_delay_ns(Nonce(1)), Some(7));
    }

    #[test]
    fn half_a_line_is_counted_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("a.ndjson")).unwrap();
        writeln!(file, "{}", serde_json::to_string(&client(1, "10.77.0.2:1000", 1, Some(2))).unwrap()).unwrap();
        write!(file, "{{\"kind\":\"client\",\"pod\"").unwrap();
        let truth = Truth::read([dir.path()]).unwrap();
        assert_eq!((truth.clients().len(), truth.unreadable_lines()), (1, 1));
        assert_eq!(truth.client_by_nonce(Nonce(1)).unwrap().host, "reviews");
    }

    #[test]
    fn a_folder_without_logs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Truth::read([dir.path()]), Err(TruthError::Empty(_))));
        assert!(matches!(Truth::read([dir.path().join("x")]), Err(TruthError::Io { .. })));
    }
}
