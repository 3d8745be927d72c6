//! Workloads that speak every protocol that a sidecar carries, case by case, each exchange written down at both ends
//! with the system calls that carried it.
//!
//! HTTP/1.1, WebSocket and bytes are spoken by hand over blocking sockets; HTTP/2 and gRPC by the `h2` crate over a
//! socket that looks at the frames as they pass ([`h2::tap`]).

pub mod ask;
pub mod calls;
pub mod cases;
pub mod drive;
pub mod h2;
pub mod http1;
pub mod opaque;
pub mod server;
pub mod tape;
pub mod tls;
pub mod websocket;
