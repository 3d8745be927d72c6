//! What of an entry goes into [`HopDetails`](meshdiff_model::HopDetails): the part that both decoders share.

use super::entry::{MAX_TEXT, shortened};
use super::{InvalidField, peer};
use crate::stats::Tally;
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::TlsVersion as WireVersion;
use meshdiff_model::{DurationNs, HopProtocol, HopTags, HopTls, Peer, TlsVersion};
use std::num::NonZeroU64;

/// Alternative names of a certificate that are kept: the first ones.
const MAX_NAMES: usize = 8;

/// Longest encoded peer that is looked at, in bytes: Istio's are below 1,000.
const MAX_PEER: usize = 16 << 10;

/// The `filter_state_objects` that say who is at the other end. Of several the first that says something is taken.
pub(super) const DOWNSTREAM_PEERS: [&str; 3] = ["downstream_peer_obj", "downstream_peer", "wasm.downstream_peer"];
/// The same of the upstream host.
pub(super) const UPSTREAM_PEERS: [&str; 3] = ["upstream_peer_obj", "upstream_peer", "wasm.upstream_peer"];

/// The custom tags that are read; no other is kept, because a tag can be anything, a header's value among it.
pub(super) const TAGS: [&str; 7] = [
    "connection_id",
    "upstream_connection_id",
    "upstream_connect_ns",
    "upstream_handshake_ns",
    "upstream_connected_after_ns",
    "upstream_ready_after_ns",
    "upstream_protocol",
];

/// A count; `None` for 0, which the wire format does not tell from its absence.
pub(super) const fn bytes(count: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(count)
}

/// What the entry says of one certificate.
#[derive(Debug, Default)]
pub(super) struct Certificate<'a> {
    pub(super) subject: &'a str,
    /// URIs and DNS names.
    pub(super) names: Vec<&'a str>,
}

/// What the entry says of the downstream connection's TLS; `None` if nothing.
pub(super) fn tls(
    version: i32,
    cipher_suite: Option<u32>,
    local: &Certificate<'_>,
    peer: &Certificate<'_>,
    tally: &mut Tally,
) -> Option<HopTls> {
    let version = match WireVersion::try_from(version) {
        Ok(WireVersion::VersionUnspecified) => None,
        Ok(WireVersion::TlSv1) => Some(TlsVersion::Tls10),
        Ok(WireVersion::TlSv11) => Some(TlsVersion::Tls11),
        Ok(WireVersion::TlSv12) => Some(TlsVersion::Tls12),
        Ok(WireVersion::TlSv13) => Some(TlsVersion::Tls13),
        Err(_) => {
            tally.field(InvalidField::UnknownNumber);
            None
        }
    };
    let cipher_suite = cipher_suite.and_then(|number| {
        let suite = u16::try_from(number).ok();
        if suite.is_none() {
            tally.field(InvalidField::UnknownNumber);
        }
        suite
    });
    let mut text = |t: &str| shortened(t, MAX_TEXT, tally).map(str::to_owned);
    let (local_subject, peer_subject) = (text(local.subject), text(peer.subject));
    let tls = HopTls {
        version,
        cipher_suite,
        peer_subject,
        peer_san: names(&peer.names, tally),
        local_subject,
        local_san: names(&local.names, tally),
    };
    (tls != HopTls::default()).then_some(tls)
}

fn names(all: &[&str], tally: &mut Tally) -> Vec<String> {
    if all.len() > MAX_NAMES {
        tally.field(InvalidField::TooManyNames);
    }
    all.iter().take(MAX_NAMES).filter_map(|name| shortened(name, MAX_TEXT, tally)).map(str::to_owned).collect()
}

/// A peer as a `google.protobuf.Any`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EncodedPeer<'a> {
    pub(super) type_url: &'a str,
    pub(super) value: &'a [u8],
}

/// The peer that these bytes name. One that cannot be understood is counted.
pub(super) fn peer(encoded: EncodedPeer<'_>, tally: &mut Tally) -> Option<Peer> {
    if encoded.value.len() > MAX_PEER {
        tally.field(InvalidField::InvalidPeer);
        return None;
    }
    match peer::decode(encoded.type_url, encoded.value, tally) {
        Ok(peer) => (peer != Peer::default()).then_some(peer),
        Err(peer::NotAPeer) => {
            tally.field(InvalidField::InvalidPeer);
            None
        }
    }
}

