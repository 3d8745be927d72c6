//! As much of the protobuf wire format as it takes to find the entries of a message without decoding them.
//!
//! Entries are found here and decoded one by one, for two reasons. What is wrong with one entry (a string that is no
//! UTF-8, for instance) costs that entry and not the thirty beside it; and the entries of a message that the queue has no room for
//! can be counted for the price of a few additions.

use super::InvalidMessage;

/// `StreamAccessLogsMessage.identifier`.
const IDENTIFIER: u32 = 1;
/// `StreamAccessLogsMessage.http_logs`.
const HTTP_LOGS: u32 = 2;
/// `StreamAccessLogsMessage.tcp_logs`.
const TCP_LOGS: u32 = 3;
/// `HTTPAccessLogEntries.log_entry` and `TCPAccessLogEntries.log_entry`.
const LOG_ENTRY: u32 = 1;

/// What a message holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan<'a> {
    /// The undecoded `Identifier`: the last, should there be several.
    pub(crate) identifier: Option<&'a [u8]>,
    /// HTTP entries.
    pub(crate) http: usize,
    /// TCP entries.
    pub(crate) tcp: usize,
}

/// Of which type an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// `HTTPAccessLogEntry`.
    Http,
    /// `TCPAccessLogEntry`.
    Tcp,
}

/// Counts a message's entries and finds its identifier.
///
/// # Errors
/// If the message or a list of entries is cut short or not protobuf. What is inside of entries is not looked at.
pub(crate) fn scan(message: &[u8]) -> Result<Scan<'_>, InvalidMessage> {
    let mut found = Scan::default();
    for field in Fields(message) {
        let (number, bytes) = field?;
        match number {
            IDENTIFIER => found.identifier = Some(bytes.ok_or(InvalidMessage::Undecodable)?),
            HTTP_LOGS => found.http += count(bytes)?,
            TCP_LOGS => found.tcp += count(bytes)?,
            _ => {}
        }
    }
    Ok(found)
}

fn count(list: Option<&[u8]>) -> Result<usize, InvalidMessage> {
    let (mut entries, mut list) = (0, list.ok_or(InvalidMessage::Undecodable)?);
    while let Some((_, rest)) = plain_entry(list) {
        (entries, list) = (entries + 1, rest);
    }
    for field in Fields(list) {
        let (number, bytes) = field?;
        if number == LOG_ENTRY {
            bytes.ok_or(InvalidMessage::Undecodable)?;
            entries += 1;
        }
    }
    Ok(entries)
}

/// The entry that a list begins with, and the rest of the list, if they are written as nearly all are.
#[inline(always)]
fn plain_entry(list: &[u8]) -> Option<(&[u8], &[u8])> {
    /// `LOG_ENTRY`, length-delimited.
    const KEY: u8 = 1 << 3 | 2;
    match *list {
        [KEY, a, ref rest @ ..] if a < 0x80 => rest.split_at_checked(a.into()),
        [KEY, a, b, ref rest @ ..] if b < 0x80 => rest.split_at_checked(usize::from(a & 0x7f) | usize::from(b) << 7),
        _ => None,
    }
}

/// The entries of a list.
struct Entries<'a>(Fields<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let Self(fields) = self;
        if let Some((entry, rest)) = plain_entry(fields.0) {
            fields.0 = rest;
            return Some(entry);
        }
        loop {
            if let (LOG_ENTRY, Some(entry)) = fields.next()?.ok()? {
                return Some(entry);
            }
        }
    }
}

/// The undecoded entries of a message that [`scan`] accepted, in order.
pub(crate) fn entries(message: &[u8]) -> impl Iterator<Item = (EntryKind, &[u8])> {
    let lists = Fields(message).map_while(Result::ok).filter_map(|(number, bytes)| {
        let kind = match number {
            HTTP_LOGS => EntryKind::Http,
            TCP_LOGS => EntryKind::Tcp,
            _ => return None,
        };
        Some((kind, bytes?))
    });
    lists.flat_map(|(kind, list)| Entries(Fields(list)).map(move |entry| (kind, entry)))
}

/// The fields of a message: number, and the bytes of a length-delimited one.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Option<&'a [u8]>), InvalidMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or(InvalidMessage::Undecodable);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Option<&'a [u8]>)> {
        const VARINT: u64 = 0;
        const FIXED64: u64 = 1;
        const LENGTH_DELIMITED: u64 = 2;
        const FIXED32: u64 = 5;

        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n > 0)?;
        let bytes = match key & 7 {
            VARINT => {
                self.varint()?;
                None
            }
            FIXED64 => {
                self.take(8)?;
                None
            }
            LENGTH_DELIMITED => {
                let len = usize::try_from(self.varint()?).ok()?;
                Some(self.take(len)?)
            }
            FIXED32 => {
                self.take(4)?;
                None
            }
            // Groups (3 and 4) are not part of proto3, and 6 and 7 of nothing.
            _ => return None,
        };
        Some((number, bytes))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Most are keys and lengths of one or two bytes.
    #[inline(always)]
    fn varint(&mut self) -> Option<u64> {
        let (value, rest) = match *self.0 {
            [a, ref rest @ ..] if a < 0x80 => (u64::from(a), rest),
            [a, b, ref rest @ ..] if b < 0x80 => (u64::from(a & 0x7f) | u64::from(b) << 7, rest),
            _ => return self.long_varint(),
        };
        self.0 = rest;
        Some(value)
    }

    fn long_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            // The tenth byte holds the 64th bit only.
            if i == 9 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_identifier_and_entries() {
        // identifier "x"; http_logs with entries "ab" and ""; an unknown varint; tcp_logs with one entry.
        let message = [0x0a, 1, b'x', 0x12, 6, 0x0a, 2, b'a', b'b', 0x0a, 0, 0x20, 0xff, 0x01, 0x1a, 3, 0x0a, 1, b'c'];
        let found = scan(&message).expect("well-formed");
        assert_eq!(found, Scan { identifier: Some(b"x"), http: 2, tcp: 1 });
        let all: Vec<_> = entries(&message).collect();
        assert_eq!(all, [(EntryKind::Http, &b"ab"[..]), (EntryKind::Http, b""), (EntryKind::Tcp, b"c")]);
    }

    #[test]
    fn refuses_what_is_cut_short_or_of_another_type() {
        for bad in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x12, 2, 0x0a, 9],
            &[0x10, 1],
            &[0x12, 2, 0x08, 1],
            &[0x00, 1],
            &[0x0b],
            &[0x80; 12],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ] {
            assert_eq!(scan(bad), Err(InvalidMessage::Undecodable), "{bad:x?}");
        }
        assert_eq!(scan(&[]), Ok(Scan::default()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_either_refused_or_counted_as_they_are_listed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = scan(&bytes) {
                prop_assert_eq!(entries(&bytes).count(), found.http + found.tcp);
            }
        }
    }
}
