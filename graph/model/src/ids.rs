//! Identities that are plain numbers or strings elsewhere, each a type of its own here.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A socket's cookie: unique on a node from boot to shutdown, also after the socket is closed
/// (`bpf_get_socket_cookie`, `SO_COOKIE`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SocketCookie(pub u64);

impl SocketCookie {
    /// Kernels count cookies up from 1 and stay below this bit. Where recordings of several nodes are put together, the bits from
    /// here on number the node.
    pub const NODE_SHIFT: u32 = 48;

    /// The number of its node among those that were put together; 0 in a recording of one.
    #[must_use]
    pub const fn node_number(self) -> u64 {
        self.0 >> Self::NODE_SHIFT
    }
}

/// A network namespace, by the inode number of `/proc/PID/ns/net`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetnsId(pub u32);

/// A process (the kernel's thread group id, which user space calls a pid), as the host's pid namespace numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tgid(pub u32);

/// Envoy's node id as it names itself to the ALS, for instance
/// `sidecar~10.77.0.2~productpage-v1-abc.default~default.svc.cluster.local`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Arc<str>);

impl NodeId {
    /// True if it is a gateway's: what calls one is outside of the mesh, and it has no application of its own.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.0.starts_with("router~")
    }
}

/// The value of `x-request-id`. It names a *trace* when applications forward it, so it is never a join key alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// True if both name the same request for Envoy: character 14 (counted from 0) of a UUID is where Envoy encodes its
    /// trace decision, so it may change on the way (`UuidRequestIdExtension` in Envoy).
    #[must_use]
    pub fn same_request(&self, other: &Self) -> bool {
        const TRACE_BYTE: usize = 14;
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        a.len() == b.len()
            && a.iter().zip(b).enumerate().all(|(i, (x, y))| x == y || (i == TRACE_BYTE && a.len() == 36))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_decision_is_not_part_of_a_request_id() {
        let id = |s: &str| RequestId(s.into());
        let a = id("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11");
        assert!(a.same_request(&id("0bf0d0b1-9e2a-9a3e-8a60-0d6f7e5f7e11")));
        assert!(!a.same_request(&id("0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e12")));
        assert!(!id("abcdefghijklmnopq").same_request(&id("abcdefghijklmnXpq")));
    }
}
