//! Identities of traces and spans: made from what the request is, so that exporting again changes nothing.

use meshdiff_analyzer::AttributedRequest;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A trace's id: 16 bytes, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceId(u128);

/// A span's id: 8 bytes, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanId(u64);

impl TraceId {
    pub(super) fn hex(self) -> String {
        format!("{:032x}", self.0)
    }
}

impl SpanId {
    pub(super) fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// The trace of a tree that begins with this request.
pub(super) fn trace(root: &AttributedRequest) -> TraceId {
    let id = root.request_id.as_ref().map(|id| &*id.0).filter(|id| !id.is_empty());
    match id.map(|id| (id, uuid(id))) {
        Some((_, Some(uuid))) => TraceId(uuid),
        Some((id, None)) => TraceId(hash(&["x-request-id", id])),
        None => TraceId(hash(&["request", &root.id, &root.start.0.to_string()])),
    }
}

/// A UUID's digits but for the 14th character, which Envoy rewrites to say whether and why a request is traced.
fn uuid(text: &str) -> Option<u128> {
    let shape = |(i, c): (usize, char)| if [8, 13, 18, 23].contains(&i) { c == '-' } else { c.is_ascii_hexdigit() };
    if text.len() != 36 || !text.is_ascii() || !text.chars().enumerate().all(shape) {
        return None;
    }
    let mut digits = String::with_capacity(32);
    digits.extend(text.chars().enumerate().filter(|(_, c)| *c != '-').map(|(i, c)| if i == 14 { '4' } else { c }));
    u128::from_str_radix(&digits, 16).ok()
}

/// A span of a request.
pub(super) fn span(trace: TraceId, request: &AttributedRequest, part: &str) -> SpanId {
    let id = hash(&["span", &trace.hex(), &request.id, &request.start.0.to_string(), part]);
    SpanId(u64::try_from(id >> 64).unwrap_or_default().max(1))
}

fn hash(parts: &[&str]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut hex = String::with_capacity(32);
    for byte in hash.finalize().iter().take(16) {
        let _ = write!(hex, "{byte:02x}");
    }
    u128::from_str_radix(&hex, 16).unwrap_or_default().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_a_trace_id_whatever_envoy_made_of_it() {
        let traced = uuid("8c5b7d1e-35f6-4e2a-9f6a-0123456789ab").expect("a UUID");
        assert_eq!(format!("{traced:032x}"), "8c5b7d1e35f64e2a9f6a0123456789ab");
        for reason in ['9', 'a', 'b'] {
            assert_eq!(uuid(&format!("8c5b7d1e-35f6-{reason}e2a-9f6a-0123456789ab")), Some(traced));
        }
        for none in [
            "",
            "8c5b7d1e35f64e2a9f6a0123456789ab",
            "8c5b7d1e-35f6-4e2a-9f6a-0123456789aß",
            "zc5b7d1e-35f6-4e2a-9f6a-0123456789ab",
        ] {
            assert_eq!(uuid(none), None, "{none}");
        }
        assert_ne!(hash(&["a", "b"]), hash(&["ab", ""]));
    }
}