/// What the tags say, in the order of [`TAGS`]; `None` if nothing.
pub(super) fn tags(values: [Option<&str>; TAGS.len()], tally: &mut Tally) -> Option<HopTags> {
    if values == [None; TAGS.len()] {
        return None;
    }
    // Envoy writes `-` for what it does not have.
    let [connection, upstream, connect, handshake, connected, ready, protocol] =
        values.map(|value| value.filter(|text| !matches!(*text, "" | "-")));
    let mut bad = || tally.field(InvalidField::InvalidTag);
    let mut number = |text: Option<&str>| {
        // Digits alone: `+5` is no number that Envoy writes.
        let value = text?.parse::<u64>().ok().filter(|_| text.is_some_and(|t| t.bytes().all(|c| c.is_ascii_digit())));
        if value.is_none() {
            bad();
        }
        value
    };
    // 0 is Envoy's number of no connection.
    let mut id = |text| number(text).filter(|&id| id > 0);
    let (connection_id, upstream_connection_id) = (id(connection), id(upstream));
    let spans = [connect, handshake, connected, ready].map(&mut number);
    let mut span = |value: Option<u64>| {
        let span = i64::try_from(value?).ok().filter(|&ns| ns <= super::time::LONGEST_NS);
        if span.is_none() {
            tally.field(InvalidField::AbsurdDuration);
        }
        span.map(DurationNs)
    };
    let [upstream_connect, upstream_handshake, upstream_connected_after, upstream_ready_after] = spans.map(&mut span);
    let upstream_protocol = protocol.and_then(|text| match text {
        "HTTP/1.0" => Some(HopProtocol::Http10),
        "HTTP/1.1" => Some(HopProtocol::Http11),
        "HTTP/2" => Some(HopProtocol::Http2),
        "HTTP/3" => Some(HopProtocol::Http3),
        _ => {
            tally.field(InvalidField::InvalidTag);
            None
        }
    });
    let tags = HopTags {
        connection_id,
        upstream_connection_id,
        upstream_connect,
        upstream_handshake,
        upstream_connected_after,
        upstream_ready_after,
        upstream_protocol,
    };
    (tags != HopTags::default()).then_some(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tally: &Tally, field: InvalidField) -> u64 {
        tally.invalid_fields[field as usize]
    }

    #[test]
    fn tags_are_numbers_spans_and_a_protocol() {
        let mut tally = Tally::default();
        let all = [Some("7"), Some("9"), Some("120000"), Some("900000"), Some("1"), Some("2"), Some("HTTP/2")];
        let tags = tags(all, &mut tally).expect("set");
        assert_eq!((tags.connection_id, tags.upstream_connection_id), (Some(7), Some(9)));
        assert_eq!(tags.upstream_connect, Some(DurationNs(120_000)));
        assert_eq!(tags.upstream_ready_after, Some(DurationNs(2)));
        assert_eq!(tags.upstream_protocol, Some(HopProtocol::Http2));
        assert_eq!(tally.invalid_fields.iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_tag_that_means_nothing_is_counted_and_what_envoy_has_not_is_not() {
        let mut tally = Tally::default();
        let none = [Some("-"), Some(""), None, Some("-"), None, None, Some("-")];
        assert_eq!(tags(none, &mut tally), None);
        assert_eq!(tally.invalid_fields.iter().sum::<u64>(), 0);
        let bad = [
            Some("+5"),
            Some("x"),
            Some("-1"),
            Some("99999999999999999999"),
            Some("18446744073709551615"),
            None,
            Some("h2"),
        ];
        assert_eq!(tags(bad, &mut tally), None);
        assert_eq!(count(&tally, InvalidField::InvalidTag), 5);
        assert_eq!(count(&tally, InvalidField::AbsurdDuration), 1);
    }

    #[test]
    fn certificates_keep_the_first_names() {
        let mut tally = Tally::default();
        let many = Certificate { subject: "", names: vec!["spiffe://td/ns/default/sa/reviews"; 20] };
        let one = Certificate { subject: "CN=x", names: vec![""] };
        let hop = tls(4, Some(0x1301), &one, &many, &mut tally).expect("set");
        assert_eq!((hop.version, hop.cipher_suite), (Some(TlsVersion::Tls13), Some(0x1301)));
        assert_eq!((hop.peer_san.len(), hop.local_san.len()), (MAX_NAMES, 0));
        assert_eq!(hop.local_subject.as_deref(), Some("CN=x"));
        assert_eq!(count(&tally, InvalidField::TooManyNames), 1);
        let nothing = Certificate::default();
        assert_eq!(tls(9, Some(65_536), &nothing, &nothing, &mut tally), None);
        assert_eq!(count(&tally, InvalidField::UnknownNumber), 2);
    }
}
