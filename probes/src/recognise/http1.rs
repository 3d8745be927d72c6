//! HTTP/1 heads (RFC 9112), as far as the captured prefix shows them.

use super::Recognised;
use meshdiff_model::Content;
use std::sync::{Arc, LazyLock};

/// Longest path that is kept, in characters.
const MAX_PATH: usize = 256;
/// Heads with more header lines than this have no known end here.
const MAX_HEADERS: usize = 96;

/// Methods that are believed before the whole request line was seen (RFC 9110, RFC 5789).
const KNOWN_METHODS: [&str; 9] = ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

static SHARED_METHODS: LazyLock<[Arc<str>; 9]> = LazyLock::new(|| KNOWN_METHODS.map(Arc::from));

/// A request, from its request line. The rest of the head may lie beyond the prefix; so may the end of the target.
pub(super) fn request(prefix: &[u8]) -> Option<Recognised> {
    let space = prefix.iter().take(24).position(|&b| b == b' ')?;
    let (method, rest) = (&prefix[..space], &prefix[space + 1..]);
    if method.len() < 3 || !method.iter().all(|b| b.is_ascii_uppercase() || *b == b'-') {
        return None;
    }
    let target_end = rest.iter().position(|&b| matches!(b, b' ' | b'\r' | b'\n'));
    let (target, after) = rest.split_at(target_end.unwrap_or(rest.len()));
    if !target.first().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'*' | b'[')) {
        return None;
    }
    let known = KNOWN_METHODS.iter().position(|m| m.as_bytes() == method);
    // What follows the target must be the version, as far as it can be seen. Unless all of it is seen, any two words
    // would do: then the method must be a known one.
    const VERSION: &[u8] = b" HTTP/1.";
    let seen = after.len().min(VERSION.len());
    if after[..seen] != VERSION[..seen] || (known.is_none() && after.len() <= VERSION.len()) {
        return None;
    }
    let method = match known {
        Some(i) => Arc::clone(&SHARED_METHODS[i]),
        // ASCII by the check above.
        None => String::from_utf8_lossy(method).into(),
    };
    let path = super::path_of(target, target_end.is_some());
    // Of HTTP/0.9 and what only looks like a request line no end is known.
    let is_line = matches!(after, [b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b'\r' | b'\n', ..]);
    let head_len = is_line.then(|| head_len(prefix)).flatten();
    Some(Recognised { content: Content::Http1Request { method, path: text(path) }, head_len })
}

/// A response, from its status line. Interim ones that the prefix holds whole are passed over if another one follows them in the
/// same send: they left at the same instant.
pub(super) fn response(prefix: &[u8]) -> Option<Recognised> {
    let mut found: Option<Recognised> = None;
    let mut at = 0;
    while let Some(status) = prefix.get(at..).and_then(status_line) {
        let content = Content::Http1Response { status };
        let interim = content.is_interim_response();
        let len = head_len(&prefix[at..]);
        let end = len.map(|n| at + n as usize);
        found = Some(Recognised { content, head_len: end.and_then(|n| u32::try_from(n).ok()) });
        match end {
            Some(end) if interim && end > at => at = end,
            _ => break,
        }
    }
    found
}

/// `HTTP/1.x NNN`, followed by a blank, the line's end, or nothing yet.
fn status_line(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', a, b, c, after @ ..] = rest else { return None };
    let digits = [a, b, c];
    if !matches!(minor, b'0' | b'1')
        || !digits.iter().all(|d| d.is_ascii_digit())
        || !after.first().is_none_or(|b| matches!(b, b' ' | b'\r' | b'\n'))
    {
        return None;
    }
    let status = digits.iter().fold(0u16, |n, &&d| n * 10 + u16::from(d - b'0'));
    (status >= 100).then_some(status)
}

