//! The texts that stand for the model's enumerations in the files: the same that serde writes, in one place for both
//! directions.

use meshdiff_model::{
    AccessLogType, Closer, Direction, HopProtocol, Http2Gap, ProcessRole, ProxyKind, Side, SocketRole, TcpState,
    TlsVersion,
};

/// An enumeration whose variants have names in the files.
pub(crate) trait Named: Sized {
    /// What stands in the file.
    fn name(&self) -> &'static str;
    /// The variant of a name; `None` if no variant has it.
    fn from_name(name: &str) -> Option<Self>;
}

macro_rules! named {
    ($($type:ident { $($variant:ident = $name:literal),+ $(,)? })+) => {
        $(impl Named for $type {
            fn name(&self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        })+

        #[cfg(test)]
        mod tests {
            use super::*;

            #[test]
            fn names_go_both_ways_and_are_those_of_serde() {
                $($({
                    assert_eq!($type::from_name($name), Some($type::$variant));
                    let json = serde_json::to_value($type::$variant).expect("serialises");
                    assert_eq!(json, $name, "{}", stringify!($type));
                })+)+
                assert_eq!(Side::from_name("Client"), None);
            }
        }
    };
}

named! {
    Direction { Egress = "egress", Ingress = "ingress" }
    Side { Client = "client", Server = "server" }
    HopProtocol {
        Http = "http", Http10 = "http/1.0", Http11 = "http/1.1", Http2 = "http/2", Grpc = "grpc", Http3 = "http/3", Tcp = "tcp",
    }
    AccessLogType {
        NotSet = "not_set", DownstreamEnd = "downstream_end", TcpConnectionEnd = "tcp_connection_end",
        UpstreamEnd = "upstream_end", TcpUpstreamConnected = "tcp_upstream_connected", TcpPeriodic = "tcp_periodic",
        TcpConnectionStart = "tcp_connection_start", DownstreamStart = "downstream_start",
        DownstreamPeriodic = "downstream_periodic", UpstreamPoolReady = "upstream_pool_ready",
        UpstreamPeriodic = "upstream_periodic",
        DownstreamTunnelSuccessfullyEstablished = "downstream_tunnel_successfully_established",
        UdpTunnelUpstreamConnected = "udp_tunnel_upstream_connected", UdpPeriodic = "udp_periodic",
        UdpSessionEnd = "udp_session_end", Intermediate = "intermediate", Other = "other",
    }
    Http2Gap {
        StillOpen = "still_open", EventsLost = "events_lost", NotSeen = "not_seen", Garbage = "garbage",
        TooMany = "too_many",
    }
    ProxyKind { Sidecar = "sidecar", Router = "router", Waypoint = "waypoint", Other = "other" }
    TlsVersion {
        Ssl30 = "SSL 3.0", Tls10 = "TLS 1.0", Tls11 = "TLS 1.1", Tls12 = "TLS 1.2", Tls13 = "TLS 1.3",
    }
    SocketRole { Connected = "connected", Accepted = "accepted" }
    Closer { Local = "local", Remote = "remote", Kernel = "kernel" }
    ProcessRole { Sidecar = "sidecar", Application = "application" }
    TcpState {
        Established = "established", SynSent = "syn_sent", SynRecv = "syn_recv", FinWait1 = "fin_wait1",
        FinWait2 = "fin_wait2", TimeWait = "time_wait", Close = "close", CloseWait = "close_wait",
        LastAck = "last_ack", Listen = "listen", Closing = "closing", NewSynRecv = "new_syn_recv",
    }
}
