//! The HTTP/2 client connection preface (RFC 9113, section 3.4).

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// True for a prefix that begins with the preface; it is sent whole by every client, in its first flight.
pub(super) fn is_preface(prefix: &[u8]) -> bool {
    prefix.starts_with(PREFACE)
}
