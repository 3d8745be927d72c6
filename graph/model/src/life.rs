//! How a connection began and how it ended.

use crate::DurationNs;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which end of its connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketRole {
    /// It connected.
    Connected,
    /// It was accepted from a listener.
    Accepted,
}

/// How a connection ended, as one of its sockets saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Close {
    /// Who was first: the sender of the first FIN, or of the reset if there was none before.
    pub by: Closer,
    /// A reset (RST) was sent or received, apart from any FIN.
    pub reset: bool,
    /// From the first FIN (sent or received) until the socket was closed to TCP; `None` without a FIN, or while it is still
    /// half open. A socket that waits in TIME_WAIT is closed already.
    pub duration: Option<DurationNs>,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closer {
    /// This socket's end.
    Local,
    /// The peer.
    Remote,
    /// The kernel, which gave the connection up: nobody answered any more.
    Kernel,
}

/// The kernel's number of an error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Errno(pub u16);

impl Errno {
    /// The reset of a connection by its peer (`ECONNRESET`).
    pub const CONNECTION_RESET: Self = Self(104);
    /// A reset after the peer's FIN (`EPIPE`; `tcp_reset` in net/ipv4/tcp_input.c).
    pub const BROKEN_PIPE: Self = Self(32);

    /// Its name, for the errors that a TCP socket can have; `None` for others.
    ///
    /// The numbers are those of x86, arm64 and RISC-V (include/uapi/asm-generic/errno.h).
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "EPERM",
            12 => "ENOMEM",
            13 => "EACCES",
            22 => "EINVAL",
            32 => "EPIPE",
            71 => "EPROTO",
            90 => "EMSGSIZE",
            92 => "ENOPROTOOPT",
            97 => "EAFNOSUPPORT",
            98 => "EADDRINUSE",
            99 => "EADDRNOTAVAIL",
            100 => "ENETDOWN",
            101 => "ENETUNREACH",
            103 => "ECONNABORTED",
            104 => "ECONNRESET",
            105 => "ENOBUFS",
            110 => "ETIMEDOUT",
            111 => "ECONNREFUSED",
            112 => "EHOSTDOWN",
            113 => "EHOSTUNREACH",
            125 => "ECANCELED",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
