//! What the first bytes of a send are. Everything here reads bytes that come from outside: it never fails, it only does
//! not recognise.

mod hpack;
mod http1;
mod http2;
mod tls;

use http1::text;
pub(crate) use http2::{Follower, OwnedFrames};
use meshdiff_model::{Content, TlsInfo};

/// What a recogniser found at the beginning of a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// What it is; never [`Content::Unknown`].
    pub content: Content,
    /// Bytes from the beginning of the send to the end of the head, if the prefix holds all of it.
    pub head_len: Option<u32>,
}

impl Recognised {
    fn of(content: Content) -> Self {
        Self { content, head_len: None }
    }
}

/// Looks at the first bytes of a send.
///
/// A response is found wherever it looks like one; whether one can be there (only at the beginning of a turn, or after an interim
/// one) is for message assembly to judge.
#[must_use]
pub fn recognise(prefix: &[u8]) -> Option<Recognised> {
    // The first byte tells the three apart: records begin with 20 to 23, heads with a letter.
    match prefix.first()? {
        20..=23 => tls::record(prefix).map(Recognised::of),
        b'P' if http2::is_preface(prefix) => Some(Recognised::of(Content::Http2Preface)),
        b'A'..=b'Z' => http1::response(prefix).or_else(|| http1::request(prefix)),
        _ => None,
    }
}

/// Looks at the first bytes of what an application hands to its TLS library. Positions in it say nothing of those in the stream, which is
/// encrypted: no head's end is known.
#[must_use]
pub fn recognise_plaintext(prefix: &[u8]) -> Option<Recognised> {
    let content = recognise(prefix)?.content;
    let is_plain = !matches!(content, Content::TlsHandshake | Content::TlsApplicationData);
    is_plain.then(|| Recognised::of(content))
}

/// What a TLS hello at the beginning of a send says in the clear; `None` if there is none. A longer prefix of the same send only adds
/// to it.
#[must_use]
pub fn recognise_hello(prefix: &[u8]) -> Option<TlsInfo> {
    tls::hello(prefix)
}

/// What is kept of a request's target (RFC 9112, section 3.2): the path, or the host and port that a CONNECT asks for. What
/// else can be in it may be secret: the query, and a user's name and password in front of a host. `whole` if it was captured to
/// its end.
fn path_of(target: &[u8], whole: bool) -> &[u8] {
    let all = target.len();
    let target = target.split(|b| matches!(b, b'?' | b'#')).next().unwrap_or_default();
    let whole = whole || target.len() < all;
    if target.first().is_none_or(|b| *b == b'/') {
        return target;
    }
    if let Some(scheme) = target.windows(3).position(|w| w == b"://") {
        let rest = &target[scheme + 3..];
        // No path is the root's; unless it lies beyond what was captured, where it is not known.
        let none: &[u8] = if whole { b"/" } else { b"" };
        return rest.iter().position(|b| *b == b'/').map_or(none, |path| &rest[path..]);
    }
    // The beginning of a name and password looks like that of a host.
    if whole { target.rsplit(|b| *b == b'@').next().unwrap_or_default() } else { b"" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_protocol_is_told_apart() {
        let content = |bytes: &[u8]| recognise(bytes).map(|r| r.content);
        assert_eq!(content(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00"), Some(Content::Http2Preface));
        assert_eq!(content(b"\x17\x03\x03\x00\x40abcd"), Some(Content::TlsApplicationData));
        assert_eq!(content(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(Content::Http1Response { status: 204 }));
        let get = Content::Http1Request { method: "GET".into(), path: "/".into() };
        assert_eq!(content(b"GET / HTTP/1.1\r\nhost: a\r\n"), Some(get));
        for unknown in
            [&b""[..], b"hello", b"{\"a\":1}", b"\x00\x00\x12\x04", b"SSH-2.0-OpenSSH_9.2\r\n", b"EHLO a\r\n"]
        {
            assert_eq!(content(unknown), None, "{}", unknown.escape_ascii());
        }
    }

    #[test]
    fn names_and_passwords_are_not_kept() {
        let path = |bytes: &[u8]| match recognise(bytes).map(|r| r.content) {
            Some(Content::Http1Request { path, .. }) => Some(path.to_string()),
            _ => None,
        };
        let whole = b"GET http://user:secret@host/a/b?secret HTTP/1.1\r\nhost: host\r\n\r\n";
        assert_eq!(path(whole).as_deref(), Some("/a/b"));
        for cut in 0..whole.len() {
            let path = path(&whole[..cut]).unwrap_or_default();
            assert!("/a/b".starts_with(&path), "{path} at {cut}");
        }
        for (target, kept) in [
            (&b"http://user:secret@host"[..], "/"),
            (b"https://user:se?cret@host/a", "/"),
            (b"user:secret@host:443", "host:443"),
            (b"/a@b", "/a@b"),
            (b"*", "*"),
        ] {
            assert_eq!(std::str::from_utf8(path_of(target, true)), Ok(kept));
        }
    }

    fn safe(content: &Content) -> bool {
        match content {
            Content::Http1Request { method, path } => {
                method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
                    && !path.chars().any(char::is_control)
                    && !path.contains('?')
                    && path.chars().count() <= 256
            }
            Content::Http1Response { status } => (100..1000).contains(status),
            _ => true,
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_safe_values(
            head in prop_oneof![
                Just(&b""[..]), Just(&b"GET "[..]), Just(&b"POST /a"[..]), Just(&b"HTTP/1.1 "[..]),
                Just(&b"HTTP/1.1 100 C\r\n\r\n"[..]), Just(&b"PRI * HTTP/2"[..]), Just(&b"\x16\x03"[..]),
            ],
            tail in proptest::collection::vec(any::<u8>(), 0..520),
        ) {
            let bytes = [head, &tail].concat();
            if let Some(found) = recognise(&bytes) {
                prop_assert!(safe(&found.content), "{:?}", found.content);
                prop_assert!(found.head_len.is_none_or(|n| n as usize <= bytes.len()));
            }
        }

        #[test]
        fn every_beginning_of_a_request_is_a_request_or_nothing(cut in 0usize..60) {
            let whole = b"DELETE /a/very/long/path?secret=1 HTTP/1.1\r\nhost: b\r\n\r\nbody";
            let cut = cut.min(whole.len());
            match recognise(&whole[..cut]) {
                Some(Recognised { content: Content::Http1Request { method, path }, head_len }) => {
                    prop_assert_eq!(&*method, "DELETE");
                    prop_assert!("/a/very/long/path".starts_with(&*path));
                    prop_assert_eq!(head_len.is_some(), cut >= whole.len() - 4);
                }
                other => prop_assert!(other.is_none() && cut <= 7, "{:?} at {}", other, cut),
            }
        }
    }
}