/// Length of a head that begins with its first line, if it is whole: up to and with the empty line. What is between must begin like
/// header lines; whether every byte of them is allowed does not change where the head ends, and a full parser, which looks at
/// each, takes as long as all the rest of message assembly.
fn head_len(bytes: &[u8]) -> Option<u32> {
    const LOW: u64 = u64::from_ne_bytes([0x7f; 8]);
    const LINE_FEEDS: u64 = u64::from_ne_bytes([b'\n'; 8]);
    let mut lines = Lines { bytes, begun: 0, count: 0 };
    // Heads are short and so are their lines: eight bytes at once are more than a search for each line gives.
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        // A byte's highest bit is set in the end if the byte is a line feed.
        let differs = u64::from_le_bytes(*word) ^ LINE_FEEDS;
        let mut found = !(((differs & LOW) + LOW) | differs | LOW);
        while found != 0 {
            if let Some(known) = lines.end_at(i * 8 + found.trailing_zeros() as usize / 8) {
                return known;
            }
            found &= found - 1;
        }
    }
    let last = words.len() * 8;
    let mut ends = (last..).zip(rest).filter(|(_, b)| **b == b'\n');
    ends.find_map(|(at, _)| lines.end_at(at)).flatten()
}

/// A head's lines, as their ends are found.
struct Lines<'a> {
    bytes: &'a [u8],
    /// Where the line began that has not ended yet.
    begun: usize,
    count: usize,
}

impl Lines<'_> {
    /// A line feed is there: what is known of the head's length by it, `None` as long as that is nothing.
    #[inline]
    fn end_at(&mut self, at: usize) -> Option<Option<u32>> {
        let first = self.bytes[self.begun];
        // The first line is no header's, and neither is it empty.
        if self.count > 0 && !(first.is_ascii_graphic() && first != b':') {
            let empty = first == b'\n' || (first == b'\r' && at == self.begun + 1);
            return Some(empty.then(|| u32::try_from(at + 1).ok()).flatten());
        }
        (self.begun, self.count) = (at + 1, self.count + 1);
        (self.count > MAX_HEADERS + 1).then_some(None)
    }
}

