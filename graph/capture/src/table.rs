//! The tables of a capture.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One table: one folder of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// `model::Socket`.
    Sockets,
    /// `model::Message`.
    Messages,
    /// `model::SocketMetrics`.
    SocketMetrics,
    /// `model::Http2Stream`.
    Http2Streams,
    /// `model::HopSide`.
    AccessLogs,
    /// `model::Proxy`.
    Proxies,
    /// `model::Process`.
    Processes,
    /// `model::SocketEvent`; only recorded with `--raw`.
    Events,
}

impl Table {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Sockets,
        Self::Messages,
        Self::SocketMetrics,
        Self::Http2Streams,
        Self::AccessLogs,
        Self::Proxies,
        Self::Processes,
        Self::Events,
    ];

    /// The name of its folder, which is its name everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Messages => "messages",
            Self::SocketMetrics => "socket_metrics",
            Self::Http2Streams => "http2_streams",
            Self::AccessLogs => "access_logs",
            Self::Proxies => "proxies",
            Self::Processes => "processes",
            Self::Events => "events",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
