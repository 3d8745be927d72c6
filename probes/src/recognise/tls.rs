//! TLS records (RFC 8446, section 5.1), by their header alone.

use meshdiff_model::Content;

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

#[cfg(test)]
mod tests {
    use super::*;

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