/// Text that is safe to show: what is no UTF-8 and no visible character is replaced, what is too long is cut.
pub(super) fn text(bytes: &[u8]) -> Arc<str> {
    if bytes.len() <= MAX_PATH
        && bytes.iter().fold(true, |all, b| all & (0x20..0x7f).contains(b))
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.into();
    }
    let text = String::from_utf8_lossy(bytes);
    if text.len() <= MAX_PATH && !text.chars().any(char::is_control) {
        return text.into();
    }
    text.chars()
        .take(MAX_PATH)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::mem::MaybeUninit;

    /// What a full parser says of a head: whether it is one, and its length if it is whole.
    fn parsed(bytes: &[u8]) -> httparse::Result<usize> {
        let mut headers = [MaybeUninit::uninit(); MAX_HEADERS];
        if bytes.starts_with(b"HTTP/") {
            let mut response = httparse::Response::new(&mut []);
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut headers)
        } else {
            httparse::Request::new(&mut []).parse_with_uninit_headers(bytes, &mut headers)
        }
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn heads_end_where_a_full_parser_says(
            first in prop_oneof![
                Just("GET /a?b HTTP/1.1"), Just("POST http://a/ HTTP/1.0"), Just("GET / HTTP/1.2"), Just("GET / HTTP/1.1 x"),
                Just("HTTP/1.1 200 OK"), Just("HTTP/1.0 404"), Just("HTTP/1.1 204 "), Just("GET /a b HTTP/1.1"), Just("GET /a"),
            ],
            lines in proptest::collection::vec((
                prop_oneof![6 => "[a-z-]{1,12}: [ -~]{0,20}", 1 => "[a-zA-Z]{0,3}:?[ -~]{0,4}", 1 => Just(String::new()), 1 => " [a-z]{1,3}"],
                line_end(),
            ), 0..12),
            first_end in line_end(),
            last in prop_oneof![6 => Just("\r\n"), 1 => Just("\n"), 1 => Just("")],
            body in "[ -~\r\n]{0,12}",
            cut in prop_oneof![2 => Just(1_000usize), 1 => 0usize..200],
        ) {
            let mut head = format!("{first}{first_end}");
            lines.iter().for_each(|(line, end)| head += &format!("{line}{end}"));
            let bytes = format!("{head}{last}{body}").into_bytes();
            let bytes = &bytes[..cut.min(bytes.len())];
            // Only what is told apart as one is looked at.
            let Some(found) = response(bytes).or_else(|| request(bytes)) else { return Ok(()) };
            match parsed(bytes) {
                Ok(httparse::Status::Complete(len)) => prop_assert_eq!(found.head_len, u32::try_from(len).ok()),
                Ok(httparse::Status::Partial) => prop_assert_eq!(found.head_len, None),
                // It objects to a byte: there is no end, or the empty line's.
                Err(_) => {
                    let head = &bytes[..found.head_len.unwrap_or_default() as usize];
                    let ended = head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n");
                    prop_assert!(ended || found.head_len.is_none());
                }
            }
        }
    }

    fn path_of(bytes: &[u8]) -> Option<String> {
        match request(bytes)?.content {
            Content::Http1Request { path, .. } => Some(path.to_string()),
            other => panic!("not a request: {other:?}"),
        }
    }

    #[test]
    fn the_head_ends_after_the_empty_line() {
        let bytes = b"GET /reviews/0?full=1 HTTP/1.1\r\nhost: reviews:9080\r\n\r\nBODY";
        let found = request(bytes).expect("a request");
        assert_eq!(found.head_len, Some(bytes.len() as u32 - 4));
        assert_eq!(path_of(bytes).as_deref(), Some("/reviews/0"));
        assert_eq!(request(&bytes[..40]).expect("a request").head_len, None);
    }

    #[test]
    fn targets_in_every_form() {
        assert_eq!(path_of(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n").as_deref(), Some("a.example:443"));
        assert_eq!(path_of(b"OPTIONS * HTTP/1.1\r\n\r\n").as_deref(), Some("*"));
        assert_eq!(path_of(b"GET http://a/b?c HTTP/1.0\r\n\r\n").as_deref(), Some("/b"));
        assert_eq!(path_of(b"M-SEARCH * HTTP/1.1\r\n").as_deref(), Some("*"));
        assert_eq!(path_of(b"GET /cut/he").as_deref(), Some("/cut/he"));
    }

    #[test]
    fn hostile_targets_are_made_safe() {
        assert_eq!(
            path_of(b"GET /a\x1b[31m\xff\x00 HTTP/1.1\r\n\r\n").as_deref(),
            Some("/a\u{fffd}[31m\u{fffd}\u{fffd}")
        );
        let long = [b"GET /", &[b'a'; 480][..]].concat();
        assert_eq!(path_of(&long).map(|p| p.len()), Some(MAX_PATH));
    }

    #[test]
    fn what_only_looks_like_a_request_is_none() {
        for bytes in [
            &b"GET / HTTP/2.0\r\n"[..],
            b"HELLO world",
            b"GET  HTTP/1.1\r\n",
            b"G / HTTP/1.1",
            b"get / HTTP/1.1\r\n",
            b"PRI * ",
        ] {
            assert_eq!(request(bytes), None, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn interim_responses_before_the_final_one_are_passed_over() {
        let both = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let found = response(both).expect("a response");
        assert_eq!(found.content, Content::Http1Response { status: 200 });
        assert_eq!(found.head_len, Some(both.len() as u32));
        let alone = response(b"HTTP/1.1 100 Continue\r\n\r\n").expect("a response");
        assert!(alone.content.is_interim_response());
        let upgrade = response(b"HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").expect("a response");
        assert_eq!(upgrade.content, Content::Http1Response { status: 101 });
    }

    #[test]
    fn what_only_looks_like_a_response_is_none() {
        for bytes in [&b"HTTP/1.1 2000 OK"[..], b"HTTP/2 200", b"HTTP/1.1 20", b"HTTP/1.1 099 no", b"HTTP/1.1  200 OK"]
        {
            assert_eq!(response(bytes), None, "{}", bytes.escape_ascii());
        }
    }
}
