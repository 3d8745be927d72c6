//! Recognisers and assembly on bytes from outside: kept examples (`tests/corpus`), changed at random for a bounded time. Another seed each
//! time; a failure names it and shows the input.
//!
//! `MESHDIFF_FUZZ_SECONDS=600 cargo test -p meshdiff-probes --test fuzz` goes on for longer, `MESHDIFF_FUZZ_SEED=n` does the same again.

mod frames;
mod mutate;

use meshdiff_model::{Content, TlsInfo};
use meshdiff_probes::{Recognised, recognise, recognise_hello, recognise_plaintext};
use mutate::fuzz;

/// What the probes capture of a send, at most.
const PREFIX: usize = 512;

fn visible(text: &str, most: usize) -> bool {
    !text.chars().any(char::is_control) && text.chars().count() <= most
}

fn check(found: &Recognised, bytes: &[u8]) {
    assert!(found.head_len.is_none_or(|n| n > 0 && n as usize <= bytes.len()), "{found:?}");
    match &found.content {
        Content::Unknown => panic!("nothing was recognised, and said to be something"),
        Content::Http1Request { method, path } => {
            assert!((3..24).contains(&method.len()), "{found:?}");
            assert!(method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'), "{found:?}");
            assert!(visible(path, 256) && !path.contains(['?', '#', ' ']), "{found:?}");
        }
        Content::Http1Response { status } => assert!((100..1000).contains(status), "{found:?}"),
        Content::Http2Preface | Content::TlsHandshake | Content::TlsApplicationData => assert_eq!(found.head_len, None),
    }
}

/// True if what was found in the beginning of some bytes may become what was found in more of them.
fn may_become(short: &Recognised, long: &Recognised) -> bool {
    let heads = short.head_len.is_none() || short.head_len == long.head_len;
    match (&short.content, &long.content) {
        (Content::Http1Request { method: a, path: p }, Content::Http1Request { method: b, path: q }) => {
            // A character that was cut in two is told as one that is none.
            a == b && heads && q.starts_with(p.trim_end_matches(char::REPLACEMENT_CHARACTER))
        }
        // Behind an interim response the next one counts.
        (a @ Content::Http1Response { .. }, Content::Http1Response { .. }) if a.is_interim_response() => true,
        (a, b) => a == b && heads,
    }
}

fn heads(bytes: &[u8], cut: usize) {
    let bytes = &bytes[..bytes.len().min(PREFIX)];
    let beginning = &bytes[..cut.min(bytes.len())];
    let (long, short) = (recognise(bytes), recognise(beginning));
    if let Some(found) = &long {
        check(found, bytes);
    }
    // A status is believed where the bytes end with it, whatever follows.
    let believed = beginning.len() >= 12 && beginning[beginning.len() - 12..].starts_with(b"HTTP/1.");
    if let (Some(short), Some(long), false) = (&short, &long, believed) {
        assert!(may_become(short, long), "{short:?} became {long:?} at {cut}");
    }
    // A head that was there whole is not taken back.
    assert!(
        short.is_none_or(|s| believed || s.head_len.is_none() || long.is_some()),
        "a whole head was taken back after {cut}"
    );
    let plain = recognise_plaintext(bytes);
    assert!(plain.as_ref().is_none_or(|p| p.head_len.is_none()));
    let tls = |r: &Recognised| matches!(r.content, Content::TlsHandshake | Content::TlsApplicationData);
    assert_eq!(plain.map(|p| p.content), long.filter(|r| !tls(r)).map(|r| r.content));
}

fn grows<T: PartialEq + std::fmt::Debug>(short: &Option<T>, long: &Option<T>) {
    assert!(short.is_none() || short == long, "{short:?} became {long:?}");
}

fn hellos(bytes: &[u8], cut: usize) {
    let cut = cut.min(bytes.len());
    let (short, long) = (recognise_hello(&bytes[..cut]), recognise_hello(bytes));
    let names = |info: &TlsInfo| {
        let all: Vec<_> = info.sni.iter().chain(&info.alpn).chain(&info.alpn_offered).cloned().collect();
        all
    };
    if let Some(info) = &long {
        assert!(matches!(bytes, [22, 3, ..]));
        assert!(names(info).iter().all(|n| !n.is_empty() && visible(n, 255)), "{info:?}");
        assert!(info.alpn_offered.len() <= 8 && !info.plaintext_seen);
        assert!(info.offered.is_none() || info.version.is_none(), "one hello is of one side: {info:?}");
    }
    let Some(short) = short else { return };
    let long = long.expect("more of a hello is one");
    grows(&short.offered, &long.offered);
    grows(&short.version, &long.version);
    grows(&short.sni, &long.sni);
    grows(&short.alpn, &long.alpn);
    assert!(short.alpn_offered.is_empty() || short.alpn_offered == long.alpn_offered, "{short:?} became {long:?}");
}

#[test]
fn http1_heads() {
    fuzz("http1", |input| heads(&input.bytes, input.cut));
}

#[test]
fn tls_records_and_hellos() {
    fuzz("tls", |input| {
        hellos(&input.bytes, input.cut);
        heads(&input.bytes, input.cut);
    });
}

#[test]
fn http2_frames() {
    fuzz("http2", |input| frames::follow(&input.bytes, input.noise));
}

/// The checks find what they are there for.
#[test]
fn what_contradicts_is_noticed() {
    let request = |path: &str, head_len| Recognised {
        content: Content::Http1Request { method: "GET".into(), path: path.into() },
        head_len,
    };
    assert!(may_become(&request("/a", None), &request("/ab", Some(20))));
    assert!(!may_become(&request("/ab", None), &request("/a", None)));
    assert!(!may_become(&request("/a", Some(20)), &request("/a", None)));
    let response = |status| Recognised { content: Content::Http1Response { status }, head_len: None };
    assert!(may_become(&response(103), &response(200)) && !may_become(&response(200), &response(404)));
}
