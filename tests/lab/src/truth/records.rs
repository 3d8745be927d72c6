//! The lines of the lab's logs. One file holds one process's lines; all instants are [`MonotonicNs`].

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::ExchangeRecord;
use crate::clock::MonotonicNs;

/// Names one hop of one request: new on each hop, carried in `x-lab-nonce`. On the wire and in logs: 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

impl Nonce {
    /// A nonce that no other hop has (64 random bits).
    pub fn new() -> Self {
        Self(rand::rng().random())
    }
}

impl Default for Nonce {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text is no nonce.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no nonce: 16 hexadecimal digits are")]
pub struct InvalidNonce(String);

impl FromStr for Nonce {
    type Err = InvalidNonce;

    fn from_str(text: &str) -> Result<Self, InvalidNonce> {
        let valid = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = valid.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| InvalidNonce(text.to_owned()))
    }
}

impl Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One line of any log of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Record {
    /// A request that an application (or the load generator) sent.
    Client(ClientRecord),
    /// A request that an application served.
    Server(ServerRecord),
    /// A wait of the `ext_authz` server, so a delay inside of a sidecar.
    Authz(AuthzRecord),
    /// A packet that a network delay held.
    Packet(PacketRecord),
    /// An exchange of the protocol workloads, as one end saw it.
    Exchange(Box<ExchangeRecord>),
}

/// A request as its sender saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientRecord {
    /// The sender's workload.
    pub pod: String,
    /// This hop.
    pub nonce: Nonce,
    /// The hop that the sender was serving; absent for the load generator.
    pub parent: Option<Nonce>,
    /// The hop that the load generator sent: one for the whole tree.
    pub root: Nonce,
    /// `x-request-id` as it was sent.
    pub request_id: Option<String>,
    /// The service that was asked.
    pub host: String,
    /// The sender's socket (S1's local end).
    pub local: SocketAddr,
    /// Whom it dialled: the service's virtual IP.
    pub remote: SocketAddr,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// The response's status; absent if none came.
    pub status: Option<u16>,
    /// Constant rate only: when this request was due.
    pub intended_ns: Option<MonotonicNs>,
    /// Right before the first `write`.
    pub send_start_ns: MonotonicNs,
    /// Right after the `read` that brought the response's first byte.
    pub first_byte_ns: Option<MonotonicNs>,
    /// Right after the `read` that brought the response's last byte.
    pub recv_end_ns: Option<MonotonicNs>,
    /// Only if a connection was made for this request: right before `connect`.
    pub connect_start_ns: Option<MonotonicNs>,
    /// How long that `connect` took.
    pub connect_ns: Option<u64>,
    /// Body bytes sent.
    pub request_bytes: usize,
    /// Body bytes received.
    pub response_bytes: usize,
    /// At the root only: what was drawn, as in `x-lab-delay`.
    pub delays: Option<String>,
    /// Why no response came.
    pub error: Option<String>,
}

/// A request as its server saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerRecord {
    /// The server's workload.
    pub pod: String,
    /// This hop; absent if the request carried none.
    pub nonce: Option<Nonce>,
    /// As received in `x-lab-parent`.
    pub parent: Option<Nonce>,
    /// As received in `x-lab-root`.
    pub root: Option<Nonce>,
    /// `x-request-id` as received.
    pub request_id: Option<String>,
    /// The peer's end of the socket (S6's remote end): 127.0.0.6 behind a sidecar.
    pub peer: SocketAddr,
    /// The server's end.
    pub local: SocketAddr,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// The status that was answered.
    pub status: u16,
    /// Right after the `read` that completed the head.
    pub recv_ns: MonotonicNs,
    /// Right after the `read` that completed the body.
    pub body_end_ns: MonotonicNs,
    /// Before the delay.
    pub handler_start_ns: MonotonicNs,
    /// What `app` asked for; absent if nothing was addressed here.
    pub delay_requested_ns: Option<u64>,
    /// How long the application really waited, from `handler_start_ns` on.
    pub delay_actual_ns: Option<u64>,
    /// Right before the `write` of the response.
    pub send_ns: MonotonicNs,
    /// Right after it returned.
    pub sent_ns: MonotonicNs,
    /// Body bytes received.
    pub request_bytes: usize,
    /// Body bytes sent.
    pub response_bytes: usize,
}

/// Which listener of the sidecar waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The outbound listener, in the client's sidecar.
    Outbound,
    /// The inbound listener, in the server's sidecar.
    Inbound,
}

/// A wait inside of a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthzRecord {
    /// The sidecar's workload.
    pub pod: String,
    /// Which of its listeners.
    pub side: Side,
    /// The hop that waited.
    pub nonce: Option<Nonce>,
    /// `x-request-id` as it was at that point.
    pub request_id: Option<String>,
    /// What was asked for (0: the call was made all the same).
    pub requested_ns: u64,
    /// How long it really waited: `end_ns - start_ns`.
    pub actual_ns: u64,
    /// Right after the `read` of the sidecar's question.
    pub start_ns: MonotonicNs,
    /// Right before the `write` of the answer.
    pub end_ns: MonotonicNs,
}

/// A TCP packet that a delayed link held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketRecord {
    /// Sender, as in the packet.
    pub source: SocketAddr,
    /// Receiver, as in the packet.
    pub destination: SocketAddr,
    /// The TCP sequence number.
    pub seq: u32,
    /// Payload bytes (0 for a bare ACK, SYN or FIN).
    pub payload: usize,
    /// Right after the packet was read from the sending side.
    pub in_ns: MonotonicNs,
    /// Right before it was written to the receiving side.
    pub out_ns: MonotonicNs,
    /// True if it was lost instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_reads_back_and_nothing_else_is_one() {
        let nonce = Nonce(0x00ab_0000_0000_0001);
        assert_eq!(nonce.to_string(), "00ab000000000001");
        assert_eq!(nonce.to_string().parse(), Ok(nonce));
        for text in ["", "1", "+0ab000000000001", "00ab00000000000g", "00ab0000000000011"] {
            assert!(text.parse::<Nonce>().is_err(), "{text}");
        }
    }
}
