//! TLS: records by their header (RFC 8446, section 5.1), and what the hellos say in the clear (section 4.1).
//!
//! A hello is often longer than the captured prefix (keys that withstand quantum computers have more than a thousand bytes). So what
//! is read here is what is whole within the prefix, extension by extension; a longer prefix only ever adds to it.

use meshdiff_model::{Content, TlsInfo, TlsVersion};
use std::sync::Arc;

/// Longest record that any version allows: 2^14 bytes and up to 2,048 of expansion (RFC 5246, section 6.2.3).
const MAX_LENGTH: u16 = (1 << 14) + 2048;

/// What the first record of a send is.
pub(super) fn record(prefix: &[u8]) -> Option<Content> {
    let [kind, 3, minor, a, b, ..] = *prefix else { return None };
    let length = u16::from_be_bytes([a, b]);
    if minor > 4 || length == 0 || length > MAX_LENGTH {
        return None;
    }
    match kind {
        // change_cipher_spec, alert, handshake
        20..=22 => Some(Content::TlsHandshake),
        23 => Some(Content::TlsApplicationData),
        _ => None,
    }
}

/// Longest name that is kept: what DNS allows, and ALPN too (RFC 7301, section 3.1).
const MAX_NAME: usize = 255;
/// Protocols offered that are kept.
const MAX_PROTOCOLS: usize = 8;

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
// Extensions: RFC 6066, RFC 7301, RFC 8446.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// What a hello at the beginning of a send says; `None` if there is none.
pub(super) fn hello(prefix: &[u8]) -> Option<TlsInfo> {
    let [22, 3, _, a, b, rest @ ..] = prefix else { return None };
    // Only what is in the first record: a hello that is cut into several is rare, and then the rest of it is unknown.
    let length = usize::from(u16::from_be_bytes([*a, *b]));
    let mut record = Reader(rest.get(..length).unwrap_or(rest));
    let kind = record.byte()?;
    let body_length = usize::from(record.byte()?) << 16 | usize::from(record.u16()?);
    let mut body = Reader(record.0.get(..body_length).unwrap_or(record.0));
    let whole = record.0.len() >= body_length;
    let mut info = TlsInfo::default();
    match kind {
        CLIENT_HELLO => {
            let old = client_hello(&mut body, whole, &mut info);
            info.offered = info.offered.or(old);
        }
        SERVER_HELLO => {
            let old = server_hello(&mut body, whole, &mut info);
            info.version = info.version.or(old);
        }
        _ => return None,
    }
    Some(info)
}

