//! What the beginning of a TLS connection says in the clear.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What one end of a TLS connection said of it, or what both said where two ends are put [together](TlsInfo::and).
///
/// A socket whose [`tls`](crate::Socket::tls) is present carried TLS records. What is absent here was not seen: the connection is older
/// than the recording, the hello was longer than what the probes keep of a send, or it was said encrypted (with TLS 1.3, the server
/// chooses the protocol there).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsInfo {
    /// The highest version that the client offers (`supported_versions`, RFC 8446, section 4.2.1, else the ClientHello's own).
    pub offered: Option<TlsVersion>,
    /// The version that the server chose.
    pub version: Option<TlsVersion>,
    /// The server's name as the client gave it (RFC 6066, section 3). Comes from outside; characters that no name has are replaced.
    pub sni: Option<Arc<str>>,
    /// Protocols that the client offers (RFC 7301), best first; at most 8.
    pub alpn_offered: Vec<Arc<str>>,
    /// The protocol that the server chose. With TLS 1.3 it says so encrypted, and this is absent.
    pub alpn: Option<Arc<str>>,
    /// True if the plaintext's beginnings were seen in the application that this socket belongs to: its messages are told by their
    /// content.
    pub plaintext_seen: bool,
}

impl TlsInfo {
    /// What is known of a connection if its other end says `other`. Where both speak of the same thing, `self` counts.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let alpn_offered = if self.alpn_offered.is_empty() { &other.alpn_offered } else { &self.alpn_offered };
        Self {
            offered: self.offered.or(other.offered),
            version: self.version.or(other.version),
            sni: self.sni.clone().or_else(|| other.sni.clone()),
            alpn_offered: alpn_offered.clone(),
            alpn: self.alpn.clone().or_else(|| other.alpn.clone()),
            plaintext_seen: self.plaintext_seen || other.plaintext_seen,
        }
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// SSL 3.0 (RFC 6101).
    #[serde(rename = "SSL 3.0")]
    Ssl30,
    /// TLS 1.0 (RFC 2246).
    #[serde(rename = "TLS 1.0")]
    Tls10,
    /// TLS 1.1 (RFC 4346).
    #[serde(rename = "TLS 1.1")]
    Tls11,
    /// TLS 1.2 (RFC 5246).
    #[serde(rename = "TLS 1.2")]
    Tls12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "TLS 1.3")]
    Tls13,
}

impl TlsVersion {
    /// The version of the number on the wire; `None` for one that is none (GREASE, RFC 8701, and drafts among them).
    #[must_use]
    pub const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0x0300 => Self::Ssl30,
            0x0301 => Self::Tls10,
            0x0302 => Self::Tls11,
            0x0303 => Self::Tls12,
            0x0304 => Self::Tls13,
            _ => return None,
        })
    }

    /// Its name: `TLS 1.3`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ssl30 => "SSL 3.0",
            Self::Tls10 => "TLS 1.0",
            Self::Tls11 => "TLS 1.1",
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ends_are_one_connection() {
        let client = TlsInfo {
            offered: Some(TlsVersion::Tls13),
            sni: Some("reviews".into()),
            alpn_offered: vec!["h2".into()],
            ..TlsInfo::default()
        };
        let server = TlsInfo { version: Some(TlsVersion::Tls12), alpn: Some("h2".into()), ..TlsInfo::default() };
        let both = client.and(&server);
        assert_eq!(both, server.and(&client));
        assert_eq!((both.offered, both.version), (Some(TlsVersion::Tls13), Some(TlsVersion::Tls12)));
        assert_eq!((both.sni.as_deref(), both.alpn.as_deref()), (Some("reviews"), Some("h2")));
    }

    #[test]
    fn numbers_and_names() {
        assert_eq!(TlsVersion::from_wire(0x0304).map(TlsVersion::name), Some("TLS 1.3"));
        assert_eq!(TlsVersion::from_wire(0x7a7a), None);
        assert!(TlsVersion::Tls13 > TlsVersion::Tls12);
    }
}
