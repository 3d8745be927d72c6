//! The outcome of looking for a partner: found, several, or none, and why.

use serde::{Deserialize, Serialize};

/// Why no partner was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnmatchedReason {
    /// The recording has no kernel events at all (`--no-probes`, or probes refused).
    NoProbes,
    /// The access log entry lacks the address to join on.
    AddressMissing,
    /// No socket with that address was seen.
    SocketNotSeen,
    /// The socket was seen, but no exchange on it at that time.
    ExchangeNotSeen,
    /// Kernel events around it were lost.
    EventsLost,
    /// It began before the recording did.
    BeforeRecording,
    /// It was still under way when the recording ended.
    StillOpen,
    /// No access log entry of the client's sidecar.
    ClientLogMissing,
    /// No access log entry of the server's sidecar.
    ServerLogMissing,
    /// Envoy answered by itself: there is no server half.
    LocalReply,
    /// More attempts were made than the access log names sockets for.
    Retried,
    /// The connection is encrypted and multiplexed, or a protocol that is not read yet.
    ProtocolNotRead,
    /// The connection between the sidecars is encrypted and carries several requests at once: its bytes are not told apart.
    MultiplexedEncrypted,
    /// The application encrypted it: its sidecar logs no requests, only connections, and those do not tell all of its way.
    EncryptedByApplication,
    /// The client closed its connection, or reset its stream, before it had the whole response.
    GaveUp,
    /// The halves contradict each other (method, status or sequence numbers differ).
    Contradiction,
}

impl UnmatchedReason {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoProbes => "no_probes",
            Self::AddressMissing => "address_missing",
            Self::SocketNotSeen => "socket_not_seen",
            Self::ExchangeNotSeen => "exchange_not_seen",
            Self::EventsLost => "events_lost",
            Self::BeforeRecording => "before_recording",
            Self::StillOpen => "still_open",
            Self::ClientLogMissing => "client_log_missing",
            Self::ServerLogMissing => "server_log_missing",
            Self::LocalReply => "local_reply",
            Self::Retried => "retried",
            Self::ProtocolNotRead => "protocol_not_read",
            Self::MultiplexedEncrypted => "multiplexed_encrypted",
            Self::EncryptedByApplication => "encrypted_by_application",
            Self::GaveUp => "gave_up",
            Self::Contradiction => "contradiction",
        }
    }
}

/// Why a candidate is not unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AmbiguityReason {
    /// Several sockets fit the address at that time.
    SeveralSockets,
    /// Several exchanges on the connection fit the time.
    SeveralExchanges,
    /// Several access log entries claim the same exchange.
    SeveralLogs,
}

impl AmbiguityReason {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SeveralSockets => "several_sockets",
            Self::SeveralExchanges => "several_exchanges",
            Self::SeveralLogs => "several_logs",
        }
    }
}

/// A partner, or the reason that there is none. Never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinOutcome<T> {
    /// Exactly one fits.
    Matched(T),
    /// Several fit.
    Ambiguous(AmbiguityReason),
    /// None fits.
    Unmatched(UnmatchedReason),
}

impl<T> JoinOutcome<T> {
    /// The partner, if it was found.
    pub fn matched(self) -> Option<T> {
        match self {
            Self::Matched(t) => Some(t),
            Self::Ambiguous(_) | Self::Unmatched(_) => None,
        }
    }
    /// The same outcome about something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> JoinOutcome<U> {
        match self {
            Self::Matched(t) => JoinOutcome::Matched(f(t)),
            Self::Ambiguous(r) => JoinOutcome::Ambiguous(r),
            Self::Unmatched(r) => JoinOutcome::Unmatched(r),
        }
    }
    /// Looks further from the partner.
    pub fn and_then<U>(self, f: impl FnOnce(T) -> JoinOutcome<U>) -> JoinOutcome<U> {
        match self {
            Self::Matched(t) => f(t),
            Self::Ambiguous(r) => JoinOutcome::Ambiguous(r),
            Self::Unmatched(r) => JoinOutcome::Unmatched(r),
        }
    }
    /// The reason that there is no partner, as reports name it.
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Matched(_) => None,
            Self::Ambiguous(r) => Some(r.as_str()),
            Self::Unmatched(r) => Some(r.as_str()),
        }
    }
}