/// Reads a ClientHello as far as it goes. The result is the version by its old field, if that counts.
fn client_hello(body: &mut Reader<'_>, whole: bool, info: &mut TlsInfo) -> Option<TlsVersion> {
    let version = body.u16()?;
    body.take(32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let all = body.extensions(whole, |kind, mut data| match kind {
        SERVER_NAME if info.sni.is_none() => info.sni = server_name(data),
        ALPN if info.alpn_offered.is_empty() => info.alpn_offered = protocols(data),
        SUPPORTED_VERSIONS if info.offered.is_none() => {
            let list = data.vector8().unwrap_or_default();
            let versions = list.chunks_exact(2).map(|v| u16::from_be_bytes([v[0], v[1]]));
            info.offered = versions.filter_map(TlsVersion::from_wire).max();
        }
        _ => {}
    });
    all.then(|| TlsVersion::from_wire(version)).flatten()
}

/// Reads a ServerHello (or a HelloRetryRequest, which has its form) as far as it goes.
fn server_hello(body: &mut Reader<'_>, whole: bool, info: &mut TlsInfo) -> Option<TlsVersion> {
    let version = body.u16()?;
    body.take(32)?;
    body.vector8()?;
    body.take(3)?;
    let all = body.extensions(whole, |kind, mut data| match kind {
        ALPN if info.alpn.is_none() => info.alpn = protocols(data).into_iter().next(),
        SUPPORTED_VERSIONS if info.version.is_none() => info.version = data.u16().and_then(TlsVersion::from_wire),
        _ => {}
    });
    all.then(|| TlsVersion::from_wire(version)).flatten()
}

fn server_name(mut data: Reader<'_>) -> Option<Arc<str>> {
    let mut list = Reader(data.vector16()?);
    while let Some(kind) = list.byte() {
        let name = list.vector16()?;
        if kind == 0 {
            return text(name);
        }
    }
    None
}

fn protocols(mut data: Reader<'_>) -> Vec<Arc<str>> {
    let mut list = Reader(data.vector16().unwrap_or_default());
    std::iter::from_fn(|| list.vector8()).filter(|p| !is_grease(p)).filter_map(text).take(MAX_PROTOCOLS).collect()
}

/// RFC 8701: two equal bytes that end in A, which mean nothing.
fn is_grease(protocol: &[u8]) -> bool {
    matches!(protocol, [a, b] if a == b && a & 0x0f == 0x0a)
}

/// Text that is safe to show: visible ASCII, which is all that host names and registered protocols have.
fn text(bytes: &[u8]) -> Option<Arc<str>> {
    let shown = |b: &u8| if b.is_ascii_graphic() { char::from(*b) } else { char::REPLACEMENT_CHARACTER };
    let text: String = bytes.iter().take(MAX_NAME).map(shown).collect();
    (!text.is_empty()).then(|| text.into())
}

/// Takes bytes from the front. `None` is: not there.
#[derive(Clone, Copy, Default)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
    /// A vector with its length in one byte (RFC 8446, section 3.4).
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.byte()?;
        self.take(n.into())
    }
    /// A vector with its length in two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }
    /// Hands on each extension that is there whole. True if those were all: the hello's end was seen, and nothing is left over.
    fn extensions(&mut self, whole: bool, mut each: impl FnMut(u16, Reader<'a>)) -> bool {
        if self.0.is_empty() {
            // Before TLS 1.2 a hello may end here.
            return whole;
        }
        let Some(length) = self.u16().map(usize::from) else { return false };
        let mut list = Reader(self.0.get(..length).unwrap_or(self.0));
        while let (Some(kind), Some(data)) = (list.u16(), list.vector16()) {
            each(kind, Reader(data));
        }
        whole && list.0.is_empty() && self.0.len() == length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v8(data: &[u8]) -> Vec<u8> {
        [&[data.len() as u8], data].concat()
    }
    fn v16(data: &[u8]) -> Vec<u8> {
        [&(data.len() as u16).to_be_bytes(), data].concat()
    }
    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &v16(data)].concat()
    }
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32).to_be_bytes();
        let handshake = [&[kind], &length[1..], body].concat();
        [&[22, 3, 1][..], &v16(&handshake)].concat()
    }
    fn client(extensions: &[Vec<u8>]) -> Vec<u8> {
        let front = [&[3, 3][..], &[7; 32], &v8(&[1; 32]), &v16(&[0x13, 1, 0x13, 2]), &v8(&[0])].concat();
        message(CLIENT_HELLO, &[front, v16(&extensions.concat())].concat())
    }
    fn server(extensions: &[Vec<u8>]) -> Vec<u8> {
        let front = [&[3, 3][..], &[7; 32], &v8(&[1; 32]), &[0x13, 1, 0]].concat();
        message(SERVER_HELLO, &[front, v16(&extensions.concat())].concat())
    }
    fn name(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &v16(&[&[0], &v16(name)[..]].concat()))
    }
    fn alpn(names: &[&[u8]]) -> Vec<u8> {
        extension(ALPN, &v16(&names.iter().flat_map(|n| v8(n)).collect::<Vec<_>>()))
    }

    #[test]
    fn a_client_hello_is_read_up_to_where_it_is_cut() {
        let versions = extension(SUPPORTED_VERSIONS, &v8(&[0x7a, 0x7a, 3, 4, 3, 3]));
        let key = extension(51, &[9; 1216]);
        let whole = client(&[name(b"reviews.default"), alpn(&[b"\x0a\x0a", b"h2", b"http/1.1"]), versions, key]);
        let all = hello(&whole).expect("a hello");
        assert_eq!((all.offered, all.version), (Some(TlsVersion::Tls13), None));
        assert_eq!(all.sni.as_deref(), Some("reviews.default"));
        assert_eq!(all.alpn_offered, ["h2".into(), "http/1.1".into()]);
        assert_eq!(hello(&whole[..512]).expect("a hello"), all, "the key is what is cut off");
        for cut in 0..whole.len() {
            let Some(part) = hello(&whole[..cut]) else { continue };
            assert!(part.offered.is_none_or(|v| v == TlsVersion::Tls13), "{part:?} at {cut}");
            assert!(part.sni.is_none() || part.sni == all.sni, "{part:?} at {cut}");
            assert!(part.alpn_offered.is_empty() || part.alpn_offered == all.alpn_offered, "{part:?} at {cut}");
        }
    }

    #[test]
    fn the_old_version_field_counts_only_where_nothing_follows() {
        let without = client(&[name(b"a")]);
        assert_eq!(hello(&without).expect("a hello").offered, Some(TlsVersion::Tls12));
        assert_eq!(hello(&without[..without.len() - 1]).expect("a hello").offered, None);
        let old = message(CLIENT_HELLO, &[&[3, 1][..], &[7; 32], &[0], &v16(&[0, 5]), &v8(&[0])].concat());
        assert_eq!(hello(&old).expect("a hello").offered, Some(TlsVersion::Tls10));
    }

    #[test]
    fn the_server_s_choice() {
        let new = server(&[extension(SUPPORTED_VERSIONS, &[3, 4]), extension(51, &[0; 36])]);
        assert_eq!(hello(&new).expect("a hello").version, Some(TlsVersion::Tls13));
        let old = server(&[alpn(&[b"h2"])]);
        let info = hello(&old).expect("a hello");
        assert_eq!((info.version, info.alpn.as_deref(), info.offered), (Some(TlsVersion::Tls12), Some("h2"), None));
        // The one after it belongs to another record.
        let both = [old.clone(), new].concat();
        assert_eq!(hello(&both), hello(&old));
    }

    #[test]
    fn hostile_names_are_made_safe() {
        let shown = hello(&client(&[name(b"a\x1b[31m\xff<b>\x00")])).and_then(|i| i.sni).expect("a name");
        assert_eq!(&*shown, "a\u{fffd}[31m\u{fffd}<b>\u{fffd}");
        let long = hello(&client(&[name(&[b'x'; 400])])).and_then(|i| i.sni).expect("a name");
        assert_eq!(long.len(), MAX_NAME);
        let many: Vec<&[u8]> = vec![b"p"; 40];
        assert_eq!(hello(&client(&[alpn(&many)])).expect("a hello").alpn_offered.len(), MAX_PROTOCOLS);
        assert_eq!(hello(&client(&[name(b"")])).expect("a hello").sni, None);
    }

    #[test]
    fn what_is_no_hello_says_nothing() {
        for none in [&[23, 3, 3, 0, 4, 1, 0, 0, 0][..], &[22, 3, 3, 0, 4, 11, 0, 0, 0], &[22, 3, 1, 0], b"", b"GET / "]
        {
            assert_eq!(hello(none), None, "{none:?}");
        }
    }

    #[test]
    fn header_fields_are_checked() {
        assert_eq!(record(&[22, 3, 1, 2, 0, 1]), Some(Content::TlsHandshake));
        assert_eq!(record(&[20, 3, 3, 0, 1]), Some(Content::TlsHandshake));
        assert_eq!(record(&[23, 3, 3, 64, 17]), Some(Content::TlsApplicationData));
        for not_tls in [
            &[22, 3, 1, 2][..],
            &[22, 2, 0, 0, 9],
            &[23, 3, 5, 0, 9],
            &[23, 3, 3, 0, 0],
            &[23, 3, 3, 255, 0],
            &[24, 3, 3, 0, 3],
        ] {
            assert_eq!(record(not_tls), None, "{not_tls:?}");
        }
    }
}
